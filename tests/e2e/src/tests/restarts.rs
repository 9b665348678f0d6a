//! Restarts and deaths of either side at any instant, while numbered lines flow both ways.
//!
//! Throughput is compared with a twin: the same guest with the same PMM, which nobody disturbs. After each restart, as
//! soon as everything is up, lines flow for an interval, whose number of lines was chosen once so that it lasts long
//! enough to be measured; at once before or after it, the twin has one of as many lines, with the other held. So a busy
//! machine slows both alike, and the median of the pairs' ratios is what is compared. Where it falls short, it is
//! measured once more, and that decides.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::Tools;
use crate::dice::Dice;
use crate::guest::Kind;
use crate::rig::{Bell, Rig};
use crate::terminal::Turn;
use crate::traffic::Traffic;

/// How often what is killed.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// By the shell's own command.
    reboots: u64,
    /// By the board's reset line.
    resets: u64,
    pmms: u64,
    guests: u64,
    both: u64,
    /// How long an interval is meant to last, in milliseconds.
    interval_ms: u64,
}

/// With the shell as a process.
pub const HOST: Plan = Plan { reboots: 200, resets: 0, pmms: 200, guests: 200, both: 20, interval_ms: 15 };
/// With the shell on the board.
pub const R5: Plan = Plan { reboots: 50, resets: 10, pmms: 50, guests: 10, both: 5, interval_ms: 120 };

/// Seconds without a line that are too many.
const SILENCE: u64 = 60;
/// Of the undisturbed throughput, at least this much.
const SHARE: f64 = 0.7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Reboot,
    Reset,
    Pmm,
    Guest,
    Both,
}

impl Event {
    const ALL: [Event; 5] = [Event::Reboot, Event::Reset, Event::Pmm, Event::Guest, Event::Both];

    fn name(self) -> &'static str {
        match self {
            Event::Reboot => "reboot",
            Event::Reset => "reset",
            Event::Pmm => "pmm killed",
            Event::Guest => "guest killed",
            Event::Both => "both killed",
        }
    }
}

pub fn run(tools: &Tools, kind: Kind, plan: Plan) -> Result<()> {
    let mut run = Run {
        mortal: Pair::start(tools, "restarts", kind)?,
        twin: Pair::start(tools, "twin", kind)?,
        dice: Dice::new(tools.seed),
        lines: 0,
        pairs: Vec::new(),
        recoveries: Vec::new(),
        greeted: 0,
    };
    run.calibrate(plan.interval_ms)?;
    let mut events = Vec::new();
    for (event, count) in
        Event::ALL.into_iter().zip([plan.reboots, plan.resets, plan.pmms, plan.guests, plan.both])
    {
        let count = if count == 0 { 0 } else { tools.scaled(count) };
        events.extend((0..count).map(|_| event));
    }
    run.dice.shuffle(&mut events);
    println!("{} events, intervals of {} lines", events.len(), run.lines);
    run.all(&events)?;
    run.report();
    if run.share() < SHARE {
        println!("throughput between restarts is short; measuring once more");
        run.pairs.clear();
        events.truncate(60);
        run.all(&events)?;
        run.report();
        let share = run.share();
        ensure!(share >= SHARE, "between restarts {:.0} % of the undisturbed throughput", share * 100.0);
    }
    Ok(())
}

/// A rig and what flows in it.
struct Pair<'t> {
    rig: Rig<'t>,
    traffic: Traffic,
}

impl<'t> Pair<'t> {
    fn start(tools: &'t Tools, name: &str, kind: Kind) -> Result<Pair<'t>> {
        let mut rig = Rig::new(tools, name, kind, Bell::Direct)?;
        rig.start()?;
        let traffic = Traffic::start(&mut rig.terminal);
        Ok(Pair { rig, traffic })
    }

    /// Lets so many lines flow, and returns how many that were in a second.
    fn interval(&mut self, lines: u64) -> Result<f64> {
        self.flow(Traffic::flows)?;
        let (start, first) = (Instant::now(), self.traffic.moved());
        self.flow(|traffic| traffic.moved() >= first + lines)?;
        Ok((self.traffic.moved() - first) as f64 / start.elapsed().as_secs_f64())
    }

    /// What the PMM says of its guest.
    fn session(&self) -> Result<Session> {
        let status = self.rig.pmm()?.status()?;
        let link = &status["links"][0];
        let adoptions = link["adoptions"].as_u64().context("the pmm counts no adoptions")?;
        Ok(Session { adoptions, epoch: link["driver_epoch"].as_u64() })
    }

    fn hold(&mut self) -> Result<()> {
        self.traffic.hold(&mut self.rig.terminal);
        self.flow(Traffic::is_held)
    }

    fn resume(&mut self) {
        self.traffic.resume(&mut self.rig.terminal);
    }

    fn flow(&mut self, done: impl FnMut(&Traffic) -> bool) -> Result<()> {
        let Pair { rig, traffic } = self;
        match traffic.run(&mut rig.terminal, SILENCE, done) {
            Ok(Turn::Open) => Ok(()),
            Ok(Turn::Closed) => {
                bail!("the console was closed though nobody killed the pmm; see {}", rig.dir().display())
            }
            Err(error) => {
                let status = rig.pmm().and_then(|pmm| pmm.status());
                let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                Err(error).with_context(|| format!("the pmm says: {status}"))
            }
        }
    }
}

/// A guest, as the PMM has met it.
#[derive(Debug)]
struct Session {
    /// Guests that this PMM has adopted.
    adoptions: u64,
    /// The start of the present one.
    epoch: Option<u64>,
}

struct Run<'t> {
    mortal: Pair<'t>,
    twin: Pair<'t>,
    dice: Dice,
    /// Lines of an interval.
    lines: u64,
    /// Lines per second between restarts, and the twin's.
    pairs: Vec<(f64, f64)>,
    recoveries: Vec<(Event, Duration)>,
    /// How many greetings there are when the present guest has said its own.
    greeted: u64,
}

impl Run<'_> {
    /// Chooses how many lines an interval has. The twin is held afterwards.
    fn calibrate(&mut self, interval_ms: u64) -> Result<()> {
        // Doubled until it is long enough: what waits in sockets makes short ones seem fast.
        self.lines = 1000;
        loop {
            let rate = self.twin.interval(self.lines)?;
            if self.lines as f64 / rate * 1000.0 >= interval_ms as f64 {
                break;
            }
            self.lines *= 2;
        }
        self.twin.hold()?;
        Ok(())
    }

    fn all(&mut self, events: &[Event]) -> Result<()> {
        for (number, &event) in events.iter().enumerate() {
            let one = self.one(event);
            one.with_context(|| format!("event {number} of {}, {}", events.len(), event.name()))?;
        }
        self.recovered()
    }

    /// An interval, and one of the twin, in either order. The mortal's lines flow before and afterwards.
    fn pair(&mut self) -> Result<()> {
        let twin_first = self.dice.roll(2) == 0;
        let first = if twin_first { None } else { Some(self.mortal.interval(self.lines)?) };
        self.mortal.hold()?;
        self.twin.resume();
        let undisturbed = self.twin.interval(self.lines)?;
        self.twin.hold()?;
        self.mortal.resume();
        let between = match first {
            Some(first) => first,
            None => self.mortal.interval(self.lines)?,
        };
        self.pairs.push((between, undisturbed));
        Ok(())
    }

    /// An interval, and then a restart. One restart in four comes before the last one is over, where that is possible.
    fn one(&mut self, event: Event) -> Result<()> {
        if self.mortal.traffic.flows() && self.mortal.traffic.counts().greetings >= self.greeted {
            self.pair()?;
            // The restart comes anywhere in the traffic, not when an interval ends.
            let more = self.mortal.traffic.moved() + self.dice.roll(self.lines / 4);
            self.mortal.flow(|traffic| traffic.flows() && traffic.moved() >= more)?;
        }
        if event == Event::Reboot {
            // Only a shell that listens can be told.
            self.recovered()?;
        }
        self.mortal.rig.check()?;
        let (before, start) = (self.mortal.session()?, Instant::now());
        match event {
            Event::Reboot => {
                self.expect_greeting();
                self.mortal.rig.terminal.send(b"\x03\x15reboot\r");
            }
            Event::Reset => {
                self.expect_greeting();
                self.mortal.rig.guest.reset()?;
            }
            Event::Pmm => {
                self.mortal.rig.kill_pmm()?;
                self.rest()?;
                self.start_pmm()?;
            }
            Event::Guest => {
                self.mortal.rig.guest.kill()?;
                self.expect_greeting();
                self.mortal.rig.guest.start()?;
            }
            Event::Both => {
                self.mortal.rig.guest.strike();
                self.mortal.rig.pmm.iter_mut().for_each(|pmm| pmm.strike());
                self.mortal.rig.guest.kill()?;
                self.mortal.rig.kill_pmm()?;
                self.rest()?;
                self.expect_greeting();
                let pmm_first = self.dice.roll(2) == 0;
                if pmm_first {
                    self.start_pmm()?;
                }
                self.mortal.rig.guest.start()?;
                if !pmm_first {
                    self.start_pmm()?;
                }
            }
        }
        if event == Event::Reboot || self.dice.roll(4) != 0 {
            self.recovered()?;
            self.recoveries.push((event, start.elapsed()));
            // A greeting is only words: the PMM has met another start of the guest.
            if !matches!(event, Event::Pmm | Event::Both) {
                let after = self.mortal.session()?;
                ensure!(
                    after.adoptions > before.adoptions && after.epoch != before.epoch,
                    "the guest greeted and did not start anew: {before:?}, {after:?}"
                );
            }
        }
        Ok(())
    }

    fn expect_greeting(&mut self) {
        self.greeted = self.mortal.traffic.counts().greetings + 1;
    }

    /// Waits until the present guest has greeted and lines flow.
    fn recovered(&mut self) -> Result<()> {
        let greeted = self.greeted;
        self.mortal.flow(|traffic| traffic.flows() && traffic.counts().greetings >= greeted)
    }

    /// Reads what the last PMM had written, to its end.
    fn rest(&mut self) -> Result<()> {
        while self.mortal.traffic.run(&mut self.mortal.rig.terminal, SILENCE, |_| false)? != Turn::Closed {}
        Ok(())
    }

    fn start_pmm(&mut self) -> Result<()> {
        self.mortal.rig.start_pmm()?;
        self.mortal.traffic.reconnected(&mut self.mortal.rig.terminal);
        Ok(())
    }

    fn share(&self) -> f64 {
        median(self.pairs.iter().map(|(between, undisturbed)| between / undisturbed))
    }

    fn report(&self) {
        println!("{:?}", self.mortal.traffic.counts());
        for event in Event::ALL {
            let times = self.recoveries.iter().filter(|(of, _)| *of == event);
            let times: Vec<f64> = times.map(|(_, time)| time.as_secs_f64() * 1000.0).collect();
            if let Some(worst) = times.iter().copied().reduce(f64::max) {
                println!(
                    "{}: lines flow again after {:.1} ms (median of {}), {worst:.1} ms at worst",
                    event.name(),
                    median(times.iter().copied()),
                    times.len()
                );
            }
        }
        println!(
            "throughput: {:.0} lines/s between restarts, {:.0} undisturbed; {:.0} % in the median of {} pairs",
            median(self.pairs.iter().map(|pair| pair.0)),
            median(self.pairs.iter().map(|pair| pair.1)),
            self.share() * 100.0,
            self.pairs.len()
        );
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
