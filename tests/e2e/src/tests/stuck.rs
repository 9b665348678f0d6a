//! Something is stuck, and nothing else is: a file operation that the kernel holds, a client of a socket that does not
//! read, a TAP that is full. Meanwhile 1,000 requests for entropy and an echo at the console complete, and the PMM sleeps
//! when these are done. Let go, it goes on where it stood; a guest that was rebooted meanwhile never sees what was its
//! predecessor's.
//!
//! The PMM is a process of its own. The guest is this one, because it does several things at a time, and looks into the
//! region.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hvl_frontend::device::console::{Console, ConsoleStorage};
use hvl_frontend::device::net::{MAX_FRAME, Net, NetStorage, Offload};
use hvl_frontend::device::p9::{FileError, Files, FilesStorage};
use hvl_frontend::device::rng::{Rng, RngStorage};
use hvl_frontend::device::vsock::{End, Socket, SocketError, Vsock, VsockStorage};
use hvl_frontend::{Board, Clock, Link, LinkStorage};
use hvl_shared_abi::Mem;
use hvl_shared_abi::wire::p9::open;
use serde_json::Value;

use super::sockets::{PORT, call};
use crate::Tools;
use crate::board::{self, Process};
use crate::guard::Guard;
use crate::guest::Kind;
use crate::namespace::{self, Namespace};
use crate::net_guest::pattern;
use crate::pmm::busy;
use crate::rig::{Bell, Rig, UP};
use crate::slow::{NAME, Slow};
use crate::tap::{FAR, Far, bound, frame, words};
use crate::terminal::find;

/// Requests for entropy that complete while something is stuck.
const REQUESTS: u64 = 1000;
const LINE: &str = "is anybody there?\n";
/// Rounds of the PMM's loop in a second in which there is nothing to do, at the most. One that spins has thousands.
const ROUNDS: u64 = 100;
/// Processor time that it may use in that second, in hundredths.
const BUSY: u64 = 20;
/// Bytes that may be on their way to a client that does not read: what the PMM, the kernel and the guest's queue hold.
const ON_THE_WAY: u64 = 2 << 20;
/// Bytes of frames that the TAP takes without a reader.
const TAP_HOLDS: i32 = 20_000;

/// A start of the guest.
struct Guest {
    link: Link<'static, Process>,
    files: Files<'static, Process>,
    rng: Rng<'static, Process>,
    console: Console<'static, Process>,
    net: Net<'static, Process>,
    vsock: Vsock<'static, Process>,
}

fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

impl Guest {
    fn boot(process: &Process) -> Result<Guest> {
        let link = Link::attach(leak(LinkStorage::NEW), process.clone())?;
        let mut vsock = Vsock::open(&link, leak(VsockStorage::<4, 4096, 32, 32, 8>::NEW))?;
        vsock.listen(PORT, 1)?;
        Ok(Guest {
            files: Files::open(&link, leak(FilesStorage::<16>::NEW), Default::default())?,
            rng: Rng::open(&link, leak(RngStorage::<8>::NEW))?,
            console: Console::open(&link, leak(ConsoleStorage::<64, 64>::NEW), Default::default())?,
            net: Net::open(&link, leak(NetStorage::<64, 64>::NEW), Default::default())?,
            vsock,
            link,
        })
    }
}

/// A PMM, and this process as its guest.
struct World<'t> {
    rig: Rig<'t>,
    process: Process,
    guest: Guest,
}

impl<'t> World<'t> {
    fn start(mut rig: Rig<'t>, network: &str) -> Result<World<'t>> {
        rig.extend(["--network", network]);
        // In place of the shell that the rig would start.
        let process = board::open(&rig.guest.place(), &rig.guest.doorbell())?;
        rig.start_pmm()?;
        let guest = Guest::boot(&process)?;
        Ok(World { rig, process, guest })
    }

    /// Starts the guest again, as after a reset of a board, of whose devices nobody takes leave.
    fn reboot(&mut self) -> Result<()> {
        self.guest = Guest::boot(&self.process)?;
        Ok(())
    }

    /// Tries until it is done, and sleeps between as a board does.
    fn until<T, E: Debug>(
        &mut self,
        what: &str,
        mut act: impl FnMut(&mut Guest) -> Result<T, E>,
    ) -> Result<T> {
        let guard = Guard::new(UP, what);
        loop {
            self.guest.link.poll();
            self.guest.vsock.poll();
            let error = match act(&mut self.guest) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            guard.left().with_context(|| format!("the last answer was {error:?}"))?;
            self.sleep(None);
        }
    }

    /// Until the doorbell, or the guest's own deadline, or another one, or not at all if there is something to do.
    fn sleep(&self, other: Option<hvl_frontend::Instant>) {
        let until = self.guest.link.next_deadline();
        if until != Some(hvl_frontend::Instant::UNKNOWN) {
            let until = [until, self.guest.vsock.deadline(), other].into_iter().flatten().min();
            board::wait(&self.process, until);
        }
    }

    /// A second in which the guest does nothing that it is not asked for.
    fn rest(&mut self) {
        let end = self.process.now().plus(1_000_000);
        while self.process.now() < end {
            self.guest.link.poll();
            self.guest.vsock.poll();
            self.sleep(Some(end));
        }
    }

    /// What the PMM counts in one of its devices' queues.
    fn completed(&self, device: &str, queue: usize) -> Result<u64> {
        let status = self.rig.pmm()?.status()?;
        let devices = status["links"][0]["devices"].as_array().into_iter().flatten();
        let mut found = devices.filter(|found| found["name"] == device);
        let queue = found.next().map(|device| &device["queues"][queue]["completed"]);
        queue.and_then(Value::as_u64).with_context(|| format!("the pmm counts nothing of {device}: {status}"))
    }

    fn entropy(&mut self) -> Result<()> {
        self.until("entropy", |guest| guest.rng.fill(&mut [0; 64])).map(drop)
    }

    /// Does something until it cannot be done any more, not even when the PMM has had time to go on. `act` is told how
    /// much was done, and says how much more it did.
    fn until_stuck<E>(
        &mut self,
        most: u64,
        mut act: impl FnMut(&mut Guest, u64) -> Result<u64, E>,
    ) -> Result<u64> {
        let mut done = 0;
        loop {
            let before = done;
            while let Ok(more) = act(&mut self.guest, done) {
                done += more;
                ensure!(done <= most, "{done} are done, and nothing stops the guest");
            }
            if done == before {
                return Ok(done);
            }
            // What is asked for now is answered later than what was done.
            for _ in 0..20 {
                self.entropy()?;
            }
        }
    }

    /// What the guest does while something is stuck; and then the PMM sleeps.
    fn others_go_on(&mut self, what: &str) -> Result<()> {
        self.entropy()?;
        let (before, start) = (self.completed("rng", 0)?, Instant::now());
        for _ in 0..REQUESTS {
            self.entropy()?;
        }
        let took = start.elapsed();
        let requests = self.completed("rng", 0)? - before;
        ensure!(requests >= REQUESTS, "the pmm has answered {requests} requests for entropy");
        self.rig.terminal.send(LINE.as_bytes());
        let mut heard = Vec::new();
        while !heard.ends_with(b"\n") {
            let mut part = [0; 64];
            let count = self.until("a line at the console", |guest| guest.console.read(&mut part))?;
            heard.extend_from_slice(&part[..count]);
        }
        let said = self.until("room at the console", |guest| guest.console.write(&heard))?;
        ensure!((said, &heard[..]) == (LINE.len(), LINE.as_bytes()), "another line came");
        self.rig.terminal.expect(LINE, UP)?;

        let counts = |rig: &Rig| -> Result<[u64; 2]> {
            let pmm = rig.pmm()?;
            let rounds =
                pmm.status()?["links"][0]["wakeups"].as_u64().context("the pmm counts no wake-ups")?;
            Ok([rounds, busy(pmm.id())?])
        };
        let before = counts(&self.rig)?;
        self.rest();
        let after = counts(&self.rig)?;
        let [rounds, busy] = [after[0] - before[0], after[1] - before[1]];
        ensure!(rounds <= ROUNDS, "{what}: the pmm's loop went round {rounds} times in a second");
        ensure!(busy <= BUSY, "{what}: the pmm used {busy}0 ms of processor time in a second");
        println!(
            "{what}: {requests} requests for entropy in {:.3} s, an echo; then {rounds} rounds of the pmm's loop and \
             {busy}0 ms of its processor time in a second",
            took.as_secs_f32()
        );
        Ok(())
    }
}

/// A read of a file that the kernel holds.
pub fn files(tools: &Tools) -> Result<()> {
    if !namespace::is_entered(tools, "stuck-files", &Namespace::MOUNTS, &[])? {
        return Ok(());
    }
    const LEN: usize = 4096;
    let rig = Rig::new(tools, "stuck", Kind::Host, Bell::Direct)?;
    let slow = Slow::mount(&rig.shared())?;
    let mut world = World::start(rig, "mode=none")?;
    let mut into = [0; LEN];

    let file = world.guest.files.open_file(NAME.as_bytes(), open::READ_ONLY)?;
    let mut ticket = Some(world.guest.files.start_read(&file, 0, LEN)?);
    let held = slow.read()?;
    world.others_go_on("a read that is held")?;
    let early = world.guest.files.finish_read(&mut ticket, &mut into);
    ensure!(early == Err(FileError::WouldBlock), "the read that is held was answered with {early:?}");
    held.answer(b"first ");
    let done = world.until("the answer", |guest| guest.files.finish_read(&mut ticket, &mut into))?;
    ensure!((done, &into[..18]) == (LEN, b"first first first "), "{done} bytes were read, or others");

    let _ticket = world.guest.files.start_read(&file, 0, LEN)?;
    let held = slow.read()?;
    world.reboot()?;
    world.others_go_on("the same, with a guest that was rebooted")?;
    let file = world.guest.files.open_file(NAME.as_bytes(), open::READ_ONLY)?;
    let mut ticket = Some(world.guest.files.start_read(&file, 0, LEN)?);
    let newer = slow.read()?;
    // The predecessor's file is closed when nobody has its answer any more.
    slow.closed(held.answer(b"second "))?;
    world.entropy()?;
    let early = world.guest.files.finish_read(&mut ticket, &mut into);
    ensure!(early == Err(FileError::WouldBlock), "the predecessor's answer was taken for this: {early:?}");
    newer.answer(b"third ");
    let done = world.until("the answer", |guest| guest.files.finish_read(&mut ticket, &mut into))?;
    ensure!((done, &into[..18]) == (LEN, b"third third third "), "{done} bytes were read, or others");
    let m = world.process.mem();
    let region: Vec<u8> = (0..m.len()).map(|at| m.read8(at)).collect();
    ensure!(find(&region, b"third third").is_some(), "the answer has not come through the region");
    ensure!(find(&region, b"second").is_none(), "the predecessor's answer is in the region");
    world.rig.check()
}

/// A client that reads to the end, in a thread of its own: what came, and how it ended.
type Reader = JoinHandle<(Vec<u8>, std::io::Result<usize>)>;

impl World<'_> {
    /// A client calls the guest.
    fn call(&mut self) -> Result<(UnixStream, Socket)> {
        let path = self.rig.sockets();
        let caller = std::thread::spawn(move || call(&path));
        let (socket, _) = self.until("a call", |guest| guest.vsock.accept(PORT))?;
        self.until("the call to be granted", |guest| guest.vsock.is_open(socket))?;
        let client = caller.join().map_err(|_| anyhow!("the client panicked"))??;
        client.set_write_timeout(Some(Duration::from_secs(UP)))?;
        Ok((client, socket))
    }

    /// Sends the pattern from there on until nothing takes more.
    fn flood(&mut self, socket: Socket, from: u64) -> Result<u64> {
        let sent = self.until_stuck(ON_THE_WAY, |guest, done| {
            guest.link.poll();
            let sent = guest.vsock.write(socket, &part(from + done))?;
            Ok::<_, SocketError>(sent as u64)
        })?;
        println!("{sent} bytes are on their way to a client that does not read");
        Ok(sent)
    }

    /// Lets the client's thread come to its end, and returns what it has read.
    fn read_by(&mut self, reader: Reader) -> Result<(Vec<u8>, std::io::Result<usize>)> {
        self.until("the client's end", |_| reader.is_finished().then_some(()).ok_or("it reads"))?;
        reader.join().map_err(|_| anyhow!("the client panicked"))
    }
}

/// Some of the pattern.
fn part(from: u64) -> Vec<u8> {
    (from..from + 3000).map(pattern).collect()
}

fn read_to_end(mut client: UnixStream) -> Reader {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let end = client.read_to_end(&mut all);
        (all, end)
    })
}

/// A client that does not read.
pub fn sockets(tools: &Tools) -> Result<()> {
    let mut world = World::start(Rig::new(tools, "stuck", Kind::Host, Bell::Direct)?, "mode=none")?;

    let (client, socket) = world.call()?;
    let mut sent = world.flood(socket, 0)?;
    world.others_go_on("a client that does not read")?;
    let more = world.guest.vsock.write(socket, b"more");
    ensure!(more == Err(SocketError::WouldBlock), "the guest may send more: {more:?}");
    let reader = read_to_end(client);
    let all = sent + ON_THE_WAY;
    while sent < all {
        sent += world.until("room for more", |guest| guest.vsock.write(socket, &part(sent)))? as u64;
    }
    world.guest.vsock.shut_down(socket, End::Write)?;
    let (got, end) = world.read_by(reader)?;
    end.context("a client that read after all")?;
    ensure!(got.len() as u64 == sent, "{} of {sent} bytes came", got.len());
    ensure!(got.iter().zip(0..).all(|(byte, at)| *byte == pattern(at)), "other bytes came than were sent");

    // Nor does the guest: what the client says waits in the kernel, once the guest has as much as it has room for.
    const OLD: u64 = 1 << 40;
    let (mut client, socket) = world.call()?;
    let sent = world.flood(socket, OLD)?;
    client.write_all(&[b'.'; 32 << 10])?;
    client.write_all(b"from the predecessor's client")?;
    world.reboot()?;
    world.others_go_on("the same, with a guest that was rebooted")?;
    let (got, _reset) = world.read_by(read_to_end(client))?;
    println!("its client read {} bytes of {sent} before the end", got.len());
    ensure!(got.len() as u64 <= sent, "more bytes came than were sent");
    ensure!(got.iter().zip(OLD..).all(|(byte, at)| *byte == pattern(at)), "others came than were sent");

    const NEW: u64 = 1 << 41;
    let (mut client, socket) = world.call()?;
    client.write_all(b"hello")?;
    client.shutdown(std::net::Shutdown::Write)?;
    let reader = read_to_end(client);
    let mut heard = Vec::new();
    loop {
        let mut part = [0; 64];
        match world.until("bytes of the client", |guest| guest.vsock.read(socket, &mut part))? {
            0 => break,
            count => heard.extend_from_slice(&part[..count]),
        }
    }
    ensure!(heard == b"hello", "the new guest hears {:?}", String::from_utf8_lossy(&heard));
    let sent = world.until("room", |guest| guest.vsock.write(socket, &part(NEW)))?;
    world.guest.vsock.shut_down(socket, End::Write)?;
    world.guest.vsock.close(socket);
    let (got, end) = world.read_by(reader)?;
    end.context("the new guest's client")?;
    ensure!(got == part(NEW)[..sent], "{} bytes came of {sent}, or others", got.len());
    let m = world.process.mem();
    let region: Vec<u8> = (0..m.len()).map(|at| m.read8(at)).collect();
    ensure!(find(&region, b"predecessor").is_none(), "what its predecessor's client said is in the region");
    world.rig.check()
}

impl World<'_> {
    /// Tells the frames of one flood apart, and sends them until nothing takes more.
    fn flood_frames(&mut self, word: &str) -> Result<u64> {
        let mac = self.mac()?;
        self.until_stuck(1000, |guest, done| {
            guest.net.transmit(&frame(FAR, mac, &format!("{word} {done}")), Offload::default()).map(|()| 1)
        })
    }

    fn mac(&mut self) -> Result<hvl_shared_abi::wire::net::Mac> {
        self.until("the card", |guest| match guest.net.mac() {
            Ok(Some(mac)) => Ok(mac),
            other => Err(other),
        })
    }

    /// Waits for a frame that carries these words.
    fn hear(&mut self, wanted: &str, mut meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
        self.until("a frame for the guest", |guest| {
            let mut bytes = vec![0; MAX_FRAME];
            while let Ok(received) = guest.net.receive(&mut bytes) {
                if words(&bytes[..received.len]).as_deref() == Some(wanted) {
                    return Ok(());
                }
            }
            Err(meanwhile())
        })
    }
}

/// A TAP that is full.
pub fn tap(tools: &Tools) -> Result<()> {
    if !namespace::is_entered(tools, "stuck-tap", &Namespace::MACVTAP, &[])? {
        return Ok(());
    }
    let rig = Rig::new(tools, "stuck", Kind::Host, Bell::Direct)?;
    let far = Far::open(rig.dir())?;
    let mut world = World::start(rig, "mode=tap,tapif=hvl0")?;
    let mac = world.mac()?;
    // The kernel says when it has time to that the interface has a user.
    world.hear("hello", || far.send(&frame(mac, FAR, "hello")))?;
    bound(world.rig.pmm()?.id(), TAP_HOLDS)?;
    let in_order = |word: &'static str, count: u64| (0..count).map(move |number| format!("{word} {number}"));

    let start = world.completed("net", 1)?;
    let sent = world.flood_frames("first")?;
    let taken = world.completed("net", 1)? - start;
    println!("the TAP took {taken} of {sent} frames");
    ensure!((1..sent).contains(&taken), "the TAP is not full");
    world.others_go_on("a TAP that is full")?;
    far.send(&frame(mac, FAR, "inwards"))?;
    world.hear("inwards", || Ok(())).context("the other direction goes on")?;
    ensure!(world.completed("net", 1)? - start == taken, "the TAP was not full");
    for frame in in_order("first", sent) {
        ensure!(far.next()? == frame, "'{frame}' is missing");
    }

    let start = world.completed("net", 1)?;
    let sent = world.flood_frames("second")?;
    let taken = world.completed("net", 1)? - start;
    println!("the TAP took {taken} of {sent} frames");
    ensure!((1..sent).contains(&taken), "the TAP is not full");
    world.reboot()?;
    world.others_go_on("the same, with a guest that was rebooted")?;
    let mac = world.mac()?;
    world.until("room for a frame", |guest| {
        guest.net.transmit(&frame(FAR, mac, "of the new guest"), Offload::default())
    })?;
    // What the TAP had taken is on its way; what it had not is nobody's any more.
    for frame in in_order("second", taken).chain(["of the new guest".into()]) {
        let came = far.next()?;
        ensure!(came == frame, "'{came}' came, not '{frame}'");
    }
    far.send(&frame(mac, FAR, "once more"))?;
    world.hear("once more", || Ok(()))?;
    world.until("room for a frame", |guest| {
        guest.net.transmit(&frame(FAR, mac, "the last"), Offload::default())
    })?;
    let came = far.next()?;
    ensure!(came == "the last", "'{came}' came late");
    world.rig.check()
}
