//! The console: VIRTIO 1.2, 5.3. Bytes in both directions, no framing.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian};

/// Queue on which the guest receives.
pub const RECEIVE: usize = 0;
/// Queue on which the guest transmits.
pub const TRANSMIT: usize = 1;
/// The configuration's columns and rows are valid.
pub const F_SIZE: u64 = 1 << 0;

/// The configuration space, 5.3.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Width of the terminal in characters.
    pub cols: little_endian::U16,
    /// Its height.
    pub rows: little_endian::U16,
    /// 1: there are no further ports.
    pub max_nr_ports: little_endian::U32,
    /// Unused: F_EMERG_WRITE is not offered.
    pub emerg_wr: little_endian::U32,
}

impl Config {
    /// Its bytes, as they stand at the start of the configuration space.
    pub fn to_bytes(&self) -> [u8; size_of::<Config>()] {
        zerocopy::transmute!(*self)
    }
    /// A terminal of this size.
    pub fn new(cols: u16, rows: u16) -> Config {
        Config { cols: cols.into(), rows: rows.into(), max_nr_ports: 1.into(), emerg_wr: 0.into() }
    }
}

const _: () = {
    assert!(size_of::<Config>() == 12);
    assert!(core::mem::offset_of!(Config, rows) == 2);
    assert!(core::mem::offset_of!(Config, max_nr_ports) == 4);
    assert!(core::mem::offset_of!(Config, emerg_wr) == 8);
};
