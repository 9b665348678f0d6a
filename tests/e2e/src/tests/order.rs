//! Start order does not matter: guest first, PMM first, each gone and come again with the other alone meanwhile, and
//! both at once.

use anyhow::{Context, Result, ensure};

use crate::Tools;
use crate::guest::Kind;
use crate::rig::{Bell, Rig};

pub fn run(tools: &Tools, kind: Kind) -> Result<()> {
    let mut rig = Rig::new(tools, "order", kind, Bell::Direct)?;
    rig.start_pmm()?;
    rig.pmm()?.wait_for("the pmm to serve", |status| status["links"][0]["state"] == "serving")?;
    rig.guest.start()?;
    rig.prompt().context("pmm first, then the guest")?;
    talk(&mut rig, "pmm first")?;

    rig.kill_pmm()?;
    rig.start_pmm()?;
    again(&mut rig).context("another pmm for the same guest")?;
    talk(&mut rig, "pmm again")?;

    rig.kill_pmm()?;
    rig.guest.kill()?;
    rig.guest.start()?;
    rig.start_pmm()?;
    rig.prompt().context("both died; the guest first, then the pmm")?;
    talk(&mut rig, "guest first")?;

    rig.guest.kill()?;
    rig.pmm()?
        .wait_for("the guest to be missed", |status| status["links"][0]["doorbell"]["peer"] == false)?;
    rig.guest.start()?;
    rig.prompt().context("another guest for the same pmm")?;
    talk(&mut rig, "guest again")?;

    for round in 0..5 {
        rig.guest.strike();
        rig.pmm.iter_mut().for_each(|pmm| pmm.strike());
        rig.guest.kill()?;
        rig.kill_pmm()?;
        if round % 2 == 0 {
            rig.start_pmm()?;
            rig.guest.start()?;
        } else {
            rig.guest.start()?;
            rig.start_pmm()?;
        }
        rig.prompt().with_context(|| format!("both at the same instant, round {round}"))?;
        talk(&mut rig, "both at once")?;
    }
    Ok(())
}

/// Waits for the prompt that a guest repeats to another PMM.
fn again(rig: &mut Rig) -> Result<()> {
    rig.terminal.incoming.clear();
    rig.terminal.expect(&format!("{}> ", rig.guest.name()), crate::rig::UP)?;
    Ok(())
}

/// The console and the entropy device work.
fn talk(rig: &mut Rig, word: &str) -> Result<()> {
    let said = rig.command(&format!("echo {word}"))?;
    ensure!(said == format!("{word}\n"), "echo says {said:?}");
    let (one, two) = (rig.command("rand 32")?, rig.command("rand 32")?);
    ensure!(one.trim().len() == 64 && one != two, "{one:?} and {two:?} are not random");
    rig.check()?;
    println!("{word}: {}", one.trim());
    Ok(())
}
