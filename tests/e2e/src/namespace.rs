//! Namespaces of a test's own, in which it may make interfaces and mounts that nobody else sees and that go with it.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::guard::Guard;
use crate::process::{self, Running};
use crate::{SKIPPED, Skipped, Tools};

/// Seconds that a test may take in one.
const LONG: u64 = 1200;

/// Set where the test is in its namespace already.
const INSIDE: &str = "HVL_E2E_INSIDE";

/// What is to be the test's own.
pub struct Namespace {
    /// Options of `unshare`.
    pub kinds: &'static [&'static str],
    /// Programs that make things in it.
    pub programs: &'static [&'static str],
    /// What a test does in it, and why it cannot be run where that fails.
    pub probes: &'static [(&'static str, &'static str)],
    /// What is done in it before the test.
    pub prepare: &'static [&'static str],
    /// The test is run by an ordinary user there, who has no rights.
    pub is_ordinary: bool,
}

impl Namespace {
    /// Interfaces, a TAP among them.
    pub const NETWORK: Namespace = Namespace {
        kinds: &["--net"],
        programs: &["ip"],
        probes: &[
            ("ip link set lo up", "a network namespace cannot be made (rights?)"),
            ("ip tuntap add dev hvl0 mode tap", "a TAP cannot be made in a network namespace (/dev/net/tun)"),
        ],
        prepare: &[],
        is_ordinary: false,
    };
    /// A TAP `hvl0`, and a macvtap `far0` on it, of which `/sys` tells.
    pub const MACVTAP: Namespace = Namespace {
        kinds: &["--net", "--mount"],
        programs: &["ip", "mount"],
        probes: &[
            ("mount -t sysfs none /sys", "a network namespace with mounts cannot be made (rights?)"),
            (
                "ip tuntap add dev hvl0 mode tap && ip link add link hvl0 name far0 type macvtap",
                "a TAP with a macvtap on it cannot be made in a network namespace",
            ),
        ],
        prepare: &[
            "mount -t sysfs none /sys",
            "ip tuntap add dev hvl0 mode tap",
            "ip link add link hvl0 name far0 address 02:00:00:00:00:01 type macvtap mode vepa",
            "ip link set hvl0 up",
            "ip link set far0 up",
        ],
        is_ordinary: false,
    };
    /// Mounts of file systems that are programs.
    pub const MOUNTS: Namespace = Namespace {
        kinds: &["--mount"],
        programs: &[],
        probes: &[
            ("true", "a mount namespace cannot be made (rights?)"),
            ("exec 3<>/dev/fuse", "/dev/fuse cannot be opened, so no file system can hold an operation"),
        ],
        prepare: &[],
        is_ordinary: false,
    };
}

/// How an ordinary user is made of one who has all rights in a namespace.
const ORDINARY: &[&str] = &["unshare", "--user", "--map-user=1000", "--map-group=1000"];

/// Whether this is the run of a test in namespaces, of which the run outside tells.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Whether the test is in namespaces of its own. If not, it has been run in them from here.
///
/// # Errors
///
/// What its run there ended with; [`Skipped`] if there cannot be such namespaces, or not the programs that it needs.
pub fn is_entered(tools: &Tools, name: &str, namespace: &Namespace, needs: &[&str]) -> Result<bool> {
    if is_inside() {
        return Ok(true);
    }
    for program in ["unshare"].iter().chain(namespace.programs).chain(needs) {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&paths).any(|folder| folder.join(program).is_file()) {
            bail!(Skipped(format!("there is no '{program}' on PATH")));
        }
    }
    let root = rustix::process::geteuid().is_root();
    let rights: &[&str] = if root { &[] } else { &["--user", "--map-root-user"] };
    let within = if namespace.is_ordinary { ORDINARY } else { &[] };
    let ordinary = [within, &["true"]].concat().join(" ");
    let last = (&*ordinary, "an ordinary user cannot be made in a namespace");
    for (probe, otherwise) in namespace.probes.iter().chain([&last]) {
        let mut unshare = Command::new("unshare");
        unshare.args(rights).args(namespace.kinds).args(["sh", "-c", probe]);
        unshare.stdout(Stdio::null()).stderr(Stdio::null());
        if !unshare.status().is_ok_and(|status| status.success()) {
            bail!(Skipped((*otherwise).into()));
        }
    }
    let prepare: String = namespace.prepare.iter().map(|line| format!("{line} && ")).collect();
    let mut command = process::command("unshare")?;
    command.args(rights).args(namespace.kinds).args(["sh", "-c", &format!("{prepare}exec \"$@\""), "sh"]);
    command.args(within).arg(std::env::current_exe()?).args(["run", name]);
    command.arg("--pmm").arg(&tools.pmm).arg("--host-shell").arg(&tools.host_shell);
    command.arg("--work").arg(tools.work.parent().context("a test's directory has no parent")?);
    command.args(["--seed", &tools.seed.to_string(), "--percent", &tools.percent.to_string()]);
    command.args(tools.firmware.iter().flat_map(|firmware| ["--firmware".as_ref(), firmware.as_os_str()]));
    if !tools.emulator.is_empty() {
        command.arg("--").args(&tools.emulator);
    }
    command.env(INSIDE, "1");
    let mut child = Running::spawn(name, &mut command)?;
    match child.end(&Guard::new(LONG, name))? {
        Some(0) => Ok(false),
        Some(code) if code == i32::from(SKIPPED) => bail!(Skipped("as it says above".into())),
        _ => bail!("{name} failed in its namespace; see above"),
    }
}
