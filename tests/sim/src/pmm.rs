//! The PMM's side: the real link and devices, in an event loop of five lines.

use hvl_pmm::device::Device;
use hvl_pmm::link::{Link, LinkPlan};
use hvl_shared_abi::layout::DevicePlace;
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::{DeviceId, wire};

use crate::BASE;
use crate::side::Shared;
use crate::traffic;
use crate::world::{self, Phase};

/// Runs until it dies, or is asked to end.
pub fn main(mem: Shared) {
    let (layout, doorbell_can_lose) = world::with(|world| (world.layout, world.plan.lossy()));
    let places = layout.devices();
    let mut devices: Vec<_> = places.iter().map(|place| traffic::device(place.spec.id)).collect();
    let slots = |place| vec![DeviceSlot::NEW; Link::<Shared>::slots_for(place)];
    let mut slots: Vec<_> = places.iter().map(slots).collect();
    let members = devices.iter_mut().zip(&mut slots);
    let members =
        members.map(|(device, slots)| (&mut **device as &mut (dyn Device<_> + Send), &mut slots[..]));
    let plan = LinkPlan { layout, base: BASE, doorbell_can_lose, gone_after: None };
    mem.enter(Phase::Start);
    let mut link = match Link::publish(mem, plan, members, None, None) {
        Ok(link) => link,
        Err(error) => return world::with(|world| world.fail(format!("the PMM does not start: {error}"))),
    };
    mem.ring();
    loop {
        mem.enter(Phase::Serve);
        if world::with(|world| std::mem::take(&mut world.hung_up)) {
            if link.hang_up(mem.micros()) {
                mem.ring();
            }
            mem.enter(Phase::Serve);
        }
        let before = world::with(|world| world.silence.is_some()).then(|| requests(&link, places));
        let service = link.service(mem.micros());
        if let Some(before) = before {
            let requests = requests(&link, places) - before;
            world::with(|world| world.took(requests));
        }
        if service.ring {
            mem.ring();
        }
        if world::with(|world| std::mem::take(&mut world.shut_down)) {
            mem.enter(Phase::End);
            link.shutdown();
            return mem.ring();
        }
        if !service.again {
            mem.enter(Phase::Sleep);
            mem.sleep(Some(service.deadline));
        }
    }
}

/// Requests that were taken so far of the queues that a device empties at once, whatever its host end does.
fn requests(link: &Link<'_, Shared>, places: &[DevicePlace]) -> u64 {
    let devices = places.iter().zip(link.snapshot().devices);
    let taken = devices.filter_map(|(place, device)| {
        let queue = match place.spec.id {
            DeviceId::RNG => wire::rng::REQUEST,
            DeviceId::CONSOLE => wire::console::TRANSMIT,
            DeviceId::NET => wire::net::TRANSMIT,
            DeviceId::VSOCK => wire::vsock::TRANSMIT,
            DeviceId::P9 => wire::p9::REQUEST,
            _ => return None,
        };
        device?.queues.get(queue).map(|queue| queue.requests)
    });
    taken.sum()
}
