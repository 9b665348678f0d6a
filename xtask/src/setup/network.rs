//! Programs for networks that a machine may not have: `passt`, which `--network mode=user` starts, and `ping`, which a
//! test floods a card with. Debian's, unpacked and not installed; their libraries are this machine's own.

use anyhow::{Context, Result, bail};
use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::apt::{self, Apt};
use crate::{paths, process};

const TOOL: &str = "network";
/// A program and the package that has it.
const PROGRAMS: [(&str, &str); 2] = [("passt", "passt"), ("ping", "iputils-ping")];

/// Where they are.
#[derive(Clone, Debug)]
pub struct Network {
    /// Folders for PATH, beside those that it has.
    folders: Vec<PathBuf>,
    /// Why some are missing.
    missing: Option<String>,
}

impl Network {
    /// Where `passt` is.
    pub fn passt(&self) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut all = env::split_paths(&path).chain(self.folders.iter().cloned());
        all.find_map(|folder| folder.join("passt").canonicalize().ok())
    }

    /// Lets a command, and what that starts, find them.
    pub fn offer(&self, command: &mut Command) -> Result<()> {
        let path = env::var_os("PATH").unwrap_or_default();
        let all = env::split_paths(&path).chain(self.folders.iter().cloned());
        command.env("PATH", env::join_paths(all).context("PATH cannot be extended")?);
        Ok(())
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.missing, self.folders.first()) {
            (Some(why), _) => write!(f, "not all of them: {why}"),
            (None, Some(folder)) => write!(f, "passt and ping in {}", folder.display()),
            (None, None) => f.write_str("passt and ping on PATH"),
        }
    }
}

/// Finds them, or fetches them if it `may`. A machine on which that fails can do all else, so it is no error: what needs
/// them says so.
pub(super) fn find(may_fetch: bool) -> Network {
    let path = env::var_os("PATH").unwrap_or_default();
    let has = |folder: &Path, program: &str| folder.join(program).is_file();
    let packages: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| !env::split_paths(&path).any(|folder| has(&folder, program)))
        .collect();
    if packages.is_empty() {
        return Network { folders: Vec::new(), missing: None };
    }
    let root = paths::tools().join("network");
    // Where Debian has them, by release.
    let folders: Vec<_> = ["usr/bin", "bin"].map(|folder| root.join(folder)).into();
    let there = || packages.iter().all(|(program, _)| folders.iter().any(|folder| has(folder, program)));
    let fetched = if there() || !may_fetch {
        Ok(())
    } else {
        fetch(&root, &packages.iter().map(|(_, name)| *name).collect::<Vec<_>>())
    };
    let missing = match fetched {
        Ok(()) if there() => None,
        Ok(()) => Some(format!("{} is not complete; remove it and call again", root.display())),
        Err(error) => Some(format!("{error:#}")),
    };
    Network { folders, missing }
}

fn fetch(root: &Path, packages: &[&str]) -> Result<()> {
    if !apt::available() {
        bail!("this machine has no apt to get them with; install {}", packages.join(" and "));
    }
    eprintln!("setup: {TOOL}: no {} here; unpacking Debian's under target/", packages.join(", "));
    let apt = Apt::of_this_machine(TOOL, &paths::tools().join("apt-network"))?;
    apt.download(packages, None)?;
    apt.unpack(root)?;
    let passt = root.join("usr/bin/passt");
    if passt.exists() && process::read(Command::new(&passt).arg("--version")).is_err() {
        // Older ones print their version and fail, but a library that is missing is another matter.
        let text = Command::new(&passt).arg("--help").output();
        if !text.is_ok_and(|output| !output.stdout.is_empty() || !output.stderr.is_empty()) {
            fs::remove_dir_all(root)?;
            bail!("Debian's passt does not run here");
        }
    }
    Ok(())
}
