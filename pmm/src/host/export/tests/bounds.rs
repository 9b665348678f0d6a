//! What is too large, too many, too early or a lie.

use hvl_shared_abi::wire::p9::{Entries, HEADER, MIN_MSIZE, Malformed, SetAttr, setattr};

use super::*;

/// Sends bytes as they are; the answer's tag, and the error if it is one.
fn send(client: &Client, bytes: &[u8]) -> Option<(u16, Option<Errno>)> {
    let mut reply = Vec::new();
    client.session.reply_to(bytes, &mut reply, usize::MAX);
    let parsed = Reply::parse(&reply).ok()?;
    let errno = match parsed.message {
        Reply::Error { errno } => Some(errno),
        _ => None,
    };
    Some((parsed.tag, errno))
}

fn message(kind: u8, size: u32, body: &[u8]) -> Vec<u8> {
    [&size.to_le_bytes()[..], &[kind, 7, 0], body].concat()
}

#[test]
fn sizes_that_lie() {
    let folder = Folder::new();
    let client = Client::on(&folder);
    for short in 0..HEADER {
        assert_eq!(send(&client, &message(120, 7, &[])[..short]), None, "there is no tag to answer");
    }
    for size in [0, 6] {
        assert_eq!(send(&client, &message(120, size, &[0; 4])), None);
    }
    for size in [7, 10, 12, 4096, u32::MAX] {
        assert_eq!(send(&client, &message(120, size, &[0; 4])), Some((7, Some(Errno::INVAL))), "{size}");
    }
    assert_eq!(send(&client, &message(120, 11, &[0; 4])), Some((7, None)));
}

#[test]
fn messages_above_the_agreed_size() {
    let folder = Folder::new();
    folder.write("tree/f", vec![1; 10_000]);
    let mut client = Client::on(&folder);
    client.ask(Request::Version { msize: MIN_MSIZE, version: VERSION }).ok();
    client.attach(ROOT).ok();
    client.reach_open(1, "f", open::READ_WRITE);
    let mut bytes = vec![0; 8192];
    let count = hvl_shared_abi::wire::p9::Payload(MIN_MSIZE);
    let write = Request::Write { fid: 1, offset: 0, count };
    let length = write.emit(7, &vec![0; MIN_MSIZE as usize], &mut bytes).unwrap();
    assert_eq!(send(&client, &bytes[..length]), Some((7, Some(Errno::MSGSIZE))));
    // What the answer may hold is cut, not refused.
    assert_eq!(client.read(1, 0, u32::MAX).payload().len(), MIN_MSIZE as usize - 11);
    // A place shorter than was agreed holds less; one too short for anything gets nothing.
    let read = Request::Read { fid: 1, offset: 0, count: 1000 };
    let length = read.emit(7, &[], &mut bytes).unwrap();
    let mut place = [0xa5; 100];
    let handled = client.session.handle(&bytes[..length], &mut place);
    assert_eq!(handled.length, 100);
    for room in 0..11 {
        assert_eq!(client.session.handle(&bytes[..length], &mut place[..room]).length, 0);
    }
}

#[test]
fn the_agreed_size_may_change_in_a_session() {
    let folder = Folder::new();
    folder.write("tree/f", vec![1; 100_000]);
    let mut client = Client::on(&folder);
    for msize in [MIN_MSIZE, MAX_MSIZE, 5000, 70_000] {
        client.ask(Request::Version { msize, version: VERSION }).ok();
        client.attach(ROOT).ok();
        client.reach_open(1, "f", open::READ_ONLY);
        let expected = (msize as usize - 11).min(100_000);
        assert_eq!(client.read(1, 0, u32::MAX).payload().len(), expected);
    }
}

#[test]
fn unknown_types_are_answered() {
    let folder = Folder::new();
    let client = Client::on(&folder);
    for kind in [0, 1, 6, 7, 9, 13, 99, 106, 107, 112, 114, 125, 126, 200, 255] {
        assert_eq!(send(&client, &message(kind, 11, &[0; 4])), Some((7, Some(Errno::OPNOTSUPP))), "{kind}");
    }
    let handled = client.session.handle(&message(7, 7, &[]), &mut [0; 64]);
    assert_eq!(handled.malformed, Some(Malformed::Kind));
}

#[test]
fn walks_of_more_than_sixteen_names() {
    let folder = Folder::new();
    let client = Client::on(&folder);
    let mut body = [&[0; 4][..], &[1, 0, 0, 0], &[17, 0]].concat();
    for _ in 0..17 {
        body.extend_from_slice(b"\x02\0..");
    }
    let bytes = message(110, (HEADER + body.len()) as u32, &body);
    assert_eq!(send(&client, &bytes), Some((7, Some(Errno::INVAL))));
    assert_eq!(client.session.fids(), 1);
}

#[test]
fn fids_run_out_and_come_back() {
    let folder = Folder::new();
    let mut client = Client::with(&folder, Rules { fids: 100, ..Rules::default() });
    for fid in 1..100 {
        client.reach(fid, "");
    }
    assert_eq!(client.walk(100, ""), Err(Errno::MFILE));
    assert_eq!(client.attach(100).errno(), Errno::MFILE);
    assert_eq!(client.ask(Request::Xattrwalk { fid: 1, new_fid: 100, name: b"" }).errno(), Errno::MFILE);
    client.clunk(50).ok();
    client.reach(100, "");
    assert_eq!(client.session.fids(), 100);
}

#[test]
fn descriptors_run_out_and_come_back() {
    let folder = Folder::new();
    folder.write("tree/f", "x");
    let export =
        Export::open(&folder.tree(), "tag", Rules { descriptors: 20, ..Rules::default() }, "test").unwrap();
    let (mut greedy, mut modest) = (Client::attached(&export), Client::attached(&export));
    let mut fid = 0;
    let refused = loop {
        fid += 1;
        greedy.reach(fid, "f");
        if let Reply::Error { errno } = greedy.ask(Request::Lopen { fid, flags: 0 }).get() {
            break errno;
        }
    };
    assert_eq!((refused, fid), (Errno::MFILE, 16), "a quarter is for what is not open");
    assert_eq!(modest.content("f"), Err(Errno::MFILE));
    modest.reach(1, "f");
    assert_eq!(modest.attr(1).size, 1, "names are looked at all the same");
    modest.ask(Request::Mkdir { directory: ROOT, name: b"d", mode: 0o700, gid: NO_UID }).ok();
    greedy.session.end();
    assert_eq!(modest.content("f"), Ok(b"x".to_vec()));
}

/// An export with fewer descriptors than the thousand files in it, and a client with a fid of each: `10` is fid 10.
fn few_descriptors(folder: &Folder) -> Client {
    for n in 0..1000 {
        folder.write(&format!("tree/d/{n}"), vec![b'x'; n]);
    }
    let mut client = Client::with(folder, Rules { descriptors: 20, ..Rules::default() });
    client.reach(2000, "d");
    for n in 1..1000 {
        client.reach(n, &format!("d/{n}"));
    }
    client
}

#[test]
fn a_fid_that_is_not_open_needs_no_descriptor() {
    let folder = Folder::new();
    let mut client = few_descriptors(&folder);
    for n in (1..1000).rev() {
        assert_eq!(client.attr(n).size, u64::from(n));
    }
    // They follow what their client renames, and only that.
    let rename =
        Request::Renameat { old_directory: ROOT, old_name: b"d", new_directory: ROOT, new_name: b"e" };
    client.ask(rename).ok();
    for n in 1..1000 {
        assert_eq!(client.attr(n).size, u64::from(n));
    }
    client.ask(Request::Rename { fid: 7, directory: ROOT, name: b"seven" }).ok();
    client.ask(Request::Remove { fid: 8 }).ok();
    assert!(folder.has("tree/seven") && !folder.has("tree/e/8"));
    assert_eq!(client.walk_from(2000, 3000, "../e/9"), Ok(3));
    client.ask(Request::Lopen { fid: 9, flags: open::READ_ONLY }).ok();
    std::fs::remove_file(folder.tree().join("e/9")).unwrap();
    (1..1000).filter(|n| ![7, 8, 9].contains(n)).for_each(|n| assert_eq!(client.attr(n).size, u64::from(n)));
    assert_eq!((client.attr(7).size, client.read(9, 0, 99).payload().len()), (7, 9), "open stays open");
    assert_eq!(client.attr(9).size, 9);
}

#[test]
fn a_fid_without_a_descriptor_is_stale_where_something_else_is_found() {
    let folder = Folder::new();
    folder.write("outside/10", "nobody's business");
    let mut client = few_descriptors(&folder);
    // These lost theirs long ago.
    let tree = folder.tree();
    std::fs::remove_file(tree.join("d/1")).unwrap();
    std::fs::rename(tree.join("d/2"), tree.join("d/3")).unwrap();
    std::fs::remove_file(tree.join("d/4")).unwrap();
    std::os::unix::fs::symlink("../../outside/10", tree.join("d/4")).unwrap();
    for fid in 1..5 {
        assert_eq!(client.ask(Request::Getattr { fid, mask: 0 }).errno(), Errno::STALE, "{fid}");
        assert_eq!(client.ask(Request::Lopen { fid, flags: 0 }).errno(), Errno::STALE, "{fid}");
        assert_eq!(client.walk_from(fid, 3000, ""), Ok(0), "a second one is as good");
        client.clunk(3000).ok();
        client.clunk(fid).ok();
    }
    std::fs::rename(tree.join("d"), folder.0.join("gone")).unwrap();
    std::os::unix::fs::symlink("../outside", tree.join("d")).unwrap();
    assert_eq!(client.ask(Request::Lopen { fid: 10, flags: 0 }).errno(), Errno::STALE);
    assert_eq!(folder.read("outside/10"), "nobody's business");
    // Not even the same file, where only a symbolic link leads to it: outside, and inside.
    for (place, target) in [("gone", "../gone"), ("tree/gone", "gone")] {
        std::fs::remove_file(tree.join("d")).unwrap();
        std::os::unix::fs::symlink(target, tree.join("d")).unwrap();
        assert_eq!(client.ask(Request::Lopen { fid: 11, flags: 0 }).errno(), Errno::STALE, "{place}");
        if place == "gone" {
            std::fs::rename(folder.0.join("gone"), tree.join("gone")).unwrap();
        }
    }
}

#[test]
fn ways_do_not_eat_the_memory() {
    let folder = Folder::new();
    let long = ["n"; 15].map(|name| name.repeat(200)).join("/");
    std::fs::create_dir_all(folder.tree().join(&long)).unwrap();
    let mut client = Client::with(&folder, Rules { fids: 1000, ..Rules::default() });
    let refused = (1..1000).find_map(|fid| client.walk(fid, &long).err().map(|errno| (fid, errno)));
    assert_eq!(refused, Some((170, Errno::NOMEM)), "512 bytes for each fid that there may be");
    client.clunk(1).ok();
    client.reach(170, &long);
}

#[test]
fn fids_after_clunk_are_unknown_to_every_request() {
    let folder = Folder::new();
    folder.write("tree/f", "x");
    let mut client = Client::on(&folder);
    client.reach_open(1, "f", open::READ_WRITE);
    client.clunk(1).ok();
    let attr = SetAttr { valid: setattr::SIZE, ..SetAttr::default() };
    for request in [
        Request::Read { fid: 1, offset: 0, count: 1 },
        Request::Write { fid: 1, offset: 0, count: hvl_shared_abi::wire::p9::Payload(0) },
        Request::Lopen { fid: 1, flags: 0 },
        Request::Getattr { fid: 1, mask: 0 },
        Request::Setattr { fid: 1, attr },
        Request::Statfs { fid: 1 },
        Request::Readlink { fid: 1 },
        Request::Readdir { fid: 1, offset: 0, count: 100 },
        Request::Fsync { fid: 1, data_only: 0 },
        Request::Xattrwalk { fid: 1, new_fid: 2, name: b"" },
        Request::Xattrcreate { fid: 1, name: b"user.x", size: 0, flags: 0 },
        Request::Link { directory: ROOT, fid: 1, name: b"x" },
        Request::Rename { fid: 1, directory: ROOT, name: b"x" },
        Request::Remove { fid: 1 },
        Request::Clunk { fid: 1 },
    ] {
        assert_eq!(client.ask(request).errno(), Errno::BADF, "{request:?}");
    }
}

#[test]
fn counts_and_offsets_that_overflow() {
    let folder = Folder::new();
    folder.write("tree/f", "0123");
    let mut client = Client::on(&folder);
    client.reach_open(1, "f", open::READ_WRITE);
    client.reach_open(2, "", open::READ_ONLY);
    assert_eq!(client.read(1, i64::MAX as u64, u32::MAX).payload(), b"");
    for offset in [1 << 63, u64::MAX] {
        assert_eq!(client.read(1, offset, u32::MAX).errno(), Errno::INVAL);
        assert_eq!(client.write(1, offset, b"x").errno(), Errno::FBIG);
        let readdir = Request::Readdir { fid: 2, offset, count: u32::MAX };
        assert_eq!(client.ask(readdir).errno(), Errno::INVAL);
    }
    assert_eq!(client.write(1, i64::MAX as u64, b"x").errno(), Errno::FBIG);
    assert_eq!(client.write(1, i64::MAX as u64 - 4, b"12345678").errno(), Errno::FBIG);
    assert_eq!(folder.read("tree/f"), "0123");
}

#[test]
fn readdir_with_invented_offsets_ends() {
    let folder = Folder::new();
    for n in 0..50 {
        folder.write(&format!("tree/{n}"), "");
    }
    let mut client = Client::on(&folder);
    client.reach_open(1, "", open::READ_ONLY);
    for start in
        [1, 2, 3, 7, 24, 49, 52, 53, 1000, 0x7fff_ffff, 0x8000_0000, i64::MAX as u64 - 1, i64::MAX as u64]
    {
        let (mut offset, mut rounds) = (start, 0);
        loop {
            let answer = client.ask(Request::Readdir { fid: 1, offset, count: 200 });
            if matches!(answer.get(), Reply::Error { .. }) || answer.payload().is_empty() {
                break;
            }
            offset = Entries::new(answer.payload()).last().unwrap().unwrap().offset;
            rounds += 1;
            assert!(rounds <= 60, "it goes on for ever from {start}");
        }
    }
}

#[test]
fn extended_attributes_whose_sizes_lie() {
    let folder = Folder::new();
    folder.write("tree/f", "");
    let mut client = Client::on(&folder);
    let create = |size| Request::Xattrcreate { fid: 1, name: b"user.x", size, flags: 0 };
    client.reach(1, "f");
    for size in [65_537, u64::from(u32::MAX) + 1, u64::MAX] {
        assert_eq!(client.ask(create(size)).errno(), Errno::TOOBIG);
    }
    client.ask(create(4)).ok();
    assert_eq!(client.ask(create(4)).errno(), Errno::BADF, "it stands for the attribute now");
    assert_eq!(client.write(1, 0, b"12345").errno(), Errno::NOSPC, "more than was announced");
    assert_eq!(client.write(1, 1, b"1").errno(), Errno::NOSPC, "a gap");
    assert_eq!(client.write(1, u64::MAX, b"1").errno(), Errno::NOSPC);
    client.write(1, 0, b"12").ok();
    assert_eq!(client.read(1, 0, 4).errno(), Errno::BADF);
    assert_eq!(client.clunk(1).errno(), Errno::INVAL, "less than was announced");
    client.reach(1, "f");
    assert_ne!(client.ask(Request::Xattrwalk { fid: 1, new_fid: 2, name: b"user.x" }).errno(), Errno::BADF);
}

#[test]
fn extended_attributes_do_not_eat_the_memory() {
    let folder = Folder::new();
    folder.write("tree/f", "");
    let mut client = Client::on(&folder);
    let mut fid = 0;
    let refused = loop {
        fid += 1;
        client.reach(fid, "f");
        let create = Request::Xattrcreate { fid, name: b"user.x", size: 65_536, flags: 0 };
        if let Reply::Error { errno } = client.ask(create).get() {
            break errno;
        }
    };
    assert_eq!((refused, fid), (Errno::NOMEM, 17), "a mebibyte is all that a session gets");
    // Given up, it can be had again.
    assert_eq!(client.clunk(3).errno(), Errno::INVAL);
    client.ask(Request::Xattrcreate { fid, name: b"user.x", size: 65_536, flags: 0 }).ok();
}

#[test]
fn a_file_truncated_while_it_is_read() {
    let folder = Folder::new();
    let path = folder.write("tree/f", vec![7; 1 << 20]);
    let mut client = Client::on(&folder);
    client.reach_open(1, "f", open::READ_ONLY);
    assert_eq!(client.read(1, 0, 1 << 19).payload().len(), 1 << 19);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(600_000).unwrap();
    assert_eq!(client.read(1, 1 << 19, 1 << 19).payload().len(), 600_000 - (1 << 19));
    std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    assert_eq!(client.read(1, 1 << 19, 1 << 19).payload(), b"");
    // And at any instant of a read.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            for n in 0..400 {
                file.set_len(if n % 2 == 0 { 1 << 20 } else { 1000 }).unwrap();
            }
        });
        for _ in 0..100 {
            let answer = client.read(1, 0, 1 << 20);
            answer.ok();
            assert!(answer.payload().iter().all(|byte| *byte == 7 || *byte == 0));
        }
    });
}

#[test]
fn a_full_disk_says_so() {
    if !in_own_namespace("bounds::a_full_disk_says_so") {
        return;
    }
    let folder = Folder::new();
    mount_small(&folder.tree());
    let mut client = Client::on(&folder);
    client.reach(1, "");
    let create = Request::Lcreate { fid: 1, name: b"f", flags: open::READ_WRITE, mode: 0o600, gid: NO_UID };
    client.ask(create).ok();
    let (mut written, mut refused) = (0, None);
    while refused.is_none() {
        match client.write(1, written, &[9; 10_000]).get() {
            Reply::Write { count } => written += u64::from(count),
            Reply::Error { errno } => refused = Some(errno),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((refused, written), (Some(Errno::NOSPC), 65_536), "what was acknowledged is there");
    assert_eq!(client.attr(1).size, 65_536);
    assert_eq!(client.read(1, 65_000, 1000).payload(), [9; 536]);
}

#[test]
fn a_limit_on_file_sizes_is_an_error_and_no_death() {
    if std::env::var_os("PMM_TEST_LIMITED").is_none() {
        // The limit is the process's, so it is another process.
        let output = std::process::Command::new("sh")
            .args(["-c", "ulimit -f 8; exec \"$0\" --exact \"$1\" --nocapture"])
            .arg(std::env::current_exe().unwrap())
            .arg("host::export::tests::bounds::a_limit_on_file_sizes_is_an_error_and_no_death")
            .env("PMM_TEST_LIMITED", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let folder = Folder::new();
    folder.write("tree/f", "");
    let mut client = Client::on(&folder);
    client.reach_open(1, "f", open::READ_WRITE);
    assert_eq!(client.write(1, 1 << 20, b"x").errno(), Errno::FBIG);
    let attr = SetAttr { valid: setattr::SIZE, size: 1 << 20, ..SetAttr::default() };
    assert_eq!(client.ask(Request::Setattr { fid: 1, attr }).errno(), Errno::FBIG);
}

#[test]
fn an_export_whose_directory_is_deleted() {
    let folder = Folder::new();
    folder.write("tree/d/f", "x");
    let mut client = Client::on(&folder);
    client.reach_open(1, "d/f", open::READ_ONLY);
    client.reach(2, "d");
    std::fs::remove_dir_all(folder.tree()).unwrap();
    assert_eq!(client.read(1, 0, 9).payload(), b"x");
    assert_eq!(client.walk(3, "d"), Err(Errno::NOENT));
    let mkdir = |directory| Request::Mkdir { directory, name: b"n", mode: 0o700, gid: NO_UID };
    assert_eq!(client.ask(mkdir(ROOT)).errno(), Errno::NOENT);
    assert_eq!(client.ask(mkdir(2)).errno(), Errno::NOENT);
    client.attr(ROOT);
    client.attach(9).ok();
    client.ask(Request::Statfs { fid: ROOT }).ok();
    client.reach(4, "");
    client.ask(Request::Lopen { fid: 4, flags: open::READ_ONLY }).ok();
    assert_eq!(client.ask(Request::Readdir { fid: 4, offset: 0, count: 1000 }).payload(), b"");
}

#[test]
fn a_tree_deeper_than_a_path_can_say() {
    let folder = Folder::new();
    let mut client = Client::on(&folder);
    let name = "n".repeat(200);
    client.reach(1, "");
    let mut depth = 0;
    let refused = loop {
        client.ask(Request::Mkdir { directory: 1, name: name.as_bytes(), mode: 0o700, gid: NO_UID }).ok();
        match client.walk_from(1, 1, &name) {
            Ok(_) => depth += 1,
            Err(errno) => break errno,
        }
        assert!(depth < 100);
    };
    assert_eq!((refused, depth), (Errno::NAMETOOLONG, 20));
}

#[test]
fn threads_on_the_same_fids() {
    let folder = Folder::new();
    folder.write("tree/a/f", "x");
    let client = Client::on(&folder);
    let session = &client.session;
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            scope.spawn(move || {
                let (mut bytes, mut reply) = (vec![0; 4096], Vec::new());
                for round in 0..500u32 {
                    let fid = 1 + (round / 3) % 5;
                    let names = [&b"a"[..], b"f", b"..", b"g"];
                    let request = match (round + thread) % 8 {
                        0 | 1 => Request::Walk { fid: ROOT, new_fid: fid, names: Names::new(&names[..2]) },
                        2 => Request::Lopen { fid, flags: open::READ_WRITE },
                        3 => Request::Read { fid, offset: 0, count: 100 },
                        4 => Request::Walk { fid: ROOT, new_fid: fid, names: Names::new(&names[..1]) },
                        5 => Request::Lcreate {
                            fid,
                            name: b"g",
                            flags: open::READ_WRITE,
                            mode: 0o600,
                            gid: NO_UID,
                        },
                        6 => Request::Renameat {
                            old_directory: ROOT,
                            old_name: b"a",
                            new_directory: ROOT,
                            new_name: b"a",
                        },
                        _ => Request::Clunk { fid },
                    };
                    let tag = (thread * 1000 + round) as u16;
                    let length = request.emit(tag, &[], &mut bytes).unwrap();
                    session.reply_to(&bytes[..length], &mut reply, usize::MAX);
                    assert_eq!(Reply::parse(&reply).unwrap().tag, tag);
                }
            });
        }
    });
    session.end();
    assert_eq!(session.fids(), 0);
}
