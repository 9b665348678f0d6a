//! Where the split ring orders its accesses, found in its source.
//!
//! A site is named by half, function and kind of barrier, so that a test keeps its meaning when lines move; the line
//! is how [`crate::memory`] recognises it at run time. A list written by hand would not notice a new barrier.

/// The file whose barriers are tried.
pub const SOURCE: &str = include_str!("../../../shared-abi/src/ring/split.rs");

/// Which half of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    /// `DriverRing`.
    Driver,
    /// `DeviceRing`.
    Device,
}

/// Which ordering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Barrier {
    /// A store that hands over what is before it.
    Publish,
    /// A load that holds back what is after it.
    Observe,
    /// The fence between a store and a load.
    Settle,
}

/// One barrier in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// In which half.
    pub half: Half,
    /// In which function.
    pub function: &'static str,
    /// What kind.
    pub barrier: Barrier,
    /// On which line, counted from 1.
    pub line: u32,
}

/// Every barrier of the ring, in the order of the source.
pub fn all() -> Vec<Site> {
    let mut sites = Vec::new();
    let (mut half, mut function) = (None, "");
    for (line, text) in (1..).zip(SOURCE.lines()) {
        let text = text.trim();
        if text.starts_with("impl") {
            half = [("DriverRing", Half::Driver), ("DeviceRing", Half::Device)]
                .into_iter()
                .find_map(|(name, half)| text.contains(name).then_some(half));
        }
        if let Some((_, rest)) = text.split_once("fn ").filter(|_| !text.starts_with("//")) {
            function = rest.split(['<', '(']).next().unwrap_or_default();
        }
        let barriers = [
            (".publish16(", Barrier::Publish),
            (".publish32(", Barrier::Publish),
            (".observe16(", Barrier::Observe),
            (".observe32(", Barrier::Observe),
            (".settle()", Barrier::Settle),
        ];
        for (call, barrier) in barriers {
            for _ in text.split("//").next().unwrap_or_default().matches(call) {
                let half =
                    half.unwrap_or_else(|| panic!("line {line} of the ring orders outside both halves"));
                sites.push(Site { half, function, barrier, line });
            }
        }
    }
    sites
}

/// The one barrier of this kind in a function of a half.
pub fn find(half: Half, function: &str, barrier: Barrier) -> Site {
    let found: Vec<Site> = all()
        .into_iter()
        .filter(|site| (site.half, site.function, site.barrier) == (half, function, barrier))
        .collect();
    match found.as_slice() {
        [site] => *site,
        [] => panic!("{half:?}Ring::{function} has no {barrier:?} any more: remove its test"),
        _ => panic!("{half:?}Ring::{function} has several {barrier:?}: they need names of their own"),
    }
}
