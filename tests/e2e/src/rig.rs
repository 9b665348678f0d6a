//! A PMM, a guest and a terminal, in a directory of their own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::Tools;
use crate::guest::{Guest, Kind, proxy_end};
use crate::pmm::Pmm;
use crate::proxy::{Proxy, Report, pmm_end};
use crate::terminal::Terminal;

/// Seconds in which a guest is up and its first words are at the terminal.
pub const UP: u64 = 90;

/// A new, empty directory of a test.
pub fn directory(tools: &Tools, name: &str) -> Result<PathBuf> {
    let dir = tools.work.join(name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("{} is in the way", dir.display()))?;
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    // Absolute and without `..`: the path of a socket may have 107 bytes.
    Ok(dir.canonicalize()?)
}

/// How a guest's doorbell reaches the PMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bell {
    /// Straight.
    Direct,
    /// Through a proxy, over streams.
    Proxy,
    /// Through a proxy that the PMM knows as datagrams, which may be lost.
    LossyProxy,
}

/// All of it.
pub struct Rig<'t> {
    tools: &'t Tools,
    dir: PathBuf,
    doorbell: String,
    proxy: Option<Proxy>,
    /// Further options of the PMM.
    more: Vec<String>,
    /// The guest.
    pub guest: Box<dyn Guest>,
    /// The PMM, while one runs.
    pub pmm: Option<Pmm>,
    /// The terminal.
    pub terminal: Terminal,
}

impl<'t> Rig<'t> {
    /// Makes everything ready and starts nothing but the proxy.
    pub fn new(tools: &'t Tools, name: &str, kind: Kind, bell: Bell) -> Result<Rig<'t>> {
        let dir = directory(tools, name)?;
        std::fs::create_dir(dir.join("shared"))?;
        let guest = kind.make(tools, &dir)?;
        let (doorbell, proxy) = match bell {
            Bell::Direct => (format!("unix-stream:{}", guest.doorbell().display()), None),
            Bell::Proxy | Bell::LossyProxy => {
                let (end, option) = pmm_end(&dir, bell == Bell::LossyProxy);
                (option, Some(Proxy::start(proxy_end(&*guest), end, tools.seed)?))
            }
        };
        Ok(Rig {
            tools,
            dir,
            doorbell,
            proxy,
            more: Vec::new(),
            guest,
            pmm: None,
            terminal: Terminal::default(),
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory that the guest may use.
    pub fn shared(&self) -> PathBuf {
        self.dir.join("shared")
    }

    /// Where clients call the guest.
    pub fn sockets(&self) -> PathBuf {
        self.dir.join("vsock")
    }

    /// Gives every PMM that is started from now on these options, too.
    pub fn extend<'o>(&mut self, options: impl IntoIterator<Item = &'o str>) {
        self.more.extend(options.into_iter().map(String::from));
    }

    fn console(&self) -> PathBuf {
        self.dir.join("console")
    }

    /// Starts a PMM and connects the terminal to its console.
    pub fn start_pmm(&mut self) -> Result<()> {
        let mut options = self.guest.place().options();
        let console = format!("unix:{}", self.console().display());
        let shared = format!("{},host", self.shared().display());
        let rest = ["--9p", &shared, "--rng", "--console", &console, "--doorbell", &self.doorbell];
        options.extend(rest.map(String::from));
        options.extend(["--vsock".into(), format!("3,path={}", self.sockets().display())]);
        options.extend(self.more.iter().cloned());
        let log = self.dir.join("pmm.log");
        self.pmm = Some(Pmm::start(&self.tools.pmm, &self.dir.join("control"), &options, &log)?);
        self.terminal.connect(&self.console())
    }

    /// The PMM that runs.
    pub fn pmm(&self) -> Result<&Pmm> {
        self.pmm.as_ref().context("no pmm runs")
    }

    /// Kills the PMM.
    pub fn kill_pmm(&mut self) -> Result<()> {
        self.pmm.take().map_or(Ok(()), Pmm::kill)
    }

    /// Starts PMM and guest, and waits for the prompt.
    pub fn start(&mut self) -> Result<()> {
        self.guest.start()?;
        self.start_pmm()?;
        self.prompt()
    }

    /// Waits for the guest's first words and its prompt.
    pub fn prompt(&mut self) -> Result<()> {
        self.terminal.expect("shell on ", UP)?;
        self.terminal.expect(&format!("{}> ", self.guest.name()), UP)?;
        Ok(())
    }

    /// Types a command at the prompt and returns what it prints.
    pub fn command(&mut self, line: &str) -> Result<String> {
        self.terminal.command(self.guest.name(), line, UP)
    }

    /// Types a command, and returns when the guest has begun it.
    pub fn begin(&mut self, line: &str) -> Result<()> {
        self.terminal.send(format!("{line}\r").as_bytes());
        self.terminal.expect(&format!("{line}\n"), UP).map(drop)
    }

    /// Waits for the end of a command that was begun.
    pub fn done(&mut self) -> Result<String> {
        let name = self.guest.name();
        self.terminal.done(name, UP)
    }

    /// Fails if something has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        self.guest.check()?;
        self.pmm.as_mut().map_or(Ok(()), Pmm::check)
    }

    /// Ends the proxy, and says what it did.
    pub fn stop_proxy(&mut self) -> Result<Option<Report>> {
        self.proxy.take().map(Proxy::stop).transpose()
    }
}
