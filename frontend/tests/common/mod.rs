//! A board in this process, and a PMM that does what a test says: it lives as long as it is let, and it can lie.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use hvl_frontend::{Board, Clock, Doorbell, Instant, Link, LinkStorage};
use hvl_shared_abi::epoch::{DeviceLook, GuestLook, PmmDevice, PmmHalf, StaticWords, write_static};
use hvl_shared_abi::header::{Fault, reg};
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::ring::{Access, DeviceRing, Segment, Taken, Token, Windows};
use hvl_shared_abi::wire::console;
use hvl_shared_abi::{
    Attribute, DeviceId, DeviceSpec, Features, Layout, Mem, Region, ShmRegion, Window, block,
};

pub const BASE: u64 = 0x1000_0000;
pub const LEN: u32 = 0x2_0000;

pub fn region(len: u32) -> Region {
    let words: Vec<AtomicU32> = (0..len / 4).map(|_| AtomicU32::new(0)).collect();
    Region::in_words(words.leak(), Attribute::Coherent)
}

/// What lies between the two sides besides memory.
#[derive(Default)]
pub struct Between {
    pub now: AtomicU64,
    pub rings: AtomicU32,
    /// What the other side does at once when it is rung.
    pub answer: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Clone)]
pub struct TestBoard {
    pub mem: Region,
    pub region: ShmRegion,
    pub between: Arc<Between>,
}

impl TestBoard {
    pub fn new() -> TestBoard {
        let between = Arc::new(Between { now: AtomicU64::new(1), ..Between::default() });
        TestBoard { mem: region(LEN), region: ShmRegion { base: BASE, len: LEN }, between }
    }
    /// The same memory after a reboot of the firmware.
    pub fn reboot(&self) -> TestBoard {
        self.clone()
    }
    pub fn pass(&self, micros: u64) {
        self.between.now.fetch_add(micros, SeqCst);
    }
    pub fn rings(&self) -> u32 {
        self.between.rings.load(SeqCst)
    }
}

impl Doorbell for TestBoard {
    fn ring(&self) {
        self.between.rings.fetch_add(1, SeqCst);
        self.between.answer.get().into_iter().for_each(|answer| answer());
    }
}
impl Clock for TestBoard {
    fn now(&self) -> Instant {
        Instant::from_micros(self.between.now.load(SeqCst))
    }
}
impl Board for TestBoard {
    type Mem = Region;
    fn mem(&self) -> &Region {
        &self.mem
    }
    fn region(&self) -> ShmRegion {
        self.region
    }
}

/// A link with storage of its own, for ever: tests are short.
pub fn attach(board: &TestBoard) -> Link<'static, TestBoard> {
    Link::attach(leak(LinkStorage::NEW), board.clone()).unwrap()
}

pub fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

/// A PMM's device.
struct Served {
    id: DeviceId,
    device: PmmDevice,
    rings: Vec<DeviceRing<'static>>,
    /// Receive buffers of a console that wait for input.
    waiting: VecDeque<(Token, Segment)>,
}

/// Where a PMM can die, counted down; at 0 nothing of it happens any more.
pub struct Life(u32);

impl Life {
    pub const LONG: u32 = u32::MAX;
    fn goes_on(&mut self) -> bool {
        self.0 = self.0.saturating_sub(1);
        self.0 > 0
    }
}

/// A PMM that keeps to the protocol, unless a test scribbles.
pub struct Pmm {
    pub m: Region,
    pub layout: Layout,
    pub half: PmmHalf,
    served: Vec<Served>,
    pub life: Life,
    pub features: Features,
    /// What reached the console's host end, and what it will send.
    pub output: Vec<u8>,
    pub input: VecDeque<u8>,
    /// The next random byte.
    pub random: u8,
    /// Most bytes of an answer; 0 is an empty one.
    pub most: u32,
    /// Added to every used length.
    pub overlong: u32,
    /// Chains that may be completed.
    pub patience: u32,
    pub refuse: bool,
}

pub const DEVICES: [DeviceSpec; 2] = [DeviceSpec::RNG, DeviceSpec::CONSOLE];

impl Pmm {
    pub fn start(board: &TestBoard) -> Pmm {
        Pmm::start_for(board, &DEVICES, Life::LONG).unwrap()
    }

    /// Publishes, as far as `life` lasts.
    pub fn start_for(board: &TestBoard, devices: &[DeviceSpec], life: u32) -> Option<Pmm> {
        let m = board.mem;
        let mut life = Life(life);
        let layout = Layout::place(devices, m.len()).unwrap();
        if !life.goes_on() {
            return None;
        }
        let half = PmmHalf::close(&m, devices.len());
        if !life.goes_on() {
            return None;
        }
        let mut served = Vec::new();
        for (index, place) in layout.devices().iter().enumerate() {
            let window = Window::of(index).unwrap();
            let words = StaticWords {
                id: place.spec.id,
                plain_features: 0,
                queue_max: place.spec.queues[0].into(),
                data: place.block,
                data_base: BASE,
                block: place.block.at,
            };
            write_static(&m, window, &words);
            let size = |queue: &hvl_shared_abi::QueuePlace| usize::from(queue.size);
            let rings = place
                .queues()
                .map(|queue| DeviceRing::new(*queue, leak(vec![DeviceSlot::NEW; size(queue)])).unwrap());
            served.push(Served {
                id: place.spec.id,
                device: PmmDevice::new(window),
                rings: rings.collect(),
                waiting: VecDeque::new(),
            });
        }
        if !life.goes_on() {
            return None;
        }
        let mut pmm = Pmm {
            m,
            layout,
            half,
            served,
            life,
            features: Features::VERSION_1 | Features::EVENT_IDX | Features::from_bits_retain(console::F_SIZE),
            output: Vec::new(),
            input: VecDeque::new(),
            random: 1,
            most: u32::MAX,
            overlong: 0,
            patience: u32::MAX,
            refuse: false,
        };
        pmm.half.open(&m);
        pmm.half.ring(&m);
        Some(pmm)
    }

    pub fn devices(&self) -> usize {
        self.served.len()
    }
    fn served(&mut self, id: DeviceId) -> &mut Served {
        self.served.iter_mut().find(|served| served.id == id).unwrap()
    }
    pub fn window(&self, id: DeviceId) -> Window {
        Window::of(self.served.iter().position(|served| served.id == id).unwrap()).unwrap()
    }
    pub fn fail(&mut self, id: DeviceId) {
        let m = self.m;
        self.served(id).device.fail(&m, Fault::NeedsReset);
        self.half.ring(&m);
    }
    /// The used ring's place of a queue, to scribble on.
    pub fn place(&self, id: DeviceId, queue: usize) -> hvl_shared_abi::QueuePlace {
        self.layout.devices().iter().find(|place| place.spec.id == id).unwrap().queues[queue]
    }
    pub fn alive(&self) -> bool {
        self.life.0 > 0
    }

    /// One look at everything, as far as its life lasts.
    pub fn look(&mut self) {
        let m = self.m;
        let bell = self.half.guest_bell(&m);
        if !self.alive() {
            return;
        }
        if let GuestLook::Hello(epoch) = self.half.look(&m, self.devices()) {
            for index in 0..self.served.len() {
                block::write(&m, &self.layout, index, BASE, self.features);
                let served = &mut self.served[index];
                served.waiting.clear();
                served.rings.iter_mut().for_each(|ring| ring.start(&m, Features::empty(), 0));
                served.device.clear(&m);
            }
            if !self.life.goes_on() {
                return;
            }
            self.half.adopt(&m, epoch);
            self.half.ring(&m);
            if !self.life.goes_on() {
                return;
            }
        }
        let Some(epoch) = self.half.adopted() else { return };
        for index in 0..self.served.len() {
            let served = &mut self.served[index];
            match served.device.look(&m, epoch) {
                DeviceLook::Start(_) if self.refuse => {
                    served.device.fail(&m, Fault::FeaturesRefused);
                    self.half.ring(&m);
                }
                DeviceLook::Start(features) => {
                    assert_eq!(self.features.union(features), self.features, "a feature nobody offered");
                    served.waiting.clear();
                    served.rings.iter_mut().for_each(|ring| ring.start(&m, features, 0));
                    if !self.life.goes_on() {
                        return;
                    }
                    served.device.start(&m, epoch);
                    self.half.ring(&m);
                }
                DeviceLook::Reset => {
                    served.waiting.clear();
                    served.rings.iter_mut().for_each(|ring| ring.start(&m, Features::empty(), 0));
                    served.device.clear(&m);
                    self.half.ring(&m);
                }
                DeviceLook::Same => {}
            }
            if !self.life.goes_on() {
                return;
            }
            if self.served[index].device.runs() {
                self.serve(index);
            }
            if !self.alive() {
                return;
            }
        }
        self.half.acted(&m, bell);
    }

    fn serve(&mut self, index: usize) {
        let m = self.m;
        let pool = [self.layout.devices()[index].pool];
        let windows = Windows { base: BASE, allowed: &pool };
        let id = self.served[index].id;
        for queue in 0..self.served[index].rings.len() {
            let mut completed = Vec::new();
            loop {
                let mut segments = [Segment::readable(0, 0); 8];
                let served = &mut self.served[index];
                if self.patience == 0 {
                    break;
                }
                let taken = served.rings[queue].take(&m, windows, &mut segments).expect("the driver's ring");
                let Some(taken) = taken else { break };
                let Taken::Chain { token, readable, writable } = taken else { panic!("{taken:?}") };
                assert_eq!(readable + writable, 1);
                let segment = segments[0];
                assert_eq!(segment.place.at % 64, 0);
                match (id, segment.access) {
                    (DeviceId::CONSOLE, Access::Writable) => {
                        served.waiting.push_back((token, segment));
                        continue;
                    }
                    (DeviceId::CONSOLE, Access::Readable) => {
                        let mut bytes = vec![0; segment.place.len as usize];
                        m.copy_in(segment.place.at, &mut bytes);
                        self.output.extend(bytes);
                        completed.push((token, 0));
                    }
                    _ => {
                        let len = segment.place.len.min(self.most);
                        for at in 0..len {
                            m.write8(segment.place.at + at, self.random);
                            self.random = self.random.wrapping_add(1).max(1);
                        }
                        completed.push((token, len));
                    }
                }
                self.patience -= 1;
            }
            if id == DeviceId::CONSOLE && queue == console::RECEIVE {
                while !self.input.is_empty() {
                    let Some((token, segment)) = self.served[index].waiting.pop_front() else { break };
                    let n = self.input.len().min(segment.place.len as usize);
                    let bytes: Vec<u8> = self.input.drain(..n).collect();
                    m.copy_out(segment.place.at, &bytes);
                    completed.push((token, n as u32));
                }
            }
            if !self.life.goes_on() {
                return;
            }
            let ring = &mut self.served[index].rings[queue];
            for (token, len) in completed {
                assert!(ring.complete(&m, token, len + self.overlong));
            }
            if !self.life.goes_on() {
                return;
            }
            let call = ring.publish(&m);
            if !self.life.goes_on() {
                return;
            }
            ring.arm(&m);
            if call {
                self.half.ring(&m);
            }
        }
    }

    /// Stores what a hostile PMM would, in the window of device `id`.
    pub fn scribble(&self, id: DeviceId, register: u32, value: u32) {
        self.m.write32(self.window(id).at(register), value);
    }
    pub fn set_size(&self, cols: u16, rows: u16) {
        let at = self.window(DeviceId::CONSOLE).at(hvl_shared_abi::header::CONFIG);
        self.m.write16(at, cols);
        self.m.write16(at + 2, rows);
    }
    /// Whether the guest has acted on the last bell.
    pub fn heard(&self) -> bool {
        !self.half.unseen(&self.m)
    }
}

pub const DRIVER_SEEN: u32 = reg::DRIVER_SEEN;
