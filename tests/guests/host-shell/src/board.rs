//! This process as the frontend and the shell see it.

use std::fmt;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time;

use hvl_frontend::{Board, Clock, Doorbell, Instant, Wait};
use hvl_guest_shell::Machine;
use hvl_shared_abi::{Region, ShmRegion};

use crate::bell::Bell;

/// A handle on the process's region, doorbell and clock.
#[derive(Clone)]
pub struct Process(Arc<Parts>);

struct Parts {
    region: Region,
    place: ShmRegion,
    bell: Mutex<Bell>,
    start: time::Instant,
}

impl Process {
    /// Of a region, whose place is what the PMM calls it, and a doorbell. Its clock starts now.
    pub fn new(region: Region, place: ShmRegion, bell: Bell) -> Process {
        let start = time::Instant::now();
        Process(Arc::new(Parts { region, place, bell: Mutex::new(bell), start }))
    }

    /// A panic while it was locked left nothing half done that would matter.
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
        // 0 means "no clock" to the frontend.
        let micros = u64::try_from(self.0.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Instant::from_micros(micros.saturating_add(1))
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
    fn wait_for_doorbell(&self, deadline: Option<Instant>) {
        let now = self.now();
        self.bell(|bell| bell.wait(deadline.map(|deadline| deadline.since(now))));
    }
}

impl Machine for Process {
    const NAME: &'static str = "host";

    fn processor(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let about = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = about.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let model = model.map_or("unnamed", |(_, model)| model);
        write!(out, "{model} ({}), process {}", std::env::consts::ARCH, std::process::id())
    }

    fn wake_ups(&self) -> Option<u32> {
        Some(self.bell(|bell| bell.wake_ups()))
    }
}
