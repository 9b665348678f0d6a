//! Budgets file descriptors. A process has one table of them, and a guest with a thousand connections, or a
//! client with a thousand files, must not use up those of the other links. So each part of the program gets a
//! share at the start: what it always needs, and the most that its peers may make it open. Beyond that share
//! the peer is refused.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::failure::{Failure, refused};
use crate::host::Multiplexer;
use crate::host::export::{DEFAULT_DESCRIPTORS, DEFAULT_FIDS};
use crate::options::{DeviceDescription, Run};

/// For the control socket's listener, the signals, the wakers, the log, and what is open for the length of a call.
const PROCESS: usize = 16;
/// For the memory of a link, its doorbell, its state file, its wakers.
const LINK: usize = 12;

/// What one part of the program holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Need {
    /// Always.
    fixed: usize,
    /// As its peers like, but so many at least, for it to be of use.
    least: usize,
    /// As its peers like, but no more.
    most: usize,
}

/// What clients of the control socket need.
const CONTROL: Need = Need { fixed: 0, least: 4, most: 64 };
/// What clients of `pmm serve-9p` and their files need.
const SERVER: Need = Need { fixed: 64, least: 16, most: usize::MAX };

fn of(device: &DeviceDescription, allowed: usize) -> Need {
    let fixed = |fixed| Need { fixed, ..Need::default() };
    match device {
        // Its root, a waker, and what four workers and the loop have open in the middle of a walk.
        // More than the usual where a process may have many, since a fid that finds none is reached again.
        DeviceDescription::Directory(_) => {
            Need { fixed: 24, least: 32, most: (allowed / 16).clamp(DEFAULT_DESCRIPTORS, DEFAULT_FIDS) }
        }
        // The listener and its directory, the epoll, and a client that is being accepted or called.
        DeviceDescription::Vsock(_) => Need { fixed: 6, least: 8, most: Multiplexer::MOST },
        // A helper's pipes, a capture.
        DeviceDescription::Network(_) => fixed(14),
        DeviceDescription::Rng(_) => fixed(0),
        // A listener, a client and the one behind it; a terminal, twice, and as it was found.
        DeviceDescription::Console(_) => fixed(8),
    }
}

/// What each may hold beyond what it always does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shares {
    pub(crate) control: usize,
    /// Of each device of each link, in their order.
    pub(crate) devices: Vec<Vec<usize>>,
    /// What the user should know, if all cannot have all.
    pub(crate) note: Option<String>,
}

impl Shares {
    /// Raises the number of descriptors that this process may have to the most it may ask for, and shares them out.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if there are too few for these links.
    pub(crate) fn of(run: &Run) -> Result<Shares, Failure> {
        let allowed = raise();
        let devices = || run.links.iter().map(|link| link.devices.iter().map(|device| of(device, allowed)));
        let process = Need { fixed: PROCESS + LINK * run.links.len(), ..CONTROL };
        let needs: Vec<Need> = std::iter::once(process).chain(devices().flatten()).collect();
        let shares = divide(allowed.saturating_sub(open()), &needs).map_err(|needed| {
            let needed = needed.saturating_add(open());
            Failure::Refused(format!(
                "these links need {needed} descriptors at the least, and this process may have {allowed}; raise 'ulimit -n' (and \
                 'ulimit -Hn')"
            ))
        })?;
        let full = needs.iter().zip(&shares).all(|(need, share)| need.most == *share);
        let note = (!full).then(|| {
            format!("this process may have {allowed} descriptors: sockets and shared directories get fewer than usual; raise 'ulimit -Hn'")
        });
        let mut shares = shares.into_iter();
        let control = shares.next().unwrap_or_default();
        let devices = devices().map(|needs| shares.by_ref().take(needs.len()).collect()).collect();
        Ok(Shares { control, devices, note })
    }
}

/// Raises the limit likewise for `pmm serve-9p`, and says how many its clients' files may take.
///
/// # Errors
///
/// [`Failure::Refused`] if there are too few to serve anybody.
pub(crate) fn for_server() -> Result<usize, Failure> {
    let allowed = raise();
    match divide(allowed.saturating_sub(open()), &[SERVER]).as_deref() {
        Ok([files]) => Ok(*files),
        Err(needed) => {
            let needed = needed.saturating_add(open());
            refused(format!(
                "serve-9p needs {needed} descriptors at the least, and this process may have {allowed}; raise 'ulimit -n'"
            ))
        }
        Ok(_) => Ok(0),
    }
}

/// Shares out what is left of `available` when all have what they must: each gets the same part of what it would have
/// beyond its least. An error is the number that is needed.
fn divide(available: usize, needs: &[Need]) -> Result<Vec<usize>, usize> {
    let must =
        needs.iter().fold(0usize, |sum, need| sum.saturating_add(need.fixed).saturating_add(need.least));
    let rest = available.checked_sub(must).ok_or(must)? as u128;
    let more = |need: &Need| need.most.saturating_sub(need.least) as u128;
    let all = needs.iter().map(more).sum::<u128>().max(1);
    let part = |need: &Need| (more(need) * rest.min(all) / all) as usize;
    Ok(needs.iter().map(|need| need.least + part(need)).collect())
}

/// Returns how many descriptors this process may have, after it has asked for all that it may ask for. Many
/// systems let a process have 1,024 at first.
fn raise() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(allowed).unwrap_or(usize::MAX)
}

/// Counts those that are open: the standard ones, and what was inherited.
fn open() -> usize {
    // The one that reads the directory is in it.
    std::fs::read_dir("/proc/self/fd").map_or(3, |all| all.count().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_shared_out_and_never_more_than_there_are() {
        let (console, socket) =
            (Need { fixed: 4, least: 0, most: 0 }, Need { fixed: 4, least: 8, most: 1024 });
        let files = Need { fixed: 24, least: 32, most: 768 };
        let needs = [console, socket, files, socket];
        assert_eq!(divide(83, &needs), Err(84), "what is needed is said");
        assert_eq!(divide(84, &needs).unwrap(), [0, 8, 32, 8]);
        assert_eq!(divide(usize::MAX, &needs).unwrap(), [0, 1024, 768, 1024]);
        for available in [100, 1000, 2000, 5000] {
            let shares = divide(available, &needs).unwrap();
            let held: usize =
                shares.iter().sum::<usize>() + needs.iter().map(|need| need.fixed).sum::<usize>();
            assert!(held <= available, "{shares:?} of {available}");
            assert!(shares.iter().zip(&needs).all(|(share, need)| (need.least..=need.most).contains(share)));
        }
        assert!(divide(1000, &[SERVER]).unwrap()[0] <= 1000 - 64);
    }
}
