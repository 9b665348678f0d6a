//! The checks that cargo makes.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::{collections::BTreeMap, env, process::Command};

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

/// What `cargo metadata` says of the workspace, as far as it is needed here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: std::path::PathBuf,
    features: BTreeMap<String, Vec<String>>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

/// The libraries, as somebody has them who depends on one: with features that no other member of the workspace adds.
pub fn features(_: &Context) -> Result<()> {
    let metadata = process::read(&mut cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata")?;
    let tests = paths::root().join("tests");
    let mut combinations = 0;
    for package in &metadata.packages {
        let is_library = package.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "lib"));
        if !is_library || package.manifest_path.starts_with(&tests) {
            continue;
        }
        let name = package.name.as_str();
        let alone = package.features.keys().map(|feature| format!("--features={feature}"));
        // `--no-default-features` adds nothing to all of them, and is what "alone" means.
        let choices = [String::from("--features="), "--all-features".into()].into_iter().chain(alone);
        for choice in choices {
            let clippy = ["clippy", "--quiet", "--package", name, "--no-default-features", &choice];
            process::run(cargo(&clippy).args(["--", "-D", "warnings"]))
                .with_context(|| format!("{name} with {choice}"))?;
            combinations += 1;
        }
        process::run(
            cargo(&["doc", "--quiet", "--package", name, "--all-features", "--no-deps"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        )
        .with_context(|| format!("the documentation of {name} alone"))?;
    }
    eprintln!("features: {combinations} combinations");
    // The three libraries without features and with all, and what the two that have features add.
    ensure!(combinations > 10, "only {combinations} combinations of features were found in cargo metadata");
    Ok(())
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
