//! What each word of the region is called, and who may store it.
//!
//! Traces and the list of deaths speak of `EpochSeen` and `console.transmit.used.index`, never of offsets; and the
//! simulator knows for every word who writes it, so that a second writer is found at its first store. The list of
//! names is that of all kinds of devices, whichever a seed has, so that a place means the same in every seed.

use std::collections::HashMap;
use std::sync::LazyLock;

use hvl_shared_abi::header::{
    CONFIG, CONFIG_SIZE, DeviceId, HEADER_SIZE, MAX_DEVICES, REGISTERS, WINDOW_SIZE, Window, Writer, reg,
};
use hvl_shared_abi::layout::Layout;

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
    /// Its name, as an index for [`name_of`].
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

/// The devices that a link may have, and the names of their queues.
const DEVICES: [(DeviceId, &str, &[&str]); 5] = [
    (DeviceId::RNG, "rng", &["request"]),
    (DeviceId::CONSOLE, "console", &["receive", "transmit"]),
    (DeviceId::NET, "net", &["receive", "transmit"]),
    (DeviceId::VSOCK, "vsock", &["receive", "transmit", "event"]),
    (DeviceId::P9, "9p", &["request"]),
];
/// The name of a window without a device.
const UNUSED: &str = "unused";
/// The parts of a queue.
const PARTS: [&str; 9] = [
    "desc",
    "avail.flags",
    "avail.index",
    "avail.entry",
    "used_event",
    "used.flags",
    "used.index",
    "used.entry",
    "avail_event",
];

/// Whether a register of window 0 is the whole link's.
fn is_link_wide(register: u32) -> bool {
    (reg::PMM_EPOCH..=reg::EPOCH_SEEN).contains(&register)
        || (reg::PMM_BELL..=reg::DRIVER_SEEN).contains(&register)
}

/// All names, and where each stands in the list.
static NAMES: LazyLock<(Vec<String>, HashMap<String, u16>)> = LazyLock::new(|| {
    let mut names = vec!["nothing".to_string(), "LastWords".to_string()];
    let shared = REGISTERS.iter().filter(|register| is_link_wide(register.offset));
    names.extend(shared.map(|register| register.name.to_string()));
    for (device, queues) in
        DEVICES.iter().map(|(_, name, queues)| (*name, *queues)).chain([(UNUSED, &[][..])])
    {
        names.extend(REGISTERS.iter().map(|register| format!("{device}.{}", register.name)));
        names.extend(["config", "block", "pool"].map(|part| format!("{device}.{part}")));
        for queue in queues {
            names.extend(PARTS.map(|part| format!("{device}.{queue}.{part}")));
        }
    }
    let index = names.iter().cloned().zip(0..).collect();
    (names, index)
});

/// What a kind of device is called.
pub fn device_name(id: DeviceId) -> &'static str {
    DEVICES.iter().find(|(known, ..)| *known == id).map_or(UNUSED, |(_, name, _)| name)
}
/// The name with this index.
pub fn name_of(name: u16) -> &'static str {
    NAMES.0.get(usize::from(name)).map_or("?", String::as_str)
}
/// How many names there are.
pub fn names() -> usize {
    NAMES.0.len()
}

/// Names and writers of all words.
#[derive(Clone)]
pub struct Map {
    halves: Vec<Place>,
}

impl Map {
    /// Names everything in a region of `len` bytes.
    pub fn new(layout: &Layout, len: u32) -> Map {
        let nothing = Place { name: 0, area: Area::Nothing, writer: None, device: 0 };
        let mut map = Map { halves: vec![nothing; (len / 2) as usize] };
        let kind =
            |id| DEVICES.iter().find(|(known, ..)| *known == id).expect("a kind of device that has names");
        let kinds: Vec<_> = layout.devices().iter().map(|place| kind(place.spec.id)).collect();
        for index in 0..MAX_DEVICES {
            let Some(window) = Window::of(index) else { break };
            let device = kinds.get(index).map_or(UNUSED, |(_, name, _)| name);
            for register in REGISTERS {
                let name = match index == 0 && is_link_wide(register.offset) {
                    true => register.name.to_string(),
                    false => format!("{device}.{}", register.name),
                };
                // Its initial value is the PMM's, in a region where nobody has been.
                let writer = if register.offset == reg::QUEUE_SEL { Writer::Both } else { register.writer };
                map.put(&name, window.at(register.offset), 4, Area::Header, writer, index);
            }
            let name = format!("{device}.config");
            map.put(&name, window.at(CONFIG), CONFIG_SIZE, Area::Header, Writer::Pmm, index);
        }
        debug_assert!(MAX_DEVICES as u32 * WINDOW_SIZE <= HEADER_SIZE);
        let text = layout.panic_text();
        map.put("LastWords", text.at, text.len, Area::Block, Writer::Both, 0);
        for (index, (place, (_, device, queues))) in layout.devices().iter().zip(kinds).enumerate() {
            let (block, pool) = (place.block, place.pool);
            map.put(&format!("{device}.block"), block.at, block.len, Area::Block, Writer::Pmm, index);
            map.put(&format!("{device}.pool"), pool.at, pool.len, Area::Pool, Writer::Both, index);
            for (queue, name) in place.queues().zip(*queues) {
                let [desc, avail, used] = queue.extents();
                let places = [
                    (desc.at, desc.len, Writer::Guest),
                    (avail.at, 2, Writer::Guest),
                    (avail.at + 2, 2, Writer::Guest),
                    (avail.at + 4, avail.len - 6, Writer::Guest),
                    (avail.end() - 2, 2, Writer::Guest),
                    (used.at, 2, Writer::Pmm),
                    (used.at + 2, 2, Writer::Pmm),
                    (used.at + 4, used.len - 6, Writer::Pmm),
                    (used.end() - 2, 2, Writer::Pmm),
                ];
                for (part, (at, len, writer)) in PARTS.into_iter().zip(places) {
                    map.put(&format!("{device}.{name}.{part}"), at, len, Area::Ring, writer, index);
                }
            }
        }
        map
    }

    fn put(&mut self, name: &str, at: u32, len: u32, area: Area, writer: Writer, device: usize) {
        let name = *NAMES.1.get(name).expect("a name of the list");
        let place = Place { name, area, writer: Some(writer), device: device as u8 };
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
    pub fn name(&self, at: u32) -> &'static str {
        self.halves.get((at / 2) as usize).map_or("outside", |place| name_of(place.name))
    }
}
