//! What devices talk to on this host.
//!
//! The traits are all that a device knows: bytes in and out, entropy, neither of which ever blocks. They need no `std`,
//! since the devices behind them do not either. The implementations are Linux descriptors, opened before any guest's
//! word is read; to the event loop they are [`HostEnd`]s, which say what they wait for.

#[cfg(feature = "std")]
mod bounded;
#[cfg(feature = "std")]
mod desk;
#[cfg(feature = "std")]
mod entropy;
#[cfg(feature = "std")]
pub mod export;
#[cfg(feature = "std")]
mod file;
#[cfg(feature = "std")]
mod files;
#[cfg(feature = "std")]
mod hosted;
#[cfg(feature = "std")]
pub mod net;
#[cfg(feature = "std")]
mod nonblocking;
#[cfg(feature = "std")]
mod pty;
#[cfg(feature = "std")]
mod record;
#[cfg(feature = "std")]
mod recorder;
#[cfg(feature = "std")]
mod shared;
#[cfg(feature = "std")]
mod socket;
#[cfg(feature = "std")]
mod stdio;
#[cfg(feature = "std")]
mod trouble;
#[cfg(feature = "std")]
pub(crate) mod vsock;

#[cfg(feature = "std")]
pub use self::{
    entropy::SystemEntropy,
    file::FileEnd,
    files::{Conversation, Conversations, Files, Guests, Job, Worker},
    hosted::Hosted,
    pty::PtyEnd,
    record::StateFile,
    recorder::{StateNews, StateRecorder},
    shared::Shared,
    socket::SocketEnd,
    stdio::StdioEnd,
    vsock::Multiplexer,
};

use hvl_shared_abi::Piece;
use hvl_shared_abi::wire::net::Offload;
use hvl_shared_abi::wire::p9::{Parsed, REPLY_PREFIX, Request};

/// Why bytes did not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndError {
    /// Not now; the event loop calls again when it may work.
    WouldBlock,
    /// Never again in this direction. The other direction may go on.
    Closed,
}

/// The host's end of a stream of bytes, such as a console's terminal. Neither call blocks.
pub trait ByteEnd {
    /// Takes bytes from the front of `bytes`. `Ok(n)` says that the first `n` are taken for good: the kernel has them,
    /// and they survive this process. `n` is 0 only if `bytes` is empty.
    ///
    /// # Errors
    ///
    /// See [`EndError`]; nothing was taken then.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError>;

    /// Fills the front of `into` and says how much of it; 0 only if `into` is empty.
    ///
    /// # Errors
    ///
    /// See [`EndError`]; a direction that has ended is an error, never 0 bytes.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError>;

    /// Forgets what was tried and not taken, because the session has ended.
    fn forget(&mut self) {}

    /// Columns and rows of the terminal, where there is one and it says so. It may change.
    fn size(&self) -> Option<(u16, u16)> {
        None
    }
}

/// Why a frame for the guest was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The guest's buffers are too small for it.
    TooLong,
    /// It leaves to the guest what the guest has not accepted, as one does that came before the guest had said what it
    /// accepts: delivered as it stands it would be wrong.
    NotAccepted,
}

/// The host's end of a network card: whole Ethernet frames in both directions, in private memory. No call blocks.
pub trait FrameEnd {
    /// What this end can take over from the guest, or take advantage of if the guest does: of
    /// [`OFFLOADS`](hvl_shared_abi::wire::net::OFFLOADS).
    fn features(&self) -> u64 {
        0
    }

    /// The driver has accepted these features, of all that the card offers; 0 when there is none any more. From now on
    /// [`receive`](Self::receive) leaves nothing else to be done.
    fn accept(&mut self, _features: u64) {}

    /// Takes a frame of 14 bytes at least, with what is left to be done for it: only what was offered and accepted.
    /// `Ok` says that it is on its way, or lost where nobody is at the other end, as on a cable.
    ///
    /// # Errors
    ///
    /// [`EndError::WouldBlock`]: not taken; the event loop calls again when there may be room.
    fn send(&mut self, offload: &Offload, frame: &[u8]) -> Result<(), EndError>;

    /// Copies the next frame to the front of `into`, and says what is left to be done for it and its length. A frame
    /// that does not fit is dropped.
    ///
    /// # Errors
    ///
    /// [`EndError::WouldBlock`]: there is none; the event loop calls again when there may be.
    fn receive(&mut self, into: &mut [u8]) -> Result<(Offload, usize), EndError>;

    /// A frame of this end's was dropped; for its counts.
    fn dropped(&mut self, _why: Dropped) {}
}

/// A source of random bytes. It does not block.
pub trait Entropy {
    /// Fills the front of `into` and says how much of it, at least 1 byte unless `into` is empty.
    ///
    /// # Errors
    ///
    /// [`EndError::WouldBlock`] while the source has nothing yet, as early after a boot.
    fn fill(&mut self, into: &mut [u8]) -> Result<usize, EndError>;
}

/// A read or a write whose data lies in the guest's memory, where a system call can move it.
#[derive(Debug)]
pub struct Transfer<'a> {
    /// What is asked for, parsed without its payload.
    pub request: Parsed<'a, Request<'a>>,
    /// Where the data goes, at most as many bytes as a read asks for, or where it lies, all that is to be written.
    pub data: &'a [Piece],
    /// Where the head of the answer goes.
    pub answer: &'a mut [u8; REPLY_PREFIX],
}

/// A server of messages that answers later: a file system may block, so it runs beside the event loop.
///
/// The device numbers its requests; a number is used again once it was answered. What a server works on beside the loop
/// is private memory, so nothing that it began can reach the guest but through [`MessageServer::answers`].
pub trait MessageServer {
    /// Takes a request of `len` bytes, which `fill` writes into memory of the server's, under the number `id`; its
    /// answer has `room` bytes at the most. `false` while there is no room for another: nothing was taken then.
    fn submit(&mut self, id: usize, len: usize, room: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool;

    /// Carries out a read or a write if that takes no waiting: on return nothing more is moved. Writes the head of the
    /// answer and says how many bytes of the data are the rest of it. `None`: it is to be submitted; what is in the data
    /// of a read then is no answer.
    fn at_once(&mut self, _transfer: Transfer<'_>) -> Option<u32> {
        None
    }

    /// Hands out every answer that is there, each once, with the number of its request.
    fn answers(&mut self, take: &mut dyn FnMut(usize, &[u8]));

    /// The session has ended: what is under way is answered to nobody, and the next request is another client's.
    fn forget(&mut self);
}

/// What a signal tells of the terminal that this program was started on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TerminalNews {
    /// The program was stopped and goes on: its shell has set the terminal meanwhile, and it may be in the background.
    Continued,
    /// The terminal has another size.
    Resized,
}

/// A host end as the event loop sees it.
///
/// What it waits for follows from what the device tried: a `read` or `write` that answered [`EndError::WouldBlock`] is
/// waited for, once; after that the device tries again or has lost interest. So an end that nobody reads does not spin.
#[cfg(feature = "std")]
pub trait HostEnd: Send {
    /// Adds what it waits for.
    fn watch(&self, _watches: &mut crate::sys::Watches) {}

    /// Called when something that it waited for has happened or its deadline has come, before the device is served:
    /// peers are accepted and let go here, and what was waited for is forgotten.
    fn progress(&mut self, _now_us: u64) {}

    /// When `progress` is due even if nothing happens, in microseconds of the loop's clock.
    fn deadline_us(&self) -> Option<u64> {
        None
    }

    /// Whether the user asked at this end for the program to stop.
    fn wants_to_end(&self) -> bool {
        false
    }

    /// Called when a signal tells something of the program's terminal, before the next [`progress`](Self::progress),
    /// which follows at once. Several of a kind may come as one, and one may be no news after all.
    fn terminal_news(&mut self, _news: TerminalNews) {}

    /// Why the link cannot be served any more, if it cannot: a thread of this end has panicked. The link ends with this
    /// sentence, and its guest is told.
    fn failure(&self) -> Option<String> {
        None
    }

    /// A few words for the status, such as `no client`.
    fn state(&self) -> std::borrow::Cow<'static, str>;

    /// A line that tells the user where this end is, if he cannot know.
    fn announcement(&self) -> Option<String> {
        None
    }
}
