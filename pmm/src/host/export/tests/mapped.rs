//! A mapped client against the files of those who are not mapped.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use super::resolve::{Between, Root};
use super::*;

/// User 0 of a client is this one here.
const OUTSIDE: u32 = 100_000;

/// Whether this process can be others; says so if not.
fn can_map(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        hvl_test_kit::skipped(format!("{test} needs root, which alone can be others"));
    }
    root
}

fn rules() -> Rules {
    Rules { ids: Ids::Map { inside: 0, outside: OUTSIDE, count: 65_536 }, ..Rules::default() }
}

/// Makes what is not there, a directory if its name ends with a slash, and gives it to somebody.
fn given(folder: &Folder, name: &str, (uid, gid): (u32, u32), mode: u32) -> PathBuf {
    let path = folder.tree().join(name.trim_end_matches('/'));
    match name.ends_with('/') || name.is_empty() {
        true => std::fs::create_dir_all(&path).unwrap(),
        false => std::fs::write(&path, "text").unwrap(),
    }
    chown(&path, Some(uid), Some(gid)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

const HOSTS: (u32, u32) = (0, 0);
const CLIENTS: (u32, u32) = (OUTSIDE, OUTSIDE);

#[test]
fn what_is_moved_to_where_something_new_was_made_stays_its_owners() {
    if !can_map("what_is_moved_to_where_something_new_was_made_stays_its_owners") {
        return;
    }
    let gid = NO_UID;
    for request in [
        Request::Mkdir { directory: 5, name: b"new", mode: 0o777, gid },
        Request::Symlink { fid: 5, name: b"new", target: b"x", gid },
    ] {
        let folder = Folder::new();
        given(&folder, "", CLIENTS, 0o755);
        let directory = matches!(request, Request::Mkdir { .. });
        let victim = given(&folder, if directory { "victim/" } else { "victim" }, HOSTS, 0o700);
        let new = folder.tree().join("new");
        let mut export = planted(&folder, rules(), Root::CONFINED);
        // What another worker of the same client does, between the making and the second look.
        let there = new.clone();
        export.root.between = Between(Some(Box::new(move || {
            if there.symlink_metadata().is_ok() {
                std::fs::rename(&victim, &there).unwrap();
            }
        })));
        let mut client = Client::attached(&Arc::new(export));
        client.ask(Request::Attach { fid: 5, afid: NO_FID, user: b"", tree: b"", uid: 0 }).ok();
        let answer = client.ask(request);
        let found = new.symlink_metadata().unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (0, 0, 0o700), "{request:?}");
        assert_eq!(answer.errno(), Errno::STALE, "{request:?}");
    }
}

#[test]
fn a_way_that_leads_elsewhere_by_now_is_walked_as_the_client() {
    if !can_map("a_way_that_leads_elsewhere_by_now_is_walked_as_the_client") {
        return;
    }
    for (planted, errno) in [("a symbolic link", Errno::NOTDIR), ("a directory", Errno::ACCES)] {
        let folder = Folder::new();
        for (name, owner, mode) in [
            ("", CLIENTS, 0o755),
            ("d/", CLIENTS, 0o755),
            ("d/e/", CLIENTS, 0o755),
            ("d/e/x/", CLIENTS, 0o755),
            ("private/", HOSTS, 0o700),
            ("private/e/", HOSTS, 0o755),
        ] {
            given(&folder, name, owner, mode);
        }
        let mut client = Client::with(&folder, rules());
        for fid in [1, 2, 3] {
            client.reach(fid, "d/e/x");
        }
        // Another client of the same directory, whose moves the first one's fids do not follow.
        let (d, private) = (folder.tree().join("d"), folder.tree().join("private"));
        std::fs::rename(&d, folder.tree().join("old")).unwrap();
        match errno {
            Errno::NOTDIR => symlink("private", &d).unwrap(),
            _ => std::fs::rename(&private, &d).unwrap(),
        }
        assert_eq!(client.walk_from(1, 9, ".."), Err(errno), "{planted}");
        assert_eq!(client.ask(Request::Remove { fid: 2 }).errno(), errno, "{planted}");
        let rename = Request::Rename { fid: 3, directory: ROOT, name: b"got" };
        assert_eq!(client.ask(rename).errno(), errno, "{planted}");
    }
}

#[test]
fn files_of_others_get_no_further_name_and_no_other_directory() {
    if !can_map("files_of_others_get_no_further_name_and_no_other_directory") {
        return;
    }
    let folder = Folder::new();
    for (name, owner, mode) in [
        ("", CLIENTS, 0o755),
        ("sub/", CLIENTS, 0o755),
        ("roots", HOSTS, 0o600),
        ("directory/", HOSTS, 0o777),
        ("mixed", (OUTSIDE + 1000, 0), 0o600),
        ("own", (OUTSIDE, 0), 0o600),
        ("users", (OUTSIDE + 1000, OUTSIDE + 1000), 0o600),
    ] {
        given(&folder, name, owner, mode);
    }
    let mut client = Client::with(&folder, rules());
    client.reach(1, "sub");
    let renameat = |name, directory, new_name| Request::Renameat {
        old_directory: ROOT,
        old_name: name,
        new_directory: directory,
        new_name,
    };
    for name in ["roots", "mixed", "directory"] {
        client.reach(2, name);
        for directory in [ROOT, 1] {
            let link = Request::Link { directory, fid: 2, name: b"further" };
            assert_eq!(client.ask(link).errno(), Errno::PERM, "{name}");
        }
        let rename = Request::Rename { fid: 2, directory: 1, name: b"moved" };
        assert_eq!(client.ask(rename).errno(), Errno::PERM, "{name}");
        assert_eq!(client.ask(renameat(name.as_bytes(), 1, b"moved")).errno(), Errno::PERM, "{name}");
        client.clunk(2).ok();
    }
    assert_eq!(folder.tree().join("roots").metadata().unwrap().nlink(), 1);
    assert_eq!(std::fs::read_dir(folder.tree().join("sub")).unwrap().count(), 0);
    // In its own directory it may rename and remove them, as in a user namespace.
    client.ask(renameat(b"roots", ROOT, b"renamed")).ok();
    client.ask(Request::Unlinkat { directory: ROOT, name: b"renamed", flags: 0 }).ok();
    // And what is its own, or a mapped user's, goes anywhere.
    for name in ["own", "users"] {
        client.reach(2, name);
        client.ask(Request::Link { directory: 1, fid: 2, name: b"further" }).ok();
        client.ask(Request::Unlinkat { directory: 1, name: b"further", flags: 0 }).ok();
        client.ask(renameat(name.as_bytes(), 1, name.as_bytes())).ok();
        client.clunk(2).ok();
    }
}
