//! Keys become lines: what a terminal in raw mode sends, with the editing that a user's fingers expect, and no heap.
//!
//! Enter is a carriage return, a line feed, or both. The arrows move the cursor and recall earlier lines; Home, End,
//! Delete and Backspace, and Ctrl-A, -B, -D, -E, -F, -H, -K, -L, -N, -P, -U, -W do what they do in other shells; Tab
//! completes words of a table. Other sequences are swallowed. A line is UTF-8 at any time: a character is taken when its
//! last byte has come, and bytes that are none become U+FFFD, with which no command runs.

use core::fmt;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::text::Text;

/// Most bytes of a line.
pub const LINE: usize = 160;
/// Bytes of earlier lines that a shell keeps.
pub const HISTORY: usize = 640;
/// Most bytes that one key shows, with a prompt of up to 64: the candidates of a completion, and the line again.
pub const SHOWN: usize = 640;

/// Ctrl-C.
pub const CANCEL: u8 = 3;
const BELL: u8 = 7;
const ESCAPE: u8 = 0x1b;
const DELETE: u8 = 0x7f;

/// The byte of Ctrl and a letter.
const fn ctrl(letter: u8) -> u8 {
    letter & 0x1f
}

/// What a key led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The line goes on; this is to be [shown](Editor::show).
    Echo(Echo),
    /// The line is complete: [`Editor::line`].
    Line,
    /// A line ended that was longer than [`LINE`].
    TooLong,
    /// Ctrl-C: the line is gone.
    Cancelled,
}

/// What the terminal is to show for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// Nothing.
    Nothing,
    /// The key did nothing.
    Bell,
    /// So many bytes at the end of the line are new.
    Added(usize),
    /// The last character, one column wide, vanishes.
    Erase,
    /// The line is another, or the cursor elsewhere.
    Redraw,
    /// The screen is cleared first.
    Clear,
    /// The words that can stand here are listed first.
    Candidates,
}

/// What stands before the line: `NAME> `, or `NAME (failed)> `.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Whose prompt it is.
    pub name: &'static str,
    /// Whether the last command failed.
    pub failed: bool,
}

impl fmt::Display for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}> ", self.name, if self.failed { " (failed)" } else { "" })
    }
}

impl Prompt {
    fn width(&self) -> usize {
        self.name.width().saturating_add(if self.failed { " (failed)> ".len() } else { "> ".len() })
    }
}

/// Where the keys of a sequence stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sequence {
    None,
    Escape,
    /// The number so far, and whether another stood before it.
    Control(u8, bool),
    /// One more byte: the console of Linux has function keys of this kind.
    Function,
}

/// A line that is being typed, and up to `HISTORY` bytes of those before it.
#[derive(Debug)]
pub struct Editor<const HISTORY: usize> {
    line: Text<LINE>,
    /// Byte of the line that the cursor stands on.
    cursor: usize,
    /// Row of the cursor on the terminal, below that of the prompt.
    row: usize,
    too_long: bool,
    after_return: bool,
    sequence: Sequence,
    /// A character of which bytes are missing.
    part: Text<4>,
    /// Earlier lines, each with a line feed, the newest last.
    history: Text<HISTORY>,
    /// How many lines back the present one was recalled from.
    back: usize,
    /// What was typed before one was recalled.
    typed: Text<LINE>,
    phrases: &'static [&'static str],
}

impl<const HISTORY: usize> Editor<HISTORY> {
    /// An empty line, in which Tab completes these; see [`PHRASES`](crate::command::PHRASES).
    pub const fn new(phrases: &'static [&'static str]) -> Self {
        Editor {
            line: Text::NEW,
            cursor: 0,
            row: 0,
            too_long: false,
            after_return: false,
            sequence: Sequence::None,
            part: Text::NEW,
            history: Text::NEW,
            back: 0,
            typed: Text::NEW,
            phrases,
        }
    }

    /// The bytes so far; after [`Key::Line`] all of them, until the next key.
    pub fn line(&self) -> &[u8] {
        self.line.as_bytes()
    }
    /// Begins another line, on a row of its own.
    pub fn clear(&mut self) {
        self.empty();
        self.row = 0;
        self.back = 0;
        self.sequence = Sequence::None;
    }
    /// A line feed that comes next belongs to nobody's Enter: what follows is data.
    pub fn forget_return(&mut self) {
        self.after_return = false;
    }

    /// Takes one byte. Lines are for the caller to [`clear`](Editor::clear).
    pub fn key(&mut self, key: u8) -> Key {
        let after_return = core::mem::replace(&mut self.after_return, key == b'\r');
        if let Some(echo) = self.sequence(key) {
            return Key::Echo(echo);
        }
        // The rest of a character will not come?
        let broken = !matches!(key, 0x80..=0xbf) && !self.part.is_empty();
        if broken {
            self.part.clear();
            self.insert(char::REPLACEMENT_CHARACTER);
        }
        let echo = match key {
            b'\n' if after_return => Echo::Nothing,
            b'\r' | b'\n' if self.too_long => return Key::TooLong,
            b'\r' | b'\n' => {
                self.remember();
                return Key::Line;
            }
            CANCEL => return Key::Cancelled,
            0x15 => {
                self.empty();
                Echo::Redraw
            }
            ESCAPE => {
                self.sequence = Sequence::Escape;
                Echo::Nothing
            }
            _ if self.too_long => Echo::Bell,
            DELETE => self.erase(),
            b'\t' => self.complete(),
            0..=0x1f => self.control(key),
            0x20..=0x7e => self.insert(char::from(key)),
            _ => self.byte(key),
        };
        Key::Echo(match echo {
            Echo::Nothing | Echo::Bell | Echo::Added(_) | Echo::Erase if broken => Echo::Redraw,
            echo => echo,
        })
    }

    /// Takes a byte that belongs to a sequence of an escape; nothing if it does not.
    fn sequence(&mut self, key: u8) -> Option<Echo> {
        let before = core::mem::replace(&mut self.sequence, Sequence::None);
        let (number, several) = match (before, key) {
            (Sequence::Escape, b'[' | b'O') => {
                self.sequence = Sequence::Control(0, false);
                return Some(Echo::Nothing);
            }
            (Sequence::Control(0, false), b'[') => {
                self.sequence = Sequence::Function;
                return Some(Echo::Nothing);
            }
            (Sequence::Function, 0x20..=0x7e) => return Some(Echo::Nothing),
            (Sequence::Control(number, several), 0x20..=0x7e) => (number, several),
            _ => return None,
        };
        self.sequence = match key {
            b'0'..=b'9' => {
                let number = number.saturating_mul(10).saturating_add(key & 0xf);
                Sequence::Control(number, several)
            }
            b';' => Sequence::Control(0, true),
            0x20..=0x3f => Sequence::Control(number, several),
            _ if self.too_long => return Some(Echo::Bell),
            // With Ctrl, 5, the arrows move by words.
            b'C' if several && number == 5 => return Some(self.go(self.word_right())),
            b'D' if several && number == 5 => return Some(self.go(self.word_left())),
            b'~' if several => return Some(Echo::Nothing),
            _ => {
                return Some(match (key, number) {
                    (b'A', _) => self.control(ctrl(b'P')),
                    (b'B', _) => self.control(ctrl(b'N')),
                    (b'C', _) => self.control(ctrl(b'F')),
                    (b'D', _) => self.control(ctrl(b'B')),
                    (b'H', _) | (b'~', 1 | 7) => self.control(ctrl(b'A')),
                    (b'F', _) | (b'~', 4 | 8) => self.control(ctrl(b'E')),
                    (b'~', 3) => self.control(ctrl(b'D')),
                    _ => Echo::Nothing,
                });
            }
        };
        Some(Echo::Nothing)
    }

    /// Takes Ctrl and a letter.
    fn control(&mut self, key: u8) -> Echo {
        let (cursor, end) = (self.cursor, self.line.len());
        match key | 0x60 {
            b'a' => self.go(0),
            b'b' => self.go(self.left()),
            b'd' => self.cut(cursor, self.right()),
            b'e' => self.go(end),
            b'f' => self.go(self.right()),
            b'h' => self.erase(),
            b'k' => self.cut(cursor, end),
            b'l' => Echo::Clear,
            b'n' => self.recall(self.back.checked_sub(1)),
            b'p' => self.recall(self.back.checked_add(1)),
            b'w' => self.cut(self.word_left(), cursor),
            _ => Echo::Bell,
        }
    }

    fn empty(&mut self) {
        self.line.clear();
        self.part.clear();
        self.cursor = 0;
        self.too_long = false;
    }

    // --- places -----------------------------------------------------------------------------------------------------

    /// The line before and after a place. It is text, and places lie between its characters.
    fn around(&self, at: usize) -> (&str, &str) {
        core::str::from_utf8(self.line.as_bytes()).unwrap_or("").split_at_checked(at).unwrap_or(("", ""))
    }
    fn left(&self) -> usize {
        self.around(self.cursor).0.char_indices().next_back().map_or(0, |(at, _)| at)
    }
    fn right(&self) -> usize {
        let width = self.around(self.cursor).1.chars().next().map_or(0, char::len_utf8);
        self.cursor.saturating_add(width)
    }
    fn word_left(&self) -> usize {
        let before = self.around(self.cursor).0.trim_end_matches(' ');
        before.rfind(' ').map_or(0, |at| at.saturating_add(1))
    }
    fn word_right(&self) -> usize {
        let after = self.around(self.cursor).1;
        let rest = after.trim_start_matches(' ');
        let rest = rest.find(' ').and_then(|at| rest.get(at..)).unwrap_or("");
        self.line.len().saturating_sub(rest.len())
    }

    // --- changes ----------------------------------------------------------------------------------------------------

    fn go(&mut self, to: usize) -> Echo {
        if core::mem::replace(&mut self.cursor, to) == to { Echo::Bell } else { Echo::Redraw }
    }

    fn cut(&mut self, from: usize, to: usize) -> Echo {
        if from == to {
            return Echo::Bell;
        }
        self.line.remove(from, to);
        self.cursor = from;
        Echo::Redraw
    }

    /// Takes a byte of a character that has several.
    fn byte(&mut self, byte: u8) -> Echo {
        self.part.push(&[byte]);
        let all = match self.part.as_bytes().first() {
            Some(0xc2..=0xdf) => 2,
            Some(0xe0..=0xef) => 3,
            Some(0xf0..=0xf4) => 4,
            _ => 1,
        };
        if self.part.len() < all {
            return Echo::Nothing;
        }
        let text = core::str::from_utf8(self.part.as_bytes()).ok();
        let character = text.and_then(|text| text.chars().next()).unwrap_or(char::REPLACEMENT_CHARACTER);
        self.part.clear();
        self.insert(character)
    }

    fn insert(&mut self, character: char) -> Echo {
        let mut bytes = [0; 4];
        let bytes = character.encode_utf8(&mut bytes).as_bytes();
        let at_end = self.cursor == self.line.len();
        if !self.line.insert(self.cursor, bytes) {
            // Half a line must not run as a command.
            self.too_long = true;
            return Echo::Bell;
        }
        self.cursor = self.cursor.saturating_add(bytes.len());
        if at_end { Echo::Added(bytes.len()) } else { Echo::Redraw }
    }

    /// Takes the character before the cursor back, all bytes of it.
    fn erase(&mut self) -> Echo {
        let (left, end) = (self.left(), self.line.len());
        let narrow = self.around(left).1.chars().next().and_then(UnicodeWidthChar::width) == Some(1);
        let simple = self.cursor == end && narrow;
        match self.cut(left, self.cursor) {
            Echo::Redraw if simple => Echo::Erase,
            echo => echo,
        }
    }

    // --- earlier lines ----------------------------------------------------------------------------------------------

    /// Keeps the line, and forgets the oldest that leave it no room.
    fn remember(&mut self) {
        let line = self.line.as_bytes();
        let need = line.len().saturating_add(1);
        let again = self.history.as_bytes().rsplit(|&byte| byte == b'\n').nth(1) == Some(line);
        if line.is_empty() || again || need > HISTORY {
            return;
        }
        while HISTORY.saturating_sub(self.history.len()) < need {
            let oldest = self.history.as_bytes().iter().position(|&byte| byte == b'\n');
            self.history.consume(oldest.map_or(HISTORY, |end| end.saturating_add(1)));
        }
        self.history.push(line);
        self.history.push(b"\n");
    }

    /// Shows the line that was typed so many lines ago; 0 is the one that was begun.
    fn recall(&mut self, back: Option<usize>) -> Echo {
        let Some(back) = back else { return Echo::Bell };
        if self.back == 0 {
            self.typed.clear();
            self.typed.push(self.line.as_bytes());
        }
        let found = match back {
            0 => Some(self.typed.as_bytes()),
            // After the last line feed there is nothing, at 0.
            back => self.history.as_bytes().rsplit(|&byte| byte == b'\n').nth(back),
        };
        let Some(found) = found else { return Echo::Bell };
        self.line.clear();
        self.line.push(found);
        self.back = back;
        self.cursor = self.line.len();
        Echo::Redraw
    }

    // --- completion -------------------------------------------------------------------------------------------------

    /// The words that can go on what stands before the cursor, each with what follows it in its phrase.
    fn candidates(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let before = self.around(self.cursor).0;
        let begin = before.rfind(' ').map_or(0, |at| at.saturating_add(1));
        let words =
            self.phrases.iter().filter(move |phrase| phrase.starts_with(before)).filter_map(move |phrase| {
                let rest = phrase.get(begin..).filter(|rest| !rest.is_empty())?;
                Some(rest.find(' ').map_or((rest, ""), |end| rest.split_at(end)))
            });
        // Phrases of one word stand together.
        let mut last = "";
        words.filter(move |(word, _)| core::mem::replace(&mut last, word) != *word)
    }

    /// Adds what all candidates have in common, or lists them.
    fn complete(&mut self) -> Echo {
        let before = self.around(self.cursor).0;
        let have = before.len().saturating_sub(before.rfind(' ').map_or(0, |at| at.saturating_add(1)));
        let mut all = self.candidates();
        let Some((first, after)) = all.next() else { return Echo::Bell };
        // Words are ASCII, and so is what they have in common.
        let (common, several) = all.fold((first.len(), false), |(common, _), (word, _)| {
            let same = first.bytes().zip(word.bytes()).take(common).take_while(|(a, b)| a == b).count();
            (same, true)
        });
        let added = first.get(have..common).unwrap_or("");
        let space = if several || after.is_empty() { "" } else { " " };
        let at_end = self.cursor == self.line.len();
        let bytes = added.len().saturating_add(space.len());
        match () {
            () if bytes == 0 && several => return Echo::Candidates,
            () if bytes == 0 || self.line.len().saturating_add(bytes) > LINE => return Echo::Bell,
            () => {}
        }
        self.line.insert(self.cursor, added.as_bytes());
        self.cursor = self.cursor.saturating_add(added.len());
        self.line.insert(self.cursor, space.as_bytes());
        self.cursor = self.cursor.saturating_add(space.len());
        if at_end { Echo::Added(bytes) } else { Echo::Redraw }
    }

    // --- the terminal -----------------------------------------------------------------------------------------------

    /// Shows what a key led to. It needs up to [`SHOWN`] bytes of room.
    pub fn show<const N: usize>(
        &mut self,
        echo: Echo,
        prompt: Prompt,
        columns: Option<u16>,
        out: &mut Text<N>,
    ) {
        let (given, columns) = (columns, known(columns));
        match echo {
            Echo::Nothing => {}
            Echo::Bell => {
                out.push(&[BELL]);
            }
            Echo::Added(count) => {
                let from = self.line.len().saturating_sub(count);
                out.push(self.line.as_bytes().get(from..).unwrap_or(&[]));
                // Behind the last column the cursor stays in the row until another character comes.
                self.row = self.end(prompt).saturating_sub(1).checked_div(columns).unwrap_or(0);
            }
            // The backspace of a terminal does not leave its row.
            Echo::Erase if self.end(prompt).checked_rem(columns) < columns.checked_sub(1) => {
                out.push(b"\x08 \x08");
            }
            Echo::Erase | Echo::Redraw => {
                if self.row != 0 {
                    out.print(format_args!("\x1b[{}A", self.row));
                }
                out.push(b"\r\x1b[J");
                self.again(prompt, columns, out);
            }
            Echo::Clear => {
                out.push(b"\x1b[H\x1b[2J");
                self.again(prompt, columns, out);
            }
            Echo::Candidates => {
                self.leave(prompt, given, out);
                for (at, (word, _)) in self.candidates().enumerate() {
                    out.print(format_args!("{}{word}", if at == 0 { "\n" } else { "  " }));
                }
                out.push(b"\n");
                self.again(prompt, columns, out);
            }
        }
    }

    /// Writes prompt and line where the cursor is at the begin of an empty row.
    pub fn write<const N: usize>(&mut self, prompt: Prompt, columns: Option<u16>, out: &mut Text<N>) {
        self.again(prompt, known(columns), out);
    }

    /// Goes to the last row of the line, for what is written after it.
    pub fn leave<const N: usize>(&mut self, prompt: Prompt, columns: Option<u16>, out: &mut Text<N>) {
        let last = self.end(prompt).saturating_sub(1).checked_div(known(columns)).unwrap_or(0);
        let below = last.saturating_sub(self.row);
        if below != 0 {
            out.print(format_args!("\x1b[{below}B"));
        }
    }

    /// Columns of prompt and line.
    fn end(&self, prompt: Prompt) -> usize {
        prompt.width().saturating_add(self.around(self.line.len()).0.width())
    }

    fn again<const N: usize>(&mut self, prompt: Prompt, columns: usize, out: &mut Text<N>) {
        out.print(format_args!("{prompt}"));
        out.push(self.line.as_bytes());
        let end = self.end(prompt);
        let at = prompt.width().saturating_add(self.around(self.cursor).0.width());
        let place = |at: usize| (at.checked_div(columns).unwrap_or(0), at.checked_rem(columns).unwrap_or(0));
        let (row, column) = place(at);
        self.row = row;
        if self.cursor == self.line.len() {
            if column == 0 {
                // Behind the last column: now it is in the next row.
                out.push(b" \r");
            }
            return;
        }
        out.push(b"\r");
        let up = place(end.saturating_sub(1)).0.saturating_sub(row);
        if up != 0 {
            out.print(format_args!("\x1b[{up}A"));
        }
        if column != 0 {
            out.print(format_args!("\x1b[{column}C"));
        }
    }
}

/// A terminal that does not say its columns is taken as wide enough.
fn known(columns: Option<u16>) -> usize {
    columns.filter(|&columns| columns != 0).map_or(usize::MAX, usize::from)
}

#[cfg(test)]
#[path = "editor_tests.rs"]
mod tests;
