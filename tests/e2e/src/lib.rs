//! Tests of the whole with real processes: the program `pmm`, the guests' shell as a Linux process and on the emulated
//! board, and between them doorbells that fail.
//!
//! What they are built from:
//!
//! - [`rig`]: a directory, a PMM, a guest and a terminal at its console, each of which can be killed and started again.
//! - [`pmm`], [`guest`], [`terminal`]: these parts. [`process`]: children that die with the test.
//! - [`board`]: the test itself as a guest. [`slow`]: a file system that answers when it is told to.
//!   [`tap`]: what becomes of a TAP's frames.
//! - [`namespace`]: namespaces of a test's own.
//! - [`proxy`]: a doorbell that merges, drops, doubles and delays, between a guest and a PMM.
//! - [`traffic`]: numbered lines both ways, through restarts of anything.
//! - [`tests`]: the tests, by name.
//!
//! Nothing here sleeps and hopes. A test waits for bytes, for a state that the PMM reports, or for the end of a
//! process; a time is only a [`guard`], and its message names what did not happen.

pub mod board;
pub mod dice;
pub mod guard;
pub mod guest;
pub mod memory;
pub mod namespace;
pub mod net_guest;
pub mod pmm;
pub mod process;
pub mod proxy;
pub mod rig;
pub mod slow;
pub mod tap;
pub mod terminal;
pub mod tests;
pub mod traffic;

use std::ffi::OsString;
use std::path::PathBuf;

use crc::{CRC_32_ISO_HDLC, Crc};

/// The checksum that the guests' shell tells.
pub const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Length and checksum of bytes, as the guests' shell tells them.
pub fn summed(bytes: &[u8]) -> String {
    format!("{} bytes, CRC-32 {:08x}", bytes.len(), CRC.checksum(bytes))
}

/// Why a test cannot run here. It is counted, and never taken for a success.
#[derive(Debug)]
pub struct Skipped(pub String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// What the program ends with after a test that was skipped.
pub const SKIPPED: u8 = 77;

/// What the tests are given.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The program `pmm`.
    pub pmm: PathBuf,
    /// The program `host-shell`.
    pub host_shell: PathBuf,
    /// The firmware that the test is for, if the emulated board is there.
    pub firmware: Option<PathBuf>,
    /// How the emulator is called: the program and its first arguments.
    pub emulator: Vec<OsString>,
    /// Where tests make their directories.
    pub work: PathBuf,
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Sizes and numbers of rounds in percent of what is asked for.
    pub percent: u32,
}

impl Tools {
    /// A size or a number of rounds as this run wants it; at least 1.
    pub fn scaled(&self, full: u64) -> u64 {
        (full * u64::from(self.percent) / 100).max(1)
    }
}
