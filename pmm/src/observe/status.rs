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
    /// Entries.
    pub size: u16,
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

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pmm {}, process {}", self.pmm.version, self.pmm.pid)?;
        if !self.pmm.capabilities.is_empty() {
            writeln!(f, "  may use {}", printable(&self.pmm.capabilities.join(" ")))?;
        }
        self.links.iter().try_for_each(|link| write!(f, "{link}"))
    }
}

impl fmt::Display for LinkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (region, bell) = (&self.region, &self.doorbell);
        write!(f, "{}: {}, ", self.name, self.state)?;
        match (self.profile.as_str(), self.driver_epoch) {
            ("none", _) => write!(f, "no guest")?,
            (profile, Some(epoch)) => write!(f, "{profile} guest with epoch {epoch}")?,
            (profile, None) => write!(f, "{profile} guest")?,
        }
        writeln!(f, ", pmm epoch {}", self.pmm_epoch)?;
        if self.unresponsive {
            writeln!(f, "  does not answer; this is what was last known of it")?;
        }
        if let Some(seconds) = self.silent_for {
            writeln!(f, "  silent    the guest has not acted on a doorbell for {seconds} s")?;
        }
        if let Some(error) = &self.error {
            writeln!(f, "  error     {error}")?;
        }
        writeln!(
            f,
            "  region    {:#x} + {:#x}, {}, {}",
            region.base, region.size, region.attribute, region.source
        )?;
        writeln!(f, "            {} at {:#x}", region.path, region.offset)?;
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
            "  sessions  adopted {}, plain {}, presumed gone {}, hung up {}, region wiped {}; bells {}, repeated {}; looks {}, wake-ups {}",
            self.adoptions,
            self.plain_sessions,
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
            writeln!(f, "  last words of the guest: {}", printable(&self.last_words))?;
        }
        for device in &self.devices {
            writeln!(
                f,
                "  {:9} {}, features {:#x}; resets {}, ring faults {}, refused {} features {} queues; host: {}",
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
                writeln!(f, "    refused {refusal}")?;
            }
            for (index, queue) in device.queues.iter().enumerate() {
                writeln!(
                    f,
                    "    queue {index}: size {}, in flight {}; requests {}, completed {}, malformed {}, bytes {}",
                    queue.size,
                    queue.in_flight,
                    queue.requests,
                    queue.completed,
                    queue.malformed,
                    queue.bytes
                )?;
            }
        }
        Ok(())
    }
}
