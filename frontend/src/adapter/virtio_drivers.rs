//! Drivers of the `virtio-drivers` crate, unmodified, over a link of the extended profile.
//!
//! Such a driver brings its own queue, of its own size, in pages that its `Hal` allocates, while the places of our
//! queues are the PMM's to publish. So the two do not share a ring: the driver's queue lies in private pages, this
//! module is the *device* of it, and carries each buffer over into the link's own queue.
//!
//! ```text
//!   VirtIORng, VirtIOConsole, VirtIONet   driver of that crate, with BounceHal<P> and Pipe<P>
//!        │ its virtqueue, in private pages (Hal::dma_alloc)
//!     Bridge                          takes chains from it, completes chains in it
//!        │ blocks of the pool (Hal::share copies in, Hal::unshare copies out)
//!     the link's queue                restarts, checks, doorbells, as for every device here
//! ```
//!
//! The driver never sees what a PMM wrote but through this crate's checks; a PMM that restarts goes unnoticed. What
//! the alternative would have needed, a PMM that places rings where this driver's `Hal` would allocate them, of
//! exactly the size that is compiled into it, and that driver's trust in every word of a used ring, is not worth
//! having.
//!
//! When are buffers carried over? At each notification, and in `ack_interrupt`, which a program calls after a
//! doorbell. The drivers wait for an answer by spinning on their ring, which no one else would fill; so a
//! notification of a queue that answers (all but a console's receive queue) returns only when the answers are there,
//! or the bridge's timeout is over. Then the driver gets an answer of length 0, and the block follows later or never.
//!
//! A request to be read of two buffers, as a network card's header and frame, is put together in one block. **Not
//! supported**: other requests of more than one buffer; a network card with more than 4 receive buffers; blocking reads
//! of the console (`Read`), which spin without telling the transport: call `ack_interrupt`, then `recv`; EVENT_IDX and
//! indirect descriptors, which are not offered; a PMM that comes back with another layout: the device then asks to be
//! reset for good.

use core::marker::PhantomData;
use core::ptr::NonNull;

use hvl_shared_abi::header::{Extent, PLAIN_PAGE};
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::ring::{Access, DeviceRing, Segment, Taken, Token, Windows};
use hvl_shared_abi::wire::{console, net};
use hvl_shared_abi::{Attribute, DeviceId, Features, Mem, QueuePlace, Region};
use spin::mutex::{SpinMutex, SpinMutexGuard};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::adapter::Timeout;
use crate::bounce::{Kind, Queue, QueueStorage};
use crate::link::{Link, OpenError};
use crate::platform::{Clock, Instant, Wait, earlier};

/// Queues of a device, at most.
const QUEUES: usize = 2;
/// Blocks of a queue: few, so that each is as large as the page that a console receives into.
const BLOCKS: usize = 4;
/// Entries of the driver's own queue, at most.
const ENTRIES: usize = 16;
/// Pages for the driver's queues: two each.
const PAGES: usize = 4;
/// Bytes of configuration space that are copied.
const CONFIG: usize = 64;
/// What the driver is told as the address of its private pages. Nobody else ever sees it.
const PRIVATE: PhysAddr = 1 << 40;

/// One page of private memory.
#[repr(C, align(4096))]
#[derive(Debug)]
struct Page([u8; PLAIN_PAGE as usize]);

/// The caller's storage of one bridge, for link queues of at most `N` entries.
#[derive(Debug)]
pub struct BridgeStorage<const N: usize = 64> {
    pages: [Page; PAGES],
    slots: [[DeviceSlot; ENTRIES]; QUEUES],
    queues: [QueueStorage<N>; QUEUES],
}

impl<const N: usize> BridgeStorage<N> {
    /// Storage that no bridge uses yet.
    pub const NEW: BridgeStorage<N> = BridgeStorage {
        pages: [const { Page([0; PLAIN_PAGE as usize]) }; PAGES],
        slots: [[DeviceSlot::NEW; ENTRIES]; QUEUES],
        queues: [const { QueueStorage::NEW }; QUEUES],
    };
}

/// Where a block of ours stands with the driver.
#[derive(Clone, Copy, Debug, Default)]
enum Lent {
    /// Not lent.
    #[default]
    No,
    /// The driver has its address.
    Shared,
    /// It is in the link's queue, for this chain of the driver's.
    Posted(Token),
    /// The driver may take this many bytes back.
    Done(u32),
    /// The driver was told that nothing came; the PMM still has it.
    Abandoned,
}

/// One queue of the driver, seen from the device's side.
#[derive(Debug)]
struct Side {
    ring: Option<DeviceRing<'static>>,
    slots: Option<&'static mut [DeviceSlot]>,
    /// Whether the driver has set the ring up.
    used: bool,
    writable: bool,
    /// Answers come when they come; a notification does not wait for them.
    receive: bool,
    lent: [Lent; BLOCKS],
    layout: u32,
}

struct State<B> {
    link: Link<'static, B>,
    cell: usize,
    id: DeviceType,
    timeout: Timeout,
    pages: Region,
    taken: u32,
    sides: [Option<Side>; QUEUES],
    status: DeviceStatus,
    features: u64,
    config: Option<[u8; CONFIG]>,
    generation: u32,
    broken: bool,
    /// A transport to it has been handed out.
    piped: bool,
}

/// The state behind one driver, in a `static`.
pub struct Bridge<B> {
    state: SpinMutex<Option<State<B>>>,
}

impl<B> core::fmt::Debug for Bridge<B> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Bridge")
    }
}

/// Names the bridge that a driver's static functions reach: `Hal` has no instance.
pub trait Port {
    /// The board.
    type Board: Wait + 'static;
    /// The bridge. Always the same one.
    fn bridge() -> &'static Bridge<Self::Board>;
}

/// Why a bridge has no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeError {
    /// The device cannot be opened.
    Open(OpenError),
    /// The bridge has one already.
    InUse,
    /// The board has no clock, and the drivers' calls could wait for ever.
    NoClock,
    /// No PMM runs the device within the timeout.
    LinkDown,
}

impl core::fmt::Display for BridgeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            BridgeError::Open(error) => write!(f, "{error}"),
            BridgeError::InUse => f.write_str("the bridge has a device already; give each driver its own"),
            BridgeError::NoClock => {
                f.write_str("the board has no clock, which the bridge needs to end a wait")
            }
            BridgeError::LinkDown => f.write_str("no PMM ran the device in time"),
        }
    }
}

impl core::error::Error for BridgeError {}

impl<B: Wait> Default for Bridge<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Wait> Bridge<B> {
    /// A bridge without a device.
    pub const fn new() -> Bridge<B> {
        Bridge { state: SpinMutex::new(None) }
    }

    fn state(&self) -> Option<SpinMutexGuard<'_, Option<State<B>>>> {
        self.state.try_lock()
    }
    fn with<T>(&self, work: impl FnOnce(&mut State<B>) -> T) -> Option<T> {
        self.state()?.as_mut().map(work)
    }
}

/// The transport of one driver.
#[derive(Debug)]
pub struct Pipe<P> {
    port: PhantomData<fn() -> P>,
}

impl<P: Port> Pipe<P> {
    /// A transport to the link's entropy device, for `VirtIORng`. Waits up to `timeout` for a PMM to run it; later
    /// calls wait as long at most for an answer.
    pub fn rng<const N: usize>(
        link: &Link<'static, P::Board>,
        storage: &'static mut BridgeStorage<N>,
        timeout: Timeout,
    ) -> Result<Pipe<P>, BridgeError> {
        Self::open(link, storage, timeout, DeviceId::RNG)
    }

    /// A transport to the link's console, for `VirtIOConsole`.
    pub fn console<const N: usize>(
        link: &Link<'static, P::Board>,
        storage: &'static mut BridgeStorage<N>,
        timeout: Timeout,
    ) -> Result<Pipe<P>, BridgeError> {
        Self::open(link, storage, timeout, DeviceId::CONSOLE)
    }

    /// A transport to the link's first network card, for `VirtIONet` with a queue of 4 and `VirtIONetRaw`.
    pub fn net<const N: usize>(
        link: &Link<'static, P::Board>,
        storage: &'static mut BridgeStorage<N>,
        timeout: Timeout,
    ) -> Result<Pipe<P>, BridgeError> {
        Self::open(link, storage, timeout, DeviceId::NET)
    }

    #[allow(unsafe_code)]
    fn open<const N: usize>(
        link: &Link<'static, P::Board>,
        storage: &'static mut BridgeStorage<N>,
        timeout: Timeout,
        id: DeviceId,
    ) -> Result<Pipe<P>, BridgeError> {
        let board = link.board().clone();
        if !board.now().is_known() {
            return Err(BridgeError::NoClock);
        }
        let mut slot = P::bridge().state().filter(|slot| slot.is_none()).ok_or(BridgeError::InUse)?;
        let BridgeStorage { pages, slots, queues } = storage;
        let [first_slots, second_slots] = slots;
        let [first, second] = queues;
        let (has_two, kind, wanted) = match id {
            DeviceId::CONSOLE => (true, DeviceType::Console, console::F_SIZE),
            DeviceId::NET => (true, DeviceType::Network, net::F_MAC | net::F_STATUS),
            _ => (false, DeviceType::EntropySource, 0),
        };
        let side = |slots: &'static mut [DeviceSlot; ENTRIES], writable, receive| Side {
            ring: None,
            slots: Some(slots),
            used: false,
            writable,
            receive,
            lent: [Lent::No; BLOCKS],
            layout: 0,
        };
        let (index, mut cell) = link.open(id, 0, wanted).map_err(BridgeError::Open)?;
        let most = BLOCKS as u16;
        let [input, output, ..] = &mut cell.queues;
        input.open(first.slices(), Kind::Request, most);
        if has_two {
            output.open(second.slices(), Kind::Order, most);
        }
        drop(cell);
        // SAFETY: 1. the pages are aligned, mapped and ours for ever; 2. the reference to them ends here, and what the
        // driver is given are pointers, which that crate never turns into references that outlive an access; 3. one
        // program is coherent with itself.
        let pages = unsafe {
            let len = size_of_val(pages) as u32;
            Region::new(NonNull::from(pages).cast(), len, Attribute::Coherent)
        };
        let state = State {
            link: link.clone(),
            cell: index,
            id: kind,
            timeout,
            pages,
            taken: 0,
            sides: [
                Some(side(first_slots, true, has_two)),
                has_two.then(|| side(second_slots, false, false)),
            ],
            status: DeviceStatus::empty(),
            features: 0,
            config: None,
            generation: 0,
            broken: false,
            piped: false,
        };
        *slot = Some(state);
        drop(slot);
        Self::again()
    }

    /// After [`BridgeError::LinkDown`]: waits once more for a PMM to run the device, which has stayed open.
    pub fn again() -> Result<Pipe<P>, BridgeError> {
        let mut slot = P::bridge().state().ok_or(BridgeError::InUse)?;
        let state = slot.as_mut().filter(|state| !state.piped).ok_or(BridgeError::InUse)?;
        let until = state.link.board().now().plus(state.timeout.micros);
        while !state.refresh() {
            if state.link.board().now() >= until {
                return Err(BridgeError::LinkDown);
            }
            state.sleep(until);
        }
        state.piped = true;
        Ok(Pipe { port: PhantomData })
    }
}

impl<B: Wait> State<B> {
    /// Looks at the link, and copies what the driver may ask about the device. Whether it runs.
    fn refresh(&mut self) -> bool {
        let m = self.link.mem().clone();
        let Some(mut cell) = self.link.enter(self.cell) else { return false };
        if !cell.runs() {
            return false;
        }
        self.features = cell.accepted().bits();
        let config = cell.config(&m);
        if config.is_some() && config != self.config {
            (self.config, self.generation) = (config, self.generation.wrapping_add(1));
        }
        for (index, side) in self.sides.iter_mut().enumerate() {
            if let (Some(side), Some(queue)) = (side, cell.queue(index)) {
                let untouched = side.lent.iter().all(|lent| matches!(lent, Lent::No));
                if untouched {
                    side.layout = queue.layout();
                }
                self.broken |= side.layout != queue.layout();
            }
        }
        true
    }

    fn sleep(&self, until: Instant) {
        match self.link.next_deadline_of(self.cell) {
            Some(Instant::UNKNOWN) => {}
            next => self.link.board().wait_for_doorbell(earlier(next, Some(until))),
        }
    }

    /// Carries buffers over in both directions. Whether anything was completed.
    fn relay(&mut self) -> bool {
        self.refresh();
        if self.broken {
            return false;
        }
        let mut progress = false;
        let m = self.link.mem().clone();
        let Some(mut cell) = self.link.enter(self.cell) else { return false };
        let runs = cell.runs();
        for (index, side) in self.sides.iter_mut().enumerate() {
            let (Some(side), Some(queue)) = (side, cell.queue(index)) else { continue };
            if side.layout != queue.layout() {
                self.broken = true;
                continue;
            }
            let Some(ring) = side.ring.as_mut().filter(|_| side.used) else { continue };
            while let Some((block, len)) = queue.take_ready() {
                let Some(lent) = side.lent.get_mut(usize::from(block)) else { continue };
                match *lent {
                    // The driver promises itself that there is something.
                    Lent::Posted(_) if len == 0 && side.receive => {
                        let size = queue.extent(block).len;
                        queue.post(&m, block, size);
                    }
                    Lent::Posted(token) => {
                        ring.complete(&self.pages, token, len);
                        *lent = Lent::Done(len);
                        progress = true;
                    }
                    Lent::No | Lent::Shared | Lent::Done(_) | Lent::Abandoned => {
                        *lent = Lent::No;
                        queue.release(block);
                    }
                }
            }
            let area = area(queue);
            let base = self.link.board().region().base;
            for _ in 0..ENTRIES {
                let mut segments = [Segment::readable(0, 0); 2];
                let windows = Windows { base, allowed: &[area] };
                let taken = if runs { ring.take(&self.pages, windows, &mut segments) } else { Ok(None) };
                let token = match taken {
                    Ok(None) => break,
                    Err(_) => {
                        self.broken = true;
                        break;
                    }
                    Ok(Some(Taken::Malformed { token, .. })) => token,
                    Ok(Some(Taken::Chain { token, readable, writable })) => {
                        let count = readable.saturating_add(writable);
                        let segment = gather(&m, queue, &mut side.lent, &segments, count);
                        let block = queue.block_at(segment.place.at).map(usize::from);
                        let lent = block.and_then(|block| side.lent.get_mut(block));
                        let right = (segment.access == Access::Writable) == side.writable;
                        match (block, lent) {
                            (Some(block), Some(lent @ Lent::Shared)) if right => {
                                *lent = Lent::Posted(token);
                                queue.post(&m, block as u16, segment.place.len);
                                continue;
                            }
                            _ => token,
                        }
                    }
                };
                ring.complete(&self.pages, token, 0);
            }
            ring.publish(&self.pages);
        }
        cell.publish(&self.link);
        progress
    }

    /// Whether the driver waits for an answer in this queue.
    fn waits(&self, index: usize) -> bool {
        let side = self.sides.get(index).and_then(|side| side.as_ref());
        side.is_some_and(|side| {
            let ring = side.ring.as_ref();
            !side.receive && ring.is_some_and(|ring| ring.in_flight() != 0 || ring.has_available(&self.pages))
        })
    }

    /// Tells the driver that nothing came.
    fn abandon(&mut self, index: usize) {
        let Some(Some(side)) = self.sides.get_mut(index) else { return };
        let Some(ring) = &mut side.ring else { return };
        for lent in &mut side.lent {
            if let Lent::Posted(token) = *lent {
                ring.complete(&self.pages, token, 0);
                *lent = Lent::Abandoned;
            }
        }
        // What was not even taken over.
        for _ in 0..ENTRIES {
            let mut segments = [Segment::readable(0, 0); 2];
            let nowhere = Windows { base: 0, allowed: &[] };
            match ring.take(&self.pages, nowhere, &mut segments) {
                Ok(Some(Taken::Malformed { token, .. } | Taken::Chain { token, .. })) => {
                    ring.complete(&self.pages, token, 0);
                }
                Ok(None) | Err(_) => break,
            }
        }
        ring.publish(&self.pages);
    }

    fn notify(&mut self, index: usize) {
        let until = self.link.board().now().plus(self.timeout.micros);
        self.relay();
        while self.waits(index) {
            if self.broken || self.link.board().now() >= until {
                self.abandon(index);
                break;
            }
            self.sleep(until);
            self.relay();
        }
    }

    /// Gives the driver's queue a place in the private pages.
    fn set_queue(&mut self, index: usize, size: u32, parts: [PhysAddr; 3]) {
        let len = self.pages.len();
        let offset = |address: PhysAddr| u32::try_from(address.checked_sub(PRIVATE)?).ok();
        let [Some(desc), Some(avail), Some(used)] = parts.map(offset) else { return };
        let Ok(size) = u16::try_from(size) else { return };
        let place = QueuePlace { size, desc, avail, used };
        if !place.is_sound(Extent { at: 0, len }) {
            return;
        }
        let Some(Some(side)) = self.sides.get_mut(index) else { return };
        match (&mut side.ring, side.slots.take()) {
            (ring @ None, Some(slots)) if usize::from(size) <= slots.len() => {
                *ring = DeviceRing::new(place, slots);
            }
            (Some(ring), _) => {
                ring.replace(place);
            }
            (None, slots) => side.slots = slots,
        }
        side.used = side.ring.is_some();
        if let Some(ring) = &mut side.ring {
            ring.start(&self.pages, Features::VERSION_1, 0);
        }
    }

    /// Takes the lowest run of free private pages.
    fn take_pages(&mut self, count: usize) -> Option<u32> {
        let count = u32::try_from(count).ok().filter(|&count| count != 0 && count <= PAGES as u32)?;
        let run = 1u32.checked_shl(count)?.wrapping_sub(1);
        let last = (PAGES as u32).saturating_sub(count);
        let first = (0..=last).find(|&first| self.taken & (run << first) == 0)?;
        self.taken |= run << first;
        let at = first.wrapping_mul(PLAIN_PAGE);
        for word in (0..count.wrapping_mul(PLAIN_PAGE)).step_by(4) {
            self.pages.write32(at.wrapping_add(word), 0);
        }
        Some(at)
    }

    /// Lends a block to the driver, with a copy of `bytes` in it. The side of a direction is the queue that has it.
    fn share(&mut self, len: usize, bytes: Option<&[u8]>) -> Option<PhysAddr> {
        let base = self.link.board().region().base;
        let m = self.link.mem().clone();
        let writable = bytes.is_none();
        let index =
            self.sides.iter().position(|side| side.as_ref().is_some_and(|side| side.writable == writable))?;
        let mut cell = self.link.cell(self.cell)?;
        let (queue, side) = (cell.queue(index)?, self.sides.get_mut(index)?.as_mut()?);
        if side.layout != queue.layout() || !queue.has_free() {
            return None;
        }
        let block = queue.take()?;
        let place = queue.extent(block);
        let fits = u32::try_from(len).is_ok_and(|len| len <= place.len);
        match side.lent.get_mut(usize::from(block)) {
            Some(lent) if fits => *lent = Lent::Shared,
            _ => {
                queue.release(block);
                return None;
            }
        }
        if let Some(bytes) = bytes {
            m.copy_out(place.at, bytes);
        }
        Some(base.wrapping_add(u64::from(place.at)))
    }

    /// Takes a block back, with what came in it.
    fn unshare(&mut self, address: PhysAddr, mut into: Option<&mut [u8]>) {
        let region = self.link.board().region();
        let m = self.link.mem().clone();
        let Some(at) = region.offset(address, 1) else { return };
        let Some(mut cell) = self.link.cell(self.cell) else { return };
        for (index, side) in self.sides.iter_mut().enumerate() {
            let (Some(side), Some(queue)) = (side, cell.queue(index)) else { continue };
            let block = queue.block_at(at).filter(|_| side.layout == queue.layout());
            let Some(block) = block else { continue };
            let Some(lent) = side.lent.get_mut(usize::from(block)) else { continue };
            match *lent {
                Lent::Done(len) => {
                    let came = into.take().and_then(|into| into.get_mut(..len as usize));
                    if let Some(came) = came {
                        m.copy_in(at, came);
                    }
                }
                Lent::Shared => {}
                // The PMM has it still, or it is none of the driver's.
                Lent::No | Lent::Posted(_) | Lent::Abandoned => continue,
            }
            *lent = Lent::No;
            queue.release(block);
        }
    }
}

/// The one segment of a request; a frame behind its header is put together in the header's block, and its own block is
/// the driver's to take back. A request of any other shape has none.
fn gather<M: Mem>(
    m: &M,
    queue: &Queue<'_>,
    side: &mut [Lent],
    segments: &[Segment; 2],
    count: usize,
) -> Segment {
    let nothing = Segment::readable(0, 0);
    let [first, second] = *segments;
    if count == 1 {
        return first;
    }
    let both = queue.block_at(first.place.at).zip(queue.block_at(second.place.at));
    let Some((block, other)) = both.filter(|_| count == 2 && second.access == Access::Readable) else {
        return nothing;
    };
    let len = first.place.len.saturating_add(second.place.len);
    let fits = block != other && len <= queue.extent(block).len;
    match side.get_mut(usize::from(other)) {
        Some(lent @ Lent::Shared) if fits => *lent = Lent::Done(0),
        _ => return nothing,
    }
    let mut bytes = [0; 64];
    for at in (0..second.place.len).step_by(bytes.len()) {
        let part = second.place.len.saturating_sub(at).min(bytes.len() as u32);
        if let Some(part) = bytes.get_mut(..part as usize) {
            m.copy_in(second.place.at.wrapping_add(at), part);
            m.copy_out(first.place.end().wrapping_add(at), part);
        }
    }
    Segment::readable(first.place.at, len)
}

/// All blocks of a queue.
fn area(queue: &Queue<'_>) -> Extent {
    let first = queue.extent(0);
    Extent { at: first.at, len: first.len.saturating_mul(BLOCKS as u32) }
}

/// The `Hal` of the driver on port `P`: private pages for its queue, blocks of the pool for its buffers.
#[derive(Debug)]
pub struct BounceHal<P>(PhantomData<fn() -> P>);

// SAFETY: 1. `dma_alloc` hands out pages of storage that is the bridge's for ever, aligned to a page, zeroed, and no
// page twice before it was given back; nothing but the driver and the bridge's region reaches them, and neither makes
// references to them. 2. Where it has none it returns the address 0, which the crate takes for a failure, with a
// pointer that is aligned and never followed. 3. `share` and `unshare` touch the buffer only during the call.
#[allow(unsafe_code)]
unsafe impl<P: Port> Hal for BounceHal<P> {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let taken = P::bridge().with(|state| {
            let at = state.take_pages(pages)?;
            let start = state.pages.base().as_ptr().wrapping_add(at as usize);
            Some((PRIVATE.wrapping_add(u64::from(at)), NonNull::new(start)?))
        });
        taken.flatten().unwrap_or((0, NonNull::<Page>::dangling().cast()))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        let page = (paddr.wrapping_sub(PRIVATE) as u32).checked_div(PLAIN_PAGE).unwrap_or(u32::MAX);
        let run = 1u32.checked_shl(pages as u32).unwrap_or(0).wrapping_sub(1);
        P::bridge().with(|state| state.taken &= !run.checked_shl(page).unwrap_or(0));
        0
    }

    /// Never asked for: there is no PCI.
    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::<Page>::dangling().cast()
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let bytes = match direction {
            // SAFETY: 1. the caller promises a valid buffer that nobody else accesses during the call; 2. the driver
            // sends it, so it is initialised.
            BufferDirection::DriverToDevice => Some(unsafe { buffer.as_ref() }),
            BufferDirection::DeviceToDriver | BufferDirection::Both => None,
        };
        // An address that is in no pool makes a chain that is answered with nothing.
        P::bridge().with(|state| state.share(buffer.len(), bytes)).flatten().unwrap_or(0)
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let mut buffer = buffer;
        let into = match direction {
            BufferDirection::DriverToDevice => None,
            BufferDirection::DeviceToDriver | BufferDirection::Both => {
                // SAFETY: 1. the caller promises a valid buffer that nobody else accesses during the call; 2. the
                // driver made it from a slice of bytes, so it is initialised.
                Some(unsafe { buffer.as_mut() })
            }
        };
        P::bridge().with(|state| state.unshare(paddr, into));
    }
}

impl<P: Port> Transport for Pipe<P> {
    fn device_type(&self) -> DeviceType {
        P::bridge().with(|state| state.id).unwrap_or(DeviceType::EntropySource)
    }
    /// VERSION_1, and what the device has of its own: the rest concerns the link's rings and not the driver's.
    fn read_device_features(&mut self) -> u64 {
        let own = (1 << 24) - 1;
        P::bridge().with(|state| state.features & own | Features::VERSION_1.bits()).unwrap_or(0)
    }
    fn write_driver_features(&mut self, _driver_features: u64) {}
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        let there =
            P::bridge().with(|state| state.sides.get(usize::from(queue)).is_some_and(Option::is_some));
        if there == Some(true) { ENTRIES as u32 } else { 0 }
    }
    fn notify(&mut self, queue: u16) {
        P::bridge().with(|state| state.notify(usize::from(queue)));
    }
    fn get_status(&self) -> DeviceStatus {
        let status = P::bridge().with(|state| {
            if state.broken { state.status | DeviceStatus::DEVICE_NEEDS_RESET } else { state.status }
        });
        status.unwrap_or(DeviceStatus::FAILED)
    }
    fn set_status(&mut self, status: DeviceStatus) {
        P::bridge().with(|state| state.status = status);
    }
    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, queue: u16, size: u32, desc: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        P::bridge().with(|state| state.set_queue(usize::from(queue), size, [desc, driver, device]));
    }
    fn queue_unset(&mut self, queue: u16) {
        P::bridge().with(|state| {
            if let Some(Some(side)) = state.sides.get_mut(usize::from(queue)) {
                for lent in &mut side.lent {
                    if matches!(lent, Lent::Posted(_)) {
                        *lent = Lent::Abandoned;
                    }
                }
                side.used = false;
            }
        });
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        let used = P::bridge().with(|state| {
            state.sides.get(usize::from(queue)).and_then(|side| side.as_ref()).is_some_and(|side| side.used)
        });
        used == Some(true)
    }
    /// Call it after a doorbell: it carries buffers over.
    fn ack_interrupt(&mut self) -> InterruptStatus {
        match P::bridge().with(|state| state.relay()) {
            Some(true) => InterruptStatus::QUEUE_INTERRUPT,
            _ => InterruptStatus::empty(),
        }
    }
    /// Of the copy that [`Transport::read_config_space`] reads; it never changes between two calls of the driver that
    /// have no `ack_interrupt` or notification between them.
    fn read_config_generation(&self) -> u32 {
        P::bridge().with(|state| state.generation).unwrap_or(0)
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let config = P::bridge().with(|state| state.config).flatten().ok_or(Error::ConfigSpaceMissing)?;
        let end = offset.checked_add(size_of::<T>()).ok_or(Error::ConfigSpaceTooSmall)?;
        let bytes = config.get(offset..end).ok_or(Error::ConfigSpaceTooSmall)?;
        T::read_from_bytes(bytes).map_err(|_| Error::ConfigSpaceTooSmall)
    }
    /// The configuration is the PMM's.
    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _at: usize, _value: T) -> Result<(), Error> {
        Err(Error::Unsupported)
    }
}
