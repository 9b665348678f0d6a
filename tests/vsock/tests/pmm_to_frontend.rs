//! What a hostile or broken PMM does to the frontend's sockets, as a table of named scenarios.
//!
//! The PMM here keeps to the protocol of the link and the rings, so that its packets arrive, and says in them what a
//! scenario wants. After each, the runner asks whether the guest still works with a PMM that means well.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use hvl_frontend::LinkState;
use hvl_frontend::device::vsock::{Socket, SocketError, Vsock, VsockStorage};
use hvl_pmm::device::{Device, Queues, Request};
use hvl_shared_abi::header::reg;
use hvl_shared_abi::ring::{Access, RingFault};
use hvl_shared_abi::wire::vsock::{
    Config, EVENT, F_STREAM, HEADER, Header, Op, Packet, RECEIVE, Shutdown, TRANSMIT, Way,
};
use hvl_shared_abi::{DeviceId, Mem, Region};
use hvl_vsock_tests::{CID, Harbor, Pmm, TestBoard, layout, leak, region};

/// What the device says and has heard.
#[derive(Default)]
struct Script {
    /// Packets for the guest, and the length that is said to be written.
    packets: VecDeque<(Vec<u8>, u32)>,
    events: VecDeque<(Vec<u8>, u32)>,
    heard: Vec<(Packet, Vec<u8>)>,
    /// The transmit queue is not looked at.
    deaf: bool,
    config: [u8; 8],
}

#[derive(Clone, Default)]
struct Liar(Arc<Mutex<Script>>);

impl Device<Region> for Liar {
    fn id(&self) -> DeviceId {
        DeviceId::VSOCK
    }
    fn features(&self) -> u64 {
        F_STREAM
    }
    fn config(&self, into: &mut [u8]) -> usize {
        into[..8].copy_from_slice(&self.0.lock().unwrap().config);
        8
    }
    fn reset(&mut self) {}
    fn process(&mut self, queues: &mut Queues<'_, '_, Region>) -> Result<bool, RingFault> {
        let mut script = self.0.lock().unwrap();
        for index in [EVENT, RECEIVE] {
            let mut queue = queues.queue(index).unwrap();
            let pending = if index == EVENT { &mut script.events } else { &mut script.packets };
            while !pending.is_empty() {
                let Some(request) = queue.take::<4>()? else { break };
                let mut request: Request<4> = request;
                let (bytes, written) = pending.pop_front().unwrap();
                request.write(queue.mem(), &bytes);
                queue.complete(request, written);
            }
        }
        let mut queue = queues.queue(TRANSMIT).unwrap();
        while !script.deaf {
            let Some(request) = queue.take::<4>()? else { break };
            let mut bytes = vec![0; request.len(Access::Readable) as usize];
            request.peek(queue.mem(), &mut bytes);
            let (header, payload) = bytes.split_first_chunk::<HEADER>().expect("a header");
            let packet =
                Header::parse(header, CID, Way::ToHost, payload.len() as u32).expect("a sound packet");
            script.heard.push((packet, payload.to_vec()));
            queue.complete(request, 0);
        }
        Ok(false)
    }
}

struct Stage {
    m: Region,
    board: TestBoard,
    liar: Liar,
    pmm: Pmm,
    vsock: Vsock<'static, TestBoard>,
}

/// The port that the guest listens at.
const PORT: u32 = 80;
const ROOM: u32 = 600;

impl Stage {
    fn set() -> Stage {
        let (m, liar) = (region(), Liar::default());
        liar.0.lock().unwrap().config = Config::new(CID).to_bytes();
        let (pmm, board) = (Pmm::with(m, liar.clone()), TestBoard::new(m));
        let mut vsock =
            Vsock::open(&board.attach(), leak(VsockStorage::<4, { ROOM as usize }>::NEW)).unwrap();
        vsock.listen(PORT, 2).unwrap();
        let mut stage = Stage { m, board, liar, pmm, vsock };
        stage.turn();
        stage
    }
    fn turn(&mut self) {
        for _ in 0..6 {
            self.vsock.poll();
            self.service();
        }
        self.vsock.poll();
    }
    /// As [`Pmm::service`], for a device that holds no buffer: there is always more to take.
    fn service(&mut self) {
        self.pmm.service_once();
    }
    fn say_raw(&mut self, bytes: &[u8], written: u32) {
        self.liar.0.lock().unwrap().packets.push_back((bytes.to_vec(), written));
        self.turn();
    }
    fn packet(&self, from: u32, to: u32, op: Op, len: u32) -> Packet {
        Packet { guest: CID, from, to, op, len, buf_alloc: 4096, fwd_cnt: 0 }
    }
    fn say(&mut self, packet: Packet, payload: &[u8]) {
        let bytes = [&packet.emit(Way::ToGuest)[..], payload].concat();
        let written = bytes.len() as u32;
        self.say_raw(&bytes, written);
    }
    /// What was heard from this port of the guest since it was asked last.
    fn heard(&mut self, from: u32) -> Vec<Op> {
        self.turn();
        let mut script = self.liar.0.lock().unwrap();
        let ops = script.heard.iter().filter(|(one, _)| one.from == from).map(|(one, _)| one.op).collect();
        script.heard.retain(|(one, _)| one.from != from);
        ops
    }
    /// A connection that the host asked for, open.
    fn called(&mut self, host: u32) -> Socket {
        self.say(self.packet(host, PORT, Op::Request, 0), &[]);
        assert_eq!(self.heard(PORT).last(), Some(&Op::Response));
        self.vsock.accept(PORT).unwrap().0
    }
    /// A connection that the guest has asked for, and the port it calls from.
    fn calling(&mut self) -> (Socket, u32) {
        let socket = self.vsock.connect(99).unwrap();
        self.turn();
        let from =
            self.liar.0.lock().unwrap().heard.iter().find(|one| one.0.op == Op::Request).unwrap().0.from;
        self.heard(from);
        (socket, from)
    }
}

const HOST: u32 = 5000;

type Scenario = (&'static str, fn(&mut Stage));

const SCENARIOS: &[Scenario] = &[
    ("answers that never come", |stage| {
        let (socket, from) = stage.calling();
        stage.board.now.fetch_add(4_000_000, SeqCst);
        assert_eq!(stage.vsock.is_open(socket), Err(SocketError::TimedOut));
        assert_eq!(stage.heard(from), [Op::Reset]);
        assert_eq!(stage.vsock.is_open(socket), Err(SocketError::Closed));
    }),
    ("a reset while connecting", |stage| {
        let (socket, from) = stage.calling();
        stage.say(stage.packet(99, from, Op::Reset, 0), &[]);
        assert_eq!(stage.vsock.is_open(socket), Err(SocketError::Refused));
    }),
    ("a reset while waiting to be accepted", |stage| {
        stage.say(stage.packet(HOST, PORT, Op::Request, 0), &[]);
        stage.say(stage.packet(HOST, PORT, Op::Reset, 0), &[]);
        assert_eq!(stage.vsock.accept(PORT), Err(SocketError::WouldBlock));
    }),
    ("a reset while open", |stage| {
        let socket = stage.called(HOST);
        stage.say(stage.packet(HOST, PORT, Op::Data, 3), b"abc");
        stage.say(stage.packet(HOST, PORT, Op::Reset, 0), &[]);
        let mut bytes = [0; 8];
        assert_eq!(stage.vsock.write(socket, b"x"), Err(SocketError::Closed), "what came is read first");
        assert_eq!(stage.vsock.read(socket, &mut bytes), Ok(3));
        assert_eq!(stage.vsock.read(socket, &mut bytes), Err(SocketError::Reset));
        assert_eq!(stage.vsock.read(socket, &mut bytes), Err(SocketError::Closed));
    }),
    ("a reset while closing, and one that comes twice", |stage| {
        let socket = stage.called(HOST);
        stage.vsock.close(socket);
        assert_eq!(stage.heard(PORT), [Op::Shutdown(Shutdown::BOTH)]);
        for _ in 0..2 {
            stage.say(stage.packet(HOST, PORT, Op::Reset, 0), &[]);
        }
        assert_eq!((stage.heard(PORT), stage.vsock.deadline()), (Vec::new(), None));
    }),
    ("a goodbye that is never answered", |stage| {
        let socket = stage.called(HOST);
        stage.vsock.close(socket);
        stage.heard(PORT);
        stage.board.now.fetch_add(4_000_000, SeqCst);
        assert_eq!(stage.heard(PORT), [Op::Reset]);
    }),
    ("goodbyes that are never answered, without a clock to tell", |stage| {
        // Every place says goodbye; a new connection takes the first of them.
        for host in 0..12 {
            let socket = stage.called(HOST + host);
            stage.vsock.close(socket);
            stage.heard(PORT);
        }
    }),
    ("credit beyond our buffer", |stage| {
        let socket = stage.called(HOST);
        stage.say(stage.packet(HOST, PORT, Op::Data, ROOM), &[1; ROOM as usize]);
        assert_eq!(stage.heard(PORT), []);
        stage.say(stage.packet(HOST, PORT, Op::Data, 1), b"x");
        assert_eq!(stage.heard(PORT), [Op::Reset]);
        let mut bytes = [0; 1000];
        assert_eq!(stage.vsock.read(socket, &mut bytes), Ok(ROOM as usize));
        assert_eq!(stage.vsock.read(socket, &mut bytes), Err(SocketError::Reset));
    }),
    ("credit: none, shrunk, rolled over", |stage| {
        let socket = stage.called(HOST);
        let tell = |stage: &mut Stage, buf_alloc, fwd_cnt| {
            let packet = Packet { buf_alloc, fwd_cnt, ..stage.packet(HOST, PORT, Op::CreditUpdate, 0) };
            stage.say(packet, &[]);
        };
        tell(stage, 0, 0);
        assert_eq!(stage.vsock.write(socket, b"x"), Err(SocketError::WouldBlock));
        assert_eq!(stage.heard(PORT), [Op::CreditRequest], "it asks, once");
        assert_eq!(stage.vsock.write(socket, b"x"), Err(SocketError::WouldBlock));
        assert_eq!(stage.heard(PORT), []);
        tell(stage, 100, 0);
        assert_eq!(stage.vsock.write(socket, &[7; 200]), Ok(100));
        for (alloc, fwd) in [(100, 101), (100, u32::MAX), (50, 0), (0, 50), (100, 1 << 31)] {
            tell(stage, alloc, fwd);
            let sent = stage.vsock.write(socket, &[7; 200]);
            assert!(sent == Err(SocketError::WouldBlock) || sent == Ok(50), "{alloc} {fwd}: {sent:?}");
        }
        tell(stage, u32::MAX, 100);
        assert!(stage.vsock.write(socket, &[7; 200]).is_ok());
    }),
    ("data for no connection, and after an end", |stage| {
        stage.say(stage.packet(HOST, 4711, Op::Data, 3), b"abc");
        assert_eq!(stage.heard(4711), [Op::Reset]);
        stage.say(stage.packet(HOST, 4711, Op::Reset, 0), &[]);
        assert_eq!(stage.heard(4711), [], "a reset is never answered");
        let socket = stage.called(HOST);
        stage.say(stage.packet(HOST, PORT, Op::Shutdown(Shutdown { send: true, receive: false }), 0), &[]);
        assert_eq!(stage.vsock.read(socket, &mut [0]), Ok(0));
        stage.say(stage.packet(HOST, PORT, Op::Data, 3), b"lie");
        assert_eq!(stage.heard(PORT), [Op::Reset]);
    }),
    ("a second request, a second response, data before the response", |stage| {
        stage.called(HOST);
        stage.say(stage.packet(HOST, PORT, Op::Request, 0), &[]);
        assert_eq!(stage.heard(PORT), [Op::Reset]);
        let (socket, from) = stage.calling();
        stage.say(stage.packet(99, from, Op::Data, 3), b"abc");
        assert_eq!(stage.vsock.is_open(socket), Err(SocketError::Reset));
        let (socket, from) = stage.calling();
        for _ in 0..2 {
            stage.say(stage.packet(99, from, Op::Response, 0), &[]);
        }
        assert_eq!(stage.vsock.is_open(socket), Err(SocketError::Reset));
    }),
    ("a flood of requests", |stage| {
        for host in 0..500 {
            stage.say(stage.packet(host, PORT, Op::Request, 0), &[]);
        }
        let heard = stage.heard(PORT);
        assert_eq!(heard.iter().filter(|op| **op == Op::Response).count(), 2, "the backlog");
        assert_eq!(heard.iter().filter(|op| **op == Op::Reset).count(), 498);
        while let Ok((socket, _)) = stage.vsock.accept(PORT) {
            stage.vsock.close(socket);
        }
        stage.turn();
    }),
    ("used lengths: 0, under the header, unlike the header, beyond the buffer", |stage| {
        let socket = stage.called(HOST);
        let bytes = [&stage.packet(HOST, PORT, Op::Data, 3).emit(Way::ToGuest)[..], b"abc"].concat();
        for written in [0, 1, 43] {
            stage.say_raw(&bytes, written);
            assert_eq!(stage.vsock.read(socket, &mut [0; 8]), Err(SocketError::WouldBlock), "{written}");
        }
        stage.vsock.close(socket);
        stage.say(stage.packet(HOST, PORT, Op::Reset, 0), &[]);
        for written in [44, 46, 48, 1024, u32::MAX] {
            let socket = stage.called(HOST);
            stage.say_raw(&bytes, written);
            if written <= 1024 {
                assert_eq!(stage.vsock.read(socket, &mut [0; 8]), Err(SocketError::Reset), "{written}");
                assert_eq!(stage.heard(PORT), [Op::Reset]);
            } else {
                stage.say(stage.packet(HOST, PORT, Op::Reset, 0), &[]);
                assert_eq!(stage.vsock.read(socket, &mut [0; 8]), Err(SocketError::Reset));
            }
            // The name of a connection that is over names no other.
            let next = stage.called(HOST + 1);
            assert_eq!(stage.vsock.read(socket, &mut [0; 8]), Err(SocketError::Closed));
            stage.vsock.close(next);
            stage.heard(PORT);
            stage.say(stage.packet(HOST + 1, PORT, Op::Reset, 0), &[]);
        }
    }),
    ("packets for another guest, from another host, of another kind, with another operation", |stage| {
        let socket = stage.called(HOST);
        let good = stage.packet(HOST, PORT, Op::Reset, 0).emit(Way::ToGuest);
        for (at, value) in [(0, 3u8), (0, 7), (8, 9), (12, 1)] {
            let mut bytes = good;
            bytes[at] = value;
            stage.say_raw(&bytes, HEADER as u32);
        }
        assert_eq!(stage.vsock.write(socket, b"x"), Ok(1), "nobody reset it");
        stage.heard(PORT);
        let mut bytes = stage.packet(HOST, 4711, Op::Request, 0).emit(Way::ToGuest);
        bytes[28] = 2;
        stage.say_raw(&bytes, HEADER as u32);
        assert_eq!(stage.heard(4711), [Op::Reset]);
        assert!(stage.vsock.counters().malformed >= 5);
    }),
    ("any bytes at all", |stage| {
        let mut state = 1u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        for _ in 0..3000 {
            let mut bytes = stage.packet(random() % 3, PORT, Op::Data, random() % 8).emit(Way::ToGuest);
            bytes[random() as usize % HEADER] = random() as u8;
            bytes[30] = random() as u8 % 9;
            let written = HEADER as u32 + random() % 8;
            stage.liar.0.lock().unwrap().packets.push_back((bytes.to_vec(), written));
            stage.vsock.poll();
            stage.service();
            if let Ok((socket, _)) = stage.vsock.accept(PORT) {
                let _ = stage.vsock.read(socket, &mut [0; 16]);
                stage.vsock.close(socket);
            }
        }
        stage.board.now.fetch_add(10_000_000, SeqCst);
        stage.turn();
        stage.heard(PORT);
    }),
    ("a transmit queue that is not looked at", |stage| {
        let socket = stage.called(HOST);
        stage.say(Packet { buf_alloc: u32::MAX, ..stage.packet(HOST, PORT, Op::CreditUpdate, 0) }, &[]);
        stage.liar.0.lock().unwrap().deaf = true;
        let mut sent = 0;
        while let Ok(count) = stage.vsock.write(socket, &[1; 5000]) {
            sent += count;
        }
        assert!((50_000..=64 * 1024).contains(&sent) && stage.vsock.write_ready(socket) == Ok(false));
        for host in 0..100 {
            stage.say(stage.packet(host, 4711, Op::Data, 1), b"x");
        }
        stage.liar.0.lock().unwrap().deaf = false;
        stage.turn();
        let resets = stage.heard(4711).len();
        assert!(resets <= 40, "what is remembered is bounded: {resets}");
        assert!(stage.vsock.write(socket, b"x").is_ok());
    }),
    ("TRANSPORT_RESET, and events that are none", |stage| {
        let socket = stage.called(HOST);
        for (bytes, written) in [(&[1u8, 0, 0, 0][..], 4), (&[0, 0, 0, 0], 3), (&[0xff; 8], 8)] {
            stage.liar.0.lock().unwrap().events.push_back((bytes.to_vec(), written));
        }
        stage.turn();
        assert_eq!(stage.vsock.write(socket, b"x"), Ok(1));
        stage.liar.0.lock().unwrap().events.push_back((vec![0; 4], 4));
        stage.turn();
        assert_eq!(stage.vsock.read(socket, &mut [0]), Err(SocketError::Reset));
        stage.heard(PORT);
    }),
    ("words of a session that come to light behind its end", |stage| {
        let lost = stage.called(HOST);
        let used = layout().devices()[0].queues[RECEIVE].used + 2;
        let before = stage.m.read16(used);
        for (from, to, op) in [(HOST, PORT, Op::Data), (1, PORT, Op::Request), (2, 4711, Op::CreditRequest)] {
            let bytes = stage.packet(from, to, op, 0).emit(Way::ToGuest).to_vec();
            stage.liar.0.lock().unwrap().packets.push_back((bytes, HEADER as u32));
        }
        stage.service();
        let after = stage.m.read16(used);
        stage.m.write16(used, before);
        let epoch = stage.m.read32(reg::PMM_EPOCH);
        stage.m.write32(reg::PMM_EPOCH, epoch + 1);
        stage.vsock.poll();
        assert_eq!(stage.vsock.link().state(), LinkState::Down);
        stage.m.write16(used, after);
        stage.pmm = Pmm::with(stage.m, stage.liar.clone());
        assert_eq!((stage.heard(PORT), stage.heard(4711)), (Vec::new(), Vec::new()));
        assert_eq!(stage.vsock.accept(PORT), Err(SocketError::WouldBlock));
        assert_eq!(stage.vsock.read(lost, &mut [0]), Err(SocketError::Reset));
    }),
    ("a configuration that no guest can have", |stage| {
        for cid in [0u64, 1, 2, u64::from(u32::MAX), 1 << 32] {
            stage.liar.0.lock().unwrap().config = Config { guest_cid: cid.into() }.to_bytes();
            stage.pmm = Pmm::with(stage.m, stage.liar.clone());
            stage.turn();
            assert_eq!(stage.vsock.cid(), Err(SocketError::LinkDown));
            assert_eq!(stage.vsock.connect(1), Err(SocketError::LinkDown));
        }
    }),
];

fn run(act: fn(&mut Stage)) {
    let mut stage = Stage::set();
    assert_eq!(stage.vsock.cid(), Ok(CID));
    act(&mut stage);
    // One that means well finds a guest that works.
    let harbor = Harbor::default();
    let mut pmm = Pmm::start(stage.m, &harbor);
    let slot = {
        for _ in 0..8 {
            stage.vsock.poll();
            pmm.service();
        }
        while let Ok((socket, _)) = stage.vsock.accept(PORT) {
            stage.vsock.close(socket);
        }
        harbor.ask(PORT)
    };
    for _ in 0..8 {
        pmm.service();
        stage.vsock.poll();
    }
    let (socket, _) = stage.vsock.accept(PORT).expect("a new connection");
    assert_eq!(stage.vsock.write(socket, b"well"), Ok(4));
    pmm.service();
    assert_eq!(harbor.output(slot), b"well");
}

#[test]
fn no_scenario_of_a_hostile_pmm_harms_the_guest() {
    let table = SCENARIOS.iter().map(|(name, act)| (*name, || run(*act)));
    hvl_test_kit::table::run("Sockets, from the PMM", table);
}
