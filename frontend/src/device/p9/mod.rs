//! Files: a 9P2000.L client without a heap, on VIRTIO's device 9.
//!
//! [`Files`] is the handle. Its calls name files by their path from the exported directory's root, or by a [`File`] that
//! was opened; each waits for the answer in the board's sleep, up to the time that [`Options`] say. Below them lie
//! *calls in flight* ([`Files::start_read`], [`Files::start_write`]), of which there may be several at once, for a
//! program that has something else to do meanwhile.
//!
//! # Restarts
//!
//! What the PMM knew of this client ends with it: the client attaches again by itself, and asks again what may be asked
//! twice. An open file answers [`FileError::Stale`] once, so that its owner knows that locks are gone and that a write
//! which was under way may have happened or not; the next call opens it again by its path. A change that was under
//! way by path (a file made, a name removed) answers [`FileError::Indeterminate`]: only its owner can tell whether to
//! repeat it. A write that was answered is in the page cache of the PMM's machine and survives the PMM.
//!
//! What the PMM answers is *alleged*: the front of each answer is copied out once, and parsed and compared with what was
//! asked; data is copied once, to where the caller wants it.

mod calls;
mod files;
mod paths;

use hvl_shared_abi::DeviceId;
use hvl_shared_abi::wire::p9::{Config, Errno, F_MOUNT_TAG};
use zerocopy::FromBytes;

pub use self::calls::Ticket;
use self::calls::{CALLS, Calls};
pub use self::files::{Dir, File, PATH};
use crate::bounce::{Kind, QueueSlices, QueueStorage};
use crate::device::{DeviceStatus, handle};
use crate::link::{Link, OpenError};
use crate::platform::{Board, Instant};

/// Storage of a file client with a queue of at most `N` entries (the PMM's default is 16). Each call in flight takes
/// two.
#[derive(Debug, Default)]
pub struct FilesStorage<const N: usize = 16> {
    queue: QueueStorage<N>,
}

impl<const N: usize> FilesStorage<N> {
    /// Storage that no device uses yet.
    pub const NEW: FilesStorage<N> = FilesStorage { queue: QueueStorage::NEW };
    /// Bytes of it.
    pub const SIZE: usize = size_of::<Self>();
    /// Alignment of it, in bytes.
    pub const ALIGN: usize = align_of::<Self>();
}

/// Why a call on files did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileError {
    /// There was no PMM, or it did not serve the device, until the time was up.
    LinkDown,
    /// The answer did not come in time. Its effect may still come about.
    TimedOut,
    /// Nothing happened, and nothing was waited for: only the calls in flight say so, and those on a board without a
    /// clock.
    WouldBlock,
    /// The PMM was restarted since the file was opened. The next call on it opens it again.
    Stale,
    /// The PMM was restarted while a change was under way: nobody knows whether it happened.
    Indeterminate,
    /// The file server refused.
    Refused(Errno),
    /// The answer is none that the question can have.
    Malformed,
    /// A path is longer than [`PATH`], or a name, a path or an attribute does not fit a message.
    TooLong,
    /// This client has as many files open as it can.
    TooManyFiles,
}

impl core::fmt::Display for FileError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            FileError::LinkDown => "the link is down; no PMM serves files at the moment",
            FileError::TimedOut => "the file server did not answer in time",
            FileError::WouldBlock => "the file server has not answered yet",
            FileError::Stale => "the PMM was restarted; the file is opened again by the next call",
            FileError::Indeterminate => {
                "the PMM was restarted while this was under way; look whether it happened"
            }
            FileError::Refused(Errno::NOENT) => "there is no such file",
            FileError::Refused(Errno::EXIST) => "there is such a file already",
            FileError::Refused(Errno::ROFS) => "the directory is exported read-only",
            FileError::Refused(Errno::NOSPC) => "the disk is full",
            FileError::Refused(errno) => return write!(f, "the file server refused it ({errno:?})"),
            FileError::Malformed => "the file server's answer is malformed",
            FileError::TooLong => "a path, name or attribute is too long",
            FileError::TooManyFiles => "too many files are open; close one",
        })
    }
}

impl core::error::Error for FileError {}

/// How a file client is opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which of the link's file devices; 0 is the first.
    pub ordinal: u8,
    /// How long a call may wait, in microseconds. On a board without a clock it does not wait at all.
    pub timeout: u64,
    /// The user whom the client speaks for, as a number of the PMM's machine; the export may map or ignore it.
    pub user: u32,
    /// Which tree of the server; a PMM's device has one, which needs no name.
    pub tree: &'static [u8],
}

impl Default for Options {
    fn default() -> Options {
        Options { ordinal: 0, timeout: 10_000_000, user: 0, tree: b"" }
    }
}

/// A client of an exported directory.
#[derive(Debug)]
pub struct Files<'s, B> {
    link: Link<'s, B>,
    cell: usize,
    options: Options,
    calls: Calls,
    /// The start of the device in which this client is attached, and what was agreed then.
    attached: Option<u32>,
    msize: u32,
    /// Bytes of a block, in which a request and its answer lie.
    block: u32,
    /// A bit for each fid in use; fid 0 is the root.
    fids: u32,
}

handle!(Files);

impl<'s, B: Board> Files<'s, B> {
    /// Opens a file device of the link, whether or not a PMM is there.
    pub fn open<const N: usize>(
        link: &Link<'s, B>,
        storage: &'s mut FilesStorage<N>,
        options: Options,
    ) -> Result<Files<'s, B>, OpenError> {
        Self::open_slices(link, storage.queue.slices(), options)
    }

    /// The same with storage whose size is known at run time.
    pub fn open_slices(
        link: &Link<'s, B>,
        storage: QueueSlices<'s>,
        options: Options,
    ) -> Result<Files<'s, B>, OpenError> {
        let most = (storage.slots.len() >> 1).clamp(1, CALLS) as u16;
        let (index, mut cell) = link.open(DeviceId::P9, options.ordinal, F_MOUNT_TAG)?;
        let [queue, ..] = &mut cell.queues;
        queue.open(storage, Kind::Exchange, most);
        let (link, calls) = (link.clone(), Calls::NEW);
        Ok(Files { link, cell: index, options, calls, attached: None, msize: 0, block: 0, fids: 0 })
    }

    /// The export's mount tag: copied to the front of `into`, cut to its length.
    pub fn tag<'t>(&mut self, into: &'t mut [u8]) -> Result<&'t [u8], FileError> {
        let cell = self.link.enter(self.cell).ok_or(FileError::WouldBlock)?;
        if !cell.runs() {
            return Err(FileError::LinkDown);
        }
        let bytes =
            cell.config::<_, { size_of::<Config>() }>(self.link.mem()).ok_or(FileError::WouldBlock)?;
        let config = Config::read_from_bytes(&bytes).map_err(|_| FileError::Malformed)?;
        let tag = config.tag().ok_or(FileError::Malformed)?;
        let len = tag.len().min(into.len());
        let (into, _) = into.split_at_mut_checked(len).ok_or(FileError::Malformed)?;
        into.copy_from_slice(tag.split_at_checked(len).ok_or(FileError::Malformed)?.0);
        Ok(into)
    }
}
