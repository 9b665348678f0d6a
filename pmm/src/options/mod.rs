//! What the user asked for, as plain data.
//!
//! A command line and a configuration file say the same things in the same words: both become [`LinkOptions`], the
//! words as written, and from there [`LinkDescription`]s, checked one by one and against each other. Nothing here opens
//! anything (`--config` alone is read), and nothing here is global: a program may hold several sets of options.

mod claim;
// Its comments are help texts, where `[,listen]` is no link.
#[allow(rustdoc::broken_intra_doc_links)]
mod cli;
mod describe;
mod device;
mod file;
mod later;
mod network;
mod refusals;
mod share;
mod typed;
mod value;

pub(crate) use claim::{Claim, Part, claims, told};
pub use cli::{Command, LinkOptions, ListRequest, LogLevel, LogOptions, Run, StatusRequest, parse};
pub use describe::{LinkDescription, Memory};
pub use device::NetworkDescription;
pub use device::{
    ConsoleDescription, DeviceDescription, DirectoryDescription, RngDescription, VsockDescription,
};
pub use network::{Address, Forward, Mac, Network, NetworkEnd};
pub(crate) use refusals::nearest;
pub use share::{Listen, Share};
pub use value::{
    BadValue, BoundedFile, ConsoleEnd, DEFAULT_POLL_MICROS, Doorbell, Number, SharedDirectory, VsockAddress,
};
