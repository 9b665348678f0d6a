//! OpenAMP's front-end, as a strict model in this process, at the other end of a real PMM: the region is a file that
//! both map, the doorbells are datagrams, heard one by one or merged.
//!
//! It boots and reboots; with `--state FILE` a PMM that was killed is followed by one that goes on where it was; without
//! it the next one says that the guest must be rebooted, and serves it when it was.

use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hvl_openamp::{FrontEnd, Generation, World};
use hvl_shared_abi::{Mem, Region};
use serde_json::Value;

use crate::Tools;
use crate::dice::Dice;
use crate::guest::Place;
use crate::pmm::Pmm;
use crate::rig::{UP, directory};
use crate::terminal::{Terminal, wait};
use crate::{guard::Guard, memory};

const BASE: u64 = 0x3700_0000;
const LEN: u32 = 0x10_0000;
/// Region offsets of what the front-end lays out.
const RNG_RINGS: u32 = 0x1000;
const CONSOLE_RINGS: u32 = 0x4000;
const POOL: u32 = 0x8000;
const INPUT: u32 = POOL + 0x1000;
const GENERATIONS: [Generation; 4] = [Generation::G1, Generation::G2, Generation::G3, Generation::G4];
const KILLS: u64 = 20;

/// The doorbell as the front-end has it.
struct Wire {
    socket: UnixDatagram,
    pmm: PathBuf,
    dice: Dice,
    /// Rings wait to be merged with others, and those that come together are heard as one.
    merge: bool,
    pending: bool,
}

impl Wire {
    fn send(&mut self) {
        self.pending = false;
        // Nobody there, or no room: a lost doorbell, as with any mailbox.
        let _ = self.socket.send_to(&[1], &self.pmm);
    }
}

impl World for Wire {
    fn ring(&mut self) {
        self.pending = true;
        if !self.merge {
            self.send();
        }
    }

    fn pause(&mut self) {
        if self.pending && self.dice.roll(3) == 0 {
            self.send();
        }
    }

    fn wait(&mut self, what: &str) {
        if self.pending {
            self.send();
        }
        let guard = Guard::new(UP, what);
        while !self.rung() {
            let left = guard.left().unwrap_or_else(|error| panic!("the front-end {error}"));
            let woke = wait(&[self.socket.as_fd()], None, left.min(Duration::from_secs(UP)));
            woke.unwrap_or_else(|error| panic!("{error}"));
        }
    }

    fn halt(&mut self, micros: u64) {
        panic!(
            "no front-end of this test is to be halted, for {micros} us or any other time: its time is real"
        );
    }

    fn rung(&mut self) -> bool {
        let most = if self.merge { 64 } else { 1 };
        (0..most).take_while(|_| self.socket.recv(&mut [0; 8]).is_ok()).count() > 0
    }
}

struct Board<'t> {
    tools: &'t Tools,
    dir: PathBuf,
    region: Region,
    wire: Wire,
    pmm: Option<Pmm>,
    terminal: Terminal,
    /// Windows of the two devices.
    windows: [u32; 2],
    boots: u64,
}

pub fn run(tools: &Tools) -> Result<()> {
    for merge in [false, true] {
        for generation in GENERATIONS {
            let name = format!("{generation:?}-{}", if merge { "merged" } else { "single" });
            Board::new(tools, &name, merge)?.live(generation).with_context(|| name.clone())?;
            println!("{name}: booted, rebooted, went on after {} SIGKILLs", tools.scaled(KILLS));
        }
    }
    Ok(())
}

impl<'t> Board<'t> {
    fn new(tools: &'t Tools, name: &str, merge: bool) -> Result<Board<'t>> {
        let dir = directory(tools, name)?;
        std::fs::File::create(dir.join("memory"))?.set_len(LEN.into())?;
        let socket = UnixDatagram::bind(dir.join("guest-bell"))?;
        socket.set_nonblocking(true)?;
        let dice = Dice::new(tools.seed);
        let wire = Wire { socket, pmm: dir.join("pmm-bell"), dice, merge, pending: false };
        let region = memory::map(&dir.join("memory"), 0, LEN)?;
        let terminal = Terminal::default();
        Ok(Board { tools, dir, region, wire, pmm: None, terminal, windows: [0; 2], boots: 0 })
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Starts a PMM, in place of the one that runs.
    fn start_pmm(&mut self, with_state: bool) -> Result<()> {
        if let Some(pmm) = self.pmm.take() {
            pmm.kill()?;
        }
        let memory = Place { file: self.dir.join("memory"), offset: 0, base: BASE, size: LEN.into() };
        let mut options = memory.options();
        let bell = format!("unix-dgram:bind={},peer={}", self.path("pmm-bell"), self.path("guest-bell"));
        let console = format!("unix:{}", self.path("console"));
        options.extend(["--rng", "--console", &console, "--doorbell", &bell].map(String::from));
        if with_state {
            options.extend(["--state".into(), self.path("state")]);
        }
        let log = self.dir.join("pmm.log");
        let pmm = Pmm::start(&self.tools.pmm, &self.dir.join("control"), &options, &log)?;
        pmm.wait_for("the pmm to serve", |status| status["links"][0]["state"] == "serving")?;
        self.pmm = Some(pmm);
        self.terminal.connect(Path::new(&self.path("console")))?;
        for (device, id) in [4, 3].into_iter().enumerate() {
            let window = (0..8).find(|window| self.region.read32(window * 0x200 + 8) == id);
            self.windows[device] = window.with_context(|| format!("no device {id} in the header"))?;
        }
        Ok(())
    }

    fn boot(&mut self, generation: Generation) -> (FrontEnd, FrontEnd) {
        self.boots += 1;
        let [rng, console] = self.windows;
        let mut rng = FrontEnd::new(self.region, BASE, rng, generation, RNG_RINGS, &[2]);
        let mut console = FrontEnd::new(self.region, BASE, console, generation, CONSOLE_RINGS, &[4, 4]);
        rng.boot(&mut self.wire, 4, 0);
        console.boot(&mut self.wire, 3, 1);
        (rng, console)
    }

    fn live(&mut self, generation: Generation) -> Result<()> {
        self.start_pmm(true)?;
        for _ in 0..3 {
            let (mut rng, mut console) = self.boot(generation);
            self.draw(&mut rng)?;
            self.talk(&mut console, true)?;
            // It dies with requests in flight.
            rng.add(&mut self.wire, 0, POOL, 16, true);
        }
        let (mut rng, mut console) = self.boot(generation);
        self.talk(&mut console, true)?;
        for kill in 0..self.tools.scaled(KILLS) {
            let work = self.survive(kill, &mut rng, &mut console);
            work.with_context(|| format!("SIGKILL {kill} with --state"))?;
        }
        self.start_pmm(false)?;
        let pmm = self.pmm.as_ref().context("no pmm runs")?;
        let all = |status: &Value, state: &str| {
            let devices = status["links"][0]["devices"].as_array();
            devices.is_some_and(|devices| devices.iter().all(|device| device["state"] == state))
        };
        pmm.wait_for("both devices to say must-reboot", |status| all(status, "must-reboot"))?;
        let (mut rng, mut console) = self.boot(generation);
        self.draw(&mut rng)?;
        self.talk(&mut console, true)?;
        let pmm = self.pmm.as_ref().context("no pmm runs")?;
        pmm.wait_for("both devices to run", |status| all(status, "running"))?;
        Ok(())
    }

    /// A PMM dies with a request in flight, or while nothing is, or while several are; the next one goes on.
    fn survive(&mut self, kill: u64, rng: &mut FrontEnd, console: &mut FrontEnd) -> Result<()> {
        let in_flight = kill % 3;
        for request in 0..in_flight {
            rng.add(&mut self.wire, 0, POOL + 64 * request as u32, 64, true);
        }
        self.start_pmm(true)?;
        let mut done = 0;
        while done < in_flight {
            done += rng.complete(&mut self.wire).len() as u64;
        }
        self.draw(rng)?;
        // The input buffer is still the one that was posted before.
        self.talk(console, false)
    }

    fn draw(&mut self, rng: &mut FrontEnd) -> Result<()> {
        for round in 0..3 {
            self.region.copy_out(POOL, &[0; 64]);
            rng.add(&mut self.wire, 0, POOL, 64, true);
            let done = rng.complete(&mut self.wire);
            ensure!(done == [(0, POOL, 64)], "round {round}: {done:?}");
            let mut bytes = [0; 64];
            self.region.copy_in(POOL, &mut bytes);
            ensure!(bytes.iter().any(|&byte| byte != 0), "round {round}: no random bytes");
        }
        Ok(())
    }

    /// Lines to the terminal, and a word from it. `post`: no buffer is there for it yet.
    fn talk(&mut self, console: &mut FrontEnd, post: bool) -> Result<()> {
        if post {
            console.add(&mut self.wire, 0, INPUT, 32, true);
        }
        for round in 0..5 {
            let line = format!("boot {} line {round}\n", self.boots);
            self.region.copy_out(POOL + 0x100, line.as_bytes());
            console.add(&mut self.wire, 1, POOL + 0x100, line.len() as u32, false);
            let done = console.complete(&mut self.wire);
            ensure!(done.iter().map(|done| done.0).eq([1]), "round {round}: {done:?}");
            // Acknowledged, so it is there.
            self.terminal.expect(&line, UP)?;
        }
        self.terminal.send(b"typed");
        let done = console.complete(&mut self.wire);
        ensure!(done == [(0, INPUT, 5)], "typed: {done:?}");
        let mut bytes = [0; 5];
        self.region.copy_in(INPUT, &mut bytes);
        ensure!(&bytes == b"typed", "{bytes:?}");
        // The next word's buffer.
        console.add(&mut self.wire, 0, INPUT, 32, true);
        Ok(())
    }
}
