//! From words to links: each [`LinkOptions`] is checked alone, then all of them together. What passes can still be
//! refused by the machine, but it makes sense.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hvl_shared_abi::layout::{DeviceSpec, Layout, LayoutError, MAX_QUEUE_SIZE};
use serde::Serialize;

use super::claim;
use super::cli::LinkOptions;
use super::device::NetworkDescription;
use super::device::{
    ConsoleDescription, DeviceDescription, DirectoryDescription, RngDescription, VsockDescription,
};
use super::network::Mac;
use super::refusals::{BEHIND_ALL, Given, Refusals};
use super::value::{self, DEFAULT_POLL_MICROS, Doorbell, NAME, Number, is_name};

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
    /// After how long a silent guest is presumed gone; `None`: never.
    pub gone_after: Option<Duration>,
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
    given: &'a Given,
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

    /// Refuses an option; `why` follows its name.
    fn refuse(&self, refusals: &mut Refusals, option: &str, why: impl fmt::Display) {
        refusals.add(self.given.place(option), format!("{}{why}", self.option(option)));
    }

    /// A number that must be given. `None` if there is none, for a reason that is told.
    fn number(&self, refusals: &mut Refusals, name: &str, value: Option<Number>) -> Option<u64> {
        if value.is_none() && !self.given.is_refused(name) {
            let example = self.example(name);
            let why = format!(" is missing: say where the region is and how large, as in '{example}'");
            self.refuse(refusals, name, why);
        }
        value.map(|Number(value)| value)
    }
}

/// Checks each link alone; those with something wrong are refused and left out. Adds a line to `notes` for every
/// default that the user should know of.
pub(super) fn describe(
    links: &[LinkOptions],
    given: &[Given],
    file: Option<&Path>,
    notes: &mut Vec<String>,
    refusals: &mut Refusals,
) -> Vec<LinkDescription> {
    let all = links.iter().zip(given).enumerate();
    all.filter_map(|(index, (options, given))| {
        let name = options.name.clone().unwrap_or_else(|| format!("link{index}"));
        describe_one(options, &Place { file, link: &name, given }, notes, refusals)
    })
    .collect()
}

fn describe_one(
    options: &LinkOptions,
    at: &Place,
    notes: &mut Vec<String>,
    refusals: &mut Refusals,
) -> Option<LinkDescription> {
    let name = at.link.to_string();
    if !is_name(&name) {
        at.refuse(refusals, "name", format_args!(" '{name}': {NAME}"));
    }
    if !options.no_dtb && !at.given.is_refused("no-dtb") {
        let why = " is missing: the placement with a device tree will come in a later version; add it, and build the \
                   guest for it (headers from the start of the region on, found without a device tree)";
        at.refuse(refusals, "no-dtb", why);
    }

    let base = base(options, at, refusals);
    let size = size(options, at, refusals);
    if let (Some(base), Some(size)) = (base, size)
        && base.checked_add(u64::from(size)).is_none_or(|end| end > ADDRESS_LIMIT)
    {
        let why = format!(
            " {base:#x}: the region would end above {ADDRESS_LIMIT:#x}, where rings cannot be named; use a lower address"
        );
        at.refuse(refusals, "shmem-addr", why);
    }
    let memory = memory(options, size.unwrap_or_default(), at, refusals);
    let doorbell = options.doorbell.clone().unwrap_or_else(|| {
        notes.push(format!("{name}: no --doorbell, so memory is looked at every {DEFAULT_POLL_MICROS} µs"));
        Doorbell::Poll { micros: DEFAULT_POLL_MICROS }
    });
    let devices = devices(options, at, refusals);
    let gone_after = gone_after(options, at, refusals);
    let link = LinkDescription {
        memory: memory?,
        doorbell,
        devices: devices?,
        base: base?,
        size: size?,
        fresh: options.fresh,
        state: options.state.clone(),
        gone_after,
        name,
    };
    match link.layout() {
        Ok(_) => return Some(link),
        Err(LayoutError::TooSmall { need, .. }) => {
            let size = link.size;
            let why = format!(
                " {size:#x}: too small for these devices, which need {need:#x} bytes; use at least that"
            );
            at.refuse(refusals, "shmem-size", why);
        }
        Err(error) => refusals.add(BEHIND_ALL, format!("link '{}': {error}", link.name)),
    }
    None
}

fn base(options: &LinkOptions, at: &Place, refusals: &mut Refusals) -> Option<u64> {
    let base = at.number(refusals, "shmem-addr", options.shmem_addr)?;
    if base == 0 || !base.is_multiple_of(PAGE) {
        let why = format!(
            " {base:#x}: use a multiple of 4096 that is not 0, the address at which the guest sees the region"
        );
        at.refuse(refusals, "shmem-addr", why);
        return None;
    }
    Some(base)
}

fn size(options: &LinkOptions, at: &Place, refusals: &mut Refusals) -> Option<u32> {
    let size = at.number(refusals, "shmem-size", options.shmem_size)?;
    let why = match u32::try_from(size) {
        _ if !size.is_multiple_of(PAGE) => format!(" {size:#x}: use a multiple of 4096"),
        Ok(size) => return Some(size),
        Err(_) => format!(" {size:#x}: a region is smaller than 4G; use less"),
    };
    at.refuse(refusals, "shmem-size", why);
    None
}

/// The devices in the order of their windows. `None` if there is none; each that is wrong is refused.
fn devices(options: &LinkOptions, at: &Place, refusals: &mut Refusals) -> Option<Vec<DeviceDescription>> {
    let sizes = (options.directory_queue, options.directory_pool);
    let directory = device(at, refusals, "9p", !options.directories.is_empty(), sizes, DeviceSpec::P9);
    let directories =
        options.directories.iter().zip(directory.into_iter().cycle()).map(|(shared, (queue, pool))| {
            DeviceDescription::Directory(DirectoryDescription { shared: shared.clone(), queue, pool })
        });
    let mut tags: Vec<_> = options.directories.iter().map(|shared| &shared.tag).collect();
    tags.sort_unstable();
    if let Some([tag, ..]) = tags.windows(2).find(|pair| pair.first() == pair.last()) {
        let why = format!(": two directories are called '{tag}'; give each a tag of its own");
        at.refuse(refusals, "9p", why);
    }
    let sizes = (options.vsock_queue, options.vsock_pool);
    let vsock = device(at, refusals, "vsock", options.vsock.is_some(), sizes, DeviceSpec::VSOCK);
    let vsock = options.vsock.as_ref().zip(vsock).map(|(address, (queue, pool))| {
        // A directory for each link: names may end in '_' and a number, and those are the others' ports.
        let default = || crate::observe::default_directory().join("vsock").join(at.link).join("socket");
        let path = address.path.clone().unwrap_or_else(default);
        let (cid, is_default) = (address.cid, address.path.is_none());
        if is_default {
            let what = format!("the socket of {}", at.option("vsock"));
            let long = crate::observe::too_long(&path, value::PORT, &what, "--vsock CID,path=PATH");
            long.iter().for_each(|text| refusals.add(at.given.place("vsock"), text));
        }
        DeviceDescription::Vsock(VsockDescription { cid, path, is_default, queue, pool })
    });
    let sizes = (options.rng_queue, options.rng_pool);
    let rng = device(at, refusals, "rng", options.rng, sizes, DeviceSpec::RNG)
        .map(|(queue, pool)| DeviceDescription::Rng(RngDescription { queue, pool }));
    let cards = cards(options, at, refusals);
    let sizes = (options.console_queue, options.console_pool);
    let console = device(at, refusals, "console", options.console.is_some(), sizes, DeviceSpec::CONSOLE);
    let console = options
        .console
        .clone()
        .zip(console)
        .map(|(end, (queue, pool))| DeviceDescription::Console(ConsoleDescription { end, queue, pool }));
    let devices: Vec<_> = directories.chain(vsock).chain(rng).chain(cards).chain(console).collect();
    let owners = ["9p", "vsock", "rng", "network", "console"];
    if devices.is_empty() && !owners.iter().any(|owner| at.given.is_refused(owner)) {
        let link =
            at.file.map_or("the link".into(), |file| format!("{}, link '{}',", file.display(), at.link));
        let all: Vec<String> = owners.iter().map(|owner| format!("'{}'", at.bare(owner))).collect();
        // No word of the line is to blame, so it stands where a missing one does.
        refusals.add(at.given.place(""), format!("{link} has no device: add one of {}", all.join(", ")));
    }
    (!devices.is_empty()).then_some(devices)
}

/// After how long a silent guest is presumed gone.
fn gone_after(options: &LinkOptions, at: &Place, refusals: &mut Refusals) -> Option<Duration> {
    let Number(seconds) = options.gone_after?;
    if seconds == 0 {
        let why = " 0: every guest would be gone at once; write at least 1, or leave it out: then no silence ends a session";
        at.refuse(refusals, "gone-after", why);
    }
    Some(Duration::from_secs(seconds.min(u64::from(u32::MAX))))
}

/// The link's network cards.
fn cards(options: &LinkOptions, at: &Place, refusals: &mut Refusals) -> Vec<DeviceDescription> {
    let sizes = (options.network_queue, options.network_pool);
    let has_cards = !options.network.is_empty();
    let of_cards = device(at, refusals, "network", has_cards, sizes, DeviceSpec::NET);
    if let Some(file) = &options.pcap
        && !has_cards
        && !at.given.is_refused("network")
    {
        let card = at.bare("network");
        let why = format!(" {file}: there is no network card; add '{card}' or leave it out");
        at.refuse(refusals, "pcap", why);
    }
    let describe = |((card, network), (queue, pool)): ((usize, &super::Network), (u16, u32))| {
        let pcap = options.pcap.as_ref().map(|file| match card {
            0 => file.path.clone(),
            card => {
                let mut name = file.path.clone().into_os_string();
                name.push(format!(".{card}"));
                name.into()
            }
        });
        let mac = network.mac.unwrap_or_else(|| Mac::of(at.link, card));
        let (end, mtu) = (network.end.clone(), network.mtu);
        let pcap_max = options.pcap.as_ref().and_then(|file| file.max);
        DeviceDescription::Network(NetworkDescription { end, mac, mtu, pcap, pcap_max, queue, pool })
    };
    options.network.iter().enumerate().zip(of_cards.into_iter().cycle()).map(describe).collect()
}

/// Where the region comes from. `None` if that is wrong, which is refused.
fn memory(options: &LinkOptions, size: u32, at: &Place, refusals: &mut Refusals) -> Option<Memory> {
    let given = [
        ("shmem-file", options.shmem_file.is_some()),
        ("shmem-posix", options.shmem_posix.is_some()),
        ("shmem-fd", options.shmem_fd.is_some()),
    ];
    let refused = given.iter().any(|(option, _)| at.given.is_refused(option));
    let mut given = given.iter().filter(|(_, given)| *given).map(|(option, _)| *option);
    let (first, second) = (given.next(), given.next());
    let mut fine = true;
    let mut refuse = |option: &str, why: String| {
        at.refuse(refusals, option, why);
        fine = false;
    };
    if let (Some(first), Some(second)) = (first, second) {
        let second = at.bare(second);
        refuse(first, format!(" contradicts '{second}': a region comes from one place; leave one out"));
    }
    let offset = options.shmem_offset.unwrap_or_default().0;
    if options.shmem_offset.is_some() && !matches!(first, Some("shmem-file" | "shmem-fd")) && !refused {
        let why = format!(
            " {}: only '{}' and '{}' have an offset; leave it out",
            Number(offset),
            at.bare("shmem-file"),
            at.bare("shmem-fd")
        );
        refuse("shmem-offset", why);
    } else if !offset.is_multiple_of(PAGE)
        || offset.checked_add(u64::from(size)).is_none_or(|end| end > i64::MAX as u64)
    {
        let why =
            format!(" {offset:#x}: use a multiple of 4096 at which a file can be {size:#x} bytes longer");
        refuse("shmem-offset", why);
    }
    let memory = if let Some(path) = &options.shmem_file {
        if path.as_os_str().is_empty() {
            refuse("shmem-file", ": the path is empty; name a file".into());
        }
        Memory::File { path: path.clone(), offset }
    } else if let Some(name) = &options.shmem_posix {
        let bare = name.strip_prefix('/').unwrap_or(name);
        if bare.is_empty() || bare.len() > 254 || bare.contains(['/', '\0']) || bare == "." || bare == ".." {
            refuse("shmem-posix", format!(" {name}: use a name of 1 to 254 bytes with no slash in it"));
        }
        Memory::Posix(bare.into())
    } else if let Some(Number(number)) = options.shmem_fd {
        let fd = i32::try_from(number).ok().filter(|fd| *fd > 2);
        if fd.is_none() {
            refuse("shmem-fd", format!(" {number}: use the number of an inherited descriptor, above 2"));
        }
        Memory::Fd { fd: fd.unwrap_or_default(), offset }
    } else {
        Memory::Memfd
    };
    fine.then_some(memory)
}

/// Queue size and pool of the device `owner`: as asked, or the default's. `None` without that device. What is wrong is
/// refused, and the default stands for it.
fn device(
    at: &Place,
    refusals: &mut Refusals,
    owner: &str,
    exists: bool,
    (queue, pool): (Option<Number>, Option<Number>),
    default: DeviceSpec,
) -> Option<(u16, u32)> {
    let (queue_option, pool_option) = (format!("{owner}-queue"), format!("{owner}-pool"));
    if !exists && !at.given.is_refused(owner) {
        for (option, size) in [(&queue_option, queue), (&pool_option, pool)] {
            if let Some(size) = size {
                let owner = at.bare(owner);
                let why = format!(" {size}: there is no such device; add '{owner}' or leave it out");
                at.refuse(refusals, option, why);
            }
        }
        return None;
    }
    let fits = |size: &u16| (2..=MAX_QUEUE_SIZE).contains(size) && size.is_power_of_two();
    let sizes = queue.map(|Number(size)| (size, u16::try_from(size).ok().filter(fits)));
    if let Some((size, None)) = sizes {
        let why = format!(" {size}: use a power of two from 2 to {MAX_QUEUE_SIZE}");
        at.refuse(refusals, &queue_option, why);
    }
    let pools = pool.map(|Number(size)| (Number(size), u32::try_from(size).ok().filter(|size| *size >= 64)));
    if let Some((size, None)) = pools {
        let why = format!(" {size}: use at least 64 bytes and less than the region");
        at.refuse(refusals, &pool_option, why);
    }
    let queue = sizes.and_then(|(_, size)| size).unwrap_or(default.queues[0]);
    let pool = pools.and_then(|(_, size)| size).unwrap_or(default.pool);
    exists.then_some((queue, pool))
}

/// Checks that no two links, and no two devices, would own the same thing.
pub(super) fn check_together(links: &[LinkDescription], control: Option<&Path>, refusals: &mut Refusals) {
    let mut names = HashSet::new();
    for twice in links.iter().filter(|link| !names.insert(&link.name)) {
        refusals.add(BEHIND_ALL, format!("--name {}: two links have this name; change one", twice.name));
    }
    let terminals = links.iter().filter(|link| link.devices.iter().any(DeviceDescription::has_the_terminal));
    let terminals: Vec<_> = terminals.map(|link| link.name.as_str()).collect();
    if let [other, one, ..] = terminals[..] {
        let text = format!(
            "--console of '{one}' and --console of '{other}' are both this terminal: each needs its own; change one"
        );
        refusals.add(BEHIND_ALL, text);
    }
    claim::check(&claim::claims(links, control)).for_each(|text| refusals.add(BEHIND_ALL, text));
    for (index, one) in links.iter().enumerate() {
        for other in &links[..index] {
            if overlap(one, other) {
                let text = format!(
                    "{} of '{}': its region ({:#x} bytes from {:#x}) overlaps the one of '{}' there; give each link memory of its own",
                    one.memory,
                    one.name,
                    one.size,
                    place(&one.memory).1,
                    other.name
                );
                refusals.add(BEHIND_ALL, text);
            }
        }
    }
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
