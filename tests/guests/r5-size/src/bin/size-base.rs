//! The board with everything of it that a link uses, and no link; and one copy of a length known only at run time, since
//! any firmware has the compiler's `memcpy` (340 bytes) and it is not the link's price. Time as 64 bits is the board's.
#![no_std]
#![no_main]

use core::hint::black_box;
use core::sync::atomic::{AtomicU32, Ordering};
use r5_board::{doorbell, sleep, time};
use r5_size as _;

static RINGS: AtomicU32 = AtomicU32::new(0);

#[r5_board::entry]
fn main() -> ! {
    r5_board::start(|| RINGS.store(1, Ordering::Relaxed));
    loop {
        let mut bytes = [0u8; 64];
        black_box(&mut bytes);
        let mut copy = [0u8; 64];
        let len = black_box(7usize);
        if let (Some(to), Some(from)) = (copy.get_mut(..len), bytes.get(..len)) {
            to.copy_from_slice(from);
        }
        black_box(&mut copy);
        doorbell::ring();
        sleep::until_rung(Some(time::now().saturating_add(1_000_000)));
    }
}
