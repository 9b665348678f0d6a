//! All five devices at once: console, entropy, files, sockets and network, against stock programs, and again after every
//! kind of death, with no other step than what the guest's own user would do.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::sockets::{Caller, call, exchange};
use crate::dice::Dice;
use crate::guard::Guard;
use crate::guest::Kind;
use crate::rig::{Bell, Rig, UP};
use crate::{Tools, summed};

/// Bytes of a small exchange.
const SMALL: usize = 10_000;
const ADDRESS: &str = "10.9.8.1";
const NEIGHBOUR: &str = "10.9.8.2";
/// Bytes of the page that is on its way when something dies.
const PAGE: usize = 8 << 20;
/// Requests at the file device that show it on its way.
const PAGE_FLOWS: u64 = 10;

/// The guest, and a neighbour in its network: another guest behind a pmm of its own.
struct World<'t> {
    rig: Rig<'t>,
    neighbour: Rig<'t>,
    dice: Dice,
}

pub fn run(tools: &Tools, kind: Kind, mebibytes: u64, deaths: u64) -> Result<()> {
    let mut rig = Rig::new(tools, "devices", kind, Bell::Direct)?;
    let mut neighbour = Rig::new(tools, "devices-neighbour", Kind::Host, Bell::Direct)?;
    let cable = rig.dir().join("cable");
    rig.extend(["--network", &format!("mode=socket,stream=unix:{},listen", cable.display())]);
    neighbour.extend(["--network", &format!("mode=socket,stream=unix:{}", cable.display())]);
    rig.start().context("the guest")?;
    neighbour.start().context("its neighbour")?;
    neighbour.command(&format!("ip {NEIGHBOUR}/24"))?;
    neighbour.command("httpd /")?;
    let mut world = World { rig, neighbour, dice: Dice::new(tools.seed) };
    std::fs::write(world.rig.shared().join("page"), pattern(0, PAGE))?;
    world.configure()?;
    world.all_work().context("at first")?;
    world.large(tools.scaled(mebibytes << 20) as usize)?;

    let mut longest = 0f64;
    let mut moved = 0;
    for round in 0..tools.scaled(deaths) {
        let what =
            ["the pmm killed", "the guest rebooted", "the guest killed", "both killed"][round as usize % 4];
        let traffic = world.traffic().with_context(|| format!("round {round}, before {what}"))?;
        let start = Instant::now();
        match round % 4 {
            0 => {
                world.rig.kill_pmm()?;
                world.rig.start_pmm()?;
                moved += traffic.cut_off()?;
                world.rig.terminal.expect("(failed)> ", UP).context("the reset is told")?;
            }
            1 => {
                world.rig.terminal.send(b"\x03");
                world.rig.terminal.expect("(failed)> ", UP)?;
                world.rig.terminal.send(b"reboot\r");
                world.rig.prompt()?;
                moved += traffic.cut_off()?;
                world.configure()?;
            }
            2 => {
                world.rig.guest.kill()?;
                world.rig.guest.start()?;
                world.rig.prompt()?;
                moved += traffic.cut_off()?;
                world.configure()?;
            }
            _ => {
                world.rig.guest.kill()?;
                world.rig.kill_pmm()?;
                moved += traffic.cut_off()?;
                world.rig.start_pmm()?;
                world.rig.guest.start()?;
                world.rig.prompt()?;
                world.configure()?;
            }
        }
        world.neighbour_gives_up()?;
        world.all_work().with_context(|| format!("round {round}, {what}"))?;
        longest = longest.max(start.elapsed().as_secs_f64());
    }
    println!("{moved} bytes had come back through sockets when they were cut off");
    println!("{} deaths: all five devices work again after {longest:.3} s at worst", tools.scaled(deaths));
    world.rig.check()?;
    world.neighbour.check()
}

impl World<'_> {
    /// What the guest's user types once after each of its starts.
    fn configure(&mut self) -> Result<()> {
        self.rig.command(&format!("ip {ADDRESS}/24"))?;
        self.rig.command("httpd /").map(drop)
    }

    /// Bytes on the way through every device: the neighbour fetches a page from the guest, which reads it from its file
    /// device for the network, and a client's bytes go to the guest and back, of which the console tells. Returns once
    /// they flow.
    fn traffic(&mut self) -> Result<Traffic> {
        let requests = requests_in(&self.rig.pmm()?.status()?).context("a file device in the status")?;
        self.neighbour.begin(&format!("get http://{ADDRESS}/page"))?;
        self.rig.pmm()?.wait_for("the neighbour's request at the file device", |status| {
            requests_in(status).is_some_and(|now| now >= requests + PAGE_FLOWS)
        })?;
        self.rig.begin(&Caller::Host.command())?;
        Traffic::start(call(&self.rig.sockets()).context("a connection to be cut off")?)
    }

    /// The neighbour stops fetching, if it is not done or told that it failed.
    fn neighbour_gives_up(&mut self) -> Result<()> {
        self.neighbour.terminal.send(b"\x03echo over\r");
        self.neighbour.terminal.expect("echo over\n", UP)?;
        self.neighbour.terminal.expect("over\n", UP)?;
        self.neighbour.terminal.expect(&format!("{}> ", self.neighbour.guest.name()), UP).map(drop)
    }

    /// A little of each.
    fn all_work(&mut self) -> Result<()> {
        let (one, two) = (self.rig.command("rand 32")?, self.rig.command("rand 32")?);
        ensure!(one.trim().len() == 64 && one != two, "{one:?} and {two:?} are not random");
        ensure!(self.rig.command("echo across")? == "across\n", "the console says something else");
        let word = format!("{:016x}", self.dice.number());
        self.rig.command(&format!("write word {word}"))?;
        let path = self.rig.shared().join("word");
        ensure!(std::fs::read_to_string(&path)? == format!("{word}\n"), "the file holds something else");
        ensure!(self.rig.command("cat word")? == format!("{word}\n"), "the guest reads something else");
        // The cable is out while a pmm is away: what is sent then is lost, as in any network.
        let guard = Guard::new(UP, "the neighbour to answer");
        while self.rig.command(&format!("ping {NEIGHBOUR} 1")).is_err() {
            guard.left()?;
        }
        let ping = self.rig.command(&format!("ping {NEIGHBOUR} 3")).context("ping")?;
        ensure!(ping.ends_with("ping: 3 sent, 3 answered\n"), "{ping}");
        let bytes: Vec<u8> = self.dice.bytes(SMALL);
        exchange(&mut self.rig, Caller::Host, &bytes)?;
        exchange(&mut self.rig, Caller::Guest, &bytes).map(drop)
    }

    /// Mebibytes over TCP.
    fn large(&mut self, len: usize) -> Result<()> {
        let bytes: Vec<u8> = self.dice.bytes(len);
        let said = self.rig.command(&format!("bench net {NEIGHBOUR}"))?;
        ensure!(said.contains("34 bytes: ") && said.contains(" round trips, "), "{said}");
        println!("{}", said.trim_end().replace('\n', "; "));
        std::fs::write(self.neighbour.shared().join("page"), &bytes)?;
        let start = Instant::now();
        let said = self.rig.command(&format!("get http://{NEIGHBOUR}/page copy")).context("get")?;
        let right = format!("got {}\n", summed(&bytes));
        ensure!(said.ends_with(&right), "{said}");
        ensure!(std::fs::read(self.rig.shared().join("copy"))? == bytes, "the copy of the page is another");
        // What fails leaves the file that it was to replace, and a file is no less for being copied onto itself.
        let missing = self.rig.command(&format!("get http://{NEIGHBOUR}/nothing copy"));
        ensure!(
            missing.is_err_and(|error| format!("{error:#}").contains(" 404 ")),
            "a page that is not there"
        );
        ensure!(self.rig.command(&format!("get http://{ADDRESS}/page copy")).is_err(), "a page of its own");
        self.rig.command("cp copy copy")?;
        ensure!(
            std::fs::read(self.rig.shared().join("copy"))? == bytes,
            "the copy did not outlive what failed"
        );
        ensure!(!self.rig.shared().join("copy.part").exists(), "a part was left behind");
        println!(
            "{len} bytes from the neighbour's disk through two links over TCP to this guest's: {:.1} s",
            start.elapsed().as_secs_f32()
        );
        Ok(())
    }
}

/// A client whose bytes go to the guest and come back until something dies.
struct Traffic(Vec<JoinHandle<Result<u64>>>);

impl Traffic {
    /// Returns once bytes come back.
    fn start(stream: UnixStream) -> Result<Traffic> {
        let (flows, flowing) = channel();
        let mut sending = stream.try_clone()?;
        let sender = std::thread::spawn(move || {
            let mut at = 0;
            // Until it is cut off.
            while let Ok(sent) = sending.write(&pattern(at, SMALL)) {
                at += sent as u64;
            }
            Ok(0)
        });
        let receiver = std::thread::spawn(move || {
            let (mut at, mut bytes) = (0, vec![0; SMALL]);
            loop {
                let got = match (&stream).read(&mut bytes) {
                    Ok(0) => return Ok(at),
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(at),
                    got => got.context("a connection that was cut off")?,
                };
                ensure!(
                    bytes[..got] == pattern(at, got),
                    "other bytes came back than were sent, from {at} on"
                );
                at += got as u64;
                if at >= SMALL as u64 {
                    let _ = flows.send(());
                }
            }
        });
        let guard = Duration::from_secs(UP);
        flowing.recv_timeout(guard).with_context(|| format!("no {SMALL} bytes came back in {UP} s"))?;
        Ok(Traffic(vec![sender, receiver]))
    }

    /// Waits until the client knows that it was cut off. Returns how many bytes had come back.
    fn cut_off(self) -> Result<u64> {
        let ends = self.0.into_iter().map(|end| end.join().map_err(|_| anyhow!("a client panicked"))?);
        ends.sum()
    }
}

/// What the guest has asked of its file device.
fn requests_in(status: &Value) -> Option<u64> {
    let devices = status["links"][0]["devices"].as_array()?;
    devices.iter().find(|device| device["name"] == "9p")?["queues"][0]["completed"].as_u64()
}

/// `len` bytes of an endless stream, from `at` on.
fn pattern(at: u64, len: usize) -> Vec<u8> {
    (at..).take(len).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect()
}
