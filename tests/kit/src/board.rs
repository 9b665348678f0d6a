//! The board of a frontend in the test's process: a region, a clock that the test moves, a doorbell that is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use hvl_frontend::{Board, Clock, Doorbell, Instant, Link, LinkStorage};
use hvl_shared_abi::{Region, ShmRegion};

use crate::{BASE, LEN};

/// For ever: tests are short.
pub fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

/// The board of a frontend in this process.
#[derive(Clone)]
pub struct TestBoard {
    /// The region.
    pub mem: Region,
    /// Microseconds.
    pub now: Arc<AtomicU64>,
    /// Doorbells rung.
    pub rings: Arc<AtomicU32>,
}

impl TestBoard {
    /// On a region of [`LEN`] bytes.
    pub fn new(mem: Region) -> TestBoard {
        TestBoard { mem, now: Arc::new(AtomicU64::new(1)), rings: Arc::default() }
    }
    /// A link on it, for ever.
    pub fn attach(&self) -> Link<'static, TestBoard> {
        Link::attach(leak(LinkStorage::NEW), self.clone()).expect("a link")
    }
    /// Lets time pass.
    pub fn pass(&self, micros: u64) {
        self.now.fetch_add(micros, SeqCst);
    }
}

impl Doorbell for TestBoard {
    fn ring(&self) {
        self.rings.fetch_add(1, SeqCst);
    }
}
impl Clock for TestBoard {
    fn now(&self) -> Instant {
        Instant::from_micros(self.now.load(SeqCst))
    }
}
impl Board for TestBoard {
    type Mem = Region;
    fn mem(&self) -> &Region {
        &self.mem
    }
    fn region(&self) -> ShmRegion {
        ShmRegion { base: BASE, len: LEN }
    }
}
