//! What `help`, `about` and `link` say, one line at a time: the shell writes the next when the last has gone.

use core::fmt::{self, Write};

use hvl_frontend::device::DeviceStatus;
use hvl_frontend::device::console::Console;
use hvl_frontend::{Board, Link, LinkState};
use hvl_shared_abi::Mem;

use crate::text::Text;
use crate::{Devices, Machine};

/// What can be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The commands.
    Help,
    /// The machine and the link.
    About,
    /// The frontend's counters.
    Link,
}

pub(crate) const HELP: &[&str] = &[
    "help          this list",
    "about         processor, profile, epochs, memory and devices of this board",
    "rand N        N random bytes from the link's entropy device, in hex",
    "echo TEXT     prints TEXT",
    "flood N       prints N bytes of a pattern, then their count and CRC-32",
    "sink N        takes the next N bytes of input, then prints their count and CRC-32",
    "count A [B]   numbered lines 'n A' to 'n B', or until Ctrl-C; answers 'line K' meanwhile",
    "line K        answers 'got K'",
    "ls [-l] [P]   names in the directory P of the PMM's machine, or what each is",
    "cat P         prints the file P",
    "write P TEXT  writes a line of text to P",
    "fill P N      writes N bytes of the pattern to P, and prints their CRC-32",
    "sum P         reads P, and prints its length and CRC-32",
    "cp P Q        copies P to Q",
    "mkdir P       makes a directory",
    "rm P          removes a file or an empty directory",
    "stat P        what P is",
    "df            how full the file system is",
    "ip [dhcp]     the board's place in the network, or asks for one; ip ADDRESS/LENGTH [GATEWAY] sets it",
    "ping A [N]    N echo requests to the address A",
    "get URL [P]   fetches http://ADDRESS[:PORT]/PATH, into the file P",
    "httpd P [N]   serves the directory P at port N (80); httpd off",
    "vsock listen N    takes a call at port N, and gives back what comes",
    "vsock connect N   calls port N of the PMM's machine, likewise",
    "bench 9p [N]      writes and reads N bytes (4M) of a file bench.tmp, and asks for its attributes",
    "bench vsock P [N] N bytes to port P of the PMM's machine and back; there: socat UNIX-LISTEN:PATH_P,fork EXEC:cat",
    "bench net [A]     echo requests to A, or to the gateway",
    "bench net A P [N] N bytes to port P of A; there: socat TCP-LISTEN:P,fork EXEC:'wc -c'",
    "link          what the frontend counted",
    "panic         panics: the last words go to the PMM, and the board restarts",
    "reboot        restarts the board",
    "N is decimal or 0x, with K or M; Ctrl-C cancels, Ctrl-U empties the line. Tab completes, the arrows edit and recall.",
];

/// Writes one line of a report, with its end. `false`: there is no such line.
pub(crate) fn line<B: Machine, const N: usize>(
    report: Report,
    line: usize,
    subject: &mut Devices<'_, '_, B>,
    out: &mut Text<N>,
) -> bool {
    let written = match report {
        Report::Help => HELP.get(line).map(|help| out.write_str(help)),
        Report::About => about(line, subject, out),
        Report::Link => counter_line(line, subject.console, out),
    };
    if written.is_some() {
        out.push(b"\n");
    }
    written.is_some()
}

fn about<B: Machine>(
    line: usize,
    subject: &mut Devices<'_, '_, B>,
    out: &mut dyn fmt::Write,
) -> Option<fmt::Result> {
    let Devices { console, rng, files, network, vsock, .. } = subject;
    Some(match line {
        0 => write!(out, "board      {}", B::NAME),
        1 => {
            let _ = out.write_str("processor  ");
            console.link().board().processor(out)
        }
        2..=4 => link_line(line.saturating_sub(2), console.link(), out)?,
        5 => {
            let _ = write!(out, "console    {}", Status(console.status()));
            match console.size() {
                Ok(Some((columns, rows))) => write!(out, ", {columns} by {rows} characters"),
                _ => Ok(()),
            }
        }
        6 => write!(out, "entropy    {}", Status(rng.status())),
        7 => write!(out, "files      {}", Status(files.status())),
        8 => write!(out, "network    {}", Status(network.status())),
        9 => write!(out, "sockets    {}", Status(vsock.status())),
        10 => write!(out, "shell      {}", env!("CARGO_PKG_VERSION")),
        _ => return None,
    })
}

/// How the link stands, one line of three; without its end.
pub fn link_line<B: Board>(line: usize, link: &Link<'_, B>, out: &mut dyn fmt::Write) -> Option<fmt::Result> {
    let (pmm, driver) = link.epochs();
    Some(match line {
        0 => match link.state() {
            LinkState::Up => out.write_str("profile    extended"),
            LinkState::Refused(refusal) => write!(out, "profile    none: {refusal}"),
            LinkState::Down | LinkState::Greeting => out.write_str("profile    none: no PMM answers"),
        },
        1 => write!(out, "epochs     PMM {pmm}, driver {driver}"),
        2 => {
            let (region, mem) = (link.board().region(), link.board().mem());
            let attribute = mem.attribute().name();
            write!(out, "memory     {} bytes at {:#010x}, {attribute}", region.len, region.base)
        }
        _ => return None,
    })
}

/// A device's status in words.
struct Status(Option<DeviceStatus>);

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("being looked at"),
            Some(DeviceStatus::Down) => f.write_str("down"),
            Some(DeviceStatus::Missing) => f.write_str("not offered by the PMM"),
            Some(DeviceStatus::Unfit(unfit)) => write!(f, "unusable: {unfit}"),
            Some(DeviceStatus::Starting) => f.write_str("starting"),
            Some(DeviceStatus::Running) => f.write_str("running"),
            Some(DeviceStatus::Resetting(fault)) => write!(f, "being reset ({fault:?})"),
        }
    }
}

/// What the frontend has counted, one line of it; without its end.
pub fn counter_line<B: Machine>(
    line: usize,
    console: &Console<'_, B>,
    out: &mut dyn fmt::Write,
) -> Option<fmt::Result> {
    let link = console.link();
    let counters = link.counters();
    let mut all = counters.iter();
    let count = all.size_hint().0;
    if let Some((name, value)) = all.nth(line) {
        return Some(write!(out, "{name:13} {value}"));
    }
    match line.checked_sub(count)? {
        0 => {
            let bytes = console.acknowledged().unwrap_or(0);
            Some(write!(out, "{:13} {bytes}", "acknowledged"))
        }
        1 => link.board().wake_ups().map(|wakes| write!(out, "{:13} {wakes}", "wake_ups")),
        _ => None,
    }
}
