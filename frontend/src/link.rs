//! The link: one region, one PMM on the other side, several devices, any number of restarts.
//!
//! [`LinkStorage`] is the caller's, usually a `static`, and holds everything that tasks share: the epochs' state, a
//! *cell* for each open device with its queues, and the counts of doorbells. [`Link`] is a handle on it and may be
//! cloned for every task. Each device handle looks at the epochs itself; whichever finds that the PMM is a new one
//! takes what was completed out of every device's rings and only then says hello, since the PMM clears them next.
//!
//! Locks are only ever *tried*. A task that waited for one held by a task of lower priority on the same core would
//! wait for ever; so whoever finds one taken answers `WouldBlock` (or leaves the step to the holder) and says 1 ms as
//! its next deadline.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use hvl_shared_abi::block::{self, BlockError};
use hvl_shared_abi::epoch::{DriverHalf, Foreign, PmmLook, driver_bell};
use hvl_shared_abi::header::{Extent, MAX_DEVICES};
use hvl_shared_abi::{DeviceId, Mem, Window};
use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::platform::{Board, Instant};
use crate::transport::extended::Cell;
use set::{DeviceSet, Members};

mod set;

/// How soon to look again after a lock was found taken, in microseconds.
const BUSY: u64 = 1_000;
/// Most steps of the epochs in one look: lost, greeted, adopted.
const STEPS: u32 = 3;

/// Why a link cannot be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// The storage belongs to a link already.
    InUse,
    /// The memory is shorter than the windows, or than what the board says the region is.
    TooSmall {
        /// Its bytes.
        bytes: u32,
    },
}

impl core::fmt::Display for AttachError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            AttachError::InUse => {
                f.write_str("the storage belongs to a link already; give each link its own")
            }
            AttachError::TooSmall { bytes } => {
                write!(f, "the memory has {bytes:#x} bytes, less than the region that the board names")
            }
        }
    }
}

impl core::error::Error for AttachError {}

/// Why a device cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// It is open already.
    InUse,
    /// All of a link's places for devices are taken.
    TooMany,
    /// Another task is at work on the link; try again.
    Busy,
}

impl core::fmt::Display for OpenError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            OpenError::InUse => "the device is open already",
            OpenError::TooMany => "the link has no place for another device",
            OpenError::Busy => "another task is at work on the link; open the device again",
        })
    }
}

impl core::error::Error for OpenError {}

/// Why what a PMM published is refused. It is looked at again when the PMM has been restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The header is none of the extended profile.
    Foreign(Foreign),
    /// The link block cannot be used.
    Block(BlockError),
    /// The PMM means a region at another address than the board does.
    Base {
        /// What it alleges.
        alleged: u64,
    },
    /// The PMM means a longer region than the board allows.
    Length {
        /// What it alleges.
        alleged: u32,
    },
    /// The PMM has another layout than the firmware was built for.
    Identity {
        /// What it alleges.
        alleged: u64,
    },
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Refusal::Foreign(foreign) => write!(f, "{foreign}"),
            Refusal::Block(error) => write!(f, "{error}"),
            Refusal::Base { alleged } => {
                write!(f, "the PMM says that the region is at {alleged:#x}, and this board has it elsewhere")
            }
            Refusal::Length { alleged } => {
                write!(
                    f,
                    "the PMM says that the region has {alleged:#x} bytes, and this board gives it fewer"
                )
            }
            Refusal::Identity { alleged } => {
                write!(f, "the PMM's layout {alleged:016x} is not the one that this firmware was built for")
            }
        }
    }
}

impl core::error::Error for Refusal {}

/// How the link stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
// So that storage that nobody uses yet is all zeros, which costs firmware no bytes of its image.
#[repr(u8)]
pub enum LinkState {
    /// No PMM is there, or it is starting.
    #[default]
    Down,
    /// Said hello; the PMM has not answered.
    Greeting,
    /// In a session.
    Up,
    /// A PMM is there and cannot be used.
    Refused(Refusal),
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident $count:ident;)*) => {
        /// What happened since the link was attached. Counts wrap.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u32,)*
        }
        /// One counter.
        #[derive(Clone, Copy)]
        pub(crate) enum Count { $($count),* }
        impl Counters {
            /// Every count with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
            fn read(counts: &[AtomicU32; COUNTS]) -> Counters {
                let mut all = counts.iter().map(|count| count.load(Ordering::Relaxed));
                Counters { $($name: all.next().unwrap_or(0)),* }
            }
        }
        const COUNTS: usize = [$(stringify!($name)),*].len();
    };
}

counters! {
    /// Times that the frontend said hello.
    hellos Hello;
    /// Sessions that the PMM adopted.
    sessions Session;
    /// Sessions that ended: the PMM died, was restarted, or ended them.
    lost Lost;
    /// PMMs that were refused; [`Link::state`] says why.
    refused Refused;
    /// Doorbells that were rung.
    bells Bell;
    /// Of these, the ones because something stayed unanswered.
    rekicks Rekick;
    /// Devices that were set up.
    starts Start;
    /// Devices whose places or features did not fit; the device's status says why.
    unfit Unfit;
    /// Faults that the PMM reported.
    faults Fault;
    /// Rings that the PMM broke.
    broken Broken;
    /// Completions with an impossible length.
    overlong Overlong;
    /// Completions without data where data was promised.
    empty Empty;
    /// Blocks that were sent again after a restart.
    resent Resent;
    /// Blocks that were dropped at a restart.
    dropped Dropped;
    /// Times that a lock was found taken by another task.
    busy Busy;
}

/// Where the epochs stand.
#[derive(Clone, Copy, Debug, Default)]
struct Epochs {
    half: DriverHalf,
    state: LinkState,
    expected: Option<u64>,
    /// The PMM that was refused; another one is another chance.
    refused: u32,
}

/// Storage of one link, the caller's; usually a `static`. `'s` is how long the storage of its devices lives.
#[derive(Debug)]
// The words before the cells: firmware reaches what is near with shorter instructions.
#[repr(C)]
pub struct LinkStorage<'s> {
    attached: AtomicBool,
    /// A bit for each device that has not looked since the doorbell rang.
    rang: DeviceSet,
    /// A bit for each device that was made ready for sleep and has not been looked at since: only those need a bell.
    asleep: DeviceSet,
    /// A bit for each device whose task found a lock taken.
    busy: DeviceSet,
    /// A hello waits for a task that is in the middle of something.
    blocked: AtomicBool,
    /// PmmEpoch and EpochSeen as they were when the epochs were last moved on: as long as memory holds the same,
    /// nobody needs a lock to know that there is nothing to do.
    looked: [AtomicU32; 2],
    /// A bit for each open device.
    open: DeviceSet,
    /// How often this side rang.
    bell: AtomicU32,
    /// The session and its PMM, 0 outside of one: copies of what `epochs` holds, for looks without that lock. Storing
    /// `session` publishes all words from here to `last_words`. They change while every cell is closed, so whoever read
    /// the session under a cell's lock keeps what belongs to it (or finds PMM 0, and takes the session for lost).
    session: AtomicU32,
    pmm: AtomicU32,
    /// Kind and block of each device of the session, written while every cell is closed.
    list: [[AtomicU32; 2]; MAX_DEVICES],
    /// Where the last words go; length 0 outside of a session.
    last_words: [AtomicU32; 2],
    /// The PmmBell up to which each device has looked. It orders nothing: the look began after that bell was observed.
    seen: [AtomicU32; MAX_DEVICES],
    counts: [AtomicU32; COUNTS],
    epochs: SpinMutex<Epochs>,
    cells: [SpinMutex<Cell<'s>>; MAX_DEVICES],
}

impl<'s> LinkStorage<'s> {
    /// Storage that no link uses yet. Each use of the constant is another storage, which is what is meant.
    #[allow(clippy::declare_interior_mutable_const)]
    pub const NEW: LinkStorage<'s> = LinkStorage {
        attached: AtomicBool::new(false),
        rang: DeviceSet::EMPTY,
        asleep: DeviceSet::EMPTY,
        busy: DeviceSet::EMPTY,
        blocked: AtomicBool::new(false),
        looked: [const { AtomicU32::new(0) }; 2],
        open: DeviceSet::EMPTY,
        bell: AtomicU32::new(0),
        session: AtomicU32::new(0),
        pmm: AtomicU32::new(0),
        list: [const { [const { AtomicU32::new(0) }; 2] }; MAX_DEVICES],
        last_words: [const { AtomicU32::new(0) }; 2],
        seen: [const { AtomicU32::new(0) }; MAX_DEVICES],
        counts: [const { AtomicU32::new(0) }; COUNTS],
        epochs: SpinMutex::new(Epochs {
            half: DriverHalf::new(),
            state: LinkState::Down,
            expected: None,
            refused: 0,
        }),
        cells: [const { SpinMutex::new(Cell::NEW) }; MAX_DEVICES],
    };
    /// Bytes of it.
    pub const SIZE: usize = size_of::<Self>();
    /// Alignment of it, in bytes.
    pub const ALIGN: usize = align_of::<Self>();

    /// Notes that the doorbell rang: one atomic store, and the only call that is allowed in an interrupt handler.
    #[inline]
    pub fn rang(&self) {
        self.rang.fill();
    }

    /// Leaves the last words of a firmware that cannot go on, where the PMM finds them; cut to the room that there
    /// is. It takes no lock, so a panic handler may call it. Nothing happens outside of a session.
    pub fn leave_last_words<B: Board>(&self, board: &B, text: &[u8]) {
        let [at, len] = &self.last_words;
        let place = Extent { at: at.load(Ordering::Relaxed), len: len.load(Ordering::Acquire) };
        if place.len != 0 {
            block::write_panic_text(board.mem(), place, text);
            self.ring(board);
        }
    }

    #[inline(never)]
    pub(crate) fn count(&self, count: Count, by: u16) {
        if let Some(counter) = self.counts.get(count as usize) {
            counter.fetch_add(u32::from(by), Ordering::Relaxed);
        }
    }

    /// Rings: first the own Bell, then the hardware. Two tasks may store their counts in the wrong order; the PMM
    /// compares for "another", not for "more".
    #[inline(never)]
    pub(crate) fn ring<B: Board>(&self, board: &B) {
        let bell = self.bell.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        driver_bell::ring(board.mem(), bell);
        board.ring();
        self.count(Count::Bell, 1);
    }

    /// Window and block of the `ordinal`-th device of a kind.
    pub(crate) fn find(&self, id: DeviceId, ordinal: u8) -> Option<(Window, u32)> {
        let mut before = 0u8;
        for (index, [kind, block]) in self.list.iter().enumerate() {
            if kind.load(Ordering::Relaxed) == id.0 {
                if before == ordinal {
                    return Some((Window::of(index)?, block.load(Ordering::Relaxed)));
                }
                before = before.wrapping_add(1);
            }
        }
        None
    }
}

/// A handle on a link. Clone it for every task.
#[derive(Debug)]
pub struct Link<'s, B> {
    storage: &'s LinkStorage<'s>,
    board: B,
}

impl<B: Clone> Clone for Link<'_, B> {
    fn clone(&self) -> Self {
        Link { storage: self.storage, board: self.board.clone() }
    }
}

/// A cell that is being looked at.
pub(crate) type CellGuard<'s> = SpinMutexGuard<'s, Cell<'s>>;

impl<'s, B: Board> Link<'s, B> {
    /// Attaches to the region. No PMM need be there: calls answer `LinkDown` until one is.
    pub fn attach(storage: &'s LinkStorage<'s>, board: B) -> Result<Link<'s, B>, AttachError> {
        Self::attach_to(storage, board, None)
    }

    /// The same for a firmware that was compiled for one layout, with
    /// [`Layout::identity`](hvl_shared_abi::Layout::identity): any other is refused.
    pub fn attach_expecting(
        storage: &'s LinkStorage<'s>,
        board: B,
        identity: u64,
    ) -> Result<Link<'s, B>, AttachError> {
        Self::attach_to(storage, board, Some(identity))
    }

    #[inline(never)]
    fn attach_to(
        storage: &'s LinkStorage<'s>,
        board: B,
        expected: Option<u64>,
    ) -> Result<Link<'s, B>, AttachError> {
        let bytes = board.mem().len();
        if bytes < board.region().len || bytes < hvl_shared_abi::header::HEADER_SIZE {
            return Err(AttachError::TooSmall { bytes });
        }
        if storage.attached.swap(true, Ordering::Relaxed) {
            return Err(AttachError::InUse);
        }
        // The count goes on from what memory holds, or an old Seen of the PMM could hide a lost bell.
        storage.bell.store(driver_bell::found(board.mem()), Ordering::Relaxed);
        if let Some(mut epochs) = storage.epochs.try_lock() {
            epochs.expected = expected;
        }
        Ok(Link { storage, board })
    }

    /// The board.
    pub fn board(&self) -> &B {
        &self.board
    }
    pub(crate) fn mem(&self) -> &B::Mem {
        self.board.mem()
    }
    pub(crate) fn storage(&self) -> &'s LinkStorage<'s> {
        self.storage
    }

    /// Notes that the doorbell rang; see [`LinkStorage::rang`].
    #[inline]
    pub fn rang(&self) {
        self.storage.rang();
    }
    /// Leaves the last words; see [`LinkStorage::leave_last_words`].
    pub fn leave_last_words(&self, text: &[u8]) {
        self.storage.leave_last_words(&self.board, text);
    }
    /// What happened so far.
    pub fn counters(&self) -> Counters {
        Counters::read(&self.storage.counts)
    }
    /// How the link stands, as of the last look; `Greeting` while another task is changing it.
    pub fn state(&self) -> LinkState {
        self.storage.epochs.try_lock().map_or(LinkState::Greeting, |epochs| epochs.state)
    }
    /// The PMM's epoch and ours of the last hello; 0 before it, and while another task is at it.
    pub fn epochs(&self) -> (u32, u32) {
        self.storage.epochs.try_lock().map_or((0, 0), |epochs| (epochs.half.pmm(), epochs.half.epoch()))
    }

    // --- looking ----------------------------------------------------------------------------------------------------

    /// Looks at everything, once and bounded: the epochs, and every open device on its owner's behalf.
    ///
    /// It is for a program with one loop for all devices. A task that serves one device calls only that device: a
    /// look on behalf of another task says that its doorbell was heard, and that task may still sleep.
    pub fn poll(&self) {
        let bell = driver_bell::pmm_bell(self.mem());
        if self.storage.open.is_empty() && self.step() {
            self.acknowledge(bell);
        }
        for index in self.storage.open.iter() {
            self.enter(index);
        }
    }

    /// Looks at the epochs and at one device, and returns its cell; nothing if another task has it.
    #[inline(never)]
    pub(crate) fn enter(&self, index: usize) -> Option<CellGuard<'s>> {
        let s = self.storage;
        s.rang.remove(index);
        s.asleep.remove(index);
        let bell = driver_bell::pmm_bell(self.mem());
        let looked = self.step();
        let mut cell = self.cell(index)?;
        // Read under the cell's lock: a hello closes the cell first, so this session cannot be replaced meanwhile.
        let session = s.session.load(Ordering::Acquire);
        cell.advance(self, session);
        if looked {
            if let Some(seen) = s.seen.get(index) {
                seen.store(bell, Ordering::Relaxed);
            }
            self.acknowledge(bell);
        } else {
            self.found_busy(index);
        }
        Some(cell)
    }

    /// Whether `session` has not ended, as memory shows it now.
    pub(crate) fn in_session(&self, session: u32) -> bool {
        self.half(session).in_session(self.mem())
    }
    /// The epochs of a session without a lock. Should another have begun, the PMM's does not match it.
    pub(crate) fn half(&self, session: u32) -> DriverHalf {
        DriverHalf::of(self.storage.pmm.load(Ordering::Relaxed), session)
    }

    /// A device's cell without a look.
    pub(crate) fn cell(&self, index: usize) -> Option<CellGuard<'s>> {
        let cell = self.storage.cells.get(index)?.try_lock();
        if cell.is_none() {
            self.found_busy(index);
        }
        cell
    }

    fn found_busy(&self, index: usize) {
        self.storage.busy.insert(index);
        self.storage.count(Count::Busy, 1);
    }

    /// Says that the PMM's bell was acted on, once every device that sleeps has looked since: the PMM rings again while
    /// it was not, and so wakes the task whose doorbell was lost. A task that is busy with something else looks by
    /// itself before it sleeps.
    fn acknowledge(&self, bell: u32) {
        let s = self.storage;
        let heard = |seen: &AtomicU32| seen.load(Ordering::Relaxed) == bell;
        if s.asleep.iter().all(|index| s.seen.get(index).is_none_or(heard)) && self.is_greeting() {
            driver_bell::acted(self.mem(), bell);
        }
    }

    /// Whether a PMM was greeted: in a session, or a hello has not been answered.
    pub(crate) fn is_greeting(&self) -> bool {
        self.storage.pmm.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn rekick(&self) {
        self.storage.count(Count::Rekick, 1);
        self.storage.ring(&self.board);
    }

    fn has_looked(&self, words: (u32, u32)) -> bool {
        let [pmm, seen] = &self.storage.looked;
        let looked = (pmm.load(Ordering::Relaxed), seen.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        words == looked
    }

    /// Moves the epochs on. `false`: another task is at it, or in the way.
    fn step(&self) -> bool {
        let s = self.storage;
        let mut words = DriverHalf::words(self.mem());
        if self.has_looked(words) {
            return true;
        }
        let Some(mut epochs) = s.epochs.try_lock() else { return false };
        s.blocked.store(false, Ordering::Relaxed);
        for _ in 0..STEPS {
            if !self.step_locked(&mut epochs) {
                break;
            }
        }
        if s.blocked.load(Ordering::Relaxed) {
            // No PMM has this epoch, so the next look tries again.
            words = (u32::MAX, u32::MAX);
        }
        let [pmm, seen] = &s.looked;
        fence(Ordering::Release);
        pmm.store(words.0, Ordering::Relaxed);
        seen.store(words.1, Ordering::Relaxed);
        !s.blocked.load(Ordering::Relaxed)
    }

    /// One step. `true`: another may follow at once.
    #[inline(never)]
    fn step_locked(&self, epochs: &mut Epochs) -> bool {
        let (m, s) = (self.mem(), self.storage);
        match epochs.state {
            LinkState::Up if epochs.half.in_session(m) => return false,
            LinkState::Up => {
                s.session.store(0, Ordering::Relaxed);
                s.count(Count::Lost, 1);
                epochs.state = LinkState::Down;
                s.pmm.store(0, Ordering::Relaxed);
                // What the PMM completed before it went is good news already; before the hello all cells look again.
                self.harvest(false);
            }
            LinkState::Down => return self.hello(epochs),
            LinkState::Greeting => match epochs.half.adopted(m) {
                None => return false,
                Some(false) => epochs.state = LinkState::Down,
                Some(true) => match self.check(epochs) {
                    Ok(last_words) => {
                        let [at, len] = &s.last_words;
                        at.store(last_words.at, Ordering::Relaxed);
                        len.store(last_words.len, Ordering::Release);
                        epochs.state = LinkState::Up;
                        s.count(Count::Session, 1);
                        s.session.store(epochs.half.epoch(), Ordering::Release);
                    }
                    // The session's end is looked for before its words are believed to be wrong.
                    Err(_) if !epochs.half.in_session(m) => epochs.state = LinkState::Down,
                    Err(refusal) => self.refuse(epochs, epochs.half.pmm(), refusal),
                },
            },
            LinkState::Refused(_) if self.still_refused(epochs) => return false,
            LinkState::Refused(_) => epochs.state = LinkState::Down,
        }
        true
    }

    fn still_refused(&self, epochs: &Epochs) -> bool {
        DriverHalf::look(self.mem()) == PmmLook::Present(epochs.refused)
    }

    #[inline(never)]
    fn refuse(&self, epochs: &mut Epochs, pmm: u32, refusal: Refusal) {
        (epochs.state, epochs.refused) = (LinkState::Refused(refusal), pmm);
        self.storage.pmm.store(0, Ordering::Relaxed);
        self.storage.count(Count::Refused, 1);
    }

    /// *Hello*, if there is a PMM and no device is in the middle of something.
    fn hello(&self, epochs: &mut Epochs) -> bool {
        let (m, s) = (self.mem(), self.storage);
        let PmmLook::Present(pmm) = DriverHalf::look(m) else { return false };
        if !self.harvest(true) {
            s.blocked.store(true, Ordering::Relaxed);
            return false;
        }
        let [_, words] = &s.last_words;
        words.store(0, Ordering::Relaxed);
        let devices = match self.list() {
            Ok(devices) => devices,
            // Half written words are those of a PMM that has just been started: not refused, looked at again.
            Err(_) if DriverHalf::look(m) != PmmLook::Present(pmm) => return false,
            Err(foreign) => {
                self.refuse(epochs, pmm, Refusal::Foreign(foreign));
                return false;
            }
        };
        if !epochs.half.hello(m, pmm, devices) {
            return false;
        }
        s.pmm.store(pmm, Ordering::Relaxed);
        epochs.state = LinkState::Greeting;
        s.count(Count::Hello, 1);
        s.ring(&self.board);
        true
    }

    /// Takes what was completed out of every device's rings, and closes them if asked to. `false`: some task is at
    /// work on a ring that is about to be cleared; it will see the epoch itself.
    #[inline(never)]
    fn harvest(&self, close: bool) -> bool {
        let mut all = true;
        for cell in &self.storage.cells {
            let Some(mut cell) = cell.try_lock() else {
                all = false;
                continue;
            };
            cell.harvest(self);
            if close {
                cell.close();
            }
        }
        all
    }

    /// Notes which devices there are, and says how many.
    fn list(&self) -> Result<usize, Foreign> {
        let list = &self.storage.list;
        for [kind, _] in list {
            kind.store(DeviceId::NONE.0, Ordering::Relaxed);
        }
        DriverHalf::devices(self.mem(), |index, id, at| {
            if let Some([kind, block]) = list.get(index) {
                kind.store(id.0, Ordering::Relaxed);
                block.store(at, Ordering::Relaxed);
            }
        })
    }

    /// Checks what the link block alleges against what the board and the firmware know.
    fn check(&self, epochs: &Epochs) -> Result<Extent, Refusal> {
        let region = self.board.region();
        let at = self.storage.list.first().map_or(0, |[_, block]| block.load(Ordering::Relaxed));
        let link = block::read_link(self.mem(), at).map_err(Refusal::Block)?;
        if link.base != region.base {
            Err(Refusal::Base { alleged: link.base })
        } else if link.len > region.len {
            Err(Refusal::Length { alleged: link.len })
        } else if epochs.expected.is_some_and(|identity| identity != link.identity) {
            Err(Refusal::Identity { alleged: link.identity })
        } else {
            Ok(link.panic_text)
        }
    }

    // --- sleeping ---------------------------------------------------------------------------------------------------

    /// Before the program sleeps: asks for doorbells, and looks once more at everything. `true`: there is more to do,
    /// so look again instead of sleeping.
    pub fn prepare_sleep(&self) -> bool {
        self.rest(self.storage.open.iter()) == Instant::UNKNOWN
    }

    /// Prepares to sleep, and says until when: [`Instant::UNKNOWN`], which has passed, if there is more to do; nothing
    /// if only a doorbell is worth waking for.
    ///
    /// The order is that of "look, arm, look once more, sleep": call it last, and sleep in a way that a doorbell since
    /// this call cuts short (WFI with interrupts masked, or an event that latches).
    pub fn next_deadline(&self) -> Option<Instant> {
        Some(self.rest(self.storage.open.iter())).filter(|&until| until != Instant::NEVER)
    }

    /// [`Link::prepare_sleep`] for a task that serves one device.
    pub(crate) fn prepare_sleep_of(&self, index: usize) -> bool {
        self.rest(Members::only(index)) == Instant::UNKNOWN
    }
    /// [`Link::next_deadline`] for a task that serves one device.
    pub(crate) fn next_deadline_of(&self, index: usize) -> Option<Instant> {
        Some(self.rest(Members::only(index))).filter(|&until| until != Instant::NEVER)
    }

    /// Arms some devices, looks once more, and says until when there is nothing to do.
    #[inline(never)]
    fn rest(&self, devices: Members) -> Instant {
        let s = self.storage;
        let mut until = Instant::NEVER;
        for index in devices {
            until = until.min(self.rest_of(index));
        }
        // Where another task is at the epochs, this one was told so and has a deadline.
        let looked = s.blocked.load(Ordering::Relaxed) || self.has_looked(DriverHalf::words(self.mem()));
        if looked || s.epochs.is_locked() { until } else { Instant::UNKNOWN }
    }

    fn rest_of(&self, index: usize) -> Instant {
        let s = self.storage;
        s.asleep.insert(index);
        let mut until = Instant::NEVER;
        if let Some(mut cell) = self.cell(index) {
            let more = cell.arm(self.mem());
            let bell = driver_bell::pmm_bell(self.mem());
            let heard = s.seen.get(index).is_some_and(|seen| seen.load(Ordering::Relaxed) == bell);
            let busy = s.busy.has(index);
            if more || s.rang.has(index) || (!heard && !busy) {
                return Instant::UNKNOWN;
            }
            until = cell.deadline();
        }
        // A lock was taken: its holder needs the processor, so this task does not simply look again.
        if s.busy.remove(index) {
            let now = self.board.now();
            until = until.min(if now.is_known() { now.plus(BUSY) } else { Instant::NEVER });
        }
        until
    }

    // --- devices ----------------------------------------------------------------------------------------------------

    /// Gives a device a cell, still without queues.
    #[inline(never)]
    pub(crate) fn open(
        &self,
        id: DeviceId,
        ordinal: u8,
        wanted: u64,
    ) -> Result<(usize, CellGuard<'s>), OpenError> {
        let s = self.storage;
        for (index, cell) in s.cells.iter().enumerate() {
            let mut cell = cell.try_lock().ok_or(OpenError::Busy)?;
            if !s.open.has(index) {
                // None is ever closed, so none behind the first free one is open.
                cell.identify(id, ordinal, wanted);
                s.open.insert(index);
                return Ok((index, cell));
            }
            if cell.is_for(id, ordinal) {
                return Err(OpenError::InUse);
            }
        }
        Err(OpenError::TooMany)
    }
}

#[cfg(test)]
mod tests;
