//! A process of this machine as a guest: its region, its doorbell, and the board that the frontend sees. The guests' shell
//! runs on it, and so does a test that is a guest itself.

pub mod bell;
pub mod board;
pub mod memory;
