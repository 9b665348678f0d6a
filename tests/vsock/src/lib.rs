//! What the tests of sockets share: a region with sockets, entropy and a console, a PMM in this process with virtual
//! time, a host's end in memory that can be told to be slow, and a board for the frontend.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hvl_pmm::device::Device;
use hvl_pmm::device::vsock::{Connection, Happened, Sockets, Timer, Vsock};
use hvl_pmm::host::EndError;
use hvl_pmm::link::{Link, LinkPlan, Member};
use hvl_pmm::snapshot::DeviceSnapshot;
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::wire::vsock::Shutdown;
use hvl_shared_abi::{DeviceSpec, Layout, Region};
pub use hvl_test_kit::board::{TestBoard, leak};
pub use hvl_test_kit::{BASE, LEN, region};

/// The guest's address.
pub const CID: u32 = 7;
/// Slots of the host's end.
pub const SLOTS: usize = 64;
/// Bytes that each connection has room for at the host.
pub const ROOM: usize = 8192;

/// Sockets only.
pub fn layout() -> Layout {
    Layout::place(&[DeviceSpec::VSOCK], LEN).expect("sockets fit into the region")
}

/// One slot of the [`Harbor`].
#[derive(Default)]
pub struct Berth {
    /// The device knows it, or has not given it back.
    pub taken: bool,
    /// The port of the guest that a client asked for, or the port of the host that the guest called.
    pub port: u32,
    /// What the client was told: from which port of the host the guest sees it.
    pub granted: Option<u32>,
    /// Bytes that the client has sent and the device has not read.
    pub input: VecDeque<u8>,
    /// The client will send no more.
    pub input_ended: bool,
    /// Bytes on their way to the client.
    pub room: VecDeque<u8>,
    /// Bytes that the client has.
    pub output: Vec<u8>,
    /// What the guest has ended.
    pub guest_ends: Shutdown,
    /// It is over; `Some(true)`: what was on its way still arrives.
    pub finished: Option<bool>,
    /// The client takes nothing.
    pub stuck: bool,
    /// The timer that runs.
    pub timer: Option<Timer>,
    happened: Happened,
}

/// A host's end in memory.
#[derive(Default)]
pub struct Sea {
    /// The slots.
    pub berths: Vec<Berth>,
    /// Ports of the host at which somebody listens.
    pub listening: HashMap<u32, ()>,
    /// Whether a guest is there.
    pub active: bool,
}

/// A handle on it, for the device and the test.
#[derive(Clone)]
pub struct Harbor(Arc<Mutex<Sea>>);

impl Default for Harbor {
    fn default() -> Self {
        let berths = (0..SLOTS).map(|_| Berth::default()).collect();
        Harbor(Arc::new(Mutex::new(Sea { berths, ..Sea::default() })))
    }
}

impl Harbor {
    /// The sea.
    pub fn sea(&self) -> MutexGuard<'_, Sea> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Does something to a slot.
    pub fn at<R>(&self, slot: usize, act: impl FnOnce(&mut Berth) -> R) -> R {
        act(&mut self.sea().berths[slot])
    }
    /// A client asks for a port of the guest. Its slot.
    pub fn ask(&self, port: u32) -> usize {
        let slot = self.sea().seat(port).expect("a free slot");
        self.at(slot, |berth| berth.happened.asked = Some(port));
        slot
    }
    /// A client sends bytes.
    pub fn send(&self, slot: usize, bytes: &[u8]) {
        self.at(slot, |berth| {
            berth.input.extend(bytes);
            berth.happened.readable = true;
        });
    }
    /// A client sends no more.
    pub fn end_input(&self, slot: usize) {
        self.at(slot, |berth| (berth.input_ended, berth.happened.readable) = (true, true));
    }
    /// A client is gone.
    pub fn hang_up(&self, slot: usize) {
        self.end_input(slot);
        self.at(slot, |berth| {
            berth.room.clear();
            berth.happened.hung_up = true;
        });
    }
    /// A client reads again.
    pub fn unstick(&self, slot: usize) {
        self.at(slot, |berth| {
            berth.stuck = false;
            berth.happened.drained += berth.drain();
        });
    }
    /// The time of whatever is waited for is over.
    pub fn expire(&self, slot: usize) {
        self.at(slot, |berth| berth.happened.expired = true);
    }
    /// Slots that the device holds.
    pub fn taken(&self) -> usize {
        self.sea().berths.iter().filter(|berth| berth.taken).count()
    }
    /// What a client has so far.
    pub fn output(&self, slot: usize) -> Vec<u8> {
        self.at(slot, |berth| berth.output.clone())
    }
}

impl Berth {
    fn drain(&mut self) -> u32 {
        if self.stuck {
            return 0;
        }
        let count = self.room.len();
        self.output.extend(self.room.drain(..));
        count as u32
    }
}

impl Sea {
    fn seat(&mut self, port: u32) -> Option<usize> {
        let slot = self.berths.iter().position(|berth| !berth.taken)?;
        self.berths[slot] = Berth { taken: true, port, ..Berth::default() };
        Some(slot)
    }
}

impl Sockets for Harbor {
    fn room(&self) -> u32 {
        ROOM as u32
    }
    fn first_port(&self) -> u32 {
        u32::MAX - 1
    }
    fn activate(&mut self, active: bool) {
        self.sea().active = active;
    }
    fn next(&mut self) -> Option<(usize, Happened)> {
        let mut sea = self.sea();
        let slot = sea
            .berths
            .iter()
            .position(|one| one.finished.is_none() && one.happened != Happened::default())?;
        Some((slot, std::mem::take(&mut sea.berths[slot].happened)))
    }
    fn connect(&mut self, port: u32) -> Option<usize> {
        let mut sea = self.sea();
        if sea.listening.contains_key(&port) { sea.seat(port) } else { None }
    }
    fn grant(&mut self, slot: usize, port: u32) {
        self.at(slot, |berth| berth.granted = Some(port));
    }
    fn read(&mut self, slot: usize, into: &mut [u8], _credit: usize) -> Result<usize, EndError> {
        self.at(slot, |berth| {
            let count = into.len().min(berth.input.len());
            for (to, from) in into.iter_mut().zip(berth.input.drain(..count)) {
                *to = from;
            }
            match count {
                0 if berth.input_ended => Err(EndError::Closed),
                0 => Err(EndError::WouldBlock),
                count => Ok(count),
            }
        })
    }
    fn put(&mut self, slot: usize, len: usize, mut fill: impl FnMut(&mut [u8]) -> usize) -> usize {
        self.at(slot, |berth| {
            assert!(berth.room.len() + len <= ROOM, "more was taken than there is room for");
            let mut bytes = vec![0; len];
            let count = fill(&mut bytes);
            berth.room.extend(&bytes[..count]);
            count
        })
    }
    fn flush(&mut self, slot: usize) -> u32 {
        self.at(slot, Berth::drain)
    }
    fn shut_down(&mut self, slot: usize, ends: Shutdown) {
        self.at(slot, |berth| berth.guest_ends = ends);
    }
    fn time(&mut self, slot: usize, timer: Timer) {
        self.at(slot, |berth| berth.timer = Some(timer).filter(|timer| *timer != Timer::Off));
    }
    fn finish(&mut self, slot: usize, whole: bool) {
        self.at(slot, |berth| {
            assert!(berth.taken && berth.finished.is_none(), "a connection is over once");
            berth.finished = Some(whole);
        });
    }
    fn release(&mut self, slot: usize) {
        self.at(slot, |berth| {
            assert!(berth.taken && berth.finished.is_some(), "over before it is given back");
            berth.taken = false;
        });
    }
    fn close_all(&mut self) {
        for berth in &mut self.sea().berths {
            if berth.taken {
                (berth.taken, berth.finished) = (false, Some(false));
            }
        }
    }
}

/// A PMM in this process.
pub struct Pmm {
    /// Virtual time in microseconds.
    pub now: u64,
    link: Link<'static, Region>,
}

impl Pmm {
    /// One with the socket device over `harbor`; the last one on this region, if any, was killed.
    pub fn start(m: Region, harbor: &Harbor) -> Pmm {
        harbor.clone().close_all();
        Pmm::with(m, Vsock::new(harbor.clone(), CID, vec![Connection::NEW; SLOTS]))
    }
    /// One with any device.
    pub fn with(m: Region, device: impl Device<Region> + Send + 'static) -> Pmm {
        let layout = layout();
        let count = layout.devices().first().map_or(0, Link::<Region>::slots_for);
        let plan = LinkPlan { layout, base: BASE, doorbell_can_lose: true, gone_after: None };
        let members: [Member<'static, Region>; 1] = [(leak(device), vec![DeviceSlot::NEW; count].leak())];
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
    /// Lets it look once.
    pub fn service_once(&mut self) {
        self.now += 20_000;
        self.link.service(self.now);
    }
    /// The state of the device.
    pub fn device(&self) -> DeviceSnapshot {
        self.link.snapshot().devices[0].expect("the device")
    }
}
