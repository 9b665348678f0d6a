//! What the program says when the machine refuses: one line that names option, value and way out, and exit code 1. And
//! a peer that is not there yet is no error: it is said once, and `--wait` bounds it.

use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::Tools;
use crate::guard::Guard;
use crate::guest::{Kind, Place};
use crate::process::{self, Running};
use crate::rig::{Bell, Rig, UP};

pub fn run(tools: &Tools) -> Result<()> {
    let mut rig = Rig::new(tools, "messages", Kind::Host, Bell::Direct)?;
    rig.start()?;
    let dir = rig.dir().to_path_buf();
    let bell = format!("unix-stream:{}", dir.join("nobody").display());
    let place = rig.guest.place();
    let place = |file: &Path| {
        let place = Place { file: file.into(), ..place.clone() };
        let mut options = place.options();
        options.extend(["--control".into(), dir.join("other").display().to_string(), "--rng".into()]);
        options
    };
    let memory = dir.join("memory");

    // A region that another PMM serves: its lock names the process, and the one that serves it is not disturbed.
    let said = refused(tools, &place(&memory), &[])?;
    let id = rig.pmm()?.id().to_string();
    ensure!(
        said.contains(&id) && said.contains(&*memory.to_string_lossy()),
        "the lock's owner {id} is not named: {said}"
    );

    // Missing directories, by every option that makes something.
    for (option, value) in [
        ("--shmem-file", "/nonexistent/memory"),
        ("--console", "unix:/nonexistent/console"),
        ("--console", "file:/nonexistent/log"),
        ("--doorbell", "unix-stream:/nonexistent/bell,listen"),
        ("--doorbell", "unix-dgram:bind=/nonexistent/bell,peer=/tmp/x"),
        ("--control", "/nonexistent/control"),
        ("--state", "/nonexistent/state"),
    ] {
        let said = refused(tools, &place(&dir.join("memory2")), &[option, value])?;
        ensure!(said.contains(option) && said.contains("/nonexistent/"), "{option} {value}: {said}");
    }

    // A file that nobody can write, not even root: the program that runs.
    let program = tools.pmm.display().to_string();
    for (option, value) in
        [("--shmem-file", program.clone()), ("--console", format!("file:{program}")), ("--state", program)]
    {
        let said = refused(tools, &place(&dir.join("memory2")), &[option, &value])?;
        ensure!(said.contains(option) && said.contains(&value), "{option} {value}: {said}");
    }
    // All that and the guest has not noticed.
    let said = rig.command("echo undisturbed")?;
    ensure!(said == "undisturbed\n", "{said}");
    ensure!(rig.pmm()?.status()?["links"][0]["adoptions"] == 1, "the guest was adopted again");

    // A peer that does not come is said once, also over many retries, and waited for as long as asked.
    let start = Instant::now();
    let (code, said) = end(tools, &place(&dir.join("memory3")), &["--doorbell", &bell, "--wait", "2"])?;
    ensure!(code == Some(1), "exit code {code:?}: {said}");
    ensure!(start.elapsed().as_secs() >= 2, "it gave up after {:?}", start.elapsed());
    ensure!(said.matches("no peer yet").count() == 1, "not said once: {said}");
    ensure!(
        said.matches("--wait 2: no peer came").count() == 1 && said.contains(&bell),
        "not said once: {said}"
    );
    Ok(())
}

/// Exit code and stderr of a pmm that ends by itself.
fn end(tools: &Tools, options: &[String], more: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = process::command(&tools.pmm)?;
    command.arg("run").args(options).args(more).stdin(Stdio::null()).stdout(Stdio::null());
    let mut pmm = Running::spawn("pmm", command.stderr(Stdio::piped()))?;
    let code = pmm.end(&Guard::new(UP, format!("the end of pmm run ... {}", more.join(" "))))?;
    let mut said = String::new();
    pmm.child().stderr.take().context("the child's stderr is a pipe")?.read_to_string(&mut said)?;
    Ok((code, said))
}

/// The one line of a pmm that the machine refuses something.
fn refused(tools: &Tools, options: &[String], more: &[&str]) -> Result<String> {
    let (code, said) = end(tools, options, more)?;
    println!("{}", said.trim_end());
    ensure!(code == Some(1), "{more:?}: exit code {code:?}: {said}");
    ensure!(said.trim_end().lines().count() == 1, "{more:?}: not one line: {said}");
    Ok(said)
}
