//! Gates and deaths: a file operation that is held up holds up nothing else, and what a restart cuts short is told.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use hvl_files::{Guest, Pmm, Same, Wire};
use hvl_frontend::device::DeviceStatus;
use hvl_frontend::device::p9::FileError;
use hvl_frontend::device::rng::FillError;
use hvl_frontend::{Board, Wait};
use hvl_pmm::host::{self, Conversation, Conversations, MessageServer};
use hvl_shared_abi::wire::p9::{Errno, Payload, Qid, Qids, Reply, Request, VERSION, open};

const QID: Qid = Qid { kind: 0, version: 1, path: 7 };

/// A server of one file, which has a gate before each message of the kind `gated`.
struct Gated {
    gated: u8,
    byte: u8,
    gate: Mutex<Gate>,
    news: Condvar,
}

#[derive(Default)]
struct Gate {
    open: bool,
    held: usize,
    /// Kinds in the order in which they were worked on.
    log: Vec<u8>,
}

impl Gated {
    fn new(gated: u8, byte: u8) -> Arc<Gated> {
        Arc::new(Gated { gated, byte, gate: Mutex::default(), news: Condvar::new() })
    }
    fn open(&self, open: bool) {
        self.gate.lock().unwrap().open = open;
        self.news.notify_all();
    }
    fn wait_until_held(&self, count: usize) {
        let gate = self.gate.lock().unwrap();
        let (_gate, late) =
            self.news.wait_timeout_while(gate, Duration::from_secs(20), |gate| gate.held != count).unwrap();
        assert!(!late.timed_out(), "{count} messages stand at the gate within 20 s");
    }
    /// Goes through the gate if it is there for this kind. One that a test forgets opens by itself.
    fn pass(&self, kind: u8) {
        let mut gate = self.gate.lock().unwrap();
        if kind == self.gated {
            gate.held += 1;
            self.news.notify_all();
            let late = Duration::from_secs(40);
            gate = self.news.wait_timeout_while(gate, late, |gate| !gate.open).unwrap().0;
            gate.open = true;
            gate.held -= 1;
            self.news.notify_all();
        }
        gate.log.push(kind);
    }
}

impl Conversation for Gated {
    fn handle(&self, request: &[u8], answer: &mut Vec<u8>, _room: usize) {
        let parsed = Request::parse(request).expect("the client's messages are whole");
        let kind = parsed.message.kind();
        self.pass(kind);
        let qids = [QID; 16];
        let (reply, data) = match parsed.message {
            Request::Version { msize, .. } => (Reply::Version { msize, version: VERSION }, vec![]),
            Request::Attach { .. } => (Reply::Attach { qid: QID }, vec![]),
            Request::Walk { names, .. } => (Reply::Walk { qids: Qids::new(&qids[..names.len()]) }, vec![]),
            Request::Lopen { .. } => (Reply::Lopen { qid: QID, io_unit: 0 }, vec![]),
            Request::Read { count, .. } => {
                (Reply::Read { count: Payload(count) }, vec![self.byte; count as usize])
            }
            Request::Write { count, .. } => (Reply::Write { count: count.0 }, vec![]),
            Request::Mkdir { .. } => (Reply::Mkdir { qid: QID }, vec![]),
            Request::Clunk { .. } => (Reply::Clunk {}, vec![]),
            Request::Flush { .. } => (Reply::Flush {}, vec![]),
            _ => (Reply::Error { errno: Errno::OPNOTSUPP }, vec![]),
        };
        let mut bytes = vec![0; 1 << 17];
        let used = reply.emit(parsed.tag, &data, &mut bytes).expect("it fits");
        *answer = bytes[..used].to_vec();
    }
}

/// Clients of one server, and a gate before the end of each: closing its files may take long.
struct Clients {
    server: Arc<Gated>,
    closing: Arc<Gated>,
}

struct Client(Arc<Gated>, Arc<Gated>);

impl Conversations for Clients {
    fn begin(&self) -> Arc<dyn Conversation> {
        Arc::new(Client(self.server.clone(), self.closing.clone()))
    }
    fn state(&self) -> String {
        "a test".into()
    }
}

impl Conversation for Client {
    fn handle(&self, request: &[u8], answer: &mut Vec<u8>, room: usize) {
        self.0.handle(request, answer, room);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.1.pass(CLOSING);
    }
}

const CLOSING: u8 = 0;
const VERSION_REQUEST: u8 = 100;
const READ: u8 = 116;
const WRITE: u8 = 118;
const MKDIR: u8 = 72;

fn long() -> Duration {
    Duration::from_secs(20)
}

#[test]
fn a_read_that_is_held_holds_up_neither_entropy_nor_the_console() {
    let (wire, server) = (Wire::new(), Gated::new(READ, b'x'));
    let _pmm = Pmm::start(&wire, Same(server.clone()));
    let mut guest = Guest::boot(&wire, long());
    let file = guest.files.open_file(b"a", open::READ_ONLY).unwrap();
    let mut ticket = Some(guest.files.start_read(&file, 0, 100).unwrap());
    server.wait_until_held(1);
    for _ in 0..1000 {
        let mut bytes = [0; 8];
        while let Err(error) = guest.rng.fill(&mut bytes) {
            assert_ne!(error, FillError::Empty);
            wire.wait_for_doorbell(guest.rng.next_deadline());
        }
    }
    while guest.console.write(b"echo").is_err() {
        wire.wait_for_doorbell(guest.console.next_deadline());
    }
    let mut echoed = Vec::new();
    while echoed.len() < 4 {
        let mut bytes = [0; 4];
        match guest.console.read(&mut bytes) {
            Ok(count) => echoed.extend_from_slice(&bytes[..count]),
            Err(_) => wire.wait_for_doorbell(guest.console.next_deadline()),
        }
    }
    assert_eq!(echoed, b"echo");
    let mut into = [0; 100];
    assert_eq!(guest.files.finish_read(&mut ticket, &mut into), Err(FileError::WouldBlock));
    server.open(true);
    loop {
        match guest.files.finish_read(&mut ticket, &mut into) {
            Err(FileError::WouldBlock) => wire.wait_for_doorbell(guest.files.next_deadline()),
            done => break assert_eq!(done, Ok(100)),
        }
    }
    assert_eq!(into, [b'x'; 100]);
}

#[test]
fn several_reads_are_under_way_at_once() {
    let (wire, server) = (Wire::new(), Gated::new(READ, b'x'));
    let _pmm = Pmm::start(&wire, Same(server.clone()));
    let mut guest = Guest::boot(&wire, long());
    let file = guest.files.open_file(b"a", open::READ_ONLY).unwrap();
    let tickets: Vec<_> = (0..4).map(|i| guest.files.start_read(&file, i * 10, 10).unwrap()).collect();
    server.wait_until_held(4);
    server.open(true);
    for ticket in tickets {
        let mut ticket = Some(ticket);
        loop {
            match guest.files.finish_read(&mut ticket, &mut [0; 10]) {
                Err(FileError::WouldBlock) => wire.wait_for_doorbell(guest.files.next_deadline()),
                done => break assert_eq!(done, Ok(10)),
            }
        }
    }
}

#[test]
fn an_answer_that_does_not_come_is_waited_for_until_the_time_is_up_and_its_block_comes_back() {
    let (wire, server) = (Wire::new(), Gated::new(READ, b'x'));
    let _pmm = Pmm::start(&wire, Same(server.clone()));
    let mut guest = Guest::boot(&wire, Duration::from_millis(50));
    let mut file = guest.files.open_file(b"a", open::READ_ONLY).unwrap();
    assert_eq!(guest.files.read(&mut file, 0, &mut [0; 10]), Err(FileError::TimedOut));
    server.wait_until_held(1);
    server.open(true);
    // More calls than there are blocks: what was given up is used again.
    for _ in 0..50 {
        while let Err(error) = guest.files.read(&mut file, 0, &mut [0; 10]) {
            assert_eq!(error, FileError::TimedOut);
        }
    }
}

#[test]
fn an_open_file_is_stale_once_after_the_pmm_was_restarted_and_then_works_again() {
    let wire = Wire::new();
    let pmm = Pmm::start(&wire, Same(Gated::new(255, b'1')));
    let mut guest = Guest::boot(&wire, long());
    let mut file = guest.files.open_file(b"a", open::READ_ONLY).unwrap();
    let mut into = [0; 4];
    assert_eq!((guest.files.read(&mut file, 0, &mut into), into), (Ok(4), *b"1111"));
    drop(pmm);
    let _pmm = Pmm::start(&wire, Same(Gated::new(255, b'2')));
    assert_eq!(guest.files.read(&mut file, 0, &mut into), Err(FileError::Stale));
    assert_eq!((guest.files.read(&mut file, 0, &mut into), into), (Ok(4), *b"2222"));
    assert_eq!(guest.files.close(file), Ok(()));
}

#[test]
fn an_open_file_is_stale_once_though_the_pmm_was_restarted_again_meanwhile() {
    let wire = Wire::new();
    let pmm = Pmm::start(&wire, Same(Gated::new(255, b'1')));
    let mut guest = Guest::boot(&wire, long());
    let mut file = guest.files.open_file(b"a", open::READ_ONLY).unwrap();
    drop(pmm);
    // The second one has the client's first message when the third takes its place.
    let server = Gated::new(VERSION_REQUEST, b'2');
    let mut second = Some(Pmm::start(&wire, Same(server.clone())));
    let mut into = [0; 4];
    // Entropy comes from the second one only, so the guest has met it then.
    while guest.rng.fill(&mut into).is_err() || guest.files.status() != Some(DeviceStatus::Running) {
        wire.wait_for_doorbell(guest.rng.next_deadline());
        guest.files.poll();
    }
    let (result, _third) = std::thread::scope(|scope| {
        let wire = wire.clone();
        let successor = scope.spawn(move || {
            server.wait_until_held(1);
            drop(second.take());
            let third = Pmm::start(&wire, Same(Gated::new(255, b'3')));
            server.open(true);
            third
        });
        (guest.files.read(&mut file, 0, &mut into), successor.join().unwrap())
    });
    assert_eq!(result, Err(FileError::Stale));
    assert_eq!((guest.files.read(&mut file, 0, &mut into), into), (Ok(4), *b"3333"));
}

#[test]
fn a_change_that_was_under_way_is_indeterminate_and_a_read_is_stale() {
    for (kind, expected) in
        [(MKDIR, FileError::Indeterminate), (READ, FileError::Stale), (WRITE, FileError::Stale)]
    {
        let (wire, server) = (Wire::new(), Gated::new(kind, b'x'));
        let pmm = Pmm::start(&wire, Same(server.clone()));
        let mut guest = Guest::boot(&wire, long());
        let mut file = guest.files.open_file(b"a", open::READ_WRITE).unwrap();
        let (in_thread, mut pmm) = (wire.clone(), Some(pmm));
        let result = std::thread::scope(|scope| {
            let successor = scope.spawn(move || {
                server.wait_until_held(1);
                drop(pmm.take());
                let next = Pmm::start(&in_thread, Same(Gated::new(255, b'y')));
                server.open(true);
                next
            });
            let result = match kind {
                MKDIR => guest.files.mkdir(b"d", 0o755).map(|()| 0),
                READ => guest.files.read(&mut file, 0, &mut [0; 4]),
                _ => guest.files.write(&mut file, 0, b"data"),
            };
            drop(successor.join().unwrap());
            result
        });
        assert_eq!(result, Err(expected), "message {kind}");
    }
}

#[test]
fn a_guest_that_was_rebooted_never_sees_what_its_predecessor_asked_for() {
    let (wire, server) = (Wire::new(), Gated::new(READ, b'!'));
    let _pmm = Pmm::start(&wire, Same(server.clone()));
    let mut old = Guest::boot(&wire, long());
    let file = old.files.open_file(b"a", open::READ_ONLY).unwrap();
    let _ticket = old.files.start_read(&file, 0, 4000).unwrap();
    server.wait_until_held(1);
    // The new firmware starts from nothing.
    let mut new = Guest::boot(&wire, long());
    new.files.mkdir(b"d", 0o755).unwrap();
    server.open(true);
    server.wait_until_held(0);
    new.files.mkdir(b"e", 0o755).unwrap();
    let m = wire.mem();
    let seen =
        (0..hvl_shared_abi::Mem::len(m)).filter(|at| hvl_shared_abi::Mem::read8(m, *at) == b'!').count();
    assert_eq!(seen, 0, "bytes of the old answer in shared memory");
}

#[test]
fn no_change_of_a_new_guest_overtakes_one_of_its_predecessor() {
    let (wire, server) = (Wire::new(), Gated::new(WRITE, b'x'));
    let _pmm = Pmm::start(&wire, Same(server.clone()));
    let mut old = Guest::boot(&wire, long());
    let file = old.files.open_file(b"a", open::WRITE_ONLY).unwrap();
    let _ticket = old.files.start_write(&file, 0, b"old").unwrap();
    server.wait_until_held(1);
    let mut new = Guest::boot(&wire, Duration::from_millis(300));
    assert_eq!(new.files.mkdir(b"d", 0o755), Err(FileError::TimedOut), "it waits for the old write");
    assert!(!server.gate.lock().unwrap().log.contains(&MKDIR));
    server.open(true);
    server.wait_until_held(0);
    while let Err(error) = new.files.mkdir(b"e", 0o755) {
        assert_eq!(error, FileError::TimedOut);
    }
    let log = server.gate.lock().unwrap().log.clone();
    let at = |kind| log.iter().position(|one| *one == kind);
    assert!(at(WRITE) < at(MKDIR), "{log:?}");
}

#[test]
fn files_that_take_long_to_close_hold_up_no_more_than_the_changes_of_the_next_guest() {
    // They are closed behind the last message of the old guest, if there is one under way.
    for reads in [0, 1] {
        let (wire, server, closing) = (Wire::new(), Gated::new(READ, b'x'), Gated::new(CLOSING, 0));
        let _pmm = Pmm::start(&wire, Clients { server: server.clone(), closing: closing.clone() });
        let mut old = Guest::boot(&wire, long());
        let file = old.files.open_file(b"a", open::READ_ONLY).unwrap();
        let _tickets: Vec<_> = (0..reads).map(|_| old.files.start_read(&file, 0, 10).unwrap()).collect();
        server.wait_until_held(reads);
        let mut new = Guest::boot(&wire, Duration::from_millis(300));
        let mut answers = || {
            let answer = Err(FileError::Refused(Errno::OPNOTSUPP));
            let comes = (0..60).any(|_| new.files.stat(b"a").map(drop) == answer);
            assert!(comes, "{reads} reads: the loop waits for a file to be closed");
        };
        answers();
        server.open(true);
        closing.wait_until_held(1);
        answers();
        if reads == 0 {
            // Its locks may be the old guest's.
            assert_eq!(new.files.mkdir(b"d", 0o755), Err(FileError::TimedOut));
        }
        closing.open(true);
        while let Err(error) = new.files.mkdir(b"e", 0o755) {
            assert_eq!(error, FileError::TimedOut);
        }
    }
}

#[test]
fn guests_that_reboot_while_no_file_can_be_closed_do_not_pile_up() {
    let (server, closing) = (Gated::new(255, 0), Gated::new(CLOSING, 0));
    let clients = Clients { server: server.clone(), closing: closing.clone() };
    let mut files = host::Files::start(Box::new(clients)).unwrap();
    let mut message = [0; 11];
    Request::Clunk { fid: 1 }.emit(1, &[], &mut message).unwrap();
    for _ in 0..1000 {
        files.submit(0, message.len(), 100, &mut |into| into.copy_from_slice(&message));
        files.forget();
    }
    assert!(!closing.gate.lock().unwrap().open, "the loop waited for a file to be closed");
    let clients = Arc::strong_count(&server);
    closing.open(true);
    assert!(clients < 50, "{clients} clients are to be closed");
}
