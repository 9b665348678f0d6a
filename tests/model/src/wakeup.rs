//! The hand-shake between sides that really sleep, with doorbells that are lost and sides that die.
//!
//! [`crate::handshake`] lets a side that waits look again whenever it likes; here it looks only when it is woken, as
//! in [`crate::doorbell`]. What is new in the product of the two is what a side finds in the Bell and Seen words of
//! the link's last incarnation. The rule that this model adds is that **a Bell goes on from where memory has it**: a
//! Bell that begins at 0 again can reach exactly the value that the peer's Seen still holds, and then a lost ring is
//! taken for a seen one, for ever.
//!
//! A look is one transition here; its grain is the business of the other two models.

use crate::{Move, Spec};

/// A rule of the protocol that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Publish: PmmBell goes on from where memory has it.
    PmmBellGoesOn,
    /// Hello: DriverBell goes on from where memory has it.
    DriverBellGoesOn,
    /// Publish ends with a bell.
    RingAtPublish,
    /// v is read before the look, not when Seen is stored.
    BellBeforeLook,
    /// One more look before sleeping.
    SecondLook,
    /// The PMM looks at DriverEpoch on a timer.
    LookAtEpoch,
    /// The PMM looks at DriverBell on a timer.
    LookAtBell,
    /// The PMM rings again while DriverSeen ≠ PmmBell.
    RingAgain,
}

/// A safety property, by what has happened that must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    /// Both sides sleep, the link is not up, and nothing will ever wake either.
    SleptForEver,
    /// The link is up, all is seen, both sides sleep, and a timer is still armed.
    TickedForNothing,
}

/// Where the PMM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PmmAt {
    /// Publish: PmmEpoch := odd.
    Odd,
    /// Publish: EpochSeen and DeviceReady := 0, d0 := DriverEpoch.
    Snapshot,
    /// Publish: PmmEpoch := even.
    Even,
    /// PmmBell += 1.
    Bell,
    /// The doorbell hardware.
    Ring,
    Wake,
    Look,
    Seen,
    Again,
    Sleep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pmm {
    at: PmmAt,
    rang: bool,
    /// Its own PmmBell, the DriverBell of this look, and the DriverBell that it has acted on.
    bell: u8,
    v: u8,
    seen: u8,
    d0: u8,
    adopted: u8,
    ready: bool,
}

/// Where the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum GuestAt {
    /// Boot: DriverBell as memory has it.
    Boot,
    /// DriverBell += 1.
    Bell,
    /// The doorbell hardware.
    Ring,
    Wake,
    Look,
    Seen,
    Again,
    /// WFI.
    Sleep,
}

/// What it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// PmmEpoch even and not 0.
    Pmm,
    /// EpochSeen.
    Seen,
    /// DeviceReady.
    Ready,
    /// Nothing: it runs.
    Running,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Guest {
    at: GuestAt,
    stage: Stage,
    rang: bool,
    bell: u8,
    v: u8,
    p: u8,
    epoch: u8,
}

/// The shared words and both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pmm_epoch: u8,
    driver_epoch: u8,
    epoch_seen: u8,
    device_ready: u8,
    driver_ready: u8,
    pmm_bell: u8,
    driver_bell: u8,
    driver_seen: u8,
    pmm: Pmm,
    guest: Guest,
    pmm_deaths: u8,
    guest_deaths: u8,
}

/// The model and its parameters.
#[derive(Clone, Debug)]
pub struct Wakeup {
    /// The rules that are switched off.
    pub without: Vec<Rule>,
    /// How often the PMM may die.
    pub pmm_deaths: u8,
    /// How often the guest may reboot.
    pub guest_deaths: u8,
}

const NEW_PMM: Pmm =
    Pmm { at: PmmAt::Odd, rang: false, bell: 0, v: 0, seen: 0, d0: 0, adopted: 0, ready: false };
const NEW_GUEST: Guest =
    Guest { at: GuestAt::Boot, stage: Stage::Pmm, rang: false, bell: 0, v: 0, p: 0, epoch: 0 };

type Out<'a> = &'a mut Vec<Move<State>>;

fn go(s: &State, out: Out, step: &'static str, change: impl FnOnce(&mut State)) {
    let mut next = *s;
    change(&mut next);
    out.push(Move { step, hardship: step.starts_with("***"), next });
}

impl Wakeup {
    fn rule(&self, rule: Rule) -> bool {
        !self.without.contains(&rule)
    }

    fn is_hello(s: &State) -> bool {
        s.driver_epoch != 0 && s.driver_epoch != s.pmm.d0 && s.driver_epoch != s.pmm.adopted
    }

    fn is_start(s: &State) -> bool {
        s.pmm.adopted != 0 && !s.pmm.ready && s.driver_ready == s.pmm.adopted
    }

    fn pmm(&self, s: &State, out: Out) {
        match s.pmm.at {
            PmmAt::Odd => go(s, out, "PMM Publish: PmmEpoch := odd", |n| {
                n.pmm_epoch += if n.pmm_epoch & 1 == 0 { 1 } else { 2 };
                n.pmm.bell = if self.rule(Rule::PmmBellGoesOn) { n.pmm_bell } else { 0 };
                n.pmm.at = PmmAt::Snapshot;
            }),
            PmmAt::Snapshot => {
                go(s, out, "PMM Publish: EpochSeen, DeviceReady := 0, d0 := DriverEpoch", |n| {
                    n.epoch_seen = 0;
                    n.device_ready = 0;
                    n.pmm.d0 = n.driver_epoch;
                    n.pmm.at = PmmAt::Even;
                })
            }
            PmmAt::Even => go(s, out, "PMM Publish: PmmEpoch := even", |n| {
                n.pmm_epoch += 1;
                n.pmm.at = if self.rule(Rule::RingAtPublish) { PmmAt::Bell } else { PmmAt::Wake };
            }),
            PmmAt::Bell => go(s, out, "PMM: PmmBell += 1", |n| {
                n.pmm.bell += 1;
                n.pmm_bell = n.pmm.bell;
                n.pmm.at = PmmAt::Ring;
            }),
            PmmAt::Ring => {
                go(s, out, "PMM rings", |n| {
                    n.guest.rang = true;
                    n.pmm.at = PmmAt::Wake;
                });
                go(s, out, "PMM rings, and it is lost", |n| n.pmm.at = PmmAt::Wake);
            }
            PmmAt::Wake => go(s, out, "PMM Sleep: acknowledge the doorbell, v := DriverBell", |n| {
                n.pmm.rang = false;
                n.pmm.v = n.driver_bell;
                n.pmm.at = PmmAt::Look;
            }),
            PmmAt::Look if Self::is_hello(s) => go(s, out, "PMM Adopt: EpochSeen := DriverEpoch", |n| {
                n.device_ready = 0;
                n.pmm.ready = false;
                n.pmm.adopted = n.driver_epoch;
                n.epoch_seen = n.driver_epoch;
                n.pmm.at = PmmAt::Bell;
            }),
            PmmAt::Look if Self::is_start(s) => go(s, out, "PMM Start: DeviceReady := epoch", |n| {
                n.device_ready = n.pmm.adopted;
                n.pmm.ready = true;
                n.pmm.at = PmmAt::Bell;
            }),
            PmmAt::Look => go(s, out, "PMM Sleep: nothing left", |n| n.pmm.at = PmmAt::Seen),
            PmmAt::Seen => go(s, out, "PMM Sleep: PmmSeen := v", |n| {
                let v = if self.rule(Rule::BellBeforeLook) { n.pmm.v } else { n.driver_bell };
                n.pmm.seen = v;
                n.pmm.v = 0;
                n.pmm.at = if self.rule(Rule::SecondLook) { PmmAt::Again } else { PmmAt::Sleep };
            }),
            PmmAt::Again if Self::is_hello(s) || Self::is_start(s) => {
                go(s, out, "PMM Sleep: there is more", |n| n.pmm.at = PmmAt::Wake)
            }
            PmmAt::Again => go(s, out, "PMM Sleep: nothing, epoll", |n| n.pmm.at = PmmAt::Sleep),
            PmmAt::Sleep => {
                if s.pmm.rang {
                    go(s, out, "PMM wakes", |n| n.pmm.at = PmmAt::Wake);
                }
                if self.rule(Rule::LookAtEpoch) && Self::is_hello(s) {
                    go(s, out, "PMM timer: DriverEpoch is a hello", |n| n.pmm.at = PmmAt::Wake);
                }
                if self.rule(Rule::LookAtBell) && s.driver_bell != s.pmm.seen {
                    go(s, out, "PMM timer: DriverBell has moved", |n| n.pmm.at = PmmAt::Wake);
                }
                if self.rule(Rule::RingAgain) && s.driver_seen != s.pmm.bell {
                    go(s, out, "PMM timer: DriverSeen is not PmmBell, ring again", |n| n.guest.rang = true);
                }
            }
        }
    }

    /// Whether a look of the guest's would find something.
    fn guest_has_work(s: &State) -> bool {
        match s.guest.stage {
            Stage::Pmm => s.pmm_epoch != 0 && s.pmm_epoch & 1 == 0,
            Stage::Seen => s.pmm_epoch != s.guest.p || s.epoch_seen == s.guest.epoch,
            Stage::Ready => s.pmm_epoch != s.guest.p || s.device_ready == s.guest.epoch,
            Stage::Running => s.pmm_epoch != s.guest.p,
        }
    }

    fn guest(&self, s: &State, out: Out) {
        let g = &s.guest;
        match g.at {
            GuestAt::Boot => go(s, out, "guest boots", |n| {
                n.guest.bell = if self.rule(Rule::DriverBellGoesOn) { n.driver_bell } else { 0 };
                n.guest.at = GuestAt::Wake;
            }),
            GuestAt::Bell => go(s, out, "guest: DriverBell += 1", |n| {
                n.guest.bell += 1;
                n.driver_bell = n.guest.bell;
                n.guest.at = GuestAt::Ring;
            }),
            GuestAt::Ring => {
                go(s, out, "guest rings", |n| {
                    n.pmm.rang = true;
                    n.guest.at = GuestAt::Look;
                });
                go(s, out, "guest rings, and it is lost", |n| n.guest.at = GuestAt::Look);
            }
            GuestAt::Wake => go(s, out, "guest Sleep: acknowledge the doorbell, v := PmmBell", |n| {
                n.guest.rang = false;
                n.guest.v = n.pmm_bell;
                n.guest.at = GuestAt::Look;
            }),
            GuestAt::Look if !Self::guest_has_work(s) => {
                go(s, out, "guest Sleep: nothing left", |n| n.guest.at = GuestAt::Seen)
            }
            GuestAt::Look => match g.stage {
                Stage::Pmm => go(s, out, "guest Hello: p := PmmEpoch, DriverEpoch := epoch", |n| {
                    n.guest.p = n.pmm_epoch;
                    n.guest.epoch = n.driver_epoch + 1;
                    n.driver_epoch = n.guest.epoch;
                    n.guest.stage = Stage::Seen;
                    n.guest.at = GuestAt::Bell;
                }),
                _ if s.pmm_epoch != g.p => {
                    go(s, out, "guest look: PmmEpoch is not p", |n| n.guest.stage = Stage::Pmm)
                }
                Stage::Seen => go(s, out, "guest Start: EpochSeen answers, DriverReady := epoch", |n| {
                    n.driver_ready = n.guest.epoch;
                    n.guest.stage = Stage::Ready;
                    n.guest.at = GuestAt::Bell;
                }),
                _ => go(s, out, "guest Start: DeviceReady is the epoch", |n| n.guest.stage = Stage::Running),
            },
            GuestAt::Seen => go(s, out, "guest Sleep: DriverSeen := v", |n| {
                n.driver_seen = if self.rule(Rule::BellBeforeLook) { n.guest.v } else { n.pmm_bell };
                n.guest.v = 0;
                n.guest.at = if self.rule(Rule::SecondLook) { GuestAt::Again } else { GuestAt::Sleep };
            }),
            GuestAt::Again if Self::guest_has_work(s) => {
                go(s, out, "guest Sleep: there is more", |n| n.guest.at = GuestAt::Wake)
            }
            GuestAt::Again => go(s, out, "guest Sleep: nothing, WFI", |n| n.guest.at = GuestAt::Sleep),
            GuestAt::Sleep if g.rang => go(s, out, "guest wakes", |n| n.guest.at = GuestAt::Wake),
            GuestAt::Sleep => {}
        }
    }

    /// Bells that go on are only ever compared for equality with what they were, and a value once passed does not come
    /// back: it matters whether a copy is the present one, not how old it is. (No death here spans 2^32 rings.)
    fn fold(&self, s: &mut State) {
        if !self.rule(Rule::PmmBellGoesOn) || !self.rule(Rule::DriverBellGoesOn) {
            return;
        }
        let age = |copy: u8, bell: u8| if copy == bell { 2 } else { 1 };
        let (pmm, driver) = (s.pmm_bell, s.driver_bell);
        s.driver_seen = age(s.driver_seen, pmm);
        if matches!(s.guest.at, GuestAt::Look | GuestAt::Bell | GuestAt::Ring | GuestAt::Seen) {
            s.guest.v = age(s.guest.v, pmm);
        }
        s.pmm.seen = age(s.pmm.seen, driver);
        if matches!(s.pmm.at, PmmAt::Look | PmmAt::Seen) {
            s.pmm.v = age(s.pmm.v, driver);
        }
        if s.pmm.at != PmmAt::Odd {
            s.pmm.bell = 2;
        }
        if s.guest.at != GuestAt::Boot {
            s.guest.bell = 2;
        }
        s.pmm_bell = 2;
        s.driver_bell = 2;
    }

    fn asleep(s: &State) -> bool {
        s.guest.at == GuestAt::Sleep && s.pmm.at == PmmAt::Sleep && !s.guest.rang && !s.pmm.rang
    }

    fn up(s: &State) -> bool {
        s.guest.stage == Stage::Running
            && s.pmm.ready
            && s.guest.epoch == s.pmm.adopted
            && s.guest.p == s.pmm_epoch
    }

    /// Whether a timer of the PMM's will do something.
    fn armed(&self, s: &State) -> bool {
        (self.rule(Rule::LookAtEpoch) && Self::is_hello(s))
            || (self.rule(Rule::LookAtBell) && s.driver_bell != s.pmm.seen)
            || (self.rule(Rule::RingAgain) && s.driver_seen != s.pmm.bell)
    }

    /// Whether each side has acted on the last bell of the other.
    fn all_seen(s: &State) -> bool {
        s.driver_seen == s.pmm_bell && s.pmm.seen == s.driver_bell
    }
}

impl Spec for Wakeup {
    type State = State;
    type Broken = Broken;

    fn start(&self) -> Vec<State> {
        vec![State {
            pmm_epoch: 0,
            driver_epoch: 0,
            epoch_seen: 0,
            device_ready: 0,
            driver_ready: 0,
            pmm_bell: 0,
            driver_bell: 0,
            driver_seen: 0,
            pmm: NEW_PMM,
            guest: NEW_GUEST,
            pmm_deaths: self.pmm_deaths,
            guest_deaths: self.guest_deaths,
        }]
    }

    fn moves(&self, s: &State, out: Out) {
        if self.broken(s).is_some() {
            return;
        }
        self.pmm(s, out);
        self.guest(s, out);
        // The doorbell hardware of a side keeps what is latched while the side is dead.
        if s.pmm_deaths > 0 && s.pmm.at != PmmAt::Odd {
            go(s, out, "*** PMM is killed", |n| {
                n.pmm_deaths -= 1;
                n.pmm = Pmm { rang: n.pmm.rang, ..NEW_PMM };
            });
        }
        if s.guest_deaths > 0 && s.guest.at != GuestAt::Boot {
            go(s, out, "*** guest reboots", |n| {
                n.guest_deaths -= 1;
                n.guest = Guest { rang: n.guest.rang, ..NEW_GUEST };
            });
        }
        for one in out.iter_mut() {
            self.fold(&mut one.next);
        }
    }

    fn broken(&self, s: &State) -> Option<Broken> {
        if !Self::asleep(s) {
            return None;
        }
        if !Self::up(s) && !self.armed(s) {
            return Some(Broken::SleptForEver);
        }
        (Self::up(s) && Self::all_seen(s) && self.armed(s)).then_some(Broken::TickedForNothing)
    }

    /// The link is up, and nothing at all will happen any more.
    fn goal(&self, s: &State) -> bool {
        Self::up(s) && Self::asleep(s) && !self.armed(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{caught, verify};

    fn all(pmm_deaths: u8, guest_deaths: u8) -> Wakeup {
        Wakeup { without: Vec::new(), pmm_deaths, guest_deaths }
    }

    fn without(rules: &[Rule], pmm_deaths: u8, guest_deaths: u8) -> Wakeup {
        Wakeup { without: rules.to_vec(), ..all(pmm_deaths, guest_deaths) }
    }

    #[test]
    fn every_ring_may_be_lost_and_either_side_may_die() {
        verify(&all(1, 1));
        verify(&all(2, 0));
        verify(&all(0, 2));
    }

    #[test]
    fn pmm_bell_must_go_on_after_a_restart() {
        caught(&without(&[Rule::PmmBellGoesOn], 1, 0), Broken::SleptForEver);
    }

    #[test]
    fn driver_bell_must_go_on_after_a_reboot() {
        caught(&without(&[Rule::DriverBellGoesOn], 0, 1), Broken::SleptForEver);
    }

    #[test]
    fn publish_must_ring() {
        caught(&without(&[Rule::RingAtPublish], 0, 0), Broken::SleptForEver);
    }

    #[test]
    fn a_lost_kick_is_found_by_the_look_at_driver_bell() {
        caught(&without(&[Rule::LookAtBell], 0, 0), Broken::SleptForEver);
    }

    #[test]
    fn a_lost_call_is_found_by_ringing_again() {
        caught(&without(&[Rule::RingAgain], 0, 0), Broken::SleptForEver);
    }

    /// Each covers for the other where every store is followed by a bell, which EVENT_IDX does not do.
    #[test]
    fn a_bell_read_late_needs_the_second_look() {
        verify(&without(&[Rule::BellBeforeLook], 1, 0));
        verify(&without(&[Rule::SecondLook], 1, 0));
        caught(&without(&[Rule::BellBeforeLook, Rule::SecondLook], 0, 0), Broken::SleptForEver);
    }

    /// A hello counts DriverBell, so looking at DriverEpoch as well is a second line.
    #[test]
    fn the_look_at_driver_epoch_is_a_second_line() {
        verify(&without(&[Rule::LookAtEpoch], 1, 1));
    }
}
