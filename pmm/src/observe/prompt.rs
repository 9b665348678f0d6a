//! The last line of a terminal on which both a guest's console and the log are shown. A line of the log would continue
//! the guest's prompt, and the next key would continue the log. So it goes to a line of its own, and what the guest had
//! on the last line is written again behind it.
//!
//! Clearing the line in place of that would need to know how many rows it takes, and would take away what the guest has
//! said if the guess is wrong.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of the last line that are kept: more than a row. A longer one is not written again.
const MAX_LINE: usize = 512;

/// Global, because so is the terminal.
static LAST: Mutex<LastLine> = Mutex::new(LastLine::new());

/// What a guest has on the last line.
#[derive(Debug)]
struct LastLine {
    /// The log goes to the same terminal.
    shared: bool,
    bytes: Vec<u8>,
    /// It cannot be written again: it is too long, or moves the cursor elsewhere than on its line.
    odd: bool,
    /// The guest writes no more.
    over: bool,
}

impl LastLine {
    const fn new() -> LastLine {
        LastLine { shared: false, bytes: Vec::new(), odd: false, over: false }
    }

    /// The guest has written this.
    fn shown(&mut self, bytes: &[u8]) {
        let new = match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => {
                self.bytes.clear();
                self.odd = false;
                bytes.get(end.saturating_add(1)..).unwrap_or_default()
            }
            None => bytes,
        };
        let room = MAX_LINE.saturating_sub(self.bytes.len());
        self.odd |= new.len() > room;
        self.bytes.extend_from_slice(new.get(..room.min(new.len())).unwrap_or_default());
        self.odd |= moves(&self.bytes);
    }

    /// A line of the log with what has to stand around it.
    fn around<'l>(&mut self, line: &'l [u8]) -> Cow<'l, [u8]> {
        if !self.shared || self.bytes.is_empty() {
            return line.into();
        }
        let again = if self.odd || self.over { &[][..] } else { &self.bytes };
        let whole = [b"\r\n", line, again].concat();
        if self.over {
            *self = LastLine::new();
        }
        whole.into()
    }
}

/// Returns whether text has an escape sequence that does more than to colour it or to clear the rest of its
/// line.
fn moves(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == 0x1b) {
        rest = rest.get(at.saturating_add(1)..).unwrap_or_default();
        let Some(inside) = rest.strip_prefix(b"[") else {
            // The sequence may not be whole yet.
            return !rest.is_empty();
        };
        let end = inside.iter().position(|byte| (0x40..0x7f).contains(byte));
        let Some(end) = end else { return false };
        // To the right and to the left stays on the line, as an editor of lines has it.
        if !matches!(inside.get(end), Some(b'm' | b'K' | b'C' | b'D' | b'G' | b'P' | b'@')) {
            return true;
        }
        rest = inside.get(end..).unwrap_or_default();
    }
    false
}

fn last() -> MutexGuard<'static, LastLine> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest's console is on this terminal from now on. Nothing comes of it if the log goes elsewhere.
pub(crate) fn begin(terminal: BorrowedFd<'_>) {
    let device = |fd: BorrowedFd<'_>| {
        let stat = rustix::fs::fstat(fd).ok().filter(|_| rustix::termios::isatty(fd))?;
        Some(stat.st_rdev)
    };
    let log = device(std::io::stderr().as_fd());
    *last() = LastLine { shared: log.is_some() && log == device(terminal), ..LastLine::new() };
}

/// Gives it back to the log alone, from the next line on.
pub(crate) fn end() {
    last().over = true;
}

/// The guest has written this to the terminal.
pub(crate) fn shown(bytes: &[u8]) {
    let mut last = last();
    if last.shared {
        last.shown(bytes);
    }
}

/// A line of the log, with what has to stand around it. What the guest writes between this and its being written is
/// shown where it comes; the lock is not held meanwhile, since a terminal may take nothing for long.
pub(super) fn around(line: &[u8]) -> Cow<'_, [u8]> {
    last().around(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &[&str]) -> String {
        let mut last = LastLine { shared: true, ..LastLine::new() };
        text.iter().for_each(|text| last.shown(text.as_bytes()));
        String::from_utf8(last.around(b"log\n").into_owned()).unwrap()
    }

    #[test]
    fn a_line_of_the_log_leaves_the_guests_last_line_as_it_was() {
        assert_eq!(after(&[]), "log\n");
        assert_eq!(after(&["all of it\n"]), "log\n");
        assert_eq!(after(&["first\nshell> "]), "\r\nlog\nshell> ");
        assert_eq!(after(&["shell> ", "pi", "ng\x08 \x08"]), "\r\nlog\nshell> ping\x08 \x08");
        assert_eq!(after(&["\x1b[1mshell>\x1b[0m \x1b[K"]), "\r\nlog\n\x1b[1mshell>\x1b[0m \x1b[K");
        // A picture is not drawn twice.
        for odd in ["\x1b[2J\x1b[Hmenu", "\x1bcx", "\x1b[3Aup"] {
            assert_eq!(after(&[odd]), "\r\nlog\n");
        }
        assert_eq!(after(&[&"x".repeat(MAX_LINE + 1)]), "\r\nlog\n");
        assert_eq!(after(&[&"x".repeat(MAX_LINE + 1), "\nshell> "]), "\r\nlog\nshell> ");
    }

    #[test]
    fn what_follows_a_guests_end_begins_a_line() {
        let mut last = LastLine { shared: true, ..LastLine::new() };
        last.shown(b"shell> ");
        last.over = true;
        assert_eq!(&*last.around(b"ended\n"), b"\r\nended\n");
        assert_eq!(&*last.around(b"log\n"), b"log\n");
    }

    #[test]
    fn a_log_that_goes_elsewhere_is_left_as_it_is() {
        let mut last = LastLine::new();
        last.shown(b"shell> ");
        assert_eq!(&*last.around(b"log\n"), b"log\n");
    }
}
