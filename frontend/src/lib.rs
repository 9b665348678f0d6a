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

#[cfg(any(
    feature = "embedded-io",
    feature = "embedded-io-async",
    feature = "rand_core",
    feature = "virtio-drivers"
))]
pub mod adapter;
pub mod bounce;
pub mod device;
pub mod link;
pub mod platform;
mod transport;

pub use link::{AttachError, Counters, Link, LinkState, LinkStorage, OpenError, Refusal};
pub use platform::{Board, Clock, Doorbell, Instant, MemOps, Wait};
