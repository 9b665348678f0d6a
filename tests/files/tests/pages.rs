//! What is promised of files has its tests: every hostile act that `docs/bad-input.md` lists, every operation that the
//! server answers, every error that it tells.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("../../../docs/bad-input.md");
/// Files of tests that are about hostile acts and nothing else: each of theirs is on the page.
const HOSTILE: [&str; 3] = ["tests/files/tests/lies.rs", "bounds.rs", "escapes.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The text of every source file below a folder, with its path.
fn sources(folder: &str) -> Vec<(String, String)> {
    let (mut folders, mut found) = (vec![root().join(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// The names of the tests in a text.
fn tests(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[test]\n")
        .skip(1)
        .filter_map(|rest| rest.trim_start().strip_prefix("fn ")?.split('(').next())
}

/// The variants and constants that follow `prefix` in a text.
fn words<'t>(text: &'t str, prefix: &str) -> BTreeSet<&'t str> {
    let word = |rest: &'t str| rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    text.split(prefix).skip(1).map(word).filter(|word| word.starts_with(char::is_uppercase)).collect()
}

#[test]
fn every_hostile_act_on_the_page_has_its_test_and_every_such_test_its_place_there() {
    let sources = [sources("tests/files/tests"), sources("pmm/src/host/export")].concat();
    let exist: BTreeSet<&str> = sources.iter().flat_map(|(_, text)| tests(text)).collect();
    let (_, files) = PAGE.split_once("\n## Files, from a client").expect("the page's heading");
    let named: BTreeSet<&str> = files
        .lines()
        .filter_map(|line| line.rsplit_once(" | "))
        .flat_map(|(_, tests)| tests.split('`').skip(1).step_by(2))
        .collect();
    assert!(named.len() > 50, "the page's tables");
    let missing: Vec<_> = named.difference(&exist).collect();
    assert!(missing.is_empty(), "docs/bad-input.md names tests that there are not: {missing:#?}");
    let hostile = sources.iter().filter(|(path, _)| HOSTILE.iter().any(|end| path.ends_with(end)));
    let unnamed: Vec<_> = hostile
        .flat_map(|(_, text)| tests(text))
        .filter(|test| !named.contains(test) && *test != "an_honest_server_is_understood")
        .collect();
    assert!(unnamed.is_empty(), "docs/bad-input.md does not name: {unnamed:#?}");
}

#[test]
fn every_operation_and_every_error_of_the_server_has_its_test() {
    let (tests, server): (Vec<_>, Vec<_>) =
        sources("pmm/src/host/export").into_iter().partition(|(path, _)| path.contains("export/tests"));
    let text = |files: &[(String, String)]| files.iter().map(|(_, text)| text.as_str()).collect::<String>();
    // Unit tests at the end of the server's own files are tests, too.
    let server = server.iter().map(|(_, text)| text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(""));
    // The kernel's errors are told as they are. It has none without a number, which would be `IO`.
    let server = server.collect::<String>().replace("io::Errno::", "").replace("Errno::IO", "");
    let tests = text(&tests);
    for prefix in ["Request::", "Errno::"] {
        let (has, tried) = (words(&server, prefix), words(&tests, prefix));
        assert!(has.len() > 15, "{prefix} {has:?}");
        let untried: Vec<_> = has.difference(&tried).collect();
        assert!(untried.is_empty(), "no test of the server has {prefix}: {untried:?}");
    }
}
