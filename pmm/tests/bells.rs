//! When a link rings again, and what it leaves to a guest that never answers.

use std::sync::atomic::AtomicU32;

use hvl_pmm::device::rng::Rng;
use hvl_pmm::host::{EndError, Entropy};
use hvl_pmm::link::{Link, LinkPlan};
use hvl_shared_abi::epoch::{DriverDevice, DriverHalf, PmmLook};
use hvl_shared_abi::ring::Segment;
use hvl_shared_abi::ring::split::{DeviceSlot, DriverRing, DriverSlot};
use hvl_shared_abi::{Attribute, DeviceSpec, Features, Layout, Region, Window};

struct Sevens;

impl Entropy for Sevens {
    fn fill(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        into.fill(7);
        Ok(into.len())
    }
}

fn region() -> Region {
    let words: Vec<AtomicU32> = (0..0x4000).map(|_| AtomicU32::new(0)).collect();
    Region::in_words(words.leak(), Attribute::Coherent)
}

fn layout() -> Layout {
    Layout::place(&[DeviceSpec::RNG], 0x1_0000).unwrap()
}

fn link(m: Region, doorbell_can_lose: bool) -> Link<'static, Region> {
    let layout = layout();
    let rng = Box::leak(Box::new(Rng::new(Sevens)));
    let slots = vec![DeviceSlot::NEW; Link::<Region>::slots_for(&layout.devices()[0])].leak();
    let plan = LinkPlan { layout, base: 0, doorbell_can_lose };
    Link::publish(m, plan, [(rng as _, slots)], None, None).unwrap()
}

/// Serves a link at each of its deadlines.
fn pass(link: &mut Link<'static, Region>, now: &mut u64, micros: u64) {
    let end = *now + micros;
    while *now < end {
        let service = link.service(*now);
        *now = if service.again { *now + 1 } else { service.deadline.max(*now + 1) };
    }
}

/// How often a link rings in ten seconds in which nobody answers its first bell, and nobody has ever said hello.
fn rings(doorbell_can_lose: bool) -> u64 {
    let mut link = link(region(), doorbell_can_lose);
    pass(&mut link, &mut 0, 10_000_000);
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

#[test]
fn what_was_completed_can_still_be_taken_by_a_guest_that_was_presumed_gone() {
    let m = region();
    let mut link = link(m, false);
    let mut now = 0;
    let PmmLook::Present(pmm) = DriverHalf::look(&m) else { panic!("a link that was published") };
    let mut half = DriverHalf::new();
    assert!(half.hello(&m, pmm, 1));
    pass(&mut link, &mut now, 20_000);
    assert_eq!(half.adopted(&m), Some(true));
    let (device, place) = (DriverDevice(Window::LINK), layout().devices()[0]);
    let slots = vec![DriverSlot::NEW; 8].leak();
    let mut ring = DriverRing::new(place.queues[0], 0, slots).unwrap();
    ring.start(&m, Features::VERSION_1);
    let token = ring.add(&m, &[Segment::writable(place.pool.at, 16)]).unwrap();
    ring.publish(&m);
    device.start(&m, half.epoch(), Features::VERSION_1);
    pass(&mut link, &mut now, 20_000_000);
    assert_eq!(link.snapshot().counters.presumed_gone, 1);
    assert!(!half.in_session(&m), "the guest is told");
    let used = ring.pop(&m).unwrap().expect("the completion is still there");
    assert_eq!((used.token, used.written), (token, 16));
}
