//! A plain guest, as registers in a file, and what is said of it.

use super::*;

const STATUS: u64 = 0x70;
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
        for (at, value) in [(STATUS, 1), (0x20, features), (0x30, 0), (0x38, 2), (0x40, 0x1_0010)] {
            self.put(at, value);
        }
        self.put(STATUS, 4);
        dir.wait_for(&format!("links.0.devices.rng.state={state}"));
    }
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
