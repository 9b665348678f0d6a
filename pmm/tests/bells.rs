//! When a link rings again.

use std::sync::atomic::AtomicU32;

use hvl_pmm::device::rng::Rng;
use hvl_pmm::host::{EndError, Entropy};
use hvl_pmm::link::{Link, LinkPlan};
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::{Attribute, DeviceSpec, Layout, Region};

struct Silent;

impl Entropy for Silent {
    fn fill(&mut self, _: &mut [u8]) -> Result<usize, EndError> {
        Err(EndError::WouldBlock)
    }
}

/// How often a link rings in ten seconds in which nobody answers its first bell, and nobody has ever said hello.
fn rings(doorbell_can_lose: bool) -> u64 {
    let words: Vec<AtomicU32> = (0..0x4000).map(|_| AtomicU32::new(0)).collect();
    let m = Region::in_words(words.leak(), Attribute::Coherent);
    let layout = Layout::place(&[DeviceSpec::RNG], 0x1_0000).unwrap();
    let mut rng = Rng::new(Silent);
    let mut slots = vec![DeviceSlot::NEW; Link::<Region>::slots_for(&layout.devices()[0])];
    let plan = LinkPlan { layout, base: 0, doorbell_can_lose };
    let mut link = Link::publish(m, plan, [(&mut rng as _, &mut slots[..])], None, None).unwrap();
    let mut now = 0;
    while now < 10_000_000 {
        now = link.service(now).deadline.max(now + 1);
    }
    link.snapshot().counters.rings
}

#[test]
fn a_lost_announcement_is_rung_again_for_a_guest_that_sleeps_and_has_never_said_hello() {
    // 10 ms, doubling up to 1 s: seven bells in the first 1.3 s, one a second then.
    assert!((12..20).contains(&rings(true)), "{}", rings(true));
}

#[test]
fn a_bell_that_cannot_be_lost_is_not_repeated_while_nobody_is_there() {
    assert_eq!(rings(false), 1);
}
