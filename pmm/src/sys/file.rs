//! Open-file-description locks of every kind.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What a lock on a range of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockKind {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// None.
    Unlock,
}

/// A lock on `length` bytes from `start`, or on all that follow if `length` is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RangeLock {
    pub(crate) kind: LockKind,
    pub(crate) start: u64,
    pub(crate) length: u64,
}

fn call(fd: BorrowedFd<'_>, command: i32, range: RangeLock) -> io::Result<libc::flock> {
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    // SAFETY: `flock` is a plain C structure for which all zeroes is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = match range.kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
        LockKind::Unlock => libc::F_UNLCK,
    } as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = range.start.try_into().map_err(too_far)?;
    lock.l_len = range.length.try_into().map_err(too_far)?;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the structure is valid for reads and writes.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) } {
        0 => Ok(lock),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes or gives up a lock without waiting. It belongs to the open file description. `Ok(false)`: somebody else has it.
pub(crate) fn set_range_lock(fd: BorrowedFd<'_>, range: RangeLock) -> io::Result<bool> {
    match call(fd, libc::F_OFD_SETLK, range) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A lock that stands in the way of `range`.
pub(crate) fn get_range_lock(fd: BorrowedFd<'_>, range: RangeLock) -> io::Result<Option<RangeLock>> {
    let found = call(fd, libc::F_OFD_GETLK, range)?;
    let kind = match i32::from(found.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => LockKind::Read,
        _ => LockKind::Write,
    };
    let number = |value: i64| u64::try_from(value).unwrap_or_default();
    Ok(Some(RangeLock { kind, start: number(found.l_start), length: number(found.l_len) }))
}

/// Makes this thread, and no other, a user and group as far as files are concerned. `false`: it may not.
///
/// Not the C library's `setuid` and its kin, which change all threads.
pub(crate) fn set_fs_ids(uid: u32, gid: u32) -> bool {
    // SAFETY: the calls take numbers and change nothing but this thread's credentials. What they return is the number
    // before; one that cannot be set, as -1, leaves it, and so tells what it is.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsuid(u32::MAX) as u32, libc::setfsgid(u32::MAX) as u32) == (uid, gid)
    }
}
