//! A device and its host end, opened from their description: the only place that knows which device goes with which.

use hvl_shared_abi::mem::Region;

use super::export::{Export, Rules};
use super::net;
use super::{
    ByteEnd, FileEnd, Files, Guests, HostEnd, Multiplexer, PtyEnd, Shared, SocketEnd, StdioEnd, SystemEntropy,
};
use crate::device::net::{BUFFER, Card, Net};
use crate::device::vsock::{Connection, Vsock};
use crate::device::{Device, console::Console, p9::P9, rng::Rng};
use crate::failure::{Failure, refused};
use crate::open::no_descriptors;
use crate::options::{ConsoleEnd, DeviceDescription, NetworkDescription, SharedDirectory};

/// A device of a link in this process.
pub struct Hosted {
    /// What serves the guest's requests.
    pub device: Box<dyn Device<Region> + Send>,
    /// What it talks to, for the event loop.
    pub end: Box<dyn HostEnd>,
}

impl Hosted {
    fn new(device: impl Device<Region> + Send + 'static, end: impl HostEnd + 'static) -> Hosted {
        Hosted { device: Box::new(device), end: Box::new(end) }
    }

    fn console(end: impl ByteEnd + HostEnd + 'static) -> Hosted {
        let end = Shared::new(end);
        Hosted::new(Console::new(end.clone()), end)
    }

    fn network(card: &NetworkDescription) -> Result<Hosted, Failure> {
        let end = Shared::new(net::open(card)?);
        let memory = || vec![0; BUFFER].into_boxed_slice();
        let facts = Card { mac: card.mac.0, mtu: card.mtu };
        Ok(Hosted::new(Net::new(end.clone(), facts, memory(), memory()), end))
    }

    fn directory(shared: &SharedDirectory, descriptors: usize) -> Result<Hosted, Failure> {
        let name = format!("--9p {shared}");
        let rules = Rules {
            read_only: shared.read_only,
            ids: shared.owners.ids(),
            fids: shared.fids,
            descriptors,
            ..Rules::default()
        };
        let export = Export::open(&shared.path, &shared.tag, rules, &name)?;
        let workers = Files::start(Box::new(Guests(export))).map_err(no_descriptors)?;
        let end = Shared::new(workers);
        match P9::new(end.clone(), shared.tag.as_bytes()) {
            Some(device) => Ok(Hosted::new(device, end)),
            None => refused(format!("{name}: no guest takes this tag; use 1 to 64 bytes")),
        }
    }

    /// Opens the host end that is described, and makes the device on it. Its peers may make it hold as many `descriptors`
    /// beyond what it always has, and are refused more.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] with what the machine refused.
    pub fn open(description: &DeviceDescription, descriptors: usize) -> Result<Hosted, Failure> {
        Ok(match description {
            DeviceDescription::Directory(directory) => Hosted::directory(&directory.shared, descriptors)?,
            DeviceDescription::Vsock(vsock) => {
                let end = Shared::new(Multiplexer::open(vsock, descriptors)?);
                let connections = vec![Connection::NEW; Multiplexer::MOST].into_boxed_slice();
                Hosted::new(Vsock::new(end.clone(), vsock.cid, connections), end)
            }
            DeviceDescription::Network(card) => Hosted::network(card)?,
            DeviceDescription::Rng(_) => Hosted::new(Rng::new(SystemEntropy), SystemEntropy),
            DeviceDescription::Console(console) => match &console.end {
                ConsoleEnd::Stdio => Hosted::console(StdioEnd::open()?),
                ConsoleEnd::Pty(link) => Hosted::console(PtyEnd::open(link.as_deref())?),
                ConsoleEnd::Unix(path) => Hosted::console(SocketEnd::listen(path)?),
                ConsoleEnd::File(path, max) => Hosted::console(FileEnd::open(path, *max)?),
            },
        })
    }
}
