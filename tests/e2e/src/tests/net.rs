//! Networks: two links with a cable between them, a TAP and `passt` in a network namespace of the test's own. Nothing
//! leaves this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::Tools;
use crate::guard::Guard;
use crate::namespace::{self, Namespace};
use crate::net_guest::{checksum, pattern};
use crate::pmm::Pmm;
use crate::process::{self, Running};
use crate::rig::directory;

/// Seconds for anything here, on a busy machine.
const LONG: u64 = 120;
const BASE: u64 = 0x1000_0000;
const SIZE: u64 = 0x10_0000;
const MIB: u64 = 1 << 20;

/// A PMM and a guest with a card.
struct Node {
    dir: PathBuf,
    program: PathBuf,
    options: Vec<String>,
    pmm: Option<Pmm>,
    guest: Option<Running>,
    lines: Option<Receiver<String>>,
}

impl Node {
    fn new(tools: &Tools, dir: &Path, name: &str, network: &str) -> Result<Node> {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let memory = dir.join("memory");
        std::fs::File::create(&memory)?.set_len(SIZE)?;
        let options = [
            "--pmm",
            "--no-dtb",
            "--rng",
            "--name",
            name,
            "--shmem-addr",
            &BASE.to_string(),
            "--shmem-size",
            &SIZE.to_string(),
            "--shmem-file",
            &memory.display().to_string(),
            "--doorbell",
            &format!("unix-stream:{}", dir.join("doorbell").display()),
            "--network",
            network,
            // For whoever looks for the cause of a failure.
            "--pcap",
            &dir.join("frames.pcapng").display().to_string(),
        ];
        let options = options.map(String::from).into();
        Ok(Node { dir, program: tools.pmm.clone(), options, pmm: None, guest: None, lines: None })
    }

    fn start_pmm(&mut self) -> Result<()> {
        let (control, log) = (self.dir.join("control"), self.dir.join("pmm.log"));
        self.pmm = Some(Pmm::start(&self.program, &control, &self.options, &log)?);
        Ok(())
    }

    fn kill_pmm(&mut self) -> Result<()> {
        self.pmm.take().map_or(Ok(()), Pmm::kill)
    }

    fn pmm(&self) -> Result<&Pmm> {
        self.pmm.as_ref().context("no pmm runs")
    }

    fn start_guest(&mut self, arguments: &[&str]) -> Result<()> {
        let mut command = process::command(std::env::current_exe()?)?;
        command.arg("net-guest").arg("--memory").arg(self.dir.join("memory"));
        command.args(["--base", &BASE.to_string(), "--size", &SIZE.to_string()]);
        command.arg("--doorbell").arg(self.dir.join("doorbell")).args(arguments);
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("guest.log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        self.guest = None;
        let mut guest = Running::spawn("the guest", &mut command)?;
        let output = guest.child().stdout.take().context("the guest's output is a pipe")?;
        let (said, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| said.send(line))
        });
        (self.guest, self.lines) = (Some(guest), Some(lines));
        Ok(())
    }

    /// Waits for a line of the guest's that starts like this, and returns the rest of it.
    fn expect(&self, start: &str) -> Result<String> {
        self.expect_meanwhile(start, || Ok(()))
    }

    fn expect_meanwhile(&self, start: &str, mut meanwhile: impl FnMut() -> Result<()>) -> Result<String> {
        let guard = Guard::new(LONG, format!("'{start}' of the guest in {}", self.dir.display()));
        let lines = self.lines.as_ref().context("no guest runs")?;
        loop {
            let left = guard.left()?.min(std::time::Duration::from_millis(100));
            match lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(start) {
                        return Ok(rest.trim().into());
                    }
                }
                Err(RecvTimeoutError::Timeout) => meanwhile()?,
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the guest has ended; see {}", self.dir.join("guest.log").display())
                }
            }
        }
    }

    /// Waits until so many bytes went through the card in one direction since the PMM was started.
    fn wait_for_bytes(&self, bytes: u64) -> Result<()> {
        let moved = |status: &serde_json::Value| {
            let devices = status["links"][0]["devices"].as_array();
            let mut cards = devices.into_iter().flatten().filter(|device| device["name"] == "net");
            let queues = cards.next().and_then(|card| card["queues"].as_array().cloned());
            queues.into_iter().flatten().filter_map(|queue| queue["bytes"].as_u64()).max().unwrap_or(0)
        };
        self.pmm()?.wait_for("bytes to go through the card", |status| moved(status) >= bytes).map(drop)
    }
}

/// Two links with a cable between them: ping without loss, 16 MiB over TCP; then with datagrams, and PMMs that are killed.
pub fn joined(tools: &Tools) -> Result<()> {
    let dir = directory(tools, "joined")?;
    let cable = dir.join("cable");
    let ends = [
        format!("mode=socket,stream=unix:{},listen", cable.display()),
        format!("mode=socket,stream=unix:{}", cable.display()),
    ];
    let size = tools.scaled(16) * MIB;
    let sent = format!("{size} {:08x}", checksum(size));
    let mib = size as f64 / MIB as f64;

    let mut one = Node::new(tools, &dir, "one", &ends[0])?;
    let mut two = Node::new(tools, &dir, "two", &ends[1])?;
    one.start_pmm()?;
    two.start_pmm()?;
    one.pmm()?.host_end("net", |end| end.starts_with("peer connected"))?;
    across(tools, "stream", &mut one, &mut two)?;
    drop((one, two));

    let (a, b) = (dir.join("a"), dir.join("b"));
    let mut one = Node::new(tools, &dir, "three", &datagrams(&a, &b))?;
    let mut two = Node::new(tools, &dir, "four", &datagrams(&b, &a))?;
    one.start_pmm()?;
    two.start_pmm()?;
    two.start_guest(&["--address", "10.0.0.2"])?;
    two.expect("address")?;
    one.start_guest(&[
        "--checksums",
        "--segments",
        "--address",
        "10.0.0.1",
        "--ping",
        "10.0.0.2",
        "--count",
        "1",
        "--send",
        &size.to_string(),
    ])?;
    one.expect("pinged")?;
    // The connection lives through the death of either PMM: the frames in flight are lost, and sent again by TCP.
    let mut back = Vec::new();
    for kill in 0..4 {
        let node = if kill % 2 == 0 { &mut two } else { &mut one };
        node.wait_for_bytes(size / 16)?;
        let start = Instant::now();
        node.kill_pmm()?;
        node.start_pmm()?;
        back.push(start.elapsed().as_millis());
    }
    let answer = one.expect("sent")?;
    ensure!(answer == sent, "sent {sent}, and the other side took {answer}, through 4 deaths");
    println!(
        "datagrams: {mib:.0} MiB over TCP through 4 deaths of a PMM (each started again in {back:?} ms)"
    );
    Ok(())
}

fn datagrams(local: &Path, peer: &Path) -> String {
    format!("mode=socket,dgram=unix:{},peer=unix:{}", local.display(), peer.display())
}

/// Pings without loss, and 16 MiB over TCP, from the first guest to the second, whose PMMs run.
fn across(tools: &Tools, what: &str, one: &mut Node, two: &mut Node) -> Result<()> {
    let size = tools.scaled(16) * MIB;
    let sent = format!("{size} {:08x}", checksum(size));
    let count = tools.scaled(1000).to_string();
    two.start_guest(&["--address", "10.0.0.2", "--checksums"])?;
    two.expect("address")?;
    let plan =
        ["--address", "10.0.0.1", "--ping", "10.0.0.2", "--count", &count, "--send", &size.to_string()];
    one.start_guest(&plan)?;
    let start = Instant::now();
    let pinged = one.expect("pinged")?;
    ensure!(pinged == format!("{count} of {count}"), "{what}: echo requests were lost: {pinged}");
    let (pings, start) = (start.elapsed(), Instant::now());
    let answer = one.expect("sent")?;
    ensure!(answer == sent, "{what}: sent {sent}, and the other side took {answer}");
    println!(
        "{what}: {count} pings in {:.2} s, {:.0} MiB over TCP in {:.2} s",
        pings.as_secs_f32(),
        size as f64 / MIB as f64,
        start.elapsed().as_secs_f32()
    );
    Ok(())
}

/// A QEMU with no machine in it, but with two network back ends on a hub: what comes from one goes to the other.
fn qemu(tools: &Tools, dir: &Path, ends: [String; 2]) -> Result<Running> {
    let (program, arguments) = tools.emulator.split_first().context("this test needs the emulator")?;
    let mut qemu = process::command(program)?;
    qemu.args(arguments).args(["-M", "none", "-nodefaults", "-display", "none"]);
    for (number, end) in ends.iter().enumerate() {
        qemu.arg("-netdev").arg(end.replacen(',', &format!(",id=end{number},"), 1));
        qemu.arg("-netdev").arg(format!("hubport,id=port{number},hubid=0,netdev=end{number}"));
    }
    Running::start("qemu", qemu, &dir.join("qemu.log"))
}

/// Two links with a QEMU between them, which knows nothing of them: by streams, of which each side takes one and makes
/// one, and by datagrams.
pub fn through_qemu(tools: &Tools) -> Result<()> {
    let dir = directory(tools, "qemu")?;
    let [a, b] = ["a", "b"].map(|name| dir.join(name));
    let mut one = Node::new(tools, &dir, "one", &format!("mode=socket,stream=unix:{}", a.display()))?;
    let mut two = Node::new(tools, &dir, "two", &format!("mode=socket,stream=unix:{},listen", b.display()))?;
    one.start_pmm()?;
    two.start_pmm()?;
    let stream =
        |role: &str, path: &Path| format!("stream,server={role},addr.type=unix,addr.path={}", path.display());
    let mut between = qemu(tools, &dir, [stream("on", &a), stream("off", &b)])?;
    one.pmm()?.host_end("net", |end| end.starts_with("peer connected"))?;
    two.pmm()?.host_end("net", |end| end.starts_with("peer connected"))?;
    across(tools, "streams", &mut one, &mut two)?;
    between.check()?;
    drop((one, two, between));

    let [c, d, e, f] = ["c", "d", "e", "f"].map(|name| dir.join(name));
    let mut one = Node::new(tools, &dir, "three", &datagrams(&c, &d))?;
    let mut two = Node::new(tools, &dir, "four", &datagrams(&f, &e))?;
    one.start_pmm()?;
    two.start_pmm()?;
    let dgram = |local: &Path, remote: &Path| {
        format!(
            "dgram,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            local.display(),
            remote.display()
        )
    };
    let mut between = qemu(tools, &dir, [dgram(&d, &c), dgram(&e, &f)])?;
    let guard = Guard::new(LONG, "the emulator to open its sockets");
    while !(d.exists() && e.exists()) {
        between.check()?;
        guard.left()?;
        std::thread::yield_now();
    }
    across(tools, "datagrams", &mut one, &mut two)?;
    between.check()
}

/// Runs a test as an ordinary user, without a single right, in a network namespace of its own in which passt finds a
/// network, with the guest's address 10.99.0.2 in it. `false`: the test has been run in it, from here.
pub(super) fn is_where_passt_runs(tools: &Tools, name: &str) -> Result<bool> {
    let named = std::env::var_os("PMM_PASST").is_some_and(|path| Path::new(&path).is_file());
    let needs: &[&str] = if named { &["curl"] } else { &["curl", "passt"] };
    const PLACE: Namespace = Namespace {
        // Passt takes the guest's address from the interface with the default route. Nobody is behind this one.
        prepare: &[
            "ip link set lo up",
            "ip tuntap add dev out0 mode tap",
            "ip address add 10.99.0.2/24 dev out0",
            "ip link set out0 up",
            "ip route add default via 10.99.0.1",
        ],
        is_ordinary: true,
        ..Namespace::NETWORK
    };
    if !namespace::is_entered(tools, name, &PLACE, needs)? {
        return Ok(false);
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let none = status.lines().any(|line| line == "CapEff:\t0000000000000000");
    ensure!(none && !rustix::process::geteuid().is_root(), "this is no ordinary user: {status}");
    Ok(true)
}

fn ip(words: &str) -> Result<()> {
    let status = Command::new("ip").args(words.split(' ')).status().context("ip")?;
    ensure!(status.success(), "'ip {words}' failed");
    Ok(())
}

/// Fetches `size` bytes with curl, and checks each of them. What the guest said of its longest frame.
fn fetch(dir: &Path, host: &str, size: u64) -> Result<usize> {
    let (body, head) = (dir.join("body"), dir.join("head"));
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "*", "--output"]).arg(&body);
    curl.arg("--dump-header").arg(&head).arg(format!("http://{host}/{size}"));
    let status = curl.status().context("curl")?;
    ensure!(status.success(), "curl of {size} bytes from {host} failed ({status})");
    let bytes = std::fs::read(&body)?;
    ensure!(bytes.len() as u64 == size, "{} of {size} bytes came from {host}", bytes.len());
    ensure!(
        bytes.iter().zip(0..).all(|(byte, at)| *byte == pattern(at)),
        "what came from {host} is not what was sent"
    );
    let head = std::fs::read_to_string(&head)?;
    let longest = head.lines().find_map(|line| line.strip_prefix("X-Longest-Frame: "));
    Ok(longest.context("no header of the guest's")?.trim().parse()?)
}

/// Sends so many bytes to a sink and compares the checksums.
fn pour(address: &str, size: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("no connection to {address}"))?;
    stream.set_write_timeout(Some(std::time::Duration::from_secs(LONG)))?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(LONG)))?;
    let bytes: Vec<u8> = (0..size).map(pattern).collect();
    stream.write_all(&bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let sent = format!("{size} {:08x}", checksum(size));
    ensure!(answer.trim() == sent, "sent {sent}, and the guest took {}", answer.trim());
    Ok(())
}

/// A TAP: ping -f without loss, HTTP, and frames of 64 KiB where they were accepted.
pub fn tap(tools: &Tools) -> Result<()> {
    const PLACE: Namespace = Namespace {
        prepare: &[
            "ip link set lo up",
            "ip tuntap add dev hvl0 mode tap",
            "ip address add 10.77.0.1/24 dev hvl0",
            "ip link set hvl0 up",
        ],
        ..Namespace::NETWORK
    };
    if !namespace::is_entered(tools, "net-tap", &PLACE, &["ping", "curl"])? {
        return Ok(());
    }
    let dir = directory(tools, "tap")?;
    let mut node = Node::new(tools, &dir, "tap", "mode=tap,tapif=hvl0,trans=mmio")?;
    node.start_pmm()?;
    let size = tools.scaled(4) * MIB;
    let mut longest = Vec::new();
    for arguments in [&[][..], &["--checksums"], &["--checksums", "--segments"]] {
        node.start_guest(&[&["--address", "10.77.0.2"], arguments].concat())?;
        node.expect("address")?;
        // The guest's stack drops what it cannot send before it knows the other side's address: the first answer.
        let known = (0..10).any(|_| {
            let mut ping = Command::new("ping");
            ping.args(["-q", "-c", "1", "-W", "5", "10.77.0.2"]).stdout(Stdio::null());
            ping.status().is_ok_and(|status| status.success())
        });
        ensure!(known, "no echo request was answered");
        let count = tools.scaled(10_000).to_string();
        let mut ping = Command::new("ping");
        ping.args(["-f", "-q", "-n", "-c", &count, "10.77.0.2"]);
        let start = Instant::now();
        let output = ping.output().context("ping")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let whole = format!("{count} packets transmitted, {count} received");
        ensure!(text.contains(&whole), "ping -f with {arguments:?}: {text}");
        let pinged = start.elapsed();
        let start = Instant::now();
        fetch(&dir, "10.77.0.2", size)?;
        let fetched = start.elapsed();
        let start = Instant::now();
        pour("10.77.0.2:7000", size)?;
        let poured = start.elapsed();
        longest.push(fetch(&dir, "10.77.0.2", 1)?);
        println!(
            "tap {arguments:?}: {count} pings in {:.2} s, {size} bytes by HTTP in {:.2} s and to the guest in {:.2} s, longest frame {}",
            pinged.as_secs_f32(),
            fetched.as_secs_f32(),
            poured.as_secs_f32(),
            longest.last().copied().unwrap_or(0)
        );
    }
    ensure!(longest[0] <= 1514 && longest[1] <= 1514, "a frame that was not accepted: {longest:?}");
    ensure!(longest[2] > 60_000, "no frame of 64 KiB: {longest:?}");
    // Interface down: what the guest sends is lost, and it all comes back.
    ip("link set hvl0 down")?;
    let status = node.pmm()?.status()?;
    ensure!(status["links"][0]["state"] == "serving", "the link is {}", status["links"][0]["state"]);
    ip("link set hvl0 up")?;
    fetch(&dir, "10.77.0.2", size)?;
    // A PMM that is killed: an interface that was there before stays, and the guest goes on.
    node.kill_pmm()?;
    node.start_pmm()?;
    fetch(&dir, "10.77.0.2", size)?;
    Ok(())
}
