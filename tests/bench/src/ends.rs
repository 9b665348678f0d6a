//! The contenders: two ends each, that exchange messages of 64 bytes.
//!
//! A message is a chain of two buffers, a request that the device reads and an answer that it writes, each on a line
//! of its own. The device answers with what it was asked, by way of a private copy, as any device would that looks at
//! its requests. Every contender copies 64 bytes in and out at both ends, keeps its free buffers in the same way and
//! lies at the same offsets, so that what differs is the ring.

use hvl_oracle::Arena;
use hvl_oracle::stock::{BASE, StockDriver, stock_device};
use hvl_shared_abi::header::Extent;
use hvl_shared_abi::ring::split::{DeviceSlot, DriverSlot};
use hvl_shared_abi::ring::{DeviceRing, DriverRing, Segment, Taken, Windows};
use hvl_shared_abi::{Features, Mem, Region};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

/// Bytes of a request, and of an answer: one line.
pub const MESSAGE: usize = 64;
/// Messages in flight at most.
pub const DEPTH: u16 = 64;
/// Entries of the queues: two descriptors a message.
const SIZE: u16 = DEPTH * 2;

/// One message.
pub type Message = [u8; MESSAGE];

/// The end that asks.
pub trait DriverEnd {
    /// Puts a request into the ring, if there is room.
    fn send(&mut self, request: &Message) -> bool;
    /// Shows the device what was sent. Whether it must be woken.
    fn flush(&mut self) -> bool;
    /// Takes an answer out of the ring, if there is one.
    fn receive(&mut self, answer: &mut Message) -> bool;
    /// Before it sleeps: whether it must not, because there is an answer.
    fn stay_awake(&mut self) -> bool;
}

/// The end that answers.
pub trait DeviceEnd: Send {
    /// Answers one request, if there is one.
    fn serve(&mut self) -> bool;
    /// Shows the driver what was answered. Whether it must be woken.
    fn flush(&mut self) -> bool;
    /// Before it sleeps: whether it must not, because there is a request.
    fn stay_awake(&mut self) -> bool;
}

/// A contender.
pub trait Pair {
    /// Its driver's end, which stays on this thread.
    type Driver: DriverEnd;
    /// Its device's end.
    type Device: DeviceEnd;
    /// Both ends of a fresh ring.
    fn ends(&self) -> (Self::Driver, Self::Device);
}

/// Which buffers are free, and which one a chain in flight has.
struct Buffers {
    pool: u32,
    free: Vec<u16>,
    of_chain: [u16; SIZE as usize],
}

impl Buffers {
    fn new(arena: Arena) -> Buffers {
        Buffers { pool: arena.pool().at, free: (0..DEPTH).collect(), of_chain: [0; SIZE as usize] }
    }
    fn request(&self, buffer: u16) -> Extent {
        Extent { at: self.pool + u32::from(buffer) * 2 * MESSAGE as u32, len: MESSAGE as u32 }
    }
    fn answer(&self, buffer: u16) -> Extent {
        Extent { at: self.request(buffer).at + MESSAGE as u32, len: MESSAGE as u32 }
    }
}

/// Our two halves.
pub struct Ours(pub Arena);

/// Our driver half.
pub struct OurDriver {
    m: Region,
    ring: DriverRing<'static>,
    buffers: Buffers,
}

/// Our device half.
pub struct OurDevice {
    m: Region,
    ring: DeviceRing<'static>,
    pool: Extent,
}

impl Pair for Ours {
    type Driver = OurDriver;
    type Device = OurDevice;
    fn ends(&self) -> (OurDriver, OurDevice) {
        let (arena, m, features) = (self.0, self.0.region, Features::VERSION_1 | Features::EVENT_IDX);
        // Records of a few hundred bytes, leaked once a measurement: the ring borrows them, and its ends part ways.
        let driver_slots = vec![DriverSlot::NEW; SIZE.into()].leak();
        let device_slots = vec![DeviceSlot::NEW; SIZE.into()].leak();
        let mut driver = DriverRing::new(arena.place(SIZE), BASE, driver_slots).expect("a sound place");
        let mut device = DeviceRing::new(arena.place(SIZE), device_slots).expect("a sound place");
        driver.start(&m, features);
        device.start(&m, features, 0);
        (
            OurDriver { m, ring: driver, buffers: Buffers::new(arena) },
            OurDevice { m, ring: device, pool: arena.pool() },
        )
    }
}

impl DriverEnd for OurDriver {
    #[inline]
    fn send(&mut self, request: &Message) -> bool {
        let Some(buffer) = self.buffers.free.pop() else { return false };
        let (to, from) = (self.buffers.request(buffer), self.buffers.answer(buffer));
        self.m.copy_out(to.at, request);
        let chain = [Segment::readable(to.at, to.len), Segment::writable(from.at, from.len)];
        let token = self.ring.add(&self.m, &chain).expect("two descriptors for each buffer");
        self.buffers.of_chain[token.index()] = buffer;
        true
    }
    #[inline]
    fn flush(&mut self) -> bool {
        self.ring.publish(&self.m)
    }
    #[inline]
    fn receive(&mut self, answer: &mut Message) -> bool {
        let Some(used) = self.ring.pop(&self.m).expect("a sound ring") else { return false };
        let buffer = self.buffers.of_chain[used.token.index()];
        self.m.copy_in(self.buffers.answer(buffer).at, answer);
        self.buffers.free.push(buffer);
        true
    }
    fn stay_awake(&mut self) -> bool {
        self.ring.arm(&self.m)
    }
}

impl DeviceEnd for OurDevice {
    #[inline]
    fn serve(&mut self) -> bool {
        let windows = Windows { base: BASE, allowed: &[self.pool] };
        let mut segments = [Segment::readable(0, 0); 4];
        let Some(taken) = self.ring.take(&self.m, windows, &mut segments).expect("a sound ring") else {
            return false;
        };
        let (Taken::Chain { token, .. }, [request, room, ..]) = (taken, segments) else {
            unreachable!("the driver's chains are sound")
        };
        let mut message = [0; MESSAGE];
        self.m.copy_in(request.place.at, &mut message);
        self.m.copy_out(room.place.at, &message);
        self.ring.complete(&self.m, token, MESSAGE as u32)
    }
    #[inline]
    fn flush(&mut self) -> bool {
        self.ring.publish(&self.m)
    }
    fn stay_awake(&mut self) -> bool {
        self.ring.arm(&self.m)
    }
}

/// `virtio-drivers` and `virtio-queue`.
pub struct Stock(pub Arena);

/// The stock driver half.
pub struct StockDriverEnd {
    m: Region,
    queue: StockDriver<{ SIZE as usize }>,
    buffers: Buffers,
}

/// The stock device half.
pub struct StockDevice {
    guest: &'static GuestMemoryMmap,
    queue: Queue,
}

impl Pair for Stock {
    type Driver = StockDriverEnd;
    type Device = StockDevice;
    fn ends(&self) -> (StockDriverEnd, StockDevice) {
        let arena = self.0;
        let queue = StockDriver::new(arena, false, true);
        (
            StockDriverEnd { m: arena.region, queue, buffers: Buffers::new(arena) },
            StockDevice { guest: arena.guest, queue: stock_device(arena, arena.place(SIZE), true) },
        )
    }
}

impl DriverEnd for StockDriverEnd {
    #[inline]
    fn send(&mut self, request: &Message) -> bool {
        let Some(buffer) = self.buffers.free.pop() else { return false };
        let (to, from) = (self.buffers.request(buffer), self.buffers.answer(buffer));
        self.m.copy_out(to.at, request);
        let token = self.queue.add(&[to], &[from]).expect("two descriptors for each buffer");
        self.buffers.of_chain[usize::from(token)] = buffer;
        true
    }
    #[inline]
    fn flush(&mut self) -> bool {
        self.queue.should_notify()
    }
    #[inline]
    fn receive(&mut self, answer: &mut Message) -> bool {
        let Some(token) = self.queue.peek() else { return false };
        let buffer = self.buffers.of_chain[usize::from(token)];
        let (to, from) = (self.buffers.request(buffer), self.buffers.answer(buffer));
        self.queue.pop(token, &[to], &[from]).expect("the chain it peeked at");
        self.m.copy_in(from.at, answer);
        self.buffers.free.push(buffer);
        true
    }
    /// It asks to be woken with every pop, and its `add` has a fence in it, so a look is enough here.
    fn stay_awake(&mut self) -> bool {
        self.queue.peek().is_some()
    }
}

impl DeviceEnd for StockDevice {
    #[inline]
    fn serve(&mut self) -> bool {
        let Some(mut chain) = self.queue.pop_descriptor_chain(self.guest) else { return false };
        let head = chain.head_index();
        let (Some(request), Some(room)) = (chain.next(), chain.next()) else {
            unreachable!("the driver's chains are sound")
        };
        let mut message = [0; MESSAGE];
        self.guest.read_slice(&mut message, request.addr()).expect("a buffer in the arena");
        self.guest.write_slice(&message, room.addr()).expect("a buffer in the arena");
        self.queue.add_used(self.guest, head, MESSAGE as u32).expect("a ring in the arena");
        true
    }
    #[inline]
    fn flush(&mut self) -> bool {
        self.queue.needs_notification(self.guest).expect("a ring in the arena")
    }
    fn stay_awake(&mut self) -> bool {
        self.queue.enable_notification(self.guest).expect("a ring in the arena")
    }
}

/// The same lines moved with no ring logic: everything is where its number says, nothing is checked, nobody sleeps.
/// What a ring of this shape cannot be faster than.
pub struct Bare(pub Arena);

/// The bare driver's end.
pub struct BareDriver(BareEnd);
/// The bare device's end.
pub struct BareDevice(BareEnd);

struct BareEnd {
    m: Region,
    pool: u32,
    desc: u32,
    avail: u32,
    used: u32,
    /// Messages sent or answered, as far as they were shown, and taken in.
    out: u16,
    shown: u16,
    taken: u16,
    known: u16,
}

impl BareEnd {
    fn slot(&self, index: u16) -> u32 {
        u32::from(index % DEPTH)
    }
    fn request(&self, index: u16) -> u32 {
        self.pool + self.slot(index) * 2 * MESSAGE as u32
    }
    /// Whether there is something to take in, as the index at `at` says.
    #[inline]
    fn news(&mut self, at: u32) -> bool {
        if self.taken == self.known {
            self.known = self.m.observe16(at);
        }
        self.taken != self.known
    }
    #[inline]
    fn show(&mut self, at: u32) {
        if self.shown != self.out {
            self.m.publish16(at, self.out);
            self.shown = self.out;
        }
    }
}

impl Pair for Bare {
    type Driver = BareDriver;
    type Device = BareDevice;
    fn ends(&self) -> (BareDriver, BareDevice) {
        self.0.clear();
        let place = self.0.place(SIZE);
        let end = || BareEnd {
            m: self.0.region,
            pool: self.0.pool().at,
            desc: place.desc,
            avail: place.avail,
            used: place.used,
            out: 0,
            shown: 0,
            taken: 0,
            known: 0,
        };
        (BareDriver(end()), BareDevice(end()))
    }
}

impl DriverEnd for BareDriver {
    #[inline]
    fn send(&mut self, request: &Message) -> bool {
        let end = &mut self.0;
        if end.out.wrapping_sub(end.taken) == DEPTH {
            return false;
        }
        let slot = end.slot(end.out);
        end.m.copy_out(end.request(end.out), request);
        for word in 0..8 {
            end.m.write32(end.desc + slot * 32 + word * 4, word);
        }
        end.m.write16(end.avail + 4 + slot * 2, end.out);
        end.out = end.out.wrapping_add(1);
        true
    }
    #[inline]
    fn flush(&mut self) -> bool {
        let at = self.0.avail + 2;
        self.0.show(at);
        false
    }
    #[inline]
    fn receive(&mut self, answer: &mut Message) -> bool {
        let end = &mut self.0;
        if !end.news(end.used + 2) {
            return false;
        }
        let entry = end.used + 4 + end.slot(end.taken) * 8;
        std::hint::black_box((end.m.read32(entry), end.m.read32(entry + 4)));
        end.m.copy_in(end.request(end.taken) + MESSAGE as u32, answer);
        end.taken = end.taken.wrapping_add(1);
        true
    }
    fn stay_awake(&mut self) -> bool {
        true
    }
}

impl DeviceEnd for BareDevice {
    #[inline]
    fn serve(&mut self) -> bool {
        let end = &mut self.0;
        if !end.news(end.avail + 2) {
            return false;
        }
        let slot = end.slot(end.taken);
        std::hint::black_box(end.m.read16(end.avail + 4 + slot * 2));
        for word in 0..8 {
            std::hint::black_box(end.m.read32(end.desc + slot * 32 + word * 4));
        }
        let mut message = [0; MESSAGE];
        end.m.copy_in(end.request(end.taken), &mut message);
        end.m.copy_out(end.request(end.taken) + MESSAGE as u32, &message);
        end.taken = end.taken.wrapping_add(1);
        let entry = end.used + 4 + end.slot(end.out) * 8;
        end.m.write32(entry, end.out.into());
        end.m.write32(entry + 4, MESSAGE as u32);
        end.out = end.out.wrapping_add(1);
        true
    }
    #[inline]
    fn flush(&mut self) -> bool {
        let at = self.0.used + 2;
        self.0.show(at);
        false
    }
    fn stay_awake(&mut self) -> bool {
        true
    }
}
