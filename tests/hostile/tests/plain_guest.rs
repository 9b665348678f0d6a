//! What a plain guest does to a PMM with the legacy registers alone: each test drives them by hand, as a front-end that
//! is wrong would.

use hvl_pmm::snapshot::{DeviceSnapshot, Profile};
use hvl_shared_abi::Mem;
use hvl_test_kit::{BASE, Pmm, region};

const DRIVER_FEATURES: u32 = 0x020;
const QUEUE_SEL: u32 = 0x030;
const QUEUE_NUM: u32 = 0x038;
const QUEUE_PFN: u32 = 0x040;
const STATUS: u32 = 0x070;
const ACK: u32 = 0xaabb_aabb;
/// The window of the console, behind that of the entropy device.
const CONSOLE: u32 = 0x200;
const PAGE: u32 = 0x1000;

struct Guest {
    pmm: Pmm,
}

impl Guest {
    fn new() -> Guest {
        Guest { pmm: Pmm::start(region()) }
    }

    fn put(&self, register: u32, value: u32) {
        self.pmm.m.publish32(register, value);
    }

    /// Asks for a queue of two entries in the page at `at`. Whether it was acknowledged within 200 ms, which is longer
    /// than registers that could mean two things are doubted.
    fn set_up(&mut self, window: u32, queue: u32, at: u32) -> bool {
        self.put(window + QUEUE_SEL, queue);
        self.put(window + QUEUE_NUM, 2);
        self.put(window + QUEUE_PFN, (BASE as u32 + at) / PAGE);
        self.is_acknowledged(window)
    }

    fn is_acknowledged(&mut self, window: u32) -> bool {
        self.pmm.pass(200_000);
        self.pmm.m.read32(window + QUEUE_PFN) == ACK
    }

    /// The entropy device runs, with its ring at `at`.
    fn boot(&mut self, at: u32) {
        self.pmm.m.copy_out(at, &[0; 3 * PAGE as usize]);
        self.put(STATUS, 1);
        self.put(DRIVER_FEATURES, 0);
        assert!(self.set_up(0, 0, at), "a sound queue at {at:#x} is acknowledged");
        self.put(STATUS, 4);
        self.pmm.pass(20_000);
        assert!(self.device().runs);
    }

    fn device(&self) -> DeviceSnapshot {
        self.pmm.device(0)
    }
}

#[test]
fn broken_rings_need_a_reset_and_no_reboot() {
    let mut guest = Guest::new();
    guest.boot(PAGE);
    // The available index runs ahead of the queue.
    guest.pmm.m.write16(PAGE + 32 + 2, 1000);
    guest.pmm.pass(20_000);
    let device = guest.device();
    assert_eq!((device.fault, device.runs, device.must_reboot), ("needs-reset", false, false));
    assert_eq!((device.ring_faults, guest.pmm.snapshot().profile), (1, Profile::Plain));
    guest.put(STATUS, 0);
    guest.pmm.pass(20_000);
    assert_eq!(guest.device().fault, "none");
    guest.boot(PAGE);
}

#[test]
fn features_that_were_not_offered_need_a_reset_and_no_reboot() {
    let mut guest = Guest::new();
    guest.put(STATUS, 1);
    guest.put(DRIVER_FEATURES, 1 << 31);
    assert!(guest.set_up(0, 0, PAGE));
    guest.put(STATUS, 4);
    guest.pmm.pass(20_000);
    let device = guest.device();
    assert_eq!((device.fault, device.runs, device.must_reboot), ("features-refused", false, false));
    assert_eq!(device.features_refused, 1);
    guest.put(STATUS, 0);
    guest.pmm.pass(20_000);
    guest.boot(PAGE);
}

#[test]
fn a_placement_that_was_refused_is_taken_when_it_has_become_good() {
    let mut guest = Guest::new();
    guest.boot(8 * PAGE);
    // The console wants both queues on one ring, again and again.
    guest.put(CONSOLE + STATUS, 1);
    assert!(guest.set_up(CONSOLE, 0, PAGE));
    for _ in 0..3 {
        assert!(!guest.set_up(CONSOLE, 1, 2 * PAGE), "two queues on one ring");
        assert_eq!(guest.pmm.device(1).queues_refused, 1, "a request that stands is counted once");
    }
    // Another place is good at once, without any reset.
    assert!(guest.set_up(CONSOLE, 1, 4 * PAGE));

    // The request stands while its queue 0 is given back, and then nothing is in its way.
    guest.put(CONSOLE + STATUS, 0);
    guest.pmm.pass(20_000);
    guest.put(CONSOLE + STATUS, 1);
    assert!(guest.set_up(CONSOLE, 0, PAGE));
    assert!(!guest.set_up(CONSOLE, 1, 2 * PAGE), "two queues on one ring");
    guest.put(CONSOLE + STATUS, 0);
    assert!(guest.is_acknowledged(CONSOLE), "the request still stands, and nothing is in its way");
}

#[test]
fn two_devices_on_one_ring_harm_nobody_but_each_other() {
    let mut guest = Guest::new();
    guest.boot(PAGE);
    guest.pmm.pass(1_000_000);
    guest.put(CONSOLE + STATUS, 1);
    // The later one has it: the earlier one may be of an image that is no more.
    assert!(guest.set_up(CONSOLE, 0, PAGE));
    let device = guest.device();
    assert!(device.held && !device.runs);
    // It is served again when it is set up again.
    guest.put(STATUS, 0);
    guest.pmm.pass(20_000);
    guest.boot(8 * PAGE);
    assert!(!guest.device().held);
}

#[test]
fn a_refusal_names_the_queue_and_the_reason() {
    let page = BASE as u32 / PAGE;
    let rows: [(u32, u32, u32, u32, &str); 8] = [
        (0, 3, page + 1, PAGE, "the size must be a power of two from 2 to 8"),
        (0, 1, page + 1, PAGE, "the size must be a power of two"),
        (0, 0x10000, page + 1, PAGE, "the size must be a power of two"),
        (0, 2, page, PAGE, "does not lie in the region, behind the header page"),
        (0, 2, page - 1, PAGE, "does not lie in the region"),
        (0, 2, 0xffff_ffff, PAGE, "does not lie in the region"),
        (0, 2, page + 1, 512, "QueueAlign is 512, and must be 4096"),
        (7, 2, page + 1, PAGE, "the device has 1 queues, counted from 0"),
    ];
    for (queue, size, pfn, align, why) in rows {
        let mut guest = Guest::new();
        guest.put(STATUS, 1);
        guest.put(0x03c, align);
        for (register, value) in [(QUEUE_SEL, queue), (QUEUE_NUM, size), (QUEUE_PFN, pfn)] {
            guest.put(register, value);
        }
        assert!(!guest.is_acknowledged(0));
        let refusal = guest.device().last_refusal.expect("it is refused").to_string();
        let start = format!("queue {queue} of {size} entries in page {pfn:#x}: ");
        assert!(refusal.starts_with(&start) && refusal.contains(why), "{refusal}");
    }
    let mut guest = Guest::new();
    guest.put(CONSOLE + STATUS, 1);
    assert!(guest.set_up(CONSOLE, 1, PAGE) && !guest.set_up(CONSOLE, 0, 2 * PAGE));
    let refusal = guest.pmm.device(1).last_refusal.expect("it is refused").to_string();
    assert!(refusal.contains("lies on that of queue 1 of the same device"), "{refusal}");
}
