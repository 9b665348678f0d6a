//! The system calls that `rustix` does not have, each behind a safe function: open-file-description locks on a range
//! of bytes, signals, and a poll on plain descriptor numbers.
//!
//! Plain numbers, because what an event loop waits for belongs to objects that open and close descriptors as peers come
//! and go, and borrowing them all for the length of a poll would freeze those objects. A number that is stale at worst
//! wakes the loop for nothing: no memory is at stake.
//!
//! `poll` and not `epoll`: a link waits for at most a handful of descriptors, whose set and interest change with every
//! peer that comes or goes. With a list that is made anew each time there is no registration to forget.
#![allow(unsafe_code)]

pub(crate) mod tap;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

mod file;
mod guarded;
pub(crate) mod pieces;
mod signals;

pub(crate) use file::{LockKind, RangeLock, get_range_lock, set_fs_ids, set_range_lock};
pub(crate) use guarded::Guarded;
pub use signals::ignore_signals;
pub(crate) use signals::{Signal, Signals};

/// Tries to take an exclusive lock on `len` bytes from `start`, or on all that follow if `len` is 0. It belongs to the open file description: it ends with
/// the last descriptor *and mapping* made from it, however the process dies. `Ok(false)`: somebody else has it.
pub(crate) fn lock_range(fd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<bool> {
    match set_lock(fd, libc::F_OFD_SETLK, libc::F_WRLCK, start, len) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The same, and waits for as long as somebody else has it.
pub(crate) fn await_range(fd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    loop {
        match set_lock(fd, libc::F_OFD_SETLKW, libc::F_WRLCK, start, len) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Gives a lock of [`lock_range`] back before its time.
pub(crate) fn unlock_range(fd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    set_lock(fd, libc::F_OFD_SETLK, libc::F_UNLCK, start, len)
}

fn set_lock(fd: BorrowedFd<'_>, how: i32, kind: i32, start: u64, len: u64) -> io::Result<()> {
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    // SAFETY: `flock` is a plain C structure for which all zeroes is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start.try_into().map_err(too_far)?;
    lock.l_len = len.try_into().map_err(too_far)?;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel only reads the structure.
    match unsafe { libc::fcntl(fd.as_raw_fd(), how, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What is waited for: a list that is made anew for each wait.
#[derive(Default)]
pub struct Watches {
    all: Vec<libc::pollfd>,
}

/// A descriptor's place in [`Watches`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched(usize);

impl Watches {
    /// Forgets everything, keeping the memory.
    pub fn clear(&mut self) {
        self.all.clear();
    }

    /// How many descriptors are watched.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Waits for `fd` to be readable, writable, or both. With neither it is not watched at all: a peer's hang-up, which
    /// the kernel reports in any case, must not wake a loop that cannot act on it.
    pub fn add(&mut self, fd: RawFd, read: bool, write: bool) -> Watched {
        let events = if read { libc::POLLIN } else { 0 } | if write { libc::POLLOUT } else { 0 };
        if events != 0 {
            self.all.push(libc::pollfd { fd, events, revents: 0 });
            return Watched(self.all.len() - 1);
        }
        Watched(usize::MAX)
    }

    /// Waits for nothing but the peer to hang up: to close its end, not merely to say no more.
    pub fn add_hang_up(&mut self, fd: RawFd) {
        self.all.push(libc::pollfd { fd, events: 0, revents: 0 });
    }

    /// Whether something has happened on any descriptor in `range`, as [`len`](Self::len) counted before and after
    /// they were added.
    pub fn any(&self, range: std::ops::Range<usize>) -> bool {
        self.all.get(range).is_some_and(|some| some.iter().any(|one| one.revents != 0))
    }

    /// Whether something has happened on one descriptor: it is ready, or its peer is gone.
    pub fn fired(&self, watched: Watched) -> bool {
        self.any(watched.0..watched.0.saturating_add(1))
    }

    /// Waits until one is ready or `timeout_us` microseconds are over; `None` waits for ever. How many are ready.
    pub fn wait(&mut self, timeout_us: Option<u64>) -> usize {
        let time = timeout_us.map(|us| libc::timespec {
            tv_sec: libc::time_t::try_from(us / 1_000_000).unwrap_or(libc::time_t::MAX),
            tv_nsec: ((us % 1_000_000) * 1000) as _,
        });
        for one in &mut self.all {
            one.revents = 0;
        }
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the list is valid for its length, which the kernel writes `revents` in; the time is null or valid;
        // no signal mask is given.
        let ready =
            unsafe { libc::ppoll(self.all.as_mut_ptr(), self.all.len() as _, time, std::ptr::null()) };
        // An interrupted wait is one that ended early; whoever waits looks at the clock anyway.
        usize::try_from(ready).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_wait_reports_who_is_ready() {
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut watches = Watches::default();
        let (idle, readable) =
            (watches.add(a.as_raw_fd(), true, false), watches.add(b.as_raw_fd(), false, true));
        let nothing = watches.add(a.as_raw_fd(), false, false);
        assert_eq!(watches.wait(None), 1);
        assert!(!watches.fired(idle) && watches.fired(readable) && !watches.fired(nothing));
        watches.clear();
        watches.add(a.as_raw_fd(), true, false);
        assert_eq!(watches.wait(Some(1)), 0);
    }

    #[test]
    fn a_lock_belongs_to_the_open_file_description() {
        let one = rustix::fs::memfd_create("lock", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let again = || {
            std::fs::File::options().read(true).write(true).open(format!("/proc/self/fd/{}", one.as_raw_fd()))
        };
        let two = again().unwrap();
        assert!(lock_range(one.as_fd(), 0, 4096).unwrap());
        assert!(!lock_range(two.as_fd(), 0, 4096).unwrap());
        assert!(!lock_range(two.as_fd(), 4095, 1).unwrap());
        assert!(lock_range(two.as_fd(), 4096, 4096).unwrap());
        unlock_range(one.as_fd(), 0, 4096).unwrap();
        assert!(lock_range(two.as_fd(), 0, 4096).unwrap());
    }
}
