//! Sockets: VIRTIO 1.2, 5.10. Streams between a port of the guest and a port of the host, in packets of one header and
//! some bytes.
//!
//! A [`Header`] is a private copy of what the other side alleges. [`Header::parse`] checks it against the length that
//! came with it and makes a [`Packet`] of it; [`Packet::emit`] goes the other way. [`Credit`] is the flow control of one
//! connection, 5.10.6.3, which both sides keep in the same way: counts wrap at 32 bits, and no lie about them makes a
//! side send more than was ever allowed, or take more than it has room for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian};

/// Queue on which the guest receives.
pub const RECEIVE: usize = 0;
/// Queue on which the guest transmits.
pub const TRANSMIT: usize = 1;
/// Queue on which the device tells of events.
pub const EVENT: usize = 2;
/// Stream sockets, the only kind that is offered: 5.10.3.
pub const F_STREAM: u64 = 1 << 0;
/// The host's address.
pub const HOST_CID: u32 = 2;
/// The lowest address that a guest may have; those below are reserved.
pub const MIN_GUEST_CID: u32 = 3;
/// The highest one; the one above means "any".
pub const MAX_GUEST_CID: u32 = u32::MAX - 1;
/// The port that no socket can have: "any".
pub const PORT_ANY: u32 = u32::MAX;
/// The type of a stream.
pub const TYPE_STREAM: u16 = 1;
/// Bytes of a header.
pub const HEADER: usize = size_of::<Header>();

/// The configuration space, 5.10.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// The guest's address; its upper 32 bits are reserved and 0.
    pub guest_cid: little_endian::U64,
}

impl Config {
    /// Its bytes, as they stand at the start of the configuration space.
    pub fn to_bytes(&self) -> [u8; size_of::<Config>()] {
        zerocopy::transmute!(*self)
    }
    /// The configuration for a guest of this address.
    pub fn new(cid: u32) -> Config {
        Config { guest_cid: u64::from(cid).into() }
    }
    /// The guest's address, unless what is alleged is none that a guest can have.
    pub fn guest(&self) -> Option<u32> {
        u32::try_from(self.guest_cid.get()).ok().filter(|cid| (MIN_GUEST_CID..=MAX_GUEST_CID).contains(cid))
    }
}

/// An event, 5.10.6.6. The only one: all connections are gone, and the guest's address may be another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Event {
    /// Which event; others than [`Event::TRANSPORT_RESET`] are reserved.
    pub id: little_endian::U32,
}

impl Event {
    /// The communication was interrupted.
    pub const TRANSPORT_RESET: u32 = 0;
    /// Bytes of an event.
    pub const SIZE: usize = size_of::<Event>();
}

/// A header as it travels, 5.10.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Address of the sender.
    pub src_cid: little_endian::U64,
    /// Address of the receiver.
    pub dst_cid: little_endian::U64,
    /// Port of the sender.
    pub src_port: little_endian::U32,
    /// Port of the receiver.
    pub dst_port: little_endian::U32,
    /// Bytes that follow the header.
    pub len: little_endian::U32,
    /// Kind of socket.
    pub kind: little_endian::U16,
    /// What it is about.
    pub op: little_endian::U16,
    /// More about it.
    pub flags: little_endian::U32,
    /// The sender's room for bytes of this connection, in all.
    pub buf_alloc: little_endian::U32,
    /// How many bytes it has taken out of there since the connection began; wraps.
    pub fwd_cnt: little_endian::U32,
}

const _: () = {
    assert!(size_of::<Config>() == 8 && size_of::<Event>() == 4);
    assert!(size_of::<Header>() == 44);
    assert!(core::mem::offset_of!(Header, dst_cid) == 8);
    assert!(core::mem::offset_of!(Header, src_port) == 16);
    assert!(core::mem::offset_of!(Header, dst_port) == 20);
    assert!(core::mem::offset_of!(Header, len) == 24);
    assert!(core::mem::offset_of!(Header, kind) == 28);
    assert!(core::mem::offset_of!(Header, op) == 30);
    assert!(core::mem::offset_of!(Header, flags) == 32);
    assert!(core::mem::offset_of!(Header, buf_alloc) == 36);
    assert!(core::mem::offset_of!(Header, fwd_cnt) == 40);
};

/// What a packet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Asks for a connection.
    Request,
    /// Grants it.
    Response,
    /// Ends it at once, or says that there is none.
    Reset,
    /// The sender will not receive, or not send, any more.
    Shutdown(Shutdown),
    /// Carries bytes.
    Data,
    /// Only tells the sender's credit.
    CreditUpdate,
    /// Asks for the receiver's credit.
    CreditRequest,
}

/// Which directions a side has ended, 5.10.6.5. Ends add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shutdown {
    /// It will not receive any more.
    pub receive: bool,
    /// It will not send any more.
    pub send: bool,
}

impl Shutdown {
    /// Both.
    pub const BOTH: Shutdown = Shutdown { receive: true, send: true };
    /// The ends of both.
    pub const fn and(self, other: Shutdown) -> Shutdown {
        Shutdown { receive: self.receive || other.receive, send: self.send || other.send }
    }
    /// Whether nothing is left.
    pub const fn is_whole(self) -> bool {
        self.receive && self.send
    }
}

/// A packet's header: sound by itself. Whether there is such a connection is the receiver's to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Address of the guest, which is the sender or the receiver; the other one is the host.
    pub guest: u32,
    /// Port of the sender.
    pub from: u32,
    /// Port of the receiver.
    pub to: u32,
    /// What it is about.
    pub op: Op,
    /// Bytes that follow; 0 for all but [`Op::Data`].
    pub len: u32,
    /// The sender's room in bytes.
    pub buf_alloc: u32,
    /// What it has taken out of it, in bytes.
    pub fwd_cnt: u32,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the guest.
    ToHost,
    /// To the guest.
    ToGuest,
}

/// Why what came is no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketError {
    /// It is shorter than a header.
    Short,
    /// It is not between this guest and the host.
    Address,
    /// A socket of a kind that is not offered; the answer is a reset from `to` to `from`.
    Kind {
        /// Port of the sender.
        from: u32,
        /// Port of the receiver.
        to: u32,
    },
    /// No operation has this number; the answer is the same.
    Operation {
        /// Port of the sender.
        from: u32,
        /// Port of the receiver.
        to: u32,
    },
    /// The header says another length than what came, or bytes where none belong; the answer is the same.
    Length {
        /// Port of the sender.
        from: u32,
        /// Port of the receiver.
        to: u32,
    },
}

impl PacketError {
    /// The ports, sender's first, where the sender is to be told by a reset.
    pub const fn to_reset(self) -> Option<(u32, u32)> {
        match self {
            PacketError::Short | PacketError::Address => None,
            PacketError::Kind { from, to }
            | PacketError::Operation { from, to }
            | PacketError::Length { from, to } => Some((from, to)),
        }
    }
}

impl Header {
    /// Checks a copied header against the address of the guest, the way it came, and the bytes that came with it.
    ///
    /// A reset is never answered with a reset, so a reset that is wrong in other ways is [`PacketError::Short`].
    pub fn parse(bytes: &[u8; HEADER], guest: u32, way: Way, came: u32) -> Result<Packet, PacketError> {
        const REQUEST: u16 = 1;
        let header: Header = zerocopy::transmute!(*bytes);
        let (from, to) = (header.src_port.get(), header.dst_port.get());
        let (guest_cid, host_cid) = match way {
            Way::ToHost => (header.src_cid.get(), header.dst_cid.get()),
            Way::ToGuest => (header.dst_cid.get(), header.src_cid.get()),
        };
        if guest_cid != u64::from(guest) || host_cid != u64::from(HOST_CID) {
            return Err(PacketError::Address);
        }
        let flags = header.flags.get();
        let op = match header.op.get() {
            REQUEST => Some(Op::Request),
            2 => Some(Op::Response),
            3 => Some(Op::Reset),
            // Flags that nobody has defined yet are no reason to refuse: they say nothing.
            4 => Some(Op::Shutdown(Shutdown { receive: flags & 1 != 0, send: flags & 2 != 0 })),
            5 => Some(Op::Data),
            6 => Some(Op::CreditUpdate),
            7 => Some(Op::CreditRequest),
            _ => None,
        };
        let wrong = |error| if op == Some(Op::Reset) { PacketError::Short } else { error };
        if header.kind.get() != TYPE_STREAM {
            return Err(wrong(PacketError::Kind { from, to }));
        }
        let Some(op) = op else { return Err(PacketError::Operation { from, to }) };
        let len = header.len.get();
        if came != len || (len != 0 && op != Op::Data) {
            return Err(wrong(PacketError::Length { from, to }));
        }
        let (buf_alloc, fwd_cnt) = (header.buf_alloc.get(), header.fwd_cnt.get());
        Ok(Packet { guest, from, to, op, len, buf_alloc, fwd_cnt })
    }
}

impl Packet {
    /// The header's bytes.
    pub fn emit(&self, way: Way) -> [u8; HEADER] {
        let (src, dst) = match way {
            Way::ToHost => (self.guest, HOST_CID),
            Way::ToGuest => (HOST_CID, self.guest),
        };
        let (op, flags) = match self.op {
            Op::Request => (1, 0),
            Op::Response => (2, 0),
            Op::Reset => (3, 0),
            Op::Shutdown(ends) => (4, u32::from(ends.receive) | u32::from(ends.send) << 1),
            Op::Data => (5, 0),
            Op::CreditUpdate => (6, 0),
            Op::CreditRequest => (7, 0),
        };
        let header = Header {
            src_cid: u64::from(src).into(),
            dst_cid: u64::from(dst).into(),
            src_port: self.from.into(),
            dst_port: self.to.into(),
            len: self.len.into(),
            kind: TYPE_STREAM.into(),
            op: u16::into(op),
            flags: flags.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.fwd_cnt.into(),
        };
        zerocopy::transmute!(header)
    }

    /// The reset that answers a packet of these ports.
    pub const fn reset(guest: u32, from: u32, to: u32) -> Packet {
        Packet { guest, from, to, op: Op::Reset, len: 0, buf_alloc: 0, fwd_cnt: 0 }
    }
}

/// The flow control of one connection, as one side keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// What the peer says of its room, and of what it took out of there.
    peer_alloc: u32,
    peer_fwd: u32,
    /// Bytes sent since the connection began.
    sent: u32,
    /// The own room, what came into it, what was taken out, and what the peer knows of that.
    alloc: u32,
    received: u32,
    fwd: u32,
    told: u32,
}

impl Credit {
    /// Of a connection that begins, with room for `alloc` bytes.
    pub const fn new(alloc: u32) -> Credit {
        Credit { peer_alloc: 0, peer_fwd: 0, sent: 0, alloc, received: 0, fwd: 0, told: 0 }
    }
    /// The same in the middle of its counts, for tests of their wrap.
    #[doc(hidden)]
    pub const fn starting_at(alloc: u32, count: u32, peer_count: u32) -> Credit {
        Credit {
            peer_alloc: 0,
            peer_fwd: peer_count,
            sent: peer_count,
            alloc,
            received: count,
            fwd: count,
            told: count,
        }
    }

    // --- sending ----------------------------------------------------------------------------------------------------

    /// Takes what a packet of the peer says of its room. A count of more bytes than were ever sent, or one that goes
    /// back, is not believed; room that shrinks is.
    pub const fn heard(&mut self, packet: &Packet) {
        self.peer_alloc = packet.buf_alloc;
        let on_the_way = self.sent.wrapping_sub(self.peer_fwd);
        if self.sent.wrapping_sub(packet.fwd_cnt) <= on_the_way {
            self.peer_fwd = packet.fwd_cnt;
        }
    }
    /// Bytes that the peer has room for now.
    pub const fn may_send(&self) -> u32 {
        self.peer_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_fwd))
    }
    /// Notes that bytes are on their way, at most as many as [`Credit::may_send`] allowed.
    pub const fn note_sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    // --- receiving --------------------------------------------------------------------------------------------------

    /// Notes that bytes came. `false`: they are more than there is room for; the peer ignores its credit.
    #[must_use]
    pub const fn note_received(&mut self, bytes: u32) -> bool {
        let room = self.alloc.saturating_sub(self.received.wrapping_sub(self.fwd));
        if bytes > room {
            return false;
        }
        self.received = self.received.wrapping_add(bytes);
        true
    }
    /// Notes that bytes were taken out of the own room.
    pub const fn note_taken(&mut self, bytes: u32) {
        let waiting = self.received.wrapping_sub(self.fwd);
        self.fwd = self.fwd.wrapping_add(if bytes < waiting { bytes } else { waiting });
    }
    /// Whether the peer should be told of room that became free: of half of it at once, so that a reader of single
    /// bytes costs no packet for each.
    pub const fn is_news(&self) -> bool {
        let free = self.fwd.wrapping_sub(self.told);
        free != 0 && free >= self.alloc / 2
    }
    /// Fills in what a packet to the peer says of the own room.
    pub const fn tell(&mut self, packet: &mut Packet) {
        self.told = self.fwd;
        packet.buf_alloc = self.alloc;
        packet.fwd_cnt = self.fwd;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(op: Op, len: u32) -> Packet {
        Packet {
            guest: 7,
            from: 1024,
            to: u32::MAX - 1,
            op,
            len,
            buf_alloc: 0x8000_0001,
            fwd_cnt: 0xfedc_ba98,
        }
    }

    const OPS: [Op; 9] = [
        Op::Request,
        Op::Response,
        Op::Reset,
        Op::Shutdown(Shutdown { receive: true, send: false }),
        Op::Shutdown(Shutdown { receive: false, send: true }),
        Op::Shutdown(Shutdown::BOTH),
        Op::Data,
        Op::CreditUpdate,
        Op::CreditRequest,
    ];

    #[test]
    fn what_is_emitted_is_parsed_both_ways() {
        for op in OPS {
            let packet = packet(op, if op == Op::Data { 300 } else { 0 });
            for way in [Way::ToHost, Way::ToGuest] {
                assert_eq!(Header::parse(&packet.emit(way), 7, way, packet.len), Ok(packet));
            }
            let wrong_way = Header::parse(&packet.emit(Way::ToHost), 7, Way::ToGuest, packet.len);
            assert_eq!(wrong_way, Err(PacketError::Address));
        }
        let bytes = packet(Op::Data, 1).emit(Way::ToHost);
        assert_eq!(
            (bytes[0], bytes[8], bytes[16], bytes[17], bytes[24], bytes[28], bytes[30]),
            (7, 2, 0, 4, 1, 1, 5)
        );
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        let good = packet(Op::Data, 16).emit(Way::ToHost);
        let parse = |bytes: &[u8; HEADER], came| Header::parse(bytes, 7, Way::ToHost, came);
        assert!(parse(&good, 16).is_ok());
        let (from, to) = (1024, u32::MAX - 1);
        for came in [0, 15, 17, u32::MAX] {
            assert_eq!(parse(&good, came), Err(PacketError::Length { from, to }));
        }
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            bytes
        };
        for (at, value) in [(0, 8), (4, 1), (7, 1), (8, 3), (8, 0), (15, 1)] {
            assert_eq!(parse(&with(at, value), 16), Err(PacketError::Address), "byte {at}");
        }
        for kind in [0, 2, 3, 255] {
            assert_eq!(parse(&with(28, kind), 16), Err(PacketError::Kind { from, to }));
        }
        for op in [0, 8, 99] {
            assert_eq!(parse(&with(30, op), 16), Err(PacketError::Operation { from, to }));
        }
        // Bytes where none belong.
        for op in [1, 2, 4, 6, 7] {
            assert_eq!(parse(&with(30, op), 16), Err(PacketError::Length { from, to }));
        }
        // A reset is never answered.
        assert_eq!(parse(&with(30, 3), 16).unwrap_err().to_reset(), None);
        // Nothing that a peer can store panics.
        let mut state = 1u32;
        for _ in 0..100_000 {
            let bytes = core::array::from_fn(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8 & 7
            });
            let _ = Header::parse(&bytes, 7, Way::ToHost, state & 3);
        }
    }

    #[test]
    fn shutdown_flags_none_all_and_unknown() {
        let mut bytes = packet(Op::Shutdown(Shutdown::default()), 0).emit(Way::ToHost);
        let ends = |bytes: &[u8; HEADER]| Header::parse(bytes, 7, Way::ToHost, 0).unwrap().op;
        assert_eq!(ends(&bytes), Op::Shutdown(Shutdown::default()));
        bytes[32..36].fill(0xff);
        assert_eq!(ends(&bytes), Op::Shutdown(Shutdown::BOTH));
        bytes[32] = 0xfc;
        assert_eq!(ends(&bytes), Op::Shutdown(Shutdown::default()));
    }

    #[test]
    fn a_configuration_that_no_guest_can_have() {
        for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            assert_eq!(Config { guest_cid: cid.into() }.guest(), None);
        }
        for cid in [3, 4, u32::MAX - 1] {
            assert_eq!(Config::new(cid).guest(), Some(cid));
        }
    }

    /// Two sides that tell each other everything, from every interesting start of their counts.
    #[test]
    fn credit_holds_across_the_wrap() {
        for start in [0, u32::MAX - 3, u32::MAX, 1 << 31] {
            let mut sender = Credit::starting_at(0, 0, start);
            let mut receiver = Credit::starting_at(100, start, 0);
            let mut update = packet(Op::CreditUpdate, 0);
            receiver.tell(&mut update);
            sender.heard(&update);
            for round in 0..1000 {
                assert_eq!(sender.may_send(), 100, "round {round} from {start:#x}");
                for part in [1, 49, 50] {
                    sender.note_sent(part);
                    assert!(receiver.note_received(part));
                }
                assert!(sender.may_send() == 0 && !receiver.note_received(1));
                receiver.note_taken(49);
                assert!(!receiver.is_news());
                receiver.note_taken(1);
                assert!(receiver.is_news());
                receiver.tell(&mut update);
                sender.heard(&update);
                assert_eq!(sender.may_send(), 50);
                receiver.note_taken(50);
                receiver.tell(&mut update);
                sender.heard(&update);
            }
        }
    }

    #[test]
    fn lies_about_credit_allow_nothing_that_was_not_allowed() {
        let tell = |alloc, fwd| Packet { buf_alloc: alloc, fwd_cnt: fwd, ..packet(Op::CreditUpdate, 0) };
        let mut credit = Credit::new(64);
        assert_eq!(credit.may_send(), 0);
        credit.heard(&tell(1000, 0));
        credit.note_sent(600);
        // More was taken than was ever sent.
        for fwd in [601, 1000, 1 << 31, u32::MAX] {
            credit.heard(&tell(1000, fwd));
            assert_eq!(credit.may_send(), 400, "{fwd}");
        }
        credit.heard(&tell(1000, 500));
        assert_eq!(credit.may_send(), 900);
        // A count that goes back.
        credit.heard(&tell(1000, 100));
        assert_eq!(credit.may_send(), 900);
        // Room that shrinks below what is on the way, to nothing, and grows again.
        credit.heard(&tell(50, 500));
        assert_eq!(credit.may_send(), 0);
        credit.heard(&tell(0, 600));
        assert_eq!(credit.may_send(), 0);
        credit.heard(&tell(u32::MAX, 600));
        assert_eq!(credit.may_send(), u32::MAX);
        // Taken twice is taken once.
        assert!(credit.note_received(64));
        credit.note_taken(u32::MAX);
        assert!(credit.note_received(64) && !credit.note_received(1));
    }
}
