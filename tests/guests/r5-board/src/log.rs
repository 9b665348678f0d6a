//! The early log: UART0, raw text, for the time before a console exists and for last words. Blocks while it prints, so
//! it is not for a running system.

use core::fmt::{self, Write};

use crate::uart::Uart;

// SAFETY: UART0 of the ZynqMP, used by this file only.
const UART: Uart = unsafe { Uart::at(0xff00_0000) };

/// How often a full transmitter is looked at before the text is dropped: a log that nobody reads must not stop a
/// firmware. At 115200 baud a byte takes 87 µs, well below this many reads of a Device register.
const PATIENCE: u32 = 100_000;

/// Prints one line on the early log, with the arguments of `format!`.
#[macro_export]
macro_rules! logln {
    ($($argument:tt)*) => { $crate::log::print(format_args!($($argument)*)) };
}

pub(crate) fn init() {
    UART.enable();
}

/// Prints `text` and ends the line; see [`logln!`](crate::logln).
pub fn print(text: fmt::Arguments) {
    // Also before `init`: a fault can come first.
    UART.enable();
    // Log never fails, it drops; and a formatter that does has nowhere else to report it.
    let _ = Log.write_fmt(text);
    let _ = Log.write_str("\n");
    for _ in 0..PATIENCE {
        if UART.sent() {
            break;
        }
    }
}

struct Log;

impl Write for Log {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                send(b'\r');
            }
            send(byte);
        }
        Ok(())
    }
}

fn send(byte: u8) {
    for _ in 0..PATIENCE {
        if UART.try_send(byte) {
            return;
        }
    }
}
