//! What both sides of a hypervisor-less virtio link agree on.
//!
//! A link joins two processors that share memory and can interrupt each other. One runs the **PMM**, which offers
//! virtio devices; the other links the **frontend**, which drives them. Neither trusts what the other wrote. This
//! crate is the part that both compile: no `std`, no heap, no panic on anything a peer can reach.
//!
//! A tour, from the bottom up:
//!
//! - [`mem`]: the only access to shared words. Ordering has names ([`Mem::publish32`], [`Mem::observe32`],
//!   [`Mem::settle`], [`Mem::bell`]) and memory has an [`Attribute`].
//! - [`header`]: the 512-byte register window of each device, the words of the extended profile in it, and
//!   [`ShmRegion`], which turns an address that a guest calls physical into an offset that was checked.
//! - [`layout`]: where everything lies in the region, as `const fn`, so that the PMM computes it at run time and
//!   firmware at compile time.
//! - [`block`]: the directory that publishes that layout in the region.
//! - [`epoch`]: who is alive and which start of it this is; both halves side by side.
//! - [`ring`]: virtqueues; each file holds the driver's and the device's half of one format.
//! - [`wire`]: what travels in the buffers, one file a device.
//!
//! Offsets are `u32` bytes from the start of the region unless a name says otherwise. All words are little-endian.
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

#[cfg(target_endian = "big")]
compile_error!("a link is little-endian on both sides, and this crate does not swap");

pub mod block;
pub mod epoch;
pub mod header;
pub mod layout;
pub mod mem;
pub mod ring;
pub mod wire;

pub use header::{DeviceId, Features, ShmRegion, Status, Window};
pub use layout::{DeviceSpec, Layout, LayoutError, QueuePlace};
pub use mem::{Attribute, MaintainCache, Mem, Piece, Region};
