//! Who runs: `pmm list`, `pmm status NAME`, and a `serve-9p` among them.

use super::*;

/// A program that serves where `dir` is the directory of control sockets.
fn start(dir: &Dir, arguments: &[&str]) -> Running {
    let mut command = pmm();
    command.args(arguments).env("XDG_RUNTIME_DIR", &dir.0).stdin(Stdio::null()).stderr(Stdio::piped());
    Running(command.spawn().unwrap())
}

fn ask(dir: &Dir, arguments: &[&str]) -> (Option<i32>, String) {
    let output = pmm().args(arguments).env("XDG_RUNTIME_DIR", &dir.0).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// The snapshot of the one that is called so, once the condition holds.
fn wait_for(dir: &Dir, name: &str, condition: &str) -> serde_json::Value {
    let seconds = GUARD.as_secs().to_string();
    let (code, said) = ask(dir, &["status", name, "--json", "--wait-for", condition, "--timeout", &seconds]);
    assert_eq!(code, Some(0), "{said}");
    serde_json::from_str(&said).unwrap()
}

#[test]
fn each_program_that_serves_is_listed_and_asked_by_name() {
    let dir = Dir::new();
    assert!(ask(&dir, &["list"]).1.contains("no pmm of this user runs"));
    assert_eq!(ask(&dir, &["list", "--json"]), (Some(0), "[]\n".into()));
    std::fs::create_dir(dir.path("tree")).unwrap();
    let listen = format!("unix:{}", dir.text("9p"));
    let options = ["--no-dtb", "--shmem-addr", "1M", "--shmem-size", "1M", "--rng"];
    let link = |name| start(&dir, &[&["run", "--name", name][..], &options].concat());
    let (one, two) = (link("r5-0"), link("r5-1"));
    let files = start(&dir, &["serve-9p", &dir.text("tree"), "--listen", &listen, "--ro"]);
    for name in ["r5-0", "r5-1"] {
        let status = wait_for(&dir, name, &format!("links.{name}.state=serving"));
        assert_eq!(status["links"][0]["name"], name);
    }
    wait_for(&dir, "tree", "shares.tree.read_only=true");

    let (code, said) = ask(&dir, &["list", "--json"]);
    assert_eq!(code, Some(0), "{said}");
    let listed: serde_json::Value = serde_json::from_str(&said).unwrap();
    let (_, table) = ask(&dir, &["list"]);
    for (program, name) in [(&one, "r5-0"), (&two, "r5-1"), (&files, "tree")] {
        let pid = program.0.id();
        let entry = listed.as_array().unwrap().iter().find(|entry| entry["pid"] == pid).unwrap();
        assert_eq!(entry["name"], name);
        let control = entry["control"].as_str().unwrap();
        assert!(Path::new(control).exists(), "{control}");
        let row = table.lines().find(|row| row.trim_start().starts_with(&format!("{pid} "))).unwrap();
        assert!(row.contains(&format!(" {name} ")) && row.ends_with(control), "{table}");
        assert_eq!(wait_for(&dir, &pid.to_string(), &format!("pmm.pid={pid}"))["pmm"]["pid"], pid);
    }
    assert_eq!(table.lines().count(), 4, "{table}");

    let (code, said) = ask(&dir, &["status"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("several pmms run") && said.contains("tree (process"), "{said}");
    let (code, said) = ask(&dir, &["status", "r5-2"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("r5-2: no pmm of this user is called so; there is ") && said.contains("r5-1"),
        "{said}"
    );
    for program in [one, two, files] {
        assert_eq!(program.end().0, Some(0));
    }
    assert_eq!(ask(&dir, &["list", "--json"]), (Some(0), "[]\n".into()));
}

#[test]
fn a_server_of_files_tells_of_its_clients() {
    let dir = Dir::new();
    std::fs::create_dir(dir.path("tree")).unwrap();
    let listen = format!("unix:{}", dir.text("9p"));
    let control = dir.text("control");
    let files = start(
        &dir,
        &["serve-9p", &dir.text("tree"), "--listen", &listen, "--control", &control, "--name", "t"],
    );
    dir.wait_for("shares.t.connects=0");
    let mut client = UnixStream::connect(dir.path("9p")).unwrap();
    // Tversion with 64 KiB, and Tattach as fid 7.
    let version = b"\x15\0\0\0\x64\xff\xff\0\0\x01\0\x08\09P2000.L";
    let attach = b"\x17\0\0\0\x68\x01\0\x07\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0";
    for message in [&version[..], attach] {
        client.write_all(message).unwrap();
        let mut length = [0; 4];
        client.read_exact(&mut length).unwrap();
        client.read_exact(&mut vec![0; u32::from_le_bytes(length) as usize - 4]).unwrap();
    }
    let status = dir.wait_for("shares.t.clients.0.fids=1");
    let share = &status["shares"][0];
    assert_eq!((&share["clients"][0]["requests"], &share["connects"]), (&2.into(), &1.into()), "{status}");
    assert_eq!(share["listen"], listen.as_str());
    assert!(share["max_fids"].as_u64() > Some(0) && share["max_clients"].as_u64() > Some(0), "{status}");
    let text = pmm().args(["status", "--control", &control]).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    let own = std::process::id();
    assert!(text.contains(&format!("process {own}: fids 1, requests 2")), "{text}");
    // Who follows is told of the end of a client, though nobody asks or connects.
    let mut follow = pmm();
    follow.args(["status", "--json", "--follow", "--control", &control]).stdout(Stdio::piped());
    let mut follower = Running(follow.stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(follower.0.stdout.take().unwrap()).lines();
    let mut next = || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["shares"][0]["connected"], 1);
    drop(client);
    let share = loop {
        let status = next();
        if status["shares"][0]["connected"] == 0 {
            break status["shares"][0].clone();
        }
    };
    assert_eq!((&share["clients"], &share["connects"]), (&serde_json::json!([]), &1.into()));
    let (code, said) = files.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(!dir.path("control").exists());
}
