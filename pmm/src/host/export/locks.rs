//! Locks on ranges of files: the kernel's, so that they hold against other exports and programs of this host, and beside
//! them who has which, since the kernel cannot say whose a lock of an open file is and a client wants to know.
//!
//! In an export that changes nothing no lock is taken. Whoever may not write to a file could else keep those away who
//! may: a program of this host, or another PMM whose region it is. What is asked for is looked up there: a reader is told
//! of a writer, and holds nobody up.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use hvl_shared_abi::wire::p9::{Errno, GetLock, Lock, Reply, lock};

use super::fid::{OpenFile, locked};
use super::session::{Out, Session};
use crate::sys::{LockKind, RangeLock};

/// Ranges that the clients of an export may have locked at a time: the kernel bounds them for nobody.
const RANGES: usize = 4096;
/// Bytes of a client's name that are kept; Linux's have 64 at most. A longer one is left out of answers.
const CLIENT_NAME: usize = 64;

/// Bounds how long the server waits for a lock that is held, if the client asks to wait. Linux's client wakes
/// its next waiter before it releases the lock, so the waiter's request may overtake the release; if refused,
/// it would retry after 30 s.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bounds the time until it retries without having been notified: the end of an open file is reported shortly
/// before the kernel frees its locks, and a program of this host reports nothing.
const AGAIN: Duration = Duration::from_millis(20);
/// Bounds the requests of a client that wait for locks at a time, of the [`THREADS`](super::THREADS) that it
/// has: a thread must be free for the request that releases the lock.
const WAITING: usize = 2;

/// Who has a lock, in a client's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    process: u32,
    client: Arc<[u8]>,
}

/// A range that an open file has locked.
#[derive(Clone, Debug)]
struct Range {
    /// [`OpenFile::number`].
    file: u64,
    owner: Owner,
    kind: LockKind,
    start: u64,
    /// The first byte behind it.
    end: u64,
}

impl Range {
    fn meets(&self, start: u64, end: u64) -> bool {
        self.start < end && start < self.end
    }
}

/// The ranges of all files of an export that its clients have locked.
#[derive(Debug, Default)]
pub(super) struct Locks {
    files: Mutex<HashMap<(u64, u64), Vec<Range>>>,
    /// Something was given up.
    freed: Condvar,
}

/// Returns the range of bytes that a lock covers. Length 0 is all that follow.
fn bytes_of(lock: RangeLock) -> (u64, u64) {
    (lock.start, if lock.length == 0 { u64::MAX } else { lock.start.saturating_add(lock.length) })
}

impl Locks {
    /// Takes or gives up a lock, in the kernel and here. `Ok(false)`: somebody else has it.
    fn set(&self, file: &OpenFile, owner: Owner, asked: RangeLock) -> Result<bool, Errno> {
        let (start, end) = bytes_of(asked);
        let mut files = locked(&self.files);
        // A range that is cut in two is one more, and the new one another.
        if files.values().map(Vec::len).sum::<usize>() + 2 > RANGES
            && (asked.kind != LockKind::Unlock || (start, end) != (0, u64::MAX))
        {
            return Err(Errno::NOLCK);
        }
        if !crate::sys::set_range_lock(file.as_fd(), asked).map_err(|error| io_errno(&error))? {
            return Ok(false);
        }
        let ranges = files.entry(file.identity).or_default();
        let mut kept = Vec::with_capacity(ranges.len() + 2);
        for range in ranges.drain(..) {
            if range.file != file.number || !range.meets(start, end) {
                kept.push(range);
                continue;
            }
            if range.start < start {
                kept.push(Range { end: start, ..range.clone() });
            }
            if end < range.end {
                kept.push(Range { start: end, ..range });
            }
        }
        if asked.kind != LockKind::Unlock {
            let mut new = Range { file: file.number, owner, kind: asked.kind, start, end };
            // Neighbours of one kind are one, as in the kernel: a file locked byte by byte is no thousand ranges.
            kept.retain(|range| {
                let same = (range.file, range.kind, &range.owner) == (new.file, new.kind, &new.owner);
                let beside = same && (range.end == new.start || range.start == new.end);
                if beside {
                    (new.start, new.end) = (new.start.min(range.start), new.end.max(range.end));
                }
                !beside
            });
            kept.push(new);
        }
        file.has_locked();
        match kept.is_empty() {
            true => drop(files.remove(&file.identity)),
            false => *ranges = kept,
        }
        // A lock for reading may take the place of one for writing.
        self.freed.notify_all();
        Ok(true)
    }

    /// Does the same, and waits a moment for a lock that somebody else has.
    fn set_patiently(&self, file: &OpenFile, owner: &Owner, asked: RangeLock) -> Result<bool, Errno> {
        let end = Instant::now() + PATIENCE;
        while !self.set(file, owner.clone(), asked)? {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // Whatever ends the wait, the kernel is asked again.
            drop(self.freed.wait_timeout(locked(&self.files), left.min(AGAIN)));
        }
        Ok(true)
    }

    /// Forgets what an open file has locked: it is being closed.
    pub(super) fn closed(&self, file: &OpenFile) {
        let mut files = locked(&self.files);
        if let Some(ranges) = files.get_mut(&file.identity) {
            ranges.retain(|range| range.file != file.number);
            if ranges.is_empty() {
                files.remove(&file.identity);
            }
        }
        self.freed.notify_all();
    }

    /// Returns the client's name for who holds a lock that the kernel has found in the way of `file`.
    fn owner(&self, file: &OpenFile, found: RangeLock) -> Option<Owner> {
        let (start, end) = bytes_of(found);
        let files = locked(&self.files);
        let holds =
            |range: &&Range| range.file != file.number && range.kind == found.kind && range.meets(start, end);
        files.get(&file.identity)?.iter().find(holds).map(|range| range.owner.clone())
    }
}

/// A request that may wait for a lock.
pub(super) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session {
    pub(super) fn lock(&self, fid: u32, asked: Lock<'_>, out: Out<'_>) -> Result<usize, Errno> {
        let file = self.fid(fid)?.open()?;
        if asked.flags & !(lock::BLOCK | lock::RECLAIM) != 0 {
            return Err(Errno::INVAL);
        }
        let range = RangeLock { kind: lock_kind(asked.kind)?, start: asked.start, length: asked.length };
        // It hardly waits here: a client that would wait longer asks again.
        let done = if self.export.rules.read_only {
            match range.kind {
                LockKind::Write => return Err(Errno::BADF),
                LockKind::Unlock => true,
                LockKind::Read => in_the_way(&file, range)?.is_none(),
            }
        } else {
            let known = asked.client.len() <= CLIENT_NAME;
            let client = Arc::from(if known { asked.client } else { &[] });
            let (owner, locks) = (Owner { process: asked.process, client }, &self.export.locks);
            match self.waiting(asked.flags) {
                Some(_waiting) => locks.set_patiently(&file, &owner, range)?,
                None => locks.set(&file, owner, range)?,
            }
        };
        out.send(Reply::Lock { status: if done { lock::SUCCESS } else { lock::BLOCKED } })
    }

    /// Takes a place among the requests that wait, if this one would and there is one.
    pub(super) fn waiting(&self, flags: u32) -> Option<Waiting<'_>> {
        let more = |waiting: usize| (waiting < WAITING).then(|| waiting + 1);
        let place = flags & lock::BLOCK != 0
            && self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        place.then(|| Waiting(&self.waiting))
    }

    pub(super) fn getlock(&self, fid: u32, asked: GetLock<'_>, out: Out<'_>) -> Result<usize, Errno> {
        let file = self.fid(fid)?.open()?;
        let kind = match lock_kind(asked.kind)? {
            // So asks Linux, whichever lock its program has in mind. What would be in a writer's way is told; that a
            // reader might share it cannot be known.
            LockKind::Unlock => LockKind::Write,
            kind => kind,
        };
        let range = RangeLock { kind, start: asked.start, length: asked.length };
        let Some(other) = in_the_way(&file, range)? else {
            return out.send(Reply::Getlock { lock: GetLock { kind: lock::UNLOCK, ..asked } });
        };
        // A program of this host, or a client of another export, has no name here.
        let owner = self.export.locks.owner(&file, other);
        let (process, client) =
            owner.as_ref().map_or((0, &[][..]), |owner| (owner.process, &owner.client[..]));
        let kind = if other.kind == LockKind::Read { lock::READ } else { lock::WRITE };
        let answer = GetLock { kind, start: other.start, length: other.length, process, client };
        out.send(Reply::Getlock { lock: answer })
    }
}

fn in_the_way(file: &OpenFile, range: RangeLock) -> Result<Option<RangeLock>, Errno> {
    crate::sys::get_range_lock(file.as_fd(), range).map_err(|error| io_errno(&error))
}

fn lock_kind(kind: u8) -> Result<LockKind, Errno> {
    Ok(match kind {
        lock::READ => LockKind::Read,
        lock::WRITE => LockKind::Write,
        lock::UNLOCK => LockKind::Unlock,
        _ => return Err(Errno::INVAL),
    })
}

/// Returns the standard library's error as the client is told it.
fn io_errno(error: &std::io::Error) -> Errno {
    match error.raw_os_error().and_then(|number| u32::try_from(number).ok()) {
        Some(number) => Errno(number),
        None if error.kind() == std::io::ErrorKind::InvalidInput => Errno::INVAL,
        None => Errno::IO,
    }
}
