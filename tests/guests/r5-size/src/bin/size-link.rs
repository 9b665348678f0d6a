//! The same with a link, a console and entropy: attach, open, poll, read, write, fill and the deadline, each once.
#![no_std]
#![no_main]

use core::hint::black_box;

use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::rng::{Rng, RngStorage};
use hvl_frontend::{Instant, Link, LinkStorage};
use r5_board::{boot, sleep};
use r5_size::R5;
use static_cell::ConstStaticCell;

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
