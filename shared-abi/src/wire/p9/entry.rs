//! The entries of a directory, as they stand in the payload of an Rreaddir.

use super::Malformed;
use super::cursor::{Field, Reader, Writer};
use super::value::Qid;

/// Bytes of an entry beside its name.
pub const ENTRY_FIXED: usize = 24;

/// One entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The file; a server may leave all but the kind 0.
    pub qid: Qid,
    /// What a Treaddir says to go on behind this entry. It has no other meaning, and order least of all.
    pub offset: u64,
    /// The kind of file, as `d_type` of Linux.
    pub kind: u8,
    /// Its name, as the server wrote it: whoever uses it checks it first ([`is_name`](super::is_name)).
    pub name: &'a [u8],
}

/// Reads entries one after the other from private bytes.
///
/// After an error it ends. What it had not read then is [`rest`](Entries::rest): whoever copies a payload in pieces puts
/// the next piece behind that and starts again.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    ended: bool,
}

impl<'a> Entries<'a> {
    /// The entries of (a part of) a payload.
    pub fn new(bytes: &'a [u8]) -> Entries<'a> {
        Entries { rest: bytes, ended: false }
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended || self.rest.is_empty() {
            return None;
        }
        let mut reader = Reader::new(self.rest);
        let entry = Entry {
            qid: Field::take(&mut reader),
            offset: Field::take(&mut reader),
            kind: Field::take(&mut reader),
            name: Field::take(&mut reader),
        };
        if let Some(failure) = reader.failure() {
            self.ended = true;
            return Some(Err(failure));
        }
        self.rest = reader.rest();
        Some(Ok(entry))
    }
}

/// Writes entries one after the other.
#[derive(Debug)]
pub struct EntryWriter<'a> {
    into: &'a mut [u8],
    used: usize,
}

impl<'a> EntryWriter<'a> {
    /// An empty payload that may become as long as `into`.
    pub fn new(into: &'a mut [u8]) -> EntryWriter<'a> {
        EntryWriter { into, used: 0 }
    }

    /// Adds an entry. `false`: it did not fit, and nothing was written.
    pub fn push(&mut self, entry: &Entry<'_>) -> bool {
        let Some(place) = self.into.get_mut(self.used..) else { return false };
        let needed = ENTRY_FIXED.saturating_add(entry.name.len());
        if place.len() < needed {
            return false;
        }
        let mut writer = Writer::new(place);
        entry.qid.put(&mut writer);
        entry.offset.put(&mut writer);
        entry.kind.put(&mut writer);
        entry.name.put(&mut writer);
        let Some(used) = writer.used() else { return false };
        self.used = self.used.saturating_add(used);
        true
    }

    /// Bytes written.
    pub fn used(&self) -> usize {
        self.used
    }
}
