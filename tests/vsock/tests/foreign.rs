//! A socket driver that somebody else wrote, the one of `virtio-drivers`, unmodified, against our device: in the plain
//! profile, so that its own queues in the region are what the PMM serves, with nothing of our frontend between them.
//!
//! The transport here does what the legacy registers ask of a driver. The driver waits for answers by spinning on its
//! ring, so a notification lets the PMM look before it returns.
#![allow(unsafe_code)] // the driver's interface to memory is an unsafe trait

use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hvl_shared_abi::header::{CONFIG, PLAIN_PAGE, QUEUE_POISON, reg};
use hvl_shared_abi::{Attribute, Mem, Region, Window};
use hvl_vsock_tests::{BASE, CID, Harbor, LEN, Pmm, ROOM, layout};
use virtio_drivers::device::socket::{VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Buffers that the driver lends to the device, in bytes each.
const LOAN: u32 = 1024;

/// What the driver's static functions and its transport share.
struct World {
    /// The region as this process reaches it.
    start: NonNull<u8>,
    m: Region,
    pmm: Pmm,
    /// The next page for the driver's queues, and the places for what it lends.
    page: u32,
    loans: Vec<u32>,
    selected: u16,
}

// SAFETY: the pointer is to memory that lives for ever and is reached through atomics or, by the driver, on one thread.
unsafe impl Send for World {}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

fn world() -> MutexGuard<'static, Option<World>> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with<T>(act: impl FnOnce(&mut World) -> T) -> T {
    act(world().as_mut().expect("the world was set up"))
}

impl World {
    fn set(harbor: &Harbor) {
        let words: &'static mut [AtomicU32] =
            (0..LEN / 4).map(|_| AtomicU32::new(0)).collect::<Vec<_>>().leak();
        let start = NonNull::new(words.as_mut_ptr().cast()).expect("no memory lies at 0");
        let m = Region::in_words(words, Attribute::Coherent);
        let page = layout().end().next_multiple_of(PLAIN_PAGE);
        let loans = (0..32).map(|index| LEN - LOAN * (index + 1)).collect();
        *world() = Some(World { start, m, pmm: Pmm::start(m, harbor), page, loans, selected: 0 });
    }
    fn register(&self, register: u32) -> u32 {
        Window::of(0).expect("the first window").at(register)
    }
    fn read(&self, register: u32) -> u32 {
        self.m.read32(self.register(register))
    }
    fn write(&mut self, register: u32, value: u32) {
        self.m.publish32(self.register(register), value);
    }
    /// The PMM looks, and the driver's side acknowledges what it says, as an interrupt handler does.
    fn look(&mut self) {
        self.pmm.service();
        for _ in 0..4 {
            let status = self.read(reg::INTERRUPT_STATUS);
            if status == 0 {
                break;
            }
            self.write(reg::INTERRUPT_ACK, status);
            self.pmm.service();
        }
    }
    fn address(&self, at: u32) -> NonNull<u8> {
        assert!(at < LEN);
        // SAFETY: `start` is that of `LEN` bytes.
        unsafe { self.start.add(at as usize) }
    }
}

struct InRegion;

// SAFETY: pages and loans are parts of the region that nobody else is given, aligned, for ever; a loan is at least as long
// as what is copied.
unsafe impl Hal for InRegion {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        with(|world| {
            let at = world.page;
            world.page += pages as u32 * PLAIN_PAGE;
            assert!(world.page <= LEN - 32 * LOAN, "the driver's queues fit");
            (BASE + u64::from(at), world.address(at))
        })
    }
    unsafe fn dma_dealloc(_paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        0
    }
    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        panic!("there are no registers of that kind")
    }
    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        with(|world| {
            let at = world.loans.pop().expect("a place for what is lent");
            assert!(buffer.len() as u32 <= LOAN);
            if direction != BufferDirection::DeviceToDriver {
                // SAFETY: the caller's buffer is valid to be read.
                world.m.copy_out(at, unsafe { buffer.as_ref() });
            }
            BASE + u64::from(at)
        })
    }
    unsafe fn unshare(paddr: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        with(|world| {
            let at = (paddr - BASE) as u32;
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: the caller's buffer is valid to be written.
                world.m.copy_in(at, unsafe { buffer.as_mut() });
            }
            world.loans.push(at);
        });
    }
}

struct Registers;

impl Transport for Registers {
    fn device_type(&self) -> DeviceType {
        DeviceType::Socket
    }
    fn read_device_features(&mut self) -> u64 {
        with(|world| world.read(reg::DEVICE_FEATURES).into())
    }
    fn write_driver_features(&mut self, features: u64) {
        with(|world| world.write(reg::DRIVER_FEATURES, features as u32));
    }
    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        with(|world| world.read(reg::QUEUE_NUM_MAX))
    }
    fn notify(&mut self, _queue: u16) {
        with(World::look);
    }
    fn get_status(&self) -> DeviceStatus {
        with(|world| DeviceStatus::from_bits_retain(world.read(reg::STATUS)))
    }
    fn set_status(&mut self, status: DeviceStatus) {
        with(|world| {
            world.write(reg::STATUS, status.bits());
            world.look();
        });
    }
    fn set_guest_page_size(&mut self, size: u32) {
        assert_eq!(size, PLAIN_PAGE);
    }
    fn requires_legacy_layout(&self) -> bool {
        true
    }
    fn queue_set(&mut self, queue: u16, size: u32, table: PhysAddr, _driver: PhysAddr, _device: PhysAddr) {
        with(|world| {
            world.write(reg::QUEUE_SEL, queue.into());
            world.write(reg::QUEUE_NUM, size);
            world.write(reg::QUEUE_PFN, (table / u64::from(PLAIN_PAGE)) as u32);
            world.look();
            assert_eq!(world.read(reg::QUEUE_NUM), QUEUE_POISON, "queue {queue} is taken over");
            world.selected = queue + 1;
        });
    }
    fn queue_unset(&mut self, _queue: u16) {}
    fn queue_used(&mut self, queue: u16) -> bool {
        with(|world| queue < world.selected)
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        with(World::look);
        InterruptStatus::QUEUE_INTERRUPT
    }
    fn read_config_generation(&self) -> u32 {
        with(|world| world.read(reg::CONFIG_GENERATION))
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        with(|world| world.m.copy_in(world.register(CONFIG + offset as u32), value.as_mut_bytes()));
        Ok(value)
    }
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _offset: usize,
        _value: T,
    ) -> Result<(), Error> {
        Err(Error::Unsupported)
    }
}

type Manager = VsockConnectionManager<InRegion, Registers>;

/// Looks until an event of this kind has come, and takes what else came before it.
fn wait(manager: &mut Manager, what: &str, wanted: impl Fn(&VsockEventType) -> bool) -> u32 {
    for _ in 0..100 {
        with(World::look);
        while let Some(event) = manager.poll().unwrap() {
            if wanted(&event.event_type) {
                return event.source.port;
            }
        }
    }
    panic!("no {what} after 100 looks");
}

/// Sends bytes through the guest to a client that gives them back, and looks that all of them return.
fn echo(manager: &mut Manager, harbor: &Harbor, slot: usize, peer: VsockAddr, port: u32) {
    let data: Vec<u8> = (0..40_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    assert!(data.len() > 4 * ROOM, "credit is used up and comes back");
    let (mut sent, mut given, mut got) = (0, 0, Vec::new());
    for _ in 0..10_000 {
        let part = &data[sent..data.len().min(sent + 500)];
        // An error is a peer without room for it now.
        if !part.is_empty() && manager.send(peer, port, part).is_ok() {
            sent += part.len();
        }
        let output = harbor.output(slot);
        harbor.send(slot, &output[given..]);
        given = output.len();
        with(World::look);
        while manager.poll().unwrap().is_some() {}
        let mut bytes = [0; 700];
        let count = manager.recv(peer, port, &mut bytes).unwrap();
        if count != 0 {
            got.extend_from_slice(&bytes[..count]);
            manager.update_credit(peer, port).unwrap();
        }
        if got.len() == data.len() {
            break;
        }
    }
    assert_eq!((sent, got.len()), (data.len(), data.len()));
    assert!(got == data);
}

#[test]
fn the_socket_driver_of_virtio_drivers_calls_and_is_called() {
    let harbor = Harbor::default();
    harbor.sea().listening.insert(99, ());
    World::set(&harbor);
    let mut manager = Manager::new(VirtIOSocket::new(Registers).unwrap());
    assert_eq!(manager.guest_cid(), u64::from(CID));

    // It calls, and is refused where nobody listens.
    let peer = VsockAddr { cid: 2, port: 99 };
    manager.connect(peer, 1000).unwrap();
    wait(&mut manager, "connection", |event| *event == VsockEventType::Connected);
    let slot = harbor.sea().berths.iter().position(|berth| berth.taken).unwrap();
    echo(&mut manager, &harbor, slot, peer, 1000);
    let nobody = VsockAddr { cid: 2, port: 98 };
    manager.connect(nobody, 1000).unwrap();
    wait(&mut manager, "refusal", |event| matches!(event, VsockEventType::Disconnected { .. }));

    // It closes; the device confirms it.
    manager.shutdown(peer, 1000).unwrap();
    wait(&mut manager, "goodbye", |event| matches!(event, VsockEventType::Disconnected { .. }));
    assert_eq!((harbor.at(slot, |berth| berth.finished), harbor.taken()), (Some(true), 0));

    // It is called; the client leaves.
    manager.listen(80);
    let slot = harbor.ask(80);
    let port = wait(&mut manager, "call", |event| *event == VsockEventType::ConnectionRequest);
    with(World::look);
    assert_eq!(harbor.at(slot, |berth| berth.granted), Some(port));
    echo(&mut manager, &harbor, slot, VsockAddr { cid: 2, port }, 80);
    harbor.hang_up(slot);
    wait(&mut manager, "end", |event| matches!(event, VsockEventType::Disconnected { .. }));
    with(World::look);
    assert_eq!(harbor.taken(), 0);
    // At a port where it does not listen, the client is turned away.
    let slot = harbor.ask(81);
    for _ in 0..4 {
        with(World::look);
        while manager.poll().unwrap().is_some() {}
    }
    assert_eq!(harbor.at(slot, |berth| (berth.granted, berth.taken)), (None, false));
}
