//! What happened last, and a number that stands for everything that happened.

use crate::map::{Map, Side};
use crate::world::Op;

/// One access.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// When, in nanoseconds.
    pub now: u64,
    /// By whom.
    pub side: Side,
    /// What.
    pub op: Op,
    /// Where; 0 for a fence.
    pub at: u32,
    /// How many bytes.
    pub width: u32,
    /// What was loaded or stored.
    pub value: u32,
}

#[derive(Clone, Copy)]
enum Line {
    Access(Entry),
    Note(u64, Side, &'static str),
}

impl Line {
    fn side(self) -> Side {
        match self {
            Line::Access(entry) => entry.side,
            Line::Note(_, side, _) => side,
        }
    }
}

/// The last lines, and the hash of all.
pub struct Trace {
    lines: Vec<Line>,
    next: usize,
    hash: u64,
    all: bool,
}

/// Lines that are kept.
const KEPT: usize = 1 << 16;

impl Default for Trace {
    fn default() -> Self {
        Trace { lines: Vec::new(), next: 0, hash: 0xcbf2_9ce4_8422_2325, all: false }
    }
}

impl Trace {
    fn push(&mut self, line: Line) {
        if self.all || self.lines.len() < KEPT {
            self.lines.push(line);
        } else {
            self.lines[self.next] = line;
        }
        self.next = (self.next + 1) % KEPT;
    }
    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
    /// An access.
    #[inline]
    pub fn access(&mut self, entry: Entry) {
        let what = (entry.side as u64) << 60 | (entry.op as u64) << 56 | (entry.width as u64 & 0xff) << 48;
        self.mix(what ^ u64::from(entry.at) << 20 ^ entry.now << 8);
        self.mix(entry.value.into());
        self.push(Line::Access(entry));
    }
    /// A start, a death, a sleep.
    pub fn note(&mut self, now: u64, side: Side, what: &'static str) {
        self.mix(now << 8 | what.len() as u64 | (side as u64) << 7);
        self.push(Line::Note(now, side, what));
    }
    /// A number that two runs share only if they were the same.
    pub fn hash(&self) -> u64 {
        self.hash
    }
    /// Keeps every line from now on.
    pub fn keep_all(&mut self) {
        self.all = true;
    }
    /// The last `count` lines in words; if one side has been silent for all of them, half of them are those around
    /// its last word.
    pub fn lines(&self, map: &Map, count: usize) -> Vec<String> {
        let kept = self.lines.len();
        let first = if self.all || kept < KEPT { 0 } else { self.next };
        let line = |i: usize| self.lines[(first + i) % kept.max(1)];
        let words = |range: std::ops::Range<usize>| range.map(|i| Self::line(map, line(i)));
        let start = kept.saturating_sub(count);
        let last_word =
            Side::BOTH.iter().filter_map(|side| (0..kept).rfind(|i| line(*i).side() == *side)).min();
        match last_word.filter(|last| *last < start) {
            None => words(start..kept).collect(),
            Some(last) => {
                let (half, end) = (count / 2, (last + 10).min(kept));
                let before = words(end.saturating_sub(half)..end);
                before
                    .chain(["              ...".to_string()])
                    .chain(words(kept - half.min(kept)..kept))
                    .collect()
            }
        }
    }
    fn line(map: &Map, line: Line) -> String {
        let time = |now: u64| format!("{:>13.3} us", now as f64 / 1000.0);
        match line {
            Line::Note(now, side, what) => format!("{} {:<5} {what}", time(now), side.name()),
            Line::Access(Entry { now, side, op, at, width, value }) => {
                let head = format!("{} {:<5} {:<12}", time(now), side.name(), op.name());
                match op {
                    Op::Settle | Op::Bell | Op::Ring | Op::Sleep => head,
                    Op::Clean | Op::Invalidate => {
                        format!("{head} {} at {at:#x}, {width} bytes", map.name(at))
                    }
                    _ => format!("{head} {} at {at:#x} {} {value:#x}", map.name(at), arrow(op)),
                }
            }
        }
    }
}

fn arrow(op: Op) -> &'static str {
    if matches!(op, Op::Load | Op::Observe | Op::CopyIn) { "->" } else { "<-" }
}
