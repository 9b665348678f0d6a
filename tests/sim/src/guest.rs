//! The guest's side: the real frontend, in the loop that its README shows.

use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::rng::{FillError, Rng, RngStorage};
use hvl_frontend::device::{InFlight, NotNow};
use hvl_frontend::{Board, Clock, Doorbell, Instant, Link, LinkStorage, Wait};
use hvl_shared_abi::{Mem, ShmRegion};

use crate::BASE;
use crate::side::Shared;
use crate::traffic;
use crate::world::{self, Phase};

/// What a start of the guest still has to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chores {
    /// Bytes to send before it rests.
    pub output: u64,
    /// Random numbers to ask for.
    pub numbers: u32,
    /// Everything that it sent is acknowledged, or was dropped.
    pub flushed: bool,
}

impl Chores {
    /// Whether the guest may rest.
    pub fn done(&self, sent: u64) -> bool {
        self.flushed && self.numbers == 0 && sent >= self.output
    }
}

/// The simulated board.
#[derive(Clone, Copy, Debug)]
pub struct Simulated<'s> {
    mem: Shared,
    clock: bool,
    storage: &'s LinkStorage<'s>,
}

impl Doorbell for Simulated<'_> {
    fn ring(&self) {
        self.mem.ring();
    }
}

impl Clock for Simulated<'_> {
    fn now(&self) -> Instant {
        if self.clock { Instant::from_micros(self.mem.micros() + 1) } else { Instant::UNKNOWN }
    }
}

impl Board for Simulated<'_> {
    type Mem = Shared;
    fn mem(&self) -> &Shared {
        &self.mem
    }
    fn region(&self) -> ShmRegion {
        ShmRegion { base: BASE, len: self.mem.len() }
    }
}

impl Wait for Simulated<'_> {
    fn wait_for_doorbell(&self, deadline: Option<Instant>) {
        let rang = match deadline {
            Some(Instant::UNKNOWN) => false,
            Some(at) if self.clock => self.mem.sleep(Some(at.micros())),
            _ => self.mem.sleep(None),
        };
        // What an interrupt handler does.
        if rang {
            self.storage.rang();
        }
    }
}

/// Runs until it dies.
pub fn main(mem: Shared) {
    let (start, plan) = world::with(|world| {
        let start = world.host.started();
        world.guest_starts(start);
        (start, world.plan.clone())
    });
    let storage = LinkStorage::NEW;
    let board = Simulated { mem, clock: plan.guest_clock, storage: &storage };
    let mut console_storage = ConsoleStorage::<16, 16>::NEW;
    let mut rng_storage = RngStorage::<16>::NEW;
    let mut others = traffic::Storage::default();
    mem.enter(Phase::Start);
    let in_flight = if plan.resend { InFlight::Resend } else { InFlight::Drop };
    let refuse =
        |error: String| world::with(|world| world.fail(format!("the guest does not start: {error}")));
    let link = match Link::attach(&storage, board) {
        Ok(link) => link,
        Err(error) => return refuse(error.to_string()),
    };
    let options = Options { in_flight, ..Options::default() };
    let console = Console::open(&link, &mut console_storage, options);
    let (mut console, mut rng) = match (console, Rng::open(&link, &mut rng_storage)) {
        (Ok(console), Ok(rng)) => (console, rng),
        (Err(error), _) | (_, Err(error)) => return refuse(error.to_string()),
    };
    let mut works = match traffic::open(&link, &mut others, &plan) {
        Ok(works) => works,
        Err(error) => return refuse(error.to_string()),
    };
    loop {
        let [poll, flush_late] = world::with(|world| [(); 2].map(|()| world.rng().bool()));
        // Each handle gets on by itself, so a loop need not poll.
        if poll {
            mem.enter(Phase::Serve);
            link.poll();
        }
        mem.enter(Phase::Use);
        let mut more = send(&mut console, start);
        let early = flush_late || console.flush().is_ok();
        mem.enter(Phase::Use);
        more |= receive(&mut console);
        mem.enter(Phase::Use);
        more |= draw(&mut rng);
        for work in &mut works {
            mem.enter(Phase::Use);
            more |= work.step();
        }
        let flushed = if flush_late { console.flush().is_ok() } else { early };
        let acknowledged = console.acknowledged();
        world::with(|world| {
            world.chores.flushed = flushed;
            if let Some(count) = acknowledged {
                world.host.acknowledged(start, count);
            }
        });
        if more {
            continue;
        }
        mem.enter(Phase::Sleep);
        let deadline =
            link.next_deadline().into_iter().chain(works.iter().filter_map(|work| work.deadline()));
        board.wait_for_doorbell(deadline.min());
    }
}

/// Sends a few pieces of the stream, by copying or in place. Returns whether there is more to do at once.
fn send(console: &mut Console<'_, Simulated<'_>>, start: usize) -> bool {
    for _ in 0..4 {
        let (bytes, in_place) = world::with(|world| {
            let left = world.chores.output.saturating_sub(world.host.output(start));
            let len = world.rng().u64(1..=120).min(left) as usize;
            (world.host.next_output(start, len), world.rng().u8(..) < 64)
        });
        if bytes.is_empty() {
            return false;
        }
        let sent = if in_place {
            let claim = console.claim(bytes.len());
            claim.and_then(|mut claim| {
                claim.put(&bytes)?;
                claim.commit()
            })
        } else {
            console.write(&bytes)
        };
        match sent {
            Ok(len) => world::with(|world| {
                world.host.accepted(start, len);
                world.chores.flushed = false;
            }),
            Err(NotNow::WouldBlock | NotNow::LinkDown) => return false,
        }
    }
    true
}

/// Reads what there is. Returns whether there may be more.
fn receive(console: &mut Console<'_, Simulated<'_>>) -> bool {
    for _ in 0..64 {
        let mut bytes = [0xa5; 100];
        let room = world::with(|world| world.rng().usize(1..=bytes.len()));
        match console.read(&mut bytes[..room]) {
            Ok(count) => judge_read(&bytes, count, room, |host, read| host.received(read)),
            Err(NotNow::WouldBlock | NotNow::LinkDown) => return false,
        }
    }
    true
}

/// Asks for entropy, or takes it. Returns whether there is more to do at once.
fn draw(rng: &mut Rng<'_, Simulated<'_>>) -> bool {
    if world::with(|world| world.chores.numbers == 0) {
        return false;
    }
    let mut bytes = [0xa5; 48];
    let room = world::with(|world| world.rng().usize(4..=bytes.len()));
    match rng.fill(&mut bytes[..room]) {
        Ok(count) => {
            judge_read(&bytes, count, room, |host, read| host.filled(read));
            world::with(|world| world.chores.numbers -= 1);
            true
        }
        Err(FillError::Empty) => world::with(|world| {
            if !world.plan.memory.hostile() {
                world.fail("the PMM answered a request for entropy with nothing");
            }
            true
        }),
        Err(FillError::WouldBlock | FillError::LinkDown) => false,
    }
}

/// A read says how many bytes it wrote, at least one, and wrote no others.
fn judge_read(bytes: &[u8], count: usize, room: usize, judge: impl FnOnce(&mut crate::host::Host, &[u8])) {
    world::with(|world| {
        if count == 0 || count > room {
            world.fail(format!("a read of {room} bytes returned {count}"));
        } else if bytes[count..].iter().any(|byte| *byte != 0xa5) {
            world.fail(format!("a read that returned {count} bytes wrote behind them"));
        } else {
            judge(&mut world.host, &bytes[..count]);
        }
    });
}
