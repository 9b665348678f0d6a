//! `pmm list`: who of this user serves what, and where it is asked for more.

use std::io::Write;

use serde::Serialize;

use super::ask::printable_json;
use super::ask::{print, snapshot};
use super::control::{self, Found};
use super::{Status, directory, printable};
use crate::failure::Failure;
use crate::options::ListRequest;

/// A running `pmm` or `pmm serve-9p`, as it is listed.
#[derive(Debug, Serialize)]
struct Entry {
    pid: u32,
    /// What `pmm status NAME` takes.
    name: String,
    /// Its links, by their names.
    links: Vec<String>,
    /// The directories that it serves to clients that are no guests.
    shares: Vec<String>,
    /// Its control socket.
    control: String,
}

/// Lists those that answer, with their sockets, and the sockets of those that do not.
pub(super) fn survey() -> (Vec<(Found, Status)>, Vec<Found>) {
    let (mut there, mut silent) = (Vec::new(), Vec::new());
    for found in directory::directories().iter().flat_map(|dir| control::discover(dir)) {
        match found.stream.as_ref().and_then(snapshot) {
            Some(status) => there.push((found, status)),
            None => silent.push(found),
        }
    }
    there.sort_by_key(|(_, status)| status.pmm.pid);
    (there, silent)
}

/// Returns whether `pmm status NAME` means this one: by a link, a directory or the process id.
pub(super) fn is_called(status: &Status, name: &str) -> bool {
    status.links.iter().any(|link| link.name == name)
        || status.shares.iter().any(|share| share.name == name)
        || status.pmm.pid.to_string() == name
}

/// What one is called: by its first link or directory.
pub(super) fn name_of(status: &Status) -> String {
    let links = status.links.iter().map(|link| &link.name);
    links.chain(status.shares.iter().map(|share| &share.name)).next().cloned().unwrap_or_default()
}

/// Prints to `out` who runs.
///
/// # Errors
///
/// [`Failure::Refused`] if `out` does not take it.
pub fn list(request: &ListRequest, out: &mut dyn Write) -> Result<(), Failure> {
    let (there, silent) = survey();
    let entry = |(found, status): &(Found, Status)| Entry {
        pid: status.pmm.pid,
        name: name_of(status),
        links: status.links.iter().map(|link| link.name.clone()).collect(),
        shares: status.shares.iter().map(|share| share.directory.clone()).collect(),
        control: found.path.display().to_string(),
    };
    let entries: Vec<Entry> = there.iter().map(entry).collect();
    let mut text = match request.json {
        true => printable_json(&serde_json::to_string(&entries).unwrap_or_default()) + "\n",
        false => table(&entries),
    };
    if !request.json {
        for found in silent {
            let path = printable(&found.path.display().to_string());
            text += &format!("{path}: the pmm there does not answer; is it stopped?\n");
        }
    }
    print(&text, out).map(|_| ())
}

fn table(entries: &[Entry]) -> String {
    if entries.is_empty() {
        let dir = directory::directory();
        return format!("no pmm of this user runs (none in {})\n", printable(&dir.display().to_string()));
    }
    let serves = |entry: &Entry| match entry.shares.as_slice() {
        [] => entry.links.join(", "),
        shares => format!("serve-9p {}", shares.join(", ")),
    };
    let mut rows = vec![["PID", "NAME", "SERVES", "CONTROL"].map(String::from)];
    rows.extend(entries.iter().map(|entry| {
        [entry.pid.to_string(), entry.name.clone(), serves(entry), entry.control.clone()]
            .map(|cell| printable(&cell))
    }));
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let [pid, name, serves] = [0, 1, 2].map(width);
    let line = |[a, b, c, d]: &[String; 4]| format!("{a:>pid$}  {b:name$}  {c:serves$}  {d}\n");
    rows.iter().map(line).collect()
}
