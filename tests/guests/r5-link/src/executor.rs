//! Embassy's executor on this board: a loop that sleeps in WFI, and a doorbell whose interrupt wakes tasks.
//!
//! Embassy has a loop for this processor, which sleeps in WFE and leaves it with SEV. It is not used: the emulator does
//! not sleep in WFE, and the look at what has happened and the sleep after it must be one step with interrupts masked,
//! as `r5_board::sleep::unless` makes them, so that deadlines can be armed between.
//!
//! A ring is never lost between a task's look at its device and its sleep: the loop notes how often the doorbell has
//! rung before it runs the tasks, and a task that wants to sleep in that pass does so only if it has not rung since.

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use core::task::{Poll, Waker};

use critical_section::Mutex;
use embassy_executor::{Spawner, raw};
use heapless::Vec;
use hvl_frontend::adapter::embedded_io_async::AsyncBoard;
use hvl_frontend::{Clock, Instant};
use r5_board::sleep;

use crate::R5;

/// Tasks that can wait for the doorbell at once. One more is not stopped, only woken in vain.
const WAITING: usize = 8;

/// A task is to be run.
static WOKEN: AtomicBool = AtomicBool::new(false);
/// Rings so far, and as many as there were when the present pass began. Only this core counts, in its handler.
static RINGS: AtomicU32 = AtomicU32::new(0);
static PASS: AtomicU32 = AtomicU32::new(0);
static TASKS: Mutex<RefCell<Vec<Waker, WAITING>>> = Mutex::new(RefCell::new(Vec::new()));
/// The earliest deadline of a waiting task.
static DEADLINE: Mutex<Cell<Option<Instant>>> = Mutex::new(Cell::new(None));

/// Called by the executor when a task is woken, also from the interrupt handler.
// SAFETY: embassy declares exactly this function and leaves it to its user.
#[unsafe(export_name = "__pender")]
fn pender(_context: *mut ()) {
    WOKEN.store(true, Relaxed);
}

/// The doorbell's interrupt: what `r5_board::start` is given, beside the link's own note.
pub fn rang() {
    RINGS.store(RINGS.load(Relaxed).wrapping_add(1), Relaxed);
    wake_all();
}

fn wake_all() {
    critical_section::with(|cs| {
        DEADLINE.borrow(cs).set(None);
        let mut tasks = TASKS.borrow_ref_mut(cs);
        tasks.iter().for_each(Waker::wake_by_ref);
        tasks.clear();
    });
}

/// Runs tasks for ever. `init` starts the first ones.
pub fn run(executor: &'static raw::Executor, init: impl FnOnce(Spawner)) -> ! {
    init(executor.spawner());
    loop {
        PASS.store(RINGS.load(Relaxed), Relaxed);
        // SAFETY: called from here only, so never while it runs, and with the pender above.
        unsafe { executor.poll() };
        let deadline = critical_section::with(|cs| DEADLINE.borrow(cs).get());
        let woken = || WOKEN.swap(false, Relaxed);
        sleep::unless(woken, deadline.map(Instant::micros));
        if deadline.is_some_and(|deadline| deadline <= R5.now()) {
            wake_all();
        }
    }
}

impl AsyncBoard for R5 {
    async fn wait_for_doorbell(&self, deadline: Option<Instant>) {
        let before = PASS.load(Relaxed);
        let mut waited = false;
        poll_fn(|context| {
            if core::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            let listed = critical_section::with(|cs| {
                let earliest = DEADLINE.borrow(cs);
                let both = [earliest.get(), deadline].into_iter().flatten().min();
                earliest.set(both);
                let mut tasks = TASKS.borrow_ref_mut(cs);
                tasks.iter().any(|task| task.will_wake(context.waker()))
                    || tasks.push(context.waker().clone()).is_ok()
            });
            // Rung since this pass began, perhaps before the task was on the list; or the list is full. It looks again in
            // the next pass: in this one, every wait would find that ring again, and the pass would never end.
            if !listed || RINGS.load(Relaxed) != before {
                context.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await;
    }
}
