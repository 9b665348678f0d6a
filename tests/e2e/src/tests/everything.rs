//! All five devices in one start of guest and pmm, by a script that is typed at the guest, with stock programs at this
//! machine's end, and without a single right: see `tests/guests/scripts/everything.hvl`.

use std::collections::HashSet;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};

use super::net::is_where_passt_runs;
use super::sockets::{Caller, exchange, listens, socat, with_socat};
use crate::dice::Dice;
use crate::guard::Guard;
use crate::guest::Kind;
use crate::process::{self, Running};
use crate::rig::{Bell, Rig, UP};
use crate::{Tools, summed};

const SCRIPT: &str = include_str!("../../../guests/scripts/everything.hvl");
const WEB: &str = "http://127.0.0.1:18080";
/// Bytes of the large file.
const FILLED: usize = 16 << 20;
/// Files in the large directory.
const ENTRIES: u64 = 10_000;

pub fn run(tools: &Tools, name: &str, kind: Kind) -> Result<()> {
    if !is_where_passt_runs(tools, name)? {
        return Ok(());
    }
    let mut rig = Rig::new(tools, "rig", kind, Bell::Direct)?;
    rig.extend(["--network", "mode=user,forward=18080:80"]);
    let page = Dice::new(tools.seed).bytes(tools.scaled(4 << 20) as usize);
    fs::create_dir(rig.shared().join("web"))?;
    fs::write(rig.shared().join("web/page"), &page)?;
    let entries = tools.scaled(ENTRIES);
    fs::create_dir(rig.shared().join("many"))?;
    for number in 0..entries {
        let path = rig.shared().join(format!("many/entry-{number:05}"));
        fs::write(path, vec![b'.'; (number % 10) as usize])?;
    }
    rig.start()?;
    for line in SCRIPT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let start = Instant::now();
        let (said, bytes) = step(&mut rig, line, &page, entries).with_context(|| format!("'{line}'"))?;
        let seconds = start.elapsed().as_secs_f64();
        let rate = bytes as f64 / seconds / f64::from(1 << 20);
        let rate = if bytes == 0 { String::new() } else { format!(" ({rate:.1} MiB/s)") };
        println!("{line:16} {seconds:5.2} s{rate}: {}", said.trim_end().replace('\n', "; "));
    }
    let adoptions = &rig.pmm()?.status()?["links"][0]["adoptions"];
    ensure!(adoptions == 1, "it was to be one start of the guest, and the pmm counts {adoptions}");
    let start = Instant::now();
    rustix::process::kill_process(passt(&rig, 1)?, Signal::KILL)?;
    let second = passt(&rig, 2)?;
    page_again(&rig, &page)?;
    println!("passt was killed: the page came again after {:.2} s", start.elapsed().as_secs_f64());
    // It ends with the pmm. Whoever calls before the guest has found the next one waits for long.
    rig.kill_pmm()?;
    let start = Instant::now();
    let guard = Guard::new(UP, "passt to end with its pmm");
    let life = format!("/proc/{}/cmdline", second.as_raw_nonzero());
    while fs::read_to_string(&life).is_ok_and(|line| line.contains("passt")) {
        guard.left()?;
        std::thread::yield_now();
    }
    rig.start_pmm()?;
    rig.pmm()?.wait_for("all five devices to run again", |status| {
        let devices = status["links"][0]["devices"].as_array();
        devices.is_some_and(|all| all.len() == 5 && all.iter().all(|device| device["state"] == "running"))
    })?;
    page_again(&rig, &page)?;
    println!("the pmm was killed: the page came again after {:.2} s", start.elapsed().as_secs_f64());
    rig.check()
}

/// The process that is the guest's network, when it is the so-manyth of its pmm.
fn passt(rig: &Rig<'_>, start: u32) -> Result<Pid> {
    let number = format!("start {start}");
    let end = rig.pmm()?.host_end("net", |end| end.starts_with("passt ") && end.contains(&number))?;
    let id = end.split([' ', ',']).nth(1).and_then(|id| id.parse().ok());
    id.and_then(Pid::from_raw).with_context(|| format!("'{end}' has no process id"))
}

/// Fetches the page until it comes.
fn page_again(rig: &Rig<'_>, page: &[u8]) -> Result<()> {
    let guard = Guard::new(UP, "the page to come again");
    while !curl(rig.dir(), "page").is_ok_and(|again| again == page) {
        guard.left()?;
    }
    Ok(())
}

/// Types a line and plays this machine's part of it. What the guest said, and how many bytes went one way at least.
fn step(rig: &mut Rig<'_>, line: &str, page: &[u8], entries: u64) -> Result<(String, usize)> {
    let words: Vec<_> = line.split(' ').collect();
    let caller = match words[..] {
        ["fill", path, _] => {
            let said = rig.command(line)?;
            let bytes = fs::read(rig.shared().join(path))?;
            ensure!(said.ends_with(&format!(" {}\n", summed(&bytes))), "{said:?} is not {}", summed(&bytes));
            ensure!(bytes.len() == FILLED, "{} bytes are in the file", bytes.len());
            // So that none can stand for another.
            let blocks: HashSet<_> = bytes.chunks(4096).collect();
            ensure!(blocks.len() == FILLED / 4096, "only {} blocks differ", blocks.len());
            return Ok((said, bytes.len()));
        }
        ["sum", path] => {
            let said = rig.command(line)?;
            let path = rig.shared().join(path);
            let mut bytes = fs::read(&path)?;
            ensure!(said.ends_with(&format!(" {}\n", summed(&bytes))), "{said:?} is not {}", summed(&bytes));
            // It is what lies there now, and not what was written once.
            let last = bytes.last_mut().context("an empty file")?;
            *last = !*last;
            fs::write(&path, &bytes)?;
            let again = rig.command(line)?;
            ensure!(
                again.ends_with(&format!(" {}\n", summed(&bytes))),
                "{again:?} is not {}",
                summed(&bytes)
            );
            return Ok((said, 2 * bytes.len()));
        }
        ["ls", "-l", ..] => {
            let said = rig.command(line)?;
            listed(&said, entries)?;
            return Ok((said.lines().next_back().unwrap_or("").into(), 0));
        }
        ["ip"] => {
            let guard = Guard::new(UP, "an address by DHCP");
            let mut said = rig.command(line)?;
            while !said.contains("by DHCP") {
                guard.left()?;
                said = rig.command(line)?;
            }
            ensure!(said.contains("10.99.0.2"), "passt offers another address: {said}");
            return Ok((said.lines().nth(1).unwrap_or("").into(), 0));
        }
        ["httpd", _] => {
            rig.command(line)?;
            let fetched = curl(rig.dir(), "page")?;
            ensure!(fetched == page, "{} bytes came of {}, or others", fetched.len(), page.len());
            let listed = curl(rig.dir(), "")?;
            ensure!(listed == b"page\n", "the directory reads {:?}", String::from_utf8_lossy(&listed));
            return Ok((format!("curl got {}", summed(&fetched)), fetched.len()));
        }
        ["vsock", "listen", _] => Caller::Host,
        ["vsock", "connect", _] => Caller::Guest,
        ["bench", "9p", ..] => {
            let said = rig.command(line)?;
            for part in ["written: 1048576 bytes in", "read:    1048576 bytes in", "request:"] {
                ensure!(said.lines().any(|line| line.starts_with(part)), "{part:?} is missing: {said}");
            }
            ensure!(!rig.shared().join("bench.tmp").exists(), "its file is left");
            return Ok((said, 0));
        }
        ["bench", "vsock", port, _] => {
            let path = rig.sockets().with_file_name(format!("vsock_{port}"));
            let listen = format!("UNIX-LISTEN:{},fork", path.display());
            let said = measured(rig, line, [&listen, "EXEC:cat"], || listens(&path))?;
            let whole = said.contains("64 bytes: ") && said.contains("there and back: 1048576 bytes in");
            ensure!(whole || said.is_empty(), "{said}");
            return Ok((said, 0));
        }
        ["bench", "net", _, port, _] => {
            let listen = format!("TCP-LISTEN:{port},bind=127.0.0.1,fork");
            let there = format!("127.0.0.1:{port}");
            let connects = || Ok(TcpStream::connect(&there).is_ok());
            let said = measured(rig, line, [&listen, "EXEC:wc -c"], connects)?;
            ensure!(said.starts_with("sent: 1048576 bytes in") || said.is_empty(), "{said}");
            return Ok((said, 0));
        }
        _ => return Ok((rig.command(line)?, 0)),
    };
    ensure!(line == caller.command(), "another port");
    let said = match socat() {
        Some(socat) => with_socat(rig, &socat, caller, page)?,
        None => {
            println!("SKIPPED: socat: there is none; 'cargo xtask setup' gets it");
            exchange(rig, caller, page)?
        }
    };
    Ok((said, page.len()))
}

/// Measures against socat once it listens. Nothing is said where there is none.
fn measured(
    rig: &mut Rig<'_>,
    line: &str,
    addresses: [&str; 2],
    mut listens: impl FnMut() -> Result<bool>,
) -> Result<String> {
    let Some(socat) = socat() else {
        println!("SKIPPED: '{line}': there is no socat; 'cargo xtask setup' gets it");
        return Ok(String::new());
    };
    let mut far_end = Running::spawn("socat", process::command(socat)?.args(addresses))?;
    let guard = Guard::new(UP, format!("socat to listen at {}", addresses[0]));
    while !listens()? {
        far_end.check()?;
        guard.left()?;
        std::thread::yield_now();
    }
    rig.command(line)
}

/// Every name, once, with what it is.
fn listed(said: &str, entries: u64) -> Result<()> {
    let mut lines: Vec<_> = said.lines().collect();
    ensure!(lines.pop() == Some(&*format!("{entries} entries")), "the count is another: {:?}", lines.last());
    let number = |line: &&str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [mode, size, name] = words[..] else { bail!("{line:?} is no entry") };
        let number: u64 = name.trim_start_matches("entry-").parse().unwrap_or(u64::MAX);
        let right = mode == "-rw-r--r--" && size == (number % 10).to_string();
        ensure!(right, "{line:?} is no entry of the directory");
        Ok(number)
    };
    let mut numbers: Vec<_> = lines.iter().map(number).collect::<Result<_>>()?;
    numbers.sort_unstable();
    ensure!(numbers.iter().copied().eq(0..entries), "{} entries were listed of {entries}", numbers.len());
    Ok(())
}

fn curl(dir: &Path, path: &str) -> Result<Vec<u8>> {
    let body = dir.join("body");
    let _ = fs::remove_file(&body);
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "60", "--noproxy", "*", "--output"]);
    let status = curl.arg(&body).arg(format!("{WEB}/{path}")).status().context("curl")?;
    ensure!(status.success(), "curl of '{path}' failed ({status})");
    Ok(fs::read(&body)?)
}
