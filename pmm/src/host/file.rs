//! `file:PATH`: console output appended to a file, as a log; no input.
//!
//! Whatever keeps it from being written, a full disk or a broken one, may pass, and what is acknowledged is to be in
//! the file: so output waits, is tried again, and the log says why. A file system that is frozen does not even say so.
//! Thus a thread writes, a little at a time, and what it has not written is not acknowledged.

use std::borrow::Cow;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use rustix::io::Errno;

use super::bounded::{Bounded, Start};
use super::desk::Desk;
use super::trouble::Trouble;
use super::{ByteEnd, EndError, HostEnd};
use crate::failure::Failure;
use crate::open::no_descriptors;
use crate::sys::Watches;

/// A thread that writes to a file, for a device that takes as written only what the kernel has.
pub(super) struct Appender {
    desk: Desk<Vec<u8>, Result<usize, Errno>>,
    trouble: Trouble,
    /// A piece is with the thread.
    given: bool,
    /// What is with the thread is not of this session.
    is_old: bool,
    /// Bytes that the kernel has and the device does not know of.
    taken: usize,
}

impl Appender {
    /// Starts the thread. `sink` writes some of what it is given. `name` is the option and its value, for messages.
    pub(super) fn start(
        name: String,
        mut sink: impl FnMut(&[u8]) -> std::io::Result<usize> + Send + 'static,
    ) -> std::io::Result<Appender> {
        let desk = Desk::start("console", move |piece: Vec<u8>| match sink(&piece) {
            Ok(count) if count > 0 => Ok(count.min(piece.len())),
            // A file that takes nothing and gives no reason has no room.
            Ok(_) => Err(Errno::NOSPC),
            Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        })?;
        Ok(Appender { desk, trouble: Trouble::new(name), given: false, is_old: false, taken: 0 })
    }

    /// Sees what the thread has done.
    fn look(&mut self) {
        let Some(outcome) = self.desk.outcome() else { return };
        self.given = false;
        let is_old = std::mem::take(&mut self.is_old);
        match outcome {
            Ok(count) => {
                self.trouble.passed();
                // The next session will send it again, or not.
                self.taken = if is_old { 0 } else { count };
            }
            Err(error) => self.trouble.met(error),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.look();
        match std::mem::take(&mut self.taken) {
            0 => {}
            count => return Ok(count.min(bytes.len())),
        }
        if !self.given && !self.trouble.is_pausing() {
            self.desk.give(bytes.to_vec());
            self.given = true;
        }
        Err(EndError::WouldBlock)
    }

    pub(super) fn forget(&mut self) {
        (self.is_old, self.taken) = (self.given, 0);
    }

    pub(super) fn watch(&self, watches: &mut Watches) {
        self.desk.watch(watches);
    }

    pub(super) fn progress(&mut self, now_us: u64) {
        self.desk.clear();
        self.look();
        self.trouble.progress(now_us);
    }

    pub(super) fn deadline_us(&self) -> Option<u64> {
        self.trouble.deadline_us()
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.desk.failure(self.trouble.name())
    }

    pub(super) fn state(&self) -> Option<Cow<'static, str>> {
        self.trouble.state()
    }
}

/// A file that is appended to.
pub struct FileEnd(Appender);

impl FileEnd {
    /// Opens or makes the file. It has at most `max` bytes, and so has its predecessor, FILE.old.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if it cannot be written.
    pub fn open(path: &Path, max: Option<u64>) -> Result<FileEnd, Failure> {
        let name = format!("--console file:{}", path.display());
        let mut bounded = Bounded::open(path, Start::Append, max, &name)?;
        let sink = move |piece: &[u8]| {
            // Asked each time: others may cut it short.
            let size = if max.is_some() { bounded.file().metadata()?.len() } else { 0 };
            if bounded.is_full(size, piece.len() as u64) {
                bounded.turn_over()?;
            }
            write_some(bounded.file(), piece)
        };
        Ok(FileEnd(Appender::start(name, sink).map_err(no_descriptors)?))
    }
}

/// Writes the front of a piece.
pub(super) fn write_some(file: &mut File, piece: &[u8]) -> std::io::Result<usize> {
    loop {
        match file.write(piece) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl ByteEnd for FileEnd {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        self.0.write(bytes)
    }

    fn read(&mut self, _into: &mut [u8]) -> Result<usize, EndError> {
        Err(EndError::Closed)
    }

    fn forget(&mut self) {
        self.0.forget();
    }
}

impl HostEnd for FileEnd {
    fn watch(&self, watches: &mut Watches) {
        self.0.watch(watches);
    }

    fn progress(&mut self, now_us: u64) {
        self.0.progress(now_us);
    }

    fn deadline_us(&self) -> Option<u64> {
        self.0.deadline_us()
    }

    fn failure(&self) -> Option<String> {
        self.0.failure()
    }

    fn state(&self) -> Cow<'static, str> {
        self.0.state().unwrap_or("open".into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::trouble::RETRY_US;
    use super::*;
    use rustix::fs::{FileType, Mode, OFlags};
    use std::io::Read;
    use std::path::PathBuf;

    /// Serves until something has come of a write.
    fn outcome(end: &mut FileEnd, bytes: &[u8], now: u64) -> Result<usize, EndError> {
        match end.write(bytes) {
            Err(EndError::WouldBlock) => {}
            other => return other,
        }
        let mut watches = Watches::default();
        end.watch(&mut watches);
        assert!(watches.wait(Some(10_000_000)) > 0, "nothing came of a write in 10 s");
        end.progress(now);
        end.write(bytes)
    }

    fn fifo(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("pmm-file-{}-{name}", std::process::id()));
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        path
    }

    fn reader(path: &Path) -> File {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).unwrap().into()
    }

    #[test]
    fn output_is_appended() {
        let path = std::env::temp_dir().join(format!("pmm-file-{}", std::process::id()));
        std::fs::write(&path, "before ").unwrap();
        let mut end = FileEnd::open(&path, None).unwrap();
        assert_eq!(end.write(b"after"), Err(EndError::WouldBlock), "only when the kernel has it");
        assert_eq!(outcome(&mut end, b"after", 1), Ok(5));
        assert_eq!(end.read(&mut [0]), Err(EndError::Closed));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before after");
        std::fs::remove_file(&path).unwrap();
        let text = FileEnd::open(Path::new("/nonexistent/x"), None).err().unwrap().to_string();
        assert!(text.contains("--console file:/nonexistent/x"), "{text}");
    }

    #[test]
    fn a_panic_of_the_thread_that_writes_is_told_and_nobody_waits_for_it() {
        let sink = |_: &[u8]| panic!("the test's panic");
        let mut end = FileEnd(Appender::start("--console file:x".into(), sink).unwrap());
        assert_eq!(HostEnd::failure(&end), None);
        assert_eq!(outcome(&mut end, b"x", 1), Err(EndError::WouldBlock));
        let text = HostEnd::failure(&end).expect("a sentence");
        assert!(text.contains("--console file:x panicked"), "{text}");
    }

    #[test]
    fn output_in_a_bounded_file_is_in_it_or_in_the_old_one() {
        let dir = std::env::temp_dir().join(format!("pmm-file-bounded-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("log");
        let mut end = FileEnd::open(&path, Some(100)).unwrap();
        for number in 0..50 {
            assert_eq!(outcome(&mut end, format!("line {number:04}\n").as_bytes(), 1), Ok(10));
        }
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        let all = read(dir.join("log.old")) + &read(path);
        assert!(all.len() <= 200 && all.starts_with("line 0030\n") && all.ends_with("line 0049\n"), "{all}");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_full_disk_is_tried_again_once_a_second() {
        let mut end = FileEnd::open(Path::new("/dev/full"), None).unwrap();
        assert_eq!(outcome(&mut end, b"x", 5), Err(EndError::WouldBlock));
        assert_eq!(end.deadline_us(), Some(5 + RETRY_US));
        assert_eq!(end.write(b"x"), Err(EndError::WouldBlock));
        end.progress(6);
        assert!(!end.0.given, "not before a second is over");
        assert_eq!((end.deadline_us(), &*end.state()), (Some(5 + RETRY_US), "no space"));
        end.progress(5 + RETRY_US);
        assert_eq!(end.deadline_us(), None);
        assert_eq!(outcome(&mut end, b"x", 6 + RETRY_US), Err(EndError::WouldBlock));
        assert_eq!(end.deadline_us(), Some(6 + 2 * RETRY_US), "and so on");
    }

    #[test]
    fn what_an_error_kept_out_of_the_file_is_not_taken() {
        let path = fifo("error");
        let one = reader(&path);
        let mut end = FileEnd::open(&path, None).unwrap();
        assert_eq!(outcome(&mut end, b"one", 1), Ok(3));
        // EPIPE, in place of the EIO of a broken disk.
        drop(one);
        assert_eq!(outcome(&mut end, b"two", 7), Err(EndError::WouldBlock));
        assert_eq!(end.0.trouble.told(), Some(Errno::PIPE), "the log was told");
        assert!(end.state().contains("cannot be written ("), "{}", end.state());
        assert_eq!(end.deadline_us(), Some(7 + RETRY_US));
        let mut two = reader(&path);
        end.progress(7 + RETRY_US);
        assert_eq!(outcome(&mut end, b"two", 8 + RETRY_US), Ok(3));
        assert_eq!((end.deadline_us(), &*end.state()), (None, "open"));
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
        let mut end = FileEnd::open(Path::new(name.to_str().unwrap()), None).unwrap();
        drop(controller);
        assert_eq!(outcome(&mut end, b"x", 1), Err(EndError::WouldBlock));
        assert_eq!(end.0.trouble.told(), Some(Errno::IO));
    }

    #[test]
    fn a_file_that_holds_a_write_holds_up_nobody_and_nothing_of_an_old_session_is_acknowledged() {
        let path = fifo("held");
        let mut slow = reader(&path);
        // A FIFO that nobody reads holds a write as a frozen file system does.
        let mut end = FileEnd::open(&path, None).unwrap();
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut filler = File::from(rustix::fs::open(&path, flags, Mode::empty()).unwrap());
        let mut full = 0;
        for size in [4096, 1] {
            while let Ok(count) = filler.write(&vec![b'.'; size]) {
                full += count;
            }
        }
        for _ in 0..1000 {
            assert_eq!(end.write(b"old"), Err(EndError::WouldBlock));
        }
        // The guest starts again while the write is held. What comes of that is not the new session's.
        end.forget();
        assert_eq!(end.write(b"new"), Err(EndError::WouldBlock));
        let mut got = Vec::new();
        let mut taken = None;
        for _ in 0..1000 {
            let mut part = [0; 4096];
            if let Ok(count) = slow.read(&mut part) {
                got.extend_from_slice(&part[..count]);
            }
            if taken.is_some() && got.ends_with(b"new") {
                break;
            }
            let mut watches = Watches::default();
            end.watch(&mut watches);
            watches.wait(Some(10_000));
            end.progress(2);
            if taken.is_none() {
                taken = end.write(b"new").ok();
            }
        }
        assert_eq!(taken, Some(3));
        assert_eq!(got.len(), full + 6, "each piece once, the held one, too");
        assert!(got.ends_with(b".oldnew"));
        std::fs::remove_file(&path).unwrap();
    }
}
