//! A doorbell that fails: between a guest's and a PMM's, it merges, drops, doubles and delays rings, as its seed
//! decides, and counts what it did.
//!
//! Rings that are read together are one, as in a mailbox with one pending bit. What becomes of the K-th of these in a
//! direction, the seed alone decides ([`Fates::decided`]): one in a hundred vanishes, one in fifty becomes one with the
//! next (and comes when that comes), one in fifty is rung twice, and one in twenty comes up to 20 ms late, when others
//! may have overtaken it. When a stream ends on one side, the other side's is ended, too: both see that a peer has gone, as they
//! would without a proxy, and come again.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::dice::Dice;
use crate::terminal::wait;

/// How often a peer that is not there is tried again.
const RETRY: Duration = Duration::from_millis(5);
/// How late a ring may be, in microseconds.
const LATE_US: u64 = 20_000;

/// Where one side rings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// `PATH`: somebody listens there.
    Connect(PathBuf),
    /// `PATH,listen`: somebody connects there.
    Listen(PathBuf),
    /// `bind=PATH,peer=PATH`: datagrams.
    Datagram {
        /// Here.
        bind: PathBuf,
        /// There.
        peer: PathBuf,
    },
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<End, String> {
        if let Some((bind, peer)) = text.strip_prefix("bind=").and_then(|rest| rest.split_once(",peer=")) {
            return Ok(End::Datagram { bind: bind.into(), peer: peer.into() });
        }
        match text.strip_suffix(",listen") {
            _ if text.is_empty() => Err("write PATH, PATH,listen or bind=PATH,peer=PATH".into()),
            Some(path) => Ok(End::Listen(path.into())),
            None => Ok(End::Connect(text.into())),
        }
    }
}

/// What became of the rings in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    /// Rings that came.
    pub heard: u64,
    /// Of these, the ones that were read together with another, and are one with it.
    pub together: u64,
    /// Of the rest, the ones that became one with the next.
    pub merged: u64,
    /// The ones that vanished.
    pub dropped: u64,
    /// The ones that were rung twice.
    pub doubled: u64,
    /// The ones that were late.
    pub delayed: u64,
    /// Rings that the other side got.
    pub rung: u64,
    /// Rings for which nobody was there, or whose socket was full.
    pub unheard: u64,
    /// Rings that were still late when the proxy ended.
    pub late: u64,
}

impl Fates {
    /// The rings of which the seed decides.
    pub fn judged(&self) -> u64 {
        self.heard - self.together
    }

    /// Rings merged, dropped, doubled, delayed.
    pub fn counts(&self) -> [u64; 4] {
        [self.merged, self.dropped, self.doubled, self.delayed]
    }

    /// [`Fates::counts`] as a seed decides for so many rings of a direction.
    pub fn decided(seed: u64, to: To, rings: u64) -> [u64; 4] {
        let mut dice = to.dice(seed);
        let mut fates = Fates::default();
        (0..rings).for_each(|_| fates.count(Fate::next(&mut dice)));
        fates.counts()
    }

    fn count(&mut self, fate: Fate) {
        match fate {
            Fate::Merged => self.merged += 1,
            Fate::Dropped => self.dropped += 1,
            Fate::Doubled => self.doubled += 1,
            Fate::Delayed(_) => self.delayed += 1,
            Fate::Passed => {}
        }
    }
}

/// Whom a ring is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The guest.
    Guest = 0,
    /// The PMM.
    Pmm = 1,
}

impl To {
    /// Each direction has its own, so that the order in which the two are read says nothing.
    fn dice(self, seed: u64) -> Dice {
        Dice::new(Dice::new(seed.wrapping_add(self as u64)).number())
    }
}

/// What becomes of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Passed,
    Merged,
    Dropped,
    Doubled,
    Delayed(Duration),
}

impl Fate {
    /// One number a ring: the K-th ring's fate does not depend on those before it.
    fn next(dice: &mut Dice) -> Fate {
        let number = dice.number();
        match number % 100 {
            0 => Fate::Dropped,
            1..=2 => Fate::Doubled,
            3..=4 => Fate::Merged,
            5..=9 => Fate::Delayed(Duration::from_micros((number >> 32) % LATE_US)),
            _ => Fate::Passed,
        }
    }
}

impl fmt::Display for Fates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fates { heard, together, merged, dropped, doubled, delayed, rung, unheard, late } = self;
        write!(
            f,
            "{heard} rings, read together {together}, merged {merged}, dropped {dropped}, doubled {doubled}, delayed \
             {delayed}; rung {rung}, unheard {unheard}, still late {late}"
        )
    }
}

/// What a proxy did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// From the guest to the PMM.
    pub to_pmm: Fates,
    /// From the PMM to the guest.
    pub to_guest: Fates,
    /// How often both were there at once, anew.
    pub meetings: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "proxy: guest to pmm: {}", self.to_pmm)?;
        write!(f, "proxy: pmm to guest: {}; met {} times", self.to_guest, self.meetings)
    }
}

/// A socket of one side.
#[derive(Debug)]
enum Socket {
    Stream(UnixStream),
    Datagram(UnixDatagram, PathBuf),
}

impl Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Stream(stream) => stream.as_fd(),
            Socket::Datagram(socket, _) => socket.as_fd(),
        }
    }

    /// How many rings have come; `None`: the peer is gone.
    fn hear(&mut self) -> Option<u64> {
        let mut bytes = [0; 4096];
        let read = match self {
            Socket::Stream(stream) => stream.read(&mut bytes),
            Socket::Datagram(socket, _) => {
                let count = (0..64).take_while(|_| socket.recv(&mut bytes).is_ok()).count();
                return Some(count as u64);
            }
        };
        match read {
            Ok(count @ 1..) => Some(count as u64),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Some(0),
            _ => None,
        }
    }

    fn ring(&mut self) -> bool {
        match self {
            Socket::Stream(stream) => stream.write(&[1]).is_ok(),
            Socket::Datagram(socket, peer) => socket.send_to(&[1], peer).is_ok(),
        }
    }
}

/// One side.
#[derive(Debug)]
struct Side {
    end: End,
    listener: Option<UnixListener>,
    socket: Option<Socket>,
}

impl Side {
    fn open(end: End) -> Result<Side> {
        let mut side = Side { end, listener: None, socket: None };
        match &side.end {
            End::Connect(_) => {}
            End::Listen(path) => {
                let _ = std::fs::remove_file(path);
                let listener = UnixListener::bind(path)
                    .with_context(|| format!("{} cannot be listened at", path.display()))?;
                listener.set_nonblocking(true)?;
                side.listener = Some(listener);
            }
            End::Datagram { bind, peer } => {
                let _ = std::fs::remove_file(bind);
                let socket = UnixDatagram::bind(bind)
                    .with_context(|| format!("{} cannot be bound", bind.display()))?;
                socket.set_nonblocking(true)?;
                side.socket = Some(Socket::Datagram(socket, peer.clone()));
            }
        }
        Ok(side)
    }

    /// Accepts or connects. True: somebody has come.
    fn meet(&mut self) -> bool {
        if self.socket.is_some() {
            return false;
        }
        let stream = match (&self.end, &self.listener) {
            (End::Connect(path), _) => UnixStream::connect(path),
            (_, Some(listener)) => listener.accept().map(|(stream, _)| stream),
            _ => return false,
        };
        if let Ok(stream) = stream
            && stream.set_nonblocking(true).is_ok()
        {
            self.socket = Some(Socket::Stream(stream));
        }
        self.socket.is_some()
    }

    fn leave(&mut self) {
        if matches!(self.socket, Some(Socket::Stream(_))) {
            self.socket = None;
        }
    }
}

/// A proxy that runs until it is dropped or stopped.
#[derive(Debug)]
pub struct Proxy {
    stop: UnixStream,
    thread: Option<JoinHandle<Report>>,
}

impl Proxy {
    /// Starts one between a guest's end and a PMM's.
    pub fn start(guest: End, pmm: End, seed: u64) -> Result<Proxy> {
        let (stop, stopped) = UnixStream::pair()?;
        let mut work = Work::new(guest, pmm, seed)?;
        let thread = std::thread::Builder::new().name("proxy".into()).spawn(move || {
            while work.turn(stopped.as_fd()) {}
            for (_, to) in std::mem::take(&mut work.late) {
                work.fates(to).late += 1;
            }
            work.report
        })?;
        Ok(Proxy { stop, thread: Some(thread) })
    }

    /// Ends it, and says what it did.
    pub fn stop(mut self) -> Result<Report> {
        let _ = self.stop.shutdown(std::net::Shutdown::Both);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(report)) => Ok(report),
            _ => bail!("the proxy's thread panicked"),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.stop.shutdown(std::net::Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

const GUEST: usize = To::Guest as usize;
const PMM: usize = To::Pmm as usize;

struct Work {
    sides: [Side; 2],
    /// Of each direction, by whom it rings.
    dice: [Dice; 2],
    /// Rings that are late: when, and to which side.
    late: Vec<(Instant, usize)>,
    report: Report,
}

impl Work {
    fn new(guest: End, pmm: End, seed: u64) -> Result<Work> {
        let sides = [Side::open(guest)?, Side::open(pmm)?];
        let dice = [To::Guest, To::Pmm].map(|to| to.dice(seed));
        Ok(Work { sides, dice, late: Vec::new(), report: Report::default() })
    }

    /// One round; false at the end.
    fn turn(&mut self, stopped: BorrowedFd<'_>) -> bool {
        // A peer is let in only when there is somebody to ring.
        let came = match &self.sides[GUEST].end {
            End::Listen(_) => self.sides[PMM].socket.is_some() && self.sides[GUEST].meet(),
            _ => self.sides[GUEST].meet(),
        };
        let came = came | (self.sides[GUEST].socket.is_some() && self.sides[PMM].meet());
        let complete = self.sides.iter().all(|side| side.socket.is_some());
        self.report.meetings += u64::from(came && complete);

        let next = self.late.iter().map(|(at, _)| at.saturating_duration_since(Instant::now())).min();
        let retry = self.sides.iter().any(|side| side.socket.is_none()).then_some(RETRY);
        // With nothing late and both there, only a ring or the end wakes it; an hour stands for "for ever".
        let limit = [next, retry].into_iter().flatten().min().unwrap_or(Duration::from_secs(3600));
        let mut fds = vec![stopped];
        fds.extend(self.sides.iter().filter_map(|side| side.socket.as_ref().map(Socket::as_fd)));
        if wait(&fds, None, limit).is_err() || wait(&[stopped], None, Duration::ZERO).unwrap_or(true) {
            return false;
        }
        for from in [GUEST, PMM] {
            let heard = self.sides[from].socket.as_mut().map(Socket::hear);
            match heard {
                Some(Some(count)) if count > 0 => self.pass(from, count),
                Some(None) => self.sides.iter_mut().for_each(Side::leave),
                _ => {}
            }
        }
        let now = Instant::now();
        let (due, late) = std::mem::take(&mut self.late).into_iter().partition(|(at, _)| *at <= now);
        self.late = late;
        let due: Vec<(Instant, usize)> = due;
        due.into_iter().for_each(|(_, to)| self.ring(to));
        true
    }

    fn fates(&mut self, to: usize) -> &mut Fates {
        if to == PMM { &mut self.report.to_pmm } else { &mut self.report.to_guest }
    }

    fn pass(&mut self, from: usize, count: u64) {
        let to = 1 - from;
        let fate = Fate::next(&mut self.dice[to]);
        let fates = self.fates(to);
        fates.heard += count;
        fates.together += count - 1;
        fates.count(fate);
        match fate {
            // A merged ring is one with the next: a ring says no more than "look", so that one speaks for both.
            Fate::Merged | Fate::Dropped => {}
            Fate::Passed => self.ring(to),
            Fate::Doubled => {
                self.ring(to);
                self.ring(to);
            }
            Fate::Delayed(late) => self.late.push((Instant::now() + late, to)),
        }
    }

    fn ring(&mut self, to: usize) {
        let rung = self.sides[to].socket.as_mut().is_some_and(Socket::ring);
        let fates = self.fates(to);
        match rung {
            true => fates.rung += 1,
            false => fates.unheard += 1,
        }
    }
}

/// `hvl-e2e proxy`: a proxy as a program.
pub fn run(guest: End, pmm: End, seed: u64) -> Result<()> {
    eprintln!("proxy: seed {seed}; it ends when its input does");
    let proxy = Proxy::start(guest, pmm, seed)?;
    // Whoever started it keeps its input open.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    println!("{}", proxy.stop()?);
    Ok(())
}

/// Paths of a proxy's sockets in a directory: the ends towards a PMM that connects, or that uses datagrams.
pub fn pmm_end(dir: &Path, datagrams: bool) -> (End, String) {
    let (ours, theirs) = (dir.join("proxy"), dir.join("pmm-bell"));
    if datagrams {
        let option = format!("unix-dgram:bind={},peer={}", theirs.display(), ours.display());
        return (End::Datagram { bind: ours, peer: theirs }, option);
    }
    let option = format!("unix-stream:{}", ours.display());
    (End::Listen(ours), option)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("e2e-proxy-{}-{name}", std::process::id()))
    }

    /// Rings until it is heard: some rings are dropped.
    fn through(from: &mut UnixStream, to: &mut UnixStream) {
        to.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        for _ in 0..400 {
            from.write_all(&[1]).unwrap();
            match to.read(&mut [0; 64]) {
                Ok(1..) => return,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => panic!("{other:?}"),
            }
        }
        panic!("400 rings, and none was heard");
    }

    /// Reads to the end.
    fn end(stream: &mut UnixStream) {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        loop {
            match stream.read(&mut [0; 64]) {
                Ok(1..) => {}
                Ok(0) => return,
                // What had been rung and not heard when the proxy hung up.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the proxy did not hang up: {error}"),
            }
        }
    }

    #[test]
    fn either_side_may_die_and_come_again() {
        let (guest, pmm) = (path("guest"), path("pmm"));
        let listener = UnixListener::bind(&guest).unwrap();
        let proxy = Proxy::start(End::Connect(guest.clone()), End::Listen(pmm.clone()), 1).unwrap();
        for round in 0..4 {
            // The proxy listens from its start on.
            let mut pmm = UnixStream::connect(&pmm).unwrap();
            let (mut guest, _) = listener.accept().unwrap();
            through(&mut pmm, &mut guest);
            through(&mut guest, &mut pmm);
            if round % 2 == 0 {
                drop(pmm);
                end(&mut guest);
            } else {
                drop(guest);
                end(&mut pmm);
            }
        }
        let report = proxy.stop().unwrap();
        assert_eq!(report.meetings, 4, "{report}");
        assert!(report.to_guest.heard >= 4 && report.to_pmm.heard >= 4, "{report}");
        for path in [guest, pmm] {
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn one_ring_in_a_hundred_is_dropped() {
        let (a, b) = (path("a"), path("b"));
        let (c, d) = (path("c"), path("d"));
        let guest = End::Datagram { bind: b.clone(), peer: a.clone() };
        let pmm = End::Datagram { bind: c.clone(), peer: d.clone() };
        let mut work = Work::new(guest, pmm, 7).unwrap();
        let sink = UnixDatagram::bind(&d).unwrap();
        sink.set_nonblocking(true).unwrap();
        let mut arrived = 0;
        for _ in 0..10_000 {
            work.pass(GUEST, 2);
            arrived += (0..4).take_while(|_| sink.recv(&mut [0]).is_ok()).count() as u64;
        }
        let fates = work.report.to_pmm;
        assert_eq!((fates.heard, fates.together, fates.judged()), (20_000, 10_000, 10_000));
        assert_eq!(fates.counts(), Fates::decided(7, To::Pmm, 10_000));
        assert_ne!(fates.counts(), Fates::decided(7, To::Guest, 10_000));
        let [merged, dropped, doubled, delayed] = fates.counts();
        assert!((50..200).contains(&dropped) && (100..400).contains(&doubled), "{fates}");
        assert!((100..400).contains(&merged) && (300..700).contains(&delayed), "{fates}");
        assert_eq!(work.late.len() as u64, delayed);
        assert_eq!(arrived, 10_000 - dropped - merged + doubled - delayed, "{fates}");
        assert_eq!(arrived, fates.rung, "{fates}");
        for path in [b, c, d] {
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn ends_are_written_as_they_are_read() {
        assert_eq!("/a".parse(), Ok(End::Connect("/a".into())));
        assert_eq!("/a,listen".parse(), Ok(End::Listen("/a".into())));
        let both = End::Datagram { bind: "/a".into(), peer: "/b".into() };
        assert_eq!("bind=/a,peer=/b".parse(), Ok(both));
        assert!("".parse::<End>().is_err());
    }
}
