//! Programs on a mount of `pmm serve-9p` and on a local file system, compared. Runs as root in a machine of its own; see
//! `xtask/src/test/v9fs.rs`.
//!
//! Every case is a function that works in an empty directory and returns what it saw, as text. It is called for a local
//! file system (tmpfs) first, then for a mount with each of Linux's cache modes; a text that differs is a failure. What a
//! cache mode cannot do by its own documentation is asked of the [`Place`] and is expected to fail in just that way.

mod fsx;
mod git;
mod locks;
mod many;
mod names;
mod place;
mod sqlite;
mod trees;
mod xattrs;

use anyhow::{Context, Result, bail, ensure};
use std::{env, fs, path::Path, process::ExitCode, time::Instant};

use place::{Client, Place};

/// One thing that is done everywhere.
struct Case {
    name: &'static str,
    run: fn(&Place, &mut Told) -> Result<()>,
}

const CASES: &[Case] = &[
    Case { name: "names", run: names::run },
    Case { name: "xattrs", run: xattrs::run },
    Case { name: "fsx", run: fsx::run },
    Case { name: "locks", run: locks::run },
    Case { name: "clients", run: locks::clients },
    Case { name: "tar", run: trees::tar },
    Case { name: "rsync", run: trees::rsync },
    Case { name: "git", run: git::run },
    Case { name: "sqlite-delete", run: sqlite::rollback },
    Case { name: "sqlite-wal", run: sqlite::write_ahead },
    Case { name: "many", run: many::run },
];

/// What a case saw.
#[derive(Default)]
struct Told {
    /// To be the same everywhere, a line for each thing.
    same: Vec<String>,
    /// For the user: how much was done, and what this place cannot do.
    done: String,
}

impl Told {
    fn same(&mut self, line: impl Into<String>) {
        self.same.push(line.into());
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["run", port, only @ ..] => run(port, only),
        // What the host puts into the directory before it is served.
        ["prepare", folder] => many::make(Path::new(folder)),
        ["locker", file] => locks::locker(Path::new(file)),
        _ => Err(anyhow::anyhow!(
            "usage: v9fs run PORT [--seed=N] [CASE[@PLACE]]... | prepare DIR | locker FILE"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("v9fs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(port: &str, only: &[&str]) -> Result<()> {
    let port = port.parse().with_context(|| format!("{port} is no port"))?;
    let seed = only.iter().find_map(|argument| argument.strip_prefix("--seed="));
    let seed = seed.map(|seed| seed.parse().with_context(|| format!("{seed} is no seed"))).transpose()?;
    fastrand::seed(seed.unwrap_or_else(|| fastrand::u64(..)));
    let seed = fastrand::get_seed();
    println!("v9fs: seed {seed}");
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: Some(20_000), maximum: Some(20_000) },
    )?;
    let client = Client { port };
    let wanted = |case: &str, place: &str| {
        let mut names = only.iter().filter(|argument| !argument.starts_with("--")).peekable();
        names.peek().is_none() || names.any(|name| *name == case || *name == format!("{case}@{place}"))
    };
    let places = Place::all(&client)?;
    let (mut compared, mut failed) = (0, Vec::new());
    for case in CASES {
        let mut expected: Option<Vec<String>> = None;
        for place in &places {
            // Without the local one there is nothing to compare with.
            if !(wanted(case.name, place.name)
                || place.is_local() && places.iter().any(|place| wanted(case.name, place.name)))
            {
                continue;
            }
            let place = place.within(case.name)?;
            println!("v9fs: {} {} ...", case.name, place.name);
            let start = Instant::now();
            let mut told = Told::default();
            // The same numbers everywhere.
            fastrand::seed(seed);
            let result = (case.run)(&place, &mut told).and_then(|()| match &expected {
                Some(expected) => compare(expected, &told.same),
                None => Ok(()),
            });
            let seconds = start.elapsed().as_secs_f32();
            match result {
                Ok(()) => println!("v9fs: {} {}: {}: ok, {seconds:.1} s", case.name, place.name, told.done),
                Err(error) => {
                    println!("v9fs: {} {}: FAILED, {seconds:.1} s: {error:#}", case.name, place.name);
                    failed.push(format!("{} {}", case.name, place.name));
                }
            }
            compared += usize::from(expected.is_some());
            expected.get_or_insert(told.same);
            if place.is_local() {
                fs::remove_dir_all(&place.folder)?;
            }
        }
    }
    println!("v9fs: {compared} comparisons, {} failed, seed {seed}", failed.len());
    ensure!(compared > 0, "no case of that name");
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Fails with the first lines that differ.
fn compare(expected: &[String], found: &[String]) -> Result<()> {
    for number in 0..expected.len().max(found.len()) {
        let line = |lines: &[String]| lines.get(number).map_or("nothing".into(), |line| format!("{line:?}"));
        let (expected, found) = (line(expected), line(found));
        ensure!(expected == found, "locally {expected}, here {found}");
    }
    Ok(())
}
