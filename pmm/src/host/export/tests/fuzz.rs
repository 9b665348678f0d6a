//! Any bytes, and any requests in any order: whatever comes is answered within the agreed size and with its own tag,
//! and nothing outside the export is told or changed.

use hvl_shared_abi::wire::p9::{GetLock, HEADER, Header, Lock, Payload, SetAttr, Time};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const NAMES: [&[u8]; 14] = [
    b"a",
    b"b",
    b"f",
    b"g",
    b"link",
    b"out",
    b"fifo",
    b"",
    b".",
    b"..",
    b"a/b",
    b"/etc/passwd",
    b"x\0y",
    b"user.x",
];

/// A request made from numbers.
fn request<'a>(which: u8, n: [u32; 4], names: &'a [&'a [u8]], payload: &[u8]) -> Request<'a> {
    let fid = n[0] % 6;
    let [_, b, c, d] = n;
    let name = names.first().copied().unwrap_or(b"f");
    let other = names.last().copied().unwrap_or(b"g");
    // Small numbers find files, large ones limits.
    let offset = [0, 1, 4095, 1 << 20, i64::MAX as u64, u64::MAX][(b % 6) as usize];
    let time = Time { seconds: u64::from(b), nanos: u64::from(c) };
    match which % 30 {
        0 => Request::Statfs { fid },
        1 | 2 => Request::Lopen { fid, flags: b & 0o7777 },
        3 => Request::Lcreate { fid, name, flags: b & 0o7777, mode: c, gid: NO_UID },
        4 => Request::Symlink { fid, name, target: other, gid: NO_UID },
        5 => Request::Mknod { directory: fid, name, mode: b & 0o177_777, major: 1, minor: 3, gid: NO_UID },
        6 => Request::Rename { fid, directory: b % 6, name },
        7 => Request::Readlink { fid },
        8 => Request::Getattr { fid, mask: u64::from(b) },
        9 => {
            let size = [0, 10, 1 << 20, u64::MAX][(d % 4) as usize];
            let attr =
                SetAttr { valid: b & 0x1f9, mode: c, uid: 0, gid: 0, size, accessed: time, modified: time };
            Request::Setattr { fid, attr }
        }
        10 => Request::Xattrwalk { fid, new_fid: b % 6, name },
        11 => Request::Xattrcreate { fid, name, size: u64::from(c % 70_000), flags: d % 4 },
        12 => Request::Readdir { fid, offset, count: c },
        13 => Request::Fsync { fid, data_only: b },
        14 => {
            let lock = Lock {
                kind: b as u8 % 4,
                flags: c % 4,
                start: offset,
                length: u64::from(d),
                process: 1,
                client: name,
            };
            Request::Lock { fid, lock }
        }
        15 => {
            let lock =
                GetLock { kind: b as u8 % 4, start: offset, length: u64::from(d), process: 1, client: name };
            Request::Getlock { fid, lock }
        }
        16 => Request::Link { directory: fid, fid: b % 6, name },
        17 => Request::Mkdir { directory: fid, name, mode: b, gid: NO_UID },
        18 => Request::Renameat { old_directory: fid, old_name: name, new_directory: b % 6, new_name: other },
        19 => Request::Unlinkat { directory: fid, name, flags: if b % 2 == 0 { 0 } else { 0x200 } },
        20 => Request::Attach { fid, afid: NO_FID, user: name, tree: b"", uid: NO_UID },
        21 => Request::Flush { old_tag: b as u16 },
        22..25 => Request::Walk { fid, new_fid: b % 6, names: Names::new(names) },
        25 | 26 => Request::Read { fid, offset, count: c },
        27 => Request::Write { fid, offset: offset % (1 << 21), count: Payload(payload.len() as u32) },
        28 => Request::Clunk { fid },
        _ => Request::Remove { fid },
    }
}

/// A folder in which everything that can be met is: a file outside, links to it, a FIFO.
fn prepared() -> Folder {
    let folder = Folder::new();
    folder.write("outside", "secret outside");
    folder.write("tree/a/f", "inside");
    folder.write("tree/f", "inside");
    std::os::unix::fs::symlink("a", folder.tree().join("link")).unwrap();
    std::os::unix::fs::symlink("../outside", folder.tree().join("out")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(folder.tree().join("fifo")).status().unwrap().success());
    folder
}

/// What must hold of any answer to any bytes.
fn check(session: &Session, bytes: &[u8], reply: &mut [u8]) -> Result<(), TestCaseError> {
    let handled = session.handle(bytes, reply);
    prop_assert!(handled.length <= session.msize() as usize);
    if bytes.len() < HEADER || Header::parse(bytes).is_err() {
        prop_assert_eq!(handled.length, 0);
        return Ok(());
    }
    let answer = &reply[..handled.length];
    let parsed = Reply::parse(answer).unwrap();
    prop_assert_eq!(parsed.tag, Header::parse(bytes).unwrap().tag);
    prop_assert!(!answer.windows(14).any(|bytes| bytes == b"secret outside"));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_requests_in_any_order(
        steps in vec((any::<u8>(), any::<[u32; 4]>(), vec(0..NAMES.len(), 0..6), vec(any::<u8>(), 0..64)), 1..60),
    ) {
        let folder = prepared();
        let client = Client::on(&folder);
        let (mut bytes, mut reply) = (vec![0; 4096], vec![0; MAX_MSIZE as usize]);
        for (index, (which, numbers, names, payload)) in steps.iter().enumerate() {
            let names: Vec<&[u8]> = names.iter().map(|name| NAMES[*name]).collect();
            let request = request(*which, *numbers, &names, payload);
            let payload = if matches!(request, Request::Write { .. }) { &payload[..] } else { &[] };
            let length = request.emit(index as u16, payload, &mut bytes).unwrap();
            check(&client.session, &bytes[..length], &mut reply)?;
        }
        prop_assert_eq!(folder.read("outside"), "secret outside");
    }

    #[test]
    fn any_bytes(
        messages in vec(
            (any::<[u8; 2]>(), 0u8..130, vec(prop_oneof![Just(0u8), Just(1u8), any::<u8>()], 0..80), any::<u8>()), 1..60,
        ),
    ) {
        let folder = prepared();
        let client = Client::on(&folder);
        let mut reply = vec![0; MAX_MSIZE as usize];
        for (tag, kind, body, lie) in &messages {
            let length = (HEADER + body.len()) as u32;
            // Mostly the size that it has.
            let size = if *lie < 16 { u32::from(*lie) } else { length };
            let bytes = [&size.to_le_bytes()[..], &[*kind], tag, body].concat();
            check(&client.session, &bytes, &mut reply)?;
            check(&client.session, &bytes[..bytes.len() / 2], &mut reply)?;
        }
        prop_assert_eq!(folder.read("outside"), "secret outside");
    }
}
