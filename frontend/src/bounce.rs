//! The shim: buffers anywhere become blocks in the region, and a queue knows which of its blocks are where.
//!
//! A PMM reaches the region and nothing else, so what firmware sends is copied into a block of the device's pool, and
//! what it receives is copied out of one. A block is a multiple of 64 bytes (no line of it belongs to anything else),
//! and one descriptor. Each is, at any time, in one place:
//!
//! ```text
//!          take             post              completed
//!   free ───────> held ───────────> in flight ──────────> ready ──┐   (received, or answered)
//!    ^ <───────────────────────────────┘ (transmitted)            │
//!    └────────────────────────────────────────────────────────────┘ read to the end
//! ```
//!
//! The lists are private, in the caller's storage. So a restart of the PMM costs nothing that is not in flight, and
//! what is in flight is posted again, in order, or dropped: the two answers of [`InFlight`].

use hvl_shared_abi::header::Extent;
use hvl_shared_abi::layout::LINE;
use hvl_shared_abi::ring::split::DriverSlot;
use hvl_shared_abi::ring::{AddError, DriverRing, RingFault, Segment, Token};
use hvl_shared_abi::{Features, Mem, QueuePlace};

use crate::link::Count;

/// What becomes of output that was in flight when the other side restarted: nobody can know whether it arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InFlight {
    /// It is sent again, in its order, before anything newer: nothing is missing, some of it may arrive twice.
    #[default]
    Resend,
    /// It is dropped and counted: nothing arrives twice, some of it may be missing.
    Drop,
}

/// Record of one block of a queue, and of one descriptor: as many as the queue has entries.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// The next block of the same list; the last one's is the first.
    next: u16,
    /// Which block the chain of this index carries.
    carried: u16,
    /// Bytes posted, then bytes written.
    len: u32,
}

impl Buffer {
    /// A record that no queue uses yet.
    pub const NEW: Buffer = Buffer { next: 0, carried: 0, len: 0 };
}

/// The caller's storage of one queue of at most `N` entries.
#[derive(Debug)]
pub struct QueueStorage<const N: usize> {
    slots: [DriverSlot; N],
    buffers: [Buffer; N],
}

impl<const N: usize> QueueStorage<N> {
    /// Storage that no queue uses yet.
    pub const NEW: QueueStorage<N> = QueueStorage { slots: [DriverSlot::NEW; N], buffers: [Buffer::NEW; N] };
    /// Bytes of it.
    pub const SIZE: usize = size_of::<Self>();
    /// Alignment of it, in bytes.
    pub const ALIGN: usize = align_of::<Self>();

    /// What a device is opened with.
    pub fn slices(&mut self) -> QueueSlices<'_> {
        QueueSlices { slots: &mut self.slots, buffers: &mut self.buffers }
    }
}

impl<const N: usize> Default for QueueStorage<N> {
    fn default() -> Self {
        Self::NEW
    }
}

/// A queue's storage with its size forgotten. The shorter slice limits the queue.
#[derive(Debug)]
pub struct QueueSlices<'s> {
    /// For the ring.
    pub slots: &'s mut [DriverSlot],
    /// For the blocks.
    pub buffers: &'s mut [Buffer],
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Writable blocks, posted whenever they are free; completions are ready to be read.
    Receive,
    /// Readable blocks; a completion acknowledges them.
    Transmit(InFlight),
    /// Blocks whose front the device reads and whose rest it writes; completions are ready. An exchange with a PMM
    /// that is gone is dropped: only its caller knows whether it may be repeated.
    Exchange,
    /// Writable blocks that the device answers; completions are ready.
    Request,
    /// Readable blocks of which the caller wants to know when the device has read them; completions are ready.
    #[cfg_attr(not(feature = "virtio-drivers"), allow(dead_code))]
    Order,
}

/// Why a queue has no place in what the PMM published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The PMM's queue is longer than the storage it was given.
    QueueTooLong {
        /// Its entries.
        entries: u16,
        /// The entries that there is storage for.
        storage: u16,
    },
    /// The pool has less than one block of 64 bytes for each queue.
    PoolTooSmall {
        /// Its bytes.
        bytes: u32,
    },
    /// The device has fewer queues than its kind needs.
    QueuesMissing,
    /// The device does not offer VERSION_1, so it is none of the extended profile.
    Legacy,
    /// The extension block cannot be used.
    Block(hvl_shared_abi::block::BlockError),
}

impl core::fmt::Display for Unfit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Unfit::QueueTooLong { entries, storage } => write!(
                f,
                "the PMM's queue has {entries} entries and the storage given to the device {storage}: give it more, or give the PMM a shorter queue"
            ),
            Unfit::PoolTooSmall { bytes } => {
                write!(f, "the device's pool has {bytes} bytes, less than one block of 64 for each queue")
            }
            Unfit::QueuesMissing => f.write_str("the PMM publishes fewer queues than this device needs"),
            Unfit::Legacy => f.write_str("the device does not offer VERSION_1"),
            Unfit::Block(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for Unfit {}

/// A list of blocks, a circle through [`Buffer::next`].
#[derive(Clone, Copy, Debug)]
struct List {
    /// The last block and one; 0 where there is none, so that storage that nobody uses yet is all zeros.
    last: u16,
}

impl List {
    const EMPTY: List = List { last: 0 };

    fn is_empty(self) -> bool {
        self.last == 0
    }
    fn last(self) -> u16 {
        self.last.wrapping_sub(1)
    }
    fn first(self, buffers: &[Buffer]) -> Option<u16> {
        buffers.get(usize::from(self.last())).map(|last| last.next)
    }
    #[inline(never)]
    fn push(&mut self, buffers: &mut [Buffer], block: u16) {
        let first = match buffers.get_mut(usize::from(self.last())) {
            Some(last) => core::mem::replace(&mut last.next, block),
            None => block,
        };
        if let Some(buffer) = buffers.get_mut(usize::from(block)) {
            buffer.next = first;
            self.last = block.wrapping_add(1);
        }
    }
    #[inline(never)]
    fn pop(&mut self, buffers: &mut [Buffer]) -> Option<u16> {
        self.take_after(buffers, self.last())
    }
    fn take_after(&mut self, buffers: &mut [Buffer], before: u16) -> Option<u16> {
        let block = buffers.get(usize::from(before))?.next;
        let after = buffers.get(usize::from(block))?.next;
        if block == self.last() {
            self.last = if block == before { 0 } else { before.wrapping_add(1) };
        }
        buffers.get_mut(usize::from(before))?.next = after;
        Some(block)
    }
    /// Takes a block out of the middle. Devices complete in order but for broken ones, so it is the first.
    fn remove(&mut self, buffers: &mut [Buffer], block: u16) {
        let mut before = self.last();
        for _ in 0..buffers.len() {
            let Some(next) = buffers.get(usize::from(before)).map(|buffer| buffer.next) else { return };
            if next == block {
                self.take_after(buffers, before);
                return;
            }
            before = next;
        }
    }
}

/// One queue with its blocks.
#[derive(Debug)]
pub(crate) struct Queue<'s> {
    ring: DriverRing<'s>,
    buffers: &'s mut [Buffer],
    /// Entries that there is storage for.
    entries: u16,
    kind: Kind,
    /// Most blocks to make of the pool; no more than entries.
    most: u16,
    /// Where the blocks lie: `count` of `block` bytes from `at`.
    at: u32,
    block: u32,
    count: u16,
    free: List,
    flight: List,
    ready: List,
    /// The last block, and one, that was ready when the queue was started: up to it they are of sessions before this
    /// one. 0 where there is none. Only [`Queue::take_ready`] keeps it.
    old: u16,
    /// How much of the first ready block has been read, in bytes.
    cursor: u32,
    acknowledged: u64,
    /// Goes up when the blocks move: a held one is gone.
    layout: u32,
    /// Blocks that were lost and not yet counted.
    lost: u16,
    /// How often the queue was started: what was in flight as an exchange before is gone.
    starts: u32,
    /// A call was turned away for want of a completion, and since then one has come of which its caller does not
    /// know: it was taken out of the ring on behalf of another call, so no doorbell and no ring will tell.
    turned_away: bool,
    news: bool,
}

/// Room for a queue of a device. An `Option` of it would not be all zeros while there is none, and so would cost
/// firmware as many bytes of its image.
#[derive(Debug)]
#[repr(u8)]
pub(crate) enum Room<'s> {
    /// The device has no such queue.
    Empty,
    /// It has.
    Taken(Queue<'s>),
}

impl<'s> Room<'s> {
    /// Makes a queue with this storage, of which at most `most` blocks are made of the pool.
    #[inline(never)]
    pub fn open(&mut self, storage: QueueSlices<'s>, kind: Kind, most: u16) {
        *self = Room::Taken(Queue::new(storage, kind, most));
    }
    /// The queue.
    #[inline]
    pub fn queue(&mut self) -> Option<&mut Queue<'s>> {
        match self {
            Room::Empty => None,
            Room::Taken(queue) => Some(queue),
        }
    }
}

impl<'s> Queue<'s> {
    /// A queue with this storage, of which at most `most` blocks are made of the pool.
    fn new(storage: QueueSlices<'s>, kind: Kind, most: u16) -> Queue<'s> {
        let entries = storage.slots.len().min(storage.buffers.len());
        let entries = u16::try_from(entries).unwrap_or(u16::MAX);
        Queue {
            ring: DriverRing::idle(storage.slots),
            buffers: storage.buffers,
            entries,
            kind,
            most: most.min(entries),
            at: 0,
            block: 0,
            count: 0,
            free: List::EMPTY,
            flight: List::EMPTY,
            ready: List::EMPTY,
            old: 0,
            cursor: 0,
            acknowledged: 0,
            layout: 0,
            turned_away: false,
            news: false,
            lost: 0,
            starts: 0,
        }
    }

    // --- sessions ---------------------------------------------------------------------------------------------------

    /// Most blocks to make of its share of the pool.
    pub fn most(&self) -> u32 {
        self.most.into()
    }
    /// Takes the place that a PMM published (checked), and its share of the device's pool. Blocks that are lost
    /// because the pool has moved are counted at the next [`Queue::start`].
    #[inline(never)]
    pub fn place(&mut self, place: &QueuePlace, base: u64, share: Extent) -> Result<(), Unfit> {
        if place.size > self.entries || !self.ring.replace(*place, base) {
            return Err(Unfit::QueueTooLong { entries: place.size, storage: self.entries });
        }
        let blocks = u32::from(place.size.min(self.most));
        let fit = share.len.checked_div(blocks).unwrap_or(0) & !LINE.wrapping_sub(1);
        let block = fit.max(LINE);
        let count = share.len.checked_div(block).unwrap_or(0).min(blocks) as u16;
        if count == 0 {
            return Err(Unfit::PoolTooSmall { bytes: share.len });
        }
        if (self.at, self.block, self.count) == (share.at, block, count) {
            return Ok(());
        }
        // Another layout: the old blocks may be somebody else's memory by now.
        let unsent = self.kind != Kind::Receive;
        while self.ready.pop(self.buffers).is_some() || (unsent && self.flight.pop(self.buffers).is_some()) {
            self.lost = self.lost.saturating_add(1);
        }
        (self.at, self.block, self.count) = (share.at, block, count);
        self.layout = self.layout.wrapping_add(1);
        (self.free, self.flight, self.cursor) = (List::EMPTY, List::EMPTY, 0);
        for block in 0..count {
            self.free.push(self.buffers, block);
        }
        Ok(())
    }

    /// Set-up state: starts the ring for a session, and posts what was in flight, or drops it; `count` is told of how
    /// many blocks.
    #[inline(never)]
    pub fn start<M: Mem>(&mut self, m: &M, features: Features, count: impl Fn(Count, u16)) {
        self.ring.start(m, features);
        self.starts = self.starts.wrapping_add(1);
        self.old = self.ready.last;
        count(Count::Dropped, core::mem::take(&mut self.lost));
        let mut again = core::mem::replace(&mut self.flight, List::EMPTY);
        while let Some(block) = again.pop(self.buffers) {
            if matches!(self.kind, Kind::Transmit(InFlight::Drop) | Kind::Exchange) {
                self.free.push(self.buffers, block);
                count(Count::Dropped, 1);
            } else {
                let len = self.buffers.get(usize::from(block)).map_or(0, |buffer| buffer.len);
                self.post(m, block, len);
                count(Count::Resent, u16::from(self.kind != Kind::Receive));
            }
        }
        self.refill(m);
    }

    // --- the ring ---------------------------------------------------------------------------------------------------

    /// Takes every completion out of the ring, at most as many as it has entries, and tells `count` of impossible
    /// lengths. `true`: there was one.
    pub fn look<M: Mem>(&mut self, m: &M, count: impl Fn(Count)) -> Result<bool, RingFault> {
        let mut completed = false;
        for _ in 0..self.ring.size() {
            let Some(used) = self.ring.pop(m)? else { break };
            let Some(block) = self.buffers.get(used.token.index()).map(|buffer| buffer.carried) else {
                break;
            };
            self.flight.remove(self.buffers, block);
            completed = true;
            if used.overlong {
                count(Count::Overlong);
            }
            let Some(buffer) = self.buffers.get_mut(usize::from(block)) else { break };
            let mut list = &mut self.free;
            if let Kind::Transmit(_) = self.kind {
                self.acknowledged = self.acknowledged.wrapping_add(u64::from(buffer.len));
            } else {
                // A length that cannot be says that the rest cannot be believed either.
                buffer.len = if used.overlong { 0 } else { used.written };
                m.invalidate(place(self.at, self.block, block), self.block);
                if buffer.len == 0 {
                    count(Count::Empty);
                }
                if buffer.len != 0 || self.kind != Kind::Receive {
                    list = &mut self.ready;
                }
            }
            list.push(self.buffers, block);
            self.tell();
        }
        Ok(completed)
    }

    /// Hands a held block over, with `len` bytes to be read or written.
    pub fn post<M: Mem>(&mut self, m: &M, block: u16, len: u32) {
        let at = place(self.at, self.block, block);
        let len = len.min(self.block);
        let writable = match self.kind {
            Kind::Receive | Kind::Request => true,
            Kind::Transmit(_) | Kind::Order | Kind::Exchange => false,
        };
        let segment = if writable {
            m.invalidate(at, self.block);
            Segment::writable(at, len)
        } else {
            m.clean(at, len);
            Segment::readable(at, len)
        };
        let added = self.ring.add(m, &[segment]);
        self.hand_over(added, block, len);
    }

    /// Hands a held block over as an exchange: the device reads its first `asks` bytes and writes from
    /// [`Queue::answer`] on. `false`: the queue has no two descriptors left, and the block is free again.
    pub fn exchange<M: Mem>(&mut self, m: &M, block: u16, asks: u32) -> bool {
        let place = self.extent(block);
        let asks = asks.min(place.len);
        let answer = self.answer(block, asks);
        m.clean(place.at, asks);
        m.invalidate(answer.at, answer.len);
        let chain = [Segment::readable(place.at, asks), Segment::writable(answer.at, answer.len)];
        let added = self.ring.add(m, &chain);
        self.hand_over(added, block, asks)
    }

    /// Hands held blocks over as one chain that the device reads, with so many bytes in each, `N` blocks at most. In
    /// flight, and free again later, is the first one; the others are the caller's to free when
    /// [`Queue::is_in_flight`] says so.
    pub fn post_all<M: Mem, const N: usize>(&mut self, m: &M, parts: &[(u16, u32)]) {
        let mut chain = [Segment::readable(0, 0); N];
        let mut total = 0u32;
        for (segment, &(block, len)) in chain.iter_mut().zip(parts) {
            let at = place(self.at, self.block, block);
            m.clean(at, len);
            *segment = Segment::readable(at, len);
            total = total.saturating_add(len);
        }
        if let Some((&(head, _), chain)) = parts.first().zip(chain.get(..parts.len())) {
            let added = self.ring.add(m, chain);
            self.hand_over(added, head, total);
        }
    }

    fn hand_over(&mut self, added: Result<Token, AddError>, block: u16, len: u32) -> bool {
        match added {
            Ok(token) => {
                if let Some(buffer) = self.buffers.get_mut(token.index()) {
                    buffer.carried = block;
                }
                if let Some(buffer) = self.buffers.get_mut(usize::from(block)) {
                    buffer.len = len;
                }
                self.flight.push(self.buffers, block);
            }
            // There are no more blocks than descriptors but in exchanges, so this is for those, and for a caller that
            // holds none.
            Err(_) => self.free.push(self.buffers, block),
        }
        added.is_ok()
    }

    /// Posts every free block of a receive queue.
    pub fn refill<M: Mem>(&mut self, m: &M) {
        if self.kind == Kind::Receive {
            while let Some(block) = self.take() {
                self.post(m, block, self.block);
            }
        }
    }

    /// Makes what was posted visible. `true`: the PMM wants to be rung for it.
    pub fn publish<M: Mem>(&mut self, m: &M) -> bool {
        self.ring.publish(m)
    }
    /// Asks for a doorbell at the next completion. `true`: there is one already, or there was one of which the caller
    /// that waits for it has not heard.
    pub fn arm<M: Mem>(&mut self, m: &M) -> bool {
        core::mem::take(&mut self.news) | (self.ring.size() != 0 && self.ring.arm(m))
    }
    /// The device does not run, so whoever asks is turned away.
    pub fn turn_away(&mut self) {
        self.turned_away = true;
    }
    /// What callers were turned away for may be possible now.
    pub fn tell(&mut self) {
        self.news |= self.turned_away;
    }
    /// Notes what a caller was told: that it has to wait, or that it need not.
    pub fn told(&mut self, to_wait: bool) {
        (self.turned_away, self.news) = (to_wait, false);
    }
    /// Whether something is in flight that the device should answer by itself.
    pub fn expects(&self) -> bool {
        self.kind != Kind::Receive && !self.flight.is_empty()
    }

    // --- blocks -----------------------------------------------------------------------------------------------------

    /// A free block, which the caller holds now.
    pub fn take(&mut self) -> Option<u16> {
        self.free.pop(self.buffers)
    }
    /// Gives a held block back.
    pub fn release(&mut self, block: u16) {
        self.free.push(self.buffers, block);
    }
    /// The next answer: a block, which the caller holds now, and its bytes.
    pub fn take_ready(&mut self) -> Option<(u16, u32)> {
        let block = self.ready.pop(self.buffers)?;
        self.cursor = 0;
        if block.wrapping_add(1) == self.old {
            self.old = 0;
        }
        Some((block, self.buffers.get(usize::from(block))?.len))
    }
    /// The next answer that came no later than in that start of the queue, or at least before this one.
    pub fn take_ready_of(&mut self, start: u32) -> Option<(u16, u32)> {
        if self.old != 0 || self.starts == start { self.take_ready() } else { None }
    }
    /// The block that lies exactly here.
    #[cfg(feature = "virtio-drivers")]
    pub fn block_at(&self, at: u32) -> Option<u16> {
        (0..self.count).find(|&block| place(self.at, self.block, block) == at)
    }
    /// Where a block lies.
    pub fn extent(&self, block: u16) -> Extent {
        Extent { at: place(self.at, self.block, block), len: self.block }
    }
    /// Where the answer to an exchange of `asks` bytes lies: from the next line on, to the block's end.
    pub fn answer(&self, block: u16, asks: u32) -> Extent {
        let place = self.extent(block);
        let skip = asks.checked_next_multiple_of(LINE).unwrap_or(u32::MAX).min(place.len);
        Extent { at: place.at.wrapping_add(skip), len: place.len.wrapping_sub(skip) }
    }
    /// How often it was started.
    pub fn starts(&self) -> u32 {
        self.starts
    }
    /// How many blocks there are.
    pub fn blocks(&self) -> u16 {
        self.count
    }
    /// Whether a block is in flight.
    pub fn is_in_flight(&self, block: u16) -> bool {
        let mut at = self.flight.last();
        for _ in 0..self.count {
            match self.buffers.get(usize::from(at)) {
                Some(_) if at == block => return true,
                Some(buffer) => at = buffer.next,
                None => return false,
            }
            if at == self.flight.last() {
                return false;
            }
        }
        false
    }
    /// Which layout the blocks have; another one takes held blocks away.
    pub fn layout(&self) -> u32 {
        self.layout
    }
    /// Whether a block is free.
    pub fn has_free(&mut self) -> bool {
        self.turned_away |= self.free.is_empty();
        !self.free.is_empty()
    }
    /// Whether something waits to be read.
    pub fn has_ready(&mut self) -> bool {
        self.turned_away |= self.ready.is_empty();
        !self.ready.is_empty()
    }
    /// Whether nothing is in flight.
    pub fn is_quiet(&mut self) -> bool {
        self.turned_away |= !self.flight.is_empty();
        self.flight.is_empty()
    }
    /// Bytes that were transmitted and acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    // --- bytes ------------------------------------------------------------------------------------------------------

    /// Copies what is ready into private memory, and frees the blocks that are used up.
    pub fn read<M: Mem>(&mut self, m: &M, into: &mut [u8]) -> usize {
        let mut done = 0usize;
        while let Some(block) = self.ready.first(self.buffers) {
            let len = self.buffers.get(usize::from(block)).map_or(0, |buffer| buffer.len);
            let rest = into.get_mut(done..).unwrap_or(&mut []);
            let n = (len.saturating_sub(self.cursor) as usize).min(rest.len());
            if let Some(rest) = rest.get_mut(..n) {
                m.copy_in(place(self.at, self.block, block).wrapping_add(self.cursor), rest);
            }
            done = done.wrapping_add(n);
            self.cursor = self.cursor.wrapping_add(n as u32);
            if self.cursor < len {
                break;
            }
            self.cursor = 0;
            if let Some(block) = self.ready.pop(self.buffers) {
                self.free.push(self.buffers, block);
            }
        }
        self.told(done == 0);
        done
    }

    /// Copies bytes into as many free blocks as it takes and there are, and posts them.
    pub fn write<M: Mem>(&mut self, m: &M, bytes: &[u8]) -> usize {
        let mut done = 0usize;
        for chunk in bytes.chunks((self.block as usize).max(1)) {
            let Some(block) = self.take() else { break };
            m.copy_out(place(self.at, self.block, block), chunk);
            self.post(m, block, chunk.len() as u32);
            done = done.wrapping_add(chunk.len());
        }
        self.told(done < bytes.len());
        done
    }

    /// Posts empty blocks for `len` bytes of answers, as far as there are free ones.
    pub fn request<M: Mem>(&mut self, m: &M, mut len: usize) {
        while len != 0 {
            let Some(block) = self.take() else { break };
            let ask = len.min(self.block as usize);
            self.post(m, block, ask as u32);
            len = len.wrapping_sub(ask);
        }
    }
}

/// Where a block lies.
fn place(at: u32, size: u32, block: u16) -> u32 {
    at.wrapping_add(u32::from(block).wrapping_mul(size))
}
