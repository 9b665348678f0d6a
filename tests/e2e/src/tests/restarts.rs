//! Reboots and deaths of either side at any instant, while numbered lines flow both ways.
//!
//! Throughput is compared like this: between two restarts lines flow for an interval of some hundred or thousand
//! lines, whose number is chosen once so that it lasts long enough to be measured. The rate of an interval is taken
//! from the first line after everything is up to its last. Undisturbed intervals, of the same number of lines and
//! without a restart before them, are measured in between, all through the run, so that a busy machine slows both
//! alike; the medians are compared. Where that falls short, it is measured once more, and that decides.

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
    reboots: u64,
    pmms: u64,
    guests: u64,
    both: u64,
    /// How long an interval is meant to last, in milliseconds.
    interval_ms: u64,
}

/// With the shell as a process.
pub const HOST: Plan = Plan { reboots: 200, pmms: 200, guests: 200, both: 20, interval_ms: 60 };
/// With the shell on the board.
pub const R5: Plan = Plan { reboots: 50, pmms: 50, guests: 10, both: 5, interval_ms: 250 };

/// Seconds without a line that are too many.
const SILENCE: u64 = 60;
/// Of the undisturbed throughput, at least this much.
const SHARE: f64 = 0.7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Reboot,
    Pmm,
    Guest,
    Both,
}

impl Event {
    const ALL: [Event; 4] = [Event::Reboot, Event::Pmm, Event::Guest, Event::Both];

    fn name(self) -> &'static str {
        match self {
            Event::Reboot => "reboot",
            Event::Pmm => "pmm killed",
            Event::Guest => "guest killed",
            Event::Both => "both killed",
        }
    }
}

pub fn run(tools: &Tools, kind: Kind, plan: Plan) -> Result<()> {
    let mut rig = Rig::new(tools, "restarts", kind, Bell::Direct)?;
    rig.start()?;
    let traffic = Traffic::start(&mut rig.terminal);
    let mut run = Run {
        rig,
        traffic,
        dice: Dice::new(tools.seed),
        lines: 0,
        between: Vec::new(),
        undisturbed: Vec::new(),
        recoveries: Vec::new(),
        greeted: 0,
    };
    run.calibrate(plan.interval_ms)?;
    let mut events = Vec::new();
    for (event, count) in Event::ALL.into_iter().zip([plan.reboots, plan.pmms, plan.guests, plan.both]) {
        events.extend((0..tools.scaled(count)).map(|_| event));
    }
    run.dice.shuffle(&mut events);
    println!("{} events, intervals of {} lines", events.len(), run.lines);
    run.all(&events)?;
    run.report();
    if run.share() < SHARE {
        println!("throughput between restarts is short; measuring once more");
        (run.between, run.undisturbed) = (Vec::new(), Vec::new());
        events.truncate(60);
        run.all(&events)?;
        run.report();
        let share = run.share();
        ensure!(share >= SHARE, "between restarts {:.0} % of the undisturbed throughput", share * 100.0);
    }
    Ok(())
}

struct Run<'t> {
    rig: Rig<'t>,
    traffic: Traffic,
    dice: Dice,
    /// Lines of an interval.
    lines: u64,
    /// Lines per second between restarts, and with none.
    between: Vec<f64>,
    undisturbed: Vec<f64>,
    recoveries: Vec<(Event, Duration)>,
    /// How many greetings there are when the present guest has said its own.
    greeted: u64,
}

impl Run<'_> {
    /// Chooses how many lines an interval has.
    fn calibrate(&mut self, interval_ms: u64) -> Result<()> {
        self.interval(200)?;
        let rate = self.interval(1000)?;
        self.lines = ((rate * interval_ms as f64 / 1000.0) as u64).clamp(50, 50_000);
        for _ in 0..20 {
            let rate = self.interval(self.lines)?;
            self.undisturbed.push(rate);
        }
        Ok(())
    }

    /// Lets so many lines flow and returns how many that were in a second.
    fn interval(&mut self, lines: u64) -> Result<f64> {
        self.flow(|traffic| traffic.flows())?;
        let (start, first) = (Instant::now(), self.traffic.moved());
        self.flow(|traffic| traffic.moved() >= first + lines)?;
        Ok((self.traffic.moved() - first) as f64 / start.elapsed().as_secs_f64())
    }

    fn flow(&mut self, done: impl FnMut(&Traffic) -> bool) -> Result<()> {
        let Run { rig, traffic, .. } = self;
        match traffic.run(&mut rig.terminal, SILENCE, done) {
            Ok(Turn::Open) => Ok(()),
            Ok(Turn::Closed) => {
                bail!("the console was closed though nobody killed the pmm; see {}", rig.dir().display())
            }
            Err(error) => {
                let status = rig.pmm().and_then(|pmm| pmm.status());
                Err(error).with_context(|| {
                    format!("the pmm says: {}", status.map_or_else(|e| e.to_string(), |s| s.to_string()))
                })
            }
        }
    }

    fn all(&mut self, events: &[Event]) -> Result<()> {
        for (number, &event) in events.iter().enumerate() {
            self.one(event)
                .with_context(|| format!("event {number} of {}, {}", events.len(), event.name()))?;
            if number % 10 == 9 {
                for _ in 0..3 {
                    let rate = self.interval(self.lines)?;
                    self.undisturbed.push(rate);
                }
            }
        }
        Ok(())
    }

    /// An interval, and then a restart. One restart in four comes before the last one is over, where that is possible.
    fn one(&mut self, event: Event) -> Result<()> {
        if self.traffic.flows() {
            let rate = self.interval(self.lines)?;
            self.between.push(rate);
            // The restart comes anywhere in the traffic, not when an interval ends.
            let more = self.traffic.moved() + self.dice.roll(self.lines / 4);
            self.flow(|traffic| traffic.moved() >= more)?;
        }
        self.rig.check()?;
        let start = Instant::now();
        match event {
            Event::Reboot => {
                // Only a shell that listens can be told.
                self.recovered()?;
                self.expect_greeting();
                self.rig.terminal.send(b"\x03\x15reboot\r");
            }
            Event::Pmm => {
                self.rig.kill_pmm()?;
                self.rest()?;
                self.start_pmm()?;
            }
            Event::Guest => {
                self.rig.guest.kill()?;
                self.expect_greeting();
                self.rig.guest.start()?;
            }
            Event::Both => {
                self.rig.guest.strike();
                self.rig.pmm.iter_mut().for_each(|pmm| pmm.strike());
                self.rig.guest.kill()?;
                self.rig.kill_pmm()?;
                self.rest()?;
                self.expect_greeting();
                let pmm_first = self.dice.roll(2) == 0;
                if pmm_first {
                    self.start_pmm()?;
                }
                self.rig.guest.start()?;
                if !pmm_first {
                    self.start_pmm()?;
                }
            }
        }
        if event == Event::Reboot || self.dice.roll(4) != 0 {
            self.recovered()?;
            self.recoveries.push((event, start.elapsed()));
        }
        Ok(())
    }

    fn expect_greeting(&mut self) {
        self.greeted = self.traffic.counts().greetings + 1;
    }

    /// Waits until the present guest has greeted and lines flow.
    fn recovered(&mut self) -> Result<()> {
        let greeted = self.greeted;
        self.flow(|traffic| traffic.flows() && traffic.counts().greetings >= greeted)
    }

    /// Reads what the last PMM had written, to its end.
    fn rest(&mut self) -> Result<()> {
        while self.traffic.run(&mut self.rig.terminal, SILENCE, |_| false)? != Turn::Closed {}
        Ok(())
    }

    fn start_pmm(&mut self) -> Result<()> {
        self.rig.start_pmm()?;
        self.traffic.reconnected(&mut self.rig.terminal);
        Ok(())
    }

    fn share(&self) -> f64 {
        median(&self.between) / median(&self.undisturbed)
    }

    fn report(&self) {
        println!("{:?}", self.traffic.counts());
        for event in Event::ALL {
            let mut times: Vec<f64> = self
                .recoveries
                .iter()
                .filter(|(of, _)| *of == event)
                .map(|(_, time)| time.as_secs_f64() * 1000.0)
                .collect();
            times.sort_by(f64::total_cmp);
            if let Some(worst) = times.last() {
                println!(
                    "{}: lines flow again after {:.1} ms (median of {}), {worst:.1} ms at worst",
                    event.name(),
                    median(&times),
                    times.len()
                );
            }
        }
        println!(
            "throughput: {:.0} lines/s between restarts ({} intervals), {:.0} undisturbed ({}): {:.0} %",
            median(&self.between),
            self.between.len(),
            median(&self.undisturbed),
            self.undisturbed.len(),
            self.share() * 100.0
        );
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
