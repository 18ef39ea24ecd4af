//! The lock of the messages, held: posting, moving on, giving up.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::time::Duration;

use maypole_collectives::DataType;
use maypole_transports::lock::MutexGuard;

use super::peer::Failure;
use super::tally::Tally;
use super::{Count, Ending, Message, Messages, NOBODY, State};
use crate::engine::wait::{MOVES, Questions};
use crate::error::{Error, Result, Verdict};
use crate::fingerprint::Fingerprint;

/// The time between two looks for what a rank that has left may have sent.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The lock, held. If the thread begins to panic meanwhile, everything is failed when it lets go.
pub(super) struct Held<'a> {
    messages: &'a Messages,
    pub state: MutexGuard<'a, State>,
    panicking: bool,
}

impl Deref for Held<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        if std::thread::panicking() && !self.panicking {
            self.abandon();
        }
        self.run_ended();
    }
}

impl<'a> Held<'a> {
    pub fn new(messages: &'a Messages, state: MutexGuard<'a, State>) -> Held<'a> {
        Held { messages, state, panicking: std::thread::panicking() }
    }

    /// A message to this rank itself that nobody else would post the other side of, while its caller waits for it.
    pub fn check_other_sides(&self, messages: &[Message]) -> Result<()> {
        let me = self.court.me;
        let mut own = messages.iter().filter(|m| m.peer == me);
        let lonely = own.find(|message| {
            let like = |m: &&Message| m.peer == me && m.tag == message.tag;
            let among_them = |sent| messages.iter().filter(like).filter(|m| m.is_sent() == sent).count();
            let others = among_them(!message.is_sent()) + self.traffic.waiting_for(message);
            among_them(message.is_sent()) > others
        });
        // In a world of one rank nobody else sends what is expected from anyone.
        let mut from_anyone = messages.iter().filter(|m| self.court.hosts.len() == 1 && m.is_from_anyone());
        let unsent = from_anyone.find(|message| {
            let sent = |m: &&Message| m.peer == me && m.tag == message.tag && m.is_sent();
            !messages.iter().any(|m| sent(&m)) && self.traffic.waiting_for(message) == 0
        });
        match lonely.or(unsent) {
            None => Ok(()),
            Some(message) => {
                let what = format!(
                    "{} itself (tag {}), and would wait for ever, since its other side has not been posted; post both \
                     in a group or asynchronously, or use send_recv with itself on both sides",
                    if message.is_sent() { "a rank sends to" } else { "a rank receives from" },
                    message.tag
                );
                Err(Error::Argument { rank: me, what })
            }
        }
    }

    /// # Safety
    /// As for [`Messages::post`].
    pub unsafe fn post(&mut self, messages: &[Message], count: &Count) {
        self.visits += 1;
        if self.court.watch.raised() && self.is_in_vain_to_post(messages) {
            self.fail();
            // SAFETY: the count is there, and none of these messages was posted.
            return messages.iter().for_each(|_| unsafe { Tally::on(count) }.fail());
        }
        for (at, message) in messages.iter().enumerate() {
            // SAFETY: the caller's promise.
            if let Err(failure) = unsafe { self.traffic.post(message, count) } {
                self.convict(*failure);
                // SAFETY: as above; this one was posted, those after it were not.
                return messages[at + 1..].iter().for_each(|_| unsafe { Tally::on(count) }.fail());
            }
        }
        self.tell();
    }

    /// A verdict stands: whether it forbids to post these, see [`crate::engine::aftermath`].
    #[cold]
    fn is_in_vain_to_post(&self, messages: &[Message]) -> bool {
        let watch = &self.court.watch;
        watch.is_over() || messages.iter().any(|message| message.is_sent() && watch.is_gone(message.peer))
    }

    /// Move everything on; returns whether anything moved. After this nothing is under way that a verdict has ended.
    #[inline]
    pub fn advance(&mut self) -> bool {
        let raised = self.court.watch.raised();
        if raised && self.court.watch.is_over() {
            self.fail();
            return true;
        }
        let asleep = self.asleep;
        match self.traffic.advance(asleep) {
            Ok(false) => raised && self.is_given_up(),
            Ok(true) => {
                self.moves += 1;
                self.tell();
                if self.followers > 0 || self.moves.is_multiple_of(MOVES) {
                    self.note_moved();
                }
                true
            }
            Err(failure) => {
                self.convict(*failure);
                true
            }
        }
    }

    /// A death is the verdict, and nothing moved: give up if a message to or from a rank that is gone is under way. Not
    /// only if somebody waits for it, since it may be that all they want is to be told.
    #[cold]
    fn is_given_up(&mut self) -> bool {
        let State { traffic, court, aftermath, moves, .. } = &mut *self.state;
        let from_anyone = || {
            let operation = traffic.first_from_anyone()?;
            let rank = court.awaited(None, traffic.routes());
            court.watch.is_gone(rank).then_some((operation, rank))
        };
        let with_the_gone = traffic.first_with(|rank| court.watch.is_gone(rank));
        let Some((operation, rank)) = with_the_gone.or_else(from_anyone) else { return false };
        let in_vain = aftermath.is_in_vain(court, &operation, traffic.routes(), Some(rank), *moves);
        if in_vain {
            self.fail();
        }
        in_vain
    }

    /// Bytes have moved: tell those who wait for long, here and elsewhere.
    #[cold]
    pub fn note_moved(&self) {
        self.court.watch.note_moved(true);
    }

    /// See [`Messages::look_for`].
    pub fn look_for(&mut self, tag: u32) -> Result<Option<usize>> {
        if !self.court.watch.is_over() {
            match self.traffic.look_for(tag) {
                Ok(found) => {
                    // Messages that others wait for may have come in front of it.
                    self.tell();
                    if found.is_some() || !self.court.watch.raised() || !self.is_in_vain_to_look(tag) {
                        return Ok(found);
                    }
                }
                Err(failure) => self.convict(*failure),
            }
        }
        self.fail();
        Err(self.court.failed())
    }

    /// A death is the verdict, and no rank has sent a message with this tag: whether none will.
    #[cold]
    fn is_in_vain_to_look(&mut self, tag: u32) -> bool {
        let State { traffic, court, aftermath, moves, .. } = &mut *self.state;
        let operation = Fingerprint::point_to_point(0, DataType::U8, 0, (court.me, court.me), tag);
        aftermath.is_in_vain(court, &operation, traffic.routes(), None, *moves)
    }

    /// Something may be finished: wake those who may wait for it.
    #[inline]
    pub fn tell(&mut self) {
        if self.followers > 0 {
            self.messages.changed.notify_all();
        }
        if self.asleep {
            self.messages.rest.wake();
        }
        self.onlookers.iter().for_each(|alarm| alarm.ring());
        if !self.endings.is_empty() {
            self.collect_ended();
        }
    }

    /// Find what is to be done now that some counts are done. It is done when the lock is given back next.
    #[cold]
    pub fn collect_ended(&mut self) {
        let state = &mut *self.state;
        state.ended.extend(state.endings.extract_if(.., |ending| ending.count.is_done()));
    }

    /// Do what is to be done, with the lock given back meanwhile.
    #[inline]
    pub fn run_ended(&mut self) {
        while !self.ended.is_empty() {
            let ended = std::mem::take(&mut self.ended);
            let failed = ended.iter().any(|ending| ending.count.has_failed()).then(|| self.court.failed());
            MutexGuard::unlocked(&mut self.state, || {
                for Ending { count, then, .. } in ended {
                    then(failed.clone().filter(|_| count.has_failed()).map_or(Ok(()), Err));
                }
            });
        }
    }

    /// Nothing moves, and some want to be told when a count is done: what each would do who waited
    /// for it. `longest`: how long to sleep where there is nothing to do. `None`: something has
    /// changed.
    #[cold]
    pub fn question_for_all(&mut self, longest: Duration) -> Option<Duration> {
        let mut endings = std::mem::take(&mut self.endings);
        let nap = endings
            .iter_mut()
            .try_fold(longest, |nap, Ending { count, questions, .. }| Some(nap.min(self.question(count, questions)?)));
        // Nobody else has added any: the lock is held. What has failed meanwhile could not find
        // those who want to know.
        self.endings = endings;
        self.collect_ended();
        nap
    }

    /// The wait for `count` has become long. `None`: something has changed.
    #[cold]
    pub fn question(&mut self, count: &Count, questions: &mut Questions) -> Option<Duration> {
        let raised = self.court.watch.raised();
        if raised && self.court.watch.is_over() {
            self.fail();
            return None;
        }
        let (operation, other_side) = self.traffic.find(count)?;
        let peer = self.court.awaited(other_side, self.traffic.routes());
        if raised {
            let State { traffic, court, moves, .. } = &mut *self.state;
            if questions.aftermath().is_in_vain(court, &operation, traffic.routes(), Some(peer), *moves) {
                self.fail();
                return None;
            }
        }
        // A link says itself that its other end is gone, after what came before; where nothing hangs on a link, nothing
        // else would.
        let is_pointless = || other_side.is_none() || self.traffic.is_pointless_without(peer);
        if !raised && self.court.watch.has_departed(peer) && is_pointless() {
            return match questions.aftermath().is_all(self.traffic.routes(), peer) {
                true => self.convict_departed(peer, &operation),
                false => Some(LOOK_AGAIN),
            };
        }
        if questions.is_over(&self.court, &operation) && operation.receiver() == Some(self.court.me) {
            let ranks = other_side.map_or(0..self.court.hosts.len(), |peer| peer..peer + 1);
            let mut unwanted = ranks.map(|rank| (rank, self.traffic.unwanted_tags(rank)));
            if let Some((rank, tags)) = unwanted.find(|(_, tags)| !tags.is_empty()) {
                return self.convict_other_tags(rank, &operation, &tags);
            }
        }
        match questions.next(&self.court, &operation, peer, || self.traffic.unheard()) {
            Ok(nap) => Some(nap),
            Err(_) => {
                self.fail();
                None
            }
        }
    }

    /// Nothing has moved for too long in a receive, and other messages of that rank have come: most likely somebody has
    /// mistaken the tag.
    #[cold]
    fn convict_other_tags(&mut self, peer: usize, operation: &Fingerprint, tags: &[u32]) -> Option<Duration> {
        let tags: Vec<String> = tags.iter().map(u32::to_string).collect();
        let state = format!("what it has sent meanwhile, and nobody has received, has tag {}", tags.join(", "));
        let culprits = vec![(peer, self.court.hosts[peer].clone(), state)];
        let (reporter, after) = (self.court.me, self.court.longest());
        self.court.convict(Verdict::Stalled { operation: *operation, reporter, after, culprits });
        self.fail();
        None
    }

    #[cold]
    fn convict_departed(&mut self, peer: usize, operation: &Fingerprint) -> Option<Duration> {
        let me = self.court.me;
        let others = if operation.other_side(me).is_none() { ", as all others did" } else { "" };
        let how = format!("it left the communicator{others}, while rank {me} waits for it in {operation}");
        let host = self.court.hosts[peer].clone();
        self.court.convict(Verdict::Died { rank: peer, host, how });
        self.fail();
        None
    }

    #[cold]
    fn convict(&mut self, failure: Failure) {
        self.court.convict_for(failure.trouble, &failure.operation);
        self.fail();
    }

    /// A verdict has ended what is under way: give everything up.
    #[cold]
    fn fail(&mut self) {
        self.court.give_up();
        let dead = self.court.watch.verdict().is_some_and(|verdict| verdict.is_of_a_death());
        self.traffic.fail(dead);
        self.tell();
    }

    /// This thread panics with the lock held: nothing of the traffic can be relied on any more.
    #[cold]
    fn abandon(&mut self) {
        let verdict = Verdict::Aborted { rank: self.court.me, why: "its engine for messages panicked".into() };
        self.court.convict(verdict);
        self.messages.lead.store(NOBODY, Ordering::Relaxed);
        self.fail();
    }
}
