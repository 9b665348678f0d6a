//! `stdio`: the guest's console is this terminal, or the pipes that stand in its place.
//!
//! On a terminal every key goes to the guest, Ctrl-C too, except for a prefix that the first line names: Ctrl-A x ends
//! the program, Ctrl-A h helps, Ctrl-A Ctrl-A is a Ctrl-A. So the terminal is read even when no guest wants input, into
//! a short type-ahead; a pipe is read only when the guest has room, and its bytes are not looked at.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, Once};

use rustix::fs::OFlags;
use rustix::termios::{InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios};

use super::nonblocking::NonBlocking;
use super::{ByteEnd, EndError, HostEnd};
use crate::failure::Failure;
use crate::sys::Watches;

/// Keys that are kept for a guest that does not read, as many as a terminal's own queue has.
const TYPE_AHEAD: usize = 4096;
const CTRL_A: u8 = 1;
const BELL: u8 = 7;
const HELP: &str = "\n  Ctrl-A x       end pmm: a demo ends with it, any other guest waits for the next one\n  Ctrl-A h       this help\n  Ctrl-A Ctrl-A  a Ctrl-A for the guest\n  anything else  goes to the guest, Ctrl-C too\n";

/// Standard input and output.
#[derive(Debug)]
pub struct StdioEnd {
    input: NonBlocking,
    output: NonBlocking,
    terminal: Option<Keys>,
}

/// What was typed on a terminal.
#[derive(Debug)]
struct Keys {
    ahead: VecDeque<u8>,
    /// Ctrl-A was the last key.
    prefix: bool,
    end: bool,
    _raw: RawMode,
}

impl StdioEnd {
    /// Takes this process's standard input and output, and sets a terminal to raw mode until it is dropped.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if either is closed.
    pub fn open() -> Result<StdioEnd, Failure> {
        StdioEnd::over(std::io::stdin().as_fd(), std::io::stdout().as_fd()).map_err(|error| {
            Failure::Refused(format!("--console stdio: standard input or output cannot be used ({error})"))
        })
    }

    /// The same over other descriptors.
    fn over(input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> std::io::Result<StdioEnd> {
        let mut terminal = None;
        let output = NonBlocking::shared(output, OFlags::WRONLY)?;
        let shared = NonBlocking::shared(input, OFlags::RDONLY)?;
        if input.is_terminal() {
            let raw = RawMode::enter(input)?;
            terminal = Some(Keys { ahead: VecDeque::new(), prefix: false, end: false, _raw: raw });
        }
        Ok(StdioEnd { input: shared, output, terminal })
    }

    /// Reads what was typed and acts on the prefix.
    fn pump(&mut self) {
        let Some(keys) = &mut self.terminal else { return };
        let mut typed = [0; 256];
        while let Ok(got) = self.input.read(&mut typed) {
            for &key in &typed[..got] {
                let pass = match (std::mem::take(&mut keys.prefix), key) {
                    (false, CTRL_A) => {
                        keys.prefix = true;
                        false
                    }
                    (true, b'x' | b'X' | 0x18) => {
                        keys.end = true;
                        // The shell's prompt goes on a line of its own.
                        crate::observe::log::say("\n");
                        false
                    }
                    (true, b'h' | b'H' | b'?' | 8) => {
                        crate::observe::log::say(HELP);
                        false
                    }
                    // After the prefix only a second Ctrl-A means itself; any other key was a slip.
                    (prefix, key) => !prefix || key == CTRL_A,
                };
                if pass && keys.ahead.len() < TYPE_AHEAD {
                    keys.ahead.push_back(key);
                } else if pass {
                    let _ = self.output.write(&[BELL]);
                }
            }
        }
    }
}

impl ByteEnd for StdioEnd {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        self.output.write(bytes)
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        let Some(keys) = &mut self.terminal else { return self.input.read(into) };
        let count = into.len().min(keys.ahead.len());
        for (slot, key) in into.iter_mut().zip(keys.ahead.drain(..count)) {
            *slot = key;
        }
        match count {
            0 if !into.is_empty() && self.input.input_closed() => Err(EndError::Closed),
            0 if !into.is_empty() => Err(EndError::WouldBlock),
            count => Ok(count),
        }
    }
}

impl HostEnd for StdioEnd {
    fn watch(&self, watches: &mut Watches) {
        self.input.watch(watches);
        self.output.watch(watches);
    }

    fn progress(&mut self, _now_us: u64) {
        self.input.forget();
        self.output.forget();
        if self.terminal.is_some() {
            self.pump();
            self.input.expect_input();
        }
    }

    fn wants_to_end(&self) -> bool {
        self.terminal.as_ref().is_some_and(|keys| keys.end)
    }

    fn state(&self) -> Cow<'static, str> {
        match (self.terminal.is_some(), self.input.input_closed(), self.output.output_closed()) {
            (_, _, true) => "output closed",
            (_, true, _) => "input ended",
            (true, ..) => "terminal",
            (false, ..) => "open",
        }
        .into()
    }

    fn announcement(&self) -> Option<String> {
        self.terminal
            .as_ref()
            .map(|_| "the guest's console is this terminal: Ctrl-A x ends, Ctrl-A h helps".into())
    }
}

/// The terminal as it was found, for [`restore`]. Global, because so is a terminal, and because a panic hook has nothing
/// else to go by.
static FOUND: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// Keeps a terminal raw until it is dropped or the program panics.
#[derive(Debug)]
struct RawMode;

impl RawMode {
    fn enter(terminal: BorrowedFd<'_>) -> std::io::Result<RawMode> {
        let found = rustix::termios::tcgetattr(terminal)?;
        let mut raw = found.clone();
        raw.input_modes -= InputModes::BRKINT
            | InputModes::ICRNL
            | InputModes::IGNCR
            | InputModes::INLCR
            | InputModes::ISTRIP
            | InputModes::IXON
            | InputModes::PARMRK;
        raw.local_modes -= LocalModes::ECHO
            | LocalModes::ECHONL
            | LocalModes::ICANON
            | LocalModes::IEXTEN
            | LocalModes::ISIG;
        // Output stays cooked: a guest that ends its lines with a bare line feed, and our own log, read well.
        raw.output_modes |= OutputModes::OPOST;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                before(info);
            }));
        });
        if let Ok(mut slot) = FOUND.lock() {
            *slot = Some((terminal.try_clone_to_owned()?, found));
        }
        rustix::termios::tcsetattr(terminal, OptionalActions::Now, &raw)?;
        Ok(RawMode)
    }
}

/// Puts the terminal back as it was found, if it was changed.
fn restore() {
    if let Ok(mut slot) = FOUND.try_lock()
        && let Some((terminal, found)) = slot.take()
    {
        let _ = rustix::termios::tcsetattr(terminal, OptionalActions::Now, &found);
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    fn wait(end: &mut StdioEnd) {
        let mut watches = Watches::default();
        end.watch(&mut watches);
        assert!(watches.wait(Some(10_000_000)) > 0, "nothing happened at standard input in 10 s");
        end.progress(0);
    }

    #[test]
    fn pipes_pass_every_byte() {
        let (input, mut feed) = std::io::pipe().unwrap();
        let (mut drain, output) = std::io::pipe().unwrap();
        let mut end = StdioEnd::over(input.as_fd(), output.as_fd()).unwrap();
        let mut into = [0; 8];
        assert_eq!(end.read(&mut into), Err(EndError::WouldBlock));
        feed.write_all(b"\x01xy").unwrap();
        wait(&mut end);
        assert_eq!(end.read(&mut into), Ok(3));
        assert!(!end.wants_to_end());
        assert_eq!(end.write(b"out"), Ok(3));
        drain.read_exact(&mut into[..3]).unwrap();
        drop(feed);
        // A test beside this one that starts a process holds a copy of the pipe for an instant.
        while end.read(&mut into) == Err(EndError::WouldBlock) {
            wait(&mut end);
        }
        assert_eq!(end.read(&mut into), Err(EndError::Closed));
        assert_eq!((&*end.state(), end.write(b"still"), end.announcement()), ("input ended", Ok(5), None));
        // Others who share the pipe may still block on it.
        let flags = rustix::fs::fcntl_getfl(&output).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
        drop((drain, end));
    }

    #[test]
    fn a_socket_in_place_of_a_pipe_gets_its_flags_back() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut end = StdioEnd::over(one.as_fd(), one.as_fd()).unwrap();
        assert_eq!(end.read(&mut [0]), Err(EndError::WouldBlock));
        drop(end);
        assert!(!rustix::fs::fcntl_getfl(&one).unwrap().contains(OFlags::NONBLOCK));
        drop(other);
    }

    #[test]
    fn a_terminal_is_raw_for_a_while_and_ctrl_a_is_ours() {
        let controller =
            rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        rustix::pty::unlockpt(&controller).unwrap();
        let name = rustix::pty::ptsname(&controller, Vec::new()).unwrap();
        let terminal = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let mut user = File::from(controller);
        let before = rustix::termios::tcgetattr(&terminal).unwrap().local_modes;
        assert!(before.contains(LocalModes::ICANON));

        let mut end = StdioEnd::over(terminal.as_fd(), terminal.as_fd()).unwrap();
        end.progress(0);
        assert!(end.announcement().is_some());
        let raw = rustix::termios::tcgetattr(&terminal).unwrap().local_modes;
        assert!(!raw.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        let mut into = [0; 16];
        user.write_all(b"a\x03\r\x01\x01\x01qb").unwrap();
        let mut got = Vec::new();
        while got.len() < 5 {
            wait(&mut end);
            while let Ok(n) = end.read(&mut into) {
                got.extend_from_slice(&into[..n]);
            }
        }
        assert_eq!(got, b"a\x03\r\x01b");
        user.write_all(b"\x01").unwrap();
        wait(&mut end);
        assert!(!end.wants_to_end());
        user.write_all(b"x").unwrap();
        wait(&mut end);
        assert!(end.wants_to_end());

        drop(end);
        assert_eq!(rustix::termios::tcgetattr(&terminal).unwrap().local_modes, before);
    }
}
