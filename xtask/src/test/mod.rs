//! `cargo xtask test`: every check, each with a name, in the order in which a mistake shows soonest.

mod bench;
mod board;
mod checks;
mod demo;
mod e2e;
mod v9fs;

pub use bench::bench;

use anyhow::{Result, bail};
use std::{
    cell::{Cell, OnceCell},
    process::{Command, ExitStatus},
    time::Instant,
};

use crate::process;
use crate::setup::{self, Tools};

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Options {
    /// Print the tests' names, one per line, and run none.
    #[arg(long)]
    list: bool,
    /// Run this test only; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

/// What a test may use.
#[derive(Default)]
pub struct Context {
    tools: OnceCell<Tools>,
    /// Parts of tests that said that they cannot run here.
    skipped: Cell<usize>,
}

impl Context {
    /// Compiler and emulator for firmware, set up when first asked for.
    pub fn tools(&self) -> Result<&Tools> {
        if let Some(tools) = self.tools.get() {
            return Ok(tools);
        }
        let tools = setup::tools()?;
        Ok(self.tools.get_or_init(|| tools))
    }

    /// Counts parts of a test that said that they cannot run here.
    fn skip(&self, parts: usize) {
        self.skipped.set(self.skipped.get() + parts);
    }

    /// Runs a command, and counts what it says is skipped.
    fn run_counting(&self, command: &mut Command) -> Result<ExitStatus> {
        let (status, skipped) = process::count(command, "SKIPPED: ")?;
        self.skip(skipped);
        Ok(status)
    }
}

struct Test {
    name: &'static str,
    about: &'static str,
    run: Run,
}

enum Run {
    /// By this program.
    Here(fn(&Context) -> Result<()>),
    /// By hvl-e2e, under the same name.
    EndToEnd,
}

const TESTS: &[Test] = &[
    Test { name: "fmt", about: "the code is formatted", run: Run::Here(checks::fmt) },
    Test { name: "clippy", about: "no warnings, host side", run: Run::Here(checks::clippy) },
    Test { name: "doc", about: "the documentation builds without warnings", run: Run::Here(checks::doc) },
    Test {
        name: "features",
        about: "every feature of every library alone, none and all, and each library's documentation, as a user has them",
        run: Run::Here(checks::features),
    },
    Test { name: "unit", about: "cargo test", run: Run::Here(checks::unit) },
    Test {
        name: "mutants",
        about: "every fault of tests/mutants.toml can still be planted; a few are, and are noticed",
        run: Run::Here(|_| crate::mutants::check()),
    },
    Test {
        name: "map",
        about: "the picture of the region is the one that the code draws",
        run: Run::Here(|_| crate::map::check()),
    },
    Test {
        name: "sim",
        about: "10,000 seeds of the simulator; every shared access is one at which a side has died",
        run: Run::Here(checks::simulator),
    },
    Test {
        name: "bench",
        about: "one round of the measurements has every row of their page",
        run: Run::Here(bench::measures_what_its_page_shows),
    },
    Test { name: "firmware", about: "no warnings, firmware", run: Run::Here(checks::firmware) },
    Test {
        name: "size",
        about: "with ring and link, console and entropy take at most 8 KiB of text, all five devices 40 KiB; no heap",
        run: Run::Here(|_| crate::size::run(&crate::size::Options::default())),
    },
    Test {
        name: "device-half",
        about: "the PMM with console and rng on the Cortex-R5, without std or heap, serves a process",
        run: Run::EndToEnd,
    },
    Test {
        name: "board",
        about: "the emulated Cortex-R5: boot, doorbell, clock, restarts, faults",
        run: Run::Here(board::run),
    },
    Test { name: "demo-host", about: "a script at the shell that is a process", run: Run::Here(demo::host) },
    Test {
        name: "demo-r5",
        about: "a script at the shell of the emulated Cortex-R5",
        run: Run::Here(demo::r5),
    },
    Test {
        name: "demo-async",
        about: "the same devices as tasks of an executor",
        run: Run::Here(demo::r5_async),
    },
    Test {
        name: "messages",
        about: "what pmm says, and its exit codes, when the machine refuses",
        run: Run::EndToEnd,
    },
    Test {
        name: "diagnosis",
        about: "what the pmm says of a guest with a wrong base, size, offset or queue length, after 3 s",
        run: Run::EndToEnd,
    },
    Test {
        name: "order-host",
        about: "start order does not matter, with the shell as a process",
        run: Run::EndToEnd,
    },
    Test {
        name: "order-r5",
        about: "start order does not matter, with the shell on the board",
        run: Run::EndToEnd,
    },
    Test {
        name: "several",
        about: "one pmm, two guests: killing one does not disturb the other",
        run: Run::EndToEnd,
    },
    Test {
        name: "net-joined",
        about: "two links with a cable between them: ping, 16 MiB over TCP, deaths of a pmm",
        run: Run::EndToEnd,
    },
    Test {
        name: "net-qemu",
        about: "two links with a QEMU between them that has nothing but network back ends: ping, 16 MiB over TCP",
        run: Run::EndToEnd,
    },
    Test {
        name: "net-tap",
        about: "a TAP in a network namespace: ping -f, HTTP, frames of 64 KiB",
        run: Run::EndToEnd,
    },
    Test {
        name: "stuck-files",
        about: "a read that the kernel holds holds up nothing else, also through a reboot of the guest",
        run: Run::EndToEnd,
    },
    Test {
        name: "stuck-sockets",
        about: "a client that does not read holds up nothing else, also through a reboot of the guest",
        run: Run::EndToEnd,
    },
    Test {
        name: "stuck-tap",
        about: "a TAP that is full holds up nothing else, also through a reboot of the guest",
        run: Run::EndToEnd,
    },
    Test {
        name: "plain",
        about: "an OpenAMP front-end in a process, served through SIGKILLs of the pmm",
        run: Run::EndToEnd,
    },
    Test { name: "idle-host", about: "an idle pmm sleeps", run: Run::EndToEnd },
    Test { name: "idle-r5", about: "an idle pmm sleeps, and so does the board", run: Run::EndToEnd },
    Test { name: "idle-async", about: "the same with tasks of an executor on the board", run: Run::EndToEnd },
    Test {
        name: "files-host",
        about: "files across 9p, and 64 MiB that are whole though ten pmms were killed meanwhile; a process",
        run: Run::EndToEnd,
    },
    Test {
        name: "files-r5",
        about: "files across 9p, and 16 MiB that are whole though ten pmms were killed meanwhile; the board",
        run: Run::EndToEnd,
    },
    Test {
        name: "v9fs",
        about: "serve-9p mounted by Linux: git, tar, rsync, sqlite, locks, mmap, beside the same on a local file system",
        run: Run::Here(v9fs::run),
    },
    Test {
        name: "devices-host",
        about: "all five devices, and again after 40 deaths; the shell as a process",
        run: Run::EndToEnd,
    },
    Test {
        name: "devices-r5",
        about: "all five devices, and again after 12 deaths; the shell on the board",
        run: Run::EndToEnd,
    },
    Test {
        name: "everything-host",
        about: "a script for all five devices in one start: 16 MiB of files, 10,000 entries, DHCP, curl, socat, and deaths of passt; a process",
        run: Run::EndToEnd,
    },
    Test {
        name: "everything-r5",
        about: "a script for all five devices in one start: 16 MiB of files, 10,000 entries, DHCP, curl, socat, and deaths of passt; the board",
        run: Run::EndToEnd,
    },
    Test {
        name: "proxy-host",
        about: "16 MiB each way through doorbells that fail, with the shell as a process",
        run: Run::EndToEnd,
    },
    Test {
        name: "proxy-r5",
        about: "2 MiB each way through doorbells that fail, with the shell on the board",
        run: Run::EndToEnd,
    },
    Test {
        name: "restarts-host",
        about: "200 reboots, 200 SIGKILLs of the pmm, 200 of the guest, while lines flow both ways",
        run: Run::EndToEnd,
    },
    Test {
        name: "restarts-r5",
        about: "50 reboots, 10 resets, 50 SIGKILLs of the pmm, 10 of the emulator, while lines flow both ways",
        run: Run::EndToEnd,
    },
];

/// Runs them.
pub fn run(options: &Options) -> Result<()> {
    if options.list {
        for test in TESTS {
            println!("{:16} {}", test.name, test.about);
        }
        return Ok(());
    }
    if let Some(unknown) = options.only.iter().find(|name| TESTS.iter().all(|test| test.name != **name)) {
        bail!("--only {unknown}: there is no such test; `cargo xtask test --list` names them");
    }
    let context = Context::default();
    let chosen = TESTS
        .iter()
        .filter(|test| options.only.is_empty() || options.only.iter().any(|name| name == test.name));
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    for test in chosen {
        eprintln!("test {}: {} ...", test.name, test.about);
        let start = Instant::now();
        let result = match test.run {
            Run::Here(run) => run(&context),
            Run::EndToEnd => e2e::run(&context, test.name),
        };
        let seconds = start.elapsed().as_secs_f32();
        let parts = context.skipped.take();
        match result {
            Ok(()) => {
                let but = if parts == 0 { String::new() } else { format!(", {parts} of its parts SKIPPED") };
                println!("test {:16} ok      {seconds:6.1} s{but}", test.name);
                passed += 1;
                skipped += parts;
            }
            Err(error) if error.is::<Skipped>() => {
                println!("test {:16} SKIPPED {seconds:6.1} s: {error:#}", test.name);
                skipped += 1;
            }
            Err(error) => {
                println!("test {:16} FAILED  {seconds:6.1} s: {error:#}", test.name);
                failed.push(test.name);
            }
        }
    }
    println!("{passed} passed, {} failed, {skipped} skipped", failed.len());
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Why a test could not be run on this machine. It is counted, and said.
#[derive(Debug)]
pub struct Skipped(pub String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}
