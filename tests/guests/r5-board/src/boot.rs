//! From reset to `main`, and back: start-up code, memory attributes, warm restart, and what happens after a fault.
//!
//! aarch32-rt does the general part. Its own `_start` is not used because it takes any core whose MPIDR is not 0 for a
//! secondary one and parks it, and the first R5 of the emulated machine calls itself core 4.

use aarch32_cpu::{
    asm, cache, interrupt,
    pmsav7::{AccessPerms, Config, MemAttr, Mpu, Region, RegionSize},
    register::Sctlr,
};
use aarch32_rt::exception;
use core::panic::PanicInfo;

use crate::{SHARED_BASE, SHARED_SIZE, gic, logln};

// In this order: interrupts off and the processor in a known mode (a warm restart comes from SYS, a reset from SVC);
// MPU, both caches and the high vectors off, as a reset on silicon leaves them but for the vectors; whatever the caches
// hold is garbage now, so it is dropped before anything is written. Only then may .data, .bss and the stacks be filled.
core::arch::global_asm!(
    r#"
    .pushsection .text._start
    .arm
    .global _start
    .type _start, %function
    .p2align 2
    _start:
        msr     cpsr_c, #0xd3           // SVC, IRQ and FIQ masked
        mrc     p15, 0, r0, c1, c0, 0   // SCTLR
        ldr     r1, =0x00003005         // V, I, C, M
        bic     r0, r0, r1
        dsb
        mcr     p15, 0, r0, c1, c0, 0
        isb
        mov     r0, #0
        mcr     p15, 0, r0, c15, c5, 0  // invalidate the data cache (Cortex-R5)
        mcr     p15, 0, r0, c7, c5, 0   // ICIALLU
        dsb
        isb
        bl      _asm_init_segments
        mov     r0, #0                  // primary core
        b       _asm_core_start
    .size _start, . - _start
    .popsection
    "#
);

/// Code and constants, as in `memory.x`.
const ROM_BASE: usize = 0;
/// Data and stacks, as in `memory.x`.
const RAM_BASE: usize = 0x10_0000;
/// RPU GIC: distributor and CPU interface.
const GIC_BASE: usize = 0xf900_0000;
/// UARTs, timers, RTC: the lower peripherals and what else lies in the last 16 MiB.
const PERIPHERALS_BASE: usize = 0xff00_0000;

const SHARED_REGION: RegionSize = match SHARED_SIZE {
    0x10_0000 => RegionSize::_1M,
    0x20_0000 => RegionSize::_2M,
    0x40_0000 => RegionSize::_4M,
    0x80_0000 => RegionSize::_8M,
    0x100_0000 => RegionSize::_16M,
    _ => panic!("SHARED_SIZE is no size that the MPU is set up for: add it here"),
};

const _: () = assert!(SHARED_BASE.is_multiple_of(SHARED_SIZE), "the MPU wants a region aligned to its size");

/// Turns MPU and caches on. Addresses in no region below fault, which catches stray pointers.
///
/// The shared memory is Normal and not cacheable: the R5 is coherent with nobody, and Device memory would fault on
/// unaligned access and `memcpy`.
pub(crate) fn protect_memory() {
    let region = |base: usize, size, mem_attr, access_perms, no_exec| Region {
        base: base as *mut u8,
        size,
        subregion_mask: 0,
        enabled: true,
        no_exec,
        mem_attr,
        access_perms,
    };
    let cached = || MemAttr::WriteBackWriteAlloc { shareable: false };
    let device = || MemAttr::Device { shareable: true };
    let config = Config {
        background_config: false,
        iregions: &[],
        dregions: &[
            region(ROM_BASE, RegionSize::_1M, cached(), AccessPerms::PrivReadOnly, false),
            region(RAM_BASE, RegionSize::_1M, cached(), AccessPerms::PrivReadWrite, true),
            region(
                SHARED_BASE,
                SHARED_REGION,
                MemAttr::NonCacheable { shareable: true },
                AccessPerms::PrivReadWrite,
                true,
            ),
            region(GIC_BASE, RegionSize::_64K, device(), AccessPerms::PrivReadWrite, true),
            region(PERIPHERALS_BASE, RegionSize::_16M, device(), AccessPerms::PrivReadWrite, true),
        ],
    };
    // SAFETY: the only Mpu in the program, and this function runs once per start.
    let mut mpu = unsafe { Mpu::new() };
    if let Err(error) = mpu.configure(&config) {
        panic!("the MPU refused its regions: {error:?}");
    }
    asm::dsb();
    mpu.enable();
    Sctlr::modify(|sctlr| {
        sctlr.set_c(true);
        sctlr.set_i(true);
    });
    asm::dsb();
    asm::isb();
}

/// Restarts the firmware as a reset would: vectors, `.data`, `.bss`, stacks, MPU, interrupt controller, UARTs and clock
/// are initialised again. The shared memory stays as it is, and so do rings that wait in the doorbell's UART.
pub fn reboot() -> ! {
    quiesce();
    // SAFETY: `_start` takes the processor in any state and never returns.
    unsafe { core::arch::asm!("b _start", options(noreturn)) }
}

/// Stops here for good, asleep and with interrupts masked: after a fault there is nobody left to handle them.
pub fn halt() -> ! {
    quiesce();
    loop {
        asm::wfi();
    }
}

/// Prints a panic on the early log. For a firmware's `#[panic_handler]`, which then calls [`halt`] or [`reboot`].
pub fn report_panic(info: &PanicInfo) {
    interrupt::disable();
    logln!("{info}");
}

/// Interrupts off at the core and at the controller; what the caches hold goes to memory.
fn quiesce() {
    interrupt::disable();
    gic::shut();
    // 32 KiB in 4 ways with lines of 32 bytes: 256 sets. Fewer on a smaller R5, where the surplus sets wrap round.
    cache::clean_and_invalidate_l1_data_cache::<2, 5, 8>();
    asm::dsb();
}

// Faults become panics: what is to be done about either is the firmware's decision. The attribute wants the parameter
// to be called `addr`: it writes the signature itself.

#[exception(Undefined)]
fn undefined(addr: usize) -> ! {
    panic!("undefined instruction at {addr:#010x}")
}

#[exception(PrefetchAbort)]
fn prefetch_abort(addr: usize) -> ! {
    panic!("no instruction may be fetched from {addr:#010x}")
}

#[exception(DataAbort)]
fn data_abort(addr: usize) -> ! {
    let target = aarch32_cpu::register::Dfar::read().0;
    let status = aarch32_cpu::register::Dfsr::read().raw_value();
    panic!("access to {target:#010x} by the instruction at {addr:#010x}, DFSR {status:#x}")
}
