//! Messages as other programs write them, every message there and back, and byte strings that nobody should send.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::vec::Vec;

/// Every request, with fields from the given supplies.
fn request<'a>(which: usize, n: &[u64; 8], text: &'a [Vec<u8>; 2], names: Names<'a>) -> Request<'a> {
    let [a, b, c, d, e, f, g, h] = *n;
    let [name, other] = [&text[0][..], &text[1][..]];
    let (fid, second, third) = (a as u32, b as u32, c as u32);
    let (kind, length, process) = (d as u8, f, g as u32);
    let time = |seconds, nanos| Time { seconds, nanos };
    match which % 27 {
        0 => Request::Statfs { fid },
        1 => Request::Lopen { fid, flags: second },
        2 => Request::Lcreate { fid, name, flags: second, mode: third, gid: d as u32 },
        3 => Request::Symlink { fid, name, target: other, gid: second },
        4 => Request::Mknod {
            directory: fid,
            name,
            mode: second,
            major: third,
            minor: d as u32,
            gid: e as u32,
        },
        5 => Request::Rename { fid, directory: second, name },
        6 => Request::Readlink { fid },
        7 => Request::Getattr { fid, mask: b },
        8 => Request::Setattr {
            fid,
            attr: SetAttr {
                valid: second,
                mode: third,
                uid: d as u32,
                gid: e as u32,
                size: f,
                accessed: time(g, h),
                modified: time(h, g),
            },
        },
        9 => Request::Xattrwalk { fid, new_fid: second, name },
        10 => Request::Xattrcreate { fid, name, size: b, flags: third },
        11 => Request::Readdir { fid, offset: b, count: third },
        12 => Request::Fsync { fid, data_only: second },
        13 => {
            Request::Lock { fid, lock: Lock { kind, flags: third, start: e, length, process, client: name } }
        }
        14 => Request::Getlock { fid, lock: GetLock { kind, start: e, length, process, client: name } },
        15 => Request::Link { directory: fid, fid: second, name },
        16 => Request::Mkdir { directory: fid, name, mode: second, gid: third },
        17 => {
            Request::Renameat { old_directory: fid, old_name: name, new_directory: second, new_name: other }
        }
        18 => Request::Unlinkat { directory: fid, name, flags: second },
        19 => Request::Version { msize: fid, version: name },
        20 => Request::Auth { afid: fid, user: name, tree: other, uid: second },
        21 => Request::Attach { fid, afid: second, user: name, tree: other, uid: third },
        22 => Request::Flush { old_tag: a as u16 },
        23 => Request::Walk { fid, new_fid: second, names },
        24 => Request::Read { fid, offset: b, count: third },
        25 => Request::Clunk { fid },
        _ => Request::Remove { fid },
    }
}

/// Every reply.
fn reply<'a>(which: usize, n: &[u64; 8], name: &'a [u8], qids: Qids<'a>) -> Reply<'a> {
    let [a, b, c, d, e, f, g, h] = *n;
    let qid = Qid { kind: a as u8, version: b as u32, path: c };
    let time = |seconds, nanos| Time { seconds, nanos };
    match which % 26 {
        0 => Reply::Error { errno: Errno(a as u32) },
        1 => Reply::Statfs {
            statfs: Statfs {
                kind: a as u32,
                block_size: b as u32,
                blocks: c,
                free: d,
                available: e,
                files: f,
                free_files: g,
                id: h,
                name_length: (a >> 32) as u32,
            },
        },
        2 => Reply::Lopen { qid, io_unit: d as u32 },
        3 => Reply::Lcreate { qid, io_unit: d as u32 },
        4 => Reply::Symlink { qid },
        5 => Reply::Mknod { qid },
        6 => Reply::Rename {},
        7 => Reply::Readlink { target: name },
        8 => Reply::Getattr {
            attr: Attr {
                valid: d,
                qid,
                mode: e as u32,
                uid: f as u32,
                gid: g as u32,
                links: h,
                rdev: a ^ b,
                size: b ^ c,
                block_size: c ^ d,
                blocks: d ^ e,
                accessed: time(e ^ f, f ^ g),
                modified: time(g ^ h, h ^ a),
                changed: time(a ^ c, b ^ d),
                born: time(c ^ e, d ^ f),
                generation: e ^ g,
                data_version: f ^ h,
            },
        },
        9 => Reply::Setattr {},
        10 => Reply::Xattrwalk { size: a },
        11 => Reply::Xattrcreate {},
        12 => Reply::Fsync {},
        13 => Reply::Lock { status: a as u8 },
        14 => Reply::Getlock {
            lock: GetLock { kind: a as u8, start: b, length: c, process: d as u32, client: name },
        },
        15 => Reply::Link {},
        16 => Reply::Mkdir { qid },
        17 => Reply::Renameat {},
        18 => Reply::Unlinkat {},
        19 => Reply::Version { msize: a as u32, version: name },
        20 => Reply::Auth { qid },
        21 => Reply::Attach { qid },
        22 => Reply::Flush {},
        23 => Reply::Walk { qids },
        24 => Reply::Clunk {},
        _ => Reply::Remove {},
    }
}

/// A message that was emitted is parsed as it was; with one byte more or less, or in any shorter buffer, it is neither.
macro_rules! there_and_back {
    ($Enum:ident, $tag:expr, $message:expr, $payload:expr) => {{
        let (tag, message, payload): (u16, $Enum<'_>, &[u8]) = ($tag, $message, $payload);
        let mut bytes = std::vec![0xa5; 4096];
        let length = message.emit(tag, payload, &mut bytes).unwrap();
        let parsed = $Enum::parse(&bytes[..length]).unwrap();
        assert_eq!(parsed, Parsed { tag, message, payload });
        assert_eq!(bytes[4], message.kind());
        assert_eq!(Header::parse(&bytes), Ok(Header { size: length as u32, kind: message.kind(), tag }));
        for cut in 0..length {
            assert!($Enum::parse(&bytes[..cut]).is_err());
            assert_eq!(message.emit(tag, payload, &mut std::vec![0; cut]), Err(Full));
            // The same cut, with a size that hides it.
            if cut >= HEADER {
                let mut lie = bytes[..cut].to_vec();
                lie[..4].copy_from_slice(&(cut as u32).to_le_bytes());
                assert!($Enum::parse(&lie).is_err());
            }
        }
        let mut more = bytes[..length + 1].to_vec();
        assert_eq!($Enum::parse(&more), Err(Malformed::Size));
        more[..4].copy_from_slice(&(length as u32 + 1).to_le_bytes());
        assert!($Enum::parse(&more).is_err());

        // The payload apart.
        let mut prefix = std::vec![0; 4096];
        let front = message.emit_prefix(tag, &mut prefix).unwrap();
        assert_eq!(prefix[..front], bytes[..front]);
        assert_eq!(front + payload.len(), length);
        assert!(payload.is_empty() || front <= PAYLOAD_PREFIX);
        let parsed = $Enum::parse_prefix(&prefix[..front], length).unwrap();
        assert_eq!(parsed, Parsed { tag, message, payload: &[] });
        assert_eq!(parsed.message.kind(), message.kind());
        assert!($Enum::parse_prefix(&prefix[..front], length + 1).is_err());
        assert!($Enum::parse_prefix(&prefix[..front], front - 1).is_err());
    }};
}

proptest! {
    #[test]
    fn every_request_there_and_back(
        tag: u16, n: [u64; 8],
        text in [vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..40)],
        list in vec(vec(any::<u8>(), 0..12), 0..=MAX_WALK),
        data in vec(any::<u8>(), 0..100),
    ) {
        let list: Vec<&[u8]> = list.iter().map(Vec::as_slice).collect();
        for which in 0..27 {
            there_and_back!(Request, tag, request(which, &n, &text, Names::new(&list)), &[]);
        }
        let write = Request::Write { fid: n[0] as u32, offset: n[1], count: Payload(data.len() as u32) };
        there_and_back!(Request, tag, write, &data);
    }

    #[test]
    fn every_reply_there_and_back(
        tag: u16, n: [u64; 8],
        name in vec(any::<u8>(), 0..40),
        list in vec(any::<(u8, u32, u64)>(), 0..=MAX_WALK),
        data in vec(any::<u8>(), 0..100),
    ) {
        let list: Vec<Qid> =
            list.iter().map(|(kind, version, path)| Qid { kind: *kind, version: *version, path: *path }).collect();
        for which in 0..26 {
            there_and_back!(Reply, tag, reply(which, &n, &name, Qids::new(&list)), &[]);
        }
        let count = Payload(data.len() as u32);
        there_and_back!(Reply, tag, Reply::Read { count }, &data);
        there_and_back!(Reply, tag, Reply::Readdir { count }, &data);
    }

    /// Whatever is accepted is what it would be emitted as: nothing in it is ignored, so nothing in it can lie.
    #[test]
    fn no_byte_string_is_taken_for_what_it_is_not(
        kind: u8, tag: u16, body in vec(prop_oneof![Just(0u8), Just(1u8), any::<u8>()], 0..120), size: Option<u32>,
    ) {
        let mut bytes = std::vec![0; HEADER];
        bytes.extend_from_slice(&body);
        let length = bytes.len();
        bytes[..4].copy_from_slice(&size.unwrap_or(length as u32).to_le_bytes());
        bytes[4] = kind;
        bytes[5..7].copy_from_slice(&tag.to_le_bytes());
        let mut again = std::vec![0; length];
        if let Ok(parsed) = Request::parse(&bytes) {
            prop_assert_eq!(parsed.message.emit(parsed.tag, parsed.payload, &mut again), Ok(length));
            prop_assert_eq!(&again, &bytes);
        }
        if let Ok(parsed) = Reply::parse(&bytes) {
            prop_assert_eq!(parsed.message.emit(parsed.tag, parsed.payload, &mut again), Ok(length));
            prop_assert_eq!(&again, &bytes);
        }
    }

    #[test]
    fn directory_entries_end_where_their_bytes_do(bytes in vec(prop_oneof![Just(0u8), any::<u8>()], 0..200)) {
        let mut entries = Entries::new(&bytes);
        let (mut again, mut failed) = (std::vec![0; bytes.len()], false);
        let mut writer = EntryWriter::new(&mut again);
        for entry in entries.by_ref() {
            prop_assert!(!failed, "nothing comes after an error");
            match entry {
                Ok(entry) => prop_assert!(writer.push(&entry)),
                Err(_) => failed = true,
            }
        }
        let used = writer.used();
        prop_assert_eq!(&again[..used], &bytes[..used]);
        prop_assert_eq!(entries.rest().len(), bytes.len() - used);
        prop_assert_eq!(failed, used != bytes.len());
    }
}

#[test]
fn messages_are_those_that_linux_writes() {
    let mut bytes = [0; 64];
    let mut emit = |request: Request<'_>, tag, payload: &[u8]| {
        let length = request.emit(tag, payload, &mut bytes).unwrap();
        bytes[..length].to_vec()
    };
    // As in a capture of `mount -t 9p` (version), and by the tables of the protocol.
    assert_eq!(
        emit(Request::Version { msize: 8192, version: VERSION }, NO_TAG, &[]),
        b"\x15\0\0\0\x64\xff\xff\0\x20\0\0\x08\09P2000.L"
    );
    assert_eq!(
        emit(Request::Attach { fid: 0, afid: NO_FID, user: b"me", tree: b"/", uid: 1000 }, 0, &[]),
        b"\x1a\0\0\0\x68\0\0\0\0\0\0\xff\xff\xff\xff\x02\0me\x01\0/\xe8\x03\0\0"
    );
    assert_eq!(
        emit(Request::Walk { fid: 1, new_fid: 2, names: Names::of_path(b"a/bc").0 }, 3, &[]),
        b"\x18\0\0\0\x6e\x03\0\x01\0\0\0\x02\0\0\0\x02\0\x01\0a\x02\0bc"
    );
    assert_eq!(
        emit(Request::Write { fid: 1, offset: 0x0102, count: Payload(3) }, 3, b"xyz"),
        b"\x1a\0\0\0\x76\x03\0\x01\0\0\0\x02\x01\0\0\0\0\0\0\x03\0\0\0xyz"
    );
    assert_eq!(
        emit(Request::Fsync { fid: 1, data_only: 1 }, 3, &[]),
        b"\x0f\0\0\0\x32\x03\0\x01\0\0\0\x01\0\0\0"
    );

    let mut bytes = [0; 200];
    let reply = Reply::Error { errno: Errno::NOENT };
    assert_eq!(reply.emit(3, &[], &mut bytes), Ok(11));
    assert_eq!(&bytes[..11], b"\x0b\0\0\0\x07\x03\0\x02\0\0\0");
    assert_eq!(Reply::Getattr { attr: Attr::default() }.emit(0, &[], &mut bytes), Ok(160));
    assert_eq!(Reply::Statfs { statfs: Statfs::default() }.emit(0, &[], &mut bytes), Ok(67));
}

#[test]
fn a_walk_has_at_most_sixteen_names() {
    let seventeen = [&b"n"[..]; 17];
    let mut bytes = [0; 256];
    let walk = |names| Request::Walk { fid: 0, new_fid: 1, names };
    assert_eq!(walk(Names::new(&seventeen)).emit(0, &[], &mut bytes), Err(Full));
    let length = walk(Names::new(&seventeen[1..])).emit(0, &[], &mut bytes).unwrap();
    assert!(Request::parse(&bytes[..length]).is_ok());
    bytes[15] = 17;
    bytes[length..length + 3].copy_from_slice(b"\x01\0n");
    bytes[..4].copy_from_slice(&(length as u32 + 3).to_le_bytes());
    assert_eq!(Request::parse(&bytes[..length + 3]), Err(Malformed::Names));
    assert_eq!(Reply::Walk { qids: Qids::new(&[Qid::default(); 17]) }.emit(0, &[], &mut [0; 300]), Err(Full));
}

#[test]
fn a_path_is_cut_into_walks() {
    let collect = |names: Names<'_>| names.iter().map(<[u8]>::to_vec).collect::<Vec<_>>();
    for path in ["", "/", "//"] {
        let (names, rest) = Names::of_path(path.as_bytes());
        assert!(names.is_empty() && rest.is_empty());
    }
    let (names, rest) = Names::of_path(b"//a//../.b/");
    assert_eq!((collect(names), rest), (std::vec![b"a".to_vec(), b"..".to_vec(), b".b".to_vec()], &b""[..]));
    let long = (0..40).map(|n| std::format!("d{n}")).collect::<Vec<_>>();
    let path = long.join("//");
    let (mut rest, mut all, mut walks) = (path.as_bytes(), Vec::new(), Vec::new());
    while !rest.is_empty() {
        let (names, later) = Names::of_path(rest);
        walks.push(names.len());
        all.extend(collect(names));
        rest = later;
    }
    assert_eq!(walks, [16, 16, 8]);
    assert_eq!(all, long.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>());
}

#[test]
fn a_string_longer_than_a_count_is_not_emitted() {
    let long = std::vec![b'x'; 0x1_0000];
    let mut bytes = std::vec![0; 0x2_0000];
    assert!(Reply::Readlink { target: &long[1..] }.emit(0, &[], &mut bytes).is_ok());
    assert_eq!(Reply::Readlink { target: &long }.emit(0, &[], &mut bytes), Err(Full));
    assert_eq!(
        Request::Clunk { fid: 0 }.emit(0, b"x", &mut bytes),
        Err(Full),
        "a payload that nobody announced"
    );
    let write = Request::Write { fid: 0, offset: 0, count: Payload(2) };
    assert_eq!(write.emit(0, b"x", &mut bytes), Err(Full), "a payload shorter than announced");
    let huge = Request::Write { fid: 0, offset: 0, count: Payload(u32::MAX) };
    assert_eq!(huge.emit_prefix(0, &mut bytes), Err(Full), "a size that overflows");
}

#[test]
fn names_are_single_entries() {
    for good in [&b"a"[..], b"...", b".a", b"\xff\xfe", &[b'x'; 255]] {
        assert!(is_name(good), "{good:?}");
    }
    for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"/etc", b"a\0", &[b'x'; 256]] {
        assert!(!is_name(bad), "{bad:?}");
    }
}

#[test]
fn entries_that_do_not_fit_are_not_written() {
    let entry = Entry { qid: Qid::default(), offset: 9, kind: entry_kind::FILE, name: b"name" };
    let mut bytes = [0; 2 * (ENTRY_FIXED + 4) + 1];
    let mut writer = EntryWriter::new(&mut bytes);
    assert!(writer.push(&entry) && writer.push(&entry) && !writer.push(&entry));
    assert_eq!(writer.used(), 56);
    // Copied in two pieces, cut in the second entry.
    let mut first = Entries::new(&bytes[..40]);
    assert_eq!(first.next(), Some(Ok(entry)));
    assert_eq!(first.next(), Some(Err(Malformed::Short)));
    assert_eq!((first.next(), first.rest().len()), (None, 12));
}

#[test]
fn a_mount_tag_is_no_longer_than_its_place() {
    assert_eq!(Config::new(b"share").unwrap().tag(), Some(&b"share"[..]));
    assert_eq!(Config::new(b""), None);
    assert_eq!(Config::new(&[b'x'; 65]), None);
    let mut lie = Config::new(&[b'x'; 64]).unwrap();
    assert!(lie.tag().is_some());
    for length in [0u16, 65, 65_535] {
        lie.tag_length = length.into();
        assert_eq!(lie.tag(), None);
    }
}
