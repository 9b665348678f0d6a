//! Why there is no session, or a device of one stands still: what a firmware's author compares first when all is silent.
//!
//! Firmware with a wrong base, size, offset or queue length has no way to say so but through memory, and may have no
//! output at all. So a while after a link has begun to wait, its memory is looked at once, and what is found there is
//! said in a sentence, with the values of this side beside those of the other. [`diagnose`] is a pure function of what
//! was seen; [`Diagnosis`] says when to look.

use hvl_shared_abi::header::reg;
use hvl_shared_abi::{Mem, Window};

use super::RegionStatus;
use crate::snapshot::{LinkSnapshot, Profile};

/// How long a guest may take before its silence is looked into, in microseconds.
const PATIENCE_US: u64 = 3_000_000;
/// What stands in memory, and what is known beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// DriverEpoch: whether any guest ever said hello here.
    pub driver_epoch: u32,
    /// The epoch of the session.
    pub adopted: Option<u32>,
    /// How often the doorbell was heard.
    pub heard: u64,
    /// The devices.
    pub devices: Vec<DeviceSeen>,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceSeen {
    /// Its kind.
    pub name: &'static str,
    /// Its driver has set it up in this session, or it failed since: it is not silent.
    pub is_set_up: bool,
    /// Most entries of its queues: its driver has set none up.
    pub queues: Vec<u16>,
}

impl Seen {
    /// Looks at a region.
    pub fn read<M: Mem>(m: &M, snapshot: &LinkSnapshot, heard: u64) -> Seen {
        let word = |window: Window, register| m.read32(window.at(register));
        let devices = snapshot.devices.iter().flatten().enumerate().filter_map(|(index, device)| {
            let window = Window::of(index)?;
            Some(DeviceSeen {
                name: device.kind,
                is_set_up: device.runs
                    || device.fault != "none"
                    || snapshot.driver_epoch == Some(word(window, reg::DRIVER_READY)),
                queues: device.queue_limits.iter().copied().take(device.queue_count).collect(),
            })
        });
        Seen {
            driver_epoch: word(Window::LINK, reg::DRIVER_EPOCH),
            adopted: snapshot.driver_epoch,
            heard,
            devices: devices.collect(),
        }
    }
}

/// Says what is wrong, as far as it can be seen; nothing if nothing is.
pub fn diagnose(seen: &Seen, region: &RegionStatus) -> Option<String> {
    let RegionStatus { base, size, source, offset, .. } = region;
    let place = format!("{size:#x} bytes at {base:#x}, which are those at {offset:#x} of {source}");
    let Some(epoch) = seen.adopted else {
        // A peer that connects counts as heard: what rang need not be a frontend.
        let rang = match seen.heard {
            0 => "nothing has rung".to_string(),
            1 => "the doorbell was heard once".to_string(),
            heard => format!("the doorbell was heard, {heard} times"),
        };
        let what = match seen.driver_epoch {
            0 => format!("no guest has written to the region ({rang})"),
            old => format!("the region holds no hello since that of epoch {old} ({rang})"),
        };
        return Some(format!(
            "{what}: if the firmware runs, its memory is elsewhere, cached, or of another length; compare {place}, \
             with the address that it maps, and --shmem-offset and --shmem-addr with its Board::region"
        ));
    };
    let silent: Vec<&DeviceSeen> = seen.devices.iter().filter(|device| !device.is_set_up).collect();
    if silent.len() < seen.devices.len() || silent.is_empty() {
        // Firmware need not use every device.
        return None;
    }
    let queues: Vec<String> =
        silent.iter().map(|device| format!("{} {:?}", device.name, device.queues)).collect();
    Some(format!(
        "the guest (epoch {epoch}) said hello and has set up no device: it opens none, or refuses what it found; its \
         Link::state() and status() say why. Compare {place}, and queues of {} entries",
        queues.join(", ")
    ))
}

/// Looks once in every state that lasts: a while after the link, or a session, has begun.
#[derive(Debug)]
pub struct Diagnosis {
    state: (Profile, Option<u32>),
    due: Option<u64>,
    said: String,
}

impl Diagnosis {
    /// Of a link that begins to wait now.
    pub fn new(now_us: u64) -> Diagnosis {
        Diagnosis {
            state: (Profile::None, None),
            due: Some(now_us.saturating_add(PATIENCE_US)),
            said: String::new(),
        }
    }

    /// Returns when it is to be asked next.
    pub fn deadline(&self) -> Option<u64> {
        self.due
    }

    /// Returns what was found last, for the status; empty if nothing is wrong.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// Notes how the link stands; what is new to be said, if there is anything.
    pub fn look(
        &mut self,
        now_us: u64,
        state: (Profile, Option<u32>),
        look: impl FnOnce() -> Option<String>,
    ) -> Option<&str> {
        if self.state != state {
            *self = Diagnosis { state, ..Diagnosis::new(now_us) };
        }
        if self.due.is_none_or(|due| due > now_us) {
            return None;
        }
        self.due = None;
        // A plain guest refuses nothing: it takes what the registers say.
        self.said = if state.0 == Profile::Plain { None } else { look() }?;
        Some(&self.said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> RegionStatus {
        RegionStatus {
            base: 0x1000_0000,
            size: 0x10_0000,
            source: "--shmem-file /dev/shm/r5".into(),
            offset: 0x2000,
            ..RegionStatus::default()
        }
    }

    fn device(name: &'static str, is_set_up: bool) -> DeviceSeen {
        DeviceSeen { name, is_set_up, queues: vec![64, 32] }
    }

    #[test]
    fn nothing_in_memory_is_told_with_what_to_compare() {
        let said = diagnose(&Seen::default(), &region()).unwrap();
        for part in [
            "no guest has written",
            "0x100000 bytes",
            "0x10000000",
            "0x2000 of --shmem-file /dev/shm/r5",
            "cached",
        ] {
            assert!(said.contains(part), "{part:?} is not in {said:?}");
        }
        let said = diagnose(&Seen { heard: 7, ..Seen::default() }, &region()).unwrap();
        assert!(
            said.starts_with("no guest has written to the region (the doorbell was heard, 7 times)"),
            "{said}"
        );
        let said = diagnose(&Seen { heard: 7, driver_epoch: 3, ..Seen::default() }, &region()).unwrap();
        assert!(
            said.starts_with("the region holds no hello since that of epoch 3 (the doorbell was"),
            "{said}"
        );
    }

    #[test]
    fn a_hello_that_came_to_nothing_is_told_and_a_device_that_is_not_used_is_not() {
        let devices = vec![device("rng", false), device("console", false)];
        let seen = Seen { adopted: Some(9), devices, ..Seen::default() };
        let said = diagnose(&seen, &region()).unwrap();
        assert!(said.contains("(epoch 9) said hello and has set up no device"), "{said}");
        assert!(said.contains("rng [64, 32]") && said.contains("Link::state()"), "{said}");
        let devices = vec![device("rng", true), device("console", false)];
        assert_eq!(diagnose(&Seen { devices, ..seen }, &region()), None);
    }

    #[test]
    fn each_state_that_lasts_is_looked_at_once() {
        let waiting = (Profile::None, None);
        let mut diagnosis = Diagnosis::new(0);
        let mut look = |now, state| diagnosis.look(now, state, || Some("why".into())).map(str::to_string);
        assert_eq!(look(PATIENCE_US - 1, waiting), None);
        assert_eq!(look(PATIENCE_US, waiting).as_deref(), Some("why"));
        assert_eq!(look(PATIENCE_US * 9, waiting), None);
        // A session has begun: another reason to look, later. A plain guest refuses nothing.
        assert_eq!(look(PATIENCE_US * 10, (Profile::Extended, Some(1))), None);
        assert_eq!(look(PATIENCE_US * 11, (Profile::Extended, Some(1))).as_deref(), Some("why"));
        assert_eq!(look(PATIENCE_US * 12, (Profile::Plain, None)), None);
        assert_eq!(look(PATIENCE_US * 13, (Profile::Plain, None)), None);
        assert_eq!((diagnosis.deadline(), diagnosis.said()), (None, ""));
    }
}
