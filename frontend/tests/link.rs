//! The frontend against a PMM of this process: it runs, it comes late, it dies at every step, and comes back.

mod common;

use std::sync::Mutex;

use common::{BASE, DEVICES, Pmm, TestBoard, attach, leak};
use hvl_frontend::device::DeviceStatus;
use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::rng::{FillError, Rng, RngStorage};
use hvl_frontend::device::{InFlight, NotNow, Unfit};
use hvl_frontend::{AttachError, Board, Clock, Instant, Link, LinkState, LinkStorage, OpenError};
use hvl_shared_abi::header::{Fault, reg};
use hvl_shared_abi::{DeviceId, DeviceSpec, Layout, Mem, block};

type TestLink = Link<'static, TestBoard>;
type TestRng = Rng<'static, TestBoard>;
type TestConsole = Console<'static, TestBoard>;

fn open(board: &TestBoard, in_flight: InFlight) -> (TestLink, TestRng, TestConsole) {
    let link = attach(board);
    let rng = Rng::open(&link, leak(RngStorage::<8>::NEW)).unwrap();
    let options = Options { in_flight, ..Options::default() };
    let console = Console::open(&link, leak(ConsoleStorage::<64, 64>::NEW), options).unwrap();
    (link, rng, console)
}

/// A board whose firmware and PMM have met.
fn running() -> (TestBoard, TestLink, TestRng, TestConsole, Pmm) {
    let board = TestBoard::new();
    let (link, rng, console) = open(&board, InFlight::Resend);
    let mut pmm = Pmm::start(&board);
    settle(&mut pmm, &link);
    (board, link, rng, console, pmm)
}

fn entropy_comes(rng: &mut Rng<'_, TestBoard>, pmm: &mut Pmm) {
    assert!(rng.fill(&mut [0; 4]).is_err());
    pmm.look();
    assert_eq!(rng.fill(&mut [0; 4]), Ok(4));
}

/// Both sides look in turn until everything runs.
fn settle(pmm: &mut Pmm, link: &TestLink) {
    for _ in 0..4 {
        link.poll();
        pmm.look();
    }
    link.poll();
}

#[test]
fn calls_answer_link_down_until_a_pmm_is_there() {
    let board = TestBoard::new();
    let (link, mut rng, mut console) = open(&board, InFlight::Resend);
    let mut bytes = [0; 8];
    assert_eq!(rng.fill(&mut bytes), Err(FillError::LinkDown));
    assert_eq!(console.read(&mut bytes), Err(NotNow::LinkDown));
    assert_eq!(console.write(b"x"), Err(NotNow::LinkDown));
    assert_eq!(console.size(), Err(NotNow::LinkDown));
    assert!(console.claim(1).is_err());
    assert_eq!(link.state(), LinkState::Down);
    assert!(!link.prepare_sleep(), "nothing to do without a PMM");
    assert_eq!((link.next_deadline(), board.rings()), (None, 0), "nobody to wake either");
    let mut pmm = Pmm::start(&board);
    assert!(link.prepare_sleep(), "a PMM has come");
    settle(&mut pmm, &link);
    assert_eq!(link.state(), LinkState::Up);
    assert_eq!(rng.status(), Some(DeviceStatus::Running));
    assert!(pmm.heard());
}

#[test]
fn random_bytes_come_after_they_were_asked_for() {
    let (_board, _link, mut rng, _console, mut pmm) = running();
    let mut bytes = [0; 32];
    assert_eq!(rng.fill(&mut []), Ok(0));
    assert_eq!(rng.fill(&mut bytes), Err(FillError::WouldBlock));
    assert_eq!(rng.fill(&mut bytes), Err(FillError::WouldBlock), "one request is enough");
    pmm.look();
    assert_eq!(rng.fill(&mut bytes[..20]), Ok(20));
    assert_eq!(rng.fill(&mut bytes[20..]), Ok(12));
    assert!(bytes.iter().copied().eq(1..=32));
    // More than all blocks hold comes in parts, and fewer than asked are fewer.
    let mut many = [0; 4000];
    assert_eq!(rng.fill(&mut many), Err(FillError::WouldBlock));
    pmm.look();
    assert_eq!(rng.fill(&mut many), Ok(0x800));
    pmm.most = 3;
    assert_eq!(rng.fill(&mut bytes), Err(FillError::WouldBlock));
    pmm.look();
    bytes = [0; 32];
    assert_eq!(rng.fill(&mut bytes), Ok(3));
    assert!(bytes[..3].iter().all(|b| *b != 0) && bytes[3..].iter().all(|b| *b == 0));
}

#[test]
fn the_console_carries_bytes_both_ways_and_says_what_is_acknowledged() {
    let board = TestBoard::new();
    let (link, _rng, mut console) = open(&board, InFlight::Resend);
    let mut pmm = Pmm::start(&board);
    pmm.set_size(80, 25);
    settle(&mut pmm, &link);
    assert_eq!(console.size(), Ok(Some((80, 25))));
    assert_eq!(console.write(&[]), Ok(0));
    assert_eq!(console.write(b"hello"), Ok(5));
    assert_eq!(console.flush(), Err(NotNow::WouldBlock));
    assert_eq!(console.acknowledged(), Some(0));
    pmm.look();
    assert_eq!(console.flush(), Ok(()));
    assert_eq!(console.acknowledged(), Some(5));
    assert_eq!(pmm.output, b"hello");
    pmm.input.extend(b"a line of input\n");
    pmm.look();
    let mut bytes = [0; 64];
    assert_eq!(console.read(&mut bytes[..2]), Ok(2));
    assert_eq!(console.read_ready(), Ok(true));
    assert_eq!(console.read(&mut bytes[2..]), Ok(14));
    assert_eq!(&bytes[..16], b"a line of input\n");
    assert_eq!(console.read(&mut bytes), Err(NotNow::WouldBlock));
}

#[test]
fn megabytes_pass_in_both_directions_in_order() {
    let (_board, _link, _rng, mut console, mut pmm) = running();
    let data: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    pmm.input.extend(&data);
    let (mut sent, mut received) = (0, Vec::new());
    let mut buffer = [0; 1000];
    for _ in 0..10_000 {
        sent += console.write(&data[sent..data.len().min(sent + 7777)]).unwrap_or(0);
        while let Ok(n @ 1..) = console.read(&mut buffer) {
            received.extend_from_slice(&buffer[..n]);
        }
        pmm.look();
    }
    assert!(pmm.output == data && received == data);
}

#[test]
fn a_claim_is_written_in_place_and_sent_only_when_committed() {
    use std::fmt::Write;
    let (_board, _link, _rng, mut console, mut pmm) = running();
    let mut claim = console.claim(1_000_000).unwrap();
    assert_eq!(claim.room(), 256);
    write!(claim, "the answer is {}", 42).unwrap();
    assert_eq!(claim.write_at(0, b"T"), Ok(true));
    assert_eq!(claim.write_at(250, &[0; 7]), Ok(false));
    assert_eq!(claim.len(), 16);
    pmm.look();
    assert!(pmm.output.is_empty());
    assert_eq!(claim.commit(), Ok(16));
    for _ in 0..200 {
        let claim = console.claim(8);
        assert!(claim.is_ok(), "a claim that is not committed costs nothing");
    }
    let mut claim = console.claim(4).unwrap();
    assert_eq!(claim.put(b"123456"), Ok(4));
    assert_eq!(claim.commit(), Ok(4));
    assert_eq!(console.claim(4).unwrap().commit(), Ok(0));
    pmm.look();
    assert_eq!(pmm.output, b"The answer is 421234");
}

#[test]
fn a_full_queue_would_block_and_nothing_is_lost() {
    let (_board, _link, _rng, mut console, mut pmm) = running();
    pmm.patience = 0;
    let data = [b'x'; 100_000];
    let n = console.write(&data).unwrap();
    assert_eq!(n, 64 * 256);
    assert_eq!(console.write(&data), Err(NotNow::WouldBlock));
    assert_eq!(console.write_ready(), Ok(false));
    assert!(console.claim(1).is_err());
    pmm.patience = 3;
    pmm.look();
    assert_eq!(console.write(&data), Ok(3 * 256));
    pmm.patience = u32::MAX;
    pmm.look();
    assert_eq!(pmm.output.len(), n + 3 * 256);
}

const LINES: u32 = 12;

/// One PMM dies at its `life`-th step, the next one lives. Lines flow, and every one arrives, in order.
fn survive(life: u32, in_flight: InFlight) -> (bool, Vec<String>, u64) {
    let board = TestBoard::new();
    let (link, mut rng, mut console) = open(&board, in_flight);
    let mut pmm = Pmm::start_for(&board, &DEVICES, life);
    let mut died = pmm.is_none();
    let (mut output, mut written, mut random) = (Vec::new(), 0u32, 0);
    let mut pending = Vec::new();
    for round in 0..150 {
        link.poll();
        if pending.is_empty() && written < LINES {
            pending = format!("line {written}\n").into_bytes();
            written += 1;
        }
        if console.write(&pending).is_ok_and(|n| n == pending.len()) {
            pending.clear();
        }
        let mut bytes = [0; 8];
        random += rng.fill(&mut bytes).unwrap_or(0);
        match &mut pmm {
            Some(pmm) if pmm.alive() => pmm.look(),
            dead => {
                died = true;
                output.append(
                    &mut dead.as_mut().map(|pmm| std::mem::take(&mut pmm.output)).unwrap_or_default(),
                );
                // Nobody for a while, then the next one.
                if round % 3 == 0 {
                    *dead = Pmm::start_for(&board, &DEVICES, u32::MAX);
                }
            }
        }
    }
    output.append(&mut pmm.unwrap().output);
    assert!(random >= 40, "entropy flows again: {random}");
    assert_eq!(written, LINES);
    assert_eq!(console.flush(), Ok(()));
    let lines = String::from_utf8(output).unwrap().lines().map(String::from).collect();
    (died, lines, console.acknowledged().unwrap())
}

#[test]
fn a_pmm_may_die_at_any_step_and_what_was_in_flight_is_sent_again_in_order() {
    let total: usize = (0..LINES).map(|i| format!("line {i}\n").len()).sum();
    for life in 1.. {
        let (died, lines, acknowledged) = survive(life, InFlight::Resend);
        let mut once = lines.clone();
        once.dedup();
        let numbers: Vec<u32> = once.iter().map(|line| line[5..].parse().unwrap()).collect();
        let mut next = 0;
        for number in numbers {
            assert!(number <= next, "life {life}: line {next} is missing: {lines:?}");
            next = next.max(number + 1);
        }
        assert_eq!(next, LINES, "life {life}");
        assert_eq!(acknowledged as usize, total, "life {life}: each counts once");
        if !died {
            assert!(life > 100);
            break;
        }
    }
}

#[test]
fn a_pmm_may_die_at_any_step_and_what_was_in_flight_is_dropped_and_counted() {
    for life in 1.. {
        let (died, lines, acknowledged) = survive(life, InFlight::Drop);
        let numbers: Vec<u32> = lines.iter().map(|line| line[5..].parse().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "life {life}: nothing twice: {lines:?}");
        let arrived: usize = lines.iter().map(|line| line.len() + 1).sum();
        assert!(acknowledged as usize <= arrived, "life {life}: what is acknowledged has arrived");
        if !died {
            break;
        }
    }
}

#[test]
fn what_was_received_before_the_pmm_died_is_read_after() {
    let (board, link, _rng, mut console, mut pmm) = running();
    pmm.input.extend(b"before");
    pmm.look();
    drop(pmm);
    let mut pmm = Pmm::start(&board);
    let mut bytes = [0; 16];
    assert_eq!(console.read(&mut bytes), Ok(6), "harvested before the hello");
    settle(&mut pmm, &link);
    pmm.input.extend(b"after");
    pmm.look();
    assert_eq!(console.read(&mut bytes), Ok(5));
    let counters = link.counters();
    assert_eq!((counters.hellos, counters.sessions, counters.lost), (2, 2, 1));
}

#[test]
fn nothing_is_handed_to_a_pmm_that_has_ended_and_what_it_has_completed_still_counts() {
    let (board, link, mut rng, mut console, mut pmm) = running();
    let m = *board.mem();
    pmm.patience = 0;
    console.write(b"sent").unwrap();
    let used = pmm.place(DeviceId::CONSOLE, 0).used + 2;
    let before = m.read16(used);
    pmm.input.extend(b"late");
    pmm.look();
    let after = m.read16(used);
    m.write16(used, before);
    // As a PMM ends that was told to.
    m.write32(reg::PMM_EPOCH, m.read32(reg::PMM_EPOCH) + 1);
    assert_eq!(console.write(b"lost"), Err(NotNow::LinkDown));
    assert_eq!(rng.fill(&mut [0; 4]), Err(FillError::LinkDown));
    assert_eq!((link.state(), console.status()), (LinkState::Down, Some(DeviceStatus::Down)));
    assert!(!link.prepare_sleep(), "there is nothing to do before the next doorbell");
    // Seen late, by a processor that shares no cache.
    m.write16(used, after);
    let mut bytes = [0; 8];
    assert_eq!(console.read(&mut bytes), Err(NotNow::LinkDown));
    let mut pmm = Pmm::start(&board);
    assert_eq!(console.read(&mut bytes), Ok(4), "harvested before the hello");
    settle(&mut pmm, &link);
    assert_eq!((&bytes[..4], &pmm.output[..]), (&b"late"[..], &b"sent"[..]));
}

#[test]
fn a_firmware_that_reboots_says_hello_with_another_epoch() {
    let board = TestBoard::new();
    let mut pmm = Pmm::start(&board);
    let mut before = 0;
    for round in 0..20 {
        let (link, mut rng, mut console) = open(&board.reboot(), InFlight::Resend);
        settle(&mut pmm, &link);
        assert_eq!(link.state(), LinkState::Up, "round {round}");
        assert_ne!(link.epochs().1, before);
        before = link.epochs().1;
        console.write(format!("boot {round}\n").as_bytes()).unwrap();
        assert!(rng.fill(&mut [0; 4]).is_err());
        pmm.look();
        assert_eq!(rng.fill(&mut [0; 4]), Ok(4));
    }
    assert_eq!(pmm.output.iter().filter(|b| **b == b'\n').count(), 20);
}

#[test]
fn a_pmm_that_comes_back_with_another_layout_is_driven_as_well() {
    let (board, link, mut rng, mut console, mut pmm) = running();
    pmm.patience = 0;
    console.write(b"lost with the old pool").unwrap();
    let mut claim = console.claim(8).unwrap();
    claim.put(b"gone").unwrap();
    for (queue, pool) in [(8, 0x400), (32, 0x10000), (64, 0x8000)] {
        let console_spec = DeviceSpec { queues: [queue, queue, 0, 0], pool, ..DeviceSpec::CONSOLE };
        let mut pmm = Pmm::start_for(&board, &[console_spec, DeviceSpec::RNG], u32::MAX).unwrap();
        settle(&mut pmm, &link);
        assert_eq!(claim.put(b"x"), Err(NotNow::LinkDown));
        assert_eq!(rng.status(), Some(DeviceStatus::Running));
        assert!(rng.fill(&mut [0; 4]).is_err());
        pmm.look();
        assert_eq!(rng.fill(&mut [0; 4]), Ok(4));
        pmm.input.extend(b"in");
        pmm.look();
        assert!(pmm.output.is_empty());
    }
    assert_eq!(claim.commit(), Err(NotNow::LinkDown));
    assert_eq!(link.counters().dropped, 3, "one that was sent, two that were received");
    let mut bytes = [0; 8];
    assert_eq!(console.read(&mut bytes), Ok(2));
}

#[test]
fn what_does_not_fit_is_said_and_costs_the_others_nothing() {
    let board = TestBoard::new();
    let (link, mut rng, mut console) = open(&board, InFlight::Resend);
    let long = DeviceSpec { queues: [128, 64, 0, 0], ..DeviceSpec::CONSOLE };
    let mut pmm = Pmm::start_for(&board, &[long, DeviceSpec::RNG], u32::MAX).unwrap();
    settle(&mut pmm, &link);
    let unfit = Unfit::QueueTooLong { entries: 128, storage: 64 };
    assert_eq!(console.status(), Some(DeviceStatus::Unfit(unfit)));
    assert_eq!(console.write(b"x"), Err(NotNow::LinkDown));
    assert_eq!(rng.status(), Some(DeviceStatus::Running));
    assert!(!link.prepare_sleep() && pmm.heard());
    for (spec, unfit) in [
        (DeviceSpec { queues: [64, 0, 0, 0], ..DeviceSpec::CONSOLE }, Unfit::QueuesMissing),
        (DeviceSpec { pool: 64, ..DeviceSpec::CONSOLE }, Unfit::PoolTooSmall { bytes: 0 }),
    ] {
        let mut pmm = Pmm::start_for(&board, &[spec, DeviceSpec::RNG], u32::MAX).unwrap();
        settle(&mut pmm, &link);
        assert_eq!(console.status(), Some(DeviceStatus::Unfit(unfit)));
    }
    let mut pmm = Pmm::start_for(&board, &[DeviceSpec::RNG], u32::MAX).unwrap();
    settle(&mut pmm, &link);
    assert_eq!(console.status(), Some(DeviceStatus::Missing));
    entropy_comes(&mut rng, &mut pmm);
}

#[test]
fn a_faulty_device_is_reset_with_growing_pauses_and_the_other_one_runs_on() {
    let (board, link, mut rng, mut console, mut pmm) = running();
    pmm.patience = 0;
    console.write(b"survives").unwrap();
    let mut pause = 1_000;
    for _ in 0..5 {
        pmm.fail(DeviceId::CONSOLE);
        settle(&mut pmm, &link);
        assert_eq!(console.status(), Some(DeviceStatus::Resetting(Fault::NeedsReset)));
        assert_eq!(console.write(b"x"), Err(NotNow::LinkDown));
        assert_eq!(link.next_deadline(), Some(board.now().plus(pause)));
        board.pass(pause - 1);
        settle(&mut pmm, &link);
        assert!(console.write(b"x").is_err());
        board.pass(1);
        settle(&mut pmm, &link);
        assert_eq!(console.status(), Some(DeviceStatus::Running));
        pause *= 2;
    }
    pmm.patience = 10;
    settle(&mut pmm, &link);
    assert_eq!(pmm.output, b"survives");
    entropy_comes(&mut rng, &mut pmm);
    assert_eq!(link.counters().faults, 5);
}

#[test]
fn refused_features_are_no_storm() {
    let board = TestBoard::new();
    let (link, mut rng, _console) = open(&board, InFlight::Resend);
    let mut pmm = Pmm::start(&board);
    pmm.refuse = true;
    let mut starts = 0;
    for _ in 0..1_000 {
        link.poll();
        pmm.look();
        board.pass(1_000);
        starts = link.counters().starts;
    }
    assert!(starts < 30, "{starts} set-ups in a second");
    pmm.refuse = false;
    for _ in 0..1_000 {
        board.pass(10_000);
        link.poll();
        pmm.look();
    }
    entropy_comes(&mut rng, &mut pmm);
}

#[test]
fn sleep_is_safe_only_after_everything_was_looked_at() {
    let (board, link, mut rng, mut console, mut pmm) = running();
    pmm.look();
    assert_eq!(link.next_deadline(), None, "idle: nothing but a doorbell wakes");
    // A doorbell between the look and the sleep.
    link.rang();
    assert_eq!(link.next_deadline(), Some(Instant::UNKNOWN));
    link.poll();
    assert_eq!(link.next_deadline(), None);
    // A completion, its doorbell lost.
    pmm.input.extend(b"x");
    pmm.look();
    assert!(!pmm.heard());
    assert!(link.prepare_sleep());
    link.poll();
    assert!(
        pmm.heard() && !link.prepare_sleep(),
        "what is ready and not read does not keep the firmware awake"
    );
    assert_eq!(console.read(&mut [0; 4]), Ok(1));
    // What is asked for has a deadline, what waits for input has none.
    pmm.patience = 0;
    let _ = rng.fill(&mut [0; 4]);
    link.poll();
    assert_eq!(link.next_deadline(), Some(board.now().plus(1_000_000)));
}

#[test]
fn a_caller_that_was_turned_away_is_told_what_came_while_another_call_was_made() {
    let board = TestBoard::new();
    let (link, mut rng, mut console) = open(&board, InFlight::Resend);
    let mut pmm = Pmm::start(&board);
    assert_eq!(console.write(b"early"), Err(NotNow::LinkDown));
    settle(&mut pmm, &link);
    pmm.look();
    assert!(link.prepare_sleep(), "the console runs now");
    assert!(!link.prepare_sleep(), "said once");
    // Input that a flush takes out of the ring.
    assert_eq!(console.read(&mut [0; 4]), Err(NotNow::WouldBlock));
    pmm.input.extend(b"x");
    pmm.look();
    rng.poll();
    assert_eq!(console.flush(), Ok(()));
    assert!(link.prepare_sleep(), "there is something to read");
    assert_eq!(console.read(&mut [0; 4]), Ok(1));
    assert!(!link.prepare_sleep(), "its reader knows");
    // An acknowledgement that a read takes out of the ring.
    assert_eq!(console.write(b"y"), Ok(1));
    assert_eq!(console.flush(), Err(NotNow::WouldBlock));
    pmm.look();
    rng.poll();
    assert_eq!(console.read(&mut [0; 4]), Err(NotNow::WouldBlock));
    assert!(link.prepare_sleep(), "the flush is over");
    assert_eq!(console.flush(), Ok(()));
}

#[test]
fn the_pmm_is_told_that_a_bell_was_heard_only_when_every_task_that_sleeps_has_looked() {
    let (board, _link, mut rng, mut console, mut pmm) = running();
    // Both tasks go to sleep; a bell may be lost for either.
    let _ = (rng.next_deadline(), console.next_deadline());
    pmm.half.ring(&board.mem);
    rng.poll();
    assert!(!pmm.heard(), "the console's task may still sleep");
    console.poll();
    assert!(pmm.heard());
    let _ = (rng.next_deadline(), console.next_deadline());
    pmm.half.ring(&board.mem);
    console.poll();
    console.next_deadline();
    pmm.half.ring(&board.mem);
    rng.poll();
    assert!(!pmm.heard(), "two bells, one task each");
    console.poll();
    assert!(pmm.heard());
}

#[test]
fn what_the_pmm_answers_during_a_look_is_not_taken_for_looked_at() {
    let board = TestBoard::new();
    let link = attach(&board);
    let mut rng = Rng::open(&link, leak(RngStorage::<8>::NEW)).unwrap();
    let mut pmm = Pmm::start(&board);
    rng.poll();
    pmm.look();
    // Adopted. From here on the PMM answers while it is rung, and its own doorbells are lost.
    let pmm = Mutex::new(pmm);
    let answer = move || pmm.lock().unwrap().look();
    assert!(board.between.answer.set(Box::new(answer)).is_ok());
    let mut looks = 0;
    while rng.prepare_sleep() {
        looks += 1;
        assert!(looks < 20, "it never comes to rest");
        rng.poll();
    }
    assert_eq!(rng.status(), Some(DeviceStatus::Running), "it sleeps too soon");
}

#[test]
fn a_task_that_is_busy_with_something_else_does_not_make_the_guest_look_dead() {
    let (board, _link, mut rng, mut console, mut pmm) = running();
    // The entropy's task has what it wanted and waits for somebody else; it will look before it sleeps on the link.
    rng.poll();
    for round in 0..20 {
        console.next_deadline();
        pmm.half.ring(&board.mem);
        console.poll();
        assert!(pmm.heard(), "round {round}");
    }
    // What came meanwhile is found then.
    pmm.half.ring(&board.mem);
    assert_eq!(rng.next_deadline(), Some(hvl_frontend::Instant::UNKNOWN), "it looks instead of sleeping");
}

#[test]
fn what_the_pmm_handed_over_before_this_side_saw_it_start_is_not_lost_with_it() {
    let board = TestBoard::new();
    let (link, _rng, mut console) = open(&board, InFlight::Resend);
    let mut pmm = Pmm::start(&board);
    link.poll();
    pmm.look();
    // Adopted: the devices are set up, and the PMM starts them and serves the console at once.
    link.poll();
    pmm.input.extend(b"early");
    pmm.look();
    pmm.look();
    drop(pmm);
    let mut pmm = Pmm::start(&board);
    let mut bytes = [0; 16];
    assert_eq!(console.read(&mut bytes), Ok(5), "{:?}", console.status());
    settle(&mut pmm, &link);
}

#[test]
fn each_handle_brings_the_link_up_by_itself() {
    let board = TestBoard::new();
    let (link, mut rng, mut console) = open(&board, InFlight::Resend);
    let mut pmm = Pmm::start(&board);
    for _ in 0..4 {
        rng.poll();
        pmm.look();
    }
    entropy_comes(&mut rng, &mut pmm);
    assert_eq!(console.status(), Some(DeviceStatus::Down), "nobody has looked at it");
    for _ in 0..3 {
        console.poll();
        pmm.look();
    }
    assert_eq!(console.write(b"here"), Ok(4));
    drop(pmm);
    let mut pmm = Pmm::start(&board);
    for _ in 0..4 {
        rng.poll();
        pmm.look();
    }
    assert_eq!((link.state(), rng.status()), (LinkState::Up, Some(DeviceStatus::Running)));
    for _ in 0..3 {
        console.poll();
        pmm.look();
    }
    assert_eq!(pmm.output, b"here");
}

#[test]
fn a_kick_that_was_lost_is_made_again_after_a_second_and_then_less_often() {
    let (board, link, mut rng, _console, mut pmm) = running();
    pmm.look();
    // A PMM that poisons its event index: the request is not rung for.
    let used = pmm.place(DeviceId::RNG, 0).used;
    board.mem.write16(used + 4 + 8 * 8, 0x8000);
    let before = board.rings();
    let _ = rng.fill(&mut [0; 4]);
    assert_eq!(board.rings(), before);
    link.poll();
    for seconds in [1, 2, 4, 8, 16, 16] {
        let rekicks = link.counters().rekicks;
        let deadline = link.next_deadline().unwrap();
        assert_eq!(deadline, board.now().plus(seconds * 1_000_000));
        board.pass(seconds * 1_000_000 - 1);
        link.poll();
        assert_eq!(link.counters().rekicks, rekicks);
        board.pass(1);
        link.poll();
        assert_eq!(link.counters().rekicks, rekicks + 1);
    }
    pmm.look();
    assert_eq!(rng.fill(&mut [0; 4]), Ok(4));
    link.poll();
    assert_eq!(link.next_deadline(), None);
}

#[test]
fn last_words_reach_the_pmm() {
    let board = TestBoard::new();
    let (link, _rng, _console) = open(&board, InFlight::Resend);
    link.leave_last_words(b"nobody hears this");
    let mut pmm = Pmm::start(&board);
    settle(&mut pmm, &link);
    let rings = board.rings();
    link.leave_last_words(b"divided by zero");
    assert_eq!(board.rings(), rings + 1, "and it is told at once");
    let mut into = [0; 256];
    let n = block::read_panic_text(&board.mem, pmm.layout.panic_text(), &mut into);
    assert_eq!(&into[..n], b"divided by zero");
}

#[test]
fn storage_belongs_to_one_link_and_a_device_is_open_once() {
    let board = TestBoard::new();
    let storage = leak(LinkStorage::NEW);
    let link = Link::attach(storage, board.clone()).unwrap();
    assert_eq!(Link::attach(storage, board.clone()).map(|_| ()), Err(AttachError::InUse));
    Rng::open(&link, leak(RngStorage::<8>::NEW)).unwrap();
    assert_eq!(Rng::open(&link, leak(RngStorage::<8>::NEW)).map(|_| ()), Err(OpenError::InUse));
    for ordinal in 0..7 {
        let options = Options { ordinal, ..Options::default() };
        Console::open(&link, leak(ConsoleStorage::<2, 2>::NEW), options).unwrap();
    }
    let options = Options { ordinal: 7, ..Options::default() };
    let one_more = Console::open(&link, leak(ConsoleStorage::<2, 2>::NEW), options);
    assert_eq!(one_more.map(|_| ()), Err(OpenError::TooMany));
    let mut small = board.clone();
    small.region.len += 4096;
    let refused = Link::attach(leak(LinkStorage::NEW), small);
    assert_eq!(refused.map(|_| ()), Err(AttachError::TooSmall { bytes: common::LEN }));
}

#[test]
fn storage_on_the_stack_works_too() {
    let board = TestBoard::new();
    let (mut rng_storage, storage) = (RngStorage::<8>::NEW, LinkStorage::NEW);
    let link = Link::attach(&storage, board.clone()).unwrap();
    let mut rng = Rng::open(&link, &mut rng_storage).unwrap();
    let mut pmm = Pmm::start(&board);
    for _ in 0..4 {
        link.poll();
        pmm.look();
    }
    entropy_comes(&mut rng, &mut pmm);
}

#[test]
fn a_firmware_for_another_layout_or_address_refuses() {
    use hvl_frontend::Refusal;
    let board = TestBoard::new();
    let layout = Layout::place(&DEVICES, board.mem.len()).unwrap();
    let mut pmm = Pmm::start(&board);
    let expecting = |identity| {
        let link = Link::attach_expecting(leak(LinkStorage::NEW), board.clone(), identity).unwrap();
        let _rng = Rng::open(&link, leak(RngStorage::<8>::NEW)).unwrap();
        link
    };
    let link = expecting(layout.identity());
    settle(&mut pmm, &link);
    assert_eq!(link.state(), LinkState::Up);
    let link = expecting(7);
    settle(&mut pmm, &link);
    assert_eq!(link.state(), LinkState::Refused(Refusal::Identity { alleged: layout.identity() }));
    assert!(!link.prepare_sleep());
    let mut elsewhere = board.clone();
    elsewhere.region.base = 0x2000_0000;
    let link = Link::attach(leak(LinkStorage::NEW), elsewhere).unwrap();
    settle(&mut pmm, &link);
    assert_eq!(link.state(), LinkState::Refused(Refusal::Base { alleged: BASE }));
    let mut smaller = board.clone();
    smaller.region.len = 0x1_0000;
    let link = Link::attach(leak(LinkStorage::NEW), smaller).unwrap();
    settle(&mut pmm, &link);
    assert_eq!(link.state(), LinkState::Refused(Refusal::Length { alleged: common::LEN }));
}

#[test]
fn a_board_without_a_clock_still_recovers_from_faults() {
    let board = TestBoard::new();
    board.between.now.store(0, std::sync::atomic::Ordering::SeqCst);
    let (link, mut rng, _console) = open(&board, InFlight::Resend);
    let mut pmm = Pmm::start(&board);
    settle(&mut pmm, &link);
    for _ in 0..3 {
        pmm.fail(DeviceId::RNG);
        for _ in 0..40 {
            settle(&mut pmm, &link);
        }
        assert_eq!(rng.status(), Some(DeviceStatus::Running));
    }
    let _ = rng.fill(&mut [0; 4]);
    assert_eq!(link.next_deadline(), None);
    assert_eq!(link.board().region().base, BASE);
}
