//! What the shell does on the network: one step at a time, between rounds of [`Network::poll`].

use core::fmt;

use hvl_frontend::Instant;
use hvl_frontend::device::p9::{File, FileError, Files};
use hvl_shared_abi::wire::p9::open;
use smoltcp::wire::{Ipv4Address, Ipv4Cidr};

use crate::Machine;
use crate::bench::{LIMIT, Trips};
use crate::files;
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
    /// The connection is none.
    Broken,
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetError::NoWay(to) => write!(f, "there is no way to {to}; 'ip' tells the board's address"),
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
    Get {
        request: Text<HEAD>,
        in_body: bool,
        head: Text<HEAD>,
        file: Option<File>,
        got: u64,
        sum: Sum,
        until: Instant,
    },
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
        Task::Ping { to, count } => return Ok(Begun::Job(ping(network, to, count, now, None))),
        Task::Trips { to } => {
            let Some(to) = to.or(network.gateway()) else {
                out.print(format_args!("error: there is no gateway; 'ip' tells the board's address\n"));
                return Ok(Begun::Done(false));
            };
            let trips = Some((Trips::default(), now.plus(LIMIT)));
            return Ok(Begun::Job(ping(network, to, ECHOES, now, trips)));
        }
        Task::Get { host, port, path, into } => {
            let flags = open::WRITE_ONLY | open::TRUNCATE;
            let file = into.map(|into| files.create(into.as_bytes(), flags, 0o644)).transpose()?;
            if let Err(error) = network.connect(host, port) {
                out.print(format_args!("error: {error}\n"));
                let _ = file.map(|file| files.close(file));
                return Ok(Begun::Done(false));
            }
            let mut request = Text::NEW;
            request.print(format_args!(
                "GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
            ));
            return Ok(Begun::Job(NetJob::Get {
                request,
                in_body: false,
                head: Text::NEW,
                file,
                got: 0,
                sum: pattern::sum(),
                until: now.plus(SILENCE),
            }));
        }
    }
    Ok(Begun::Done(true))
}

fn ping<B: Machine>(
    network: &mut Network<'_, B>,
    to: Ipv4Address,
    count: u16,
    now: Instant,
    trips: Option<(Trips, Instant)>,
) -> NetJob {
    // Answers to somebody who has given up.
    while network.take_echo().is_some() {}
    NetJob::Ping { to, count, sent: 0, came: 0, next: now, until: now.plus(PATIENCE), sent_at: now, trips }
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
                    return Ok(NetStep::Done(false));
                }
                return Ok(NetStep::Wait(now.plus(PERIOD)));
            }
            Ok(NetStep::Wait(if sent < count { *next } else { *until }))
        }
        NetJob::Get { request, in_body, head, file, got, sum, until } => {
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
                Err(error) => {
                    out.print(format_args!("error: {error}\n"));
                    return Ok(NetStep::Done(false));
                }
            };
            let stream = network.stream();
            let Some(count) = count else {
                if now >= *until {
                    stream.abort();
                    out.print(format_args!("error: nothing came for {} s\n", SILENCE / 1_000_000));
                    return Ok(NetStep::Done(false));
                }
                return Ok(NetStep::Wait(*until));
            };
            *until = now.plus(SILENCE);
            if count == 0 {
                stream.close();
                let _ = file.take().map(|file| files.close(file));
                let status = head.as_bytes().split(|&byte| byte == b'\r').next().unwrap_or(&[]);
                let well = status.windows(5).any(|word| word == b" 200 ");
                let status = status.get(..80).unwrap_or(status);
                let status = core::str::from_utf8(status).unwrap_or("?");
                let sum = core::mem::replace(sum, pattern::sum()).finalize();
                out.print(format_args!("{status}\ngot {got} bytes, CRC-32 {sum:08x}\n"));
                return Ok(NetStep::Done(well && *in_body));
            }
            let mut bytes = work.get(..count).unwrap_or(&[]);
            while !*in_body {
                let Some((byte, rest)) = bytes.split_first() else { return Ok(NetStep::On) };
                bytes = rest;
                // A head that is too long is cut; its end is what matters.
                if head.len() == HEAD {
                    head.consume(1);
                }
                head.push(&[*byte]);
                *in_body = head.as_bytes().ends_with(b"\r\n\r\n");
            }
            sum.update(bytes);
            if let Some(file) = file {
                files::write_all(files, file, *got, bytes)?;
            }
            *got = got.saturating_add(bytes.len() as u64);
            Ok(NetStep::On)
        }
    }
}

/// Ends what is under way, after an error or Ctrl-C.
pub fn end<'s, B: Machine>(job: NetJob, network: &mut Network<'s, B>, files: &mut Files<'s, B>) {
    if let NetJob::Get { file, .. } = job {
        network.stream().abort();
        let _ = file.map(|file| files.close(file));
    }
}
