//! `cargo xtask bench`, and the test that it measures what its page shows. No speed is asserted: that would fail on a
//! busy machine and say nothing on an idle one.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;

use super::{Context, Skipped, checks};
use crate::{paths, process};

const PAGE: &str = "docs/performance.md";

fn program() -> std::process::Command {
    checks::cargo(&["run", "--quiet", "--release", "--package", "hvl-bench", "--"])
}

/// The measurements are a program of their own.
pub fn bench(arguments: &[String]) -> Result<()> {
    let status = program().args(arguments).status()?;
    ensure!(status.success(), "the measurements failed ({status}); see above");
    Ok(())
}

/// Measures one round: every row of the page, by everyone who is compared in it, and nothing else. On one processor the
/// rows that need two are left out by the program, which says so, and counted here as skipped.
pub fn measures_what_its_page_shows(context: &Context) -> Result<()> {
    let json = paths::run_dir("bench").join("one-round.json");
    std::fs::create_dir_all(paths::run_dir("bench"))?;
    process::run(program().args(["--rounds", "1", "--json"]).arg(&json))?;
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json)?)?;
    let cases = report["cases"].as_array().context("the report has no cases")?;
    let title = |case: &Value| case["title"].as_str().map(String::from).context("a case has no title");
    let measured: BTreeSet<String> = cases.iter().map(title).collect::<Result<_>>()?;
    for case in cases {
        let limits = case["limits"].as_array().context("a case has no limits")?;
        let compared =
            limits.iter().chain([&case["ours"]]).chain(case["stock"].is_object().then_some(&case["stock"]));
        for contender in compared {
            let samples =
                contender["samples"].as_array().with_context(|| format!("no samples: {contender}"))?;
            let sound = |sample: &Value| sample.as_f64().is_some_and(|time| time.is_finite() && time > 0.0);
            ensure!(samples.len() == 1 && samples.iter().all(sound), "no measurement: {contender}");
        }
        ensure!(!limits.is_empty(), "{}: compared with nothing", title(case)?);
    }
    let stock = cases.iter().filter(|case| case["stock"].is_object()).count();
    let one_core = report["machine"]["cores"] == 1;
    let expected = if one_core { 2 } else { 5 };
    ensure!(stock == expected, "{stock} cases are compared with the stock pair, not {expected}");
    if let Some(why) = report["skipped"].as_str() {
        return Err(Skipped(format!("the network's cases: {why}")).into());
    }
    let page = std::fs::read_to_string(paths::root().join(PAGE))?;
    let results = page
        .split_once("<!-- results: begin -->")
        .and_then(|(_, rest)| rest.split_once("<!-- results: end -->"));
    let (results, _) = results.with_context(|| format!("{PAGE} has no marks around its results"))?;
    // Rows begin with a title, or with nothing below one; the head and its rule are no rows.
    let first = |line: &str| line.strip_prefix("| ")?.split(" | ").next().map(|cell| cell.trim().to_owned());
    let shown: BTreeSet<String> = results
        .lines()
        .filter_map(first)
        .filter(|cell| cell.contains(' ') && cell != "over a link")
        .filter(|title| !(one_core && title.ends_with(", two cores")))
        .collect();
    ensure!(shown == measured, "{PAGE} has the rows {shown:#?}, and measured are {measured:#?}");
    context.skip(usize::from(one_core));
    Ok(())
}
