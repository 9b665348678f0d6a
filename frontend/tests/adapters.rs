//! The adapters, each through the traits of the crate that it serves, against a PMM on a thread of its own.
#![cfg(all(
    feature = "embedded-io",
    feature = "embedded-io-async",
    feature = "rand_core",
    feature = "virtio-drivers"
))]

mod common;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant as Time};

use common::{Pmm, TestBoard, leak};
use hvl_frontend::adapter::Timeout;
use hvl_frontend::adapter::embedded_io::{Io, IoError};
use hvl_frontend::adapter::embedded_io_async::{AsyncBoard, AsyncConsole, fill};
use hvl_frontend::adapter::rand_core::Entropy;
use hvl_frontend::adapter::virtio_drivers::{BounceHal, Bridge, BridgeError, BridgeStorage, Pipe, Port};
use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::rng::{FillError, Rng, RngStorage};
use hvl_frontend::{Board, Clock, Doorbell, Instant, Link, LinkStorage, Wait};
use hvl_shared_abi::{Region, ShmRegion};
use rand_core::TryRng;
use virtio_drivers::device::{console::VirtIOConsole, rng::VirtIORng};

/// A doorbell between two threads that latches.
#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Bell {
    fn ring(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
    fn wait(&self, most: Duration) {
        let rang = self.0.lock().unwrap();
        let (mut rang, _) = self.1.wait_timeout_while(rang, most, |rang| !*rang).unwrap();
        *rang = false;
    }
}

#[derive(Clone)]
struct Threads {
    inner: TestBoard,
    start: Time,
    to_pmm: Arc<Bell>,
    to_guest: Arc<Bell>,
}

impl Doorbell for Threads {
    fn ring(&self) {
        self.to_pmm.ring();
    }
}
impl Clock for Threads {
    fn now(&self) -> Instant {
        Instant::from_micros(1 + self.start.elapsed().as_micros() as u64)
    }
}
impl Board for Threads {
    type Mem = Region;
    fn mem(&self) -> &Region {
        &self.inner.mem
    }
    fn region(&self) -> ShmRegion {
        self.inner.region
    }
}
impl Wait for Threads {
    fn wait_for_doorbell(&self, deadline: Option<Instant>) {
        let most = deadline
            .map_or(Duration::from_secs(10), |deadline| Duration::from_micros(deadline.since(self.now())));
        self.to_guest.wait(most);
    }
}
impl AsyncBoard for Threads {
    async fn wait_for_doorbell(&self, deadline: Option<Instant>) {
        Wait::wait_for_doorbell(self, deadline);
    }
}

struct Served {
    board: Threads,
    stop: Arc<AtomicBool>,
    restart: Arc<AtomicBool>,
    pmm: Option<std::thread::JoinHandle<Vec<u8>>>,
}

impl Served {
    fn board() -> Threads {
        Threads {
            inner: TestBoard::new(),
            start: Time::now(),
            to_pmm: Arc::default(),
            to_guest: Arc::default(),
        }
    }

    /// A PMM on a thread: it echoes what the console sends, and rings for whatever it does.
    fn start(board: &Threads) -> Served {
        let (stop, restart) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (b, s, r) = (board.clone(), stop.clone(), restart.clone());
        let pmm = std::thread::spawn(move || {
            let mut pmm = Pmm::start(&b.inner);
            pmm.set_size(132, 43);
            let mut all = Vec::new();
            while !s.load(SeqCst) {
                if r.swap(false, SeqCst) {
                    pmm = Pmm::start(&b.inner);
                }
                pmm.look();
                pmm.input.extend(&pmm.output);
                all.append(&mut pmm.output);
                pmm.look();
                if !pmm.heard() {
                    b.to_guest.ring();
                }
                b.to_pmm.wait(Duration::from_millis(1));
            }
            all
        });
        Served { board: board.clone(), stop, restart, pmm: Some(pmm) }
    }

    fn restart(&self) {
        self.restart.store(true, SeqCst);
        self.board.to_pmm.ring();
    }

    fn end(mut self) -> Vec<u8> {
        self.stop.store(true, SeqCst);
        self.board.to_pmm.ring();
        self.pmm.take().unwrap().join().unwrap()
    }
}

const LONG: Timeout = Timeout::millis(10_000);
const SHORT: Timeout = Timeout::millis(5);

fn attach(board: &Threads) -> Link<'static, Threads> {
    Link::attach(leak(LinkStorage::NEW), board.clone()).unwrap()
}

#[test]
fn embedded_io_streams_wait_up_to_their_time() {
    use embedded_io::{Read, ReadReady, Write, WriteReady};
    let board = Served::board();
    let link = attach(&board);
    let mut console = Console::open(&link, leak(ConsoleStorage::<64, 64>::NEW), Options::default()).unwrap();
    assert_eq!(Io::new(&mut console, SHORT).write(b"x"), Err(IoError::LinkDown));
    let served = Served::start(&board);
    let mut io = Io::new(&mut console, LONG);
    io.write_all(b"hello, ").unwrap();
    io.flush().unwrap();
    let mut bytes = [0; 7];
    io.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello, ");
    assert!(io.write_ready().unwrap() && !io.read_ready().unwrap());
    let mut short = Io::new(&mut console, SHORT);
    assert_eq!(short.read(&mut bytes), Err(IoError::TimedOut));
    served.restart();
    let mut io = Io::new(&mut console, LONG);
    for i in 0..100 {
        writeln!(io, "line {i}").unwrap();
        io.flush().unwrap();
        if i % 10 == 0 {
            served.restart();
        }
    }
    let text = String::from_utf8(served.end()).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.dedup();
    assert!(lines.len() >= 100 && lines.last() == Some(&"line 99"), "{lines:?}");
}

#[test]
fn random_generators_are_filled_or_told_why_not() {
    let board = Served::board();
    let link = attach(&board);
    let mut rng = Rng::open(&link, leak(RngStorage::<8>::NEW)).unwrap();
    let mut bytes = [1; 300];
    assert_eq!(Entropy::new(&mut rng, SHORT).try_fill_bytes(&mut bytes), Err(FillError::LinkDown));
    assert_eq!(bytes, [0; 300]);
    let served = Served::start(&board);
    let mut entropy = Entropy::new(&mut rng, LONG);
    entropy.try_fill_bytes(&mut bytes).unwrap();
    assert!(bytes.iter().all(|b| *b != 0));
    assert_ne!(entropy.try_next_u64().unwrap(), entropy.try_next_u64().unwrap());
    assert_ne!(entropy.try_next_u32().unwrap(), 0);
    served.end();
}

/// Runs a future whose waits block.
fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..1_000_000 {
        if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return done;
        }
    }
    panic!("the future made no progress");
}

#[test]
fn async_streams_wait_through_a_restart() {
    use embedded_io_async::{Read, Write};
    let board = Served::board();
    let link = attach(&board);
    let mut console = Console::open(&link, leak(ConsoleStorage::<64, 64>::NEW), Options::default()).unwrap();
    let mut rng = Rng::open(&link, leak(RngStorage::<8>::NEW)).unwrap();
    let served = Served::start(&board);
    run(async {
        let mut streams = AsyncConsole::new(&mut console);
        streams.write_all(b"before").await.unwrap();
        streams.flush().await.unwrap();
        let mut bytes = [0; 6];
        streams.read_exact(&mut bytes).await.unwrap();
        served.restart();
        streams.write_all(b"after").await.unwrap();
        streams.flush().await.unwrap();
        let mut random = [0; 64];
        fill(&mut rng, &mut random).await;
        assert!(random.iter().all(|b| *b != 0));
    });
    assert!(String::from_utf8(served.end()).unwrap().ends_with("after"));
}

static RNG_BRIDGE: Bridge<Threads> = Bridge::new();
struct RngPort;
impl Port for RngPort {
    type Board = Threads;
    fn bridge() -> &'static Bridge<Threads> {
        &RNG_BRIDGE
    }
}

static CONSOLE_BRIDGE: Bridge<Threads> = Bridge::new();
struct ConsolePort;
impl Port for ConsolePort {
    type Board = Threads;
    fn bridge() -> &'static Bridge<Threads> {
        &CONSOLE_BRIDGE
    }
}

#[test]
fn the_drivers_of_virtio_drivers_run_unmodified_and_through_restarts() {
    let board = Served::board();
    let link = attach(&board);
    let down = Pipe::<RngPort>::rng(&link, leak(BridgeStorage::<64>::NEW), Timeout::millis(500));
    assert_eq!(down.map(|_| ()), Err(BridgeError::LinkDown));
    let served = Served::start(&board);
    let guard = Time::now() + Duration::from_secs(10);
    let pipe = loop {
        match Pipe::<RngPort>::again() {
            Ok(pipe) => break pipe,
            Err(error) => assert!(Time::now() < guard, "waited for the PMM: {error}"),
        }
    };
    assert_eq!(Pipe::<RngPort>::again().map(|_| ()), Err(BridgeError::InUse));
    let mut rng = VirtIORng::<BounceHal<RngPort>, _>::new(pipe).unwrap();
    let pipe = Pipe::<ConsolePort>::console(&link, leak(BridgeStorage::<64>::NEW), LONG).unwrap();
    let mut console = VirtIOConsole::<BounceHal<ConsolePort>, _>::new(pipe).unwrap();
    let size = console.size().unwrap().unwrap();
    assert_eq!((size.columns, size.rows), (132, 43));
    let mut echo = Vec::new();
    for round in 0..60u32 {
        let mut random = [0; 48];
        assert_eq!(rng.request_entropy(&mut random), Ok(48), "round {round}");
        assert!(random.iter().all(|b| *b != 0));
        let line = format!("round {round}\n");
        console.send_bytes(line.as_bytes()).unwrap();
        // Until the echo is there, or lost with a PMM that was restarted between taking the line and echoing it.
        if round % 10 != 9 {
            let guard = Time::now() + Duration::from_secs(10);
            let mut got = Vec::new();
            while !got.ends_with(b"\n") {
                assert!(Time::now() < guard, "waited for the echo of round {round}, got {got:?}");
                console.ack_interrupt().unwrap();
                match console.recv(true).unwrap() {
                    Some(byte) => got.push(byte),
                    None => board.to_guest.wait(Duration::from_millis(20)),
                }
            }
            echo.extend(got);
        } else {
            served.restart();
        }
    }
    drop((rng, console));
    let text = String::from_utf8(served.end()).unwrap();
    for round in 0..60 {
        assert!(text.contains(&format!("round {round}\n")), "{text}");
    }
    assert!(echo.starts_with(b"round 0\nround 1\n"));
}
