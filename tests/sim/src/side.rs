//! A side as a coroutine: its memory, its doorbell, its sleep.
//!
//! Every access asks the world first. The world may say that it is the other side's turn, or that this side dies
//! here; then the coroutine is suspended, and in the second case never resumed but taken apart. What its destructors
//! still do has no effect: a processor that has lost power runs none.

use corosensei::{Coroutine, CoroutineResult, Yielder};
use hvl_shared_abi::{Attribute, Mem};
use scoped_tls::scoped_thread_local;

use crate::map::Side;
use crate::world::{self, Op, Phase, Signal};

scoped_thread_local!(static PMM: Yielder<(), Signal>);
scoped_thread_local!(static GUEST: Yielder<(), Signal>);

/// Bytes of a side's stack.
const STACK: usize = 1024 * 1024;

/// A running side.
pub type Thread = Coroutine<(), Signal, ()>;

/// Starts a side.
pub fn start(side: Side, main: fn(Shared)) -> Thread {
    world::with(|world| world.born(side));
    let stack = corosensei::stack::DefaultStack::new(STACK).expect("there is memory for a stack");
    Coroutine::with_stack(stack, move |yielder, ()| match side {
        Side::Pmm => PMM.set(yielder, || main(Shared { side })),
        Side::Guest => GUEST.set(yielder, || main(Shared { side })),
    })
}

/// Lets a side run. `None`: it has ended by itself.
pub fn resume(thread: &mut Thread) -> Option<Signal> {
    match thread.resume(()) {
        CoroutineResult::Yield(signal) => Some(signal),
        CoroutineResult::Return(()) => None,
    }
}

/// The region as one side reaches it, and whatever else that side has: a doorbell, a clock, sleep.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    side: Side,
}

impl Shared {
    fn suspend(self, signal: Signal) {
        match self.side {
            Side::Pmm => PMM.with(|yielder| yielder.suspend(signal)),
            Side::Guest => GUEST.with(|yielder| yielder.suspend(signal)),
        }
    }

    /// Whether the access may be made: not by a corpse.
    #[inline]
    fn before(self, op: Op, at: u32) -> bool {
        let signal = world::with(|world| {
            if world.is_corpse(self.side) { Err(()) } else { Ok(world.before(self.side, op, at)) }
        });
        match signal {
            Err(()) => return false,
            Ok(Some(signal)) => self.suspend(signal),
            Ok(None) => {}
        }
        true
    }

    fn load(self, op: Op, at: u32, width: u32) -> u32 {
        match self.before(op, at) {
            true => world::with(|world| world.load(self.side, op, at, width)),
            false => 0,
        }
    }
    fn store(self, op: Op, at: u32, width: u32, value: u32) {
        if self.before(op, at) {
            world::with(|world| world.store(self.side, op, at, width, value));
        }
    }

    /// Says what this side is about to do, and that a call begins.
    pub fn enter(self, phase: Phase) {
        world::with(|world| world.enter(self.side, phase));
    }
    /// Microseconds since the start.
    pub fn micros(self) -> u64 {
        world::with(|world| world.now / crate::plan::MICRO)
    }
    /// Rings the other side.
    pub fn ring(self) {
        if self.before(Op::Ring, 0) {
            world::with(|world| world.ring(self.side));
        }
    }
    /// Sleeps until the doorbell, the host end, or a time in microseconds. A bell that has rung since the last sleep
    /// ends it at once. Returns whether it was a bell or the host end.
    pub fn sleep(self, until: Option<u64>) -> bool {
        if !self.before(Op::Sleep, 0) {
            return false;
        }
        if world::with(|world| world.hear(self.side)) {
            return true;
        }
        self.suspend(Signal::Sleep(until.map(|micros| micros.saturating_mul(crate::plan::MICRO))));
        world::with(|world| world.hear(self.side))
    }
}

impl Mem for Shared {
    fn len(&self) -> u32 {
        world::with(|world| world.memory.len())
    }
    fn attribute(&self) -> Attribute {
        world::with(|world| world.memory.attribute(self.side))
    }

    fn read8(&self, at: u32) -> u8 {
        self.load(Op::Load, at, 1) as u8
    }
    fn read16(&self, at: u32) -> u16 {
        self.load(Op::Load, at, 2) as u16
    }
    fn read32(&self, at: u32) -> u32 {
        self.load(Op::Load, at, 4)
    }
    fn write8(&self, at: u32, value: u8) {
        self.store(Op::Store, at, 1, value.into());
    }
    fn write16(&self, at: u32, value: u16) {
        self.store(Op::Store, at, 2, value.into());
    }
    fn write32(&self, at: u32, value: u32) {
        self.store(Op::Store, at, 4, value);
    }
    fn publish16(&self, at: u32, value: u16) {
        self.store(Op::Publish, at, 2, value.into());
    }
    fn publish32(&self, at: u32, value: u32) {
        self.store(Op::Publish, at, 4, value);
    }
    fn observe16(&self, at: u32) -> u16 {
        self.load(Op::Observe, at, 2) as u16
    }
    fn observe32(&self, at: u32) -> u32 {
        self.load(Op::Observe, at, 4)
    }
    fn settle(&self) {
        if self.before(Op::Settle, 0) {
            world::with(|world| world.settle(self.side, Op::Settle));
        }
    }
    fn bell(&self) {
        if self.before(Op::Bell, 0) {
            world::with(|world| world.settle(self.side, Op::Bell));
        }
    }

    fn copy_in(&self, at: u32, into: &mut [u8]) {
        let mut at = at;
        let mut rest = into;
        while !rest.is_empty() {
            let width = stride(at, rest.len());
            let (part, others) = rest.split_at_mut(width);
            let word = self.load(Op::CopyIn, at, width as u32);
            part.copy_from_slice(&word.to_le_bytes()[..width]);
            (at, rest) = (at.wrapping_add(width as u32), others);
        }
    }
    fn copy_out(&self, at: u32, from: &[u8]) {
        let mut at = at;
        let mut rest = from;
        while !rest.is_empty() {
            let width = stride(at, rest.len());
            let (part, others) = rest.split_at(width);
            let word = part.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
            self.store(Op::CopyOut, at, width as u32, word);
            (at, rest) = (at.wrapping_add(width as u32), others);
        }
    }

    fn clean(&self, at: u32, len: u32) {
        if self.before(Op::Clean, at) {
            world::with(|world| world.maintain(self.side, Op::Clean, at, len));
        }
    }
    fn invalidate(&self, at: u32, len: u32) {
        if self.before(Op::Invalidate, at) {
            world::with(|world| world.maintain(self.side, Op::Invalidate, at, len));
        }
    }
}

/// Bytes of the next access of a copy: a whole word where one fits, else a byte.
fn stride(at: u32, left: usize) -> usize {
    if at.is_multiple_of(4) && left >= 4 { 4 } else { 1 }
}
