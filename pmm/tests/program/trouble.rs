//! What a machine may refuse while links are served.

use rustix::process::{Resource, Rlimit, prlimit};

use super::*;

/// Processor time that a process has used, in ticks of 10 ms.
fn ticks(running: &Running) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.0.id())).unwrap();
    let fields: Vec<_> = stat[stat.rfind(')').unwrap()..].split_whitespace().collect();
    fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
}

#[test]
fn clients_that_cannot_be_accepted_cost_no_processor_time_and_are_accepted_later() {
    let dir = Dir::new();
    let (console, bell) = (dir.text("console"), dir.text("bell"));
    let running = dir.start(&format!("--console unix:{console} --doorbell unix-stream:{bell},listen"));
    let pid = Some(Pid::from_child(&running.0));
    // One client that stays; when it has its answer, those before it are gone, and with them their descriptors.
    let ask = || {
        let mut client = UnixStream::connect(dir.path("control")).unwrap();
        client.set_read_timeout(Some(GUARD)).unwrap();
        client.write_all(b"status\n").unwrap();
        client
    };
    let answer = |client: &UnixStream| {
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).expect("the control socket answers when it can");
        assert!(line.contains("link0"), "{line}");
    };
    let first = ask();
    answer(&first);
    // The first number that is free is out of bounds.
    let is_used =
        |number: &u64| std::fs::symlink_metadata(format!("/proc/{}/fd/{number}", running.0.id())).is_ok();
    let free = (0..).find(|number| !is_used(number)).unwrap();
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: Some(free), maximum }).unwrap();

    let _console = UnixStream::connect(dir.path("console")).unwrap();
    let _bell = UnixStream::connect(dir.path("bell")).unwrap();
    let mut control = ask();
    // The window is a read that nobody answers.
    control.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let start = ticks(&running);
    assert!(control.read(&mut [0]).is_err(), "nobody can be accepted");
    let used = ticks(&running) - start;
    assert!(used < 20, "{used} ticks of 10 ms in 2 s: it spins");

    prlimit(pid, Resource::Nofile, before).unwrap();
    control.set_read_timeout(Some(GUARD)).unwrap();
    answer(&control);
    dir.wait_for("links.0.doorbell.peer=true");
    let status = dir.wait_for("links.0.devices.console.host=client connected");
    assert_eq!(status["links"][0]["state"], "serving");
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("cannot be accepted").count(), 3, "each listener says it once: {said}");
}

#[test]
fn a_terminal_is_restored_wherever_the_start_fails() {
    let dir = Dir::new();
    let link = |name: &str, more: &str| {
        format!(
            "[[link]]\nname = '{name}'\nno-dtb = true\nshmem-addr = '1M'\nshmem-size = '1M'\nrng = true\n{more}"
        )
    };
    let bell = format!("doorbell = 'unix-stream:{}'\n", dir.text("bell"));
    let (one, two) = (link("one", "console = 'stdio'\n"), link("two", &bell));
    let text = format!("control = '{}'\nwait = 0\n{one}{two}", dir.text("control"));
    std::fs::write(dir.path("links.toml"), text).unwrap();
    let (_user, terminal) = terminal();
    let before = modes(&terminal);
    let (mut failed, mut served) = (0, false);
    // With one descriptor more each time, the start fails at every place where it takes one.
    for limit in 6.. {
        let mut command = Command::new("sh");
        let script = "ulimit -n $1; shift; exec \"$@\"";
        command.args(["-c", script, "sh", &limit.to_string(), env!("CARGO_BIN_EXE_pmm"), "run"]);
        command.args(["--config", &dir.text("links.toml")]);
        let again = || Stdio::from(terminal.try_clone().unwrap());
        let mut child =
            Running(command.stdin(again()).stdout(again()).stderr(Stdio::piped()).spawn().unwrap());
        let mut said = String::new();
        for line in BufReader::new(child.0.stderr.take().unwrap()).lines().map(Result::unwrap) {
            said += &line;
            // The second link is there and has no peer; the first one serves on.
            if line.contains("--wait 0") && !served {
                served = true;
                child.signal(Signal::TERM);
            }
        }
        let code = child.0.wait().unwrap().code();
        assert_eq!(modes(&terminal), before, "with {limit} descriptors, exit code {code:?}: {said}");
        if served {
            break;
        }
        failed += i32::from(said.contains("raise 'ulimit -n'"));
        assert!(limit < 100, "it never serves: {said}");
    }
    assert!(failed > 0, "no start failed for want of descriptors");
}

#[test]
fn a_start_with_too_few_descriptors_says_so() {
    let dir = Dir::new();
    std::fs::create_dir(dir.path("tree")).unwrap();
    let listen = format!("unix:{}", dir.text("socket"));
    let run = dir.run(&format!("--vsock 3,path={} --9p {},x", dir.text("v"), dir.text("tree")));
    let mut share = pmm();
    share.args(["serve-9p", &dir.text("tree"), "--listen", &listen]);
    for (command, limit) in [(&run, 5), (&run, 90), (&share, 5), (&share, 60)] {
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -n $1; shift; exec \"$@\"", "sh", &limit.to_string()]);
        limited.arg(command.get_program()).args(command.get_args());
        let said = failure(&mut limited, 1);
        let may = format!("this process may have {limit}; raise 'ulimit -n'");
        assert!(said.contains("descriptors at the least") && said.contains(&may), "{said}");
        assert!(!dir.path("ddr").exists() && !dir.path("socket").exists(), "nothing was touched");
    }
}

#[test]
fn one_state_file_serves_one_pmm() {
    let dir = Dir::new();
    let state = format!("--rng --state {}", dir.text("state"));
    let one = dir.start(&state);
    let mut command = pmm();
    command.args(["run", "--no-dtb", "--shmem-addr", "1M", "--shmem-size", "1M", "--rng"]);
    command.args(["--state", &dir.text("state"), "--control", &dir.text("other")]);
    let said = failure(&mut command, 1);
    let holder = format!("process {} (pmm)", one.0.id());
    assert!(said.contains("--state ") && said.contains(&holder) && said.contains("end that one"), "{said}");
    // A killed one leaves no lock.
    one.kill();
    assert_eq!(dir.start(&state).end().0, Some(0));
}

#[test]
fn sockets_that_killed_pmms_left_are_no_obstacle() {
    let dir = Dir::new();
    let start = || {
        let mut command = pmm();
        command.args(["run", "--no-dtb", "--shmem-addr", "1M", "--shmem-size", "1M", "--rng"]);
        command.env("XDG_RUNTIME_DIR", &dir.0).stdin(Stdio::null()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    };
    let status = |more: &[&str]| {
        pmm().args(["status", "--json"]).args(more).env("XDG_RUNTIME_DIR", &dir.0).output().unwrap()
    };
    let wait = ["--wait-for", "links.0.state=serving", "--timeout", &GUARD.as_secs().to_string()];
    let sockets = || std::fs::read_dir(dir.path("pmm")).unwrap().count();
    for _ in 0..3 {
        let one = start();
        let output = status(&wait);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["pmm"]["pid"], one.0.id());
        assert_eq!(sockets(), 1, "what the one before left is swept");
        one.kill();
    }
    let output = status(&[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no pmm of this user runs"), "{said}");
    assert_eq!(sockets(), 0);
    // What has another name than ours, or belongs to a process that lives, stays.
    drop(UnixListener::bind(dir.path("pmm/other.sock")).unwrap());
    drop(UnixListener::bind(dir.path(&format!("pmm/link0.{}.sock", std::process::id()))).unwrap());
    assert_eq!((status(&[]).status.code(), sockets()), (Some(1), 2));
}

#[test]
fn a_peer_that_came_and_left_is_not_one_that_never_came() {
    let dir = Dir::new();
    let mut running =
        dir.start(&format!("--rng --wait 5 --doorbell unix-stream:{},listen", dir.text("bell")));
    let text = || {
        let output = pmm().args(["status", "--control", &dir.text("control")]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(text().contains("no peer yet"), "{}", text());
    let peer = UnixStream::connect(dir.path("bell")).unwrap();
    dir.wait_for("links.0.doorbell.peer=true");
    drop(peer);
    dir.wait_for("links.0.doorbell.peer=false");
    assert!(text().contains("the peer has left"), "{}", text());
    // Somebody waits for what will not be.
    let seconds = GUARD.as_secs().to_string();
    let output = dir.status(&["--wait-for", "links.0.adoptions>=1", "--timeout", &seconds]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the pmm ended before it was so; it was 0"), "{said}");
    let (code, said) = running.result();
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said.matches("no peer yet").count(), 1, "{said}");
    assert!(said.contains("left, and none came back in 5 s"), "{said}");
}

/// A pipe that is full, and takes no more before somebody reads.
fn stuck_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

#[test]
fn a_standard_error_that_nobody_reads_holds_up_nothing() {
    let dir = Dir::new();
    let options = format!("--rng --log-level trace --doorbell unix-stream:{},listen", dir.text("bell"));
    let ddr = dir.path("ddr");
    for is_read_in_the_end in [false, true] {
        let (mut reader, writer) = stuck_pipe();
        let mut command = dir.run(&options);
        let mut running = Running(command.stdin(Stdio::null()).stderr(writer).spawn().unwrap());
        drop(command);
        dir.wait_for("links.0.state=serving");
        let bell = UnixStream::connect(dir.path("bell")).unwrap();
        for epoch in 1..4u32 {
            let epoch = 2 * epoch + u32::from(is_read_in_the_end);
            File::options().write(true).open(&ddr).unwrap().write_all_at(&epoch.to_le_bytes(), 0xd4).unwrap();
            (&bell).write_all(&[1]).unwrap();
            dir.wait_for(&format!("links.0.driver_epoch={epoch}"));
        }
        running.signal(Signal::TERM);
        if is_read_in_the_end {
            let mut said = String::new();
            reader.read_to_string(&mut said).unwrap();
            assert!(said.contains("link0: serving") && said.contains("SIGTERM: ending"), "{said}");
            assert!(said.ends_with("link0: ended\n"), "{said}");
        }
        assert_eq!(running.0.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_terminal_is_restored_with_a_standard_error_that_nobody_reads() {
    let dir = Dir::new();
    let (_user, terminal) = terminal();
    let before = modes(&terminal);
    let (_reader, writer) = stuck_pipe();
    let again = || Stdio::from(terminal.try_clone().unwrap());
    let mut command = dir.run("--console stdio");
    let mut running = Running(command.stdin(again()).stdout(again()).stderr(writer).spawn().unwrap());
    dir.wait_for("links.0.state=serving");
    assert_ne!(modes(&terminal), before);
    running.signal(Signal::TERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    assert_eq!(modes(&terminal), before);
}
