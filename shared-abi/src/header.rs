//! The register window of a device, the words of the extended profile in it, and addresses.
//!
//! The windows of a link's devices stand at the start of the region, 512 bytes each, in the order in which the
//! architect of the system listed the devices. They are plain memory: no access is trapped, no register has a side
//! effect. The offsets up to `0x0bc` are those of VIRTIO 1.2, 4.2.4 (the legacy MMIO interface) with the
//! shared-memory registers of 4.2.2; the words from `0x0c4` to `0x0fb` are ours, and zero in every other PMM.

use bitflags::bitflags;

/// Bytes from one device's register window to the next.
pub const WINDOW_SIZE: u32 = 0x200;
/// Most devices on one link: their windows share the first 4 KiB page.
pub const MAX_DEVICES: usize = 8;
/// Bytes at the start of the region that hold windows and nothing else.
pub const HEADER_SIZE: u32 = 0x1000;
/// Offset of the configuration space in a window.
pub const CONFIG: u32 = 0x100;
/// Bytes of configuration space; what follows, at 0x1f0, is a doorbell where a hypervisor traps it.
pub const CONFIG_SIZE: u32 = 0xf0;

/// Who stores a register. A word has one writer (`Both`: two legacy words of the plain profile).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// Only the PMM stores it.
    Pmm,
    /// Only the guest stores it.
    Guest,
    /// The plain profile has both store it.
    Both,
}

/// One row of the register table; `docs/abi.md` is compared with these by a test.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    /// The name in VIRTIO 1.2, 4.2.2 and 4.2.4, or ours.
    pub name: &'static str,
    /// Bytes from the start of the window.
    pub offset: u32,
    /// Who stores it.
    pub writer: Writer,
}

macro_rules! registers {
    ($($(#[$doc:meta])* $ident:ident = $offset:literal $name:literal $writer:ident;)*) => {
        /// Offsets of the registers in a window, in bytes.
        pub mod reg {
            $($(#[$doc])* pub const $ident: u32 = $offset;)*
        }
        /// Every register, in the order of its offset.
        pub const REGISTERS: &[Register] =
            &[$(Register { name: $name, offset: $offset, writer: Writer::$writer }),*];
    };
}

registers! {
    /// [`super::MAGIC`], stored last when a PMM publishes.
    MAGIC = 0x000 "Magic" Pmm;
    /// 1: the legacy interface, which is what plain front-ends look for.
    VERSION = 0x004 "Version" Pmm;
    /// A [`super::DeviceId`]; 0 ends the array of windows.
    DEVICE_ID = 0x008 "DeviceID" Pmm;
    /// Who made the PMM; only ever logged.
    VENDOR_ID = 0x00c "VendorID" Pmm;
    /// Features 0 to 31 that the plain profile offers.
    DEVICE_FEATURES = 0x010 "DeviceFeatures" Pmm;
    /// Ignored: nothing selects anything.
    DEVICE_FEATURES_SEL = 0x014 "DeviceFeaturesSel" Guest;
    /// Features 0 to 31 that the driver accepts.
    DRIVER_FEATURES = 0x020 "DriverFeatures" Guest;
    /// Ignored.
    DRIVER_FEATURES_SEL = 0x024 "DriverFeaturesSel" Guest;
    /// 4096.
    GUEST_PAGE_SIZE = 0x028 "GuestPageSize" Both;
    /// Plain: which queue is being set up; a hint.
    QUEUE_SEL = 0x030 "QueueSel" Guest;
    /// Largest queue size, for every queue of the device.
    QUEUE_NUM_MAX = 0x034 "QueueNumMax" Pmm;
    /// Plain: size of the queue being set up.
    QUEUE_NUM = 0x038 "QueueNum" Both;
    /// 4096.
    QUEUE_ALIGN = 0x03c "QueueAlign" Both;
    /// Plain: page number of the ring; the PMM answers [`super::PFN_ACK`].
    QUEUE_PFN = 0x040 "QueuePFN" Both;
    /// Plain: which queue was kicked; a hint.
    QUEUE_NOTIFY = 0x050 "QueueNotify" Guest;
    /// Plain: bit 0 a ring, bit 1 the configuration.
    INTERRUPT_STATUS = 0x060 "InterruptStatus" Pmm;
    /// Plain: what the guest has seen; the PMM stores 0 to say so.
    INTERRUPT_ACK = 0x064 "InterruptACK" Both;
    /// Plain: a [`super::Status`]; never anything but 0 under an extended guest.
    STATUS = 0x070 "Status" Guest;
    /// Ignored: there is one region.
    SHM_SEL = 0x0ac "SHMSel" Guest;
    /// Length of the device's data block, low half.
    SHM_LEN_LOW = 0x0b0 "SHMLenLow" Pmm;
    /// High half.
    SHM_LEN_HIGH = 0x0b4 "SHMLenHigh" Pmm;
    /// Guest-physical address of the device's data block, low half.
    SHM_BASE_LOW = 0x0b8 "SHMBaseLow" Pmm;
    /// High half.
    SHM_BASE_HIGH = 0x0bc "SHMBaseHigh" Pmm;
    /// [`super::EXT_MAGIC`]: this PMM serves the extended profile too.
    EXT_MAGIC = 0x0c4 "ExtMagic" Pmm;
    /// [`super::EXT_VERSION`] in the low half, length of the extension words in bytes in the high half.
    EXT_VERSION = 0x0c8 "ExtVersion" Pmm;
    /// Offset of the device's extension block from the region's start.
    EXT_BLOCK = 0x0cc "ExtBlock" Pmm;
    /// Link-wide: which start of the PMM this is; even, odd while it is being written, 0 when there is none.
    PMM_EPOCH = 0x0d0 "PmmEpoch" Pmm;
    /// Link-wide: which start of the guest this is; 0 when there was none.
    DRIVER_EPOCH = 0x0d4 "DriverEpoch" Guest;
    /// Link-wide: the DriverEpoch that the PMM has adopted.
    EPOCH_SEEN = 0x0d8 "EpochSeen" Pmm;
    /// The epoch in which the device runs, or 0.
    DEVICE_READY = 0x0dc "DeviceReady" Pmm;
    /// The epoch in which the driver has set the device up, or 0.
    DRIVER_READY = 0x0e0 "DriverReady" Guest;
    /// A [`super::Fault`]: why the device does not run.
    FAULT = 0x0e4 "Fault" Pmm;
    /// Features 32 to 63 that the driver accepts.
    DRIVER_FEATURES_HIGH = 0x0e8 "DriverFeaturesHigh" Guest;
    /// Link-wide: how often the PMM rang.
    PMM_BELL = 0x0ec "PmmBell" Pmm;
    /// Link-wide: the DriverBell that the PMM has acted on.
    PMM_SEEN = 0x0f0 "PmmSeen" Pmm;
    /// Link-wide: how often the guest rang.
    DRIVER_BELL = 0x0f4 "DriverBell" Guest;
    /// Link-wide: the PmmBell that the guest has acted on.
    DRIVER_SEEN = 0x0f8 "DriverSeen" Guest;
    /// Goes up with each change of the configuration; odd while it changes.
    CONFIG_GENERATION = 0x0fc "ConfigGeneration" Pmm;
}

/// The bytes `virt`.
pub const MAGIC: u32 = 0x7472_6976;
/// The bytes `HVLX`.
pub const EXT_MAGIC: u32 = u32::from_le_bytes(*b"HVLX");
/// The version of the extension that this crate speaks.
pub const EXT_VERSION: u16 = 1;
/// Bytes of extension words, from ExtMagic to the end of DriverSeen.
pub const EXT_LENGTH: u16 = 0x38;
/// Our VendorID, the bytes `HVLR`.
pub const VENDOR: u32 = u32::from_le_bytes(*b"HVLR");
/// Plain: what the PMM stores in QueuePFN when it has taken a queue.
pub const PFN_ACK: u32 = 0xaabb_aabb;
/// Plain: what the PMM stores in QueueSel and QueueNum, so that any value a guest stores is news.
pub const QUEUE_POISON: u32 = 0x00ff_00ff;
/// Page size and used-ring alignment of the plain profile, in bytes.
pub const PLAIN_PAGE: u32 = 4096;

/// A device's registers: the offset of its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(u32);

impl Window {
    /// The window of device `index`, 0 to 7; nothing beyond.
    pub const fn of(index: usize) -> Option<Window> {
        if index < MAX_DEVICES { Some(Window((index as u32).wrapping_mul(WINDOW_SIZE))) } else { None }
    }
    /// The window of device 0, which holds the words of the whole link.
    pub const LINK: Window = Window(0);
    /// Offset in the region of a register of this window.
    #[inline(always)]
    pub const fn at(self, register: u32) -> u32 {
        self.0.wrapping_add(register)
    }
}

/// Which kind of device this is: VIRTIO 1.2, section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

impl DeviceId {
    /// Marks a window that is not used.
    pub const NONE: DeviceId = DeviceId(0);
    /// Network card, 5.1.
    pub const NET: DeviceId = DeviceId(1);
    /// Block device, 5.2.
    pub const BLOCK: DeviceId = DeviceId(2);
    /// Console, 5.3.
    pub const CONSOLE: DeviceId = DeviceId(3);
    /// Entropy source, 5.4.
    pub const RNG: DeviceId = DeviceId(4);
    /// 9P transport.
    pub const P9: DeviceId = DeviceId(9);
    /// Socket device, 5.10.
    pub const VSOCK: DeviceId = DeviceId(19);

    /// The name used in options, logs and status pages.
    pub const fn name(self) -> &'static str {
        match self {
            DeviceId::NET => "net",
            DeviceId::BLOCK => "block",
            DeviceId::CONSOLE => "console",
            DeviceId::RNG => "rng",
            DeviceId::P9 => "9p",
            DeviceId::VSOCK => "vsock",
            _ => "unknown",
        }
    }
}

bitflags! {
    /// Device status: VIRTIO 1.2, 2.1.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u32 {
        /// The guest has found the device.
        const ACKNOWLEDGE = 1;
        /// The guest knows how to drive it.
        const DRIVER = 2;
        /// The driver is set up.
        const DRIVER_OK = 4;
        /// Features are agreed.
        const FEATURES_OK = 8;
        /// The device cannot go on without a reset.
        const DEVICE_NEEDS_RESET = 64;
        /// The guest has given up.
        const FAILED = 128;
    }

    /// Feature bits that belong to the transport and the rings: VIRTIO 1.2, section 6. Bits 0 to 23 are the
    /// device's own and pass through unnamed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// A descriptor may name a table of descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// Notifications are suppressed by index, 2.7.10.
        const EVENT_IDX = 1 << 29;
        /// The modern interface. Always accepted in the extended profile.
        const VERSION_1 = 1 << 32;
        /// Addresses go through the platform (unused: they are offsets that were checked).
        const ACCESS_PLATFORM = 1 << 33;
        /// The packed ring, 2.8.
        const RING_PACKED = 1 << 34;
        /// The platform needs its barriers. Offered on links that are not coherent.
        const ORDER_PLATFORM = 1 << 36;
        const _ = !0;
    }
}

/// Why a device does not run, as the register Fault says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It runs, or waits to be set up.
    None,
    /// The driver accepted features that were not offered, or left out one that it must accept.
    FeaturesRefused,
    /// A ring or header was broken; the driver must reset the device.
    NeedsReset,
    /// A value that this version does not know.
    Unknown(u32),
}

impl Fault {
    /// As the register holds it.
    pub const fn word(self) -> u32 {
        match self {
            Fault::None => 0,
            Fault::FeaturesRefused => 1,
            Fault::NeedsReset => 2,
            Fault::Unknown(word) => word,
        }
    }
    /// From an alleged register.
    pub const fn from_word(word: u32) -> Fault {
        match word {
            0 => Fault::None,
            1 => Fault::FeaturesRefused,
            2 => Fault::NeedsReset,
            other => Fault::Unknown(other),
        }
    }
}

/// The region as the guest sees it: what its physical addresses mean here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmRegion {
    /// The address that the guest calls physical, of the region's first byte.
    pub base: u64,
    /// Length in bytes.
    pub len: u32,
}

impl ShmRegion {
    /// The guest's address of an offset.
    #[inline]
    pub const fn address(&self, at: u32) -> u64 {
        self.base.wrapping_add(at as u64)
    }
    /// The offset of `len` bytes at an alleged address, if all of them lie in the region.
    #[inline]
    pub const fn offset(&self, address: u64, len: u32) -> Option<u32> {
        Extent { at: 0, len: self.len }.locate(self.base, address, len)
    }
}

/// A checked stretch of the region: `len` bytes from offset `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Extent {
    /// First byte, as an offset in the region.
    pub at: u32,
    /// Length in bytes.
    pub len: u32,
}

impl Extent {
    /// First offset after it.
    pub const fn end(self) -> u32 {
        self.at.saturating_add(self.len)
    }
    /// Whether the two share a byte.
    pub const fn overlaps(self, other: Extent) -> bool {
        self.at < other.end() && other.at < self.end()
    }
    /// Whether all of `other` lies in this one.
    pub const fn contains(self, other: Extent) -> bool {
        match other.at.checked_add(other.len) {
            Some(end) => self.at <= other.at && end <= self.end(),
            None => false,
        }
    }
    /// The offset of `len` bytes at the guest's address `address`, if all of them lie in this extent of a region
    /// that the guest sees at `base`.
    #[inline]
    pub const fn locate(self, base: u64, address: u64, len: u32) -> Option<u32> {
        let Some(at) = address.checked_sub(base) else { return None };
        if at > u32::MAX as u64 {
            return None;
        }
        let at = at as u32;
        if self.contains(Extent { at, len }) { Some(at) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_aligned_ascending_and_below_the_configuration() {
        for pair in REGISTERS.windows(2) {
            assert!(pair[0].offset < pair[1].offset, "{} and {}", pair[0].name, pair[1].name);
        }
        assert!(REGISTERS.iter().all(|r| r.offset % 4 == 0 && r.offset < CONFIG));
        assert_eq!(reg::EXT_MAGIC + u32::from(EXT_LENGTH), reg::CONFIG_GENERATION);
    }

    #[test]
    fn an_address_is_inside_only_with_all_of_its_bytes() {
        let r = ShmRegion { base: 0x1000_0000, len: 0x1000 };
        assert_eq!(r.offset(0x1000_0000, 0x1000), Some(0));
        assert_eq!(r.offset(0x1000_0fff, 1), Some(0xfff));
        assert_eq!(r.offset(0x1000_0fff, 2), None);
        assert_eq!(r.offset(0x0fff_ffff, 1), None);
        assert_eq!(r.offset(u64::MAX, 1), None);
        assert_eq!(r.offset(0x1000_0000, u32::MAX), None);
        assert_eq!(r.offset(0x1_1000_0000, 1), None);
    }
}
