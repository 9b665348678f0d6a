//! Bytes on their way to the console, in a buffer of fixed size. What does not fit is cut: the shell fills it only when
//! it is empty, and with less than it holds.

use core::fmt;

/// At most this many bytes of whole lines are put together, for one write: as many as one block of the console holds
/// with the PMM's own settings. Output that was in flight when the PMM died is sent again a block at a time, and a
/// reader can tell a repeated line from a torn one only where blocks begin with lines.
pub const BLOCK: usize = 256;

/// Bytes, `N` of them at most.
#[derive(Debug)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self::NEW
    }
}

impl<const N: usize> Text<N> {
    /// Nothing.
    pub const NEW: Text<N> = Text { bytes: [0; N], len: 0 };

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// How many there are.
    pub const fn len(&self) -> usize {
        self.len
    }
    /// Forgets all.
    pub fn clear(&mut self) {
        self.len = 0;
    }
    /// Takes `count` bytes away from the front.
    pub fn consume(&mut self, count: usize) {
        let rest = self.len.saturating_sub(count);
        self.bytes.copy_within(self.len.saturating_sub(rest)..self.len, 0);
        self.len = rest;
    }
    /// Appends what fits, and says whether that was all.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let room = self.bytes.get_mut(self.len..).unwrap_or(&mut []);
        let fit = room.len().min(bytes.len());
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.len = self.len.saturating_add(fit);
        fit == bytes.len()
    }
    /// Puts bytes in at a place, all of them or none; says which.
    pub fn insert(&mut self, at: usize, bytes: &[u8]) -> bool {
        let (old, Some(new)) = (self.len, self.len.checked_add(bytes.len()).filter(|&new| new <= N)) else {
            return false;
        };
        if at > old {
            return false;
        }
        self.bytes.copy_within(at..old, at.saturating_add(bytes.len()));
        for (to, from) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
        self.len = new;
        true
    }
    /// Takes the bytes from a place to another out; none if these are not two places in order.
    pub fn remove(&mut self, from: usize, to: usize) {
        let to = to.min(self.len);
        if let Some(gone) = to.checked_sub(from) {
            self.bytes.copy_within(to..self.len, from);
            self.len = self.len.saturating_sub(gone);
        }
    }
    /// Appends formatted text, as far as it fits.
    pub fn print(&mut self, text: fmt::Arguments) {
        // Cut text is no error here, and a formatter that fails has nowhere else to say it.
        let _ = fmt::Write::write_fmt(self, text);
    }
    /// Appends formatted text only if all of it fits into the first `limit` bytes; says whether it did.
    pub fn print_within(&mut self, limit: usize, text: fmt::Arguments) -> bool {
        let before = self.len;
        let whole = fmt::Write::write_fmt(self, text).is_ok() && self.len <= limit;
        if !whole {
            self.len = before;
        }
        whole
    }
}

/// An error says that the text was cut.
impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.push(text.as_bytes()) { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_its_end_and_consumed_at_its_front() {
        let mut text = Text::<8>::NEW;
        assert!(text.is_empty() && text.push(b"abc") && !text.push(b"defghij"));
        assert_eq!((text.as_bytes(), text.len()), (&b"abcdefgh"[..], 8));
        text.consume(3);
        assert_eq!(text.as_bytes(), b"defgh");
        text.consume(100);
        assert!(text.is_empty());
        text.print(format_args!("{}", 123_456_789));
        assert_eq!(text.as_bytes(), b"12345678");
    }

    #[test]
    fn text_changes_in_its_middle() {
        let mut text = Text::<8>::NEW;
        assert!(text.insert(0, b"adef") && text.insert(1, b"bc") && text.insert(6, b"g"));
        assert_eq!(text.as_bytes(), b"abcdefg");
        // Too long, and a place behind the end: as it was.
        assert!(!text.insert(1, b"xy") && !text.insert(8, b"x"));
        text.remove(1, 3);
        text.remove(9, 99);
        text.remove(3, 2);
        assert_eq!(text.as_bytes(), b"adefg");
        text.remove(3, 99);
        assert_eq!(text.as_bytes(), b"ade");
    }

    #[test]
    fn lines_are_whole_or_absent() {
        let mut text = Text::<16>::NEW;
        assert!(text.print_within(10, format_args!("n {}\n", 12345)));
        assert!(!text.print_within(10, format_args!("n {}\n", 12345)));
        assert_eq!(text.as_bytes(), b"n 12345\n");
        assert!(text.print_within(10, format_args!("\n\n")));
        assert!(!text.print_within(100, format_args!("much too much")));
        assert_eq!(text.len(), 10);
    }
}
