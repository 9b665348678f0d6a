//! `cargo xtask`: everything a newcomer or CI needs, as one command each. This file only dispatches.

mod demo;
mod map;
mod mutants;
mod paths;
mod process;
mod setup;
mod size;
mod test;
mod tied;

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
    /// Measure the ring beside the stock pair and beside its limits; `cargo xtask bench --help` is the program's own help.
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to the program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Sit at the shell of a Cortex-R5 that is emulated: everything is built and started, and ends with this.
    ///
    /// The shell's console and random bytes come through a hypervisor-less virtio link from a pmm on this machine.
    Demo(demo::Options),
    /// Get what is missing to build firmware and to run it: a compiler for the Cortex-R5 and the emulator.
    ///
    /// Everything is kept under target/ and nothing needs root. The other commands do this by themselves.
    Setup,
    /// Draw docs/memory-map.svg: what lies where in the region.
    Map,
    /// Plant faults, one at a time, and see whether the tests notice.
    Mutants(mutants::Options),
    /// Build the firmware and print what the link costs in it; fails above the limit.
    Size(size::Options),
    /// Run the tests, all or some.
    Test(test::Options),
    /// What children of this program start as.
    #[command(name = tied::SUBCOMMAND, hide = true)]
    Tied(tied::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Bench { arguments } => test::bench(&arguments),
        Command::Demo(options) => demo::run(&options),
        Command::Map => map::run(),
        Command::Mutants(options) => mutants::run(&options),
        Command::Setup => setup::run(),
        Command::Size(options) => size::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Tied(options) => tied::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hvl_test_kit::docs::{Line, in_blocks, in_text};

    #[test]
    fn command_lines_of_the_pages_are_taken() {
        let program = ["cargo", "xtask"];
        let blocks = in_blocks(paths::root(), &program);
        assert!(blocks.len() >= 6, "the pages' blocks are not found: {blocks:?}");
        let lines = blocks.into_iter().chain(in_text(paths::root(), &program));
        let wrong = lines.filter_map(|Line { place, words }| {
            let arguments = words.iter().skip(program.len()).map(String::as_str);
            let error = Cli::try_parse_from(["cargo xtask"].into_iter().chain(arguments)).err()?;
            // Help is an answer, not a refusal.
            error.use_stderr().then(|| format!("{place}: {}\n{error}", words.join(" ")))
        });
        let wrong: Vec<String> = wrong.collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
