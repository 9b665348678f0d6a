//! A descriptor that never blocks, as two directions that end separately. Every host end with descriptors is built on
//! it.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::EndError;
use crate::sys::Watches;

/// One direction's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Direction {
    /// A try answered `WouldBlock`, and nothing was heard since.
    waiting: bool,
    closed: bool,
}

/// Why an output took nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It has no room at the moment, and will say when it has.
    Full,
    /// Something that may pass, and says nothing when it has.
    Trouble(Errno),
    /// Nobody will ever read it.
    Ended(Errno),
}

/// An open descriptor with `O_NONBLOCK`.
#[derive(Debug)]
pub(super) struct NonBlocking {
    fd: OwnedFd,
    /// Flags to put back, where others share the open file description.
    restore: Option<OFlags>,
    input: Direction,
    output: Direction,
}

impl NonBlocking {
    /// Takes a descriptor that is this process's own.
    pub(super) fn own(fd: OwnedFd) -> std::io::Result<NonBlocking> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(NonBlocking { fd, restore: None, input: Direction::default(), output: Direction::default() })
    }

    /// Takes a descriptor that other processes share, as a terminal is shared with the shell. `O_NONBLOCK` belongs to
    /// the open file description, and a shell does not expect it on its own: so the file is opened again. What cannot
    /// be opened again, as a socket, gets the flag until this is dropped.
    pub(super) fn shared(fd: BorrowedFd<'_>, flags: OFlags) -> std::io::Result<NonBlocking> {
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        // A regular file would be written from its start again.
        let is_file = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode).is_file();
        if !is_file && let Ok(fd) = rustix::fs::open(path, flags, rustix::fs::Mode::empty()) {
            return Ok(NonBlocking {
                fd,
                restore: None,
                input: Direction::default(),
                output: Direction::default(),
            });
        }
        let old = rustix::fs::fcntl_getfl(fd)?;
        let mut shared = NonBlocking::own(fd.try_clone_to_owned()?)?;
        shared.restore = (!old.contains(OFlags::NONBLOCK)).then_some(old);
        Ok(shared)
    }

    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        self.input.guard()?;
        if into.is_empty() {
            return Ok(0);
        }
        let got = rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut *into));
        self.input.outcome(got)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        self.output.guard()?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let took = rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, bytes));
        self.output.outcome(took)
    }

    /// Does the same, for one who wants to know why nothing was taken.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        if self.output.closed {
            return Err(Refusal::Ended(Errno::PIPE));
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let took = rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, bytes));
        self.output.waiting = took == Err(Errno::AGAIN);
        match took {
            Ok(n) if n > 0 => Ok(n),
            // What takes nothing and gives no reason has no room.
            Ok(_) => Err(Refusal::Trouble(Errno::NOSPC)),
            Err(Errno::AGAIN) => Err(Refusal::Full),
            // A pipe or socket without a reader, a terminal that was hung up.
            Err(error @ (Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::IO | Errno::BADF)) => {
                self.output.closed = true;
                Err(Refusal::Ended(error))
            }
            Err(error) => Err(Refusal::Trouble(error)),
        }
    }

    /// Notes that the input has not ended after all.
    pub(super) fn reopen_input(&mut self) {
        self.input.closed = false;
    }

    pub(super) fn watch(&self, watches: &mut Watches) {
        watches.add(self.fd.as_raw_fd(), self.input.waiting, self.output.waiting);
    }

    pub(super) fn forget(&mut self) {
        self.input.waiting = false;
        self.output.waiting = false;
    }

    /// Waits for input although nobody has asked for any yet.
    pub(super) fn expect_input(&mut self) {
        self.input.waiting = !self.input.closed;
    }

    /// Waits for nothing but that the peer closes its end, where it has only said that it sends no more.
    pub(super) fn watch_hang_up(&self, watches: &mut Watches) {
        watches.add_hang_up(self.fd.as_raw_fd());
    }

    /// Returns whether the peer has closed its end: it neither sends nor reads any more.
    pub(super) fn is_hung_up(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut asked = [PollFd::new(&self.fd, PollFlags::empty())];
        poll(&mut asked, Some(&now)).is_ok()
            && asked.iter().any(|one| one.revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }

    pub(super) fn input_closed(&self) -> bool {
        self.input.closed
    }

    pub(super) fn output_closed(&self) -> bool {
        self.output.closed
    }
}

impl Direction {
    fn guard(self) -> Result<(), EndError> {
        if self.closed { Err(EndError::Closed) } else { Ok(()) }
    }

    fn outcome(&mut self, result: Result<usize, Errno>) -> Result<usize, EndError> {
        self.waiting = result == Err(Errno::AGAIN);
        match result {
            Ok(n) if n > 0 => Ok(n),
            Err(Errno::AGAIN) => Err(EndError::WouldBlock),
            // The end of a file, a peer that is gone, or an error that no retry mends.
            _ => {
                self.closed = true;
                Err(EndError::Closed)
            }
        }
    }
}

impl Drop for NonBlocking {
    fn drop(&mut self) {
        if let Some(flags) = self.restore {
            let _ = rustix::fs::fcntl_setfl(&self.fd, flags);
        }
    }
}
