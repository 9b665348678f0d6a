//! Every path that a run opens or makes, with the option that names it. One list, because a path that is left out of a
//! check is the one that somebody finds.
//!
//! Here, paths are compared as they are written: what clashes is wrong on every machine. What they lead to on this one,
//! [`apart`](crate::apart) asks.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::describe::{LinkDescription, Memory};
use super::device::DeviceDescription;
use super::network::{Address, NetworkEnd};
use super::value::{ConsoleEnd, Doorbell};

/// What is done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// It belongs to one option of one link.
    Own,
    /// Memory: other regions may lie in the same file.
    Region,
    /// It and all `PATH_P` belong to the sockets of one link.
    Ports,
    /// The socket at which a network card listens or receives.
    Card,
    /// The socket to which a network card sends: two cards of one run may be joined.
    Cable,
    /// It is only read or run.
    Input,
}

/// A path and who wants it.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// The path, as it was given.
    pub path: PathBuf,
    /// The option, and whose.
    pub option: String,
    /// What is done with it.
    pub part: Part,
}

impl Claim {
    /// Returns whether both cannot be there, if they are the same file.
    fn excludes(&self, other: &Claim) -> bool {
        use Part::{Cable, Card, Input, Region};
        !matches!(
            (self.part, other.part),
            (Region, Region) | (Input, Input) | (Cable, Card | Cable) | (Card, Cable)
        )
    }

    /// Returns whether two claims clash whose paths have become these.
    pub(crate) fn clashes(&self, path: &Path, other: &Claim, other_path: &Path) -> bool {
        self.excludes(other)
            && (path == other_path
                || (self.part == Part::Ports && is_port_of(path, other_path))
                || (other.part == Part::Ports && is_port_of(other_path, path)))
    }
}

/// Returns whether a guest whose sockets are at `path` reaches `other` by calling a port: it is `path`, `_`
/// and a number.
fn is_port_of(path: &Path, other: &Path) -> bool {
    let port = || {
        let name = other.file_name()?.as_bytes().strip_prefix(path.file_name()?.as_bytes())?;
        let digits = std::str::from_utf8(name.strip_prefix(b"_")?).ok()?;
        let port: u32 = digits.parse().ok()?;
        // Neither a sign nor zeroes before it: that would be another name.
        Some(port.to_string() == digits)
    };
    path.parent() == other.parent() && port() == Some(true)
}

/// Lists all of a run, but for the directories that guests see.
pub(crate) fn claims(links: &[LinkDescription], control: Option<&Path>) -> Vec<Claim> {
    let mut all = Vec::new();
    for link in links {
        let mut claim = |path: &Path, option: &str, part| {
            let option = format!("--{option} of '{}'", link.name);
            all.push(Claim { path: path.into(), option, part });
        };
        match &link.memory {
            Memory::File { path, .. } => claim(path, "shmem-file", Part::Region),
            Memory::Posix(name) => claim(&Path::new("/dev/shm").join(name), "shmem-posix", Part::Region),
            // Where the descriptor comes from, the kernel knows, if that has a name at all.
            Memory::Fd { fd, .. } => {
                if let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{fd}"))
                    && path.is_absolute()
                    && !path.starts_with(OsStr::new("/memfd:"))
                {
                    claim(&path, "shmem-fd", Part::Region);
                }
            }
            Memory::Memfd => {}
        }
        match &link.doorbell {
            Doorbell::UnixStream { path, .. } => claim(path, "doorbell", Part::Own),
            Doorbell::UnixDgram { bind, peer } => {
                claim(bind, "doorbell bind=", Part::Own);
                claim(peer, "doorbell peer=", Part::Own);
            }
            Doorbell::Poll { .. } => {}
        }
        if let Some(path) = &link.state {
            claim(path, "state", Part::Own);
        }
        for device in &link.devices {
            match device {
                DeviceDescription::Directory(_) | DeviceDescription::Rng(_) => {}
                DeviceDescription::Vsock(vsock) => claim(&vsock.path, "vsock", Part::Ports),
                DeviceDescription::Network(card) => {
                    if let Some(path) = &card.pcap {
                        claim(path, "pcap", Part::Own);
                        card.pcap_max.iter().for_each(|_| claim(&old(path), "pcap", Part::Own));
                    }
                    match &card.end {
                        NetworkEnd::Stream { address: Address::Unix(path), listen } => {
                            claim(path, "network", if *listen { Part::Card } else { Part::Cable });
                        }
                        NetworkEnd::Datagram { local, peer } => {
                            for (address, part) in [(local, Part::Card), (peer, Part::Cable)] {
                                if let Address::Unix(path) = address {
                                    claim(path, "network", part);
                                }
                            }
                        }
                        NetworkEnd::User { passt: Some(path), .. } => claim(path, "network", Part::Input),
                        _ => {}
                    }
                }
                DeviceDescription::Console(console) => match &console.end {
                    ConsoleEnd::File(path, Some(_)) => {
                        claim(path, "console", Part::Own);
                        claim(&old(path), "console", Part::Own);
                    }
                    ConsoleEnd::Pty(Some(path)) | ConsoleEnd::Unix(path) | ConsoleEnd::File(path, _) => {
                        claim(path, "console", Part::Own);
                    }
                    ConsoleEnd::Pty(None) | ConsoleEnd::Stdio => {}
                },
            }
        }
    }
    all.extend(control.map(|path| Claim { path: path.into(), option: "--control".into(), part: Part::Own }));
    all
}

/// What a file that is bounded becomes when it is full.
fn old(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(".old");
    path.into()
}

/// Checks the paths of a run against each other, as they are written, and says what clashes.
pub(super) fn check(claims: &[Claim]) -> impl Iterator<Item = String> {
    let whole = |claim: &Claim| std::path::absolute(&claim.path).unwrap_or_else(|_| claim.path.clone());
    let claims: Vec<_> = claims.iter().map(|claim| (claim.clone(), whole(claim))).collect();
    let count = claims.len();
    let clash = move |index: usize| {
        let (one, path) = claims.get(index)?;
        let mut before = claims.iter().take(index);
        let (other, its) = before.find(|(other, its)| one.clashes(path, other, its))?;
        Some(told(one, path, other, its))
    };
    (0..count).filter_map(clash)
}

/// Says how two paths clash.
pub(crate) fn told(one: &Claim, path: &Path, other: &Claim, its: &Path) -> String {
    if path == its {
        let (one, other) = (&one.option, &other.option);
        return format!("{one} and {other} are both {}: each needs its own; change one", path.display());
    }
    let (ports, at, met, path) = match one.part == Part::Ports && is_port_of(path, its) {
        true => (one, path, other, its),
        false => (other, its, one, path),
    };
    format!(
        "{} is {}, where its guest's calls to a port go to {}_PORT, and one of those is {} ({}): choose a path that does not end in '_' and a number",
        ports.option,
        at.display(),
        at.display(),
        met.option,
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_number_behind_an_underscore_and_nothing_else() {
        let is = |path: &str, other: &str| is_port_of(Path::new(path), Path::new(other));
        for other in ["/a/r5_0", "/a/r5_7", "/a/r5_4294967295"] {
            assert!(is("/a/r5", other), "{other}");
        }
        for other in [
            "/a/r5",
            "/a/r5_",
            "/a/r5_07",
            "/a/r5_+7",
            "/a/r5_4294967296",
            "/a/r57",
            "/a/r5_7x",
            "/b/r5_7",
            "/a/r5_7/x",
        ] {
            assert!(!is("/a/r5", other), "{other}");
        }
        assert!(is("/a/r5_7", "/a/r5_7_8") && !is("/a/r5", "/a/r5_7_8"));
    }
}
