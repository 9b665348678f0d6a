//! `pmm serve-9p` before Linux's own client: an emulated machine mounts it and runs ordinary programs on the mount.
//!
//! What runs there, and what it is compared with, is `tests/v9fs`. It says how many of its parts it ran, and this file
//! checks that number, so that a run that ended early is no success.

use anyhow::{Context as _, Result, bail, ensure};
use hvl_test_board::Launch;
use hvl_test_system::{Image, Machine};
use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use super::{Context, Skipped};
use crate::{paths, process, setup, tied};

/// A guard against waiting for ever. Each part says something when it begins; the longest takes 20 s on an idle machine.
const SILENCE: Duration = Duration::from_secs(600);
/// The client and the ways to reach a server over a network.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_net", "9p", "9pnet_fd"];
/// What the guest's program calls.
const PROGRAMS: [&str; 8] = ["git", "rsync", "tar", "sqlite3", "setfattr", "getfattr", "setfacl", "getfacl"];
const TARGET: &str = "x86_64-unknown-linux-gnu";

pub fn run(context: &Context) -> Result<()> {
    let system = match setup::system() {
        Ok(system) => system,
        Err(why) => bail!(Skipped(format!("there is no Linux system to run: {why:#}"))),
    };
    let (pmm, program) = build()?;
    let folder = paths::run_dir("v9fs");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("{} is in the way", folder.display()))?;
    }
    let export = folder.join("export");
    fs::create_dir_all(&export).with_context(|| format!("{} cannot be created", export.display()))?;
    process::run(Command::new(&program).arg("prepare").arg(&export))?;
    let server = Server::start(&pmm, &export, &folder.join("pmm.log"))?;

    let distribution = system.distribution()?;
    let script = format!("#!/bin/busybox sh\nexec v9fs run {} {}\n", server.port, arguments());
    let mut image = Image::new(&distribution, &script)?;
    for program in PROGRAMS {
        image.program(program)?;
    }
    for module in MODULES {
        image.module(module)?;
    }
    image.file("bin/v9fs", &program)?;
    let machine =
        Machine { kernel: distribution.kernel().to_owned(), image: folder.join("image"), mebibytes: 1024 };
    image.write(&machine.image)?;

    let log = folder.join("machine.log");
    let mut command = tied::tie(&machine.describe(system.command()), tied::Death::Kill)?;
    let mut skipped = 0;
    let code = hvl_test_system::run(&mut command, &log, SILENCE, |line| {
        skipped += usize::from(line.starts_with("SKIPPED: "));
        eprintln!("{line}");
    })?;
    context.skip(skipped);
    ensure!(
        code == 0,
        "on the mount something went otherwise ({code}): see above; logs are in {}",
        folder.display()
    );
    server.end()
}

/// What the user hands on to the guest's program: which parts to run, and with which seed.
fn arguments() -> String {
    env::var("HVL_V9FS").unwrap_or_default()
}

/// Builds the server and, for a machine that need not have this one's libraries, the guest's program.
fn build() -> Result<(PathBuf, PathBuf)> {
    let target = paths::host_target();
    let cargo = || {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(paths::root()).env("CARGO_TARGET_DIR", &target);
        cargo.args(["build", "--quiet", "--release", "--bins"]);
        cargo
    };
    process::run(cargo().args(["--package", "hvl-pmm"]))?;
    let mut program = cargo();
    program.args(["--package", "hvl-v9fs", "--target", TARGET]);
    process::run(program.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    Ok((target.join("release/pmm"), target.join(TARGET).join("release/v9fs")))
}

/// A `pmm serve-9p` on loopback.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(pmm: &Path, export: &Path, log: &Path) -> Result<Self> {
        let mut command = Command::new(pmm);
        command.arg("serve-9p").arg(export).args(["--listen", "tcp:127.0.0.1:0"]);
        let mut command = tied::tie(&command, tied::Death::Kill)?;
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("pmm could not be started")?;
        let lines = BufReader::new(child.stderr.take().context("the child's stderr is a pipe")?);
        let mut server = Self { child, port: 0 };
        let mut lines = lines.lines().map_while(Result::ok);
        let mut said = String::new();
        for line in lines.by_ref() {
            said += &line;
            said.push('\n');
            // Its first line says where it listens.
            if let Some((_, rest)) = line.split_once("tcp:127.0.0.1:") {
                let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
                server.port = digits.parse().with_context(|| format!("no port in: {line}"))?;
                break;
            }
        }
        ensure!(server.port != 0, "pmm ended without listening: {said}");
        let mut log =
            fs::File::create(log).with_context(|| format!("{} cannot be written", log.display()))?;
        thread::spawn(move || {
            for line in lines {
                // What cannot be kept is missing from the log, no more.
                let _ = writeln!(log, "{line}");
            }
        });
        Ok(server)
    }

    /// Asks it to end, as a user would.
    fn end(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("pmm has ended by itself ({status})");
        }
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        )?;
        let status = self.child.wait()?;
        ensure!(status.success(), "pmm ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended; nothing could be done about another failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
