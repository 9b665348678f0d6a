//! What the tests of the network card share: a region with entropy and a card, a PMM in this process with virtual time,
//! a cable in memory that can be stuck, and a board for the frontend.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hvl_pmm::device::Device;
use hvl_pmm::device::net::{BUFFER, Card, Net};
use hvl_pmm::device::rng::Rng;
use hvl_pmm::host::{Dropped, EndError, FrameEnd};
use hvl_pmm::link::{Link, LinkPlan, Member};
use hvl_pmm::snapshot::DeviceSnapshot;
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::wire::net::Offload;
use hvl_shared_abi::{DeviceSpec, Layout, Region};
use hvl_test_kit::Counter;
pub use hvl_test_kit::board::{TestBoard, leak};
pub use hvl_test_kit::{BASE, LEN, region};

/// The card's address.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Windows of the two devices.
pub const RNG: usize = 0;
/// See [`RNG`].
pub const NET: usize = 1;

/// Entropy, and a card whose pool has this many bytes.
pub fn layout(pool: u32) -> Layout {
    let card = DeviceSpec { pool, ..DeviceSpec::NET };
    Layout::place(&[DeviceSpec::RNG, card], LEN).expect("both devices fit into the region")
}

/// A frame of so many bytes that can be told from others.
pub fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(7).wrapping_add(seed)).collect();
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// A cable's other end.
#[derive(Default)]
pub struct Far {
    /// What it will send.
    pub to_guest: VecDeque<(Offload, Vec<u8>)>,
    /// What it has got.
    pub got: Vec<(Offload, Vec<u8>)>,
    /// It takes nothing.
    pub stuck: bool,
    /// What it can take over.
    pub features: u64,
    /// What the driver has accepted.
    pub accepted: u64,
    /// Frames that did not fit into the guest's buffers.
    pub dropped: u32,
    /// How often it was asked for a frame.
    pub asked: u32,
}

/// A handle on it, for the device and the test.
#[derive(Clone, Default)]
pub struct Cable(Arc<Mutex<Far>>);

impl Cable {
    /// The other end.
    pub fn far(&self) -> MutexGuard<'_, Far> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Sends a frame to the guest.
    pub fn send(&self, frame: &[u8]) {
        self.far().to_guest.push_back((Offload::default(), frame.to_vec()));
    }
}

impl FrameEnd for Cable {
    fn features(&self) -> u64 {
        self.far().features
    }
    fn accept(&mut self, features: u64) {
        self.far().accepted = features;
    }
    fn send(&mut self, offload: &Offload, frame: &[u8]) -> Result<(), EndError> {
        let mut far = self.far();
        if far.stuck {
            return Err(EndError::WouldBlock);
        }
        far.got.push((*offload, frame.to_vec()));
        Ok(())
    }
    fn receive(&mut self, into: &mut [u8]) -> Result<(Offload, usize), EndError> {
        let mut far = self.far();
        far.asked += 1;
        let (offload, frame) = far.to_guest.pop_front().ok_or(EndError::WouldBlock)?;
        into[..frame.len()].copy_from_slice(&frame);
        Ok((offload, frame.len()))
    }
    fn dropped(&mut self, _why: Dropped) {
        self.far().dropped += 1;
    }
}

/// A PMM in this process.
pub struct Pmm {
    /// Virtual time in microseconds.
    pub now: u64,
    link: Link<'static, Region>,
}

impl Pmm {
    /// One whose card is at `cable`; the last one on this region, if any, was killed.
    pub fn start(m: Region, cable: &Cable, pool: u32, mtu: Option<u16>) -> Pmm {
        let memory = || vec![0; BUFFER].into_boxed_slice();
        Pmm::with(m, Net::new(cable.clone(), Card { mac: MAC, mtu }, memory(), memory()), pool)
    }
    /// One with any device in place of the card.
    pub fn with(m: Region, device: impl Device<Region> + Send + 'static, pool: u32) -> Pmm {
        let layout = layout(pool);
        let slots = |index: usize| {
            let count = layout.devices().get(index).map_or(0, Link::<Region>::slots_for);
            vec![DeviceSlot::NEW; count].leak()
        };
        let plan = LinkPlan { layout, base: BASE, doorbell_can_lose: true, gone_after: None };
        let members: [Member<'static, Region>; 2] =
            [(leak(Rng::new(Counter(0))), slots(RNG)), (leak(device), slots(NET))];
        let link = Link::publish(m, plan, members, None, None).expect("a link that fits its layout");
        Pmm { now: 0, link }
    }
    /// Lets it look until it has nothing more to do, which is to happen soon.
    pub fn service(&mut self) {
        for _ in 0..1000 {
            self.now += 20_000;
            if !self.link.service(self.now).again {
                return;
            }
        }
        panic!("the PMM had more to do after 1000 services: it spins");
    }
    /// Lets it look once, at a real time in microseconds.
    pub fn tick(&mut self, now: u64) {
        self.link.service(now);
    }
    /// The state of a device.
    pub fn device(&self, index: usize) -> DeviceSnapshot {
        self.link.snapshot().devices[index].expect("the device")
    }
}
