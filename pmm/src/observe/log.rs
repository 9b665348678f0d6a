//! Logs go to standard error: text for people, JSON for machines. Standard output belongs to the guest's console.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;

use crate::options::{LogLevel, LogOptions};

/// Sets up logging for this process. A second call changes nothing.
pub fn start(options: LogOptions) {
    let level = match options.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let build = || {
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .with_target(false)
    };
    // On a terminal somebody watches, and the clock is on the wall; in a file the time is what one looks for.
    let _ = match (options.json, std::io::stderr().is_terminal()) {
        (true, _) => build().json().flatten_event(true).with_span_list(false).try_init(),
        (false, true) => build().compact().without_time().try_init(),
        (false, false) => build().compact().try_init(),
    };
}
