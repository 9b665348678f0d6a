//! The driver side of a hypervisor-less virtio link: a `no_std` library for RTOS and bare-metal firmware.
//!
//! Firmware shares memory and a doorbell with a **PMM** on another processor, which offers virtio devices: a console,
//! entropy. This crate drives them. There is no heap, no call blocks, and the order in which the two sides start, stop
//! and crash does not matter.
//!
//! # A firmware
//!
//! ```
//! use core::sync::atomic::{AtomicU32, Ordering};
//! use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
//! use hvl_frontend::device::rng::{Rng, RngStorage};
//! use hvl_frontend::{Board, Clock, Doorbell, Instant, Link, LinkStorage};
//! use hvl_shared_abi::{Attribute, Region, ShmRegion};
//!
//! #[derive(Clone)]
//! struct MyBoard { region: Region }
//!
//! impl Doorbell for MyBoard {
//!     fn ring(&self) { /* store to the mailbox */ }
//! }
//! impl Clock for MyBoard {
//!     fn now(&self) -> Instant { Instant::UNKNOWN /* or a timer, in microseconds */ }
//! }
//! impl Board for MyBoard {
//!     type Mem = Region;
//!     fn mem(&self) -> &Region { &self.region }
//!     fn region(&self) -> ShmRegion { ShmRegion { base: 0x1000_0000, len: 0x2_0000 } }
//! }
//!
//! static LINK: LinkStorage = LinkStorage::NEW;
//!
//! fn on_doorbell() { LINK.rang() }            // all that an interrupt handler does
//!
//! # static MEMORY: [AtomicU32; 0x8000] = [const { AtomicU32::new(0) }; 0x8000];
//! # fn storage() -> (&'static mut RngStorage, &'static mut ConsoleStorage) {
//! #     (Box::leak(Box::default()), Box::leak(Box::new(ConsoleStorage::NEW)))
//! # }
//! let region = Region::in_words(&MEMORY, Attribute::Coherent);      // a real one: `Region::new`
//! let link = Link::attach(&LINK, MyBoard { region })?;
//! let (rng_storage, console_storage) = storage();                   // from your static cells
//! let mut rng = Rng::open(&link, rng_storage)?;
//! let mut console = Console::open(&link, console_storage, Options::default())?;
//!
//! let (mut seed, mut line) = ([0; 32], [0; 80]);
//! loop {
//!     link.poll();                                                  // bounded; never blocks
//!     let _ = rng.fill(&mut seed);                                  // Err: not yet, try after a doorbell
//!     if let Ok(n) = console.read(&mut line) {
//!         let _ = console.write(&line[..n]);                        // Err(LinkDown): no PMM at the moment
//!     }
//!     match link.next_deadline() {                                  // last thing before sleeping
//!         Some(deadline) if deadline <= link.board().now() => {}    // there is more to do
//!         _until => break, // WFI
//!     }
//! }
//! # on_doorbell();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A tour, from the bottom up
//!
//! - [`platform`]: what a board gives: memory, a doorbell, a clock.
//! - [`hvl_shared_abi`]: what both sides agree on, down to the only code that touches shared words.
//! - [`bounce`]: buffers anywhere become blocks in the region; what was in flight at a restart.
//! - `transport`: from what the PMM published to running queues, and back after a fault.
//! - [`link`]: epochs, doorbells, and the storage that tasks share.
//! - [`device`]: [`Console`](device::console::Console), [`Rng`](device::rng::Rng), [`Net`](device::net::Net).
//! - `adapter`: the devices behind the traits of `embedded-io`, `embedded-io-async`, `rand_core` and
//!   `virtio-drivers`, one cargo feature each.
//!
//! # One loop, or a task for each device
//!
//! In one loop, [`Link::poll`] looks at everything. With a task for each device, each task owns its handle (they are
//! `Send`), calls only that, and sleeps until its `next_deadline`; nobody calls `Link::poll`. The doorbell's handler
//! then wakes every task. Locks between the tasks are only ever tried: whoever finds one taken gets `WouldBlock`, and
//! a deadline of a millisecond.
//!
//! # Goals
//!
//! - A hostile PMM can make the devices useless, and nothing else: no panic, no access outside the region, no loop
//!   without a bound, no wait without a deadline.
//! - Either side restarts at any instant; what was acknowledged is not lost.
//! - Small: console, entropy, ring and link are meant to fit where firmware is counted in kilobytes.
//!
//! # Anti-goals
//!
//! - **Not supported**: other ring formats than split, indirect descriptors on this side, buffers used in place for
//!   receiving, closing a device, the plain profile, big-endian processors.
//! - Not the fastest possible path for bulk data between two sides that trust each other: everything received is
//!   copied out of shared memory before anybody looks at it.
#![no_std]
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

#[cfg(test)]
extern crate std;

#[cfg(any(
    feature = "embedded-io",
    feature = "embedded-io-async",
    feature = "rand_core",
    feature = "smoltcp",
    feature = "embassy-net-driver",
    feature = "virtio-drivers"
))]
pub mod adapter;
pub mod bounce;
pub mod device;
pub mod link;
pub mod platform;
mod transport;

pub use link::{AttachError, Counters, Link, LinkState, LinkStorage, OpenError, Refusal};
pub use platform::{Board, Clock, Doorbell, Instant, MemOps, Wait};

/// The README's firmware compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
