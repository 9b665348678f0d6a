//! SQLite with three writers at once: locks of ranges that processes wait for, and in write-ahead mode an index in memory
//! that all of them map.

use anyhow::{Context, Result, ensure};
use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use crate::{Told, place::Place};

const WRITERS: usize = 3;
const TRANSACTIONS: usize = 12;
/// How long a writer waits for another, in milliseconds: only a guard.
const PATIENCE_MS: usize = 600_000;

/// The statements of one call, with SQLite as a process of its own.
fn sqlite(folder: &Path, statements: &str) -> Result<Output> {
    let mut child = Command::new("sqlite3")
        .args(["-batch", "-bail", "database"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("sqlite3 cannot be started")?;
    let mut stdin = child.stdin.take().context("the child's stdin is a pipe")?;
    let sent = stdin.write_all(format!(".timeout {PATIENCE_MS}\n{statements}").as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    // One that ended early has said why.
    if output.status.success() {
        sent?;
    }
    Ok(output)
}

fn succeed(folder: &Path, statements: &str) -> Result<String> {
    let output = sqlite(folder, statements)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "sqlite3: {}", complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn transactions(writer: usize) -> String {
    (0..TRANSACTIONS)
        .map(|number| {
            format!(
                "BEGIN IMMEDIATE; INSERT INTO line VALUES ({writer}, {number}, hex(zeroblob(700))); \
                 UPDATE total SET count = count + 1, sum = sum + {number}; COMMIT;\n"
            )
        })
        .collect()
}

fn check(place: &Place, told: &mut Told, writers: usize) -> Result<()> {
    let said = succeed(
        &place.folder,
        "PRAGMA integrity_check; SELECT count, sum FROM total; \
         SELECT writer, count(*), sum(number), sum(length(text)) FROM line GROUP BY writer;\n",
    )?;
    told.same.extend(said.lines().map(str::to_owned));
    told.done = format!("{writers} writers, {} transactions", writers * TRANSACTIONS);
    Ok(())
}

fn write(place: &Place, told: &mut Told, mode: &str) -> Result<()> {
    let said = succeed(
        &place.folder,
        &format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE line (writer, number, text); \
             CREATE TABLE total (count, sum); INSERT INTO total VALUES (0, 0);\n"
        ),
    )?;
    told.same(said);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || succeed(&place.folder, &transactions(writer))))
            .collect();
        for (number, writer) in writers.into_iter().enumerate() {
            writer.join().expect("a writer's thread").with_context(|| format!("writer {number}"))?;
        }
        anyhow::Ok(())
    })?;
    check(place, told, WRITERS)
}

/// With a rollback journal, which is deleted at the end of each transaction.
pub fn rollback(place: &Place, told: &mut Told) -> Result<()> {
    write(place, told, "delete")
}

/// With a write-ahead log.
pub fn write_ahead(place: &Place, told: &mut Told) -> Result<()> {
    if place.maps_writable() {
        return write(place, told, "wal");
    }
    // SQLite's index of the log is a shared, writable mapping, which this cache mode has not; a single user can do without.
    let output = sqlite(
        &place.folder,
        "PRAGMA journal_mode=wal; CREATE TABLE shared (x); INSERT INTO shared VALUES (1);\n",
    )?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(!output.status.success() || !said.contains("wal"), "a write-ahead log without mappings: {said}");
    let mut all = "PRAGMA locking_mode=exclusive; PRAGMA journal_mode=wal; DROP TABLE IF EXISTS shared;\
        CREATE TABLE line (writer, number, text); CREATE TABLE total (count, sum); INSERT INTO total VALUES (0, 0);\n"
        .to_owned();
    for writer in 0..WRITERS {
        all += &transactions(writer);
    }
    let said = succeed(&place.folder, &all)?;
    ensure!(said.lines().any(|line| line == "wal"), "no write-ahead log for a single user: {said}");
    succeed(&place.folder, "PRAGMA locking_mode=exclusive; PRAGMA journal_mode=delete;\n")?;
    told.same("wal\n");
    check(place, told, 1)?;
    told.done = format!("one user, {} transactions; several are refused", WRITERS * TRANSACTIONS);
    Ok(())
}
