//! The cases of traffic: files, sockets and frames through frontend, rings, devices and the PMM's event loop, beside the
//! system calls that they end in.
//!
//! Links stay up for the whole run, so these cases do not change memory from round to round as those of the ring do.

use crate::cases::{Case, Measure, beside, time};
use crate::links::{Place, Wire, serve};
use crate::machine::{Cores, progress};
use crate::tap;
use anyhow::{Context, Result, anyhow, ensure};
use hvl_frontend::device::p9::{self, Files, FilesStorage, Ticket};
use hvl_frontend::device::vsock::{Socket, SocketError, Vsock, VsockStorage};
use hvl_frontend::{Link, LinkStorage};
use hvl_pmm::host::export::DEFAULT_FIDS;
use hvl_pmm::options::{DeviceDescription, DirectoryDescription, SharedDirectory, VsockDescription};
use hvl_shared_abi::DeviceSpec;
use hvl_shared_abi::wire::p9::open;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The names of these cases.
pub const NAMES: [&str; 10] = [
    "9p-read-64k",
    "9p-write-64k",
    "9p-read-1m",
    "9p-write-1m",
    "vsock-64",
    "vsock-out",
    "vsock-in",
    "net-send",
    "net-echo-1",
    "net-echo-32",
];

/// For ever: there is one link of a kind in a run.
pub fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

/// The cases that are wanted, and why any of them cannot run here. `namespace`: whether this program has one for the
/// network's cases.
pub fn all(
    cores: Cores,
    place: &Place,
    wanted: &dyn Fn(&str) -> bool,
    namespace: Result<()>,
) -> Result<(Vec<Case>, Option<String>)> {
    let (mut cases, mut skipped) = (Vec::new(), None);
    let other = cores.device.unwrap_or(cores.driver);
    for (size, msize, names, titles) in [
        (
            "64 KiB",
            64 << 10,
            ["9p-read-64k", "9p-write-64k"],
            [
                "9p sequential read, msize 64 KiB, 4 in flight",
                "9p sequential write, msize 64 KiB, 4 in flight",
            ],
        ),
        (
            "1 MiB",
            1 << 20,
            ["9p-read-1m", "9p-write-1m"],
            ["9p sequential read, msize 1 MiB, 4 in flight", "9p sequential write, msize 1 MiB, 4 in flight"],
        ),
    ] {
        if names.iter().any(|name| wanted(name)) {
            let directory = Directory::new(place, msize).with_context(|| format!("9p, msize {size}"))?;
            cases.extend(directory.cases(names, titles));
        }
    }
    if ["vsock-64", "vsock-out", "vsock-in"].iter().any(|name| wanted(name)) {
        cases.extend(streams(place, other).context("vsock")?);
    }
    if tap::NAMES.iter().any(|name| wanted(name)) {
        match namespace.and_then(|()| tap::cases(place, other)) {
            Ok(more) => cases.extend(more),
            Err(why) => skipped = Some(format!("SKIPPED: the network's cases: {why:#}.")),
        }
    }
    cases.retain(|case| wanted(case.name));
    Ok((cases, skipped))
}

// --- files --------------------------------------------------------------------------------------------------------------

/// Requests in flight.
const FLIGHT: u16 = 4;
/// Bytes that each measurement moves, about: more than a core's own caches hold.
const PASS: usize = 16 << 20;

/// A file that the guest has open through 9p, and this program by itself.
struct Directory {
    wire: Wire,
    files: Files<'static, Wire>,
    file: p9::File,
    raw: std::fs::File,
    /// Bytes of data that a message has, read and written.
    units: [usize; 2],
    buffer: Vec<u8>,
}

impl Directory {
    fn new(place: &Place, msize: u32) -> Result<Directory> {
        let name = format!("files-{msize}");
        let path = place.join(&name);
        std::fs::create_dir(&path)?;
        let mut options = std::fs::File::options();
        let raw = options.read(true).write(true).create_new(true).open(path.join("file"))?;
        for at in 0..=PASS / msize as usize {
            raw.write_all_at(&vec![at as u8; msize as usize], at as u64 * u64::from(msize))?;
        }
        // A line before the answer is what a block needs beyond the message.
        let pool = u32::from(FLIGHT) * (msize + 64);
        let shared = SharedDirectory {
            path,
            tag: "bench".into(),
            read_only: false,
            owners: Default::default(),
            fids: DEFAULT_FIDS,
        };
        let device = DirectoryDescription { shared, queue: 2 * FLIGHT, pool };
        let size = (pool + (1 << 20)).next_multiple_of(4096);
        let wire = serve(place, &name, size, DeviceDescription::Directory(device))?;
        let link =
            Link::attach(leak(LinkStorage::NEW), wire.clone()).map_err(|error| anyhow!("{error:?}"))?;
        let storage = leak(FilesStorage::<{ 2 * FLIGHT as usize }>::NEW);
        let mut files =
            Files::open(&link, storage, p9::Options::default()).map_err(|error| anyhow!("{error:?}"))?;
        let mut file = files.open_file(b"file", open::READ_WRITE)?;
        let mut buffer = vec![0; msize as usize];
        let units = [files.read(&mut file, 0, &mut buffer)?, files.write(&mut file, 0, &buffer)?];
        ensure!(units.iter().all(|unit| unit + 512 > msize as usize), "messages of {units:?} bytes of data");
        // That bytes move, and not lengths alone, is seen once, outside the time that is taken.
        let [read, write] = units;
        ensure!(files.read(&mut file, u64::from(msize), &mut buffer[..read])? == read, "a short read");
        ensure!(buffer[..read].iter().all(|byte| *byte == 1), "other bytes are read than lie there");
        buffer.fill(0x5a);
        ensure!(files.write(&mut file, 0, &buffer[..write])? == write, "a short write");
        buffer.fill(0);
        raw.read_exact_at(&mut buffer[..write], 0)?;
        ensure!(buffer[..write].iter().all(|byte| *byte == 0x5a), "other bytes lie there than were written");
        Ok(Directory { wire, files, file, raw, units, buffer })
    }

    fn cases(self, names: [&'static str; 2], titles: [&'static str; 2]) -> Vec<Case> {
        let units = self.units;
        let this = Rc::new(RefCell::new(self));
        let measure = |act: fn(&mut Directory, usize)| -> Measure {
            let this = this.clone();
            Box::new(move |_| {
                let mut this = this.borrow_mut();
                let count = PASS / this.buffer.len();
                progress();
                let start = Instant::now();
                act(&mut this, count);
                start.elapsed().as_nanos() as f64 / count as f64
            })
        };
        let [read, write] = names;
        let [read_title, write_title] = titles;
        vec![
            Case {
                name: read,
                title: read_title,
                bytes: Some(units[0]),
                contenders: vec![("9p", measure(Directory::read)), ("pread", measure(Directory::pread))],
            },
            Case {
                name: write,
                title: write_title,
                bytes: Some(units[1]),
                contenders: vec![("9p", measure(Directory::write)), ("pwrite", measure(Directory::pwrite))],
            },
        ]
    }

    /// Keeps messages in flight until all of them were answered. Each begins with `start` and its number.
    fn stream(
        &mut self,
        count: usize,
        start: impl Fn(&mut Directory, usize) -> Result<Ticket, p9::FileError>,
        finish: impl Fn(&mut Directory, &mut Option<Ticket>) -> Result<usize, p9::FileError>,
        unit: usize,
    ) {
        let mut flight: VecDeque<Option<Ticket>> = VecDeque::with_capacity(FLIGHT.into());
        let (mut started, mut done) = (0, 0);
        while done < count {
            while started < count && flight.len() < FLIGHT.into() {
                match start(self, started) {
                    Ok(ticket) => flight.push_back(Some(ticket)),
                    Err(p9::FileError::WouldBlock) => break,
                    Err(error) => panic!("message {started}: {error}"),
                }
                started += 1;
            }
            let Some(oldest) = flight.front_mut() else { continue };
            match finish(self, oldest) {
                Ok(moved) => {
                    assert_eq!(moved, unit, "message {done} is whole");
                    flight.pop_front();
                    done += 1;
                }
                Err(p9::FileError::WouldBlock) => self.wire.rest(self.files.next_deadline()),
                Err(error) => panic!("message {done}: {error}"),
            }
        }
    }

    fn read(&mut self, count: usize) {
        let [unit, _] = self.units;
        self.stream(
            count,
            |this, at| this.files.start_read(&this.file, (at * unit) as u64, unit),
            |this, ticket| this.files.finish_read(ticket, &mut this.buffer[..unit]),
            unit,
        );
    }
    fn write(&mut self, count: usize) {
        let [_, unit] = self.units;
        self.stream(
            count,
            |this, at| {
                let (ticket, taken) =
                    this.files.start_write(&this.file, (at * unit) as u64, &this.buffer[..unit])?;
                assert_eq!(taken, unit, "a message takes what one has taken before");
                Ok(ticket)
            },
            |this, ticket| this.files.finish_write(ticket),
            unit,
        );
    }
    fn pread(&mut self, count: usize) {
        let [unit, _] = self.units;
        for at in 0..count {
            let got = self.raw.read_at(&mut self.buffer[..unit], (at * unit) as u64);
            assert_eq!(got.ok(), Some(unit), "the file is long enough");
        }
    }
    fn pwrite(&mut self, count: usize) {
        let [_, unit] = self.units;
        for at in 0..count {
            let put = self.raw.write_at(&self.buffer[..unit], (at * unit) as u64);
            assert_eq!(put.ok(), Some(unit), "there is room for the file");
        }
    }
}

// --- sockets ------------------------------------------------------------------------------------------------------------

/// Where the guest listens.
const PORT: u32 = 1024;
/// Bytes of a round trip.
const WORD: usize = 64;
/// Round trips that are timed, after as many to warm up.
const WORDS: u32 = 500;
/// Bytes that a stream is written and read by, and how many times.
const CHUNK: usize = 64 << 10;
const CHUNKS: usize = 64;

/// An end of a stream whose other end is a UNIX socket.
trait Stream {
    fn send(&mut self, bytes: &[u8]);
    fn receive(&mut self, into: &mut [u8]);
}

impl Stream for UnixStream {
    fn send(&mut self, bytes: &[u8]) {
        self.write_all(bytes).expect("the other end is there");
    }
    fn receive(&mut self, into: &mut [u8]) {
        self.read_exact(into).expect("the other end is there");
    }
}

/// A connection of the guest's.
struct Sockets {
    wire: Wire,
    vsock: Vsock<'static, Wire>,
    socket: Socket,
}

impl Stream for Sockets {
    fn send(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.vsock.write(self.socket, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(SocketError::WouldBlock) => self.wire.rest(self.vsock.next_deadline()),
                Err(error) => panic!("a write to a vsock connection: {error}"),
            }
        }
    }
    fn receive(&mut self, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            match self.vsock.read(self.socket, &mut into[done..]) {
                Ok(0) => panic!("the other end of a vsock connection is there"),
                Ok(count) => done += count,
                Err(SocketError::WouldBlock) => self.wire.rest(self.vsock.next_deadline()),
                Err(error) => panic!("a read from a vsock connection: {error}"),
            }
        }
    }
}

/// A connection through the multiplexer: the guest's end and the client's.
fn connect(place: &Place) -> Result<(Sockets, UnixStream)> {
    let path = place.join("v.sock");
    let [queue, ..] = DeviceSpec::VSOCK.queues;
    let pool = DeviceSpec::VSOCK.pool;
    let device = VsockDescription { cid: 3, path: path.clone(), is_default: false, queue, pool };
    let wire = serve(place, "sockets", 1 << 20, DeviceDescription::Vsock(device))?;
    let link = Link::attach(leak(LinkStorage::NEW), wire.clone()).map_err(|error| anyhow!("{error:?}"))?;
    let storage = leak(VsockStorage::<2, CHUNK>::NEW);
    let mut vsock = Vsock::open(&link, storage).map_err(|error| anyhow!("{error:?}"))?;
    vsock.listen(PORT, 1)?;
    wire.until("the device", || vsock.cid().is_ok())?;
    let mut client = UnixStream::connect(&path)?;
    client.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    let mut accepted = None;
    wire.until("a connection", || {
        accepted = vsock.accept(PORT).ok();
        accepted.is_some()
    })?;
    let (socket, _) = accepted.context("a connection that is there")?;
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut byte = [0];
    while byte != *b"\n" {
        client.read_exact(&mut byte).context("the multiplexer's answer")?;
    }
    client.set_read_timeout(None)?;
    Ok((Sockets { wire, vsock, socket }, client))
}

fn streams(place: &Place, core: usize) -> Result<Vec<Case>> {
    let through = Rc::new(RefCell::new(connect(place)?));
    let bare = Rc::new(RefCell::new(UnixStream::pair()?));
    type Act = fn(&mut dyn Stream, &mut UnixStream, usize) -> f64;
    let case = |name, title, bytes, act: Act| {
        let (through, bare) = (through.clone(), bare.clone());
        let through: Measure = Box::new(move |_| {
            let (near, far) = &mut *through.borrow_mut();
            act(near, far, core)
        });
        let bare: Measure = Box::new(move |_| {
            let (near, far) = &mut *bare.borrow_mut();
            act(near, far, core)
        });
        Case { name, title, bytes, contenders: vec![("vsock", through), ("the bare UNIX socket", bare)] }
    };
    Ok(vec![
        case("vsock-64", "vsock round trip of 64 B", None, words),
        case("vsock-out", "vsock stream, guest to client, 64 KiB", Some(CHUNK), stream_out),
        case("vsock-in", "vsock stream, client to guest, 64 KiB", Some(CHUNK), stream_in),
    ])
}

fn words(near: &mut dyn Stream, far: &mut UnixStream, core: usize) -> f64 {
    let echo = |_: &_| {
        let mut word = [0; WORD];
        for _ in 0..2 * WORDS {
            far.receive(&mut word);
            far.send(&word);
        }
    };
    beside(core, echo, || {
        let mut word = [0; WORD];
        time(WORDS, |n| {
            word[0] = n as u8;
            near.send(&word);
            near.receive(&mut word);
            assert_eq!(word[0], n as u8, "the answer to word {n}");
        })
    })
}

/// Nanoseconds that a chunk takes, of what `timed` does until all of them are over.
fn chunks(timed: impl FnOnce()) -> f64 {
    progress();
    let start = Instant::now();
    timed();
    progress();
    start.elapsed().as_nanos() as f64 / CHUNKS as f64
}

/// It is over when the client says that it has everything.
fn stream_out(near: &mut dyn Stream, far: &mut UnixStream, core: usize) -> f64 {
    let take = |_: &_| {
        let mut chunk = vec![0; CHUNK];
        (0..CHUNKS).for_each(|_| far.receive(&mut chunk));
        far.send(&chunk[..1]);
        assert!(chunk.iter().all(|byte| *byte == 0x5a), "the guest's bytes");
    };
    let chunk = vec![0x5a; CHUNK];
    beside(core, take, || {
        chunks(|| {
            (0..CHUNKS).for_each(|_| near.send(&chunk));
            near.receive(&mut [0]);
        })
    })
}

fn stream_in(near: &mut dyn Stream, far: &mut UnixStream, core: usize) -> f64 {
    let give = |_: &_| {
        let chunk = vec![0x5a; CHUNK];
        far.receive(&mut [0]);
        (0..CHUNKS).for_each(|_| far.send(&chunk));
    };
    let mut chunk = vec![0; CHUNK];
    let time = beside(core, give, || {
        chunks(|| {
            near.send(&[0]);
            (0..CHUNKS).for_each(|_| near.receive(&mut chunk));
        })
    });
    assert!(chunk.iter().all(|byte| *byte == 0x5a), "the client's bytes");
    time
}
