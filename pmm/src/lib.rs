//! The PMM (physical machine monitor) of hypervisor-less virtio: the side of a link that offers devices.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod device;
pub mod host;
pub mod link;
pub mod snapshot;
pub mod transport;

#[cfg(feature = "std")]
pub mod doorbell;
#[cfg(feature = "std")]
mod failure;
#[cfg(feature = "std")]
pub mod observe;
#[cfg(feature = "std")]
pub mod open;
#[cfg(feature = "std")]
pub mod options;
#[cfg(feature = "std")]
pub mod region;
#[cfg(feature = "std")]
pub mod serve;
#[cfg(feature = "std")]
mod sys;
#[cfg(feature = "std")]
mod unix;

#[cfg(feature = "std")]
pub use failure::Failure;
