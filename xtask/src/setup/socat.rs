//! socat: a client and server of UNIX sockets that somebody else wrote, for the test of ours. Only tests use it, so where
//! it cannot be had that test is skipped and says so.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use super::apt::{self, Apt};
use crate::paths;

const TOOL: &str = "socat";
/// The Debian release that it is taken from. It need not be the machine's own: it comes with its C library.
const RELEASE: &str = "trixie";

/// Where the program is, in words.
pub(super) fn find_or_fetch() -> Result<String> {
    if runs(Path::new(TOOL)) {
        return Ok(format!("{TOOL} on PATH"));
    }
    let root = paths::tools().join(TOOL);
    if !root.exists() {
        fetch(&root)?;
    }
    Ok(format!("{TOOL} in {}", root.display()))
}

/// The program on PATH, or the one that was unpacked, if there is one.
pub(super) fn find() -> String {
    let unpacked = paths::tools().join(TOOL).join("bin").join(TOOL);
    if !runs(Path::new(TOOL)) && runs(&unpacked) { unpacked.display().to_string() } else { TOOL.into() }
}

fn runs(program: &Path) -> bool {
    let status = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn fetch(root: &Path) -> Result<()> {
    if !apt::available() {
        bail!("this machine has no apt to get {TOOL} with");
    }
    let fetched = Apt::of_suites(TOOL, &paths::tools().join("apt-socat"), &[RELEASE])
        .and_then(|apt| {
            apt.download(&[TOOL], None)?;
            apt.unpack(root)
        })
        .and_then(|()| wrap(root));
    if fetched.is_err() && root.exists() {
        // What does not run must not be taken for ready by the next call.
        fs::remove_dir_all(root)?;
    }
    fetched
}

/// Makes `bin/socat`, which starts the unpacked program with the libraries that came with it.
fn wrap(root: &Path) -> Result<()> {
    let loader = super::emulator::loader(root)?;
    // Relative, so that the repository can be moved.
    let loader = loader.strip_prefix(root)?;
    let libraries = loader.parent().unwrap_or(loader);
    let bin = root.join("bin");
    fs::create_dir_all(&bin)?;
    let path = bin.join(TOOL);
    let script = format!(
        "#!/bin/sh\nhere=$(dirname \"$(readlink -f \"$0\")\")/..\n\
         exec \"$here/{}\" --library-path \"$here/{}\" \"$here/usr/bin/{TOOL}\" \"$@\"\n",
        loader.display(),
        libraries.display(),
    );
    fs::write(&path, script).with_context(|| format!("{} cannot be written", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    if !runs(&path) {
        bail!("{} does not run", path.display());
    }
    Ok(())
}
