//! A device in the extended profile: from the extension block to running queues, and back after a fault.
//!
//! ```text
//!          session            DeviceReady            Fault, or a broken ring
//!   Idle ──────────> Starting ────────────> Running ─────────────────────> Resetting
//!    │ nothing fits                                                            │ clear, and the pause is over
//!    └──────> Unfit                          Starting <────────────────────────┘
//! ```
//!
//! Nothing waits here: each [`Cell::advance`] looks once. Between a fault and the next set-up lies a pause that
//! doubles, so that a device which fails at once costs the guest little.

use hvl_shared_abi::block::DeviceEntry;
use hvl_shared_abi::epoch::{DeviceState, DriverDevice};
use hvl_shared_abi::header::{CONFIG, CONFIG_SIZE, Extent, Fault, reg};
use hvl_shared_abi::layout::LINE;
use hvl_shared_abi::{DeviceId, Features, Mem, Window};

use crate::bounce::{Queue, Room, Unfit};
use crate::link::{Count, Link};
use crate::platform::{Alarm, Board, Instant};

/// Most queues of one device that this crate drives.
pub(crate) const QUEUES: usize = 3;
/// Tries to read a configuration that is being changed.
const CONFIG_TRIES: usize = 8;
/// The pause between a fault and the next set-up, in microseconds: it doubles from the one to the other.
const FIRST_PAUSE: u32 = 1_000;
const PAUSE_DOUBLINGS: u8 = 13;
/// A device that ran this long without a fault is trusted again, in microseconds.
const TRUSTED: u64 = 10_000_000;

/// How a device stands, as of the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
// So that a cell that nobody uses yet is all zeros, which costs firmware no bytes of its image.
#[repr(u8)]
pub enum DeviceStatus {
    /// There is no session, or it has not been looked at.
    Down,
    /// The PMM has no such device.
    Missing,
    /// What the PMM published for it cannot be used.
    Unfit(Unfit),
    /// Set up; the PMM has not answered.
    Starting,
    /// It runs.
    Running,
    /// It failed and is being reset. [`Fault::None`]: the frontend found the ring broken.
    Resetting(Fault),
}

/// One open device: its queues, and where it stands. A closed cell has no queues.
#[derive(Debug)]
// As in `LinkStorage`.
#[repr(C)]
pub(crate) struct Cell<'s> {
    id: DeviceId,
    ordinal: u8,
    /// Features of its own that the driver uses if they are offered.
    wanted: u64,
    session: u32,
    window: Window,
    accepted: Features,
    status: DeviceStatus,
    alarm: Alarm,
    /// When a faulty device is set up again, how often that was necessary, and when it last ran.
    retry: Instant,
    faults: u8,
    /// Looks, in place of milliseconds on a board without a clock.
    looks: u32,
    pub queues: [Room<'s>; QUEUES],
}

impl<'s> Cell<'s> {
    pub const NEW: Cell<'s> = Cell {
        id: DeviceId::NONE,
        ordinal: 0,
        wanted: 0,
        queues: [const { Room::Empty }; QUEUES],
        session: 0,
        window: Window::LINK,
        accepted: Features::empty(),
        status: DeviceStatus::Down,
        alarm: Alarm::NEW,
        retry: Instant::UNKNOWN,
        faults: 0,
        looks: 0,
    };

    /// Says which device this is.
    pub fn identify(&mut self, id: DeviceId, ordinal: u8, wanted: u64) {
        (self.id, self.ordinal, self.wanted) = (id, ordinal, wanted);
    }
    pub fn is_for(&self, id: DeviceId, ordinal: u8) -> bool {
        (self.id, self.ordinal) == (id, ordinal)
    }
    pub fn status(&self) -> DeviceStatus {
        self.status
    }
    pub fn runs(&self) -> bool {
        self.status == DeviceStatus::Running
    }
    pub fn accepted(&self) -> Features {
        self.accepted
    }
    /// A queue; a device asks only for its own.
    pub fn queue(&mut self, index: usize) -> Option<&mut Queue<'s>> {
        let runs = self.runs();
        let queue = self.queues.get_mut(index)?.queue()?;
        if !runs {
            queue.turn_away();
        }
        Some(queue)
    }

    /// Makes everything that was posted visible, and rings if the PMM wants it.
    pub fn publish<B: Board>(&mut self, link: &Link<'s, B>) {
        let m = link.mem();
        let mut ring = false;
        for queue in self.queues.iter_mut().filter_map(Room::queue) {
            ring |= queue.publish(m);
        }
        if ring {
            link.storage().ring(link.board());
        }
    }

    /// Before sleeping. `true`: there is more to do.
    pub fn arm<M: Mem>(&mut self, m: &M) -> bool {
        let mut more = false;
        if self.runs() {
            for queue in self.queues.iter_mut().filter_map(Room::queue) {
                more |= queue.arm(m);
            }
        }
        more
    }

    /// When to look again without a doorbell.
    pub fn deadline(&self) -> Instant {
        let pause = matches!(self.status, DeviceStatus::Resetting(_)) && self.looks == 0;
        self.alarm.deadline().min(if pause { self.retry } else { Instant::NEVER })
    }

    /// Reads `N` bytes from the start of the configuration, all of one generation. Nothing if the device does not
    /// run, or its generation never rests.
    pub fn config<M: Mem, const N: usize>(&self, m: &M) -> Option<[u8; N]> {
        let generation = self.window.at(reg::CONFIG_GENERATION);
        let mut bytes = [0; N];
        if !self.runs() || N > CONFIG_SIZE as usize {
            return None;
        }
        for _ in 0..CONFIG_TRIES {
            let before = m.observe32(generation);
            m.copy_in(self.window.at(CONFIG), &mut bytes);
            // The copy is complete before the generation is read again.
            m.settle();
            if before & 1 == 0 && m.read32(generation) == before {
                return Some(bytes);
            }
        }
        None
    }

    // --- sessions ---------------------------------------------------------------------------------------------------

    /// Takes what was completed out of the rings, also of a session that has ended while the next one has not begun.
    /// Returns whether the rings are sound, and whether there was anything.
    pub fn harvest<B: Board>(&mut self, link: &Link<'s, B>) -> (bool, bool) {
        let (mut sound, mut progress) = (true, false);
        if !self.has_rings() {
            return (sound, progress);
        }
        for queue in self.queues.iter_mut().filter_map(Room::queue) {
            match queue.look(link.mem(), |what| link.storage().count(what, 1)) {
                Ok(completed) => progress |= completed,
                Err(_) => sound = false,
            }
        }
        (sound, progress)
    }

    /// Whether something may be completed. Also before this side has seen that the device runs: the PMM may have begun, and
    /// died. And also after the session's end, until the next hello.
    fn has_rings(&self) -> bool {
        let status = self.status;
        matches!(status, DeviceStatus::Running | DeviceStatus::Starting)
            || (status == DeviceStatus::Down && self.session != 0)
    }

    /// Ends the session: nothing in the region belongs to this side until the next one is adopted.
    pub fn close(&mut self) {
        (self.session, self.status) = (0, DeviceStatus::Down);
        (self.faults, self.retry) = (0, Instant::UNKNOWN);
        self.alarm.clear();
    }

    /// Looks at the device once, in a session of the link or outside of one (0).
    #[inline(never)]
    pub fn advance<B: Board>(&mut self, link: &Link<'s, B>, session: u32) {
        if session == 0 {
            if self.has_rings() {
                self.status = DeviceStatus::Down;
            }
            self.watch(link, link.is_greeting());
            return;
        }
        let m = link.mem();
        if self.session != session {
            self.close();
            self.session = session;
            self.set_up(link);
            return;
        }
        // The state before the rings: what a device completed before it failed counts.
        let state = DriverDevice(self.window).state(m, &link.half(session));
        match self.status {
            DeviceStatus::Down | DeviceStatus::Missing | DeviceStatus::Unfit(_) => {}
            DeviceStatus::Starting | DeviceStatus::Running => {
                if state == DeviceState::Running && !self.runs() {
                    self.status = DeviceStatus::Running;
                    self.alarm.clear();
                    self.queues.iter_mut().filter_map(Room::queue).for_each(Queue::tell);
                }
                let (sound, completed) = self.harvest(link);
                if completed {
                    self.alarm.clear();
                }
                match state {
                    DeviceState::Faulty(fault) => {
                        link.storage().count(Count::Fault, 1);
                        self.reset(link, fault);
                    }
                    _ if !sound => {
                        link.storage().count(Count::Broken, 1);
                        self.reset(link, Fault::None);
                    }
                    _ if completed => {
                        self.refill(link);
                    }
                    _ => {}
                }
            }
            DeviceStatus::Resetting(_) => {
                if state == DeviceState::Clear && link.in_session(session) && self.pause(link) >= self.retry {
                    self.set_up(link);
                }
            }
        }
        let expects = if self.runs() {
            self.queues.iter_mut().filter_map(Room::queue).any(|queue| queue.expects())
        } else {
            matches!(self.status, DeviceStatus::Starting | DeviceStatus::Resetting(_))
        };
        self.watch(link, expects);
    }

    /// Posts what receive queues have free.
    #[inline(never)]
    pub fn refill<B: Board>(&mut self, link: &Link<'s, B>) {
        for queue in self.queues.iter_mut().filter_map(Room::queue) {
            queue.refill(link.mem());
        }
        self.publish(link);
    }

    /// Kicks again what has stayed unanswered for too long: a hello, a start, a reset, a request. A bell for anything
    /// else that the PMM lost is found by the PMM's own timers.
    fn watch<B: Board>(&mut self, link: &Link<'s, B>, expects: bool) {
        if !expects {
            self.alarm.clear();
        } else if self.alarm.due(link.board().now()) {
            link.rekick();
        }
    }

    /// The time of pauses: the clock, or a millisecond a look where there is none.
    #[inline(never)]
    fn pause<B: Board>(&mut self, link: &Link<'s, B>) -> Instant {
        let now = link.board().now();
        if now.is_known() {
            return now;
        }
        self.looks = self.looks.saturating_add(1);
        Instant::from_micros(u64::from(self.looks).saturating_mul(1_000))
    }

    /// Asks the PMM to reset the device.
    fn reset<B: Board>(&mut self, link: &Link<'s, B>, fault: Fault) {
        let at = self.pause(link);
        if at.since(self.retry) > TRUSTED {
            self.faults = 0;
        }
        let pause = FIRST_PAUSE << self.faults.min(PAUSE_DOUBLINGS);
        self.faults = self.faults.saturating_add(1);
        self.retry = at.plus(pause.into());
        self.status = DeviceStatus::Resetting(fault);
        self.alarm.clear();
        DriverDevice(self.window).reset(link.mem());
        link.storage().ring(link.board());
    }

    /// Set-up state: places, rings, buffers, features; then *start*.
    #[inline(never)]
    fn set_up<B: Board>(&mut self, link: &Link<'s, B>) {
        let s = link.storage();
        let Some((window, at)) = s.find(self.id, self.ordinal) else {
            self.status = DeviceStatus::Missing;
            return;
        };
        self.window = window;
        if let Err(unfit) = self.place(link, at) {
            s.count(Count::Unfit, 1);
            self.status = DeviceStatus::Unfit(unfit);
            return;
        }
        let m = link.mem();
        for queue in self.queues.iter_mut().filter_map(Room::queue) {
            queue.start(m, self.accepted, |what, by| s.count(what, by));
            queue.publish(m);
        }
        self.status = DeviceStatus::Starting;
        self.alarm.clear();
        s.count(Count::Start, 1);
        DriverDevice(window).start(m, self.session, self.accepted);
        s.ring(link.board());
    }

    /// Copies and checks what the block at `at` alleges, and takes the places.
    fn place<B: Board>(&mut self, link: &Link<'s, B>, at: u32) -> Result<(), Unfit> {
        let mut entry = DeviceEntry::NEW;
        entry.read(link.mem(), at).map_err(Unfit::Block)?;
        let offered = Features::from_bits_retain(entry.features);
        if !offered.contains(Features::VERSION_1) {
            return Err(Unfit::Legacy);
        }
        let common = Features::VERSION_1 | Features::EVENT_IDX | Features::ORDER_PLATFORM;
        self.accepted = offered & (common | Features::from_bits_retain(self.wanted));
        let base = link.board().region().base;
        let blocks = self.queues.iter_mut().filter_map(Room::queue).map(|queue| queue.most()).sum();
        let mut at = entry.pool.at.checked_next_multiple_of(LINE).unwrap_or(u32::MAX);
        // As much for each block of any queue, in whole lines: a short queue does not take what a long one lacks.
        let each = entry.pool.end().saturating_sub(at).checked_div(blocks).unwrap_or(0);
        for (queue, place) in self.queues.iter_mut().filter_map(Room::queue).zip(&entry.queues) {
            if place.size == 0 {
                return Err(Unfit::QueuesMissing);
            }
            let len = each.wrapping_mul(queue.most()) & !LINE.wrapping_sub(1);
            queue.place(place, base, Extent { at, len })?;
            at = at.wrapping_add(len);
        }
        Ok(())
    }
}
