//! The shell over the real frontend, against the PMM's own devices, all in this process and in made-up time.

use std::boxed::Box;
use std::collections::VecDeque;
use std::string::{String, ToString};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::vec::Vec;
use std::{format, vec};

use hvl_frontend::device::console::{ConsoleStorage, Options};
use hvl_frontend::device::net::{Net, NetStorage};
use hvl_frontend::device::p9::{FilesStorage, Options as FilesOptions};
use hvl_frontend::device::rng::RngStorage;
use hvl_frontend::device::vsock::{Vsock, VsockStorage};
use hvl_frontend::{Clock, Doorbell, Link, LinkStorage};
use hvl_pmm::device::net::{BUFFER, Card, Net as NetDevice};
use hvl_pmm::device::{console::Console as ConsoleDevice, rng::Rng as RngDevice};
use hvl_pmm::host::{ByteEnd, EndError, Entropy, FrameEnd};
use hvl_pmm::link::{Link as Pmm, LinkPlan};
use hvl_shared_abi::ring::split::DeviceSlot;
use hvl_shared_abi::wire::net::Offload;
use hvl_shared_abi::{Attribute, DeviceSpec, Layout, Region, ShmRegion};

use super::*;

const BASE: u64 = 0x1000_0000;
const LEN: u32 = 1 << 20;

/// Time in microseconds, which only the test moves; and a doorbell that the PMM hears.
#[derive(Clone)]
struct TestBoard {
    region: Region,
    now: Arc<AtomicU64>,
    rang: Arc<AtomicBool>,
}

impl Doorbell for TestBoard {
    fn ring(&self) {
        self.rang.store(true, Ordering::Relaxed);
    }
}
impl Clock for TestBoard {
    fn now(&self) -> Instant {
        Instant::from_micros(self.now.load(Ordering::Relaxed))
    }
}
impl hvl_frontend::Board for TestBoard {
    type Mem = Region;
    fn mem(&self) -> &Region {
        &self.region
    }
    fn region(&self) -> ShmRegion {
        ShmRegion { base: BASE, len: LEN }
    }
}
/// Nobody waits here but who asks for files, which this PMM does not offer; time passes.
impl hvl_frontend::Wait for TestBoard {
    fn wait_for_doorbell(&self, deadline: Option<Instant>) {
        let until = deadline.map_or(1_000_000, Instant::micros);
        self.now.fetch_max(until, Ordering::Relaxed);
    }
}
impl Machine for TestBoard {
    const NAME: &'static str = "test";
    fn processor(&self, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        out.write_str("none at all")
    }
    fn wake_ups(&self) -> Option<u32> {
        Some(7)
    }
}

/// Whoever sits at the console.
#[derive(Default)]
struct User {
    keys: VecDeque<u8>,
    seen: Vec<u8>,
    /// The terminal takes no more than this; nothing, if there is no bound.
    room: Option<usize>,
    /// Most keys that come at a time.
    at_a_time: Option<usize>,
}

#[derive(Clone, Default)]
struct Terminal(Arc<Mutex<User>>);

impl Terminal {
    fn user<T>(&self, with: impl FnOnce(&mut User) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ByteEnd for Terminal {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        self.user(|user| {
            let room = user.room.unwrap_or(usize::MAX).min(bytes.len());
            if room == 0 {
                return Err(EndError::WouldBlock);
            }
            user.room = user.room.map(|all| all - room);
            user.seen.extend_from_slice(&bytes[..room]);
            Ok(room)
        })
    }
    fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        self.user(|user| {
            let count = into.len().min(user.keys.len()).min(user.at_a_time.unwrap_or(usize::MAX));
            for (to, key) in into.iter_mut().zip(user.keys.drain(..count)) {
                *to = key;
            }
            if count == 0 { Err(EndError::WouldBlock) } else { Ok(count) }
        })
    }
    fn size(&self) -> Option<(u16, u16)> {
        Some((80, 24))
    }
}

/// Counts up, so that a test knows which bytes came from here; or dries up.
#[derive(Clone, Default)]
struct Numbers(Arc<Mutex<(u8, bool)>>);

impl Entropy for Numbers {
    fn fill(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.1 {
            return Err(EndError::WouldBlock);
        }
        for byte in into.iter_mut() {
            *byte = state.0;
            state.0 = state.0.wrapping_add(1);
        }
        Ok(into.len())
    }
}

struct World {
    region: Region,
    pmm: Option<Pmm<'static, Region>>,
    terminal: Terminal,
    numbers: Numbers,
    now: Arc<AtomicU64>,
    rang: Arc<AtomicBool>,
    specs: &'static [DeviceSpec],
    link: Link<'static, TestBoard>,
    console: Console<'static, TestBoard>,
    rng: Rng<'static, TestBoard>,
    files: Files<'static, TestBoard>,
    network: Network<'static, TestBoard>,
    vsock: Vsock<'static, TestBoard>,
    shell: Shell,
}

/// The only other machine of the network, at 10.0.0.2: it says who it is, and answers echo requests.
#[derive(Default)]
struct Neighbour(VecDeque<Vec<u8>>);

impl FrameEnd for Neighbour {
    fn send(&mut self, _: &Offload, frame: &[u8]) -> Result<(), EndError> {
        const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
        const ADDRESS: [u8; 4] = [10, 0, 0, 2];
        let mut answer = frame.to_vec();
        answer[..6].copy_from_slice(&frame[6..12]);
        answer[6..12].copy_from_slice(&MAC);
        match (&frame[12..14], frame.get(20..22)) {
            // ARP: a request for this address.
            ([8, 6], Some([0, 1])) if frame[38..42] == ADDRESS => {
                answer[21] = 2;
                answer[22..28].copy_from_slice(&MAC);
                answer[28..32].copy_from_slice(&ADDRESS);
                answer[32..42].copy_from_slice(&frame[22..32]);
            }
            // An echo request to it: the answer has type 0 instead of 8, and the checksum grows by as much.
            ([8, 0], _) if frame[23] == 1 && frame[30..34] == ADDRESS && frame[34] == 8 => {
                answer[26..30].copy_from_slice(&frame[30..34]);
                answer[30..34].copy_from_slice(&frame[26..30]);
                answer[34] = 0;
                let (sum, carry) = u16::from_be_bytes([frame[36], frame[37]]).overflowing_add(0x0800);
                answer[36..38].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
            }
            _ => return Ok(()),
        }
        self.0.push_back(answer);
        Ok(())
    }
    fn receive(&mut self, into: &mut [u8]) -> Result<(Offload, usize), EndError> {
        let frame = self.0.pop_front().ok_or(EndError::WouldBlock)?;
        into[..frame.len()].copy_from_slice(&frame);
        Ok((Offload::default(), frame.len()))
    }
}

impl World {
    /// Shell and PMM, started, with the prompt on the terminal. Everything that is borrowed is leaked: tests are short.
    fn new() -> World {
        let mut world = World::offering(&[DeviceSpec::CONSOLE, DeviceSpec::RNG]);
        assert_eq!(world.settle(), Next::Wait(None));
        assert_eq!(world.seen(), "shell on test: 'help' lists the commands\ntest> ");
        world
    }

    /// The same with a PMM that offers these, console and entropy first.
    fn offering(specs: &'static [DeviceSpec]) -> World {
        let words: Vec<AtomicU32> = (0..LEN / 4).map(|_| AtomicU32::new(0)).collect();
        let region = Region::in_words(words.leak(), Attribute::Coherent);
        let now = Arc::new(AtomicU64::new(1));
        let rang = Arc::new(AtomicBool::new(false));
        let board = TestBoard { region, now: now.clone(), rang: rang.clone() };
        let storage = Box::leak(Box::new(LinkStorage::NEW));
        let link = Link::attach(storage, board).unwrap();
        let console_storage: &mut ConsoleStorage = Box::leak(Box::new(ConsoleStorage::NEW));
        let console = Console::open(&link, console_storage, Options::default()).unwrap();
        let rng_storage: &mut RngStorage = Box::leak(Box::new(RngStorage::NEW));
        let rng = Rng::open(&link, rng_storage).unwrap();
        let files_storage: &mut FilesStorage = Box::leak(Box::default());
        let files = Files::open(&link, files_storage, FilesOptions::default()).unwrap();
        let net_storage: &mut NetStorage = Box::leak(Box::default());
        let net = Net::open(&link, net_storage, hvl_frontend::device::net::Options::default()).unwrap();
        let network = Network::new(
            net,
            Box::leak(Box::new(crate::network::Storage::NEW)),
            Box::leak(Box::new(crate::network::Buffers::NEW)),
        );
        let vsock_storage: &mut VsockStorage = Box::leak(Box::default());
        let vsock = Vsock::open(&link, vsock_storage).unwrap();
        let mut world = World {
            region,
            pmm: None,
            terminal: Terminal::default(),
            numbers: Numbers::default(),
            now,
            rang,
            specs,
            link,
            console,
            rng,
            files,
            network,
            vsock,
            shell: Shell::new::<TestBoard>(),
        };
        world.start_pmm();
        world
    }

    fn start_pmm(&mut self) {
        let layout = Layout::place(self.specs, LEN).unwrap();
        let slots = |at: usize| {
            let count = Pmm::<Region>::slots_for(&layout.devices()[at]);
            vec![DeviceSlot::NEW; count].leak()
        };
        let console = Box::leak(Box::new(ConsoleDevice::new(self.terminal.clone())));
        let rng = Box::leak(Box::new(RngDevice::new(self.numbers.clone())));
        let plan = LinkPlan { layout, base: BASE, doorbell_can_lose: false, gone_after: None };
        let mut members: Vec<hvl_pmm::link::Member<'static, Region>> =
            vec![(console, slots(0)), (rng, slots(1))];
        if self.specs.len() > 2 {
            let buffer = || vec![0; BUFFER].into_boxed_slice();
            let card = Card { mac: [2, 0, 0, 0, 0, 1], mtu: None };
            let net = Box::leak(Box::new(NetDevice::new(Neighbour::default(), card, buffer(), buffer())));
            members.push((net, slots(2)));
        }
        self.pmm = Some(Pmm::publish(self.region, plan, members, None, None).unwrap());
    }

    /// Lets both sides run until both sleep, and says what the shell wants then. Neither is called again without being
    /// rung or having asked for it, so a doorbell that is missing stops everything here as it would on a board.
    fn settle(&mut self) -> Next {
        let mut next = Next::Again;
        let mut pmm_runs = true;
        for _ in 0..2_000_000 {
            let micros = self.now.fetch_add(10, Ordering::Relaxed);
            let mut guest_runs = next == Next::Again;
            if self.rang.swap(false, Ordering::Relaxed) || pmm_runs {
                let service = self.pmm.as_mut().map(|pmm| pmm.service(micros)).unwrap_or_default();
                pmm_runs = service.again;
                guest_runs |= service.ring;
            }
            if guest_runs {
                let now = Instant::from_micros(micros);
                self.link.poll();
                let mut devices = Devices {
                    console: &mut self.console,
                    rng: &mut self.rng,
                    files: &mut self.files,
                    network: &mut self.network,
                    vsock: &mut self.vsock,
                    work: &mut [0; 512],
                };
                next = self.shell.run(&mut devices, now);
                match next {
                    Next::Again => {}
                    Next::Wait(_) if self.link.prepare_sleep() => next = Next::Again,
                    Next::Wait(_) => {}
                    end => return end,
                }
            }
            if next != Next::Again && !pmm_runs && !self.rang.load(Ordering::Relaxed) {
                return next;
            }
        }
        panic!("it never comes to rest; seen so far: {:?}", self.seen());
    }

    fn seen(&self) -> String {
        self.terminal.user(|user| String::from_utf8(core::mem::take(&mut user.seen)).unwrap())
    }

    /// Types, lets everything come to rest, and returns what was seen.
    fn types(&mut self, keys: impl AsRef<[u8]>) -> String {
        self.terminal.user(|user| user.keys.extend(keys.as_ref()));
        self.settle();
        self.seen()
    }

    /// Runs a command that succeeds; returns what it printed.
    fn runs(&mut self, command: &str) -> String {
        let seen = self.types(format!("{command}\r"));
        let output = seen.strip_prefix(&format!("{command}\n")).and_then(|seen| seen.strip_suffix("test> "));
        output.unwrap_or_else(|| panic!("{command:?} did not succeed: {seen:?}")).to_string()
    }

    /// Types, and lets time pass until there is a prompt; returns what was seen.
    fn plays_out(&mut self, keys: &str) -> String {
        let mut seen = self.types(keys);
        for _ in 0..10_000 {
            if seen.ends_with("> ") {
                return seen;
            }
            self.now.fetch_add(10_000, Ordering::Relaxed);
            self.settle();
            seen += &self.seen();
        }
        panic!("{keys:?} has no end: {seen:?}");
    }

    /// Runs a command that fails; returns its last line without `error: `.
    fn fails(&mut self, command: &str) -> String {
        let seen = self.types(format!("{command}\r"));
        let said = seen.strip_suffix("\ntest (failed)> ").and_then(|seen| seen.rsplit_once("error: "));
        said.unwrap_or_else(|| panic!("{command:?} did not fail: {seen:?}")).1.to_string()
    }
}

#[test]
fn commands_succeed_and_the_prompt_says_so() {
    let mut world = World::new();
    assert_eq!(world.runs(""), "");
    assert_eq!(world.runs("echo hello"), "hello\n");
    assert_eq!(world.runs("line 7"), "got 7\n");
    assert!(world.runs("help").lines().count() > 10);
    let about = world.runs("about");
    for line in [
        "board      test",
        "processor  none at all",
        "profile    extended",
        "epochs     PMM 2, driver 1",
        "memory     1048576 bytes at 0x10000000, coherent",
        "console    running, 80 by 24 characters",
        "entropy    running",
        "files      not offered by the PMM",
        "network    not offered by the PMM",
        "sockets    not offered by the PMM",
    ] {
        assert!(about.lines().any(|said| said == line), "{line:?} is missing in {about:?}");
    }
    let link = world.runs("link");
    assert!(link.contains("sessions      1\n") && link.contains("wake_ups      7\n"), "{link}");
}

#[test]
fn random_bytes_are_those_of_the_device() {
    let mut world = World::new();
    assert_eq!(world.runs("rand 0"), "");
    let hex: String = (0..70u8).map(|byte| format!("{byte:02x}")).collect();
    let lines = world.runs("rand 70");
    assert_eq!(lines, format!("{}\n{}\n{}\n", &hex[..64], &hex[64..128], &hex[128..]));
    assert_eq!(world.runs("rand 8192").lines().count(), 256);
}

#[test]
fn mistakes_are_sentences() {
    let mut world = World::new();
    assert_eq!(world.fails("dir"), "there is no command 'dir'; 'help' lists them");
    assert_eq!(world.fails("ls"), "the link is down; no PMM serves files at the moment");
    assert_eq!(world.fails("rand much"), "write 'rand N'");
    assert!(world.fails("bench rng").starts_with("write 'bench 9p [N], bench vsock PORT [N], or bench net"));
    assert_eq!(world.fails("bench 9p"), "the link is down; no PMM serves files at the moment");
    assert_eq!(world.fails("bench vsock 9"), "the link is down; no PMM serves sockets at the moment");
    assert_eq!(world.fails("bench net"), "there is no gateway; 'ip' tells the board's address");
    assert_eq!(
        world.fails("bench net 10.0.0.1 7"),
        "there is no way to 10.0.0.1; 'ip' tells the board's address"
    );
    assert_eq!(world.fails("rand 8193"), "at most 8192 random bytes at a time");
    // An empty line changes nothing, a command that succeeds does.
    assert_eq!(world.types("\r"), "\ntest (failed)> ");
    world.runs("echo");
    let long = "x".repeat(LINE + 40);
    let seen = world.types(format!("{long}\r"));
    assert!(seen.ends_with("\nerror: a line has at most 160 bytes\ntest (failed)> "), "{seen:?}");
}

#[test]
fn a_line_can_be_edited_and_cancelled() {
    let mut world = World::new();
    assert_eq!(world.types("ecxx\x7f\x7fho a\r"), "ecxx\x08 \x08\x08 \x08ho a\na\ntest> ");
    assert_eq!(world.types("nonsense\x03"), "nonsense^C\ntest> ");
    assert_eq!(world.types("nonsense\x15echo b\r"), "nonsense\r\x1b[Jtest> echo b\nb\ntest> ");
    // An earlier one, and a change in its middle; the words that begin alike.
    assert_eq!(world.types("\x1b[A\x1b[D"), "\r\x1b[Jtest> echo b\r\x1b[Jtest> echo b\r\x1b[11C");
    assert_eq!(world.types("a\r"), "\r\x1b[Jtest> echo ab\r\x1b[12C\nab\ntest> ");
    assert_eq!(
        world.types("m\td\r"),
        "mkdir d\nerror: the link is down; no PMM serves files at the moment\ntest (failed)> "
    );
    assert_eq!(world.types("li\t\t\x15"), "lin\nline  link\ntest (failed)> lin\r\x1b[Jtest (failed)> ");
    assert_eq!(world.types("echo\r"), "echo\n\ntest> ");
    // A line of two rows, left from its begin.
    let long = format!("echo {}", "x".repeat(100));
    assert!(world.types(format!("{long}\x01\r")).contains("\r\x1b[1A\x1b[6C\x1b[1B\nxxx"));
    // Two commands in one paste.
    assert_eq!(world.types("echo a\necho b\n"), "echo a\na\ntest> echo b\nb\ntest> ");
}

#[test]
fn floods_are_complete_on_a_terminal_of_any_speed() {
    let mut world = World::new();
    for (size, bytes) in [("0", 0), ("1", 1), ("64", 64), ("1000", 1000), ("300K", 300 << 10)] {
        let seen = world.runs(&format!("flood {size}"));
        let (flood, rest) = seen.split_at(bytes);
        assert!(flood.bytes().eq((0..bytes as u32).map(pattern::byte)), "flood {size}");
        let mut sum = pattern::sum();
        sum.update(flood.as_bytes());
        let said = format!("flood: {bytes} bytes, CRC-32 {:08x}\n", sum.finalize());
        assert_eq!(rest.trim_start_matches('\n'), said);
    }
    // A terminal that takes a few bytes at a time and then stops: the shell sleeps, and nothing is lost.
    world.terminal.user(|user| user.room = Some(0));
    assert_eq!(world.types("flood 40K\r"), "");
    let mut seen = String::new();
    while !seen.ends_with("test> ") {
        world.terminal.user(|user| user.room = Some(777));
        assert_eq!(world.settle(), Next::Wait(None));
        let more = world.seen();
        assert!(!more.is_empty(), "it stopped after {} bytes", seen.len());
        seen += &more;
    }
    assert_eq!(
        seen.len(),
        "flood 40K\n".len() + (40 << 10) + "flood: 40960 bytes, CRC-32 01234567\ntest> ".len()
    );
}

#[test]
fn ctrl_c_ends_a_job_and_what_is_typed_ahead_is_kept() {
    let mut world = World::new();
    world.terminal.user(|user| user.room = Some(5000));
    world.types("count 1\r");
    world.terminal.user(|user| user.keys.extend(b"junk\x03echo after\r"));
    world.terminal.user(|user| user.room = None);
    world.settle();
    let seen = world.seen();
    assert!(seen.ends_with("^C\nerror: cancelled\ntest (failed)> echo after\nafter\ntest> "), "{seen:?}");
    // Type-ahead during a job that ends by itself.
    let seen = world.types("flood 128K\recho next\r");
    assert!(seen.ends_with("test> echo next\nnext\ntest> "));
}

#[test]
fn sinks_take_exactly_their_bytes() {
    let mut world = World::new();
    assert_eq!(world.runs("sink 0"), "sink: 0 bytes, CRC-32 00000000\n");
    for at_a_time in [None, Some(1), Some(100)] {
        world.terminal.user(|user| user.at_a_time = at_a_time);
        // Data may be anything: line ends, Ctrl-C.
        let data: Vec<u8> = (0..3000u32).map(|at| (at * 7 + at / 256) as u8).collect();
        let mut sum = pattern::sum();
        sum.update(&data);
        let mut keys = b"sink 3000\r".to_vec();
        keys.extend_from_slice(&data);
        keys.extend_from_slice(b"echo after\r");
        let said = format!("sink: 3000 bytes, CRC-32 {:08x}\n", sum.finalize());
        assert_eq!(world.types(keys), format!("sink 3000\n{said}test> echo after\nafter\ntest> "));
    }
    // The first byte is data even where it is the line feed of an Enter.
    // However many steps that takes: what is said last does not wait until somebody rings.
    world.terminal.user(|user| user.at_a_time = None);
    for len in (250..20_000).step_by(250) {
        let mut keys = format!("sink {len}\r").into_bytes();
        keys.resize(keys.len() + len, b'x');
        let said = world.types(keys);
        assert!(said.contains(&format!("\nsink: {len} bytes, ")), "{said}");
    }
    assert_eq!(world.types("sink 2\r\n\r"), "sink 2\nsink: 2 bytes, CRC-32 c58786c8\ntest> ");
}

#[test]
fn numbered_lines_flow_both_ways() {
    let mut world = World::new();
    let all: String = (8..=2000).map(|n| format!("n {n}\n")).collect();
    assert_eq!(world.runs("count 8 2000"), format!("{all}count: 1993 lines printed, 0 answered\n"));
    assert_eq!(world.runs(&format!("count {}", u64::MAX)).lines().count(), 2);
    // With answers between, each whole.
    world.terminal.user(|user| user.room = Some(2000));
    let mut seen = world.types("count 1\r");
    let lines: String = (1..=50).map(|n| format!("line {n}\r")).collect();
    world.terminal.user(|user| {
        user.keys.extend(lines.as_bytes());
        user.room = Some(60_000);
    });
    world.settle();
    world.terminal.user(|user| {
        user.keys.push_back(CANCEL);
        user.room = None;
    });
    world.settle();
    seen += &world.seen();
    let (mut n, mut got) = (0, 0);
    for line in seen.lines() {
        if let Some(number) = line.strip_prefix("n ") {
            n += 1;
            assert_eq!(number, n.to_string());
        } else if let Some(number) = line.strip_prefix("got ") {
            got += 1;
            assert_eq!(number, got.to_string());
        }
    }
    assert!(n > 5000 && got == 50, "{n} lines and {got} answers");
}

#[test]
fn nothing_waits_for_ever() {
    let mut world = World::new();
    world.numbers.0.lock().unwrap().1 = true;
    world.terminal.user(|user| user.keys.extend(b"rand 4\r"));
    let Next::Wait(Some(until)) = world.settle() else { panic!("no deadline for entropy") };
    world.now.store(until.micros(), Ordering::Relaxed);
    world.settle();
    let seen = world.seen();
    assert!(seen.ends_with("error: the PMM has not answered the request for entropy yet\ntest (failed)> "));
    world.numbers.0.lock().unwrap().1 = false;

    world.terminal.user(|user| user.keys.extend(b"sink 10\rabc"));
    let Next::Wait(Some(until)) = world.settle() else { panic!("no deadline for input") };
    world.now.store(until.micros(), Ordering::Relaxed);
    world.settle();
    let seen = world.seen();
    assert!(seen.ends_with("error: 3 of 10 bytes came, and then none for 30 s\ntest (failed)> "), "{seen:?}");
}

#[test]
fn after_a_batch_that_took_all_the_next_request_still_rings() {
    let mut world = World::new();
    // As many blocks wait as the PMM takes in one go, the queue's length, all of them once the terminal has room.
    world.terminal.user(|user| user.room = Some(0));
    world.types("flood 1M\r");
    assert_eq!(world.console.write_ready(), Ok(false));
    world.terminal.user(|user| user.room = None);
    world.settle();
    assert!(world.seen().ends_with("test> "));
}

#[test]
fn another_pmm_gets_a_prompt_and_jobs_go_on() {
    let mut world = World::new();
    world.types("echo half");
    world.pmm = None;
    world.settle();
    world.start_pmm();
    assert_eq!(world.types(""), "\ntest> echo half");
    assert_eq!(world.types("!\r"), "!\nhalf!\ntest> ");
    // In the middle of a job: what was in flight comes again, whole lines, and nothing is missing.
    world.terminal.user(|user| user.room = Some(3000));
    let mut seen = world.types("count 1 5000\r");
    assert_eq!(seen.len(), 3000);
    world.pmm = None;
    world.start_pmm();
    world.terminal.user(|user| user.room = None);
    world.settle();
    seen += &world.seen();
    let mut next = 1;
    for line in seen.lines() {
        // A torn line is followed by its block from the start.
        let Some((_, number)) = line.rsplit_once("n ") else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        assert!(number <= next, "line {next} is missing before {number}");
        next = next.max(number + 1);
    }
    assert_eq!(next, 5001);
}

#[test]
fn restarts_come_after_their_last_words_are_acknowledged() {
    for (command, next, said) in
        [("reboot", Next::Reboot, "restarting\n"), ("panic", Next::Panic, "panicking\n")]
    {
        let mut world = World::new();
        world.terminal.user(|user| user.keys.extend(format!("{command}\r").bytes()));
        assert_eq!(world.settle(), next);
        assert_eq!(world.seen(), format!("{command}\n{said}"));
        assert_eq!(world.console.flush(), Ok(()));
        // A terminal that takes nothing delays it, but not for ever.
        let mut world = World::new();
        world.terminal.user(|user| user.room = Some(command.len() + 1));
        world.terminal.user(|user| user.keys.extend(format!("{command}\r").bytes()));
        let Next::Wait(Some(until)) = world.settle() else { panic!("no deadline for {command}") };
        world.now.store(until.micros(), Ordering::Relaxed);
        assert_eq!(world.settle(), next);
    }
}

#[test]
fn a_ping_that_nobody_answers_breaks_no_later_one() {
    let mut world = World::offering(&[DeviceSpec::CONSOLE, DeviceSpec::RNG, DeviceSpec::NET]);
    world.plays_out("");
    let nobody = world.plays_out("ping 10.0.0.2 1\r");
    assert!(nobody.contains("error: there is no way to 10.0.0.2;"), "{nobody:?}");
    world.plays_out("ip 10.0.0.1/24\r");
    let well = "ping: 2 sent, 2 answered\ntest> ";
    assert!(world.plays_out("ping 10.0.0.2 2\r").ends_with(well));

    // The board itself, nobody, somebody behind a gateway that there is not; and a user who gives up.
    let own = world.plays_out("ping 10.0.0.1 3\r");
    assert!(
        own.ends_with("10.0.0.1 is this board's own address: try it from another machine\ntest (failed)> ")
    );
    assert!(world.plays_out("ping 10.0.0.2 2\r").ends_with(well));
    let nobody = world.plays_out("ping 10.0.0.9 9\r");
    assert!(
        nobody.contains("9 sent, 0 answered\nerror: nobody answered;") || nobody.contains("0 answered"),
        "{nobody:?}"
    );
    assert!(world.plays_out("ping 10.0.0.2 2\r").ends_with(well));
    let far = world.plays_out("ping 10.9.9.9 3\r");
    assert!(far.contains("error: there is no way to 10.9.9.9;"), "{far:?}");
    assert!(world.plays_out("ping 10.0.0.2 2\r").ends_with(well));
    world.types("ping 10.0.0.9 9\r");
    world.plays_out("\x03");
    assert!(world.plays_out("ping 10.0.0.2 2\r").ends_with(well));
    // A page of its own.
    let own = world.plays_out("get http://10.0.0.1/ x\r");
    assert!(own.contains("(failed)"), "{own:?}");
}
