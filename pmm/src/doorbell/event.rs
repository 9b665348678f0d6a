//! A pair of eventfds: the doorbell between two halves in one process, or between a process and its child. It loses
//! nothing: an eventfd that is full holds rings that were not heard yet.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::fs::OFlags;

use super::{Counters, HostDoorbell};
use crate::sys::Watches;

/// One eventfd to ring and one to hear.
#[derive(Debug)]
pub struct EventDoorbell {
    ring: OwnedFd,
    hear: OwnedFd,
    counters: Counters,
}

impl EventDoorbell {
    /// Takes two eventfds.
    ///
    /// # Errors
    ///
    /// If they cannot be made not to block.
    pub fn from_fds(ring: OwnedFd, hear: OwnedFd) -> std::io::Result<EventDoorbell> {
        for fd in [&ring, &hear] {
            rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        Ok(EventDoorbell { ring, hear, counters: Counters::default() })
    }

    /// Two doorbells that ring each other.
    ///
    /// # Errors
    ///
    /// If the process has no descriptors left.
    pub fn pair() -> std::io::Result<(EventDoorbell, EventDoorbell)> {
        let new = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let (one, two) = (new()?, new()?);
        let other = EventDoorbell::from_fds(two.try_clone()?, one.try_clone()?)?;
        Ok((EventDoorbell::from_fds(one, two)?, other))
    }
}

impl HostDoorbell for EventDoorbell {
    fn ring(&mut self) {
        match rustix::io::write(&self.ring, &1u64.to_ne_bytes()) {
            Ok(_) => self.counters.rung += 1,
            Err(_) => self.counters.merged += 1,
        }
    }

    fn acknowledge(&mut self) -> bool {
        let heard = rustix::io::read(&self.hear, &mut [0u8; 8]).is_ok();
        self.counters.heard += u64::from(heard);
        heard
    }

    fn can_lose(&self) -> bool {
        false
    }

    fn watch(&self, watches: &mut Watches) {
        watches.add(self.hear.as_raw_fd(), true, false);
    }

    fn progress(&mut self, _now_us: u64) -> bool {
        let first = self.counters.peers == 0;
        self.counters.peers = 1;
        first
    }

    fn deadline_us(&self) -> Option<u64> {
        None
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
    fn rings_merge_and_arrive() {
        let (mut one, mut two) = EventDoorbell::pair().unwrap();
        assert!(one.progress(0) && !one.progress(0));
        assert!(!two.acknowledge());
        for _ in 0..5 {
            one.ring();
        }
        assert!(two.acknowledge() && !two.acknowledge());
        two.ring();
        assert!(one.acknowledge());
    }
}
