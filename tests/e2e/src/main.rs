//! `hvl-e2e`: runs end-to-end tests by name; also the doorbell proxy as a program.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use hvl_e2e::net_guest::NetGuest;
use hvl_e2e::tests::TESTS;
use hvl_e2e::{SKIPPED, Skipped, Tools, namespace, process, proxy};

/// End-to-end tests of hvl: real processes, and the emulated board.
#[derive(Parser)]
#[command(name = "hvl-e2e")]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand)]
enum Sub {
    /// Print the tests' names and what each shows.
    List,
    /// Run tests.
    Run(Run),
    /// Be a guest with a network card, until killed.
    NetGuest(NetGuest),
    /// Pass rings on between a guest's doorbell and a PMM's, and merge, drop, double and delay some of them.
    Proxy {
        /// The guest's end: PATH, PATH,listen, or bind=PATH,peer=PATH for datagrams.
        #[arg(long, value_name = "END")]
        guest: proxy::End,
        /// The PMM's end, likewise.
        #[arg(long, value_name = "END")]
        pmm: proxy::End,
        /// Decides what becomes of each ring.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
}

#[derive(Args)]
struct Run {
    /// The tests.
    #[arg(required = true)]
    names: Vec<String>,
    /// The program pmm.
    #[arg(long, value_name = "PATH")]
    pmm: PathBuf,
    /// The program host-shell.
    #[arg(long, value_name = "PATH")]
    host_shell: PathBuf,
    /// The firmware, an ELF file: r5-shell; r5-async for tests that end in -async, r5-device for device-half.
    #[arg(long, value_name = "PATH")]
    firmware: Option<PathBuf>,
    /// Where the tests make their directories.
    #[arg(long, value_name = "DIR")]
    work: PathBuf,
    /// Decides everything that is left to chance [default: another one each time, printed].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Sizes and numbers of rounds, in percent.
    #[arg(long, value_name = "N", default_value_t = 100)]
    percent: u32,
    /// How the emulator is called: the program and its first arguments.
    #[arg(last = true)]
    emulator: Vec<OsString>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let result = if arguments.next().is_some_and(|first| first == process::BECOME) {
        process::become_program(arguments)
    } else {
        match Cli::parse().command {
            Sub::List => {
                TESTS.iter().for_each(|test| println!("{:16} {}", test.name, test.about));
                Ok(())
            }
            Sub::Run(run) => run_tests(run),
            Sub::NetGuest(guest) => hvl_e2e::net_guest::run(&guest),
            Sub::Proxy { guest, pmm, seed } => proxy::run(guest, pmm, seed),
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Skipped>() => {
            println!("SKIPPED: {error:#}");
            ExitCode::from(SKIPPED)
        }
        Err(error) => {
            eprintln!("hvl-e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_tests(run: Run) -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = run.seed.unwrap_or_else(|| now.map_or(1, |now| u64::from(now.subsec_nanos())));
    let absolute =
        |path: &PathBuf| path.canonicalize().with_context(|| format!("{} is not there", path.display()));
    let tools = Tools {
        pmm: absolute(&run.pmm)?,
        host_shell: absolute(&run.host_shell)?,
        firmware: run.firmware.as_ref().map(absolute).transpose()?,
        emulator: run.emulator,
        work: run.work,
        seed,
        percent: run.percent,
    };
    for name in &run.names {
        let Some(test) = TESTS.iter().find(|test| test.name == *name) else {
            bail!("there is no test '{name}'; `hvl-e2e list` names them");
        };
        let tell = |what: std::fmt::Arguments<'_>| {
            if !namespace::is_inside() {
                println!("{name}: {what}");
            }
        };
        tell(format_args!("seed {seed}"));
        let start = Instant::now();
        // Each in a directory of its own, which is left behind for whoever looks for the cause of a failure.
        let tools = Tools { work: tools.work.join(name), ..tools.clone() };
        (test.run)(&tools).with_context(|| format!("{name} (seed {seed})"))?;
        tell(format_args!("passed in {:.1} s", start.elapsed().as_secs_f32()));
    }
    Ok(())
}
