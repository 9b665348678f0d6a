//! The program `pmm`: reads its command line, opens everything, serves until it is told to end.

use std::process::ExitCode;

use hvl_pmm::options::{Command, LogOptions, Run, parse};
use hvl_pmm::{Failure, ignore_signals, observe, open, privileges, serve, share};

fn main() -> ExitCode {
    // What a system call reports as well ends nothing, from the first file on that is touched.
    ignore_signals();
    let result = parse(std::env::args_os()).and_then(|command| match command {
        Command::Print(text) => observe::print(&text, &mut std::io::stdout()).map(|_| ExitCode::SUCCESS),
        Command::Status(request) => {
            observe::status(&request, &mut std::io::stdout()).map(|()| ExitCode::SUCCESS)
        }
        Command::List(request) => observe::list(&request, &mut std::io::stdout()).map(|()| ExitCode::SUCCESS),
        Command::Share(directory) => privileges::for_share(&directory)
            .and_then(|()| share::serve(&directory))
            .map(|()| ExitCode::SUCCESS),
        Command::Run(run) => serve_links(&run),
    });
    let code = match result {
        Ok(code) => code,
        Err(failure) => {
            // What it names may come from others: a path, an answer.
            for line in observe::printable_lines(&failure.to_string()).lines() {
                observe::log::say(&format!("pmm: {line}\n"));
            }
            ExitCode::from(failure.exit_code())
        }
    };
    observe::log::flush();
    code
}

/// What fails once the log has begun is in the log, and said nowhere else.
fn serve_links(run: &Run) -> Result<ExitCode, Failure> {
    privileges::for_links(run)?;
    let opened = open::open(run)?;
    let LogOptions { json, .. } = run.log;
    observe::log::start(run.log);
    // Where the host ends are comes first: on a terminal that has just become raw, how to leave it.
    for said in
        opened.links.iter().flat_map(|link| &link.devices).filter_map(|hosted| hosted.end.announcement())
    {
        if json {
            tracing::info!("{said}");
        } else {
            observe::log::say(&format!("{said}\n"));
        }
    }
    for note in
        run.notes.iter().chain(&opened.note).chain(opened.links.iter().flat_map(|link| link.mapping.notes()))
    {
        tracing::info!("{note}");
    }
    for warning in opened.links.iter().flat_map(|link| link.mapping.warnings()) {
        tracing::warn!("{warning}");
    }
    for link in &opened.links {
        let (name, mapping) = (&link.description.name, &link.mapping);
        tracing::info!(
            "{name}: memory is {} at {:#x} ({})",
            mapping.path().display(),
            mapping.offset(),
            mapping.name()
        );
    }
    tracing::info!("control socket {}; 'pmm status' asks there", opened.control.path().display());
    Ok(serve::serve(opened, run)
        .map_or_else(|failure| ExitCode::from(failure.exit_code()), |()| ExitCode::SUCCESS))
}
