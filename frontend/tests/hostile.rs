//! What a hostile or broken PMM does: a table of named scenarios. After each, the firmware has not panicked, no call
//! has returned bytes that nobody gave it, the other device has run on, and a PMM that keeps to the rules is served
//! again.

mod common;

use common::{DEVICES, Pmm, TestBoard, attach, leak};
use hvl_frontend::device::InFlight;
use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::rng::{FillError, Rng, RngStorage};
use hvl_frontend::{Board, Link, LinkState};
use hvl_shared_abi::header::{CONFIG, reg};
use hvl_shared_abi::{DeviceId, Features, Mem, QueuePlace, Window};

struct World {
    board: TestBoard,
    link: Link<'static, TestBoard>,
    rng: Rng<'static, TestBoard>,
    console: Console<'static, TestBoard>,
    pmm: Pmm,
}

impl World {
    fn new() -> World {
        let board = TestBoard::new();
        let link = attach(&board);
        let rng = Rng::open(&link, leak(RngStorage::<8>::NEW)).unwrap();
        let options = Options { in_flight: InFlight::Resend, ..Options::default() };
        let console = Console::open(&link, leak(ConsoleStorage::<64, 64>::NEW), options).unwrap();
        let pmm = Pmm::start(&board);
        let mut world = World { board, link, rng, console, pmm };
        world.turns(4);
        assert_eq!(world.link.state(), LinkState::Up);
        world
    }

    /// Both sides look, and the firmware calls everything it has.
    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.firmware();
            self.pmm.look();
        }
    }

    fn firmware(&mut self) {
        self.link.poll();
        let _ = self.console.size();
        let _ = self.console.flush();
        let _ = self.console.read_ready();
        if let Ok(mut claim) = self.console.claim(10) {
            let _ = claim.put(b"c");
        }
        let _ = self.link.next_deadline();
        self.board.pass(20_000);
    }

    fn used(&self, id: DeviceId, queue: usize) -> QueuePlace {
        self.pmm.place(id, queue)
    }

    fn word(&self, id: DeviceId, register: u32, value: u32) {
        self.pmm.scribble(id, register, value);
    }

    /// Completes whatever the PMM likes in a queue's used ring.
    fn complete(&self, id: DeviceId, queue: usize, position: u16, chain: u32, len: u32) {
        let place = self.used(id, queue);
        let entry = place.used + 4 + u32::from(position % place.size) * 8;
        self.board.mem.write32(entry, chain);
        self.board.mem.write32(entry + 4, len);
        self.board.mem.write16(place.used + 2, position.wrapping_add(1));
    }

    fn entropy(&mut self) -> bool {
        let mut bytes = [0; 16];
        (0..8).any(|_| {
            let done = self.rng.fill(&mut bytes);
            self.pmm.look();
            done.is_ok_and(|n| n > 0 && bytes[..n].iter().all(|b| *b != 0))
        })
    }

    fn echo(&mut self) -> bool {
        self.pmm.output.clear();
        let _ = self.console.write(b"hello");
        self.pmm.look();
        self.pmm.output == b"hello"
    }

    /// A PMM that keeps to the rules starts, and all is well.
    fn recovers(&mut self) {
        self.pmm = Pmm::start_for(&self.board, &DEVICES, u32::MAX).unwrap();
        for _ in 0..40 {
            self.turns(4);
            self.board.pass(1_000_000);
        }
        let _ = self.console.read(&mut [0; 4096]);
        assert_eq!(self.link.state(), LinkState::Up);
        assert!(self.entropy(), "no entropy");
        assert!(self.echo(), "no console: {:?}", self.console.status());
    }
}

/// Name, what the PMM does, and whether the link or the one device is expected to have noticed.
type Scenario = (&'static str, fn(&mut World));

const SCENARIOS: &[Scenario] = &[
    // --- header ---
    ("the magic is wrong", |w| restart_with(w, reg::MAGIC, 0x7472_6977)),
    ("the magic of the extension is wrong", |w| restart_with(w, reg::EXT_MAGIC, 0)),
    ("the version of the extension is unknown", |w| restart_with(w, reg::EXT_VERSION, 0x38_0002)),
    ("the extension is shorter than it must be", |w| restart_with(w, reg::EXT_VERSION, 0x10_0001)),
    ("a device of no kind stands first", |w| {
        w.board.mem.write32(reg::DEVICE_ID, 0);
        another_epoch(w);
        w.turns(4);
        assert!(matches!(w.link.state(), LinkState::Refused(_)));
    }),
    ("the block lies in the windows", |w| restart_with_block(w, 0x100)),
    ("the block lies past the end", |w| restart_with_block(w, 0xffff_fff0)),
    ("the block is not aligned", |w| restart_with_block(w, 0x1001)),
    ("the epoch changes with each look", |w| {
        for _ in 0..1_000 {
            another_epoch(w);
            w.firmware();
        }
    }),
    ("the epoch is 0, odd, and as before again", |w| {
        let epoch = w.board.mem.read32(reg::PMM_EPOCH);
        for value in [0, epoch + 1, epoch, u32::MAX, epoch] {
            w.board.mem.write32(reg::PMM_EPOCH, value);
            w.firmware();
        }
    }),
    ("EpochSeen is something else with each look", |w| {
        for value in 0..100 {
            w.board.mem.write32(reg::EPOCH_SEEN, value);
            w.firmware();
            assert!(w.link.counters().hellos < 200);
        }
    }),
    ("hellos are never answered", |w| {
        another_epoch(w);
        let before = w.link.counters();
        for _ in 0..1_000 {
            w.firmware();
        }
        let after = w.link.counters();
        assert_eq!(after.hellos, before.hellos + 1);
        assert!(after.bells - before.bells < 20, "in 20 seconds");
    }),
    ("DeviceReady and Fault are something else with each look", |w| {
        for value in 0..200u32 {
            w.word(DeviceId::RNG, reg::DEVICE_READY, value % 5);
            w.word(DeviceId::CONSOLE, reg::FAULT, value % 3 * 0x5555);
            w.firmware();
        }
    }),
    ("a reset is never answered", |w| {
        w.word(DeviceId::RNG, reg::FAULT, 2);
        for _ in 0..1_000 {
            w.firmware();
            assert_eq!(w.rng.fill(&mut [0; 4]), Err(FillError::LinkDown));
        }
        assert!(w.link.counters().rekicks < 20, "in 20 seconds");
    }),
    ("it needs a reset at any time", |w| {
        for _ in 0..100 {
            w.pmm.fail(DeviceId::RNG);
            w.turns(3);
        }
        assert!(w.echo());
    }),
    ("bells without number", |w| {
        for _ in 0..10_000 {
            w.pmm.half.ring(&w.board.mem);
            w.link.rang();
            w.link.poll();
        }
    }),
    ("every word of the windows is set to each of some values", |w| {
        for at in (0..0x400).step_by(4) {
            for value in [0, 1, 2, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
                let before = w.board.mem.read32(at);
                w.board.mem.write32(at, value);
                w.firmware();
                let _ = w.rng.fill(&mut [0; 8]);
                let _ = w.console.write(b"x");
                let _ = w.console.read(&mut [0; 8]);
                w.board.mem.write32(at, before);
            }
        }
    }),
    ("the configuration's generation never rests", |w| {
        w.word(DeviceId::CONSOLE, reg::CONFIG_GENERATION, 7);
        assert!(w.console.size().is_err());
        w.word(DeviceId::CONSOLE, reg::CONFIG_GENERATION, 8);
        assert!(w.console.size().is_ok());
    }),
    ("the configuration is nonsense", |w| {
        w.word(DeviceId::CONSOLE, CONFIG, u32::MAX);
        assert_eq!(w.console.size(), Ok(Some((u16::MAX, u16::MAX))));
        w.word(DeviceId::CONSOLE, CONFIG, 0);
        assert_eq!(w.console.size(), Ok(Some((0, 0))));
    }),
    ("the block is every kind of rubbish at a start", |w| {
        for word in 0..80u32 {
            for value in [0, 1, 7, 0x1000, 0xfff0, 0x1_ffc0, u32::MAX] {
                w.pmm = Pmm::start(&w.board);
                w.link.poll();
                w.pmm.look();
                // Adopted; the frontend has not read the block yet.
                let at = w.pmm.layout.devices()[0].block.at + word * 4;
                w.board.mem.write32(at, value);
                w.firmware();
                let _ = w.rng.fill(&mut [0; 8]);
                w.firmware();
            }
        }
    }),
    ("VERSION_1 is not offered", |w| {
        w.pmm = Pmm::start(&w.board);
        w.pmm.features = Features::EVENT_IDX;
        w.turns(4);
        assert_eq!(w.rng.fill(&mut [0; 4]), Err(FillError::LinkDown));
    }),
    ("every feature is offered", |w| {
        w.pmm = Pmm::start(&w.board);
        w.pmm.features = Features::all();
        w.turns(4);
        assert!(w.entropy() && w.echo());
    }),
    // --- rings ---
    ("the used index goes beyond what is in flight", |w| {
        let used = w.used(DeviceId::RNG, 0).used;
        w.board.mem.write16(used + 2, 1);
        w.firmware();
        assert_eq!(w.link.counters().broken, 1);
        assert!(w.echo());
    }),
    ("the used index goes backwards", |w| {
        assert!(w.entropy());
        let used = w.used(DeviceId::RNG, 0).used;
        let index = w.board.mem.read16(used + 2);
        w.board.mem.write16(used + 2, index.wrapping_sub(1));
        w.firmware();
        assert_eq!(w.link.counters().broken, 1);
    }),
    ("a used chain is out of range", |w| used_chain(w, 64, 0)),
    ("a used chain is far out of range", |w| used_chain(w, u32::MAX, 0)),
    ("a used chain is one of another queue", |w| used_chain(w, 7, 0)),
    ("a chain is used twice", |w| {
        w.pmm.patience = 0;
        let _ = w.console.write(b"a");
        let _ = w.console.write(b"b");
        w.complete(DeviceId::CONSOLE, 1, 0, 0, 0);
        w.firmware();
        w.complete(DeviceId::CONSOLE, 1, 1, 0, 0);
        w.firmware();
        assert_eq!(w.link.counters().broken, 1);
        assert_eq!(w.console.acknowledged(), Some(1));
        assert!(w.entropy_with_patience());
    }),
    ("a transmitted chain was written to", |w| {
        w.pmm.patience = 0;
        let _ = w.console.write(b"a");
        w.complete(DeviceId::CONSOLE, 1, 0, 0, 5);
        w.firmware();
        assert_eq!(w.link.counters().overlong, 1);
    }),
    ("a received length is above the buffer", |w| {
        w.complete(DeviceId::CONSOLE, 0, 0, 0, u32::MAX);
        assert!(w.console.read(&mut [0; 4096]).is_err(), "nothing of it is believed");
        assert_eq!(w.link.counters().overlong, 1);
        // The PMM here does not know what was completed in its name.
    }),
    ("nothing was received, and that all the time", |w| {
        for position in 0..200u16 {
            w.complete(DeviceId::CONSOLE, 0, position, u32::from(position % 64), 0);
            assert!(w.console.read(&mut [0; 16]).is_err());
        }
        assert!(w.link.counters().empty > 0);
    }),
    ("the driver's half of the rings is scribbled on", |w| {
        for queue in 0..2 {
            let place = w.used(DeviceId::CONSOLE, queue);
            for at in (place.desc..place.desc + 64 * 16).step_by(4) {
                w.board.mem.write32(at, u32::MAX);
            }
            for at in (place.avail..place.avail + 64 * 2).step_by(4) {
                w.board.mem.write32(at, u32::MAX);
            }
        }
        for _ in 0..10 {
            w.firmware();
            let _ = w.console.write(b"x");
            let _ = w.console.read(&mut [0; 16]);
        }
    }),
    ("event words are poisoned", |w| {
        let used = w.used(DeviceId::RNG, 0).used;
        w.board.mem.write16(used + 4 + 8 * 8, 0x7fff);
        let before = w.board.rings();
        let _ = w.rng.fill(&mut [0; 4]);
        for _ in 0..100 {
            w.firmware();
        }
        assert!(w.board.rings() > before, "kicked again after a second");
    }),
    // --- rng ---
    ("entropy of no bytes", |w| {
        w.pmm.most = 0;
        let mut empty = 0;
        for _ in 0..20 {
            match w.rng.fill(&mut [0; 4]) {
                Err(FillError::Empty) => empty += 1,
                Err(FillError::WouldBlock) => {}
                other => panic!("{other:?}"),
            }
            w.pmm.look();
        }
        assert_eq!(empty, 10, "each answer is said once");
    }),
    ("entropy of more bytes than asked for", |w| {
        w.pmm.overlong = 1;
        for _ in 0..10 {
            let mut bytes = [0; 4];
            assert!(w.rng.fill(&mut bytes).is_err());
            assert_eq!(bytes, [0; 4]);
            w.pmm.look();
        }
        assert!(w.link.counters().overlong > 0);
    }),
    ("entropy never comes", |w| {
        w.pmm.patience = 0;
        for _ in 0..1_000 {
            assert_eq!(w.rng.fill(&mut [0; 4]), Err(FillError::WouldBlock));
        }
        w.pmm.patience = u32::MAX;
        assert!(w.entropy());
    }),
    // --- two PMMs ---
    ("two PMMs serve one region", |w| {
        let mut second = Pmm::start(&w.board);
        for _ in 0..20 {
            w.firmware();
            w.pmm.half.ring(&w.board.mem);
            second.look();
        }
        let mut third = Pmm::start(&w.board);
        for _ in 0..20 {
            w.firmware();
            third.look();
        }
    }),
];

impl World {
    fn entropy_with_patience(&mut self) -> bool {
        self.pmm.patience = u32::MAX;
        self.entropy()
    }
}

/// Another start of the PMM, with nothing behind it.
fn another_epoch(w: &mut World) {
    let epoch = w.board.mem.read32(reg::PMM_EPOCH);
    w.board.mem.write32(reg::PMM_EPOCH, epoch.wrapping_add(2));
}

/// A PMM starts whose header has a wrong word: the link is refused, and the message names the word.
fn restart_with(w: &mut World, register: u32, value: u32) {
    w.pmm = Pmm::start(&w.board);
    w.board.mem.write32(register, value);
    w.turns(4);
    let LinkState::Refused(refusal) = w.link.state() else { panic!("{:?}", w.link.state()) };
    assert!(format!("{refusal}").contains(&format!("{register:#x}")), "{refusal}");
    assert_eq!(w.link.counters().refused, 1);
}

fn restart_with_block(w: &mut World, block: u32) {
    w.pmm = Pmm::start(&w.board);
    w.board.mem.write32(Window::LINK.at(reg::EXT_BLOCK), block);
    w.turns(4);
    assert!(matches!(w.link.state(), LinkState::Refused(_)), "{:?}", w.link.state());
}

/// The PMM uses a chain of the console's transmit queue that is not in flight.
fn used_chain(w: &mut World, chain: u32, len: u32) {
    w.pmm.patience = 0;
    let _ = w.console.write(b"a");
    w.complete(DeviceId::CONSOLE, 1, 0, chain, len);
    w.firmware();
    assert_eq!(w.link.counters().broken, 1);
    assert_eq!(w.console.acknowledged(), Some(0));
    assert!(w.entropy_with_patience());
}

#[test]
fn each_scenario_costs_the_firmware_nothing() {
    let run = |scenario: fn(&mut World)| {
        let mut world = World::new();
        scenario(&mut world);
        world.recovers();
    };
    let table = SCENARIOS.iter().map(|(name, scenario)| (*name, || run(*scenario)));
    hvl_test_kit::table::run("The link, its rings, console and entropy, from the PMM", table);
}

#[test]
fn a_pmm_that_writes_anything_anywhere_at_full_speed_harms_only_its_link() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    let mut world = World::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let m = *world.board.mem();
        let stop = &stop;
        scope.spawn(move || {
            let mut x = 0x9e37_79b9_u32;
            while !stop.load(SeqCst) {
                for _ in 0..64 {
                    x ^= x << 13;
                    x ^= x >> 17;
                    x ^= x << 5;
                    // Mostly where it hurts: the link's words and the rings.
                    let at = if x & 1 == 0 { x % 0x400 } else { 0x1000 + x % 0x4000 } & !3;
                    m.write32(at, if x & 0x30 == 0 { m.read32(at).wrapping_add(1) } else { x >> 7 });
                }
                std::thread::yield_now();
            }
        });
        for _ in 0..20_000 {
            world.firmware();
            let _ = world.rng.fill(&mut [0; 64]);
            let _ = world.console.write(b"some bytes");
            let _ = world.console.read(&mut [0; 64]);
            if let Ok(mut claim) = world.console.claim(64) {
                let _ = claim.put(b"more bytes");
                let _ = claim.commit();
            }
        }
        stop.store(true, SeqCst);
    });
    world.recovers();
}

/// One thread a device, and one that only looks at the link, while PMMs come and go.
#[test]
fn handles_on_threads_make_progress_alone_and_through_restarts() {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
    let board = TestBoard::new();
    let link = attach(&board);
    let mut rng = Rng::open(&link, leak(RngStorage::<8>::NEW)).unwrap();
    let mut console = Console::open(&link, leak(ConsoleStorage::<64, 64>::NEW), Options::default()).unwrap();
    let (stop, random, acknowledged) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let lines = 3_000u32;
    let guard = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut output = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                let mut bytes = [0; 32];
                if let Ok(n) = rng.fill(&mut bytes) {
                    assert!(bytes[..n].iter().all(|b| *b != 0));
                    random.fetch_add(n as u32, SeqCst);
                }
                std::thread::yield_now();
            }
        });
        scope.spawn(|| {
            for line in 0..lines {
                let text = format!("{line}\n");
                while console.write(text.as_bytes()).is_err() {
                    assert!(std::time::Instant::now() < guard, "waited to write line {line}");
                    std::thread::yield_now();
                }
            }
            while console.flush().is_err() {
                assert!(std::time::Instant::now() < guard, "waited for the last acknowledgement");
                std::thread::yield_now();
            }
            acknowledged.store(console.acknowledged().unwrap_or(0) as u32, SeqCst);
            while !stop.load(SeqCst) {
                console.poll();
                std::thread::yield_now();
            }
        });
        let mut looks = 0u32;
        let mut pmm = Pmm::start(&board);
        while acknowledged.load(SeqCst) == 0 || random.load(SeqCst) < 1_000 {
            assert!(std::time::Instant::now() < guard, "waited for the lines and the entropy");
            looks += 1;
            if looks.is_multiple_of(500) && acknowledged.load(SeqCst) == 0 {
                output.append(&mut pmm.output);
                pmm = Pmm::start(&board);
            }
            pmm.look();
            std::thread::yield_now();
        }
        output.append(&mut pmm.output);
        stop.store(true, SeqCst);
    });
    let mut next = 0;
    for line in String::from_utf8(output).unwrap().lines() {
        let number: u32 = line.parse().unwrap();
        assert!(number <= next, "line {next} is missing");
        next = next.max(number + 1);
    }
    assert_eq!(next, lines);
    assert_eq!(acknowledged.load(SeqCst), (0..lines).map(|i| format!("{i}\n").len() as u32).sum::<u32>());
}
