//! The only access to memory that the other side can write.
//!
//! Every shared word is read and written through the trait [`Mem`], at its own width (8, 16 or 32 bits; never 64,
//! which a Cortex-R5 may tear), by its offset in the region. There is no reference and no slice into shared memory
//! anywhere in the project: the peer may change any byte between two instructions, and a Rust reference promises
//! that nobody does.
//!
//! Ordering has names, because "acquire" and "release" say nothing to a reader who has to decide whether one is
//! missing:
//!
//! | name | promise | x86-64 | Arm |
//! |---|---|---|---|
//! | `publish` | this store is seen after everything before it in program order | compiler fence | `dmb sy` before |
//! | `observe` | everything after this load in program order happens after it | compiler fence | `dmb sy` after |
//! | `settle` | stores before it are seen before loads after it are made | `mfence` (or a locked add) | `dmb sy` |
//! | `bell` | everything before it is complete, also as seen by a device | `mfence` | `dsb sy` |
//!
//! The barriers are the full-system ones: an A53 and an R5 need not be in one shareability domain. A `publish` is
//! not `dmb st`, because a device hands a buffer back after *reading* it, and a store barrier does not order loads.
//! `settle` is a fence and never a sequentially consistent access: those do not order the store before against the
//! load after.
//!
//! Three memories implement the trait: [`Region`] here, the simulator's, and the one that loom explores.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

/// What kind of memory the region is on *this* side. The two sides may see it differently.
#[derive(Clone, Copy)]
pub enum Attribute {
    /// Cached, and the hardware keeps both sides' caches coherent (one chip-wide domain, or one machine).
    Coherent,
    /// Normal memory mapped non-cacheable: any alignment works, no maintenance is needed.
    NonCacheable,
    /// Cached with nobody keeping it coherent. Allowed for pools only (never for headers and rings): buffers are
    /// cleaned before they are handed over and invalidated before they are posted and after they return, by this.
    CachedNonCoherent(&'static dyn MaintainCache),
    /// Device memory: only aligned accesses of a word's own width; a `memcpy` faults. Slow; a fallback.
    Device,
}

impl Attribute {
    /// One word for logs, status pages and the link block.
    pub const fn name(self) -> &'static str {
        match self {
            Attribute::Coherent => "coherent",
            Attribute::NonCacheable => "non-cacheable",
            Attribute::CachedNonCoherent(_) => "cached-non-coherent",
            Attribute::Device => "device",
        }
    }

    /// What keeps this side's cache in step, where nobody else does.
    pub const fn cache(&self) -> Option<&'static dyn MaintainCache> {
        match self {
            Attribute::CachedNonCoherent(cache) => Some(*cache),
            _ => None,
        }
    }
}

/// By kind: which object maintains the cache makes no difference.
impl PartialEq for Attribute {
    fn eq(&self, other: &Attribute) -> bool {
        core::mem::discriminant(self) == core::mem::discriminant(other)
    }
}
impl Eq for Attribute {}

impl core::fmt::Debug for Attribute {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// Cache maintenance by address, which a board provides for [`Attribute::CachedNonCoherent`] regions.
pub trait MaintainCache: Sync {
    /// Writes dirty lines of `len` bytes from `address` back to memory.
    fn clean(&self, address: usize, len: usize);
    /// Drops lines of `len` bytes from `address`, so that the next load comes from memory.
    fn invalidate(&self, address: usize, len: usize);
}

/// Words, copies and barriers of one shared region.
///
/// Offsets are bytes from the region's start and naturally aligned. An access outside the region or misaligned is a
/// defect of the caller, never of a peer, since whatever a peer names is checked before it gets here: debug builds
/// assert it; release builds read 0 and store nothing, because firmware must not panic.
pub trait Mem {
    /// Length of the region in bytes, a multiple of 4.
    fn len(&self) -> u32;
    /// Whether the region has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// How this side maps the region.
    fn attribute(&self) -> Attribute;

    /// Loads a byte; unordered.
    fn read8(&self, at: u32) -> u8;
    /// Loads a 16-bit word; unordered.
    fn read16(&self, at: u32) -> u16;
    /// Loads a 32-bit word; unordered.
    fn read32(&self, at: u32) -> u32;
    /// Stores a byte; unordered.
    fn write8(&self, at: u32, value: u8);
    /// Stores a 16-bit word; unordered.
    fn write16(&self, at: u32, value: u16);
    /// Stores a 32-bit word; unordered.
    fn write32(&self, at: u32, value: u32);

    /// Stores a 16-bit word that says that everything before it is there.
    fn publish16(&self, at: u32, value: u16);
    /// Stores a 32-bit word that says that everything before it is there.
    fn publish32(&self, at: u32, value: u32);
    /// Loads a 16-bit word, and holds back every later access until it is loaded.
    fn observe16(&self, at: u32) -> u16;
    /// Loads a 32-bit word, and holds back every later access until it is loaded.
    fn observe32(&self, at: u32) -> u32;
    /// Stands between storing an index and reading whether the peer wants waking.
    fn settle(&self);
    /// Stands before a doorbell: everything stored is visible to whoever the bell wakes.
    fn bell(&self);

    /// Copies bytes out of the region into private memory. What is copied is still only alleged.
    fn copy_in(&self, at: u32, into: &mut [u8]);
    /// Copies private bytes into the region.
    fn copy_out(&self, at: u32, from: &[u8]);

    /// Writes `len` bytes back from this side's cache, where it has one that nobody keeps coherent.
    fn clean(&self, at: u32, len: u32);
    /// Drops `len` bytes from this side's cache, where it has one that nobody keeps coherent.
    fn invalidate(&self, at: u32, len: u32);

    /// These bytes for a system call that moves data to or from them. `None` where none may: outside the region, in
    /// Device memory, which only aligned words reach, in a memory that is only modelled, and where nobody keeps the
    /// caches coherent: what a call moved before it failed would stay in a cache, and be written back some day over what
    /// the peer has there by then.
    fn piece(&self, _at: u32, _len: u32) -> Option<Piece> {
        None
    }
}

/// Bytes of a region in this address space, for system calls. It is no reference: the peer may change them at any
/// moment, so that whatever reads them reads them once.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    start: NonNull<u8>,
    len: usize,
}

impl Piece {
    /// No bytes.
    pub const EMPTY: Piece = Piece { start: NonNull::dangling(), len: 0 };

    /// Where they start. They stay mapped, readable and writable as long as the region does ([`Region::new`]).
    pub const fn start(&self) -> NonNull<u8> {
        self.start
    }
    /// How many there are.
    pub const fn len(&self) -> usize {
        self.len
    }
    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Whether `len` bytes from `at` lie inside a region of `region_len` bytes.
pub const fn inside(at: u32, len: u32, region_len: u32) -> bool {
    match at.checked_add(len) {
        Some(end) => end <= region_len,
        None => false,
    }
}

/// A region in this side's address space.
///
/// A copy of it is as good as the original: it owns nothing and has no lock, and every word in it has one writer.
#[derive(Clone, Copy)]
pub struct Region {
    base: NonNull<u8>,
    len: u32,
    attribute: Attribute,
}

impl core::fmt::Debug for Region {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Region({:p}, {:#x} bytes, {})", self.base, self.len, self.attribute.name())
    }
}

// SAFETY: 1. `Region` hands out no references into the memory it names; 2. every access it makes is an atomic of the
// word's width or a raw copy whose result the caller treats as alleged; 3. the memory outlives all copies (`new`).
#[allow(unsafe_code)]
unsafe impl Send for Region {}
// SAFETY: as for `Send`.
#[allow(unsafe_code)]
unsafe impl Sync for Region {}

impl Region {
    /// Names `len` bytes at `base`. A length that is no multiple of 4 is rounded down.
    ///
    /// # Safety
    /// 1. `base` is aligned to 4 bytes (64 where memory is cached without coherence) and `len` bytes from it stay mapped, readable and writable for as long as any
    ///    copy of the result, or a [`Piece`] of it, is used. 2. No Rust reference to any of them exists in this program meanwhile. 3. The
    ///    memory really has `attribute`.
    #[allow(unsafe_code)]
    pub const unsafe fn new(base: NonNull<u8>, len: u32, attribute: Attribute) -> Region {
        Region { base, len: len & !3, attribute }
    }

    /// A region in memory of this program that two parts of it share, as tests, benches and examples do. The words
    /// may not be used otherwise.
    #[allow(unsafe_code)]
    pub fn in_words(words: &'static [AtomicU32], attribute: Attribute) -> Region {
        let len = u32::try_from(size_of_val(words)).unwrap_or(u32::MAX);
        // SAFETY: 1. the words live for ever, are aligned to 4, which is all that words need, and may be written
        // through a shared reference; 2. the references that exist are to atomics; 3. one program is coherent with
        // itself.
        unsafe { Region::new(NonNull::from(words).cast(), len, attribute) }
    }

    /// Where the region starts in this address space, for the system calls that move data to and from it.
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The word of type `T` at `at`, or nothing outside the region. Alignment is forced, not tested: one
    /// instruction instead of two, and the debug assertion has said what was wrong.
    #[inline(always)]
    #[allow(unsafe_code)]
    fn word<T>(&self, at: u32) -> Option<*mut T> {
        let width = size_of::<T>() as u32;
        debug_assert!(
            at.is_multiple_of(width) && at < self.len,
            "access of {width} bytes at {at:#x} of {:#x}",
            self.len
        );
        let at = at & !width.wrapping_sub(1);
        if at < self.len {
            // SAFETY: `at` is a multiple of the width (1, 2 or 4), `len` is a multiple of 4 and `at < len`, so the
            // whole word lies inside the region.
            Some(unsafe { self.base.as_ptr().add(at as usize) }.cast())
        } else {
            None
        }
    }

    #[inline(never)]
    #[allow(unsafe_code)]
    fn copy_words(&self, at: u32, bytes: CopyOf<'_>) {
        // Device memory faults on anything but aligned accesses, so bytes go singly up to a word boundary, then as
        // words, then singly again.
        match bytes {
            CopyOf::In(into) => {
                let (head, rest) = into.split_at_mut(to_word(at, into.len()));
                let mut next = at;
                let singly = |bytes: &mut [u8], next: &mut u32| {
                    for byte in bytes {
                        *byte = self.read8(*next);
                        *next = next.wrapping_add(1);
                    }
                };
                singly(head, &mut next);
                let mut words = rest.chunks_exact_mut(4);
                for word in words.by_ref() {
                    word.copy_from_slice(&self.read32(next).to_le_bytes());
                    next = next.wrapping_add(4);
                }
                singly(words.into_remainder(), &mut next);
            }
            CopyOf::Out(from) => {
                let (head, rest) = from.split_at(to_word(at, from.len()));
                let mut next = at;
                let singly = |bytes: &[u8], next: &mut u32| {
                    for byte in bytes {
                        self.write8(*next, *byte);
                        *next = next.wrapping_add(1);
                    }
                };
                singly(head, &mut next);
                let words = rest.chunks_exact(4);
                let tail = words.remainder();
                for word in words {
                    self.write32(next, word.iter().rev().fold(0, |w, byte| w << 8 | u32::from(*byte)));
                    next = next.wrapping_add(4);
                }
                singly(tail, &mut next);
            }
        }
    }
}

/// Bytes from `at` to the next word boundary, at most `len`.
fn to_word(at: u32, len: usize) -> usize {
    ((at.wrapping_neg() & 3) as usize).min(len)
}

enum CopyOf<'a> {
    In(&'a mut [u8]),
    Out(&'a [u8]),
}

/// Accesses of one width: relaxed atomics, which the compiler neither tears, merges nor invents.
macro_rules! words {
    ($read:ident, $write:ident, $type:ty, $atomic:ty) => {
        #[inline(always)]
        #[allow(unsafe_code)]
        fn $read(&self, at: u32) -> $type {
            match self.word::<$type>(at) {
                // SAFETY: `word` returned an aligned pointer inside the region, which `new` says is mapped.
                Some(word) => unsafe { <$atomic>::from_ptr(word) }.load(Ordering::Relaxed),
                None => 0,
            }
        }
        #[inline(always)]
        #[allow(unsafe_code)]
        fn $write(&self, at: u32, value: $type) {
            if let Some(word) = self.word::<$type>(at) {
                // SAFETY: as for the load.
                unsafe { <$atomic>::from_ptr(word) }.store(value, Ordering::Relaxed);
            }
        }
    };
}

impl Mem for Region {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.len
    }
    #[inline(always)]
    fn attribute(&self) -> Attribute {
        self.attribute
    }

    words!(read8, write8, u8, AtomicU8);
    words!(read16, write16, u16, AtomicU16);
    words!(read32, write32, u32, AtomicU32);

    #[inline(always)]
    fn publish16(&self, at: u32, value: u16) {
        barrier::release();
        self.write16(at, value);
    }
    #[inline(always)]
    fn publish32(&self, at: u32, value: u32) {
        barrier::release();
        self.write32(at, value);
    }
    #[inline(always)]
    fn observe16(&self, at: u32) -> u16 {
        let value = self.read16(at);
        barrier::acquire();
        value
    }
    #[inline(always)]
    fn observe32(&self, at: u32) -> u32 {
        let value = self.read32(at);
        barrier::acquire();
        value
    }
    #[inline(always)]
    fn settle(&self) {
        barrier::full();
    }
    #[inline(always)]
    fn bell(&self) {
        barrier::complete();
    }

    #[inline(never)]
    #[allow(unsafe_code)]
    fn copy_in(&self, at: u32, into: &mut [u8]) {
        if !u32::try_from(into.len()).is_ok_and(|len| inside(at, len, self.len)) {
            debug_assert!(false, "copy of {} bytes from {at:#x} of {:#x}", into.len(), self.len);
            into.fill(0);
        } else if self.attribute == Attribute::Device {
            self.copy_words(at, CopyOf::In(into));
        } else {
            // SAFETY: 1. the source lies inside the region; 2. the destination is private, so they do not overlap;
            // 3. a peer may write meanwhile: the copy is of bytes, any value is valid, and it is treated as alleged.
            unsafe { unseen::copy(into.as_mut_ptr(), self.base.as_ptr().add(at as usize), into.len()) }
        }
    }

    #[inline(never)]
    #[allow(unsafe_code)]
    fn copy_out(&self, at: u32, from: &[u8]) {
        if !u32::try_from(from.len()).is_ok_and(|len| inside(at, len, self.len)) {
            debug_assert!(false, "copy of {} bytes to {at:#x} of {:#x}", from.len(), self.len);
        } else if self.attribute == Attribute::Device {
            self.copy_words(at, CopyOf::Out(from));
        } else {
            // SAFETY: as for `copy_in`, with the directions exchanged.
            unsafe { unseen::copy(self.base.as_ptr().add(at as usize), from.as_ptr(), from.len()) }
        }
    }

    #[inline]
    fn clean(&self, at: u32, len: u32) {
        if let Some(cache) = self.attribute.cache() {
            cache.clean(self.base.addr().get().wrapping_add(at as usize), len as usize);
        }
    }
    #[inline]
    fn invalidate(&self, at: u32, len: u32) {
        if let Some(cache) = self.attribute.cache() {
            cache.invalidate(self.base.addr().get().wrapping_add(at as usize), len as usize);
        }
    }

    #[inline]
    #[allow(unsafe_code)]
    fn piece(&self, at: u32, len: u32) -> Option<Piece> {
        let kept = matches!(self.attribute, Attribute::Coherent | Attribute::NonCacheable);
        let reachable = kept && inside(at, len, self.len);
        // SAFETY: `at` is at most the region's length, so the sum stays within it or one past its end.
        reachable.then(|| Piece { start: unsafe { self.base.add(at as usize) }, len: len as usize })
    }
}

/// Bulk copies that are opaque to the compiler. If it saw them, it would treat shared memory as ordinary
/// memory: it could read the source again instead of the copy that was checked, and a concurrent write by the
/// peer would be undefined behaviour. An assembler block that calls the routine which the compiler would call
/// has neither problem, and is just as fast.
///
/// Rejected: volatile words, which no compiler moves in runs, and `rep movsb`, which is slow for headers.
#[cfg(all(any(all(target_arch = "x86_64", unix), target_arch = "aarch64", target_arch = "arm"), not(miri)))]
mod unseen {
    #[allow(unsafe_code)]
    unsafe extern "C" {
        #[cfg(not(target_arch = "arm"))]
        #[link_name = "memcpy"]
        fn routine(to: *mut u8, from: *const u8, len: usize) -> *mut u8;
        // What the compiler calls itself there, so that firmware has it.
        #[cfg(target_arch = "arm")]
        #[link_name = "__aeabi_memcpy"]
        fn routine(to: *mut u8, from: *const u8, len: usize);
    }

    /// Copies `len` bytes.
    ///
    /// # Safety
    /// Both ends are valid for `len` bytes and do not overlap.
    #[inline(always)]
    #[allow(unsafe_code)]
    pub unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
        // SAFETY: 1. the registers are those in which the routine takes its arguments, and all that it may change are
        // given up; 2. without `nostack` the stack is aligned as for any call; 3. the routine does what it promises for
        // these arguments, and unwinds never.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            core::arch::asm!("call {}", sym routine, in("rdi") to, in("rsi") from, in("rdx") len, clobber_abi("C"));
            #[cfg(target_arch = "aarch64")]
            core::arch::asm!("bl {}", sym routine, in("x0") to, in("x1") from, in("x2") len, clobber_abi("C"));
            #[cfg(target_arch = "arm")]
            core::arch::asm!("bl {}", sym routine, in("r0") to, in("r1") from, in("r2") len, clobber_abi("C"));
        }
    }
}

/// The same for other processors and for Miri, byte by byte.
#[cfg(not(all(
    any(all(target_arch = "x86_64", unix), target_arch = "aarch64", target_arch = "arm"),
    not(miri)
)))]
mod unseen {
    use core::sync::atomic::{AtomicU8, Ordering};

    /// Copies `len` bytes.
    ///
    /// # Safety
    /// Both ends are valid for `len` bytes and do not overlap; what a peer may change is only read, or only written.
    #[allow(unsafe_code)]
    pub unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
        for at in 0..len {
            // SAFETY: 1. both lie in what the caller answers for; 2. an atomic of a byte needs no alignment, and a load does
            // not write to where `from` points.
            unsafe {
                let byte = AtomicU8::from_ptr(from.add(at).cast_mut()).load(Ordering::Relaxed);
                AtomicU8::from_ptr(to.add(at)).store(byte, Ordering::Relaxed);
            }
        }
    }
}

/// The barriers of this processor.
#[cfg(any(target_arch = "arm", target_arch = "aarch64"))]
mod barrier {
    #[inline(always)]
    #[allow(unsafe_code)]
    fn dmb() {
        // SAFETY: a barrier changes no register and no memory.
        unsafe { core::arch::asm!("dmb sy", options(nostack, preserves_flags)) }
    }
    #[inline(always)]
    pub fn release() {
        dmb();
    }
    #[inline(always)]
    pub fn acquire() {
        dmb();
    }
    #[inline(always)]
    pub fn full() {
        dmb();
    }
    #[inline(always)]
    #[allow(unsafe_code)]
    pub fn complete() {
        // SAFETY: a barrier changes no register and no memory.
        unsafe { core::arch::asm!("dsb sy", options(nostack, preserves_flags)) }
    }
}

/// The barriers of this processor: x86-64 keeps loads and stores in order but for a store before a load, so two of
/// the four only hold the compiler back. Other processors take the fences of the language.
#[cfg(not(any(target_arch = "arm", target_arch = "aarch64")))]
mod barrier {
    use core::sync::atomic::{Ordering, fence};
    #[inline(always)]
    pub fn release() {
        fence(Ordering::Release);
    }
    #[inline(always)]
    pub fn acquire() {
        fence(Ordering::Acquire);
    }
    #[inline(always)]
    pub fn full() {
        fence(Ordering::SeqCst);
    }
    #[inline(always)]
    pub fn complete() {
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::vec::Vec;

    /// A region on the heap, leaked: tests are short.
    pub fn region(len: u32, attribute: Attribute) -> Region {
        let words: Vec<AtomicU32> = (0..len / 4).map(|_| AtomicU32::new(0)).collect();
        Region::in_words(words.leak(), attribute)
    }

    #[test]
    fn words_of_each_width_keep_to_themselves() {
        let m = region(64, Attribute::Coherent);
        m.write32(4, 0x4433_2211);
        m.write16(4, 0xbbaa);
        m.write8(7, 0xdd);
        assert_eq!(m.read32(4), 0xdd33_bbaa);
        assert_eq!((m.read32(0), m.read32(8)), (0, 0));
    }

    #[test]
    fn copies_work_at_every_alignment_in_both_kinds_of_memory() {
        for attribute in [Attribute::Coherent, Attribute::Device] {
            let m = region(128, attribute);
            for at in 0..8u32 {
                for len in 0..19usize {
                    let from: Vec<u8> = (0..len).map(|i| (i as u8) ^ (at as u8) << 4 | 1).collect();
                    m.copy_out(at, &from);
                    let mut back = std::vec![0; len];
                    m.copy_in(at, &mut back);
                    assert_eq!(back, from, "{attribute:?} at {at} len {len}");
                }
            }
        }
    }

    #[test]
    fn memory_that_nobody_keeps_coherent_has_who_does() {
        use std::sync::Mutex;
        struct Noted(Mutex<Vec<(&'static str, usize, usize)>>);
        impl MaintainCache for Noted {
            fn clean(&self, address: usize, len: usize) {
                self.0.lock().unwrap().push(("clean", address, len));
            }
            fn invalidate(&self, address: usize, len: usize) {
                self.0.lock().unwrap().push(("invalidate", address, len));
            }
        }
        static NOTED: Noted = Noted(Mutex::new(Vec::new()));
        let cached = region(64, Attribute::CachedNonCoherent(&NOTED));
        let coherent = region(64, Attribute::Coherent);
        let base = cached.base().addr().get();
        for m in [cached, coherent] {
            m.clean(8, 16);
            m.invalidate(32, 4);
        }
        assert_eq!(*NOTED.0.lock().unwrap(), [("clean", base + 8, 16), ("invalidate", base + 32, 4)]);
        assert!(cached.attribute() != coherent.attribute());
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "access of 4 bytes at 0x40 of 0x40"))]
    fn an_access_past_the_end_reaches_nothing() {
        let m = region(64, Attribute::Coherent);
        m.write32(64, 1);
        assert_eq!(m.read32(64), 0);
    }
}
