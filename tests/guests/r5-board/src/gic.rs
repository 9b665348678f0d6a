//! The RPU's interrupt controller, a GICv2 without security extensions: everything is group 0 and an IRQ.

use aarch32_rt::irq;
use arm_gic::{
    IntId, InterruptGroup, Trigger,
    gicv2::{
        GicV2,
        registers::{Gicc, Gicd},
    },
};

use crate::{doorbell, time};

const DISTRIBUTOR: usize = 0xf900_0000;
const CPU_INTERFACE: usize = 0xf900_1000;
/// Offset of ITARGETSR in the distributor: one byte per interrupt, a bit per core that gets it.
const TARGETS: usize = 0x800;
/// Offset of CTLR in the CPU interface.
const CONTROL: usize = 0;

/// A fresh handle, used and dropped with interrupts masked: before `init` has finished, or within the handler.
fn gic() -> GicV2<'static> {
    // SAFETY: both blocks lie there, are mapped as Device memory, and no other handle is alive (see above).
    unsafe { GicV2::new(DISTRIBUTOR as *mut Gicd, CPU_INTERFACE as *mut Gicc) }
}

/// Routes the given shared interrupts to this core and enables them, and no other.
pub(crate) fn init(intids: &[u32]) {
    let mut gic = gic();
    gic.enable_all_interrupts(false);
    gic.setup();
    for &intid in intids {
        let id = IntId::spi(intid - 32);
        gic.set_interrupt_priority(id, 0x80);
        gic.set_trigger(id, Trigger::Level);
        // SAFETY: the byte of this interrupt in a register file that may be written bytewise (arm-gic 0.10 does not
        // offer it); the core that is started first is CPU 0 of this controller.
        unsafe { ((DISTRIBUTOR + TARGETS + intid as usize) as *mut u8).write_volatile(1) };
        if gic.enable_interrupt(id, true).is_err() {
            panic!("the interrupt controller does not know interrupt {intid}");
        }
    }
}

/// No interrupt reaches this core any more.
pub(crate) fn shut() {
    // SAFETY: a word of the CPU interface; the caller has masked interrupts.
    unsafe { ((CPU_INTERFACE + CONTROL) as *mut u32).write_volatile(0) };
}

#[irq]
fn handle() {
    let mut gic = gic();
    // Bounded by the number of interrupts that are enabled: each handler withdraws its own request.
    while let Some(id) = gic.get_and_acknowledge_interrupt(InterruptGroup::Group0) {
        match u32::from(id) {
            doorbell::INTID => doorbell::interrupt(),
            time::ALARM_INTID => time::interrupt(),
            _ => (),
        }
        gic.end_interrupt(id, InterruptGroup::Group0);
    }
}
