//! From sources to a running guest and the command line of its PMM.

use anyhow::{Context, Result, anyhow};
use hvl_test_board::{Board, Files, Launch, SHARED_BASE, SHARED_SIZE};
use std::{
    env,
    fs::{self, File},
    io,
    net::TcpListener,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{self, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::Guest;
use crate::{
    paths,
    process::{read, run},
    setup::{self, Emulator, Tools},
    tied::{self, Death},
};

/// A pmm that was asked to end has this long.
const ENDING: Duration = Duration::from_secs(5);

/// Programs that are ready to be started.
pub struct Built {
    pub guest: Guest,
    pmm: PathBuf,
    machine: Machine,
    /// What the guest's network leads through; without it there is none.
    pub passt: Option<PathBuf>,
}

/// What the guest runs on.
enum Machine {
    Process { program: PathBuf },
    Board { firmware: PathBuf, emulator: Box<Emulator> },
}

/// Builds what `guest` needs, and the PMM; side by side with the set-up, where there is one to do.
pub fn build(guest: Guest, tools: Option<&Tools>) -> Result<Built> {
    let Guest::Emulated(firmware) = guest else {
        cargo(&["hvl-pmm", "hvl-guest-host"])?;
        let program = paths::host_target().join("release/host-shell");
        return Ok(Built { guest, pmm: pmm(), machine: Machine::Process { program }, passt: None });
    };
    let package = firmware.package();
    let build_firmware = |toolchain: &setup::Toolchain| {
        said(&format!("building {package} for the Cortex-R5"), || toolchain.build(package))
    };
    thread::scope(|scope| {
        let host = scope.spawn(|| cargo(&["hvl-pmm"]));
        let (firmware, emulator) = match tools {
            Some(tools) => (build_firmware(&tools.toolchain)?, tools.emulator.clone()),
            None => setup::tools_and(build_firmware).map(|(tools, firmware)| (firmware, tools.emulator))?,
        };
        host.join().map_err(|_| anyhow!("building the PMM panicked; see above"))??;
        let machine = Machine::Board { firmware, emulator: Box::new(emulator) };
        Ok(Built { guest, pmm: pmm(), machine, passt: None })
    })
}

fn pmm() -> PathBuf {
    paths::host_target().join("release/pmm")
}

/// Builds packages for this machine, in release.
fn cargo(packages: &[&str]) -> Result<()> {
    said(&format!("building {} for this machine", packages.join(", ")), || {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(paths::root()).args(["build", "--quiet", "--release", "--bins"]);
        cargo.env("CARGO_TARGET_DIR", paths::host_target());
        packages.iter().for_each(|package| {
            cargo.args(["--package", package]);
        });
        run(&mut cargo)
    })
}

/// Says what is being done, and how long it took.
fn said<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("demo: {what} ...");
    let start = Instant::now();
    let result = work();
    if result.is_ok() {
        eprintln!("demo: {what}: done in {:.1} s", start.elapsed().as_secs_f32());
    }
    result
}

/// A guest that runs, and its folder.
pub struct Running {
    folder: PathBuf,
    pmm: PathBuf,
    memory: PathBuf,
    offset: u64,
    doorbell: PathBuf,
    /// What the network leads through, and the port of this machine that leads to the guest's web server.
    web: Option<(PathBuf, u16)>,
    keep: bool,
    _guest: Powered,
}

/// Whatever dies with this.
enum Powered {
    Board { _board: Box<Board> },
    Process { _child: Child },
}

/// Starts the guest. Its doorbell takes connections from then on.
pub fn start(built: &Built) -> Result<Running> {
    forget_the_dead();
    let folder = paths::run_dir(&format!("demo-{}", process::id()));
    let (memory, offset, doorbell, guest) = match &built.machine {
        Machine::Board { firmware, emulator } => {
            let files = Files::fresh(&folder, firmware.clone())?;
            let (memory, doorbell) = (files.ddr.clone(), files.doorbell.clone());
            let board = Board::start(&Tied((**emulator).clone()), files)?;
            (memory, SHARED_BASE, doorbell, Powered::Board { _board: Box::new(board) })
        }
        Machine::Process { program } => {
            fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
            let folder = folder.canonicalize()?;
            let (memory, doorbell) = (folder.join("region"), folder.join("doorbell"));
            let region = File::create(&memory).and_then(|file| file.set_len(SHARED_SIZE));
            region.with_context(|| format!("{} cannot be made", memory.display()))?;
            let mut command = Command::new(program);
            command.arg("--shmem-file").arg(&memory).arg("--shmem-size").arg(SHARED_SIZE.to_string());
            command.arg("--shmem-addr").arg(SHARED_BASE.to_string());
            command.arg("--doorbell").arg(format!("unix-stream:{},listen", doorbell.display()));
            let log = folder.join("guest.log");
            let log = File::create(&log).with_context(|| format!("{} cannot be made", log.display()))?;
            let mut command = tied::tie(&command, Death::Kill)?;
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            let child = Child::start(&mut command)?;
            (memory, 0, doorbell, Powered::Process { _child: child })
        }
    };
    let shared = folder.join("shared");
    fs::create_dir_all(&shared)
        .and_then(|()| fs::write(shared.join("hello.txt"), "Hello from the machine that runs the PMM.\n"))
        .with_context(|| format!("{} cannot be made", shared.display()))?;
    let pmm = built.pmm.clone();
    let web = built.passt.clone().map(|passt| free_port().map(|port| (passt, port))).transpose()?;
    Ok(Running { folder, pmm, memory, offset, doorbell, web, keep: true, _guest: guest })
}

/// A port of this machine's loopback that nobody uses now.
fn free_port() -> Result<u16> {
    let socket = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    Ok(socket.context("this machine's loopback has no port")?.port())
}

impl Running {
    /// The PMM's command line, tied to xtask. The console is its standard input and output.
    pub fn pmm(&self) -> Result<Command> {
        let mut command = Command::new(&self.pmm);
        command.args(["run", "--no-dtb", "--rng", "--console", "stdio", "--name", "demo"]);
        command.arg("--9p").arg(format!("{},host", self.shared().display()));
        command.arg("--vsock").arg(format!("3,path={}", self.sockets().display()));
        if let Some((passt, port)) = &self.web {
            let cable = format!("mode=user,passt={},forward={port}:80", passt.display());
            command.arg("--network").arg(cable);
        }
        command.arg("--shmem-file").arg(&self.memory);
        command.arg("--shmem-offset").arg(self.offset.to_string());
        command.arg("--shmem-addr").arg(format!("{SHARED_BASE:#x}"));
        command.arg("--shmem-size").arg(SHARED_SIZE.to_string());
        command.arg("--doorbell").arg(format!("unix-stream:{}", self.doorbell.display()));
        tied::tie(&command, Death::Terminate)
    }

    /// Where this machine finds the guest's web server, if it has a network.
    pub fn web(&self) -> Option<String> {
        self.web.as_ref().map(|(_, port)| format!("http://127.0.0.1:{port}"))
    }

    /// The directory that the guest may use.
    pub fn shared(&self) -> PathBuf {
        self.folder.join("shared")
    }

    /// Where clients of this machine call the guest.
    pub fn sockets(&self) -> PathBuf {
        self.folder.join("vsock")
    }

    /// Where a PMM's control socket may be; one that sits at a terminal has the user's default.
    pub fn control(&self) -> PathBuf {
        self.folder.join("control")
    }

    /// What `pmm status --json` says of the PMM at [`Running::control`].
    pub fn status(&self) -> Result<serde_json::Value> {
        let mut command = Command::new(&self.pmm);
        let said = read(command.args(["status", "--json", "--control"]).arg(self.control()))?;
        serde_json::from_str(&said).with_context(|| format!("pmm status --json is no JSON: {said}"))
    }

    /// What the shared memory holds.
    pub fn memory(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; SHARED_SIZE as usize];
        let read = File::open(&self.memory).and_then(|file| file.read_exact_at(&mut bytes, self.offset));
        read.with_context(|| format!("{} cannot be read", self.memory.display()))?;
        Ok(bytes)
    }

    /// Memory, sockets and logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Says how it went: after success nothing is left behind.
    pub fn end(&mut self, well: bool) {
        self.keep = !well;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.keep {
            // The next demo forgets it otherwise.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Removes what demos left that were killed, and those that failed before this one.
fn forget_the_dead() {
    let runs = paths::run_dir("");
    let Ok(entries) = fs::read_dir(&runs) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let dead = name
            .strip_prefix("demo-")
            .is_some_and(|id| id.parse::<u32>().is_ok() && !Path::new("/proc").join(id).exists());
        if dead {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// An emulator that dies with xtask.
#[derive(Clone)]
struct Tied(Emulator);

impl Launch for Tied {
    fn command(&self) -> Command {
        let command = self.0.command();
        // Without its own program xtask would not run.
        tied::tie(&command, Death::Kill).unwrap_or(command)
    }
}

/// A child that ends with this object.
pub struct Child(process::Child);

impl Child {
    /// Starts `command`, which is tied to xtask.
    pub fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn().context("it could not be started")?))
    }

    /// Its pipes.
    pub fn inner(&mut self) -> &mut process::Child {
        &mut self.0
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.0.wait()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let start = Instant::now();
        let id = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let (Ok(None), Some(id)) = (self.0.try_wait(), id) {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        // It ends within milliseconds; std has no wait with a limit.
        while start.elapsed() < ENDING {
            match self.0.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(5)),
                _ => return,
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
