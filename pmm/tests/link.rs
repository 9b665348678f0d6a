//! The link against a raw guest, in virtual time: when it rings, whom it adopts, and what it leaves to a guest that
//! never answers.

use hvl_frontend::device::DeviceStatus;
use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::rng::{Rng, RngStorage};
use hvl_pmm::snapshot::LinkCounters;
use hvl_shared_abi::epoch::{DeviceState, DriverHalf, PmmLook};
use hvl_shared_abi::header::{WINDOW_SIZE, reg};
use hvl_shared_abi::ring::Segment;
use hvl_shared_abi::ring::split::DriverRing;
use hvl_shared_abi::{Features, Mem, Window};
use hvl_test_kit::board::{TestBoard, leak};
use hvl_test_kit::guest::{CONSOLE, Guest, RNG};
use hvl_test_kit::{LEN, Pmm, region};

const MILLI: u64 = 1_000;
const SECOND: u64 = 1_000_000;

fn counters(pmm: &Pmm) -> LinkCounters {
    pmm.snapshot().counters
}

/// Says hello and lets nobody look.
fn hello(guest: &mut Guest) {
    let PmmLook::Present(pmm) = DriverHalf::look(&guest.m) else { panic!("a link that was published") };
    assert!(guest.half.hello(&guest.m, pmm, 2));
}

/// How often a link rings in ten seconds in which nobody answers its first bell, and nobody has ever said hello.
fn rings(doorbell_can_lose: bool) -> u64 {
    let mut pmm = Pmm::start_with(region(), doorbell_can_lose);
    pmm.pass(10 * SECOND);
    counters(&pmm).rings
}

#[test]
fn a_lost_announcement_is_rung_again_for_a_guest_that_sleeps_and_has_never_said_hello() {
    // 10 ms, doubling up to 1 s: seven bells in the first 1.3 s, one a second then.
    assert!((12..20).contains(&rings(true)), "{}", rings(true));
}

#[test]
fn a_bell_that_cannot_be_lost_is_not_repeated_while_nobody_is_there() {
    assert_eq!(rings(false), 1);
}

#[test]
fn a_bell_that_nobody_acts_on_is_repeated_after_10_ms_and_then_less_often_and_counted() {
    for doorbell_can_lose in [false, true] {
        let mut pmm = Pmm::start_with(region(), doorbell_can_lose);
        let mut guest = Guest::boot(&mut pmm);
        pmm.pass(SECOND);
        hello(&mut guest);
        let before = counters(&pmm).rerings;
        pmm.rings.clear();
        pmm.pass(4 * SECOND);
        let pauses: Vec<u64> = pmm.rings.windows(2).map(|two| (two[1] - two[0]) / MILLI).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000], "lossy: {doorbell_can_lose}");
        assert_eq!(counters(&pmm).rerings - before, pauses.len() as u64);
    }
}

#[test]
fn a_guest_that_is_silent_is_kept_however_long_and_its_silence_is_counted_once_and_shown() {
    for doorbell_can_lose in [false, true] {
        let mut pmm = Pmm::start_with(region(), doorbell_can_lose);
        let guest = Guest::boot(&mut pmm);
        // A bell that it does not act on, as at a breakpoint.
        guest.start(&mut pmm, RNG, Features::VERSION_1);
        pmm.pass(9 * SECOND);
        assert_eq!((counters(&pmm).silences, pmm.snapshot().silent_since), (0, None));
        pmm.pass(3600 * SECOND);
        assert!(guest.half.in_session(&guest.m), "an hour of silence is no end");
        assert_eq!((counters(&pmm).silences, counters(&pmm).presumed_gone), (1, 0));
        let since = pmm.snapshot().silent_since.expect("it is shown");
        assert!(since < 2 * SECOND, "silent since {since}");
        guest.ring_bell();
        pmm.pass(2 * SECOND);
        assert_eq!((counters(&pmm).silences, pmm.snapshot().silent_since), (1, None), "it lives");
        pmm.pass(11 * SECOND);
        assert_eq!(counters(&pmm).silences, 2);
    }
}

#[test]
fn a_guest_whose_peer_hung_up_is_gone_and_what_it_left_to_be_sent_is_sent() {
    let mut pmm = Pmm::start_with(region(), false);
    let (guest, [_, mut transmit]) = console(&mut pmm);
    let (m, pool) = (guest.m, guest.place(CONSOLE).pool.at);
    m.copy_out(pool, b"its last line\n");
    transmit.add(&m, &[Segment::readable(pool, 14)]).unwrap();
    transmit.publish(&m);
    // It dies before its bell is rung.
    pmm.hang_up();
    assert_eq!(pmm.terminal.sent(), b"its last line\n");
    assert_eq!((counters(&pmm).hung_up, pmm.snapshot().driver_epoch), (1, None));
    assert!(!pmm.device(CONSOLE).runs, "nobody is served any more");
    assert!(!guest.half.in_session(&m), "a guest that lives finds out");
    assert!(transmit.pop(&m).unwrap().is_some(), "and takes what was completed");
    // The next time there is no session to end.
    pmm.hang_up();
    assert_eq!(counters(&pmm).hung_up, 1);
}

#[test]
fn a_guest_that_lives_though_its_peer_hung_up_goes_on_in_a_session_of_its_own() {
    let mut pmm = Pmm::start_with(region(), false);
    let board = TestBoard::new(pmm.m);
    let link = board.attach();
    let mut rng = Rng::open(&link, leak(RngStorage::<8>::NEW)).unwrap();
    let mut drawn = 0;
    for round in 0..20 {
        for _ in 0..10 {
            link.poll();
            pmm.pass(20 * MILLI);
            board.pass(20 * MILLI);
            let got = rng.fill(&mut [0; 16]).unwrap_or(0);
            drawn += got;
            if got != 0 {
                break;
            }
        }
        assert_eq!(drawn, 16 * (round + 1), "round {round}");
        // What is between the two sides is restarted.
        pmm.hang_up();
    }
    assert_eq!((counters(&pmm).hung_up, counters(&pmm).adoptions), (20, 20));
}

#[test]
fn a_successor_that_has_said_hello_outlives_its_predecessors_peer() {
    let mut pmm = Pmm::start_with(region(), false);
    let mut guest = Guest::boot(&mut pmm);
    pmm.pass(SECOND);
    hello(&mut guest);
    pmm.hang_up();
    assert!(guest.half.in_session(&guest.m), "the hang-up was not its own");
    assert_eq!(counters(&pmm).hung_up, 0);
}

#[test]
fn a_guest_that_shows_signs_of_life_is_kept_and_given_up_after_the_last_where_its_user_says_so() {
    let mut pmm = Pmm::start_and_presume_gone(region(), true, Some(10 * SECOND));
    let guest = Guest::boot(&mut pmm);
    for sign in 1..20 {
        // It rings, or acts on one bell of many; all that it was rung for it never looks at.
        if sign % 2 == 0 {
            guest.ring_bell();
        } else {
            guest.m.write32(Window::LINK.at(reg::DRIVER_SEEN), sign << 16);
        }
        pmm.pass(9 * SECOND);
        assert_eq!(counters(&pmm).presumed_gone, 0, "sign {sign}");
    }
    assert!(guest.half.in_session(&guest.m));
    pmm.pass(2 * SECOND);
    assert_eq!(counters(&pmm).presumed_gone, 1);
    assert!(!guest.half.in_session(&guest.m), "the guest is told");
}

#[test]
fn what_was_completed_can_still_be_taken_by_a_guest_that_was_presumed_gone() {
    let mut pmm = Pmm::start_and_presume_gone(region(), false, Some(10 * SECOND));
    let guest = Guest::boot(&mut pmm);
    let mut ring = guest.ring(RNG, 0, Features::VERSION_1);
    let token = ring.add(&guest.m, &[Segment::writable(guest.place(RNG).pool.at, 16)]).unwrap();
    ring.publish(&guest.m);
    guest.start(&mut pmm, RNG, Features::VERSION_1);
    pmm.pass(20 * SECOND);
    assert_eq!(counters(&pmm).presumed_gone, 1);
    assert!(!guest.half.in_session(&guest.m), "the guest is told");
    let used = ring.pop(&guest.m).unwrap().expect("the completion is still there");
    assert_eq!((used.token, used.written), (token, 16));
}

#[test]
fn a_guest_that_reboots_in_a_loop_is_adopted_once_in_10_ms_and_in_the_end() {
    let mut pmm = Pmm::start_with(region(), false);
    let mut guest = Guest::boot(&mut pmm);
    let (before, from) = (counters(&pmm).adoptions, pmm.now);
    while pmm.now < from + 100 * MILLI {
        hello(&mut guest);
        guest.ring_bell();
        pmm.service();
    }
    let adoptions = counters(&pmm).adoptions - before;
    assert!((9..=10).contains(&adoptions), "{adoptions} in 100 ms");
    // Nobody rings for the last one any more: it is taken up when its time has come.
    pmm.pass(10 * MILLI);
    assert_eq!(guest.half.adopted(&guest.m), Some(true));
}

#[test]
fn what_the_guest_does_during_a_look_is_not_taken_for_looked_at() {
    let mut pmm = Pmm::start(region());
    let guest = Guest::boot(&mut pmm);
    guest.draw(&mut pmm);
    let (m, entropy) = (guest.m, guest.device(RNG));
    // The console's window is looked at behind the entropy device's.
    pmm.terminal.meanwhile(move || {
        entropy.reset(&m);
        Guest { m, half: DriverHalf::new() }.ring_bell();
    });
    guest.say(&mut pmm, "a line\n");
    assert_eq!(entropy.state(&m, &guest.half), DeviceState::Clear, "its bell is answered");
}

/// Somebody wipes the region upwards. The PMM looks when the bytes up to `until` are gone; the others go after that.
fn wipe(pmm: &mut Pmm, until: u32) {
    let wipes = counters(pmm).wipes;
    (0..until).step_by(4).for_each(|at| pmm.m.write32(at, 0));
    pmm.pass(20 * MILLI);
    assert_eq!(counters(pmm).wipes, wipes + 1);
    (until..LEN).step_by(4).for_each(|at| pmm.m.write32(at, 0));
}

#[test]
fn a_guest_that_boots_after_a_wipe_finds_every_device_wherever_the_pmm_saw_it() {
    for until in (0x100..2 * WINDOW_SIZE).step_by(0x40) {
        let mut pmm = Pmm::start(region());
        wipe(&mut pmm, until);
        let board = TestBoard::new(pmm.m);
        let link = board.attach();
        let rng = Rng::open(&link, leak(RngStorage::<8>::NEW)).unwrap();
        let storage = leak(ConsoleStorage::<64, 64>::NEW);
        let mut console = Console::open(&link, storage, Options::default()).unwrap();
        for _ in 0..8 {
            link.poll();
            pmm.pass(20 * MILLI);
        }
        let running = Some(DeviceStatus::Running);
        assert_eq!((rng.status(), console.status()), (running, running), "wiped up to {until:#x}");
        assert_eq!(console.size(), Ok(Some((80, 24))), "wiped up to {until:#x}");
    }
}

#[test]
fn a_terminal_that_gets_another_size_tells_the_guest() {
    let mut pmm = Pmm::start_with(region(), false);
    let board = TestBoard::new(pmm.m);
    let link = board.attach();
    let storage = leak(ConsoleStorage::<64, 64>::NEW);
    let mut console = Console::open(&link, storage, Options::default()).unwrap();
    let settle = |pmm: &mut Pmm| {
        for _ in 0..8 {
            link.poll();
            pmm.pass(20 * MILLI);
        }
        pmm.rang = false;
    };
    settle(&mut pmm);
    assert_eq!(console.size(), Ok(Some((80, 24))));
    pmm.terminal.resize(132, 43);
    pmm.pass(20 * MILLI);
    assert!(pmm.rang, "a guest that sleeps is woken");
    settle(&mut pmm);
    assert_eq!(console.size(), Ok(Some((132, 43))));
    pmm.pass(20 * MILLI);
    assert!(!pmm.rang, "told once");
}

/// A console that runs, and its rings.
fn console(pmm: &mut Pmm) -> (Guest, [DriverRing<'static>; 2]) {
    let guest = Guest::boot(pmm);
    let features = Features::VERSION_1 | Features::EVENT_IDX;
    let rings = [0, 1].map(|queue| guest.ring(CONSOLE, queue, features));
    assert_eq!(guest.start(pmm, CONSOLE, features), DeviceState::Running);
    (guest, rings)
}

#[test]
fn a_full_batch_is_not_the_last_one_that_the_pmm_wants() {
    let mut pmm = Pmm::start(region());
    let (guest, [mut receive, mut transmit]) = console(&mut pmm);
    let (m, pool) = (guest.m, guest.place(CONSOLE).pool.at);
    m.copy_out(pool, b"x");
    pmm.terminal.type_in(&[b'y'; 64]);
    for (ring, buffer) in
        [(&mut transmit, Segment::readable(pool, 1)), (&mut receive, Segment::writable(pool + 64, 1))]
    {
        for _ in 0..64 {
            ring.add(&m, &[buffer]).unwrap();
        }
        assert!(ring.publish(&m), "the PMM sleeps");
        pmm.service();
        for _ in 0..64 {
            assert!(ring.pop(&m).unwrap().is_some());
        }
        ring.add(&m, &[buffer]).unwrap();
        assert!(ring.publish(&m), "it sleeps again, and wants to be woken");
    }
}
