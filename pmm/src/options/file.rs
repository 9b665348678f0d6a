//! A configuration file: the options of a command line as TOML. Each key is read alone, so that one that is wrong does
//! not hide the others.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, Error};

use super::cli::{LinkOptions, LogLevel};
use super::refusals::{Given, Refusals};
use super::value::Number;

/// A configuration file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub log_json: bool,
    pub link: Vec<LinkOptions>,
}

/// Reads what `path` holds. What is wrong is refused at its place plus `after`; beside each link stands what its table
/// gave. `None` if it is no TOML at all.
pub(super) fn read(
    text: &str,
    path: &Path,
    after: usize,
    refusals: &mut Refusals,
) -> Option<(Config, Vec<Given>)> {
    let place = |at: usize| after.saturating_add(at);
    let mut wrong = |error: &Error, at: Option<usize>| {
        let at = error.span().map(|span| span.start).or(at).unwrap_or_default();
        let line = text.get(..at.min(text.len())).map_or(1, |before| before.matches('\n').count() + 1);
        let what = error.message().lines().collect::<Vec<_>>().join(" ");
        refusals.add(place(at), format!("--config {} line {line}: {what}; correct the file", path.display()));
    };
    let (root, broken) = DeTable::parse_recoverable(text);
    if !broken.is_empty() {
        // What is wrong behind the first thing in a line comes of that.
        let line =
            |error: &Error| error.span().map(|span| text.get(..span.start).map(|t| t.matches('\n').count()));
        let mut seen = HashSet::new();
        broken.iter().filter(|error| seen.insert(line(error))).for_each(|error| wrong(error, None));
        return None;
    }
    let (mut own, mut links, mut given) = (DeTable::new(), Vec::new(), Vec::new());
    for (key, value) in root.into_inner() {
        match value.get_ref() {
            DeValue::Array(tables)
                if key.get_ref() == "link" && tables.iter().all(|one| one.get_ref().is_table()) =>
            {
                for one in tables {
                    let end = one.span().end;
                    let DeValue::Table(table) = one.get_ref() else { continue };
                    // A table's own span is its header's; what is missing belongs behind its last key.
                    let end = table.values().map(|value| value.span().end).max().unwrap_or(end);
                    let mut of_link = Given::until(place(end));
                    links.push(sift(table, |key, at, error| {
                        of_link.note(key, place(at));
                        if let Some(error) = error {
                            of_link.refuse(key);
                            wrong(&error, Some(at));
                        }
                    }));
                    given.push(of_link);
                }
            }
            _ => _ = own.insert(key, value),
        }
    }
    let config: Config = sift(&own, |_, at, error| {
        if let Some(error) = error {
            wrong(&error, Some(at));
        }
    });
    Some((Config { link: links, ..config }, given))
}

/// Makes a `T` of those keys that it takes; `tell` hears of each key, its place, and what is wrong with it.
fn sift<T: DeserializeOwned + Default>(
    table: &DeTable,
    mut tell: impl FnMut(&str, usize, Option<Error>),
) -> T {
    let read = |table: DeTable| T::deserialize(Deserializer::from(Spanned::new(0..0, table)));
    let mut good = DeTable::new();
    for (key, value) in table {
        let one = DeTable::from_iter([(key.clone(), value.clone())]);
        let error = read(one).err();
        if error.is_none() {
            good.insert(key.clone(), value.clone());
        }
        tell(key.get_ref(), key.span().start, error);
    }
    // Keys that are right alone are right together: none depends on another.
    read(good).unwrap_or_default()
}
