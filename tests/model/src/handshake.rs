//! The epochs: who may touch the rings of a link, whatever dies and whenever.
//!
//! One PMM at a time, one guest at a time, one device with one queue of one ring. A transition is at most one access
//! to a shared word, so that either side can die between any two. What a PMM had begun when it died may still be
//! written to the region afterwards (a vhost thread, a request in the kernel): that is the *orphan*.
//!
//! Which part of the code below is which step of the protocol:
//!
//! | step | PMM | guest |
//! |---|---|---|
//! | Publish | [`PmmAt::Begin`] to [`PmmAt::StoreEven`] | |
//! | Hello | | [`GuestAt::LoadEpoch`] to [`GuestAt::WaitPmm`] |
//! | Adopt | [`PmmAt::AdoptDrain`] to [`PmmAt::AdoptSeen`] | |
//! | Start | [`PmmAt::StartDevice`] | [`GuestAt::SetUp`], [`GuestAt::StoreReady`], [`GuestAt::Started`] |
//! | Run | [`PmmAt::Serve`], [`PmmAt::Batch`], [`PmmAt::WriteUsed`] | [`GuestAt::Running`] |
//! | device reset, Fault | [`PmmAt::FaultDrain`] to [`PmmAt::ResetReady`] | [`GuestAt::HarvestReset`] to [`GuestAt::RecheckReset`] |
//! | a plain guest | [`PmmAt::EndExtended`], [`PmmAt::PlainDrain`] to [`PmmAt::PlainAnswer`] | [`GuestAt::PlainStatus`] to [`GuestAt::PlainRunning`] |
//! | a guest taken for gone: its doorbell hung up, or it was silent for too long | [`PmmAt::PresumeGone`], then Publish | as for a new PMM |
//! | Shutdown | [`PmmAt::ShutDrain`], [`PmmAt::ShutOdd`] | |
//!
//! Epoch words are 8 bits wide here, which changes nothing but where they wrap; [`Region::Wrapping`] starts there.
//! Doorbells are left out: a side that waits looks again whenever it likes. That it is woken is for
//! [`crate::wakeup`] to show.

use crate::{Move, Spec};
use pmm::{write_buffer, write_used};

mod guest;
mod pmm;

/// A rule of the protocol that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Publish: PmmEpoch is odd while the static words are written.
    OddWhileWritten,
    /// Publish: the PMM waits until nothing of its predecessor can write any more.
    WaitForPredecessor,
    /// Publish: the region is not zeroed where a guest may run.
    KeepRegion,
    /// Publish: EpochSeen := 0.
    SeenZeroed,
    /// Publish: the DriverEpoch found in memory (d0) is no hello.
    SnapshotDriverEpoch,
    /// Publish: PmmEpoch skips 0 when it wraps.
    PmmEpochSkipsZero,
    /// Hello: PmmEpoch is looked at again once the static words are copied.
    RecheckAfterCopy,
    /// Hello: Status := 0 in every window.
    StatusCleared,
    /// Hello: DriverReady := 0 in every window.
    DriverReadyCleared,
    /// Hello: DriverEpoch skips 0 when it wraps.
    DriverEpochSkipsZero,
    /// Hello: DriverEpoch skips the value that EpochSeen holds.
    DriverEpochSkipsSeen,
    /// Hello: PmmEpoch is looked at again while waiting for EpochSeen.
    RecheckWhileWaiting,
    /// Hello: used entries are harvested before it, not after.
    HarvestFirst,
    /// Adopt: nothing that was begun for the old session is left when EpochSeen is stored.
    Drain,
    /// Adopt: own halves are reset before EpochSeen, not after.
    ResetBeforeSeen,
    /// Start: the PMM takes nothing before DriverReady holds the epoch.
    WaitDriverReady,
    /// Start: the frontend does not change DriverReady before DeviceReady or Fault has answered it.
    HoldDriverReady,
    /// Device reset: the frontend sets up again only once DeviceReady is 0.
    WaitDeviceReady,
    /// Device reset after a Fault: and only once Fault is 0, too.
    WaitFaultZero,
    /// Device reset: PmmEpoch is looked at again after those words, or the zeroes may be those of the next Publish.
    RecheckAfterReset,
    /// Device reset: nothing that was begun before it is left when DeviceReady := 0.
    DrainBeforeReset,
    /// A PMM that presumes its guest gone publishes anew. (Without: EpochSeen := 0 under the same PmmEpoch, which a
    /// guest that still waits for EpochSeen cannot tell from a hello that is not answered yet.)
    PublishAtEnd,
    /// The PMM looks at Status.
    LookAtStatus,
    /// The PMM ends the extended session before it answers a plain guest.
    EndExtendedFirst,
}

/// What the region holds when the link is first looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Region {
    /// Zeroes.
    Fresh,
    /// What a PMM and a guest left that ran yesterday.
    Stale,
    /// As `Stale`, with EpochSeen, DriverReady and DeviceReady one ahead of DriverEpoch: no protocol leaves that, but a
    /// broken guest can.
    Ahead,
    /// As `Stale`, with both epochs about to wrap.
    Wrapping,
}

/// A safety property, by what has happened that must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    /// The PMM took an available entry of another session than it serves.
    TookForeignAvailable,
    /// The PMM wrote into a buffer while the guest ran another session there.
    WroteForeignBuffer,
    /// The PMM wrote into the used ring while it was the guest's to set up, or of another session.
    WroteForeignUsed,
    /// The guest read a used entry that was not written for its session.
    ReadForeignUsed,
    /// The guest saw the used index go backwards, or beyond what it posted.
    UsedIndexJumped,
    /// The guest accepted static words that two PMMs wrote.
    TornStaticWords,
    /// The guest took EpochSeen for the answer to its hello, and no PMM had given one.
    HelloAnsweredByNobody,
}

/// A ghost: whose rings these are. `life` counts the set-ups of one guest's session; 0 is the PMM's cleared half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Session {
    guest: u8,
    epoch: u8,
    life: u8,
}

/// One half of a ring: its index, and the ghost of who stored it for which session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Half {
    of: Session,
    index: u8,
}

/// What `Fault` can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Fault {
    #[default]
    None,
    FeaturesRefused,
    NeedsReset,
}

/// The shared words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Words {
    pmm_epoch: u8,
    driver_epoch: u8,
    /// Ghost: which guest stored DriverEpoch.
    hello_of: u8,
    epoch_seen: u8,
    /// Ghost: whose hello EpochSeen answers; 0 is nobody's.
    seen_of: u8,
    device_ready: u8,
    driver_ready: u8,
    /// Ghost: the session that DriverReady announces.
    ready_of: Session,
    fault: Fault,
    /// Two of the static words, each holding the number of the PMM that wrote it.
    statics: [u8; 2],
    /// Status is not 0.
    status: bool,
    /// QueueNum is not the poison: a plain guest asks for a queue.
    queue_num: bool,
    /// Ghost: which guest asked.
    queue_of: Session,
    /// Ghost: the number of the PMM that acknowledged last.
    answered_by: u8,
    available: Half,
    used: Half,
}

/// Where the PMM is. Each names what it does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PmmAt {
    /// Publish: wait for the predecessor to be gone, load PmmEpoch.
    #[default]
    Begin,
    /// Publish: PmmEpoch := odd.
    StoreOdd,
    /// Publish: EpochSeen := 0.
    ZeroSeen,
    /// Publish: DeviceReady := 0.
    ZeroReady,
    /// Publish: Fault := 0.
    ZeroFault,
    /// Publish: the first static word.
    StaticA,
    /// Publish: the second one.
    StaticB,
    /// Publish: d0 := DriverEpoch.
    Snapshot,
    /// Publish: PmmEpoch := even.
    StoreEven,
    /// The loop: every look starts here.
    Serve,
    /// Adopt: stop and drain.
    AdoptDrain,
    /// Adopt: own half of the ring.
    AdoptClear,
    /// Adopt: DeviceReady := 0.
    AdoptReady,
    /// Adopt: Fault := 0.
    AdoptFault,
    /// Adopt: EpochSeen := DriverEpoch.
    AdoptSeen,
    /// Start: DeviceReady := epoch, or Fault := features refused.
    StartDevice,
    /// Run: DriverEpoch and Status were as before, take one batch.
    Batch,
    /// Run: the buffer is written, now the used ring.
    WriteUsed,
    /// Fault: stop and drain.
    FaultDrain,
    /// Fault: Fault := needs reset.
    FaultStore,
    /// Device reset: drain.
    ResetDrain,
    /// Device reset: own half of the ring.
    ResetClear,
    /// Device reset: Fault := 0.
    ResetFault,
    /// Device reset: DeviceReady := 0.
    ResetReady,
    /// A plain guest: end the extended session.
    EndExtended,
    /// A guest whose doorbell's peer hung up, or that was silent for longer than its user allows, is taken for gone: stop,
    /// drain, release.
    PresumeGone,
    /// The end of an extended session that is not followed by Publish: EpochSeen := 0.
    EndSeen,
    /// A plain guest asks for a queue: drain.
    PlainDrain,
    /// Own half of the ring.
    PlainClear,
    /// The available index as it stands.
    PlainTake,
    /// The acknowledgement, poison first (one word here; a death between those two stores is the case that the plain
    /// profile is known not to survive).
    PlainAnswer,
    /// Shutdown: stop, drain, publish what is finished.
    ShutDrain,
    /// Shutdown: PmmEpoch := odd.
    ShutOdd,
    /// Shutdown: no process any more.
    Off,
}

/// What the PMM believes it serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Mode {
    #[default]
    Nobody,
    Extended,
    Plain,
}

/// The PMM's private state. All of it dies with the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Pmm {
    number: u8,
    at: PmmAt,
    odd: u8,
    d0: u8,
    mode: Mode,
    adopted: u8,
    /// Ghost: whose hello that was.
    adopted_of: u8,
    /// The DriverEpoch being adopted, and its ghost.
    hello: u8,
    hello_of: u8,
    /// Its own copies of DeviceReady ≠ 0 and Fault ≠ 0: it never reads back what it wrote.
    ready: bool,
    faulted: bool,
    /// Ghost: the session that it serves.
    serving: Session,
    taken: u8,
    done: u8,
    /// A request that was taken and is not used yet.
    work: Option<Session>,
}

/// Where the guest is. Each names what it does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GuestAt {
    /// Hello: p := PmmEpoch, even and not 0.
    #[default]
    LoadEpoch,
    /// Hello: copy the first static word.
    CopyA,
    /// Hello: copy the second one.
    CopyB,
    /// Hello: PmmEpoch still p.
    RecheckCopy,
    /// Hello: Status := 0.
    ZeroStatus,
    /// Hello: DriverReady := 0.
    ZeroReady,
    /// Hello: load DriverEpoch.
    LoadOwn,
    /// Hello: load EpochSeen, which the new epoch must not equal.
    LoadSeen,
    /// Hello: store DriverEpoch.
    StoreHello,
    /// Hello: wait for EpochSeen.
    WaitSeen,
    /// Hello: EpochSeen has answered; PmmEpoch still p.
    WaitPmm,
    /// Start: rings and buffers.
    SetUp,
    /// Start: DriverReady := epoch.
    StoreReady,
    /// Start: wait for DeviceReady or Fault; it may post already.
    Started,
    /// Run.
    Running,
    /// Harvest what was used before the PMM went.
    Harvest,
    /// Device reset: read what was used before it.
    HarvestReset,
    /// Device reset: DriverReady := 0.
    ClearReady,
    /// Device reset: wait for DeviceReady = 0, and Fault = 0 if there was one.
    WaitReset,
    /// The same, DeviceReady was 0 and Fault is looked at.
    WaitFault,
    /// The same, both were 0; PmmEpoch still p.
    RecheckReset,
    /// A plain guest: Status := 1.
    PlainStatus,
    /// A plain guest: asks for its queue.
    PlainAsk,
    /// A plain guest: waits for the acknowledgement.
    PlainWait,
    /// A plain guest runs.
    PlainRunning,
}

/// The guest's private state. All of it dies with a reboot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Guest {
    number: u8,
    at: GuestAt,
    p: u8,
    copy: [u8; 2],
    epoch: u8,
    seen: u8,
    life: u8,
    posted: u8,
    popped: u8,
    /// With [`Rule::HarvestFirst`] off: a session whose used entries are still to be read.
    owed: bool,
}

impl Guest {
    fn session(&self) -> Session {
        Session { guest: self.number, epoch: self.epoch, life: self.life }
    }

    /// Whether it relies on its rings and buffers being its own, or written for its own session.
    fn relies(&self) -> bool {
        use GuestAt::*;
        matches!(self.at, SetUp | StoreReady | Started | Running | Harvest | HarvestReset | PlainRunning)
    }
}

/// Everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    words: Words,
    pmm: Pmm,
    guest: Guest,
    /// What a dead PMM had begun, and the used index it would store.
    orphan: Option<(Session, u8)>,
    /// What the environment may still do.
    left: Hardships,
    broken: Option<Broken>,
}

/// How often the environment may strike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hardships {
    /// Deaths of the PMM, its orderly shutdowns included.
    pub pmm: u8,
    /// Reboots of the guest.
    pub guest: u8,
    /// Reboots into a plain guest.
    pub plain: u8,
    /// Broken chains that the PMM finds, or features that it refuses.
    pub faults: u8,
    /// Device resets that the driver asks for.
    pub resets: u8,
    /// Guests that live and are taken for gone (what is between the two sides was restarted, say).
    pub silences: u8,
}

/// The model and its parameters.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// The rules that are switched off.
    pub without: Vec<Rule>,
    /// What the region holds at first.
    pub region: Region,
    /// How often the environment may strike.
    pub hardships: Hardships,
    /// How many entries a session posts.
    pub posts: u8,
}

type Out<'a> = &'a mut Vec<Move<State>>;

impl Handshake {
    fn rule(&self, rule: Rule) -> bool {
        !self.without.contains(&rule)
    }

    fn deaths(&self, s: &State, out: Out) {
        let mut go = |step, hardship, change: &dyn Fn(&mut State)| {
            let mut next = *s;
            change(&mut next);
            out.push(Move { step, hardship, next });
        };
        if s.left.pmm > 0 && !matches!(s.pmm.at, PmmAt::Begin | PmmAt::Off) {
            go("*** PMM is killed", true, &|n| {
                n.left.pmm -= 1;
                if let Some(of) = n.pmm.work {
                    n.orphan = Some((of, n.pmm.done + 1));
                }
                n.pmm = Pmm { number: n.pmm.number + 1, ..Pmm::default() };
            });
        }
        if s.left.guest > 0 && (s.guest.at != GuestAt::LoadEpoch || s.guest.epoch != 0) {
            go("*** guest reboots", true, &|n| {
                n.left.guest -= 1;
                n.guest = Guest { number: n.guest.number + 1, ..Guest::default() };
            });
        }
        if s.left.plain > 0 && (s.guest.at != GuestAt::LoadEpoch || s.guest.epoch != 0) {
            go("*** guest reboots, and is a plain one", true, &|n| {
                n.left.plain -= 1;
                let number = n.guest.number + 1;
                n.guest = Guest { number, life: 1, at: GuestAt::PlainStatus, ..Guest::default() };
            });
        }
        if let Some((of, index)) = s.orphan {
            go("what the dead PMM had begun is written", false, &|n| {
                n.orphan = None;
                write_buffer(n, of);
                write_used(n, of, index);
            });
            go("what the dead PMM had begun is dropped", false, &|n| n.orphan = None);
        }
    }
}

impl Spec for Handshake {
    type State = State;
    type Broken = Broken;

    fn start(&self) -> Vec<State> {
        let old = Half { of: Session { guest: 99, epoch: 5, life: 1 }, index: 2 };
        let stale = Words {
            pmm_epoch: 4,
            driver_epoch: 5,
            hello_of: 99,
            epoch_seen: 5,
            seen_of: 99,
            device_ready: 5,
            driver_ready: 5,
            ready_of: old.of,
            available: old,
            used: old,
            ..Words::default()
        };
        let words = match self.region {
            Region::Fresh => Words::default(),
            Region::Stale => stale,
            Region::Ahead => Words { epoch_seen: 6, device_ready: 6, driver_ready: 6, ..stale },
            Region::Wrapping => Words {
                pmm_epoch: 254,
                driver_epoch: 255,
                epoch_seen: 255,
                device_ready: 255,
                driver_ready: 255,
                ..stale
            },
        };
        vec![State {
            words,
            pmm: Pmm { number: 1, ..Pmm::default() },
            guest: Guest { number: 1, ..Guest::default() },
            orphan: None,
            left: self.hardships,
            broken: None,
        }]
    }

    fn moves(&self, s: &State, out: Out) {
        if s.broken.is_none() {
            self.pmm(s, out);
            self.guest(s, out);
            self.deaths(s, out);
        }
    }

    fn broken(&self, s: &State) -> Option<Broken> {
        s.broken
    }

    fn goal(&self, s: &State) -> bool {
        let (w, p, g) = (&s.words, &s.pmm, &s.guest);
        let all = g.posted == self.posts && g.popped == self.posts && s.broken.is_none();
        match g.at {
            GuestAt::Running => all && p.ready && p.serving == g.session() && w.pmm_epoch == g.p,
            // A plain guest does not survive its PMM: the next one says that it must be rebooted.
            GuestAt::PlainRunning => all || w.answered_by != p.number,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{caught, safe, stranded, verify};

    const NONE: Hardships = Hardships { pmm: 0, guest: 0, plain: 0, faults: 0, resets: 0, silences: 0 };
    const ONE_OF_EACH: Hardships = Hardships { pmm: 1, guest: 1, ..NONE };
    const DEVICE: Hardships = Hardships { faults: 1, resets: 1, ..NONE };
    const PLAIN: Hardships = Hardships { plain: 1, guest: 1, ..NONE };

    fn all(region: Region, hardships: Hardships) -> Handshake {
        Handshake { without: Vec::new(), region, hardships, posts: 1 }
    }

    fn without(rule: Rule, region: Region, hardships: Hardships) -> Handshake {
        Handshake { without: vec![rule], ..all(region, hardships) }
    }

    /// Asserts that no safety property fails, but that some state has no way back to a running link.
    fn strands(model: &Handshake) {
        safe(model).expect("safe, but not live");
        println!("{}", stranded(model).expect("some state that cannot recover"));
    }

    #[test]
    fn any_two_deaths_in_a_fresh_region() {
        verify(&all(Region::Fresh, ONE_OF_EACH));
        verify(&all(Region::Fresh, Hardships { pmm: 2, ..NONE }));
        verify(&all(Region::Fresh, Hardships { guest: 2, ..NONE }));
    }

    #[test]
    fn three_deaths_with_two_buffers_in_flight() {
        verify(&Handshake { posts: 2, ..all(Region::Fresh, ONE_OF_EACH) });
        verify(&all(Region::Fresh, Hardships { pmm: 2, guest: 1, ..NONE }));
        verify(&all(Region::Fresh, Hardships { pmm: 1, guest: 2, ..NONE }));
    }

    #[test]
    fn deaths_in_yesterdays_region() {
        verify(&all(Region::Stale, ONE_OF_EACH));
        verify(&all(Region::Ahead, ONE_OF_EACH));
        verify(&all(Region::Wrapping, ONE_OF_EACH));
    }

    #[test]
    fn faults_refusals_and_resets() {
        verify(&all(Region::Fresh, Hardships { faults: 2, resets: 2, ..NONE }));
        verify(&all(Region::Stale, Hardships { faults: 1, resets: 1, guest: 1, ..NONE }));
        verify(&all(Region::Stale, Hardships { faults: 1, resets: 1, pmm: 1, ..NONE }));
    }

    #[test]
    fn deaths_in_the_middle_of_faults_and_resets() {
        verify(&all(Region::Stale, Hardships { faults: 1, resets: 1, ..ONE_OF_EACH }));
    }

    #[test]
    fn guests_that_are_presumed_gone_come_back() {
        verify(&all(Region::Fresh, Hardships { silences: 2, ..NONE }));
        verify(&all(Region::Stale, Hardships { silences: 1, ..ONE_OF_EACH }));
        verify(&all(Region::Fresh, Hardships { silences: 1, ..DEVICE }));
    }

    #[test]
    fn plain_and_extended_guests_in_turn() {
        verify(&all(Region::Fresh, Hardships { plain: 2, guest: 1, ..NONE }));
        verify(&all(Region::Fresh, Hardships { plain: 1, guest: 1, pmm: 1, ..NONE }));
    }

    #[test]
    fn publish_needs_an_odd_epoch() {
        caught(&without(Rule::OddWhileWritten, Region::Fresh, ONE_OF_EACH), Broken::TornStaticWords);
    }

    #[test]
    fn publish_needs_a_predecessor_that_is_gone() {
        caught(&without(Rule::WaitForPredecessor, Region::Fresh, ONE_OF_EACH), Broken::WroteForeignUsed);
    }

    #[test]
    fn publish_must_not_zero_the_region_under_a_live_guest() {
        caught(&without(Rule::KeepRegion, Region::Fresh, ONE_OF_EACH), Broken::TornStaticWords);
    }

    #[test]
    fn publish_needs_the_snapshot_d0() {
        caught(&without(Rule::SnapshotDriverEpoch, Region::Stale, ONE_OF_EACH), Broken::WroteForeignUsed);
    }

    #[test]
    fn publish_must_skip_epoch_zero() {
        strands(&without(Rule::PmmEpochSkipsZero, Region::Wrapping, ONE_OF_EACH));
    }

    /// EpochSeen = 0 is for those who read the state from memory: the hand-shake itself is held by the hello that
    /// skips EpochSeen's value. This is the one rule that nothing here fails without.
    #[test]
    fn zeroing_epoch_seen_is_a_second_line() {
        verify(&without(Rule::SeenZeroed, Region::Ahead, ONE_OF_EACH));
        verify(&without(Rule::SeenZeroed, Region::Wrapping, ONE_OF_EACH));
    }

    #[test]
    fn hello_needs_a_second_look_at_the_epoch_after_the_copy() {
        caught(&without(Rule::RecheckAfterCopy, Region::Fresh, ONE_OF_EACH), Broken::TornStaticWords);
    }

    #[test]
    fn hello_needs_a_second_look_at_the_epoch_while_waiting() {
        strands(&without(Rule::RecheckWhileWaiting, Region::Fresh, ONE_OF_EACH));
    }

    #[test]
    fn hello_must_clear_status() {
        strands(&without(Rule::StatusCleared, Region::Fresh, PLAIN));
    }

    #[test]
    fn hello_must_clear_driver_ready() {
        caught(&without(Rule::DriverReadyCleared, Region::Ahead, ONE_OF_EACH), Broken::WroteForeignBuffer);
    }

    #[test]
    fn hello_must_skip_zero() {
        caught(
            &without(Rule::DriverEpochSkipsZero, Region::Wrapping, ONE_OF_EACH),
            Broken::HelloAnsweredByNobody,
        );
    }

    #[test]
    fn hello_must_skip_what_epoch_seen_holds() {
        caught(
            &without(Rule::DriverEpochSkipsSeen, Region::Ahead, ONE_OF_EACH),
            Broken::HelloAnsweredByNobody,
        );
    }

    #[test]
    fn hello_comes_after_the_harvest() {
        caught(&without(Rule::HarvestFirst, Region::Fresh, ONE_OF_EACH), Broken::UsedIndexJumped);
    }

    #[test]
    fn adoption_needs_the_drain() {
        caught(&without(Rule::Drain, Region::Fresh, ONE_OF_EACH), Broken::WroteForeignBuffer);
    }

    #[test]
    fn adoption_resets_before_it_answers() {
        caught(&without(Rule::ResetBeforeSeen, Region::Fresh, ONE_OF_EACH), Broken::WroteForeignUsed);
    }

    #[test]
    fn start_needs_driver_ready() {
        caught(&without(Rule::WaitDriverReady, Region::Fresh, ONE_OF_EACH), Broken::TookForeignAvailable);
    }

    #[test]
    fn start_must_hold_driver_ready_until_it_is_answered() {
        caught(&without(Rule::HoldDriverReady, Region::Fresh, DEVICE), Broken::WroteForeignUsed);
    }

    #[test]
    fn reset_must_wait_for_device_ready() {
        caught(&without(Rule::WaitDeviceReady, Region::Fresh, DEVICE), Broken::WroteForeignUsed);
    }

    /// Where features were refused DeviceReady was 0 all the time: it acknowledges nothing.
    #[test]
    fn reset_after_a_refusal_must_wait_for_fault() {
        caught(&without(Rule::WaitFaultZero, Region::Fresh, DEVICE), Broken::WroteForeignUsed);
    }

    /// The zero that a new PMM publishes is not the answer to a reset that the old one was asked for.
    #[test]
    fn reset_needs_a_second_look_at_the_epoch() {
        let hardships = Hardships { pmm: 1, resets: 1, ..NONE };
        caught(&without(Rule::RecheckAfterReset, Region::Fresh, hardships), Broken::UsedIndexJumped);
    }

    #[test]
    fn reset_needs_the_drain() {
        caught(&without(Rule::DrainBeforeReset, Region::Fresh, DEVICE), Broken::WroteForeignBuffer);
    }

    #[test]
    fn a_guest_that_was_presumed_gone_needs_a_new_epoch() {
        strands(&without(Rule::PublishAtEnd, Region::Fresh, Hardships { silences: 1, ..NONE }));
    }

    #[test]
    fn a_plain_guest_must_be_seen() {
        strands(&without(Rule::LookAtStatus, Region::Fresh, PLAIN));
    }

    #[test]
    fn a_plain_guest_is_answered_after_the_extended_session_ended() {
        caught(&without(Rule::EndExtendedFirst, Region::Fresh, PLAIN), Broken::WroteForeignBuffer);
    }
}
