//! Sleep without losing a wake-up: look, then WFI, with interrupts masked in between. A request that arrives in that
//! moment still ends WFI; its handler runs when the mask is lifted.

use aarch32_cpu::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use crate::time;

/// Set by the doorbell's interrupt, cleared by [`until_rung`] with interrupts masked. Only this core looks at it.
static RUNG: AtomicBool = AtomicBool::new(false);
static WAKE_UPS: AtomicU32 = AtomicU32::new(0);

/// Sleeps until the doorbell has rung since the last call, or until [`time::now`] has reached `deadline`
/// (microseconds). True if it rang. With no deadline no timer runs at all.
pub fn until_rung(deadline: Option<u64>) -> bool {
    loop {
        // Order does not matter between the two: both are taken or left while nothing can interrupt.
        let rang = critical_section::with(|_| {
            let rang = RUNG.load(Relaxed);
            RUNG.store(false, Relaxed);
            rang
        });
        if rang {
            return true;
        }
        if deadline.is_some_and(|deadline| time::now() >= deadline) {
            return false;
        }
        unless(|| RUNG.load(Relaxed), deadline);
    }
}

/// One sleep: returns after any interrupt, near `deadline` or, at the latest, some seconds before it. Returns at once
/// if `ready` says so; it is called with interrupts masked, so nothing that a handler changes can slip between.
///
/// For executors that keep their own record of what has happened; others use [`until_rung`].
pub fn unless(ready: impl FnOnce() -> bool, deadline: Option<u64>) {
    // Not aarch32_cpu::interrupt::free: in 0.4.0 it unmasks if interrupts were masked before, and only then.
    critical_section::with(|_| {
        if ready() {
            return;
        }
        time::before_sleep(deadline);
        asm::dsb();
        asm::wfi();
        time::after_sleep();
        WAKE_UPS.store(WAKE_UPS.load(Relaxed).wrapping_add(1), Relaxed);
    });
    // The pending handler runs here, before the caller looks again.
    asm::isb();
}

/// How often the processor has come out of WFI since it started; wraps.
pub fn wake_ups() -> u32 {
    WAKE_UPS.load(Relaxed)
}

pub(crate) fn note_ring() {
    RUNG.store(true, Relaxed);
}
