//! One PMM, two guests, each on a link of its own. One is killed and started again, twenty times; the other's lines
//! flow on and its session stays the one that it was.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::Tools;
use crate::guest::{Guest, HostShell};
use crate::pmm::Pmm;
use crate::rig::{UP, directory};
use crate::terminal::{Terminal, Turn};
use crate::traffic::Traffic;

const KILLS: u64 = 20;
const NAMES: [&str; 2] = ["steady", "mortal"];

pub fn run(tools: &Tools) -> Result<()> {
    let dir = directory(tools, "several")?;
    let mut config = String::new();
    let mut guests = Vec::new();
    for name in NAMES {
        let place = dir.join(name);
        std::fs::create_dir(&place)?;
        let guest = HostShell::new(tools, &place)?;
        let memory = guest.place();
        config += &format!(
            "[[link]]\nname = '{name}'\nno-dtb = true\nshmem-addr = {}\nshmem-size = {}\nshmem-file = '{}'\nrng = true\n\
             console = 'unix:{}'\ndoorbell = 'unix-stream:{}'\n",
            memory.base,
            memory.size,
            memory.file.display(),
            place.join("console").display(),
            guest.doorbell().display()
        );
        guests.push(guest);
    }
    std::fs::write(dir.join("links.toml"), config)?;
    let options = ["--config".into(), dir.join("links.toml").display().to_string()];
    let pmm = Pmm::start(&tools.pmm, &dir.join("control"), &options, &dir.join("pmm.log"))?;
    let mut terminals = [Terminal::default(), Terminal::default()];
    for ((name, guest), terminal) in NAMES.iter().zip(&mut guests).zip(&mut terminals) {
        terminal.connect(&dir.join(name).join("console"))?;
        guest.start()?;
        terminal.expect("host> ", UP).with_context(|| format!("the guest '{name}'"))?;
    }

    let [steady, mortal] = &mut terminals;
    let mut traffic = Traffic::start(steady);
    let mut flow = |lines: u64| -> Result<f64> {
        ensure!(traffic.run(steady, UP, |traffic| traffic.flows())? == Turn::Open, "the pmm has gone");
        let (start, first) = (Instant::now(), traffic.moved());
        let turn = traffic.run(steady, UP, |traffic| traffic.moved() >= first + lines)?;
        ensure!(turn == Turn::Open, "the pmm has gone");
        ensure!(traffic.counts().duplicates == 0, "lines came twice: {:?}", traffic.counts());
        Ok((traffic.moved() - first) as f64 / start.elapsed().as_secs_f64())
    };
    let lines = tools.scaled(200_000);
    let (mut alone, mut meanwhile) = (Vec::new(), Vec::new());
    for kill in 0..tools.scaled(KILLS) {
        alone.push(flow(lines)?);
        guests[1].kill()?;
        guests[1].start()?;
        meanwhile.push(flow(lines)?);
        mortal.incoming.clear();
        mortal.send(b"\x15");
        mortal.expect("shell on ", UP).with_context(|| format!("after kill {kill}"))?;
        mortal.expect("host> ", UP)?;
        let said = mortal.command("host", "echo here", UP)?;
        ensure!(said == "here\n", "echo says {said:?}");
    }
    let status = pmm.status()?;
    let of = |name: &str| status["links"].as_array().into_iter().flatten().find(|link| link["name"] == name);
    let (steady, mortal) =
        (of("steady").context("a link is missing")?, of("mortal").context("a link is missing")?);
    ensure!(steady["adoptions"] == 1, "the steady guest was adopted {} times", steady["adoptions"]);
    let adoptions = mortal["adoptions"].as_u64().unwrap_or(0);
    ensure!(adoptions > tools.scaled(KILLS), "the mortal guest was adopted {adoptions} times");
    alone.sort_by(f64::total_cmp);
    meanwhile.sort_by(f64::total_cmp);
    println!(
        "the steady guest's lines per second, medians: {:.0}, and {:.0} while the other restarts; other adopted {adoptions} times",
        alone[alone.len() / 2],
        meanwhile[meanwhile.len() / 2]
    );
    Ok(())
}
