//! The client against the PMM's own file server, on a real directory: one case for each call, and the errors that its
//! user meets.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use hvl_files::{Guest, Pmm, Same, Wire};
use hvl_frontend::Wait;
use hvl_frontend::device::p9::{FileError, Files, PATH};
use hvl_pmm::host::export::{Export, Rules, Session};
use hvl_pmm::host::{Conversation, Conversations, Guests, Transfer};
use hvl_shared_abi::wire::p9::{Entries, Errno, GetLock, Lock, Request, SetAttr, lock, open, setattr};

/// A directory of one test, which goes with it, and a guest that may use it.
struct World {
    root: PathBuf,
    wire: Wire,
    pmm: Option<Pmm>,
    files: Files<'static, Wire>,
}

impl World {
    fn new() -> World {
        World::with(Rules::default())
    }

    fn with(rules: Rules) -> World {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(format!("hvl-files-{}-{}", id.0, id.1));
        fs::create_dir(&root).unwrap();
        let wire = Wire::new();
        let pmm = Some(Pmm::start(&wire, Guests(export(&root, rules))));
        let files = Guest::boot(&wire, Duration::from_secs(20)).files;
        World { root, wire, pmm, files }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Another PMM for the same guest.
    fn restart(&mut self) {
        self.pmm = None;
        self.pmm = Some(Pmm::start(&self.wire, Guests(export(&self.root, Rules::default()))));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn export(root: &Path, rules: Rules) -> Arc<Export> {
    Export::open(root, "host", rules, "the test's directory").expect("a directory that can be exported")
}

fn refused<T>(errno: Errno) -> Result<T, FileError> {
    Err(FileError::Refused(errno))
}

/// Every name in a directory but its own, sorted.
fn names(files: &mut Files<'static, Wire>, path: &[u8]) -> Result<Vec<String>, FileError> {
    let (mut dir, mut found, mut bytes) = (files.open_dir(path)?, Vec::new(), [0; 600]);
    loop {
        let entries: Entries<'_> = files.entries(&mut dir, &mut bytes)?;
        let before = found.len();
        for entry in entries {
            found.push(String::from_utf8_lossy(entry.map_err(|_| FileError::Malformed)?.name).into_owned());
        }
        if found.len() == before {
            break;
        }
    }
    files.close(dir.into_file())?;
    found.retain(|name| name != "." && name != "..");
    found.sort();
    Ok(found)
}

#[test]
fn what_is_written_is_in_the_file_and_what_is_in_the_file_is_read() {
    let mut world = World::new();
    let mut file = world.files.create(b"a", open::READ_WRITE, 0o640).unwrap();
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i ^ i >> 8) as u8).collect();
    let mut done = 0;
    while done < bytes.len() {
        done += world.files.write(&mut file, done as u64, &bytes[done..]).unwrap();
    }
    assert!(fs::read(world.path("a")).unwrap() == bytes);
    assert_eq!(fs::metadata(world.path("a")).unwrap().mode() & 0o777, 0o640);
    let mut read = vec![0; bytes.len() + 10];
    let mut got = 0;
    loop {
        match world.files.read(&mut file, got as u64, &mut read[got..]).unwrap() {
            0 => break,
            count => got += count,
        }
    }
    assert!(got == bytes.len() && read[..got] == bytes);
    assert_eq!(world.files.read(&mut file, 1 << 40, &mut read), Ok(0), "behind the end");
    assert_eq!(world.files.sync(&mut file, true), Ok(()));
    assert_eq!(world.files.sync(&mut file, false), Ok(()));
    assert_eq!(world.files.stat_file(&mut file).map(|attr| attr.size), Ok(300_000));
    assert_eq!(world.files.close(file), Ok(()));
}

#[test]
fn several_reads_and_writes_are_under_way_at_once() {
    let mut world = World::new();
    let file = world.files.create(b"a", open::READ_WRITE, 0o600).unwrap();
    let wait = |world: &mut World| world.wire.wait_for_doorbell(world.files.next_deadline());
    let started: Vec<_> = (0..4u8)
        .map(|i| world.files.start_write(&file, u64::from(i) * 10, &[b'0' + i; 10]).unwrap())
        .collect();
    for (ticket, count) in started {
        let mut ticket = Some(ticket);
        loop {
            match world.files.finish_write(&mut ticket) {
                Err(FileError::WouldBlock) => wait(&mut world),
                done => break assert_eq!(done, Ok(count)),
            }
        }
    }
    let started: Vec<_> = (0..4u64).map(|i| world.files.start_read(&file, i * 10, 10).unwrap()).collect();
    for (i, ticket) in (0..4u8).zip(started).rev() {
        let (mut ticket, mut into) = (Some(ticket), [0; 10]);
        loop {
            match world.files.finish_read(&mut ticket, &mut into) {
                Err(FileError::WouldBlock) => wait(&mut world),
                done => break assert_eq!((done, into), (Ok(10), [b'0' + i; 10])),
            }
        }
    }
}

#[test]
fn opening() {
    let mut world = World::new();
    fs::write(world.path("a"), "abc").unwrap();
    fs::create_dir(world.path("d")).unwrap();
    assert_eq!(world.files.open_file(b"b", open::READ_ONLY).map(|_| ()), refused(Errno::NOENT));
    assert_eq!(world.files.open_file(b"d", open::WRITE_ONLY).map(|_| ()), refused(Errno::ISDIR));
    assert_eq!(world.files.open_file(b"a/b", open::READ_ONLY).map(|_| ()), refused(Errno::NOTDIR));
    assert_eq!(world.files.open_dir(b"a").map(|_| ()), refused(Errno::NOTDIR));
    let exclusive = open::WRITE_ONLY | open::EXCLUSIVE;
    assert_eq!(world.files.create(b"a", exclusive, 0o600).map(|_| ()), refused(Errno::EXIST));
    assert_eq!(fs::read(world.path("a")).unwrap(), b"abc");
    let cut = world.files.create(b"a", open::WRITE_ONLY | open::TRUNCATE, 0o600).unwrap();
    assert_eq!(fs::read(world.path("a")).unwrap(), b"");
    assert_eq!(world.files.close(cut), Ok(()));
    let mut read_only = world.files.open_file(b"a", open::READ_ONLY).unwrap();
    assert_eq!(world.files.write(&mut read_only, 0, b"x"), refused(Errno::BADF));
    assert_eq!(world.files.close(read_only), Ok(()));
    let long = vec![b'x'; PATH + 1];
    assert_eq!(world.files.open_file(&long, open::READ_ONLY).map(|_| ()), Err(FileError::TooLong));
}

#[test]
fn more_files_than_a_client_can_have_open_are_refused_and_closed_ones_make_room() {
    let mut world = World::new();
    fs::write(world.path("a"), "").unwrap();
    let mut open_files = Vec::new();
    let refused = loop {
        match world.files.open_file(b"a", open::READ_ONLY) {
            Ok(file) => open_files.push(file),
            Err(error) => break error,
        }
    };
    assert_eq!((refused, open_files.len()), (FileError::TooManyFiles, 31));
    world.files.close(open_files.pop().unwrap()).unwrap();
    let again = world.files.open_file(b"a", open::READ_ONLY).unwrap();
    open_files.push(again);
    for file in open_files {
        world.files.close(file).unwrap();
    }
}

#[test]
fn directories() {
    let mut world = World::new();
    assert_eq!(names(&mut world.files, b""), Ok(vec![]));
    assert_eq!(world.files.mkdir(b"d", 0o750), Ok(()));
    assert_eq!(world.files.mkdir(b"d", 0o750), refused(Errno::EXIST));
    assert_eq!(world.files.mkdir(b"/d/e/", 0o750), Ok(()));
    assert_eq!(world.files.mkdir(b"x/y", 0o750), refused(Errno::NOENT));
    assert_eq!(fs::metadata(world.path("d")).unwrap().mode() & 0o777, 0o750);
    let mut expected: Vec<_> = (0..500).map(|i| format!("file-{i:03}")).collect();
    for name in &expected {
        fs::write(world.path("d").join(name), "").unwrap();
    }
    expected.insert(0, "e".into());
    assert_eq!(names(&mut world.files, b"d"), Ok(expected));
    assert_eq!(world.files.rmdir(b"d"), refused(Errno::NOTEMPTY));
    assert_eq!(world.files.unlink(b"d/e"), refused(Errno::ISDIR));
    assert_eq!(world.files.rmdir(b"d/e"), Ok(()));
    assert_eq!(world.files.rmdir(b"d/file-000"), refused(Errno::NOTDIR));
    assert_eq!(world.files.unlink(b"d/file-000"), Ok(()));
    assert_eq!(world.files.unlink(b"d/file-000"), refused(Errno::NOENT));
    assert_eq!(fs::read_dir(world.path("d")).unwrap().count(), 499);
}

#[test]
fn a_path_of_more_names_than_one_walk_takes() {
    let mut world = World::new();
    let path = "a/".repeat(40);
    fs::create_dir_all(world.path(&path)).unwrap();
    fs::write(world.path(&path).join("f"), "deep").unwrap();
    assert_eq!(world.files.stat(format!("{path}f").as_bytes()).map(|attr| attr.size), Ok(4));
    let beyond = format!("{path}g/h");
    assert_eq!(world.files.stat(beyond.as_bytes()).map(|_| ()), refused(Errno::NOENT));
    // What a walk that ended on the way has used is free again.
    for _ in 0..100 {
        assert_eq!(world.files.stat(beyond.as_bytes()).map(|_| ()), refused(Errno::NOENT));
    }
}

#[test]
fn names_that_lead_nowhere() {
    let mut world = World::new();
    fs::write(world.path("a"), "inside").unwrap();
    assert_eq!(world.files.stat(b"../../../etc/passwd").map(|_| ()), refused(Errno::NOENT));
    assert_eq!(world.files.stat(b"/../a").map(|attr| attr.size), Ok(6), "the root is its own parent");
    assert_eq!(world.files.mkdir(b"..", 0o700).map(|_| ()), refused(Errno::INVAL));
    assert!(world.files.mkdir(b"a\0b", 0o700).is_err());
}

#[test]
fn attributes() {
    let mut world = World::new();
    fs::write(world.path("a"), "abcdef").unwrap();
    let found = world.files.stat(b"a").unwrap();
    let meta = fs::metadata(world.path("a")).unwrap();
    assert_eq!((found.size, found.mode, found.links), (6, meta.mode(), meta.nlink()));
    assert_eq!(found.modified.seconds, meta.mtime() as u64);
    let shorter = SetAttr { valid: setattr::SIZE, size: 2, ..SetAttr::default() };
    assert_eq!(world.files.set(b"a", shorter), Ok(()));
    assert_eq!(fs::read(world.path("a")).unwrap(), b"ab");
    // Bits that would give a program another's rights are left out.
    let mode = SetAttr { valid: setattr::MODE, mode: 0o6755, ..SetAttr::default() };
    assert_eq!(world.files.set(b"a", mode), Ok(()));
    assert_eq!(fs::metadata(world.path("a")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(world.files.set(b"b", shorter), refused(Errno::NOENT));
    assert!(world.files.statfs().is_ok_and(|all| all.blocks != 0 && all.block_size != 0));
}

#[test]
fn names_and_links() {
    let mut world = World::new();
    fs::write(world.path("a"), "abc").unwrap();
    fs::create_dir(world.path("d")).unwrap();
    assert_eq!(world.files.rename(b"a", b"d/b"), Ok(()));
    assert_eq!(fs::read(world.path("d/b")).unwrap(), b"abc");
    assert_eq!(world.files.rename(b"a", b"c"), refused(Errno::NOENT));
    assert_eq!(world.files.hard_link(b"d/b", b"c"), Ok(()));
    assert_eq!(fs::metadata(world.path("c")).unwrap().nlink(), 2);
    assert_eq!(world.files.hard_link(b"d/b", b"c"), refused(Errno::EXIST));
    assert_eq!(world.files.symlink(b"/etc/passwd", b"s"), Ok(()));
    assert_eq!(fs::read_link(world.path("s")).unwrap(), Path::new("/etc/passwd"));
    let mut target = [0; 64];
    assert_eq!(world.files.readlink(b"s", &mut target), Ok(&b"/etc/passwd"[..]));
    assert_eq!(world.files.readlink(b"s", &mut [0; 4]), Err(FileError::TooLong));
    assert_eq!(world.files.readlink(b"c", &mut target).map(|_| ()), refused(Errno::INVAL));
    assert!(world.files.open_file(b"s", open::READ_ONLY).is_err(), "nobody follows a link for the client");
    assert_eq!(world.files.unlink(b"s"), Ok(()));
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn extended_attributes() {
    let mut world = World::new();
    fs::write(world.path("a"), "").unwrap();
    let mut into = [0; 256];
    match world.files.set_xattr(b"a", b"user.colour", b"blue", 0) {
        Err(FileError::Refused(Errno::OPNOTSUPP)) => {
            hvl_test_kit::skipped(format!("{} has no extended attributes", world.root.display()));
            return;
        }
        other => assert_eq!(other, Ok(())),
    }
    assert_eq!(world.files.xattr(b"a", b"user.colour", &mut into), Ok(&b"blue"[..]));
    assert_eq!(world.files.xattr(b"a", b"", &mut into), Ok(&b"user.colour\0"[..]));
    assert_eq!(world.files.xattr(b"a", b"user.colour", &mut [0; 2]).map(|_| ()), Err(FileError::TooLong));
    assert_eq!(world.files.xattr(b"a", b"user.none", &mut into).map(|_| ()), refused(Errno::NODATA));
    // What was refused has left nothing in use.
    for _ in 0..100 {
        assert!(world.files.xattr(b"a", b"user.none", &mut into).is_err());
    }
}

#[test]
fn locks() {
    let mut world = World::new();
    let mut one = world.files.create(b"a", open::READ_WRITE, 0o600).unwrap();
    let mut other = world.files.open_file(b"a", open::READ_WRITE).unwrap();
    let wanted = |kind| Lock { kind, length: 10, process: 1, client: b"r5", ..Lock::default() };
    assert_eq!(world.files.lock(&mut one, wanted(lock::WRITE)), Ok(lock::SUCCESS));
    assert_eq!(world.files.lock(&mut other, wanted(lock::READ)), Ok(lock::BLOCKED));
    let question = GetLock { kind: lock::WRITE, length: 10, process: 2, client: b"r5", ..GetLock::default() };
    assert!(matches!(world.files.lock_in_the_way(&mut other, question), Ok((lock::WRITE, 0, 10))));
    assert_eq!(world.files.lock(&mut one, wanted(lock::UNLOCK)), Ok(lock::SUCCESS));
    assert_eq!(world.files.lock(&mut other, wanted(lock::READ)), Ok(lock::SUCCESS));
}

#[test]
fn nothing_changes_in_an_export_that_is_read_only() {
    let mut world = World::with(Rules { read_only: true, ..Rules::default() });
    fs::write(world.path("a"), "abc").unwrap();
    let files = &mut world.files;
    assert_eq!(files.mkdir(b"d", 0o700), refused(Errno::ROFS));
    assert_eq!(files.unlink(b"a"), refused(Errno::ROFS));
    assert_eq!(files.rename(b"a", b"b"), refused(Errno::ROFS));
    assert_eq!(files.symlink(b"a", b"b"), refused(Errno::ROFS));
    assert_eq!(files.hard_link(b"a", b"b"), refused(Errno::ROFS));
    assert_eq!(files.create(b"b", open::WRITE_ONLY, 0o600).map(|_| ()), refused(Errno::ROFS));
    assert_eq!(files.open_file(b"a", open::WRITE_ONLY).map(|_| ()), refused(Errno::ROFS));
    let attr = SetAttr { valid: setattr::SIZE, ..SetAttr::default() };
    assert_eq!(files.set(b"a", attr), refused(Errno::ROFS));
    let mut file = files.open_file(b"a", open::READ_ONLY).unwrap();
    assert_eq!(files.read(&mut file, 0, &mut [0; 8]), Ok(3));
}

#[test]
fn after_a_restart_paths_work_at_once_and_an_open_file_is_stale_once() {
    let mut world = World::new();
    let mut file = world.files.create(b"a", open::READ_WRITE | open::TRUNCATE, 0o600).unwrap();
    assert_eq!(world.files.write(&mut file, 0, b"acknowledged"), Ok(12));
    world.restart();
    assert_eq!(world.files.stat(b"a").map(|attr| attr.size), Ok(12), "a path needs no step");
    let mut into = [0; 20];
    assert_eq!(world.files.read(&mut file, 0, &mut into), Err(FileError::Stale));
    assert_eq!(world.files.read(&mut file, 0, &mut into), Ok(12), "opened again, and not cut to nothing");
    assert_eq!(&into[..12], b"acknowledged");
    world.restart();
    fs::remove_file(world.path("a")).unwrap();
    assert_eq!(world.files.read(&mut file, 0, &mut into), Err(FileError::Stale));
    assert_eq!(world.files.read(&mut file, 0, &mut into), refused(Errno::NOENT));
    world.restart();
    assert_eq!(world.files.close(file), Ok(()), "what is not open any more can be closed");
}

/// A conversation is a client: what one has open, another has not.
#[test]
fn each_session_of_a_guest_is_another_client() {
    let world = World::new();
    let guests = Guests(export(&world.root, Rules::default()));
    let (one, other): (Arc<dyn Conversation>, Arc<dyn Conversation>) = (guests.begin(), guests.begin());
    assert!(!Arc::ptr_eq(&one, &other));
}

/// The PMM's server, with a gate before each write.
struct Gated {
    session: Session,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

#[derive(Default)]
struct Gate {
    held: usize,
    open: bool,
}

impl Conversation for Gated {
    fn handle(&self, request: &[u8], answer: &mut Vec<u8>, room: usize) {
        if matches!(Request::parse(request).map(|parsed| parsed.message), Ok(Request::Write { .. })) {
            let (gate, news) = &*self.gate;
            gate.lock().unwrap().held += 1;
            news.notify_all();
            drop(news.wait_while(gate.lock().unwrap(), |gate| !gate.open).unwrap());
        }
        self.session.reply_to(request, answer, room);
    }

    fn at_once(&self, transfer: Transfer<'_>) -> Option<u32> {
        let reads = matches!(transfer.request.message, Request::Read { .. });
        reads.then(|| self.session.at_once(transfer)).flatten()
    }
}

#[test]
fn what_is_in_memory_is_read_while_every_worker_is_held() {
    let root = std::path::PathBuf::from(format!("/dev/shm/hvl-files-{}-gated", std::process::id()));
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a"), b"0123456789").unwrap();
    let gate = Arc::<(Mutex<Gate>, Condvar)>::default();
    let session = Session::new(export(&root, Rules::default()));
    let wire = Wire::new();
    let _pmm = Pmm::start(&wire, Same(Arc::new(Gated { session, gate: gate.clone() })));
    let mut files = Guest::boot(&wire, Duration::from_secs(20)).files;
    let mut file = files.open_file(b"a", open::READ_WRITE).unwrap();
    // As many as there are workers.
    let writes: Vec<_> = (0..4u64).map(|i| files.start_write(&file, i, b"x").unwrap()).collect();
    let wait_for = |held: usize| {
        let late = Duration::from_secs(20);
        let (_gate, late) =
            gate.1.wait_timeout_while(gate.0.lock().unwrap(), late, |gate| gate.held != held).unwrap();
        assert!(!late.timed_out(), "{held} writes stand at the gate within 20 s");
    };
    wait_for(4);
    let mut into = [0; 20];
    assert_eq!(files.read(&mut file, 2, &mut into), Ok(8));
    assert_eq!(&into[..8], b"23456789");

    gate.0.lock().unwrap().open = true;
    gate.1.notify_all();
    for write in writes {
        let mut ticket = Some(write.0);
        loop {
            match files.finish_write(&mut ticket) {
                Err(FileError::WouldBlock) => wire.wait_for_doorbell(files.next_deadline()),
                done => break assert_eq!(done, Ok(1)),
            }
        }
    }
    assert_eq!(fs::read(root.join("a")).unwrap(), b"xxxx456789");
    fs::remove_dir_all(root).unwrap();
}
