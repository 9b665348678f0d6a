//! The network card, VIRTIO 1.2, 5.1: whole frames between the guest's queues and a host end.
//!
//! A frame is copied out of the region once, its header is checked, and what the host end is given is that private
//! copy and the header's meaning ([`Offload`]), never the guest's own words. What the guest may leave to the host, and
//! the host to the guest, is what the host end can do ([`FrameEnd::features`]): a TAP takes checksums and segments
//! over, a socket does not, and for it neither is offered.
//!
//! In the other direction a frame is asked of the host end only when the guest has posted a buffer: frames that nobody
//! has room for wait, or are dropped, where the host keeps them. A frame that then needs more buffers than there are
//! waits for them (MRG_RXBUF), or is dropped and counted where no number of buffers would do. All buffers of a frame
//! are completed by one store of the used index: a guest never sees a part of one.
//!
//! Source addresses are the guest's business: a frame with another one than the card's is passed on, as a cable does.

use hvl_shared_abi::ring::{Access, RingFault};
use hvl_shared_abi::wire::net::{
    Allowed, Config, F_MAC, F_MRG_RXBUF, F_MTU, F_STATUS, HEADER, Header, MAX_FRAME, MIN_FRAME, Mac, Offload,
    PLAIN_HEADER, RECEIVE, TRANSMIT, frame_of,
};
use hvl_shared_abi::{DeviceId, Features, Mem};

use super::{BATCH, Device, Queue, Queues, Request};
use crate::host::{Dropped, EndError, FrameEnd};

/// Descriptors of one transmitted frame at the most: the longest frame in pieces of 1 KiB.
const SENT: usize = 65;
/// Descriptors of one receive buffer at the most: what drivers without mergeable buffers use for 64 KiB.
const POSTED: usize = 20;
/// Buffers of one received frame at the most: the longest frame in buffers of 1.5 KiB.
const MERGED: usize = 48;
/// Bytes that one call moves in one direction at the most, so that a flood leaves the link's other devices their turn.
const BUDGET: usize = 256 << 10;

/// Bytes of each of the two buffers that a card needs: the longest frame behind a header.
pub const BUFFER: usize = HEADER + MAX_FRAME;

/// What a card is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its address.
    pub mac: Mac,
    /// The largest payload of a frame that the guest is told; it is told none where this is none.
    pub mtu: Option<u16>,
}

/// The device, over a host end. `B` is private memory of [`BUFFER`] bytes; with less, longer frames are refused.
pub struct Net<E, B> {
    end: E,
    card: Card,
    /// What the driver has accepted.
    features: u64,
    /// A frame on its way to the guest: what is to be done for it, and its length behind the room for its header.
    arrived: Option<(Offload, usize)>,
    arrivals: B,
    departures: B,
    sending: Option<Request<SENT>>,
    /// Buffers for the frame that has arrived, or for the next one.
    room: [Option<Request<POSTED>>; MERGED],
    rooms: usize,
}

impl<E: FrameEnd, B: AsMut<[u8]>> Net<E, B> {
    /// A card at `end`, with private memory for one frame in each direction.
    pub fn new(end: E, card: Card, arrivals: B, departures: B) -> Net<E, B> {
        Net {
            end,
            card,
            features: 0,
            arrived: None,
            arrivals,
            departures,
            sending: None,
            room: [const { None }; MERGED],
            rooms: 0,
        }
    }

    /// Bytes of the header before each frame, 5.1.6.1.
    fn header_len(&self) -> usize {
        let long = Features::VERSION_1.bits() | F_MRG_RXBUF;
        if self.features & long != 0 { HEADER } else { PLAIN_HEADER }
    }

    /// Guest to host. Returns whether the batch was full.
    fn transmit<M: Mem>(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault> {
        let Some(mut queue) = queues.queue(TRANSMIT) else { return Ok(false) };
        let mut budget = BUDGET;
        for _ in 0..BATCH {
            if budget == 0 {
                return Ok(true);
            }
            let mut request = match self.sending.take() {
                Some(request) => request,
                None => match queue.take()? {
                    Some(request) => request,
                    None => return Ok(false),
                },
            };
            let Some((offload, frame)) = self.departure(queue.mem(), &request) else {
                queue.reject(request);
                continue;
            };
            let frame = self.departures.as_mut().get(frame).unwrap_or(&[]);
            match self.end.send(&offload, frame) {
                Err(EndError::WouldBlock) => {
                    self.sending = Some(request);
                    return Ok(false);
                }
                // Closed: the cable is out. What is sent is gone, and that is what networks do.
                Ok(()) | Err(EndError::Closed) => {
                    budget = budget.saturating_sub(frame.len());
                    request.advance(frame.len());
                    queue.complete(request, 0);
                }
            }
        }
        Ok(queue.has_more())
    }

    /// Copies a frame of the guest into private memory, and checks it: what is to be done for it, and where it is.
    fn departure<M: Mem>(
        &mut self,
        m: &M,
        request: &Request<SENT>,
    ) -> Option<(Offload, core::ops::Range<usize>)> {
        let header_len = self.header_len();
        let allowed = Allowed::to_device(self.features);
        let bytes = self.departures.as_mut();
        let all = request.len(Access::Readable) as usize;
        let len = all.checked_sub(header_len).filter(|len| (MIN_FRAME..=MAX_FRAME).contains(len))?;
        if request.peek(m, bytes.get_mut(..all)?) != all {
            return None;
        }
        let mut header = [0; HEADER];
        header.get_mut(..header_len)?.copy_from_slice(bytes.get(..header_len)?);
        let offload = Header::from_bytes(header).parse(allowed, len).ok()?;
        // Longer than the MTU is what is still to be cut, and nothing else.
        let mtu = self.card.mtu.unwrap_or(hvl_shared_abi::wire::net::DEFAULT_MTU);
        (offload.segments.is_some() || len <= frame_of(mtu)).then_some((offload, header_len..all))
    }

    /// Host to guest. Returns whether the batch was full.
    fn receive<M: Mem>(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault> {
        let Some(mut queue) = queues.queue(RECEIVE) else { return Ok(false) };
        let mut budget = BUDGET;
        for _ in 0..BATCH {
            if budget == 0 {
                return Ok(true);
            }
            if self.rooms == 0 && !self.make_room(&mut queue)? {
                return Ok(false);
            }
            let (offload, len) = match self.arrived.take() {
                Some(frame) => frame,
                None => match self.arrival() {
                    Ok(Some(frame)) => frame,
                    Ok(None) => continue,
                    Err(EndError::WouldBlock | EndError::Closed) => return Ok(false),
                },
            };
            let need = self.header_len().saturating_add(len);
            // The frame waits while there may be more buffers; where one is all that it may have, or there are no
            // places for more, it does not fit and never will.
            while self.capacity() < need {
                let limit = if self.features & F_MRG_RXBUF == 0 { 1 } else { MERGED };
                if self.rooms >= limit {
                    break;
                }
                if !self.make_room(&mut queue)? {
                    self.arrived = Some((offload, len));
                    return Ok(false);
                }
            }
            budget = budget.saturating_sub(len);
            if self.capacity() < need {
                self.end.dropped(Dropped::TooLong);
            } else {
                self.deliver(&mut queue, &offload, len);
            }
        }
        Ok(true)
    }

    /// Asks the host end for a frame. `None` if the frame cannot be delivered and was dropped.
    fn arrival(&mut self) -> Result<Option<(Offload, usize)>, EndError> {
        let into = self.arrivals.as_mut().get_mut(HEADER..).unwrap_or(&mut []);
        let most = into.len();
        let (offload, len) = self.end.receive(into)?;
        // A frame that needs an offload the guest has not accepted cannot be delivered: its checksum is
        // partial, or it is as long as several frames.
        let header = Header::emit(&offload, 0);
        let Ok(offload) = header.parse(Allowed::to_driver(self.features), len) else {
            self.end.dropped(Dropped::NotAccepted);
            return Ok(None);
        };
        Ok(Some((offload, len.min(most))))
    }

    /// Takes another buffer of the guest's. `false`: there is none.
    fn make_room<M: Mem>(&mut self, queue: &mut Queue<'_, '_, M>) -> Result<bool, RingFault> {
        for _ in 0..BATCH {
            let Some(request) = queue.take()? else { return Ok(false) };
            // Any may become the first of a frame, and the header lies in that as a whole: 5.1.6.3.1.
            if (request.len(Access::Writable) as usize) < self.header_len() {
                queue.reject(request);
                continue;
            }
            let Some(slot) = self.room.get_mut(self.rooms) else {
                queue.reject(request);
                return Ok(false);
            };
            *slot = Some(request);
            self.rooms = self.rooms.saturating_add(1);
            return Ok(true);
        }
        Ok(false)
    }

    /// Bytes that the buffers at hand take.
    fn capacity(&self) -> usize {
        let bytes = self.room.iter().flatten().map(|request| request.len(Access::Writable) as usize);
        bytes.fold(0, usize::saturating_add)
    }

    /// Writes the frame in private memory into as many buffers as it takes, and completes them. The others are kept.
    fn deliver<M: Mem>(&mut self, queue: &mut Queue<'_, '_, M>, offload: &Offload, len: usize) {
        let header_len = self.header_len();
        let need = header_len.saturating_add(len);
        let (mut used, mut room) = (0usize, 0usize);
        for request in self.room.iter().flatten() {
            if room >= need {
                break;
            }
            room = room.saturating_add(request.len(Access::Writable) as usize);
            used = used.saturating_add(1);
        }
        let header = Header::emit(offload, u16::try_from(used).unwrap_or(1)).to_bytes();
        // The header moves up to the frame, so that both are one stretch.
        let start = HEADER.saturating_sub(header_len);
        let bytes = self.arrivals.as_mut();
        if let Some((to, from)) = bytes.get_mut(start..HEADER).zip(header.get(..header_len)) {
            to.copy_from_slice(from);
        }
        let mut rest = bytes.get(start..HEADER.saturating_add(len)).unwrap_or(&[]);
        for slot in self.room.iter_mut().take(used) {
            let Some(mut request) = slot.take() else { break };
            let written = request.write(queue.mem(), rest);
            rest = rest.get(written..).unwrap_or(&[]);
            let done = request.done();
            queue.complete(request, done);
        }
        self.room.rotate_left(used.min(MERGED));
        self.rooms = self.rooms.saturating_sub(used);
    }
}

impl<M: Mem, E: FrameEnd, B: AsMut<[u8]>> Device<M> for Net<E, B> {
    fn id(&self) -> DeviceId {
        DeviceId::NET
    }
    fn features(&self) -> u64 {
        let mtu = if self.card.mtu.is_some() { F_MTU } else { 0 };
        F_MAC | F_STATUS | F_MRG_RXBUF | mtu | self.end.features()
    }
    fn config(&self, into: &mut [u8]) -> usize {
        let bytes = Config::new(self.card.mac, self.card.mtu.unwrap_or(0)).to_bytes();
        into.split_first_chunk_mut().map_or(0, |(into, _)| {
            *into = bytes;
            bytes.len()
        })
    }
    fn activate(&mut self, features: Features) {
        self.features = features.bits();
        self.end.accept(self.features);
    }
    fn reset(&mut self) {
        (self.sending, self.arrived) = (None, None);
        self.room.fill_with(|| None);
        (self.rooms, self.features) = (0, 0);
        self.end.accept(0);
    }
    fn process(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault> {
        let more = self.transmit(queues)?;
        Ok(self.receive(queues)? | more)
    }
}
