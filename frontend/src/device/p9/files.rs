//! What a client does with files: by path, and with files that are open.

use hvl_shared_abi::wire::p9::{
    AT_REMOVEDIR, Attr, Entries, Errno, GetLock, IO_HEADER, Lock, MAX_MSIZE, NO_FID, Names, Payload,
    REPLY_PREFIX, Reply, Request, SetAttr, Statfs, VERSION, WRITE_PREFIX, getattr, open, qid,
};

use super::calls::{LONGEST_ANSWER, Ticket};
use super::paths::split;
use super::{FileError, Files};
use crate::platform::{Board, Instant, Wait, earlier};

/// Bytes of the longest path.
pub const PATH: usize = 256;
/// The smallest message size that a server may insist on: the longest request without data fits.
const LEAST_MESSAGE: u32 = 1024;
/// What a server says that does not know the newer of two messages.
const OLDER: Result<(), FileError> = Err(FileError::Refused(Errno::OPNOTSUPP));
/// The fid of the export's root.
const ROOT: u32 = 0;

/// An open file, with the path by which it is opened again after a restart of the PMM.
#[derive(Clone, Debug)]
#[must_use = "a file that is not closed stays open until the PMM is restarted"]
pub struct File {
    fid: u32,
    starts: u32,
    /// Its owner knows that it is stale.
    told: bool,
    flags: u32,
    path: [u8; PATH],
    len: u16,
}

impl File {
    fn path(&self) -> &[u8] {
        self.path.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

/// An open directory that is read from its start to its end.
#[derive(Clone, Debug)]
#[must_use = "a directory that is not closed stays open until the PMM is restarted"]
pub struct Dir {
    file: File,
    offset: u64,
}

impl Dir {
    /// The directory as what is closed.
    pub fn into_file(self) -> File {
        self.file
    }
}

/// An operation on a walked fid; the number of it is the export's.
type Step<'a, 's, B> = &'a mut dyn FnMut(&mut Files<'s, B>, u32) -> Result<(), FileError>;

impl<'s, B: Wait> Files<'s, B> {
    // --- waiting ----------------------------------------------------------------------------------------------------

    fn until(&self) -> Option<Instant> {
        let now = self.link.board().now();
        now.is_known().then(|| now.plus(self.options.timeout))
    }

    /// Sleeps until there may be news, or says why there was none.
    #[inline(never)]
    fn pause(&mut self, until: Option<Instant>, why: FileError) -> Result<(), FileError> {
        match until {
            None => return Err(why),
            Some(until) if self.link.board().now() >= until => {
                return Err(if why == FileError::LinkDown { why } else { FileError::TimedOut });
            }
            Some(_) => {}
        }
        match self.link.next_deadline_of(self.cell) {
            Some(Instant::UNKNOWN) => {}
            next => self.link.board().wait_for_doorbell(earlier(next, until)),
        }
        Ok(())
    }

    /// Sends a request and waits for its answer. An answer that does not come in time is flushed.
    #[inline(never)]
    fn exchange(
        &mut self,
        request: &Request<'_>,
        payload: &[u8],
        start: Option<u32>,
        until: Option<Instant>,
    ) -> Result<Ticket, FileError> {
        let ticket = loop {
            match self.send(request, payload, start) {
                Err(why @ (FileError::WouldBlock | FileError::LinkDown)) => self.pause(until, why)?,
                other => break other?,
            }
        };
        self.wait_for(ticket, until)
    }

    #[inline(never)]
    fn wait_for(&mut self, ticket: Ticket, until: Option<Instant>) -> Result<Ticket, FileError> {
        loop {
            let why = match self.answered(&ticket) {
                Ok(()) => return Ok(ticket),
                Err(why @ (FileError::WouldBlock | FileError::LinkDown)) => why,
                Err(other) => return Err(other),
            };
            if let Err(error) = self.pause(until, why) {
                let old_tag = ticket.0.into();
                self.release(ticket);
                // As a courtesy: whether it is heard, or answered, changes nothing here.
                if let Ok(flush) = self.send(&Request::Flush { old_tag }, &[], self.attached) {
                    self.release(flush);
                }
                return Err(error);
            }
        }
    }

    /// An exchange in the session of this client whose answer says nothing but that it was done.
    fn done(
        &mut self,
        request: &Request<'_>,
        payload: &[u8],
        until: Option<Instant>,
    ) -> Result<(), FileError> {
        let ticket = self.exchange(request, payload, self.attached, until)?;
        let result = self.answer(&ticket, &mut [0; LONGEST_ANSWER]).map(|_| ());
        self.release(ticket);
        result
    }

    /// The same, with a look at the answer.
    fn asked<T>(
        &mut self,
        request: &Request<'_>,
        until: Option<Instant>,
        look: impl FnOnce(Reply<'_>) -> Option<T>,
    ) -> Result<T, FileError> {
        let ticket = self.exchange(request, &[], self.attached, until)?;
        let mut scratch = [0; LONGEST_ANSWER];
        let result =
            self.answer(&ticket, &mut scratch).and_then(|reply| look(reply).ok_or(FileError::Malformed));
        self.release(ticket);
        result
    }

    // --- the session ------------------------------------------------------------------------------------------------

    /// Attaches, if this start of the device does not know the client yet.
    #[inline(never)]
    fn attach(&mut self, until: Option<Instant>) -> Result<(), FileError> {
        let start = loop {
            match self.running() {
                Ok(start) => break start,
                Err(why) => self.pause(until, why)?,
            }
        };
        if self.attached == Some(start) {
            return Ok(());
        }
        (self.attached, self.fids, self.msize) = (Some(start), 1, 0);
        let ask = self.largest_message()?.min(MAX_MSIZE);
        let agreed =
            self.asked(&Request::Version { msize: ask, version: VERSION }, until, |reply| match reply {
                Reply::Version { msize, version }
                    if version == VERSION && (LEAST_MESSAGE..=ask).contains(&msize) =>
                {
                    Some(msize)
                }
                _ => None,
            });
        let attach = Request::Attach {
            fid: ROOT,
            afid: NO_FID,
            user: b"",
            tree: self.options.tree,
            uid: self.options.user,
        };
        let attached = agreed.and_then(|msize| {
            self.msize = msize;
            self.done(&attach, &[], until)
        });
        attached.map_err(|error| {
            self.attached = None;
            lost_is_stale(error)
        })
    }

    /// A fid that is not in use.
    fn take_fid(&mut self) -> Result<u32, FileError> {
        let fid = self.fids.trailing_ones();
        self.fids |= 1u32.checked_shl(fid).ok_or(FileError::TooManyFiles)?;
        Ok(fid)
    }

    /// Forgets a fid on both sides. One whose end is not known stays in use, until the session ends.
    #[inline(never)]
    fn clunk(&mut self, fid: u32, until: Option<Instant>) -> Result<(), FileError> {
        let result = self.done(&Request::Clunk { fid }, &[], until);
        if let Ok(()) | Err(FileError::Refused(_)) = result {
            self.fids &= !1u32.checked_shl(fid).unwrap_or(0);
        }
        result
    }

    /// Walks from a fid to a new one.
    #[inline(never)]
    fn walk(&mut self, from: u32, path: &[u8], until: Option<Instant>) -> Result<u32, FileError> {
        let fid = self.take_fid()?;
        let (mut from, mut rest) = (from, path);
        loop {
            let (names, later) = Names::of_path(rest);
            let count = names.len();
            let walked =
                self.asked(&Request::Walk { fid: from, new_fid: fid, names }, until, |reply| match reply {
                    // It ended on the way: at a name that is not there, or behind one that is no directory.
                    Reply::Walk { qids } if qids.len() <= count => Some(match qids.iter().last() {
                        _ if qids.len() == count => None,
                        Some(last) if last.kind & qid::DIRECTORY == 0 => Some(Errno::NOTDIR),
                        _ => Some(Errno::NOENT),
                    }),
                    _ => None,
                });
            let error = match walked {
                Ok(None) if later.is_empty() => return Ok(fid),
                Ok(None) => {
                    (from, rest) = (fid, later);
                    continue;
                }
                Ok(Some(errno)) => FileError::Refused(errno),
                Err(error) => error,
            };
            if from == fid {
                let _ = self.clunk(fid, until);
            } else if let FileError::Refused(_) = error {
                self.fids &= !1u32.checked_shl(fid).unwrap_or(0);
            }
            return Err(lost_is_stale(error));
        }
    }

    /// Walks to `path`, takes a step there, and forgets the fid unless the step keeps it (by an answer of `true`).
    /// What a restart of the PMM cuts short is done again from the start: always if the step had not begun, else if it
    /// `repeats`.
    #[inline(never)]
    fn at(&mut self, path: &[u8], repeats: bool, keep: bool, step: Step<'_, 's, B>) -> Result<(), FileError> {
        let until = self.until();
        loop {
            let walked = self.attach(until).and_then(|()| self.walk(ROOT, path, until));
            let result = walked.and_then(|fid| {
                let result = step(self, fid);
                if !keep || result.is_err() {
                    let _ = self.clunk(fid, until);
                }
                result
            });
            match result {
                Err(FileError::Stale) => {}
                Err(FileError::Indeterminate) if repeats => {}
                other => return other,
            }
            if until.is_none_or(|until| self.link.board().now() >= until) {
                return Err(FileError::TimedOut);
            }
        }
    }

    /// The same for a step in the directory of `path`, which is told the last name.
    fn in_parent(
        &mut self,
        path: &[u8],
        mut step: impl FnMut(&mut Self, u32, &[u8]) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let (directory, name) = split(path);
        self.at(directory, false, false, &mut |files, fid| step(files, fid, name))
    }

    // --- by path ----------------------------------------------------------------------------------------------------

    /// Attributes of what a path names; of a symbolic link itself, not of what it points to.
    pub fn stat(&mut self, path: &[u8]) -> Result<Attr, FileError> {
        let (until, mut found) = (self.until(), None);
        self.at(path, true, false, &mut |files, fid| {
            found = Some(files.attributes(fid, until)?);
            Ok(())
        })?;
        found.ok_or(FileError::Malformed)
    }

    fn attributes(&mut self, fid: u32, until: Option<Instant>) -> Result<Attr, FileError> {
        self.asked(&Request::Getattr { fid, mask: getattr::BASIC }, until, |reply| match reply {
            Reply::Getattr { attr } => Some(attr),
            _ => None,
        })
    }

    /// Changes attributes: permissions, owner, size, times.
    pub fn set(&mut self, path: &[u8], attr: SetAttr) -> Result<(), FileError> {
        let until = self.until();
        self.at(path, true, false, &mut |files, fid| files.done(&Request::Setattr { fid, attr }, &[], until))
    }

    /// Makes a directory. `mode` is its permissions.
    pub fn mkdir(&mut self, path: &[u8], mode: u32) -> Result<(), FileError> {
        let until = self.until();
        self.in_parent(path, |files, directory, name| {
            files.done(&Request::Mkdir { directory, name, mode, gid: 0 }, &[], until)
        })
    }

    /// Removes a file's or a symbolic link's name.
    pub fn unlink(&mut self, path: &[u8]) -> Result<(), FileError> {
        self.remove(path, 0)
    }
    /// Removes an empty directory.
    pub fn rmdir(&mut self, path: &[u8]) -> Result<(), FileError> {
        self.remove(path, AT_REMOVEDIR)
    }
    fn remove(&mut self, path: &[u8], flags: u32) -> Result<(), FileError> {
        let (until, mut removed) = (self.until(), Ok(()));
        let result = self.in_parent(path, |files, directory, name| {
            files.done(&Request::Unlinkat { directory, name, flags }, &[], until)
        });
        if result != OLDER {
            return result;
        }
        self.at(path, false, true, &mut |files, fid| {
            let result = files.done(&Request::Remove { fid }, &[], until);
            // It is forgotten in any case.
            if let Ok(()) | Err(FileError::Refused(_)) = result {
                files.fids &= !1u32.checked_shl(fid).unwrap_or(0);
            }
            // And must not be forgotten again.
            removed = result;
            Ok(())
        })?;
        removed
    }

    /// Gives a file another name, in whichever directory, over whatever had that name.
    pub fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<(), FileError> {
        let (until, (to, new_name)) = (self.until(), split(to));
        let result = self.in_parent(from, |files, old_directory, old_name| {
            let new_directory = files.walk(ROOT, to, until)?;
            let request = Request::Renameat { old_directory, old_name, new_directory, new_name };
            let result = files.done(&request, &[], until);
            let _ = files.clunk(new_directory, until);
            result
        });
        if result != OLDER {
            return result;
        }
        self.at(from, false, false, &mut |files, fid| {
            let directory = files.walk(ROOT, to, until)?;
            let result = files.done(&Request::Rename { fid, directory, name: new_name }, &[], until);
            let _ = files.clunk(directory, until);
            result
        })
    }

    /// Gives a file a further name.
    pub fn hard_link(&mut self, existing: &[u8], new: &[u8]) -> Result<(), FileError> {
        let until = self.until();
        self.in_parent(new, |files, directory, name| {
            let fid = files.walk(ROOT, existing, until)?;
            let result = files.done(&Request::Link { directory, fid, name }, &[], until);
            let _ = files.clunk(fid, until);
            result
        })
    }

    /// Makes a symbolic link. Nobody checks what it says.
    pub fn symlink(&mut self, target: &[u8], path: &[u8]) -> Result<(), FileError> {
        let until = self.until();
        self.in_parent(path, |files, fid, name| {
            files.done(&Request::Symlink { fid, name, target, gid: 0 }, &[], until)
        })
    }

    /// What a symbolic link says, at the front of `into`. `TooLong`: `into` has no room for it, or it is longer than
    /// 311 bytes.
    pub fn readlink<'t>(&mut self, path: &[u8], into: &'t mut [u8]) -> Result<&'t [u8], FileError> {
        let (until, mut len) = (self.until(), None);
        self.at(path, true, false, &mut |files, fid| {
            len = files.asked(&Request::Readlink { fid }, until, |reply| match reply {
                Reply::Readlink { target } => Some(into.get_mut(..target.len()).map(|into| {
                    into.copy_from_slice(target);
                    target.len()
                })),
                _ => None,
            })?;
            Ok(())
        })?;
        into.get(..len.ok_or(FileError::TooLong)?).ok_or(FileError::TooLong)
    }

    /// The file system behind the export.
    pub fn statfs(&mut self) -> Result<Statfs, FileError> {
        let (until, mut found) = (self.until(), None);
        self.at(b"", true, false, &mut |files, fid| {
            found = Some(files.asked(&Request::Statfs { fid }, until, |reply| match reply {
                Reply::Statfs { statfs } => Some(statfs),
                _ => None,
            })?);
            Ok(())
        })?;
        found.ok_or(FileError::Malformed)
    }

    /// The value of an extended attribute, or with an empty `name` the list of their names, each with a zero behind it;
    /// at the front of `into`.
    pub fn xattr<'t>(&mut self, path: &[u8], name: &[u8], into: &'t mut [u8]) -> Result<&'t [u8], FileError> {
        let (until, mut len) = (self.until(), 0usize);
        self.at(path, true, false, &mut |files, fid| {
            let new_fid = files.take_fid()?;
            let size = files.asked(&Request::Xattrwalk { fid, new_fid, name }, until, |reply| match reply {
                Reply::Xattrwalk { size } => Some(size),
                _ => None,
            });
            let size = size.inspect_err(|error| {
                if let FileError::Refused(_) = error {
                    files.fids &= !1u32.checked_shl(new_fid).unwrap_or(0);
                }
            })?;
            len = usize::try_from(size).unwrap_or(usize::MAX);
            let mut done = 0usize;
            let result = loop {
                let Some(rest) = into.get_mut(done..len) else { break Err(FileError::TooLong) };
                match files.read_once(new_fid, done as u64, rest, until) {
                    Ok(0) if !rest.is_empty() => break Err(FileError::Malformed),
                    Ok(0) => break Ok(()),
                    Ok(n) => done = done.saturating_add(n),
                    Err(error) => break Err(error),
                }
            };
            let _ = files.clunk(new_fid, until);
            result
        })?;
        into.get(..len).ok_or(FileError::TooLong)
    }

    /// Sets an extended attribute; `flags` are those of [`xattr`](hvl_shared_abi::wire::p9::xattr).
    pub fn set_xattr(&mut self, path: &[u8], name: &[u8], value: &[u8], flags: u32) -> Result<(), FileError> {
        let until = self.until();
        let mut clunked = Ok(());
        self.at(path, false, true, &mut |files, fid| {
            files.done(&Request::Xattrcreate { fid, name, size: value.len() as u64, flags }, &[], until)?;
            let mut done = 0usize;
            while let Some(rest) = value.get(done..).filter(|rest| !rest.is_empty()) {
                done = done.saturating_add(files.write_once(fid, done as u64, rest, until)?);
            }
            // Only this sets it.
            clunked = files.clunk(fid, until);
            Ok(())
        })?;
        clunked
    }

    // --- open files -------------------------------------------------------------------------------------------------

    /// Opens a file; `flags` are those of [`open`], and `CREATE` is
    /// [`Files::create`]'s.
    pub fn open_file(&mut self, path: &[u8], flags: u32) -> Result<File, FileError> {
        let mut file = closed(path, flags)?;
        self.reopen(&mut file, flags)?;
        Ok(file)
    }

    #[inline(never)]
    fn reopen(&mut self, file: &mut File, flags: u32) -> Result<(), FileError> {
        let until = self.until();
        let mut opened = 0;
        let again = flags & open::TRUNCATE == 0;
        self.at(file.path(), again, true, &mut |files, fid| {
            opened = fid;
            files.done(&Request::Lopen { fid, flags }, &[], until)
        })?;
        (file.fid, file.starts, file.told) = (opened, self.attached.unwrap_or(0), false);
        Ok(())
    }

    /// Makes a regular file and opens it, or opens the one that is there unless `flags` hold `EXCLUSIVE`. `mode` is the
    /// permissions of a new one.
    pub fn create(&mut self, path: &[u8], flags: u32, mode: u32) -> Result<File, FileError> {
        let mut file = closed(path, flags)?;
        let (until, (directory, name)) = (self.until(), split(path));
        let mut opened = 0;
        let repeats = flags & (open::EXCLUSIVE | open::TRUNCATE) == 0;
        self.at(directory, repeats, true, &mut |files, fid| {
            opened = fid;
            files.done(&Request::Lcreate { fid, name, flags: flags | open::CREATE, mode, gid: 0 }, &[], until)
        })?;
        (file.fid, file.starts) = (opened, self.attached.unwrap_or(0));
        Ok(file)
    }

    /// Closes a file. The file is gone whatever this answers.
    pub fn close(&mut self, file: File) -> Result<(), FileError> {
        if self.attached != Some(file.starts) {
            return Ok(());
        }
        let until = self.until();
        match self.clunk(file.fid, until) {
            Err(FileError::Stale | FileError::Indeterminate) => Ok(()),
            other => other,
        }
    }

    /// Sees to it that a file is open in this session, or tells its owner that it was not.
    #[inline(never)]
    fn fresh(&mut self, file: &mut File) -> Result<u32, FileError> {
        let until = self.until();
        self.attach(until)?;
        if self.attached != Some(file.starts) {
            if !file.told {
                return Err(FileError::Stale);
            }
            self.reopen(file, file.flags)?;
        }
        Ok(file.fid)
    }

    /// A call on an open file: what a restart has cut short is told to its owner.
    #[inline(never)]
    fn on(&mut self, file: &mut File, step: Step<'_, 's, B>) -> Result<(), FileError> {
        let result = self.fresh(file).and_then(|fid| step(self, fid));
        match result {
            Err(FileError::Stale | FileError::Indeterminate) => {
                file.told = true;
                Err(FileError::Stale)
            }
            other => other,
        }
    }

    /// Reads from `offset` to the front of `into`; how many bytes, 0 at the end of the file. Fewer than were asked for
    /// are not the end.
    pub fn read(&mut self, file: &mut File, offset: u64, into: &mut [u8]) -> Result<usize, FileError> {
        let (until, mut done) = (self.until(), 0);
        self.on(file, &mut |files, fid| {
            done = files.read_once(fid, offset, into, until)?;
            Ok(())
        })?;
        Ok(done)
    }

    /// Writes the front of `bytes` to `offset`; how many bytes, at least one unless there are none. They are in the page
    /// cache of the PMM's machine then, which survives the PMM and not the power; see [`Files::sync`].
    pub fn write(&mut self, file: &mut File, offset: u64, bytes: &[u8]) -> Result<usize, FileError> {
        let (until, mut done) = (self.until(), 0);
        self.on(file, &mut |files, fid| {
            done = files.write_once(fid, offset, bytes, until)?;
            Ok(())
        })?;
        Ok(done)
    }

    fn read_once(
        &mut self,
        fid: u32,
        offset: u64,
        into: &mut [u8],
        until: Option<Instant>,
    ) -> Result<usize, FileError> {
        let count = self.most(into.len(), REPLY_PREFIX);
        let ticket = self.exchange(&Request::Read { fid, offset, count }, &[], self.attached, until)?;
        self.finish_data(ticket, count, into)
    }

    fn write_once(
        &mut self,
        fid: u32,
        offset: u64,
        bytes: &[u8],
        until: Option<Instant>,
    ) -> Result<usize, FileError> {
        let count = self.most(bytes.len(), WRITE_PREFIX);
        let bytes = bytes.get(..count as usize).unwrap_or(&[]);
        let request = Request::Write { fid, offset, count: Payload(count) };
        let ticket = self.exchange(&request, bytes, self.attached, until)?;
        self.finish_data(ticket, count, &mut [])
    }

    /// Bytes of data that one message takes.
    fn most(&self, len: usize, prefix: usize) -> u32 {
        // Some servers count more for the rest of the message than it has.
        let room = (self.msize.saturating_sub(IO_HEADER) as usize).min(self.room(prefix));
        len.min(room) as u32
    }

    /// The end of a read, a write or a look into a directory: how much it was, at most `count`.
    #[inline(never)]
    fn finish_data(&mut self, ticket: Ticket, count: u32, into: &mut [u8]) -> Result<usize, FileError> {
        let answer = self.answer(&ticket, &mut [0; LONGEST_ANSWER]).map(|reply| match reply {
            Reply::Read { count: Payload(done) } | Reply::Readdir { count: Payload(done) } => (done, true),
            Reply::Write { count: done } => (done, false),
            _ => (u32::MAX, false),
        });
        let result = answer.and_then(|(done, data)| {
            if done > count {
                return Err(FileError::Malformed);
            }
            if data {
                let into = into.get_mut(..done as usize).ok_or(FileError::Malformed)?;
                self.payload(&ticket, 0, into)?;
            }
            Ok(done as usize)
        });
        self.release(ticket);
        result
    }

    /// Begins a read, to be ended by [`Files::finish_read`]. It waits for nothing; several may be under way.
    pub fn start_read(&mut self, file: &File, offset: u64, count: usize) -> Result<Ticket, FileError> {
        let count = self.most(count, REPLY_PREFIX);
        self.send(&Request::Read { fid: file.fid, offset, count }, &[], Some(file.starts))
    }
    /// The bytes of a read, once they are there: `WouldBlock` before, with which the ticket stays good. `into` has room
    /// for what was asked.
    pub fn finish_read(&mut self, ticket: &mut Option<Ticket>, into: &mut [u8]) -> Result<usize, FileError> {
        let ticket = self.take_answered(ticket)?;
        self.finish_data(ticket, into.len() as u32, into)
    }
    /// Begins a write of the front of `bytes`; how many of them.
    pub fn start_write(
        &mut self,
        file: &File,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(Ticket, usize), FileError> {
        let count = self.most(bytes.len(), WRITE_PREFIX);
        let bytes = bytes.get(..count as usize).unwrap_or(&[]);
        let request = Request::Write { fid: file.fid, offset, count: Payload(count) };
        Ok((self.send(&request, bytes, Some(file.starts))?, bytes.len()))
    }
    /// How many bytes were written, once that is known.
    pub fn finish_write(&mut self, ticket: &mut Option<Ticket>) -> Result<usize, FileError> {
        let ticket = self.take_answered(ticket)?;
        self.finish_data(ticket, u32::MAX, &mut [])
    }
    /// Gives up a call that was started; its effect may still come about.
    pub fn cancel(&mut self, ticket: Ticket) {
        let old_tag = ticket.0.into();
        self.release(ticket);
        if let Ok(flush) = self.send(&Request::Flush { old_tag }, &[], self.attached) {
            self.release(flush);
        }
    }

    fn take_answered(&mut self, ticket: &mut Option<Ticket>) -> Result<Ticket, FileError> {
        let waiting = ticket.as_ref().ok_or(FileError::Malformed)?;
        match self.answered(waiting) {
            Ok(()) => ticket.take().ok_or(FileError::Malformed),
            Err(why @ (FileError::WouldBlock | FileError::LinkDown)) => Err(why),
            Err(_) => {
                *ticket = None;
                Err(FileError::Stale)
            }
        }
    }

    /// Attributes of an open file.
    pub fn stat_file(&mut self, file: &mut File) -> Result<Attr, FileError> {
        let (until, mut found) = (self.until(), None);
        self.on(file, &mut |files, fid| {
            found = Some(files.attributes(fid, until)?);
            Ok(())
        })?;
        found.ok_or(FileError::Malformed)
    }

    /// Waits until the file's data is on the disk. `data_only`: its times need not be.
    pub fn sync(&mut self, file: &mut File, data_only: bool) -> Result<(), FileError> {
        let until = self.until();
        self.on(file, &mut |files, fid| {
            files.done(&Request::Fsync { fid, data_only: data_only.into() }, &[], until)
        })
    }

    /// Takes or gives up a lock; one of the states in [`lock`](hvl_shared_abi::wire::p9::lock). Nobody waits for it:
    /// `BLOCKED` says that somebody else has it. Locks end with the PMM, which the file says by `Stale`.
    pub fn lock(&mut self, file: &mut File, lock: Lock<'_>) -> Result<u8, FileError> {
        let (until, mut state) = (self.until(), 0);
        self.on(file, &mut |files, fid| {
            state = files.asked(&Request::Lock { fid, lock }, until, |reply| match reply {
                Reply::Lock { status } => Some(status),
                _ => None,
            })?;
            Ok(())
        })?;
        Ok(state)
    }

    /// Kind and range of a lock that stands in the way of this one: (kind, first byte, bytes), kind `UNLOCK` if none.
    pub fn lock_in_the_way(
        &mut self,
        file: &mut File,
        lock: GetLock<'_>,
    ) -> Result<(u8, u64, u64), FileError> {
        let (until, mut found) = (self.until(), None);
        self.on(file, &mut |files, fid| {
            found = Some(files.asked(&Request::Getlock { fid, lock }, until, |reply| match reply {
                Reply::Getlock { lock } => Some((lock.kind, lock.start, lock.length)),
                _ => None,
            })?);
            Ok(())
        })?;
        found.ok_or(FileError::Malformed)
    }

    // --- directories ------------------------------------------------------------------------------------------------

    /// Opens a directory.
    pub fn open_dir(&mut self, path: &[u8]) -> Result<Dir, FileError> {
        Ok(Dir { file: self.open_file(path, open::DIRECTORY)?, offset: 0 })
    }

    /// The next entries, in `into`, which should have room for some (at least 300 bytes): empty at the end. Their names
    /// are the server's: check them with [`is_name`](hvl_shared_abi::wire::p9::is_name) before you walk there. After
    /// `Stale` the directory goes on where it was, as far as its file system allows.
    pub fn entries<'t>(&mut self, dir: &mut Dir, into: &'t mut [u8]) -> Result<Entries<'t>, FileError> {
        let (until, mut done, offset) = (self.until(), 0, dir.offset);
        self.on(&mut dir.file, &mut |files, fid| {
            let count = files.most(into.len(), REPLY_PREFIX);
            let request = Request::Readdir { fid, offset, count };
            let ticket = files.exchange(&request, &[], files.attached, until)?;
            done = files.finish_data(ticket, count, into)?;
            Ok(())
        })?;
        let bytes = into.get(..done).ok_or(FileError::Malformed)?;
        for entry in Entries::new(bytes) {
            dir.offset = entry.map_err(|_| FileError::Malformed)?.offset;
        }
        Ok(Entries::new(bytes))
    }
}

/// A file that is not open yet. What was to happen once, at the first opening, does not happen again.
fn closed(path: &[u8], flags: u32) -> Result<File, FileError> {
    let mut file = File {
        fid: NO_FID,
        starts: 0,
        told: false,
        flags: flags & !(open::TRUNCATE | open::CREATE | open::EXCLUSIVE),
        path: [0; PATH],
        len: path.len() as u16,
    };
    file.path.get_mut(..path.len()).ok_or(FileError::TooLong)?.copy_from_slice(path);
    Ok(file)
}

/// What was lost and may always be asked again.
fn lost_is_stale(error: FileError) -> FileError {
    if error == FileError::Indeterminate { FileError::Stale } else { error }
}

impl<B: Board> Files<'_, B> {
    /// The start of the device that runs now.
    fn running(&mut self) -> Result<u32, FileError> {
        let mut cell = self.link.enter(self.cell).ok_or(FileError::WouldBlock)?;
        if !cell.runs() {
            return Err(FileError::LinkDown);
        }
        Ok(cell.queue(hvl_shared_abi::wire::p9::REQUEST).ok_or(FileError::LinkDown)?.starts())
    }

    /// The largest message that an answer has room for, behind a short request.
    fn largest_message(&mut self) -> Result<u32, FileError> {
        let mut cell = self.link.cell(self.cell).ok_or(FileError::WouldBlock)?;
        let queue = cell.queue(hvl_shared_abi::wire::p9::REQUEST).ok_or(FileError::LinkDown)?;
        self.block = queue.extent(0).len;
        Ok(queue.answer(0, 1).len)
    }

    /// Bytes of data for which one block has room: the answer to a write keeps its own.
    fn room(&self, prefix: usize) -> usize {
        let block = self.block as usize;
        if prefix == WRITE_PREFIX {
            (block & !63).saturating_sub(super::calls::LEAST_ANSWER as usize).saturating_sub(prefix)
        } else {
            block.saturating_sub(64).saturating_sub(prefix)
        }
    }
}
