//! A firmware that was built with a wrong number is silent: the PMM looks into memory and says which number, and with
//! what to compare it. Here the shell is a firmware that is right, and each PMM one whose options do not go with it.

use anyhow::{Result, ensure};
use std::path::Path;

use crate::Tools;
use crate::guest::{Guest, HostShell, Place};
use crate::pmm::Pmm;
use crate::rig::directory;

pub fn run(tools: &Tools) -> Result<()> {
    let dir = directory(tools, "diagnosis")?;
    let own = HostShell::new(tools, &dir)?.place();
    let (base, size) = (format!("{:#x}", own.base), format!("{:#x}", own.size));
    let (far, long) = (own.base + own.size, own.size * 2);
    let silent = "said hello and has set up no device";
    // What is wrong, the PMM's place, its other options, and what its sentence names.
    let long_queues = ["--rng-queue", "1024", "--console-queue", "1024"];
    let cases: [(&str, Place, &[&str], &[&str]); 4] = [
        ("base", Place { base: far, ..own.clone() }, &[], &[silent, &format!("at {far:#x}")]),
        ("size", Place { size: long, ..own.clone() }, &[], &[silent, &format!("{long:#x} bytes")]),
        (
            "offset",
            Place { offset: own.size, ..own.clone() },
            &[],
            &["no guest has written", &format!("at {:#x} of ", own.size), "--shmem-offset", &size, &base],
        ),
        ("queues", own.clone(), &long_queues, &[silent, "rng [1024]", "console [1024, 1024]"]),
    ];
    for (what, place, others, named) in cases {
        let dir = directory(tools, &format!("diagnosis-{what}"))?;
        let (said, status) = one(tools, &dir, place, others)?;
        println!("{what}: {said}");
        for part in named {
            ensure!(said.contains(part), "a wrong {what}: {part:?} is not in {said:?}");
        }
        ensure!(
            !said.contains("[0"),
            "a wrong {what}: queues that a guest could not compare with its own: {said:?}"
        );
        ensure!(status.contains(&said), "it is not in the log: {status}");
    }
    Ok(())
}

/// What a PMM at this place says of the shell, in its status and in its log.
fn one(tools: &Tools, dir: &Path, place: Place, others: &[&str]) -> Result<(String, String)> {
    let mut guest = HostShell::new(tools, dir)?;
    let place = Place { file: guest.place().file, ..place };
    // Long enough for either.
    std::fs::File::options().write(true).open(&place.file)?.set_len(place.offset + place.size)?;
    guest.start()?;
    let mut options = place.options();
    let bell = format!("unix-stream:{}", guest.doorbell().display());
    options.extend(["--rng", "--console", "pty", "--doorbell", &bell].map(String::from));
    options.extend(others.iter().map(ToString::to_string));
    let log = dir.join("pmm.log");
    let pmm = Pmm::start(&tools.pmm, &dir.join("control"), &options, &log)?;
    let diagnosis = |status: &serde_json::Value| status["links"][0]["diagnosis"].as_str().map(str::to_string);
    let status =
        pmm.wait_for("a diagnosis", |status| diagnosis(status).is_some_and(|said| !said.is_empty()))?;
    let said = diagnosis(&status).unwrap_or_default();
    // Another thread writes the log.
    pmm.end()?;
    guest.kill()?;
    Ok((said, std::fs::read_to_string(log)?))
}
