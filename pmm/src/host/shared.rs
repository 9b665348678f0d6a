//! One host end with two owners: the device, which moves bytes, and the event loop, which waits for them.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{ByteEnd, EndError, HostEnd, TerminalNews};
use crate::sys::Watches;

/// A handle to a host end. Both owners live in one thread, so its lock is never waited for.
pub struct Shared<T: ?Sized>(Arc<Mutex<T>>);

impl<T> Shared<T> {
    /// Shares an end.
    pub fn new(end: T) -> Shared<T> {
        Shared(Arc::new(Mutex::new(end)))
    }
}

impl<T: ?Sized> Shared<T> {
    /// The end.
    pub fn get(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Not derived, which would ask the same of the end.
impl<T: ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Shared(self.0.clone())
    }
}

impl<T: ?Sized> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl<T: ByteEnd + ?Sized> ByteEnd for Shared<T> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        self.get().write(bytes)
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        self.get().read(into)
    }

    fn forget(&mut self) {
        self.get().forget();
    }

    fn size(&self) -> Option<(u16, u16)> {
        self.get().size()
    }
}

impl<T: HostEnd + ?Sized> HostEnd for Shared<T> {
    fn watch(&self, watches: &mut Watches) {
        self.get().watch(watches);
    }

    fn progress(&mut self, now_us: u64) {
        self.get().progress(now_us);
    }

    fn deadline_us(&self) -> Option<u64> {
        self.get().deadline_us()
    }

    fn wants_to_end(&self) -> bool {
        self.get().wants_to_end()
    }

    fn state(&self) -> Cow<'static, str> {
        self.get().state()
    }

    fn terminal_news(&mut self, news: TerminalNews) {
        self.get().terminal_news(news);
    }

    fn failure(&self) -> Option<String> {
        self.get().failure()
    }

    fn announcement(&self) -> Option<String> {
        self.get().announcement()
    }
}
