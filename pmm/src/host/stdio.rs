//! `stdio`: the guest's console is this terminal, or the pipes that stand in its place.
//!
//! On a terminal every key goes to the guest, Ctrl-C too, except for a prefix that the first line names: Ctrl-A x ends
//! the program, Ctrl-A h helps, Ctrl-A Ctrl-A is a Ctrl-A. So the terminal is read even when no guest wants input, into
//! a short type-ahead; a pipe is read only when the guest has room, and its bytes are not looked at.
//!
//! The terminal is shared with the shell. It is raw only while this program is in the foreground: a shell
//! that stopped it, or put it in the background, has set the terminal for itself.
//!
//! Output that cannot be written for a while waits, as with `file:`; if it is redirected into a file, a
//! thread writes it. When its reader is gone, further output is discarded, which is logged once.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, Once};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::{InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios};

use super::file::{Appender, write_some};
use super::nonblocking::{NonBlocking, Refusal};
use super::trouble::Trouble;
use super::{ByteEnd, EndError, HostEnd, TerminalNews};
use crate::failure::Failure;
use crate::observe::prompt;
use crate::sys::Watches;

/// Keys that are kept for a guest that does not read, as many as a terminal's own queue has.
const TYPE_AHEAD: usize = 4096;
/// How often a program in the background looks whether it is in the foreground, in microseconds: no signal says so.
const LOOK_US: u64 = 250_000;
const NAME: &str = "--console stdio: standard output";
const CTRL_A: u8 = 1;
const BELL: u8 = 7;
const HELP: &str = "\n  Ctrl-A x       end pmm: a demo ends with it, any other guest waits for the next one\n  Ctrl-A h       this help\n  Ctrl-A Ctrl-A  a Ctrl-A for the guest\n  anything else  goes to the guest, Ctrl-C too\n";

/// Standard input and output.
pub struct StdioEnd {
    input: NonBlocking,
    output: Output,
    terminal: Option<Keys>,
    /// The terminal that shows the output, and its columns and rows.
    screen: Option<(OwnedFd, Option<(u16, u16)>)>,
}

/// Where the guest's output goes.
enum Output {
    /// A terminal, a pipe, a socket: they say when they take no more.
    Stream { stream: NonBlocking, trouble: Trouble, ended: Option<Errno>, told: bool },
    /// A file, whose file system may hold a write.
    File(Appender),
}

impl Output {
    fn over(output: BorrowedFd<'_>) -> std::io::Result<Output> {
        let stat = rustix::fs::fstat(output)?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            // The same open file description, for others who share it go on where this ends.
            let mut file = File::from(output.try_clone_to_owned()?);
            return Ok(Output::File(Appender::start(NAME.into(), move |piece| {
                write_some(&mut file, piece)
            })?));
        }
        let stream = NonBlocking::shared(output, OFlags::WRONLY)?;
        Ok(Output::Stream { stream, trouble: Trouble::new(NAME.into()), ended: None, told: false })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        let (stream, trouble, ended) = match self {
            Output::File(appender) => return appender.write(bytes),
            Output::Stream { trouble, .. } if trouble.is_pausing() => return Err(EndError::WouldBlock),
            Output::Stream { stream, trouble, ended, .. } => (stream, trouble, ended),
        };
        match stream.try_write(bytes) {
            Ok(count) => {
                trouble.passed();
                Ok(count)
            }
            Err(Refusal::Full) => Err(EndError::WouldBlock),
            Err(Refusal::Trouble(error)) => {
                trouble.met(error);
                Err(EndError::WouldBlock)
            }
            Err(Refusal::Ended(error)) => {
                trouble.passed();
                ended.get_or_insert(error);
                Err(EndError::Closed)
            }
        }
    }

    fn progress(&mut self, now_us: u64) {
        match self {
            Output::File(appender) => appender.progress(now_us),
            Output::Stream { stream, trouble, ended, told } => {
                stream.forget();
                trouble.progress(now_us);
                if let Some(error) = ended
                    && !std::mem::replace(told, true)
                {
                    tracing::warn!(
                        "{NAME} has ended ({error}); what the guest writes at its console goes nowhere from now on, start pmm again to see it"
                    );
                }
            }
        }
    }

    fn watch(&self, watches: &mut Watches) {
        match self {
            Output::File(appender) => appender.watch(watches),
            Output::Stream { stream, .. } => stream.watch(watches),
        }
    }

    fn deadline_us(&self) -> Option<u64> {
        match self {
            Output::File(appender) => appender.deadline_us(),
            Output::Stream { ended: Some(_), told: false, .. } => Some(0),
            Output::Stream { trouble, .. } => trouble.deadline_us(),
        }
    }

    /// A few words, where it does not simply work.
    fn state(&self) -> Option<Cow<'static, str>> {
        match self {
            Output::File(appender) => appender.state(),
            Output::Stream { ended: Some(error), .. } => Some(format!("output has ended ({error})").into()),
            Output::Stream { trouble, .. } => trouble.state(),
        }
    }
}

/// What was typed on a terminal.
#[derive(Debug)]
struct Keys {
    ahead: VecDeque<u8>,
    /// Ctrl-A was the last key.
    prefix: bool,
    end: bool,
    raw: RawMode,
    /// When to look whether the terminal is this program's again.
    background_us: Option<u64>,
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
        let screen = match output.is_terminal() {
            true => Some((output.try_clone_to_owned()?, size_of_terminal(output))),
            false => None,
        };
        let output = Output::over(output)?;
        let shared = NonBlocking::shared(input, OFlags::RDONLY)?;
        if input.is_terminal() {
            let raw = RawMode::of(input)?;
            let background_us = if raw.is_in_foreground() {
                raw.enter()?;
                None
            } else {
                Some(0)
            };
            terminal = Some(Keys { ahead: VecDeque::new(), prefix: false, end: false, raw, background_us });
            if let Some((screen, _)) = &screen {
                prompt::begin(screen.as_fd());
            }
        }
        Ok(StdioEnd { input: shared, output, terminal, screen })
    }

    /// Sees whether the terminal is this program's, and sets it.
    fn settle(&mut self, now_us: u64) {
        let Some(keys) = &mut self.terminal else { return };
        let was_away = keys.background_us.is_some();
        if !keys.raw.is_in_foreground() {
            keys.background_us = Some(now_us.saturating_add(LOOK_US));
            if !was_away {
                keys.raw.leave_to_shell();
            }
        } else if was_away {
            keys.background_us = None;
            let _ = keys.raw.enter();
        }
    }

    /// Reads what was typed and acts on the prefix.
    fn pump(&mut self) {
        let Some(keys) = &mut self.terminal else { return };
        let mut typed = [0; 256];
        if keys.background_us.is_some() {
            return;
        }
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
                        prompt::end();
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
                    // In a file nobody hears it.
                    if let Output::Stream { stream, .. } = &mut self.output {
                        let _ = stream.try_write(&[BELL]);
                    }
                }
            }
        }
        // Put in the background between the look and the read, which is an error then and not the end.
        if self.input.input_closed() && !keys.raw.is_in_foreground() {
            self.input.reopen_input();
            keys.background_us = Some(0);
            keys.raw.leave_to_shell();
        }
    }
}

impl ByteEnd for StdioEnd {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        let written = self.output.write(bytes)?;
        if self.terminal.is_some() {
            prompt::shown(bytes.get(..written).unwrap_or_default());
        }
        Ok(written)
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

    fn forget(&mut self) {
        if let Output::File(appender) = &mut self.output {
            appender.forget();
        }
    }

    fn size(&self) -> Option<(u16, u16)> {
        self.screen.as_ref().and_then(|(_, size)| *size)
    }
}

/// Columns and rows, where the terminal knows them: a serial line does not.
fn size_of_terminal(terminal: impl AsFd) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(terminal).ok()?;
    (size.ws_col != 0 && size.ws_row != 0).then_some((size.ws_col, size.ws_row))
}

impl HostEnd for StdioEnd {
    fn watch(&self, watches: &mut Watches) {
        self.input.watch(watches);
        self.output.watch(watches);
    }

    fn progress(&mut self, now_us: u64) {
        self.input.forget();
        self.output.progress(now_us);
        if self.terminal.is_some() {
            self.settle(now_us);
            self.pump();
        }
        if self.terminal.as_ref().is_some_and(|keys| keys.background_us.is_none()) {
            self.input.expect_input();
        }
    }

    fn deadline_us(&self) -> Option<u64> {
        let look = self.terminal.as_ref().and_then(|keys| keys.background_us);
        [look, self.output.deadline_us()].into_iter().flatten().min()
    }

    fn terminal_news(&mut self, news: TerminalNews) {
        if let (TerminalNews::Continued, Some(keys)) = (news, &mut self.terminal) {
            // Its shell had it, and may have set it for itself; `progress` sees whose it is now.
            keys.background_us.get_or_insert(0);
        }
        if let Some((screen, size)) = &mut self.screen {
            *size = size_of_terminal(screen);
        }
    }

    fn failure(&self) -> Option<String> {
        match &self.output {
            Output::File(appender) => appender.failure(),
            Output::Stream { .. } => None,
        }
    }

    fn wants_to_end(&self) -> bool {
        self.terminal.as_ref().is_some_and(|keys| keys.end)
    }

    fn state(&self) -> Cow<'static, str> {
        if let Some(state) = self.output.state() {
            return state;
        }
        match (&self.terminal, self.input.input_closed()) {
            (_, true) => "input ended",
            (Some(Keys { background_us: Some(_), .. }), _) => "terminal, in the background",
            (Some(_), _) => "terminal",
            (None, _) => "open",
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
struct RawMode(OwnedFd);

impl RawMode {
    fn of(terminal: BorrowedFd<'_>) -> std::io::Result<RawMode> {
        Ok(RawMode(terminal.try_clone_to_owned()?))
    }

    /// Returns whether the terminal is this program's. One that controls nobody, as in a test, is anybody's.
    fn is_in_foreground(&self) -> bool {
        rustix::termios::tcgetpgrp(&self.0).map_or(true, |group| group == rustix::process::getpgrp())
    }

    /// Leaves the terminal to the shell: it has set it for itself, and there is nothing to be restored.
    fn leave_to_shell(&self) {
        if let Ok(mut slot) = FOUND.lock() {
            *slot = None;
        }
    }

    /// Sets it, and keeps it as it is found.
    fn enter(&self) -> std::io::Result<()> {
        let terminal = self.0.as_fd();
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
            // Where a shell left it raw while this was stopped, what was found first is what is to be restored.
            let is_raw = !found.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO);
            if slot.is_none() || !is_raw {
                *slot = Some((terminal.try_clone_to_owned()?, found));
            }
        }
        rustix::termios::tcsetattr(terminal, OptionalActions::Now, &raw)?;
        Ok(())
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
        prompt::end();
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
    fn an_error_that_may_pass_is_waited_for_and_an_end_is_said_once() {
        let (input, _feed) = std::io::pipe().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut end = StdioEnd::over(input.as_fd(), full.as_fd()).unwrap();
        assert_eq!(end.write(b"x"), Err(EndError::WouldBlock), "it is not acknowledged");
        assert_eq!((&*end.state(), end.deadline_us()), ("no space", Some(0)));
        end.progress(5);
        assert_eq!(end.deadline_us(), Some(5 + super::super::trouble::RETRY_US));
        assert_eq!(end.size(), None, "no terminal, no size");

        let (drain, output) = std::io::pipe().unwrap();
        let mut end = StdioEnd::over(input.as_fd(), output.as_fd()).unwrap();
        assert_eq!((end.write(b"one"), end.deadline_us()), (Ok(3), None));
        drop(drain);
        // A test beside this one that starts a process holds a copy of the pipe for an instant.
        while end.write(b"two").is_ok() {}
        assert_eq!(end.write(b"two"), Err(EndError::Closed));
        assert_eq!(
            (&*end.state(), end.deadline_us()),
            ("output has ended (Broken pipe (os error 32))", Some(0))
        );
        end.progress(6);
        assert_eq!((end.write(b"two"), end.deadline_us()), (Err(EndError::Closed), None), "said once");
    }

    #[test]
    fn a_file_in_place_of_a_terminal_is_written_by_a_thread() {
        let (input, _feed) = std::io::pipe().unwrap();
        let path = std::env::temp_dir().join(format!("pmm-stdio-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        file.write_all(b"before ").unwrap();
        let mut end = StdioEnd::over(input.as_fd(), file.as_fd()).unwrap();
        assert_eq!(end.write(b"after"), Err(EndError::WouldBlock), "only when the kernel has it");
        wait(&mut end);
        assert_eq!(end.write(b"after"), Ok(5));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before after");
        std::fs::remove_file(&path).unwrap();
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

        let mut size = rustix::termios::tcgetwinsize(&terminal).unwrap();
        let mut end = StdioEnd::over(terminal.as_fd(), terminal.as_fd()).unwrap();
        end.progress(0);
        assert!(end.announcement().is_some());
        assert_eq!(end.size(), None, "a terminal that does not know its size");
        (size.ws_col, size.ws_row) = (132, 43);
        rustix::termios::tcsetwinsize(&user, size).unwrap();
        end.terminal_news(TerminalNews::Resized);
        assert_eq!(end.size(), Some((132, 43)));
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

        // Stopped, and the shell has set its terminal for itself.
        let mut shells = rustix::termios::tcgetattr(&terminal).unwrap();
        shells.local_modes = before;
        rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &shells).unwrap();
        end.terminal_news(TerminalNews::Continued);
        assert_eq!(end.deadline_us(), Some(0));
        end.progress(0);
        let raw = rustix::termios::tcgetattr(&terminal).unwrap().local_modes;
        assert!(!raw.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "raw again");

        drop(end);
        assert_eq!(rustix::termios::tcgetattr(&terminal).unwrap().local_modes, before);
    }
}
