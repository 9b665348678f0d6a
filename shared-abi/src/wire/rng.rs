//! The entropy device: VIRTIO 1.2, 5.4. The guest posts writable buffers, the device fills them; there is no
//! configuration and no framing.

/// The only queue.
pub const REQUEST: usize = 0;
/// Most bytes that one request is filled with, however large its buffers are: entropy is slow, and one request must
/// not hold up the other devices of its link.
pub const MAX_FILL: u32 = 4096;
