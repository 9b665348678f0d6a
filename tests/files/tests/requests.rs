//! What a hostile or broken guest hands the file device, by name: each gets no answer, an empty completion and a count,
//! and the next good request is served. What the messages say is the server's business, and tested there.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use hvl_pmm::device::p9::{P9, PENDING};
use hvl_pmm::host::{MessageServer, Transfer};
use hvl_pmm::link::{Link, LinkPlan, Member};
use hvl_shared_abi::epoch::{DeviceState, DriverDevice, DriverHalf, PmmLook, driver_bell};
use hvl_shared_abi::ring::split::{DeviceSlot, DriverRing, DriverSlot};
use hvl_shared_abi::ring::{Segment, Used};
use hvl_shared_abi::wire::p9::{MAX_MSIZE, Payload, Reply, Request, WRITE_PREFIX};
use hvl_shared_abi::{Attribute, DeviceSpec, Features, Layout, Mem, Region, Window};

const BASE: u64 = 0x3700_0000;
const LEN: u32 = 0x40_0000;

/// A server that keeps what it gets until the test lets it answer, each with as many bytes as the test says.
#[derive(Default)]
struct Desk {
    asked: Vec<(usize, Vec<u8>, usize)>,
    answers: VecDeque<(usize, Vec<u8>)>,
    full: bool,
    forgotten: u32,
    /// Where data is moved at once, and how much of what is asked for at the most.
    at_once: Option<(Region, usize)>,
    /// The used ring, and its index when data was moved.
    used: u32,
    published: Vec<u16>,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<Desk>>);

impl Server {
    fn desk<T>(&self, with: impl FnOnce(&mut Desk) -> T) -> T {
        with(&mut self.0.lock().unwrap())
    }
    /// Answers everything with the tag of the request.
    fn answer_all(&self, len: usize) {
        self.desk(|desk| {
            let asked = std::mem::take(&mut desk.asked);
            desk.answers.extend(asked.into_iter().map(|(id, request, _)| (id, vec![request[5]; len])));
        });
    }
}

impl MessageServer for Server {
    fn submit(&mut self, id: usize, len: usize, room: usize, fill: &mut dyn FnMut(&mut [u8])) -> bool {
        self.desk(|desk| {
            if desk.full {
                return false;
            }
            let mut request = vec![0; len];
            fill(&mut request);
            desk.asked.push((id, request, room));
            true
        })
    }
    fn at_once(&mut self, Transfer { request, data, answer }: Transfer<'_>) -> Option<u32> {
        let (m, most) = self.desk(|desk| desk.at_once)?;
        self.desk(|desk| desk.published.push(m.read16(desk.used + 2)));
        let places = data.iter().flat_map(|piece| {
            let at = piece.start().addr().get() - m.base().addr().get();
            at as u32..(at + piece.len()) as u32
        });
        let places: Vec<u32> = places.take(most).collect();
        let (reply, payload) = match request.message {
            Request::Read { .. } => {
                places.iter().for_each(|&at| m.write8(at, b'r'));
                (Reply::Read { count: Payload(places.len() as u32) }, places.len() as u32)
            }
            _ => {
                let bytes = places.iter().map(|&at| m.read8(at)).collect();
                self.desk(|desk| desk.asked.push((0, bytes, 0)));
                (Reply::Write { count: places.len() as u32 }, 0)
            }
        };
        reply.emit_prefix(request.tag, answer).unwrap();
        Some(payload)
    }
    fn answers(&mut self, take: &mut dyn FnMut(usize, &[u8])) {
        while let Some((id, answer)) = self.desk(|desk| desk.answers.pop_front()) {
            take(id, &answer);
        }
    }
    fn forget(&mut self) {
        self.desk(|desk| {
            desk.forgotten += 1;
            desk.asked.clear();
            desk.answers.clear();
        });
    }
}

/// A raw guest on a file device with a queue of 128 entries, in time that only the test moves.
struct Stage {
    m: Region,
    link: Link<'static, Region>,
    server: Server,
    ring: DriverRing<'static>,
    half: DriverHalf,
    pool: u32,
    now: u64,
}

impl Stage {
    fn set() -> Stage {
        let words: Vec<AtomicU32> = (0..LEN / 4).map(|_| AtomicU32::new(0)).collect();
        let m = Region::in_words(words.leak(), Attribute::Coherent);
        let spec = DeviceSpec { queues: [128, 0, 0, 0], pool: 0x20_0000, ..DeviceSpec::P9 };
        let layout = Layout::place(&[spec], LEN).unwrap();
        let server = Server::default();
        let device = Box::leak(Box::new(P9::new(server.clone(), b"t").unwrap()));
        let slots = vec![DeviceSlot::NEW; Link::<Region>::slots_for(&layout.devices()[0])].leak();
        let members: [Member<'static, Region>; 1] = [(device, slots)];
        let plan = LinkPlan { layout, base: BASE, doorbell_can_lose: false, gone_after: None };
        let link = Link::publish(m, plan, members, None, None).unwrap();
        let place = layout.devices()[0];
        server.desk(|desk| desk.used = place.queues[0].used);
        let ring = DriverRing::new(place.queues[0], BASE, vec![DriverSlot::NEW; 128].leak()).unwrap();
        let mut stage = Stage { m, link, server, ring, half: DriverHalf::new(), pool: place.pool.at, now: 0 };
        stage.boot();
        stage
    }

    fn boot(&mut self) {
        let PmmLook::Present(epoch) = DriverHalf::look(&self.m) else { panic!("no PMM") };
        let devices = DriverHalf::devices(&self.m, |_, _, _| {}).unwrap();
        assert!(self.half.hello(&self.m, epoch, devices));
        self.serve();
        assert_eq!(self.half.adopted(&self.m), Some(true));
        self.ring.start(&self.m, Features::VERSION_1);
        let driver = DriverDevice(Window::LINK);
        driver.start(&self.m, self.half.epoch(), Features::VERSION_1);
        self.serve();
        assert_eq!(driver.state(&self.m, &self.half), DeviceState::Running);
    }

    fn serve(&mut self) {
        for _ in 0..20 {
            self.now += 20_000;
            self.link.service(self.now);
            // It is alive, whatever else it does.
            driver_bell::acted(&self.m, driver_bell::pmm_bell(&self.m));
        }
    }

    /// Posts what stands in `bytes`, with `room` for the answer.
    fn post(&mut self, at: u32, bytes: &[u8], room: u32) {
        self.m.copy_out(self.pool + at, bytes);
        self.post_in_parts(at, &[bytes.len() as u32], &[room]);
    }

    /// The same, from what stands there already, in segments of these lengths, one behind the other.
    fn post_in_parts(&mut self, at: u32, readable: &[u32], writable: &[u32]) {
        let mut at = self.pool + at;
        let mut next = |segment: fn(u32, u32) -> Segment, len: u32| {
            let start = at;
            at += len;
            (len != 0).then(|| segment(start, len))
        };
        let mut chain: Vec<_> = readable.iter().filter_map(|&len| next(Segment::readable, len)).collect();
        chain.extend(writable.iter().filter_map(|&len| next(Segment::writable, len)));
        self.ring.add(&self.m, &chain).unwrap();
        self.ring.publish(&self.m);
    }

    fn pop(&mut self) -> Option<Used> {
        self.serve();
        self.ring.pop(&self.m).expect("the ring is sound")
    }

    fn malformed(&self) -> u64 {
        self.link.snapshot().devices[0].as_ref().unwrap().queues[0].malformed
    }

    /// It is completed with nothing, counted, and the server has not seen it.
    fn refused(&mut self, what: &str, bytes: &[u8], room: u32) {
        let before = self.malformed();
        self.post(0, bytes, room);
        let used = self.pop().unwrap_or_else(|| panic!("{what}: nobody answers"));
        assert_eq!((used.written, self.malformed()), (0, before + 1), "{what}");
        assert!(self.server.desk(|desk| desk.asked.is_empty()), "{what}: the server was asked");
        self.works(what);
    }

    fn works(&mut self, what: &str) {
        self.post(0, &message(7), 64);
        self.serve();
        self.server.answer_all(20);
        assert_eq!(self.pop().map(|used| used.written), Some(20), "after {what}");
    }
}

fn message(tag: u16) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let used = Request::Clunk { fid: 1 }.emit(tag, &[], &mut bytes).unwrap();
    bytes.truncate(used);
    bytes
}

#[test]
fn a_size_that_is_not_the_chains() {
    let mut stage = Stage::set();
    for size in [0u32, 6, 7, 10, 12, 100, MAX_MSIZE, u32::MAX] {
        let mut bytes = message(1);
        bytes[..4].copy_from_slice(&size.to_le_bytes());
        stage.refused(&format!("size {size} of 11"), &bytes, 64);
    }
}

#[test]
fn fewer_bytes_than_a_header() {
    let mut stage = Stage::set();
    for len in 0..7u8 {
        stage.refused(&format!("{len} bytes"), &vec![len; len.into()], 64);
    }
}

#[test]
fn no_room_for_an_answer() {
    let mut stage = Stage::set();
    for room in [0, 1, 10] {
        stage.refused(&format!("room for {room} bytes"), &message(1), room);
    }
}

#[test]
fn a_message_above_a_mebibyte() {
    let mut stage = Stage::set();
    let len = MAX_MSIZE as usize + 1;
    let mut bytes = vec![0; len];
    bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
    stage.refused("a mebibyte and a byte", &bytes, 64);
}

#[test]
fn an_answer_that_is_longer_than_its_room_is_cut() {
    let mut stage = Stage::set();
    let marked = [0xee; 64];
    stage.m.copy_out(stage.pool, &[0xee; 256]);
    stage.post(0, &message(0x5a), 16);
    stage.serve();
    stage.server.answer_all(100);
    assert_eq!(stage.pop().map(|used| used.written), Some(16));
    let mut after = [0; 64];
    stage.m.copy_in(stage.pool + 11 + 16, &mut after);
    assert_eq!(after, marked, "behind the room");
}

#[test]
fn more_requests_than_the_server_holds_wait_and_are_all_served() {
    let mut stage = Stage::set();
    let count = 60u32;
    for number in 0..count {
        stage.post(number * 128, &message(number as u16), 64);
    }
    let mut served = 0;
    while served < count {
        stage.serve();
        let asked = stage.server.desk(|desk| desk.asked.len());
        assert!(asked <= PENDING && asked != 0, "{asked} at the server, {served} served");
        stage.server.answer_all(20);
        while stage.pop().is_some() {
            served += 1;
        }
    }
}

#[test]
fn a_server_without_room_is_asked_again() {
    let mut stage = Stage::set();
    stage.server.desk(|desk| desk.full = true);
    stage.post(0, &message(1), 64);
    assert_eq!(stage.pop(), None);
    stage.server.desk(|desk| desk.full = false);
    stage.serve();
    stage.server.answer_all(20);
    assert_eq!(stage.pop().map(|used| used.written), Some(20));
}

#[test]
fn what_a_rebooted_guest_has_asked_is_answered_to_nobody() {
    let mut stage = Stage::set();
    stage.post(0, &message(1), 64);
    stage.serve();
    let stale = stage.server.desk(|desk| desk.asked.clone());
    assert_eq!(stale.len(), 1);
    let forgotten = stage.server.desk(|desk| desk.forgotten);
    stage.boot();
    assert!(stage.server.desk(|desk| desk.forgotten) > forgotten, "the server is told");
    stage.m.copy_out(stage.pool, &[0; 256]);
    // A server that answers all the same reaches nobody.
    stage.server.desk(|desk| desk.answers.extend(stale.into_iter().map(|(id, ..)| (id, vec![0xdd; 50]))));
    assert_eq!(stage.pop(), None);
    assert!((0..256).all(|at| stage.m.read8(stage.pool + at) != 0xdd), "the old answer is in shared memory");
    stage.works("a reboot");
}

#[test]
fn thousands_of_reboots_with_requests_under_way() {
    let mut stage = Stage::set();
    for round in 0..2000u32 {
        stage.post(0, &message(round as u16), 64);
        stage.now += 20_000;
        stage.link.service(stage.now);
        stage.boot();
    }
    stage.works("the reboots");
}

const READ_BYTES: u32 = 23;

fn read(count: u32) -> Vec<u8> {
    let mut bytes = vec![0; READ_BYTES as usize];
    Request::Read { fid: 1, offset: 0, count }.emit(3, &[], &mut bytes).unwrap();
    bytes
}

#[test]
fn data_that_is_read_at_once_goes_where_it_belongs_and_nowhere_else() {
    let mut stage = Stage::set();
    // Asked for, moved at the most, room in segments, moved.
    for (count, most, room, moved) in [
        (300, 300, &[5, 1, 20, 100, 400][..], 300),
        (300, 50, &[11, 400], 50),
        (300, 300, &[12, 3], 4),
        (10, 300, &[400], 10),
        (300, 0, &[400], 0),
    ] {
        let m = stage.m;
        stage.server.desk(|desk| desk.at_once = Some((m, most)));
        m.copy_out(stage.pool, &[b'.'; 1000]);
        m.copy_out(stage.pool, &read(count));
        stage.post_in_parts(0, &[7, 16], room);
        assert_eq!(stage.pop().map(|used| used.written), Some(11 + moved), "{count} {most} {room:?}");
        let mut answer = [0; 900];
        m.copy_in(stage.pool + READ_BYTES, &mut answer);
        let (answer, after) = answer.split_at(11 + moved as usize);
        let parsed = Reply::parse(answer).expect("a whole answer");
        assert_eq!((parsed.tag, parsed.message), (3, Reply::Read { count: Payload(moved) }));
        assert!(parsed.payload.iter().all(|byte| *byte == b'r'), "{count} {most} {room:?}");
        assert!(after.iter().all(|byte| *byte == b'.'), "{count} {most} {room:?}: behind the answer");
    }
}

#[test]
fn data_that_is_written_at_once_is_what_stands_behind_the_head() {
    let mut stage = Stage::set();
    let m = stage.m;
    stage.server.desk(|desk| desk.at_once = Some((m, usize::MAX)));
    let mut bytes = vec![0; 64];
    let message = Request::Write { fid: 1, offset: 0, count: Payload(6) };
    let used = message.emit(3, b"abcdef", &mut bytes).unwrap();
    assert_eq!(used, WRITE_PREFIX + 6);
    m.copy_out(stage.pool, &bytes);
    stage.post_in_parts(0, &[20, 4, 2, 3], &[11]);
    assert_eq!(stage.pop().map(|used| used.written), Some(11));
    assert_eq!(stage.server.desk(|desk| desk.asked.pop().unwrap().1), b"abcdef");
    // A count that is not the message's is no write; whoever gets it as a message says so.
    bytes[19] = 5;
    m.copy_out(stage.pool, &bytes);
    stage.post_in_parts(0, &[used as u32], &[64]);
    stage.serve();
    assert_eq!(stage.server.desk(|desk| desk.asked[0].1.clone()), bytes[..used]);
}

#[test]
fn a_mebibyte_at_once_and_the_other_devices_have_their_turn() {
    let mut stage = Stage::set();
    let m = stage.m;
    stage.server.desk(|desk| desk.at_once = Some((m, usize::MAX)));
    let count = 0x4_0000;
    for i in 0..6 {
        stage.post(i * (count + 0x1000), &read(count), count + 11);
    }
    stage.serve();
    assert_eq!(stage.server.desk(|desk| std::mem::take(&mut desk.published)), [0, 0, 0, 0, 4, 4]);
    while stage.pop().is_some() {}
    // What counts is what was moved, not what was asked for: these are short.
    for i in 0..6 {
        stage.post(i * 0x1000, &read(u32::MAX), 100);
    }
    stage.serve();
    assert_eq!(stage.server.desk(|desk| desk.published.clone()), [6; 6]);
}
