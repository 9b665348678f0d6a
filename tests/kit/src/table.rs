//! Tables of named scenarios, of which `docs/bad-input.md` has the names: one that is gone from either is noticed.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

const PAGE: &str = include_str!("../../../docs/bad-input.md");

/// Runs every scenario of the table that the page has under this heading. Panics with the names of those that failed,
/// or that one of the two does not have.
pub fn run<F: FnOnce()>(heading: &str, scenarios: impl IntoIterator<Item = (&'static str, F)>) {
    let sections = PAGE.split("\n## ").filter_map(|section| section.split_once('\n'));
    let (_, section) = sections.into_iter().find(|(title, _)| *title == heading).expect("the page's heading");
    let mut promised: BTreeSet<&str> = section.lines().filter_map(|line| line.strip_prefix("- ")).collect();
    let (mut failed, mut others, mut count) = (Vec::new(), Vec::new(), 0);
    for (name, scenario) in scenarios {
        let ok = catch_unwind(AssertUnwindSafe(scenario)).is_ok();
        println!("{} {name}", if ok { "ok    " } else { "FAILED" });
        count += 1;
        failed.extend((!ok).then_some(name));
        others.extend((!promised.remove(name)).then_some(name));
    }
    assert!(failed.is_empty(), "{} of {count} scenarios failed: {failed:#?}", failed.len());
    assert!(others.is_empty(), "docs/bad-input.md has not, or not so often, under '{heading}': {others:#?}");
    assert!(promised.is_empty(), "docs/bad-input.md promises under '{heading}': {promised:#?}");
}
