//! The network's cases: frames to and from a TAP in a network namespace of this program's own, in which there is nothing
//! else. The far end is the kernel, and a UDP socket in it.

use crate::cases::{Case, Measure, beside};
use crate::links::{Place, Wire, serve};
use crate::machine::progress;
use crate::traffic::leak;
use anyhow::{Context, Result, anyhow, ensure};
use hvl_frontend::device::NotNow;
use hvl_frontend::device::net::{Net, NetStorage, Offload, Options, SendError};
use hvl_frontend::{Link, LinkStorage};
use hvl_pmm::host::{EndError, net::NetEnd};
use hvl_pmm::options::{DeviceDescription, Mac, NetworkDescription, NetworkEnd};
use hvl_shared_abi::DeviceSpec;
use std::cell::RefCell;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Instant;

/// The names of these cases.
pub const NAMES: [&str; 3] = ["net-send", "net-echo-1", "net-echo-32"];

/// Set where the program is in its namespace already.
const INSIDE: &str = "HVL_BENCH_INSIDE";
/// Bytes of a frame, and what of it is a datagram's payload.
const FRAME: usize = 1514;
const PAYLOAD: usize = FRAME - 14 - 20 - 8;
/// The guest's interface and address, and those of the bare loop.
const TAPS: [(&str, u8, Mac); 2] =
    [("hvl0", 77, Mac([2, 0, 0, 0, 0, 1])), ("bare0", 78, Mac([2, 0, 0, 0, 0, 2]))];
/// Frames that are only sent; those in flight at the end, 64 at the most, do not count.
const SENDS: usize = 4_096;
/// Frames that go there and back.
const ECHOES: usize = 512;

/// Sees to it that this program runs in a network namespace of its own: starts it again in one, or says why not.
pub fn enter() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let root = rustix::process::geteuid().is_root();
    let flags: &[&str] = if root { &["--net"] } else { &["--user", "--map-root-user", "--net"] };
    let inside = |command: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(flags).args(["sh", "-c", command]).stdout(Stdio::null()).stderr(Stdio::null());
        Ok::<bool, anyhow::Error>(unshare.status().context("there is no 'unshare' on PATH")?.success())
    };
    ensure!(inside("true")?, "a network namespace cannot be made (rights?)");
    ensure!(inside("ip link set lo up")?, "there is no 'ip' on PATH");
    ensure!(
        inside("ip tuntap add dev hvl0 mode tap")?,
        "a TAP cannot be made in a network namespace (/dev/net/tun)"
    );
    let program = std::env::current_exe()?;
    let mut again = Command::new("unshare");
    again.args(flags).arg(program).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    let why = again.exec();
    Err(why).context("'unshare' cannot be started")
}

fn ip(words: &str) -> Result<()> {
    let status = Command::new("ip").args(words.split(' ')).status().context("ip")?;
    ensure!(status.success(), "'ip {words}' failed");
    Ok(())
}

/// One end of a cable at which frames are read and written.
trait Cable {
    /// Writes a frame, whatever has to be waited for.
    fn send(&mut self, frame: &[u8]);
    /// Reads one, whatever has to be waited for. Its length.
    fn receive(&mut self, into: &mut [u8]) -> usize;
}

/// The guest's card.
struct Card {
    wire: Wire,
    net: Net<'static, Wire>,
}

impl Cable for Card {
    fn send(&mut self, frame: &[u8]) {
        loop {
            match self.net.transmit(frame, Offload::default()) {
                Ok(()) => return,
                Err(SendError::WouldBlock) => self.wire.rest(self.net.next_deadline()),
                Err(error) => panic!("a frame of {} bytes: {error}", frame.len()),
            }
        }
    }
    fn receive(&mut self, into: &mut [u8]) -> usize {
        loop {
            match self.net.receive(into) {
                Ok(frame) => return frame.len,
                Err(NotNow::WouldBlock) => self.wire.rest(self.net.next_deadline()),
                Err(NotNow::LinkDown) => panic!("the link of the network is up"),
            }
        }
    }
}

/// The PMM's own TAP, read and written with nothing before it. It spins: no wake-up is a part of this limit.
impl Cable for Box<dyn NetEnd> {
    fn send(&mut self, frame: &[u8]) {
        while hvl_pmm::host::FrameEnd::send(self, &Offload::default(), frame).is_err() {
            std::thread::yield_now();
        }
    }
    fn receive(&mut self, into: &mut [u8]) -> usize {
        loop {
            match hvl_pmm::host::FrameEnd::receive(self, into) {
                Ok((_, len)) => return len,
                Err(EndError::WouldBlock) => std::thread::yield_now(),
                Err(EndError::Closed) => panic!("the bare TAP is there"),
            }
        }
    }
}

/// The cases, in the namespace that [`enter`] has made.
pub fn cases(place: &Place, core: usize) -> Result<Vec<Case>> {
    ip("link set lo up")?;
    let mut sockets = Vec::new();
    for (name, net, Mac([a, b, c, d, e, f])) in TAPS {
        let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        ip(&format!("tuntap add dev {name} mode tap"))?;
        ip(&format!("address add 10.{net}.0.1/24 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        ip(&format!("neigh add 10.{net}.0.2 lladdr {mac} nud permanent dev {name}"))?;
        let socket = UdpSocket::bind((format!("10.{net}.0.1"), 9000))?;
        socket.connect((format!("10.{net}.0.2"), 9000))?;
        sockets.push(socket);
    }
    let sockets: Rc<[UdpSocket]> = sockets.into();
    let [queue, ..] = DeviceSpec::NET.queues;
    let [description, bare] = TAPS.map(|(name, _, mac)| {
        let end = NetworkEnd::Tap { name: Some(name.into()) };
        NetworkDescription {
            end,
            mac,
            mtu: None,
            pcap: None,
            pcap_max: None,
            queue,
            pool: DeviceSpec::NET.pool,
        }
    });
    let bare = hvl_pmm::host::net::open(&bare).map_err(|failure| anyhow!("{failure}"))?;
    let wire = serve(place, "network", 1 << 20, DeviceDescription::Network(description))?;
    let link = Link::attach(leak(LinkStorage::NEW), wire.clone()).map_err(|error| anyhow!("{error:?}"))?;
    let storage = leak(NetStorage::<64, 64>::NEW);
    let mut net = Net::open(&link, storage, Options::default()).map_err(|error| anyhow!("{error:?}"))?;
    wire.until("the card", || net.is_up())?;
    let card: Rc<RefCell<dyn Cable>> = Rc::new(RefCell::new(Card { wire, net }));
    let bare: Rc<RefCell<dyn Cable>> = Rc::new(RefCell::new(bare));

    let contenders = |act: fn(&mut dyn Cable, &UdpSocket, usize) -> f64| {
        let measure = |which: usize, cable: &Rc<RefCell<dyn Cable>>| -> Measure {
            let (cable, sockets) = (cable.clone(), sockets.clone());
            Box::new(move |_| act(&mut *cable.borrow_mut(), &sockets[which], core))
        };
        vec![("the card", measure(0, &card)), ("the bare TAP", measure(1, &bare))]
    };
    Ok(vec![
        Case {
            name: "net-send",
            title: "frames of 1,514 B to a TAP",
            bytes: Some(FRAME),
            contenders: contenders(|cable, _, _| send(cable)),
        },
        Case {
            name: "net-echo-1",
            title: "a frame of 1,514 B from a TAP and back, one at a time",
            bytes: None,
            contenders: contenders(echo::<1>),
        },
        Case {
            name: "net-echo-32",
            title: "frames of 1,514 B from a TAP and back, 32 at a time",
            bytes: Some(FRAME),
            contenders: contenders(echo::<32>),
        },
    ])
}

/// Frames that the kernel drops, since their protocol is nobody's.
fn send(cable: &mut dyn Cable) -> f64 {
    let mut frame = [0x5a; FRAME];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&0x88b5u16.to_be_bytes());
    progress();
    let start = Instant::now();
    (0..SENDS).for_each(|_| cable.send(&frame));
    let elapsed = start.elapsed();
    progress();
    elapsed.as_nanos() as f64 / SENDS as f64
}

/// Sends back what a UDP socket sends, `BURST` datagrams before the first of them is back.
fn echo<const BURST: usize>(cable: &mut dyn Cable, socket: &UdpSocket, core: usize) -> f64 {
    let client = |_: &_| {
        let mut datagram = [0x5a; PAYLOAD];
        for _ in 0..2 * ECHOES / BURST {
            for _ in 0..BURST {
                socket.send(&datagram).expect("the TAP is up");
            }
            for _ in 0..BURST {
                let len = socket.recv(&mut datagram).expect("the TAP is up");
                assert_eq!(len, PAYLOAD, "a datagram comes back whole");
            }
        }
    };
    beside(core, client, || {
        // Half of them warm up.
        echo_frames(cable, ECHOES);
        progress();
        let start = Instant::now();
        echo_frames(cable, ECHOES);
        progress();
        start.elapsed().as_nanos() as f64 / ECHOES as f64
    })
}

fn echo_frames(cable: &mut dyn Cable, count: usize) {
    let mut frame = [0; 2048];
    let mut done = 0;
    while done < count {
        let len = cable.receive(&mut frame);
        // The kernel has a few words of its own for whoever comes up.
        if len == FRAME && frame[12..14] == [8, 0] {
            answer(&mut frame);
            cable.send(&frame[..FRAME]);
            done += 1;
        }
    }
}

/// Swaps sender and receiver of Ethernet, IPv4 and UDP, whose checksums stay what they are.
fn answer(frame: &mut [u8]) {
    for (one, other, len) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
        let (before, behind) = frame.split_at_mut(other);
        before[one..one + len].swap_with_slice(&mut behind[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_where_the_question_came_from() {
        let mut frame: Vec<u8> = (0..40).collect();
        answer(&mut frame);
        assert_eq!(frame[..14], [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 12, 13]);
        assert_eq!(frame[24..40], [24, 25, 30, 31, 32, 33, 26, 27, 28, 29, 36, 37, 34, 35, 38, 39]);
    }
}
