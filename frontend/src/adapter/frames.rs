//! What the adapters of network stacks share: private memory for one frame in each direction, and checksums.
//!
//! A stack is told once which checksums it need not care about; what the other side takes over, each session decides
//! anew. What lies between is done here: a checksum that the stack left out and this PMM does not take over is
//! computed, one that this PMM has not verified is.

use hvl_shared_abi::wire::net::Transport;

use crate::device::net::{Checksum, DEFAULT_MTU, MIN_FRAME, Net, Offload};
use crate::platform::Board;

/// Frames with a wrong checksum that one call skips at the most.
const SKIP: usize = 16;

/// A card with memory for a frame in each direction.
#[derive(Debug)]
pub(super) struct Frames<'p, 's, B> {
    pub net: &'p mut Net<'s, B>,
    pub received: &'p mut [u8],
    pub sent: &'p mut [u8],
    /// Longest frame that is sent, in bytes.
    pub longest: usize,
    pub wrong: u32,
}

impl<'p, 's, B: Board> Frames<'p, 's, B> {
    pub fn new(net: &'p mut Net<'s, B>, received: &'p mut [u8], sent: &'p mut [u8]) -> Self {
        let mtu = net.mtu().unwrap_or(DEFAULT_MTU);
        let longest = usize::from(mtu).saturating_add(MIN_FRAME).min(sent.len());
        Frames { net, received, sent, longest, wrong: 0 }
    }

    /// Whether the stack leaves checksums of TCP and UDP alone.
    pub fn leaves_checksums(&self) -> bool {
        let options = self.net.options();
        options.checksums || options.segments
    }

    /// Whether a frame may be sent.
    pub fn has_room(&mut self) -> bool {
        self.net.transmit_ready(self.longest)
    }

    /// Takes a frame into `received`, of which the stack may believe what it was told; its length. Nothing while there
    /// is no room for an answer.
    pub fn take(&mut self) -> Option<usize> {
        if !self.has_room() {
            return None;
        }
        let leaves = self.leaves_checksums();
        for _ in 0..SKIP {
            let got = self.net.receive(self.received).ok()?;
            let frame = self.received.get_mut(..got.len)?;
            // One that is missing is one that this side said it can do without.
            let good = match got.offload.checksum {
                Checksum::Verified | Checksum::Missing { .. } => true,
                Checksum::Complete => {
                    !leaves || Transport::find(frame).is_none_or(|found| found.is_right(frame))
                }
            };
            if good {
                return Some(got.len);
            }
            self.wrong = self.wrong.wrapping_add(1);
        }
        None
    }

    /// The frame received last, of `len` bytes, and what is needed to send one while it is read.
    pub fn split(&mut self, len: usize) -> Option<(&mut [u8], Frames<'_, 's, B>)> {
        let Frames { net, received, sent, longest, .. } = self;
        Some((received.get_mut(..len)?, Frames { net, received: &mut [], sent, longest: *longest, wrong: 0 }))
    }

    /// Sends a frame of `len` bytes that `fill` writes; `len` is at most what the stack was told that one may have.
    pub fn fill<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let done = fill(self.sent.get_mut(..len).unwrap_or(&mut []));
        self.send(len);
        done
    }

    /// Sends the first `len` bytes of `sent`. What cannot be sent is lost, as on a network.
    fn send(&mut self, len: usize) {
        let leaves = self.leaves_checksums();
        let allowed = self.net.allowed().unwrap_or_default();
        let Some(frame) = self.sent.get_mut(..len) else { return };
        let mut offload = Offload::default();
        if let Some(found) = Transport::find(frame).filter(|_| leaves) {
            if allowed.checksum() {
                offload.checksum = found.leave(frame);
            } else {
                found.fill(frame);
            }
        }
        let _ = self.net.transmit(frame, offload);
    }
}
