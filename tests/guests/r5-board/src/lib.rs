//! Board support for the Cortex-R5 of an emulated ZCU102: what a firmware needs before it can drive a link.
//!
//! ```ignore
//! #[entry]
//! fn main() -> ! {
//!     r5_board::start(|| frontend_was_rung());   // MPU, interrupts, doorbell, clock
//!     loop {
//!         // ... look at the shared memory ...
//!         r5_board::sleep::until_rung(None);     // WFI
//!     }
//! }
//! ```
//!
//! The hardware exists once, so this is a set of functions and not an object that would have to be handed around. All
//! of it is for one core; nothing here may be called from the second R5.
//!
//! | what | where | module |
//! |---|---|---|
//! | start-up, MPU, warm restart, faults | address 0, `memory.x` | [`boot`] |
//! | doorbell, one byte is one ring | UART1, INTID 54 | [`doorbell`] |
//! | early log and last words | UART0 | [`mod@log`] |
//! | time, deadlines | cycle counter, RTC, TTC0 (INTID 68) | [`time`] |
//! | sleep | WFI | [`sleep`] |
#![no_std]

pub mod boot;
pub mod doorbell;
mod gic;
pub mod log;
pub mod sleep;
pub mod time;
mod uart;

pub use aarch32_rt::entry;

/// Physical address of the memory that is shared with the PMM. In the emulated machine DDR is a file, and this is also
/// the offset of the region in that file.
pub const SHARED_BASE: usize = 0x1000_0000;

/// Size of the shared memory in bytes. A power of two that divides [`SHARED_BASE`]: it is one region of the MPU.
pub const SHARED_SIZE: usize = 0x10_0000;

/// Initialises the board and enables interrupts. `on_doorbell` runs in the interrupt handler whenever the other side
/// rang; it should do no more than note the fact (an atomic store, waking an executor).
///
/// Called once, first thing in `main`. Rings that arrived before are not lost: the UART holds them and the handler
/// runs as soon as interrupts are on.
pub fn start(on_doorbell: fn()) {
    boot::protect_memory();
    log::init();
    time::init();
    doorbell::init(on_doorbell);
    gic::init(&[doorbell::INTID, time::ALARM_INTID]);
    // SAFETY: not within a critical section, and the handler's state was initialised above.
    unsafe { aarch32_cpu::interrupt::enable() };
}

/// The processor's Main ID Register; 0x411fc1xx is a Cortex-R5.
pub fn midr() -> u32 {
    aarch32_cpu::register::Midr::read().raw_value()
}
