//! Files that this program writes for a long time: logs of consoles, and what went through a cable.
//!
//! They are opened once, before a guest says a word, and no path is followed after that. A file with a bound
//! is rotated when it is full: FILE is renamed to FILE.old, in the directory that was opened with it, and a
//! new FILE begins, so there are at most two. The suffix is `.old` and not a number, since the captures of
//! several cards are FILE.1, FILE.2 ...

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::failure::{Failure, refused};
use crate::place::is_among_devices;

/// Rights of what is made here: nobody else's business.
pub(super) const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Why nothing is made in `/dev`.
pub(super) const NO_DEVICE: &str = "is not there, and pmm makes no file in /dev; load the driver that makes this device, or name a file elsewhere";

/// How a file begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Behind what is there. Others may cut it short meanwhile (logrotate's `copytruncate`).
    Append,
    /// Empty.
    Anew,
}

/// A file, and its bound if it has one.
#[derive(Debug)]
pub(super) struct Bounded {
    file: File,
    start: Start,
    bound: Option<Bound>,
}

#[derive(Debug)]
struct Bound {
    dir: OwnedFd,
    name: OsString,
    old: OsString,
    max: u64,
}

impl Bounded {
    /// Opens or makes a file; what it must not exceed, in bytes. `option` is the option and its value, for messages.
    pub(super) fn open(
        path: &Path,
        start: Start,
        max: Option<u64>,
        option: &str,
    ) -> Result<Bounded, Failure> {
        // NONBLOCK so that a FIFO without a reader is an error and not a wait.
        let how = match start {
            Start::Append => OFlags::APPEND,
            Start::Anew => OFlags::TRUNC,
        };
        let is_device = is_among_devices(path);
        let flags = if is_device { FLAGS - OFlags::CREATE } else { FLAGS };
        let file = match rustix::fs::open(path, flags | OFlags::NONBLOCK | how, PRIVATE) {
            Ok(file) => file,
            Err(Errno::NOENT) if is_device => return refused(format!("{option}: {NO_DEVICE}")),
            Err(Errno::LOOP) => {
                return refused(format!(
                    "{option}: is a symbolic link, which somebody else could turn; name the file that it leads to"
                ));
            }
            Err(error) => {
                return refused(format!("{option}: cannot be written ({error}); check path and permissions"));
            }
        };
        // Whoever writes may wait: it is a thread of its own.
        let plain = rustix::fs::fcntl_getfl(&file).and_then(|flags| {
            rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
            rustix::fs::fstat(&file)
        });
        let is_file = match plain {
            Ok(stat) => rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file(),
            Err(error) => return refused(format!("{option}: cannot be used ({error}); choose another path")),
        };
        let bound = match max {
            None => None,
            // Its old one would be made there.
            Some(_) if !is_file || is_device => {
                return refused(format!(
                    "{option}: is no regular file outside /dev, and only one can have a bound; leave max= out"
                ));
            }
            Some(max) => Some(Bound::of(path, max, option)?),
        };
        Ok(Bounded { file: file.into(), start, bound })
    }

    /// The file.
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Returns whether so many bytes more would exceed the bound of a file that has so many.
    pub(super) fn is_full(&self, size: u64, more: u64) -> bool {
        self.bound.as_ref().is_some_and(|bound| size != 0 && size.saturating_add(more) > bound.max)
    }

    /// Keeps the file as the old one and begins a new one.
    ///
    /// # Errors
    ///
    /// What the file system said; the file is the same as before then.
    pub(super) fn turn_over(&mut self) -> rustix::io::Result<()> {
        let Some(Bound { dir, name, old, .. }) = &self.bound else { return Ok(()) };
        let own = rustix::fs::fstat(&self.file)?;
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino) => {
                rustix::fs::renameat(dir, name, dir, old)?;
            }
            // Somebody else has moved it away, as one does with logs.
            Err(Errno::NOENT) => {}
            // And has put another there, which is not ours to move.
            Ok(_) => return Err(Errno::EXIST),
            Err(error) => return Err(error),
        }
        let how = if self.start == Start::Append { OFlags::APPEND } else { OFlags::empty() };
        self.file = rustix::fs::openat(dir, name, FLAGS | OFlags::EXCL | how, PRIVATE)?.into();
        Ok(())
    }
}

const FLAGS: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::CLOEXEC).union(OFlags::NOCTTY).union(OFlags::NOFOLLOW);

impl Bound {
    fn of(path: &Path, max: u64, option: &str) -> Result<Bound, Failure> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(parent, flags, Mode::empty()).and_then(|dir| {
            rustix::fs::accessat(&dir, ".", rustix::fs::Access::WRITE_OK, AtFlags::EACCESS)?;
            Ok(dir)
        });
        match (dir, path.file_name()) {
            (Ok(dir), Some(name)) => {
                let mut old = name.to_os_string();
                old.push(".old");
                Ok(Bound { dir, name: name.into(), old, max })
            }
            (Err(error), _) => refused(format!(
                "{option}: its directory cannot be written ({error}), where the file becomes FILE.old when it is full; leave max= out"
            )),
            (Ok(_), None) => refused(format!("{option}: is no name of a file; choose another path")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    fn directory(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("pmm-bounded-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_full_file_becomes_the_old_one_and_is_nobody_elses() {
        let dir = directory("turn");
        let (path, old) = (dir.join("log"), dir.join("log.old"));
        std::fs::write(&old, "of a run before").unwrap();
        let mut bounded = Bounded::open(&path, Start::Append, Some(8), "--x").unwrap();
        assert!(!bounded.is_full(0, 100), "nothing would ever fit");
        bounded.file().write_all(b"12345").unwrap();
        assert!(!bounded.is_full(5, 3) && bounded.is_full(5, 4));
        bounded.turn_over().unwrap();
        bounded.file().write_all(b"67").unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!((read(&old), read(&path)), ("12345".into(), "67".into()));
        for file in [&path, &old] {
            assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        }
        // Moved away by somebody else, and replaced by something that is not ours.
        std::fs::rename(&path, dir.join("away")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(bounded.turn_over(), Err(Errno::EXIST));
        bounded.file().write_all(b"8").unwrap();
        std::fs::remove_file(&path).unwrap();
        bounded.turn_over().unwrap();
        bounded.file().write_all(b"9").unwrap();
        assert_eq!((read(&dir.join("away")), read(&path)), ("678".into(), "9".into()));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_link_is_not_followed_and_only_a_file_has_a_bound() {
        let dir = directory("link");
        let (path, precious) = (dir.join("log"), dir.join("precious"));
        std::fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        for start in [Start::Append, Start::Anew] {
            let text = Bounded::open(&path, start, None, "--x").unwrap_err().to_string();
            assert!(text.contains("is a symbolic link"), "{text}");
        }
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
        let text =
            Bounded::open(Path::new("/dev/null"), Start::Append, Some(8), "--x").unwrap_err().to_string();
        assert!(text.contains("no regular file"), "{text}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
