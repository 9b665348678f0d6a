//! The command line of `pmm`, in kvmtool's names where kvmtool has one. A flag may repeat, and the last one wins, so
//! that scripts can append to a command line that they do not own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use super::describe::{self, LinkDescription};
use super::file::{self, Config};
use super::later::{Later, WithoutEffect};
use super::network::Network;
use super::refusals::{BEHIND_ALL, Given, Refusals};
use super::share::{SHARE_HELP, Share, ShareArgs};
use super::typed::take_apart;
use super::value::{BoundedFile, ConsoleEnd, Doorbell, Number, SharedDirectory, VsockAddress};
use crate::failure::Failure;
use crate::observe::Condition;

/// The place of a file's first line, behind any word of a command line.
const FILE: usize = 1 << 32;

/// What to do, checked.
#[derive(Clone, Debug)]
pub enum Command {
    /// Serve links.
    Run(Run),
    /// Ask a running `pmm`.
    Status(StatusRequest),
    /// Tell which ones run.
    List(ListRequest),
    /// Serve a directory to clients of 9P2000.L.
    Share(Share),
    /// Print this on standard output and end with 0: help, version, a configuration file.
    Print(String),
}

/// `pmm run`, checked: everything that is needed to open and serve the links.
#[derive(Clone, Debug)]
pub struct Run {
    /// The links, at least one, with names that differ and nothing that two of them would both own.
    pub links: Vec<LinkDescription>,
    /// Where the control socket is to be; a default from the first link's name and the process id if not given.
    pub control: Option<PathBuf>,
    /// The file that it was read from, if it was.
    pub config: Option<PathBuf>,
    /// How long a peer of a doorbell may be absent before the PMM gives up. `None`: for ever.
    pub wait: Option<Duration>,
    /// What is logged, and how.
    pub log: LogOptions,
    /// Lines to log once logging is set up: options without effect, defaults that were taken.
    pub notes: Vec<String>,
}

/// What is logged on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// The least severe message that is shown.
    pub level: LogLevel,
    /// One JSON object a line instead of text.
    pub json: bool,
}

/// Severity of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What made or makes the PMM fail.
    Error,
    /// What a guest or peer did wrong, or what was lost.
    Warn,
    /// Starts, ends, sessions.
    #[default]
    Info,
    /// Every doorbell and change of state.
    Debug,
    /// Everything.
    Trace,
}

/// `pmm status`, checked.
#[derive(Args, Clone, Debug, Default)]
pub struct StatusRequest {
    /// Which pmm, by the name of a link or of a served directory, or by its process id ('pmm list' has them all);
    /// without it the only one of this user that runs
    #[arg(value_name = "NAME", conflicts_with = "control")]
    pub name: Option<String>,
    /// The control socket to ask
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Print the snapshot as one line of JSON
    #[arg(long)]
    pub json: bool,
    /// Stay, and print again whenever the snapshot has changed
    #[arg(long)]
    pub follow: bool,
    /// Wait until a value of the snapshot is as said, then print it; may repeat, and then all must hold
    ///
    /// CONDITION is PATH OP VALUE: the names of the JSON snapshot with dots between them, an element of a list by its
    /// index or its "name"; one of = != < <= > >=; a number or a word.
    /// Examples: --wait-for 'links.0.devices.rng.state=running' --wait-for 'links.r5-0.adoptions>=2'
    #[arg(long, value_name = "CONDITION", action = clap::ArgAction::Append)]
    pub wait_for: Vec<Condition>,
    /// How long --wait-for may wait; then it ends with 1 and names what it waited for [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<Number>,
}

/// `pmm list`, checked.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct ListRequest {
    /// Print a list in JSON, on one line
    #[arg(long)]
    pub json: bool,
}

/// One link in the words of the command line, which are also the keys of a `[[link]]` in a configuration file.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct LinkOptions {
    /// What messages and the status call this link [default: link0, link1 ...]
    #[arg(long, value_name = "NAME", help_heading = "Link")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,

    /// Headers lie at the start of the region, 0x200 bytes a device, with no device tree before them (required: the
    /// other placement comes in a later version)
    #[arg(long, help_heading = "Region")]
    pub no_dtb: bool,
    /// The address at which the guest sees the region; a multiple of 4096
    #[arg(long, value_name = "A", help_heading = "Region")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem_addr: Option<Number>,
    /// Size of the region in bytes; a multiple of 4096, less than 4G
    #[arg(long, value_name = "N", help_heading = "Region")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem_size: Option<Number>,
    /// The region is in this file, which an emulator may map too; made if it does not exist or is empty
    #[arg(long, value_name = "PATH", help_heading = "Region")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem_file: Option<PathBuf>,
    /// Where in --shmem-file (or --shmem-fd) the region starts; a multiple of 4096 [default: 0]
    #[arg(long, value_name = "N", help_heading = "Region")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem_offset: Option<Number>,
    /// The region is this POSIX shared memory object (/dev/shm/NAME); made if it does not exist
    #[arg(long, value_name = "NAME", help_heading = "Region")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem_posix: Option<String>,
    /// The region is behind this open file descriptor, inherited from the parent
    #[arg(long, value_name = "N", help_heading = "Region")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem_fd: Option<Number>,
    /// Zero the region first: only when it is certain that no guest runs on it
    #[arg(long, help_heading = "Region")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
    /// Keep here what a guest of the plain profile needs to survive a killed PMM
    #[arg(long, value_name = "FILE", help_heading = "Region")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<PathBuf>,

    /// How the two sides wake each other: unix-stream:PATH[,listen] (one byte is one doorbell: a chardev
    /// socket of QEMU), unix-dgram:bind=PATH,peer=PATH (one datagram is one doorbell), poll[:MICROSECONDS]
    /// (none; memory is polled, every 1 to 1000000 microseconds) [default: poll:1000]
    #[arg(long, value_name = "DOORBELL", help_heading = "Doorbell")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doorbell: Option<Doorbell>,
    /// End the session of a guest that has not acted on a doorbell for SECONDS, at least 1 [default: never; a
    /// guest that computes or stands at a breakpoint is silent, too]
    #[arg(long, value_name = "SECONDS", help_heading = "Doorbell")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone_after: Option<Number>,

    /// Let the guest use a directory of this host, which it mounts by TAG. ',ro' makes it read-only; with
    /// ',squash' every file appears to belong to whoever runs pmm (',squash=UID:GID': to that user and
    /// group); ',map=GUEST:HOST:COUNT' maps COUNT users and groups from GUEST on to those of this host from
    /// HOST on; ',fids=N' is the most fids of the guest, 64 to 1M [default: 64K]. May repeat
    #[arg(long = "9p", value_name = "DIR,TAG[,ro][,squash|,map][,fids]", action = clap::ArgAction::Append, help_heading = "Devices")]
    #[serde(rename = "9p", skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<SharedDirectory>,
    /// Largest size of the queue of each directory; a power of two from 2 to 1024 [default: 16]
    #[arg(long = "9p-queue", value_name = "N", help_heading = "Devices")]
    #[serde(rename = "9p-queue", skip_serializing_if = "Option::is_none")]
    pub directory_queue: Option<Number>,
    /// Bytes of the region in which the driver of each directory keeps messages [default: 256K]
    #[arg(long = "9p-pool", value_name = "N", help_heading = "Devices")]
    #[serde(rename = "9p-pool", skip_serializing_if = "Option::is_none")]
    pub directory_pool: Option<Number>,

    /// Offer sockets: the guest's address is CID, from 3 up; clients of this host connect to the UNIX socket PATH and
    /// write 'CONNECT PORT', calls of the guest to port P go to PATH_P [default path: printed at the start]
    #[arg(long, value_name = "CID[,path=PATH]", help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockAddress>,
    /// Largest size of each of its two queues of packets; a power of two from 2 to 1024 [default: 32]
    #[arg(long, value_name = "N", help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_queue: Option<Number>,
    /// Bytes of the region in which its driver keeps packets [default: 144K]
    #[arg(long, value_name = "N", help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_pool: Option<Number>,

    /// Offer an entropy device
    #[arg(long, help_heading = "Devices")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rng: bool,
    /// Largest size of its queue; a power of two from 2 to 1024 [default: 8]
    #[arg(long, value_name = "N", help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rng_queue: Option<Number>,
    /// Bytes of the region in which its driver keeps buffers [default: 2K]
    #[arg(long, value_name = "N", help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rng_pool: Option<Number>,
    /// Offer a network card, by where its cable leads: mode=user[,forward=[ADDRESS/]HOST:GUEST][,passt=PATH]
    /// to the host's network through passt, without rights; mode=tap[,tapif=NAME] to an interface of this
    /// host; mode=socket,stream=unix:PATH|tcp:ADDRESS:PORT[,listen] or
    /// mode=socket,dgram=unix:PATH,peer=unix:PATH (or udp:ADDRESS:PORT for both) to another pmm or a QEMU;
    /// mode=none nowhere. With [,mac=ADDRESS][,mtu=BYTES]; may repeat [alone: mode=user]
    #[arg(long, value_name = "CABLE", num_args = 0..=1, default_missing_value = "mode=user", action = clap::ArgAction::Append, help_heading = "Devices")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<Network>,
    /// Largest size of each of its two queues; a power of two from 2 to 1024 [default: 64]
    #[arg(long, value_name = "N", help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_queue: Option<Number>,
    /// Bytes of the region in which its driver keeps frames [default: 256K]
    #[arg(long, value_name = "N", help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_pool: Option<Number>,
    /// Note every frame of the card in this file (pcapng); of several cards, in FILE, FILE.1, FILE.2 ... With max=SIZE
    /// (at least 256K) a full file becomes FILE.old, and a new one begins
    #[arg(long, value_name = "FILE[,max=SIZE]", help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcap: Option<BoundedFile>,
    /// Offer a console that ends at: stdio (or virtio, the same; Ctrl-A x ends, Ctrl-A h helps), pty[:LINK]
    /// (a new pseudo-terminal), unix:PATH (a listening socket), file:PATH[,max=SIZE] (output is appended; a
    /// full file becomes PATH.old, SIZE is at least 256K)
    #[arg(long, value_name = "END", help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleEnd>,
    /// Largest size of each of its queues; a power of two from 2 to 1024 [default: 64]
    #[arg(long, value_name = "N", help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_queue: Option<Number>,
    /// Bytes of the region in which its driver keeps buffers [default: 32K]
    #[arg(long, value_name = "N", help_heading = "Devices")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_pool: Option<Number>,
}

/// The physical machine monitor of hypervisor-less virtio: offers virtio devices to a guest that shares memory with
/// this host and runs without a hypervisor.
#[derive(Parser, Debug)]
#[command(
    name = "pmm",
    version,
    args_override_self = true,
    subcommand_required = true,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Exit codes: 0 all was well; 2 the command is wrong, nothing was touched; 1 the machine or a \
                        peer refused."
)]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand, Debug)]
enum Sub {
    /// Serve a guest (with --config: several) until it is told to end
    #[command(after_help = RUN_HELP)]
    Run(Box<RunArgs>),
    /// Show the links, devices, queues and counters of a running pmm, or the clients of a serve-9p
    Status(StatusRequest),
    /// List each running pmm and serve-9p of this user: process, name, what it serves, control socket
    List(ListRequest),
    /// Serve a directory to any client of 9P2000.L until it is told to end
    #[command(name = "serve-9p", after_help = SHARE_HELP)]
    Share(ShareArgs),
}

const RUN_HELP: &str = "\
Numbers are decimal or 0x, with K, M or G. A flag may repeat: the last one wins.
Without --shmem-file, --shmem-posix and --shmem-fd the region is a new memfd, whose path in /proc is printed.

Example, with an emulated board whose memory is the file /tmp/ddr and whose UART is the socket /tmp/bell:
  pmm run --pmm --no-dtb --shmem-addr 0x10000000 --shmem-size 16M --shmem-file /tmp/ddr \\
      --shmem-offset 0x10000000 --doorbell unix-stream:/tmp/bell --rng --console stdio";

#[derive(Args, Debug)]
struct RunArgs {
    #[command(flatten)]
    link: LinkOptions,

    /// Read the links from this TOML file instead: a [[link]] each, whose keys are the options' names
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    config: Option<PathBuf>,
    /// Where 'pmm status' asks [default: in $XDG_RUNTIME_DIR/pmm, /run/user/UID/pmm (root: /run/pmm) or
    /// /tmp/pmm-UID, printed at the start]
    #[arg(long, value_name = "PATH", help_heading = "Process")]
    control: Option<PathBuf>,
    /// Give up when the peer of a doorbell is absent for so long [default: wait for ever]
    #[arg(long, value_name = "SECONDS", help_heading = "Process")]
    wait: Option<Number>,
    /// Log at level debug, as --log-level debug does
    #[arg(long, action = clap::ArgAction::Count, help_heading = "Process")]
    debug: u8,
    /// The least severe message that is logged [default: info]
    #[arg(long, value_name = "LEVEL", value_enum, help_heading = "Process")]
    log_level: Option<LogLevel>,
    /// Log one JSON object a line
    #[arg(long, help_heading = "Process")]
    log_json: bool,
    /// Print the links as a configuration file and end; nothing is opened
    #[arg(long, help_heading = "Process")]
    print_config: bool,

    #[command(flatten)]
    without_effect: WithoutEffect,
    #[command(flatten)]
    later: Later,
}

/// Reads a command line; the first of `args` is the program's name, as in [`std::env::args_os`].
///
/// # Errors
///
/// [`Failure::Misuse`] for anything that is wrong with the command or the configuration, all of it, in a line each that
/// names option, value and way out; [`Failure::Refused`] if the configuration file cannot be read and nothing else is
/// wrong. Nothing else was touched then.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Failure> {
    let args: Vec<OsString> = args.into_iter().collect();
    let mut cli = Cli::command();
    cli.build();
    let command = args.get(1).and_then(|word| cli.find_subcommand(word));
    let (prefix, rest) = args.split_at(if command.is_some() { 2 } else { args.len() });
    let (mut refusals, mut given) = (Refusals::default(), Given::default());
    let mut good = prefix.to_vec();
    for (at, typed) in command.into_iter().flat_map(|command| take_apart(command, rest)).enumerate() {
        let option = typed.option.as_deref().unwrap_or_default();
        given.note(option, at);
        let mut wrong = typed.slip;
        if typed.certain {
            // What is missing beside it is asked for when all is there.
            let alone = prefix.iter().chain(&typed.words);
            match Cli::command().try_get_matches_from(alone) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {}
                Err(error) => match explain(&error) {
                    Said::Print(text) => return Ok(Command::Print(text)),
                    Said::Wrong(text) => {
                        wrong.iter().for_each(|slip| refusals.add(at, slip));
                        wrong = Some(text);
                    }
                },
            }
        }
        match wrong {
            None => good.extend(typed.words),
            Some(text) => {
                refusals.add(at, text);
                given.refuse(option);
            }
        }
    }
    let parsed = Cli::command().try_get_matches_from(good).and_then(|found| Cli::from_arg_matches(&found));
    match parsed.map(|cli| cli.command) {
        Ok(Sub::Status(request)) => status(request, &given, refusals),
        Ok(Sub::List(request)) => match refusals.failure() {
            Some(failure) => Err(failure),
            None => Ok(Command::List(request)),
        },
        Ok(Sub::Share(args)) => args.check(&given, refusals).map(Command::Share),
        Ok(Sub::Run(args)) => run(*args, given, refusals),
        Err(error) => match explain(&error) {
            Said::Print(text) => Ok(Command::Print(text)),
            Said::Wrong(text) => {
                let told = match error.get(ContextKind::InvalidArg) {
                    Some(ContextValue::Strings(all))
                        if error.kind() == ErrorKind::MissingRequiredArgument =>
                    {
                        missing(all, &given)
                    }
                    _ => Some(text.clone()),
                };
                told.iter().for_each(|told| refusals.add(BEHIND_ALL, told));
                Err(refusals.failure().unwrap_or(Failure::Misuse(text)))
            }
        },
    }
}

/// Says what is missing, as clap tells, but for what was there and refused; `None` if nothing else is.
fn missing(all: &[String], given: &Given) -> Option<String> {
    let name =
        |arg: &str| arg.split([' ', '=']).next().unwrap_or_default().trim_start_matches('-').to_string();
    let left: Vec<&str> =
        all.iter().map(String::as_str).filter(|arg| !given.is_refused(&name(arg))).collect();
    let text = || format!("{}: must be given; '--help' behind the command explains it", left.join(", "));
    (!left.is_empty()).then(text)
}

fn status(request: StatusRequest, given: &Given, mut refusals: Refusals) -> Result<Command, Failure> {
    if let Some(seconds) = request.timeout
        && request.wait_for.is_empty()
        && !given.is_refused("wait-for")
    {
        let text =
            format!("--timeout {seconds}: bounds --wait-for, which is not there; add it, or leave it out");
        refusals.add(given.place("timeout"), text);
    }
    if request.follow && !request.wait_for.is_empty() {
        let text = "--follow and --wait-for: one never ends and the other does; choose one";
        refusals.add(given.place("follow"), text);
    }
    match refusals.failure() {
        Some(failure) => Err(failure),
        None => Ok(Command::Status(request)),
    }
}

fn run(args: RunArgs, given: Given, mut refusals: Refusals) -> Result<Command, Failure> {
    args.later.refuse(&given, &mut refusals);
    let mut notes = args.without_effect.notes(&given, &mut refusals);
    let control_at = given.place("control");
    let config_is_refused = given.is_refused("config");
    let (config, of_links, source) = match &args.config {
        None => (Config { link: vec![args.link], ..Config::default() }, vec![given], None),
        Some(path) => {
            if let Some(options) = given_of(&args.link) {
                let text = format!(
                    "{options} and --config {}: the links come from the file; write that in its [[link]]",
                    path.display()
                );
                refusals.add(given.place("config"), text);
            }
            match read_config(path, &given, &mut refusals)? {
                Some((config, of_links)) => (config, of_links, Some(path.as_path())),
                None => return Err(refusals.failure().unwrap_or_else(|| unreadable(path, "it is no TOML"))),
            }
        }
    };
    let mut config = config;
    // The process's own options: what the command line says goes before the file.
    config.control = args.control.or(config.control);
    config.wait = args.wait.or(config.wait);
    config.log_level = args.log_level.or((args.debug > 0).then_some(LogLevel::Debug)).or(config.log_level);
    config.log_json |= args.log_json;

    let links = match config_is_refused {
        true => Vec::new(),
        false => describe::describe(&config.link, &of_links, source, &mut notes, &mut refusals),
    };
    if let Some(seconds) = config.wait
        && links.iter().all(|link| matches!(link.doorbell, Doorbell::Poll { .. }))
    {
        notes.push(format!(
            "--wait {seconds}: has no effect here, because no doorbell has a peer that could be absent"
        ));
    }
    let control = config.control.clone();
    if let Some(path) = &control
        && let Err(bad) = super::value::socket_path(&path.to_string_lossy())
    {
        refusals.add(control_at, format!("--control {}: {bad}", path.display()));
    }
    describe::check_together(&links, control.as_deref(), &mut refusals);
    if let Some(failure) = refusals.failure() {
        return Err(failure);
    }
    if args.print_config {
        let text =
            toml::to_string(&config).map_err(|error| Failure::Misuse(format!("--print-config: {error}")))?;
        return Ok(Command::Print(text));
    }
    Ok(Command::Run(Run {
        links,
        control,
        config: args.config,
        wait: config.wait.map(|Number(seconds)| Duration::from_secs(seconds.min(u64::from(u32::MAX)))),
        log: LogOptions { level: config.log_level.unwrap_or_default(), json: config.log_json },
        notes,
    }))
}

/// Lists the options of a link that were given, by their names; `None` if none was.
fn given_of(link: &LinkOptions) -> Option<String> {
    if *link == LinkOptions::default() {
        return None;
    }
    // Written as TOML, what was given is what is there; `no-dtb` is there always.
    let text = toml::to_string(link).unwrap_or_default();
    let given =
        text.lines().filter(|line| *line != "no-dtb = false").filter_map(|line| line.split_once(" = "));
    let names: Vec<String> = given.map(|(name, _)| format!("--{name}")).collect();
    Some(names.join(", "))
}

/// Reads the file. `None` if it makes no sense, which is refused then.
fn read_config(
    path: &Path,
    given: &Given,
    refusals: &mut Refusals,
) -> Result<Option<(Config, Vec<Given>)>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let failure = unreadable(path, &error.to_string());
            // With something wrong beside it, this is one more thing to mend.
            return match std::mem::take(refusals).failure() {
                None => Err(failure),
                Some(wrong) => Err(Failure::Misuse(format!("{wrong}\n{failure}"))),
            };
        }
    };
    // The file's lines come behind the words of the command line.
    let read = file::read(&text, path, FILE, refusals);
    if read.as_ref().is_some_and(|(config, _)| config.link.is_empty()) {
        let text = format!("--config {}: describes no link; add a [[link]]", path.display());
        refusals.add(given.place("config"), text);
    }
    Ok(read)
}

fn unreadable(path: &Path, why: &str) -> Failure {
    let text = format!("--config {}: cannot be read ({why}); name a readable file", path.display());
    Failure::Refused(crate::observe::printable(&text))
}

/// What clap says, for whoever reads it.
enum Said {
    /// It was asked for.
    Print(String),
    /// What is wrong.
    Wrong(String),
}

/// clap's errors are paragraphs; a script and a log want one line that names option, value and way out.
fn explain(error: &clap::Error) -> Said {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(all)) => all.join(", "),
        Some(ContextValue::StyledStr(text)) => text.to_string(),
        _ => String::new(),
    };
    let (arg, value) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue));
    // clap names an option with its value's placeholder; the reader knows the option without it.
    let option = arg.split([' ', '=']).next().unwrap_or_default();
    Said::Wrong(match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return Said::Print(error.render().to_string()),
        // What begins with a dash was recognised, or told of, before.
        ErrorKind::UnknownArgument => {
            let kind = if arg.starts_with('-') { "unknown option" } else { "not an option" };
            format!("{arg}: {kind}; '--help' lists the options")
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            format!("{option}: its value is missing; write '{arg}'")
        }
        ErrorKind::InvalidValue => {
            format!("{option} {value}: unknown value; write one of {}", text(ContextKind::ValidValue))
        }
        ErrorKind::ValueValidation => {
            let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("{option} {value}: {why}")
        }
        ErrorKind::TooManyValues | ErrorKind::WrongNumberOfValues => {
            format!("{option} {value}: takes no value; leave it out")
        }
        ErrorKind::InvalidSubcommand => {
            let word = text(ContextKind::InvalidSubcommand);
            format!("{word}: unknown command; write 'pmm run', 'pmm status', 'pmm list' or 'pmm serve-9p'")
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "a command is missing; write 'pmm run', 'pmm status', 'pmm list' or 'pmm serve-9p' ('pmm --help' explains them)".into()
        }
        _ => error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_string(),
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
