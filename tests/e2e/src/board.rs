//! This process as a guest: on the board that the shell as a process has.

use std::path::Path;

use anyhow::{Context, Result};
use hvl_frontend::{Clock, Instant, Wait};
use hvl_guest_host::bell::{Address, Bell};
pub use hvl_guest_host::board::Process;
use hvl_shared_abi::ShmRegion;

use crate::guest::Place;

/// Maps the region and listens for the doorbell.
pub fn open(place: &Place, doorbell: &Path) -> Result<Process> {
    let len = u32::try_from(place.size).context("a region of less than 4 GiB")?;
    let region = crate::memory::map(&place.file, place.offset, len)?;
    let bell = Bell::open(&Address::Stream { path: doorbell.into(), listen: true })?;
    Ok(Process::new(region, ShmRegion { base: place.base, len }, bell))
}

/// Waits for the doorbell until a deadline, for a second at the most: whoever guards a test looks at the clock then.
pub fn wait(process: &Process, deadline: Option<Instant>) {
    let second = process.now().plus(1_000_000);
    process.wait_for_doorbell(Some(deadline.map_or(second, |deadline| deadline.min(second))));
}
