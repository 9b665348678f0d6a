//! One guest: publish, adopt, serve, end.
//!
//! A [`Link`] owns the state machine of one region: its epochs, its devices' ports, and whichever session is under
//! way. It does no I/O, reads no clock and rings no hardware: the caller passes the time in, calls
//! [`Link::service`] whenever a doorbell, a host end or a deadline says so, and rings when the answer says so. So the
//! same code serves under epoll on Linux, in the simulator, and in an RTOS that plays the PMM.
//!
//! What the guest says is looked at in this order, always all of it: which profile it speaks and which start of it
//! this is ([`PmmHalf::look`]); what each device's driver wants; the queues. What happens when the guest lies is the
//! business of the transports; when it dies, its doorbell's peer hangs up ([`Link::hang_up`]) or its successor says
//! hello (or a Status falls), and that ends the session, after every device is drained. A guest that is only silent is
//! kept, however long: it may compute, or stand at a breakpoint. Silence is counted, and ends a session only where the
//! user said after how long ([`LinkPlan::gone_after`]).
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use hvl_shared_abi::epoch::{self, GuestLook, PmmDevice, PmmHalf, StaticWords};
use hvl_shared_abi::header::{Fault, MAX_DEVICES, reg};
use hvl_shared_abi::layout::{DevicePlace, Layout};
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::{Mem, ShmRegion, Window, block};

use crate::device::Device;
use crate::snapshot::{DeviceSnapshot, LinkCounters, LinkSnapshot, Profile};
use crate::transport::extended::{self, Outcome};
use crate::transport::plain::{
    DeviceRecord, Found, Memory, PlainDevice, PlainRecord, Recorder, plain_features,
};
use crate::transport::{Port, fault_name};

/// Microseconds, of a clock that never goes back.
pub type Micros = u64;

/// Between two adoptions, or wiped regions, at least: a guest that reboots in a loop does not take the processor.
const START_INTERVAL: Micros = 10_000;
/// Between two looks where a doorbell may be lost, or where the profile cannot tell.
const LOOK_LOSSY: Micros = 20_000;
/// Between two looks where it cannot.
const LOOK_SAFE: Micros = 1_000_000;
/// From a bell to its first repetition; doubles up to [`RERING_MAX`].
const RERING_MIN: Micros = 10_000;
/// Between two repetitions at most.
const RERING_MAX: Micros = 1_000_000;
/// A guest that has not acted on a bell for this long, and stored nothing, is called silent. It is no reason to do
/// anything.
const SILENT_AFTER: Micros = 10_000_000;
/// Looks at everything in one call of [`Link::service`].
const ROUNDS: usize = 8;

/// What the caller of [`Link::service`] does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Ring the doorbell's hardware.
    pub ring: bool,
    /// Call again at once: there is more to do.
    pub again: bool,
    /// Otherwise call again at this time at the latest.
    pub deadline: Micros,
}

/// Which session is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Session {
    None,
    Extended(u32),
    Plain,
}

/// A device of the link with its state in either profile.
struct Seat<'s, M> {
    port: Port<'s, M>,
    state: PmmDevice,
    plain: PlainDevice,
}

/// How often an unseen bell is repeated.
#[derive(Clone, Copy, Debug)]
struct Rering {
    first: Micros,
    next: Micros,
    wait: Micros,
    /// The words by which the guest shows that it lives.
    signs: [u32; 2],
}

/// What the link is made for.
#[derive(Clone, Copy, Debug)]
pub struct LinkPlan {
    /// Where everything lies.
    pub layout: Layout,
    /// The guest's address of the region.
    pub base: u64,
    /// Whether the doorbell, in either direction, may lose one.
    pub doorbell_can_lose: bool,
    /// After how long a silent guest of the extended profile is presumed gone; `None`: never.
    pub gone_after: Option<Micros>,
}

/// Why there is no link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkError {
    /// The devices given are not those of the layout.
    Devices,
    /// There are too few queue records; [`Link::slots_for`] says how many it takes.
    Slots,
    /// The region is shorter than the layout.
    Region,
}

impl core::fmt::Display for LinkError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            LinkError::Devices => "the devices given are not those of the layout",
            LinkError::Slots => "there are fewer queue records than the layout's queues have entries",
            LinkError::Region => "the region is shorter than its layout",
        })
    }
}

impl core::error::Error for LinkError {}

/// One region and whoever is at its other end.
pub struct Link<'s, M> {
    mem: M,
    plan: LinkPlan,
    seats: [Option<Seat<'s, M>>; MAX_DEVICES],
    count: usize,
    half: PmmHalf,
    session: Session,
    started_at: Option<Micros>,
    /// The region held no header when this was published, so it was zeroed; and no guest has worked in it and gone.
    untouched: bool,
    /// Plain devices have stopped, and the record of a predecessor's rings does not say so yet.
    unrecorded: bool,
    /// The last look found a start that comes too soon after the one before it.
    too_early: bool,
    rering: Option<Rering>,
    silent_since: Option<Micros>,
    recorder: Option<&'s mut dyn Recorder>,
    counters: LinkCounters,
    last_words: ([u8; block::PANIC_TEXT_BYTES as usize], usize),
}

/// Writes the static words and the configuration of every window, and ends their array.
fn write_windows<M: Mem>(m: &M, plan: &LinkPlan, seats: &mut [Option<Seat<'_, M>>]) {
    let region = ShmRegion { base: plan.base, len: m.len() };
    for port in seats.iter_mut().flatten().map(|seat| &mut seat.port) {
        let words = StaticWords {
            id: port.device.id(),
            plain_features: plain_features(port) as u32,
            queue_max: port.queue_max().into(),
            data: port.place.pool,
            data_base: region.address(port.place.pool.at),
            block: port.place.block.at,
        };
        epoch::write_static(m, port.window, &words);
        port.write_config(m);
    }
    if let Some(end) = Window::of(plan.layout.devices().len()) {
        m.write32(end.at(reg::DEVICE_ID), 0);
    }
}

/// What the plain guest has set up.
fn record_of<M: Mem>(seats: &[Option<Seat<'_, M>>]) -> PlainRecord {
    let mut record = PlainRecord::default();
    for (seat, kept) in seats.iter().flatten().zip(&mut record.devices) {
        *kept = *seat.plain.queues();
    }
    record
}

/// A device and the records of its queues ([`Link::slots_for`] entries).
pub type Member<'s, M> = (&'s mut (dyn Device<M> + Send), &'s mut [DeviceSlot]);

impl<'s, M: Mem> Link<'s, M> {
    /// Queue records that a device of this place needs.
    pub fn slots_for(place: &DevicePlace) -> usize {
        Port::<M>::slots_for(place)
    }

    /// Makes a link and *publishes* it: the region is closed for whoever is attached, the static words are written,
    /// and it is opened again under a new epoch. Ring the doorbell afterwards.
    ///
    /// `record` is what a predecessor kept of a plain guest, and `recorder` keeps it for a successor.
    pub fn publish(
        mem: M,
        plan: LinkPlan,
        members: impl IntoIterator<Item = Member<'s, M>>,
        recorder: Option<&'s mut dyn Recorder>,
        record: Option<&PlainRecord>,
    ) -> Result<Link<'s, M>, LinkError> {
        if plan.layout.end() > mem.len() {
            return Err(LinkError::Region);
        }
        let mut seats = [const { None }; MAX_DEVICES];
        let mut members = members.into_iter();
        let places = plan.layout.devices();
        for (index, (place, seat)) in places.iter().zip(&mut seats).enumerate() {
            let Some(((device, slots), window)) = members.next().zip(Window::of(index)) else {
                return Err(LinkError::Devices);
            };
            if device.id() != place.spec.id {
                return Err(LinkError::Devices);
            }
            let port = Port::new(device, window, *place, slots).ok_or(LinkError::Slots)?;
            *seat = Some(Seat { port, state: PmmDevice::new(window), plain: PlainDevice::default() });
        }
        if members.next().is_some() {
            return Err(LinkError::Devices);
        }
        let count = places.len();
        let untouched = mem.read32(Window::LINK.at(reg::MAGIC)) == 0;
        let mut half = PmmHalf::close(&mem, count);
        write_windows(&mem, &plan, &mut seats);
        for (index, seat) in seats.iter_mut().flatten().enumerate() {
            let region = ShmRegion { base: plan.base, len: mem.len() };
            let kept = record.and_then(|record| record.devices.get(index));
            seat.plain = PlainDevice::found(&mem, &mut seat.port, region, kept);
        }
        half.open(&mem);
        half.ring(&mem);
        let counters = LinkCounters { rings: 1, ..LinkCounters::default() };
        Ok(Link {
            mem,
            plan,
            seats,
            count,
            half,
            session: Session::None,
            started_at: None,
            too_early: false,
            untouched,
            unrecorded: false,
            rering: None,
            silent_since: None,
            recorder,
            counters,
            last_words: ([0; block::PANIC_TEXT_BYTES as usize], 0),
        })
    }

    /// Looks at everything once, or a bounded number of times while there is work.
    pub fn service(&mut self, now: Micros) -> Service {
        self.counters.services = self.counters.services.wrapping_add(1);
        let mut outcome = Outcome { ring: self.renew_configurations(), again: false };
        for _ in 0..ROUNDS {
            let bell = self.half.guest_bell(&self.mem);
            let round = self.round(now);
            outcome.ring |= round.ring;
            outcome.again = round.again;
            if self.too_early {
                // What was seen is for later, and until then nothing has been acted on.
                break;
            }
            if !round.again {
                self.half.acted(&self.mem, bell);
                outcome.again = self.arm() || self.half.rang(&self.mem);
            }
            if !outcome.again {
                break;
            }
        }
        outcome.ring |= self.repeat(now, outcome.ring);
        if outcome.ring {
            self.half.ring(&self.mem);
            self.counters.rings = self.counters.rings.wrapping_add(1);
        }
        Service { ring: outcome.ring, again: outcome.again, deadline: self.deadline(now) }
    }

    /// Ends the session of a guest whose doorbell's peer has hung up: it is gone, and whoever talks to its devices
    /// learns it now. What it had made available before is still served. Returns whether to ring the
    /// doorbell.
    ///
    /// It may not be gone, as when only something between the two sides was restarted. Then it finds another PmmEpoch,
    /// takes what was completed, and says hello. A guest of the plain profile cannot be told, so it goes on. A successor
    /// that has said hello already goes on, too.
    pub fn hang_up(&mut self, now: Micros) -> bool {
        let before = self.session;
        let mut ring = false;
        for _ in 0..ROUNDS {
            let service = self.service(now);
            ring |= service.ring;
            if !service.again {
                break;
            }
        }
        if matches!(before, Session::Extended(_)) && self.session == before {
            self.counters.hung_up = self.counters.hung_up.wrapping_add(1);
            self.end_extended();
            self.half.ring(&self.mem);
            self.counters.rings = self.counters.rings.wrapping_add(1);
            ring = true;
        }
        ring
    }

    /// Writes each configuration that has changed, and tells the guest. Returns whether it is to be rung for.
    fn renew_configurations(&mut self) -> bool {
        let mut ring = false;
        for seat in self.seats.iter_mut().flatten() {
            if !seat.port.device.config_changed() {
                continue;
            }
            seat.port.write_config(&self.mem);
            ring |= match self.session {
                Session::None => false,
                // There the generation in the window says it.
                Session::Extended(_) => seat.state.runs(),
                Session::Plain => seat.plain.announce_configuration(&self.mem, seat.port.window),
            };
        }
        ring
    }

    fn round(&mut self, now: Micros) -> Outcome {
        let look = self.half.look(&self.mem, self.count);
        let start = matches!(look, GuestLook::Wiped | GuestLook::Hello(_));
        self.too_early = start && self.started_at.is_some_and(|at| now.saturating_sub(at) < START_INTERVAL);
        if self.too_early {
            return Outcome::default();
        }
        match look {
            GuestLook::Wiped => self.publish_again(now),
            GuestLook::Plain => {
                if self.session != Session::Plain {
                    self.end_extended();
                    self.session = Session::Plain;
                    self.counters.plain_sessions = self.counters.plain_sessions.wrapping_add(1);
                }
                self.look_plain(now)
            }
            GuestLook::Hello(epoch) => self.adopt(now, epoch),
            GuestLook::Same => match self.session {
                Session::Extended(epoch) => self.look_extended(epoch),
                Session::Plain => {
                    self.end_plain();
                    Outcome::default()
                }
                Session::None => Outcome::default(),
            },
        }
    }

    /// *Publish* in a region that was wiped under this PMM: whatever session there was is over.
    fn publish_again(&mut self, now: Micros) -> Outcome {
        self.end_plain();
        let half = self.half.close_again(&self.mem, self.count);
        for seat in self.seats.iter_mut().flatten() {
            extended::clear(&self.mem, &mut seat.port, &mut seat.state);
        }
        write_windows(&self.mem, &self.plan, &mut self.seats);
        self.half = half;
        self.half.open(&self.mem);
        self.session = Session::None;
        self.started_at = Some(now);
        self.counters.wipes = self.counters.wipes.wrapping_add(1);
        Outcome { ring: true, again: false }
    }

    /// *Adopt*: everything of the old session is stopped and drained before the guest is told.
    fn adopt(&mut self, now: Micros, epoch: u32) -> Outcome {
        self.end_plain();
        self.take_last_words();
        let (m, plan) = (&self.mem, &self.plan);
        // Somebody who wiped the region may have gone on behind the static words after this side had published again.
        write_windows(m, plan, &mut self.seats);
        for (index, seat) in self.seats.iter_mut().flatten().enumerate() {
            extended::adopt(m, &mut seat.port, &mut seat.state, &plan.layout, index, plan.base);
        }
        self.half.adopt(m, epoch);
        self.untouched = false;
        self.session = Session::Extended(epoch);
        self.started_at = Some(now);
        self.counters.adoptions = self.counters.adoptions.wrapping_add(1);
        (self.rering, self.silent_since) = (None, None);
        Outcome { ring: true, again: true }
    }

    /// Keeps what the guest's last incarnation left to be read, and clears it.
    fn take_last_words(&mut self) {
        let place = self.plan.layout.panic_text();
        let len = block::read_panic_text(&self.mem, place, &mut self.last_words.0);
        if len != 0 {
            self.last_words.1 = len;
        }
        self.mem.write32(place.at, 0);
    }

    fn look_extended(&mut self, epoch: u32) -> Outcome {
        let mut outcome = Outcome::default();
        for seat in self.seats.iter_mut().flatten() {
            let one = extended::look(&self.mem, &mut seat.port, &mut seat.state, epoch, self.plan.base);
            outcome.ring |= one.ring;
            outcome.again |= one.again;
        }
        outcome
    }

    fn look_plain(&mut self, now: Micros) -> Outcome {
        let region = ShmRegion { base: self.plan.base, len: self.mem.len() };
        let mut found = [const { None }; MAX_DEVICES];
        for (seat, found) in self.seats.iter_mut().flatten().zip(&mut found) {
            *found = Some(seat.plain.examine(&self.mem, &mut seat.port, now));
        }
        // No device is served before it is certain that none belongs to a guest that is no more.
        let mut stopped = false;
        for (index, found) in found.iter().enumerate() {
            let Some(found) = found else { continue };
            if let Some(since) = found.rebooted {
                stopped |= self.hold_others(index, since, now);
                self.untouched = false;
            }
            if let Some(since) = self.evicts(index, region, found) {
                stopped |= self.hold_others(index, since, now);
                self.untouched = false;
            }
        }
        self.unrecorded |= stopped;
        if self.unrecorded
            && let Some(recorder) = &mut self.recorder
        {
            // A successor must not take them up. What cannot be kept now is tried again at the next look.
            self.unrecorded = !recorder.record(&record_of(&self.seats));
        }
        let memory = if self.untouched { Memory::Zeroed } else { Memory::Used };
        let mut outcome = Outcome::default();
        for (index, found) in found.iter().enumerate() {
            let Some(found) = found else { continue };
            let mut record = record_of(&self.seats);
            let Some(Some(seat)) = self.seats.get_mut(index) else { continue };
            let (m, port) = (&self.mem, &mut seat.port);
            let one = match &mut self.recorder {
                None => seat.plain.act(m, port, region, found, memory, None),
                Some(recorder) => {
                    let mut keep = |queues: &DeviceRecord| {
                        if let Some(kept) = record.devices.get_mut(index) {
                            *kept = *queues;
                        }
                        recorder.record(&record)
                    };
                    seat.plain.act(m, port, region, found, memory, Some(&mut keep))
                }
            };
            outcome.ring |= one.ring;
            outcome.again |= one.again;
        }
        outcome
    }

    /// Returns whether a device asks for a ring where those of another one lie; then when that one was set
    /// up. If there are several, the latest of them.
    fn evicts(&self, index: usize, region: ShmRegion, found: &Found) -> Option<Micros> {
        let Some(Some(seat)) = self.seats.get(index) else { return None };
        let place = seat.plain.asks_for(&seat.port, region, found)?;
        let overlaps = |other: &Seat<'_, M>| {
            let rings = other.port.rings.iter().flatten().flat_map(|ring| ring.place().extents());
            rings.into_iter().any(|part| place.extents().iter().any(|own| own.overlaps(part)))
        };
        let others = self.seats.iter().enumerate().filter(|(other, _)| *other != index);
        let others = others.filter_map(|(_, seat)| seat.as_ref()).filter(|seat| overlaps(seat));
        others.filter_map(|seat| seat.plain.set_up_at()).max()
    }

    /// Holds every device but one that belongs to the boot in which some device was set up at `since`, and that is over
    /// `now`. Whether there was one.
    fn hold_others(&mut self, index: usize, since: Micros, now: Micros) -> bool {
        let mut any = false;
        for (_, seat) in self.seats.iter_mut().enumerate().filter(|(other, _)| *other != index) {
            let Some(seat) = seat else { continue };
            let Some(at) = seat.plain.set_up_at() else { continue };
            if at.saturating_sub(since) <= now.saturating_sub(at) || at <= since {
                seat.plain.hold(&self.mem, &mut seat.port);
                any = true;
            }
        }
        any
    }

    /// Ends an extended session: the devices are drained, then the guest is told. The rings stay as they are until
    /// the next adoption: a guest that lives takes what was completed from them before it says hello.
    fn end_extended(&mut self) {
        if let Session::Extended(_) = self.session {
            for seat in self.seats.iter_mut().flatten() {
                seat.port.stop();
                seat.state = PmmDevice::new(seat.port.window);
            }
            self.half.end_session(&self.mem, self.count);
            self.session = Session::None;
            (self.rering, self.silent_since) = (None, None);
        }
    }

    fn end_plain(&mut self) {
        if self.session == Session::Plain {
            for seat in self.seats.iter_mut().flatten() {
                seat.plain.clear(&self.mem, &mut seat.port);
            }
            self.session = Session::None;
        }
    }

    /// Arms every queue and looks once more; in the plain profile there is nothing to arm.
    fn arm(&mut self) -> bool {
        let Session::Extended(_) = self.session else { return false };
        let running = self.seats.iter_mut().flatten().filter(|seat| seat.state.runs());
        running.fold(false, |more, seat| more | seat.port.arm(&self.mem))
    }

    /// Repeats a bell that the guest has not acted on, and notices a guest that is silent.
    fn repeat(&mut self, now: Micros, ringing: bool) -> bool {
        let waits = match self.session {
            // There, an interrupt that was not acknowledged, or a queue's acknowledgement, is all that can be known.
            Session::Plain => self.seats.iter().flatten().any(|seat| seat.plain.is_unacknowledged()),
            // Where a doorbell can be lost, a guest that has never said hello may sleep because the bell that
            // announced this PMM was; nothing else would ever wake it.
            _ => {
                let lossy = self.plan.doorbell_can_lose;
                let known = lossy || self.mem.read32(Window::LINK.at(reg::DRIVER_EPOCH)) != 0;
                known && self.half.unseen(&self.mem)
            }
        };
        // Whatever the guest stores there says that it lives, if not that it has seen everything.
        let signs = match self.session {
            Session::Plain => [
                self.seats.iter().flatten().fold(0, |sum: u32, seat| sum.rotate_left(3) ^ seat.plain.signs()),
                0,
            ],
            _ => [reg::DRIVER_SEEN, reg::DRIVER_BELL]
                .map(|register| self.mem.read32(Window::LINK.at(register))),
        };
        let (next, wait) = (now.saturating_add(RERING_MIN), RERING_MIN);
        let fresh = Rering { first: now, next, wait, signs };
        if !waits {
            // A bell that is rung now starts its own clock.
            self.silent_since = None;
            self.rering = ringing.then_some(fresh);
            return false;
        }
        let rering = match &mut self.rering {
            Some(rering) if rering.signs == signs => rering,
            Some(rering) => {
                (rering.first, rering.signs) = (now, signs);
                self.silent_since = None;
                rering
            }
            None => {
                self.rering = Some(fresh);
                return false;
            }
        };
        if now < rering.next {
            return false;
        }
        let quiet = now.saturating_sub(rering.first);
        let tells = match self.session {
            Session::None => false,
            Session::Extended(_) => true,
            Session::Plain => self.seats.iter().flatten().any(|seat| seat.plain.is_silent()),
        };
        if quiet >= SILENT_AFTER && self.silent_since.is_none() && tells {
            self.silent_since = Some(rering.first);
            self.counters.silences = self.counters.silences.wrapping_add(1);
        }
        let gone = self.plan.gone_after.is_some_and(|after| quiet >= after);
        rering.wait = rering.wait.saturating_mul(2).min(RERING_MAX);
        rering.next = now.saturating_add(rering.wait);
        self.counters.rerings = self.counters.rerings.wrapping_add(1);
        if gone && matches!(self.session, Session::Extended(_)) {
            self.counters.presumed_gone = self.counters.presumed_gone.wrapping_add(1);
            self.end_extended();
        }
        true
    }

    fn deadline(&self, now: Micros) -> Micros {
        let lossy = self.plan.doorbell_can_lose || self.session == Session::Plain;
        let look = now.saturating_add(if lossy { LOOK_LOSSY } else { LOOK_SAFE });
        let rering = self.rering.map_or(look, |rering| rering.next);
        // A start that came too early is taken up when its time has come.
        let start =
            self.started_at.filter(|_| self.too_early).map_or(look, |at| at.saturating_add(START_INTERVAL));
        look.min(rering).min(start).max(now)
    }

    /// *Shutdown*: stops and drains the devices, publishes what is finished, and closes the region. Ring the doorbell
    /// afterwards.
    pub fn shutdown(&mut self) {
        for seat in self.seats.iter_mut().flatten() {
            seat.port.stop();
        }
        self.half.shut(&self.mem);
        self.half.ring(&self.mem);
    }

    /// What the guest's last incarnation left to be read when it died; empty if nothing.
    pub fn last_words(&self) -> &[u8] {
        self.last_words.0.get(..self.last_words.1).unwrap_or(&[])
    }

    /// The state of everything, as plain data.
    pub fn snapshot(&self) -> LinkSnapshot {
        let profile = match self.session {
            Session::None => Profile::None,
            Session::Extended(_) => Profile::Extended,
            Session::Plain => Profile::Plain,
        };
        let mut devices = [const { None }; MAX_DEVICES];
        for (seat, slot) in self.seats.iter().flatten().zip(&mut devices) {
            let port = &seat.port;
            *slot = Some(DeviceSnapshot {
                kind: port.device.id().name(),
                runs: match self.session {
                    Session::None => false,
                    Session::Extended(_) => seat.state.runs(),
                    Session::Plain => seat.plain.runs(),
                },
                must_reboot: seat.plain.is_orphan(),
                held: seat.plain.is_held(),
                fault: fault_name(match seat.plain.fault() {
                    Fault::None => seat.state.fault(),
                    fault => fault,
                }),
                features: port.features.bits(),
                resets: port.resets,
                ring_faults: port.ring_faults,
                last_ring_fault: port.last_fault,
                features_refused: port.features_refused,
                queues_refused: seat.plain.refused,
                last_refusal: seat.plain.refusal(),
                queue_count: port.place.queues().count(),
                queue_sizes: core::array::from_fn(|i| {
                    port.rings.get(i).and_then(Option::as_ref).map_or(0, |ring| ring.size())
                }),
                queue_limits: core::array::from_fn(|i| {
                    port.place.queues.get(i).map_or(0, |queue| queue.size)
                }),
                in_flight: core::array::from_fn(|i| {
                    port.rings.get(i).and_then(Option::as_ref).map_or(0, |ring| ring.in_flight())
                }),
                queues: port.counters,
            });
        }
        LinkSnapshot {
            profile,
            pmm_epoch: self.half.epoch(),
            driver_epoch: match self.session {
                Session::Extended(epoch) => Some(epoch),
                _ => None,
            },
            counters: self.counters,
            silent_since: self.silent_since,
            devices,
        }
    }
}
