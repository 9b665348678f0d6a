//! `cargo xtask mutants`: do the tests notice?
//!
//! `tests/mutants.toml` lists faults of one line each, planted one at a time in a copy of the tree; each names the
//! test that must turn red for it. A fault that survives is a hole in the tests, and a fault whose line is gone is a
//! list that nobody kept: both fail the run.

mod target;

use anyhow::{Context, Result, bail};
use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use crate::{paths, process};
use target::Sources;

/// A test that has not finished by then hangs, which for a planted fault is a way of being noticed.
const LIMIT: Duration = Duration::from_secs(300);

/// A shorter list would show little.
const FEWEST: usize = 25;

/// So many are planted by `cargo xtask test`, others each time, of those whose tests are built soonest: a minute.
const SAMPLE: usize = 5;
const SAMPLE_OF: &str = "hvl-shared-abi";

/// Options of `cargo xtask mutants`.
#[derive(clap::Args)]
pub struct Options {
    /// Print the faults' names, one per line, and plant none.
    #[arg(long)]
    list: bool,
    /// Plant this fault only; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Plant the few that `cargo xtask test` planted with this seed.
    #[arg(long, value_name = "N", conflicts_with = "only")]
    seed: Option<u64>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// One planted fault.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// What the fault is, in a few words.
    name: String,
    /// The file, from the repository's root.
    file: String,
    /// Text that stands in it exactly once.
    find: String,
    /// What is put in its place.
    replace: String,
    /// The package whose tests must notice.
    package: String,
    /// The test that must turn red: its name or a part of it.
    test: String,
    /// Run it with optimisation: for tests that take many steps.
    #[serde(default)]
    release: bool,
    /// The test hangs, which takes minutes to be sure of.
    #[serde(default)]
    hangs: bool,
}

fn read_list() -> Result<Vec<Mutant>> {
    let path = paths::root().join("tests/mutants.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let list: List =
        toml::from_str(&text).with_context(|| format!("{} is no list of faults", path.display()))?;
    Ok(list.mutant)
}

/// Checks that every fault of the list can still be planted, and plants a few.
pub fn check() -> Result<()> {
    let list = read_list()?;
    let sources = Sources::read(paths::root())?;
    let stale: Vec<_> = list
        .iter()
        .filter_map(|mutant| mutant.plant(paths::root()).err().or_else(|| mutant.targets(&sources).err()))
        .collect();
    if list.len() < FEWEST {
        bail!("tests/mutants.toml lists {} faults; {FEWEST} are the least", list.len());
    }
    if let Some(first) = stale.first() {
        bail!("{} of {} faults cannot be planted; first: {first:#}", stale.len(), list.len());
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |now| now.subsec_nanos());
    eprintln!("{} faults can be planted; again these few: cargo xtask mutants --seed {now}", list.len());
    run(&Options { list: false, only: Vec::new(), seed: Some(now.into()) })
}

/// A few of the list, as the seed decides.
fn sample(list: &[Mutant], seed: u64) -> Vec<String> {
    let quick = list.iter().filter(|mutant| mutant.package == SAMPLE_OF && !mutant.hangs);
    let mut names: Vec<_> = quick.map(|mutant| mutant.name.clone()).collect();
    let mut dice = seed;
    // Each name gets a number; those with the lowest are chosen.
    names.sort_by_cached_key(|_| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        dice >> 32
    });
    names.truncate(SAMPLE);
    names
}

impl Mutant {
    /// The file with the fault in it.
    fn plant(&self, root: &Path) -> Result<String> {
        let text = fs::read_to_string(root.join(&self.file))
            .with_context(|| format!("{}: {} cannot be read", self.name, self.file))?;
        match text.matches(&self.find).count() {
            1 => Ok(text.replacen(&self.find, &self.replace, 1)),
            0 => bail!("{}: {} has no `{}` any more", self.name, self.file, self.find),
            n => bail!("{}: {} has `{}` {n} times; it takes a longer text", self.name, self.file, self.find),
        }
    }

    /// Cargo's options for what holds the test.
    fn targets(&self, sources: &Sources) -> Result<Vec<String>> {
        sources.targets(&self.package, &self.test).with_context(|| self.name.clone())
    }

    fn command(&self, tree: &Path, sources: &Sources) -> Result<Command> {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(tree).args(["test", "--quiet", "--package", &self.package]);
        command.args(self.targets(sources)?);
        if self.release {
            command.arg("--release");
        }
        command.args(["--", &self.test]).env("CARGO_TARGET_DIR", tree.with_file_name("target"));
        command.env("RUST_BACKTRACE", "0").stdin(Stdio::null());
        Ok(command)
    }
}

/// How a test came out.
#[derive(PartialEq)]
enum Verdict {
    Green,
    Red,
    Hangs,
    /// Nothing ran, or it did not compile: the list is wrong.
    Nothing(String),
}

fn judge(command: &mut Command, log: &Path) -> Result<Verdict> {
    let file = fs::File::create(log).with_context(|| format!("{} cannot be written", log.display()))?;
    command.stdout(file.try_clone()?).stderr(file);
    let Some(mut child) = process::wait_within(command, LIMIT)? else { return Ok(Verdict::Hangs) };
    let status = child.wait()?;
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let ran: usize = text
        .lines()
        .filter_map(|line| line.strip_prefix("test result: "))
        .flat_map(|line| line.split("; "))
        .filter(|part| part.ends_with(" passed") || part.ends_with(" failed"))
        .filter_map(|part| part.split_whitespace().rev().nth(1)?.parse::<usize>().ok())
        .sum();
    if status.success() {
        return Ok(if ran == 0 { Verdict::Nothing("no test of this name".into()) } else { Verdict::Green });
    }
    if ran != 0 || text.contains("running 1 test") {
        return Ok(Verdict::Red);
    }
    let first = text.lines().find(|line| line.starts_with("error")).unwrap_or("nothing ran");
    Ok(Verdict::Nothing(first.to_owned()))
}

/// The files of a working tree, but for those that git ignores; paths from its root.
fn files(root: &Path) -> Result<Vec<String>> {
    let list = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let files = process::read(Command::new("git").current_dir(root).args(list))?;
    // One that is removed and not yet committed is listed still.
    Ok(files.lines().filter(|file| root.join(file).is_file()).map(str::to_owned).collect())
}

/// Copies the files of the working tree, but for those that git ignores.
fn copy_tree(to: &Path) -> Result<()> {
    let mut copied = HashSet::new();
    for file in &files(paths::root())? {
        let (from, to) = (paths::root().join(file), to.join(file));
        let Ok(new) = fs::read(&from) else { continue };
        copied.insert(to.clone());
        // A file that has not changed keeps its time, so that cargo builds nothing twice.
        if fs::read(&to).ok().as_ref() != Some(&new) {
            fs::create_dir_all(to.parent().unwrap_or(&to))?;
            fs::write(&to, new).with_context(|| format!("{} cannot be written", to.display()))?;
        }
    }
    remove_others(to, &copied)
}

/// Removes the files of an earlier copy that the tree has no more: cargo would find and build them.
fn remove_others(folder: &Path, copied: &HashSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            remove_others(&path, copied)?;
        } else if !copied.contains(&path) && entry.file_name() != "Cargo.lock" {
            fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
        }
    }
    Ok(())
}

/// Plants them.
pub fn run(options: &Options) -> Result<()> {
    let list = read_list()?;
    if options.list {
        list.iter().for_each(|mutant| println!("{:40} {} {}", mutant.name, mutant.package, mutant.test));
        return Ok(());
    }
    let only = options.seed.map_or_else(|| options.only.clone(), |seed| sample(&list, seed));
    if let Some(unknown) = only.iter().find(|name| list.iter().all(|mutant| mutant.name != **name)) {
        bail!("--only {unknown}: there is no such fault; `cargo xtask mutants --list` names them");
    }
    let tree: PathBuf = paths::root().join("target/mutants/tree");
    copy_tree(&tree)?;
    let chosen: Vec<_> =
        list.iter().filter(|mutant| only.is_empty() || only.contains(&mutant.name)).collect();
    let sources = Sources::read(paths::root())?;
    let log = tree.with_file_name("log");
    // A test that is red without any fault notices nothing. All before the first fault: each change is a build.
    let mut sound_tests = HashSet::new();
    for mutant in chosen.iter().filter(|mutant| sound_tests.insert((&mutant.package, &mutant.test))) {
        eprintln!("without a fault: {} {}", mutant.package, mutant.test);
        if judge(&mut mutant.command(&tree, &sources)?, &log)? != Verdict::Green {
            bail!("{} {} is not green without any fault; see {}", mutant.package, mutant.test, log.display());
        }
    }
    let mut survivors = Vec::new();
    for (number, mutant) in (1..).zip(&chosen) {
        let start = Instant::now();
        eprint!("{number}/{} {} ... ", chosen.len(), mutant.name);
        let mut command = mutant.command(&tree, &sources)?;
        let file = tree.join(&mutant.file);
        let sound = fs::read_to_string(&file)?;
        fs::write(&file, mutant.plant(&tree)?)?;
        let verdict = judge(&mut command, &log);
        fs::write(&file, &sound)?;
        let verdict = verdict?;
        let (noticed, how) = match &verdict {
            Verdict::Red => (true, "red".to_owned()),
            Verdict::Hangs => (true, "hangs, which is red".to_owned()),
            Verdict::Green => (false, "SURVIVED".to_owned()),
            Verdict::Nothing(why) => (false, format!("NOT TRIED: {why}")),
        };
        eprintln!("{how} ({:.0} s)", start.elapsed().as_secs_f32());
        println!(
            "{} {:44} {} {}",
            if noticed { "ok    " } else { "FAILED" },
            mutant.name,
            mutant.package,
            mutant.test
        );
        if !noticed {
            survivors.push(mutant.name.as_str());
        }
    }
    println!("{} passed, {} failed", chosen.len() - survivors.len(), survivors.len());
    if !survivors.is_empty() {
        bail!("no test noticed: {}", survivors.join("; "));
    }
    Ok(())
}
