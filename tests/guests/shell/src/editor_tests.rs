//! The editor, with the bytes that terminals send, and a terminal of few columns that shows what comes of them.

use super::*;
use std::string::{String, ToString};
use std::vec::Vec;

const PHRASES: &[&str] = &["link", "list", "vsock connect ", "vsock listen ", "cat "];
const PROMPT: Prompt = Prompt { name: "t", failed: false };

fn editor() -> Editor<40> {
    Editor::new(PHRASES)
}

/// Types `keys` and returns the lines and other ends.
fn typed_at(editor: &mut Editor<40>, keys: &[u8]) -> Vec<String> {
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

fn typed(keys: impl AsRef<[u8]>) -> Vec<String> {
    typed_at(&mut editor(), keys.as_ref())
}

/// A terminal with automatic margins, as far as the editor uses it: what stands in its rows, and the cursor.
struct Screen {
    rows: Vec<Vec<char>>,
    at: (usize, usize),
    columns: usize,
}

impl Screen {
    fn takes(&mut self, text: &str) {
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            rest = &rest[character.len_utf8()..];
            let (row, column) = self.at;
            self.at = match character {
                '\r' => (row, 0),
                '\n' => (row + 1, 0),
                '\x08' => (row, column.min(self.columns - 1).saturating_sub(1)),
                '\x07' => (row, column),
                '\x1b' => {
                    let end = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap();
                    let count = rest[1..end].parse().unwrap_or(1);
                    let what = &rest[end..=end];
                    rest = &rest[end + 1..];
                    match what {
                        "A" => (row - count, column.min(self.columns - 1)),
                        "B" => (row + count, column.min(self.columns - 1)),
                        "C" => (row, (column + count).min(self.columns - 1)),
                        "J" => {
                            self.rows.truncate(row + 1);
                            self.rows[row].truncate(column);
                            (row, column)
                        }
                        other => panic!("{other:?}"),
                    }
                }
                character => {
                    let (row, column) = if column == self.columns { (row + 1, 0) } else { (row, column) };
                    let rows = self.rows.len().max(row + 1);
                    self.rows.resize(rows, Vec::new());
                    let width = self.rows[row].len().max(column + 1);
                    self.rows[row].resize(width, ' ');
                    self.rows[row][column] = character;
                    (row, column + 1)
                }
            };
            let rows = self.rows.len().max(self.at.0 + 1);
            self.rows.resize(rows, Vec::new());
        }
    }
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
}

#[test]
fn keys_of_terminals_move_and_delete() {
    // Home and End of xterm, of its application mode, of the console of Linux, of rxvt; and of fingers.
    for (home, end) in [
        ("\x1b[H", "\x1b[F"),
        ("\x1bOH", "\x1bOF"),
        ("\x1b[1~", "\x1b[4~"),
        ("\x1b[7~", "\x1b[8~"),
        ("\x01", "\x05"),
    ] {
        assert_eq!(typed(std::format!("bc{home}a{end}d\r")), ["abcd"], "{home:?}");
    }
    assert_eq!(typed("ac\x1b[Db\x1b[Cd\x1bODx\x1bOC!\r"), ["abcxd!"]);
    assert_eq!(typed("ac\x02b\x06d\r"), ["abcd"]);
    assert_eq!(typed("abc\x1b[D\x1b[D\x1b[3~\r"), ["ac"]);
    assert_eq!(typed("abc\x01\x04\x04\r"), ["c"]);
    assert_eq!(typed("abc\x1b[D\x1b[D\x0b\r"), ["a"]);
    assert_eq!(typed("one two  \x17three\r"), ["one three"]);
    assert_eq!(typed("one two\x1b[1;5D\x1b[1;5Dx\x1b[1;5C\x1b[1;5Cy\r"), ["xone twoy"]);
    assert_eq!(typed("abc\x1b[D\x7f\r"), ["ac"]);
    // At an end there is nothing further; function keys, and marks around a paste, say nothing.
    assert_eq!(typed("\x1b[Da\x1b[C\x1b[3~\x1b[H\x7f\x17b\r"), ["ba"]);
    assert_eq!(typed("a\x1b[[Ab\x1b[15~c\x1b[200~d\x1b[201~\x1b[3;5~\r"), ["abcd"]);
}

#[test]
fn a_character_is_never_half() {
    assert_eq!(typed("äö\x1b[D\x1b[D\x1b[3~€\r"), ["€ö"]);
    assert_eq!(typed("ab\x1b[D🦀\x7fö\r"), ["aöb"]);
    let mut editor = editor();
    for byte in "ä€🦀".bytes() {
        editor.key(byte);
        assert!(core::str::from_utf8(editor.line()).is_ok());
    }
    // What is no character is one that no command takes, and goes with one Backspace.
    assert_eq!(typed(b"a\xffb\xc3c\x80\r"), ["a\u{fffd}b\u{fffd}c\u{fffd}"]);
    assert_eq!(typed(b"a\xe2\x82\x7fb\xff\x7f\r"), ["ab"]);
    // With room for half of it: none.
    let mut keys = std::vec![b'x'; LINE - 1];
    keys.extend_from_slice("ä\r".as_bytes());
    assert_eq!(typed(&keys), ["too long"]);
}

#[test]
fn earlier_lines_come_back() {
    let (up, down) = ("\x1b[A", "\x1bOB");
    let mut editor = editor();
    let mut types = |keys: String| typed_at(&mut editor, keys.as_bytes());
    types("one\rtwo\rtwo\r\r".into());
    assert_eq!(types(std::format!("{up}\r")), ["two"]);
    assert_eq!(types(std::format!("{up}{up}\r")), ["one"]);
    // Now "one" is the newest. The oldest is the end, and what was begun comes back.
    assert_eq!(types(std::format!("new{up}{up}{up}{up}{up}!{down}{down}{down}{down}?\r")), ["new?"]);
    assert_eq!(types("\x10\x10\x0e!\r".into()), ["new?!"]);
    // The oldest make room, whole; one that never fits is not kept, and a cancelled one neither.
    types(std::format!("{}\r{}\rlost\x03", "a".repeat(30), "b".repeat(40)));
    assert_eq!(types(std::format!("{up}\r")), ["a".repeat(30)]);
    assert_eq!(types(std::format!("{up}{up}{up}{up}{up}\r")), ["new?!"]);
}

#[test]
fn tab_completes_words_and_lists_them() {
    assert_eq!(typed("vs\tl\t5\r"), ["vsock listen 5"]);
    assert_eq!(typed("l\tn\t\r"), ["link"]);
    // Nothing fits, or nothing more.
    assert_eq!(typed("x\t\rcat a\t\rlink\t\r"), ["x", "cat a", "link"]);
    // In the middle of a line.
    assert_eq!(typed("s 7\x1b[H\x1b[Cx\x7f\x1b[Hc\x1b[3~a\t\r"), ["cat  7"]);
    let mut editor = editor();
    let mut out = Text::<SHOWN>::NEW;
    for key in *b"vsock \t" {
        if let Key::Echo(echo) = editor.key(key) {
            editor.show(echo, PROMPT, Some(80), &mut out);
        }
    }
    assert_eq!(core::str::from_utf8(out.as_bytes()), Ok("vsock \nconnect  listen\nt> vsock "));
}

#[test]
fn all_that_a_key_shows_fits() {
    let prompt = Prompt { name: "a name of fifty-five characters, which is a very long one", failed: true };
    let mut editor = Editor::<0>::new(crate::command::PHRASES);
    for key in std::iter::repeat_n(b'x', LINE).chain([1]) {
        editor.key(key);
    }
    let mut out = Text::<SHOWN>::NEW;
    assert_eq!(editor.key(b'\t'), Key::Echo(Echo::Candidates));
    editor.show(Echo::Candidates, prompt, Some(10), &mut out);
    assert!(out.push(b"!"), "the last was cut");
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
    keys.splice(LINE + 1..LINE + 1, *b"\x1b[D\x7f\x1b[A\x17\t");
    assert_eq!(typed(&keys), ["too long", "next"]);
    keys.insert(LINE + 1, 0x15);
    assert_eq!(typed(&keys), ["", "next"]);
}

/// Any keys: the line is text within its bounds, and the terminal shows it and the cursor where they are.
#[test]
fn no_key_breaks_it() {
    const KEYS: [&str; 24] = [
        "a",
        "b",
        " ",
        "ä",
        "a",
        "v",
        "\t",
        "\x7f",
        "\x1b[D",
        "\x1b[D",
        "\x1b[C",
        "\x1b[A",
        "\x1b[B",
        "\x1b[H",
        "\x1b[F",
        "\x1b[3~",
        "\x17",
        "\x0b",
        "\x1b[1;5D",
        "\x1b[1;5C",
        "abcdefg",
        "\r",
        "\x15",
        "\u{fffd}",
    ];
    let mut state = 1u32;
    let mut dice = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let mut all = editor();
    for _ in 0..200_000 {
        match all.key(dice()) {
            Key::Echo(_) => assert!(all.line().len() <= LINE && core::str::from_utf8(all.line()).is_ok()),
            _ => all.clear(),
        }
    }
    for columns in [1, 2, 7, 10, 80] {
        let mut editor = editor();
        let mut screen = Screen { rows: std::vec![Vec::new()], at: (0, 0), columns };
        let mut out = Text::<SHOWN>::NEW;
        editor.write(PROMPT, Some(columns as u16), &mut out);
        for _ in 0..20_000 {
            let keys = KEYS[usize::from(dice()) % KEYS.len()];
            let mut listed = false;
            for &key in keys.as_bytes() {
                let Key::Echo(echo) = editor.key(key) else {
                    editor.clear();
                    screen = Screen { rows: std::vec![Vec::new()], at: (0, 0), columns };
                    editor.write(PROMPT, Some(columns as u16), &mut out);
                    continue;
                };
                listed = echo == Echo::Candidates;
                editor.show(echo, PROMPT, Some(columns as u16), &mut out);
            }
            screen.takes(core::str::from_utf8(out.as_bytes()).unwrap());
            out.clear();
            if listed {
                // What was listed is above; what is below is compared.
                let top = screen.at.0 - editor.row;
                screen.rows.drain(..top);
                screen.at.0 -= top;
            }
            let shown: String = screen.rows.iter().flatten().collect();
            let line = std::format!("t> {}", core::str::from_utf8(editor.line()).unwrap());
            assert_eq!(shown.trim_end(), line.trim_end(), "{columns} columns, {keys:?}");
            let at = screen.at.0 * columns + screen.at.1;
            let cursor = 3 + core::str::from_utf8(&editor.line()[..editor.cursor]).unwrap().chars().count();
            assert_eq!(at, cursor, "{columns} columns, {keys:?}, {line:?}");
        }
    }
}
