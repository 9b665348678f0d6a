//! One seed from beginning to end.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use hvl_shared_abi::Layout;
use hvl_shared_abi::Window;
use hvl_shared_abi::header::reg;

use crate::coverage::Coverage;
use crate::fault::Fault;
use crate::map::Side;
use crate::plan::{MILLI, Plan, SECOND};
use crate::side::{self, Thread};
use crate::world::{self, Signal, Statistics, World};
use crate::{guest, pmm};

/// Bytes of the region at most: room for the largest plan.
const REGION: u32 = 0x2_0000;
/// After the last death everything is up and all is done within this time.
const RECOVERY: u64 = 60 * SECOND;
/// A hostile seed ends after this time or this many accesses.
const HOSTILE_TIME: u64 = 4 * SECOND;
const HOSTILE_ACCESSES: u64 = 60_000;

/// What became of a seed.
pub struct Report {
    /// What it decided.
    pub plan: Plan,
    /// What went wrong, if anything did.
    pub failure: Option<String>,
    /// A number that two runs share only if they did the same.
    pub hash: u64,
    /// What happened.
    pub statistics: Statistics,
    /// Virtual nanoseconds that it took.
    pub time: u64,
    /// The last accesses in words; empty unless it failed or they were asked for.
    pub trace: Vec<String>,
}

/// Runs a seed. `lines` of the trace are put into words if it fails; all that are kept, if `verbose`.
pub fn run(seed: u64, fault: Option<Fault>, coverage: &mut Coverage, lines: usize, verbose: bool) -> Report {
    let _quiet = silence_panics();
    let plan = Plan::of(seed, fault);
    let layout = match Layout::place(&plan.devices, REGION) {
        Ok(layout) => layout,
        Err(error) => unreachable!("the largest plan fits into the region: {error}"),
    };
    world::install(World::new(plan, layout, std::mem::take(coverage)));
    if verbose {
        world::with(|world| world.trace.keep_all());
    }
    let mut sides = Sides { threads: [None, None], state: [State::Dead(0), State::Dead(0)], deaths: 0 };
    let ran = catch_unwind(AssertUnwindSafe(|| sides.all()));
    if let Err(panic) = ran {
        let what = describe(&panic);
        world::with(|world| {
            // What is left of the side is not run any more.
            world.fail(what);
        });
    }
    for side in Side::BOTH {
        sides.bury(side);
    }
    let mut world = world::remove().expect("the world of this seed is still there");
    *coverage = std::mem::take(&mut world.coverage);
    let show = if verbose { usize::MAX } else { lines };
    let show = if verbose || world.failure.is_some() { show } else { 0 };
    (world.statistics.duplicates, world.statistics.unread) = world.host.losses();
    Report {
        trace: world.trace.lines(&world.memory.map, show),
        hash: world.trace.hash(),
        statistics: world.statistics,
        time: world.now,
        failure: world.failure,
        plan: world.plan,
    }
}

/// How a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It can run.
    Runs,
    /// It sleeps, until this time if nothing wakes it before.
    Sleeps(Option<u64>),
    /// It is dead, and starts at this time.
    Dead(u64),
}

struct Sides {
    threads: [Option<Thread>; 2],
    state: [State; 2],
    /// Deaths that have been decided.
    deaths: u32,
}

impl Sides {
    fn all(&mut self) {
        let (guest_at, hostile) = world::with(|world| {
            let lead = world.rng().u64(0..5 * MILLI);
            let pmm_first = world.rng().bool();
            world.host.type_soon(0, world.plan.lines);
            (if pmm_first { lead } else { 0 }, world.plan.memory.hostile())
        });
        self.state[Side::Guest.index()] = State::Dead(guest_at);
        if hostile {
            self.until(
                |world| world.now > HOSTILE_TIME || world.statistics.accesses > HOSTILE_ACCESSES,
                None,
            );
            return;
        }
        // The part with deaths, then one without, then rest.
        self.until(World::done, None);
        if self.failed() {
            return;
        }
        world::with(World::more);
        let limit = world::with(|world| world.now + RECOVERY);
        self.until(World::done, Some(limit));
        self.until(World::all_seen, Some(limit));
        self.rest();
    }

    fn failed(&self) -> bool {
        world::with(|world| world.failure.is_some())
    }

    /// With nothing to do, nobody rings and no timer runs but the PMM's look.
    fn rest(&mut self) {
        let (look, before) = world::with(|world| {
            let look = if world.plan.lossy() { 20 * MILLI } else { SECOND };
            (look, world.statistics)
        });
        let end = world::with(|world| world.now + 30 * look);
        self.until(|world| world.now >= end, None);
        world::with(|world| {
            let after = world.statistics;
            let rung = [0, 1].map(|i| after.rings[i] - before.rings[i]);
            let woken = [0, 1].map(|i| after.wakes[i] - before.wakes[i]);
            if rung != [0, 0] {
                world.fail(format!("at rest the PMM rang {} times and the guest {}", rung[0], rung[1]));
            } else if woken[0] > 32 {
                world.fail(format!("at rest the PMM woke {} times in 30 intervals of its look", woken[0]));
            } else if woken[1] > u64::from(world.plan.guest_clock) {
                // With a clock it may once look whether its last bell was acted on.
                world.fail(format!("at rest the guest woke {} times", woken[1]));
            }
        });
    }

    /// Runs until `enough`, or something failed. With `limit`, it is a failure not to be there by then.
    fn until(&mut self, enough: impl Fn(&mut World) -> bool, limit: Option<u64>) {
        let mut alone_since = None;
        loop {
            let quiet = world::with(|world| !world.doomed() && self.deaths >= world.plan.deaths);
            let dead = self.state.iter().any(|state| matches!(state, State::Dead(_)));
            let stop = world::with(|world| {
                world.gather();
                if quiet && !dead {
                    let since = *alone_since.get_or_insert(world.now);
                    let limit = limit.unwrap_or(since + RECOVERY);
                    if world.now > limit && !world.plan.memory.hostile() {
                        let what = world.missing();
                        world.fail(format!("{} s after the last death: {what}", RECOVERY / SECOND));
                    }
                    if enough(world) {
                        return true;
                    }
                } else {
                    alone_since = None;
                    if world.plan.memory.hostile() && enough(world) {
                        return true;
                    }
                }
                world.failure.is_some()
            });
            if stop {
                return;
            }
            self.fate();
            self.turn();
            let asleep = self.state.map(|state| matches!(state, State::Sleeps(_)));
            world::with(|world| world.asleep = asleep);
        }
    }

    /// Decides on deaths, and carries out those whose place was never met.
    fn fate(&mut self) {
        let overdue = world::with(|world| {
            if !world.doomed() && self.deaths < world.plan.deaths {
                self.deaths += 1;
                world.doom();
            }
            world.overdue()
        });
        if overdue {
            let (side, graceful) = world::with(|world| {
                let side = Side::BOTH[world.rng().usize(0..2)];
                (side, side == Side::Pmm && world.rng().bool())
            });
            if side == Side::Guest && world::with(|world| world.plan.hangs_up && world.rng().bool()) {
                // It lives; only its doorbell does not.
                self.hang_up();
                return;
            }
            match self.state[side.index()] {
                State::Dead(_) => {}
                _ if graceful => {
                    world::with(|world| world.shut_down = true);
                    self.state[side.index()] = State::Runs;
                }
                _ => self.kill(side),
            }
        }
    }

    /// The PMM's doorbell finds that its peer has hung up.
    fn hang_up(&mut self) {
        let pmm = &mut self.state[Side::Pmm.index()];
        if world::with(|world| world.plan.hangs_up) && !matches!(pmm, State::Dead(_)) {
            world::with(|world| {
                world.hung_up = true;
                world.statistics.hang_ups += 1;
            });
            *pmm = State::Runs;
        }
    }

    fn kill(&mut self, side: Side) {
        let i = side.index();
        match side {
            Side::Guest => self.hang_up(),
            Side::Pmm => world::with(|world| world.hung_up = false),
        }
        let back = world::with(|world| {
            world.dies(side);
            world.now + world.away()
        });
        self.bury(side);
        self.state[i] = State::Dead(back);
    }

    /// Takes a side apart.
    fn bury(&mut self, side: Side) {
        if let Some(thread) = self.threads[side.index()].take() {
            world::with(|world| world.bury(side));
            drop(thread);
        }
    }

    /// One side runs until its turn is over; or, if none can, time passes.
    fn turn(&mut self) {
        let mut next = None;
        for side in Side::BOTH {
            let i = side.index();
            world::with(|world| match self.state[i] {
                State::Runs => {}
                State::Sleeps(until) => {
                    if world.wakes(side) || until.is_some_and(|until| until <= world.now) {
                        let other_rests = !matches!(self.state[1 - i], State::Runs);
                        world.woke(side, other_rests && matches!(self.state[1 - i], State::Sleeps(_)));
                        self.state[i] = State::Runs;
                    } else {
                        let event = [until, world.next_event(side)].into_iter().flatten().min();
                        next = [next, event].into_iter().flatten().min();
                    }
                }
                State::Dead(back) if back <= world.now => {}
                State::Dead(back) => next = [next, Some(back)].into_iter().flatten().min(),
            });
            if matches!(self.state[i], State::Dead(back) if world::with(|world| back <= world.now)) {
                self.threads[i] = Some(side::start(side, [pmm::main, guest::main][i]));
                self.state[i] = State::Runs;
            }
        }
        let running = Side::BOTH.map(|side| self.state[side.index()] == State::Runs);
        let side = world::with(|world| match running {
            [true, true] => Some(Side::BOTH[world.rng().usize(0..2)]),
            [true, false] => Some(Side::Pmm),
            [false, true] => Some(Side::Guest),
            [false, false] => {
                let doom = world.doom_at();
                let next = [next, doom].into_iter().flatten().min();
                // With nothing to come, the limit has.
                world.now = next.unwrap_or(world.now + SECOND).max(world.now + 1);
                None
            }
        });
        let Some(side) = side else { return };
        world::with(World::deal);
        let Some(thread) = &mut self.threads[side.index()] else { return };
        match side::resume(thread) {
            Some(Signal::Switch) => {}
            Some(Signal::Sleep(until)) => self.state[side.index()] = State::Sleeps(until),
            Some(Signal::Die) => {
                self.kill(side);
                let both = world::with(|world| world.rng().u8(..) < 32);
                if both && !matches!(self.state[side.other().index()], State::Dead(_)) {
                    self.kill(side.other());
                }
            }
            // It ended in good order: what it stored arrives.
            None => {
                self.threads[side.index()] = None;
                let back = world::with(|world| {
                    world.ended(side);
                    world.now + world.away()
                });
                self.state[side.index()] = State::Dead(back);
            }
        }
    }
}

impl World {
    /// Everything that was to be done is done.
    pub fn done(&mut self) -> bool {
        let start = self.start;
        self.chores.done(self.host.output(start))
            && self.host.all_arrived(start)
            && self.host.all_read()
            && self.ends.all().all(|end| end.is_done())
    }
    /// Both sleep, neither has a bell of the other that it has not acted on, and none is on its way.
    pub fn all_seen(&mut self) -> bool {
        if self.bells_on_their_way() || self.asleep != [true; 2] {
            return false;
        }
        let word = |register| self.memory.truth(Window::LINK.at(register));
        word(reg::PMM_BELL) == word(reg::DRIVER_SEEN) && word(reg::DRIVER_BELL) == word(reg::PMM_SEEN)
    }
    /// What keeps [`World::done`] or [`World::all_seen`] from being so.
    fn missing(&mut self) -> String {
        let start = self.start;
        let sent = self.host.output(start);
        let mut what = Vec::new();
        if sent < self.chores.output {
            what.push(format!("the guest's console took {sent} bytes of {}", self.chores.output));
        } else if !self.chores.flushed || !self.host.all_arrived(start) {
            what.push("not all that the guest sent has arrived and is acknowledged".into());
        }
        if self.chores.numbers != 0 {
            what.push(format!("{} requests for entropy are not answered", self.chores.numbers));
        }
        if !self.host.all_read() {
            what.push("the guest has not read all that was typed".into());
        }
        what.extend(self.ends.all().filter(|end| !end.is_done()).map(|end| end.missing()));
        if what.is_empty() {
            what.push("a bell was not acted on".into());
        }
        what.join("; ")
    }
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// While it lives, panics of this thread are kept and not printed.
struct Quiet;

impl Drop for Quiet {
    fn drop(&mut self) {
        QUIET.set(false);
    }
}

/// A panic of the code under test is a finding, not a message on the terminal.
fn silence_panics() -> Quiet {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.get() {
                PANIC.set(Some(info.to_string().replace('\n', " ")));
            } else {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    Quiet
}

fn describe(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    PANIC.take().unwrap_or(text)
}
