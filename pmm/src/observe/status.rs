//! The snapshot that `pmm status` shows: plain data, the same on the control socket, in JSON and as text.

use std::fmt;

use super::printable;
use serde::{Deserialize, Serialize};

/// All of a running PMM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The program.
    pub pmm: Process,
    /// Its links, in the order of the configuration.
    pub links: Vec<LinkStatus>,
    /// The directories that it serves to clients that are no guests.
    #[serde(default)]
    pub shares: Vec<ShareStatus>,
}

/// A directory that `pmm serve-9p` serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShareStatus {
    /// From the command line.
    pub name: String,
    /// The directory.
    pub directory: String,
    /// Where clients connect.
    pub listen: String,
    /// Whether clients can change nothing.
    pub read_only: bool,
    /// Largest message, in bytes.
    pub msize: u32,
    /// Most clients at a time.
    pub max_clients: usize,
    /// Most fids that a client may hold.
    pub max_fids: usize,
    /// Clients that are there.
    pub connected: usize,
    /// Clients that came.
    pub connects: u64,
    /// Of those, sent away because there were too many.
    pub sent_away: u64,
    /// Those that are there, in the order in which they came.
    pub clients: Vec<ClientStatus>,
}

/// A client of such a directory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// Its process or address.
    pub name: String,
    /// Fids that it holds.
    pub fids: usize,
    /// Requests that it made.
    pub requests: u64,
}

/// The program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Of this package.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// What it may do beyond an ordinary user: the names of the capabilities that it kept.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// No program that it starts can have more.
    #[serde(default)]
    pub no_new_privs: bool,
}

/// One link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// From its description.
    pub name: String,
    /// `starting`, `serving`, `ended` or `failed`.
    pub state: String,
    /// Its event loop does not answer: the rest is what was last known of it.
    #[serde(default)]
    pub unresponsive: bool,
    /// Why it failed, or nothing.
    pub error: Option<String>,
    /// Its memory.
    pub region: RegionStatus,
    /// Its doorbell.
    pub doorbell: DoorbellStatus,
    /// Which kind of guest is attached: `none`, `extended` or `plain`.
    pub profile: String,
    /// This start of the PMM.
    pub pmm_epoch: u32,
    /// The guest's epoch in an extended session.
    pub driver_epoch: Option<u32>,
    /// Guests adopted in the extended profile.
    pub adoptions: u64,
    /// Plain guests found at work.
    pub plain_sessions: u64,
    /// For how many seconds the guest has neither acted on a doorbell nor stored anything; from 10 s on.
    pub silent_for: Option<u64>,
    /// Times that it became so silent.
    pub silences: u64,
    /// Sessions ended because the guest was silent for longer than `--gone-after` allows.
    pub presumed_gone: u64,
    /// Sessions ended because the doorbell's peer had hung up.
    pub hung_up: u64,
    /// Times that the region was found wiped and published again.
    pub wipes: u64,
    /// Doorbells that were due; repetitions count.
    pub rings: u64,
    /// Of those, repetitions of one that the guest had not acted on.
    pub rerings: u64,
    /// Looks at everything.
    pub services: u64,
    /// Times that the event loop woke.
    pub wakeups: u64,
    /// Why there is no session, or a device stands still, as far as memory shows it; empty if nothing is known to be
    /// wrong.
    pub diagnosis: String,
    /// What the guest's last incarnation left to be read when it died.
    pub last_words: String,
    /// The devices, in the order of their windows.
    pub devices: Vec<DeviceStatus>,
}

/// The memory of a link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RegionStatus {
    /// The guest's address of it.
    pub base: u64,
    /// Bytes.
    pub size: u32,
    /// The option that it comes from.
    pub source: String,
    /// Where another process of this machine finds it.
    pub path: String,
    /// Where in that file it starts, in bytes.
    pub offset: u64,
    /// How this side maps it.
    pub attribute: String,
}

/// The doorbell of a link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DoorbellStatus {
    /// As the option was written.
    pub kind: String,
    /// Whether the peer is there, as far as this kind can tell.
    pub peer: bool,
    /// Rings that were sent.
    pub rung: u64,
    /// Rings that merged with one that was not heard yet.
    pub merged: u64,
    /// Rings for which nobody was there.
    pub unheard: u64,
    /// Times that something was heard.
    pub heard: u64,
    /// Times that a peer came.
    pub peers: u64,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// `console`, `rng` ...
    pub name: String,
    /// `running`, `off`, `features-refused`, `needs-reset`, `must-reboot` or `held`; [`remedy`] says what the last four
    /// wait for.
    pub state: String,
    /// What its host end says of itself.
    pub host: String,
    /// Features that the driver accepted.
    pub features: u64,
    /// How often it was reset.
    pub resets: u64,
    /// How often its rings were broken.
    pub ring_faults: u64,
    /// How often its driver accepted what was not offered.
    pub features_refused: u64,
    /// How often a plain driver asked for a queue where none can be.
    pub queues_refused: u64,
    /// Which queue of a plain driver is refused, and why, while the request stands.
    pub last_refusal: Option<String>,
    /// Its queues.
    pub queues: Vec<QueueStatus>,
}

/// One queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Entries that the guest's driver chose; 0 while it has not set the queue up.
    pub size: u16,
    /// Entries that it may have at the most, for which the layout has room.
    pub max_size: u16,
    /// Requests taken and not completed.
    pub in_flight: u16,
    /// Requests taken that were well formed.
    pub requests: u64,
    /// Requests completed.
    pub completed: u64,
    /// Requests completed with length 0 because they were malformed.
    pub malformed: u64,
    /// Bytes moved.
    pub bytes: u64,
}

/// What has to happen before a device in this state, in a session of this profile, is served: a sentence for people, or
/// nothing if it is served or nobody asks it to.
pub fn remedy(profile: &str, state: &str) -> Option<&'static str> {
    Some(match (state, profile) {
        ("needs-reset", "plain") => {
            "its driver broke its rings; it is served again when the guest writes 0 to its Status, as a reboot does"
        }
        ("needs-reset", _) => "its driver broke its rings; it is served again when its driver resets it",
        ("features-refused", "plain") => {
            "its driver accepted features that were not offered; it is served when the guest writes 0 to its Status \
             and accepts others"
        }
        ("features-refused", _) => {
            "its driver accepted features that were not offered, or not those that the link needs; it is served when \
             its driver resets it and accepts others"
        }
        ("held", _) => {
            "another device of its guest was reset or set up anew, which is what a reboot looks like; it is served when \
             its own driver sets it up again"
        }
        ("must-reboot", _) => {
            "a plain guest of another pmm is at work and cannot be served before it is rebooted; --state FILE avoids \
             that"
        }
        _ => return None,
    })
}

impl LinkStatus {
    /// Whether anything differs that is worth telling: a look that found nothing is not.
    pub fn differs(&self, other: &LinkStatus) -> bool {
        let quiet = |status: &LinkStatus| LinkStatus {
            services: 0,
            wakeups: 0,
            silent_for: status.silent_for.and(Some(0)),
            ..status.clone()
        };
        quiet(self) != quiet(other)
    }
}

/// What a link's `state` may be.
const LINK_STATES: &[&str] = &["starting", "serving", "ended", "failed"];
/// What its `profile` may be.
const PROFILES: &[&str] = &["none", "extended", "plain"];
/// What a device's `state` may be.
pub(crate) const DEVICE_STATES: &[&str] =
    &["off", "running", "needs-reset", "features-refused", "must-reboot", "held"];

/// The words that a field may hold, where they are known. `path` leads to it, as in `links.0.state`.
pub(super) fn words(path: &[String]) -> Option<&'static [&'static str]> {
    let list = path.iter().rev().skip(1).find(|step| *step == "devices" || *step == "links")?;
    Some(match (list.as_str(), path.last()?.as_str()) {
        ("links", "state") => LINK_STATES,
        ("links", "profile") => PROFILES,
        ("devices", "state") => DEVICE_STATES,
        _ => return None,
    })
}

impl Status {
    /// One with something in every list: what its fields are called, and of which kind they are.
    pub(super) fn sample() -> Status {
        let (last_refusal, queues) = (Some(String::new()), vec![QueueStatus::default()]);
        let device = DeviceStatus { last_refusal, queues, ..DeviceStatus::default() };
        let (error, driver_epoch, silent_for) = (Some(String::new()), Some(0), Some(0));
        let link =
            LinkStatus { error, driver_epoch, silent_for, devices: vec![device], ..LinkStatus::default() };
        let share = ShareStatus { clients: vec![ClientStatus::default()], ..ShareStatus::default() };
        let capabilities = vec![String::new()];
        let pmm = Process { version: String::new(), pid: 0, capabilities, no_new_privs: false };
        Status { pmm, links: vec![link], shares: vec![share] }
    }

    /// Returns whether a field may be null.
    pub(super) fn may_be_null(field: &str) -> bool {
        matches!(field, "error" | "driver_epoch" | "silent_for" | "last_refusal")
    }
}

// The text has the names of the JSON, so that what one reads is what --wait-for takes.

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Process { version, pid, capabilities, no_new_privs } = &self.pmm;
        writeln!(f, "pmm version {version}, pid {pid}, no_new_privs {no_new_privs}")?;
        if !capabilities.is_empty() {
            writeln!(f, "  capabilities {}", printable(&capabilities.join(" ")))?;
        }
        self.links.iter().try_for_each(|link| write!(f, "{link}"))?;
        self.shares.iter().try_for_each(|share| write!(f, "{share}"))
    }
}

impl ShareStatus {
    /// A number that differs whenever a client has come or gone.
    pub(super) fn changes(&self) -> u64 {
        let gone = self.connects.wrapping_sub(u64::try_from(self.connected).unwrap_or(0));
        self.connects.wrapping_add(gone).wrapping_add(self.sent_away)
    }
}

impl fmt::Display for ShareStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: serving {}", self.name, self.directory)?;
        writeln!(f, "  listen    {}, read_only {}, msize {}", self.listen, self.read_only, self.msize)?;
        writeln!(
            f,
            "  clients   connected {}, max_clients {}, max_fids {} each; connects {}, sent_away {}",
            self.connected, self.max_clients, self.max_fids, self.connects, self.sent_away
        )?;
        for client in &self.clients {
            writeln!(f, "    {}: fids {}, requests {}", client.name, client.fids, client.requests)?;
        }
        Ok(())
    }
}

impl fmt::Display for LinkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (region, bell) = (&self.region, &self.doorbell);
        write!(f, "{}: {}, ", self.name, self.state)?;
        match self.profile.as_str() {
            "none" => write!(f, "no guest")?,
            profile => write!(f, "{profile} guest")?,
        }
        write!(f, ", pmm_epoch {}", self.pmm_epoch)?;
        match self.driver_epoch {
            Some(epoch) => writeln!(f, ", driver_epoch {epoch}")?,
            None => writeln!(f)?,
        }
        if self.unresponsive {
            writeln!(f, "  unresponsive: it does not answer; this is what was last known of it")?;
        }
        if let Some(seconds) = self.silent_for {
            writeln!(f, "  silent_for {seconds} s: the guest has not acted on a doorbell")?;
        }
        if let Some(error) = &self.error {
            writeln!(f, "  error     {error}")?;
        }
        writeln!(
            f,
            "  region    base {:#x}, size {:#x}, {}, {}",
            region.base, region.size, region.attribute, region.source
        )?;
        writeln!(f, "            {}, offset {:#x}", region.path, region.offset)?;
        writeln!(
            f,
            "  doorbell  {}, {}; rung {}, merged {}, unheard {}, heard {}, peers {}",
            bell.kind,
            match (bell.peer, bell.peers) {
                (true, _) => "peer there",
                (false, 0) => "no peer yet",
                (false, _) => "the peer has left",
            },
            bell.rung,
            bell.merged,
            bell.unheard,
            bell.heard,
            bell.peers
        )?;
        writeln!(
            f,
            "  sessions  adoptions {}, plain_sessions {}, silences {}, presumed_gone {}, hung_up {}, wipes {}; rings {}, rerings {}; services {}, wakeups {}",
            self.adoptions,
            self.plain_sessions,
            self.silences,
            self.presumed_gone,
            self.hung_up,
            self.wipes,
            self.rings,
            self.rerings,
            self.services,
            self.wakeups
        )?;
        if !self.diagnosis.is_empty() {
            writeln!(f, "  diagnosis {}", self.diagnosis)?;
        }
        if !self.last_words.is_empty() {
            writeln!(f, "  last_words of the guest: {}", printable(&self.last_words))?;
        }
        for device in &self.devices {
            writeln!(
                f,
                "  {:9} {}, features {:#x}; resets {}, ring_faults {}, features_refused {}, queues_refused {}; host: {}",
                device.name,
                device.state,
                device.features,
                device.resets,
                device.ring_faults,
                device.features_refused,
                device.queues_refused,
                device.host
            )?;
            if let Some(remedy) = remedy(&self.profile, &device.state) {
                writeln!(f, "    {}: {remedy}", device.state)?;
            }
            if let Some(refusal) = &device.last_refusal {
                writeln!(f, "    last_refusal {refusal}")?;
            }
            for (index, queue) in device.queues.iter().enumerate() {
                write!(f, "    queue {index}: size {}", queue.size)?;
                if queue.size != queue.max_size {
                    write!(f, ", max_size {}", queue.max_size)?;
                }
                writeln!(
                    f,
                    "; in_flight {}, requests {}, completed {}, malformed {}, bytes {}",
                    queue.in_flight, queue.requests, queue.completed, queue.malformed, queue.bytes
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Sets each number of a value to one that stands nowhere else, and each text, too.
    fn fill(value: &mut Value, next: &mut u32) {
        *next += 1;
        match value {
            Value::Array(list) => list.iter_mut().for_each(|inner| fill(inner, next)),
            Value::Object(fields) => fields.values_mut().for_each(|inner| fill(inner, next)),
            Value::Number(_) => *value = (100 + *next).into(),
            Value::Bool(_) => *value = true.into(),
            Value::String(_) => *value = format!("text{next}").into(),
            _ => {}
        }
    }

    /// Each value that is no list, with its name.
    fn leaves<'v>(name: &'v str, value: &'v Value, to: &mut Vec<(&'v str, &'v Value)>) {
        match value {
            Value::Array(list) => list.iter().for_each(|inner| leaves(name, inner, to)),
            Value::Object(fields) => fields.iter().for_each(|(name, inner)| leaves(name, inner, to)),
            leaf => to.push((name, leaf)),
        }
    }

    #[test]
    fn the_text_has_the_names_of_the_json() {
        let mut json = serde_json::to_value(Status::sample()).unwrap();
        fill(&mut json, &mut 0);
        let text = serde_json::from_value::<Status>(json.clone()).unwrap().to_string();
        let mut all = Vec::new();
        leaves("", &json, &mut all);
        assert!(all.len() > 40, "{json}");
        for (name, value) in all {
            let shown = match value {
                // As it is, or in hexadecimal.
                Value::Number(number) => {
                    let number = number.as_u64().unwrap();
                    [format!("{name} {number}"), format!("{name} {number:#x}")]
                }
                Value::String(word) => [word.clone(), word.clone()],
                Value::Bool(_) => [name.into(), name.into()],
                other => panic!("a sample has a value for everything: {name} is {other}"),
            };
            assert!(shown.iter().any(|shown| text.contains(shown)), "{name} {value} is not in:\n{text}");
        }
    }

    #[test]
    fn the_words_of_a_state_are_those_of_the_page() {
        let page = include_str!("../../../docs/pmm.md");
        for word in LINK_STATES.iter().chain(PROFILES).chain(DEVICE_STATES) {
            assert!(page.contains(&format!("`{word}`")), "{word} is not in docs/pmm.md");
        }
    }
}
