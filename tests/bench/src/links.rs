//! Links as they are used: the PMM with its event loop, devices and workers, and a board on which the frontend runs, all
//! in this process. A link's two sides share a memfd and wake each other by eventfds.

use anyhow::{Context, Result, anyhow, ensure};
use hvl_frontend::{Board, Clock, Doorbell, Instant, Wait};
use hvl_pmm::doorbell::EventDoorbell;
use hvl_pmm::options::{self, DeviceDescription, LinkDescription, LogOptions, Memory, Run};
use hvl_shared_abi::{Region, ShmRegion};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The guest's address of every region.
const BASE: u64 = 0x1000_0000;

/// The board of a guest in this process: a core that sleeps until its doorbell rings.
#[derive(Clone)]
pub struct Wire {
    region: Region,
    len: u32,
    kick: Arc<OwnedFd>,
    call: Arc<OwnedFd>,
    start: std::time::Instant,
}

impl Doorbell for Wire {
    fn ring(&self) {
        // One that is full was rung and not heard yet: this ring merges with those.
        let _ = rustix::io::write(&*self.kick, &1u64.to_ne_bytes());
    }
}

impl Clock for Wire {
    fn now(&self) -> Instant {
        Instant::from_micros(self.start.elapsed().as_micros() as u64 + 1)
    }
}

impl Board for Wire {
    type Mem = Region;
    fn mem(&self) -> &Region {
        &self.region
    }
    fn region(&self) -> ShmRegion {
        ShmRegion { base: BASE, len: self.len }
    }
}

impl Wait for Wire {
    fn wait_for_doorbell(&self, deadline: Option<Instant>) {
        let most = deadline.map(|until| {
            let micros = until.since(self.now());
            Timespec { tv_sec: (micros / 1_000_000) as i64, tv_nsec: (micros % 1_000_000 * 1000) as i64 }
        });
        let _ = poll(&mut [PollFd::new(&*self.call, PollFlags::IN)], most.as_ref());
        let _ = rustix::io::read(&*self.call, &mut [0; 8]);
    }
}

impl Wire {
    /// Sleeps as a device's `next_deadline` says.
    pub fn rest(&self, until: Option<Instant>) {
        if until != Some(Instant::UNKNOWN) {
            self.wait_for_doorbell(until);
        }
    }
}

/// How long a link may take to come up, in microseconds.
const START: u64 = 10_000_000;

impl Wire {
    /// Waits until a link is up in the sense of `ready`.
    pub fn until(&self, what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
        let end = self.now().plus(START);
        while !ready() {
            ensure!(self.now() < end, "{what} did not come up within {} s", START / 1_000_000);
            self.wait_for_doorbell(Some(self.now().plus(10_000)));
        }
        Ok(())
    }
}

/// A directory of this run's own, in memory, so that no disk is measured. It is gone with this.
pub struct Place(PathBuf);

impl Place {
    /// Makes it.
    pub fn new() -> Result<Place> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let path = parent.join(format!("hvl-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Place(path))
    }
    /// A name in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts a PMM that serves one device in a region of `size` bytes, for as long as this process lives: its threads run on
/// whatever cores the calling one may.
pub fn serve(place: &Place, name: &str, size: u32, device: DeviceDescription) -> Result<Wire> {
    let link = LinkDescription {
        name: name.into(),
        base: BASE,
        size,
        memory: Memory::Memfd,
        // Replaced below: no option names a doorbell within a process.
        doorbell: options::Doorbell::Poll { micros: options::DEFAULT_POLL_MICROS },
        devices: vec![device],
        fresh: true,
        state: None,
        gone_after: None,
    };
    let control = Some(place.join(&format!("{name}.control")));
    let run = Run {
        links: vec![link],
        control,
        config: None,
        wait: None,
        log: LogOptions::default(),
        notes: Vec::new(),
    };
    let mut opened = hvl_pmm::open::open(&run).map_err(|failure| anyhow!("{failure}"))?;
    let link = opened.links.first_mut().context("a PMM without a link")?;
    let [kick, call] = [(), ()].map(|()| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK));
    let (kick, call) = (kick?, call?);
    link.doorbell = Box::new(EventDoorbell::from_fds(call.try_clone()?, kick.try_clone()?)?);
    let region = link.mapping.region();
    let folder = place.0.clone();
    std::thread::Builder::new().name("pmm".into()).spawn(move || {
        // A PMM ends by a signal only, which it takes in this program's stead.
        if let Err(failure) = hvl_pmm::serve::serve(opened, &run) {
            eprintln!("hvl-bench: {failure}");
        }
        let _ = std::fs::remove_dir_all(folder);
        std::process::exit(1);
    })?;
    let start = std::time::Instant::now();
    Ok(Wire { region, len: size, kick: Arc::new(kick), call: Arc::new(call), start })
}
