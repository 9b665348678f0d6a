//! The host's ends of the console and of entropy, and the judge of what goes through them.
//!
//! Both ends outlive the PMM, as a terminal and the kernel do, and finish when they like. Every byte is a function of
//! its stream and its position, so the judge knows where each one belongs:
//!
//! - **sent**: each start of the guest has a stream of its own. What its console acknowledged has arrived; what
//!   arrives is the stream in order; after a restart of the PMM it goes on where the acknowledged part ended or later
//!   (*resend*), or behind what arrived (*drop*), and what comes twice is counted.
//! - **typed**: one stream for all. The guest reads it in order; what the PMM took before a session ended may be
//!   missing, nothing else.
//! - **entropy**: what the guest is given is what the source gave, each byte once.

use hvl_pmm::host::{ByteEnd, EndError, Entropy};

use crate::map::Side;
use crate::plan::{MILLI, Plan};
use crate::traffic::{Pace, byte};
use crate::world;

/// Stream numbers of what is typed and of entropy; starts of the guest count from 0.
const TYPED: u64 = u64::MAX;
const ENTROPY: u64 = u64::MAX - 1;

/// What one start of the guest sends.
#[derive(Clone, Copy, Debug, Default)]
struct Outgoing {
    /// Bytes that its console took.
    accepted: u64,
    /// Bytes that its console said had arrived.
    acknowledged: u64,
    /// How far the stream has arrived.
    covered: u64,
    /// How many of its bytes have arrived, each counted once.
    arrived: u64,
}

/// Bytes that arrived in one session, which are in one piece of the stream.
struct Piece {
    start: u64,
    /// Where it may begin.
    from: u64,
    to: u64,
    bytes: Vec<u8>,
    /// Where it does, as far as its bytes say.
    at: u64,
}

/// The ends and the judge.
pub struct Host {
    salt: u64,
    pace: Pace,
    resend: bool,
    /// A hostile peer may garble all of it.
    judged: bool,
    starts: Vec<Outgoing>,
    /// Which start said hello with which epoch.
    greetings: Vec<(u32, usize)>,
    piece: Option<Piece>,
    duplicates: u64,
    /// When the end that blocked takes more.
    output_at: Option<u64>,
    input_at: Option<u64>,
    entropy_at: Option<u64>,
    /// The PMM waits for the user to type.
    listens: bool,
    typed: u64,
    coming: Vec<(u64, u64)>,
    taken: u64,
    /// Typed bytes before this one may be lost.
    losable: u64,
    /// Where the next byte that the guest reads may stand.
    reading: Vec<u64>,
    drawn: u64,
    given: u64,
    failure: Option<String>,
}

impl Host {
    /// Ends that behave as planned.
    pub fn new(plan: &Plan, salt: u64) -> Host {
        Host {
            salt,
            pace: Pace::new(plan, salt),
            resend: plan.resend,
            judged: !plan.memory.hostile(),
            starts: Vec::new(),
            greetings: Vec::new(),
            piece: None,
            duplicates: 0,
            output_at: None,
            input_at: None,
            entropy_at: None,
            listens: false,
            typed: 0,
            coming: Vec::new(),
            taken: 0,
            losable: 0,
            reading: vec![0],
            drawn: 0,
            given: 0,
            failure: None,
        }
    }

    fn fail(&mut self, what: String) {
        if self.judged {
            self.failure.get_or_insert(what);
        }
    }
    /// The first thing that was wrong, once.
    pub fn failure(&mut self) -> Option<String> {
        self.failure.take()
    }
    /// Bytes that arrived twice, and typed bytes that nobody read.
    pub fn losses(&self) -> (u64, u64) {
        (self.duplicates, self.typed.saturating_sub(self.reading.last().copied().unwrap_or(0)))
    }

    // --- who is in session ------------------------------------------------------------------------------------------

    /// The guest starts; returns which start it is.
    pub fn started(&mut self) -> usize {
        self.starts.push(Outgoing::default());
        self.starts.len() - 1
    }
    /// The guest said hello.
    pub fn greeted(&mut self, epoch: u32) {
        self.greetings.push((epoch, self.starts.len().saturating_sub(1)));
    }
    /// Which start said hello with this epoch.
    pub fn start_of(&self, epoch: u32) -> Option<usize> {
        let greeting = self.greetings.iter().rev().find(|(known, _)| *known == epoch);
        greeting.filter(|_| epoch != 0).map(|(_, start)| *start)
    }
    /// The PMM serves the console in this epoch, or (0) no longer.
    pub fn served(&mut self, epoch: u32) {
        self.disturbed();
        let Some(start) = self.start_of(epoch) else { return };
        let Outgoing { acknowledged, covered, .. } = self.starts[start];
        let (from, to) = if self.resend { (acknowledged, covered) } else { (covered, covered + 0x4000) };
        let at = if self.resend { to } else { from };
        self.piece = Some(Piece { start: start as u64, from, to, bytes: Vec::new(), at });
    }
    /// A side died.
    pub fn died(&mut self, side: Side) {
        if side == Side::Pmm {
            self.disturbed();
            (self.output_at, self.input_at, self.entropy_at) = (None, None, None);
            self.listens = false;
        }
    }
    fn disturbed(&mut self) {
        self.piece = None;
        self.losable = self.taken;
    }

    // --- the guest's side -------------------------------------------------------------------------------------------

    /// The next bytes of this start's stream.
    pub fn next_output(&self, start: usize, len: usize) -> Vec<u8> {
        let from = self.starts[start].accepted;
        (from..from + len as u64).map(|at| byte(self.salt, start as u64, at)).collect()
    }
    /// The guest's console took so many of them.
    pub fn accepted(&mut self, start: usize, len: usize) {
        self.starts[start].accepted += len as u64;
    }
    /// How many it took so far.
    pub fn output(&self, start: usize) -> u64 {
        self.starts.get(start).map_or(0, |outgoing| outgoing.accepted)
    }
    /// The guest's console says that so many have arrived.
    pub fn acknowledged(&mut self, start: usize, count: u64) {
        let outgoing = &mut self.starts[start];
        outgoing.acknowledged = outgoing.acknowledged.max(count);
        let arrived = if self.resend { outgoing.covered } else { outgoing.arrived };
        if count > arrived {
            let what =
                format!("start {start} of the guest has {count} bytes acknowledged, and {arrived} arrived");
            self.fail(what);
        }
    }
    /// Whether all that this start sent has arrived and is acknowledged.
    pub fn all_arrived(&self, start: usize) -> bool {
        let Some(&Outgoing { accepted, acknowledged, covered, .. }) = self.starts.get(start) else {
            return false;
        };
        !self.resend || (acknowledged == accepted && covered == accepted)
    }

    /// The guest read these bytes from its console.
    pub fn received(&mut self, bytes: &[u8]) {
        for &received in bytes {
            let first = self.reading.first().copied().unwrap_or(0);
            // Every place where the byte may stand: the next one, or behind a gap that a session's end left.
            let mut places = std::mem::take(&mut self.reading);
            if first < self.losable {
                places.extend(first..=self.losable);
                places.sort_unstable();
                places.dedup();
            }
            let (salt, taken) = (self.salt, self.taken);
            let fits = places.iter().filter(|&&at| at < taken && byte(salt, TYPED, at) == received);
            self.reading = fits.map(|at| at + 1).collect();
            if self.reading.is_empty() {
                self.fail(format!(
                    "the guest read {received:#04x} from its console, which is not what was typed at {places:?} \
                     (of {taken} that the PMM took; those before {} may be lost)",
                    self.losable
                ));
                self.reading = vec![self.taken];
                return;
            }
        }
    }
    /// Whether all that was typed has been read, but for what a session's end may have lost.
    pub fn all_read(&self) -> bool {
        let read = self.reading.last().is_some_and(|last| *last == self.typed || self.typed <= self.losable);
        self.coming.is_empty() && self.taken == self.typed && read
    }

    /// The guest was given these bytes of entropy.
    pub fn filled(&mut self, bytes: &[u8]) {
        let (salt, drawn) = (self.salt, self.drawn);
        let len = bytes.len() as u64;
        let fits = |at: &u64| (*at..).zip(bytes).all(|(at, given)| byte(salt, ENTROPY, at) == *given);
        match (self.given..(drawn + 1).saturating_sub(len)).find(fits) {
            Some(at) => self.given = at + len,
            None => {
                let given = self.given;
                self.fail(format!(
                    "{len} bytes of entropy are not those of the source between {given} and {drawn}"
                ));
            }
        }
    }

    // --- the host's side --------------------------------------------------------------------------------------------

    /// Somebody will type `lines` pieces soon.
    pub fn type_soon(&mut self, now: u64, lines: u32) {
        for _ in 0..lines {
            let when = now + self.pace.rng.u64(0..40 * MILLI);
            let len = self.pace.rng.u64(1..30);
            self.coming.push((when, len));
        }
    }
    fn typing(&mut self, now: u64) {
        let due: u64 = self.coming.iter().filter(|(when, _)| *when <= now).map(|(_, len)| len).sum();
        self.typed += due;
        self.coming.retain(|(when, _)| *when > now);
    }

    /// Whether something that the PMM waits for has happened.
    pub fn is_ready(&mut self, now: u64) -> bool {
        self.typing(now);
        let due = |at: Option<u64>| at.is_some_and(|at| at <= now);
        due(self.output_at)
            || due(self.input_at)
            || due(self.entropy_at)
            || (self.listens && self.typed > self.taken)
    }
    /// The PMM woke, and no longer waits for what has happened.
    pub fn heard(&mut self, now: u64) {
        for at in [&mut self.output_at, &mut self.input_at, &mut self.entropy_at] {
            *at = at.filter(|at| *at > now);
        }
        self.listens &= self.typed <= self.taken;
    }
    /// Whether a device waits for its host end with a request in its hands.
    pub fn holds_requests(&self) -> bool {
        self.output_at.is_some() || self.entropy_at.is_some()
    }
    /// When the next of it happens.
    pub fn next_ready(&self) -> Option<u64> {
        let typed = self.coming.iter().map(|(when, _)| *when).filter(|_| self.listens).min();
        [self.output_at, self.input_at, self.entropy_at, typed].into_iter().flatten().min()
    }

    fn write(&mut self, now: u64, bytes: &[u8]) -> Result<usize, EndError> {
        if let Some(until) = self.pace.blocks(now) {
            self.output_at = Some(until);
            return Err(EndError::WouldBlock);
        }
        let len = self.pace.some().min(bytes.len());
        self.arrive(&bytes[..len]);
        Ok(len)
    }

    fn arrive(&mut self, bytes: &[u8]) {
        let Some(mut piece) = self.piece.take() else {
            self.fail("the PMM sent to the host's console outside of a session".into());
            return;
        };
        piece.bytes.extend_from_slice(bytes);
        let len = piece.bytes.len() as u64;
        let salt = self.salt;
        let fits = |at: &u64| {
            let mut stream = (*at..).zip(&piece.bytes);
            stream.all(|(at, arrived)| byte(salt, piece.start, at) == *arrived)
        };
        let place = match self.resend {
            true => (piece.from..=piece.at).rev().find(fits),
            false => (piece.at..=piece.to).find(fits),
        };
        let Some(at) = place else {
            let (from, to, start) = (piece.from, piece.to, piece.start);
            self.fail(format!(
                "{len} bytes arrived at the host's console that start {start} of the guest never sent there: in this \
                 session its stream may begin between {from} and {to}"
            ));
            self.piece = Some(piece);
            return;
        };
        let outgoing = &mut self.starts[piece.start as usize];
        let before = outgoing.covered.max(piece.to.min(outgoing.covered));
        if at + len > outgoing.covered {
            let new = if self.resend { at + len - before } else { bytes.len() as u64 };
            outgoing.arrived += new;
            outgoing.covered = at + len;
            self.duplicates += (bytes.len() as u64).saturating_sub(new);
        } else {
            self.duplicates += bytes.len() as u64;
        }
        piece.at = at;
        self.piece = Some(piece);
    }

    fn read(&mut self, now: u64, into: &mut [u8]) -> Result<usize, EndError> {
        self.typing(now);
        let ready = (self.typed - self.taken) as usize;
        if ready == 0 {
            self.listens = true;
            return Err(EndError::WouldBlock);
        }
        if let Some(until) = self.pace.blocks(now) {
            self.input_at = Some(until);
            return Err(EndError::WouldBlock);
        }
        let len = self.pace.some().min(into.len()).min(ready);
        for (at, into) in (self.taken..).zip(&mut into[..len]) {
            *into = byte(self.salt, TYPED, at);
        }
        self.taken += len as u64;
        Ok(len)
    }

    fn draw(&mut self, now: u64, into: &mut [u8]) -> Result<usize, EndError> {
        if let Some(until) = self.pace.blocks(now) {
            self.entropy_at = Some(until);
            return Err(EndError::WouldBlock);
        }
        let len = self.pace.some().min(into.len());
        for (at, into) in (self.drawn..).zip(&mut into[..len]) {
            *into = byte(self.salt, ENTROPY, at);
        }
        self.drawn += len as u64;
        Ok(len)
    }
}

/// The host's end of the console, as the PMM holds it.
pub struct Terminal;

impl ByteEnd for Terminal {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, EndError> {
        world::with(|world| world.host.write(world.now, bytes))
    }
    fn read(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        world::with(|world| world.host.read(world.now, into))
    }
}

/// The host's entropy, as the PMM holds it.
pub struct Source;

impl Entropy for Source {
    fn fill(&mut self, into: &mut [u8]) -> Result<usize, EndError> {
        world::with(|world| world.host.draw(world.now, into))
    }
}
