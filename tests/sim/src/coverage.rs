//! Places: which accesses there are, and at which of them a side has died.
//!
//! A place is a side, an operation, what the side was doing, and the name of the word: "PMM publish EpochSeen
//! (serve)". The run lists every place that was met with the number of deaths there, and a place that was met and never
//! died at is a hole, which a directed seed fills.

use std::collections::{BTreeMap, BTreeSet};

use crate::map::{self, Side};
use crate::plan::{SEED_BITS, TARGET_BITS};
use crate::world::{Op, Phase};

/// Names that a place can have, at most.
const NAMES: u32 = 512;

/// Meetings that make a place one of the usual: in ten thousand seeds the others, of guests that lie, are met some ten
/// times, and are others when anything changes.
const USUAL: u32 = 100;

/// Counts of each place.
#[derive(Clone, Default)]
pub struct Coverage {
    met: Vec<u32>,
    tried: Vec<u32>,
    first: BTreeMap<u32, u64>,
}

impl Coverage {
    const PLACES: usize = 2 * Op::ALL.len() * Phase::ALL.len() * NAMES as usize;

    /// With no place met.
    pub fn new() -> Coverage {
        debug_assert!(map::names() <= NAMES as usize);
        Coverage { met: vec![0; Self::PLACES], tried: vec![0; Self::PLACES], first: BTreeMap::new() }
    }

    /// Counts an access, and says which place it is.
    #[inline]
    pub fn meet(&mut self, side: Side, op: Op, phase: Phase, name: u16, seed: u64) -> u32 {
        let what = side as usize * Op::ALL.len() + op as usize;
        let site = (what * Phase::ALL.len() + phase as usize) * NAMES as usize + usize::from(name);
        let met = &mut self.met[site];
        // What a directed seed meets behind its target is no place of the run: nothing could be directed there.
        if *met == 0 && seed >> SEED_BITS == 0 {
            self.first.entry(site as u32).or_insert(seed);
        }
        *met = met.saturating_add(1);
        site as u32
    }
    /// Counts a death.
    pub fn tried(&mut self, site: u32) {
        self.tried[site as usize] += 1;
    }
    /// A number for a place that looks random.
    #[inline]
    pub fn hash(site: u32) -> u32 {
        site.wrapping_mul(0x9e37_79b1) >> (32 - TARGET_BITS)
    }

    /// Adds what another thread has counted.
    pub fn add(&mut self, other: &Coverage) {
        if self.met.is_empty() {
            *self = Coverage::new();
        }
        for (own, other) in self.met.iter_mut().zip(&other.met) {
            *own = own.saturating_add(*other);
        }
        for (own, other) in self.tried.iter_mut().zip(&other.tried) {
            *own += other;
        }
        for (site, seed) in &other.first {
            let known = self.first.entry(*site).or_insert(*seed);
            *known = (*known).min(*seed);
        }
    }

    /// Places that were met and never died at, each with the first seed that met it.
    pub fn holes(&self) -> Vec<(u32, u64)> {
        let untried = self.first.iter().filter(|(site, _)| self.tried[**site as usize] == 0);
        untried.map(|(site, seed)| (*site, *seed)).collect()
    }
    /// How many places were met, and how many died at.
    pub fn counts(&self) -> (usize, usize) {
        (self.first.len(), self.tried.iter().filter(|count| **count != 0).count())
    }

    /// A place in words.
    pub fn describe(site: u32) -> String {
        let name = map::name_of((site % NAMES) as u16);
        let rest = site / NAMES;
        let phase = Phase::ALL[rest as usize % Phase::ALL.len()];
        let what = rest as usize / Phase::ALL.len();
        let op = Op::ALL[what % Op::ALL.len()];
        let side = Side::BOTH[what / Op::ALL.len()];
        let name = if matches!(op, Op::Settle | Op::Bell | Op::Ring | Op::Sleep) { "" } else { name };
        format!("{} {} {name} ({})", side.name(), op.name(), phase.name()).replace("  ", " ")
    }
    /// Every place that was met: its words, how often it was met, how often died at.
    pub fn list(&self) -> Vec<(String, u32, u32)> {
        let places = self
            .first
            .keys()
            .map(|site| (Self::describe(*site), self.met[*site as usize], self.tried[*site as usize]));
        let mut list: Vec<_> = places.collect();
        list.sort();
        list
    }
    /// What distinguishes the run from a list of places: those on it that no side died at, and usual ones that are not
    /// on it.
    pub fn compare(&self, list: &str) -> (Vec<String>, Vec<String>) {
        let known: BTreeSet<&str> = list.lines().filter(|line| !line.starts_with('#')).collect();
        let places = self.list();
        let died = places.iter().filter(|(_, _, tried)| *tried != 0).map(|(place, ..)| place.as_str());
        let died: BTreeSet<&str> = died.collect();
        let missing = known.difference(&died).map(|place| (*place).into()).collect();
        (missing, self.usual().into_iter().filter(|place| !known.contains(place.as_str())).collect())
    }
    /// The places that are always met, by their words.
    pub fn usual(&self) -> BTreeSet<String> {
        let usual = self.list().into_iter().filter(|(_, met, _)| *met >= USUAL);
        usual.map(|(place, ..)| place).collect()
    }
}
