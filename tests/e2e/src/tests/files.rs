//! Files across the link: mebibytes written by the guest are what lies on this machine's disk, a directory of many
//! entries is listed whole, and a pmm that is killed in the middle loses nothing that was acknowledged.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use crc::{CRC_32_ISO_HDLC, Crc};

use crate::Tools;
use crate::guest::Kind;
use crate::rig::{Bell, Rig, UP};

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
/// Times that the pmm is killed while a file is written.
const DEATHS: u64 = 10;

pub fn run(tools: &Tools, kind: Kind, mebibytes: u64, entries: u64) -> Result<()> {
    let bytes = tools.scaled(mebibytes << 20);
    let entries = tools.scaled(entries);
    let mut rig = Rig::new(tools, "files", kind, Bell::Direct)?;
    rig.start()?;
    let shared = rig.shared();

    let start = Instant::now();
    let wrote = rig.command(&format!("fill big {bytes}"))?;
    let writing = start.elapsed();
    let start = Instant::now();
    let read = rig.command("sum big")?;
    let reading = start.elapsed();
    let sum = sum_of(&shared.join("big"), bytes)?;
    ensure!(wrote == format!("wrote {bytes} bytes, CRC-32 {sum:08x}\n"), "the guest wrote: {wrote:?}");
    ensure!(read == format!("read {bytes} bytes, CRC-32 {sum:08x}\n"), "the guest read: {read:?}");
    let rate = |seconds: f64| bytes as f64 / seconds / f64::from(1 << 20);
    println!(
        "{bytes} bytes, CRC-32 {sum:08x}: written at {:.1} MiB/s, read at {:.1} MiB/s",
        rate(writing.as_secs_f64()),
        rate(reading.as_secs_f64())
    );

    // What lies here is what is read there, and not only what was written from there.
    fs::write(shared.join("here"), b"from this machine\n")?;
    ensure!(rig.command("cat here")? == "from this machine\n", "the guest reads another file");
    rig.command("mkdir d")?;
    ensure!(shared.join("d").is_dir(), "the guest's directory is not on this machine");
    rig.command("write d/hello hello world")?;
    ensure!(fs::read(shared.join("d/hello"))? == b"hello world\n", "the guest's text is not in its file");
    rig.command("cp d/hello d/copy")?;
    ensure!(fs::read(shared.join("d/copy"))? == b"hello world\n", "the copy is another");
    ensure!(rig.command("stat d/copy")?.contains("12 bytes"), "stat tells another size");
    ensure!(rig.command("df")?.contains("KiB"), "df tells nothing");
    for gone in ["d/copy", "d/hello", "d"] {
        rig.command(&format!("rm {gone}"))?;
        ensure!(!shared.join(gone).exists(), "{gone} was removed and is there");
    }
    listing(&mut rig, &shared, entries).context("a large directory")?;
    killed(&mut rig, &shared, bytes).context("a pmm that is killed")?;
    rig.check()
}

fn sum_of(path: &Path, len: u64) -> Result<u32> {
    let bytes = fs::read(path).with_context(|| format!("{} is not there", path.display()))?;
    ensure!(bytes.len() as u64 == len, "{} has {} bytes of {len}", path.display(), bytes.len());
    Ok(CRC.checksum(&bytes))
}

/// Every name, once, with what it is.
fn listing(rig: &mut Rig, shared: &Path, entries: u64) -> Result<()> {
    let many = shared.join("many");
    fs::create_dir(&many)?;
    for number in 0..entries {
        fs::write(many.join(format!("entry-{number:05}")), vec![b'.'; (number % 10) as usize])?;
    }
    let start = Instant::now();
    let said = rig.command("ls -l many")?;
    let mut lines: Vec<_> = said.lines().collect();
    ensure!(lines.pop() == Some(&*format!("{entries} entries")), "the count is another: {:?}", lines.last());
    let mut names: Vec<_> = lines
        .iter()
        .map(|line| {
            let mut words = line.split_whitespace();
            let (mode, size, name) = (words.next(), words.next(), words.next().unwrap_or(""));
            let number: u64 = name.trim_start_matches("entry-").parse().unwrap_or(u64::MAX);
            let right = mode == Some("-rw-r--r--") && size == Some(&*(number % 10).to_string());
            ensure!(right, "{line:?} is no entry of the directory");
            Ok(number)
        })
        .collect::<Result<_>>()?;
    names.sort_unstable();
    ensure!(names.iter().copied().eq(0..entries), "{} entries were listed of {entries}", names.len());
    println!("ls -l of {entries} entries: {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// The pmm is killed while a file is written, again and again; the guest goes on by itself, and the file is whole.
fn killed(rig: &mut Rig, shared: &Path, bytes: u64) -> Result<()> {
    let path = shared.join("torn");
    rig.terminal.send(format!("fill torn {bytes}\r").as_bytes());
    let mut longest = 0.0f64;
    for death in 1..=DEATHS {
        // A tenth further each time, and never at its end.
        let far = bytes * death / (DEATHS + 2);
        rig.pmm()?
            .wait_for("the file to grow", |_| fs::metadata(&path).is_ok_and(|meta| meta.len() >= far))?;
        let before = fs::metadata(&path)?.len();
        rig.kill_pmm()?;
        let start = Instant::now();
        rig.start_pmm()?;
        rig.pmm()?.wait_for("the file to grow again", |_| {
            fs::metadata(&path).is_ok_and(|meta| meta.len() > before || meta.len() == bytes)
        })?;
        longest = longest.max(start.elapsed().as_secs_f64());
    }
    rig.terminal.expect("CRC-32 ", UP)?;
    let said = rig.terminal.expect("\n", UP)?;
    rig.terminal.expect(&format!("{}> ", rig.guest.name()), UP)?;
    let sum = format!("{:08x}", sum_of(&path, bytes)?);
    ensure!(
        said.starts_with(sum.as_bytes()),
        "the guest wrote {:?} and the file has {sum}",
        String::from_utf8_lossy(&said)
    );
    println!(
        "{DEATHS} pmms killed while {bytes} bytes were written: the file is whole; it grew again after {longest:.3} s at worst"
    );
    Ok(())
}
