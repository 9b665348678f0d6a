//! The PMM (physical machine monitor) of hypervisor-less virtio: the side of a link that offers devices.
//!
//! The core does no I/O, reads no clock and needs no `std`, so that the simulator can run it and an RTOS can be a PMM:
//! [`link`] is one guest, [`transport`] how its acceptance reaches a device, [`device`] the devices, [`host`] the traits
//! through which they meet the world, [`snapshot`] the state of it all as plain data.
//!
//! Around it, with the feature `std`, stands a Linux program: [`options`] says what is wanted, [`open`] gets it from the
//! machine ([`region`], [`doorbell`], the ends in [`host`]) before any guest's word is read, [`serve`] runs one event
//! loop a link, [`observe`] tells what happens. [`share`] serves a directory to clients that are no guests.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod device;
pub mod host;
pub mod link;
pub mod snapshot;
pub mod transport;

#[cfg(feature = "std")]
mod apart;
#[cfg(feature = "std")]
mod descriptors;
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
mod place;
#[cfg(feature = "std")]
pub mod privileges;
#[cfg(feature = "std")]
pub mod region;
#[cfg(feature = "std")]
pub mod serve;
#[cfg(feature = "std")]
pub mod share;
#[cfg(feature = "std")]
mod sys;
#[cfg(feature = "std")]
mod unix;

#[cfg(feature = "std")]
pub use failure::Failure;
#[cfg(feature = "std")]
pub use sys::ignore_signals;
