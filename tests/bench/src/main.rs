//! `hvl-bench`: what a message through the ring costs, and what files, sockets and frames cost that go over a link.
//!
//! Our pair of halves, the stock pair (`virtio-drivers` driving, `virtio-queue` serving), and limits that no ring can
//! beat do the same work ([`cases`]); so do whole links and the system calls that they end in ([`traffic`]); in turn within each of many rounds ([`run`]). Times are medians over rounds;
//! comparisons are medians of the ratios *within* rounds, with their quartiles: what slows the machine down for a
//! while slows both down. The machine is watched ([`machine::Watch`]), and a busy one marks the results.

mod cases;
mod ends;
mod links;
mod machine;
mod report;
mod stats;
mod tap;
mod traffic;

use anyhow::{Context, Result};
use clap::Parser;
use hvl_oracle::Arena;
use links::Place;
use machine::{Cores, Machine, Watch};
use report::{Outcome, Report};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

/// Measures the ring beside the stock pair of queues and beside what memory and kernel cost alone, and what goes over a
/// link beside the system calls that it ends in.
///
/// The network's cases use a TAP in a network namespace of the program's own, which it enters before anything else.
#[derive(Parser)]
#[command(name = "hvl-bench", version)]
struct Options {
    /// Rounds; in each, every contender of every case runs once.
    #[arg(long, value_name = "N", default_value_t = 41, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    rounds: u16,
    /// Few rounds, for a first look.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Only this case; may be given several times.
    #[arg(long, value_name = "CASE", value_parser = RING.into_iter().chain(traffic::NAMES).collect::<Vec<_>>())]
    only: Vec<String>,
    /// Write everything, each round's numbers too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Put the table between the marks of this Markdown page, and a picture of the same name beside it.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Fail unless the ring beats the stock pair in every case, or if the machine was too busy to tell.
    #[arg(long)]
    check: bool,
}

/// The cases of the ring.
const RING: [&str; 5] = ["polled", "batch-1", "batch-32", "pipeline", "blocking"];
/// Rounds of `--quick`.
const QUICK: u16 = 5;
/// Longest time without progress: a round of the slowest contender takes a hundredth of it, even on a busy machine.
const HANG: Duration = Duration::from_secs(60);
/// What is being measured, for the message of a hang.
static NOW: Mutex<String> = Mutex::new(String::new());

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options).and_then(|report| deliver(&options, &report)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hvl-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<Report> {
    if let Some(page) = &options.markdown {
        report::around_results(page)?;
    }
    let machine = Machine::here();
    let cores = Cores::choose();
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    // Before there is a second thread, which would not come along.
    let namespace = if tap::NAMES.iter().any(|name| wanted(name)) { tap::enter() } else { Ok(()) };
    let now = |name: &str, what: &str| {
        if let Ok(mut now) = NOW.lock() {
            *now = format!("{name}, {what}");
        }
    };
    let mut cases = cases::all(cores);
    cases.retain(|case| wanted(case.name));
    let place = traffic::NAMES.iter().any(|name| wanted(name)).then(Place::new).transpose()?;
    let mut skipped = None;
    if let Some(place) = &place {
        let (traffic, why) = traffic::all(cores, place, &wanted, namespace)?;
        cases.extend(traffic);
        skipped = why;
    }
    // After the links, whose PMM takes the signals: in a thread that does not leave them to it they would end the
    // program with its directory left behind.
    machine::guard(HANG, &|| NOW.lock().map_or_else(|_| String::new(), |now| now.clone()));
    Cores::pin(cores.driver);

    let rounds = usize::from(if options.quick { QUICK } else { options.rounds });
    let mut samples: Vec<Vec<Vec<f64>>> =
        cases.iter().map(|case| case.contenders.iter().map(|_| Vec::new()).collect()).collect();
    let mut watch = Watch::start();
    for round in 0..rounds {
        watch.sample();
        let arena = Arena::new();
        for (case, samples) in cases.iter().zip(&mut samples) {
            // Another contender begins in each round, so that none always follows the same one.
            let contenders = case.contenders.len();
            for turn in 0..contenders {
                let which = (round + turn) % contenders;
                let (name, measure) = &case.contenders[which];
                now(case.name, name);
                samples[which].push(measure(arena));
            }
        }
        eprint!("\rround {} of {rounds}", round + 1);
    }
    eprintln!();
    let outcomes = cases.iter().zip(samples).filter_map(|(case, samples)| {
        let named = case.contenders.iter().map(|(name, _)| *name).zip(samples).collect();
        Outcome::new(case, named)
    });
    Ok(Report { machine, rounds, cases: outcomes.collect(), quiet: watch.end(), skipped })
}

fn deliver(options: &Options, report: &Report) -> Result<ExitCode> {
    print!("{}", report.text());
    if let Some(file) = &options.json {
        let json = serde_json::to_string_pretty(report)?;
        std::fs::write(file, json + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(page) = &options.markdown {
        report.write_page(page)?;
    }
    let lost: Vec<&str> =
        report.cases.iter().filter(|case| case.won() == Some(false)).map(|case| case.name).collect();
    if report.cases.iter().all(|case| case.stock.is_none()) {
        println!("\nNothing was measured beside the stock pair.");
    } else if lost.is_empty() {
        println!("\nThe ring beats the stock pair in every case.");
    } else {
        println!("\nThe ring does not beat the stock pair in: {}.", lost.join(", "));
    }
    let failed = options.check && !(lost.is_empty() && report.quiet.warning.is_none());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
