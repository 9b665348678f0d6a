//! All five devices at once: console, entropy, files, sockets and network, against stock programs, and again after every
//! kind of death, with no other step than what the guest's own user would do.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use crc::{CRC_32_ISO_HDLC, Crc};

use crate::Tools;
use crate::dice::Dice;
use crate::guard::Guard;
use crate::guest::Kind;
use crate::rig::{Bell, Rig, UP};

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
/// What the guest and the host call each other at.
const PORT: u32 = 77;
/// Bytes of a small exchange.
const SMALL: usize = 10_000;
const ADDRESS: &str = "10.9.8.1";
const NEIGHBOUR: &str = "10.9.8.2";

/// The guest, and a neighbour in its network: another guest behind a pmm of its own.
struct World<'t> {
    rig: Rig<'t>,
    neighbour: Rig<'t>,
    dice: Dice,
}

pub fn run(tools: &Tools, kind: Kind, mebibytes: u64, deaths: u64) -> Result<()> {
    let mut rig = Rig::new(tools, "devices", kind, Bell::Direct)?;
    let mut neighbour = Rig::new(tools, "devices-neighbour", Kind::Host, Bell::Direct)?;
    let cable = rig.dir().join("cable");
    rig.extend(["--network", &format!("mode=socket,stream=unix:{},listen", cable.display())]);
    neighbour.extend(["--network", &format!("mode=socket,stream=unix:{}", cable.display())]);
    rig.start().context("the guest")?;
    neighbour.start().context("its neighbour")?;
    neighbour.command(&format!("ip {NEIGHBOUR}/24"))?;
    neighbour.command("httpd /")?;
    let mut world = World { rig, neighbour, dice: Dice::new(tools.seed) };
    world.configure()?;
    world.all_work().context("at first")?;
    world.large(tools.scaled(mebibytes << 20) as usize)?;

    let mut longest = 0f64;
    for round in 0..tools.scaled(deaths) {
        let what =
            ["the pmm killed", "the guest rebooted", "the guest killed", "both killed"][round as usize % 4];
        // In the middle of a transfer, which is cut off.
        let torn = world.rig.sockets();
        world.rig.terminal.send(format!("vsock listen {PORT}\r").as_bytes());
        world.rig.terminal.expect("vsock listen", UP)?;
        let call = call(&torn).context("a connection to be cut off")?;
        let start = Instant::now();
        match round % 4 {
            0 => {
                world.rig.kill_pmm()?;
                world.rig.start_pmm()?;
                ended(call)?;
                world.rig.terminal.expect("(failed)> ", UP).context("the reset is told")?;
            }
            1 => {
                world.rig.terminal.send(b"\x03");
                world.rig.terminal.expect("(failed)> ", UP)?;
                world.rig.terminal.send(b"reboot\r");
                world.rig.prompt()?;
                ended(call)?;
                world.configure()?;
            }
            2 => {
                world.rig.guest.kill()?;
                world.rig.guest.start()?;
                world.rig.prompt()?;
                ended(call)?;
                world.configure()?;
            }
            _ => {
                world.rig.guest.kill()?;
                world.rig.kill_pmm()?;
                ended(call)?;
                world.rig.start_pmm()?;
                world.rig.guest.start()?;
                world.rig.prompt()?;
                world.configure()?;
            }
        }
        world.all_work().with_context(|| format!("round {round}, {what}"))?;
        longest = longest.max(start.elapsed().as_secs_f64());
    }
    println!("{} deaths: all five devices work again after {longest:.3} s at worst", tools.scaled(deaths));
    world.rig.check()?;
    world.neighbour.check()
}

impl World<'_> {
    /// What the guest's user types once after each of its starts.
    fn configure(&mut self) -> Result<()> {
        self.rig.command(&format!("ip {ADDRESS}/24")).map(drop)
    }

    /// A little of each.
    fn all_work(&mut self) -> Result<()> {
        let (one, two) = (self.rig.command("rand 32")?, self.rig.command("rand 32")?);
        ensure!(one.trim().len() == 64 && one != two, "{one:?} and {two:?} are not random");
        ensure!(self.rig.command("echo across")? == "across\n", "the console says something else");
        let word = format!("{:016x}", self.dice.number());
        self.rig.command(&format!("write word {word}"))?;
        let path = self.rig.shared().join("word");
        ensure!(std::fs::read_to_string(&path)? == format!("{word}\n"), "the file holds something else");
        ensure!(self.rig.command("cat word")? == format!("{word}\n"), "the guest reads something else");
        // The cable is out while a pmm is away: what is sent then is lost, as in any network.
        let guard = Guard::new(UP, "the neighbour to answer");
        while self.rig.command(&format!("ping {NEIGHBOUR} 1")).is_err() {
            guard.left()?;
        }
        let ping = self.rig.command(&format!("ping {NEIGHBOUR} 3")).context("ping")?;
        ensure!(ping.ends_with("ping: 3 sent, 3 answered\n"), "{ping}");
        let bytes: Vec<u8> = self.dice.bytes(SMALL);
        let path = self.rig.sockets();
        self.exchange(&format!("vsock listen {PORT}"), &bytes, || call(&path))?;
        let listener = PathBuf::from(format!("{}_{PORT}", path.display()));
        let _ = std::fs::remove_file(&listener);
        let listener = UnixListener::bind(listener)?;
        self.exchange(&format!("vsock connect {PORT}"), &bytes, || Ok(listener.accept()?.0))
    }

    /// The guest gives back what a client says.
    fn exchange(
        &mut self,
        command: &str,
        bytes: &[u8],
        connect: impl FnOnce() -> Result<UnixStream>,
    ) -> Result<()> {
        self.rig.terminal.send(format!("{command}\r").as_bytes());
        self.rig.terminal.expect(&format!("{command}\n"), UP)?;
        let mut stream = connect()?;
        let mut sending = stream.try_clone()?;
        let back = std::thread::scope(|scope| {
            let sender = scope.spawn(move || {
                sending.write_all(bytes)?;
                sending.shutdown(std::net::Shutdown::Write)
            });
            let mut back = Vec::new();
            stream.set_read_timeout(Some(std::time::Duration::from_secs(UP)))?;
            stream.read_to_end(&mut back).context("what comes back")?;
            sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
            anyhow::Ok(back)
        })?;
        ensure!(back == bytes, "{} bytes came back of {}, or others", back.len(), bytes.len());
        self.gave_back(bytes)
    }

    fn gave_back(&mut self, bytes: &[u8]) -> Result<()> {
        self.rig.terminal.expect("gave back ", UP)?;
        let said = self.rig.terminal.expect("\n", UP)?;
        let right = format!("{} bytes, CRC-32 {:08x}", bytes.len(), CRC.checksum(bytes));
        ensure!(said.starts_with(right.as_bytes()), "{:?} is not {right}", String::from_utf8_lossy(&said));
        self.rig.terminal.expect(&format!("{}> ", self.rig.guest.name()), UP)?;
        Ok(())
    }

    /// Mebibytes with stock programs, and over TCP.
    fn large(&mut self, len: usize) -> Result<()> {
        let bytes: Vec<u8> = self.dice.bytes(len);
        match socat() {
            None => println!("SKIPPED: sockets with socat: there is none; 'cargo xtask setup' gets it"),
            Some(socat) => self.with_socat(&socat, &bytes)?,
        }
        std::fs::write(self.neighbour.shared().join("page"), &bytes)?;
        let start = Instant::now();
        let said = self.rig.command(&format!("get http://{NEIGHBOUR}/page copy")).context("get")?;
        let right = format!("got {len} bytes, CRC-32 {:08x}\n", CRC.checksum(&bytes));
        ensure!(said.ends_with(&right), "{said}");
        ensure!(std::fs::read(self.rig.shared().join("copy"))? == bytes, "the copy of the page is another");
        println!(
            "{len} bytes from the neighbour's disk through two links over TCP to this guest's: {:.1} s",
            start.elapsed().as_secs_f32()
        );
        Ok(())
    }

    fn with_socat(&mut self, socat: &Path, bytes: &[u8]) -> Result<()> {
        let path = self.rig.sockets();
        let host = format!("UNIX-LISTEN:{}_{PORT}", path.display());
        let _ = std::fs::remove_file(format!("{}_{PORT}", path.display()));
        let guest = format!("UNIX-CONNECT:{}", path.display());
        for (command, address, greeting) in [
            (format!("vsock listen {PORT}"), guest, format!("CONNECT {PORT}\n")),
            (format!("vsock connect {PORT}"), host, String::new()),
        ] {
            let start = Instant::now();
            let listening = greeting.is_empty();
            if !listening {
                self.rig.terminal.send(format!("{command}\r").as_bytes());
                self.rig.terminal.expect(&format!("{command}\n"), UP)?;
            }
            let mut child = Command::new(socat)
                .args(["-t", "60", "-", &address])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("socat does not start")?;
            let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
                bail!("socat has no pipes");
            };
            if listening {
                let path = format!("{}_{PORT}", path.display());
                let guard = Guard::new(20, "socat to listen");
                while !listens(&path)? {
                    guard.left()?;
                    std::thread::yield_now();
                }
                self.rig.terminal.send(format!("{command}\r").as_bytes());
                self.rig.terminal.expect(&format!("{command}\n"), UP)?;
            }
            let back = std::thread::scope(|scope| {
                let sender = scope.spawn(move || {
                    input.write_all(greeting.as_bytes())?;
                    input.write_all(bytes)
                });
                let mut output = BufReader::new(output);
                let mut back = Vec::new();
                if !listening {
                    let mut line = String::new();
                    output.read_line(&mut line)?;
                    ensure!(line.starts_with("OK "), "the multiplexer says {line:?}");
                }
                output.read_to_end(&mut back)?;
                sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
                Ok(back)
            })?;
            ensure!(child.wait()?.success(), "socat failed");
            ensure!(back == bytes, "{} bytes came back of {}, or others", back.len(), bytes.len());
            self.gave_back(bytes).with_context(|| command.clone())?;
            println!(
                "{} bytes there and back with socat, {command}: {:.1} s",
                bytes.len(),
                start.elapsed().as_secs_f32()
            );
        }
        Ok(())
    }
}

/// Whether a socket at `path` takes connections: it has a name before it does, and one that calls between is refused.
fn listens(path: &str) -> Result<bool> {
    const ACCEPTS: &str = "00010000";
    let sockets = std::fs::read_to_string("/proc/net/unix")?;
    Ok(sockets.lines().any(|line| line.ends_with(path) && line.split_whitespace().nth(3) == Some(ACCEPTS)))
}

/// Calls the guest as clients of Firecracker do.
fn call(path: &Path) -> Result<UnixStream> {
    let guard = Guard::new(UP, "the guest to take a call");
    loop {
        let mut stream = UnixStream::connect(path).context("the multiplexer takes no connection")?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(UP)))?;
        writeln!(stream, "CONNECT {PORT}")?;
        let mut line = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            line.push(byte[0]);
            if byte == *b"\n" {
                ensure!(
                    line.starts_with(b"OK "),
                    "the multiplexer says {:?}",
                    String::from_utf8_lossy(&line)
                );
                return Ok(stream);
            }
        }
        // Closed without a word: nobody listened yet.
        guard.left()?;
    }
}

/// A connection that was cut off ends visibly.
fn ended(mut stream: UnixStream) -> Result<()> {
    match stream.read(&mut [0; 64]) {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        other => bail!("a connection that was cut off answers {other:?}"),
    }
}

/// `socat`, as `cargo xtask setup` unpacks it, or of this machine.
fn socat() -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/socat/bin/socat");
    let runs = |program: &PathBuf| {
        let command = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        command.is_ok_and(|status| status.success())
    };
    [unpacked, "socat".into()].into_iter().find(runs)
}
