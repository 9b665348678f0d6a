//! Everything that both sides share in one seed: memory, time, doorbells, host ends, and when who dies.
//!
//! One thread runs one seed at a time, so the world is a thread-local value; what stands for memory, a doorbell or a
//! host end at either side is a handle without content, and `Send`, as a board's handles must be.

use std::cell::RefCell;
use std::collections::HashMap;

use fastrand::Rng;
use hvl_shared_abi::header::reg;
use hvl_shared_abi::{DeviceId, Layout, Window};

use crate::coverage::Coverage;
use crate::fault::{Fault, Look, Twist};
use crate::guest::Chores;
use crate::host::Host;
use crate::map::{self, Area, Map, Side};
use crate::memory::Memory;
use crate::plan::{MICRO, MILLI, Plan, SECOND};
use crate::trace::{Entry, Trace};
use crate::traffic::Ends;

/// What a side does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// A plain load.
    Load,
    /// A load that holds back what comes after.
    Observe,
    /// A plain store.
    Store,
    /// A store that comes after what was before.
    Publish,
    /// A full fence.
    Settle,
    /// The barrier before a doorbell.
    Bell,
    /// A word of a copy out of the region.
    CopyIn,
    /// A word of a copy into it.
    CopyOut,
    /// Cache maintenance.
    Clean,
    /// Cache maintenance.
    Invalidate,
    /// The doorbell's hardware.
    Ring,
    /// Asleep.
    Sleep,
}

impl Op {
    /// All of them.
    pub const ALL: [Op; 12] = [
        Op::Load,
        Op::Observe,
        Op::Store,
        Op::Publish,
        Op::Settle,
        Op::Bell,
        Op::CopyIn,
        Op::CopyOut,
        Op::Clean,
        Op::Invalidate,
        Op::Ring,
        Op::Sleep,
    ];
    /// As traces call it.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Load => "load",
            Op::Observe => "observe",
            Op::Store => "store",
            Op::Publish => "publish",
            Op::Settle => "settle",
            Op::Bell => "bell barrier",
            Op::CopyIn => "copy in",
            Op::CopyOut => "copy out",
            Op::Clean => "clean",
            Op::Invalidate => "invalidate",
            Op::Ring => "ring",
            Op::Sleep => "sleep",
        }
    }
}

/// What a side was doing, as far as it matters to where it died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// PMM: publishing itself. Guest: attaching.
    Start,
    /// The state machine: service, or poll.
    Serve,
    /// Guest: writing to, or reading from, the console; asking for entropy.
    Use,
    /// Preparing to sleep.
    Sleep,
    /// PMM: shutting down.
    End,
}

impl Phase {
    /// All of them.
    pub const ALL: [Phase; 5] = [Phase::Start, Phase::Serve, Phase::Use, Phase::Sleep, Phase::End];
    /// As lists of places call it.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Start => "start",
            Phase::Serve => "serve",
            Phase::Use => "use",
            Phase::Sleep => "before sleep",
            Phase::End => "shutdown",
        }
    }
}

/// Why a side stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Its turn is over.
    Switch,
    /// It sleeps until its doorbell, its host end, or this time.
    Sleep(Option<u64>),
    /// It dies here.
    Die,
}

/// One direction of doorbells: to one side.
#[derive(Clone, Debug, Default)]
struct Bell {
    /// When bells on their way arrive.
    coming: Vec<u64>,
    /// It has rung, and the side has not looked.
    pending: bool,
    /// Bells that were lost.
    lost: u64,
}

/// A death that is to happen: at the access after `skip` others at places of this class, or when its time has come.
#[derive(Clone, Copy, Debug)]
struct Doom {
    class: u32,
    skip: u32,
    anyway: u64,
}

/// Classes of places. A death picks a class, so that places that are seldom met are died at as often as others.
const CLASSES: u32 = 128;
/// Accesses that one call into a side may make: more is a loop without a bound.
const MOST_PER_CALL: u64 = 400_000;

/// What happened, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Accesses to shared memory.
    pub accesses: u64,
    /// Deaths of each side.
    pub deaths: [u32; 2],
    /// Doorbells rung by each side.
    pub rings: [u64; 2],
    /// Times that each side woke.
    pub wakes: [u64; 2],
    /// Times that the PMM's doorbell found its peer gone, whether it was or not.
    pub hang_ups: u64,
    /// Bells lost on the way.
    pub lost: u64,
    /// Bytes that were sent again and arrived twice.
    pub duplicates: u64,
    /// Bytes from the host that nobody received.
    pub unread: u64,
}

/// The state of one seed.
pub struct World {
    /// What the seed decided beforehand.
    pub plan: Plan,
    /// The layout.
    pub layout: Layout,
    /// The region.
    pub memory: Memory,
    /// Nanoseconds since the start.
    pub now: u64,
    /// What the guest sends, what the host types, and what became of it.
    pub host: Host,
    /// The host's ends of the other devices.
    pub ends: Ends,
    /// The last accesses.
    pub trace: Trace,
    /// Numbers.
    pub statistics: Statistics,
    /// Places met and died at.
    pub coverage: Coverage,
    /// The first thing that went wrong.
    pub failure: Option<String>,
    rng: Rng,
    phase: [Phase; 2],
    bells: [Bell; 2],
    /// Accesses until the next switch.
    stretch: u32,
    /// Each side's Bell when it last rang.
    rung: [Option<u32>; 2],
    /// Nobody is here any more: what its destructors do has no effect.
    corpse: [bool; 2],
    /// Accesses since each side's last call began.
    call: [u64; 2],
    doom: Option<Doom>,
    /// The target of a directed seed, until it was hit.
    target: Option<u32>,
    /// What planted faults need to know.
    twist: Twisted,
    /// The PMM is asked to end in good order.
    pub shut_down: bool,
    /// Its doorbell's peer has hung up.
    pub hung_up: bool,
    /// Which sides sleep.
    pub asleep: [bool; 2],
    /// Which start of the guest this is, and what it still has to do.
    pub start: usize,
    /// What it still has to do.
    pub chores: Chores,
    /// The PMM was woken by something else than a bell, while the guest slept and no bell was on its way; so often
    /// had the guest woken by then.
    pub silence: Option<u64>,
}

/// Memory of planted faults.
#[derive(Default)]
struct Twisted {
    later: Vec<(Side, u32, u32, u32, u32)>,
    /// Per name: whether the fault has anything to do with it.
    about: Vec<bool>,
    /// Per side: what the last load of a place said.
    loaded: [HashMap<u32, u32>; 2],
    settled: [bool; 2],
}

thread_local! {
    static WORLD: RefCell<Option<Box<World>>> = const { RefCell::new(None) };
}

/// Puts a world in place for this thread.
pub fn install(world: World) {
    WORLD.set(Some(Box::new(world)));
}
/// Takes it away again.
pub fn remove() -> Option<Box<World>> {
    WORLD.take()
}
/// Looks at the world of this thread.
///
/// # Panics
/// Without one.
pub fn with<R>(f: impl FnOnce(&mut World) -> R) -> R {
    WORLD.with_borrow_mut(|world| f(world.as_mut().expect("a seed is running")))
}

impl World {
    /// A world at its beginning.
    pub fn new(plan: Plan, layout: Layout, coverage: Coverage) -> World {
        let mut rng = Rng::with_seed(plan.seed & ((1 << crate::plan::SEED_BITS) - 1));
        let len = layout.end();
        let map = Map::new(&layout, len);
        let is_about = |name| plan.fault.is_some_and(|fault| fault.is_about(map::name_of(name)));
        let about = (0..map::names() as u16).map(is_about).collect();
        let mut memory = Memory::new(map, len, plan.memory);
        if rng.bool() {
            memory.scribble(hvl_shared_abi::header::HEADER_SIZE, &mut rng);
        }
        World {
            layout,
            memory,
            now: 0,
            host: Host::new(&plan, rng.u64(..)),
            ends: Ends::new(&plan, rng.u64(..)),
            trace: Trace::default(),
            statistics: Statistics::default(),
            coverage,
            failure: None,
            rng,
            phase: [Phase::Start; 2],
            bells: [Bell::default(), Bell::default()],
            stretch: 0,
            rung: [None; 2],
            corpse: [true; 2],
            call: [0; 2],
            doom: None,
            target: plan.target,
            twist: Twisted { about, ..Twisted::default() },
            shut_down: false,
            hung_up: false,
            asleep: [false; 2],
            start: 0,
            chores: Chores::default(),
            silence: None,
            plan,
        }
    }

    /// Dice of the seed.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// Notes what went wrong, if nothing has before.
    pub fn fail(&mut self, what: impl Into<String>) {
        if self.failure.is_none() {
            self.failure = Some(what.into());
        }
    }

    // --- sides ------------------------------------------------------------------------------------------------------

    /// A side starts, with nothing but memory.
    pub fn born(&mut self, side: Side) {
        let i = side.index();
        self.corpse[i] = false;
        self.phase[i] = Phase::Start;
        self.call[i] = 0;
        self.bells[i].pending = false;
        self.twist.loaded[i].clear();
        self.twist.settled[i] = false;
        if side == Side::Guest {
            self.memory.greeted = 0;
        }
        self.note(side, "starts");
    }

    /// A side is dead: from here on, what its destructors do has no effect.
    pub fn dies(&mut self, side: Side) {
        let i = side.index();
        self.corpse[i] = true;
        self.memory.die(side, &mut self.rng);
        self.bells[i] = Bell { lost: self.bells[i].lost, ..Bell::default() };
        self.twist.later.retain(|(owner, ..)| *owner != side);
        self.statistics.deaths[i] += 1;
        self.host.died(side);
        self.ends.all().for_each(|end| end.died(side));
        self.note(side, "is dead");
    }

    /// Whether a side is dead or being taken apart.
    pub fn is_corpse(&self, side: Side) -> bool {
        self.corpse[side.index()]
    }

    fn note(&mut self, side: Side, what: &'static str) {
        self.trace.note(self.now, side, what);
    }

    /// A side says what it is about to do.
    pub fn enter(&mut self, side: Side, phase: Phase) {
        self.phase[side.index()] = phase;
        self.call[side.index()] = 0;
    }

    /// How many accesses the side that runs next may make.
    pub fn deal(&mut self) {
        let mean = self.plan.stretch;
        let now = self.now;
        self.ends.all().for_each(|end| end.progress(now));
        self.stretch = if mean <= 1 { 1 } else { self.rng.u32(1..=2 * mean) };
        if self.rng.u8(..) == 0 {
            self.stretch += 3000;
        }
    }

    /// Some side is to die soon.
    pub fn doom(&mut self) {
        let skip = if self.rng.bool() { 0 } else { self.rng.u32(0..12) };
        let anyway = self.now + self.rng.u64(0..400 * MILLI);
        self.doom = Some(Doom { class: self.rng.u32(0..CLASSES), skip, anyway });
    }
    /// Whether a death is still to come.
    pub fn doomed(&self) -> bool {
        self.doom.is_some()
    }
    /// Whether the death that is to come has waited for its place long enough.
    pub fn overdue(&mut self) -> bool {
        let overdue = self.doom.is_some_and(|doom| self.now >= doom.anyway);
        if overdue {
            self.doom = None;
        }
        overdue
    }

    /// Before an access: time passes, things happen by themselves, and it is decided whether this side goes on.
    #[inline]
    pub fn before(&mut self, side: Side, op: Op, at: u32) -> Option<Signal> {
        self.statistics.accesses += 1;
        self.now += self.plan.access_time;
        self.memory.stir(&mut self.rng);
        if !self.twist.later.is_empty() {
            self.delayed(side);
        }
        let i = side.index();
        self.call[i] = if op == Op::Sleep { 0 } else { self.call[i] + 1 };
        if self.call[i] > MOST_PER_CALL {
            self.call[i] = 0;
            self.fail(format!("the {} made {MOST_PER_CALL} accesses in one call", side.name()));
        }
        let name = match op {
            Op::Settle | Op::Bell | Op::Ring | Op::Sleep => 0,
            _ => self.memory.map.place(at).name,
        };
        let site = self.coverage.meet(side, op, self.phase[i], name, self.plan.seed);
        if self.dies_at(site) {
            self.coverage.tried(site);
            return Some(Signal::Die);
        }
        self.stretch = self.stretch.saturating_sub(1);
        if self.stretch == 0 || self.failure.is_some() || self.memory.violation.is_some() {
            return Some(Signal::Switch);
        }
        None
    }

    fn dies_at(&mut self, site: u32) -> bool {
        if self.target.is_some() && self.target == Some(Coverage::hash(site)) {
            self.target = None;
            return true;
        }
        let Some(doom) = &mut self.doom else { return false };
        if Coverage::hash(site) % CLASSES != doom.class {
            return false;
        }
        if doom.skip != 0 {
            doom.skip -= 1;
            return false;
        }
        self.doom = None;
        true
    }

    // --- accesses ---------------------------------------------------------------------------------------------------

    /// A load.
    #[inline]
    pub fn load(&mut self, side: Side, op: Op, at: u32, width: u32) -> u32 {
        if let Some(fault) = self.memory.fault(side, at, width) {
            self.fail(fault);
            return 0;
        }
        let mut observe = op == Op::Observe;
        let mut skip = None;
        if let Some(fault) = self.plan.fault {
            observe &= !fault.drops(side, op);
            skip = self.twisted(fault, side, at);
        }
        let value = match skip {
            Some(value) => value,
            None => self.memory.load(side, at, width, observe, &mut self.rng),
        };
        if self.plan.fault.is_some() {
            self.twist.loaded[side.index()].insert(at, value);
        }
        self.trace.access(Entry { now: self.now, side, op, at, width, value });
        value
    }

    /// What a planted fault makes of a load.
    fn twisted(&mut self, fault: Fault, side: Side, at: u32) -> Option<u32> {
        let after_settle = std::mem::take(&mut self.twist.settled[side.index()]);
        if !self.twist.about[usize::from(self.memory.map.place(at).name)] {
            return None;
        }
        let before = self.twist.loaded[side.index()].get(&at).copied();
        let look = Look {
            truth: self.memory.truth(at & !3),
            before: before.unwrap_or(0),
            first: before.is_none(),
            after_settle,
            epoch: self.memory.truth(Window::LINK.at(reg::DRIVER_EPOCH)),
        };
        match fault.load(side, at, self.memory.map.name(at), &look) {
            Twist::Skip(value) => Some(value),
            _ => None,
        }
    }

    /// A store.
    #[inline]
    pub fn store(&mut self, side: Side, op: Op, at: u32, width: u32, value: u32) {
        if let Some(fault) = self.memory.fault(side, at, width) {
            self.fail(fault);
            return;
        }
        self.trace.access(Entry { now: self.now, side, op, at, width, value });
        let mut publish = op == Op::Publish;
        if let Some(fault) = self.plan.fault {
            publish &= !fault.drops(side, op);
            let about = self.twist.about[usize::from(self.memory.map.place(at).name)];
            let twist =
                if about { fault.store(side, at, value, self.memory.map.name(at)) } else { Twist::None };
            match twist {
                Twist::Skip(_) => return,
                Twist::Later(count) => {
                    self.twist.later.push((side, at, width, value, count));
                    return;
                }
                Twist::None => {}
            }
        }
        self.watch(side, at, value);
        self.memory.store(side, at, width, value, publish, &mut self.rng);
    }

    /// Stores that a planted fault holds back.
    #[cold]
    fn delayed(&mut self, side: Side) {
        let mut due = Vec::new();
        self.twist.later.retain_mut(|(owner, at, width, value, count)| {
            *count -= u32::from(*owner == side).min(*count);
            let now = *count == 0;
            if now {
                due.push((*owner, *at, *width, *value));
            }
            !now
        });
        for (owner, at, width, value) in due {
            self.memory.store(owner, at, width, value, false, &mut self.rng);
        }
    }

    /// Words that say who is in session with whom.
    #[inline]
    fn watch(&mut self, side: Side, at: u32, value: u32) {
        if at == Window::LINK.at(reg::DRIVER_EPOCH) && side == Side::Guest {
            self.host.greeted(value);
            self.memory.greeted = value;
            self.ends.all().for_each(|end| end.greeted());
        } else if side == Side::Pmm && self.memory.map.place(at).area == Area::Header {
            let device = usize::from(self.memory.map.place(at).device);
            let ready = Window::of(device).is_some_and(|window| window.at(reg::DEVICE_READY) == at);
            match self.layout.devices().get(device).map(|place| place.spec.id).filter(|_| ready) {
                Some(DeviceId::CONSOLE) => self.host.served(value),
                Some(id) => {
                    let start = self.host.start_of(value);
                    self.ends.of(id).into_iter().for_each(|end| end.served(start));
                }
                None => {}
            }
        }
    }

    /// A fence.
    pub fn settle(&mut self, side: Side, op: Op) {
        self.trace.access(Entry { now: self.now, side, op, at: 0, width: 0, value: 0 });
        if self.plan.fault.is_some_and(|fault| fault.drops(side, op)) {
            return;
        }
        self.twist.settled[side.index()] = op == Op::Settle;
        self.memory.settle(side, &mut self.rng);
    }

    /// Cache maintenance.
    pub fn maintain(&mut self, side: Side, op: Op, at: u32, len: u32) {
        self.trace.access(Entry { now: self.now, side, op, at, width: len, value: 0 });
        if at.checked_add(len).is_none_or(|end| end > self.memory.len()) {
            self.fail(format!("{} {} of {len:#x} bytes at {at:#x}: outside", side.name(), op.name()));
        } else if !self.plan.fault.is_some_and(|fault| fault.drops(side, op)) {
            match op {
                Op::Clean => self.memory.clean(side, at, len),
                _ => self.memory.invalidate(side, at, len),
            }
        }
    }

    // --- doorbells and time -----------------------------------------------------------------------------------------

    /// A side rings the other.
    pub fn ring(&mut self, side: Side) {
        self.trace.access(Entry { now: self.now, side, op: Op::Ring, at: 0, width: 0, value: 0 });
        self.statistics.rings[side.index()] += 1;
        let word = if side == Side::Pmm { reg::PMM_BELL } else { reg::DRIVER_BELL };
        let count = self.memory.truth(Window::LINK.at(word));
        if self.rung[side.index()].replace(count) == Some(count) {
            self.fail(format!("the {} rang and its Bell, {count:#x}, did not say so", side.name()));
        }
        let kind = self.plan.doorbell;
        let to = side.other().index();
        if self.corpse[to] || self.rng.u8(..) < kind.lost {
            self.bells[to].lost += 1;
            self.statistics.lost += 1;
            return;
        }
        let times = if self.rng.u8(..) < kind.doubled { 2 } else { 1 };
        for _ in 0..times {
            let when = self.now + if kind.delay == 0 { 0 } else { self.rng.u64(0..=kind.delay) };
            self.bells[to].coming.push(when);
        }
    }

    /// Whether a side has something to wake for; it counts as heard then.
    pub fn hear(&mut self, side: Side) -> bool {
        self.arrive(side);
        let heard = core::mem::take(&mut self.bells[side.index()].pending);
        let ready = side == Side::Pmm && self.host_is_ready();
        if heard || ready {
            self.memory.wake(side);
        }
        if ready {
            self.host.heard(self.now);
            self.ends.all().for_each(|end| end.heard(self.now));
        }
        heard || ready
    }

    /// Whether a side that sleeps is woken at this time.
    pub fn wakes(&mut self, side: Side) -> bool {
        self.arrive(side);
        self.bells[side.index()].pending || (side == Side::Pmm && self.host_is_ready())
    }

    fn host_is_ready(&mut self) -> bool {
        let now = self.now;
        self.host.is_ready(now) | self.ends.all().any(|end| end.is_ready(now))
    }

    /// Whether a bell has not arrived, or was not heard.
    pub fn bells_on_their_way(&self) -> bool {
        self.bells.iter().any(|bell| bell.pending || !bell.coming.is_empty())
    }

    fn arrive(&mut self, side: Side) {
        let now = self.now;
        let bell = &mut self.bells[side.index()];
        let before = bell.coming.len();
        bell.coming.retain(|when| *when > now);
        bell.pending |= bell.coming.len() != before;
    }

    /// When the next thing happens to a side that sleeps.
    pub fn next_event(&mut self, side: Side) -> Option<u64> {
        let bell = self.bells[side.index()].coming.iter().copied().min();
        if side == Side::Guest {
            return bell;
        }
        self.ends.all().filter_map(|end| end.next_ready()).chain(bell).chain(self.host.next_ready()).min()
    }

    /// A side woke; `other_sleeps` says whether the other one sleeps meanwhile.
    pub fn woke(&mut self, side: Side, other_sleeps: bool) {
        self.statistics.wakes[side.index()] += 1;
        if side == Side::Pmm {
            let bell = &self.bells[side.index()];
            let rung = bell.pending
                || !bell.coming.is_empty()
                || self.plan.lossy()
                || self.shut_down
                || self.hung_up;
            let held = self.host.holds_requests() || self.ends.all().any(|end| end.holds_requests());
            let silent = other_sleeps && !rung && !held;
            self.silence = silent.then_some(self.statistics.wakes[Side::Guest.index()]);
        }
        self.memory.wake(side);
        self.note(side, "wakes");
    }

    /// The PMM took so many requests in the call that has just ended, which was not for a bell.
    pub fn took(&mut self, requests: u64) {
        let still = self.silence.take() == Some(self.statistics.wakes[Side::Guest.index()]);
        if still && requests != 0 && !self.corpse[Side::Guest.index()] && !self.plan.memory.hostile() {
            self.fail(format!(
                "the PMM found {requests} requests when something else woke it; the guest slept, and had rung for none of them"
            ));
        }
    }

    /// A start of the guest has its work before it.
    pub fn guest_starts(&mut self, start: usize) {
        self.start = start;
        let output = u64::from(self.plan.lines) * 24;
        self.chores = Chores { output, numbers: self.plan.numbers, flushed: false };
        let (now, lines) = (self.now, self.plan.lines / 2);
        self.host.type_soon(now, lines);
        self.ends.all().for_each(|end| end.started(now));
    }
    /// There is more to do for everybody.
    pub fn more(&mut self) {
        self.chores.output += u64::from(self.plan.lines) * 24;
        self.chores.numbers += self.plan.numbers;
        self.chores.flushed = false;
        let (now, lines) = (self.now, self.plan.lines);
        self.host.type_soon(now, lines);
        self.ends.all().for_each(|end| end.more(now));
        // Something outside of the link makes the guest look at its work: a key, a timer of its own.
        self.bells[Side::Guest.index()].pending = true;
    }

    /// Takes over what memory and the judge have found.
    pub fn gather(&mut self) {
        if let Some(what) = self.memory.violation.take().or_else(|| self.host.failure()) {
            self.fail(what);
        }
        // A hostile peer may garble all of it.
        let found = self.ends.all().find_map(|end| end.failure());
        if let Some(what) = found.filter(|_| !self.plan.memory.hostile()) {
            self.fail(what);
        }
    }

    /// A side is taken apart.
    pub fn bury(&mut self, side: Side) {
        self.corpse[side.index()] = true;
    }
    /// A side has ended by itself: what it stored arrives, but it is gone.
    pub fn ended(&mut self, side: Side) {
        if side == Side::Guest {
            self.fail("the guest's program ended");
        }
        self.memory.settle(side, &mut self.rng);
        self.dies(side);
    }
    /// When a side dies whose place was not met.
    pub fn doom_at(&self) -> Option<u64> {
        self.doom.map(|doom| doom.anyway)
    }

    /// How long a dead side stays dead.
    pub fn away(&mut self) -> u64 {
        match self.rng.u32(0..40) {
            0 => 12 * SECOND,
            1..=12 => 0,
            13..=25 => self.rng.u64(0..200) * MICRO,
            _ => self.rng.u64(0..60) * MILLI,
        }
    }
}
