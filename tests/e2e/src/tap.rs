//! What is done to a TAP from outside: another program takes its frames, or does not.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use hvl_shared_abi::wire::net::Mac;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open};
use rustix::ioctl::{Setter, ioctl, opcode};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::Skipped;
use crate::guard::Guard;

use crate::terminal::wait;

/// Of the other program's interface.
pub const FAR: Mac = [2, 0, 0, 0, 0, 1];
/// For experiments within one machine, IEEE 802.
const KIND: [u8; 2] = [0x88, 0xb5];
const HEADER: usize = 14;
/// Bytes before each frame of a macvtap, of no use here.
const PREFIX: usize = 10;
/// Bytes of a frame.
const LEN: usize = 1000;
/// Seconds for a frame.
const SOON: u64 = 60;

/// A frame that carries some words.
pub fn frame(to: Mac, from: Mac, words: &str) -> Vec<u8> {
    let mut frame = [&to[..], &from, &KIND, words.as_bytes()].concat();
    frame.resize(LEN, b' ');
    frame
}

/// The words of a frame, if it is one of ours.
pub fn words(frame: &[u8]) -> Option<String> {
    let payload = frame.get(HEADER..).filter(|_| frame[HEADER - 2..HEADER] == KIND)?;
    Some(String::from_utf8_lossy(payload).trim().into())
}

/// A macvtap on a TAP: the frames that go into the TAP for [`FAR`] wait here until they are read, and count as the TAP's
/// for so long.
pub struct Far(File);

impl Far {
    /// Opens that of [`MACVTAP`](crate::namespace::Namespace::MACVTAP).
    pub fn open(dir: &Path) -> Result<Far> {
        let about =
            std::fs::read_dir("/sys/class/net/far0/macvtap")?.next().context("far0 has no device")??;
        let numbers = std::fs::read_to_string(about.path().join("dev"))?;
        let (major, minor) = numbers.trim().split_once(':').context("a device has two numbers")?;
        let path = dir.join("far0");
        let device = makedev(major.parse()?, minor.parse()?);
        let made = mknodat(CWD, &path, FileType::CharacterDevice, Mode::RWXU, device)
            .and_then(|()| open(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()));
        match made {
            Ok(file) => Ok(Far(file.into())),
            Err(error) => {
                bail!(Skipped(format!("the device of a macvtap cannot be made and opened ({error})")))
            }
        }
    }

    /// Sends a frame to the TAP's user. It is lost while the kernel has not noticed that there is one.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        (&self.0).write_all(&[&[0; PREFIX], frame].concat()).context("far0")
    }

    /// Waits for the words of a frame.
    pub fn next(&self) -> Result<String> {
        let guard = Guard::new(SOON, "a frame at far0");
        let mut bytes = [0; 2 * LEN];
        loop {
            match (&self.0).read(&mut bytes) {
                Ok(len) => {
                    if let Some(words) = bytes.get(PREFIX..len).and_then(words) {
                        return Ok(words);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    wait(&[self.0.as_fd()], None, guard.left()?)?;
                }
                Err(error) => return Err(error).context("far0"),
            }
        }
    }
}

/// Bounds the bytes of frames that a process's TAP has taken and nobody has read: more are refused for now.
pub fn bound(process: u32, bytes: c_int) -> Result<()> {
    let fds = std::fs::read_dir(format!("/proc/{process}/fd"))?.map_while(Result::ok);
    let is_tap = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|file| file == Path::new("/dev/net/tun"))
    };
    let number = fds.into_iter().find(is_tap).context("the process has no TAP")?.file_name();
    let number = number.to_string_lossy().parse().context("a descriptor is a number")?;
    let process = Pid::from_raw(i32::try_from(process)?).context("a process id")?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let tap = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
        Ok(tap) => tap,
        Err(error) => bail!(Skipped(format!("another process's descriptor cannot be had ({error})"))),
    };
    ensure!(bytes > 0, "a bound of nothing");
    // SAFETY: TUNSETSNDBUF, `_IOW('T', 212, int)`, reads one int, which the setter holds.
    unsafe { ioctl(&tap, Setter::<{ opcode::write::<c_int>(b'T', 212) }, c_int>::new(bytes)) }?;
    Ok(())
}
