//! One host end with two owners: the device, which moves bytes, and the event loop, which waits for them.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{ByteEnd, EndError, FileEnd, HostEnd, PtyEnd, SocketEnd, StdioEnd};
use crate::failure::Failure;
use crate::options::ConsoleEnd;

/// A handle to a host end. Both owners live in one thread, so its lock is never waited for.
#[derive(Clone)]
pub struct SharedEnd(Arc<Mutex<Box<dyn HostEnd>>>);

impl fmt::Debug for SharedEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedEnd")
    }
}

impl SharedEnd {
    /// Shares an end.
    pub fn new(end: Box<dyn HostEnd>) -> SharedEnd {
        SharedEnd(Arc::new(Mutex::new(end)))
    }

    /// Opens the end that an option names.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] with what the machine refused.
    pub fn open(end: &ConsoleEnd) -> Result<SharedEnd, Failure> {
        let end: Box<dyn HostEnd> = match end {
            ConsoleEnd::Stdio => Box::new(StdioEnd::open()?),
            ConsoleEnd::Pty(link) => Box::new(PtyEnd::open(link.as_deref())?),
            ConsoleEnd::Unix(path) => Box::new(SocketEnd::listen(path)?),
            ConsoleEnd::File(path) => Box::new(FileEnd::open(path)?),
        };
        Ok(SharedEnd::new(end))
    }

    /// The end, for the event loop.
    pub fn get(&self) -> MutexGuard<'_, Box<dyn HostEnd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ByteEnd for SharedEnd {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        self.get().write(bytes)
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        self.get().read(into)
    }
}
