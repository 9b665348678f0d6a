//! Sockets, VIRTIO 1.2, 5.10: streams between ports of the guest and whatever the host end makes of the host's ports.
//!
//! The device keeps what the protocol needs of each connection, in a table that its owner gives it; the host end keeps
//! the sockets, the bytes on their way to them, and the time. Both mean the same connection by the same *slot*.
//!
//! A guest has as much credit as the host end has room, so every packet that it may send is taken at once: a client that
//! does not read holds up its own connection and nothing else. In the other direction nothing is taken from a socket
//! before the guest has credit and a buffer for it. Connections with something to send stand in a queue and have one
//! packet a turn.
//!
//! What a guest does wrong on a connection ends that connection; what it sends for none is answered with a reset, as
//! many as there is room to remember.

mod table;

use hvl_shared_abi::ring::{Access, RingFault};
use hvl_shared_abi::wire::vsock::{
    Config, Credit, EVENT, Event, F_STREAM, HEADER, Header, Op, Packet, RECEIVE, Shutdown, TRANSMIT, Way,
};
use hvl_shared_abi::{DeviceId, Features, Mem};

use super::{BATCH, Device, Queues, Request};
use crate::host::EndError;
pub use table::Connection;
use table::{Owed, State, Table};

/// Buffers of one packet at the most.
const SEGMENTS: usize = 8;
/// Most bytes of one packet to the guest.
const CHUNK: usize = 4096;
/// Resets for packets of no connection that are remembered until the guest has a buffer for them. Those beyond are
/// dropped: a guest that sends into nowhere and does not listen to the answer is told less often.
const REFUSALS: usize = 32;

/// What happened to one slot of the host end since it was asked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// A client asks for this port of the guest; the slot is a new one.
    pub asked: Option<u32>,
    /// There may be bytes to read, or their end.
    pub readable: bool,
    /// Bytes that went from the slot's room to the socket.
    pub drained: u32,
    /// Nobody will read what is written from now on.
    pub hung_up: bool,
    /// The slot's timer is over.
    pub expired: bool,
}

/// What a slot may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// For nothing.
    Off,
    /// For the guest to grant or refuse a connection.
    Answer,
    /// For the guest to confirm that a connection is over.
    Goodbye,
}

/// The host's end of all connections. No call blocks.
pub trait Sockets {
    /// Bytes that each connection has room for on their way to its socket.
    fn room(&self) -> u32;
    /// The first port by which the device calls its own side of a connection that a client asked for. A successor of
    /// this program begins elsewhere, so that a late packet is not taken for one of a new connection.
    fn first_port(&self) -> u32;
    /// A guest is there, or is not. Clients are accepted only where one is.
    fn activate(&mut self, active: bool);
    /// What has happened to the next slot, if to any.
    fn next(&mut self) -> Option<(usize, Happened)>;
    /// Connects to what stands behind a port of the host. The slot, or nothing where nobody listens or no slot is free.
    fn connect(&mut self, port: u32) -> Option<usize>;
    /// Tells a client that the guest has granted its connection, and from which port of the host it comes.
    fn grant(&mut self, slot: usize, port: u32);
    /// Reads from a socket, as [`ByteEnd::read`](crate::host::ByteEnd::read). The guest has room for `credit` bytes: up
    /// to as many may be taken from the socket at once, and kept for the calls that follow.
    ///
    /// # Errors
    ///
    /// [`EndError::Closed`]: there will be nothing more.
    fn read(&mut self, slot: usize, into: &mut [u8], credit: usize) -> Result<usize, EndError>;
    /// Appends `len` bytes to what is on its way to a socket: calls `fill` with one stretch of the free room after the
    /// other, until it answers 0 or that many are there. Returns how many.
    fn put(&mut self, slot: usize, len: usize, fill: impl FnMut(&mut [u8]) -> usize) -> usize;
    /// Moves what was put to the socket as far as it takes it; the rest follows when it can. Returns how many bytes.
    fn flush(&mut self, slot: usize) -> u32;
    /// The guest has ended these directions: the one to the socket ends when the room is empty.
    fn shut_down(&mut self, slot: usize, ends: Shutdown);
    /// Sets the slot's only timer.
    fn time(&mut self, slot: usize, timer: Timer);
    /// A connection is over, and nothing happens to its slot any more. With `whole`, what was put still goes to the
    /// socket if that takes it in a reasonable time.
    fn finish(&mut self, slot: usize, whole: bool);
    /// The slot of a connection that is over may be used again.
    fn release(&mut self, slot: usize);
    /// Ends all connections at once, and gives their slots back.
    fn close_all(&mut self);
}

/// What happened since the device was made; for logs and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were made, by either side.
    pub connections: u64,
    /// Connections that were ended because the guest broke a rule.
    pub broken: u64,
    /// Packets for no connection.
    pub strays: u64,
}

/// The device: sockets `E` of the host, connections in `T`, of which there are as many as the host end has slots.
pub struct Vsock<E, T> {
    end: E,
    table: Table<T>,
    cid: u32,
    next_port: u32,
    /// A guest may be attached that knows connections of a predecessor.
    announce: bool,
    refusals: [(u32, u32); REFUSALS],
    refused: usize,
    /// A buffer that waits for something to send.
    receiving: Option<Request<SEGMENTS>>,
    counters: Counters,
}

impl<E: Sockets, T: AsMut<[Connection]>> Vsock<E, T> {
    /// A device for a guest of the address `cid`.
    pub fn new(end: E, cid: u32, connections: T) -> Vsock<E, T> {
        let next_port = end.first_port();
        Vsock {
            end,
            table: Table::new(connections),
            cid,
            next_port,
            announce: true,
            refusals: [(0, 0); REFUSALS],
            refused: 0,
            receiving: None,
            counters: Counters::default(),
        }
    }
    /// What happened so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    // --- the host's side --------------------------------------------------------------------------------------------

    fn happened(&mut self, slot: usize, what: Happened) {
        if let Some(port) = what.asked {
            self.ask(slot, port);
        }
        let Some(connection) = self.table.get(slot).filter(|one| one.state != State::Free) else {
            return;
        };
        connection.readable |= what.readable;
        connection.drained(what.drained);
        if what.hung_up {
            // What it had on its way is gone with whoever would have read it.
            connection.host_ended(Shutdown { receive: true, send: false });
            connection.credit.note_taken(u32::MAX);
        }
        let given_up = what.expired && connection.state != State::Open;
        if given_up || (what.hung_up && connection.state == State::Asked) {
            self.finish(slot, false);
        }
        self.table.queue(slot);
    }

    /// A connection is over: the host's end forgets it now, and the guest is told when it has a buffer.
    fn finish(&mut self, slot: usize, whole: bool) {
        let Some(connection) = self.table.get(slot) else { return };
        if !connection.end() {
            return;
        }
        let unheard = connection.pay(Owed::REQUEST);
        self.end.finish(slot, whole);
        if unheard {
            self.table.free(slot);
            self.end.release(slot);
        }
    }

    /// A client asks for a port of the guest.
    fn ask(&mut self, slot: usize, guest: u32) {
        let mut host = self.next_port;
        // As many tries as there can be others.
        while self.table.find(guest, host).is_some() {
            host = after(host);
        }
        self.next_port = after(host);
        let room = self.end.room();
        if let Some(connection) = self.table.get(slot) {
            *connection = Connection::new(State::Asked, guest, host, Credit::new(room), *connection);
            connection.owe(Owed::REQUEST);
            self.end.time(slot, Timer::Answer);
        }
    }

    // --- from the guest ---------------------------------------------------------------------------------------------

    /// Takes packets. Returns whether the batch was full.
    fn transmit<M: Mem>(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault> {
        let Some(mut queue) = queues.queue(TRANSMIT) else { return Ok(false) };
        let mut full = true;
        for _ in 0..BATCH {
            let Some(mut request) = queue.take::<SEGMENTS>()? else {
                full = false;
                break;
            };
            let came = request.len(Access::Readable);
            let mut bytes = [0; HEADER];
            let copied = request.peek(queue.mem(), &mut bytes);
            request.advance(copied);
            let good = match came.checked_sub(HEADER as u32) {
                Some(came) => self.packet(queue.mem(), &bytes, came, &mut request),
                None => false,
            };
            if good { queue.complete(request, 0) } else { queue.reject(request) }
        }
        let more = full && queue.has_more();
        // Once for all packets of a connection.
        while let Some(slot) = self.table.next_dirty() {
            let moved = self.end.flush(slot);
            if let Some(connection) = self.table.get(slot) {
                connection.drained(moved);
            }
            self.table.queue(slot);
        }
        Ok(more)
    }

    /// Acts on one packet. `false`: it was none, or broke a rule.
    fn packet<M: Mem>(
        &mut self,
        m: &M,
        bytes: &[u8; HEADER],
        came: u32,
        request: &mut Request<SEGMENTS>,
    ) -> bool {
        let packet = match Header::parse(bytes, self.cid, Way::ToHost, came) {
            Ok(packet) => packet,
            Err(error) => {
                if let Some((from, to)) = error.to_reset() {
                    match self.table.find(from, to) {
                        Some(slot) => self.break_off(slot),
                        None => self.refuse(from, to),
                    }
                }
                return false;
            }
        };
        let Some(slot) = self.table.find(packet.from, packet.to) else {
            return self.stray(&packet);
        };
        let Some(connection) = self.table.get(slot) else { return false };
        connection.credit.heard(&packet);
        let sound = match (connection.state, packet.op) {
            (_, Op::Reset) => {
                let whole = connection.guest_ends.send;
                let was = connection.end();
                self.table.free(slot);
                // Otherwise the host's end knows already, and only a reset of ours waits for a buffer.
                if was {
                    self.end.finish(slot, whole);
                }
                self.end.release(slot);
                return true;
            }
            (State::Asked, Op::Response) => {
                connection.state = State::Open;
                self.counters.connections = self.counters.connections.wrapping_add(1);
                self.end.time(slot, Timer::Off);
                self.end.grant(slot, packet.to);
                true
            }
            (State::Open | State::Goodbye, Op::Data) => self.data(m, slot, packet.len, request),
            (State::Open | State::Goodbye, Op::Shutdown(ends)) => {
                connection.guest_ended(ends);
                self.end.shut_down(slot, connection.guest_ends);
                if connection.guest_ends.is_whole() {
                    self.finish(slot, true);
                }
                true
            }
            (State::Open, Op::CreditRequest) => {
                connection.owe(Owed::UPDATE);
                true
            }
            (State::Open | State::Goodbye, Op::CreditUpdate | Op::CreditRequest) => true,
            // On its way out; the reset says what there is to say.
            (State::Ended, _) => true,
            // A second request, a response that nobody waits for, anything before the response.
            _ => false,
        };
        if sound {
            self.table.queue(slot)
        } else {
            self.break_off(slot)
        }
        sound
    }

    /// A packet of no connection.
    fn stray(&mut self, packet: &Packet) -> bool {
        match packet.op {
            Op::Reset => {}
            Op::Request => {
                let room = self.end.room();
                let slot = self.end.connect(packet.to);
                let Some((slot, connection)) = slot.and_then(|slot| Some((slot, self.table.get(slot)?)))
                else {
                    self.refuse(packet.from, packet.to);
                    return true;
                };
                let credit = Credit::new(room);
                *connection = Connection::new(State::Open, packet.from, packet.to, credit, *connection);
                connection.credit.heard(packet);
                connection.owe(Owed::RESPONSE);
                self.counters.connections = self.counters.connections.wrapping_add(1);
                self.table.queue(slot);
            }
            _ => {
                self.counters.strays = self.counters.strays.wrapping_add(1);
                self.refuse(packet.from, packet.to);
            }
        }
        true
    }

    /// Bytes for a socket. `false`: the guest had no credit for them, or had said that there would be none.
    fn data<M: Mem>(&mut self, m: &M, slot: usize, len: u32, request: &mut Request<SEGMENTS>) -> bool {
        let Some(connection) = self.table.get(slot) else { return false };
        if connection.guest_ends.send || !connection.credit.note_received(len) {
            return false;
        }
        if connection.state == State::Goodbye || connection.host_ends.receive {
            // The guest did not know yet that nobody reads them.
            connection.credit.note_taken(len);
            return true;
        }
        let put = self.end.put(slot, len as usize, |part| {
            let copied = request.peek(m, part);
            request.advance(copied);
            copied
        });
        self.table.soil(slot);
        put == len as usize
    }

    /// The guest broke a rule of a connection.
    fn break_off(&mut self, slot: usize) {
        self.counters.broken = self.counters.broken.wrapping_add(1);
        self.finish(slot, false);
        self.table.queue(slot);
    }

    /// Answers a packet of no connection with a reset, as soon as the guest has a buffer.
    fn refuse(&mut self, from: u32, to: u32) {
        if let Some(refusal) = self.refusals.get_mut(self.refused) {
            *refusal = (to, from);
            self.refused = self.refused.saturating_add(1);
        }
    }

    // --- to the guest -----------------------------------------------------------------------------------------------

    /// Sends packets. Returns whether the batch was full.
    fn receive<M: Mem>(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault> {
        let Some(mut queue) = queues.queue(RECEIVE) else { return Ok(false) };
        let mut bytes = [0; CHUNK];
        for _ in 0..BATCH {
            let mut request = match self.receiving.take() {
                Some(request) => request,
                None => match queue.take()? {
                    Some(request) => request,
                    None => return Ok(false),
                },
            };
            // One byte at the least, or a connection would have a turn and never use it.
            let room = request.len(Access::Writable).checked_sub(HEADER as u32).filter(|&room| room != 0);
            let Some(room) = room else {
                queue.reject(request);
                continue;
            };
            let room = (room as usize).min(CHUNK);
            let Some(packet) = self.next(bytes.get_mut(..room).unwrap_or(&mut [])) else {
                self.receiving = Some(request);
                if self.is_idle() {
                    return Ok(false);
                }
                continue;
            };
            request.write(queue.mem(), &packet.emit(Way::ToGuest));
            request.write(queue.mem(), bytes.get(..packet.len as usize).unwrap_or(&[]));
            let written = request.done();
            queue.complete(request, written);
        }
        Ok(!self.is_idle())
    }

    fn is_idle(&self) -> bool {
        self.refused == 0 && self.table.is_idle()
    }

    /// The next packet to send, and its bytes in `into`. Nothing: whose turn it was has none; ask again.
    fn next(&mut self, into: &mut [u8]) -> Option<Packet> {
        if let Some(last) = self.refused.checked_sub(1) {
            self.refused = last;
            let (from, to) = *self.refusals.get(last)?;
            return Some(Packet::reset(self.cid, from, to));
        }
        let slot = self.table.take_turn()?;
        let connection = self.table.get(slot)?;
        let (from, to) = (connection.host, connection.guest);
        if connection.state == State::Ended {
            self.table.free(slot);
            self.end.release(slot);
            return Some(Packet::reset(self.cid, from, to));
        }
        let (op, len) = self.turn(slot, into)?;
        let connection = self.table.get(slot)?;
        let mut packet = Packet { guest: self.cid, from, to, op, len, buf_alloc: 0, fwd_cnt: 0 };
        connection.credit.tell(&mut packet);
        connection.told();
        connection.credit.note_sent(len);
        // Behind all others that wait.
        self.table.queue(slot);
        Some(packet)
    }

    /// What a connection has to say next.
    fn turn(&mut self, slot: usize, into: &mut [u8]) -> Option<(Op, u32)> {
        let connection = self.table.get(slot)?;
        if connection.pay(Owed::REQUEST) {
            return Some((Op::Request, 0));
        }
        if connection.pay(Owed::RESPONSE) {
            return Some((Op::Response, 0));
        }
        if connection.may_read() {
            let credit = connection.credit.may_send() as usize;
            let most = into.len().min(credit);
            match self.end.read(slot, into.get_mut(..most).unwrap_or(&mut []), credit) {
                Ok(count) if count != 0 => return Some((Op::Data, count.min(most) as u32)),
                Ok(_) | Err(EndError::WouldBlock) => connection.readable = false,
                Err(EndError::Closed) => connection.host_ended(Shutdown { receive: false, send: true }),
            }
        }
        if connection.pay(Owed::SHUTDOWN) {
            let ends = connection.host_ends;
            if ends.is_whole() && connection.state == State::Open {
                connection.state = State::Goodbye;
                self.end.time(slot, Timer::Goodbye);
            }
            return Some((Op::Shutdown(ends), 0));
        }
        connection.pay(Owed::UPDATE).then_some((Op::CreditUpdate, 0))
    }

    /// Tells a guest that may have been attached to a predecessor of this program that its connections are gone.
    /// Returns whether it did.
    fn announce<M: Mem>(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault> {
        let Some(mut queue) = queues.queue(EVENT).filter(|_| self.announce) else { return Ok(false) };
        let Some(mut request) = queue.take::<SEGMENTS>()? else { return Ok(false) };
        if request.len(Access::Writable) < Event::SIZE as u32 {
            queue.reject(request);
            return Ok(false);
        }
        request.write(queue.mem(), &Event::TRANSPORT_RESET.to_le_bytes());
        queue.complete(request, Event::SIZE as u32);
        self.announce = false;
        Ok(true)
    }
}

/// The next port of the host: those of this range are nobody's service.
const fn after(port: u32) -> u32 {
    const FIRST: u32 = 1 << 30;
    FIRST | (port.wrapping_add(1) & FIRST.wrapping_sub(1))
}

impl<M: Mem, E: Sockets, T: AsMut<[Connection]>> Device<M> for Vsock<E, T> {
    fn id(&self) -> DeviceId {
        DeviceId::VSOCK
    }
    fn features(&self) -> u64 {
        F_STREAM
    }
    fn config(&self, into: &mut [u8]) -> usize {
        let bytes = Config::new(self.cid).to_bytes();
        into.split_first_chunk_mut().map_or(0, |(into, _)| {
            *into = bytes;
            bytes.len()
        })
    }
    fn activate(&mut self, _features: Features) {
        self.end.activate(true);
    }
    fn reset(&mut self) {
        self.end.activate(false);
        self.end.close_all();
        self.table.clear();
        self.receiving = None;
        self.refused = 0;
    }
    fn process(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault> {
        // The queues become visible one after the other, and a connection that the guest saw before would be lost.
        if self.announce(queues)? {
            return Ok(true);
        }
        let mut more = true;
        for _ in 0..BATCH {
            let Some((slot, what)) = self.end.next() else {
                more = false;
                break;
            };
            self.happened(slot, what);
        }
        more |= self.transmit(queues)?;
        more |= self.receive(queues)?;
        Ok(more)
    }
}
