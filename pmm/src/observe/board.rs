//! Where a link's event loop leaves its snapshot for the control socket. Nothing is left unless somebody asks, so that
//! being observable costs a link nothing.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::EventfdFlags;

use super::LinkStatus;
use crate::host::TerminalNews;

/// Wakes an event loop from another thread.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// A new one.
    ///
    /// # Errors
    ///
    /// If the process has no descriptors left.
    pub fn new() -> std::io::Result<Waker> {
        Ok(Waker(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes the descriptor readable.
    pub fn wake(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it quiet again.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsRawFd for Waker {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What one link and the control socket share.
#[derive(Debug)]
pub struct Board {
    /// Wakes the link.
    pub link: Waker,
    /// Wakes the control socket's loop.
    pub control: Arc<Waker>,
    stop: AtomicBool,
    continued: AtomicBool,
    resized: AtomicBool,
    followed: AtomicBool,
    asked: AtomicU64,
    latest: Mutex<(u64, LinkStatus)>,
}

impl Board {
    /// For a link of this first status.
    ///
    /// # Errors
    ///
    /// If the process has no descriptors left.
    pub fn new(control: Arc<Waker>, first: LinkStatus) -> std::io::Result<Board> {
        Ok(Board {
            link: Waker::new()?,
            control,
            stop: AtomicBool::new(false),
            continued: AtomicBool::new(false),
            resized: AtomicBool::new(false),
            followed: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            latest: Mutex::new((0, first)),
        })
    }

    /// Asks the link to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.link.wake();
    }

    /// Whether the link is to end.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Tells the link's host ends what a signal says of the terminal.
    pub fn tell(&self, news: TerminalNews) {
        self.told(news).store(true, Ordering::Release);
        self.link.wake();
    }

    /// The link's side: what has been told since the last time.
    pub fn take_news(&self) -> impl Iterator<Item = TerminalNews> {
        let all = [TerminalNews::Continued, TerminalNews::Resized];
        all.into_iter().filter(|news| self.told(*news).swap(false, Ordering::AcqRel))
    }

    fn told(&self, news: TerminalNews) -> &AtomicBool {
        match news {
            TerminalNews::Continued => &self.continued,
            TerminalNews::Resized => &self.resized,
        }
    }

    /// Asks the link for a new snapshot; it is there when [`answered`](Self::answered) is at least the result.
    pub fn ask(&self) -> u64 {
        let number = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.link.wake();
        number
    }

    /// Whether every change is to be told.
    pub fn follow(&self, on: bool) {
        if self.followed.swap(on, Ordering::AcqRel) != on {
            self.link.wake();
        }
    }

    /// The number of the latest question that was answered.
    pub fn answered(&self) -> u64 {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// The latest snapshot.
    pub fn latest(&self) -> LinkStatus {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// The link's side: leaves a snapshot if somebody wants one.
    pub fn offer(&self, snapshot: impl FnOnce() -> LinkStatus) {
        let asked = self.asked.load(Ordering::Acquire);
        let followed = self.followed.load(Ordering::Acquire);
        if followed || asked != self.answered() {
            self.put(asked, snapshot());
        }
    }

    /// The link's side: leaves a snapshot in any case.
    pub fn leave(&self, status: LinkStatus) {
        self.put(self.asked.load(Ordering::Acquire), status);
    }

    /// The link's last word; every question after it is answered with this.
    pub fn close(&self, last: LinkStatus) {
        self.put(u64::MAX, last);
    }

    /// Whether the link has said its last word.
    pub fn is_closed(&self) -> bool {
        self.answered() == u64::MAX
    }

    fn put(&self, number: u64, status: LinkStatus) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let news = latest.0 != number || latest.1.differs(&status);
        *latest = (number, status);
        drop(latest);
        if news {
            self.control.wake();
        }
    }
}
