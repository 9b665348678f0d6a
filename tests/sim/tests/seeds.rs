//! What `cargo test` asks of the simulator: that seeds hold, that they repeat, and that it finds what is planted. The
//! long runs are `cargo run -p hvl-sim --release -- --seeds N`.

use hvl_sim::coverage::Coverage;
use hvl_sim::fault::Fault;
use hvl_sim::plan::SEED_BITS;
use hvl_sim::run::{Report, run};

fn failure(report: &Report) -> Option<String> {
    let what = report.failure.as_ref()?;
    let seed = report.plan.seed;
    let trace = report.trace.join("\n");
    Some(format!(
        "seed {seed}: {what}\n{}\n{trace}\nagain: cargo run -p hvl-sim -- --seed {seed} --trace",
        report.plan.summary()
    ))
}

fn hold(seeds: std::ops::Range<u64>) {
    let mut coverage = Coverage::new();
    for seed in seeds {
        let report = run(seed, None, &mut coverage, 60, false);
        assert!(report.failure.is_none(), "{}", failure(&report).unwrap_or_default());
    }
}

#[test]
fn a_hundred_seeds_hold() {
    hold(0..100);
}

#[test]
fn another_hundred_seeds_hold() {
    hold(100..200);
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in 0..40 {
        let [one, two] = [(); 2].map(|()| run(seed, None, &mut Coverage::new(), 0, false));
        assert_eq!((one.hash, one.statistics), (two.hash, two.statistics), "seed {seed}");
    }
}

#[test]
fn a_directed_seed_dies_where_it_is_told_to() {
    let mut coverage = Coverage::new();
    run(8, None, &mut coverage, 0, false);
    let holes = coverage.holes();
    assert!(!holes.is_empty(), "one seed does not die everywhere");
    for (site, seed) in holes.iter().step_by(7) {
        let mut directed = Coverage::new();
        let seed = seed | u64::from(Coverage::hash(*site) + 1) << SEED_BITS;
        let report = run(seed, None, &mut directed, 60, false);
        assert!(report.failure.is_none(), "{}", failure(&report).unwrap_or_default());
        coverage.add(&directed);
        assert!(!coverage.holes().iter().any(|(hole, _)| hole == site), "seed {seed} did not die at {site}");
    }
}

/// Every `share`-th planted fault, from `first` on, fails some seed of the first thousand.
fn found(first: usize, share: usize) {
    for &fault in Fault::ALL.iter().skip(first).step_by(share) {
        let mut coverage = Coverage::new();
        let found = (0..1000).find(|seed| run(*seed, Some(fault), &mut coverage, 0, false).failure.is_some());
        assert!(found.is_some(), "no seed of 1000 finds the planted fault {}", fault.name());
    }
}

#[test]
fn every_planted_fault_is_found_within_a_thousand_seeds() {
    found(0, 2);
}

#[test]
fn every_other_planted_fault_is_found_within_a_thousand_seeds() {
    found(1, 2);
}
