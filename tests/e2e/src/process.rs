//! Children that die with the test, however it ends: each asks the kernel to be killed when its parent is gone.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, set_parent_process_death_signal};

use crate::guard::Guard;
use crate::terminal::wait;

/// The first argument with which the test program becomes another one: parent's id, program, arguments.
pub const BECOME: &str = "die-with";

/// A command that dies with this process. It is to be spawned by the main thread: the kernel means that by "parent".
pub fn command(program: impl Into<OsString>) -> Result<Command> {
    let this = std::env::current_exe().context("this program's own path is unknown")?;
    let mut command = Command::new(this);
    command.arg(BECOME).arg(std::process::id().to_string()).arg(program.into());
    Ok(command)
}

/// The other half of [`command`]: becomes the program. Returns only if that fails.
pub fn become_program(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let parent = arguments.next().context("the parent's process id is missing")?;
    let program = arguments.next().context("the program is missing")?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("the kernel refuses to watch the parent")?;
    // It may have died before the request.
    let now = getppid().map(|parent| parent.as_raw_nonzero().to_string());
    anyhow::ensure!(now.as_deref() == parent.to_str(), "the test has ended already");
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("{} could not be started", program.display()))
}

/// A child that is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
}

impl Running {
    /// Starts a command; what it says on stderr goes to the end of `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Running> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("{} cannot be written", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        Running::spawn(name, &mut command)
    }

    /// Starts a command as it is.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Running> {
        let child = command.spawn().with_context(|| format!("{name} could not be started"))?;
        Ok(Running { child, name: name.into() })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Fails if it has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended by itself ({status})", self.name),
        }
    }

    /// Waits for its end: its exit code.
    pub fn end(&mut self, guard: &Guard) -> Result<Option<i32>> {
        let ended = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        while !wait(&[ended.as_fd()], None, guard.left()?)? {}
        Ok(self.child.wait()?.code())
    }

    /// Kills it (SIGKILL) without waiting for its end, so that several can be killed at one instant.
    pub fn strike(&mut self) {
        // One that has ended by itself is dead as well.
        let _ = self.child.kill();
    }

    /// Kills it and waits for its end.
    pub fn kill(mut self) -> Result<()> {
        self.strike();
        self.child.wait().with_context(|| format!("{} cannot be waited for", self.name))?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.strike();
        let _ = self.child.wait();
    }
}
