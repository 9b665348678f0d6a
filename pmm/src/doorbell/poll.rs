//! `poll[:MICROSECONDS]`: no doorbell at all. Memory is looked at again and again, and so must the guest.

use std::time::Duration;

use super::{Counters, HostDoorbell};
use crate::sys::Watches;

/// A timer in place of a doorbell.
#[derive(Debug)]
pub struct PollDoorbell {
    period_us: u64,
    next_us: u64,
    due: bool,
    counters: Counters,
}

impl PollDoorbell {
    /// Looks once in each `period`; below a microsecond is a microsecond.
    pub fn new(period: Duration) -> PollDoorbell {
        let period_us = u64::try_from(period.as_micros()).unwrap_or(u64::MAX).max(1);
        PollDoorbell { period_us, next_us: 0, due: false, counters: Counters::default() }
    }
}

impl HostDoorbell for PollDoorbell {
    fn ring(&mut self) {
        self.counters.rung += 1;
    }

    fn acknowledge(&mut self) -> bool {
        let due = std::mem::take(&mut self.due);
        self.counters.heard += u64::from(due);
        due
    }

    fn can_lose(&self) -> bool {
        true
    }

    fn watch(&self, _watches: &mut Watches) {}

    fn progress(&mut self, now_us: u64) -> bool {
        if now_us >= self.next_us {
            self.due = true;
            self.next_us = now_us.saturating_add(self.period_us);
        }
        false
    }

    fn deadline_us(&self) -> Option<u64> {
        Some(self.next_us)
    }

    fn absent_since_us(&self) -> Option<u64> {
        None
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_once_a_period() {
        let mut bell = PollDoorbell::new(Duration::from_micros(50));
        for now in [7, 57, 500] {
            assert!(!bell.progress(now));
            assert_eq!(bell.deadline_us(), Some(now + 50));
            assert!(bell.acknowledge() && !bell.acknowledge());
            assert!(!bell.progress(now + 49) && !bell.acknowledge());
        }
    }
}
