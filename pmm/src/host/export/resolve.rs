//! The only place where names become files. Everything else works on descriptors that came from here.
//!
//! A walk goes one name at a time and never follows a symbolic link: a walk to one yields the link itself, as clients of
//! 9P2000.L expect, and one through it fails. Each step is an `openat2` that the kernel confines (`RESOLVE_BENEATH`,
//! `RESOLVE_NO_SYMLINKS`) and that opens nothing (`O_PATH`): no FIFO blocks, no device node acts.
//!
//! `..` is the one step that cannot start from the descriptor at hand, for the directory may have been moved anywhere. It
//! walks, from the root and by steps like the rest, the path by which the fid was reached. The rejected alternatives:
//! opening `..` and comparing tells too late that one is outside; the whole path in one `openat2` asks for no user's
//! permissions in between.
//!
//! What was reached is opened for reading and writing through this process's own `/proc/self/fd`, which leads to that
//! very file whatever its name is by then. The only magic link ever followed is one of our own making.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hvl_shared_abi::wire::p9::{Errno, MAX_NAME, MAX_PATH, Qid, qid};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};

use super::fid::OpenFile;
use super::place::{Descriptors, Place, Share, Use};

/// A system call's error as the client is told it.
pub(super) fn errno(error: rustix::io::Errno) -> Errno {
    Errno(u32::try_from(error.raw_os_error()).unwrap_or(Errno::IO.0))
}

/// How often a confined resolution is tried that the kernel could not vouch for because something was renamed
/// meanwhile.
const TRIES: usize = 16;

/// One entry of a directory: not empty, not `.` or `..`, no slash, no zero, at most 255 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    pub(super) fn check(name: &'a [u8]) -> Result<Name<'a>, Errno> {
        match name {
            b"" => Err(Errno::NOENT),
            long if long.len() > MAX_NAME => Err(Errno::NAMETOOLONG),
            name if hvl_shared_abi::wire::p9::is_name(name) => Ok(Name(name)),
            _ => Err(Errno::INVAL),
        }
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// A descriptor that counts.
#[derive(Debug)]
pub(super) struct Counted {
    file: OwnedFd,
    _share: Share,
}

impl AsFd for Counted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Something in the export, for as long as somebody works with it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    file: Descriptor,
    kind: FileType,
    identity: (u64, u64),
}

#[derive(Clone, Debug)]
enum Descriptor {
    /// `O_PATH | O_NOFOLLOW`.
    Reached(Arc<Counted>),
    Open(Arc<OpenFile>),
}

impl Node {
    /// What a client has opened.
    pub(super) fn of_open(file: Arc<OpenFile>, place: &Place) -> Node {
        Node { file: Descriptor::Open(file), kind: place.kind, identity: place.identity }
    }

    pub(super) fn kind(&self) -> FileType {
        self.kind
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Device and inode.
    pub(super) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    pub(super) fn status(&self) -> Result<Statx, Errno> {
        status(self.as_fd(), b"")
    }

    /// Its descriptor, if it is one that can be kept for later.
    pub(super) fn reached(&self) -> Option<&Arc<Counted>> {
        match &self.file {
            Descriptor::Reached(file) => Some(file),
            Descriptor::Open(_) => None,
        }
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.file {
            Descriptor::Reached(file) => file.as_fd(),
            Descriptor::Open(file) => file.as_fd(),
        }
    }
}

/// Attributes of what `name` is in a directory, or of a descriptor if it is empty. Follows nothing, and mounts nothing.
pub(super) fn status(at: BorrowedFd<'_>, name: &[u8]) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(at, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME).map_err(errno)
}

pub(super) fn identity(status: &Statx) -> (u64, u64) {
    (device(status.stx_dev_major, status.stx_dev_minor), status.stx_ino)
}

/// A device number as 9P carries it: Linux's own encoding.
pub(super) fn device(major: u32, minor: u32) -> u64 {
    rustix::fs::makedev(major, minor)
}

/// The exported directory and the way from it to files.
#[derive(Debug)]
pub(super) struct Root {
    node: Node,
    /// `/proc/self/fd`.
    own: OwnedFd,
    confined: Confined,
    descriptors: Arc<Descriptors>,
    #[cfg(test)]
    pub(super) between: Between,
}

/// How names are resolved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confined {
    /// Whatever is opened.
    pub(super) resolve: ResolveFlags,
    /// In a step of a walk.
    pub(super) step: OFlags,
}

/// What a test does between two steps of a walk.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Between(pub(super) Option<Box<dyn Fn() + Send + Sync>>);

#[cfg(test)]
impl std::fmt::Debug for Between {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Between")
    }
}

impl Root {
    /// How the kernel confines every step.
    pub(super) const CONFINED: Confined = Confined {
        // Two times over: a link on the way is an error, and so is what lies outside.
        resolve: ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS),
        step: OFlags::PATH.union(OFlags::NOFOLLOW),
    };

    pub(super) fn new(
        directory: OwnedFd,
        confined: Confined,
        descriptors: Arc<Descriptors>,
    ) -> Result<Root, Errno> {
        let own = rustix::fs::open(
            "/proc/self/fd",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(errno)?;
        let node = Root::node_of(directory, descriptors.take(Use::Passing)?)?;
        let root = Root {
            node,
            own,
            confined,
            descriptors,
            #[cfg(test)]
            between: Between::default(),
        };
        // Whether this kernel and this sandbox can do what everything else needs.
        root.open_beneath(root.node.as_fd(), b".", OFlags::PATH)?;
        root.reopen(&root.node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(root)
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    pub(super) fn descriptors(&self) -> &Arc<Descriptors> {
        &self.descriptors
    }

    fn node_of(file: OwnedFd, share: Share) -> Result<Node, Errno> {
        let file = Counted { file, _share: share };
        let status = status(file.as_fd(), b"")?;
        let kind = FileType::from_raw_mode(status.stx_mode.into());
        Ok(Node { kind, identity: identity(&status), file: Descriptor::Reached(Arc::new(file)) })
    }

    /// What is at a place, if its descriptor was kept.
    pub(super) fn kept(&self, place: &Place) -> Option<Node> {
        if place.way().is_empty() {
            return Some(self.node.clone());
        }
        let file = Descriptor::Reached(place.kept()?);
        Some(Node { file, kind: place.kind, identity: place.identity })
    }

    /// Walks to a place again whose descriptor was needed for another.
    pub(super) fn find(&self, place: &Arc<Place>) -> Result<Node, Errno> {
        let way = place.way();
        let share = self.descriptors.take(Use::Passing)?;
        let found = self.open_beneath(self.node.as_fd(), &way, OFlags::PATH | OFlags::NOFOLLOW);
        let node = match found.and_then(|file| Root::node_of(file, share)) {
            Ok(node) if node.identity == place.identity && node.kind == place.kind => node,
            // Something else is there, or nothing, or no way any more.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                return Err(Errno::STALE);
            }
            Err(errno) => return Err(errno),
        };
        if let Some(file) = node.reached() {
            self.descriptors.keep(place, file);
        }
        Ok(node)
    }

    fn open_beneath(&self, from: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        self.beneath(from, path, flags, Mode::empty())
    }

    fn beneath(
        &self,
        from: BorrowedFd<'_>,
        path: &[u8],
        flags: OFlags,
        mode: Mode,
    ) -> Result<OwnedFd, Errno> {
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(from, path, flags | OFlags::CLOEXEC, mode, self.confined.resolve) {
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) if tries < TRIES => tries += 1,
                other => return other.map_err(errno),
            }
        }
    }

    /// What `name` is in the directory `from`; a symbolic link is itself.
    pub(super) fn step(&self, from: &Node, name: Name<'_>) -> Result<Node, Errno> {
        #[cfg(test)]
        if let Between(Some(between)) = &self.between {
            between();
        }
        if !from.is_directory() {
            return Err(Errno::NOTDIR);
        }
        let share = self.descriptors.take(Use::Passing)?;
        let file = self.open_beneath(from.as_fd(), name.bytes(), self.confined.step)?;
        Root::node_of(file, share)
    }

    /// Opens what was reached. Only regular files and directories: others could block, act, or belong to somebody else.
    /// That cannot change between the look and the opening, since both mean the same inode.
    pub(super) fn reopen(&self, node: &Node, flags: OFlags) -> Result<Counted, Errno> {
        match node.kind() {
            FileType::RegularFile => {}
            FileType::Directory if flags & OFlags::RWMODE == OFlags::RDONLY => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let share = self.descriptors.take(Use::File)?;
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file =
            rustix::io::retry_on_intr(|| rustix::fs::openat(&self.own, own_name(node), flags, Mode::empty()));
        Ok(Counted { file: file.map_err(errno)?, _share: share })
    }

    /// Makes and opens a regular file that did not exist.
    pub(super) fn create(
        &self,
        directory: &Node,
        name: Name<'_>,
        flags: OFlags,
        mode: Mode,
    ) -> Result<(Node, Counted), Errno> {
        let (share, passing) = (self.descriptors.take(Use::File)?, self.descriptors.take(Use::Passing)?);
        let flags =
            flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.beneath(directory.as_fd(), name.bytes(), flags, mode)?;
        let opened = Counted { file, _share: share };
        // By its descriptor, not by its name, which may be another file's by now.
        let path =
            rustix::fs::openat(&self.own, own_name(&opened), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .map_err(errno)?;
        Ok((Root::node_of(path, passing)?, opened))
    }

    /// Gives what was reached a further name.
    pub(super) fn link(&self, node: &Node, directory: &Node, name: Name<'_>) -> Result<(), Errno> {
        rustix::fs::linkat(&self.own, own_name(node), directory, name.bytes(), AtFlags::SYMLINK_FOLLOW)
            .map_err(errno)
    }

    /// Changes permissions, which a descriptor of this kind does not allow by itself.
    pub(super) fn change_mode(&self, node: &Node, mode: Mode) -> Result<(), Errno> {
        if node.kind() == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::fs::chmodat(&self.own, own_name(node), mode, AtFlags::empty()).map_err(errno)
    }
}

/// The name of a descriptor in `/proc/self/fd`.
fn own_name(file: &impl AsFd) -> String {
    file.as_fd().as_raw_fd().to_string()
}

/// The path of a descriptor, for calls that take nothing else.
pub(super) fn own_path(file: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", own_name(file))
}

/// The path of `name` in the directory at `path`.
pub(super) fn join(path: &[u8], name: Name<'_>) -> Result<Vec<u8>, Errno> {
    // The kernel's limit counts a zero at the end.
    if path.len() + 1 + name.bytes().len() >= MAX_PATH {
        return Err(Errno::NAMETOOLONG);
    }
    let mut joined = Vec::with_capacity(path.len() + 1 + name.bytes().len());
    joined.extend_from_slice(path);
    if !path.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name.bytes());
    Ok(joined)
}

/// The path of the directory that holds the last name of `path`, and that name. The root is in nothing.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], Name<'_>)> {
    let at = path.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = match at {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&path[..0], path),
    };
    (!name.is_empty()).then_some((parent, Name(name)))
}

/// The identity of a file as the client sees it. Inodes of one file system stand for themselves; those of others that
/// are mounted below it are mixed with their device, so that two files do not look the same.
pub(super) fn qid_path(root: &Node, (device, inode): (u64, u64)) -> u64 {
    if device == root.identity.0 {
        return inode;
    }
    // The finaliser of SplitMix64: every bit of the input reaches every bit of the output.
    let mut x = inode ^ device.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) | 1 << 63
}

/// The identity with the version that caches compare.
pub(super) fn qid_of(root: &Node, status: &Statx) -> Qid {
    let modified = status.stx_mtime;
    let version =
        (modified.tv_sec as u32).rotate_left(16) ^ modified.tv_nsec ^ (status.stx_size as u32).rotate_left(8);
    Qid {
        kind: qid_kind(FileType::from_raw_mode(status.stx_mode.into())),
        version,
        path: qid_path(root, identity(status)),
    }
}

pub(super) fn qid_kind(kind: FileType) -> u8 {
    match kind {
        FileType::Directory => qid::DIRECTORY,
        FileType::Symlink => qid::SYMLINK,
        _ => qid::FILE,
    }
}

/// Opens a directory of the host for export.
pub(super) fn open_directory(path: &std::path::Path) -> std::io::Result<OwnedFd> {
    let file =
        rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // What a client would run into only later: a directory that cannot be read.
    drop(File::open(path)?);
    Ok(file)
}
