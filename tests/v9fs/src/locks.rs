//! Locks of ranges (fcntl) between processes: who has one, who waits, what is told of it, and what an end of a process or
//! of a descriptor does. Then the same between two clients of the server.

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc::{self, flock, off_t},
};
use std::{
    env, fs,
    fs::File,
    io::{BufRead, BufReader, Write},
    os::fd::AsRawFd,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{Told, place::Place};

/// A guard for the moment until a process is seen to wait.
const GUARD: Duration = Duration::from_secs(120);

/// The process that makes the calls: commands come on stdin, each is answered by a line.
pub fn locker(path: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<_> = line.split(' ').collect();
        let answer = match words.as_slice() {
            [call, kind, start, length] => {
                ask(file.as_raw_fd(), call, kind, start.parse()?, length.parse()?)?
            }
            _ => bail!("what is {line:?}?"),
        };
        println!("{answer}");
    }
    Ok(())
}

fn ask(fd: i32, call: &str, kind: &str, start: off_t, length: off_t) -> Result<String> {
    let kind = match kind {
        "read" => libc::F_RDLCK,
        "write" => libc::F_WRLCK,
        "none" => libc::F_UNLCK,
        _ => bail!("no kind of lock: {kind}"),
    };
    let mut lock =
        flock { l_type: kind as _, l_whence: libc::SEEK_SET as _, l_start: start, l_len: length, l_pid: 0 };
    let result = match call {
        "try" => fcntl(fd, FcntlArg::F_SETLK(&lock)),
        "wait" => fcntl(fd, FcntlArg::F_SETLKW(&lock)),
        "get" => fcntl(fd, FcntlArg::F_GETLK(&mut lock)),
        _ => bail!("no such call: {call}"),
    };
    Ok(match result {
        Err(Errno::EAGAIN | Errno::EACCES) => "taken".into(),
        Err(error) => format!("{error:?}"),
        Ok(_) if call != "get" => "done".into(),
        Ok(_) => match i32::from(lock.l_type) {
            libc::F_UNLCK => "free".into(),
            kind => {
                let kind = if kind == libc::F_RDLCK { "read" } else { "write" };
                format!("{kind} {} {} of {}", lock.l_start, lock.l_len, lock.l_pid)
            }
        },
    })
}

/// Another process, which is told what to do.
struct Locker {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Locker {
    fn start(file: &Path) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .arg("locker")
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take().context("the child's stdin is a pipe")?;
        let answers = BufReader::new(child.stdout.take().context("the child's stdout is a pipe")?);
        Ok(Self { child, commands, answers })
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        Ok(writeln!(self.commands, "{command}")?)
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "the process has ended; see above");
        Ok(line.trim_end().to_owned())
    }

    /// Tells it a command that it is to wait in, and returns when it sleeps in that call.
    fn wait(&mut self, command: &str) -> Result<()> {
        self.tell(command)?;
        let (start, pid) = (Instant::now(), self.child.id());
        // The kernel shows which call a process sleeps in, first its number, then its arguments.
        let call = format!("{} ", libc::SYS_fcntl);
        let wanted = format!(" {:#x} ", libc::F_SETLKW);
        loop {
            let now = fs::read_to_string(format!("/proc/{pid}/syscall")).context("the call of a process")?;
            if now.starts_with(&call) && now.contains(&wanted) {
                return Ok(());
            }
            ensure!(start.elapsed() < GUARD, "no process waits after {command:?}, it is in {now}");
            thread::yield_now();
        }
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        // It may have ended; nothing could be done about another failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes of a run, and what they answered.
struct Cast {
    lockers: Vec<Locker>,
    said: Vec<String>,
}

const NAMES: [&str; 3] = ["A", "B", "C"];
const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

impl Cast {
    /// One process for each way to the file.
    fn start(files: &[&Path]) -> Result<Self> {
        let lockers = files.iter().map(|file| Locker::start(file)).collect::<Result<_>>()?;
        Ok(Self { lockers, said: Vec::new() })
    }

    fn ask(&mut self, who: usize, command: &str) -> Result<()> {
        self.lockers[who].tell(command)?;
        self.answer(who, command)
    }

    fn answer(&mut self, who: usize, command: &str) -> Result<()> {
        let answer = self.lockers[who].answer()?;
        // Processes have other numbers each time, and those of another client none here.
        let answer = match answer.split_once(" of ") {
            Some((lock, pid)) => {
                let known = self.lockers.iter().position(|locker| locker.child.id().to_string() == pid);
                format!("{lock} of {}", known.map_or("somebody", |known| NAMES[known]))
            }
            None => answer,
        };
        self.said.push(format!("{} {command}: {answer}", NAMES[who]));
        Ok(())
    }

    /// Commands that each are answered at once.
    fn ask_all(&mut self, commands: &[(usize, &str)]) -> Result<()> {
        commands.iter().try_for_each(|(who, command)| self.ask(*who, command))
    }

    fn end(self, told: &mut Told) {
        told.done = format!("{} calls of {} processes", self.said.len(), self.lockers.len());
        told.same.extend(self.said);
    }
}

/// Between processes of one client.
pub fn run(place: &Place, told: &mut Told) -> Result<()> {
    let path = place.folder.join("file");
    fs::write(&path, "to be locked")?;
    let mut cast = Cast::start(&[&path, &path, &path])?;
    cast.ask_all(&[
        (B, "get write 0 0"),
        (A, "try write 0 100"),
        (B, "try write 50 10"),
        (B, "get write 50 10"),
        (B, "get read 50 10"),
        (B, "get write 200 10"),
        (A, "get write 0 100"),
        (A, "try none 40 20"),
        (B, "try write 40 20"),
        (A, "get write 0 0"),
        (C, "get write 90 0"),
        (B, "try none 0 0"),
        (A, "try none 0 0"),
    ])?;
    // Readers share, and none of two can become the writer.
    cast.ask_all(&[
        (A, "try read 0 10"),
        (B, "try read 5 10"),
        (A, "try write 0 10"),
        (C, "get write 0 0"),
        (B, "try none 0 0"),
        (A, "try write 0 10"),
        (C, "get read 0 0"),
        (A, "try none 0 0"),
    ])?;
    // Waiters: each has its lock when all that it waits for is free. Two that would wait for each other are told so.
    cast.ask_all(&[(A, "try write 0 100"), (B, "try write 200 10")])?;
    cast.lockers[B].wait("wait write 0 10")?;
    cast.lockers[C].wait("wait read 90 200")?;
    cast.ask_all(&[(A, "wait write 200 10"), (A, "try none 90 10"), (A, "try none 0 10")])?;
    cast.answer(B, "has waited")?;
    cast.ask(B, "try none 200 10")?;
    cast.answer(C, "has waited")?;
    cast.ask_all(&[(A, "get write 0 0"), (C, "try none 0 0"), (B, "try none 0 0")])?;
    // The end of a process is the end of its locks.
    cast.lockers[B].wait("wait write 50 1")?;
    cast.lockers[A].child.kill()?;
    cast.answer(B, "has waited for a process that was killed")?;
    cast.end(told);
    Ok(())
}

/// Between two clients of the server, which know of each other's locks only what it tells them.
pub fn clients(place: &Place, told: &mut Told) -> Result<()> {
    fs::write(place.folder.join("file"), "to be locked")?;
    let (here, elsewhere) = (place.folder.join("file"), place.elsewhere().join("file"));
    let mut cast = Cast::start(&[&here, &elsewhere])?;
    // Locally both are processes of one client, which would be named.
    let anonymous = |cast: &mut Cast| {
        for line in &mut cast.said {
            *line = line.split(" of ").next().unwrap_or_default().to_owned();
        }
    };
    cast.ask_all(&[
        (A, "try write 0 100"),
        (B, "try write 50 10"),
        (B, "get write 50 10"),
        (B, "get read 0 0"),
        (B, "get write 100 10"),
        (A, "try none 50 10"),
        (B, "try write 50 10"),
        (A, "try write 50 10"),
        (A, "get write 40 20"),
        (B, "try none 0 0"),
        (A, "try none 0 0"),
        (A, "try read 0 10"),
        (B, "try read 0 10"),
        (B, "try write 0 10"),
        (B, "try none 0 0"),
        (A, "try write 0 10"),
    ])?;
    if place.is_local() || place.name == "none" {
        // Linux asks such a server again every 30 s, in every cache mode alike: one of them shows it.
        cast.lockers[B].wait("wait write 0 10")?;
        cast.ask(A, "try none 0 0")?;
        cast.answer(B, "has waited")?;
    } else {
        cast.said.push("A try none 0 0: done".into());
        cast.said.push("B has waited: done".into());
    }
    anonymous(&mut cast);
    cast.end(told);
    Ok(())
}
