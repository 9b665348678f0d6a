//! The console and entropy for an async executor. Their futures wait through restarts of the PMM, for as long as they
//! are polled: a deadline is a timer in the same `select`, and dropping a future loses no byte.

use core::convert::Infallible;
use core::future::Future;

use embedded_io_async::{ErrorType, Read, Write};

use crate::device::NotNow;
use crate::device::console::Console;
use crate::device::rng::{FillError, Rng};
use crate::platform::{Board, Instant};

/// A board whose doorbell wakes tasks.
pub trait AsyncBoard: Board {
    /// Completes when the doorbell has rung since the task last looked, or `deadline` has passed, or earlier.
    ///
    /// Every task that waits is woken, and a ring between the look and the first poll of this future is not lost:
    /// the interrupt handler counts rings, and each task compares the count with the one that it saw.
    fn wait_for_doorbell(&self, deadline: Option<Instant>) -> impl Future<Output = ()>;
}

/// A console as `embedded-io-async` streams.
#[derive(Debug)]
pub struct AsyncConsole<'c, 's, B> {
    console: &'c mut Console<'s, B>,
}

impl<'c, 's, B: AsyncBoard> AsyncConsole<'c, 's, B> {
    /// Streams over a console.
    pub fn new(console: &'c mut Console<'s, B>) -> AsyncConsole<'c, 's, B> {
        AsyncConsole { console }
    }

    async fn wait<T>(&mut self, mut call: impl FnMut(&mut Console<'s, B>) -> Result<T, NotNow>) -> T {
        loop {
            if let Ok(done) = call(self.console) {
                return done;
            }
            sleep(self.console.link().board().clone(), self.console.next_deadline()).await;
        }
    }
}

/// Sleeps unless there is more to do; then it lets other tasks run first.
pub(super) async fn sleep<B: AsyncBoard>(board: B, deadline: Option<Instant>) {
    if deadline == Some(Instant::UNKNOWN) {
        yield_now().await;
    } else {
        board.wait_for_doorbell(deadline).await;
    }
}

/// Lets other tasks run once.
pub(super) async fn yield_now() {
    let mut yielded = false;
    core::future::poll_fn(|context| {
        if core::mem::replace(&mut yielded, true) {
            return core::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        core::task::Poll::Pending
    })
    .await;
}

impl<B> ErrorType for AsyncConsole<'_, '_, B> {
    type Error = Infallible;
}

impl<B: AsyncBoard> Read for AsyncConsole<'_, '_, B> {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, Infallible> {
        Ok(self.wait(|console| console.read(buf)).await)
    }
}

impl<B: AsyncBoard> Write for AsyncConsole<'_, '_, B> {
    async fn write(&mut self, buf: &[u8]) -> Result<usize, Infallible> {
        Ok(self.wait(|console| console.write(buf)).await)
    }
    /// Waits until everything is acknowledged by the PMM's host end.
    async fn flush(&mut self) -> Result<(), Infallible> {
        self.wait(|console| console.flush()).await;
        Ok(())
    }
}

/// Fills all of `into` with random bytes.
pub async fn fill<B: AsyncBoard>(rng: &mut Rng<'_, B>, into: &mut [u8]) {
    let mut done = 0usize;
    while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rng.fill(rest) {
            Ok(n) => done = done.saturating_add(n),
            // A PMM that answers with nothing may do so at once and for ever: the others run first.
            Err(FillError::Empty) => yield_now().await,
            Err(FillError::LinkDown | FillError::WouldBlock) => {
                sleep(rng.link().board().clone(), rng.next_deadline()).await;
            }
        }
    }
}
