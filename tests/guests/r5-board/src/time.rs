//! A monotonic clock, and an alarm that ends a sleep.
//!
//! - **The clock** is the core's cycle counter divided by 64. It costs one coprocessor read; the timers (TTC) are 16 bits
//!   wide in the emulated machine and would wrap within milliseconds at a useful resolution. It wraps after 275 s, and
//!   the wraps of a longer sleep are told from the RTC's seconds, so an idle core need not wake to count them.
//! - **The alarm** is counter 0 of TTC0, which runs only while somebody sleeps with a deadline.
//!
//! The rates are those of the emulated machine (cycle counter 1 GHz, TTC 133 MHz). On silicon both depend on the clock
//! tree, and the cycle counter stops in WFI: a port to a board takes a 32-bit TTC counter for the clock.

use aarch32_cpu::register::{Pmccntr, Pmcntenset, Pmcr};
use core::{cell::Cell, ptr::NonNull};
use critical_section::Mutex;
use volatile::{VolatileFieldAccess, VolatilePtr};

/// TTC0 counter 0, SPI 36.
pub(crate) const ALARM_INTID: u32 = 68;

/// Ticks of the clock in 1,000,000 µs: 1 GHz / 64.
const TICKS_PER_SECOND: u64 = 15_625_000;

/// What has been counted so far.
#[derive(Clone, Copy)]
struct Count {
    /// Ticks since start.
    total: u64,
    /// The cycle counter when `total` was right.
    counter: u32,
    /// The RTC's second when the present sleep began.
    slept_from: u32,
}

static COUNT: Mutex<Cell<Count>> = Mutex::new(Cell::new(Count { total: 0, counter: 0, slept_from: 0 }));

pub(crate) fn init() {
    /// PMCR: enable, reset the cycle counter, count every 64th cycle.
    const ENABLE_RESET_DIVIDE: u32 = 1 | 1 << 2 | 1 << 3;
    /// PMCNTENSET: the cycle counter.
    const CYCLES: u32 = 1 << 31;
    // SAFETY: nothing else in the program uses the performance monitors.
    unsafe {
        Pmcr::write(Pmcr(ENABLE_RESET_DIVIDE));
        Pmcntenset::write(Pmcntenset(CYCLES));
    }
    stop_alarm();
}

/// Microseconds since the firmware started. Never goes back.
pub fn now() -> u64 {
    let total = advance(|_| 0);
    // Split, so that the product cannot overflow within the life of the universe.
    total / TICKS_PER_SECOND * 1_000_000 + total % TICKS_PER_SECOND * 1_000_000 / TICKS_PER_SECOND
}

/// Adds what the counter has done since the last look, plus `missed(count, ticks)`: what it cannot show.
fn advance(missed: impl FnOnce(u64) -> u64) -> u64 {
    critical_section::with(|cs| {
        let mut count = COUNT.borrow(cs).get();
        let counter = Pmccntr::read().0;
        let ticks = u64::from(counter.wrapping_sub(count.counter));
        count.total = count.total.wrapping_add(ticks).wrapping_add(missed(ticks));
        count.counter = counter;
        COUNT.borrow(cs).set(count);
        count.total
    })
}

/// Called with interrupts masked, just before WFI.
pub(crate) fn before_sleep(deadline: Option<u64>) {
    let now = now();
    critical_section::with(|cs| {
        let count = COUNT.borrow(cs);
        count.set(Count { slept_from: rtc_seconds(), ..count.get() });
    });
    if let Some(deadline) = deadline {
        start_alarm(deadline.saturating_sub(now));
    }
}

/// Called with interrupts masked, just after WFI.
pub(crate) fn after_sleep() {
    stop_alarm();
    let slept_from = critical_section::with(|cs| COUNT.borrow(cs).get().slept_from);
    let seconds = u64::from(rtc_seconds().wrapping_sub(slept_from));
    advance(|ticks| missed_ticks(seconds, ticks));
}

/// The ticks of whole wraps of the counter within a sleep of `seconds` (good to a second) that shows as `ticks`.
const fn missed_ticks(seconds: u64, ticks: u64) -> u64 {
    const WRAP: u64 = 1 << 32;
    // Rounded: the two clocks differ by far less than half a wrap.
    ((seconds * TICKS_PER_SECOND).saturating_sub(ticks) + WRAP / 2) / WRAP * WRAP
}

const _: () = {
    assert!(missed_ticks(0, 0) == 0);
    assert!(missed_ticks(100, 100 * TICKS_PER_SECOND) == 0);
    assert!(
        missed_ticks(275, 275 * TICKS_PER_SECOND - (1 << 32)) == 1 << 32 || 275 * TICKS_PER_SECOND < 1 << 32
    );
    assert!(missed_ticks(1001, 1000 * TICKS_PER_SECOND - (3 << 32)) == 3 << 32);
};

/// The RTC's current second.
fn rtc_seconds() -> u32 {
    const CURRENT_TIME: usize = 0xffa6_0010;
    // SAFETY: a register without side effects, within the peripherals.
    unsafe { (CURRENT_TIME as *const u32).read_volatile() }
}

// --- the alarm ------------------------------------------------------------------------------------------------------

/// Triple Timer Counter: each register three times, once per counter. Only counter 0 is used.
#[repr(C)]
#[derive(VolatileFieldAccess)]
struct Timer {
    clock_control: u32,
    _clock_controls: [u32; 2],
    counter_control: u32,
    _counter_controls: [u32; 2],
    counter: [u32; 3],
    interval: u32,
    _intervals: [u32; 2],
    matches: [u32; 9],
    status: u32,
    _statuses: [u32; 2],
    enable: u32,
}

/// Divide 133 MHz by 2^15: 4058 ticks a second, 246 µs each.
const DIVIDE_BY_32768: u32 = 1 | 14 << 1;
const ALARM_TICKS_PER_SECOND: u64 = 4_058;
/// Stop counting.
const DISABLE: u32 = 1;
/// Count from 0 to the interval, then interrupt.
const INTERVAL_MODE: u32 = 1 << 1;
/// Start again from 0.
const RESET: u32 = 1 << 4;
/// Interrupt: the interval is over.
const INTERVAL: u32 = 1;

fn timer() -> VolatilePtr<'static, Timer> {
    let base = NonNull::new(0xff11_0000 as *mut Timer).expect("TTC0 does not lie at address 0");
    // SAFETY: TTC0's register block, within the peripherals; this file alone uses it, with interrupts masked.
    unsafe { VolatilePtr::new(base) }
}

/// Interrupts after `microseconds` or after 16 s, whatever comes first: the counter is 16 bits wide. The sleeper looks
/// at the clock and sleeps again.
fn start_alarm(microseconds: u64) {
    let ticks = microseconds.saturating_mul(ALARM_TICKS_PER_SECOND) / 1_000_000 + 1;
    let timer = timer();
    timer.clock_control().write(DIVIDE_BY_32768);
    timer.interval().write(ticks.min(0xffff) as u32);
    timer.enable().write(INTERVAL);
    timer.counter_control().write(INTERVAL_MODE | RESET);
}

fn stop_alarm() {
    timer().counter_control().write(DISABLE);
    timer().enable().write(0);
    interrupt();
}

/// The interrupt handler's part: reading the status withdraws the request.
pub(crate) fn interrupt() {
    let _withdrawn = timer().status().read();
}
