//! What this process may do on the machine beyond an ordinary user: it is given up at the start, before there is a
//! thread, as far as nothing that was asked for needs it.
//!
//! `CAP_FSETID` is the one that matters most. The kernel takes set-user-ID and set-group-ID bits off a file that somebody
//! without it writes to or truncates, whichever system call does it; with it, a guest that rewrites a program of the
//! host's root in its directory would decide what that program does for whoever runs it.

use std::sync::OnceLock;

use rustix::thread::{CapabilitySet, capabilities, no_new_privs, set_capabilities, set_no_new_privs};

use crate::failure::Failure;
use crate::host::export::Ids;
use crate::options::{DeviceDescription, NetworkEnd, Run, Share};

/// What any of them may need: files and devices that this user does not own.
const FILES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SYS_RAWIO);
/// To act as the users of a mapped directory.
const USERS: CapabilitySet = CapabilitySet::SETUID.union(CapabilitySet::SETGID);
/// passt, which gives up its own: it becomes nobody, and makes namespaces. And somebody has to end it.
const PASST: CapabilitySet = USERS
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// What was left at the start.
static LEFT: OnceLock<Vec<String>> = OnceLock::new();

/// Gives up what serving links does not need.
///
/// # Errors
///
/// [`Failure::Refused`] if the machine does not let this process.
pub fn for_links(run: &Run) -> Result<(), Failure> {
    let devices = run.links.iter().flat_map(|link| &link.devices);
    give_up(devices.fold(FILES, |needed, device| {
        needed
            | match device {
                DeviceDescription::Directory(directory) => for_owners(directory.shared.owners.ids()),
                DeviceDescription::Network(card) => match &card.end {
                    NetworkEnd::User { .. } => PASST,
                    NetworkEnd::Tap { .. } => CapabilitySet::NET_ADMIN,
                    _ => CapabilitySet::NET_BIND_SERVICE,
                },
                _ => CapabilitySet::empty(),
            }
    }))
}

/// Gives up what serving a directory does not need.
///
/// # Errors
///
/// As for [`for_links`].
pub fn for_share(share: &Share) -> Result<(), Failure> {
    give_up(
        FILES.difference(CapabilitySet::SYS_RAWIO) | CapabilitySet::NET_BIND_SERVICE | for_owners(share.ids),
    )
}

fn for_owners(ids: Ids) -> CapabilitySet {
    if matches!(ids, Ids::Map { .. }) { USERS } else { CapabilitySet::empty() }
}

fn give_up(needed: CapabilitySet) -> Result<(), Failure> {
    let cannot = |error: rustix::io::Errno| {
        Failure::Refused(format!(
            "what this process does not need cannot be given up ({}); a sandbox that it runs in forbids capset or prctl, allow them",
            std::io::Error::from(error)
        ))
    };
    let mut has = capabilities(None).map_err(cannot)?;
    has.permitted &= needed;
    has.effective &= needed;
    has.inheritable &= needed;
    // Ambient ones go with these.
    set_capabilities(None, has).map_err(cannot)?;
    set_no_new_privs(true).map_err(cannot)?;
    let left = has.permitted.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    LEFT.get_or_init(|| left);
    Ok(())
}

/// Lists what is left, and whether no program that this one starts can have more.
pub(crate) fn left() -> (Vec<String>, bool) {
    let names = LEFT.get().cloned().unwrap_or_default();
    (names, no_new_privs().unwrap_or(false))
}

/// Gives up in this thread what [`for_share`] gives up in a process.
#[cfg(test)]
pub(crate) fn as_a_server() {
    give_up(FILES | USERS).unwrap();
}
