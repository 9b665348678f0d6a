//! The link the other way round: the firmware r5-device is the PMM, and host-shell its guest. It shows that the device
//! half runs where there is neither std nor heap, and that either side may start again.
//!
//! The firmware types three commands at each guest that greets and writes what it answers to its early log.

use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::Tools;
use crate::guard::Guard;
use crate::guest::{Guest, HostShell, R5};
use crate::rig::{UP, directory};
use crate::terminal::wait;

/// What the firmware's entropy device gives first: it counts.
const FIRST: std::ops::Range<u8> = 0..32;

/// The last command of the script, and its answer. An answer alone may be one that is sent again.
const ANSWERED: &str = "guest: host> echo hello\nguest: hello\n";

pub fn run(tools: &Tools) -> Result<()> {
    let dir = directory(tools, "device")?;
    let mut pmm = R5::new(tools, &dir, "r5-device")?;
    let mut guest = HostShell::of(tools, &dir, &pmm);
    pmm.start()?;
    guest.start()?;
    let log = answers(&pmm, 1)?;
    let up = ["profile    extended", "console    running, 80 by 24 characters", "entropy    running"];
    for line in up {
        ensure!(log.contains(&format!("guest: {line}")), "'{line}' is missing: {log}");
    }
    let bytes: String = FIRST.map(|byte| format!("{byte:02x}")).collect();
    ensure!(log.contains(&format!("guest: {bytes}")), "the board's entropy is not what was printed: {log}");
    println!("{}", log.trim_end());

    // Another start of the guest; then another one of the PMM, which the guest outlives.
    guest.kill()?;
    guest.start()?;
    answers(&pmm, 2)?;
    pmm.kill()?;
    pmm.start()?;
    let log = answers(&pmm, 1)?;
    ensure!(!log.contains("guest: shell on"), "the guest has started, too: {log}");
    ensure!(log.contains("MIDR 0x411fc1"), "this is no Cortex-R5: {log}");
    guest.check()?;
    pmm.check()
}

/// Waits until the board's log says that the last command of the script was answered so many times, and returns it.
fn answers(pmm: &R5, times: usize) -> Result<String> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, pmm.early_log(), WatchFlags::MODIFY).context("the board has no early log")?;
    let guard = Guard::new(UP, format!("{times} answers of the guest"));
    loop {
        let log = std::fs::read(pmm.early_log())?;
        let log = String::from_utf8_lossy(&log).replace('\r', "");
        if log.matches(ANSWERED).count() >= times {
            return Ok(log);
        }
        let left = guard.left().with_context(|| format!("the board's log says: {log}"))?;
        wait(&[watch.as_fd()], None, left)?;
        // What was changed does not matter, only that something was; an empty queue is no error either.
        let _ = rustix::io::read(&watch, &mut [0; 4096]);
    }
}
