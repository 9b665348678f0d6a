//! The emulated board: a ZCU102 of which only the first Cortex-R5 runs, its DDR a shared file, its doorbell a socket.
//!
//! It dies with this object, and can be killed and started again on the same memory, as power is cut on a real one.

use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

/// How the emulator is called on this machine.
pub trait Launch {
    /// A command line to which the machine's options are added.
    fn command(&self) -> Command;
}

/// Physical address of the memory that both sides share, which is also its offset in the DDR file.
pub const SHARED_BASE: u64 = 0x1000_0000;
/// Its size in bytes; tests/guests/r5-board says the same.
pub const SHARED_SIZE: u64 = 0x10_0000;
/// DDR ends 16 MiB after the shared memory begins. The file is sparse: it takes the space of what is written.
const DDR_MEBIBYTES: u64 = 272;

const _: () = assert!(SHARED_BASE + SHARED_SIZE <= DDR_MEBIBYTES << 20);

/// The files of a board.
#[derive(Clone, Debug)]
pub struct Files {
    /// The board's memory; made when it is missing, and kept.
    pub ddr: PathBuf,
    /// The program, an ELF file.
    pub firmware: PathBuf,
    /// What it prints on UART0, from the last start.
    pub early_log: PathBuf,
    /// UART1: a stream socket on which one byte is one doorbell. The board listens, the PMM connects.
    pub doorbell: PathBuf,
    /// The emulator's own complaints.
    pub emulator_log: PathBuf,
}

impl Files {
    /// Files of a board that runs `firmware`, all in `folder`, which is emptied: a new board.
    pub fn fresh(folder: &Path, firmware: PathBuf) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("{} is in the way", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("{} cannot be created", folder.display()))?;
        // Absolute and without `..`: the path of a socket may have 107 bytes.
        let folder = folder.canonicalize()?;
        Ok(Self {
            ddr: folder.join("ddr"),
            firmware,
            early_log: folder.join("early.log"),
            doorbell: folder.join("doorbell"),
            emulator_log: folder.join("emulator.log"),
        })
    }

    /// Makes the board's memory if it is missing, for a PMM that is there before the board is switched on.
    pub fn make_memory(&self) -> Result<()> {
        let ddr = File::options().create(true).truncate(false).write(true).open(&self.ddr);
        ddr.and_then(|file| file.set_len(DDR_MEBIBYTES << 20))
            .with_context(|| format!("the board's memory {} cannot be made", self.ddr.display()))
    }
}

/// A running board.
pub struct Board {
    emulator: Box<dyn Launch>,
    files: Files,
    child: Child,
    /// Kept open: the emulator's control channel ends here.
    _control: BufReader<ChildStdout>,
}

impl Board {
    /// Switches a board on. When this returns, its doorbell's socket takes connections and the firmware is starting.
    pub fn start(emulator: &(impl Launch + Clone + 'static), files: Files) -> Result<Self> {
        let (child, control) = launch(emulator, &files)?;
        Ok(Self { emulator: Box::new(emulator.clone()), files, child, _control: control })
    }

    /// Its files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Process id of the emulator.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the firmware has printed on UART0 since the last start.
    pub fn early_log(&self) -> String {
        fs::read(&self.files.early_log)
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .unwrap_or_default()
    }

    /// Cuts the power (SIGKILL) and switches the board on again. Its memory keeps what it held.
    pub fn power_cycle(&mut self) -> Result<()> {
        self.kill()?;
        (self.child, self._control) = launch(&*self.emulator, &self.files)?;
        Ok(())
    }

    /// Cuts the power (SIGKILL) and does not wait for the emulator's end; [`Board::kill`] does.
    pub fn strike(&mut self) {
        // An emulator that has ended by itself is dead as well.
        let _ = self.child.kill();
    }

    /// Pulls the reset line: the machine starts again from its reset vector, at once, and the emulator runs on. Its
    /// memory keeps what it held, but for the program, which is loaded again.
    pub fn reset(&mut self) -> Result<()> {
        let control = self.child.stdin.as_mut().context("the child's stdin is a pipe")?;
        // The answers are few and nobody reads them: what the firmware does is the answer.
        control
            .write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"system_reset\"}\n")
            .context("the emulator's control channel is closed")
    }

    /// Fails if the emulator has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the emulator ended by itself ({status})"),
        }
    }

    /// Cuts the power for good.
    pub fn kill(&mut self) -> Result<()> {
        self.strike();
        self.child.wait().context("the emulator cannot be waited for")?;
        Ok(())
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // Nothing could be done about a failure.
        let _ = self.kill();
    }
}

fn launch(emulator: &dyn Launch, files: &Files) -> Result<(Child, BufReader<ChildStdout>)> {
    let length = files.doorbell.as_os_str().len();
    if length > 107 {
        bail!(
            "{} is too long for a socket ({length} bytes of 107): move the repository",
            files.doorbell.display()
        );
    }
    files.make_memory()?;
    // Left behind by a killed emulator; another file of that name is not ours to keep either.
    let _ = fs::remove_file(&files.doorbell);
    let log = File::create(&files.emulator_log)
        .with_context(|| format!("{} cannot be written", files.emulator_log.display()))?;
    let mut command = command(emulator, files);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("the emulator could not be started")?;
    // The control channel's greeting comes when the machine stands and its sockets listen.
    let mut control = BufReader::new(child.stdout.take().context("the child's stdout is a pipe")?);
    let mut greeting = String::new();
    if control.read_line(&mut greeting).is_err() || !greeting.contains("QMP") {
        let _ = child.kill();
        child.wait()?;
        let complaint = fs::read_to_string(&files.emulator_log).unwrap_or_default();
        bail!("the emulator ended at once: {}", complaint.trim());
    }
    Ok((child, control))
}

fn command(emulator: &dyn Launch, files: &Files) -> Command {
    let mut command = emulator.command();
    let size = format!("{DDR_MEBIBYTES}M");
    // Threads have names, so that a test can tell a processor's from the emulator's own.
    command.args(["-name", "board,debug-threads=on"]);
    // Six processors, of which one runs: with a single R5 the model puts the interrupt controller elsewhere.
    command.args(["-machine", "xlnx-zcu102,memory-backend=ddr", "-m", &size, "-smp", "6"]);
    command.arg("-object");
    command.arg(format!("memory-backend-file,id=ddr,size={size},share=on,mem-path={}", quoted(&files.ddr)));
    command.args(["-global", "xlnx-zynqmp.boot-cpu=rpu-cpu[0]"]);
    command.arg("-device").arg(format!("loader,cpu-num=4,file={}", quoted(&files.firmware)));
    command.args(["-audio", "none", "-display", "none", "-monitor", "none", "-qmp", "stdio"]);
    // Time that the emulator was stopped does not count, for no clock of the board.
    command.args(["-rtc", "clock=vm"]);
    command.arg("-chardev").arg(format!("file,id=early,path={}", quoted(&files.early_log)));
    command.arg("-chardev");
    command.arg(format!("socket,id=doorbell,server=on,wait=off,path={}", quoted(&files.doorbell)));
    command.args(["-serial", "chardev:early", "-serial", "chardev:doorbell"]);
    command
}

/// Within an option's value, a comma is written twice.
fn quoted(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
