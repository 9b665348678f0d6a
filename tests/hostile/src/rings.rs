//! Rings: indices, heads, chains and buffers that lie.

use hvl_shared_abi::header::Extent;
use hvl_shared_abi::layout::QueuePlace;
use hvl_shared_abi::{Features, Mem};
use hvl_test_kit::guest::RNG;
use hvl_test_kit::{BASE, LEN};

use crate::{OTHER, Outcome, Scenario, Stage, canary};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The table's rows.
pub fn scenarios() -> Vec<Scenario> {
    use Outcome::{Broken, Unharmed};
    let row = |name, act: fn(&mut Stage), outcome| Scenario { name, act, outcome };
    vec![
        row("available index beyond the size", |s| jump(s, 9), Broken),
        row("available index far beyond the size", |s| jump(s, 0x8000), Broken),
        row("available index backwards", |s| jump(s, 0xffff), Broken),
        row("available index at every wrap position", wraps, Unharmed),
        row("head out of range", |s| head(s, 8), Broken),
        row("head 65535", |s| head(s, 0xffff), Broken),
        row("a head twice in one batch", head_twice, Unharmed),
        row("a descriptor that is its own next", |s| chain(s, &[(0x40, 8, WRITE | NEXT, 0)]), Unharmed),
        row(
            "a loop of two",
            |s| chain(s, &[(0x40, 8, WRITE | NEXT, 1), (0x80, 8, WRITE | NEXT, 0)]),
            Unharmed,
        ),
        row("a chain longer than the queue", long_chain, Unharmed),
        row("next out of range", |s| chain(s, &[(0x40, 8, WRITE | NEXT, 8)]), Unharmed),
        row("next 65535", |s| chain(s, &[(0x40, 8, WRITE | NEXT, 0xffff)]), Unharmed),
        row(
            "readable after writable",
            |s| chain(s, &[(0x40, 8, WRITE | NEXT, 1), (0x80, 8, 0, 0)]),
            Unharmed,
        ),
        row("all readable where it must be written", |s| chain(s, &[(0x40, 8, 0, 0)]), Unharmed),
        row("all writable where it must be read", all_writable, Unharmed),
        row("indirect without the feature", |s| chain(s, &[(0x40, 16, INDIRECT, 0)]), Unharmed),
        row("buffer length 0", |s| chain(s, &[(0x40, 0, WRITE, 0)]), Unharmed),
        row("buffer length u32::MAX", |s| chain(s, &[(0x40, u32::MAX, WRITE, 0)]), Unharmed),
        row("address plus length overflowing", overflow, Unharmed),
        row("buffer address 0", |s| address(s, 0, 16), Unharmed),
        row("buffer before the region", |s| address(s, BASE - 16, 32), Unharmed),
        row("buffer past the region's end", |s| address(s, BASE + u64::from(LEN) - 16, 32), Unharmed),
        row("buffer 4 GiB above the pool", four_gib, Unharmed),
        row("buffer on the header", |s| address(s, BASE, 64), Unharmed),
        row("buffer on its own ring", on_own_ring, Unharmed),
        row("buffer on another device's ring", on_other_ring, Unharmed),
        row("buffer in another device's pool", in_other_pool, Unharmed),
        row("buffer in another link", |s| address(s, BASE + 0x20_0000, 64), Unharmed),
        row("buffer across the pool's end", across_pool_end, Unharmed),
        row("used ring and event words scribbled on", used_scribbled, Unharmed),
        row("a descriptor rewritten by a racing thread", racing_descriptor, Unharmed),
        row("the available ring rewritten by a racing thread", racing_available, Unharmed),
    ]
}

fn queue(stage: &Stage) -> QueuePlace {
    stage.guest.place(RNG).queues[0]
}

fn pool(stage: &Stage) -> Extent {
    stage.guest.place(RNG).pool
}

/// One request was served before the scenario, so the ring stands at 1.
fn offer(stage: &Stage, heads: &[u16]) {
    let place = queue(stage);
    let index = stage.pmm.m.read16(place.avail + 2);
    for (head, position) in heads.iter().zip(u32::from(index)..) {
        stage.pmm.m.write16(place.avail + 4 + 2 * (position % u32::from(place.size)), *head);
    }
    stage.pmm.m.publish16(place.avail + 2, index.wrapping_add(heads.len() as u16));
}

fn descriptor(stage: &Stage, index: u16, address: u64, len: u32, flags: u16, next: u16) {
    let (m, at) = (&stage.pmm.m, queue(stage).desc + 16 * u32::from(index));
    m.write32(at, address as u32);
    m.write32(at + 4, (address >> 32) as u32);
    m.write32(at + 8, len);
    m.write16(at + 12, flags);
    m.write16(at + 14, next);
}

fn jump(stage: &mut Stage, by: u16) {
    let at = queue(stage).avail + 2;
    let index = stage.pmm.m.read16(at);
    stage.pmm.m.write16(at, index.wrapping_add(by));
    stage.pmm.service();
}

fn head(stage: &mut Stage, head: u16) {
    offer(stage, &[head]);
    stage.pmm.service();
}

/// No device of this link has two chains in flight, so each is answered in turn; that a head in flight breaks the ring
/// is shown where rings are tested.
fn head_twice(stage: &mut Stage) {
    let before = stage.pmm.device(RNG).queues[0].completed;
    descriptor(stage, 0, BASE + u64::from(pool(stage).at), 64, WRITE, 0);
    offer(stage, &[0, 0]);
    stage.pmm.service();
    assert_eq!(stage.pmm.device(RNG).queues[0].completed, before + 2);
    resync(stage);
}

/// Offers a chain and expects it back with length 0, counted.
fn refused(stage: &mut Stage) {
    let before = stage.pmm.device(RNG).queues[0].malformed;
    let place = queue(stage);
    let used = stage.pmm.m.read16(place.used + 2);
    let guard = canary(stage);
    offer(stage, &[0]);
    stage.pmm.service();
    guard.check(stage);
    assert_eq!(stage.pmm.device(RNG).queues[0].malformed, before + 1, "it is counted");
    assert_eq!(stage.pmm.m.read16(place.used + 2), used.wrapping_add(1), "it is completed");
    let entry = place.used + 4 + 8 * (u32::from(used) % u32::from(place.size));
    assert_eq!((stage.pmm.m.read32(entry), stage.pmm.m.read32(entry + 4)), (0, 0), "with length 0");
    resync(stage);
}

/// Starts the device again: the driver's own record knows nothing of what the scenario offered.
fn resync(stage: &mut Stage) {
    stage.guest.reset(&mut stage.pmm, RNG);
    stage.ring = stage.guest.ring(RNG, 0, Features::VERSION_1);
    stage.guest.start(&mut stage.pmm, RNG, Features::VERSION_1);
}

fn chain(stage: &mut Stage, descriptors: &[(u32, u32, u16, u16)]) {
    let base = BASE + u64::from(pool(stage).at);
    for (&(at, len, flags, next), index) in descriptors.iter().zip(0..) {
        descriptor(stage, index, base + u64::from(at), len, flags, next);
    }
    refused(stage);
}

fn long_chain(stage: &mut Stage) {
    // The entropy device takes eight buffers; an honest chain of more goes around the table.
    let rows: Vec<_> = (0..8u16).map(|i| (0x40 * u32::from(i), 8, WRITE | NEXT, (i + 1) % 8)).collect();
    chain(stage, &rows);
}

fn address(stage: &mut Stage, address: u64, len: u32) {
    descriptor(stage, 0, address, len, WRITE, 0);
    refused(stage);
}

fn overflow(stage: &mut Stage) {
    address(stage, u64::MAX - 7, 16);
    let at = BASE + u64::from(pool(stage).at);
    address(stage, at, u32::MAX - 8);
}

fn four_gib(stage: &mut Stage) {
    let at = BASE + u64::from(pool(stage).at) + (1 << 32);
    address(stage, at, 64);
}

fn on_own_ring(stage: &mut Stage) {
    let place = queue(stage);
    for part in place.extents() {
        address(stage, BASE + u64::from(part.at), 8);
    }
}

fn on_other_ring(stage: &mut Stage) {
    for part in stage.guest.place(OTHER).queues[0].extents() {
        address(stage, BASE + u64::from(part.at), 8);
    }
}

fn in_other_pool(stage: &mut Stage) {
    // The canary lies there.
    let at = stage.guest.place(OTHER).pool.at;
    address(stage, BASE + u64::from(at), 8);
}

fn across_pool_end(stage: &mut Stage) {
    let end = pool(stage).end();
    address(stage, BASE + u64::from(end) - 8, 9);
}

fn all_writable(stage: &mut Stage) {
    let features = Features::VERSION_1;
    let mut ring = stage.guest.ring(OTHER, 1, features);
    stage.guest.start(&mut stage.pmm, OTHER, features);
    let at = stage.guest.place(OTHER).pool.at;
    ring.add(&stage.pmm.m, &[hvl_shared_abi::ring::Segment::writable(at, 64)]).expect("room");
    ring.publish(&stage.pmm.m);
    stage.pmm.service();
    let used = ring.pop(&stage.pmm.m).expect("a sound ring").expect("a completion");
    assert_eq!(used.written, 0);
    assert_eq!(stage.pmm.device(OTHER).queues[1].malformed, 1);
    assert!(stage.pmm.terminal.sent().is_empty());
    stage.guest.reset(&mut stage.pmm, OTHER);
}

fn wraps(stage: &mut Stage) {
    for _ in 0..66_000 {
        stage.guest.draw_from(&mut stage.pmm, &mut stage.ring);
    }
}

fn used_scribbled(stage: &mut Stage) {
    let place = queue(stage);
    let len = QueuePlace::used_bytes(place.size);
    for value in [0, 0xff, 0x80] {
        for at in place.used..place.used + len {
            stage.pmm.m.write8(at, value);
        }
        // The device reads none of it back: it goes on where it was, which the driver's record no longer is.
        let used = stage.pmm.device(RNG).queues[0].completed;
        descriptor(stage, 0, BASE + u64::from(pool(stage).at), 8, WRITE, 0);
        offer(stage, &[0]);
        stage.pmm.service();
        assert_eq!(stage.pmm.device(RNG).queues[0].completed, used + 1);
    }
    resync(stage);
}

/// Lets a thread write at full speed while the device works, for a counted number of requests.
fn race(stage: &mut Stage, write: impl Fn(u32) + Send + Sync) {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                write(n);
                n = n.wrapping_add(1);
            }
        });
        let guard = canary(stage);
        for _ in 0..20_000 {
            offer(stage, &[0]);
            stage.pmm.service();
            if stage.pmm.device(RNG).fault != "none" {
                resync(stage);
            }
        }
        guard.check(stage);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    resync(stage);
}

fn racing_descriptor(stage: &mut Stage) {
    let (m, at, good) = (stage.pmm.m, queue(stage).desc, BASE + u64::from(pool(stage).at));
    let bad = [0, BASE, BASE + u64::from(LEN) - 4, u64::MAX - 3, BASE + u64::from(queue(stage).used)];
    race(stage, move |n| {
        let address = if n % 2 == 0 { good } else { bad[(n as usize / 2) % bad.len()] };
        m.write32(at, address as u32);
        m.write32(at + 4, (address >> 32) as u32);
        m.write32(at + 8, if n % 3 == 0 { 64 } else { u32::MAX >> (n % 32) });
        m.write32(at + 12, [2, 0, 1, 3, 4, 0x0007_0003][n as usize % 6]);
    });
}

fn racing_available(stage: &mut Stage) {
    descriptor(stage, 0, BASE + u64::from(pool(stage).at), 64, WRITE, 0);
    let (m, place) = (stage.pmm.m, queue(stage));
    race(stage, move |n| {
        m.write16(place.avail + 4 + 2 * (n % 8), n as u16);
        if n % 5 == 0 {
            m.write16(place.avail + 2, (n / 7) as u16);
        }
    });
}
