//! What goes through the devices beside console and entropy: one file for each.
//!
//! Each has three parts: the [`End`], which is the host's end of the device and the judge of everything that goes
//! through it; the handle by which the PMM's device reaches it; and the [`Work`] that the guest does with its driver.
//! Everything that moves is a function of a salt, a stream and a position, so the judge knows where it belongs.

pub mod files;
pub mod net;
pub mod vsock;

use fastrand::Rng;
use hvl_frontend::{Instant, Link};
use hvl_pmm::device::Device;
use hvl_shared_abi::DeviceId;

use crate::guest::Simulated;
use crate::map::Side;
use crate::plan::{MICRO, MILLI, Plan};
use crate::side::Shared;

/// The byte of a stream at a position.
pub fn byte(salt: u64, stream: u64, at: u64) -> u8 {
    let mut word = salt ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at.wrapping_mul(0xd6e8_feb8_6659_fd93);
    word = (word ^ word >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (word ^ word >> 29) as u8
}

/// How a host's end makes its callers wait.
pub struct Pace {
    /// Its own dice.
    pub rng: Rng,
    blocks: u8,
    chunk: usize,
}

impl Pace {
    /// As the plan says.
    pub fn new(plan: &Plan, salt: u64) -> Pace {
        Pace { rng: Rng::with_seed(salt), blocks: plan.host_blocks, chunk: plan.host_chunk }
    }
    /// Until when a call blocks, if it does.
    pub fn blocks(&mut self, now: u64) -> Option<u64> {
        if self.rng.u8(..) >= self.blocks {
            return None;
        }
        let longest = if self.rng.u8(..) < 8 { 100 * MILLI } else { 500 * MICRO };
        Some(now + self.rng.u64(1..longest))
    }
    /// How many bytes move at once.
    pub fn some(&mut self) -> usize {
        self.rng.usize(1..=self.chunk)
    }
}

/// The host's end of a device, and the judge of what goes through it. It outlives both sides.
pub trait End {
    /// What happens by itself happens, up to now.
    fn progress(&mut self, _now: u64) {}
    /// Whether something that the PMM waits for has happened.
    fn is_ready(&mut self, now: u64) -> bool;
    /// The PMM woke, and no longer waits for what has happened.
    fn heard(&mut self, now: u64);
    /// When the next of it happens.
    fn next_ready(&self) -> Option<u64>;
    /// Whether the device waits for this end with a request in its hands.
    fn holds_requests(&self) -> bool;

    /// The guest starts, with its work before it.
    fn started(&mut self, now: u64);
    /// The guest says hello.
    fn greeted(&mut self) {}
    /// The PMM serves the device for this start of the guest, or no longer.
    fn served(&mut self, start: Option<usize>);
    /// A side died.
    fn died(&mut self, side: Side);
    /// There is more to do.
    fn more(&mut self, now: u64);

    /// Whether all that was to be done is done.
    fn is_done(&self) -> bool;
    /// What keeps it from being so.
    fn missing(&self) -> String;
    /// The first thing that was wrong, once.
    fn failure(&mut self) -> Option<String>;
}

/// The ends of a link; each only where the link has the device.
#[derive(Default)]
pub struct Ends {
    net: Option<net::Cable>,
    vsock: Option<vsock::Harbor>,
    files: Option<files::Shelf>,
}

impl Ends {
    /// Those of the devices that were planned.
    pub fn new(plan: &Plan, salt: u64) -> Ends {
        Ends {
            net: plan.has(DeviceId::NET).then(|| net::Cable::new(plan, salt)),
            vsock: plan.has(DeviceId::VSOCK).then(|| vsock::Harbor::new(plan, salt)),
            files: plan.has(DeviceId::P9).then(|| files::Shelf::new(plan, salt)),
        }
    }
    /// The network's.
    ///
    /// # Panics
    /// If the link has no card.
    pub fn net(&mut self) -> &mut net::Cable {
        self.net.as_mut().expect("the link has a card")
    }
    /// The sockets'.
    ///
    /// # Panics
    /// If the link has none.
    pub fn vsock(&mut self) -> &mut vsock::Harbor {
        self.vsock.as_mut().expect("the link has sockets")
    }
    /// The files'.
    ///
    /// # Panics
    /// If the link has none.
    pub fn files(&mut self) -> &mut files::Shelf {
        self.files.as_mut().expect("the link has files")
    }
    /// That of a kind of device.
    pub fn of(&mut self, id: DeviceId) -> Option<&mut dyn End> {
        match id {
            DeviceId::NET => self.net.as_mut().map(|end| end as _),
            DeviceId::VSOCK => self.vsock.as_mut().map(|end| end as _),
            DeviceId::P9 => self.files.as_mut().map(|end| end as _),
            _ => None,
        }
    }
    /// All of them.
    pub fn all(&mut self) -> impl Iterator<Item = &mut dyn End> {
        let Ends { net, vsock, files } = self;
        let net = net.as_mut().map(|end| end as &mut dyn End);
        let vsock = vsock.as_mut().map(|end| end as _);
        [net, vsock, files.as_mut().map(|end| end as _)].into_iter().flatten()
    }
}

/// The PMM's device of a kind.
pub fn device(id: DeviceId) -> Box<dyn Device<Shared> + Send> {
    match id {
        DeviceId::RNG => Box::new(hvl_pmm::device::rng::Rng::new(crate::host::Source)),
        DeviceId::CONSOLE => Box::new(hvl_pmm::device::console::Console::new(crate::host::Terminal)),
        DeviceId::NET => Box::new(net::device()),
        DeviceId::VSOCK => Box::new(vsock::device()),
        DeviceId::P9 => Box::new(files::device()),
        other => unreachable!("no link is planned with {other:?}"),
    }
}

/// What the guest does with a device.
pub trait Work {
    /// Does some of it. Returns whether there is more to do at once.
    fn step(&mut self) -> bool;
    /// When to do some although no doorbell rang.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// Storage of the guest's drivers.
#[derive(Default)]
pub struct Storage {
    net: hvl_frontend::device::net::NetStorage<16, 16>,
    vsock: vsock::Storage,
    files: hvl_frontend::device::p9::FilesStorage<16>,
}

/// Opens the devices that are planned.
pub fn open<'s>(
    link: &Link<'s, Simulated<'s>>,
    storage: &'s mut Storage,
    plan: &Plan,
) -> Result<Vec<Box<dyn Work + 's>>, hvl_frontend::OpenError> {
    let mut all: Vec<Box<dyn Work + 's>> = Vec::new();
    if plan.has(DeviceId::NET) {
        all.push(Box::new(net::Talk::open(link, &mut storage.net)?));
    }
    if plan.has(DeviceId::VSOCK) {
        all.push(Box::new(vsock::Talks::open(link, &mut storage.vsock)?));
    }
    if plan.has(DeviceId::P9) {
        all.push(Box::new(files::Reader::open(link, &mut storage.files, plan)?));
    }
    Ok(all)
}
