//! Sockets: VIRTIO 1.2, 5.10. Streams between ports of this guest and ports of the host, many at once.
//!
//! [`Vsock`] holds all connections, in the caller's storage, and each call names the one it means by its [`Socket`].
//! Nothing waits: a call that cannot be answered yet says [`SocketError::WouldBlock`]. Bytes that came wait in a buffer
//! of the connection's own, as large as the storage says, and the other side never sends more than there is room for.
//!
//! When the link goes down, or the PMM is restarted, every connection is over: what had come can still be read, then the
//! next call says [`SocketError::Reset`], once. Listeners stay.
//!
//! ```text
//!             connect              granted                     shut_down, close
//!   (nothing) ───────> connecting ─────────> open ─────────────────────────────> (nothing)
//!             listen                 ^          │ the other side ended it: read to the end, then close
//!             somebody calls ────────┘ accept   └ reset: an error, once
//! ```

mod table;

use hvl_shared_abi::wire::vsock::{
    Config, EVENT, Event, F_STREAM, HEADER, Header, Packet, RECEIVE, Shutdown, TRANSMIT, Way,
};
use hvl_shared_abi::{DeviceId, Mem};
use zerocopy::FromBytes;

use crate::bounce::{InFlight, Kind, Queue, QueueSlices, QueueStorage};
use crate::device::DeviceStatus;
use crate::link::{CellGuard, Link, OpenError};
use crate::platform::{Board, Instant};
pub use table::{Connection, Counters, LISTENERS};
use table::{Outlet, Table};

/// Storage of sockets: `CONNS` connections with a buffer of `BUF` bytes each for what came, and queues of at most `RX`,
/// `TX` and `EV` entries (the PMM's default is 32, 32 and 8).
#[derive(Debug)]
pub struct VsockStorage<
    const CONNS: usize = 4,
    const BUF: usize = 4096,
    const RX: usize = 32,
    const TX: usize = 32,
    const EV: usize = 8,
> {
    receive: QueueStorage<RX>,
    transmit: QueueStorage<TX>,
    event: QueueStorage<EV>,
    connections: [Connection; CONNS],
    buffers: [[u8; BUF]; CONNS],
}

impl<const CONNS: usize, const BUF: usize, const RX: usize, const TX: usize, const EV: usize>
    VsockStorage<CONNS, BUF, RX, TX, EV>
{
    /// Storage that no device uses yet.
    pub const NEW: Self = VsockStorage {
        receive: QueueStorage::NEW,
        transmit: QueueStorage::NEW,
        event: QueueStorage::NEW,
        connections: [Connection::NEW; CONNS],
        buffers: [[0; BUF]; CONNS],
    };
    /// Bytes of it.
    pub const SIZE: usize = size_of::<Self>();
    /// Alignment of it, in bytes.
    pub const ALIGN: usize = align_of::<Self>();

    /// What a device is opened with.
    pub fn slices(&mut self) -> VsockSlices<'_> {
        VsockSlices {
            receive: self.receive.slices(),
            transmit: self.transmit.slices(),
            event: self.event.slices(),
            connections: &mut self.connections,
            buffers: self.buffers.as_flattened_mut(),
        }
    }
}

impl<const CONNS: usize, const BUF: usize, const RX: usize, const TX: usize, const EV: usize> Default
    for VsockStorage<CONNS, BUF, RX, TX, EV>
{
    fn default() -> Self {
        Self::NEW
    }
}

/// A device's storage with its sizes forgotten.
#[derive(Debug)]
pub struct VsockSlices<'s> {
    /// For the queue of packets that come.
    pub receive: QueueSlices<'s>,
    /// For the queue of packets that go.
    pub transmit: QueueSlices<'s>,
    /// For the queue of events.
    pub event: QueueSlices<'s>,
    /// One record for each connection; at most 65,535.
    pub connections: &'s mut [Connection],
    /// Bytes that have come and wait to be read, shared out evenly among the connections.
    pub buffers: &'s mut [u8],
}

/// The name of a connection. It is good until the connection is closed, or has said [`SocketError::Reset`], `Refused` or
/// `TimedOut`; after that it names nothing, and never another connection (until 65,536 have had its place).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Socket {
    index: u16,
    generation: u16,
}

/// Why a call did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketError {
    /// There is no session, or the device does not run in it. It comes back by itself.
    LinkDown,
    /// Not yet: nothing has come, the other side has no room, the connection is not granted, nobody calls, or another
    /// task is looking at the link. Try again after the next doorbell, or at the device's next deadline.
    WouldBlock,
    /// The connection is over, and what was on its way is lost: the other side reset it, or the link was down. Said
    /// once; then the connection is closed.
    Reset,
    /// Nobody listens at that port, or has no place for one more. Said once.
    Refused,
    /// The other side did not grant the connection in time. Said once. (Of a stream of an adapter: its own time is over.)
    TimedOut,
    /// There is no such connection or listener any more, or this direction of it has ended.
    Closed,
    /// Every connection of the storage is in use, or every listener.
    Full,
    /// Somebody listens at this port already, or nobody can.
    InUse,
}

impl core::fmt::Display for SocketError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            SocketError::LinkDown => "the link is down; no PMM serves sockets at the moment",
            SocketError::WouldBlock => "the other side has not answered yet",
            SocketError::Reset => "the connection was reset",
            SocketError::Refused => "nobody listens at that port",
            SocketError::TimedOut => "the other side did not grant the connection in time",
            SocketError::Closed => "the connection is closed",
            SocketError::Full => "every connection is in use; close one, or give the device more storage",
            SocketError::InUse => "the port is listened at already",
        })
    }
}

impl core::error::Error for SocketError {}

/// Which direction of a connection to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing more is written; what was written arrives.
    Write,
    /// Nothing more is read; what has come is still there.
    Read,
}

/// Sockets.
#[derive(Debug)]
pub struct Vsock<'s, B> {
    link: Link<'s, B>,
    cell: usize,
    table: Table<'s>,
    /// Which start of the queues the connections belong to; 0: none.
    start: u32,
    /// The address is to be read (again).
    address: bool,
}

impl<'s, B: Board> Vsock<'s, B> {
    /// Opens the link's sockets, whether or not a PMM is there.
    pub fn open<const CONNS: usize, const BUF: usize, const RX: usize, const TX: usize, const EV: usize>(
        link: &Link<'s, B>,
        storage: &'s mut VsockStorage<CONNS, BUF, RX, TX, EV>,
    ) -> Result<Vsock<'s, B>, OpenError> {
        Self::open_slices(link, storage.slices())
    }

    /// The same with storage whose sizes are known at run time.
    pub fn open_slices(link: &Link<'s, B>, storage: VsockSlices<'s>) -> Result<Vsock<'s, B>, OpenError> {
        let (index, mut cell) = link.open(DeviceId::VSOCK, 0, F_STREAM)?;
        let [receive, transmit, event] = &mut cell.queues;
        receive.open(storage.receive, Kind::Receive, u16::MAX);
        transmit.open(storage.transmit, Kind::Transmit(InFlight::Drop), u16::MAX);
        event.open(storage.event, Kind::Receive, u16::MAX);
        let most = storage.connections.len().min(usize::from(u16::MAX));
        let (connections, _) = storage.connections.split_at_mut_checked(most).unwrap_or_default();
        let table = Table::new(connections, storage.buffers);
        Ok(Vsock { link: link.clone(), cell: index, table, start: 0, address: false })
    }

    // --- calls ------------------------------------------------------------------------------------------------------

    /// The guest's own address. `LinkDown`, too, while the PMM says one that no guest can have.
    pub fn cid(&mut self) -> Result<u32, SocketError> {
        self.enter()?;
        if self.is_up() { Ok(self.table.cid) } else { Err(SocketError::LinkDown) }
    }

    /// Listens at a port: up to `backlog` (at least 1) connections may wait to be accepted; more are refused. The
    /// listener stays through restarts, and needs no link.
    pub fn listen(&mut self, port: u32, backlog: u8) -> Result<(), SocketError> {
        self.table.listen(port, backlog)
    }
    /// Listens no more. Connections that were not accepted are reset, those that were go on.
    pub fn unlisten(&mut self, port: u32) {
        self.table.unlisten(port);
        let _ = self.enter();
    }
    /// The next connection to a port that is listened at, and the port of the host that it comes from.
    pub fn accept(&mut self, port: u32) -> Result<(Socket, u32), SocketError> {
        self.enter()?;
        self.table.accept(port)
    }
    /// Calls a port of the host. The connection is there when [`Vsock::is_open`] says so; it has 4 s for it, on a board
    /// with a clock.
    pub fn connect(&mut self, port: u32) -> Result<Socket, SocketError> {
        let cell = self.enter()?;
        if !self.is_up() {
            return Err(SocketError::LinkDown);
        }
        let socket = self.table.connect(port, self.now())?;
        self.settle(cell);
        Ok(socket)
    }
    /// Whether a connection is granted. While it is not: `WouldBlock`; then `Refused`, `TimedOut` or `Reset`, once.
    pub fn is_open(&mut self, socket: Socket) -> Result<(), SocketError> {
        self.enter()?;
        self.table.is_open(socket)
    }
    /// The port of the host at the other end.
    pub fn peer(&mut self, socket: Socket) -> Result<u32, SocketError> {
        self.table.peer(socket)
    }

    /// Copies bytes that came to the front of `into` and says how many. 0: the other side has ended this direction (or
    /// `into` is empty).
    pub fn read(&mut self, socket: Socket, into: &mut [u8]) -> Result<usize, SocketError> {
        let cell = self.enter()?;
        let result = self.table.read(socket, into);
        self.settle(cell);
        result
    }
    /// Hands bytes to the PMM, as many as the other side has room for, and says how many; at least one unless `bytes` is
    /// empty.
    pub fn write(&mut self, socket: Socket, bytes: &[u8]) -> Result<usize, SocketError> {
        let mut cell = self.enter()?;
        let m = self.link.mem();
        let result = match cell.queue(TRANSMIT) {
            Some(queue) => self.table.write(socket, bytes, &mut Blocks { m, queue }),
            None => Err(SocketError::LinkDown),
        };
        self.settle(cell);
        result
    }
    /// Whether [`Vsock::read`] would not say `WouldBlock`.
    pub fn read_ready(&mut self, socket: Socket) -> Result<bool, SocketError> {
        self.enter()?;
        Ok(self.table.has_bytes(socket))
    }
    /// Whether [`Vsock::write`] would not say `WouldBlock`.
    pub fn write_ready(&mut self, socket: Socket) -> Result<bool, SocketError> {
        let mut cell = self.enter()?;
        let room = cell.queue(TRANSMIT).is_some_and(|queue| queue.has_free());
        Ok(room && self.table.has_credit(socket))
    }

    /// Ends one direction. The other one goes on.
    pub fn shut_down(&mut self, socket: Socket, end: End) -> Result<(), SocketError> {
        let cell = self.enter()?;
        let ends = Shutdown { send: end == End::Write, receive: end == End::Read };
        let result = self.table.shut_down(socket, ends);
        self.settle(cell);
        result
    }
    /// Ends both directions and gives the connection back. What was written still arrives; what has come and was not
    /// read is dropped. Closing what is closed does nothing.
    pub fn close(&mut self, socket: Socket) {
        let now = self.now();
        self.table.close(socket, now);
        let _ = self.enter();
    }

    // --- looking ----------------------------------------------------------------------------------------------------

    /// Looks at the epochs and at this device, once and bounded. Every other call does the same first; this one is for
    /// a task that has nothing else to do with its device after a doorbell or at a deadline.
    pub fn poll(&mut self) {
        let _ = self.enter();
    }
    /// How the device stands; nothing while another task is looking at it.
    pub fn status(&self) -> Option<DeviceStatus> {
        self.link.cell(self.cell).map(|cell| cell.status())
    }
    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.table.counters
    }
    /// The link.
    pub fn link(&self) -> &Link<'s, B> {
        &self.link
    }
    /// When to [`poll`](Vsock::poll) although no doorbell rang: a connection takes too long to be granted, or to be
    /// confirmed as closed. For a program with one loop, beside [`Link::next_deadline`].
    pub fn deadline(&self) -> Option<Instant> {
        self.table.deadline()
    }
    /// Before the task sleeps: asks for doorbells and looks once more. `true`: look again instead.
    pub fn prepare_sleep(&mut self) -> bool {
        self.link.prepare_sleep_of(self.cell)
    }
    /// Prepares to sleep and says until when, as [`Link::next_deadline`] does, for a task that serves only this device;
    /// [`Vsock::deadline`] is included.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        let own = self.table.deadline();
        self.link.next_deadline_of(self.cell).into_iter().chain(own).min()
    }

    fn now(&self) -> Instant {
        self.link.board().now()
    }
    fn is_up(&self) -> bool {
        self.start != 0 && !self.address
    }

    /// Looks, and takes everything that has come.
    fn enter(&mut self) -> Result<CellGuard<'s>, SocketError> {
        let mut cell = self.link.enter(self.cell).ok_or(SocketError::WouldBlock)?;
        let start = match cell.runs() {
            true => cell.queue(RECEIVE).map_or(0, |queue| queue.starts()),
            false => 0,
        };
        if start != self.start {
            // What came before the end can still be read.
            self.take_packets(&mut cell, true);
            self.table.lose(true);
            (self.start, self.address) = (start, true);
        }
        if start == 0 {
            return Ok(cell);
        }
        // One of the session before finds no connection to end.
        self.take_events(&mut cell);
        if self.address {
            let config = cell.config::<_, { size_of::<Config>() }>(self.link.mem());
            let config = config.and_then(|bytes| Config::read_from_bytes(&bytes).ok());
            if let Some(cid) = config.and_then(|config| config.guest()) {
                (self.table.cid, self.address) = (cid, false);
            }
        }
        if self.is_up() {
            self.take_packets(&mut cell, false);
            self.owed(&mut cell);
        }
        cell.refill(&self.link);
        Ok(cell)
    }

    /// Sends what a call has left behind.
    fn settle(&mut self, mut cell: CellGuard<'s>) {
        if self.is_up() {
            self.owed(&mut cell);
            cell.publish(&self.link);
        }
    }

    fn owed(&mut self, cell: &mut CellGuard<'s>) {
        let (m, now) = (self.link.mem(), self.link.board().now());
        if let Some(queue) = cell.queue(TRANSMIT) {
            self.table.settle(now, &mut Blocks { m, queue });
        }
    }

    fn take_events(&mut self, cell: &mut CellGuard<'s>) {
        let m = self.link.mem();
        let Some(queue) = cell.queue(EVENT) else { return };
        while let Some((block, len)) = queue.take_ready() {
            let mut bytes = [0; Event::SIZE];
            m.copy_in(queue.extent(block).at, &mut bytes);
            queue.release(block);
            if len as usize >= Event::SIZE && u32::from_le_bytes(bytes) == Event::TRANSPORT_RESET {
                // What is still asked for stands in the queue behind the event, so it is not concerned.
                self.table.lose(false);
                self.address = true;
            }
        }
        // Asks to be told of the next one.
        queue.has_ready();
    }

    /// `ended`: only those that came before the end of the connections. Nothing is answered to them.
    fn take_packets(&mut self, cell: &mut CellGuard<'s>, ended: bool) {
        loop {
            let m = self.link.mem();
            let Some(queue) = cell.queue(RECEIVE) else { return };
            let next = if ended { queue.take_ready_of(self.start) } else { queue.take_ready() };
            let Some((block, len)) = next else { break };
            let at = queue.extent(block).at;
            // While the address was not known, nothing could be addressed.
            match self.is_up().then(|| parse(m, at, len, self.table.cid)).transpose() {
                Ok(None) => {}
                Ok(Some(packet)) => self.table.packet(&packet, ended, &mut |skip, into| {
                    m.copy_in(at.wrapping_add(HEADER as u32).wrapping_add(skip), into);
                }),
                Err(ports) => {
                    self.table.counters.malformed = self.table.counters.malformed.wrapping_add(1);
                    if let Some((from, to)) = ports {
                        self.table.malformed(from, to);
                    }
                }
            }
            queue.release(block);
            // Few resets can wait.
            if self.table.has_resets() && !ended {
                self.owed(cell);
            }
        }
        if let Some(queue) = cell.queue(RECEIVE) {
            // Asks to be told of the next one.
            queue.has_ready();
        }
    }
}

/// Copies a header out, once, and checks it. The ports are those of a packet that is answered with a reset.
fn parse<M: Mem>(m: &M, at: u32, len: u32, cid: u32) -> Result<Packet, Option<(u32, u32)>> {
    let came = len.checked_sub(HEADER as u32).ok_or(None)?;
    let mut bytes = [0; HEADER];
    m.copy_in(at, &mut bytes);
    Header::parse(&bytes, cid, Way::ToGuest, came).map_err(|error| error.to_reset())
}

/// Free blocks of the transmit queue.
struct Blocks<'q, 's, M> {
    m: &'q M,
    queue: &'q mut Queue<'s>,
}

impl<M: Mem> Outlet for Blocks<'_, '_, M> {
    fn room(&mut self) -> Option<usize> {
        // Every block has the size of the first.
        self.queue.has_free().then(|| (self.queue.extent(0).len as usize).saturating_sub(HEADER))
    }
    fn send(&mut self, packet: &Packet, bytes: &[u8]) {
        let Some(block) = self.queue.take() else { return };
        let at = self.queue.extent(block).at;
        self.m.copy_out(at, &packet.emit(Way::ToHost));
        if !bytes.is_empty() {
            self.m.copy_out(at.wrapping_add(HEADER as u32), bytes);
        }
        self.queue.post(self.m, block, (HEADER as u32).saturating_add(bytes.len() as u32));
    }
}
