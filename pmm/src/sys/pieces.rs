//! Reads and writes of files that move data to and from pieces of a region, and do not wait.
//!
//! Not `rustix`: its calls take slices, and a slice of memory that a peer may change is a promise nobody can keep.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use hvl_shared_abi::Piece;
use rustix::io::ReadWriteFlags;

use super::guarded;
use crate::device::p9::SEGMENTS;

/// What a call does if it would have to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// It fails, as it does on file systems that cannot tell.
    Never,
    /// It waits. For files that are memory, as a region is: no disk is waited for but one that memory is swapped to, and
    /// nobody but who writes to the same file, for as long as that takes.
    Memory,
}

impl Waiting {
    /// The same for the system call.
    pub(crate) const fn flags(self) -> ReadWriteFlags {
        match self {
            Waiting::Never => ReadWriteFlags::NOWAIT,
            Waiting::Memory => ReadWriteFlags::empty(),
        }
    }
}

type Call = unsafe extern "C" fn(
    libc::c_int,
    *const libc::iovec,
    libc::c_int,
    libc::off_t,
    libc::c_int,
) -> libc::ssize_t;

fn call(
    which: Call,
    fd: BorrowedFd<'_>,
    pieces: &[Piece],
    offset: u64,
    waiting: Waiting,
) -> io::Result<usize> {
    let flags = waiting.flags().bits() as libc::c_int;
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut list = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; SEGMENTS];
    let list = list.get_mut(..pieces.len()).ok_or(io::ErrorKind::InvalidInput)?;
    for (one, piece) in list.iter_mut().zip(pieces) {
        *one = libc::iovec { iov_base: piece.start().as_ptr().cast(), iov_len: piece.len() };
    }
    loop {
        // SAFETY: 1. the list is valid for as many entries as are told, of which there are at most `SEGMENTS`; 2. each
        // names bytes of a region, which stay mapped, readable and writable for ever (`Region::new`), and to which
        // no reference exists; 3. the kernel moves them as bytes, each once, whatever a peer does meanwhile.
        let moved = unsafe { which(fd.as_raw_fd(), list.as_ptr(), list.len() as libc::c_int, offset, flags) };
        match usize::try_from(moved) {
            Ok(moved) => return Ok(moved),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => {
                    if error.raw_os_error() == Some(libc::EFAULT) {
                        pieces.iter().for_each(|piece| guarded::note_fault(piece.start()));
                    }
                    return Err(error);
                }
            },
        }
    }
}

/// Reads from `offset` of a file into the pieces; how many bytes. 0 is the file's end, or no room.
pub(crate) fn read(fd: BorrowedFd<'_>, into: &[Piece], offset: u64, waiting: Waiting) -> io::Result<usize> {
    call(libc::preadv2, fd, into, offset, waiting)
}

/// Writes the pieces to a file that is memory from `offset` on; how many bytes.
pub(crate) fn write(fd: BorrowedFd<'_>, from: &[Piece], offset: u64) -> io::Result<usize> {
    call(libc::pwritev2, fd, from, offset, Waiting::Memory)
}
