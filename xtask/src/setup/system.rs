//! A whole Linux system for tests of what this machine's kernel may not have or not allow: an emulator of x86-64, Debian's
//! kernel with its modules, and ordinary programs for the inside. Only tests use it, so where it cannot be had they are
//! skipped and say so.
//!
//! Everything lies in one folder as Debian unpacks it; `hvl-test-system` takes what a test needs from there.

use anyhow::{Context, Result, bail};
use hvl_test_board::Launch;
use hvl_test_system::Distribution;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::apt::{self, Apt};
use crate::{paths, process};

const TOOL: &str = "system";
const PROGRAM: &str = "qemu-system-x86_64";
/// The Debian release that everything is from. It need not be the machine's own: the emulator comes with its C library.
const RELEASE: &str = "trixie";
/// The emulator, the kernel and a shell for it. The kernel is the full one: that for clouds has no 9P.
const ALWAYS: [&str; 3] = ["qemu-system-x86", "linux-image-amd64", "busybox-static"];
/// What runs inside, for the tests that exist. Who adds one here has it fetched anew on every machine.
const INSIDE: [&str; 6] = ["git", "rsync", "tar", "sqlite3", "attr", "acl"];

/// What [`find_or_fetch`] found.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
    loader: PathBuf,
}

impl System {
    /// Where kernel, modules and programs are taken from.
    pub fn distribution(&self) -> Result<Distribution> {
        Distribution::at(&self.root)
    }
}

impl Launch for System {
    fn command(&self) -> Command {
        // Started through its own loader, it uses none of the machine's libraries.
        let mut command = Command::new(&self.loader);
        let libraries = self.loader.parent().unwrap_or(&self.root);
        command.arg("--library-path").arg(libraries);
        command.arg(self.root.join("usr/bin").join(PROGRAM));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.root.join(firmware));
        }
        command
    }
}

impl std::fmt::Display for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PROGRAM} and a Linux system in {}", self.root.display())
    }
}

/// The folder's name says what is in it, so that a longer list is fetched instead of found.
fn root() -> PathBuf {
    paths::tools().join(format!("{TOOL}-{RELEASE}-{}", INSIDE.join("-")))
}

pub(super) fn find_or_fetch() -> Result<System> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the programs for the inside are built by this machine's compiler, and it is no x86-64");
    }
    let root = root();
    if !root.exists() {
        fetch(&root)?;
    }
    Ok(System { loader: super::emulator::loader(&root)?, root })
}

fn fetch(root: &Path) -> Result<()> {
    if !apt::available() {
        bail!("this machine has no apt to get a Linux system with");
    }
    eprintln!(
        "setup: {TOOL}: unpacking an emulator, a kernel and programs of Debian {RELEASE} under target/"
    );
    let fetched = Apt::of_suites(TOOL, &paths::tools().join("apt-system"), &[RELEASE])
        .and_then(|apt| {
            apt.download(&[ALWAYS.as_slice(), &INSIDE].concat(), None)?;
            apt.unpack(root)
        })
        .and_then(|()| {
            let system = System { loader: super::emulator::loader(root)?, root: root.to_owned() };
            system.distribution()?;
            process::read(system.command().arg("--version")).map(drop)
        });
    if fetched.is_err() && root.exists() {
        // What does not run must not be taken for ready by the next call.
        fs::remove_dir_all(root)?;
    }
    fetched.context("Debian's system for tests could not be had")
}
