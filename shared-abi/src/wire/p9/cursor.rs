//! Reading and writing little-endian fields one after the other.
//!
//! Both cursors remember their first failure and go on harmlessly: a read gives zeroes, a write goes nowhere. So a
//! message is a straight run of fields with one check at its end, which keeps the code of sixty messages small enough
//! for firmware. The rejected alternative, a `Result` for every field, branches after each of them.

use super::Malformed;

/// Takes fields from the front of private bytes.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// What the message says about bytes that follow its fields.
    payload: Option<u32>,
    failure: Option<Malformed>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, payload: None, failure: None }
    }

    /// Notes the first failure. Nothing can be read after it.
    pub(super) fn fail(&mut self, why: Malformed) {
        self.failure.get_or_insert(why);
        self.rest = &[];
    }

    /// An integer of `count` bytes, 0 to 4. Not inlined, as nothing is that sixty messages do with each field: firmware
    /// counts its bytes.
    #[inline(never)]
    fn integer(&mut self, count: usize) -> u32 {
        self.bytes(count).iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
    }

    #[inline(never)]
    pub(super) fn bytes(&mut self, count: usize) -> &'a [u8] {
        match self.rest.split_at_checked(count) {
            Some((first, rest)) => {
                self.rest = rest;
                first
            }
            None => {
                self.fail(Malformed::Short);
                &[]
            }
        }
    }

    /// A count of 16 bits, then as many bytes.
    #[inline(never)]
    pub(super) fn string(&mut self) -> &'a [u8] {
        let count = u16::take(self);
        self.bytes(count.into())
    }

    /// All that is left.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn set_payload(&mut self, count: u32) {
        self.payload = Some(count);
    }

    pub(super) fn failure(&self) -> Option<Malformed> {
        self.failure
    }

    /// The part of the payload that is here; `missing` bytes of the message are elsewhere.
    pub(super) fn finish(self, missing: usize) -> Result<&'a [u8], Malformed> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        match self.payload {
            None if missing != 0 => Err(Malformed::Short),
            None if !self.rest.is_empty() => Err(Malformed::Trailing),
            Some(count) if usize::try_from(count).ok() != self.rest.len().checked_add(missing) => {
                Err(Malformed::Payload)
            }
            _ => Ok(self.rest),
        }
    }
}

/// Puts fields one after the other into private bytes.
pub(super) struct Writer<'a> {
    into: &'a mut [u8],
    used: usize,
    payload: u32,
    failed: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(into: &'a mut [u8]) -> Writer<'a> {
        Writer { into, used: 0, payload: 0, failed: false }
    }

    /// Nothing that is written after it counts.
    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    /// The low `count` bytes of an integer, 0 to 4.
    #[inline(never)]
    fn integer(&mut self, value: u32, count: usize) {
        self.bytes(value.to_le_bytes().get(..count).unwrap_or(&[]));
    }

    #[inline(never)]
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let end = self.used.saturating_add(bytes.len());
        match self.into.get_mut(self.used..end) {
            Some(place) if !self.failed => {
                place.copy_from_slice(bytes);
                self.used = end;
            }
            _ => self.failed = true,
        }
    }

    #[inline(never)]
    pub(super) fn string(&mut self, string: &[u8]) {
        match u16::try_from(string.len()) {
            Ok(count) => {
                count.put(self);
                self.bytes(string);
            }
            Err(_) => self.fail(),
        }
    }

    pub(super) fn set_payload(&mut self, count: u32) {
        self.payload = count;
    }

    pub(super) fn payload(&self) -> u32 {
        self.payload
    }

    /// How many bytes were written; `None` if something did not fit.
    pub(super) fn used(&self) -> Option<usize> {
        (!self.failed).then_some(self.used)
    }

    /// Writes over the first four bytes, which hold the size of all.
    pub(super) fn set_size(&mut self, size: u32) {
        match self.into.first_chunk_mut::<4>() {
            Some(place) => *place = size.to_le_bytes(),
            None => self.failed = true,
        }
    }
}

/// What stands in a message: how it is read and how it is written.
pub(super) trait Field<'a>: Sized {
    fn take(reader: &mut Reader<'a>) -> Self;
    fn put(&self, writer: &mut Writer<'_>);
}

macro_rules! integers {
    ($($kind:ty)*) => {$(
        impl Field<'_> for $kind {
            fn take(reader: &mut Reader<'_>) -> Self {
                reader.integer(size_of::<$kind>()) as $kind
            }
            fn put(&self, writer: &mut Writer<'_>) {
                #[allow(clippy::useless_conversion)] // of the longest
                writer.integer((*self).into(), size_of::<$kind>());
            }
        }
    )*};
}
integers!(u8 u16 u32);

/// Two of half its width, which is what a processor of 32 bits makes of it anyhow.
impl Field<'_> for u64 {
    fn take(reader: &mut Reader<'_>) -> Self {
        let low = u32::take(reader);
        u64::from(u32::take(reader)) << 32 | u64::from(low)
    }
    fn put(&self, writer: &mut Writer<'_>) {
        (*self as u32).put(writer);
        ((*self >> 32) as u32).put(writer);
    }
}

impl<'a> Field<'a> for &'a [u8] {
    fn take(reader: &mut Reader<'a>) -> Self {
        reader.string()
    }
    fn put(&self, writer: &mut Writer<'_>) {
        writer.string(self);
    }
}
