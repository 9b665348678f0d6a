//! The same with a link, a console and entropy: attach, open, poll, read, write, fill and the deadline, each once.
#![no_std]
#![no_main]

use core::hint::black_box;
use core::ptr::NonNull;

use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::rng::{Rng, RngStorage};
use hvl_frontend::{Board, Clock, Doorbell, Instant, Link, LinkStorage};
use hvl_shared_abi::{Attribute, Region, ShmRegion};
use r5_board::{SHARED_BASE, SHARED_SIZE, boot, doorbell, sleep, time};
use r5_size as _;
use static_cell::ConstStaticCell;

#[derive(Clone, Copy)]
struct R5;

static REGION: Region = {
    let base = NonNull::new(SHARED_BASE as *mut u8).expect("the shared memory does not lie at address 0");
    // SAFETY: 1. aligned and mapped by the MPU for ever; 2. no linker section lies there; 3. it is Normal non-cacheable.
    unsafe { Region::new(base, SHARED_SIZE as u32, Attribute::NonCacheable) }
};

impl Doorbell for R5 {
    fn ring(&self) {
        doorbell::ring();
    }
}

impl Clock for R5 {
    fn now(&self) -> Instant {
        Instant::from_micros(time::now())
    }
}

impl Board for R5 {
    type Mem = Region;
    fn mem(&self) -> &Region {
        &REGION
    }
    fn region(&self) -> ShmRegion {
        ShmRegion { base: SHARED_BASE as u64, len: SHARED_SIZE as u32 }
    }
}

static LINK: LinkStorage<'static> = LinkStorage::NEW;
static STORAGE: ConstStaticCell<(ConsoleStorage, RngStorage)> =
    ConstStaticCell::new((ConsoleStorage::NEW, RngStorage::NEW));

#[r5_board::entry]
fn main() -> ! {
    r5_board::start(|| LINK.rang());
    let Ok(link) = Link::attach(&LINK, R5) else { boot::halt() };
    let (console, rng) = STORAGE.take();
    let Ok(mut console) = Console::open(&link, console, Options::default()) else { boot::halt() };
    let Ok(mut rng) = Rng::open(&link, rng) else { boot::halt() };
    loop {
        link.poll();
        let mut bytes = [0u8; 64];
        black_box(&mut bytes);
        let _ = black_box(rng.fill(&mut bytes));
        if let Ok(count) = console.read(&mut bytes) {
            let _ = black_box(console.write(bytes.get(..count).unwrap_or(&[])));
        }
        sleep::until_rung(link.next_deadline().map(Instant::micros));
    }
}
