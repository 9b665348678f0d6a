//! Header and state machine: plain memory in which every word can change at any instant.

use hvl_shared_abi::epoch::DeviceState;
use hvl_shared_abi::header::{REGISTERS, Writer, reg};
use hvl_shared_abi::{Features, Mem};
use hvl_test_kit::guest::RNG;

use crate::{OTHER, Outcome, Scenario, Stage};

const SCRIBBLE: [u32; 6] = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xaabb_aabb, u32::MAX];

/// The table's rows.
pub fn scenarios() -> Vec<Scenario> {
    use Outcome::{Broken, Restart, RestartPmm, Unharmed};
    vec![
        Scenario { name: "words of the PMM overwritten", act: words_overwritten, outcome: RestartPmm },
        Scenario { name: "the whole region wiped", act: wiped, outcome: Restart },
        Scenario { name: "words of the guest scribbled on", act: guest_words, outcome: Restart },
        Scenario { name: "status bits skipped, out of order, unknown", act: status_bits, outcome: Restart },
        Scenario { name: "features that were not offered", act: features_not_offered, outcome: Broken },
        Scenario { name: "features left out that must be accepted", act: features_left_out, outcome: Broken },
        Scenario { name: "features changed while the device runs", act: features_changed, outcome: Unharmed },
        Scenario {
            name: "plain queue registers scribbled on while live",
            act: queue_registers,
            outcome: Unharmed,
        },
        Scenario { name: "reset with requests in flight", act: reset_in_flight, outcome: Unharmed },
        Scenario { name: "ten thousand resets", act: resets, outcome: Unharmed },
        Scenario { name: "a flood of requests during a reset", act: reset_with_flood, outcome: Unharmed },
        Scenario { name: "epochs going back and forth", act: epochs, outcome: Restart },
        Scenario { name: "the same epoch started again", act: same_epoch, outcome: Unharmed },
        Scenario { name: "ready in an epoch that never was", act: ready_elsewhere, outcome: Restart },
        Scenario { name: "a storm of doorbells", act: storm, outcome: Unharmed },
        Scenario { name: "no doorbell at all", act: silence, outcome: Restart },
        Scenario { name: "a guest that never acts on a doorbell", act: deaf, outcome: Restart },
        Scenario { name: "extension blocks scribbled on", act: blocks, outcome: Unharmed },
        Scenario { name: "panic text with a length that lies", act: panic_text, outcome: Restart },
        Scenario { name: "windows beyond the last device", act: absent_device, outcome: Unharmed },
    ]
}

fn each_register(stage: &mut Stage, writer: impl Fn(Writer) -> bool, value: u32) {
    for device in [RNG, OTHER] {
        for register in REGISTERS.iter().filter(|register| writer(register.writer)) {
            let at = stage.guest.register(device, register.offset);
            stage.pmm.m.write32(at, value);
            stage.pmm.service();
        }
    }
}

fn words_overwritten(stage: &mut Stage) {
    for value in SCRIBBLE {
        each_register(stage, |writer| writer == Writer::Pmm, value);
    }
}

fn wiped(stage: &mut Stage) {
    for at in (0..stage.pmm.m.len()).step_by(4) {
        stage.pmm.m.write32(at, 0);
    }
    stage.pmm.pass(20_000);
    assert_eq!(stage.pmm.snapshot().counters.wipes, 1);
}

fn guest_words(stage: &mut Stage) {
    for value in SCRIBBLE {
        each_register(stage, |writer| writer != Writer::Pmm, value);
        stage.pmm.pass(30_000);
    }
    each_register(stage, |writer| writer != Writer::Pmm, 0);
}

fn status_bits(stage: &mut Stage) {
    for status in [4, 0, 8, 2, 128, 64, 0x4000_0000, 7, 1, u32::MAX, 0] {
        let at = stage.guest.register(RNG, reg::STATUS);
        stage.pmm.m.write32(at, status);
        stage.pmm.service();
    }
}

fn features_not_offered(stage: &mut Stage) {
    for bit in [0, 23, 28, 33, 34, 36, 63] {
        stage.guest.reset(&mut stage.pmm, RNG);
        let features = Features::VERSION_1 | Features::from_bits_retain(1 << bit);
        let state = stage.guest.start(&mut stage.pmm, RNG, features);
        assert!(matches!(state, DeviceState::Faulty(_)), "bit {bit}: {state:?}");
    }
}

fn features_left_out(stage: &mut Stage) {
    stage.guest.reset(&mut stage.pmm, RNG);
    let state = stage.guest.start(&mut stage.pmm, RNG, Features::empty());
    assert!(matches!(state, DeviceState::Faulty(_)), "{state:?}");
}

fn features_changed(stage: &mut Stage) {
    let low = stage.guest.register(RNG, reg::DRIVER_FEATURES);
    let high = stage.guest.register(RNG, reg::DRIVER_FEATURES_HIGH);
    for value in SCRIBBLE {
        stage.pmm.m.write32(low, value);
        stage.pmm.m.write32(high, value);
        stage.guest.draw_from(&mut stage.pmm, &mut stage.ring);
    }
}

fn queue_registers(stage: &mut Stage) {
    for register in [reg::QUEUE_SEL, reg::QUEUE_NUM, reg::QUEUE_ALIGN, reg::QUEUE_PFN, reg::QUEUE_NOTIFY] {
        let at = stage.guest.register(RNG, register);
        for value in [0, 3, 8, 0x8000, 0x37000, 0x37001, 0x00ff_00ff, u32::MAX] {
            stage.pmm.m.write32(at, value);
            stage.guest.draw_from(&mut stage.pmm, &mut stage.ring);
        }
    }
}

fn refresh(stage: &mut Stage) {
    stage.ring = stage.guest.ring(RNG, 0, Features::VERSION_1);
    let state = stage.guest.start(&mut stage.pmm, RNG, Features::VERSION_1);
    assert_eq!(state, DeviceState::Running);
}

fn reset_in_flight(stage: &mut Stage) {
    for _ in 0..100 {
        let pool = stage.guest.place(RNG).pool;
        for _ in 0..8 {
            let segment = hvl_shared_abi::ring::Segment::writable(pool.at, 64);
            stage.ring.add(&stage.pmm.m, &[segment]).expect("room");
        }
        stage.ring.publish(&stage.pmm.m);
        stage.guest.reset(&mut stage.pmm, RNG);
        refresh(stage);
    }
}

fn resets(stage: &mut Stage) {
    let before = stage.pmm.device(RNG).resets;
    for _ in 0..10_000 {
        stage.guest.reset(&mut stage.pmm, RNG);
        let state = stage.guest.start(&mut stage.pmm, RNG, Features::VERSION_1);
        assert_eq!(state, DeviceState::Running);
    }
    assert_eq!(stage.pmm.device(RNG).resets - before, 10_000);
    stage.guest.reset(&mut stage.pmm, RNG);
    refresh(stage);
}

fn reset_with_flood(stage: &mut Stage) {
    let at = stage.guest.place(RNG).queues[0].avail + 2;
    for round in 0..1000u16 {
        stage.guest.device(RNG).reset(&stage.pmm.m);
        stage.pmm.m.write16(at, round.wrapping_mul(7));
        stage.pmm.service();
        assert_eq!(stage.guest.device(RNG).state(&stage.pmm.m, &stage.guest.half), DeviceState::Clear);
    }
    refresh(stage);
}

fn epochs(stage: &mut Stage) {
    let epoch = stage.guest.half.epoch();
    let at = stage.guest.register(RNG, reg::DRIVER_EPOCH);
    for value in [epoch + 1, epoch, epoch + 1, 0, u32::MAX, epoch, 0, 1, epoch] {
        stage.pmm.m.write32(at, value);
        stage.pmm.pass(25_000);
    }
    assert!(stage.pmm.snapshot().counters.adoptions < 12, "an adoption a value at the most");
}

fn same_epoch(stage: &mut Stage) {
    let adoptions = stage.pmm.snapshot().counters.adoptions;
    let at = stage.guest.register(RNG, reg::DRIVER_EPOCH);
    for _ in 0..100 {
        stage.pmm.m.write32(at, stage.guest.half.epoch());
        stage.guest.ring_bell();
        stage.pmm.pass(20_000);
    }
    assert_eq!(stage.pmm.snapshot().counters.adoptions, adoptions);
}

fn ready_elsewhere(stage: &mut Stage) {
    for epoch in [stage.guest.half.epoch() + 1, u32::MAX, 1 << 31] {
        let at = stage.guest.register(RNG, reg::DRIVER_READY);
        stage.pmm.m.write32(at, epoch);
        stage.pmm.service();
        assert!(!stage.pmm.device(RNG).runs, "DriverReady {epoch} is not this session");
    }
}

fn storm(stage: &mut Stage) {
    for _ in 0..100_000 {
        stage.guest.ring_bell();
        stage.pmm.service();
    }
}

fn silence(stage: &mut Stage) {
    stage.pmm.pass(60_000_000);
}

fn deaf(stage: &mut Stage) {
    // The ring is used without DriverSeen ever following.
    let at = stage.guest.register(RNG, reg::DRIVER_SEEN);
    stage.pmm.m.write32(at, u32::MAX);
    stage.guest.draw_from(&mut stage.pmm, &mut stage.ring);
    stage.pmm.pass(60_000_000);
    assert!(stage.pmm.snapshot().counters.silences >= 1);
    assert!(stage.pmm.snapshot().counters.rerings <= 200, "repetitions are spaced out");
}

fn blocks(stage: &mut Stage) {
    for device in [RNG, OTHER] {
        let block = stage.guest.place(device).block;
        for at in (block.at..block.end()).step_by(4) {
            stage.pmm.m.write32(at, u32::MAX);
        }
        stage.guest.draw_from(&mut stage.pmm, &mut stage.ring);
    }
}

fn panic_text(stage: &mut Stage) {
    let place = hvl_test_kit::layout().panic_text();
    stage.pmm.m.copy_out(place.at + 4, b"\x1b[2Jlast words");
    stage.pmm.m.write32(place.at, u32::MAX);
    let _next = hvl_test_kit::guest::Guest::boot(&mut stage.pmm);
    let words = stage.pmm.last_words();
    assert!(words.len() <= place.len as usize && words.starts_with(b"\x1b[2Jlast words"));
}

fn absent_device(stage: &mut Stage) {
    for at in (0x400..0x1000).step_by(4) {
        stage.pmm.m.write32(at, 0x0101_0101);
    }
    stage.guest.ring_bell();
    stage.guest.draw_from(&mut stage.pmm, &mut stage.ring);
    stage.pmm.m.write32(0x408, 0);
}
