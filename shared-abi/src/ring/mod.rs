//! Virtqueues. Each file holds one format, both of its halves side by side.
//!
//! A driver *adds* chains of segments, *publishes* them, and *pops* what the device has used; a device *takes*
//! chains, *completes* them, and *publishes* the completions. Between the two stand only [`Token`]s and counts: that
//! the split ring has descriptor heads and two 16-bit indices is nobody's business, so a packed ring fits behind the
//! same calls.
//!
//! Neither half ever reads back what it wrote, and neither reads a word of the other twice: what it knows of a chain
//! in flight is its own record. Slots for that record are the caller's, so that firmware pays for the queue sizes
//! that it has.

pub mod split;

pub use split::{DeviceRing, DriverRing};

use crate::header::Extent;

/// One chain in flight, as both halves name it to their caller. Good until its completion has been popped or given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub(crate) u16);

impl Token {
    /// A small number that no other chain in flight on the same queue has, below the queue's size: an index for
    /// tables of one's own.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Who may write a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads it.
    Readable,
    /// The device writes it.
    Writable,
}

/// A stretch of the region that one descriptor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it lies; checked.
    pub place: Extent,
    /// Who may write it.
    pub access: Access,
}

impl Segment {
    /// A segment that the device reads.
    pub const fn readable(at: u32, len: u32) -> Segment {
        Segment { place: Extent { at, len }, access: Access::Readable }
    }
    /// A segment that the device writes.
    pub const fn writable(at: u32, len: u32) -> Segment {
        Segment { place: Extent { at, len }, access: Access::Writable }
    }
}

/// Which stretches of the region a queue's buffers may lie in, and what the guest calls their addresses.
#[derive(Clone, Copy, Debug)]
pub struct Windows<'a> {
    /// The guest's address of the region's first byte.
    pub base: u64,
    /// The stretches. A buffer lies in one of them as a whole.
    pub allowed: &'a [Extent],
}

impl Windows<'_> {
    /// The place of an alleged buffer, if it lies in an allowed stretch.
    #[inline]
    pub fn locate(&self, address: u64, len: u32) -> Option<Extent> {
        self.allowed.iter().find_map(|w| w.locate(self.base, address, len)).map(|at| Extent { at, len })
    }
}

/// Why a chain was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    /// There are fewer free descriptors than segments. Pop, and try again.
    Full,
    /// The chain has no segment, more than the queue has entries, or a readable one after a writable one.
    Shape,
}

impl core::fmt::Display for AddError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            AddError::Full => "the queue has no free descriptors",
            AddError::Shape => "a chain needs 1 to queue-size segments, readable ones first",
        })
    }
}

impl core::error::Error for AddError {}

/// A completion, as the driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain.
    pub token: Token,
    /// Bytes that the device alleges to have written, cut to the chain's writable length.
    pub written: u32,
    /// The device alleged more than the chain can hold.
    pub overlong: bool,
}

/// The peer broke the ring; it can only be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFault {
    /// The peer's index is further ahead than the queue is long.
    IndexJump {
        /// Where it stood.
        from: u16,
        /// What it alleges now.
        to: u16,
    },
    /// The peer named a chain that cannot be: out of range.
    NoSuchChain {
        /// What it named.
        alleged: u32,
    },
    /// The device used a chain that is not in flight, or the driver made one available that already is.
    NotInFlight {
        /// What it named.
        alleged: u32,
    },
}

impl core::fmt::Display for RingFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            RingFault::IndexJump { from, to } => {
                write!(f, "the ring's index went from {from} to {to}, further than the queue is long")
            }
            RingFault::NoSuchChain { alleged } => {
                write!(f, "the ring names chain {alleged}, beyond the queue")
            }
            RingFault::NotInFlight { alleged } => {
                write!(f, "the ring names chain {alleged}, which is in flight already or not at all")
            }
        }
    }
}

impl core::error::Error for RingFault {}

/// Why a chain is no request. The ring itself is sound: the chain is completed with length 0 and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainError {
    /// It goes on longer than the queue (a loop), or has more segments than the device takes.
    TooLong,
    /// A descriptor's next is beyond the table.
    BadNext,
    /// A buffer is empty, or does not lie in memory that the queue may use.
    BadBuffer,
    /// A readable segment follows a writable one.
    Order,
    /// An indirect table without the feature, inside another, with a successor, or of an impossible length.
    BadIndirect,
}

impl core::fmt::Display for ChainError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            ChainError::TooLong => "a descriptor chain is longer than the queue, or loops",
            ChainError::BadNext => "a descriptor's next lies beyond its table",
            ChainError::BadBuffer => "a descriptor names an empty buffer, or one outside its device's memory",
            ChainError::Order => "a device-readable descriptor follows a device-writable one",
            ChainError::BadIndirect => {
                "an indirect descriptor is not allowed here, or has an impossible length"
            }
        })
    }
}

impl core::error::Error for ChainError {}

/// What the device half took from the available ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// A chain, its segments in the caller's table: first the readable ones.
    Chain {
        /// Its name.
        token: Token,
        /// How many segments are readable.
        readable: usize,
        /// How many are writable, after those.
        writable: usize,
    },
    /// A chain that is no request; complete it with length 0.
    Malformed {
        /// Its name.
        token: Token,
        /// What is wrong.
        error: ChainError,
    },
}

/// Whether a peer that asked to be woken at `event` wants to be, when an index went from `old` to `new`:
/// VIRTIO 1.2, 2.7.10. The comparison is of distances, so it holds across the wrap at 65536.
#[inline]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::need_event;

    #[test]
    fn an_event_inside_the_batch_wakes_and_one_outside_does_not_at_every_wrap() {
        for old in [0u16, 1, 100, 65533, 65534, 65535] {
            for batch in 1..5u16 {
                let new = old.wrapping_add(batch);
                for distance in 0..10u16 {
                    let event = old.wrapping_add(distance);
                    assert_eq!(need_event(event, new, old), distance < batch, "{old} {new} {event}");
                }
                assert!(!need_event(old.wrapping_sub(1), new, old));
            }
        }
    }
}
