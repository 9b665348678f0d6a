//! Commands become output. One job runs at a time, and each call of [`Shell::run`] moves it as far as the console has
//! room, within a bound; so one loop can serve the link, the shell and whatever else a firmware does.
//!
//! Input is not read ahead of the job that wants it, but for a short type-ahead in which Ctrl-C is looked for.

use heapless::Deque;

use hvl_frontend::Instant;
use hvl_frontend::device::NotNow;
use hvl_frontend::device::console::Console;
use hvl_frontend::device::p9::{FileError, Files};
use hvl_frontend::device::rng::{FillError, Rng};
use hvl_frontend::device::vsock::{SocketError, Vsock};

use crate::Machine;
use crate::bench::{self, BenchJob, BenchStep};
use crate::command::{self, Command};
use crate::editor::{CANCEL, Echo, Editor, HISTORY, Key, LINE, Prompt, SHOWN};
use crate::files::{self, FileJob, FileStep};
use crate::net::{self, Begun, NetJob, NetStep};
use crate::network::Network;
use crate::pattern::{self, Sum};
use crate::report::{self, Report};
use crate::sockets::{self, SocketJob, SocketStep};
use crate::text::{BLOCK, Text};

/// Bytes of output that wait for the console: a block, and the longest that is added to it, by a key.
const OUT: usize = 1024;
/// Bytes of input that wait for a job.
const AHEAD: usize = 256;
/// Steps of one call.
const STEPS: usize = 32;
/// How long entropy may take, in microseconds. A PMM that restarts is back long before.
const ENTROPY: u64 = 10_000_000;
/// How long the input of `sink` may stay silent, in microseconds.
const SILENCE: u64 = 30_000_000;
/// How long the last output before a restart may take, in microseconds.
const FAREWELL: u64 = 2_000_000;
/// Random bytes in one line of output.
const RANDOM_LINE: usize = 32;
/// The longest answer to a numbered line: `got 18446744073709551615` and its end.
const ANSWER: usize = 25;

const _: () = assert!(BLOCK + LINE + 64 <= OUT && BLOCK + SHOWN <= OUT && RANDOM_LINE * 2 < BLOCK);

/// What the shell works with.
pub struct Devices<'a, 's, B> {
    /// Where it is typed at.
    pub console: &'a mut Console<'s, B>,
    /// Entropy.
    pub rng: &'a mut Rng<'s, B>,
    /// A directory of the PMM's machine.
    pub files: &'a mut Files<'s, B>,
    /// The board's place in a network.
    pub network: &'a mut Network<'s, B>,
    /// Sockets of the link.
    pub vsock: &'a mut Vsock<'s, B>,
    /// Memory for data on its way, which the shell keeps to itself between two calls: the more, the faster.
    pub work: &'a mut [u8],
}

/// What the shell wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// To be called again at once: there is more to do.
    Again,
    /// To be called when the doorbell has rung, or at this time.
    Wait(Option<Instant>),
    /// A warm restart. What was printed is acknowledged.
    Reboot,
    /// A panic, in the firmware's own way. What was printed is acknowledged.
    Panic,
}

/// What the shell is at. There is one at a time, and no heap to put the largest on.
#[allow(clippy::large_enum_variant)]
enum Job {
    /// Reading a line.
    Prompt,
    /// Printing a report; the next line.
    Report(Report, usize),
    /// Printing random bytes: so many are missing, and so many stand in the present line.
    Rand { missing: u32, column: usize, until: Option<Instant> },
    /// Printing the pattern.
    Flood { at: u32, len: u32, sum: Sum },
    /// Taking input.
    Sink { got: u32, len: u32, sum: Sum, until: Option<Instant> },
    /// Printing numbered lines, and answering them.
    Count { next: Option<u64>, to: Option<u64>, printed: u64, answered: u64, line: Editor<0> },
    /// Something with files.
    Files(FileJob),
    /// Something on the network.
    Net(NetJob, Option<Instant>),
    /// Something with sockets.
    Sockets(SocketJob),
    /// A measurement.
    Bench(BenchJob, Option<Instant>),
    /// Waiting for the output to be acknowledged, and then for the end.
    Farewell { next: Next, until: Option<Instant> },
}

/// How far a step came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There may be more to do.
    On,
    /// It waits for the other side.
    Wait,
    /// The command has ended.
    Done(bool),
    /// To be told to the firmware.
    End(Next),
}

/// A shell on one console.
pub struct Shell {
    out: Text<OUT>,
    ahead: Deque<u8, AHEAD>,
    editor: Editor<HISTORY>,
    job: Job,
    failed: bool,
    /// The session in which the prompt was printed.
    session: Option<u32>,
}

impl Shell {
    /// A shell that greets and prompts as soon as somebody listens.
    pub fn new<B: Machine>() -> Shell {
        let mut shell = Shell {
            out: Text::NEW,
            ahead: Deque::new(),
            editor: Editor::new(command::PHRASES),
            job: Job::Prompt,
            failed: false,
            session: None,
        };
        shell.out.print(format_args!("shell on {}: 'help' lists the commands\n", B::NAME));
        shell.prompt::<B>();
        shell
    }

    /// Does what can be done now, within a bound. Never waits.
    ///
    /// Call it after [`Link::poll`](hvl_frontend::Link::poll), and before the link is asked for its deadline.
    pub fn run<'s, B: Machine>(&mut self, devices: &mut Devices<'_, 's, B>, now: Instant) -> Next {
        self.greet_again(devices.console);
        let busy = devices.network.poll(devices.files, now);
        devices.vsock.poll();
        let next = self.rounds(devices, now);
        match next {
            Next::Wait(_) if busy => Next::Again,
            Next::Wait(until) => {
                let all = [until, devices.network.deadline(now), devices.vsock.deadline()];
                Next::Wait(all.into_iter().flatten().min())
            }
            other => other,
        }
    }

    fn rounds<'s, B: Machine>(&mut self, devices: &mut Devices<'_, 's, B>, now: Instant) -> Next {
        for _ in 0..STEPS {
            self.fill_ahead(devices.console);
            if !self.flush(devices.console) {
                return self.next(devices.console);
            }
            if self.cancelled() {
                self.drop_job(devices);
                self.out.print(format_args!("^C\nerror: cancelled\n"));
                self.finish::<B>(false);
                continue;
            }
            match self.step(devices, now) {
                Step::On => {}
                Step::Wait if self.out.is_empty() => return self.next(devices.console),
                Step::Wait => {}
                Step::Done(succeeded) => self.finish::<B>(succeeded),
                Step::End(next) => return next,
            }
        }
        // It stopped at the bound, and nobody would ring for what is left.
        Next::Again
    }

    /// What is to be said when a step could do nothing more.
    fn next<B: Machine>(&mut self, console: &mut Console<'_, B>) -> Next {
        let until = match &self.job {
            Job::Rand { until, .. }
            | Job::Sink { until, .. }
            | Job::Net(_, until)
            | Job::Bench(_, until)
            | Job::Farewell { until, .. } => *until,
            // Neither waits for anything but room.
            Job::Flood { .. } | Job::Count { .. } if self.out.is_empty() => return Next::Again,
            _ => None,
        };
        let stuck = !self.out.is_empty();
        let more = (stuck && console.write_ready() == Ok(true))
            || (!stuck && matches!(self.job, Job::Prompt) && !self.ahead.is_empty())
            || (self.wants_input() && console.read_ready() == Ok(true))
            // Asked last: each question above is a look, which may have taken the completion that is waited for.
            || (matches!(self.job, Job::Farewell { .. }) && console.flush() == Ok(()));
        if more { Next::Again } else { Next::Wait(until) }
    }

    /// Writes what waits. `false`: some of it still does.
    fn flush<B: Machine>(&mut self, console: &mut Console<'_, B>) -> bool {
        while !self.out.is_empty() {
            match console.write(self.out.as_bytes()) {
                Ok(0) | Err(NotNow::WouldBlock | NotNow::LinkDown) => return false,
                Ok(done) => self.out.consume(done),
            }
        }
        true
    }

    /// Whether what comes now would be read now.
    fn wants_input(&self) -> bool {
        match self.job {
            Job::Sink { .. } => self.out.is_empty(),
            _ => !self.ahead.is_full(),
        }
    }

    /// Reads what has come into the type-ahead, unless it is data.
    fn fill_ahead<B: Machine>(&mut self, console: &mut Console<'_, B>) {
        if matches!(self.job, Job::Sink { .. }) {
            return;
        }
        let mut bytes = [0; 64];
        loop {
            let room = AHEAD.saturating_sub(self.ahead.len()).min(bytes.len());
            let Some(into) = bytes.get_mut(..room).filter(|into| !into.is_empty()) else { return };
            let Ok(count) = console.read(into) else { return };
            for &byte in into.iter().take(count) {
                // It has room: that much was read and no more.
                let _ = self.ahead.push_back(byte);
            }
        }
    }

    /// Whether Ctrl-C was typed at a job that it ends. What was typed before it is forgotten, as a terminal does.
    fn cancelled(&mut self) -> bool {
        match self.job {
            // The line is what it cancels; data may contain it; it is too late.
            Job::Prompt | Job::Sink { .. } | Job::Farewell { .. } => return false,
            Job::Report(..)
            | Job::Rand { .. }
            | Job::Flood { .. }
            | Job::Count { .. }
            | Job::Files(_)
            | Job::Net(..)
            | Job::Sockets(_)
            | Job::Bench(..) => {}
        }
        let Some(at) = self.ahead.iter().position(|&byte| byte == CANCEL) else { return false };
        for _ in 0..=at {
            self.ahead.pop_front();
        }
        true
    }

    fn step<'s, B: Machine>(&mut self, devices: &mut Devices<'_, 's, B>, now: Instant) -> Step {
        match &mut self.job {
            Job::Prompt => self.edit(devices, now),
            Job::Report(report, line) => {
                let (report, at) = (*report, *line);
                *line = line.saturating_add(1);
                if report::line(report, at, devices, &mut self.out) { Step::On } else { Step::Done(true) }
            }
            Job::Rand { .. } => self.rand(devices.rng, now),
            Job::Files(job) => {
                let step = files::step(job, devices.files, devices.work, &mut self.out);
                self.files(step, devices)
            }
            Job::Net(job, until) => {
                let Devices { network, files, work, .. } = devices;
                // It measures, and much may have been done since this call began.
                let now = devices.console.link().board().now();
                let step = net::step(job, network, files, work, now, &mut self.out);
                match step {
                    Ok(NetStep::On) => {
                        *until = None;
                        // What was sent is to leave, and what came to be taken.
                        devices.network.poll(devices.files, now);
                        Step::On
                    }
                    Ok(NetStep::Wait(at)) => {
                        *until = Some(at);
                        Step::Wait
                    }
                    Ok(NetStep::Done(well)) => {
                        self.drop_job(devices);
                        Step::Done(well)
                    }
                    Err(error) => self.files(Err(error), devices),
                }
            }
            Job::Sockets(job) => {
                let step = sockets::step(job, devices.vsock, devices.work, &mut self.out);
                self.sockets(step, devices)
            }
            Job::Bench(job, until) => match bench::step(job, devices, &mut self.out) {
                Ok(BenchStep::On) => Step::On,
                Ok(BenchStep::Wait(at)) => {
                    *until = Some(at);
                    Step::Wait
                }
                Ok(BenchStep::Done) => {
                    self.drop_job(devices);
                    Step::Done(true)
                }
                Err(error) => self.gave_up(error, devices),
            },
            Job::Flood { at, len, sum } => {
                if at == len {
                    let line_is_open = *len % 64 != 0;
                    let sum = core::mem::replace(sum, pattern::sum()).finalize();
                    let end = if line_is_open { "\n" } else { "" };
                    self.out.print(format_args!("{end}flood: {len} bytes, CRC-32 {sum:08x}\n"));
                    return Step::Done(true);
                }
                for _ in 0..BLOCK {
                    if at == len {
                        break;
                    }
                    let byte = [pattern::byte(*at)];
                    self.out.push(&byte);
                    sum.update(&byte);
                    *at = at.saturating_add(1);
                }
                Step::On
            }
            Job::Sink { .. } => self.sink(devices.console, now),
            Job::Count { .. } => self.count(),
            Job::Farewell { next, until } => {
                let over = until.is_none_or(|until| until <= now);
                if over || devices.console.flush() == Ok(()) { Step::End(*next) } else { Step::Wait }
            }
        }
    }

    // --- the prompt -------------------------------------------------------------------------------------------------

    fn prompt<B: Machine>(&mut self) {
        self.out.print(format_args!("{}", self.said::<B>()));
    }
    fn said<B: Machine>(&self) -> Prompt {
        Prompt { name: B::NAME, failed: self.failed }
    }

    /// Shows what a key led to.
    fn show<B: Machine>(&mut self, echo: Echo, console: &mut Console<'_, B>) {
        let prompt = self.said::<B>();
        self.editor.show(echo, prompt, columns(console), &mut self.out);
    }
    /// Goes behind the line, for what is written next.
    fn leave<B: Machine>(&mut self, console: &mut Console<'_, B>) {
        let prompt = self.said::<B>();
        self.editor.leave(prompt, columns(console), &mut self.out);
    }

    fn finish<B: Machine>(&mut self, succeeded: bool) {
        self.failed = !succeeded;
        self.job = Job::Prompt;
        self.editor.clear();
        self.prompt::<B>();
    }

    /// After another PMM has come, its user sees an empty screen; the prompt and what was typed are said again.
    fn greet_again<B: Machine>(&mut self, console: &mut Console<'_, B>) {
        let session = console.link().counters().sessions;
        if session == 0 || self.session == Some(session) {
            return;
        }
        let first = self.session.replace(session).is_none();
        if !first && matches!(self.job, Job::Prompt) && self.out.is_empty() {
            self.out.push(b"\n");
            let prompt = self.said::<B>();
            self.editor.write(prompt, columns(console), &mut self.out);
        }
    }

    /// Takes the next key.
    fn edit<B: Machine>(&mut self, devices: &mut Devices<'_, '_, B>, now: Instant) -> Step {
        // Echoes are gathered: a pasted line is one write.
        while self.out.len() < BLOCK {
            let Some(key) = self.ahead.pop_front() else { return Step::Wait };
            match self.editor.key(key) {
                Key::Echo(echo) => self.show::<B>(echo, devices.console),
                Key::Cancelled => {
                    self.leave::<B>(devices.console);
                    self.out.push(b"^C\n");
                    self.editor.clear();
                    self.prompt::<B>();
                }
                Key::TooLong => {
                    self.leave::<B>(devices.console);
                    self.out.print(format_args!("\nerror: a line has at most {LINE} bytes\n"));
                    return Step::Done(false);
                }
                Key::Line => {
                    self.leave::<B>(devices.console);
                    self.out.push(b"\n");
                    return self.begin(devices, now);
                }
            }
        }
        Step::On
    }

    /// Begins what the line says.
    fn begin<B: Machine>(&mut self, devices: &mut Devices<'_, '_, B>, now: Instant) -> Step {
        // A board without a clock has no deadlines; Ctrl-C is left.
        let after = |micros| now.is_known().then(|| now.plus(micros));
        let command = match command::parse(self.editor.line()) {
            Ok(command) => command,
            Err(wrong) => {
                self.out.print(format_args!("error: {wrong}\n"));
                return Step::Done(false);
            }
        };
        self.job = match command {
            Command::Nothing => return Step::Done(!self.failed),
            Command::Echo(text) => {
                self.out.print(format_args!("{text}\n"));
                return Step::Done(true);
            }
            Command::Line(number) => {
                self.out.print(format_args!("got {number}\n"));
                return Step::Done(true);
            }
            Command::Files(task) => match files::begin(task, devices.files, &mut self.out) {
                Ok(Some(job)) => Job::Files(job),
                Ok(None) => return Step::Done(true),
                Err(error) => return self.files::<B>(Err(error), devices),
            },
            Command::Net(task) => {
                match net::begin(task, devices.network, devices.files, now, &mut self.out) {
                    Ok(Begun::Job(job)) => Job::Net(job, None),
                    Ok(Begun::Done(well)) => return Step::Done(well),
                    Err(error) => return self.files::<B>(Err(error), devices),
                }
            }
            Command::Sockets(task) => match sockets::begin(task, devices.vsock) {
                Ok(job) => Job::Sockets(job),
                Err(error) => return self.sockets::<B>(Err(error), devices),
            },
            Command::Bench(task) => match bench::begin(task, devices, now) {
                Ok(job) => Job::Bench(job, None),
                Err(error) => return self.gave_up(error, devices),
            },
            Command::Help => Job::Report(Report::Help, 0),
            Command::About => Job::Report(Report::About, 0),
            Command::Link => Job::Report(Report::Link, 0),
            Command::Rand(missing) => Job::Rand { missing, column: 0, until: after(ENTROPY) },
            Command::Flood(len) => Job::Flood { at: 0, len, sum: pattern::sum() },
            Command::Sink(len) => {
                self.editor.forget_return();
                Job::Sink { got: 0, len, sum: pattern::sum(), until: after(SILENCE) }
            }
            Command::Count(from, to) => {
                Job::Count { next: Some(from), to, printed: 0, answered: 0, line: Editor::new(&[]) }
            }
            Command::Panic | Command::Reboot => {
                let (next, what) = match command {
                    Command::Panic => (Next::Panic, "panicking"),
                    _ => (Next::Reboot, "restarting"),
                };
                self.out.print(format_args!("{what}\n"));
                Job::Farewell { next, until: after(FAREWELL) }
            }
        };
        Step::On
    }

    /// Ends what a job has under way.
    fn drop_job<B: Machine>(&mut self, devices: &mut Devices<'_, '_, B>) {
        match core::mem::replace(&mut self.job, Job::Prompt) {
            Job::Files(job) => files::end(job, devices.files),
            Job::Net(job, _) => net::end(job, devices.network, devices.files),
            Job::Sockets(job) => sockets::end(job, devices.vsock),
            Job::Bench(job, _) => bench::end(job, devices),
            _ => {}
        }
    }

    /// How far a step with sockets came.
    fn sockets<B: Machine>(
        &mut self,
        step: Result<SocketStep, SocketError>,
        devices: &mut Devices<'_, '_, B>,
    ) -> Step {
        match step {
            Ok(SocketStep::On) => Step::On,
            Ok(SocketStep::Wait) => Step::Wait,
            Ok(SocketStep::Done) => {
                self.job = Job::Prompt;
                Step::Done(true)
            }
            Err(error) => self.gave_up(error, devices),
        }
    }

    /// How far a step with files came.
    fn files<B: Machine>(
        &mut self,
        step: Result<FileStep, FileError>,
        devices: &mut Devices<'_, '_, B>,
    ) -> Step {
        match step {
            Ok(FileStep::On) => Step::On,
            Ok(FileStep::Done) => Step::Done(true),
            Err(error) => self.gave_up(error, devices),
        }
    }

    /// Ends a job that failed, and says why.
    fn gave_up<B: Machine>(
        &mut self,
        why: impl core::fmt::Display,
        devices: &mut Devices<'_, '_, B>,
    ) -> Step {
        self.drop_job(devices);
        self.out.print(format_args!("error: {why}\n"));
        Step::Done(false)
    }

    // --- jobs -------------------------------------------------------------------------------------------------------

    /// Prints what the entropy device has given, up to a line of it.
    fn rand<B: Machine>(&mut self, rng: &mut Rng<'_, B>, now: Instant) -> Step {
        let Job::Rand { missing, column, until } = &mut self.job else { return Step::On };
        if *missing == 0 {
            return Step::Done(true);
        }
        let mut bytes = [0; RANDOM_LINE];
        let want = RANDOM_LINE.saturating_sub(*column).min(*missing as usize);
        let error = match rng.fill(bytes.get_mut(..want).unwrap_or(&mut [])) {
            Ok(count) => {
                for byte in bytes.iter().take(count) {
                    self.out.print(format_args!("{byte:02x}"));
                }
                *missing = missing.saturating_sub(count as u32);
                *column = column.saturating_add(count);
                if *column >= RANDOM_LINE || *missing == 0 {
                    *column = 0;
                    self.out.push(b"\n");
                }
                *until = until.map(|_| now.plus(ENTROPY));
                return Step::On;
            }
            Err(FillError::LinkDown | FillError::WouldBlock) if until.is_none_or(|until| now < until) => {
                return Step::Wait;
            }
            Err(error) => error,
        };
        let end = if *column == 0 { "" } else { "\n" };
        self.out.print(format_args!("{end}error: {error}\n"));
        Step::Done(false)
    }

    fn sink<B: Machine>(&mut self, console: &mut Console<'_, B>, now: Instant) -> Step {
        let Job::Sink { got, len, sum, until } = &mut self.job else { return Step::On };
        if got == len {
            let sum = core::mem::replace(sum, pattern::sum()).finalize();
            self.out.print(format_args!("sink: {len} bytes, CRC-32 {sum:08x}\n"));
            return Step::Done(true);
        }
        let missing = len.saturating_sub(*got);
        // First what came before the command was read to its end.
        let count = if self.ahead.is_empty() {
            let mut bytes = [0; BLOCK];
            let want = BLOCK.min(missing as usize);
            let count = console.read(bytes.get_mut(..want).unwrap_or(&mut [])).unwrap_or(0);
            sum.update(bytes.get(..count).unwrap_or(&[]));
            count
        } else {
            let mut count = 0usize;
            while count < missing as usize {
                let Some(byte) = self.ahead.pop_front() else { break };
                sum.update(&[byte]);
                count = count.saturating_add(1);
            }
            count
        };
        *got = got.saturating_add(count as u32);
        if count != 0 {
            *until = until.map(|_| now.plus(SILENCE));
            return Step::On;
        }
        if until.is_none_or(|until| now < until) {
            return Step::Wait;
        }
        let seconds = SILENCE / 1_000_000;
        self.out.print(format_args!("error: {got} of {len} bytes came, and then none for {seconds} s\n"));
        Step::Done(false)
    }

    /// Fills one block with whole lines: answers first, since somebody waits for them.
    fn count(&mut self) -> Step {
        let Job::Count { next, to, printed, answered, line } = &mut self.job else { return Step::On };
        while self.out.len().saturating_add(ANSWER) <= BLOCK {
            let Some(key) = self.ahead.pop_front() else { break };
            if !matches!(line.key(key), Key::Line | Key::TooLong) {
                continue;
            }
            // Anything else that is typed meanwhile is nobody's command.
            if let Ok(Command::Line(number)) = command::parse(line.line()) {
                self.out.print(format_args!("got {number}\n"));
                *answered = answered.saturating_add(1);
            }
            line.clear();
        }
        while let Some(number) = *next {
            if !self.out.print_within(BLOCK, format_args!("n {number}\n")) {
                return Step::On;
            }
            *printed = printed.saturating_add(1);
            *next = number.checked_add(1).filter(|&next| to.is_none_or(|to| next <= to));
        }
        if !self.out.is_empty() {
            return Step::On;
        }
        self.out.print(format_args!("count: {printed} lines printed, {answered} answered\n"));
        Step::Done(true)
    }
}

/// How wide the terminal is, where that is known.
fn columns<B: Machine>(console: &mut Console<'_, B>) -> Option<u16> {
    Some(console.size().ok()??.0)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
