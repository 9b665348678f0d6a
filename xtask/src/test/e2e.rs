//! The end-to-end tests of `tests/e2e`: built here, given the programs and the emulator, and run as one process each.

use anyhow::{Result, bail};
use hvl_test_board::Launch;
use std::{env, process::Command};

use super::{Context, Skipped};
use crate::{paths, process, setup, tied};

/// What hvl-e2e ends with after a test that cannot run here.
const SKIPPED: i32 = 77;

/// Runs one by its name.
pub fn run(context: &Context, name: &str) -> Result<()> {
    let firmware = match name.rsplit_once('-') {
        Some((_, "r5")) => Some("r5-shell"),
        Some((_, "async")) => Some("r5-async"),
        Some(("device", "half")) => Some("r5-device"),
        _ => None,
    };
    let target = paths::host_target();
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(paths::root()).env("CARGO_TARGET_DIR", &target);
    build.args(["build", "--quiet", "--release", "--bins"]);
    build.args(["--package", "hvl-pmm", "--package", "hvl-guest-host", "--package", "hvl-e2e"]);
    process::run(&mut build)?;
    let programs = target.join("release");
    let mut test = Command::new(programs.join("hvl-e2e"));
    test.args(["run", name]).arg("--work").arg(paths::run_dir("e2e"));
    test.arg("--pmm").arg(programs.join("pmm")).arg("--host-shell").arg(programs.join("host-shell"));
    if firmware.is_some() || name == "net-qemu" {
        let tools = context.tools()?;
        if let Some(firmware) = firmware {
            test.arg("--firmware").arg(tools.toolchain.build(firmware)?);
        }
        let emulator = tools.emulator.command();
        test.arg("--").arg(emulator.get_program()).args(emulator.get_args());
    }
    let everything = name.starts_with("everything-");
    if everything && let Err(why) = setup::socat() {
        eprintln!("setup: socat: {why:#}");
    }
    if everything || name.starts_with("net-") {
        setup::network()?.offer(&mut test)?;
    }
    let status = context.run_counting(&mut tied::tie(&test, tied::Death::Kill)?)?;
    match status.code() {
        Some(0) => Ok(()),
        Some(SKIPPED) => bail!(Skipped(format!("{name} cannot run here; see above"))),
        _ => {
            let with = firmware.unwrap_or("the shell as a process");
            let logs = paths::run_dir("e2e").join(name);
            bail!("{name} with {with} failed ({status}): see above; logs are in {}", logs.display())
        }
    }
}
