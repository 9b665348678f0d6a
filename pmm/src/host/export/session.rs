//! One client: what it has agreed to, its fids, and which function answers which request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use hvl_shared_abi::wire::p9::{
    self, Errno, Header, MAX_WALK, MIN_MSIZE, Malformed, NO_FID, Names, Parsed, Payload, Qid, Qids,
    REPLY_PREFIX, Reply, Request, WRITE_PREFIX,
};

use super::Export;
use super::acting::On;
use super::fid::{Fid, State, Table, locked};
use super::place::{Place, WayRoom};
use super::resolve::{Name, Node, join, qid_of, split};

/// Most bytes of extended attributes that the fids of one session hold. Each is at most 64 KiB.
const ATTRIBUTE_BYTES: usize = 1 << 20;

/// Bytes of the longest reply that has no payload: a link's target has at most 4095. (A lock that is not in the way
/// carries the client's own name back; a longer one is refused.)
const SHORT_REPLY: usize = MIN_MSIZE as usize + 64;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handled {
    /// Bytes of the reply. 0: there is none, since the request is too short to have a tag or the reply's place too short
    /// for an error.
    pub length: usize,
    /// Why the request is not of 9P2000.L, if it is not.
    pub malformed: Option<Malformed>,
}

/// One client of an export.
#[derive(Debug)]
pub struct Session {
    pub(super) export: Arc<Export>,
    table: Mutex<Table>,
    /// 0 before a version was agreed on.
    msize: AtomicU32,
    pub(super) attribute_bytes: Arc<Mutex<usize>>,
    ways: WayRoom,
    /// Requests that wait for a lock.
    pub(super) waiting: AtomicUsize,
    /// Held for writing from a renaming until the ways of all fids say so, and for reading by whoever follows one.
    moving: RwLock<()>,
}

/// Where a reply goes.
pub(super) struct Out<'a> {
    tag: u16,
    into: &'a mut [u8],
}

impl<'a> Out<'a> {
    /// Writes the reply.
    pub(super) fn send(self, reply: Reply<'_>) -> Result<usize, Errno> {
        reply.emit(self.tag, &[], self.into).map_err(|p9::Full| Errno::MSGSIZE)
    }

    /// Where the payload of a reply goes, at most `count` bytes.
    pub(super) fn payload(&mut self, count: u32) -> &mut [u8] {
        let end =
            REPLY_PREFIX.saturating_add(usize::try_from(count).unwrap_or(usize::MAX)).min(self.into.len());
        self.into.get_mut(REPLY_PREFIX..end).unwrap_or_default()
    }

    /// Writes a reply before the `count` bytes that stand in [`payload`](Self::payload).
    pub(super) fn send_payload(
        self,
        count: usize,
        reply: impl FnOnce(Payload) -> Reply<'static>,
    ) -> Result<usize, Errno> {
        let reply = reply(Payload(u32::try_from(count).map_err(|_| Errno::MSGSIZE)?));
        let prefix = reply.emit_prefix(self.tag, self.into).map_err(|p9::Full| Errno::MSGSIZE)?;
        Ok(prefix.saturating_add(count).min(self.into.len()))
    }
}

impl Session {
    /// A client that has said nothing yet.
    pub fn new(export: Arc<Export>) -> Session {
        let table = Mutex::new(Table::new(export.rules.fids));
        let attribute_bytes = Arc::new(Mutex::new(ATTRIBUTE_BYTES));
        let ways = WayRoom::of_fids(export.rules.fids);
        Session {
            export,
            table,
            msize: AtomicU32::new(0),
            attribute_bytes,
            ways,
            waiting: AtomicUsize::new(0),
            moving: RwLock::default(),
        }
    }

    /// Most bytes of a message, as agreed; what a version message may have before anything is.
    pub fn msize(&self) -> u32 {
        match self.msize.load(Ordering::Acquire) {
            0 => MIN_MSIZE,
            agreed => agreed,
        }
    }

    /// Returns whether a version was agreed on.
    pub(crate) fn has_agreed(&self) -> bool {
        self.msize.load(Ordering::Acquire) != 0
    }

    /// How many fids are in use.
    pub fn fids(&self) -> usize {
        locked(&self.table).len()
    }

    /// Forgets all that the client has, as when it has gone: the next request must be a version.
    pub fn end(&self) {
        drop(self.restart(0));
    }

    fn restart(&self, msize: u32) -> HashMap<u32, Arc<Fid>> {
        let mut table = locked(&self.table);
        self.msize.store(msize, Ordering::Release);
        table.restart()
    }

    /// Carries out one request and writes its reply to the front of `reply`. It may block as long as the file system
    /// does. Whoever calls it from several threads keeps flushes in order ([`InFlight`](super::InFlight)): here a Tflush
    /// is answered at once.
    pub fn handle(&self, request: &[u8], reply: &mut [u8]) -> Handled {
        let header = match Header::parse(request) {
            Ok(header) => header,
            Err(malformed) => return Handled { length: 0, malformed: Some(malformed) },
        };
        if request.len() > usize::try_from(self.msize()).unwrap_or(usize::MAX) {
            return Handled {
                length: refuse(header.tag, Errno::MSGSIZE, reply),
                malformed: Some(Malformed::Size),
            };
        }
        match Request::parse(request) {
            Ok(parsed) => Handled { length: self.answer(&parsed, reply), malformed: None },
            Err(malformed) => {
                let errno = match malformed {
                    Malformed::Kind => Errno::OPNOTSUPP,
                    _ => Errno::INVAL,
                };
                Handled { length: refuse(header.tag, errno, reply), malformed: Some(malformed) }
            }
        }
    }

    /// The same with memory that is only as long as the answer may be, and at most `room` bytes. `reply` holds the answer
    /// afterwards, or nothing if there is none.
    pub fn reply_to(&self, request: &[u8], reply: &mut Vec<u8>, room: usize) -> Handled {
        let needed = match Request::parse(request).map(|parsed| parsed.message) {
            Ok(Request::Read { count, .. } | Request::Readdir { count, .. }) => {
                REPLY_PREFIX.saturating_add(usize::try_from(count).unwrap_or(usize::MAX))
            }
            _ => SHORT_REPLY,
        };
        let room = room.min(needed).min(usize::try_from(self.msize()).unwrap_or(usize::MAX));
        // What stood there is overwritten or cut off: clearing it first would only cost time.
        reply.resize(room, 0);
        let handled = self.handle(request, reply);
        reply.truncate(handled.length);
        handled
    }

    /// The same for a request that was parsed. The payload of a write is the parsed one's, whole.
    pub fn answer(&self, request: &Parsed<'_, Request<'_>>, reply: &mut [u8]) -> usize {
        let room = reply.len().min(usize::try_from(self.msize()).unwrap_or(usize::MAX));
        let reply = reply.get_mut(..room).unwrap_or_default();
        self.dispatch(request, reply).unwrap_or_else(|errno| refuse(request.tag, errno, reply))
    }

    fn dispatch(&self, request: &Parsed<'_, Request<'_>>, into: &mut [u8]) -> Result<usize, Errno> {
        let out = Out { tag: request.tag, into };
        if let Request::Version { msize, version } = request.message {
            return self.version(msize, version, out);
        }
        if self.msize.load(Ordering::Acquire) == 0 {
            return Err(Errno::PROTO);
        }
        let size = WRITE_PREFIX.saturating_add(request.payload.len());
        if !request.payload.is_empty() && size > usize::try_from(self.msize()).unwrap_or(usize::MAX) {
            return Err(Errno::MSGSIZE);
        }
        match request.message {
            Request::Version { .. } => Err(Errno::PROTO),
            // Nobody has to prove anything: who may connect is the socket's or the link's business. It is by this error
            // that diod and its clients mean that.
            Request::Auth { .. } => Err(Errno::NOENT),
            Request::Attach { fid, afid, tree, uid, .. } => self.attach(fid, afid, tree, uid, out),
            Request::Flush { .. } => out.send(Reply::Flush {}),
            Request::Walk { fid, new_fid, names } => self.walk(fid, new_fid, names, out),
            Request::Clunk { fid } => self.clunk(fid, out),

            Request::Lopen { fid, flags } => self.open(fid, flags, out),
            Request::Lcreate { fid, name, flags, mode, gid } => self.create(fid, name, flags, mode, gid, out),
            Request::Read { fid, offset, count } => self.read(fid, offset, count, out),
            Request::Write { fid, offset, .. } => self.write(fid, offset, request.payload, out),
            Request::Readdir { fid, offset, count } => self.readdir(fid, offset, count, out),
            Request::Fsync { fid, data_only } => self.fsync(fid, data_only, out),
            Request::Lock { fid, lock } => self.lock(fid, lock, out),
            Request::Getlock { fid, lock } => self.getlock(fid, lock, out),

            Request::Getattr { fid, mask } => self.getattr(fid, mask, out),
            Request::Setattr { fid, attr } => self.setattr(fid, attr, out),
            Request::Statfs { fid } => self.statfs(fid, out),
            Request::Readlink { fid } => self.readlink(fid, out),
            Request::Mkdir { directory, name, mode, gid } => self.mkdir(directory, name, mode, gid, out),
            Request::Symlink { fid, name, target, gid } => self.symlink(fid, name, target, gid, out),
            Request::Mknod { directory, name, mode, gid, .. } => self.mknod(directory, name, mode, gid, out),
            Request::Link { directory, fid, name } => self.link(directory, fid, name, out),
            Request::Unlinkat { directory, name, flags } => self.unlinkat(directory, name, flags, out),
            Request::Remove { fid } => self.remove(fid, out),
            Request::Rename { fid, directory, name } => self.rename(fid, directory, name, out),
            Request::Renameat { old_directory, old_name, new_directory, new_name } => {
                self.renameat(old_directory, old_name, new_directory, new_name, out)
            }

            Request::Xattrwalk { fid, new_fid, name } => self.xattrwalk(fid, new_fid, name, out),
            Request::Xattrcreate { fid, name, size, flags } => self.xattrcreate(fid, name, size, flags, out),
        }
    }

    pub(super) fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        locked(&self.table)
    }

    /// The same without ever waiting; `None` if somebody else is at it.
    pub(super) fn try_table(&self) -> Option<std::sync::MutexGuard<'_, Table>> {
        self.table.try_lock().ok()
    }

    pub(super) fn fid(&self, fid: u32) -> Result<Arc<Fid>, Errno> {
        self.table().get(fid)
    }

    /// What a fid stands for.
    pub(super) fn node(&self, fid: &Fid) -> Result<Node, Errno> {
        if let Some(open) = fid.try_open() {
            return Ok(Node::of_open(open, &fid.place()));
        }
        let (root, place) = (&self.export.root, fid.place());
        match root.kept(&place) {
            Some(node) => Ok(node),
            None => {
                let _still = self.still();
                root.find(&place)
            }
        }
    }

    /// Where something is that was just reached.
    pub(super) fn place_of(&self, node: &Node, way: &[u8]) -> Result<Arc<Place>, Errno> {
        Place::of(node, way, &self.ways, self.export.root.descriptors())
    }

    /// Locks the ways for reading: as long as this is held, none changes.
    pub(super) fn still(&self) -> RwLockReadGuard<'_, ()> {
        self.moving.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the ways for writing: as long as this is held, nobody follows one.
    pub(super) fn moving(&self) -> RwLockWriteGuard<'_, ()> {
        self.moving.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fid that is a directory.
    pub(super) fn directory(&self, fid: u32) -> Result<(Arc<Fid>, Node), Errno> {
        let fid = self.fid(fid)?;
        if fid.place().kind != rustix::fs::FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let node = self.node(&fid)?;
        if node.is_directory() { Ok((fid, node)) } else { Err(Errno::NOTDIR) }
    }

    /// The directory at `way` from the root. It is walked to as by the user's own requests, name by name: what stands on
    /// the way by now may be a symbolic link, or belong to somebody else.
    pub(super) fn follow(&self, user: u32, way: &[u8]) -> Result<Node, Errno> {
        let root = &self.export.root;
        let mut at = root.node().clone();
        for name in way.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let name = Name::check(name)?;
            let _acting = self.acting(user, On::File(&at))?;
            at = root.step(&at, name)?;
        }
        if at.is_directory() { Ok(at) } else { Err(Errno::NOTDIR) }
    }

    pub(super) fn may_change(&self) -> Result<(), Errno> {
        if self.export.rules.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    pub(super) fn qid(&self, node: &Node) -> Result<Qid, Errno> {
        Ok(qid_of(self.export.root.node(), &node.status()?))
    }

    fn version(&self, asked: u32, version: &[u8], out: Out<'_>) -> Result<usize, Errno> {
        // Whatever it says, the conversation before is over.
        drop(self.restart(0));
        if version != p9::VERSION {
            return out
                .send(Reply::Version { msize: asked.min(self.export.rules.msize), version: p9::UNKNOWN });
        }
        if asked < MIN_MSIZE {
            return Err(Errno::MSGSIZE);
        }
        let msize = asked.min(self.export.rules.msize);
        drop(self.restart(msize));
        out.send(Reply::Version { msize, version })
    }

    fn attach(&self, fid: u32, afid: u32, tree: &[u8], user: u32, out: Out<'_>) -> Result<usize, Errno> {
        if afid != NO_FID {
            return Err(Errno::BADF);
        }
        if !self.export.is_called(tree) {
            return Err(Errno::NOENT);
        }
        let generation = self.table().generation();
        let root = self.export.root.node();
        let qid = self.qid(root)?;
        let place = self.place_of(root, b"")?;
        self.table().add(generation, fid, Fid::new(place, State::Reached, user))?;
        out.send(Reply::Attach { qid })
    }

    fn walk(&self, from: u32, to: u32, names: Names<'_>, out: Out<'_>) -> Result<usize, Errno> {
        let (generation, start) = {
            let table = self.table();
            if from != to {
                table.may_add(to)?;
            }
            (table.generation(), table.get(from)?)
        };
        if from == to {
            start.is_reached()?;
        }
        let root = &self.export.root;
        // Without names it is not looked at: a second fid for a file that is gone is one.
        let node = if names.is_empty() { root.node().clone() } else { self.node(&start)? };
        let (mut node, mut path) = (node, start.path().to_vec());
        let (mut qids, mut passed) = ([Qid::default(); MAX_WALK], 0);
        let mut failure = None;
        for (name, qid) in names.iter().zip(&mut qids) {
            let step = || -> Result<(Node, Vec<u8>, Qid), Errno> {
                let (next, path) = if matches!(name, b"." | b"..") && !node.is_directory() {
                    return Err(Errno::NOTDIR);
                } else if name == b"." {
                    // No client should need it; diod's do.
                    (node.clone(), path.clone())
                } else if name == b".." {
                    let parent = split(&path).map_or(&[][..], |(parent, _)| parent);
                    (self.follow(start.user, parent)?, parent.to_vec())
                } else {
                    let name = Name::check(name)?;
                    let _acting = self.acting(start.user, On::File(&node))?;
                    (root.step(&node, name)?, join(&path, name)?)
                };
                let qid = self.qid(&next)?;
                Ok((next, path, qid))
            };
            match step() {
                Ok((next, longer, next_qid)) => {
                    (node, path, *qid) = (next, longer, next_qid);
                    passed += 1;
                }
                Err(errno) => {
                    failure = Some(errno);
                    break;
                }
            }
        }
        let qids = Qids::new(qids.get(..passed).unwrap_or_default());
        match failure {
            Some(errno) if passed == 0 => return Err(errno),
            Some(_) => {}
            None => {
                let place = if passed == 0 { start.place() } else { self.place_of(&node, &path)? };
                let reached = Fid::new(place, State::Reached, start.user);
                let mut table = self.table();
                match from == to {
                    true => table.replace(from, &start, reached)?,
                    false => table.add(generation, to, reached)?,
                }
            }
        }
        out.send(Reply::Walk { qids })
    }

    fn clunk(&self, fid: u32, out: Out<'_>) -> Result<usize, Errno> {
        let fid = self.table().remove(fid)?;
        self.set_attribute(&fid)?;
        // Closing may take as long as a file system likes: before the answer, so that the answer means it.
        drop(fid);
        out.send(Reply::Clunk {})
    }
}

/// Writes an error; 0 if not even that fits.
fn refuse(tag: u16, errno: Errno, reply: &mut [u8]) -> usize {
    Reply::Error { errno }.emit(tag, &[], reply).unwrap_or(0)
}
