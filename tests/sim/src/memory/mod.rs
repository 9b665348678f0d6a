//! The four memories.
//!
//! A word that one side stores becomes visible to the other by one of three ways, and a seed says which:
//!
//! - **through a store buffer** ([`order`]): the store waits until something drains it. Under the *ordered* rule, that
//!   of x86, stores leave in program order; under the *weak* rule in any order that `publish`, `settle` and `bell` do
//!   not forbid; under *early* loads may also return what memory held before, as far back as the last `observe` or
//!   `settle` of this side;
//! - **through a cache** that nobody keeps coherent ([`cache`]): pools only, lines of 32 bytes at the guest, 64 at
//!   the PMM; lines are filled and evicted when nobody asked for it;
//! - **at once**.
//!
//! Whatever the way, the simulator sees every store that reaches memory, and checks there who may store what, and
//! when. *Device* memory adds that an access of the wrong width faults. *Hostile* memory lies: a load of what the
//! peer may store now and then returns something else.

pub mod cache;
pub mod order;

use fastrand::Rng;
use hvl_shared_abi::header::reg;
use hvl_shared_abi::{Attribute, Window};

use crate::map::{Area, Map, Side};
use cache::Cache;
use order::{History, Order, StoreBuffer};

/// How often a load of a foreign word lies: once in `.0` loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lies(pub u32);

/// What a seed decides about memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// How stores travel and loads look.
    pub order: Order,
    /// What each side calls the region.
    pub attributes: [Attribute; 2],
    /// Which sides are lied to.
    pub lies: [Option<Lies>; 2],
    /// Once in how many accesses a store leaves a buffer by itself.
    pub drain: u32,
}

impl Kind {
    /// One or two words for reports.
    pub fn name(&self) -> String {
        let [pmm, guest] = self.attributes;
        let order = self.order.name();
        match self.lies {
            [None, None] => format!("{order}, PMM {}, guest {}", pmm.name(), guest.name()),
            [Some(_), None] => format!("hostile to the PMM, {order}"),
            [None, Some(_)] => format!("hostile to the guest, {order}"),
            [Some(_), Some(_)] => format!("hostile to both, {order}"),
        }
    }
    /// Whether any side is lied to.
    pub fn hostile(&self) -> bool {
        self.lies != [None, None]
    }
}

/// Lines of each side's cache, in bytes.
const LINES: [u32; 2] = [64, 32];

/// The region, and what stands between it and each side.
pub struct Memory {
    /// What everything is called.
    pub map: Map,
    kind: Kind,
    words: Vec<u32>,
    buffers: [StoreBuffer; 2],
    caches: [Cache; 2],
    history: History,
    /// The epoch with which the guest that lives has said hello; 0 before it has.
    pub greeted: u32,
    /// What went wrong at a store, if something did.
    pub violation: Option<String>,
}

impl Memory {
    /// A region of zeros, or of garbage behind the header.
    pub fn new(map: Map, len: u32, kind: Kind) -> Memory {
        let words = vec![0; (len / 4) as usize];
        let history = History::new(words.len());
        let buffers = [StoreBuffer::default(), StoreBuffer::default()];
        let caches = LINES.map(Cache::new);
        Memory { map, kind, words, buffers, caches, history, greeted: 0, violation: None }
    }

    /// Its length in bytes.
    pub fn len(&self) -> u32 {
        (self.words.len() * 4) as u32
    }
    /// Whether it has no words.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
    /// What `side` calls the region.
    pub fn attribute(&self, side: Side) -> Attribute {
        self.kind.attributes[side.index()]
    }

    /// Fills what lies behind the header with garbage: the region is not zeroed by anybody.
    pub fn scribble(&mut self, from: u32, rng: &mut Rng) {
        for word in &mut self.words[(from / 4) as usize..] {
            *word = rng.u32(..);
        }
    }

    /// What memory itself holds, for checks.
    pub fn truth(&self, at: u32) -> u32 {
        self.words[(at / 4) as usize]
    }

    /// Whether an access is possible at all: inside, aligned, and on Device memory of the width that the word has.
    pub fn fault(&self, side: Side, at: u32, width: u32) -> Option<String> {
        let why = if at.checked_add(width).is_none_or(|end| end > self.len()) {
            "outside the region"
        } else if !at.is_multiple_of(width) {
            "not aligned"
        } else if self.attribute(side) == Attribute::Device
            && width != 4
            && self.map.place(at).area == Area::Header
            && !self.map.name(at).ends_with("config")
        {
            "not of the register's width"
        } else {
            return None;
        };
        Some(format!("{} access of {width} bytes at {at:#x} ({}) is {why}", side.name(), self.map.name(at)))
    }

    fn cached(&self, side: Side, at: u32) -> bool {
        self.attribute(side).cache().is_some() && self.map.place(at).area == Area::Pool
    }

    /// Loads `width` bytes at `at`. `observe`: later accesses stay behind.
    #[inline]
    pub fn load(&mut self, side: Side, at: u32, width: u32, observe: bool, rng: &mut Rng) -> u32 {
        let word = at / 4;
        let (shift, ones) = lane(at, width);
        let mut value = if self.cached(side, at) {
            let cache = &mut self.caches[side.index()];
            cache.load(word, &self.words)
        } else {
            let stale =
                self.history.load(side, word, self.words[word as usize], self.kind.order, observe, rng);
            self.buffers[side.index()].forward(word, stale)
        };
        if let Some(Lies(rate)) = self.kind.lies[side.index()] {
            let place = self.map.place(at);
            let foreign = place.may_store(side.other());
            if foreign && rng.u32(0..rate) == 0 {
                value = lie(value, rng);
            }
        }
        (value >> shift) & ones
    }

    /// Stores `width` bytes at `at`. `publish`: everything before it goes first.
    #[inline]
    pub fn store(&mut self, side: Side, at: u32, width: u32, value: u32, publish: bool, rng: &mut Rng) {
        let (shift, ones) = lane(at, width);
        let (mask, value) = (ones << shift, (value & ones) << shift);
        let place = self.map.place(at);
        // A PMM that lies about where rings and pools are leads the guest anywhere behind the windows.
        let led = side == Side::Guest && self.kind.lies[side.index()].is_some() && place.area != Area::Header;
        if !place.may_store(side) && !led {
            self.violate(format!(
                "the {} stored {:#x} to {} at {at:#x}, which is not its to write",
                side.name(),
                value >> shift,
                self.map.name(at)
            ));
        }
        if self.cached(side, at) {
            self.caches[side.index()].store(at / 4, mask, value, &self.words);
            return;
        }
        let buffer = &mut self.buffers[side.index()];
        if publish {
            buffer.fence();
        }
        buffer.push(at / 4, mask, value);
        if self.kind.order == Order::Sequential || buffer.is_full() {
            self.drain_one(side, rng);
        }
    }

    /// This side was woken: what it loads from now on is no older than that.
    pub fn wake(&mut self, side: Side) {
        self.history.catch_up(side);
    }

    /// A full fence of one side.
    pub fn settle(&mut self, side: Side, rng: &mut Rng) {
        while self.drain_one(side, rng) {}
        self.history.catch_up(side);
    }

    /// Lets things happen that nobody asked for: a store leaves its buffer, a line is filled or evicted.
    #[inline]
    pub fn stir(&mut self, rng: &mut Rng) {
        let dice = rng.u32(..);
        if dice.is_multiple_of(self.kind.drain) {
            let side = Side::BOTH[(dice >> 31) as usize];
            self.drain_one(side, rng);
        }
        if dice & 0x7f00_0000 == 0 {
            let side = Side::BOTH[(dice >> 31) as usize];
            if self.attribute(side).cache().is_some() {
                self.wander(side, rng);
            }
        }
    }

    fn wander(&mut self, side: Side, rng: &mut Rng) {
        let word = rng.usize(0..self.words.len()) as u32;
        if rng.bool() && self.cached(side, word * 4) {
            self.caches[side.index()].prefetch(word, &self.words);
        } else if let Some(line) = self.caches[side.index()].any(rng) {
            self.write_back(side, line);
            self.caches[side.index()].forget(line);
        }
    }

    /// Writes back this side's lines of a stretch.
    pub fn clean(&mut self, side: Side, at: u32, len: u32) {
        if self.attribute(side).cache().is_some() {
            for line in self.caches[side.index()].lines(at, len) {
                self.write_back(side, line);
            }
        }
    }
    /// Drops this side's lines of a stretch, and what was stored to them.
    pub fn invalidate(&mut self, side: Side, at: u32, len: u32) {
        if self.attribute(side).cache().is_some() {
            for line in self.caches[side.index()].lines(at, len) {
                self.caches[side.index()].forget(line);
            }
        }
    }

    fn write_back(&mut self, side: Side, line: u32) {
        if let Some((first, data)) = self.caches[side.index()].take_dirty(line) {
            for (word, value) in (first..).zip(data) {
                self.commit(side, word, u32::MAX, value);
            }
        }
    }

    /// One store of this side reaches memory, if one may.
    fn drain_one(&mut self, side: Side, rng: &mut Rng) -> bool {
        let Some(store) = self.buffers[side.index()].take(self.kind.order, rng) else { return false };
        self.commit(side, store.word, store.mask, store.value);
        true
    }

    fn commit(&mut self, side: Side, word: u32, mask: u32, value: u32) {
        let old = self.words[word as usize];
        self.history.stored(side, word, old);
        self.words[word as usize] = old & !mask | value & mask;
        let place = self.map.place(word * 4);
        if side == Side::Pmm && matches!(place.area, Area::Ring | Area::Pool) {
            self.check_session(word * 4, usize::from(place.device));
        }
    }

    /// In the set-up state nobody but the frontend may touch rings and pools: a store of the PMM that arrives then
    /// belongs to a session that it has told the guest is over.
    fn check_session(&mut self, at: u32, device: usize) {
        let Some(window) = Window::of(device) else { return };
        let link = |register| self.truth(Window::LINK.at(register));
        let (pmm, driver, seen) = (link(reg::PMM_EPOCH), link(reg::DRIVER_EPOCH), link(reg::EPOCH_SEEN));
        let device_ready = self.truth(window.at(reg::DEVICE_READY));
        let driver_ready = self.truth(window.at(reg::DRIVER_READY));
        // An epoch whose guest is dead is nobody's set-up.
        let set_up = pmm & 1 == 0 && seen == driver && driver != 0 && driver == self.greeted;
        if set_up && device_ready == 0 && driver_ready != driver {
            self.violate(format!(
                "a store of the PMM reached {} after EpochSeen said that epoch {driver} finds it clean",
                self.map.name(at)
            ));
        }
    }

    fn violate(&mut self, what: String) {
        if !self.kind.hostile() || what.contains("not its to write") {
            self.violation.get_or_insert(what);
        }
    }

    /// A processor is gone: what it had stored and nobody had seen arrives in part, its cache is lost in part.
    pub fn die(&mut self, side: Side, rng: &mut Rng) {
        while rng.bool() && self.drain_one(side, rng) {}
        self.buffers[side.index()].clear();
        while let Some(line) = self.caches[side.index()].any(rng) {
            if rng.bool() {
                self.write_back(side, line);
            }
            self.caches[side.index()].forget(line);
        }
        self.history.catch_up(side);
    }
}

/// Shift and mask of the bytes of an access in its word.
fn lane(at: u32, width: u32) -> (u32, u32) {
    let ones = match width {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    };
    ((at % 4) * 8, ones)
}

/// Something else than the truth: anything, or something close to it.
fn lie(truth: u32, rng: &mut Rng) -> u32 {
    match rng.u32(0..8) {
        0 => rng.u32(..),
        1 => truth ^ 1 << rng.u32(0..32),
        2 => truth.wrapping_add(1),
        3 => truth.wrapping_sub(1),
        4 => 0,
        5 => u32::MAX,
        6 => truth ^ 0xffff,
        _ => truth.wrapping_add(rng.u32(0..64) << 16 | rng.u32(0..64)),
    }
}
