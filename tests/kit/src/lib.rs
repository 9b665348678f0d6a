//! What tests of the link share: a region, a PMM in this process with virtual time and host ends that can be looked
//! into, a board for the frontend, and a raw guest that can be told to misbehave.

pub mod board;
pub mod docs;
pub mod guest;
pub mod table;

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hvl_pmm::device::console::Console;
use hvl_pmm::device::rng::Rng;
use hvl_pmm::host::{ByteEnd, EndError, Entropy};
use hvl_pmm::link::{Link, LinkPlan, Member, Service};
use hvl_pmm::snapshot::{DeviceSnapshot, LinkSnapshot};
use hvl_pmm::transport::plain::{PlainRecord, Recorder};
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::{Attribute, DeviceSpec, Layout, Region};

/// The guest's address of the region.
pub const BASE: u64 = 0x3700_0000;
/// Length of the region in bytes.
pub const LEN: u32 = 0x10_0000;

/// Says that a test, or a part of one, cannot run here, and why. Past what captures the output of a test that succeeds:
/// `cargo xtask test` counts these lines.
pub fn skipped(what: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

/// A region of zeroes that is never freed: tests are short.
pub fn region() -> Region {
    let words: Vec<AtomicU32> = (0..LEN / 4).map(|_| AtomicU32::new(0)).collect();
    Region::in_words(words.leak(), Attribute::Coherent)
}

/// The link of every test: entropy at window 0, a console at window 1.
pub fn layout() -> Layout {
    Layout::place(&[DeviceSpec::RNG, DeviceSpec::CONSOLE], LEN).expect("the default devices fit into 1 MiB")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Screen {
    sent: Vec<u8>,
    typed: VecDeque<u8>,
    stuck: bool,
    /// Its columns and rows, if they are not 80 and 24.
    size: Option<(u16, u16)>,
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
}

/// The terminal behind the console.
#[derive(Clone, Default)]
pub struct Terminal(Arc<Mutex<Screen>>);

impl Terminal {
    /// Everything that the guest has sent.
    pub fn sent(&self) -> Vec<u8> {
        lock(&self.0).sent.clone()
    }
    /// Types something.
    pub fn type_in(&self, bytes: &[u8]) {
        lock(&self.0).typed.extend(bytes);
    }
    /// Takes no bytes any more, or takes them again.
    pub fn stick(&self, stuck: bool) {
        lock(&self.0).stuck = stuck;
    }
    /// Gets another size, in columns and rows.
    pub fn resize(&self, cols: u16, rows: u16) {
        lock(&self.0).size = Some((cols, rows));
    }
    /// Does something while the PMM is in the middle of its look: when it sends the next bytes.
    pub fn meanwhile(&self, act: impl FnOnce() + Send + 'static) {
        lock(&self.0).meanwhile = Some(Box::new(act));
    }
}

impl ByteEnd for Terminal {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        let mut screen = lock(&self.0);
        if screen.stuck {
            return Err(EndError::WouldBlock);
        }
        screen.sent.extend_from_slice(bytes);
        screen.meanwhile.take().into_iter().for_each(|act| act());
        Ok(bytes.len())
    }
    fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        let typed = &mut lock(&self.0).typed;
        if typed.is_empty() {
            return Err(EndError::WouldBlock);
        }
        let count = into.len().min(typed.len());
        for (to, from) in into.iter_mut().zip(typed.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }
    fn size(&self) -> Option<(u16, u16)> {
        lock(&self.0).size.or(Some((80, 24)))
    }
}

/// Counts up, so that what a guest gets can be told from anything else; never 0.
pub struct Counter(pub u8);

impl Entropy for Counter {
    fn fill(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        for byte in into.iter_mut() {
            self.0 = self.0 % 250 + 1;
            *byte = self.0;
        }
        Ok(into.len())
    }
}

/// Where a PMM keeps its record of a plain guest.
#[derive(Clone, Default)]
pub struct Notebook(Arc<Mutex<Page>>);

#[derive(Default)]
struct Page {
    kept: PlainRecord,
    refusals: usize,
}

impl Notebook {
    /// What was kept last.
    pub fn kept(&self) -> PlainRecord {
        lock(&self.0).kept
    }
    /// Cannot keep this many records, as while a disk is full.
    pub fn refuse(&self, records: usize) {
        lock(&self.0).refusals = records;
    }
    /// How many of those are still to be refused.
    pub fn refusals(&self) -> usize {
        lock(&self.0).refusals
    }
}

impl Recorder for Notebook {
    fn record(&mut self, record: &PlainRecord) -> bool {
        let mut page = lock(&self.0);
        if let Some(fewer) = page.refusals.checked_sub(1) {
            page.refusals = fewer;
            return false;
        }
        page.kept = *record;
        true
    }
}

/// A PMM in this process.
pub struct Pmm {
    /// The region that it serves.
    pub m: Region,
    /// The terminal behind its console, also of the next one.
    pub terminal: Terminal,
    /// Its record of a plain guest.
    pub notebook: Notebook,
    /// Virtual time in microseconds.
    pub now: u64,
    /// It has rung since somebody took the doorbell.
    pub rang: bool,
    /// When its looks rang, in virtual time.
    pub rings: Vec<u64>,
    doorbell_can_lose: bool,
    gone_after: Option<u64>,
    link: Link<'static, Region>,
}

impl Pmm {
    /// Starts one on a region, with a doorbell that can lose.
    pub fn start(m: Region) -> Pmm {
        Pmm::start_with(m, true)
    }

    /// Starts one on a region.
    pub fn start_with(m: Region, doorbell_can_lose: bool) -> Pmm {
        Pmm::start_and_presume_gone(m, doorbell_can_lose, None)
    }

    /// Starts one that presumes a guest gone after so many microseconds of silence.
    pub fn start_and_presume_gone(m: Region, doorbell_can_lose: bool, gone_after: Option<u64>) -> Pmm {
        let (terminal, notebook) = (Terminal::default(), Notebook::default());
        let link = publish(m, &terminal, &notebook, None, doorbell_can_lose, gone_after);
        let rings = Vec::new();
        Pmm { m, terminal, notebook, now: 0, rang: true, rings, doorbell_can_lose, gone_after, link }
    }

    /// Kills it, as SIGKILL does, and starts another one.
    pub fn restart(&mut self, record: Option<PlainRecord>) {
        let (lossy, gone_after) = (self.doorbell_can_lose, self.gone_after);
        self.link = publish(self.m, &self.terminal, &self.notebook, record.as_ref(), lossy, gone_after);
        self.rang = true;
    }

    /// Lets it look until it has nothing more to do, which is to happen soon.
    pub fn service(&mut self) {
        self.settle();
    }

    /// The same; returns when it wants to look again at the latest.
    fn settle(&mut self) -> u64 {
        for _ in 0..1000 {
            self.now += 10;
            let service = self.look();
            if !service.again {
                return service.deadline;
            }
        }
        panic!("the PMM had more to do after 1000 services: it spins");
    }

    /// Lets it look once, however much there is to do. Returns whether there is more.
    pub fn service_once(&mut self) -> bool {
        self.look().again
    }

    fn look(&mut self) -> Service {
        let service = self.link.service(self.now);
        self.rang |= service.ring;
        self.rings.extend(service.ring.then_some(self.now));
        service
    }

    /// Lets time pass, up to each of its deadlines in turn.
    pub fn pass(&mut self, micros: u64) {
        let end = self.now + micros;
        while self.now < end {
            let deadline = self.settle();
            self.now = deadline.clamp(self.now + 1, end.max(self.now + 1));
        }
        self.service();
    }

    /// Tells it that its doorbell's peer has hung up.
    pub fn hang_up(&mut self) {
        self.rang |= self.link.hang_up(self.now);
    }

    /// Ends it in good order.
    pub fn shutdown(&mut self) {
        self.link.shutdown();
    }

    /// Its state.
    pub fn snapshot(&self) -> LinkSnapshot {
        self.link.snapshot()
    }
    /// The state of one device.
    pub fn device(&self, index: usize) -> DeviceSnapshot {
        self.snapshot().devices.get(index).copied().flatten().expect("the device of this index")
    }
    /// What the guest's last incarnation left to be read.
    pub fn last_words(&self) -> Vec<u8> {
        self.link.last_words().to_vec()
    }
}

fn publish(
    m: Region,
    terminal: &Terminal,
    notebook: &Notebook,
    record: Option<&PlainRecord>,
    doorbell_can_lose: bool,
    gone_after: Option<u64>,
) -> Link<'static, Region> {
    let layout = layout();
    let slots = |index: usize| {
        let count = layout.devices().get(index).map_or(0, Link::<Region>::slots_for);
        vec![DeviceSlot::NEW; count].leak()
    };
    let rng = Box::leak(Box::new(Rng::new(Counter(0))));
    let console = Box::leak(Box::new(Console::new(terminal.clone())));
    let notebook = Box::leak(Box::new(notebook.clone()));
    let plan = LinkPlan { layout, base: BASE, doorbell_can_lose, gone_after };
    let members: [Member<'static, Region>; 2] = [(rng, slots(0)), (console, slots(1))];
    Link::publish(m, plan, members, Some(notebook), record).expect("a link that fits its layout")
}
