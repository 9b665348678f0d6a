//! The demo as a newcomer runs it: what is typed at a guest's shell, and what it must answer.

use anyhow::{Context as _, Result, ensure};
use std::{fs, time::Duration};

use super::Context;
use crate::{
    demo::{self, Firmware, Guest},
    paths,
};

/// Guards against waiting for ever; each line takes milliseconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Firmware on the emulated Cortex-R5.
pub fn r5(context: &Context) -> Result<()> {
    let guest = Guest::Emulated(Firmware::R5Shell);
    let script = format!("{}\n{MORE}", first()?);
    let play = || demo::transcript(guest, Some(context.tools()?), &script, LIMIT);
    let transcript = play()?;
    // The MIDR of a Cortex-R5, whatever its revision.
    ensure!(transcript.contains("MIDR 0x411fc1"), "this is no Cortex-R5: {transcript}");
    ensure!(transcript.contains("non-cacheable\n"), "the region's attribute is missing: {transcript}");
    check(&transcript, "r5")?;
    differ(&random(&transcript)?, &random(&play()?)?)
}

/// The same devices as tasks of an executor.
pub fn r5_async(context: &Context) -> Result<()> {
    let script = format!("{}\nflood 64K\nline 7\nreboot\necho again\npanic\nrand 100\n", first()?);
    let guest = Guest::Emulated(Firmware::R5Async);
    let transcript = demo::transcript(guest, Some(context.tools()?), &script, LIMIT)?;
    ensure!(transcript.contains("MIDR 0x411fc1"), "this is no Cortex-R5: {transcript}");
    for line in ["hello", "profile    extended", FLOODED, "got 7", "again"] {
        ensure!(transcript.lines().any(|said| said == line), "{line:?} is missing in {transcript}");
    }
    random(&transcript).map(drop)
}

/// The shell as a process of this machine; no emulator.
pub fn host(_: &Context) -> Result<()> {
    let script = format!("{}\n{MORE}", first()?);
    let play = || demo::transcript(Guest::Host, None, &script, LIMIT);
    let transcript = play()?;
    check(&transcript, "host")?;
    differ(&random(&transcript)?, &random(&play()?)?)
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

fn check(transcript: &str, name: &str) -> Result<()> {
    let lines: Vec<_> = transcript.lines().collect();
    let said = |line: &str| lines.contains(&line);
    for line in ["hello", "profile    extended", FLOODED, "n 1000", "got 7", "again", "and again"] {
        ensure!(said(line), "{line:?} is missing in {transcript}");
    }
    let greetings = lines.iter().filter(|line| line.contains(&format!("shell on {name}: "))).count();
    ensure!(greetings == 3, "two restarts make three greetings, not {greetings}: {transcript}");
    Ok(())
}

/// The line that `rand 32` printed.
fn random(transcript: &str) -> Result<String> {
    let line = transcript.lines().skip_while(|line| !line.ends_with("> rand 32")).nth(1).unwrap_or_default();
    ensure!(
        line.len() == 64 && line.bytes().all(|digit| digit.is_ascii_hexdigit()),
        "rand 32 printed {line:?}"
    );
    Ok(line.to_owned())
}

fn differ(one: &str, other: &str) -> Result<()> {
    ensure!(one != other, "two runs drew the same bytes: {one}");
    Ok(())
}
