//! What the two sides do with the ring. Each function is one execution; loom calls it once for every one there is.

use crate::memory::{BUFFERS, DEVICE_WORD, DRIVER_WORD, Memory, PLACE, Weakened};
use hvl_shared_abi::header::Extent;
use hvl_shared_abi::ring::split::{DeviceSlot, DriverSlot};
use hvl_shared_abi::ring::{Access, DeviceRing, DriverRing, Segment, Taken, Windows};
use hvl_shared_abi::{Features, Mem};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread::{self, Thread};
use std::sync::Arc;

/// The guest's address of the region.
const BASE: u64 = 0x7_0000_0000;
const WINDOWS: Windows<'static> = Windows { base: BASE, allowed: &[Extent { at: 192, len: 8 }] };

/// A doorbell: it says "look", and rings that come together are one. A side that sleeps is woken by nothing else, so
/// that a lost wake-up is a deadlock. (No lock with a condition variable: loom cannot unwind out of one.)
struct Doorbell<'a> {
    rung: &'a AtomicBool,
    sleeper: Thread,
}

impl Doorbell<'_> {
    fn ring(&self, m: &Memory) {
        m.bell();
        // An exchange on both sides, though a store would do: loom may order a store before an exchange that missed it.
        self.rung.swap(true, Ordering::AcqRel);
        self.sleeper.unpark();
    }
}

fn sleep(rung: &AtomicBool) {
    while !rung.swap(false, Ordering::AcqRel) {
        thread::park();
    }
}

/// What is told apart in [`traffic`].
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// EVENT_IDX accepted: without it nobody suppresses a doorbell.
    pub event_idx: bool,
    /// Chains that go through the ring in all.
    pub chains: u32,
    /// Chains that are added, or completed, before they are published together.
    pub batch: u32,
    /// Whether `arm`'s answer is heeded. It must be: without the second look a wake-up is lost.
    pub second_look: bool,
}

impl Traffic {
    /// Three chains through a ring of two, each published alone.
    pub const SINGLE: Traffic = Traffic { event_idx: true, chains: 3, batch: 1, second_look: true };
}

/// The segment of the `n`-th chain: requests and answers take turns.
fn segment(n: u32, at: u32) -> Segment {
    if n.is_multiple_of(2) { Segment::readable(at, 4) } else { Segment::writable(at, 4) }
}

/// The driver sends chains through a ring of two, the device serves them, and both sleep whenever there is nothing to
/// do. All arrive, once, in order, with their payload whole.
pub fn traffic(how: Traffic, weakened: Weakened) {
    let memory = Arc::new(Memory::new(weakened));
    let rung = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
    let mut features = Features::VERSION_1;
    features.set(Features::EVENT_IDX, how.event_idx);

    // Both halves are set up before either runs, as the protocol's epochs make sure.
    let mut device_slots = [DeviceSlot::NEW; PLACE.size as usize];
    let mut driver_slots = [DriverSlot::NEW; PLACE.size as usize];
    let mut driver = DriverRing::new(PLACE, BASE, &mut driver_slots).expect("a sound place");
    driver.start(&*memory, features);
    DeviceRing::new(PLACE, &mut device_slots).expect("a sound place").start(&*memory, features, 0);

    let (m, bells, sleeper) = (Arc::clone(&memory), Arc::clone(&rung), thread::current());
    let device = thread::spawn(move || {
        let mut device = DeviceRing::new(PLACE, &mut device_slots).expect("a sound place");
        device.resume(features, 0, 0);
        let [kick, call] = &*bells;
        serve(&m, &mut device, how, kick, &Doorbell { rung: call, sleeper });
    });
    let [kick, call] = &*rung;
    let kick = Doorbell { rung: kick, sleeper: device.thread().clone() };
    send(&memory, &mut driver, how, &kick, call);
    // No join: loom runs the device to its end all the same, and a late ring would unpark the join.
}

fn serve(m: &Memory, ring: &mut DeviceRing<'_>, how: Traffic, kick: &AtomicBool, call: &Doorbell<'_>) {
    let (mut served, mut unpublished) = (0, 0);
    while served < how.chains {
        let mut segments = [Segment::readable(0, 0)];
        match ring.take(m, WINDOWS, &mut segments).expect("the driver's ring is sound") {
            Some(Taken::Chain { token, .. }) => {
                let [Segment { place, access }] = segments;
                let written = match access {
                    Access::Readable => {
                        assert_eq!(m.read32(place.at), request(served), "a request is seen whole");
                        0
                    }
                    Access::Writable => {
                        m.write32(place.at, request(served));
                        4
                    }
                };
                assert!(ring.complete(m, token, written));
                (served, unpublished) = (served + 1, unpublished + 1);
            }
            Some(Taken::Malformed { error, .. }) => panic!("an entry was seen half: {error}"),
            None if unpublished != 0 => {
                unpublished = 0;
                if ring.publish(m) {
                    call.ring(m);
                }
            }
            None => {
                if !ring.arm(m) || !how.second_look {
                    sleep(kick);
                }
            }
        }
        if unpublished >= how.batch || served == how.chains {
            unpublished = 0;
            if ring.publish(m) {
                call.ring(m);
            }
        }
    }
}

fn send(m: &Memory, ring: &mut DriverRing<'_>, how: Traffic, kick: &Doorbell<'_>, call: &AtomicBool) {
    let (mut sent, mut done) = (0, 0);
    // By token: which chain it is, and where its buffer lies.
    let mut in_flight = [(0u32, 0u32); PLACE.size as usize];
    let mut free = BUFFERS.to_vec();
    while done < how.chains {
        let mut added = 0;
        while sent < how.chains
            && let Some(at) = free.pop()
        {
            if segment(sent, at).access == Access::Readable {
                m.write32(at, request(sent));
            }
            let token = ring.add(m, &[segment(sent, at)]).expect("there is a buffer for each descriptor");
            in_flight[token.index()] = (sent, at);
            (sent, added) = (sent + 1, added + 1);
            if (added == how.batch || free.is_empty() || sent == how.chains) && ring.publish(m) {
                kick.ring(m);
            }
        }
        match ring.pop(m).expect("the device's ring is sound") {
            Some(used) => {
                let (n, at) = in_flight[used.token.index()];
                assert_eq!(n, done, "completions come in order");
                assert!(!used.overlong);
                if segment(n, at).access == Access::Writable {
                    assert_eq!((used.written, m.read32(at)), (4, request(n)), "an answer is seen whole");
                }
                done += 1;
                free.push(at);
            }
            None => {
                if !ring.arm(m) || !how.second_look {
                    sleep(call);
                }
            }
        }
    }
}

/// The payload of the `n`-th chain: never 0, which is what a stale word holds.
fn request(n: u32) -> u32 {
    0x5eed_0001 + n
}

/// Which question is asked in [`look`].
#[derive(Clone, Copy, Debug)]
pub enum Look {
    /// The driver's `has_used`.
    HasUsed,
    /// The device's `has_available`.
    HasAvailable,
    /// The device's `alleged_position`.
    AllegedPosition,
}

/// A look at the ring is an observation even before an entry is taken: who is told that there is something may then
/// read whatever the other side stored before it, such as the epoch that it belongs to.
pub fn look(question: Look, weakened: Weakened) {
    let memory = Arc::new(Memory::new(weakened));
    let mut driver_slots = [DriverSlot::NEW; PLACE.size as usize];
    let mut device_slots = [DeviceSlot::NEW; PLACE.size as usize];
    let mut driver = DriverRing::new(PLACE, BASE, &mut driver_slots).expect("a sound place");
    driver.start(&*memory, Features::VERSION_1);
    let mut device = DeviceRing::new(PLACE, &mut device_slots).expect("a sound place");
    device.start(&*memory, Features::VERSION_1, 0);

    let m = Arc::clone(&memory);
    let (there, word) = if let Look::HasUsed = question {
        driver.add(&*memory, &[segment(0, BUFFERS[0])]).expect("an empty ring");
        driver.publish(&*memory);
        thread::spawn(move || {
            let mut slots = [DeviceSlot::NEW; PLACE.size as usize];
            let mut device = DeviceRing::new(PLACE, &mut slots).expect("a sound place");
            let taken = device.take(&*m, WINDOWS, &mut [Segment::readable(0, 0)]);
            let Ok(Some(Taken::Chain { token, .. })) = taken else { panic!("not the chain: {taken:?}") };
            m.write32(DEVICE_WORD, request(0));
            assert!(device.complete(&*m, token, 0));
            device.publish(&*m);
        });
        (driver.has_used(&*memory), DEVICE_WORD)
    } else {
        thread::spawn(move || {
            let mut slots = [DriverSlot::NEW; PLACE.size as usize];
            let mut driver = DriverRing::new(PLACE, BASE, &mut slots).expect("a sound place");
            m.write32(DRIVER_WORD, request(0));
            driver.add(&*m, &[segment(0, BUFFERS[0])]).expect("an empty ring");
            driver.publish(&*m);
        });
        let there = match question {
            Look::AllegedPosition => device.alleged_position(&*memory) != 0,
            _ => device.has_available(&*memory),
        };
        (there, DRIVER_WORD)
    };
    if there {
        assert_eq!(memory.read32(word), request(0));
    }
}
