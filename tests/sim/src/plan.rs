//! What a seed decides before anything runs.
//!
//! A seed is 64 bits. The lower 40 number it; the upper 24 are 0, or (directed seeds) one more than the hash of a
//! place at whose first access a side dies, on top of everything that the lower bits decide. Until then a directed
//! seed runs exactly as the seed of its lower bits, so that a place that occurred there is met again.

use fastrand::Rng;
use hvl_shared_abi::{Attribute, DeviceId, DeviceSpec, MaintainCache};

use crate::fault::Fault;
use crate::memory::order::Order;
use crate::memory::{Kind, Lies};

/// Nanoseconds of simulated time.
pub const MICRO: u64 = 1_000;
/// A thousand of them.
pub const MILLI: u64 = 1_000 * MICRO;
/// A million.
pub const SECOND: u64 = 1_000 * MILLI;

/// Bits of a seed that number it.
pub const SEED_BITS: u32 = 40;
/// Bits of the hash of a place that a directed seed can carry.
pub const TARGET_BITS: u32 = 20;

/// How a doorbell behaves, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoorbellKind {
    /// Of 256 bells, how many are lost.
    pub lost: u8,
    /// Of 256, how many come twice.
    pub doubled: u8,
    /// Most time that one takes, in nanoseconds.
    pub delay: u64,
}

/// Everything that a seed decides.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// The hash of the place of a directed seed.
    pub target: Option<u32>,
    /// A fault that is planted.
    pub fault: Option<Fault>,
    /// The memory.
    pub memory: Kind,
    /// The doorbells.
    pub doorbell: DoorbellKind,
    /// Whether the guest has a clock and a timer, or sleeps without.
    pub guest_clock: bool,
    /// The devices, with the sizes of their queues and pools: entropy, a console, and some others in most seeds.
    pub devices: Vec<DeviceSpec>,
    /// Accesses between two switches, about.
    pub stretch: u32,
    /// Nanoseconds of an access.
    pub access_time: u64,
    /// How many times some side dies.
    pub deaths: u32,
    /// Of 256 calls of a host end, how many would block though they need not.
    pub host_blocks: u8,
    /// Most bytes that a host end takes or gives at a time.
    pub host_chunk: usize,
    /// Whether what was in flight on the console when a PMM died is sent again.
    pub resend: bool,
    /// Lines that each start of the guest sends, and that the host types after each start.
    pub lines: u32,
    /// Random numbers that each start of the guest asks for, 4 bytes each and more.
    pub numbers: u32,
    /// Frames that each start of the guest gets to the far end of its cable, and as many that come from there.
    pub frames: u32,
    /// Talks that each start of the guest begins, and as many that the host does.
    pub talks: u32,
    /// Reads and writes of files that each start of the guest does.
    pub operations: u32,
    /// How long it waits for one, in nanoseconds.
    pub patience: u64,
    /// Whether the PMM's doorbell knows that its peer has hung up, as a stream socket does: when the guest dies, and when
    /// only what is between the two was restarted.
    pub hangs_up: bool,
}

impl Plan {
    /// What `seed` decides.
    pub fn of(seed: u64, fault: Option<Fault>) -> Plan {
        let number = seed & ((1 << SEED_BITS) - 1);
        let target = (seed >> SEED_BITS).checked_sub(1).map(|target| target as u32);
        let mut rng = Rng::with_seed(number ^ 0x005e_ed0f_1a57);
        let rng = &mut rng;
        let size = |rng: &mut Rng| *pick(rng, &[2u16, 4, 4, 8, 8, 16]);
        let lossy = rng.bool();
        let doorbell = DoorbellKind {
            lost: if lossy { *pick(rng, &[3, 20, 80]) } else { 0 },
            doubled: *pick(rng, &[0, 0, 30]),
            delay: *pick(rng, &[0, 0, 20 * MICRO, 3 * MILLI]),
        };
        let memory = memory(rng);
        let stretch = match memory.lies {
            [None, None] => *pick(rng, &[1, 2, 4, 16, 64, 400]),
            _ => 16,
        };
        let mut plan = Plan {
            seed,
            target,
            fault,
            memory,
            doorbell,
            guest_clock: rng.bool(),
            devices: vec![
                DeviceSpec {
                    queues: [size(rng), 0, 0, 0],
                    pool: *pick(rng, &[0x100, 0x200, 0x800]),
                    ..DeviceSpec::RNG
                },
                DeviceSpec {
                    queues: [size(rng), size(rng), 0, 0],
                    pool: *pick(rng, &[0x400, 0x800, 0x1000]),
                    ..DeviceSpec::CONSOLE
                },
            ],
            stretch,
            access_time: *pick(rng, &[20, 100, 500]),
            deaths: *pick(rng, &[0, 1, 1, 2, 3, 4, 6]),
            host_blocks: *pick(rng, &[0, 10, 60, 160]),
            host_chunk: *pick(rng, &[3, 16, 100, 4096]),
            resend: rng.bool(),
            lines: rng.u32(1..24),
            numbers: rng.u32(1..16),
            frames: rng.u32(1..16),
            talks: rng.u32(1..4),
            operations: rng.u32(1..16),
            patience: *pick(rng, &[200 * MILLI, SECOND, 10 * SECOND]),
            hangs_up: false,
        };
        plan.devices.extend(more_devices(rng));
        // Without a clock nothing can be waited for, and paths are.
        plan.guest_clock |= plan.has(DeviceId::P9);
        // Behind everything that older seeds decide.
        plan.hangs_up = !lossy && rng.bool();
        plan
    }

    /// Whether the link has a device of this kind.
    pub fn has(&self, id: DeviceId) -> bool {
        self.devices.iter().any(|spec| spec.id == id)
    }

    /// Whether the doorbells can lose, as a doorbell states it to the PMM.
    pub fn lossy(&self) -> bool {
        self.doorbell.lost != 0
    }

    /// One line for reports.
    pub fn summary(&self) -> String {
        let DoorbellKind { lost, doubled, delay } = self.doorbell;
        format!(
            "memory: {}; doorbells: {lost}/256 lost, {doubled}/256 doubled, up to {} us late; guest {} a clock; \
             {}; about {} accesses a stretch; {} deaths{}; console {} what was in flight{}",
            self.memory.name(),
            delay / MICRO,
            if self.guest_clock { "with" } else { "without" },
            self.devices.iter().map(words).collect::<Vec<_>>().join(", "),
            self.stretch,
            self.deaths,
            if self.hangs_up { ", of which a hang-up tells" } else { "" },
            if self.resend { "resends" } else { "drops" },
            self.fault.map_or(String::new(), |fault| format!("; planted: {}", fault.name())),
        )
    }
}

/// A device in words.
fn words(spec: &DeviceSpec) -> String {
    let queues: Vec<_> = spec.queues.into_iter().take_while(|size| *size != 0).collect();
    format!("{} with queues of {queues:?} and a pool of {:#x}", crate::map::device_name(spec.id), spec.pool)
}

/// What a link has beside entropy and a console.
fn more_devices(rng: &mut Rng) -> Vec<DeviceSpec> {
    let size = |rng: &mut Rng| *pick(rng, &[2u16, 4, 8, 16]);
    let net = |rng: &mut Rng| DeviceSpec {
        queues: [size(rng), size(rng), 0, 0],
        pool: *pick(rng, &[0x400, 0x800, 0x1000]),
        ..DeviceSpec::NET
    };
    let vsock = |rng: &mut Rng| DeviceSpec {
        queues: [size(rng), size(rng), size(rng), 0],
        pool: *pick(rng, &[0xc00, 0x1800]),
        ..DeviceSpec::VSOCK
    };
    // A message of 1 KiB is the shortest that a client agrees to.
    let p9 = |rng: &mut Rng| {
        let size = *pick(rng, &[2, 4, 8]);
        let pool = u32::from(size) * *pick(rng, &[0x480, 0x800]);
        DeviceSpec { queues: [size, 0, 0, 0], pool, ..DeviceSpec::P9 }
    };
    match rng.u32(0..10) {
        0 => vec![net(rng)],
        1 => vec![vsock(rng)],
        2 => vec![p9(rng)],
        3 => vec![net(rng), vsock(rng), p9(rng)],
        _ => vec![],
    }
}

/// Some element of a list that is not empty.
pub fn pick<'a, T>(rng: &mut Rng, all: &'a [T]) -> &'a T {
    &all[rng.usize(0..all.len())]
}

/// The simulator's memory has the caches itself, and is told of the maintenance before this would be.
struct Modelled;

impl MaintainCache for Modelled {
    fn clean(&self, _address: usize, _len: usize) {}
    fn invalidate(&self, _address: usize, _len: usize) {}
}

fn memory(rng: &mut Rng) -> Kind {
    use Attribute::{CachedNonCoherent, Coherent, Device, NonCacheable};
    let cached = CachedNonCoherent(&Modelled);
    let weak = *pick(rng, &[Order::Weak, Order::Early]);
    let drain = *pick(rng, &[2, 8, 64, 1024]);
    let kind = |order, attributes| Kind { order, attributes, lies: [None, None], drain };
    match rng.u32(0..10) {
        0 => kind(Order::Sequential, [Coherent; 2]),
        1 => kind(Order::Ordered, [Coherent; 2]),
        2 => kind(Order::Weak, [Coherent; 2]),
        3 => kind(Order::Early, [Coherent; 2]),
        4..=6 => {
            let attributes = *pick(rng, &[[cached; 2], [cached, NonCacheable], [Coherent, cached]]);
            kind(weak, attributes)
        }
        7 => kind(weak, *pick(rng, &[[Device; 2], [Coherent, Device], [NonCacheable, Device]])),
        _ => {
            let rate = *pick(rng, &[8, 40, 200, 2000]);
            let lies = *pick(
                rng,
                &[[Some(Lies(rate)), None], [None, Some(Lies(rate))], [Some(Lies(rate)), Some(Lies(rate))]],
            );
            let order = *pick(rng, &[Order::Sequential, Order::Ordered, Order::Early]);
            Kind { lies, ..kind(order, *pick(rng, &[[Coherent; 2], [cached; 2]])) }
        }
    }
}
