//! Mebibytes each way through a doorbell that fails: nothing is lost, and the sums are equal.
//!
//! Twice: as the PMM's stream socket, which the PMM believes to lose nothing, so that a lost ring is made good by its
//! look once a second or by the guest's clock; and as datagrams, which it knows to be lossy.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::dice::Dice;
use crate::guest::Kind;
use crate::proxy::{Fates, To};
use crate::rig::{Bell, Rig};
use crate::{Tools, summed};

/// Seconds without a byte that are too many: several lost rings in a row are made good in a few.
const SILENCE: u64 = 60;

pub fn run(tools: &Tools, kind: Kind, mebibytes: u64) -> Result<()> {
    let bytes = tools.scaled(mebibytes << 20) as usize;
    for (bell, name) in [(Bell::Proxy, "stream"), (Bell::LossyProxy, "datagrams")] {
        let mut rig = Rig::new(tools, &format!("transfer-{name}"), kind, bell)?;
        rig.start()?;
        let flood = flood(&mut rig, bytes).context("flood")?;
        let sink = sink(&mut rig, bytes, tools.seed).context("sink")?;
        rig.check()?;
        let status = rig.pmm()?.status()?;
        let link = &status["links"][0];
        let counters = rig.command("link")?;
        let report = rig.stop_proxy()?.context("there is a proxy")?;
        let rate = |seconds: f64| bytes as f64 / seconds / f64::from(1 << 20);
        println!(
            "{name}: {bytes} bytes from the guest at {:.2} MiB/s, to it at {:.2} MiB/s",
            rate(flood),
            rate(sink)
        );
        println!("{report}");
        println!(
            "{name}: pmm: bells {}, repeated {}, wake-ups {}",
            link["rings"], link["rerings"], link["wakeups"]
        );
        println!("{name}: guest: {}", counters.trim().replace("  ", " ").replace('\n', ", "));
        for (to, fates) in [(To::Pmm, report.to_pmm), (To::Guest, report.to_guest)] {
            failed_as_decided(tools.seed, to, &fates)?;
        }
    }
    Ok(())
}

/// The doorbell failed in each way exactly as often as its seed says, and no ring was lost in another.
fn failed_as_decided(seed: u64, to: To, fates: &Fates) -> Result<()> {
    let decided = Fates::decided(seed, to, fates.judged());
    ensure!(
        fates.counts() == decided,
        "merged, dropped, doubled, delayed: the seed decides {decided:?} for {to:?}; the proxy: {fates}"
    );
    let [merged, dropped, doubled, _] = decided;
    let rung = fates.rung + fates.unheard + fates.late;
    ensure!(rung == fates.judged() - merged - dropped + doubled, "rings to {to:?} are missing: {fates}");
    // So many that a seed which spares them all is one in hundreds of millions.
    ensure!(fates.judged() < 2000 || decided.iter().all(|&count| count > 0), "{to:?}: {decided:?}");
    Ok(())
}

/// Guest to host. Returns the seconds that it took.
fn flood(rig: &mut Rig, bytes: usize) -> Result<f64> {
    let (line, start) = (format!("flood {bytes}"), Instant::now());
    rig.terminal.send(format!("{line}\r").as_bytes());
    rig.terminal.expect(&format!("{line}\n"), SILENCE)?;
    // The pattern has no spaces, so it cannot contain this.
    let mut data = rig.terminal.expect("flood: ", SILENCE)?;
    let seconds = start.elapsed().as_secs_f64();
    if !bytes.is_multiple_of(64) {
        ensure!(data.pop() == Some(b'\n'), "the last line is open");
    }
    ensure!(data.len() == bytes, "{} bytes came of {bytes}", data.len());
    let said = rig.terminal.expect("\n", SILENCE)?;
    let expected = summed(&data);
    ensure!(
        said == expected.as_bytes(),
        "the guest sent {} and {expected} came",
        String::from_utf8_lossy(&said)
    );
    rig.terminal.expect(&format!("{}> ", rig.guest.name()), SILENCE)?;
    Ok(seconds)
}

/// Host to guest. Returns the seconds that it took.
fn sink(rig: &mut Rig, bytes: usize, seed: u64) -> Result<f64> {
    let data = Dice::new(seed).bytes(bytes);
    let (line, start) = (format!("sink {bytes}"), Instant::now());
    rig.terminal.send(format!("{line}\r").as_bytes());
    rig.terminal.send(&data);
    rig.terminal.expect(&format!("{line}\n"), SILENCE)?;
    rig.terminal.expect("sink: ", SILENCE)?;
    let seconds = start.elapsed().as_secs_f64();
    let said = rig.terminal.expect("\n", SILENCE)?;
    let expected = summed(&data);
    ensure!(said == expected.as_bytes(), "{expected} were sent and {} came", String::from_utf8_lossy(&said));
    rig.terminal.expect(&format!("{}> ", rig.guest.name()), SILENCE)?;
    Ok(seconds)
}
