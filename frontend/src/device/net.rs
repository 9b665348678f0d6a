//! A network card: VIRTIO 1.2, 5.1.
//!
//! Frames are copied out of shared memory once, with their header, and looked at in private memory only. Several are in
//! flight in either direction. A received frame may lie in as many blocks as it needs (MRG_RXBUF), and so may one that
//! is transmitted, which is then one chain: how large the PMM made the pool decides how fast the card is, not what
//! fits.
//!
//! What was being transmitted when the other side restarted is dropped and counted: networks lose frames, and those
//! who care send them again. Everything else comes back by itself, and with the same address.
//!
//! Checksums and segments are left to the other side as far as it was asked for ([`Options`]) and is accepted in this
//! session ([`Net::allowed`]); the next session may be with a PMM that takes over less. The adapters deal with that.

use hvl_shared_abi::wire::net::{
    self, Config, F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_HOST_TSO4, F_HOST_TSO6, F_MAC,
    F_MRG_RXBUF, F_MTU, F_STATUS, HEADER, Header, RECEIVE, TRANSMIT,
};
use hvl_shared_abi::{DeviceId, Features, Mem};
use zerocopy::FromBytes;

pub use hvl_shared_abi::wire::net::{
    Allowed, Checksum, DEFAULT_MTU, MAX_FRAME, MIN_FRAME, Mac, Offload, Protocol, Segments,
};

use crate::bounce::{InFlight, Kind, Queue, QueueSlices, QueueStorage};
use crate::device::{DeviceStatus, NotNow, handle};
use crate::link::{CellGuard, Link, OpenError};
use crate::platform::{Board, Instant};

/// Most blocks of one transmitted frame. The longest frame takes 33 of the default 2 KiB.
const PARTS: usize = 48;
/// Smallest MTU that IPv4 works with; a PMM that says less says nonsense.
const LEAST_MTU: u16 = 68;

/// Storage of a network card with queues of at most `RX` and `TX` entries (the PMM's default is 64 each).
#[derive(Debug)]
pub struct NetStorage<const RX: usize = 64, const TX: usize = 64> {
    receive: QueueStorage<RX>,
    transmit: QueueStorage<TX>,
    follows: [Follow; TX],
}

impl<const RX: usize, const TX: usize> NetStorage<RX, TX> {
    /// Storage that no card uses yet.
    pub const NEW: NetStorage<RX, TX> =
        NetStorage { receive: QueueStorage::NEW, transmit: QueueStorage::NEW, follows: [Follow::NONE; TX] };
    /// Bytes of it.
    pub const SIZE: usize = size_of::<Self>();
    /// Alignment of it, in bytes.
    pub const ALIGN: usize = align_of::<Self>();
}

impl<const RX: usize, const TX: usize> Default for NetStorage<RX, TX> {
    fn default() -> Self {
        Self::NEW
    }
}

/// Which block follows one in a frame, and whether this is the first of a posted frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow(u16);

impl Follow {
    /// None does.
    pub const NONE: Follow = Follow(0);
    const POSTED: u16 = 0x8000;

    fn to(block: u16) -> Follow {
        Follow(block.wrapping_add(1) & !Self::POSTED)
    }
    fn next(self) -> Option<u16> {
        (self.0 & !Self::POSTED).checked_sub(1)
    }
    fn posted(self) -> bool {
        self.0 & Self::POSTED != 0
    }
}

/// How a card is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Which of the link's cards; 0 is the first.
    pub ordinal: u8,
    /// Checksums may be left to the other side, in both directions. Whoever receives looks at
    /// [`Received::offload`] then.
    pub checksums: bool,
    /// So may segments, which takes checksums: frames of up to [`MAX_FRAME`] bytes are received and transmitted.
    pub segments: bool,
}

/// Why a frame was not transmitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// There is no session, or the card does not run in it. It comes back by itself.
    LinkDown,
    /// Too many frames are in flight. Try again after the next doorbell.
    WouldBlock,
    /// It has fewer than [`MIN_FRAME`] or more than [`MAX_FRAME`] bytes, or more than all blocks together hold.
    Length,
    /// It leaves to the PMM what that does not take over in this session.
    NotAccepted,
}

impl core::fmt::Display for SendError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            SendError::LinkDown => "the link is down; no PMM serves this card at the moment",
            SendError::WouldBlock => "too many frames are on their way already",
            SendError::Length => "the frame is shorter or longer than the card can send",
            SendError::NotAccepted => "the PMM does not take over what is left to be done for the frame",
        })
    }
}

impl core::error::Error for SendError {}

/// A frame that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its bytes.
    pub len: usize,
    /// What the other side has left to be done for it.
    pub offload: Offload,
}

/// A network card.
#[derive(Debug)]
pub struct Net<'s, B> {
    link: Link<'s, B>,
    cell: usize,
    follows: &'s mut [Follow],
    /// Posted frames of several blocks.
    chains: u16,
    /// The layout for which the two above hold.
    layout: u32,
    /// The first block of a claim that was not committed.
    held: Option<u16>,
    options: Options,
    malformed: u32,
    too_long: u32,
}

handle!(Net);

impl<'s, B: Board> Net<'s, B> {
    /// Opens a card of the link, whether or not a PMM is there.
    pub fn open<const RX: usize, const TX: usize>(
        link: &Link<'s, B>,
        storage: &'s mut NetStorage<RX, TX>,
        options: Options,
    ) -> Result<Net<'s, B>, OpenError> {
        let (receive, transmit) = (storage.receive.slices(), storage.transmit.slices());
        Self::open_slices(link, receive, transmit, &mut storage.follows, options)
    }

    /// The same with storage whose size is known at run time; `follows` has as many entries as the transmit queue.
    pub fn open_slices(
        link: &Link<'s, B>,
        receive: QueueSlices<'s>,
        transmit: QueueSlices<'s>,
        follows: &'s mut [Follow],
        options: Options,
    ) -> Result<Net<'s, B>, OpenError> {
        let mut wanted = F_MAC | F_MTU | F_STATUS | F_MRG_RXBUF;
        if options.checksums || options.segments {
            wanted |= F_CSUM | F_GUEST_CSUM;
        }
        if options.segments {
            wanted |= F_GUEST_TSO4 | F_GUEST_TSO6 | F_HOST_TSO4 | F_HOST_TSO6;
        }
        let (index, mut cell) = link.open(DeviceId::NET, options.ordinal, wanted)?;
        let [first, second, _] = &mut cell.queues;
        first.open(receive, Kind::Receive, u16::MAX);
        second.open(
            transmit,
            Kind::Transmit(InFlight::Drop),
            u16::try_from(follows.len()).unwrap_or(u16::MAX),
        );
        let link = link.clone();
        Ok(Net {
            link,
            cell: index,
            follows,
            chains: 0,
            layout: 0,
            held: None,
            options,
            malformed: 0,
            too_long: 0,
        })
    }

    fn enter(&self) -> Result<CellGuard<'s>, NotNow> {
        self.link.enter(self.cell).ok_or(NotNow::WouldBlock)
    }

    // --- what the card is -------------------------------------------------------------------------------------------

    fn config(&self) -> Result<(Features, Config), NotNow> {
        let cell = self.enter()?;
        if !cell.runs() {
            return Err(NotNow::LinkDown);
        }
        let bytes = cell.config::<_, { size_of::<Config>() }>(self.link.mem()).ok_or(NotNow::WouldBlock)?;
        let config = Config::read_from_bytes(&bytes).map_err(|_| NotNow::WouldBlock)?;
        Ok((cell.accepted(), config))
    }

    /// The card's address; nothing if the PMM says none, or one that no card can have (a group's, or all zeroes).
    pub fn mac(&mut self) -> Result<Option<Mac>, NotNow> {
        let (features, config) = self.config()?;
        let [first, ..] = config.mac;
        let sound = first & 1 == 0 && config.mac != [0; 6];
        Ok((features.bits() & F_MAC != 0 && sound).then_some(config.mac))
    }

    /// Largest payload of a frame in bytes; [`DEFAULT_MTU`] if the PMM says none or nonsense.
    pub fn mtu(&mut self) -> Result<u16, NotNow> {
        let (features, config) = self.config()?;
        let said = features.bits() & F_MTU != 0 && config.mtu.get() >= LEAST_MTU;
        Ok(if said { config.mtu.get() } else { DEFAULT_MTU })
    }

    /// Whether frames can go anywhere: the card runs, and the PMM does not say that its cable is out.
    pub fn is_up(&mut self) -> bool {
        let up = |(features, config): (Features, Config)| {
            features.bits() & F_STATUS == 0 || config.status.get() & net::LINK_UP != 0
        };
        self.config().is_ok_and(up)
    }

    /// What may be left to the PMM in this session.
    pub fn allowed(&mut self) -> Result<Allowed, NotNow> {
        let cell = self.enter()?;
        if cell.runs() { Ok(Allowed::to_device(cell.accepted().bits())) } else { Err(NotNow::LinkDown) }
    }

    /// How it was opened.
    pub fn options(&self) -> Options {
        self.options
    }

    /// Received frames that were dropped since the card was opened: malformed ones, and well-formed ones that were
    /// longer than the memory they were to be copied to. Counts wrap.
    pub fn dropped(&self) -> (u32, u32) {
        (self.malformed, self.too_long)
    }

    // --- receiving --------------------------------------------------------------------------------------------------

    /// Copies the next frame to the front of `into`. A frame that does not fit is dropped and counted, so give
    /// [`MAX_FRAME`] bytes where segments were asked for, and otherwise the MTU and 18 more. What was received before
    /// the link went down can still be read.
    pub fn receive(&mut self, into: &mut [u8]) -> Result<Received, NotNow> {
        let mut cell = self.enter()?;
        let (runs, features) = (cell.runs(), cell.accepted().bits());
        let m = self.link.mem();
        let Some(queue) = cell.queue(RECEIVE) else { return Err(NotNow::LinkDown) };
        let mut got = None;
        // Each turn takes a block at least.
        for _ in 0..queue.blocks() {
            let Some((block, len)) = queue.take_ready() else { break };
            match assemble(queue, m, (block, len), features, into) {
                Ok(frame) => {
                    got = Some(frame);
                    break;
                }
                Err(Bad::Malformed) => self.malformed = self.malformed.wrapping_add(1),
                Err(Bad::TooLong) => self.too_long = self.too_long.wrapping_add(1),
            }
        }
        queue.told(got.is_none());
        if runs {
            cell.refill(&self.link);
        }
        match got {
            Some(frame) => Ok(frame),
            None if runs => Err(NotNow::WouldBlock),
            None => Err(NotNow::LinkDown),
        }
    }

    /// Whether [`Net::receive`] has something to look at.
    pub fn receive_ready(&mut self) -> bool {
        self.enter().is_ok_and(|mut cell| cell.queue(RECEIVE).is_some_and(|queue| queue.has_ready()))
    }

    // --- transmitting -----------------------------------------------------------------------------------------------

    /// Transmits a frame. It is copied; `Ok` says that it is on its way, not that it arrived.
    pub fn transmit(&mut self, frame: &[u8], offload: Offload) -> Result<(), SendError> {
        let mut claim = self.claim(frame.len())?;
        match claim.write_at(0, frame) {
            Ok(true) => claim.commit(offload),
            Ok(false) => Err(SendError::Length),
            Err(NotNow::LinkDown) => Err(SendError::LinkDown),
            Err(NotNow::WouldBlock) => Err(SendError::WouldBlock),
        }
    }

    /// Whether [`Net::transmit`] would take a frame of `len` bytes.
    pub fn transmit_ready(&mut self, len: usize) -> bool {
        self.claim(len).is_ok()
    }

    /// Room for a frame of `len` bytes, to be written in place. Nothing is sent before [`Claim::commit`]; a claim that
    /// is dropped sends nothing.
    pub fn claim(&mut self, len: usize) -> Result<Claim<'_, 's, B>, SendError> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return Err(SendError::Length);
        }
        let mut cell = self.enter().map_err(|_| SendError::WouldBlock)?;
        let runs = cell.runs();
        let Some(queue) = cell.queue(TRANSMIT).filter(|_| runs) else { return Err(SendError::LinkDown) };
        let mut chains = Chains { follows: self.follows, posted: &mut self.chains };
        chains.reap(queue, &mut self.layout, &mut self.held);
        if let Some(held) = self.held.take() {
            chains.release(queue, held);
        }
        let block = queue.extent(0).len as usize;
        let count =
            len.saturating_add(HEADER).checked_next_multiple_of(block).and_then(|all| all.checked_div(block));
        let count =
            count.filter(|&count| count <= PARTS.min(queue.blocks().into())).ok_or(SendError::Length)?;
        let Some(head) = chains.take(queue, count) else {
            queue.told(true);
            return Err(SendError::WouldBlock);
        };
        self.held = Some(head);
        Ok(Claim { net: self, head, room: len, len: 0 })
    }
}

/// Why a received frame is dropped.
enum Bad {
    Malformed,
    TooLong,
}

/// Copies one frame out of its blocks, and frees them.
///
/// The PMM hands all blocks of a frame over at once, so one of which some are missing is malformed, and the next frame
/// begins in the next block: to wait for the rest would leave it to the PMM for how long.
fn assemble<M: Mem>(
    queue: &mut Queue<'_>,
    m: &M,
    (first, len): (u16, u32),
    features: u64,
    into: &mut [u8],
) -> Result<Received, Bad> {
    let place = queue.extent(first);
    let payload = (len as usize).checked_sub(HEADER);
    let mut bytes = [0; HEADER];
    if payload.is_some() {
        m.copy_in(place.at, &mut bytes);
    }
    let header = Header::from_bytes(bytes);
    let mut done = copy(m, place.at.wrapping_add(HEADER as u32), payload.unwrap_or(0), into, 0);
    queue.release(first);
    let payload = payload.ok_or(Bad::Malformed)?;
    let buffers = if features & F_MRG_RXBUF == 0 { 1 } else { header.num_buffers.get() };
    let mut total = payload;
    // More than the queue has cannot be there; 0 is refused below.
    for _ in 1..buffers.min(queue.blocks()) {
        let (block, len) = queue.take_ready().ok_or(Bad::Malformed)?;
        total = total.saturating_add(len as usize);
        done = copy(m, queue.extent(block).at, len as usize, into, done);
        queue.release(block);
    }
    if buffers == 0 || buffers > queue.blocks() || !(MIN_FRAME..=MAX_FRAME).contains(&total) {
        return Err(Bad::Malformed);
    }
    if done != total {
        return Err(Bad::TooLong);
    }
    let offload = header.parse(Allowed::to_driver(features), total).map_err(|_| Bad::Malformed)?;
    Ok(Received { len: total, offload })
}

/// Copies `len` bytes behind what is done already, if all of them fit. Where the frame ends then.
fn copy<M: Mem>(m: &M, at: u32, len: usize, into: &mut [u8], done: usize) -> usize {
    let end = done.saturating_add(len);
    if let Some(room) = into.get_mut(done..end) {
        m.copy_in(at, room);
        return end;
    }
    // Nothing behind it fits, either.
    usize::MAX
}

/// The frames of several blocks, as lists through a table.
struct Chains<'c> {
    follows: &'c mut [Follow],
    posted: &'c mut u16,
}

impl Chains<'_> {
    fn after(&self, block: u16) -> Option<u16> {
        self.follows.get(usize::from(block))?.next()
    }

    fn set(&mut self, block: u16, follow: Follow) {
        if let Some(slot) = self.follows.get_mut(usize::from(block)) {
            *slot = follow;
        }
    }

    /// Frees what follows the first blocks of frames that are no longer in flight, be it that they were acknowledged
    /// or dropped at a restart: the queue knows of the first block only, and has freed that. Nothing may be taken from
    /// the queue before.
    fn reap(&mut self, queue: &mut Queue<'_>, layout: &mut u32, held: &mut Option<u16>) {
        if *layout != queue.layout() {
            // The queue has freed all of its blocks.
            *layout = queue.layout();
            self.follows.fill(Follow::NONE);
            (*self.posted, *held) = (0, None);
        }
        if *self.posted == 0 {
            return;
        }
        for head in 0..queue.blocks() {
            let Some(follow) = self.follows.get(usize::from(head)).copied() else { break };
            if follow.posted() && !queue.is_in_flight(head) {
                self.set(head, Follow::NONE);
                *self.posted = self.posted.wrapping_sub(1);
                if let Some(second) = follow.next() {
                    self.release(queue, second);
                }
            }
        }
    }

    /// Frees a block and those that follow it.
    fn release(&mut self, queue: &mut Queue<'_>, head: u16) {
        let mut next = Some(head);
        // No chain is longer; a bound all the same.
        for _ in 0..self.follows.len() {
            let Some(block) = next else { break };
            next = self.after(block);
            self.set(block, Follow::NONE);
            queue.release(block);
        }
    }

    /// Takes so many free blocks; all of them or none.
    fn take(&mut self, queue: &mut Queue<'_>, count: usize) -> Option<u16> {
        let mut head = None;
        for _ in 0..count {
            let Some(block) = queue.take() else {
                if let Some(head) = head {
                    self.release(queue, head);
                }
                return None;
            };
            self.set(block, head.map_or(Follow::NONE, Follow::to));
            head = Some(block);
        }
        head
    }
}

/// Room for a frame, in blocks of the transmit queue that its holder fills. There is no slice of it: the memory is the
/// PMM's, too.
#[derive(Debug)]
pub struct Claim<'c, 's, B> {
    net: &'c mut Net<'s, B>,
    head: u16,
    room: usize,
    len: usize,
}

impl<B: Board> Claim<'_, '_, B> {
    /// Bytes that fit.
    pub fn room(&self) -> usize {
        self.room
    }
    /// Bytes up to the last one that was written.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes `bytes` at `offset` of the frame; all of them or, where they do not fit, none: `Ok(false)`. `LinkDown`:
    /// the PMM came back with another layout, and the blocks are no longer ours; claim others.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) -> Result<bool, NotNow> {
        let net = &mut *self.net;
        let mut cell = net.link.cell(net.cell).ok_or(NotNow::WouldBlock)?;
        let queue = cell.queue(TRANSMIT).filter(|queue| queue.layout() == net.layout);
        let Some(queue) = queue else { return Err(NotNow::LinkDown) };
        let end = offset.checked_add(bytes.len()).filter(|&end| end <= self.room);
        let Some(end) = end else { return Ok(false) };
        let chains = Chains { follows: net.follows, posted: &mut net.chains };
        let (mut next, mut skip, mut rest) = (Some(self.head), offset.saturating_add(HEADER), bytes);
        while let Some(block) = next.filter(|_| !rest.is_empty()) {
            let place = queue.extent(block);
            if let Some(room) = (place.len as usize).checked_sub(skip).filter(|&room| room != 0) {
                let (part, after) = rest.split_at_checked(room).unwrap_or((rest, &[]));
                net.link.mem().copy_out(place.at.wrapping_add(skip as u32), part);
                rest = after;
            }
            skip = skip.saturating_sub(place.len as usize);
            next = chains.after(block);
        }
        self.len = self.len.max(end);
        Ok(true)
    }

    /// Appends what fits, and says how much that was.
    pub fn put(&mut self, bytes: &[u8]) -> Result<usize, NotNow> {
        let fit = bytes.len().min(self.room.saturating_sub(self.len));
        let (bytes, _) = bytes.split_at_checked(fit).unwrap_or((&[], &[]));
        self.write_at(self.len, bytes)?;
        Ok(fit)
    }

    /// Transmits what was written. After an error the claim is gone; nothing was sent.
    pub fn commit(self, offload: Offload) -> Result<(), SendError> {
        let Claim { net, head, len, .. } = self;
        let mut cell = net.enter().map_err(|_| SendError::WouldBlock)?;
        let (runs, allowed) = (cell.runs(), Allowed::to_device(cell.accepted().bits()));
        let Some(queue) = cell.queue(TRANSMIT).filter(|_| runs) else { return Err(SendError::LinkDown) };
        let mut chains = Chains { follows: net.follows, posted: &mut net.chains };
        chains.reap(queue, &mut net.layout, &mut net.held);
        if net.held != Some(head) {
            return Err(SendError::LinkDown);
        }
        if len < MIN_FRAME {
            return Err(SendError::Length);
        }
        // Asked in the words of the header, so that nothing leaves here that the PMM would refuse.
        let header = Header::emit(&offload, 0);
        if header.parse(allowed, len) != Ok(offload) {
            return Err(SendError::NotAccepted);
        }
        let m = net.link.mem();
        m.copy_out(queue.extent(head).at, &header.to_bytes());
        let mut parts = [(0, 0); PARTS];
        let (mut count, mut rest, mut next) = (0usize, len.saturating_add(HEADER), Some(head));
        let mut last = head;
        for part in &mut parts {
            let Some(block) = next.filter(|_| rest != 0) else { break };
            let fill = rest.min(queue.extent(block).len as usize);
            *part = (block, fill as u32);
            rest = rest.saturating_sub(fill);
            count = count.saturating_add(1);
            (last, next) = (block, chains.after(block));
        }
        net.held = None;
        if let Some(unused) = next {
            chains.set(last, Follow::NONE);
            chains.release(queue, unused);
        }
        if count > 1 {
            if let Some(follow) = chains.follows.get_mut(usize::from(head)) {
                follow.0 |= Follow::POSTED;
            }
            *chains.posted = chains.posted.wrapping_add(1);
        }
        queue.post_all::<_, PARTS>(m, parts.get(..count).unwrap_or(&[]));
        cell.publish(&net.link);
        Ok(())
    }
}
