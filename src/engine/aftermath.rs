//! How an operation goes on once the death of a member is the communicator's verdict.
//!
//! A rank that has died, or left, had perhaps done all that the others need of it: its last contributions lie in rings,
//! windows, lines and sockets. So that verdict, alone among verdicts, does not end what is under way, nor what begins
//! later: an operation goes on while what it waits for can still come, and the verdict is its error as soon as it
//! cannot.
//!
//! * *From a rank that is gone* comes what was there before it went. Memory shows all of it to a poll that begins when
//!   the rank is known to be gone. A socket shows it before its end, which is seen as such ([`LinkError::Gone`]); the
//!   word of the hub may be faster than either. Where there is no socket yet, or a host is cut off and no end comes, it
//!   has [`ON_ITS_WAY`]. So it has where no verdict stands and a message is waited for whose sender has left in good order.
//! * *From one that lives* may come what it passes on of the dead's, and it may be slow at it. It has [`slowest`],
//!   counted from when anything last moved. Mostly nobody waits that long: a rank that fails does nothing in the
//!   communicator any more (it *gives up*). It closes its links there and tells the jury, of whom those that wait for it
//!   have asked to hear. So failing spreads along what waits for what, and no further. A rank that has lost the hub hears
//!   of nobody, who may be out of its reach as well: there all have [`ON_ITS_WAY`].
//! * *To a rank that is gone* nothing is begun: it would be needed after its end.
//!
//! A rank that has given up begins nothing again in that communicator ([`Watch::is_over`](crate::watch::Watch::is_over)):
//! its links may have stopped amid a message.
//!
//! [`LinkError::Gone`]: maypole_transports::LinkError::Gone

use std::time::Duration;

use maypole_collectives::schedule::Schedule;

use super::routes::Routes;
use super::wait::Court;
use crate::fingerprint::Fingerprint;
use crate::running::{Clock, Moment};

/// How long what a rank that is gone had sent may take to show where no link says when that is all: its connection may
/// stand in a queue of the kernel's, or of this rank's node.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// How long what ranks that live pass on may take: an eighth of the deadline, at least a second and at most ten. Whoever
/// allows for slow ranks allows for them here.
fn slowest(deadline: Duration) -> Duration {
    (deadline / 8).clamp(Duration::from_secs(1), Duration::from_secs(10))
}

/// One wait after a death.
#[derive(Default)]
pub(crate) struct Aftermath {
    /// A clock, and since when nothing has moved, or somebody is known to be gone.
    still: Option<(Clock, Moment)>,
    /// Nobody stays to look: it is asked whenever the program comes by.
    passing: bool,
    moves: u64,
    /// Who was known to be gone at the last look.
    gone: Option<usize>,
    /// Whom this rank waits for, and has asked to be told of.
    asked: Option<usize>,
}

impl Aftermath {
    /// For what is looked at when the program comes by, however rarely: that it has not come for long is no stop.
    pub fn in_passing() -> Aftermath {
        Aftermath { passing: true, ..Aftermath::default() }
    }

    /// A verdict stands, and a poll of everything found nothing to do: whether it is in vain to go on in `operation`.
    /// `awaited`: for whom it waits, if for one. `moves`: grows when anything is done.
    #[cold]
    pub fn is_in_vain(
        &mut self,
        court: &Court,
        operation: &Fingerprint,
        routes: &Routes,
        awaited: Option<usize>,
        moves: u64,
    ) -> bool {
        if court.watch.is_over() {
            return true;
        }
        if std::mem::replace(&mut self.moves, moves) != moves {
            self.still = None;
        }
        if let Some(rank) = awaited.filter(|rank| court.watch.is_gone(*rank)) {
            return self.is_all(routes, rank);
        }
        if let Some(rank) = awaited.filter(|rank| self.asked != Some(*rank)) {
            self.asked = Some(rank);
            court.jury.inquire(court.context, court.me, *operation, rank);
        }
        self.still_for() >= if court.jury.hears() { slowest(court.timeout) } else { ON_ITS_WAY }
    }

    /// Rank `rank` is known to be gone, and a poll of everything found nothing of it: whether nothing more will come.
    #[cold]
    pub fn is_all(&mut self, routes: &Routes, rank: usize) -> bool {
        if self.gone.replace(rank) != Some(rank) {
            // What it left is for the next poll.
            self.still = None;
            return false;
        }
        routes.is_near(rank) || self.still_for() >= ON_ITS_WAY
    }

    /// How long nothing has moved, in time that this process ran.
    fn still_for(&mut self) -> Duration {
        let (clock, since) = self.still.get_or_insert_with(|| {
            let clock = Clock::start();
            let now = clock.shown();
            (clock, now)
        });
        let now = if self.passing { clock.look_after_rest() } else { clock.look() };
        now - *since
    }
}

impl Court {
    /// Nothing that this rank begins now in the communicator can be of use: it has failed in it, or the verdict is none
    /// with which anything goes on, or `schedule` sends to a rank that is gone. One relaxed load where no verdict
    /// stands.
    #[inline]
    pub fn forbids(&self, schedule: &dyn Schedule) -> bool {
        self.watch.raised() && (self.watch.is_over() || self.is_for_the_gone(schedule))
    }

    #[cold]
    fn is_for_the_gone(&self, schedule: &dyn Schedule) -> bool {
        let steps = (0..schedule.lanes()).flat_map(|lane| (0..schedule.steps(lane)).map(move |i| (lane, i)));
        let mut receivers = steps.filter_map(|(lane, i)| schedule.step(lane, i).peers().1);
        receivers.any(|rank| self.watch.is_gone(rank))
    }

    /// For whom a message waits whose other side is `other_side`, `None` where any rank may send it:
    /// a rank that is not known to be gone, as long as there is one, and then whoever's last words
    /// may be on their way for longest.
    #[cold]
    pub fn awaited(&self, other_side: Option<usize>, routes: &Routes) -> usize {
        other_side.unwrap_or_else(|| {
            let others = || (0..self.hosts.len()).filter(|rank| *rank != self.me);
            let living = others().find(|rank| !self.watch.is_gone(*rank));
            let far = || others().find(|rank| !routes.is_near(*rank));
            living.or_else(far).or_else(|| others().next()).unwrap_or(self.me)
        })
    }

    /// This rank has failed in the communicator, and its caller is told: it does nothing there any more. Those that wait
    /// for it are told so.
    #[cold]
    pub fn give_up(&self) {
        if self.watch.give_up() {
            self.jury.give_up(self.context, self.me);
        }
    }
}
