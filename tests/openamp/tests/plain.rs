//! Our PMM serves OpenAMP's front-end: it boots, works, reboots, and takes turns with a guest of the extended profile.
//! Each test runs many times, with the PMM looking between other stores each time, and with doorbells that merge.

use std::cell::RefCell;
use std::rc::Rc;

use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::rng::{Rng, RngStorage};
use hvl_openamp::{FrontEnd, Generation, World};
use hvl_pmm::snapshot::Profile;
use hvl_shared_abi::Mem;
use hvl_test_kit::board::{TestBoard, leak};
use hvl_test_kit::{BASE, Pmm, region};

const RNG_RINGS: u32 = 0x1000;
const CONSOLE_RINGS: u32 = 0x4000;
const POOL: u32 = 0x8000;
const GENERATIONS: [Generation; 4] = [Generation::G1, Generation::G2, Generation::G3, Generation::G4];

/// A PMM in this process, the doorbell to it, and the dice.
struct Board {
    pmm: Pmm,
    dice: u64,
    /// Merged bells deliver one look for any number of them; otherwise each is looked at when it is rung.
    merge: bool,
    /// Between any two stores, this many microseconds pass.
    dawdle: u64,
    to_pmm: bool,
}

#[derive(Clone)]
struct Shared(Rc<RefCell<Board>>);

impl Board {
    fn with(seed: u64) -> Shared {
        let dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let board = Board {
            pmm: Pmm::start(region()),
            dice,
            merge: seed.is_multiple_of(2),
            dawdle: 0,
            to_pmm: false,
        };
        Shared(Rc::new(RefCell::new(board)))
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 33) % sides
    }

    fn service(&mut self) {
        self.to_pmm = false;
        self.pmm.service();
    }

    fn profile(&self) -> Profile {
        self.pmm.snapshot().profile
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
        if board.dawdle != 0 {
            let dawdle = board.dawdle;
            board.pmm.pass(dawdle);
        }
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
            board.pmm.pass(20_000);
        }
        let window = |at| self.0.borrow().pmm.m.read32(at);
        let registers: Vec<_> = (0x30..0x80).step_by(4).map(window).collect();
        panic!(
            "no doorbell in a second of virtual time; waited for {what}; device 0 from 0x30: {registers:x?}"
        );
    }
    fn halt(&mut self, micros: u64) {
        self.0.borrow_mut().pmm.pass(micros);
    }
    fn rung(&mut self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().pmm.rang)
    }
}

fn rng(board: &Shared, generation: Generation) -> FrontEnd {
    FrontEnd::new(board.0.borrow().pmm.m, BASE, 0, generation, RNG_RINGS, &[2])
}

fn console(board: &Shared, generation: Generation) -> FrontEnd {
    FrontEnd::new(board.0.borrow().pmm.m, BASE, 1, generation, CONSOLE_RINGS, &[4, 4])
}

fn draw(board: &mut Shared, rng: &mut FrontEnd, rounds: usize) {
    let m = board.0.borrow().pmm.m;
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
    let (m, terminal) = (board.0.borrow().pmm.m, board.0.borrow().pmm.terminal.clone());
    let before = terminal.sent().len();
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
    assert_eq!(terminal.sent()[before..], expected);
    terminal.type_in(b"typed");
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
            let mut board = Board::with(seed);
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
fn a_front_end_that_dawdles_between_its_stores_is_understood() {
    for generation in GENERATIONS {
        let mut board = Board::with(1);
        board.0.borrow_mut().dawdle = 250_000;
        let (mut rng, mut console) = (rng(&board, generation), console(&board, generation));
        rng.boot(&mut board, 4, 0);
        console.boot(&mut board, 3, 1);
        draw(&mut board, &mut rng, 1);
        talk(&mut board, &mut console, 0);
    }
}

#[test]
fn a_doorbell_lost_on_its_way_to_the_guest_is_rung_again_until_it_is_acknowledged() {
    let mut board = Board::with(1);
    let mut rng = rng(&board, Generation::G3);
    rng.boot(&mut board, 4, 0);
    draw(&mut board, &mut rng, 1);
    rng.interrupt(&mut board);
    rng.interrupt(&mut board);
    for _ in 0..20 {
        rng.add(&mut board, 0, 0x8000, 16, true);
        board.0.borrow_mut().service();
        assert!(board.rung(), "and this one is lost");
        board.0.borrow_mut().pmm.pass(100_000);
        assert!(board.rung(), "it is rung again");
        assert_eq!(rng.complete(&mut board).len(), 1);
        rng.interrupt(&mut board);
        rng.interrupt(&mut board);
        board.0.borrow_mut().pmm.pass(100_000);
        board.rung();
        board.0.borrow_mut().pmm.pass(5_000_000);
        assert!(!board.rung(), "an acknowledged one is not");
    }
}

#[test]
fn a_reboot_without_any_reset_is_recognised() {
    for generation in GENERATIONS {
        for seed in 0..40 {
            let mut board = Board::with(seed);
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
        let mut board = Board::with(seed);
        let mut rng = rng(&board, Generation::G3);
        rng.boot(&mut board, 4, 0);
        draw(&mut board, &mut rng, 5);
        let kept = board.0.borrow().pmm.notebook.kept();
        board.0.borrow_mut().pmm.restart(Some(kept));
        draw(&mut board, &mut rng, 5);
        board.0.borrow_mut().pmm.restart(None);
        board.0.borrow_mut().service();
        let device = board.0.borrow().pmm.device(0);
        assert!(device.must_reboot && !device.runs);
        rng.boot(&mut board, 4, 0);
        draw(&mut board, &mut rng, 5);
        assert!(!board.0.borrow().pmm.device(0).must_reboot);
    }
}

/// Boots a firmware that links our frontend: it draws bytes, sends a line and receives one, and dies.
fn our_frontend(pmm: &mut Pmm, boot: usize) {
    let board = TestBoard::new(pmm.m);
    let link = board.attach();
    let mut rng = Rng::open(&link, leak(RngStorage::<8>::NEW)).expect("an entropy device");
    let storage = leak(ConsoleStorage::<64, 64>::NEW);
    let mut console = Console::open(&link, storage, Options::default()).expect("a console");
    let line = format!("boot {boot} of our own\n");
    let (before, mut read, mut random, mut typed) = (pmm.terminal.sent().len(), [0; 16], [0; 64], 0);
    pmm.terminal.type_in(b"for ours");
    let mut unsent = line.as_bytes();
    let mut drawn = 0;
    // A second of looks: each lasts as long as a PMM of a doorbell that loses may leave it unheard.
    for _ in 0..50 {
        link.poll();
        drawn = if drawn == 0 { rng.fill(&mut random).unwrap_or(0) } else { drawn };
        unsent = &unsent[console.write(unsent).unwrap_or(0)..];
        typed += console.read(&mut read[typed..]).unwrap_or(0);
        pmm.pass(20_000);
        board.pass(20_000);
        if drawn != 0 && typed == 8 && unsent.is_empty() && console.flush().is_ok() {
            break;
        }
    }
    let (state, counters) = (link.state(), link.counters());
    assert!(drawn != 0 && random[..drawn].iter().all(|byte| *byte != 0), "{state:?} {counters:?} {random:?}");
    assert_eq!(pmm.terminal.sent()[before..], *line.as_bytes(), "{state:?} {counters:?}");
    assert_eq!(&read[..typed], b"for ours", "{state:?} {counters:?}");
}

#[test]
fn it_takes_turns_with_our_frontend() {
    for generation in GENERATIONS {
        for seed in 0..30 {
            let mut board = Board::with(seed);
            for boot in 0..4 {
                our_frontend(&mut board.0.borrow_mut().pmm, boot);
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
        let mut board = Board::with(0);
        let m = board.0.borrow().pmm.m;
        m.write32(0x70, 1);
        board.0.borrow_mut().service();
        m.write32(0x30, 0);
        m.write32(0x38, size);
        m.write32(0x40, pfn);
        board.0.borrow_mut().service();
        assert_eq!(m.read32(0x40), pfn, "page {pfn:#x} is not acknowledged");
        let device = board.0.borrow().pmm.device(0);
        assert_eq!((device.queues_refused, device.runs), (1, false), "page {pfn:#x}, {size} entries");
        let mut rng = rng(&board, Generation::G3);
        rng.boot(&mut board, 4, 0);
        draw(&mut board, &mut rng, 1);
    }
}

const OTHER_RINGS: u32 = 0x2_0000;

fn rng_at(board: &Shared, generation: Generation, rings: u32) -> FrontEnd {
    FrontEnd::new(board.0.borrow().pmm.m, BASE, 0, generation, rings, &[2])
}

fn console_at(board: &Shared, generation: Generation, rings: u32) -> FrontEnd {
    FrontEnd::new(board.0.borrow().pmm.m, BASE, 1, generation, rings, &[4, 4])
}

/// An image with both devices that works, whose console waits for input in a buffer at [`OLD_BUFFER`].
fn old_image(board: &mut Shared, generation: Generation) -> (FrontEnd, FrontEnd) {
    let (mut rng, mut console) = (rng(board, generation), console(board, generation));
    rng.boot(board, 4, 0);
    console.boot(board, 3, 1);
    draw(board, &mut rng, 3);
    talk(board, &mut console, 0);
    console.add(board, 0, OLD_BUFFER, 64, true);
    board.0.borrow_mut().service();
    (rng, console)
}

const OLD_BUFFER: u32 = 0x3_0000;

#[test]
fn another_image_boots_with_rings_where_the_old_ones_lay_and_nothing_is_written_for_the_old_devices() {
    for generation in GENERATIONS {
        for seed in 0..20 {
            let mut board = Board::with(seed);
            old_image(&mut board, generation);
            let (m, terminal) = (board.0.borrow().pmm.m, board.0.borrow().pmm.terminal.clone());
            // The next one has entropy where the console's rings were, and data where that one's buffer was.
            let mut rng = rng_at(&board, generation, CONSOLE_RINGS);
            rng.boot(&mut board, 4, 0);
            m.copy_out(OLD_BUFFER, &[0x5a; 64]);
            terminal.type_in(b"for the next image");
            draw(&mut board, &mut rng, 3);
            board.0.borrow_mut().pmm.pass(1_000_000);
            let mut bytes = [0; 64];
            m.copy_in(OLD_BUFFER, &mut bytes);
            assert_eq!(bytes, [0x5a; 64], "the old image's console wrote into the next one's data");
            let device = board.0.borrow().pmm.device(1);
            assert!(device.held && !device.runs);
            let kept = board.0.borrow().pmm.notebook.kept();
            assert_eq!(kept.devices[1].queues[0].size, 0, "a successor would take the old console up");
            // Its console comes later, and gets what was typed.
            let mut console = console_at(&board, generation, OTHER_RINGS);
            console.boot(&mut board, 3, 1);
            console.add(&mut board, 0, POOL, 64, true);
            assert_eq!(console.complete(&mut board), [(0, POOL, 18)]);
            draw(&mut board, &mut rng, 3);
        }
    }
}

#[test]
fn an_image_that_shows_no_reboot_evicts_the_old_owner_of_its_place() {
    for generation in GENERATIONS {
        for seed in 0..20 {
            let mut board = Board::with(seed);
            let mut console = console(&board, generation);
            console.boot(&mut board, 3, 1);
            talk(&mut board, &mut console, 0);
            board.0.borrow_mut().pmm.pass(1_000_000);
            // The old image had no entropy, so nothing but the place says that this is another one.
            let mut rng = rng_at(&board, generation, CONSOLE_RINGS + 0x1000);
            rng.boot(&mut board, 4, 0);
            assert!(board.0.borrow().pmm.device(1).held);
            draw(&mut board, &mut rng, 3);
        }
    }
}

#[test]
fn a_device_that_the_next_image_set_up_before_its_reboot_showed_goes_on() {
    for generation in GENERATIONS {
        for seed in 0..20 {
            let mut board = Board::with(seed);
            let mut console = console(&board, generation);
            console.boot(&mut board, 3, 1);
            talk(&mut board, &mut console, 0);
            board.0.borrow_mut().pmm.pass(1_000_000);
            // The next image has entropy, too, and sets it up first.
            let mut rng = rng(&board, generation);
            rng.boot(&mut board, 4, 0);
            console.boot(&mut board, 3, 1);
            assert!(board.0.borrow().pmm.device(0).runs, "the entropy device belongs to this boot");
            draw(&mut board, &mut rng, 3);
            talk(&mut board, &mut console, 1);
        }
    }
}

#[test]
fn queues_are_set_up_in_whatever_order_the_driver_chooses() {
    for generation in GENERATIONS {
        for seed in 0..20 {
            let mut board = Board::with(seed);
            for boot in 0..3 {
                let mut console = console(&board, generation).in_order(&[1, 0]);
                console.boot(&mut board, 3, 1);
                talk(&mut board, &mut console, boot);
            }
        }
    }
}

#[test]
fn a_guest_that_is_halted_between_the_registers_of_a_queue_boots_all_the_same() {
    for generation in GENERATIONS {
        for halt in [50_000, 150_000, 900_000, 1_500_000] {
            for rings in [[RNG_RINGS, CONSOLE_RINGS], [OTHER_RINGS, OTHER_RINGS + 0x4000]] {
                let mut board = Board::with(halt);
                old_image(&mut board, generation);
                let mut rng = rng_at(&board, generation, rings[0]).halted(halt);
                let mut console = console_at(&board, generation, rings[1]).halted(halt);
                rng.boot(&mut board, 4, 0);
                console.boot(&mut board, 3, 1);
                talk(&mut board, &mut console, 1);
                draw(&mut board, &mut rng, 3);
            }
        }
    }
}

#[test]
fn buffers_that_were_posted_before_the_page_number_are_served_on_a_region_of_zeroes() {
    for generation in GENERATIONS {
        for seed in 0..20 {
            let mut board = Board::with(seed);
            let mut console =
                console(&board, generation).with_early(0, POOL, 32).with_early(0, POOL + 32, 32);
            console.boot(&mut board, 3, 1);
            board.0.borrow().pmm.terminal.type_in(b"early");
            board.0.borrow_mut().service();
            assert_eq!(console.complete(&mut board), [(0, POOL, 5)]);
        }
    }
}

#[test]
fn a_front_end_that_counts_from_0_is_served_over_what_an_old_image_left() {
    for generation in GENERATIONS {
        for seed in 0..20 {
            let mut board = Board::with(seed);
            old_image(&mut board, generation);
            for _ in 0..3 {
                let mut rng = rng(&board, generation).counting_from_0();
                rng.boot(&mut board, 4, 0);
                draw(&mut board, &mut rng, 5);
                let kept = board.0.borrow().pmm.notebook.kept();
                board.0.borrow_mut().pmm.restart(Some(kept));
                draw(&mut board, &mut rng, 5);
            }
        }
    }
}

#[test]
fn a_bell_that_is_not_acknowledged_for_long_is_still_repeated() {
    let mut board = Board::with(1);
    let mut rng = rng(&board, Generation::G3);
    rng.boot(&mut board, 4, 0);
    draw(&mut board, &mut rng, 1);
    rng.add(&mut board, 0, POOL, 16, true);
    // The guest stands at a breakpoint, and every bell until it goes on is lost.
    board.0.borrow_mut().pmm.pass(60_000_000);
    board.rung();
    board.0.borrow_mut().pmm.pass(1_100_000);
    assert!(board.rung(), "it sleeps, and only a bell wakes it");
    assert_eq!(rng.complete(&mut board).len(), 1);
    draw(&mut board, &mut rng, 5);
}

#[test]
fn the_bell_of_a_queues_acknowledgement_is_repeated_until_the_guest_goes_on() {
    let mut board = Board::with(1);
    let m = board.0.borrow().pmm.m;
    for (register, value) in [(0x70, 1), (0x30, 0), (0x38, 2), (0x40, (BASE as u32 + RNG_RINGS) / 4096)] {
        m.publish32(register, value);
    }
    board.0.borrow_mut().service();
    assert_eq!(m.read32(0x40), 0xaabb_aabb);
    assert!(board.rung(), "and this one is lost");
    board.0.borrow_mut().pmm.pass(100_000);
    assert!(board.rung(), "a front-end waits for it, for 4 s at the most");
    m.publish32(0x70, 4);
    board.0.borrow_mut().pmm.pass(1_000_000);
    board.rung();
    board.0.borrow_mut().pmm.pass(5_000_000);
    assert!(!board.rung(), "it has gone on");
}

#[test]
fn nothing_is_rung_for_the_devices_of_a_dead_boot_while_the_next_one_sets_up() {
    let mut board = Board::with(1);
    let (_, mut console) = old_image(&mut board, Generation::G3);
    board.0.borrow().pmm.terminal.type_in(b"never read");
    console.add(&mut board, 1, POOL, 1, false);
    board.0.borrow_mut().pmm.pass(100_000);
    // The next boot begins with the other device, and takes its time.
    board.0.borrow().pmm.m.publish32(0x70, 1);
    board.0.borrow_mut().pmm.pass(100_000);
    board.rung();
    board.0.borrow_mut().pmm.pass(5_000_000);
    assert!(!board.rung(), "a front-end takes a bell for the acknowledgement that it waits for");
}

#[test]
fn a_completion_whose_interrupt_died_with_the_pmm_is_signalled_by_the_next_one() {
    for seed in 0..20 {
        let mut board = Board::with(seed);
        let mut rng = rng(&board, Generation::G3);
        rng.boot(&mut board, 4, 0);
        draw(&mut board, &mut rng, 3);
        rng.interrupt(&mut board);
        rng.add(&mut board, 0, POOL, 16, true);
        board.0.borrow_mut().service();
        // The used index is stored, and then the PMM is killed.
        board.0.borrow().pmm.m.write32(0x60, 0);
        let kept = board.0.borrow().pmm.notebook.kept();
        board.0.borrow_mut().pmm.restart(Some(kept));
        assert_eq!(rng.complete(&mut board), [(0, POOL, 16)]);
        draw(&mut board, &mut rng, 5);
    }
}

#[test]
fn a_device_that_was_stopped_while_the_record_could_not_be_kept_is_recorded_later() {
    for refusals in [0, 1, 3] {
        let mut board = Board::with(1);
        old_image(&mut board, Generation::G3);
        let notebook = board.0.borrow().pmm.notebook.clone();
        assert_ne!(notebook.kept().devices[0].queues[0].size, 0);
        // The console shows that the guest has rebooted, and nothing is set up that would be recorded by itself.
        notebook.refuse(refusals);
        board.0.borrow().pmm.m.publish32(0x270, 0);
        board.0.borrow_mut().service();
        let device = board.0.borrow().pmm.device(0);
        assert!(device.held && !device.runs);
        board.0.borrow_mut().pmm.pass(1_000_000);
        assert_eq!(notebook.refusals(), 0, "it was not tried again");
        let kept = notebook.kept();
        assert_eq!(kept.devices[0].queues[0].size, 0, "a successor would take the old entropy up");
        // A successor takes up none of them.
        board.0.borrow_mut().pmm.restart(Some(kept));
        board.0.borrow_mut().service();
        assert!(!board.0.borrow().pmm.device(0).runs);
    }
}

#[test]
fn a_pmm_that_is_killed_between_two_queues_of_a_set_up_leaves_the_first_to_the_next() {
    let mut board = Board::with(1);
    let m = board.0.borrow().pmm.m;
    let page = (BASE as u32 + CONSOLE_RINGS) / 4096;
    let set_up = |board: &mut Shared, queue: u32| {
        for (register, value) in [(0x230, queue), (0x238, 4), (0x240, page + 2 * queue)] {
            m.publish32(register, value);
        }
        board.0.borrow_mut().pmm.pass(200_000);
        assert_eq!(m.read32(0x240), 0xaabb_aabb, "queue {queue}");
    };
    m.publish32(0x270, 1);
    set_up(&mut board, 0);
    let kept = board.0.borrow().pmm.notebook.kept();
    board.0.borrow_mut().pmm.restart(Some(kept));
    set_up(&mut board, 1);
    m.publish32(0x270, 4);
    board.0.borrow_mut().pmm.pass(20_000);
    assert!(board.0.borrow().pmm.device(1).runs);
    // Without a record, the first half is lost, and no half of a device is served.
    m.publish32(0x270, 1);
    set_up(&mut board, 0);
    board.0.borrow_mut().pmm.restart(None);
    set_up(&mut board, 1);
    m.publish32(0x270, 4);
    board.0.borrow_mut().pmm.pass(20_000);
    let device = board.0.borrow().pmm.device(1);
    assert!(device.must_reboot && !device.runs);
}
