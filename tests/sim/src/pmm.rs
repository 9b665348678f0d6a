//! The PMM's side: the real link, console and entropy, in an event loop of five lines.

use hvl_pmm::device::console::Console;
use hvl_pmm::device::rng::Rng;
use hvl_pmm::link::{Link, LinkPlan};
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::wire;

use crate::BASE;
use crate::host::{Source, Terminal};
use crate::side::Shared;
use crate::world::{self, Phase};

/// Runs until it dies, or is asked to end.
pub fn main(mem: Shared) {
    let (layout, doorbell_can_lose) = world::with(|world| (world.layout, world.plan.lossy()));
    let [rng_place, console_place] = layout.devices() else {
        unreachable!("a simulated link has two devices")
    };
    let mut rng = Rng::new(Source);
    let mut console = Console::new(Terminal);
    let mut rng_slots = vec![DeviceSlot::NEW; Link::<Shared>::slots_for(rng_place)];
    let mut console_slots = vec![DeviceSlot::NEW; Link::<Shared>::slots_for(console_place)];
    let members = [(&mut rng as _, &mut rng_slots[..]), (&mut console as _, &mut console_slots[..])];
    let plan = LinkPlan { layout, base: BASE, doorbell_can_lose };
    mem.enter(Phase::Start);
    let mut link = match Link::publish(mem, plan, members, None, None) {
        Ok(link) => link,
        Err(error) => return world::with(|world| world.fail(format!("the PMM does not start: {error}"))),
    };
    mem.ring();
    loop {
        mem.enter(Phase::Serve);
        let before = world::with(|world| world.silence.is_some()).then(|| requests(&link));
        let service = link.service(mem.micros());
        if let Some(before) = before {
            let requests = requests(&link) - before;
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
fn requests(link: &Link<'_, Shared>) -> u64 {
    let queues =
        |device: usize| link.snapshot().devices.get(device).copied().flatten().map(|device| device.queues);
    let taken = |device, queue: usize| queues(device).map_or(0, |queues| queues[queue].requests);
    taken(0, wire::rng::REQUEST) + taken(1, wire::console::TRANSMIT)
}
