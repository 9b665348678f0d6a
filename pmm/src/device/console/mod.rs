//! The console, VIRTIO 1.2, 5.3: one port, bytes in both directions.
//!
//! A transmit buffer is used only after the host end took its last byte: used means acknowledged, and a PMM that
//! dies before it lets the guest send the buffer again. In the other direction the device reads from the host end
//! only when the guest has posted a buffer for it, so that nothing waits in a place that dies with this process.
//!
//! The size is the terminal's own. Where there is none, or it does not say, the feature is not offered: a guest that is
//! told of 80 by 24 would believe it.

use hvl_shared_abi::ring::{Access, RingFault};
use hvl_shared_abi::wire::console::{Config, F_SIZE, RECEIVE, TRANSMIT};
use hvl_shared_abi::{DeviceId, Mem};

use super::{BATCH, Device, Queues, Request};
use crate::host::{ByteEnd, EndError};

/// Buffers of one request at the most.
const SEGMENTS: usize = 16;
/// Bytes moved at a time through private memory.
const CHUNK: usize = 512;
/// Bytes of one request at the most: the same stretch may be named many times in a chain.
const MAX_REQUEST: u32 = 256 << 10;
/// Bytes that one call takes from the guest at the most, so that a flood leaves the link's other devices their turn.
const BUDGET: usize = 64 << 10;

/// The device, over a host end.
pub struct Console<E> {
    end: E,
    /// A size that whoever made this said.
    fixed: Option<(u16, u16)>,
    /// The size that the driver was told of last.
    told: Option<(u16, u16)>,
    sending: Option<Request<SEGMENTS>>,
    receiving: Option<Request<SEGMENTS>>,
}

impl<E: ByteEnd> Console<E> {
    /// A console at `end`, of its size if it has one.
    pub const fn new(end: E) -> Console<E> {
        Console { end, fixed: None, told: None, sending: None, receiving: None }
    }
    /// The same with a size of its own, in columns and rows.
    pub fn with_size(self, cols: u16, rows: u16) -> Console<E> {
        Console { fixed: Some((cols, rows)), ..self }
    }
    /// The host end.
    pub const fn end(&mut self) -> &mut E {
        &mut self.end
    }

    fn size(&self) -> Option<(u16, u16)> {
        self.fixed.or_else(|| self.end.size())
    }

    /// Guest to host. Returns whether the batch was full.
    fn transmit<M: Mem>(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault> {
        let Some(mut queue) = queues.queue(TRANSMIT) else { return Ok(false) };
        let mut budget = BUDGET;
        for _ in 0..BATCH {
            let mut request = match self.sending.take() {
                Some(request) => request,
                None => match queue.take()? {
                    Some(request) => request,
                    None => return Ok(false),
                },
            };
            if !(1..=MAX_REQUEST).contains(&request.len(Access::Readable)) {
                queue.reject(request);
                continue;
            }
            loop {
                let mut bytes = [0; CHUNK];
                let count = request.peek(queue.mem(), &mut bytes);
                let Some(part) = bytes.get(..count).filter(|part| !part.is_empty()) else { break };
                if budget == 0 {
                    self.sending = Some(request);
                    return Ok(true);
                }
                match self.end.write(part) {
                    Ok(taken) if taken != 0 => {
                        request.advance(taken.min(count));
                        budget = budget.saturating_sub(taken);
                    }
                    Ok(_) | Err(EndError::WouldBlock) => {
                        self.sending = Some(request);
                        return Ok(false);
                    }
                    // Nobody will ever read it: a terminal that was hung up swallows what is sent.
                    Err(EndError::Closed) => request.advance(count),
                }
            }
            queue.complete(request, 0);
        }
        Ok(queue.has_more())
    }

    /// Host to guest. Returns whether the batch was full.
    fn receive<M: Mem>(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault> {
        let Some(mut queue) = queues.queue(RECEIVE) else { return Ok(false) };
        for _ in 0..BATCH {
            let mut request = match self.receiving.take() {
                Some(request) => request,
                None => match queue.take()? {
                    Some(request) => request,
                    None => return Ok(false),
                },
            };
            let room = request.len(Access::Writable);
            if room == 0 {
                queue.reject(request);
                continue;
            }
            let mut bytes = [0; CHUNK];
            let limit = CHUNK.min(room as usize);
            match bytes.get_mut(..limit).map_or(Ok(0), |part| self.end.read(part)) {
                Ok(count) if count != 0 => {
                    request.write(queue.mem(), bytes.get(..count.min(limit)).unwrap_or(&[]));
                    let written = request.done();
                    queue.complete(request, written);
                }
                Ok(_) | Err(EndError::WouldBlock | EndError::Closed) => {
                    self.receiving = Some(request);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

impl<M: Mem, E: ByteEnd> Device<M> for Console<E> {
    fn id(&self) -> DeviceId {
        DeviceId::CONSOLE
    }
    fn features(&self) -> u64 {
        if self.size().is_some() { F_SIZE } else { 0 }
    }
    fn config(&self, into: &mut [u8]) -> usize {
        let (cols, rows) = self.size().unwrap_or((0, 0));
        let bytes = Config::new(cols, rows).to_bytes();
        into.split_first_chunk_mut().map_or(0, |(into, _)| {
            *into = bytes;
            bytes.len()
        })
    }
    fn config_changed(&mut self) -> bool {
        // A terminal that does not say its size any more still has the last one.
        let size = self.size().or(self.told);
        size != core::mem::replace(&mut self.told, size)
    }
    fn reset(&mut self) {
        (self.sending, self.receiving) = (None, None);
        self.end.forget();
    }
    fn process(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault> {
        let more = self.transmit(queues)?;
        Ok(self.receive(queues)? | more)
    }
}
