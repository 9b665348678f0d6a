//! Reads and writes that need no worker, as the page cache has the data or takes it: it moves straight between the
//! file and the client's memory.
//!
//! Nothing here waits for a disk, for a lock of this session, or for another request. What would have to is left to
//! [`Session::handle`], which does it again from the start: a part that was moved in vain does no harm.

use std::os::fd::AsFd;

use hvl_shared_abi::Piece;
use hvl_shared_abi::wire::p9::{Payload, REPLY_PREFIX, Reply, Request, WRITE_PREFIX};

use super::data::position;
use super::fid::OpenFile;
use super::session::Session;
use crate::host::Transfer;
use crate::sys::pieces;

impl Session {
    /// Carries out a read or a write and writes the head of the answer; how many bytes of the data are the rest of it.
    /// `None`: it is somebody's who may wait.
    pub fn at_once(&self, transfer: Transfer<'_>) -> Option<u32> {
        let Transfer { request, data, answer } = transfer;
        let (fid, offset, prefix) = match request.message {
            Request::Read { fid, offset, .. } => (fid, offset, REPLY_PREFIX),
            Request::Write { fid, offset, .. } => (fid, offset, WRITE_PREFIX),
            _ => return None,
        };
        let len = data.iter().map(Piece::len).sum::<usize>();
        let fits = prefix.checked_add(len)? <= usize::try_from(self.msize()).ok()?;
        position(offset, len).filter(|_| fits && len > 0)?;
        // Held to the end: a file that is clunked meanwhile is closed by whoever clunks it, not here.
        let table = self.try_table()?;
        let file = table.get(fid).ok()?.try_open()?;
        // What it was not opened for, and directories, the kernel refuses.
        let (reply, payload) = match request.message {
            Request::Read { .. } => {
                let count = u32::try_from(read(&file, data, len, offset)?).ok()?;
                (Reply::Read { count: Payload(count) }, count)
            }
            Request::Write { count, .. } => {
                write(&file, data, len, offset)?;
                (Reply::Write { count: count.0 }, 0)
            }
            _ => return None,
        };
        reply.emit_prefix(request.tag, answer).ok()?;
        Some(payload)
    }
}

/// Reads all that is asked for, or what is left of the file.
fn read(file: &OpenFile, into: &[Piece], len: usize, offset: u64) -> Option<usize> {
    let got = pieces::read(file.as_fd(), into, offset, file.waiting).ok()?;
    if got == len || file.ends_at(position(offset, got)?) { Some(got) } else { None }
}

/// Writes all. Not to files that are appended to, where doing it again would do harm, nor to those that a disk has.
fn write(file: &OpenFile, from: &[Piece], len: usize, offset: u64) -> Option<()> {
    let put = file.plain_writes.then(|| pieces::write(file.as_fd(), from, offset))?;
    (put.ok()? == len).then_some(())
}
