//! The guests' shell as a process of this machine, at the other end of a file or memfd that a pmm serves: what
//! `cargo xtask demo --host` starts, and what tests kill and restart by the hundred.
//!
//! `reboot` restarts all of the frontend's state in the same process, as a warm restart of a board does; so does
//! `panic`, after its last words were left for the PMM. Memory and doorbell stay, as they do on a board.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::RawFd;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::net::{self, Net, NetStorage};
use hvl_frontend::device::p9::{self, Files, FilesStorage};
use hvl_frontend::device::rng::{Rng, RngStorage};
use hvl_frontend::device::vsock::{Vsock, VsockStorage};
use hvl_frontend::{Clock, Link, LinkStorage, Wait};
use hvl_guest_host::bell::{self, Bell};
use hvl_guest_host::board::Process;
use hvl_guest_host::memory;
use hvl_guest_shell::network::{self, Network};
use hvl_guest_shell::{Devices, Next, Shell};
use hvl_shared_abi::ShmRegion;

/// The guests' shell as a process, at the other end of a region that a pmm serves. Names are those of `pmm run`.
///
/// The pmm may be started before or after it, and restarted at any time.
#[derive(Parser, Debug)]
#[command(name = "host-shell")]
struct Cli {
    /// The region is in this file; made if it does not exist
    #[arg(long, value_name = "PATH", required_unless_present = "shmem_fd")]
    shmem_file: Option<PathBuf>,
    /// The region is behind this open file descriptor, inherited from the parent
    #[arg(long, value_name = "N", conflicts_with = "shmem_file")]
    shmem_fd: Option<RawFd>,
    /// Where in the file the region starts; a multiple of 4096
    #[arg(long, value_name = "N", default_value = "0", value_parser = pages)]
    shmem_offset: u64,
    /// Size of the region in bytes; a multiple of 4096
    #[arg(long, value_name = "N", default_value = "1M", value_parser = pages)]
    shmem_size: u64,
    /// What both sides call the region's address
    #[arg(long, value_name = "A", default_value = "0x10000000", value_parser = number)]
    shmem_addr: u64,
    /// How the two sides wake each other: unix-stream:PATH (unix-stream:PATH,listen to be the side that waits for the
    /// other) or unix-dgram:bind=PATH,peer=PATH
    #[arg(long, value_name = "DOORBELL")]
    doorbell: bell::Address,
}

/// A number, decimal or 0x, with K, M or G for multiples of 1024.
fn number(text: &str) -> Result<u64, String> {
    let units = [('K', 10), ('M', 20), ('G', 30)];
    let unit = units.iter().find(|(unit, _)| text.ends_with([*unit, unit.to_ascii_lowercase()]));
    let (digits, shift) = match unit {
        Some((unit, shift)) => (text.trim_end_matches([*unit, unit.to_ascii_lowercase()]), *shift),
        None => (text, 0),
    };
    let value = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    let bytes = value.ok().and_then(|value| value.checked_mul(1 << shift));
    bytes.ok_or_else(|| "no number; write it decimal or 0x, with K, M or G".into())
}

/// A number of bytes in whole pages.
fn pages(text: &str) -> Result<u64, String> {
    let bytes = number(text)?;
    if bytes.is_multiple_of(4096) { Ok(bytes) } else { Err("no multiple of 4096".into()) }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("host-shell: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<std::convert::Infallible> {
    let len = u32::try_from(cli.shmem_size).ok().filter(|len| *len != 0);
    let Some(len) = len else { bail!("--shmem-size {}: write a size from 4K to below 4G", cli.shmem_size) };
    let region = memory::map(&file(cli)?, cli.shmem_offset, len)?;
    let place = ShmRegion { base: cli.shmem_addr, len };
    let process = Process::new(region, place, Bell::open(&cli.doorbell)?);
    panic::set_hook(Box::new(|info| {
        eprintln!("host-shell: {info}");
        LAST_WORDS.set(info.to_string());
    }));
    // Each round is one start of the guest.
    loop {
        let mut devices = Storage {
            console: ConsoleStorage::NEW,
            rng: RngStorage::NEW,
            files: FilesStorage::NEW,
            net: NetStorage::NEW,
            vsock: VsockStorage::NEW,
        };
        let storage = LinkStorage::NEW;
        match start(&storage, &mut devices, &process) {
            Ok(ended) => ended?,
            Err(_) => storage.leave_last_words(&process, LAST_WORDS.take().as_bytes()),
        }
    }
}

/// What the devices of one start keep.
struct Storage {
    console: ConsoleStorage,
    rng: RngStorage,
    files: FilesStorage,
    net: NetStorage,
    vsock: VsockStorage,
}

/// [`serve`], with a panic as its outer error.
fn start<'s>(
    storage: &'s LinkStorage<'s>,
    devices: &'s mut Storage,
    process: &Process,
) -> std::thread::Result<Result<()>> {
    panic::catch_unwind(AssertUnwindSafe(move || {
        // Moved, not borrowed anew: they are to live longer than this call.
        let devices = devices;
        serve(storage, devices, process)
    }))
}

thread_local! {
    /// What the panic hook was told.
    static LAST_WORDS: RefCell<String> = const { RefCell::new(String::new()) };
}

fn file(cli: &Cli) -> Result<File> {
    match (&cli.shmem_file, cli.shmem_fd) {
        (Some(path), _) => {
            let options = File::options().read(true).write(true).create(true).truncate(false).open(path);
            let file =
                options.with_context(|| format!("--shmem-file {}: cannot be opened", path.display()))?;
            let end = cli.shmem_offset.saturating_add(cli.shmem_size);
            if file.metadata()?.len() < end {
                file.set_len(end).with_context(|| {
                    format!("--shmem-file {}: cannot be made {end} bytes long", path.display())
                })?;
            }
            Ok(file)
        }
        (None, Some(fd)) => {
            // Opened anew, the descriptor's own flags do not matter.
            let file = File::options().read(true).write(true).open(format!("/proc/self/fd/{fd}"));
            let file = file.with_context(|| format!("--shmem-fd {fd}: cannot be opened"))?;
            if file.metadata()?.len() < cli.shmem_offset.saturating_add(cli.shmem_size) {
                bail!("--shmem-fd {fd}: is shorter than --shmem-offset and --shmem-size say");
            }
            Ok(file)
        }
        (None, None) => bail!("--shmem-file or --shmem-fd: one of them says where the region is"),
    }
}

/// One start, until the shell asks for the next.
fn serve<'s>(storage: &'s LinkStorage<'s>, devices: &'s mut Storage, process: &Process) -> Result<()> {
    let link = Link::attach(storage, process.clone())?;
    let mut console = Console::open(&link, &mut devices.console, Options::default())?;
    let mut rng = Rng::open(&link, &mut devices.rng)?;
    let mut files = Files::open(&link, &mut devices.files, p9::Options::default())?;
    let net = Net::open(&link, &mut devices.net, net::Options { checksums: true, ..Default::default() })?;
    // Static on a board; here each start has its own, which is never freed: 100 KiB at the most.
    let mut network = Network::new(
        net,
        Box::leak(Box::new(network::Storage::NEW)),
        Box::leak(Box::new(network::Buffers::NEW)),
    );
    let mut vsock = Vsock::open(&link, &mut devices.vsock)?;
    let mut work = vec![0; 32 << 10];
    let mut shell = Shell::new::<Process>();
    loop {
        let now = process.now();
        link.poll();
        let until = match shell.run(
            &mut Devices {
                console: &mut console,
                rng: &mut rng,
                files: &mut files,
                network: &mut network,
                vsock: &mut vsock,
                work: &mut work,
            },
            now,
        ) {
            Next::Again => continue,
            Next::Wait(until) => until,
            Next::Reboot => return Ok(()),
            Next::Panic => panic!("asked to, by the command 'panic'"),
        };
        let deadline = [link.next_deadline(), until].into_iter().flatten().min();
        process.wait_for_doorbell(deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (text, value) in [("0", 0), ("0x1000", 4096), ("1M", 1 << 20), ("2k", 2048), ("1G", 1 << 30)] {
            assert_eq!(number(text), Ok(value), "{text}");
        }
        for text in ["", "K", "-1", "1MB", "0x", "99999999999999999999", "18446744073709551615K"] {
            assert!(number(text).is_err(), "{text}");
        }
        assert_eq!((pages("8K"), pages("5").is_err()), (Ok(8192), true));
    }

    #[test]
    fn the_command_line_stands() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
