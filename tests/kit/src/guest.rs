//! A raw guest of the extended profile: the smallest thing that drives both devices, without any of our frontend's
//! care, so that a test can make any word of it a lie.

use hvl_shared_abi::epoch::{DeviceState, DriverDevice, DriverHalf, PmmLook};
use hvl_shared_abi::header::reg;
use hvl_shared_abi::layout::DevicePlace;
use hvl_shared_abi::ring::split::{DriverRing, DriverSlot};
use hvl_shared_abi::ring::{Segment, Used};
use hvl_shared_abi::{Features, Mem, Region, Window};

use crate::{BASE, Pmm, layout};

/// Window of the entropy device.
pub const RNG: usize = 0;
/// Window of the console.
pub const CONSOLE: usize = 1;

/// The guest.
pub struct Guest {
    /// The region.
    pub m: Region,
    /// Its half of the epochs.
    pub half: DriverHalf,
}

impl Guest {
    /// Says hello and waits until it is adopted.
    pub fn boot(pmm: &mut Pmm) -> Guest {
        let m = pmm.m;
        let PmmLook::Present(epoch) = DriverHalf::look(&m) else {
            panic!("no PMM in {:?}", DriverHalf::look(&m))
        };
        let devices = DriverHalf::devices(&m, |_, _, _| {}).expect("windows of ours");
        let mut half = DriverHalf::new();
        assert!(half.hello(&m, epoch, devices), "the PMM is still the one that was seen");
        pmm.pass(20_000);
        assert_eq!(half.adopted(&m), Some(true), "a hello is adopted within 20 ms");
        Guest { m, half }
    }

    /// Sets a device up with these features and waits for the answer.
    pub fn start(&self, pmm: &mut Pmm, device: usize, features: Features) -> DeviceState {
        let driver = self.device(device);
        driver.start(&self.m, self.half.epoch(), features);
        pmm.service();
        driver.state(&self.m, &self.half)
    }

    /// Resets a device and waits until it is clear.
    pub fn reset(&self, pmm: &mut Pmm, device: usize) {
        let driver = self.device(device);
        driver.reset(&self.m);
        pmm.service();
        assert_eq!(driver.state(&self.m, &self.half), DeviceState::Clear, "a reset is answered");
    }

    /// The state words of a device.
    pub fn device(&self, device: usize) -> DriverDevice {
        DriverDevice(Window::of(device).expect("a device of the link"))
    }
    /// One of its registers, as an offset in the region.
    pub fn register(&self, device: usize, register: u32) -> u32 {
        Window::of(device).expect("a device of the link").at(register)
    }
    /// Where the layout has placed it.
    pub fn place(&self, device: usize) -> DevicePlace {
        *layout().devices().get(device).expect("a device of the link")
    }

    /// A driver's ring for one of its queues, as new.
    pub fn ring(&self, device: usize, queue: usize, features: Features) -> DriverRing<'static> {
        let place = *self.place(device).queues.get(queue).expect("a queue of the device");
        let slots = vec![DriverSlot::NEW; usize::from(place.size)].leak();
        let mut ring = DriverRing::new(place, BASE, slots).expect("slots for every entry");
        ring.start(&self.m, features);
        ring
    }

    /// Sets the entropy device up and draws from it once: the sign that it works.
    pub fn draw(&self, pmm: &mut Pmm) -> Used {
        let features = Features::VERSION_1;
        let mut ring = self.ring(RNG, 0, features);
        assert_eq!(self.start(pmm, RNG, features), DeviceState::Running, "the entropy device starts");
        self.draw_from(pmm, &mut ring)
    }

    /// Draws once more from a device that runs.
    pub fn draw_from(&self, pmm: &mut Pmm, ring: &mut DriverRing<'static>) -> Used {
        let pool = self.place(RNG).pool;
        self.m.copy_out(pool.at, &[0; 32]);
        ring.add(&self.m, &[Segment::writable(pool.at, 32)]).expect("room for one request");
        ring.publish(&self.m);
        pmm.service();
        let used = ring.pop(&self.m).expect("a sound ring").expect("a completion");
        let mut bytes = [0; 32];
        self.m.copy_in(pool.at, &mut bytes);
        assert_eq!(used.written, 32);
        assert!(bytes.iter().all(|&byte| byte != 0), "every byte was filled: {bytes:?}");
        used
    }

    /// Sets the console up and sends a line through it: the sign that it works.
    pub fn say(&self, pmm: &mut Pmm, line: &str) {
        let features = Features::VERSION_1;
        let (_receive, mut ring) = (self.ring(CONSOLE, 0, features), self.ring(CONSOLE, 1, features));
        assert_eq!(self.start(pmm, CONSOLE, features), DeviceState::Running, "the console starts");
        self.say_on(pmm, &mut ring, line);
    }

    /// Sends a line on a console that runs.
    pub fn say_on(&self, pmm: &mut Pmm, ring: &mut DriverRing<'static>, line: &str) {
        let pool = self.place(CONSOLE).pool;
        let before = pmm.terminal.sent().len();
        self.m.copy_out(pool.at, line.as_bytes());
        ring.add(&self.m, &[Segment::readable(pool.at, line.len() as u32)]).expect("room for one line");
        ring.publish(&self.m);
        pmm.service();
        assert!(ring.pop(&self.m).expect("a sound ring").is_some(), "the line is acknowledged");
        assert_eq!(pmm.terminal.sent().get(before..), Some(line.as_bytes()));
    }

    /// Counts a doorbell, as a guest does before it rings the hardware.
    pub fn ring_bell(&self) {
        let bell = Window::LINK.at(reg::DRIVER_BELL);
        self.m.write32(bell, self.m.read32(bell).wrapping_add(1));
    }
}
