//! What a board gives the frontend: memory, a doorbell, a clock.
//!
//! All of it is the board's own code, and nothing here is ever called from an interrupt handler by this crate.

use hvl_shared_abi::{Mem, ShmRegion};

/// Cache maintenance, which a board with a cached, non-coherent region gives to
/// [`Attribute::CachedNonCoherent`](hvl_shared_abi::Attribute::CachedNonCoherent).
pub use hvl_shared_abi::MaintainCache as MemOps;

/// Wakes the PMM.
pub trait Doorbell {
    /// Rings once. It never blocks: where a ring is still on its way, this one may merge with it. Everything stored
    /// before the call is complete already ([`Mem::bell`]).
    fn ring(&self);
}

/// A point in time: microseconds since some start, the board's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// What a board without a clock always answers; as a deadline, it has always passed.
    pub const UNKNOWN: Instant = Instant(0);
    /// The end of time: no deadline.
    pub(crate) const NEVER: Instant = Instant(u64::MAX);

    /// From microseconds.
    pub const fn from_micros(micros: u64) -> Instant {
        Instant(micros)
    }
    /// In microseconds.
    pub const fn micros(self) -> u64 {
        self.0
    }
    /// Some microseconds later; the end of time is never passed.
    #[must_use]
    pub const fn plus(self, micros: u64) -> Instant {
        Instant(self.0.saturating_add(micros))
    }
    /// Microseconds since an earlier point; 0 if it is a later one.
    pub const fn since(self, earlier: Instant) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
    /// Whether this is a time at all.
    pub const fn is_known(self) -> bool {
        self.0 != 0
    }
}

/// Tells the time.
pub trait Clock {
    /// The time now; never goes back.
    ///
    /// A board without a clock returns [`Instant::UNKNOWN`]. Then nothing is kicked again after a second of silence
    /// (the PMM's own timers recover what it lost), a device that faults is set up again after a number of looks
    /// instead of a time, and calls with a deadline do not wait at all.
    fn now(&self) -> Instant;
}

/// Everything of a board that a link needs. A handle on it, cheap to clone: each device handle keeps one.
pub trait Board: Doorbell + Clock + Clone + Send {
    /// How the shared region is reached.
    type Mem: Mem + Clone + Send;
    /// The shared region.
    fn mem(&self) -> &Self::Mem;
    /// What this side calls physical: the address that stands in descriptors for the region's first byte, and the
    /// length that the PMM may use at most. A PMM that alleges another base or more bytes is refused.
    fn region(&self) -> ShmRegion;
}

/// A board that can put its program, or the calling task, to sleep.
pub trait Wait: Board {
    /// Returns when the doorbell has rung since the call before, or `deadline` has passed, or earlier for no reason.
    ///
    /// A ring between a look at memory and this call must not be lost: note it in the interrupt handler, and look at
    /// the note with interrupts masked before WFI.
    fn wait_for_doorbell(&self, deadline: Option<Instant>);
}

/// A timer for what stays unanswered: a second, doubling up to sixteen.
///
/// A PMM may lose a bell, or store an event index that keeps the guest from ringing; then a second kick helps, and a
/// slow host end loses nothing by it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Alarm {
    /// Not known: it does not run.
    deadline: Instant,
    doublings: u8,
}

impl Alarm {
    pub(crate) const NEW: Alarm = Alarm { deadline: Instant::UNKNOWN, doublings: 0 };
    const FIRST: u32 = 1_000_000;
    const DOUBLINGS: u8 = 4;

    /// Starts from now on.
    pub(crate) fn clear(&mut self) {
        *self = Alarm::NEW;
    }
    /// Whether it is time to kick again. Called while something is unanswered.
    #[inline(never)]
    pub(crate) fn due(&mut self, now: Instant) -> bool {
        let runs = self.deadline.is_known();
        if !now.is_known() || (runs && now < self.deadline) {
            return false;
        }
        self.doublings = self.doublings.saturating_add(u8::from(runs)).min(Self::DOUBLINGS);
        self.deadline = now.plus(Self::FIRST.wrapping_shl(self.doublings.into()).into());
        runs
    }
    /// When it is time.
    pub(crate) fn deadline(&self) -> Instant {
        if self.deadline.is_known() { self.deadline } else { Instant::NEVER }
    }
}

/// The earlier of two deadlines.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_doubles_from_one_second_to_sixteen_and_needs_a_clock() {
        let mut alarm = Alarm::NEW;
        assert!(!alarm.due(Instant::UNKNOWN) && alarm.deadline() == Instant::NEVER);
        let mut now = Instant::from_micros(5);
        assert!(!alarm.due(now));
        for seconds in [1, 2, 4, 8, 16, 16] {
            let deadline = now.plus(seconds * 1_000_000);
            assert_eq!(alarm.deadline(), deadline);
            assert!(!alarm.due(Instant::from_micros(deadline.micros() - 1)));
            now = deadline;
            assert!(alarm.due(now));
        }
        alarm.clear();
        assert_eq!(alarm.deadline(), Instant::NEVER);
    }

    #[test]
    fn time_does_not_wrap() {
        assert_eq!(Instant::from_micros(u64::MAX).plus(1).micros(), u64::MAX);
        assert_eq!(Instant::from_micros(1).since(Instant::from_micros(2)), 0);
    }
}
