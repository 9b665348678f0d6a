//! What the alias `cargo xtask` runs: it builds xtask, shows what cargo says meanwhile, and becomes it.
//!
//! `cargo run --quiet` would build xtask and its dependencies, minutes at the first time, without a word; without
//! `--quiet` each command would begin with two lines that nobody needs. This program depends on nothing, so that its
//! own build is too short to be missed.

use std::{
    env,
    io::{BufRead, BufReader, IsTerminal},
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
};

fn main() -> ExitCode {
    match start() {
        Ok(never) => match never {},
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<std::convert::Infallible, String> {
    let this = env::current_exe().map_err(|error| format!("cannot find its own program: {error}"))?;
    build()?;
    // Cargo has put it beside this one, wherever that is.
    let error = Command::new(this.with_file_name("xtask")).args(env::args_os().skip(1)).exec();
    Err(format!("{} cannot be started: {error}", this.with_file_name("xtask").display()))
}

fn build() -> Result<(), String> {
    let colour = if std::io::stderr().is_terminal() { "always" } else { "never" };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--package", "xtask", "--color", colour])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cargo could not be started: {error}"))?;
    if let Some(says) = cargo.stderr.take() {
        for line in BufReader::new(says).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            if is_news(&line) {
                eprintln!("{line}");
            }
        }
    }
    match cargo.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("it could not be built (cargo: {status}); see above")),
        Err(error) => Err(format!("cargo was lost: {error}")),
    }
}

/// Whether a line of cargo's is worth a reader's time: all but its last one, which comes also where nothing was built.
fn is_news(line: &str) -> bool {
    !(line.contains("Finished") && line.contains("target(s) in"))
}

#[cfg(test)]
mod tests {
    use super::is_news;

    #[test]
    fn what_is_built_is_shown_and_that_nothing_was_is_not() {
        assert!(is_news("   Compiling object v0.37.3"));
        assert!(is_news("    Blocking waiting for file lock on build directory"));
        assert!(is_news("error[E0425]: cannot find value `Finished` in this scope"));
        assert!(!is_news("    Finished `dev` profile [unoptimized + debuginfo] target(s) in 0.05s"));
        assert!(!is_news(
            "\x1b[1m\x1b[92m    Finished\x1b[0m `dev` profile [unoptimized] target(s) in 1m 02s"
        ));
    }
}
