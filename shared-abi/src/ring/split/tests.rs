//! The two halves against each other, and each against a peer that lies. The same halves against halves that we did
//! not write stand in `tests/oracle`; under every interleaving, in `tests/loom`.

use super::*;
use crate::header::Extent;
use crate::mem::tests::region;
use crate::{Attribute, Region};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::vec::Vec;

const BASE: u64 = 0x8_0000_0000;
const POOL: Extent = Extent { at: 0x4000, len: 0x4000 };
const EVENT: Features = Features::EVENT_IDX;

fn place(size: u16) -> QueuePlace {
    QueuePlace { size, desc: 0x1000, avail: 0x2000, used: 0x3000 }
}

fn windows() -> Windows<'static> {
    Windows { base: BASE, allowed: &[POOL] }
}

struct Pair<'s> {
    m: Region,
    driver: DriverRing<'s>,
    device: DeviceRing<'s>,
}

fn pair(size: u16, features: Features) -> Pair<'static> {
    let m = region(0x8000, Attribute::Coherent);
    let slots = Vec::leak(std::vec![DriverSlot::NEW; size.into()]);
    let mut driver = DriverRing::new(place(size), BASE, slots).unwrap();
    let mut device =
        DeviceRing::new(place(size), Vec::leak(std::vec![DeviceSlot::NEW; size.into()])).unwrap();
    device.start(&m, features, 0);
    driver.start(&m, features);
    Pair { m, driver, device }
}

impl Pair<'_> {
    fn take(&mut self) -> Result<Option<Taken>, RingFault> {
        let mut segments = [Segment::readable(0, 0); 16];
        self.device.take(&self.m, windows(), &mut segments)
    }
    /// Writes a descriptor as a hostile driver would.
    fn desc(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = 0x1000 + u32::from(index) * 16;
        self.m.write32(at, address as u32);
        self.m.write32(at + 4, (address >> 32) as u32);
        self.m.write32(at + 8, len);
        self.m.write16(at + 12, flags);
        self.m.write16(at + 14, next);
    }
    fn offer(&self, position: u16, head: u16) {
        self.m.write16(0x2004 + u32::from(position % self.device.size()) * 2, head);
        self.m.write16(0x2002, position.wrapping_add(1));
    }
    fn malformed(&mut self, position: u16, head: u16) -> ChainError {
        self.offer(position, head);
        let Taken::Malformed { token, error } = self.take().unwrap().unwrap() else {
            panic!("taken as sound")
        };
        assert!(self.device.complete(&self.m, token, 0));
        error
    }
}

#[test]
fn chains_arrive_whole_and_return_in_any_order() {
    let mut p = pair(8, EVENT);
    let chain = [Segment::readable(0x4000, 16), Segment::readable(0x4010, 1), Segment::writable(0x5000, 64)];
    let a = p.driver.add(&p.m, &chain).unwrap();
    let b = p.driver.add(&p.m, &chain[2..]).unwrap();
    assert_eq!(p.take(), Ok(None), "nothing is seen before it is published");
    assert!(p.driver.publish(&p.m));
    assert!(!p.driver.publish(&p.m));
    let mut segments = [Segment::readable(0, 0); 4];
    let taken = p.device.take(&p.m, windows(), &mut segments).unwrap().unwrap();
    let Taken::Chain { token: first, readable: 2, writable: 1 } = taken else { panic!("{taken:?}") };
    assert_eq!(segments[..3], chain);
    let Some(Taken::Chain { token: second, .. }) = p.take().unwrap() else { panic!() };
    assert!(p.device.complete(&p.m, second, 64) && p.device.complete(&p.m, first, 3));
    assert!(!p.device.complete(&p.m, first, 3), "a chain is completed once");
    assert_eq!(p.driver.pop(&p.m), Ok(None));
    assert!(p.device.publish(&p.m));
    assert_eq!(p.driver.pop(&p.m), Ok(Some(Used { token: b, written: 64, overlong: false })));
    assert_eq!(p.driver.pop(&p.m), Ok(Some(Used { token: a, written: 3, overlong: false })));
    assert_eq!((p.driver.free(), p.driver.in_flight()), (8, 0));
}

#[test]
fn completions_are_published_in_the_order_of_taking_where_a_successor_counts_on_it() {
    let mut pair = pair(4, Features::empty());
    pair.device.keep_order();
    let mut expected = VecDeque::new();
    let mut published = 0u16;
    // Through the ring many times, two at a time, the later one finished first.
    for round in 0..40u32 {
        let mut tokens = Vec::new();
        for _ in 0..2 {
            expected.push_back(pair.driver.add(&pair.m, &[Segment::writable(POOL.at, 64)]).unwrap());
            pair.driver.publish(&pair.m);
            let Ok(Some(Taken::Chain { token, .. })) = pair.take() else { panic!("round {round}") };
            tokens.push(token);
        }
        assert!(pair.device.complete(&pair.m, tokens[1], round + 1));
        assert!(!pair.device.complete(&pair.m, tokens[1], 0), "it is completed once");
        assert!(!pair.device.publish(&pair.m), "the one before it is not finished");
        assert_eq!(pair.m.read16(0x3002), published, "all that the used index says is in order");
        assert_eq!(pair.device.in_flight(), 2);
        assert!(pair.device.complete(&pair.m, tokens[0], round));
        assert!(pair.device.publish(&pair.m));
        published = published.wrapping_add(2);
        for written in [round, round + 1] {
            let used = pair.driver.pop(&pair.m).unwrap().unwrap();
            assert_eq!((Some(used.token), used.written), (expected.pop_front(), written));
        }
        assert_eq!(pair.device.in_flight(), 0);
    }
}

#[test]
fn an_index_that_cannot_come_after_an_old_one_and_can_after_0_means_0_once() {
    let start = |position, doubt: bool| {
        let mut pair = pair(4, Features::empty());
        pair.device.start(&pair.m, Features::empty(), position);
        pair.m.write16(0x2002, position);
        if doubt {
            pair.device.doubt_position();
        }
        pair
    };
    for old in [7u16, 1000, 65_530] {
        let mut counts_on = start(old, true);
        counts_on.desc(0, BASE + u64::from(POOL.at), 4, 0, 0);
        counts_on.offer(old, 0);
        assert!(matches!(counts_on.take(), Ok(Some(Taken::Chain { .. }))), "counts on from {old}");
        counts_on.m.write16(0x2002, 1);
        assert!(counts_on.take().is_err(), "it has shown that it counts on");
        let mut from_0 = start(old, true);
        from_0.desc(0, BASE + u64::from(POOL.at), 4, 0, 0);
        from_0.offer(0, 0);
        assert!(matches!(from_0.take(), Ok(Some(Taken::Chain { .. }))), "counts from 0 over {old}");
        assert_eq!(from_0.device.position().0, 1);
        let mut neither = start(old, true);
        neither.m.write16(0x2002, old.wrapping_add(5));
        assert!(neither.take().is_err(), "an index that comes after nothing");
        let mut certain = start(old, false);
        certain.m.write16(0x2002, 1);
        assert!(certain.take().is_err());
    }
}

#[test]
fn a_ring_moves_to_any_size_that_its_slots_are_enough_for() {
    let mut p = pair(8, EVENT);
    let one = [Segment::readable(0x4000, 1)];
    p.driver.add(&p.m, &one).unwrap();
    assert!(!p.driver.replace(place(16), BASE) && !p.driver.replace(place(6), BASE));
    assert_eq!((p.driver.size(), p.driver.in_flight()), (8, 1), "a place that does not fit changes nothing");
    let mut slots = [DriverSlot::NEW; 2];
    assert_eq!(DriverRing::idle(&mut slots).add(&p.m, &one), Err(AddError::Shape), "it has no place yet");
    for size in [2u16, 8, 4] {
        assert!(p.driver.replace(place(size), BASE));
        p.driver.start(&p.m, EVENT);
        assert_eq!((p.driver.size(), p.driver.free(), p.driver.in_flight()), (size, size, 0));
        let tokens: Vec<_> = (0..size).map(|_| p.driver.add(&p.m, &one).unwrap()).collect();
        assert_eq!(p.driver.add(&p.m, &one), Err(AddError::Full));
        assert!(tokens.iter().all(|token| token.index() < size.into()));
        p.driver.publish(&p.m);
        p.m.write32(0x3004, size.into());
        p.m.write16(0x3002, 1);
        assert_eq!(p.driver.pop(&p.m), Err(RingFault::NoSuchChain { alleged: size.into() }));
    }
}

#[test]
fn a_full_queue_says_so_and_a_shapeless_chain_too() {
    let mut p = pair(2, EVENT);
    let one = Segment::readable(0x4000, 1);
    assert_eq!(p.driver.add(&p.m, &[]), Err(AddError::Shape));
    assert_eq!(p.driver.add(&p.m, &[one; 3]), Err(AddError::Shape));
    assert_eq!(p.driver.add(&p.m, &[Segment::writable(0x4000, 1), one]), Err(AddError::Shape));
    p.driver.add(&p.m, &[one; 2]).unwrap();
    assert_eq!(p.driver.add(&p.m, &[one]), Err(AddError::Full));
}

#[test]
fn whoever_sleeps_is_woken_and_whoever_is_awake_is_not() {
    let mut p = pair(4, EVENT);
    let one = [Segment::writable(0x4000, 8)];
    for round in 0..70_000u32 {
        assert!(!p.device.arm(&p.m), "round {round}");
        p.driver.add(&p.m, &one).unwrap();
        assert!(p.driver.publish(&p.m), "round {round}: the device slept");
        p.driver.add(&p.m, &one).unwrap();
        assert!(!p.driver.publish(&p.m), "round {round}: one bell is enough");
        assert!(p.device.arm(&p.m), "round {round}: there is work");
        assert!(!p.driver.arm(&p.m));
        for wanted in [true, false] {
            let Some(Taken::Chain { token, .. }) = p.take().unwrap() else { panic!() };
            p.device.complete(&p.m, token, 8);
            assert_eq!(p.device.publish(&p.m), wanted, "round {round}");
        }
        assert!(p.driver.arm(&p.m));
        assert!(p.driver.pop(&p.m).unwrap().is_some() && p.driver.pop(&p.m).unwrap().is_some());
    }
}

#[test]
fn without_event_idx_every_batch_rings() {
    let mut p = pair(4, Features::empty());
    for _ in 0..10 {
        p.driver.add(&p.m, &[Segment::writable(0x4000, 8)]).unwrap();
        assert!(p.driver.publish(&p.m));
        let Some(Taken::Chain { token, .. }) = p.take().unwrap() else { panic!() };
        p.device.complete(&p.m, token, 0);
        assert!(p.device.publish(&p.m));
        p.driver.pop(&p.m).unwrap().unwrap();
    }
}

#[test]
fn an_available_index_that_jumps_breaks_the_ring_at_every_position() {
    for start in [0u16, 1, 7, 0x7fff, 0xfff8, 0xfffe, 0xffff] {
        let mut p = pair(8, EVENT);
        for jump in [9u16, 10, 100, 0x7fff, 0x8000, 0xffff] {
            p.device.start(&p.m, EVENT, start);
            p.m.write16(0x2002, start.wrapping_add(jump));
            let fault = RingFault::IndexJump { from: start, to: start.wrapping_add(jump) };
            assert_eq!(p.take(), Err(fault));
            assert_eq!(p.take(), Err(fault), "and stays broken");
        }
    }
}

#[test]
fn heads_out_of_range_or_twice_break_the_ring() {
    let mut p = pair(8, EVENT);
    p.offer(0, 8);
    assert_eq!(p.take(), Err(RingFault::NoSuchChain { alleged: 8 }));
    p.offer(0, 0xffff);
    assert_eq!(p.take(), Err(RingFault::NoSuchChain { alleged: 0xffff }));
    p.desc(3, BASE + 0x4000, 8, 0, 0);
    p.offer(0, 3);
    assert!(p.take().unwrap().is_some());
    p.offer(1, 3);
    assert_eq!(p.take(), Err(RingFault::NotInFlight { alleged: 3 }));
}

#[test]
fn a_malformed_chain_is_refused_and_costs_the_ring_nothing() {
    let mut p = pair(8, EVENT);
    let good = BASE + 0x4000;
    type Case = (&'static str, ChainError, Vec<(u64, u32, u16, u16)>);
    let mut cases: Vec<Case> = std::vec![
        ("self loop", ChainError::TooLong, std::vec![(good, 8, NEXT, 0)]),
        ("loop of two", ChainError::TooLong, std::vec![(good, 8, NEXT, 1), (good, 8, NEXT, 0)]),
        ("next out of range", ChainError::BadNext, std::vec![(good, 8, NEXT, 8)]),
        ("next far out of range", ChainError::BadNext, std::vec![(good, 8, NEXT, 0xffff)]),
        (
            "readable after writable",
            ChainError::Order,
            std::vec![(good, 8, NEXT | WRITE, 1), (good, 8, 0, 0)]
        ),
        ("indirect without the feature", ChainError::BadIndirect, std::vec![(good, 16, INDIRECT, 0)]),
    ];
    let end = BASE + 0x8000;
    let outside = [
        0,
        1,
        0x4000,
        BASE,
        BASE + 0x1000,
        BASE + 0x3fff,
        end,
        end - 7,
        u64::MAX,
        u64::MAX - 7,
        good + (1 << 32),
    ];
    cases.extend(outside.map(|a| ("address", ChainError::BadBuffer, std::vec![(a, 8, 0, 0)])));
    cases.extend(
        [0, 0x4001, u32::MAX].map(|l| ("length", ChainError::BadBuffer, std::vec![(good, l, WRITE, 0)])),
    );
    let mut position = 0u16;
    for (name, error, chain) in cases {
        for (index, (address, len, flags, next)) in (0..).zip(chain) {
            p.desc(index, address, len, flags, next);
        }
        assert_eq!(p.malformed(position, 0), error, "{name}");
        position += 1;
        p.desc(0, good, 8, 0, 0);
        p.offer(position, 0);
        let Some(Taken::Chain { token, readable: 1, writable: 0 }) = p.take().unwrap() else {
            panic!("{name}")
        };
        assert!(p.device.complete(&p.m, token, 0));
        position += 1;
    }
}

#[test]
fn indirect_tables_are_walked_once_and_bounded() {
    let mut p = pair(8, Features::INDIRECT_DESC);
    let good = BASE + 0x5000;
    let row = |index: u32, address: u64, len: u32, flags: u16, next: u16| {
        let at = 0x4000 + index * 16;
        p.m.write32(at, address as u32);
        p.m.write32(at + 4, (address >> 32) as u32);
        p.m.write32(at + 8, len);
        p.m.write32(at + 12, u32::from(flags) | u32::from(next) << 16);
    };
    row(0, good, 4, NEXT, 2);
    row(2, good + 4, 4, WRITE, 0);
    p.desc(0, BASE + 0x4000, 48, INDIRECT, 0);
    p.offer(0, 0);
    let Some(Taken::Chain { token, readable: 1, writable: 1 }) = p.take().unwrap() else { panic!() };
    p.device.complete(&p.m, token, 0);
    let bad: [(&str, u32, u16, ChainError); 5] = [
        ("not a multiple of 16", 47, INDIRECT, ChainError::BadIndirect),
        ("empty", 0, INDIRECT, ChainError::BadIndirect),
        ("longer than the queue", 16 * 9, INDIRECT, ChainError::BadIndirect),
        ("with a successor", 48, INDIRECT | NEXT, ChainError::BadIndirect),
        ("shorter than its next", 32, INDIRECT, ChainError::BadNext),
    ];
    for (position, (name, len, flags, error)) in (1..).zip(bad) {
        p.desc(0, BASE + 0x4000, len, flags, 0);
        assert_eq!(p.malformed(position, 0), error, "{name}");
    }
    let row = |p: &Pair<'_>, flags: u16, next: u16| {
        p.m.write32(0x4000 + 12, u32::from(flags) | u32::from(next) << 16);
    };
    p.desc(0, BASE + 0x4000, 48, INDIRECT, 0);
    row(&p, NEXT, 0);
    assert_eq!(p.malformed(6, 0), ChainError::TooLong, "a loop inside");
    p.m.write32(0x4000, (BASE + 0x4000) as u32);
    p.m.write32(0x4004, ((BASE + 0x4000) >> 32) as u32);
    p.m.write32(0x4008, 48);
    row(&p, INDIRECT, 0);
    assert_eq!(p.malformed(7, 0), ChainError::BadIndirect, "a table inside a table");
    p.desc(0, BASE + 0x1000, 48, INDIRECT, 0);
    assert_eq!(p.malformed(8, 0), ChainError::BadBuffer, "a table on the ring");
}

#[test]
fn the_driver_believes_no_lie_of_the_device() {
    let mut p = pair(8, EVENT);
    let used = |p: &Pair<'_>, position: u32, id: u32, len: u32| {
        p.m.write32(0x3004 + position % 8 * 8, id);
        p.m.write32(0x3008 + position % 8 * 8, len);
        p.m.write16(0x3002, position as u16 + 1);
    };
    let token = p.driver.add(&p.m, &[Segment::readable(0x4000, 100), Segment::writable(0x5000, 10)]).unwrap();
    p.driver.publish(&p.m);
    p.m.write16(0x3002, 2);
    assert_eq!(p.driver.pop(&p.m), Err(RingFault::IndexJump { from: 0, to: 2 }));
    p.m.write16(0x3002, 0xffff);
    assert_eq!(p.driver.pop(&p.m), Err(RingFault::IndexJump { from: 0, to: 0xffff }));
    for alleged in [8, 0xffff, 0x1_0000, u32::MAX] {
        used(&p, 0, alleged, 1);
        assert_eq!(p.driver.pop(&p.m), Err(RingFault::NoSuchChain { alleged }));
    }
    used(&p, 0, 1, 1);
    assert_eq!(
        p.driver.pop(&p.m),
        Err(RingFault::NotInFlight { alleged: 1 }),
        "the chain's tail is no chain"
    );
    used(&p, 0, token.0.into(), u32::MAX);
    assert_eq!(p.driver.pop(&p.m), Ok(Some(Used { token, written: 10, overlong: true })));
    p.driver.add(&p.m, &[Segment::readable(0x4000, 1)]).unwrap();
    p.driver.add(&p.m, &[Segment::readable(0x4000, 1)]).unwrap();
    used(&p, 1, 0, 0);
    assert!(p.driver.pop(&p.m).unwrap().is_some());
    used(&p, 2, 0, 0);
    assert_eq!(p.driver.pop(&p.m), Err(RingFault::NotInFlight { alleged: 0 }), "used twice");
}

#[test]
fn scribbling_on_what_the_driver_wrote_changes_nothing_for_it() {
    let mut p = pair(8, EVENT);
    let chain = [Segment::readable(0x4000, 16), Segment::writable(0x5000, 64)];
    for round in 0..100u32 {
        let tokens: Vec<_> = (0..3).map(|_| p.driver.add(&p.m, &chain).unwrap()).collect();
        p.driver.publish(&p.m);
        for at in (0x1000..0x1080).chain(0x2000..0x2014) {
            p.m.write8(at, 0xa5 ^ round as u8);
        }
        for (i, token) in (0u32..).zip(&tokens) {
            let position = round * 3 + i;
            p.m.write32(0x3004 + position % 8 * 8, token.0.into());
            p.m.write32(0x3008 + position % 8 * 8, 1);
            p.m.write16(0x3002, (position + 1) as u16);
            assert_eq!(p.driver.pop(&p.m).unwrap().unwrap().token, *token);
        }
        assert_eq!(p.driver.free(), 8);
    }
}

proptest! {
    /// Any sequence of operations, of any shape, across any wrap, agrees with a queue that is a list.
    #[test]
    fn both_halves_agree_with_a_list(
        log in 1u32..6, event in any::<bool>(),
        steps in proptest::collection::vec((0u8..5, 1usize..5, any::<u8>()), 1..400),
    ) {
        let mut p = pair(1 << log, if event { EVENT } else { Features::empty() });
        let (mut added, mut taken, mut done) = (VecDeque::new(), Vec::new(), VecDeque::new());
        let (mut staged, mut finished) = (VecDeque::new(), VecDeque::new());
        for (what, length, dice) in steps {
            match what {
                0 => {
                    let chain: Vec<_> = (0..length as u32)
                        .map(|i| Segment::readable(POOL.at + i * 64, 1 + u32::from(dice) % 64))
                        .collect();
                    match p.driver.add(&p.m, &chain) {
                        Ok(token) => staged.push_back((token, chain)),
                        Err(AddError::Full) => prop_assert!(usize::from(p.driver.free()) < length),
                        Err(AddError::Shape) => prop_assert!(length > 1 << log),
                    }
                }
                1 => {
                    p.driver.publish(&p.m);
                    added.append(&mut staged);
                }
                2 => {
                    let mut segments = [Segment::readable(0, 0); 8];
                    match p.device.take(&p.m, windows(), &mut segments).unwrap() {
                        None => prop_assert!(added.is_empty()),
                        Some(Taken::Chain { token, readable, writable: 0 }) => {
                            let (named, chain) = added.pop_front().unwrap();
                            prop_assert_eq!(token, named);
                            prop_assert_eq!(&segments[..readable], &chain[..]);
                            taken.push(token);
                        }
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                3 => if !taken.is_empty() {
                    let token = taken.swap_remove(usize::from(dice) % taken.len());
                    prop_assert!(p.device.complete(&p.m, token, 0));
                    finished.push_back(token);
                    if dice & 1 == 0 {
                        p.device.publish(&p.m);
                        done.append(&mut finished);
                    }
                },
                _ => {
                    p.device.publish(&p.m);
                    done.append(&mut finished);
                    let used = p.driver.pop(&p.m).unwrap();
                    prop_assert_eq!(used.map(|u| u.token), done.pop_front());
                }
            }
        }
    }

    /// No content of the ring makes the device half panic, loop or leave the region.
    #[test]
    fn the_device_half_survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0x200), indirect in any::<bool>()) {
        let mut p = pair(16, if indirect { Features::INDIRECT_DESC } else { EVENT });
        p.m.copy_out(0x1000, &bytes[..0x100]);
        p.m.copy_out(0x2000, &bytes[0x100..0x140]);
        for position in 0..64u16 {
            p.m.write16(0x2002, position + 1);
            match p.take() {
                Ok(Some(Taken::Chain { token, .. } | Taken::Malformed { token, .. })) => {
                    p.device.complete(&p.m, token, 0);
                }
                Ok(None) => {}
                Err(_) => break,
            }
        }
    }
}

/// A region that counts how often each of its bytes is read.
struct Watched {
    m: Region,
    reads: std::cell::RefCell<Vec<u32>>,
}

impl Watched {
    fn note(&self, at: u32, len: u32) {
        self.reads.borrow_mut()[at as usize..][..len as usize].iter_mut().for_each(|reads| *reads += 1);
    }
}

#[rustfmt::skip]
impl Mem for Watched {
    fn len(&self) -> u32 { self.m.len() }
    fn attribute(&self) -> Attribute { self.m.attribute() }
    fn read8(&self, at: u32) -> u8 { self.note(at, 1); self.m.read8(at) }
    fn read16(&self, at: u32) -> u16 { self.note(at, 2); self.m.read16(at) }
    fn read32(&self, at: u32) -> u32 { self.note(at, 4); self.m.read32(at) }
    fn observe16(&self, at: u32) -> u16 { self.note(at, 2); self.m.observe16(at) }
    fn observe32(&self, at: u32) -> u32 { self.note(at, 4); self.m.observe32(at) }
    fn copy_in(&self, at: u32, into: &mut [u8]) { self.note(at, into.len() as u32); self.m.copy_in(at, into) }
    fn write8(&self, at: u32, value: u8) { self.m.write8(at, value) }
    fn write16(&self, at: u32, value: u16) { self.m.write16(at, value) }
    fn write32(&self, at: u32, value: u32) { self.m.write32(at, value) }
    fn publish16(&self, at: u32, value: u16) { self.m.publish16(at, value) }
    fn publish32(&self, at: u32, value: u32) { self.m.publish32(at, value) }
    fn copy_out(&self, at: u32, from: &[u8]) { self.m.copy_out(at, from) }
    fn settle(&self) { self.m.settle() }
    fn bell(&self) { self.m.bell() }
    fn clean(&self, at: u32, len: u32) { self.m.clean(at, len) }
    fn invalidate(&self, at: u32, len: u32) { self.m.invalidate(at, len) }
}

#[test]
fn what_the_peer_wrote_is_read_once() {
    const INDIRECT: u32 = 0x4400;
    let mut p = pair(4, EVENT | Features::INDIRECT_DESC);
    for (number, segments) in [1u32, 3].into_iter().enumerate() {
        // A chain, or a table of as many in the pool.
        let chain =
            [Segment::readable(0x4000, 16), Segment::readable(0x4010, 8), Segment::writable(0x5000, 64)];
        let m = Watched { m: p.m, reads: std::vec![0; p.m.len() as usize].into() };
        for indirect in [false, true] {
            let position = 2 * number as u16 + u16::from(indirect);
            m.reads.borrow_mut().fill(0);
            let table = if indirect { INDIRECT } else { 0x1000 };
            let chain = &chain[3 - segments as usize..];
            for (at, (index, segment)) in (table..).step_by(16).zip((1u16..).zip(chain)) {
                let last = u32::from(index) == segments;
                let flags = if last { 2 } else { 1 };
                p.m.write32(at, (BASE + u64::from(segment.place.at)) as u32);
                p.m.write32(at + 4, ((BASE + u64::from(segment.place.at)) >> 32) as u32);
                p.m.write32(at + 8, segment.place.len);
                p.m.write32(at + 12, flags | if last { 0 } else { u32::from(index) << 16 });
            }
            if indirect {
                p.desc(0, BASE + u64::from(INDIRECT), 16 * segments, 4, 0);
            }
            p.offer(position, 0);
            let mut taken = [Segment::readable(0, 0); 4];
            let Ok(Some(Taken::Chain { token, .. })) = p.device.take(&m, windows(), &mut taken) else {
                panic!("not taken")
            };
            assert_eq!(taken[..segments as usize], *chain);
            assert!(p.device.complete(&m, token, 0));
            let reads = m.reads.borrow();
            assert!(reads.iter().all(|&reads| reads <= 1), "a word of the peer is read twice");
            let all =
                |at: u32, len: u32| reads[at as usize..][..len as usize].iter().all(|&reads| reads == 1);
            assert!(all(table, 12) && all(0x1000, 12), "the words of the descriptors are read");
        }
    }
}
