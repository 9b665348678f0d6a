//! Children that do not outlive xtask, however it ends.
//!
//! The kernel's parent-death signal does it. A process can only ask for it itself, and between `fork` and `exec` that
//! would be unsafe code; so a child starts as xtask once more (a hidden subcommand), asks, and then becomes the program.
//! The signal also comes when the *thread* ends that started the child: start children from one that lasts.

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use std::{env, ffi::OsString, os::unix::process::CommandExt, process::Command};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "tied";

/// How a child is told that xtask is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Death {
    /// At once.
    Kill,
    /// It may put things in order first, such as a terminal.
    Terminate,
}

/// Arguments of the hidden subcommand.
#[derive(clap::Args)]
pub struct Options {
    /// The signal for the program when xtask ends.
    death: Death,
    /// Who is to be its parent.
    parent: i32,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// The same command, tied to this process. Its environment and descriptors are still the caller's to set.
pub fn tie(command: &Command, death: Death) -> Result<Command> {
    let this = env::current_exe().context("xtask cannot find its own program")?;
    let mut tied = Command::new(this);
    tied.arg(SUBCOMMAND).arg(match death {
        Death::Kill => "kill",
        Death::Terminate => "terminate",
    });
    tied.arg(std::process::id().to_string()).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(name, value),
            None => tied.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        tied.current_dir(folder);
    }
    Ok(tied)
}

/// The child's part: becomes the program.
pub fn run(options: &Options) -> Result<()> {
    let signal = match options.death {
        Death::Kill => Signal::KILL,
        Death::Terminate => Signal::TERM,
    };
    set_parent_process_death_signal(Some(signal)).context("no parent-death signal to be had")?;
    // It may have ended before the question was asked.
    if getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != options.parent) {
        bail!("xtask ended before its child began");
    }
    let Some((program, arguments)) = options.command.split_first() else { bail!("no program is named") };
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("{} could not be started", program.to_string_lossy()))
}
