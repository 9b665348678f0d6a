//! Epochs: who is alive, and which start of it this is. Both halves, side by side.
//!
//! Either side may die and come back at any instant, and the other finds out from five words of memory:
//!
//! | in memory | meaning | who may touch rings and pools | who acts |
//! |---|---|---|---|
//! | any Status not 0 | a plain guest | plain rules | PMM: end the extended session first |
//! | PmmEpoch 0 or odd | no PMM | nobody | frontend: wait for a doorbell |
//! | PmmEpoch even, DriverEpoch as the PMM found it | no guest yet, or an old one | nobody | frontend: hello |
//! | EpochSeen ≠ DriverEpoch | hello | PMM | PMM: adopt |
//! | EpochSeen = DriverEpoch, DriverReady ≠ it, DeviceReady 0 | set-up | frontend | frontend |
//! | DriverReady = DriverEpoch, DeviceReady 0 | start | frontend posts, PMM does not take yet | PMM: check features |
//! | DriverReady = DeviceReady = DriverEpoch | running | as VIRTIO says | both |
//! | DriverReady 0, DeviceReady = DriverEpoch | device reset | PMM | PMM: drain, clear |
//! | Fault ≠ 0 | this device is broken | PMM has stopped | frontend: DriverReady 0, wait for Fault and DeviceReady 0 |
//! | PmmEpoch ≠ the frontend's copy | another PMM | frontend only reads used entries | frontend: harvest, then hello |
//!
//! The steps and their order are those of a model that is checked exhaustively (`tests/model`); change one only
//! together with the other. Neither half waits: each call looks once and says what it saw.
//!
//! Doorbells carry nothing and may be lost. Each side counts how often it rang (its *Bell*) and says up to which
//! count of the other it has acted (its *Seen*), so that a loss shows in memory. A count continues from what memory
//! holds: one that started over could meet an old Seen, and its first bell, if lost, would never be missed.

use crate::header::{
    DeviceId, EXT_LENGTH, EXT_MAGIC, EXT_VERSION, Fault, Features, MAGIC, QUEUE_POISON, REGISTERS,
    WINDOW_SIZE, Window, reg,
};
use crate::mem::Mem;

const fn at(register: u32) -> u32 {
    Window::LINK.at(register)
}

/// The first word after `base` in steps of `step` that is none of `not` (two words: three tries are enough).
const fn next_word(base: u32, step: u32, not: [u32; 2]) -> u32 {
    let mut next = base.wrapping_add(step);
    let [a, b] = not;
    while next == a || next == b {
        next = next.wrapping_add(step);
    }
    next
}

/// What the PMM sees of its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestLook {
    /// Nothing has changed: no guest, or the one that was adopted.
    Same,
    /// A plain guest is at work: some device has a Status.
    Plain,
    /// This side's own words are gone: the region was wiped, as by a boot loader that clears memory. Publish again.
    Wiped,
    /// A guest has said hello with this epoch. It counts as adopted once [`PmmHalf::adopt`] has said so.
    Hello(u32),
}

/// What the PMM sees of one device in a running session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceLook {
    /// Nothing to do.
    Same,
    /// The driver has set the device up and alleges to have accepted these features.
    Start(Features),
    /// The driver wants the device reset.
    Reset,
}

/// The PMM's half of the link's epochs.
#[derive(Clone, Copy, Debug)]
pub struct PmmHalf {
    epoch: u32,
    found: u32,
    adopted: Option<u32>,
    bell: u32,
    seen: u32,
}

impl PmmHalf {
    /// First half of *publish*: closes the link for whoever is attached. Afterwards the caller writes the static
    /// words of every window, and then calls [`PmmHalf::open`].
    pub fn close<M: Mem>(m: &M, devices: usize) -> PmmHalf {
        PmmHalf::close_after(m, m.read32(at(reg::PMM_EPOCH)), devices)
    }

    /// Closes the link again, for another *publish* by the same PMM: the region was wiped, or a session has ended.
    pub fn close_again<M: Mem>(&self, m: &M, devices: usize) -> PmmHalf {
        // Not after what memory holds now: a guest may still have this PMM's epoch from before the memory was wiped.
        PmmHalf { bell: self.bell, ..PmmHalf::close_after(m, self.epoch, devices) }
    }

    fn close_after<M: Mem>(m: &M, epoch: u32, devices: usize) -> PmmHalf {
        let epoch = next_word((epoch | 1).wrapping_sub(1), 2, [0, 0]);
        m.publish32(at(reg::PMM_EPOCH), epoch.wrapping_sub(1));
        m.settle();
        m.write32(at(reg::EPOCH_SEEN), 0);
        for window in (0..devices).filter_map(Window::of) {
            m.write32(window.at(reg::DEVICE_READY), 0);
            m.write32(window.at(reg::FAULT), Fault::None.word());
        }
        PmmHalf { epoch, found: 0, adopted: None, bell: m.read32(at(reg::PMM_BELL)), seen: 0 }
    }

    /// Second half of *publish*: notes the epoch that is no news, and opens the link. Ring afterwards.
    pub fn open<M: Mem>(&mut self, m: &M) {
        self.found = m.read32(at(reg::DRIVER_EPOCH));
        self.seen = m.read32(at(reg::DRIVER_BELL));
        m.settle();
        m.publish32(at(reg::PMM_EPOCH), self.epoch);
    }

    /// This start of the PMM: even, never 0.
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }
    /// The guest's epoch that was adopted last, if one was.
    pub const fn adopted(&self) -> Option<u32> {
        self.adopted
    }

    /// Looks for a plain guest or a hello among `devices` windows. (PmmEpoch is read back: the region's lock keeps other
    /// PMMs away, so another value means that somebody cleared the memory. They may go on after this side has published
    /// again, so until a guest is adopted the last static word of each window is read back, too.)
    pub fn look<M: Mem>(&self, m: &M, devices: usize) -> GuestLook {
        // DriverEpoch first: a hello stores 0 in every Status before it, so a hello that is seen is never taken for
        // the plain guest that was there before.
        let driver = m.observe32(at(reg::DRIVER_EPOCH));
        if m.read32(at(reg::PMM_EPOCH)) != self.epoch {
            return GuestLook::Wiped;
        }
        let mut windows = (0..devices).filter_map(Window::of);
        if windows.clone().any(|window| m.read32(window.at(reg::STATUS)) != 0) {
            GuestLook::Plain
        } else if self.adopted == Some(driver) {
            GuestLook::Same
        } else if windows.any(|window| m.read32(window.at(reg::EXT_BLOCK)) == 0) {
            GuestLook::Wiped
        } else if driver == 0 || driver == self.found {
            GuestLook::Same
        } else {
            GuestLook::Hello(driver)
        }
    }

    /// Last step of *adopt*. Before it, in this order: every queue is stopped, nothing begun for the old session can
    /// still write into the region, this side's halves of rings and blocks are as new. Ring afterwards.
    pub fn adopt<M: Mem>(&mut self, m: &M, epoch: u32) {
        self.adopted = Some(epoch);
        m.publish32(at(reg::EPOCH_SEEN), epoch);
    }

    /// Ends the session once its devices are stopped and drained, because a plain guest took over, the
    /// guest's doorbell has hung up, or the guest was silent for longer than its user allows. It is a
    /// *publish* without new static words: a guest that is still alive finds another PmmEpoch and says hello.
    /// (Only storing EpochSeen := 0 would strand a guest that had not yet seen its epoch there.) Ring
    /// afterwards.
    pub fn end_session<M: Mem>(&mut self, m: &M, devices: usize) {
        *self = self.close_again(m, devices);
        self.open(m);
    }

    /// *Shutdown*, after the devices are stopped and drained. Ring afterwards.
    pub fn shut<M: Mem>(&mut self, m: &M) {
        m.publish32(at(reg::PMM_EPOCH), self.epoch.wrapping_add(1));
    }

    /// *Shutdown* of a PMM whose own record is lost, as after a panic: closes the region and counts a bell, going by what
    /// stands there. The caller holds the region's lock still, and rings the hardware right after.
    pub fn abandon<M: Mem>(m: &M) {
        m.publish32(at(reg::PMM_EPOCH), m.read32(at(reg::PMM_EPOCH)) | 1);
        m.write32(at(reg::PMM_BELL), m.read32(at(reg::PMM_BELL)).wrapping_add(1));
        m.bell();
    }

    /// Counts a bell. The caller rings the hardware right after.
    pub fn ring<M: Mem>(&mut self, m: &M) {
        self.bell = self.bell.wrapping_add(1);
        m.write32(at(reg::PMM_BELL), self.bell);
        m.bell();
    }
    /// Whether the guest has not yet acted on the last bell.
    pub fn unseen<M: Mem>(&self, m: &M) -> bool {
        m.read32(at(reg::DRIVER_SEEN)) != self.bell
    }
    /// The guest's count of bells. Read it before looking at everything, pass it to [`PmmHalf::acted`] after.
    pub fn guest_bell<M: Mem>(&self, m: &M) -> u32 {
        m.observe32(at(reg::DRIVER_BELL))
    }
    /// Whether the guest rang since the last [`PmmHalf::acted`].
    pub fn rang<M: Mem>(&self, m: &M) -> bool {
        m.read32(at(reg::DRIVER_BELL)) != self.seen
    }
    /// Says that everything that `bell` announced has been looked at.
    pub fn acted<M: Mem>(&mut self, m: &M, bell: u32) {
        self.seen = bell;
        m.write32(at(reg::PMM_SEEN), bell);
    }
}

/// The PMM's half of one device's state.
#[derive(Clone, Copy, Debug)]
pub struct PmmDevice {
    window: Window,
    ready: bool,
    fault: Fault,
}

impl PmmDevice {
    /// A device that does not run.
    pub const fn new(window: Window) -> PmmDevice {
        PmmDevice { window, ready: false, fault: Fault::None }
    }
    /// Whether the driver may use it and this side may take from its queues.
    pub const fn runs(&self) -> bool {
        self.ready && matches!(self.fault, Fault::None)
    }
    /// Why it does not run, if it is broken.
    pub const fn fault(&self) -> Fault {
        self.fault
    }

    /// What the driver wants in the session of `epoch`.
    pub fn look<M: Mem>(&self, m: &M, epoch: u32) -> DeviceLook {
        let ready = m.observe32(self.window.at(reg::DRIVER_READY));
        let idle = !self.ready && self.fault == Fault::None;
        if ready == epoch && idle {
            let low = m.read32(self.window.at(reg::DRIVER_FEATURES));
            let high = m.read32(self.window.at(reg::DRIVER_FEATURES_HIGH));
            DeviceLook::Start(Features::from_bits_retain(u64::from(high) << 32 | u64::from(low)))
        } else if ready != epoch && !idle {
            DeviceLook::Reset
        } else {
            DeviceLook::Same
        }
    }
    /// Answers a start: the device runs from here on. Ring afterwards.
    pub fn start<M: Mem>(&mut self, m: &M, epoch: u32) {
        self.ready = true;
        m.publish32(self.window.at(reg::DEVICE_READY), epoch);
    }
    /// Says that the device is broken; it has been stopped. Ring afterwards.
    pub fn fail<M: Mem>(&mut self, m: &M, fault: Fault) {
        self.fault = fault;
        m.publish32(self.window.at(reg::FAULT), fault.word());
    }
    /// Answers a reset, or prepares an adoption: the device is stopped, drained, and its halves of the rings are as
    /// new. Ring afterwards.
    pub fn clear<M: Mem>(&mut self, m: &M) {
        (self.ready, self.fault) = (false, Fault::None);
        m.publish32(self.window.at(reg::FAULT), Fault::None.word());
        m.publish32(self.window.at(reg::DEVICE_READY), 0);
    }
}

/// What the frontend sees of the PMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmmLook {
    /// There is none, or it is being started.
    Absent,
    /// This start of one is there.
    Present(u32),
}

/// Why a header is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Offset in the region of the register that is wrong.
    pub at: u32,
    /// What it alleges.
    pub alleged: u32,
}

impl core::fmt::Display for Foreign {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Foreign { at, alleged } = self;
        let offset = at.checked_rem(WINDOW_SIZE);
        let register = REGISTERS.iter().find(|register| Some(register.offset) == offset);
        let register = register.map_or("?", |register| register.name);
        write!(
            f,
            "the word {register} at offset {at:#x} is {alleged:#010x}: no PMM of the extended profile is there"
        )
    }
}

impl core::error::Error for Foreign {}

/// A word of the PMM's. Not inlined: firmware looks at these from many places, and counts its bytes.
#[inline(never)]
fn observe<M: Mem>(m: &M, at: u32) -> u32 {
    m.observe32(at)
}

/// The frontend's half of the link's epochs.
#[derive(Clone, Copy, Debug, Default)]
pub struct DriverHalf {
    pmm: u32,
    epoch: u32,
}

impl DriverHalf {
    /// A frontend that has not said hello.
    pub const fn new() -> DriverHalf {
        DriverHalf { pmm: 0, epoch: 0 }
    }
    /// The half of a session that was adopted, for a task that keeps a copy of both epochs.
    pub const fn of(pmm: u32, epoch: u32) -> DriverHalf {
        DriverHalf { pmm, epoch }
    }
    /// The epoch of the last hello; 0 before the first.
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }
    /// The start of the PMM to which the last hello went.
    pub const fn pmm(&self) -> u32 {
        self.pmm
    }

    /// Whether a PMM is there, and which.
    pub fn look<M: Mem>(m: &M) -> PmmLook {
        match observe(m, at(reg::PMM_EPOCH)) {
            epoch if epoch == 0 || epoch & 1 == 1 => PmmLook::Absent,
            epoch => PmmLook::Present(epoch),
        }
    }

    /// Copies the static words of the windows: tells `note` of each device's kind and the alleged offset of its block,
    /// in the order of the windows, and says how many there are. What it tells counts only if [`DriverHalf::hello`]
    /// then finds the same PMM.
    pub fn devices<M: Mem>(m: &M, mut note: impl FnMut(usize, DeviceId, u32)) -> Result<usize, Foreign> {
        const SIGNS: [(u32, u32); 3] = [
            (reg::MAGIC, MAGIC),
            (reg::EXT_MAGIC, EXT_MAGIC),
            (reg::EXT_VERSION, (EXT_LENGTH as u32) << 16 | EXT_VERSION as u32),
        ];
        let mut index = 0usize;
        while let Some(window) = Window::of(index) {
            let id = m.read32(window.at(reg::DEVICE_ID));
            if id == 0 && index > 0 {
                break;
            }
            for (register, expected) in SIGNS {
                let at = window.at(register);
                let alleged = m.read32(at);
                if alleged != expected {
                    return Err(Foreign { at, alleged });
                }
            }
            if id == 0 {
                return Err(Foreign { at: window.at(reg::DEVICE_ID), alleged: id });
            }
            note(index, DeviceId(id), m.read32(window.at(reg::EXT_BLOCK)));
            index = index.wrapping_add(1);
        }
        Ok(index)
    }

    /// *Hello* to the PMM that was seen as `pmm`, if it is still the one; it has `devices` windows. Everything that
    /// the last session used must have been harvested before: the PMM clears it next. Ring afterwards.
    pub fn hello<M: Mem>(&mut self, m: &M, pmm: u32, devices: usize) -> bool {
        if observe(m, at(reg::PMM_EPOCH)) != pmm {
            return false;
        }
        for window in (0..devices).filter_map(Window::of) {
            m.write32(window.at(reg::STATUS), 0);
            // A predecessor may have left the very epoch that comes next.
            m.write32(window.at(reg::DRIVER_READY), 0);
        }
        // The epoch goes on from what memory holds: a firmware that restarts remembers nothing else.
        let epoch = next_word(m.read32(at(reg::DRIVER_EPOCH)), 1, [0, m.read32(at(reg::EPOCH_SEEN))]);
        (self.pmm, self.epoch) = (pmm, epoch);
        m.publish32(at(reg::DRIVER_EPOCH), epoch);
        m.settle();
        true
    }

    /// PmmEpoch and EpochSeen, the words that say all about a session. EpochSeen is read first: a PMM that starts has
    /// changed its own epoch before it touches that word.
    #[inline(never)]
    pub fn words<M: Mem>(m: &M) -> (u32, u32) {
        let seen = observe(m, at(reg::EPOCH_SEEN));
        (observe(m, at(reg::PMM_EPOCH)), seen)
    }

    /// Whether the hello was answered; `None` while it was not. `Some(false)`: it never will be, the PMM is another
    /// one by now or has ended the session.
    pub fn adopted<M: Mem>(&self, m: &M) -> Option<bool> {
        let (pmm, seen) = Self::words(m);
        if pmm != self.pmm {
            Some(false)
        } else if seen == self.epoch {
            Some(true)
        } else {
            None
        }
    }

    /// Whether the PMM is still the one that was greeted.
    pub fn current<M: Mem>(&self, m: &M) -> bool {
        observe(m, at(reg::PMM_EPOCH)) == self.pmm
    }
    /// Whether the session is the one that was adopted: the same PMM, and it has not ended it.
    pub fn in_session<M: Mem>(&self, m: &M) -> bool {
        self.adopted(m) == Some(true)
    }
}

/// What the frontend sees of one device it has set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// The PMM has not answered yet.
    Waiting,
    /// It runs in this epoch.
    Running,
    /// It is broken; reset it.
    Faulty(Fault),
    /// It is clear: set it up.
    Clear,
    /// The PMM is another one by now, and what these words say is not about this session.
    Lost,
}

/// The frontend's view of one device's state words.
#[derive(Clone, Copy, Debug)]
pub struct DriverDevice(pub Window);

impl DriverDevice {
    /// *Start*: rings and buffers are in place. `features` is what the driver accepts. Ring afterwards.
    pub fn start<M: Mem>(self, m: &M, epoch: u32, features: Features) {
        let bits = features.bits();
        m.write32(self.0.at(reg::DRIVER_FEATURES), bits as u32);
        m.write32(self.0.at(reg::DRIVER_FEATURES_HIGH), (bits >> 32) as u32);
        m.publish32(self.0.at(reg::DRIVER_READY), epoch);
    }
    /// Asks for a reset. Ring afterwards; the device is clear when [`DriverDevice::state`] says so.
    pub fn reset<M: Mem>(self, m: &M) {
        m.publish32(self.0.at(reg::DRIVER_READY), 0);
    }
    /// The device in the session that `half` has. The PMM's epoch is looked at last: a PMM that starts clears these
    /// words too, and that is no answer to a reset.
    pub fn state<M: Mem>(self, m: &M, half: &DriverHalf) -> DeviceState {
        let ready = observe(m, self.0.at(reg::DEVICE_READY));
        let fault = Fault::from_word(observe(m, self.0.at(reg::FAULT)));
        match (fault, ready) {
            _ if !half.current(m) => DeviceState::Lost,
            (Fault::None, 0) => DeviceState::Clear,
            (Fault::None, ready) if ready == half.epoch => DeviceState::Running,
            (Fault::None, _) => DeviceState::Waiting,
            (fault, _) => DeviceState::Faulty(fault),
        }
    }
}

/// The frontend's bell. Kept apart from [`DriverHalf`], because several tasks may ring.
pub mod driver_bell {
    use super::{Mem, at, observe, reg};

    /// The count that memory holds; a frontend goes on from it.
    pub fn found<M: Mem>(m: &M) -> u32 {
        m.read32(at(reg::DRIVER_BELL))
    }
    /// Says that the frontend rang `bell` times. The caller rings the hardware right after.
    pub fn ring<M: Mem>(m: &M, bell: u32) {
        m.write32(at(reg::DRIVER_BELL), bell);
        m.bell();
    }
    /// The PMM's count of bells. Read it before looking at everything, pass it to [`acted`] after.
    pub fn pmm_bell<M: Mem>(m: &M) -> u32 {
        observe(m, at(reg::PMM_BELL))
    }
    /// Says that everything that `bell` announced has been looked at.
    pub fn acted<M: Mem>(m: &M, bell: u32) {
        m.write32(at(reg::DRIVER_SEEN), bell);
    }
    /// Up to which of our bells the PMM has acted.
    pub fn seen_by_pmm<M: Mem>(m: &M) -> u32 {
        m.read32(at(reg::PMM_SEEN))
    }
}

/// Writes the words of a window that never change while a PMM runs (PMM, between [`PmmHalf::close`] and
/// [`PmmHalf::open`]). Magic comes last.
pub fn write_static<M: Mem>(m: &M, window: Window, words: &StaticWords) {
    let put = |register, value| m.write32(window.at(register), value);
    if m.read32(window.at(reg::MAGIC)) != MAGIC || m.read32(window.at(reg::EXT_MAGIC)) != EXT_MAGIC {
        // A region that no PMM of ours has served: what a plain guest may write starts from known values.
        for register in [reg::QUEUE_PFN, reg::INTERRUPT_STATUS, reg::INTERRUPT_ACK, reg::CONFIG_GENERATION] {
            put(register, 0);
        }
        put(reg::QUEUE_SEL, QUEUE_POISON);
        put(reg::QUEUE_NUM, QUEUE_POISON);
    }
    put(reg::VERSION, 1);
    put(reg::DEVICE_ID, words.id.0);
    put(reg::VENDOR_ID, crate::header::VENDOR);
    put(reg::DEVICE_FEATURES, words.plain_features);
    put(reg::GUEST_PAGE_SIZE, crate::header::PLAIN_PAGE);
    put(reg::QUEUE_ALIGN, crate::header::PLAIN_PAGE);
    put(reg::QUEUE_NUM_MAX, words.queue_max);
    put(reg::SHM_LEN_LOW, words.data.len);
    put(reg::SHM_LEN_HIGH, 0);
    put(reg::SHM_BASE_LOW, words.data_base as u32);
    put(reg::SHM_BASE_HIGH, (words.data_base >> 32) as u32);
    put(reg::EXT_VERSION, u32::from(EXT_LENGTH) << 16 | u32::from(EXT_VERSION));
    put(reg::EXT_BLOCK, words.block);
    m.publish32(window.at(reg::EXT_MAGIC), EXT_MAGIC);
    m.publish32(window.at(reg::MAGIC), MAGIC);
}

/// What [`write_static`] stores.
#[derive(Clone, Copy, Debug)]
pub struct StaticWords {
    /// Which kind of device.
    pub id: DeviceId,
    /// Features 0 to 31 that the plain profile offers.
    pub plain_features: u32,
    /// Largest queue size.
    pub queue_max: u32,
    /// The device's data block, as an extent of the region.
    pub data: crate::header::Extent,
    /// The guest's address of it.
    pub data_base: u64,
    /// Offset of the extension block.
    pub block: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Attribute;
    use crate::mem::tests::region;

    fn words() -> StaticWords {
        let data = crate::header::Extent { at: 0x1000, len: 0x1000 };
        let id = DeviceId::RNG;
        StaticWords { id, plain_features: 0, queue_max: 8, data, data_base: 0x1000, block: 0x1000 }
    }

    fn start_pmm(m: &crate::Region) -> PmmHalf {
        let mut pmm = PmmHalf::close(m, 1);
        assert_eq!(DriverHalf::look(m), PmmLook::Absent);
        write_static(m, Window::LINK, &words());
        pmm.open(m);
        pmm
    }

    fn start_guest(m: &crate::Region) -> DriverHalf {
        let PmmLook::Present(epoch) = DriverHalf::look(m) else { panic!("no PMM") };
        let devices = DriverHalf::devices(m, |_, _, _| {}).unwrap();
        let mut guest = DriverHalf::new();
        assert!(guest.hello(m, epoch, devices));
        guest
    }

    #[test]
    fn a_hello_is_adopted_once_and_yesterdays_never() {
        let m = region(0x2000, Attribute::Coherent);
        let mut pmm = start_pmm(&m);
        assert_eq!(pmm.look(&m, 1), GuestLook::Same);
        let guest = start_guest(&m);
        assert_eq!(guest.adopted(&m), None);
        let GuestLook::Hello(epoch) = pmm.look(&m, 1) else { panic!("no hello") };
        pmm.adopt(&m, epoch);
        assert_eq!(guest.adopted(&m), Some(true));
        assert_eq!(pmm.look(&m, 1), GuestLook::Same);
        let successor = start_pmm(&m);
        assert_ne!(successor.epoch(), pmm.epoch());
        assert_eq!(guest.adopted(&m), Some(false));
        assert_eq!(successor.look(&m, 1), GuestLook::Same, "the epoch it found is no news");
        let again = start_guest(&m);
        assert_eq!(successor.look(&m, 1), GuestLook::Hello(again.epoch()));
    }

    #[test]
    fn a_session_that_the_pmm_ended_is_noticed_and_its_epoch_is_used_up() {
        let m = region(0x2000, Attribute::Coherent);
        let mut pmm = start_pmm(&m);
        let guest = start_guest(&m);
        pmm.adopt(&m, guest.epoch());
        pmm.end_session(&m, 1);
        assert_eq!(guest.adopted(&m), Some(false));
        assert!(!guest.in_session(&m));
        assert_eq!(pmm.look(&m, 1), GuestLook::Same);
        let again = start_guest(&m);
        assert_eq!(pmm.look(&m, 1), GuestLook::Hello(again.epoch()));
    }

    #[test]
    fn a_hello_takes_back_what_a_broken_predecessor_set_up() {
        let m = region(0x2000, Attribute::Coherent);
        let mut pmm = start_pmm(&m);
        DriverDevice(Window::LINK).start(&m, 1, Features::VERSION_1);
        let guest = start_guest(&m);
        pmm.adopt(&m, guest.epoch());
        assert_eq!(PmmDevice::new(Window::LINK).look(&m, guest.epoch()), DeviceLook::Same);
    }

    #[test]
    fn a_region_that_was_wiped_is_noticed() {
        let m = region(0x2000, Attribute::Coherent);
        let pmm = start_pmm(&m);
        assert_eq!(pmm.look(&m, 1), GuestLook::Same);
        for at in (0..0x2000).step_by(4) {
            m.write32(at, 0);
        }
        assert_eq!(pmm.look(&m, 1), GuestLook::Wiped);
        assert_ne!(pmm.close_again(&m, 1).epoch(), pmm.epoch());
    }

    #[test]
    fn a_bell_after_a_wipe_is_none_that_the_guest_has_acted_on() {
        let m = region(0x2000, Attribute::Coherent);
        let mut pmm = start_pmm(&m);
        pmm.ring(&m);
        // The guest outlives the wipe, and so does what it remembers.
        let seen = driver_bell::pmm_bell(&m);
        m.write32(reg::PMM_EPOCH, 0);
        m.write32(reg::PMM_BELL, 0);
        pmm = pmm.close_again(&m, 1);
        pmm.open(&m);
        pmm.ring(&m);
        driver_bell::acted(&m, seen);
        assert!(pmm.unseen(&m), "the guest has not looked since");
    }

    #[test]
    fn epochs_skip_zero_and_odd_and_what_was_seen() {
        let m = region(0x2000, Attribute::Coherent);
        for found in [0, 1, 2, u32::MAX - 2, u32::MAX - 1, u32::MAX] {
            m.write32(reg::PMM_EPOCH, found);
            let pmm = start_pmm(&m);
            assert!(
                pmm.epoch() != 0 && pmm.epoch().is_multiple_of(2) && pmm.epoch() != found,
                "after {found:#x}"
            );
            assert_eq!(m.read32(reg::PMM_EPOCH), pmm.epoch());
        }
        m.write32(reg::DRIVER_EPOCH, u32::MAX);
        m.write32(reg::EPOCH_SEEN, 1);
        assert_eq!(start_guest(&m).epoch(), 2);
    }

    #[test]
    fn a_device_starts_fails_and_is_reset() {
        let m = region(0x2000, Attribute::Coherent);
        let guest = DriverHalf { pmm: 2, epoch: 7 };
        m.write32(reg::PMM_EPOCH, 2);
        let (mut device, driver) = (PmmDevice::new(Window::LINK), DriverDevice(Window::LINK));
        assert_eq!(device.look(&m, 7), DeviceLook::Same);
        driver.start(&m, 7, Features::VERSION_1);
        assert_eq!(device.look(&m, 7), DeviceLook::Start(Features::VERSION_1));
        assert_eq!(device.look(&m, 9), DeviceLook::Same, "an old DriverReady starts nothing");
        device.start(&m, 7);
        assert_eq!(driver.state(&m, &guest), DeviceState::Running);
        device.fail(&m, Fault::NeedsReset);
        assert_eq!(driver.state(&m, &guest), DeviceState::Faulty(Fault::NeedsReset));
        assert_eq!(device.look(&m, 7), DeviceLook::Same);
        driver.reset(&m);
        assert_eq!(device.look(&m, 7), DeviceLook::Reset);
        device.clear(&m);
        assert_eq!(driver.state(&m, &guest), DeviceState::Clear);
        assert_eq!(device.look(&m, 7), DeviceLook::Same);
        m.write32(reg::PMM_EPOCH, 3);
        assert_eq!(driver.state(&m, &guest), DeviceState::Lost, "another PMM cleared it");
    }
}
