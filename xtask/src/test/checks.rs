//! The checks that cargo makes.

use anyhow::{Result, ensure};
use std::{env, process::Command};

use super::Context;
use crate::{paths, process};

pub(super) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::root()).args(arguments);
    command
}

pub fn fmt(_: &Context) -> Result<()> {
    process::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    process::run(cargo(&["fmt", "--all", "--check"]).current_dir(paths::guests()))
}

pub fn clippy(_: &Context) -> Result<()> {
    process::run(&mut cargo(&[
        "clippy",
        "--quiet",
        "--workspace",
        "--all-features",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

pub fn doc(_: &Context) -> Result<()> {
    process::run(
        cargo(&["doc", "--quiet", "--workspace", "--all-features", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

pub fn unit(context: &Context) -> Result<()> {
    // What cannot be had is said here, and by the tests that skip for it.
    for (what, got) in [("diod", crate::setup::diod().map(drop)), ("socat", crate::setup::socat().map(drop))]
    {
        if let Err(why) = got {
            eprintln!("setup: {what}: {why:#}");
        }
    }
    let mut tests = cargo(&["test", "--quiet", "--workspace", "--all-features"]);
    let status = context.run_counting(&mut tests)?;
    ensure!(status.success(), "cargo test failed ({status}); see above");
    Ok(())
}

pub fn firmware(context: &Context) -> Result<()> {
    process::run(context.tools()?.toolchain.clippy().args(["--quiet", "--release", "--workspace"]))
}

/// Both halves of the link in one process, with a death at any access.
pub fn simulator(_: &Context) -> Result<()> {
    process::run(&mut cargo(&[
        "run",
        "--quiet",
        "--release",
        "--package",
        "hvl-sim",
        "--",
        "--seeds",
        "10000",
        "--list",
        "tests/sim/places.txt",
    ]))
}
