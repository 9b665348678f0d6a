//! What a fid stands for while nothing is open behind it: which file, and the way to it from the root.
//!
//! A client of Linux holds a fid for every name that it has cached, tens of thousands of them, and a process has not so
//! many descriptors. So a descriptor is kept for as long as there is room, and the one that was not used for longest
//! goes first. A place that has lost its own is found again by its way, confined like every step, and only if what is
//! there is the same file: else the client is told that it is stale. The rejected alternative, file handles of the
//! kernel, leads to any file of the file system, inside the directory or not, and needs the rights for that.
//!
//! What is open needs no way: it stays open whatever becomes of its name.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use hvl_shared_abi::wire::p9::Errno;
use rustix::fs::FileType;

use super::fid::locked;
use super::resolve::{Counted, Node};

/// Bytes that the ways of a session's fids may have, for each fid that it may have. A way has 4095 at most.
const WAY_BYTES: usize = 512;

/// How many bytes the ways of a session may still have.
#[derive(Clone, Debug)]
pub(super) struct WayRoom(Arc<AtomicUsize>);

impl WayRoom {
    pub(super) fn of_fids(fids: usize) -> WayRoom {
        WayRoom(Arc::new(AtomicUsize::new(fids.saturating_mul(WAY_BYTES).max(1 << 16))))
    }
}

/// Names from the root, between slashes.
#[derive(Debug)]
struct Way {
    bytes: Arc<[u8]>,
    room: WayRoom,
}

impl Way {
    fn new(bytes: &[u8], room: &WayRoom) -> Result<Way, Errno> {
        let take = |left: usize| left.checked_sub(bytes.len());
        room.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|_| Errno::NOMEM)?;
        Ok(Way { bytes: bytes.into(), room: room.clone() })
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.room.0.fetch_add(self.bytes.len(), Ordering::Relaxed);
    }
}

/// A file of the export and the way by which it was reached.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) kind: FileType,
    /// Device and inode.
    pub(super) identity: (u64, u64),
    way: Mutex<Way>,
    kept: Mutex<Option<Arc<Counted>>>,
    /// Since it was last passed over for its descriptor.
    used: AtomicBool,
}

impl Place {
    /// Where `node` is; `descriptors` keeps its descriptor for as long as there is room.
    pub(super) fn of(
        node: &Node,
        way: &[u8],
        room: &WayRoom,
        descriptors: &Descriptors,
    ) -> Result<Arc<Place>, Errno> {
        let place = Arc::new(Place {
            kind: node.kind(),
            identity: node.identity(),
            way: Mutex::new(Way::new(way, room)?),
            kept: Mutex::default(),
            used: AtomicBool::new(true),
        });
        if let Some(file) = node.reached().filter(|_| !way.is_empty()) {
            descriptors.keep(&place, file);
        }
        Ok(place)
    }

    pub(super) fn way(&self) -> Arc<[u8]> {
        locked(&self.way).bytes.clone()
    }

    /// Notes that it, or a directory above it, was moved. A way for which there is no room stays as it was,
    /// and is not found.
    pub(super) fn moved(&self, way: &[u8]) {
        let mut place = locked(&self.way);
        if let Ok(new) = Way::new(way, &place.room.clone()) {
            *place = new;
        }
    }

    /// Returns the descriptor that was kept, if it still is.
    pub(super) fn kept(&self) -> Option<Arc<Counted>> {
        self.used.store(true, Ordering::Relaxed);
        locked(&self.kept).clone()
    }
}

/// How many descriptors an export may have: fids are bounded by their number, but several clients share a process. Files
/// that are open have theirs until they are closed; what is left is kept for places.
#[derive(Debug)]
pub(super) struct Descriptors {
    left: AtomicUsize,
    /// Of those, how many files may still take.
    left_for_files: AtomicUsize,
    most: usize,
    /// The places that have one, in the order in which they are looked through for the next to lose it.
    kept: Mutex<VecDeque<Weak<Place>>>,
}

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A file or directory that a client has opened.
    File,
    /// Anything else, which can be given back.
    Passing,
}

impl Descriptors {
    pub(super) fn new(most: usize) -> Arc<Descriptors> {
        // With every file open that there may be, names are still walked to, looked at and removed.
        let reserved = (most / 4).clamp(1, 64);
        Arc::new(Descriptors {
            left: AtomicUsize::new(most),
            left_for_files: AtomicUsize::new(most.saturating_sub(reserved)),
            most,
            kept: Mutex::default(),
        })
    }

    pub(super) fn take(self: &Arc<Descriptors>, purpose: Use) -> Result<Share, Errno> {
        let less = |count: &AtomicUsize| {
            count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        };
        if purpose == Use::File && !less(&self.left_for_files) {
            return Err(Errno::MFILE);
        }
        while !less(&self.left) {
            if !self.take_back() {
                if purpose == Use::File {
                    self.left_for_files.fetch_add(1, Ordering::Relaxed);
                }
                return Err(Errno::MFILE);
            }
        }
        Ok(Share { of: self.clone(), purpose })
    }

    /// Keeps a descriptor for a place.
    pub(super) fn keep(&self, place: &Arc<Place>, file: &Arc<Counted>) {
        if locked(&place.kept).replace(file.clone()).is_some() {
            // It is in the list already.
            return;
        }
        let mut kept = locked(&self.kept);
        kept.push_back(Arc::downgrade(place));
        // Places that are gone have given theirs back.
        if kept.len() > self.most.saturating_mul(2) {
            kept.retain(|place| place.strong_count() > 0);
        }
    }

    /// Takes one back from the place that was not used for longest. `false`: none has any.
    fn take_back(&self) -> bool {
        let mut list = locked(&self.kept);
        // Twice round: all may have been used since the last time.
        for _ in 0..list.len().saturating_mul(2) {
            let Some(place) = list.pop_front() else { break };
            let Some(place) = place.upgrade() else { continue };
            if place.used.swap(false, Ordering::Relaxed) {
                list.push_back(Arc::downgrade(&place));
                continue;
            }
            let file = locked(&place.kept).take();
            drop(list);
            // Whoever works with it just now closes it.
            drop(file);
            return true;
        }
        false
    }
}

/// One descriptor of those that there may be.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<Descriptors>,
    purpose: Use,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.left.fetch_add(1, Ordering::Relaxed);
        if self.purpose == Use::File {
            self.of.left_for_files.fetch_add(1, Ordering::Relaxed);
        }
    }
}
