//! What the two halves of any ring can do, and the four halves that do it.

use crate::stock::{Arena, BASE, StockDriver, stock_device};
use hvl_shared_abi::header::Extent;
use hvl_shared_abi::ring::split::{DeviceSlot, DriverSlot};
use hvl_shared_abi::ring::{Access, DeviceRing, DriverRing, Segment, Taken, Token, Windows};
use hvl_shared_abi::{Features, Mem, QueuePlace};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// Entries of the queues here.
pub const SIZE: u16 = 16;

/// A ring's driver half. Chains are named by numbers below [`SIZE`].
pub trait DriverHalf {
    /// Adds a chain. `None`: full.
    fn add(&mut self, chain: &[Segment]) -> Option<u16>;
    /// Makes what was added visible. Whether the device is to be told; `None` if this half's answer is not exact.
    fn publish(&mut self) -> Option<bool>;
    /// Whether `add` publishes by itself.
    fn publishes_at_once(&self) -> bool;
    /// The next completion: chain and bytes written. `chain` says what a chain was added with.
    fn pop<'c>(&mut self, chain: impl Fn(u16) -> &'c [Segment]) -> Option<(u16, u32)>;
    /// Asks to be woken by the next completion. Whether there is one already; `None`: this half has no such call.
    fn arm(&mut self) -> Option<bool>;
    /// Whether it asks to be woken after every pop instead.
    fn asks_with_every_pop(&self) -> bool {
        self.publishes_at_once()
    }
    /// Whether a chain takes a single descriptor of the ring, its segments being in a table beside it.
    fn indirect(&self) -> bool;
}

/// A ring's device half.
pub trait DeviceHalf {
    /// Takes the next chain.
    fn take(&mut self) -> Option<(u16, Vec<Segment>)>;
    /// Completes one.
    fn complete(&mut self, chain: u16, written: u32);
    /// Makes completions visible. Whether the driver is to be told.
    fn publish(&mut self) -> bool;
    /// Whether `complete` makes them visible by itself.
    fn publishes_at_once(&self) -> bool;
    /// Asks to be woken by the next chain. Whether there is one already.
    fn arm(&mut self) -> bool;
    /// Reads a buffer, as this half reaches memory.
    fn read(&self, place: Extent) -> Vec<u8>;
    /// Writes one.
    fn write(&self, at: u32, bytes: &[u8]);
}

/// The features of a pair.
fn features(event_idx: bool, indirect: bool) -> Features {
    let mut features = Features::VERSION_1;
    features.set(Features::EVENT_IDX, event_idx);
    features.set(Features::INDIRECT_DESC, indirect);
    features
}

/// Our driver half.
pub struct OurDriver {
    arena: Arena,
    ring: DriverRing<'static>,
}

impl OurDriver {
    /// At `place`, started.
    pub fn new(arena: Arena, place: QueuePlace, event_idx: bool) -> OurDriver {
        let slots = vec![DriverSlot::NEW; place.size.into()].leak();
        let mut ring = DriverRing::new(place, BASE, slots).expect("a sound place");
        ring.start(&arena.region, features(event_idx, false));
        OurDriver { arena, ring }
    }
}

impl DriverHalf for OurDriver {
    fn add(&mut self, chain: &[Segment]) -> Option<u16> {
        self.ring.add(&self.arena.region, chain).ok().map(|token| token.index() as u16)
    }
    fn publish(&mut self) -> Option<bool> {
        Some(self.ring.publish(&self.arena.region))
    }
    fn publishes_at_once(&self) -> bool {
        false
    }
    fn pop<'c>(&mut self, _: impl Fn(u16) -> &'c [Segment]) -> Option<(u16, u32)> {
        let used = self.ring.pop(&self.arena.region).expect("the device's ring is sound")?;
        assert!(!used.overlong, "the device did not write more than there is room for");
        Some((used.token.index() as u16, used.written))
    }
    fn arm(&mut self) -> Option<bool> {
        Some(self.ring.arm(&self.arena.region))
    }
    fn indirect(&self) -> bool {
        false
    }
}

/// Our device half.
pub struct OurDevice {
    arena: Arena,
    ring: DeviceRing<'static>,
    tokens: [Option<Token>; SIZE as usize],
}

impl OurDevice {
    /// At `place`, started.
    pub fn new(arena: Arena, place: QueuePlace, event_idx: bool, indirect: bool) -> OurDevice {
        let slots = vec![DeviceSlot::NEW; place.size.into()].leak();
        let mut ring = DeviceRing::new(place, slots).expect("a sound place");
        ring.start(&arena.region, features(event_idx, indirect), 0);
        OurDevice { arena, ring, tokens: [None; SIZE as usize] }
    }
}

impl DeviceHalf for OurDevice {
    fn take(&mut self) -> Option<(u16, Vec<Segment>)> {
        let windows = Windows { base: BASE, allowed: &[self.arena.shared()] };
        let mut segments = [Segment::readable(0, 0); SIZE as usize];
        match self
            .ring
            .take(&self.arena.region, windows, &mut segments)
            .expect("the driver's ring is sound")?
        {
            Taken::Chain { token, readable, writable } => {
                let segments = segments[..readable + writable].to_vec();
                assert_eq!(readable, segments.iter().filter(|s| s.access == Access::Readable).count());
                self.tokens[token.index()] = Some(token);
                Some((token.index() as u16, segments))
            }
            Taken::Malformed { error, .. } => panic!("a sound chain was taken for another: {error}"),
        }
    }
    fn complete(&mut self, chain: u16, written: u32) {
        let token = self.tokens[usize::from(chain)].take().expect("the chain was taken");
        assert!(self.ring.complete(&self.arena.region, token, written));
    }
    fn publish(&mut self) -> bool {
        self.ring.publish(&self.arena.region)
    }
    fn publishes_at_once(&self) -> bool {
        false
    }
    fn arm(&mut self) -> bool {
        self.ring.arm(&self.arena.region)
    }
    fn read(&self, place: Extent) -> Vec<u8> {
        let mut bytes = vec![0; place.len as usize];
        self.arena.region.copy_in(place.at, &mut bytes);
        bytes
    }
    fn write(&self, at: u32, bytes: &[u8]) {
        self.arena.region.copy_out(at, bytes);
    }
}

/// `virtio-drivers`.
pub struct ForeignDriver {
    driver: StockDriver<{ SIZE as usize }>,
    indirect: bool,
    /// Its comparison for EVENT_IDX errs where the index wraps, and rings too often elsewhere.
    event_idx: bool,
}

impl ForeignDriver {
    /// A new ring in the arena.
    pub fn new(arena: Arena, event_idx: bool, indirect: bool) -> ForeignDriver {
        ForeignDriver { driver: StockDriver::new(arena, indirect, event_idx), indirect, event_idx }
    }
    fn split(chain: &[Segment]) -> (Vec<Extent>, Vec<Extent>) {
        let of = |access| chain.iter().filter(|s| s.access == access).map(|s| s.place).collect();
        (of(Access::Readable), of(Access::Writable))
    }
}

impl DriverHalf for ForeignDriver {
    fn add(&mut self, chain: &[Segment]) -> Option<u16> {
        let (readable, writable) = ForeignDriver::split(chain);
        self.driver.add(&readable, &writable)
    }
    fn publish(&mut self) -> Option<bool> {
        let notify = self.driver.should_notify();
        (!self.event_idx).then_some(notify)
    }
    fn publishes_at_once(&self) -> bool {
        true
    }
    fn pop<'c>(&mut self, chain: impl Fn(u16) -> &'c [Segment]) -> Option<(u16, u32)> {
        let token = self.driver.peek()?;
        let (readable, writable) = ForeignDriver::split(chain(token));
        let written = self.driver.pop(token, &readable, &writable);
        Some((token, written.expect("the chain that it peeked at")))
    }
    fn arm(&mut self) -> Option<bool> {
        None
    }
    fn indirect(&self) -> bool {
        self.indirect
    }
}

/// `virtio-queue`.
pub struct ForeignDevice {
    arena: Arena,
    queue: Queue,
}

impl ForeignDevice {
    /// At `place`.
    pub fn new(arena: Arena, place: QueuePlace, event_idx: bool) -> ForeignDevice {
        ForeignDevice { arena, queue: stock_device(arena, place, event_idx) }
    }
}

impl DeviceHalf for ForeignDevice {
    fn take(&mut self) -> Option<(u16, Vec<Segment>)> {
        // Not `pop_descriptor_chain`, which hides what it found wrong with the ring.
        let chain = self.queue.iter(self.arena.guest).expect("our ring is sound").next()?;
        let head = chain.head_index();
        let segments = chain.map(|descriptor| Segment {
            place: Extent { at: (descriptor.addr().0 - BASE) as u32, len: descriptor.len() },
            access: if descriptor.is_write_only() { Access::Writable } else { Access::Readable },
        });
        Some((head, segments.collect()))
    }
    fn complete(&mut self, chain: u16, written: u32) {
        self.queue.add_used(self.arena.guest, chain, written).expect("the used ring lies in the arena");
    }
    fn publish(&mut self) -> bool {
        self.queue.needs_notification(self.arena.guest).expect("the ring lies in the arena")
    }
    fn publishes_at_once(&self) -> bool {
        true
    }
    fn arm(&mut self) -> bool {
        self.queue.enable_notification(self.arena.guest).expect("the ring lies in the arena")
    }
    fn read(&self, place: Extent) -> Vec<u8> {
        let mut bytes = vec![0; place.len as usize];
        let address = GuestAddress(BASE + u64::from(place.at));
        self.arena.guest.read_slice(&mut bytes, address).expect("the buffer lies in the arena");
        bytes
    }
    fn write(&self, at: u32, bytes: &[u8]) {
        let address = GuestAddress(BASE + u64::from(at));
        self.arena.guest.write_slice(bytes, address).expect("the buffer lies in the arena");
    }
}
