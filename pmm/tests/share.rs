//! `pmm serve-9p` as its clients meet it: over sockets, several at once, with foreign programs, and with clients that
//! have lost their way.
//!
//! diod's programs are looked for on PATH and where `cargo xtask setup` unpacks them. A test that has none says so.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hvl_shared_abi::wire::p9::{
    Errno, NO_FID, NO_TAG, NO_UID, Names, Parsed, Payload, Reply, Request, VERSION, open,
};
use rustix::process::{Pid, Signal};

/// How long anything may take before a test says what it waited for.
const GUARD: Duration = Duration::from_secs(20);

/// A directory with a `tree` to share, removed at its end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("pmm-share-{}-{number}", std::process::id()));
        std::fs::create_dir_all(dir.join("tree/sub")).unwrap();
        std::fs::write(dir.join("tree/hello"), "hello, world\n").unwrap();
        std::fs::write(dir.join("outside"), "nobody's business\n").unwrap();
        std::os::unix::fs::symlink("../outside", dir.join("tree/link")).unwrap();
        Dir(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A server of the tree, and where it says that it is.
    fn serve(&self, listen: &str, more: &[&str]) -> (Server, String) {
        let mut child = pmm()
            .arg("serve-9p")
            .arg(self.path("tree"))
            .args(["--listen", listen])
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let at =
            line.trim_end().rsplit_once(" at ").unwrap_or_else(|| panic!("it said: {line}")).1.to_string();
        (Server { child, said }, at)
    }

    fn unix(&self, more: &[&str]) -> (Server, PathBuf) {
        let socket = self.path("socket");
        let (server, _) = self.serve(&format!("unix:{}", socket.display()), more);
        (server, socket)
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

struct Server {
    child: Child,
    said: BufReader<std::process::ChildStderr>,
}

impl Server {
    /// Ends it in order: its exit code and what it said since it started.
    fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
        let mut said = String::new();
        self.said.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }

    /// Waits until it has said something.
    fn says(&mut self, what: &str) {
        let mut line = String::new();
        while !line.contains(what) {
            line.clear();
            assert_ne!(self.said.read_line(&mut line).unwrap(), 0, "it ended and never said: {what}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client on a socket.
struct Client<S>(S);

impl<S: Read + Write> Client<S> {
    fn send(&mut self, tag: u16, request: Request<'_>, payload: &[u8]) {
        let mut bytes = vec![0; 1 << 21];
        let length = request.emit(tag, payload, &mut bytes).unwrap();
        self.0.write_all(&bytes[..length]).unwrap();
    }

    /// The next answer as it came; empty at the end.
    fn receive(&mut self) -> Vec<u8> {
        let mut size = [0; 4];
        match self.0.read_exact(&mut size) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Vec::new(),
            other => other.expect("an answer was waited for"),
        }
        let mut bytes = size.to_vec();
        bytes.resize(u32::from_le_bytes(size) as usize, 0);
        self.0.read_exact(&mut bytes[4..]).unwrap();
        bytes
    }

    fn ask(&mut self, tag: u16, request: Request<'_>) -> Vec<u8> {
        self.send(tag, request, &[]);
        let answer = self.receive();
        let Parsed { tag: answered, message, .. } = Reply::parse(&answer).unwrap();
        assert_eq!(answered, tag);
        assert!(!matches!(message, Reply::Error { .. }), "{request:?}: {message:?}");
        answer
    }

    /// Agrees on a version and attaches fid 0.
    fn attach(mut self, msize: u32) -> Self {
        self.ask(NO_TAG, Request::Version { msize, version: VERSION });
        self.ask(0, Request::Attach { fid: 0, afid: NO_FID, user: b"me", tree: b"", uid: NO_UID });
        self
    }

    fn content(&mut self, path: &str) -> Vec<u8> {
        let (names, _) = Names::of_path(path.as_bytes());
        self.ask(1, Request::Walk { fid: 0, new_fid: 9, names });
        self.ask(1, Request::Lopen { fid: 9, flags: open::READ_ONLY });
        let answer = self.ask(1, Request::Read { fid: 9, offset: 0, count: 4096 });
        self.ask(1, Request::Clunk { fid: 9 });
        Reply::parse(&answer).unwrap().payload.to_vec()
    }
}

fn connect(socket: &Path) -> Client<UnixStream> {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    Client(stream)
}

#[test]
fn several_clients_at_once_and_an_orderly_end() {
    let dir = Dir::new();
    let (server, socket) = dir.unix(&[]);
    let mut clients: Vec<_> = (0..8).map(|_| connect(&socket).attach(8192)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.content("hello"), b"hello, world\n");
        let name = format!("file{number}");
        let create = Request::Lcreate {
            fid: 0,
            name: name.as_bytes(),
            flags: open::WRITE_ONLY,
            mode: 0o600,
            gid: NO_UID,
        };
        client.ask(2, create);
        client.send(3, Request::Write { fid: 0, offset: 0, count: Payload(5) }, b"12345");
        assert_eq!(Reply::parse(&client.receive()).unwrap().message, Reply::Write { count: 5 });
    }
    let (code, said) = server.end(Signal::TERM);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ending on SIGTERM") && !said.contains("under way"), "{said}");
    assert!(!socket.exists());
    for (number, mut client) in clients.into_iter().enumerate() {
        assert!(client.receive().is_empty(), "the connection has ended");
        assert_eq!(std::fs::read(dir.path(&format!("tree/file{number}"))).unwrap(), b"12345");
    }
}

#[test]
fn what_is_not_needed_is_given_up() {
    if !rustix::process::geteuid().is_root() {
        hvl_test_kit::skipped("what_is_not_needed_is_given_up needs root, who has something to give up");
        return;
    }
    let dir = Dir::new();
    let file = dir.path("tree/hello");
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(&file, mode(0o4755)).unwrap();
    let (server, socket) = dir.unix(&[]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    // chown, dac_override, dac_read_search, fowner, net_bind_service.
    let kept = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 10;
    assert_eq!((field("CapPrm:") & !kept, field("CapEff:") & !kept), (0, 0), "{status}");
    assert_eq!((field("CapInh:"), field("CapAmb:"), field("NoNewPrivs:")), (0, 0, 1), "{status}");
    let mut client = connect(&socket).attach(8192);
    let (names, _) = Names::of_path(b"hello");
    client.ask(1, Request::Walk { fid: 0, new_fid: 9, names });
    client.ask(1, Request::Lopen { fid: 9, flags: open::WRITE_ONLY });
    client.send(3, Request::Write { fid: 9, offset: 0, count: Payload(5) }, b"guest");
    assert_eq!(Reply::parse(&client.receive()).unwrap().message, Reply::Write { count: 5 });
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn tcp_on_any_port_that_is_free() {
    let dir = Dir::new();
    let (server, at) = dir.serve("tcp:127.0.0.1:0", &["--ro"]);
    let address = at.strip_prefix("tcp:").unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    let mut client = Client(stream).attach(1 << 20);
    assert_eq!(client.content("hello"), b"hello, world\n");
    client.send(1, Request::Unlinkat { directory: 0, name: b"hello", flags: 0 }, &[]);
    assert_eq!(Reply::parse(&client.receive()).unwrap().message, Reply::Error { errno: Errno::ROFS });
    assert_eq!(server.end(Signal::INT).0, Some(0));
}

#[test]
fn requests_sent_ahead_are_all_answered() {
    let dir = Dir::new();
    let (_server, socket) = dir.unix(&[]);
    let mut client = connect(&socket).attach(1 << 16);
    for tag in 0..200 {
        client.send(tag, Request::Getattr { fid: 0, mask: 0 }, &[]);
        client.send(1000 + tag, Request::Flush { old_tag: tag }, &[]);
    }
    let (mut answered, mut flushed) = ([false; 200], 0);
    for _ in 0..400 {
        let answer = client.receive();
        match Reply::parse(&answer).unwrap() {
            Parsed { tag, message: Reply::Getattr { .. }, .. } => {
                assert!(!std::mem::replace(&mut answered[usize::from(tag)], true));
            }
            Parsed { tag, message: Reply::Flush {}, .. } => {
                assert!(answered[usize::from(tag) - 1000], "the flush of {tag} was answered first");
                flushed += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(flushed, 200);
}

#[test]
fn a_tag_is_free_once_its_answer_is_here() {
    let dir = Dir::new();
    let (_server, socket) = dir.unix(&[]);
    let mut client = connect(&socket).attach(8192);
    for _ in 0..5000 {
        client.ask(7, Request::Getattr { fid: 0, mask: 0 });
    }
}

#[test]
fn a_client_that_has_lost_its_way_is_disconnected_alone() {
    let dir = Dir::new();
    let (mut server, socket) = dir.unix(&[]);
    let mut well = connect(&socket).attach(8192);
    for (bytes, answer) in [
        (&b"\0\0\0\0\x64\xff\xff"[..], false),
        (b"\x06\0\0\0\x64\xff\xff", false),
        (b"\xff\xff\xff\xff\x64\x07\0", true),
        (b"\x01\x20\0\0\x64\x07\0", true),
    ] {
        let mut lost = connect(&socket);
        lost.0.write_all(bytes).unwrap();
        if answer {
            let told = lost.receive();
            let told = Reply::parse(&told).unwrap();
            assert_eq!((told.tag, told.message), (7, Reply::Error { errno: Errno::MSGSIZE }));
        }
        assert!(lost.receive().is_empty());
        server.says("is disconnected: its message");
    }
    // One that breaks off in the middle of a message.
    let mut broken = connect(&socket).attach(8192);
    broken.0.write_all(b"\x20\0\0\0\x64").unwrap();
    drop(broken);
    assert_eq!(well.content("hello"), b"hello, world\n");
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let dir = Dir::new();
    std::fs::write(dir.path("tree/big"), vec![1; 1 << 20]).unwrap();
    let (server, socket) = dir.unix(&[]);
    let mut stuck = connect(&socket).attach(1 << 20);
    let (names, _) = Names::of_path(b"big");
    stuck.ask(1, Request::Walk { fid: 0, new_fid: 1, names });
    stuck.ask(1, Request::Lopen { fid: 1, flags: open::READ_ONLY });
    for tag in 0..16 {
        stuck.send(tag, Request::Read { fid: 1, offset: 0, count: 1 << 20 }, &[]);
    }
    let mut other = connect(&socket).attach(8192);
    for _ in 0..100 {
        assert_eq!(other.content("hello"), b"hello, world\n");
    }
    let (code, said) = server.end(Signal::TERM);
    assert_eq!(code, Some(0));
    assert!(said.contains("did not read their answers"), "{said}");
}

#[test]
fn one_client_too_many_is_sent_away() {
    let dir = Dir::new();
    let (mut server, socket) = dir.unix(&[]);
    let mut clients: Vec<_> = (0..32).map(|_| connect(&socket).attach(8192)).collect();
    assert!(connect(&socket).receive().is_empty());
    server.says("32 clients are connected");
    drop(clients.pop());
    server.says("has disconnected");
    connect(&socket).attach(8192);
}

#[test]
fn a_flood_of_clients_is_no_flood_of_lines() {
    let dir = Dir::new();
    let (server, socket) = dir.unix(&["--clients", "40"]);
    let start = std::time::Instant::now();
    for _ in 0..300 {
        drop(connect(&socket));
    }
    // Who comes last is heard last.
    let last = connect(&socket).attach(8192);
    let (code, said) = server.end(Signal::TERM);
    drop(last);
    // Five at once, and one a second after that, of each of three kinds.
    let most = 3 * (6 + start.elapsed().as_secs() as usize);
    let lines = said.lines().filter(|line| line.contains("process ")).count();
    assert!(code == Some(0) && (1..=most).contains(&lines), "{lines} lines, {most} expected: {said}");
}

#[test]
fn exit_codes_and_reasons() {
    let dir = Dir::new();
    let (_server, socket) = dir.unix(&[]);
    let (tree, file) = (dir.path("tree").display().to_string(), dir.path("outside").display().to_string());
    let taken = format!("unix:{}", socket.display());
    let free = format!("unix:{}", dir.path("free").display());
    for (directory, listen, code, part) in [
        ("/nonexistent", &free, 1, "name a directory that this user can read"),
        (&file, &free, 1, "name a directory"),
        (&tree, &taken, 1, "is used by process"),
        (&tree, &"tcp:192.0.2.1:5640".to_string(), 1, "choose an address of this host"),
        (&tree, &"tcp:example:5640".to_string(), 2, "tcp:127.0.0.1:5640"),
    ] {
        let output = pmm().args(["serve-9p", directory, "--listen", listen]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(part) && said.lines().count() == 1, "{said}");
    }
    let help = pmm().args(["serve-9p", "--help"]).output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("mount -t 9p"));
}

/// One of diod's programs.
fn diod(program: &str) -> Option<Command> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/diod/bin").join(program);
    [unpacked.as_path(), Path::new(program), &Path::new("/usr/sbin").join(program)]
        .into_iter()
        .find(|path| {
            // 127: the script is there, what it starts is not.
            Command::new(path).arg("--help").output().is_ok_and(|output| output.status.code() != Some(127))
        })
        .map(Command::new)
}

/// What it printed on a tree that is served.
fn ask_diod(program: &str, test: &str, at: &str, args: &[&str]) -> Option<Output> {
    let Some(mut command) = diod(program) else {
        hvl_test_kit::skipped(format!("{test}: no {program} here; 'cargo xtask setup' gets it"));
        return None;
    };
    // It gives up by itself when nobody answers.
    let guard = GUARD.as_secs().to_string();
    Some(command.args(["-s", at, "-a", "/", "-t", &guard]).args(args).output().unwrap())
}

#[test]
fn diodcat_reads_files() {
    let dir = Dir::new();
    let big: Vec<u8> = (0..3_000_000u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    std::fs::write(dir.path("tree/sub/big"), &big).unwrap();
    let (_server, at) = dir.serve("tcp:127.0.0.1:0", &[]);
    let cat =
        |args: &[&str]| ask_diod("diodcat", "diodcat_reads_files", at.strip_prefix("tcp:").unwrap(), args);
    let Some(output) = cat(&["hello"]) else { return };
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello, world\n", "{output:?}");
    for msize in ["4096", "65536", "1048576"] {
        assert!(cat(&["-m", msize, "sub/big"]).unwrap().stdout == big, "with messages of {msize} bytes");
    }
    for escape in ["link", "../outside", "sub/../../outside", "/../outside"] {
        let output = cat(&[escape]).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{escape}: {output:?}");
    }
}

#[test]
fn diodls_lists_directories() {
    let dir = Dir::new();
    for number in 0..1000 {
        std::fs::write(dir.path(&format!("tree/sub/entry{number}")), "").unwrap();
    }
    let (_server, at) = dir.serve("tcp:127.0.0.1:0", &[]);
    let ls = |args: &[&str]| {
        ask_diod("diodls", "diodls_lists_directories", at.strip_prefix("tcp:").unwrap(), args)
    };
    let Some(output) = ls(&["-l"]) else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line =
        |name: &str| text.lines().find(|line| line.ends_with(name)).unwrap_or_else(|| panic!("{output:?}"));
    assert!(line("hello").starts_with("-rw") && line("hello").contains(" 13 "), "{text}");
    assert!(line("sub").starts_with('d') && line("link").contains(" 10 "), "{text}");
    let output = ls(&["sub"]).unwrap();
    let listed =
        String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains("entry")).count();
    assert_eq!(listed, 1000, "{output:?}");
}
