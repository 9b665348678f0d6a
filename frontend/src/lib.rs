//! The driver side of a hypervisor-less virtio link.
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

pub mod bounce;
pub mod device;
pub mod link;
pub mod platform;
mod transport;

pub use link::{AttachError, Counters, Link, LinkState, LinkStorage, OpenError, Refusal};
pub use platform::{Board, Clock, Doorbell, Instant, MemOps, Wait};
