//! How a guest's acceptance reaches a device: [`extended`], where everything is static and epochs say who is who, and
//! [`plain`], the legacy registers that existing front-ends drive. A device never knows by which of them it was
//! activated.
//!
//! [`Port`] is what both share: a device, its rings, its state words and its counters.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod extended;
pub mod plain;

use hvl_shared_abi::header::{CONFIG, CONFIG_SIZE, Fault, reg};
use hvl_shared_abi::layout::{DevicePlace, MAX_QUEUES};
use hvl_shared_abi::mem::Attribute;
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::ring::{ChainError, DeviceRing, RingFault, Windows};
use hvl_shared_abi::{Features, Mem, Window};

use crate::device::{Device, Queues};

/// What happened on one queue since the PMM started.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(feature = "std", derive(serde::Serialize))]
pub struct QueueCounters {
    /// Requests taken that were well formed.
    pub requests: u64,
    /// Requests completed.
    pub completed: u64,
    /// Requests completed with length 0 because they were malformed.
    pub malformed: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// What was wrong with the last malformed request, where it was its chain.
    #[cfg_attr(feature = "std", serde(skip))]
    pub last_error: Option<ChainError>,
}

/// One device of a link on the PMM's side: the device, its queues, and what its driver has said.
pub struct Port<'s, M> {
    pub(crate) device: &'s mut (dyn Device<M> + Send),
    pub(crate) window: Window,
    pub(crate) place: DevicePlace,
    pub(crate) rings: [Option<DeviceRing<'s>>; MAX_QUEUES],
    /// Rings that no queue uses at the moment (plain guests set up fewer than there may be).
    pub(crate) spare: [Option<DeviceRing<'s>>; MAX_QUEUES],
    pub(crate) counters: [QueueCounters; MAX_QUEUES],
    pub(crate) features: Features,
    /// Queues of which the device wanted more than there was when it last took from them. It is asked only after the
    /// device has served its queues, so a new session finds nothing of the old one here.
    pub(crate) hungry: [bool; MAX_QUEUES],
    pub(crate) resets: u64,
    pub(crate) ring_faults: u64,
    pub(crate) features_refused: u64,
    pub(crate) last_fault: Option<RingFault>,
}

impl<'s, M: Mem> Port<'s, M> {
    /// A device that does not run yet. `slots` are the records of its queues, one entry for each queue entry; with
    /// fewer there is no port.
    pub(crate) fn new(
        device: &'s mut (dyn Device<M> + Send),
        window: Window,
        place: DevicePlace,
        slots: &'s mut [DeviceSlot],
    ) -> Option<Port<'s, M>> {
        let mut spare = [const { None }; MAX_QUEUES];
        let mut rest = slots;
        for (queue, ring) in place.queues().zip(&mut spare) {
            let (own, others) = rest.split_at_mut_checked(usize::from(queue.size))?;
            rest = others;
            *ring = Some(DeviceRing::new(*queue, own)?);
        }
        Some(Port {
            device,
            window,
            place,
            rings: [const { None }; MAX_QUEUES],
            spare,
            counters: [QueueCounters::default(); MAX_QUEUES],
            features: Features::empty(),
            hungry: [false; MAX_QUEUES],
            resets: 0,
            ring_faults: 0,
            features_refused: 0,
            last_fault: None,
        })
    }

    /// Records that a device with these queues needs.
    pub fn slots_for(place: &DevicePlace) -> usize {
        place.queues().map(|queue| usize::from(queue.size)).sum()
    }

    /// Largest queue size that every queue of the device can have.
    pub(crate) fn queue_max(&self) -> u16 {
        self.place.queues().map(|queue| queue.size).min().unwrap_or(0)
    }

    /// What the extended profile offers on this memory: the device's own features and those of the rings.
    pub(crate) fn offered(&self, attribute: Attribute) -> Features {
        let order = match attribute {
            Attribute::Coherent => Features::empty(),
            _ => Features::ORDER_PLATFORM,
        };
        Features::from_bits_retain(self.device.features()) | Features::VERSION_1 | Features::EVENT_IDX | order
    }

    /// Stops the device: afterwards it holds nothing of its session, and its queues are spare.
    pub(crate) fn stop(&mut self) {
        self.device.reset();
        for (ring, spare) in self.rings.iter_mut().zip(&mut self.spare) {
            if ring.is_some() {
                *spare = ring.take();
            }
        }
        self.features = Features::empty();
        self.resets = self.resets.wrapping_add(1);
    }

    /// Writes the configuration space; the generation is odd meanwhile.
    pub(crate) fn write_config(&mut self, m: &M) {
        let mut bytes = [0; CONFIG_SIZE as usize];
        let len = self.device.config(&mut bytes);
        let generation = self.window.at(reg::CONFIG_GENERATION);
        let even = m.read32(generation) & !1;
        m.publish32(generation, even | 1);
        m.settle();
        m.copy_out(self.window.at(CONFIG), bytes.get(..len).unwrap_or(&[]));
        m.publish32(generation, even.wrapping_add(2));
    }

    /// Lets the device serve its queues, and publishes what it completed. Returns whether there is more to do at
    /// once, and whether the guest asked to be woken.
    pub(crate) fn process(&mut self, m: &M, windows: Windows<'_>) -> Result<(bool, bool), RingFault> {
        let Port { rings, counters, hungry, .. } = self;
        let result = self.device.process(&mut Queues { mem: m, windows, rings, counters, hungry });
        // Also after a fault: what was completed before it is true.
        let call = self.rings.iter_mut().flatten().fold(false, |call, ring| ring.publish(m) | call);
        let more = result.inspect_err(|fault| {
            self.ring_faults = self.ring_faults.wrapping_add(1);
            self.last_fault = Some(*fault);
        })?;
        Ok((more, call))
    }

    /// Asks to be woken on every queue of which the device wants more, and looks once more. `true`: something has
    /// come meanwhile. A queue that the device has left alone, since its host end is full, is no reason to wake.
    pub(crate) fn arm(&mut self, m: &M) -> bool {
        let hungry = self.rings.iter_mut().flatten().zip(self.hungry).filter(|(_, hungry)| *hungry);
        hungry.fold(false, |more, (ring, _)| ring.arm(m) | more)
    }
}

/// Why a device does not run, for logs and status pages.
pub(crate) const fn fault_name(fault: Fault) -> &'static str {
    match fault {
        Fault::None => "none",
        Fault::FeaturesRefused => "features-refused",
        Fault::NeedsReset => "needs-reset",
        Fault::Unknown(_) => "unknown",
    }
}
