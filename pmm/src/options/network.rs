//! The value of `--network`: where a network card's cable leads. `KEY=VALUE` with commas between, in kvmtool's words
//! where kvmtool has one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::value::{BadValue, socket_path};

/// A card, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Where the cable leads.
    pub end: NetworkEnd,
    /// The guest's address; one made of the link's name and the card's number if not given.
    pub mac: Option<Mac>,
    /// The largest payload of a frame that the guest is told.
    pub mtu: Option<u16>,
}

/// Where a cable leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkEnd {
    /// To the host's own network as an ordinary program sees it, through `passt`.
    User {
        /// Ports of this host that lead to ports of the guest.
        forwards: Vec<Forward>,
        /// The program, if it is not the one on PATH.
        passt: Option<PathBuf>,
    },
    /// To a network interface of this host.
    Tap {
        /// Its name; the kernel chooses one if it is not given.
        name: Option<String>,
    },
    /// To another program, over a stream of frames.
    Stream {
        /// Where.
        address: Address,
        /// Whether the PMM is the one that listens.
        listen: bool,
    },
    /// To another program, a datagram a frame.
    Datagram {
        /// Where the PMM receives, and where it sends to: of one kind.
        local: Address,
        /// See there.
        peer: Address,
    },
    /// Nowhere.
    None,
}

/// An address of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Address {
    /// In the file system.
    Unix(PathBuf),
    /// TCP or UDP.
    Internet(SocketAddr),
}

/// A TCP port of this host that leads to one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Forward {
    /// On which of the host's addresses.
    pub address: IpAddr,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The one of a link's card if nothing else is said: locally administered, and the same after every restart. It is
    /// a hash of the link's name, so links of one name on two hosts need `mac=`.
    pub fn of(link: &str, card: usize) -> Mac {
        let bytes = link.bytes().chain([0]).chain(card.to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        let [_, _, _, a, b, c, d, e] = (hash ^ hash >> 24).to_be_bytes();
        Mac([0x02, a, b, c, d, e])
    }
}

impl FromStr for Mac {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Mac, BadValue> {
        let bad = || BadValue("an address is six pairs of hexadecimal digits, 02:00:00:00:00:01".into());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| (1..=2).contains(&part.len())).ok_or_else(bad)?;
            // from_str_radix would take a sign.
            let digits = part.chars().all(|c| c.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits).ok_or_else(bad)?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(BadValue(
                "the address is a group's or all zeroes: the first byte must be even".into(),
            ));
        }
        Ok(Mac(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl FromStr for Forward {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Forward, BadValue> {
        let bad = || {
            BadValue(
                "write forward=HOST:GUEST with two ports, or forward=ADDRESS/HOST:GUEST (0.0.0.0/8080:80)"
                    .into(),
            )
        };
        let (address, ports) = match text.split_once('/') {
            // Not open to the world unless that is said.
            None => (Ipv4Addr::LOCALHOST.into(), text),
            Some((address, ports)) => (address.parse().map_err(|_| bad())?, ports),
        };
        let (host, guest) = ports.split_once(':').ok_or_else(bad)?;
        let port = |text: &str| text.parse().ok().filter(|&port: &u16| port != 0).ok_or_else(bad);
        Ok(Forward { address, host: port(host)?, guest: port(guest)? })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.address != IpAddr::from(Ipv4Addr::LOCALHOST) {
            write!(f, "{}/", self.address)?;
        }
        write!(f, "{}:{}", self.host, self.guest)
    }
}

/// Of a stream, `unix:PATH` or `tcp:ADDRESS:PORT`; of datagrams, `unix:PATH` or `udp:ADDRESS:PORT`.
fn address(text: &str, protocol: &str) -> Result<Address, BadValue> {
    let bad =
        || BadValue(format!("'{text}': write unix:PATH or {protocol}:ADDRESS:PORT, with a numeric address"));
    match text.split_once(':') {
        Some(("unix", path)) => Ok(Address::Unix(socket_path(path)?)),
        Some((kind, rest)) if kind == protocol => rest.parse().map(Address::Internet).map_err(|_| bad()),
        _ => Err(bad()),
    }
}

struct Shown<'a>(&'a Address, &'static str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Internet(address) => write!(f, "{}:{address}", self.1),
        }
    }
}

/// The keys as they were written, each once.
#[derive(Default)]
struct Keys<'a> {
    mode: Option<&'a str>,
    mac: Option<Mac>,
    mtu: Option<u16>,
    forwards: Vec<Forward>,
    passt: Option<PathBuf>,
    tapif: Option<&'a str>,
    stream: Option<&'a str>,
    listen: bool,
    dgram: Option<&'a str>,
    peer: Option<&'a str>,
}

/// Longest name of a network interface, in bytes.
const INTERFACE: usize = 15;

impl<'a> Keys<'a> {
    /// Reads all keys, so that what is wrong with each is told at once.
    fn read(text: &'a str) -> Result<Keys<'a>, BadValue> {
        let mut keys = Keys::default();
        let wrong = text.split(',').filter_map(|part| keys.take(part).err());
        let wrong: Vec<String> = wrong.map(|BadValue(why)| why).collect();
        if wrong.is_empty() { Ok(keys) } else { Err(BadValue(wrong.join("; and "))) }
    }

    fn take(&mut self, part: &'a str) -> Result<(), BadValue> {
        let keys = self;
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let once = |free: bool| if free { Ok(()) } else { Err(BadValue(format!("'{key}' is given twice"))) };
        match key {
            "mode" => once(keys.mode.replace(value).is_none())?,
            "mac" => once(keys.mac.replace(value.parse()?).is_none())?,
            "mtu" => {
                let mtu = value.parse().ok().filter(|mtu| (68..=65_520).contains(mtu));
                let bad = || BadValue("write mtu=N, in bytes from 68 to 65520".into());
                once(keys.mtu.replace(mtu.ok_or_else(bad)?).is_none())?;
            }
            "forward" => keys.forwards.push(value.parse()?),
            "passt" if !value.is_empty() => once(keys.passt.replace(value.into()).is_none())?,
            "tapif" => {
                let fine = !value.contains('/') && !value.contains(char::is_whitespace);
                if value.is_empty() || value.len() > INTERFACE || !fine {
                    return Err(BadValue(format!(
                        "write tapif=NAME, a network interface's name of at most {INTERFACE} bytes"
                    )));
                }
                once(keys.tapif.replace(value).is_none())?;
            }
            "stream" => once(keys.stream.replace(value).is_none())?,
            "listen" if part == key => keys.listen = true,
            "dgram" => once(keys.dgram.replace(value).is_none())?,
            "peer" => once(keys.peer.replace(value).is_none())?,
            // kvmtool's: mmio is what a link's windows are.
            "trans" if value == "mmio" => {}
            "trans" => {
                return Err(BadValue("a link has no bus; write trans=mmio or leave it out".into()));
            }
            "vhost" if value == "0" => {}
            "vhost" | "vproxy" => {
                return Err(BadValue(format!(
                    "'{part}': the kernel's vhost devices will come in a later version; leave it out"
                )));
            }
            _ => {
                return Err(BadValue(format!(
                    "'{part}' is unknown: write mode=user, tap, socket or none, then mac=, mtu=, and the mode's own keys"
                )));
            }
        }
        Ok(())
    }

    /// Refuses what belongs to another mode.
    fn only(&self, mode: &str) -> Result<(), BadValue> {
        let given = [
            ("forward", "user", !self.forwards.is_empty()),
            ("passt", "user", self.passt.is_some()),
            ("tapif", "tap", self.tapif.is_some()),
            ("stream", "socket", self.stream.is_some()),
            ("listen", "socket", self.listen),
            ("dgram", "socket", self.dgram.is_some()),
            ("peer", "socket", self.peer.is_some()),
        ];
        match given.iter().find(|(_, of, given)| *given && *of != mode) {
            Some((key, of, _)) => {
                Err(BadValue(format!("'{key}' belongs to mode={of}; leave one of them out")))
            }
            None => Ok(()),
        }
    }
}

impl FromStr for Network {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Network, BadValue> {
        let keys = Keys::read(text)?;
        let mode = keys
            .mode
            .ok_or_else(|| BadValue("write mode=user, mode=tap, mode=socket or mode=none".into()))?;
        keys.only(mode)?;
        let end = match mode {
            "user" => NetworkEnd::User { forwards: keys.forwards, passt: keys.passt },
            "tap" => NetworkEnd::Tap { name: keys.tapif.map(str::to_string) },
            "none" => NetworkEnd::None,
            "socket" => match (keys.stream, keys.dgram, keys.peer) {
                (Some(stream), None, None) => {
                    NetworkEnd::Stream { address: address(stream, "tcp")?, listen: keys.listen }
                }
                (None, Some(local), Some(peer)) if !keys.listen => {
                    let (local, peer) = (address(local, "udp")?, address(peer, "udp")?);
                    if std::mem::discriminant(&local) != std::mem::discriminant(&peer) || local == peer {
                        return Err(BadValue("'dgram' and 'peer' are two addresses of one kind".into()));
                    }
                    NetworkEnd::Datagram { local, peer }
                }
                _ => {
                    return Err(BadValue(
                        "write stream=unix:PATH or stream=tcp:ADDRESS:PORT (and ',listen' on one side), or dgram=unix:PATH,peer=unix:PATH (or udp:ADDRESS:PORT)"
                            .into(),
                    ));
                }
            },
            other => {
                return Err(BadValue(format!(
                    "mode={other} is unknown: write mode=user, mode=tap, mode=socket or mode=none"
                )));
            }
        };
        Ok(Network { end, mac: keys.mac, mtu: keys.mtu })
    }
}

impl fmt::Display for NetworkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetworkEnd::User { forwards, passt } => {
                f.write_str("mode=user")?;
                forwards.iter().try_for_each(|forward| write!(f, ",forward={forward}"))?;
                passt.iter().try_for_each(|passt| write!(f, ",passt={}", passt.display()))
            }
            NetworkEnd::Tap { name: None } => f.write_str("mode=tap"),
            NetworkEnd::Tap { name: Some(name) } => write!(f, "mode=tap,tapif={name}"),
            NetworkEnd::Stream { address, listen } => {
                let listen = if *listen { ",listen" } else { "" };
                write!(f, "mode=socket,stream={}{listen}", Shown(address, "tcp"))
            }
            NetworkEnd::Datagram { local, peer } => {
                write!(f, "mode=socket,dgram={},peer={}", Shown(local, "udp"), Shown(peer, "udp"))
            }
            NetworkEnd::None => f.write_str("mode=none"),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.end)?;
        self.mac.iter().try_for_each(|mac| write!(f, ",mac={mac}"))?;
        self.mtu.iter().try_for_each(|mtu| write!(f, ",mtu={mtu}"))
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Network, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|bad| de::Error::custom(format_args!("'{text}': {bad}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_print_as_they_are_written() {
        for text in [
            "mode=user",
            "mode=user,forward=8080:80,forward=0.0.0.0/2222:22,passt=/opt/passt,mac=02:00:00:00:00:01,mtu=9000",
            "mode=tap",
            "mode=tap,tapif=tap0",
            "mode=socket,stream=unix:/run/a,listen",
            "mode=socket,stream=tcp:127.0.0.1:5000",
            "mode=socket,stream=tcp:[::1]:5000,listen,mtu=1400",
            "mode=socket,dgram=unix:/run/a,peer=unix:/run/b",
            "mode=socket,dgram=udp:127.0.0.1:5000,peer=udp:127.0.0.1:5001",
            "mode=none",
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        // kvmtool's order and words.
        let kvmtool: Network = "mode=tap,tapif=tap0,trans=mmio".parse().unwrap();
        assert_eq!(kvmtool.to_string(), "mode=tap,tapif=tap0");
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_what_to_write() {
        for (text, hint) in [
            ("", "mode="),
            ("user", "unknown"),
            ("mac=02:00:00:00:00:01", "mode=user"),
            ("mode=bridge", "mode=user"),
            ("mode=tap,mode=user", "twice"),
            ("mode=tap,forward=1:2", "mode=user"),
            ("mode=user,tapif=tap0", "mode=tap"),
            ("mode=tap,tapif=", "tapif=NAME"),
            ("mode=tap,tapif=a23456789012345x", "15"),
            ("mode=tap,trans=pci", "trans=mmio"),
            ("mode=tap,vhost=1", "later version"),
            ("mode=user,mtu=67", "68"),
            ("mode=user,mac=01:00:00:00:00:01", "even"),
            ("mode=user,mac=02:00:00:00:00", "six pairs"),
            ("mode=user,mac=02:00:00:00:00:+1", "six pairs"),
            ("mode=user,forward=80", "HOST:GUEST"),
            ("mode=user,forward=0:80", "HOST:GUEST"),
            ("mode=user,forward=localhost/80:80", "ADDRESS/HOST:GUEST"),
            ("mode=socket", "stream="),
            ("mode=socket,stream=unix:", "path"),
            ("mode=socket,stream=udp:127.0.0.1:1", "tcp:"),
            ("mode=socket,stream=tcp:localhost:1", "numeric"),
            ("mode=socket,dgram=unix:/a", "peer="),
            ("mode=socket,dgram=unix:/a,peer=unix:/a", "two addresses"),
            ("mode=socket,dgram=unix:/a,peer=udp:127.0.0.1:1", "one kind"),
            ("mode=socket,dgram=unix:/a,peer=unix:/b,listen", "stream="),
        ] {
            let bad = text.parse::<Network>().unwrap_err().to_string();
            assert!(bad.contains(hint), "{text}: {bad}");
        }
    }

    #[test]
    fn addresses_are_stable_and_differ() {
        let (one, two) = (Mac::of("link0", 0), Mac::of("link0", 1));
        assert_eq!(one, Mac::of("link0", 0));
        assert!(one != two && one != Mac::of("link1", 0));
        assert_eq!(one.0[0], 2);
        assert_eq!(one.to_string().parse(), Ok(one));
    }
}
