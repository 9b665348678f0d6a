//! What each word of the region is called, and who may store it.
//!
//! Traces and the list of deaths speak of `EpochSeen` and `console.transmit.used.index`, never of offsets; and the
//! simulator knows for every word who writes it, so that a second writer is found at its first store. The set of
//! names does not depend on sizes, so that a place means the same in every seed.

use hvl_shared_abi::header::{
    CONFIG, CONFIG_SIZE, HEADER_SIZE, MAX_DEVICES, REGISTERS, WINDOW_SIZE, Window, Writer, reg,
};
use hvl_shared_abi::layout::{DeviceSpec, Layout};

/// One of the two processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The one that offers devices.
    Pmm,
    /// The one that drives them.
    Guest,
}

impl Side {
    /// Both, in the order of their index.
    pub const BOTH: [Side; 2] = [Side::Pmm, Side::Guest];
    /// 0 or 1, for tables.
    pub const fn index(self) -> usize {
        self as usize
    }
    /// The peer.
    pub const fn other(self) -> Side {
        match self {
            Side::Pmm => Side::Guest,
            Side::Guest => Side::Pmm,
        }
    }
    /// As traces call it.
    pub const fn name(self) -> &'static str {
        match self {
            Side::Pmm => "PMM",
            Side::Guest => "guest",
        }
    }
}

/// What a word belongs to, as far as rules differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// A register or the configuration of a window.
    Header,
    /// An extension block, or the last words.
    Block,
    /// A ring.
    Ring,
    /// A pool.
    Pool,
    /// Nothing: nobody has any business here.
    Nothing,
}

/// Everything known of one 16-bit half of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of its name in [`Map::names`].
    pub name: u16,
    /// What it belongs to.
    pub area: Area,
    /// Who may store it; `None`: nobody.
    pub writer: Option<Writer>,
    /// Which device it belongs to.
    pub device: u8,
}

impl Place {
    /// Whether this side may store here.
    pub fn may_store(&self, side: Side) -> bool {
        match self.writer {
            Some(Writer::Both) => true,
            Some(Writer::Pmm) => side == Side::Pmm,
            Some(Writer::Guest) => side == Side::Guest,
            None => false,
        }
    }
}

/// The devices of every simulated link, by the names of their queues.
const DEVICES: [(&str, &[&str]); 2] = [("rng", &["request"]), ("console", &["receive", "transmit"])];

/// Names and writers of all words.
#[derive(Clone)]
pub struct Map {
    halves: Vec<Place>,
    names: Vec<String>,
}

impl Map {
    /// The devices of a link, with these queue sizes (rng, console receive and transmit) and pool sizes.
    pub fn devices(queues: [u16; 3], pools: [u32; 2]) -> [DeviceSpec; 2] {
        let [request, receive, transmit] = queues;
        [
            DeviceSpec { queues: [request, 0, 0, 0], pool: pools[0], ..DeviceSpec::RNG },
            DeviceSpec { queues: [receive, transmit, 0, 0], pool: pools[1], ..DeviceSpec::CONSOLE },
        ]
    }

    /// Names everything in a region of `len` bytes.
    pub fn new(layout: &Layout, len: u32) -> Map {
        let nothing = Place { name: 0, area: Area::Nothing, writer: None, device: 0 };
        let mut map = Map { halves: vec![nothing; (len / 2) as usize], names: vec!["nothing".into()] };
        for index in 0..MAX_DEVICES {
            let Some(window) = Window::of(index) else { break };
            let device = DEVICES.get(index).map_or("unused", |(name, _)| name);
            for register in REGISTERS {
                let link_wide = index == 0
                    && ((reg::PMM_EPOCH..=reg::EPOCH_SEEN).contains(&register.offset)
                        || (reg::PMM_BELL..=reg::DRIVER_SEEN).contains(&register.offset));
                let name = match link_wide {
                    true => register.name.to_string(),
                    false => format!("{device}.{}", register.name),
                };
                // Its initial value is the PMM's, in a region where nobody has been.
                let writer = if register.offset == reg::QUEUE_SEL { Writer::Both } else { register.writer };
                map.put(name, window.at(register.offset), 4, Area::Header, Some(writer), index);
            }
            let name = format!("{device}.config");
            map.put(name, window.at(CONFIG), CONFIG_SIZE, Area::Header, Some(Writer::Pmm), index);
        }
        debug_assert!(MAX_DEVICES as u32 * WINDOW_SIZE <= HEADER_SIZE);
        let text = layout.panic_text();
        map.put("LastWords".into(), text.at, text.len, Area::Block, Some(Writer::Both), 0);
        for (index, (place, (device, queues))) in layout.devices().iter().zip(DEVICES).enumerate() {
            let (pmm, guest) = (Some(Writer::Pmm), Some(Writer::Guest));
            map.put(format!("{device}.block"), place.block.at, place.block.len, Area::Block, pmm, index);
            for (queue, name) in place.queues().zip(queues) {
                let [desc, avail, used] = queue.extents();
                let mut ring = |part: &str, at, len, writer| {
                    map.put(format!("{device}.{name}.{part}"), at, len, Area::Ring, writer, index);
                };
                ring("desc", desc.at, desc.len, guest);
                ring("avail.flags", avail.at, 2, guest);
                ring("avail.index", avail.at + 2, 2, guest);
                ring("avail.entry", avail.at + 4, avail.len - 6, guest);
                ring("used_event", avail.end() - 2, 2, guest);
                ring("used.flags", used.at, 2, pmm);
                ring("used.index", used.at + 2, 2, pmm);
                ring("used.entry", used.at + 4, used.len - 6, pmm);
                ring("avail_event", used.end() - 2, 2, pmm);
            }
            let both = Some(Writer::Both);
            map.put(format!("{device}.pool"), place.pool.at, place.pool.len, Area::Pool, both, index);
        }
        map
    }

    fn put(&mut self, name: String, at: u32, len: u32, area: Area, writer: Option<Writer>, device: usize) {
        let id = match self.names.iter().position(|known| *known == name) {
            Some(id) => id,
            None => {
                self.names.push(name);
                self.names.len() - 1
            }
        };
        let place = Place { name: id as u16, area, writer, device: device as u8 };
        for half in at / 2..(at + len).div_ceil(2) {
            self.halves[half as usize] = place;
        }
    }

    /// What the half word at `at` is.
    #[inline]
    pub fn place(&self, at: u32) -> Place {
        self.halves[(at / 2) as usize]
    }
    /// The name of one place.
    pub fn name(&self, at: u32) -> &str {
        self.halves.get((at / 2) as usize).map_or("outside", |place| self.name_of(place.name))
    }
    /// The name with this index.
    pub fn name_of(&self, name: u16) -> &str {
        self.names.get(usize::from(name)).map_or("?", String::as_str)
    }
    /// How many names there are.
    pub fn names(&self) -> usize {
        self.names.len()
    }
}
