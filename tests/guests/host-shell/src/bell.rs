//! The doorbell of a process: a byte on a stream socket, or a datagram, is a ring. Nothing here blocks but
//! [`Bell::wait`], and that no longer than it is told.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How soon to try again to connect to a pmm that is not there, in microseconds.
const RETRY: u64 = 20_000;

/// Where the other side is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A stream socket, on which this side listens or not.
    Stream {
        /// Where it is.
        path: PathBuf,
        /// Whether this side is the one that listens.
        listen: bool,
    },
    /// Two datagram sockets.
    Datagram {
        /// Ours.
        bind: PathBuf,
        /// Theirs.
        peer: PathBuf,
    },
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix-stream:") {
            let (path, listen) = path.strip_suffix(",listen").map_or((path, false), |path| (path, true));
            if !path.is_empty() {
                return Ok(Address::Stream { path: path.into(), listen });
            }
        }
        let ends = text.strip_prefix("unix-dgram:bind=").and_then(|rest| rest.split_once(",peer="));
        if let Some((bind, peer)) = ends.filter(|(bind, peer)| !bind.is_empty() && !peer.is_empty()) {
            return Ok(Address::Datagram { bind: bind.into(), peer: peer.into() });
        }
        Err("write unix-stream:PATH[,listen] or unix-dgram:bind=PATH,peer=PATH".into())
    }
}

/// A doorbell.
pub struct Bell {
    line: Line,
    wake_ups: u32,
}

enum Line {
    Stream { side: Side, peer: Option<UnixStream> },
    Datagram { socket: UnixDatagram, peer: PathBuf },
}

enum Side {
    Connect(PathBuf),
    Listen(UnixListener),
}

impl Bell {
    /// Opens it. The other side need not be there.
    pub fn open(address: &Address) -> Result<Bell> {
        let line = match address {
            Address::Stream { path, listen: false } => {
                Line::Stream { side: Side::Connect(path.clone()), peer: None }
            }
            Address::Stream { path, listen: true } => {
                forget(path);
                let listener = UnixListener::bind(path);
                let listener = listener.with_context(|| format!("cannot listen at {}", path.display()))?;
                listener.set_nonblocking(true)?;
                Line::Stream { side: Side::Listen(listener), peer: None }
            }
            Address::Datagram { bind, peer } => {
                forget(bind);
                let socket = UnixDatagram::bind(bind);
                let socket = socket.with_context(|| format!("cannot bind to {}", bind.display()))?;
                socket.set_nonblocking(true)?;
                Line::Datagram { socket, peer: peer.clone() }
            }
        };
        Ok(Bell { line, wake_ups: 0 })
    }

    /// Rings. A full socket holds rings that were not heard yet, and this one merges with them.
    pub fn ring(&mut self) {
        match &mut self.line {
            Line::Stream { peer, .. } => {
                let rung = peer.as_mut().map(|stream| stream.write(&[1]));
                if let Some(Err(error)) = rung
                    && !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
                {
                    *peer = None;
                }
            }
            // Nobody there, or full: lost, as a doorbell may be.
            Line::Datagram { socket, peer } => drop(socket.send_to(&[1], peer)),
        }
    }

    /// Waits until it is rung, another peer has come, or so many microseconds are over.
    pub fn wait(&mut self, micros: Option<u64>) {
        let retries = matches!(&self.line, Line::Stream { side: Side::Connect(_), peer: None });
        let micros = if retries { Some(micros.unwrap_or(RETRY).min(RETRY)) } else { micros };
        let timeout = micros.map(|micros| Timespec {
            tv_sec: i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX),
            tv_nsec: (micros % 1_000_000 * 1_000) as _,
        });
        let fd = match &self.line {
            Line::Stream { peer: Some(peer), .. } => Some(peer.as_fd()),
            Line::Stream { side: Side::Listen(listener), .. } => Some(listener.as_fd()),
            Line::Stream { side: Side::Connect(_), .. } => None,
            Line::Datagram { socket, .. } => Some(socket.as_fd()),
        };
        let mut fds: Vec<_> = fd.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        // Interrupted is as good as woken: the caller looks at memory either way.
        let _ = poll(&mut fds, timeout.as_ref());
        self.wake_ups = self.wake_ups.wrapping_add(1);
        self.take();
    }

    /// Takes the rings that have come, and a peer.
    fn take(&mut self) {
        let mut rings = [0; 256];
        match &mut self.line {
            // A bound: a sender that never stops must not hold this process.
            Line::Datagram { socket, .. } => drop((0..64).find(|_| socket.recv(&mut rings).is_err())),
            Line::Stream { peer: Some(stream), side: _ } => loop {
                match stream.read(&mut rings) {
                    Ok(256) => {}
                    Ok(1..) => return,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                    Ok(0) | Err(_) => break,
                }
            },
            Line::Stream { peer: None, .. } => {}
        }
        if let Line::Stream { side, peer } = &mut self.line {
            let came = match side {
                Side::Connect(path) => UnixStream::connect(path),
                Side::Listen(listener) => listener.accept().map(|(stream, _)| stream),
            };
            *peer = came.ok().filter(|stream| stream.set_nonblocking(true).is_ok());
            // What was rung while nobody listened is lost, in both directions: ring, and the caller looks.
            self.ring();
        }
    }

    /// How often [`Bell::wait`] has returned.
    pub fn wake_ups(&self) -> u32 {
        self.wake_ups
    }
}

/// Removes a socket that a killed predecessor left; anything else of that name is not ours.
fn forget(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket()) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Option<u64> = Some(10_000_000);

    fn temp(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("host-shell-{}-{name}", std::process::id()))
    }

    #[test]
    fn addresses() {
        let stream = |listen| Address::Stream { path: "/a".into(), listen };
        assert_eq!("unix-stream:/a".parse(), Ok(stream(false)));
        assert_eq!("unix-stream:/a,listen".parse(), Ok(stream(true)));
        let datagram = Address::Datagram { bind: "/a".into(), peer: "/b".into() };
        assert_eq!("unix-dgram:bind=/a,peer=/b".parse(), Ok(datagram));
        for text in ["", "poll", "unix-stream:", "unix-stream:,listen", "unix-dgram:bind=,peer=/b"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn rings_go_both_ways_and_a_peer_may_come_again() {
        let path = temp("stream");
        let open = |listen| Bell::open(&Address::Stream { path: path.clone(), listen }).unwrap();
        let mut listens = open(true);
        for _ in 0..3 {
            let mut connects = open(false);
            connects.wait(LONG);
            listens.wait(LONG);
            let connected = |bell: &Bell| matches!(&bell.line, Line::Stream { peer: Some(_), .. });
            assert!(connected(&connects) && connected(&listens));
            connects.ring();
            listens.wait(LONG);
            listens.ring();
            connects.wait(LONG);
            // Nothing has been lost, so nothing wakes.
            listens.wait(Some(0));
            drop(connects);
            listens.wait(LONG);
            assert!(!connected(&listens));
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn datagrams_ring_and_an_absent_peer_is_no_error() {
        let (a, b) = (temp("a"), temp("b"));
        let open = |bind: &PathBuf, peer: &PathBuf| {
            Bell::open(&Address::Datagram { bind: bind.clone(), peer: peer.clone() }).unwrap()
        };
        let mut one = open(&a, &b);
        one.ring();
        let mut other = open(&b, &a);
        one.ring();
        other.wait(LONG);
        other.ring();
        one.wait(LONG);
        for path in [a, b] {
            fs::remove_file(path).unwrap();
        }
    }
}
