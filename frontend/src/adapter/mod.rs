//! The devices behind other crates' traits, one cargo feature each.
//!
//! | feature | module | crate |
//! |---|---|---|
//! | `embedded-io` | [`embedded_io`] | embedded-io 0.7: `Read`, `Write`, `ReadReady`, `WriteReady` |
//! | `embedded-io-async` | [`embedded_io_async`] | embedded-io-async 0.7: `Read`, `Write` |
//! | either of these | [`vsock`] | the same for streams of sockets |
//! | `rand_core` | [`rand_core`] | rand_core 0.10: `TryRng` |
//! | `smoltcp` | [`smoltcp`] | smoltcp 0.14: `phy::Device` |
//! | `embassy-net-driver` | [`embassy_net_driver`] | embassy-net-driver 0.2: `Driver` |
//! | `virtio-drivers` | [`virtio_drivers`] | virtio-drivers 0.13: `Transport`, `Hal` |
//!
//! Traits that wait get a deadline: nothing here waits for ever.

#[cfg(feature = "embassy-net-driver")]
pub mod embassy_net_driver;
#[cfg(feature = "embedded-io")]
pub mod embedded_io;
#[cfg(feature = "embedded-io-async")]
pub mod embedded_io_async;
#[cfg(any(feature = "smoltcp", feature = "embassy-net-driver"))]
mod frames;
#[cfg(feature = "rand_core")]
pub mod rand_core;
#[cfg(feature = "smoltcp")]
pub mod smoltcp;
#[cfg(feature = "virtio-drivers")]
pub mod virtio_drivers;
#[cfg(any(feature = "embedded-io", feature = "embedded-io-async"))]
pub mod vsock;

use crate::platform::Instant;

/// How long a call may wait. On a board without a clock it does not wait at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    /// Microseconds.
    pub micros: u64,
}

impl Timeout {
    /// From milliseconds.
    pub const fn millis(millis: u32) -> Timeout {
        Timeout { micros: (millis as u64).saturating_mul(1_000) }
    }
    #[cfg_attr(not(any(feature = "embedded-io", feature = "rand_core")), allow(dead_code))]
    fn from(self, now: Instant) -> Option<Instant> {
        now.is_known().then(|| now.plus(self.micros))
    }
}
