//! The PMM's steps: Publish, Adopt, Start, Run, device reset, Fault, the plain guest, Shutdown.

use super::*;

impl Handshake {
    pub(super) fn pmm(&self, s: &State, out: Out) {
        let (w, p) = (&s.words, &s.pmm);
        let mut go = |step, change: &dyn Fn(&mut State)| {
            let mut next = *s;
            change(&mut next);
            out.push(Move { step, hardship: false, next });
        };
        match p.at {
            PmmAt::Begin => {
                if s.orphan.is_some() && self.rule(Rule::WaitForPredecessor) {
                    return;
                }
                if !self.rule(Rule::KeepRegion) && w.pmm_epoch != 0 {
                    go("PMM Publish: zero the whole region", &|n| n.words = Words::default());
                    return;
                }
                go("PMM Publish: load PmmEpoch", &|n| {
                    let v = n.words.pmm_epoch;
                    n.pmm.odd = if v & 1 == 0 { v.wrapping_add(1) } else { v.wrapping_add(2) };
                    n.pmm.at = PmmAt::StoreOdd;
                });
            }
            PmmAt::StoreOdd if !self.rule(Rule::OddWhileWritten) => {
                go("PMM Publish: leave PmmEpoch even", &|n| n.pmm.at = PmmAt::ZeroSeen)
            }
            PmmAt::StoreOdd => go("PMM Publish: PmmEpoch := odd", &|n| {
                n.words.pmm_epoch = n.pmm.odd;
                n.pmm.at = PmmAt::ZeroSeen;
            }),
            PmmAt::ZeroSeen if !self.rule(Rule::SeenZeroed) => {
                go("PMM Publish: leave EpochSeen", &|n| n.pmm.at = PmmAt::ZeroReady)
            }
            PmmAt::ZeroSeen => go("PMM Publish: EpochSeen := 0", &|n| {
                n.words.epoch_seen = 0;
                n.words.seen_of = 0;
                n.pmm.at = PmmAt::ZeroReady;
            }),
            PmmAt::ZeroReady => go("PMM Publish: DeviceReady := 0", &|n| {
                n.words.device_ready = 0;
                n.pmm.at = PmmAt::ZeroFault;
            }),
            PmmAt::ZeroFault => go("PMM Publish: Fault := 0", &|n| {
                n.words.fault = Fault::None;
                n.pmm.at = PmmAt::StaticA;
            }),
            PmmAt::StaticA => go("PMM Publish: static word A", &|n| {
                n.words.statics[0] = n.pmm.number;
                n.pmm.at = PmmAt::StaticB;
            }),
            PmmAt::StaticB => go("PMM Publish: static word B", &|n| {
                n.words.statics[1] = n.pmm.number;
                n.pmm.at = PmmAt::Snapshot;
            }),
            PmmAt::Snapshot => go("PMM Publish: d0 := DriverEpoch", &|n| {
                n.pmm.d0 = if self.rule(Rule::SnapshotDriverEpoch) { n.words.driver_epoch } else { 0 };
                n.pmm.at = PmmAt::StoreEven;
            }),
            PmmAt::StoreEven => go("PMM Publish: PmmEpoch := even", &|n| {
                let even = n.pmm.odd.wrapping_add(1);
                n.words.pmm_epoch = if even == 0 && self.rule(Rule::PmmEpochSkipsZero) { 2 } else { even };
                n.pmm.odd = 0;
                n.pmm.at = PmmAt::Serve;
            }),
            PmmAt::Serve => self.serve(s, out),
            PmmAt::AdoptDrain => go("PMM Adopt: stop queues, drain", &|n| {
                if self.rule(Rule::Drain) {
                    n.pmm.work = None;
                }
                n.pmm.ready = false;
                n.pmm.faulted = false;
                n.pmm.at =
                    if self.rule(Rule::ResetBeforeSeen) { PmmAt::AdoptClear } else { PmmAt::AdoptSeen };
            }),
            PmmAt::AdoptClear => go("PMM Adopt: clear own half of the ring", &|n| {
                let of = Session { guest: n.pmm.hello_of, epoch: n.pmm.hello, life: 0 };
                clear_used(n, of);
                n.pmm.at = PmmAt::AdoptReady;
            }),
            PmmAt::AdoptReady => go("PMM Adopt: DeviceReady := 0", &|n| {
                n.words.device_ready = 0;
                n.pmm.at = PmmAt::AdoptFault;
            }),
            PmmAt::AdoptFault => go("PMM Adopt: Fault := 0", &|n| {
                n.words.fault = Fault::None;
                let adopted = !self.rule(Rule::ResetBeforeSeen);
                n.pmm.at = if adopted { PmmAt::Serve } else { PmmAt::AdoptSeen };
            }),
            PmmAt::AdoptSeen => go("PMM Adopt: EpochSeen := DriverEpoch", &|n| {
                n.words.epoch_seen = n.pmm.hello;
                n.words.seen_of = n.pmm.hello_of;
                n.pmm.adopted = n.pmm.hello;
                n.pmm.adopted_of = n.pmm.hello_of;
                n.pmm.mode = Mode::Extended;
                n.pmm.at = if self.rule(Rule::ResetBeforeSeen) { PmmAt::Serve } else { PmmAt::AdoptClear };
            }),
            PmmAt::StartDevice => {
                go("PMM Start: features accepted, DeviceReady := epoch", &|n| {
                    n.words.device_ready = n.pmm.adopted;
                    n.pmm.ready = true;
                    n.pmm.taken = 0;
                    n.pmm.done = 0;
                    n.pmm.at = PmmAt::Serve;
                });
                if s.left.faults > 0 {
                    go("PMM Start: Fault := features refused", &|n| {
                        n.words.fault = Fault::FeaturesRefused;
                        n.pmm.faulted = true;
                        n.left.faults -= 1;
                        n.pmm.at = PmmAt::Serve;
                    });
                    out.last_mut().expect("just pushed").hardship = true;
                }
            }
            PmmAt::Batch => {
                if w.available.index > p.taken {
                    go("PMM Run: take an available entry", &|n| {
                        if n.words.available.of != n.pmm.serving {
                            n.broken = Some(Broken::TookForeignAvailable);
                        }
                        n.pmm.taken += 1;
                        n.pmm.work = Some(n.pmm.serving);
                        n.pmm.at = PmmAt::Serve;
                    });
                } else {
                    go("PMM Run: nothing available", &|n| n.pmm.at = PmmAt::Serve);
                }
            }
            PmmAt::WriteUsed => go("PMM Run: store the used index", &|n| {
                if let Some(of) = n.pmm.work.take() {
                    n.pmm.done += 1;
                    let index = n.pmm.done;
                    write_used(n, of, index);
                }
                n.pmm.at = PmmAt::Serve;
            }),
            PmmAt::FaultDrain => go("PMM Fault: stop, drain", &|n| {
                n.pmm.work = None;
                n.pmm.at = PmmAt::FaultStore;
            }),
            PmmAt::FaultStore => go("PMM Fault: Fault := needs reset", &|n| {
                n.words.fault = Fault::NeedsReset;
                n.pmm.faulted = true;
                n.pmm.at = PmmAt::Serve;
            }),
            PmmAt::ResetDrain => go("PMM device reset: drain", &|n| {
                if self.rule(Rule::DrainBeforeReset) {
                    n.pmm.work = None;
                }
                n.pmm.at = PmmAt::ResetClear;
            }),
            PmmAt::ResetClear => go("PMM device reset: clear own half of the ring", &|n| {
                let of = Session { guest: n.pmm.adopted_of, epoch: n.pmm.adopted, life: 0 };
                clear_used(n, of);
                n.pmm.at = PmmAt::ResetFault;
            }),
            PmmAt::ResetFault => go("PMM device reset: Fault := 0", &|n| {
                n.words.fault = Fault::None;
                n.pmm.faulted = false;
                n.pmm.at = PmmAt::ResetReady;
            }),
            PmmAt::ResetReady => go("PMM device reset: DeviceReady := 0", &|n| {
                n.words.device_ready = 0;
                n.pmm.ready = false;
                n.pmm.at = PmmAt::Serve;
            }),
            PmmAt::EndExtended => go("PMM plain: end the extended session", &|n| {
                if self.rule(Rule::EndExtendedFirst) {
                    n.pmm.work = None;
                }
                n.pmm.ready = false;
                n.pmm.faulted = false;
                n.pmm.mode = Mode::Plain;
                n.pmm.at = PmmAt::EndSeen;
            }),
            PmmAt::PresumeGone => go("PMM end: stop, drain, release", &|n| {
                n.pmm.work = None;
                n.pmm.ready = false;
                n.pmm.faulted = false;
                n.pmm.mode = Mode::Nobody;
                n.pmm.at = PmmAt::EndSeen;
                if self.rule(Rule::PublishAtEnd) {
                    n.pmm = Pmm { number: n.pmm.number, ..Pmm::default() };
                }
            }),
            PmmAt::EndSeen => go("PMM end: EpochSeen := 0", &|n| {
                n.words.epoch_seen = 0;
                n.words.seen_of = 0;
                // What was adopted is no hello a second time.
                if n.pmm.adopted != 0 {
                    n.pmm.d0 = n.pmm.adopted;
                    n.pmm.adopted = 0;
                }
                n.pmm.at = PmmAt::Serve;
            }),
            PmmAt::PlainDrain => go("PMM plain: drain", &|n| {
                if self.rule(Rule::EndExtendedFirst) {
                    n.pmm.work = None;
                }
                n.pmm.at = PmmAt::PlainClear;
            }),
            PmmAt::PlainClear => go("PMM plain: clear own half of the ring", &|n| {
                let of = n.words.queue_of;
                clear_used(n, of);
                n.pmm.at = PmmAt::PlainTake;
            }),
            PmmAt::PlainTake => go("PMM plain: the available index as it stands", &|n| {
                n.pmm.taken = n.words.available.index;
                n.pmm.done = 0;
                n.pmm.at = PmmAt::PlainAnswer;
            }),
            PmmAt::PlainAnswer => go("PMM plain: acknowledge", &|n| {
                n.words.queue_num = false;
                n.words.answered_by = n.pmm.number;
                n.pmm.serving = n.words.queue_of;
                n.pmm.ready = true;
                n.pmm.at = PmmAt::Serve;
            }),
            PmmAt::ShutDrain => go("PMM Shutdown: stop, drain", &|n| {
                n.pmm.work = None;
                n.pmm.at = PmmAt::ShutOdd;
            }),
            PmmAt::ShutOdd => go("PMM Shutdown: PmmEpoch := odd", &|n| {
                n.words.pmm_epoch = n.words.pmm_epoch.wrapping_add(1);
                n.pmm = Pmm { number: n.pmm.number, at: PmmAt::Off, ..Pmm::default() };
            }),
            PmmAt::Off => go("PMM starts again", &|n| {
                n.pmm = Pmm { number: n.pmm.number + 1, ..Pmm::default() };
            }),
        }
    }

    /// One look of the loop. What is seen and calls for nothing is no transition.
    fn serve(&self, s: &State, out: Out) {
        let (w, p) = (&s.words, &s.pmm);
        let mut go = |step, hardship, change: &dyn Fn(&mut State)| {
            let mut next = *s;
            change(&mut next);
            out.push(Move { step, hardship, next });
        };
        let status = w.status && self.rule(Rule::LookAtStatus);
        if status && p.mode != Mode::Plain {
            go("PMM look: Status is not 0", false, &|n| n.pmm.at = PmmAt::EndExtended);
        }
        if !status && w.driver_epoch != 0 && w.driver_epoch != p.d0 && w.driver_epoch != p.adopted {
            go("PMM look: DriverEpoch is a hello", false, &|n| {
                n.pmm.hello = n.words.driver_epoch;
                n.pmm.hello_of = n.words.hello_of;
                n.pmm.at = PmmAt::AdoptDrain;
            });
        }
        if p.mode == Mode::Extended {
            let asked = w.driver_ready == p.adopted || !self.rule(Rule::WaitDriverReady);
            if asked && !p.ready && !p.faulted {
                go("PMM look: DriverReady is the epoch", false, &|n| {
                    n.pmm.serving = n.words.ready_of;
                    n.pmm.at = PmmAt::StartDevice;
                });
            }
            if w.driver_ready == 0 && (p.ready || p.faulted) && self.rule(Rule::WaitDriverReady) {
                go("PMM look: DriverReady is 0", false, &|n| n.pmm.at = PmmAt::ResetDrain);
            }
            if !status && p.ready && !p.faulted && p.work.is_none() && w.driver_epoch == p.adopted {
                go("PMM look: Status and DriverEpoch as before", false, &|n| n.pmm.at = PmmAt::Batch);
            }
            if p.ready && !p.faulted && s.left.faults > 0 {
                go("*** PMM finds a broken chain", true, &|n| {
                    n.left.faults -= 1;
                    n.pmm.at = PmmAt::FaultDrain;
                });
            }
        }
        if p.mode == Mode::Extended && s.left.silences > 0 {
            go("*** PMM presumes the guest gone", true, &|n| {
                n.left.silences -= 1;
                n.pmm.at = PmmAt::PresumeGone;
            });
        }
        if p.mode == Mode::Plain && status {
            if w.queue_num {
                go("PMM look: QueueNum is not the poison", false, &|n| n.pmm.at = PmmAt::PlainDrain);
            }
            if p.ready && p.work.is_none() {
                go("PMM look: Status as before", false, &|n| n.pmm.at = PmmAt::Batch);
            }
        }
        if let Some(of) = p.work {
            go("PMM Run: write the buffer", false, &|n| {
                write_buffer(n, of);
                n.pmm.at = PmmAt::WriteUsed;
            });
        }
        if s.left.pmm > 0 {
            go("*** PMM is told to end", true, &|n| {
                n.left.pmm -= 1;
                n.pmm.at = PmmAt::ShutDrain;
            });
        }
    }
}

pub(super) fn write_buffer(n: &mut State, of: Session) {
    if n.guest.relies() && n.guest.session() != of {
        n.broken = Some(Broken::WroteForeignBuffer);
    }
}

pub(super) fn write_used(n: &mut State, of: Session, index: u8) {
    if n.guest.relies() && n.guest.session() != of {
        n.broken = Some(Broken::WroteForeignUsed);
    }
    n.words.used = Half { of, index };
}

/// The PMM's half of a ring is reset: never under a guest that relies on it.
fn clear_used(n: &mut State, of: Session) {
    if n.guest.relies() {
        n.broken = Some(Broken::WroteForeignUsed);
    }
    n.words.used = Half { of, index: 0 };
}
