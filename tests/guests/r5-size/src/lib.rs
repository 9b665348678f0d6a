//! What the images have: the board, as a link needs it, and a panic handler without text. `cargo xtask size` subtracts
//! one image from another.
#![no_std]

use core::panic::PanicInfo;
use core::ptr::NonNull;

use hvl_frontend::{Board, Clock, Doorbell, Instant, Wait};
use hvl_shared_abi::{Attribute, Region, ShmRegion};
use r5_board::{SHARED_BASE, SHARED_SIZE, doorbell, sleep, time};

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    r5_board::boot::halt()
}

/// The board.
#[derive(Clone, Copy)]
pub struct R5;

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

impl Wait for R5 {
    fn wait_for_doorbell(&self, deadline: Option<Instant>) {
        sleep::until_rung(deadline.map(Instant::micros));
    }
}
