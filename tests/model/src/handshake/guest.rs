//! The guest's steps: Hello, Start, Run, Harvest, device reset; and a plain guest's few.

use super::*;

impl Handshake {
    pub(super) fn guest(&self, s: &State, out: Out) {
        use GuestAt::*;
        let (w, g) = (&s.words, &s.guest);
        let mut go = |step, hardship, change: &dyn Fn(&mut State)| {
            let mut next = *s;
            change(&mut next);
            out.push(Move { step, hardship, next });
        };
        let new_pmm = w.pmm_epoch != g.p;
        let ended = w.epoch_seen != g.epoch && !self.rule(Rule::PublishAtEnd);
        match g.at {
            LoadEpoch => {
                if w.pmm_epoch != 0 && w.pmm_epoch & 1 == 0 {
                    go("guest Hello: p := PmmEpoch", false, &|n| {
                        n.guest.p = n.words.pmm_epoch;
                        n.guest.at = CopyA;
                    });
                }
            }
            CopyA => go("guest Hello: copy static word A", false, &|n| {
                n.guest.copy[0] = n.words.statics[0];
                n.guest.at = CopyB;
            }),
            CopyB => go("guest Hello: copy static word B", false, &|n| {
                n.guest.copy[1] = n.words.statics[1];
                n.guest.at = RecheckCopy;
            }),
            RecheckCopy if new_pmm && self.rule(Rule::RecheckAfterCopy) => {
                go("guest Hello: PmmEpoch is not p, again", false, &|n| {
                    n.guest.copy = [0; 2];
                    n.guest.at = LoadEpoch;
                })
            }
            RecheckCopy => go("guest Hello: PmmEpoch is still p", false, &|n| {
                if n.guest.copy[0] != n.guest.copy[1] {
                    n.broken = Some(Broken::TornStaticWords);
                }
                n.guest.copy = [0; 2];
                n.guest.at = ZeroStatus;
            }),
            ZeroStatus if !self.rule(Rule::StatusCleared) => {
                go("guest Hello: leave Status", false, &|n| n.guest.at = ZeroReady)
            }
            ZeroStatus => go("guest Hello: Status := 0", false, &|n| {
                n.words.status = false;
                n.guest.at = ZeroReady;
            }),
            ZeroReady if !self.rule(Rule::DriverReadyCleared) => {
                go("guest Hello: leave DriverReady", false, &|n| n.guest.at = LoadOwn)
            }
            ZeroReady => go("guest Hello: DriverReady := 0", false, &|n| {
                n.words.driver_ready = 0;
                n.words.ready_of = Session::default();
                n.guest.at = LoadOwn;
            }),
            LoadOwn => go("guest Hello: load DriverEpoch", false, &|n| {
                n.guest.epoch = self.skip_zero(n.words.driver_epoch.wrapping_add(1));
                n.guest.life = 1;
                n.guest.at = LoadSeen;
            }),
            LoadSeen => go("guest Hello: load EpochSeen", false, &|n| {
                if n.words.epoch_seen == n.guest.epoch && self.rule(Rule::DriverEpochSkipsSeen) {
                    n.guest.epoch = self.skip_zero(n.guest.epoch.wrapping_add(1));
                }
                n.guest.at = StoreHello;
            }),
            StoreHello => go("guest Hello: DriverEpoch := epoch", false, &|n| {
                n.words.driver_epoch = n.guest.epoch;
                n.words.hello_of = n.guest.number;
                n.guest.at = WaitSeen;
            }),
            WaitSeen => {
                if w.epoch_seen == g.epoch {
                    go("guest Hello: EpochSeen is the epoch", false, &|n| {
                        if n.words.seen_of != n.guest.number {
                            n.broken = Some(Broken::HelloAnsweredByNobody);
                        }
                        n.guest.at = WaitPmm;
                    });
                }
                if new_pmm && self.rule(Rule::RecheckWhileWaiting) {
                    go("guest Hello: PmmEpoch is not p, again", false, &|n| say_hello(n));
                }
            }
            WaitPmm if new_pmm && self.rule(Rule::RecheckWhileWaiting) => {
                go("guest Hello: PmmEpoch is not p, again", false, &|n| say_hello(n))
            }
            WaitPmm => go("guest Hello: PmmEpoch is still p, the link is up", false, &|n| {
                if n.guest.owed {
                    n.guest.owed = false;
                    pop(n);
                }
                n.guest.at = SetUp;
            }),
            SetUp => go("guest Start: rings and buffers", false, &|n| {
                if n.words.used.index != 0 {
                    n.broken = Some(Broken::UsedIndexJumped);
                }
                n.words.available = Half { of: n.guest.session(), index: 0 };
                n.guest.posted = 0;
                n.guest.popped = 0;
                n.guest.at = StoreReady;
            }),
            StoreReady => go("guest Start: DriverReady := epoch", false, &|n| {
                n.words.driver_ready = n.guest.epoch;
                n.words.ready_of = n.guest.session();
                n.guest.at = Started;
            }),
            Started | Running => {
                if new_pmm {
                    go("guest look: PmmEpoch is not p", false, &|n| {
                        n.guest.owed = !self.rule(Rule::HarvestFirst);
                        n.guest.at = if n.guest.owed { LoadEpoch } else { Harvest };
                    });
                }
                if ended {
                    go("guest look: EpochSeen is not the epoch", false, &|n| n.guest.at = Harvest);
                }
                if g.posted < self.posts {
                    go("guest Run: post a buffer", false, &|n| {
                        n.words.available.index += 1;
                        n.words.available.of = n.guest.session();
                        n.guest.posted += 1;
                    });
                }
                if w.fault != Fault::None {
                    go("guest look: Fault is not 0", false, &|n| n.guest.at = HarvestReset);
                }
                if g.at == Started && w.device_ready == g.epoch {
                    go("guest Start: DeviceReady is the epoch", false, &|n| n.guest.at = Running);
                }
                if g.at == Running && w.used.index != g.popped {
                    go("guest Run: pop a used entry", false, &|n| pop(n));
                }
                let may = g.at == Running || !self.rule(Rule::HoldDriverReady);
                if may && s.left.resets > 0 {
                    go("*** the driver wants a device reset", true, &|n| {
                        n.left.resets -= 1;
                        n.guest.at = HarvestReset;
                    });
                }
            }
            Harvest => go("guest Harvest: read what was used", false, &|n| {
                pop(n);
                say_hello(n);
            }),
            HarvestReset => go("guest device reset: read what was used", false, &|n| {
                pop(n);
                n.guest.at = ClearReady;
            }),
            ClearReady => go("guest device reset: DriverReady := 0", false, &|n| {
                n.words.driver_ready = 0;
                n.words.ready_of = Session::default();
                n.guest.at = if self.rule(Rule::WaitDeviceReady) { WaitReset } else { next_life(n) };
            }),
            WaitReset => {
                if new_pmm {
                    go("guest look: PmmEpoch is not p", false, &|n| say_hello(n));
                }
                if ended {
                    go("guest look: EpochSeen is not the epoch", false, &|n| say_hello(n));
                }
                if w.device_ready == 0 {
                    go("guest device reset: DeviceReady is 0", false, &|n| {
                        n.guest.at = if self.rule(Rule::WaitFaultZero) { WaitFault } else { RecheckReset };
                    });
                }
            }
            WaitFault => {
                if new_pmm {
                    go("guest look: PmmEpoch is not p", false, &|n| say_hello(n));
                }
                if ended {
                    go("guest look: EpochSeen is not the epoch", false, &|n| say_hello(n));
                }
                if w.fault == Fault::None {
                    go("guest device reset: Fault is 0", false, &|n| n.guest.at = RecheckReset);
                }
            }
            RecheckReset if new_pmm && self.rule(Rule::RecheckAfterReset) => {
                go("guest device reset: PmmEpoch is not p, again", false, &|n| say_hello(n))
            }
            RecheckReset => go("guest device reset: PmmEpoch is still p", false, &|n| {
                n.guest.at = next_life(n);
            }),
            PlainStatus => go("plain guest: Status := 1", false, &|n| {
                n.words.status = true;
                n.guest.at = PlainAsk;
            }),
            PlainAsk => go("plain guest: asks for its queue", false, &|n| {
                n.words.queue_num = true;
                n.words.queue_of = n.guest.session();
                n.guest.at = PlainWait;
            }),
            PlainWait => {
                if !w.queue_num {
                    go("plain guest: acknowledged", false, &|n| {
                        n.words.available.of = n.guest.session();
                        n.guest.at = PlainRunning;
                    });
                }
            }
            PlainRunning => {
                if g.posted < self.posts {
                    go("plain guest: post a buffer", false, &|n| {
                        n.words.available.index += 1;
                        n.words.available.of = n.guest.session();
                        n.guest.posted += 1;
                    });
                }
                if w.used.index != g.popped {
                    go("plain guest: pop a used entry", false, &|n| pop(n));
                }
            }
        }
    }

    fn skip_zero(&self, epoch: u8) -> u8 {
        if epoch == 0 && self.rule(Rule::DriverEpochSkipsZero) { 1 } else { epoch }
    }
}

/// The guest hears of a new PMM, or of none, and starts over with what it may keep: nothing.
fn say_hello(n: &mut State) {
    n.guest = Guest { number: n.guest.number, epoch: n.guest.epoch, ..Guest::default() };
}

/// The rings are set up once more in the same session. The ghost wraps, so that even a protocol that does so for ever
/// has finitely many states.
fn next_life(n: &mut State) -> GuestAt {
    n.guest.life = n.guest.life % 4 + 1;
    GuestAt::SetUp
}

fn pop(n: &mut State) {
    let (used, own) = (n.words.used, n.guest.session());
    if used.index == n.guest.popped {
        return;
    }
    if used.index < n.guest.popped || used.index > n.guest.posted {
        n.broken = Some(Broken::UsedIndexJumped);
    } else if used.of != own {
        n.broken = Some(Broken::ReadForeignUsed);
    }
    n.guest.popped = used.index;
}
