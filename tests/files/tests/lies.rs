//! A file server that lies, that never answers, and that dies. Whatever it says, the client answers with an error of its
//! own in bounded time, and goes on with the next server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hvl_files::{Guest, Pmm, Same, Wire};
use hvl_frontend::device::p9::{FileError, Files};
use hvl_pmm::host::Conversation;
use hvl_shared_abi::wire::p9::{Attr, Errno, Payload, Qid, Qids, Reply, Request, VERSION, open};

const QID: Qid = Qid { kind: 0, version: 1, path: 7 };

const DIRECTORY: Qid = Qid { kind: 0x80, ..QID };

/// Answers as a server would whose every file is the same; what is asked for in `lie` is answered by that instead.
struct Liar {
    kind: u8,
    lie: fn(u16, &[u8]) -> Vec<u8>,
}

impl Conversation for Liar {
    fn handle(&self, request: &[u8], answer: &mut Vec<u8>, room: usize) {
        let parsed = Request::parse(request).expect("the client's messages are whole");
        if parsed.message.kind() == self.kind {
            *answer = (self.lie)(parsed.tag, request);
            return;
        }
        *answer = honest(&parsed.message, parsed.tag, room);
    }
}

fn message(reply: &Reply<'_>, tag: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    let used = reply.emit(tag, payload, &mut bytes).expect("it fits");
    bytes.truncate(used);
    bytes
}

fn honest(request: &Request<'_>, tag: u16, _room: usize) -> Vec<u8> {
    let qids = [QID; 16];
    let reply = match request {
        Request::Version { msize, .. } => Reply::Version { msize: *msize, version: VERSION },
        Request::Attach { .. } => Reply::Attach { qid: QID },
        Request::Walk { names, .. } => Reply::Walk { qids: Qids::new(&qids[..names.len()]) },
        Request::Lopen { .. } => Reply::Lopen { qid: QID, io_unit: 0 },
        Request::Getattr { .. } => Reply::Getattr { attr: Attr { size: 42, ..Attr::default() } },
        Request::Read { count, .. } => {
            let data = vec![b'x'; (*count as usize).min(10)];
            return message(&Reply::Read { count: Payload(data.len() as u32) }, tag, &data);
        }
        Request::Write { count, .. } => Reply::Write { count: count.0 },
        Request::Mkdir { .. } => Reply::Mkdir { qid: QID },
        Request::Clunk { .. } => Reply::Clunk {},
        Request::Flush { .. } => Reply::Flush {},
        _ => Reply::Error { errno: Errno::OPNOTSUPP },
    };
    message(&reply, tag, &[])
}

fn lied_to(kind: u8, lie: fn(u16, &[u8]) -> Vec<u8>) -> (Pmm, Guest) {
    let wire = Wire::new();
    let pmm = Pmm::start(&wire, Same(Arc::new(Liar { kind, lie })));
    (pmm, Guest::boot(&wire, Duration::from_secs(20)))
}

fn read_ten(files: &mut Files<'static, Wire>) -> Result<usize, FileError> {
    let mut file = files.open_file(b"a", open::READ_ONLY)?;
    let read = files.read(&mut file, 0, &mut [0; 100]);
    files.close(file)?;
    read
}

#[test]
fn an_honest_server_is_understood() {
    let (_pmm, mut guest) = lied_to(255, |_, _| Vec::new());
    assert_eq!(read_ten(&mut guest.files), Ok(10));
    assert_eq!(guest.files.stat(b"/a/b/c").map(|attr| attr.size), Ok(42));
    assert_eq!(guest.files.mkdir(b"d", 0o755), Ok(()));
    let mut tag = [0; 10];
    assert_eq!(guest.files.tag(&mut tag), Ok(&b"host"[..]));
}

#[test]
fn more_data_than_was_asked_for() {
    let (_pmm, mut guest) =
        lied_to(116, |tag, _| message(&Reply::Read { count: Payload(4000) }, tag, &[7; 4000]));
    assert_eq!(read_ten(&mut guest.files), Err(FileError::Malformed));
    assert_eq!(guest.files.stat(b"a").map(|attr| attr.size), Ok(42), "only that call suffers");
}

#[test]
fn a_count_that_is_not_the_length() {
    let (_pmm, mut guest) = lied_to(116, |tag, _| {
        let mut bytes = message(&Reply::Read { count: Payload(10) }, tag, &[7; 10]);
        bytes[7] = 50;
        bytes
    });
    assert_eq!(read_ten(&mut guest.files), Err(FileError::Malformed));
}

#[test]
fn a_size_that_is_not_the_length() {
    for size in [0u32, 6, 7, 10_000, u32::MAX] {
        static SIZE: AtomicU32 = AtomicU32::new(0);
        SIZE.store(size, Ordering::Relaxed);
        let (_pmm, mut guest) = lied_to(116, |tag, _| {
            let mut bytes = message(&Reply::Read { count: Payload(10) }, tag, &[7; 10]);
            bytes[..4].copy_from_slice(&SIZE.load(Ordering::Relaxed).to_le_bytes());
            bytes
        });
        assert_eq!(read_ten(&mut guest.files), Err(FileError::Malformed), "{size}");
    }
}

#[test]
fn an_answer_of_no_bytes_or_of_few() {
    for len in 0..7u32 {
        static LEN: AtomicU32 = AtomicU32::new(0);
        LEN.store(len, Ordering::Relaxed);
        let (_pmm, mut guest) = lied_to(24, |_, _| vec![1; LEN.load(Ordering::Relaxed) as usize]);
        assert_eq!(guest.files.stat(b"a").map(|_| ()), Err(FileError::Malformed), "{len} bytes");
    }
}

#[test]
fn another_tag() {
    let (_pmm, mut guest) =
        lied_to(24, |tag, _| message(&Reply::Getattr { attr: Attr::default() }, tag ^ 1, &[]));
    assert_eq!(guest.files.stat(b"a").map(|_| ()), Err(FileError::Malformed));
}

#[test]
fn an_answer_to_another_question() {
    // Nothing is looked at in it, so only its number tells.
    let (_pmm, mut guest) = lied_to(72, |tag, _| message(&Reply::Clunk {}, tag, &[]));
    assert_eq!(guest.files.mkdir(b"d", 0o755), Err(FileError::Malformed));
    let (_pmm, mut guest) = lied_to(24, |tag, _| message(&Reply::Clunk {}, tag, &[]));
    assert_eq!(guest.files.stat(b"a").map(|_| ()), Err(FileError::Malformed));
}

#[test]
fn more_identities_than_names() {
    let (_pmm, mut guest) =
        lied_to(110, |tag, _| message(&Reply::Walk { qids: Qids::new(&[QID; 9]) }, tag, &[]));
    assert_eq!(guest.files.stat(b"a").map(|_| ()), Err(FileError::Malformed));
}

#[test]
fn fewer_identities_than_names_is_no_such_file() {
    let (_pmm, mut guest) =
        lied_to(110, |tag, _| message(&Reply::Walk { qids: Qids::new(&[DIRECTORY]) }, tag, &[]));
    assert_eq!(guest.files.stat(b"a/b").map(|_| ()), Err(FileError::Refused(Errno::NOENT)));
}

#[test]
fn a_message_size_above_what_was_asked() {
    let (_pmm, mut guest) =
        lied_to(100, |tag, _| message(&Reply::Version { msize: u32::MAX, version: VERSION }, tag, &[]));
    assert_eq!(guest.files.stat(b"a").map(|_| ()), Err(FileError::Malformed));
}

#[test]
fn a_message_size_of_nothing() {
    for msize in [0u32, 1, 24, 30] {
        static MSIZE: AtomicU32 = AtomicU32::new(0);
        MSIZE.store(msize, Ordering::Relaxed);
        let (_pmm, mut guest) = lied_to(100, |tag, _| {
            message(&Reply::Version { msize: MSIZE.load(Ordering::Relaxed), version: VERSION }, tag, &[])
        });
        assert_eq!(read_ten(&mut guest.files), Err(FileError::Malformed), "{msize}");
    }
}

#[test]
fn another_version() {
    let (_pmm, mut guest) =
        lied_to(100, |tag, _| message(&Reply::Version { msize: 8192, version: b"unknown" }, tag, &[]));
    assert_eq!(guest.files.stat(b"a").map(|_| ()), Err(FileError::Malformed));
}

#[test]
fn an_error_that_has_no_name() {
    let (_pmm, mut guest) =
        lied_to(24, |tag, _| message(&Reply::Error { errno: Errno(0xffff_ffff) }, tag, &[]));
    assert_eq!(guest.files.stat(b"a").map(|_| ()), Err(FileError::Refused(Errno(0xffff_ffff))));
}

#[test]
fn a_write_that_took_more_than_there_was() {
    let (_pmm, mut guest) = lied_to(118, |tag, _| message(&Reply::Write { count: 4_000 }, tag, &[]));
    let mut file = guest.files.open_file(b"a", open::WRITE_ONLY).unwrap();
    assert_eq!(guest.files.write(&mut file, 0, b"hello"), Err(FileError::Malformed));
}

#[test]
fn directory_entries_with_lying_lengths() {
    let (_pmm, mut guest) = lied_to(40, |tag, _| {
        let mut entry = vec![0u8; 22];
        entry.extend([0xff, 0xff, b'a', b'b']);
        message(&Reply::Readdir { count: Payload(entry.len() as u32) }, tag, &entry)
    });
    let mut dir = guest.files.open_dir(b"d").unwrap();
    assert_eq!(guest.files.entries(&mut dir, &mut [0; 512]).map(|_| ()), Err(FileError::Malformed));
}
