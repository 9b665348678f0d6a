//! A file system of one file, `slow`, whose reads the kernel holds until the test answers them. They cannot be done
//! without blocking, and nothing of them is cached.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use fuser::consts::FOPEN_DIRECT_IO;
use fuser::{
    BackgroundSession, FUSE_ROOT_ID, FileAttr, FileType, Filesystem, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, Request,
};
use rustix::io::Errno;

use crate::Skipped;
use crate::guard::Guard;

/// The file's name.
pub const NAME: &str = "slow";
const NUMBER: u64 = 2;
/// Bytes of it.
const LEN: u64 = 1 << 20;
/// How long the kernel may remember what it was told.
const REMEMBER: Duration = Duration::from_secs(3600);
/// Seconds for what the kernel does at once.
const SOON: u64 = 60;

/// A read that waits for its answer.
pub struct Held {
    opened: u64,
    len: usize,
    reply: ReplyData,
}

impl Held {
    /// Answers with these bytes, again and again, as many as were asked for. Which opening of the file has them.
    pub fn answer(self, bytes: &[u8]) -> u64 {
        self.reply.data(&bytes.iter().copied().cycle().take(self.len).collect::<Vec<_>>());
        self.opened
    }
}

enum Event {
    Read(Held),
    Closed(u64),
}

/// The file system, until this is dropped.
pub struct Slow {
    events: Receiver<Event>,
    _session: BackgroundSession,
}

impl Slow {
    /// Mounts it.
    ///
    /// # Errors
    ///
    /// [`Skipped`] if the kernel refuses.
    pub fn mount(at: &Path) -> Result<Slow> {
        let (told, events) = channel();
        match fuser::spawn_mount2(Files { told, openings: 0 }, at, &[]) {
            Ok(session) => Ok(Slow { events, _session: session }),
            Err(error) => {
                bail!(Skipped(format!("no file system can be mounted that is a program ({error})")))
            }
        }
    }

    /// Waits until the kernel has a read of somebody's.
    pub fn read(&self) -> Result<Held> {
        match self.next("a read to reach the file system")? {
            Event::Read(held) => Ok(held),
            Event::Closed(opened) => bail!("the file that was opened as number {opened} was closed"),
        }
    }

    /// Waits until an opening of the file has no user any more.
    pub fn closed(&self, opened: u64) -> Result<()> {
        match self.next("the file to be closed")? {
            Event::Closed(number) => ensure!(number == opened, "number {number} was closed, not {opened}"),
            Event::Read(_) => bail!("the file is read once more"),
        }
        Ok(())
    }

    fn next(&self, what: &str) -> Result<Event> {
        let guard = Guard::new(SOON, what);
        self.events.recv_timeout(guard.left()?).with_context(|| format!("waited {SOON} s for {what}"))
    }
}

struct Files {
    told: Sender<Event>,
    /// How often the file was opened so far.
    openings: u64,
}

fn about(number: u64) -> FileAttr {
    let is_root = number == FUSE_ROOT_ID;
    FileAttr {
        ino: number,
        size: if is_root { 0 } else { LEN },
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_root { FileType::Directory } else { FileType::RegularFile },
        perm: 0o755,
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Files {
    fn lookup(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        match parent == FUSE_ROOT_ID && name == NAME {
            true => reply.entry(&REMEMBER, &about(NUMBER), 0),
            false => reply.error(Errno::NOENT.raw_os_error()),
        }
    }

    fn getattr(&mut self, _: &Request<'_>, number: u64, _: Option<u64>, reply: ReplyAttr) {
        reply.attr(&REMEMBER, &about(number));
    }

    fn open(&mut self, _: &Request<'_>, _: u64, _: i32, reply: ReplyOpen) {
        self.openings += 1;
        reply.opened(self.openings, FOPEN_DIRECT_IO);
    }

    fn read(
        &mut self,
        _: &Request<'_>,
        _: u64,
        opened: u64,
        _: i64,
        len: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyData,
    ) {
        // Without a test that wants it, the reply says so itself: an error.
        let _ = self.told.send(Event::Read(Held { opened, len: len as usize, reply }));
    }

    fn release(
        &mut self,
        _: &Request<'_>,
        _: u64,
        opened: u64,
        _: i32,
        _: Option<u64>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        let _ = self.told.send(Event::Closed(opened));
    }
}
