//! The console as `embedded-io` streams. Their `read` and `write` wait; here they wait for as long as [`Io::new`] is
//! told, in the board's sleep, through restarts of the PMM.

use embedded_io::{ErrorKind, ErrorType, Read, ReadReady, Write, WriteReady};

use crate::adapter::Timeout;
use crate::device::NotNow;
use crate::device::console::Console;
use crate::platform::{Instant, Wait, earlier};

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The link was down when the time was up.
    LinkDown,
    /// The other side did not answer in time.
    TimedOut,
}

impl core::fmt::Display for IoError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            IoError::LinkDown => "the link is down",
            IoError::TimedOut => "the other side did not answer in time",
        })
    }
}

impl core::error::Error for IoError {}

impl embedded_io::Error for IoError {
    fn kind(&self) -> ErrorKind {
        match self {
            IoError::LinkDown => ErrorKind::NotConnected,
            IoError::TimedOut => ErrorKind::TimedOut,
        }
    }
}

impl From<NotNow> for IoError {
    fn from(error: NotNow) -> IoError {
        match error {
            NotNow::LinkDown => IoError::LinkDown,
            NotNow::WouldBlock => IoError::TimedOut,
        }
    }
}

/// A console whose calls wait, up to a time.
#[derive(Debug)]
pub struct Io<'c, 's, B> {
    console: &'c mut Console<'s, B>,
    timeout: Timeout,
}

impl<'c, 's, B: Wait> Io<'c, 's, B> {
    /// Streams over a console; each call waits for `timeout` at most.
    pub fn new(console: &'c mut Console<'s, B>, timeout: Timeout) -> Io<'c, 's, B> {
        Io { console, timeout }
    }

    /// Repeats a call that cannot be answered yet, asleep in between.
    fn wait<T>(
        &mut self,
        mut call: impl FnMut(&mut Console<'s, B>) -> Result<T, NotNow>,
    ) -> Result<T, IoError> {
        let mut deadline: Option<Instant> = None;
        loop {
            let error = match call(self.console) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let board = self.console.link().board().clone();
            let now = board.now();
            let until = match deadline.or_else(|| self.timeout.from(now)) {
                Some(until) if now < until => until,
                _ => return Err(error.into()),
            };
            deadline = Some(until);
            match self.console.next_deadline() {
                Some(Instant::UNKNOWN) => {}
                next => board.wait_for_doorbell(earlier(next, Some(until))),
            }
        }
    }
}

impl<B> ErrorType for Io<'_, '_, B> {
    type Error = IoError;
}

impl<B: Wait> Read for Io<'_, '_, B> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, IoError> {
        self.wait(|console| console.read(buf))
    }
}

impl<B: Wait> Write for Io<'_, '_, B> {
    fn write(&mut self, buf: &[u8]) -> Result<usize, IoError> {
        self.wait(|console| console.write(buf))
    }
    /// Waits until everything is acknowledged by the PMM's host end.
    fn flush(&mut self) -> Result<(), IoError> {
        self.wait(|console| console.flush())
    }
}

impl<B: Wait> ReadReady for Io<'_, '_, B> {
    fn read_ready(&mut self) -> Result<bool, IoError> {
        Ok(self.console.read_ready().unwrap_or(false))
    }
}

impl<B: Wait> WriteReady for Io<'_, '_, B> {
    fn write_ready(&mut self) -> Result<bool, IoError> {
        Ok(self.console.write_ready().unwrap_or(false))
    }
}
