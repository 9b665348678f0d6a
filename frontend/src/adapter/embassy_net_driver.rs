//! The network card as a driver of embassy-net.
//!
//! Embassy asks a driver to wake its task when there is something to do, and what there is to do is found out by the
//! doorbell. So the board's doorbell handler calls [`Waking::wake`] behind
//! [`LinkStorage::rang`](crate::LinkStorage::rang), and a task of the firmware sleeps until the card's
//! [`next_deadline`](Net::next_deadline) where there is one (a PMM that does not answer is rung again), and does the same.
//!
//! ```
//! use hvl_frontend::adapter::embassy_net_driver::{Card, Waking};
//! # use hvl_frontend::Board;
//! # use hvl_frontend::device::net::Net;
//! static WAKING: Waking = Waking::new();
//!
//! fn on_doorbell() { /* LINK.rang(); */ WAKING.wake() }
//!
//! fn start<B: Board>(net: &mut Net<'_, B>, received: &mut [u8], sent: &mut [u8]) {
//!     // Until the PMM was there, the address is not known: try again after a doorbell.
//!     let Ok(Some(mac)) = net.mac() else { return };
//!     let card = Card::new(net, &WAKING, mac, received, sent);
//!     // embassy_net::new(card, ...)
//! #   let _ = card;
//! }
//! # on_doorbell();
//! ```

use core::sync::atomic::{AtomicU32, Ordering};
use core::task::{Context, Waker};

use embassy_net_driver::{Capabilities, Checksum, Driver, HardwareAddress, LinkState, RxToken, TxToken};
use spin::mutex::SpinMutex;

use super::frames::Frames;
use crate::device::net::{Mac, Net};
use crate::platform::Board;

/// Who is to be woken by the doorbell: a `static`.
#[derive(Debug)]
pub struct Waking {
    rings: AtomicU32,
    waker: SpinMutex<Option<Waker>>,
}

impl Default for Waking {
    fn default() -> Self {
        Self::new()
    }
}

impl Waking {
    /// Nobody yet.
    pub const fn new() -> Waking {
        Waking { rings: AtomicU32::new(0), waker: SpinMutex::new(None) }
    }

    /// Wakes the card's task. For an interrupt handler, too: a lock that is taken is left alone, because whoever has
    /// it looks at the count behind it.
    pub fn wake(&self) {
        self.rings.fetch_add(1, Ordering::AcqRel);
        if let Some(waker) = self.waker.try_lock().and_then(|mut waker| waker.take()) {
            waker.wake();
        }
    }

    /// Notes who is to be woken, after nothing was found by a look that began at `seen` rings.
    fn register(&self, waker: &Waker, seen: u32) {
        match self.waker.try_lock() {
            Some(mut slot) => *slot = Some(waker.clone()),
            None => return waker.wake_by_ref(),
        }
        if self.rings.load(Ordering::Acquire) != seen {
            waker.wake_by_ref();
        }
    }
}

/// A card with memory for a frame in each direction.
#[derive(Debug)]
pub struct Card<'p, 's, B> {
    frames: Frames<'p, 's, B>,
    waking: &'static Waking,
    mac: Mac,
}

impl<'p, 's, B: Board> Card<'p, 's, B> {
    /// Over a card with this address ([`Net::mac`]). Each buffer takes a frame of the MTU: 1,518 bytes, if nothing
    /// else was said.
    pub fn new(
        net: &'p mut Net<'s, B>,
        waking: &'static Waking,
        mac: Mac,
        received: &'p mut [u8],
        sent: &'p mut [u8],
    ) -> Card<'p, 's, B> {
        Card { frames: Frames::new(net, received, sent), waking, mac }
    }

    /// Looks, and if there is nothing, asks for a doorbell and looks once more before the task may sleep.
    fn look<T>(
        &mut self,
        context: &Context<'_>,
        mut look: impl FnMut(&mut Frames<'p, 's, B>) -> Option<T>,
    ) -> Option<T> {
        let seen = self.waking.rings.load(Ordering::Acquire);
        if let Some(found) = look(&mut self.frames) {
            return Some(found);
        }
        self.waking.register(context.waker(), seen);
        if self.frames.net.prepare_sleep() {
            context.waker().wake_by_ref();
        }
        None
    }
}

/// A frame that was received.
#[derive(Debug)]
pub struct Received<'a>(&'a mut [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for a frame.
#[derive(Debug)]
pub struct Room<'a, 's, B>(Frames<'a, 's, B>);

impl<B: Board> TxToken for Room<'_, '_, B> {
    /// `len` is at most what the card's capabilities say that a frame may have.
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, len: usize, f: F) -> R {
        self.0.fill(len, f)
    }
}

impl<'s, B: Board> Driver for Card<'_, 's, B> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Room<'a, 's, B>
    where
        Self: 'a;

    fn receive(&mut self, context: &mut Context<'_>) -> Option<(Received<'_>, Room<'_, 's, B>)> {
        let len = self.look(context, Frames::take)?;
        let (frame, room) = self.frames.split(len)?;
        Some((Received(frame), Room(room)))
    }

    fn transmit(&mut self, context: &mut Context<'_>) -> Option<Room<'_, 's, B>> {
        self.look(context, |frames| frames.has_room().then_some(()))?;
        self.frames.split(0).map(|(_, room)| Room(room))
    }

    fn link_state(&mut self, context: &mut Context<'_>) -> LinkState {
        let seen = self.waking.rings.load(Ordering::Acquire);
        let up = self.frames.net.is_up();
        // It may change either way.
        self.waking.register(context.waker(), seen);
        if up { LinkState::Up } else { LinkState::Down }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = self.frames.longest;
        if self.frames.leaves_checksums() {
            capabilities.checksum.tcp = Checksum::None;
            capabilities.checksum.udp = Checksum::None;
        }
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.mac)
    }
}
