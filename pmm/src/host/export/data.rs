//! Open files and directories: opening, creating, reading, writing, listing, flushing to the disk.

use std::mem::MaybeUninit;
use std::sync::Arc;

use hvl_shared_abi::wire::p9::{Entry, EntryWriter, Errno, IO_HEADER, Qid, Reply, entry_kind, open};
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};

use super::acting::On;
use super::fid::{Fid, OpenFile, State, locked};
use super::resolve::{Counted, Name, Node, errno, join, qid_kind, qid_path};
use super::session::{Out, Session};
use super::tree::permissions;

/// Bytes of directory entries that are read from the kernel at once.
const LISTING: usize = 32 * 1024;

/// What a client's flags are on this host. What it may not decide is left out (whether an opening blocks, whether the
/// page cache is passed by), what is not known is ignored, as `open` does.
fn open_flags(flags: u32) -> Result<OFlags, Errno> {
    let mut on_host = match flags & open::ACCESS {
        open::READ_ONLY => OFlags::RDONLY,
        open::WRITE_ONLY => OFlags::WRONLY,
        open::READ_WRITE => OFlags::RDWR,
        _ => return Err(Errno::INVAL),
    };
    for (theirs, ours) in [
        (open::TRUNCATE, OFlags::TRUNC),
        (open::APPEND, OFlags::APPEND),
        (open::DATA_SYNC, OFlags::DSYNC),
        (open::SYNC, OFlags::SYNC),
        (open::DIRECTORY, OFlags::DIRECTORY),
    ] {
        on_host.set(ours, flags & theirs == theirs);
    }
    Ok(on_host)
}

impl Session {
    fn opened(&self, file: Counted, node: &Node, flags: OFlags) -> Arc<OpenFile> {
        Arc::new(OpenFile::new(file, node, flags, self.export.locks.clone()))
    }

    fn io_unit(&self) -> u32 {
        self.msize().saturating_sub(IO_HEADER)
    }

    pub(super) fn open(&self, fid: u32, flags: u32, out: Out<'_>) -> Result<usize, Errno> {
        let fid = self.fid(fid)?;
        let flags = open_flags(flags)?;
        if flags & OFlags::RWMODE != OFlags::RDONLY || flags.contains(OFlags::TRUNC) {
            self.may_change()?;
        }
        fid.is_reached()?;
        let node = self.node(&fid)?;
        // Held while it is opened: two openings of one fid are one opening and one error.
        let mut state = locked(&fid.state);
        if !matches!(&*state, State::Reached) {
            return Err(Errno::BADF);
        }
        let acting = self.acting(fid.user, On::File(&node))?;
        let file = self.opened(self.export.root.reopen(&node, flags)?, &node, flags);
        drop(acting);
        let qid = self.qid(&node)?;
        *state = State::Open(file);
        drop(state);
        out.send(Reply::Lopen { qid, io_unit: self.io_unit() })
    }

    pub(super) fn create(
        &self,
        fid: u32,
        name: &[u8],
        flags: u32,
        mode: u32,
        gid: u32,
        out: Out<'_>,
    ) -> Result<usize, Errno> {
        self.may_change()?;
        let (fid, directory) = self.directory(fid)?;
        fid.is_reached()?;
        let name = Name::check(name)?;
        let path = join(&fid.path(), name)?;
        let exclusive = flags & open::EXCLUSIVE != 0;
        let flags = open_flags(flags)?.difference(OFlags::DIRECTORY);
        let mode = permissions(mode);
        let root = &self.export.root;
        let acting = self.acting(fid.user, On::name(&directory))?;
        let created = root.create(&directory, name, flags.difference(OFlags::TRUNC), mode);
        drop(acting);
        let (node, file) = match created {
            Ok((node, file)) => {
                self.settle(&node, fid.user, gid)?;
                self.settle_mode(&node, mode)?;
                (node, file)
            }
            // What is there already is opened like anything else: after a look at what it is.
            Err(Errno::EXIST) if !exclusive => {
                let acting = self.acting(fid.user, On::File(&directory))?;
                let node = root.step(&directory, name)?;
                drop(acting);
                let _acting = self.acting(fid.user, On::File(&node))?;
                let file = root.reopen(&node, flags)?;
                (node, file)
            }
            Err(errno) => return Err(errno),
        };
        let qid = self.qid(&node)?;
        let file = self.opened(file, &node, flags);
        self.becomes(&fid, &node, &path, State::Open(file))?;
        out.send(Reply::Lcreate { qid, io_unit: self.io_unit() })
    }

    pub(super) fn read(&self, fid: u32, offset: u64, count: u32, mut out: Out<'_>) -> Result<usize, Errno> {
        let fid = self.fid(fid)?;
        let into = out.payload(count);
        let got = match self.read_attribute(&fid, offset, into) {
            Some(got) => got?,
            None => {
                let file = fid.open()?;
                if file.directory {
                    return Err(Errno::ISDIR);
                }
                read_all(&file, into, offset)?
            }
        };
        out.send_payload(got, |count| Reply::Read { count })
    }

    pub(super) fn write(&self, fid: u32, offset: u64, bytes: &[u8], out: Out<'_>) -> Result<usize, Errno> {
        let fid = self.fid(fid)?;
        let count = match self.write_attribute(&fid, offset, bytes) {
            Some(count) => count?,
            None => {
                self.may_change()?;
                write_all(&*fid.open()?, bytes, offset)?
            }
        };
        out.send(Reply::Write { count: u32::try_from(count).map_err(|_| Errno::MSGSIZE)? })
    }

    pub(super) fn fsync(&self, fid: u32, data_only: u32, out: Out<'_>) -> Result<usize, Errno> {
        let file = self.fid(fid)?.open()?;
        let done = match data_only {
            0 => rustix::fs::fsync(&*file),
            _ => rustix::fs::fdatasync(&*file),
        };
        done.map_err(errno)?;
        out.send(Reply::Fsync {})
    }

    pub(super) fn readdir(
        &self,
        fid: u32,
        offset: u64,
        count: u32,
        mut out: Out<'_>,
    ) -> Result<usize, Errno> {
        let fid = self.fid(fid)?;
        let file = fid.open()?;
        if !file.directory {
            return Err(Errno::NOTDIR);
        }
        let used = self.list(&fid, &file, offset, out.payload(count))?;
        out.send_payload(used, |count| Reply::Readdir { count })
    }

    /// Fills `into` with the entries behind `offset`. An offset that nobody was given is the file system's to judge; it
    /// finds an entry or none, and each call moves on or ends.
    fn list(&self, fid: &Fid, file: &OpenFile, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let (root, node) = (self.export.root.node(), fid.place());
        let offset = i64::try_from(offset).map_err(|_| Errno::INVAL)?;
        let _position = locked(&file.position);
        rustix::fs::seek(file, SeekFrom::Start(offset as u64)).map_err(errno)?;
        let mut buffer = [MaybeUninit::<u8>::uninit(); LISTING];
        let mut entries = RawDir::new(file, &mut buffer);
        let mut writer = EntryWriter::new(into);
        let mut any = false;
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // What was found is told; the error comes again.
                Err(_) if any => break,
                Err(error) => return Err(errno(error)),
            };
            let name = entry.file_name().to_bytes();
            let kind = entry.file_type();
            // What lies above the root is nobody's business.
            let inode = match name == b".." && node.identity == root.identity() {
                true => root.identity().1,
                false => entry.ino(),
            };
            let entry = Entry {
                qid: Qid { kind: qid_kind(kind), version: 0, path: qid_path(root, (node.identity.0, inode)) },
                offset: entry.next_entry_cookie(),
                kind: entry_kind_of(kind),
                name,
            };
            if !writer.push(&entry) {
                if !any {
                    // Not even one fits: an empty answer would be taken for the end.
                    return Err(Errno::INVAL);
                }
                break;
            }
            any = true;
        }
        Ok(writer.used())
    }
}

fn entry_kind_of(kind: FileType) -> u8 {
    match kind {
        FileType::RegularFile => entry_kind::FILE,
        FileType::Directory => entry_kind::DIRECTORY,
        FileType::Symlink => entry_kind::SYMLINK,
        FileType::Fifo => entry_kind::FIFO,
        FileType::Socket => entry_kind::SOCKET,
        FileType::CharacterDevice => entry_kind::CHAR_DEVICE,
        FileType::BlockDevice => entry_kind::BLOCK_DEVICE,
        FileType::Unknown => entry_kind::UNKNOWN,
    }
}

/// Reads until `into` is full or the file ends, so that short reads of the kernel do not become short answers.
fn read_all(file: &OpenFile, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while let Some(left) = into.get_mut(done..).filter(|left| !left.is_empty()) {
        let Some(at) = position(offset, done) else { break };
        match rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *left, at)) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(_) if done > 0 => break,
            Err(error) => return Err(errno(error)),
        }
    }
    // Beyond what a file can be: its end, if the offset itself is one.
    if done == 0 && position(offset, 0).is_none() { Err(Errno::INVAL) } else { Ok(done) }
}

/// Writes all, or as much as there is room for.
fn write_all(file: &OpenFile, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    if position(offset, bytes.len()).is_none() {
        return Err(Errno::FBIG);
    }
    while let Some(left) = bytes.get(done..).filter(|left| !left.is_empty()) {
        let Some(at) = position(offset, done) else { break };
        match rustix::io::retry_on_intr(|| rustix::io::pwrite(file, left, at)) {
            Ok(0) => break,
            Ok(put) => done += put,
            Err(_) if done > 0 => break,
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(done)
}

/// `done` bytes behind `offset`, if a file can be that long.
pub(super) fn position(offset: u64, done: usize) -> Option<u64> {
    offset.checked_add(done as u64).filter(|at| i64::try_from(*at).is_ok())
}
