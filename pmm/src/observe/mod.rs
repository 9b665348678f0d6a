//! What a running PMM says about itself: logs on standard error, and a snapshot on the control socket for whoever asks.

mod ask;
mod board;
mod condition;
mod control;
mod diagnose;
mod directory;
mod limit;
mod lines;
mod list;
pub mod log;
pub(crate) mod prompt;
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

/// A text of several lines for a terminal, likewise; what was made `printable` stays as it is.
pub fn printable_lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\n' | '\\' | '\'' | '"' => shown.push(char),
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}

pub use ask::{Reader, print, status};
pub use board::{Board, Pace, Waker};
pub use condition::Condition;
pub use control::Control;
pub use diagnose::{DeviceSeen, Diagnosis, Seen, diagnose};
pub(crate) use directory::{SOCKET_PATH, directory as default_directory, make as make_directory, too_long};
pub use limit::Limit;
pub(crate) use limit::limited;
pub use list::list;
pub(crate) use status::DEVICE_STATES;
pub use status::{
    ClientStatus, DeviceStatus, DoorbellStatus, LinkStatus, Process, QueueStatus, RegionStatus, ShareStatus,
    Status, remedy,
};

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn what_a_guest_says_moves_no_cursor_and_turns_no_letters() {
        let evil = "it's \"fine\" \u{1b}[2J\r\n\u{9b}31m\u{7}\u{202e}txt\u{2066}\u{2028}\u{7f}\u{85}\u{feff}\u{200f}e\u{301}";
        let shown = printable(evil);
        assert!(shown.starts_with("it's \"fine\" \\u{1b}[2J\\r\\n\\u{9b}31m"), "{shown}");
        assert!(shown.chars().all(|char| char == ' ' || char.is_ascii_graphic()), "{shown}");
        assert_eq!(printable("Grüße, 漢字"), "Grüße, 漢字");
    }
}
