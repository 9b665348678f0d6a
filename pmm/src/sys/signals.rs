//! What each signal does to this program, decided in one place: `docs/pmm.md` has the same list.
//!
//! No signal but one that reports a fault of the program itself takes the links down without a word to their guests,
//! and none stops them: a process in the background that reads its terminal gets an error in place of SIGTTIN.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::retry_on_intr;

/// Those whose default ends a process and which say nothing of a fault in it, with the names that the log uses.
/// Real-time signals are such, too; nobody here sends one.
const ENDING: [(libc::c_int, &str); 13] = [
    (libc::SIGINT, "SIGINT"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGPWR, "SIGPWR"),
    (libc::SIGSTKFLT, "SIGSTKFLT"),
    // The soft limit on processor time; the hard one kills.
    (libc::SIGXCPU, "SIGXCPU"),
];

/// What a signal means to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// It ends in order; the signal's name.
    End(&'static str),
    /// It was stopped and goes on (SIGCONT): somebody else may have set the terminal meanwhile.
    Continued,
    /// The terminal has another size (SIGWINCH).
    Resized,
}

/// Ignores the signals that report what a system call reports, too: a write to a pipe or socket that nobody reads
/// (SIGPIPE), a write or an allocation beyond the limit on the size of files (SIGXFSZ), and the use of a terminal from
/// the background (SIGTTIN, SIGTTOU), which would stop every link. Called before anything is opened.
///
/// Whoever changes a terminal asks first whether this process is in its foreground: nothing stops it any more.
pub fn ignore_signals() {
    for signal in [libc::SIGPIPE, libc::SIGXFSZ, libc::SIGTTIN, libc::SIGTTOU] {
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Signals as bytes to read, instead of handlers to run.
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// Blocks all that [`Signal`] speaks of in this thread, and in all that it starts, and makes them readable. Ignores
    /// those of [`ignore_signals`].
    pub(crate) fn new() -> io::Result<Signals> {
        ignore_signals();
        // SAFETY: `sigset_t` is a plain C structure; `sigemptyset` makes it valid before it is used.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        let ending = ENDING.iter().map(|(number, _)| *number);
        let others = [libc::SIGCONT, libc::SIGWINCH].into_iter();
        // SAFETY: `set` is valid for writes, the signal numbers are the C library's own.
        unsafe {
            libc::sigemptyset(&raw mut set);
            for signal in ending.chain(others).chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
                libc::sigaddset(&raw mut set, signal);
            }
        }
        // SAFETY: `set` is valid for reads; the old mask is not asked for.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: `set` is valid for reads; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, open and nobody else's.
        Ok(Signals(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes a signal that has come, or `None`.
    pub(crate) fn take(&self) -> Option<Signal> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        let got = retry_on_intr(|| rustix::io::read(&self.0, &mut info)).ok()?;
        let number = info.get(..got)?.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes) as i32)?;
        Some(match number {
            libc::SIGCONT => Signal::Continued,
            libc::SIGWINCH => Signal::Resized,
            _ => {
                let known = ENDING.iter().find(|(ending, _)| *ending == number);
                Signal::End(known.map_or("a real-time signal", |(_, name)| name))
            }
        })
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
