//! What the shell measures: files, sockets and the network. A measurement ends with what was done in [`LIMIT`], however slow
//! the far end is.

use core::fmt;

use hvl_frontend::Instant;
use hvl_frontend::device::p9::{File, FileError};
use hvl_frontend::device::vsock::{End, Socket, SocketError, Vsock};
use hvl_shared_abi::wire::p9::open;
use smoltcp::wire::Ipv4Address;

use crate::files::again;
use crate::net::NetError;
use crate::network::Network;
use crate::text::Text;
use crate::{Devices, Machine, pattern};

/// The longest measurement, in microseconds.
pub const LIMIT: u64 = 5_000_000;
/// How long a far end may stay silent, in microseconds.
const SILENCE: u64 = 10_000_000;
/// Most round trips of a measurement.
const TRIPS: u32 = 1000;
/// Bytes of a round trip.
const TRIP: u64 = 64;
/// Bytes of a transfer, if no other number is said.
pub const TRANSFER: u32 = 4 << 20;
/// Bytes of the far end's count.
const ANSWER: usize = 32;
/// The file that is written, read and removed.
const FILE: &[u8] = b"bench.tmp";

/// What to measure, with so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are what the lines above them name
pub enum Task {
    /// A file of the PMM's machine.
    Files { len: u32 },
    /// A stream to a port of the PMM's machine, where somebody gives back what comes.
    Vsock { port: u32, len: u32 },
    /// A stream through the network to somebody who counts what comes. (Not both ways at once: smoltcp drops segments whose
    /// acknowledgement is older than the last, which `passt` sends then, and waits for them to be sent again.)
    Tcp { to: Ipv4Address, port: u16, len: u32 },
}

/// A task under way.
#[allow(missing_docs, clippy::large_enum_variant)] // as above; no heap
pub enum BenchJob {
    /// With a file: what is being done, and how far that is.
    Files { file: Option<File>, doing: Doing, at: u32, len: u32, began: Instant, trips: Trips },
    /// With a stream of sockets.
    Stream(Stream),
    /// With a stream of the network: what was sent, and what the far end says of it.
    Tcp { sent: u32, len: u32, said: Text<ANSWER>, began: Instant, until: Instant },
}

/// What is done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Doing {
    Write,
    Read,
    Ask,
}

/// Bytes to a far end and back: first a few at a time, and then many at once.
pub struct Stream {
    socket: Socket,
    is_open: bool,
    /// Round trips so far, while they are what is measured.
    trips: Option<Trips>,
    /// Bytes since the stream was opened; `total` are to be sent.
    sent: u64,
    got: u64,
    total: u64,
    /// Bytes of the measurement of many.
    len: u32,
    /// Of a round trip, or of all of them at once.
    began: Instant,
    /// The measurement ends here.
    over_at: Instant,
    /// The far end is given up then.
    until: Instant,
}

/// How far a step came.
pub enum BenchStep {
    /// There is more to do.
    On,
    /// Nothing to do before a doorbell rings, or this time.
    Wait(Instant),
    /// Done.
    Done,
}

/// Why a measurement was given up.
#[derive(Debug)]
#[allow(missing_docs)] // as they say
pub enum BenchError {
    File(FileError),
    Socket(SocketError),
    Net(NetError),
    NoClock,
    Ended,
    Silent,
    Others,
    Count,
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BenchError::File(error) => error.fmt(f),
            BenchError::Socket(error) => error.fmt(f),
            BenchError::Net(error) => error.fmt(f),
            BenchError::NoClock => f.write_str("this board has no clock"),
            BenchError::Ended => f.write_str("the far end has ended the stream"),
            BenchError::Silent => write!(f, "nothing moved for {} s", SILENCE / 1_000_000),
            BenchError::Count => f.write_str("the far end counted other bytes than were sent"),
            BenchError::Others => f.write_str("other bytes came back than were sent"),
        }
    }
}

impl From<FileError> for BenchError {
    fn from(error: FileError) -> Self {
        BenchError::File(error)
    }
}

impl From<SocketError> for BenchError {
    fn from(error: SocketError) -> Self {
        BenchError::Socket(error)
    }
}

impl From<NetError> for BenchError {
    fn from(error: NetError) -> Self {
        BenchError::Net(error)
    }
}

/// Round trips, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trips {
    count: u32,
    sum: u64,
    least: u64,
    most: u64,
}

impl Trips {
    /// One more.
    pub fn note(&mut self, micros: u64) {
        self.least = if self.count == 0 { micros } else { self.least.min(micros) };
        self.most = self.most.max(micros);
        self.sum = self.sum.saturating_add(micros);
        self.count = self.count.saturating_add(1);
    }
}

impl fmt::Display for Trips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trips { count, least, most, .. } = self;
        let mean = self.sum.checked_div((*count).into()).unwrap_or(0);
        write!(f, "{count} round trips, {mean} us each ({least} to {most})")
    }
}

/// So many bytes in so many microseconds.
struct Rate(u64, u64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Rate(bytes, micros) = self;
        // Tenths of a MiB in a second.
        let tenths = bytes.saturating_mul(10_000_000).checked_div(micros.max(1)).unwrap_or(0) >> 20;
        write!(f, "{bytes} bytes in {micros} us, {}.{} MiB/s", tenths / 10, tenths % 10)
    }
}

/// Begins a task.
pub fn begin<B: Machine>(
    task: Task,
    devices: &mut Devices<'_, '_, B>,
    now: Instant,
) -> Result<BenchJob, BenchError> {
    if !now.is_known() {
        return Err(BenchError::NoClock);
    }
    let until = now.plus(SILENCE);
    fill(devices.work);
    Ok(match task {
        Task::Files { len } => {
            let file = devices.files.create(FILE, open::READ_WRITE | open::TRUNCATE, 0o644)?;
            let (file, trips) = (Some(file), Trips::default());
            BenchJob::Files { file, doing: Doing::Write, at: 0, len, began: now, trips }
        }
        Task::Vsock { port, len } => BenchJob::Stream(Stream {
            socket: devices.vsock.connect(port)?,
            is_open: false,
            trips: None,
            sent: 0,
            got: 0,
            total: 0,
            len,
            began: now,
            over_at: until,
            until,
        }),
        Task::Tcp { to, port, len } => {
            devices.network.connect(to, port)?;
            BenchJob::Tcp { sent: 0, len, said: Text::NEW, began: Instant::UNKNOWN, until }
        }
    })
}

fn fill(work: &mut [u8]) {
    for (byte, at) in work.iter_mut().zip(0..) {
        *byte = pattern::byte(at);
    }
}

/// Goes on with a job. `out` is empty, and gets less than it holds.
pub fn step<B: Machine, const N: usize>(
    job: &mut BenchJob,
    devices: &mut Devices<'_, '_, B>,
    out: &mut Text<N>,
) -> Result<BenchStep, BenchError> {
    let clock = || devices.console.link().board().now();
    let now = clock();
    let Devices { files, network, vsock, work, .. } = devices;
    let (file, doing, at, len, began, trips) = match job {
        BenchJob::Files { file, doing, at, len, began, trips } => (file, doing, at, len, began, trips),
        BenchJob::Stream(stream) => return stream.step(vsock, work, clock, out),
        BenchJob::Tcp { sent, len, said, began, until } => {
            let moved = upload(network, work, sent, len, said, (began, now))?;
            if moved {
                *until = now.plus(SILENCE);
                // What was sent is to leave, and what came to be taken.
                network.poll(files, now);
            }
            if !said.as_bytes().ends_with(b"\n") {
                return on_or_wait(moved, now, *until);
            }
            let count =
                core::str::from_utf8(said.as_bytes()).ok().and_then(|count| count.trim().parse().ok());
            if count != Some(*sent) {
                return Err(BenchError::Count);
            }
            out.print(format_args!("sent: {}\n", Rate((*sent).into(), now.since(*began))));
            return Ok(BenchStep::Done);
        }
    };
    let Some(open) = file else { return Ok(BenchStep::Done) };
    let on = now < began.plus(LIMIT);
    let most = work.len().min(len.saturating_sub(*at) as usize);
    let part = work.get_mut(..most).unwrap_or(&mut []);
    match doing {
        Doing::Write | Doing::Read if on && at < len => {
            let offset = u64::from(*at);
            let moved = match doing {
                Doing::Write => again(|| files.write(open, offset, part))?,
                _ => again(|| files.read(open, offset, part))?,
            };
            if moved == 0 {
                return Err(BenchError::Others);
            }
            *at = at.saturating_add(moved as u32);
            return Ok(BenchStep::On);
        }
        Doing::Write => {
            out.print(format_args!("written: {}\n", Rate((*at).into(), now.since(*began))));
            *len = *at;
            *doing = Doing::Read;
        }
        Doing::Read => {
            out.print(format_args!("read:    {}\n", Rate((*at).into(), now.since(*began))));
            *doing = Doing::Ask;
        }
        Doing::Ask if on && *at < TRIPS => {
            again(|| files.stat_file(open))?;
            trips.note(clock().since(now));
            *at = at.saturating_add(1);
            return Ok(BenchStep::On);
        }
        Doing::Ask => {
            out.print(format_args!("request: {trips}\n"));
            return Ok(BenchStep::Done);
        }
    }
    (*at, *began) = (0, clock());
    Ok(BenchStep::On)
}

fn on_or_wait(moved: bool, now: Instant, until: Instant) -> Result<BenchStep, BenchError> {
    match moved {
        true => Ok(BenchStep::On),
        false if now < until => Ok(BenchStep::Wait(until)),
        false => Err(BenchError::Silent),
    }
}

/// Sends what there is room for, ends with `len` bytes or with what was sent by the [`LIMIT`], and takes what the far end
/// says of them. Says whether anything moved.
fn upload<B: Machine>(
    network: &mut Network<'_, B>,
    work: &mut [u8],
    sent: &mut u32,
    len: &mut u32,
    said: &mut Text<ANSWER>,
    (began, now): (&mut Instant, Instant),
) -> Result<bool, BenchError> {
    if !began.is_known() {
        if !network.is_connected()? {
            return Ok(false);
        }
        *began = now;
    }
    if now >= began.plus(LIMIT) {
        *len = *sent;
    }
    let stream = network.stream();
    if stream.may_send() {
        let most = work.len().min(len.saturating_sub(*sent) as usize);
        let moved = stream.send_slice(work.get(..most).unwrap_or(&[])).map_err(|_| NetError::Broken)?;
        *sent = sent.saturating_add(moved as u32);
        if sent == len {
            stream.close();
        }
        return Ok(moved != 0 || sent == len);
    }
    let mut bytes = [0; ANSWER];
    match network.receive(&mut bytes)? {
        Some(0) => Err(BenchError::Ended),
        Some(count) => {
            said.push(bytes.get(..count).unwrap_or(&[]));
            Ok(true)
        }
        None => Ok(false),
    }
}

impl Stream {
    fn step<B: Machine, const N: usize>(
        &mut self,
        vsock: &mut Vsock<'_, B>,
        work: &mut [u8],
        clock: impl Fn() -> Instant,
        out: &mut Text<N>,
    ) -> Result<BenchStep, BenchError> {
        let now = clock();
        let (outward, inward) = work.split_at_mut_checked(work.len() >> 1).unwrap_or((&mut [], &mut []));
        let place = |at: u64| at.checked_rem(outward.len() as u64).unwrap_or(0) as usize;
        let mut moved = false;
        if !self.is_open {
            moved = unless_blocked(vsock.is_open(self.socket))?.is_some();
            if moved {
                self.is_open = true;
                self.trips = Some(Trips::default());
                (self.total, self.began, self.over_at) = (TRIP, now, now.plus(LIMIT));
            }
        } else {
            if self.sent < self.total {
                let rest = outward.get(place(self.sent)..).unwrap_or(&[]);
                let most = rest.len().min(usize::try_from(self.total.saturating_sub(self.sent)).unwrap_or(0));
                let sent = vsock.write(self.socket, rest.get(..most).unwrap_or(&[]));
                let sent = unless_blocked(sent)?.unwrap_or(0);
                self.sent = self.sent.saturating_add(sent as u64);
                moved = sent != 0;
            }
            if let Some(count) = unless_blocked(vsock.read(self.socket, inward))? {
                if count == 0 {
                    return Err(BenchError::Ended);
                }
                // At most as many as `outward` holds, so they are its rest and its beginning.
                let rest = outward.get(place(self.got)..).unwrap_or(&[]);
                let (first, second) = inward.split_at(count.min(rest.len()));
                let second = second.get(..count.saturating_sub(first.len())).unwrap_or(&[]);
                self.got = self.got.saturating_add(count as u64);
                if !rest.starts_with(first) || !outward.starts_with(second) || self.got > self.sent {
                    return Err(BenchError::Others);
                }
                moved = true;
            }
            if self.got == self.total {
                // What was sent in this step may have come back in it.
                let now = clock();
                let taken = now.since(self.began);
                let Some(trips) = &mut self.trips else {
                    out.print(format_args!("there and back: {}\n", Rate(self.len.into(), taken)));
                    return Ok(BenchStep::Done);
                };
                trips.note(taken);
                self.began = now;
                let more = if trips.count < TRIPS && now < self.over_at {
                    TRIP
                } else {
                    out.print(format_args!("{TRIP} bytes: {trips}\n"));
                    (self.trips, self.over_at) = (None, now.plus(LIMIT));
                    self.len.into()
                };
                self.total = self.total.saturating_add(more);
            } else if self.trips.is_none() && now >= self.over_at && self.sent < self.total {
                // No more than is on its way.
                let left = u32::try_from(self.total.saturating_sub(self.sent)).unwrap_or(0);
                (self.total, self.len) = (self.sent, self.len.saturating_sub(left));
                moved = true;
            }
        }
        if moved {
            self.until = now.plus(SILENCE);
        }
        on_or_wait(moved, now, self.until)
    }
}

/// `None` for: not now.
fn unless_blocked<T>(result: Result<T, SocketError>) -> Result<Option<T>, BenchError> {
    match result {
        Err(SocketError::WouldBlock | SocketError::LinkDown) => Ok(None),
        other => Ok(other.map(Some)?),
    }
}

/// Ends what is under way, or has ended.
pub fn end<B: Machine>(job: BenchJob, devices: &mut Devices<'_, '_, B>) {
    match job {
        BenchJob::Files { file, .. } => {
            let _ = file.map(|file| devices.files.close(file));
            let _ = devices.files.unlink(FILE);
        }
        BenchJob::Stream(Stream { socket, .. }) => {
            let _ = devices.vsock.shut_down(socket, End::Write);
            devices.vsock.close(socket);
        }
        BenchJob::Tcp { .. } => devices.network.stream().close(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn results_are_sentences() {
        let mut trips = Trips::default();
        assert_eq!(trips.to_string(), "0 round trips, 0 us each (0 to 0)");
        [20, 10, 60].into_iter().for_each(|micros| trips.note(micros));
        assert_eq!(trips.to_string(), "3 round trips, 30 us each (10 to 60)");
        assert_eq!(Rate(4 << 20, 1_600_000).to_string(), "4194304 bytes in 1600000 us, 2.5 MiB/s");
        assert_eq!(Rate(0, 0).to_string(), "0 bytes in 0 us, 0.0 MiB/s");
        assert_eq!(Rate(u32::MAX.into(), 1).to_string(), "4294967295 bytes in 1 us, 4095999999.0 MiB/s");
    }
}
