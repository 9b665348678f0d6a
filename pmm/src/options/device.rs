//! What is described of each device of a link.

use std::path::PathBuf;

use hvl_shared_abi::layout::DeviceSpec;
use serde::Serialize;

use super::network::{Mac, NetworkEnd};
use super::value::{ConsoleEnd, SharedDirectory};

/// A device. The variants stand in the order of the windows, which is kvmtool's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceDescription {
    /// A directory.
    Directory(DirectoryDescription),
    /// Sockets.
    Vsock(VsockDescription),
    /// Entropy.
    Rng(RngDescription),
    /// A network card.
    Network(NetworkDescription),
    /// A console.
    Console(ConsoleDescription),
}

/// A directory that the guest may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DirectoryDescription {
    /// Which.
    pub shared: SharedDirectory,
    /// Largest size of its queue; a power of two.
    pub queue: u16,
    /// Bytes in which the driver keeps its messages.
    pub pool: u32,
}

/// Sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VsockDescription {
    /// The guest's address.
    pub cid: u32,
    /// The UNIX socket through which clients of this host come.
    pub path: PathBuf,
    /// Whether the path is the default one, whose directory is made if it is missing.
    pub is_default: bool,
    /// Largest size of each of its two queues of packets; a power of two.
    pub queue: u16,
    /// Bytes in which the driver keeps its packets.
    pub pool: u32,
}

/// An entropy device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RngDescription {
    /// Largest size of its queue; a power of two.
    pub queue: u16,
    /// Bytes in which the driver keeps its buffers.
    pub pool: u32,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkDescription {
    /// Where its cable leads.
    pub end: NetworkEnd,
    /// The guest's address.
    pub mac: Mac,
    /// The largest payload of a frame that the guest is told.
    pub mtu: Option<u16>,
    /// The file that notes what goes through the cable.
    pub pcap: Option<std::path::PathBuf>,
    /// What that file must not exceed, in bytes.
    pub pcap_max: Option<u64>,
    /// Largest size of each of its two queues; a power of two.
    pub queue: u16,
    /// Bytes in which the driver keeps its frames.
    pub pool: u32,
}

/// A console device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConsoleDescription {
    /// Where it ends on this host.
    pub end: ConsoleEnd,
    /// Largest size of each of its two queues; a power of two.
    pub queue: u16,
    /// Bytes in which the driver keeps its buffers.
    pub pool: u32,
}

impl DeviceDescription {
    /// What it needs in the region.
    pub fn spec(&self) -> DeviceSpec {
        match self {
            DeviceDescription::Directory(directory) => {
                DeviceSpec { queues: [directory.queue, 0, 0, 0], pool: directory.pool, ..DeviceSpec::P9 }
            }
            DeviceDescription::Vsock(vsock) => {
                let [_, _, events, _] = DeviceSpec::VSOCK.queues;
                let queues = [vsock.queue, vsock.queue, events, 0];
                DeviceSpec { queues, pool: vsock.pool, ..DeviceSpec::VSOCK }
            }
            DeviceDescription::Rng(rng) => {
                DeviceSpec { queues: [rng.queue, 0, 0, 0], pool: rng.pool, ..DeviceSpec::RNG }
            }
            DeviceDescription::Network(card) => {
                DeviceSpec { queues: [card.queue, card.queue, 0, 0], pool: card.pool, ..DeviceSpec::NET }
            }
            DeviceDescription::Console(console) => DeviceSpec {
                queues: [console.queue, console.queue, 0, 0],
                pool: console.pool,
                ..DeviceSpec::CONSOLE
            },
        }
    }

    /// Returns whether it has this program's standard input and output.
    pub(super) fn has_the_terminal(&self) -> bool {
        matches!(self, DeviceDescription::Console(console) if console.end == ConsoleEnd::Stdio)
    }
}
