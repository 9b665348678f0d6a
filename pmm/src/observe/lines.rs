//! Lines on their way to standard error. A pipe that nobody reads, or a terminal that was stopped with Ctrl-S, takes no
//! more and blocks whoever writes: that must not be a link's loop. So a thread of its own writes, from a queue that is
//! bounded; what does not fit is counted, and the count is told where the lines are missing.
//!
//! `tracing-appender`'s non-blocking writer does nearly that, but with a full queue it prints to standard output when
//! the program ends, which is a guest's console here, and it keeps the count to itself.

use std::collections::VecDeque;
use std::io::Result;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that wait at the most: thousands of lines, and nothing beside a region.
const MAX_WAITING: usize = 256 << 10;

/// The writing end.
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Something waits.
    more: Condvar,
    /// Nothing waits any more.
    done: Condvar,
    /// The line that tells how many are missing.
    notice: fn(u64) -> String,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    /// Bytes in it.
    bytes: usize,
    /// Lines that were dropped and not told of.
    lost: u64,
    /// The thread has a line in its hands.
    writing: bool,
}

impl Lines {
    /// Starts the thread, which hands each line to `sink`.
    ///
    /// # Errors
    ///
    /// If there is no thread to be had.
    pub(super) fn start(
        notice: fn(u64) -> String,
        mut sink: impl FnMut(&[u8]) + Send + 'static,
    ) -> Result<Lines> {
        let (queue, more, done) = Default::default();
        let lines = Lines(Arc::new(Shared { queue, more, done, notice }));
        let shared = lines.0.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || {
            loop {
                let line = shared.next();
                sink(&line);
            }
        })?;
        Ok(lines)
    }

    /// Queues a line, or counts it as lost. Never blocks.
    pub(super) fn push(&self, line: &[u8]) {
        let mut queue = self.0.lock();
        if queue.bytes.saturating_add(line.len()) > MAX_WAITING {
            queue.lost = queue.lost.saturating_add(1);
            self.0.more.notify_one();
            return;
        }
        if let Some(notice) = self.0.notice(&mut queue) {
            queue.put(notice);
        }
        queue.put(line.to_vec());
        self.0.more.notify_one();
    }

    /// Waits until everything is written, at most this long. Whether it is.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let busy = |queue: &mut Queue| queue.writing || !queue.waiting.is_empty() || queue.lost != 0;
        let waited = self.0.done.wait_timeout_while(self.0.lock(), limit, busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notice(&self, queue: &mut Queue) -> Option<Vec<u8>> {
        let lost = std::mem::take(&mut queue.lost);
        (lost != 0).then(|| (self.notice)(lost).into_bytes())
    }

    /// The thread's side: waits for the next line, or the notice behind the last one.
    fn next(&self) -> Vec<u8> {
        let mut queue = self.lock();
        queue.writing = false;
        loop {
            let line = match queue.waiting.pop_front() {
                Some(line) => {
                    queue.bytes = queue.bytes.saturating_sub(line.len());
                    Some(line)
                }
                None => self.notice(&mut queue),
            };
            if let Some(line) = line {
                queue.writing = true;
                return line;
            }
            self.done.notify_all();
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Queue {
    fn put(&mut self, line: Vec<u8>) {
        self.bytes = self.bytes.saturating_add(line.len());
        self.waiting.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const GUARD: Duration = Duration::from_secs(20);

    #[test]
    fn a_stuck_reader_blocks_nobody_and_is_told_what_it_missed() {
        let (to_test, seen) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let lines = Lines::start(
            |lost| format!("lost {lost}"),
            move |line| {
                to_test.send(String::from_utf8(line.to_vec()).unwrap()).unwrap();
                // Stuck in its first line until the test lets go.
                let _ = may_go.recv();
            },
        )
        .unwrap();
        assert!(lines.flush(GUARD), "nothing to wait for");
        lines.push(b"first");
        assert_eq!(seen.recv_timeout(GUARD).unwrap(), "first");
        let line = |number: usize| format!("line {number:0100}");
        let fit = MAX_WAITING / line(0).len();
        for number in 0..fit + 10 {
            lines.push(line(number).as_bytes());
        }
        assert!(!lines.flush(Duration::from_millis(1)), "the deadline holds");
        // It reads one, so that there is room for one more line or the notice, but first for the notice.
        go.send(()).unwrap();
        assert_eq!(seen.recv_timeout(GUARD).unwrap(), line(0));
        lines.push(b"later");
        drop(go);
        let rest: Vec<String> = (0..fit + 1).map(|_| seen.recv_timeout(GUARD).unwrap()).collect();
        for (number, text) in rest[..fit - 1].iter().enumerate() {
            assert_eq!(*text, line(number + 1));
        }
        assert_eq!(rest[fit - 1..], ["lost 10", "later"]);
        assert!(lines.flush(GUARD));
        // The end of a burst is told of even if no line follows.
        lines.push(&[b'x'; MAX_WAITING + 1]);
        assert_eq!(seen.recv_timeout(GUARD).unwrap(), "lost 1");
    }
}
