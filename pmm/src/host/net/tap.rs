//! `mode=tap`: the cable leads to a network interface of this host, an existing TAP or one that is made here and goes
//! with the PMM. What the guest accepted is passed to the kernel: it completes checksums and cuts segments, and leaves
//! to the guest what that takes.

use std::borrow::Cow;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};

use hvl_shared_abi::wire::net::{
    Allowed, F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, HEADER, Header, MIN_FRAME, OFFLOADS, Offload,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::{Dropped, EndError, FrameEnd, HostEnd};
use super::Losses;
use crate::failure::{Failure, refused};
use crate::sys::{Watches, tap as ioctl};

/// Frames of no use that one call skips at the most.
const SKIP: usize = 64;

/// A TAP.
#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
    name: String,
    losses: Losses,
    /// What there is to wait for since a try failed.
    reads: bool,
    writes: bool,
    /// The interface was removed.
    gone: bool,
}

impl Tap {
    /// Opens a TAP, or makes one.
    pub(super) fn open(wanted: Option<&str>) -> Result<Tap, Failure> {
        let option = match wanted {
            Some(name) => format!("--network mode=tap,tapif={name}"),
            None => "--network mode=tap".into(),
        };
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match rustix::fs::open("/dev/net/tun", flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(error) => {
                return refused(format!(
                    "{option}: /dev/net/tun cannot be opened ({error}); load the module 'tun', ask for access to it, or write mode=user, which needs no rights"
                ));
            }
        };
        let name = match ioctl::attach(&fd, wanted.unwrap_or("tap%d"), HEADER) {
            Ok(name) => name,
            Err(error) => {
                let way_out = match error.raw_os_error() {
                    Some(libc::EPERM | libc::EACCES) => {
                        "run as root, have an interface made for you ('ip tuntap add dev tap0 mode tap user $USER'), or write mode=user, which needs no rights"
                    }
                    Some(libc::EBUSY) => "another program uses it; choose another one",
                    Some(libc::EINVAL) => {
                        "it is no TAP, or one with several queues; make one with 'ip tuntap add dev NAME mode tap'"
                    }
                    _ => "choose another interface",
                };
                return refused(format!("{option}: the kernel gives no TAP ({error}); {way_out}"));
            }
        };
        let losses = Losses::default();
        Ok(Tap { fd, name, losses, reads: false, writes: false, gone: false })
    }
}

impl FrameEnd for Tap {
    fn features(&self) -> u64 {
        OFFLOADS
    }

    fn accept(&mut self, features: u64) {
        let allowed = |bit: u64| features & F_GUEST_CSUM != 0 && features & bit != 0;
        let (checksums, tso4, tso6) = (allowed(F_GUEST_CSUM), allowed(F_GUEST_TSO4), allowed(F_GUEST_TSO6));
        // A kernel that refuses to leave less to the guest cannot be: each of these is older than this program.
        let _ = ioctl::set_offloads(&self.fd, checksums, tso4, tso6);
    }

    fn send(&mut self, offload: &Offload, frame: &[u8]) -> Result<(), EndError> {
        let header = Header::emit(offload, 0).to_bytes();
        let parts = [IoSlice::new(&header), IoSlice::new(frame)];
        match rustix::io::retry_on_intr(|| rustix::io::writev(&self.fd, &parts)) {
            Ok(_) => {}
            Err(Errno::AGAIN) => {
                self.writes = true;
                return Err(EndError::WouldBlock);
            }
            // The interface is down, or the kernel refuses the frame: lost.
            Err(error) => {
                self.gone |= error == Errno::BADFD;
                self.losses.sent = self.losses.sent.wrapping_add(1);
            }
        }
        Ok(())
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<(Offload, usize), EndError> {
        for _ in 0..SKIP {
            let mut header = [0; HEADER];
            let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(into)];
            match rustix::io::retry_on_intr(|| rustix::io::readv(&self.fd, &mut parts)) {
                Ok(len) => {
                    let Some(len) = len.checked_sub(HEADER).filter(|&len| len >= MIN_FRAME) else { continue };
                    let header = Header::from_bytes(header);
                    // The kernel is believed; a kind of segments that is not known here was not asked for.
                    let Ok(offload) = header.parse(Allowed::to_driver(OFFLOADS), len) else { continue };
                    return Ok((offload, len));
                }
                Err(Errno::AGAIN) => {
                    self.reads = true;
                    return Err(EndError::WouldBlock);
                }
                Err(_) => {
                    self.gone = true;
                    return Err(EndError::Closed);
                }
            }
        }
        Err(EndError::WouldBlock)
    }

    fn dropped(&mut self, why: Dropped) {
        self.losses.drop(why);
    }
}

impl HostEnd for Tap {
    fn watch(&self, watches: &mut Watches) {
        // Of an interface that is gone, poll reports an error without end.
        watches.add(self.fd.as_raw_fd(), self.reads && !self.gone, self.writes && !self.gone);
    }

    fn progress(&mut self, _now_us: u64) {
        (self.reads, self.writes) = (false, false);
    }

    fn state(&self) -> Cow<'static, str> {
        let words = if self.gone { "the interface is gone" } else { &self.name };
        self.losses.after(words)
    }

    fn announcement(&self) -> Option<String> {
        Some(format!("network: {0}; 'ip link set {0} up' if it is not", self.name))
    }
}
