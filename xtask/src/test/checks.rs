//! The checks that cargo makes.

use anyhow::Result;
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

pub fn unit(_: &Context) -> Result<()> {
    if let Err(why) = crate::setup::diod() {
        eprintln!("SKIPPED: the tests of files with diod's programs: {why:#}");
    }
    if let Err(why) = crate::setup::socat() {
        eprintln!("SKIPPED: the test of sockets with socat: {why:#}");
    }
    process::run(&mut cargo(&["test", "--quiet", "--workspace", "--all-features"]))
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
