//! The control socket: a stream socket at which one line is a question. `status` is answered with one line of JSON,
//! `follow` with one now and one after each change. It can only look: nothing is changed through it.
//!
//! A client that says no more, as `nc -N` does at the end of its input, still gets its answers; one that has closed its
//! end is let go.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::Pid;

use super::{Board, Process, Status};
use crate::failure::{Failure, refused};
use crate::sys::Watches;
use crate::unix::{Listener, connect};

/// Clients at one time; more are turned away.
const MAX_CLIENTS: usize = 64;
/// Longest question, in bytes.
const MAX_QUESTION: usize = 64;
/// Bytes that wait for a client that does not read; a follower gets only the latest anyway.
const MAX_WAITING: usize = 1 << 20;

/// The socket and its clients.
#[derive(Debug)]
pub struct Control {
    listener: Listener,
    clients: Vec<Client>,
    boards: Vec<Arc<Board>>,
    /// Clients at one time: each takes a descriptor.
    most: usize,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    question: Vec<u8>,
    waiting: Vec<u8>,
    want: Want,
    /// It says no more.
    ended: bool,
    gone: bool,
}

#[derive(Debug)]
enum Want {
    /// Nothing yet, or no more.
    Nothing,
    /// A snapshot as new as these answers, link by link.
    Snapshot(Vec<u64>),
    /// Each change after this one.
    Changes(Option<Box<Status>>),
}

/// Where control sockets of this user are by default.
pub(crate) fn directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir()) {
        Some(dir) => dir.join("pmm"),
        None => PathBuf::from(format!("/tmp/pmm-{}", rustix::process::getuid().as_raw())),
    }
}

/// Whether nobody else can write to a directory.
pub(crate) fn is_trusted(dir: &Path) -> bool {
    std::fs::symlink_metadata(dir).is_ok_and(|meta| {
        meta.is_dir() && meta.uid() == rustix::process::getuid().as_raw() && meta.mode() & 0o022 == 0
    })
}

/// A PMM that was found.
pub(crate) struct Found {
    /// Its socket.
    pub path: PathBuf,
    /// Connected to it, or nothing if it is there and too busy to accept.
    pub stream: Option<UnixStream>,
}

/// The PMMs of this user whose sockets are in the default directory. What killed ones left there is removed.
pub(crate) fn discover(dir: &Path) -> Vec<Found> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let look = |path: PathBuf| match connect(&path) {
        Ok(stream) => {
            stream.set_nonblocking(false).ok()?;
            Some(Found { path, stream: Some(stream) })
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Some(Found { path, stream: None }),
        Err(error) => {
            // One that starts at this moment has its socket and does not listen yet; it lives.
            if error.kind() == ErrorKind::ConnectionRefused && is_orphan(&path) && is_trusted(dir) {
                let _ = std::fs::remove_file(&path);
            }
            None
        }
    };
    entries.filter_map(look).collect()
}

/// Whether a socket is named after a process that is no more.
fn is_orphan(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let pid = name.and_then(|name| name.strip_suffix(".sock")?.rsplit('.').next()?.parse().ok());
    let pid = pid.filter(|pid| *pid > 0).and_then(Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(Errno::SRCH))
}

/// Makes that directory, and trusts it only if nobody else can write there.
fn make_directory() -> Result<PathBuf, Failure> {
    let dir = directory();
    let name = dir.display();
    if let Err(error) = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&dir) {
        return refused(format!(
            "{name}: the directory for the control socket cannot be made ({error}); use --control PATH"
        ));
    }
    match is_trusted(&dir) {
        true => Ok(dir),
        false => refused(format!(
            "{name}: the directory for the control socket can be written by others; use --control PATH"
        )),
    }
}

impl Control {
    /// Listens at `path`, or in the default directory under the link's name and the process id.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if the socket cannot be made or is in use.
    pub fn open(path: Option<&Path>, link: &str) -> Result<Control, Failure> {
        let path = match path {
            Some(path) => path.to_path_buf(),
            None => make_directory()?.join(format!("{link}.{}.sock", std::process::id())),
        };
        let listener = Listener::listen(&path, format!("--control {}", path.display()))?;
        let _ = std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600));
        Ok(Control { listener, clients: Vec::new(), boards: Vec::new(), most: MAX_CLIENTS })
    }

    /// Lets no more clients be connected at one time, where the process may have few descriptors.
    pub(crate) fn limit(&mut self, most: usize) {
        self.most = most.min(MAX_CLIENTS);
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.listener.path()
    }

    /// Which links it tells of.
    pub fn set_boards(&mut self, boards: Vec<Arc<Board>>) {
        self.boards = boards;
    }

    /// Adds what it waits for.
    pub fn watch(&self, watches: &mut Watches) {
        self.listener.watch(watches);
        for client in &self.clients {
            // Questions are read when the answers before them are taken: a client that does not read costs no memory.
            let behind = !client.waiting.is_empty();
            match client.ended && !behind {
                true => watches.add_hang_up(client.stream.as_raw_fd()),
                false => _ = watches.add(client.stream.as_raw_fd(), !behind, behind),
            }
        }
    }

    /// When [`progress`](Self::progress) is due even if nothing happens, in microseconds of its clock.
    pub fn deadline_us(&self) -> Option<u64> {
        self.listener.deadline_us()
    }

    /// Accepts, reads questions, writes answers that have become ready. Never blocks.
    pub fn progress(&mut self, now_us: u64) {
        for _ in 0..MAX_CLIENTS {
            let Some(stream) = self.listener.accept(now_us) else { break };
            // The others are turned away by closing.
            if self.clients.len() < self.most {
                self.clients.push(Client::new(stream));
            }
        }
        for client in &mut self.clients {
            if client.waiting.is_empty() {
                client.listen(&self.boards);
            }
            client.answer(&self.boards);
            client.send();
            client.leave();
        }
        self.clients.retain(|client| !client.gone);
        let followed = self.clients.iter().any(|client| matches!(client.want, Want::Changes(_)));
        self.boards.iter().for_each(|board| board.follow(followed));
    }
}

impl Client {
    fn new(stream: UnixStream) -> Client {
        let (question, waiting) = (Vec::new(), Vec::new());
        Client { stream, question, waiting, want: Want::Nothing, ended: false, gone: false }
    }

    fn listen(&mut self, boards: &[Arc<Board>]) {
        let mut bytes = [0; MAX_QUESTION];
        match self.stream.read(&mut bytes) {
            _ if self.ended => {}
            Ok(0) => {
                self.ended = true;
                // A last line need not have an end of its own.
                if !self.question.is_empty() {
                    self.question.push(b'\n');
                }
            }
            Ok(got) => self.question.extend_from_slice(&bytes[..got]),
            Err(error) => self.gone = error.kind() != ErrorKind::WouldBlock,
        }
        while let Some(end) = self.question.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.question.drain(..=end).collect();
            match line.trim_ascii() {
                b"status" => self.want = Want::Snapshot(boards.iter().map(|board| board.ask()).collect()),
                b"follow" => {
                    boards.iter().for_each(|board| _ = board.ask());
                    self.want = Want::Changes(None);
                }
                _ => self.waiting.extend_from_slice(b"{\"error\":\"write 'status' or 'follow'\"}\n"),
            }
        }
        self.gone |= self.question.len() > MAX_QUESTION;
    }

    fn answer(&mut self, boards: &[Arc<Board>]) {
        let process = || {
            let (capabilities, no_new_privs) = crate::privileges::left();
            let version = env!("CARGO_PKG_VERSION").into();
            Process { version, pid: std::process::id(), capabilities, no_new_privs }
        };
        let status = || Status { pmm: process(), links: boards.iter().map(|board| board.latest()).collect() };
        match &mut self.want {
            Want::Nothing => {}
            Want::Snapshot(numbers) => {
                if boards.iter().zip(&*numbers).all(|(board, number)| board.answered() >= *number) {
                    self.want = Want::Nothing;
                    self.say(&status());
                }
            }
            Want::Changes(last) => {
                let now = status();
                let news = last.as_ref().is_none_or(|last| {
                    last.links.len() != now.links.len()
                        || last.links.iter().zip(&now.links).any(|(a, b)| a.differs(b))
                });
                // A client that is behind gets the latest when it has caught up.
                if news && self.waiting.is_empty() {
                    *last = Some(Box::new(now.clone()));
                    self.say(&now);
                }
            }
        }
    }

    fn say(&mut self, status: &Status) {
        if let Ok(text) = serde_json::to_string(status) {
            self.waiting.extend_from_slice(text.as_bytes());
            self.waiting.push(b'\n');
        }
        self.gone |= self.waiting.len() > MAX_WAITING;
    }

    /// Lets go a client that says no more, when it has all it asked for or takes no more.
    fn leave(&mut self) {
        if self.ended && self.waiting.is_empty() {
            self.gone |= matches!(self.want, Want::Nothing) || self.has_hung_up();
        }
    }

    fn has_hung_up(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A hang-up is reported without being asked for.
        poll(&mut [PollFd::new(&self.stream, PollFlags::empty())], Some(&now)).is_ok_and(|ready| ready > 0)
    }

    fn send(&mut self) {
        while !self.waiting.is_empty() {
            match self.stream.write(&self.waiting) {
                Ok(sent @ 1..) => _ = self.waiting.drain(..sent),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                _ => {
                    self.gone = true;
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{LinkStatus, Waker};
    use std::io::{BufRead, BufReader};

    struct Bench {
        control: Control,
        board: Arc<Board>,
        waker: Arc<Waker>,
        link: LinkStatus,
    }

    impl Bench {
        fn new(name: &str) -> Bench {
            let path = std::env::temp_dir().join(format!("pmm-control-{}-{name}", std::process::id()));
            let mut control = Control::open(Some(&path), "x").unwrap();
            let waker = Arc::new(Waker::new().unwrap());
            let link = LinkStatus { name: "a".into(), state: "serving".into(), ..LinkStatus::default() };
            let board = Arc::new(Board::new(waker.clone(), link.clone()).unwrap());
            control.set_boards(vec![board.clone()]);
            Bench { control, board, waker, link }
        }

        /// Both loops, once.
        fn turn(&mut self) {
            self.control.progress(0);
            self.board.offer(|| self.link.clone());
            self.waker.clear();
            self.control.progress(0);
        }

        /// Until its last client, which has closed its end, is let go.
        fn until_alone(&mut self) {
            for _ in 0..3 {
                if self.control.clients.is_empty() {
                    return;
                }
                let mut watches = Watches::default();
                self.control.watch(&mut watches);
                assert_eq!(watches.wait(Some(10_000_000)), 1, "its end is not noticed in 10 s");
                self.turn();
            }
            panic!("it is still there after 3 looks");
        }
    }

    #[test]
    fn a_question_gets_an_answer_made_for_it() {
        let mut bench = Bench::new("status");
        assert_eq!(std::fs::metadata(bench.control.path()).unwrap().mode() & 0o777, 0o600);
        let mut client = UnixStream::connect(bench.control.path()).unwrap();
        client.write_all(b"stat").unwrap();
        bench.turn();
        bench.link.adoptions = 7;
        client.write_all(b"us\nnonsense\n").unwrap();
        bench.turn();
        let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().contains("write 'status'"));
        let status: Status = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!((status.links[0].adoptions, status.pmm.pid), (7, std::process::id()));
        assert!(status.to_string().contains("a: serving"), "{status}");
    }

    #[test]
    fn a_follower_is_told_each_change_and_no_idle_look() {
        let mut bench = Bench::new("follow");
        let client = UnixStream::connect(bench.control.path()).unwrap();
        (&client).write_all(b"follow\n").unwrap();
        let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
        for change in 0..3 {
            bench.link.adoptions = change;
            bench.turn();
            bench.turn();
            bench.link.services += 1;
            bench.turn();
            let status: Status = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            assert_eq!(status.links[0].adoptions, change);
        }
        client.set_nonblocking(true).unwrap();
        assert_eq!((&client).read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        // A follower that leaves costs nothing more.
        drop((client, lines));
        bench.until_alone();
    }

    #[test]
    fn a_client_that_says_no_more_still_gets_its_answer() {
        let mut bench = Bench::new("half");
        for question in ["status\n", "status", "nonsense\n"] {
            let mut client = UnixStream::connect(bench.control.path()).unwrap();
            client.write_all(question.as_bytes()).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            bench.turn();
            bench.turn();
            let mut answer = String::new();
            client.set_nonblocking(true).unwrap();
            client.read_to_string(&mut answer).expect("an answer and the end");
            assert_eq!(answer.lines().count(), 1, "{question:?} is answered with {answer:?}");
            assert!(bench.control.clients.is_empty());
        }
        // A follower goes on hearing, wakes nobody meanwhile, and is let go when it goes.
        let client = UnixStream::connect(bench.control.path()).unwrap();
        (&client).write_all(b"follow\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
        let mut watches = Watches::default();
        for change in 0..3 {
            bench.link.adoptions = change;
            bench.turn();
            bench.turn();
            let status: Status = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            assert_eq!(status.links[0].adoptions, change);
            watches.clear();
            bench.control.watch(&mut watches);
            assert_eq!(watches.wait(Some(1)), 0, "there is nothing to do for it");
        }
        drop((client, lines));
        bench.until_alone();
    }

    #[test]
    fn crowds_and_chatterers_are_turned_away() {
        let mut bench = Bench::new("crowd");
        let crowd: Vec<_> = (0..MAX_CLIENTS + 5)
            .map(|_| {
                let client = UnixStream::connect(bench.control.path()).unwrap();
                bench.control.progress(0);
                client
            })
            .collect();
        assert_eq!(bench.control.clients.len(), MAX_CLIENTS);
        (&crowd[0]).write_all(&[b'x'; 2 * MAX_QUESTION]).unwrap();
        bench.turn();
        bench.turn();
        assert_eq!(bench.control.clients.len(), MAX_CLIENTS - 1);
    }

    #[test]
    fn a_client_that_asks_and_never_reads_costs_no_memory() {
        let path = std::env::temp_dir().join(format!("pmm-control-flood-{}", std::process::id()));
        let mut control = Control::open(Some(&path), "test").unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut asked = 0;
        for _ in 0..10_000 {
            asked += std::io::Write::write(&mut client, &[b'\n'; 512]).unwrap_or(0);
            control.progress(0);
        }
        let waiting: usize = control.clients.iter().map(|client| client.waiting.capacity()).sum();
        assert!(
            asked > 0 && waiting < 4 * MAX_WAITING,
            "{waiting} bytes wait for a client that does not read"
        );
    }
}
