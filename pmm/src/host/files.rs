//! Workers beside the event loop that answer a guest's 9P messages.
//!
//! The loop hands messages over and takes answers back; what blocks, blocks a worker. Everything a worker touches is
//! private memory and belongs to one *generation*, a session of the guest: an answer of an earlier one is dropped. Work
//! of an earlier one that has not begun is dropped, too; a change that has begun cannot be called back, so no change of
//! a later session starts before it has ended, or an old write could land on a newer one.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use hvl_shared_abi::wire::p9::{Errno, Header, MAX_MSIZE, NO_TAG, Reply, Request};

use super::export::{Export, Session};
use super::{HostEnd, MessageServer, Shared, Transfer};
use crate::device::p9::PENDING;
use crate::observe::Waker;
use crate::sys::Watches;

/// Threads for each exported directory: as many operations may block before others wait.
const WORKERS: usize = 4;
/// Bytes of requests, and of answers, that are kept at a time; one of any length is always taken.
const BUDGET: usize = 8 << 20;

/// What serves one client from its first message to its last.
pub trait Conversation: Send + Sync {
    /// Answers one message; several workers may call at once. `answer` is empty and gets at most `room` bytes.
    fn handle(&self, request: &[u8], answer: &mut Vec<u8>, room: usize);

    /// See [`MessageServer::at_once`]. The loop calls.
    fn at_once(&self, _transfer: Transfer<'_>) -> Option<u32> {
        None
    }
}

/// What the messages of a guest are about.
pub trait Conversations: Send {
    /// A client that nobody knows yet.
    fn begin(&self) -> Arc<dyn Conversation>;
    /// A few words for the status.
    fn state(&self) -> String;
}

/// A message that a worker answers.
pub struct Job {
    generation: u64,
    id: usize,
    room: usize,
    changes: bool,
    request: Vec<u8>,
    with: Arc<dyn Conversation>,
}

impl Job {
    /// Whether it may change something that outlives the session.
    pub fn changes(&self) -> bool {
        self.changes
    }
    /// Does what it asks for. The answer begins as `answer`, whose memory it uses.
    fn answer(&self, mut answer: Vec<u8>) -> Vec<u8> {
        self.with.handle(&self.request, &mut answer, self.room);
        if answer.len() > self.room {
            refuse(&self.request, Errno::MSGSIZE, &mut answer);
        }
        answer
    }
    /// The same, and an error where that panics. `true`: it did.
    fn answer_or_fail(&self, answer: Vec<u8>) -> (Vec<u8>, bool) {
        match catch_unwind(AssertUnwindSafe(|| self.answer(answer))) {
            Ok(answer) => (answer, false),
            Err(_) => {
                let mut answer = Vec::new();
                refuse(&self.request, Errno::IO, &mut answer);
                (answer, true)
            }
        }
    }
}

struct Done {
    generation: u64,
    id: usize,
    answer: Vec<u8>,
}

#[derive(Default)]
struct Work {
    generation: u64,
    jobs: VecDeque<Job>,
    done: Vec<Done>,
    /// Conversations that are over.
    ended: Vec<Arc<dyn Conversation>>,
    /// Changes of earlier generations that are under way, and conversations that are over and not ended yet.
    old_changes: usize,
    /// Changes of this generation that are.
    changes: usize,
    closing: bool,
    /// A worker has panicked: what it was about is answered with an error, and the link ends.
    panicked: bool,
    /// Memory to be used again.
    spare: Vec<Vec<u8>>,
}

impl Work {
    /// The first job that may begin.
    fn next(&mut self) -> Option<Job> {
        let may = |job: &Job| !job.changes || self.old_changes == 0;
        let job = self.jobs.iter().position(may).and_then(|at| self.jobs.remove(at))?;
        self.changes += usize::from(job.changes);
        Some(job)
    }

    /// Files what became of a job. `true`: it was the last change of an earlier generation.
    fn finish(&mut self, done: Done, changes: bool) -> bool {
        let current = done.generation == self.generation;
        if current {
            self.changes = self.changes.saturating_sub(usize::from(changes));
            self.done.push(done);
        } else {
            self.keep(done.answer);
        }
        changes && !current && self.old_change_is_over()
    }

    fn old_change_is_over(&mut self) -> bool {
        self.old_changes = self.old_changes.saturating_sub(1);
        self.old_changes == 0
    }

    fn keep(&mut self, mut bytes: Vec<u8>) {
        if self.spare.iter().map(Vec::capacity).sum::<usize>() < BUDGET {
            bytes.clear();
            self.spare.push(bytes);
        }
    }
}

struct Room {
    work: Mutex<Work>,
    news: Condvar,
    waker: Waker,
}

impl Room {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One worker's life.
    fn serve(&self) {
        let mut work = self.work();
        while !work.closing {
            if let Some(ended) = work.ended.pop() {
                drop(work);
                self.end(ended);
            } else if let Some(job) = work.next() {
                let spare = work.spare.pop().unwrap_or_default();
                drop(work);
                let (answer, panicked) = job.answer_or_fail(spare);
                // Before the answer: whoever sees that knows of this.
                self.work().panicked |= panicked;
                self.finish(job, answer);
            } else {
                work = self.news.wait(work).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            work = self.work();
        }
    }

    /// Closes what a client had open, which may take as long as a file system likes.
    fn end(&self, ended: Arc<dyn Conversation>) {
        let panicked = catch_unwind(AssertUnwindSafe(|| drop(ended))).is_err();
        let mut work = self.work();
        work.panicked |= panicked;
        let freed = work.old_change_is_over();
        drop(work);
        self.tell(freed);
    }

    fn finish(&self, job: Job, answer: Vec<u8>) {
        let Job { generation, id, changes, request, with, .. } = job;
        // The last one of a client that is gone closes its files: while nobody waits for the lock.
        let panicked = catch_unwind(AssertUnwindSafe(|| drop(with))).is_err();
        let mut work = self.work();
        work.panicked |= panicked;
        work.keep(request);
        let freed = work.finish(Done { generation, id, answer }, changes);
        drop(work);
        self.tell(freed);
    }

    /// `freed`: changes that waited may begin.
    fn tell(&self, freed: bool) {
        self.waker.wake();
        if freed {
            self.news.notify_all();
        }
    }
}

/// A worker that is no thread: a simulator decides when it begins, acts and ends.
#[derive(Clone)]
pub struct Worker(Arc<Room>);

impl Worker {
    /// The first message that may begin, if there is one. [`Worker::finish`] ends it.
    pub fn begin(&self) -> Option<Job> {
        let ended = std::mem::take(&mut self.0.work().ended);
        ended.into_iter().for_each(|ended| self.0.end(ended));
        self.0.work().next()
    }
    /// Does what a message asks for.
    pub fn answer(&self, job: &Job) -> Vec<u8> {
        job.answer(Vec::new())
    }
    /// Hands the answer to the loop.
    pub fn finish(&self, job: Job, answer: Vec<u8>) {
        self.0.finish(job, answer);
    }
}

/// Answers that a request failed.
fn refuse(request: &[u8], errno: Errno, answer: &mut Vec<u8>) {
    let tag = Header::parse(request).map_or(u16::MAX, |header| header.tag);
    answer.clear();
    answer.resize(11, 0);
    let used = Reply::Error { errno }.emit(tag, &[], answer).unwrap_or(0);
    answer.truncate(used);
}

/// A message that was handed over and not answered.
#[derive(Clone, Copy)]
struct UnderWay {
    tag: u16,
    bytes: usize,
    /// The number of the flush that waits for it.
    flush: Option<usize>,
}

/// The loop's side of the workers.
pub struct Files {
    conversations: Box<dyn Conversations>,
    current: Option<Arc<dyn Conversation>>,
    room: Arc<Room>,
    under_way: [Option<UnderWay>; PENDING],
    /// Flushes that can be answered at once.
    flushed: Vec<usize>,
}

impl Files {
    /// Starts the workers.
    ///
    /// # Errors
    ///
    /// If there are no descriptors or no threads to be had.
    pub fn start(conversations: Box<dyn Conversations>) -> std::io::Result<Files> {
        let (files, Worker(room)) = Files::without_threads(conversations)?;
        for _ in 0..WORKERS {
            let room = room.clone();
            thread::Builder::new().name("files".into()).spawn(move || room.serve())?;
        }
        Ok(files)
    }

    /// Starts none: whoever calls the worker does the work.
    ///
    /// # Errors
    ///
    /// If there are no descriptors to be had.
    pub fn without_threads(conversations: Box<dyn Conversations>) -> std::io::Result<(Files, Worker)> {
        let waker = Waker::new()?;
        let room = Arc::new(Room { work: Mutex::default(), news: Condvar::new(), waker });
        let worker = Worker(room.clone());
        let files =
            Files { conversations, current: None, room, under_way: [None; PENDING], flushed: Vec::new() };
        Ok((files, worker))
    }

    /// Marks a message as answered, and says what was known of it.
    fn settle(&mut self, id: usize) -> Option<UnderWay> {
        self.under_way.get_mut(id)?.take()
    }

    /// The message with this tag, or the last flush that waits for it.
    fn last_for(&self, tag: u16) -> Option<usize> {
        let mut last = self.under_way.iter().position(|one| one.is_some_and(|one| one.tag == tag))?;
        for _ in 0..PENDING {
            match self.under_way.get(last) {
                Some(Some(UnderWay { flush: Some(next), .. })) => last = *next,
                _ => break,
            }
        }
        Some(last)
    }

    fn bytes_under_way(&self) -> usize {
        self.under_way.iter().flatten().map(|one| one.bytes).sum()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // Not joined: one may be stuck in a file system for as long as that likes, and touches nothing of ours.
        let mut work = self.room.work();
        work.closing = true;
        work.jobs.clear();
        self.room.news.notify_all();
    }
}

impl MessageServer for Files {
    fn submit(&mut self, id: usize, len: usize, room: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool {
        // One that reboots faster than files can be closed waits.
        if self.current.is_none() && self.room.work().ended.len() >= PENDING {
            return false;
        }
        let bytes = len.saturating_add(room.min(MAX_MSIZE as usize));
        let under_way = self.bytes_under_way();
        if under_way != 0 && under_way.saturating_add(bytes) > BUDGET {
            return false;
        }
        let mut request = self.room.work().spare.pop().unwrap_or_default();
        request.resize(len, 0);
        fill(&mut request);
        let (kind, tag) = Header::parse(&request).map_or((0, NO_TAG), |header| (header.kind, header.tag));
        let flushes = match Request::parse(&request).map(|parsed| parsed.message) {
            Ok(Request::Flush { old_tag }) => Some(self.last_for(old_tag)),
            _ => None,
        };
        if let Some(slot) = self.under_way.get_mut(id) {
            *slot = Some(UnderWay { tag, bytes, flush: None });
        }
        match flushes {
            // What is flushed is answered first, and the flush behind it, as soon as the work has ended.
            Some(Some(other)) => {
                if let Some(Some(one)) = self.under_way.get_mut(other) {
                    one.flush = Some(id);
                }
            }
            Some(None) => {
                self.flushed.push(id);
                self.room.waker.wake();
            }
            None => {
                let with = self.current.get_or_insert_with(|| self.conversations.begin()).clone();
                let mut work = self.room.work();
                let generation = work.generation;
                work.jobs.push_back(Job { generation, id, room, changes: changes(kind), request, with });
                self.room.news.notify_one();
            }
        }
        true
    }

    fn at_once(&mut self, transfer: Transfer<'_>) -> Option<u32> {
        // No write overtakes a change of an earlier session: it needs an open file, and opening waits for those.
        self.current.as_ref()?.at_once(transfer)
    }

    fn answers(&mut self, take: &mut dyn FnMut(usize, &[u8])) {
        let (generation, done) = {
            let mut work = self.room.work();
            (work.generation, std::mem::take(&mut work.done))
        };
        let mut flushes = std::mem::take(&mut self.flushed);
        for one in done.iter().filter(|one| one.generation == generation) {
            take(one.id, &one.answer);
            flushes.extend(self.settle(one.id).and_then(|one| one.flush));
        }
        while let Some(id) = flushes.pop() {
            let Some(UnderWay { tag, flush, .. }) = self.settle(id) else { continue };
            let mut answer = [0; 7];
            if let Ok(used) = (Reply::Flush {}).emit(tag, &[], &mut answer) {
                take(id, answer.get(..used).unwrap_or(&[]));
            }
            flushes.extend(flush);
        }
        if !done.is_empty() {
            let mut work = self.room.work();
            done.into_iter().for_each(|one| work.keep(one.answer));
        }
    }

    fn forget(&mut self) {
        let ended = self.current.take();
        self.under_way = [None; PENDING];
        self.flushed.clear();
        let mut work = self.room.work();
        work.generation += 1;
        work.old_changes += std::mem::take(&mut work.changes) + usize::from(ended.is_some());
        // A worker lets go of it: closing its files may block, and their locks are gone only then.
        work.ended.extend(ended);
        self.room.news.notify_one();
        work.jobs.clear();
        work.done.clear();
    }
}

/// The guests of a link, one after the other, as clients of an exported directory.
pub struct Guests(pub Arc<Export>);

impl Conversations for Guests {
    fn begin(&self) -> Arc<dyn Conversation> {
        Arc::new(Session::new(self.0.clone()))
    }
    fn state(&self) -> String {
        self.0.path().display().to_string()
    }
}

impl Conversation for Session {
    fn handle(&self, request: &[u8], answer: &mut Vec<u8>, room: usize) {
        self.reply_to(request, answer, room);
    }
    fn at_once(&self, transfer: Transfer<'_>) -> Option<u32> {
        Session::at_once(self, transfer)
    }
}

impl HostEnd for Files {
    fn watch(&self, watches: &mut Watches) {
        watches.add(self.room.waker.as_raw_fd(), true, false);
    }

    fn progress(&mut self, _now_us: u64) {
        self.room.waker.clear();
    }

    fn failure(&self) -> Option<String> {
        let panicked = self.room.work().panicked;
        panicked.then(|| {
            let files = self.conversations.state();
            format!("a worker of its files ({files}) panicked, and what it did may be half done; this is a defect of pmm")
        })
    }

    fn state(&self) -> Cow<'static, str> {
        let under_way = self.under_way.iter().flatten().count();
        format!("{}, {under_way} requests under way", self.conversations.state()).into()
    }
}

impl<T: MessageServer + ?Sized> MessageServer for Shared<T> {
    fn submit(&mut self, id: usize, len: usize, room: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool {
        self.get().submit(id, len, room, fill)
    }
    fn at_once(&mut self, transfer: Transfer<'_>) -> Option<u32> {
        self.get().at_once(transfer)
    }
    fn answers(&mut self, take: &mut dyn FnMut(usize, &[u8])) {
        self.get().answers(take);
    }
    fn forget(&mut self) {
        self.get().forget();
    }
}

/// Whether a message may change something that outlives the session.
fn changes(kind: u8) -> bool {
    // statfs readlink getattr xattrwalk readdir getlock version auth attach flush walk read
    !matches!(kind, 8 | 22 | 24 | 30 | 40 | 54 | 100 | 102 | 104 | 108 | 110 | 116)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics at every message with an odd tag, and when it ends if it ever had one.
    struct Panicking(std::sync::atomic::AtomicBool);

    impl Conversation for Panicking {
        fn handle(&self, request: &[u8], answer: &mut Vec<u8>, _room: usize) {
            let header = Header::parse(request).unwrap();
            if header.tag % 2 == 1 {
                self.0.store(true, std::sync::atomic::Ordering::SeqCst);
                panic!("the test's panic");
            }
            answer.extend_from_slice(request);
        }
    }

    impl Drop for Panicking {
        fn drop(&mut self) {
            assert!(!*self.0.get_mut(), "the test's panic");
        }
    }

    struct Some9;

    impl Conversations for Some9 {
        fn begin(&self) -> Arc<dyn Conversation> {
            Arc::new(Panicking(false.into()))
        }
        fn state(&self) -> String {
            "tag".into()
        }
    }

    /// A clunk, which counts as a change.
    fn submit(files: &mut Files, id: usize, tag: u8) {
        let clunk = [11, 0, 0, 0, 120, tag, 0, 0, 0, 0, 0];
        let taken =
            files.submit(id, clunk.len(), MAX_MSIZE as usize, &mut |room| room.copy_from_slice(&clunk));
        assert!(taken);
    }

    /// Waits for the answer to a request.
    fn answer(files: &mut Files, id: usize) -> Vec<u8> {
        let mut found = None;
        while found.is_none() {
            let mut watches = Watches::default();
            files.watch(&mut watches);
            assert!(watches.wait(Some(20_000_000)) > 0, "no worker had an answer in 20 s");
            files.progress(0);
            files.answers(&mut |number, bytes| {
                found = found.take().or((number == id).then(|| bytes.to_vec()))
            });
        }
        found.unwrap()
    }

    #[test]
    fn what_a_panicking_worker_was_about_is_answered_and_holds_up_nothing() {
        let mut files = Files::start(Box::new(Some9)).unwrap();
        submit(&mut files, 0, 2);
        assert_eq!(answer(&mut files, 0)[4], 120);
        assert_eq!(files.failure(), None);
        // More than there are workers.
        for round in 0..2 * WORKERS {
            submit(&mut files, round % PENDING, 1);
            assert_eq!(answer(&mut files, round % PENDING)[4], 7, "an error");
        }
        assert!(files.failure().unwrap().contains("panicked"));
        // The next session's changes wait for nobody, not even for a conversation that cannot end.
        files.forget();
        submit(&mut files, 0, 4);
        assert_eq!(answer(&mut files, 0)[4], 120);
    }
}
