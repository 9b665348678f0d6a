//! Foreign oracles of the split ring.
//!
//! Both halves of a ring that were written by the same hand may share one misreading of the specification. So each of
//! ours is run against a half that others wrote and many use: our [`DeviceRing`] is driven by the queue of
//! `virtio-drivers`, our [`DriverRing`] is served by the one of `virtio-queue` over `vm-memory`. Both sit in one piece
//! of memory ([`Arena`]), each reaching it in its own way.
//!
//! - [`stock`]: the two foreign halves, wrapped so far that they take places in the region for buffers;
//! - [`half`]: what any driver half and any device half can do, and the four that there are;
//! - [`world`]: random operations on a pair of halves, and the model that says what each must answer.
//!
//! The benchmark's stock pair is made of the same two wrappers.
//!
//! [`DeviceRing`]: hvl_shared_abi::ring::DeviceRing
//! [`DriverRing`]: hvl_shared_abi::ring::DriverRing

pub mod half;
pub mod stock;
pub mod world;

pub use stock::Arena;
