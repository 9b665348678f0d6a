//! Keys become lines: what a terminal in raw mode sends, with as much editing as a line needs.
//!
//! Enter is a carriage return, a line feed, or both; Backspace and Delete take a character back, Ctrl-U the line,
//! Ctrl-C cancels it. Sequences of cursor keys are swallowed.

use crate::text::Text;

/// Most bytes of a line.
pub const LINE: usize = 160;

/// Ctrl-C.
pub const CANCEL: u8 = 3;
const BELL: u8 = 7;
const BACKSPACE: u8 = 8;
const KILL_LINE: u8 = 0x15;
const ESCAPE: u8 = 0x1b;
const DELETE: u8 = 0x7f;

/// What a key led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The line goes on; this is to be echoed (often nothing).
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
    /// The byte itself, or a bell.
    Byte(u8),
    /// The last character vanishes.
    Erase,
    /// The line vanishes, and the prompt is written again.
    Redraw,
}

/// Where the keys of a sequence stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sequence {
    #[default]
    None,
    Escape,
    Control,
}

/// A line that is being typed.
#[derive(Debug, Default)]
pub struct Editor {
    line: Text<LINE>,
    too_long: bool,
    after_return: bool,
    sequence: Sequence,
}

impl Editor {
    /// An empty line.
    pub const NEW: Editor =
        Editor { line: Text::NEW, too_long: false, after_return: false, sequence: Sequence::None };

    /// The bytes so far; after [`Key::Line`] all of them, until the next key.
    pub fn line(&self) -> &[u8] {
        self.line.as_bytes()
    }
    /// Begins another line.
    pub fn clear(&mut self) {
        self.line.clear();
        self.too_long = false;
        self.sequence = Sequence::None;
    }
    /// A line feed that comes next belongs to nobody's Enter: what follows is data.
    pub fn forget_return(&mut self) {
        self.after_return = false;
    }

    /// Takes one byte. Lines are for the caller to [`clear`](Editor::clear).
    pub fn key(&mut self, key: u8) -> Key {
        let after_return = core::mem::replace(&mut self.after_return, key == b'\r');
        match (self.sequence, key) {
            (Sequence::Escape, b'[' | b'O') => {
                self.sequence = Sequence::Control;
                return Key::Echo(Echo::Nothing);
            }
            (Sequence::Control, 0x20..=0x3f) => return Key::Echo(Echo::Nothing),
            (Sequence::Control, 0x40..=0x7e) => {
                self.sequence = Sequence::None;
                return Key::Echo(Echo::Nothing);
            }
            _ => self.sequence = Sequence::None,
        }
        let echo = match key {
            b'\n' if after_return => Echo::Nothing,
            b'\r' | b'\n' if self.too_long => return Key::TooLong,
            b'\r' | b'\n' => return Key::Line,
            CANCEL => return Key::Cancelled,
            KILL_LINE => {
                self.clear();
                Echo::Redraw
            }
            _ if self.too_long => Echo::Byte(BELL),
            BACKSPACE | DELETE => self.erase(),
            ESCAPE => {
                self.sequence = Sequence::Escape;
                Echo::Nothing
            }
            b'\t' => self.insert(b' '),
            0..=0x1f => Echo::Byte(BELL),
            key => self.insert(key),
        };
        Key::Echo(echo)
    }

    fn insert(&mut self, byte: u8) -> Echo {
        if self.line.push(&[byte]) {
            return Echo::Byte(byte);
        }
        // Half a line must not run as a command.
        self.too_long = true;
        Echo::Byte(BELL)
    }

    /// Takes a character back, all bytes of it.
    fn erase(&mut self) -> Echo {
        loop {
            match self.line.pop() {
                None => return Echo::Byte(BELL),
                Some(0x80..=0xbf) => {}
                Some(_) => return Echo::Erase,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;

    /// Types `keys` and returns the lines and other ends.
    fn typed(keys: &[u8]) -> Vec<String> {
        let mut editor = Editor::NEW;
        let mut ends = Vec::new();
        for &key in keys {
            ends.push(match editor.key(key) {
                Key::Echo(_) => continue,
                Key::Line => String::from_utf8(editor.line().to_vec()).unwrap(),
                Key::TooLong => "too long".to_string(),
                Key::Cancelled => "cancelled".to_string(),
            });
            editor.clear();
        }
        ends
    }

    #[test]
    fn every_kind_of_enter_ends_one_line() {
        assert_eq!(typed(b"a\rb\nc\r\nd\r\r\n\n"), ["a", "b", "c", "d", "", ""]);
    }

    #[test]
    fn editing() {
        assert_eq!(typed(b"ab\x08c\r"), ["ac"]);
        assert_eq!(typed("aäö\x7f\x7fb\r".as_bytes()), ["ab"]);
        assert_eq!(typed(b"\x7f\x08x\r"), ["x"]);
        assert_eq!(typed(b"wrong\x15right\r"), ["right"]);
        assert_eq!(typed(b"lost\x03kept\r"), ["cancelled", "kept"]);
        assert_eq!(typed(b"a\x1b[A\x1b[1;5Cb\x1bOPc\x01\x00\r"), ["abc"]);
        assert_eq!(typed(b"a\tb\r"), ["a b"]);
    }

    #[test]
    fn a_line_has_an_end() {
        let mut keys = std::vec![b'x'; LINE];
        keys.push(b'\r');
        assert_eq!(typed(&keys)[0].len(), LINE);
        keys.insert(0, b'y');
        // No key but Ctrl-U and Ctrl-C saves it, and the line after it is a new one.
        keys.extend_from_slice(b"next\r");
        assert_eq!(typed(&keys), ["too long", "next"]);
        keys.insert(LINE + 1, 0x15);
        assert_eq!(typed(&keys), ["", "next"]);
    }

    #[test]
    fn no_key_breaks_it() {
        let mut editor = Editor::NEW;
        let mut state = 1u32;
        for _ in 0..200_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match editor.key((state >> 24) as u8) {
                Key::Echo(_) => assert!(editor.line().len() <= LINE),
                _ => editor.clear(),
            }
        }
    }
}
