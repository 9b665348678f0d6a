//! Why `pmm` ends early, and with which exit code. The three codes are a promise to scripts: 0 all was well, 2 the
//! command is wrong and nothing was touched, 1 the machine or a peer refused.

use core::fmt;

/// A reason to end, for the person who typed the command: what was wrong, where, and the way out, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The command or its configuration is wrong, in a line for each thing that is. Found before anything is opened.
    Misuse(String),
    /// The machine or a peer refused what a correct command asked for.
    Refused(String),
}

impl Failure {
    /// 2 for misuse, 1 for a refusal.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Misuse(_) => 2,
            Failure::Refused(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Misuse(text) | Failure::Refused(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Failure {}

/// Shorthand for `Err(Failure::Misuse(...))`.
pub(crate) fn misuse<T>(text: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Misuse(text.into()))
}

/// Shorthand for `Err(Failure::Refused(...))`.
pub(crate) fn refused<T>(text: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Refused(text.into()))
}
