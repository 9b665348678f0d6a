//! `cargo xtask`: everything a newcomer or CI needs, as one command each. This file only dispatches.

mod mutants;
mod paths;
mod process;
mod setup;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get what is missing to build firmware and to run it: a compiler for the Cortex-R5 and the emulator.
    ///
    /// Everything is kept under target/ and nothing needs root. The other commands do this by themselves.
    Setup,
    /// Plant faults, one at a time, and see whether the tests notice.
    Mutants(mutants::Options),
    /// Run the tests, all or some.
    Test(test::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Mutants(options) => mutants::run(&options),
        Command::Setup => setup::run(),
        Command::Test(options) => test::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
