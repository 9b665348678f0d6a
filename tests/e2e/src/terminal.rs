//! A terminal at a console's socket. It never blocks on one direction while the other could go on.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::guard::Guard;

/// Waits until one of the descriptors can be read, or `write` can be written, or the time is over. Says whether
/// anything happened.
pub fn wait(read: &[BorrowedFd<'_>], write: Option<BorrowedFd<'_>>, limit: Duration) -> Result<bool> {
    let mut set: Vec<PollFd> = read.iter().map(|&fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    set.extend(write.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::OUT)));
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    match poll(&mut set, Some(&limit)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error).context("poll"),
    }
}

/// What a [`Terminal::turn`] met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Perhaps bytes came, perhaps bytes went.
    Open,
    /// The PMM is gone; what it had written was read before.
    Closed,
}

/// The terminal.
#[derive(Debug, Default)]
pub struct Terminal {
    stream: Option<UnixStream>,
    outgoing: VecDeque<u8>,
    /// What was read and not taken by anybody yet.
    pub incoming: Vec<u8>,
}

impl Terminal {
    /// Connects to a console. What was not sent to the last one is forgotten; what was read stays.
    pub fn connect(&mut self, path: &Path) -> Result<()> {
        let stream = UnixStream::connect(path).with_context(|| format!("the console {}", path.display()))?;
        stream.set_nonblocking(true)?;
        self.stream = Some(stream);
        self.outgoing.clear();
        Ok(())
    }

    /// Hangs up.
    pub fn close(&mut self) {
        self.stream = None;
        self.outgoing.clear();
    }

    /// Sends bytes as soon as there is room.
    pub fn send(&mut self, bytes: &[u8]) {
        self.outgoing.extend(bytes);
        self.write();
    }

    /// Bytes that wait for room.
    pub fn unsent(&self) -> usize {
        self.outgoing.len()
    }

    fn write(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        while !self.outgoing.is_empty() {
            match stream.write(self.outgoing.as_slices().0) {
                Ok(count @ 1..) => drop(self.outgoing.drain(..count)),
                // Reading tells what is wrong, after what is left to be read.
                _ => return,
            }
        }
    }

    /// Takes what is there, without waiting.
    pub fn read(&mut self) -> Turn {
        let Some(stream) = &mut self.stream else { return Turn::Closed };
        let mut bytes = [0; 1 << 16];
        match stream.read(&mut bytes) {
            Ok(count @ 1..) => self.incoming.extend_from_slice(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            _ => {
                self.close();
                return Turn::Closed;
            }
        }
        Turn::Open
    }

    /// Waits until something can be done, and does it.
    ///
    /// # Errors
    ///
    /// The guard's.
    pub fn turn(&mut self, guard: &Guard) -> Result<Turn> {
        let Some(stream) = &self.stream else { return Ok(Turn::Closed) };
        let write = (!self.outgoing.is_empty()).then(|| stream.as_fd());
        wait(&[stream.as_fd()], write, guard.left()?)?;
        self.write();
        Ok(self.read())
    }

    /// Reads until `text` has come; returns what stood before it, and keeps what stands after it.
    ///
    /// # Errors
    ///
    /// It did not come in time, with the end of what came instead; the console was closed.
    pub fn expect(&mut self, text: &str, seconds: u64) -> Result<Vec<u8>> {
        let mut guard = Guard::new(seconds, format!("'{}' from the console", text.escape_debug()));
        let mut searched = 0;
        loop {
            let from = searched;
            if let Some(at) = find(&self.incoming[from..], text.as_bytes()) {
                let mut rest = self.incoming.split_off(from + at);
                rest.drain(..text.len());
                return Ok(std::mem::replace(&mut self.incoming, rest));
            }
            searched = self.incoming.len().saturating_sub(text.len());
            let (before, unsent) = (self.incoming.len(), self.outgoing.len());
            let turn = self.turn(&guard).with_context(|| self.seen())?;
            if turn == Turn::Closed {
                bail!("the console was closed before it said '{}'; {}", text.escape_debug(), self.seen());
            }
            // As long as bytes flow, the guard waits for the next.
            if (before, unsent) != (self.incoming.len(), self.outgoing.len()) {
                guard.renew();
            }
        }
    }

    fn seen(&self) -> String {
        let tail = &self.incoming[self.incoming.len().saturating_sub(300)..];
        format!("it said last: '{}'", String::from_utf8_lossy(tail).escape_debug())
    }

    /// Types a command at the shell's prompt and returns what it prints.
    ///
    /// # Errors
    ///
    /// The command failed, or did not end.
    pub fn command(&mut self, name: &str, line: &str, seconds: u64) -> Result<String> {
        self.send(format!("{line}\r").as_bytes());
        self.expect(&format!("{line}\n"), seconds)?;
        self.done(name, seconds).with_context(|| format!("'{line}'"))
    }

    /// Waits for the end of a command, and returns what it has printed.
    ///
    /// # Errors
    ///
    /// As for [`Terminal::command`].
    pub fn done(&mut self, name: &str, seconds: u64) -> Result<String> {
        let said = self.expect("> ", seconds)?;
        let said = String::from_utf8_lossy(&said).into_owned();
        match said.strip_suffix(name) {
            Some(said) if said.is_empty() || said.ends_with('\n') => Ok(said.into()),
            _ => bail!("it failed: {said}"),
        }
    }

    /// Takes all whole lines.
    pub fn lines(&mut self) -> Vec<u8> {
        let end = self.incoming.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let rest = self.incoming.split_off(end);
        std::mem::replace(&mut self.incoming, rest)
    }
}

/// Where `needle` begins in `hay`.
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = hay.get(from..)?.iter().position(|&byte| byte == first) {
        if hay[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_terminal_expects_across_pieces_and_keeps_the_rest() {
        let path = std::env::temp_dir().join(format!("e2e-terminal-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let mut terminal = Terminal::default();
        terminal.connect(&path).unwrap();
        let (mut end, _) = listener.accept().unwrap();
        let writer = std::thread::spawn(move || {
            for piece in ["echo x\nhe", "llo\nho", "st> more\nand "] {
                end.write_all(piece.as_bytes()).unwrap();
            }
        });
        assert_eq!(terminal.command("host", "echo x", 10).unwrap(), "hello\n");
        assert_eq!(terminal.expect("\n", 10).unwrap(), b"more");
        writer.join().unwrap();
        let error = terminal.expect("never", 10).unwrap_err();
        assert!(error.to_string().contains("closed before it said 'never'"), "{error}");
        assert_eq!(terminal.incoming, b"and ");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(find(b"aab", b"ab"), Some(1));
    }
}
