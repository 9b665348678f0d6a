//! Devices: entropy and console requests that are greedy, empty, or never end.

use hvl_shared_abi::ring::Segment;
use hvl_shared_abi::wire::rng::MAX_FILL;
use hvl_shared_abi::{DeviceSpec, Features, Mem};
use hvl_test_kit::guest::RNG;

use crate::{OTHER, Outcome, Scenario, Stage, canary};

/// The table's rows.
pub fn scenarios() -> Vec<Scenario> {
    let row = |name, act: fn(&mut Stage)| Scenario { name, act, outcome: Outcome::Unharmed };
    vec![
        row("entropy: the largest request there can be", largest_request),
        row("entropy: a flood of requests", flood),
        row("entropy: one request of eight buffers", eight_buffers),
        row("console: an output flood against a stuck terminal", stuck_terminal),
        row("console: a total beyond a limit", total_beyond_a_limit),
        row("console: a flood leaves the others their turn", fair_flood),
        row("console: control bytes", control_bytes),
        row("console: input with no buffer posted", no_buffer),
        row("console: a one-byte receive buffer", one_byte),
    ]
}

fn largest_request(stage: &mut Stage) {
    let pool = stage.guest.place(RNG).pool;
    assert!(pool.len <= DeviceSpec::RNG.pool);
    let segments = [Segment::writable(pool.at, pool.len); 4];
    let guard = canary(stage);
    stage.ring.add(&stage.pmm.m, &segments).expect("room");
    stage.ring.publish(&stage.pmm.m);
    stage.pmm.service();
    let used = stage.ring.pop(&stage.pmm.m).expect("a sound ring").expect("a completion");
    assert_eq!(used.written, MAX_FILL.min(4 * pool.len), "capped");
    guard.check(stage);
}

fn flood(stage: &mut Stage) {
    let pool = stage.guest.place(RNG).pool;
    for round in 0..10_000 {
        while stage.ring.add(&stage.pmm.m, &[Segment::writable(pool.at, 64)]).is_ok() {}
        stage.ring.publish(&stage.pmm.m);
        stage.pmm.service();
        while stage.ring.pop(&stage.pmm.m).expect("a sound ring").is_some() {}
        assert_eq!(stage.ring.in_flight(), 0, "round {round}: all are answered");
    }
}

fn eight_buffers(stage: &mut Stage) {
    let pool = stage.guest.place(RNG).pool;
    let segments: Vec<_> = (0..8).map(|i| Segment::writable(pool.at + 64 * i, 1 + i)).collect();
    stage.ring.add(&stage.pmm.m, &segments).expect("room");
    stage.ring.publish(&stage.pmm.m);
    stage.pmm.service();
    let used = stage.ring.pop(&stage.pmm.m).expect("a sound ring").expect("a completion");
    assert_eq!(used.written, 36);
}

fn stuck_terminal(stage: &mut Stage) {
    let features = Features::VERSION_1;
    let mut ring = stage.guest.ring(OTHER, 1, features);
    stage.guest.start(&mut stage.pmm, OTHER, features);
    let pool = stage.guest.place(OTHER).pool;
    stage.pmm.m.copy_out(pool.at, b"0123456789abcdef");
    stage.pmm.terminal.stick(true);
    while ring.add(&stage.pmm.m, &[Segment::readable(pool.at, 16)]).is_ok() {}
    ring.publish(&stage.pmm.m);
    for _ in 0..1000 {
        stage.pmm.service();
        // The neighbour does not notice.
        stage.guest.draw_from(&mut stage.pmm, &mut stage.ring);
    }
    assert_eq!(ring.pop(&stage.pmm.m), Ok(None), "used means that the terminal has it");
    assert_eq!(stage.pmm.device(OTHER).in_flight[1], 1, "and one request is held, no more");
    stage.pmm.terminal.stick(false);
    stage.pmm.service();
    let mut count = 0;
    while ring.pop(&stage.pmm.m).expect("a sound ring").is_some() {
        count += 1;
    }
    assert_eq!(count, 64);
    assert_eq!(stage.pmm.terminal.sent(), b"0123456789abcdef".repeat(64));
    stage.guest.reset(&mut stage.pmm, OTHER);
}

/// A chain may name the same stretch many times, so its length is bounded by nothing but this check.
fn total_beyond_a_limit(stage: &mut Stage) {
    let features = Features::VERSION_1;
    let place = stage.guest.place(OTHER);
    let queue = place.queues[1];
    stage.guest.ring(OTHER, 1, features);
    stage.guest.start(&mut stage.pmm, OTHER, features);
    let m = &stage.pmm.m;
    let address = hvl_test_kit::BASE + u64::from(place.pool.at);
    for index in 0..16u32 {
        let (at, flags) = (queue.desc + 16 * index, u32::from(index < 15));
        m.write32(at, address as u32);
        m.write32(at + 4, (address >> 32) as u32);
        m.write32(at + 8, place.pool.len);
        m.write32(at + 12, flags | (index + 1) << 16);
    }
    m.publish16(queue.avail + 2, 1);
    stage.pmm.service();
    assert_eq!(stage.pmm.device(OTHER).queues[1].malformed, 1, "16 times the pool is refused and counted");
    assert!(stage.pmm.terminal.sent().is_empty());
    assert_eq!(stage.pmm.m.read16(queue.used + 2), 1, "and completed");
    stage.guest.reset(&mut stage.pmm, OTHER);
}

/// However much one call finds, it moves a bounded number of bytes.
fn fair_flood(stage: &mut Stage) {
    let features = Features::VERSION_1;
    let mut ring = stage.guest.ring(OTHER, 1, features);
    stage.guest.start(&mut stage.pmm, OTHER, features);
    let pool = stage.guest.place(OTHER).pool;
    while ring.add(&stage.pmm.m, &[Segment::readable(pool.at, pool.len)]).is_ok() {}
    ring.publish(&stage.pmm.m);
    let before = stage.pmm.terminal.sent().len();
    let more = stage.pmm.service_once();
    let moved = stage.pmm.terminal.sent().len() - before;
    assert!(more && moved <= 8 * 65 * 1024, "{moved} bytes in one service");
    stage.pmm.service();
    assert_eq!(stage.pmm.terminal.sent().len() - before, 64 * pool.len as usize);
    stage.guest.reset(&mut stage.pmm, OTHER);
}

fn control_bytes(stage: &mut Stage) {
    let bytes: Vec<u8> = (0..=255).collect();
    let features = Features::VERSION_1;
    let mut ring = stage.guest.ring(OTHER, 1, features);
    stage.guest.start(&mut stage.pmm, OTHER, features);
    let pool = stage.guest.place(OTHER).pool;
    stage.pmm.m.copy_out(pool.at, &bytes);
    ring.add(&stage.pmm.m, &[Segment::readable(pool.at, 256)]).expect("room");
    ring.publish(&stage.pmm.m);
    stage.pmm.service();
    assert_eq!(stage.pmm.terminal.sent(), bytes, "a console is transparent");
    stage.guest.reset(&mut stage.pmm, OTHER);
}

fn no_buffer(stage: &mut Stage) {
    stage.pmm.terminal.type_in(&[b'x'; 100_000]);
    let _ring = stage.guest.ring(OTHER, 0, Features::VERSION_1);
    stage.guest.start(&mut stage.pmm, OTHER, Features::VERSION_1);
    for _ in 0..100 {
        stage.pmm.service();
        stage.guest.draw_from(&mut stage.pmm, &mut stage.ring);
    }
    stage.guest.reset(&mut stage.pmm, OTHER);
}

fn one_byte(stage: &mut Stage) {
    let features = Features::VERSION_1;
    let mut ring = stage.guest.ring(OTHER, 0, features);
    stage.guest.start(&mut stage.pmm, OTHER, features);
    let pool = stage.guest.place(OTHER).pool;
    stage.pmm.terminal.type_in(b"typed");
    let mut got = Vec::new();
    for _ in 0..5 {
        ring.add(&stage.pmm.m, &[Segment::writable(pool.at, 1)]).expect("room");
        ring.publish(&stage.pmm.m);
        stage.pmm.service();
        assert_eq!(ring.pop(&stage.pmm.m).expect("a sound ring").expect("a completion").written, 1);
        got.push(stage.pmm.m.read8(pool.at));
    }
    assert_eq!(got, b"typed");
    stage.guest.reset(&mut stage.pmm, OTHER);
}
