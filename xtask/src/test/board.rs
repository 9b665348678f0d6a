//! The board by itself, with `r5-hello` and no link: if this fails, nothing above it can work.
//!
//! The shared memory is read and written through the file, which the emulator has mapped: both see the same pages.

use anyhow::{Context as _, Result, bail, ensure};
use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    time::{Duration, Instant},
};

use super::Context;
use crate::paths;
use hvl_test_board::{Board, Files, SHARED_BASE};

/// Guards against waiting for ever; a whole boot takes a third of a second on an idle machine.
const GUARD: Duration = Duration::from_secs(30);
/// A ring that the board was not yet ready for is lost; it is rung again this often, for as long as the guard says.
const AGAIN: Duration = Duration::from_millis(100);
const ROUND_TRIPS: usize = 1000;

/// The words of `r5-hello`, in its order.
#[derive(Clone, Copy, Debug)]
enum Word {
    Command,
    Rings,
    Starts,
    WakeUps,
    Now,
    Slept,
}

/// Commands of `r5-hello`.
const NOTHING: u32 = 0;
const SLEEP: u32 = 1;
const RESTART: u32 = 2;
const PANIC: u32 = 3;
const STRAY_ACCESS: u32 = 4;

/// The host's end: the shared memory and the doorbell.
struct Peer {
    memory: File,
    doorbell: UnixStream,
}

impl Peer {
    /// Connects to a board that is starting, and returns when it has rung.
    fn connect(files: &Files) -> Result<Self> {
        let memory =
            File::options().read(true).write(true).open(&files.ddr).context("the board's memory is gone")?;
        let doorbell = UnixStream::connect(&files.doorbell).context("the doorbell takes no connection")?;
        let mut peer = Self { memory, doorbell };
        peer.doorbell.set_read_timeout(Some(AGAIN))?;
        for _ in 0..GUARD.as_millis() / AGAIN.as_millis() {
            peer.ring()?;
            match peer.doorbell.read(&mut [0; 64]) {
                Ok(0) => bail!("the emulator ended while the test waited for the board's first ring"),
                Ok(_) => {
                    peer.doorbell.set_read_timeout(Some(GUARD))?;
                    return Ok(peer);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).context("the doorbell broke"),
            }
        }
        bail!("the board has not rung within {} s of its start", GUARD.as_secs());
    }

    fn read(&self, word: Word) -> Result<u32> {
        let mut bytes = [0; 4];
        self.memory.read_exact_at(&mut bytes, SHARED_BASE + 4 * word as u64)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write(&self, word: Word, value: u32) -> Result<()> {
        Ok(self.memory.write_all_at(&value.to_le_bytes(), SHARED_BASE + 4 * word as u64)?)
    }

    fn ring(&mut self) -> Result<()> {
        Ok(self.doorbell.write_all(&[1])?)
    }

    /// Waits for rings until `word` fulfils `condition`.
    fn wait(&mut self, word: Word, condition: impl Fn(u32) -> bool) -> Result<u32> {
        loop {
            let value = self.read(word)?;
            if condition(value) {
                return Ok(value);
            }
            let read = self.doorbell.read(&mut [0; 64]);
            match read
                .with_context(|| format!("no ring came while waiting for {word:?}, which is {value}"))?
            {
                0 => bail!("the emulator ended while the test waited for {word:?}, which is {value}"),
                _ => continue,
            }
        }
    }

    /// Gives a command and waits until `word` fulfils `condition`.
    fn command(&mut self, command: u32, word: Word, condition: impl Fn(u32) -> bool) -> Result<u32> {
        self.write(Word::Command, command)?;
        self.ring()?;
        let value = self.wait(word, condition)?;
        self.write(Word::Command, NOTHING)?;
        Ok(value)
    }
}

pub fn run(context: &Context) -> Result<()> {
    let tools = context.tools()?;
    let firmware = tools.toolchain.build("r5-hello")?;
    let files = Files::fresh(&paths::run_dir("board"), firmware)?;
    let mut board = Board::start(&tools.emulator, files)?;
    doorbells(&board)?;
    clock_and_sleep(&board)?;
    warm_restart(&board)?;
    board.power_cycle()?;
    let starts = Peer::connect(board.files())?.read(Word::Starts)?;
    ensure!(starts == 3, "after two starts, a power cut and a third, the shared memory says {starts} starts");
    for (command, words) in [(PANIC, "panicked at"), (STRAY_ACCESS, "access to 0x40000000")] {
        last_words(&mut board, command, words)?;
    }
    Ok(())
}

/// Every ring arrives and is answered.
fn doorbells(board: &Board) -> Result<()> {
    let start = Instant::now();
    let mut peer = Peer::connect(board.files())?;
    ensure!(board.early_log().contains("MIDR 0x411fc1"), "this is no Cortex-R5: {}", board.early_log());
    eprintln!("board: answers {:.2} s after its start", start.elapsed().as_secs_f32());
    let mut trips = Vec::with_capacity(ROUND_TRIPS);
    let (rings, wake_ups) = (peer.read(Word::Rings)?, peer.read(Word::WakeUps)?);
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        let before = peer.read(Word::Rings)?;
        peer.ring()?;
        peer.wait(Word::Rings, |rings| rings > before)?;
        trips.push(start.elapsed().as_micros());
    }
    // WFI may end for nothing, but many wake-ups without a ring mean that something else interrupts, or that a sleep
    // ended with its interrupt masked.
    let rings = peer.read(Word::Rings)?.wrapping_sub(rings);
    let wake_ups = peer.read(Word::WakeUps)?.wrapping_sub(wake_ups);
    ensure!(wake_ups <= rings + rings / 10, "{rings} rings woke the board {wake_ups} times");
    trips.sort_unstable();
    eprintln!("board: doorbell there and back: median {} µs of {ROUND_TRIPS}", trips[ROUND_TRIPS / 2]);
    Ok(())
}

/// The clock moves, a deadline ends a sleep, and nothing else does.
fn clock_and_sleep(board: &Board) -> Result<()> {
    let mut peer = Peer::connect(board.files())?;
    peer.write(Word::Slept, 0)?;
    let before = peer.read(Word::Now)?;
    let wake_ups = peer.read(Word::WakeUps)?;
    let slept = peer.command(SLEEP, Word::Slept, |slept| slept > 0)?;
    ensure!(slept >= 50_000, "a sleep of 50 ms ended after {slept} µs");
    let after = peer.wait(Word::Now, |now| now.wrapping_sub(before) >= slept)?;
    let wake_ups = peer.read(Word::WakeUps)?.wrapping_sub(wake_ups);
    eprintln!("board: slept {slept} µs of 50000 with {wake_ups} wake-ups; the clock stands at {after} µs");
    Ok(())
}

/// A restart initialises `.data` and `.bss` again and leaves the shared memory alone.
fn warm_restart(board: &Board) -> Result<()> {
    let mut peer = Peer::connect(board.files())?;
    peer.command(RESTART, Word::Starts, |starts| starts == 2)?;
    let starts: Vec<_> = board.early_log().lines().map(str::to_owned).collect();
    ensure!(
        starts.len() == 2 && starts.iter().all(|line| line.ends_with("rings 0, canary 0x600d")),
        "{starts:?}"
    );
    Ok(())
}

/// After a fault, the early log says what happened.
fn last_words(board: &mut Board, command: u32, words: &str) -> Result<()> {
    board.power_cycle()?;
    let mut peer = Peer::connect(board.files())?;
    // The last thing that a dying r5-hello does is to clear the command and ring.
    peer.write(Word::Command, command)?;
    peer.ring()?;
    peer.wait(Word::Command, |command| command == NOTHING)?;
    ensure!(board.early_log().contains(words), "{words:?} is missing in {:?}", board.early_log());
    Ok(())
}
