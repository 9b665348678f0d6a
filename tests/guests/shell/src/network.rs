//! The board on a network: smoltcp over the link's card, an address by DHCP or as it was said, and the sockets of the
//! shell's commands. [`Network::poll`] is called in every round of the shell, so that the board answers, and serves
//! pages, while somebody types.

use core::fmt;

use hvl_frontend::adapter::smoltcp::Phy;
use hvl_frontend::device::net::{Mac, Net};
use hvl_frontend::device::p9::Files;
use hvl_frontend::{Instant, device::DeviceStatus};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, icmp, tcp};
use smoltcp::time::Instant as NetInstant;
use smoltcp::wire::{EthernetAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr, Ipv4Address, Ipv4Cidr};

use crate::Machine;
use crate::http::{self, Server};
use crate::net::NetError;

/// Sockets: DHCP, ICMP, the client's connection, the server's.
const SOCKETS: usize = 3 + http::CONNECTIONS;
/// Bytes of a frame: the largest payload of an Ethernet frame, and its header.
const FRAME: usize = 1518;
/// Bytes that a connection holds in each direction.
const BUFFER: usize = 16 << 10;
/// Bytes of the echo requests and replies that wait.
const ECHOES: usize = 1024;
/// As many of either at the most.
const WAITING: usize = 4;
/// Payload of an echo request.
pub(crate) const ECHO: &[u8] = b"across a link without a hypervisor";
/// Which echoes are ours.
const IDENT: u16 = 0x5235;
/// Rounds of one call: as many frames are taken at the most before the shell goes on.
const ROUNDS: usize = 32;

/// Memory of a network, the caller's: static, since smoltcp's sockets lie in the slice that they borrow from.
pub struct Storage {
    sockets: [SocketStorage<'static>; SOCKETS],
    echo_marks: [[icmp::PacketMetadata; WAITING]; 2],
}

/// Memory for what is on its way. Apart, because it is all zeros: a board keeps it out of its image.
pub struct Buffers {
    echoes: [[u8; ECHOES]; 2],
    streams: [[[u8; BUFFER]; 2]; 1 + http::CONNECTIONS],
    frames: [[u8; FRAME]; 2],
    page: [u8; http::PAGE],
}

impl Storage {
    /// Memory that no network uses yet.
    pub const NEW: Self = Storage {
        sockets: [SocketStorage::EMPTY; SOCKETS],
        echo_marks: [[icmp::PacketMetadata::EMPTY; WAITING]; 2],
    };
}

impl Buffers {
    /// Memory that nothing is in yet.
    pub const NEW: Self = Buffers {
        echoes: [[0; ECHOES]; 2],
        streams: [[[0; BUFFER]; 2]; 1 + http::CONNECTIONS],
        frames: [[0; FRAME]; 2],
        page: [0; http::PAGE],
    };
}

/// How the board gets its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// From a server.
    Dhcp,
    /// As it was said.
    Static,
}

/// The board's place in a network.
pub struct Network<'s, B> {
    net: Net<'s, B>,
    /// Made when the PMM has said the card's address.
    interface: Option<(Interface, Mac)>,
    pub(crate) sockets: SocketSet<'static>,
    dhcp: SocketHandle,
    echo: SocketHandle,
    /// The connection of `get`.
    pub(crate) client: SocketHandle,
    /// The server of `httpd`.
    pub(crate) server: Server,
    frames: &'static mut [[u8; FRAME]; 2],
    addressing: Addressing,
    address: Option<Ipv4Cidr>,
    gateway: Option<Ipv4Address>,
    /// Port of the next connection.
    next_port: u16,
}

impl<'s, B: Machine> Network<'s, B> {
    /// A network on this card.
    pub fn new(
        net: Net<'s, B>,
        storage: &'static mut Storage,
        buffers: &'static mut Buffers,
    ) -> Network<'s, B> {
        let Storage { sockets, echo_marks } = storage;
        let Buffers { echoes, streams, frames, page } = buffers;
        let mut sockets = SocketSet::new(&mut sockets[..]);
        let dhcp = sockets.add(dhcpv4::Socket::new());
        let [in_marks, out_marks] = echo_marks;
        let [inward, outward] = echoes;
        let echo = sockets.add(icmp::Socket::new(
            icmp::PacketBuffer::new(&mut in_marks[..], &mut inward[..]),
            icmp::PacketBuffer::new(&mut out_marks[..], &mut outward[..]),
        ));
        let [first, rest @ ..] = streams;
        let mut stream = |[inward, outward]: &'static mut [[u8; BUFFER]; 2]| {
            sockets.add(tcp::Socket::new(
                tcp::SocketBuffer::new(&mut inward[..]),
                tcp::SocketBuffer::new(&mut outward[..]),
            ))
        };
        let client = stream(first);
        let server = Server::new(rest.each_mut().map(stream), page);
        Network {
            net,
            interface: None,
            sockets,
            dhcp,
            echo,
            client,
            server,
            frames,
            addressing: Addressing::Dhcp,
            address: None,
            gateway: None,
            next_port: 49_152,
        }
    }

    /// How the card stands.
    pub fn status(&self) -> Option<DeviceStatus> {
        self.net.status()
    }

    /// Takes and sends frames, looks after the address, and serves pages. Bounded; `true`: there may be more to do.
    pub fn poll(&mut self, files: &mut Files<'s, B>, now: Instant) -> bool {
        let at = net_time(now);
        let Network { net, interface, frames, .. } = self;
        let [received, sent] = &mut **frames;
        match (net.mac(), &mut *interface) {
            (Ok(Some(mac)), None) => {
                let mut config = Config::new(EthernetAddress(mac).into());
                config.random_seed =
                    now.micros() ^ mac.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                let mut phy = Phy::new(net, received, sent);
                *interface = Some((Interface::new(config, &mut phy, at), mac));
            }
            // Another PMM may say another.
            (Ok(Some(mac)), Some((interface, old))) if mac != *old => {
                interface.set_hardware_addr(EthernetAddress(mac).into());
                *old = mac;
            }
            _ => {}
        }
        let Some((interface, _)) = &mut self.interface else { return false };
        let [received, sent] = &mut *self.frames;
        let mut more = true;
        for _ in 0..ROUNDS {
            let mut phy = Phy::new(&mut self.net, received, sent);
            more = interface.poll(at, &mut phy, &mut self.sockets) == PollResult::SocketStateChanged;
            self.server.step(&mut self.sockets, files);
            if !more {
                break;
            }
        }
        self.lease();
        more || self.server.is_busy(&self.sockets)
    }

    /// What the DHCP server said.
    fn lease(&mut self) {
        let leased = match self.sockets.get_mut::<dhcpv4::Socket>(self.dhcp).poll() {
            Some(dhcpv4::Event::Configured(config)) => Some((config.address, config.router)),
            Some(dhcpv4::Event::Deconfigured) => None,
            None => return,
        };
        if self.addressing == Addressing::Dhcp {
            self.place(leased.map(|(address, _)| address), leased.and_then(|(_, router)| router));
        }
    }

    fn place(&mut self, address: Option<Ipv4Cidr>, gateway: Option<Ipv4Address>) {
        (self.address, self.gateway) = (address, gateway);
        let Some((interface, _)) = &mut self.interface else { return };
        interface.update_ip_addrs(|all| {
            all.clear();
            // There is room for one.
            let _ = address.map(|address| all.push(IpCidr::Ipv4(address)));
        });
        interface.routes_mut().remove_default_ipv4_route();
        if let Some(gateway) = gateway {
            let _ = interface.routes_mut().add_default_ipv4_route(gateway);
        }
    }

    /// From now on the board has this address.
    pub fn set(&mut self, address: Ipv4Cidr, gateway: Option<Ipv4Address>) {
        self.addressing = Addressing::Static;
        self.place(Some(address), gateway);
    }

    /// From now on it asks for one.
    pub fn ask(&mut self) {
        self.addressing = Addressing::Dhcp;
        self.place(None, None);
        self.sockets.get_mut::<dhcpv4::Socket>(self.dhcp).reset();
    }

    /// The way out of its network, where there is one.
    pub fn gateway(&self) -> Option<Ipv4Address> {
        self.gateway
    }

    /// Its address, while it has one.
    pub fn address(&self) -> Option<Ipv4Cidr> {
        self.address
    }

    /// When it is to be called again without a doorbell.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let (interface, _) = self.interface.as_mut()?;
        let at = interface.poll_at(net_time(now), &self.sockets)?;
        Some(Instant::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)).max(Instant::from_micros(1)))
    }

    /// What `ip` prints.
    pub fn report(&mut self, out: &mut dyn fmt::Write) -> fmt::Result {
        let Some((_, mac)) = &self.interface else {
            return out.write_str("no network card answers\n");
        };
        write!(out, "card       {}", EthernetAddress(*mac))?;
        match self.net.mtu() {
            Ok(mtu) => writeln!(out, ", {mtu} bytes a packet")?,
            Err(_) => out.write_str(", down\n")?,
        }
        match (self.address, self.addressing) {
            (Some(address), Addressing::Dhcp) => write!(out, "address    {address} by DHCP")?,
            (Some(address), Addressing::Static) => write!(out, "address    {address}")?,
            (None, _) => out.write_str("address    none yet; DHCP is asked")?,
        }
        match self.gateway {
            Some(gateway) => writeln!(out, ", gateway {gateway}")?,
            None => out.write_char('\n')?,
        }
        self.server.report(out)
    }

    // --- echoes -----------------------------------------------------------------------------------------------------

    /// Whether somebody at this address may be reached at all.
    pub fn way(&self, to: Ipv4Address) -> Result<(), NetError> {
        match self.address {
            Some(own) if own.address() == to => Err(NetError::Own(to)),
            Some(own) if own.contains_addr(&to) || self.gateway.is_some() => Ok(()),
            _ => Err(NetError::NoWay(to)),
        }
    }

    /// Forgets all echoes of an earlier command: answers, and requests that never left. The socket keeps a request until
    /// it knows the address's owner, for ever if there is none, and with it all that are behind it.
    pub fn forget_echoes(&mut self, now: Instant) {
        while self.take_echo().is_some() {}
        if self.sockets.get::<icmp::Socket>(self.echo).send_queue() == 0 {
            return;
        }
        // The socket cannot be told to. Without an address it has nothing to send from, and drops what it has.
        let (address, gateway) = (self.address, self.gateway);
        self.place(None, None);
        // Added anew, it does not wait for the owner's answer first.
        let socket = self.sockets.remove(self.echo);
        self.echo = match socket {
            smoltcp::socket::Socket::Icmp(socket) => self.sockets.add(socket),
            // It is what was added as one; there is nothing else to be done with another.
            _ => self.echo,
        };
        let Network { net, interface, sockets, frames, .. } = self;
        let [received, sent] = &mut **frames;
        if let Some((interface, _)) = interface {
            for _ in 0..WAITING {
                interface.poll_egress(net_time(now), &mut Phy::new(net, received, sent), sockets);
            }
        }
        self.place(address, gateway);
    }

    /// Sends an echo request. `false`: there is no room, or no way there.
    pub fn send_echo(&mut self, to: Ipv4Address, number: u16) -> bool {
        let socket = self.sockets.get_mut::<icmp::Socket>(self.echo);
        if !socket.is_open() && socket.bind(icmp::Endpoint::Ident(IDENT)).is_err() {
            return false;
        }
        let repr = Icmpv4Repr::EchoRequest { ident: IDENT, seq_no: number, data: ECHO };
        let Ok(room) = socket.send(repr.buffer_len(), IpAddress::Ipv4(to)) else { return false };
        repr.emit(&mut Icmpv4Packet::new_unchecked(room), &ChecksumCapabilities::default());
        true
    }

    /// The next answer: who sent it, and its number.
    pub fn take_echo(&mut self) -> Option<(Ipv4Address, u16)> {
        let socket = self.sockets.get_mut::<icmp::Socket>(self.echo);
        loop {
            let (bytes, IpAddress::Ipv4(from)) = socket.recv().ok()?;
            let packet = Icmpv4Packet::new_checked(bytes).ok();
            let repr =
                packet.and_then(|packet| Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok());
            if let Some(Icmpv4Repr::EchoReply { ident: IDENT, seq_no, data: ECHO }) = repr {
                return Some((from, seq_no));
            }
        }
    }

    // --- the client's connection ------------------------------------------------------------------------------------

    /// Begins a connection.
    pub fn connect(&mut self, to: Ipv4Address, port: u16) -> Result<(), NetError> {
        self.way(to)?;
        let Some((interface, _)) = &mut self.interface else { return Err(NetError::NoWay(to)) };
        if port == 0 {
            return Err(NetError::NoWay(to));
        }
        let socket = self.sockets.get_mut::<tcp::Socket>(self.client);
        socket.abort();
        self.next_port = self.next_port.checked_add(1).unwrap_or(49_152);
        socket.set_timeout(Some(smoltcp::time::Duration::from_secs(10)));
        let begun = socket.connect(interface.context(), (IpAddress::Ipv4(to), port), self.next_port);
        begun.map_err(|_| NetError::NoWay(to))
    }

    /// Whether the connection is there already.
    pub fn is_connected(&mut self) -> Result<bool, NetError> {
        let stream = self.stream();
        if stream.is_active() { Ok(stream.may_send()) } else { Err(NetError::Broken) }
    }

    /// Says how many bytes came, if any did; 0: the other side has ended its direction.
    pub fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>, NetError> {
        let stream = self.stream();
        match stream.recv_slice(into) {
            Ok(0) => Ok(None),
            Ok(count) => Ok(Some(count)),
            Err(tcp::RecvError::Finished) => Ok(Some(0)),
            Err(tcp::RecvError::InvalidState) if !stream.is_active() => Err(NetError::Broken),
            Err(tcp::RecvError::InvalidState) => Ok(None),
        }
    }

    /// The connection.
    pub fn stream(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut::<tcp::Socket>(self.client)
    }
}

fn net_time(now: Instant) -> NetInstant {
    NetInstant::from_micros(i64::try_from(now.micros()).unwrap_or(i64::MAX))
}
