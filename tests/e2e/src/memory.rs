//! The region as a guest that is a process sees it: a file that the PMM has mapped, too.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use hvl_shared_abi::{Attribute, Region};
use rustix::mm::{MapFlags, ProtFlags};

/// Maps a region. It stays mapped until the process ends, because a [`Region`] has no owner.
pub fn map(path: &Path, offset: u64, len: u32) -> Result<Region> {
    let file = File::options().read(true).write(true).open(path);
    let file = file.with_context(|| format!("{} cannot be opened", path.display()))?;
    anyhow::ensure!(file.metadata()?.len() >= offset + u64::from(len), "{} is too short", path.display());
    let flags = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses the address, so nothing that exists is replaced.
    let base = unsafe {
        rustix::mm::mmap(std::ptr::null_mut(), len as usize, flags, MapFlags::SHARED, &file, offset)
    };
    let base = base.with_context(|| format!("{} cannot be mapped", path.display()))?;
    let base = NonNull::new(base.cast::<u8>()).context("the region was mapped at address 0")?;
    // SAFETY: 1. a mapping starts at a page, is `len` bytes long, readable and writable, and is never unmapped; 2. it
    // is new, and no reference into it is made; 3. page cache shared between processes of one machine is coherent.
    Ok(unsafe { Region::new(base, len, Attribute::Coherent) })
}
