//! Ways out of the export, and what must not be touched inside it. Beside the tree lies `outside`; nobody may see,
//! change or open what is there.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use hvl_shared_abi::wire::p9::{AT_REMOVEDIR, MAX_WALK, SetAttr, mode, setattr};
use rustix::fs::{CWD, OFlags, RenameFlags, ResolveFlags};

use super::resolve::{Between, Confined, Root};
use super::*;

/// A tree with `inside`, beside an `outside` with the same names.
fn two_sides() -> Folder {
    let folder = Folder::new();
    folder.write("outside/secret", "outside");
    folder.write("outside/e/secret", "outside");
    folder.write("outside/e/f/x", "");
    folder.write("tree/d/e/secret", "inside");
    folder.write("tree/d/e/f/x", "");
    folder
}

/// Names that no entry of a directory has, and what a walk and a creation say to them.
const BAD_NAMES: [(&[u8], Errno); 6] = [
    (b"", Errno::NOENT),
    (b"a/b", Errno::INVAL),
    (b"/etc", Errno::INVAL),
    (b"../outside", Errno::INVAL),
    (b"d\0", Errno::INVAL),
    (&[b'x'; 256], Errno::NAMETOOLONG),
];

#[test]
fn names_that_are_not_names_are_refused_everywhere() {
    let folder = two_sides();
    let mut client = Client::on(&folder);
    client.reach(1, "d");
    client.reach(2, "d/e/secret");
    let long = vec![b'y'; 65_535];
    // In a walk these two mean something.
    let (here, up) = ((&b"."[..], Errno::INVAL), (&b".."[..], Errno::INVAL));
    for (name, errno) in BAD_NAMES.into_iter().chain([(&long[..], Errno::NAMETOOLONG)]) {
        let names = [name];
        let walk = Request::Walk { fid: 1, new_fid: 9, names: Names::new(&names) };
        assert_eq!(client.ask(walk).errno(), errno, "{name:?}");
    }
    for (name, errno) in BAD_NAMES.into_iter().chain([(&long[..], Errno::NAMETOOLONG), here, up]) {
        let gid = NO_UID;
        for request in [
            Request::Lcreate { fid: 1, name, flags: open::READ_WRITE, mode: 0o600, gid },
            Request::Mkdir { directory: 1, name, mode: 0o700, gid },
            Request::Symlink { fid: 1, name, target: b"x", gid },
            Request::Mknod { directory: 1, name, mode: mode::FILE, major: 0, minor: 0, gid },
            Request::Link { directory: 1, fid: 2, name },
            Request::Rename { fid: 2, directory: 1, name },
            Request::Renameat { old_directory: 1, old_name: name, new_directory: 1, new_name: b"n" },
            Request::Renameat { old_directory: 1, old_name: b"e", new_directory: 1, new_name: name },
            Request::Unlinkat { directory: 1, name, flags: 0 },
            Request::Unlinkat { directory: 1, name, flags: AT_REMOVEDIR },
        ] {
            assert_eq!(client.ask(request).errno(), errno, "{request:?}");
        }
    }
    assert_eq!(folder.read("outside/secret"), "outside");
    assert_eq!(std::fs::read_dir(folder.tree().join("d")).unwrap().count(), 1);
}

#[test]
fn names_need_not_be_utf8() {
    let folder = two_sides();
    let mut client = Client::on(&folder);
    for name in [&b"\xff\xfe"[..], b"\x80", b"new\nline", b"\x7f", b"...", &[b'z'; 255]] {
        client.ask(Request::Mkdir { directory: ROOT, name, mode: 0o700, gid: NO_UID }).ok();
        let names = [name];
        client.ask(Request::Walk { fid: ROOT, new_fid: 1, names: Names::new(&names) }).ok();
        client.clunk(1).ok();
    }
}

#[test]
fn no_number_of_steps_up_leads_out() {
    let folder = two_sides();
    let mut client = Client::on(&folder);
    let names = [&b".."[..]; MAX_WALK];
    client.ask(Request::Walk { fid: ROOT, new_fid: 1, names: Names::new(&names) }).ok();
    assert_eq!(client.attr(1).qid.path, inode(&folder.tree()));
    assert_eq!(client.walk(2, "../outside/secret"), Ok(1));
    assert_eq!(client.walk(2, "d/../../outside/secret"), Ok(3));
    assert_eq!(client.walk(2, "d/e/../../../outside"), Ok(5));
}

#[test]
fn a_walk_through_a_symlink_fails() {
    let folder = two_sides();
    for (name, target) in
        [("up", "../outside"), ("absolute", "/"), ("inside", "d"), ("self", "self"), ("root", "/..")]
    {
        symlink(target, folder.tree().join(name)).unwrap();
    }
    symlink(folder.tree().join("../outside"), folder.tree().join("full")).unwrap();
    let mut client = Client::on(&folder);
    for name in ["up", "absolute", "inside", "self", "root", "full"] {
        assert_eq!(
            client.walk(1, &format!("{name}/secret")),
            Ok(1),
            "the link is passed, and nothing behind it"
        );
        assert_eq!(client.walk(1, &format!("{name}/..")), Ok(1));
        client.reach(1, name);
        assert_eq!(client.attr(1).mode & mode::KIND, mode::SYMLINK);
        assert_eq!(client.ask(Request::Lopen { fid: 1, flags: open::READ_ONLY }).errno(), Errno::LOOP);
        let mkdir = Request::Mkdir { directory: 1, name: b"x", mode: 0o700, gid: NO_UID };
        assert_eq!(client.ask(mkdir).errno(), Errno::NOTDIR);
        let truncate = SetAttr { valid: setattr::SIZE, ..SetAttr::default() };
        assert_eq!(client.ask(Request::Setattr { fid: 1, attr: truncate }).errno(), Errno::LOOP);
        client.clunk(1).ok();
    }
}

#[test]
fn a_creation_over_a_symlink_does_not_follow_it() {
    let folder = two_sides();
    symlink("../outside/secret", folder.tree().join("file")).unwrap();
    symlink("../outside/new", folder.tree().join("dangling")).unwrap();
    let mut client = Client::on(&folder);
    for name in [&b"file"[..], b"dangling"] {
        client.reach(1, "");
        let flags = open::WRITE_ONLY | open::TRUNCATE;
        let create = Request::Lcreate { fid: 1, name, flags, mode: 0o600, gid: NO_UID };
        assert_eq!(client.ask(create).errno(), Errno::LOOP);
        client.clunk(1).ok();
        let mknod =
            Request::Mknod { directory: ROOT, name, mode: mode::FILE, major: 0, minor: 0, gid: NO_UID };
        assert_eq!(client.ask(mknod).errno(), Errno::EXIST);
    }
    assert_eq!(folder.read("outside/secret"), "outside");
    assert!(!folder.has("outside/new"));
}

#[test]
fn attributes_of_a_symlink_are_its_own() {
    let folder = two_sides();
    let file = folder.0.join("outside/secret");
    let before = file.metadata().unwrap();
    symlink("../outside/secret", folder.tree().join("link")).unwrap();
    let mut client = Client::on(&folder);
    client.reach(1, "link");
    let times = setattr::MODIFIED | setattr::MODIFIED_SET | setattr::ACCESSED | setattr::ACCESSED_SET;
    client.ask(Request::Setattr { fid: 1, attr: SetAttr { valid: times, ..SetAttr::default() } }).ok();
    // As root the link is given away, else not even that.
    let owner = SetAttr { valid: setattr::UID | setattr::GID, uid: 4711, gid: 4711, ..SetAttr::default() };
    let _ = client.ask(Request::Setattr { fid: 1, attr: owner });
    let mode = SetAttr { valid: setattr::MODE, mode: 0o777, ..SetAttr::default() };
    assert_eq!(client.ask(Request::Setattr { fid: 1, attr: mode }).errno(), Errno::OPNOTSUPP);
    let after = file.metadata().unwrap();
    let seen = |meta: &std::fs::Metadata| (meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.atime());
    assert_eq!(seen(&before), seen(&after));
    // A second name of the link is one of the link, not of the file.
    client.ask(Request::Link { directory: ROOT, fid: 1, name: b"second" }).ok();
    assert!(folder.tree().join("second").symlink_metadata().unwrap().is_symlink());
    assert_eq!(file.metadata().unwrap().nlink(), 1);
}

/// What a race showed.
struct Race {
    /// Times that `d` was swapped, at least once, between two steps of one walk.
    landed: u64,
    /// Walks that went through.
    passed: u32,
    /// Walks that were stopped.
    stopped: u32,
    /// Walks that ended outside.
    escaped: u32,
}

/// Stops the swapper, also when a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Walks `d/e/f/../secret` again and again while somebody swaps `d` for a symbolic link to the outside, as fast as he
/// can, between any two steps of each walk at least once, until what was seen is `enough`. No number but the caller's
/// can be waited for: on one processor the swapper never strikes in the middle of a step.
fn race(confined: Confined, enough: impl Fn(&Race) -> bool) -> Race {
    let folder = two_sides();
    symlink("../outside", folder.tree().join("link")).unwrap();
    let (swaps, steps) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = AtomicBool::new(false);
    let mut export = planted(&folder, Rules::default(), confined);
    let (seen, counted) = (swaps.clone(), steps.clone());
    export.root.between = Between(Some(Box::new(move || {
        let (before, start) = (seen.load(Ordering::SeqCst), Instant::now());
        while seen.load(Ordering::SeqCst) == before {
            assert!(start.elapsed() < Duration::from_secs(60), "the swapper has stopped");
            std::thread::yield_now();
        }
        counted.fetch_add(1, Ordering::SeqCst);
    })));
    let export = Arc::new(export);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (d, link) = (folder.tree().join("d"), folder.tree().join("link"));
            while !stop.load(Ordering::SeqCst) {
                rustix::fs::renameat_with(CWD, &d, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                swaps.fetch_add(1, Ordering::SeqCst);
            }
        });
        let _stop = Stop(&stop);
        let mut race = Race { landed: 0, passed: 0, stopped: 0, escaped: 0 };
        let mut client = Client::attached(&export);
        while !enough(&race) {
            if race.passed + race.stopped == 20_000 {
                // What never passes, or is never stopped, is told by the caller.
                break;
            }
            let before = steps.load(Ordering::SeqCst);
            let walked = client.walk(1, "d/e/f/../secret");
            // What was swapped before the first step was swapped before the walk.
            race.landed += steps.load(Ordering::SeqCst) - before - 1;
            if walked != Ok(5) {
                race.stopped += 1;
                // Where it stopped it left nothing.
                assert_eq!(client.clunk(1).errno(), Errno::BADF);
                continue;
            }
            race.passed += 1;
            client.ask(Request::Lopen { fid: 1, flags: open::READ_ONLY }).ok();
            match client.read(1, 0, 100).payload() {
                b"inside" => {}
                b"outside" => race.escaped += 1,
                other => panic!("{other:?}"),
            }
            client.clunk(1).ok();
        }
        race
    })
}

#[test]
fn a_symlink_swapped_during_the_walk_leads_nowhere() {
    let race = race(Root::CONFINED, |race| race.landed >= 1000 && race.passed >= 50 && race.stopped >= 50);
    assert!(race.passed >= 50 && race.stopped >= 50, "{} passed, {} stopped", race.passed, race.stopped);
    assert!(race.landed >= 1000, "{} swaps", race.landed);
    assert_eq!(race.escaped, 0, "of {} walks, with {} swaps inside them", race.passed, race.landed);
    println!("{} swaps landed inside walks: {} passed, {} stopped", race.landed, race.passed, race.stopped);
}

#[test]
fn the_swapper_catches_a_resolver_that_is_not_confined() {
    let open = Confined { resolve: ResolveFlags::NO_MAGICLINKS, step: OFlags::PATH };
    let race = race(open, |race| race.escaped > 0);
    assert!(race.escaped > 0, "{} swaps landed inside {} walks, and none led out", race.landed, race.passed);
}

#[test]
fn a_directory_swapped_before_a_removal_or_renaming_is_not_followed() {
    let folder = two_sides();
    let mut client = Client::on(&folder);
    client.reach(1, "d/e/secret");
    client.reach(2, "d/e/secret");
    std::fs::rename(folder.tree().join("d"), folder.tree().join("moved")).unwrap();
    symlink("../outside", folder.tree().join("d")).unwrap();
    assert_eq!(client.ask(Request::Remove { fid: 1 }).errno(), Errno::NOTDIR);
    assert_eq!(client.ask(Request::Rename { fid: 2, directory: ROOT, name: b"got" }).errno(), Errno::NOTDIR);
    assert_eq!(folder.read("outside/e/secret"), "outside");
    assert!(!folder.has("tree/got"));
}

#[test]
fn magic_links_are_not_followed() {
    // /proc itself, where every descriptor and working directory is a link that leads anywhere.
    let export = Export::open(Path::new("/proc/self"), "tag", Rules::default(), "test").unwrap();
    let mut client = Client::attached(&export);
    for link in ["root", "cwd", "exe", "fd/0"] {
        let steps = link.split('/').count();
        assert_eq!(client.walk(1, &format!("{link}/etc")), Ok(steps), "{link}: the link and no further");
        if client.walk(1, link) == Ok(steps) {
            assert_eq!(client.ask(Request::Lopen { fid: 1, flags: open::READ_ONLY }).errno(), Errno::LOOP);
            client.clunk(1).ok();
        }
    }
}

#[test]
fn mount_points_are_part_of_the_tree_with_identities_of_their_own() {
    if !in_own_namespace("escapes::mount_points_are_part_of_the_tree_with_identities_of_their_own") {
        return;
    }
    let folder = two_sides();
    mount_small(&folder.tree().join("d"));
    folder.write("tree/d/f", "mounted");
    let mut client = Client::on(&folder);
    assert_eq!(client.content("d/f"), Ok(b"mounted".to_vec()));
    client.reach(1, "d");
    let (there, host) = (client.attr(1), folder.tree().join("d").metadata().unwrap());
    assert_ne!(there.qid.path, host.ino(), "inodes of two file systems may be equal");
    client.reach(2, "d/..");
    assert_eq!(client.attr(2).qid.path, inode(&folder.tree()));
    assert_eq!(client.walk(3, "d/../../outside"), Ok(3));
    client.reach(4, "d/f");
    assert_eq!(client.ask(Request::Link { directory: ROOT, fid: 4, name: b"x" }).errno(), Errno::XDEV);
    let rename = Request::Renameat { old_directory: 1, old_name: b"f", new_directory: ROOT, new_name: b"x" };
    assert_eq!(client.ask(rename).errno(), Errno::XDEV);
}

#[test]
fn hard_links_to_the_outside_cannot_be_made() {
    let folder = two_sides();
    symlink("../outside/secret", folder.tree().join("link")).unwrap();
    let mut client = Client::on(&folder);
    client.reach(1, "link");
    client.reach(2, "d/e/secret");
    client.ask(Request::Link { directory: ROOT, fid: 1, name: b"hard" }).ok();
    assert!(folder.tree().join("hard").symlink_metadata().unwrap().is_symlink());
    let out = Request::Link { directory: ROOT, fid: 2, name: b"../outside/hard" };
    assert_eq!(client.ask(out).errno(), Errno::INVAL);
    assert_eq!(folder.0.join("outside/secret").metadata().unwrap().nlink(), 1);
    assert!(!folder.has("outside/hard"));
}

#[test]
fn fids_of_one_export_mean_nothing_in_another() {
    let (here, there) = (two_sides(), two_sides());
    let (mut one, mut two) = (Client::on(&here), Client::on(&there));
    one.reach(5, "d");
    two.reach(6, "d");
    let rename = Request::Renameat { old_directory: 5, old_name: b"e", new_directory: 6, new_name: b"x" };
    assert_eq!(one.ask(rename).errno(), Errno::BADF);
    assert_eq!(two.ask(rename).errno(), Errno::BADF);
    assert_eq!(one.ask(Request::Link { directory: 6, fid: 5, name: b"x" }).errno(), Errno::BADF);
    assert_eq!(one.ask(Request::Rename { fid: 5, directory: 6, name: b"x" }).errno(), Errno::BADF);
}

#[test]
fn only_files_and_directories_are_opened() {
    let folder = two_sides();
    let fifo = folder.tree().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(folder.tree().join("socket")).unwrap();
    let mut names = vec!["fifo", "socket"];
    let device = |name| {
        let path = folder.tree().join(name);
        let made = std::process::Command::new("mknod").arg(path).args(["c", "1", "5"]).output().unwrap();
        made.status.success()
    };
    if device("device") {
        names.push("device");
    } else {
        hvl_test_kit::skipped(
            "only_files_and_directories_are_opened, the part of the device node: only root makes one",
        );
    }
    let mut client = Client::on(&folder);
    for name in names {
        client.reach(1, name);
        for flags in [open::READ_ONLY, open::WRITE_ONLY, open::READ_WRITE, open::READ_ONLY | open::NON_BLOCK]
        {
            assert_eq!(client.ask(Request::Lopen { fid: 1, flags }).errno(), Errno::NXIO, "{name}");
        }
        for valid in [setattr::SIZE, setattr::MODE, setattr::UID | setattr::GID, setattr::MODIFIED] {
            let attr = SetAttr { valid, mode: 0o666, ..SetAttr::default() };
            assert_eq!(client.ask(Request::Setattr { fid: 1, attr }).errno(), Errno::PERM, "{name}");
        }
        assert_eq!(client.ask(Request::Link { directory: ROOT, fid: 1, name: b"n" }).errno(), Errno::PERM);
        client.clunk(1).ok();
        // Opening by creating.
        client.reach(1, "");
        let create = Request::Lcreate {
            fid: 1,
            name: name.as_bytes(),
            flags: open::READ_WRITE,
            mode: 0o600,
            gid: NO_UID,
        };
        assert_eq!(client.ask(create).errno(), Errno::NXIO, "{name}");
        client.clunk(1).ok();
        // It can be seen and removed.
        client.reach(1, name);
        client.attr(1);
        client.ask(Request::Remove { fid: 1 }).ok();
    }
}

#[test]
fn nothing_changes_in_a_read_only_export() {
    let folder = two_sides();
    let mut client = Client::with(&folder, Rules { read_only: true, ..Rules::default() });
    client.reach(1, "d");
    client.reach(2, "d/e/secret");
    client.reach_open(3, "d/e/secret", open::READ_ONLY);
    let gid = NO_UID;
    let any = SetAttr { valid: setattr::MODE, ..SetAttr::default() };
    for request in [
        Request::Lopen { fid: 2, flags: open::WRITE_ONLY },
        Request::Lopen { fid: 2, flags: open::READ_WRITE },
        Request::Lopen { fid: 2, flags: open::READ_ONLY | open::TRUNCATE },
        Request::Lcreate { fid: 1, name: b"n", flags: 0, mode: 0o600, gid },
        Request::Mkdir { directory: 1, name: b"n", mode: 0o700, gid },
        Request::Symlink { fid: 1, name: b"n", target: b"x", gid },
        Request::Mknod { directory: 1, name: b"n", mode: mode::FILE, major: 0, minor: 0, gid },
        Request::Link { directory: 1, fid: 2, name: b"n" },
        Request::Rename { fid: 2, directory: 1, name: b"n" },
        Request::Renameat { old_directory: 1, old_name: b"e", new_directory: 1, new_name: b"n" },
        Request::Unlinkat { directory: 1, name: b"e", flags: AT_REMOVEDIR },
        Request::Setattr { fid: 2, attr: any },
        Request::Xattrcreate { fid: 2, name: b"user.x", size: 1, flags: 0 },
    ] {
        assert_eq!(client.ask(request).errno(), Errno::ROFS, "{request:?}");
    }
    assert_eq!(client.write(3, 0, b"x").errno(), Errno::ROFS);
    assert_eq!(client.read(3, 0, 100).payload(), b"inside");
    assert_eq!(client.ask(Request::Remove { fid: 2 }).errno(), Errno::ROFS);
    assert_eq!(folder.read("tree/d/e/secret"), "inside");
}

#[test]
fn no_file_gets_the_rights_of_its_owner() {
    let folder = two_sides();
    let mut client = Client::on(&folder);
    let gid = NO_UID;
    client.reach(1, "");
    client.ask(Request::Lcreate { fid: 1, name: b"created", flags: 1, mode: 0o106_755, gid }).ok();
    let mknod =
        Request::Mknod { directory: ROOT, name: b"node", mode: mode::FILE | 0o6755, major: 0, minor: 0, gid };
    client.ask(mknod).ok();
    client.ask(Request::Mkdir { directory: ROOT, name: b"directory", mode: 0o6755, gid }).ok();
    for name in ["created", "node", "directory"] {
        let mode =
            |folder: &Folder| folder.tree().join(name).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&folder), 0o755, "{name}");
        client.reach(9, name);
        let attr = SetAttr { valid: setattr::MODE, mode: 0o7777, ..SetAttr::default() };
        client.ask(Request::Setattr { fid: 9, attr }).ok();
        assert_eq!(mode(&folder), 0o1777, "{name}");
        client.clunk(9).ok();
    }
}
