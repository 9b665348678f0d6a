//! Sockets in the file system that are cleaned up: a file that a killed predecessor left is replaced, one that somebody
//! uses is not, and one's own goes when its owner does.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::failure::{Failure, refused};
use crate::observe::{Limit, limited};
use crate::sys::Watches;

/// How long a listener that cannot accept is left alone, in microseconds: five tries a second cost nothing, and whoever
/// waits does not notice.
const PAUSE_US: u64 = 200_000;

/// A bound socket, not blocking, whose file is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Bound<S> {
    socket: S,
    path: PathBuf,
    /// Device and inode of the socket file: only that one is removed.
    file: Option<(u64, u64)>,
}

impl Bound<UnixListener> {
    /// Listens at `path`. `name` is the option and its value, for messages.
    pub(crate) fn listen(path: &Path, name: &str) -> Result<Bound<UnixListener>, Failure> {
        let socket = bind(
            path,
            name,
            |path| UnixListener::bind(path),
            |path| {
                match connect(path) {
                    // Somebody listens and is too busy to accept.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(String::new()),
                    other => other.map(|stream| peer_of(&stream)),
                }
            },
        )?;
        socket.set_nonblocking(true).map_err(|error| Failure::Refused(format!("{name}: {error}")))?;
        Ok(Bound { socket, file: id(path), path: path.into() })
    }
}

impl Bound<UnixDatagram> {
    /// Receives at `path`. `name` is the option and its value, for messages.
    pub(crate) fn receive(path: &Path, name: &str) -> Result<Bound<UnixDatagram>, Failure> {
        let socket = bind(
            path,
            name,
            |path| UnixDatagram::bind(path),
            |path| UnixDatagram::unbound().and_then(|socket| socket.connect(path)).map(|()| String::new()),
        )?;
        socket.set_nonblocking(true).map_err(|error| Failure::Refused(format!("{name}: {error}")))?;
        Ok(Bound { socket, file: id(path), path: path.into() })
    }
}

impl<S> Bound<S> {
    pub(crate) fn get(&self) -> &S {
        &self.socket
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl<S> Drop for Bound<S> {
    fn drop(&mut self) {
        // Somebody may have put another there.
        if self.file.is_some() && id(&self.path) == self.file {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A listening socket of an event loop.
///
/// A client that cannot be accepted, as when the process has no descriptor left, stays in the backlog and keeps the
/// socket readable. So the socket is not watched then, for a while, or the loop would spin.
#[derive(Debug)]
pub(crate) struct Listener {
    bound: Bound<UnixListener>,
    name: String,
    /// The end of a pause.
    pause_us: Option<u64>,
    /// The log was told, until somebody is accepted again.
    told: bool,
    limit: Limit,
}

impl Listener {
    /// Listens at `path`. `name` is the option and its value, for messages.
    pub(crate) fn listen(path: &Path, name: String) -> Result<Listener, Failure> {
        let bound = Bound::listen(path, &name)?;
        Ok(Listener { bound, name, pause_us: None, told: false, limit: Limit::default() })
    }

    pub(crate) fn path(&self) -> &Path {
        self.bound.path()
    }

    /// The next client, as a stream that does not block.
    pub(crate) fn accept(&mut self, now_us: u64) -> Option<UnixStream> {
        if self.pause_us.is_some_and(|until| until > now_us) {
            return None;
        }
        self.pause_us = None;
        let accepted = self.bound.get().accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        match accepted {
            Ok(stream) => {
                self.told = false;
                Some(stream)
            }
            Err(error) => {
                use ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
                if !matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted) {
                    self.pause_us = Some(now_us.saturating_add(PAUSE_US));
                    if !std::mem::replace(&mut self.told, true) {
                        limited!(
                            warn,
                            self.limit,
                            now_us,
                            "{}: somebody waits there and cannot be accepted ({error}); tried again, 'ulimit -n' may be too low",
                            self.name
                        );
                    }
                }
                None
            }
        }
    }

    /// Waits for a client, except in a pause.
    pub(crate) fn watch(&self, watches: &mut Watches) {
        watches.add(self.bound.get().as_raw_fd(), self.pause_us.is_none(), false);
    }

    /// When [`accept`](Self::accept) is due although nothing happens.
    pub(crate) fn deadline_us(&self) -> Option<u64> {
        self.pause_us
    }
}

/// Connects without ever waiting, not even for a listener whose backlog is full. The stream does not block either.
pub(crate) fn connect(path: &Path) -> std::io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn id(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// The process at the other end of a stream, as ` by process N`.
fn peer_of(stream: &UnixStream) -> String {
    let peer = rustix::net::sockopt::socket_peercred(stream.as_fd());
    peer.map(|peer| format!(" by process {}", peer.pid.as_raw_nonzero())).unwrap_or_default()
}

fn bind<S>(
    path: &Path,
    name: &str,
    bind: impl Fn(&Path) -> std::io::Result<S>,
    used: impl Fn(&Path) -> std::io::Result<String>,
) -> Result<S, Failure> {
    let first = bind(path);
    match &first {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        _ => return first.map_err(|error| cannot(name, &error)),
    }
    if !std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        return refused(format!(
            "{name}: is there already and is no socket; choose another path or remove it"
        ));
    }
    match used(path) {
        Ok(by) => refused(format!("{name}: is used{by} already; choose another path or end that one")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            // Nobody listens: what a killed process left behind.
            std::fs::remove_file(path).and_then(|()| bind(path)).map_err(|error| cannot(name, &error))
        }
        Err(error) => refused(format!(
            "{name}: is there already and does not answer ({error}); choose another path or remove it"
        )),
    }
}

fn cannot(name: &str, error: &std::io::Error) -> Failure {
    Failure::Refused(format!(
        "{name}: cannot be made ({error}); check that its directory exists and can be written"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("pmm-unix-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_used_one_is_not() {
        let path = temp("stream");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard library leaves the file, as a killed process does");
        let one = Bound::listen(&path, "--console unix:x").unwrap();
        let text = Bound::<UnixListener>::listen(&path, "--console unix:x").unwrap_err().to_string();
        assert!(text.contains(&format!("by process {}", std::process::id())), "{text}");
        drop(one);
        assert!(!path.exists());

        drop(UnixDatagram::bind(&path).unwrap());
        let one = Bound::receive(&path, "x").unwrap();
        assert!(Bound::<UnixDatagram>::receive(&path, "x").is_err());
        drop(one);
        assert!(!path.exists());
    }

    #[test]
    fn other_files_are_left_alone() {
        let path = temp("file");
        std::fs::write(&path, "precious").unwrap();
        let text = Bound::<UnixListener>::listen(&path, "--doorbell x").unwrap_err().to_string();
        assert!(text.contains("no socket"), "{text}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
        let text = Bound::<UnixListener>::listen(Path::new("/nonexistent/x"), "--doorbell x")
            .unwrap_err()
            .to_string();
        assert!(text.contains("directory exists"), "{text}");
    }

    #[test]
    fn a_successors_socket_outlives_its_predecessor() {
        let path = temp("successor");
        let one = Bound::listen(&path, "x").unwrap();
        std::fs::remove_file(&path).unwrap();
        let two = Bound::listen(&path, "x").unwrap();
        drop(one);
        assert!(path.exists());
        drop(two);
        assert!(!path.exists());
    }
}
