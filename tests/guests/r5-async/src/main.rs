//! Console and entropy as two tasks on embassy's executor: each owns its device and makes progress alone, and while
//! both wait the processor sleeps in WFI.
//!
//! The console's task is a small shell with the prompt protocol of the large one; the entropy's task keeps one block of
//! random bytes ready. After a panic: as in r5-shell.
#![no_std]
#![no_main]

use core::fmt::{self, Write as _};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use embassy_executor::raw::Executor;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::channel::Channel;
use embedded_io_async::{Read, Write};
use hvl_frontend::adapter::embedded_io_async::{AsyncConsole, fill};
use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::rng::{Rng, RngStorage};
use hvl_frontend::{Link, LinkStorage};
use hvl_guest_shell::command::{self, Command};
use hvl_guest_shell::editor::{Editor, HISTORY, Key, Prompt, SHOWN};
use hvl_guest_shell::text::{BLOCK, Text};
use hvl_guest_shell::{Machine, pattern, report};
use r5_board::{boot, logln};
use r5_link::{R5, executor};
use static_cell::{ConstStaticCell, StaticCell};

static LINK: LinkStorage<'static> = LinkStorage::NEW;
static CONSOLE: ConstStaticCell<ConsoleStorage> = ConstStaticCell::new(ConsoleStorage::NEW);
static RNG: ConstStaticCell<RngStorage> = ConstStaticCell::new(RngStorage::NEW);
static EXECUTOR: StaticCell<Executor> = StaticCell::new();
/// The tasks have run.
static RUNS: AtomicBool = AtomicBool::new(false);

/// Random bytes of one line of output.
const RANDOM: usize = 32;
/// From the entropy's task to the console's.
static BYTES: Channel<CriticalSectionRawMutex, [u8; RANDOM], 1> = Channel::new();

const NAME: &str = "r5-async";
const HELP: &str = "\
help          this list
about         processor, profile, epochs, memory
rand N        N random bytes from the link's entropy device, in hex
echo TEXT     prints TEXT
flood N       prints N bytes of a pattern, then their count and CRC-32
line K        answers 'got K'
link          what the frontend counted
panic         panics: the last words go to the PMM, and the board restarts
reboot        restarts the board
";
/// What Tab completes.
const PHRASES: &[&str] = &["about", "echo ", "flood ", "help", "line ", "link", "panic", "rand ", "reboot"];

#[r5_board::entry]
fn main() -> ! {
    r5_board::start(|| {
        LINK.rang();
        executor::rang();
    });
    logln!("r5-async: MIDR {:#010x}", r5_board::midr());
    let Ok(link) = Link::attach(&LINK, R5) else { panic!("the link cannot be attached") };
    let console = Console::open(&link, CONSOLE.take(), Options::default());
    let rng = Rng::open(&link, RNG.take());
    let (Ok(console), Ok(rng)) = (console, rng) else { panic!("the devices cannot be opened") };
    let executor = EXECUTOR.init(Executor::new(core::ptr::null_mut()));
    executor::run(executor, |spawner| match (entropy(rng), shell(console)) {
        (Ok(entropy), Ok(shell)) => {
            spawner.spawn(entropy);
            spawner.spawn(shell);
        }
        _ => panic!("there is no room for the tasks"),
    })
}

/// Keeps a block of random bytes ready.
#[embassy_executor::task]
async fn entropy(mut rng: Rng<'static, R5>) {
    loop {
        let mut bytes = [0; RANDOM];
        fill(&mut rng, &mut bytes).await;
        BYTES.send(bytes).await;
    }
}

/// What is to be done after a command.
enum End {
    /// It has succeeded or failed.
    Command(bool),
    /// A warm restart.
    Reboot,
    /// A panic.
    Panic,
}

/// Reads lines and answers them.
#[embassy_executor::task]
async fn shell(mut console: Console<'static, R5>) {
    RUNS.store(true, Ordering::Relaxed);
    let mut editor = Editor::<HISTORY>::new(PHRASES);
    let mut prompt = Prompt { name: NAME, failed: false };
    print(&mut console, format_args!("shell on {NAME}: 'help' lists the commands\n{prompt}")).await;
    loop {
        let mut keys = [0; 64];
        let Ok(count) = AsyncConsole::new(&mut console).read(&mut keys).await;
        // One write for what a paste echoes.
        let mut echo = Text::<{ BLOCK + SHOWN }>::NEW;
        for &key in keys.iter().take(count) {
            if echo.len() >= BLOCK {
                send(&mut console, echo.as_bytes()).await;
                echo.clear();
            }
            let columns = console.size().ok().flatten().map(|(columns, _)| columns);
            let key = editor.key(key);
            if !matches!(key, Key::Echo(_)) {
                editor.leave(prompt, columns, &mut echo);
            }
            let succeeded = match key {
                Key::Echo(how) => {
                    editor.show(how, prompt, columns, &mut echo);
                    continue;
                }
                Key::Cancelled => {
                    echo.push(b"^C\n");
                    true
                }
                Key::TooLong => {
                    echo.push(b"\nerror: the line is too long\n");
                    false
                }
                Key::Line => {
                    echo.push(b"\n");
                    send(&mut console, echo.as_bytes()).await;
                    echo.clear();
                    match answer(&mut console, editor.line()).await {
                        End::Command(succeeded) => succeeded,
                        End::Reboot => boot::reboot(),
                        End::Panic => panic!("asked to, by the command 'panic'"),
                    }
                }
            };
            editor.clear();
            prompt.failed = !succeeded;
            echo.print(format_args!("{prompt}"));
        }
        send(&mut console, echo.as_bytes()).await;
    }
}

/// Runs one command.
async fn answer(console: &mut Console<'static, R5>, line: &[u8]) -> End {
    let command = match command::parse(line) {
        Ok(command) => command,
        Err(wrong) => {
            print(console, format_args!("error: {wrong}\n")).await;
            return End::Command(false);
        }
    };
    match command {
        Command::Nothing => {}
        Command::Help => send(console, HELP.as_bytes()).await,
        Command::About => about(console).await,
        Command::Echo(text) => print(console, format_args!("{text}\n")).await,
        Command::Line(number) => print(console, format_args!("got {number}\n")).await,
        Command::Link => counters(console).await,
        Command::Rand(count) => rand(console, count).await,
        Command::Flood(len) => flood(console, len).await,
        Command::Reboot | Command::Panic => {
            send(console, b"restarting\n").await;
            let Ok(()) = AsyncConsole::new(console).flush().await;
            return if command == Command::Panic { End::Panic } else { End::Reboot };
        }
        Command::Sink(_)
        | Command::Count(..)
        | Command::Files(_)
        | Command::Net(_)
        | Command::Sockets(_)
        | Command::Bench(_) => {
            send(console, b"error: r5-async has no such command; 'help' lists what it has\n").await;
            return End::Command(false);
        }
    }
    End::Command(true)
}

async fn about(console: &mut Console<'static, R5>) {
    let mut text = Text::<512>::NEW;
    let _ = write!(text, "board      {NAME}: tasks on embassy-executor\nprocessor  ");
    let _ = R5.processor(&mut text);
    for line in 0.. {
        text.push(b"\n");
        if report::link_line(line, console.link(), &mut text).is_none() {
            break;
        }
    }
    send(console, text.as_bytes()).await;
}

async fn counters(console: &mut Console<'static, R5>) {
    for line in 0.. {
        let mut text = Text::<64>::NEW;
        if report::counter_line(line, console, &mut text).is_none() {
            break;
        }
        text.push(b"\n");
        send(console, text.as_bytes()).await;
    }
}

async fn rand(console: &mut Console<'static, R5>, count: u32) {
    let mut missing = count as usize;
    while missing > 0 {
        let bytes = BYTES.receive().await;
        let mut line = Text::<{ 2 * RANDOM + 1 }>::NEW;
        for byte in bytes.iter().take(missing) {
            line.print(format_args!("{byte:02x}"));
        }
        line.push(b"\n");
        missing = missing.saturating_sub(RANDOM);
        send(console, line.as_bytes()).await;
    }
}

async fn flood(console: &mut Console<'static, R5>, len: u32) {
    let mut sum = pattern::sum();
    let mut at = 0;
    while at < len {
        let mut block = Text::<BLOCK>::NEW;
        while at < len && block.push(&[pattern::byte(at)]) {
            at += 1;
        }
        sum.update(block.as_bytes());
        send(console, block.as_bytes()).await;
    }
    let end = if len.is_multiple_of(64) { "" } else { "\n" };
    print(console, format_args!("{end}flood: {len} bytes, CRC-32 {:08x}\n", sum.finalize())).await;
}

/// Prints text of up to 512 bytes.
async fn print(console: &mut Console<'static, R5>, text: fmt::Arguments<'_>) {
    let mut line = Text::<512>::NEW;
    line.print(text);
    send(console, line.as_bytes()).await;
}

/// Hands everything to the console; waits for room, also while no PMM is there.
async fn send(console: &mut Console<'static, R5>, bytes: &[u8]) {
    let Ok(()) = AsyncConsole::new(console).write_all(bytes).await;
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    boot::report_panic(info);
    let mut words = Text::<256>::NEW;
    // Cut where the region has no room for more.
    let _ = write!(words, "{info}");
    LINK.leave_last_words(&R5, words.as_bytes());
    if RUNS.load(Ordering::Relaxed) { boot::reboot() } else { boot::halt() }
}
