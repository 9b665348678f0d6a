//! Tasks that meet at a lock.

use hvl_shared_abi::header::reg;

use super::*;
use crate::device::rng::{FillError, Rng, RngStorage};
use crate::platform::{Clock, Doorbell};
use hvl_shared_abi::{Attribute, Region, ShmRegion};
use std::boxed::Box;
use std::vec::Vec;

#[derive(Clone)]
struct Still(Region);

impl Doorbell for Still {
    fn ring(&self) {}
}
impl Clock for Still {
    fn now(&self) -> Instant {
        Instant::from_micros(7)
    }
}
impl Board for Still {
    type Mem = Region;
    fn mem(&self) -> &Region {
        &self.0
    }
    fn region(&self) -> ShmRegion {
        ShmRegion { base: 0, len: self.0.len() }
    }
}

fn link() -> (Link<'static, Still>, Rng<'static, Still>) {
    let words: Vec<AtomicU32> = (0..0x800).map(|_| AtomicU32::new(0)).collect();
    let board = Still(Region::in_words(words.leak(), Attribute::Coherent));
    let link = Link::attach(Box::leak(Box::new(LinkStorage::NEW)), board).unwrap();
    let rng = Rng::open(&link, Box::leak(Box::new(RngStorage::<8>::NEW))).unwrap();
    (link, rng)
}

/// Whatever lock another task holds: the call returns at once, its bell is not said to be seen, and the task
/// sleeps for a moment instead of looking again, so that the holder gets the processor.
#[test]
fn a_lock_that_is_taken_is_waited_for_asleep() {
    let (link, mut rng) = link();
    let soon = Some(Instant::from_micros(7).plus(BUSY));
    link.mem().write32(Window::LINK.at(reg::PMM_BELL), 3);

    let cell = link.storage.cells.first().unwrap().try_lock();
    assert_eq!(rng.fill(&mut [0; 4]), Err(FillError::WouldBlock));
    assert_eq!(rng.next_deadline(), soon);
    drop(cell);

    // A PMM has come, and another task is about to greet it.
    link.mem().write32(Window::LINK.at(reg::PMM_EPOCH), 2);
    let epochs = link.storage.epochs.try_lock();
    assert_eq!(rng.fill(&mut [0; 4]), Err(FillError::LinkDown));
    assert_eq!(link.storage.seen.first().unwrap().load(Ordering::Relaxed), 0);
    assert_eq!(rng.next_deadline(), soon);
    drop(epochs);
    assert_eq!(rng.next_deadline(), Some(Instant::UNKNOWN), "now there is something to do");
    rng.poll();
    assert_eq!(link.storage.seen.first().unwrap().load(Ordering::Relaxed), 3);
    assert!(matches!(link.state(), LinkState::Refused(Refusal::Foreign(_))));
    assert_eq!(rng.next_deadline(), None);
    assert_eq!(link.counters().busy, 3);
}
