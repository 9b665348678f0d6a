//! The values that options take: numbers, doorbells, console ends. Each is written the same way on the command line
//! and in a configuration file, and prints as it is written.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use hvl_shared_abi::wire::p9::MAX_MOUNT_TAG;
use hvl_shared_abi::wire::vsock::{MAX_GUEST_CID, MIN_GUEST_CID};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::host::export::{DEFAULT_FIDS, FIDS, Ids};
use crate::observe::SOCKET_PATH;

/// What is wrong with a value and what to write instead; the caller adds the option and the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadValue(pub String);

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadValue {}

/// A number: decimal or 0x, with K, M or G (binary: 1024 and its powers) behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Number(pub u64);

impl FromStr for Number {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Number, BadValue> {
        let bad =
            || BadValue("write a number, decimal or 0x, with K, M or G if you like (16M, 0x1000000)".into());
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            Some(hex) => (hex, 16),
            None => (digits, 10),
        };
        // from_str_radix would take a sign.
        if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
            return Err(bad());
        }
        let too_large = || BadValue("write a number below 2^64".into());
        let value = u64::from_str_radix(digits, radix).map_err(|_| too_large())?;
        value.checked_mul(1 << shift).map(Number).ok_or_else(too_large)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..4096 => write!(f, "{}", self.0),
            more => write!(f, "{more:#x}"),
        }
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // TOML's integers are signed, and addresses read better in hexadecimal.
        if self.0 < 4096 { to.serialize_u64(self.0) } else { to.collect_str(self) }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Number, D::Error> {
        struct Either;
        impl de::Visitor<'_> for Either {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or one as text with K, M or G (\"16M\")")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Number, E> {
                u64::try_from(value).map(Number).map_err(|_| E::custom("write a number that is not negative"))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Number, E> {
                Ok(Number(value))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                text.parse().map_err(|bad| E::custom(format_args!("'{text}': {bad}")))
            }
        }
        from.deserialize_any(Either)
    }
}

/// How the two sides wake each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// One byte on a stream socket is one doorbell: QEMU's chardev socket.
    UnixStream {
        /// The socket in the file system.
        path: PathBuf,
        /// Whether the PMM is the one that listens.
        listen: bool,
    },
    /// One datagram of one byte is one doorbell.
    UnixDgram {
        /// Where the PMM receives.
        bind: PathBuf,
        /// Where it sends.
        peer: PathBuf,
    },
    /// No doorbell: both sides look at memory again and again.
    Poll {
        /// How often the PMM looks, in microseconds.
        micros: u32,
    },
}

/// How often a link without any doorbell is looked at when nothing else is said, in microseconds: 1 ms costs a host
/// about 1 % of a core and adds half of that to a request.
pub const DEFAULT_POLL_MICROS: u32 = 1000;

/// What a link or a served directory may be called, for a message: its name becomes part of files' names.
pub(super) const NAME: &str = "use 1 to 32 letters, digits, '.', '_' and '-', not '.' or '-' first";

/// Returns whether something may be called so.
pub(super) fn is_name(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=32).contains(&name.len()) && name.chars().all(fine) && !name.starts_with(['.', '-'])
}

pub(crate) fn socket_path(text: &str) -> Result<PathBuf, BadValue> {
    match text.len() {
        0 => Err(BadValue("a path is missing".into())),
        1..=SOCKET_PATH if !text.contains(['\0', ',']) => Ok(PathBuf::from(text)),
        1..=SOCKET_PATH => Err(BadValue("the path of a socket cannot hold a comma here".into())),
        long => Err(BadValue(format!(
            "the path has {long} bytes and a socket's path at most {SOCKET_PATH}: use a shorter one"
        ))),
    }
}

impl FromStr for Doorbell {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Doorbell, BadValue> {
        const KINDS: &str =
            "write unix-stream:PATH[,listen], unix-dgram:bind=PATH,peer=PATH or poll[:MICROSECONDS]";
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "unix-stream" => {
                let (path, flag) = rest.split_once(',').unwrap_or((rest, ""));
                let listen = match flag {
                    "" if !rest.ends_with(',') => false,
                    "listen" => true,
                    other => {
                        return Err(BadValue(format!(
                            "',{other}' is unknown: only ',listen' may follow the path"
                        )));
                    }
                };
                Ok(Doorbell::UnixStream { path: socket_path(path)?, listen })
            }
            "unix-dgram" => {
                let (mut bind, mut peer) = (None, None);
                for part in rest.split(',') {
                    let slot = match part.split_once('=') {
                        Some(("bind", path)) => (&mut bind, path),
                        Some(("peer", path)) => (&mut peer, path),
                        _ => return Err(BadValue("write unix-dgram:bind=PATH,peer=PATH".into())),
                    };
                    if slot.0.replace(socket_path(slot.1)?).is_some() {
                        return Err(BadValue("'bind' and 'peer' are each given once".into()));
                    }
                }
                match (bind, peer) {
                    (Some(bind), Some(peer)) if bind == peer => {
                        Err(BadValue("'bind' and 'peer' are the same socket: each side needs its own".into()))
                    }
                    (Some(bind), Some(peer)) => Ok(Doorbell::UnixDgram { bind, peer }),
                    _ => Err(BadValue("write both: unix-dgram:bind=PATH,peer=PATH".into())),
                }
            }
            "poll" if text == "poll" => Ok(Doorbell::Poll { micros: DEFAULT_POLL_MICROS }),
            "poll" => match rest.parse::<Number>() {
                Ok(Number(micros @ 1..=1_000_000)) => Ok(Doorbell::Poll { micros: micros as u32 }),
                _ => Err(BadValue("write microseconds from 1 to 1000000 (one second)".into())),
            },
            _ => Err(BadValue(KINDS.into())),
        }
    }
}

impl fmt::Display for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doorbell::UnixStream { path, listen } => {
                write!(f, "unix-stream:{}{}", path.display(), if *listen { ",listen" } else { "" })
            }
            Doorbell::UnixDgram { bind, peer } => {
                write!(f, "unix-dgram:bind={},peer={}", bind.display(), peer.display())
            }
            Doorbell::Poll { micros } => write!(f, "poll:{micros}"),
        }
    }
}

/// Where a guest's console ends on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleEnd {
    /// This terminal, or the pipes that stand in its place.
    Stdio,
    /// A new pseudo-terminal, and a symbolic link to it.
    Pty(Option<PathBuf>),
    /// A listening stream socket, one client at a time.
    Unix(PathBuf),
    /// A file that output is appended to, and what it must not exceed, in bytes; no input.
    File(PathBuf, Option<u64>),
}

impl FromStr for ConsoleEnd {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<ConsoleEnd, BadValue> {
        match text.split_once(':') {
            None if text == "stdio" || text == "virtio" => Ok(ConsoleEnd::Stdio),
            None if text == "pty" => Ok(ConsoleEnd::Pty(None)),
            Some(("pty", link)) if !link.is_empty() => Ok(ConsoleEnd::Pty(Some(link.into()))),
            Some(("unix", path)) => Ok(ConsoleEnd::Unix(socket_path(path)?)),
            Some(("file", file)) if !file.is_empty() => {
                let BoundedFile { path, max } = file.parse()?;
                Ok(ConsoleEnd::File(path, max))
            }
            _ => Err(BadValue(
                "write stdio (or virtio, the same), pty[:LINK], unix:PATH or file:PATH[,max=SIZE]".into(),
            )),
        }
    }
}

impl fmt::Display for ConsoleEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConsoleEnd::Stdio => f.write_str("stdio"),
            ConsoleEnd::Pty(None) => f.write_str("pty"),
            ConsoleEnd::Pty(Some(link)) => write!(f, "pty:{}", link.display()),
            ConsoleEnd::Unix(path) => write!(f, "unix:{}", path.display()),
            ConsoleEnd::File(path, max) => {
                write!(f, "file:{}", BoundedFile { path: path.clone(), max: *max })
            }
        }
    }
}

/// A file that is written for a long time, as `PATH[,max=SIZE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundedFile {
    /// The file.
    pub path: PathBuf,
    /// What it must not exceed, in bytes.
    pub max: Option<u64>,
}

impl BoundedFile {
    /// The smallest bound in bytes: a file of a few of the longest frames.
    const LEAST: u64 = 256 << 10;
}

impl FromStr for BoundedFile {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<BoundedFile, BadValue> {
        let (path, max) = match text.rsplit_once(",max=") {
            None => (text, None),
            Some((path, max)) => (path, Some(max.parse::<Number>()?.0)),
        };
        if path.is_empty() {
            return Err(BadValue("write the path of a file, and ,max=SIZE behind it if you like".into()));
        }
        if max.is_some_and(|max| max < BoundedFile::LEAST) {
            return Err(BadValue("write max= with at least 256K".into()));
        }
        Ok(BoundedFile { path: path.into(), max })
    }
}

impl fmt::Display for BoundedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.max.map_or(Ok(()), |max| write!(f, ",max={}", Number(max)))
    }
}

/// A directory that the guest may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedDirectory {
    /// Where it is on this host.
    pub path: PathBuf,
    /// By which name the guest finds it: 1 to 64 bytes.
    pub tag: String,
    /// Whether the guest may change nothing.
    pub read_only: bool,
    /// Whose files are whose.
    pub owners: Owners,
    /// Most fids of the guest.
    pub fids: usize,
}

/// Reads how many fids a client may have: `word` is the option as it is written.
pub(super) fn fids(word: &str, text: &str) -> Result<usize, BadValue> {
    let number = text.parse::<Number>().ok().and_then(|Number(number)| usize::try_from(number).ok());
    number.filter(|number| FIDS.contains(number)).ok_or_else(|| {
        let (least, most) = (FIDS.start(), FIDS.end());
        BadValue(format!("write how many fids a client may have, {least} to {most}, as {word}=64K"))
    })
}

/// Whose files are whose in a directory that others see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owners {
    /// As on this host.
    #[default]
    Pass,
    /// Every file appears to belong to one user and group, of whoever runs this program if nobody is named, and owners
    /// cannot be changed.
    Squash(Option<(u32, u32)>),
    /// See [`Ids::Map`].
    Map {
        /// The first user and group of who sees the directory.
        inside: u32,
        /// This host's first.
        outside: u32,
        /// How many.
        count: u32,
    },
}

impl Owners {
    /// Who that is.
    pub fn ids(self) -> Ids {
        match self {
            Owners::Pass => Ids::Pass,
            Owners::Squash(None) => Ids::squash(),
            Owners::Squash(Some((uid, gid))) => Ids::Squash { uid, gid },
            Owners::Map { inside, outside, count } => Ids::Map { inside, outside, count },
        }
    }

    /// Numbers between colons, none of which is the one that stands for nobody.
    fn numbers<const N: usize>(text: &str) -> Option<[u32; N]> {
        let mut numbers = [0; N];
        let mut words = text.split(':');
        for number in &mut numbers {
            *number = words.next()?.parse().ok().filter(|id| *id != u32::MAX)?;
        }
        words.next().is_none().then_some(numbers)
    }

    /// `UID:GID`, or nothing. `mark` is what stands before the word where it is written: `--`, or the comma of a list.
    pub fn squash(mark: &str, text: &str) -> Result<Owners, BadValue> {
        match Owners::numbers(text) {
            Some([uid, gid]) => Ok(Owners::Squash(Some((uid, gid)))),
            None if text.is_empty() => Ok(Owners::Squash(None)),
            None => Err(BadValue(format!(
                "write the numbers of a user and a group, as {mark}squash=0:0, or {mark}squash alone"
            ))),
        }
    }

    /// `GUEST:HOST:COUNT`; `mark` as for [`squash`](Self::squash).
    pub fn map(mark: &str, text: &str) -> Result<Owners, BadValue> {
        match Owners::numbers(text) {
            // The last of each is a number that somebody may have.
            Some([inside, outside, count])
                if count != 0
                    && inside.checked_add(count).is_some()
                    && outside.checked_add(count).is_some() =>
            {
                Ok(Owners::Map { inside, outside, count })
            }
            _ => Err(BadValue(format!(
                "write the first number of the guest's users and groups, this host's that it is, and how many, as {mark}map=0:100000:65536"
            ))),
        }
    }
}

impl fmt::Display for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owners::Pass => Ok(()),
            Owners::Squash(None) => f.write_str(",squash"),
            Owners::Squash(Some((uid, gid))) => write!(f, ",squash={uid}:{gid}"),
            Owners::Map { inside, outside, count } => write!(f, ",map={inside}:{outside}:{count}"),
        }
    }
}

impl FromStr for SharedDirectory {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<SharedDirectory, BadValue> {
        let (mut rest, mut read_only, mut owners, mut most) = (text, false, None, None);
        while let Some((before, word)) = rest.rsplit_once(',') {
            let said = match word.split_once('=').unwrap_or((word, "")) {
                ("ro", "") => {
                    read_only = true;
                    None
                }
                ("fids", number) => {
                    most = Some(fids("fids", number)?);
                    None
                }
                ("squash", who) => Some(Owners::squash(",", who)?),
                ("map", which) => Some(Owners::map(",", which)?),
                _ => break,
            };
            if owners.is_some() && said.is_some() {
                return Err(BadValue("squash or map is said once, and not both".into()));
            }
            owners = owners.or(said);
            rest = before;
        }
        // The tag cannot hold a comma, so the directory may.
        let (path, tag) = match rest.rsplit_once(',') {
            Some((path, tag)) if !path.is_empty() && !tag.is_empty() => (path, tag),
            _ => {
                return Err(BadValue(
                    "write DIR,TAG, with ,ro, ,squash, ,map=GUEST:HOST:COUNT or ,fids=N behind it if you like: a directory, and what the guest calls it".into(),
                ));
            }
        };
        if tag.len() > MAX_MOUNT_TAG {
            let long = tag.len();
            return Err(BadValue(format!(
                "the tag has {long} bytes, and a guest takes {MAX_MOUNT_TAG}: use a shorter one"
            )));
        }
        Ok(SharedDirectory {
            path: path.into(),
            tag: tag.into(),
            read_only,
            owners: owners.unwrap_or_default(),
            fids: most.unwrap_or(DEFAULT_FIDS),
        })
    }
}

impl fmt::Display for SharedDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read_only = if self.read_only { ",ro" } else { "" };
        write!(f, "{},{}{read_only}{}", self.path.display(), self.tag, self.owners)?;
        match self.fids {
            DEFAULT_FIDS => Ok(()),
            fids => write!(f, ",fids={fids}"),
        }
    }
}

/// A guest's address, and where its sockets are on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockAddress {
    /// The guest's address.
    pub cid: u32,
    /// The UNIX socket; a default if not given.
    pub path: Option<PathBuf>,
}

/// What is appended to the path of a multiplexer at most: `_` and a port of ten digits.
pub(super) const PORT: usize = 11;
/// Longest path of a multiplexer.
const VSOCK_PATH: usize = SOCKET_PATH - PORT;

impl FromStr for VsockAddress {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<VsockAddress, BadValue> {
        let bad = || {
            let (least, most) = (MIN_GUEST_CID, MAX_GUEST_CID);
            BadValue(format!("write CID or CID,path=PATH, with an address from {least} to {most}"))
        };
        let (cid, path) = match text.split_once(',') {
            None => (text, None),
            Some((cid, rest)) => (cid, Some(rest.strip_prefix("path=").ok_or_else(bad)?)),
        };
        let Number(cid) = cid.parse().map_err(|_| bad())?;
        let cid = u32::try_from(cid).ok().filter(|cid| (MIN_GUEST_CID..=MAX_GUEST_CID).contains(cid));
        let cid = cid.ok_or_else(bad)?;
        if let Some(long) = path.map(str::len).filter(|&len| len > VSOCK_PATH) {
            return Err(BadValue(format!(
                "the path has {long} bytes and may have {VSOCK_PATH}, because ports are appended to it: use a shorter one"
            )));
        }
        Ok(VsockAddress { cid, path: path.map(socket_path).transpose()? })
    }
}

impl fmt::Display for VsockAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            None => write!(f, "{}", self.cid),
            Some(path) => write!(f, "{},path={}", self.cid, path.display()),
        }
    }
}

/// Writes and reads a type as the text that the command line has for it.
macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<$name, D::Error> {
                let text = String::deserialize(from)?;
                text.parse().map_err(|bad| de::Error::custom(format_args!("'{text}': {bad}")))
            }
        }
    )*};
}
as_text!(Doorbell, ConsoleEnd, BoundedFile, SharedDirectory, VsockAddress);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let good = [
            ("0", 0),
            ("17", 17),
            ("0x10", 16),
            ("0X1f", 31),
            ("4K", 4096),
            ("16m", 16 << 20),
            ("0x1G", 1 << 30),
            ("0xffffffffffffffff", u64::MAX),
        ];
        for (text, value) in good {
            assert_eq!(text.parse(), Ok(Number(value)), "{text}");
        }
        for text in
            ["", "K", "0x", "+1", "-1", "1.5M", "16MB", "0x+1", "0x1ffffffffffffffff", "17179869184G", "ä"]
        {
            assert!(text.parse::<Number>().is_err(), "{text}");
        }
    }

    #[test]
    fn doorbells_print_as_they_are_written() {
        for text in ["unix-stream:/a/b", "unix-stream:b,listen", "unix-dgram:bind=/a,peer=/b", "poll:50"] {
            assert_eq!(text.parse::<Doorbell>().unwrap().to_string(), text);
        }
        assert_eq!("poll".parse(), Ok(Doorbell::Poll { micros: DEFAULT_POLL_MICROS }));
        let long = format!("unix-stream:/{}", "x".repeat(SOCKET_PATH));
        for text in [
            "",
            "bell",
            "unix-stream",
            "unix-stream:",
            "unix-stream:/a,",
            "unix-stream:/a,server",
            "unix-dgram:/a",
            "unix-dgram:bind=/a",
            "unix-dgram:bind=/a,peer=/a",
            "unix-dgram:bind=/a,bind=/b,peer=/c",
            "poll:",
            "poll:0",
            "poll:2000000",
            &long,
        ] {
            assert!(text.parse::<Doorbell>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_print_as_they_are_written() {
        for text in ["3", "4294967294", "3,path=/run/r5", "77,path=relative"] {
            assert_eq!(text.parse::<VsockAddress>().unwrap().to_string(), text);
        }
        let long = format!("3,path=/{}", "x".repeat(VSOCK_PATH));
        for text in
            ["", "2", "4294967295", "0x100000003", "3,", "3,/run/r5", "3,path=", "3,path=/a,b", "x", &long]
        {
            assert!(text.parse::<VsockAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn directories_print_as_they_are_written() {
        for text in [
            "/srv,srv",
            "/a,b,c",
            ".,host,ro",
            "/tmp,/tmp",
            "/a,b,squash",
            "/a,b,ro,squash",
            "/a,b,squash=7:8",
            "/a,b,ro,map=0:100000:65536",
            "/a,b,ro,squash,fids=100",
            "/a,b,fids=1048576",
        ] {
            assert_eq!(text.parse::<SharedDirectory>().unwrap().to_string(), text);
        }
        let long = format!("/srv,{}", "x".repeat(65));
        for text in [
            "",
            "/srv",
            "/srv,",
            ",tag",
            ",ro",
            "/srv,ro",
            "/srv,squash",
            &long,
            "/srv,t,squash=7",
            "/srv,t,map",
            "/srv,t,fids",
            "/srv,t,fids=63",
            "/srv,t,fids=1048577",
            "/srv,t,map=0:1",
            "/srv,t,map=0:1:0",
            "/srv,t,map=1:0:4294967295",
            "/srv,t,squash,map=0:1:1",
        ] {
            assert!(text.parse::<SharedDirectory>().is_err(), "{text}");
        }
    }

    #[test]
    fn console_ends_print_as_they_are_written() {
        for text in ["stdio", "pty", "pty:/tmp/r5", "unix:/tmp/s", "file:/tmp/f", "file:/tmp/f,max=0x100000"]
        {
            assert_eq!(text.parse::<ConsoleEnd>().unwrap().to_string(), text);
        }
        assert_eq!("virtio".parse(), Ok(ConsoleEnd::Stdio));
        assert_eq!("file:x,max=1M".parse(), Ok(ConsoleEnd::File("x".into(), Some(1 << 20))));
        for text in [
            "",
            "serial",
            "pty:",
            "unix:",
            "file:",
            "tcp:1",
            "file:,max=1M",
            "file:x,max=",
            "file:x,max=255K",
        ] {
            assert!(text.parse::<ConsoleEnd>().is_err(), "{text}");
        }
    }
}
