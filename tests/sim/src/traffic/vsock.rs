//! Streams. The programs at the host's ports, and those that call the guest, speak through sockets of the PMM, so they
//! lose them with it.
//!
//! Guest and host call each other, and each call is a *talk*: both ends send so many bytes, then end their direction,
//! and read the other's to its end. A talk's bytes say which talk it is, and follow from that. What holds: what is read
//! is the front of what was written, whole where the stream ends in order; nobody sends more than there is room for; a
//! talk that a death cuts short ends with a reset, and no other does but those that a program hangs up on; afterwards
//! new talks come about, and none keeps its place.

use std::collections::{HashMap, HashSet};

use hvl_frontend::device::vsock::{End as Direction, Socket, SocketError, Vsock, VsockStorage};
use hvl_frontend::{Instant, Link, OpenError};
use hvl_pmm::device::vsock::{Connection, Happened, Sockets, Timer, Vsock as Device};
use hvl_pmm::host::EndError;
use hvl_shared_abi::wire::vsock::Shutdown;

use super::{End, Pace, Work, byte};
use crate::guest::Simulated;
use crate::map::Side;
use crate::plan::{MICRO, MILLI, Plan, SECOND};
use crate::world;

/// The guest's address.
const CID: u32 = 7;
/// Talks that the host's end has room for.
const SLOTS: usize = 4;
/// Bytes on their way to each program.
const ROOM: usize = 200;
/// The port at which the guest listens.
const LISTEN: u32 = 80;
/// The host's port for the guest's talk 0; each has its own.
const PORTS: u32 = 1000;
/// How long the device waits for an answer, or for the end of a connection.
const PATIENCE: u64 = 2 * SECOND;
/// Bytes at the front of a talk that say which it is.
const NAME: u64 = 4;

/// Storage of the guest's sockets: fewer than both sides would like.
pub type Storage = VsockStorage<3, 100, 16, 16, 16>;

/// Which of the two streams of a talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Host,
    Guest,
}

/// What is known of a talk beforehand. Those of the guest have even numbers.
#[derive(Clone, Copy)]
struct Subject {
    salt: u64,
    talk: u32,
}

impl Subject {
    fn len(self, to: To) -> u64 {
        NAME + u64::from(byte(self.salt, self.talk.into(), to as u64))
    }
    fn byte(self, to: To, at: u64) -> u8 {
        match at {
            0..NAME => self.talk.to_le_bytes()[at as usize],
            _ => byte(self.salt, u64::from(self.talk) << 8 | to as u64, at),
        }
    }
    /// Whether the program at the host hangs up on it.
    fn hangs_up(self) -> bool {
        self.talk & 7 >= 6
    }
    /// Whether nobody listens at its port.
    fn has_no_port(self) -> bool {
        self.talk & 15 == 4
    }
    /// Whether these are its bytes from there on.
    fn says(self, to: To, from: u64, bytes: &[u8]) -> bool {
        bytes.iter().zip(from..).all(|(read, at)| at < self.len(to) && self.byte(to, at) == *read)
    }
}

/// Which talk a number names.
fn subject(salt: u64, talk: u32) -> Subject {
    Subject { salt, talk }
}

/// A connection, as the host's end has it.
#[derive(Default)]
struct Berth {
    talk: u32,
    /// Its device has said that it is over.
    over: bool,
    granted: bool,
    /// Bytes that the PMM has read, that it has put, and that of these are still in the room.
    given: u64,
    put: u64,
    inside: usize,
    guest_ends: Shutdown,
    /// When these happen.
    readable_at: Option<u64>,
    drains_at: Option<u64>,
    expires_at: Option<u64>,
    hangs_up_at: Option<u64>,
    happened: Happened,
}

impl Berth {
    fn next(&self) -> Option<u64> {
        [self.readable_at, self.drains_at, self.expires_at, self.hangs_up_at].into_iter().flatten().min()
    }
}

/// The host's programs, and the judge.
pub struct Harbor {
    salt: u64,
    pace: Pace,
    failure: Option<String>,
    /// Talks of each start's work, in each direction.
    share: u32,
    berths: [Option<Berth>; SLOTS],
    active: bool,
    /// The session, if there is one: without it, and after it, a reset is in order.
    session: Option<u64>,
    sessions: u64,
    /// When programs call the guest.
    coming: Vec<u64>,
    /// Of each direction: the next talk, how many have come to their end, and how many are to.
    next: [u32; 2],
    done: [u32; 2],
    wanted: [u32; 2],
    /// Per talk: what the guest has offered and what the PMM was given.
    offered: HashMap<u32, u64>,
    given: HashMap<u32, u64>,
    /// Talks that the host's end refused, and that a program hung up on.
    refused: HashSet<u32>,
    hung_up: HashSet<u32>,
}

/// Who calls.
const GUEST: usize = 0;
const HOST: usize = 1;

impl Harbor {
    /// As planned.
    pub fn new(plan: &Plan, salt: u64) -> Harbor {
        Harbor {
            salt,
            pace: Pace::new(plan, salt),
            failure: None,
            share: plan.talks,
            berths: [const { None }; SLOTS],
            active: false,
            session: None,
            sessions: 0,
            coming: Vec::new(),
            next: [0, 1],
            done: [0; 2],
            wanted: [0; 2],
            offered: HashMap::new(),
            given: HashMap::new(),
            refused: HashSet::new(),
            hung_up: HashSet::new(),
        }
    }

    fn fail(&mut self, what: String) {
        self.failure.get_or_insert(what);
    }
    fn berth(&mut self, slot: usize) -> &mut Berth {
        self.berths[slot].as_mut().expect("the device means a slot that it was given")
    }
    fn call(&mut self, who: usize) -> u32 {
        let talk = self.next[who];
        self.next[who] += 2;
        talk
    }

    /// A place for a talk.
    fn seat(&mut self, now: u64, talk: u32) -> Option<usize> {
        let slot = self.berths.iter().position(Option::is_none)?;
        let hangs_up = subject(self.salt, talk).hangs_up().then(|| now + self.pace.rng.u64(0..20 * MILLI));
        let readable_at = Some(now + self.pace.rng.u64(0..MILLI));
        let berth = Berth { talk, readable_at, hangs_up_at: hangs_up, ..Berth::default() };
        self.berths[slot] = Some(berth);
        Some(slot)
    }

    // --- the guest's side -------------------------------------------------------------------------------------------

    /// The guest has read these bytes of a talk, behind `from` others.
    fn heard(&mut self, talk: u32, from: u64, bytes: &[u8]) {
        let given = self.given.get(&talk).copied().unwrap_or(0);
        let end = from + bytes.len() as u64;
        if !subject(self.salt, talk).says(To::Guest, from, bytes) {
            self.fail(format!("the guest read from {from} in talk {talk} what was never sent: {bytes:02x?}"));
        } else if end > given {
            self.fail(format!("the guest read {end} bytes of talk {talk}, and the PMM had read {given}"));
        }
    }
    /// Whether a program has hung up on a talk.
    fn is_hung_up(&self, talk: Option<u32>) -> bool {
        talk.map_or(!self.hung_up.is_empty(), |talk| self.hung_up.contains(&talk))
    }

    // --- the PMM's side ---------------------------------------------------------------------------------------------

    fn read(&mut self, slot: usize, now: u64, into: &mut [u8]) -> Result<usize, EndError> {
        if let Some(until) = self.pace.blocks(now) {
            self.berth(slot).readable_at = Some(until);
            return Err(EndError::WouldBlock);
        }
        let most = self.pace.some().min(into.len());
        let salt = self.salt;
        let berth = self.berth(slot);
        let subject = subject(salt, berth.talk);
        let left = subject.len(To::Guest) - berth.given;
        if left == 0 {
            return Err(EndError::Closed);
        }
        let count = most.min(left as usize);
        for (into, at) in into.iter_mut().zip(berth.given..).take(count) {
            *into = subject.byte(To::Guest, at);
        }
        berth.given += count as u64;
        let (talk, given) = (berth.talk, berth.given);
        self.given.insert(talk, given);
        Ok(count)
    }

    fn put(&mut self, slot: usize, bytes: &[u8]) {
        let salt = self.salt;
        let berth = self.berth(slot);
        let (talk, from) = (berth.talk, berth.put);
        berth.put += bytes.len() as u64;
        berth.inside += bytes.len();
        let (end, inside) = (berth.put, berth.inside);
        let offered = self.offered.get(&talk).copied().unwrap_or(0);
        if inside > ROOM {
            self.fail(format!(
                "{inside} bytes are on their way in talk {talk}, and there is room for {ROOM}"
            ));
        } else if !subject(salt, talk).says(To::Host, from, bytes) {
            self.fail(format!("at {from} in talk {talk} came what was never sent: {bytes:02x?}"));
        } else if end > offered {
            self.fail(format!("{end} bytes of talk {talk} came, and the guest had sent {offered}"));
        }
    }

    fn drain(&mut self, slot: usize, now: u64) -> u32 {
        let blocks = self.pace.blocks(now);
        let most = self.pace.some();
        let later = now + self.pace.rng.u64(1..100 * MICRO);
        // One that was given back since it was put to has nothing more.
        let Some(berth) = &mut self.berths[slot] else { return 0 };
        let count = if blocks.is_some() { 0 } else { most.min(berth.inside) };
        berth.inside -= count;
        berth.drains_at = blocks.or(Some(later)).filter(|_| berth.inside != 0);
        count as u32
    }

    fn shut_down(&mut self, slot: usize, ends: Shutdown) {
        let salt = self.salt;
        let berth = self.berth(slot);
        let (talk, put) = (berth.talk, berth.put);
        berth.guest_ends = ends;
        let len = subject(salt, talk).len(To::Host);
        if ends.send && put != len && !self.hung_up.contains(&talk) {
            self.fail(format!("the guest's end of talk {talk} came after {put} bytes of {len}"));
        }
    }

    fn finish(&mut self, slot: usize, whole: bool) {
        let salt = self.salt;
        let berth = self.berth(slot);
        let subject = subject(salt, berth.talk);
        let said = [(To::Host, berth.put), (To::Guest, berth.given)];
        let (talk, granted, over) = (berth.talk, berth.granted, berth.over);
        *berth = Berth { talk, over: true, ..Berth::default() };
        if over {
            self.fail(format!("talk {talk} is over twice"));
        } else if whole && said.iter().all(|(to, count)| *count == subject.len(*to)) {
            self.done[HOST] += talk & 1;
        } else if granted && self.session.is_some() && !self.hung_up.contains(&talk) {
            let lens = [To::Host, To::Guest].map(|to| subject.len(to));
            self.fail(format!("the PMM ends talk {talk} (whole: {whole}) after {said:?} bytes of {lens:?}"));
        }
    }

    /// Something that was waited for has happened to a slot.
    fn happen(&mut self, slot: usize, now: u64) {
        let due = |at: &mut Option<u64>| at.take_if(|at| *at <= now).is_some();
        let Some(berth) = &mut self.berths[slot] else { return };
        berth.happened.readable |= due(&mut berth.readable_at);
        berth.happened.expired |= due(&mut berth.expires_at);
        if due(&mut berth.hangs_up_at) {
            berth.happened.hung_up = true;
            (berth.inside, berth.drains_at) = (0, None);
            self.hung_up.insert(berth.talk);
        } else if due(&mut berth.drains_at) {
            let count = self.drain(slot, now);
            self.berth(slot).happened.drained += count;
        }
    }
}

impl End for Harbor {
    fn progress(&mut self, now: u64) {
        let mut calls = self.coming.len();
        if self.active {
            self.coming.retain(|when| *when > now);
            calls -= self.coming.len();
            for _ in 0..calls {
                let talk = self.call(HOST);
                // One that finds no place calls again.
                if let Some(slot) = self.seat(now, talk) {
                    self.berth(slot).happened.asked = Some(LISTEN);
                }
            }
        }
        let under_way = self.berths.iter().flatten().filter(|berth| berth.talk & 1 == 1 && !berth.over);
        let calls = (under_way.count() + self.coming.len()) as u32;
        for _ in self.done[HOST] + calls..self.wanted[HOST] {
            self.coming.push(now + self.pace.rng.u64(0..30 * MILLI));
        }
        for slot in 0..SLOTS {
            if self.berths[slot].as_ref().and_then(Berth::next).is_some_and(|at| at <= now) {
                self.happen(slot, now);
            }
        }
    }
    fn is_ready(&mut self, now: u64) -> bool {
        self.progress(now);
        self.active && self.berths.iter().flatten().any(|berth| berth.happened != Happened::default())
    }
    fn heard(&mut self, _now: u64) {}
    fn next_ready(&self) -> Option<u64> {
        let all = self.berths.iter().flatten().filter_map(Berth::next).chain(self.coming.iter().copied());
        all.filter(|_| self.active).min()
    }
    fn holds_requests(&self) -> bool {
        false
    }

    fn started(&mut self, _now: u64) {
        self.done[GUEST] = 0;
        self.wanted = [self.share, self.done[HOST] + self.share];
    }
    fn served(&mut self, start: Option<usize>) {
        self.sessions += 1;
        self.session = start.map(|_| self.sessions);
    }
    fn died(&mut self, side: Side) {
        self.session = None;
        if side == Side::Pmm {
            (self.berths, self.active) = ([const { None }; SLOTS], false);
        }
    }
    fn more(&mut self, _now: u64) {
        self.wanted = self.wanted.map(|wanted| wanted + self.share);
    }

    fn is_done(&self) -> bool {
        let done = self.done.iter().zip(self.wanted).all(|(done, wanted)| *done >= wanted);
        done && self.coming.is_empty() && self.berths.iter().all(Option::is_none)
    }
    fn missing(&self) -> String {
        let Self { done: [calls, asks], wanted: [to_call, to_ask], .. } = self;
        let held: Vec<_> = self.berths.iter().flatten().map(|berth| berth.talk).collect();
        format!(
            "{calls} talks of the guest's of {to_call} have come to their end, and {asks} of the host's of {to_ask}; \
             these have a place: {held:?}"
        )
    }
    fn failure(&mut self) -> Option<String> {
        self.failure.take()
    }
}

/// The host's programs, as the PMM holds them.
pub struct Pier;

impl Pier {
    fn with<R>(&self, act: impl FnOnce(&mut Harbor, u64) -> R) -> R {
        world::with(|world| act(world.ends.vsock(), world.now))
    }
}

impl Sockets for Pier {
    fn room(&self) -> u32 {
        ROOM as u32
    }
    fn first_port(&self) -> u32 {
        self.with(|harbor, _| harbor.pace.rng.u32(1 << 30..))
    }
    fn activate(&mut self, active: bool) {
        self.with(|harbor, _| harbor.active = active);
    }
    fn next(&mut self) -> Option<(usize, Happened)> {
        self.with(|harbor, _| {
            let mut all = harbor.berths.iter_mut().enumerate();
            all.find_map(|(slot, berth)| {
                let happened = std::mem::take(&mut berth.as_mut()?.happened);
                (happened != Happened::default()).then_some((slot, happened))
            })
        })
    }
    fn connect(&mut self, port: u32) -> Option<usize> {
        self.with(|harbor, now| {
            let talk = port.wrapping_sub(PORTS);
            let free = !subject(harbor.salt, talk).has_no_port();
            let slot = free.then(|| harbor.seat(now, talk)).flatten();
            match slot {
                Some(slot) => harbor.berth(slot).granted = true,
                None => drop(harbor.refused.insert(talk)),
            }
            slot
        })
    }
    fn grant(&mut self, slot: usize, _port: u32) {
        self.with(|harbor, _| harbor.berth(slot).granted = true);
    }
    fn read(&mut self, slot: usize, into: &mut [u8], _credit: usize) -> Result<usize, EndError> {
        self.with(|harbor, now| harbor.read(slot, now, into))
    }
    fn put(&mut self, slot: usize, len: usize, mut fill: impl FnMut(&mut [u8]) -> usize) -> usize {
        let mut bytes = vec![0; len];
        let count = fill(&mut bytes);
        self.with(|harbor, _| harbor.put(slot, &bytes[..count]));
        count
    }
    fn flush(&mut self, slot: usize) -> u32 {
        self.with(|harbor, now| harbor.drain(slot, now))
    }
    fn shut_down(&mut self, slot: usize, ends: Shutdown) {
        self.with(|harbor, _| harbor.shut_down(slot, ends));
    }
    fn time(&mut self, slot: usize, timer: Timer) {
        let when = |now| (timer != Timer::Off).then_some(now + PATIENCE);
        self.with(|harbor, now| harbor.berth(slot).expires_at = when(now));
    }
    fn finish(&mut self, slot: usize, whole: bool) {
        self.with(|harbor, _| harbor.finish(slot, whole));
    }
    fn release(&mut self, slot: usize) {
        self.with(|harbor, _| harbor.berths[slot] = None);
    }
    fn close_all(&mut self) {
        self.with(|harbor, _| harbor.berths = [const { None }; SLOTS]);
    }
}

/// The PMM's sockets.
pub fn device() -> Device<Pier, [Connection; SLOTS]> {
    Device::new(Pier, CID, [Connection::NEW; SLOTS])
}

/// A talk, as the guest has it.
struct Talk {
    socket: Socket,
    /// Which it is: known of its own calls, and of others when the front of it has come.
    talk: Option<u32>,
    own: bool,
    front: Vec<u8>,
    heard: u64,
    sent: u64,
    open: bool,
    ended: bool,
    /// The session in which it began.
    session: Option<u64>,
}

/// What becomes of a talk after a step.
enum Next {
    Wait,
    More,
    /// It has come to its end in order.
    Done,
    /// It is over.
    Over,
}

/// What the guest does with its sockets.
pub struct Talks<'s> {
    vsock: Vsock<'s, Simulated<'s>>,
    talks: Vec<Talk>,
}

impl<'s> Talks<'s> {
    /// Opens the sockets, and listens.
    pub fn open(link: &Link<'s, Simulated<'s>>, storage: &'s mut Storage) -> Result<Talks<'s>, OpenError> {
        let mut vsock = Vsock::open(link, storage)?;
        vsock.listen(LISTEN, 2).expect("nobody else listens");
        Ok(Talks { vsock, talks: Vec::new() })
    }

    /// Calls, and is called.
    fn begin(&mut self) {
        while let Ok((socket, _)) = self.vsock.accept(LISTEN) {
            self.add(socket, None);
        }
        let own = self.talks.iter().filter(|talk| talk.own).count() as u32;
        let talk = world::with(|world| {
            let harbor = world.ends.vsock();
            (own < 2 && harbor.done[GUEST] + own < harbor.wanted[GUEST]).then(|| harbor.next[GUEST])
        });
        let Some(talk) = talk else { return };
        if let Ok(socket) = self.vsock.connect(PORTS + talk) {
            world::with(|world| world.ends.vsock().call(GUEST));
            self.add(socket, Some(talk));
        }
    }

    fn add(&mut self, socket: Socket, talk: Option<u32>) {
        let session = world::with(|world| world.ends.vsock().session);
        let own = talk.is_some();
        self.talks.push(Talk {
            socket,
            talk,
            own,
            front: Vec::new(),
            heard: 0,
            sent: 0,
            open: !own,
            ended: false,
            session,
        });
    }
}

impl Talk {
    /// Does what can be done at once.
    fn step(&mut self, vsock: &mut Vsock<'_, Simulated<'_>>) -> Next {
        match self.try_step(vsock) {
            Ok(next) => next,
            Err(SocketError::WouldBlock | SocketError::LinkDown) => Next::Wait,
            Err(error) => {
                let (talk, session, open) = (self.talk, self.session, self.open);
                world::with(|world| {
                    let harbor = world.ends.vsock();
                    let refused = !open && talk.is_some_and(|talk| harbor.refused.contains(&talk));
                    // A call of which nothing was heard may be one of an earlier session, found in this one.
                    let lost = session.is_none() || harbor.session != session || talk.is_none();
                    let in_order = match error {
                        SocketError::Refused => refused,
                        SocketError::Reset | SocketError::TimedOut | SocketError::Closed => {
                            lost || harbor.is_hung_up(talk)
                        }
                        _ => false,
                    };
                    if !in_order {
                        harbor.fail(format!("talk {talk:?} of the guest's failed: {error}"));
                    }
                });
                vsock.close(self.socket);
                Next::Over
            }
        }
    }

    fn try_step(&mut self, vsock: &mut Vsock<'_, Simulated<'_>>) -> Result<Next, SocketError> {
        if !self.open {
            vsock.is_open(self.socket)?;
            self.open = true;
        }
        let said = self.say(vsock)?;
        let mut bytes = [0xa5; 64];
        let room = world::with(|world| world.rng().usize(1..=bytes.len()));
        match vsock.read(self.socket, &mut bytes[..room]) {
            Err(SocketError::WouldBlock) if said => Ok(Next::More),
            Err(error) => Err(error),
            Ok(0) => self.end(vsock, said),
            Ok(count) => {
                self.hear(&bytes[..count]);
                Ok(Next::More)
            }
        }
    }

    /// Says some of what there is to say. Returns whether there may be more at once.
    fn say(&mut self, vsock: &mut Vsock<'_, Simulated<'_>>) -> Result<bool, SocketError> {
        let Some(talk) = self.talk.filter(|_| !self.ended) else { return Ok(false) };
        let bytes: Vec<u8> = world::with(|world| {
            let subject = subject(world.ends.vsock().salt, talk);
            let end = (self.sent + world.rng().u64(1..=100)).min(subject.len(To::Host));
            // The PMM may take them before this call has returned.
            world.ends.vsock().offered.insert(talk, end);
            (self.sent..end).map(|at| subject.byte(To::Host, at)).collect()
        });
        if bytes.is_empty() {
            vsock.shut_down(self.socket, Direction::Write)?;
            self.ended = true;
            return Ok(true);
        }
        match vsock.write(self.socket, &bytes) {
            Ok(count) => {
                self.sent += count as u64;
                Ok(true)
            }
            Err(SocketError::WouldBlock) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        if self.talk.is_none() {
            self.front.extend_from_slice(bytes);
            let Some(name) = self.front.first_chunk() else { return };
            self.talk = Some(u32::from_le_bytes(*name));
        }
        let bytes = if self.heard == 0 && !self.front.is_empty() { &self.front[..] } else { bytes };
        let (talk, from) = (self.talk.unwrap_or(0), self.heard);
        world::with(|world| world.ends.vsock().heard(talk, from, bytes));
        self.heard += bytes.len() as u64;
    }

    /// The other side has said all.
    fn end(&mut self, vsock: &mut Vsock<'_, Simulated<'_>>, said: bool) -> Result<Next, SocketError> {
        let (talk, heard) = (self.talk, self.heard);
        let whole = world::with(|world| {
            let harbor = world.ends.vsock();
            let whole = talk.is_some_and(|talk| subject(harbor.salt, talk).len(To::Guest) == heard);
            // Only who hangs up ends a stream early; a restart resets it.
            if !whole && !harbor.is_hung_up(talk) {
                harbor.fail(format!("talk {talk:?} ended after {heard} bytes, which are not all"));
            }
            whole
        });
        if whole && !self.ended {
            return Ok(if said { Next::More } else { Next::Wait });
        }
        vsock.close(self.socket);
        Ok(if whole { Next::Done } else { Next::Over })
    }
}

impl Work for Talks<'_> {
    fn step(&mut self) -> bool {
        self.begin();
        let Talks { vsock, talks } = self;
        let mut more = false;
        talks.retain_mut(|talk| {
            let next = talk.step(vsock);
            more |= !matches!(next, Next::Wait);
            if let Next::Done = next
                && talk.own
            {
                world::with(|world| world.ends.vsock().done[GUEST] += 1);
            }
            matches!(next, Next::Wait | Next::More)
        });
        let counters = vsock.counters();
        if counters.broken != 0 || counters.malformed != 0 {
            world::with(|world| {
                let harbor = world.ends.vsock();
                harbor.fail(format!("the PMM broke a rule: {counters:?}"));
            });
        }
        more
    }
    fn deadline(&self) -> Option<Instant> {
        self.vsock.deadline()
    }
}
