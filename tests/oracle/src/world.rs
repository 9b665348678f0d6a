//! Random operations on a pair of halves, and the model that says what each must answer.
//!
//! The model counts positions from the start in 64 bits and never wraps, so that it cannot share a mistake at 65536
//! with what it judges. It expects *exact* answers: which chain comes next, with which segments and bytes; when the
//! queue is full; whether a doorbell is due. A half that answers one of these inexactly says so ([`DriverHalf`]).

use crate::half::{DeviceHalf, DriverHalf, SIZE};
use crate::stock::Arena;
use hvl_shared_abi::Mem;
use hvl_shared_abi::ring::{Access, Segment};
use std::collections::VecDeque;

/// One operation. Those that have nothing to do check that they do nothing.
#[derive(Clone, Debug)]
pub enum Op {
    /// The driver adds a chain of so many segments (one readable, if none at all), of `len` bytes each, `skew` bytes
    /// into their blocks.
    Add {
        /// Readable ones.
        readable: u8,
        /// Writable ones.
        writable: u8,
        /// Bytes of each, 1 to 56.
        len: u8,
        /// Offset, 0 to 7.
        skew: u8,
    },
    /// The driver publishes.
    DriverPublish,
    /// The driver pops.
    Pop,
    /// The driver goes to sleep, if it may.
    DriverArm,
    /// The device takes a chain.
    Take,
    /// The device completes one of those that it took, whichever, and writes `part` of 255 of what it may.
    Complete {
        /// Which.
        which: u8,
        /// How much.
        part: u8,
    },
    /// The device publishes.
    DevicePublish,
    /// The device goes to sleep, if it may.
    DeviceArm,
    /// So many chains go all the way, after everything that is under way.
    Rounds(u8),
}

/// A chain under way, and what is in its buffers.
struct Chain {
    segments: Vec<Segment>,
    /// The request's bytes, later the answer's: what the next reader must find.
    bytes: Vec<u8>,
}

/// One index of the ring, and who wants to know of it.
#[derive(Default)]
struct Index {
    /// Chains handed over.
    now: u64,
    /// Of these, how many there were at the last decision about a doorbell.
    told: u64,
    /// The position that the peer asked to be woken at.
    event: u64,
}

impl Index {
    /// Whether a doorbell is due: 2.7.10 with positions that do not wrap, but for the event word itself, which has 16
    /// bits.
    fn due(&mut self, event_idx: bool) -> bool {
        let news = std::mem::replace(&mut self.told, self.now)..self.now;
        if event_idx { news.into_iter().any(|at| (at ^ self.event) & 0xffff == 0) } else { !news.is_empty() }
    }
}

/// A pair of halves over one arena, and the model of both.
pub struct World<D, V> {
    arena: Arena,
    driver: D,
    device: V,
    event_idx: bool,
    chains: [Option<Chain>; SIZE as usize],
    blocks: VecDeque<u32>,
    free: usize,
    serial: u64,
    /// Chains by where they are, in order.
    added: VecDeque<u16>,
    available: VecDeque<u16>,
    taken: Vec<u16>,
    completed: VecDeque<(u16, u32)>,
    used: VecDeque<(u16, u32)>,
    avail_index: Index,
    used_index: Index,
    takes: u64,
    pops: u64,
}

/// Bytes that one segment's buffer lies in.
const BLOCK: u32 = 64;

impl<D: DriverHalf, V: DeviceHalf> World<D, V> {
    /// A pair that was just started.
    pub fn new(arena: Arena, driver: D, device: V, event_idx: bool) -> World<D, V> {
        let blocks = (0..u32::from(SIZE) * 8).map(|n| arena.pool().at + n * BLOCK).collect();
        World {
            arena,
            driver,
            device,
            event_idx,
            chains: [const { None }; SIZE as usize],
            blocks,
            free: SIZE.into(),
            serial: 0,
            added: VecDeque::new(),
            available: VecDeque::new(),
            taken: Vec::new(),
            completed: VecDeque::new(),
            used: VecDeque::new(),
            avail_index: Index::default(),
            used_index: Index::default(),
            takes: 0,
            pops: 0,
        }
    }

    /// Chains that have gone all the way.
    pub fn served(&self) -> u64 {
        self.pops
    }

    /// Does one operation and checks every answer.
    pub fn apply(&mut self, op: &Op) {
        match *op {
            Op::Add { readable, writable, len, skew } => {
                self.add(readable.into(), writable.into(), len.into(), skew.into());
            }
            Op::DriverPublish => self.driver_publish(),
            Op::Pop => self.pop(),
            Op::DriverArm => self.driver_arm(),
            Op::Take => self.take(),
            Op::Complete { which, part } => self.complete(which.into(), part.into()),
            Op::DevicePublish => self.device_publish(),
            Op::DeviceArm => self.device_arm(),
            Op::Rounds(rounds) => {
                for round in 0..rounds {
                    self.add(1, 1, 4 + u32::from(round), 0);
                    self.finish();
                }
            }
        }
    }

    /// Serves chains until the available index is `left` before its wrap at 65536.
    pub fn approach_the_wrap(&mut self, left: u64) {
        self.finish();
        while !(self.pops + left).is_multiple_of(1 << 16) {
            let batch = ((1 << 16) - (self.pops + left) % (1 << 16)).min(SIZE.into());
            for _ in 0..batch {
                self.add(1, 0, 1, 0);
            }
            self.finish();
        }
    }

    /// Brings everything that is under way to its end.
    fn finish(&mut self) {
        self.driver_publish();
        while !self.available.is_empty() {
            self.take();
        }
        while !self.taken.is_empty() {
            self.complete(0, 7);
        }
        self.device_publish();
        while !self.used.is_empty() {
            self.pop();
        }
    }

    fn add(&mut self, readable: u32, writable: u32, len: u32, skew: u32) {
        let readable = if readable + writable == 0 { 1 } else { readable };
        let count = (readable + writable) as usize;
        assert!(
            count <= self.blocks.len(),
            "there are blocks for every chain that fits the ring and one more"
        );
        let segments: Vec<Segment> = (0..)
            .zip(self.blocks.range(..count))
            .map(|(n, block)| {
                let at = block + skew;
                if n < readable { Segment::readable(at, len) } else { Segment::writable(at, len) }
            })
            .collect();
        self.serial += 1;
        let bytes: Vec<u8> = noise(self.serial).take((readable * len) as usize).collect();
        let mut rest = bytes.as_slice();
        for segment in segments.iter().filter(|segment| segment.access == Access::Readable) {
            let (now, later) = rest.split_at(segment.place.len as usize);
            self.arena.region.copy_out(segment.place.at, now);
            rest = later;
        }
        let descriptors = self.descriptors(count);
        let token = self.driver.add(&segments);
        assert_eq!(token.is_some(), descriptors <= self.free, "{count} segments with {} free", self.free);
        let Some(token) = token else { return };
        let slot = &mut self.chains[usize::from(token)];
        assert!(slot.is_none(), "chain {token} is in flight already");
        *slot = Some(Chain { segments, bytes });
        self.blocks.drain(..count);
        self.free -= descriptors;
        if self.driver.publishes_at_once() {
            self.available.push_back(token);
            self.avail_index.now += 1;
        } else {
            self.added.push_back(token);
        }
    }

    fn descriptors(&self, segments: usize) -> usize {
        if self.driver.indirect() { 1 } else { segments }
    }

    fn driver_publish(&mut self) {
        self.avail_index.now += self.added.len() as u64;
        self.available.append(&mut self.added);
        let (rings, news) = (self.driver.publish(), self.avail_index.now != self.avail_index.told);
        let due = self.avail_index.due(self.event_idx);
        if let Some(rings) = rings.filter(|_| news) {
            assert_eq!(rings, due, "the driver's doorbell at {}", self.avail_index.now);
        }
    }

    fn take(&mut self) {
        let taken = self.device.take();
        let Some((token, segments)) = taken else {
            assert!(self.available.is_empty(), "the device does not see {:?}", self.available);
            return;
        };
        assert_eq!(Some(token), self.available.pop_front(), "chains are taken in the order they were added");
        let chain = self.chains[usize::from(token)].as_ref().expect("it is in flight");
        assert_eq!(segments, chain.segments, "chain {token}");
        let mut bytes = Vec::new();
        for segment in segments.iter().filter(|segment| segment.access == Access::Readable) {
            bytes.append(&mut self.device.read(segment.place));
        }
        assert_eq!(bytes, chain.bytes, "the request of chain {token}");
        self.taken.push(token);
        self.takes += 1;
    }

    fn complete(&mut self, which: usize, part: u32) {
        let Some(which) = which.checked_rem(self.taken.len()) else { return };
        let token = self.taken.swap_remove(which);
        let chain = self.chains[usize::from(token)].as_mut().expect("it is in flight");
        let room = chain.segments.iter().filter(|segment| segment.access == Access::Writable);
        let total: u32 = room.clone().map(|segment| segment.place.len).sum();
        let written = total * part / 255;
        self.serial += 1;
        chain.bytes = noise(self.serial).take(written as usize).collect();
        let mut rest = chain.bytes.as_slice();
        for segment in room {
            let (now, later) = rest.split_at(rest.len().min(segment.place.len as usize));
            self.device.write(segment.place.at, now);
            rest = later;
        }
        self.device.complete(token, written);
        if self.device.publishes_at_once() {
            self.used.push_back((token, written));
            self.used_index.now += 1;
        } else {
            self.completed.push_back((token, written));
        }
    }

    fn device_publish(&mut self) {
        self.used_index.now += self.completed.len() as u64;
        self.used.append(&mut self.completed);
        let (rings, news) = (self.device.publish(), self.used_index.now != self.used_index.told);
        let due = self.used_index.due(self.event_idx);
        if news {
            assert_eq!(rings, due, "the device's doorbell at {}", self.used_index.now);
        }
    }

    fn pop(&mut self) {
        let chains = &self.chains;
        let of = |token: u16| chains[usize::from(token)].as_ref().map_or(&[][..], |chain| &chain.segments);
        let Some((token, written)) = self.driver.pop(of) else {
            assert!(self.used.is_empty(), "the driver does not see {:?}", self.used);
            return;
        };
        assert_eq!(Some((token, written)), self.used.pop_front(), "completions are popped in their order");
        let chain = self.chains[usize::from(token)].take().expect("it is in flight");
        let mut bytes = Vec::new();
        for segment in chain.segments.iter().filter(|segment| segment.access == Access::Writable) {
            let mut part = vec![0; segment.place.len as usize];
            self.arena.region.copy_in(segment.place.at, &mut part);
            bytes.append(&mut part);
        }
        assert_eq!(
            bytes.get(..written as usize),
            Some(chain.bytes.as_slice()),
            "the answer of chain {token}"
        );
        self.blocks.extend(chain.segments.iter().map(|segment| segment.place.at & !(BLOCK - 1)));
        self.free += self.descriptors(chain.segments.len());
        self.pops += 1;
        if self.driver.asks_with_every_pop() {
            self.used_index.event = self.pops;
        }
    }

    fn driver_arm(&mut self) {
        if let Some(more) = self.driver.arm() {
            assert_eq!(more, !self.used.is_empty(), "the driver's second look");
            self.used_index.event = self.pops;
        }
    }

    fn device_arm(&mut self) {
        assert_eq!(self.device.arm(), !self.available.is_empty(), "the device's second look");
        self.avail_index.event = self.takes;
    }
}

/// Bytes that no other chain has.
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    (0u64..).map(move |n| ((seed ^ n << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
}
