//! Output that cannot be written for a while, because the disk is full or broken. The error is logged once
//! and shown in the status as long as it lasts; the output waits and is tried again once a second. Nothing is
//! acknowledged before it is written.

use std::borrow::Cow;

use rustix::io::Errno;

use crate::observe::{Limit, limited};

/// How often it is tried again, in microseconds.
pub(super) const RETRY_US: u64 = 1_000_000;

/// The trouble of one output.
#[derive(Debug)]
pub(super) struct Trouble {
    /// The option and its value, for messages.
    name: String,
    /// Why the last try failed; the next `progress` makes it a deadline, and tells.
    now: Option<Errno>,
    /// What was told of, until a try works again.
    told: Option<Errno>,
    /// Nothing is tried before `retry_us`.
    pausing: bool,
    retry_us: Option<u64>,
    limit: Limit,
}

impl Trouble {
    pub(super) fn new(name: String) -> Trouble {
        Trouble { name, now: None, told: None, pausing: false, retry_us: None, limit: Limit::default() }
    }

    /// The option and its value.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether it is too early for another try.
    pub(super) fn is_pausing(&self) -> bool {
        self.pausing
    }

    /// Notes that a try has worked.
    pub(super) fn passed(&mut self) {
        (self.now, self.pausing, self.retry_us) = (None, false, None);
    }

    /// Notes that a try has failed.
    pub(super) fn met(&mut self, error: Errno) {
        (self.now, self.pausing) = (Some(error), true);
    }

    /// See [`HostEnd::progress`](super::HostEnd::progress).
    pub(super) fn progress(&mut self, now_us: u64) {
        match self.now {
            None if self.told.take().is_some() => {
                limited!(info, self.limit, now_us, "{}: can be written again", self.name);
            }
            Some(error) if self.told != Some(error) => {
                self.told = Some(error);
                limited!(
                    warn,
                    self.limit,
                    now_us,
                    "{}: cannot be written ({error}); the guest's output waits, and is tried again once a second",
                    self.name
                );
            }
            _ => {}
        }
        if self.pausing {
            let at = *self.retry_us.get_or_insert(now_us.saturating_add(RETRY_US));
            if at <= now_us {
                (self.pausing, self.retry_us) = (false, None);
            }
        }
    }

    /// See [`HostEnd::deadline_us`](super::HostEnd::deadline_us).
    pub(super) fn deadline_us(&self) -> Option<u64> {
        // Trouble that has come or gone, and no `progress` since: at once.
        match self.now {
            Some(_) if self.pausing => Some(self.retry_us.unwrap_or(0)),
            Some(_) => None,
            None => self.told.map(|_| 0),
        }
    }

    /// Returns a few words for the status, if there is any.
    pub(super) fn state(&self) -> Option<Cow<'static, str>> {
        Some(match self.now? {
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => "no space".into(),
            error => format!("cannot be written ({error})").into(),
        })
    }

    #[cfg(test)]
    pub(super) fn told(&self) -> Option<Errno> {
        self.told
    }
}
