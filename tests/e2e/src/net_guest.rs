//! A guest with a network card and smoltcp on it, as a process: what the tests of the network run at the other end of a
//! link. It answers pings and HTTP, takes streams of bytes and says their checksum, and does the same to another one.
//!
//! What it has done stands on its standard output, a line each, and a test waits for lines.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use hvl_frontend::adapter::smoltcp::Phy;
use hvl_frontend::device::net::{MAX_FRAME, Net, NetStorage, Options};
use hvl_frontend::{Clock, Instant, Link, LinkStorage};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, RxToken};
use smoltcp::socket::{icmp, tcp};
use smoltcp::wire::{EthernetAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr};

use crate::CRC;
use crate::board::{self, Process};
use crate::guest::Place;

/// Where HTTP is answered.
const HTTP: u16 = 80;
/// Where bytes are taken.
const SINK: u16 = 7000;
/// Bytes of each direction of a connection.
const WINDOW: usize = 256 << 10;
/// Of the echo requests.
const IDENT: u16 = 0x4856;
/// Bytes of an echo request, and of its answer.
const ECHOED: usize = 1000;

/// What the guest is told.
#[derive(Args, Clone, Debug)]
pub struct NetGuest {
    /// The file of its region.
    #[arg(long, value_name = "PATH")]
    memory: PathBuf,
    /// What both sides call the region's address.
    #[arg(long, value_name = "N")]
    base: u64,
    /// Bytes of it.
    #[arg(long, value_name = "N")]
    size: u64,
    /// The socket at which it listens for its doorbell.
    #[arg(long, value_name = "PATH")]
    doorbell: PathBuf,
    /// Its address in a network of 24 bits.
    #[arg(long, value_name = "ADDRESS")]
    address: Ipv4Addr,
    /// Leave checksums to the other side.
    #[arg(long)]
    checksums: bool,
    /// Take segments of up to 64 KiB.
    #[arg(long)]
    segments: bool,
    /// Ping this one, one echo request at a time, as often as --count says.
    #[arg(long, value_name = "ADDRESS")]
    ping: Option<Ipv4Addr>,
    /// How often.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    count: u16,
    /// Then send this many bytes to its sink.
    #[arg(long, value_name = "N", default_value_t = 0)]
    send: u64,
}

/// The byte at a place of what is sent, and of what HTTP is answered with.
pub fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn fill(into: &mut [u8], at: u64) {
    for (byte, at) in into.iter_mut().zip(at..) {
        *byte = pattern(at);
    }
}

/// The checksum of so many bytes of the pattern.
pub fn checksum(len: u64) -> u32 {
    let mut digest = CRC.digest();
    let mut bytes = [0; 4096];
    let mut at = 0;
    while at < len {
        let part = &mut bytes[..(len - at).min(4096) as usize];
        fill(part, at);
        digest.update(part);
        at += part.len() as u64;
    }
    digest.finalize()
}

/// Notes the longest frame that was received.
struct Meter<'m, D> {
    device: D,
    longest: &'m mut usize,
}

struct Measured<'m, T>(T, &'m mut usize);

impl<T: RxToken> RxToken for Measured<'_, T> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let longest = self.1;
        self.0.consume(|frame| {
            *longest = (*longest).max(frame.len());
            f(frame)
        })
    }
}

impl<D: Device> Device for Meter<'_, D> {
    type RxToken<'a>
        = Measured<'a, D::RxToken<'a>>
    where
        Self: 'a;
    type TxToken<'a>
        = D::TxToken<'a>
    where
        Self: 'a;
    fn receive(&mut self, now: smoltcp::time::Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let (received, room) = self.device.receive(now)?;
        Some((Measured(received, self.longest), room))
    }
    fn transmit(&mut self, now: smoltcp::time::Instant) -> Option<Self::TxToken<'_>> {
        self.device.transmit(now)
    }
    fn capabilities(&self) -> DeviceCapabilities {
        self.device.capabilities()
    }
}

fn say(line: &str) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}

/// Runs until it is killed.
pub fn run(guest: &NetGuest) -> Result<()> {
    let place = Place { file: guest.memory.clone(), offset: 0, base: guest.base, size: guest.size };
    let process = board::open(&place, &guest.doorbell)?;
    let storage = LinkStorage::NEW;
    let mut card = Box::new(NetStorage::<64, 64>::NEW);
    let link = Link::attach(&storage, process.clone())?;
    let options = Options { ordinal: 0, checksums: guest.checksums, segments: guest.segments };
    let mut net = Net::open(&link, &mut card, options)?;
    say("up");
    let mac = loop {
        if let Ok(Some(mac)) = net.mac() {
            break mac;
        }
        sleep(&process, &mut net, None);
    };
    let (mut received, mut sent) = (vec![0; MAX_FRAME], vec![0; MAX_FRAME]);
    let mut longest = 0;
    let phy = Phy::new(&mut net, &mut received, &mut sent);
    let mut phy = Meter { device: phy, longest: &mut longest };
    let start = now(&process);
    let mut interface = Interface::new(Config::new(EthernetAddress(mac).into()), &mut phy, start);
    let mut sockets = SocketSet::new(Vec::new());
    let mut work = Work::new(guest, &mut sockets);
    interface.update_ip_addrs(|all| _ = all.push(IpCidr::new(guest.address.into(), 24)));
    say(&format!("address {}", guest.address));
    loop {
        let at = now(&process);
        interface.poll(at, &mut phy, &mut sockets);
        let busy = work.turn(&mut interface, &mut sockets, *phy.longest, process.now())?;
        let delay = interface.poll_delay(now(&process), &sockets).map(|delay| delay.total_micros());
        if busy || delay == Some(0) {
            continue;
        }
        sleep(&process, phy.device.net(), delay);
    }
}

fn now(process: &Process) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(process.now().micros() as i64)
}

fn sleep(process: &Process, net: &mut Net<'_, Process>, delay: Option<u64>) {
    let deadline = net.next_deadline();
    if deadline != Some(Instant::UNKNOWN) {
        let delay = delay.map(|micros| process.now().plus(micros));
        board::wait(process, [deadline, delay].into_iter().flatten().min());
    }
}

/// What is under way.
struct Work {
    plan: NetGuest,
    icmp: SocketHandle,
    /// Several, because a connection that nobody ends any more keeps its own from listening.
    http: [Answering; 4],
    sink: SocketHandle,
    source: SocketHandle,
    /// Echo requests sent and answered.
    pings: (u16, u16),
    lost: u16,
    pinged_at: u64,
    taken: (u64, crc::Digest<'static, u32>),
    sending: Option<u64>,
    answered: Vec<u8>,
}

fn stream() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; WINDOW]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket
}

impl Work {
    fn new(plan: &NetGuest, sockets: &mut SocketSet<'static>) -> Work {
        let packets = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 16], vec![0; 4096]);
        static DIGEST: crc::Crc<u32> = CRC;
        Work {
            plan: plan.clone(),
            icmp: sockets.add(icmp::Socket::new(packets(), packets())),
            http: std::array::from_fn(|_| Answering::new(sockets.add(stream()))),
            sink: sockets.add(stream()),
            source: sockets.add(stream()),
            pings: (0, 0),
            lost: 0,
            pinged_at: 0,
            taken: (0, DIGEST.digest()),
            sending: None,
            answered: Vec::new(),
        }
    }

    /// Does what can be done. Whether there may be more at once.
    fn turn(
        &mut self,
        interface: &mut Interface,
        sockets: &mut SocketSet<'static>,
        longest: usize,
        now: Instant,
    ) -> Result<bool> {
        let mut busy = false;
        for http in &mut self.http {
            busy |= http.turn(sockets.get_mut::<tcp::Socket>(http.socket), longest)?;
        }
        busy |= self.take(sockets.get_mut::<tcp::Socket>(self.sink))?;
        if let Some(peer) = self.plan.ping {
            if self.pings.1 + self.lost < self.plan.count {
                busy |= self.ping(sockets.get_mut::<icmp::Socket>(self.icmp), peer, now)?;
            } else if self.plan.send != 0 {
                busy |= self.send(sockets.get_mut::<tcp::Socket>(self.source), interface, peer)?;
            }
        }
        Ok(busy)
    }

    /// Takes bytes until the other side has no more, and answers with their number and checksum.
    fn take(&mut self, socket: &mut tcp::Socket<'_>) -> Result<bool> {
        if !socket.is_open() {
            static DIGEST: crc::Crc<u32> = CRC;
            self.taken = (0, DIGEST.digest());
            socket.listen(SINK)?;
        }
        let mut got = 0;
        if socket.can_recv() {
            let (count, digest) = &mut self.taken;
            got = socket.recv(|bytes| {
                digest.update(bytes);
                (bytes.len(), bytes.len())
            })?;
            *count += got as u64;
        } else if socket.state() == tcp::State::CloseWait && socket.may_send() {
            let (count, digest) = &self.taken;
            let line = format!("{count} {:08x}\n", digest.clone().finalize());
            socket.send_slice(line.as_bytes())?;
            socket.close();
            say(&format!("took {}", line.trim()));
        }
        Ok(got != 0)
    }

    /// One echo request after the other; one without an answer in two seconds is lost.
    fn ping(&mut self, socket: &mut icmp::Socket<'_>, peer: Ipv4Addr, now: Instant) -> Result<bool> {
        if !socket.is_open() {
            socket.bind(icmp::Endpoint::Ident(IDENT))?;
        }
        let mut answered = false;
        while socket.can_recv() {
            let (bytes, _) = socket.recv()?;
            let packet = Icmpv4Packet::new_checked(bytes).context("a short answer")?;
            let parsed = Icmpv4Repr::parse(&packet, &smoltcp::phy::ChecksumCapabilities::default());
            if let Ok(Icmpv4Repr::EchoReply { ident: IDENT, seq_no, data }) = parsed
                && seq_no == self.pings.0
                && data.len() == ECHOED
                && data.iter().zip(0u64..).all(|(byte, at)| *byte == pattern(at + u64::from(seq_no)))
            {
                self.pings.1 += 1;
                answered = true;
            }
        }
        let late = self.pings.0 != 0 && !answered && now.micros() - self.pinged_at > 2_000_000;
        self.lost += u16::from(late && self.pings.0 > self.pings.1 + self.lost);
        if self.pings.0 == self.pings.1 + self.lost {
            if self.pings.0 == self.plan.count {
                say(&format!("pinged {} of {}", self.pings.1, self.pings.0));
                return Ok(true);
            }
            self.pings.0 += 1;
            self.pinged_at = now.micros();
            let mut data = [0; ECHOED];
            fill(&mut data, self.pings.0.into());
            let request = Icmpv4Repr::EchoRequest { ident: IDENT, seq_no: self.pings.0, data: &data };
            let room = socket.send(request.buffer_len(), IpAddress::Ipv4(peer))?;
            request
                .emit(&mut Icmpv4Packet::new_unchecked(room), &smoltcp::phy::ChecksumCapabilities::default());
            return Ok(true);
        }
        Ok(false)
    }

    /// Sends the pattern, and says what the other side has counted.
    fn send(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        interface: &mut Interface,
        peer: Ipv4Addr,
    ) -> Result<bool> {
        let Some(sent) = &mut self.sending else {
            socket.connect(interface.context(), (IpAddress::Ipv4(peer), SINK), 49_152)?;
            self.sending = Some(0);
            return Ok(true);
        };
        let mut moved = 0;
        let size = self.plan.send;
        if *sent < size && socket.can_send() {
            moved = socket.send(|room| {
                let len = room.len().min((size - *sent) as usize);
                fill(&mut room[..len], *sent);
                (len, len)
            })?;
            *sent += moved as u64;
            if *sent == size {
                socket.close();
            }
        }
        if socket.can_recv() {
            let mut bytes = [0; 64];
            let got = socket.recv_slice(&mut bytes)?;
            self.answered.extend(&bytes[..got]);
            if self.answered.ends_with(b"\n") {
                let text = String::from_utf8_lossy(&self.answered).trim().to_string();
                say(&format!("sent {text}"));
                self.plan.send = 0;
            }
        }
        Ok(moved != 0)
    }
}

/// A socket that answers HTTP, one connection after the other.
struct Answering {
    socket: SocketHandle,
    /// Bytes of an answer, and how many are sent.
    answer: Option<(u64, u64)>,
    asked: Vec<u8>,
}

impl Answering {
    fn new(socket: SocketHandle) -> Answering {
        Answering { socket, answer: None, asked: Vec::new() }
    }

    /// HTTP: the answer to `GET /N` is N bytes.
    fn turn(&mut self, socket: &mut tcp::Socket<'_>, longest: usize) -> Result<bool> {
        if !socket.is_open() {
            (self.answer, self.asked) = (None, Vec::new());
            socket.listen(HTTP)?;
        }
        if socket.can_recv() {
            let mut bytes = [0; 1024];
            let got = socket.recv_slice(&mut bytes)?;
            self.asked.extend(&bytes[..got]);
            ensure!(self.asked.len() <= 8192, "a request without an end");
        }
        if self.answer.is_none() && self.asked.ends_with(b"\r\n\r\n") && socket.can_send() {
            let text = String::from_utf8_lossy(&self.asked);
            let size = text.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()?.parse().ok());
            let size: u64 = size.unwrap_or(0);
            let head =
                format!("HTTP/1.0 200 OK\r\nContent-Length: {size}\r\nX-Longest-Frame: {longest}\r\n\r\n");
            socket.send_slice(head.as_bytes())?;
            self.answer = Some((size, 0));
        }
        let Some((size, sent)) = &mut self.answer else { return Ok(false) };
        let mut moved = 0;
        if socket.can_send() && sent < size {
            moved = socket.send(|room| {
                let len = room.len().min((*size - *sent) as usize);
                fill(&mut room[..len], *sent);
                (len, len)
            })?;
            *sent += moved as u64;
        }
        if sent == size {
            socket.close();
        }
        Ok(moved != 0)
    }
}
