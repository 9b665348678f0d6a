//! `unix:PATH`: a console behind a listening socket, one client at a time.
//!
//! Without a client, output waits in the guest's own queue: a buffer is used only after somebody took its bytes, so
//! nothing is lost and nothing grows here. A client that leaves and returns goes on where the kernel had taken bytes;
//! what it had not read then is its loss. A second client waits in the socket's backlog until the first one leaves. One
//! that only ends its writing, as a shell's pipe into `socat` does, has not left: it waits for its answer, which no
//! other client must get.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::nonblocking::NonBlocking;
use super::{ByteEnd, EndError, HostEnd};
use crate::failure::Failure;
use crate::sys::Watches;
use crate::unix::Listener;

/// A listening socket and perhaps its client.
#[derive(Debug)]
pub struct SocketEnd {
    listener: Listener,
    client: Option<NonBlocking>,
    /// The time when the event loop last came by: the device is told none.
    now_us: u64,
}

impl SocketEnd {
    /// Listens. A socket file that nobody listens at any more is replaced.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if somebody does listen there, or the path cannot be used.
    pub fn listen(path: &Path) -> Result<SocketEnd, Failure> {
        let name = format!("--console unix:{}", path.display());
        Ok(SocketEnd { listener: Listener::listen(path, name)?, client: None, now_us: 0 })
    }

    /// Where it listens.
    pub fn path(&self) -> PathBuf {
        self.listener.path().into()
    }

    fn leave_if_gone(&mut self) {
        let gone =
            |client: &NonBlocking| client.output_closed() || (client.input_closed() && client.is_hung_up());
        if self.client.as_ref().is_some_and(gone) {
            self.client = None;
            self.accept();
        }
    }

    fn accept(&mut self) {
        if self.client.is_none()
            && let Some(stream) = self.listener.accept(self.now_us)
        {
            self.client = NonBlocking::own(stream.into()).ok();
        }
    }

    /// Tries with the client, and with the next one if it turns out to be gone. One that merely says no more is still
    /// there, and nobody else is heard.
    fn attempt(
        &mut self,
        mut act: impl FnMut(&mut NonBlocking) -> Result<usize, EndError>,
    ) -> Result<usize, EndError> {
        for _ in 0..2 {
            let Some(client) = &mut self.client else { break };
            match act(client) {
                Err(EndError::Closed) => self.leave_if_gone(),
                other => return other,
            }
        }
        Err(EndError::WouldBlock)
    }
}

impl ByteEnd for SocketEnd {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        self.attempt(|client| client.write(bytes))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        self.attempt(|client| client.read(into))
    }
}

impl HostEnd for SocketEnd {
    fn watch(&self, watches: &mut Watches) {
        match &self.client {
            Some(client) => {
                client.watch(watches);
                if client.input_closed() {
                    client.watch_hang_up(watches);
                }
            }
            None => self.listener.watch(watches),
        }
    }

    fn progress(&mut self, now_us: u64) {
        self.now_us = now_us;
        self.leave_if_gone();
        self.accept();
        if let Some(client) = &mut self.client {
            client.forget();
        }
    }

    fn deadline_us(&self) -> Option<u64> {
        // With a client, nobody else is to be accepted.
        self.listener.deadline_us().filter(|_| self.client.is_none())
    }

    fn state(&self) -> Cow<'static, str> {
        match &self.client {
            Some(client) if client.input_closed() => "client listens",
            Some(_) => "client connected",
            None => "no client",
        }
        .into()
    }

    fn announcement(&self) -> Option<String> {
        // Raw for what is typed; what is shown still has its line feeds turned into new lines, which `raw` ends.
        let terminal = "-,raw,echo=0,opost=1,escape=0x1d";
        Some(format!("console: socat {terminal} UNIX-CONNECT:{}", self.path().display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn wait(end: &mut SocketEnd) {
        let mut watches = Watches::default();
        end.watch(&mut watches);
        assert!(watches.wait(Some(10_000_000)) > 0, "nothing happened at the console's socket in 10 s");
        end.progress(0);
    }

    #[test]
    fn clients_come_and_go_and_output_waits_for_them() {
        let path = std::env::temp_dir().join(format!("pmm-socket-{}", std::process::id()));
        let mut end = SocketEnd::listen(&path).unwrap();
        assert_eq!(end.write(b"x"), Err(EndError::WouldBlock));
        assert_eq!(end.read(&mut [0]), Err(EndError::WouldBlock));
        let mut into = [0; 8];

        let mut one = UnixStream::connect(&path).unwrap();
        wait(&mut end);
        assert_eq!((&*end.state(), end.write(b"hello")), ("client connected", Ok(5)));
        one.read_exact(&mut into[..5]).unwrap();
        assert_eq!(&into[..5], b"hello");
        assert_eq!(end.read(&mut into), Err(EndError::WouldBlock));
        one.write_all(b"ab").unwrap();
        wait(&mut end);
        assert_eq!(end.read(&mut into), Ok(2));

        // The second waits until the first is gone.
        let mut two = UnixStream::connect(&path).unwrap();
        assert_eq!(end.read(&mut into), Err(EndError::WouldBlock));
        drop(one);
        wait(&mut end);
        assert_eq!(end.read(&mut into), Err(EndError::WouldBlock));
        assert_eq!(end.write(b"again"), Ok(5));
        two.read_exact(&mut into[..5]).unwrap();
        drop(two);
        // Whichever direction finds out first.
        assert_eq!(end.write(b"lost?"), Err(EndError::WouldBlock));
        assert_eq!(end.state(), "no client");
        drop(end);
        assert!(!path.exists());
    }

    #[test]
    fn a_client_that_only_ends_its_writing_gets_its_answer_and_the_next_one_does_not() {
        let path = std::env::temp_dir().join(format!("pmm-socket-half-{}", std::process::id()));
        let mut end = SocketEnd::listen(&path).unwrap();
        let mut into = [0; 16];
        let mut one = UnixStream::connect(&path).unwrap();
        one.write_all(b"question").unwrap();
        one.shutdown(std::net::Shutdown::Write).unwrap();
        let mut two = UnixStream::connect(&path).unwrap();
        wait(&mut end);
        assert_eq!((end.read(&mut into), &into[..8]), (Ok(8), &b"question"[..]));
        assert_eq!(end.read(&mut into), Err(EndError::WouldBlock));
        assert_eq!((&*end.state(), end.write(b"the answer")), ("client listens", Ok(10)));
        let mut watches = Watches::default();
        end.watch(&mut watches);
        assert_eq!(watches.wait(Some(0)), 0, "a client that listens wakes nobody");
        one.read_exact(&mut into[..10]).unwrap();
        assert_eq!(&into[..10], b"the answer");
        two.write_all(b"next").unwrap();
        assert_eq!(end.read(&mut into), Err(EndError::WouldBlock), "its turn has not come");
        // Its end is noticed although nobody reads and nobody writes.
        drop(one);
        wait(&mut end);
        assert_eq!((end.state(), end.read(&mut into)), ("client connected".into(), Ok(4)));
        two.set_nonblocking(true).unwrap();
        assert_eq!(
            two.read(&mut into).unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock,
            "nothing was its"
        );
        assert_eq!(end.write(b"hello"), Ok(5));
        assert_eq!(two.read(&mut into).unwrap(), 5);
    }

    #[test]
    fn an_end_that_nobody_reads_is_not_watched() {
        let path = std::env::temp_dir().join(format!("pmm-socket-idle-{}", std::process::id()));
        let mut end = SocketEnd::listen(&path).unwrap();
        let mut one = UnixStream::connect(&path).unwrap();
        wait(&mut end);
        one.write_all(b"early").unwrap();
        let mut watches = Watches::default();
        end.watch(&mut watches);
        assert!(watches.is_empty(), "input that no guest asked for would spin the loop");
        let mut into = [0; 8];
        assert_eq!(end.read(&mut into), Ok(5));
    }
}
