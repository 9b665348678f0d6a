//! Store buffers, and loads that are early: what a processor may do between the named orderings.

use std::collections::VecDeque;

use fastrand::Rng;

use crate::map::Side;

/// How far a processor reorders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Not at all.
    Sequential,
    /// Stores wait in order, loads pass them: x86.
    Ordered,
    /// Stores to different words leave in any order.
    Weak,
    /// The same, and loads may be satisfied early.
    Early,
}

impl Order {
    /// One word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Order::Sequential => "sequential",
            Order::Ordered => "ordered stores",
            Order::Weak => "weak stores",
            Order::Early => "weak stores and early loads",
        }
    }
}

/// A store that has not reached memory.
#[derive(Clone, Copy, Debug)]
pub struct Store {
    /// Which word.
    pub word: u32,
    /// Which of its bits.
    pub mask: u32,
    /// Their value.
    pub value: u32,
    /// Stores leave only after every store of an earlier group.
    group: u32,
}

/// The stores of one side that have not reached memory.
#[derive(Default)]
pub struct StoreBuffer {
    stores: VecDeque<Store>,
    group: u32,
}

/// Stores that a buffer holds at the most.
const DEPTH: usize = 24;

impl StoreBuffer {
    /// Later stores leave after all that are here.
    pub fn fence(&mut self) {
        self.group += 1;
    }
    /// A store of some bits of a word.
    pub fn push(&mut self, word: u32, mask: u32, value: u32) {
        self.stores.push_back(Store { word, mask, value, group: self.group });
    }
    /// Whether one has to leave.
    pub fn is_full(&self) -> bool {
        self.stores.len() >= DEPTH
    }
    /// A word as its own side sees it.
    pub fn forward(&self, word: u32, memory: u32) -> u32 {
        let own = self.stores.iter().filter(|store| store.word == word);
        own.fold(memory, |value, store| value & !store.mask | store.value)
    }
    /// The next store that leaves.
    pub fn take(&mut self, order: Order, rng: &mut Rng) -> Option<Store> {
        let first = self.stores.front()?;
        if matches!(order, Order::Sequential | Order::Ordered) {
            return self.stores.pop_front();
        }
        // Of the first group any; but stores to one word keep their order.
        let group = self.stores.iter().take_while(|store| store.group == first.group).count();
        let chosen = rng.usize(0..group);
        let word = self.stores[chosen].word;
        let first_of_word = self.stores.iter().position(|store| store.word == word)?;
        self.stores.remove(first_of_word)
    }
    /// All of it is lost.
    pub fn clear(&mut self) {
        self.stores.clear();
    }
}

/// What memory held before, for loads that are early.
///
/// A load may return what the word held at any time since the side's *horizon*: the moment of its last `observe` or
/// `settle`. It never returns something older than what this side has loaded from, or stored to, the same word.
pub struct History {
    /// Stores so far.
    time: u64,
    /// The last of them: word and what it held before. The entry of time `t` is at `t % len`.
    overwritten: Vec<(u32, u32)>,
    horizon: [u64; 2],
    /// Per side and word, the time of what it knows of the word.
    known: [Vec<u64>; 2],
}

/// How far back a load reaches, in stores.
const WINDOW: u64 = 64;

impl History {
    /// Of a region of this many words.
    pub fn new(words: usize) -> History {
        History {
            time: 0,
            overwritten: vec![(0, 0); WINDOW as usize],
            horizon: [0; 2],
            known: [vec![0; words], vec![0; words]],
        }
    }
    /// A store is about to replace `old`.
    #[inline]
    pub fn stored(&mut self, side: Side, word: u32, old: u32) {
        self.overwritten[(self.time % WINDOW) as usize] = (word, old);
        self.time += 1;
        self.known[side.index()][word as usize] = self.time;
    }
    /// Everything that this side does from now on happens after everything before.
    pub fn catch_up(&mut self, side: Side) {
        self.horizon[side.index()] = self.time;
    }
    /// What a load returns where memory holds `now`.
    #[inline]
    pub fn load(
        &mut self,
        side: Side,
        word: u32,
        now: u32,
        order: Order,
        observe: bool,
        rng: &mut Rng,
    ) -> u32 {
        let known = &mut self.known[side.index()][word as usize];
        let mut when = self.time;
        let mut value = now;
        if order == Order::Early {
            let oldest = self.horizon[side.index()].max(*known).max(self.time.saturating_sub(WINDOW));
            if oldest < self.time && rng.u8(..) < 96 {
                when = rng.u64(oldest..=self.time);
                for time in (when..self.time).rev() {
                    let (overwritten, old) = self.overwritten[(time % WINDOW) as usize];
                    if overwritten == word {
                        value = old;
                    }
                }
                *known = when;
            } else {
                *known = self.time;
            }
        }
        if observe {
            let horizon = &mut self.horizon[side.index()];
            *horizon = (*horizon).max(when);
        }
        value
    }
}
