//! One client on a stream socket, served by a few threads that take turns at reading.
//!
//! A thread reads a message, lets the next one read, carries its message out and writes the answer. So a client has as
//! many requests under way as it has threads, nothing is queued between them, and a client that does not read its answers
//! stops its own threads and nobody else's.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hvl_shared_abi::wire::p9::{Errno, HEADER, Header, Parsed, Reply, Request};

use super::fid::locked;
use super::{Export, InFlight, Session};

/// Threads of a connection, and so requests under way.
pub(crate) const THREADS: usize = 4;
/// Most requests and flushes that wait for an answer. A client that flushes more has lost its way.
const WAITING: usize = 256;

/// A socket that several threads may use at once: one reads, one writes.
pub(crate) trait Stream: Send + Sync {
    /// Fills `into`.
    fn read(&self, into: &mut [u8]) -> io::Result<()>;
    /// Writes all.
    fn write(&self, bytes: &[u8]) -> io::Result<()>;
    /// Ends one direction, or both; whoever waits there wakes up.
    fn end(&self, how: Shutdown);
}

macro_rules! streams {
    ($($Stream:ty)*) => {$(
        impl Stream for $Stream {
            fn read(&self, into: &mut [u8]) -> io::Result<()> {
                (&mut &*self).read_exact(into)
            }
            fn write(&self, bytes: &[u8]) -> io::Result<()> {
                (&mut &*self).write_all(bytes)
            }
            fn end(&self, how: Shutdown) {
                // It may have ended by itself.
                let _ = self.shutdown(how);
            }
        }
    )*};
}
streams!(UnixStream TcpStream);

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The client closed it between two messages.
    Closed,
    /// It broke.
    Broken(String),
    /// What came cannot be followed.
    Lost(&'static str),
}

/// A client and its connection.
pub(crate) struct Connection {
    session: Session,
    stream: Box<dyn Stream>,
    /// Held by the thread that reads.
    ended: Mutex<Option<Ended>>,
    /// Held by the thread that writes.
    writing: Mutex<()>,
    flight: Mutex<InFlight>,
    requests: AtomicU64,
}

impl Connection {
    pub(crate) fn new(export: Arc<Export>, stream: Box<dyn Stream>) -> Connection {
        Connection {
            session: Session::new(export),
            stream,
            ended: Mutex::default(),
            writing: Mutex::default(),
            flight: Mutex::default(),
            requests: AtomicU64::new(0),
        }
    }

    /// Fids that the client holds, and requests that it has made.
    pub(crate) fn counts(&self) -> (usize, u64) {
        (self.session.fids(), self.requests.load(Ordering::Relaxed))
    }

    /// The life of one of its threads. It returns when the connection has ended.
    pub(crate) fn serve(&self) {
        let (mut request, mut reply) = (Vec::new(), Vec::new());
        while let Some(tag) = self.next(&mut request) {
            self.requests.fetch_add(1, Ordering::Relaxed);
            self.session.reply_to(&request, &mut reply, usize::MAX);
            let _writing = locked(&self.writing);
            // Its tag is free before the client can have the answer and use it again. A flush of it that comes now is
            // answered at once, and that means after this: it needs the same lock.
            let flushes = locked(&self.flight).end(tag);
            // A client that is gone is found by the next thread that reads.
            let mut written = self.stream.write(&reply);
            for flush in flushes {
                written = written.and_then(|()| self.short(flush, Reply::Flush {}));
            }
            if written.is_err() {
                self.stream.end(Shutdown::Both);
            }
        }
    }

    /// Why it ended, once a thread has returned.
    pub(crate) fn ended(&self) -> Option<Ended> {
        locked(&self.ended).clone()
    }

    /// Returns whether it has said nothing yet that a client would.
    pub(crate) fn is_mute(&self) -> bool {
        !self.session.has_agreed()
    }

    /// Whether nothing is lost with it: it has not begun, or holds nothing and waits for nothing. What is under way has
    /// threads, which a client that is told to leave would keep beyond its place.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_mute() || (self.session.fids() == 0 && locked(&self.flight).is_empty())
    }

    /// Hangs up; its threads return.
    pub(crate) fn hang_up(&self) {
        self.stream.end(Shutdown::Both);
    }

    /// Takes no more requests. Those that have begun are answered.
    pub(crate) fn stop(&self) {
        self.stream.end(Shutdown::Read);
    }

    /// Closes the connection, once all threads have returned.
    pub(crate) fn close(&self) {
        self.stream.end(Shutdown::Both);
        self.session.end();
    }

    /// The next message that is to be carried out, and its tag.
    fn next(&self, request: &mut Vec<u8>) -> Option<u16> {
        let mut ended = locked(&self.ended);
        while ended.is_none() {
            match self.receive(request) {
                Ok(Some(tag)) => return Some(tag),
                Ok(None) => {}
                Err(why) => *ended = Some(why),
            }
        }
        None
    }

    /// Reads a message. `None`: it has been seen to.
    fn receive(&self, request: &mut Vec<u8>) -> Result<Option<u16>, Ended> {
        request.clear();
        request.resize(HEADER, 0);
        let broken = |error: io::Error| Ended::Broken(error.to_string());
        if let Err(error) = self.stream.read(request) {
            let closed = error.kind() == io::ErrorKind::UnexpectedEof;
            return Err(if closed { Ended::Closed } else { broken(error) });
        }
        let header = Header::parse(request).map_err(|malformed| Ended::Lost(malformed.reason()))?;
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        if size > usize::try_from(self.session.msize()).unwrap_or(usize::MAX) {
            // The client is told, but where its next message starts cannot be trusted.
            let _writing = locked(&self.writing);
            let _ = self.short(header.tag, Reply::Error { errno: Errno::MSGSIZE });
            return Err(Ended::Lost("is larger than was agreed"));
        }
        request.resize(size, 0);
        self.stream.read(request.get_mut(HEADER..).unwrap_or_default()).map_err(broken)?;
        if let Ok(Parsed { tag, message: Request::Flush { old_tag }, .. }) = Request::parse(request) {
            let now = {
                let mut flight = locked(&self.flight);
                if flight.len() >= WAITING {
                    return Err(Ended::Lost("flushes more than can wait"));
                }
                flight.flush(tag, old_tag)
            };
            if now {
                let _writing = locked(&self.writing);
                self.short(tag, Reply::Flush {}).map_err(broken)?;
            }
            return Ok(None);
        }
        if locked(&self.flight).begin(header.tag) {
            return Ok(Some(header.tag));
        }
        let _writing = locked(&self.writing);
        self.short(header.tag, Reply::Error { errno: Errno::INVAL }).map_err(broken)?;
        Ok(None)
    }

    /// Writes a short answer. The caller holds [`writing`](Self::writing).
    fn short(&self, tag: u16, reply: Reply<'_>) -> io::Result<()> {
        let mut bytes = [0; 16];
        let length = reply.emit(tag, &[], &mut bytes).unwrap_or_default();
        self.stream.write(bytes.get(..length).unwrap_or_default())
    }
}
