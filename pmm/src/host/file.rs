//! `file:PATH`: console output appended to a file, as a log; no input.
//!
//! Whatever keeps it from being written, a full disk or a broken one, may pass, and what is acknowledged is to be in
//! the file: so output waits, is tried again, and the log says why.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{ByteEnd, EndError, HostEnd};
use crate::failure::{Failure, refused};
use crate::observe::{Limit, limited};
use crate::sys::Watches;

/// How often a file that cannot be written is tried again, in microseconds.
const RETRY_US: u64 = 1_000_000;

/// A file that is appended to. While it cannot be, output waits and is tried again once a second.
#[derive(Debug)]
pub struct FileEnd {
    file: OwnedFd,
    name: String,
    /// Why the last write failed; the next `progress` makes it a deadline, and tells.
    trouble: Option<Errno>,
    /// The trouble that was told of, until a write works again.
    told: Option<Errno>,
    limit: Limit,
    retry_us: Option<u64>,
}

impl FileEnd {
    /// Opens or makes the file.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if it cannot be written.
    pub fn open(path: &Path) -> Result<FileEnd, Failure> {
        // NONBLOCK so that a FIFO without a reader is an error and not a wait.
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::CLOEXEC
            | OFlags::NONBLOCK
            | OFlags::NOCTTY;
        let name = format!("--console file:{}", path.display());
        match rustix::fs::open(path, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => {
                let limit = Limit::default();
                Ok(FileEnd { file, name, trouble: None, told: None, limit, retry_us: None })
            }
            Err(error) => refused(format!("{name}: cannot be written ({error}); check path and permissions")),
        }
    }
}

impl ByteEnd for FileEnd {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        if bytes.is_empty() {
            return Ok(0);
        }
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.file, bytes)) {
            Ok(n) if n > 0 => {
                self.trouble = None;
                Ok(n)
            }
            // A file that takes nothing and gives no reason has no room.
            other => {
                self.trouble = Some(other.err().unwrap_or(Errno::NOSPC));
                Err(EndError::WouldBlock)
            }
        }
    }

    fn read(&mut self, _into: &mut [u8]) -> Result<usize, EndError> {
        Err(EndError::Closed)
    }
}

impl HostEnd for FileEnd {
    fn watch(&self, _watches: &mut Watches) {}

    fn progress(&mut self, now_us: u64) {
        match self.trouble {
            None if self.told.take().is_some() => {
                limited!(info, self.limit, now_us, "{}: can be written again", self.name);
            }
            Some(error) if self.told != Some(error) => {
                self.told = Some(error);
                limited!(
                    warn,
                    self.limit,
                    now_us,
                    "{}: cannot be written ({error}); the guest's output waits, and is tried again once a second",
                    self.name
                );
            }
            _ => {}
        }
        self.retry_us = match self.retry_us {
            _ if self.trouble.is_none() => None,
            Some(at) if at > now_us => Some(at),
            _ => Some(now_us.saturating_add(RETRY_US)),
        };
    }

    fn deadline_us(&self) -> Option<u64> {
        match (self.trouble, self.retry_us) {
            // Trouble that has come or gone, and no `progress` since: at once.
            (Some(_), at) => Some(at.unwrap_or(0)),
            (None, _) => self.told.map(|_| 0),
        }
    }

    fn state(&self) -> Cow<'static, str> {
        match self.trouble {
            None => "open".into(),
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => "no space".into(),
            Some(error) => format!("cannot be written ({error})").into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::FileType;

    #[test]
    fn output_is_appended() {
        let path = std::env::temp_dir().join(format!("pmm-file-{}", std::process::id()));
        std::fs::write(&path, "before ").unwrap();
        let mut end = FileEnd::open(&path).unwrap();
        assert_eq!(end.write(b"after"), Ok(5));
        assert_eq!(end.read(&mut [0]), Err(EndError::Closed));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before after");
        std::fs::remove_file(&path).unwrap();
        let text = FileEnd::open(Path::new("/nonexistent/x")).unwrap_err().to_string();
        assert!(text.contains("--console file:/nonexistent/x"), "{text}");
    }

    #[test]
    fn a_full_disk_is_tried_again_once_a_second() {
        let mut end = FileEnd::open(Path::new("/dev/full")).unwrap();
        assert_eq!(end.write(b"x"), Err(EndError::WouldBlock));
        assert_eq!(end.deadline_us(), Some(0));
        end.progress(5);
        assert_eq!(end.deadline_us(), Some(5 + RETRY_US));
        assert_eq!(end.write(b"x"), Err(EndError::WouldBlock));
        assert_eq!((end.deadline_us(), &*end.state()), (Some(5 + RETRY_US), "no space"));
    }

    #[test]
    fn what_an_error_kept_out_of_the_file_is_not_taken() {
        use std::io::Read;
        let path = std::env::temp_dir().join(format!("pmm-file-fifo-{}", std::process::id()));
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let reader = || {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            std::fs::File::from(rustix::fs::open(&path, flags, Mode::empty()).unwrap())
        };
        let one = reader();
        let mut end = FileEnd::open(&path).unwrap();
        assert_eq!(end.write(b"one"), Ok(3));
        // EPIPE, in place of the EIO of a broken disk.
        drop(one);
        assert_eq!(end.write(b"two"), Err(EndError::WouldBlock));
        end.progress(7);
        assert_eq!(end.told, Some(Errno::PIPE), "the log was told");
        assert!(end.state().contains("cannot be written ("), "{}", end.state());
        assert_eq!(end.deadline_us(), Some(7 + RETRY_US));
        let mut two = reader();
        assert_eq!(end.write(b"two"), Ok(3));
        assert_eq!((end.deadline_us(), &*end.state()), (Some(0), "open"));
        end.progress(8 + RETRY_US);
        assert_eq!(end.deadline_us(), None);
        let mut got = [0; 8];
        let got = two.read(&mut got).map(|count| &got[..count]).unwrap();
        assert_eq!(got, b"onetwo", "nothing is lost and nothing is doubled");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn an_input_output_error_is_no_acknowledgement() {
        let controller =
            rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        rustix::pty::unlockpt(&controller).unwrap();
        let name = rustix::pty::ptsname(&controller, Vec::new()).unwrap();
        let mut end = FileEnd::open(Path::new(name.to_str().unwrap())).unwrap();
        drop(controller);
        assert_eq!(end.write(b"x"), Err(EndError::WouldBlock));
        assert_eq!(end.trouble, Some(Errno::IO));
    }
}
