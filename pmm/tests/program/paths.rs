//! Paths that others may change, and sockets that others have made: what `pmm` does not open, and whom it does not
//! believe.

use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;

/// What a `pmm run` that ends at once leaves behind.
fn apart(dir: &Dir, more: &str) -> Output {
    dir.run(more).stdin(Stdio::null()).output().unwrap()
}

/// Says that a command was refused with 1, and why; and that nothing was made in `tree`.
fn refused(output: &Output, tree: &Path, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.trim_end().lines().count()), (Some(1), 1), "{said}");
    for part in parts {
        assert!(said.contains(part), "it should say '{part}': {said}");
    }
    let made: Vec<_> = std::fs::read_dir(tree).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(made.iter().all(|name| name == "out"), "something was made: {made:?}");
}

#[test]
fn nothing_that_is_opened_lies_where_a_guest_may_change_it() {
    let dir = Dir::new();
    let tree = dir.path("tree");
    std::fs::create_dir_all(&tree).unwrap();
    // A link that the guest can turn, to a place that it cannot reach.
    std::fs::create_dir_all(dir.path("outside")).unwrap();
    symlink(dir.path("outside"), tree.join("out")).unwrap();
    let here = std::fs::canonicalize(".").unwrap();
    let up = here.components().skip(1).map(|_| "..").collect::<Vec<_>>().join("/");
    let tree_text = tree.display().to_string();
    let ways = [
        tree_text.clone(),
        format!("{tree_text}/"),
        format!("{}/outside/../tree", dir.0.display()),
        format!("{up}{tree_text}"),
        format!("{tree_text}/out"),
    ];
    let shared = format!("--9p {tree_text},t");
    for way in &ways {
        for (option, value) in [
            ("--console", "file:P"),
            ("--console", "unix:P"),
            ("--console", "pty:P"),
            ("--pcap", "P --network mode=none"),
            ("--state", "P"),
            ("--doorbell", "unix-stream:P"),
            ("--doorbell", "unix-stream:P,listen"),
            ("--doorbell", "unix-dgram:bind=P,peer=/nonexistent"),
            ("--doorbell", "unix-dgram:bind=/nonexistent,peer=P"),
            ("--vsock", "3,path=P"),
            ("--network", "mode=socket,stream=unix:P"),
            ("--network", "mode=socket,stream=unix:P,listen"),
            ("--network", "mode=socket,dgram=unix:P,peer=unix:/nonexistent"),
            ("--network", "mode=socket,dgram=unix:/nonexistent,peer=unix:P"),
            ("--network", "mode=user,passt=P"),
            ("--control", "P"),
            ("--shmem-file", "P"),
        ] {
            let value = value.replace('P', &format!("{way}/x"));
            let output = apart(&dir, &format!("--rng {shared} {option} {value}"));
            refused(&output, &tree, &["--9p ", ",t: ", option, "lies in it"]);
            assert_eq!(std::fs::read_dir(dir.path("outside")).unwrap().count(), 0, "{option} {value}");
        }
    }
    // Who can only look changes nothing.
    let console = format!("--9p {tree_text},t,ro --console file:{tree_text}/x");
    assert_eq!(dir.start(&console).end().0, Some(0));
}

#[test]
fn a_directory_that_others_see_lies_apart_from_one_that_a_guest_may_change() {
    let dir = Dir::new();
    let tree = dir.path("tree");
    std::fs::create_dir_all(tree.join("out")).unwrap();
    let (outer, inner) = (tree.display(), tree.join("out"));
    let output = apart(&dir, &format!("--9p {outer},a --9p {},b,ro", inner.display()));
    refused(&output, &tree, &["--9p ", ",a: ", "the directory of --9p ", ",b,ro lies in it"]);
    // Two guests, or one by two names, may have the same one.
    let output = dir.start(&format!("--9p {outer},a --9p {outer},b")).end();
    assert_eq!(output.0, Some(0), "{}", output.1);
}

#[test]
fn a_file_with_a_second_name_may_have_it_where_a_guest_may_change_it() {
    let dir = Dir::new();
    let tree = dir.path("tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(dir.path("state"), "").unwrap();
    std::fs::hard_link(dir.path("state"), tree.join("out")).unwrap();
    let options = format!("--rng --9p {},t --state {}", tree.display(), dir.text("state"));
    refused(&apart(&dir, &options), &tree, &["--state of 'link0'", "hard links"]);
    std::fs::remove_file(tree.join("out")).unwrap();
    assert_eq!(dir.start(&options).end().0, Some(0));
}

#[test]
fn a_directory_that_is_mounted_elsewhere_is_the_same_directory() {
    let dir = Dir::new();
    for name in ["tree", "elsewhere"] {
        std::fs::create_dir_all(dir.path(name)).unwrap();
    }
    // In a mount namespace of its own, which needs rights.
    let script = "mount --make-rprivate / && mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
    let inside = |more: &str| {
        let run = dir.run(more);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh", &dir.text("tree"), &dir.text("elsewhere")]);
        command.arg(run.get_program()).args(run.get_args()).stdin(Stdio::null()).output()
    };
    let tried = inside("--help");
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        hvl_test_kit::skipped(format!(
            "a_directory_that_is_mounted_elsewhere: no mount namespace ({tried:?})"
        ));
        return;
    }
    for (shared, path) in [("tree", "elsewhere"), ("elsewhere", "tree")] {
        let options = format!("--9p {},t --console file:{}/x", dir.text(shared), dir.text(path));
        refused(&inside(&options).unwrap(), &dir.path("tree"), &["--console of 'link0'", "lies in it"]);
    }
}

#[test]
fn a_shared_directory_does_not_hold_the_socket_that_leads_to_it() {
    let dir = Dir::new();
    let (tree, socket) = (dir.path("tree"), dir.text("tree/socket"));
    std::fs::create_dir_all(&tree).unwrap();
    let mut command = pmm();
    command.args(["serve-9p", &tree.display().to_string(), "--listen", &format!("unix:{socket}")]);
    let said = failure(&mut command, 1);
    assert!(said.contains("serve-9p ") && said.contains("--listen") && said.contains("lies in it"), "{said}");
    assert_eq!(std::fs::read_dir(&tree).unwrap().count(), 0);
}

/// A file of two links with vsocks, and `more` for each.
fn two_links(dir: &Dir, one: &str, two: &str) -> Command {
    let link = |name: &str, more: &str| {
        format!(
            "[[link]]\nname = '{name}'\nno-dtb = true\nshmem-addr = '1M'\nshmem-size = '1M'\nrng = true\n{more}\n"
        )
    };
    let text = format!("control = '{}'\n{}{}", dir.text("control"), link("r5", one), link("r5_7", two));
    std::fs::write(dir.path("links.toml"), text).unwrap();
    let mut command = pmm();
    command.args(["run", "--config", &dir.text("links.toml")]);
    command
}

#[test]
fn links_do_not_meet_by_naming() {
    let dir = Dir::new();
    let at = |name: &str| dir.text(name);
    for two in [
        format!("vsock = '4,path={}'", at("v_7")),
        format!("console = 'unix:{}'", at("v_8")),
        format!("console = 'file:{}'", at("./v_4294967295")),
        format!("doorbell = 'unix-stream:{}'", at("v_0")),
        format!("network = ['mode=none']\npcap = '{}'", at("v_9")),
        format!("network = ['mode=socket,stream=unix:{}']", at("v_1")),
    ] {
        let said = failure(&mut two_links(&dir, &format!("vsock = '3,path={}'", at("v")), &two), 2);
        assert!(said.contains("--vsock of 'r5'") && said.contains("of 'r5_7'"), "{said}");
    }
    // Nor at what a file becomes when it is full.
    let (one, two) =
        (format!("console = 'file:{},max=1M'", at("log")), format!("console = 'unix:{}'", at("log.old")));
    let said = failure(&mut two_links(&dir, &one, &two), 2);
    assert!(said.contains("log.old: each needs its own"), "{said}");
    // By another name of the same directory it is the machine that refuses.
    symlink(&dir.0, dir.path("same")).unwrap();
    let two = format!("vsock = '4,path={}'", at("same/v_7"));
    let said = failure(&mut two_links(&dir, &format!("vsock = '3,path={}'", at("v")), &two), 1);
    assert!(said.contains("--vsock of 'r5'") && said.contains("of 'r5_7'"), "{said}");
    // Nor do two options share a file by two names of it.
    std::fs::write(dir.path("log"), "").unwrap();
    std::fs::hard_link(dir.path("log"), dir.path("log2")).unwrap();
    let console = |name: &str| format!("console = 'file:{}'", at(name));
    let said = failure(&mut two_links(&dir, &console("log"), &console("log2")), 1);
    assert!(said.contains("are one file"), "{said}");
}

#[test]
fn links_whose_names_are_each_others_ports_do_not_meet_by_default() {
    let dir = Dir::new();
    let mut command = two_links(&dir, "vsock = '3'", "vsock = '4'");
    command.env("XDG_RUNTIME_DIR", &dir.0).stdin(Stdio::null()).stderr(Stdio::piped());
    let running = Running(command.spawn().unwrap());
    dir.wait_for("links.r5_7.state=serving");
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    let path = |cid: u32| {
        let rest = said.split(&format!("vsock {cid}: 'CONNECT PORT' at ")).nth(1).unwrap();
        rest.split(';').next().unwrap().to_string()
    };
    let (one, two) = (path(3), path(4));
    assert!(one.starts_with(&dir.text("pmm/")) && two != one, "{one} {two}");
    assert_ne!(format!("{one}_7"), two);
}

#[test]
fn sockets_are_their_owners_alone_whatever_the_umask_is() {
    for umask in ["000", "777"] {
        let dir = Dir::new();
        let run = dir.run(&format!(
            "--rng --console unix:{} --vsock 3,path={} --doorbell unix-dgram:bind={},peer={} --network mode=socket,stream=unix:{},listen",
            dir.text("console"),
            dir.text("vsock"),
            dir.text("bell"),
            dir.text("peer"),
            dir.text("card")
        ));
        let mut command = Command::new("sh");
        command.args(["-c", "umask $1; shift; exec \"$@\"", "sh", umask]).arg(run.get_program());
        command.args(run.get_args()).stdin(Stdio::null()).stderr(Stdio::piped());
        let running = Running(command.spawn().unwrap());
        dir.wait_for("links.0.state=serving");
        for name in ["console", "vsock", "bell", "card", "control"] {
            let mode = std::fs::symlink_metadata(dir.path(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name} with umask {umask}");
        }
        assert_eq!(running.end().0, Some(0));
    }
}

#[test]
fn a_default_path_that_is_too_long_blames_what_made_it_so() {
    let dir = Dir::new();
    let long = dir.path(&["x"; 60].join("/"));
    std::fs::create_dir_all(&long).unwrap();
    for (more, out) in [("", "--control PATH"), ("--vsock 3 --control c", "--vsock CID,path=PATH")] {
        let mut command = pmm();
        command.args(["run", "--no-dtb", "--shmem-addr", "1M", "--shmem-size", "1M", "--rng"]);
        command.args(more.split_whitespace()).env("XDG_RUNTIME_DIR", &long);
        let said = failure(&mut command, 2);
        assert!(said.contains("XDG_RUNTIME_DIR=") && said.contains(out), "{said}");
        assert!(!said.starts_with("pmm: --control"), "nobody gave it: {said}");
    }
}

/// Answers everybody who connects with `answer`, over and over if it has no end.
fn forger(path: &Path, answer: &'static [u8]) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // Not before it is asked: one that closes earlier is no answer.
            let _ = stream.read(&mut [0; 64]);
            while stream.write_all(answer).is_ok() && !answer.ends_with(b"\n") {}
        }
    });
}

#[test]
fn an_answer_without_end_or_with_tricks_does_no_harm() {
    let dir = Dir::new();
    let ask = |name: &str, more: &[&str]| {
        let output = pmm().args(["status", "--control", &dir.text(name)]).args(more).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    forger(&dir.path("endless"), &[b'x'; 4096]);
    let (code, said, why) = ask("endless", &[]);
    assert_eq!((code, said.as_str()), (Some(1), ""), "{why}");
    assert!(why.contains("more than 1048576 bytes"), "{why}");
    // Escape sequences in their two manners, and letters that run backwards.
    let tricks = "{\"pmm\":{\"version\":\"\u{9b}31m\\u001b[2J\u{202e}\",\"pid\":1},\"links\":[],\"x\":\"\u{9b}31m\u{202e}\"}\n";
    forger(&dir.path("tricks"), tricks.as_bytes());
    let never = ["--wait-for", "pmm.version=y", "--timeout", "20"];
    for more in [&[][..], &["--json"], &never] {
        let (_, said, why) = ask("tricks", more);
        for (text, name) in [(&said, "standard output"), (&why, "standard error")] {
            let bad = text.chars().find(|char| (char.is_control() && *char != '\n') || *char == '\u{202e}');
            assert_eq!(bad, None, "{name} of {more:?}: {text:?}");
        }
        assert!(said.contains("31m") || why.contains("31m"), "it is shown: {said}{why}");
    }
    let (_, json, _) = ask("tricks", &["--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["x"], "\u{9b}31m\u{202e}");
    // What is no answer is not shown at all.
    forger(&dir.path("noise"), b"\x1b[2J\n");
    let (code, said, why) = ask("noise", &["--json"]);
    assert_eq!((code, said.as_str()), (Some(1), ""), "{why}");
}

/// Another user, whom nobody else is.
struct Other {
    uid: u32,
    dir: Dir,
}

impl Other {
    /// Needs rights: whoever may not become another user is told of.
    fn new(test: &str, number: u32) -> Option<Other> {
        let uid = 600_000_000 + number * 10_000_000 + std::process::id() % 10_000_000;
        if !rustix::process::geteuid().is_root() {
            hvl_test_kit::skipped(format!("{test}: another user can be had by root only"));
            return None;
        }
        let dir = Dir::new();
        std::fs::set_permissions(&dir.0, PermissionsExt::from_mode(0o755)).unwrap();
        // Where the program lies, others may not look.
        std::fs::copy(env!("CARGO_BIN_EXE_pmm"), dir.path("program")).unwrap();
        Some(Other { uid, dir })
    }

    fn pmm(&self) -> Command {
        let mut command = Command::new(self.dir.path("program"));
        command.uid(self.uid).gid(self.uid).env_remove("XDG_RUNTIME_DIR").current_dir("/");
        command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    fn run(&self, more: &[&str]) -> Running {
        let mut command = self.pmm();
        command.args(["run", "--no-dtb", "--shmem-addr", "1M", "--shmem-size", "1M", "--rng"]).args(more);
        Running(command.spawn().unwrap())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/tmp").unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!("pmm-{}", self.uid)) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

const FORGED: &[u8] =
    b"{\"pmm\":{\"version\":\"forged\",\"pid\":1},\"links\":[{\"name\":\"link0\",\"state\":\"serving\"}]}\n";

#[test]
fn a_directory_that_a_stranger_made_first_is_neither_believed_nor_in_the_way() {
    let Some(user) = Other::new("a_directory_that_a_stranger_made_first", 1) else { return };
    let squatted = PathBuf::from(format!("/tmp/pmm-{}", user.uid));
    std::fs::create_dir(&squatted).unwrap();
    std::fs::set_permissions(&squatted, PermissionsExt::from_mode(0o777)).unwrap();
    let trap = squatted.join(format!("link0.{}.sock", std::process::id()));
    forger(&trap, FORGED);
    std::fs::set_permissions(&trap, PermissionsExt::from_mode(0o777)).unwrap();
    let output = user.pmm().args(["status", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));

    let running = user.run(&["--vsock", "3"]);
    let seconds = GUARD.as_secs().to_string();
    let wait = ["status", "--json", "--wait-for", "links.0.state=serving", "--timeout", &seconds];
    let output = user.pmm().args(wait).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["pmm"]["pid"], running.0.id());
    assert_eq!(std::fs::read_dir(&squatted).unwrap().count(), 1, "nothing was put there");
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_socket_of_another_user_is_not_believed() {
    let Some(user) = Other::new("a_socket_of_another_user", 2) else { return };
    let ask = |path: &str| pmm().args(["status", "--json", "--control", path]).output().unwrap();
    // Whose file it is.
    let theirs = user.dir.path("theirs");
    forger(&theirs, FORGED);
    std::os::unix::fs::chown(&theirs, Some(user.uid), None).unwrap();
    let link = user.dir.text("link");
    symlink(&theirs, &link).unwrap();
    for path in [theirs.to_str().unwrap(), &link] {
        let output = ask(path);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("belongs to user {}", user.uid)), "{said}");
    }
    // Who listens, though the file is ours.
    let place = user.dir.path("place");
    std::fs::create_dir(&place).unwrap();
    std::os::unix::fs::chown(&place, Some(user.uid), None).unwrap();
    let socket = place.join("socket").display().to_string();
    let mut running = user.run(&["--control", &socket]);
    let mut lines = BufReader::new(running.0.stderr.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("pmm epoch")).expect("it serves").unwrap();
    std::os::unix::fs::chown(&socket, Some(0), None).unwrap();
    let output = ask(&socket);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("a process of user {}", user.uid)), "{said}");
}
