//! The shell of the guests: what a user, a script or a test types at a firmware's console.
//!
//! It is one state machine, [`Shell`], that a main loop calls after the link: it reads what has come, writes what fits,
//! and says what it wants next. It never waits; output that does not fit stays where it is until the next call.
//!
//! - [`text`]: bytes on their way to the console.
//! - [`editor`]: keys become lines.
//! - [`command`]: lines become commands.
//! - [`report`]: what `help`, `about` and `link` say, line by line.
//! - [`files`]: commands on a directory that the PMM shares.
//! - [`network`], [`http`], [`net`]: the board in a network, the pages that it serves, and commands about both.
//! - [`sockets`]: calls from and to the host.
//! - [`bench`](mod@bench): how fast all three are.
//! - [`shell`]: commands become output.
//!
//! A script tells success from failure by the prompt: `NAME> ` after a command that succeeded, `NAME (failed)> ` after
//! one that did not, whose reason stands before it in a line `error: ...`.
#![no_std]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

#[cfg(test)]
extern crate std;

pub mod bench;
pub mod command;
pub mod editor;
pub mod files;
pub mod http;
pub mod net;
pub mod network;
pub mod pattern;
pub mod report;
pub mod shell;
pub mod sockets;
pub mod text;

pub use shell::{Devices, Next, Shell};

use core::fmt;

/// What the shell tells of the machine that it runs on.
pub trait Machine: hvl_frontend::Wait {
    /// What stands in the prompt.
    const NAME: &'static str;
    /// Says which processor this is, in a few words.
    fn processor(&self, out: &mut dyn fmt::Write) -> fmt::Result;
    /// How often the processor has woken since it started, where that is counted.
    fn wake_ups(&self) -> Option<u32>;
}
