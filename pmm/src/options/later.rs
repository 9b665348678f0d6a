//! Options of kvmtool that deserve an answer of their own: those that a later version will have, and those that mean
//! nothing on a link without a hypervisor.

use clap::Args;

use super::refusals::{Given, Refusals};
use super::value::Number;

/// Accepted so that command lines written for kvmtool work unchanged; each says in one line that it does nothing.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Accepted from kvmtool's command lines, without effect here")]
pub struct WithoutEffect {
    /// Serve a guest that needs no hypervisor: all that this program does
    #[arg(long)]
    pub pmm: bool,
    /// Hypervisor-less mode: all that this program does
    #[arg(long)]
    pub rsld: bool,
    /// The transport; `mmio` is the only one a link has
    #[arg(long, value_name = "mmio")]
    pub transport: Option<String>,
    /// The interrupt that wakes a guest under KVM; a link's doorbell is chosen with --doorbell
    #[arg(long, value_name = "N")]
    pub irq: Option<Number>,
    /// No file system of the host is shared here in any case
    #[arg(long)]
    pub debug_nohostfs: bool,
    /// The guest's system; a PMM does not need to know
    #[arg(long)]
    pub vxworks: bool,
    /// Processors of the guest; it has its own
    #[arg(long, value_name = "N")]
    pub cpus: Option<Number>,
    /// Memory of the guest beside the region; it has its own
    #[arg(long, value_name = "SIZE")]
    pub mem: Option<Number>,
    /// Boot parameters of the guest; it was started by somebody else
    #[arg(short = 'p', long = "params", value_name = "PARAMETERS", allow_hyphen_values = true)]
    pub params: Option<String>,
}

impl WithoutEffect {
    /// One line for each option that was given.
    pub(super) fn notes(&self, given: &Given, refusals: &mut Refusals) -> Vec<String> {
        if let Some(other) = self.transport.as_deref().filter(|t| *t != "mmio") {
            let text =
                format!("--transport {other}: a link has no bus; write '--transport mmio' or leave it out");
            refusals.add(given.place("transport"), text);
        }
        let given = [
            (self.pmm, "--pmm", "a PMM without a hypervisor is all this program is"),
            (self.rsld, "--rsld", "hypervisor-less mode is the only one"),
            (self.transport.is_some(), "--transport", "mmio is the only transport of a link"),
            (self.irq.is_some(), "--irq", "the guest is woken as --doorbell says"),
            (
                self.debug_nohostfs,
                "--debug-nohostfs",
                "nothing of the host's file system is shared but what --9p names",
            ),
            (self.vxworks, "--vxworks", "a PMM need not know the guest's system"),
            (self.cpus.is_some(), "--cpus", "the guest runs on processors of its own"),
            (self.mem.is_some(), "--mem", "the guest has memory of its own; --shmem-size is what is shared"),
            (self.params.is_some(), "-p", "the guest was started by somebody else, with its parameters"),
        ];
        let said = given.iter().filter(|(given, ..)| *given);
        said.map(|(_, option, why)| format!("{option} has no effect here: {why}")).collect()
    }
}

/// What a later version will have. Hidden from `--help`, refused in a sentence.
#[derive(Args, Clone, Debug, Default)]
pub struct Later {
    #[arg(long, hide = true)]
    vproxy: bool,
    #[arg(long, hide = true, num_args = 0..=1)]
    kernel: Option<Option<String>>,
}

impl Later {
    pub(super) fn refuse(&self, given: &Given, refusals: &mut Refusals) {
        let later = [
            ("vproxy", &self.vproxy.then_some(None), "the kernel's vhost devices"),
            ("kernel", &self.kernel, "starting the guest"),
        ];
        for (option, value, what) in later {
            if let Some(value) = value {
                let value = value.as_deref().map(|v| format!(" {v}")).unwrap_or_default();
                let text =
                    format!("--{option}{value}: {what} will come in a later version; leave this option out");
                refusals.add(given.place(option), text);
            }
        }
    }
}
