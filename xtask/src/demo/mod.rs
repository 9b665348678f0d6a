//! `cargo xtask demo`: builds everything, starts a guest and the PMM, and puts the user, or a script, at the guest's
//! shell. The guest is firmware on the emulated Cortex-R5 or, with `--host`, the same shell as a process of this
//! machine. Whatever was started ends with this program, however it ends.

mod script;
mod start;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use std::{
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use crate::setup::{self, Tools};
use script::Script;
pub use start::Built;

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub struct Options {
    /// Run the shell as a process of this machine instead of on the emulated board; nothing is downloaded
    #[arg(long, conflicts_with = "firmware")]
    host: bool,
    /// What the emulated Cortex-R5 runs
    #[arg(long, value_enum, default_value_t = Firmware::R5Shell)]
    firmware: Firmware,
    /// Type the lines of FILE (- is standard input) instead of letting the user type
    ///
    /// What the guest prints goes to standard output, everything else to standard error. Empty lines and lines that
    /// begin with # are left out. The exit code is 0 only if every command succeeded.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// How long one line of a script may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "script")]
    line_timeout: u64,
}

/// Programs for the emulated Cortex-R5 that can be sat at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Firmware {
    /// One loop, with every command.
    R5Shell,
    /// Tasks on embassy's executor, with the commands that show them.
    R5Async,
}

impl Firmware {
    /// Its package.
    pub const fn package(self) -> &'static str {
        match self {
            Firmware::R5Shell => "r5-shell",
            Firmware::R5Async => "r5-async",
        }
    }
}

/// Which guest is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// A process of this machine.
    Host,
    /// Firmware on the emulated board.
    Emulated(Firmware),
}

impl Guest {
    /// What its prompt begins with.
    const fn name(self) -> &'static str {
        match self {
            Guest::Host => "host",
            Guest::Emulated(Firmware::R5Shell) => "r5",
            Guest::Emulated(Firmware::R5Async) => "r5-async",
        }
    }
}

/// Runs the demo.
pub fn run(options: &Options) -> Result<()> {
    let guest = if options.host { Guest::Host } else { Guest::Emulated(options.firmware) };
    // What is wrong with the request is said before minutes are spent.
    let script = options.script.as_deref().map(read_script).transpose()?;
    if script.is_none() && !io::stdin().is_terminal() {
        bail!("standard input is no terminal; write 'cargo xtask demo --script FILE' (- is standard input)");
    }
    let start = Instant::now();
    let mut built = start::build(guest, None)?;
    built.passt = match guest {
        Guest::Emulated(Firmware::R5Async) => None,
        Guest::Emulated(Firmware::R5Shell) => setup::network()?.passt(),
        Guest::Host => setup::network_here().passt(),
    };
    // Without a way out of this machine passt ends at once.
    built.passt.take_if(|_| !has_way_out());
    eprintln!("demo: everything is there after {:.1} s", start.elapsed().as_secs_f32());
    match script {
        None => sit_at(&built),
        Some(script) => {
            let limit = Duration::from_secs(options.line_timeout);
            play(&built, &script, limit, &mut io::stdout(), |_| Ok(()))
        }
    }
}

/// Whether this machine has a default route.
fn has_way_out() -> bool {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    routes.lines().any(|route| route.split_whitespace().nth(1) == Some("00000000"))
}

fn read_script(path: &Path) -> Result<Script> {
    let name = if path == Path::new("-") { "standard input".into() } else { path.display().to_string() };
    let mut text = String::new();
    match path == Path::new("-") {
        true => io::stdin().read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text)),
    }
    .with_context(|| format!("--script {}: cannot be read", path.display()))?;
    Script::parse(name, &text)
}

/// What a script has left behind.
pub struct Played {
    /// What the guest printed.
    pub transcript: String,
    /// What `pmm status --json` said when the last command had ended.
    pub status: serde_json::Value,
    /// The shared memory then.
    pub memory: Vec<u8>,
}

/// For tests: plays `script` at `guest` and returns what it left.
pub fn played(guest: Guest, tools: Option<&Tools>, script: &str, limit: Duration) -> Result<Played> {
    let built = start::build(guest, tools)?;
    let mut transcript = Vec::new();
    let script = Script::parse("the test's script".into(), script)?;
    let left = |running: &start::Running| Ok((running.status()?, running.memory()?));
    let (status, memory) = play(&built, &script, limit, &mut transcript, left).with_context(|| {
        let end = transcript.get(transcript.len().saturating_sub(1000)..).unwrap_or(&[]);
        format!("the guest printed at last {:?}", String::from_utf8_lossy(end))
    })?;
    let transcript = String::from_utf8_lossy(&transcript).into_owned();
    Ok(Played { transcript, status, memory })
}

/// Lets a script type, and looks at what it left while the PMM still runs.
fn play<T>(
    built: &Built,
    script: &Script,
    limit: Duration,
    out: &mut dyn io::Write,
    look: impl FnOnce(&start::Running) -> Result<T>,
) -> Result<T> {
    let mut running = start::start(built)?;
    let mut pmm = running.pmm()?;
    pmm.arg("--control").arg(running.control());
    pmm.stdin(Stdio::piped()).stdout(Stdio::piped());
    let result = start::Child::start(&mut pmm).and_then(|mut pmm| {
        script::play(script, built.guest.name(), pmm.inner(), limit, out)?;
        look(&running)
    });
    running.end(result.is_ok());
    result.with_context(|| format!("logs are in {}", running.folder().display()))
}

/// What to type first, and what comes of it.
fn suggestions(running: &start::Running, guest: Guest) -> [(&'static str, String); 3] {
    let rand = ("rand 32", "entropy of this machine".into());
    if guest == Guest::Emulated(Firmware::R5Async) {
        let count = ("flood 64K", "a pattern and its checksum, while other tasks run".into());
        return [rand, ("about", "the board and its link".into()), count];
    }
    let shared = running.shared();
    let serve = running
        .web()
        .map(|web| ("httpd /", format!("the same files by HTTP; then, here: curl {web}/hello.txt")));
    [
        ("cat hello.txt", format!("a file in {}", shared.display())),
        serve.unwrap_or(rand),
        (
            "vsock listen 77",
            format!(
                "gives back what comes; then, here: printf 'CONNECT 77\\nhello\\n' | {} -t9 - UNIX-CONNECT:{}",
                setup::socat_here(),
                running.sockets().display()
            ),
        ),
    ]
}

/// Lets the user type.
fn sit_at(built: &Built) -> Result<()> {
    let found =
        rustix::termios::tcgetattr(io::stdin()).context("the terminal cannot be asked how it is set")?;
    let mut running = start::start(built)?;
    let mut pmm = running.pmm()?;
    // Messages in the middle of a line help nobody; `pmm status` tells more.
    pmm.args(["--log-level", "warn"]);
    eprintln!("demo: from another terminal, 'target/release/pmm status' shows the link");
    eprintln!("demo: three things to try at the prompt, beside 'help':");
    for (command, what) in suggestions(&running, built.guest) {
        eprintln!("demo:   {command:16} {what}");
    }
    let status = start::Child::start(&mut pmm)?.wait()?;
    // The pmm does so itself, unless it was killed.
    let restored = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, &found);
    restored.context("the terminal cannot be set back; 'stty sane' does it")?;
    running.end(status.success());
    if !status.success() {
        bail!("pmm ended with {status}; logs are in {}", running.folder().display());
    }
    Ok(())
}
