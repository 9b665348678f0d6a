//! Hands jobs, one at a time, from a loop that must not block to a thread that may.
//!
//! Neither a descriptor flag nor poll tells whether a write to a regular file would block: a frozen or remote
//! file system can hold it for any time. So every writer to such a file is a thread. It works on private
//! memory, knows nothing but its job, and nobody ever waits for it, not even at the end. If it panics, that
//! is reported, since its job would otherwise never end.

use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::observe::Waker;
use crate::sys::Watches;

/// Where the loop lays a job, and finds what came of it.
pub(super) struct Desk<J, O>(Arc<Shared<J, O>>);

struct Shared<J, O> {
    top: Mutex<Top<J, O>>,
    news: Condvar,
    waker: Waker,
}

struct Top<J, O> {
    job: Option<J>,
    outcome: Option<O>,
    closing: bool,
    panicked: bool,
}

impl<J, O> Shared<J, O> {
    fn top(&self) -> MutexGuard<'_, Top<J, O>> {
        self.top.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J: Send + 'static, O: Send + 'static> Desk<J, O> {
    /// Starts the thread. Only after the signals are blocked, which it would take otherwise.
    pub(super) fn start(
        name: &str,
        mut work: impl FnMut(J) -> O + Send + 'static,
    ) -> std::io::Result<Desk<J, O>> {
        let top = Mutex::new(Top { job: None, outcome: None, closing: false, panicked: false });
        let shared = Arc::new(Shared { top, news: Condvar::new(), waker: Waker::new()? });
        let own = shared.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || {
            loop {
                let mut top = own.top();
                let job = loop {
                    if top.closing {
                        return;
                    }
                    match top.job.take() {
                        Some(job) => break job,
                        None => top = own.news.wait(top).unwrap_or_else(PoisonError::into_inner),
                    }
                };
                drop(top);
                // What it works on is never looked at again after a panic, for the thread ends.
                let outcome = catch_unwind(AssertUnwindSafe(|| work(job))).ok();
                let panicked = outcome.is_none();
                let mut top = own.top();
                (top.outcome, top.panicked) = (outcome, panicked);
                drop(top);
                own.waker.wake();
                if panicked {
                    return;
                }
            }
        })?;
        Ok(Desk(shared))
    }
}

impl<J, O> Desk<J, O> {
    /// Gives the thread a job. It has none: the outcome of the last one was taken.
    pub(super) fn give(&self, job: J) {
        self.0.top().job = Some(job);
        self.0.news.notify_one();
    }

    /// Returns what came of the job, once, when it is done.
    pub(super) fn outcome(&self) -> Option<O> {
        self.0.top().outcome.take()
    }

    /// Returns why there will be no outcome any more, if the thread has panicked. `what` is what it writes.
    pub(super) fn failure(&self, what: &str) -> Option<String> {
        let panicked = self.0.top().panicked;
        panicked.then(|| {
            format!("the thread that writes {what} panicked, and its last write may be half done; this is a defect of pmm")
        })
    }

    /// Waits for an outcome.
    pub(super) fn watch(&self, watches: &mut Watches) {
        watches.add(self.0.waker.as_raw_fd(), true, false);
    }

    /// An outcome that there is will be looked at.
    pub(super) fn clear(&self) {
        self.0.waker.clear();
    }

    /// Another handle, of one who waits.
    pub(super) fn share(&self) -> Desk<J, O> {
        Desk(self.0.clone())
    }
}

impl<J, O> Drop for Desk<J, O> {
    fn drop(&mut self) {
        // The thread has one, and the last one but that ends it.
        if Arc::strong_count(&self.0) <= 2 {
            self.0.top().closing = true;
            self.0.news.notify_one();
        }
    }
}
