//! What changes the tree and what tells of it: attributes, directories, links, names.

use std::ffi::CString;
use std::os::fd::AsFd;

use hvl_shared_abi::wire::p9::{
    AT_REMOVEDIR, Attr, Errno, MAX_PATH, NO_UID, Qid, Reply, SetAttr, Statfs, Time, getattr, mode, setattr,
};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Statx, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};

use super::Ids;
use super::acting::On;
use super::fid::{Fid, State, locked};
use super::resolve::{Name, Node, device, errno, identity, join, qid_of, split, status};
use super::session::{Out, Session};

/// The permissions that a client may give: no set-user-ID, no set-group-ID. On the host they would hand the rights of
/// this process's user to whoever runs the file.
pub(super) fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode((mode & 0o1777) as _)
}

/// `None` leaves an owner as it is.
fn owner(id: u32) -> Option<u32> {
    (id != NO_UID).then_some(id)
}

impl Session {
    pub(super) fn getattr(&self, fid: u32, mask: u64, out: Out<'_>) -> Result<usize, Errno> {
        let status = self.node(&*self.fid(fid)?)?.status()?;
        let has_birth = status.stx_mask & StatxFlags::BTIME.bits() != 0;
        let time = |time: rustix::fs::StatxTimestamp| Time {
            // Two's complement: times before 1970 are what a client's kernel takes them for.
            seconds: time.tv_sec as u64,
            nanos: time.tv_nsec.into(),
        };
        let (uid, gid) = self.export.shown(status.stx_uid, status.stx_gid);
        let born = if has_birth { getattr::BORN } else { 0 };
        out.send(Reply::Getattr {
            attr: Attr {
                valid: getattr::BASIC | (born & mask),
                qid: qid_of(self.export.root.node(), &status),
                mode: status.stx_mode.into(),
                uid,
                gid,
                links: status.stx_nlink.into(),
                rdev: device(status.stx_rdev_major, status.stx_rdev_minor),
                size: status.stx_size,
                block_size: status.stx_blksize.into(),
                blocks: status.stx_blocks,
                accessed: time(status.stx_atime),
                modified: time(status.stx_mtime),
                changed: time(status.stx_ctime),
                born: if has_birth { time(status.stx_btime) } else { Time::default() },
                generation: 0,
                data_version: 0,
            },
        })
    }

    pub(super) fn setattr(&self, fid: u32, attr: SetAttr, out: Out<'_>) -> Result<usize, Errno> {
        self.may_change()?;
        let fid = self.fid(fid)?;
        let node = self.node(&fid)?;
        // Whatever a device node, a FIFO or a socket is, it is another program's.
        if !matches!(node.kind(), FileType::RegularFile | FileType::Directory | FileType::Symlink) {
            return Err(Errno::PERM);
        }
        let wants = |bit| attr.valid & bit != 0;
        // What can be refused without touching anything comes first.
        let time = |time: Time, now_bit, set_bit| match (wants(now_bit), wants(set_bit)) {
            (false, _) => Ok(Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }),
            (true, false) => Ok(Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }),
            // Seconds in two's complement, as above.
            (true, true) if time.nanos < 1_000_000_000 => {
                Ok(Timespec { tv_sec: time.seconds as i64, tv_nsec: time.nanos as _ })
            }
            (true, true) => Err(Errno::INVAL),
        };
        let times = Timestamps {
            last_access: time(attr.accessed, setattr::ACCESSED, setattr::ACCESSED_SET)?,
            last_modification: time(attr.modified, setattr::MODIFIED, setattr::MODIFIED_SET)?,
        };
        if wants(setattr::SIZE) && i64::try_from(attr.size).is_err() {
            return Err(Errno::INVAL);
        }
        let _acting = self.acting(fid.user, On::File(&node))?;
        if wants(setattr::UID | setattr::GID) {
            let given = |bit, id| if wants(bit) { id } else { NO_UID };
            self.change_owner(&node, given(setattr::UID, attr.uid), given(setattr::GID, attr.gid))?;
        }
        if wants(setattr::MODE) {
            self.export.root.change_mode(&node, permissions(attr.mode))?;
        }
        if wants(setattr::SIZE) {
            self.truncate(&fid, &node, attr.size)?;
        }
        if wants(setattr::ACCESSED | setattr::MODIFIED) {
            rustix::fs::utimensat(&node, c"", &times, AtFlags::EMPTY_PATH).map_err(errno)?;
        }
        if attr.valid == setattr::CHANGED {
            // Nothing changes but the time of the last change.
            rustix::fs::chownat(&node, c"", None, None, AtFlags::EMPTY_PATH).map_err(errno)?;
        }
        out.send(Reply::Setattr {})
    }

    fn change_owner(&self, node: &Node, uid: u32, gid: u32) -> Result<(), Errno> {
        if let Ids::Squash { uid: shown_uid, gid: shown_gid } = self.export.rules.ids {
            // It may ask for what it sees.
            let same = |asked, shown| owner(asked).is_none_or(|asked| asked == shown);
            return if same(uid, shown_uid) && same(gid, shown_gid) { Ok(()) } else { Err(Errno::PERM) };
        }
        let (new_uid, new_gid) = self.export.owner(uid, gid);
        // As Linux answers where a user namespace has no such owner.
        match owner(uid).is_some() == owner(new_uid).is_some()
            && owner(gid).is_some() == owner(new_gid).is_some()
        {
            true => chown(node, new_uid, new_gid),
            false => Err(Errno::INVAL),
        }
    }

    fn truncate(&self, fid: &Fid, node: &Node, size: u64) -> Result<(), Errno> {
        match fid.open() {
            Ok(open) if open.writable => rustix::fs::ftruncate(&*open, size).map_err(errno),
            _ => {
                let file = self.export.root.reopen(node, OFlags::WRONLY)?;
                rustix::fs::ftruncate(&file, size).map_err(errno)
            }
        }
    }

    /// Gives something new to who made it, as far as the export's rules say and this process may.
    pub(super) fn settle(&self, node: &Node, user: u32, group: u32) -> Result<(), Errno> {
        let (user, group) = self.export.owner(user, group);
        let status = node.status()?;
        if owner(user).is_none_or(|id| id == status.stx_uid)
            && owner(group).is_none_or(|id| id == status.stx_gid)
        {
            return Ok(());
        }
        match chown(node, user, group) {
            // An ordinary user cannot give files away, and the client cannot help that.
            Err(Errno::PERM) if !rustix::process::geteuid().is_root() => Ok(()),
            // Nor can anybody, in a user namespace that has no such owner.
            Err(Errno::INVAL) => Ok(()),
            other => other,
        }
    }

    /// Finishes something new: owner, then permissions, which this process's umask may have cut.
    fn finish(
        &self,
        directory: &Node,
        name: Name<'_>,
        user: u32,
        group: u32,
        mode: Option<Mode>,
    ) -> Result<Qid, Errno> {
        let node = self.export.root.step(directory, name)?;
        // By now another request may have moved something of somebody else's to this name, which is not to be given away.
        // What was found stays that file, so this look cannot come too early.
        if !self.export.has_made(user, &node.status()?) {
            return Err(Errno::STALE);
        }
        self.settle(&node, user, group)?;
        if let Some(mode) = mode {
            self.settle_mode(&node, mode)?;
        }
        self.qid(&node)
    }

    pub(super) fn settle_mode(&self, node: &Node, mode: Mode) -> Result<(), Errno> {
        let has = node.status()?.stx_mode;
        match Mode::from_raw_mode((has & 0o7777).into()) == mode {
            true => Ok(()),
            false => self.export.root.change_mode(node, mode),
        }
    }

    pub(super) fn statfs(&self, fid: u32, out: Out<'_>) -> Result<usize, Errno> {
        let node = self.node(&*self.fid(fid)?)?;
        let status = rustix::fs::fstatfs(&node).map_err(errno)?;
        let more = rustix::fs::fstatvfs(&node).map_err(errno)?;
        out.send(Reply::Statfs {
            statfs: Statfs {
                kind: status.f_type as u32,
                block_size: u32::try_from(status.f_bsize).unwrap_or(4096),
                blocks: status.f_blocks,
                free: status.f_bfree,
                available: status.f_bavail,
                files: status.f_files,
                free_files: status.f_ffree,
                id: more.f_fsid,
                name_length: u32::try_from(more.f_namemax).unwrap_or(255),
            },
        })
    }

    pub(super) fn readlink(&self, fid: u32, out: Out<'_>) -> Result<usize, Errno> {
        let node = self.node(&*self.fid(fid)?)?;
        if node.kind() != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let target: CString = rustix::fs::readlinkat(&node, c"", Vec::new()).map_err(errno)?;
        out.send(Reply::Readlink { target: target.as_bytes() })
    }

    pub(super) fn mkdir(
        &self,
        fid: u32,
        name: &[u8],
        mode: u32,
        gid: u32,
        out: Out<'_>,
    ) -> Result<usize, Errno> {
        self.may_change()?;
        let (fid, directory) = self.directory(fid)?;
        let (name, mode) = (Name::check(name)?, permissions(mode));
        let acting = self.acting(fid.user, On::name(&directory))?;
        rustix::fs::mkdirat(&directory, name.bytes(), mode).map_err(errno)?;
        drop(acting);
        let qid = self.finish(&directory, name, fid.user, gid, Some(mode))?;
        out.send(Reply::Mkdir { qid })
    }

    pub(super) fn symlink(
        &self,
        fid: u32,
        name: &[u8],
        target: &[u8],
        gid: u32,
        out: Out<'_>,
    ) -> Result<usize, Errno> {
        self.may_change()?;
        let (fid, directory) = self.directory(fid)?;
        let name = Name::check(name)?;
        // What it says is the client's own affair: nobody here follows it.
        match target {
            b"" => return Err(Errno::NOENT),
            long if long.len() >= MAX_PATH => return Err(Errno::NAMETOOLONG),
            target if target.contains(&0) => return Err(Errno::INVAL),
            _ => {}
        }
        let acting = self.acting(fid.user, On::name(&directory))?;
        rustix::fs::symlinkat(target, &directory, name.bytes()).map_err(errno)?;
        drop(acting);
        let qid = self.finish(&directory, name, fid.user, gid, None)?;
        out.send(Reply::Symlink { qid })
    }

    pub(super) fn mknod(
        &self,
        fid: u32,
        name: &[u8],
        mode: u32,
        gid: u32,
        out: Out<'_>,
    ) -> Result<usize, Errno> {
        self.may_change()?;
        let (fid, directory) = self.directory(fid)?;
        let name = Name::check(name)?;
        if !matches!(mode & mode::KIND, 0 | mode::FILE) {
            return Err(Errno::PERM);
        }
        let mode = permissions(mode);
        let acting = self.acting(fid.user, On::name(&directory))?;
        let (node, _file) = self.export.root.create(&directory, name, OFlags::WRONLY, mode)?;
        drop(acting);
        self.settle(&node, fid.user, gid)?;
        self.settle_mode(&node, mode)?;
        let qid = self.qid(&node)?;
        out.send(Reply::Mknod { qid })
    }

    pub(super) fn link(&self, directory: u32, fid: u32, name: &[u8], out: Out<'_>) -> Result<usize, Errno> {
        self.may_change()?;
        let (to_fid, directory) = self.directory(directory)?;
        let (node, name) = (self.node(&*self.fid(fid)?)?, Name::check(name)?);
        if !matches!(node.kind(), FileType::RegularFile | FileType::Symlink) {
            return Err(Errno::PERM);
        }
        // Nor what would give whoever runs it its owner's rights, for as long as the client likes: as the kernel has it
        // for whoever is not the owner (fs.protected_hardlinks).
        let status = node.status()?;
        let mode = u32::from(status.stx_mode);
        if node.kind() == FileType::RegularFile && (mode & 0o4000 != 0 || mode & 0o2010 == 0o2010) {
            return Err(Errno::PERM);
        }
        self.export.may_spread(to_fid.user, &status)?;
        let on = On::Name { within: [&directory; 2], of: [Some(status), None] };
        let _acting = self.acting(to_fid.user, on)?;
        self.export.root.link(&node, &directory, name)?;
        out.send(Reply::Link {})
    }

    pub(super) fn unlinkat(
        &self,
        directory: u32,
        name: &[u8],
        flags: u32,
        out: Out<'_>,
    ) -> Result<usize, Errno> {
        self.may_change()?;
        let (fid, directory) = self.directory(directory)?;
        let name = Name::check(name)?;
        let flags = match flags {
            0 => AtFlags::empty(),
            AT_REMOVEDIR => AtFlags::REMOVEDIR,
            _ => return Err(Errno::INVAL),
        };
        let on = On::Name { within: [&directory; 2], of: [self.named(&directory, name), None] };
        let _acting = self.acting(fid.user, on)?;
        rustix::fs::unlinkat(&directory, name.bytes(), flags).map_err(errno)?;
        out.send(Reply::Unlinkat {})
    }

    /// The directory that a fid's file is in, and its name there, if that still is so.
    fn place<'p>(
        &self,
        user: u32,
        identity_was: (u64, u64),
        path: &'p [u8],
    ) -> Result<(Node, Name<'p>), Errno> {
        let (parent, name) = split(path).ok_or(Errno::BUSY)?;
        let parent = self.follow(user, parent)?;
        let _acting = self.acting(user, On::File(&parent))?;
        let there = status(parent.as_fd(), name.bytes())?;
        if identity(&there) == identity_was { Ok((parent, name)) } else { Err(Errno::STALE) }
    }

    pub(super) fn remove(&self, number: u32, out: Out<'_>) -> Result<usize, Errno> {
        // The fid is gone whatever happens.
        let fid = self.table().remove(number)?;
        self.may_change()?;
        let (place, _still) = (fid.place(), self.still());
        let path = place.way();
        let (parent, name) = self.place(fid.user, place.identity, &path)?;
        let flags = if place.kind == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let on = On::Name { within: [&parent; 2], of: [self.named(&parent, name), None] };
        let _acting = self.acting(fid.user, on)?;
        rustix::fs::unlinkat(&parent, name.bytes(), flags).map_err(errno)?;
        out.send(Reply::Remove {})
    }

    pub(super) fn rename(&self, fid: u32, directory: u32, name: &[u8], out: Out<'_>) -> Result<usize, Errno> {
        self.may_change()?;
        let fid = self.fid(fid)?;
        let place = fid.place();
        let (to_fid, to) = self.directory(directory)?;
        let new_name = Name::check(name)?;
        let _moving = self.moving();
        let path = place.way();
        let (from, old_name) = self.place(fid.user, place.identity, &path)?;
        let of = [self.named(&from, old_name), self.named(&to, new_name)];
        self.may_move(to_fid.user, [&from, &to], of[0].as_ref())?;
        let acting = self.acting(to_fid.user, On::Name { within: [&from, &to], of })?;
        rustix::fs::renameat(&from, old_name.bytes(), &to, new_name.bytes()).map_err(errno)?;
        drop(acting);
        self.was_moved(&path, &to_fid.path(), new_name);
        out.send(Reply::Rename {})
    }

    pub(super) fn renameat(
        &self,
        old_directory: u32,
        old_name: &[u8],
        new_directory: u32,
        new_name: &[u8],
        out: Out<'_>,
    ) -> Result<usize, Errno> {
        self.may_change()?;
        let (from_fid, from) = self.directory(old_directory)?;
        let (to_fid, to) = self.directory(new_directory)?;
        let (old_name, new_name) = (Name::check(old_name)?, Name::check(new_name)?);
        let _moving = self.moving();
        let of = [self.named(&from, old_name), self.named(&to, new_name)];
        self.may_move(to_fid.user, [&from, &to], of[0].as_ref())?;
        let acting = self.acting(to_fid.user, On::Name { within: [&from, &to], of })?;
        rustix::fs::renameat(&from, old_name.bytes(), &to, new_name.bytes()).map_err(errno)?;
        drop(acting);
        if let Ok(old) = join(&from_fid.path(), old_name) {
            self.was_moved(&old, &to_fid.path(), new_name);
        }
        out.send(Reply::Renameat {})
    }

    /// Whether a user may move something between directories. Within one it is the directory's owner who decides.
    fn may_move(&self, user: u32, [from, to]: [&Node; 2], what: Option<&Statx>) -> Result<(), Errno> {
        match what {
            Some(what) if from.identity() != to.identity() => self.export.may_spread(user, what),
            _ => Ok(()),
        }
    }

    fn was_moved(&self, old: &[u8], new_directory: &[u8], new_name: Name<'_>) {
        if let Ok(new) = join(new_directory, new_name) {
            self.table().moved(old, &new);
        }
    }

    /// Puts what was created behind the fid of its directory, unless the fid has changed meanwhile.
    pub(super) fn becomes(&self, fid: &Fid, node: &Node, path: &[u8], state: State) -> Result<(), Errno> {
        let place = self.place_of(node, path)?;
        let mut before = locked(&fid.state);
        if !matches!(&*before, State::Reached) {
            return Err(Errno::BADF);
        }
        fid.become_file(place);
        *before = state;
        Ok(())
    }
}

fn chown(node: &Node, uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (owner(uid).map(Uid::from_raw), owner(gid).map(Gid::from_raw));
    rustix::fs::chownat(node, c"", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW).map_err(errno)
}
