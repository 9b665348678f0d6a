//! Numbered lines in both directions, through restarts of anything.
//!
//! From the guest come the lines `n K` of its command `count`. A line that the PMM has taken is acknowledged to the
//! guest, so each number must come, in order; after the death of a PMM some may come twice, for what was in flight is
//! sent again: once a death, in order, and no more than the transmit queue holds ([`IN_FLIGHT`]). To the guest go lines
//! `line K`, each of which it answers with `got K`; those that were not answered when something died are sent again.
//!
//! A guest that has restarted says so by its greeting. It knows nothing of the count, and the rest of a torn line may
//! stand before it, so it is first asked for a word that nobody asked for before; what it answers until then is not
//! counted. Then the count goes on where it ended.

use anyhow::{Context, Result, bail, ensure};
use hvl_shared_abi::DeviceSpec;

use crate::guard::Guard;
use crate::terminal::{Terminal, Turn};

/// Lines that are sent ahead of their answers.
const WINDOW: u64 = 8;

/// Bytes that the guest can have in flight at the death of a PMM: the blocks of the transmit queue, which has half of
/// the console's pool.
pub const IN_FLIGHT: u64 = DeviceSpec::CONSOLE.pool as u64 / 2;

/// Where the conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The word with this number was asked for.
    Asking(u64),
    /// The count was asked for.
    Resuming,
    /// Lines flow.
    Flowing,
    /// None do, until [`Traffic::resume`].
    Held,
}

/// What flowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lines from the guest, each counted once.
    pub lines: u64,
    /// Lines that came again.
    pub duplicates: u64,
    /// Lines to the guest that it answered, each counted once.
    pub answers: u64,
    /// The most that came again after one death.
    pub most_duplicates: u64,
    /// Answers that came again.
    pub double_answers: u64,
    /// The most that came again after one death.
    pub most_double_answers: u64,
    /// Lines that were sent to the guest again.
    pub again: u64,
    /// Answers from between a restart and the word.
    pub ignored: u64,
    /// Greetings: starts of the guest.
    pub greetings: u64,
}

/// The conversation.
#[derive(Debug)]
pub struct Traffic {
    state: State,
    word: u64,
    sent: u64,
    hold: bool,
    counts: Counts,
    /// The guest's last line.
    last: Option<u64>,
    repeat: Repeat,
}

/// What the death of the last PMM allows, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Repeat {
    /// A PMM has died.
    died: bool,
    /// The guest may go back once.
    back: bool,
    /// Lines that came again.
    lines: u64,
    /// Bytes of these and of their answers.
    bytes: u64,
    /// Answers that came again.
    answers: u64,
    /// Of these, the ones that may be because the line was sent again.
    asked: u64,
}

impl Traffic {
    /// Begins at the guest's prompt.
    pub fn start(terminal: &mut Terminal) -> Traffic {
        let mut traffic = Traffic {
            state: State::Asking(0),
            word: 0,
            sent: 0,
            hold: false,
            counts: Counts::default(),
            last: None,
            repeat: Repeat::default(),
        };
        traffic.ask(terminal);
        traffic
    }

    /// What has flowed so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// New lines of both directions.
    pub fn moved(&self) -> u64 {
        self.counts.lines + self.counts.answers
    }

    /// Whether lines flow in both directions.
    pub fn flows(&self) -> bool {
        self.state == State::Flowing
    }

    /// Lets the lines of both directions end; [`Traffic::is_held`] says when they have.
    pub fn hold(&mut self, terminal: &mut Terminal) {
        self.hold = true;
        self.ask(terminal);
    }

    /// Whether no lines flow because of [`Traffic::hold`].
    pub fn is_held(&self) -> bool {
        self.state == State::Held
    }

    /// Lets them flow again.
    pub fn resume(&mut self, terminal: &mut Terminal) {
        self.hold = false;
        self.state = State::Resuming;
        terminal.send(format!("count {}\r", self.counts.lines).as_bytes());
        self.send_again(terminal);
    }

    fn ask(&mut self, terminal: &mut Terminal) {
        self.word += 1;
        self.state = State::Asking(self.word);
        // Ctrl-C ends a count, Ctrl-U takes away what is left of a line.
        terminal.send(format!("\x03\x15echo word-{}\r", self.word).as_bytes());
    }

    /// The terminal is at another PMM's console; what was under way to the last one is lost.
    pub fn reconnected(&mut self, terminal: &mut Terminal) {
        self.repeat =
            Repeat { died: true, back: true, asked: self.sent - self.counts.answers, ..Repeat::default() };
        match self.state {
            State::Flowing => {
                terminal.send(b"\x15");
                self.send_again(terminal);
            }
            // Whether the guest has heard the last request is not known.
            State::Asking(_) | State::Resuming | State::Held => self.ask(terminal),
        }
    }

    fn send_again(&mut self, terminal: &mut Terminal) {
        self.counts.again += self.sent - self.counts.answers;
        self.sent = self.counts.answers;
        self.send(terminal);
    }

    fn send(&mut self, terminal: &mut Terminal) {
        while matches!(self.state, State::Resuming | State::Flowing)
            && self.sent < self.counts.answers + WINDOW
        {
            terminal.send(format!("line {}\r", self.sent).as_bytes());
            self.sent += 1;
        }
    }

    /// Takes what the terminal has read, and answers it.
    ///
    /// # Errors
    ///
    /// A line is missing.
    pub fn take(&mut self, terminal: &mut Terminal) -> Result<()> {
        let text = terminal.lines();
        for line in text.split(|&byte| byte == b'\n') {
            self.line(line, terminal)?;
        }
        self.send(terminal);
        Ok(())
    }

    fn line(&mut self, line: &[u8], terminal: &mut Terminal) -> Result<()> {
        let text = String::from_utf8_lossy(line);
        if let Some(number) = text.strip_prefix("n ").and_then(|rest| rest.parse::<u64>().ok()) {
            let next = self.counts.lines;
            ensure!(number <= next, "the guest's line {next} is missing: {number} came");
            match number == next {
                true => self.counts.lines += 1,
                false => self.again(number, line.len())?,
            }
            self.last = Some(number);
            if self.state == State::Resuming {
                self.state = State::Flowing;
            }
        } else if let Some(number) = text.strip_prefix("got ").and_then(|rest| rest.parse::<u64>().ok()) {
            let next = self.counts.answers;
            match self.state {
                State::Asking(_) | State::Held => self.counts.ignored += 1,
                _ if number == next && number < self.sent => self.counts.answers += 1,
                _ if number < next => self.answer_again(number, line.len())?,
                _ => bail!("the answer to line {next} is missing: {number} came"),
            }
        } else if text.contains("shell on ") {
            self.counts.greetings += 1;
            self.ask(terminal);
        } else if self.state == State::Asking(self.word) && *text == format!("word-{}", self.word) {
            match self.hold {
                true => self.state = State::Held,
                false => self.resume(terminal),
            }
        }
        Ok(())
    }

    /// A line has come again.
    fn again(&mut self, number: u64, len: usize) -> Result<()> {
        if self.last.is_none_or(|last| number != last + 1) {
            ensure!(self.repeat.back, "line {number} came again after {:?}, and no pmm has died", self.last);
            self.repeat.back = false;
        }
        self.repeat.lines += 1;
        self.counts.duplicates += 1;
        self.counts.most_duplicates = self.counts.most_duplicates.max(self.repeat.lines);
        self.fits(len)
    }

    /// An answer has come again.
    fn answer_again(&mut self, number: u64, len: usize) -> Result<()> {
        self.repeat.answers += 1;
        self.counts.double_answers += 1;
        self.counts.most_double_answers = self.counts.most_double_answers.max(self.repeat.answers);
        ensure!(self.repeat.died, "the answer to line {number} came again, and no pmm has died");
        // The line was sent again, or its answer was in flight.
        match self.repeat.asked.checked_sub(1) {
            Some(rest) => self.repeat.asked = rest,
            None => self.fits(len)?,
        }
        Ok(())
    }

    /// What comes again was in flight.
    fn fits(&mut self, len: usize) -> Result<()> {
        self.repeat.bytes += len as u64 + 1;
        let Repeat { lines, bytes, answers, .. } = self.repeat;
        ensure!(
            bytes <= IN_FLIGHT,
            "{lines} lines and {answers} answers came again: {bytes} bytes, and {IN_FLIGHT} can be in flight"
        );
        Ok(())
    }

    /// Lets lines flow until `done` says so. `Closed`: the PMM has gone before.
    ///
    /// # Errors
    ///
    /// A line is missing; or none came for `seconds`.
    pub fn run(
        &mut self,
        terminal: &mut Terminal,
        seconds: u64,
        mut done: impl FnMut(&Traffic) -> bool,
    ) -> Result<Turn> {
        let mut guard = Guard::new(seconds, "lines to flow");
        let mut before = (self.moved(), self.state);
        loop {
            self.take(terminal)?;
            if done(self) {
                return Ok(Turn::Open);
            }
            if before != (self.moved(), self.state) {
                before = (self.moved(), self.state);
                guard.renew();
            }
            let turn = terminal.turn(&guard).with_context(|| {
                let rest = String::from_utf8_lossy(&terminal.incoming).into_owned();
                format!(
                    "{:?}; {:?}; {} unsent; '{}'",
                    self.state,
                    self.counts,
                    terminal.unsent(),
                    rest.escape_debug()
                )
            })?;
            if turn == Turn::Closed {
                self.take(terminal)?;
                return Ok(Turn::Closed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(state: State) -> (Traffic, Terminal) {
        let mut terminal = Terminal::default();
        let traffic = Traffic { state, word: 1, sent: 3, ..Traffic::start(&mut terminal) };
        (traffic, Terminal::default())
    }

    fn say(traffic: &mut Traffic, terminal: &mut Terminal, text: &str) -> Result<()> {
        terminal.incoming.extend_from_slice(text.as_bytes());
        traffic.take(terminal)
    }

    #[test]
    fn lines_may_come_again_and_may_not_be_missing() {
        let (mut traffic, mut terminal) = traffic(State::Flowing);
        say(&mut traffic, &mut terminal, "n 0\nn 1\ngot 0\ngot 1\n").unwrap();
        traffic.reconnected(&mut terminal);
        say(&mut traffic, &mut terminal, "n 0\nn 1\nn 2\ngot 0\nn ").unwrap();
        let counts = traffic.counts();
        assert_eq!((counts.lines, counts.duplicates), (3, 2));
        assert_eq!((counts.answers, counts.double_answers), (2, 1));
        let error = say(&mut traffic, &mut terminal, "4\n").unwrap_err().to_string();
        assert!(error.contains("line 3 is missing"), "{error}");
        let error = say(&mut traffic, &mut terminal, "got 3\n").unwrap_err().to_string();
        assert!(error.contains("line 2 is missing"), "{error}");
    }

    #[test]
    fn lines_come_again_only_after_a_death_once_and_in_order() {
        for (before, after, wrong) in [
            (Some("n 0\nn 1\nn 0\n"), "", "line 0 came again"),
            (Some("n 0\ngot 0\ngot 0\n"), "", "the answer to line 0 came again"),
            (None, "n 0\nn 1\nn 0\n", "line 0 came again"),
            (None, "n 0\nn 2\n", "line 2 came again"),
            (None, "n 3\nn 0\nn 1\nn 2\nn 3\nn 4\n", "nothing"),
        ] {
            let (mut traffic, mut terminal) = traffic(State::Flowing);
            let result = match before {
                Some(before) => say(&mut traffic, &mut terminal, before),
                None => {
                    say(&mut traffic, &mut terminal, "n 0\nn 1\nn 2\n").unwrap();
                    traffic.reconnected(&mut terminal);
                    say(&mut traffic, &mut terminal, after)
                }
            };
            let error = result.map_or_else(|error| error.to_string(), |()| "nothing".into());
            assert!(error.contains(wrong), "{before:?} {after:?}: {error}");
        }
    }

    #[test]
    fn no_more_comes_again_than_was_in_flight() {
        let (mut traffic, mut terminal) = traffic(State::Flowing);
        let lines: String = (0..4000).map(|number| format!("n {number}\n")).collect();
        say(&mut traffic, &mut terminal, &lines).unwrap();
        traffic.reconnected(&mut terminal);
        let error = say(&mut traffic, &mut terminal, &lines).unwrap_err().to_string();
        assert!(error.contains("can be in flight"), "{error}");
        assert!((IN_FLIGHT / 7..IN_FLIGHT / 4).contains(&traffic.counts().most_duplicates));
    }

    #[test]
    fn a_guest_that_restarted_is_asked_for_a_word_first() {
        let (mut traffic, mut terminal) = traffic(State::Flowing);
        say(&mut traffic, &mut terminal, "n 0\nr5> shell on r5: hello\nr5> line 7\ngot 7\n").unwrap();
        assert_eq!(traffic.state, State::Asking(2));
        say(&mut traffic, &mut terminal, "word-1\nr5> echo word-2\n").unwrap();
        assert_eq!(traffic.state, State::Asking(2));
        say(&mut traffic, &mut terminal, "word-2\nr5> count 1\nn 1\ngot 0\n").unwrap();
        assert!(traffic.flows());
        let counts = traffic.counts();
        assert_eq!((counts.ignored, counts.again, counts.lines, counts.answers), (1, 3, 2, 1));
        traffic.state = State::Resuming;
        traffic.reconnected(&mut terminal);
        assert_eq!(traffic.state, State::Asking(3));
    }
}
