//! Conditions on a snapshot, so that a script or a test waits for a state instead of sleeping and hoping.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::options::BadValue;

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
    /// Reads a condition.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and how one is written.
    pub fn parse(text: &str) -> Result<Condition, BadValue> {
        let bad = || {
            BadValue("write PATH OP VALUE with one of = != < <= > >=, as in 'links.0.adoptions>=2'".into())
        };
        let at = text.find(['!', '<', '>', '=']).ok_or_else(bad)?;
        let (path, rest) = text.split_at(at);
        let (sign, op) = OPS.into_iter().find(|(sign, _)| rest.starts_with(sign)).ok_or_else(bad)?;
        let value = rest[sign.len()..].trim().to_string();
        let path: Vec<String> = path.trim().split('.').map(str::to_string).collect();
        if path.iter().any(String::is_empty) || value.is_empty() {
            return Err(bad());
        }
        Ok(Condition { path, op, value })
    }

    /// What the path leads to. An element of a list is named by its index or by the value of its `name`.
    pub fn find<'v>(&self, snapshot: &'v Value) -> Option<&'v Value> {
        self.path.iter().try_fold(snapshot, |at, step| match at {
            Value::Array(list) => match step.parse::<usize>() {
                Ok(index) => list.get(index),
                Err(_) => list.iter().find(|item| item.get("name").and_then(Value::as_str) == Some(step)),
            },
            other => other.get(step),
        })
    }

    /// Whether a snapshot is as asked. What is not there differs from everything.
    pub fn holds(&self, snapshot: &Value) -> bool {
        let Some(found) = self.find(snapshot) else { return self.op == Op::NotEqual };
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
        let snapshot = json!({"links": [{"name": "r5", "sessions": 10, "up": true, "none": null,
            "devices": [{"name": "rng", "state": "running"}]}]});
        let yes = [
            "links.0.sessions=10",
            "links.0.sessions>=9",
            "links.r5.sessions < 11",
            "links.r5.up=true",
            "links.r5.none=null",
            "links.r5.devices.rng.state=running",
            "links.r5.devices.console.state!=running",
        ];
        for text in yes {
            assert!(Condition::parse(text).unwrap().holds(&snapshot), "{text}");
        }
        for text in [
            "links.0.sessions>10",
            "links.1.sessions>=0",
            "links.r5.up=false",
            "links.r5.devices.rng.state=off",
        ] {
            assert!(!Condition::parse(text).unwrap().holds(&snapshot), "{text}");
        }
        for text in ["", "links", "=3", "a..b=1", "a=", "a!3"] {
            assert!(Condition::parse(text).is_err(), "{text}");
        }
    }
}
