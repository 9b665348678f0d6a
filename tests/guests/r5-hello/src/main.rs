//! The board's own smoke test, with no link and no virtio: it shows that the processor boots, that its shared memory is
//! the peer's, that doorbells arrive and leave, that the clock runs, that deadlines wake it, and that it restarts warm.
//!
//! The shared memory holds, as words: a command from the peer (0: nothing, 1: sleep 50 ms, 2: restart, 3: panic, 4: a
//! stray access), then, written by this side: rings counted, starts counted, wake-ups, microseconds since start (low
//! word), and the length of the last timed sleep in microseconds. Whenever it is rung it acts, updates and rings back.
//! When it dies it prints why, sets the command to 0, and rings a last time.
#![no_std]
#![no_main]

use core::{panic::PanicInfo, sync::atomic::AtomicU32, sync::atomic::Ordering::Relaxed};
use r5_board::{SHARED_BASE, boot, doorbell, entry, logln, sleep, time};

static RINGS: AtomicU32 = AtomicU32::new(0);
/// Not zero at start, so that a warm restart that does not restore `.data` shows.
static CANARY: AtomicU32 = AtomicU32::new(0x600d);

/// The words described above, in their order.
#[derive(Clone, Copy)]
enum Word {
    Command,
    Rings,
    Starts,
    WakeUps,
    Now,
    Slept,
}

fn shared(word: Word) -> *mut u32 {
    (SHARED_BASE as *mut u32).wrapping_add(word as usize)
}

fn read(word: Word) -> u32 {
    // SAFETY: an aligned word of the shared memory, which the MPU maps; the peer writes whole words.
    unsafe { shared(word).read_volatile() }
}

fn write(word: Word, value: u32) {
    // SAFETY: as in `read`.
    unsafe { shared(word).write_volatile(value) }
}

#[entry]
fn main() -> ! {
    r5_board::start(|| RINGS.store(RINGS.load(Relaxed).wrapping_add(1), Relaxed));
    let (rings, canary) = (RINGS.load(Relaxed), CANARY.load(Relaxed));
    CANARY.store(0xbad, Relaxed);
    logln!("r5-hello: MIDR {:#010x}, rings {rings}, canary {canary:#x}", r5_board::midr());
    write(Word::Starts, read(Word::Starts).wrapping_add(1));
    loop {
        write(Word::Rings, RINGS.load(Relaxed));
        write(Word::WakeUps, sleep::wake_ups());
        write(Word::Now, time::now() as u32);
        doorbell::ring();
        sleep::until_rung(None);
        match read(Word::Command) {
            1 => {
                let before = time::now();
                // The ring that brought the command was taken; another would end the sleep early, and that shows.
                sleep::until_rung(Some(before + 50_000));
                write(Word::Slept, (time::now() - before) as u32);
            }
            2 => boot::reboot(),
            3 => panic!("asked to"),
            // SAFETY: none; that the MPU refuses it is the point.
            4 => unsafe { (0x4000_0000 as *mut u32).write_volatile(0) },
            _ => (),
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    boot::report_panic(info);
    write(Word::Command, 0);
    doorbell::ring();
    boot::halt()
}
