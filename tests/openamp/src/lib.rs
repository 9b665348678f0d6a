//! A strict model of OpenAMP's hypervisor-less front-end.
//!
//! It does what that library does, in its order: raw register stores in plain memory, a doorbell after some of them,
//! a wait for the acknowledgement of each queue, rings that it never zeroes and in whose available index it counts on
//! across reboots. And it is strict: it panics, saying what it expected, wherever a PMM departs from what that library
//! relies on. It shares no code with our frontend, and none with the library: it is written from the description of
//! the wire.
//!
//! Between any two stores it calls [`World::pause`], where a test lets the PMM look or not, as its seed decides.

use hvl_shared_abi::{Mem, Region};

/// What the model runs in: the doorbells of both directions, and the PMM at the other end.
pub trait World {
    /// Rings the PMM. Bells may merge: one pending bit, as a mailbox has.
    fn ring(&mut self);
    /// A point between two stores.
    fn pause(&mut self);
    /// Lets the PMM run until it has rung, and takes that doorbell. Panics when it never does.
    fn wait(&mut self, what: &str);
    /// Whether the PMM has rung since the last time; takes the doorbell.
    fn rung(&mut self) -> bool;
    /// Time passes while this side is halted.
    fn halt(&mut self, micros: u64);
}

/// In what the generations of the library differ on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// The self-contained driver of Zephyr: raw Status, the acknowledgement is left where it is.
    G1,
    /// Like G1, and it stores the queue's index to DriverFeaturesSel just before QueueNum.
    G2,
    /// Raw Status, and it stores the page number back after the acknowledgement.
    G3,
    /// Like G3, with a cumulative Status.
    G4,
}

const MAGIC: u32 = 0x000;
const VERSION: u32 = 0x004;
const DEVICE_ID: u32 = 0x008;
const DEVICE_FEATURES: u32 = 0x010;
const DEVICE_FEATURES_SEL: u32 = 0x014;
const DRIVER_FEATURES: u32 = 0x020;
const DRIVER_FEATURES_SEL: u32 = 0x024;
const GUEST_PAGE_SIZE: u32 = 0x028;
const QUEUE_SEL: u32 = 0x030;
const QUEUE_NUM_MAX: u32 = 0x034;
const QUEUE_NUM: u32 = 0x038;
const QUEUE_ALIGN: u32 = 0x03c;
const QUEUE_PFN: u32 = 0x040;
const QUEUE_NOTIFY: u32 = 0x050;
const INTERRUPT_STATUS: u32 = 0x060;
const INTERRUPT_ACK: u32 = 0x064;
const STATUS: u32 = 0x070;
const SHM_LEN: u32 = 0x0b0;
const SHM_BASE: u32 = 0x0b8;
const ACK: u32 = 0xaabb_aabb;
const PAGE: u32 = 4096;

/// One ring, as the library keeps it.
#[derive(Clone, Debug)]
struct Ring {
    /// Region offset of its first page.
    at: u32,
    size: u16,
    /// Completions consumed since this boot.
    used: u16,
    in_flight: Vec<Option<(u32, u32)>>,
    /// Where it counts from 0: its own available index.
    own: Option<u16>,
}

impl Ring {
    fn avail(&self) -> u32 {
        self.at + 16 * u32::from(self.size)
    }
    fn used(&self) -> u32 {
        (self.avail() + 6 + 2 * u32::from(self.size)).next_multiple_of(PAGE)
    }
}

/// One device of the front-end, from boot to boot.
pub struct FrontEnd {
    m: Region,
    base: u64,
    window: u32,
    generation: Generation,
    rings: Vec<Ring>,
    order: Vec<usize>,
    halt: u64,
    early: Vec<(usize, u32, u32)>,
}

impl FrontEnd {
    /// A front-end for the device of window `index` in a region that the guest sees at `base`. Its rings lie on pages
    /// from region offset `rings` on, one for each size.
    pub fn new(
        m: Region,
        base: u64,
        index: u32,
        generation: Generation,
        rings: u32,
        sizes: &[u16],
    ) -> FrontEnd {
        let (mut at, order) = (rings, (0..sizes.len()).collect());
        let rings = sizes.iter().map(|&size| {
            let ring = Ring { at, size, used: 0, in_flight: vec![None; usize::from(size)], own: None };
            at = (ring.used() + 6 + 8 * u32::from(size)).next_multiple_of(PAGE);
            ring
        });
        let rings = rings.collect();
        let (halt, early) = (0, Vec::new());
        FrontEnd { m, base, window: index * 0x200, generation, rings, order, halt, early }
    }

    /// Sets its queues up in this order, as `virtio-drivers` does with those of a network card.
    pub fn in_order(mut self, order: &[usize]) -> FrontEnd {
        self.order = order.to_vec();
        self
    }
    /// Is halted for so many microseconds between QueueNum and QueuePFN, as at a breakpoint.
    pub fn halted(mut self, micros: u64) -> FrontEnd {
        self.halt = micros;
        self
    }
    /// Makes a writable buffer available before it stores QueuePFN.
    pub fn with_early(mut self, queue: usize, at: u32, len: u32) -> FrontEnd {
        self.early.push((queue, at, len));
        self
    }
    /// Counts its available indices from 0 at each boot, in a counter of its own, and leaves the memory as it is.
    pub fn counting_from_0(mut self) -> FrontEnd {
        self.rings.iter_mut().for_each(|ring| ring.own = Some(0));
        self
    }

    fn get(&self, register: u32) -> u32 {
        self.m.observe32(self.window + register)
    }
    fn put(&self, world: &mut dyn World, register: u32, value: u32) {
        self.m.publish32(self.window + register, value);
        world.pause();
    }
    fn put_and_ring(&self, world: &mut dyn World, register: u32, value: u32) {
        self.m.publish32(self.window + register, value);
        self.m.bell();
        world.ring();
        world.pause();
    }

    /// Boots: from the identification registers to DRIVER_OK. Returns the features that both sides have.
    pub fn boot(&mut self, world: &mut dyn World, id: u32, wanted: u32) -> u32 {
        assert_eq!(self.get(MAGIC), 0x7472_6976, "Magic");
        assert_eq!(self.get(VERSION), 1, "Version");
        assert_eq!(self.get(DEVICE_ID), id, "DeviceID");
        assert!(
            self.get(SHM_LEN) != 0 && self.get(SHM_BASE) != 0,
            "a block of shared memory means this mode"
        );
        for ring in &mut self.rings {
            (ring.used, ring.in_flight) = (0, vec![None; usize::from(ring.size)]);
            ring.own = ring.own.map(|_| 0);
        }
        self.put_and_ring(world, STATUS, 1);
        self.put(world, GUEST_PAGE_SIZE, PAGE);
        self.put_and_ring(world, STATUS, if self.generation == Generation::G4 { 3 } else { 2 });
        self.put(world, DEVICE_FEATURES_SEL, 0);
        let features = self.get(DEVICE_FEATURES) & wanted;
        self.put_and_ring(world, DRIVER_FEATURES, features);
        for index in self.order.clone() {
            self.set_up(world, index);
        }
        let driver_ok = if self.generation == Generation::G4 { 7 } else { 4 };
        self.put_and_ring(world, STATUS, driver_ok);
        features
    }

    fn set_up(&mut self, world: &mut dyn World, index: usize) {
        let ring = &self.rings[index];
        let pfn = u32::try_from((self.base + u64::from(ring.at)) / u64::from(PAGE)).unwrap();
        self.put(world, QUEUE_SEL, index as u32);
        assert!(u32::from(ring.size) <= self.get(QUEUE_NUM_MAX), "QueueNumMax");
        if self.generation == Generation::G2 {
            self.put(world, DRIVER_FEATURES_SEL, index as u32);
        }
        self.put(world, QUEUE_NUM, ring.size.into());
        if self.halt != 0 {
            world.halt(self.halt);
        }
        self.put(world, QUEUE_ALIGN, PAGE);
        for (queue, at, len) in self.early.clone() {
            if queue == index {
                self.post(world, queue, at, len, true);
            }
        }
        self.put_and_ring(world, QUEUE_PFN, pfn);
        for tries in 0.. {
            if self.get(QUEUE_PFN) == ACK {
                break;
            }
            assert!(tries < 100, "queue {index} is acknowledged, not left at {:#x}", self.get(QUEUE_PFN));
            world.wait("the acknowledgement of a queue");
        }
        if matches!(self.generation, Generation::G3 | Generation::G4) {
            self.put(world, QUEUE_PFN, pfn);
        }
        let used = self.rings[index].used();
        assert_eq!(self.m.read16(used + 2), 0, "the used ring of queue {index} starts at 0");
    }

    /// Makes one buffer available and kicks. `len` bytes at region offset `at`; the device may write it or not.
    pub fn add(&mut self, world: &mut dyn World, queue: usize, at: u32, len: u32, writable: bool) {
        self.post(world, queue, at, len, writable);
        self.put(world, QUEUE_NOTIFY, queue as u32);
        self.m.bell();
        world.ring();
        world.pause();
    }

    fn post(&mut self, world: &mut dyn World, queue: usize, at: u32, len: u32, writable: bool) {
        let ring = &mut self.rings[queue];
        let slot = ring.in_flight.iter().position(Option::is_none).expect("a free descriptor");
        ring.in_flight[slot] = Some((at, len));
        let desc = ring.at + 16 * slot as u32;
        let address = self.base + u64::from(at);
        self.m.write32(desc, address as u32);
        self.m.write32(desc + 4, (address >> 32) as u32);
        self.m.write32(desc + 8, len);
        self.m.write16(desc + 12, if writable { 2 } else { 0 });
        self.m.write16(desc + 14, 0);
        world.pause();
        // It counts on in shared memory, whatever a boot before it left there.
        let index = ring.own.unwrap_or_else(|| self.m.read16(ring.avail() + 2));
        ring.own = ring.own.map(|_| index.wrapping_add(1));
        self.m.write16(ring.avail() + 4 + 2 * u32::from(index % ring.size), slot as u16);
        world.pause();
        self.m.publish16(ring.avail() + 2, index.wrapping_add(1));
    }

    /// The next completion of a queue: offset and alleged length of what was written.
    pub fn used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = &mut self.rings[queue];
        let index = self.m.observe16(ring.used() + 2);
        let news = index.wrapping_sub(ring.used);
        let in_flight = ring.in_flight.iter().flatten().count();
        assert!(usize::from(news) <= in_flight, "{news} completions for {in_flight} buffers");
        if news == 0 {
            return None;
        }
        let entry = ring.used() + 4 + 8 * u32::from(ring.used % ring.size);
        let id = self.m.read32(entry) as usize;
        let (at, len) = ring.in_flight[id].take().expect("a completion of a buffer that is in flight");
        let written = self.m.read32(entry + 4);
        assert!(written <= len, "{written} bytes written to {len}");
        ring.used = ring.used.wrapping_add(1);
        Some((at, written))
    }

    /// The interrupt handler: looks at InterruptStatus, collects completions if it says so, and acknowledges.
    pub fn interrupt(&mut self, world: &mut dyn World) -> Vec<(usize, u32, u32)> {
        let status = self.get(INTERRUPT_STATUS);
        world.pause();
        let mut done = Vec::new();
        if status & 1 != 0 {
            for queue in 0..self.rings.len() {
                while let Some((at, written)) = self.used(queue) {
                    done.push((queue, at, written));
                }
            }
        }
        if status != 0 {
            world.pause();
            self.put_and_ring(world, INTERRUPT_ACK, status);
        }
        done
    }

    /// Waits for a doorbell, and runs the interrupt handler until a completion has come.
    pub fn complete(&mut self, world: &mut dyn World) -> Vec<(usize, u32, u32)> {
        for _ in 0..1000 {
            let done = self.interrupt(world);
            if !done.is_empty() {
                return done;
            }
            world.wait("a completion");
        }
        panic!("1000 doorbells and no completion");
    }
}
