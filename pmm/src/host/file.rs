//! `file:PATH`: console output appended to a file, as a log; no input.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{ByteEnd, EndError, HostEnd};
use crate::failure::{Failure, refused};
use crate::sys::Watches;

/// How often a full disk is tried again, in microseconds.
const RETRY_US: u64 = 1_000_000;

/// A file that is appended to. When the disk is full, output waits and is tried again once a second.
#[derive(Debug)]
pub struct FileEnd {
    file: OwnedFd,
    /// Set by a write that found no space; the next `progress` makes it a deadline.
    full: bool,
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
        match rustix::fs::open(path, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => Ok(FileEnd { file, full: false, retry_us: None }),
            Err(error) => refused(format!(
                "--console file:{}: cannot be written ({error}); check path and permissions",
                path.display()
            )),
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
                self.full = false;
                Ok(n)
            }
            Ok(_) | Err(Errno::AGAIN | Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => {
                self.full = true;
                Err(EndError::WouldBlock)
            }
            Err(_) => Err(EndError::Closed),
        }
    }

    fn read(&mut self, _into: &mut [u8]) -> Result<usize, EndError> {
        Err(EndError::Closed)
    }
}

impl HostEnd for FileEnd {
    fn watch(&self, _watches: &mut Watches) {}

    fn progress(&mut self, now_us: u64) {
        self.retry_us = match self.retry_us {
            _ if !self.full => None,
            Some(at) if at > now_us => Some(at),
            _ => Some(now_us.saturating_add(RETRY_US)),
        };
    }

    fn deadline_us(&self) -> Option<u64> {
        // Full, and no time set yet: at once.
        if self.full { Some(self.retry_us.unwrap_or(0)) } else { None }
    }

    fn state(&self) -> &'static str {
        if self.full { "no space" } else { "open" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!((end.deadline_us(), end.state()), (Some(5 + RETRY_US), "no space"));
    }
}
