//! Guests that run the shell: a Linux process, and the firmware on the emulated board. Each can be killed and started
//! again on the same memory, as power is cut on a real one.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use hvl_test_board::{Board, Files, Launch, SHARED_BASE, SHARED_SIZE};

use crate::process::{self, Running};
use crate::{Tools, proxy};

/// Where the guest's memory is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The file that is shared with the PMM.
    pub file: PathBuf,
    /// Where in it the region begins, in bytes.
    pub offset: u64,
    /// What the guest calls the address of the region.
    pub base: u64,
    /// Bytes of it.
    pub size: u64,
}

impl Place {
    /// The PMM's options for it.
    pub fn options(&self) -> Vec<String> {
        let mut options: Vec<String> = ["--pmm", "--no-dtb"].map(String::from).into();
        for (option, value) in [
            ("--shmem-addr", format!("{:#x}", self.base)),
            ("--shmem-size", format!("{:#x}", self.size)),
            ("--shmem-file", self.file.display().to_string()),
            ("--shmem-offset", format!("{:#x}", self.offset)),
        ] {
            options.extend([option.into(), value]);
        }
        options
    }
}

/// A guest that runs the shell.
pub trait Guest {
    /// What its prompt says.
    fn name(&self) -> &'static str;
    /// Its memory.
    fn place(&self) -> Place;
    /// The socket at which it listens for its doorbell.
    fn doorbell(&self) -> PathBuf;
    /// Starts it. When this returns, its doorbell's socket takes connections, or soon will.
    fn start(&mut self) -> Result<()>;
    /// Kills it (SIGKILL), and does not wait for its end.
    fn strike(&mut self);
    /// Kills it and waits for its end.
    fn kill(&mut self) -> Result<()>;
    /// Resets it from outside, whatever it is doing.
    fn reset(&mut self) -> Result<()>;
    /// Fails if it has ended by itself.
    fn check(&mut self) -> Result<()>;
    /// Id of the process that is it, or that emulates it.
    fn id(&self) -> Result<u32>;
}

/// The shell as a Linux process.
#[derive(Debug)]
pub struct HostShell {
    program: PathBuf,
    dir: PathBuf,
    place: Place,
    /// Where somebody else listens for the doorbell; otherwise it does itself.
    other: Option<PathBuf>,
    running: Option<Running>,
}

/// Its region. The address says nothing to a process, but both must mean the same.
const HOST_BASE: u64 = 0x1000_0000;
const HOST_SIZE: u64 = 0x10_0000;

impl HostShell {
    /// One whose memory and socket lie in `dir`. Nothing runs yet.
    pub fn new(tools: &Tools, dir: &Path) -> Result<HostShell> {
        let place = Place { file: dir.join("memory"), offset: 0, base: HOST_BASE, size: HOST_SIZE };
        File::create(&place.file)
            .and_then(|file| file.set_len(HOST_SIZE))
            .with_context(|| format!("{} cannot be made", place.file.display()))?;
        let program = tools.host_shell.clone();
        Ok(HostShell { program, dir: dir.into(), place, other: None, running: None })
    }

    /// One in the memory and at the doorbell of somebody else, whose guest it becomes.
    pub fn of(tools: &Tools, dir: &Path, owner: &dyn Guest) -> HostShell {
        let (place, other) = (owner.place(), Some(owner.doorbell()));
        HostShell { program: tools.host_shell.clone(), dir: dir.into(), place, other, running: None }
    }
}

impl Guest for HostShell {
    fn name(&self) -> &'static str {
        "host"
    }

    fn place(&self) -> Place {
        self.place.clone()
    }

    fn doorbell(&self) -> PathBuf {
        self.other.clone().unwrap_or_else(|| self.dir.join("doorbell"))
    }

    fn start(&mut self) -> Result<()> {
        let mut command = process::command(&self.program)?;
        let place = self.place();
        command.arg("--shmem-file").arg(&place.file);
        command.arg("--shmem-offset").arg(format!("{:#x}", place.offset));
        command.arg("--shmem-addr").arg(format!("{:#x}", place.base));
        command.arg("--shmem-size").arg(format!("{:#x}", place.size));
        let mut bell = OsString::from("unix-stream:");
        bell.push(self.doorbell());
        if self.other.is_none() {
            bell.push(",listen");
        }
        command.arg("--doorbell").arg(bell);
        self.running = Some(Running::start("host-shell", command, &self.dir.join("guest.log"))?);
        Ok(())
    }

    fn strike(&mut self) {
        self.running.iter_mut().for_each(Running::strike);
    }

    fn kill(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), Running::kill)
    }

    fn reset(&mut self) -> Result<()> {
        bail!("a process has no reset line")
    }

    fn check(&mut self) -> Result<()> {
        self.running.as_mut().map_or(Ok(()), Running::check)
    }

    fn id(&self) -> Result<u32> {
        self.running.as_ref().map(Running::id).context("no guest runs")
    }
}

/// How the emulator is called, so that it dies with the test.
#[derive(Clone, Debug)]
struct Words(Vec<OsString>);

impl Launch for Words {
    fn command(&self) -> Command {
        let program = self.0.first().cloned().unwrap_or_default();
        // Without a path to this program the emulator would outlive a test that is killed, no more.
        let mut command = process::command(&program).unwrap_or_else(|_| Command::new(&program));
        command.args(self.0.iter().skip(1));
        command
    }
}

/// A shell on the emulated board.
pub struct R5 {
    name: &'static str,
    words: Words,
    files: Files,
    board: Option<Board>,
}

impl R5 {
    /// A board whose files lie in `dir`, and whose firmware calls itself `name`. It is off.
    pub fn new(tools: &Tools, dir: &Path, name: &'static str) -> Result<R5> {
        let firmware =
            tools.firmware.clone().context("this test needs the board: --firmware and the emulator")?;
        let files = Files::fresh(&dir.join("board"), firmware)?;
        // The PMM may be first: it finds memory of the board's size.
        files.make_memory()?;
        Ok(R5 { name, words: Words(tools.emulator.clone()), files, board: None })
    }

    /// Where the firmware's early log is; empty again at each start.
    pub fn early_log(&self) -> &Path {
        &self.files.early_log
    }
}

impl Guest for R5 {
    fn name(&self) -> &'static str {
        self.name
    }

    fn place(&self) -> Place {
        Place { file: self.files.ddr.clone(), offset: SHARED_BASE, base: SHARED_BASE, size: SHARED_SIZE }
    }

    fn doorbell(&self) -> PathBuf {
        self.files.doorbell.clone()
    }

    fn start(&mut self) -> Result<()> {
        self.board = Some(Board::start(&self.words, self.files.clone())?);
        Ok(())
    }

    fn strike(&mut self) {
        self.board.iter_mut().for_each(Board::strike);
    }

    fn kill(&mut self) -> Result<()> {
        self.board.take().map_or(Ok(()), |mut board| board.kill())
    }

    fn reset(&mut self) -> Result<()> {
        self.board.as_mut().context("no board runs")?.reset()
    }

    fn check(&mut self) -> Result<()> {
        self.board.as_mut().map_or(Ok(()), Board::check)
    }

    fn id(&self) -> Result<u32> {
        self.board.as_ref().map(Board::id).context("no board runs")
    }
}

/// Which guest a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`HostShell`].
    Host,
    /// [`R5`] with `r5-shell`.
    R5,
    /// [`R5`] with `r5-async`.
    Async,
}

impl Kind {
    /// A new guest of this kind.
    pub fn make(self, tools: &Tools, dir: &Path) -> Result<Box<dyn Guest>> {
        Ok(match self {
            Kind::Host => Box::new(HostShell::new(tools, dir)?),
            Kind::R5 => Box::new(R5::new(tools, dir, "r5")?),
            Kind::Async => Box::new(R5::new(tools, dir, "r5-async")?),
        })
    }
}

/// The guest's end for a proxy.
pub fn proxy_end(guest: &dyn Guest) -> proxy::End {
    proxy::End::Connect(guest.doorbell())
}
