//! diod's programs: a 9P client and server that somebody else wrote, for the tests of ours. Only tests use them, so
//! where they cannot be had those tests are skipped and say so.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use super::apt::{self, Apt};
use crate::paths;

const TOOL: &str = "diod";
/// What the tests call.
const PROGRAMS: [&str; 3] = ["diodcat", "diodls", "diod"];
/// The Debian release that it is taken from. It need not be the machine's own: it comes with its C library.
const RELEASE: &str = "trixie";

/// Where the programs are, in words.
pub(super) fn find_or_fetch() -> Result<String> {
    if PROGRAMS.iter().all(|program| runs(Path::new(program))) {
        return Ok("diod on PATH".into());
    }
    let root = paths::tools().join(TOOL);
    if !root.exists() {
        fetch(&root)?;
    }
    Ok(format!("diod in {}", root.display()))
}

fn runs(program: &Path) -> bool {
    // It prints its usage and ends with 1.
    Command::new(program).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn fetch(root: &Path) -> Result<()> {
    if !apt::available() {
        bail!("this machine has no apt to get diod with");
    }
    let fetched = Apt::of_suites(TOOL, &paths::tools().join("apt-diod"), &[RELEASE])
        .and_then(|apt| {
            apt.download(&[TOOL], None)?;
            apt.unpack(root)
        })
        .and_then(|()| PROGRAMS.iter().try_for_each(|program| wrap(root, program)));
    if fetched.is_err() && root.exists() {
        // What does not run must not be taken for ready by the next call.
        fs::remove_dir_all(root)?;
    }
    fetched
}

/// Makes `bin/PROGRAM`, which starts the unpacked program with the libraries that came with it, so that a test needs to
/// know nothing but this path.
fn wrap(root: &Path, program: &str) -> Result<()> {
    let loader = super::emulator::loader(root)?;
    // Relative, so that the repository can be moved.
    let loader = loader.strip_prefix(root)?;
    let libraries = loader.parent().unwrap_or(loader);
    let bin = root.join("bin");
    fs::create_dir_all(&bin)?;
    let path = bin.join(program);
    let script = format!(
        "#!/bin/sh\nhere=$(dirname \"$(readlink -f \"$0\")\")/..\n\
         exec \"$here/{}\" --library-path \"$here/{}\" \"$here/usr/sbin/{program}\" \"$@\"\n",
        loader.display(),
        libraries.display(),
    );
    fs::write(&path, script).with_context(|| format!("{} cannot be written", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    // The loader's own failure is 127.
    let status = Command::new(&path).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    match status.code() {
        Some(0 | 1) => Ok(()),
        _ => bail!("{} does not run ({status})", path.display()),
    }
}
