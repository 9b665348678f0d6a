//! This machine's end of the guest's sockets: a client and a listener, of the test's own or stock programs. The guest gives
//! back what they say, and tells how much that was.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::guard::Guard;
use crate::rig::{Rig, UP};
use crate::summed;

/// What the guest and the host call each other at.
pub const PORT: u32 = 77;

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A client of this machine.
    Host,
    /// The guest.
    Guest,
}

impl Caller {
    /// What is typed at the guest.
    pub fn command(self) -> String {
        match self {
            Caller::Host => format!("vsock listen {PORT}"),
            Caller::Guest => format!("vsock connect {PORT}"),
        }
    }
}

/// Where a listener of this machine waits for calls of the guest. Nobody is there yet.
pub fn listener(rig: &Rig<'_>) -> PathBuf {
    let path = PathBuf::from(format!("{}_{PORT}", rig.sockets().display()));
    let _ = std::fs::remove_file(&path);
    path
}

/// Sends bytes to the guest and back, over a socket of the test's own. What the guest said.
pub fn exchange(rig: &mut Rig<'_>, caller: Caller, bytes: &[u8]) -> Result<String> {
    let mut stream = match caller {
        Caller::Host => {
            rig.begin(&caller.command())?;
            call(&rig.sockets())?
        }
        Caller::Guest => {
            let listener = UnixListener::bind(listener(rig))?;
            rig.begin(&caller.command())?;
            listener.accept()?.0
        }
    };
    stream.set_read_timeout(Some(Duration::from_secs(UP)))?;
    let mut sending = stream.try_clone()?;
    let back = there_and_back(
        move || {
            sending.write_all(bytes)?;
            sending.shutdown(std::net::Shutdown::Write)
        },
        &mut stream,
    )?;
    gave_back(rig, bytes, &back)
}

/// Sends bytes to the guest and back with socat. What the guest said.
pub fn with_socat(rig: &mut Rig<'_>, socat: &Path, caller: Caller, bytes: &[u8]) -> Result<String> {
    let (path, listener) = (rig.sockets(), listener(rig));
    let (address, greeting) = match caller {
        Caller::Host => (format!("UNIX-CONNECT:{}", path.display()), format!("CONNECT {PORT}\n")),
        Caller::Guest => (format!("UNIX-LISTEN:{}", listener.display()), String::new()),
    };
    if caller == Caller::Host {
        rig.begin(&caller.command())?;
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
    if caller == Caller::Guest {
        let guard = Guard::new(20, "socat to listen");
        while !listens(&listener)? {
            guard.left()?;
            std::thread::yield_now();
        }
        rig.begin(&caller.command())?;
    }
    let mut output = BufReader::new(output);
    input.write_all(greeting.as_bytes())?;
    if caller == Caller::Host {
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(line.starts_with("OK "), "the multiplexer says {line:?}");
    }
    let back = there_and_back(move || input.write_all(bytes), &mut output)?;
    ensure!(child.wait()?.success(), "socat failed");
    gave_back(rig, bytes, &back)
}

/// What comes back while it is sent.
fn there_and_back(
    send: impl FnOnce() -> std::io::Result<()> + Send,
    receiver: &mut impl Read,
) -> Result<Vec<u8>> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(send);
        let mut back = Vec::new();
        receiver.read_to_end(&mut back).context("what comes back")?;
        sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        Ok(back)
    })
}

/// It came back whole, and the guest says so.
fn gave_back(rig: &mut Rig<'_>, bytes: &[u8], back: &[u8]) -> Result<String> {
    ensure!(back == bytes, "{} bytes came back of {}, or others", back.len(), bytes.len());
    let said = rig.done()?;
    let right = format!("gave back {}\n", summed(bytes));
    ensure!(said.ends_with(&right), "{said:?} is not {right:?}");
    Ok(said)
}

/// Whether a socket at `path` takes connections: it has a name before it does, and one that calls between is refused.
pub fn listens(path: &Path) -> Result<bool> {
    const ACCEPTS: &str = "00010000";
    let sockets = std::fs::read_to_string("/proc/net/unix")?;
    let path = path.display().to_string();
    Ok(sockets.lines().any(|line| line.ends_with(&path) && line.split_whitespace().nth(3) == Some(ACCEPTS)))
}

/// Calls the guest as clients of Firecracker do.
pub fn call(path: &Path) -> Result<UnixStream> {
    let guard = Guard::new(UP, "the guest to take a call");
    loop {
        let mut stream = UnixStream::connect(path).context("the multiplexer takes no connection")?;
        stream.set_read_timeout(Some(Duration::from_secs(UP)))?;
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

/// `socat`, as `cargo xtask setup` unpacks it, or of this machine.
pub fn socat() -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/socat/bin/socat");
    let runs = |program: &PathBuf| {
        let command = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        command.is_ok_and(|status| status.success())
    };
    [unpacked, "socat".into()].into_iter().find(runs)
}
