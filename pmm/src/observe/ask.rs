//! `pmm status`: the other end of the control socket.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::control::{self, Found};
use super::{Condition, Status};
use crate::failure::{Failure, misuse, refused};
use crate::options::{Number, StatusRequest};
use crate::sys::Watches;
use crate::unix::connect;

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
        match find(request.control.as_deref()) {
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
    let mut reader = BufReader::new(&stream);
    let mut last = Value::Null;
    loop {
        let limit = match (conditions.is_empty(), request.follow) {
            (true, true) => None,
            (true, false) => Some(ANSWER),
            // 0 would mean for ever.
            (false, _) => {
                Some(deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1)))
            }
        };
        stream.set_read_timeout(limit).map_err(lost)?;
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) if request.follow => return Ok(()),
            Ok(0) => {
                return refused(match unmet(conditions, &last) {
                    Some((condition, found)) => {
                        format!("--wait-for '{condition}': the pmm ended before it was so; it was {found}")
                    }
                    None => format!("{}: the pmm has ended", path.display()),
                });
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return refused(match unmet(conditions, &last) {
                    Some((condition, found)) => {
                        format!("--wait-for '{condition}': not so after {seconds} s; it is {found}")
                    }
                    None => {
                        format!("{}: the pmm did not answer within {} s", path.display(), ANSWER.as_secs())
                    }
                });
            }
            Err(error) => return Err(lost(error)),
        }
        last = serde_json::from_str(&line).unwrap_or_default();
        if !conditions.iter().all(|condition| condition.holds(&last)) {
            continue;
        }
        let text = match serde_json::from_str::<Status>(&line) {
            Ok(status) if !request.json => status.to_string(),
            _ => line,
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

/// The first condition that does not hold, and what is there instead.
fn unmet<'c>(conditions: &'c [Condition], last: &Value) -> Option<(&'c Condition, String)> {
    let condition = conditions.iter().find(|condition| !condition.holds(last))?;
    Some((condition, condition.find(last).map_or("not there".into(), Value::to_string)))
}

/// The socket that was named, or that of the only PMM that runs.
fn find(named: Option<&Path>) -> Result<(PathBuf, UnixStream), Failure> {
    if let Some(path) = named {
        let stream = connect(path).and_then(|stream| {
            stream.set_nonblocking(false)?;
            Ok(stream)
        });
        return match stream {
            Ok(stream) => Ok((path.into(), stream)),
            Err(error) => refused(format!("--control {}: no pmm answers there ({error})", path.display())),
        };
    }
    let dir = control::directory();
    let mut found = control::discover(&dir);
    match (found.pop(), found.len()) {
        (Some(Found { path, stream: Some(stream) }), 0) => Ok((path, stream)),
        (Some(Found { path, stream: None }), 0) => {
            refused(format!("{}: the pmm there does not answer; is it stopped?", path.display()))
        }
        (None, _) => refused(format!(
            "no pmm of this user runs (none in {}); name its socket with --control PATH",
            dir.display()
        )),
        (Some(one), _) => {
            let all: Vec<String> =
                found.iter().chain([&one]).map(|one| one.path.display().to_string()).collect();
            misuse(format!("several pmms run; choose one with --control: {}", all.join(", ")))
        }
    }
}
