//! The plain profile: the legacy registers as existing front-ends drive them over plain memory.
//!
//! A front-end stores registers and rings one doorbell for all of them; this side compares what it finds with what
//! it knows. Registers are copied once a look. A queue request is a QueueNum that is not the poison; just before the
//! acknowledgement the poison is stored there, which is how a reboot is told from a front-end that stores the page
//! number back.
//!
//! One thing the registers do not say is whether QueuePFN is news: a front-end that stores page numbers back leaves the
//! last one there, and after a reboot stores QueueNum before it. So a page number that was there before counts as a
//! request only when nothing has changed for 100 ms; any other counts at once. A request that was refused is looked at
//! again as slowly, since what was in its way may have gone. In the same way an acknowledgement that the front-end
//! seems to have missed is stored again. Acting at once instead would now and then take another
//! queue's ring, or overwrite a page number just stored. And a guest may have been halted for longer than that: the page
//! number that it stores after all, to a QueueNum that was taken already, replaces the old one.
//!
//! Reboots need not show in every device at once, and the next image may have other rings, or data, where a device of
//! the old one has its rings. So each look examines the registers of all devices before it acts on any. Where one shows a
//! reboot (a lower Status, a queue set up again, a queue where another device's rings lie), the devices of the old boot
//! are held: nothing is written for them before they are set up again. Which those are is told by time, since a new image
//! may have set up devices already that the old one did not have: a device belongs to the old boot if it was set up
//! before the one that shows the reboot, or sooner after that one's set-up than before now.
//!
//! Front-ends differ in where they count from. OpenAMP's reads its available index back from memory and counts on, over
//! reboots; others count from 0. A ring's index is taken as it stands, unless this side has zeroed that memory; and where
//! the first index that is seen cannot come after it, and can come after 0, it is one that counts from 0.
//!
//! There is no identity of either side in these registers, so:
//!
//! - a guest that reboots between the stores of one acknowledgement is not recognised;
//! - a PMM that was killed resumes only from what it had a [`Recorder`] keep; without it, the guest must be rebooted.
//!
//! InterruptStatus is a private copy that is stored and never read back. An acknowledgement clears its bits, and
//! raises them once more if anything was completed since the one before it: a handler that was interrupted between its
//! look and its acknowledgement would otherwise wipe out what came meanwhile. A needless interrupt does no harm.

use hvl_shared_abi::header::{
    Extent, Fault, HEADER_SIZE, MAX_DEVICES, PFN_ACK, PLAIN_PAGE, QUEUE_POISON, Status, reg,
};
use hvl_shared_abi::layout::{MAX_QUEUES, QueuePlace};
use hvl_shared_abi::ring::Windows;
use hvl_shared_abi::{Features, Mem, ShmRegion, Window};

use super::Port;
use super::extended::Outcome;
use crate::link::Micros;

/// Stretches between the rings of one device at the most.
const GAPS: usize = MAX_QUEUES * 3 + 1;
/// Registers that could mean two things are believed when they have not changed for this long. A front-end gives up
/// after 4 s.
const STEADY: Micros = 100_000;
/// The same where it is unlikely: an old page number that stood for another queue.
const STEADY_OTHER: Micros = 1_000_000;
/// InterruptStatus: a ring has used buffers.
const USED_RING: u32 = 1;
/// InterruptStatus: the configuration has changed.
const CONFIGURATION: u32 = 2;

/// A queue that was acknowledged: all that a successor needs to go on with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize))]
pub struct QueueRecord {
    /// Page number of the ring.
    pub pfn: u32,
    /// Entries.
    pub size: u16,
    /// Available index at which it was taken over.
    pub start: u16,
}

/// What one device's driver has set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize))]
pub struct DeviceRecord {
    /// The queues, in their order; those of size 0 are not set up.
    pub queues: [QueueRecord; MAX_QUEUES],
}

/// What a plain guest has set up: what a PMM needs to take over from one that was killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Serialize, serde::Deserialize))]
pub struct PlainRecord {
    /// The devices, in the order of their windows.
    pub devices: [DeviceRecord; MAX_DEVICES],
}

/// Keeps a [`PlainRecord`] where the next PMM finds it. It is told before each acknowledgement.
pub trait Recorder: Send {
    /// Stores the record. `false`: it could not be, or is not yet, and the guest is not told; it is asked again at the
    /// next look, which whoever stores beside the loop brings about.
    fn record(&mut self, record: &PlainRecord) -> bool;
}

/// Why a queue was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The device has fewer queues.
    NoSuchQueue(usize),
    /// Its size is none that a queue of the device can have; up to this one.
    Size(u16),
    /// GuestPageSize or QueueAlign is not that of this profile.
    Alignment(u32),
    /// Its ring would not lie in the region, behind the header page.
    Outside,
    /// Its ring would lie on that of this other queue of the device.
    Overlap(usize),
}

/// A queue that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    request: Request,
    why: Refused,
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Request { sel, num, pfn } = self.request;
        write!(f, "queue {sel} of {num} entries in page {pfn:#x}: ")?;
        match self.why {
            Refused::NoSuchQueue(queues) => write!(f, "the device has {queues} queues, counted from 0"),
            Refused::Size(max) => write!(f, "the size must be a power of two from 2 to {max}"),
            Refused::Alignment(page) => {
                write!(f, "GuestPageSize or QueueAlign is {page}, and must be {PLAIN_PAGE}")
            }
            Refused::Outside => f.write_str("the ring does not lie in the region, behind the header page"),
            Refused::Overlap(other) => write!(f, "the ring lies on that of queue {other} of the same device"),
        }
    }
}

/// What the queue registers come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// Nothing, or nothing yet.
    None,
    /// The guest sets up a queue.
    Request(Request),
    /// The guest waits for an acknowledgement that was given.
    Missed,
}

/// What the memory of a ring holds that is set up for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Zeroes of this side's, and what the guest has stored since.
    Zeroed,
    /// Whatever was there before.
    Used,
}

/// How far a plain device is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Its driver has not said DRIVER_OK, or has set up no queue.
    #[default]
    Off,
    /// It serves its queues.
    Running,
    /// The driver is a predecessor's, of which nothing is known: it is served when it has set its queues up again,
    /// which takes a reboot.
    Orphan,
    /// Another device of the same guest has shown a reboot: this one's rings may be anything by now. It is served when
    /// it is set up again.
    Held,
    /// Its driver has broken the rules. The registers have no word for it that is ours to store, so the device is
    /// silent until the driver resets it, or sets its queues up again.
    Broken(Fault),
}

/// One plain device's registers, as this side knows them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PlainDevice {
    status: u32,
    queues: DeviceRecord,
    /// The queue that was set up last, and when.
    last: Option<usize>,
    set_up_at: Micros,
    /// When its registers were looked at last.
    now: Micros,
    last_sel: u32,
    state: State,
    interrupt: u32,
    /// Something was completed since the last acknowledgement.
    news: bool,
    /// Its driver has acknowledged an interrupt since it was set up.
    acknowledges: bool,
    /// The last acknowledgement of a queue is where the guest waits for it, as far as can be seen.
    waits_for_queue: bool,
    /// The page number that QueuePFN may still hold from before, no news by itself, and the queues from before.
    stale_pfn: u32,
    stale: DeviceRecord,
    /// A queue has been set up since this PMM started.
    was_set_up: bool,
    /// Registers that could mean two things, and since when they have not changed.
    doubtful: Option<(Request, Micros)>,
    /// The last queue was taken over because an old page number had stood for long. This was its size: the guest may
    /// only have been slow, and the number that it meant is still to come.
    guessed: Option<u32>,
    /// The last request that was refused: it is counted once, and looked at again while it stands.
    refusal: Option<Refusal>,
    /// Requests that named no place for a ring.
    pub refused: u64,
    /// Changes with whatever the guest stores in the registers.
    signs: u32,
}

/// What a guest asks for when it sets up a queue: QueueSel, QueueNum, QueuePFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    sel: u32,
    num: u32,
    pfn: u32,
}

impl Request {
    /// The queue that QueueSel names; `None` where it was never stored.
    fn selected(self) -> Option<usize> {
        usize::try_from(self.sel).ok().filter(|_| self.sel != QUEUE_POISON)
    }
}

/// The registers of one look, each copied once.
struct Seen {
    status: u32,
    request: Request,
    ack: u32,
}

impl Seen {
    fn copy<M: Mem>(m: &M, window: Window) -> Seen {
        // The page number is stored last, so it is read first.
        let pfn = m.observe32(window.at(reg::QUEUE_PFN));
        let status = m.observe32(window.at(reg::STATUS));
        let (sel, num) = (m.read32(window.at(reg::QUEUE_SEL)), m.read32(window.at(reg::QUEUE_NUM)));
        Seen { status, request: Request { sel, num, pfn }, ack: m.read32(window.at(reg::INTERRUPT_ACK)) }
    }
}

/// What one look at a device's registers has found; it is acted on when all devices were looked at.
pub(crate) struct Found {
    seen: Seen,
    news: News,
    /// The guest has rebooted, or has reset this device, whose queues were set up at this time.
    pub rebooted: Option<Micros>,
}

impl PlainDevice {
    /// Whether a predecessor's guest is at work that this PMM cannot serve before it reboots.
    pub const fn is_orphan(&self) -> bool {
        matches!(self.state, State::Orphan)
    }
    /// Returns whether it waits to be set up again, since its guest seems to have rebooted.
    pub const fn is_held(&self) -> bool {
        matches!(self.state, State::Held)
    }
    /// Whether the device serves its queues.
    pub const fn runs(&self) -> bool {
        matches!(self.state, State::Running)
    }
    /// What its driver did that keeps it from being served before a reset.
    pub const fn fault(&self) -> Fault {
        match self.state {
            State::Broken(fault) => fault,
            _ => Fault::None,
        }
    }
    /// Whether the guest has not acted on a bell yet: it has not acknowledged an interrupt, or has not moved on from the
    /// acknowledgement of a queue. An interrupt that tells of the configuration does not count: many a driver never asks
    /// for it.
    pub const fn is_unacknowledged(&self) -> bool {
        self.interrupt & USED_RING != 0 || self.waits_for_queue
    }
    /// Whether silence says anything: there are front-ends that never acknowledge an interrupt.
    pub const fn is_silent(&self) -> bool {
        self.interrupt & USED_RING != 0 && self.acknowledges
    }
    /// A number that changes with what the guest stores: a sign of life.
    pub const fn signs(&self) -> u32 {
        self.signs
    }
    /// Queues that the guest has set up.
    pub const fn queues(&self) -> &DeviceRecord {
        &self.queues
    }
    /// The last refusal.
    pub const fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }
    /// When its queues were set up, if they are.
    pub fn set_up_at(&self) -> Option<Micros> {
        self.queues.queues.iter().any(|queue| queue.size != 0).then_some(self.set_up_at)
    }

    fn is_set_up(&self, index: usize) -> bool {
        self.queues.queues.get(index).is_some_and(|queue| queue.size != 0)
    }

    /// When the PMM starts: a guest that has a Status already is an orphan, unless its record is at hand.
    pub fn found<M: Mem>(
        m: &M,
        port: &mut Port<'_, M>,
        region: ShmRegion,
        record: Option<&DeviceRecord>,
    ) -> PlainDevice {
        let seen = Seen::copy(m, port.window);
        let state = if seen.status == 0 { State::Off } else { State::Orphan };
        let (status, stale_pfn) = (seen.status, seen.request.pfn);
        let mut device = PlainDevice { status, state, stale_pfn, ..PlainDevice::default() };
        if let Some(record) = record.filter(|_| status != 0) {
            device.resume(m, port, region, record, &seen);
        }
        device
    }

    /// Goes on with the queues that a predecessor has acknowledged.
    fn resume<M: Mem>(
        &mut self,
        m: &M,
        port: &mut Port<'_, M>,
        region: ShmRegion,
        record: &DeviceRecord,
        seen: &Seen,
    ) {
        let driver_ok = seen.status & Status::DRIVER_OK.bits() != 0;
        // Recorded, and not acknowledged: the request stands, and is served as one.
        let Request { num, pfn, .. } = seen.request;
        let asked = !driver_ok && num != QUEUE_POISON && num != 0;
        for (index, queue) in record.queues.iter().enumerate() {
            if queue.size == 0 || (asked && queue.pfn == pfn) {
                continue;
            }
            let place = ring_place(region, queue.pfn, u32::from(queue.size), port.queue_max());
            let Ok(place) = place else { continue };
            let Some(mut ring) = port.spare.get_mut(index).and_then(Option::take) else { continue };
            ring.replace(place);
            // Completions were published in the order of taking, so the used index, which the predecessor stored, says
            // how far the available ring was served.
            let used = m.observe16(place.used.wrapping_add(2));
            let (available, size) = (ring.alleged_position(m), place.size);
            let mut start = queue.start;
            if available.wrapping_sub(start.wrapping_add(used)) > size && available.wrapping_sub(used) <= size
            {
                // The guest counts from 0, which showed after the queue was recorded.
                start = 0;
            }
            ring.resume(Features::empty(), start.wrapping_add(used), used);
            ring.keep_order();
            if let Some(slot) = port.rings.get_mut(index) {
                *slot = Some(ring);
            }
            if let Some(own) = self.queues.queues.get_mut(index) {
                *own = *queue;
            }
            if self.last.is_none() || queue.pfn == pfn {
                (self.last, self.last_sel) = (Some(index), index as u32);
            }
        }
        if self.last.is_none() {
            return;
        }
        (self.state, self.was_set_up) = (State::Off, true);
        if driver_ok {
            // What was completed may have been published and not signalled when the predecessor died. A needless
            // interrupt does no harm.
            (self.interrupt, self.news) = (USED_RING, true);
            m.publish32(port.window.at(reg::INTERRUPT_STATUS), self.interrupt);
        }
    }

    /// Tells the guest that the configuration has changed. `false`: nobody listens.
    pub fn announce_configuration<M: Mem>(&mut self, m: &M, window: Window) -> bool {
        if self.runs() {
            self.interrupt |= CONFIGURATION;
            m.publish32(window.at(reg::INTERRUPT_STATUS), self.interrupt);
        }
        self.runs()
    }

    /// Makes the device as new: the guest has rebooted or gone.
    pub fn clear<M: Mem>(&mut self, m: &M, port: &mut Port<'_, M>) {
        port.stop();
        let (stale_pfn, stale) = match self.last() {
            Some(last) => (last.pfn, self.queues),
            None => (self.stale_pfn, self.stale),
        };
        let PlainDevice { refusal, refused, was_set_up, signs, .. } = *self;
        let fresh = PlainDevice { refusal, refused, was_set_up, signs, ..PlainDevice::default() };
        *self = PlainDevice { stale_pfn, stale, ..fresh };
        // An InterruptACK that is left over is taken at the next look, and acknowledges nothing.
        m.write32(port.window.at(reg::INTERRUPT_STATUS), 0);
    }

    /// Stops the device until it is set up again: another one of the same guest has shown a reboot.
    pub fn hold<M: Mem>(&mut self, m: &M, port: &mut Port<'_, M>) {
        let status = self.status;
        self.clear(m, port);
        (self.status, self.state) = (status, State::Held);
    }

    /// The queue that was set up last.
    fn last(&self) -> Option<QueueRecord> {
        self.last.and_then(|last| self.queues.queues.get(last)).copied()
    }

    /// Copies the registers and says what they come to. A device that was reset, or is set up again, is as new
    /// afterwards.
    pub fn examine<M: Mem>(&mut self, m: &M, port: &mut Port<'_, M>, now: Micros) -> Found {
        let seen = Seen::copy(m, port.window);
        let mut rebooted = None;
        if seen.status < self.status {
            rebooted = self.set_up_at();
            self.clear(m, port);
        }
        (self.status, self.now) = (seen.status, now);
        let Request { sel, num, pfn } = seen.request;
        let notify = m.read32(port.window.at(reg::QUEUE_NOTIFY));
        self.signs = [seen.status, sel, num, pfn, seen.ack, notify]
            .iter()
            .fold(0, |signs: u32, word| signs.rotate_left(5).wrapping_mul(0x9e37_79b1) ^ word);
        let driver_ok = seen.status & Status::DRIVER_OK.bits() != 0;
        let waits = num == QUEUE_POISON && pfn == PFN_ACK && sel == self.last_sel && !driver_ok;
        self.waits_for_queue = self.last.is_some() && waits;
        let news = self.news(seen.request, driver_ok, now);
        if let News::Request(request) = news {
            let corrects = num == QUEUE_POISON;
            let again = request.selected().is_none_or(|index| self.is_set_up(index)) && self.last.is_some();
            if corrects {
                self.take_back(port);
            } else if again || matches!(self.state, State::Orphan | State::Broken(_) | State::Held) {
                // A queue that was set up already is set up again: a reboot that was too quick to show in Status.
                rebooted = rebooted.or(self.set_up_at());
                self.clear(m, port);
                (self.status, self.now) = (seen.status, now);
            }
        }
        Found { seen, news, rebooted }
    }

    /// Gives the ring of the last queue back: it was never where the guest meant.
    fn take_back<M: Mem>(&mut self, port: &mut Port<'_, M>) {
        let Some(last) = self.last.take() else { return };
        if let Some(queue) = self.queues.queues.get_mut(last) {
            *queue = QueueRecord::default();
        }
        if let (Some(ring), Some(spare)) = (port.rings.get_mut(last), port.spare.get_mut(last)) {
            *spare = ring.take().or(spare.take());
        }
    }

    /// Where the ring of a queue would lie that the guest asks for.
    pub fn asks_for<M: Mem>(
        &self,
        port: &Port<'_, M>,
        region: ShmRegion,
        found: &Found,
    ) -> Option<QueuePlace> {
        let News::Request(request) = found.news else { return None };
        ring_place(region, request.pfn, request.num, port.queue_max()).ok()
    }

    /// Acts on what was found: queue request, features, acknowledgement, queues, in this order and always all of them.
    /// `record` keeps the record, where one is kept.
    pub fn act<M: Mem>(
        &mut self,
        m: &M,
        port: &mut Port<'_, M>,
        region: ShmRegion,
        found: &Found,
        memory: Memory,
        record: Option<&mut dyn FnMut(&DeviceRecord) -> bool>,
    ) -> Outcome {
        let Found { seen, news, .. } = found;
        let driver_ok = seen.status & Status::DRIVER_OK.bits() != 0;
        let mut outcome = match news {
            News::None => Outcome::default(),
            News::Missed => {
                m.publish32(port.window.at(reg::QUEUE_PFN), PFN_ACK);
                self.waits_for_queue = true;
                Outcome { ring: true, again: false }
            }
            News::Request(request) => self.set_up(m, port, region, *request, memory, record),
        };
        if seen.ack != 0 {
            self.acknowledged(m, port.window, seen.ack, &mut outcome);
        }
        if driver_ok && self.state == State::Off && self.last.is_some() {
            if self.is_set_up(0) {
                self.start(m, port);
            } else {
                // The rest of a set-up whose beginning went to a predecessor.
                self.state = State::Orphan;
            }
        }
        if self.runs() {
            self.serve(m, port, region, &mut outcome);
        }
        outcome
    }

    /// What the queue registers say, as far as it is news.
    fn news(&mut self, request: Request, driver_ok: bool, now: Micros) -> News {
        let Request { sel, num, pfn } = request;
        let last = self.last();
        let stored_back = last.is_some_and(|last| last.pfn == pfn);
        let page = pfn != 0 && pfn != PFN_ACK;
        let asked = num != QUEUE_POISON && num != 0 && page;
        let slow = num == QUEUE_POISON && page && !stored_back && sel == self.last_sel && !driver_ok;
        if let Some(num) = self.guessed.filter(|_| slow) {
            // The page number that a slow guest meant; its QueueNum was taken with an old one.
            self.doubtful = None;
            return News::Request(Request { num, ..request });
        }
        let verdict = if asked {
            News::Request(request)
        } else if num == QUEUE_POISON && stored_back && sel == self.last_sel && !driver_ok {
            News::Missed
        } else {
            News::None
        };
        if asked && stored_back && sel != self.last_sel {
            // The page number of the last queue, stored back; that of this one is still to come.
            return News::None;
        }
        // A request that was refused may have become good since, as when another device gave its rings back; or it is
        // what a guest left that has rebooted.
        let stale = pfn == self.stale_pfn || stored_back;
        let is_new = !stale && self.refusal.is_none_or(|refusal| refusal.request != request);
        if verdict == News::None || (asked && is_new) {
            self.doubtful = None;
            if asked {
                self.guessed = None;
            }
            return verdict;
        }
        // An old page number that was another queue's is hardly meant.
        let old = request.selected().and_then(|index| self.stale.queues.get(index));
        let other = asked && old.is_some_and(|old| old.size != 0 && old.pfn != pfn);
        let steady = if other { STEADY_OTHER } else { STEADY };
        match self.doubtful {
            Some((same, since)) if same == request => {
                if now.saturating_sub(since) < steady {
                    return News::None;
                }
                self.doubtful = None;
                self.guessed = (asked && stale).then_some(num);
                verdict
            }
            _ => {
                self.doubtful = Some((request, now));
                News::None
            }
        }
    }

    /// Where the ring of a request lies, or why it lies nowhere.
    fn place<M: Mem>(
        &self,
        m: &M,
        port: &Port<'_, M>,
        region: ShmRegion,
        request: Request,
        index: usize,
    ) -> Result<QueuePlace, Refused> {
        let queues = port.place.queues().count();
        if index >= queues {
            return Err(Refused::NoSuchQueue(queues));
        }
        for register in [reg::GUEST_PAGE_SIZE, reg::QUEUE_ALIGN] {
            let page = m.read32(port.window.at(register));
            if page != PLAIN_PAGE {
                return Err(Refused::Alignment(page));
            }
        }
        let place = ring_place(region, request.pfn, request.num, port.queue_max())?;
        for (other, ring) in port.rings.iter().enumerate() {
            let parts = ring.as_ref().map(|ring| ring.place().extents());
            if parts.is_some_and(|parts| {
                parts.iter().any(|part| place.extents().iter().any(|own| own.overlaps(*part)))
            }) {
                return Err(Refused::Overlap(other));
            }
        }
        Ok(place)
    }

    /// Takes a queue over and acknowledges it, or refuses it.
    fn set_up<M: Mem>(
        &mut self,
        m: &M,
        port: &mut Port<'_, M>,
        region: ShmRegion,
        request: Request,
        memory: Memory,
        record: Option<&mut dyn FnMut(&DeviceRecord) -> bool>,
    ) -> Outcome {
        // QueueSel names the queue; drivers that never store it set their queues up in order.
        let next = self.queues.queues.iter().position(|queue| queue.size == 0).unwrap_or(MAX_QUEUES);
        let index = request.selected().unwrap_or(next);
        let place = match self.place(m, port, region, request, index) {
            Ok(place) => place,
            Err(why) => {
                let refusal = Refusal { request, why };
                if self.refusal.replace(refusal) != Some(refusal) {
                    self.refused = self.refused.wrapping_add(1);
                }
                return Outcome::default();
            }
        };
        let Some(mut ring) = port.spare.get_mut(index).and_then(Option::take) else {
            return Outcome::default();
        };
        ring.replace(place);
        // OpenAMP's front-end never zeroes its rings and counts on in them, so its index is taken as it stands. Not where
        // this side has zeroed the memory: what stands there are buffers that were posted before the page number.
        let alleged = ring.alleged_position(m);
        let posted = memory == Memory::Zeroed && !self.was_set_up && alleged <= place.size;
        let start = if posted { 0 } else { alleged };
        let mut queues = self.queues;
        if let Some(queue) = queues.queues.get_mut(index) {
            *queue = QueueRecord { pfn: request.pfn, size: place.size, start };
        }
        let keeps = record.is_some();
        if record.is_some_and(|record| !record(&queues)) {
            // The ring stays spare, and the request stands until the record can be kept.
            if let Some(spare) = port.spare.get_mut(index) {
                *spare = Some(ring);
            }
            return Outcome::default();
        }
        ring.start(m, Features::empty(), start);
        ring.doubt_position();
        if keeps {
            ring.keep_order();
        }
        if let Some(slot) = port.rings.get_mut(index) {
            *slot = Some(ring);
        }
        (self.queues, self.last, self.last_sel, self.set_up_at) =
            (queues, Some(index), request.sel, self.now);
        (self.refusal, self.waits_for_queue) = (None, true);
        m.publish32(port.window.at(reg::QUEUE_NUM), QUEUE_POISON);
        m.publish32(port.window.at(reg::QUEUE_PFN), PFN_ACK);
        Outcome { ring: true, again: true }
    }

    fn acknowledged<M: Mem>(&mut self, m: &M, window: Window, bits: u32, outcome: &mut Outcome) {
        self.interrupt &= !bits;
        self.acknowledges = true;
        if core::mem::take(&mut self.news) {
            self.interrupt |= USED_RING;
            outcome.ring = true;
        }
        m.write32(window.at(reg::INTERRUPT_STATUS), self.interrupt);
        m.publish32(window.at(reg::INTERRUPT_ACK), 0);
    }

    fn start<M: Mem>(&mut self, m: &M, port: &mut Port<'_, M>) {
        let accepted = u64::from(m.read32(port.window.at(reg::DRIVER_FEATURES)));
        if accepted & !plain_features(port) != 0 {
            port.features_refused = port.features_refused.wrapping_add(1);
            self.state = State::Broken(Fault::FeaturesRefused);
            return;
        }
        port.features = Features::from_bits_retain(accepted);
        port.device.activate(port.features);
        self.state = State::Running;
    }

    fn serve<M: Mem>(&mut self, m: &M, port: &mut Port<'_, M>, region: ShmRegion, outcome: &mut Outcome) {
        let mut gaps = [Extent::default(); GAPS];
        let allowed = between_rings(region.len, port, &mut gaps);
        match port.process(m, Windows { base: region.base, allowed }) {
            Ok((more, call)) => {
                outcome.again |= more;
                if call {
                    self.news = true;
                    self.interrupt |= USED_RING;
                    m.publish32(port.window.at(reg::INTERRUPT_STATUS), self.interrupt);
                    outcome.ring = true;
                }
            }
            Err(_) => {
                let status = self.status;
                self.clear(m, port);
                (self.status, self.state) = (status, State::Broken(Fault::NeedsReset));
            }
        }
    }
}

/// Features that the plain profile offers: the device's own, and none of the rings'.
pub(crate) fn plain_features<M: Mem>(port: &Port<'_, M>) -> u64 {
    port.device.features() & 0x00ff_ffff
}

/// The place of a legacy ring that a guest asks for, if it is one: 2.7.2 with pages of 4096 bytes.
fn ring_place(region: ShmRegion, pfn: u32, size: u32, max: u16) -> Result<QueuePlace, Refused> {
    let fits = |size: &u16| size.is_power_of_two() && (2..=max).contains(size);
    let size = u16::try_from(size).ok().filter(fits).ok_or(Refused::Size(max))?;
    let at = u64::from(pfn).checked_mul(u64::from(PLAIN_PAGE)).and_then(|at| region.offset(at, 1));
    let within = Extent { at: HEADER_SIZE, len: region.len.saturating_sub(HEADER_SIZE) };
    let place = at.and_then(|at| QueuePlace::legacy(at, size, PLAIN_PAGE));
    place.filter(|place| place.is_sound(within)).ok_or(Refused::Outside)
}

/// The stretches of the region in which a plain guest's buffers may lie: behind the windows, and not on the rings of
/// the device itself.
fn between_rings<'g, M: Mem>(len: u32, port: &Port<'_, M>, gaps: &'g mut [Extent; GAPS]) -> &'g [Extent] {
    let mut parts = [Extent::default(); GAPS];
    let mut used = 0usize;
    for (part, slot) in port.rings.iter().flatten().flat_map(|ring| ring.place().extents()).zip(&mut parts) {
        *slot = part;
        used = used.saturating_add(1);
    }
    let parts = parts.get_mut(..used).unwrap_or(&mut []);
    parts.sort_unstable_by_key(|part| part.at);
    let (mut at, mut count) = (HEADER_SIZE, 0usize);
    let end = Extent { at: len, len: 0 };
    for (part, gap) in parts.iter().chain([&end]).zip(gaps.iter_mut()) {
        *gap = Extent { at, len: part.at.saturating_sub(at) };
        at = part.end();
        count = count.saturating_add(1);
    }
    gaps.get(..count).unwrap_or(&[])
}
