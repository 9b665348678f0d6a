//! One file for each kind of device.
//!
//! A device handle is `Send`, and makes progress by itself: each call looks at the epochs and at its own device, once
//! and bounded, before it does its work. None blocks.

pub mod console;
pub mod net;
pub mod p9;
pub mod rng;
pub mod vsock;

use hvl_shared_abi::ring::split::DriverSlot;

pub use crate::bounce::{Buffer, InFlight, QueueSlices, QueueStorage, Unfit};
pub use crate::transport::extended::DeviceStatus;

/// Why a call did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// There is no session, or the device does not run in it. It comes back by itself.
    LinkDown,
    /// There is nothing to read, or no room to write, or another task is looking at the link. Try again after the
    /// next doorbell, or at the device's next deadline.
    WouldBlock,
}

impl core::fmt::Display for NotNow {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            NotNow::LinkDown => "the link is down; no PMM serves this device at the moment",
            NotNow::WouldBlock => "the other side has not answered yet",
        })
    }
}

impl core::error::Error for NotNow {}

/// The methods that every device handle has. A macro instead of a trait, so that firmware imports nothing for them.
macro_rules! handle {
    ($name:ident) => {
        impl<'s, B: Board> $name<'s, B> {
            /// Looks at the epochs and at this device, once and bounded. Every other call does the same first; this
            /// one is for a task that has nothing else to do with its device after a doorbell.
            pub fn poll(&mut self) {
                self.link.enter(self.cell);
            }
            /// How the device stands; nothing while another task is looking at it.
            pub fn status(&self) -> Option<DeviceStatus> {
                self.link.cell(self.cell).map(|cell| cell.status())
            }
            /// Before the task sleeps: asks for doorbells and looks once more. `true`: look again instead.
            pub fn prepare_sleep(&mut self) -> bool {
                self.link.prepare_sleep_of(self.cell)
            }
            /// Prepares to sleep and says until when, as [`Link::next_deadline`] does, for a task that serves only
            /// this device.
            pub fn next_deadline(&mut self) -> Option<Instant> {
                self.link.next_deadline_of(self.cell)
            }
            /// The link.
            pub fn link(&self) -> &Link<'s, B> {
                &self.link
            }
        }
    };
}
pub(crate) use handle;

/// Re-exported for storage that is not one of the types here, such as a C program's.
pub type Slot = DriverSlot;
