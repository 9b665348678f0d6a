//! Lines become commands. What is wrong with a line is said in a sentence.

use core::fmt;

use smoltcp::wire::{Ipv4Address, Ipv4Cidr};

use crate::files::Task;
use crate::{bench, net, sockets};

/// Most bytes of one `rand`.
pub const MOST_RANDOM: u32 = 8192;

/// What can be typed, for completion. Words that begin alike stand together; where something of the user's choice follows
/// there is a space at the end.
pub const PHRASES: &[&str] = &[
    "about",
    "bench 9p ",
    "bench net ",
    "bench vsock ",
    "cat ",
    "count ",
    "cp ",
    "df",
    "echo ",
    "fill ",
    "flood ",
    "get http://",
    "help",
    "httpd off",
    "ip dhcp",
    "line ",
    "link",
    "ls -l ",
    "mkdir ",
    "panic",
    "ping ",
    "rand ",
    "reboot",
    "rm ",
    "sink ",
    "stat ",
    "sum ",
    "vsock connect ",
    "vsock listen ",
    "write ",
];

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'l> {
    /// An empty line.
    Nothing,
    /// Lists the commands.
    Help,
    /// What this machine is, and how the link stands.
    About,
    /// Prints random bytes from the entropy device, in hex.
    Rand(u32),
    /// Prints the rest of the line.
    Echo(&'l str),
    /// Prints this many bytes of [`pattern`](crate::pattern).
    Flood(u32),
    /// Takes this many bytes of input.
    Sink(u32),
    /// Prints numbered lines, from the first to the last; to Ctrl-C if there is no last.
    Count(u64, Option<u64>),
    /// Acknowledges a numbered line.
    Line(u64),
    /// The frontend's counters.
    Link,
    /// Something with files.
    Files(Task<'l>),
    /// Something on the network.
    Net(net::Task<'l>),
    /// Something with sockets.
    Sockets(sockets::Task),
    /// A measurement.
    Bench(bench::Task),
    /// Panics.
    Panic,
    /// Restarts.
    Reboot,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong<'l> {
    /// It is not UTF-8.
    NotText,
    /// There is no such command.
    Unknown(&'l str),
    /// The command is used like this.
    Usage(&'static str),
    /// That many are not to be had.
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many at the most.
        most: u32,
    },
}

impl fmt::Display for Wrong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::NotText => f.write_str("the line is not UTF-8 text"),
            Wrong::Unknown(word) => {
                f.write_str("there is no command '")?;
                // Long enough to be recognised, short enough for the rest of the sentence to be seen.
                word.chars().take(40).try_for_each(|c| fmt::Write::write_char(f, c))?;
                f.write_str("'; 'help' lists them")
            }
            Wrong::Usage(usage) => write!(f, "write '{usage}'"),
            Wrong::TooMany { what, most } => write!(f, "at most {most} {what} at a time"),
        }
    }
}

/// Reads a line.
pub fn parse(line: &[u8]) -> Result<Command<'_>, Wrong<'_>> {
    let line = core::str::from_utf8(line).map_err(|_| Wrong::NotText)?.trim();
    if line.contains(char::REPLACEMENT_CHARACTER) {
        // The editor's mark for bytes that were no character.
        return Err(Wrong::NotText);
    }
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut words = rest.split_whitespace();
    let (first, second) = (words.next(), words.next());
    let surplus = words.next().is_some();
    // A command without arguments, and one with a number.
    let alone = |command, usage| if first.is_none() { Ok(command) } else { Err(Wrong::Usage(usage)) };
    let one = |usage| match (first, second) {
        (Some(first), None) => number(first).ok_or(Wrong::Usage(usage)),
        _ => Err(Wrong::Usage(usage)),
    };
    let size = |usage, what, most| {
        let size = one(usage)?;
        u32::try_from(size).ok().filter(|&size| size <= most).ok_or(Wrong::TooMany { what, most })
    };
    match word {
        "" => Ok(Command::Nothing),
        "help" | "?" => alone(Command::Help, "help"),
        "about" => alone(Command::About, "about"),
        "link" => alone(Command::Link, "link"),
        "panic" => alone(Command::Panic, "panic"),
        "reboot" => alone(Command::Reboot, "reboot"),
        "echo" => Ok(Command::Echo(rest)),
        "rand" => size("rand N", "random bytes", MOST_RANDOM).map(Command::Rand),
        "flood" => size("flood N, with K or M for multiples", "bytes", u32::MAX).map(Command::Flood),
        "sink" => size("sink N, with K or M for multiples", "bytes", u32::MAX).map(Command::Sink),
        "line" => one("line K").map(Command::Line),
        "ls" => match (first, second) {
            _ if surplus => Err(Wrong::Usage("ls [-l] [PATH]")),
            (Some("-l"), path) => Ok(Command::Files(Task::List { path: path.unwrap_or(""), long: true })),
            (path, None) => Ok(Command::Files(Task::List { path: path.unwrap_or(""), long: false })),
            _ => Err(Wrong::Usage("ls [-l] [PATH]")),
        },
        "cat" => path(&first, &second, "cat PATH").map(|path| Command::Files(Task::Cat(path))),
        "sum" => path(&first, &second, "sum PATH").map(|path| Command::Files(Task::Sum(path))),
        "mkdir" => path(&first, &second, "mkdir PATH").map(|path| Command::Files(Task::MakeDirectory(path))),
        "rm" => path(&first, &second, "rm PATH").map(|path| Command::Files(Task::Remove(path))),
        "stat" => path(&first, &second, "stat PATH").map(|path| Command::Files(Task::Stat(path))),
        "df" => alone(Command::Files(Task::Free), "df"),
        "cp" => match (first, second) {
            (Some(from), Some(to)) if !surplus => Ok(Command::Files(Task::Copy { from, to })),
            _ => Err(Wrong::Usage("cp FROM TO")),
        },
        "fill" => {
            let usage = Wrong::Usage("fill PATH N, with K or M for multiples");
            let len = second.filter(|_| !surplus).and_then(number).ok_or(usage)?;
            let most = Wrong::TooMany { what: "bytes", most: u32::MAX };
            let len = u32::try_from(len).map_err(|_| most)?;
            Ok(Command::Files(Task::Fill { path: first.ok_or(usage)?, len }))
        }
        "ip" => {
            let usage = Wrong::Usage("ip [dhcp | ADDRESS/LENGTH [GATEWAY]]");
            match (first, second) {
                _ if surplus => Err(usage),
                (None, _) => Ok(Command::Net(net::Task::Show)),
                (Some("dhcp"), None) => Ok(Command::Net(net::Task::Dhcp)),
                (Some(address), gateway) => {
                    let address = address.parse::<Ipv4Cidr>().map_err(|_| usage)?;
                    let gateway = gateway.map(|gateway| gateway.parse().map_err(|_| usage)).transpose()?;
                    Ok(Command::Net(net::Task::Static { address, gateway }))
                }
            }
        }
        "ping" => {
            let usage = Wrong::Usage("ping ADDRESS [COUNT]");
            let to = first.filter(|_| !surplus).and_then(|to| to.parse().ok()).ok_or(usage)?;
            let count = second.map_or(Some(4), number).ok_or(usage)?;
            let most = Wrong::TooMany { what: "requests", most: u16::MAX.into() };
            let count = u16::try_from(count).map_err(|_| most)?;
            Ok(Command::Net(net::Task::Ping { to, count: count.max(1) }))
        }
        "get" => {
            let usage = Wrong::Usage("get http://ADDRESS[:PORT]/PATH [FILE]");
            let url = first.filter(|_| !surplus).and_then(|url| url.strip_prefix("http://")).ok_or(usage)?;
            let (host, path) = url.find('/').map_or((url, "/"), |at| url.split_at(at));
            let (host, port) =
                host.split_once(':').map_or((host, Some(net::WEB)), |(host, port)| (host, port.parse().ok()));
            let (Ok(host), Some(port)) = (host.parse::<Ipv4Address>(), port) else { return Err(usage) };
            Ok(Command::Net(net::Task::Get { host, port, path, into: second }))
        }
        "httpd" => {
            let usage = Wrong::Usage("httpd DIRECTORY [PORT], or httpd off");
            match (first.filter(|_| !surplus).ok_or(usage)?, second) {
                ("off", None) => Ok(Command::Net(net::Task::ServeNothing)),
                (directory, port) => {
                    let port = port.map_or(Ok(net::WEB), |port| port.parse().map_err(|_| usage))?;
                    Ok(Command::Net(net::Task::Serve { port, directory }))
                }
            }
        }
        "vsock" => {
            let usage = Wrong::Usage("vsock listen PORT, or vsock connect PORT");
            let port = second.filter(|_| !surplus).and_then(number).and_then(|port| u32::try_from(port).ok());
            match (first, port) {
                (Some("listen"), Some(port)) => Ok(Command::Sockets(sockets::Task::Listen(port))),
                (Some("connect"), Some(port)) => Ok(Command::Sockets(sockets::Task::Connect(port))),
                _ => Err(usage),
            }
        }
        "bench" => {
            let usage = "bench 9p [N], bench vsock PORT [N], or bench net [ADDRESS [PORT [N]]]";
            measurement(rest).ok_or(Wrong::Usage(usage))
        }
        "write" => match rest.trim_start().split_once(' ') {
            Some((path, text)) => Ok(Command::Files(Task::Write { path, text })),
            None => Err(Wrong::Usage("write PATH TEXT")),
        },
        "count" => {
            let usage = Wrong::Usage("count FROM [TO]");
            let from = first.and_then(number).ok_or(usage)?;
            let to = second.map(|to| number(to).ok_or(usage)).transpose()?;
            if surplus || to.is_some_and(|to| to < from) {
                return Err(usage);
            }
            Ok(Command::Count(from, to))
        }
        word => Err(Wrong::Unknown(word)),
    }
}

/// What `bench` is to measure.
fn measurement<'l>(rest: &str) -> Option<Command<'l>> {
    let mut words = rest.split_whitespace();
    let what = words.next()?;
    let len = |word: Option<&str>| match word {
        Some(word) => u32::try_from(number(word)?).ok(),
        None => Some(bench::TRANSFER),
    };
    let task = match what {
        "9p" => bench::Task::Files { len: len(words.next())? },
        "vsock" => {
            let port = u32::try_from(number(words.next()?)?).ok()?;
            bench::Task::Vsock { port, len: len(words.next())? }
        }
        "net" => {
            let to = words.next().map(|to| to.parse().ok().ok_or(())).transpose().ok()?;
            match (to, words.next()) {
                (to, None) => return Some(Command::Net(net::Task::Trips { to })),
                (to, Some(port)) => {
                    bench::Task::Tcp { to: to?, port: port.parse().ok()?, len: len(words.next())? }
                }
            }
        }
        _ => return None,
    };
    words.next().is_none().then_some(Command::Bench(task))
}

/// The only argument.
fn path<'l>(
    first: &Option<&'l str>,
    second: &Option<&'l str>,
    usage: &'static str,
) -> Result<&'l str, Wrong<'l>> {
    match (first, second) {
        (Some(path), None) => Ok(path),
        _ => Err(Wrong::Usage(usage)),
    }
}

/// A number, decimal or 0x, with K or M for multiples of 1024.
fn number(word: &str) -> Option<u64> {
    let (digits, unit) = match word.as_bytes().last()? {
        b'K' | b'k' => (word.get(..word.len().checked_sub(1)?)?, 1 << 10),
        b'M' | b'm' => (word.get(..word.len().checked_sub(1)?)?, 1 << 20),
        _ => (word, 1u64),
    };
    let (digits, radix) = digits.strip_prefix("0x").map_or((digits, 10), |digits| (digits, 16));
    // `from_str_radix` would take a sign.
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn commands() {
        for (line, command) in [
            ("", Command::Nothing),
            ("   ", Command::Nothing),
            (" help ", Command::Help),
            ("?", Command::Help),
            ("rand 32", Command::Rand(32)),
            ("rand   0x20", Command::Rand(32)),
            ("echo  two  words ", Command::Echo(" two  words")),
            ("echo", Command::Echo("")),
            ("flood 2M", Command::Flood(2 << 20)),
            ("sink 0", Command::Sink(0)),
            ("sink 3k", Command::Sink(3 << 10)),
            ("count 5", Command::Count(5, None)),
            ("count 5 5", Command::Count(5, Some(5))),
            ("line 18446744073709551615", Command::Line(u64::MAX)),
            ("ls", Command::Files(Task::List { path: "", long: false })),
            ("ls -l /a", Command::Files(Task::List { path: "/a", long: true })),
            ("write a  two words", Command::Files(Task::Write { path: "a", text: " two words" })),
            ("fill a 16M", Command::Files(Task::Fill { path: "a", len: 16 << 20 })),
            ("cp a b", Command::Files(Task::Copy { from: "a", to: "b" })),
            ("df", Command::Files(Task::Free)),
            ("ip", Command::Net(net::Task::Show)),
            ("ping 10.0.0.1", Command::Net(net::Task::Ping { to: Ipv4Address::new(10, 0, 0, 1), count: 4 })),
            (
                "get http://10.0.0.1:8080/a b",
                Command::Net(net::Task::Get {
                    host: Ipv4Address::new(10, 0, 0, 1),
                    port: 8080,
                    path: "/a",
                    into: Some("b"),
                }),
            ),
            ("httpd / 80", Command::Net(net::Task::Serve { port: 80, directory: "/" })),
            ("vsock listen 5", Command::Sockets(sockets::Task::Listen(5))),
            ("vsock connect 5", Command::Sockets(sockets::Task::Connect(5))),
            ("httpd off", Command::Net(net::Task::ServeNothing)),
            ("bench 9p", Command::Bench(bench::Task::Files { len: 4 << 20 })),
            ("bench 9p 64K", Command::Bench(bench::Task::Files { len: 64 << 10 })),
            ("bench vsock 9", Command::Bench(bench::Task::Vsock { port: 9, len: 4 << 20 })),
            ("bench net", Command::Net(net::Task::Trips { to: None })),
            (
                "bench net 10.0.0.1",
                Command::Net(net::Task::Trips { to: Some(Ipv4Address::new(10, 0, 0, 1)) }),
            ),
            (
                "bench net 10.0.0.1 7 1M",
                Command::Bench(bench::Task::Tcp { to: Ipv4Address::new(10, 0, 0, 1), port: 7, len: 1 << 20 }),
            ),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(command), "{line:?}");
        }
    }

    #[test]
    fn each_command_can_be_completed() {
        assert!(PHRASES.is_sorted());
        for phrase in PHRASES {
            let known = !matches!(parse(phrase.as_bytes()), Err(Wrong::Unknown(_)));
            assert!(known, "{phrase:?} is no command");
        }
        for line in crate::report::HELP.iter().filter(|line| line.contains("  ")) {
            let word = line.split([' ', ',']).next().unwrap();
            assert!(PHRASES.iter().any(|phrase| phrase.split(' ').next() == Some(word)), "{word:?}");
        }
    }

    #[test]
    fn mistakes() {
        for line in ["rand", "rand x", "rand -1", "rand +1", "rand 1 2", "rand 0x", "rand K", "help me"] {
            assert!(matches!(parse(line.as_bytes()), Err(Wrong::Usage(_))), "{line:?}");
        }
        for line in ["count", "count 5 4", "count 1 2 3", "line", "line 18446744073709551616", "flood 9.5"] {
            assert!(matches!(parse(line.as_bytes()), Err(Wrong::Usage(_))), "{line:?}");
        }
        for line in [
            "ls a b",
            "ls -l a b",
            "cat",
            "cp a",
            "cp a b c",
            "fill a",
            "fill a x",
            "write a",
            "df a",
            "ip x",
            "ip 1.2.3.4",
            "ping",
            "ping x",
            "vsock",
            "vsock 5",
            "vsock listen",
            "vsock listen 4294967296",
            "get x",
            "get http://x/",
            "httpd",
            "bench",
            "bench rng",
            "bench 9p x",
            "bench 9p 1 2",
            "bench vsock",
            "bench vsock 4294967296",
            "bench net x",
            "bench net 10.0.0.1 65536",
            "bench net 10.0.0.1 7 4096M",
        ] {
            assert!(matches!(parse(line.as_bytes()), Err(Wrong::Usage(_))), "{line:?}");
        }
        for line in ["rand 8193", "flood 4096M", "sink 0x100000000"] {
            assert!(matches!(parse(line.as_bytes()), Err(Wrong::TooMany { .. })), "{line:?}");
        }
        assert_eq!(parse(b"dir /w"), Err(Wrong::Unknown("dir")));
        assert_eq!(parse(b"\xff"), Err(Wrong::NotText));
        assert_eq!(parse("echo \u{fffd}".as_bytes()), Err(Wrong::NotText));
        assert_eq!(format!("{}", Wrong::Unknown("Help")), "there is no command 'Help'; 'help' lists them");
    }
}
