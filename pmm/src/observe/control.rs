//! The control socket: a stream socket at which one line is a question. `status` is answered with one line of JSON,
//! `follow` with one now and one after each change. It can only look: nothing is changed through it.
//!
//! A client that says no more, as `nc -N` does at the end of its input, still gets its answers; one that has closed its
//! end is let go.

use std::ffi::OsString;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Stat;
use rustix::io::Errno;
use rustix::process::Pid;

use super::directory::{self, directory};
use super::{Board, LinkStatus, Process, ShareStatus, Status};
use crate::failure::{Failure, misuse};
use crate::sys::Watches;
use crate::unix::{Listener, Spot, dial};

/// Clients at one time. One more takes the place of whoever has been silent for longest.
const MAX_CLIENTS: usize = 64;
/// Bounds how long a link may take for a snapshot, in microseconds; after that its last known one is
/// reported. A link checks many times a second, so one that does not answer is stuck, perhaps on a frozen
/// file system.
const PATIENCE_US: u64 = 3_000_000;
/// How often a link that is followed is asked whether it still answers, in microseconds.
const ASK_US: u64 = 1_000_000;
/// Longest question, in bytes.
const MAX_QUESTION: usize = 64;
/// Bytes that wait for a client that does not read; a follower gets only the latest anyway.
const MAX_WAITING: usize = 1 << 20;
/// Longest answer.
pub(super) const MAX_ANSWER: usize = MAX_WAITING;

/// The socket and its clients.
#[derive(Debug)]
pub struct Control {
    listener: Listener,
    clients: Vec<Client>,
    boards: Vec<Arc<Board>>,
    /// Clients at one time: each takes a descriptor.
    most: usize,
    /// What each link owes.
    owed: Vec<Owed>,
    /// When links that are followed are asked again.
    ask_us: u64,
    shares: Shares,
}

/// Tells of the directories that are served to clients that are no guests.
pub(crate) type Tell = Arc<dyn Fn() -> ShareStatus + Send + Sync>;

#[derive(Clone, Default)]
struct Shares(Vec<Tell>);

impl std::fmt::Debug for Shares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} shares", self.0.len())
    }
}

/// What a link was asked for and has not answered.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    /// The oldest question, and when it was asked.
    since: Option<(u64, u64)>,
}

impl Owed {
    /// Asks a link, and returns the number of the answer.
    fn ask(&mut self, board: &Board, now_us: u64) -> u64 {
        let number = board.ask();
        self.since.get_or_insert((number, now_us));
        number
    }

    /// Looks whether the answer has come.
    fn look(&mut self, board: &Board) {
        self.since.take_if(|(number, _)| board.answered() >= *number);
    }

    fn deadline_us(&self) -> Option<u64> {
        self.since.map(|(_, since)| since.saturating_add(PATIENCE_US))
    }

    fn is_late(&self, now_us: u64) -> bool {
        self.deadline_us().is_some_and(|at| at <= now_us)
    }
}

/// What is told of a link: how many changes, and whether it does not answer.
type Told = (u64, bool);

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// When it last did anything.
    active_us: u64,
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
    /// Each change after this one, link by link.
    Changes(Option<Vec<Told>>),
}

/// A PMM that was found.
pub(crate) struct Found {
    /// Its socket.
    pub path: PathBuf,
    /// Connected to it, or nothing if it is there and too busy to accept.
    pub stream: Option<UnixStream>,
}

/// The PMMs of this user whose sockets are in a directory. What killed ones left there is removed. A directory that others
/// can write to has none, whatever is in it.
pub(crate) fn discover(dir: &Path) -> Vec<Found> {
    let Some(opened) = directory::open(dir) else { return Vec::new() };
    let names = rustix::fs::Dir::read_from(&opened).into_iter().flatten().flatten();
    let names = names.map(|entry| OsString::from_vec(entry.file_name().to_bytes().into()));
    let look = |name: OsString| {
        let spot = Spot::in_directory(&opened, &name).ok()?;
        let path = dir.join(&name);
        let (file, stat) = spot.look().ok()?;
        match ask_only(&file, &stat) {
            Ok(stream) => Some(Found { path, stream: Some(stream) }),
            Err(Stranger::Deaf(Errno::AGAIN)) => Some(Found { path, stream: None }),
            Err(Stranger::Deaf(Errno::CONNREFUSED)) if is_orphan(&path) => {
                // One that starts at this moment has its socket and does not listen yet; it lives.
                spot.sweep();
                None
            }
            Err(_) => None,
        }
    };
    names.filter_map(look).collect()
}

/// Why a socket is not asked.
#[derive(Debug)]
pub(crate) enum Stranger {
    /// Its file belongs to this user, who may answer what they like.
    Owner(u32),
    /// A process of this user listens there, whoever has the file.
    Peer(u32),
    /// Nobody listens, or it is no socket.
    Deaf(Errno),
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stranger::Owner(who) => write!(f, "the socket belongs to user {who}, who could answer anything"),
            Stranger::Peer(who) => {
                write!(f, "a process of user {who} listens there, which could answer anything")
            }
            Stranger::Deaf(error) => write!(f, "no pmm answers there ({})", std::io::Error::from(*error)),
        }
    }
}

/// Connects to a socket that was looked at, if it is this user's or root's and one of them listens there. The stream
/// does not block.
pub(crate) fn ask_only(file: &OwnedFd, stat: &Stat) -> Result<UnixStream, Stranger> {
    let trusted = |uid: u32| uid == 0 || uid == rustix::process::geteuid().as_raw();
    if !trusted(stat.st_uid) {
        return Err(Stranger::Owner(stat.st_uid));
    }
    let stream = dial(file, stat).map_err(Stranger::Deaf)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(Stranger::Deaf)?.uid.as_raw();
    if trusted(peer) { Ok(stream) } else { Err(Stranger::Peer(peer)) }
}

/// Whether a socket is named after a process that is no more.
fn is_orphan(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let pid = name.and_then(|name| name.strip_suffix(".sock")?.rsplit('.').next()?.parse().ok());
    let pid = pid.filter(|pid| *pid > 0).and_then(Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(Errno::SRCH))
}

impl Control {
    /// Where a control socket is to be: as `path` says, or in the default directory under the link's name and the
    /// process id.
    ///
    /// # Errors
    ///
    /// [`Failure::Misuse`] if no socket can have the default path.
    pub fn place(path: Option<&Path>, link: &str) -> Result<PathBuf, Failure> {
        if let Some(path) = path {
            return Ok(path.into());
        }
        let path = directory().join(format!("{link}.{}.sock", std::process::id()));
        match directory::too_long(&path, 0, "the control socket", "--control PATH") {
            Some(text) => misuse(text),
            None => Ok(path),
        }
    }

    /// Listens at `path`, whose directory is made if it is the default one.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if the socket cannot be made or is in use.
    pub fn open(path: &Path) -> Result<Control, Failure> {
        if path.parent() == Some(&directory()) {
            directory::make(&[], "the control socket", "--control PATH")?;
        }
        let listener = Listener::listen(path, format!("--control {}", path.display()))?;
        Ok(Control {
            listener,
            clients: Vec::new(),
            boards: Vec::new(),
            most: MAX_CLIENTS,
            owed: Vec::new(),
            ask_us: 0,
            shares: Shares::default(),
        })
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
        self.owed = vec![Owed::default(); boards.len()];
        self.boards = boards;
    }

    /// Which directory it tells of.
    pub(crate) fn set_share(&mut self, tell: Tell) {
        self.shares = Shares(vec![tell]);
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
        let late = self.clients.iter().filter_map(|client| client.deadline_us(&self.owed));
        let ask = self.is_followed().then_some(self.ask_us);
        late.chain(ask).chain(self.listener.deadline_us()).min()
    }

    /// Accepts, reads questions, writes answers that have become ready. Never blocks.
    pub fn progress(&mut self, now_us: u64) {
        for _ in 0..MAX_CLIENTS {
            let Some(stream) = self.listener.accept(now_us) else { break };
            self.admit(stream, now_us);
        }
        if self.is_followed() && self.ask_us <= now_us {
            self.ask_us = now_us.saturating_add(ASK_US);
            self.owed.iter_mut().zip(&self.boards).for_each(|(owed, board)| _ = owed.ask(board, now_us));
        }
        self.owed.iter_mut().zip(&self.boards).for_each(|(owed, board)| owed.look(board));
        let Shares(shares) = &self.shares;
        let mut links = Links { boards: &self.boards, owed: &mut self.owed, shares, now_us };
        for client in &mut self.clients {
            if client.waiting.is_empty() {
                client.listen(&mut links);
            }
            client.answer(&links);
            client.send(now_us);
            client.leave();
        }
        self.clients.retain(|client| !client.gone);
        let followed = self.is_followed();
        self.boards.iter().for_each(|board| board.follow(followed));
    }

    fn is_followed(&self) -> bool {
        self.clients.iter().any(|client| matches!(client.want, Want::Changes(_)))
    }

    /// Gives a client a place, if need be that of one who has said nothing, or does not read, for longest. If all places
    /// are taken by clients who do both, it is turned away by closing.
    fn admit(&mut self, stream: UnixStream, now_us: u64) {
        let client = Client::new(stream, now_us);
        if self.clients.len() < self.most {
            return self.clients.push(client);
        }
        let idle = self.clients.iter_mut().filter(|client| client.is_idle());
        if let Some(place) = idle.min_by_key(|client| client.active_us) {
            *place = client;
        }
    }
}

/// The links, as clients see them.
struct Links<'a> {
    boards: &'a [Arc<Board>],
    owed: &'a mut [Owed],
    shares: &'a [Tell],
    now_us: u64,
}

impl Links<'_> {
    /// Asks all of them for a snapshot.
    fn ask(&mut self) -> Vec<u64> {
        self.owed.iter_mut().zip(self.boards).map(|(owed, board)| owed.ask(board, self.now_us)).collect()
    }

    /// Returns whether each has answered, or is not waited for any longer.
    fn have_answered(&self, numbers: &[u64]) -> bool {
        let mut all = self.boards.iter().zip(&*self.owed).zip(numbers);
        all.all(|((board, owed), number)| board.answered() >= *number || owed.is_late(self.now_us))
    }

    fn told(&self) -> impl Iterator<Item = Told> {
        let links = self.boards.iter().zip(&*self.owed);
        let links = links.map(|(board, owed)| (board.changes(), owed.is_late(self.now_us)));
        links.chain(self.shares.iter().map(|tell| (tell().changes(), false)))
    }

    fn status(&self) -> Status {
        let (capabilities, no_new_privs) = crate::privileges::left();
        let version = env!("CARGO_PKG_VERSION").into();
        let pmm = Process { version, pid: std::process::id(), capabilities, no_new_privs };
        let link = |(board, owed): (&Arc<Board>, &Owed)| {
            let unresponsive = owed.is_late(self.now_us);
            LinkStatus { unresponsive, ..board.latest() }
        };
        let links = self.boards.iter().zip(&*self.owed).map(link).collect();
        Status { pmm, links, shares: self.shares.iter().map(|tell| tell()).collect() }
    }
}

impl Client {
    fn new(stream: UnixStream, active_us: u64) -> Client {
        let (question, waiting) = (Vec::new(), Vec::new());
        Client { stream, active_us, question, waiting, want: Want::Nothing, ended: false, gone: false }
    }

    /// Returns whether nothing is under way for it but what it does not read.
    fn is_idle(&self) -> bool {
        matches!(self.want, Want::Nothing) || !self.waiting.is_empty()
    }

    /// Returns when it is told of a link that does not answer.
    fn deadline_us(&self, owed: &[Owed]) -> Option<u64> {
        let told = match &self.want {
            Want::Changes(Some(told)) => told.as_slice(),
            Want::Nothing | Want::Changes(None) => return None,
            Want::Snapshot(_) => &[],
        };
        // Whose silence was told of is not waited for.
        let known = told.iter().map(|(_, late)| *late).chain(std::iter::repeat(false));
        owed.iter().zip(known).filter(|(_, known)| !known).filter_map(|(owed, _)| owed.deadline_us()).min()
    }

    fn listen(&mut self, links: &mut Links) {
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
            Ok(got) => {
                self.active_us = links.now_us;
                self.question.extend_from_slice(&bytes[..got]);
            }
            Err(error) => self.gone = error.kind() != ErrorKind::WouldBlock,
        }
        while let Some(end) = self.question.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.question.drain(..=end).collect();
            match line.trim_ascii() {
                b"status" => self.want = Want::Snapshot(links.ask()),
                b"follow" => {
                    links.ask();
                    self.want = Want::Changes(None);
                }
                _ => self.waiting.extend_from_slice(b"{\"error\":\"write 'status' or 'follow'\"}\n"),
            }
        }
        self.gone |= self.question.len() > MAX_QUESTION;
    }

    fn answer(&mut self, links: &Links) {
        match &mut self.want {
            Want::Nothing => {}
            Want::Snapshot(numbers) => {
                if links.have_answered(numbers) {
                    self.want = Want::Nothing;
                    self.say(&links.status());
                }
            }
            Want::Changes(told) => {
                // A client that is behind gets the latest when it has caught up.
                if self.waiting.is_empty()
                    && told.as_ref().is_none_or(|told| !links.told().eq(told.iter().copied()))
                {
                    // Counted first: a change that comes between is told twice rather than never.
                    *told = Some(links.told().collect());
                    self.say(&links.status());
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

    fn send(&mut self, now_us: u64) {
        while !self.waiting.is_empty() {
            match self.stream.write(&self.waiting) {
                Ok(sent @ 1..) => {
                    self.active_us = now_us;
                    self.waiting.drain(..sent);
                }
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
    use crate::observe::{Pace, Waker};
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::MetadataExt;

    struct Bench {
        control: Control,
        board: Arc<Board>,
        waker: Arc<Waker>,
        link: LinkStatus,
        pace: Pace,
        now: u64,
    }

    impl Bench {
        fn new(name: &str) -> Bench {
            let path = std::env::temp_dir().join(format!("pmm-control-{}-{name}", std::process::id()));
            let mut control = Control::open(&path).unwrap();
            let waker = Arc::new(Waker::new().unwrap());
            let link = LinkStatus { name: "a".into(), state: "serving".into(), ..LinkStatus::default() };
            let board = Arc::new(Board::new(waker.clone(), link.clone()).unwrap());
            control.set_boards(vec![board.clone()]);
            Bench { control, board, waker, link, pace: Pace::default(), now: 0 }
        }

        /// Both loops, once.
        fn turn(&mut self) {
            self.now += 10_000;
            self.control.progress(self.now);
            self.board.offer(self.now, &mut self.pace, || self.link.clone());
            self.waker.clear();
            self.control.progress(self.now);
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
        (&crowd[MAX_CLIENTS - 1]).write_all(&[b'x'; 2 * MAX_QUESTION]).unwrap();
        bench.turn();
        bench.turn();
        assert_eq!(bench.control.clients.len(), MAX_CLIENTS - 1);
    }

    fn answer(client: &UnixStream) -> Status {
        client.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).expect("no answer in 20 s");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("closed, or no answer: '{line}'"))
    }

    #[test]
    fn silent_clients_make_room_for_one_who_asks() {
        let mut bench = Bench::new("silent");
        let client = || UnixStream::connect(bench.control.path()).unwrap();
        let follower = client();
        (&follower).write_all(b"follow\n").unwrap();
        let silent: Vec<_> = (1..MAX_CLIENTS).map(|_| client()).collect();
        bench.turn();
        assert_eq!(bench.control.clients.len(), MAX_CLIENTS);
        let asks = UnixStream::connect(bench.control.path()).unwrap();
        (&asks).write_all(b"status\n").unwrap();
        bench.turn();
        bench.turn();
        assert_eq!(answer(&asks).links.len(), 1);
        // Who follows is not silent.
        assert_eq!(answer(&follower).links.len(), 1);
        // Who was silent for longest made room.
        silent[0].set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        assert_eq!((&silent[0]).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_link_that_is_stuck_is_told_of_and_holds_up_no_status() {
        let mut bench = Bench::new("stuck");
        let stuck = LinkStatus { name: "b".into(), adoptions: 5, ..LinkStatus::default() };
        let stuck = Arc::new(Board::new(bench.waker.clone(), stuck).unwrap());
        bench.control.set_boards(vec![bench.board.clone(), stuck.clone()]);
        let client = |question: &[u8]| {
            let mut client = UnixStream::connect(bench.control.path()).unwrap();
            client.write_all(question).unwrap();
            client
        };
        let (asks, follower) = (client(b"status\n"), client(b"follow\n"));
        bench.link.adoptions = 7;
        bench.turn();
        bench.turn();
        assert!(!answer(&follower).links[1].unresponsive, "it may still answer");
        asks.set_nonblocking(true).unwrap();
        assert_eq!((&asks).read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "too early");
        asks.set_nonblocking(false).unwrap();
        while let Some(at) = bench.control.deadline_us().filter(|at| *at < bench.now + 2 * PATIENCE_US)
            && bench.now < 2 * PATIENCE_US
        {
            bench.now = at;
            bench.turn();
        }
        let status = answer(&asks);
        let told = |status: &Status| {
            let links = status.links.iter();
            links.map(|link| (link.name.clone(), link.adoptions, link.unresponsive)).collect::<Vec<_>>()
        };
        let want = [("a".to_string(), 7, false), ("b".to_string(), 5, true)];
        assert_eq!(told(&status), want);
        assert!(status.to_string().contains("does not answer"), "{status}");
        let mut followed = answer(&follower);
        while !followed.links[1].unresponsive {
            followed = answer(&follower);
        }
        assert_eq!(told(&followed), want);
        // It comes to itself.
        stuck.offer(bench.now, &mut Pace::default(), || LinkStatus {
            name: "b".into(),
            adoptions: 6,
            ..LinkStatus::default()
        });
        bench.turn();
        assert_eq!(told(&answer(&follower))[1], ("b".to_string(), 6, false));
    }

    #[test]
    fn a_follower_costs_nothing_while_nothing_changes() {
        let mut bench = Bench::new("quiet");
        let follower = UnixStream::connect(bench.control.path()).unwrap();
        (&follower).write_all(b"follow\n").unwrap();
        bench.turn();
        answer(&follower);
        // A snapshot that somebody has in hand for ever: whoever copies one without need waits for it.
        let board = bench.board.clone();
        let (done, is_done) = std::sync::mpsc::channel();
        board.hold(|| {
            let turn = std::thread::spawn(move || {
                bench.control.progress(bench.now);
                done.send(()).unwrap();
            });
            is_done.recv_timeout(std::time::Duration::from_secs(20)).expect("a snapshot was copied");
            turn.join().unwrap();
        });
    }

    #[test]
    fn a_client_that_asks_and_never_reads_costs_no_memory() {
        let path = std::env::temp_dir().join(format!("pmm-control-flood-{}", std::process::id()));
        let mut control = Control::open(&path).unwrap();
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
