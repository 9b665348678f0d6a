//! Why an operation failed, as Rlerror says it: numbers of Linux on every architecture that 9P2000.L is spoken between.

use super::cursor::{Field, Reader, Writer};

/// The number in an Rlerror. Whoever receives one treats a number that has no name here as [`Errno::IO`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub u32);

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        #[allow(missing_docs)] // Linux's names say it; where they do not, a line does.
        impl Errno {
            $($(#[$doc])* pub const $name: Errno = Errno($number);)*
        }

        impl core::fmt::Debug for Errno {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(match self.0 {
                    $($number => concat!("E", stringify!($name)),)*
                    other => return write!(f, "errno {other}"),
                })
            }
        }
    };
}

errors! {
    PERM = 1;
    NOENT = 2;
    INTR = 4;
    IO = 5;
    NXIO = 6;
    /// E2BIG: longer than what holds it, as an attribute.
    TOOBIG = 7;
    /// A fid that is not in use, or is not open.
    BADF = 9;
    AGAIN = 11;
    NOMEM = 12;
    ACCES = 13;
    BUSY = 16;
    EXIST = 17;
    XDEV = 18;
    NODEV = 19;
    NOTDIR = 20;
    ISDIR = 21;
    /// Malformed: a name, a flag, a count.
    INVAL = 22;
    NFILE = 23;
    /// Too many fids, or too many files.
    MFILE = 24;
    TXTBSY = 26;
    FBIG = 27;
    NOSPC = 28;
    SPIPE = 29;
    ROFS = 30;
    MLINK = 31;
    RANGE = 34;
    DEADLK = 35;
    NAMETOOLONG = 36;
    /// As many locks as there may be.
    NOLCK = 37;
    NOTEMPTY = 39;
    /// A symbolic link where none may be followed.
    LOOP = 40;
    /// No such extended attribute.
    NODATA = 61;
    OVERFLOW = 75;
    /// Malformed beyond the fields: a message that is not 9P2000.L.
    PROTO = 71;
    /// More than a message of the agreed size holds.
    MSGSIZE = 90;
    OPNOTSUPP = 95;
    STALE = 116;
    DQUOT = 122;
}

impl Field<'_> for Errno {
    fn take(reader: &mut Reader<'_>) -> Self {
        Errno(u32::take(reader))
    }
    fn put(&self, writer: &mut Writer<'_>) {
        self.0.put(writer);
    }
}
