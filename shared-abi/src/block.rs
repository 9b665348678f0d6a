//! The extension block: how a device's places are published in the region.
//!
//! Each window names one block (ExtBlock). It starts with a directory of (type, offset, length); a reader skips the
//! types that it does not know. All of it is written by the PMM before a session begins (`adopt` in [`crate::epoch`])
//! and copied once by the frontend in the set-up state, so that a region on which a plain guest has scribbled is as
//! good as new for the next one. What the entries of each type hold is in `docs/abi.md`.

use crate::header::{Extent, Features, HEADER_SIZE};
use crate::layout::{Layout, MAX_QUEUES, QueuePlace};
use crate::mem::{Attribute, Mem, inside};

/// The bytes `HVLB`.
pub const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"HVLB");
/// The version of the block and of the placement rules behind it.
pub const BLOCK_VERSION: u32 = 1;
/// Bytes before the directory: magic, version, number of entries, zero.
pub const HEAD_BYTES: u32 = 16;
/// Bytes of a directory entry: type, offset from the region's start, length, zero.
pub const ENTRY_BYTES: u32 = 16;
/// Most entries that a reader looks at.
pub const MAX_ENTRIES: u32 = 16;
/// Bytes that firmware has for its last words.
pub const PANIC_TEXT_BYTES: u32 = 256;

/// Types of directory entries.
pub mod entry {
    /// The link: identity, base, length. In the block of device 0 only.
    pub const LINK: u32 = 1;
    /// The device: features and number of queues.
    pub const DEVICE: u32 = 2;
    /// The queue table.
    pub const QUEUES: u32 = 3;
    /// The pool itself.
    pub const POOL: u32 = 4;
    /// Where firmware leaves its last words. In the block of device 0 only.
    pub const PANIC_TEXT: u32 = 5;
}

/// Bytes of a LINK entry: identity (2 words), base (2 words), region length, device count, attribute, zero.
pub const LINK_BYTES: u32 = 32;
/// Bytes of a DEVICE entry: features offered (2 words), queue count, zero.
pub const DEVICE_BYTES: u32 = 16;
/// Bytes of a row of the queue table: size, format (0 split, 1 packed), offsets of descriptors, available and used
/// ring, kick vector, call vector, zero.
pub const QUEUE_BYTES: u32 = 32;

const fn entries(link: bool) -> u32 {
    if link { 5 } else { 3 }
}

/// Bytes of a device's block; `link` for device 0, whose block describes the link as well.
pub const fn length(link: bool) -> u32 {
    let head = HEAD_BYTES.saturating_add(entries(link).saturating_mul(ENTRY_BYTES));
    let link = if link { LINK_BYTES } else { 0 };
    head.saturating_add(link)
        .saturating_add(DEVICE_BYTES)
        .saturating_add(QUEUE_BYTES.saturating_mul(MAX_QUEUES as u32))
}

/// What a block says of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkEntry {
    /// [`Layout::identity`].
    pub identity: u64,
    /// The guest's address of the region.
    pub base: u64,
    /// The region's length in bytes.
    pub len: u32,
    /// Where the last words go.
    pub panic_text: Extent,
}

/// What a block says of its device; checked: every place lies in the region behind the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceEntry {
    /// Features that the device offers in the extended profile.
    pub features: u64,
    /// The queues; a size of 0 ends the list.
    pub queues: [QueuePlace; MAX_QUEUES],
    /// The pool.
    pub pool: Extent,
}

/// Why a block cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// The block or a part of it reaches out of the region, or into the windows.
    Outside,
    /// It does not start with [`BLOCK_MAGIC`] and a version that this crate speaks.
    Foreign,
    /// An entry that a device or a link must have is missing.
    Missing {
        /// Its type.
        entry: u32,
    },
    /// A queue's place is no place for a ring, or two places share bytes.
    Unsound,
    /// A queue has a format other than split.
    Format,
}

impl core::fmt::Display for BlockError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            BlockError::Outside => f.write_str("the extension block reaches out of the region"),
            BlockError::Foreign => f.write_str("the extension block has another magic or version"),
            BlockError::Missing { entry } => write!(f, "the extension block lacks entry {entry}"),
            BlockError::Unsound => f.write_str("the queue table names places that no ring can have"),
            BlockError::Format => f.write_str("a queue has a format that this version does not speak"),
        }
    }
}

impl core::error::Error for BlockError {}

/// Writes words one after another.
struct Pen<'m, M>(&'m M, u32);

impl<M: Mem> Pen<'_, M> {
    fn words(&mut self, words: &[u32]) {
        for &word in words {
            self.0.write32(self.1, word);
            self.1 = self.1.wrapping_add(4);
        }
    }
}

const fn low(word: u64) -> u32 {
    word as u32
}
const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}
const fn join(low: u32, high: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

/// Writes the block of device `index` (PMM, when it adopts a guest). `base` is the guest's address of the region,
/// `features` what the device offers in the extended profile.
pub fn write<M: Mem>(m: &M, layout: &Layout, index: usize, base: u64, features: Features) {
    let Some(place) = layout.devices().get(index) else { return };
    let link = index == 0;
    let mut pen = Pen(m, place.block.at);
    pen.words(&[BLOCK_MAGIC, BLOCK_VERSION, entries(link), 0]);
    let mut at =
        place.block.at.wrapping_add(HEAD_BYTES).wrapping_add(entries(link).wrapping_mul(ENTRY_BYTES));
    if link {
        pen.words(&[entry::LINK, at, LINK_BYTES, 0]);
        at = at.wrapping_add(LINK_BYTES);
        let text = layout.panic_text();
        pen.words(&[entry::PANIC_TEXT, text.at, text.len, 0]);
    }
    pen.words(&[entry::DEVICE, at, DEVICE_BYTES, 0]);
    at = at.wrapping_add(DEVICE_BYTES);
    let count = place.queues().count() as u32;
    pen.words(&[entry::QUEUES, at, count.wrapping_mul(QUEUE_BYTES), 0]);
    pen.words(&[entry::POOL, place.pool.at, place.pool.len, 0]);
    if link {
        let devices = layout.devices().len() as u32;
        let id = layout.identity();
        pen.words(&[
            low(id),
            high(id),
            low(base),
            high(base),
            m.len(),
            devices,
            attribute_word(m.attribute()),
            0,
        ]);
    }
    pen.words(&[low(features.bits()), high(features.bits()), count, 0]);
    for queue in place.queues() {
        pen.words(&[u32::from(queue.size), 0, queue.desc, queue.avail, queue.used, 0, 0, 0]);
    }
}

/// The word for an attribute in a LINK entry: how the *PMM* maps the region, for people who debug.
const fn attribute_word(attribute: Attribute) -> u32 {
    match attribute {
        Attribute::Coherent => 0,
        Attribute::NonCacheable => 1,
        Attribute::CachedNonCoherent(_) => 2,
        Attribute::Device => 3,
    }
}

/// A part of a block that a reader needs.
struct Part {
    /// Its type.
    entry: u32,
    /// The bytes that it must have.
    least: u32,
    /// Where it lies, once it is found: checked to lie in the region behind the windows.
    place: Extent,
}

impl Part {
    const fn new(entry: u32, least: u32) -> Part {
        Part { entry, least, place: Extent { at: 0, len: 0 } }
    }
}

/// Words from `at` on, each read once.
#[inline(never)]
pub(crate) fn words<M: Mem>(m: &M, at: u32, into: &mut [u32]) {
    for (word, at) in into.iter_mut().zip((at..).step_by(4)) {
        *word = m.read32(at);
    }
}

/// Everything behind the windows.
fn behind_windows<M: Mem>(m: &M) -> Extent {
    Extent { at: HEADER_SIZE, len: m.len().saturating_sub(HEADER_SIZE) }
}

/// Looks for parts in the directory of the alleged block at `at`: for each, the first entry of its type.
#[inline(never)]
fn find<M: Mem>(m: &M, at: u32, parts: &mut [Part]) -> Result<(), BlockError> {
    let mut head = [0; 3];
    if !at.is_multiple_of(4) || !behind_windows(m).contains(Extent { at, len: HEAD_BYTES }) {
        return Err(BlockError::Outside);
    }
    words(m, at, &mut head);
    let [BLOCK_MAGIC, BLOCK_VERSION, count] = head else { return Err(BlockError::Foreign) };
    let count = count.min(MAX_ENTRIES);
    let at = at.wrapping_add(HEAD_BYTES);
    if !inside(at, count.wrapping_mul(ENTRY_BYTES), m.len()) {
        return Err(BlockError::Outside);
    }
    'parts: for part in parts {
        for i in 0..count {
            let mut entry = [0; 3];
            words(m, at.wrapping_add(i.wrapping_mul(ENTRY_BYTES)), &mut entry);
            let [entry, at, len] = entry;
            if entry == part.entry {
                part.place = Extent { at, len };
                if !at.is_multiple_of(4) || len < part.least || !behind_windows(m).contains(part.place) {
                    return Err(BlockError::Outside);
                }
                continue 'parts;
            }
        }
        return Err(BlockError::Missing { entry: part.entry });
    }
    Ok(())
}

/// Copies and checks what the block at `at` says of the link (frontend).
pub fn read_link<M: Mem>(m: &M, at: u32) -> Result<LinkEntry, BlockError> {
    let mut parts = [Part::new(entry::LINK, LINK_BYTES), Part::new(entry::PANIC_TEXT, 0)];
    find(m, at, &mut parts)?;
    let [link, panic_text] = parts;
    let mut link_words = [0; 5];
    words(m, link.place.at, &mut link_words);
    let [id_low, id_high, base_low, base_high, len] = link_words;
    Ok(LinkEntry {
        identity: join(id_low, id_high),
        base: join(base_low, base_high),
        len,
        panic_text: panic_text.place,
    })
}

/// Copies and checks what the block at `at` says of its device (frontend).
pub fn read_device<M: Mem>(m: &M, at: u32) -> Result<DeviceEntry, BlockError> {
    let mut device = DeviceEntry::NEW;
    device.read(m, at)?;
    Ok(device)
}

impl DeviceEntry {
    /// Nothing yet.
    pub const NEW: DeviceEntry = DeviceEntry {
        features: 0,
        queues: [QueuePlace { size: 0, desc: 0, avail: 0, used: 0 }; MAX_QUEUES],
        pool: Extent { at: 0, len: 0 },
    };

    /// [`read_device`] into a new entry, for firmware that has no room for a second copy. After an error it holds
    /// nothing of use.
    #[inline(never)]
    pub fn read<M: Mem>(&mut self, m: &M, at: u32) -> Result<(), BlockError> {
        let mut parts =
            [Part::new(entry::DEVICE, DEVICE_BYTES), Part::new(entry::QUEUES, 0), Part::new(entry::POOL, 0)];
        find(m, at, &mut parts)?;
        let [device, Part { place: table, .. }, Part { place: pool, .. }] = parts;
        let mut device_words = [0; 3];
        words(m, device.place.at, &mut device_words);
        let [features_low, features_high, count] = device_words;
        let count = count.min(MAX_QUEUES as u32);
        if table.len < count.wrapping_mul(QUEUE_BYTES) {
            return Err(BlockError::Outside);
        }
        (self.features, self.pool) = (join(features_low, features_high), pool);
        // What is taken already: the pool, and the parts of the queues so far. The rest is empty and overlaps nothing.
        let mut taken = [Extent::default(); 3 * MAX_QUEUES + 1];
        let mut next = 0usize;
        let mut take = |part: Extent| {
            let free = !taken.iter().any(|one| part.overlaps(*one));
            if let Some(one) = taken.get_mut(next) {
                *one = part;
            }
            next = next.wrapping_add(1);
            free
        };
        take(pool);
        for (i, queue) in (0..count).zip(self.queues.iter_mut()) {
            let mut row = [0; 5];
            words(m, table.at.wrapping_add(i.wrapping_mul(QUEUE_BYTES)), &mut row);
            let [size, format, desc, avail, used] = row;
            if format != 0 {
                return Err(BlockError::Format);
            }
            *queue = QueuePlace { size: size as u16, desc, avail, used };
            let within = behind_windows(m);
            if u32::from(queue.size) != size
                || !queue.is_aligned()
                || !queue.extents().into_iter().all(|part| within.contains(part) && take(part))
            {
                return Err(BlockError::Unsound);
            }
        }
        Ok(())
    }
}

/// Leaves firmware's last words: the text first, then its length, so that half a text is never shown as whole.
pub fn write_panic_text<M: Mem>(m: &M, place: Extent, text: &[u8]) {
    let Some(room) = place.len.checked_sub(4).filter(|_| inside(place.at, place.len, m.len())) else {
        return;
    };
    let len = text.len().min(room as usize);
    let (text, _) = text.split_at_checked(len).unwrap_or((&[], &[]));
    m.write32(place.at, 0);
    m.publish32(place.at, 0);
    m.copy_out(place.at.wrapping_add(4), text);
    m.publish32(place.at, len as u32);
}

/// Copies the guest's last words into `into` and says how many bytes there are; 0 when it left none. The PMM stores
/// 0 as the length when it adopts a guest.
pub fn read_panic_text<M: Mem>(m: &M, place: Extent, into: &mut [u8]) -> usize {
    let alleged = m.observe32(place.at) as usize;
    let len = alleged.min(into.len()).min(place.len.saturating_sub(4) as usize);
    let Some(into) = into.get_mut(..len) else { return 0 };
    m.copy_in(place.at.wrapping_add(4), into);
    len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::DeviceSpec;
    use crate::mem::tests::region;

    const BASE: u64 = 0x1_3700_0000;

    fn published() -> (crate::Region, Layout) {
        let m = region(0x10_0000, Attribute::Coherent);
        let layout = Layout::place(&[DeviceSpec::RNG, DeviceSpec::CONSOLE], m.len()).unwrap();
        for index in 0..2 {
            write(&m, &layout, index, BASE, Features::VERSION_1 | Features::EVENT_IDX);
        }
        (m, layout)
    }

    #[test]
    fn what_was_placed_is_what_is_read() {
        let (m, layout) = published();
        let link = read_link(&m, layout.devices()[0].block.at).unwrap();
        assert_eq!((link.identity, link.base, link.len), (layout.identity(), BASE, m.len()));
        for place in layout.devices() {
            let device = read_device(&m, place.block.at).unwrap();
            assert_eq!((device.queues, device.pool), (place.queues, place.pool));
            assert_eq!(device.features, (Features::VERSION_1 | Features::EVENT_IDX).bits());
            assert!(place.block.len >= length(false));
        }
        assert_eq!(
            read_link(&m, layout.devices()[1].block.at),
            Err(BlockError::Missing { entry: entry::LINK })
        );
    }

    #[test]
    fn no_scribble_on_a_block_leads_out_of_the_region() {
        let (m, layout) = published();
        let block = layout.devices()[0].block;
        for at in (block.at..block.end()).step_by(4) {
            let before = m.read32(at);
            for value in [0, 1, 3, 0xfff, 0x1002, m.len() - 4, m.len(), 0x7fff_ffff, u32::MAX] {
                m.write32(at, value);
                let _ = read_link(&m, block.at);
                if let Ok(device) = read_device(&m, block.at) {
                    let within = Extent { at: HEADER_SIZE, len: m.len() - HEADER_SIZE };
                    assert!(within.contains(device.pool));
                    assert!(device.queues.iter().take_while(|q| q.size != 0).all(|q| q.is_sound(within)));
                }
            }
            m.write32(at, before);
        }
        for at in [0, 1, 0xffc, 0x1002, m.len() - 8, m.len(), u32::MAX] {
            assert!(read_device(&m, at).is_err());
        }
    }

    #[test]
    fn last_words_are_cut_to_their_room() {
        let (m, layout) = published();
        let place = layout.panic_text();
        write_panic_text(&m, place, &[b'x'; 1000]);
        let mut into = [0; 512];
        assert_eq!(read_panic_text(&m, place, &mut into), PANIC_TEXT_BYTES as usize - 4);
        m.write32(place.at, u32::MAX);
        assert_eq!(read_panic_text(&m, place, &mut into), PANIC_TEXT_BYTES as usize - 4);
    }
}
