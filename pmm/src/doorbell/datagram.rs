//! `unix-dgram:bind=PATH,peer=PATH`: one datagram is one doorbell. It can be lost: a peer that closes its socket takes
//! with it what it had not read.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use tracing::info;

use super::absence::Absence;
use super::{Counters, HostDoorbell};
use crate::failure::Failure;
use crate::sys::Watches;
use crate::unix::Bound;

/// Between two looks at whether the peer's socket is still there, in microseconds.
const PROBE_US: u64 = 1_000_000;

/// Datagrams that are taken in at once; more make the socket readable again.
const BATCH: usize = 64;

/// A bound datagram socket and where its peer's should be.
#[derive(Debug)]
pub struct DatagramDoorbell {
    socket: Bound<UnixDatagram>,
    peer: PathBuf,
    absence: Absence,
    /// A ring found nobody; `progress` says so, since it knows the time.
    missed: bool,
    /// When to look at a peer that was there.
    probe_us: u64,
    counters: Counters,
}

impl DatagramDoorbell {
    /// Receives at `bind` and sends to `peer`, which need not be there yet.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if `bind` is somebody else's or cannot be used.
    pub fn open(bind: &Path, peer: &Path) -> Result<DatagramDoorbell, Failure> {
        let name = format!("--doorbell unix-dgram:bind={}", bind.display());
        Ok(DatagramDoorbell {
            socket: Bound::receive(bind, &name)?,
            peer: peer.into(),
            absence: Absence::default(),
            missed: false,
            probe_us: 0,
            counters: Counters::default(),
        })
    }

    fn send(&mut self) -> bool {
        match self.socket.get().send_to(&[1], &self.peer) {
            Ok(_) => self.counters.rung += 1,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                self.counters.merged += 1;
            }
            Err(_) => {
                self.counters.unheard += 1;
                return false;
            }
        }
        true
    }

    /// Returns whether somebody still receives where the peer did. A process that was killed leaves its
    /// socket's file, and while there is nothing to ring nothing is sent to it: only a trial connection
    /// tells, and it wakes nobody. Any other error, such as missing permission, counts as present.
    fn is_there(&self) -> bool {
        let tried = UnixDatagram::unbound().and_then(|socket| socket.connect(&self.peer));
        !tried.is_err_and(|error| matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound))
    }
}

impl HostDoorbell for DatagramDoorbell {
    fn ring(&mut self) {
        self.missed |= !self.send();
    }

    fn acknowledge(&mut self) -> bool {
        let heard = (0..BATCH).take_while(|_| self.socket.get().recv(&mut [0; 8]).is_ok()).count();
        self.counters.heard += u64::from(heard > 0);
        heard > 0
    }

    fn can_lose(&self) -> bool {
        true
    }

    fn watch(&self, watches: &mut Watches) {
        watches.add(self.socket.get().as_raw_fd(), true, false);
    }

    fn progress(&mut self, now_us: u64) -> bool {
        let mut missed = std::mem::take(&mut self.missed);
        let known = self.counters.peers > 0 && self.absence.since_us().is_none();
        if known && !missed && now_us >= self.probe_us {
            self.probe_us = now_us.saturating_add(PROBE_US);
            missed = !self.is_there();
        }
        if (known && !missed) || (!known && !self.absence.is_due(now_us)) {
            return false;
        }
        // Only a datagram tells whether the peer is there, and a doorbell too many does no harm.
        if self.send() {
            self.absence.over(now_us);
            self.probe_us = now_us.saturating_add(PROBE_US);
            self.counters.peers += u64::from(!known);
            if !known {
                info!("doorbell unix-dgram: the peer {} is there", self.peer.display());
            }
            return true;
        }
        if self.absence.failed(now_us) {
            let what = if self.counters.peers == 0 { "no peer yet" } else { "the peer has left" };
            info!("doorbell unix-dgram: {what} at {}; trying again", self.peer.display());
        }
        false
    }

    fn deadline_us(&self) -> Option<u64> {
        let known = self.counters.peers > 0 && self.absence.since_us().is_none();
        match known {
            _ if self.missed => Some(0),
            true => Some(self.probe_us),
            false => self.absence.next_us(),
        }
    }

    fn absent_since_us(&self) -> Option<u64> {
        self.absence.since_us()
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_come_and_go() {
        let temp = |name: &str| std::env::temp_dir().join(format!("pmm-dgram-{}-{name}", std::process::id()));
        let (ours, theirs) = (temp("ours"), temp("theirs"));
        let mut bell = DatagramDoorbell::open(&ours, &theirs).unwrap();
        assert!(!bell.progress(0));
        assert_eq!(bell.deadline_us(), Some(10_000));
        bell.ring();
        for _ in 0..3 {
            let peer = UnixDatagram::bind(&theirs).unwrap();
            let due = bell.deadline_us().unwrap().max(10_000_000);
            assert!(bell.progress(due), "the peer is there");
            assert!(!bell.progress(due));
            assert_eq!((bell.absent_since_us(), bell.deadline_us()), (None, Some(due + PROBE_US)));
            // A peer that does not read: the queue is full, nothing blocks.
            for _ in 0..10_000 {
                bell.ring();
            }
            assert!(bell.counters().merged > 0);
            peer.recv(&mut [0]).unwrap();
            for _ in 0..3 {
                peer.send_to(&[1], &ours).unwrap();
            }
            assert!(bell.acknowledge() && !bell.acknowledge());
            drop(peer);
            bell.ring();
            assert_eq!(bell.deadline_us(), Some(0));
            assert!(!bell.progress(due));
            assert_eq!(bell.absent_since_us(), Some(due));
            std::fs::remove_file(&theirs).unwrap();
        }
        assert_eq!(bell.counters().peers, 3);
    }

    #[test]
    fn a_peer_that_was_killed_is_missed_without_a_ring_and_one_that_lives_hears_nothing_of_it() {
        let temp = |name: &str| std::env::temp_dir().join(format!("pmm-dgram-{}-{name}", std::process::id()));
        let (ours, theirs) = (temp("prober"), temp("probed"));
        let mut bell = DatagramDoorbell::open(&ours, &theirs).unwrap();
        let peer = UnixDatagram::bind(&theirs).unwrap();
        peer.set_nonblocking(true).unwrap();
        assert!(bell.progress(0));
        peer.recv(&mut [0]).unwrap();
        for _ in 0..5 {
            assert!(!bell.progress(bell.deadline_us().unwrap()));
            assert_eq!(bell.absent_since_us(), None);
        }
        // One that receives from this side alone refuses the look, and is there.
        peer.connect(&ours).unwrap();
        let due = bell.deadline_us().unwrap();
        assert!(!bell.progress(due) && bell.absent_since_us().is_none());
        assert!(peer.recv(&mut [0]).is_err(), "a look rings nobody");
        // It is killed: its file stays.
        drop(peer);
        let due = bell.deadline_us().unwrap();
        assert!(!bell.progress(due));
        assert_eq!(bell.absent_since_us(), Some(due), "nobody rang, and it is missed all the same");
        std::fs::remove_file(&theirs).unwrap();
    }
}
