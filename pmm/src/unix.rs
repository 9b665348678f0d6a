//! Sockets in the file system that are cleaned up: a file that a killed predecessor left is replaced, one that somebody
//! uses is not, and one's own goes when its owner does. Only their owner may connect to them, whatever the umask is.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::failure::{Failure, refused};
use crate::observe::{Limit, limited};
use crate::sys::Watches;

/// How long a listener that cannot accept is left alone, in microseconds: five tries a second cost nothing, and whoever
/// waits does not notice.
const PAUSE_US: u64 = 200_000;
/// How often a directory is asked for its lock, and how long one try is from the next, in microseconds: five seconds, of
/// which another `pmm` needs a few microseconds.
const LOCK_TRIES: u32 = 500;
/// The same where others may hold the lock for ever.
const LOCK_TRIES_BESIDE_OTHERS: u32 = 50;
const LOCK_PAUSE_US: u64 = 10_000;
/// What group and others may do with a directory.
const OTHERS_READ: u32 = 0o044;
const OTHERS_WRITE: u32 = 0o022;
/// What a socket's owner may do with it, and nobody else.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A name in a directory that is held open: nobody can put another directory in the place of this one.
#[derive(Debug)]
pub(crate) struct Spot {
    directory: OwnedFd,
    name: OsString,
}

impl Spot {
    /// The last name of a path, in its directory as it is now.
    pub(crate) fn of(path: &Path) -> rustix::io::Result<Spot> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())?;
        Ok(Spot { directory, name: path.file_name().ok_or(Errno::INVAL)?.into() })
    }

    /// A name in a directory that is open already.
    pub(crate) fn in_directory(directory: &OwnedFd, name: &OsStr) -> std::io::Result<Spot> {
        Ok(Spot { directory: directory.try_clone()?, name: name.into() })
    }

    /// The file of this name, which is not opened and, if it is a link, not followed.
    pub(crate) fn look(&self) -> rustix::io::Result<(OwnedFd, Stat)> {
        look(&self.directory, &self.name)
    }

    /// Connects to the socket of this name with `more` behind it. It is looked at first, and the same file is connected
    /// to: neither a link nor whatever takes its place meanwhile leads anywhere else.
    pub(crate) fn dial(&self, more: &str) -> rustix::io::Result<UnixStream> {
        let mut name = self.name.clone();
        name.push(more);
        let (file, stat) = look(&self.directory, &name)?;
        dial(&file, &stat)
    }

    /// Removes the file of this name.
    fn remove(&self) -> rustix::io::Result<()> {
        rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty())
    }

    /// Removes the socket of this name if nobody listens at it. Whether it did.
    pub(crate) fn sweep(&self) -> bool {
        let Ok(_lock) = self.lock() else { return false };
        let dead = self.dial("").err() == Some(Errno::CONNREFUSED);
        dead && self.remove().is_ok()
    }

    /// Keeps every other `pmm` from making or removing a socket in this directory. Between a look at a socket that is
    /// dead and its removal another one could be born there; between a socket's birth and its first `listen` it looks
    /// dead.
    ///
    /// A lock file beside each socket would do, too, and would be left behind. Whoever may read the directory can hold
    /// this one for ever. So where others may read and not write, a lock that does not come is done without: it must not
    /// keep a `pmm` from starting. Where they may write, they could take the socket's name as well.
    fn lock(&self) -> Result<Option<OwnedFd>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // A directory that may be written and not read cannot be locked, nor can one of some file systems.
        let Ok(directory) = rustix::fs::openat(&self.directory, ".", flags, Mode::empty()) else {
            return Ok(None);
        };
        let others = rustix::fs::fstat(&directory)
            .is_ok_and(|stat| stat.st_mode & OTHERS_READ != 0 && stat.st_mode & OTHERS_WRITE == 0);
        for _ in 0..if others { LOCK_TRIES_BESIDE_OTHERS } else { LOCK_TRIES } {
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(directory)),
                Err(Errno::AGAIN | Errno::INTR) => _ = Watches::default().wait(Some(LOCK_PAUSE_US)),
                Err(_) => return Ok(None),
            }
        }
        if others { Ok(None) } else { Err(Errno::AGAIN) }
    }
}

fn look(directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<(OwnedFd, Stat)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    Ok((file, stat))
}

/// Connects to a socket that was looked at, without ever waiting.
///
/// # Errors
///
/// `NOTSOCK` if it is none.
pub(crate) fn dial(file: &OwnedFd, stat: &Stat) -> rustix::io::Result<UnixStream> {
    if !is_socket(stat) {
        return Err(Errno::NOTSOCK);
    }
    // The kernel connects to paths alone; this one means the open file, whatever its name has become.
    stream_to(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
}

fn is_socket(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Socket
}

fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// A bound socket, not blocking, whose file is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Bound<S> {
    socket: S,
    path: PathBuf,
    spot: Spot,
    /// Device and inode of the socket file: only that one is removed.
    file: Option<(u64, u64)>,
}

impl Bound<UnixListener> {
    /// Listens at `path`. `name` is the option and its value, for messages.
    pub(crate) fn listen(path: &Path, name: &str) -> Result<Bound<UnixListener>, Failure> {
        bind(path, name, SocketType::STREAM)
    }
}

impl Bound<UnixDatagram> {
    /// Receives at `path`. `name` is the option and its value, for messages.
    pub(crate) fn receive(path: &Path, name: &str) -> Result<Bound<UnixDatagram>, Failure> {
        bind(path, name, SocketType::DGRAM)
    }
}

impl<S> Bound<S> {
    pub(crate) fn get(&self) -> &S {
        &self.socket
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn file_is_there(&self) -> bool {
        self.file.is_some() && self.spot.look().ok().map(|(_, stat)| id(&stat)) == self.file
    }
}

impl<S> Drop for Bound<S> {
    fn drop(&mut self) {
        // Somebody may have put another there. What is left without the lock, the next one replaces.
        if let Ok(_lock) = self.spot.lock()
            && self.file_is_there()
        {
            let _ = self.spot.remove();
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

    /// Where it listens, as a name in an open directory.
    pub(crate) fn spot(&self) -> &Spot {
        &self.bound.spot
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

/// Connects without ever waiting, not even for a listener whose backlog is full. The stream does not block either. A
/// symbolic link in the socket's place is not followed: somebody else may have put it there since the start.
pub(crate) fn connect(path: &Path) -> std::io::Result<UnixStream> {
    Ok(Spot::of(path)?.dial("")?)
}

fn socket(kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)
}

fn stream_to(path: &Path) -> rustix::io::Result<UnixStream> {
    let socket = socket(SocketType::STREAM)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// The process at the other end of a stream, as ` by process N`.
fn peer_of(stream: &UnixStream) -> String {
    let peer = rustix::net::sockopt::socket_peercred(stream.as_fd());
    peer.map(|peer| format!(" by process {}", peer.pid.as_raw_nonzero())).unwrap_or_default()
}

/// Makes a socket at `path`, and takes the place of one that is dead.
fn bind<S: From<OwnedFd>>(path: &Path, name: &str, kind: SocketType) -> Result<Bound<S>, Failure> {
    let cannot = |error: Errno| {
        Failure::Refused(format!(
            "{name}: cannot be made ({error}); check that its directory exists and can be written"
        ))
    };
    let address = SocketAddrUnix::new(path).map_err(cannot)?;
    let spot = Spot::of(path).map_err(cannot)?;
    let Ok(lock) = spot.lock() else {
        return refused(format!(
            "{name}: another program keeps its directory locked; end that one or choose another path"
        ));
    };
    let bound = socket(kind).map_err(cannot)?;
    // What a socket may be used for goes over to its file; so that is never open to others, not even for a moment.
    rustix::fs::fchmod(&bound, PRIVATE).map_err(cannot)?;
    match rustix::net::bind(&bound, &address) {
        Err(Errno::ADDRINUSE) => {
            make_room(&spot, name, kind)?;
            rustix::net::bind(&bound, &address).map_err(cannot)?;
        }
        other => other.map_err(cannot)?,
    }
    if kind == SocketType::STREAM {
        // As many as the machine lets wait.
        rustix::net::listen(&bound, -1).map_err(cannot)?;
    }
    let mut file = None;
    if let Ok((fd, stat)) = spot.look()
        && is_socket(&stat)
    {
        file = Some(id(&stat));
        // A umask may have taken more than it should.
        if Mode::from_raw_mode(stat.st_mode) != PRIVATE {
            let _ = rustix::fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), PRIVATE);
        }
    }
    drop(lock);
    Ok(Bound { socket: bound.into(), path: path.into(), spot, file })
}

/// Removes a dead socket, and refuses anything else.
fn make_room(spot: &Spot, name: &str, kind: SocketType) -> Result<(), Failure> {
    let (file, stat) = match spot.look() {
        Err(Errno::NOENT) => return Ok(()),
        Ok(found) if is_socket(&found.1) => found,
        _ => {
            return refused(format!(
                "{name}: is there already and is no socket; choose another path or remove it"
            ));
        }
    };
    let used = match kind {
        SocketType::STREAM => dial(&file, &stat).map(|stream| peer_of(&stream)),
        _ => socket(kind).and_then(|socket| {
            let file = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::net::connect(&socket, &SocketAddrUnix::new(file)?)?;
            Ok(String::new())
        }),
    };
    // Somebody listens and is too busy to accept.
    let used = if used == Err(Errno::AGAIN) { Ok(String::new()) } else { used };
    match used {
        Ok(by) => refused(format!("{name}: is used{by} already; choose another path or end that one")),
        // Nobody listens: what a killed process left behind.
        Err(Errno::CONNREFUSED) => spot.remove().map_err(|error| {
            Failure::Refused(format!("{name}: what is left there cannot be removed ({error})"))
        }),
        Err(error) => refused(format!(
            "{name}: is there already and does not answer ({error}); choose another path or remove it"
        )),
    }
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
    fn a_socket_is_closed_to_others_before_it_has_a_file() {
        let path = temp("mode");
        let bound = Bound::listen(&path, "x").unwrap();
        // The file was made with these rights; what was corrected there later does not show here.
        let stat = rustix::fs::fstat(&bound.socket).unwrap();
        assert_eq!(Mode::from_raw_mode(stat.st_mode), PRIVATE);
        drop(bound);
    }

    #[test]
    fn a_link_in_the_place_of_a_peers_socket_is_not_followed() {
        let (path, link) = (temp("peer"), temp("peer-link"));
        let listener = Bound::listen(&path, "x").unwrap();
        connect(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let followed = connect(&link).is_ok();
        std::fs::remove_file(&link).unwrap();
        assert!(!followed);
        drop(listener);
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
    fn one_that_is_born_at_this_moment_is_not_taken_for_a_dead_one() {
        let path = temp("birth");
        let (told, is_told) = std::sync::mpsc::channel();
        // Another starter: it has its socket, and does not listen yet.
        let spot = Spot::of(&path).unwrap();
        let lock = spot.lock().unwrap();
        let newborn = socket(SocketType::STREAM).unwrap();
        rustix::net::bind(&newborn, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let starter = std::thread::spawn({
            let path = path.clone();
            move || told.send(Bound::<UnixListener>::listen(&path, "x").map(drop)).unwrap()
        });
        // The window is an answer that does not come. Without one, it has not looked yet, which is no proof.
        let early = is_told.recv_timeout(std::time::Duration::from_millis(100));
        assert!(early.is_err(), "{early:?}");
        rustix::net::listen(&newborn, 1).unwrap();
        drop(lock);
        let text = is_told.recv().unwrap().unwrap_err().to_string();
        assert!(text.contains("is used"), "{text}");
        starter.join().unwrap();
        connect(&path).expect("the newborn is alive");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn whoever_may_only_read_a_directory_keeps_nobody_from_starting() {
        use std::os::unix::fs::PermissionsExt;
        let directory = temp("read");
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
        // What any account can do that may read it, and for ever.
        let stranger = std::fs::File::open(&directory).unwrap();
        rustix::fs::flock(&stranger, FlockOperation::NonBlockingLockExclusive).unwrap();
        let bound = Bound::<UnixListener>::listen(&directory.join("s"), "x").map_err(|why| why.to_string());
        connect(&directory.join("s")).expect("it listens");
        drop(bound);
        assert!(!directory.join("s").exists(), "and is removed at the end");
        std::fs::remove_dir(&directory).unwrap();
    }

    #[test]
    fn of_many_who_start_at_once_one_wins_and_can_be_reached() {
        let path = temp("race");
        for _ in 0..50 {
            drop(UnixListener::bind(&path).unwrap());
            let starters: Vec<_> = (0..4)
                .map(|_| {
                    let path = path.clone();
                    std::thread::spawn(move || Bound::<UnixListener>::listen(&path, "x").ok())
                })
                .collect();
            let bound: Vec<_> = starters.into_iter().filter_map(|starter| starter.join().unwrap()).collect();
            assert_eq!(bound.len(), 1);
            connect(&path).expect("the winner can be reached");
        }
        assert!(!path.exists());
    }

    #[test]
    fn a_link_is_dialled_by_nobody() {
        let (path, link) = (temp("outside"), temp("outside_7"));
        let listener = UnixListener::bind(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let spot = Spot::of(&path).unwrap();
        assert!(spot.dial("").is_ok());
        assert_eq!(spot.dial("_7").err(), Some(Errno::NOTSOCK));
        std::fs::remove_file(&link).unwrap();
        std::fs::write(&link, "no socket").unwrap();
        assert_eq!(spot.dial("_7").err(), Some(Errno::NOTSOCK));
        std::fs::remove_file(&link).unwrap();
        assert_eq!(spot.dial("_7").err(), Some(Errno::NOENT));
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_ok() && listener.accept().is_err(), "one call has come");
        std::fs::remove_file(&path).unwrap();
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
