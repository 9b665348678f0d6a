//! Logs go to standard error: text for people, JSON for machines. Standard output belongs to the guest's console. Nobody
//! who logs waits for standard error: a thread writes it from a queue.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::lines::Lines;
use super::prompt;
use crate::options::{LogLevel, LogOptions};

/// How long the end of the program waits for what was said to be written.
const FLUSH: Duration = Duration::from_secs(1);

/// Global, because so is standard error.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Sets up logging for this process. A second call changes nothing.
pub fn start(options: LogOptions) {
    let level = match options.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // On a terminal somebody watches; in a file the time is what one looks for.
    let time = !std::io::stderr().is_terminal();
    let notice = match (options.json, time) {
        (true, _) => json_notice,
        (false, true) => timed_notice,
        (false, false) => plain_notice,
    };
    match Lines::start(notice, write) {
        Ok(lines) => _ = LINES.set(lines),
        Err(error) => {
            eprintln!("pmm: no thread for the log ({error}); a stuck standard error will hold up the links")
        }
    }
    let build =
        || tracing_subscriber::fmt().with_max_level(level).with_writer(Said::default).with_ansi(false);
    let _ = match options.json {
        true => build().with_target(false).json().flatten_event(true).with_span_list(false).try_init(),
        false => build().event_format(Line { time }).try_init(),
    };
}

/// Puts text on standard error behind everything that was logged, without waiting for it.
pub fn say(text: &str) {
    match LINES.get() {
        Some(lines) => lines.push(text.as_bytes()),
        None => write(text.as_bytes()),
    }
}

/// Waits until standard error has everything, for a second at the most: the last thing that a program does.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(FLUSH);
    }
}

/// Writes to standard error, however long that takes. There is nobody to tell of an error.
fn write(line: &[u8]) {
    let line = prompt::around(line);
    let mut bytes = &*line;
    let stderr = std::io::stderr();
    // Not through the standard library's lock: a panic elsewhere must be able to say so.
    let fd = stderr.as_fd();
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) if count > 0 => bytes = bytes.get(count..).unwrap_or(&[]),
            Err(Errno::INTR) => {}
            // Others who share it may have made it so that it does not block.
            Err(Errno::AGAIN) => _ = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None),
            _ => break,
        }
    }
}

/// What the log's formatter writes to: a line at a time.
#[derive(Default)]
struct Said;

impl Write for Said {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match LINES.get() {
            Some(lines) => lines.push(line),
            None => write(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn missing(lost: u64) -> String {
    format!("{lost} lines of this log are missing here: standard error took no more")
}

fn plain_notice(lost: u64) -> String {
    format!("WARN  {}\n", missing(lost))
}

fn timed_notice(lost: u64) -> String {
    let mut text = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    format!("{text} {}", plain_notice(lost))
}

fn json_notice(lost: u64) -> String {
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    format!("{}\n", serde_json::json!({"timestamp": time, "level": "WARN", "message": missing(lost)}))
}

/// `INFO r5-0: the peer is there`: level, link, message.
struct Line {
    time: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.time {
            SystemTime.format_time(&mut writer)?;
            writer.write_char(' ')?;
        }
        write!(writer, "{:5} ", event.metadata().level())?;
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                // The only span is a link's, and its only field the name.
                write!(writer, "{}: ", fields.fields.trim_start_matches("name="))?;
            }
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
