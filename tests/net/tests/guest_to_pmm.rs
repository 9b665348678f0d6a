//! What a hostile or broken guest does to the network card, as a table of named scenarios.
//!
//! Each does its worst to a card that runs. Then the runner asks what a neighbour would: entropy is served, the card
//! sends and receives a good frame, nothing beyond its pool was written, and the next guest finds a card that works.

use hvl_net_tests::{BASE, Cable, LEN, MAC, NET, Pmm, RNG, frame, layout, leak, region};
use hvl_shared_abi::epoch::{DeviceState, DriverDevice, DriverHalf, PmmLook, driver_bell};
use hvl_shared_abi::ring::Segment;
use hvl_shared_abi::ring::split::{DriverRing, DriverSlot};
use hvl_shared_abi::wire::net::{
    F_CSUM, F_HOST_TSO4, F_MRG_RXBUF, HEADER, MAX_FRAME, OFFLOADS, RECEIVE, TRANSMIT,
};
use hvl_shared_abi::{Features, Mem, Region, Window};

const POOL: u32 = 0x4_0000;
const BLOCK: u32 = 2048;

/// A raw guest on a card.
struct Stage {
    m: Region,
    pmm: Pmm,
    cable: Cable,
    half: DriverHalf,
    bell: u32,
    receive: DriverRing<'static>,
    transmit: DriverRing<'static>,
}

impl Stage {
    fn set(features: u64) -> Stage {
        let (m, cable) = (region(), Cable::default());
        cable.far().features = OFFLOADS;
        let pmm = Pmm::start(m, &cable, POOL, None);
        Stage::boot(m, pmm, cable, features)
    }

    fn boot(m: Region, mut pmm: Pmm, cable: Cable, features: u64) -> Stage {
        let PmmLook::Present(epoch) = DriverHalf::look(&m) else { panic!("no PMM") };
        let devices = DriverHalf::devices(&m, |_, _, _| {}).unwrap();
        let mut half = DriverHalf::new();
        assert!(half.hello(&m, epoch, devices));
        pmm.service();
        assert_eq!(half.adopted(&m), Some(true));
        let (receive, transmit) = (ring(&m, NET, RECEIVE), ring(&m, NET, TRANSMIT));
        let driver = DriverDevice(Window::of(NET).unwrap());
        driver.start(&m, half.epoch(), Features::from_bits_retain(features) | Features::VERSION_1);
        pmm.service();
        assert_eq!(driver.state(&m, &half), DeviceState::Running);
        Stage { m, pmm, cable, half, bell: 0, receive, transmit }
    }

    fn pool(&self) -> u32 {
        layout(POOL).devices()[NET].pool.at
    }
    fn block(&self, index: u32) -> u32 {
        self.pool() + index * BLOCK
    }

    /// Offers bytes on the transmit queue, cut as said, and lets the PMM look.
    fn offer(&mut self, bytes: &[u8], cuts: &[usize]) {
        let mut chain = Vec::new();
        let (mut at, mut rest) = (self.block(64), bytes);
        for cut in cuts.iter().copied().chain([bytes.len()]) {
            let (part, after) = rest.split_at(cut.min(rest.len()));
            if !part.is_empty() {
                self.m.copy_out(at, part);
                chain.push(Segment::readable(at, part.len() as u32));
            }
            (at, rest) = (at + part.len() as u32, after);
        }
        self.transmit.add(&self.m, &chain).expect("room");
        self.transmit.publish(&self.m);
        self.ring();
        while self.transmit.pop(&self.m).expect("a sound ring").is_some() {}
    }

    /// Offers what is to be refused and counted.
    fn refused(&mut self, bytes: &[u8]) {
        let before = self.pmm.device(NET).queues[TRANSMIT].malformed;
        self.offer(bytes, &[]);
        assert_eq!(self.pmm.device(NET).queues[TRANSMIT].malformed, before + 1, "it is counted");
        assert_eq!(self.transmit.in_flight(), 0, "it is completed");
        assert!(self.cable.far().got.is_empty(), "nothing of it was sent");
    }

    fn send(&mut self, header: [u8; HEADER], len: usize) {
        let before = self.pmm.device(NET).queues[TRANSMIT].malformed;
        self.offer(&[&header[..], &frame(len, 1)].concat(), &[]);
        assert_eq!(self.pmm.device(NET).queues[TRANSMIT].malformed, before, "it is sound");
        self.cable.far().got.clear();
    }

    fn post(&mut self, index: u32, len: u32) {
        self.receive.add(&self.m, &[Segment::writable(self.block(index), len)]).expect("room");
        self.receive.publish(&self.m);
        self.ring();
    }

    fn works(&mut self) {
        self.cable.far().to_guest.clear();
        if self.receive.in_flight() != 0 {
            // Buffers that a scenario left behind, of whatever size.
            self.reset();
        }
        self.cable.far().got.clear();
        let sent = frame(1514, 3);
        self.offer(&[&[0; HEADER][..], &sent].concat(), &[HEADER]);
        assert_eq!(self.cable.far().got.pop().expect("a frame was sent").1, sent);
        self.post(0, BLOCK);
        self.cable.send(&sent);
        self.ring();
        let used = self.receive.pop(&self.m).expect("a sound ring").expect("a frame came");
        let mut got = vec![0; used.written as usize];
        self.m.copy_in(self.block(0), &mut got);
        assert_eq!((&got[..10], &got[10..12]), (&[0; 10][..], &[1, 0][..]));
        assert!(got[12..] == sent);
    }

    /// Resets the card and sets it up anew.
    fn reset(&mut self) {
        let driver = DriverDevice(Window::of(NET).unwrap());
        driver.reset(&self.m);
        self.ring();
        assert_eq!(driver.state(&self.m, &self.half), DeviceState::Clear);
        (self.receive, self.transmit) = (ring(&self.m, NET, RECEIVE), ring(&self.m, NET, TRANSMIT));
        self.cable.far().stuck = false;
        driver.start(&self.m, self.half.epoch(), Features::VERSION_1 | Features::from_bits_retain(MERGED));
        self.ring();
    }

    fn ring(&mut self) {
        self.bell = self.bell.wrapping_add(1);
        driver_bell::ring(&self.m, self.bell);
        self.pmm.service();
    }
}

fn ring(m: &Region, device: usize, queue: usize) -> DriverRing<'static> {
    let place = layout(POOL).devices()[device].queues[queue];
    let slots = leak(vec![DriverSlot::NEW; usize::from(place.size)]);
    let mut ring = DriverRing::new(place, BASE, slots).unwrap();
    ring.start(m, Features::VERSION_1);
    ring
}

/// A header: flags, kind, hdr_len, gso_size, csum_start, csum_offset.
fn header(flags: u8, kind: u8, words: [u16; 4]) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..2].copy_from_slice(&[flags, kind]);
    for (place, word) in bytes[2..10].chunks_mut(2).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn framed(header: [u8; HEADER], len: usize) -> Vec<u8> {
    [&header[..], &frame(len, 1)].concat()
}

const SOUND: [u16; 4] = [54, 1000, 34, 16];
const MERGED: u64 = F_MRG_RXBUF;
const ALL: u64 = OFFLOADS | F_MRG_RXBUF;

type Scenario = (&'static str, u64, fn(&mut Stage));

const SCENARIOS: &[Scenario] = &[
    ("a request shorter than its header", MERGED, |s| {
        for len in [1, 9, 10, 11, 12] {
            s.refused(&vec![0; len]);
        }
    }),
    ("a frame of fewer than 14 bytes", MERGED, |s| {
        for len in [1, 13] {
            s.refused(&vec![0; HEADER + len]);
        }
    }),
    ("a frame above 64 KiB", ALL, |s| {
        s.refused(&vec![0; HEADER + MAX_FRAME + 1]);
        s.refused(&vec![0; 100_000]);
    }),
    ("a frame above the MTU that is not to be cut", MERGED, |s| {
        s.refused(&framed([0; HEADER], 1519));
        s.refused(&framed([0; HEADER], 60_000));
        s.send([0; HEADER], 1518);
    }),
    ("a header that is cut anywhere", MERGED, |s| {
        for cut in 1..30 {
            s.offer(&framed([0; HEADER], 60), &[cut, 3]);
            assert_eq!(s.cable.far().got.pop().map(|(_, bytes)| bytes), Some(frame(60, 1)), "{cut}");
        }
    }),
    ("an offload that was not accepted", MERGED, |s| {
        s.refused(&framed(header(1, 0, SOUND), 100));
        s.refused(&framed(header(1, 1, SOUND), 100));
        s.refused(&framed(header(0, 1, SOUND), 100));
    }),
    ("segments without the feature for them", F_CSUM | MERGED, |s| {
        s.send(header(1, 0, SOUND), 100);
        s.refused(&framed(header(1, 1, SOUND), 100));
        s.refused(&framed(header(1, 4, SOUND), 100));
    }),
    ("segments of the other protocol", F_CSUM | F_HOST_TSO4 | MERGED, |s| {
        s.send(header(1, 1, SOUND), 3000);
        s.refused(&framed(header(1, 4, SOUND), 3000));
    }),
    ("segments of no size, without a checksum, of every unknown kind", ALL, |s| {
        s.refused(&framed(header(1, 1, [54, 0, 34, 16]), 3000));
        s.refused(&framed(header(0, 1, SOUND), 3000));
        for kind in (2..=255).filter(|kind| *kind != 4) {
            s.refused(&framed(header(1, kind, SOUND), 3000));
        }
    }),
    ("a checksum outside the frame", ALL, |s| {
        for (start, offset) in [(0, 0), (13, 16), (34, 65), (99, 0), (100, 0), (34, 65_535), (65_535, 65_535)]
        {
            s.refused(&framed(header(1, 0, [0, 0, start, offset]), 100));
        }
    }),
    ("headers longer than the frame", ALL, |s| s.refused(&framed(header(1, 1, [101, 1000, 34, 16]), 100))),
    ("flags that nobody knows, and a number of buffers, are ignored", ALL, |s| {
        let mut bytes = header(0xfe, 0, [0; 4]);
        bytes[10..].copy_from_slice(&[0xff, 0xff]);
        s.send(bytes, 100);
    }),
    ("a spoofed source address is passed on", MERGED, |s| {
        let mut bytes = frame(60, 1);
        bytes[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
        assert_ne!(bytes[6..12], MAC);
        s.offer(&[&[0; HEADER][..], &bytes].concat(), &[]);
        assert_eq!(s.cable.far().got.pop().map(|(_, got)| got), Some(bytes));
    }),
    ("a transmit buffer that is to be written", MERGED, |s| {
        s.transmit.add(&s.m, &[Segment::writable(s.block(64), 100)]).expect("room");
        s.transmit.publish(&s.m);
        s.ring();
        assert_eq!(s.transmit.pop(&s.m).unwrap().unwrap().written, 0);
        assert_eq!(s.pmm.device(NET).queues[TRANSMIT].malformed, 1);
    }),
    ("a receive buffer that is to be read", MERGED, |s| {
        s.receive.add(&s.m, &[Segment::readable(s.block(0), 100)]).expect("room");
        s.receive.publish(&s.m);
        s.cable.send(&frame(60, 1));
        s.ring();
        assert_eq!(s.receive.pop(&s.m).unwrap().unwrap().written, 0);
        assert_eq!(s.pmm.device(NET).queues[RECEIVE].malformed, 1);
    }),
    ("receive buffers without room for a header", MERGED, |s| {
        for len in 1..HEADER as u32 {
            s.post(len, len);
        }
        assert_eq!(s.pmm.device(NET).queues[RECEIVE].malformed, HEADER as u64 - 1);
    }),
    ("receive starvation: the host end is not asked for what nobody has room for", MERGED, |s| {
        let before = s.cable.far().asked;
        for seed in 0..100 {
            s.cable.send(&frame(1000, seed));
            s.ring();
        }
        assert_eq!(s.cable.far().asked, before);
        assert_eq!(s.cable.far().to_guest.len(), 100);
    }),
    ("a frame larger than all buffers, without merging", 0, |s| {
        s.post(0, 100);
        s.cable.send(&frame(1000, 1));
        s.ring();
        assert_eq!(s.cable.far().dropped, 1);
        assert!(s.receive.pop(&s.m).unwrap().is_none(), "the buffer is kept for the next one");
        s.cable.send(&frame(60, 2));
        s.ring();
        assert_eq!(s.receive.pop(&s.m).unwrap().map(|used| used.written), Some(72));
    }),
    ("a frame that waits for buffers of the smallest size, more than one may have", MERGED, |s| {
        s.post(0, HEADER as u32);
        s.cable.send(&frame(1000, 1));
        for index in 1..64 {
            s.post(index, HEADER as u32);
            assert!(s.receive.pop(&s.m).unwrap().is_none() || s.cable.far().dropped == 1);
        }
        assert_eq!(s.cable.far().dropped, 1, "too many buffers for one frame");
    }),
    ("a reset in the middle of a frame", MERGED, |s| {
        s.post(0, 100);
        s.cable.send(&frame(1000, 1));
        s.ring();
        s.cable.far().stuck = true;
        s.offer(&framed([0; HEADER], 60), &[]);
        assert_eq!(s.transmit.in_flight(), 1);
        s.reset();
        assert!(s.cable.far().got.is_empty(), "what was held before the reset is gone");
        s.post(0, BLOCK);
        assert!(s.receive.pop(&s.m).unwrap().is_none());
    }),
    ("a flood", MERGED, |s| {
        let bytes = framed([0; HEADER], 60);
        s.m.copy_out(s.block(64), &bytes);
        for _ in 0..1000 {
            while s.transmit.add(&s.m, &[Segment::readable(s.block(64), bytes.len() as u32)]).is_ok() {}
            s.transmit.publish(&s.m);
            s.ring();
            while s.transmit.pop(&s.m).expect("a sound ring").is_some() {}
            assert_eq!(s.transmit.in_flight(), 0);
        }
        assert_eq!(s.cable.far().got.len(), 64_000);
    }),
    ("a header rewritten while it is parsed", ALL, |s| {
        let at = s.block(64);
        let bytes = framed(header(1, 1, SOUND), 3000);
        s.m.copy_out(at, &bytes);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let m = s.m;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut n = 0u32;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    m.write32(at + n % 3 * 4, n >> 8);
                }
            });
            for _ in 0..5000 {
                s.transmit.add(&s.m, &[Segment::readable(at, bytes.len() as u32)]).expect("room");
                s.transmit.publish(&s.m);
                s.ring();
                while s.transmit.pop(&s.m).expect("a sound ring").is_some() {}
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        // Whatever came through was checked as a whole.
        for (offload, bytes) in std::mem::take(&mut s.cable.far().got) {
            if let hvl_shared_abi::wire::net::Checksum::Missing { start, at } = offload.checksum {
                assert!(start >= 14 && start <= at && usize::from(at) + 2 <= bytes.len());
            }
            assert!(offload.segments.is_none_or(|segments| segments.size != 0));
        }
    }),
];

fn run(features: u64, act: fn(&mut Stage)) {
    let mut stage = Stage::set(features);
    let end = layout(POOL).devices()[NET].pool.end();
    for at in (end..LEN).step_by(4) {
        stage.m.write32(at, !at);
    }
    act(&mut stage);
    for at in (end..LEN).step_by(4) {
        assert_eq!(stage.m.read32(at), !at, "offset {at:#x} was written");
    }
    assert_eq!((stage.pmm.device(NET).fault, stage.pmm.device(RNG).fault), ("none", "none"));
    stage.works();
    let Stage { m, pmm, cable, .. } = stage;
    // The next guest.
    Stage::boot(m, pmm, cable, MERGED).works();
}

#[test]
fn no_scenario_of_a_hostile_guest_harms_the_card() {
    let table = SCENARIOS.iter().map(|(name, features, act)| (*name, || run(*features, *act)));
    hvl_test_kit::table::run("The network card, from the guest", table);
}
