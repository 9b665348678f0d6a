//! The board as the frontend and the shell see it: one type, [`R5`], for programs with a main loop, and with the feature
//! `embassy` an `executor` for programs of tasks.
#![no_std]

#[cfg(feature = "embassy")]
pub mod executor;

use core::fmt;
use core::ptr::NonNull;

use hvl_frontend::{Board, Clock, Doorbell, Instant, Wait};
use hvl_guest_shell::Machine;
use hvl_shared_abi::{Attribute, Region, ShmRegion};
use r5_board::{SHARED_BASE, SHARED_SIZE, doorbell, sleep, time};

/// The one and only; it holds nothing.
#[derive(Clone, Copy, Debug)]
pub struct R5;

/// The shared memory. The MPU has it as Normal and not cacheable: see `r5_board::boot`.
static REGION: Region = {
    let base = NonNull::new(SHARED_BASE as *mut u8).expect("the shared memory does not lie at address 0");
    // SAFETY: 1. aligned to its size, and mapped by the MPU before `main` does anything else, for ever; 2. no linker
    // section lies there, so no reference can; 3. the MPU makes it Normal non-cacheable.
    unsafe { Region::new(base, SHARED_SIZE as u32, Attribute::NonCacheable) }
};

impl Doorbell for R5 {
    fn ring(&self) {
        doorbell::ring();
    }
}

impl Clock for R5 {
    fn now(&self) -> Instant {
        // 0 means "no clock" to the frontend; the first microsecond is nobody's loss.
        Instant::from_micros(time::now().max(1))
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

impl Machine for R5 {
    const NAME: &'static str = "r5";

    fn processor(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let midr = r5_board::midr();
        // Implementer and part number, without variant and revision.
        let name = if midr & 0xff00_fff0 == 0x4100_c150 { "Cortex-R5" } else { "unknown" };
        write!(out, "{name}, MIDR {midr:#010x}")
    }

    fn wake_ups(&self) -> Option<u32> {
        Some(sleep::wake_ups())
    }
}
