//! A write-back cache that nobody keeps coherent.

use fastrand::Rng;

/// Words of the longest line.
const WORDS: usize = 16;

struct Line {
    number: u32,
    data: [u32; WORDS],
    dirty: bool,
}

/// The lines that one side holds.
pub struct Cache {
    /// Words of a line.
    words: u32,
    lines: Vec<Line>,
}

impl Cache {
    /// An empty one with lines of this many bytes.
    pub fn new(line: u32) -> Cache {
        Cache { words: line / 4, lines: Vec::new() }
    }

    fn line(&mut self, word: u32, memory: &[u32]) -> &mut Line {
        let number = word / self.words;
        let index = match self.lines.iter().position(|line| line.number == number) {
            Some(index) => index,
            None => {
                let mut data = [0; WORDS];
                let first = (number * self.words) as usize;
                for (own, memory) in data.iter_mut().zip(&memory[first..]).take(self.words as usize) {
                    *own = *memory;
                }
                self.lines.push(Line { number, data, dirty: false });
                self.lines.len() - 1
            }
        };
        &mut self.lines[index]
    }

    /// Loads a word; the line is filled if it is not here.
    pub fn load(&mut self, word: u32, memory: &[u32]) -> u32 {
        let offset = word % self.words;
        self.line(word, memory).data[offset as usize]
    }
    /// Stores bits of a word; the line is filled first and stays.
    pub fn store(&mut self, word: u32, mask: u32, value: u32, memory: &[u32]) {
        let offset = (word % self.words) as usize;
        let line = self.line(word, memory);
        line.data[offset] = line.data[offset] & !mask | value & mask;
        line.dirty = true;
    }
    /// A line is filled that nobody asked for.
    pub fn prefetch(&mut self, word: u32, memory: &[u32]) {
        self.line(word, memory);
    }

    /// The numbers of the lines of a stretch, whether they are here or not.
    pub fn lines(&self, at: u32, len: u32) -> impl Iterator<Item = u32> + use<> {
        let bytes = self.words * 4;
        at / bytes..(at + len).div_ceil(bytes)
    }
    /// The number of some line that is here.
    pub fn any(&self, rng: &mut Rng) -> Option<u32> {
        let count = self.lines.len();
        if count == 0 { None } else { Some(self.lines[rng.usize(0..count)].number) }
    }
    /// A dirty line's first word and data; it is clean afterwards.
    pub fn take_dirty(&mut self, number: u32) -> Option<(u32, Vec<u32>)> {
        let line = self.lines.iter_mut().find(|line| line.number == number && line.dirty)?;
        line.dirty = false;
        Some((number * self.words, line.data[..self.words as usize].to_vec()))
    }
    /// Drops a line.
    pub fn forget(&mut self, number: u32) {
        self.lines.retain(|line| line.number != number);
    }
}
