//! The split ring, VIRTIO 1.2, 2.7: [`DriverRing`] and [`DeviceRing`].
//!
//! ```text
//! descriptors   address u64 (two words)  len u32  flags u16  next u16      driver writes
//! available     flags u16  index u16  head u16 ...  used_event u16         driver writes
//! used          flags u16  index u16  (id u32, len u32) ...  avail_event   device writes
//! ```
//!
//! Without EVENT_IDX neither half ever suppresses a notification: a needless doorbell costs little, and the flags
//! word stays 0. With it, a side stores the event index when it goes to sleep, not per message
//! (`arm`), so that a busy ring costs neither side a doorbell.

use super::{Access, AddError, ChainError, RingFault, Segment, Taken, Token, Used, Windows, need_event};
use crate::block::words;
use crate::header::Features;
use crate::layout::QueuePlace;
use crate::mem::Mem;

/// Bytes of a descriptor.
const DESC_BYTES: u32 = 16;
/// Descriptor flags, 2.7.5.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Offsets of one ring's words. Indices are masked by the size, so they stay in their ring whatever they are.
#[derive(Clone, Copy, Debug)]
struct Words {
    place: QueuePlace,
}

impl Words {
    fn mask(&self) -> u16 {
        self.place.size.wrapping_sub(1)
    }
    fn desc(&self, index: u16) -> u32 {
        self.place.desc.wrapping_add(u32::from(index & self.mask()).wrapping_mul(DESC_BYTES))
    }
    fn avail_flags(&self) -> u32 {
        self.place.avail
    }
    fn avail_index(&self) -> u32 {
        self.place.avail.wrapping_add(2)
    }
    fn avail_entry(&self, index: u16) -> u32 {
        self.place.avail.wrapping_add(4).wrapping_add(u32::from(index & self.mask()).wrapping_mul(2))
    }
    fn used_event(&self) -> u32 {
        self.place.avail.wrapping_add(4).wrapping_add(u32::from(self.place.size).wrapping_mul(2))
    }
    fn used_flags(&self) -> u32 {
        self.place.used
    }
    fn used_index(&self) -> u32 {
        self.place.used.wrapping_add(2)
    }
    fn used_entry(&self, index: u16) -> u32 {
        self.place.used.wrapping_add(4).wrapping_add(u32::from(index & self.mask()).wrapping_mul(8))
    }
    fn avail_event(&self) -> u32 {
        self.place.used.wrapping_add(4).wrapping_add(u32::from(self.place.size).wrapping_mul(8))
    }
}

/// The driver's record of one descriptor: free, inside a chain, or the head of one in flight.
#[derive(Clone, Copy, Debug)]
pub struct DriverSlot {
    /// The next free descriptor, or the next one of the chain. The last one's is never followed: chains and free
    /// descriptors are counted.
    next: u16,
    /// Descriptors of the chain that starts here; 0 where none does.
    count: u16,
    /// Writable bytes of the chain.
    bytes: u32,
}

impl DriverSlot {
    /// A slot that no ring uses yet.
    pub const NEW: DriverSlot = DriverSlot { next: 0, count: 0, bytes: 0 };
}

/// Stores one of the driver's 16-bit words. Not inlined: firmware counts its bytes, and a call is smaller than the
/// check of a place that is known only at run time.
#[inline(never)]
fn store<M: Mem>(m: &M, at: u32, value: u16) {
    m.write16(at, value);
}

/// Stores words of a descriptor.
#[inline(never)]
fn store_words<M: Mem>(m: &M, at: u32, words: &[u32]) {
    for (at, &word) in (at..).step_by(4).zip(words) {
        m.write32(at, word);
    }
}

/// The driver's half.
#[derive(Debug)]
pub struct DriverRing<'s> {
    words: Words,
    base: u64,
    slots: &'s mut [DriverSlot],
    free: u16,
    first_free: u16,
    /// Chains in flight.
    in_flight: u16,
    /// The available index with everything added, and as it was last published.
    added: u16,
    published: u16,
    /// The used index as far as it was popped, and as far as it is known to go.
    popped: u16,
    known: u16,
    /// 0 or 1. As wide as its neighbours: around a hole in the structure firmware would copy it in pieces.
    event_idx: u16,
}

impl<'s> DriverRing<'s> {
    /// A ring at `place` (checked), in a region that this side calls `base` in its descriptors. It needs as many
    /// slots as the queue has entries; with fewer there is no ring.
    pub fn new(place: QueuePlace, base: u64, slots: &'s mut [DriverSlot]) -> Option<DriverRing<'s>> {
        let mut ring = DriverRing::idle(slots);
        ring.replace(place, base).then_some(ring)
    }

    /// A ring that has no place yet: it takes no chain, and starts only after [`DriverRing::replace`].
    pub const fn idle(slots: &'s mut [DriverSlot]) -> DriverRing<'s> {
        DriverRing {
            words: Words { place: QueuePlace { size: 0, desc: 0, avail: 0, used: 0 } },
            base: 0,
            slots,
            free: 0,
            first_free: 0,
            in_flight: 0,
            added: 0,
            published: 0,
            popped: 0,
            known: 0,
            event_idx: 0,
        }
    }

    /// Forgets every chain.
    fn forget(&mut self) {
        let size = self.words.place.size;
        for (slot, next) in self.slots.iter_mut().zip(1..=size) {
            *slot = DriverSlot { next, ..DriverSlot::NEW };
        }
        (self.free, self.first_free, self.in_flight) = (size, 0, 0);
        (self.added, self.published, self.popped, self.known) = (0, 0, 0, 0);
    }

    /// Moves the ring to another place, of any size that the slots are enough for (the next session's layout), and
    /// forgets every chain. `false`: they are not, and nothing has changed.
    pub fn replace(&mut self, place: QueuePlace, base: u64) -> bool {
        let fits = place.size.is_power_of_two() && usize::from(place.size) <= self.slots.len();
        if fits {
            (self.words.place, self.base) = (place, base);
            self.forget();
        }
        fits
    }

    /// Set-up state: makes both the private record and the driver's half in memory as new, for a session with these
    /// features.
    pub fn start<M: Mem>(&mut self, m: &M, features: Features) {
        self.forget();
        self.event_idx = features.contains(Features::EVENT_IDX).into();
        for at in [self.words.avail_flags(), self.words.avail_index(), self.words.used_event()] {
            store(m, at, 0);
        }
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        self.words.place.size
    }
    /// Chains that were added and not popped.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }
    /// Descriptors that a chain may still use.
    pub fn free(&self) -> u16 {
        self.free
    }

    /// Adds a chain of checked segments; the device sees it at the next [`DriverRing::publish`].
    pub fn add<M: Mem>(&mut self, m: &M, chain: &[Segment]) -> Result<Token, AddError> {
        let out_of_order = chain.windows(2).any(
            |pair| matches!(pair, [a, b] if a.access == Access::Writable && b.access == Access::Readable),
        );
        let Some(count) = u16::try_from(chain.len()).ok().filter(|&n| n != 0 && n <= self.size()) else {
            return Err(AddError::Shape);
        };
        if out_of_order {
            return Err(AddError::Shape);
        }
        if count > self.free {
            return Err(AddError::Full);
        }
        let head = self.first_free;
        let mut index = head;
        let mut writable = 0u32;
        for (segment, left) in chain.iter().zip((0..count).rev()) {
            let Some(slot) = self.slots.get(usize::from(index)) else { return Err(AddError::Full) };
            let mut flags = if left == 0 { 0 } else { NEXT };
            if segment.access == Access::Writable {
                flags |= WRITE;
                writable = writable.saturating_add(segment.place.len);
            }
            let address = self.base.wrapping_add(u64::from(segment.place.at));
            let at = self.words.desc(index);
            // Flags and next in one store: half the stores, and both are ours.
            let last = u32::from(flags) | u32::from(slot.next) << 16;
            let words = [address as u32, (address >> 32) as u32, segment.place.len, last];
            store_words(m, at, &words);
            index = slot.next;
        }
        if let Some(slot) = self.slots.get_mut(usize::from(head)) {
            (slot.count, slot.bytes) = (count, writable);
        }
        self.first_free = index;
        self.free = self.free.wrapping_sub(count);
        self.in_flight = self.in_flight.wrapping_add(1);
        store(m, self.words.avail_entry(self.added), head);
        self.added = self.added.wrapping_add(1);
        Ok(Token(head))
    }

    /// Makes everything that was added visible to the device. Returns whether it asked to be woken for it; then
    /// ring the doorbell.
    pub fn publish<M: Mem>(&mut self, m: &M) -> bool {
        let old = self.published;
        if self.added == old {
            return false;
        }
        m.publish16(self.words.avail_index(), self.added);
        self.published = self.added;
        if self.event_idx == 0 {
            return true;
        }
        m.settle();
        need_event(m.read16(self.words.avail_event()), self.added, old)
    }

    /// The next completion.
    pub fn pop<M: Mem>(&mut self, m: &M) -> Result<Option<Used>, RingFault> {
        if self.popped == self.known {
            let index = self.used_index(m);
            let news = index.wrapping_sub(self.popped);
            if news > self.in_flight {
                return Err(RingFault::IndexJump { from: self.popped, to: index });
            }
            self.known = index;
            if news == 0 {
                return Ok(None);
            }
        }
        let at = self.words.used_entry(self.popped);
        let mut used = [0; 2];
        words(m, at, &mut used);
        let [id, len] = used;
        let Some((head, slot)) = self.head(id) else { return Err(RingFault::NoSuchChain { alleged: id }) };
        if slot.count == 0 {
            return Err(RingFault::NotInFlight { alleged: id });
        }
        self.popped = self.popped.wrapping_add(1);
        self.in_flight = self.in_flight.wrapping_sub(1);
        self.release(head);
        Ok(Some(Used { token: Token(head), written: len.min(slot.bytes), overlong: len > slot.bytes }))
    }

    /// The used index as memory holds it, alleged. Not inlined, as [`store`] is not.
    #[inline(never)]
    fn used_index<M: Mem>(&self, m: &M) -> u16 {
        m.observe16(self.words.used_index())
    }

    fn head(&self, id: u32) -> Option<(u16, DriverSlot)> {
        let head = u16::try_from(id).ok().filter(|&head| head < self.size())?;
        self.slots.get(usize::from(head)).map(|slot| (head, *slot))
    }

    /// Gives a chain's descriptors back, the head first, so that its links stay as they are.
    fn release(&mut self, head: u16) {
        let Some(slot) = self.slots.get_mut(usize::from(head)) else { return };
        let count = core::mem::take(&mut slot.count);
        let mut last = head;
        for _ in 1..count {
            match self.slots.get(usize::from(last)) {
                Some(slot) => last = slot.next,
                None => break,
            }
        }
        if let Some(slot) = self.slots.get_mut(usize::from(last)) {
            slot.next = self.first_free;
        }
        self.first_free = head;
        self.free = self.free.wrapping_add(count);
    }

    /// Whether a completion waits that [`DriverRing::pop`] would return. If so, whatever the device stored before it is
    /// seen from here on.
    pub fn has_used<M: Mem>(&self, m: &M) -> bool {
        self.popped != self.known || self.used_index(m) != self.popped
    }

    /// Before sleeping: asks to be woken by the next completion, and looks once more. `true`: there is one already.
    pub fn arm<M: Mem>(&mut self, m: &M) -> bool {
        if self.event_idx != 0 {
            store(m, self.words.used_event(), self.popped);
        }
        m.settle();
        self.has_used(m)
    }
}

/// The device's record of one head, and of one place in the order of taking.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSlot {
    /// Whether the head is in flight.
    taken: bool,
    /// What was written, of a head that is completed and waits for those that were taken before it.
    done: Option<u32>,
    /// The head that was taken at the available index of this place, modulo the queue's size.
    head: u16,
}

impl DeviceSlot {
    /// A head that is not in flight.
    pub const NEW: DeviceSlot = DeviceSlot { taken: false, done: None, head: 0 };
}

/// The device's half.
#[derive(Debug)]
pub struct DeviceRing<'s> {
    words: Words,
    slots: &'s mut [DeviceSlot],
    /// The available index as far as it was taken, and as far as it is known to go.
    taken: u16,
    known: u16,
    /// The used index with everything completed, and as it was last published.
    completed: u16,
    published: u16,
    in_flight: u16,
    event_idx: bool,
    indirect: bool,
    /// Completions are published in the order of taking.
    in_order: bool,
    /// The position is what memory held when the guest set the queue up, and nothing has been taken since.
    alleged: bool,
}

/// One descriptor, copied out once.
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read<M: Mem>(m: &M, at: u32) -> Descriptor {
        let low = m.read32(at);
        let high = m.read32(at.wrapping_add(4));
        let last = m.read32(at.wrapping_add(12));
        Descriptor {
            address: u64::from(high) << 32 | u64::from(low),
            len: m.read32(at.wrapping_add(8)),
            flags: last as u16,
            next: (last >> 16) as u16,
        }
    }
}

impl<'s> DeviceRing<'s> {
    /// A ring at `place` (checked). It needs as many slots as the queue has entries; with fewer there is no ring.
    pub fn new(place: QueuePlace, slots: &'s mut [DeviceSlot]) -> Option<DeviceRing<'s>> {
        let mut ring = DeviceRing {
            words: Words { place: QueuePlace::default() },
            slots,
            taken: 0,
            known: 0,
            completed: 0,
            published: 0,
            in_flight: 0,
            event_idx: false,
            indirect: false,
            in_order: false,
            alleged: false,
        };
        ring.replace(place).then_some(ring)
    }

    /// Moves the ring to another place (checked), for which its slots must suffice. Start or resume it then.
    pub fn replace(&mut self, place: QueuePlace) -> bool {
        let fits = place.size.is_power_of_two() && usize::from(place.size) <= self.slots.len();
        if fits {
            self.words.place = place;
        }
        fits
    }

    /// Makes the device's half in memory and the private record as new, and stands at available index `position`:
    /// 0 in the extended profile; where the ring stands for a plain guest that counts on across reboots.
    pub fn start<M: Mem>(&mut self, m: &M, features: Features, position: u16) {
        self.slots.fill(DeviceSlot::NEW);
        (self.taken, self.known, self.in_flight) = (position, position, 0);
        (self.completed, self.published) = (0, 0);
        self.event_idx = features.contains(Features::EVENT_IDX);
        self.indirect = features.contains(Features::INDIRECT_DESC);
        (self.in_order, self.alleged) = (false, false);
        self.clear(m);
    }

    /// Marks the ring's start position as uncertain, because it was only read from memory: a guest may
    /// continue from the index in memory, or count from 0 again. If the first available index cannot follow
    /// the start position but can follow 0, the ring starts at 0.
    pub fn doubt_position(&mut self) {
        self.alleged = true;
    }

    /// From here on publishes completions in the order in which the chains were taken, whichever is finished first. Then
    /// the used index alone says what is still in flight: all that a successor finds.
    pub fn keep_order(&mut self) {
        self.in_order = true;
    }

    /// Makes the device's half in memory as new.
    pub fn clear<M: Mem>(&self, m: &M) {
        m.write16(self.words.used_flags(), 0);
        m.write16(self.words.used_index(), 0);
        m.write16(self.words.avail_event(), 0);
    }

    /// Goes on with a ring that a predecessor left: available index `taken`, used index `completed`.
    pub fn resume(&mut self, features: Features, taken: u16, completed: u16) {
        self.slots.fill(DeviceSlot::NEW);
        (self.taken, self.known, self.in_flight) = (taken, taken, 0);
        (self.completed, self.published) = (completed, completed);
        self.event_idx = features.contains(Features::EVENT_IDX);
        self.indirect = features.contains(Features::INDIRECT_DESC);
        (self.in_order, self.alleged) = (false, false);
    }

    /// The available index as memory holds it, alleged: where a plain guest's ring stands when it is set up.
    pub fn alleged_position<M: Mem>(&self, m: &M) -> u16 {
        m.observe16(self.words.avail_index())
    }
    /// Where the ring lies.
    pub fn place(&self) -> QueuePlace {
        self.words.place
    }
    /// How far the queue was taken and completed: what [`DeviceRing::resume`] needs.
    pub fn position(&self) -> (u16, u16) {
        (self.taken, self.completed)
    }
    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        self.words.place.size
    }
    /// Chains that were taken and not completed.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Takes the next chain into `segments`, whose length bounds a chain as the queue's size does.
    pub fn take<M: Mem>(
        &mut self,
        m: &M,
        windows: Windows<'_>,
        segments: &mut [Segment],
    ) -> Result<Option<Taken>, RingFault> {
        if self.taken == self.known {
            let index = m.observe16(self.words.avail_index());
            let news = index.wrapping_sub(self.taken);
            // A driver never has more chains than descriptors, taken ones included.
            if news > self.size().wrapping_sub(self.in_flight) {
                if !self.alleged || index == 0 || index > self.size() {
                    return Err(RingFault::IndexJump { from: self.taken, to: index });
                }
                self.taken = 0;
            }
            self.known = index;
            if index == self.taken {
                return Ok(None);
            }
            self.alleged = false;
        }
        let head = m.read16(self.words.avail_entry(self.taken));
        let alleged = u32::from(head);
        let size = self.size();
        let Some(slot) = self.slots.get_mut(usize::from(head)).filter(|_| head < size) else {
            return Err(RingFault::NoSuchChain { alleged });
        };
        if slot.taken {
            return Err(RingFault::NotInFlight { alleged });
        }
        (slot.taken, slot.done) = (true, None);
        let order = usize::from(self.taken & self.words.mask());
        if let Some(slot) = self.slots.get_mut(order) {
            slot.head = head;
        }
        self.taken = self.taken.wrapping_add(1);
        self.in_flight = self.in_flight.wrapping_add(1);
        let token = Token(head);
        Ok(Some(match self.walk(m, head, windows, segments) {
            Ok((readable, writable)) => Taken::Chain { token, readable, writable },
            Err(error) => Taken::Malformed { token, error },
        }))
    }

    /// Copies the chain from `head` on into `segments`, each descriptor once.
    fn walk<M: Mem>(
        &self,
        m: &M,
        head: u16,
        windows: Windows<'_>,
        segments: &mut [Segment],
    ) -> Result<(usize, usize), ChainError> {
        let (mut readable, mut writable) = (0usize, 0usize);
        let mut room = segments.iter_mut();
        // The table that is walked: the ring's own, or one indirect one.
        let (mut table, mut entries, mut index) = (self.words.place.desc, u32::from(self.size()), head);
        let mut nested = false;
        let mut budget = entries;
        loop {
            budget = budget.checked_sub(1).ok_or(ChainError::TooLong)?;
            if u32::from(index) >= entries {
                return Err(ChainError::BadNext);
            }
            let at = table.wrapping_add(u32::from(index).wrapping_mul(DESC_BYTES));
            let desc = Descriptor::read(m, at);
            if desc.flags & INDIRECT != 0 {
                if !self.indirect || nested || desc.flags & NEXT != 0 || !desc.len.is_multiple_of(DESC_BYTES)
                {
                    return Err(ChainError::BadIndirect);
                }
                let place = windows.locate(desc.address, desc.len).ok_or(ChainError::BadBuffer)?;
                entries = desc.len.wrapping_div(DESC_BYTES);
                if entries == 0 || entries > u32::from(self.size()) || !place.at.is_multiple_of(4) {
                    return Err(ChainError::BadIndirect);
                }
                m.invalidate(place.at, place.len);
                (table, index, nested, budget) = (place.at, 0, true, entries);
                continue;
            }
            let access = if desc.flags & WRITE != 0 { Access::Writable } else { Access::Readable };
            match access {
                Access::Readable if writable != 0 => return Err(ChainError::Order),
                Access::Readable => readable = readable.wrapping_add(1),
                Access::Writable => writable = writable.wrapping_add(1),
            }
            let place = windows.locate(desc.address, desc.len).filter(|place| place.len != 0);
            let place = place.ok_or(ChainError::BadBuffer)?;
            *room.next().ok_or(ChainError::TooLong)? = Segment { place, access };
            if desc.flags & NEXT == 0 {
                return Ok((readable, writable));
            }
            index = desc.next;
        }
    }

    /// Completes a chain of which `written` bytes were written; the driver sees it at the next
    /// [`DeviceRing::publish`]. `false`: no such chain is in flight (it belongs to a session that has ended).
    pub fn complete<M: Mem>(&mut self, m: &M, token: Token, written: u32) -> bool {
        let slot = self.slots.get_mut(token.index()).filter(|slot| slot.taken && slot.done.is_none());
        let Some(slot) = slot else { return false };
        if !self.in_order {
            slot.taken = false;
            self.use_entry(m, token.0, written);
            return true;
        }
        slot.done = Some(written);
        while self.in_flight != 0 {
            let oldest = self.taken.wrapping_sub(self.in_flight) & self.words.mask();
            let Some(head) = self.slots.get(usize::from(oldest)).map(|slot| slot.head) else { break };
            let Some(slot) = self.slots.get_mut(usize::from(head)) else { break };
            let Some(written) = slot.done.take() else { break };
            slot.taken = false;
            self.use_entry(m, head, written);
        }
        true
    }

    /// Writes the next used entry.
    fn use_entry<M: Mem>(&mut self, m: &M, head: u16, written: u32) {
        let at = self.words.used_entry(self.completed);
        m.write32(at, u32::from(head));
        m.write32(at.wrapping_add(4), written);
        self.completed = self.completed.wrapping_add(1);
        self.in_flight = self.in_flight.wrapping_sub(1);
    }

    /// Makes every completion visible to the driver. Returns whether it asked to be woken for them; then ring.
    pub fn publish<M: Mem>(&mut self, m: &M) -> bool {
        let old = self.published;
        if self.completed == old {
            return false;
        }
        m.publish16(self.words.used_index(), self.completed);
        self.published = self.completed;
        if !self.event_idx {
            return true;
        }
        m.settle();
        need_event(m.read16(self.words.used_event()), self.completed, old)
    }

    /// Whether a chain waits that [`DeviceRing::take`] would return. If so, whatever the driver stored before it is seen
    /// from here on.
    pub fn has_available<M: Mem>(&self, m: &M) -> bool {
        self.taken != self.known || m.observe16(self.words.avail_index()) != self.taken
    }

    /// Before sleeping: asks to be woken by the next chain, and looks once more. `true`: there is one already.
    pub fn arm<M: Mem>(&mut self, m: &M) -> bool {
        if self.event_idx {
            m.write16(self.words.avail_event(), self.taken);
        }
        m.settle();
        self.has_available(m)
    }
}

#[cfg(test)]
mod tests;
