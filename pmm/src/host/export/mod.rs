//! A directory of this host, served to a client that is not trusted, in 9P2000.L.
//!
//! An [`Export`] is an opened directory and what may be done in it. A [`Session`] is one client of it: a virtio device,
//! or a connection of `pmm serve-9p`. [`Session::handle`] takes a request and writes the reply; it may block as a file
//! system may, and may be called by several threads at once. What an event loop needs that must not block stands
//! beside it: [`Session::at_once`] for reads and writes that need no waiting, [`InFlight`] for the order of replies.
//!
//! What a client can and cannot do:
//!
//! - No name, link or race leads outside the directory; `resolve.rs` says how.
//! - Only regular files and directories are ever opened, and only regular files, directories and symbolic links made.
//! - Set-user-ID and set-group-ID bits are taken off every mode that the client gives.
//! - Fids, the attributes behind them, and descriptors are bounded in number; messages by the agreed size.
//! - Whatever it sends is answered: with what it asked for or with an error that carries its tag.
//!
//! A write that was acknowledged is in the page cache: it survives this process, not a power failure. Tfsync is an
//! `fdatasync` or `fsync`, as the client says.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hvl_shared_abi::wire::p9::{MAX_MSIZE, MIN_MSIZE, NO_UID};

mod acting;
mod at_once;
mod data;
mod fid;
mod flight;
mod locks;
mod place;
mod resolve;
mod session;
mod stream;
#[cfg(test)]
mod tests;
mod tree;
mod xattr;

pub use fid::OpenFile;
pub use flight::InFlight;
pub use session::{Handled, Session};
pub(crate) use stream::{Connection, Ended, Stream, THREADS};

use crate::failure::{Failure, refused};
use locks::Locks;
use place::Descriptors;
use resolve::Root;

/// Most fids of a session unless its export says otherwise.
pub const DEFAULT_FIDS: usize = 65_536;
/// Least and most that an export may be told. Each fid costs some 300 bytes and its way.
pub const FIDS: std::ops::RangeInclusive<usize> = 64..=1 << 20;
/// Most descriptors that an export opens unless it is told otherwise. A process may have 1024 where nobody raised that.
pub const DEFAULT_DESCRIPTORS: usize = 768;

/// Whose files are whose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ids {
    /// Owners and groups are shown as they are. What a client makes is given to its user and group, and changes of owner
    /// are carried out, as far as this process may.
    #[default]
    Pass,
    /// Every file appears to belong to this user and group. What a client makes belongs to this process, and owners
    /// cannot be changed.
    Squash {
        /// The user that is shown.
        uid: u32,
        /// The group that is shown.
        gid: u32,
    },
    /// Users and groups `inside`, `inside + 1` and so on of a client are those from `outside` on of this host, `count` of
    /// them. Whatever belongs to others is shown as [`NOBODY`]'s and nothing can be given to others. Requests are carried
    /// out as the user of this host that the client's is, and as [`NOBODY`] for one that is none; the client's root has the
    /// rights of root over what belongs to mapped users and groups alone, as in a user namespace.
    Map {
        /// The client's first.
        inside: u32,
        /// This host's first.
        outside: u32,
        /// How many.
        count: u32,
    },
}

/// Who owns what belongs to nobody that a client knows, as in a user namespace of Linux.
pub const NOBODY: u32 = 65_534;

/// `id` counted from `from`, as counted from `to`, if it is one of the `count` first.
fn moved(id: u32, from: u32, to: u32, count: u32) -> Option<u32> {
    id.checked_sub(from).filter(|index| *index < count).and_then(|index| to.checked_add(index))
}

impl Ids {
    /// Every file appears to belong to whoever runs this process.
    pub fn squash() -> Ids {
        Ids::Squash { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }
}

/// What an export allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Nothing can be changed.
    pub read_only: bool,
    /// Whose files are whose.
    pub ids: Ids,
    /// Largest message in bytes, [`MIN_MSIZE`] to [`MAX_MSIZE`]; a client may agree to less.
    pub msize: u32,
    /// Most fids of one session.
    pub fids: usize,
    /// Most descriptors of all its sessions together.
    pub descriptors: usize,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            read_only: false,
            ids: Ids::Pass,
            msize: MAX_MSIZE,
            fids: DEFAULT_FIDS,
            descriptors: DEFAULT_DESCRIPTORS,
        }
    }
}

/// An opened directory.
pub struct Export {
    root: Root,
    rules: Rules,
    locks: Arc<Locks>,
    /// The names by which a client may attach, beside none.
    tag: String,
    path: PathBuf,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("path", &self.path).field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Export {
    /// Opens `path`. `name` is the option and its value, for messages; `tag` a name by which clients know the export.
    ///
    /// From here on a write beyond this process's limit on the size of files is an error and not a signal, since it is
    /// a client who decides where it writes.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if it is no directory, cannot be read, or this machine cannot confine a client to it.
    pub fn open(path: &Path, tag: &str, rules: Rules, name: &str) -> Result<Arc<Export>, Failure> {
        let directory = resolve::open_directory(path).map_err(|error| {
            Failure::Refused(format!(
                "{name}: cannot be exported ({error}); name a directory that this user can read"
            ))
        })?;
        if !Export::can_act(rules.ids) {
            return refused(format!(
                "{name}: a mapped client acts as its users of this host, which takes CAP_SETUID, CAP_SETGID and the rights over files of root; start it as root, or write squash instead of map"
            ));
        }
        Export::of(directory, path, tag, rules, Root::CONFINED).or_else(|why| {
            refused(format!(
                "{name}: a client could not be confined to it ({why:?}); a kernel with openat2 (Linux 5.6) and a \
                 mounted /proc are needed"
            ))
        })
    }

    fn of(
        directory: OwnedFd,
        path: &Path,
        tag: &str,
        rules: Rules,
        confined: resolve::Confined,
    ) -> Result<Arc<Export>, hvl_shared_abi::wire::p9::Errno> {
        crate::sys::ignore_signals();
        let rules = Rules { msize: rules.msize.clamp(MIN_MSIZE, MAX_MSIZE), ..rules };
        let root = Root::new(directory, confined, Descriptors::new(rules.descriptors))?;
        Ok(Arc::new(Export { root, rules, locks: Arc::default(), tag: tag.into(), path: path.into() }))
    }

    /// What it allows.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// The directory as it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a client that asks for `tree` means this export. Most name nothing, or the root; some the directory.
    fn is_called(&self, tree: &[u8]) -> bool {
        // With a slash at its end a directory is the same, and the root nothing but one.
        let bare = |name| {
            let mut name: &[u8] = name;
            while let Some(shorter) = name.strip_suffix(b"/") {
                name = shorter;
            }
            name
        };
        let tree = bare(tree);
        tree.is_empty()
            || tree == self.tag.as_bytes()
            || tree == bare(self.path.as_os_str().as_encoded_bytes())
    }

    /// The owner that a client sees.
    fn shown(&self, uid: u32, gid: u32) -> (u32, u32) {
        match self.rules.ids {
            Ids::Pass => (uid, gid),
            Ids::Squash { uid, gid } => (uid, gid),
            Ids::Map { inside, outside, count } => {
                let shown = |id| moved(id, outside, inside, count).unwrap_or(NOBODY);
                (shown(uid), shown(gid))
            }
        }
    }

    /// The owner on this host that a client's is; [`NO_UID`] for one that there is not, and for itself.
    fn owner(&self, uid: u32, gid: u32) -> (u32, u32) {
        match self.rules.ids {
            Ids::Pass => (uid, gid),
            Ids::Squash { .. } => (NO_UID, NO_UID),
            Ids::Map { inside, outside, count } => {
                let owner = |id| moved(id, inside, outside, count).unwrap_or(NO_UID);
                (owner(uid), owner(gid))
            }
        }
    }
}
