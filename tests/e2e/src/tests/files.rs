//! Files across the link: what the guest does with them is done on this machine's disk, and a pmm that is killed while
//! mebibytes are written loses nothing that was acknowledged.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::guest::Kind;
use crate::rig::{Bell, Rig};
use crate::{Tools, summed};

/// Times that the pmm is killed while a file is written.
const DEATHS: u64 = 10;

pub fn run(tools: &Tools, kind: Kind, mebibytes: u64) -> Result<()> {
    let bytes = tools.scaled(mebibytes << 20);
    let mut rig = Rig::new(tools, "files", kind, Bell::Direct)?;
    rig.start()?;
    let shared = rig.shared();

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
    killed(&mut rig, &shared, bytes).context("a pmm that is killed")?;
    rig.check()
}

/// The pmm is killed while a file is written, again and again; the guest goes on by itself, and the file is whole.
fn killed(rig: &mut Rig, shared: &Path, bytes: u64) -> Result<()> {
    let path = shared.join("torn");
    rig.begin(&format!("fill torn {bytes}"))?;
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
    let wrote = rig.done()?;
    let torn = fs::read(&path)?;
    ensure!(torn.len() as u64 == bytes, "{} bytes of {bytes} are there", torn.len());
    let sum = summed(&torn);
    ensure!(wrote == format!("wrote {sum}\n"), "the guest wrote: {wrote:?}, and here are {sum}");
    let read = rig.command("sum torn")?;
    ensure!(read == format!("read {sum}\n"), "the guest reads {read:?}, and here are {sum}");
    println!(
        "{DEATHS} pmms killed while {bytes} bytes were written: the file is whole; it grew again after {longest:.3} s at worst"
    );
    Ok(())
}
