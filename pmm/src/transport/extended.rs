//! The extended profile: queues, pools and features are static; a device runs when its driver says so in the epoch
//! that was adopted.
//!
//! The PMM owns the used halves of the rings, the blocks, and its state words; the guest everything else. What
//! crosses the boundary is checked here (features) and in the rings (chains). When the guest lies, its device gets a
//! Fault and the other devices go on; when it dies, the next hello ends its session; when this PMM dies, memory says
//! so by the next one's epoch.

use hvl_shared_abi::block;
use hvl_shared_abi::epoch::{DeviceLook, PmmDevice};
use hvl_shared_abi::header::{Extent, Fault};
use hvl_shared_abi::layout::Layout;
use hvl_shared_abi::ring::Windows;
use hvl_shared_abi::{Features, Mem};

use super::Port;

/// What one look at a device came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Ring the guest.
    pub ring: bool,
    /// Look again at once.
    pub again: bool,
}

/// Makes this side's half of a device as new: before an adoption, and at a reset.
pub(crate) fn clear<M: Mem>(m: &M, port: &mut Port<'_, M>, state: &mut PmmDevice) {
    port.stop();
    for (spare, place) in port.spare.iter_mut().zip(port.place.queues()) {
        if let Some(ring) = spare.as_mut().filter(|_| place.size != 0) {
            ring.replace(*place);
            ring.clear(m);
        }
    }
    state.clear(m);
}

/// Makes a device as new for the session of a guest that said hello, its block included.
pub(crate) fn adopt<M: Mem>(
    m: &M,
    port: &mut Port<'_, M>,
    state: &mut PmmDevice,
    layout: &Layout,
    index: usize,
    base: u64,
) {
    clear(m, port, state);
    block::write(m, layout, index, base, port.offered(m.attribute()));
}

/// Looks at one device in the session of `epoch`: starts, resets or serves it.
pub(crate) fn look<M: Mem>(
    m: &M,
    port: &mut Port<'_, M>,
    state: &mut PmmDevice,
    epoch: u32,
    base: u64,
) -> Outcome {
    match state.look(m, epoch) {
        DeviceLook::Start(features) => {
            if accepts(port.offered(m.attribute()), features) {
                start(m, port, features);
                state.start(m, epoch);
            } else {
                port.features_refused = port.features_refused.wrapping_add(1);
                state.fail(m, Fault::FeaturesRefused);
            }
            Outcome { ring: true, again: true }
        }
        DeviceLook::Reset => {
            clear(m, port, state);
            Outcome { ring: true, again: true }
        }
        DeviceLook::Same if state.runs() => {
            // Only this device's pool: a buffer on a ring, in a header or in another device's pool is refused.
            let pool: [Extent; 1] = [port.place.pool];
            match port.process(m, Windows { base, allowed: &pool }) {
                Ok((more, call)) => Outcome { ring: call, again: more },
                Err(_) => {
                    port.stop();
                    state.fail(m, Fault::NeedsReset);
                    Outcome { ring: true, again: false }
                }
            }
        }
        DeviceLook::Same => Outcome::default(),
    }
}

/// Whether a driver may accept `features` where `offered` was offered: nothing else, and nothing less than the two
/// that the link stands on.
fn accepts(offered: Features, features: Features) -> bool {
    let needed = offered & (Features::VERSION_1 | Features::ORDER_PLATFORM);
    offered.contains(features) && features.contains(needed)
}

/// Puts the rings into use and activates the device.
fn start<M: Mem>(m: &M, port: &mut Port<'_, M>, features: Features) {
    port.features = features;
    for (ring, spare) in port.rings.iter_mut().zip(&mut port.spare) {
        *ring = spare.take();
        if let Some(ring) = ring {
            ring.start(m, features, 0);
        }
    }
    port.device.activate(features);
}
