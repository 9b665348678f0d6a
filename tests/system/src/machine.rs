//! Starts a machine and listens to it until it switches itself off.

use anyhow::{Context, Result, bail};
use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// What the first process says last.
const LAST: &str = "system: ended with ";

/// What a machine is made of.
pub struct Machine {
    /// The kernel's image.
    pub kernel: PathBuf,
    /// Its first file system.
    pub image: PathBuf,
    /// Its memory, which is also its disk.
    pub mebibytes: u32,
}

impl Machine {
    /// Adds to a command that calls the emulator all that this machine is.
    ///
    /// Everything is emulated, KVM's processor is not asked for: whether a machine has one, and what it can, differs more
    /// than tests should.
    pub fn describe(&self, mut emulator: Command) -> Command {
        emulator.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        emulator.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1"]);
        emulator.arg("-m").arg(format!("{}M", self.mebibytes));
        emulator.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.image);
        // A panic ends the emulator (-no-reboot). Time is the emulator's, not the processor's, which it cannot measure.
        emulator
            .args(["-append", "console=ttyS0 quiet loglevel=4 panic=-1 tsc=unstable random.trust_cpu=on"]);
        emulator.args(["-serial", "stdio"]);
        // Nothing from outside gets in, and what goes out is what programs of this user may do.
        emulator.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        emulator
    }
}

/// A child that does not outlive this.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended; nothing could be done about another failure.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a machine to its end: the exit code of its script. Each line is shown to `each` and kept in `log`; a machine that
/// says nothing for as long as `silence` has failed.
pub fn run(emulator: &mut Command, log: &Path, silence: Duration, mut each: impl FnMut(&str)) -> Result<u8> {
    let mut kept = File::create(log).with_context(|| format!("{} cannot be written", log.display()))?;
    let complaints = kept.try_clone()?;
    let child = emulator.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(complaints).spawn();
    let mut emulator = Emulator(child.context("the emulator could not be started")?);
    let serial = emulator.0.stdout.take().context("the child's stdout is a pipe")?;
    let (say, said) = mpsc::channel();
    // Ends with the emulator, whose end closes the pipe.
    thread::spawn(move || {
        for line in BufReader::new(serial).split(b'\n').map_while(Result::ok) {
            if say.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let mut code = None;
    loop {
        match said.recv_timeout(silence) {
            Ok(line) => {
                writeln!(kept, "{line}")?;
                match line.strip_prefix(LAST) {
                    Some(number) => code = number.parse().ok(),
                    None => each(&line),
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("the machine has said nothing for {} s; see {}", silence.as_secs(), log.display())
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = emulator.0.wait()?;
    match code {
        Some(code) => Ok(code),
        None => bail!("the machine ended before its script did ({status}); see {}", log.display()),
    }
}
