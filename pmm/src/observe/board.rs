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
    answered: AtomicU64,
    /// Goes up with every snapshot that differs from the one before: whoever has seen this number has seen all.
    changes: AtomicU64,
    latest: Mutex<LinkStatus>,
}

/// Limits how often a link that is followed leaves a snapshot, in microseconds: often enough for a reader,
/// and seldom enough for a link under load, which would otherwise make one in every turn.
const PACE_US: u64 = 10_000;

/// The link's side of a [`Board`] that is followed: when it last left a snapshot.
#[derive(Debug, Default)]
pub struct Pace {
    next_us: u64,
    /// A turn was passed over.
    owes: bool,
}

impl Pace {
    /// Returns when a snapshot is due that was passed over.
    pub fn deadline_us(&self) -> Option<u64> {
        self.owes.then_some(self.next_us)
    }
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
            answered: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            latest: Mutex::new(first),
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
        self.answered.load(Ordering::Acquire)
    }

    /// Returns how many snapshots differed from the one before.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The latest snapshot.
    pub fn latest(&self) -> LinkStatus {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The link's side: leaves a snapshot if somebody wants one. Whoever follows gets one now and then, and the last
    /// one in any case, at [`Pace::deadline_us`].
    pub fn offer(&self, now_us: u64, pace: &mut Pace, snapshot: impl FnOnce() -> LinkStatus) {
        let asked = self.asked.load(Ordering::Acquire);
        let followed = self.followed.load(Ordering::Acquire);
        let early = now_us < pace.next_us;
        pace.owes = followed && early;
        if asked != self.answered() || (followed && !early) {
            *pace = Pace { next_us: now_us.saturating_add(PACE_US), owes: false };
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

    /// Keeps everybody from its snapshot meanwhile.
    #[cfg(test)]
    pub(super) fn hold(&self, act: impl FnOnce()) {
        let _held = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        act();
    }

    fn put(&self, number: u64, status: LinkStatus) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let differs = latest.differs(&status);
        *latest = status;
        drop(latest);
        if differs {
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
        // Last: whoever sees its answer finds it there.
        if self.answered.swap(number, Ordering::AcqRel) != number || differs {
            self.control.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_followed_makes_a_snapshot_now_and_then_and_the_last_one_in_any_case() {
        let board = Board::new(Arc::new(Waker::new().unwrap()), LinkStatus::default()).unwrap();
        let (mut pace, mut made) = (Pace::default(), 0);
        let mut turn = |now, pace: &mut Pace, rings| {
            board.offer(now, pace, || {
                made += 1;
                LinkStatus { rings, ..LinkStatus::default() }
            });
            made
        };
        assert_eq!(turn(0, &mut pace, 0), 0, "nobody asks");
        board.follow(true);
        // A thousand turns in as many microseconds.
        let all = (1..=1000).map(|now| turn(now, &mut pace, now)).last();
        assert_eq!((all, board.latest().rings), (Some(1), 1));
        let due = pace.deadline_us().expect("the last turn is owed");
        assert_eq!((turn(due, &mut pace, 1000), pace.deadline_us()), (2, None));
        assert_eq!((board.latest().rings, board.changes()), (1000, 2));
        // A question does not wait.
        let number = board.ask();
        turn(due + 1, &mut pace, 1001);
        assert_eq!((board.answered(), board.latest().rings), (number, 1001));
    }
}
