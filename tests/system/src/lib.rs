//! An emulated Linux machine, for tests that need a kernel which this machine does not have: another version, other
//! modules, root's rights.
//!
//! A test makes an [`Image`] (the machine's only file system: programs of a [`Distribution`] with their libraries, kernel
//! modules, files of its own, and a script), and a [`Machine`] runs it: the kernel starts, the script runs as root, what it
//! prints comes line by line, and the machine switches itself off with the script's exit code. Nothing of it outlives the
//! emulator's process.

mod distribution;
mod image;
mod machine;

pub use distribution::Distribution;
pub use image::Image;
pub use machine::{Machine, run};
