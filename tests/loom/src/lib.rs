//! The split ring under loom: every interleaving of a driver and a device, and every stale value that the memory
//! model lets a load return.
//!
//! The rings are generic over their memory, so they run here unchanged on [`memory::Memory`], which is made of loom's
//! atomics. Three things are shown, each by a test with a name (`tests/split.rs`):
//!
//! - **Nothing is lost and nothing is seen half**: in [`scenario::traffic`] both sides send, sleep and wake each other
//!   with EVENT_IDX; a lost wake-up is a deadlock, which loom reports, and an entry or payload that is touched
//!   before it was handed over is a race, which loom reports, too.
//! - **Every barrier matters**: [`sites`] finds every `publish`, `observe` and `settle` in the source of the ring; for
//!   each of them there is a test that takes just that one away and expects the failure.
//! - **No barrier is forgotten by the tests**: the table of those tests is compared with what [`sites`] finds.
//!
//! Index and event words are atomics. Everything that an index hands over (descriptors, ring entries, payload) is a
//! cell whose accesses loom checks for order: stronger than reading a stale value, since a race is reported even where
//! the value happens to be right, and it holds in both directions: a device that gives a buffer back has finished
//! reading it.

pub mod memory;
pub mod scenario;
pub mod sites;

use memory::Weakened;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Explores a scenario with a barrier taken away, or none: every execution in which a side is interrupted against its
/// will at most `preemptions` times, or simply every one. Returns how many executions there were, or the first
/// failure's words.
pub fn explore(
    scenario: impl Fn(Weakened) + Send + Sync + 'static,
    weakened: Weakened,
    preemptions: Option<usize>,
) -> Result<u64, String> {
    let executions = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&executions);
    let mut builder = loom::model::Builder::new();
    builder.max_threads = 2;
    builder.max_branches = 2_000;
    builder.preemption_bound = preemptions;
    let run = move || {
        count.fetch_add(1, Ordering::Relaxed);
        scenario(weakened);
    };
    match catch_unwind(AssertUnwindSafe(|| builder.check(run))) {
        Ok(()) => Ok(executions.load(Ordering::Relaxed)),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()))
            .unwrap_or_else(|| "a panic without words".to_string())),
    }
}
