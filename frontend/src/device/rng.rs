//! Entropy: VIRTIO 1.2, 5.4.
//!
//! The bytes are as good as the PMM's source, and the PMM knows them: mix them with what else the machine has where
//! that matters.

use hvl_shared_abi::{DeviceId, wire};

use crate::bounce::{Kind, QueueSlices, QueueStorage};
use crate::device::{DeviceStatus, handle};
use crate::link::{Link, OpenError};
use crate::platform::{Board, Instant};

/// Storage of an entropy device with a queue of at most `N` entries (the PMM's default is 8).
#[derive(Debug, Default)]
pub struct RngStorage<const N: usize = 8> {
    queue: QueueStorage<N>,
}

impl<const N: usize> RngStorage<N> {
    /// Storage that no device uses yet.
    pub const NEW: RngStorage<N> = RngStorage { queue: QueueStorage::NEW };
    /// Bytes of it.
    pub const SIZE: usize = size_of::<Self>();
    /// Alignment of it, in bytes.
    pub const ALIGN: usize = align_of::<Self>();
}

/// Why there is no entropy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillError {
    /// There is no session, or the device does not run in it. It comes back by itself.
    LinkDown,
    /// It was asked for, and has not come yet. Try again after the next doorbell.
    WouldBlock,
    /// The PMM answered without a single byte. The next call asks again.
    Empty,
}

impl core::fmt::Display for FillError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            FillError::LinkDown => "the link is down; no PMM serves entropy at the moment",
            FillError::WouldBlock => "the PMM has not answered the request for entropy yet",
            FillError::Empty => "the PMM answered the request for entropy with no bytes",
        })
    }
}

impl core::error::Error for FillError {}

/// An entropy device.
#[derive(Debug)]
pub struct Rng<'s, B> {
    link: Link<'s, B>,
    cell: usize,
}

handle!(Rng);

impl<'s, B: Board> Rng<'s, B> {
    /// Opens the link's entropy device, whether or not a PMM is there.
    pub fn open<const N: usize>(
        link: &Link<'s, B>,
        storage: &'s mut RngStorage<N>,
    ) -> Result<Rng<'s, B>, OpenError> {
        Self::open_slices(link, storage.queue.slices())
    }

    /// The same with storage whose size is known at run time.
    pub fn open_slices(link: &Link<'s, B>, storage: QueueSlices<'s>) -> Result<Rng<'s, B>, OpenError> {
        let (index, mut cell) = link.open(DeviceId::RNG, 0, 0)?;
        let [queue, ..] = &mut cell.queues;
        queue.open(storage, Kind::Request, u16::MAX);
        Ok(Rng { link: link.clone(), cell: index })
    }

    /// Copies random bytes to the front of `into` and says how many; at least one, unless `into` is empty. Only these
    /// were written.
    ///
    /// It never blocks: with nothing there, it asks the PMM for as many as `into` takes, and answers `WouldBlock`.
    pub fn fill(&mut self, into: &mut [u8]) -> Result<usize, FillError> {
        let mut cell = self.link.enter(self.cell).ok_or(FillError::WouldBlock)?;
        let runs = cell.runs();
        let m = self.link.mem();
        let Some(queue) = cell.queue(wire::rng::REQUEST) else { return Err(FillError::LinkDown) };
        let answered = queue.has_ready();
        let done = queue.read(m, into);
        if done != 0 || into.is_empty() {
            return Ok(done);
        }
        if answered {
            return Err(FillError::Empty);
        }
        if !runs {
            return Err(FillError::LinkDown);
        }
        if queue.is_quiet() {
            queue.request(m, into.len());
            cell.publish(&self.link);
        }
        Err(FillError::WouldBlock)
    }
}
