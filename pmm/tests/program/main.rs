//! The program `pmm` as a user or a script meets it: exit codes, messages, sockets, locks, terminals.
//!
//! Nothing here sleeps. A test waits for a line, a state (`pmm status --wait-for`) or an end; where a time is given it
//! is a guard whose message names what did not happen.

mod list;
mod paths;
mod plain;
mod refusals;
mod room;
mod trouble;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use rustix::termios::LocalModes;

const GUARD: Duration = Duration::from_secs(20);

/// A directory of one test, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("pmm-program-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A `pmm run` with a region in `ddr`, a control socket in `control` and a line of options.
    fn run(&self, options: &str) -> Command {
        let mut command = pmm();
        command.args(["run", "--pmm", "--no-dtb", "--shmem-addr", "0x10000000", "--shmem-size", "1M"]);
        command.args(["--shmem-file", &self.text("ddr"), "--control", &self.text("control")]);
        command.args(options.split_whitespace());
        command
    }

    fn start(&self, options: &str) -> Running {
        let child =
            self.run(options).stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let running = Running(child.unwrap());
        self.wait_for("links.0.state=serving");
        running
    }

    fn status(&self, more: &[&str]) -> Output {
        pmm().args(["status", "--json", "--control", &self.text("control")]).args(more).output().unwrap()
    }

    /// The snapshot once the condition holds.
    fn wait_for(&self, condition: &str) -> serde_json::Value {
        let seconds = GUARD.as_secs().to_string();
        let output = self.status(&["--wait-for", condition, "--timeout", &seconds]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn pmm() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pmm"))
}

/// A running `pmm`, killed when a test fails.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Ends it in order: its exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        self.signal(Signal::TERM);
        self.result()
    }

    fn result(&mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.0.wait().unwrap().code(), said)
    }

    /// Ends it in order where what it says goes to a terminal: its exit code.
    fn end_quietly(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.0.wait().unwrap().code()
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a command that fails at once says: one line.
fn failure(command: &mut Command, code: i32) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), said.trim_end().lines().count()),
        (Some(code), 1),
        "{command:?}: {said}"
    );
    assert!(said.starts_with("pmm: "), "{said}");
    said
}

#[test]
fn misuse_ends_with_2_before_anything_is_opened() {
    let dir = Dir::new();
    for options in [
        "--rgn",
        "--rng --console serial",
        "--rng --network mode=tap,trans=pci",
        "--rng -- 9p /tmp,x",
        "--rng --shmem-size 4K",
        "",
    ] {
        failure(&mut dir.run(options), 2);
        assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 0, "'{options}' left something behind");
    }
    failure(&mut pmm(), 2);
    failure(pmm().args(["status", "--wait-for", "nonsense"]), 2);
}

#[test]
fn help_and_version_end_with_0() {
    for arguments in [&["--help"][..], &["run", "--help"], &["status", "-h"], &["--version"]] {
        let output = pmm().args(arguments).output().unwrap();
        assert!(
            output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn what_the_machine_refuses_ends_with_1() {
    let dir = Dir::new();
    let ddr = dir.text("ddr");
    for (options, part) in [
        ("--rng --shmem-file /nonexistent/x", "--shmem-file /nonexistent/x"),
        ("--rng --shmem-file /dev/null", "not a regular file"),
        ("--rng --doorbell unix-stream:/nonexistent/x,listen", "--doorbell unix-stream:/nonexistent/x"),
        ("--console file:/nonexistent/x", "--console file:/nonexistent/x"),
        ("--console pty:/nonexistent/x", "--console pty:/nonexistent/x"),
        ("--rng --state /nonexistent/x", "--state /nonexistent/x"),
        ("--rng --control /nonexistent/x", "--control /nonexistent/x"),
    ] {
        let said = failure(&mut dir.run(options), 1);
        assert!(said.contains(part), "{said}");
    }
    let said = failure(pmm().args(["run", "--config", "/nonexistent/x"]), 1);
    assert!(said.contains("--config /nonexistent/x: cannot be read"), "{said}");
    File::create(&ddr).unwrap().set_len(4096).unwrap();
    let said = failure(&mut dir.run("--rng"), 1);
    assert!(said.contains("0x1000 bytes") && said.contains("truncate -s 1048576"), "{said}");
    let said = failure(pmm().args(["status", "--control", &dir.text("nobody")]), 1);
    assert!(said.contains("no pmm answers"), "{said}");
}

#[test]
fn a_region_that_is_served_names_who_serves_it() {
    let dir = Dir::new();
    let one = dir.start("--rng");
    let said = failure(dir.run("--rng").args(["--control", &dir.text("other")]), 1);
    assert!(said.contains(&format!("process {} (pmm)", one.0.id())), "{said}");
    // A killed one is gone with its lock and its stale sockets, without a word.
    let two = one.kill_and(|| dir.start("--rng"));
    let status = dir.wait_for("links.0.pmm_epoch>=4");
    assert_eq!(status["pmm"]["pid"], two.0.id());
    let (code, said) = two.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(!dir.path("control").exists());
}

impl Running {
    fn kill_and<T>(self, then: impl FnOnce() -> T) -> T {
        self.kill();
        then()
    }
}

#[test]
fn signals_end_it_in_order() {
    let dir = Dir::new();
    let often = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];
    let seldom = [Signal::ALARM, Signal::VTALARM, Signal::PROF, Signal::IO, Signal::POWER, Signal::XCPU];
    for signal in often.into_iter().chain(seldom) {
        let bell = format!(
            "--rng --doorbell unix-stream:{},listen --console unix:{}",
            dir.text("bell"),
            dir.text("tty")
        );
        let mut running = dir.start(&bell);
        assert!(dir.path("bell").exists() && dir.path("tty").exists());
        let mut guest = UnixStream::connect(dir.path("bell")).unwrap();
        guest.set_read_timeout(Some(GUARD)).unwrap();
        guest.read_exact(&mut [0]).expect("no doorbell for a peer that has come");
        running.signal(signal);
        let (code, said) = running.result();
        assert_eq!(code, Some(0), "{said}");
        guest.read_exact(&mut [0]).expect("no doorbell for the end");
        for name in ["bell", "tty", "control"] {
            assert!(!dir.path(name).exists(), "{signal:?} left {name} behind");
        }
    }
    // PmmEpoch is odd: whoever is attached knows that there is no PMM.
    let mut word = [0; 4];
    File::open(dir.path("ddr")).unwrap().read_exact_at(&mut word, 0xd0).unwrap();
    assert_eq!(u32::from_le_bytes(word) % 2, 1);
}

#[test]
fn signals_that_report_nothing_to_end_for_end_nothing() {
    let dir = Dir::new();
    let running = dir.start("--rng");
    let ignored = [Signal::PIPE, Signal::XFSZ, Signal::TTIN, Signal::TTOU];
    for signal in ignored.into_iter().chain([Signal::WINCH, Signal::CHILD, Signal::CONT, Signal::URG]) {
        running.signal(signal);
        // One more question each: it is served after the signal, by a process that was not stopped.
        dir.wait_for("links.0.state=serving");
    }
    running.signal(Signal::STOP);
    running.signal(Signal::CONT);
    dir.wait_for("links.0.state=serving");
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_guest_that_says_hello_is_adopted() {
    let dir = Dir::new();
    let listener = UnixListener::bind(dir.path("bell")).unwrap();
    let running = dir.start(&format!(
        "--rng --console file:{} --doorbell unix-stream:{}",
        dir.text("log"),
        dir.text("bell")
    ));
    let (mut bell, _) = listener.accept().unwrap();
    bell.set_read_timeout(Some(GUARD)).unwrap();
    let ddr = File::options().read(true).write(true).open(dir.path("ddr")).unwrap();
    let word = |at| {
        let mut word = [0; 4];
        ddr.read_exact_at(&mut word, at).unwrap();
        u32::from_le_bytes(word)
    };
    for epoch in 1..4u32 {
        // DriverEpoch, then the doorbell.
        ddr.write_all_at(&epoch.to_le_bytes(), 0xd4).unwrap();
        bell.write_all(&[1]).unwrap();
        dir.wait_for(&format!("links.0.driver_epoch={epoch}"));
        // EpochSeen; and we are rung for it.
        assert_eq!(word(0xd8), epoch);
        bell.read_exact(&mut [0]).expect("no doorbell after the adoption");
    }
    let status = dir.wait_for("links.link0.adoptions>=3");
    assert_eq!(
        (&status["links"][0]["profile"], &status["links"][0]["doorbell"]["peer"]),
        (&"extended".into(), &true.into())
    );
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("link0: extended guest, epoch "), "{said}");
}

#[test]
fn the_memory_of_a_link_is_no_file_of_a_guest() {
    let dir = Dir::new();
    let (link, tree) = (dir.text("link"), dir.0.display());
    std::os::unix::fs::symlink(&dir.0, &link).unwrap();
    for shared in [format!("{tree},t"), format!("{link},t"), "/,t".into()] {
        let output = dir.run(&format!("--9p {shared}")).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("--9p {shared}: the memory of 'link0'")), "{said}");
    }
    let running = dir.start(&format!("--9p {tree},t,ro"));
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn an_absent_peer_is_said_once_and_bounded_by_wait() {
    let dir = Dir::new();
    let bell = format!("--rng --wait 1 --doorbell unix-stream:{}", dir.text("bell"));
    let output = dir.run(&bell).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("no peer yet").count(), 1, "{said}");
    assert!(said.contains("--wait 1") && said.contains("link0"), "{said}");
    let said = failure(
        pmm().args([
            "status",
            "--wait-for",
            "links.0.state=serving",
            "--timeout",
            "0",
            "--control",
            &dir.text("x"),
        ]),
        1,
    );
    assert!(said.contains("no pmm answers"), "{said}");
}

#[test]
fn an_idle_link_wakes_once_a_second() {
    let dir = Dir::new();
    let listener = UnixListener::bind(dir.path("bell")).unwrap();
    let running = dir.start(&format!("--rng --doorbell unix-stream:{}", dir.text("bell")));
    let (bell, _) = listener.accept().unwrap();
    dir.wait_for("links.0.doorbell.peer=true");
    let switches = || -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", running.0.id())).unwrap();
        let of = |task: std::fs::DirEntry| {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        tasks.map(|task| of(task.unwrap())).sum()
    };
    // The window is measured by a read that nobody answers; what settles after the start is not counted.
    let window = |seconds| {
        bell.set_read_timeout(Some(Duration::from_secs(seconds))).unwrap();
        while let Ok(1..) = (&bell).read(&mut [0; 64]) {}
    };
    window(1);
    let before = switches();
    window(4);
    let woke = switches() - before;
    assert!(woke <= 5, "{woke} wake-ups in 4 s");
    let rss = std::fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap();
    println!("idle: {woke} wake-ups in 4 s, {}", rss.lines().find(|line| line.starts_with("VmRSS")).unwrap());
}

#[test]
fn several_links_from_a_file() {
    let dir = Dir::new();
    let link = |name: &str, at: u32| {
        format!(
            "[[link]]\nname = '{name}'\nno-dtb = true\nshmem-addr = 0x10000000\nshmem-size = '1M'\nrng = true\n\
             shmem-file = '{}'\nshmem-offset = {at}\n",
            dir.text("ddr")
        )
    };
    File::create(dir.path("ddr")).unwrap().set_len(2 << 20).unwrap();
    let text = format!("control = '{}'\n{}{}", dir.text("control"), link("one", 0), link("two", 1 << 20));
    std::fs::write(dir.path("links.toml"), text).unwrap();
    let mut command = pmm();
    command.args(["run", "--log-json", "--config", &dir.text("links.toml")]);
    let running = Running(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let status = dir.wait_for("links.two.state=serving");
    assert_eq!(status["links"].as_array().unwrap().len(), 2);
    let text = pmm().args(["status", "--control", &dir.text("control")]).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("one: serving, no guest") && text.contains("two: serving, no guest"), "{text}");
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    for line in said.lines() {
        let event: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert!(event["level"].is_string() && event["message"].is_string(), "{line}");
    }
    assert!(said.contains(r#""span":{"name":"two"}"#) || said.contains("two"), "{said}");
}

#[test]
fn a_follower_hears_changes_and_the_end() {
    let dir = Dir::new();
    let running = dir.start(&format!("--rng --doorbell unix-stream:{},listen", dir.text("bell")));
    let mut follower = Running(
        pmm()
            .args(["status", "--json", "--follow", "--control", &dir.text("control")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(follower.0.stdout.take().unwrap()).lines();
    let mut next = || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["links"][0]["doorbell"]["peer"], false);
    let _peer = UnixStream::connect(dir.path("bell")).unwrap();
    while next()["links"][0]["doorbell"]["peer"] != true {}
    assert_eq!(running.end().0, Some(0));
    while next()["links"][0]["state"] != "ended" {}
    assert_eq!(follower.result().0, Some(0));
}

/// A terminal for a child, and the side of it where the user sits.
fn terminal() -> (File, File) {
    let user: OwnedFd =
        rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&user).unwrap();
    rustix::pty::unlockpt(&user).unwrap();
    let name = rustix::pty::ptsname(&user, Vec::new()).unwrap();
    let terminal = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (user.into(), terminal)
}

/// Reads from a terminal until it says `text`.
fn expect(user: &File, text: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(text) {
        let mut set = [rustix::event::PollFd::new(user, rustix::event::PollFlags::IN)];
        let time = rustix::event::Timespec { tv_sec: GUARD.as_secs() as i64, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut set, Some(&time)).unwrap();
        assert!(ready > 0, "waited for '{text}' and saw {}", String::from_utf8_lossy(&seen));
        let mut bytes = [0; 256];
        let got = (&*user).read(&mut bytes).unwrap();
        seen.extend_from_slice(&bytes[..got]);
    }
}

fn modes(terminal: &File) -> LocalModes {
    rustix::termios::tcgetattr(terminal).unwrap().local_modes
}

fn on_terminal(dir: &Dir, terminal: &File) -> Running {
    let again = || Stdio::from(terminal.try_clone().unwrap());
    Running(dir.run("--console stdio").stdin(again()).stdout(again()).stderr(again()).spawn().unwrap())
}

#[test]
fn a_terminal_is_raw_until_ctrl_a_x() {
    let dir = Dir::new();
    let (user, terminal) = terminal();
    let before = modes(&terminal);
    let mut running = on_terminal(&dir, &terminal);
    expect(&user, "Ctrl-A x ends, Ctrl-A h helps");
    dir.wait_for("links.0.state=serving");
    assert!(!modes(&terminal).intersects(LocalModes::ISIG | LocalModes::ICANON | LocalModes::ECHO));
    // Nobody reads the console, and still Ctrl-A works; Ctrl-C is the guest's.
    (&user).write_all(b"\x03\x01h").unwrap();
    expect(&user, "goes to the guest, Ctrl-C too");
    (&user).write_all(b"\x01x").unwrap();
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    assert_eq!(modes(&terminal), before);
}

#[test]
fn a_terminal_is_restored_after_a_signal() {
    let dir = Dir::new();
    let (user, terminal) = terminal();
    let before = modes(&terminal);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1, Signal::ALARM] {
        let mut running = on_terminal(&dir, &terminal);
        expect(&user, "Ctrl-A x ends");
        dir.wait_for("links.0.state=serving");
        running.signal(signal);
        assert_eq!(running.0.wait().unwrap().code(), Some(0));
        assert_eq!(modes(&terminal), before, "after {signal:?}");
        let flags = rustix::fs::fcntl_getfl(terminal.as_fd()).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "the shell's own descriptor must still block");
    }
}

#[test]
fn a_terminal_is_raw_again_after_a_stop() {
    use rustix::process::{WaitIdOptions, waitid};
    let dir = Dir::new();
    let (user, terminal) = terminal();
    let before = rustix::termios::tcgetattr(&terminal).unwrap();
    let mut running = on_terminal(&dir, &terminal);
    expect(&user, "Ctrl-A x ends");
    dir.wait_for("links.0.state=serving");
    running.signal(Signal::STOP);
    let id = rustix::process::WaitId::Pid(Pid::from_child(&running.0));
    assert!(waitid(id, WaitIdOptions::STOPPED).unwrap().is_some_and(|status| status.stopped()));
    // What its shell does then.
    rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &before).unwrap();
    running.signal(Signal::CONT);
    // A terminal that is not raw keeps these for a line that never ends.
    (&user).write_all(b"\x01h").unwrap();
    expect(&user, "goes to the guest, Ctrl-C too");
    assert!(!modes(&terminal).intersects(LocalModes::ISIG | LocalModes::ICANON | LocalModes::ECHO));
    (&user).write_all(b"\x01x").unwrap();
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    assert_eq!(modes(&terminal), before.local_modes);
}

#[test]
fn a_memfd_is_found_by_the_path_that_is_printed() {
    let dir = Dir::new();
    let mut command = pmm();
    command.args(["run", "--no-dtb", "--shmem-addr", "1M", "--shmem-size", "1M", "--rng"]);
    command.args(["--control", &dir.text("control")]);
    let one = Running(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let status = dir.wait_for("links.0.state=serving");
    let path = Path::new(status["links"][0]["region"]["path"].as_str().unwrap()).to_path_buf();
    let shared = File::options().read(true).write(true).open(path).unwrap();
    let mut magic = [0; 4];
    shared.read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(&magic, b"virt");
    one.kill();
    // Who shares the memory can hand it on: here to the next PMM.
    rustix::io::fcntl_setfd(&shared, rustix::io::FdFlags::empty()).unwrap();
    command.args(["--shmem-fd", &shared.as_raw_fd().to_string()]);
    let two = Running(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    dir.wait_for("links.0.pmm_epoch>=4");
    assert_eq!(two.end().0, Some(0));
}
