//! Debian packages without root and without touching the machine's package manager: apt works on a state of its own
//! in a private folder, packages are unpacked beside it and never installed.
//!
//! Which archive is asked, and through what, is the machine's own configuration; what is downloaded is verified with the
//! keys that the machine trusts. Its package lists may be missing or stale, so they are read anew.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::step;
use crate::process;

/// Where Debian keeps the keys of its archive.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// Parts of packages that nobody reads here. The compiler's own source is the largest by far; only the library's is
/// needed. Of a kernel's drivers these are the most, and for hardware that no emulated machine has.
const NOT_UNPACKED: [&str; 9] = [
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./usr/src/rustc-*/compiler",
    "./usr/src/rustc-*/src",
    "./usr/lib/modules/*/kernel/sound",
    "./usr/lib/modules/*/kernel/drivers/gpu",
    "./usr/lib/modules/*/kernel/drivers/media",
    "./usr/lib/modules/*/kernel/drivers/net/wireless",
];

/// apt on a private state.
pub struct Apt {
    /// The name of the tool that the packages are for, in messages.
    tool: &'static str,
    folder: PathBuf,
    options: Vec<String>,
}

/// Whether this machine has what the rest of this file calls.
pub fn available() -> bool {
    ["apt-get", "dpkg-deb", "tar"].iter().all(|program| {
        Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

impl Apt {
    /// apt with the machine's sources. Packages that the machine has are taken for installed.
    pub fn of_this_machine(tool: &'static str, folder: &Path) -> Result<Self> {
        let mut apt = Self::new(tool, folder)?;
        // It tells apt what need not be fetched. A copy, because apt locks the folder that the status lies in, and only
        // root may lock the machine's.
        let status = folder.join("status");
        fs::copy("/var/lib/dpkg/status", &status).context("dpkg's list of packages cannot be copied")?;
        apt.option("Dir::State::status", &status);
        apt.update()?;
        Ok(apt)
    }

    /// apt with other suites of the archive that the machine uses. Nothing is taken for installed, so that what comes
    /// is complete, down to the C library.
    pub fn of_suites(tool: &'static str, folder: &Path, suites: &[&str]) -> Result<Self> {
        let archive = debian_archive(tool, folder)?;
        let mut apt = Self::new(tool, folder)?;
        let key = KEYRINGS.iter().find(|path| Path::new(path).exists());
        let signed_by = key.map(|path| format!("[signed-by={path}] ")).unwrap_or_default();
        let list: String =
            suites.iter().map(|suite| format!("deb {signed_by}{archive} {suite} main\n")).collect();
        let sources = folder.join("sources.list");
        fs::write(&sources, list).with_context(|| format!("{} cannot be written", sources.display()))?;
        let status = folder.join("status");
        fs::write(&status, "").with_context(|| format!("{} cannot be written", status.display()))?;
        apt.option("Dir::Etc::sourcelist", &sources);
        apt.option("Dir::Etc::sourceparts", Path::new("/dev/null"));
        apt.option("Dir::State::status", &status);
        apt.update()?;
        Ok(apt)
    }

    fn new(tool: &'static str, folder: &Path) -> Result<Self> {
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).with_context(|| format!("{} cannot be created", path.display()))?;
        }
        let mut apt = Self { tool, folder: folder.to_owned(), options: Vec::new() };
        apt.option("Dir::State", &folder.join("state"));
        apt.option("Dir::Cache", &folder.join("cache"));
        // As root, apt downloads as another user, who may not be able to write here.
        apt.options.push("-oAPT::Sandbox::User=root".into());
        apt.options.push("-oAPT::Install-Recommends=false".into());
        apt.options.push("-oAcquire::Languages=none".into());
        apt.options.push("-oAcquire::Retries=3".into());
        Ok(apt)
    }

    fn option(&mut self, name: &str, path: &Path) {
        self.options.push(format!("-o{name}={}", path.display()));
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.args(&self.options);
        command
    }

    fn update(&self) -> Result<()> {
        step(self.tool, "reading the package lists", || {
            // Without Error-Mode, a source that cannot be reached is only a warning, and an old or empty list is used.
            process::read(self.command().args(["update", "-oAPT::Update::Error-Mode=any"])).map(drop)
        })
    }

    /// Downloads `packages` and what they need, if need be as of `release`.
    pub fn download(&self, packages: &[&str], release: Option<&str>) -> Result<()> {
        step(self.tool, &format!("downloading {}", packages.join(", ")), || {
            let mut command = self.command();
            command.args(["install", "--download-only", "--reinstall", "--yes"]);
            if let Some(release) = release {
                command.args(["--target-release", release]);
            }
            command.args(packages);
            let (mut count, mut said) = (0, 0);
            process::read_lines(&mut command, |line| {
                if let Some(size) = line.strip_prefix("Need to get ") {
                    eprintln!("setup: {}: {}", self.tool, size.trim_end_matches('.'));
                }
                count += usize::from(line.starts_with("Get:"));
                if count >= said + 20 {
                    said = count;
                    eprintln!("setup: {}: {count} packages", self.tool);
                }
            })
            .map(drop)
        })
    }

    /// Unpacks everything downloaded into `root`, which appears only when it is complete, and forgets the rest.
    pub fn unpack(self, root: &Path) -> Result<()> {
        step(self.tool, "unpacking", || {
            let partial = root.with_extension("partial");
            for stale in [&partial, root] {
                if stale.exists() {
                    fs::remove_dir_all(stale)
                        .with_context(|| format!("{} is in the way", stale.display()))?;
                }
            }
            fs::create_dir_all(&partial)?;
            let mut packages = Vec::new();
            for entry in fs::read_dir(self.folder.join("cache/archives"))? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "deb") {
                    packages.push(path);
                }
            }
            unpack_all(&packages, &partial)?;
            fs::rename(&partial, root)?;
            fs::remove_dir_all(&self.folder)?;
            Ok(())
        })
    }
}

/// The address of the Debian archive that this machine uses for its main suite.
fn debian_archive(tool: &'static str, folder: &Path) -> Result<String> {
    let targets = |apt: &Apt| {
        process::read(apt.command().args([
            "indextargets",
            "--format",
            "$(LABEL) $(REPO_URI)",
            "Created-By: Packages",
        ]))
    };
    let find = |text: &str| text.lines().find_map(|line| Some(line.strip_prefix("Debian ")?.to_owned()));
    // First what apt knows already; it lists only what was updated once, which on a fresh machine is nothing.
    let known = Apt { tool, folder: folder.to_owned(), options: Vec::new() };
    if let Some(archive) = find(&targets(&known).unwrap_or_default()) {
        return Ok(archive);
    }
    let lists = folder.join("of-this-machine");
    match find(&targets(&Apt::of_this_machine(tool, &lists)?)?) {
        Some(archive) => Ok(archive),
        None => bail!("apt has no Debian archive among its sources"),
    }
}

/// On all processors: decompression is what takes the time.
fn unpack_all(packages: &[PathBuf], root: &Path) -> Result<()> {
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        let work = || {
            while let Some(package) = packages.get(next.fetch_add(1, Ordering::Relaxed)) {
                unpack_one(package, root)?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("unpacking panicked; see above"),
        })
    })
}

fn unpack_one(package: &Path, root: &Path) -> Result<()> {
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("dpkg-deb could not be started")?;
    let stream = archive.stdout.take().context("the child's stdout is a pipe")?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--no-same-permissions", "--directory"]).arg(root);
    // Without this, a star in the patterns would reach into sub-folders.
    tar.arg("--no-wildcards-match-slash");
    for pattern in NOT_UNPACKED {
        tar.arg(format!("--exclude={pattern}"));
    }
    let unpacked = tar.stdin(stream).status().context("tar could not be started")?;
    let read = archive.wait()?;
    if !unpacked.success() || !read.success() {
        bail!("{} could not be unpacked; is the disk full?", package.display());
    }
    Ok(())
}
