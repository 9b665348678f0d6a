//! With nothing to do, the PMM wakes once a second at the most, and the board not at all; and nobody takes the other
//! for dead, however long that lasts.
//!
//! The window is a time in which the test does nothing. It is longer than the ten seconds after which a PMM gives up a
//! guest that does not act: that it lasted so long, the PMM's own looks say, of which there is one a second. The PMM's
//! wake-ups are counted twice, by its own event loop and by the kernel; and so are the guest's: a process's threads, or
//! those that are the board's processors, and its shell, which is asked before and after and wakes for that. And both,
//! the PMM and what runs the guest, use nearly no processor time: who never sleeps has few wake-ups, too.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Tools;
use crate::guest::Kind;
use crate::pmm::{busy, resident, sleeps};
use crate::rig::{Bell, Rig};
use crate::terminal::wait;

/// Seconds in which nothing happens.
const WINDOW: u64 = 13;
/// Looks of the PMM, a second apart, of which the last is more than ten seconds after the first.
const LOOKS: u64 = 12;
/// Processor time that the PMM, or a guest that is a process, may use in the window, in hundredths of a second.
const BUSY: u64 = WINDOW;
/// The same for an emulator, which has timers of its own. One whose processor does not sleep uses a hundred a second.
const EMULATOR_BUSY: u64 = 10 * WINDOW;
/// The threads of an emulator that are processors.
const PROCESSORS: &str = "CPU ";
/// How often a guest may go to sleep in the window, by the kernel's count.
const SLEEPS: u64 = 1;
/// How often a question may wake the guest; one or two are usual. Three questions take fewer than one a second would add.
const QUESTION: u64 = 4;
const _: () = assert!(3 * QUESTION < WINDOW);

pub fn run(tools: &Tools, kind: Kind) -> Result<()> {
    let mut rig = Rig::new(tools, "idle", kind, Bell::Direct)?;
    rig.start()?;
    rig.command("rand 32")?;
    let before = counter(&mut rig, "wake_ups")?;
    // What the last answer leaves to do, such as a ring that is repeated, is over when a second was silent.
    silence(1)?;
    let (pmm, guest) = (rig.pmm()?.id(), rig.guest.id()?);
    let link_before = link(&rig)?;
    // The threads that answered are asleep again after another second.
    silence(1)?;
    // An emulator's other threads sleep hundreds of times a second, whatever its processors do.
    let threads = if kind == Kind::Host { "" } else { PROCESSORS };
    let counts =
        || -> Result<[u64; 4]> { Ok([sleeps(pmm, "")?, sleeps(guest, threads)?, busy(pmm)?, busy(guest)?]) };
    let start = counts()?;
    silence(WINDOW)?;
    let end = counts()?;
    let [slept, guest_slept, pmm_busy, guest_busy] = std::array::from_fn(|which| end[which] - start[which]);
    let link = link(&rig)?;
    let more = |name: &str| -> Result<u64> {
        let count = |link: &Value| link[name].as_u64().with_context(|| format!("the pmm counts no {name}"));
        Ok(count(&link)? - count(&link_before)?)
    };
    let (looped, looks) = (more("wakeups")?, more("services")?);
    println!(
        "pmm: {slept} sleeps of its threads in {WINDOW} s, {looped} rounds of its loop and {looks} looks in {} s, \
         {pmm_busy}0 ms of processor time, {} KiB resident",
        WINDOW + 1,
        resident(pmm)?
    );
    println!(
        "guest: {guest_slept} sleeps of its threads or processors and {guest_busy}0 ms of processor time in {WINDOW} s"
    );
    ensure!(
        pmm_busy <= BUSY,
        "the pmm used {pmm_busy}0 ms of processor time in {WINDOW} s with nothing to do"
    );
    let allowed = if kind == Kind::Host { BUSY } else { EMULATOR_BUSY };
    ensure!(
        guest_busy <= allowed,
        "the guest used {guest_busy}0 ms of processor time in {WINDOW} s with nothing to do"
    );
    ensure!(
        guest_slept <= SLEEPS,
        "the guest went to sleep {guest_slept} times in {WINDOW} s with nothing to do"
    );
    // One more may fall into the window; the loop was asked after a second more, and is woken by the question.
    ensure!(slept <= WINDOW + 1, "the pmm's threads went to sleep {slept} times in {WINDOW} s");
    ensure!(looped <= WINDOW + 3, "the pmm's loop went round {looped} times in {WINDOW} s");
    ensure!(looks >= LOOKS, "the pmm looked {looks} times in {WINDOW} s: it gives nobody up in so few");
    // Silence is no death, on neither side.
    for name in ["presumed_gone", "adoptions", "wipes"] {
        ensure!(more(name)? == 0, "{name} went up: {} and then {}", link_before[name], link[name]);
    }
    ensure!(link["presumed_gone"] == 0 && link["adoptions"] == 1, "{link}");
    let (sessions, lost) = (counter(&mut rig, "sessions")?, counter(&mut rig, "lost")?);
    ensure!((sessions, lost) == (1, 0), "the guest counts {sessions} sessions, of which it lost {lost}");
    // Three questions: the last one is answered before it is counted.
    let woke = counter(&mut rig, "wake_ups")? - before;
    println!(
        "guest: {woke} wake-ups by its own count in {} s and for three questions, each of which may take {QUESTION}",
        WINDOW + 2
    );
    ensure!(woke <= 3 * QUESTION, "the guest woke {woke} times for three questions in {} s", WINDOW + 2);
    rig.check()
}

fn link(rig: &Rig) -> Result<Value> {
    Ok(rig.pmm()?.status()?["links"][0].take())
}

/// One of the frontend's own counts.
fn counter(rig: &mut Rig, name: &str) -> Result<u64> {
    let said = rig.command("link")?;
    let count = said.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    count.with_context(|| format!("the guest counts no {name}: {said}"))
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
