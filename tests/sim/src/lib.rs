//! Both halves of a link in one process, under a seed that decides everything else.
//!
//! The PMM's link and devices and the frontend are the real ones. Around them everything is simulated: memory, time,
//! doorbells, host ends, and death. The scheduling point is every single access to shared memory: there the other
//! side may run, or this one may die and start anew with nothing but what memory holds. One seed decides all of it,
//! so a run that fails is repeated exactly by its seed.
//!
//! - [`plan`]: what a seed decides beforehand: memory, doorbells, sizes, deaths.
//! - [`memory`]: four memories: coherent with store buffers, non-coherent with caches, Device, hostile.
//! - [`side`]: a side as a coroutine; its memory is the scheduling point. [`pmm`] and [`guest`] are what runs there.
//! - [`host`]: the host's terminal and entropy, which finish when they like, and the judge of every byte.
//! - [`traffic`]: what goes through the other devices, each with its host's end, its judge and the guest's work.
//! - [`world`]: all of that together. [`run`]: one seed from beginning to end.
//! - [`coverage`]: at which accesses a side has died.
//! - [`fault`]: planted faults, each of which has to be found.
//!
//! Who owns what: a [`world`] belongs to the run and outlives both sides; in it lie memory, and the host's end of each
//! device with everything that the judge has to remember. A side owns nothing but its coroutine, on whose stack its
//! link and devices live, and which is dropped when it dies; devices and the guest's work reach their host's end
//! through handles without content. So what a death must not lose is in the world, and what it must lose cannot be.
//!
//! What must hold in every seed but the hostile ones: what the guest's console acknowledged has arrived, in order;
//! what arrives twice was ambiguous; entropy is the source's; every word has one writer; the PMM stores nothing to
//! rings and pools after it told the guest that they are clean; no doorbell that was not lost is missed; after the
//! last death all is up again within bounded time, with no outside step; and then no timer runs but the PMM's look.
//! In hostile seeds, where loads of foreign words lie: no panic, no access outside the region, no loop without a
//! bound, no byte delivered that was not read.
#![allow(clippy::arithmetic_side_effects)]

pub mod coverage;
pub mod fault;
pub mod guest;
pub mod host;
pub mod map;
pub mod memory;
pub mod plan;
pub mod pmm;
pub mod run;
pub mod side;
pub mod trace;
pub mod traffic;
pub mod world;

/// What the guest calls the address of the region's first byte.
pub const BASE: u64 = 0x1_3700_0000;
