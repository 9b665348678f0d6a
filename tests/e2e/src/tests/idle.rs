//! With nothing to do, the PMM wakes once a second at the most, and the board not at all.
//!
//! The window is measured at the console: for so long no byte may come. The PMM's wake-ups are counted twice, by its
//! own event loop and by the kernel; the board's by its shell, which is asked before and after and wakes for that.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::Tools;
use crate::guest::Kind;
use crate::pmm::{busy, resident, sleeps};
use crate::rig::{Bell, Rig};
use crate::terminal::wait;

/// Seconds of silence.
const WINDOW: u64 = 10;
/// Questions to the board from which it is learnt how often one wakes it.
const QUESTIONS: usize = 8;

pub fn run(tools: &Tools, kind: Kind) -> Result<()> {
    let mut rig = Rig::new(tools, "idle", kind, Bell::Direct)?;
    rig.start()?;
    rig.command("rand 32")?;
    // How often a question and its answer wake the board, at the most.
    let mut cost = 0;
    let mut before = wake_ups(&mut rig)?;
    for _ in 0..QUESTIONS {
        let now = wake_ups(&mut rig)?;
        if let (Some(before), Some(now)) = (before, now) {
            cost = cost.max(now - before);
        }
        before = now;
    }
    // What the last answer leaves to do, such as a ring that is repeated, is over when a second was silent.
    silence(1)?;
    let pmm = rig.pmm()?;
    let (id, loops) = (pmm.id(), || -> Result<u64> {
        pmm.status()?["links"][0]["wakeups"].as_u64().context("the pmm counts no wake-ups")
    });
    let loops_before = loops()?;
    // The threads that answered are asleep again after another second.
    silence(1)?;
    let (slept_before, busy_before) = (sleeps(id)?, busy(id)?);
    silence(WINDOW)?;
    let slept = sleeps(id)? - slept_before;
    let used = busy(id)? - busy_before;
    let looped = loops()? - loops_before;
    println!(
        "pmm: {slept} sleeps of its threads and {looped} rounds of its loop in {} s, {}0 ms of processor time, {} KiB \
         resident",
        WINDOW + 1,
        used,
        resident(id)?
    );
    // Who never sleeps has few sleeps too.
    ensure!(used <= WINDOW, "the pmm used {used}0 ms of processor time in {WINDOW} s with nothing to do");
    // One more may fall into the window; the loop was asked after a second more, and is woken by the question.
    ensure!(slept <= WINDOW + 1, "the pmm's threads went to sleep {slept} times in {WINDOW} s");
    ensure!(looped <= WINDOW + 3, "the pmm's loop went round {looped} times in {WINDOW} s");
    if let (Some(before), Some(now)) = (before, wake_ups(&mut rig)?) {
        let woke = now - before;
        println!("guest: {woke} wake-ups in {} s and for a question, which takes up to {cost}", WINDOW + 1);
        ensure!(
            woke <= cost + 2,
            "the board woke {woke} times in {WINDOW} s, and a question takes {cost} of them"
        );
    }
    rig.check()
}

/// The board's own count, where it has one.
fn wake_ups(rig: &mut Rig) -> Result<Option<u64>> {
    let said = rig.command("link")?;
    let count = said.lines().find_map(|line| line.strip_prefix("wake_ups"));
    count.map(|count| count.trim().parse().context("wake_ups is no number")).transpose()
}

/// A time in which the test does nothing: a read that nobody answers.
fn silence(seconds: u64) -> Result<()> {
    let (ours, _theirs) = UnixStream::pair()?;
    let end = Instant::now() + Duration::from_secs(seconds);
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        wait(&[ours.as_fd()], None, left)?;
    }
    Ok(())
}
