//! Where everything lies in the region.
//!
//! [`Layout::place`] is a `const fn`: the PMM runs it on the options it was given, firmware may run it at compile
//! time on what its architect wrote down, and [`Layout::identity`] lets the two find out at attach that they mean
//! the same layout. Nothing in it depends on an address, so one layout fits every place a region may be mapped.
//!
//! ```text
//! 0x0000  windows            0x200 bytes a device, at most eight
//! 0x1000  blocks             one a device: the directory that publishes what follows
//!         rings              a queue's descriptors, available ring and used ring, each on lines of its own
//!         pools              one a device: blocks of 64 bytes and more that only this device's buffers use
//! ```
//!
//! Lines are 64 bytes, the longer of the lines of a Cortex-R5 (32) and a Cortex-A53 (64), so that no line has two
//! writers on either.

use crate::block;
use crate::header::{DeviceId, Extent, HEADER_SIZE, MAX_DEVICES};

/// The unit in which space is given out: no line of memory belongs to two writers, in bytes.
pub const LINE: u32 = 64;
/// Most queues of one device.
pub const MAX_QUEUES: usize = 4;
/// Largest queue. VIRTIO allows 32768; nothing here gains by more than 1024.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// What the architect decides for one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Which kind of device.
    pub id: DeviceId,
    /// Entries of each queue, powers of two from 2 to [`MAX_QUEUE_SIZE`]; 0 ends the list.
    pub queues: [u16; MAX_QUEUES],
    /// Bytes of the pool in which the driver keeps the buffers; rounded up to lines.
    pub pool: u32,
}

impl DeviceSpec {
    /// Entropy: one queue of 8, a pool of 2 KiB.
    pub const RNG: DeviceSpec = DeviceSpec { id: DeviceId::RNG, queues: [8, 0, 0, 0], pool: 0x800 };
    /// A console: queues of 64, a pool of 32 KiB.
    pub const CONSOLE: DeviceSpec =
        DeviceSpec { id: DeviceId::CONSOLE, queues: [64, 64, 0, 0], pool: 0x8000 };
    /// A network card: queues of 64, a pool of 256 KiB, which makes blocks of 2 KiB: a frame of 1,514 bytes and its
    /// header fit in one.
    pub const NET: DeviceSpec = DeviceSpec { id: DeviceId::NET, queues: [64, 64, 0, 0], pool: 0x4_0000 };
    /// Sockets: queues of 32 for data and 8 for events, a pool of 144 KiB, which makes blocks of 2 KiB: 64 KiB each way,
    /// as much as a connection has credit for.
    pub const VSOCK: DeviceSpec = DeviceSpec { id: DeviceId::VSOCK, queues: [32, 32, 8, 0], pool: 0x2_4000 };
    /// Files: a queue of 16, a pool of 256 KiB, which makes 64 KiB each for four requests with their answers.
    pub const P9: DeviceSpec = DeviceSpec { id: DeviceId::P9, queues: [16, 0, 0, 0], pool: 0x4_0000 };
    const NONE: DeviceSpec = DeviceSpec { id: DeviceId::NONE, queues: [0; MAX_QUEUES], pool: 0 };
}

/// The places of one queue's three parts, as offsets in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct QueuePlace {
    /// Entries, a power of two.
    pub size: u16,
    /// Descriptor table, 16 bytes an entry, written by the driver.
    pub desc: u32,
    /// Available ring, 6 bytes and 2 an entry, written by the driver.
    pub avail: u32,
    /// Used ring, 6 bytes and 8 an entry, written by the device.
    pub used: u32,
}

impl QueuePlace {
    /// Bytes of the descriptor table.
    pub const fn desc_bytes(size: u16) -> u32 {
        (size as u32).saturating_mul(16)
    }
    /// Bytes of the available ring with its event word.
    pub const fn avail_bytes(size: u16) -> u32 {
        (size as u32).saturating_mul(2).saturating_add(6)
    }
    /// Bytes of the used ring with its event word.
    pub const fn used_bytes(size: u16) -> u32 {
        (size as u32).saturating_mul(8).saturating_add(6)
    }
    /// The three parts.
    pub const fn extents(&self) -> [Extent; 3] {
        [
            Extent { at: self.desc, len: Self::desc_bytes(self.size) },
            Extent { at: self.avail, len: Self::avail_bytes(self.size) },
            Extent { at: self.used, len: Self::used_bytes(self.size) },
        ]
    }
    /// The place of a legacy ring, VIRTIO 1.2, 2.7.2: one block from `at`, the used ring on the next multiple of
    /// `align`.
    pub const fn legacy(at: u32, size: u16, align: u32) -> Option<QueuePlace> {
        let Some(avail) = at.checked_add(Self::desc_bytes(size)) else { return None };
        let Some(end) = avail.checked_add(Self::avail_bytes(size)) else { return None };
        let Some(used) = end.checked_next_multiple_of(align) else { return None };
        Some(QueuePlace { size, desc: at, avail, used })
    }
    /// The part of [`QueuePlace::is_sound`] that asks for no extents: the size and the alignments.
    pub const fn is_aligned(&self) -> bool {
        self.size.is_power_of_two()
            && self.size >= 2
            && self.size <= MAX_QUEUE_SIZE
            && self.desc.is_multiple_of(16)
            && self.avail.is_multiple_of(2)
            && self.used.is_multiple_of(4)
    }
    /// Whether an alleged place is one that a ring may use: a size that VIRTIO allows, parts aligned as 2.7 asks and
    /// apart from each other, all of them inside `within`.
    pub const fn is_sound(&self, within: Extent) -> bool {
        let [desc, avail, used] = self.extents();
        self.is_aligned()
            && within.contains(desc)
            && within.contains(avail)
            && within.contains(used)
            && !desc.overlaps(avail)
            && !desc.overlaps(used)
            && !avail.overlaps(used)
    }
}

/// The places of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePlace {
    /// What it was placed for.
    pub spec: DeviceSpec,
    /// The extension block.
    pub block: Extent,
    /// The queues; a size of 0 ends the list.
    pub queues: [QueuePlace; MAX_QUEUES],
    /// The pool.
    pub pool: Extent,
}

impl DevicePlace {
    const NONE: DevicePlace = DevicePlace {
        spec: DeviceSpec::NONE,
        block: Extent { at: 0, len: 0 },
        queues: [QueuePlace { size: 0, desc: 0, avail: 0, used: 0 }; MAX_QUEUES],
        pool: Extent { at: 0, len: 0 },
    };
    /// The queues that there are.
    pub fn queues(&self) -> impl Iterator<Item = &QueuePlace> {
        self.queues.iter().take_while(|queue| queue.size != 0)
    }
}

/// A link's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    places: [DevicePlace; MAX_DEVICES],
    count: usize,
    end: u32,
    panic_text: Extent,
    identity: u64,
}

/// Why there is no layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// No device was listed.
    NoDevice,
    /// More than [`MAX_DEVICES`] were listed.
    TooManyDevices {
        /// How many were.
        count: usize,
    },
    /// A queue size is no power of two from 2 to [`MAX_QUEUE_SIZE`].
    QueueSize {
        /// Which device, in the order of the list.
        device: usize,
        /// Which of its queues.
        queue: usize,
        /// The size that was asked for.
        size: u16,
    },
    /// The region is too small.
    TooSmall {
        /// Bytes that the layout needs, rounded up to 4 KiB.
        need: u32,
        /// Bytes that there are.
        have: u32,
    },
}

impl core::fmt::Display for LayoutError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            LayoutError::NoDevice => write!(f, "a link needs at least one device"),
            LayoutError::TooManyDevices { count } => {
                write!(f, "a link carries at most {MAX_DEVICES} devices, and {count} were listed")
            }
            LayoutError::QueueSize { device, queue, size } => write!(
                f,
                "queue {queue} of device {device} has {size} entries; it takes a power of two from 2 to {MAX_QUEUE_SIZE}"
            ),
            LayoutError::TooSmall { need, have } => {
                write!(f, "the region has {have:#x} bytes, and these devices need {need:#x}")
            }
        }
    }
}

impl core::error::Error for LayoutError {}

/// Gives out space from the bottom up, a line at a time. It saturates instead of failing, so that the error can say
/// how much would have been enough.
struct Cursor(u32);

impl Cursor {
    const fn take(&mut self, len: u32) -> Extent {
        let at = self.0;
        self.0 = match at.saturating_add(len).checked_next_multiple_of(LINE) {
            Some(next) => next,
            None => u32::MAX,
        };
        Extent { at, len }
    }
}

impl Layout {
    /// Places `devices`, in this order, in a region of `region_len` bytes.
    #[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)] // const fn has no iterators; all bounds are its own
    pub const fn place(devices: &[DeviceSpec], region_len: u32) -> Result<Layout, LayoutError> {
        let count = devices.len();
        if count == 0 {
            return Err(LayoutError::NoDevice);
        }
        if count > MAX_DEVICES {
            return Err(LayoutError::TooManyDevices { count });
        }
        let mut cursor = Cursor(HEADER_SIZE);
        let mut places = [DevicePlace::NONE; MAX_DEVICES];
        let mut identity = Fnv::new().word(block::BLOCK_VERSION).word(count as u32);
        let mut d = 0;
        while d < count {
            let spec = devices[d];
            places[d].spec = spec;
            places[d].block = cursor.take(block::length(d == 0));
            let mut q = 0;
            while q < MAX_QUEUES && spec.queues[q] != 0 {
                let size = spec.queues[q];
                if !size.is_power_of_two() || size < 2 || size > MAX_QUEUE_SIZE {
                    return Err(LayoutError::QueueSize { device: d, queue: q, size });
                }
                q += 1;
            }
            d += 1;
        }
        let panic_text = cursor.take(block::PANIC_TEXT_BYTES);
        d = 0;
        while d < count {
            let spec = devices[d];
            let mut q = 0;
            while q < MAX_QUEUES && spec.queues[q] != 0 {
                let size = spec.queues[q];
                places[d].queues[q] = QueuePlace {
                    size,
                    desc: cursor.take(QueuePlace::desc_bytes(size)).at,
                    avail: cursor.take(QueuePlace::avail_bytes(size)).at,
                    used: cursor.take(QueuePlace::used_bytes(size)).at,
                };
                q += 1;
            }
            d += 1;
        }
        d = 0;
        while d < count {
            let pool = cursor.take(devices[d].pool);
            places[d].pool = Extent { at: pool.at, len: cursor.0.saturating_sub(pool.at) };
            let place = &places[d];
            identity =
                identity.word(place.spec.id.0).word(place.block.at).word(place.pool.at).word(place.pool.len);
            let mut q = 0;
            while q < MAX_QUEUES {
                let queue = &place.queues[q];
                identity =
                    identity.word(queue.size as u32).word(queue.desc).word(queue.avail).word(queue.used);
                q += 1;
            }
            d += 1;
        }
        let end = cursor.0;
        if end > region_len || end == u32::MAX {
            let need = end.saturating_add(0xfff) & !0xfff;
            return Err(LayoutError::TooSmall { need, have: region_len });
        }
        Ok(Layout { places, count, end, panic_text, identity: identity.0 })
    }

    /// The devices, in the order of their windows.
    pub fn devices(&self) -> &[DevicePlace] {
        self.places.get(..self.count).unwrap_or(&[])
    }
    /// First offset that nothing uses.
    pub const fn end(&self) -> u32 {
        self.end
    }
    /// Where firmware leaves its last words.
    pub const fn panic_text(&self) -> Extent {
        self.panic_text
    }
    /// A hash of every place and size. Two layouts with the same identity are the same, for all practical purposes
    /// of finding a mistake; it is no defence against a peer that means harm.
    pub const fn identity(&self) -> u64 {
        self.identity
    }
}

/// FNV-1a, 64 bits: small, and `const`.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
    #[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
    const fn word(self, word: u32) -> Fnv {
        let bytes = word.to_le_bytes();
        let mut hash = self.0;
        let mut i = 0;
        while i < 4 {
            hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            i += 1;
        }
        Fnv(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const FIRMWARE: Layout = match Layout::place(&[DeviceSpec::RNG, DeviceSpec::CONSOLE], 0x10_0000) {
        Ok(layout) => layout,
        Err(_) => panic!("the default devices fit into 1 MiB"),
    };

    fn extents(layout: &Layout) -> Vec<Extent> {
        let mut all = std::vec![Extent { at: 0, len: HEADER_SIZE }, layout.panic_text()];
        for device in layout.devices() {
            all.extend([device.block, device.pool]);
            all.extend(device.queues().flat_map(|queue| queue.extents()));
        }
        all
    }

    #[test]
    fn what_firmware_computes_at_compile_time_is_what_the_pmm_computes_at_run_time() {
        let specs = std::vec![DeviceSpec::RNG, DeviceSpec::CONSOLE];
        assert_eq!(Layout::place(&specs, 0x10_0000), Ok(FIRMWARE));
        let swapped = Layout::place(&[DeviceSpec::CONSOLE, DeviceSpec::RNG], 0x10_0000).unwrap();
        assert_ne!(swapped.identity(), FIRMWARE.identity());
    }

    #[test]
    fn no_two_places_share_a_line() {
        for count in 1..=MAX_DEVICES {
            let specs: Vec<_> =
                (0..count).map(|i| if i % 2 == 0 { DeviceSpec::RNG } else { DeviceSpec::CONSOLE }).collect();
            let layout = Layout::place(&specs, 0x100_0000).unwrap();
            let lines: Vec<_> = extents(&layout)
                .iter()
                .map(|e| Extent { at: e.at / LINE * LINE, len: e.len.next_multiple_of(LINE) })
                .collect();
            for (i, a) in lines.iter().enumerate() {
                assert!(a.end() <= layout.end());
                assert!(lines.iter().skip(i + 1).all(|b| !a.overlaps(*b)), "{a:?} is shared");
            }
            let region = Extent { at: 0, len: layout.end() };
            assert!(layout.devices().iter().flat_map(|d| d.queues()).all(|q| q.is_sound(region)));
        }
    }

    #[test]
    fn a_region_too_small_is_told_how_much_it_takes() {
        let error = Layout::place(&[DeviceSpec::CONSOLE], 0x2000).unwrap_err();
        let LayoutError::TooSmall { need, .. } = error else { panic!("{error}") };
        assert!(Layout::place(&[DeviceSpec::CONSOLE], need).is_ok());
        let huge = DeviceSpec { pool: u32::MAX, ..DeviceSpec::CONSOLE };
        assert!(matches!(Layout::place(&[huge, huge], u32::MAX), Err(LayoutError::TooSmall { .. })));
    }

    #[test]
    fn an_unsound_queue_is_refused() {
        let within = Extent { at: 0x1000, len: 0x4000 };
        let sound = QueuePlace::legacy(0x1000, 128, 4096).unwrap();
        assert!(sound.is_sound(within));
        assert_eq!(sound.used, 0x2000);
        let unsound = [
            QueuePlace { size: 0, ..sound },
            QueuePlace { size: 3, ..sound },
            QueuePlace { size: 2048, ..sound },
            QueuePlace { desc: 0x1008, ..sound },
            QueuePlace { desc: 0, ..sound },
            QueuePlace { avail: sound.desc, ..sound },
            QueuePlace { used: sound.avail & !3, ..sound },
            QueuePlace { used: 0x4ffc, ..sound },
            QueuePlace { used: 0xffff_fffc, ..sound },
        ];
        assert!(unsound.iter().all(|place| !place.is_sound(within)));
    }
}
