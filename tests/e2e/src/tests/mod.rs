//! The tests, by name.

mod device;
mod devices;
mod diagnosis;
mod everything;
mod files;
mod idle;
mod messages;
mod net;
mod order;
mod plain;
mod restarts;
mod several;
mod sockets;
mod stuck;
mod transfer;

use anyhow::Result;

use crate::Tools;
use crate::guest::Kind;

/// A test.
pub struct Test {
    /// As it is asked for.
    pub name: &'static str,
    /// What it shows, in a line.
    pub about: &'static str,
    /// Whether it needs the emulated board.
    pub board: bool,
    /// Runs it.
    pub run: fn(&Tools) -> Result<()>,
}

/// All of them, the quick ones first.
pub const TESTS: &[Test] = &[
    Test {
        name: "messages",
        about: "what pmm says, and its exit codes, when the machine refuses",
        board: false,
        run: messages::run,
    },
    Test {
        name: "diagnosis",
        about: "what the pmm says of a guest with a wrong base, size, offset or queue length, after 3 s",
        board: false,
        run: diagnosis::run,
    },
    Test {
        name: "device-half",
        about: "the PMM on the board, with no std and no heap, and a process as its guest",
        board: true,
        run: device::run,
    },
    Test {
        name: "order-host",
        about: "start order does not matter, with the shell as a process",
        board: false,
        run: |tools| order::run(tools, Kind::Host),
    },
    Test {
        name: "order-r5",
        about: "start order does not matter, with the shell on the board",
        board: true,
        run: |tools| order::run(tools, Kind::R5),
    },
    Test {
        name: "several",
        about: "one pmm, two guests: killing one does not disturb the other",
        board: false,
        run: several::run,
    },
    Test {
        name: "net-joined",
        about: "two links with a cable between them: ping, 16 MiB over TCP, deaths of a pmm",
        board: false,
        run: net::joined,
    },
    Test {
        name: "net-qemu",
        about: "two links with a QEMU between them that has nothing but network back ends: ping, 16 MiB over TCP",
        board: true,
        run: net::through_qemu,
    },
    Test {
        name: "net-tap",
        about: "a TAP in a network namespace: ping -f, HTTP, frames of 64 KiB",
        board: false,
        run: net::tap,
    },
    Test {
        name: "stuck-files",
        about: "a read that the kernel holds holds up nothing else, also through a reboot of the guest",
        board: false,
        run: stuck::files,
    },
    Test {
        name: "stuck-sockets",
        about: "a client that does not read holds up nothing else, also through a reboot of the guest",
        board: false,
        run: stuck::sockets,
    },
    Test {
        name: "stuck-tap",
        about: "a TAP that is full holds up nothing else, also through a reboot of the guest",
        board: false,
        run: stuck::tap,
    },
    Test {
        name: "plain",
        about: "an OpenAMP front-end in a process, served through SIGKILLs of the pmm",
        board: false,
        run: plain::run,
    },
    Test {
        name: "idle-host",
        about: "an idle pmm sleeps",
        board: false,
        run: |tools| idle::run(tools, Kind::Host),
    },
    Test {
        name: "idle-r5",
        about: "an idle pmm sleeps, and so does the board",
        board: true,
        run: |tools| idle::run(tools, Kind::R5),
    },
    Test {
        name: "idle-async",
        about: "the same with tasks of an executor on the board",
        board: true,
        run: |tools| idle::run(tools, Kind::Async),
    },
    Test {
        name: "proxy-host",
        about: "16 MiB each way through doorbells that fail, with the shell as a process",
        board: false,
        run: |tools| transfer::run(tools, Kind::Host, 16),
    },
    Test {
        name: "proxy-r5",
        about: "2 MiB each way through doorbells that fail, with the shell on the board",
        board: true,
        run: |tools| transfer::run(tools, Kind::R5, 2),
    },
    Test {
        name: "files-host",
        about: "files across 9p, and 64 MiB that are whole though ten pmms were killed meanwhile; a process",
        board: false,
        run: |tools| files::run(tools, Kind::Host, 64),
    },
    Test {
        name: "files-r5",
        about: "files across 9p, and 16 MiB that are whole though ten pmms were killed meanwhile; the board",
        board: true,
        run: |tools| files::run(tools, Kind::R5, 16),
    },
    Test {
        name: "devices-host",
        about: "all five devices, and again after 40 deaths; a process",
        board: false,
        run: |tools| devices::run(tools, Kind::Host, 16, 40),
    },
    Test {
        name: "devices-r5",
        about: "all five devices, and again after 12 deaths; the board",
        board: true,
        run: |tools| devices::run(tools, Kind::R5, 4, 12),
    },
    Test {
        name: "everything-host",
        about: "a script for all five devices in one start: 16 MiB of files, 10,000 entries, DHCP, curl, socat, and deaths of passt; a process",
        board: false,
        run: |tools| everything::run(tools, "everything-host", Kind::Host),
    },
    Test {
        name: "everything-r5",
        about: "a script for all five devices in one start: 16 MiB of files, 10,000 entries, DHCP, curl, socat, and deaths of passt; the board",
        board: true,
        run: |tools| everything::run(tools, "everything-r5", Kind::R5),
    },
    Test {
        name: "restarts-host",
        about: "200 reboots, 200 SIGKILLs of the pmm, 200 of the guest, while lines flow both ways",
        board: false,
        run: |tools| restarts::run(tools, Kind::Host, restarts::HOST),
    },
    Test {
        name: "restarts-r5",
        about: "50 reboots, 10 resets, 50 SIGKILLs of the pmm, 10 of the emulator, while lines flow both ways",
        board: true,
        run: |tools| restarts::run(tools, Kind::R5, restarts::R5),
    },
];
