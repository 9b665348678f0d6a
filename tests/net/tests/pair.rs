//! The frontend's card and the PMM's, over a cable in memory.

use hvl_frontend::adapter::embassy_net_driver::{Card, Waking};
use hvl_frontend::adapter::smoltcp::Phy;
use hvl_frontend::device::NotNow;
use hvl_frontend::device::net::{
    Checksum, MAX_FRAME, Net, NetStorage, Offload, Options, Protocol, Segments, SendError,
};
use hvl_frontend::device::rng::{Rng, RngStorage};
use hvl_net_tests::{Cable, MAC, NET, Pmm, TestBoard, frame, leak, region};
use hvl_shared_abi::wire::net::{
    F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_HOST_TSO4, F_MRG_RXBUF, OFFLOADS, Transport,
};

const POOL: u32 = 0x4_0000;

struct World {
    cable: Cable,
    board: TestBoard,
    pmm: Pmm,
    net: Net<'static, TestBoard>,
    rng: Rng<'static, TestBoard>,
}

impl World {
    fn new(pool: u32, features: u64, options: Options) -> World {
        let (m, cable) = (region(), Cable::default());
        cable.far().features = features;
        let board = TestBoard::new(m);
        let link = board.attach();
        let net = Net::open(&link, leak(NetStorage::<64, 64>::NEW), options).unwrap();
        let rng = Rng::open(&link, leak(RngStorage::<8>::NEW)).unwrap();
        let pmm = Pmm::start(m, &cable, pool, None);
        let mut world = World { cable, board, pmm, net, rng };
        world.settle();
        assert_eq!(world.net.mac(), Ok(Some(MAC)));
        world
    }
    fn settle(&mut self) {
        for _ in 0..6 {
            self.net.link().poll();
            self.pmm.service();
            self.board.pass(20_000);
        }
    }
    fn restart(&mut self, pool: u32) {
        let m = self.board.mem;
        self.pmm = Pmm::start(m, &self.cable, pool, None);
        self.settle();
    }
    /// Transmits, and returns what arrived.
    fn out(&mut self, bytes: &[u8], offload: Offload) -> (Offload, Vec<u8>) {
        self.net.transmit(bytes, offload).unwrap();
        self.pmm.service();
        let mut far = self.cable.far();
        assert_eq!(far.got.len(), 1);
        far.got.remove(0)
    }
    fn entropy(&mut self) -> bool {
        (0..8).any(|_| {
            let done = self.rng.fill(&mut [0; 16]);
            self.pmm.service();
            done.is_ok()
        })
    }
}

const ALL: Options = Options { ordinal: 0, checksums: true, segments: true };

fn segments() -> Offload {
    let checksum = Checksum::Missing { start: 34, at: 50 };
    Offload { checksum, segments: Some(Segments { protocol: Protocol::Tcp4, size: 1448, headers: 66 }) }
}

#[test]
fn frames_of_every_length_arrive_whole_whatever_the_pool() {
    // Blocks of 2 KiB, 512 and 64 bytes.
    for pool in [POOL, 0x1_0000, 0x2000] {
        let mut world = World::new(pool, 0, Options::default());
        let lens = [14usize, 15, 52, 53, 60, 500, 501, 1023, 1500, 1514, 1518];
        let limit = (pool / 2) as usize - 12;
        for (len, seed) in lens.into_iter().filter(|&len| len.div_ceil(64) < 48 && len <= limit).zip(0..) {
            let sent = frame(len, seed);
            assert_eq!(
                world.out(&sent, Offload::default()),
                (Offload::default(), sent.clone()),
                "{pool:#x} {len}"
            );
            world.cable.send(&sent);
            world.pmm.service();
            let mut got = [0; 1518];
            let received = world.net.receive(&mut got).unwrap();
            assert_eq!((received.len, received.offload), (len, Offload::default()));
            assert_eq!(got[..len], sent);
            assert_eq!(world.net.receive(&mut got), Err(NotNow::WouldBlock));
            world.pmm.service();
        }
        // Again and again: no block is lost on the way.
        for turn in 0..500 {
            let sent = frame(1000, turn as u8);
            assert_eq!(world.out(&sent, Offload::default()).1, sent, "{pool:#x} {turn}");
        }
        assert_eq!(world.net.dropped(), (0, 0));
    }
}

#[test]
fn the_longest_frame_goes_both_ways_with_its_offloads_where_they_were_accepted() {
    let mut world = World::new(POOL, OFFLOADS, ALL);
    assert_eq!(world.cable.far().accepted & OFFLOADS, OFFLOADS);
    let mut got = vec![0; MAX_FRAME];
    for turn in 0..100 {
        let sent = frame(MAX_FRAME - turn, turn as u8);
        assert_eq!(world.out(&sent, segments()), (segments(), sent.clone()));
        world.cable.far().to_guest.push_back((segments(), sent.clone()));
        world.pmm.service();
        let received = world.net.receive(&mut got).unwrap();
        assert_eq!((received.len, received.offload), (sent.len(), segments()));
        assert!(got[..received.len] == sent);
        world.pmm.service();
    }
}

#[test]
fn what_was_not_accepted_is_neither_sent_nor_received() {
    let mut world = World::new(POOL, OFFLOADS, Options::default());
    assert_eq!(world.cable.far().accepted & OFFLOADS, 0);
    assert_eq!(world.net.transmit(&frame(60, 0), segments()), Err(SendError::NotAccepted));
    assert_eq!(world.net.transmit(&frame(13 + 1, 0)[..13], Offload::default()), Err(SendError::Length));
    // An end that forgets what was accepted, or whose frame came before that: delivered as it stands, with half a
    // checksum, or as long as many, it would be wrong. So it is dropped and counted, and the next one comes.
    world.cable.far().to_guest.push_back((segments(), frame(100, 1)));
    let missing = Checksum::Missing { start: 14, at: 6 };
    world
        .cable
        .far()
        .to_guest
        .push_back((Offload { checksum: missing, ..Offload::default() }, frame(100, 2)));
    world.cable.send(&frame(100, 3));
    world.pmm.service();
    let mut got = [0; 1518];
    let received = world.net.receive(&mut got).unwrap();
    assert_eq!((received.offload, &got[..received.len]), (Offload::default(), &*frame(100, 3)));
    assert_eq!(world.cable.far().dropped, 2);
    assert!(world.net.receive(&mut got).is_err(), "nothing else comes");
    // Only some of them.
    let world = World::new(POOL, F_CSUM | F_GUEST_CSUM | F_HOST_TSO4, ALL);
    let accepted = world.cable.far().accepted;
    assert_eq!(accepted & (OFFLOADS | F_MRG_RXBUF), F_CSUM | F_GUEST_CSUM | F_HOST_TSO4 | F_MRG_RXBUF);
    assert_eq!(accepted & F_GUEST_TSO4, 0);
}

#[test]
fn a_stuck_cable_holds_frames_up_and_nothing_else() {
    let mut world = World::new(POOL, 0, Options::default());
    world.cable.far().stuck = true;
    let mut taken = 0u8;
    while world.net.transmit(&frame(1000, taken), Offload::default()).is_ok() {
        taken += 1;
        world.pmm.service();
        assert!(taken <= 64, "a queue without an end");
    }
    assert_eq!(world.net.transmit(&frame(60, 0), Offload::default()), Err(SendError::WouldBlock));
    for _ in 0..1000 {
        assert!(world.entropy());
    }
    world.cable.send(&frame(60, 1));
    world.pmm.service();
    assert!(world.net.receive(&mut [0; 1518]).is_ok(), "the other direction goes on");
    world.cable.far().stuck = false;
    world.pmm.service();
    let got = std::mem::take(&mut world.cable.far().got);
    assert!(got.iter().map(|(_, bytes)| bytes.clone()).eq((0..taken).map(|seed| frame(1000, seed))));
    assert!(world.net.transmit(&frame(60, 0), Offload::default()).is_ok());
}

#[test]
fn frames_for_a_guest_without_room_wait_at_the_host() {
    let mut world = World::new(POOL, 0, Options::default());
    for seed in 0..200 {
        world.cable.send(&frame(1000, seed));
    }
    world.pmm.service();
    let left = world.cable.far().to_guest.len();
    assert!((200 - 64..200).contains(&(left + 64)) || left == 200 - 64, "{left} wait");
    let mut got = [0; 1518];
    for seed in 0..200 {
        let received = world.net.receive(&mut got).unwrap();
        assert_eq!(got[..received.len], frame(1000, seed));
        world.pmm.service();
    }
    assert_eq!(world.cable.far().dropped, 0);
}

#[test]
fn a_frame_that_fits_nowhere_is_dropped_and_counted() {
    let mut world = World::new(POOL, 0, Options::default());
    world.cable.send(&frame(1000, 1));
    world.cable.send(&frame(100, 2));
    world.pmm.service();
    let mut small = [0; 500];
    let received = world.net.receive(&mut small).unwrap();
    assert_eq!(small[..received.len], frame(100, 2));
    assert_eq!(world.net.dropped(), (0, 1));
    // One byte short is too short.
    world.cable.send(&frame(501, 3));
    world.pmm.service();
    assert!(world.net.receive(&mut small).is_err());
    assert_eq!(world.net.dropped(), (0, 2));
}

#[test]
fn the_network_goes_on_by_itself_when_the_pmm_comes_again_and_no_block_is_lost() {
    let mut world = World::new(POOL, OFFLOADS, ALL);
    for turn in 0..60 {
        // Frames of several blocks are on their way, and one is claimed, while the PMM dies.
        world.cable.far().stuck = true;
        let mut sent = 0;
        while world.net.transmit(&frame(20_000, turn), segments()).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, 6, "turn {turn}: blocks were lost");
        let _ = world.net.claim(3000);
        world.pmm.service();
        world.cable.far().stuck = false;
        // Every third time with another layout.
        world.restart(if turn % 3 == 2 { 0x2_0000 } else { POOL });
        assert!(world.cable.far().got.is_empty(), "what was on its way is dropped");
        assert_eq!(world.net.mac(), Ok(Some(MAC)));
        let bytes = frame(1514, turn);
        assert_eq!(world.out(&bytes, Offload::default()).1, bytes);
        world.cable.send(&bytes);
        world.pmm.service();
        assert_eq!(world.net.receive(&mut [0; 1518]).map(|got| got.len), Ok(1514));
        world.restart(POOL);
        assert_eq!(world.pmm.device(NET).fault, "none");
    }
}

#[test]
fn a_frame_is_written_in_place() {
    let mut world = World::new(0x1_0000, 0, Options::default());
    let bytes = frame(1400, 9);
    let mut claim = world.net.claim(1500).unwrap();
    assert_eq!(claim.room(), 1500);
    assert_eq!(claim.write_at(700, &bytes[700..]), Ok(true));
    assert_eq!(claim.write_at(0, &bytes[..700]), Ok(true));
    assert_eq!(claim.write_at(1400, &[0; 101]), Ok(false));
    assert_eq!(claim.len(), 1400);
    claim.commit(Offload::default()).unwrap();
    world.pmm.service();
    assert_eq!(world.cable.far().got.remove(0).1, bytes);
    // A claim that is dropped costs nothing.
    for _ in 0..1000 {
        let mut claim = world.net.claim(1500).unwrap();
        assert_eq!(claim.put(&bytes), Ok(1400));
    }
    assert_eq!(world.out(&bytes, Offload::default()).1, bytes);
}

/// An UDP datagram from 10.0.0.1 to 10.0.0.2, complete.
fn udp() -> Vec<u8> {
    let mut frame = MAC.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    frame.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0x66, 0xcb, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 9, 0, 7, 0, 12, 0, 0]);
    frame.extend(b"abcd");
    Transport::find(&frame).unwrap().fill(&mut frame);
    frame
}

/// What a stack on the card answers, with checksums left or not.
fn echo(world: &mut World) -> Vec<(Offload, Vec<u8>)> {
    use smoltcp::iface::{Config, Interface, SocketSet};
    use smoltcp::socket::udp;
    use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};
    let (mut received, mut sent) = ([0; 1518], [0; 1518]);
    let mut phy = Phy::new(&mut world.net, &mut received, &mut sent);
    let at = smoltcp::time::Instant::from_millis(1);
    let mut interface = Interface::new(Config::new(EthernetAddress(MAC).into()), &mut phy, at);
    interface.update_ip_addrs(|all| _ = all.push(IpCidr::new(Ipv4Address::new(10, 0, 0, 2).into(), 24)));
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut sockets = SocketSet::new(Vec::new());
    let handle = sockets.add(udp::Socket::new(buffer(), buffer()));
    sockets.get_mut::<udp::Socket>(handle).bind(7).unwrap();
    for turn in 0..10 {
        interface.poll(smoltcp::time::Instant::from_millis(1 + turn * 1000), &mut phy, &mut sockets);
        let socket = sockets.get_mut::<udp::Socket>(handle);
        if let Ok((bytes, from)) = socket.recv().map(|(bytes, from)| (bytes.to_vec(), from)) {
            socket.send_slice(&bytes, from.endpoint).unwrap();
        }
        interface.poll(smoltcp::time::Instant::from_millis(2 + turn * 1000), &mut phy, &mut sockets);
        world.pmm.service();
        // Whoever asks for an address is told.
        let mut far = world.cable.far();
        let asks = far.got.iter().position(|(_, bytes)| bytes[12..14] == [8, 6] && bytes[21] == 1);
        if let Some(asked) = asks.map(|at| far.got.remove(at).1) {
            let mut answer =
                [&MAC[..], &[2, 0, 0, 0, 0, 1], &asked[12..20], &[0, 2, 2, 0, 0, 0, 0, 1]].concat();
            answer.extend(&asked[38..42]);
            answer.extend(MAC);
            answer.extend(&asked[28..32]);
            far.to_guest.push_back((Offload::default(), answer));
        }
        drop(far);
        world.pmm.service();
    }
    std::mem::take(&mut world.cable.far().got)
}

#[test]
fn a_stack_gets_and_sends_right_checksums_whoever_computes_them() {
    let checksums = Options { checksums: true, ..Options::default() };
    for (features, options) in [(0, Options::default()), (0, checksums), (OFFLOADS, checksums)] {
        let mut world = World::new(POOL, features, options);
        world.cable.send(&udp());
        let mut wrong = udp();
        wrong[44] ^= 1;
        world.cable.send(&wrong);
        if features != 0 {
            // The host leaves the checksum: what stands there is the pseudo-header's.
            let mut left = udp();
            let checksum = Transport::find(&left).unwrap().leave(&mut left);
            world.cable.far().to_guest.push_back((Offload { checksum, segments: None }, left));
        }
        world.pmm.service();
        let got = echo(&mut world);
        assert_eq!(got.len(), if features == 0 { 1 } else { 2 }, "{options:?} {got:?}");
        for (offload, mut bytes) in got {
            let found = Transport::find(&bytes).expect("a datagram");
            match offload.checksum {
                Checksum::Missing { start, at } => {
                    assert!(features != 0 && options.checksums);
                    hvl_shared_abi::wire::net::complete(&mut bytes, start, at);
                }
                _ => assert!(features == 0 || !options.checksums),
            }
            assert!(found.is_right(&bytes), "{options:?}");
            assert_eq!(&bytes[42..46], b"abcd");
        }
    }
}

#[test]
fn embassys_driver_wakes_its_task_for_what_comes_after_it_looked() {
    use embassy_net_driver::{Driver, HardwareAddress, LinkState, RxToken, TxToken};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use std::task::{Context, Wake};

    #[derive(Default)]
    struct Woken(AtomicU32);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    static WAKING: Waking = Waking::new();
    let World { cable, mut pmm, mut net, .. } = World::new(POOL, OFFLOADS, ALL);
    let woken = Arc::new(Woken::default());
    let waker = woken.clone().into();
    let mut context = Context::from_waker(&waker);
    let (mut received, mut sent) = ([0; 1518], [0; 1518]);
    let mut card = Card::new(&mut net, &WAKING, MAC, &mut received, &mut sent);
    assert_eq!(card.hardware_address(), HardwareAddress::Ethernet(MAC));
    assert_eq!(card.capabilities().max_transmission_unit, 1514);
    assert!(card.link_state(&mut context) == LinkState::Up);
    assert!(card.receive(&mut context).is_none());
    let before = woken.0.load(SeqCst);
    WAKING.wake();
    assert_eq!(woken.0.load(SeqCst), before + 1);
    cable.send(&frame(100, 5));
    pmm.service();
    let (got, room) = card.receive(&mut context).expect("a frame");
    got.consume(|bytes| assert_eq!(bytes, frame(100, 5)));
    room.consume(60, |bytes| bytes.copy_from_slice(&frame(60, 6)));
    card.transmit(&mut context).expect("room").consume(70, |bytes| bytes.copy_from_slice(&frame(70, 7)));
    pmm.service();
    let sent: Vec<_> = cable.far().got.drain(..).map(|(_, bytes)| bytes).collect();
    assert_eq!(sent, [frame(60, 6), frame(70, 7)]);
    // A ring between the look and the sleep is not lost.
    assert!(card.receive(&mut context).is_none());
    cable.send(&frame(80, 8));
    pmm.service();
    WAKING.wake();
    assert!(woken.0.load(SeqCst) > before + 1);
    assert!(card.receive(&mut context).is_some());
}
