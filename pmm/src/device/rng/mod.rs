//! The entropy device, VIRTIO 1.2, 5.4: fills the guest's buffers from a source of the host.

use hvl_shared_abi::ring::{Access, RingFault};
use hvl_shared_abi::wire::rng::{MAX_FILL, REQUEST};
use hvl_shared_abi::{DeviceId, Mem};

use super::{BATCH, Device, Queues, Request};
use crate::host::{EndError, Entropy};

/// Buffers of one request at the most.
const SEGMENTS: usize = 8;
/// Bytes taken from the source at a time.
const CHUNK: usize = 256;

/// The device, over a source of entropy.
pub struct Rng<E> {
    source: E,
    held: Option<Request<SEGMENTS>>,
}

impl<E: Entropy> Rng<E> {
    /// A device that draws from `source`.
    pub const fn new(source: E) -> Rng<E> {
        Rng { source, held: None }
    }

    /// Fills as much of a request as it may have. `false`: the source has nothing now.
    fn fill<M: Mem>(&mut self, m: &M, request: &mut Request<SEGMENTS>) -> bool {
        let wanted = request.len(Access::Writable).min(MAX_FILL);
        while let Some(left) = wanted.checked_sub(request.done()).filter(|&left| left != 0) {
            let mut bytes = [0; CHUNK];
            let Some(part) = bytes.get_mut(..CHUNK.min(left as usize)) else { break };
            match self.source.fill(part) {
                Ok(0) | Err(EndError::Closed) => break,
                Ok(filled) => {
                    let filled = part.get(..filled).unwrap_or(&[]);
                    if request.write(m, filled) == 0 {
                        break;
                    }
                }
                // What is there already is an answer: the guest asks again for the rest.
                Err(EndError::WouldBlock) => return request.done() != 0,
            }
        }
        true
    }
}

impl<M: Mem, E: Entropy> Device<M> for Rng<E> {
    fn id(&self) -> DeviceId {
        DeviceId::RNG
    }

    fn reset(&mut self) {
        self.held = None;
    }

    fn process(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault> {
        let Some(mut queue) = queues.queue(REQUEST) else { return Ok(false) };
        for _ in 0..BATCH {
            let mut request = match self.held.take() {
                Some(request) => request,
                None => match queue.take()? {
                    Some(request) => request,
                    None => return Ok(false),
                },
            };
            if request.len(Access::Writable) == 0 {
                queue.reject(request);
                continue;
            }
            if !self.fill(queue.mem(), &mut request) {
                self.held = Some(request);
                return Ok(false);
            }
            let written = request.done();
            queue.complete(request, written);
        }
        Ok(queue.has_more())
    }
}
