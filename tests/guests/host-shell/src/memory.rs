//! The region in this process's address space. The only unsafe code of the guest.
#![allow(unsafe_code)]

use std::fs::File;
use std::ptr::{self, NonNull};

use anyhow::{Context, Result};
use hvl_shared_abi::{Attribute, Region};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Maps `len` bytes of `file` from `offset` (whole pages) on, for the rest of this process's life. The file is that long; who cuts it
/// off under a process that has mapped it kills that process, as taking a board's memory out would.
pub fn map(file: &File, offset: u64, len: u32) -> Result<Region> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: with no address asked for, the kernel chooses one that nothing of this process lies at.
    let base = unsafe { mmap(ptr::null_mut(), len as usize, prot, MapFlags::SHARED, file, offset) };
    let base = base.context("the region cannot be mapped")?;
    let base = NonNull::new(base.cast()).context("the region was mapped at address 0")?;
    // SAFETY: 1. page-aligned, mapped readable and writable, and never unmapped; 2. the mapping is new, and only the
    // result names it; 3. processes of one machine are coherent with each other.
    Ok(unsafe { Region::new(base, len, Attribute::Coherent) })
}
