//! One rank's waiting inside an operation: patience first, then questions, then sleep, and an end at the deadline.
//!
//! While a wait is short nothing is looked at but the flag that a verdict has been declared. After [`ASK_AFTER`] the
//! rank asks, through the jury, what the rank it waits for is doing, which uncovers ranks that called something else;
//! at the deadline the jury finds who has not come. Either ends in a verdict on every rank's watch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_transports::wait::{Idle, Next, Patience};

use super::aftermath::Aftermath;
use super::links::Links;
use crate::error::{Error, Verdict};
use crate::fingerprint::Fingerprint;
use crate::watch::{Jury, Record, Watch};

/// How long a rank waits before it asks after the one it waits for, and between questions at first; doubled each time.
const ASK_AFTER: Duration = Duration::from_millis(2);
/// The longest time between two questions.
const ASK_AT_LEAST: Duration = Duration::from_millis(500);
/// The longest sleep without a look around.
const NAP: Duration = Duration::from_millis(100);
/// How long a rank that found a link broken waits to be told why before it reports.
const GRACE: Duration = Duration::from_millis(50);
/// How many earlier operations two ranks compare that find themselves apart; those that leave tell as many.
const LOOK_BACK: u64 = 16;
/// How long the jury may take to answer an inquiry.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// How long the jury may take from a report to the verdict; longer than a node waits for the hub before it acts alone.
const VERDICT_WITHIN: Duration = Duration::from_secs(4);

/// What a waiting rank knows of its communicator.
#[derive(Clone)]
pub(crate) struct Court {
    pub context: u64,
    pub me: usize,
    /// Host of each rank.
    pub hosts: Vec<String>,
    pub watch: Arc<Watch>,
    pub jury: Arc<dyn Jury>,
    pub patience: Patience,
    pub timeout: Duration,
}

impl Court {
    /// The error of a communicator on which a verdict stands, for this rank's caller: it gives up with it.
    #[cold]
    pub fn failed(&self) -> Error {
        self.give_up();
        let verdict = self.watch.verdict().unwrap_or(Verdict::Aborted { rank: self.me, why: "no reason given".into() });
        Error::Failed { rank: self.me, verdict }
    }

    /// Report something, wait for what all ranks are told, and return that.
    #[cold]
    pub fn convict(&self, verdict: Verdict) -> Error {
        // Somebody else may have said already why: a link breaks because its owner gave up.
        let certain = matches!(verdict, Verdict::Mismatch { .. } | Verdict::Refused { .. });
        let grace = if certain { Duration::ZERO } else { GRACE };
        wait_for_verdict(&self.watch, grace);
        if !self.watch.raised() {
            self.jury.report(self.context, verdict.clone());
        }
        self.await_verdict(verdict)
    }

    /// Rank `peer` is known to have called something else than `operation`, or to have had a different past: have the
    /// jury find out where they parted. `theirs`: what it was seen to do, if that is known.
    #[cold]
    pub fn disagree(&self, operation: &Fingerprint, peer: usize, theirs: Option<Fingerprint>) -> Error {
        if let Some(theirs) = theirs
            && (operation.is_point_to_point() || theirs.sequence == operation.sequence && !theirs.same_call(operation))
        {
            return self.convict(Verdict::Mismatch { one: (self.me, *operation), other: (peer, theirs) });
        }
        if let Some(theirs) = theirs
            && let Record::Refused(why) = self.watch.record(theirs.sequence)
        {
            return self.convict(Verdict::Refused { rank: self.me, sequence: theirs.sequence, why });
        }
        // Oldest first: the first difference explains those that follow.
        let mut refused = None;
        for sequence in operation.sequence.saturating_sub(LOOK_BACK).max(1)..=operation.sequence {
            match self.watch.record(sequence) {
                Record::Called(mine) => self.jury.inquire(self.context, self.me, mine, peer),
                Record::Refused(why) => refused = Some(Verdict::Refused { rank: self.me, sequence, why }),
                _ => {}
            }
        }
        wait_for_verdict(&self.watch, ANSWER_WITHIN);
        // Where every call that this rank made was the other's too, they parted at one that this rank did not make.
        if let Some(refused) = refused {
            return self.convict(refused);
        }
        self.convict(match theirs {
            Some(theirs) => Verdict::Mismatch { one: (self.me, *operation), other: (peer, theirs) },
            None => Verdict::Link {
                rank: self.me,
                peer,
                host: self.hosts[peer].clone(),
                what: format!("it does something else while this rank is in {operation}"),
            },
        })
    }

    /// The deadline has passed in `operation`: have the jury find out who has not come.
    #[cold]
    fn deadline(&self, operation: &Fingerprint) -> Error {
        let after = self.timeout;
        self.jury.stalled(self.context, self.me, *operation, after);
        self.await_verdict(Verdict::Stalled { operation: *operation, reporter: self.me, after, culprits: Vec::new() })
    }

    fn await_verdict(&self, otherwise: Verdict) -> Error {
        for_verdict(&self.watch, otherwise);
        self.failed()
    }
}

/// Wait for the verdict that a report leads to. Without one the hub is out of reach, and what this rank saw is the best
/// it can say.
#[cold]
pub(crate) fn for_verdict(watch: &Watch, otherwise: Verdict) {
    wait_for_verdict(watch, VERDICT_WITHIN);
    watch.declare(otherwise);
}

fn wait_for_verdict(watch: &Watch, most: Duration) {
    let until = Instant::now() + most;
    while !watch.raised() && Instant::now() < until {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// What a wait that has become long does besides waiting: it asks after the rank that it waits for, and it ends at the
/// deadline, which counts from the first question.
pub(crate) struct Questions {
    since: Option<Instant>,
    ask_at: Duration,
    /// A rank that had left when it was looked at last.
    departed: Option<usize>,
    /// How the wait goes on where a member has died.
    pub aftermath: Aftermath,
}

impl Questions {
    /// For a wait that has not become long yet.
    pub fn new() -> Questions {
        Questions { since: None, ask_at: ASK_AFTER, departed: None, aftermath: Aftermath::default() }
    }

    /// Whether the wait has become long.
    #[inline]
    pub fn begun(&self) -> bool {
        self.since.is_some()
    }

    /// Whether the deadline has passed.
    pub fn is_late(&self, court: &Court) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= court.timeout)
    }

    /// Rank `peer` has left: whether that was known before.
    pub fn has_departed(&mut self, peer: usize) -> bool {
        self.departed.replace(peer) == Some(peer)
    }

    /// Still waiting in `operation`, for rank `peer`: how long to sleep before the next look around. `unheard`: see
    /// [`super::routes::Routes::unheard`].
    ///
    /// # Errors
    /// When the deadline has passed.
    #[cold]
    pub fn next(
        &mut self,
        court: &Court,
        operation: &Fingerprint,
        peer: usize,
        unheard: impl FnOnce() -> Option<usize>,
    ) -> Result<Duration, Error> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let waited = since.elapsed();
        let late = waited >= court.timeout;
        if (late || waited >= self.ask_at)
            && let Some(peer) = unheard()
        {
            court.watch.note_unheard(peer);
        }
        if late {
            return Err(court.deadline(operation));
        }
        if waited >= self.ask_at {
            court.jury.inquire(court.context, court.me, *operation, peer);
            self.ask_at = waited + waited.min(ASK_AT_LEAST);
        }
        Ok(NAP.min(court.timeout - waited).min(self.ask_at.saturating_sub(waited) + ASK_AFTER))
    }
}

/// A wait within one collective.
pub(crate) struct Wait<'a> {
    court: &'a Court,
    operation: &'a Fingerprint,
    idle: Idle,
    armed: bool,
    questions: Questions,
    /// How often something was done.
    moves: u64,
}

impl<'a> Wait<'a> {
    pub fn new(court: &'a Court, operation: &'a Fingerprint) -> Wait<'a> {
        let idle = Idle::new(court.patience);
        Wait { court, operation, idle, armed: false, questions: Questions::new(), moves: 0 }
    }

    /// Whether polling alone has not helped for a while: time to look at less likely causes.
    #[inline]
    pub fn is_long(&self) -> bool {
        self.questions.begun() || self.idle.polls() > 256
    }

    /// Something was done since the last poll.
    #[inline]
    pub fn moved(&mut self, links: &Links) {
        if self.armed {
            self.disarm(links);
        }
        self.idle.reset();
        self.moves += 1;
    }

    /// The last poll found nothing to do: pause, and return when it is worth polling again. `blocked_on`: for whom this
    /// rank waits, if for one.
    ///
    /// # Errors
    /// When a verdict stands with which this wait is in vain, or the deadline has passed.
    #[inline]
    pub fn nothing(&mut self, links: &mut Links, blocked_on: Option<usize>) -> Result<(), Error> {
        if self.court.watch.raised() {
            self.go_on(links, blocked_on)?;
        }
        if self.idle.polls() == 64 {
            links.settle();
        }
        match self.idle.found_nothing() {
            Next::Poll => Ok(()),
            Next::Sleep => self.sleep(links, blocked_on),
        }
    }

    /// A verdict stands.
    #[cold]
    fn go_on(&mut self, links: &mut Links, blocked_on: Option<usize>) -> Result<(), Error> {
        let awaited = blocked_on.or_else(|| links.unread());
        let aftermath = &mut self.questions.aftermath;
        match aftermath.is_in_vain(self.court, self.operation, &links.routes, awaited, self.moves) {
            true => Err(self.court.failed()),
            false => Ok(()),
        }
    }

    #[cold]
    fn sleep(&mut self, links: &mut Links, blocked_on: Option<usize>) -> Result<(), Error> {
        let next = if self.court.me + 1 == links.size { 0 } else { self.court.me + 1 };
        let nap =
            self.questions.next(self.court, self.operation, blocked_on.unwrap_or(next), || links.routes.unheard())?;
        if !self.armed {
            links.settle();
            links.routes.rest().arm();
            self.armed = true;
            // One more poll with the bell armed, or nobody would ring for what came just before.
            return Ok(());
        }
        links.routes.rest().sleep(nap);
        self.disarm(links);
        crate::interrupt::look();
        if self.court.watch.is_over() {
            return Err(self.court.failed());
        }
        Ok(())
    }

    fn disarm(&mut self, links: &Links) {
        links.routes.rest().disarm();
        self.armed = false;
    }
}
