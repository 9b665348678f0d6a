//! Sockets from end to end: a `pmm` process, a guest in this one that runs the frontend, and clients of this machine,
//! `socat` among them.
//!
//! Nothing here sleeps: clients block in the kernel, the guest in its doorbell. Each wait has a guard of its own.

#[path = "../../tests/guests/host-shell/src/bell.rs"]
#[allow(dead_code)] // what only the shell asks it
mod bell;
#[path = "../../tests/guests/host-shell/src/memory.rs"]
mod memory;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bell::{Address, Bell};
use hvl_frontend::device::QueueStorage;
use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::rng::{Rng, RngStorage};
use hvl_frontend::device::vsock::{Connection, End, Socket, SocketError, Vsock, VsockSlices};
use hvl_frontend::{Board, Clock, Doorbell, Instant, Link, LinkStorage};
use hvl_shared_abi::{Region, ShmRegion};

const GUARD: Duration = Duration::from_secs(60);
const BASE: u64 = 0x1000_0000;
const LEN: u32 = 0x10_0000;
/// The guest's services: what comes goes back; bytes without end.
const ECHO: u32 = 7;
const SOURCE: u32 = 19;

fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

/// Bytes of which each depends on its place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

// --- the guest ----------------------------------------------------------------------------------------------------------

#[derive(Clone)]
struct Process {
    region: Region,
    bell: Arc<Mutex<Bell>>,
    start: std::time::Instant,
}

impl Doorbell for Process {
    fn ring(&self) {
        self.bell.lock().unwrap().ring();
    }
}
impl Clock for Process {
    fn now(&self) -> Instant {
        Instant::from_micros(self.start.elapsed().as_micros() as u64 + 1)
    }
}
impl Board for Process {
    type Mem = Region;
    fn mem(&self) -> &Region {
        &self.region
    }
    fn region(&self) -> ShmRegion {
        ShmRegion { base: BASE, len: LEN }
    }
}

enum Order {
    /// Calls a port of the host, sends this, and reports what comes back.
    Call(u32, Vec<u8>, mpsc::Sender<Result<Vec<u8>, SocketError>>),
    /// Draws entropy and writes a line on the console this many times, and reports when all are acknowledged.
    Neighbours(u32, mpsc::Sender<()>),
    /// Starts again, as after a reset of the board.
    Reboot(mpsc::Sender<()>),
    End,
}

struct Echo {
    socket: Socket,
    pending: Vec<u8>,
    source: bool,
}

struct Call {
    socket: Socket,
    data: Vec<u8>,
    sent: usize,
    open: bool,
    got: Vec<u8>,
    report: mpsc::Sender<Result<Vec<u8>, SocketError>>,
}

/// What the guest counts for the test to read.
#[derive(Default)]
struct Counts {
    resets: AtomicU32,
    open: AtomicU32,
}

/// Takes the calls that wait.
fn accept(vsock: &mut Vsock<'static, Process>, echoes: &mut Vec<Echo>) {
    for (port, source) in [(ECHO, false), (SOURCE, true)] {
        while let Ok((socket, _)) = vsock.accept(port) {
            echoes.push(Echo { socket, pending: Vec::new(), source });
        }
    }
}

/// One start of the guest. The order that ended it.
fn start(process: &Process, orders: &mpsc::Receiver<Order>, counts: &Counts) -> Order {
    const CONNECTIONS: usize = 1100;
    let link = Link::attach(leak(LinkStorage::NEW), process.clone()).unwrap();
    let storage = VsockSlices {
        receive: leak(QueueStorage::<32>::NEW).slices(),
        transmit: leak(QueueStorage::<32>::NEW).slices(),
        event: leak(QueueStorage::<8>::NEW).slices(),
        connections: vec![Connection::NEW; CONNECTIONS].leak(),
        buffers: vec![0; CONNECTIONS * 4096].leak(),
    };
    let mut vsock = Vsock::open_slices(&link, storage).unwrap();
    let mut rng = Rng::open(&link, leak(RngStorage::<8>::NEW)).unwrap();
    let mut console = Console::open(&link, leak(ConsoleStorage::<64, 64>::NEW), Options::default()).unwrap();
    vsock.listen(ECHO, 255).unwrap();
    vsock.listen(SOURCE, 8).unwrap();
    let (mut echoes, mut calls): (Vec<Echo>, Vec<Call>) = (Vec::new(), Vec::new());
    let mut neighbours: Option<(u32, mpsc::Sender<()>)> = None;
    let mut waiting: Vec<Order> = Vec::new();
    let mut part = vec![0; 8192];
    loop {
        link.poll();
        let mut busy = false;
        waiting.extend(orders.try_iter());
        for order in std::mem::take(&mut waiting) {
            match order {
                Order::Call(port, data, report) => match vsock.connect(port) {
                    Ok(socket) => {
                        calls.push(Call { socket, data, sent: 0, open: false, got: Vec::new(), report })
                    }
                    // Until the link is up.
                    Err(_) => waiting.push(Order::Call(port, data, report)),
                },
                Order::Neighbours(count, report) => neighbours = Some((count, report)),
                end => return end,
            }
        }
        accept(&mut vsock, &mut echoes);
        counts.open.store(echoes.len() as u32, SeqCst);
        let (mut steps, mut came) = (0u32, Vec::new());
        echoes.retain_mut(|echo| {
            // A turn of a thousand takes longer than clients need to fill a backlog, and are refused.
            steps += 1;
            if steps.is_multiple_of(32) {
                accept(&mut vsock, &mut came);
            }
            match echo.step(&mut vsock, &mut part) {
                Ok(progress) => {
                    busy |= progress;
                    true
                }
                Err(error) => {
                    counts.resets.fetch_add(u32::from(error == Some(SocketError::Reset)), SeqCst);
                    busy = true;
                    false
                }
            }
        });
        // One that has come has not been read yet.
        busy |= !came.is_empty();
        echoes.append(&mut came);
        calls.retain_mut(|call| match call.step(&mut vsock, &mut part) {
            Ok(progress) => {
                busy |= progress;
                true
            }
            Err(error) => {
                let _ = call.report.send(error.map_or_else(|| Ok(std::mem::take(&mut call.got)), Err));
                vsock.close(call.socket);
                false
            }
        });
        match &mut neighbours {
            // A line is on the host's file once it is acknowledged, which a file's own thread may take its time for.
            Some((0, report)) if console.flush().is_ok() => {
                let _ = report.send(());
                neighbours = None;
            }
            Some((left @ 1.., _))
                if rng.fill(&mut part[..16]).is_ok() && console.write(b"a line\n").is_ok() =>
            {
                (*left, busy) = (*left - 1, true);
            }
            _ => {}
        }
        let until = link.next_deadline().into_iter().chain(vsock.deadline()).min();
        if !busy && until != Some(Instant::UNKNOWN) {
            let micros = until.map(|until| until.since(process.now()));
            process.bell.lock().unwrap().wait(micros);
        }
    }
}

impl Echo {
    /// Whether anything moved; an error where it is over, `None` in good order.
    fn step(
        &mut self,
        vsock: &mut Vsock<'static, Process>,
        part: &mut [u8],
    ) -> Result<bool, Option<SocketError>> {
        let mut progress = false;
        if self.source && self.pending.is_empty() {
            self.pending.resize(4096, b'.');
        }
        if self.pending.is_empty() {
            match vsock.read(self.socket, part) {
                Ok(0) => {
                    let _ = vsock.shut_down(self.socket, End::Write);
                    vsock.close(self.socket);
                    return Err(None);
                }
                Ok(count) => {
                    self.pending.extend_from_slice(&part[..count]);
                    progress = true;
                }
                Err(SocketError::WouldBlock) => {}
                Err(error) => return Err(Some(error)),
            }
        }
        if !self.pending.is_empty() {
            match vsock.write(self.socket, &self.pending) {
                Ok(count) => {
                    self.pending.drain(..count);
                    progress = true;
                }
                Err(SocketError::WouldBlock) => {}
                Err(SocketError::Closed) => {
                    vsock.close(self.socket);
                    return Err(None);
                }
                Err(error) => return Err(Some(error)),
            }
        }
        Ok(progress)
    }
}

impl Call {
    fn step(
        &mut self,
        vsock: &mut Vsock<'static, Process>,
        part: &mut [u8],
    ) -> Result<bool, Option<SocketError>> {
        let mut progress = false;
        if !self.open {
            match vsock.is_open(self.socket) {
                Ok(()) => self.open = true,
                Err(SocketError::WouldBlock) => return Ok(false),
                Err(error) => return Err(Some(error)),
            }
        }
        if self.sent < self.data.len() {
            match vsock.write(self.socket, &self.data[self.sent..]) {
                Ok(count) => {
                    self.sent += count;
                    progress = true;
                    if self.sent == self.data.len() {
                        vsock.shut_down(self.socket, End::Write).map_err(Some)?;
                    }
                }
                Err(SocketError::WouldBlock) => {}
                Err(error) => return Err(Some(error)),
            }
        }
        match vsock.read(self.socket, part) {
            Ok(0) => Err(None),
            Ok(count) => {
                self.got.extend_from_slice(&part[..count]);
                Ok(true)
            }
            Err(SocketError::WouldBlock) => Ok(progress),
            Err(error) => Err(Some(error)),
        }
    }
}

struct Guest {
    orders: mpsc::Sender<Order>,
    counts: Arc<Counts>,
    bell: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    fn boot(dir: &Path) -> Guest {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("memory"))
            .unwrap();
        file.set_len(LEN.into()).unwrap();
        let region = memory::map(&file, 0, LEN).unwrap();
        let (bind, peer) = (dir.join("guest-bell"), dir.join("pmm-bell"));
        let bell = Bell::open(&Address::Datagram { bind: bind.clone(), peer }).unwrap();
        let process = Process { region, bell: Arc::new(Mutex::new(bell)), start: std::time::Instant::now() };
        let (orders, receiver) = mpsc::channel();
        let counts = Arc::new(Counts::default());
        let own = counts.clone();
        let thread = std::thread::spawn(move || {
            while let Order::Reboot(report) = start(&process, &receiver, &own) {
                let _ = report.send(());
            }
        });
        Guest { orders, counts, bell: bind, thread: Some(thread) }
    }
    fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
        // As a doorbell would.
        let _ = UnixDatagram::unbound().unwrap().send_to(&[1], &self.bell);
    }
    fn call(&self, port: u32, data: &[u8]) -> Result<Vec<u8>, SocketError> {
        let (report, result) = mpsc::channel();
        self.order(Order::Call(port, data.to_vec(), report));
        result.recv_timeout(GUARD).expect("the guest's call came to no end in 60 s")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.order(Order::End);
        let _ = self.thread.take().unwrap().join();
    }
}

// --- the host -----------------------------------------------------------------------------------------------------------

struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = std::env::temp_dir().join(format!(
            "pmm-sockets-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, SeqCst)
        ));
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
    /// Starts a pmm; when this returns, its sockets take connections.
    fn pmm(&self) -> Pmm {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pmm"));
        command.args(["run", "--no-dtb", "--shmem-addr", "0x10000000", "--shmem-size", "1M", "--rng"]);
        command.args(["--shmem-file", &self.text("memory"), "--control", &self.text("control")]);
        command.args(["--vsock", &format!("3,path={}", self.text("v")), "--console"]);
        command.arg(format!("file:{}", self.text("console")));
        command.arg("--doorbell").arg(format!(
            "unix-dgram:bind={},peer={}",
            self.text("pmm-bell"),
            self.text("guest-bell")
        ));
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut all = String::new();
        while !all.contains("control socket") {
            assert_ne!(said.read_line(&mut all).unwrap(), 0, "the pmm ended at once: {all}");
        }
        assert!(all.contains("CONNECT PORT") && all.contains(&self.text("v")), "it says where: {all}");
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Pmm(child)
    }
    fn status(&self, condition: &str) -> serde_json::Value {
        let output = Command::new(env!("CARGO_BIN_EXE_pmm"))
            .args(["status", "--json", "--control", &self.text("control"), "--wait-for", condition])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
    fn client(&self, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(self.path("v")).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        stream.set_write_timeout(Some(GUARD)).unwrap();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        stream
    }
    /// A client whose connection is granted.
    fn connect(&self, port: u32) -> UnixStream {
        let mut stream = self.client(port);
        let (mut line, mut byte) = (String::new(), [0]);
        while !line.ends_with('\n') {
            stream.read_exact(&mut byte).expect("an OK");
            line.push(byte[0].into());
        }
        assert!(line.starts_with("OK "), "{line}");
        stream
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Pmm(Child);

impl Pmm {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Pmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn echo(stream: &mut UnixStream, data: &[u8]) {
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(data).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == data, "{} of {} bytes came back", got.len(), data.len());
    });
}

const RUNS: &str = "links.0.devices.vsock.state=running";

#[test]
fn four_mebibytes_go_there_and_back_from_either_side() {
    let dir = Dir::new();
    let _pmm = dir.pmm();
    let guest = Guest::boot(&dir.0);
    let data = pattern(4 << 20);
    echo(&mut dir.connect(ECHO), &data);

    assert_eq!(guest.call(99, b"anybody?"), Err(SocketError::Refused));
    let listener = UnixListener::bind(dir.path("v_99")).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    assert!(guest.call(99, &data) == Ok(data));
    server.join().unwrap();
    // A port at which the guest does not listen: closed without an OK.
    let mut said = String::new();
    dir.client(4711).read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn a_thousand_and_twenty_three_connections_at_once() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < 1200) {
        hvl_test_kit::skipped(format!(
            "this process may have {:?} descriptors, fewer than the clients need",
            limit.maximum
        ));
        return;
    }
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let dir = Dir::new();
    let _pmm = dir.pmm();
    let _guest = Guest::boot(&dir.0);
    dir.status(RUNS);
    let mut clients: Vec<_> = (0..1023).map(|_| dir.connect(ECHO)).collect();
    let status = dir.status("links.0.devices.vsock.host=1023 connections");
    assert_eq!(status["links"][0]["devices"][0]["name"], "vsock");
    for (index, client) in clients.iter_mut().enumerate() {
        client.write_all(format!("{index:08}").as_bytes()).unwrap();
    }
    for (index, client) in clients.iter_mut().enumerate() {
        let mut back = [0; 8];
        client.read_exact(&mut back).unwrap();
        assert_eq!(back, format!("{index:08}").as_bytes());
    }
    drop(clients);
    dir.status("links.0.devices.vsock.host=no connection");
}

#[test]
fn a_stuck_client_holds_up_nobody() {
    let dir = Dir::new();
    let _pmm = dir.pmm();
    let guest = Guest::boot(&dir.0);
    dir.status(RUNS);
    // One that never reads, of a guest that never stops; one that never says what it wants.
    let stuck: Vec<_> = (0..3).map(|_| dir.connect(SOURCE)).collect();
    let silent = UnixStream::connect(dir.path("v")).unwrap();
    let (report, done) = mpsc::channel();
    guest.order(Order::Neighbours(1000, report));
    echo(&mut dir.connect(ECHO), &pattern(1 << 20));
    done.recv_timeout(GUARD).expect("1,000 draws and lines were not done in 60 s");
    assert_eq!(std::fs::read(dir.path("console")).unwrap().len(), 7000);
    // When it reads at last, nothing is missing.
    for mut stream in stuck {
        let mut bytes = vec![0; 1 << 20];
        stream.read_exact(&mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == b'.'));
    }
    drop(silent);
}

#[test]
fn a_killed_pmm_resets_every_connection_visibly_and_the_next_one_works() {
    let dir = Dir::new();
    let pmm = dir.pmm();
    let guest = Guest::boot(&dir.0);
    let mut clients: Vec<_> = (0..5).map(|_| dir.connect(ECHO)).collect();
    for client in &mut clients {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    pmm.kill();
    for client in &mut clients {
        assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)), "the client sees the end");
    }
    let _pmm = dir.pmm();
    echo(&mut dir.connect(ECHO), &pattern(100_000));
    assert_eq!(guest.counts.resets.load(SeqCst), 5, "the guest was told of each, once");
}

#[test]
fn a_guest_that_reboots_closes_every_client_and_the_next_start_works() {
    let dir = Dir::new();
    let _pmm = dir.pmm();
    let guest = Guest::boot(&dir.0);
    let mut clients: Vec<_> = (0..5).map(|_| dir.connect(ECHO)).collect();
    let (report, done) = mpsc::channel();
    guest.order(Order::Reboot(report));
    done.recv_timeout(GUARD).expect("the guest did not reboot in 60 s");
    for client in &mut clients {
        assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)), "the client sees the end");
    }
    echo(&mut dir.connect(ECHO), &pattern(100_000));
}

/// `socat`, of this machine or as `cargo xtask setup` unpacks it.
fn socat() -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/socat/bin/socat");
    let runs =
        |path: &PathBuf| Command::new(path).arg("-V").output().is_ok_and(|output| output.status.success());
    [unpacked, "socat".into()].into_iter().find(runs)
}

#[test]
fn socat_exchanges_four_mebibytes_with_a_listener_of_the_guest_and_the_other_way_round() {
    let Some(socat) = socat() else {
        hvl_test_kit::skipped("socat_exchanges_four_mebibytes: no socat here; 'cargo xtask setup' gets it");
        return;
    };
    let dir = Dir::new();
    let _pmm = dir.pmm();
    let guest = Guest::boot(&dir.0);
    dir.status(RUNS);
    let data = pattern(4 << 20);
    let input = dir.path("input");
    std::fs::write(&input, [format!("CONNECT {ECHO}\n").as_bytes(), &data[..]].concat()).unwrap();
    let output = Command::new(&socat)
        .args(["-t60", "-", &format!("UNIX-CONNECT:{}", dir.text("v"))])
        .stdin(File::open(&input).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = output.stdout.iter().position(|byte| *byte == b'\n').expect("a line");
    assert!(output.stdout.starts_with(b"OK ") && output.stdout[line + 1..] == data[..]);

    let path = dir.text("v_1234");
    let mut server = Command::new(&socat)
        .args(["-t60", &format!("UNIX-LISTEN:{path}"), "EXEC:cat"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let guard = std::time::Instant::now();
    while !Path::new(&path).exists() {
        assert!(guard.elapsed() < GUARD, "socat does not listen after 60 s");
        std::thread::yield_now();
    }
    let mut back = guest.call(1234, &data);
    // Between its bind and its listen, a socket refuses.
    while back == Err(SocketError::Refused) && guard.elapsed() < GUARD {
        back = guest.call(1234, &data);
    }
    assert!(back == Ok(data));
    server.wait().unwrap();
}
