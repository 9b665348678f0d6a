//! The machine: its name, its cores, and whether anybody else was using them.

use rustix::thread::CpuSet;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::fs::read_to_string;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// What the numbers belong to.
#[derive(Serialize)]
pub struct Machine {
    /// Processor model.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Operating system and its release.
    pub kernel: String,
    /// The compiler.
    pub rustc: &'static str,
    /// When, in UTC.
    pub date: String,
}

impl Machine {
    /// This one, now.
    pub fn here() -> Machine {
        let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        let uname = rustix::system::uname();
        let (system, release) = (uname.sysname().to_string_lossy(), uname.release().to_string_lossy());
        Machine {
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_string()),
            cores: allowed().len(),
            kernel: format!("{system} {release}"),
            rustc: env!("HVL_RUSTC"),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        }
    }
}

/// The cores that are used.
#[derive(Clone, Copy)]
pub struct Cores {
    /// The driver's, which is also that of everything on one core.
    pub driver: usize,
    /// The device's, if there is a second one.
    pub device: Option<usize>,
}

fn allowed() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

impl Cores {
    /// The first two that this process may use.
    pub fn choose() -> Cores {
        let mut allowed = allowed().into_iter();
        Cores { driver: allowed.next().unwrap_or(0), device: allowed.next() }
    }
    /// Keeps this thread on one core.
    pub fn pin(core: usize) {
        let mut set = CpuSet::new();
        set.set(core);
        // A sandbox may refuse; then the scheduler moves us, and the spread shows it.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

/// How much of the machine others took, and how steady it ran.
#[derive(Serialize, Clone)]
pub struct Quiet {
    /// Part of all cores that others used meanwhile, the hypervisor's share included, in percent.
    pub others_percent: f64,
    /// How much longer a fixed piece of work took in the slowest quarter of its runs than in the fastest, in percent.
    pub unsteady_percent: f64,
    /// Why the numbers are not to be trusted, if they are not.
    pub warning: Option<String>,
}

/// Others may use this part of the machine, in percent, before the numbers are marked.
const OTHERS: f64 = 3.0;
/// Fixed work may vary by this part, in percent.
const UNSTEADY: f64 = 5.0;

/// Watches the machine while the benchmark runs.
pub struct Watch {
    start: Instant,
    busy: f64,
    own: f64,
    cores: f64,
    work: Vec<f64>,
}

impl Watch {
    /// From now on.
    pub fn start() -> Watch {
        Watch {
            start: Instant::now(),
            busy: busy_seconds(),
            own: own_seconds(),
            cores: online_cores(),
            work: Vec::new(),
        }
    }
    /// Times a fixed piece of work.
    pub fn sample(&mut self) {
        let start = Instant::now();
        let mut x = 1u64;
        for _ in 0..1_000_000 {
            x = black_box(x.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 1);
        }
        self.work.push(start.elapsed().as_secs_f64());
    }
    /// Until now.
    pub fn end(&self) -> Quiet {
        let wall = self.start.elapsed().as_secs_f64();
        let others = (busy_seconds() - self.busy) - (own_seconds() - self.own);
        let others_percent = (others / (wall * self.cores) * 100.0).max(0.0);
        let [fast, slow] = [0.0, 0.75].map(|q| crate::stats::quantile(&self.work, q));
        let unsteady_percent = (slow / fast - 1.0) * 100.0;
        let mut reasons = Vec::new();
        if others_percent > OTHERS {
            reasons.push(format!("others used {others_percent:.0} % of it"));
        }
        if unsteady_percent > UNSTEADY {
            reasons.push(format!("the same work took up to {unsteady_percent:.0} % longer"));
        }
        let warning = (!reasons.is_empty())
            .then(|| format!("The machine was too busy to trust these numbers: {}.", reasons.join(", and ")));
        Quiet { others_percent, unsteady_percent, warning }
    }
}

/// Seconds that all cores together were not idle since the machine started.
fn busy_seconds() -> f64 {
    let stat = read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // user nice system idle iowait irq softirq steal; what follows is contained in the first two. In ticks of 10 ms.
    let busy: u64 = fields
        .take(8)
        .enumerate()
        .filter(|(n, _)| !matches!(n, 3 | 4))
        .filter_map(|(_, f)| f.parse::<u64>().ok())
        .sum();
    busy as f64 / 100.0
}

/// Cores that those seconds are of, whichever of them this process may use.
fn online_cores() -> f64 {
    let stat = read_to_string("/proc/stat").unwrap_or_default();
    stat.lines().filter(|line| line.starts_with("cpu")).count().saturating_sub(1).max(1) as f64
}

fn own_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Steps of the benchmark so far.
static PROGRESS: AtomicU64 = AtomicU64::new(0);

/// Says that it goes on.
pub fn progress() {
    PROGRESS.fetch_add(1, Ordering::Relaxed);
}

/// Ends the program where a contender hangs: a doorbell lost for ever would otherwise be a benchmark that never ends.
pub fn guard(limit: Duration, what: &'static (dyn Fn() -> String + Sync)) {
    std::thread::spawn(move || {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now = PROGRESS.load(Ordering::Relaxed);
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() > limit {
                eprintln!("hvl-bench: no progress for {} s in {}", limit.as_secs(), what());
                std::process::exit(1);
            }
        }
    });
}
