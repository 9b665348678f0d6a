//! A plain guest, as registers in a file, and what is said of it.

use super::*;

const STATUS: u64 = 0x70;
const QUEUE_PFN: u64 = 0x40;
const ACK: u32 = 0xaabb_aabb;
/// Its ring, of two entries.
const RING: u64 = 0x1_0000;

struct Guest {
    ddr: File,
    bell: UnixStream,
}

impl Guest {
    fn put(&mut self, at: u64, value: u32) {
        self.ddr.write_all_at(&value.to_le_bytes(), at).unwrap();
        self.bell.write_all(&[1]).unwrap();
    }

    fn boot(&mut self, dir: &Dir, features: u32, state: &str) {
        self.ddr.write_all_at(&[0; 0x3000], RING).unwrap();
        for (at, value) in [(STATUS, 1), (0x20, features), (0x30, 0), (0x38, 2), (QUEUE_PFN, 0x1_0010)] {
            self.put(at, value);
        }
        self.put(STATUS, 4);
        dir.wait_for(&format!("links.0.devices.rng.state={state}"));
    }
}

impl Guest {
    fn boot_console(&mut self, dir: &Dir) {
        self.put(STATUS, 1);
        for queue in 0..2u32 {
            self.put(0x30, queue);
            self.put(0x38, 2);
            self.put(QUEUE_PFN, 0x1_0010 + 2 * queue);
            let mut pfn = [0; 4];
            while u32::from_le_bytes(pfn) != ACK {
                self.bell.read_exact(&mut [0]).expect("a doorbell for the acknowledgement");
                self.ddr.read_exact_at(&mut pfn, QUEUE_PFN).unwrap();
            }
        }
        self.put(STATUS, 4);
        dir.wait_for("links.0.devices.console.state=running");
    }

    /// The console's `count`th output, from 0: one descriptor, in the ring of the transmit queue.
    fn say(&mut self, count: u16, text: &[u8]) {
        let (ring, buffer) = (RING + 0x2000, RING + 0x8000);
        self.ddr.write_all_at(text, buffer).unwrap();
        self.ddr.write_all_at(&(0x1000_0000 + buffer).to_le_bytes(), ring).unwrap();
        self.ddr.write_all_at(&(text.len() as u32).to_le_bytes(), ring + 8).unwrap();
        self.ddr.write_all_at(&count.wrapping_add(1).to_le_bytes(), ring + 34).unwrap();
        self.bell.write_all(&[1]).unwrap();
    }
}

#[test]
fn a_line_of_the_log_does_not_land_on_the_guests_prompt() {
    let dir = Dir::new();
    let listener = UnixListener::bind(dir.path("bell")).unwrap();
    let (mut user, terminal) = terminal();
    let again = || Stdio::from(terminal.try_clone().unwrap());
    let mut command = dir.run(&format!("--console stdio --doorbell unix-stream:{}", dir.text("bell")));
    let running = Running(command.stdin(again()).stdout(again()).stderr(again()).spawn().unwrap());
    dir.wait_for("links.0.state=serving");
    let (bell, _) = listener.accept().unwrap();
    bell.set_read_timeout(Some(GUARD)).unwrap();
    let ddr = File::options().read(true).write(true).open(dir.path("ddr")).unwrap();
    let mut guest = Guest { ddr, bell };
    guest.boot_console(&dir);
    let mut seen = String::new();
    let mut until = |text: &str| {
        while !seen.contains(text) {
            let mut ready = [rustix::event::PollFd::new(&user, rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            let some = rustix::event::poll(&mut ready, Some(&limit)).unwrap();
            assert!(some > 0, "'{text}' does not come: {seen:?}");
            let mut bytes = [0; 512];
            let got = user.read(&mut bytes).unwrap();
            seen += &String::from_utf8_lossy(&bytes[..got]);
        }
        seen.clone()
    };
    until("console: running");
    guest.say(0, b"shell> ping 10.");
    dir.wait_for("links.0.devices.console.queues.1.completed=1");
    // The peer leaves and is there again, which the log tells.
    drop(guest);
    let text = until("the peer is there\r\nshell> ping 10.");
    let (_, text) = text.split_once("shell> ping 10.").unwrap();
    let lines: Vec<&str> = text.split("\r\n").map(|line| line.trim_end_matches('\r')).collect();
    // The end of its line, a line of the log, and the line again.
    assert!(
        matches!(lines[..], ["", log, "shell> ping 10."] if log.starts_with("INFO  link0: doorbell")),
        "{text:?}"
    );
    assert_eq!(running.end_quietly(), Some(0));
}

#[test]
fn a_queue_has_the_size_that_its_guest_chose() {
    let dir = Dir::new();
    let listener = UnixListener::bind(dir.path("bell")).unwrap();
    let running = dir.start(&format!("--rng --doorbell unix-stream:{}", dir.text("bell")));
    let (bell, _) = listener.accept().unwrap();
    let ddr = File::options().read(true).write(true).open(dir.path("ddr")).unwrap();
    let queue = |status: serde_json::Value| status["links"][0]["devices"][0]["queues"][0].clone();
    let none = queue(dir.wait_for("links.0.devices.rng.state=off"));
    assert_eq!((&none["size"], &none["max_size"]), (&0.into(), &8.into()), "nobody has set it up");
    let mut guest = Guest { ddr, bell };
    guest.boot(&dir, 0, "running");
    let chosen = queue(dir.wait_for("links.0.devices.rng.state=running"));
    assert_eq!((&chosen["size"], &chosen["max_size"]), (&2.into(), &8.into()));
    let text = pmm().args(["status", "--control", &dir.text("control")]).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("queue 0: size 2, max_size 8; in_flight 0"), "{text}");
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn a_broken_plain_device_says_what_it_waits_for() {
    let dir = Dir::new();
    let listener = UnixListener::bind(dir.path("bell")).unwrap();
    let mut running = dir.start(&format!("--rng --doorbell unix-stream:{}", dir.text("bell")));
    let (bell, _) = listener.accept().unwrap();
    let ddr = File::options().read(true).write(true).open(dir.path("ddr")).unwrap();
    let mut guest = Guest { ddr, bell };
    let mut log = BufReader::new(running.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut told = |text: &str| {
        let line = log.find(|line| line.contains("rng: ") && !line.ends_with("running"));
        assert!(
            line.as_ref().is_some_and(|line| line.contains(text)),
            "'{text}' was to be said, not {line:?}"
        );
    };

    guest.boot(&dir, 0, "running");
    // The available index runs ahead of the queue.
    guest.ddr.write_all_at(&1000u16.to_le_bytes(), RING + 34).unwrap();
    guest.bell.write_all(&[1]).unwrap();
    dir.wait_for("links.0.devices.rng.state=needs-reset");
    let text = pmm().args(["status", "--control", &dir.text("control")]).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("the guest writes 0 to its Status"), "{text}");
    told("its rings are broken");
    told("needs-reset: its driver broke its rings");
    guest.put(STATUS, 0);
    told("off");

    guest.boot(&dir, 1 << 31, "features-refused");
    told("accepted features that were not offered");
    told("features-refused: its driver accepted features");
    guest.put(STATUS, 0);
    told("off");
    guest.boot(&dir, 0, "running");
    running.signal(Signal::TERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    let rest: Vec<String> = log.collect();
    assert!(
        !rest.iter().any(|line| line.contains("must-reboot") || line.contains("another pmm")),
        "{rest:?}"
    );
}

#[test]
fn a_guest_that_is_found_at_work_and_must_reboot_is_told_of() {
    let dir = Dir::new();
    let listener = UnixListener::bind(dir.path("bell")).unwrap();
    let options = format!("--rng --doorbell unix-stream:{}", dir.text("bell"));
    let mut running = dir.start(&options);
    let (bell, _) = listener.accept().unwrap();
    let ddr = File::options().read(true).write(true).open(dir.path("ddr")).unwrap();
    Guest { ddr, bell }.boot(&dir, 0, "running");
    // Without --state nothing is recorded of the guest, so the next pmm cannot take it up.
    running.signal(Signal::KILL);
    running.0.wait().unwrap();
    let mut running = dir.start(&options);
    let log = BufReader::new(running.0.stderr.take().unwrap());
    dir.wait_for("links.0.devices.rng.state=must-reboot");
    // The log is complete once the process has ended.
    running.signal(Signal::TERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    let lines: Vec<String> = log.lines().map(Result::unwrap).collect();
    assert!(lines.iter().any(|line| line.contains("rng: must-reboot: ")), "{lines:?}");
}

#[test]
fn output_that_a_file_refuses_waits_and_is_told_of() {
    use rustix::fs::{FileType, Mode, OFlags};
    let dir = Dir::new();
    let listener = UnixListener::bind(dir.path("bell")).unwrap();
    // A pipe without a reader answers with an error, as a broken disk does.
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, dir.path("out"), FileType::Fifo, mode, 0).unwrap();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let reader = || File::from(rustix::fs::open(dir.path("out"), flags, Mode::empty()).unwrap());
    let first = reader();
    let running =
        dir.start(&format!("--console file:{} --doorbell unix-stream:{}", dir.text("out"), dir.text("bell")));
    let (bell, _) = listener.accept().unwrap();
    bell.set_read_timeout(Some(GUARD)).unwrap();
    drop(first);
    let ddr = File::options().read(true).write(true).open(dir.path("ddr")).unwrap();
    let mut guest = Guest { ddr, bell };
    guest.boot_console(&dir);
    guest.say(0, b"hello");
    let status = dir.wait_for("links.0.devices.console.host!=open");
    let console = &status["links"][0]["devices"][0];
    assert!(console["host"].as_str().unwrap().starts_with("cannot be written (Broken pipe"), "{console}");
    assert_eq!(
        (&console["queues"][1]["in_flight"], &console["queues"][1]["completed"]),
        (&1.into(), &0.into())
    );
    let mut second = reader();
    dir.wait_for("links.0.devices.console.queues.1.completed=1");
    let mut bytes = [0; 8];
    let got = second.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..got], b"hello");
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("cannot be written (Broken pipe").count(), 1, "{said}");
    assert_eq!(said.matches("can be written again").count(), 1, "{said}");
}
