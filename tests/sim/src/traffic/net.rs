//! Frames. The other end of the cable outlives both sides, as a switch does.
//!
//! Every frame says whose it is and which of them, and all its other bytes follow from that. What holds: a frame
//! arrives as it was sent, or not at all; in a session, all arrive that were sent in it, in order, each once; and none
//! in a session of another start of the guest, or in any later one.

use hvl_frontend::device::NotNow;
use hvl_frontend::device::net::{Net, NetStorage, Offload, Options, SendError};
use hvl_frontend::{Link, OpenError};
use hvl_pmm::device::net::{Card, Net as Device};
use hvl_pmm::host::{Dropped, EndError, FrameEnd};

use super::{End, Pace, Work, byte};
use crate::guest::Simulated;
use crate::map::Side;
use crate::plan::{MILLI, Plan};
use crate::world;

/// The card's address.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Bytes of a frame that say which it is: the stream, then the number.
const NAME: usize = 8;
/// Bytes of the shortest frame.
const LEAST: u64 = 14;
/// Bytes of the longest, which takes several blocks of most pools and fits in all of them.
const MOST: u64 = 300;
/// The stream of frames for the guest; starts of the guest count from 0.
const TO_GUEST: u32 = u32::MAX;

/// A frame, whole.
fn frame(salt: u64, stream: u32, number: u32) -> Vec<u8> {
    let about = u64::from(stream) << 32 | u64::from(number);
    let dice = |at| u64::from(byte(salt, about, at));
    let len = LEAST + (dice(0) << 8 | dice(1)) % (MOST + 1 - LEAST);
    let name = stream.to_le_bytes().into_iter().chain(number.to_le_bytes());
    name.chain((NAME as u64..len).map(|at| byte(salt, about, at))).collect()
}

/// The number of a frame, if it is one of this stream, and whole.
fn number_of(salt: u64, stream: u32, bytes: &[u8]) -> Option<u32> {
    let number = u32::from_le_bytes(bytes.get(4..NAME)?.try_into().ok()?);
    (frame(salt, stream, number) == bytes).then_some(number)
}

/// Frames that one start of the guest sent.
#[derive(Clone, Copy, Default)]
struct Outgoing {
    /// That its card took.
    sent: u32,
    /// Those before this one have arrived, or never will.
    settled: u32,
    arrived: u32,
}

/// The cable's other end, and the judge.
pub struct Cable {
    salt: u64,
    pace: Pace,
    failure: Option<String>,
    /// Frames of each start's work.
    share: u32,
    starts: Vec<Outgoing>,
    /// How many are to arrive from the last start.
    wanted: u32,
    /// The start that is served.
    session: Option<usize>,
    /// A frame has arrived in this session, so the next one is the one after it.
    follows: bool,
    /// When the end that blocked takes more, and when it gives more.
    output_at: Option<u64>,
    input_at: Option<u64>,
    /// The PMM waits for a frame.
    listens: bool,
    /// When more frames come.
    coming: Vec<u64>,
    /// Frames for the guest: that there are, that the PMM took, that may be lost, that the guest is beyond.
    ready: u32,
    taken: u32,
    losable: u32,
    read: u32,
}

impl Cable {
    /// As planned.
    pub fn new(plan: &Plan, salt: u64) -> Cable {
        Cable {
            salt,
            pace: Pace::new(plan, salt),
            failure: None,
            share: plan.frames,
            starts: Vec::new(),
            wanted: 0,
            session: None,
            follows: false,
            output_at: None,
            input_at: None,
            listens: false,
            coming: Vec::new(),
            ready: 0,
            taken: 0,
            losable: 0,
            read: 0,
        }
    }

    fn fail(&mut self, what: String) {
        self.failure.get_or_insert(what);
    }
    fn disturbed(&mut self) {
        (self.session, self.losable) = (None, self.taken);
    }
    fn come(&mut self, now: u64, frames: u32) {
        self.coming.extend((0..frames).map(|_| now + self.pace.rng.u64(0..40 * MILLI)));
    }

    // --- the guest's side -------------------------------------------------------------------------------------------

    /// The next frame that the guest is to send. As many are on their way as are missing: those that were lost with a
    /// session are made up for.
    fn next(&self) -> Option<Vec<u8>> {
        let Outgoing { sent, settled, arrived } = *self.starts.last()?;
        let missing = arrived + sent.saturating_sub(settled) < self.wanted;
        missing.then(|| frame(self.salt, self.starts.len() as u32 - 1, sent))
    }
    /// The guest's card took it.
    fn accepted(&mut self) {
        self.starts.last_mut().into_iter().for_each(|outgoing| outgoing.sent += 1);
    }

    /// The guest received this.
    fn received(&mut self, bytes: &[u8]) {
        let Self { read, taken, losable, .. } = *self;
        match number_of(self.salt, TO_GUEST, bytes) {
            Some(number) if number == read || (read < number && number <= losable) => {}
            Some(number) => self.fail(format!(
                "the guest received frame {number} where {read} was due, and only those before {losable} may be lost"
            )),
            None => self.fail(format!("the guest received a frame that was never sent: {bytes:02x?}")),
        }
        let number = number_of(self.salt, TO_GUEST, bytes).unwrap_or(0);
        if number >= taken {
            self.fail(format!("the guest received frame {number}, and the PMM had taken {taken}"));
        }
        self.read = read.max(number.saturating_add(1));
    }

    // --- the PMM's side ---------------------------------------------------------------------------------------------

    fn send(&mut self, now: u64, bytes: &[u8]) -> Result<(), EndError> {
        if let Some(until) = self.pace.blocks(now) {
            self.output_at = Some(until);
            return Err(EndError::WouldBlock);
        }
        let Some(start) = self.session else {
            self.fail("the PMM sent a frame outside of a session".into());
            return Ok(());
        };
        let Outgoing { sent, settled, .. } = self.starts[start];
        match number_of(self.salt, start as u32, bytes) {
            // The guest may not know yet that its card took it.
            Some(number) if number > sent => {
                self.fail(format!("frame {number} of start {start} arrived, and was never sent"));
            }
            Some(number) if number < settled || (self.follows && number != settled) => {
                self.fail(format!("frame {number} of start {start} arrived where {settled} was due"));
            }
            Some(number) => {
                self.follows = true;
                self.starts[start].settled = number + 1;
                self.starts[start].arrived += 1;
            }
            None => {
                self.fail(format!("a frame arrived that start {start} of the guest never sent: {bytes:02x?}"))
            }
        }
        Ok(())
    }

    fn receive(&mut self, now: u64, into: &mut [u8]) -> Result<usize, EndError> {
        if self.taken == self.ready {
            self.listens = true;
            return Err(EndError::WouldBlock);
        }
        if let Some(until) = self.pace.blocks(now) {
            self.input_at = Some(until);
            return Err(EndError::WouldBlock);
        }
        let frame = frame(self.salt, TO_GUEST, self.taken);
        into[..frame.len()].copy_from_slice(&frame);
        self.taken += 1;
        Ok(frame.len())
    }
}

impl End for Cable {
    fn progress(&mut self, now: u64) {
        let before = self.coming.len();
        self.coming.retain(|when| *when > now);
        self.ready += (before - self.coming.len()) as u32;
    }
    fn is_ready(&mut self, now: u64) -> bool {
        self.progress(now);
        let due = |at: Option<u64>| at.is_some_and(|at| at <= now);
        due(self.output_at) || due(self.input_at) || (self.listens && self.ready > self.taken)
    }
    fn heard(&mut self, now: u64) {
        for at in [&mut self.output_at, &mut self.input_at] {
            *at = at.filter(|at| *at > now);
        }
        self.listens &= self.ready <= self.taken;
    }
    fn next_ready(&self) -> Option<u64> {
        let coming = self.coming.iter().copied().filter(|_| self.listens).min();
        [self.output_at, self.input_at, coming].into_iter().flatten().min()
    }
    fn holds_requests(&self) -> bool {
        self.output_at.is_some()
    }

    fn started(&mut self, now: u64) {
        self.starts.push(Outgoing::default());
        self.wanted = self.share;
        self.come(now, self.share / 2 + 1);
    }
    fn served(&mut self, start: Option<usize>) {
        self.disturbed();
        (self.session, self.follows) = (start, false);
        // What the card took before is lost: in this session it has taken nothing yet.
        let outgoing = start.and_then(|start| self.starts.get_mut(start));
        outgoing.into_iter().for_each(|outgoing| outgoing.settled = outgoing.sent);
    }
    fn died(&mut self, side: Side) {
        if side == Side::Pmm {
            self.disturbed();
            (self.output_at, self.input_at, self.listens) = (None, None, false);
        }
    }
    fn more(&mut self, now: u64) {
        self.wanted += self.share;
        self.come(now, self.share);
    }

    fn is_done(&self) -> bool {
        let read = self.read == self.ready || self.ready <= self.losable;
        let arrived = self.starts.last().is_some_and(|outgoing| outgoing.arrived >= self.wanted);
        arrived && self.coming.is_empty() && self.taken == self.ready && read
    }
    fn missing(&self) -> String {
        let Self { wanted, read, ready, taken, .. } = self;
        let arrived = self.starts.last().map_or(0, |outgoing| outgoing.arrived);
        format!(
            "{arrived} of {wanted} frames have come out of the cable; of {ready} for the guest the PMM took {taken}, \
             and the guest is at {read}"
        )
    }
    fn failure(&mut self) -> Option<String> {
        self.failure.take()
    }
}

/// The cable, as the PMM holds it.
pub struct Plug;

impl FrameEnd for Plug {
    fn send(&mut self, offload: &Offload, frame: &[u8]) -> Result<(), EndError> {
        world::with(|world| {
            if *offload != Offload::default() {
                world.ends.net().fail(format!("a frame leaves to be done what nobody offered: {offload:?}"));
            }
            world.ends.net().send(world.now, frame)
        })
    }
    fn receive(&mut self, into: &mut [u8]) -> Result<(Offload, usize), EndError> {
        let len = world::with(|world| world.ends.net().receive(world.now, into))?;
        Ok((Offload::default(), len))
    }
    fn dropped(&mut self, why: Dropped) {
        world::with(|world| world.ends.net().fail(format!("the PMM dropped a frame: {why:?}")));
    }
}

/// The PMM's card.
pub fn device() -> Device<Plug, [u8; 512]> {
    Device::new(Plug, Card { mac: MAC, mtu: Some(1500) }, [0; 512], [0; 512])
}

/// What the guest does with its card.
pub struct Talk<'s> {
    net: Net<'s, Simulated<'s>>,
}

impl<'s> Talk<'s> {
    /// Opens the card.
    pub fn open(
        link: &Link<'s, Simulated<'s>>,
        storage: &'s mut NetStorage<16, 16>,
    ) -> Result<Talk<'s>, OpenError> {
        Ok(Talk { net: Net::open(link, storage, Options::default())? })
    }

    /// Returns whether there may be more to send at once.
    fn transmit(&mut self) -> bool {
        for _ in 0..4 {
            let Some(frame) = world::with(|world| world.ends.net().next()) else { return false };
            match self.net.transmit(&frame, Offload::default()) {
                Ok(()) => world::with(|world| world.ends.net().accepted()),
                Err(SendError::WouldBlock | SendError::LinkDown) => return false,
                Err(error) => {
                    world::with(|world| world.ends.net().fail(format!("a frame is refused: {error}")));
                    return false;
                }
            }
        }
        true
    }

    /// Returns whether there may be more to receive at once.
    fn receive(&mut self) -> bool {
        for _ in 0..16 {
            let mut bytes = [0; 512];
            match self.net.receive(&mut bytes) {
                Ok(received) => world::with(|world| world.ends.net().received(&bytes[..received.len])),
                Err(NotNow::WouldBlock | NotNow::LinkDown) => return false,
            }
        }
        true
    }
}

impl Work for Talk<'_> {
    fn step(&mut self) -> bool {
        if world::with(|world| world.rng().u8(..) < 16) {
            let (mac, mtu) = (self.net.mac(), self.net.mtu());
            world::with(|world| {
                if mac.is_ok_and(|mac| mac != Some(MAC)) || mtu.is_ok_and(|mtu| mtu != 1500) {
                    world
                        .ends
                        .net()
                        .fail(format!("the card says that it has address {mac:?} and MTU {mtu:?}"));
                }
            });
        }
        // Both, whatever the first says.
        self.transmit() | self.receive()
    }
}
