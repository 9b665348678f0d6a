//! `pmm status`: the other end of the control socket.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use serde_json::Value;

use super::control::{self, Found, MAX_ANSWER, Stranger};
use super::list::{is_called, name_of, survey};
use super::{Condition, Status, directory, printable_lines};
use crate::failure::{Failure, misuse, refused};
use crate::options::{Number, StatusRequest};
use crate::sys::Watches;

/// How long a PMM may take to answer: it answers between two looks, so this is a guard against one that hangs.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a socket that is not there yet is tried again by `--wait-for`, in microseconds.
const RETRY_US: u64 = 20_000;

/// Asks a running PMM and prints to `out`.
///
/// # Errors
///
/// [`Failure::Misuse`] if several PMMs run and none was named; [`Failure::Refused`] if none answers, or a condition
/// does not come true in time.
pub fn status(request: &StatusRequest, out: &mut dyn Write) -> Result<(), Failure> {
    let conditions = &request.wait_for;
    let Number(seconds) = request.timeout.unwrap_or(Number(60));
    let deadline = Instant::now() + Duration::from_secs(seconds.min(u64::from(u32::MAX)));
    let (path, stream) = loop {
        match find(request) {
            Err(Failure::Refused(_)) if !conditions.is_empty() && Instant::now() < deadline => {
                // A PMM that is about to start.
                Watches::default().wait(Some(RETRY_US));
            }
            other => break other?,
        }
    };
    let follows = request.follow || !conditions.is_empty();
    let lost = |error: std::io::Error| {
        Failure::Refused(format!("{}: the pmm does not answer ({error})", path.display()))
    };
    (&stream).write_all(if follows { b"follow\n" } else { b"status\n" }).map_err(lost)?;
    let until = match (conditions.is_empty(), request.follow) {
        (true, true) => None,
        (true, false) => Some(Instant::now() + ANSWER),
        (false, _) => Some(deadline),
    };
    let mut answers = Answers { stream: &stream, bytes: Vec::new(), looked: 0 };
    let mut last = Value::Null;
    loop {
        let line = match answers.next(until) {
            Ok(line) => line,
            Err(Trouble::Ended) if request.follow => return Ok(()),
            Err(Trouble::Ended) => {
                return refused(match unmet(conditions, &last) {
                    Some((condition, found)) => {
                        format!("--wait-for '{condition}': the pmm ended before it was so; it was {found}")
                    }
                    None => format!("{}: the pmm has ended", path.display()),
                });
            }
            Err(Trouble::Late) => {
                return refused(match unmet(conditions, &last) {
                    Some((condition, found)) => {
                        format!("--wait-for '{condition}': not so after {seconds} s; it is {found}")
                    }
                    None => {
                        format!("{}: the pmm did not answer within {} s", path.display(), ANSWER.as_secs())
                    }
                });
            }
            Err(Trouble::TooLong) => {
                return refused(format!(
                    "{}: the answer has more than {MAX_ANSWER} bytes, more than a pmm ever sends; another program listens there",
                    path.display()
                ));
            }
            Err(Trouble::Io(error)) => return Err(lost(error)),
        };
        last = match serde_json::from_str(&line) {
            Ok(value) => value,
            Err(_) => {
                return refused(format!(
                    "{}: the answer is not a status of pmm; another program listens there",
                    path.display()
                ));
            }
        };
        for condition in conditions {
            if let Some(why) = condition.never(&last) {
                return refused(format!("--wait-for '{condition}': it can never hold; {why}"));
            }
        }
        if !conditions.iter().all(|condition| condition.holds(&last)) {
            continue;
        }
        let text = match serde_json::from_str::<Status>(&line) {
            Ok(status) if !request.json => printable_lines(&status.to_string()),
            _ => printable_json(&line),
        };
        if print(&text, out)? == Reader::HasLeft || !request.follow {
            return Ok(());
        }
    }
}

/// Whether anybody reads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// As far as one can tell.
    IsThere,
    /// It has closed its end, because it has seen enough.
    HasLeft,
}

/// Prints to standard output, or what stands for it.
///
/// # Errors
///
/// [`Failure::Refused`] if it does not take everything.
pub fn print(text: &str, out: &mut dyn Write) -> Result<Reader, Failure> {
    // Standard output keeps what follows the last line's end; only a flush tells whether that went.
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::IsThere),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::HasLeft),
        Err(error) => refused(format!(
            "standard output cannot be written ({error}); what was printed is not whole, write it elsewhere"
        )),
    }
}

/// The lines of a PMM, of which none is longer than a PMM's can be.
struct Answers<'s> {
    stream: &'s UnixStream,
    bytes: Vec<u8>,
    /// As many of them hold no end of a line.
    looked: usize,
}

enum Trouble {
    Ended,
    Late,
    TooLong,
    Io(std::io::Error),
}

impl Answers<'_> {
    /// Returns the next line, with its end. A line that comes byte by byte has the same time as any other.
    fn next(&mut self, until: Option<Instant>) -> Result<String, Trouble> {
        loop {
            let rest = self.bytes.get(self.looked..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=self.looked + end).collect();
                self.looked = 0;
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.looked = self.bytes.len();
            if self.bytes.len() > MAX_ANSWER {
                return Err(Trouble::TooLong);
            }
            let mut part = [0; 16 << 10];
            match (&mut &*self.stream).read(&mut part) {
                Ok(0) => return Err(Trouble::Ended),
                Ok(count) => self.bytes.extend_from_slice(part.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(until)?,
                Err(error) => return Err(Trouble::Io(error)),
            }
        }
    }

    fn wait(&self, until: Option<Instant>) -> Result<(), Trouble> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(Trouble::Late);
        }
        let mut watches = Watches::default();
        watches.add(self.stream.as_raw_fd(), true, false);
        watches.wait(left.map(|left| u64::try_from(left.as_micros()).unwrap_or(u64::MAX).max(1)));
        Ok(())
    }
}

/// Makes a line of JSON safe for a terminal: what would move a cursor or deceive the eye is written as JSON
/// writes control characters, so that it means the same.
pub(super) fn printable_json(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    for char in line.chars() {
        match char {
            '\n' | '\\' | '\'' | '"' => shown.push(char),
            // Between words; in a string it would be no JSON.
            '\t' | '\r' => shown.push(' '),
            plain if plain.escape_debug().len() == 1 => shown.push(plain),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    shown.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    shown
}

/// The first condition that does not hold, and what is there instead.
fn unmet<'c>(conditions: &'c [Condition], last: &Value) -> Option<(&'c Condition, String)> {
    let condition = conditions.iter().find(|condition| !condition.holds(last))?;
    Some((condition, condition.find(last).map_or("not there".into(), Value::to_string)))
}

/// Asks for the snapshot of one that has just been connected to; `None` if it does not, or nothing that makes
/// sense.
pub(super) fn snapshot(stream: &UnixStream) -> Option<Status> {
    let mut to = stream;
    to.write_all(b"status\n").ok()?;
    let line = Answers { stream, bytes: Vec::new(), looked: 0 }.next(Some(Instant::now() + ANSWER)).ok()?;
    serde_json::from_str(&line).ok()
}

/// Finds the socket that was named, that of the PMM that was named, or that of the only one that runs.
fn find(request: &StatusRequest) -> Result<(PathBuf, UnixStream), Failure> {
    if let Some(name) = &request.name {
        return find_by_name(name);
    }
    if let Some(path) = request.control.as_deref() {
        // A link is followed here, since whoever asks has chosen it; what it leads to is looked at all the same.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let asked = rustix::fs::open(path, flags, Mode::empty())
            .and_then(|file| rustix::fs::fstat(&file).map(|stat| (file, stat)))
            .map_err(Stranger::Deaf)
            .and_then(|(file, stat)| control::ask_only(&file, &stat));
        return match asked {
            Ok(stream) => Ok((path.into(), stream)),
            Err(stranger) => refused(format!("--control {}: {stranger}", path.display())),
        };
    }
    let dirs = directory::directories();
    let mut found: Vec<_> = dirs.iter().flat_map(|dir| control::discover(dir)).collect();
    match (found.pop(), found.len()) {
        (Some(Found { path, stream: Some(stream) }), 0) => Ok((path, stream)),
        (Some(Found { path, stream: None }), 0) => {
            refused(format!("{}: the pmm there does not answer; is it stopped?", path.display()))
        }
        (None, _) => refused(format!(
            "no pmm of this user runs (none in {}); name its socket with --control PATH",
            directory::directory().display()
        )),
        (Some(one), _) => {
            let (there, _) = survey();
            match there.is_empty() {
                false => misuse(format!(
                    "several pmms run; write one of their names behind 'status': {}",
                    called(&there)
                )),
                true => {
                    refused(format!("{}: the pmm there does not answer; is it stopped?", one.path.display()))
                }
            }
        }
    }
}

/// Names for a message.
fn called(there: &[(Found, Status)]) -> String {
    let all: Vec<String> =
        there.iter().map(|(_, status)| format!("{} (process {})", name_of(status), status.pmm.pid)).collect();
    all.join(", ")
}

fn find_by_name(name: &str) -> Result<(PathBuf, UnixStream), Failure> {
    let (there, _) = survey();
    let (mut meant, others): (Vec<_>, Vec<_>) =
        there.into_iter().partition(|(_, status)| is_called(status, name));
    match (meant.pop(), meant.is_empty()) {
        (Some((Found { path, stream: Some(stream) }, _)), true) => Ok((path, stream)),
        (None, _) if others.is_empty() => {
            refused(format!("{name}: no pmm of this user runs; name a socket with --control PATH"))
        }
        (None, _) => {
            refused(format!("{name}: no pmm of this user is called so; there is {}", called(&others)))
        }
        (Some(one), _) => {
            meant.push(one);
            misuse(format!(
                "{name}: several are called so; write a process id in its place: {}",
                called(&meant)
            ))
        }
    }
}
