//! This process as a guest: its region, its doorbell and its clock, as the frontend sees them.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time;

use anyhow::{Context, Result};
use hvl_frontend::{Board, Clock, Doorbell, Instant, Wait};
use hvl_shared_abi::{Region, ShmRegion};

use crate::bell::{Address, Bell};
use crate::guest::Place;

/// A handle on them.
#[derive(Clone)]
pub struct Process(Arc<Parts>);

struct Parts {
    region: Region,
    place: ShmRegion,
    bell: Mutex<Bell>,
    start: time::Instant,
}

impl Process {
    /// Maps the region and listens for the doorbell.
    pub fn open(place: &Place, doorbell: &Path) -> Result<Process> {
        let len = u32::try_from(place.size).context("a region of less than 4 GiB")?;
        let region = crate::memory::map(&place.file, place.offset, len)?;
        let bell = Mutex::new(Bell::open(&Address::Stream { path: doorbell.into(), listen: true })?);
        let place = ShmRegion { base: place.base, len };
        Ok(Process(Arc::new(Parts { region, place, bell, start: time::Instant::now() })))
    }

    fn bell<T>(&self, with: impl FnOnce(&mut Bell) -> T) -> T {
        with(&mut self.0.bell.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Doorbell for Process {
    fn ring(&self) {
        self.bell(Bell::ring);
    }
}

impl Clock for Process {
    fn now(&self) -> Instant {
        Instant::from_micros(self.0.start.elapsed().as_micros() as u64 + 1)
    }
}

impl Board for Process {
    type Mem = Region;
    fn mem(&self) -> &Region {
        &self.0.region
    }
    fn region(&self) -> ShmRegion {
        self.0.place
    }
}

impl Wait for Process {
    /// For a second at the most.
    fn wait_for_doorbell(&self, deadline: Option<Instant>) {
        let micros = deadline.map_or(1_000_000, |deadline| deadline.since(self.now()).min(1_000_000));
        self.bell(|bell| bell.wait(Some(micros)));
    }
}
