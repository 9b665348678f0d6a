//! Everything that a set of links needs from the machine is opened here, in one stage, before a thread starts and
//! before any guest's word is read. What fails here leaves nothing behind; what comes after needs no path any more.

use std::path::Path;

use hvl_shared_abi::header::{MAGIC, Window, reg};
use hvl_shared_abi::layout::Layout;
use hvl_shared_abi::mem::Mem;

use crate::apart::{self, Tree};
use crate::descriptors::Shares;
use crate::doorbell::{self, HostDoorbell};
use crate::failure::Failure;
use crate::host::{Hosted, StateRecorder, net};
use crate::observe::{Control, LinkStatus, RegionStatus, default_directory};
use crate::options::{Claim, DeviceDescription, LinkDescription, Part, Run, claims};
use crate::region::Mapping;
use crate::sys::{Signals, ignore_signals};

/// One link, opened.
pub struct OpenLink {
    /// What it was opened for.
    pub description: LinkDescription,
    /// Where everything lies in its region.
    pub layout: Layout,
    /// Its memory, locked.
    pub mapping: Mapping,
    /// Its doorbell.
    pub doorbell: Box<dyn HostDoorbell>,
    /// Its devices, in the order of the layout.
    pub devices: Vec<Hosted>,
    /// Where a plain guest's state is kept.
    pub state: Option<StateRecorder>,
}

/// All links of one program, opened.
pub struct Opened {
    /// The links.
    pub links: Vec<OpenLink>,
    /// The control socket.
    pub control: Control,
    /// The signals: from here on they are read, and end nothing by themselves.
    pub(crate) signals: Signals,
    /// What the user should know of how descriptors were shared out.
    pub note: Option<String>,
}

/// Opens the regions first, since their locks tell one PMM from another; the terminal last, so that no message of
/// this stage is written to a raw one, and after the signals, so that none ends the program without restoring it.
///
/// # Errors
///
/// [`Failure::Refused`] with the option and what the machine refused.
pub fn open(run: &Run) -> Result<Opened, Failure> {
    let first = run.links.first().map_or("pmm", |link| link.name.as_str());
    let control = Control::place(run.control.as_deref(), first)?;
    keep_apart(run, &control)?;
    ignore_signals();
    let shares = Shares::of(run)?;
    let mut links = Vec::with_capacity(run.links.len());
    for description in &run.links {
        let layout = description.layout().map_err(|error| Failure::Misuse(error.to_string()))?;
        let mapping = Mapping::open(description, &run.links)?;
        let doorbell = doorbell::open(&description.doorbell)?;
        let state = description
            .state
            .as_deref()
            .map(|path| StateRecorder::open(path, description, &layout))
            .transpose()?;
        links.push(OpenLink {
            description: description.clone(),
            layout,
            mapping,
            doorbell,
            devices: Vec::new(),
            state,
        });
    }
    let mut control = Control::open(&control)?;
    control.limit(shares.control);
    let signals = Signals::new().map_err(no_descriptors)?;
    for (link, shares) in links.iter_mut().zip(&shares.devices) {
        let devices = link.description.devices.iter().zip(shares);
        link.devices =
            devices.map(|(device, share)| Hosted::open(device, *share)).collect::<Result<_, _>>()?;
    }
    Ok(Opened { links, control, signals, note: shares.note })
}

/// Checks that nothing of the run lies where a guest may change it, and that no two parts of it meet, before the first
/// of them is opened.
fn keep_apart(run: &Run, control: &Path) -> Result<(), Failure> {
    let trees = Tree::among(run.links.iter().flat_map(|link| &link.devices));
    let mut all = claims(&run.links, Some(control));
    let input =
        |path: &Path, option: &str| Claim { path: path.into(), option: option.into(), part: Part::Input };
    all.extend(run.config.as_deref().map(|path| input(path, "--config")));
    // `pmm status` believes what it finds there, whether this run has anything in it or not.
    all.push(input(&default_directory(), "the directory for sockets that are given no path"));
    let cards = run.links.iter().flat_map(|link| &link.devices).filter_map(|device| match device {
        DeviceDescription::Network(card) => Some(card),
        _ => None,
    });
    all.extend(cards.filter_map(net::program).map(|path| input(&path, "the program passt")));
    apart::check(&all, &trees)
}

/// A process that may have no more descriptors.
pub(crate) fn no_descriptors(error: std::io::Error) -> Failure {
    Failure::Refused(format!("no descriptors to be had ({error}); raise 'ulimit -n'"))
}

impl OpenLink {
    /// Zeroes the region where that is asked for, or where there is no header of ours: then no guest can be attached,
    /// and what lies there must not be taken for one.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if the machine refuses.
    pub fn prepare(&self) -> Result<(), Failure> {
        let found = self.mapping.region().read32(Window::LINK.at(reg::MAGIC));
        if self.description.fresh || found != MAGIC { self.mapping.zero() } else { Ok(()) }
    }

    /// What is known of it before it is served.
    pub fn first_status(&self) -> LinkStatus {
        let (link, region) = (&self.description, self.mapping.region());
        LinkStatus {
            name: link.name.clone(),
            state: "starting".into(),
            profile: "none".into(),
            region: RegionStatus {
                base: link.base,
                size: link.size,
                source: self.mapping.name().into(),
                path: self.mapping.path().display().to_string(),
                offset: self.mapping.offset(),
                attribute: region.attribute().name().into(),
            },
            ..LinkStatus::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Command, parse};

    fn run(line: &str) -> Run {
        match parse(line.split_whitespace().map(Into::into)) {
            Ok(Command::Run(run)) => run,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn a_region_without_our_header_is_zeroed_and_one_with_it_is_not() {
        let path = std::env::temp_dir().join(format!("pmm-open-region-{}", std::process::id()));
        let control = std::env::temp_dir().join(format!("pmm-open-control-{}", std::process::id()));
        let line = format!(
            "pmm run --no-dtb --shmem-addr 1M --shmem-size 64K --rng --shmem-file {} --control {}",
            path.display(),
            control.display()
        );
        let word = |fresh: &str, first: u32| {
            let mut bytes = vec![0xaa; 0x10000];
            bytes[..4].copy_from_slice(&first.to_le_bytes());
            std::fs::write(&path, bytes).unwrap();
            let opened = open(&run(&format!("{line} {fresh}"))).unwrap();
            opened.links[0].prepare().unwrap();
            opened.links[0].mapping.region().read32(0x8000)
        };
        assert_eq!(word("", 0x1234_5678), 0);
        assert_eq!(word("", MAGIC), 0xaaaa_aaaa);
        assert_eq!(word("--fresh", MAGIC), 0);
        std::fs::remove_file(&path).unwrap();
        assert!(!control.exists());
    }
}
