//! The Cadence UART, as much of it as a doorbell and an early log need. Both are polled for transmission: a full FIFO is
//! waited for by the log, with a bound, and never by the doorbell.

use core::ptr::NonNull;
use volatile::{VolatileFieldAccess, VolatilePtr};

/// Register block; reserved words between are not touched.
#[repr(C)]
#[derive(VolatileFieldAccess)]
pub(crate) struct Registers {
    control: u32,
    mode: u32,
    interrupt_enable: u32,
    interrupt_disable: u32,
    interrupt_mask: u32,
    interrupt_status: u32,
    baud_generator: u32,
    receive_timeout: u32,
    receive_trigger: u32,
    modem_control: u32,
    modem_status: u32,
    channel_status: u32,
    fifo: u32,
}

/// Transmitter and receiver enabled. The divisors are left as the boot loader set them.
const CONTROL_ON: u32 = 0x14;
/// Interrupt: the receive FIFO has reached its trigger level.
const RECEIVE_TRIGGER: u32 = 1;
/// Channel status: nothing to read.
const RECEIVE_EMPTY: u32 = 1 << 1;
/// Channel status: everything is sent.
const TRANSMIT_EMPTY: u32 = 1 << 3;
/// Channel status: a byte written now would be lost.
const TRANSMIT_FULL: u32 = 1 << 4;

/// One of the two UARTs.
#[derive(Clone, Copy)]
pub(crate) struct Uart(NonNull<Registers>);

// SAFETY: an address; what may be done with it from where is said at `Uart::at`.
unsafe impl Sync for Uart {}

impl Uart {
    /// The UART at `base`.
    ///
    /// # Safety
    ///
    /// `base` must be the register block of a Cadence UART. Several handles to one UART may exist: every method is a
    /// single register access or a sequence that another handle may interrupt.
    pub(crate) const unsafe fn at(base: usize) -> Self {
        let registers = NonNull::new(base as *mut Registers).expect("no UART lies at address 0");
        Self(registers)
    }

    fn registers(self) -> VolatilePtr<'static, Registers> {
        // SAFETY: the caller of `at` said what lies there; it is never deallocated.
        unsafe { VolatilePtr::new(self.0) }
    }

    /// Enables both directions, with no interrupt. What the FIFOs hold is kept.
    pub(crate) fn enable(self) {
        self.registers().interrupt_disable().write(!0);
        self.registers().control().write(CONTROL_ON);
    }

    /// Asks for an interrupt for every byte received.
    pub(crate) fn interrupt_on_receive(self) {
        self.registers().receive_trigger().write(1);
        self.registers().interrupt_enable().write(RECEIVE_TRIGGER);
    }

    /// Reads and drops what was received; true if there was anything. Leaves the interrupt request withdrawn, unless a
    /// byte arrives meanwhile.
    ///
    /// Emptied on both sides of the acknowledgement: before, because a FIFO at its level would raise the status again
    /// at once; after, because a byte that came just before the acknowledgement would otherwise raise nothing.
    pub(crate) fn drain(self) -> bool {
        let before = self.empty_fifo();
        self.registers().interrupt_status().write(!0);
        self.empty_fifo() | before
    }

    /// The FIFO holds 64 bytes; a sender that never stops cannot hold the interrupt handler for longer than two fills.
    fn empty_fifo(self) -> bool {
        let mut any = false;
        for _ in 0..128 {
            if self.registers().channel_status().read() & RECEIVE_EMPTY != 0 {
                break;
            }
            let _ring = self.registers().fifo().read();
            any = true;
        }
        any
    }

    /// Sends a byte if there is room for it; false if there is none.
    pub(crate) fn try_send(self, byte: u8) -> bool {
        let room = self.registers().channel_status().read() & TRANSMIT_FULL == 0;
        if room {
            self.registers().fifo().write(u32::from(byte));
        }
        room
    }

    /// Whether the transmitter has nothing left to send.
    pub(crate) fn sent(self) -> bool {
        self.registers().channel_status().read() & TRANSMIT_EMPTY != 0
    }
}
