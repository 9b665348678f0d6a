//! What a hostile or broken guest does to the socket device, as a table of named scenarios.
//!
//! Each does its worst on a device with one good connection. Then the runner asks what a neighbour would: the good
//! connection still carries bytes both ways, a new one can be made, and nothing but what may be held is held.

use hvl_shared_abi::epoch::{DeviceState, DriverDevice, DriverHalf, PmmLook, driver_bell};
use hvl_shared_abi::ring::Segment;
use hvl_shared_abi::ring::split::{DriverRing, DriverSlot};
use hvl_shared_abi::wire::vsock::{
    HEADER, Header, Op, Packet, RECEIVE, Shutdown, TRANSMIT, TYPE_STREAM, Way,
};
use hvl_shared_abi::{Features, Mem, Region, Window};
use hvl_vsock_tests::{BASE, CID, Harbor, Pmm, ROOM, SLOTS, layout, leak, region};

/// A raw guest: the smallest thing that talks to the device, and can say anything.
struct Stage {
    m: Region,
    pmm: Pmm,
    harbor: Harbor,
    receive: DriverRing<'static>,
    transmit: DriverRing<'static>,
    /// What came and was not looked at.
    came: Vec<(Packet, Vec<u8>)>,
    /// Whether receive buffers are posted; those that are not, and where each one is.
    listens: bool,
    free: Vec<u32>,
    posted: [u32; 32],
    /// The good connection's slot and the guest's credit counts.
    good: usize,
    sent: u32,
}

const BLOCK: u32 = 1024;
const GOOD: (u32, u32) = (1000, 99);

impl Stage {
    fn set() -> Stage {
        let (m, harbor) = (region(), Harbor::default());
        harbor.sea().listening.extend([(99, ()), (98, ())]);
        let mut pmm = Pmm::start(m, &harbor);
        let PmmLook::Present(epoch) = DriverHalf::look(&m) else { panic!("no PMM") };
        let devices = DriverHalf::devices(&m, |_, _, _| {}).unwrap();
        let mut half = DriverHalf::new();
        assert!(half.hello(&m, epoch, devices));
        pmm.service();
        assert_eq!(half.adopted(&m), Some(true));
        let ring = |queue: usize| {
            let place = layout().devices()[0].queues[queue];
            let slots = leak(vec![DriverSlot::NEW; usize::from(place.size)]);
            let mut ring = DriverRing::new(place, BASE, slots).unwrap();
            ring.start(&m, Features::VERSION_1);
            ring
        };
        let (receive, transmit) = (ring(RECEIVE), ring(TRANSMIT));
        let driver = DriverDevice(Window::of(0).unwrap());
        driver.start(&m, half.epoch(), Features::VERSION_1);
        pmm.service();
        assert_eq!(driver.state(&m, &half), DeviceState::Running);
        let pool = layout().devices()[0].pool.at;
        let mut stage = Stage {
            m,
            pmm,
            harbor,
            receive,
            transmit,
            came: Vec::new(),
            listens: true,
            free: (0..32).map(|block| pool + block * BLOCK).collect(),
            posted: [0; 32],
            good: 0,
            sent: 0,
        };
        stage.say(GOOD, Op::Request, &[]);
        assert_eq!(stage.hear(GOOD), Some(Op::Response));
        stage
    }

    fn pool(&self) -> u32 {
        layout().devices()[0].pool.at
    }

    /// Lets both sides look: what came is taken, buffers are posted.
    fn turn(&mut self) {
        for _ in 0..4 {
            self.pmm.service();
            // It is alive, and says so.
            driver_bell::acted(&self.m, driver_bell::pmm_bell(&self.m));
            while let Some(used) = self.receive.pop(&self.m).expect("a sound ring") {
                let at = self.posted[used.token.index()];
                self.free.push(at);
                let mut bytes = [0; HEADER];
                self.m.copy_in(at, &mut bytes);
                let came = used.written.checked_sub(HEADER as u32).expect("a header");
                let packet = Header::parse(&bytes, CID, Way::ToGuest, came).expect("a packet");
                let mut payload = vec![0; came as usize];
                self.m.copy_in(at + HEADER as u32, &mut payload);
                self.came.push((packet, payload));
            }
            while self.listens && !self.free.is_empty() {
                let at = self.free.pop().expect("a block");
                let token = self.receive.add(&self.m, &[Segment::writable(at, BLOCK)]).expect("room");
                self.posted[token.index()] = at;
            }
            self.receive.publish(&self.m);
        }
    }

    /// Sends any bytes, in a chain that is `chain` bytes long.
    fn send_raw(&mut self, bytes: &[u8], chain: u32) {
        let at = self.pool() + 32 * BLOCK;
        self.m.copy_out(at, bytes);
        self.transmit.add(&self.m, &[Segment::readable(at, chain)]).expect("room");
        self.transmit.publish(&self.m);
        self.turn();
        assert!(self.transmit.pop(&self.m).expect("a sound ring").is_some(), "every packet is completed");
    }

    fn packet(&self, (from, to): (u32, u32), op: Op, len: u32) -> Packet {
        Packet { guest: CID, from, to, op, len, buf_alloc: 4096, fwd_cnt: 0 }
    }

    fn say_packet(&mut self, packet: Packet, payload: &[u8]) {
        let mut bytes = packet.emit(Way::ToHost).to_vec();
        bytes.extend_from_slice(payload);
        self.send_raw(&bytes, bytes.len() as u32);
    }

    fn say(&mut self, ports: (u32, u32), op: Op, payload: &[u8]) {
        self.say_packet(self.packet(ports, op, payload.len() as u32), payload);
    }

    /// A packet of which some bytes are others.
    fn say_with(&mut self, ports: (u32, u32), op: Op, at: usize, with: &[u8]) {
        let mut bytes = self.packet(ports, op, 0).emit(Way::ToHost);
        bytes[at..at + with.len()].copy_from_slice(with);
        self.send_raw(&bytes, HEADER as u32);
    }

    /// The first packet for these ports of the guest and the host that has come.
    fn hear(&mut self, (guest, host): (u32, u32)) -> Option<Op> {
        self.turn();
        let found = self.came.iter().position(|(one, _)| (one.to, one.from) == (guest, host))?;
        Some(self.came.remove(found).0.op)
    }

    /// Another connection, open. Its slot.
    fn open(&mut self, ports: (u32, u32)) -> usize {
        self.say(ports, Op::Request, &[]);
        assert_eq!(self.hear(ports), Some(Op::Response));
        self.harbor.sea().berths.iter().rposition(|berth| berth.taken).unwrap()
    }

    fn malformed(&self) -> u64 {
        self.pmm.device().queues[TRANSMIT].malformed
    }

    /// The good connection carries bytes both ways.
    fn good_works(&mut self) {
        let before = self.harbor.output(self.good).len();
        self.say(GOOD, Op::Data, b"still here");
        self.sent += 10;
        assert_eq!(&self.harbor.output(self.good)[before..], b"still here");
        self.came.clear();
        self.harbor.send(self.good, b"and back");
        self.turn();
        let back = self.came.iter().any(|(one, bytes)| one.to == GOOD.0 && bytes == b"and back");
        assert!(back, "{:?}", self.came);
        self.came.clear();
    }
}

const OTHER: (u32, u32) = (2000, 98);

type Scenario = (&'static str, fn(&mut Stage));

const SCENARIOS: &[Scenario] = &[
    ("type: unknown", |stage| {
        for kind in [0u16, 2, 3, 0xffff] {
            stage.say_with(OTHER, Op::Request, 28, &kind.to_le_bytes());
            assert_eq!(stage.hear(OTHER), Some(Op::Reset));
        }
        assert_eq!((stage.malformed(), stage.harbor.taken()), (4, 1));
        assert_ne!(TYPE_STREAM, 0);
    }),
    ("operation: unknown, for no connection and on one", |stage| {
        for op in [0u16, 8, 0xffff] {
            stage.say_with(OTHER, Op::Request, 30, &op.to_le_bytes());
            assert_eq!(stage.hear(OTHER), Some(Op::Reset));
        }
        let slot = stage.open(OTHER);
        stage.say_with(OTHER, Op::Data, 30, &99u16.to_le_bytes());
        assert_eq!(stage.hear(OTHER), Some(Op::Reset));
        assert_eq!((stage.malformed(), stage.harbor.at(slot, |one| one.finished)), (4, Some(false)));
    }),
    ("source CID not its own", |stage| {
        for cid in [0u64, 2, 3, u64::from(CID) + 1, u64::from(CID) | 1 << 32, u64::MAX] {
            stage.say_with(GOOD, Op::Reset, 0, &cid.to_le_bytes());
            stage.say_with(OTHER, Op::Request, 0, &cid.to_le_bytes());
        }
        assert_eq!((stage.hear(OTHER), stage.malformed(), stage.harbor.taken()), (None, 12, 1));
    }),
    ("destination CID not the host's", |stage| {
        for cid in [0u64, 1, 3, u64::from(CID), 2 | 1 << 32, u64::MAX] {
            stage.say_with(OTHER, Op::Request, 8, &cid.to_le_bytes());
        }
        assert_eq!((stage.hear(OTHER), stage.malformed(), stage.harbor.taken()), (None, 6, 1));
    }),
    ("length unlike the chain", |stage| {
        for (len, chain) in [(1, 0), (0, 1), (100, 99), (99, 100), (u32::MAX, 16), (1 << 31, 0)] {
            let slot = stage.open(OTHER);
            let bytes = stage.packet(OTHER, Op::Data, len).emit(Way::ToHost);
            stage.send_raw(&bytes, HEADER as u32 + chain);
            assert_eq!(stage.hear(OTHER), Some(Op::Reset), "{len} {chain}");
            assert!(stage.harbor.output(slot).is_empty());
        }
        assert_eq!(stage.malformed(), 6);
    }),
    ("shorter than a header", |stage| {
        let bytes = stage.packet(GOOD, Op::Reset, 0).emit(Way::ToHost);
        for chain in [1, 16, 43] {
            stage.send_raw(&bytes, chain);
        }
        assert_eq!(stage.malformed(), 3);
    }),
    ("bytes where none belong", |stage| {
        for op in [Op::Request, Op::CreditUpdate, Op::Shutdown(Shutdown::BOTH)] {
            let slot = stage.open(OTHER);
            stage.say_packet(stage.packet(OTHER, op, 4), b"four");
            assert_eq!(stage.hear(OTHER), Some(Op::Reset));
            assert!(stage.harbor.output(slot).is_empty());
        }
    }),
    ("header and bytes in many buffers", |stage| {
        let mut bytes = stage.packet(GOOD, Op::Data, 10).emit(Way::ToHost).to_vec();
        bytes.extend_from_slice(b"0123456789");
        let at = stage.pool() + 32 * BLOCK;
        stage.m.copy_out(at, &bytes);
        let cuts = [(0, 1), (1, 7), (8, 30), (38, 8), (46, 1), (47, 7)];
        let segments = cuts.map(|(skip, len)| Segment::readable(at + skip, len));
        stage.transmit.add(&stage.m, &segments).unwrap();
        stage.transmit.publish(&stage.m);
        stage.turn();
        assert!(stage.transmit.pop(&stage.m).unwrap().is_some());
        assert!(stage.harbor.output(stage.good).ends_with(b"0123456789"));
    }),
    ("data on unknown and closing connections", |stage| {
        for op in [Op::Data, Op::CreditUpdate, Op::CreditRequest, Op::Response, Op::Shutdown(Shutdown::BOTH)]
        {
            let payload: &[u8] = if op == Op::Data { b"lost" } else { b"" };
            stage.say(OTHER, op, payload);
            assert_eq!(stage.hear(OTHER), Some(Op::Reset), "{op:?}");
        }
        stage.say(OTHER, Op::Reset, &[]);
        assert_eq!(stage.hear(OTHER), None, "a reset is never answered");
        let slot = stage.open(OTHER);
        stage.harbor.hang_up(slot);
        assert_eq!(stage.hear(OTHER), Some(Op::Shutdown(Shutdown::BOTH)));
        stage.say(OTHER, Op::Data, b"too late");
        assert_eq!((stage.hear(OTHER), stage.harbor.output(slot).len()), (None, 0));
        stage.say(OTHER, Op::Reset, &[]);
        assert!(stage.harbor.at(slot, |one| !one.taken));
    }),
    ("data after the guest has said that there will be none", |stage| {
        let slot = stage.open(OTHER);
        stage.say(OTHER, Op::Shutdown(Shutdown { send: true, receive: false }), &[]);
        stage.say(OTHER, Op::Data, b"lie");
        assert_eq!(stage.hear(OTHER), Some(Op::Reset));
        assert!(stage.harbor.output(slot).is_empty());
    }),
    ("double request", |stage| {
        let slot = stage.open(OTHER);
        stage.say(OTHER, Op::Request, &[]);
        assert_eq!(stage.hear(OTHER), Some(Op::Reset));
        assert_eq!(stage.harbor.at(slot, |one| one.finished), Some(false));
    }),
    ("a response that nobody waits for", |stage| {
        let slot = stage.open(OTHER);
        stage.say(OTHER, Op::Response, &[]);
        assert_eq!(stage.hear(OTHER), Some(Op::Reset));
        assert!(stage.harbor.at(slot, |one| one.finished.is_some() && one.granted.is_none()));
    }),
    ("data instead of a response", |stage| {
        let slot = stage.harbor.ask(80);
        stage.turn();
        let host = stage.came.iter().find(|(one, _)| one.to == 80).expect("a request").0.from;
        assert_eq!(stage.hear((80, host)), Some(Op::Request));
        stage.say((80, host), Op::Data, b"early");
        assert_eq!(stage.hear((80, host)), Some(Op::Reset));
        assert!(stage.harbor.at(slot, |one| one.granted.is_none() && one.output.is_empty()));
    }),
    ("65 k connections", |stage| {
        let mut granted = 0;
        for port in 0..65_536u32 {
            let ports = (10_000 + port, 98);
            stage.say(ports, Op::Request, &[]);
            match stage.hear(ports) {
                Some(Op::Response) => granted += 1,
                Some(Op::Reset) => {}
                other => panic!("{port}: {other:?}"),
            }
        }
        assert_eq!(
            (granted, stage.harbor.taken()),
            (SLOTS - 1, SLOTS),
            "bounded, with a reset for each of the others"
        );
        for port in 0..SLOTS as u32 {
            stage.say((10_000 + port, 98), Op::Reset, &[]);
        }
        assert_eq!(stage.harbor.taken(), 1);
    }),
    ("credit: none", |stage| {
        let slot = stage.open(OTHER);
        stage.harbor.send(slot, &[1; 5000]);
        stage.say_packet(Packet { buf_alloc: 0, ..stage.packet(OTHER, Op::CreditUpdate, 0) }, &[]);
        stage.came.clear();
        stage.harbor.send(slot, &[2; 5000]);
        stage.turn();
        assert!(stage.came.is_empty(), "nothing is sent");
    }),
    ("credit: shrunk below what is on its way, and rolled over", |stage| {
        let slot = stage.open(OTHER);
        stage.harbor.send(slot, &[1; 3000]);
        stage.turn();
        let all = |stage: &Stage| stage.came.iter().map(|(one, _)| one.len).sum::<u32>();
        assert_eq!(all(stage), 3000);
        stage.harbor.send(slot, &[1; 9000]);
        for (buf_alloc, fwd_cnt) in [(10, 0), (0, 0), (1, u32::MAX), (2999, 1 << 31), (3000, 5000)] {
            stage.say_packet(Packet { buf_alloc, fwd_cnt, ..stage.packet(OTHER, Op::CreditUpdate, 0) }, &[]);
        }
        // Room for 4,096 was alleged once; then 3,000, of which all is on its way.
        assert!(all(stage) <= 4096, "{}", all(stage));
        let before = all(stage);
        stage.say_packet(Packet { buf_alloc: before + 7, ..stage.packet(OTHER, Op::CreditUpdate, 0) }, &[]);
        assert_eq!(all(stage), before + 7);
    }),
    ("credit: ignored", |stage| {
        let slot = stage.open(OTHER);
        stage.harbor.at(slot, |one| one.stuck = true);
        for _ in 0..ROOM / 512 {
            stage.say(OTHER, Op::Data, &[3; 512]);
        }
        assert_eq!(stage.hear(OTHER), None);
        stage.say(OTHER, Op::Data, b"x");
        assert_eq!(stage.hear(OTHER), Some(Op::Reset));
        assert_eq!(stage.harbor.at(slot, |one| one.finished), Some(false));
    }),
    ("credit: asked for again and again", |stage| {
        for _ in 0..1000 {
            stage.say(GOOD, Op::CreditRequest, &[]);
            assert_eq!(stage.hear(GOOD), Some(Op::CreditUpdate));
        }
        stage.listens = false;
        stage.turn();
        for _ in 0..1000 {
            stage.say(GOOD, Op::CreditRequest, &[]);
        }
        stage.listens = true;
        stage.turn();
        stage.came.clear();
    }),
    ("shutdown flags: none, unknown, all", |stage| {
        let slot = stage.open(OTHER);
        for flags in [0u32, 4, 0xffff_fffc] {
            stage.say_with(OTHER, Op::Shutdown(Shutdown::default()), 32, &flags.to_le_bytes());
            assert_eq!((stage.hear(OTHER), stage.harbor.at(slot, |one| one.finished)), (None, None));
        }
        stage.say_with(OTHER, Op::Shutdown(Shutdown::default()), 32, &u32::MAX.to_le_bytes());
        assert_eq!(
            (stage.hear(OTHER), stage.harbor.at(slot, |one| one.finished)),
            (Some(Op::Reset), Some(true))
        );
    }),
    ("a peer that never reads: thousands of packets into nowhere", |stage| {
        stage.listens = false;
        stage.turn();
        for port in 0..5000 {
            stage.say((port + 3000, 7), Op::Request, &[]);
            stage.say((port + 3000, 98), Op::Data, b"x");
        }
        stage.listens = true;
        stage.turn();
        stage.turn();
        assert!(stage.came.len() < 200, "what is remembered of it is bounded: {}", stage.came.len());
        stage.came.clear();
    }),
    ("a peer that never reads: an answer that cannot be sent is given up", |stage| {
        stage.listens = false;
        stage.turn();
        let slots: Vec<_> = (0..40).map(|_| stage.harbor.ask(80)).collect();
        stage.turn();
        slots.iter().for_each(|slot| stage.harbor.expire(*slot));
        stage.turn();
        assert!(slots.iter().all(|slot| stage.harbor.at(*slot, |one| one.finished.is_some())));
        stage.listens = true;
        stage.turn();
        stage.turn();
        assert_eq!(stage.harbor.taken(), 1);
        stage.came.clear();
    }),
    ("receive buffers too short for anything", |stage| {
        stage.listens = false;
        stage.turn();
        while stage.receive.in_flight() != 0 {
            stage.harbor.send(stage.good, b"y");
            stage.turn();
        }
        for len in [1, 16, 43, 44] {
            let at = stage.pool();
            stage.receive.add(&stage.m, &[Segment::writable(at, len)]).unwrap();
            stage.receive.publish(&stage.m);
            stage.harbor.send(stage.good, b"z");
            stage.pmm.service();
            let used = stage.receive.pop(&stage.m).unwrap().expect("given back");
            assert_eq!(used.written, 0, "{len}");
        }
        stage.listens = true;
        stage.turn();
        stage.came.clear();
    }),
    ("a reset where the device's own waits for a buffer", |stage| {
        stage.open(OTHER);
        stage.listens = false;
        stage.turn();
        while stage.receive.in_flight() != 0 {
            stage.harbor.send(stage.good, b"y");
            stage.turn();
        }
        stage.say(OTHER, Op::Request, &[]);
        stage.say(OTHER, Op::Reset, &[]);
        assert_eq!(stage.harbor.taken(), 1, "the slot is given back without a buffer");
        stage.listens = true;
        stage.turn();
        assert!(
            stage.came.iter().all(|(packet, _)| packet.op != Op::Reset),
            "nobody waits for a reset any more"
        );
        stage.came.clear();
    }),
    ("packets that the guest rewrites while they are looked at", |stage| {
        // A copy is taken once, so a chain of which every word changes between two looks says one thing or the other.
        let slot = stage.open(OTHER);
        let honest = stage.packet(OTHER, Op::Data, 4).emit(Way::ToHost);
        stage.send_raw(&[&honest[..], b"data"].concat(), HEADER as u32 + 4);
        stage.m.copy_out(stage.pool() + 32 * BLOCK, &[0xff; 64]);
        stage.turn();
        assert_eq!(stage.harbor.output(slot), b"data");
    }),
];

fn run(act: fn(&mut Stage)) {
    let mut stage = Stage::set();
    stage.good_works();
    act(&mut stage);
    stage.turn();
    assert_eq!(stage.pmm.device().fault, "none");
    stage.good_works();
    stage.open((60_000, 99));
}

#[test]
fn no_scenario_of_a_hostile_guest_harms_its_neighbours() {
    let table = SCENARIOS.iter().map(|(name, act)| (*name, || run(*act)));
    hvl_test_kit::table::run("Sockets, from the guest", table);
}
