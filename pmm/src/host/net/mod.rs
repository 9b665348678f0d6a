//! Where a network card's cable leads: a TAP, `passt`, a socket, nowhere; and a file that notes what goes through it.

mod nowhere;
mod passt;
mod pcap;
mod socket;
mod stream;
mod tap;

use std::borrow::Cow;
use std::path::PathBuf;

use hvl_shared_abi::wire::net::Offload;

use super::{Dropped, EndError, FrameEnd, HostEnd, Shared, TerminalNews};
use crate::failure::Failure;
use crate::options::{NetworkDescription, NetworkEnd};
use crate::sys::Watches;

/// The program that a card's cable leads through, if there is one.
pub(crate) fn program(card: &NetworkDescription) -> Option<PathBuf> {
    match &card.end {
        NetworkEnd::User { passt, .. } => passt::find(passt.as_deref()).ok(),
        _ => None,
    }
}

/// A cable's end.
pub trait NetEnd: FrameEnd + HostEnd {}
impl<E: FrameEnd + HostEnd> NetEnd for E {}

/// Opens the end that is described.
///
/// # Errors
///
/// [`Failure::Refused`] with what the machine refused.
pub fn open(card: &NetworkDescription) -> Result<Box<dyn NetEnd>, Failure> {
    let end: Box<dyn NetEnd> = match &card.end {
        NetworkEnd::User { forwards, passt } => {
            Box::new(passt::Passt::start(passt.as_deref(), forwards, card.mac.0, card.mtu)?)
        }
        NetworkEnd::Tap { name } => Box::new(tap::Tap::open(name.as_deref())?),
        NetworkEnd::Stream { address, listen } => Box::new(socket::StreamEnd::open(address, *listen)?),
        NetworkEnd::Datagram { local, peer } => Box::new(socket::DatagramEnd::open(local, peer)?),
        NetworkEnd::None => Box::new(nowhere::Nowhere::default()),
    };
    Ok(match &card.pcap {
        None => end,
        Some(path) => Box::new(pcap::Captured::new(end, path, card.pcap_max, &card.end.to_string())?),
    })
}

/// What became of frames that went nowhere, for the status.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    /// Frames of the guest's while nobody was at the other end, or that the host refused.
    sent: u64,
    /// Frames for the guest that did not fit into its buffers.
    too_long: u64,
    /// Frames for the guest that leave to it what it has not accepted.
    not_accepted: u64,
}

impl Losses {
    fn drop(&mut self, why: Dropped) {
        match why {
            Dropped::TooLong => self.too_long = self.too_long.wrapping_add(1),
            Dropped::NotAccepted => self.not_accepted = self.not_accepted.wrapping_add(1),
        }
    }

    /// A few words, and these numbers behind them.
    fn after(&self, words: &str) -> Cow<'static, str> {
        let mut text = words.to_string();
        for (count, what) in [
            (self.sent, "sent frames lost"),
            (self.too_long, "frames too long for the guest"),
            (self.not_accepted, "frames dropped with offloads that the guest has not accepted"),
        ] {
            if count != 0 {
                text += &format!(", {count} {what}");
            }
        }
        text.into()
    }
}

impl<E: FrameEnd + ?Sized> FrameEnd for Box<E> {
    fn features(&self) -> u64 {
        (**self).features()
    }
    fn accept(&mut self, features: u64) {
        (**self).accept(features);
    }
    fn send(&mut self, offload: &Offload, frame: &[u8]) -> Result<(), EndError> {
        (**self).send(offload, frame)
    }
    fn receive(&mut self, into: &mut [u8]) -> Result<(Offload, usize), EndError> {
        (**self).receive(into)
    }
    fn dropped(&mut self, why: Dropped) {
        (**self).dropped(why);
    }
}

impl<E: HostEnd + ?Sized> HostEnd for Box<E> {
    fn watch(&self, watches: &mut Watches) {
        (**self).watch(watches);
    }
    fn progress(&mut self, now_us: u64) {
        (**self).progress(now_us);
    }
    fn deadline_us(&self) -> Option<u64> {
        (**self).deadline_us()
    }
    fn wants_to_end(&self) -> bool {
        (**self).wants_to_end()
    }
    fn terminal_news(&mut self, news: TerminalNews) {
        (**self).terminal_news(news);
    }
    fn state(&self) -> Cow<'static, str> {
        (**self).state()
    }
    fn failure(&self) -> Option<String> {
        (**self).failure()
    }
    fn announcement(&self) -> Option<String> {
        (**self).announcement()
    }
}

impl<E: FrameEnd + ?Sized> FrameEnd for Shared<E> {
    fn features(&self) -> u64 {
        self.get().features()
    }
    fn accept(&mut self, features: u64) {
        self.get().accept(features);
    }
    fn send(&mut self, offload: &Offload, frame: &[u8]) -> Result<(), EndError> {
        self.get().send(offload, frame)
    }
    fn receive(&mut self, into: &mut [u8]) -> Result<(Offload, usize), EndError> {
        self.get().receive(into)
    }
    fn dropped(&mut self, why: Dropped) {
        self.get().dropped(why);
    }
}
