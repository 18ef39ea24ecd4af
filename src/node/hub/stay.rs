//! How long the process stays that the hub is in: the hub ends with it.
//!
//! Its attempt to bring the ranks together may end early, where rank 0 gives up or tries anew. At
//! the end of the process ([`crate::exit`]) the other ranks are waited for, as long as they may be
//! at work and nothing has gone wrong.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use maypole_transports::fork::PerProcess;
use maypole_transports::lock::Mutex;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::gathering::HELD;
use super::{Hub, Phase};
use crate::exit::{self, End, Membership, SAY_AFTER};
use crate::node::court::Court;
use crate::node::silence;
use crate::running::Moment;

/// How long the hub's own process waits at its end for ranks that are in failed communicators only,
/// and call nothing any more.
const DISTURBED: Duration = Duration::from_secs(3);
/// The longest time between two times that it says for whom it waits.
const SAY_AT_LEAST: Duration = Duration::from_secs(600);

/// What the hub's thread and the end of its process share.
pub(super) struct Stay {
    /// The process is about to end, and waits until the hub lets it.
    pub asked: AtomicBool,
    /// Wakes the hub's thread.
    pub bell: EventFd,
    pub end: End,
    /// The port at which the ranks meet.
    port: u16,
    /// Whether they have met, after which nobody takes it back.
    pub stands: AtomicBool,
    /// Whether the attempt to bring them together is over: it has failed, or rank 0 has given it
    /// up.
    pub over: AtomicBool,
    /// Why it has failed.
    pub why: Mutex<Option<String>>,
    /// Why rank 0 has given it up, until the hub has seen that.
    pub given_up: Mutex<Option<String>>,
    /// Whether all who were there have been told.
    pub told: AtomicBool,
    /// Nobody is to meet there any more.
    pub withdrawn: AtomicBool,
}

/// The hubs of this process.
static HERE: PerProcess<Mutex<Vec<Weak<Stay>>>> = PerProcess::new();

/// The hub of `stay` has begun.
pub(super) fn list(stay: &Arc<Stay>) {
    let mut here = HERE.get().lock();
    here.retain(|stay| stay.strong_count() > 0);
    here.push(Arc::downgrade(stay));
    drop(here);
    let membership: Arc<dyn Membership> = stay.clone();
    exit::list_membership(Arc::downgrade(&membership));
}

/// Nobody is to meet any more at `port` of this process, unless the ranks have met there.
pub(in crate::node) fn withdraw(port: u16) {
    let _ = end(port, |stay| !stay.stands.load(Ordering::Acquire));
}

/// Rank 0 of this process begins another attempt at `port`: a hub there that could not bring the
/// ranks together need tell nobody any more why. Returns whether there is one; it ends soon.
pub(in crate::node) fn give_way(port: u16) -> bool {
    end(port, |stay| stay.over.load(Ordering::Acquire))
}

/// Rank 0 of this process has given up its attempt at `port` because of `why`: the others there are
/// told. Its process may end now, so this waits until they have been, a second at most. Returns why
/// the hub itself had failed, if it had: it may know better than who could not reach it.
pub(in crate::node) fn give_up(port: u16, why: &str) -> Option<String> {
    let found = HERE.get().lock().iter().filter_map(Weak::upgrade).find(|stay| stay.port == port);
    let stay = found.filter(|stay| !stay.stands.load(Ordering::Acquire))?;
    let knew = stay.why.lock().clone();
    *stay.given_up.lock() = Some(why.to_string());
    stay.over.store(true, Ordering::Release);
    stay.ring();
    let until = Instant::now() + HELD;
    while !stay.told.load(Ordering::Acquire) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    knew
}

/// Have the hub at `port` end if it is one of `which`.
fn end(port: u16, which: impl Fn(&Stay) -> bool) -> bool {
    let here = HERE.get().lock();
    let found = here.iter().filter_map(Weak::upgrade).find(|stay| stay.port == port && which(stay));
    let Some(stay) = found else { return false };
    stay.withdrawn.store(true, Ordering::Release);
    stay.ring();
    true
}

impl Stay {
    /// That of a hub at `port`.
    pub fn at(port: u16) -> io::Result<Stay> {
        Ok(Stay {
            asked: AtomicBool::new(false),
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            end: End::default(),
            port,
            stands: AtomicBool::new(false),
            over: AtomicBool::new(false),
            why: Mutex::default(),
            given_up: Mutex::default(),
            told: AtomicBool::new(false),
            withdrawn: AtomicBool::new(false),
        })
    }

    /// Wake the hub's thread.
    fn ring(&self) {
        // Only a full counter fails, and then the thread is woken anyway.
        let _ = self.bell.write(1);
    }
}

impl Membership for Stay {
    fn part(&self) {
        self.asked.store(true, Ordering::Release);
        self.ring();
    }

    fn end(&self) -> &End {
        &self.end
    }
}

/// This process is at its end, and is not let go yet: the hub ends with it, and what the others do
/// may be healthy.
pub(super) struct Held {
    since: Moment,
    /// When it is said next for whom it waits.
    say_at: Moment,
}

impl Held {
    /// When it is let go although others remain: where something has gone wrong, those that have
    /// nothing healthy left to do may never end.
    fn until(&self, court: &Court, active: Moment) -> Option<Moment> {
        (court.disturbed() && !court.is_at_work()).then(|| self.since.max(active) + DISTURBED)
    }

    /// When there is something to do, unless a rank does something before.
    pub fn deadline(&self, court: &Court, active: Moment) -> Moment {
        self.until(court, active).map_or(self.say_at, |until| until.min(self.say_at))
    }

    /// Say for whom it waits.
    fn say(&mut self, court: &Court, now: Moment) {
        let others = silence::list(&court.remaining());
        crate::log::warn(format_args!(
            "this process holds a job together; it has been at its end for {:.0?}, but waits for \
             world ranks {others}, which are still at work and could not go on without it; SIGTERM \
             ends it at once",
            now - self.since
        ));
        self.say_at = now + (now - self.since).clamp(SAY_AFTER, SAY_AT_LEAST);
    }
}

impl Hub {
    /// Let this process end, if it is at its end and waits for nobody any more.
    pub(super) fn let_process_go(&mut self) {
        if !self.stay.asked.load(Ordering::Acquire) {
            return;
        }
        // Nobody is waited for who has not come yet, nor where this process is no rank.
        if let Phase::Running { court, waits: waits @ true, held, active, .. } = &mut self.phase {
            let now = self.clock.shown();
            let last = held.get_or_insert(Held { since: now, say_at: now + SAY_AFTER });
            if last.until(court, *active).is_none_or(|until| now < until) {
                if last.say_at <= now {
                    last.say(court, now);
                }
                return;
            }
            (*waits, *held) = (false, None);
        }
        self.stay.end.come();
    }
}
