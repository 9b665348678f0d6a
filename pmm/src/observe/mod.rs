//! What a running PMM says about itself: logs on standard error, and a snapshot on the control socket for whoever asks.

mod ask;
mod board;
mod condition;
mod control;
mod limit;
mod lines;
pub mod log;
mod status;

pub use ask::status;
pub use board::{Board, Waker};
pub use condition::Condition;
pub use control::Control;
pub(crate) use control::{directory, is_trusted};
pub use limit::Limit;
pub(crate) use limit::limited;
pub use status::{
    DeviceStatus, DoorbellStatus, LinkStatus, Process, QueueStatus, RegionStatus, Status, remedy,
};
