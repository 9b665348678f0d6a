//! The demo as a newcomer runs it: what is typed at a guest's shell, and what it must answer.

use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    time::{Duration, Instant},
};

use super::Context;
use crate::{
    demo::{self, Firmware, Guest},
    paths,
    setup::Tools,
};

/// Guards against waiting for ever; each line takes milliseconds.
const LIMIT: Duration = Duration::from_secs(60);
/// A script at a guest that is built, from the look whether it is to its end: a second or two, and ten are the goal.
const WARM: Duration = Duration::from_secs(60);

/// What the emulated Cortex-R5 says of itself: Arm, Cortex-R5, r1p3.
const MIDR: u32 = 0x411f_c153;
/// What it is told to say in the second run: r1p4.
const OTHER_MIDR: u32 = 0x411f_c154;

/// Firmware on the emulated Cortex-R5.
pub fn r5(context: &Context) -> Result<()> {
    let script = format!("{}\n{MORE}", first()?);
    let guest = Guest::Emulated(Firmware::R5Shell);
    let played = twice_on_the_board(guest, context, &script, "rand 32", 32)?;
    ensure!(
        played.transcript.contains("non-cacheable\n"),
        "the region's attribute is missing: {}",
        played.transcript
    );
    check(&played, "r5")
}

/// The same devices as tasks of an executor.
pub fn r5_async(context: &Context) -> Result<()> {
    let script = format!("{}\nflood 64K\nline 7\nreboot\necho again\npanic\nrand 100\n", first()?);
    let guest = Guest::Emulated(Firmware::R5Async);
    let played = twice_on_the_board(guest, context, &script, "rand 100", 100)?;
    let transcript = &played.transcript;
    for line in ["hello", "profile    extended", FLOODED, "got 7", "again"] {
        ensure!(transcript.lines().any(|said| said == line), "{line:?} is missing in {transcript}");
    }
    restarted_twice(&played)?;
    random(transcript, "rand 32", 32).map(drop)
}

/// The shell as a process of this machine; no emulator.
pub fn host(_: &Context) -> Result<()> {
    let [played, _] = twice(Guest::Host, [None; 2], &format!("{}\n{MORE}", first()?), "rand 32", 32)?;
    check(&played, "host")
}

/// Every command that a script can use, beyond those of `first.hvl`; at the end a restart, and again.
const MORE: &str = "help\nlink\nflood 64K\ncount 1 1000\nline 7\nreboot\necho again\npanic\necho and again\n";

/// What `flood 64K` ends with.
const FLOODED: &str = "flood: 65536 bytes, CRC-32 fb60082b";

/// The script that is shipped.
fn first() -> Result<String> {
    let path = paths::guests().join("scripts/first.hvl");
    fs::read_to_string(&path).with_context(|| format!("{} is gone", path.display()))
}

fn check(played: &demo::Played, name: &str) -> Result<()> {
    let transcript = &played.transcript;
    let lines: Vec<_> = transcript.lines().collect();
    let said = |line: &str| lines.contains(&line);
    for line in ["hello", "profile    extended", FLOODED, "n 1000", "got 7", "again", "and again"] {
        ensure!(said(line), "{line:?} is missing in {transcript}");
    }
    let greetings = lines.iter().filter(|line| line.contains(&format!("shell on {name}: "))).count();
    ensure!(greetings == 3, "two restarts make three greetings, not {greetings}: {transcript}");
    restarted_twice(played)
}

/// A greeting is only words: the PMM has met three starts of the guest.
fn restarted_twice(played: &demo::Played) -> Result<()> {
    let adoptions = &played.status["links"][0]["adoptions"];
    ensure!(adoptions == 3, "two restarts make three sessions, and the pmm counts {adoptions}");
    Ok(())
}

/// The same on the emulated Cortex-R5, which calls itself something else the second time: who prints that has asked it.
/// Returns what one of the two left.
fn twice_on_the_board(
    guest: Guest,
    context: &Context,
    script: &str,
    command: &str,
    count: usize,
) -> Result<demo::Played> {
    let tools = context.tools()?;
    let other = Tools { emulator: tools.emulator.clone().with_midr(OTHER_MIDR), ..tools.clone() };
    let played = twice(guest, [Some(tools), Some(&other)], script, command, count)?;
    for (played, midr) in played.iter().zip([MIDR, OTHER_MIDR]) {
        let wanted = format!("Cortex-R5, MIDR {midr:#010x}\n");
        ensure!(played.transcript.contains(&wanted), "{wanted:?} is missing in {}", played.transcript);
    }
    let [one, _] = played;
    Ok(one)
}

/// Plays a script twice. The bytes that the last `command` of it printed, so many of them, came through the link each
/// time, and were others. Returns what both left.
fn twice(
    guest: Guest,
    tools: [Option<&Tools>; 2],
    script: &str,
    command: &str,
    count: usize,
) -> Result<[demo::Played; 2]> {
    let play = |tools| demo::played(guest, tools, script, LIMIT);
    let one = play(tools[0])?;
    // By now everything is built.
    let start = Instant::now();
    let other = play(tools[1])?;
    let warm = start.elapsed();
    eprintln!("warm: {:.1} s", warm.as_secs_f32());
    ensure!(
        warm < WARM,
        "everything was built, and the script took {:.0} s; {} s are the most",
        warm.as_secs_f32(),
        WARM.as_secs()
    );
    let (first, second) = (drawn(&one, command, count)?, drawn(&other, command, count)?);
    let same = first.iter().zip(&second).find(|(first, second)| first == second);
    ensure!(same.is_none(), "two runs drew the same bytes: {same:02x?}");
    Ok([one, other])
}

/// The lines of bytes that `command` printed: 32 each, but for the last. What the PMM served is not less, and they
/// stand in the memory that both share as the PMM has written them.
fn drawn(played: &demo::Played, command: &str, count: usize) -> Result<Vec<Vec<u8>>> {
    let lines = random(&played.transcript, command, count)?;
    let devices = played.status["links"][0]["devices"].as_array().map_or(&[][..], Vec::as_slice);
    let queue = devices.iter().find(|device| device["name"] == "rng").map(|device| &device["queues"][0]);
    let served = queue.and_then(|queue| queue["bytes"].as_u64()).unwrap_or(0);
    eprintln!("{command}: the pmm's rng served {served} bytes");
    ensure!(
        served >= count as u64,
        "{count} bytes were printed and the pmm served {served}: {}",
        played.status
    );
    for line in &lines {
        ensure!(
            played.memory.windows(line.len()).any(|bytes| bytes == line),
            "{line:02x?} was printed and never stood in the shared memory"
        );
    }
    Ok(lines)
}

/// The bytes that the last `command` printed in hex.
fn random(transcript: &str, command: &str, count: usize) -> Result<Vec<Vec<u8>>> {
    let said: Vec<_> = transcript.lines().collect();
    let at = said.iter().rposition(|line| line.ends_with(&format!("> {command}")));
    let said = at.and_then(|at| said.get(at.saturating_add(1)..)).unwrap_or(&[]);
    let lines: Vec<Vec<u8>> = said.iter().map_while(|line| hex(line)).collect();
    let lengths: Vec<_> = lines.iter().map(Vec::len).collect();
    let (rest, full) = (count % 32, count / 32);
    let expected: Vec<_> = (0..full).map(|_| 32).chain((rest != 0).then_some(rest)).collect();
    ensure!(
        lengths == expected,
        "{command} printed lines of {lengths:?} bytes, not {expected:?}: {transcript}"
    );
    Ok(lines)
}

/// The bytes of a line that is nothing but pairs of hexadecimal digits.
fn hex(line: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = line.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() && !pairs.is_empty() { pairs.iter().map(byte).collect() } else { None }
}
