//! Both halves against each other: connections from either side, credit, ends, crowds, restarts.

use std::sync::atomic::Ordering::SeqCst;

use hvl_frontend::Link;
use hvl_frontend::device::DeviceStatus;
use hvl_frontend::device::vsock::{End, Socket, SocketError, Vsock, VsockStorage};
use hvl_shared_abi::wire::vsock::TRANSMIT;
use hvl_shared_abi::{Mem, Region};
use hvl_vsock_tests::{CID, Harbor, Pmm, ROOM, SLOTS, TestBoard, layout, leak, region};

type Sockets = Vsock<'static, TestBoard>;

struct World {
    m: Region,
    harbor: Harbor,
    pmm: Pmm,
    board: TestBoard,
    vsock: Sockets,
}

/// Four connections of 1,000 bytes: a size that no block is a multiple of.
fn open(board: &TestBoard) -> Sockets {
    Vsock::open(&board.attach(), leak(VsockStorage::<4, 1000>::NEW)).unwrap()
}

impl World {
    fn new() -> World {
        let (m, harbor) = (region(), Harbor::default());
        let (pmm, board) = (Pmm::start(m, &harbor), TestBoard::new(m));
        let mut world = World { m, harbor, pmm, vsock: open(&board), board };
        world.settle();
        let (status, state) = (world.vsock.status(), world.vsock.link().state());
        assert_eq!(
            world.vsock.cid(),
            Ok(CID),
            "{status:?} {state:?} {:?} {:?}",
            world.pmm.device(),
            world.vsock.link().counters()
        );
        world
    }
    fn settle(&mut self) {
        for _ in 0..8 {
            self.vsock.poll();
            self.pmm.service();
        }
        self.vsock.poll();
    }
    /// A connection that a client of the host asked for: the guest's handle and the host's slot.
    fn called(&mut self) -> (Socket, usize) {
        let _ = self.vsock.listen(80, 4);
        let slot = self.harbor.ask(80);
        self.settle();
        let (socket, port) = self.vsock.accept(80).unwrap();
        assert_eq!(self.harbor.at(slot, |berth| berth.granted), Some(port));
        (socket, slot)
    }
    /// One that the guest asked for.
    fn calls(&mut self) -> (Socket, usize) {
        self.harbor.sea().listening.insert(99, ());
        let socket = self.vsock.connect(99).unwrap();
        self.settle();
        self.vsock.is_open(socket).unwrap();
        let slot = self.harbor.sea().berths.iter().rposition(|berth| berth.taken).unwrap();
        (socket, slot)
    }
    fn read_all(&mut self, socket: Socket) -> (Vec<u8>, Result<usize, SocketError>) {
        let (mut all, mut part) = (Vec::new(), [0; 333]);
        loop {
            match self.vsock.read(socket, &mut part) {
                Ok(count) if count != 0 => all.extend_from_slice(&part[..count]),
                end => return (all, end),
            }
        }
    }
}

#[test]
fn a_byte_goes_there_and_back_on_a_connection_that_either_side_asked_for() {
    let mut world = World::new();
    for (socket, slot) in [world.called(), world.calls()] {
        world.harbor.send(slot, b"x");
        world.settle();
        let mut byte = [0; 4];
        assert_eq!(world.vsock.read(socket, &mut byte), Ok(1));
        assert_eq!(world.vsock.read(socket, &mut byte[1..]), Err(SocketError::WouldBlock));
        assert_eq!(world.vsock.write(socket, &byte[..1]), Ok(1));
        world.settle();
        assert_eq!(world.harbor.output(slot), b"x");
        assert_eq!(world.vsock.read(socket, &mut []), Ok(0));
        assert_eq!(world.vsock.write(socket, &[]), Ok(0));
    }
}

#[test]
fn nobody_there_is_said_at_once_on_both_sides() {
    let mut world = World::new();
    let socket = world.vsock.connect(4711).unwrap();
    assert_eq!(world.vsock.is_open(socket), Err(SocketError::WouldBlock));
    world.settle();
    assert_eq!(world.vsock.is_open(socket), Err(SocketError::Refused));
    assert_eq!(world.vsock.is_open(socket), Err(SocketError::Closed), "said once");
    let slot = world.harbor.ask(81);
    world.settle();
    assert_eq!(world.harbor.at(slot, |berth| (berth.taken, berth.granted)), (false, None));
    assert_eq!(world.vsock.accept(81), Err(SocketError::Closed));
}

/// Two megabytes each way at once, with readers of odd sizes: every credit is used up many times.
#[test]
fn streams_are_whole_in_both_directions() {
    let mut world = World::new();
    let (socket, slot) = world.called();
    let data: Vec<u8> = (0..2_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    world.harbor.send(slot, &data);
    world.harbor.end_input(slot);
    let (mut sent, mut got) = (0, Vec::new());
    let mut end = Err(SocketError::WouldBlock);
    for _ in 0..200_000 {
        sent += world.vsock.write(socket, &data[sent..data.len().min(sent + 7777)]).unwrap_or(0);
        if end == Err(SocketError::WouldBlock) {
            let (part, now) = world.read_all(socket);
            got.extend(part);
            end = now;
        }
        world.pmm.service();
        if sent == data.len() && end == Ok(0) {
            break;
        }
    }
    world.settle();
    assert_eq!((sent, got.len(), end), (data.len(), data.len(), Ok(0)));
    assert!(got == data && world.harbor.output(slot) == data);
}

#[test]
fn a_client_that_does_not_read_stops_its_own_connection_only() {
    let mut world = World::new();
    let (stuck, slot) = world.called();
    let (other, other_slot) = world.called();
    world.harbor.at(slot, |berth| berth.stuck = true);
    let mut sent = 0;
    for _ in 0..100 {
        sent += world.vsock.write(stuck, &[7; 3000]).unwrap_or(0);
        world.settle();
    }
    assert_eq!(sent, ROOM, "as much as there is room for, and no more");
    assert_eq!(world.vsock.write(stuck, b"x"), Err(SocketError::WouldBlock));
    assert_eq!(world.vsock.write_ready(stuck), Ok(false));
    assert_eq!(world.vsock.write(other, b"works"), Ok(5));
    world.settle();
    assert_eq!(world.harbor.output(other_slot), b"works");
    world.harbor.unstick(slot);
    world.settle();
    assert_eq!(world.vsock.write(stuck, b"x"), Ok(1));
    world.settle();
    assert_eq!(world.harbor.output(slot).len(), ROOM + 1);
}

#[test]
fn a_guest_that_does_not_read_stops_the_socket_and_nothing_else() {
    let mut world = World::new();
    let (lazy, slot) = world.called();
    let (other, other_slot) = world.called();
    world.harbor.send(slot, &[1; 10_000]);
    world.settle();
    assert_eq!(
        world.harbor.at(slot, |berth| berth.input.len()),
        9_000,
        "what the guest has room for is taken"
    );
    world.harbor.send(other_slot, b"hello");
    world.settle();
    assert_eq!(world.read_all(other).0, b"hello");
    for _ in 0..20 {
        let _ = world.read_all(lazy);
        world.settle();
    }
    assert_eq!(world.harbor.at(slot, |berth| berth.input.len()), 0);
}

#[test]
fn everybody_has_a_turn() {
    let mut world = World::new();
    let pairs: Vec<_> = (0..4).map(|_| world.called()).collect();
    for (_, slot) in &pairs {
        world.harbor.send(*slot, &[9; 100_000]);
    }
    let mut got = [0usize; 4];
    for _ in 0..40 {
        world.pmm.service();
        for (count, (socket, _)) in got.iter_mut().zip(&pairs) {
            let mut part = [0; 200];
            *count += world.vsock.read(*socket, &mut part).unwrap_or(0);
        }
    }
    assert!(got.iter().all(|count| *count == got[0] && *count > 5000), "{got:?}");
}

#[test]
fn each_direction_ends_by_itself() {
    let mut world = World::new();
    let (socket, slot) = world.called();
    assert_eq!(world.vsock.write(socket, b"last"), Ok(4));
    world.vsock.shut_down(socket, End::Write).unwrap();
    assert_eq!(world.vsock.write(socket, b"more"), Err(SocketError::Closed));
    world.settle();
    assert!(world.harbor.at(slot, |berth| berth.guest_ends.send && !berth.guest_ends.receive));
    assert_eq!(world.harbor.output(slot), b"last");
    world.harbor.send(slot, b"answer");
    world.harbor.end_input(slot);
    world.settle();
    assert_eq!(world.read_all(socket), (b"answer".to_vec(), Ok(0)));
    assert_eq!(world.read_all(socket), (Vec::new(), Ok(0)), "an end stays an end");
    world.vsock.close(socket);
    world.settle();
    assert_eq!((world.harbor.taken(), world.harbor.at(slot, |berth| berth.finished)), (0, Some(true)));
    assert_eq!(world.vsock.read(socket, &mut [0]), Err(SocketError::Closed));
}

#[test]
fn a_guest_that_reads_no_more_says_so() {
    let mut world = World::new();
    let (socket, slot) = world.called();
    world.vsock.shut_down(socket, End::Read).unwrap();
    world.settle();
    assert!(world.harbor.at(slot, |berth| berth.guest_ends.receive && !berth.guest_ends.send));
    world.harbor.send(slot, b"nobody reads this");
    world.settle();
    assert_eq!(world.vsock.read(socket, &mut [0; 4]), Ok(0));
    assert_eq!(world.vsock.write(socket, b"still"), Ok(5));
    world.settle();
    assert_eq!(world.harbor.output(slot), b"still");
}

#[test]
fn a_client_that_leaves_is_read_to_its_end_first() {
    let mut world = World::new();
    let (socket, slot) = world.called();
    world.harbor.send(slot, &[5; 5000]);
    world.harbor.hang_up(slot);
    let mut got = Vec::new();
    let mut end = Err(SocketError::WouldBlock);
    for _ in 0..100 {
        let (part, now) = world.read_all(socket);
        got.extend(part);
        end = now;
        world.settle();
    }
    assert_eq!((got.len(), end), (5000, Ok(0)));
    assert_eq!(world.vsock.write(socket, b"x"), Err(SocketError::Closed));
    assert_eq!(world.harbor.taken(), 0, "both sides agree that it is over");
    world.vsock.close(socket);
    assert_eq!(world.vsock.counters().reset, 0);
}

#[test]
fn a_client_that_leaves_before_it_is_granted_is_forgotten() {
    let mut world = World::new();
    world.vsock.listen(80, 2).unwrap();
    let slot = world.harbor.ask(80);
    world.harbor.hang_up(slot);
    world.settle();
    assert_eq!((world.harbor.taken(), world.vsock.accept(80)), (0, Err(SocketError::WouldBlock)));
}

#[test]
fn the_backlog_is_bounded_and_closed_places_are_used_again() {
    let mut world = World::new();
    world.vsock.listen(80, 2).unwrap();
    let slots = [(); 3].map(|()| {
        let slot = world.harbor.ask(80);
        world.settle();
        slot
    });
    assert!(world.harbor.at(slots[0], |berth| berth.taken) && world.harbor.at(slots[1], |berth| berth.taken));
    assert_eq!(world.vsock.counters().refused, 1, "the third is turned away");
    for round in 0..100 {
        let (socket, _) = world.vsock.accept(80).unwrap_or_else(|error| panic!("round {round}: {error}"));
        world.vsock.close(socket);
        world.settle();
        world.harbor.ask(80);
        world.settle();
    }
    assert_eq!(world.vsock.counters().refused, 1);
    // The table has a place for each connection, and says so when there is none.
    world.vsock.unlisten(80);
    world.settle();
    assert_eq!(world.harbor.taken(), 0);
    let calls: Vec<_> = (0..4).map(|_| world.calls().0).collect();
    assert_eq!(world.vsock.connect(99), Err(SocketError::Full));
    calls.into_iter().for_each(|socket| world.vsock.close(socket));
    world.settle();
    assert_eq!(world.harbor.taken(), 0);
    assert!(world.vsock.connect(99).is_ok());
}

/// A closed place that is used again tells the other side with a reset, which must not overtake the end of the stream.
#[test]
fn a_place_is_used_again_only_when_the_other_side_has_been_told_where_the_stream_ends() {
    let mut world = World::new();
    let all: Vec<_> = (0..4).map(|_| world.called()).collect();
    // The PMM does not look, so this takes every block of the queue.
    for (socket, slot) in &all {
        world.harbor.at(*slot, |berth| berth.stuck = true);
        while world.vsock.write(*socket, &[7; 1000]).is_ok() {}
    }
    let (socket, slot) = all[0];
    world.vsock.close(socket);
    world.harbor.sea().listening.insert(99, ());
    assert_eq!(world.vsock.connect(99), Err(SocketError::Full));
    world.settle();
    assert_eq!(world.harbor.at(slot, |berth| berth.finished), Some(true), "what was written still arrives");
    world.calls();
}

#[test]
fn listeners_are_counted() {
    let mut world = World::new();
    for port in 0..8 {
        world.vsock.listen(port, 1).unwrap();
    }
    assert_eq!(world.vsock.listen(7, 1), Err(SocketError::InUse));
    assert_eq!(world.vsock.listen(u32::MAX, 1), Err(SocketError::InUse));
    assert_eq!(world.vsock.listen(8, 1), Err(SocketError::Full));
    world.vsock.unlisten(3);
    world.vsock.listen(8, 1).unwrap();
}

#[test]
fn a_restart_of_the_pmm_resets_every_connection_once_and_keeps_the_listeners() {
    let mut world = World::new();
    let (one, slot) = world.called();
    let (other, _) = world.calls();
    let calling = world.vsock.connect(99).unwrap();
    world.harbor.send(slot, b"came before");
    world.pmm.service();
    // What is in the ring, and was never looked at.
    world.pmm = Pmm::start(world.m, &world.harbor);
    world.settle();
    assert_eq!(world.read_all(one), (b"came before".to_vec(), Err(SocketError::Reset)));
    assert_eq!(world.vsock.write(other, b"x"), Err(SocketError::Reset));
    assert_eq!(world.vsock.is_open(calling), Err(SocketError::Reset));
    for socket in [one, other, calling] {
        assert_eq!(world.vsock.write(socket, b"x"), Err(SocketError::Closed), "said once");
    }
    assert_eq!(world.vsock.counters().lost, 1);
    let (socket, slot) = world.called();
    assert_eq!(world.vsock.write(socket, b"new"), Ok(3));
    world.settle();
    assert_eq!(world.harbor.output(slot), b"new");
}

/// The loop of the program looks at the link, and the task of the sockets is busy with something else.
fn meet(link: &Link<'_, TestBoard>, pmm: &mut Pmm) {
    for _ in 0..8 {
        link.poll();
        pmm.service();
    }
}

/// A call is the last that a PMM says: the link has seen it when the next one starts, and the sockets have not.
fn last_words(link: &Link<'_, TestBoard>, pmm: &mut Pmm, m: Region, harbor: &Harbor) {
    harbor.ask(80);
    pmm.service();
    link.poll();
    *pmm = Pmm::start(m, harbor);
    meet(link, pmm);
}

#[test]
fn what_a_killed_pmm_said_is_nothing_its_successor_said() {
    let mut world = World::new();
    let link = world.vsock.link().clone();
    let (socket, slot) = world.called();
    world.harbor.send(slot, b"came before");
    last_words(&link, &mut world.pmm, world.m, &world.harbor);
    assert_eq!(world.vsock.status(), Some(DeviceStatus::Running), "straight from one session into the next");
    assert_eq!(world.vsock.accept(80), Err(SocketError::WouldBlock), "the caller is gone");
    assert_eq!(world.read_all(socket), (b"came before".to_vec(), Err(SocketError::Reset)));
    let (socket, slot) = world.called();
    assert_eq!(world.vsock.write(socket, b"new"), Ok(3));
    world.settle();
    assert_eq!(world.harbor.output(slot), b"new");
}

#[test]
fn what_a_killed_pmm_said_to_a_guest_that_did_not_know_its_address_is_nothing() {
    let (m, harbor) = (region(), Harbor::default());
    let (mut pmm, board) = (Pmm::start(m, &harbor), TestBoard::new(m));
    let mut vsock = open(&board);
    let link = vsock.link().clone();
    meet(&link, &mut pmm);
    last_words(&link, &mut pmm, m, &harbor);
    vsock.poll();
    assert_eq!((vsock.cid(), vsock.counters().malformed, vsock.counters().strays), (Ok(CID), 0, 0));
}

#[test]
fn a_reboot_of_the_guest_ends_every_connection_of_the_host() {
    let mut world = World::new();
    let slots = [world.called().1, world.calls().1];
    world.vsock = open(&world.board);
    world.settle();
    for slot in slots {
        assert!(world.harbor.at(slot, |berth| berth.finished.is_some()));
    }
    let (_, slot) = world.called();
    assert!(world.harbor.at(slot, |berth| berth.finished.is_none()));
}

/// Within one session, so no event tells of it.
#[test]
fn a_device_that_was_reset_has_no_connections_left_on_either_side() {
    let mut world = World::new();
    let (socket, slot) = world.called();
    // As a stray store of the firmware does: the PMM finds the ring broken.
    let index = layout().devices()[0].queues[TRANSMIT].avail + 2;
    world.m.write16(index, world.m.read16(index).wrapping_add(1000));
    world.pmm.service();
    assert_eq!(world.pmm.device().fault, "needs-reset");
    assert!(world.harbor.at(slot, |berth| berth.finished.is_some()));
    for _ in 0..4 {
        world.vsock.poll();
        world.board.now.fetch_add(100_000, SeqCst);
        world.pmm.service();
    }
    world.settle();
    assert_eq!(world.vsock.read(socket, &mut [0; 4]), Err(SocketError::Reset));
    let (socket, slot) = world.called();
    assert_eq!(world.vsock.write(socket, b"new"), Ok(3));
    world.settle();
    assert_eq!(world.harbor.output(slot), b"new");
}

#[test]
fn without_a_link_calls_say_so() {
    let board = TestBoard::new(region());
    let mut vsock = open(&board);
    assert_eq!(vsock.connect(1), Err(SocketError::LinkDown));
    assert_eq!(vsock.cid(), Err(SocketError::LinkDown));
    assert_eq!(vsock.listen(5, 1), Ok(()));
    assert_eq!(vsock.accept(5), Err(SocketError::WouldBlock));
    assert_eq!(vsock.next_deadline(), None);
}

#[test]
fn answers_that_never_come_are_not_waited_for() {
    let mut world = World::new();
    let socket = world.vsock.connect(99).unwrap();
    let deadline = world.vsock.deadline().expect("a call has a deadline").micros();
    world.board.now.store(deadline - 1, SeqCst);
    assert_eq!(world.vsock.is_open(socket), Err(SocketError::WouldBlock));
    world.board.now.store(deadline, SeqCst);
    assert_eq!(world.vsock.is_open(socket), Err(SocketError::TimedOut));
    assert_eq!(world.vsock.deadline(), None);
    // The late answer is for nobody, and the host's side is told.
    world.harbor.sea().listening.insert(99, ());
    world.settle();
    assert_eq!(world.harbor.taken(), 0);

    // A goodbye that nobody answers: the PMM does not look any more.
    let (socket, _) = world.calls();
    world.vsock.close(socket);
    let deadline = world.vsock.deadline().expect("a goodbye has a deadline").micros();
    world.board.now.store(deadline, SeqCst);
    world.vsock.poll();
    assert_eq!(world.vsock.deadline(), None);
}

#[test]
fn a_guest_that_does_not_answer_is_not_waited_for() {
    let mut world = World::new();
    let slot = world.harbor.ask(80);
    world.pmm.service();
    assert!(world.harbor.at(slot, |berth| berth.timer.is_some()));
    world.harbor.expire(slot);
    world.pmm.service();
    assert_eq!(world.harbor.at(slot, |berth| berth.finished), Some(false));
    // The guest hears of both at last, and nothing is left of it.
    world.vsock.listen(80, 1).unwrap();
    world.settle();
    assert_eq!((world.harbor.taken(), world.vsock.accept(80)), (0, Err(SocketError::WouldBlock)));
}

#[test]
fn a_crowd_that_is_larger_than_the_table_is_turned_away() {
    let mut world = World::new();
    world.vsock.listen(80, 255).unwrap();
    let slots: Vec<_> = (0..SLOTS).map(|_| world.harbor.ask(80)).collect();
    world.settle();
    assert_eq!(world.harbor.taken(), 4);
    assert_eq!(slots.iter().filter(|slot| world.harbor.at(**slot, |one| one.granted.is_some())).count(), 4);
}
