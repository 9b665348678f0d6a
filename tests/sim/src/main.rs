//! Runs seeds, lists where sides died, and prints what replays a failure.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use hvl_sim::coverage::Coverage;
use hvl_sim::fault::Fault;
use hvl_sim::plan::SEED_BITS;
use hvl_sim::run::{Report, run};

/// Both halves of a link in one process: memory, time, doorbells, interleavings and deaths decided by a seed.
///
/// Exits with 0 if every seed held, with 1 at the first that did not.
#[derive(Parser)]
struct Arguments {
    /// Run this seed alone; decimal, or 0x and hexadecimal digits.
    #[arg(long, value_parser = number)]
    seed: Option<u64>,
    /// With --seed: print every access that is kept, not only the last ones.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Stop after this many seconds, however many seeds have run.
    #[arg(long)]
    seconds: Option<u64>,
    /// How many run at a time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Plant this fault, which a run should find; "list" lists them.
    #[arg(long)]
    plant: Option<String>,
    /// List every access that was met, how often it was, and how often a side died there.
    #[arg(long)]
    places: bool,
    /// Fail unless a side died at every place of this list, and it has every place that is met usually.
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    list: Option<PathBuf>,
    /// Write the list instead of comparing with it.
    #[arg(long, requires = "list")]
    write: bool,
    /// Lines of the trace to print for a seed that fails.
    #[arg(long, default_value_t = 60)]
    lines: usize,
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.plant.as_deref() == Some("list") {
        Fault::ALL.iter().for_each(|fault| println!("{}", fault.name()));
        return ExitCode::SUCCESS;
    }
    let fault = match arguments.plant.as_deref().map(Fault::parse).transpose() {
        Ok(fault) => fault,
        Err(error) => {
            eprintln!("--plant: {error}");
            return ExitCode::from(2);
        }
    };
    match arguments.seed {
        Some(seed) => one(seed, fault, &arguments),
        None => many(fault, &arguments),
    }
}

fn one(seed: u64, fault: Option<Fault>, arguments: &Arguments) -> ExitCode {
    let report = run(seed, fault, &mut Coverage::new(), arguments.lines, arguments.trace);
    if report.failure.is_none() {
        report.trace.iter().for_each(|line| println!("{line}"));
        println!("seed {seed} held: {}", report.plan.summary());
        println!("{:?}, hash {:016x}", report.statistics, report.hash);
        return ExitCode::SUCCESS;
    }
    explain(&report);
    ExitCode::FAILURE
}

fn explain(report: &Report) {
    let Report { plan, failure, trace, statistics, time, .. } = report;
    println!("seed {} FAILED: {}", plan.seed, failure.as_deref().unwrap_or("no failure"));
    println!("  {}", plan.summary());
    println!(
        "  after {} accesses, {} us, {} deaths of the PMM, {} of the guest; the last accesses:",
        statistics.accesses,
        time / 1000,
        statistics.deaths[0],
        statistics.deaths[1],
    );
    trace.iter().for_each(|line| println!("    {line}"));
    let plant = plan.fault.map_or(String::new(), |fault| format!(" --plant {}", fault.name()));
    println!("  again: cargo run -p hvl-sim --release -- --seed {}{plant} --trace", plan.seed);
}

/// What all jobs share.
struct Run {
    next: AtomicU64,
    stop: AtomicBool,
    failed: Mutex<Option<Report>>,
    totals: Mutex<Totals>,
}

#[derive(Default)]
struct Totals {
    coverage: Coverage,
    seeds: u64,
    accesses: u64,
    deaths: [u64; 2],
    duplicates: u64,
    unread: u64,
    lost: u64,
    slowest: (Duration, u64),
}

impl Run {
    /// Runs seeds until there are no more, one fails, or time is up.
    fn job(
        &self,
        seed: impl Fn(u64) -> Option<u64>,
        fault: Option<Fault>,
        lines: usize,
        end: Option<Instant>,
    ) {
        let mut own = Totals { coverage: Coverage::new(), ..Totals::default() };
        while !self.stop.load(Ordering::Relaxed) && end.is_none_or(|end| Instant::now() < end) {
            let Some(seed) = seed(self.next.fetch_add(1, Ordering::Relaxed)) else { break };
            let started = Instant::now();
            let report = run(seed, fault, &mut own.coverage, lines, false);
            let took = started.elapsed();
            own.seeds += 1;
            own.accesses += report.statistics.accesses;
            own.duplicates += report.statistics.duplicates;
            own.unread += report.statistics.unread;
            own.lost += report.statistics.lost;
            (0..2).for_each(|side| own.deaths[side] += u64::from(report.statistics.deaths[side]));
            own.slowest = own.slowest.max((took, seed));
            if report.failure.is_some() {
                self.stop.store(true, Ordering::Relaxed);
                let mut failed = self.failed.lock().expect("no job panics");
                if failed.as_ref().is_none_or(|other| report.plan.seed < other.plan.seed) {
                    *failed = Some(report);
                }
            }
        }
        let mut totals = self.totals.lock().expect("no job panics");
        totals.coverage.add(&own.coverage);
        totals.seeds += own.seeds;
        totals.accesses += own.accesses;
        totals.duplicates += own.duplicates;
        totals.unread += own.unread;
        totals.lost += own.lost;
        (0..2).for_each(|side| totals.deaths[side] += own.deaths[side]);
        totals.slowest = totals.slowest.max(own.slowest);
    }
}

fn many(fault: Option<Fault>, arguments: &Arguments) -> ExitCode {
    let started = Instant::now();
    let end = arguments.seconds.map(|seconds| started + Duration::from_secs(seconds));
    let run = Run {
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        failed: Mutex::new(None),
        totals: Mutex::new(Totals::default()),
    };
    let batch = |seed: &(dyn Fn(u64) -> Option<u64> + Sync), end| {
        run.next.store(0, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for _ in 0..arguments.jobs {
                scope.spawn(|| run.job(seed, fault, arguments.lines, end));
            }
        });
    };
    let (from, count) = (arguments.from, arguments.seeds);
    batch(&|index| (index < count).then(|| (from + index) & ((1 << SEED_BITS) - 1)), end);
    // Every place that was met and not died at gets seeds that die there.
    let mut directed = 0;
    for _ in 0..4 {
        let holes = run.totals.lock().expect("no job panics").coverage.holes();
        if holes.is_empty() || run.stop.load(Ordering::Relaxed) {
            break;
        }
        directed += holes.len();
        let target = |index: u64| {
            let (site, seed) = holes.get(index as usize)?;
            Some(seed & ((1 << SEED_BITS) - 1) | u64::from(Coverage::hash(*site) + 1) << SEED_BITS)
        };
        batch(&target, None);
    }
    let failed = run.failed.lock().expect("no job panics").take();
    let totals = run.totals.into_inner().expect("no job panics");
    summary(&totals, directed, started.elapsed(), arguments);
    if let Some(report) = failed {
        explain(&report);
        return ExitCode::FAILURE;
    }
    let holes = totals.coverage.holes();
    if !holes.is_empty() {
        println!("{} places were met and never died at:", holes.len());
        holes.iter().for_each(|(site, seed)| println!("  {} (seed {seed})", Coverage::describe(*site)));
        return ExitCode::FAILURE;
    }
    let Some(path) = &arguments.list else { return ExitCode::SUCCESS };
    match list(path, arguments.write, &totals.coverage) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

/// Compares the places with the list in a file, or writes that.
fn list(path: &Path, write: bool, coverage: &Coverage) -> Result<(), String> {
    if write {
        let mut text = String::from(LIST);
        coverage.usual().iter().for_each(|place| text += &format!("{place}\n"));
        return std::fs::write(path, text).map_err(|error| error.to_string());
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let (missing, new) = coverage.compare(&text);
    if missing.is_empty() && new.is_empty() {
        println!("at every place of {} a side has died", path.display());
        return Ok(());
    }
    missing.iter().for_each(|place| println!("  no side died at: {place}"));
    new.iter().for_each(|place| println!("  not on the list: {place}"));
    Err(format!("{} of its places were not died at, {} are not on it", missing.len(), new.len()))
}

/// What a list begins with.
const LIST: &str = "\
# The places that are usually met: a side has died at each, or `cargo xtask test --only sim` fails. After a change of the
# protocol: cargo run -p hvl-sim --release -- --seeds 10000 --list tests/sim/places.txt --write
";

fn summary(totals: &Totals, directed: usize, took: Duration, arguments: &Arguments) {
    if arguments.places {
        println!("{:>10} {:>7}  place", "met", "deaths");
        for (place, met, tried) in totals.coverage.list() {
            println!("{met:>10} {tried:>7}  {place}");
        }
    }
    let (met, tried) = totals.coverage.counts();
    let seconds = took.as_secs_f64();
    println!(
        "{} seeds ({directed} of them directed) in {seconds:.1} s: {:.0} seeds/s, {} accesses, {:.1} million/s",
        totals.seeds,
        totals.seeds as f64 / seconds,
        totals.accesses,
        totals.accesses as f64 / seconds / 1e6,
    );
    println!(
        "deaths: {} of the PMM, {} of the guest, at {tried} of the {met} places that were met; bells lost: {}; \
         bytes that came twice: {}, typed bytes that nobody read: {}; slowest: seed {} in {:.0} ms",
        totals.deaths[0],
        totals.deaths[1],
        totals.lost,
        totals.duplicates,
        totals.unread,
        totals.slowest.1,
        totals.slowest.0.as_secs_f64() * 1e3,
    );
}
