//! The connections: what each side has said, what is owed to the other, and the bytes that wait to be read. It knows
//! neither queues nor memory; packets come in and go out through two traits, so that a test can be the other side.

use hvl_shared_abi::wire::vsock::{Credit, HOST_CID, MIN_GUEST_CID, Op, PORT_ANY, Packet, Shutdown};

use super::{Socket, SocketError};
use crate::platform::Instant;

/// Ports that may be listened at at once.
pub const LISTENERS: usize = 8;
/// Resets for packets of no connection that wait for room; those beyond are dropped, and the other side's own patience
/// ends what it believes in.
const RESETS: usize = 8;
/// How long a connection may take to be granted, in microseconds; the other side tries for as long.
const CONNECT_US: u64 = 4_000_000;
/// How long the other side may take to confirm an end, in microseconds.
const GOODBYE_US: u64 = 4_000_000;
/// Own ports of calls: the range that nobody gives to a service.
const FIRST_PORT: u32 = 49_152;

/// Where packets go.
pub trait Outlet {
    /// Bytes that the next packet may carry; `None` if there is no room for any packet now.
    fn room(&mut self) -> Option<usize>;
    /// Sends a packet for which there was room.
    fn send(&mut self, packet: &Packet, bytes: &[u8]);
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
// So that storage that nobody uses yet is all zeros, which costs firmware no bytes of its image.
#[repr(u8)]
enum State {
    #[default]
    Free,
    /// Asked for, and not answered.
    Connecting,
    Open,
    /// Its owner has closed it, and the other side has not confirmed that.
    Closing,
    /// Over; its owner has not heard yet, or has not closed it. `None`: in good order.
    Ended(Option<SocketError>),
}

/// What is to be sent, one bit each.
struct Owed;

impl Owed {
    const REQUEST: u8 = 1;
    const RESPONSE: u8 = 2;
    const SHUTDOWN: u8 = 4;
    const UPDATE: u8 = 8;
    const CREDIT_REQUEST: u8 = 16;
}

/// Record of one connection: as many as the caller's storage has.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    state: State,
    owes: u8,
    /// Nobody has accepted it yet.
    waiting: bool,
    /// Credit was asked for since it was used up.
    asked: bool,
    generation: u16,
    local: u32,
    remote: u32,
    credit: Credit,
    /// Bytes that wait to be read: `filled` of them from `head` on, in a circle.
    head: u32,
    filled: u32,
    own_ends: Shutdown,
    peer_ends: Shutdown,
    deadline: Instant,
}

impl Connection {
    /// A record that no connection uses yet.
    pub const NEW: Connection = Connection {
        state: State::Free,
        owes: 0,
        waiting: false,
        asked: false,
        generation: 0,
        local: 0,
        remote: 0,
        credit: Credit::new(0),
        head: 0,
        filled: 0,
        own_ends: Shutdown { receive: false, send: false },
        peer_ends: Shutdown { receive: false, send: false },
        deadline: Instant::UNKNOWN,
    };

    fn free(&mut self) {
        *self = Connection { generation: self.generation.wrapping_add(1), ..Connection::NEW };
    }
    fn is_alive(&self) -> bool {
        matches!(self.state, State::Connecting | State::Open | State::Closing)
    }
    fn end(&mut self, error: Option<SocketError>) {
        (self.owes, self.deadline) = (0, Instant::UNKNOWN);
        // Nobody would ever ask for it.
        if self.waiting || self.state == State::Closing {
            self.free();
        } else {
            self.state = State::Ended(error);
        }
    }
    fn packet(&self, guest: u32, op: Op, len: u32) -> Packet {
        Packet { guest, from: self.local, to: self.remote, op, len, buf_alloc: 0, fwd_cnt: 0 }
    }
    /// What the next owed packet says.
    fn owed(&mut self) -> Option<Op> {
        let lowest = self.owes & self.owes.wrapping_neg();
        self.owes &= !lowest;
        Some(match lowest {
            Owed::REQUEST => Op::Request,
            Owed::RESPONSE => Op::Response,
            Owed::SHUTDOWN => Op::Shutdown(self.own_ends),
            Owed::UPDATE => Op::CreditUpdate,
            Owed::CREDIT_REQUEST => Op::CreditRequest,
            _ => return None,
        })
    }
}

impl Default for Connection {
    fn default() -> Self {
        Self::NEW
    }
}

/// A port that is listened at.
#[derive(Clone, Copy, Debug)]
struct Listener {
    port: u32,
    /// Connections that may wait to be accepted; 0 where nobody listens.
    backlog: u8,
}

/// What happened since the device was opened. Counts wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that came into being.
    pub opened: u32,
    /// Connections that were reset by the other side, by a restart, or because the other side broke a rule.
    pub reset: u32,
    /// Of these, the ones that broke a rule.
    pub broken: u32,
    /// Packets that were none, or not for this guest.
    pub malformed: u32,
    /// Packets of no connection.
    pub strays: u32,
    /// Calls that found nobody listening, or no place for them.
    pub refused: u32,
    /// Times that all connections were lost at once.
    pub lost: u32,
}

/// All connections.
#[derive(Debug)]
pub struct Table<'s> {
    connections: &'s mut [Connection],
    buffers: &'s mut [u8],
    /// Bytes of each connection's buffer.
    size: usize,
    listeners: [Listener; LISTENERS],
    resets: [(u32, u32); RESETS],
    pending: usize,
    next_port: u32,
    /// Whose owed packets go first.
    turn: usize,
    pub cid: u32,
    pub counters: Counters,
}

impl<'s> Table<'s> {
    /// Connections in this storage; the buffer is shared out evenly.
    pub fn new(connections: &'s mut [Connection], buffers: &'s mut [u8]) -> Table<'s> {
        let size = buffers.len().checked_div(connections.len()).unwrap_or(0);
        Table {
            size: size.min(u32::MAX as usize >> 1),
            connections,
            buffers,
            listeners: [Listener { port: 0, backlog: 0 }; LISTENERS],
            resets: [(0, 0); RESETS],
            pending: 0,
            next_port: FIRST_PORT,
            turn: 0,
            cid: MIN_GUEST_CID,
            counters: Counters::default(),
        }
    }

    // --- handles ----------------------------------------------------------------------------------------------------

    fn get(&mut self, socket: Socket) -> Result<&mut Connection, SocketError> {
        let connection = self.connections.get_mut(usize::from(socket.index));
        connection
            .filter(|one| one.generation == socket.generation && one.state != State::Free)
            .ok_or(SocketError::Closed)
    }

    /// What a call on a connection that is over says: what is the matter, once.
    fn over(&mut self, socket: Socket) -> Result<(), SocketError> {
        let connection = self.get(socket)?;
        match connection.state {
            // First what can still be read.
            State::Ended(Some(_)) if connection.filled != 0 => Err(SocketError::Closed),
            State::Ended(Some(error)) => {
                connection.free();
                Err(error)
            }
            State::Closing => Err(SocketError::Closed),
            _ => Ok(()),
        }
    }

    fn find(&mut self, local: u32, remote: u32) -> Option<usize> {
        let is = |one: &Connection| one.is_alive() && one.local == local && one.remote == remote;
        self.connections.iter().position(is)
    }

    /// A free record; one whose end was told and never confirmed counts as free where there is no other.
    fn place(&mut self) -> Option<usize> {
        if let Some(index) = self.connections.iter().position(|one| one.state == State::Free) {
            return Some(index);
        }
        // Before it was told, a reset would cut off what is on its way.
        let told = |one: &Connection| one.state == State::Closing && one.owes & Owed::SHUTDOWN == 0;
        let index = self.connections.iter().position(told)?;
        self.cut(index, None);
        Some(index)
    }

    /// Ends a connection from this side: with a reset to the other one.
    fn cut(&mut self, index: usize, error: Option<SocketError>) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let (local, remote) = (connection.local, connection.remote);
        connection.end(error);
        self.reset(local, remote);
    }

    /// The other side broke a rule of a connection.
    fn break_off(&mut self, index: usize) {
        self.counters.broken = self.counters.broken.wrapping_add(1);
        self.counters.reset = self.counters.reset.wrapping_add(1);
        self.cut(index, Some(SocketError::Reset));
    }

    pub fn reset(&mut self, from: u32, to: u32) {
        if let Some(place) = self.resets.get_mut(self.pending) {
            *place = (from, to);
            self.pending = self.pending.saturating_add(1);
        }
    }

    pub fn has_resets(&self) -> bool {
        self.pending != 0
    }

    /// The connection of these ports sent something that is no packet.
    pub fn malformed(&mut self, from: u32, to: u32) {
        match self.find(to, from) {
            Some(index) => self.break_off(index),
            None => self.reset(to, from),
        }
    }

    // --- calls ------------------------------------------------------------------------------------------------------

    pub fn listen(&mut self, port: u32, backlog: u8) -> Result<(), SocketError> {
        if port == PORT_ANY || self.listeners.iter().any(|one| one.backlog != 0 && one.port == port) {
            return Err(SocketError::InUse);
        }
        let place = self.listeners.iter_mut().find(|one| one.backlog == 0).ok_or(SocketError::Full)?;
        *place = Listener { port, backlog: backlog.max(1) };
        Ok(())
    }

    /// Listens no more; those that wait are turned away.
    pub fn unlisten(&mut self, port: u32) {
        for listener in self.listeners.iter_mut().filter(|one| one.port == port) {
            listener.backlog = 0;
        }
        for index in 0..self.connections.len() {
            if self.connections.get(index).is_some_and(|one| one.waiting && one.local == port) {
                self.cut(index, None);
            }
        }
    }

    pub fn accept(&mut self, port: u32) -> Result<(Socket, u32), SocketError> {
        if !self.listeners.iter().any(|one| one.backlog != 0 && one.port == port) {
            return Err(SocketError::Closed);
        }
        let found = self.connections.iter_mut().enumerate().find(|(_, one)| one.waiting && one.local == port);
        let (index, connection) = found.ok_or(SocketError::WouldBlock)?;
        connection.waiting = false;
        Ok((Socket { index: index as u16, generation: connection.generation }, connection.remote))
    }

    pub fn connect(&mut self, port: u32, now: Instant) -> Result<Socket, SocketError> {
        let index = self.place().ok_or(SocketError::Full)?;
        let local = self.own_port(port);
        let credit = Credit::new(self.size as u32);
        let connection = self.connections.get_mut(index).ok_or(SocketError::Full)?;
        let (state, generation) = (State::Connecting, connection.generation);
        let deadline = if now.is_known() { now.plus(CONNECT_US) } else { now };
        let (remote, owes) = (port, Owed::REQUEST);
        *connection =
            Connection { state, local, remote, credit, owes, deadline, generation, ..Connection::NEW };
        Ok(Socket { index: index as u16, generation })
    }

    /// A port of this side for a call: none that anybody uses.
    fn own_port(&mut self, remote: u32) -> u32 {
        // Fewer are taken than are looked at.
        for _ in 0..=self.connections.len().saturating_add(LISTENERS) {
            let port = self.next_port;
            self.next_port =
                if port >= PORT_ANY.wrapping_sub(1) { FIRST_PORT } else { port.saturating_add(1) };
            let listened = self.listeners.iter().any(|one| one.backlog != 0 && one.port == port);
            if !listened && self.find(port, remote).is_none() {
                return port;
            }
        }
        self.next_port
    }

    pub fn is_open(&mut self, socket: Socket) -> Result<(), SocketError> {
        self.over(socket)?;
        match self.get(socket)?.state {
            State::Connecting => Err(SocketError::WouldBlock),
            _ => Ok(()),
        }
    }

    pub fn peer(&mut self, socket: Socket) -> Result<u32, SocketError> {
        Ok(self.get(socket)?.remote)
    }

    pub fn has_bytes(&mut self, socket: Socket) -> bool {
        self.get(socket).is_ok_and(|one| {
            one.filled != 0 || one.peer_ends.send || matches!(one.state, State::Ended(_) | State::Closing)
        })
    }

    pub fn has_credit(&mut self, socket: Socket) -> bool {
        self.get(socket).is_ok_and(|one| match one.state {
            State::Open => one.credit.may_send() != 0 || one.peer_ends.receive || one.own_ends.send,
            State::Ended(_) => true,
            _ => false,
        })
    }

    pub fn read(&mut self, socket: Socket, into: &mut [u8]) -> Result<usize, SocketError> {
        let (size, start) = (self.size, usize::from(socket.index).saturating_mul(self.size));
        let connection = self.get(socket)?;
        let (mut head, mut left) = (connection.head as usize, connection.filled as usize);
        let mut done = 0usize;
        if connection.state != State::Closing {
            let buffer = self.buffers.get(start..start.saturating_add(size)).unwrap_or(&[]);
            while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty() && left != 0) {
                let most = rest.len().min(left).min(size.saturating_sub(head));
                let (Some(to), Some(from)) =
                    (rest.get_mut(..most), buffer.get(head..head.saturating_add(most)))
                else {
                    break;
                };
                to.copy_from_slice(from);
                (done, left) = (done.saturating_add(most), left.saturating_sub(most));
                head = head.saturating_add(most);
                if head >= size {
                    head = 0;
                }
            }
        }
        if done == 0 && !into.is_empty() {
            self.over(socket)?;
        }
        let connection = self.get(socket)?;
        (connection.head, connection.filled) = (head as u32, left as u32);
        connection.credit.note_taken(done as u32);
        if connection.is_alive() && connection.credit.is_news() {
            connection.owes |= Owed::UPDATE;
        }
        let at_end = connection.peer_ends.send || connection.own_ends.receive || !connection.is_alive();
        if done == 0 && !into.is_empty() && !at_end { Err(SocketError::WouldBlock) } else { Ok(done) }
    }

    pub fn write(
        &mut self,
        socket: Socket,
        bytes: &[u8],
        to: &mut impl Outlet,
    ) -> Result<usize, SocketError> {
        self.over(socket)?;
        let cid = self.cid;
        let connection = self.get(socket)?;
        match connection.state {
            State::Open if connection.own_ends.send || connection.peer_ends.receive => {
                return Err(SocketError::Closed);
            }
            State::Open => {}
            State::Connecting => return Err(SocketError::WouldBlock),
            _ => return Err(SocketError::Closed),
        }
        let mut done = 0usize;
        // What is owed goes first: there is no room while anything is.
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty() && connection.owes == 0) {
            let credit = connection.credit.may_send() as usize;
            if credit == 0 {
                if !core::mem::replace(&mut connection.asked, true) {
                    connection.owes |= Owed::CREDIT_REQUEST;
                }
                break;
            }
            let Some(room) = to.room() else { break };
            let Some(part) = rest.get(..room.min(credit).min(rest.len())).filter(|part| !part.is_empty())
            else {
                break;
            };
            let mut packet = connection.packet(cid, Op::Data, part.len() as u32);
            connection.credit.tell(&mut packet);
            connection.credit.note_sent(packet.len);
            to.send(&packet, part);
            done = done.saturating_add(part.len());
        }
        if done == 0 && !bytes.is_empty() { Err(SocketError::WouldBlock) } else { Ok(done) }
    }

    pub fn shut_down(&mut self, socket: Socket, ends: Shutdown) -> Result<(), SocketError> {
        self.over(socket)?;
        let connection = self.get(socket)?;
        match connection.state {
            State::Open => {
                connection.own_ends = connection.own_ends.and(ends);
                connection.owes |= Owed::SHUTDOWN;
                Ok(())
            }
            State::Connecting => Err(SocketError::WouldBlock),
            _ => Ok(()),
        }
    }

    /// Gives a handle back.
    pub fn close(&mut self, socket: Socket, now: Instant) {
        let Ok(connection) = self.get(socket) else { return };
        match connection.state {
            State::Open => {
                // With bytes unread, or on their way here, the other side learns at once that nobody reads them.
                connection.own_ends = Shutdown::BOTH;
                connection.owes = (connection.owes & Owed::RESPONSE) | Owed::SHUTDOWN;
                connection.state = State::Closing;
                connection.deadline = if now.is_known() { now.plus(GOODBYE_US) } else { now };
            }
            State::Connecting if connection.owes & Owed::REQUEST == 0 => {
                self.cut(usize::from(socket.index), None);
                if let Ok(connection) = self.get(socket) {
                    connection.free();
                }
            }
            State::Connecting | State::Ended(_) => connection.free(),
            State::Free | State::Closing => {}
        }
    }

    // --- packets ----------------------------------------------------------------------------------------------------

    /// Acts on a packet, whose bytes `copy` gives: from an offset on, as many as the slice holds. `ended`: it came before
    /// the end of all connections, so no other begins with it.
    pub fn packet(&mut self, packet: &Packet, ended: bool, copy: &mut dyn FnMut(u32, &mut [u8])) {
        let Some(index) = self.find(packet.to, packet.from) else {
            match packet.op {
                Op::Reset => {}
                _ if ended => {}
                Op::Request => self.asked(packet),
                _ => {
                    self.counters.strays = self.counters.strays.wrapping_add(1);
                    self.reset(packet.to, packet.from);
                }
            }
            return;
        };
        let Some(connection) = self.connections.get_mut(index) else { return };
        connection.credit.heard(packet);
        if connection.credit.may_send() != 0 {
            connection.asked = false;
        }
        match (connection.state, packet.op) {
            (State::Connecting, Op::Reset) => {
                self.counters.refused = self.counters.refused.wrapping_add(1);
                connection.end(Some(SocketError::Refused));
            }
            (_, Op::Reset) => {
                // Otherwise bytes in one of the directions may be lost.
                let clean = connection.peer_ends.send && connection.own_ends.send;
                if !clean && connection.state != State::Closing {
                    self.counters.reset = self.counters.reset.wrapping_add(1);
                }
                connection.end(if clean { None } else { Some(SocketError::Reset) });
            }
            (State::Connecting, Op::Response) => {
                (connection.state, connection.deadline) = (State::Open, Instant::UNKNOWN);
                self.counters.opened = self.counters.opened.wrapping_add(1);
            }
            (State::Open | State::Closing, Op::Data) => {
                if !self.data(index, packet.len, copy) {
                    self.break_off(index);
                }
            }
            (State::Open | State::Closing, Op::Shutdown(ends)) => {
                connection.peer_ends = connection.peer_ends.and(ends);
                if connection.peer_ends.is_whole() {
                    self.cut_whole(index);
                }
            }
            (State::Open, Op::CreditRequest) => connection.owes |= Owed::UPDATE,
            (State::Open | State::Closing, Op::CreditUpdate | Op::CreditRequest) => {}
            // A second request, a response that nobody waits for, anything before the response.
            _ => self.break_off(index),
        }
    }

    /// The other side has ended both directions; what came before can still be read.
    fn cut_whole(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let (local, remote) = (connection.local, connection.remote);
        // One that still waits to be accepted has an end that is worth reading.
        if connection.waiting && connection.filled != 0 {
            (connection.state, connection.owes) = (State::Ended(None), 0);
        } else {
            connection.end(None);
        }
        self.reset(local, remote);
    }

    /// Somebody calls.
    fn asked(&mut self, packet: &Packet) {
        let port = packet.to;
        let waiting = self.connections.iter().filter(|one| one.waiting && one.local == port).count();
        let listened =
            self.listeners.iter().any(|one| one.port == port && usize::from(one.backlog) > waiting);
        let place = if listened { self.place() } else { None };
        let credit = Credit::new(self.size as u32);
        let Some(connection) = place.and_then(|index| self.connections.get_mut(index)) else {
            self.counters.refused = self.counters.refused.wrapping_add(1);
            self.reset(packet.to, packet.from);
            return;
        };
        let (state, owes, generation) = (State::Open, Owed::RESPONSE, connection.generation);
        let (local, remote) = (packet.to, packet.from);
        *connection =
            Connection { state, local, remote, credit, owes, waiting: true, generation, ..Connection::NEW };
        connection.credit.heard(packet);
        self.counters.opened = self.counters.opened.wrapping_add(1);
    }

    /// Bytes for a connection. `false`: the other side had no credit for them, or had said that there would be none.
    fn data(&mut self, index: usize, len: u32, copy: &mut dyn FnMut(u32, &mut [u8])) -> bool {
        let (size, start) = (self.size, index.saturating_mul(self.size));
        let Some(connection) = self.connections.get_mut(index) else { return false };
        if connection.peer_ends.send || !connection.credit.note_received(len) {
            return false;
        }
        if connection.own_ends.receive {
            // It did not know yet that nobody reads them.
            connection.credit.note_taken(len);
            return true;
        }
        let buffer = self.buffers.get_mut(start..start.saturating_add(size)).unwrap_or(&mut []);
        let tail = (connection.head as usize).saturating_add(connection.filled as usize);
        let tail = tail.checked_rem(size).unwrap_or(0);
        let first = (len as usize).min(size.saturating_sub(tail));
        if let Some(part) = buffer.get_mut(tail..tail.saturating_add(first)) {
            copy(0, part);
        }
        if let Some(part) =
            buffer.get_mut(..(len as usize).saturating_sub(first)).filter(|part| !part.is_empty())
        {
            copy(first as u32, part);
        }
        connection.filled = connection.filled.saturating_add(len);
        true
    }

    // --- what is owed -----------------------------------------------------------------------------------------------

    /// Sends what is owed, as far as there is room, and ends what took too long.
    pub fn settle(&mut self, now: Instant, to: &mut impl Outlet) {
        for index in 0..self.connections.len() {
            let Some(connection) = self.connections.get(index) else { break };
            let due = connection.deadline.is_known() && now.is_known() && connection.deadline <= now;
            if due {
                self.cut(index, Some(SocketError::TimedOut));
            }
        }
        while let Some(last) = self.pending.checked_sub(1) {
            let Some(&(from, port)) = self.resets.get(last).filter(|_| to.room().is_some()) else { return };
            to.send(&Packet::reset(self.cid, from, port), &[]);
            self.pending = last;
        }
        // Whoever found no room is first the next time.
        let (first, count) = (self.turn, self.connections.len());
        for step in 0..count {
            let index = first.saturating_add(step).checked_rem(count).unwrap_or(0);
            let Some(connection) = self.connections.get_mut(index).filter(|one| one.is_alive()) else {
                continue;
            };
            while connection.owes != 0 {
                if to.room().is_none() {
                    self.turn = index;
                    return;
                }
                let Some(op) = connection.owed() else { break };
                let mut packet = connection.packet(self.cid, op, 0);
                connection.credit.tell(&mut packet);
                connection.owes &= !Owed::UPDATE;
                to.send(&packet, &[]);
            }
        }
    }

    /// When [`Table::settle`] has something to do by itself.
    pub fn deadline(&self) -> Option<Instant> {
        self.connections.iter().map(|one| one.deadline).filter(|at| at.is_known()).min()
    }

    /// All connections are gone: those that wait for an answer, too, if `all` says so.
    pub fn lose(&mut self, all: bool) {
        let mut lost = false;
        for connection in self.connections.iter_mut() {
            let concerned = connection.is_alive() && (all || connection.state != State::Connecting);
            if concerned {
                self.counters.reset = self.counters.reset.wrapping_add(1);
                connection.end(Some(SocketError::Reset));
            }
            lost |= concerned;
        }
        if lost {
            self.counters.lost = self.counters.lost.wrapping_add(1);
        }
        if all {
            self.pending = 0;
        }
    }
}

const _: () = assert!(HOST_CID < MIN_GUEST_CID);
