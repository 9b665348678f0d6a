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
//! queue's ring, or overwrite a page number just stored.
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
    /// The queues, in their order; a size of 0 ends the list.
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

/// What the queue registers come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// Nothing, or nothing yet.
    None,
    /// The guest sets up a queue.
    Request,
    /// The guest waits for an acknowledgement that was given.
    Missed,
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
    /// Its driver has broken the rules. The registers have no word for it that is ours to store, so the device is
    /// silent until the driver resets it, or sets its queues up again.
    Broken(Fault),
}

/// One plain device's registers, as this side knows them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PlainDevice {
    status: u32,
    queues: DeviceRecord,
    count: usize,
    last_sel: u32,
    state: State,
    interrupt: u32,
    /// Something was completed since the last acknowledgement.
    news: bool,
    /// The page number that QueuePFN may still hold from before: no news by itself.
    stale_pfn: u32,
    /// Registers that could mean two things, and since when they have not changed.
    doubtful: Option<(Request, Micros)>,
    /// The last request that was refused: it is counted once, and looked at again while it stands.
    refusal: Option<Request>,
    /// Requests that named no place for a ring.
    pub refused: u64,
}

/// What a guest asks for when it sets up a queue: QueueSel, QueueNum, QueuePFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    sel: u32,
    num: u32,
    pfn: u32,
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

impl PlainDevice {
    /// Whether a predecessor's guest is at work that this PMM cannot serve before it reboots.
    pub const fn is_orphan(&self) -> bool {
        matches!(self.state, State::Orphan)
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
    /// Whether the guest has not acknowledged an interrupt yet. One that tells of the configuration does not count: many
    /// a driver never asks for it.
    pub const fn is_unacknowledged(&self) -> bool {
        self.interrupt & USED_RING != 0
    }
    /// Queues that the guest has set up.
    pub const fn queues(&self) -> &DeviceRecord {
        &self.queues
    }

    /// When the PMM starts: a guest that has a Status already is an orphan, unless its record is at hand.
    pub fn found<M: Mem>(
        m: &M,
        port: &mut Port<'_, M>,
        region: ShmRegion,
        record: Option<&DeviceRecord>,
    ) -> PlainDevice {
        let status = m.observe32(port.window.at(reg::STATUS));
        let stale_pfn = m.read32(port.window.at(reg::QUEUE_PFN));
        let state = if status == 0 { State::Off } else { State::Orphan };
        let mut device = PlainDevice { status, state, stale_pfn, ..PlainDevice::default() };
        if let Some(record) = record.filter(|_| status & Status::DRIVER_OK.bits() != 0) {
            device.resume(m, port, region, record);
        }
        device
    }

    fn resume<M: Mem>(&mut self, m: &M, port: &mut Port<'_, M>, region: ShmRegion, record: &DeviceRecord) {
        let queues = record.queues.iter().take_while(|queue| queue.size != 0);
        for (index, queue) in queues.enumerate() {
            let Some(place) = ring_place(region, queue.pfn, u32::from(queue.size), port.queue_max()) else {
                return;
            };
            let Some(mut ring) = port.spare.get_mut(index).and_then(Option::take) else { return };
            ring.replace(place);
            // Completions of this profile are in order, so the used index, which the predecessor stored, says how
            // far the available ring was served.
            let used = m.observe16(place.used.wrapping_add(2));
            ring.resume(Features::empty(), queue.start.wrapping_add(used), used);
            if let Some(slot) = port.rings.get_mut(index) {
                *slot = Some(ring);
            }
            self.count = index.saturating_add(1);
        }
        self.queues = *record;
        if self.count != 0 {
            self.state = State::Off;
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
        let stale_pfn = self.last().map_or(self.stale_pfn, |last| last.pfn);
        let PlainDevice { refusal, refused, .. } = *self;
        *self = PlainDevice { stale_pfn, refusal, refused, ..PlainDevice::default() };
        // An InterruptACK that is left over is taken at the next look, and acknowledges nothing.
        m.write32(port.window.at(reg::INTERRUPT_STATUS), 0);
    }

    /// The queue that was set up last.
    fn last(&self) -> Option<QueueRecord> {
        self.count.checked_sub(1).and_then(|last| self.queues.queues.get(last)).copied()
    }

    /// One look: reset, queue request, features, acknowledgement, queues, in this order and always all of them.
    pub fn look<M: Mem>(
        &mut self,
        m: &M,
        port: &mut Port<'_, M>,
        region: ShmRegion,
        taken: &[Extent],
        now: Micros,
        record: &mut dyn FnMut(&DeviceRecord) -> bool,
    ) -> Outcome {
        let seen = Seen::copy(m, port.window);
        if seen.status < self.status {
            self.clear(m, port);
        }
        self.status = seen.status;
        let driver_ok = seen.status & Status::DRIVER_OK.bits() != 0;
        let mut outcome = match self.news(seen.request, driver_ok, now) {
            News::None => Outcome::default(),
            News::Missed => {
                m.publish32(port.window.at(reg::QUEUE_PFN), PFN_ACK);
                Outcome { ring: true, again: false }
            }
            News::Request => self.set_up(m, port, region, taken, &seen, record),
        };
        if seen.ack != 0 {
            self.acknowledged(m, port.window, seen.ack, &mut outcome);
        }
        if driver_ok && self.state == State::Off && self.count != 0 {
            self.start(m, port);
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
        let asked = num != QUEUE_POISON && num != 0 && pfn != 0 && pfn != PFN_ACK;
        let verdict = if asked {
            News::Request
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
        let is_new = pfn != self.stale_pfn && self.refusal != Some(request);
        if verdict == News::None || (asked && !stored_back && is_new) {
            self.doubtful = None;
            return verdict;
        }
        match self.doubtful {
            Some((same, since)) if same == request => {
                if now.saturating_sub(since) < STEADY {
                    return News::None;
                }
                self.doubtful = None;
                verdict
            }
            _ => {
                self.doubtful = Some((request, now));
                News::None
            }
        }
    }

    /// Takes a queue over and acknowledges it, or refuses it.
    fn set_up<M: Mem>(
        &mut self,
        m: &M,
        port: &mut Port<'_, M>,
        region: ShmRegion,
        taken: &[Extent],
        seen: &Seen,
        record: &mut dyn FnMut(&DeviceRecord) -> bool,
    ) -> Outcome {
        let Request { sel, num, pfn } = seen.request;
        let selected = usize::try_from(sel).ok().filter(|_| sel != QUEUE_POISON);
        let again = selected.is_some_and(|selected| selected < self.count);
        let stopped = matches!(self.state, State::Orphan | State::Broken(_));
        if again || stopped || self.last().is_some_and(|last| last.pfn == pfn) {
            // A queue that was set up already is set up again: a reboot that was too quick to show in Status.
            self.clear(m, port);
            self.status = seen.status;
        }
        let index = self.count;
        let place = ring_place(region, pfn, num, port.queue_max())
            .filter(|_| selected.is_none_or(|selected| selected == index))
            .filter(|place| {
                !place.extents().iter().any(|part| taken.iter().any(|other| part.overlaps(*other)))
            });
        let ring = place.and_then(|place| Some((place, port.spare.get_mut(index)?.take()?)));
        let Some((place, mut ring)) = ring else {
            if self.refusal.replace(seen.request) != Some(seen.request) {
                self.refused = self.refused.wrapping_add(1);
            }
            return Outcome::default();
        };
        ring.replace(place);
        // The front-end never zeroes its rings and counts on in them, so its index is taken as it stands.
        let start = ring.alleged_position(m);
        let mut queues = self.queues;
        if let Some(queue) = queues.queues.get_mut(index) {
            *queue = QueueRecord { pfn, size: place.size, start };
        }
        if !record(&queues) {
            // The ring stays spare, and the request stands until the record can be kept.
            if let Some(spare) = port.spare.get_mut(index) {
                *spare = Some(ring);
            }
            return Outcome::default();
        }
        ring.start(m, Features::empty(), start);
        if let Some(slot) = port.rings.get_mut(index) {
            *slot = Some(ring);
        }
        (self.queues, self.count, self.last_sel) = (queues, index.saturating_add(1), sel);
        self.refusal = None;
        m.publish32(port.window.at(reg::QUEUE_NUM), QUEUE_POISON);
        m.publish32(port.window.at(reg::QUEUE_PFN), PFN_ACK);
        Outcome { ring: true, again: true }
    }

    fn acknowledged<M: Mem>(&mut self, m: &M, window: Window, bits: u32, outcome: &mut Outcome) {
        self.interrupt &= !bits;
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
fn ring_place(region: ShmRegion, pfn: u32, size: u32, max: u16) -> Option<QueuePlace> {
    let size = u16::try_from(size).ok().filter(|&size| size <= max)?;
    let at = region.offset(u64::from(pfn).checked_mul(u64::from(PLAIN_PAGE))?, 1)?;
    let within = Extent { at: HEADER_SIZE, len: region.len.saturating_sub(HEADER_SIZE) };
    QueuePlace::legacy(at, size, PLAIN_PAGE).filter(|place| place.is_sound(within))
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
