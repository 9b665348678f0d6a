//! The same for what files have beside their content: attributes, extended attributes, locks, owners.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::Ordering;

use hvl_shared_abi::wire::p9::{GetLock, Lock, SetAttr, Time, lock, setattr, xattr};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::*;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn getattr_tells_what_stat_tells() {
    let folder = Folder::new();
    let file = folder.write("tree/f", "hello");
    let mut client = Client::on(&folder);
    client.reach(1, "f");
    let (attr, host) = (client.attr(1), file.metadata().unwrap());
    assert_eq!(attr.valid & getattr::BASIC, getattr::BASIC);
    assert_eq!((attr.mode, attr.size, attr.links), (host.mode(), 5, 1));
    assert_eq!((attr.uid, attr.gid, attr.qid.path), (host.uid(), host.gid(), host.ino()));
    assert_eq!((attr.modified.seconds as i64, attr.modified.nanos as i64), (host.mtime(), host.mtime_nsec()));
    assert_eq!((attr.block_size, attr.blocks), (host.blksize(), host.blocks()));
    assert_eq!(client.ask(Request::Getattr { fid: 9, mask: 0 }).errno(), Errno::BADF);
}

fn set(valid: u32) -> SetAttr {
    SetAttr { valid, ..SetAttr::default() }
}

#[test]
fn setattr_mode_without_rights_for_others() {
    let folder = Folder::new();
    let file = folder.write("tree/f", "");
    let mut client = Client::on(&folder);
    client.reach(1, "f");
    for (asked, given) in [(0o640, 0o640), (0o104_755, 0o755), (0o2755, 0o755), (0o6777, 0o777)] {
        client.ask(Request::Setattr { fid: 1, attr: SetAttr { mode: asked, ..set(setattr::MODE) } }).ok();
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, given);
    }
    std::os::unix::fs::symlink("f", folder.tree().join("link")).unwrap();
    client.reach(2, "link");
    let attr = SetAttr { mode: 0, ..set(setattr::MODE) };
    assert_eq!(client.ask(Request::Setattr { fid: 2, attr }).errno(), Errno::OPNOTSUPP);
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o777, "the link was not followed");
}

#[test]
fn setattr_size() {
    let folder = Folder::new();
    folder.write("tree/f", "0123456789");
    let mut client = Client::on(&folder);
    client.reach(1, "f");
    let size = |fid, size| Request::Setattr { fid, attr: SetAttr { size, ..set(setattr::SIZE) } };
    client.ask(size(1, 4)).ok();
    assert_eq!(folder.read("tree/f"), "0123");
    client.ask(Request::Lopen { fid: 1, flags: open::WRITE_ONLY }).ok();
    client.ask(size(1, 6)).ok();
    assert_eq!(folder.read("tree/f"), "0123\0\0");
    assert_eq!(client.ask(size(1, u64::MAX)).errno(), Errno::INVAL);
    assert_eq!(client.ask(size(ROOT, 0)).errno(), Errno::ISDIR);
}

#[test]
fn setattr_times() {
    let folder = Folder::new();
    let file = folder.write("tree/f", "");
    let mut client = Client::on(&folder);
    client.reach(1, "f");
    let time = |seconds: i64, nanos| Time { seconds: seconds as u64, nanos };
    let both = setattr::ACCESSED | setattr::ACCESSED_SET | setattr::MODIFIED | setattr::MODIFIED_SET;
    let attr = SetAttr { accessed: time(1000, 5), modified: time(-7, 999_999_999), ..set(both) };
    client.ask(Request::Setattr { fid: 1, attr }).ok();
    let host = file.metadata().unwrap();
    assert_eq!(
        (host.atime(), host.atime_nsec(), host.mtime(), host.mtime_nsec()),
        (1000, 5, -7, 999_999_999)
    );
    client.ask(Request::Setattr { fid: 1, attr: set(setattr::MODIFIED) }).ok();
    let host = file.metadata().unwrap();
    assert!(host.mtime() > 1000, "now");
    assert_eq!(host.atime(), 1000, "left alone");
    for nanos in [1_000_000_000, 0x3fff_ffff, u64::MAX] {
        let attr = SetAttr { modified: time(0, nanos), ..set(both) };
        assert_eq!(client.ask(Request::Setattr { fid: 1, attr }).errno(), Errno::INVAL);
    }
    client.ask(Request::Setattr { fid: 1, attr: set(setattr::CHANGED) }).ok();
    client.ask(Request::Setattr { fid: 1, attr: set(0) }).ok();
}

#[test]
fn setattr_owner_is_the_hosts_decision() {
    let folder = Folder::new();
    let file = folder.write("tree/f", "");
    let mut client = Client::on(&folder);
    client.reach(1, "f");
    let attr = SetAttr { uid: 4711, gid: 4712, ..set(setattr::UID | setattr::GID) };
    let answer = client.ask(Request::Setattr { fid: 1, attr });
    if is_root() {
        answer.ok();
        assert_eq!((file.metadata().unwrap().uid(), file.metadata().unwrap().gid()), (4711, 4712));
    } else {
        assert_eq!(answer.errno(), Errno::PERM);
    }
}

#[test]
fn squashed_ids_show_one_owner() {
    let folder = Folder::new();
    let file = folder.write("tree/f", "");
    let rules = Rules { ids: Ids::Squash { uid: 12, gid: 34 }, ..Rules::default() };
    let mut client = Client::with(&folder, rules);
    client.reach(1, "f");
    assert_eq!((client.attr(1).uid, client.attr(1).gid), (12, 34));
    let before = (file.metadata().unwrap().uid(), file.metadata().unwrap().gid());
    let owner = |uid, gid| Request::Setattr {
        fid: 1,
        attr: SetAttr { uid, gid, ..set(setattr::UID | setattr::GID) },
    };
    client.ask(owner(12, 34)).ok();
    assert_eq!(client.ask(owner(0, 34)).errno(), Errno::PERM);
    assert_eq!((file.metadata().unwrap().uid(), file.metadata().unwrap().gid()), before);
    client.ask(Request::Mkdir { directory: ROOT, name: b"d", mode: 0o755, gid: 99 }).ok();
    let made = folder.tree().join("d").metadata().unwrap();
    assert_eq!(made.uid(), rustix::process::geteuid().as_raw());
    assert_ne!(made.gid(), 99);
}

#[test]
fn a_mapped_client_is_shown_its_own_numbers() {
    if !is_root() {
        hvl_test_kit::skipped(
            "a_mapped_client_is_shown_its_own_numbers needs root, which alone can be others",
        );
        return;
    }
    let folder = Folder::new();
    let file = folder.write("tree/f", "");
    std::os::unix::fs::chown(&file, Some(5000), Some(4999)).unwrap();
    // Users 1000 and 1001 of the client.
    let map = |outside| Rules { ids: Ids::Map { inside: 1000, outside, count: 2 }, ..Rules::default() };
    let mut client = Client::with(&folder, map(5000));
    client.reach(1, "f");
    assert_eq!((client.attr(1).uid, client.attr(1).gid), (1000, NOBODY));
    let owner = |uid| Request::Setattr { fid: 1, attr: SetAttr { uid, ..set(setattr::UID) } };
    client.ask(owner(1000)).ok();
    for other in [0, 999, 1002, 5000] {
        assert_eq!(client.ask(owner(other)).errno(), Errno::INVAL, "{other}");
    }
    assert_eq!(client.ask(owner(1001)).errno(), Errno::PERM, "an ordinary user gives nothing away");
}

/// How opening a file ends for whoever has attached fid `root`.
fn opens(client: &mut Client, root: u32, path: &str, flags: u32) -> Result<(), Errno> {
    const FID: u32 = 800;
    let count = path.split('/').count();
    let result = match client.walk_from(root, FID, path)? {
        passed if passed < count => return Err(Errno::ACCES),
        _ => match client.ask(Request::Lopen { fid: FID, flags }).get() {
            Reply::Error { errno } => Err(errno),
            _ => Ok(()),
        },
    };
    client.clunk(FID).ok();
    result
}

#[test]
fn a_mapped_root_is_root_over_mapped_files_alone() {
    if !is_root() {
        hvl_test_kit::skipped(
            "a_mapped_root_is_root_over_mapped_files_alone needs root, which alone can be others",
        );
        return;
    }
    let folder = Folder::new();
    for (name, uid, gid, mode) in [
        ("private/x", 0, 0, 0o644),
        ("private", 0, 0, 0o700),
        ("roots", 0, 0, 0o600),
        ("mixed", 100_000, 0, 0),
        ("own", 100_000, 100_000, 0o600),
        ("users", 101_000, 101_000, 0),
        ("", 100_000, 100_000, 0o755),
    ] {
        let path = folder.tree().join(name);
        if !path.exists() {
            folder.write(&format!("tree/{name}"), "text");
        }
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let ids = Ids::Map { inside: 0, outside: 100_000, count: 65_536 };
    let mut client = Client::with(&folder, Rules { ids, ..Rules::default() });
    for (fid, uid) in [(5, 0), (6, 1000), (7, 70_000)] {
        client.ask(Request::Attach { fid, afid: NO_FID, user: b"", tree: b"", uid }).ok();
    }
    let all = |client: &mut Client, root| {
        ["own", "users", "roots", "mixed", "private/x"]
            .map(|name| opens(client, root, name, open::READ_WRITE))
    };
    let no = Err(Errno::ACCES);
    assert_eq!(all(&mut client, 5), [Ok(()), Ok(()), no, no, no], "root");
    assert_eq!(all(&mut client, ROOT), [Ok(()), Ok(()), no, no, no], "the client's kernel");
    assert_eq!(all(&mut client, 6), [no; 5], "a user, whose file has no permissions");
    assert_eq!(all(&mut client, 7), [no; 5], "nobody");
    client.reach(1, "roots");
    let file = folder.tree().join("roots");
    let before = file.metadata().unwrap();
    for (valid, errno) in [
        (setattr::MODE, Errno::PERM),
        (setattr::UID, Errno::PERM),
        (setattr::GID, Errno::PERM),
        (setattr::SIZE, Errno::ACCES),
        (setattr::MODIFIED | setattr::MODIFIED_SET, Errno::PERM),
    ] {
        assert_eq!(client.ask(Request::Setattr { fid: 1, attr: set(valid) }).errno(), errno, "{valid:#x}");
    }
    let xattr = set_xattr(&mut client, "roots", b"user.x", b"x", 0);
    assert!(matches!(xattr, Err(Errno::ACCES | Errno::OPNOTSUPP)), "{xattr:?}");
    let after = file.metadata().unwrap();
    assert_eq!((before.mode(), before.uid(), before.len()), (after.mode(), after.uid(), after.len()));
    // Over what is mapped it may do all that.
    client.reach(2, "users");
    let valid = setattr::MODE | setattr::UID | setattr::GID | setattr::SIZE;
    let attr = SetAttr { mode: 0o640, uid: 7, gid: 8, size: 2, ..set(valid) };
    client.ask(Request::Setattr { fid: 2, attr }).ok();
    let users = folder.tree().join("users").metadata().unwrap();
    assert_eq!((users.uid(), users.gid(), users.mode() & 0o7777), (100_007, 100_008, 0o640));
    assert_eq!(users.len(), 2);
    // New things belong to who makes them, where they may.
    let mkdir = |directory| Request::Mkdir { directory, name: b"d", mode: 0o755, gid: 9 };
    assert_eq!(client.ask(mkdir(6)).errno(), Errno::ACCES);
    assert_eq!(client.ask(mkdir(7)).errno(), Errno::ACCES);
    client.ask(mkdir(5)).ok();
    let made = folder.tree().join("d").metadata().unwrap();
    assert_eq!((made.uid(), made.gid()), (100_000, 100_009));
    // And this thread is itself again.
    assert_eq!(folder.read("tree/roots"), "text");
    let has = capabilities(None).unwrap().effective;
    assert!(has.contains(CapabilitySet::DAC_OVERRIDE | CapabilitySet::CHOWN));
}

#[test]
fn a_file_does_not_keep_rights_that_its_writer_has_not() {
    if !is_root() {
        hvl_test_kit::skipped(
            "a_file_does_not_keep_rights_that_its_writer_has_not needs root, whose rights are kept",
        );
        return;
    }
    // In a thread of its own, which gives up what the program gives up at its start. In memory, whose files are written
    // by the event loop, too.
    let test = || {
        crate::privileges::as_a_server();
        let folder = Folder::within(Path::new("/dev/shm"));
        let path = folder.write("tree/f", "host");
        let mut client = Client::on(&folder);
        let rights = || path.metadata().unwrap().mode() & 0o6000;
        for act in 0..5 {
            // One of the acts changes the owner, and the event loop writes only to files that pmm's user owns.
            std::os::unix::fs::chown(&path, Some(0), None).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o6755)).unwrap();
            client.reach(1, "f");
            let link = client.ask(Request::Link { directory: ROOT, fid: 1, name: b"second" });
            assert_eq!((link.errno(), rights()), (Errno::PERM, 0o6000));
            let open = |flags| Request::Lopen { fid: 1, flags };
            let attr = match act {
                0 => SetAttr { size: 2, ..set(setattr::SIZE) },
                1 => SetAttr { uid: 7, ..set(setattr::UID) },
                _ => set(0),
            };
            client.ask(Request::Setattr { fid: 1, attr }).ok();
            match act {
                2 => client.ask(open(open::WRITE_ONLY | open::TRUNCATE)).ok(),
                3 => {
                    client.ask(open(open::WRITE_ONLY)).ok();
                    client.write(1, 0, b"guest").ok();
                }
                4 => {
                    client.ask(open(open::WRITE_ONLY)).ok();
                    assert!(super::at_once::writes_at_once(&client, 1), "a file in memory");
                }
                _ => {}
            }
            assert_eq!(rights(), 0, "act {act}");
            client.clunk(1).ok();
        }
    };
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn passed_ids_own_what_they_make() {
    if !is_root() {
        hvl_test_kit::skipped("passed_ids_own_what_they_make needs root, which alone may give files away");
        return;
    }
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    client.ask(Request::Attach { fid: 5, afid: NO_FID, user: b"", tree: b"", uid: 4711 }).ok();
    client.ask(Request::Mkdir { directory: 5, name: b"d", mode: 0o755, gid: 4712 }).ok();
    client.ask(Request::Lcreate { fid: 5, name: b"f", flags: open::WRITE_ONLY, mode: 0o600, gid: 4713 }).ok();
    for (name, gid) in [("d", 4712), ("f", 4713)] {
        let made = folder.tree().join(name).metadata().unwrap();
        assert_eq!((made.uid(), made.gid()), (4711, gid));
    }
}

#[test]
fn statfs_tells_of_the_file_system() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    let answer = client.ask(Request::Statfs { fid: ROOT });
    let Reply::Statfs { statfs } = answer.get() else { panic!("{answer:?}") };
    let host = rustix::fs::statfs(folder.tree()).unwrap();
    assert_eq!((statfs.blocks, statfs.name_length), (host.f_blocks, 255));
    assert_eq!(client.ask(Request::Statfs { fid: 9 }).errno(), Errno::BADF);
}

// Extended attributes.

fn set_xattr(client: &mut Client, path: &str, name: &[u8], value: &[u8], flags: u32) -> Result<(), Errno> {
    const FID: u32 = 900;
    client.reach(FID, path);
    let created = client.ask(Request::Xattrcreate { fid: FID, name, size: value.len() as u64, flags });
    if let Reply::Error { errno } = created.get() {
        client.clunk(FID).ok();
        return Err(errno);
    }
    if !value.is_empty() {
        client.write(FID, 0, value).ok();
    }
    match client.clunk(FID).get() {
        Reply::Error { errno } => Err(errno),
        _ => Ok(()),
    }
}

fn get_xattr(client: &mut Client, path: &str, name: &[u8]) -> Result<Vec<u8>, Errno> {
    client.reach(901, path);
    let answer = client.ask(Request::Xattrwalk { fid: 901, new_fid: 902, name });
    let value = match answer.get() {
        Reply::Error { errno } => Err(errno),
        Reply::Xattrwalk { size } => {
            let value = client.read(902, 0, 1 << 17).payload().to_vec();
            assert_eq!(value.len() as u64, size);
            client.clunk(902).ok();
            Ok(value)
        }
        other => panic!("{other:?}"),
    };
    client.clunk(901).ok();
    value
}

#[test]
fn extended_attributes_of_users() {
    let folder = Folder::new();
    folder.write("tree/f", "");
    let mut client = Client::on(&folder);
    match set_xattr(&mut client, "f", b"user.one", b"value", 0) {
        Err(Errno::OPNOTSUPP) => {
            hvl_test_kit::skipped(
                "extended_attributes_of_users: the temporary directory has no such attributes",
            );
            return;
        }
        other => other.unwrap(),
    }
    assert_eq!(get_xattr(&mut client, "f", b"user.one"), Ok(b"value".to_vec()));
    assert_eq!(get_xattr(&mut client, "f", b"user.two"), Err(Errno::NODATA));
    assert_eq!(set_xattr(&mut client, "f", b"user.one", b"x", xattr::CREATE), Err(Errno::EXIST));
    assert_eq!(set_xattr(&mut client, "f", b"user.two", b"x", xattr::REPLACE), Err(Errno::NODATA));
    assert_eq!(set_xattr(&mut client, "f", b"user.two", b"x", xattr::CREATE), Ok(()));
    let list = get_xattr(&mut client, "f", b"").unwrap();
    let mut names: Vec<_> = list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort();
    assert_eq!(names, [b"user.one", b"user.two"]);
    assert_eq!(set_xattr(&mut client, "f", b"user.one", b"", 0), Ok(()));
    assert_eq!(get_xattr(&mut client, "f", b"user.one"), Ok(vec![]), "an empty value is a value");
    assert_eq!(set_xattr(&mut client, "f", b"user.new", b"", xattr::CREATE), Ok(()));
    assert_eq!(get_xattr(&mut client, "f", b"user.new"), Ok(vec![]));
    for name in [&b"user.one"[..], b"user.new"] {
        assert_eq!(set_xattr(&mut client, "f", name, b"", xattr::REPLACE), Ok(()), "so Linux removes it");
        assert_eq!(get_xattr(&mut client, "f", name), Err(Errno::NODATA));
        assert_eq!(set_xattr(&mut client, "f", name, b"", xattr::REPLACE), Err(Errno::NODATA));
    }
    // Parts of a value.
    client.reach(1, "f");
    client.ask(Request::Xattrwalk { fid: 1, new_fid: 2, name: b"user.two" }).ok();
    assert_eq!(client.read(2, 1, 9).payload(), b"");
    assert_eq!(client.read(2, u64::MAX, 9).payload(), b"");
}

#[test]
fn extended_attributes_of_the_host_are_not_the_clients() {
    let folder = Folder::new();
    folder.write("tree/f", "");
    std::os::unix::fs::symlink("f", folder.tree().join("link")).unwrap();
    let mut client = Client::on(&folder);
    for name in
        [&b"security.capability"[..], b"trusted.x", b"system.posix_acl_access", b"user.", b"user", b"x"]
    {
        assert_eq!(set_xattr(&mut client, "f", name, b"x", 0), Err(Errno::OPNOTSUPP));
        assert_eq!(get_xattr(&mut client, "f", name), Err(Errno::OPNOTSUPP));
    }
    assert_eq!(set_xattr(&mut client, "link", b"user.x", b"x", 0), Err(Errno::OPNOTSUPP), "links have none");
    assert_eq!(get_xattr(&mut client, "link", b""), Ok(vec![]));
    let long = [b"user.".to_vec(), vec![b'x'; 255]].concat();
    assert_eq!(set_xattr(&mut client, "f", &long, b"x", 0), Err(Errno::RANGE));
}

// Locks.

fn ask_lock(client: &mut Client, fid: u32, kind: u8, start: u64, length: u64) -> Result<u8, Errno> {
    let lock = Lock { kind, flags: lock::BLOCK, start, length, process: 1, client: b"me" };
    match client.ask(Request::Lock { fid, lock }).get() {
        Reply::Lock { status } => Ok(status),
        Reply::Error { errno } => Err(errno),
        other => panic!("{other:?}"),
    }
}

#[test]
fn locks_stand_between_clients() {
    let folder = Folder::new();
    folder.write("tree/f", "");
    let export = Export::open(&folder.tree(), "tag", Rules::default(), "test").unwrap();
    let (mut one, mut two) = (Client::attached(&export), Client::attached(&export));
    for client in [&mut one, &mut two] {
        client.reach_open(1, "f", open::READ_WRITE);
    }
    assert_eq!(ask_lock(&mut one, 1, lock::WRITE, 10, 10), Ok(lock::SUCCESS));
    assert_eq!(ask_lock(&mut two, 1, lock::READ, 19, 1), Ok(lock::BLOCKED), "and not waited for longer");
    assert_eq!(ask_lock(&mut two, 1, lock::READ, 20, 0), Ok(lock::SUCCESS));
    let asked = GetLock { kind: lock::WRITE, start: 0, length: 0, process: 7, client: b"you" };
    let found = GetLock { kind: lock::WRITE, start: 10, length: 10, process: 1, client: b"me" };
    assert_eq!(one.getlock(asked), GetLock { kind: lock::READ, start: 20, length: 0, ..found });
    assert_eq!(two.getlock(asked), found);
    // So Linux asks, always.
    assert_eq!(two.getlock(GetLock { kind: lock::UNLOCK, ..asked }), found);
    assert_eq!(ask_lock(&mut one, 1, lock::UNLOCK, 0, 0), Ok(lock::SUCCESS));
    let free = GetLock { kind: lock::UNLOCK, ..asked };
    assert_eq!(two.ask(Request::Getlock { fid: 1, lock: asked }).get(), Reply::Getlock { lock: free });
    assert_eq!(ask_lock(&mut one, 1, lock::WRITE, 0, 0), Ok(lock::BLOCKED));
    two.clunk(1).ok();
    assert_eq!(ask_lock(&mut one, 1, lock::WRITE, 0, 0), Ok(lock::SUCCESS), "a lock ends with its fid");
}

/// One round of [`a_lock_is_waited_for_a_moment`]: what became of the two that waited, and whether the third did not.
fn lock_round(holder: &mut Client, session: &Session) -> (Vec<u8>, bool) {
    assert_eq!(ask_lock(holder, 1, lock::WRITE, 0, 0), Ok(lock::SUCCESS));
    let ask = |tag| {
        let lock =
            Lock { kind: lock::READ, flags: lock::BLOCK, start: 0, length: 9, process: 1, client: b"me" };
        let mut bytes = vec![0; 4096];
        let length = Request::Lock { fid: 1, lock }.emit(tag, &[], &mut bytes).unwrap();
        let mut reply = Vec::new();
        session.reply_to(&bytes[..length], &mut reply, usize::MAX);
        match Reply::parse(&reply).unwrap().message {
            Reply::Lock { status } => status,
            other => panic!("{other:?}"),
        }
    };
    std::thread::scope(|scope| {
        let waiters = [1, 2].map(|tag| scope.spawn(move || ask(tag)));
        let waiting = || session.waiting.load(Ordering::Relaxed);
        while waiting() < 2 && !waiters.iter().any(|waiter| waiter.is_finished()) {
            std::thread::yield_now();
        }
        assert_eq!(ask(3), lock::BLOCKED);
        let at_once = waiting() == 2;
        assert_eq!(ask_lock(holder, 1, lock::UNLOCK, 0, 0), Ok(lock::SUCCESS));
        (waiters.map(|waiter| waiter.join().unwrap()).to_vec(), at_once)
    })
}

#[test]
fn a_lock_is_waited_for_a_moment() {
    let folder = Folder::new();
    folder.write("tree/f", "");
    let export = Export::open(&folder.tree(), "tag", Rules::default(), "test").unwrap();
    let (mut one, mut two) = (Client::attached(&export), Client::attached(&export));
    for client in [&mut one, &mut two] {
        client.reach_open(1, "f", open::READ_WRITE);
    }
    // Two places, and one that is given back can be taken again.
    let places = [1, 2].map(|_| two.session.waiting(lock::BLOCK).unwrap());
    assert!(two.session.waiting(lock::BLOCK).is_none());
    drop(places);
    // On a busy machine the moment may be over before the lock is free; a client would ask again.
    let waited = (0..20).any(|_| {
        let waited = lock_round(&mut one, &two.session) == (vec![lock::SUCCESS; 2], true);
        assert_eq!(ask_lock(&mut two, 1, lock::UNLOCK, 0, 0), Ok(lock::SUCCESS));
        waited
    });
    assert!(waited, "two wait until it is free, and a third is answered meanwhile");
    assert_eq!(two.session.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn a_lock_that_is_in_the_way_has_an_owner() {
    let folder = Folder::new();
    let path = folder.write("tree/f", "");
    let export = Export::open(&folder.tree(), "tag", Rules::default(), "test").unwrap();
    let (mut one, mut two) = (Client::attached(&export), Client::attached(&export));
    for client in [&mut one, &mut two] {
        client.reach_open(1, "f", open::READ_WRITE);
    }
    let hold = |client: &mut Client, kind, start, length, process, name| {
        let lock = Lock { kind, flags: 0, start, length, process, client: name };
        assert_eq!(client.ask(Request::Lock { fid: 1, lock }).get(), Reply::Lock { status: lock::SUCCESS });
    };
    let asked = GetLock { kind: lock::UNLOCK, start: 0, length: 0, process: 7, client: b"you" };
    hold(&mut one, lock::WRITE, 0, 100, 41, b"board");
    // The middle given up, one half given to another process: what is left keeps its owners.
    hold(&mut one, lock::UNLOCK, 40, 20, 41, b"board");
    hold(&mut one, lock::READ, 60, 40, 42, b"board");
    let at = |start, client: &mut Client| {
        let found = client.getlock(GetLock { start, length: 1, ..asked });
        (found.kind, found.start, found.length, found.process)
    };
    assert_eq!(at(39, &mut two), (lock::WRITE, 0, 40, 41));
    assert_eq!(at(50, &mut two), (lock::UNLOCK, 50, 1, 7));
    assert_eq!(at(60, &mut two), (lock::READ, 60, 40, 42));
    assert_eq!(two.getlock(asked).client, b"board");
    // One whose name nobody can keep, and a program of the host, have none.
    one.ask(Request::Lock { fid: 1, lock: Lock { kind: lock::UNLOCK, ..Lock::default() } }).ok();
    hold(&mut one, lock::WRITE, 0, 0, 43, &[b'x'; 65]);
    assert_eq!((two.getlock(asked).process, two.getlock(asked).client), (43, &b""[..]));
    one.clunk(1).ok();
    let host = std::fs::File::options().write(true).open(&path).unwrap();
    assert!(crate::sys::lock_range(std::os::fd::AsFd::as_fd(&host), 5, 1).unwrap());
    assert_eq!((at(5, &mut two), two.getlock(asked).client), ((lock::WRITE, 5, 1, 0), &b""[..]));
}

#[test]
fn locks_without_end() {
    let folder = Folder::new();
    folder.write("tree/f", "");
    folder.write("tree/g", "");
    let mut client = Client::on(&folder);
    client.reach_open(1, "f", open::READ_WRITE);
    client.reach_open(2, "g", open::READ_WRITE);
    // Neighbours are one.
    for byte in 0..5000 {
        assert_eq!(ask_lock(&mut client, 1, lock::READ, byte, 1), Ok(lock::SUCCESS));
    }
    let refused =
        (0..5000).find_map(|n| ask_lock(&mut client, 2, lock::READ, 2 * n, 1).err().map(|e| (n, e)));
    assert_eq!(refused, Some((4094, Errno::NOLCK)));
    assert_eq!(ask_lock(&mut client, 1, lock::UNLOCK, 10, 1), Err(Errno::NOLCK), "it would be two");
    assert_eq!(ask_lock(&mut client, 2, lock::UNLOCK, 0, 0), Ok(lock::SUCCESS));
    assert_eq!(ask_lock(&mut client, 1, lock::UNLOCK, 10, 1), Ok(lock::SUCCESS));
}

#[test]
fn a_reader_that_may_not_write_holds_nobody_up() {
    let folder = Folder::new();
    let path = folder.write("tree/region", [0; 64]);
    let mut client = Client::with(&folder, Rules { read_only: true, ..Rules::default() });
    client.reach_open(1, "region", open::READ_ONLY);
    assert_eq!(ask_lock(&mut client, 1, lock::READ, 0, 0), Ok(lock::SUCCESS));
    assert_eq!(ask_lock(&mut client, 1, lock::WRITE, 0, 0), Err(Errno::BADF));
    let host = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let lock = |start| crate::sys::lock_range(std::os::fd::AsFd::as_fd(&host), start, 1).unwrap();
    assert!(lock(0), "the host's own program has its file");
    // It is told of the writer.
    assert_eq!(ask_lock(&mut client, 1, lock::READ, 0, 0), Ok(lock::BLOCKED));
    assert_eq!(ask_lock(&mut client, 1, lock::READ, 1, 0), Ok(lock::SUCCESS));
    assert_eq!(ask_lock(&mut client, 1, lock::UNLOCK, 0, 0), Ok(lock::SUCCESS));
    assert!(lock(1));
    let asked = GetLock { kind: lock::READ, start: 0, length: 1, process: 0, client: b"" };
    assert_eq!(client.getlock(asked).kind, lock::WRITE);
}

#[test]
fn lock_errors() {
    let folder = Folder::new();
    folder.write("tree/f", "");
    let mut client = Client::on(&folder);
    client.reach(1, "f");
    assert_eq!(ask_lock(&mut client, 1, lock::READ, 0, 0), Err(Errno::BADF), "not open");
    client.ask(Request::Lopen { fid: 1, flags: open::READ_ONLY }).ok();
    assert_eq!(ask_lock(&mut client, 1, lock::WRITE, 0, 0), Err(Errno::BADF), "not for writing");
    assert_eq!(ask_lock(&mut client, 1, 3, 0, 0), Err(Errno::INVAL));
    assert_eq!(ask_lock(&mut client, 1, lock::READ, u64::MAX, 0), Err(Errno::INVAL));
    let asked = GetLock { kind: 3, start: 0, length: 0, process: 0, client: b"" };
    assert_eq!(client.ask(Request::Getlock { fid: 1, lock: asked }).errno(), Errno::INVAL);
    let lock = Lock { kind: lock::READ, flags: 4, start: 0, length: 0, process: 0, client: b"" };
    assert_eq!(client.ask(Request::Lock { fid: 1, lock }).errno(), Errno::INVAL);
}

#[test]
fn permissions_of_the_host_hold() {
    // In a thread of its own, which gives up what makes root's permissions different.
    let refused = || {
        let folder = Folder::new();
        let file = folder.write("tree/f", "");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o0)).unwrap();
        let mut has = capabilities(None).unwrap();
        has.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
        set_capabilities(None, has).unwrap();
        Client::on(&folder).content("f")
    };
    assert_eq!(std::thread::spawn(refused).join().unwrap(), Err(Errno::ACCES));
}
