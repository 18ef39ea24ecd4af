//! The sentry's thread: deadlines, questions, disagreements, broken devices, releases.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use maypole_transports::lock::MutexGuard;

use super::health::Health;
use super::{Awaited, Flag, Posts, Shared, State, has_come};
use crate::engine::wait::{Court, Questions};
use crate::error::Verdict;
use crate::fingerprint::Fingerprint;

/// Between two looks while operations come and go; also how long one may take before anybody is asked after.
const LOOK: Duration = Duration::from_millis(2);
/// The longest time between two looks at one that does not end: how late a disagreement is noticed.
const LOOK_AT_LEAST: Duration = Duration::from_millis(20);
/// Between two looks while streams are let go, at first.
const RELEASE: Duration = Duration::from_millis(1);
/// How often the device's health is asked for.
const HEALTH: Duration = Duration::from_millis(100);
/// How long the thread naps with nothing outstanding before it sleeps.
const LINGER: Duration = Duration::from_millis(500);
/// How far ahead a released word is set. Far more than is ever waited for ahead, far less than where a counter wraps.
const AHEAD: u32 = 1 << 30;

/// Nobody is asked after before an operation has taken so many times what the one before did: beside computation, and
/// where ranks share a device by time slices, all take long, and each question goes through the hub. At most this long.
const LONGER: u32 = 4;
const LONG: Duration = Duration::from_secs(1);

/// What the thread remembers of the operation that it watches.
struct Vigil {
    number: u32,
    /// When its stream was seen to have come to it.
    began: Option<Instant>,
    questions: Questions,
    looks: usize,
    asked: usize,
    nap: Duration,
    /// Sum of the words that it waits for, which count up.
    progress: u32,
}

impl Vigil {
    /// Of operation `number`; `usual`: what such an operation takes.
    fn new(number: u32, usual: Duration) -> Vigil {
        let questions = Questions::not_before((usual * LONGER).min(LONG));
        Vigil { number, began: None, questions, looks: 0, asked: 0, nap: LOOK, progress: 0 }
    }

    /// What an operation takes, now that this one has ended; `usual`: what was thought before.
    fn usual(self, usual: Duration) -> Duration {
        self.began.map_or(usual, |began| began.elapsed())
    }
}

impl Shared {
    pub(super) fn patrol(self: Arc<Self>) {
        let mut state = self.state.lock();
        let (mut vigil, mut usual): (Option<Vigil>, Duration) = (None, Duration::ZERO);
        let (mut busy, mut asked) = (Instant::now(), Instant::now());
        let mut health = Health::default();
        loop {
            state.settle(&self.posts);
            let Some(front) = state.outstanding.front() else {
                usual = vigil.take().map_or(usual, |vigil| vigil.usual(usual));
                if state.stop {
                    return;
                }
                if busy.elapsed() < LINGER {
                    self.wanted.wait_for(&mut state, LOOK);
                } else {
                    state.asleep = true;
                    self.wanted.wait(&mut state);
                    (state.asleep, busy) = (false, Instant::now());
                }
                self.look_for_trouble(&mut state);
                continue;
            };
            busy = Instant::now();
            if state.court.watch.raised() {
                if state.releasing.is_none() {
                    let lost = state.lost();
                    MutexGuard::unlocked(&mut state, || (self.posts.lost)(&lost));
                }
                let since = state.release(&self.posts);
                self.wanted.wait_for(&mut state, (since.elapsed() / 16).clamp(RELEASE, LOOK_AT_LEAST));
                continue;
            }
            let number = front.number;
            if vigil.as_ref().is_none_or(|vigil| vigil.number != number) {
                usual = vigil.take().map_or(usual, |vigil| vigil.usual(usual));
                vigil = Some(Vigil::new(number, usual));
            } else if !self.look_for_trouble(&mut state)
                && let Some(vigil) = &mut vigil
                && has_come(self.posts.started.load(Ordering::Acquire), number)
            {
                self.question(&mut state, vigil);
            }
            if asked.elapsed() >= HEALTH {
                asked = Instant::now();
                health.ask(&self);
            }
            self.look_after_device(&mut state);
            if let Some(vigil) = vigil.as_mut().filter(|_| !state.court.watch.raised()) {
                self.wanted.wait_for(&mut state, vigil.nap);
                vigil.nap = (vigil.nap * 5 / 4).min(LOOK_AT_LEAST);
            }
        }
    }

    /// A kernel found a header of another operation: have the ranks brought to one verdict. Returns whether one did.
    fn look_for_trouble(&self, state: &mut MutexGuard<'_, State>) -> bool {
        let trouble = self.posts.trouble.load(Ordering::Acquire);
        // Where words were released, that is why it found one, and the verdict is on its way.
        if trouble == 0 || state.court.watch.raised() || self.posts.released.load(Ordering::Acquire) != 0 {
            return false;
        }
        let (court, peer) = (state.court.clone(), trouble as usize - 1);
        let found = (self.posts.found)();
        let ours = found.and_then(|(digest, _)| state.called(digest));
        if ours.is_some() && ours == found.map(|(_, theirs)| theirs) {
            // It is the peer that found something foreign, and does not pass on what may have come of it. It reports.
            return false;
        }
        // Unless the kernel said which, the latest that it can have been: the jury looks at those before it too.
        let started = self.posts.started.load(Ordering::Acquire);
        let begun = || state.outstanding.iter().rev().find(|task| has_come(started, task.number)).map(|t| t.operation);
        let Some(ours) = ours.or_else(begun).or_else(|| state.recent.back().copied()) else { return false };
        // A header of nothing is in memory that nobody has written yet.
        let theirs = found.map(|(_, theirs)| theirs).filter(|theirs| theirs.sequence > 0);
        MutexGuard::unlocked(state, || court.disagree(&ours, peer, theirs));
        true
    }

    /// The oldest operation has started and does not end: ask after one that it waits for; an end at the deadline.
    fn question(&self, state: &mut MutexGuard<'_, State>, vigil: &mut Vigil) {
        let court = state.court.clone();
        let Some(front) = state.outstanding.front() else { return };
        vigil.began.get_or_insert_with(Instant::now);
        let blocked: Vec<&Awaited> =
            front.awaited.iter().filter(|a| !has_come(a.word.load(Ordering::Acquire), a.value)).collect();
        let pick = |turn: usize| match blocked.len() {
            // All others in turn.
            0 => (front.operation, (court.me + 1 + turn % (self.size - 1).max(1)) % self.size),
            n => (blocked[turn % n].operation, blocked[turn % n].peer),
        };
        let words = front.awaited.iter().map(|awaited| awaited.word.load(Ordering::Acquire));
        let progress = words.fold(0, u32::wrapping_add);
        if std::mem::replace(&mut vigil.progress, progress) != progress {
            court.watch.note_moved(front.operation.is_point_to_point());
        }
        // One of them at each look, and another one at each question, which most looks do not put.
        let ((passing, passed), (operation, peer)) = (pick(vigil.looks), pick(vigil.asked));
        vigil.looks += 1;
        let departed = !blocked.is_empty() && passing.is_point_to_point() && court.watch.has_departed(passed);
        MutexGuard::unlocked(state, || {
            if departed && vigil.questions.has_departed(passed) {
                // Seen before the last look as well, so what it sent before it left would have been found there.
                return drop(court.convict(left(&court, passed, &passing)));
            }
            let mut asked = false;
            let _ = vigil.questions.next(&court, &operation, peer, || {
                asked = true;
                None
            });
            vigil.asked += usize::from(asked);
        });
    }

    /// Give up if CUDA reports an error that nothing on the device survives.
    fn look_after_device(&self, state: &mut MutexGuard<'_, State>) {
        let Some(what) = self.ailment.get() else { return };
        let (court, operation) = (state.court.clone(), state.outstanding.front().map(|task| task.operation));
        let during = operation.map_or_else(String::new, |operation| format!(", in or before {operation}"));
        let why = format!("its CUDA device reports an error{during}: {what}");
        MutexGuard::unlocked(state, || court.convict(Verdict::Aborted { rank: court.me, why }));
        // Only now, when the verdict stands: nobody waits any more.
        state.broken = true;
    }
}

fn left(court: &Court, peer: usize, operation: &Fingerprint) -> Verdict {
    let how = format!("it left the communicator, while rank {} waits for it in {operation}", court.me);
    Verdict::Died { rank: peer, host: court.hosts[peer].clone(), how }
}

/// What all who wait for `word` release it with: far ahead of where it was before the first of them did.
fn agreed(word: &Flag, mark: &Flag) -> u32 {
    match mark.load(Ordering::Acquire) {
        0 => {
            // If somebody has released it since, that one's mark is there, and what was found here counts for nothing.
            let ahead = word.load(Ordering::Acquire).wrapping_add(AHEAD).max(1);
            mark.compare_exchange(0, ahead, Ordering::AcqRel, Ordering::Acquire).map_or_else(|theirs| theirs, |_| ahead)
        }
        ahead => ahead,
    }
}

impl State {
    /// What has not ended when a verdict stands, in words.
    fn lost(&self) -> String {
        let first = self.outstanding.front().map_or_else(String::new, |task| task.operation.to_string());
        let more = match self.outstanding.len() {
            0 | 1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let verdict = self.court.watch.verdict().map_or_else(String::new, |verdict| format!(": {verdict}"));
        format!(
            "rank {}: {first}{more} will have no result, and what follows on their CUDA streams works on whatever is in \
             their buffers{verdict}",
            self.court.me
        )
    }

    /// The operation of this rank with that digest.
    fn called(&self, digest: u32) -> Option<Fingerprint> {
        let parts = self.outstanding.iter().flat_map(|task| task.awaited.iter().map(|awaited| awaited.operation));
        let all = parts.chain(self.outstanding.iter().map(|task| task.operation)).chain(self.recent.iter().copied());
        { all }.find(|operation| operation.digest() == digest)
    }

    /// Let the streams go on. Returns since when that is done.
    fn release(&mut self, posts: &Posts) -> Instant {
        posts.released.store(1, Ordering::SeqCst);
        for (word, mark) in &self.guarded {
            word.store(agreed(word, mark), Ordering::Release);
        }
        *self.releasing.get_or_insert_with(Instant::now)
    }
}
