//! Our PMM serves OpenAMP's front-end: it boots, works, reboots, and takes turns with a guest of the extended profile.
//! Each test runs many times, with the PMM looking between other stores each time, and with doorbells that merge.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use hvl_openamp::{FrontEnd, Generation, World};
use hvl_pmm::device::console::Console;
use hvl_pmm::device::rng::Rng;
use hvl_pmm::host::{ByteEnd, EndError, Entropy};
use hvl_pmm::link::{Link, LinkPlan};
use hvl_pmm::snapshot::Profile;
use hvl_pmm::transport::plain::{PlainRecord, Recorder};
use hvl_shared_abi::epoch::{DriverHalf, PmmLook};
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::{Attribute, DeviceSpec, Layout, Mem, Region};

const BASE: u64 = 0x3700_0000;
const LEN: u32 = 0x10_0000;
const RNG_RINGS: u32 = 0x1000;
const CONSOLE_RINGS: u32 = 0x4000;
const POOL: u32 = 0x8000;
const GENERATIONS: [Generation; 4] = [Generation::G1, Generation::G2, Generation::G3, Generation::G4];

/// The terminal behind the console: what the guest sent, and what it is to receive.
#[derive(Clone, Default)]
struct Terminal(Arc<Mutex<(Vec<u8>, VecDeque<u8>)>>);

impl ByteEnd for Terminal {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        self.0.lock().unwrap().0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        let input = &mut self.0.lock().unwrap().1;
        if input.is_empty() {
            return Err(EndError::WouldBlock);
        }
        Ok(into.iter_mut().zip(std::iter::from_fn(|| input.pop_front())).map(|(to, from)| *to = from).count())
    }
}

/// Counts up, so that what a guest gets can be told from anything else.
struct Counter(u8);

impl Entropy for Counter {
    fn fill(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        for byte in into.iter_mut() {
            self.0 = self.0 % 250 + 1;
            *byte = self.0;
        }
        Ok(into.len())
    }
}

#[derive(Clone, Default)]
struct Notebook(Arc<Mutex<PlainRecord>>);

impl Recorder for Notebook {
    fn record(&mut self, record: &PlainRecord) {
        *self.0.lock().unwrap() = *record;
    }
}

/// A PMM in this process, the doorbells, virtual time, and the dice.
struct Board {
    m: Region,
    link: Option<Link<'static, Region>>,
    terminal: Terminal,
    notebook: Notebook,
    now: u64,
    dice: u64,
    /// Merged bells deliver one look for any number of them; otherwise each is looked at when it is rung.
    merge: bool,
    to_pmm: bool,
    to_guest: bool,
}

#[derive(Clone)]
struct Shared(Rc<RefCell<Board>>);

impl Board {
    fn new(seed: u64) -> Shared {
        let words: Vec<AtomicU32> = (0..LEN / 4).map(|_| AtomicU32::new(0)).collect();
        let mut board = Board {
            m: Region::in_words(words.leak(), Attribute::Coherent),
            link: None,
            terminal: Terminal::default(),
            notebook: Notebook::default(),
            now: 0,
            dice: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            merge: seed % 2 == 0,
            to_pmm: false,
            to_guest: false,
        };
        board.start_pmm(None);
        Shared(Rc::new(RefCell::new(board)))
    }

    fn start_pmm(&mut self, record: Option<PlainRecord>) {
        let layout = Layout::place(&[DeviceSpec::RNG, DeviceSpec::CONSOLE], LEN).unwrap();
        let slots = |index: usize| {
            let count = Link::<Region>::slots_for(&layout.devices()[index]);
            vec![DeviceSlot::NEW; count].leak()
        };
        let (rng, console) = (Box::leak(Box::new(Rng::new(Counter(0)))), Console::new(self.terminal.clone()));
        let console = Box::leak(Box::new(console));
        let notebook = Box::leak(Box::new(self.notebook.clone()));
        let plan = LinkPlan { layout, base: BASE, doorbell_can_lose: true };
        let members: [hvl_pmm::link::Member<'static, Region>; 2] = [(rng, slots(0)), (console, slots(1))];
        self.link = Some(Link::publish(self.m, plan, members, Some(notebook), record.as_ref()).unwrap());
        self.to_guest = true;
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 33) % sides
    }

    fn service(&mut self) {
        self.to_pmm = false;
        self.now += 100;
        for _ in 0..1000 {
            let service = self.link.as_mut().unwrap().service(self.now);
            self.to_guest |= service.ring;
            if !service.again {
                return;
            }
        }
        panic!("1000 services and still more to do");
    }

    fn profile(&self) -> Profile {
        self.link.as_ref().unwrap().snapshot().profile
    }
}

impl World for Shared {
    fn ring(&mut self) {
        let mut board = self.0.borrow_mut();
        board.to_pmm = true;
        if !board.merge {
            board.service();
        }
    }
    fn pause(&mut self) {
        let mut board = self.0.borrow_mut();
        let look = if board.to_pmm { 2 } else { 8 };
        if board.roll(look) == 0 {
            board.service();
        }
    }
    fn wait(&mut self, what: &str) {
        for _ in 0..50 {
            if self.rung() {
                return;
            }
            let mut board = self.0.borrow_mut();
            board.now += 20_000;
            board.service();
        }
        let window = |at| self.0.borrow().m.read32(at);
        let registers: Vec<_> = (0x30..0x80).step_by(4).map(window).collect();
        panic!(
            "no doorbell in a second of virtual time; waited for {what}; device 0 from 0x30: {registers:x?}"
        );
    }
    fn rung(&mut self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().to_guest)
    }
}

fn rng(board: &Shared, generation: Generation) -> FrontEnd {
    FrontEnd::new(board.0.borrow().m, BASE, 0, generation, RNG_RINGS, &[2])
}

fn console(board: &Shared, generation: Generation) -> FrontEnd {
    FrontEnd::new(board.0.borrow().m, BASE, 1, generation, CONSOLE_RINGS, &[4, 4])
}

fn draw(board: &mut Shared, rng: &mut FrontEnd, rounds: usize) {
    let m = board.0.borrow().m;
    for round in 0..rounds {
        m.copy_out(POOL, &[0; 64]);
        rng.add(board, 0, POOL, 64, true);
        let done = rng.complete(board);
        assert_eq!(done, [(0, POOL, 64)], "round {round}");
        let mut bytes = [0; 64];
        m.copy_in(POOL, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte != 0), "round {round}: {bytes:?}");
    }
}

/// Sends lines and receives one, through both queues of the console.
fn talk(board: &mut Shared, console: &mut FrontEnd, boot: usize) {
    let (m, terminal) = (board.0.borrow().m, board.0.borrow().terminal.clone());
    let before = terminal.0.lock().unwrap().0.len();
    console.add(board, 0, POOL + 0x1000, 32, true);
    let mut expected = Vec::new();
    for round in 0..20 {
        let line = format!("boot {boot} line {round}\n");
        expected.extend_from_slice(line.as_bytes());
        m.copy_out(POOL + 0x100, line.as_bytes());
        console.add(board, 1, POOL + 0x100, line.len() as u32, false);
        let done = console.complete(board);
        assert_eq!(done.iter().map(|(queue, ..)| *queue).collect::<Vec<_>>(), [1], "round {round}");
    }
    assert_eq!(terminal.0.lock().unwrap().0[before..], expected);
    terminal.0.lock().unwrap().1.extend(b"typed");
    board.0.borrow_mut().service();
    let done = console.complete(board);
    assert_eq!(done, [(0, POOL + 0x1000, 5)]);
    let mut bytes = [0; 5];
    m.copy_in(POOL + 0x1000, &mut bytes);
    assert_eq!(&bytes, b"typed");
}

#[test]
fn every_generation_boots_and_works_on_both_devices() {
    for generation in GENERATIONS {
        for seed in 0..40 {
            let mut board = Board::new(seed);
            let (mut rng, mut console) = (rng(&board, generation), console(&board, generation));
            assert_eq!(rng.boot(&mut board, 4, 0), 0);
            draw(&mut board, &mut rng, 10);
            assert_eq!(
                console.boot(&mut board, 3, u32::MAX),
                1,
                "the size of the console is all that is offered"
            );
            talk(&mut board, &mut console, 0);
            draw(&mut board, &mut rng, 10);
            assert_eq!(board.0.borrow().profile(), Profile::Plain);
        }
    }
}

#[test]
fn a_reboot_without_any_reset_is_recognised() {
    for generation in GENERATIONS {
        for seed in 0..40 {
            let mut board = Board::new(seed);
            for boot in 0..6 {
                let (mut rng, mut console) = (rng(&board, generation), console(&board, generation));
                rng.boot(&mut board, 4, 0);
                console.boot(&mut board, 3, 1);
                draw(&mut board, &mut rng, 3);
                talk(&mut board, &mut console, boot);
                // It dies with a request in flight.
                rng.add(&mut board, 0, POOL, 16, true);
            }
        }
    }
}

#[test]
fn a_pmm_that_was_killed_goes_on_from_its_record_and_says_so_without_one() {
    for seed in 0..30 {
        let mut board = Board::new(seed);
        let mut rng = rng(&board, Generation::G3);
        rng.boot(&mut board, 4, 0);
        draw(&mut board, &mut rng, 5);
        let kept = *board.0.borrow().notebook.0.lock().unwrap();
        board.0.borrow_mut().start_pmm(Some(kept));
        draw(&mut board, &mut rng, 5);
        board.0.borrow_mut().start_pmm(None);
        board.0.borrow_mut().service();
        let snapshot = board.0.borrow().link.as_ref().unwrap().snapshot();
        let device = snapshot.devices[0].unwrap();
        assert!(device.must_reboot && !device.runs);
        rng.boot(&mut board, 4, 0);
        draw(&mut board, &mut rng, 5);
        assert!(!board.0.borrow().link.as_ref().unwrap().snapshot().devices[0].unwrap().must_reboot);
    }
}

/// The epoch words of an extended guest, which is all of it that the PMM needs to change the session.
fn hello(board: &mut Shared) {
    let m = board.0.borrow().m;
    let PmmLook::Present(pmm) = DriverHalf::look(&m) else { panic!("no PMM") };
    let devices = DriverHalf::devices(&m).unwrap();
    assert_eq!(devices.len(), 2);
    let mut half = DriverHalf::new();
    assert!(half.hello(&m, pmm, devices.len()));
    for _ in 0..100 {
        if half.adopted(&m) == Some(true) {
            return;
        }
        board.wait("the adoption");
    }
    panic!("100 doorbells and no adoption");
}

#[test]
fn it_takes_turns_with_a_guest_of_the_extended_profile() {
    for generation in GENERATIONS {
        for seed in 0..30 {
            let mut board = Board::new(seed);
            for boot in 0..4 {
                hello(&mut board);
                assert_eq!(board.0.borrow().profile(), Profile::Extended);
                let (mut rng, mut console) = (rng(&board, generation), console(&board, generation));
                rng.boot(&mut board, 4, 0);
                console.boot(&mut board, 3, 1);
                draw(&mut board, &mut rng, 3);
                talk(&mut board, &mut console, boot);
                assert_eq!(board.0.borrow().profile(), Profile::Plain);
            }
        }
    }
}

#[test]
fn a_queue_where_none_can_be_is_refused_and_counted() {
    for (pfn, size) in
        [(0x37000, 2), (0x37001, 3), (0x37001, 0x10000), (0x36fff, 2), (0x37100, 2), (0xffff_ffff, 8)]
    {
        let mut board = Board::new(0);
        let m = board.0.borrow().m;
        m.write32(0x70, 1);
        board.0.borrow_mut().service();
        m.write32(0x30, 0);
        m.write32(0x38, size);
        m.write32(0x40, pfn);
        board.0.borrow_mut().service();
        assert_eq!(m.read32(0x40), pfn, "page {pfn:#x} is not acknowledged");
        let device = board.0.borrow().link.as_ref().unwrap().snapshot().devices[0].unwrap();
        assert_eq!((device.queues_refused, device.runs), (1, false), "page {pfn:#x}, {size} entries");
        let mut rng = rng(&board, Generation::G3);
        rng.boot(&mut board, 4, 0);
        draw(&mut board, &mut rng, 1);
    }
}
