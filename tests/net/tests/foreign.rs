//! The network driver of virtio-drivers, unmodified, through the adapter against our card, and through a PMM's death.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant as Time};

use hvl_frontend::adapter::Timeout;
use hvl_frontend::adapter::virtio_drivers::{BounceHal, Bridge, BridgeError, BridgeStorage, Pipe, Port};
use hvl_frontend::{Board, Clock, Doorbell, Instant, Link, LinkStorage, Wait};
use hvl_net_tests::{BASE, Cable, LEN, MAC, Pmm, frame, leak, region};
use hvl_shared_abi::{Region, ShmRegion};
use virtio_drivers::device::net::VirtIONet;

#[derive(Clone)]
struct Threads {
    mem: Region,
    start: Time,
    bell: Arc<(Mutex<bool>, Condvar)>,
}

impl Doorbell for Threads {
    fn ring(&self) {
        *self.bell.0.lock().unwrap() = true;
        self.bell.1.notify_all();
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
        &self.mem
    }
    fn region(&self) -> ShmRegion {
        ShmRegion { base: BASE, len: LEN }
    }
}
impl Wait for Threads {
    fn wait_for_doorbell(&self, _deadline: Option<Instant>) {
        // The PMM's thread looks all the time, so this one does, too.
        std::thread::yield_now();
    }
}

struct NetPort;

impl Port for NetPort {
    type Board = Threads;
    fn bridge() -> &'static Bridge<Threads> {
        static BRIDGE: Bridge<Threads> = Bridge::new();
        &BRIDGE
    }
}

const GUARD: Duration = Duration::from_secs(20);

#[test]
fn the_network_driver_of_virtio_drivers_runs_unmodified_and_through_restarts() {
    let (m, cable) = (region(), Cable::default());
    let board = Threads { mem: m, start: Time::now(), bell: Arc::default() };
    let link = Link::attach(leak(LinkStorage::NEW), board.clone()).unwrap();
    let (stop, restart) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let pmm = {
        let (cable, board, stop, restart) = (cable.clone(), board.clone(), stop.clone(), restart.clone());
        std::thread::spawn(move || {
            let mut pmm = Pmm::start(m, &cable, 0x4_0000, None);
            while !stop.load(SeqCst) {
                if restart.swap(false, SeqCst) {
                    pmm = Pmm::start(m, &cable, 0x4_0000, None);
                }
                pmm.tick(board.now().micros());
                let rang = board.bell.0.lock().unwrap();
                let wait = board.bell.1.wait_timeout_while(rang, Duration::from_millis(1), |rang| !*rang);
                *wait.unwrap().0 = false;
            }
        })
    };
    let timeout = Timeout::millis(10_000);
    let pipe = match Pipe::<NetPort>::net(&link, leak(BridgeStorage::<64>::NEW), timeout) {
        Err(BridgeError::LinkDown) => Pipe::again().expect("a PMM within twice the time"),
        pipe => pipe.unwrap(),
    };
    let mut net = VirtIONet::<BounceHal<NetPort>, _, 4>::new(pipe, 2048).unwrap();
    assert_eq!(net.mac_address(), MAC);
    for round in 0..200u8 {
        let sent = frame(14 + usize::from(round) * 7, round);
        let mut buffer = net.new_tx_buffer(sent.len());
        buffer.packet_mut().copy_from_slice(&sent);
        net.send(buffer).unwrap();
        let guard = Time::now() + GUARD;
        // A frame that was on its way through a PMM that died may be lost, or come twice.
        let arrived = cable.far().got.drain(..).any(|(_, got)| got == sent);
        assert!(arrived || round % 50 == 1, "round {round}: the frame did not arrive");
        cable.send(&sent);
        let mut got = loop {
            net.ack_interrupt();
            match net.receive() {
                Ok(buffer) => break buffer,
                Err(error) => assert_eq!(error, virtio_drivers::Error::NotReady),
            }
            assert!(Time::now() < guard, "waited for the frame of round {round}");
            std::thread::yield_now();
        };
        assert_eq!(got.packet(), sent);
        assert_eq!(got.packet_mut().len(), sent.len());
        net.recycle_rx_buffer(got).unwrap();
        if round % 50 == 0 {
            restart.store(true, SeqCst);
        }
    }
    stop.store(true, SeqCst);
    pmm.join().unwrap();
}
