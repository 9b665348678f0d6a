//! The file transport: carries 9P messages between the guest and a file server, which answers later.
//!
//! A request is checked as far as its chain goes (its size is that of the readable part, and there is room for an
//! error), copied once into the server's memory, and kept here until its answer comes. What the message means is the
//! server's business. A file system may block: the server runs beside the event loop, works on private memory alone,
//! and after a reset nothing of the old session is handed out any more.
//!
//! What need not block is answered at once: the data of a read or a write then moves straight between the file and the
//! guest's buffers, in one system call of the event loop, which is over before a reset can come.

use hvl_shared_abi::ring::{Access, RingFault};
use hvl_shared_abi::wire::p9::{
    self, Config, F_MOUNT_TAG, Header, MAX_MSIZE, PAYLOAD_PREFIX, REPLY_PREFIX, REQUEST, WRITE_PREFIX,
};
use hvl_shared_abi::{DeviceId, Mem, Piece};

use super::{BATCH, Device, Queues, Request};
use crate::host::{MessageServer, Transfer};

/// Buffers of one request at the most: a page each for the 512 KiB that Linux sends at once, and the headers.
pub const SEGMENTS: usize = 136;
/// Requests at the server at a time.
pub const PENDING: usize = 32;
/// Bytes of data that are moved at once before the other devices have their turn.
const AT_ONCE: u32 = 1 << 20;
/// Bytes of the shortest answer that says that something failed.
const ERROR_BYTES: u32 = 11;

/// The device, over a file server.
pub struct P9<S> {
    server: S,
    config: Config,
    pending: [Option<Request<SEGMENTS>>; PENDING],
    /// Taken from the queue when the server had no room.
    held: Option<Request<SEGMENTS>>,
}

impl<S: MessageServer> P9<S> {
    /// A device with this mount tag that asks `server`; `None` if the tag is empty or has more than 64 bytes.
    pub fn new(server: S, tag: &[u8]) -> Option<P9<S>> {
        let config = Config::new(tag)?;
        Some(P9 { server, config, pending: [const { None }; PENDING], held: None })
    }

    /// Answers a read or a write without a copy of its data in between, if the server can; how many bytes of data moved.
    fn at_once<M: Mem>(&mut self, m: &M, request: &mut Request<SEGMENTS>, head: &[u8]) -> Option<u32> {
        let total = request.len(Access::Readable);
        let parsed = p9::Request::parse_prefix(head, usize::try_from(total).ok()?).ok()?;
        // A read moves what the answer says; a write that is answered at once has moved everything.
        let (access, prefix, count, moved) = match parsed.message {
            p9::Request::Read { count, .. } => (Access::Writable, REPLY_PREFIX, count, 0),
            p9::Request::Write { count, .. } => (Access::Readable, WRITE_PREFIX, count.0, count.0),
            _ => return None,
        };
        let mut pieces = [Piece::EMPTY; SEGMENTS];
        let used = request.pieces(m, access, prefix as u32, count, &mut pieces)?;
        let mut answer = [0; REPLY_PREFIX];
        let transfer = Transfer { request: parsed, data: pieces.get(..used)?, answer: &mut answer };
        let payload = self.server.at_once(transfer)?;
        request.write(m, &answer);
        request.advance(payload as usize);
        Some(moved.max(payload))
    }

    /// Copies a request into the server's memory. `false`: the server has no room now.
    fn submit<M: Mem>(&mut self, m: &M, request: &Request<SEGMENTS>, id: usize) -> bool {
        let (len, room) = (request.len(Access::Readable), request.len(Access::Writable));
        self.server.submit(id, len as usize, room as usize, &mut |into| {
            request.peek(m, into);
        })
    }
}

/// Whether a chain that starts with `head` can be a request: the size that it says is the one it has, and an error fits.
fn is_message(request: &Request<SEGMENTS>, head: &[u8]) -> bool {
    let len = request.len(Access::Readable);
    len <= MAX_MSIZE
        && request.len(Access::Writable) >= ERROR_BYTES
        && Header::parse(head).is_ok_and(|header| header.size == len)
}

impl<M: Mem, S: MessageServer> Device<M> for P9<S> {
    fn id(&self) -> DeviceId {
        DeviceId::P9
    }

    fn features(&self) -> u64 {
        F_MOUNT_TAG
    }

    fn config(&self, into: &mut [u8]) -> usize {
        let bytes = self.config.to_bytes();
        let len = bytes.len().min(into.len());
        if let (Some(into), Some(bytes)) = (into.get_mut(..len), bytes.get(..len)) {
            into.copy_from_slice(bytes);
        }
        len
    }

    fn reset(&mut self) {
        self.server.forget();
        self.pending = [const { None }; PENDING];
        self.held = None;
    }

    fn process(&mut self, queues: &mut Queues<'_, '_, M>) -> Result<bool, RingFault> {
        let Some(mut queue) = queues.queue(REQUEST) else { return Ok(false) };
        let pending = &mut self.pending;
        self.server.answers(&mut |id, answer| {
            if let Some(mut request) = pending.get_mut(id).and_then(Option::take) {
                let written = request.write(queue.mem(), answer);
                queue.complete(request, written as u32);
            }
        });
        let mut moved = 0u32;
        for _ in 0..BATCH {
            if moved >= AT_ONCE {
                return Ok(queue.has_more());
            }
            let Some(id) = self.pending.iter().position(Option::is_none) else { return Ok(false) };
            let mut request = match self.held.take() {
                Some(request) => request,
                None => match queue.take()? {
                    Some(request) => request,
                    None => return Ok(false),
                },
            };
            let mut head = [0; PAYLOAD_PREFIX];
            let peeked = request.peek(queue.mem(), &mut head);
            let head = head.get(..peeked).unwrap_or_default();
            if !is_message(&request, head) {
                queue.reject(request);
            } else if let Some(bytes) = self.at_once(queue.mem(), &mut request, head) {
                moved = moved.saturating_add(bytes);
                let written = request.done();
                queue.complete(request, written);
            } else if !self.submit(queue.mem(), &request, id) {
                self.held = Some(request);
                return Ok(false);
            } else if let Some(slot) = self.pending.get_mut(id) {
                *slot = Some(request);
            }
        }
        Ok(queue.has_more())
    }
}
