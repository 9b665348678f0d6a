//! One test for every operation, and the errors of each.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use hvl_shared_abi::wire::p9::{AT_REMOVEDIR, Entries, MIN_MSIZE, UNKNOWN, entry_kind, mode, qid};

use super::*;

// Version, auth, attach, flush, clunk.

#[test]
fn version_agrees_on_the_smaller_size() {
    let folder = Folder::new();
    let export =
        Export::open(&folder.tree(), "tag", Rules { msize: 65_536, ..Rules::default() }, "test").unwrap();
    let mut client = Client::new(&export);
    for (asked, agreed) in [(8192, 8192), (65_536, 65_536), (u32::MAX, 65_536)] {
        let answer = client.ask(Request::Version { msize: asked, version: VERSION });
        assert_eq!(answer.get(), Reply::Version { msize: agreed, version: VERSION });
        assert_eq!(client.session.msize(), agreed);
    }
}

#[test]
fn version_refuses_sizes_too_small_to_talk() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    for msize in [0, 1, MIN_MSIZE - 1] {
        assert_eq!(client.ask(Request::Version { msize, version: VERSION }).errno(), Errno::MSGSIZE);
        assert_eq!(client.attach(1).errno(), Errno::PROTO, "and the conversation before is over");
    }
}

#[test]
fn version_of_another_protocol_is_unknown() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    for version in [&b"9P2000"[..], b"9P2000.u", b"9P2000.L.x", b""] {
        let answer = client.ask(Request::Version { msize: 8192, version });
        assert_eq!(answer.get(), Reply::Version { msize: 8192, version: UNKNOWN });
        assert_eq!(client.attach(1).errno(), Errno::PROTO);
    }
}

#[test]
fn version_forgets_all_fids() {
    let folder = Folder::new();
    folder.write("tree/f", "x");
    let mut client = Client::on(&folder);
    client.reach_open(1, "f", open::READ_ONLY);
    assert_eq!(client.session.fids(), 2);
    client.ask(Request::Version { msize: 8192, version: VERSION }).ok();
    assert_eq!(client.session.fids(), 0);
    assert_eq!(client.read(1, 0, 1).errno(), Errno::BADF);
}

#[test]
fn nothing_goes_before_a_version() {
    let folder = Folder::new();
    let mut client = Client::new(&Export::open(&folder.tree(), "t", Rules::default(), "test").unwrap());
    assert_eq!(client.attach(0).errno(), Errno::PROTO);
    assert_eq!(client.ask(Request::Flush { old_tag: 1 }).errno(), Errno::PROTO);
}

#[test]
fn auth_is_not_needed() {
    let folder = Folder::new();
    let auth = Request::Auth { afid: 7, user: b"", tree: b"", uid: 0 };
    assert_eq!(Client::on(&folder).ask(auth).errno(), Errno::NOENT);
}

#[test]
fn attach_by_any_name_of_the_export() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    let path = folder.tree();
    let attach = |fid, afid, tree| Request::Attach { fid, afid, user: b"me", tree, uid: NO_UID };
    let slash = [path.as_os_str().as_encoded_bytes(), b"/"].concat();
    for (fid, tree) in
        (1..9).zip([&b""[..], b"/", b"//", b"tag", b"tag/", path.as_os_str().as_encoded_bytes(), &slash])
    {
        let answer = client.ask(attach(fid, NO_FID, tree));
        let Reply::Attach { qid } = answer.get() else { panic!("{answer:?}") };
        assert_eq!((qid.kind, qid.path), (qid::DIRECTORY, inode(&path)));
    }
    assert_eq!(client.ask(attach(9, NO_FID, b"/etc")).errno(), Errno::NOENT);
    assert_eq!(client.ask(attach(9, NO_FID, b"/tag")).errno(), Errno::NOENT);
    assert_eq!(client.ask(attach(9, 3, b"")).errno(), Errno::BADF);
    // The same where it was named with one.
    let named = Export::open(Path::new(std::ffi::OsStr::from_bytes(&slash)), "tag", Rules::default(), "test");
    let mut other = Client::attached(&named.unwrap());
    other.ask(attach(1, NO_FID, &slash)).ok();
    other.ask(attach(2, NO_FID, path.as_os_str().as_encoded_bytes())).ok();
    assert_eq!(client.ask(attach(1, NO_FID, b"")).errno(), Errno::BADF, "in use");
    assert_eq!(client.ask(attach(NO_FID, NO_FID, b"")).errno(), Errno::BADF);
}

#[test]
fn flush_is_always_answered() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    for old_tag in [0, 1, 500, NO_TAG] {
        assert_eq!(client.ask(Request::Flush { old_tag }).get(), Reply::Flush {});
    }
}

#[test]
fn clunk_forgets() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    client.reach(1, "");
    client.clunk(1).ok();
    assert_eq!(client.clunk(1).errno(), Errno::BADF);
    assert_eq!(client.ask(Request::Getattr { fid: 1, mask: 0 }).errno(), Errno::BADF);
}

// Walk.

#[test]
fn walk_passes_names_one_by_one() {
    let folder = Folder::new();
    let file = folder.write("tree/a/b/c", "x");
    let mut client = Client::on(&folder);
    let (names, _) = Names::of_path(b"a/b/c");
    let answer = client.ask(Request::Walk { fid: ROOT, new_fid: 1, names });
    let Reply::Walk { qids } = answer.get() else { panic!("{answer:?}") };
    let kinds: Vec<_> = qids.iter().map(|qid| qid.kind).collect();
    assert_eq!(kinds, [qid::DIRECTORY, qid::DIRECTORY, qid::FILE]);
    assert_eq!(qids.iter().last().unwrap().path, inode(&file));
    assert_eq!(client.attr(1).size, 1);
}

#[test]
fn walk_that_ends_early_leaves_no_fid() {
    let folder = Folder::new();
    folder.write("tree/a/f", "x");
    let mut client = Client::on(&folder);
    assert_eq!(client.walk(1, "a/none/c"), Ok(1));
    assert_eq!(client.walk(1, "a/f/c"), Ok(2));
    assert_eq!(client.clunk(1).errno(), Errno::BADF);
    assert_eq!(client.walk(1, "none/a"), Err(Errno::NOENT));
    client.reach(1, "a/f");
    assert_eq!(client.walk_from(1, 2, "x"), Err(Errno::NOTDIR));
    assert_eq!(client.walk_from(1, 2, ".."), Err(Errno::NOTDIR));
}

#[test]
fn walk_without_names_makes_a_second_fid() {
    let folder = Folder::new();
    folder.write("tree/f", "x");
    let mut client = Client::on(&folder);
    client.reach(1, "f");
    assert_eq!(client.walk_from(1, 2, ""), Ok(0));
    client.clunk(1).ok();
    assert_eq!(client.attr(2).size, 1);
}

#[test]
fn walk_in_place_moves_the_fid_or_leaves_it() {
    let folder = Folder::new();
    folder.write("tree/a/f", "x");
    let mut client = Client::on(&folder);
    client.reach(1, "");
    assert_eq!(client.walk_from(1, 1, "a/none"), Ok(1));
    assert_eq!(client.walk_from(1, 1, "a/f"), Ok(2), "it still was the root");
    client.ask(Request::Lopen { fid: 1, flags: open::READ_ONLY }).ok();
    assert_eq!(client.walk_from(1, 1, ""), Err(Errno::BADF), "open");
}

#[test]
fn walk_to_a_fid_in_use_or_from_none_fails() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    client.reach(1, "");
    assert_eq!(client.walk(1, ""), Err(Errno::BADF));
    assert_eq!(client.walk_from(77, 2, ""), Err(Errno::BADF));
    assert_eq!(client.walk(NO_FID, ""), Err(Errno::BADF));
}

#[test]
fn walk_up_stays_at_the_root() {
    let folder = Folder::new();
    folder.write("tree/a/b/f", "x");
    let mut client = Client::on(&folder);
    client.reach(1, "..");
    client.reach(2, "../../..");
    client.reach(3, "a/b/../../../a/b/..");
    assert_eq!(client.attr(1).qid.path, inode(&folder.tree()));
    assert_eq!(client.attr(2).qid.path, inode(&folder.tree()));
    assert_eq!(client.attr(3).qid.path, inode(&folder.tree().join("a")));
}

#[test]
fn walk_to_where_one_is() {
    let folder = Folder::new();
    folder.write("tree/a/f", "x");
    let mut client = Client::on(&folder);
    client.reach(1, ".");
    client.reach(2, "./a/./.");
    assert_eq!(client.attr(1).qid.path, inode(&folder.tree()));
    assert_eq!(client.attr(2).qid.path, inode(&folder.tree().join("a")));
    assert_eq!(client.walk(3, "a/f/."), Ok(2));
}

// Opening, reading, writing.

#[test]
fn lopen_and_read() {
    let folder = Folder::new();
    folder.write("tree/f", "0123456789");
    let mut client = Client::on(&folder);
    client.reach(1, "f");
    assert_eq!(client.read(1, 0, 4).errno(), Errno::BADF, "not open");
    let answer = client.ask(Request::Lopen { fid: 1, flags: open::READ_ONLY });
    let Reply::Lopen { qid, io_unit } = answer.get() else { panic!("{answer:?}") };
    assert_eq!((qid.path, io_unit), (inode(&folder.tree().join("f")), MAX_MSIZE - 24));
    assert_eq!(client.read(1, 2, 4).payload(), b"2345");
    assert_eq!(client.read(1, 8, 100).payload(), b"89");
    assert_eq!(client.read(1, 10, 100).payload(), b"");
    assert_eq!(client.read(1, 0, 0).payload(), b"");
    assert_eq!(client.ask(Request::Lopen { fid: 1, flags: 0 }).errno(), Errno::BADF, "open already");
    assert_eq!(client.write(1, 0, b"x").errno(), Errno::BADF, "not for writing");
    assert_eq!(client.ask(Request::Lopen { fid: 9, flags: 0 }).errno(), Errno::BADF);
}

#[test]
fn lopen_modes() {
    let folder = Folder::new();
    folder.write("tree/f", "0123456789");
    folder.write("tree/d/x", "");
    let mut client = Client::on(&folder);
    client.reach(1, "f");
    assert_eq!(client.ask(Request::Lopen { fid: 1, flags: 3 }).errno(), Errno::INVAL);
    assert_eq!(client.ask(Request::Lopen { fid: 1, flags: open::DIRECTORY }).errno(), Errno::NOTDIR);
    client.ask(Request::Lopen { fid: 1, flags: open::WRITE_ONLY }).ok();
    assert_eq!(client.read(1, 0, 1).errno(), Errno::BADF);
    client.reach_open(2, "f", open::WRITE_ONLY | open::APPEND);
    client.write(2, 0, b"ab").ok();
    assert_eq!(folder.read("tree/f"), "0123456789ab");
    client.reach_open(3, "f", open::READ_WRITE | open::TRUNCATE);
    assert_eq!(folder.read("tree/f"), "");
    client.reach(4, "d");
    assert_eq!(client.ask(Request::Lopen { fid: 4, flags: open::WRITE_ONLY }).errno(), Errno::ISDIR);
    client.ask(Request::Lopen { fid: 4, flags: open::DIRECTORY }).ok();
    assert_eq!(client.read(4, 0, 1).errno(), Errno::ISDIR);
}

#[test]
fn write_is_acknowledged_with_its_length() {
    let folder = Folder::new();
    folder.write("tree/f", "0123");
    let mut client = Client::on(&folder);
    client.reach_open(1, "f", open::READ_WRITE);
    assert_eq!(client.write(1, 2, b"abcd").get(), Reply::Write { count: 4 });
    assert_eq!(folder.read("tree/f"), "01abcd");
    assert_eq!(client.write(1, 0, b"").get(), Reply::Write { count: 0 });
    assert_eq!(client.write(1, 8, b"z").get(), Reply::Write { count: 1 });
    assert_eq!(folder.read("tree/f"), "01abcd\0\0z");
    assert_eq!(client.write(7, 0, b"x").errno(), Errno::BADF);
}

#[test]
fn a_mebibyte_there_and_back() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    client.reach(1, "");
    let create = Request::Lcreate { fid: 1, name: b"big", flags: open::READ_WRITE, mode: 0o600, gid: NO_UID };
    client.ask(create).ok();
    let bytes: Vec<u8> = (0..3 << 20).map(|n: u32| (n ^ (n >> 9)) as u8).collect();
    let unit = MAX_MSIZE - 24;
    for (index, part) in bytes.chunks(unit as usize).enumerate() {
        assert_eq!(
            client.write(1, u64::from(unit) * index as u64, part).get(),
            Reply::Write { count: part.len() as u32 }
        );
    }
    let mut back = Vec::new();
    loop {
        let answer = client.read(1, back.len() as u64, MAX_MSIZE);
        if answer.payload().is_empty() {
            break;
        }
        back.extend_from_slice(answer.payload());
    }
    assert!(back == bytes);
}

#[test]
fn an_open_file_outlives_its_name() {
    let folder = Folder::new();
    folder.write("tree/f", "x");
    let mut client = Client::on(&folder);
    client.reach_open(1, "f", open::READ_WRITE);
    client.ask(Request::Unlinkat { directory: ROOT, name: b"f", flags: 0 }).ok();
    client.write(1, 1, b"y").ok();
    assert_eq!(client.read(1, 0, 9).payload(), b"xy");
    assert_eq!(client.attr(1).links, 0);
}

#[test]
fn lcreate_makes_and_opens() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    let create = |fid, name, flags| Request::Lcreate { fid, name, flags, mode: 0o100_666, gid: NO_UID };
    client.reach(1, "");
    let answer = client.ask(create(1, b"new", open::READ_WRITE | open::EXCLUSIVE));
    let Reply::Lcreate { qid, .. } = answer.get() else { panic!("{answer:?}") };
    assert_eq!(qid.path, inode(&folder.tree().join("new")));
    client.write(1, 0, b"hello").ok();
    assert_eq!(client.attr(1).size, 5, "the fid is the file now");
    assert_eq!(folder.tree().join("new").metadata().unwrap().mode() & 0o7777, 0o666, "whatever the umask is");

    client.reach(2, "");
    assert_eq!(client.ask(create(2, b"new", open::WRITE_ONLY | open::EXCLUSIVE)).errno(), Errno::EXIST);
    client.ask(create(2, b"new", open::READ_WRITE)).ok();
    assert_eq!(client.read(2, 0, 9).payload(), b"hello");
    assert_eq!(client.ask(create(2, b"more", 0)).errno(), Errno::NOTDIR, "it is a file now");
    client.reach(3, "");
    client.ask(create(3, b"new", open::WRITE_ONLY | open::TRUNCATE)).ok();
    assert_eq!(folder.read("tree/new"), "");
    assert_eq!(client.ask(create(9, b"x", 0)).errno(), Errno::BADF);
}

#[test]
fn lcreate_in_an_open_directory_fails() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    client.reach_open(1, "", open::READ_ONLY);
    let create = Request::Lcreate { fid: 1, name: b"x", flags: 0, mode: 0o600, gid: NO_UID };
    assert_eq!(client.ask(create).errno(), Errno::BADF);
    assert!(!folder.has("tree/x"));
}

#[test]
fn fsync_of_files_and_directories() {
    let folder = Folder::new();
    folder.write("tree/f", "x");
    let mut client = Client::on(&folder);
    client.reach_open(1, "f", open::READ_WRITE);
    client.reach_open(2, "", open::READ_ONLY);
    for (fid, data_only) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
        assert_eq!(client.ask(Request::Fsync { fid, data_only }).get(), Reply::Fsync {});
    }
    client.reach(3, "f");
    assert_eq!(client.ask(Request::Fsync { fid: 3, data_only: 0 }).errno(), Errno::BADF);
}

// Directories.

fn list(client: &mut Client, fid: u32, count: u32) -> Vec<(Vec<u8>, u8, u64)> {
    let (mut all, mut offset) = (Vec::new(), 0);
    loop {
        let answer = client.ask(Request::Readdir { fid, offset, count });
        answer.ok();
        if answer.payload().is_empty() {
            return all;
        }
        assert!(answer.payload().len() <= count as usize);
        for entry in Entries::new(answer.payload()) {
            let entry = entry.unwrap();
            offset = entry.offset;
            all.push((entry.name.to_vec(), entry.kind, entry.qid.path));
        }
        assert!(all.len() < 100_000, "a listing without end");
    }
}

#[test]
fn readdir_tells_every_entry_once() {
    let folder = Folder::new();
    folder.write("tree/d/file", "");
    std::fs::create_dir(folder.tree().join("d/directory")).unwrap();
    std::os::unix::fs::symlink("x", folder.tree().join("d/link")).unwrap();
    let mut client = Client::on(&folder);
    client.reach_open(1, "d", open::READ_ONLY);
    let mut all = list(&mut client, 1, 8192);
    all.sort();
    let at = |path: &str| inode(&folder.tree().join(path));
    let expected = [
        (b".".to_vec(), entry_kind::DIRECTORY, at("d")),
        (b"..".to_vec(), entry_kind::DIRECTORY, at("")),
        (b"directory".to_vec(), entry_kind::DIRECTORY, at("d/directory")),
        (b"file".to_vec(), entry_kind::FILE, at("d/file")),
        (b"link".to_vec(), entry_kind::SYMLINK, at("d/link")),
    ];
    assert_eq!(all, expected);
}

#[test]
fn readdir_of_ten_thousand_entries_is_complete() {
    let folder = Folder::new();
    for n in 0..10_000 {
        std::fs::File::create(folder.tree().join(format!("entry number {n}"))).unwrap();
    }
    let mut client = Client::on(&folder);
    client.reach_open(1, "", open::READ_ONLY);
    for count in [512, 4000, 65_536] {
        let mut names: Vec<_> = list(&mut client, 1, count).into_iter().map(|entry| entry.0).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 10_002);
    }
}

#[test]
fn readdir_shows_nothing_above_the_root() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    client.reach_open(1, "", open::READ_ONLY);
    let root = inode(&folder.tree());
    assert!(list(&mut client, 1, 8192).iter().all(|(_, _, path)| *path == root));
}

#[test]
fn readdir_errors() {
    let folder = Folder::new();
    folder.write("tree/f", "");
    let mut client = Client::on(&folder);
    let readdir = |fid, count| Request::Readdir { fid, offset: 0, count };
    client.reach(1, "");
    assert_eq!(client.ask(readdir(1, 100)).errno(), Errno::BADF, "not open");
    client.ask(Request::Lopen { fid: 1, flags: 0 }).ok();
    assert_eq!(client.ask(readdir(1, 24)).errno(), Errno::INVAL, "not even one entry fits");
    client.reach_open(2, "f", open::READ_ONLY);
    assert_eq!(client.ask(readdir(2, 100)).errno(), Errno::NOTDIR);
}

#[test]
fn mkdir_makes_a_directory() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    let mkdir = |directory, name| Request::Mkdir { directory, name, mode: 0o40_777, gid: NO_UID };
    let answer = client.ask(mkdir(ROOT, b"d"));
    let Reply::Mkdir { qid } = answer.get() else { panic!("{answer:?}") };
    assert_eq!((qid.kind, qid.path), (qid::DIRECTORY, inode(&folder.tree().join("d"))));
    assert_eq!(folder.tree().join("d").metadata().unwrap().mode() & 0o7777, 0o777);
    assert_eq!(client.ask(mkdir(ROOT, b"d")).errno(), Errno::EXIST);
    client.reach_open(1, "d", open::READ_ONLY);
    client.ask(mkdir(1, b"e")).ok();
    folder.write("tree/f", "");
    client.reach(2, "f");
    assert_eq!(client.ask(mkdir(2, b"x")).errno(), Errno::NOTDIR);
}

#[test]
fn unlinkat_removes_files_and_directories() {
    let folder = Folder::new();
    folder.write("tree/d/f", "");
    let mut client = Client::on(&folder);
    let unlink = |directory, name, flags| Request::Unlinkat { directory, name, flags };
    assert_eq!(client.ask(unlink(ROOT, b"d", AT_REMOVEDIR)).errno(), Errno::NOTEMPTY);
    assert_eq!(client.ask(unlink(ROOT, b"d", 0)).errno(), Errno::ISDIR);
    client.reach(1, "d");
    assert_eq!(client.ask(unlink(1, b"f", AT_REMOVEDIR)).errno(), Errno::NOTDIR);
    assert_eq!(client.ask(unlink(1, b"f", 1)).errno(), Errno::INVAL);
    client.ask(unlink(1, b"f", 0)).ok();
    assert_eq!(client.ask(unlink(1, b"f", 0)).errno(), Errno::NOENT);
    client.ask(unlink(ROOT, b"d", AT_REMOVEDIR)).ok();
    assert!(!folder.has("tree/d"));
}

#[test]
fn remove_forgets_the_fid_in_any_case() {
    let folder = Folder::new();
    folder.write("tree/d/f", "");
    let mut client = Client::on(&folder);
    client.reach(1, "d");
    client.reach(2, "d/f");
    assert_eq!(client.ask(Request::Remove { fid: 1 }).errno(), Errno::NOTEMPTY);
    assert_eq!(client.clunk(1).errno(), Errno::BADF);
    client.ask(Request::Remove { fid: 2 }).ok();
    assert!(!folder.has("tree/d/f"));
    client.reach(1, "d");
    client.ask(Request::Remove { fid: 1 }).ok();
    assert!(!folder.has("tree/d"));
    client.reach(3, "");
    assert_eq!(client.ask(Request::Remove { fid: 3 }).errno(), Errno::BUSY, "the root stays");
}

#[test]
fn remove_of_what_is_called_otherwise_now_is_stale() {
    let folder = Folder::new();
    folder.write("tree/f", "");
    let mut client = Client::on(&folder);
    client.reach(1, "f");
    std::fs::rename(folder.tree().join("f"), folder.tree().join("g")).unwrap();
    folder.write("tree/f", "another");
    assert_eq!(client.ask(Request::Remove { fid: 1 }).errno(), Errno::STALE);
    assert_eq!(folder.read("tree/f"), "another");
}

#[test]
fn renameat_moves() {
    let folder = Folder::new();
    folder.write("tree/a/f", "text");
    folder.write("tree/b/g", "");
    let mut client = Client::on(&folder);
    client.reach(1, "a");
    client.reach(2, "b");
    let rename = |old_directory, old_name, new_directory, new_name| Request::Renameat {
        old_directory,
        old_name,
        new_directory,
        new_name,
    };
    client.ask(rename(1, b"f", 2, b"g")).ok();
    assert_eq!((folder.read("tree/b/g"), folder.has("tree/a/f")), ("text".into(), false));
    assert_eq!(client.ask(rename(1, b"f", 2, b"g")).errno(), Errno::NOENT);
    assert_eq!(client.ask(rename(ROOT, b"b", 1, b"x")).get(), Reply::Renameat {});
    assert_eq!(client.ask(rename(ROOT, b"a", 2, b"x")).errno(), Errno::INVAL, "into itself");
    assert_eq!(client.ask(rename(1, b"x", 9, b"y")).errno(), Errno::BADF);
}

#[test]
fn fids_follow_what_was_renamed() {
    let folder = Folder::new();
    folder.write("tree/a/b/f", "text");
    folder.write("tree/ab", "");
    let mut client = Client::on(&folder);
    client.reach(1, "a/b/f");
    client.reach(2, "a/b");
    client.reach(3, "ab");
    client
        .ask(Request::Renameat { old_directory: ROOT, old_name: b"a", new_directory: ROOT, new_name: b"z" })
        .ok();
    // The two that need the way by which they were reached.
    assert_eq!(client.walk_from(2, 4, "../b/f"), Ok(3));
    client.ask(Request::Rename { fid: 1, directory: ROOT, name: b"g" }).ok();
    assert_eq!(folder.read("tree/g"), "text");
    client.ask(Request::Remove { fid: 1 }).ok();
    client.ask(Request::Remove { fid: 3 }).ok();
    assert!(!folder.has("tree/g") && !folder.has("tree/ab"));
}

#[test]
fn rename_by_fid() {
    let folder = Folder::new();
    folder.write("tree/f", "text");
    folder.write("tree/d/x", "");
    let mut client = Client::on(&folder);
    client.reach(1, "f");
    client.reach(2, "d");
    let rename = |fid, directory, name| Request::Rename { fid, directory, name };
    assert_eq!(client.ask(rename(1, 2, b"g")).get(), Reply::Rename {});
    assert_eq!(folder.read("tree/d/g"), "text");
    assert_eq!(client.ask(rename(1, 1, b"g")).errno(), Errno::NOTDIR);
    assert_eq!(client.ask(rename(ROOT, 2, b"g")).errno(), Errno::BUSY);
}

// Links.

#[test]
fn symlink_and_readlink() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    let symlink = |name, target| Request::Symlink { fid: ROOT, name, target, gid: NO_UID };
    let answer = client.ask(symlink(b"link", b"../../anywhere"));
    let Reply::Symlink { qid } = answer.get() else { panic!("{answer:?}") };
    assert_eq!(qid.kind, qid::SYMLINK);
    client.reach(1, "link");
    assert_eq!(client.ask(Request::Readlink { fid: 1 }).get(), Reply::Readlink { target: b"../../anywhere" });
    assert_eq!(client.attr(1).mode & mode::KIND, mode::SYMLINK);
    assert_eq!(client.ask(symlink(b"link", b"x")).errno(), Errno::EXIST);
    assert_eq!(client.ask(symlink(b"other", b"")).errno(), Errno::NOENT);
    assert_eq!(client.ask(symlink(b"other", b"a\0b")).errno(), Errno::INVAL);
    assert_eq!(client.ask(symlink(b"other", &[b'x'; 4096])).errno(), Errno::NAMETOOLONG);
    client.ask(symlink(b"other", &[b'x'; 4095])).ok();
    client.reach(2, "other");
    assert_eq!(client.ask(Request::Readlink { fid: 2 }).get(), Reply::Readlink { target: &[b'x'; 4095] });
    assert_eq!(client.ask(Request::Readlink { fid: ROOT }).errno(), Errno::INVAL);
    assert_eq!(client.ask(Request::Lopen { fid: 1, flags: 0 }).errno(), Errno::LOOP);
}

#[test]
fn link_gives_a_second_name() {
    let folder = Folder::new();
    folder.write("tree/f", "x");
    folder.write("tree/d/x", "");
    let mut client = Client::on(&folder);
    client.reach(1, "f");
    client.reach(2, "d");
    let link = |directory, fid, name| Request::Link { directory, fid, name };
    assert_eq!(client.ask(link(2, 1, b"g")).get(), Reply::Link {});
    assert_eq!(client.attr(1).links, 2);
    assert_eq!(inode(&folder.tree().join("d/g")), inode(&folder.tree().join("f")));
    assert_eq!(client.ask(link(2, 1, b"g")).errno(), Errno::EXIST);
    assert_eq!(client.ask(link(ROOT, 2, b"h")).errno(), Errno::PERM, "a directory");
    assert_eq!(client.ask(link(1, 1, b"h")).errno(), Errno::NOTDIR);
}

#[test]
fn mknod_makes_regular_files_only() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    let mknod = |name, mode| Request::Mknod { directory: ROOT, name, mode, major: 1, minor: 3, gid: NO_UID };
    let answer = client.ask(mknod(b"f", mode::FILE | 0o640));
    let Reply::Mknod { qid } = answer.get() else { panic!("{answer:?}") };
    assert_eq!(qid.path, inode(&folder.tree().join("f")));
    assert_eq!(folder.tree().join("f").metadata().unwrap().mode(), mode::FILE | 0o640);
    assert_eq!(client.ask(mknod(b"f", mode::FILE)).errno(), Errno::EXIST);
    for kind in
        [mode::FIFO, mode::CHAR_DEVICE, mode::BLOCK_DEVICE, mode::SOCKET, mode::SYMLINK, mode::DIRECTORY]
    {
        assert_eq!(client.ask(mknod(b"n", kind | 0o600)).errno(), Errno::PERM);
        assert!(!folder.has("tree/n"));
    }
}
