//! The file transport: 9P2000.L over VIRTIO 1.2's device 9, one request and its reply a descriptor chain.
//!
//! The whole of 9P2000.L as plain data, for both sides: a client emits a [`Request`] and parses a [`Reply`], a server
//! the other way round. Neither allocates, and strings borrow from the message, so a message is first copied out of
//! memory that a peer can write; what is parsed is *checked* as far as a message can be on its own: every count lies
//! within it, nothing is left over, a walk has at most [`MAX_WALK`] names. What it means (is this fid mine? may this
//! name be used? see [`is_name`]) is the reader's to check.
//!
//! Data may stay where it is. A message with a payload ([`Request::Write`], [`Reply::Read`], [`Reply::Readdir`]) can be
//! parsed from its first [`PAYLOAD_PREFIX`] bytes and emitted without it; the count is then all that is known of it.
//!
//! ```
//! use hvl_shared_abi::wire::p9::{Names, Reply, Request};
//!
//! let mut message = [0; 64];
//! let (names, rest) = Names::of_path(b"etc/motd");
//! let length = Request::Walk { fid: 0, new_fid: 1, names }.emit(7, &[], &mut message).unwrap();
//! assert!(rest.is_empty());
//! let parsed = Request::parse(&message[..length]).unwrap();
//! assert_eq!((parsed.tag, parsed.message), (7, Request::Walk { fid: 0, new_fid: 1, names }));
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian};

mod cursor;
mod entry;
mod errno;
mod message;
mod value;

pub use entry::{ENTRY_FIXED, Entries, Entry, EntryWriter};
pub use errno::Errno;
pub use message::{Reply, Request};
pub use value::{Attr, GetLock, Lock, Names, Payload, Qid, Qids, SetAttr, Statfs, Time};

#[cfg(test)]
mod tests;

/// The only queue.
pub const REQUEST: usize = 0;
/// Feature: the configuration holds a mount tag. Always offered: there is no other configuration.
pub const F_MOUNT_TAG: u64 = 1 << 0;
/// Bytes of the longest mount tag: the configuration space has no room for more.
pub const MAX_MOUNT_TAG: usize = 64;

/// The configuration space: how long the mount tag is, and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Bytes of the tag, as alleged.
    pub tag_length: little_endian::U16,
    /// The tag, without a zero at its end; what follows it is 0.
    pub bytes: [u8; MAX_MOUNT_TAG],
}

impl Config {
    /// A configuration with this tag; `None` if it is empty or too long.
    pub fn new(tag: &[u8]) -> Option<Config> {
        let length = u16::try_from(tag.len()).ok().filter(|length| *length != 0)?;
        let mut bytes = [0; MAX_MOUNT_TAG];
        bytes.get_mut(..tag.len())?.copy_from_slice(tag);
        Some(Config { tag_length: length.into(), bytes })
    }

    /// The tag; `None` if its length is a lie.
    pub fn tag(&self) -> Option<&[u8]> {
        self.bytes.get(..usize::from(self.tag_length.get())).filter(|tag| !tag.is_empty())
    }

    /// Its bytes, as they stand at the start of the configuration space.
    pub fn to_bytes(&self) -> [u8; size_of::<Config>()] {
        zerocopy::transmute!(*self)
    }
}

const _: () = {
    assert!(size_of::<Config>() == 66);
    assert!(core::mem::offset_of!(Config, bytes) == 2);
    assert!(size_of::<Config>() <= crate::header::CONFIG_SIZE as usize);
};

/// The version that is spoken here, and the only one.
pub const VERSION: &[u8] = b"9P2000.L";
/// What a server answers to any other.
pub const UNKNOWN: &[u8] = b"unknown";
/// The tag of a [`Request::Version`].
pub const NO_TAG: u16 = 0xffff;
/// No fid.
pub const NO_FID: u32 = 0xffff_ffff;
/// A user who is known by name only.
pub const NO_UID: u32 = 0xffff_ffff;
/// Most bytes of a message, as agreed: the largest that a server here grants.
pub const MAX_MSIZE: u32 = 1 << 20;
/// The smallest that is worth a conversation; a smaller one is refused, as QEMU and Linux do.
pub const MIN_MSIZE: u32 = 4096;
/// Bytes of a message's size, type and tag.
pub const HEADER: usize = 7;
/// Bytes before the payload of a [`Reply::Read`] or [`Reply::Readdir`].
pub const REPLY_PREFIX: usize = 11;
/// Bytes before the payload of a [`Request::Write`].
pub const WRITE_PREFIX: usize = 23;
/// The longer of these: enough of any message that has a payload.
pub const PAYLOAD_PREFIX: usize = WRITE_PREFIX;
/// Bytes that a data message needs beside the data, rounded as Linux does: the largest count is the agreed size less
/// this.
pub const IO_HEADER: u32 = 24;
/// Most names of one walk.
pub const MAX_WALK: usize = 16;
/// Bytes of the longest name in a directory.
pub const MAX_NAME: usize = 255;
/// Bytes of the longest path, as the target of a symbolic link.
pub const MAX_PATH: usize = 4096;
/// In [`Request::Unlinkat`]: the name is a directory's.
pub const AT_REMOVEDIR: u32 = 0x200;

/// Kinds of a [`Qid`].
pub mod qid {
    /// A directory.
    pub const DIRECTORY: u8 = 0x80;
    /// A symbolic link.
    pub const SYMLINK: u8 = 0x02;
    /// Anything else.
    pub const FILE: u8 = 0x00;
}

/// Flags of [`Request::Lopen`]: those of Linux on x86, whatever the two machines are.
#[allow(missing_docs)]
pub mod open {
    pub const READ_ONLY: u32 = 0;
    pub const WRITE_ONLY: u32 = 1;
    pub const READ_WRITE: u32 = 2;
    /// The bits that hold one of the three above.
    pub const ACCESS: u32 = 3;
    pub const CREATE: u32 = 0o100;
    pub const EXCLUSIVE: u32 = 0o200;
    pub const NO_TTY: u32 = 0o400;
    pub const TRUNCATE: u32 = 0o1000;
    pub const APPEND: u32 = 0o2000;
    pub const NON_BLOCK: u32 = 0o4000;
    pub const DATA_SYNC: u32 = 0o1_0000;
    pub const ASYNC: u32 = 0o2_0000;
    pub const DIRECT: u32 = 0o4_0000;
    pub const LARGE_FILE: u32 = 0o10_0000;
    pub const DIRECTORY: u32 = 0o20_0000;
    pub const NO_FOLLOW: u32 = 0o40_0000;
    pub const NO_ATIME: u32 = 0o100_0000;
    pub const CLOSE_ON_EXEC: u32 = 0o200_0000;
    pub const SYNC: u32 = 0o400_0000;
}

/// What a [`Request::Getattr`] asks for and an [`Attr`] holds.
#[allow(missing_docs)]
pub mod getattr {
    pub const MODE: u64 = 0x1;
    pub const LINKS: u64 = 0x2;
    pub const UID: u64 = 0x4;
    pub const GID: u64 = 0x8;
    pub const RDEV: u64 = 0x10;
    pub const ACCESSED: u64 = 0x20;
    pub const MODIFIED: u64 = 0x40;
    pub const CHANGED: u64 = 0x80;
    pub const INODE: u64 = 0x100;
    pub const SIZE: u64 = 0x200;
    pub const BLOCKS: u64 = 0x400;
    pub const BORN: u64 = 0x800;
    pub const GENERATION: u64 = 0x1000;
    pub const DATA_VERSION: u64 = 0x2000;
    /// All that `stat` tells.
    pub const BASIC: u64 = 0x7ff;
    /// All there is.
    pub const ALL: u64 = 0x3fff;
}

/// What a [`SetAttr`] changes.
#[allow(missing_docs)]
pub mod setattr {
    pub const MODE: u32 = 0x1;
    pub const UID: u32 = 0x2;
    pub const GID: u32 = 0x4;
    pub const SIZE: u32 = 0x8;
    /// The time of the last read, to now unless [`ACCESSED_SET`] says otherwise.
    pub const ACCESSED: u32 = 0x10;
    /// The time of the last change, to now unless [`MODIFIED_SET`] says otherwise.
    pub const MODIFIED: u32 = 0x20;
    pub const CHANGED: u32 = 0x40;
    pub const ACCESSED_SET: u32 = 0x80;
    pub const MODIFIED_SET: u32 = 0x100;
}

/// Kinds, flags and states of locks.
#[allow(missing_docs)]
pub mod lock {
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const UNLOCK: u8 = 2;
    /// Flag: the client would wait.
    pub const BLOCK: u32 = 1;
    /// Flag: the client takes back what it had before the server restarted.
    pub const RECLAIM: u32 = 2;
    /// State: it is taken, or given up.
    pub const SUCCESS: u8 = 0;
    /// State: somebody else has it. The client may ask again.
    pub const BLOCKED: u8 = 1;
    pub const ERROR: u8 = 2;
    pub const GRACE: u8 = 3;
}

/// Flags of [`Request::Xattrcreate`].
#[allow(missing_docs)]
pub mod xattr {
    /// It must not exist.
    pub const CREATE: u32 = 1;
    /// It must exist.
    pub const REPLACE: u32 = 2;
}

/// Kinds of a directory [`Entry`].
#[allow(missing_docs)]
pub mod entry_kind {
    pub const UNKNOWN: u8 = 0;
    pub const FIFO: u8 = 1;
    pub const CHAR_DEVICE: u8 = 2;
    pub const DIRECTORY: u8 = 4;
    pub const BLOCK_DEVICE: u8 = 6;
    pub const FILE: u8 = 8;
    pub const SYMLINK: u8 = 10;
    pub const SOCKET: u8 = 12;
}

/// Kinds of files in a mode.
#[allow(missing_docs)]
pub mod mode {
    /// The bits that hold one of the others.
    pub const KIND: u32 = 0o170_000;
    pub const FIFO: u32 = 0o010_000;
    pub const CHAR_DEVICE: u32 = 0o020_000;
    pub const DIRECTORY: u32 = 0o040_000;
    pub const BLOCK_DEVICE: u32 = 0o060_000;
    pub const FILE: u32 = 0o100_000;
    pub const SYMLINK: u32 = 0o120_000;
    pub const SOCKET: u32 = 0o140_000;
}

/// Whether these bytes name one entry of a directory, and neither the directory itself nor its parent: 1 to
/// [`MAX_NAME`] bytes, no slash, no zero, not `.` or `..`. They need not be UTF-8.
pub fn is_name(name: &[u8]) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && !matches!(name, b"." | b"..")
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// The first bytes of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the whole message, these included, as alleged.
    pub size: u32,
    /// Which message it is.
    pub kind: u8,
    /// Which conversation of a request and its reply.
    pub tag: u16,
}

impl Header {
    /// Reads the front of a message.
    ///
    /// # Errors
    ///
    /// [`Malformed::Short`] with fewer than [`HEADER`] bytes, [`Malformed::Size`] for a size below that.
    pub fn parse(message: &[u8]) -> Result<Header, Malformed> {
        let [a, b, c, d, kind, e, f] = *message.first_chunk::<HEADER>().ok_or(Malformed::Short)?;
        let size = u32::from_le_bytes([a, b, c, d]);
        if size < HEADER as u32 {
            return Err(Malformed::Size);
        }
        Ok(Header { size, kind, tag: u16::from_le_bytes([e, f]) })
    }
}

/// A message that was read and is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed<'a, T> {
    /// Which conversation.
    pub tag: u16,
    /// What it says.
    pub message: T,
    /// As much of the payload as was there.
    pub payload: &'a [u8],
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Its size is not the number of its bytes.
    Size,
    /// No message of this direction has that type.
    Kind,
    /// A field or string goes beyond its end.
    Short,
    /// Bytes follow its last field.
    Trailing,
    /// A walk with more than [`MAX_WALK`] names.
    Names,
    /// The payload is not as long as it says.
    Payload,
}

impl Malformed {
    /// The end of a sentence about the message.
    pub fn reason(self) -> &'static str {
        match self {
            Malformed::Size => "says another size than it has",
            Malformed::Kind => "has a type that is not of 9P2000.L",
            Malformed::Short => "ends within a field",
            Malformed::Trailing => "has bytes after its last field",
            Malformed::Names => "walks more than 16 names",
            Malformed::Payload => "has another length of data than it says",
        }
    }
}

/// A message that does not fit the bytes it was to be written to, or that no message can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;
