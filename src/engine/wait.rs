//! One rank's waiting inside an operation: patience first, then questions, then sleep, and an end at some time.
//!
//! While a wait is short nothing is looked at but the flag that a verdict has been declared. After [`ASK_AFTER`] the
//! rank asks, through the jury, what the rank it waits for is doing, which uncovers ranks that called something else.
//! At the deadline the jury asks all ranks. One that does not answer leads to a verdict on every rank's watch.
//!
//! # What a deadline is
//!
//! Time in which this process ran ([`running`](crate::running)) and no bytes of the operation moved. What moves on this
//! rank begins it anew, and so does what moves on another, of which this rank knows nothing until it asks: the last rank
//! of a chain gets its first byte when all before it have moved theirs. So at the deadline every rank that is asked says
//! how long ago it moved something, and the deadline counts from the latest of these. Where all answer and nothing has
//! moved, ranks are late, and that is no failure yet: people are warned, after the deadline, twice that, four times
//! that, and the operation ends when it has waited for `MAYPOLE_LATE`.

use std::sync::Arc;
use std::time::Duration;

use maypole_transports::wait::{Idle, Next, Patience};

use super::aftermath::Aftermath;
use super::links::Links;
use crate::error::{Error, Verdict};
use crate::fingerprint::Fingerprint;
use crate::running::{Clock, LOOK, Limit, Moment};
use crate::watch::{Jury, Record, Stall, Watch};

/// How long the first rank waits before it asks after the one it waits for. The others follow one by one, each so much
/// later, but all of them within [`ASKED_BY`].
const ASK_AFTER: Duration = Duration::from_millis(2);
const ASKED_BY: Duration = Duration::from_millis(512);
/// The longest time between two questions of a rank: in worlds of up to [`FEW`], and in larger ones at most.
const ASK_AT_LEAST: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(1));
const FEW: usize = 64;
/// Every so many polls of a wait the rank looks at links besides those that its lanes read; a power
/// of 2.
const LOOK_ASIDE: u32 = 32;
/// After so many moves in an operation that never had to wait for long, others are told that it moves; a power of 2.
pub(crate) const MOVES: u64 = 1024;
/// How long a rank that found a link broken waits to be told why before it reports.
const GRACE: Duration = Duration::from_millis(50);
/// How many earlier operations two ranks compare that find themselves apart; those that leave tell as many.
const LOOK_BACK: u64 = 16;
/// How long the jury may take to answer an inquiry.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// How long the jury may take from a report to the verdict; longer than a node waits for the hub before it acts alone.
const VERDICT_WITHIN: Duration = Duration::from_secs(25);

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
    /// How long nothing may move before ranks that do not answer are convicted.
    pub timeout: Duration,
    /// How long ranks are waited for that answer, if that is longer.
    pub late: Duration,
}

impl Court {
    /// How long nothing may move in any case.
    pub fn longest(&self) -> Duration {
        self.timeout.max(self.late)
    }

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

    /// Nothing has moved in `operation` for a multiple of the deadline: have the jury find out who has not come. `seen`:
    /// the movement of which this wait knows, see [`Watch::news_of_movement`].
    ///
    /// # Errors
    /// If the operation must end now.
    #[cold]
    fn stalled(&self, operation: &Fingerprint, after: Duration, seen: u64) -> Result<(), Error> {
        let stall = Stall { operation: *operation, after, deadline: self.timeout, late: self.late };
        self.jury.stalled(self.context, self.me, stall);
        if stall.is_patient() {
            return Ok(());
        }
        // The jury may find that something has moved elsewhere. Then there is no verdict, and this rank waits on.
        let message = operation.is_point_to_point();
        let moved = || self.watch.news_of_movement(message, &mut { seen }).is_some();
        if wait_for_verdict_or(&self.watch, VERDICT_WITHIN, moved) {
            return Ok(());
        }
        self.watch.declare(Verdict::Stalled { operation: *operation, reporter: self.me, after, culprits: Vec::new() });
        Err(self.failed())
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
    wait_for_verdict_or(watch, most, || false);
}

/// Wait for a verdict, at most so long, or until `other` is so. Returns whether there is no verdict, but `other`.
fn wait_for_verdict_or(watch: &Watch, most: Duration, other: impl Fn() -> bool) -> bool {
    let limit = Limit::after(most);
    while !watch.raised() && !limit.has_passed() {
        if other() {
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    false
}

/// What a wait that has become long does besides waiting: it asks after the rank that it waits for, and it ends when
/// nothing has moved for too long.
pub(crate) struct Questions {
    /// `None`: the wait has not become long yet.
    long: Option<Long>,
    /// A rank that had left when it was looked at last.
    departed: Option<usize>,
    /// See [`Questions::aftermath`].
    aftermath: Option<Aftermath>,
    /// See [`Questions::not_before`].
    first_after: Duration,
}

/// A wait that has become long.
struct Long {
    /// Began when it became long.
    clock: Clock,
    ask_at: Moment,
    /// When bytes moved last, here or elsewhere, as far as this rank knows; at first, when the wait became long.
    since: Moment,
    /// See [`Watch::news_of_movement`].
    seen: u64,
    /// After how long without movement the jury is told next.
    due: Duration,
    /// Whether the jury was asked to show that it is there.
    doubts: bool,
}

/// When rank `me` of a world of `size` asks for the first time. If all asked at once, a rank that comes 50 ms late would
/// have each of a thousand others ask after it five times, through one hub; as it is, about 25 of them ask, whatever the
/// size.
pub(crate) fn until_first_question(me: usize, size: usize) -> Duration {
    ASK_AFTER + ASK_AFTER.min(ASKED_BY / size.max(1) as u32) * me as u32
}

/// The pause after a question of a rank that has waited for so long: the wait doubles, up to a point.
pub(crate) fn until_next_question(size: usize, waited: Duration) -> Duration {
    waited.min((ASK_AT_LEAST.0 * size.div_ceil(FEW) as u32).min(ASK_AT_LEAST.1))
}

impl Questions {
    /// For a wait that has not become long yet.
    pub fn new() -> Questions {
        Questions { long: None, departed: None, aftermath: None, first_after: Duration::ZERO }
    }

    /// The same, where such a wait usually takes so long: nobody is asked before.
    pub fn not_before(first_after: Duration) -> Questions {
        Questions { first_after, ..Questions::new() }
    }

    /// Another wait begins.
    #[inline]
    fn begin_anew(&mut self) {
        (self.long, self.departed, self.aftermath) = (None, None, None);
    }

    /// Whether the wait has become long.
    #[inline]
    pub fn begun(&self) -> bool {
        self.long.is_some()
    }

    /// Whether nothing has moved for so long that `operation` ends now.
    pub fn is_over(&mut self, court: &Court, operation: &Fingerprint) -> bool {
        self.long.as_mut().is_some_and(|long| long.quiet(court, operation) >= court.longest())
    }

    /// How the wait goes on where a member has died.
    #[cold]
    pub fn aftermath(&mut self) -> &mut Aftermath {
        self.aftermath.get_or_insert_default()
    }

    /// Rank `peer` has left: whether that was known before.
    pub fn has_departed(&mut self, peer: usize) -> bool {
        self.departed.replace(peer) == Some(peer)
    }

    /// Still waiting in `operation`, for rank `peer`: how long to sleep before the next look around. `unheard`: see
    /// [`super::routes::Routes::unheard`].
    ///
    /// # Errors
    /// When nothing has moved for too long.
    #[cold]
    pub fn next(
        &mut self,
        court: &Court,
        operation: &Fingerprint,
        peer: usize,
        unheard: impl FnOnce() -> Option<usize>,
    ) -> Result<Duration, Error> {
        let first_after = self.first_after;
        let long = self.long.get_or_insert_with(|| Long::begin(court, operation, first_after));
        let quiet = long.quiet(court, operation);
        let now = long.clock.shown();
        let (late, asks) = (quiet >= long.due, now >= long.ask_at);
        if (late || asks)
            && let Some(peer) = unheard()
        {
            court.watch.note_unheard(peer);
        }
        if late {
            court.stalled(operation, long.due, long.seen)?;
            (long.due, long.doubts) = ((long.due + court.timeout).min(court.longest()), false);
        }
        if !long.doubts && quiet + court.timeout / 2 >= long.due {
            long.doubts = true;
            court.jury.doubt(court.context);
        }
        if asks {
            court.jury.inquire(court.context, court.me, *operation, peer);
            long.ask_at = now + until_next_question(court.hosts.len(), now - Moment::default());
        }
        Ok(LOOK.min(long.due.saturating_sub(quiet)).min(long.ask_at - now + ASK_AFTER))
    }
}

impl Long {
    fn begin(court: &Court, operation: &Fingerprint, first_after: Duration) -> Long {
        let clock = Clock::start();
        let now = clock.shown();
        // Nobody else waits for this side of a message.
        let ask = match operation.is_point_to_point() {
            true => ASK_AFTER,
            false => until_first_question(court.me, court.hosts.len()),
        };
        Long { clock, ask_at: now + ask.max(first_after), since: now, seen: 0, due: court.timeout, doubts: false }
    }

    /// How long nothing has moved, as far as this rank knows.
    fn quiet(&mut self, court: &Court, operation: &Fingerprint) -> Duration {
        let now = self.clock.look();
        if let Some(ago) = court.watch.news_of_movement(operation.is_point_to_point(), &mut self.seen) {
            (self.since, self.due, self.doubts) = (self.since.max(now - ago), court.timeout, false);
        }
        now - self.since
    }
}

/// A wait within one collective.
pub(crate) struct Wait<'a> {
    court: &'a Court,
    operation: &'a Fingerprint,
    idle: Idle,
    armed: bool,
    /// Kept between waits: the smallest operations would have to move them, and need none.
    questions: &'a mut Questions,
    /// How often something was done.
    moves: u64,
}

impl<'a> Wait<'a> {
    pub fn new(court: &'a Court, operation: &'a Fingerprint, questions: &'a mut Questions) -> Wait<'a> {
        let idle = Idle::new(court.patience);
        questions.begin_anew();
        Wait { court, operation, idle, armed: false, questions, moves: 0 }
    }

    /// Whether polling alone has not helped for a while: time to look at less likely causes.
    #[inline]
    pub fn is_long(&self) -> bool {
        self.questions.begun() || self.idle.polls() > 256
    }

    /// Whether this poll is one that looks at links besides those that lanes read. A message that
    /// comes soon would be later by that. The last poll before a sleep is always one.
    #[inline]
    pub fn looks(&self) -> bool {
        self.armed || self.idle.polls() % LOOK_ASIDE == LOOK_ASIDE - 1
    }

    /// Something was done since the last poll.
    #[inline]
    pub fn moved(&mut self, links: &Links) {
        if self.armed {
            self.disarm(links);
        }
        self.idle.reset();
        self.moves += 1;
        if self.questions.begun() || self.moves.is_multiple_of(MOVES) {
            self.note_moved();
        }
    }

    #[cold]
    fn note_moved(&self) {
        self.court.watch.note_moved(self.operation.is_point_to_point());
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
        let aftermath = self.questions.aftermath();
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
