//! How the other side is woken, and how it wakes us.
//!
//! A doorbell carries nothing: it only says "look". It may be merged, doubled, delayed, and, as each kind states, lost.
//! So ringing never blocks and never fails: a socket that is full has a doorbell in it that was not heard yet, and a
//! peer that is absent looks at memory when it comes. A peer that comes (again) is rung, and memory is looked at.

mod absence;
mod datagram;
mod event;
mod poll;
mod stream;

use std::time::Duration;

pub use datagram::DatagramDoorbell;
pub use event::EventDoorbell;
pub use poll::PollDoorbell;
pub use stream::StreamDoorbell;

use crate::failure::Failure;
use crate::options::Doorbell;
use crate::sys::Watches;

/// One link's doorbell, both ways. Times are in microseconds of the event loop's clock.
pub trait HostDoorbell: Send {
    /// Wakes the guest. Never blocks.
    fn ring(&mut self);

    /// Takes in every ring that has come so far. Whether there was one.
    fn acknowledge(&mut self) -> bool;

    /// Whether a ring may be lost on the way, in either direction, while the peer is there.
    fn can_lose(&self) -> bool;

    /// Adds what it waits for.
    fn watch(&self, watches: &mut Watches);

    /// Accepts, connects, keeps time; called before each look. True if a peer has just come: ring it and look.
    fn progress(&mut self, now_us: u64) -> bool;

    /// When `progress` is due even if nothing happens.
    fn deadline_us(&self) -> Option<u64>;

    /// Since when no peer is there; `None` if one is, or if this kind cannot tell.
    fn absent_since_us(&self) -> Option<u64>;

    /// Returns whether the peer has hung up since the last call: whoever was there is not any more. Kinds
    /// that cannot know never say so.
    fn has_hung_up(&mut self) -> bool {
        false
    }

    /// What it has done so far.
    fn counters(&self) -> Counters;
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Rings that were sent.
    pub rung: u64,
    /// Rings that found one in the way that was not heard yet, and merged with it.
    pub merged: u64,
    /// Rings for which nobody was there.
    pub unheard: u64,
    /// Times that something was heard; rings that came together count once.
    pub heard: u64,
    /// Times that a peer came.
    pub peers: u64,
}

/// Opens what a doorbell needs. A peer that is not there yet is no error.
///
/// # Errors
///
/// [`Failure::Refused`] if a socket cannot be made or is somebody else's.
pub fn open(doorbell: &Doorbell) -> Result<Box<dyn HostDoorbell>, Failure> {
    Ok(match doorbell {
        Doorbell::UnixStream { path, listen: false } => Box::new(StreamDoorbell::connect(path)),
        Doorbell::UnixStream { path, listen: true } => Box::new(StreamDoorbell::listen(path)?),
        Doorbell::UnixDgram { bind, peer } => Box::new(DatagramDoorbell::open(bind, peer)?),
        Doorbell::Poll { micros } => Box::new(PollDoorbell::new(Duration::from_micros(u64::from(*micros)))),
    })
}
