//! The foreign halves, and the memory that they share with ours.
//!
//! The only file here with `unsafe`: `virtio-drivers` takes Rust references to buffers and asks for a platform trait
//! that is unsafe to implement. References into the arena live for one call each, and nobody else touches the buffer
//! during it.

use hvl_shared_abi::header::Extent;
use hvl_shared_abi::{Attribute, Mem, QueuePlace, Region};
use std::cell::RefCell;
use std::ptr::NonNull;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// The guest's address of the arena's first byte: beyond 4 GiB, so that no half of an address is idle.
pub const BASE: u64 = 0x12_0000_0000;
/// Bytes for rings from the arena's start on.
const RINGS: u32 = 0x1_0000;
/// Bytes that follow, where indirect tables are put, which `virtio-drivers` keeps on its heap.
const BOUNCE: u32 = 0x1_0000;
/// Bytes of one such table's place.
const BOUNCE_BLOCK: u32 = 0x200;
/// Bytes for buffers at the end.
pub const POOL: u32 = 0x2_0000;

/// Memory that two halves share, each in its own way: the same bytes as a [`Region`] and as guest memory.
#[derive(Clone, Copy)]
pub struct Arena {
    /// As our halves see it.
    pub region: Region,
    /// As `virtio-queue` sees it.
    pub guest: &'static GuestMemoryMmap,
}

impl Arena {
    /// New memory, zeroed and never given back: tests and benchmarks are short.
    #[allow(clippy::new_without_default)] // it leaks, which a default should not
    pub fn new() -> Arena {
        let len = RINGS + BOUNCE + POOL;
        let guest = GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), len as usize)]);
        let guest: &'static GuestMemoryMmap = Box::leak(Box::new(guest.expect("memory for the arena")));
        let base = guest.get_host_address(GuestAddress(BASE)).expect("the address it was placed at");
        // SAFETY: 1. the mapping is page-aligned, readable, writable and leaked; 2. references into it are made only
        // in this file, for one call each, of buffers that their half owns then; 3. one program is coherent.
        #[allow(unsafe_code)]
        let region = unsafe {
            Region::new(NonNull::new(base).expect("a mapping is not at 0"), len, Attribute::Coherent)
        };
        Arena { region, guest }
    }

    /// Where buffers may lie.
    pub const fn pool(&self) -> Extent {
        Extent { at: RINGS + BOUNCE, len: POOL }
    }
    /// Everything that a descriptor may name: buffers and indirect tables.
    pub const fn shared(&self) -> Extent {
        Extent { at: RINGS, len: BOUNCE + POOL }
    }
    /// A place for a ring where `virtio-drivers` would put it, too: descriptors and available ring on the first page,
    /// the used ring on the next.
    pub const fn place(&self, size: u16) -> QueuePlace {
        let avail = QueuePlace::desc_bytes(size);
        let pages = (avail + QueuePlace::avail_bytes(size)).next_multiple_of(PAGE_SIZE as u32);
        QueuePlace {
            size,
            desc: PAGE_SIZE as u32,
            avail: PAGE_SIZE as u32 + avail,
            used: PAGE_SIZE as u32 + pages,
        }
    }

    /// Zeroes the rings.
    pub fn clear(&self) {
        for at in (0..RINGS).step_by(4) {
            self.region.write32(at, 0);
        }
    }

    fn offset(&self, address: NonNull<u8>, len: usize) -> Option<u32> {
        let at = address.addr().get().checked_sub(self.region.base().addr().get())?;
        let at = u32::try_from(at).ok()?;
        hvl_shared_abi::mem::inside(at, u32::try_from(len).ok()?, self.region.len()).then_some(at)
    }

    fn pointer(&self, at: u32) -> NonNull<u8> {
        // SAFETY: `at` was checked to lie in the arena by the callers, and the arena is one mapping.
        #[allow(unsafe_code)]
        unsafe {
            self.region.base().add(at as usize)
        }
    }

    #[allow(unsafe_code)]
    fn slice(&self, place: Extent) -> &'static [u8] {
        assert!(self.pool().contains(place), "a buffer lies in the pool");
        // SAFETY: 1. it lies in the mapping, which is leaked and initialised; 2. the reference lives for one call of
        // the queue, which only takes its address: the device has not been shown the buffer yet, or no longer has it.
        unsafe { std::slice::from_raw_parts(self.pointer(place.at).as_ptr(), place.len as usize) }
    }
    #[allow(unsafe_code)]
    fn slice_mut(&self, place: Extent) -> &'static mut [u8] {
        assert!(self.pool().contains(place), "a buffer lies in the pool");
        // SAFETY: as for `slice`; and buffers of one chain do not overlap, so that the reference is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(place.at).as_ptr(), place.len as usize) }
    }
}

/// What the platform trait of `virtio-drivers`, which has no `self`, knows on this thread.
struct Platform {
    arena: Arena,
    next_page: u32,
    bounce: Vec<u32>,
}

thread_local! {
    static PLATFORM: RefCell<Option<Platform>> = const { RefCell::new(None) };
}

fn platform<T>(with: impl FnOnce(&mut Platform) -> T) -> T {
    PLATFORM.with_borrow_mut(|platform| with(platform.as_mut().expect("a StockDriver lives on this thread")))
}

/// The platform that `virtio-drivers` runs on.
pub struct ArenaHal;

// SAFETY: 1. pages come from the arena, one after the other, page-aligned, zeroed, and are given once per `StockDriver`;
// 2. the arena is never unmapped; 3. no other reference to them is made.
#[allow(unsafe_code)]
unsafe impl Hal for ArenaHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        platform(|platform| {
            let at = platform.next_page;
            platform.next_page += (pages * PAGE_SIZE) as u32;
            assert!(platform.next_page <= RINGS, "rings fit the arena");
            (BASE + u64::from(at), platform.arena.pointer(at))
        })
    }
    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }
    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("only a PCI transport asks")
    }
    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        platform(|platform| {
            if let Some(at) = platform.arena.offset(buffer.cast(), buffer.len()) {
                return BASE + u64::from(at);
            }
            // An indirect table, from the heap.
            assert!(buffer.len() <= BOUNCE_BLOCK as usize, "an indirect table fits its block");
            let at = platform.bounce.pop().expect("a block for each chain");
            // SAFETY: the caller promises a valid buffer that nobody else uses during the call.
            platform.arena.region.copy_out(at, unsafe { buffer.as_ref() });
            BASE + u64::from(at)
        })
    }
    unsafe fn unshare(address: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {
        platform(|platform| {
            let at = (address - BASE) as u32;
            if !platform.arena.pool().contains(Extent { at, len: 1 }) {
                platform.bounce.push(at);
            }
        });
    }
}

/// A transport that only remembers where the queue was put.
struct Placed(Option<QueuePlace>);

impl Transport for Placed {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }
    fn read_device_features(&mut self) -> u64 {
        0
    }
    fn write_driver_features(&mut self, _: u64) {}
    fn max_queue_size(&mut self, _: u16) -> u32 {
        hvl_shared_abi::layout::MAX_QUEUE_SIZE.into()
    }
    fn notify(&mut self, _: u16) {}
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::empty()
    }
    fn set_status(&mut self, _: DeviceStatus) {}
    fn set_guest_page_size(&mut self, _: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, _: u16, size: u32, desc: PhysAddr, avail: PhysAddr, used: PhysAddr) {
        let [desc, avail, used] = [desc, avail, used].map(|address| (address - BASE) as u32);
        self.0 = Some(QueuePlace { size: size as u16, desc, avail, used });
    }
    fn queue_unset(&mut self, _: u16) {}
    fn queue_used(&mut self, _: u16) -> bool {
        false
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }
    fn read_config_generation(&self) -> u32 {
        0
    }
    fn read_config_space<T>(&self, _: usize) -> virtio_drivers::Result<T> {
        Err(virtio_drivers::Error::ConfigSpaceMissing)
    }
    fn write_config_space<T>(&mut self, _: usize, _: T) -> virtio_drivers::Result<()> {
        Err(virtio_drivers::Error::ConfigSpaceMissing)
    }
}

/// Most segments on one side of a chain.
pub const MAX_SEGMENTS: usize = 4;

/// The driver half of `virtio-drivers`. It stays on the thread that made it, on which there is one at a time.
pub struct StockDriver<const SIZE: usize> {
    arena: Arena,
    queue: VirtQueue<ArenaHal, SIZE>,
    not_send: std::marker::PhantomData<*const ()>,
}

impl<const SIZE: usize> StockDriver<SIZE> {
    /// A new ring in the arena, zeroed, at [`Arena::place`].
    pub fn new(arena: Arena, indirect: bool, event_idx: bool) -> StockDriver<SIZE> {
        arena.clear();
        let bounce = (RINGS..RINGS + BOUNCE).step_by(BOUNCE_BLOCK as usize).collect();
        PLATFORM.set(Some(Platform { arena, next_page: PAGE_SIZE as u32, bounce }));
        let mut transport = Placed(None);
        let queue = VirtQueue::new(&mut transport, 0, indirect, event_idx).expect("a queue of that size");
        assert_eq!(transport.0, Some(arena.place(SIZE as u16)), "the queue lies where ours would");
        StockDriver { arena, queue, not_send: std::marker::PhantomData }
    }

    /// Adds a chain and makes it available. `None`: the queue is full.
    #[inline]
    pub fn add(&mut self, readable: &[Extent], writable: &[Extent]) -> Option<u16> {
        self.with(readable, writable, |queue, inputs, outputs| {
            // SAFETY: the buffers are never freed, and nothing but the device touches them before `pop`.
            #[allow(unsafe_code)]
            unsafe {
                queue.add(inputs, outputs).ok()
            }
        })
    }
    /// Whether the device asked to be told.
    #[inline]
    pub fn should_notify(&self) -> bool {
        self.queue.should_notify()
    }
    /// The next completion's chain.
    #[inline]
    pub fn peek(&self) -> Option<u16> {
        self.queue.peek_used()
    }
    /// Takes the next completion, of a chain that was added with these buffers, and returns the bytes written.
    #[inline]
    pub fn pop(&mut self, token: u16, readable: &[Extent], writable: &[Extent]) -> Option<u32> {
        self.with(readable, writable, |queue, inputs, outputs| {
            // SAFETY: the caller names the buffers that the chain was added with; a mistake is a panic of the queue's
            // or a wrong answer, since `ArenaHal` copies nothing.
            #[allow(unsafe_code)]
            unsafe {
                queue.pop_used(token, inputs, outputs).ok()
            }
        })
    }

    /// The buffers as the slices of slices that the queue takes, without a heap.
    #[inline]
    fn with<T>(
        &mut self,
        readable: &[Extent],
        writable: &[Extent],
        call: impl for<'a> FnOnce(&mut VirtQueue<ArenaHal, SIZE>, &'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> T,
    ) -> T {
        let mut inputs: [&[u8]; MAX_SEGMENTS] = [&[]; MAX_SEGMENTS];
        let mut outputs: [&mut [u8]; MAX_SEGMENTS] = std::array::from_fn(|_| Default::default());
        for (slot, place) in inputs.iter_mut().zip(readable) {
            *slot = self.arena.slice(*place);
        }
        for (slot, place) in outputs.iter_mut().zip(writable) {
            *slot = self.arena.slice_mut(*place);
        }
        call(&mut self.queue, &inputs[..readable.len()], &mut outputs[..writable.len()])
    }
}

/// The device half of `virtio-queue`, at a place in an arena.
pub fn stock_device(arena: Arena, place: QueuePlace, event_idx: bool) -> Queue {
    let mut queue = Queue::new(place.size).expect("a power of two");
    queue.set_size(place.size);
    let address = |at: u32| {
        let address = BASE + u64::from(at);
        (Some(address as u32), Some((address >> 32) as u32))
    };
    let (low, high) = address(place.desc);
    queue.set_desc_table_address(low, high);
    let (low, high) = address(place.avail);
    queue.set_avail_ring_address(low, high);
    let (low, high) = address(place.used);
    queue.set_used_ring_address(low, high);
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    assert!(queue.is_valid(arena.guest), "the ring lies in the arena");
    queue
}
