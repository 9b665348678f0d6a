//! The program `pmm` as a child, and what its control socket says.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::guard::Guard;
use crate::process::{self, Running};

/// Seconds in which a PMM is up, or answers: what it needs on a busy machine, many times over.
const ANSWER: u64 = 60;

/// A running PMM.
#[derive(Debug)]
pub struct Pmm {
    running: Running,
    control: PathBuf,
}

impl Pmm {
    /// Starts `program run` with these options. When it returns, everything that the PMM opens is open: its consoles
    /// and its control socket take connections.
    pub fn start(program: &Path, control: &Path, options: &[String], log: &Path) -> Result<Pmm> {
        let mut command = process::command(program)?;
        command.arg("run").arg("--control").arg(control).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut running = Running::spawn("pmm", &mut command)?;
        let said = running.child().stderr.take().context("the child's stderr is a pipe")?;
        let mut log = File::options().create(true).append(true).open(log)?;
        let (ready, opened) = mpsc::channel();
        // Read to its end, so that the PMM never waits for room.
        std::thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                let _ = writeln!(log, "{line}");
                let _ = ready.send(line);
            }
        });
        let guard = Guard::new(ANSWER, "the pmm to open everything");
        let mut all = String::new();
        loop {
            match opened.recv_timeout(guard.left()?) {
                Ok(line) if line.contains("control socket") => {
                    return Ok(Pmm { running, control: control.into() });
                }
                Ok(line) => all = all + &line + "\n",
                Err(mpsc::RecvTimeoutError::Timeout) => _ = guard.left()?,
                Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the pmm ended at once: {}", all.trim()),
            }
        }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.running.id()
    }

    /// Fails if it has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        self.running.check()
    }

    /// Its snapshot now.
    pub fn status(&self) -> Result<Value> {
        self.ask("status", "an answer of the pmm", |_| true)
    }

    /// Its snapshot as soon as it is as wanted.
    pub fn wait_for(&self, what: &str, wanted: impl FnMut(&Value) -> bool) -> Result<Value> {
        self.ask("follow", what, wanted)
    }

    /// What the host end of the first device of this name says of itself, as soon as it is as wanted.
    pub fn host_end(&self, name: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let host = |status: &Value| {
            let devices = status["links"][0]["devices"].as_array();
            let mut named = devices.into_iter().flatten().filter(|device| device["name"] == name);
            named.next().and_then(|device| device["host"].as_str()).unwrap_or_default().to_string()
        };
        let what = format!("the host end of {name} to be another");
        Ok(host(&self.wait_for(&what, |status| wanted(&host(status)))?))
    }

    fn ask(&self, question: &str, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.control).context("the pmm's control socket")?;
        stream.write_all(format!("{question}\n").as_bytes())?;
        let guard = Guard::new(ANSWER, what);
        let mut lines = BufReader::new(stream.try_clone()?);
        let mut last = Value::Null;
        loop {
            stream.set_read_timeout(Some(guard.left().with_context(|| format!("it said {last}"))?))?;
            let mut line = String::new();
            match lines.read_line(&mut line) {
                Ok(0) => bail!("the pmm ended while the test waited for {what}"),
                Ok(_) => last = serde_json::from_str(&line).context("the pmm's answer is no JSON")?,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).context("the pmm's control socket"),
            }
            if wanted(&last) {
                return Ok(last);
            }
        }
    }

    /// Kills it (SIGKILL), and does not wait for its end.
    pub fn strike(&mut self) {
        self.running.strike();
    }

    /// Ends it (SIGTERM), with all that it has to log written.
    pub fn end(mut self) -> Result<()> {
        kill_process(Pid::from_child(self.running.child()), Signal::TERM)?;
        self.running.end(&Guard::new(ANSWER, "the end of pmm after SIGTERM"))?;
        Ok(())
    }

    /// Kills it (SIGKILL).
    pub fn kill(self) -> Result<()> {
        self.running.kill()
    }
}

/// How often those threads of a process whose names begin so have gone to sleep so far.
pub fn sleeps(process: u32, name: &str) -> Result<u64> {
    let mut sum = None;
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        if !status.strip_prefix("Name:").is_some_and(|rest| rest.trim_start().starts_with(name)) {
            continue;
        }
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let count = line.context("the kernel counts no switches")?.trim().parse::<u64>()?;
        *sum.get_or_insert(0) += count;
    }
    sum.with_context(|| format!("process {process} has no thread named '{name}...'"))
}

/// Processor time that a process has used, all threads together, in hundredths of a second.
pub fn busy(id: u32) -> Result<u64> {
    let path = format!("/proc/{id}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
    // Behind the name, which may hold anything: the state, ten more, then user and system time.
    let (_, rest) = stat.rsplit_once(')').context("a line without a name")?;
    let times = rest.split_whitespace().skip(11).take(2).map(|time| time.parse::<u64>());
    times.sum::<Result<u64, _>>().with_context(|| format!("{path} is not understood"))
}

/// The memory of a process that is in use, in KiB.
pub fn resident(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
