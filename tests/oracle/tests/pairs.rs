//! The pairs: thousands of random sequences each, from a fresh start, and on rings that are never restarted, across
//! the wrap of their indices at 65536.
//!
//! With EVENT_IDX, `virtio-drivers` only drives fresh rings: where the index wraps, its comparison is of sizes and not
//! of distances. Everything else crosses the wrap.

use hvl_oracle::Arena;
use hvl_oracle::half::{DeviceHalf, DriverHalf, ForeignDevice, ForeignDriver, OurDevice, OurDriver, SIZE};
use hvl_oracle::world::{Op, World};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

const SEQUENCES: u32 = 1000;
const OPERATIONS: usize = 200;
/// Wraps that a lasting ring goes through.
const WRAPS: u32 = 40;

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u8..4, 0u8..4, 1u8..57, 0u8..8)
            .prop_map(|(readable, writable, len, skew)| Op::Add { readable, writable, len, skew }),
        3 => Just(Op::DriverPublish),
        5 => Just(Op::Pop),
        3 => Just(Op::DriverArm),
        5 => Just(Op::Take),
        5 => any::<(u8, u8)>().prop_map(|(which, part)| Op::Complete { which, part }),
        3 => Just(Op::DevicePublish),
        3 => Just(Op::DeviceArm),
        1 => (1u8..8).prop_map(Op::Rounds),
    ]
}

fn sequence() -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(op(), OPERATIONS)
}

/// The same sequences every time, from a cheap generator: the default one takes most of the time without optimisation.
fn runner() -> TestRunner {
    let rng_algorithm = RngAlgorithm::XorShift;
    let config = Config { cases: SEQUENCES, failure_persistence: None, rng_algorithm, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(rng_algorithm, b"hvl's own oracle"))
}

/// Every sequence on rings of its own; a failing one is shrunk.
fn fresh<D: DriverHalf, V: DeviceHalf>(pair: impl Fn() -> World<D, V>) {
    let mut runner = runner();
    let result = runner.run(&sequence(), |ops| {
        let mut world = pair();
        for op in &ops {
            world.apply(op);
        }
        Ok(())
    });
    if let Err(TestError::Fail(reason, ops)) = result {
        panic!("{reason}, after {} operations: {ops:?}", ops.len());
    }
}

/// All sequences on the same rings, as many of them as possible across the wrap of the indices.
fn lasting<D: DriverHalf, V: DeviceHalf>(mut world: World<D, V>) {
    let mut runner = runner();
    for wrap in 1..=WRAPS {
        world.approach_the_wrap(100);
        for _ in 0..SEQUENCES / WRAPS {
            for op in sequence().new_tree(&mut runner).expect("a sequence").current() {
                world.apply(&op);
            }
        }
        assert!(world.served() > u64::from(wrap) << 16, "the indices have not wrapped");
    }
}

fn our_device(arena: Arena, event_idx: bool, indirect: bool) -> World<ForeignDriver, OurDevice> {
    let driver = ForeignDriver::new(arena, event_idx, indirect);
    let device = OurDevice::new(arena, arena.place(SIZE), event_idx, indirect);
    World::new(arena, driver, device, event_idx)
}

fn our_driver(arena: Arena, event_idx: bool) -> World<OurDriver, ForeignDevice> {
    arena.clear();
    let driver = OurDriver::new(arena, arena.place(SIZE), event_idx);
    let device = ForeignDevice::new(arena, arena.place(SIZE), event_idx);
    World::new(arena, driver, device, event_idx)
}

#[test]
fn virtio_drivers_drives_our_device() {
    let arena = Arena::new();
    fresh(|| our_device(arena, false, false));
    lasting(our_device(arena, false, false));
}

#[test]
fn virtio_drivers_drives_our_device_with_indirect_tables() {
    let arena = Arena::new();
    fresh(|| our_device(arena, false, true));
    lasting(our_device(arena, false, true));
}

#[test]
fn virtio_drivers_drives_our_device_with_event_idx() {
    let arena = Arena::new();
    fresh(|| our_device(arena, true, false));
    fresh(|| our_device(arena, true, true));
}

#[test]
fn virtio_queue_serves_our_driver() {
    let arena = Arena::new();
    fresh(|| our_driver(arena, false));
    lasting(our_driver(arena, false));
}

#[test]
fn virtio_queue_serves_our_driver_with_event_idx() {
    let arena = Arena::new();
    fresh(|| our_driver(arena, true));
    lasting(our_driver(arena, true));
}

/// The oracles' yardstick: the two foreign halves agree with the model, too.
#[test]
fn virtio_queue_serves_virtio_drivers() {
    let arena = Arena::new();
    lasting(World::new(
        arena,
        ForeignDriver::new(arena, false, false),
        ForeignDevice::new(arena, arena.place(SIZE), false),
        false,
    ));
}

/// And ours with each other, with everything on.
#[test]
fn our_device_serves_our_driver() {
    let arena = Arena::new();
    let place = arena.place(SIZE);
    let driver = OurDriver::new(arena, place, true);
    lasting(World::new(arena, driver, OurDevice::new(arena, place, true, true), true));
}
