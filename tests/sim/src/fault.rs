//! Faults that are planted between the code under test and its memory.
//!
//! Each is what a line less, or a line in the wrong place, would do. A simulator that does not find every one of them
//! soon would prove nothing where it finds none.

use hvl_shared_abi::header::reg;

use crate::map::Side;

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// A planted fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $($(#[$doc])* $name),* }
        impl Fault {
            /// All of them.
            pub const ALL: &[Fault] = &[$(Fault::$name),*];
            /// As the command line calls it.
            pub const fn name(self) -> &'static str {
                match self { $(Fault::$name => $text),* }
            }
        }
    };
}

faults! {
    /// The PMM's `publish` is a plain store.
    PmmPublish = "pmm-publish-is-write";
    /// The guest's is.
    GuestPublish = "guest-publish-is-write";
    /// The PMM's `observe` is a plain load.
    PmmObserve = "pmm-observe-is-read";
    /// The guest's is.
    GuestObserve = "guest-observe-is-read";
    /// The PMM's `settle` does nothing.
    PmmSettle = "pmm-no-settle";
    /// The guest's does nothing.
    GuestSettle = "guest-no-settle";
    /// The PMM's `bell` does nothing.
    PmmBell = "pmm-no-bell-barrier";
    /// The guest's does nothing.
    GuestBell = "guest-no-bell-barrier";
    /// The PMM does not clean.
    PmmClean = "pmm-no-clean";
    /// The guest does not.
    GuestClean = "guest-no-clean";
    /// The PMM does not invalidate.
    PmmInvalidate = "pmm-no-invalidate";
    /// The guest does not.
    GuestInvalidate = "guest-no-invalidate";
    /// The available index is stored before the entry.
    AvailBeforeEntry = "avail-index-before-entry";
    /// The used index is stored before the entry.
    UsedBeforeEntry = "used-index-before-entry";
    /// EpochSeen is stored before the rings are clean.
    AdoptBeforeDrain = "adopt-before-drain";
    /// The PMM does not look again after it armed an event index.
    PmmSecondLook = "pmm-no-second-look";
    /// The guest does not.
    GuestSecondLook = "guest-no-second-look";
    /// A hello leaves DriverReady as it is, and the PMM does not compare it with the epoch. (Either alone is covered by
    /// the other.)
    OldReady = "old-driver-ready-is-served";
    /// The guest takes any EpochSeen for the answer to its hello.
    SeenNotCompared = "epoch-seen-not-compared";
    /// The guest never notices another PMM.
    PmmEpochNotCompared = "pmm-epoch-not-compared";
    /// DriverEpoch starts over at each start of the guest.
    EpochRepeats = "driver-epoch-repeats";
    /// PmmEpoch starts over at each start of the PMM.
    PmmEpochRepeats = "pmm-epoch-repeats";
    /// PmmBell is not counted.
    PmmBellLost = "pmm-bell-not-counted";
    /// DriverBell is not counted.
    DriverBellLost = "driver-bell-not-counted";
    /// The guest never says what it has seen.
    DriverSeenLost = "driver-seen-not-stored";
    /// The PMM's own used index survives an adoption.
    UsedIndexKept = "used-index-not-cleared";
}

/// What a planted fault makes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twist {
    /// Nothing.
    None,
    /// The access is not made; a load returns this.
    Skip(u32),
    /// The store is made a number of accesses later.
    Later(u32),
}

impl Fault {
    /// By its name on the command line.
    pub fn parse(name: &str) -> Result<Fault, String> {
        let found = Fault::ALL.iter().find(|fault| fault.name() == name);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = Fault::ALL.iter().map(|fault| fault.name()).collect();
            format!("no such fault; there are: {}", names.join(", "))
        })
    }

    /// Whether it twists accesses to the place of this name at all.
    pub fn is_about(self, name: &str) -> bool {
        let ends: &[&str] = match self {
            Fault::AvailBeforeEntry => &["avail.entry"],
            Fault::UsedBeforeEntry => &["used.entry"],
            Fault::AdoptBeforeDrain => &["used.index", ".DeviceReady"],
            Fault::PmmSecondLook => &["avail.index"],
            Fault::GuestSecondLook | Fault::UsedIndexKept => &["used.index"],
            Fault::OldReady => &[".DriverReady"],
            Fault::SeenNotCompared => &["EpochSeen"],
            Fault::PmmEpochNotCompared | Fault::PmmEpochRepeats => &["PmmEpoch"],
            Fault::EpochRepeats => &["DriverEpoch"],
            Fault::PmmBellLost => &["PmmBell"],
            Fault::DriverBellLost => &["DriverBell"],
            Fault::DriverSeenLost => &["DriverSeen"],
            _ => &[],
        };
        ends.iter().any(|end| name.ends_with(end))
    }

    /// Whether this side leaves out the ordering of a `publish`, `observe`, `settle`, `bell`, `clean`, `invalidate`.
    pub fn drops(self, side: Side, what: crate::world::Op) -> bool {
        use crate::world::Op;
        match (side, what) {
            (Side::Pmm, Op::Publish) => self == Fault::PmmPublish,
            (Side::Guest, Op::Publish) => self == Fault::GuestPublish,
            (Side::Pmm, Op::Observe) => self == Fault::PmmObserve,
            (Side::Guest, Op::Observe) => self == Fault::GuestObserve,
            (Side::Pmm, Op::Settle) => self == Fault::PmmSettle,
            (Side::Guest, Op::Settle) => self == Fault::GuestSettle,
            (Side::Pmm, Op::Bell) => self == Fault::PmmBell,
            (Side::Guest, Op::Bell) => self == Fault::GuestBell,
            (Side::Pmm, Op::Clean) => self == Fault::PmmClean,
            (Side::Guest, Op::Clean) => self == Fault::GuestClean,
            (Side::Pmm, Op::Invalidate) => self == Fault::PmmInvalidate,
            (Side::Guest, Op::Invalidate) => self == Fault::GuestInvalidate,
            _ => false,
        }
    }

    /// What becomes of a store.
    pub fn store(self, side: Side, at: u32, value: u32, name: &str) -> Twist {
        let register = at < hvl_shared_abi::header::WINDOW_SIZE;
        match (self, side) {
            (Fault::AvailBeforeEntry, Side::Guest) if name.ends_with("avail.entry") => Twist::Later(3),
            (Fault::UsedBeforeEntry, Side::Pmm) if name.ends_with("used.entry") => Twist::Later(4),
            (Fault::AdoptBeforeDrain, Side::Pmm)
                if value == 0 && (name.ends_with("used.index") || name.ends_with(".DeviceReady")) =>
            {
                Twist::Later(200)
            }
            (Fault::OldReady, Side::Guest) if value == 0 => Twist::Skip(0),
            (Fault::PmmBellLost, Side::Pmm) if register && at == reg::PMM_BELL => Twist::Skip(0),
            (Fault::DriverBellLost, Side::Guest) if register && at == reg::DRIVER_BELL => Twist::Skip(0),
            (Fault::DriverSeenLost, Side::Guest) if register && at == reg::DRIVER_SEEN => Twist::Skip(0),
            (Fault::UsedIndexKept, Side::Pmm) if value == 0 && name.ends_with("used.index") => Twist::Skip(0),
            _ => Twist::None,
        }
    }

    /// What becomes of a load: `truth` is what memory says, `before` what the last load of this place said, and
    /// `first` whether this side has not loaded it since it started.
    pub fn load(self, side: Side, at: u32, name: &str, look: &Look) -> Twist {
        let register = at < hvl_shared_abi::header::WINDOW_SIZE;
        match (self, side) {
            (Fault::PmmSecondLook, Side::Pmm) if look.after_settle && name.ends_with("avail.index") => {
                Twist::Skip(look.before)
            }
            (Fault::GuestSecondLook, Side::Guest) if look.after_settle && name.ends_with("used.index") => {
                Twist::Skip(look.before)
            }
            (Fault::OldReady, Side::Pmm) if name.ends_with(".DriverReady") && look.truth != 0 => {
                Twist::Skip(look.epoch)
            }
            (Fault::SeenNotCompared, Side::Guest) if register && at == reg::EPOCH_SEEN => {
                Twist::Skip(look.epoch)
            }
            (Fault::PmmEpochNotCompared, Side::Guest) if register && at == reg::PMM_EPOCH => {
                if look.first || look.before == 0 || look.before & 1 == 1 {
                    Twist::None
                } else {
                    Twist::Skip(look.before)
                }
            }
            (Fault::EpochRepeats, Side::Guest) if register && at == reg::DRIVER_EPOCH && look.first => {
                Twist::Skip(0)
            }
            (Fault::PmmEpochRepeats, Side::Pmm) if register && at == reg::PMM_EPOCH && look.first => {
                Twist::Skip(0)
            }
            _ => Twist::None,
        }
    }
}

/// What a twisted load may look at.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// What memory says.
    pub truth: u32,
    /// What the last load of the place said, 0 before the first.
    pub before: u32,
    /// Whether this is the first load of the place since the side started.
    pub first: bool,
    /// Whether this side's last ordering was a `settle`.
    pub after_settle: bool,
    /// DriverEpoch, as memory has it.
    pub epoch: u32,
}
