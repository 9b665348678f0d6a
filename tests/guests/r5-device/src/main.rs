//! The link the other way round: this Cortex-R5 is the PMM, and offers a console and entropy to whoever drives them, such
//! as host-shell on the Linux side. It is the PMM's own state machine with its own devices, linked with no std and no
//! heap, as an RTOS would use it.
//!
//! At the console of each guest sits a script that types a command at each prompt of host-shell, three in all; what the
//! guest prints goes to the early log, line by line. The entropy is none: it counts, so that what the guest prints can be told from anything else.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

use hvl_frontend::Board;
use hvl_pmm::device::Device;
use hvl_pmm::device::console::Console;
use hvl_pmm::device::rng::Rng;
use hvl_pmm::host::{ByteEnd, EndError, Entropy};
use hvl_pmm::link::{Link, LinkError, LinkPlan};
use hvl_shared_abi::header::{MAGIC, reg};
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::{DeviceSpec, Layout, Mem, Region, Window};
use r5_board::{SHARED_BASE, SHARED_SIZE, boot, doorbell, logln, sleep, time};
use r5_link::R5;
use static_cell::ConstStaticCell;

/// Typed at each guest, one command a prompt.
const SCRIPT: [&[u8]; 3] = [b"about\r", b"rand 32\r", b"echo hello\r"];
const PROMPT: &[u8] = b"host> ";
const GREETING: &[u8] = b"shell on ";

/// Queue records of the two devices, as many as their queues have entries.
const RNG_SLOTS: usize = DeviceSpec::RNG.queues[0] as usize;
const CONSOLE_SLOTS: usize = DeviceSpec::CONSOLE.queues[0] as usize + DeviceSpec::CONSOLE.queues[1] as usize;

static RNG: ConstStaticCell<Rng<Counter>> = ConstStaticCell::new(Rng::new(Counter(0)));
static CONSOLE: ConstStaticCell<Console<Typist>> = ConstStaticCell::new(Console::new(Typist::NEW));
static RNG_RECORDS: ConstStaticCell<[DeviceSlot; RNG_SLOTS]> =
    ConstStaticCell::new([DeviceSlot::NEW; RNG_SLOTS]);
static CONSOLE_RECORDS: ConstStaticCell<[DeviceSlot; CONSOLE_SLOTS]> =
    ConstStaticCell::new([DeviceSlot::NEW; CONSOLE_SLOTS]);

#[r5_board::entry]
fn main() -> ! {
    r5_board::start(|| ());
    logln!("r5-device: MIDR {:#010x}", r5_board::midr());
    match serve() {
        Ok(never) => match never {},
        Err(error) => panic!("{error}"),
    }
}

fn serve() -> Result<core::convert::Infallible, LinkError> {
    let region = *R5.mem();
    prepare(&region);
    let layout = Layout::place(&[DeviceSpec::RNG, DeviceSpec::CONSOLE], region.len());
    let layout = layout.map_err(|_| LinkError::Region)?;
    // The UART drops rings while nobody is connected.
    let plan = LinkPlan { layout, base: SHARED_BASE as u64, doorbell_can_lose: true, gone_after: None };
    let rng: &mut (dyn Device<Region> + Send) = RNG.take();
    let console: &mut (dyn Device<Region> + Send) = CONSOLE.take();
    let members = [(rng, &mut RNG_RECORDS.take()[..]), (console, &mut CONSOLE_RECORDS.take()[..])];
    let mut link = Link::publish(region, plan, members, None, None)?;
    doorbell::ring();
    loop {
        let service = link.service(time::now());
        if service.ring {
            doorbell::ring();
        }
        if !service.again {
            sleep::until_rung(Some(service.deadline));
        }
    }
}

/// Zeroes memory that holds no header: after power-on it may hold anything.
fn prepare(region: &Region) {
    if region.read32(Window::LINK.at(reg::MAGIC)) != MAGIC {
        (0..SHARED_SIZE as u32).step_by(4).for_each(|at| region.write32(at, 0));
    }
}

/// Bytes that count up from 0.
struct Counter(u8);

impl Entropy for Counter {
    fn fill(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        for byte in into.iter_mut() {
            *byte = self.0;
            self.0 = self.0.wrapping_add(1);
        }
        Ok(into.len())
    }
}

/// Who sits at the console.
struct Typist {
    /// The next command, and what is left of the present one.
    next: usize,
    keys: &'static [u8],
    /// The present line of the guest, and how much of it there is.
    line: [u8; 120],
    len: usize,
}

impl Typist {
    const NEW: Typist = Typist { next: 0, keys: &[], line: [0; 120], len: 0 };

    fn line(&self) -> &[u8] {
        self.line.get(..self.len).unwrap_or(&[])
    }

    fn end_of_line(&mut self) {
        logln!("guest: {}", self.line().escape_ascii());
        // A guest that greets has started; the prompt of the one before it may stand in front.
        if self.line().windows(GREETING.len()).any(|text| text == GREETING) {
            self.next = 0;
        }
        self.len = 0;
    }
}

impl ByteEnd for Typist {
    fn size(&self) -> Option<(u16, u16)> {
        Some((80, 24))
    }
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_of_line();
            } else if let Some(place) = self.line.get_mut(self.len) {
                // What does not fit into a line of the log is cut.
                *place = byte;
                self.len = self.len.saturating_add(1);
            }
            if self.line() == PROMPT
                && let Some(command) = SCRIPT.get(self.next)
            {
                (self.keys, self.next) = (command, self.next.saturating_add(1));
            }
        }
        Ok(bytes.len())
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        let (now, rest) = self.keys.split_at_checked(into.len()).unwrap_or((self.keys, &[]));
        let Some(into) = into.get_mut(..now.len()).filter(|into| !into.is_empty()) else {
            return Err(EndError::WouldBlock);
        };
        into.copy_from_slice(now);
        self.keys = rest;
        Ok(now.len())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    boot::report_panic(info);
    boot::halt()
}
