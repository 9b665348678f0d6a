//! What both images have: the board and a panic handler without text. `cargo xtask size` subtracts one from the other.
#![no_std]

use core::panic::PanicInfo;

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    r5_board::boot::halt()
}
