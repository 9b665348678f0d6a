//! Files. The disk outlives everybody; the workers that change it die with their PMM, and finish when they like.
//!
//! A file is a row of blocks, and every write fills whole blocks with bytes that say which write it was. What holds: a
//! write that was acknowledged is in the file, and nothing older comes over it, least of all from an earlier session;
//! what is read is what these blocks of this file held meanwhile, whoever else asks for something; an open file says
//! `Stale` after a change of session, once, and then goes on by itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hvl_frontend::device::p9::{File, FileError, Files, FilesStorage, Options, Ticket};
use hvl_frontend::{Link, OpenError};
use hvl_pmm::device::p9::P9;
use hvl_pmm::host::{self, Conversation, Conversations, Job, Worker};
use hvl_shared_abi::wire::p9::{
    Attr, Errno, Payload, Qid, Qids, Reply, Request, VERSION, getattr, open, qid,
};

use super::{End, Pace, Work, byte};
use crate::guest::Simulated;
use crate::map::Side;
use crate::plan::{MICRO, MILLI, Plan, SECOND};
use crate::world;

/// Files, called 0, 1 and 2, and the blocks of each.
const FILES: usize = 3;
const BLOCKS: usize = 6;
/// Bytes of a block.
const BLOCK: usize = 16;
/// Messages that are worked on at a time.
const WORKERS: usize = 4;

/// What a write leaves in a block.
fn block(salt: u64, write: u64, file: usize, block: usize) -> [u8; BLOCK] {
    let stream = write << 8 | (file << 4 | block) as u64;
    std::array::from_fn(|at| byte(salt, stream, at as u64))
}

/// The files' bytes.
type Disk = Arc<Mutex<[[u8; BLOCKS * BLOCK]; FILES]>>;

/// Some blocks of a file.
#[derive(Clone, Copy, Debug)]
struct Place {
    file: usize,
    from: usize,
    to: usize,
}

impl Place {
    fn offset(self) -> u64 {
        (self.from * BLOCK) as u64
    }
    fn len(self) -> usize {
        (self.to - self.from) * BLOCK
    }
}

/// What a block may hold.
#[derive(Clone, Default)]
struct Known {
    /// The last write that was acknowledged; 0 before any.
    settled: u64,
    /// Those that may still happen, or may have happened, and after how many greetings each began.
    open: Vec<(u64, u64)>,
}

impl Known {
    fn writes(&self) -> Vec<u64> {
        self.open.iter().map(|(write, _)| *write).chain([self.settled]).collect()
    }
}

/// A message that is being worked on: what becomes of the disk is decided at the beginning or at the end.
struct Running {
    job: Job,
    answer: Option<Vec<u8>>,
    until: u64,
}

/// The disk, the workers, and the judge.
pub struct Shelf {
    salt: u64,
    pace: Pace,
    failure: Option<String>,
    /// Operations of each start's work.
    share: u32,
    disk: Disk,
    known: [[Known; BLOCKS]; FILES],
    writes: u64,
    /// Times that a guest said hello.
    greetings: u64,
    done: u32,
    wanted: u32,
    worker: Option<Worker>,
    running: Vec<Running>,
    /// A worker has an answer of which the PMM has not heard.
    news: bool,
}

impl Shelf {
    /// As planned.
    pub fn new(plan: &Plan, salt: u64) -> Shelf {
        let whole = |file| {
            let mut bytes = [0; BLOCKS * BLOCK];
            let blocks = bytes.chunks_exact_mut(BLOCK).enumerate();
            blocks.for_each(|(at, bytes)| bytes.copy_from_slice(&block(salt, 0, file, at)));
            bytes
        };
        Shelf {
            salt,
            pace: Pace::new(plan, salt),
            failure: None,
            share: plan.operations,
            disk: Arc::new(Mutex::new(std::array::from_fn(whole))),
            known: Default::default(),
            writes: 0,
            greetings: 0,
            done: 0,
            wanted: 0,
            worker: None,
            running: Vec::new(),
            news: false,
        }
    }

    fn fail(&mut self, what: String) {
        self.failure.get_or_insert(what);
    }

    fn blocks(&mut self, place: Place) -> &mut [Known] {
        &mut self.known[place.file][place.from..place.to]
    }
    /// The writes that each of these blocks may show.
    fn may_show(&mut self, place: Place) -> Vec<Vec<u64>> {
        self.blocks(place).iter().map(Known::writes).collect()
    }

    /// A write begins: which one, and its bytes.
    fn write(&mut self, place: Place) -> (u64, Vec<u8>) {
        self.writes += 1;
        let (salt, write, greetings) = (self.salt, self.writes, self.greetings);
        self.blocks(place).iter_mut().for_each(|known| known.open.push((write, greetings)));
        (write, (place.from..place.to).flat_map(|at| block(salt, write, place.file, at)).collect())
    }

    /// It is acknowledged, in a session that began after so many greetings at the least. What another session wrote
    /// before can come over it no more.
    fn written(&mut self, write: u64, place: Place, greetings: u64) {
        for known in self.blocks(place) {
            known.settled = write;
            known.open.retain(|(other, began)| *other != write && *began >= greetings);
        }
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner)[place.file];
        let bytes = &disk[place.from * BLOCK..place.to * BLOCK];
        let may_show = self.may_show(place);
        self.compare(place, bytes, &may_show, "holds, although the last write was acknowledged,");
        self.done += 1;
    }

    /// These bytes were read, of blocks that might show `before` when it began.
    fn read(&mut self, place: Place, bytes: &[u8], before: &[Vec<u64>]) {
        let may_show = self.may_show(place).into_iter().zip(before);
        let may_show: Vec<_> = may_show.map(|(now, before)| [&now[..], before].concat()).collect();
        if bytes.len() == place.len() {
            self.compare(place, bytes, &may_show, "is read to hold");
        } else {
            self.fail(format!("{} bytes are read of {place:?}", bytes.len()));
        }
        self.done += 1;
    }

    fn compare(&mut self, place: Place, bytes: &[u8], may_show: &[Vec<u64>], what: &str) {
        let salt = self.salt;
        for ((at, bytes), writes) in (place.from..).zip(bytes.chunks(BLOCK)).zip(may_show) {
            if !writes.iter().any(|write| block(salt, *write, place.file, at) == *bytes) {
                let all = 0..=self.writes;
                let shown = all.rev().find(|write| block(salt, *write, place.file, at) == *bytes);
                let Place { file, .. } = place;
                self.fail(format!("block {at} of file {file} {what} {shown:?}, and may show {writes:?}"));
            }
        }
    }
}

impl End for Shelf {
    fn progress(&mut self, now: u64) {
        let Some(worker) = self.worker.clone() else { return };
        while let Some(at) = self.running.iter().position(|one| one.until <= now) {
            let Running { job, answer, .. } = self.running.swap_remove(at);
            let answer = answer.unwrap_or_else(|| worker.answer(&job));
            worker.finish(job, answer);
            self.news = true;
        }
        while self.running.len() < WORKERS
            && let Some(job) = worker.begin()
        {
            let longest = match self.pace.rng.u8(..) {
                0 => SECOND,
                1..=8 => 50 * MILLI,
                _ => 200 * MICRO,
            };
            let until = self.pace.blocks(now).unwrap_or(now) + self.pace.rng.u64(1..longest);
            // What is no change of files does not wait for any, so it happens in the order in which it was asked for.
            let at_once = !job.changes() || self.pace.rng.bool();
            let answer = at_once.then(|| worker.answer(&job));
            self.running.push(Running { job, answer, until });
        }
    }
    fn is_ready(&mut self, now: u64) -> bool {
        self.progress(now);
        self.news
    }
    fn heard(&mut self, _now: u64) {
        self.news = false;
    }
    fn next_ready(&self) -> Option<u64> {
        self.running.iter().map(|one| one.until).min()
    }
    fn holds_requests(&self) -> bool {
        false
    }

    fn started(&mut self, _now: u64) {
        (self.done, self.wanted) = (0, self.share);
    }
    fn greeted(&mut self) {
        self.greetings += 1;
    }
    fn served(&mut self, _start: Option<usize>) {}
    fn died(&mut self, side: Side) {
        if side == Side::Guest {
            return;
        }
        // What was under way happens now or never.
        let worker = self.worker.take();
        for Running { job, answer, .. } in std::mem::take(&mut self.running) {
            if let Some(worker) = worker.as_ref().filter(|_| answer.is_none() && self.pace.rng.bool()) {
                worker.answer(&job);
            }
        }
        self.news = false;
    }
    fn more(&mut self, _now: u64) {
        self.wanted += self.share;
    }

    fn is_done(&self) -> bool {
        self.done >= self.wanted && self.running.is_empty() && !self.news
    }
    fn missing(&self) -> String {
        let Self { done, wanted, .. } = self;
        format!("{done} of {wanted} operations on files are done, {} are worked on", self.running.len())
    }
    fn failure(&mut self) -> Option<String> {
        self.failure.take()
    }
}

/// The server of the disk: what a client needs for reading and writing, and no more.
struct Server {
    disk: Disk,
    /// What each fid stands for: a file, or the directory of all.
    fids: Mutex<HashMap<u32, Option<usize>>>,
}

impl Server {
    fn reply(
        &self,
        request: Request<'_>,
        payload: &[u8],
        bytes: &mut [u8],
    ) -> Result<(Reply<'static>, usize), Errno> {
        const ROOT: Qid = Qid { kind: qid::DIRECTORY, version: 0, path: 0 };
        const FILE: [Qid; 1] = [Qid { kind: qid::FILE, version: 0, path: 1 }];
        let mut fids = self.fids.lock().unwrap_or_else(PoisonError::into_inner);
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let file = |fid: &u32, fids: &HashMap<_, _>| fids.get(fid).copied().flatten().ok_or(Errno::BADF);
        let none = |reply| Ok((reply, 0));
        match request {
            Request::Version { msize, .. } => {
                fids.clear();
                none(Reply::Version { msize, version: VERSION })
            }
            Request::Attach { fid, .. } => {
                fids.insert(fid, None);
                none(Reply::Attach { qid: ROOT })
            }
            Request::Walk { fid, new_fid, names } => {
                let from = *fids.get(&fid).ok_or(Errno::BADF)?;
                let Some(name) = names.iter().next() else {
                    fids.insert(new_fid, from);
                    return none(Reply::Walk { qids: Qids::new(&[]) });
                };
                let index = name.first().map(|digit| usize::from(digit.wrapping_sub(b'0')));
                fids.insert(new_fid, Some(index.filter(|index| *index < FILES).ok_or(Errno::NOENT)?));
                none(Reply::Walk { qids: Qids::new(&FILE) })
            }
            Request::Getattr { fid, .. } => {
                file(&fid, &fids)?;
                let size = (BLOCKS * BLOCK) as u64;
                let attr = Attr { valid: getattr::BASIC, qid: FILE[0], size, ..Attr::default() };
                none(Reply::Getattr { attr })
            }
            Request::Lopen { fid, .. } => {
                file(&fid, &fids)?;
                none(Reply::Lopen { qid: FILE[0], io_unit: 0 })
            }
            Request::Read { fid, offset, count } => {
                let all = &disk[file(&fid, &fids)?];
                let rest = &all[all.len().min(offset as usize)..];
                let rest = &rest[..rest.len().min(count as usize).min(bytes.len())];
                bytes[..rest.len()].copy_from_slice(rest);
                Ok((Reply::Read { count: Payload(rest.len() as u32) }, rest.len()))
            }
            Request::Write { fid, offset, .. } => {
                let all = &mut disk[file(&fid, &fids)?];
                let rest = all.get_mut(offset as usize..).ok_or(Errno::INVAL)?;
                let into = rest.get_mut(..payload.len()).ok_or(Errno::INVAL)?;
                into.copy_from_slice(payload);
                none(Reply::Write { count: payload.len() as u32 })
            }
            Request::Fsync { .. } => none(Reply::Fsync {}),
            Request::Clunk { fid } => fids.remove(&fid).map(|_| (Reply::Clunk {}, 0)).ok_or(Errno::BADF),
            _ => Err(Errno::OPNOTSUPP),
        }
    }
}

impl Conversation for Server {
    fn handle(&self, request: &[u8], answer: &mut Vec<u8>, _room: usize) {
        let mut data = [0; BLOCKS * BLOCK];
        let (tag, (reply, len)) = match Request::parse(request) {
            Ok(parsed) => {
                let payload = parsed.payload;
                let reply = self.reply(parsed.message, payload, &mut data);
                (parsed.tag, reply.unwrap_or_else(|errno| (Reply::Error { errno }, 0)))
            }
            Err(_) => (0, (Reply::Error { errno: Errno::PROTO }, 0)),
        };
        answer.resize(512, 0);
        let used = reply.emit(tag, &data[..len], answer).unwrap_or(0);
        answer.truncate(used);
    }
}

/// Servers of one disk.
struct Library(Disk);

impl Conversations for Library {
    fn begin(&self) -> Arc<dyn Conversation> {
        Arc::new(Server { disk: self.0.clone(), fids: Mutex::default() })
    }
    fn state(&self) -> String {
        "simulated".into()
    }
}

/// The PMM's files.
pub fn device() -> P9<host::Files> {
    let disk = world::with(|world| world.ends.files().disk.clone());
    let (files, worker) =
        host::Files::without_threads(Box::new(Library(disk))).expect("a descriptor for the worker");
    world::with(|world| world.ends.files().worker = Some(worker));
    P9::new(files, b"sim").expect("a short tag")
}

/// A file that the guest has open, and after how many greetings it was opened: that many at the least and the most.
struct Opened {
    file: File,
    since: u64,
    until: u64,
    /// Its next call opens it again.
    stale: bool,
}

/// A call that the guest does not wait for.
struct Call {
    ticket: Option<Ticket>,
    place: Place,
    greetings: u64,
    what: What,
}

enum What {
    Write(u64),
    Read(Vec<Vec<u64>>),
}

/// What the guest does with files.
pub struct Reader<'s> {
    files: Files<'s, Simulated<'s>>,
    open: [Option<Opened>; FILES],
    calls: Vec<Call>,
}

impl<'s> Reader<'s> {
    /// Opens the device.
    pub fn open(
        link: &Link<'s, Simulated<'s>>,
        storage: &'s mut FilesStorage<16>,
        plan: &Plan,
    ) -> Result<Reader<'s>, OpenError> {
        let options = Options { timeout: plan.patience / MICRO, ..Options::default() };
        let files = Files::open(link, storage, options)?;
        Ok(Reader { files, open: Default::default(), calls: Vec::new() })
    }

    /// One operation, to its end. Returns whether another may follow at once.
    fn operate(&mut self, place: Place, dice: u8) -> bool {
        let greetings = world::with(|world| world.ends.files().greetings);
        let name = [b'0' + place.file as u8];
        let Some(opened) = &mut self.open[place.file] else {
            let result = self.files.open_file(&name, open::READ_WRITE);
            return self.judge(
                place,
                greetings,
                result.map(|file| {
                    let until = world::with(|world| world.ends.files().greetings);
                    Some(Opened { file, since: greetings, until, stale: false })
                }),
            );
        };
        let files = &mut self.files;
        let result = match dice {
            0..=99 => {
                let (write, bytes) = world::with(|world| world.ends.files().write(place));
                files.write(&mut opened.file, place.offset(), &bytes).map(|count| {
                    world::with(|world| {
                        let shelf = world.ends.files();
                        match count == bytes.len() {
                            true => shelf.written(write, place, greetings),
                            false => shelf.fail(format!("{count} bytes were written of {}", bytes.len())),
                        }
                    });
                })
            }
            100..=199 => {
                let before = world::with(|world| world.ends.files().may_show(place));
                let mut bytes = [0; BLOCKS * BLOCK];
                let into = &mut bytes[..place.len()];
                files.read(&mut opened.file, place.offset(), into).map(|count| {
                    world::with(|world| world.ends.files().read(place, &bytes[..count], &before));
                })
            }
            200..=219 => files.stat_file(&mut opened.file).map(|attr| {
                if attr.size != (BLOCKS * BLOCK) as u64 {
                    world::with(|world| {
                        world.ends.files().fail(format!("a file has another size: {attr:?}"))
                    });
                }
            }),
            220..=239 => files.sync(&mut opened.file, true),
            _ => {
                let result = match self.open[place.file].take() {
                    Some(opened) => files.close(opened.file),
                    None => Ok(()),
                };
                return self.judge(place, greetings, result.map(|()| None));
            }
        };
        self.judge_open(place, greetings, result)
    }

    /// What becomes of a file that is opened or closed. Returns whether it succeeded.
    fn judge(&mut self, place: Place, greetings: u64, result: Result<Option<Opened>, FileError>) -> bool {
        match result {
            Ok(opened) => {
                self.open[place.file] = opened;
                true
            }
            Err(error) => go_on(error, greetings),
        }
    }

    /// What an open file says after a call. Returns whether another may follow at once.
    fn judge_open(&mut self, place: Place, greetings: u64, result: Result<(), FileError>) -> bool {
        let Some(opened) = &mut self.open[place.file] else { return false };
        let now = world::with(|world| world.ends.files().greetings);
        let fail =
            |what: &str| world::with(|world| world.ends.files().fail(format!("file {}: {what}", place.file)));
        match result {
            Ok(()) if opened.stale => (opened.since, opened.until, opened.stale) = (greetings, now, false),
            Ok(()) if greetings > opened.until => fail("it goes on in another session, and never said Stale"),
            Ok(()) => {}
            Err(FileError::Stale) => {
                if now == opened.since {
                    fail("it is Stale, and the session is still the same");
                }
                (opened.since, opened.until, opened.stale) = (now, now, true);
            }
            Err(error) => return go_on(error, greetings),
        }
        true
    }

    /// Begins several calls at once: a write, and reads of other files.
    fn begin(&mut self, place: Place) {
        for file in 0..FILES {
            let place = Place { file: (place.file + file) % FILES, ..place };
            let Some(opened) = &self.open[place.file] else { continue };
            let greetings = world::with(|world| world.ends.files().greetings);
            let (begun, what) = if file == 0 {
                let (write, bytes) = world::with(|world| world.ends.files().write(place));
                let begun = self.files.start_write(&opened.file, place.offset(), &bytes);
                (begun.map(|(ticket, _)| ticket), What::Write(write))
            } else {
                let before = world::with(|world| world.ends.files().may_show(place));
                let begun = self.files.start_read(&opened.file, place.offset(), place.len());
                (begun, What::Read(before))
            };
            // One that is not begun is left to the next operation.
            if let Ok(ticket) = begun {
                self.calls.push(Call { ticket: Some(ticket), place, greetings, what });
            }
        }
    }

    /// Ends the calls that were answered.
    fn end(&mut self) {
        let Reader { files, calls, .. } = self;
        calls.retain_mut(|Call { ticket, place, greetings, what }| {
            let mut bytes = [0; BLOCKS * BLOCK];
            let result = match what {
                What::Write(_) => files.finish_write(ticket),
                What::Read(_) => files.finish_read(ticket, &mut bytes[..place.len()]),
            };
            let shelf = |act: &mut dyn FnMut(&mut Shelf)| world::with(|world| act(world.ends.files()));
            match (result, what) {
                (Ok(_), What::Write(write)) => shelf(&mut |shelf| shelf.written(*write, *place, *greetings)),
                (Ok(count), What::Read(before)) => {
                    shelf(&mut |shelf| shelf.read(*place, &bytes[..count], before))
                }
                (Err(FileError::WouldBlock | FileError::LinkDown), _) => return true,
                (Err(FileError::Stale), _) => shelf(&mut |shelf| {
                    if shelf.greetings == *greetings {
                        shelf.fail("a call is Stale, and the session is still the same".into());
                    }
                }),
                (Err(error), _) => drop(go_on(error, *greetings)),
            }
            false
        });
    }
}

/// Whether another operation may follow one that failed at once.
fn go_on(error: FileError, greetings: u64) -> bool {
    match error {
        // Of files whose end was not heard of there are too many until the next session.
        FileError::LinkDown | FileError::WouldBlock | FileError::TooManyFiles => false,
        FileError::TimedOut => true,
        _ => {
            world::with(|world| {
                let shelf = world.ends.files();
                shelf.fail(format!("an operation begun after {greetings} greetings failed: {error}"));
            });
            false
        }
    }
}

impl Work for Reader<'_> {
    fn step(&mut self) -> bool {
        self.end();
        if !self.calls.is_empty() {
            return false;
        }
        let next = world::with(|world| {
            let (file, from) = (world.rng().usize(0..FILES), world.rng().usize(0..BLOCKS));
            let place = Place { file, from, to: world.rng().usize(from..BLOCKS) + 1 };
            let dice = (world.rng().u8(..), world.rng().bool());
            let shelf = world.ends.files();
            (shelf.done < shelf.wanted).then_some((place, dice))
        });
        let Some((place, (dice, alone))) = next else { return false };
        if alone || self.open[place.file].is_none() {
            return self.operate(place, dice);
        }
        self.begin(place);
        // With none begun, there is something to be said first.
        !self.calls.is_empty() || self.operate(place, dice)
    }
}
