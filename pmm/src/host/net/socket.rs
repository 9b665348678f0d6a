//! `mode=socket`: the cable leads to another program of this or another host: another link, or a QEMU with
//! `-netdev stream` or `-netdev dgram`.
//!
//! A stream has one peer at a time, and either side may come, go and come again: who connects tries again, who listens
//! accepts the next one. While nobody is there, what the guest sends is lost, as on a cable that is out. A peer that does not
//! read holds the guest's frames up, and nothing else.
//!
//! No offloads are offered here: the framing has no room for them, so all frames are complete and none is longer than
//! the MTU.

use std::borrow::Cow;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use hvl_shared_abi::wire::net::{MIN_FRAME, Offload};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::super::{Dropped, EndError, FrameEnd, HostEnd};
use super::Losses;
use super::stream::FrameStream;
use crate::failure::{Failure, refused};
use crate::observe::{Limit, limited};
use crate::options::{Address, NetworkEnd};
use crate::sys::Watches;
use crate::unix::{self, Bound, Listener};

/// How soon an absent peer is looked for again, in microseconds.
const RETRY_US: u64 = 250_000;
/// How soon a full datagram socket is tried again, in microseconds: whether the peer has room, poll cannot tell.
const FULL_US: u64 = 1_000;
/// Frames of no use that one call skips at the most.
const SKIP: usize = 64;

/// How a peer is found.
enum Plug {
    ConnectUnix(PathBuf),
    ConnectTcp { address: SocketAddr, under_way: Option<OwnedFd> },
    ListenUnix(Listener),
    ListenTcp(TcpListener),
}

/// A stream of frames, and perhaps somebody at its other end.
pub(super) struct StreamEnd {
    plug: Plug,
    name: String,
    peer: Option<FrameStream>,
    retry_us: Option<u64>,
    now_us: u64,
    losses: Losses,
    limit: Limit,
}

impl StreamEnd {
    /// Opens it. The peer need not be there.
    pub(super) fn open(address: &Address, listen: bool) -> Result<StreamEnd, Failure> {
        let end = NetworkEnd::Stream { address: address.clone(), listen };
        let name = format!("--network {end}");
        let plug = match (address, listen) {
            (Address::Unix(path), false) => Plug::ConnectUnix(path.clone()),
            (Address::Unix(path), true) => Plug::ListenUnix(Listener::listen(path, name.clone())?),
            (Address::Internet(address), false) => Plug::ConnectTcp { address: *address, under_way: None },
            (Address::Internet(address), true) => {
                let listener = TcpListener::bind(address).and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok(listener)
                });
                match listener {
                    Ok(listener) => Plug::ListenTcp(listener),
                    Err(error) => {
                        return refused(format!(
                            "{name}: cannot listen there ({error}); choose another address or port"
                        ));
                    }
                }
            }
        };
        let (peer, limit) = (None, Limit::default());
        let mut end =
            StreamEnd { plug, name, peer, retry_us: None, now_us: 0, losses: Losses::default(), limit };
        end.find_peer();
        Ok(end)
    }

    /// Looks for a peer while there is none.
    fn find_peer(&mut self) {
        if self.peer.is_some() || self.retry_us.is_some_and(|at| at > self.now_us) {
            return;
        }
        let found = match &mut self.plug {
            Plug::ConnectUnix(path) => unix::connect(path).ok().map(OwnedFd::from),
            Plug::ListenUnix(listener) => listener.accept(self.now_us).map(OwnedFd::from),
            Plug::ListenTcp(listener) => listener.accept().ok().map(|(stream, _)| OwnedFd::from(stream)),
            Plug::ConnectTcp { address, under_way } => {
                match under_way.take().map_or_else(|| dial(*address), Ok) {
                    Ok(socket) => match arrived(&socket) {
                        Some(true) => Some(socket),
                        Some(false) => None,
                        None => {
                            // Waited for, not tried again.
                            *under_way = Some(socket);
                            self.retry_us = None;
                            return;
                        }
                    },
                    Err(_) => None,
                }
            }
        };
        if matches!(self.plug, Plug::ConnectTcp { .. } | Plug::ListenTcp(_))
            && let Some(socket) = &found
        {
            // A frame is not to wait for the next one. It works without, only slower.
            let _ = sockopt::set_tcp_nodelay(socket, true);
        }
        self.peer = found.and_then(|socket| FrameStream::new(socket).ok());
        let connects = matches!(self.plug, Plug::ConnectUnix(_) | Plug::ConnectTcp { .. });
        self.retry_us = (self.peer.is_none() && connects).then(|| self.now_us.saturating_add(RETRY_US));
        if self.peer.is_some() {
            limited!(info, self.limit, self.now_us, "{}: the peer is there", self.name);
        }
    }

    /// Lets a peer go that is gone.
    fn leave(&mut self) {
        if let Some(peer) = self.peer.take_if(|peer| peer.is_over()) {
            let why = if peer.is_nonsense() { "sent what is no frame" } else { "has left" };
            limited!(info, self.limit, self.now_us, "{}: the peer {why}", self.name);
            // At once, for who listens: the next one may be waiting. Who connects gives the other side a moment.
            let connects = matches!(self.plug, Plug::ConnectUnix(_) | Plug::ConnectTcp { .. });
            self.retry_us = connects.then(|| self.now_us.saturating_add(RETRY_US));
            self.find_peer();
        }
    }
}

/// Begins to connect.
fn dial(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Whether a connection that was begun stands (or failed); `None` while nobody knows.
fn arrived(socket: &OwnedFd) -> Option<bool> {
    match sockopt::socket_error(socket) {
        Ok(Ok(())) => match rustix::net::getpeername(socket) {
            Ok(_) => Some(true),
            Err(Errno::NOTCONN) => None,
            Err(_) => Some(false),
        },
        _ => Some(false),
    }
}

impl FrameEnd for StreamEnd {
    fn send(&mut self, _offload: &Offload, frame: &[u8]) -> Result<(), EndError> {
        let sent = self.peer.as_mut().map_or(Err(EndError::Closed), |peer| peer.send(frame));
        if sent == Err(EndError::Closed) {
            self.losses.sent = self.losses.sent.wrapping_add(1);
            self.leave();
            return Ok(());
        }
        sent
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<(Offload, usize), EndError> {
        let got = self.peer.as_mut().map_or(Err(EndError::WouldBlock), |peer| peer.receive(into));
        match got {
            Ok(len) => Ok((Offload::default(), len)),
            Err(_) => {
                self.leave();
                Err(EndError::WouldBlock)
            }
        }
    }

    fn dropped(&mut self, why: Dropped) {
        self.losses.drop(why);
    }
}

impl HostEnd for StreamEnd {
    fn watch(&self, watches: &mut Watches) {
        match (&self.peer, &self.plug) {
            (Some(peer), _) => peer.watch(watches),
            (None, Plug::ListenUnix(listener)) => listener.watch(watches),
            (None, Plug::ListenTcp(listener)) => _ = watches.add(listener.as_raw_fd(), true, false),
            (None, Plug::ConnectTcp { under_way: Some(socket), .. }) => {
                watches.add(socket.as_raw_fd(), false, true);
            }
            (None, _) => {}
        }
    }

    fn progress(&mut self, now_us: u64) {
        self.now_us = now_us;
        if let Some(peer) = &mut self.peer {
            peer.progress();
        }
        self.leave();
        self.find_peer();
    }

    fn deadline_us(&self) -> Option<u64> {
        match &self.plug {
            _ if self.peer.is_some() => None,
            Plug::ListenUnix(listener) => listener.deadline_us(),
            _ => self.retry_us,
        }
    }

    fn state(&self) -> Cow<'static, str> {
        self.losses.after(if self.peer.is_some() { "peer connected" } else { "no peer" })
    }
}

/// The socket of a [`DatagramEnd`].
enum Datagrams {
    Unix {
        bound: Bound<UnixDatagram>,
        peer: PathBuf,
    },
    /// Connected, so that only the peer is heard.
    Udp(UdpSocket),
}

/// A frame a datagram.
pub(super) struct DatagramEnd {
    socket: Datagrams,
    /// There was nothing to receive, and nothing was heard since.
    waiting: bool,
    /// The peer had no room; when to try again.
    full: bool,
    retry_us: Option<u64>,
    losses: Losses,
}

impl DatagramEnd {
    /// Opens it. The peer need not be there.
    pub(super) fn open(local: &Address, peer: &Address) -> Result<DatagramEnd, Failure> {
        let end = NetworkEnd::Datagram { local: local.clone(), peer: peer.clone() };
        let name = format!("--network {end}");
        let socket = match (local, peer) {
            (Address::Unix(local), Address::Unix(peer)) => {
                Datagrams::Unix { bound: Bound::receive(local, &name)?, peer: peer.clone() }
            }
            (Address::Internet(local), Address::Internet(peer)) => {
                let socket = UdpSocket::bind(local).and_then(|socket| {
                    socket.connect(peer)?;
                    socket.set_nonblocking(true)?;
                    Ok(socket)
                });
                match socket {
                    Ok(socket) => Datagrams::Udp(socket),
                    Err(error) => {
                        return refused(format!("{name}: cannot be used ({error}); choose other addresses"));
                    }
                }
            }
            _ => return Err(Failure::Misuse(format!("{name}: two addresses of one kind are needed"))),
        };
        Ok(DatagramEnd { socket, waiting: false, full: false, retry_us: None, losses: Losses::default() })
    }
}

impl FrameEnd for DatagramEnd {
    fn send(&mut self, _offload: &Offload, frame: &[u8]) -> Result<(), EndError> {
        let sent = match &self.socket {
            Datagrams::Unix { bound, peer } => bound.get().send_to(frame, peer),
            Datagrams::Udp(socket) => socket.send(frame),
        };
        match sent {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.full = true;
                return Err(EndError::WouldBlock);
            }
            // Nobody there, or a frame that the socket refuses: lost, as a datagram may be.
            Err(_) => self.losses.sent = self.losses.sent.wrapping_add(1),
        }
        Ok(())
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<(Offload, usize), EndError> {
        for _ in 0..SKIP {
            let got = match &self.socket {
                Datagrams::Unix { bound, .. } => bound.get().recv(into),
                Datagrams::Udp(socket) => socket.recv(into),
            };
            match got {
                Ok(len) if len >= MIN_FRAME => return Ok((Offload::default(), len)),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // What became of a datagram that was sent: the peer was not there.
                Err(_) => {}
            }
        }
        self.waiting = true;
        Err(EndError::WouldBlock)
    }

    fn dropped(&mut self, why: Dropped) {
        self.losses.drop(why);
    }
}

impl HostEnd for DatagramEnd {
    fn watch(&self, watches: &mut Watches) {
        let fd = match &self.socket {
            Datagrams::Unix { bound, .. } => bound.get().as_raw_fd(),
            Datagrams::Udp(socket) => socket.as_raw_fd(),
        };
        watches.add(fd, self.waiting, false);
    }

    fn progress(&mut self, now_us: u64) {
        self.waiting = false;
        self.retry_us = match self.retry_us {
            Some(at) if at > now_us && self.full => Some(at),
            // Once after a refusal: if it is refused again, it says so again.
            Some(_) => {
                self.full = false;
                None
            }
            None => self.full.then(|| now_us.saturating_add(FULL_US)),
        };
    }

    fn deadline_us(&self) -> Option<u64> {
        // A refusal of which `progress` has not heard: at once.
        self.retry_us.or(self.full.then_some(0))
    }

    fn state(&self) -> Cow<'static, str> {
        self.losses.after(if self.full { "the peer has no room" } else { "open" })
    }
}
