//! Carries out the requests of a mapped client as the host user that the client maps to.
//!
//! `map=` promises what a user namespace gives: each guest user is one of this host's users, and the guest's
//! root is root over the files of mapped users and over no others. So every system call that checks
//! permissions runs with that user's ids, in this thread only, without supplementary groups and without
//! root's capabilities, and the kernel decides. Where the client's root acts on files with mapped owners, it
//! also gets the capabilities that a namespace's root has over them: the kernel checks the owner in the same
//! way (`capable_wrt_inode_uidgid`). Access through an open file was decided when the file was opened.
//!
//! A thread cannot enter a user namespace of its own while the process has others, which would be simpler.

use std::cell::Cell;
use std::os::fd::AsFd;

use hvl_shared_abi::wire::p9::{Errno, NO_UID};
use rustix::fs::Statx;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::resolve::{Name, Node, errno, status};
use super::session::Session;
use super::{Export, Ids, NOBODY, moved};
use crate::sys::set_fs_ids;

/// The rights over files that do not depend on who one is.
const OVERRIDE: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);
const ALL: CapabilitySet = OVERRIDE.union(CapabilitySet::FOWNER).union(CapabilitySet::CHOWN);

/// Somebody else, until it is dropped.
pub(super) struct Acting {
    /// Nothing if this is the process itself.
    before: Option<CapabilitySets>,
}

/// What is acted on.
#[allow(clippy::large_enum_variant)] // lives on a stack for the length of one call
pub(super) enum On<'a> {
    /// A file or directory itself.
    File(&'a Node),
    /// A name in directories: one, or the two of a renaming or a link. `of` is what has the names, if it is there: where a
    /// directory is sticky its owner matters.
    Name { within: [&'a Node; 2], of: [Option<Statx>; 2] },
}

impl<'a> On<'a> {
    /// A new name in a directory.
    pub(super) fn name(within: &'a Node) -> On<'a> {
        On::Name { within: [within; 2], of: [None; 2] }
    }
}

impl Export {
    /// Returns whether this process can be the users that the rules speak of.
    pub(super) fn can_act(ids: Ids) -> bool {
        let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | ALL;
        !matches!(ids, Ids::Map { .. }) || capabilities(None).is_ok_and(|has| has.effective.contains(needed))
    }

    /// The user of this host that a mapped client's acts as. `None`: whoever asks acts as this process.
    fn actor(&self, user: u32) -> Option<u32> {
        let Ids::Map { inside, outside, count } = self.rules.ids else { return None };
        // Who says no name when it mounts is the client's kernel.
        let user = if user == NO_UID { inside } else { user };
        Some(moved(user, inside, outside, count).unwrap_or(NOBODY))
    }

    /// Whether what was found where `user` has just made something can be that: it belongs to whom it was made as.
    pub(super) fn has_made(&self, user: u32, found: &Statx) -> bool {
        self.actor(user).is_none_or(|id| id == found.stx_uid)
    }

    /// Whether `user` may give a file a name in another directory. The right to write to any mapped directory is not
    /// enough: a file of the host's would be kept, or hidden, where its owner does not look for it.
    pub(super) fn may_spread(&self, user: u32, file: &Statx) -> Result<(), Errno> {
        let (Some(id), Ids::Map { outside, inside, count }) = (self.actor(user), self.rules.ids) else {
            return Ok(());
        };
        let known = |id| moved(id, outside, inside, count).is_some();
        match id == file.stx_uid || (known(file.stx_uid) && known(file.stx_gid)) {
            true => Ok(()),
            false => Err(Errno::PERM),
        }
    }
}

impl Session {
    /// What a name is in a directory, where it matters.
    pub(super) fn named(&self, within: &Node, name: Name<'_>) -> Option<Statx> {
        let matters = matches!(self.export.rules.ids, Ids::Map { .. });
        matters.then(|| status(within.as_fd(), name.bytes()).ok()).flatten()
    }

    /// Becomes the user who attached, in the client's numbers. `user` acts as it may until the result is dropped.
    pub(super) fn acting(&self, user: u32, on: On<'_>) -> Result<Acting, Errno> {
        let (Some(id), Ids::Map { inside, outside, count }) =
            (self.export.actor(user), self.export.rules.ids)
        else {
            return Ok(Acting { before: None });
        };
        let user = if user == NO_UID { inside } else { user };
        let mut extra = CapabilitySet::empty();
        if user == 0 && id != NOBODY {
            let known = |id| moved(id, outside, inside, count).is_some();
            let mapped = |status: &Statx| known(status.stx_uid) && known(status.stx_gid);
            extra = match on {
                On::File(node) if mapped(&node.status()?) => ALL,
                On::File(_) => CapabilitySet::empty(),
                On::Name { within: [one, other], of } => {
                    match mapped(&one.status()?) && mapped(&other.status()?) {
                        true if of.iter().flatten().all(mapped) => ALL,
                        true => OVERRIDE,
                        false => CapabilitySet::empty(),
                    }
                }
            };
        }
        let before = capabilities(None).map_err(errno)?;
        thread_local!(static ALONE: Cell<bool> = const { Cell::new(false) });
        if !ALONE.get() {
            // For good: nothing that this thread does is done as a member of a group.
            rustix::thread::set_thread_groups(&[]).map_err(errno)?;
            ALONE.set(true);
        }
        let acting = Acting { before: Some(before) };
        if !set_fs_ids(id, id) {
            return Err(Errno::PERM);
        }
        let effective = before.effective.difference(ALL) | (extra & before.permitted);
        set_capabilities(None, CapabilitySets { effective, ..before }).map_err(errno)?;
        Ok(acting)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        let Some(before) = self.before.take() else { return };
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        // One that could not be itself again would have fewer rights, never more.
        let _ = set_fs_ids(own.0, own.1);
        let _ = set_capabilities(None, before);
    }
}
