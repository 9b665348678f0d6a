//! `mode=user`: the cable leads to `passt`, which needs no rights: it makes of the guest's connections those of an
//! ordinary program, answers its DHCP, and listens on the ports that are forwarded.
//!
//! The two are joined by a pair of sockets of which passt inherits one end, so there is no path, nobody else can come
//! between, and when one of them is gone, however it went, the other one is told. A passt that dies is
//! started again: after a second at first, then at growing intervals without limit, because the cause (a port
//! that another program has, a host without a network) may go away. After a few short lives in a row the log
//! says once that the card goes nowhere, since each further message would be the same. What was under way in
//! it is lost; the guest's card stays as it is.

use std::borrow::Cow;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use hvl_shared_abi::wire::net::{DEFAULT_MTU, Mac, Offload};
use rustix::fs::OFlags;
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::super::{Dropped, EndError, FrameEnd, HostEnd};
use super::Losses;
use super::stream::FrameStream;
use crate::failure::{Failure, refused};
use crate::observe::{Limit, limited, printable};
use crate::options::Forward;
use crate::sys::Watches;

/// Where the program is, if neither the option says so nor PATH leads there.
const VARIABLE: &str = "PMM_PASST";
const PROGRAM: &str = "passt";
/// The pause before it is started again, in microseconds; it doubles with every short life.
const PAUSE_US: u64 = 1_000_000;
/// A life shorter than this is short, in microseconds.
const SHORT_US: u64 = 10_000_000;
/// Short lives in a row after which it is said that the card goes nowhere, and nothing more until one lives.
const SHORT_LIVES: u32 = 5;
/// How often the pause doubles: up to about a minute, for as long as it takes. What kept it from living may pass.
const DOUBLINGS: u32 = 6;
/// Bytes of what it said last that are kept.
const SAID: usize = 2048;

/// Between the moment in which a child's end of the pair may be inherited and the one in which it was, no other child
/// of this program may be started.
static SPAWNING: Mutex<()> = Mutex::new(());

/// A passt that runs.
struct Running {
    child: Child,
    /// Readable once it has ended. Its other ends may close earlier, or never.
    life: OwnedFd,
    stream: FrameStream,
    says: Option<ChildStderr>,
    since_us: u64,
}

/// One that is kept running.
pub(super) struct Passt {
    program: PathBuf,
    arguments: Vec<String>,
    running: Option<Running>,
    /// When the next one is due.
    again_us: Option<u64>,
    short_lives: u32,
    /// It was said that the card goes nowhere.
    told: bool,
    starts: u32,
    said: Vec<u8>,
    forwards: String,
    /// The kernel gives passt no socket for echo requests, so the guest's are not answered.
    pings_forbidden: bool,
    /// The guest's address, as its last frame had it.
    mac: Mac,
    now_us: u64,
    losses: Losses,
    limit: Limit,
}

impl Passt {
    /// Starts one.
    pub(super) fn start(
        program: Option<&Path>,
        forwards: &[Forward],
        mac: Mac,
        mtu: Option<u16>,
    ) -> Result<Passt, Failure> {
        let program = match find(program) {
            Ok(program) => program,
            Err(why) => {
                return refused(format!(
                    "--network mode=user: {why}; install it (Debian: apt install passt), name it with 'passt=PATH' or ${VARIABLE}, or write another mode"
                ));
            }
        };
        let mtu = mtu.unwrap_or(DEFAULT_MTU);
        let mut arguments: Vec<String> = ["--foreground", "--quiet", "--mtu"].map(String::from).into();
        arguments.push(mtu.to_string());
        for forward in forwards {
            arguments.push("--tcp-ports".into());
            arguments.push(format!("{}/{}:{}", forward.address, forward.host, forward.guest));
        }
        let all: Vec<_> =
            forwards.iter().map(|forward| format!("{}:{}", forward.address, forward.host)).collect();
        let mut passt = Passt {
            program,
            arguments,
            running: None,
            again_us: None,
            short_lives: 0,
            told: false,
            starts: 0,
            said: Vec::new(),
            forwards: all.join(", "),
            pings_forbidden: !may_ping(&std::fs::read_to_string(PING_GROUPS).unwrap_or_default(), &groups()),
            mac,
            now_us: 0,
            losses: Losses::default(),
            limit: Limit::default(),
        };
        match passt.spawn() {
            Ok(()) => {
                if passt.pings_forbidden {
                    tracing::warn!(
                        "--network mode=user: no ping of the guest's will be answered: net.ipv4.ping_group_range forbids them to passt's group; as root, 'sysctl net.ipv4.ping_group_range=\"0 2147483647\"' allows them"
                    );
                }
                Ok(passt)
            }
            Err(error) => refused(format!(
                "--network mode=user: {} cannot be started ({error}); check that it is a program",
                passt.program.display()
            )),
        }
    }

    fn spawn(&mut self) -> std::io::Result<()> {
        let (own, its) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let mut stream = FrameStream::new(own)?;
        // What came to a forwarded port before the guest has said anything would be sent to nobody.
        let _ = stream.send(&introduction(self.mac));
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg("--fd").arg(its.as_raw_fd().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = spawn_with(&mut command, its)?;
        let life = rustix::process::Pid::from_child(&child);
        let life = rustix::process::pidfd_open(life, rustix::process::PidfdFlags::empty())?;
        let says = child.stderr.take();
        if let Some(says) = &says {
            let flags = rustix::fs::fcntl_getfl(says)?;
            rustix::fs::fcntl_setfl(says, flags | OFlags::NONBLOCK)?;
        }
        self.starts = self.starts.wrapping_add(1);
        self.running = Some(Running { child, life, stream, says, since_us: self.now_us });
        Ok(())
    }

    /// Keeps the end of what it says: a pipe that nobody empties would hold it up.
    fn listen(&mut self) {
        let Some(says) = self.running.as_mut().and_then(|running| running.says.as_mut()) else { return };
        let mut bytes = [0; 512];
        // A bound: it may speak faster than it is heard.
        for _ in 0..16 {
            match says.read(&mut bytes) {
                Ok(count) if count > 0 => self.said.extend_from_slice(bytes.get(..count).unwrap_or(&[])),
                _ => break,
            }
        }
        let excess = self.said.len().saturating_sub(SAID);
        self.said.drain(..excess);
    }

    /// What it said last, without what its log daemon is blamed for.
    fn last_words(&self) -> String {
        let text = String::from_utf8_lossy(&self.said).into_owned();
        let mut lines = text.lines().map(str::trim);
        let words = lines.rfind(|line| !line.is_empty() && !line.starts_with("Failed to send"));
        words.map(|words| format!(": {}", printable(words))).unwrap_or_default()
    }

    /// Notes that it is gone, and when the next one is due.
    fn bury(&mut self) {
        if !self.running.as_ref().is_some_and(|running| running.stream.is_over()) {
            return;
        }
        self.listen();
        let Some(mut running) = self.running.take() else { return };
        // It closed its end, so it is ending, or as good as dead.
        let _ = running.child.kill();
        let status = running.child.wait().map(|status| format!(" ({status})")).unwrap_or_default();
        let words = self.last_words();
        self.said.clear();
        let short = self.now_us.saturating_sub(running.since_us) < SHORT_US;
        self.short_lives = if short { self.short_lives.saturating_add(1) } else { 0 };
        self.try_later(&format!("passt has ended{status}{words}"));
    }

    /// Notes when the next one is due, and says why, as long as that is news.
    fn try_later(&mut self, why: &str) {
        let pause = PAUSE_US << self.short_lives.min(DOUBLINGS);
        self.again_us = Some(self.now_us.saturating_add(pause));
        let seconds = pause / 1_000_000;
        if self.short_lives < SHORT_LIVES {
            limited!(
                warn,
                self.limit,
                self.now_us,
                "--network mode=user: {why}; started again in {seconds} s"
            );
        } else if !std::mem::replace(&mut self.told, true) {
            tracing::error!(
                "--network mode=user: {why}, {SHORT_LIVES} times in a row; the guest's card goes nowhere. It is started again and again, at last once a minute, and that is not said any more until one of them lives"
            );
        }
    }

    /// When the one that runs has lived long enough to be believed in, if that is to be said.
    fn proven_us(&self) -> Option<u64> {
        let since = self.running.as_ref().filter(|_| self.told)?.since_us;
        Some(since.saturating_add(SHORT_US))
    }
}

/// A frame from this address that means nothing, of the type that is kept for such: passt learns from it whom to send
/// to, as a switch does.
fn introduction(mac: Mac) -> [u8; 60] {
    let mut frame = [0; 60];
    let (to, rest) = frame.split_at_mut(6);
    to.fill(0xff);
    let (from, kind) = rest.split_at_mut(6);
    from.copy_from_slice(&mac);
    if let Some(kind) = kind.first_chunk_mut() {
        *kind = [0x88, 0xb5];
    }
    frame
}

/// Which groups may have sockets for echo requests: the first and the last.
const PING_GROUPS: &str = "/proc/sys/net/ipv4/ping_group_range";
/// The group of `nobody`, which passt becomes where root starts it.
const NOBODY: u32 = 65_534;

/// Returns the groups that passt will have.
fn groups() -> Vec<u32> {
    if rustix::process::geteuid().is_root() {
        return vec![NOBODY];
    }
    let mut groups = vec![rustix::process::getegid().as_raw()];
    groups.extend(rustix::process::getgroups().unwrap_or_default().iter().map(|group| group.as_raw()));
    groups
}

/// Returns whether a kernel that says `range` lets somebody of these groups ping. One that says nothing is
/// not blamed.
fn may_ping(range: &str, groups: &[u32]) -> bool {
    let mut ends = range.split_whitespace().map(str::parse::<u32>);
    match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => groups.iter().any(|group| (first..=last).contains(group)),
        _ => true,
    }
}

/// Starts a child that inherits `its`, and nothing else that is not its standard streams.
fn spawn_with(command: &mut Command, its: OwnedFd) -> std::io::Result<Child> {
    let _alone = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
    rustix::io::fcntl_setfd(&its, FdFlags::empty())?;
    // This side's copy is closed on return, so that the pair has two ends.
    command.spawn()
}

/// Finds the program: as named, on PATH, or where the variable says; or why there is none.
pub(super) fn find(named: Option<&Path>) -> Result<PathBuf, String> {
    let program = |path: &Path| match std::fs::metadata(path) {
        Err(error) => Err(error.to_string()),
        Ok(meta) if !meta.is_file() => Err("it is no file".into()),
        Ok(_) => rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
            .map_err(|error| format!("it cannot be executed: {}", std::io::Error::from(error))),
    };
    if let Some(path) = named {
        return Ok(path.into());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut found =
        std::env::split_paths(&paths).map(|folder| folder.join(PROGRAM)).filter(|path| program(path).is_ok());
    if let Some(found) = found.next() {
        return Ok(found);
    }
    match std::env::var_os(VARIABLE).map(PathBuf::from) {
        Some(path) => match program(&path) {
            Ok(()) => Ok(path),
            Err(why) => Err(format!(
                "${VARIABLE} names {}, which is no program ({why}), and PATH leads to no '{PROGRAM}'; correct ${VARIABLE}",
                path.display()
            )),
        },
        None => Err(format!("'{PROGRAM}' is not on PATH")),
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

impl FrameEnd for Passt {
    fn send(&mut self, _offload: &Offload, frame: &[u8]) -> Result<(), EndError> {
        if let Some(mac) = frame.get(6..).and_then(|rest| rest.first_chunk()) {
            self.mac = *mac;
        }
        let stream = self.running.as_mut().map(|running| &mut running.stream);
        let sent = stream.map_or(Err(EndError::Closed), |stream| stream.send(frame));
        if sent == Err(EndError::Closed) {
            self.losses.sent = self.losses.sent.wrapping_add(1);
            self.bury();
            return Ok(());
        }
        sent
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<(Offload, usize), EndError> {
        let stream = self.running.as_mut().map(|running| &mut running.stream);
        match stream.map_or(Err(EndError::WouldBlock), |stream| stream.receive(into)) {
            Ok(len) => Ok((Offload::default(), len)),
            Err(_) => {
                self.bury();
                Err(EndError::WouldBlock)
            }
        }
    }

    fn dropped(&mut self, why: Dropped) {
        self.losses.drop(why);
    }
}

impl HostEnd for Passt {
    fn watch(&self, watches: &mut Watches) {
        if let Some(running) = &self.running {
            running.stream.watch(watches);
            watches.add(running.life.as_raw_fd(), true, false);
        }
    }

    fn progress(&mut self, now_us: u64) {
        self.now_us = now_us;
        self.listen();
        if let Some(running) = &mut self.running {
            running.stream.progress();
            // Its death is noticed also while the guest asks for nothing.
            if running.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                running.stream.end();
            }
        }
        self.bury();
        if self.proven_us().is_some_and(|at| at <= now_us) {
            (self.told, self.short_lives) = (false, 0);
            tracing::info!("--network mode=user: passt lives; the guest's card works again");
        }
        if self.again_us.is_some_and(|at| at <= now_us) {
            self.again_us = None;
            if let Err(error) = self.spawn() {
                self.short_lives = self.short_lives.saturating_add(1);
                self.try_later(&format!("passt cannot be started again ({error})"));
            }
        }
    }

    fn deadline_us(&self) -> Option<u64> {
        [self.again_us, self.proven_us()].into_iter().flatten().min()
    }

    fn state(&self) -> Cow<'static, str> {
        let words = match (&self.running, self.again_us) {
            (Some(running), _) => format!("passt {}, start {}", running.child.id(), self.starts),
            (None, _) if self.told => format!("passt does not live, {} starts so far", self.starts),
            (None, _) => "passt has ended, starts again".into(),
        };
        let words = if self.pings_forbidden { words + ", pings are forbidden" } else { words };
        self.losses.after(&words)
    }

    fn announcement(&self) -> Option<String> {
        let to = if self.forwards.is_empty() { "no ports forwarded" } else { &self.forwards };
        Some(format!("network: as an ordinary program's, through passt; to the guest: {to}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_are_forbidden_where_the_kernel_names_other_groups() {
        // The kernel's own default is an empty range; most distributions name all groups.
        assert!(!may_ping("1\t0\n", &[NOBODY]) && !may_ping("1\t0\n", &[0, 1]));
        assert!(may_ping("0\t2147483647\n", &[NOBODY]));
        assert!(!may_ping("0\t1000\n", &[NOBODY]) && may_ping("0\t1000\n", &[2000, 1000]));
        assert!(may_ping("", &[NOBODY]));
    }

    /// Serves until `done`, with a clock of its own that jumps to each deadline.
    fn pass(passt: &mut Passt, done: impl Fn(&Passt) -> bool) {
        let mut now = passt.now_us;
        for _ in 0..200 {
            passt.progress(now);
            let _ = passt.receive(&mut [0; 64]);
            if done(passt) {
                return;
            }
            match passt.again_us {
                Some(at) => now = at,
                None => {
                    let mut watches = Watches::default();
                    passt.watch(&mut watches);
                    assert!(watches.wait(Some(10_000_000)) > 0, "nothing happened in 10 s");
                }
            }
        }
        panic!("it is still {}", passt.state());
    }

    #[test]
    fn one_that_ends_at_once_is_started_again_for_ever_and_once_it_lives_the_card_works() {
        let path = std::env::temp_dir().join(format!("pmm-passt-back-{}", std::process::id()));
        std::os::unix::fs::symlink("/bin/false", &path).unwrap();
        let mut passt = Passt::start(Some(&path), &[], [2, 0, 0, 0, 0, 1], None).unwrap();
        // Whether this machine lets it ping is shown, too, and is no matter here.
        passt.pings_forbidden = false;
        pass(&mut passt, |passt| passt.running.is_none() && passt.starts == SHORT_LIVES);
        assert_eq!(passt.state(), "passt does not live, 5 starts so far");
        assert_eq!(passt.send(&Offload::default(), &[0; 14]), Ok(()));
        assert!(passt.state().ends_with("1 sent frames lost"));
        // What kept it from living lasts for long, and the pauses do not grow without an end.
        pass(&mut passt, |passt| passt.running.is_none() && passt.starts == 4 * SHORT_LIVES);
        let pause = passt.again_us.unwrap() - passt.now_us;
        assert_eq!(pause, PAUSE_US << DOUBLINGS);
        // And passes.
        std::fs::remove_file(&path).unwrap();
        let script = path.with_extension("sh");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&script, &path).unwrap();
        pass(&mut passt, |passt| passt.running.is_some());
        assert_eq!((passt.told, passt.deadline_us()), (true, Some(passt.now_us + SHORT_US)));
        passt.progress(passt.now_us + SHORT_US);
        assert_eq!((passt.told, passt.short_lives, passt.deadline_us()), (false, 0, None));
        assert!(passt.state().contains("start 21"), "{}", passt.state());
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(&script).unwrap();
    }

    #[test]
    fn one_that_closes_its_standard_error_costs_nothing() {
        use std::os::unix::fs::OpenOptionsExt;
        let path = std::env::temp_dir().join(format!("pmm-passt-{}", std::process::id()));
        let mut script =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path).unwrap();
        std::io::Write::write_all(&mut script, b"#!/bin/sh\nexec sleep 1000 2>&-\n").unwrap();
        drop(script);
        let passt = Passt::start(Some(&path), &[], [2, 0, 0, 0, 0, 1], None).unwrap();
        let says = passt.running.as_ref().unwrap().says.as_ref().unwrap();
        let mut watches = Watches::default();
        watches.add_hang_up(says.as_raw_fd());
        assert_eq!(watches.wait(Some(10_000_000)), 1, "it did not close its standard error in 10 s");
        std::fs::remove_file(&path).unwrap();
        watches.clear();
        passt.watch(&mut watches);
        assert_eq!(watches.wait(Some(0)), 0, "the loop would spin");
    }

    #[test]
    fn one_that_is_missing_is_refused_in_a_sentence() {
        let error =
            Passt::start(Some(Path::new("/nonexistent/passt")), &[], [2, 0, 0, 0, 0, 1], None).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/passt cannot be started"), "{error}");
    }
}
