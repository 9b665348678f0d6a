//! The named tests: the ring as it is, and the ring without each one of its barriers.

use hvl_loom::explore;
use hvl_loom::memory::Weakened;
use hvl_loom::scenario::{Look, Traffic, look, traffic};
use hvl_loom::sites::{self, Barrier, Half, Site};

/// Interruptions that the long scenarios are explored to. One is enough for every failure that is shown below.
const PREEMPTIONS: Option<usize> = Some(4);

fn holds(preemptions: Option<usize>, scenario: impl Fn(Weakened) + Send + Sync + 'static) {
    match explore(scenario, None, preemptions) {
        Ok(executions) => eprintln!("{executions} executions"),
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn no_wake_up_is_lost_and_all_is_seen_whole() {
    holds(PREEMPTIONS, |weakened| traffic(Traffic::SINGLE, weakened));
}

#[test]
fn nor_in_batches_of_two() {
    holds(PREEMPTIONS, |weakened| traffic(Traffic { batch: 2, ..Traffic::SINGLE }, weakened));
}

#[test]
fn nor_with_two_chains_and_more_interruptions() {
    holds(Some(5), |weakened| traffic(Traffic { chains: 2, ..Traffic::SINGLE }, weakened));
}

#[test]
fn nor_without_event_idx() {
    holds(PREEMPTIONS, |weakened| traffic(Traffic { event_idx: false, ..Traffic::SINGLE }, weakened));
}

#[test]
fn a_look_lets_one_read_what_was_stored_before_it() {
    for question in [Look::HasUsed, Look::HasAvailable, Look::AllegedPosition] {
        holds(None, move |weakened| look(question, weakened));
    }
}

#[test]
fn without_the_second_look_a_wake_up_is_lost() {
    let how = Traffic { second_look: false, ..Traffic::SINGLE };
    let failure = explore(move |weakened| traffic(how, weakened), None, PREEMPTIONS)
        .expect_err("it holds all the same");
    assert!(failure.contains(LOST), "{failure}");
}

/// How loom reports that both sides sleep.
const LOST: &str = "deadlock";
/// How it reports that something was touched before it was handed over.
const TORN: &str = "Causality violation";

/// One test for each barrier, and the table of all of them.
macro_rules! without {
    ($($name:ident: $half:ident, $function:literal, $barrier:ident, $scenario:expr => $failure:ident;)*) => {
        $(#[test]
        fn $name() {
            let site = sites::find(Half::$half, $function, Barrier::$barrier);
            let scenario = $scenario;
            match explore(scenario, Some(site), PREEMPTIONS) {
                Err(failure) => assert!(failure.contains($failure), "it fails, but by another cause: {failure}"),
                Ok(executions) => panic!("{site:?} is not needed: {executions} executions pass without it"),
            }
        })*
        const TRIED: &[(Half, &str, Barrier)] = &[$((Half::$half, $function, Barrier::$barrier)),*];
    };
}

without! {
    an_entry_is_seen_half_without_the_drivers_publish:
        Driver, "publish", Publish, |w| traffic(Traffic::SINGLE, w) => TORN;
    a_kick_is_lost_without_the_drivers_settle_after_publishing:
        Driver, "publish", Settle, |w| traffic(Traffic::SINGLE, w) => LOST;
    a_completion_is_seen_half_without_the_drivers_observe:
        Driver, "used_index", Observe, |w| traffic(Traffic::SINGLE, w) => TORN;
    a_call_is_lost_without_the_drivers_settle_before_sleeping:
        Driver, "arm", Settle, |w| traffic(Traffic::SINGLE, w) => LOST;
    an_old_word_is_read_without_the_drivers_observe:
        Driver, "used_index", Observe, |w| look(Look::HasUsed, w) => TORN;
    a_completion_is_seen_half_without_the_devices_publish:
        Device, "publish", Publish, |w| traffic(Traffic::SINGLE, w) => TORN;
    a_call_is_lost_without_the_devices_settle_after_publishing:
        Device, "publish", Settle, |w| traffic(Traffic::SINGLE, w) => LOST;
    an_entry_is_seen_half_without_the_devices_observe:
        Device, "take", Observe, |w| traffic(Traffic::SINGLE, w) => TORN;
    a_kick_is_lost_without_the_devices_settle_before_sleeping:
        Device, "arm", Settle, |w| traffic(Traffic::SINGLE, w) => LOST;
    an_old_word_is_read_without_the_observe_of_has_available:
        Device, "has_available", Observe, |w| look(Look::HasAvailable, w) => TORN;
    an_old_word_is_read_without_the_observe_of_alleged_position:
        Device, "alleged_position", Observe, |w| look(Look::AllegedPosition, w) => TORN;
}

#[test]
fn every_barrier_of_the_ring_has_a_test() {
    let mut found: Vec<_> = sites::all()
        .into_iter()
        .map(|Site { half, function, barrier, .. }| (half, function, barrier))
        .collect();
    let mut tried = TRIED.to_vec();
    found.sort_unstable();
    tried.sort_unstable();
    // One that serves two callers is tried with each.
    tried.dedup();
    assert_eq!(found, tried, "left: in the ring's source; right: with a test that takes it away");
}
