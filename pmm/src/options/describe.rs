//! From words to links: each [`LinkOptions`] is checked alone, then all of them together. What passes can still be
//! refused by the machine, but it makes sense.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use hvl_shared_abi::layout::{DeviceSpec, Layout, LayoutError, MAX_QUEUE_SIZE};
use serde::Serialize;

use super::cli::LinkOptions;
use super::device::NetworkDescription;
use super::device::{
    ConsoleDescription, DeviceDescription, DirectoryDescription, Owned, RngDescription, VsockDescription,
};
use super::network::Mac;
use super::value::{DEFAULT_POLL_MICROS, Doorbell, Number};
use crate::failure::{Failure, misuse};

/// Regions, their addresses and their offsets in a file are multiples of this.
const PAGE: u64 = 4096;

/// The plain profile names a ring by a 32-bit number of 4096-byte pages, so everything lies below this address.
const ADDRESS_LIMIT: u64 = 1 << 44;

/// One link: a region, a doorbell, devices. Checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkDescription {
    /// What messages and the status call it: letters, digits, `.`, `_` and `-`, at most 32.
    pub name: String,
    /// The address at which the guest sees the region; a multiple of 4096, never 0.
    pub base: u64,
    /// Size of the region in bytes; a multiple of 4096.
    pub size: u32,
    /// Where the region comes from.
    pub memory: Memory,
    /// How the two sides wake each other.
    pub doorbell: Doorbell,
    /// The devices, at least one, in the order of their windows.
    pub devices: Vec<DeviceDescription>,
    /// Whether the region is zeroed first.
    pub fresh: bool,
    /// Where a plain guest's state is kept over a PMM's death.
    pub state: Option<PathBuf>,
}

/// Where a region comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// A new memfd of this process.
    Memfd,
    /// Part of a file.
    File {
        /// The file.
        path: PathBuf,
        /// Where in it the region starts, in bytes; a multiple of 4096.
        offset: u64,
    },
    /// A POSIX shared memory object, by its name without a slash.
    Posix(String),
    /// Part of what an inherited file descriptor stands for.
    Fd {
        /// Its number.
        fd: i32,
        /// Where in it the region starts, in bytes; a multiple of 4096.
        offset: u64,
    },
}

impl fmt::Display for Memory {
    /// As the command line has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Memory::Memfd => write!(f, "a memfd"),
            Memory::File { path, .. } => write!(f, "--shmem-file {}", path.display()),
            Memory::Posix(name) => write!(f, "--shmem-posix {name}"),
            Memory::Fd { fd, .. } => write!(f, "--shmem-fd {fd}"),
        }
    }
}

impl LinkDescription {
    /// Where everything lies in the region.
    ///
    /// # Errors
    ///
    /// None for a description that came from [`parse`](super::parse), which has asked before.
    pub fn layout(&self) -> Result<Layout, LayoutError> {
        let specs: Vec<_> = self.devices.iter().map(DeviceDescription::spec).collect();
        Layout::place(&specs, self.size)
    }
}

/// How an option of this link is named in a message: as typed, or by its place in the file.
struct Place<'a> {
    file: Option<&'a Path>,
    link: &'a str,
}

impl Place<'_> {
    fn option(&self, name: &str) -> String {
        match self.file {
            None => format!("--{name}"),
            Some(file) => format!("{}, link '{}': {name}", file.display(), self.link),
        }
    }

    /// The option as the reader would write it: with dashes only on a command line.
    fn bare(&self, name: &str) -> String {
        if self.file.is_none() { format!("--{name}") } else { name.into() }
    }

    fn example(&self, name: &str) -> String {
        let value = if name == "shmem-size" { "16M" } else { "0x10000000" };
        if self.file.is_none() { format!("--{name} {value}") } else { format!("{name} = \"{value}\"") }
    }

    fn number(&self, name: &str, value: Option<Number>) -> Result<u64, Failure> {
        match value {
            Some(Number(value)) => Ok(value),
            None => misuse(format!(
                "{} is missing: say where the region is and how large, as in '{}'",
                self.option(name),
                self.example(name)
            )),
        }
    }
}

/// Checks each link alone. Adds a line to `notes` for every default that the user should know of.
pub(super) fn describe(
    links: &[LinkOptions],
    file: Option<&Path>,
    notes: &mut Vec<String>,
) -> Result<Vec<LinkDescription>, Failure> {
    links.iter().enumerate().map(|(index, options)| describe_one(options, index, file, notes)).collect()
}

fn describe_one(
    options: &LinkOptions,
    index: usize,
    file: Option<&Path>,
    notes: &mut Vec<String>,
) -> Result<LinkDescription, Failure> {
    let name = options.name.clone().unwrap_or_else(|| format!("link{index}"));
    let at = Place { file, link: &name };
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 32 || !name.chars().all(fine) || name.starts_with(['.', '-']) {
        return misuse(format!(
            "{} '{}': use 1 to 32 letters, digits, '.', '_' and '-', not '.' or '-' first",
            at.option("name"),
            name.escape_default()
        ));
    }
    if !options.no_dtb {
        return misuse(format!(
            "{} is missing: the placement with a device tree will come in a later version; add it",
            at.option("no-dtb")
        ));
    }

    let base = at.number("shmem-addr", options.shmem_addr)?;
    let size = at.number("shmem-size", options.shmem_size)?;
    if base == 0 || !base.is_multiple_of(PAGE) {
        return misuse(format!(
            "{} {base:#x}: use a multiple of 4096 that is not 0, the address at which the guest sees the region",
            at.option("shmem-addr")
        ));
    }
    if !size.is_multiple_of(PAGE) {
        return misuse(format!("{} {size:#x}: use a multiple of 4096", at.option("shmem-size")));
    }
    let Some(size) = u32::try_from(size).ok() else {
        return misuse(format!(
            "{} {size:#x}: a region is smaller than 4G; use less",
            at.option("shmem-size")
        ));
    };
    if base.checked_add(u64::from(size)).is_none_or(|end| end > ADDRESS_LIMIT) {
        return misuse(format!(
            "{} {base:#x}: the region would end above {ADDRESS_LIMIT:#x}, where rings cannot be named; use a lower address",
            at.option("shmem-addr")
        ));
    }

    let memory = memory(options, size, &at)?;
    let doorbell = options.doorbell.clone().unwrap_or_else(|| {
        notes.push(format!("{name}: no --doorbell, so memory is looked at every {DEFAULT_POLL_MICROS} µs"));
        Doorbell::Poll { micros: DEFAULT_POLL_MICROS }
    });
    let sizes = (options.directory_queue, options.directory_pool);
    let directory = device(&at, "9p", !options.directories.is_empty(), sizes, DeviceSpec::P9)?;
    let directories =
        options.directories.iter().zip(directory.into_iter().cycle()).map(|(shared, (queue, pool))| {
            DeviceDescription::Directory(DirectoryDescription { shared: shared.clone(), queue, pool })
        });
    let mut tags: Vec<_> = options.directories.iter().map(|shared| &shared.tag).collect();
    tags.sort_unstable();
    if let Some([tag, ..]) = tags.windows(2).find(|pair| pair.first() == pair.last()) {
        return misuse(format!(
            "{}: two directories are called '{tag}'; give each a tag of its own",
            at.option("9p")
        ));
    }
    let sizes = (options.vsock_queue, options.vsock_pool);
    let vsock = device(&at, "vsock", options.vsock.is_some(), sizes, DeviceSpec::VSOCK)?;
    let vsock = options.vsock.as_ref().zip(vsock).map(|(address, (queue, pool))| {
        let default = || crate::observe::directory().join("vsock").join(&name);
        let path = address.path.clone().unwrap_or_else(default);
        let (cid, is_default) = (address.cid, address.path.is_none());
        DeviceDescription::Vsock(VsockDescription { cid, path, is_default, queue, pool })
    });
    let rng = device(&at, "rng", options.rng, (options.rng_queue, options.rng_pool), DeviceSpec::RNG)?
        .map(|(queue, pool)| DeviceDescription::Rng(RngDescription { queue, pool }));
    let sizes = (options.console_queue, options.console_pool);
    let console = device(&at, "console", options.console.is_some(), sizes, DeviceSpec::CONSOLE)?;
    let console = options
        .console
        .clone()
        .zip(console)
        .map(|(end, (queue, pool))| DeviceDescription::Console(ConsoleDescription { end, queue, pool }));
    let console = cards(options, &at)?.into_iter().chain(console);
    let devices: Vec<_> = directories.chain(vsock).chain(rng).chain(console).collect();
    if devices.is_empty() {
        let link = file.map_or("the link".into(), |file| format!("{}, link '{name}',", file.display()));
        return misuse(format!(
            "{link} has no device: add '{}', '{}', '{}' or '{}'",
            at.bare("9p"),
            at.bare("vsock"),
            at.bare("rng"),
            at.bare("console")
        ));
    }
    let link = LinkDescription {
        memory,
        doorbell,
        devices,
        base,
        size,
        fresh: options.fresh,
        state: options.state.clone(),
        name: name.clone(),
    };
    match link.layout() {
        Ok(_) => Ok(link),
        Err(LayoutError::TooSmall { need, .. }) => misuse(format!(
            "{} {size:#x}: too small for these devices, which need {need:#x} bytes; use at least that",
            at.option("shmem-size")
        )),
        Err(error) => misuse(format!("link '{name}': {error}")),
    }
}

/// The link's network cards.
fn cards(options: &LinkOptions, at: &Place) -> Result<Vec<DeviceDescription>, Failure> {
    let sizes = (options.network_queue, options.network_pool);
    let Some((queue, pool)) = device(at, "network", !options.network.is_empty(), sizes, DeviceSpec::NET)?
    else {
        return match &options.pcap {
            Some(path) => misuse(format!(
                "{} {}: there is no network card; add '{}' or leave it out",
                at.option("pcap"),
                path.display(),
                at.bare("network")
            )),
            None => Ok(Vec::new()),
        };
    };
    let describe = |(card, network): (usize, &super::Network)| {
        let pcap = options.pcap.as_ref().map(|path| match card {
            0 => path.clone(),
            card => {
                let mut name = path.clone().into_os_string();
                name.push(format!(".{card}"));
                name.into()
            }
        });
        let mac = network.mac.unwrap_or_else(|| Mac::of(at.link, card));
        let (end, mtu) = (network.end.clone(), network.mtu);
        DeviceDescription::Network(NetworkDescription { end, mac, mtu, pcap, queue, pool })
    };
    Ok(options.network.iter().enumerate().map(describe).collect())
}

fn memory(options: &LinkOptions, size: u32, at: &Place) -> Result<Memory, Failure> {
    let given = [
        ("shmem-file", options.shmem_file.is_some()),
        ("shmem-posix", options.shmem_posix.is_some()),
        ("shmem-fd", options.shmem_fd.is_some()),
    ];
    let mut given = given.iter().filter(|(_, given)| *given).map(|(option, _)| *option);
    let (first, second) = (given.next(), given.next());
    if let (Some(first), Some(second)) = (first, second) {
        return misuse(format!(
            "{} contradicts '{}': a region comes from one place; leave one out",
            at.option(first),
            at.bare(second)
        ));
    }
    let offset = options.shmem_offset.unwrap_or_default().0;
    if options.shmem_offset.is_some() && !matches!(first, Some("shmem-file" | "shmem-fd")) {
        return misuse(format!(
            "{} {}: only '{}' and '{}' have an offset; leave it out",
            at.option("shmem-offset"),
            Number(offset),
            at.bare("shmem-file"),
            at.bare("shmem-fd")
        ));
    }
    if !offset.is_multiple_of(PAGE)
        || offset.checked_add(u64::from(size)).is_none_or(|end| end > i64::MAX as u64)
    {
        return misuse(format!(
            "{} {offset:#x}: use a multiple of 4096 at which a file can be {size:#x} bytes longer",
            at.option("shmem-offset")
        ));
    }
    if let Some(path) = &options.shmem_file {
        if path.as_os_str().is_empty() {
            return misuse(format!("{}: the path is empty; name a file", at.option("shmem-file")));
        }
        return Ok(Memory::File { path: path.clone(), offset });
    }
    if let Some(name) = &options.shmem_posix {
        let bare = name.strip_prefix('/').unwrap_or(name);
        if bare.is_empty() || bare.len() > 254 || bare.contains(['/', '\0']) || bare == "." || bare == ".." {
            return misuse(format!(
                "{} {name}: use a name of 1 to 254 bytes with no slash in it",
                at.option("shmem-posix")
            ));
        }
        return Ok(Memory::Posix(bare.into()));
    }
    if let Some(Number(fd)) = options.shmem_fd {
        return match i32::try_from(fd) {
            Ok(fd) if fd > 2 => Ok(Memory::Fd { fd, offset }),
            _ => misuse(format!(
                "{} {fd}: use the number of an inherited descriptor, above 2",
                at.option("shmem-fd")
            )),
        };
    }
    Ok(Memory::Memfd)
}

/// Queue size and pool of the device `owner`: as asked, or the default's. `None` without that device.
fn device(
    at: &Place,
    owner: &str,
    exists: bool,
    (queue, pool): (Option<Number>, Option<Number>),
    default: DeviceSpec,
) -> Result<Option<(u16, u32)>, Failure> {
    let (queue_option, pool_option) = (format!("{owner}-queue"), format!("{owner}-pool"));
    if !exists {
        let given = queue.map(|size| (&queue_option, size)).or(pool.map(|size| (&pool_option, size)));
        return match given {
            Some((option, size)) => misuse(format!(
                "{} {size}: there is no such device; add '{}' or leave it out",
                at.option(option),
                at.bare(owner)
            )),
            None => Ok(None),
        };
    }
    let queue = match queue {
        None => default.queues[0],
        Some(Number(size)) => match u16::try_from(size) {
            Ok(size) if (2..=MAX_QUEUE_SIZE).contains(&size) && size.is_power_of_two() => size,
            _ => {
                let option = at.option(&queue_option);
                return misuse(format!("{option} {size}: use a power of two from 2 to {MAX_QUEUE_SIZE}"));
            }
        },
    };
    let pool = match pool {
        None => default.pool,
        Some(Number(size)) => match u32::try_from(size) {
            Ok(size) if size >= 64 => size,
            _ => {
                let option = at.option(&pool_option);
                return misuse(format!(
                    "{option} {}: use at least 64 bytes and less than the region",
                    Number(size)
                ));
            }
        },
    };
    Ok(Some((queue, pool)))
}

/// Checks that no two links, and no two devices, would own the same thing.
pub(super) fn check_together(links: &[LinkDescription], control: Option<&Path>) -> Result<(), Failure> {
    // (what is owned, by which option)
    let mut owned: Vec<(String, String)> = Vec::new();
    owned.extend(control.map(|path| (shown(path), "--control".into())));
    for link in links {
        let mut own =
            |thing: String, option: &str| owned.push((thing, format!("--{option} of '{}'", link.name)));
        match &link.doorbell {
            Doorbell::UnixStream { path, .. } => own(shown(path), "doorbell"),
            Doorbell::UnixDgram { bind, peer } => {
                own(shown(bind), "doorbell bind=");
                own(shown(peer), "doorbell peer=");
            }
            Doorbell::Poll { .. } => {}
        }
        for (owned, option) in link.devices.iter().filter_map(DeviceDescription::owned) {
            match owned {
                Owned::Terminal => own("this terminal".into(), option),
                Owned::Path(path) => own(shown(path), option),
            }
        }
        if let Some(path) = &link.state {
            own(shown(path), "state");
        }
    }
    let mut names = HashSet::new();
    if let Some(twice) = links.iter().find(|link| !names.insert(&link.name)) {
        return misuse(format!("--name {}: two links have this name; change one", twice.name));
    }
    let mut owners: HashMap<&str, &str> = HashMap::new();
    for (thing, option) in &owned {
        if let Some(other) = owners.insert(thing, option) {
            return misuse(format!("{option} and {other} are both {thing}: each needs its own; change one"));
        }
    }
    // Several regions may share a file, but nothing else may be it.
    for link in links {
        if let Memory::File { path, .. } = &link.memory
            && let Some(other) = owners.get(shown(path).as_str())
        {
            return misuse(format!(
                "--shmem-file of '{}' and {other} are both {}: each needs its own; change one",
                link.name,
                shown(path)
            ));
        }
    }
    for (index, one) in links.iter().enumerate() {
        for other in &links[..index] {
            if overlap(one, other) {
                return misuse(format!(
                    "{} of '{}': its region ({:#x} bytes from {:#x}) overlaps the one of '{}' there; give each link memory of its own",
                    one.memory,
                    one.name,
                    one.size,
                    place(&one.memory).1,
                    other.name
                ));
            }
        }
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.into()).display().to_string()
}

/// What holds a region, and where in it.
fn place(memory: &Memory) -> (Option<String>, u64) {
    match memory {
        Memory::Memfd => (None, 0),
        Memory::File { path, offset } => (Some(shown(path)), *offset),
        Memory::Posix(name) => (Some(format!("/dev/shm/{name}")), 0),
        Memory::Fd { fd, offset } => (Some(format!("descriptor {fd}")), *offset),
    }
}

fn overlap(one: &LinkDescription, other: &LinkDescription) -> bool {
    let ((a, start_a), (b, start_b)) = (place(&one.memory), place(&other.memory));
    let same = a.is_some() && (a == b || same_file(a, b));
    same && start_a < start_b + u64::from(other.size) && start_b < start_a + u64::from(one.size)
}

/// Whether two names, if they exist, lead to one file: a link in the file system does not hide an overlap.
fn same_file(a: Option<String>, b: Option<String>) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path: Option<String>| std::fs::metadata(path?).ok().map(|meta| (meta.dev(), meta.ino()));
    let (a, b) = (id(a), id(b));
    a.is_some() && a == b
}
