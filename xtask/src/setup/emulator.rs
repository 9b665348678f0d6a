//! The emulator: QEMU's ZCU102. Only recent versions give the Cortex-R5 an interrupt controller; in older ones it can
//! but poll, and no doorbell would ever arrive.

use anyhow::{Context, Result, bail};
use hvl_test_board::Launch;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::apt::{self, Apt};
use crate::{paths, process};

const TOOL: &str = "emulator";
const PROGRAM: &str = "qemu-system-aarch64";
/// The first version in which the R5's interrupt controller was seen to work.
const OLDEST: (u32, u32) = (11, 1);
/// The Debian release whose backports have it. It need not be the machine's own: the emulator comes with its C library.
const RELEASE: &str = "trixie";

/// A QEMU that is recent enough.
#[derive(Clone, Debug)]
pub struct Emulator {
    place: Place,
    /// What the processor says it is, if not what it is.
    midr: Option<u32>,
}

impl Emulator {
    fn at(place: Place) -> Emulator {
        Emulator { place, midr: None }
    }

    /// One whose Cortex-R5 has this in its Main ID Register.
    pub fn with_midr(self, midr: u32) -> Emulator {
        Emulator { midr: Some(midr), ..self }
    }
}

#[derive(Clone, Debug)]
enum Place {
    /// On PATH, in this version.
    Installed(String),
    /// Unpacked here, with all the libraries it needs.
    Unpacked { root: PathBuf, loader: PathBuf },
}

impl Launch for Emulator {
    fn command(&self) -> Command {
        let mut command = match &self.place {
            Place::Installed(_) => Command::new(PROGRAM),
            Place::Unpacked { root, loader } => {
                // Started through its own loader, it uses none of the machine's libraries.
                let mut command = Command::new(loader);
                let libraries = loader.parent().unwrap_or(root);
                command.arg("--library-path").arg(libraries);
                command.arg(root.join("usr/bin").join(PROGRAM));
                command.arg("-L").arg(root.join("usr/share/qemu"));
                command
            }
        };
        if let Some(midr) = self.midr {
            command.arg("-global").arg(format!("cortex-r5f-arm-cpu.midr={midr:#x}"));
        }
        command
    }
}

impl fmt::Display for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Installed(version) => write!(f, "{PROGRAM} {version} on PATH"),
            Place::Unpacked { root, .. } => write!(f, "{PROGRAM} in {}", root.display()),
        }
    }
}

pub(super) fn find_or_fetch() -> Result<Emulator> {
    if let Some(version) = installed() {
        return Ok(Emulator::at(Place::Installed(version)));
    }
    let root = paths::tools().join("qemu");
    if !root.exists() {
        fetch(&root)?;
    }
    Ok(Emulator::at(Place::Unpacked { loader: loader(&root)?, root }))
}

/// The version on PATH, if it will do.
fn installed() -> Option<String> {
    let text = process::read(Command::new(PROGRAM).arg("--version")).ok()?;
    let version = parse_version(&text)?;
    (version >= OLDEST).then(|| format!("{}.{}", version.0, version.1))
}

/// From "QEMU emulator version 11.1.3 (Debian ...)".
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split("version ").nth(1)?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn fetch(root: &Path) -> Result<()> {
    let (major, minor) = OLDEST;
    let advice = format!("install {PROGRAM} {major}.{minor} or newer and put it on PATH");
    if !apt::available() {
        bail!("this machine has no apt to get the emulator with: {advice}");
    }
    eprintln!("setup: {TOOL}: no {PROGRAM} {major}.{minor} here; unpacking Debian's under target/");
    let backports = format!("{RELEASE}-backports");
    let fetched = Apt::of_suites(TOOL, &paths::tools().join("apt-qemu"), &[RELEASE, &backports])
        .and_then(|apt| {
            apt.download(&["qemu-system-arm"], Some(&backports))?;
            apt.unpack(root)
        })
        .and_then(|()| {
            let emulator = Emulator::at(Place::Unpacked { loader: loader(root)?, root: root.to_owned() });
            let text = process::read(emulator.command().arg("--version"))?;
            match parse_version(&text) {
                Some(version) if version >= OLDEST => Ok(()),
                _ => bail!("the archive has another version: {}", text.lines().next().unwrap_or("unknown")),
            }
        });
    if fetched.is_err() && root.exists() {
        // What does not run must not be taken for ready by the next call.
        fs::remove_dir_all(root)?;
    }
    fetched.with_context(|| format!("Debian's emulator could not be had; {advice}"))
}

/// The dynamic loader among the unpacked files; the libraries lie beside it.
pub(super) fn loader(root: &Path) -> Result<PathBuf> {
    let libraries = root.join("usr/lib");
    for entry in fs::read_dir(&libraries).with_context(|| format!("{} is gone", libraries.display()))? {
        let folder = entry?.path();
        if !folder.join("libc.so.6").exists() {
            continue;
        }
        for file in fs::read_dir(&folder)? {
            let path = file?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux")) {
                return Ok(path);
            }
        }
    }
    bail!("{} is not complete: remove it and call again", root.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(
            parse_version("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)\nCopyright"),
            Some((11, 1))
        );
        assert_eq!(parse_version("QEMU emulator version 7.2.17"), Some((7, 2)));
        assert_eq!(parse_version("qemu"), None);
        assert!((11, 0) < OLDEST && (12, 0) > OLDEST);
    }
}
