//! Calls: requests in flight, several at once. One block holds a request and its answer.
//!
//! ```text
//!          send               the answer came
//!   free ───────> sent ────────────────────────> answered ──┐ release
//!    ^             │ the device was set up again            │
//!    │             ├──────────> lost ───────────────────────┤
//!    │             │ nobody waits any more                  │
//!    └── finished <┴────────────────────────────────────────┘
//! ```
//!
//! A call that nobody waits for keeps its block and its tag until the answer comes: only then may either be used again.

use hvl_shared_abi::Mem;
use hvl_shared_abi::wire::p9::{NO_TAG, REPLY_PREFIX, REQUEST, Reply, Request};

use super::{FileError, Files};
use crate::bounce::Queue;
use crate::platform::Board;

/// Most calls in flight.
pub(super) const CALLS: usize = 8;
/// Bytes of the longest request without its payload: two names of 255 bytes, or a path and a name.
const LONGEST_REQUEST: usize = 640;
/// Bytes of the longest answer without its payload.
pub(super) const LONGEST_ANSWER: usize = 320;
/// Room that every call leaves for its answer, in bytes: the longest that comes without being asked for data.
pub(super) const LEAST_ANSWER: u32 = 256;

/// A call in flight. It is given back to the client, which otherwise keeps its block.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Ticket(pub(super) u8);

#[derive(Clone, Copy, Debug)]
enum Call {
    Free,
    /// With the number of the answer that is expected, the bytes asked with, and the start of the device.
    Sent {
        kind: u8,
        asks: u32,
        starts: u32,
    },
    /// Sent, and nobody waits for it.
    Abandoned {
        starts: u32,
    },
    /// The answer lies in the block, as long as the blocks lie where they did.
    Answered {
        kind: u8,
        asks: u32,
        len: u32,
        layout: u32,
    },
    /// The block is still held.
    Finished {
        layout: u32,
    },
    Lost,
}

/// The calls of a client.
#[derive(Debug)]
pub(super) struct Calls([Call; CALLS]);

impl Calls {
    pub const NEW: Calls = Calls([Call::Free; CALLS]);

    fn get(&mut self, ticket: &Ticket) -> Option<&mut Call> {
        self.0.get_mut(usize::from(ticket.0))
    }

    /// Takes what was answered out of the queue, and finds out what never will be.
    fn collect(&mut self, queue: &mut Queue<'_>) {
        let (starts, layout) = (queue.starts(), queue.layout());
        while let Some((block, len)) = queue.take_ready() {
            match self.0.get_mut(usize::from(block)) {
                Some(call @ Call::Sent { .. }) => {
                    let Call::Sent { kind, asks, .. } = *call else { continue };
                    *call = Call::Answered { kind, asks, len, layout };
                }
                Some(call) => *call = Call::Finished { layout },
                None => queue.release(block),
            }
        }
        for (block, call) in (0u16..).zip(&mut self.0) {
            match *call {
                Call::Sent { starts: then, .. } if then != starts => *call = Call::Lost,
                Call::Abandoned { starts: then } if then != starts => *call = Call::Free,
                // The block is somebody else's by now.
                Call::Answered { layout: then, .. } if then != layout => *call = Call::Lost,
                Call::Finished { layout: then } => {
                    if then == layout {
                        queue.release(block);
                    }
                    *call = Call::Free;
                }
                _ => {}
            }
        }
    }
}

impl<'s, B: Board> Files<'s, B> {
    /// Sends a request with its payload. `start`: only if this is still the start of the device, else it is `Stale`.
    #[inline(never)]
    pub(super) fn send(
        &mut self,
        request: &Request<'_>,
        payload: &[u8],
        start: Option<u32>,
    ) -> Result<Ticket, FileError> {
        let mut cell = self.link.enter(self.cell).ok_or(FileError::WouldBlock)?;
        let runs = cell.runs();
        let Some(queue) = cell.queue(REQUEST) else { return Err(FileError::LinkDown) };
        self.calls.collect(queue);
        if !runs {
            return Err(FileError::LinkDown);
        }
        let starts = queue.starts();
        if start.is_some_and(|start| start != starts) {
            return Err(FileError::Stale);
        }
        if !queue.has_free() {
            return Err(FileError::WouldBlock);
        }
        let Some(block) = queue.take() else { return Err(FileError::WouldBlock) };
        let tag = if matches!(request, Request::Version { .. }) { NO_TAG } else { block };
        let mut prefix = [0; LONGEST_REQUEST];
        let place = queue.extent(block);
        let emitted = request.emit_prefix(tag, &mut prefix).ok().and_then(|used| prefix.get(..used));
        let fits = emitted.and_then(|prefix| {
            let asks = u32::try_from(prefix.len().checked_add(payload.len())?).ok()?;
            let least = asks.checked_next_multiple_of(64)?.checked_add(LEAST_ANSWER)?;
            (least <= place.len).then_some((prefix, asks))
        });
        let (Some((prefix, asks)), Some(call)) = (fits, self.calls.0.get_mut(usize::from(block))) else {
            queue.release(block);
            return Err(FileError::TooLong);
        };
        let m = self.link.mem();
        m.copy_out(place.at, prefix);
        m.copy_out(place.at.wrapping_add(prefix.len() as u32), payload);
        if !queue.exchange(m, block, asks) {
            return Err(FileError::WouldBlock);
        }
        *call = Call::Sent { kind: request.kind(), asks, starts };
        cell.publish(&self.link);
        Ok(Ticket(block as u8))
    }

    /// Whether the answer is there. `Indeterminate`: it never will be.
    #[inline(never)]
    pub(super) fn answered(&mut self, ticket: &Ticket) -> Result<(), FileError> {
        let mut cell = self.link.enter(self.cell).ok_or(FileError::WouldBlock)?;
        let runs = cell.runs();
        if let Some(queue) = cell.queue(REQUEST) {
            self.calls.collect(queue);
            queue.has_ready();
        }
        match self.calls.get(ticket) {
            Some(Call::Answered { .. }) => Ok(()),
            Some(Call::Sent { .. }) if runs => Err(FileError::WouldBlock),
            Some(Call::Sent { .. }) => Err(FileError::LinkDown),
            Some(call) => {
                if let Call::Lost = call {
                    *call = Call::Free;
                }
                Err(FileError::Indeterminate)
            }
            None => Err(FileError::Malformed),
        }
    }

    /// Parses an answer that is there: it is one to what was asked, or it is refused.
    #[inline(never)]
    pub(super) fn answer<'r>(
        &mut self,
        ticket: &Ticket,
        scratch: &'r mut [u8; LONGEST_ANSWER],
    ) -> Result<Reply<'r>, FileError> {
        let mut cell = self.link.cell(self.cell).ok_or(FileError::WouldBlock)?;
        let Some(queue) = cell.queue(REQUEST) else { return Err(FileError::LinkDown) };
        let Some(&mut Call::Answered { kind, asks, len, layout }) = self.calls.get(ticket) else {
            return Err(FileError::Indeterminate);
        };
        if layout != queue.layout() {
            return Err(FileError::Indeterminate);
        }
        let place = queue.answer(ticket.0.into(), asks);
        let len = len.min(place.len) as usize;
        let front = scratch.get_mut(..len.min(LONGEST_ANSWER)).ok_or(FileError::Malformed)?;
        self.link.mem().copy_in(place.at, front);
        let parsed = Reply::parse_prefix(front, len).map_err(|_| FileError::Malformed)?;
        let tag = if kind == (Request::Version { msize: 0, version: &[] }).kind() {
            NO_TAG
        } else {
            ticket.0.into()
        };
        match parsed.message {
            _ if parsed.tag != tag => Err(FileError::Malformed),
            Reply::Error { errno } => Err(FileError::Refused(errno)),
            reply if reply.kind() == kind.wrapping_add(1) => Ok(reply),
            _ => Err(FileError::Malformed),
        }
    }

    /// Copies the data of an answer that was parsed, from `skip` bytes in; `into` is no longer than what follows there.
    #[inline(never)]
    pub(super) fn payload(&mut self, ticket: &Ticket, skip: u32, into: &mut [u8]) -> Result<(), FileError> {
        let mut cell = self.link.cell(self.cell).ok_or(FileError::WouldBlock)?;
        let Some(queue) = cell.queue(REQUEST) else { return Err(FileError::LinkDown) };
        match self.calls.get(ticket) {
            Some(&mut Call::Answered { asks, len, layout, .. }) if layout == queue.layout() => {
                let place = queue.answer(ticket.0.into(), asks);
                let from = skip.saturating_add(REPLY_PREFIX as u32);
                let end = u32::try_from(into.len()).ok().and_then(|count| count.checked_add(from));
                if end.is_none_or(|end| end > len.min(place.len)) {
                    return Err(FileError::Malformed);
                }
                self.link.mem().copy_in(place.at.wrapping_add(from), into);
                Ok(())
            }
            _ => Err(FileError::Indeterminate),
        }
    }

    /// Ends a call, whatever has become of it. One that was not answered ends when it is.
    pub(super) fn release(&mut self, ticket: Ticket) {
        if let Some(call) = self.calls.get(&ticket) {
            *call = match *call {
                Call::Sent { starts, .. } => Call::Abandoned { starts },
                Call::Answered { layout, .. } => Call::Finished { layout },
                Call::Lost => Call::Free,
                other => other,
            };
        }
    }
}
