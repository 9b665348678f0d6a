//! Conditions on a snapshot, so that a script or a test waits for a state instead of sleeping and hoping. What no
//! snapshot can hold is refused at once: a misspelt path would be waited for until the time is over.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use super::status::{Status, words};
use crate::options::{BadValue, nearest};

/// `PATH OP VALUE`, as `pmm status --wait-for` takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    path: Vec<String>,
    op: Op,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Equal,
    NotEqual,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// The longer ones first, so that `<=` is not read as `<`.
const OPS: [(&str, Op); 6] = [
    ("!=", Op::NotEqual),
    ("<=", Op::AtMost),
    (">=", Op::AtLeast),
    ("=", Op::Equal),
    ("<", Op::Less),
    (">", Op::More),
];

impl Condition {
    /// Reads a condition, and checks that a snapshot can hold what it asks for.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and how it is written.
    pub fn parse(text: &str) -> Result<Condition, BadValue> {
        let bad = || {
            BadValue("write PATH OP VALUE with one of = != < <= > >=, as in 'links.0.adoptions>=2'".into())
        };
        let at = text.find(['!', '<', '>', '=']).ok_or_else(bad)?;
        let (path, rest) = text.split_at(at);
        let (sign, op) = OPS.into_iter().find(|(sign, _)| rest.starts_with(sign)).ok_or_else(bad)?;
        let rest = rest.get(sign.len()..).unwrap_or_default();
        if let Some(more) = rest.chars().next().filter(|more| matches!(more, '=' | '<' | '>' | '!')) {
            return Err(BadValue(format!("'{sign}{more}' is no operator; write one of = != < <= > >=")));
        }
        let value = rest.trim().to_string();
        let path: Vec<String> = path.trim().split('.').map(str::to_string).collect();
        if path.iter().any(String::is_empty) || value.is_empty() {
            return Err(bad());
        }
        let condition = Condition { path, op, value };
        condition.check()?;
        Ok(condition)
    }

    /// Checks path, operator and value against what a snapshot has.
    fn check(&self) -> Result<(), BadValue> {
        let sample = serde_json::to_value(Status::sample()).unwrap_or_default();
        let field = self.path.last().map(String::as_str).unwrap_or_default();
        let leaf = match find(&sample, &self.path, Elements::Any) {
            Ok(leaf) => leaf,
            Err(missing) => return Err(BadValue(missing.told())),
        };
        let is_null = self.value == "null" && Status::may_be_null(field);
        match leaf {
            Value::Array(_) | Value::Object(_) => {
                let inside = names(leaf).join(", ");
                Err(BadValue(format!("'{field}' is no value; name one of what is in it: {inside}")))
            }
            _ if is_null => Ok(()),
            Value::Number(_) if self.value.parse::<f64>().is_ok_and(f64::is_finite) => Ok(()),
            Value::Number(_) => Err(BadValue(format!("'{field}' is a number, and '{}' is none", self.value))),
            _ if !matches!(self.op, Op::Equal | Op::NotEqual) => {
                Err(BadValue(format!("'{field}' is no number; write = or != behind it")))
            }
            Value::Bool(_) => self.is_one_of(field, &["true", "false"]),
            _ => match words(&self.path) {
                Some(all) => self.is_one_of(field, all),
                None => Ok(()),
            },
        }
    }

    fn is_one_of(&self, field: &str, all: &[&str]) -> Result<(), BadValue> {
        if all.contains(&self.value.as_str()) {
            return Ok(());
        }
        let near = nearest(&self.value, all.iter().copied());
        let hint = near.map(|near| format!("is '{near}' meant? ")).unwrap_or_default();
        let all = all.join(", ");
        Err(BadValue(format!("'{field}' is never '{}'; {hint}it is one of: {all}", self.value)))
    }

    /// What the path leads to. An element of a list is named by its index or by the value of its `name`.
    pub fn find<'v>(&self, snapshot: &'v Value) -> Option<&'v Value> {
        find(snapshot, &self.path, Elements::There).ok()
    }

    /// Returns why a snapshot has no place for it and never will, if so: the links of a PMM and their devices
    /// are the same from its start to its end. But a link that has not started yet tells of no devices, and
    /// clients come and go.
    pub fn never(&self, snapshot: &Value) -> Option<String> {
        let missing = find(snapshot, &self.path, Elements::There).err()?;
        (!missing.may_come).then(|| missing.told())
    }

    /// Whether a snapshot is as asked. What is not there is not as asked, whatever that is.
    pub fn holds(&self, snapshot: &Value) -> bool {
        let Some(found) = self.find(snapshot) else { return false };
        let order = match (found, self.value.parse::<f64>()) {
            (Value::Number(number), Ok(wanted)) => number.as_f64().and_then(|n| n.partial_cmp(&wanted)),
            (Value::String(text), _) => Some(text.as_str().cmp(&self.value)),
            (other, _) => Some(other.to_string().as_str().cmp(&self.value)),
        };
        match self.op {
            Op::Equal => order == Some(Ordering::Equal),
            Op::NotEqual => order != Some(Ordering::Equal),
            Op::Less => order == Some(Ordering::Less),
            Op::AtMost => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Op::More => order == Some(Ordering::Greater),
            Op::AtLeast => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        }
    }
}

/// Which elements a list has.
#[derive(Clone, Copy)]
enum Elements {
    /// Those that are in it.
    There,
    /// Any, all like its first one.
    Any,
}

/// A step of a path that leads nowhere.
struct Missing<'p> {
    step: &'p str,
    /// What it was looked for in, by the steps before.
    within: String,
    /// What is there instead.
    names: Vec<String>,
    /// It may be there later.
    may_come: bool,
}

impl Missing<'_> {
    fn told(&self) -> String {
        let Missing { step, within, names, .. } = self;
        let near = nearest(step, names.iter().map(String::as_str));
        let hint = near.map(|near| format!("; is '{near}' meant?")).unwrap_or_default();
        match (names.is_empty(), hint.is_empty()) {
            (true, _) => format!("there is no '{step}' in {within}, which has nothing in it"),
            (_, true) => format!("there is no '{step}' in {within}; it has {}", names.join(", ")),
            (_, false) => format!("there is no '{step}' in {within}{hint} It has {}", names.join(", ")),
        }
    }
}

/// What is in a list or an object, by the names that a path can use.
fn names(value: &Value) -> Vec<String> {
    let name = |(index, item): (usize, &Value)| match item.get("name").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => name.to_string(),
        _ => index.to_string(),
    };
    match value {
        Value::Array(list) => list.iter().enumerate().map(name).collect(),
        Value::Object(fields) => fields.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

/// Goes down a path. A name in a list may have dots in it, and then several steps are one.
fn find<'v, 'p>(value: &'v Value, path: &'p [String], elements: Elements) -> Result<&'v Value, Missing<'p>> {
    descend(value, path, elements, &mut Vec::new(), false)
}

fn descend<'v, 'p>(
    value: &'v Value,
    path: &'p [String],
    elements: Elements,
    before: &mut Vec<&'p str>,
    may_come: bool,
) -> Result<&'v Value, Missing<'p>> {
    let Some((step, rest)) = path.split_first() else { return Ok(value) };
    let is_starting = value.get("state").and_then(Value::as_str) == Some("starting");
    let may_come = may_come || is_starting || before.last() == Some(&"clients");
    let missing = |before: &[&str]| {
        let within = if before.is_empty() { "a snapshot".into() } else { format!("'{}'", before.join(".")) };
        Missing { step, within, names: names(value), may_come }
    };
    let Value::Array(list) = value else {
        let Some(inner) = value.get(step) else { return Err(missing(before)) };
        before.push(step);
        return descend(inner, rest, elements, before, may_come);
    };
    let by_index = step.parse::<usize>().ok();
    let mut first = None;
    for count in 1..=path.len() {
        let Some((name, rest)) = path.split_at_checked(count) else { break };
        let name = name.join(".");
        let inner = match elements {
            Elements::Any => list.first(),
            Elements::There => match by_index.filter(|_| count == 1) {
                Some(index) => list.get(index),
                None => list.iter().find(|item| item.get("name").and_then(Value::as_str) == Some(&name)),
            },
        };
        if let Some(inner) = inner {
            let mut deeper = before.clone();
            deeper.extend(path.iter().take(count).map(String::as_str));
            match descend(inner, rest, elements, &mut deeper, may_come) {
                // A path that ends with a list's element has not said what of it.
                Ok(found) if !found.is_object() => return Ok(found),
                Ok(found) => first = first.or(Some(Ok(found))),
                Err(missing) => first = first.or(Some(Err(missing))),
            }
        }
    }
    first.unwrap_or_else(|| Err(missing(before)))
}

impl FromStr for Condition {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Condition, BadValue> {
        Condition::parse(text)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = OPS.iter().find(|(_, op)| *op == self.op).map_or("", |(sign, _)| sign);
        write!(f, "{}{sign}{}", self.path.join("."), self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_hold_or_not() {
        let snapshot = json!({"links": [{"name": "r5.0", "adoptions": 10, "driver_epoch": null, "state": "serving",
            "doorbell": {"peer": true}, "devices": [{"name": "rng", "state": "running"}]}]});
        let yes = [
            "links.0.adoptions=10",
            "links.0.adoptions>=9",
            "links.r5.0.adoptions < 11",
            "links.r5.0.doorbell.peer=true",
            "links.r5.0.driver_epoch=null",
            "links.r5.0.driver_epoch!=3",
            "links.r5.0.devices.rng.state=running",
        ];
        for text in yes {
            assert!(Condition::parse(text).unwrap().holds(&snapshot), "{text}");
        }
        for text in [
            "links.0.adoptions>10",
            "links.1.adoptions>=0",
            "links.r5.0.doorbell.peer=false",
            "links.r5.0.devices.rng.state=off",
            // What is not there is not as asked, and a wait for it would not end.
            "links.r5.0.devices.console.state!=running",
        ] {
            assert!(!Condition::parse(text).unwrap().holds(&snapshot), "{text}");
        }
        for text in ["", "links", "=3", "a..b=1", "a=", "a!3"] {
            assert!(Condition::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_no_snapshot_can_hold_is_refused_at_once_with_what_is_near() {
        for (text, told) in [
            ("links.0.sessions>=2", "there is no 'sessions' in 'links.0'"),
            ("links.0.stat=serving", "is 'state' meant?"),
            ("link.0.state=serving", "there is no 'link' in a snapshot; is 'links' meant?"),
            (
                "links.r5.devices.rng.sate=running",
                "there is no 'sate' in 'links.r5.devices.rng'; is 'state' meant?",
            ),
            ("links.0.state.x=1", "there is no 'x' in 'links.0.state'"),
            ("links.0.devices.rng=running", "'rng' is no value; name one of what is in it"),
            ("links.0==serving", "'==' is no operator"),
            ("links.0.adoptions=>3", "'=>' is no operator"),
            ("links.0.adoptions<>3", "'<>' is no operator"),
            ("links.0.adoptions>=many", "'adoptions' is a number, and 'many' is none"),
            ("links.0.adoptions=nan", "is a number"),
            ("links.0.state=runing", "'state' is never 'runing'; it is one of: starting, serving"),
            ("links.0.state=servin", "is 'serving' meant?"),
            ("links.0.devices.0.state=runing", "is 'running' meant?"),
            ("links.0.profile=plian", "is 'plain' meant?"),
            ("links.0.doorbell.peer=yes", "it is one of: true, false"),
            ("links.0.state>=serving", "write = or !="),
            ("links.0.adoptions=null", "is a number"),
        ] {
            let BadValue(said) = Condition::parse(text).unwrap_err();
            assert!(said.contains(told), "{text} should be told '{told}': {said}");
        }
    }

    #[test]
    fn what_a_pmm_does_not_have_is_told_of_as_soon_as_it_is_there() {
        let snapshot = json!({"links": [
            {"name": "r5-0", "state": "serving", "devices": [{"name": "rng", "state": "off"}]},
            {"name": "r5-1", "state": "starting", "devices": []}
        ], "shares": [{"name": "t", "clients": []}]});
        let never = |text: &str| Condition::parse(text).unwrap().never(&snapshot);
        assert_eq!(never("links.r5-0.devices.rng.state=running"), None);
        assert_eq!(
            never("links.r5-1.devices.rng.state=running"),
            None,
            "it may have one when it has started"
        );
        assert_eq!(never("shares.t.clients.0.fids=1"), None, "clients come and go");
        let said = never("links.r5-2.state=serving").unwrap();
        assert!(said.contains("no 'r5-2' in 'links'") && said.contains("r5-0, r5-1"), "{said}");
        assert!(never("links.2.state=serving").is_some() && never("links.1.state=serving").is_none());
        let said = never("links.r5-0.devices.rgn.state!=running").unwrap();
        assert!(said.contains("is 'rng' meant?"), "{said}");
    }

    #[test]
    fn the_conditions_of_help_texts_and_pages_are_ones() {
        let help =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/options/cli.rs")).unwrap();
        let docs = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs")).unwrap();
        let pages = docs.map(|page| std::fs::read_to_string(page.unwrap().path()).unwrap_or_default());
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
        let mut count = 0;
        for text in pages.chain([help, readme]) {
            let spans = text.split(['`', '\'', '"', '\n']).map(|span| span.trim_start_matches("--wait-for "));
            let is_one = |span: &&str| {
                (span.starts_with("links.") || span.starts_with("shares."))
                    && span.contains(['=', '<', '>'])
                    && !span.contains("..")
            };
            for condition in spans.filter(is_one) {
                Condition::parse(condition).unwrap_or_else(|bad| panic!("{condition}: {bad}"));
                count += 1;
            }
        }
        assert!(count >= 4, "only {count} conditions were found: do the pages mark them another way?");
    }
}
