//! What a running PMM says about itself: logs on standard error, and a snapshot on the control socket for whoever asks.

mod ask;
mod board;
mod condition;
mod control;
mod limit;
mod lines;
pub mod log;
mod status;

/// What the other side wrote, for a terminal: with nothing in it that would move a cursor or deceive the eye.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\'' | '"' => shown.push(char),
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}

pub use ask::{Reader, print, status};
pub use board::{Board, Waker};
pub use condition::Condition;
pub use control::Control;
pub(crate) use control::{directory, is_trusted};
pub use limit::Limit;
pub(crate) use limit::limited;
pub use status::{
    DeviceStatus, DoorbellStatus, LinkStatus, Process, QueueStatus, RegionStatus, Status, remedy,
};
