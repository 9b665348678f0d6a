//! The console: VIRTIO 1.2, 5.3. Bytes in both directions.
//!
//! What was transmitted is *acknowledged* once the PMM's host end has taken it, and [`Console::acknowledged`] counts
//! it. What was not acknowledged when either side restarted is ambiguous: [`InFlight`] says what becomes of it.
//!
//! Two ways lead out: [`Console::write`] copies, and [`Console::claim`] gives a block to be written in place. Each call
//! of either is at least one block and one descriptor, so a program that prints bytes singly gathers them in a claim,
//! which is a [`core::fmt::Write`].

use hvl_shared_abi::wire::console::{Config, F_SIZE, RECEIVE, TRANSMIT};
use hvl_shared_abi::{DeviceId, Features, Mem};
use zerocopy::FromBytes;

use crate::bounce::{InFlight, Kind, Queue, QueueSlices, QueueStorage};
use crate::device::{DeviceStatus, NotNow, handle};
use crate::link::{CellGuard, Link, OpenError};
use crate::platform::{Board, Instant};

/// Storage of a console with queues of at most `RX` and `TX` entries (the PMM's default is 64 each).
#[derive(Debug, Default)]
pub struct ConsoleStorage<const RX: usize = 64, const TX: usize = 64> {
    receive: QueueStorage<RX>,
    transmit: QueueStorage<TX>,
}

impl<const RX: usize, const TX: usize> ConsoleStorage<RX, TX> {
    /// Storage that no device uses yet.
    pub const NEW: ConsoleStorage<RX, TX> =
        ConsoleStorage { receive: QueueStorage::NEW, transmit: QueueStorage::NEW };
    /// Bytes of it.
    pub const SIZE: usize = size_of::<Self>();
    /// Alignment of it, in bytes.
    pub const ALIGN: usize = align_of::<Self>();
}

/// How a console is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What becomes of output in flight at a restart.
    pub in_flight: InFlight,
    /// Which of the link's consoles; 0 is the first.
    pub ordinal: u8,
}

/// A console.
#[derive(Debug)]
pub struct Console<'s, B> {
    link: Link<'s, B>,
    cell: usize,
    /// A block that was claimed and not committed, and its layout.
    held: Option<(u16, u32)>,
}

handle!(Console);

impl<'s, B: Board> Console<'s, B> {
    /// Opens a console of the link, whether or not a PMM is there.
    pub fn open<const RX: usize, const TX: usize>(
        link: &Link<'s, B>,
        storage: &'s mut ConsoleStorage<RX, TX>,
        options: Options,
    ) -> Result<Console<'s, B>, OpenError> {
        Self::open_slices(link, storage.receive.slices(), storage.transmit.slices(), options)
    }

    /// The same with storage whose size is known at run time.
    pub fn open_slices(
        link: &Link<'s, B>,
        receive: QueueSlices<'s>,
        transmit: QueueSlices<'s>,
        options: Options,
    ) -> Result<Console<'s, B>, OpenError> {
        let (index, mut cell) = link.open(DeviceId::CONSOLE, options.ordinal, F_SIZE)?;
        let [first, second, _] = &mut cell.queues;
        first.open(receive, Kind::Receive, u16::MAX);
        second.open(transmit, Kind::Transmit(options.in_flight), u16::MAX);
        Ok(Console { link: link.clone(), cell: index, held: None })
    }

    fn enter(&self) -> Result<CellGuard<'s>, NotNow> {
        self.link.enter(self.cell).ok_or(NotNow::WouldBlock)
    }

    /// Copies received bytes to the front of `into` and says how many; at least one, unless `into` is empty. What was
    /// received before the link went down can still be read.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, NotNow> {
        let mut cell = self.enter()?;
        let runs = cell.runs();
        let m = self.link.mem();
        let Some(queue) = cell.queue(RECEIVE) else { return Err(NotNow::LinkDown) };
        let done = queue.read(m, into);
        if runs {
            cell.refill(&self.link);
        }
        match done {
            0 if into.is_empty() => Ok(0),
            0 if !runs => Err(NotNow::LinkDown),
            0 => Err(NotNow::WouldBlock),
            done => Ok(done),
        }
    }

    /// Copies bytes into free blocks and hands them to the PMM; says how many, at least one unless `bytes` is empty.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, NotNow> {
        let mut cell = self.enter()?;
        let runs = cell.runs();
        let Some(queue) = cell.queue(TRANSMIT).filter(|_| runs) else { return Err(NotNow::LinkDown) };
        let done = queue.write(self.link.mem(), bytes);
        cell.publish(&self.link);
        if done == 0 && !bytes.is_empty() { Err(NotNow::WouldBlock) } else { Ok(done) }
    }

    /// Whether everything that was written is acknowledged. While it is not: `WouldBlock`, or `LinkDown`.
    pub fn flush(&mut self) -> Result<(), NotNow> {
        let mut cell = self.enter()?;
        let runs = cell.runs();
        let quiet = cell.queue(TRANSMIT).is_some_and(|queue| queue.is_quiet());
        match (quiet, runs) {
            (true, _) => Ok(()),
            (false, true) => Err(NotNow::WouldBlock),
            (false, false) => Err(NotNow::LinkDown),
        }
    }

    /// Bytes that the PMM's host end has taken since the console was opened, as of the last look. Output that was
    /// dropped at a restart is not among them; output that was sent again counts once.
    pub fn acknowledged(&self) -> Option<u64> {
        Some(self.link.cell(self.cell)?.queue(TRANSMIT)?.acknowledged())
    }

    /// Whether [`Console::read`] would return bytes.
    pub fn read_ready(&mut self) -> Result<bool, NotNow> {
        Ok(self.enter()?.queue(RECEIVE).is_some_and(|queue| queue.has_ready()))
    }
    /// Whether [`Console::write`] would take bytes.
    pub fn write_ready(&mut self) -> Result<bool, NotNow> {
        let mut cell = self.enter()?;
        Ok(cell.runs() && cell.queue(TRANSMIT).is_some_and(|queue| queue.has_free()))
    }

    /// Columns and rows of the terminal on the other side, if the PMM says them.
    pub fn size(&mut self) -> Result<Option<(u16, u16)>, NotNow> {
        let cell = self.enter()?;
        if !cell.runs() {
            return Err(NotNow::LinkDown);
        }
        if !cell.accepted().contains(Features::from_bits_retain(F_SIZE)) {
            return Ok(None);
        }
        let bytes = cell.config::<_, { size_of::<Config>() }>(self.link.mem()).ok_or(NotNow::WouldBlock)?;
        let config = Config::read_from_bytes(&bytes).map_err(|_| NotNow::WouldBlock)?;
        Ok(Some((config.cols.get(), config.rows.get())))
    }

    /// A block to be written in place, with room for `len` bytes or as many as a block holds
    /// ([`Claim::room`]). Nothing is sent before [`Claim::commit`]; a claim that is dropped sends nothing.
    pub fn claim(&mut self, len: usize) -> Result<Claim<'_, 's, B>, NotNow> {
        let mut cell = self.enter()?;
        let runs = cell.runs();
        let Some(queue) = cell.queue(TRANSMIT).filter(|_| runs) else { return Err(NotNow::LinkDown) };
        let held = self.held.take().filter(|&(_, layout)| layout == queue.layout());
        let take = |queue: &mut Queue<'s>| if queue.has_free() { queue.take() } else { None };
        let Some(block) = held.map(|(block, _)| block).or_else(|| take(queue)) else {
            return Err(NotNow::WouldBlock);
        };
        let (layout, room) = (queue.layout(), queue.extent(block).len);
        self.held = Some((block, layout));
        let room = room.min(u32::try_from(len).unwrap_or(u32::MAX));
        Ok(Claim { console: self, block, layout, room, len: 0 })
    }
}

/// A block of the transmit queue that its holder fills. There is no slice of it: the memory is the PMM's, too.
#[derive(Debug)]
pub struct Claim<'c, 's, B> {
    console: &'c mut Console<'s, B>,
    block: u16,
    layout: u32,
    room: u32,
    len: u32,
}

impl<B: Board> Claim<'_, '_, B> {
    /// Bytes that fit.
    pub fn room(&self) -> usize {
        self.room as usize
    }
    /// Bytes up to the last one that was written.
    pub fn len(&self) -> usize {
        self.len as usize
    }
    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes `bytes` at `offset`; all of them or, where they do not fit, none: `Ok(false)`. `LinkDown`: the PMM
    /// came back with another layout, and this block is no longer ours; claim another.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) -> Result<bool, NotNow> {
        let mut cell = self.console.link.cell(self.console.cell).ok_or(NotNow::WouldBlock)?;
        let Some(queue) = cell.queue(TRANSMIT).filter(|queue| queue.layout() == self.layout) else {
            return Err(NotNow::LinkDown);
        };
        let end = offset.checked_add(bytes.len()).filter(|&end| end <= self.room as usize);
        let Some(end) = end else { return Ok(false) };
        let at = queue.extent(self.block).at.wrapping_add(offset as u32);
        self.console.link.mem().copy_out(at, bytes);
        self.len = self.len.max(end as u32);
        Ok(true)
    }

    /// Appends what fits, and says how much that was.
    pub fn put(&mut self, bytes: &[u8]) -> Result<usize, NotNow> {
        let fit = bytes.len().min((self.room.saturating_sub(self.len)) as usize);
        let (bytes, _) = bytes.split_at_checked(fit).unwrap_or((&[], &[]));
        self.write_at(self.len as usize, bytes)?;
        Ok(fit)
    }

    /// Sends what was written, and says how many bytes. After an error the claim is gone; nothing was sent.
    pub fn commit(self) -> Result<usize, NotNow> {
        let Claim { console, block, layout, len, .. } = self;
        let mut cell = console.enter()?;
        let runs = cell.runs();
        let Some(queue) = cell.queue(TRANSMIT).filter(|queue| runs && queue.layout() == layout) else {
            return Err(NotNow::LinkDown);
        };
        console.held = None;
        if len == 0 {
            queue.release(block);
            return Ok(0);
        }
        queue.post(console.link.mem(), block, len);
        cell.publish(&console.link);
        Ok(len as usize)
    }
}

/// Appends text; an error says that it did not fit or the block is gone. What fitted is in the block.
impl<B: Board> core::fmt::Write for Claim<'_, '_, B> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        match self.put(text.as_bytes()) {
            Ok(n) if n == text.len() => Ok(()),
            _ => Err(core::fmt::Error),
        }
    }
}
