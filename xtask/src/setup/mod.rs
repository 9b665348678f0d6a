//! What this project needs beyond Rust: a compiler for the Cortex-R5 and an emulator that has one. Each is looked for
//! first and fetched only if it is missing; a call that finds everything costs milliseconds. Beside these stand programs
//! that tests use and can do without.

mod apt;
mod diod;
mod emulator;
mod network;
mod socat;
mod system;
mod toolchain;

pub use emulator::Emulator;
pub use network::Network;
pub use system::System;
pub use toolchain::{TARGET, Toolchain};

use anyhow::{Context, Result, anyhow};
use std::{
    fs::{self, File},
    thread,
    time::Instant,
};

use crate::paths;

/// Both tools.
#[derive(Clone)]
pub struct Tools {
    /// Builds firmware.
    pub toolchain: Toolchain,
    /// Runs it.
    pub emulator: Emulator,
}

/// `cargo xtask setup`.
pub fn run() -> Result<()> {
    let start = Instant::now();
    let tools = tools()?;
    println!("toolchain: {}", tools.toolchain);
    println!("emulator:  {}", tools.emulator);
    println!("network:   {}", network()?);
    match diod() {
        Ok(place) => println!("diod:      {place}"),
        Err(why) => println!("diod:      none, so its tests are skipped ({why:#})"),
    }
    match socat() {
        Ok(place) => println!("socat:     {place}"),
        Err(why) => println!("socat:     none, so its test is skipped ({why:#})"),
    }
    match system() {
        Ok(system) => println!("system:    {system}"),
        Err(why) => println!("system:    none, so its tests are skipped ({why:#})"),
    }
    eprintln!("setup: ready after {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Finds or fetches the foreign programs of the tests of files; where they are.
pub fn diod() -> Result<String> {
    let _lock = lock()?;
    diod::find_or_fetch()
}

/// Finds or fetches the foreign program of the tests of sockets; where it is.
pub fn socat() -> Result<String> {
    let _lock = lock()?;
    socat::find_or_fetch()
}

/// How that program is called here, as far as it is known; nothing is fetched.
pub fn socat_here() -> String {
    socat::find()
}

/// Finds or fetches the Linux system of the tests that need a kernel of their own.
pub fn system() -> Result<System> {
    let _lock = lock()?;
    system::find_or_fetch()
}

/// Finds or fetches both tools, side by side.
pub fn tools() -> Result<Tools> {
    tools_and(|_| Ok(())).map(|(tools, ())| tools)
}

/// The same, and does what the compiler is for while the emulator may still be on its way.
pub fn tools_and<T>(with_toolchain: impl FnOnce(&Toolchain) -> Result<T>) -> Result<(Tools, T)> {
    let _lock = lock()?;
    thread::scope(|scope| {
        let emulator = scope.spawn(emulator::find_or_fetch);
        let built = toolchain::find_or_fetch().and_then(|toolchain| {
            let built = with_toolchain(&toolchain)?;
            Ok((toolchain, built))
        });
        let emulator = emulator.join().map_err(|_| anyhow!("the emulator's set-up panicked; see above"))?;
        let (toolchain, built) = built?;
        Ok((Tools { toolchain, emulator: emulator? }, built))
    })
}

/// Finds or fetches the compiler alone, for commands that run nothing.
#[allow(dead_code, reason = "for the commands that measure and check firmware without running it")]
pub fn toolchain() -> Result<Toolchain> {
    let _lock = lock()?;
    toolchain::find_or_fetch()
}

/// Finds or fetches the programs for networks.
pub fn network() -> Result<Network> {
    let _lock = lock()?;
    Ok(network::find(true))
}

/// Those that are there; nothing is fetched.
pub fn network_here() -> Network {
    network::find(false)
}

/// Two set-ups at once would unpack over each other. Released when the file is closed, also by a crash.
fn lock() -> Result<File> {
    let folder = paths::tools();
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("setup: another xtask is setting up; waiting for it");
        file.lock().with_context(|| format!("{} cannot be locked", path.display()))?;
    }
    Ok(file)
}

/// Says what is being done and, afterwards, how long it took. Lines of two tools may alternate, so each names its tool.
fn step<T>(tool: &str, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("setup: {tool}: {what} ...");
    let start = Instant::now();
    let result = work().with_context(|| format!("{tool}: {what}"));
    if result.is_ok() {
        eprintln!("setup: {tool}: {what}: done in {:.1} s", start.elapsed().as_secs_f32());
    }
    result
}
