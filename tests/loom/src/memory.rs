//! Shared memory made of loom's atomics, for one small ring and a few words beside it.

use crate::sites::{Barrier, Site};
use hvl_shared_abi::{Attribute, Mem, QueuePlace};
use loom::cell::Cell;
use loom::sync::atomic::{AtomicU16, Ordering, fence};
use std::panic::Location;

/// The ring's place in [`Memory`].
pub const PLACE: QueuePlace = QueuePlace { size: 2, desc: 0, avail: 64, used: 128 };
/// Where the buffers lie, one word each.
pub const BUFFERS: [u32; 2] = [192, 196];
/// A word that the driver writes and a word that the device writes, neither named by any descriptor.
pub const DRIVER_WORD: u32 = 200;
/// The device's word.
pub const DEVICE_WORD: u32 = 204;
/// Bytes in all.
const LEN: u32 = 208;

/// The barrier that is taken away, if any.
pub type Weakened = Option<Site>;

/// One word. Those that hand others over are atomics; the others are checked for the order in which they are used.
enum Word {
    Index(AtomicU16),
    Data(Plain),
}

struct Plain {
    width: u32,
    value: Cell<u32>,
}

// SAFETY: loom runs the threads of a model one at a time on one thread of the system, and its cell reports every pair
// of accesses that nothing orders; that report is what this type is for.
#[allow(unsafe_code)]
unsafe impl Sync for Plain {}
// SAFETY: as for `Sync`; the value is a number.
#[allow(unsafe_code)]
unsafe impl Send for Plain {}

/// The memory, seen the same by both sides.
pub struct Memory {
    /// By half the offset, since no word is shorter than 16 bits.
    words: Vec<Option<Word>>,
    weakened: Weakened,
}

impl Memory {
    /// Zeroed memory in which one barrier is a plain access.
    pub fn new(weakened: Weakened) -> Memory {
        let mut words: Vec<Option<Word>> = (0..LEN / 2).map(|_| None).collect();
        let mut put = |at: u32, word: Word| words[at as usize / 2] = Some(word);
        let index = || Word::Index(AtomicU16::new(0));
        let data = |width| Word::Data(Plain { width, value: Cell::new(0) });
        let (size, QueuePlace { desc, avail, used, .. }) = (u32::from(PLACE.size), PLACE);
        for word in 0..size * 4 {
            put(desc + word * 4, data(4));
        }
        for flags in [avail, used] {
            put(flags, data(2));
            put(flags + 2, index());
        }
        for entry in 0..size {
            put(avail + 4 + entry * 2, data(2));
            put(used + 4 + entry * 8, data(4));
            put(used + 8 + entry * 8, data(4));
        }
        put(avail + 4 + size * 2, index());
        put(used + 4 + size * 8, index());
        for at in BUFFERS.into_iter().chain([DRIVER_WORD, DEVICE_WORD]) {
            put(at, data(4));
        }
        Memory { words, weakened }
    }

    /// Whether the ring's code at `caller` is to go without this barrier.
    fn without(&self, barrier: Barrier, caller: &Location<'_>) -> bool {
        self.weakened.is_some_and(|site| {
            site.barrier == barrier && site.line == caller.line() && caller.file().ends_with("ring/split.rs")
        })
    }

    fn word(&self, at: u32, width: u32) -> &Word {
        let word = self.words.get(at as usize / 2).and_then(Option::as_ref);
        let word = word.unwrap_or_else(|| panic!("no word of the ring lies at {at:#x}"));
        let own = match word {
            Word::Index(_) => 2,
            Word::Data(plain) => plain.width,
        };
        assert_eq!((own, at % width), (width, 0), "the word at {at:#x} was accessed at another width");
        word
    }
    fn read(&self, at: u32, width: u32, ordering: Ordering) -> u32 {
        match self.word(at, width) {
            Word::Index(word) => word.load(ordering).into(),
            Word::Data(plain) => plain.value.get(),
        }
    }
    fn write(&self, at: u32, width: u32, value: u32, ordering: Ordering) {
        match self.word(at, width) {
            Word::Index(word) => word.store(value as u16, ordering),
            Word::Data(plain) => plain.value.set(value),
        }
    }
}

impl Mem for Memory {
    fn len(&self) -> u32 {
        LEN
    }
    fn attribute(&self) -> Attribute {
        Attribute::Coherent
    }

    fn read8(&self, at: u32) -> u8 {
        panic!("no word of 8 bits is shared, and {at:#x} was read as one")
    }
    fn read16(&self, at: u32) -> u16 {
        self.read(at, 2, Ordering::Relaxed) as u16
    }
    fn read32(&self, at: u32) -> u32 {
        self.read(at, 4, Ordering::Relaxed)
    }
    fn write8(&self, at: u32, _: u8) {
        panic!("no word of 8 bits is shared, and {at:#x} was written as one")
    }
    fn write16(&self, at: u32, value: u16) {
        self.write(at, 2, value.into(), Ordering::Relaxed);
    }
    fn write32(&self, at: u32, value: u32) {
        self.write(at, 4, value, Ordering::Relaxed);
    }

    #[track_caller]
    fn publish16(&self, at: u32, value: u16) {
        let weak = self.without(Barrier::Publish, Location::caller());
        self.write(at, 2, value.into(), if weak { Ordering::Relaxed } else { Ordering::Release });
    }
    fn publish32(&self, at: u32, _: u32) {
        panic!("no index of 32 bits is shared, and {at:#x} was published as one")
    }
    #[track_caller]
    fn observe16(&self, at: u32) -> u16 {
        let weak = self.without(Barrier::Observe, Location::caller());
        self.read(at, 2, if weak { Ordering::Relaxed } else { Ordering::Acquire }) as u16
    }
    fn observe32(&self, at: u32) -> u32 {
        panic!("no index of 32 bits is shared, and {at:#x} was observed as one")
    }
    #[track_caller]
    fn settle(&self) {
        if !self.without(Barrier::Settle, Location::caller()) {
            fence(Ordering::SeqCst);
        }
    }
    fn bell(&self) {
        fence(Ordering::SeqCst);
    }

    fn copy_in(&self, at: u32, into: &mut [u8]) {
        for (word, at) in into.chunks_mut(4).zip((at..).step_by(4)) {
            word.copy_from_slice(&self.read32(at).to_le_bytes()[..word.len()]);
        }
    }
    fn copy_out(&self, at: u32, from: &[u8]) {
        let (words, rest) = from.as_chunks::<4>();
        assert!(rest.is_empty(), "buffers are whole words here");
        for (word, at) in words.iter().zip((at..).step_by(4)) {
            self.write32(at, u32::from_le_bytes(*word));
        }
    }
    fn clean(&self, _: u32, _: u32) {}
    fn invalidate(&self, _: u32, _: u32) {}
}
