//! What `flood` prints: printable bytes in lines of 64, each of which depends on its position only, so that whoever
//! counts and sums them up knows what should have come, and a block that is missing, doubled or in the wrong place
//! shows.

use crc::{Crc, Digest, Table};

/// CRC-32 as zlib, gzip and Ethernet have it. A table of 256 words: fast enough, and small.
static CRC: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&crc::CRC_32_ISO_HDLC);

/// A checksum that is being made.
pub type Sum = Digest<'static, u32, Table<1>>;

/// A checksum of nothing yet.
pub fn sum() -> Sum {
    CRC.digest()
}

/// The byte at a position.
pub const fn byte(at: u32) -> u8 {
    if at % 64 == 63 {
        return b'\n';
    }
    // Spread by a multiplication, so that neighbours and neighbouring lines differ.
    let spread = at.wrapping_mul(0x9e37_79b1);
    b'!'.wrapping_add(((spread >> 16) % 94) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn lines_are_printable_and_differ() {
        let bytes: Vec<u8> = (0..64 * 1024).map(byte).collect();
        assert!(bytes.iter().all(|&byte| byte == b'\n' || (b'!'..=b'~').contains(&byte)));
        let mut lines: Vec<_> = bytes.chunks(64).collect();
        assert!(lines.iter().all(|line| line.ends_with(b"\n")));
        lines.sort();
        lines.dedup();
        assert_eq!(lines.len(), 1024);
    }

    #[test]
    fn the_sum_is_the_usual_crc_32() {
        let mut sum = sum();
        sum.update(b"123456789");
        assert_eq!(sum.finalize(), 0xcbf4_3926);
    }
}
