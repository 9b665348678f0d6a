//! The event loops: one thread a link, and one for signals and the control socket.
//!
//! A link's loop sleeps until its doorbell is rung, its host end can go on, a deadline comes, or somebody asks for a
//! snapshot. It never sleeps otherwise and never spins: with nothing to do on a doorbell that cannot lose, it wakes once
//! a second, for the look that the protocol asks for.

use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvl_shared_abi::epoch::PmmHalf;
use hvl_shared_abi::mem::Region;
use hvl_shared_abi::ring::split::DeviceSlot;
use tracing::{error, info};

use crate::device::Device;
use crate::doorbell::HostDoorbell;
use crate::failure::{Failure, refused};
use crate::host::{HostEnd, StateRecorder, TerminalNews};
use crate::link::{Link, LinkPlan};
use crate::observe::{
    Board, Control, DEVICE_STATES, DeviceStatus, Diagnosis, DoorbellStatus, Limit, LinkStatus, Pace,
    QueueStatus, Seen, Waker, diagnose, limited, printable, remedy,
};
use crate::open::{OpenLink, Opened, no_descriptors};
use crate::options::Run;
use crate::region::Mapping;
use crate::snapshot::{DeviceSnapshot, LinkSnapshot, Profile};
use crate::sys::{Signal, Signals, Watches};
use crate::transport::plain::Recorder;

/// How long after something happened the snapshot is looked through for what to log, in microseconds: often enough for
/// a reader, seldom enough for a guest under load.
const NOTICE_US: u64 = 10_000;

/// The clock of an event loop: microseconds since it was started.
fn clock() -> impl Fn() -> u64 {
    let start = Instant::now();
    move || u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Serves links until a signal comes, a user asks for the end, or every link has ended. What fails is logged here.
///
/// # Errors
///
/// [`Failure::Refused`] of the first link that failed; the others were served on.
pub fn serve(opened: Opened, run: &Run) -> Result<(), Failure> {
    let Opened { links, mut control, signals, .. } = opened;
    let waker = Arc::new(Waker::new().map_err(no_descriptors)?);
    let (mut boards, mut threads) = (Vec::new(), Vec::new());
    let mut start = |link: OpenLink| {
        let board = Arc::new(Board::new(waker.clone(), link.first_status()).map_err(no_descriptors)?);
        let (name, wait, own) = (link.description.name.clone(), run.wait, board.clone());
        let thread = std::thread::Builder::new().name(name).spawn(move || guarded(link, &own, wait));
        threads.push(thread.map_err(|error| Failure::Refused(format!("no thread to be had ({error})")))?);
        boards.push(board);
        Ok(())
    };
    let started = links.into_iter().try_for_each(&mut start);
    if let Err(failure) = &started {
        error!("{failure}");
        // Those that were started end in order: they have terminals to restore and guests to tell.
        boards.iter().for_each(|board| board.stop());
    }
    control.set_boards(boards.clone());

    let clock = clock();
    let watched = catch_unwind(AssertUnwindSafe(|| watch(&boards, &mut control, &signals, &waker, &clock)));
    // Without this thread nobody could end the links any more.
    boards.iter().for_each(|board| board.stop());
    let mut results = threads.into_iter().map(|thread| {
        thread.join().unwrap_or_else(|_| refused("a link's thread died; this is a defect of pmm"))
    });
    let first = results.find(Result::is_err);
    if watched.is_err() {
        let text = "the thread of the control socket panicked, and all links end; this is a defect of pmm";
        error!("{text}");
        return refused(text);
    }
    // Whoever follows hears the end.
    control.progress(clock());
    started.and(first.unwrap_or(Ok(())))
}

/// Passes signals on and answers at the control socket until every link has ended.
fn watch(
    boards: &[Arc<Board>],
    control: &mut Control,
    signals: &Signals,
    waker: &Waker,
    clock: &dyn Fn() -> u64,
) {
    let mut watches = Watches::default();
    // A board is closed last of all in a thread, and wakes this loop; `is_finished` comes a moment later and does not.
    while boards.iter().any(|board| !board.is_closed()) {
        watches.clear();
        watches.add(signals.as_raw_fd(), true, false);
        watches.add(waker.as_raw_fd(), true, false);
        control.watch(&mut watches);
        watches.wait(control.deadline_us().map(|at| at.saturating_sub(clock())));
        waker.clear();
        while let Some(signal) = signals.take() {
            match signal {
                Signal::End(name) => {
                    info!("{name}: ending");
                    boards.iter().for_each(|board| board.stop());
                }
                Signal::Continued => boards.iter().for_each(|board| board.tell(TerminalNews::Continued)),
                Signal::Resized => boards.iter().for_each(|board| board.tell(TerminalNews::Resized)),
            }
        }
        // One user who asks for the end ends it for all: the program is one.
        if boards.iter().any(|board| board.is_stopping()) {
            boards.iter().for_each(|board| board.stop());
        }
        control.progress(clock());
    }
}

/// Serves one link; its end, and even its panic, is not the end of the others.
fn guarded(mut link: OpenLink, board: &Board, wait: Option<Duration>) -> Result<(), Failure> {
    let name = link.description.name.clone();
    let _span = tracing::error_span!("link", name = %name).entered();
    let result = catch_unwind(AssertUnwindSafe(|| serve_link(&mut link, board, wait)));
    let result = result.unwrap_or_else(|_| {
        // The guest is told on this path, too, while the region is still locked.
        let told = catch_unwind(AssertUnwindSafe(|| {
            PmmHalf::abandon(&link.mapping.region());
            link.doorbell.ring();
        }));
        let untold = if told.is_err() { ", and its doorbell too" } else { "" };
        refused(format!("{name}: its thread panicked{untold}; this is a defect of pmm"))
    });
    drop(link);
    let mut last = board.latest();
    last.state = if result.is_ok() { "ended" } else { "failed" }.into();
    if let Err(failure) = &result {
        error!("{failure}");
        last.error = Some(failure.to_string());
    }
    board.close(last);
    result
}

fn serve_link(open: &mut OpenLink, board: &Board, wait: Option<Duration>) -> Result<(), Failure> {
    let first = open.first_status();
    open.prepare()?;
    let OpenLink { description, layout, mapping, doorbell, devices, state } = open;
    // Host ends are closed when this ends, and before that is told.
    let (devices, mut state) = (std::mem::take(devices), state.take());
    let record = state.as_ref().and_then(|state| state.found());
    let (mut hosted, mut ends): (Vec<_>, Vec<Box<dyn HostEnd>>) =
        devices.into_iter().map(|hosted| (hosted.device, hosted.end)).unzip();
    // Behind those of the devices, with which the status goes in step.
    if let Some(news) = state.as_mut().map(StateRecorder::start).transpose()?.flatten() {
        ends.push(Box::new(news));
    }
    let mut slots: Vec<Vec<DeviceSlot>> = layout
        .devices()
        .iter()
        .map(|place| vec![DeviceSlot::NEW; Link::<Region>::slots_for(place)])
        .collect();
    let plan = LinkPlan {
        layout: *layout,
        base: description.base,
        doorbell_can_lose: doorbell.can_lose(),
        gone_after: description.gone_after.map(|after| after.as_micros() as u64),
    };
    let devices = hosted.iter_mut().map(|device| -> &mut (dyn Device<Region> + Send) { &mut **device });
    let members = devices.zip(slots.iter_mut().map(Vec::as_mut_slice));
    let recorder = state.as_mut().map(|state| state as &mut dyn Recorder);
    let link =
        Link::publish(mapping.region(), plan, members, recorder, record.as_ref()).map_err(|error| {
            Failure::Refused(format!("{}: {error}; this is a defect of pmm", description.name))
        })?;
    info!(
        "serving {} bytes at {:#x} ({}), pmm epoch {}",
        description.size,
        description.base,
        mapping.name(),
        link.snapshot().pmm_epoch
    );
    doorbell.ring();
    let served = Loop { link, mapping, doorbell: &mut **doorbell, ends, board, wait, wakeups: 0 };
    let result = served.run(&description.doorbell.to_string(), &first, &description.name);
    info!("ended");
    result
}

/// One link's event loop.
struct Loop<'s, 'a> {
    link: Link<'s, Region>,
    mapping: &'a Mapping,
    doorbell: &'a mut dyn HostDoorbell,
    /// The devices' host ends, in their order, and what else may have news.
    ends: Vec<Box<dyn HostEnd>>,
    board: &'a Board,
    wait: Option<Duration>,
    wakeups: u64,
}

impl Loop<'_, '_> {
    fn run(mut self, kind: &str, first: &LinkStatus, name: &str) -> Result<(), Failure> {
        let clock = clock();
        let mut notices = Notices::new(self.link.snapshot());
        let mut pace = Pace::default();
        let (mut diagnosis, mut diagnoses) = (Diagnosis::new(clock()), Limit::default());
        let mut watches = Watches::default();
        // The first pass looks at everything: what was rung before this started was rung for nobody.
        let (mut bell, mut end) = (true, true);
        let outcome = loop {
            let now = clock();
            let due = |at: Option<u64>| at.is_some_and(|at| at <= now);
            for news in self.board.take_news() {
                self.ends.iter_mut().for_each(|one| one.terminal_news(news));
                end = true;
            }
            for one in &mut self.ends {
                if end || due(one.deadline_us()) {
                    one.progress(now);
                }
                if one.wants_to_end() {
                    self.board.stop();
                    self.board.control.wake();
                }
            }
            if bell {
                self.doorbell.acknowledge();
            }
            let came = self.doorbell.progress(now);
            if due(self.doorbell.deadline_us()) {
                // A timer in place of a doorbell has nothing that wakes but its deadline.
                self.doorbell.acknowledge();
            }
            if self.doorbell.has_hung_up() && self.link.hang_up(now) {
                self.doorbell.ring();
            }
            let service = self.link.service(now);
            if service.ring || came {
                self.doorbell.ring();
            }
            if bell || end || came || service.ring {
                notices.stir(now);
            }
            if notices.is_due(now) || due(diagnosis.deadline()) {
                let (snapshot, heard) = (self.link.snapshot(), self.doorbell.counters().heard);
                let state = (snapshot.profile, snapshot.driver_epoch);
                let memory = self.mapping.region();
                let look = || diagnose(&Seen::read(&memory, &snapshot, heard), &first.region);
                if let Some(why) = diagnosis.look(now, state, look) {
                    match snapshot.profile {
                        // It may only not have been started yet.
                        Profile::None => limited!(info, diagnoses, now, "no guest yet: {why}"),
                        _ => limited!(warn, diagnoses, now, "{why}"),
                    }
                }
                if notices.is_due(now) {
                    notices.look(now, snapshot, self.link.last_words());
                }
            }
            let (link, wakeups) = (&self.link, self.wakeups);
            let (doorbell, hosts) = (&*self.doorbell, &self.ends);
            let status = || LinkStatus {
                diagnosis: diagnosis.said().into(),
                ..status_of(first, kind, link, doorbell, hosts, wakeups, now)
            };
            self.board.offer(now, &mut pace, status);
            if self.board.is_stopping() {
                break Ok(());
            }
            if let Err(lost) = self.mapping.check() {
                break Err(lost);
            }
            if let Some(failure) = self.ends.iter().find_map(|end| end.failure()) {
                break refused(format!("{name}: {failure}"));
            }
            if let (Some(wait), Some(since)) = (self.wait, self.doorbell.absent_since_us())
                && now.saturating_sub(since) >= wait.as_micros() as u64
            {
                let seconds = wait.as_secs();
                break refused(match self.doorbell.counters().peers {
                    0 => format!(
                        "--wait {seconds}: no peer came to the doorbell {kind} of '{name}' in {seconds} s; start it, or wait longer"
                    ),
                    _ => format!(
                        "--wait {seconds}: the peer at the doorbell {kind} of '{name}' left, and none came back in {seconds} s; start it again, or wait longer"
                    ),
                });
            }

            watches.clear();
            watches.add(self.board.link.as_raw_fd(), true, false);
            self.doorbell.watch(&mut watches);
            let bells = 1..watches.len();
            self.ends.iter().for_each(|end| end.watch(&mut watches));
            let ends = bells.end..watches.len();
            let now = clock();
            let give_up = self.wait.zip(self.doorbell.absent_since_us());
            let deadlines = [
                Some(service.deadline),
                self.doorbell.deadline_us(),
                self.ends.iter().filter_map(|end| end.deadline_us()).min(),
                notices.deadline(),
                pace.deadline_us(),
                diagnosis.deadline(),
                give_up.map(|(wait, since)| since.saturating_add(wait.as_micros() as u64)),
            ];
            let next = deadlines.into_iter().flatten().min().unwrap_or(now);
            let timeout = if service.again { 0 } else { next.saturating_sub(now) };
            watches.wait(Some(timeout));
            self.wakeups += 1;
            if watches.any(0..1) {
                self.board.link.clear();
            }
            (bell, end) = (watches.any(bells), watches.any(ends));
        };
        self.link.shutdown();
        self.doorbell.ring();
        let (link, wakeups) = (&self.link, self.wakeups);
        self.board.leave(status_of(first, kind, link, self.doorbell, &self.ends, wakeups, clock()));
        outcome
    }
}

fn status_of(
    first: &LinkStatus,
    kind: &str,
    link: &Link<'_, Region>,
    doorbell: &dyn HostDoorbell,
    ends: &[Box<dyn HostEnd>],
    wakeups: u64,
    now: u64,
) -> LinkStatus {
    let snapshot = link.snapshot();
    let counters = doorbell.counters();
    LinkStatus {
        state: "serving".into(),
        doorbell: DoorbellStatus {
            kind: kind.into(),
            peer: doorbell.absent_since_us().is_none(),
            rung: counters.rung,
            merged: counters.merged,
            unheard: counters.unheard,
            heard: counters.heard,
            peers: counters.peers,
        },
        profile: profile_name(snapshot.profile).into(),
        pmm_epoch: snapshot.pmm_epoch,
        driver_epoch: snapshot.driver_epoch,
        adoptions: snapshot.counters.adoptions,
        plain_sessions: snapshot.counters.plain_sessions,
        silent_for: snapshot.silent_since.map(|since| now.saturating_sub(since) / 1_000_000),
        silences: snapshot.counters.silences,
        presumed_gone: snapshot.counters.presumed_gone,
        hung_up: snapshot.counters.hung_up,
        wipes: snapshot.counters.wipes,
        rings: snapshot.counters.rings,
        rerings: snapshot.counters.rerings,
        services: snapshot.counters.services,
        wakeups,
        last_words: String::from_utf8_lossy(link.last_words()).into_owned(),
        devices: snapshot
            .devices
            .iter()
            .flatten()
            .zip(ends)
            .map(|(device, end)| device_status(device, &end.state()))
            .collect(),
        ..first.clone()
    }
}

fn profile_name(profile: Profile) -> &'static str {
    match profile {
        Profile::None => "none",
        Profile::Extended => "extended",
        Profile::Plain => "plain",
    }
}

fn device_state(device: &DeviceSnapshot) -> &'static str {
    let state = match device {
        _ if device.must_reboot => "must-reboot",
        _ if device.held => "held",
        _ if device.fault != "none" => device.fault,
        _ if device.runs => "running",
        _ => "off",
    };
    // Nobody could wait for another.
    debug_assert!(DEVICE_STATES.contains(&state), "{state}");
    state
}

fn device_status(device: &DeviceSnapshot, host: &str) -> DeviceStatus {
    let sizes = device.queue_sizes.iter().zip(&device.queue_limits);
    let queues = sizes.zip(&device.in_flight).zip(&device.queues);
    DeviceStatus {
        name: device.kind.into(),
        state: device_state(device).into(),
        host: host.into(),
        features: device.features,
        resets: device.resets,
        ring_faults: device.ring_faults,
        features_refused: device.features_refused,
        queues_refused: device.queues_refused,
        last_refusal: device.last_refusal.map(|refusal| refusal.to_string()),
        queues: queues
            .take(device.queue_count)
            .map(|(((size, max_size), in_flight), counters)| QueueStatus {
                size: *size,
                max_size: *max_size,
                in_flight: *in_flight,
                requests: counters.requests,
                completed: counters.completed,
                malformed: counters.malformed,
                bytes: counters.bytes,
            })
            .collect(),
    }
}

/// What is logged of a link: the differences between snapshots, a while apart, each kind through a limit of its own,
/// because a guest can cause every one of them.
struct Notices {
    before: LinkSnapshot,
    words: Vec<u8>,
    at: Option<u64>,
    sessions: Limit,
    malformed: Limit,
    faults: Limit,
    last_words: Limit,
    wipes: Limit,
}

impl Notices {
    fn new(before: LinkSnapshot) -> Notices {
        let (sessions, malformed, faults, last_words, wipes) = Default::default();
        // A guest that this PMM finds at work is news, too.
        let mut before = before;
        before.devices.iter_mut().flatten().for_each(|device| device.must_reboot = false);
        Notices { before, words: Vec::new(), at: Some(0), sessions, malformed, faults, last_words, wipes }
    }

    /// Something has happened.
    fn stir(&mut self, now: u64) {
        self.at.get_or_insert(now.saturating_add(NOTICE_US));
    }

    fn is_due(&self, now: u64) -> bool {
        self.at.is_some_and(|at| at <= now)
    }

    fn deadline(&self) -> Option<u64> {
        self.at
    }

    fn look(&mut self, now: u64, after: LinkSnapshot, words: &[u8]) {
        self.at = None;
        let before = std::mem::replace(&mut self.before, after);
        let (was, is) = (&before.counters, &self.before.counters);
        if is.silences != was.silences {
            limited!(
                warn,
                self.sessions,
                now,
                "the guest has not acted on a doorbell for 10 s; it may compute, stand at a breakpoint or be gone. Its \
                 session goes on; --gone-after SECONDS would end it"
            );
        }
        if is.presumed_gone != was.presumed_gone {
            limited!(
                warn,
                self.sessions,
                now,
                "the guest was silent for longer than --gone-after allows: presumed gone, its session is ended"
            );
        }
        if is.hung_up != was.hung_up {
            limited!(
                info,
                self.sessions,
                now,
                "the doorbell's peer has hung up: its guest's session is ended"
            );
        }
        if is.wipes != was.wipes {
            limited!(warn, self.wipes, now, "the region was wiped; published again");
        }
        if is.adoptions != was.adoptions || before.driver_epoch != self.before.driver_epoch {
            match self.before.driver_epoch {
                Some(epoch) => limited!(info, self.sessions, now, "extended guest, epoch {epoch}"),
                None => limited!(info, self.sessions, now, "the extended session has ended"),
            }
        }
        if is.plain_sessions != was.plain_sessions {
            limited!(info, self.sessions, now, "plain guest");
        }
        if words != self.words && !words.is_empty() {
            self.words = words.to_vec();
            limited!(
                warn,
                self.last_words,
                now,
                "last words of the guest: {}",
                printable(&String::from_utf8_lossy(words))
            );
        }
        let profile = profile_name(self.before.profile);
        for (was, is) in before.devices.iter().zip(&self.before.devices) {
            let (Some(was), Some(is)) = (was, is) else { continue };
            let name = is.kind;
            if was.ring_faults != is.ring_faults {
                let what = is.last_ring_fault.map(|fault| format!("{fault:?}")).unwrap_or_default();
                limited!(warn, self.faults, now, "{name}: its rings are broken ({what})");
            }
            if was.features_refused != is.features_refused {
                limited!(
                    warn,
                    self.faults,
                    now,
                    "{name}: its driver accepted features that were not offered"
                );
            }
            if was.queues_refused != is.queues_refused {
                let why = is.last_refusal.map(|refusal| format!(": {refusal}")).unwrap_or_default();
                limited!(warn, self.faults, now, "{name}: a queue was refused{why}");
            }
            let state = device_state(is);
            if device_state(was) != state {
                match remedy(profile, state) {
                    Some(remedy) => limited!(warn, self.faults, now, "{name}: {state}: {remedy}"),
                    None => limited!(info, self.sessions, now, "{name}: {state}"),
                }
            }
            for (index, (was, is)) in was.queues.iter().zip(&is.queues).enumerate() {
                let more = is.malformed.wrapping_sub(was.malformed);
                if more != 0 {
                    let what = is.last_error.map(|error| format!(" ({error:?})")).unwrap_or_default();
                    limited!(
                        warn,
                        self.malformed,
                        now,
                        "{name}: {more} malformed requests on queue {index}{what}"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use hvl_shared_abi::header::{Window, reg};
    use hvl_shared_abi::mem::Mem;

    use super::*;
    use crate::doorbell::Counters;
    use crate::options::{Command, parse};

    /// A doorbell that panics when the link has been served a few times, and counts how often it is rung.
    struct Panics {
        rung: Arc<AtomicU32>,
        looks: u32,
    }

    impl HostDoorbell for Panics {
        fn ring(&mut self) {
            self.rung.fetch_add(1, Ordering::SeqCst);
        }
        fn acknowledge(&mut self) -> bool {
            false
        }
        fn can_lose(&self) -> bool {
            true
        }
        fn watch(&self, _watches: &mut Watches) {}
        fn progress(&mut self, _now_us: u64) -> bool {
            self.looks += 1;
            assert!(self.looks < 3, "the test's panic");
            false
        }
        fn deadline_us(&self) -> Option<u64> {
            Some(0)
        }
        fn absent_since_us(&self) -> Option<u64> {
            None
        }
        fn counters(&self) -> Counters {
            Counters::default()
        }
    }

    /// An end whose worker has panicked.
    struct Failed;

    impl HostEnd for Failed {
        fn failure(&self) -> Option<String> {
            Some("a worker panicked".into())
        }
        fn state(&self) -> std::borrow::Cow<'static, str> {
            "failed".into()
        }
    }

    /// Serves a link that ends by itself: its result, its last status, PmmEpoch and PmmBell.
    fn served(name: &str, change: impl FnOnce(&mut OpenLink)) -> (Failure, LinkStatus, u32, u32) {
        // The signals and the log are the process's; one at a time.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock();
        let control = std::env::temp_dir().join(format!("pmm-serve-{name}-{}", std::process::id()));
        let line = format!(
            "pmm run --no-dtb --shmem-addr 1M --shmem-size 64K --rng --control {}",
            control.display()
        );
        let Ok(Command::Run(run)) = parse(line.split_whitespace().map(Into::into)) else { panic!("{line}") };
        let mut opened = crate::open::open(&run).unwrap();
        let mut link = opened.links.remove(0);
        change(&mut link);
        let region = link.mapping.region();
        let board = Board::new(Arc::new(Waker::new().unwrap()), link.first_status()).unwrap();
        let failure = guarded(link, &board, None).unwrap_err();
        assert!(board.is_closed());
        let word = |offset| region.read32(Window::LINK.at(offset));
        (failure, board.latest(), word(reg::PMM_EPOCH), word(reg::PMM_BELL))
    }

    #[test]
    fn a_panic_of_a_links_thread_is_told_to_its_guest() {
        let rung = Arc::new(AtomicU32::new(0));
        let bell = rung.clone();
        let (failure, last, epoch, bells) =
            served("panic", |link| link.doorbell = Box::new(Panics { rung: bell, looks: 0 }));
        assert!(failure.to_string().contains("its thread panicked"), "{failure}");
        assert_eq!((last.state.as_str(), last.error), ("failed", Some(failure.to_string())));
        assert_eq!(epoch % 2, 1, "the guest is told that there is no PMM");
        // At the start, and at the end.
        assert!(rung.load(Ordering::SeqCst) >= 2 && bells >= 2, "the guest is rung for it");
    }

    #[test]
    fn a_panic_of_a_worker_ends_its_link_with_a_sentence() {
        let (failure, last, epoch, _) = served("worker", |link| link.devices[0].end = Box::new(Failed));
        assert!(failure.to_string().contains("a worker panicked"), "{failure}");
        assert_eq!((last.state.as_str(), epoch % 2), ("failed", 1));
    }
}
