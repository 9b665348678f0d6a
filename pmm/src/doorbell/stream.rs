//! `unix-stream:PATH[,listen]`: one byte on a stream socket is one doorbell, as a chardev socket of QEMU makes of a
//! UART. While connected it loses nothing: a full socket holds rings that were not heard yet.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::SendFlags;
use tracing::{debug, info};

use super::absence::Absence;
use super::{Counters, HostDoorbell};
use crate::failure::Failure;
use crate::sys::Watches;
use crate::unix::{Listener, connect};

/// A stream socket, or the wish for one.
#[derive(Debug)]
pub struct StreamDoorbell {
    side: Side,
    stream: Option<UnixStream>,
    absence: Absence,
    counters: Counters,
    /// Since [`HostDoorbell::ring`] and `acknowledge` are told no time, they leave it to `progress` to say.
    lost: bool,
    hung_up: bool,
}

#[derive(Debug)]
enum Side {
    Connect(PathBuf),
    Listen(Listener),
    /// A socket that was given; when its peer leaves, no other comes.
    Given,
}

impl StreamDoorbell {
    /// Connects, now or whenever somebody listens at `path`.
    pub fn connect(path: &Path) -> StreamDoorbell {
        StreamDoorbell::new(Side::Connect(path.into()), None)
    }

    /// Listens at `path`, for one peer at a time.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if somebody else listens there, or the path cannot be used.
    pub fn listen(path: &Path) -> Result<StreamDoorbell, Failure> {
        let name = format!("--doorbell unix-stream:{},listen", path.display());
        Ok(StreamDoorbell::new(Side::Listen(Listener::listen(path, name)?), None))
    }

    /// Takes one end of a connected pair.
    ///
    /// # Errors
    ///
    /// If the descriptor cannot be made not to block.
    pub fn from_fd(stream: OwnedFd) -> std::io::Result<StreamDoorbell> {
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(true)?;
        Ok(StreamDoorbell::new(Side::Given, Some(stream)))
    }

    fn new(side: Side, stream: Option<UnixStream>) -> StreamDoorbell {
        StreamDoorbell {
            side,
            stream,
            absence: Absence::default(),
            counters: Counters::default(),
            lost: false,
            hung_up: false,
        }
    }

    fn name(&self) -> String {
        match &self.side {
            Side::Connect(path) => format!("unix-stream:{}", path.display()),
            Side::Listen(listener) => format!("unix-stream:{},listen", listener.path().display()),
            Side::Given => "a connected socket".into(),
        }
    }

    fn lose(&mut self) {
        self.stream = None;
        (self.lost, self.hung_up) = (true, true);
    }

    fn try_for_a_peer(&mut self, now_us: u64) -> std::io::Result<UnixStream> {
        match &mut self.side {
            Side::Connect(path) => connect(path),
            Side::Listen(listener) => listener.accept(now_us).ok_or(ErrorKind::WouldBlock.into()),
            Side::Given => Err(ErrorKind::NotConnected.into()),
        }
    }
}

impl HostDoorbell for StreamDoorbell {
    fn ring(&mut self) {
        let Some(stream) = &self.stream else {
            self.counters.unheard += 1;
            return;
        };
        match rustix::net::send(stream, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => self.counters.rung += 1,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => self.counters.merged += 1,
            Err(_) => {
                self.counters.unheard += 1;
                self.lose();
            }
        }
    }

    fn acknowledge(&mut self) -> bool {
        // One read: what does not fit makes the socket readable again, and a peer that floods gets no loop to itself.
        let mut bytes = [0; 4096];
        let Some(mut stream) = self.stream.as_ref() else { return false };
        match stream.read(&mut bytes) {
            Ok(1..) => {
                self.counters.heard += 1;
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => false,
            _ => {
                self.lose();
                false
            }
        }
    }

    fn can_lose(&self) -> bool {
        false
    }

    fn watch(&self, watches: &mut Watches) {
        if let Some(stream) = &self.stream {
            watches.add(stream.as_raw_fd(), true, false);
        } else if let Side::Listen(listener) = &self.side {
            listener.watch(watches);
        }
    }

    fn progress(&mut self, now_us: u64) -> bool {
        if std::mem::take(&mut self.lost) {
            // A peer that restarts is back soon: tried at once, and then by the timer. One that comes and goes is
            // said once and followed slowly.
            match self.absence.gone(now_us) {
                true => info!("doorbell {}: the peer is gone", self.name()),
                false => debug!("doorbell {}: the peer came and went", self.name()),
            }
        }
        if self.stream.is_some() {
            if self.counters.peers == 0 {
                self.counters.peers = 1;
                return true;
            }
            return false;
        }
        if !self.absence.is_due(now_us) && !matches!(self.side, Side::Listen(_)) {
            return false;
        }
        match self.try_for_a_peer(now_us) {
            Ok(stream) => {
                self.stream = Some(stream);
                let news = !self.absence.is_slow();
                self.absence.over(now_us);
                self.counters.peers += 1;
                match news {
                    true => info!("doorbell {}: the peer is there", self.name()),
                    false => debug!("doorbell {}: the peer is there again", self.name()),
                }
                true
            }
            Err(error) => {
                if self.absence.failed(now_us) {
                    let what =
                        if self.counters.peers == 0 { "no peer yet" } else { "the peer has not come back" };
                    match &self.side {
                        Side::Connect(_) => {
                            info!("doorbell {}: {what} ({error}); trying again", self.name())
                        }
                        Side::Listen(_) => info!("doorbell {}: {what}; listening", self.name()),
                        Side::Given => info!("doorbell {}: no other peer will come", self.name()),
                    }
                } else {
                    debug!("doorbell {}: still no peer ({error})", self.name());
                }
                false
            }
        }
    }

    fn deadline_us(&self) -> Option<u64> {
        match &self.side {
            _ if self.lost => Some(0),
            Side::Connect(_) if self.stream.is_none() => self.absence.next_us(),
            Side::Listen(listener) if self.stream.is_none() => listener.deadline_us(),
            _ => None,
        }
    }

    fn absent_since_us(&self) -> Option<u64> {
        self.absence.since_us()
    }

    fn has_hung_up(&mut self) -> bool {
        std::mem::take(&mut self.hung_up)
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    fn temp(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("pmm-bell-{}-{name}", std::process::id()))
    }

    fn wait(bell: &StreamDoorbell) {
        let mut watches = Watches::default();
        bell.watch(&mut watches);
        assert!(watches.wait(Some(10_000_000)) > 0, "nothing happened at the doorbell in 10 s");
    }

    #[test]
    fn many_rings_are_heard_once_and_a_full_socket_merges() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut bell = StreamDoorbell::from_fd(ours.into()).unwrap();
        assert!(bell.progress(0) && !bell.progress(1));
        assert!(!bell.acknowledge());
        theirs.write_all(&[1; 100]).unwrap();
        assert!(bell.acknowledge() && !bell.acknowledge());
        let mut rings = 0;
        while bell.counters().merged == 0 {
            bell.ring();
            rings += 1;
            assert!(rings < 10_000_000, "the socket never fills");
        }
        theirs.set_nonblocking(true).unwrap();
        assert!(theirs.read(&mut [0; 64]).unwrap() > 0);
        assert_eq!(bell.counters().rung, rings - 1);
        drop(theirs);
        assert!(!bell.acknowledge() || !bell.acknowledge());
        bell.progress(2);
        assert!(bell.absent_since_us().is_some());
        bell.ring();
        assert_eq!(bell.counters().unheard, 1);
    }

    #[test]
    fn it_connects_when_somebody_listens_and_again_after_that() {
        let path = temp("connect");
        let mut bell = StreamDoorbell::connect(&path);
        assert!(!bell.progress(0));
        assert_eq!((bell.absent_since_us(), bell.deadline_us()), (Some(0), Some(10_000)));
        for round in 0..3 {
            let listener = UnixListener::bind(&path).unwrap();
            let due = bell.deadline_us().unwrap();
            assert!(due == 0 || !bell.progress(due - 1), "before its time");
            assert!(bell.progress(due.max(1)));
            assert_eq!(bell.absent_since_us(), None);
            let (mut peer, _) = listener.accept().unwrap();
            bell.ring();
            let mut byte = [0];
            peer.read_exact(&mut byte).unwrap();
            peer.write_all(&byte).unwrap();
            wait(&bell);
            assert!(bell.acknowledge());
            // The peer dies, as a killed emulator does: its socket file stays.
            drop((peer, listener));
            assert!(!bell.has_hung_up());
            assert!(!bell.acknowledge());
            assert!(bell.has_hung_up() && !bell.has_hung_up(), "said once");
            assert_eq!(bell.deadline_us(), Some(0));
            assert!(!bell.progress(round + 10));
            std::fs::remove_file(&path).unwrap();
        }
        assert_eq!(bell.counters().peers, 3);
    }

    #[test]
    fn it_listens_for_one_peer_at_a_time() {
        let path = temp("listen");
        let mut bell = StreamDoorbell::listen(&path).unwrap();
        assert!(!bell.progress(0));
        assert_eq!(bell.deadline_us(), None, "nothing to try: the listener wakes us");
        for _ in 0..3 {
            let mut peer = UnixStream::connect(&path).unwrap();
            wait(&bell);
            assert!(bell.progress(1));
            bell.ring();
            peer.read_exact(&mut [0]).unwrap();
            drop(peer);
            wait(&bell);
            assert!(!bell.acknowledge());
            assert!(!bell.progress(2));
        }
        drop(bell);
        assert!(!path.exists());
    }
}
