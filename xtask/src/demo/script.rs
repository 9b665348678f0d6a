//! A script at the guest's console: types a line, waits for the prompt, looks whether it says "failed".

use anyhow::{Context, Result, bail};
use std::{
    io::{Read, Write},
    process::Child,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// Lines to be typed.
#[derive(Debug, PartialEq, Eq)]
pub struct Script {
    name: String,
    lines: Vec<Line>,
}

#[derive(Debug, PartialEq, Eq)]
struct Line {
    number: usize,
    text: String,
}

impl Script {
    /// Reads a script: a command a line, empty lines and those that begin with # left out.
    pub fn parse(name: String, text: &str) -> Result<Script> {
        let lines =
            text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty() && !line.starts_with('#'));
        let lines: Vec<_> =
            lines.map(|(line, number)| Line { number, text: line.trim().to_owned() }).collect();
        if let Some(line) = lines.iter().find(|line| line.text.chars().any(char::is_control)) {
            bail!("{name}, line {}: a control character cannot be typed from a script", line.number);
        }
        Ok(Script { name, lines })
    }
}

/// What the guest has printed, as it comes.
struct Console<'a> {
    /// The two prompts: the last command succeeded, it failed.
    prompts: [String; 2],
    output: Receiver<Vec<u8>>,
    /// Since the last line was typed.
    seen: Vec<u8>,
    transcript: &'a mut dyn Write,
}

impl Console<'_> {
    /// Waits for a prompt. `true`: the command before it has succeeded.
    fn prompt(&mut self, limit: Duration) -> Result<bool> {
        let until = Instant::now() + limit;
        self.seen.clear();
        loop {
            match self.output.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => {
                    self.transcript.write_all(&bytes).context("the transcript cannot be written")?;
                    self.transcript.flush().context("the transcript cannot be written")?;
                    self.seen.extend_from_slice(&bytes);
                }
                Err(RecvTimeoutError::Timeout) => bail!("no prompt came within {} s", limit.as_secs()),
                Err(RecvTimeoutError::Disconnected) => bail!("pmm ended"),
            }
            let at_start_of_line = |prompt: &String| {
                let before = self.seen.strip_suffix(prompt.as_bytes());
                before.is_some_and(|before| before.is_empty() || before.ends_with(b"\n"))
            };
            if let Some(which) = self.prompts.iter().position(at_start_of_line) {
                return Ok(which == 0);
            }
        }
    }
}

/// Plays `script` at the guest called `name`, whose console is `pmm`'s standard input and output.
///
/// # Errors
///
/// Names the first line that got no prompt in time, or every line whose command failed.
pub fn play(
    script: &Script,
    name: &str,
    pmm: &mut Child,
    limit: Duration,
    transcript: &mut dyn Write,
) -> Result<()> {
    let mut keys = pmm.stdin.take().context("the PMM's standard input is no pipe")?;
    let mut stdout = pmm.stdout.take().context("the PMM's standard output is no pipe")?;
    let (sender, output) = mpsc::channel();
    // Ends with the PMM, or with whoever listens.
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut bytes) {
            if sender.send(bytes.get(..count).unwrap_or(&[]).to_vec()).is_err() {
                break;
            }
        }
    });
    let prompts = [format!("{name}> "), format!("{name} (failed)> ")];
    let mut console = Console { prompts, output, seen: Vec::new(), transcript };
    let result = type_lines(script, &mut console, &mut keys, limit);
    // The last prompt's line is open.
    let _ = console.transcript.write_all(b"\n");
    result
}

fn type_lines(
    script: &Script,
    console: &mut Console<'_>,
    keys: &mut impl Write,
    limit: Duration,
) -> Result<()> {
    let mut failed = Vec::new();
    console.prompt(limit).with_context(|| format!("{}: the guest does not greet", script.name))?;
    for Line { number, text } in &script.lines {
        let place = || format!("{}, line {number} ('{text}')", script.name);
        keys.write_all(format!("{text}\n").as_bytes())
            .with_context(|| format!("{}: cannot be typed", place()))?;
        if !console.prompt(limit).with_context(place)? {
            failed.push(place());
        }
    }
    match failed.as_slice() {
        [] => Ok(()),
        failed => bail!("failed: {}", failed.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// Plays at a shell script that stands in for PMM and guest.
    fn played(script: &str, guest: &str, limit: Duration) -> (Result<()>, String) {
        let mut pmm = Command::new("sh");
        pmm.args(["-c", guest]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut pmm = pmm.spawn().unwrap();
        let mut transcript = Vec::new();
        let script = Script::parse("s".into(), script).unwrap();
        let result = play(&script, "g", &mut pmm, limit, &mut transcript);
        pmm.kill().unwrap();
        pmm.wait().unwrap();
        (result, String::from_utf8(transcript).unwrap())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn scripts_are_lines() {
        let script = Script::parse("s".into(), "# first\nabout\n\n  rand 32  \n").unwrap();
        let lines: Vec<_> = script.lines.iter().map(|line| (line.number, line.text.as_str())).collect();
        assert_eq!(lines, [(2, "about"), (4, "rand 32")]);
        assert!(Script::parse("s".into(), "a\x03b").unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn prompts_tell_success_from_failure() {
        let guest = r"printf 'g> '; while read -r line; do
            case $line in bad) printf 'error: no\ng (failed)> ';; *) printf '%s g> \ng> ' $line;; esac; done";
        let (result, seen) = played("a\nb", guest, LONG);
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(seen, "g> a g> \ng> b g> \ng> \n");
        let (result, _) = played("a\nbad\nb", guest, LONG);
        assert_eq!(format!("{:#}", result.unwrap_err()), "failed: s, line 2 ('bad')");
    }

    #[test]
    fn silence_and_death_name_the_line() {
        let (result, _) = played("a", "printf 'g> '; cat > /dev/null", Duration::from_millis(50));
        assert_eq!(format!("{:#}", result.unwrap_err()), "s, line 1 ('a'): no prompt came within 0 s");
        let (result, _) = played("a", "printf 'g> '; head -c 2 > /dev/null", LONG);
        assert!(format!("{:#}", result.unwrap_err()).starts_with("s, line 1 ('a'): "));
        let (result, _) = played("a", "true", LONG);
        assert_eq!(format!("{:#}", result.unwrap_err()), "s: the guest does not greet: pmm ended");
    }
}
