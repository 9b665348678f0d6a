//! `pty[:LINK]`: a console on a new pseudo-terminal, for screen, minicom and their like.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::OptionalActions;

use super::nonblocking::NonBlocking;
use super::{ByteEnd, EndError, HostEnd};
use crate::failure::{Failure, refused};
use crate::sys::Watches;

/// The controlling side of a pseudo-terminal.
///
/// This process keeps the other side open too. So clients may come and go without a hang-up, and what the guest wrote
/// meanwhile waits: a few KiB in the kernel, the rest in the guest's queue.
#[derive(Debug)]
pub struct PtyEnd {
    controller: NonBlocking,
    _kept_open: OwnedFd,
    device: PathBuf,
    link: Option<PathBuf>,
}

impl PtyEnd {
    /// Makes a pseudo-terminal in raw mode and, if asked, a symbolic link to it. A link that is there already is
    /// replaced, anything else is not.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if there is no pseudo-terminal to be had or the link cannot be made.
    pub fn open(link: Option<&Path>) -> Result<PtyEnd, Failure> {
        let (controller, user, device) = match pair() {
            Ok(pair) => pair,
            Err(error) => {
                return refused(format!(
                    "--console pty: no pseudo-terminal can be had ({error}); is /dev/pts mounted?"
                ));
            }
        };
        if let Some(link) = link {
            let name = format!("--console pty:{}", link.display());
            match std::fs::symlink_metadata(link) {
                Ok(meta) if meta.file_type().is_symlink() => {
                    let _ = std::fs::remove_file(link);
                }
                Ok(_) => {
                    return refused(format!(
                        "{name}: is there already and is no symbolic link; choose another path"
                    ));
                }
                Err(_) => {}
            }
            if let Err(error) = std::os::unix::fs::symlink(&device, link) {
                return refused(format!(
                    "{name}: cannot be made ({error}); check that its directory exists and can be written"
                ));
            }
        }
        let controller = match NonBlocking::own(controller) {
            Ok(controller) => controller,
            Err(error) => return refused(format!("--console pty: {error}")),
        };
        Ok(PtyEnd { controller, _kept_open: user, device, link: link.map(PathBuf::from) })
    }

    /// The terminal's device file, `/dev/pts/N`.
    pub fn device(&self) -> &Path {
        &self.device
    }
}

fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd, PathBuf)> {
    let controller = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&controller)?;
    rustix::pty::unlockpt(&controller)?;
    let name = rustix::pty::ptsname(&controller, Vec::new())?;
    let device = PathBuf::from(name.to_string_lossy().into_owned());
    let user = rustix::fs::open(
        &device,
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    // Raw, or the terminal would echo the guest's own output to it before any client has set it up.
    let mut mode = rustix::termios::tcgetattr(&user)?;
    mode.make_raw();
    rustix::termios::tcsetattr(&user, OptionalActions::Now, &mode)?;
    Ok((controller, user, device))
}

impl Drop for PtyEnd {
    fn drop(&mut self) {
        if let Some(link) = &self.link
            && std::fs::read_link(link).is_ok_and(|to| to == self.device)
        {
            let _ = std::fs::remove_file(link);
        }
    }
}

impl ByteEnd for PtyEnd {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        self.controller.write(bytes)
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        self.controller.read(into)
    }
}

impl HostEnd for PtyEnd {
    fn watch(&self, watches: &mut Watches) {
        self.controller.watch(watches);
    }

    fn progress(&mut self, _now_us: u64) {
        self.controller.forget();
    }

    fn state(&self) -> Cow<'static, str> {
        "open".into()
    }

    fn announcement(&self) -> Option<String> {
        let link = self.link.as_ref().map(|link| format!(", also {}", link.display())).unwrap_or_default();
        Some(format!("console: {}{link}", self.device.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn client(path: &Path) -> std::fs::File {
        std::fs::File::options().read(true).write(true).open(path).unwrap()
    }

    fn wait(end: &mut PtyEnd) {
        let mut watches = Watches::default();
        end.watch(&mut watches);
        assert!(watches.wait(Some(10_000_000)) > 0, "nothing happened at the pseudo-terminal in 10 s");
        end.progress(0);
    }

    #[test]
    fn bytes_pass_unchanged_and_clients_may_come_and_go() {
        let link = std::env::temp_dir().join(format!("pmm-pty-{}", std::process::id()));
        std::os::unix::fs::symlink("/nonexistent", &link).unwrap();
        let mut end = PtyEnd::open(Some(&link)).unwrap();
        let mut into = [0; 16];
        // Nothing comes back by itself: no echo.
        assert_eq!(end.write(b"early\n"), Ok(6));
        assert_eq!(end.read(&mut into), Err(EndError::WouldBlock));
        for round in 0..3 {
            let mut client = client(&link);
            if round == 0 {
                client.read_exact(&mut into[..6]).unwrap();
                assert_eq!(&into[..6], b"early\n");
            }
            client.write_all(b"a\x03\r\xff").unwrap();
            if end.read(&mut into) == Err(EndError::WouldBlock) {
                wait(&mut end);
                assert_eq!(end.read(&mut into), Ok(4));
            }
            assert_eq!(&into[..4], b"a\x03\r\xff");
            assert_eq!(end.write(b"x\n"), Ok(2));
            client.read_exact(&mut into[..2]).unwrap();
            assert_eq!(&into[..2], b"x\n");
            assert_eq!(end.read(&mut into), Err(EndError::WouldBlock));
        }
        drop(end);
        assert!(std::fs::symlink_metadata(&link).is_err());
    }

    #[test]
    fn output_that_nobody_reads_waits_whole() {
        let mut end = PtyEnd::open(None).unwrap();
        let block: Vec<u8> = (0..=255).cycle().take(4096).collect();
        let mut taken = 0;
        // A terminal buffers less than this.
        while taken < 16 << 20 {
            match end.write(&block[taken % 256..]) {
                Ok(n) => taken += n,
                Err(error) => {
                    assert_eq!(error, EndError::WouldBlock);
                    break;
                }
            }
        }
        let mut read = Vec::new();
        let mut client = client(end.device());
        let mut into = [0; 1000];
        while read.len() < taken {
            let got = client.read(&mut into).unwrap();
            read.extend_from_slice(&into[..got]);
        }
        assert!(
            read.iter().enumerate().all(|(at, byte)| *byte == (at % 256) as u8),
            "bytes were lost or changed"
        );
    }

    #[test]
    fn another_file_is_no_link_to_replace() {
        let link = std::env::temp_dir().join(format!("pmm-pty-file-{}", std::process::id()));
        std::fs::write(&link, "precious").unwrap();
        assert!(PtyEnd::open(Some(&link)).is_err());
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "precious");
        std::fs::remove_file(&link).unwrap();
    }
}
