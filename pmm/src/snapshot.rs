//! The state of a link as plain data: what `pmm status` prints, and what tests wait on. Counters go up from 0 since
//! the PMM started, and wrap.

use hvl_shared_abi::header::MAX_DEVICES;
use hvl_shared_abi::layout::MAX_QUEUES;
use hvl_shared_abi::ring::RingFault;

use crate::link::Micros;
use crate::transport::QueueCounters;
use crate::transport::plain::Refusal;

/// Which kind of guest is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Serialize))]
#[cfg_attr(feature = "std", serde(rename_all = "lowercase"))]
pub enum Profile {
    /// None.
    None,
    /// One that speaks the extended profile.
    Extended,
    /// One that drives the legacy registers.
    Plain,
}

/// What happened on the link.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(feature = "std", derive(serde::Serialize))]
pub struct LinkCounters {
    /// Looks at everything.
    pub services: u64,
    /// Doorbells rung.
    pub rings: u64,
    /// Of those, repetitions of one that the guest had not acted on.
    pub rerings: u64,
    /// Guests adopted in the extended profile.
    pub adoptions: u64,
    /// Plain guests found at work.
    pub plain_sessions: u64,
    /// Times that the region was found wiped and published again.
    pub wipes: u64,
    /// Times that the guest had not acted on a doorbell for ten seconds, and stored nothing. Its session goes on.
    pub silences: u64,
    /// Sessions ended because the guest was silent for longer than its user lets it be.
    pub presumed_gone: u64,
    /// Sessions ended because the doorbell's peer had hung up.
    pub hung_up: u64,
}

/// One device.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "std", derive(serde::Serialize))]
pub struct DeviceSnapshot {
    /// `console`, `rng`, ...
    pub kind: &'static str,
    /// Whether it serves its queues.
    pub runs: bool,
    /// A plain guest of a predecessor is at work on it: it cannot be served before it reboots.
    pub must_reboot: bool,
    /// Another device of its plain guest has shown a reboot: it is served when it is set up again.
    pub held: bool,
    /// `none`, `features-refused` or `needs-reset`: its driver broke the rules, and the device is served again after a
    /// reset. In either profile.
    pub fault: &'static str,
    /// Features that the driver accepted.
    pub features: u64,
    /// How often it was reset.
    pub resets: u64,
    /// How often its rings were broken.
    pub ring_faults: u64,
    /// What was wrong the last time.
    #[cfg_attr(feature = "std", serde(skip))]
    pub last_ring_fault: Option<RingFault>,
    /// How often its driver accepted what was not offered.
    pub features_refused: u64,
    /// How often a plain driver asked for a queue where none can be.
    pub queues_refused: u64,
    /// Which, and why, the last time; of a request that still stands.
    #[cfg_attr(feature = "std", serde(skip))]
    pub last_refusal: Option<Refusal>,
    /// Queues that it has.
    pub queue_count: usize,
    /// Their sizes in entries, as its driver chose them; 0 for one that is not set up.
    pub queue_sizes: [u16; MAX_QUEUES],
    /// Their largest sizes, for which the layout has room.
    pub queue_limits: [u16; MAX_QUEUES],
    /// Requests taken and not completed.
    pub in_flight: [u16; MAX_QUEUES],
    /// What happened on them.
    pub queues: [QueueCounters; MAX_QUEUES],
}

/// One link.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "std", derive(serde::Serialize))]
pub struct LinkSnapshot {
    /// Which kind of guest is attached.
    pub profile: Profile,
    /// This start of the PMM.
    pub pmm_epoch: u32,
    /// The guest's epoch, in an extended session.
    pub driver_epoch: Option<u32>,
    /// What happened on the link.
    pub counters: LinkCounters,
    /// Since when the guest has neither acted on a doorbell nor stored anything, on the clock of the link's caller; set
    /// once that is long.
    pub silent_since: Option<Micros>,
    /// The devices, in the order of their windows.
    pub devices: [Option<DeviceSnapshot>; MAX_DEVICES],
}
