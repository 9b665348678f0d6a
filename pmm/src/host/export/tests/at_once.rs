//! What needs no worker, and what is left to one.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hvl_shared_abi::wire::p9::{Parsed, Payload, REPLY_PREFIX};
use hvl_shared_abi::{Attribute, Mem, Piece, Region};
use rustix::io::ReadWriteFlags;

use super::*;
use crate::host::Transfer;

const LEN: u32 = 0x4_0000;

/// Memory of a guest's, filled with dots.
fn memory() -> Region {
    let words: Vec<AtomicU32> = (0..LEN / 4).map(|_| AtomicU32::new(u32::from_ne_bytes(*b"...."))).collect();
    Region::in_words(words.leak(), Attribute::Coherent)
}

/// Three pieces of it of these lengths, not in order.
fn pieces(memory: &Region, lens: [u32; 3]) -> [Piece; 3] {
    let places = [2000, 1, 1001];
    std::array::from_fn(|i| memory.piece(places[i], lens[i]).unwrap())
}

fn text(memory: &Region, at: u32, len: usize) -> String {
    let mut bytes = vec![0; len];
    memory.copy_in(at, &mut bytes);
    String::from_utf8(bytes).unwrap()
}

fn ask(client: &Client, message: Request<'_>, data: &[Piece]) -> Option<(Vec<u8>, u32)> {
    let mut answer = [0; REPLY_PREFIX];
    let request = Parsed { tag: 7, message, payload: &[] };
    client
        .session
        .at_once(Transfer { request, data, answer: &mut answer })
        .map(|moved| (answer.to_vec(), moved))
}

/// Writes to a fid from a guest's memory; whether that needed no worker.
pub(super) fn writes_at_once(client: &Client, fid: u32) -> bool {
    let memory = memory();
    let data = pieces(&memory, [1, 2, 3]);
    ask(client, Request::Write { fid, offset: 0, count: Payload(6) }, &data).is_some()
}

fn head(reply: Reply<'_>) -> Vec<u8> {
    let mut bytes = vec![0; REPLY_PREFIX];
    reply.emit_prefix(7, &mut bytes).unwrap();
    bytes
}

/// Whether this kernel reads this file without waiting.
fn moves(folder: &Folder, name: &str) -> bool {
    let file = std::fs::File::open(folder.tree().join(name)).unwrap();
    let mut byte = [0];
    rustix::io::pread(&file, &mut byte[..], 0).unwrap();
    let one = &mut [std::io::IoSliceMut::new(&mut byte)];
    rustix::io::preadv2(&file, one, 0, ReadWriteFlags::NOWAIT).is_ok()
}

fn reads(folder: &Folder) {
    folder.write("tree/f", "0123456789");
    let mut client = Client::on(folder);
    client.reach_open(1, "f", open::READ_ONLY);
    let memory = memory();
    let read = |offset, data: &[Piece]| ask(&client, Request::Read { fid: 1, offset, count: 100 }, data);

    let (answer, moved) =
        read(2, &pieces(&memory, [3, 1, 2])).expect("what was just written is in the page cache");
    assert_eq!((answer, moved), (head(Reply::Read { count: Payload(6) }), 6));
    assert_eq!([text(&memory, 2000, 4), text(&memory, 0, 3), text(&memory, 1001, 3)], ["234.", ".5.", "67."]);

    // The end, in the middle of a piece, and behind it.
    let (answer, moved) = read(6, &pieces(&memory, [1, 1, 50])).expect("the file ends there");
    assert_eq!((answer, moved), (head(Reply::Read { count: Payload(4) }), 4));
    assert_eq!(read(10, &pieces(&memory, [1, 1, 1])).unwrap().1, 0);
    assert_eq!(read(1 << 40, &pieces(&memory, [1, 1, 1])).unwrap().1, 0);
}

#[test]
fn a_read_moves_from_the_page_cache_into_the_clients_memory() {
    let folder = Folder::new();
    folder.write("tree/f", "x");
    match moves(&folder, "f") {
        true => reads(&folder),
        false => hvl_test_kit::skipped(format!(
            "the file system of {:?} cannot tell whether a read waits",
            folder.tree()
        )),
    }
}

#[test]
fn a_read_of_a_file_that_is_memory_needs_no_worker() {
    reads(&Folder::within(Path::new("/dev/shm")));
}

#[test]
fn a_read_of_what_is_partly_on_the_disk_is_not_cut_short() {
    let folder = Folder::new();
    let path = folder.write("tree/f", vec![b'x'; LEN as usize]);
    let memory = memory();
    let mut client = Client::on(&folder);
    client.reach_open(1, "f", open::READ_ONLY);
    for _ in 0..20 {
        // The first page alone is in the page cache.
        let file = std::fs::File::open(&path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        rustix::io::pread(&file, &mut [0][..], 0).unwrap();
        let message = Request::Read { fid: 1, offset: 0, count: LEN };
        if let Some((_, moved)) = ask(&client, message, &[memory.piece(0, LEN).unwrap()]) {
            assert_eq!(moved, LEN);
        }
    }
}

fn write(folder: &Folder) -> Option<(Vec<u8>, u32)> {
    folder.write("tree/f", "0123456789");
    let mut client = Client::on(folder);
    client.reach_open(1, "f", open::READ_WRITE);
    let memory = memory();
    memory.copy_out(2000, b"abc");
    memory.copy_out(1, b"d");
    memory.copy_out(1001, b"e");
    let message = Request::Write { fid: 1, offset: 4, count: Payload(5) };
    ask(&client, message, &pieces(&memory, [3, 1, 1]))
}

#[test]
fn a_write_to_a_file_that_is_memory_needs_no_worker() {
    let folder = Folder::within(Path::new("/dev/shm"));
    assert_eq!(write(&folder), Some((head(Reply::Write { count: 5 }), 0)));
    assert_eq!(folder.read("tree/f"), "0123abcde9");
}

#[test]
fn a_write_to_a_file_on_a_disk_is_left_to_a_worker() {
    let folder = Folder::new();
    if rustix::fs::statfs(folder.tree()).unwrap().f_type == 0x0102_1994 {
        return hvl_test_kit::skipped(format!("{:?} is memory", folder.tree()));
    }
    assert_eq!(write(&folder), None);
    assert_eq!(folder.read("tree/f"), "0123456789");
}

#[test]
fn whatever_must_be_refused_or_may_wait_is_left_to_a_worker() {
    let folder = Folder::within(Path::new("/dev/shm"));
    folder.write("tree/f", "0123456789");
    let mut client = Client::on(&folder);
    client.ask(Request::Version { msize: 4096, version: VERSION }).ok();
    client.attach(ROOT).ok();
    client.reach_open(1, "f", open::READ_WRITE);
    client.reach_open(2, "f", open::WRITE_ONLY);
    client.reach(3, "f");
    client.reach_open(4, "", open::READ_ONLY);
    let memory = memory();
    let data = pieces(&memory, [1, 2, 3]);
    let read = |fid, offset| Request::Read { fid, offset, count: 6 };
    assert!(ask(&client, read(1, 0), &data).is_some());
    for message in [
        read(2, 0),
        read(3, 0),
        read(4, 0),
        read(5, 0),
        read(ROOT, 0),
        read(1, u64::MAX),
        read(1, i64::MAX as u64),
    ] {
        assert_eq!(ask(&client, message, &data), None, "{message:?}");
    }
    assert_eq!(ask(&client, read(1, 0), &[]), None, "nothing to move");
    assert_eq!(ask(&client, Request::Fsync { fid: 1, data_only: 0 }, &data), None);
    let long = [memory.piece(0, 4095).unwrap()];
    assert_eq!(ask(&client, read(1, 0), &long), None, "more than a message may have");
    client.ask(Request::Version { msize: 4096, version: VERSION }).ok();
    assert_eq!(ask(&client, read(1, 0), &data), None, "of a session before this one");
}

#[test]
fn no_write_at_once_where_it_would_be_refused_appended_or_waits_for_the_disk() {
    let folder = Folder::within(Path::new("/dev/shm"));
    folder.write("tree/f", "0123456789");
    let memory = memory();
    let data = pieces(&memory, [1, 2, 3]);
    let mut client = Client::on(&folder);
    let flags = [open::READ_ONLY, open::READ_WRITE | open::APPEND, open::READ_WRITE | open::SYNC];
    for (fid, flags) in (1..).zip(flags) {
        client.reach_open(fid, "f", flags);
        let message = Request::Write { fid, offset: 0, count: Payload(6) };
        assert_eq!(ask(&client, message, &data), None, "{flags:#x}");
    }
    let rules = Rules { read_only: true, ..Rules::default() };
    let mut client = Client::with(&folder, rules);
    client.reach_open(1, "f", open::READ_ONLY);
    assert_eq!(ask(&client, Request::Write { fid: 1, offset: 0, count: Payload(6) }, &data), None);
    assert_eq!(folder.read("tree/f"), "0123456789");
}

#[test]
fn no_write_at_once_to_a_file_that_others_may_write_too() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::within(Path::new("/dev/shm"));
    let mut client = Client::on(&folder);
    for (fid, (mode, own)) in (1..).zip([(0o600, true), (0o644, true), (0o664, false), (0o666, false)]) {
        let path = folder.write(&format!("tree/{fid}"), "0123456789");
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        client.reach_open(fid, &fid.to_string(), open::READ_WRITE);
        assert_eq!(writes_at_once(&client, fid), own, "mode {mode:o}");
    }
}

#[test]
fn a_file_that_is_clunked_while_it_is_read_is_closed_when_the_clunk_is_answered() {
    let folder = Folder::within(Path::new("/dev/shm"));
    folder.write("tree/f", vec![b'x'; 3 * LEN as usize]);
    // One for the root, two for a file that is open.
    let rules = Rules { descriptors: 3, ..Rules::default() };
    let export = Export::open(&folder.tree(), "tag", rules, "test").unwrap();
    let (mut one, mut other) = (Client::attached(&export), Client::attached(&export));
    let memory = memory();
    for _ in 0..100 {
        one.reach_open(1, "f", open::READ_ONLY);
        let (one, reading) = (&one, &AtomicBool::new(false));
        let read = || {
            let data = [memory.piece(0, LEN).unwrap(); 3];
            ask(one, Request::Read { fid: 1, offset: 0, count: 3 * LEN }, &data)
        };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let first = read();
                reading.store(true, Ordering::Release);
                assert!(first.is_some());
                while read().is_some() {}
            });
            while !reading.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let message = Request::Clunk { fid: 1 };
            one.session.answer(&Parsed { tag: 8, message, payload: &[] }, &mut [0; 64]);
            other.reach_open(1, "f", open::READ_ONLY);
        });
        other.clunk(1).ok();
    }
}

#[test]
fn no_piece_lies_outside_a_region_or_in_memory_that_takes_more_than_a_copy() {
    let memory = memory();
    assert!(memory.piece(LEN, 0).is_some_and(|piece| piece.is_empty()));
    assert!(memory.piece(LEN - 1, 1).is_some() && memory.piece(0, LEN).is_some());
    assert!(memory.piece(LEN - 1, 2).is_none() && memory.piece(u32::MAX, 2).is_none());
    struct Nothing;
    impl hvl_shared_abi::MaintainCache for Nothing {
        fn clean(&self, _address: usize, _len: usize) {}
        fn invalidate(&self, _address: usize, _len: usize) {}
    }
    for attribute in [Attribute::Device, Attribute::CachedNonCoherent(&Nothing)] {
        let other = Region::in_words(vec![AtomicU32::new(0)].leak(), attribute);
        assert!(other.piece(0, 4).is_none(), "{attribute:?}");
    }
}
