//! The requests that a TAP takes: which interface, how long the header before each frame is, what is left to whom.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Makes `fd`, an open `/dev/net/tun`, the interface of this name, which may hold `%d` for a number that the kernel
/// chooses, with `header` bytes of offload header before each frame. Returns the name.
pub(crate) fn attach(fd: &OwnedFd, name: &str, header: usize) -> io::Result<String> {
    // SAFETY: `ifreq` is a plain C structure for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request takes an `ifreq`, which is valid for reads and writes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    let header = libc::c_int::try_from(header).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the request reads an int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const header) })?;
    let little: libc::c_int = 1;
    // The header's numbers are little-endian whatever this machine is.
    // SAFETY: the request reads an int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETLE as _, &raw const little) })?;
    set_offloads(fd, false, false, false)?;
    let name: Vec<u8> = request.ifr_name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    Ok(String::from_utf8_lossy(&name).into_owned())
}

/// What the kernel may leave undone in frames that are read: checksums, segments of TCP over IPv4 and over IPv6.
pub(crate) fn set_offloads(fd: &OwnedFd, checksums: bool, tso4: bool, tso6: bool) -> io::Result<()> {
    let bit = |given: bool, bit: libc::c_uint| if given { bit } else { 0 };
    let flags = bit(checksums, libc::TUN_F_CSUM) | bit(tso4, libc::TUN_F_TSO4) | bit(tso6, libc::TUN_F_TSO6);
    // SAFETY: the request takes its argument as a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
