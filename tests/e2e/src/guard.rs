//! Times that must not be reached: each names what it guards.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// A bound on a wait.
#[derive(Clone, Debug)]
pub struct Guard {
    what: String,
    limit: Duration,
    end: Instant,
}

impl Guard {
    /// Waits for `what` shall not take longer than this.
    pub fn new(seconds: u64, what: impl fmt::Display) -> Guard {
        let limit = Duration::from_secs(seconds);
        Guard { what: what.to_string(), limit, end: Instant::now() + limit }
    }

    /// What is left of it.
    ///
    /// # Errors
    ///
    /// Nothing is.
    pub fn left(&self) -> Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("waited {} s for {}", self.limit.as_secs(), self.what);
        }
        Ok(left)
    }

    /// Starts anew: something of what is waited for has come.
    pub fn renew(&mut self) {
        self.end = Instant::now() + self.limit;
    }
}
