//! The region as a guest that is a process sees it: a file that the PMM has mapped, too.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hvl_shared_abi::Region;

/// Maps `len` bytes of a region that the PMM has made, from `offset` bytes on. It stays mapped until the process ends.
pub fn map(path: &Path, offset: u64, len: u32) -> Result<Region> {
    let file = File::options().read(true).write(true).open(path);
    let file = file.with_context(|| format!("{} cannot be opened", path.display()))?;
    ensure!(file.metadata()?.len() >= offset + u64::from(len), "{} is too short", path.display());
    hvl_guest_host::memory::map(&file, offset, len).with_context(|| path.display().to_string())
}
