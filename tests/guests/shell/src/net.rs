//! What the shell does on the network: one step at a time, between rounds of [`Network::poll`].

use core::fmt;

use hvl_frontend::Instant;
use hvl_frontend::device::p9::{FileError, Files};
use smoltcp::wire::{Ipv4Address, Ipv4Cidr};

use crate::Machine;
use crate::bench::{LIMIT, Trips};
use crate::files::{self, Replacement};
use crate::network::{ECHO, Network};
use crate::pattern::{self, Sum};
use crate::text::Text;

/// Between two echo requests, in microseconds.
const PERIOD: u64 = 1_000_000;
/// How long the last answer may take, in microseconds.
const PATIENCE: u64 = 2_000_000;
/// How long a transfer may stay silent, in microseconds.
const SILENCE: u64 = 20_000_000;
/// Bytes of the longest head of an answer.
const HEAD: usize = 1024;
/// Echo requests that are measured.
const ECHOES: u16 = 1000;
/// The port of the web.
pub const WEB: u16 = 80;

/// What to do on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are what the lines above them name
pub enum Task<'l> {
    /// Prints how the board stands in the network.
    Show,
    /// Asks for an address.
    Dhcp,
    /// Takes an address.
    Static { address: Ipv4Cidr, gateway: Option<Ipv4Address> },
    /// Sends so many echo requests, and prints the answers.
    Ping { to: Ipv4Address, count: u16 },
    /// Sends many, to the gateway if nobody is named, and prints how long they took.
    Trips { to: Option<Ipv4Address> },
    /// Fetches a page, into a file if one is named.
    Get { host: Ipv4Address, port: u16, path: &'l str, into: Option<&'l str> },
    /// Serves a directory.
    Serve { port: u16, directory: &'l str },
    /// Serves nothing any more.
    ServeNothing,
}

/// Why something on the network failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetError {
    /// The board has no address, or none from which that one can be reached.
    NoWay(Ipv4Address),
    /// It is the board's own address, at which nobody else answers.
    Own(Ipv4Address),
    /// The connection is none.
    Broken,
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetError::NoWay(to) => write!(f, "there is no way to {to}; 'ip' tells the board's address"),
            NetError::Own(to) => write!(f, "{to} is this board's own address: try it from another machine"),
            NetError::Broken => f.write_str("the connection was refused, or broke"),
        }
    }
}

/// A task under way.
#[allow(missing_docs, clippy::large_enum_variant)] // as above; no heap
pub enum NetJob {
    /// Sending requests and waiting for answers.
    Ping {
        to: Ipv4Address,
        count: u16,
        sent: u16,
        came: u16,
        next: Instant,
        until: Instant,
        sent_at: Instant,
        /// What is printed instead of the answers, and when it is.
        trips: Option<(Trips, Instant)>,
    },
    /// Sending a request, then taking what comes.
    Get { request: Text<HEAD>, head: Head, file: Option<Replacement>, got: u64, sum: Sum, until: Instant },
}

/// How a task has begun.
#[allow(clippy::large_enum_variant)] // no heap
pub enum Begun {
    /// It goes on.
    Job(NetJob),
    /// It is done; whether it succeeded.
    Done(bool),
}

/// How far a step came.
pub enum NetStep {
    /// There is more to do.
    On,
    /// Nothing to do before a frame comes, or this time.
    Wait(Instant),
    /// Done; whether it succeeded.
    Done(bool),
}

/// Begins a task; what is done at once is.
pub fn begin<'s, B: Machine, const N: usize>(
    task: Task<'_>,
    network: &mut Network<'s, B>,
    files: &mut Files<'s, B>,
    now: Instant,
    out: &mut Text<N>,
) -> Result<Begun, FileError> {
    match task {
        Task::Show => {
            let _ = network.report(out);
        }
        Task::Dhcp => network.ask(),
        Task::Static { address, gateway } => network.set(address, gateway),
        Task::Serve { port, directory } => {
            let Network { server, sockets, .. } = network;
            server.stop(sockets, files);
            server.start(port, directory);
            // At once: whoever sees the prompt may call, and one who is refused may not call again.
            server.step(sockets, files);
        }
        Task::ServeNothing => {
            let Network { server, sockets, .. } = network;
            server.stop(sockets, files);
        }
        Task::Ping { to, count } => return Ok(ping(network, to, count, now, None, out)),
        Task::Trips { to } => {
            let Some(to) = to.or(network.gateway()) else {
                out.print(format_args!("error: there is no gateway; 'ip' tells the board's address\n"));
                return Ok(Begun::Done(false));
            };
            let trips = Some((Trips::default(), now.plus(LIMIT)));
            return Ok(ping(network, to, ECHOES, now, trips, out));
        }
        Task::Get { host, port, path, into } => {
            let file = into.map(|into| Replacement::create(files, into)).transpose()?;
            if let Err(error) = network.connect(host, port) {
                out.print(format_args!("error: {error}\n"));
                if let Some(file) = file {
                    file.abandon(files);
                }
                return Ok(Begun::Done(false));
            }
            let mut request = Text::NEW;
            request.print(format_args!(
                "GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
            ));
            return Ok(Begun::Job(NetJob::Get {
                request,
                head: Head::NEW,
                file,
                got: 0,
                sum: pattern::sum(),
                until: now.plus(SILENCE),
            }));
        }
    }
    Ok(Begun::Done(true))
}

fn ping<B: Machine, const N: usize>(
    network: &mut Network<'_, B>,
    to: Ipv4Address,
    count: u16,
    now: Instant,
    trips: Option<(Trips, Instant)>,
    out: &mut Text<N>,
) -> Begun {
    if let Err(error) = network.way(to) {
        out.print(format_args!("error: {error}\n"));
        return Begun::Done(false);
    }
    network.forget_echoes(now);
    Begun::Job(NetJob::Ping {
        to,
        count,
        sent: 0,
        came: 0,
        next: now,
        until: now.plus(PATIENCE),
        sent_at: now,
        trips,
    })
}

/// The head of an answer, as it comes in: what is kept of it, and where it ends, however long it is.
pub struct Head {
    kept: Text<HEAD>,
    /// The last four bytes.
    last: u32,
}

impl Head {
    const NEW: Head = Head { kept: Text::NEW, last: 0 };
    /// What ends a head.
    const END: u32 = u32::from_be_bytes(*b"\r\n\r\n");

    /// Takes the head's part of some bytes, and returns the body's.
    fn take<'b>(&mut self, mut bytes: &'b [u8]) -> &'b [u8] {
        while !self.is_whole() {
            let Some((byte, rest)) = bytes.split_first() else { break };
            bytes = rest;
            self.kept.push(&[*byte]);
            self.last = self.last << 8 | u32::from(*byte);
        }
        bytes
    }
    fn is_whole(&self) -> bool {
        self.last == Head::END
    }
    fn lines(&self) -> impl Iterator<Item = &str> {
        self.kept.as_bytes().split(|&byte| byte == b'\n').map(|line| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            core::str::from_utf8(line.get(..80).unwrap_or(line)).unwrap_or("?")
        })
    }
    fn status(&self) -> &str {
        self.lines().next().unwrap_or("")
    }
    /// Whether it announces what was asked for.
    fn is_good(&self) -> bool {
        self.is_whole() && self.status().split(' ').nth(1) == Some("200")
    }
    /// How long the body will be, where the other side said it.
    fn length(&self) -> Option<u64> {
        self.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            if name.eq_ignore_ascii_case("content-length") { value.trim().parse().ok() } else { None }
        })
    }
}

/// Goes on with a job. `out` is empty, and gets less than it holds.
pub fn step<'s, B: Machine, const N: usize>(
    job: &mut NetJob,
    network: &mut Network<'s, B>,
    files: &mut Files<'s, B>,
    work: &mut [u8],
    now: Instant,
    out: &mut Text<N>,
) -> Result<NetStep, FileError> {
    match job {
        NetJob::Ping { to, count, sent, came, next, until, sent_at, trips } => {
            if let Some((from, number)) = network.take_echo() {
                // An answer to somebody who has given up, which was on its way.
                if from != *to || number >= *sent {
                    return Ok(NetStep::On);
                }
                *came = came.saturating_add(1);
                let micros = now.since(*sent_at);
                let is_last = number.wrapping_add(1) == *sent;
                match trips {
                    // The first also asks who has the address.
                    Some((trips, _)) if is_last && number != 0 => trips.note(micros),
                    Some(_) => {}
                    None => {
                        let late = if is_last { micros } else { 0 };
                        out.print(format_args!("answer {number} from {from}, {late} us\n"));
                    }
                }
                return Ok(NetStep::On);
            }
            if trips.is_some_and(|(_, end)| now >= end) {
                *count = *sent;
            }
            if sent == count && (came >= sent || now >= *until) {
                out.print(format_args!("ping: {sent} sent, {came} answered\n"));
                if let Some((trips, _)) = trips {
                    out.print(format_args!("{} bytes: {trips}\n", ECHO.len()));
                }
                match (*came, sent.saturating_sub(*came)) {
                (_, 0) => {}
                (0, _) => out.print(format_args!(
                    "error: nobody answered; where the network is passt's, 'pmm status' says whether pings are allowed there\n"
                )),
                (_, missing) => out.print(format_args!("error: {missing} were not answered\n")),
            }
                return Ok(NetStep::Done(came >= sent));
            }
            // The next goes as soon as the last has come back, and at the latest after its time.
            if sent < count && (now >= *next || *came == *sent) {
                if network.send_echo(*to, *sent) {
                    *sent = sent.saturating_add(1);
                    (*next, *until, *sent_at) = (now.plus(PERIOD), now.plus(PATIENCE), now);
                    return Ok(NetStep::On);
                }
                if now >= *until {
                    // None has left for a while; what there is to be told is told.
                    *count = *sent;
                    return Ok(NetStep::On);
                }
                return Ok(NetStep::Wait(now.plus(PERIOD).min(*until)));
            }
            Ok(NetStep::Wait(if sent < count { *next } else { *until }))
        }
        NetJob::Get { request, head, file, got, sum, until } => {
            let stream = network.stream();
            if !request.is_empty() && stream.may_send() {
                let sent = stream.send_slice(request.as_bytes()).unwrap_or(0);
                request.consume(sent);
                if sent != 0 {
                    return Ok(NetStep::On);
                }
            }
            let count = match network.receive(work) {
                Ok(count) => count,
                Err(error) => return Ok(failed(error, network, file, files, out)),
            };
            let Some(count) = count else {
                if now >= *until {
                    let why = format_args!("nothing came for {} s", SILENCE / 1_000_000);
                    return Ok(failed(why, network, file, files, out));
                }
                return Ok(NetStep::Wait(*until));
            };
            *until = now.plus(SILENCE);
            if count == 0 {
                network.stream().close();
                let sum = core::mem::replace(sum, pattern::sum()).finalize();
                let status = head.status();
                out.print(format_args!("{status}\ngot {got} bytes, CRC-32 {sum:08x}\n"));
                if !head.is_good() {
                    return Ok(failed("the answer is not what was asked for", network, file, files, out));
                }
                if let Some(length) = head.length().filter(|length| length != got) {
                    let why = format_args!("the connection ended after {got} of {length} bytes");
                    return Ok(failed(why, network, file, files, out));
                }
                file.take().map_or(Ok(()), |file| file.commit(files))?;
                return Ok(NetStep::Done(true));
            }
            let bytes = head.take(work.get(..count).unwrap_or(&[]));
            sum.update(bytes);
            if let Some(file) = file.as_mut().filter(|_| head.is_good()) {
                files::write_all(files, &mut file.file, *got, bytes)?;
            }
            *got = got.saturating_add(bytes.len() as u64);
            Ok(NetStep::On)
        }
    }
}

/// Says why a transfer failed; what was in the file before is still there.
fn failed<'s, B: Machine, const N: usize>(
    why: impl fmt::Display,
    network: &mut Network<'s, B>,
    file: &mut Option<Replacement>,
    files: &mut Files<'s, B>,
    out: &mut Text<N>,
) -> NetStep {
    network.stream().abort();
    if let Some(file) = file.take() {
        file.abandon(files);
    }
    out.print(format_args!("error: {why}\n"));
    NetStep::Done(false)
}

/// Ends what is under way, after an error or Ctrl-C.
pub fn end<'s, B: Machine>(job: NetJob, network: &mut Network<'s, B>, files: &mut Files<'s, B>) {
    if let NetJob::Get { file, .. } = job {
        network.stream().abort();
        if let Some(file) = file {
            file.abandon(files);
        }
    }
}
