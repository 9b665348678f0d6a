//! Every command line of `pmm` that README and the pages show is one that `pmm` takes: no page names an option that does
//! not exist, or a value that is refused.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use hvl_pmm::options::{Command, parse};
use hvl_test_kit::docs::{Line, in_blocks, in_text};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(words: &[&str]) -> Result<Command, String> {
    parse(words.iter().map(OsString::from)).map_err(|error| error.to_string())
}

#[test]
fn command_lines_in_blocks_are_taken() {
    let lines = in_blocks(root(), &["pmm"]);
    assert!(lines.len() >= 8, "the pages' blocks are not found: {lines:?}");
    let mut wrong = Vec::new();
    for Line { place, words } in &lines {
        let mut all: Vec<&str> = Vec::new();
        for word in words {
            match word.as_str() {
                // What every link needs is left out on most pages.
                "..." => {
                    all.extend("--no-dtb --shmem-file m --shmem-addr 0x10000000 --shmem-size 1M".split(' '))
                }
                word => all.push(word),
            }
        }
        if let Err(error) = read(&all) {
            wrong.push(format!("{place}: {}\n{error}", words.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn options_of_command_lines_in_the_text_exist() {
    let lines = in_text(root(), &["pmm"]);
    assert!(lines.len() >= 10, "the pages' command lines are not found: {lines:?}");
    let mut wrong = Vec::new();
    for Line { place, words } in &lines {
        let said = words.join(" ");
        let Ok(Command::Print(help)) = read(&["pmm", &words[1], "--help"]) else {
            wrong.push(format!("{place}: `{said}`: there is no such subcommand"));
            continue;
        };
        let option = |word: &str| -> Option<String> {
            let name = word.trim_start_matches('[').strip_prefix("--")?;
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(name.len());
            Some(format!("--{}", &name[..end]))
        };
        let exist: BTreeSet<String> = help.split_whitespace().filter_map(option).collect();
        let missing = words.iter().filter_map(|word| option(word)).filter(|option| !exist.contains(option));
        wrong.extend(missing.map(|option| format!("{place}: `{said}`: there is no {option}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
