//! How the ranks of a communicator learn of each other's misfortunes.
//!
//! Each rank of each communicator has a [`Watch`]: a flag that every wait polls, the verdict behind it, and the history
//! of what the rank has called. A [`Jury`] connects the watches: threads of one process share memory (`local.rs`),
//! processes talk through the hub (`node/`). Whoever notices something reports it to the jury; the first report becomes
//! the verdict on every rank.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use maypole_transports::lock::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::{Missing, Verdict, cut};
use crate::fingerprint::Fingerprint;

/// How many of the latest operations a rank remembers: more than may be queued on streams and not have ended.
const REMEMBERED: usize = 512;
/// How long it counts that a rank was not heard; a waiting rank looks every half second.
const UNHEARD: Duration = Duration::from_millis(1500);

/// What a rank's history says of one operation number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// The rank has not come to it; its latest operation is given, if any.
    NotYet(Option<Fingerprint>),
    /// The rank called this.
    Called(Fingerprint),
    /// The rank refused its arguments.
    Refused(String),
    /// It was too long ago.
    Forgotten,
}

/// One rank's state in one communicator, shared between the rank and whoever watches it.
pub struct Watch {
    raised: AtomicBool,
    verdict: OnceLock<Verdict>,
    given_up: AtomicBool,
    wake: Mutex<Vec<Box<dyn Fn() + Send + Sync>>>,
    history: [[AtomicU64; 4]; REMEMBERED],
    latest: AtomicU64,
    refusals: Mutex<Vec<(u64, String)>>,
    departed: Mutex<Vec<usize>>,
    unheard: Mutex<Option<(Instant, usize)>>,
    /// When bytes of collectives, and of messages, moved last on this rank, of what was told of: see [`stamp`].
    moved: [AtomicU64; 2],
    /// The same of any rank, as far as this one was told.
    moved_elsewhere: [AtomicU64; 2],
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("verdict", &self.verdict()).finish_non_exhaustive()
    }
}

/// The [`stamp`] of the first call: what another rank tells of may have been long before.
const FIRST_STAMP: u64 = 1 << 62;

/// Microseconds of the system's clock; 0 is never.
fn stamp() -> u64 {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    FIRST_STAMP + FIRST.get_or_init(Instant::now).elapsed().as_micros() as u64
}

impl Default for Watch {
    fn default() -> Self {
        Watch {
            raised: AtomicBool::new(false),
            verdict: OnceLock::new(),
            given_up: AtomicBool::new(false),
            wake: Mutex::default(),
            history: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            latest: AtomicU64::new(0),
            refusals: Mutex::default(),
            departed: Mutex::default(),
            unheard: Mutex::default(),
            moved: Default::default(),
            moved_elsewhere: Default::default(),
        }
    }
}

impl Watch {
    /// Whether a verdict has been declared. Polled in every wait: one relaxed load.
    #[inline]
    pub fn raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// The verdict, if one was declared.
    pub fn verdict(&self) -> Option<Verdict> {
        self.declared().cloned()
    }

    /// The flag is stored after the verdict is: so whoever finds the flag raised reads all of the verdict.
    fn declared(&self) -> Option<&Verdict> {
        if self.raised.load(Ordering::Acquire) { self.verdict.get() } else { None }
    }

    /// Whether a verdict stands with which nothing can go on: any but a death, and a death once this rank has given up.
    /// What a rank that died or left had done before may be all that an operation needs of it, see `engine/aftermath.rs`.
    /// One relaxed load where no verdict stands.
    #[inline]
    pub fn is_over(&self) -> bool {
        self.raised() && self.is_over_for_good()
    }

    #[cold]
    fn is_over_for_good(&self) -> bool {
        fence(Ordering::Acquire);
        self.given_up.load(Ordering::Relaxed) || !self.declared().is_some_and(Verdict::is_of_a_death)
    }

    /// This rank has failed in the communicator and does nothing in it any more: wake whatever else waits in it. Returns
    /// whether it had not given up before.
    pub fn give_up(&self) -> bool {
        let first = !self.given_up.swap(true, Ordering::AcqRel);
        if first {
            self.wake.lock().iter().for_each(|wake| wake());
        }
        first
    }

    /// Whether nothing new will come from rank `rank`: the verdict says that it has died, or [`Watch::depart`] was told.
    pub fn is_gone(&self, rank: usize) -> bool {
        matches!(self.declared(), Some(Verdict::Died { rank: dead, .. }) if *dead == rank) || self.has_departed(rank)
    }

    /// Declare a verdict on this rank (the first counts) and wake whatever waits. Texts longer than ranks tell each other
    /// are cut.
    pub fn declare(&self, verdict: Verdict) {
        let _ = self.verdict.set(verdict.cut());
        // A swap: whoever reads the flag of a second declaration is behind the first, whose verdict counts.
        self.raised.swap(true, Ordering::AcqRel);
        for wake in self.wake.lock().iter() {
            wake();
        }
    }

    /// Have `wake` called when a verdict is declared (at once if it already was). It must not block.
    pub fn on_verdict(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let mut list = self.wake.lock();
        if self.raised.load(Ordering::Acquire) {
            wake();
        }
        list.push(wake);
    }

    /// Rank `rank` has left the communicator, or does nothing in it any more. What it did before may still be on its way.
    pub fn depart(&self, rank: usize) {
        self.departed.lock().push(rank);
        for wake in self.wake.lock().iter() {
            wake();
        }
    }

    /// Whether [`Watch::depart`] has been told of rank `rank`. Only ranks that were inquired after are told of.
    pub fn has_departed(&self, rank: usize) -> bool {
        self.departed.lock().contains(&rank)
    }

    /// Remember that this rank waits, and that nothing that it sends to `peer` gets through at the moment.
    pub fn note_unheard(&self, peer: usize) {
        *self.unheard.lock() = Some((Instant::now(), peer));
    }

    /// What [`Watch::note_unheard`] was told last, a moment ago. Whoever waits says it again.
    pub fn unheard(&self) -> Option<usize> {
        self.unheard.lock().filter(|(at, _)| at.elapsed() < UNHEARD).map(|(_, peer)| peer)
    }

    /// Bytes of a collective, or of a message between two ranks, have moved on this rank: told by what moves them, not
    /// each time but now and then, and always where somebody has waited for long.
    pub fn note_moved(&self, message: bool) {
        self.moved[usize::from(message)].store(stamp(), Ordering::Relaxed);
    }

    /// How long ago that was, by the system's clock, for who waits in an operation of which this rank's `record` is this;
    /// `None`: never. A rank that has not come to it may be on its way through others, of both kinds.
    pub fn moved_ago(&self, message: bool, record: &Record) -> Option<Duration> {
        let [collective, of_messages] = [0, 1].map(|kind| self.moved[kind].load(Ordering::Relaxed));
        let at = match record {
            Record::NotYet(_) => collective.max(of_messages),
            _ if message => of_messages,
            _ => collective,
        };
        (at != 0).then(|| Duration::from_micros(stamp().saturating_sub(at)))
    }

    /// Bytes that this rank waits for, at one or more removes, moved on another rank so long ago.
    pub fn note_moved_elsewhere(&self, message: bool, ago: Duration) {
        let at = stamp().saturating_sub(ago.as_micros() as u64);
        let [here, elsewhere] = [&self.moved, &self.moved_elsewhere].map(|words| &words[usize::from(message)]);
        let known = here.load(Ordering::Relaxed).max(elsewhere.load(Ordering::Relaxed));
        // Always news: whoever has asked goes on by it.
        elsewhere.fetch_max(at.max(known + 1), Ordering::Relaxed);
    }

    /// Whether bytes have moved, here or elsewhere, since `seen`, which is brought up to date: how long ago.
    pub(crate) fn news_of_movement(&self, message: bool, seen: &mut u64) -> Option<Duration> {
        let [here, elsewhere] =
            [&self.moved, &self.moved_elsewhere].map(|words| words[usize::from(message)].load(Ordering::Relaxed));
        let at = here.max(elsewhere);
        (at > *seen).then(|| {
            *seen = at;
            Duration::from_micros(stamp().saturating_sub(at))
        })
    }

    /// Remember that this rank enters `operation`. Only the rank itself calls this.
    #[inline]
    pub fn enter(&self, operation: &Fingerprint) {
        let words: &[u64; 4] = bytemuck::cast_ref(operation);
        let entry = &self.history[operation.sequence as usize % REMEMBERED];
        for (to, from) in entry.iter().zip(words) {
            to.store(*from, Ordering::Relaxed);
        }
        self.latest.store(operation.sequence, Ordering::Release);
    }

    /// Remember that this rank refuses operation `sequence`. Only the rank itself calls this. A long reason is cut, as in
    /// [`Watch::declare`].
    pub fn refuse(&self, sequence: u64, why: String) {
        let mut refusals = self.refusals.lock();
        if refusals.len() == REMEMBERED {
            refusals.remove(0);
        }
        refusals.push((sequence, cut(why)));
        drop(refusals);
        self.latest.store(sequence, Ordering::Release);
    }

    /// The number of this rank's latest operation, entered or refused; 0 before the first.
    pub fn latest(&self) -> u64 {
        self.latest.load(Ordering::Acquire)
    }

    /// What this rank did as operation `sequence`. Called from other threads; an entry that is overwritten meanwhile
    /// reads as forgotten.
    pub fn record(&self, sequence: u64) -> Record {
        let latest = self.latest.load(Ordering::Acquire);
        if sequence > latest {
            // The latest numbers may be refusals.
            let first = latest.saturating_sub(REMEMBERED as u64 - 1).max(1);
            return Record::NotYet((first..=latest).rev().find_map(|number| self.entry(number)));
        }
        if let Some((_, why)) = self.refusals.lock().iter().find(|(s, _)| *s == sequence) {
            return Record::Refused(why.clone());
        }
        self.entry(sequence).map_or(Record::Forgotten, Record::Called)
    }

    fn entry(&self, sequence: u64) -> Option<Fingerprint> {
        let words: [u64; 4] =
            std::array::from_fn(|i| self.history[sequence as usize % REMEMBERED][i].load(Ordering::Acquire));
        let operation: Fingerprint = bytemuck::cast(words);
        let after = self.latest.load(Ordering::Acquire);
        let intact = operation.sequence == sequence && sequence != 0 && after < sequence + REMEMBERED as u64;
        intact.then_some(operation)
    }
}

/// What a rank tells the jury when nothing that it waits for has moved for its deadline, or a multiple of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// The operation that does not end.
    pub operation: Fingerprint,
    /// How long nothing has moved.
    pub after: Duration,
    /// The deadline, `MAYPOLE_TIMEOUT`: a rank that does not answer is convicted.
    pub deadline: Duration,
    /// How long ranks are waited for that answer, `MAYPOLE_LATE`; no longer than the deadline if that is longer.
    pub late: Duration,
}

impl Stall {
    /// For an operation that ends at the deadline, with a verdict in any case.
    pub fn at_last(operation: Fingerprint, after: Duration) -> Stall {
        Stall { operation, after, deadline: after, late: Duration::ZERO }
    }

    /// Whether the operation may go on if all ranks answer.
    pub fn is_patient(&self) -> bool {
        self.after < self.late.max(self.deadline)
    }

    /// Whether it is time to warn, if it goes on: after the deadline, twice that, four times, and so on.
    pub(crate) fn is_time_to_warn(&self) -> bool {
        let deadlines = self.after.as_nanos() / self.deadline.as_nanos().max(1);
        deadlines.is_power_of_two()
    }
}

/// What is known of a rank that answers and has not come.
pub(crate) fn answering(latest: Option<Fingerprint>) -> String {
    match latest {
        Some(latest) => format!("it answers; its latest operation was {latest}"),
        None => "it answers; it has not called anything yet".to_string(),
    }
}

/// The warning that an operation waits for ranks that are late.
pub(crate) struct Late<'a> {
    pub reporter: usize,
    pub stall: &'a Stall,
    pub culprits: &'a [(usize, String, String)],
}

impl std::fmt::Display for Late<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Stall { operation, after, late, .. } = self.stall;
        write!(f, "rank {} has waited for {after:?} in {operation}: ", self.reporter)?;
        match self.culprits {
            [] => write!(f, "every rank has entered it and answers, but nothing moves")?,
            culprits => write!(f, "late: {}", Missing(culprits))?,
        }
        write!(f, "; it goes on waiting, up to {late:?} (MAYPOLE_LATE)")
    }
}

/// Who brings the ranks of a communicator to one verdict. All calls return at once; what comes of them arrives as a
/// verdict on every rank's [`Watch`], or not at all.
pub trait Jury: Send + Sync {
    /// Declare `verdict` to every rank of the communicator `context`, unless one stands already.
    fn report(&self, context: u64, verdict: Verdict);

    /// Rank `asker` has waited in `operation` for rank `peer` longer than usual: compare with what `peer` did as that
    /// operation, and report a mismatch or a refusal if it did something else. A peer that has not come yet is no
    /// fault. Messages between two ranks have numbers of their own and are not compared: there the asker is told
    /// ([`Watch::depart`]) if the peer has left, and so it is of every operation once a member's death is the verdict.
    fn inquire(&self, context: u64, asker: usize, operation: Fingerprint, peer: usize);

    /// Rank `reporter`'s deadline has passed: find out which ranks have not entered the operation, and declare
    /// [`Verdict::Stalled`] if one of them does not answer or the stall is no longer patient. Otherwise the operation
    /// goes on; the rank is told what has moved elsewhere ([`Watch::note_moved_elsewhere`]), and people who is late.
    fn stalled(&self, context: u64, reporter: usize, stall: Stall);

    /// Half of a deadline has passed on this rank: whoever would be asked at its end is to show that it is there, or
    /// the rank would have to wait for it even then.
    fn doubt(&self, _context: u64) {}

    /// Rank `rank` has failed in the communicator and does nothing there any more, though it has not left it. Where a
    /// member's death is the verdict, those that inquired after it are told.
    fn give_up(&self, _context: u64, _rank: usize) {}

    /// Whether it still hears of the other ranks: it does not once what holds the job together is out of reach.
    fn hears(&self) -> bool {
        true
    }

    /// Rank `rank` leaves the communicator in good order.
    fn leave(&self, context: u64, rank: usize);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moved_elsewhere_is_news_however_long_ago_and_every_time() {
        let (watch, mut seen) = (Watch::default(), 0);
        for ago in [3600, 3600, 7200, 1] {
            let ago = Duration::from_secs(ago);
            watch.note_moved_elsewhere(true, ago);
            assert_eq!(watch.news_of_movement(false, &mut 0), None);
            let news = watch.news_of_movement(true, &mut seen).expect("news");
            assert!(news < ago + Duration::from_secs(60), "{news:?} for {ago:?}");
            assert_eq!(watch.news_of_movement(true, &mut seen), None);
        }
        watch.note_moved(true);
        watch.note_moved_elsewhere(true, Duration::from_secs(9));
        assert!(watch.news_of_movement(true, &mut { seen }).is_some());
    }
}
