//! Fids: the numbers by which a client names what it has reached, and what is open behind them.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hvl_shared_abi::wire::p9::Errno;
use rustix::fs::{AtFlags, OFlags, StatxFlags};

use super::locks::Locks;
use super::place::Place;
use super::resolve::{Counted, Node, split};
use crate::sys::pieces::Waiting;

/// The number by which Linux knows a file system that is memory.
const TMPFS: u64 = 0x0102_1994;
/// Mode bits by which somebody other than the owner may write: group and others.
const OTHERS_WRITE: u32 = 0o022;

/// What a lock protects here is whole after every statement, so a panic elsewhere does not spoil it.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file or directory that a client has opened. It stays open while anybody works with it, whatever becomes of its
/// fid.
#[derive(Debug)]
pub struct OpenFile {
    file: Counted,
    /// Device and inode.
    pub(super) identity: (u64, u64),
    /// Which of all files that were ever opened.
    pub(super) number: u64,
    locks: Arc<Locks>,
    /// Something was, or is, locked through it.
    locking: AtomicBool,
    pub(super) directory: bool,
    pub(super) writable: bool,
    /// A write waits for no disk, and puts its bytes where it says.
    pub(super) plain_writes: bool,
    /// What a read at once may do.
    pub(super) waiting: Waiting,
    /// Held from seeking in a directory to reading it.
    pub(super) position: Mutex<()>,
}

impl OpenFile {
    /// `node`, opened with `flags`.
    pub(super) fn new(file: Counted, node: &Node, flags: OFlags, locks: Arc<Locks>) -> OpenFile {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let in_memory =
            rustix::fs::fstatfs(&file).is_ok_and(|system| u64::try_from(system.f_type) == Ok(TMPFS));
        // A write to memory waits for the file's lock, which another writer holds until its bytes have been copied, and
        // it can delay that copy for ever (with `userfaultfd`, for example). So the event loop writes only where no other
        // account may.
        let private = rustix::fs::fstat(&file).is_ok_and(|stat| {
            stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & OTHERS_WRITE == 0
        });
        OpenFile {
            file,
            identity: node.identity(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            locks,
            locking: AtomicBool::new(false),
            directory: node.is_directory(),
            writable: flags & OFlags::RWMODE != OFlags::RDONLY,
            // No other file system: while one is frozen, even a write that may not wait does.
            plain_writes: in_memory
                && private
                && !flags.intersects(OFlags::APPEND | OFlags::DSYNC | OFlags::SYNC),
            waiting: if in_memory { Waiting::Memory } else { Waiting::Never },
            position: Mutex::new(()),
        }
    }

    /// Whether it ends at `offset` or before, if that can be said without waiting. Not by a read of nothing: in Linux 5.9
    /// and 5.10 one that may not wait finds that anywhere.
    pub(super) fn ends_at(&self, offset: u64) -> bool {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        rustix::fs::statx(self, c"", flags, StatxFlags::SIZE).is_ok_and(|status| status.stx_size <= offset)
    }
}

impl OpenFile {
    /// A lock was set through it.
    pub(super) fn has_locked(&self) {
        self.locking.store(true, Ordering::Relaxed);
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if self.locking.load(Ordering::Relaxed) {
            self.locks.clone().closed(self);
        }
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What a fid is good for.
#[derive(Debug)]
pub(super) enum State {
    /// Walked to.
    Reached,
    /// Opened.
    Open(Arc<OpenFile>),
    /// The value of an attribute, or the list of their names, as it was when it was walked to.
    Attribute(Held),
    /// An attribute that is being written, and set when the fid is clunked.
    NewAttribute(NewAttribute),
}

/// Bytes that count towards what a session may hold.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    session: Arc<Mutex<usize>>,
}

impl Held {
    /// Makes room for `count` bytes if `session` has so many left.
    pub(super) fn reserve(session: &Arc<Mutex<usize>>, count: usize) -> Result<Held, Errno> {
        let mut left = locked(session);
        *left = left.checked_sub(count).ok_or(Errno::NOMEM)?;
        Ok(Held { bytes: vec![0; count], session: session.clone() })
    }

    /// Keeps less than was reserved.
    pub(super) fn shrink(&mut self, count: usize) {
        let spare = self.bytes.len().saturating_sub(count);
        self.bytes.truncate(count);
        *locked(&self.session) += spare;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *locked(&self.session) += self.bytes.len();
    }
}

/// See [`State::NewAttribute`].
#[derive(Debug)]
pub(super) struct NewAttribute {
    pub(super) name: Vec<u8>,
    pub(super) value: Held,
    /// How much of the value was written, from its start.
    pub(super) written: usize,
    pub(super) flags: rustix::fs::XattrFlags,
}

/// What a fid stands for.
#[derive(Debug)]
pub(super) struct Fid {
    place: Mutex<Arc<Place>>,
    pub(super) state: Mutex<State>,
    /// Who attached, in the client's numbers.
    pub(super) user: u32,
}

impl Fid {
    pub(super) fn new(place: Arc<Place>, state: State, user: u32) -> Fid {
        Fid { place: Mutex::new(place), state: Mutex::new(state), user }
    }

    pub(super) fn place(&self) -> Arc<Place> {
        locked(&self.place).clone()
    }

    /// The names from the root, between slashes, by which it was reached.
    pub(super) fn path(&self) -> Arc<[u8]> {
        self.place().way()
    }

    /// A created file takes the place of its directory.
    pub(super) fn become_file(&self, place: Arc<Place>) {
        *locked(&self.place) = place;
    }

    /// What is open behind it.
    pub(super) fn open(&self) -> Result<Arc<OpenFile>, Errno> {
        match &*locked(&self.state) {
            State::Open(file) => Ok(file.clone()),
            _ => Err(Errno::BADF),
        }
    }

    /// The same without ever waiting; `None` also if somebody else is at it.
    pub(super) fn try_open(&self) -> Option<Arc<OpenFile>> {
        match &*self.state.try_lock().ok()? {
            State::Open(file) => Some(file.clone()),
            _ => None,
        }
    }

    /// Fails unless the fid was walked to and nothing else.
    pub(super) fn is_reached(&self) -> Result<(), Errno> {
        match &*locked(&self.state) {
            State::Reached => Ok(()),
            _ => Err(Errno::BADF),
        }
    }
}

/// The fids of one session. A version message starts a new generation, and what was begun in an old one leaves no trace
/// in the new.
#[derive(Debug)]
pub(super) struct Table {
    generation: u64,
    limit: usize,
    fids: HashMap<u32, Arc<Fid>>,
}

impl Table {
    pub(super) fn new(limit: usize) -> Table {
        Table { generation: 0, limit, fids: HashMap::new() }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn len(&self) -> usize {
        self.fids.len()
    }

    pub(super) fn get(&self, fid: u32) -> Result<Arc<Fid>, Errno> {
        self.fids.get(&fid).cloned().ok_or(Errno::BADF)
    }

    /// Whether `fid` could be added now.
    pub(super) fn may_add(&self, fid: u32) -> Result<(), Errno> {
        match self.fids.contains_key(&fid) || fid == hvl_shared_abi::wire::p9::NO_FID {
            true => Err(Errno::BADF),
            false if self.fids.len() >= self.limit => Err(Errno::MFILE),
            false => Ok(()),
        }
    }

    /// Adds what was prepared in `generation`.
    pub(super) fn add(&mut self, generation: u64, fid: u32, what: Fid) -> Result<(), Errno> {
        self.may_add(fid)?;
        if generation != self.generation {
            return Err(Errno::BADF);
        }
        self.fids.insert(fid, Arc::new(what));
        Ok(())
    }

    /// Puts something else behind a fid that still is `before`.
    pub(super) fn replace(&mut self, fid: u32, before: &Arc<Fid>, what: Fid) -> Result<(), Errno> {
        match self.fids.get_mut(&fid) {
            Some(there) if Arc::ptr_eq(there, before) => {
                *there = Arc::new(what);
                Ok(())
            }
            _ => Err(Errno::BADF),
        }
    }

    pub(super) fn remove(&mut self, fid: u32) -> Result<Arc<Fid>, Errno> {
        self.fids.remove(&fid).ok_or(Errno::BADF)
    }

    /// Forgets all fids, which the caller drops after it has let go of the table: closing a file may take long.
    pub(super) fn restart(&mut self) -> HashMap<u32, Arc<Fid>> {
        self.generation += 1;
        std::mem::take(&mut self.fids)
    }

    /// A directory or file was moved within the export: so were the fids below it.
    pub(super) fn moved(&self, from: &[u8], to: &[u8]) {
        for fid in self.fids.values() {
            let place = fid.place();
            let path = place.way();
            let Some(rest) = path.strip_prefix(from) else { continue };
            if rest.is_empty() || rest.starts_with(b"/") {
                let new = [to, rest].concat();
                // One too long to be resolved stays as it was, and is not found.
                if split(&new).is_some() && new.len() < hvl_shared_abi::wire::p9::MAX_PATH {
                    place.moved(&new);
                }
            }
        }
    }
}
