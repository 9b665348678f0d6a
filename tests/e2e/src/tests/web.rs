//! A page of this machine's disk, fetched by this machine with curl, through the guest: from the disk through 9p to the
//! guest's web server, and back through its network card and passt. The guest gets its address by DHCP.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::net::is_where_passt_runs;
use crate::Tools;
use crate::dice::Dice;
use crate::guard::Guard;
use crate::guest::Kind;
use crate::rig::{Bell, Rig, UP};

pub fn run(tools: &Tools, name: &str, kind: Kind) -> Result<()> {
    if !is_where_passt_runs(tools, name)? {
        return Ok(());
    }
    let mut rig = Rig::new(tools, "web", kind, Bell::Direct)?;
    rig.extend(["--network", "mode=user,forward=18080:80"]);
    let page = Dice::new(tools.seed).bytes(tools.scaled(4 << 20) as usize);
    std::fs::write(rig.shared().join("page"), &page)?;
    rig.start()?;
    let guard = Guard::new(UP, "an address by DHCP");
    let said = loop {
        let said = rig.command("ip")?;
        if said.contains("by DHCP") {
            break said;
        }
        guard.left()?;
    };
    ensure!(said.contains("10.99.0.2"), "passt offers another address: {said}");
    rig.command("httpd /")?;
    let start = Instant::now();
    let fetched = curl(rig.dir(), "http://127.0.0.1:18080/page")?;
    ensure!(fetched == page, "{} bytes came of {}, or others", fetched.len(), page.len());
    println!(
        "{}: {} bytes from the disk through the guest to curl in {:.2} s",
        said.lines().nth(1).unwrap_or("?"),
        page.len(),
        start.elapsed().as_secs_f32()
    );
    let listed = curl(rig.dir(), "http://127.0.0.1:18080/")?;
    ensure!(listed == b"page\n", "the directory reads {:?}", String::from_utf8_lossy(&listed));
    // The pmm goes, and passt with it; the address is asked for again by itself where that is necessary.
    rig.kill_pmm()?;
    rig.start_pmm()?;
    let guard = Guard::new(UP, "the page after the pmm was killed");
    loop {
        match curl(rig.dir(), "http://127.0.0.1:18080/page") {
            Ok(again) if again == page => break,
            _ => guard.left().map(drop)?,
        }
    }
    rig.check()
}

fn curl(dir: &Path, url: &str) -> Result<Vec<u8>> {
    let body = dir.join("body");
    let _ = std::fs::remove_file(&body);
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "60", "--noproxy", "*", "--output"]);
    let status = curl.arg(&body).arg(url).status().context("curl")?;
    ensure!(status.success(), "curl of {url} failed ({status})");
    Ok(std::fs::read(&body)?)
}
