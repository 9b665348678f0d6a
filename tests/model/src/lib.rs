//! The executable specification of the link's protocol.
//!
//! Three models say what the two sides of a link do to the words that they share, one access per transition, and a
//! model checker visits every state that any interleaving, any lost doorbell and any death can lead to:
//!
//! - [`handshake`]: the epochs. Publish, Hello, Adopt, Start, device reset, Fault, Shutdown, the guest that is
//!   presumed gone and is not, and the plain guest that turns up in between. Either side dies between any two stores; what was begun completes late, even after its
//!   process is dead.
//! - [`doorbell`]: one ring with EVENT_IDX, two doorbells that lose, the Bell and Seen words, and timers on the PMM's
//!   side alone. Nothing hangs, and at the end nothing ticks.
//! - [`wakeup`]: both at once, small: the hand-shake between sides that really sleep, with lost doorbells *and* deaths.
//!   It is about what the Bell and Seen words hold after a restart.
//!
//! **The protocol may be changed only together with this model.** Every transition is labelled with the step it is,
//! in the words of the protocol: `Publish`, `Hello`, `Adopt`, `Start`, `Run`, `Sleep`, `Shutdown`, and the name of the
//! word that it loads or stores: PmmEpoch, DriverEpoch, EpochSeen, DeviceReady, DriverReady, Fault, Status, PmmBell,
//! PmmSeen, DriverBell, DriverSeen. Every rule of the protocol is a value of an enum `Rule`, and each model can be run
//! with one rule switched off. The tests hold both ends: with all rules the model is safe and live, and without any one
//! of them it fails by the property that the test names. The few rules that are covered by another one have a test
//! that says which.
//!
//! *Safe* means that no `always` property is ever violated. *Live* means that from every state that can be reached at
//! all, the goal can still be reached without another death, fault or reset ([`stranded`] finds a state from which it
//! cannot). That is stronger than "eventually" on some paths and, as every wait in the protocol is polled or re-rung,
//! all that a fair scheduler needs.
//!
//! Memory is sequentially consistent here, and that is a deliberate limit: an exhaustive search over store buffers
//! would be far too large. A missing `publish`, `observe` or `settle` is shown as the reordering it permits where
//! that is a rule of its own; whether the code has its barriers is for loom and the simulator to find.
//!
//! Fields that no processor can see (who stored a word, for which session) are called *ghosts*; transitions never
//! depend on them, properties do.

pub mod doorbell;
pub mod handshake;
pub mod wakeup;

mod explore;

pub use explore::{Move, Spec, caught, live, safe, stranded, verify};
