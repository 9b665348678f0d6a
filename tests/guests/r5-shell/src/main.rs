//! The shell on the Cortex-R5, bare metal: console, entropy, files, a network and sockets through the link.
//!
//! With nothing to do it sleeps in WFI, without a timer. After a panic its last words lie in the region, where the PMM
//! finds them, and on UART0; then it restarts warm, like after `reboot`. A panic before the shell has run once would
//! only come again, so there it halts.
#![no_std]
#![no_main]

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::net::{self, Net, NetStorage};
use hvl_frontend::device::p9::{self, Files, FilesStorage};
use hvl_frontend::device::rng::{Rng, RngStorage};
use hvl_frontend::device::vsock::{Vsock, VsockStorage};
use hvl_frontend::{Clock, Link, LinkStorage, Wait};
use hvl_guest_shell::network::{self, Network};
use hvl_guest_shell::{Devices, Next, Shell, text::Text};
use r5_board::{boot, logln};
use r5_link::R5;
use static_cell::ConstStaticCell;

static LINK: LinkStorage<'static> = LinkStorage::NEW;
static CONSOLE: ConstStaticCell<ConsoleStorage> = ConstStaticCell::new(ConsoleStorage::NEW);
static RNG: ConstStaticCell<RngStorage> = ConstStaticCell::new(RngStorage::NEW);
static FILES: ConstStaticCell<FilesStorage> = ConstStaticCell::new(FilesStorage::NEW);
static NET: ConstStaticCell<NetStorage> = ConstStaticCell::new(NetStorage::NEW);
static VSOCK: ConstStaticCell<VsockStorage> = ConstStaticCell::new(VsockStorage::NEW);
static NETWORK: ConstStaticCell<network::Storage> = ConstStaticCell::new(network::Storage::NEW);
static BUFFERS: ConstStaticCell<network::Buffers> = ConstStaticCell::new(network::Buffers::NEW);
/// Data on its way.
static WORK: ConstStaticCell<[u8; 32 << 10]> = ConstStaticCell::new([0; 32 << 10]);
/// The shell has run.
static RUNS: AtomicBool = AtomicBool::new(false);

#[r5_board::entry]
fn main() -> ! {
    r5_board::start(|| LINK.rang());
    logln!("r5-shell: MIDR {:#010x}", r5_board::midr());
    match run() {
        Ok(never) => match never {},
        Err(error) => panic!("{error}"),
    }
}

fn run() -> Result<core::convert::Infallible, &'static str> {
    let link = Link::attach(&LINK, R5).map_err(|_| "the link cannot be attached")?;
    let mut console = Console::open(&link, CONSOLE.take(), Options::default()).map_err(|_| "no console")?;
    let mut rng = Rng::open(&link, RNG.take()).map_err(|_| "no entropy device")?;
    let files = Files::open(&link, FILES.take(), p9::Options::default());
    let mut files = files.map_err(|_| "no file device")?;
    let options = net::Options { checksums: true, ..net::Options::default() };
    let net = Net::open(&link, NET.take(), options).map_err(|_| "no network card")?;
    let mut network = Network::new(net, NETWORK.take(), BUFFERS.take());
    let mut vsock = Vsock::open(&link, VSOCK.take()).map_err(|_| "no sockets")?;
    let work = WORK.take();
    let mut shell = Shell::new::<R5>();
    loop {
        let now = R5.now();
        link.poll();
        let mut devices = Devices {
            console: &mut console,
            rng: &mut rng,
            files: &mut files,
            network: &mut network,
            vsock: &mut vsock,
            work,
        };
        let next = shell.run(&mut devices, now);
        RUNS.store(true, Ordering::Relaxed);
        let until = match next {
            Next::Again => continue,
            Next::Wait(until) => until,
            Next::Reboot => boot::reboot(),
            Next::Panic => panic!("asked to, by the command 'panic'"),
        };
        let deadline = [link.next_deadline(), until].into_iter().flatten().min();
        R5.wait_for_doorbell(deadline);
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    boot::report_panic(info);
    let mut words = Text::<256>::NEW;
    // Cut where the region has no room for more.
    let _ = write!(words, "{info}");
    LINK.leave_last_words(&R5, words.as_bytes());
    if RUNS.load(Ordering::Relaxed) { boot::reboot() } else { boot::halt() }
}
