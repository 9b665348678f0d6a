//! Devices: state machines that take requests from queues and talk to a host end.
//!
//! A device sees checked requests and its host end; never an address, a path, a clock, or by which profile its
//! guest came. It says which queues and features it has, is activated with what was accepted, takes requests,
//! answers them now or at a later call, and can be reset at any time. Nothing here needs `std` or a heap: an RTOS
//! may be the PMM.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod console;
pub mod net;
pub mod p9;
pub mod rng;
pub mod vsock;

use hvl_shared_abi::ring::{Access, DeviceRing, RingFault, Segment, Taken, Token, Windows};
use hvl_shared_abi::{DeviceId, Features, Mem, Piece};

use crate::transport::QueueCounters;

/// One device of a link.
pub trait Device<M: Mem> {
    /// Which kind it is.
    fn id(&self) -> DeviceId;
    /// The features of its own (bits 0 to 23) that it offers.
    fn features(&self) -> u64 {
        0
    }
    /// Writes the configuration space from its start and returns its length in bytes.
    fn config(&self, _into: &mut [u8]) -> usize {
        0
    }
    /// Returns whether the configuration has changed since this was asked last: then it is written anew, and
    /// the driver told.
    fn config_changed(&mut self) -> bool {
        false
    }
    /// A driver has accepted `features`; queues follow with [`Device::process`].
    fn activate(&mut self, _features: Features) {}
    /// The session ended, at any point of anything. On return the device holds no request, and nothing that it began
    /// can still write into the region.
    fn reset(&mut self);
    /// Takes requests and answers them, a bounded batch. Called when a doorbell or the host end says that there may
    /// be work, and now and then for nothing. Returns whether the batch was full: then there may be more to do at
    /// once. A device that cannot go on before its host end does keeps its request and returns `false`.
    fn process(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault>;
}

/// Requests that one call of [`Device::process`] takes from one queue at the most, so that no device holds up the
/// others of its link.
pub const BATCH: usize = 64;

/// The queues of a running device.
pub struct Queues<'a, 's, M> {
    pub(crate) mem: &'a M,
    pub(crate) windows: Windows<'a>,
    pub(crate) rings: &'a mut [Option<DeviceRing<'s>>],
    pub(crate) counters: &'a mut [QueueCounters],
    /// Queues of which the device wanted more than there was: those that are worth being woken for.
    pub(crate) hungry: &'a mut [bool],
}

impl<'s, M: Mem> Queues<'_, 's, M> {
    /// The queue of this index; none that the driver did not set up.
    pub fn queue(&mut self, index: usize) -> Option<Queue<'_, 's, M>> {
        let ring = self.rings.get_mut(index)?.as_mut()?;
        let counters = self.counters.get_mut(index)?;
        let hungry = self.hungry.get_mut(index)?;
        Some(Queue { mem: self.mem, windows: self.windows, ring, counters, hungry })
    }
}

/// One queue of a running device.
pub struct Queue<'a, 's, M> {
    mem: &'a M,
    windows: Windows<'a>,
    ring: &'a mut DeviceRing<'s>,
    counters: &'a mut QueueCounters,
    hungry: &'a mut bool,
}

impl<M: Mem> Queue<'_, '_, M> {
    /// The next request that is well formed; malformed ones before it are completed with length 0 and counted, at
    /// most a batch of them.
    pub fn take<const N: usize>(&mut self) -> Result<Option<Request<N>>, RingFault> {
        *self.hungry = true;
        for _ in 0..BATCH {
            let mut segments = [Segment::readable(0, 0); N];
            match self.ring.take(self.mem, self.windows, &mut segments)? {
                None => return Ok(None),
                Some(Taken::Chain { token, readable, writable }) => {
                    *self.hungry = false;
                    self.counters.requests = self.counters.requests.wrapping_add(1);
                    return Ok(Some(Request {
                        token,
                        segments,
                        count: readable.saturating_add(writable),
                        done: 0,
                    }));
                }
                Some(Taken::Malformed { token, error }) => self.refuse(token, Some(error)),
            }
        }
        Ok(None)
    }

    fn refuse(&mut self, token: Token, error: Option<hvl_shared_abi::ring::ChainError>) {
        self.counters.malformed = self.counters.malformed.wrapping_add(1);
        self.counters.last_error = error;
        self.ring.complete(self.mem, token, 0);
    }

    /// Completes a request of which `written` bytes were written.
    pub fn complete<const N: usize>(&mut self, request: Request<N>, written: u32) {
        self.counters.completed = self.counters.completed.wrapping_add(1);
        self.counters.bytes = self.counters.bytes.wrapping_add(u64::from(request.done));
        self.ring.complete(self.mem, request.token, written);
    }

    /// Completes a request that the device cannot serve, with length 0, and counts it as malformed.
    pub fn reject<const N: usize>(&mut self, request: Request<N>) {
        self.refuse(request.token, None);
    }

    /// Whether another request waits. Where none does, the next one is to wake this side, as after a
    /// [`take`](Self::take) that found nothing.
    pub fn has_more(&mut self) -> bool {
        *self.hungry = true;
        self.ring.has_available(self.mem)
    }

    /// The region, for [`Request::peek`] and [`Request::write`].
    pub const fn mem(&self) -> &M {
        self.mem
    }
}

/// A request: a chain of checked segments and how far it has been served. It may be kept until a later call; the
/// device drops it when it is reset.
#[derive(Debug)]
pub struct Request<const N: usize> {
    token: Token,
    segments: [Segment; N],
    count: usize,
    done: u32,
}

impl<const N: usize> Request<N> {
    fn parts(&self, access: Access) -> impl Iterator<Item = hvl_shared_abi::header::Extent> + '_ {
        self.segments.iter().take(self.count).filter(move |s| s.access == access).map(|s| s.place)
    }

    /// Bytes that the device may read or write in it.
    pub fn len(&self, access: Access) -> u32 {
        self.parts(access).fold(0, |sum, place| sum.saturating_add(place.len))
    }
    /// Bytes that were read or written so far.
    pub const fn done(&self) -> u32 {
        self.done
    }

    /// The stretch of the segments of this kind that starts `skip` bytes in, at most `limit` bytes and within one
    /// segment.
    fn stretch(&self, access: Access, skip: u32, limit: usize) -> Option<(u32, u32)> {
        let mut skip = skip;
        for place in self.parts(access) {
            if let Some(left) = place.len.checked_sub(skip).filter(|&left| left != 0) {
                let len = left.min(u32::try_from(limit).unwrap_or(u32::MAX));
                return Some((place.at.wrapping_add(skip), len));
            }
            skip = skip.saturating_sub(place.len);
        }
        None
    }

    /// Copies the next readable bytes into `into` without counting them as served: the host end may not take all of
    /// them. Returns how many; 0 at the end.
    pub fn peek<M: Mem>(&self, m: &M, into: &mut [u8]) -> usize {
        let mut copied = 0usize;
        let mut at_chain = self.done;
        while let Some(rest) = into.get_mut(copied..).filter(|rest| !rest.is_empty()) {
            let Some((at, len)) = self.stretch(Access::Readable, at_chain, rest.len()) else { break };
            let Some(part) = rest.get_mut(..len as usize) else { break };
            m.invalidate(at, len);
            m.copy_in(at, part);
            at_chain = at_chain.saturating_add(len);
            copied = copied.saturating_add(len as usize);
        }
        copied
    }
    /// Counts `bytes` as served.
    pub fn advance(&mut self, bytes: usize) {
        self.done = self.done.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// The bytes of this kind from `skip` on, at most `limit`, for a system call; how many pieces they are. `None` in
    /// memory that no system call reaches, and if `into` has no room for all.
    pub fn pieces<M: Mem>(
        &self,
        m: &M,
        access: Access,
        skip: u32,
        limit: u32,
        into: &mut [Piece],
    ) -> Option<usize> {
        let end = skip.saturating_add(limit);
        let (mut next, mut count) = (skip, 0usize);
        while next < end {
            let Some((at, len)) = self.stretch(access, next, end.wrapping_sub(next) as usize) else { break };
            *into.get_mut(count)? = m.piece(at, len)?;
            next = next.saturating_add(len);
            count = count.saturating_add(1);
        }
        Some(count)
    }

    /// Copies bytes into the writable segments, where the last call ended. Returns how many fitted.
    pub fn write<M: Mem>(&mut self, m: &M, from: &[u8]) -> usize {
        let mut copied = 0usize;
        while let Some(rest) = from.get(copied..).filter(|rest| !rest.is_empty()) {
            let Some((at, len)) = self.stretch(Access::Writable, self.done, rest.len()) else { break };
            let Some(part) = rest.get(..len as usize) else { break };
            m.copy_out(at, part);
            m.clean(at, len);
            self.advance(part.len());
            copied = copied.saturating_add(part.len());
        }
        copied
    }
}
