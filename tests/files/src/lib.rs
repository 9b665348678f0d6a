//! A link in one process: a PMM in a thread of its own, with a file device, entropy and a console, and a board on which
//! the frontend runs in the test's thread. The PMM can be stopped and another one started on the same memory.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant as Clocked};

use hvl_frontend::device::console::{Console, ConsoleStorage};
use hvl_frontend::device::p9::{Files, FilesStorage, Options};
use hvl_frontend::device::rng::{Rng, RngStorage};
use hvl_frontend::{Board, Clock, Doorbell, Instant, Link, LinkStorage, Wait};
use hvl_pmm::device::console::Console as ConsoleDevice;
use hvl_pmm::device::p9::P9;
use hvl_pmm::device::rng::Rng as RngDevice;
use hvl_pmm::host::{self, ByteEnd, Conversation, Conversations, EndError, HostEnd, Shared, SystemEntropy};
use hvl_pmm::link::{Link as PmmLink, LinkPlan, Member};
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::{Attribute, DeviceSpec, Layout, Mem, Region, ShmRegion};

const BASE: u64 = 0x3700_0000;
const LEN: u32 = 0x10_0000;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A doorbell that is never lost.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    news: Condvar,
}

impl Bell {
    fn ring(&self) {
        *lock(&self.rung) = true;
        self.news.notify_all();
    }
    fn wait(&self, most: Duration) {
        let rung = lock(&self.rung);
        let (mut rung, _) =
            self.news.wait_timeout_while(rung, most, |rung| !*rung).unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

/// The memory and the doorbells of one link.
#[derive(Clone)]
pub struct Wire {
    memory: Region,
    to_pmm: Arc<Bell>,
    to_guest: Arc<Bell>,
    start: Clocked,
}

impl Wire {
    /// A new one, never freed: tests are short.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Wire {
        let words: Vec<AtomicU32> = (0..LEN / 4).map(|_| AtomicU32::new(0)).collect();
        let memory = Region::in_words(words.leak(), Attribute::Coherent);
        Wire { memory, to_pmm: Arc::default(), to_guest: Arc::default(), start: Clocked::now() }
    }

    fn micros(&self) -> u64 {
        self.start.elapsed().as_micros() as u64 + 1
    }
}

impl Doorbell for Wire {
    fn ring(&self) {
        self.to_pmm.ring();
    }
}

impl Clock for Wire {
    fn now(&self) -> Instant {
        Instant::from_micros(self.micros())
    }
}

impl Board for Wire {
    type Mem = Region;
    fn mem(&self) -> &Region {
        &self.memory
    }
    fn region(&self) -> ShmRegion {
        ShmRegion { base: BASE, len: self.memory.len() }
    }
}

impl Wait for Wire {
    fn wait_for_doorbell(&self, deadline: Option<Instant>) {
        let most = deadline.map_or(1_000_000, |until| until.since(self.now()));
        self.to_guest.wait(Duration::from_micros(most));
    }
}

/// A terminal that gives back what it gets.
#[derive(Default)]
struct Echo(std::collections::VecDeque<u8>);

impl ByteEnd for Echo {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        self.0.extend(bytes);
        Ok(bytes.len())
    }
    fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        match self.0.len().min(into.len()) {
            0 => Err(EndError::WouldBlock),
            count => {
                into.iter_mut().zip(self.0.drain(..count)).for_each(|(to, from)| *to = from);
                Ok(count)
            }
        }
    }
}

/// A PMM that runs in a thread until it is dropped, which is no shutdown: it goes as if it had been killed.
pub struct Pmm {
    stop: Arc<Mutex<bool>>,
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl Pmm {
    /// Starts one whose file device is served by `conversations`.
    pub fn start(wire: &Wire, conversations: impl Conversations + 'static) -> Pmm {
        let (wire, stop) = (wire.clone(), Arc::<Mutex<bool>>::default());
        let (bell, stopped) = (wire.to_pmm.clone(), stop.clone());
        let thread = std::thread::spawn(move || serve(&wire, Box::new(conversations), &stopped));
        Pmm { stop, bell, thread: Some(thread) }
    }
}

impl Drop for Pmm {
    fn drop(&mut self) {
        *lock(&self.stop) = true;
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the PMM does not panic");
        }
    }
}

fn serve(wire: &Wire, conversations: Box<dyn Conversations>, stop: &Mutex<bool>) {
    let layout = Layout::place(&[DeviceSpec::P9, DeviceSpec::RNG, DeviceSpec::CONSOLE], LEN)
        .expect("the devices fit into 1 MiB");
    let mut workers = Shared::new(host::Files::start(conversations).expect("threads and descriptors"));
    let mut files = P9::new(workers.clone(), b"host").expect("a short tag");
    let (mut rng, mut console) = (RngDevice::new(SystemEntropy), ConsoleDevice::new(Echo::default()));
    let mut slots: Vec<Vec<DeviceSlot>> = layout
        .devices()
        .iter()
        .map(|place| vec![DeviceSlot::NEW; PmmLink::<Region>::slots_for(place)])
        .collect();
    let [a, b, c] = &mut slots[..] else { panic!("three devices") };
    let members: [Member<'_, Region>; 3] =
        [(&mut files, &mut a[..]), (&mut rng, &mut b[..]), (&mut console, &mut c[..])];
    let plan = LinkPlan { layout, base: BASE, doorbell_can_lose: false, gone_after: None };
    let mut link = PmmLink::publish(wire.memory, plan, members, None, None).expect("a link");
    wire.to_guest.ring();
    while !*lock(stop) {
        workers.progress(0);
        let service = link.service(wire.micros());
        if service.ring {
            wire.to_guest.ring();
        }
        if !service.again {
            // Workers have no bell here; a millisecond is as good.
            wire.to_pmm.wait(Duration::from_millis(1));
        }
    }
}

/// What a guest has: the link, and a handle on each device.
pub struct Guest {
    /// The file client.
    pub files: Files<'static, Wire>,
    /// Entropy.
    pub rng: Rng<'static, Wire>,
    /// The console, which echoes.
    pub console: Console<'static, Wire>,
}

impl Guest {
    /// Attaches; a call on files waits for `timeout` at most.
    pub fn boot(wire: &Wire, timeout: Duration) -> Guest {
        let options = Options { timeout: timeout.as_micros() as u64, ..Options::default() };
        Guest::boot_with(wire, options)
    }

    /// The same with other options of the file client.
    pub fn boot_with(wire: &Wire, options: Options) -> Guest {
        let storage = Box::leak(Box::new(LinkStorage::NEW));
        let link = Link::attach(storage, wire.clone()).expect("a link");
        let files = Box::leak(Box::<FilesStorage>::default());
        let files = Files::open(&link, files, options).expect("files");
        let rng = Rng::open(&link, Box::leak(Box::<RngStorage>::default())).expect("entropy");
        let console =
            Console::open(&link, Box::leak(Box::new(ConsoleStorage::<64, 64>::NEW)), Default::default())
                .expect("a console");
        Guest { files, rng, console }
    }
}

/// Conversations that are all the same.
pub struct Same<C>(pub Arc<C>);

impl<C: Conversation + 'static> Conversations for Same<C> {
    fn begin(&self) -> Arc<dyn Conversation> {
        self.0.clone()
    }
    fn state(&self) -> String {
        "a test".into()
    }
}
