//! The cases of the ring: what is timed, for each contender in the same way, and the limits that no contender can beat.

use crate::ends::{Bare, DEPTH, DeviceEnd, DriverEnd, MESSAGE, Message, Ours, Pair, Stock};
use crate::machine::{Cores, progress};
use hvl_oracle::Arena;
use hvl_shared_abi::{Mem, Region};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::time::{ClockId, clock_gettime};
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Nanoseconds a message, once measured, in memory that all contenders of a round use one after the other: how far a
/// line is from a core depends on its physical address, and that must be the same for all.
pub type Measure = Box<dyn Fn(Arena) -> f64>;

/// One case.
pub struct Case {
    /// Its name, for options and JSON.
    pub name: &'static str,
    /// What it is, for readers.
    pub title: &'static str,
    /// Bytes of a message, where it is their number that matters.
    pub bytes: Option<usize>,
    /// Ours, the stock pair if there is one, then the limits, each with its name.
    pub contenders: Vec<(&'static str, Measure)>,
}

/// All cases of the ring. Those that need two processors are left out where there is one.
pub fn all(cores: Cores) -> Vec<Case> {
    let mut cases = Vec::new();
    if let Some(other) = cores.device {
        cases.push(Case {
            name: "polled",
            title: "polled round trip of 64 B, two cores",
            bytes: None,
            contenders: vec![
                ("ours", Box::new(move |arena| round_trip(&Ours(arena), other))),
                ("stock", Box::new(move |arena| round_trip(&Stock(arena), other))),
                ("the same lines, no ring logic", Box::new(move |arena| round_trip(&Bare(arena), other))),
                ("two cache lines, ping-pong", Box::new(move |arena| two_lines(arena.region, other))),
            ],
        });
    }
    for (name, title, batch) in [
        ("batch-1", "ring work a message, both ends on one core, batches of 1", 1),
        ("batch-32", "ring work a message, both ends on one core, batches of 32", 32),
    ] {
        cases.push(Case {
            name,
            title,
            bytes: None,
            contenders: vec![
                ("ours", Box::new(move |arena| ring_work(&Ours(arena), batch))),
                ("stock", Box::new(move |arena| ring_work(&Stock(arena), batch))),
                ("the same lines, no ring logic", Box::new(move |arena| ring_work(&Bare(arena), batch))),
                ("memcpy, four of 64 B", Box::new(|_| memcpy())),
            ],
        });
    }
    if let Some(other) = cores.device {
        cases.push(Case {
            name: "pipeline",
            title: "pipeline of depth 64, polled, two cores",
            bytes: None,
            contenders: vec![
                ("ours", Box::new(move |arena| pipeline(&Ours(arena), other))),
                ("stock", Box::new(move |arena| pipeline(&Stock(arena), other))),
                ("the same lines, no ring logic", Box::new(move |arena| pipeline(&Bare(arena), other))),
            ],
        });
        cases.push(Case {
            name: "blocking",
            title: "blocking round trip of 64 B, eventfd both ways, two cores",
            bytes: None,
            contenders: vec![
                ("ours", Box::new(move |arena| blocking(&Ours(arena), other))),
                ("stock", Box::new(move |arena| blocking(&Stock(arena), other))),
                ("a raw eventfd, ping-pong", Box::new(move |_| raw_eventfd(other))),
            ],
        });
    }
    cases
}

/// Messages that warm caches and predictors up, and that are timed.
const WARM_UP: u32 = 1_000;
const ROUND_TRIPS: u32 = 20_000;
const RING_WORK: u32 = 64_000;
const PIPELINE: u32 = 64_000;
const BLOCKING: u32 = 5_000;

/// Times `messages` calls of `one`, after a warm-up of as many, or of [`WARM_UP`] if that is less.
pub fn time(messages: u32, one: impl FnMut(u32)) -> f64 {
    let start = Instant::now();
    time_by(move || start.elapsed().as_nanos() as f64, messages, one)
}

/// The same, in time that this thread ran: for work on one core, which then need not wait for anybody.
fn time_alone(messages: u32, one: impl FnMut(u32)) -> f64 {
    let clock = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
    };
    time_by(clock, messages, one)
}

fn time_by(clock: impl Fn() -> f64, messages: u32, mut one: impl FnMut(u32)) -> f64 {
    (0..WARM_UP.min(messages)).for_each(&mut one);
    progress();
    let start = clock();
    (0..messages).for_each(&mut one);
    let elapsed = clock() - start;
    progress();
    elapsed / f64::from(messages)
}

/// Runs `timed` here and `other` on the other core, until the timed part is over.
pub fn beside<T>(core: usize, other: impl FnOnce(&AtomicBool) + Send, timed: impl FnOnce() -> T) -> T {
    let (stop, ready) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            Cores::pin(core);
            ready.store(true, Ordering::Release);
            other(&stop);
        });
        while !ready.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let result = timed();
        stop.store(true, Ordering::Release);
        result
    })
}

/// The `n`-th request. They are made beforehand: a line that was just put together from smaller stores would have to
/// wait for them when it is copied, and hide what is measured.
fn request(n: u32) -> &'static Message {
    static REQUESTS: [Message; 256] = {
        let mut requests = [[0x5a; MESSAGE]; 256];
        let mut n = 0;
        while n < 256 {
            requests[n][0] = n as u8;
            n += 1;
        }
        requests
    };
    &REQUESTS[usize::from(n as u8)]
}

/// Whether it is the answer to request `n`: a contender that loses messages has no business here.
fn check(answer: &Message, n: u32) {
    assert_eq!(answer[0], n as u8, "the answer to message {n}");
}

fn round_trip<P: Pair>(pair: &P, core: usize) -> f64 {
    let (mut driver, mut device) = pair.ends();
    let serve = move |stop: &AtomicBool| {
        while !stop.load(Ordering::Relaxed) {
            if device.serve() {
                black_box(device.flush());
            } else {
                spin_loop();
            }
        }
    };
    beside(core, serve, || {
        let mut answer = [0; MESSAGE];
        time(ROUND_TRIPS, |n| {
            driver.send(request(n));
            black_box(driver.flush());
            while !driver.receive(&mut answer) {
                spin_loop();
            }
            check(&answer, n);
        })
    })
}

fn ring_work<P: Pair>(pair: &P, batch: u32) -> f64 {
    let (mut driver, mut device) = pair.ends();
    let mut answer = [0; MESSAGE];
    let a_batch = |n: u32| {
        for i in 0..batch {
            driver.send(request(n + i));
        }
        black_box(driver.flush());
        while device.serve() {}
        black_box(device.flush());
        for i in 0..batch {
            assert!(driver.receive(&mut answer), "the device answers at once");
            check(&answer, n + i);
        }
    };
    time_alone(RING_WORK / batch, a_batch) / f64::from(batch)
}

/// Most messages that either end of a pipeline handles before it shows them: half of what fits.
const BATCH: u32 = DEPTH as u32 / 2;

fn pipeline<P: Pair>(pair: &P, core: usize) -> f64 {
    let (mut driver, mut device) = pair.ends();
    let serve = move |stop: &AtomicBool| {
        while !stop.load(Ordering::Relaxed) {
            let served = (0..BATCH).take_while(|_| device.serve()).count();
            if served != 0 {
                black_box(device.flush());
            } else {
                spin_loop();
            }
        }
    };
    beside(core, serve, || {
        let mut answer = [0; MESSAGE];
        // Runs until as many messages as asked have come back; what is in flight then is the next call's.
        let (mut sent, mut received) = (0, 0);
        let mut run = |messages: u32| {
            let end = received + messages;
            while received != end {
                let mut batch = 0;
                while batch < BATCH && driver.send(request(sent)) {
                    (sent, batch) = (sent + 1, batch + 1);
                }
                if batch != 0 {
                    black_box(driver.flush());
                }
                let mut any = false;
                while received != end && driver.receive(&mut answer) {
                    check(&answer, received);
                    (received, any) = (received + 1, true);
                }
                if !any {
                    spin_loop();
                }
            }
        };
        run(WARM_UP);
        progress();
        let start = Instant::now();
        run(PIPELINE);
        progress();
        start.elapsed().as_nanos() as f64 / f64::from(PIPELINE)
    })
}

fn wait(fd: &OwnedFd) {
    rustix::io::read(fd, &mut [0; 8]).expect("an eventfd can be read");
}
fn wake(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).expect("an eventfd can be written");
}
fn doorbells() -> [OwnedFd; 2] {
    std::array::from_fn(|_| eventfd(0, EventfdFlags::CLOEXEC).expect("the kernel has eventfds"))
}

fn blocking<P: Pair>(pair: &P, core: usize) -> f64 {
    let (mut driver, mut device) = pair.ends();
    let [kick, call] = doorbells();
    let serve = |stop: &AtomicBool| {
        while !stop.load(Ordering::Acquire) {
            let served = std::iter::from_fn(|| device.serve().then_some(())).count();
            if served != 0 {
                if device.flush() {
                    wake(&call);
                }
            } else if !device.stay_awake() {
                wait(&kick);
            }
        }
    };
    beside_blocking(core, serve, &kick, || {
        let mut answer = [0; MESSAGE];
        time(BLOCKING, |n| {
            driver.send(request(n));
            if driver.flush() {
                wake(&kick);
            }
            while !driver.receive(&mut answer) {
                if !driver.stay_awake() {
                    wait(&call);
                }
            }
            check(&answer, n);
        })
    })
}

/// As [`beside`], where the other side sleeps and is woken to see that it is over.
fn beside_blocking(
    core: usize,
    other: impl FnOnce(&AtomicBool) + Send,
    kick: &OwnedFd,
    timed: impl FnOnce() -> f64,
) -> f64 {
    let over = AtomicBool::new(false);
    beside(
        core,
        |_| other(&over),
        || {
            let result = timed();
            over.store(true, Ordering::Release);
            wake(kick);
            result
        },
    )
}

fn raw_eventfd(core: usize) -> f64 {
    let [kick, call] = doorbells();
    let answer = |stop: &AtomicBool| loop {
        wait(&kick);
        if stop.load(Ordering::Acquire) {
            break;
        }
        wake(&call);
    };
    beside_blocking(core, answer, &kick, || {
        time(BLOCKING, |_| {
            wake(&kick);
            wait(&call);
        })
    })
}

/// Two words on two lines, one written by each side.
fn two_lines(m: Region, core: usize) -> f64 {
    const PING: u32 = 0;
    const PONG: u32 = 128;
    m.write32(PING, 0);
    m.write32(PONG, 0);
    let answer = |stop: &AtomicBool| {
        let mut seen = 0;
        while !stop.load(Ordering::Relaxed) {
            let now = m.observe32(PING);
            if now != seen {
                seen = now;
                m.publish32(PONG, now);
            } else {
                spin_loop();
            }
        }
    };
    beside(core, answer, || {
        let mut round = 0u32;
        time(ROUND_TRIPS, |_| {
            round += 1;
            m.publish32(PING, round);
            while m.observe32(PONG) != round {
                spin_loop();
            }
        })
    })
}

/// The four copies that a message is, between memory that nobody shares.
fn memcpy() -> f64 {
    let (mut shared, mut private) = ([[1u8; MESSAGE]; 2 * DEPTH as usize], [0u8; MESSAGE]);
    time_alone(RING_WORK, |n| {
        let [request, answer] = [0, 1].map(|side| (n % u32::from(DEPTH)) as usize * 2 + side);
        black_box(&mut shared)[request].copy_from_slice(black_box(&private));
        black_box(&mut private).copy_from_slice(&black_box(&shared)[request]);
        black_box(&mut shared)[answer].copy_from_slice(black_box(&private));
        black_box(&mut private).copy_from_slice(&black_box(&shared)[answer]);
    })
}
