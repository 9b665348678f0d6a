//! Streams behind the traits of `embedded-io` and `embedded-io-async`: a board whose sleep lets the PMM run.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use embedded_io::{Error, ErrorKind, Read, ReadReady, Write, WriteReady};
use embedded_io_async::{Read as AsyncRead, Write as AsyncWrite};
use hvl_frontend::adapter::Timeout;
use hvl_frontend::adapter::embedded_io_async::AsyncBoard;
use hvl_frontend::adapter::vsock::{AsyncStream, Stream};
use hvl_frontend::device::vsock::{End, SocketError, Vsock, VsockStorage};
use hvl_frontend::{Board, Clock, Doorbell, Instant, Link, LinkStorage, Wait};
use hvl_shared_abi::{Region, ShmRegion};
use hvl_vsock_tests::{Harbor, Pmm, TestBoard, leak, region};

#[derive(Clone)]
struct Sleeper {
    board: TestBoard,
    pmm: Arc<Mutex<Pmm>>,
    harbor: Harbor,
}

impl Sleeper {
    /// What happens while the guest sleeps: the PMM looks, clients send back what they got, a millisecond passes.
    fn nap(&self) {
        self.pmm.lock().unwrap().service();
        let taken: Vec<_> = (0..8).filter(|slot| self.harbor.at(*slot, |berth| berth.taken)).collect();
        for slot in taken {
            let output = self.harbor.at(slot, |berth| std::mem::take(&mut berth.output));
            if !output.is_empty() {
                self.harbor.send(slot, &output);
            }
            if self.harbor.at(slot, |berth| berth.guest_ends.send && !berth.input_ended) {
                self.harbor.end_input(slot);
            }
        }
        self.pmm.lock().unwrap().service();
        self.board.now.fetch_add(1000, SeqCst);
    }
}

impl Doorbell for Sleeper {
    fn ring(&self) {
        self.board.ring();
    }
}
impl Clock for Sleeper {
    fn now(&self) -> Instant {
        self.board.now()
    }
}
impl Board for Sleeper {
    type Mem = Region;
    fn mem(&self) -> &Region {
        self.board.mem()
    }
    fn region(&self) -> ShmRegion {
        self.board.region()
    }
}
impl Wait for Sleeper {
    fn wait_for_doorbell(&self, _deadline: Option<Instant>) {
        self.nap();
    }
}
impl AsyncBoard for Sleeper {
    async fn wait_for_doorbell(&self, _deadline: Option<Instant>) {
        self.nap();
    }
}

fn open() -> (Sleeper, RefCell<Vsock<'static, Sleeper>>) {
    let (m, harbor) = (region(), Harbor::default());
    harbor.sea().listening.insert(99, ());
    let pmm = Arc::new(Mutex::new(Pmm::start(m, &harbor)));
    let sleeper = Sleeper { board: TestBoard::new(m), pmm, harbor };
    let link = Link::attach(leak(LinkStorage::NEW), sleeper.clone()).unwrap();
    let vsock = RefCell::new(Vsock::open(&link, leak(VsockStorage::<4, 1000>::NEW)).unwrap());
    for _ in 0..8 {
        vsock.borrow_mut().poll();
        sleeper.nap();
    }
    (sleeper, vsock)
}

const TIMEOUT: Timeout = Timeout::millis(200);

#[test]
fn a_blocking_stream_waits_for_as_long_as_it_is_told() {
    let (sleeper, vsock) = open();
    assert_eq!(Stream::connect(&vsock, 4711, TIMEOUT).err(), Some(SocketError::Refused));
    let mut stream = Stream::connect(&vsock, 99, TIMEOUT).unwrap();
    let data: Vec<u8> = (0..900u32).map(|i| i as u8).collect();
    stream.write_all(&data).unwrap();
    stream.flush().unwrap();
    let mut back = vec![0; data.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, data);
    assert_eq!((stream.read_ready(), stream.write_ready()), (Ok(false), Ok(true)));
    let before = sleeper.now();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!((error, error.kind()), (SocketError::TimedOut, ErrorKind::TimedOut));
    assert!(sleeper.now().since(before) >= 200_000);
    stream.shut_down(End::Write).unwrap();
    assert_eq!(stream.read(&mut [0]), Ok(0));
    stream.close();

    vsock.borrow_mut().listen(80, 1).unwrap();
    assert_eq!(Stream::accept(&vsock, 80, TIMEOUT).err(), Some(SocketError::TimedOut));
    let slot = sleeper.harbor.ask(80);
    sleeper.harbor.send(slot, b"hi");
    let mut stream = Stream::accept(&vsock, 80, TIMEOUT).unwrap();
    assert_eq!(stream.read(&mut [0; 8]), Ok(2));
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..100_000 {
        if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return done;
        }
    }
    panic!("a future was not ready after 100,000 polls");
}

#[test]
fn async_streams_of_one_device_serve_side_by_side() {
    let (_sleeper, vsock) = open();
    block_on(async {
        let mut one = AsyncStream::connect(&vsock, 99).await.unwrap();
        let mut other = AsyncStream::connect(&vsock, 99).await.unwrap();
        for round in 0..50u8 {
            one.write_all(&[round; 700]).await.unwrap();
            other.write_all(&[!round; 300]).await.unwrap();
            let (mut first, mut second) = ([0; 700], [0; 300]);
            other.read_exact(&mut second).await.unwrap();
            one.read_exact(&mut first).await.unwrap();
            assert!(first == [round; 700] && second == [!round; 300]);
        }
        one.flush().await.unwrap();
        one.shut_down(End::Write).await.unwrap();
        assert_eq!(one.read(&mut [0]).await, Ok(0));
        one.close();
        assert_eq!(AsyncStream::connect(&vsock, 4711).await.err(), Some(SocketError::Refused));
    });
}
