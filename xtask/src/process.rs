//! Child processes whose failure is told in a sentence.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// What a command has said when it ends is here by then.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// The program's name, for messages.
fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// Runs a command whose output is for the user, all of it on stderr: stdout belongs to what xtask itself answers.
pub fn run(command: &mut Command) -> Result<()> {
    let name = name(command);
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("{name} could not be started"))?;
    if !status.success() {
        bail!("{name} failed ({status}); see above");
    }
    Ok(())
}

/// Runs a command, passes on what it says line by line on stderr, and counts the lines that begin with `mark`.
pub fn count(command: &mut Command, mark: &str) -> Result<(ExitStatus, usize)> {
    let name = name(command);
    let (said, says) = std::io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(says.try_clone()?)
        .stderr(says)
        .spawn()
        .with_context(|| format!("{name} could not be started"))?;
    // The command holds the pipe's other end, too.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (mark, (done, all)) = (mark.to_owned(), mpsc::channel());
    thread::spawn(move || {
        let mut count = 0;
        for line in BufReader::new(said).split(b'\n').map_while(Result::ok) {
            count += usize::from(line.starts_with(mark.as_bytes()));
            eprintln!("{}", String::from_utf8_lossy(&line));
        }
        let _ = done.send(count);
    });
    let status = child.wait()?;
    // Not for ever: the pipe may be another's, too.
    match all.recv_timeout(LAST_WORDS) {
        Ok(count) => Ok((status, count)),
        Err(_) => bail!("{name} has ended ({status}), and something that it started has not"),
    }
}

/// Runs a command for what it prints. Its complaints become part of the error.
pub fn read(command: &mut Command) -> Result<String> {
    read_lines(command, |_| ())
}

/// Like [`read`], and shows each line as it comes.
pub fn read_lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<String> {
    let name = name(command);
    let mut child = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name} could not be started"))?;
    let mut stderr = child.stderr.take().context("the child's stderr is a pipe")?;
    let complaints = thread::spawn(move || {
        let mut text = Vec::new();
        // What cannot be read is missing from the error message, no more.
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut text = String::new();
    for line in BufReader::new(child.stdout.take().context("the child's stdout is a pipe")?).lines() {
        let line = line.with_context(|| format!("{name} printed what is not text"))?;
        each(&line);
        text.push_str(&line);
        text.push('\n');
    }
    let status = child.wait()?;
    let complaints = complaints.join().unwrap_or_default();
    if !status.success() {
        bail!("{name} failed ({status}): {}", complaints.trim());
    }
    Ok(text)
}

/// Runs a command that may hang and that says little; after `limit` it is killed, and the answer is None.
pub fn read_within(command: &mut Command, limit: Duration) -> Result<Option<Output>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Some(child) = wait_within(command, limit)? else { return Ok(None) };
    Ok(Some(child.wait_with_output()?))
}

/// Waits for a command that may hang; after `limit` it is killed with all its children, and the answer is None. What
/// it says must go where there is room for all of it.
pub fn wait_within(command: &mut Command, limit: Duration) -> Result<Option<Child>> {
    let name = name(command);
    let mut child =
        command.process_group(0).spawn().with_context(|| format!("{name} could not be started"))?;
    let start = Instant::now();
    // Polled: std has no wait with a limit, and this one is not on anybody's fast path.
    while child.try_wait()?.is_none() {
        if start.elapsed() > limit {
            // Its group: cargo's death is not its children's.
            rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL)?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(Some(child))
}
