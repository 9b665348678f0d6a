//! The network card as a device of smoltcp.
//!
//! ```
//! # use hvl_frontend::{Board, Link};
//! # use hvl_frontend::device::net::{Net, NetStorage, Options};
//! use hvl_frontend::adapter::smoltcp::Phy;
//! use smoltcp::iface::{Config, Interface};
//! use smoltcp::time::Instant;
//! use smoltcp::wire::EthernetAddress;
//!
//! /// Storage of the card, and memory for one frame in each direction.
//! struct Storage {
//!     card: NetStorage,
//!     received: [u8; 1518],
//!     sent: [u8; 1518],
//! }
//!
//! fn start<'s, B: Board>(link: &Link<'s, B>, storage: &'s mut Storage, now: Instant) {
//!     let options = Options { checksums: true, ..Options::default() };
//!     let Ok(mut net) = Net::open(link, &mut storage.card, options) else { return };
//!     // Until the PMM was there, the address is not known: try again after a doorbell.
//!     let Ok(Some(mac)) = net.mac() else { return };
//!     let mut phy = Phy::new(&mut net, &mut storage.received, &mut storage.sent);
//!     let config = Config::new(EthernetAddress(mac).into());
//!     let mut interface = Interface::new(config, &mut phy, now);
//!     // Then, again and again: interface.poll(now, &mut phy, &mut sockets).
//! #   let _ = &mut interface;
//! }
//! ```
//!
//! With [`Options::checksums`](crate::device::net::Options), smoltcp computes and verifies none of TCP and UDP. Where
//! the PMM takes them over, nobody on this processor does; where it does not, this module does, so a PMM may come back
//! with less. With [`Options::segments`](crate::device::net::Options) it is given received frames of up to 64 KiB, for
//! which `received` takes [`MAX_FRAME`](crate::device::net::MAX_FRAME) bytes; it is not asked for any.

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::frames::Frames;
use crate::device::net::Net;
use crate::platform::Board;

/// A card with memory for a frame in each direction.
#[derive(Debug)]
pub struct Phy<'p, 's, B>(Frames<'p, 's, B>);

impl<'p, 's, B: Board> Phy<'p, 's, B> {
    /// Over a card. Each buffer takes a frame of the MTU: 1,518 bytes, if nothing else was said. A card whose PMM says
    /// its MTU only later has the default one here.
    pub fn new(net: &'p mut Net<'s, B>, received: &'p mut [u8], sent: &'p mut [u8]) -> Phy<'p, 's, B> {
        Phy(Frames::new(net, received, sent))
    }
    /// The card.
    pub fn net(&mut self) -> &mut Net<'s, B> {
        self.0.net
    }
    /// Frames that were dropped because their checksum was wrong. Wraps.
    pub fn wrong_checksums(&self) -> u32 {
        self.0.wrong
    }
}

/// A frame that was received.
#[derive(Debug)]
pub struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for a frame.
#[derive(Debug)]
pub struct Room<'a, 's, B>(Frames<'a, 's, B>);

impl<B: Board> TxToken for Room<'_, '_, B> {
    /// `len` is at most what [`Phy`] says that a frame may have.
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, len: usize, f: F) -> R {
        self.0.fill(len, f)
    }
}

impl<'s, B: Board> Device for Phy<'_, 's, B> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Room<'a, 's, B>
    where
        Self: 'a;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Room<'_, 's, B>)> {
        let len = self.0.take()?;
        let (frame, room) = self.0.split(len)?;
        Some((Received(frame), Room(room)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Room<'_, 's, B>> {
        if !self.0.has_room() {
            return None;
        }
        self.0.split(0).map(|(_, room)| Room(room))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.0.longest;
        if self.0.leaves_checksums() {
            capabilities.checksum.tcp = Checksum::None;
            capabilities.checksum.udp = Checksum::None;
        }
        capabilities
    }
}
