//! Leading and following: how a thread works for its messages, or waits while another one does.

use std::sync::atomic::Ordering;
use std::time::Duration;

use maypole_transports::lock::MutexGuard;
use maypole_transports::wait::{Idle, Next, Patience};

use super::held::Held;
use super::{ATTENDANT, CALLER, Count, Messages, NOBODY};
use crate::engine::wait::Questions;
use crate::error::Result;
use crate::running::LOOK;

/// How the attendant waits: it must not take a core from those who compute meanwhile.
const ATTENTIVE: Patience = Patience { spins: 20, then: Duration::from_micros(20), give_way: true, alone: false };

/// For whom a leader works.
pub(super) enum Leader<'a> {
    Caller(&'a Count, &'a mut Questions),
    Attendant,
}

impl Messages {
    /// Wait until `count` is done, leading or following.
    ///
    /// # Errors
    /// [`Error::Failed`](crate::Error::Failed) if one of its messages has failed.
    pub(super) fn await_count<'a>(&'a self, mut held: Held<'a>, count: &Count) -> Result<()> {
        let mut questions = Questions::new();
        held.visits += 1;
        while !count.is_done() {
            held = match self.lead.load(Ordering::Relaxed) {
                CALLER => self.follow(held, count, &mut questions),
                _ => self.lead(held, Leader::Caller(count, &mut questions)),
            };
        }
        if self.lead.load(Ordering::Relaxed) == NOBODY && !held.traffic.is_idle() {
            self.call_attendant(&held);
        }
        if count.has_failed() { Err(held.court.failed()) } else { Ok(()) }
    }

    /// Wait while another caller leads.
    #[cold]
    fn follow<'a>(&'a self, held: Held<'a>, count: &Count, questions: &mut Questions) -> Held<'a> {
        drop(held);
        let mut idle = Idle::new(self.patience);
        while !count.is_done() && self.lead.load(Ordering::Relaxed) == CALLER && idle.found_nothing() == Next::Poll {}
        let mut held = self.hold();
        held.followers += 1;
        while !count.is_done() && self.lead.load(Ordering::Relaxed) == CALLER {
            if let Some(nap) = held.question(count, questions) {
                self.changed.wait_for(&mut held.state, nap);
                MutexGuard::unlocked(&mut held.state, crate::interrupt::look);
            }
        }
        held.followers -= 1;
        held
    }

    /// Lead until the caller's messages are done; the attendant leads until nothing is under way or a caller takes
    /// over.
    pub(super) fn lead<'a>(&'a self, mut held: Held<'a>, mut leader: Leader<'_>) -> Held<'a> {
        let (who, patience) = match leader {
            Leader::Caller(..) => (CALLER, self.patience),
            Leader::Attendant => (ATTENDANT, ATTENTIVE),
        };
        if held.asleep {
            self.rest.wake();
        }
        self.lead.store(who, Ordering::Relaxed);
        let mut idle = Idle::new(patience);
        let mut armed = false;
        loop {
            let (moved, mut slept) = (held.advance(), false);
            if moved {
                let long = match &leader {
                    Leader::Caller(_, questions) => questions.begun(),
                    Leader::Attendant => true,
                };
                // Also if that was the last of it: others may wait for what this rank does next.
                if long {
                    held.note_moved();
                }
            }
            let done = match &leader {
                Leader::Caller(count, _) => count.is_done(),
                Leader::Attendant => held.traffic.is_idle() || held.attendant.stop,
            };
            if done {
                break;
            }
            if moved {
                if std::mem::take(&mut armed) {
                    self.rest.disarm();
                }
                idle.reset();
            } else if idle.found_nothing() == Next::Sleep && !held.asleep {
                let nap = match &mut leader {
                    Leader::Caller(count, questions) => held.question(count, questions),
                    Leader::Attendant => held.question_for_all(LOOK),
                };
                match nap {
                    // Once more with the bell armed, or nobody would ring for what came just before.
                    Some(_) if !std::mem::replace(&mut armed, true) => self.rest.arm(),
                    Some(nap) => {
                        held.asleep = true;
                        MutexGuard::unlocked(&mut held.state, || {
                            self.rest.sleep(nap);
                            if who == CALLER {
                                crate::interrupt::look();
                            }
                        });
                        (held.asleep, slept) = (false, true);
                    }
                    None => {}
                }
            }
            held.run_ended();
            MutexGuard::bump(&mut held.state);
            // Only a caller takes the lead away, and only from the attendant; what was armed is then the caller's.
            if self.lead.load(Ordering::Relaxed) != who {
                return held;
            }
            if slept && std::mem::take(&mut armed) {
                self.rest.disarm();
            }
        }
        if armed {
            self.rest.disarm();
        }
        self.lead.store(NOBODY, Ordering::Relaxed);
        if held.followers > 0 {
            self.changed.notify_all();
        }
        held.run_ended();
        held
    }
}
