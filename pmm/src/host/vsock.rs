//! The host's end of sockets: a multiplexer over UNIX sockets, with the protocol that clients of Firecracker and
//! cloud-hypervisor speak.
//!
//! A client connects to PATH, writes `CONNECT <port>` and a line feed, and reads `OK <port of the host>` once the guest
//! has granted the connection; where it does not, the client is closed. A guest that calls port P of the host reaches
//! whoever listens at PATH_P.
//!
//! All connections share one buffer for what the guest sends. It is empty again in the same turn of the loop
//! as long as the client's socket accepts the bytes. A client that falls behind gets a buffer of its own,
//! once, as large as the guest's credit. So a slow client costs 64 KiB and delays no other, and one that
//! keeps up costs nothing.
//!
//! Packets are short, so a socket is read up to the guest's credit in one call. The bytes wait in a buffer
//! that all connections share until the guest has posted buffers for them.
//!
//! The event loop's own list, made anew for each wait, would be a thousand entries long here. So this end has an epoll
//! of its own, of which the loop watches one descriptor. It is edge-triggered: what the device has no use for at the
//! moment does not wake anybody again.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use hvl_shared_abi::wire::vsock::{PORT_ANY, Shutdown};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{EndError, HostEnd, Shared};
use crate::device::vsock::{Happened, Sockets, Timer};
use crate::failure::{Failure, refused};
use crate::options::VsockDescription;
use crate::sys::Watches;
use crate::unix::Listener;

const MOST: usize = Multiplexer::MOST;
/// Bytes on their way to a client at the most: the credit of the guest.
const ROOM: usize = 64 << 10;
/// Bytes that are read from a socket at once.
const AHEAD: usize = 32 << 10;
/// Longest line of a client, in bytes: `CONNECT 4294967295` and its end.
const LINE: usize = 32;
/// Clients accepted, and descriptors asked about, in one go.
const BATCH: usize = 64;
/// How long a client may take for its line, in microseconds.
const LINE_US: u64 = 5_000_000;
/// How long the guest may take to grant a connection.
const ANSWER_US: u64 = 2_000_000;
/// How long the guest may take to confirm that a connection is over.
const GOODBYE_US: u64 = 2_000_000;
/// How long a client may take to read anything at all of what a guest that has closed the connection left for it.
const LINGER_US: u64 = 10_000_000;

/// Where a slot stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    /// A client has not said what it wants.
    Line,
    /// The device knows it.
    Open,
    /// The device is done with it, and its client is not.
    Lingering,
    /// Only the device has not given it back.
    Done,
}

/// Bytes that were read from the socket of one connection: those from `head` to `end`.
#[derive(Debug)]
struct Ahead {
    slot: usize,
    bytes: Box<[u8]>,
    head: usize,
    end: usize,
}

impl Ahead {
    fn is_empty(&self) -> bool {
        self.head == self.end
    }
    /// The bytes of this connection are not wanted any more.
    fn forget(&mut self, slot: usize) {
        if self.slot == slot {
            self.head = self.end;
        }
    }
}

/// A place for bytes on their way to one client. How many they are, and where they begin, says the slot.
#[derive(Debug)]
struct Staged {
    slot: usize,
    bytes: Box<[u8]>,
}

/// One connection.
#[derive(Debug, Default)]
struct Slot {
    state: State,
    /// Goes up with every use, so that an event of the one before is known.
    generation: u32,
    socket: Option<UnixStream>,
    /// Bytes that the socket has not taken: `filled` of them from `head` on, in a circle. Without a room they are those
    /// that wait in [`Multiplexer::staged`].
    room: Option<Box<[u8]>>,
    head: usize,
    filled: usize,
    /// Bytes that a socket took when another one needed the common place, and nobody was told of yet.
    moved: u32,
    /// The room is not empty, and the socket is to say when it takes more.
    waits: bool,
    /// The guest sends no more, and the client will be told once it has everything.
    last: bool,
    released: bool,
    happened: Happened,
    queued: bool,
    deadline: Option<u64>,
}

impl Slot {
    /// Tells the client that the guest sends no more, if it has everything; once.
    fn pass_the_end(&mut self) {
        if self.filled == 0
            && let Some(socket) = &self.socket
            && std::mem::take(&mut self.last)
        {
            let _ = socket.shutdown(std::net::Shutdown::Write);
        }
    }
}

/// A listening socket and its connections.
#[derive(Debug)]
pub struct Multiplexer {
    listener: Listener,
    path: PathBuf,
    cid: u32,
    epoll: OwnedFd,
    slots: Vec<Slot>,
    ahead: Ahead,
    /// What the guest has sent on a connection that has no room of its own, and the socket was not given yet.
    staged: Staged,
    free: Vec<usize>,
    /// Slots to which something has happened.
    news: VecDeque<usize>,
    deadlines: BTreeSet<(u64, usize)>,
    active: bool,
    now_us: u64,
}

impl Multiplexer {
    /// Connections at the most, those included whose client has not said yet what it wants.
    pub const MOST: usize = 1024;

    /// Listens where it is described, for `most` connections at a time, each of which takes a descriptor.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if the path cannot be used or is in use.
    pub fn open(description: &VsockDescription, most: usize) -> Result<Multiplexer, Failure> {
        let VsockDescription { cid, path, is_default, .. } = description;
        let name = format!("--vsock {cid},path={}", path.display());
        if *is_default {
            let link = path.parent().and_then(|dir| dir.file_name()?.to_str()).unwrap_or_default();
            crate::observe::make_directory(&["vsock", link], &name, "path=PATH")?;
        }
        let listener = Listener::listen(path, name.clone())?;
        let epoll = match epoll::create(epoll::CreateFlags::CLOEXEC) {
            Ok(epoll) => epoll,
            Err(error) => return refused(format!("{name}: no epoll to be had ({error}); raise 'ulimit -n'")),
        };
        Ok(Multiplexer {
            listener,
            path: path.clone(),
            cid: *cid,
            epoll,
            slots: (0..MOST).map(|_| Slot::default()).collect(),
            ahead: Ahead { slot: 0, bytes: vec![0; AHEAD].into(), head: 0, end: 0 },
            staged: Staged { slot: 0, bytes: vec![0; ROOM].into() },
            free: (0..MOST.min(most)).rev().collect(),
            news: VecDeque::with_capacity(MOST),
            deadlines: BTreeSet::new(),
            active: false,
            now_us: 0,
        })
    }

    /// Connections that the device knows.
    pub fn connections(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state == State::Open).count()
    }

    // --- slots ------------------------------------------------------------------------------------------------------

    /// Gives a socket a slot.
    fn seat(&mut self, socket: UnixStream, state: State) -> Option<usize> {
        let index = self.free.pop()?;
        let slot = &mut self.slots[index];
        let generation = slot.generation.wrapping_add(1);
        let added = epoll::add(&self.epoll, &socket, name(index, generation), QUIET);
        *slot = Slot { state, generation, ..Slot::default() };
        if added.is_err() {
            slot.state = State::Free;
            self.free.push(index);
            return None;
        }
        slot.socket = Some(socket);
        Some(index)
    }

    /// Closes the socket; the slot is free if the device has no say in it.
    fn unseat(&mut self, index: usize) {
        self.set_deadline(index, None);
        self.ahead.forget(index);
        let slot = &mut self.slots[index];
        let owned = matches!(slot.state, State::Open | State::Lingering | State::Done) && !slot.released;
        // Closing takes it out of the epoll.
        (slot.socket, slot.room, slot.filled, slot.head) = (None, None, 0, 0);
        match slot.state {
            State::Free => {}
            _ if owned => slot.state = State::Done,
            _ => {
                slot.state = State::Free;
                self.free.push(index);
            }
        }
    }

    fn set_deadline(&mut self, index: usize, after: Option<u64>) {
        let deadline = after.map(|after| self.now_us.saturating_add(after));
        if let Some(old) = std::mem::replace(&mut self.slots[index].deadline, deadline) {
            self.deadlines.remove(&(old, index));
        }
        self.deadlines.extend(deadline.map(|deadline| (deadline, index)));
    }

    /// Notes what has happened to a slot that the device knows.
    fn note(&mut self, index: usize, what: impl FnOnce(&mut Happened)) {
        let slot = &mut self.slots[index];
        if slot.state == State::Open {
            what(&mut slot.happened);
            if !std::mem::replace(&mut slot.queued, true) {
                self.news.push_back(index);
            }
        }
    }

    // --- clients ----------------------------------------------------------------------------------------------------

    fn accept(&mut self) {
        for _ in 0..BATCH {
            if !self.active || self.free.is_empty() {
                return;
            }
            let Some(stream) = self.listener.accept(self.now_us) else { return };
            if let Some(index) = self.seat(stream, State::Line) {
                self.set_deadline(index, Some(LINE_US));
                self.read_line(index);
            }
        }
    }

    /// Looks whether a client has said what it wants. What follows its line is for the guest, and stays in the socket.
    fn read_line(&mut self, index: usize) {
        let mut bytes = [0; LINE];
        let Some(socket) = &self.slots[index].socket else { return };
        let seen = match rustix::net::recv(socket, &mut bytes, RecvFlags::PEEK) {
            Ok((seen, _)) if seen != 0 => seen,
            Err(Errno::AGAIN | Errno::INTR) => return,
            _ => return self.unseat(index),
        };
        match bytes[..seen].iter().position(|&byte| byte == b'\n') {
            Some(end) => {
                let line = &mut bytes[..=end];
                let read = rustix::io::read(socket, &mut *line) == Ok(end + 1);
                match port_of(line).filter(|_| read) {
                    Some(port) => {
                        self.set_deadline(index, None);
                        self.slots[index].state = State::Open;
                        self.note(index, |what| (what.asked, what.readable) = (Some(port), true));
                    }
                    None => self.unseat(index),
                }
            }
            None if seen == LINE => self.unseat(index),
            None => {}
        }
    }

    fn fired(&mut self, index: usize, flags: epoll::EventFlags) {
        use epoll::EventFlags;
        let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        match self.slots[index].state {
            State::Line => {
                self.read_line(index);
                // It sends no more, and what it has sent is no line: it will never be one.
                let ended = gone || flags.contains(EventFlags::RDHUP);
                if ended && self.slots[index].state == State::Line {
                    self.unseat(index);
                }
            }
            State::Open => {
                if flags.contains(EventFlags::OUT) {
                    let drained = self.move_on(index);
                    if drained != 0 {
                        self.note(index, |what| what.drained = what.drained.saturating_add(drained));
                    }
                }
                if gone || flags.intersects(EventFlags::IN | EventFlags::RDHUP) {
                    self.note(index, |what| {
                        what.readable = true;
                        what.hung_up |= gone;
                    });
                }
            }
            State::Lingering => {
                let moved = self.move_on(index);
                if gone || self.slots[index].filled == 0 {
                    self.unseat(index);
                } else if moved != 0 {
                    self.set_deadline(index, Some(LINGER_US));
                }
            }
            State::Free | State::Done => {}
        }
    }

    /// Makes the common place free for another connection: what its client does not take now gets a room of its own.
    fn unstage(&mut self) {
        let other = self.staged.slot;
        if self.slots[other].room.is_none() && self.slots[other].filled != 0 {
            // Its own turn to be flushed comes, and the guest is told then.
            self.slots[other].moved = self.move_on(other);
        }
    }

    /// Gives a socket as much as it takes. Returns how many bytes left this side for it.
    fn move_on(&mut self, index: usize) -> u32 {
        let slot = &mut self.slots[index];
        let (before, earlier) = (slot.filled, std::mem::take(&mut slot.moved));
        let Some(socket) = &slot.socket else {
            slot.filled = 0;
            return earlier;
        };
        let mut broken = false;
        while slot.filled != 0 {
            let room = slot.room.as_ref().unwrap_or(&self.staged.bytes);
            let part = &room[slot.head..room.len().min(slot.head + slot.filled)];
            match rustix::net::send(socket, part, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    slot.filled -= sent.min(slot.filled);
                    slot.head = (slot.head + sent) % ROOM;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    broken = true;
                    slot.filled = 0;
                }
            }
        }
        if slot.filled == 0 {
            // In one piece, as long as the client keeps up.
            slot.head = 0;
        } else if slot.room.is_none() {
            // It does not.
            let mut room: Box<[u8]> = vec![0; ROOM].into();
            room[..slot.filled].copy_from_slice(&self.staged.bytes[slot.head..slot.head + slot.filled]);
            (slot.room, slot.head) = (Some(room), 0);
        }
        // A socket that takes everything would wake this end each time that its client reads.
        let waits = slot.filled != 0;
        if waits != std::mem::replace(&mut slot.waits, waits) {
            let flags = if waits { QUIET | epoll::EventFlags::OUT } else { QUIET };
            broken |= epoll::modify(&self.epoll, socket, name(index, slot.generation), flags).is_err();
        }
        slot.pass_the_end();
        let moved = before - slot.filled;
        if broken {
            self.note(index, |what| what.hung_up = true);
        }
        earlier.saturating_add(moved as u32)
    }

    fn expire(&mut self) {
        while let Some((deadline, index)) = self.deadlines.first().copied()
            && deadline <= self.now_us
        {
            self.set_deadline(index, None);
            match self.slots[index].state {
                State::Open => self.note(index, |what| what.expired = true),
                _ => self.unseat(index),
            }
        }
    }
}

/// What a socket tells of whose slot has nothing for it.
const QUIET: epoll::EventFlags =
    epoll::EventFlags::IN.union(epoll::EventFlags::RDHUP).union(epoll::EventFlags::ET);

/// What the epoll calls a connection.
fn name(index: usize, generation: u32) -> epoll::EventData {
    epoll::EventData::new_u64(u64::from(generation) << 32 | index as u64)
}

/// Reads from a socket into room that there is.
fn take(socket: &UnixStream, into: &mut [u8]) -> Result<usize, EndError> {
    match rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut *into)) {
        Ok(count) if count != 0 => Ok(count),
        Err(Errno::AGAIN) => Err(EndError::WouldBlock),
        _ => Err(EndError::Closed),
    }
}

/// The port that a client asks for.
fn port_of(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (word, port, more) = (words.next()?, words.next()?, words.next());
    let port = port.bytes().all(|digit| digit.is_ascii_digit()).then(|| port.parse().ok()).flatten();
    port.filter(|&port| word.eq_ignore_ascii_case("connect") && port != PORT_ANY && more.is_none())
}

impl Sockets for Multiplexer {
    fn room(&self) -> u32 {
        ROOM as u32
    }

    fn first_port(&self) -> u32 {
        let mut bytes = [0; 4];
        let _ = super::Entropy::fill(&mut super::SystemEntropy, &mut bytes);
        u32::from_ne_bytes(bytes)
    }

    fn activate(&mut self, active: bool) {
        self.active = active;
    }

    fn next(&mut self) -> Option<(usize, Happened)> {
        while let Some(index) = self.news.pop_front() {
            let slot = &mut self.slots[index];
            slot.queued = false;
            let happened = std::mem::take(&mut slot.happened);
            if slot.state == State::Open {
                return Some((index, happened));
            }
        }
        None
    }

    fn connect(&mut self, port: u32) -> Option<usize> {
        if self.free.is_empty() {
            return None;
        }
        // A link there leads nowhere: who can put one into a directory may not choose whom this process calls.
        let stream = self.listener.spot().dial(&format!("_{port}")).ok()?;
        self.seat(stream, State::Open)
    }

    fn grant(&mut self, slot: usize, port: u32) {
        let line = format!("OK {port}\n");
        let Some(socket) = &self.slots[slot].socket else { return };
        // Nothing was ever sent to this client, so there is room for a line; if it is gone, its end is news already.
        if rustix::net::send(socket, line.as_bytes(), SendFlags::NOSIGNAL) != Ok(line.len()) {
            self.note(slot, |what| what.hung_up = true);
        }
    }

    fn read(&mut self, slot: usize, into: &mut [u8], credit: usize) -> Result<usize, EndError> {
        let Some(socket) = &self.slots[slot].socket else { return Err(EndError::Closed) };
        if into.is_empty() {
            return Ok(0);
        }
        let ahead = &mut self.ahead;
        if ahead.is_empty() && into.len() < credit {
            let count = take(socket, &mut ahead.bytes[..credit.min(AHEAD)])?;
            (ahead.slot, ahead.head, ahead.end) = (slot, 0, count);
        }
        if ahead.is_empty() || ahead.slot != slot {
            return take(socket, into);
        }
        let part = &ahead.bytes[ahead.head..ahead.end];
        let count = part.len().min(into.len());
        into[..count].copy_from_slice(&part[..count]);
        ahead.head += count;
        Ok(count)
    }

    fn put(&mut self, slot: usize, len: usize, mut fill: impl FnMut(&mut [u8]) -> usize) -> usize {
        if self.slots[slot].room.is_none() && self.staged.slot != slot {
            self.unstage();
            self.staged.slot = slot;
        }
        let slot = &mut self.slots[slot];
        let room = slot.room.as_mut().unwrap_or(&mut self.staged.bytes);
        let mut done = 0;
        while done < len && slot.filled < ROOM {
            let start = (slot.head + slot.filled) % ROOM;
            let end = if start < slot.head { slot.head } else { ROOM };
            let end = end.min(start + (len - done));
            let count = fill(&mut room[start..end]).min(end - start);
            if count == 0 {
                break;
            }
            slot.filled += count;
            done += count;
        }
        done
    }

    fn flush(&mut self, slot: usize) -> u32 {
        self.move_on(slot)
    }

    fn shut_down(&mut self, slot: usize, ends: Shutdown) {
        if ends.receive {
            self.ahead.forget(slot);
            if let Some(socket) = &self.slots[slot].socket {
                let _ = socket.shutdown(std::net::Shutdown::Read);
            }
        }
        self.slots[slot].last = ends.send;
        self.slots[slot].pass_the_end();
    }

    fn time(&mut self, slot: usize, timer: Timer) {
        let after = match timer {
            Timer::Off => None,
            Timer::Answer => Some(ANSWER_US),
            Timer::Goodbye => Some(GOODBYE_US),
        };
        self.set_deadline(slot, after);
    }

    fn finish(&mut self, slot: usize, whole: bool) {
        self.move_on(slot);
        if whole && self.slots[slot].filled != 0 {
            self.slots[slot].state = State::Lingering;
            self.set_deadline(slot, Some(LINGER_US));
        } else {
            self.unseat(slot);
        }
    }

    fn release(&mut self, slot: usize) {
        self.slots[slot].released = true;
        if self.slots[slot].state == State::Done {
            self.unseat(slot);
        }
    }

    fn close_all(&mut self) {
        for index in 0..self.slots.len() {
            if self.slots[index].state != State::Free {
                self.slots[index].released = true;
                self.unseat(index);
            }
            self.slots[index].queued = false;
        }
        self.news.clear();
    }
}

impl HostEnd for Multiplexer {
    fn watch(&self, watches: &mut Watches) {
        if self.active && !self.free.is_empty() {
            self.listener.watch(watches);
        }
        watches.add(self.epoll.as_raw_fd(), true, false);
    }

    fn progress(&mut self, now_us: u64) {
        self.now_us = now_us;
        let mut events = Vec::with_capacity(BATCH);
        // Each descriptor is told of once, so this ends.
        for _ in 0..=MOST / BATCH {
            events.clear();
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let got = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now));
            for event in &events {
                let data = event.data.u64();
                let index = (data & 0xffff_ffff) as usize;
                if self.slots[index].generation == (data >> 32) as u32 {
                    self.fired(index, event.flags);
                }
            }
            if got.is_err() || events.len() < BATCH {
                break;
            }
        }
        self.expire();
        self.accept();
    }

    fn deadline_us(&self) -> Option<u64> {
        let listens = self.active && !self.free.is_empty();
        let news = (!self.news.is_empty()).then_some(0);
        let listener = self.listener.deadline_us().filter(|_| listens);
        [news, listener, self.deadlines.first().map(|(at, _)| *at)].into_iter().flatten().min()
    }

    fn state(&self) -> Cow<'static, str> {
        match self.connections() {
            0 => "no connection".into(),
            1 => "1 connection".into(),
            many => format!("{many} connections").into(),
        }
    }

    fn announcement(&self) -> Option<String> {
        let path = self.path.display();
        Some(format!(
            "vsock {}: 'CONNECT PORT' at {path}; the guest's own calls to port P go to {path}_P",
            self.cid
        ))
    }
}

impl Sockets for Shared<Multiplexer> {
    fn room(&self) -> u32 {
        self.get().room()
    }
    fn first_port(&self) -> u32 {
        self.get().first_port()
    }
    fn activate(&mut self, active: bool) {
        self.get().activate(active);
    }
    fn next(&mut self) -> Option<(usize, Happened)> {
        self.get().next()
    }
    fn connect(&mut self, port: u32) -> Option<usize> {
        self.get().connect(port)
    }
    fn grant(&mut self, slot: usize, port: u32) {
        self.get().grant(slot, port);
    }
    fn read(&mut self, slot: usize, into: &mut [u8], credit: usize) -> Result<usize, EndError> {
        self.get().read(slot, into, credit)
    }
    fn put(&mut self, slot: usize, len: usize, fill: impl FnMut(&mut [u8]) -> usize) -> usize {
        self.get().put(slot, len, fill)
    }
    fn flush(&mut self, slot: usize) -> u32 {
        self.get().flush(slot)
    }
    fn shut_down(&mut self, slot: usize, ends: Shutdown) {
        self.get().shut_down(slot, ends);
    }
    fn time(&mut self, slot: usize, timer: Timer) {
        self.get().time(slot, timer);
    }
    fn finish(&mut self, slot: usize, whole: bool) {
        self.get().finish(slot, whole);
    }
    fn release(&mut self, slot: usize) {
        self.get().release(slot);
    }
    fn close_all(&mut self) {
        self.get().close_all();
    }
}

#[cfg(test)]
mod tests;
