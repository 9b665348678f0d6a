//! The network card: VIRTIO 1.2, 5.1. Ethernet frames in both directions, each behind a header that says which of its
//! checksums are still to be computed and into which segments it is still to be cut.
//!
//! There are two views of that header, as of every format that a peer writes: [`Header`] is its bytes, and
//! [`Offload`] what they mean, checked against the frame and against what was accepted. Nobody acts on the first.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian};

/// Queue on which the guest receives.
pub const RECEIVE: usize = 0;
/// Queue on which the guest transmits.
pub const TRANSMIT: usize = 1;

/// The device completes checksums of frames that the driver transmits.
pub const F_CSUM: u64 = 1 << 0;
/// The driver takes frames whose checksum is not complete, or was verified for it.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// The configuration's MTU is valid.
pub const F_MTU: u64 = 1 << 3;
/// The configuration's MAC address is valid.
pub const F_MAC: u64 = 1 << 5;
/// The driver takes TCP segments of IPv4 that are larger than the MTU.
pub const F_GUEST_TSO4: u64 = 1 << 7;
/// The same of IPv6.
pub const F_GUEST_TSO6: u64 = 1 << 8;
/// The device cuts TCP segments of IPv4.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// The same of IPv6.
pub const F_HOST_TSO6: u64 = 1 << 12;
/// A received frame may lie in several buffers.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// The configuration's status is valid.
pub const F_STATUS: u64 = 1 << 16;

/// All features by which one side leaves work to the other.
pub const OFFLOADS: u64 = F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_HOST_TSO4 | F_HOST_TSO6;

/// Bytes of an Ethernet header: the shortest frame there is here.
pub const MIN_FRAME: usize = 14;
/// Bytes of the longest frame, not yet cut into segments: what an IP header can count, behind an Ethernet header.
pub const MAX_FRAME: usize = 65_535 + MIN_FRAME;
/// Bytes of a payload that every network card takes.
pub const DEFAULT_MTU: u16 = 1_500;
/// Bytes of the longest frame of that payload, with a VLAN's tag.
pub const fn frame_of(mtu: u16) -> usize {
    (mtu as usize).saturating_add(MIN_FRAME).saturating_add(4)
}

/// An Ethernet address.
pub type Mac = [u8; 6];

/// [`Header::flags`]: a checksum is to be completed.
const NEEDS_CSUM: u8 = 1;
/// [`Header::flags`]: the checksums were verified.
const DATA_VALID: u8 = 2;
/// [`Header::gso_type`].
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// What stands before each frame, 5.1.6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Whether a checksum is to be completed, or was verified.
    pub flags: u8,
    /// What kind of segments it is to be cut into.
    pub gso_type: u8,
    /// Length of the headers of each segment, in bytes; a hint.
    pub hdr_len: little_endian::U16,
    /// Payload of each segment, in bytes.
    pub gso_size: little_endian::U16,
    /// Where what is summed up begins, in bytes from the frame's start; it goes on to the end.
    pub csum_start: little_endian::U16,
    /// Where behind that the checksum belongs.
    pub csum_offset: little_endian::U16,
    /// Buffers that the frame lies in. Absent in a plain guest's header without MRG_RXBUF.
    pub num_buffers: little_endian::U16,
}

/// Bytes of a header.
pub const HEADER: usize = size_of::<Header>();
/// Bytes of a header of a plain guest that has not accepted MRG_RXBUF.
pub const PLAIN_HEADER: usize = HEADER - 2;

/// The configuration space, 5.1.4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// The card's address, with [`F_MAC`].
    pub mac: Mac,
    /// Bit 0: the link is up; with [`F_STATUS`].
    pub status: little_endian::U16,
    /// 1: there is one pair of queues.
    pub max_virtqueue_pairs: little_endian::U16,
    /// Largest payload of a frame in bytes, with [`F_MTU`].
    pub mtu: little_endian::U16,
}

/// [`Config::status`]: the link is up.
pub const LINK_UP: u16 = 1;

const _: () = {
    assert!(HEADER == 12);
    assert!(core::mem::offset_of!(Header, gso_size) == 4);
    assert!(core::mem::offset_of!(Header, csum_start) == 6);
    assert!(core::mem::offset_of!(Header, num_buffers) == 10);
    assert!(size_of::<Config>() == 12);
    assert!(core::mem::offset_of!(Config, status) == 6);
    assert!(core::mem::offset_of!(Config, mtu) == 10);
};

impl Config {
    /// Its bytes, as they stand at the start of the configuration space.
    pub fn to_bytes(&self) -> [u8; size_of::<Config>()] {
        zerocopy::transmute!(*self)
    }
    /// Of a card whose link is up.
    pub fn new(mac: Mac, mtu: u16) -> Config {
        Config { mac, status: LINK_UP.into(), max_virtqueue_pairs: 1.into(), mtu: mtu.into() }
    }
}

/// What becomes of a frame's checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// It is complete, as far as anybody knows.
    #[default]
    Complete,
    /// It was verified by whoever hands the frame over. Frames that are transmitted never say so.
    Verified,
    /// It is to be computed over everything from `start` on, and stored at `at`. What stands there already is the sum
    /// of the pseudo-header.
    Missing {
        /// In bytes from the frame's start.
        start: u16,
        /// Likewise.
        at: u16,
    },
}

/// Which protocol's segments a frame is to be cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// Into what a frame is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Whose they are.
    pub protocol: Protocol,
    /// Payload of each, in bytes; never 0.
    pub size: u16,
    /// Bytes of headers that each begins with; a hint.
    pub headers: u16,
}

/// What is left to be done for a frame: a header's meaning, checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Its checksum.
    pub checksum: Checksum,
    /// Its segments, if it is larger than the MTU.
    pub segments: Option<Segments>,
}

/// What one side may leave to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    checksum: bool,
    tcp4: bool,
    tcp6: bool,
    /// Only a device may say that it has verified something.
    verified: bool,
}

impl Allowed {
    /// What the driver may leave to the device with these features accepted. Segments are nothing without checksums,
    /// 5.1.3.1.
    pub const fn to_device(features: u64) -> Allowed {
        let checksum = features & F_CSUM != 0;
        let tcp4 = checksum && features & F_HOST_TSO4 != 0;
        let tcp6 = checksum && features & F_HOST_TSO6 != 0;
        Allowed { checksum, tcp4, tcp6, verified: false }
    }
    /// What the device may leave to the driver.
    pub const fn to_driver(features: u64) -> Allowed {
        let checksum = features & F_GUEST_CSUM != 0;
        let tcp4 = checksum && features & F_GUEST_TSO4 != 0;
        let tcp6 = checksum && features & F_GUEST_TSO6 != 0;
        Allowed { checksum, tcp4, tcp6, verified: checksum }
    }
    /// Whether a checksum may be left.
    pub const fn checksum(&self) -> bool {
        self.checksum
    }
    /// Whether segments of this protocol may be.
    pub const fn segments(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp4 => self.tcp4,
            Protocol::Tcp6 => self.tcp6,
        }
    }
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// It leaves something to the other side that was not accepted.
    NotAccepted,
    /// The checksum's place lies outside the frame, or in its Ethernet header.
    ChecksumPlace,
    /// The segments have no payload, no checksum to be completed, or are of an unknown kind.
    Segments,
}

impl core::fmt::Display for HeaderError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            HeaderError::NotAccepted => "a frame's header asks for an offload that was not accepted",
            HeaderError::ChecksumPlace => "a frame's header names a checksum outside the frame",
            HeaderError::Segments => "a frame's header names segments that cannot be",
        })
    }
}

impl core::error::Error for HeaderError {}

impl Header {
    /// What it asks for, for a frame of `len` bytes. Flags that nobody knows are ignored, as 5.1.6.2 asks.
    pub fn parse(&self, allowed: Allowed, len: usize) -> Result<Offload, HeaderError> {
        let checksum = if self.flags & NEEDS_CSUM != 0 {
            if !allowed.checksum {
                return Err(HeaderError::NotAccepted);
            }
            let (start, offset) = (self.csum_start.get(), self.csum_offset.get());
            let at = start.checked_add(offset).ok_or(HeaderError::ChecksumPlace)?;
            if usize::from(start) < MIN_FRAME || usize::from(at).saturating_add(2) > len {
                return Err(HeaderError::ChecksumPlace);
            }
            Checksum::Missing { start, at }
        } else if self.flags & DATA_VALID != 0 && allowed.verified {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        let protocol = match self.gso_type {
            GSO_NONE => return Ok(Offload { checksum, segments: None }),
            GSO_TCPV4 => Protocol::Tcp4,
            GSO_TCPV6 => Protocol::Tcp6,
            _ => return Err(HeaderError::Segments),
        };
        if !allowed.segments(protocol) {
            return Err(HeaderError::NotAccepted);
        }
        // Each segment needs a checksum of its own, so the frame's must be one that is to be completed: 5.1.6.2.1.
        let (size, headers) = (self.gso_size.get(), self.hdr_len.get());
        if size == 0 || !matches!(checksum, Checksum::Missing { .. }) || usize::from(headers) > len {
            return Err(HeaderError::Segments);
        }
        Ok(Offload { checksum, segments: Some(Segments { protocol, size, headers }) })
    }

    /// The header that says this, of a frame in so many buffers.
    pub fn emit(offload: &Offload, buffers: u16) -> Header {
        let mut header = Header { num_buffers: buffers.into(), ..Header::default() };
        match offload.checksum {
            Checksum::Complete => {}
            Checksum::Verified => header.flags = DATA_VALID,
            Checksum::Missing { start, at } => {
                header.flags = NEEDS_CSUM;
                header.csum_start = start.into();
                header.csum_offset = at.wrapping_sub(start).into();
            }
        }
        if let Some(segments) = offload.segments {
            header.gso_type = match segments.protocol {
                Protocol::Tcp4 => GSO_TCPV4,
                Protocol::Tcp6 => GSO_TCPV6,
            };
            header.gso_size = segments.size.into();
            header.hdr_len = segments.headers.into();
        }
        header
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        zerocopy::transmute!(*self)
    }
    /// From its bytes.
    pub fn from_bytes(bytes: [u8; HEADER]) -> Header {
        zerocopy::transmute!(bytes)
    }
}

// --- checksums ----------------------------------------------------------------------------------------------------------

/// The Internet checksum's sum of `bytes`, RFC 1071, not folded and not inverted. Frames have less than 64 KiB, so it
/// does not overflow.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(0, |sum, pair| match *pair {
        [high, low] => sum.wrapping_add(u16::from_be_bytes([high, low]).into()),
        [high] => sum.wrapping_add(u32::from(high) << 8),
        _ => sum,
    })
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff).wrapping_add(sum >> 16);
    (once & 0xffff).wrapping_add(once >> 16) as u16
}

/// Completes the checksum of a frame in private memory. Nothing happens where its place lies outside.
pub fn complete(frame: &mut [u8], start: u16, at: u16) {
    let Some(covered) = frame.get(usize::from(start)..) else { return };
    let checksum = match !fold(sum(covered)) {
        // For UDP 0 would mean "none", and for TCP both are zero.
        0 => 0xffff,
        checksum => checksum,
    };
    if let Some(place) = frame.get_mut(usize::from(at)..).and_then(|rest| rest.first_chunk_mut()) {
        *place = checksum.to_be_bytes();
    }
}

/// A frame's TCP or UDP part, found in private memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Which of the two, over which IP. `None` is UDP.
    pub tcp: Option<Protocol>,
    /// Where it begins, in bytes from the frame's start.
    pub start: u16,
    /// Where its checksum is.
    pub at: u16,
    /// Where it ends: frames may be padded.
    pub end: u16,
    /// Sum of the pseudo-header.
    pseudo: u16,
}

const TCP: u8 = 6;
const UDP: u8 = 17;

impl Transport {
    /// Finds it. Fragments, extension headers, tags and everything else that is not plain have none.
    pub fn find(frame: &[u8]) -> Option<Transport> {
        let (ethernet, packet) = frame.split_at_checked(MIN_FRAME)?;
        let (next, header, len, addresses, v6) = match ethernet.last_chunk::<2>()? {
            [0x08, 0x00] => {
                let ip = packet.first_chunk::<20>()?;
                let header = usize::from(ip[0] & 15).saturating_mul(4);
                let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
                let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
                if ip[0] >> 4 != 4 || header < 20 || fragment {
                    return None;
                }
                (ip[9], header, total.checked_sub(header)?, packet.get(12..20)?, false)
            }
            [0x86, 0xdd] => {
                let ip = packet.first_chunk::<40>()?;
                let len = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
                if ip[0] >> 4 != 6 {
                    return None;
                }
                (ip[6], 40, len, packet.get(8..40)?, true)
            }
            _ => return None,
        };
        let start = MIN_FRAME.checked_add(header)?;
        let end = start.checked_add(len).filter(|&end| end <= frame.len())?;
        let (tcp, offset, least) = match (next, v6) {
            (TCP, false) => (Some(Protocol::Tcp4), 16, 20),
            (TCP, true) => (Some(Protocol::Tcp6), 16, 20),
            (UDP, _) => (None, 6, 8),
            _ => return None,
        };
        if len < least {
            return None;
        }
        let pseudo = fold(sum(addresses).wrapping_add(next.into()).wrapping_add(len as u32));
        let start = u16::try_from(start).ok()?;
        Some(Transport { tcp, start, at: start.checked_add(offset)?, end: u16::try_from(end).ok()?, pseudo })
    }

    /// Stores the pseudo-header's sum where the checksum is to be, and says what is left to be done.
    pub fn leave(&self, frame: &mut [u8]) -> Checksum {
        let place = frame.get_mut(usize::from(self.at)..).and_then(|rest| rest.first_chunk_mut());
        if let Some(place) = place {
            *place = self.pseudo.to_be_bytes();
        }
        Checksum::Missing { start: self.start, at: self.at }
    }

    /// Computes and stores the checksum.
    pub fn fill(&self, frame: &mut [u8]) {
        if let (Checksum::Missing { start, at }, Some(frame)) =
            (self.leave(frame), frame.get_mut(..usize::from(self.end)))
        {
            complete(frame, start, at);
        }
    }

    /// Whether the checksum is right. UDP over IPv4 may have none.
    pub fn is_right(&self, frame: &[u8]) -> bool {
        let place = frame.get(usize::from(self.at)..).and_then(|rest| rest.first_chunk::<2>());
        let covered = frame.get(usize::from(self.start)..usize::from(self.end));
        let none = self.tcp.is_none() && place == Some(&[0, 0]) && frame.get(12) == Some(&8);
        none || covered.is_some_and(|covered| fold(sum(covered).wrapping_add(self.pseudo.into())) == 0xffff)
    }

    /// Bytes of all headers, of a TCP segment.
    pub fn headers(&self, frame: &[u8]) -> Option<u16> {
        let offset = frame.get(usize::from(self.start.checked_add(12)?))? >> 4;
        self.start.checked_add(u16::from(offset).wrapping_mul(4)).filter(|&end| end <= self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// UDP from 10.0.0.1:1 to 10.0.0.2:2, three bytes, padded.
    fn udp() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 1, 0, 2, 0, 11, 0, 0]);
        frame.extend(b"abc");
        frame.extend([0; 15]);
        frame
    }

    fn naive(frame: &[u8]) -> u16 {
        let mut bytes = frame[26..34].to_vec();
        bytes.extend([0, 17, 0, 11]);
        bytes.extend(&frame[34..45]);
        bytes.push(0);
        let mut sum: u64 = bytes.chunks(2).map(|pair| u64::from(pair[0]) * 256 + u64::from(pair[1])).sum();
        while sum > 0xffff {
            sum = sum % 0x1_0000 + sum / 0x1_0000;
        }
        !(sum as u16)
    }

    #[test]
    fn a_checksum_left_and_completed_is_the_one_that_is_computed() {
        let mut frame = udp();
        let expected = naive(&frame).to_be_bytes();
        let found = Transport::find(&frame).unwrap();
        assert_eq!((found.tcp, found.start, found.at, found.end), (None, 34, 40, 45));
        assert!(found.is_right(&frame), "UDP may have none");
        found.fill(&mut frame);
        assert_eq!(frame[40..42], expected);
        assert!(found.is_right(&frame));
        frame[43] ^= 1;
        assert!(!found.is_right(&frame));
        frame[43] ^= 1;
        assert_eq!(found.leave(&mut frame), Checksum::Missing { start: 34, at: 40 });
        // Over the padding, too, which is zeroes.
        complete(&mut frame, 34, 40);
        assert_eq!(frame[40..42], expected);
    }

    #[test]
    fn what_is_not_plain_has_no_transport() {
        let good = udp();
        assert!(Transport::find(&good).is_some());
        // Version, header length, total length beyond and below, fragments, protocol, type.
        for (at, value) in [(14, 0x55), (14, 0x44), (16, 1), (17, 27), (20, 0x20), (21, 1), (23, 1), (12, 9)]
        {
            let mut frame = good.clone();
            frame[at] = value;
            assert_eq!(Transport::find(&frame), None, "{at}: {value:#x}");
        }
        for len in 0..45 {
            assert_eq!(Transport::find(&good[..len]), None);
        }
    }

    const ALL: u64 = OFFLOADS;

    #[test]
    fn a_header_says_what_was_meant_and_nothing_that_was_not_accepted() {
        let checksum = Checksum::Missing { start: 34, at: 50 };
        let segments = |protocol| Some(Segments { protocol, size: 1448, headers: 66 });
        let cases = [
            (Offload::default(), 0),
            (Offload { checksum, segments: None }, F_CSUM),
            (Offload { checksum, segments: segments(Protocol::Tcp4) }, F_CSUM | F_HOST_TSO4),
            (Offload { checksum, segments: segments(Protocol::Tcp6) }, F_CSUM | F_HOST_TSO6),
        ];
        for (offload, needs) in cases {
            let header = Header::from_bytes(Header::emit(&offload, 1).to_bytes());
            let parse = |features| header.parse(Allowed::to_device(features), 100);
            assert_eq!(parse(ALL), Ok(offload));
            assert_eq!(parse(needs), Ok(offload));
            for bit in (0..20).map(|bit| 1 << bit).filter(|bit| needs & bit != 0) {
                assert_eq!(parse(ALL & !bit), Err(HeaderError::NotAccepted), "{offload:?} without {bit:#x}");
            }
        }
        let verified = Offload { checksum: Checksum::Verified, segments: None };
        let header = Header::emit(&verified, 1);
        assert_eq!(header.parse(Allowed::to_driver(ALL), 100), Ok(verified));
        // A driver has verified nothing, and a device that may not say so has not either.
        assert_eq!(header.parse(Allowed::to_device(ALL), 100), Ok(Offload::default()));
        assert_eq!(header.parse(Allowed::to_driver(0), 100), Ok(Offload::default()));
    }

    #[test]
    fn nonsense_is_refused() {
        let good = Header {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len: 54.into(),
            gso_size: 1000.into(),
            csum_start: 34.into(),
            csum_offset: 16.into(),
            num_buffers: 0.into(),
        };
        let parse = |header: Header, len| header.parse(Allowed::to_device(ALL), len);
        assert!(parse(good, 52).is_err() && parse(good, 54).is_ok());
        for (start, offset) in [(13, 16), (34, 65), (99, 0), (65_535, 0), (65_535, 65_535), (0, 0)] {
            let header = Header { csum_start: start.into(), csum_offset: offset.into(), ..good };
            assert_eq!(parse(header, 100), Err(HeaderError::ChecksumPlace), "{start} {offset}");
        }
        let kinds = [
            Header { gso_size: 0.into(), ..good },
            Header { flags: 0, ..good },
            Header { flags: DATA_VALID, ..good },
            Header { hdr_len: 101.into(), ..good },
            Header { gso_type: 2, ..good },
            Header { gso_type: 3, ..good },
            Header { gso_type: 0x81, ..good },
            Header { gso_type: 0xff, ..good },
        ];
        for header in kinds {
            assert_eq!(parse(header, 100), Err(HeaderError::Segments), "{header:?}");
        }
    }
}
