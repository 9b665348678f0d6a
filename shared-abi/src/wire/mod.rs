//! What travels in a device's configuration space and buffers: one file a device.
//!
//! The structures are private copies. They are read from the region once, as bytes, and parsed here; none is ever
//! laid over shared memory.

pub mod console;
pub mod net;
pub mod p9;
pub mod rng;
pub mod vsock;
