//! What a hostile or broken guest does to the PMM, as a table of named scenarios.
//!
//! Each scenario meets a PMM that serves a guest, and does its worst. Then the table's runner asks, for every one of
//! them, what a well-behaved neighbour would: the other device of the same link works at once; after a reset, or at the
//! latest after the next hello, so does the one that was abused; the PMM did a bounded amount of work; and no byte
//! outside the places that the guest may have written to has changed. The frontend's table, with a hostile PMM,
//! is in `frontend/tests`.

mod devices;
mod header;
mod rings;

use hvl_shared_abi::ring::split::DriverRing;
use hvl_shared_abi::{Features, Mem};
use hvl_test_kit::guest::{CONSOLE, Guest, RNG};
use hvl_test_kit::{LEN, Pmm, region};

/// A PMM and a guest whose entropy device runs, with a ring that the scenario may abuse.
pub struct Stage {
    /// The PMM.
    pub pmm: Pmm,
    /// The guest.
    pub guest: Guest,
    /// The entropy device's ring.
    pub ring: DriverRing<'static>,
}

impl Stage {
    fn set() -> Stage {
        let mut pmm = Pmm::start(region());
        let guest = Guest::boot(&mut pmm);
        let ring = guest.ring(RNG, 0, Features::VERSION_1);
        guest.start(&mut pmm, RNG, Features::VERSION_1);
        Stage { pmm, guest, ring }
    }
}

/// How the abused device is expected to come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on as if nothing had happened; bad requests were completed with length 0 and counted.
    Unharmed,
    /// It has a Fault, was counted, and works after a reset.
    Broken,
    /// It works after the next hello.
    Restart,
    /// The guest has overwritten what only a PMM stores, and when: it works after the PMM is started again.
    RestartPmm,
}

/// One row of the table.
pub struct Scenario {
    /// Its name, as tests print it.
    pub name: &'static str,
    /// What the guest does.
    pub act: fn(&mut Stage),
    /// What is expected of the device.
    pub outcome: Outcome,
}

/// Every scenario.
pub fn scenarios() -> Vec<Scenario> {
    [header::scenarios(), rings::scenarios(), devices::scenarios()].into_iter().flatten().collect()
}

/// Runs one, and looks at it from its neighbours' side. Panics with what went wrong.
pub fn run(scenario: &Scenario) {
    let mut stage = Stage::set();
    stage.guest.draw_from(&mut stage.pmm, &mut stage.ring);
    (scenario.act)(&mut stage);
    let Stage { mut pmm, guest, mut ring } = stage;
    pmm.service();
    match scenario.outcome {
        Outcome::Unharmed => {
            assert_eq!(pmm.device(RNG).fault, "none");
            guest.say(&mut pmm, "the neighbour\n");
            guest.draw_from(&mut pmm, &mut ring);
        }
        Outcome::Broken => {
            let device = pmm.device(RNG);
            assert!(!device.runs && device.fault != "none", "the device is stopped: {}", device.fault);
            assert!(device.ring_faults + device.features_refused > 0, "it is counted");
            guest.say(&mut pmm, "the neighbour\n");
            guest.reset(&mut pmm, RNG);
            guest.draw(&mut pmm);
        }
        Outcome::Restart => {}
        Outcome::RestartPmm => pmm.restart(None),
    }
    // Whatever it was, the next incarnation finds a link that works.
    pmm.pass(20_000);
    let next = Guest::boot(&mut pmm);
    next.draw(&mut pmm);
    next.say(&mut pmm, "again\n");
}

/// A canary over everything behind the pool of the device that is abused: the pool of the other one, and what nobody
/// uses.
pub fn canary(stage: &Stage) -> Canary {
    let end = stage.guest.place(RNG).pool.end();
    for at in (end..LEN).step_by(4) {
        stage.pmm.m.write32(at, !at);
    }
    Canary { end }
}

/// See [`canary`].
pub struct Canary {
    end: u32,
}

impl Canary {
    /// Panics where a byte has changed.
    pub fn check(&self, stage: &Stage) {
        for at in (self.end..LEN).step_by(4) {
            assert_eq!(stage.pmm.m.read32(at), !at, "offset {at:#x} was written");
        }
    }
}

/// The console's window, for scenarios that need it.
pub const OTHER: usize = CONSOLE;
