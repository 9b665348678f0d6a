//! One ring with EVENT_IDX, and two doorbells that may lose every single ring.
//!
//! The guest sleeps in WFI and has no timer. It posts `requests` buffers, never more than `window` in flight; the PMM
//! uses each. Both do what the step **Sleep** says, at the grain of one access:
//!
//! > acknowledge the doorbell hardware; v := the peer's Bell; look at everything to the end; own Seen := v; arm the
//! > event index; settle; look once more; then WFI, or epoll.
//!
//! and ring as section "Doorbells that can be lost" says: own Bell += 1, then the hardware. The PMM alone looks at
//! DriverBell on a timer, and rings again while DriverSeen ≠ PmmBell. Nothing may hang, and when all is seen nothing
//! may tick. Ring indices and Bell words are 8 bits wide and wrap on the way.

use crate::{Move, Spec};

/// A rule of the protocol that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The doorbell hardware is acknowledged before the look, not after it.
    AcknowledgeFirst,
    /// v is read before the look, not when Seen is stored.
    BellBeforeLook,
    /// One more look between arming the event index and sleeping.
    SecondLook,
    /// A full fence between storing an index and reading the peer's event index: without it, the load comes first.
    SettleAfterIndex,
    /// Ringing counts the own Bell up.
    CountBell,
    /// Seen is stored at all.
    StoreSeen,
    /// The PMM looks at DriverBell on a timer.
    LookAgain,
    /// The PMM rings again while DriverSeen ≠ PmmBell.
    RingAgain,
    /// It does so only then.
    RingOnlyUnseen,
}

/// A safety property, by what has happened that must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    /// Both sides sleep, work is left, and nothing will ever wake either.
    SleptForEver,
    /// All is done and seen, both sides sleep, and a timer is still armed.
    TickedForNothing,
}

/// Where a side is. Each names what it does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    /// Acknowledge the doorbell hardware, v := the peer's Bell.
    Wake,
    /// Look at the ring.
    Look,
    /// The PMM: a request was taken, use it.
    Use,
    /// Store the own index.
    Store,
    /// An index was stored: does the peer want to be woken?
    Event,
    /// Own Bell was counted up: ring.
    Ring,
    /// Own Seen := v.
    Seen,
    /// Arm the event index.
    Arm,
    /// Look once more.
    Again,
    /// With [`Rule::AcknowledgeFirst`] off: acknowledge only now.
    Acknowledge,
    /// WFI, or epoll.
    Sleep,
}

/// One side's private state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Side {
    at: At,
    /// Whether the doorbell hardware has something latched for this side.
    rang: bool,
    /// The peer's Bell, as it was when this look began.
    v: u8,
    /// The own Seen: the PMM compares DriverBell with it.
    seen: u8,
    /// How far the own index is: available for the guest, used for the PMM.
    made: u8,
    /// How far it has read the peer's.
    met: u8,
    /// With [`Rule::SettleAfterIndex`] off: the peer's event index, loaded too early.
    event: u8,
}

impl Side {
    fn new(index: u8, bell: u8) -> Side {
        Side { at: At::Wake, rang: false, v: bell, seen: bell, made: index, met: index, event: 0 }
    }
}

/// The shared words and both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    available: u8,
    used: u8,
    avail_event: u8,
    used_event: u8,
    driver_bell: u8,
    driver_seen: u8,
    pmm_bell: u8,
    pmm_seen: u8,
    guest: Side,
    pmm: Side,
}

/// The model and its parameters.
#[derive(Clone, Debug)]
pub struct Doorbell {
    /// The rules that are switched off.
    pub without: Vec<Rule>,
    /// How many buffers the guest posts.
    pub requests: u8,
    /// How many may be in flight.
    pub window: u8,
    /// Whether a ring may be lost.
    pub lossy: bool,
}

/// Where indices and bells start, so that they wrap after the second.
const FIRST: u8 = 254;

/// VIRTIO 1.2, 2.7.7.2: whether the step from `old` to `new` passes the peer's event index.
fn wants_event(event: u8, new: u8, old: u8) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

type Out<'a> = &'a mut Vec<Move<State>>;

fn go(s: &State, out: Out, step: &'static str, change: impl FnOnce(&mut State)) {
    let mut next = *s;
    change(&mut next);
    out.push(Move { step, hardship: false, next });
}

fn guest_store(n: &mut State) {
    n.guest.made = n.guest.made.wrapping_add(1);
    n.available = n.guest.made;
    n.guest.at = At::Event;
}

impl Doorbell {
    fn rule(&self, rule: Rule) -> bool {
        !self.without.contains(&rule)
    }

    fn last(&self) -> u8 {
        FIRST.wrapping_add(self.requests)
    }

    fn unseen(&self, s: &State) -> bool {
        s.driver_seen != s.pmm_bell || !self.rule(Rule::RingOnlyUnseen)
    }

    fn guest(&self, s: &State, out: Out) {
        let g = &s.guest;
        match g.at {
            At::Wake => go(s, out, "guest Sleep: acknowledge the doorbell, v := PmmBell", |n| {
                if self.rule(Rule::AcknowledgeFirst) {
                    n.guest.rang = false;
                }
                n.guest.v = n.pmm_bell;
                n.guest.at = At::Look;
            }),
            At::Look if s.used != g.met => go(s, out, "guest Run: pop", |n| {
                n.guest.met = n.guest.met.wrapping_add(1);
            }),
            At::Look if g.made != self.last() && g.made.wrapping_sub(g.met) < self.window => {
                if !self.rule(Rule::SettleAfterIndex) {
                    go(s, out, "guest: avail_event is loaded early", |n| {
                        n.guest.event = n.avail_event;
                        n.guest.at = At::Store;
                    });
                } else {
                    go(s, out, "guest Run: available index += 1", guest_store);
                }
            }
            At::Store => go(s, out, "guest Run: available index += 1", guest_store),
            At::Look => go(s, out, "guest Sleep: nothing left", |n| n.guest.at = At::Seen),
            At::Event => {
                let event = if self.rule(Rule::SettleAfterIndex) { s.avail_event } else { g.event };
                if wants_event(event, g.made, g.made.wrapping_sub(1)) {
                    go(s, out, "guest: DriverBell += 1", |n| {
                        if self.rule(Rule::CountBell) {
                            n.driver_bell = n.driver_bell.wrapping_add(1);
                        }
                        n.guest.event = 0;
                        n.guest.at = At::Ring;
                    });
                } else {
                    go(s, out, "guest: no kick is wanted", |n| {
                        n.guest.event = 0;
                        n.guest.at = At::Look;
                    });
                }
            }
            At::Ring => {
                go(s, out, "guest rings", |n| {
                    n.pmm.rang = true;
                    n.guest.at = At::Look;
                });
                if self.lossy {
                    go(s, out, "guest rings, and it is lost", |n| n.guest.at = At::Look);
                }
            }
            At::Seen => go(s, out, "guest Sleep: DriverSeen := v", |n| {
                let v = if self.rule(Rule::BellBeforeLook) { n.guest.v } else { n.pmm_bell };
                n.guest.seen = v;
                if self.rule(Rule::StoreSeen) {
                    n.driver_seen = v;
                }
                n.guest.at = At::Arm;
            }),
            At::Arm => go(s, out, "guest Sleep: arm used_event", |n| {
                n.used_event = n.guest.met;
                n.guest.at = if self.rule(Rule::SecondLook) { At::Again } else { At::Acknowledge };
            }),
            At::Again if s.used != g.met => {
                go(s, out, "guest Sleep: there is more", |n| n.guest.at = At::Wake)
            }
            At::Again => go(s, out, "guest Sleep: nothing, WFI", |n| n.guest.at = At::Acknowledge),
            At::Acknowledge if self.rule(Rule::AcknowledgeFirst) => {
                go(s, out, "guest sleeps", |n| n.guest.at = At::Sleep)
            }
            At::Acknowledge => go(s, out, "guest acknowledges the doorbell only now", |n| {
                n.guest.rang = false;
                n.guest.at = At::Sleep;
            }),
            At::Sleep if g.rang => go(s, out, "guest wakes", |n| n.guest.at = At::Wake),
            At::Sleep | At::Use => {}
        }
    }

    fn pmm(&self, s: &State, out: Out) {
        let p = &s.pmm;
        match p.at {
            At::Wake => go(s, out, "PMM Sleep: acknowledge the doorbell, v := DriverBell", |n| {
                if self.rule(Rule::AcknowledgeFirst) {
                    n.pmm.rang = false;
                }
                n.pmm.v = n.driver_bell;
                n.pmm.at = At::Look;
            }),
            At::Look if s.available != p.met => go(s, out, "PMM Run: take", |n| {
                n.pmm.met = n.pmm.met.wrapping_add(1);
                n.pmm.at = At::Use;
            }),
            At::Look => go(s, out, "PMM Sleep: nothing left", |n| n.pmm.at = At::Seen),
            At::Use if !self.rule(Rule::SettleAfterIndex) => {
                go(s, out, "PMM: used_event is loaded early", |n| {
                    n.pmm.event = n.used_event;
                    n.pmm.at = At::Store;
                })
            }
            At::Use | At::Store => go(s, out, "PMM Run: used index += 1", |n| {
                n.pmm.made = n.pmm.made.wrapping_add(1);
                n.used = n.pmm.made;
                n.pmm.at = At::Event;
            }),
            At::Event => {
                let event = if self.rule(Rule::SettleAfterIndex) { s.used_event } else { p.event };
                if wants_event(event, p.made, p.made.wrapping_sub(1)) {
                    go(s, out, "PMM: PmmBell += 1", |n| {
                        if self.rule(Rule::CountBell) {
                            n.pmm_bell = n.pmm_bell.wrapping_add(1);
                        }
                        n.pmm.event = 0;
                        n.pmm.at = At::Ring;
                    });
                } else {
                    go(s, out, "PMM: no call is wanted", |n| {
                        n.pmm.event = 0;
                        n.pmm.at = At::Look;
                    });
                }
            }
            At::Ring => {
                go(s, out, "PMM rings", |n| {
                    n.guest.rang = true;
                    n.pmm.at = At::Look;
                });
                if self.lossy {
                    go(s, out, "PMM rings, and it is lost", |n| n.pmm.at = At::Look);
                }
            }
            At::Seen => go(s, out, "PMM Sleep: PmmSeen := v", |n| {
                let v = if self.rule(Rule::BellBeforeLook) { n.pmm.v } else { n.driver_bell };
                n.pmm.seen = v;
                n.pmm_seen = v;
                n.pmm.at = At::Arm;
            }),
            At::Arm => go(s, out, "PMM Sleep: arm avail_event", |n| {
                n.avail_event = n.pmm.met;
                n.pmm.at = if self.rule(Rule::SecondLook) { At::Again } else { At::Acknowledge };
            }),
            At::Again if s.available != p.met => {
                go(s, out, "PMM Sleep: there is more", |n| n.pmm.at = At::Wake)
            }
            At::Again => go(s, out, "PMM Sleep: nothing, epoll", |n| n.pmm.at = At::Acknowledge),
            At::Acknowledge if self.rule(Rule::AcknowledgeFirst) => {
                go(s, out, "PMM sleeps", |n| n.pmm.at = At::Sleep)
            }
            At::Acknowledge => go(s, out, "PMM acknowledges the doorbell only now", |n| {
                n.pmm.rang = false;
                n.pmm.at = At::Sleep;
            }),
            At::Sleep => {
                if p.rang {
                    go(s, out, "PMM wakes", |n| n.pmm.at = At::Wake);
                }
                if self.rule(Rule::LookAgain) && s.driver_bell != p.seen {
                    go(s, out, "PMM timer: DriverBell has moved", |n| n.pmm.at = At::Wake);
                }
                if self.rule(Rule::RingAgain) && self.unseen(s) {
                    go(s, out, "PMM timer: DriverSeen is not PmmBell, ring again", |n| n.guest.rang = true);
                }
            }
        }
    }

    fn asleep(s: &State) -> bool {
        s.guest.at == At::Sleep && s.pmm.at == At::Sleep && !s.guest.rang && !s.pmm.rang
    }

    fn done(&self, s: &State) -> bool {
        s.guest.met == self.last()
    }

    /// Whether a timer of the PMM's will do something.
    fn armed(&self, s: &State) -> bool {
        (self.rule(Rule::LookAgain) && s.driver_bell != s.pmm.seen)
            || (self.rule(Rule::RingAgain) && self.unseen(s))
    }

    /// Ghost: whether each side has acted on the last bell of the other.
    fn all_seen(s: &State) -> bool {
        s.guest.seen == s.pmm_bell && s.pmm.seen == s.driver_bell
    }
}

impl Spec for Doorbell {
    type State = State;
    type Broken = Broken;

    fn start(&self) -> Vec<State> {
        let side = Side::new(FIRST, FIRST);
        vec![State {
            available: FIRST,
            used: FIRST,
            avail_event: FIRST,
            used_event: FIRST,
            driver_bell: FIRST,
            driver_seen: FIRST,
            pmm_bell: FIRST,
            pmm_seen: FIRST,
            guest: side,
            pmm: side,
        }]
    }

    fn moves(&self, s: &State, out: Out) {
        if self.broken(s).is_none() {
            self.guest(s, out);
            self.pmm(s, out);
        }
    }

    fn broken(&self, s: &State) -> Option<Broken> {
        if !Self::asleep(s) {
            return None;
        }
        if !self.done(s) && !self.armed(s) {
            return Some(Broken::SleptForEver);
        }
        (self.done(s) && Self::all_seen(s) && self.armed(s)).then_some(Broken::TickedForNothing)
    }

    /// All is done, and nothing at all will happen any more: no interrupt is latched and no timer armed.
    fn goal(&self, s: &State) -> bool {
        self.done(s) && Self::asleep(s) && !self.armed(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{caught, verify};

    /// Three buffers, two in flight.
    fn all(lossy: bool) -> Doorbell {
        Doorbell { without: Vec::new(), requests: 3, window: 2, lossy }
    }

    fn without(rules: &[Rule], lossy: bool) -> Doorbell {
        Doorbell { without: rules.to_vec(), ..all(lossy) }
    }

    #[test]
    fn every_ring_may_be_lost() {
        verify(&all(true));
        verify(&Doorbell { requests: 4, window: 1, ..all(true) });
        verify(&Doorbell { requests: 4, window: 3, ..all(true) });
    }

    #[test]
    fn no_timer_is_needed_where_no_ring_is_lost() {
        verify(&without(&[Rule::LookAgain, Rule::RingAgain], false));
    }

    /// With the timers on it would only be slow: the Bell words tell of what was swallowed.
    #[test]
    fn the_doorbell_is_acknowledged_before_the_look() {
        let rules = [Rule::AcknowledgeFirst, Rule::LookAgain, Rule::RingAgain];
        caught(&without(&rules, false), Broken::SleptForEver);
    }

    /// EVENT_IDX makes it permanent: no ring is wanted, so no Bell counts it and no timer finds it.
    #[test]
    fn the_second_look_is_needed_even_with_timers() {
        caught(&without(&[Rule::SecondLook], false), Broken::SleptForEver);
        caught(&without(&[Rule::SecondLook], true), Broken::SleptForEver);
    }

    #[test]
    fn settle_is_needed_even_with_timers() {
        caught(&without(&[Rule::SettleAfterIndex], false), Broken::SleptForEver);
        caught(&without(&[Rule::SettleAfterIndex], true), Broken::SleptForEver);
    }

    #[test]
    fn a_lost_ring_is_found_by_the_bell_that_was_counted() {
        caught(&without(&[Rule::CountBell], true), Broken::SleptForEver);
    }

    #[test]
    fn a_lost_kick_is_found_by_the_look_at_driver_bell() {
        caught(&without(&[Rule::LookAgain], true), Broken::SleptForEver);
    }

    #[test]
    fn a_lost_call_is_found_by_ringing_again() {
        caught(&without(&[Rule::RingAgain], true), Broken::SleptForEver);
    }

    #[test]
    fn quiet_needs_driver_seen() {
        caught(&without(&[Rule::StoreSeen], true), Broken::TickedForNothing);
    }

    #[test]
    fn quiet_needs_a_timer_that_is_armed_only_for_the_unseen() {
        caught(&without(&[Rule::RingOnlyUnseen], true), Broken::TickedForNothing);
    }

    /// What a bell tells of was stored before it was counted, so the second look finds it even if Seen ran ahead; see
    /// [`crate::wakeup`] for what becomes of a side that has neither.
    #[test]
    fn the_second_look_covers_a_bell_that_was_read_late() {
        verify(&without(&[Rule::BellBeforeLook], true));
    }
}
