//! What a hostile or broken PMM does to the frontend's card, as a table of named scenarios.
//!
//! The PMM here keeps to the protocol of the link and the rings, so that its frames arrive, and says in them what a
//! scenario wants. After each, the runner asks whether the card works with a PMM that means well.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use hvl_frontend::device::NotNow;
use hvl_frontend::device::net::{
    Checksum, DEFAULT_MTU, MAX_FRAME, Net, NetStorage, Offload, Options, SendError,
};
use hvl_net_tests::{Cable, MAC, Pmm, TestBoard, frame, leak, region};
use hvl_pmm::device::{Device, Queues, Request};
use hvl_shared_abi::ring::{Access, RingFault};
use hvl_shared_abi::wire::net::{
    Config, F_MAC, F_MRG_RXBUF, F_MTU, F_STATUS, HEADER, OFFLOADS, RECEIVE, TRANSMIT,
};
use hvl_shared_abi::{DeviceId, Region};

const POOL: u32 = 0x4_0000;

/// What the device says.
#[derive(Default)]
struct Script {
    /// Bytes of each buffer, and the length that is said to be written.
    buffers: VecDeque<(Vec<u8>, u32)>,
    /// What is transmitted is taken and never completed.
    deaf: bool,
    /// Receive buffers of the guest's.
    posted: VecDeque<Request<4>>,
    /// What was taken and is not completed.
    held: Vec<Request<64>>,
    config: [u8; 12],
    features: u64,
    /// What is said to be written into buffers that are only read.
    written: u32,
    heard: Vec<Vec<u8>>,
}

#[derive(Clone, Default)]
struct Liar(Arc<Mutex<Script>>);

impl Liar {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }
    fn say(&self, bytes: &[u8], written: u32) {
        self.script().buffers.push_back((bytes.to_vec(), written));
    }
}

impl Device<Region> for Liar {
    fn id(&self) -> DeviceId {
        DeviceId::NET
    }
    fn features(&self) -> u64 {
        self.script().features
    }
    fn config(&self, into: &mut [u8]) -> usize {
        into[..12].copy_from_slice(&self.script().config);
        12
    }
    fn reset(&mut self) {
        let mut script = self.script();
        script.posted.clear();
        script.held.clear();
    }
    fn process(&mut self, queues: &mut Queues<'_, '_, Region>) -> Result<bool, RingFault> {
        let mut script = self.script();
        let mut queue = queues.queue(RECEIVE).unwrap();
        while let Some(request) = queue.take()? {
            script.posted.push_back(request);
        }
        while !script.buffers.is_empty() {
            let Some(mut request) = script.posted.pop_front() else { break };
            let (bytes, written) = script.buffers.pop_front().unwrap();
            request.write(queue.mem(), &bytes);
            queue.complete(request, written);
        }
        let mut queue = queues.queue(TRANSMIT).unwrap();
        while let Some(request) = queue.take()? {
            if script.deaf {
                script.held.push(request);
                continue;
            }
            let mut bytes = vec![0; request.len(Access::Readable) as usize];
            request.peek(queue.mem(), &mut bytes);
            script.heard.push(bytes);
            queue.complete(request, script.written);
        }
        Ok(false)
    }
}

struct Stage {
    m: Region,
    board: TestBoard,
    liar: Liar,
    pmm: Pmm,
    net: Net<'static, TestBoard>,
}

impl Stage {
    fn set() -> Stage {
        let (m, liar) = (region(), Liar::default());
        liar.script().config = Config::new(MAC, 1500).to_bytes();
        liar.script().features = F_MAC | F_STATUS | F_MTU | F_MRG_RXBUF;
        let board = TestBoard::new(m);
        let link = board.attach();
        let options = Options { checksums: true, segments: true, ..Options::default() };
        let net = Net::open(&link, leak(NetStorage::<64, 64>::NEW), options).unwrap();
        let pmm = Pmm::with(m, liar.clone(), POOL);
        let mut stage = Stage { m, board, liar, pmm, net };
        stage.settle();
        stage
    }

    /// The same with other features or another configuration.
    fn again(&mut self, features: u64, config: Config) {
        self.liar.script().features = features;
        self.liar.script().config = config.to_bytes();
        self.pmm = Pmm::with(self.m, self.liar.clone(), POOL);
        self.settle();
    }

    fn settle(&mut self) {
        for _ in 0..6 {
            self.net.link().poll();
            self.pmm.service();
            self.board.pass(20_000);
        }
    }

    /// A frame with this header; what the guest makes of it.
    fn hear(&mut self, header: [u8; HEADER], bytes: &[u8]) -> Result<(usize, Offload), NotNow> {
        self.liar.say(&[&header[..], bytes].concat(), (HEADER + bytes.len()) as u32);
        self.pmm.service();
        let mut into = vec![0; MAX_FRAME];
        let got = self.net.receive(&mut into)?;
        assert_eq!(into[..got.len], bytes[..got.len], "only what was sent");
        Ok((got.len, got.offload))
    }

    /// What was said is dropped as malformed, `count` times.
    fn dropped(&mut self, count: u32) {
        let before = self.net.dropped().0;
        self.pmm.service();
        assert_eq!(self.net.receive(&mut [0; 4096]), Err(NotNow::WouldBlock));
        assert_eq!(self.net.dropped().0, before + count);
    }
}

/// One buffer.
fn one(flags: u8, kind: u8, buffers: u16) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..2].copy_from_slice(&[flags, kind]);
    bytes[10..].copy_from_slice(&buffers.to_le_bytes());
    bytes
}

type Scenario = (&'static str, fn(&mut Stage));

const SCENARIOS: &[Scenario] = &[
    ("a frame shorter than its header", |s| {
        for len in 1..HEADER as u32 {
            s.liar.say(&[0; HEADER], len);
            s.dropped(1);
        }
        s.liar.say(&[0; HEADER], 0);
        s.dropped(0);
    }),
    ("a header and no frame, or a part of one", |s| {
        for len in 0..14 {
            s.liar.say(&[&one(0, 0, 1)[..], &frame(14, 0)].concat(), HEADER as u32 + len);
            s.dropped(1);
        }
    }),
    ("a length above the buffer", |s| {
        for len in [2049, 65_536, u32::MAX] {
            s.liar.say(&[&one(0, 0, 1)[..], &frame(60, 0)].concat(), len);
            s.pmm.service();
            // A length that cannot be says that the rest cannot be believed either.
            assert!(s.net.receive(&mut [0; 4096]).is_err());
        }
        assert_eq!(s.net.link().counters().overlong, 3);
    }),
    ("no buffers at all", |s| {
        s.liar.say(&[&one(0, 0, 0)[..], &frame(60, 0)].concat(), 72);
        s.dropped(1);
    }),
    ("more buffers than came", |s| {
        for buffers in [2, 64, 65, 65_535] {
            s.liar.say(&[&one(0, 0, buffers)[..], &frame(60, 0)].concat(), 72);
            s.dropped(1);
        }
    }),
    ("buffers of a frame that come too late are the next one's", |s| {
        s.liar.say(&[&one(0, 0, 2)[..], &frame(60, 0)].concat(), 72);
        s.dropped(1);
        let bytes = frame(100, 1);
        assert_eq!(s.hear(one(0, 0, 1), &bytes), Ok((100, Offload::default())));
    }),
    ("a frame above 64 KiB", |s| {
        s.liar.say(&one(0, 0, 33), 2048);
        for _ in 1..33 {
            s.liar.say(&[], 2048);
        }
        s.pmm.service();
        assert_eq!(s.net.receive(&mut vec![0; 100_000]), Err(NotNow::WouldBlock));
        assert_eq!(s.net.dropped(), (1, 0));
    }),
    ("offloads that were not accepted", |s| {
        let mut header = one(1, 0, 1);
        header[6] = 34;
        s.liar.say(&[&header[..], &frame(100, 0)].concat(), 112);
        s.dropped(1);
        s.liar.say(&[&one(0, 1, 1)[..], &frame(100, 0)].concat(), 112);
        s.dropped(1);
        // Not believed, and no harm.
        assert_eq!(s.hear(one(2, 0, 1), &frame(60, 0)), Ok((60, Offload::default())));
    }),
    ("nonsense in an offload that was", |s| {
        s.again(F_MAC | F_MRG_RXBUF | OFFLOADS, Config::new(MAC, 0));
        for (start, offset) in [(0u16, 0u16), (13, 16), (34, 65), (65_535, 65_535)] {
            let mut header = one(1, 0, 1);
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
            s.liar.say(&[&header[..], &frame(100, 0)].concat(), 112);
            s.dropped(1);
        }
        for kind in [1, 2, 3, 4, 0x81, 0xff] {
            s.liar.say(&[&one(0, kind, 1)[..], &frame(100, 0)].concat(), 112);
            s.dropped(1);
        }
        let verified = Offload { checksum: Checksum::Verified, segments: None };
        assert_eq!(s.hear(one(2, 0, 1), &frame(60, 0)), Ok((60, verified)));
    }),
    ("several buffers without merging", |s| {
        s.again(F_MAC, Config::new(MAC, 0));
        // The number is not looked at: it means nothing.
        assert_eq!(s.hear(one(0, 0, 9), &frame(60, 0)), Ok((60, Offload::default())));
    }),
    ("an address that no card has", |s| {
        for mac in [[0; 6], [0xff; 6], [1, 0, 0, 0, 0, 1]] {
            s.again(F_MAC, Config::new(mac, 0));
            assert_eq!(s.net.mac(), Ok(None));
        }
    }),
    ("an MTU of 0, 67, or none", |s| {
        for mtu in [0, 1, 67] {
            s.again(F_MAC | F_MTU, Config::new(MAC, mtu));
            assert_eq!(s.net.mtu(), Ok(DEFAULT_MTU));
        }
        s.again(F_MAC, Config::new(MAC, 9000));
        assert_eq!(s.net.mtu(), Ok(DEFAULT_MTU));
        s.again(F_MAC | F_MTU, Config::new(MAC, 9000));
        assert_eq!(s.net.mtu(), Ok(9000));
    }),
    ("a link that is down", |s| {
        let config = Config { status: 0.into(), ..Config::new(MAC, 0) };
        s.again(F_MAC | F_STATUS, config);
        assert!(!s.net.is_up());
        s.again(F_MAC, config);
        assert!(s.net.is_up(), "a status that was not offered says nothing");
    }),
    ("a PMM that takes no frames", |s| {
        s.liar.script().deaf = true;
        for _ in 0..64 {
            s.net.transmit(&frame(60, 0), Offload::default()).unwrap();
        }
        for _ in 0..1000 {
            assert_eq!(s.net.transmit(&frame(60, 0), Offload::default()), Err(SendError::WouldBlock));
            assert!(s.net.next_deadline().is_some(), "it kicks again");
            s.board.pass(20_000);
        }
    }),
    ("a transmitted frame that is said to be written to", |s| {
        s.liar.script().written = 1000;
        s.net.transmit(&frame(3000, 0), Offload::default()).unwrap();
        s.pmm.service();
        s.net.transmit(&frame(3000, 1), Offload::default()).unwrap();
        s.pmm.service();
        assert_eq!(s.liar.script().heard.len(), 2);
    }),
    ("a flood", |s| {
        let mut into = [0; 1518];
        for _ in 0..1000 {
            for _ in 0..64 {
                s.liar.say(&[&one(0, 0, 1)[..], &frame(60, 1)].concat(), 72);
            }
            s.pmm.service();
            let got = (0..64).filter(|_| s.net.receive(&mut into).is_ok()).count();
            assert_eq!(got, 64);
            s.pmm.service();
        }
    }),
    ("a header rewritten while it is parsed", |s| {
        s.again(F_MAC | F_MRG_RXBUF | OFFLOADS, Config::new(MAC, 0));
        let pool = hvl_net_tests::layout(POOL).devices()[hvl_net_tests::NET].pool;
        let stop = std::sync::atomic::AtomicBool::new(false);
        let m = s.m;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use hvl_shared_abi::Mem;
                let mut n = 0u32;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    m.write32(pool.at + (n >> 16) % 64 * 2048 + n % 3 * 4, n >> 8);
                }
            });
            let mut into = vec![0; MAX_FRAME];
            for _ in 0..3000 {
                for _ in 0..8 {
                    s.liar.say(&[&one(0, 0, 1)[..], &frame(100, 1)].concat(), 112);
                }
                s.pmm.service();
                for _ in 0..8 {
                    if let Ok(got) = s.net.receive(&mut into) {
                        assert!((14..=MAX_FRAME).contains(&got.len));
                        if let Checksum::Missing { start, at } = got.offload.checksum {
                            assert!(start >= 14 && usize::from(at) + 2 <= got.len);
                        }
                    }
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }),
];

fn run(act: fn(&mut Stage)) {
    let mut stage = Stage::set();
    act(&mut stage);
    // A PMM that means well, and a frame each way, of several blocks, again and again: no block was lost.
    let cable = Cable::default();
    cable.far().features = OFFLOADS;
    stage.pmm = Pmm::start(stage.m, &cable, POOL, Some(9000));
    stage.settle();
    let mut into = vec![0; MAX_FRAME];
    while stage.net.receive(&mut into).is_ok() {}
    assert_eq!((stage.net.mac(), stage.net.mtu()), (Ok(Some(MAC)), Ok(9000)));
    for turn in 0..100 {
        let sent = frame(9014, turn);
        stage.net.transmit(&sent, Offload::default()).unwrap();
        cable.send(&sent);
        stage.pmm.service();
        assert_eq!(cable.far().got.remove(0).1, sent);
        let got = stage.net.receive(&mut into).unwrap();
        assert!(into[..got.len] == sent);
        stage.pmm.service();
    }
}

#[test]
fn no_scenario_of_a_hostile_pmm_harms_the_card() {
    let table = SCENARIOS.iter().map(|(name, act)| (*name, || run(*act)));
    hvl_test_kit::table::run("The network card, from the PMM", table);
}
