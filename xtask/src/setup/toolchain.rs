//! A compiler for the Cortex-R5. In this order: the target is installed; the standard library's source is, and is built
//! along; rustup gets the target; Debian's compiler and library source are unpacked in a private folder.

use anyhow::{Context, Result, bail};
use std::{
    env,
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    apt::{self, Apt},
    step,
};
use crate::{paths, process};

const TOOL: &str = "toolchain";
/// What firmware is built for.
pub const TARGET: &str = "armv7r-none-eabihf";
/// The floor of aarch32-rt.
const OLDEST: (u32, u32) = (1, 93);
/// rustup is given this long: where its server cannot be reached it may retry for minutes.
const RUSTUP_LIMIT: Duration = Duration::from_secs(60);

/// Builds firmware.
#[derive(Clone, Debug)]
pub struct Toolchain {
    source: Source,
    /// rust-lld of the host's toolchain; None where it has none, and the configured linker is looked for on PATH.
    linker: Option<PathBuf>,
}

/// Where the library for the target comes from.
#[derive(Clone, Debug)]
enum Source {
    /// It is installed.
    Installed,
    /// Built along from the host toolchain's rust-src.
    RustSrc,
    /// Built along by and from Debian's compiler, unpacked here.
    Debian(PathBuf),
}

impl Toolchain {
    /// `cargo SUBCOMMAND --target armv7r-none-eabihf` in the firmware workspace, to which packages and profile are
    /// added (`--release -p r5-shell`; a crate elsewhere with `--manifest-path`).
    ///
    /// It runs in tests/guests, whose `.cargo/config.toml` has the linker script and the processor. What it builds lies
    /// under target/firmware.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(paths::guests()).arg(subcommand).args(["--target", TARGET]);
        command.env("CARGO_TARGET_DIR", paths::firmware_target());
        // Flags meant for the host would replace those of the firmware workspace.
        for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER"] {
            command.env_remove(variable);
        }
        if let Some(linker) = &self.linker {
            command.env("CARGO_TARGET_ARMV7R_NONE_EABIHF_LINKER", linker);
        }
        match &self.source {
            Source::Installed => {}
            Source::RustSrc => {
                command.arg("-Zbuild-std=core,alloc").env("RUSTC_BOOTSTRAP", "1");
            }
            Source::Debian(root) => {
                command.arg("-Zbuild-std=core,alloc").env("RUSTC_BOOTSTRAP", "1");
                command.env("RUSTC", root.join("usr/bin/rustc")).env("LD_LIBRARY_PATH", libraries(root));
            }
        }
        command
    }

    /// Like `cargo clippy`, every warning an error. Debian's compiler needs Debian's clippy, which has no cargo part.
    pub fn clippy(&self) -> Command {
        match &self.source {
            Source::Debian(root) => {
                let mut command = self.cargo("check");
                command.env("RUSTC_WORKSPACE_WRAPPER", root.join("usr/bin/clippy-driver"));
                command.env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
                command
            }
            _ => {
                let mut command = self.cargo("clippy");
                command.env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__");
                command
            }
        }
    }

    /// Builds one firmware in release and returns its ELF file.
    pub fn build(&self, package: &str) -> Result<PathBuf> {
        process::run(self.cargo("build").args(["--quiet", "--release", "--package", package]))
            .with_context(|| format!("the firmware {package} could not be built"))?;
        Ok(paths::firmware_target().join(TARGET).join("release").join(package))
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Installed => write!(f, "the installed target {TARGET}"),
            Source::RustSrc => write!(f, "the installed rust-src, built for {TARGET}"),
            Source::Debian(root) => write!(f, "Debian's compiler in {}", root.display()),
        }
    }
}

pub(super) fn find_or_fetch() -> Result<Toolchain> {
    let host = Host::find()?;
    let linker = host.linker();
    let of = |source| Toolchain { source, linker: linker.clone() };
    let unpacked = paths::tools().join("rust");
    if let Some(source) = host.source() {
        return Ok(of(source));
    }
    if unpacked.exists() {
        return Ok(of(Source::Debian(unpacked)));
    }
    if host.new_enough() && add_target() {
        return Ok(of(Source::Installed));
    }
    fetch(&unpacked)?;
    Ok(of(Source::Debian(unpacked)))
}

/// The toolchain that built this program.
struct Host {
    sysroot: PathBuf,
    /// `release:` of `rustc -vV`.
    version: (u32, u32),
    /// `host:` of it.
    triple: String,
}

impl Host {
    fn find() -> Result<Self> {
        // Cargo says which one it is; its neighbour answers faster than rustup's proxy on PATH.
        let neighbour = env::var_os("CARGO").map(|cargo| Path::new(&cargo).with_file_name("rustc"));
        let rustc = neighbour.filter(|path| path.exists()).unwrap_or_else(|| "rustc".into());
        let about = process::read(Command::new(&rustc).arg("-vV"))?;
        let sysroot = process::read(Command::new(&rustc).args(["--print", "sysroot"]))?;
        Ok(Self {
            sysroot: sysroot.trim().into(),
            version: parse_version(&about).context("rustc -vV names no release")?,
            triple: field(&about, "host: ").context("rustc -vV names no host")?.to_owned(),
        })
    }

    fn rustlib(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib")
    }

    fn new_enough(&self) -> bool {
        self.version >= OLDEST
    }

    /// What it can do by itself.
    fn source(&self) -> Option<Source> {
        if !self.new_enough() {
            None
        } else if self.rustlib().join(TARGET).join("lib").exists() {
            Some(Source::Installed)
        } else if self.rustlib().join("src/rust/library/Cargo.lock").exists() {
            Some(Source::RustSrc)
        } else {
            None
        }
    }

    fn linker(&self) -> Option<PathBuf> {
        Some(self.rustlib().join(&self.triple).join("bin/rust-lld")).filter(|path| path.exists())
    }
}

/// The rest of the line that begins so.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

fn parse_version(about: &str) -> Option<(u32, u32)> {
    let mut numbers = field(about, "release: ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Asks rustup, if there is one. Its failure is ordinary: many machines cannot reach its server.
fn add_target() -> bool {
    let asked = step(TOOL, &format!("rustup target add {TARGET}"), || {
        let mut rustup = Command::new("rustup");
        rustup.args(["target", "add", TARGET]).env("RUST_BACKTRACE", "0");
        match process::read_within(&mut rustup, RUSTUP_LIMIT)? {
            None => bail!("no answer within {} s", RUSTUP_LIMIT.as_secs()),
            Some(output) if !output.status.success() => bail!("rustup cannot get it ({})", output.status),
            Some(_) => Ok(()),
        }
    });
    if let Err(error) = &asked {
        eprintln!("setup: {error:#}; going on without");
    }
    asked.is_ok()
}

fn fetch(root: &Path) -> Result<()> {
    let (major, minor) = OLDEST;
    let advice = format!(
        "install Rust {major}.{minor} or newer with its target {TARGET} (rustup target add {TARGET})"
    );
    if !apt::available() {
        bail!("this machine has no apt to get a compiler for the Cortex-R5 with: {advice}");
    }
    eprintln!("setup: {TOOL}: unpacking Debian's compiler under target/");
    // The host's part of the library is for build scripts and macros; clippy comes along for the tests.
    let packages = ["rustc-web", "rust-web-src", "libstd-rust-web-dev", "rust-web-clippy"];
    let fetched = Apt::of_this_machine(TOOL, &paths::tools().join("apt-rust"))
        .and_then(|apt| {
            apt.download(&packages, None)?;
            apt.unpack(root)
        })
        .and_then(|()| {
            let mut rustc = Command::new(root.join("usr/bin/rustc"));
            let about = process::read(rustc.arg("-vV").env("LD_LIBRARY_PATH", libraries(root)))?;
            match parse_version(&about) {
                Some(version) if version >= OLDEST => Ok(()),
                _ => bail!("the archive has another version: {}", about.lines().next().unwrap_or("unknown")),
            }
        });
    if fetched.is_err() && root.exists() {
        // What does not run must not be taken for ready by the next call.
        std::fs::remove_dir_all(root)?;
    }
    fetched.with_context(|| format!("Debian's compiler could not be had; {advice}"))
}

/// The unpacked compiler's libraries, in the form of LD_LIBRARY_PATH.
fn libraries(root: &Path) -> impl AsRef<OsStr> {
    let lib = root.join("usr/lib");
    let multiarch = lib.join(format!("{}-linux-gnu", env::consts::ARCH));
    format!("{}:{}", multiarch.display(), lib.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let about = "rustc 1.95.0 (59807616e 2026-04-14)\nhost: x86_64-unknown-linux-gnu\nrelease: 1.95.0\n";
        assert_eq!(parse_version(about), Some((1, 95)));
        assert_eq!(field(about, "host: "), Some("x86_64-unknown-linux-gnu"));
        assert_eq!(parse_version("rustc"), None);
    }
}
