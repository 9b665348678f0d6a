//! Where things lie in the repository. All that xtask makes is under `target/`, whatever CARGO_TARGET_DIR says: it is
//! shared by every way of calling it, and `cargo clean` removes it.

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// The firmware workspace.
pub fn guests() -> PathBuf {
    root().join("tests/guests")
}

/// What `setup` fetches.
pub fn tools() -> PathBuf {
    root().join("target/tools")
}

/// Cargo's target directory for firmware.
pub fn firmware_target() -> PathBuf {
    root().join("target/firmware")
}

/// Cargo's target directory for the programs of this machine.
pub fn host_target() -> PathBuf {
    root().join("target")
}

/// A directory for the files of a run: memory, sockets, logs.
pub fn run_dir(name: &str) -> PathBuf {
    root().join("target/run").join(name)
}
