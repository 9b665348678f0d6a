//! The doorbell: UART1, whose other end is a socket of the PMM. A byte is a ring; its value means nothing.
//!
//! Rings merge (several bytes, one interrupt), may be delayed, and are dropped while nobody is connected. That is all a
//! doorbell has to be: state lies in the shared memory.

use core::cell::Cell;
use critical_section::Mutex;

use crate::{sleep, uart::Uart};

/// UART1, SPI 22.
pub(crate) const INTID: u32 = 54;

// SAFETY: UART1 of the ZynqMP, used by this file only.
const UART: Uart = unsafe { Uart::at(0xff01_0000) };

static ON_DOORBELL: Mutex<Cell<fn()>> = Mutex::new(Cell::new(|| ()));

pub(crate) fn init(on_doorbell: fn()) {
    critical_section::with(|cs| ON_DOORBELL.borrow(cs).set(on_doorbell));
    UART.enable();
    UART.interrupt_on_receive();
}

/// Rings the other side. Everything stored before is visible to it when it hears the ring. Never blocks: when the FIFO
/// is full, rings that nobody took are on their way already and this one merges with them.
pub fn ring() {
    aarch32_cpu::asm::dsb();
    let _merged = !UART.try_send(1);
}

/// The interrupt handler's part.
pub(crate) fn interrupt() {
    if UART.drain() {
        sleep::note_ring();
        critical_section::with(|cs| ON_DOORBELL.borrow(cs).get())();
    }
}
