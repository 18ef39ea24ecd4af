//! Fetches folded into jobs: fewer jobs than steps.
//!
//! A job costs microseconds whatever it moves, so consecutive fetches that fold several ranks' publications into one
//! region become one job that reads them all ([`Fold`]). It comes where the last of them stands in the order. That is no later
//! for anybody who waits: nothing stands between the steps, and a publisher of which this rank fetches one publication in
//! the fold has its second place for the next. Operations are commutative bit for bit, so which side an operand stands on
//! makes no difference; sums of 8- and 16-bit floats are rounded once instead of after each operand, except under
//! [`Order::Canonical`](maypole_collectives::Order), where a job takes two operands.
//!
//! Consecutive fetches that each go to a region of their own, and are combined with nothing, become one job too, a
//! *gather*: it reads from up to eight ranks at the same time, over a link to each where they have links of their own.
//!
//! # Folds that are published
//!
//! Where the next step publishes what the fold has made, its last job writes the publication too: its data, unless it is
//! lent, and its header. That saves a job, and reading the result again. The wait for the publication's place then stands
//! before the fold, where it was behind it, and so before this rank tells the others that it is done with theirs. Nobody
//! waits longer than was verified: publication k takes the place of k - 2, and schedules are verified with one publication
//! of credit, so in the order that shows them free of deadlock all have read k - 2 before this rank published k - 1, which
//! it did before the fold.

use maypole_collectives::schedule::{Region, Step};
use maypole_cuda::Commands;
use maypole_cuda::kernels::{Gather, Job, MOST_SOURCES, Source, Target};
use maypole_cuda::peer::Place;

use super::executor::{Executor, Now, Onward, Result, add};

/// Fetches that are waiting to become jobs.
pub(super) struct Fold {
    /// Where all of them go, or the first does of those that go to regions of their own.
    dst: Region,
    gathers: bool,
    /// The operand of this rank's own.
    local: Option<Region>,
    fetches: Vec<Fetch>,
    /// Which step of the round the last of them is.
    step: usize,
    open: bool,
}

/// Part of a publication that is to be read.
#[derive(Clone, Copy)]
struct Fetch {
    from: usize,
    dst: Region,
    /// Number of the publication.
    number: u32,
    /// Which of its chunks is the first.
    at: usize,
    /// Where it lies, once the stream has been made to wait for it.
    place: Option<Place>,
}

impl Default for Fold {
    fn default() -> Fold {
        Fold { dst: Region::EMPTY, gathers: false, local: None, fetches: Vec::new(), step: 0, open: false }
    }
}

/// Whether two regions have a chunk in common.
fn overlap(a: Region, b: Region) -> bool {
    a.buffer == b.buffer && a.first < b.first + b.len && b.first < a.first + a.len
}

impl Fold {
    /// Whether a fetch into `dst`, combined with `local`, can be one more of it; and whether it gathers then.
    fn goes_on_with(&self, from: usize, local: Option<Region>, dst: Region) -> Option<bool> {
        if self.fetches.iter().any(|other| other.from == from) {
            return None;
        }
        if !self.gathers && self.dst == dst && local == (dst.len > 0).then_some(dst) {
            return Some(false);
        }
        let plain = self.local.is_none() && (self.gathers || self.fetches.len() == 1) && self.dst.len > 0;
        let apart = self.fetches.iter().all(|other| !overlap(other.dst, dst));
        (plain && local.is_none() && dst.len > 0 && apart).then_some(true)
    }

    /// Whether the fold is one piece of memory, all of which `step` publishes, and reads no publication of rank `me`,
    /// whose place it might overwrite.
    fn is_published_by(&self, now: &Now<'_>, step: Step, me: usize) -> bool {
        let Step::Publish { src } = step else { return false };
        let reads_own = self.fetches.iter().any(|fetch| fetch.from == me);
        !self.gathers && src == self.dst && src.len == 1 && !reads_own && now.bound.of(src, 0, now.round).1 > 0
    }
}

impl Executor {
    /// Make a fetch part of the fold, if it is one and fits there.
    pub(super) fn folds(&mut self, now: &Now<'_>, step: Step) -> bool {
        let Some(window) = &self.window else { return false };
        let (from, nth, at, local, dst) = match step {
            Step::Fetch { from, nth, at, dst } => (from, nth, at, None, dst),
            Step::FetchReduce { from, nth, at, local, dst, .. } => (from, nth, at, Some(local), dst),
            _ => return false,
        };
        let number = match from == self.me {
            true => window.published().wrapping_sub(now.published - nth as u32),
            false => window.fetched(member(&self.members, from)),
        };
        let fold = &mut self.fold;
        if fold.open {
            let Some(gathers) = fold.goes_on_with(from, local, dst) else { return false };
            fold.gathers = gathers;
        } else {
            (fold.dst, fold.gathers, fold.local, fold.open) = (dst, false, local, true);
            fold.fetches.clear();
        }
        fold.fetches.push(Fetch { from, dst, number, at, place: None });
        fold.step = now.step;
        true
    }

    /// Queue the fold, if there is one, before `next`. Returns whether that is done with it.
    pub(super) fn close(&mut self, commands: &mut Commands<'_>, now: &mut Now<'_>, next: Option<Step>) -> Result<bool> {
        if !self.fold.open {
            return Ok(false);
        }
        let publishes = next.is_some_and(|next| self.fold.is_published_by(now, next, self.me));
        let mut fold = std::mem::take(&mut self.fold);
        let queued = self.queue_fold(commands, now, &mut fold, publishes);
        // Back, for its memory.
        self.fold = Fold { open: false, ..fold };
        queued.map(|()| publishes)
    }

    fn queue_fold(
        &mut self,
        commands: &mut Commands<'_>,
        now: &mut Now<'_>,
        fold: &mut Fold,
        publishes: bool,
    ) -> Result<()> {
        let Executor { window: Some(window), members, .. } = self else {
            unreachable!("fetches are folded only where there is a window")
        };
        for fetch in &mut fold.fetches {
            fetch.place = Some(window.begin_fetch(commands, member(members, fetch.from), fetch.number)?);
        }
        let onward = publishes.then(|| self.begin_publish(commands, now, fold.dst)).transpose()?;
        let moves = |i: &usize| now.bound.of(fold.dst, *i, now.round).1 > 0;
        if fold.gathers {
            self.gather(commands, now, fold)?;
        } else if (0..fold.dst.len).any(|i| moves(&i)) {
            let mut chunks = (0..fold.dst.len).filter(moves);
            chunks.try_for_each(|i| self.fold_chunk(commands, now, (fold, i), onward.as_ref()))?;
        } else {
            self.look_at_headers(commands, now, fold)?;
        }
        let Executor { window: Some(window), members, .. } = self else { unreachable!("as above") };
        fold.fetches.iter().for_each(|f| window.end_fetch(member(members, f.from), f.number));
        window.finish(commands, now.turns.read_after(fold.step))?;
        match onward {
            Some(Onward { lent, .. }) => self.end_publish(commands, now, lent),
            None => Ok(()),
        }
    }

    /// The jobs of the fold for one of its chunks. `onward`: what its last job publishes.
    fn fold_chunk(
        &mut self,
        commands: &mut Commands<'_>,
        now: &Now<'_>,
        (fold, chunk): (&Fold, usize),
        onward: Option<&Onward>,
    ) -> Result<()> {
        let (to, bytes) = now.bound.of(fold.dst, chunk, now.round);
        let to = to.addr() as u64;
        let mut job = Job { dst: to, ..self.job(now) };
        if let Some(local) = fold.local {
            add(&mut job, Source::plain(now.bound.of(local, chunk, now.round).0.addr() as u64));
        }
        for fetch in &fold.fetches {
            if job.sources as usize == now.most {
                self.launch(commands, now, &mut job, bytes)?;
                // The next job goes on with what this one leaves.
                job = Job { dst: to, ..self.job(now) };
                add(&mut job, Source::plain(to));
            }
            add(&mut job, self.source(now, fetch, chunk));
        }
        if fold.local.is_some() as usize + fold.fetches.len() == self.size {
            job.divide = now.divisor;
        }
        if let Some(onward) = onward {
            (job.publish, job.head) = (onward.place.header, onward.head);
            // What is lent is read where the result lies.
            job.also = if onward.lent.is_some() { 0 } else { onward.place.data() };
        }
        self.launch(commands, now, &mut job, bytes)
    }

    /// The jobs of fetches that each go to a region of their own.
    fn gather(&mut self, commands: &mut Commands<'_>, now: &Now<'_>, fold: &Fold) -> Result<()> {
        let mut gather = Gather::new(self.job(now));
        for fetch in &fold.fetches {
            let chunk = |i: usize| now.bound.of(fetch.dst, i, now.round);
            let moves = (0..fetch.dst.len).any(|i| chunk(i).1 > 0);
            // One that moves nothing in this round has its header looked at.
            for i in (0..fetch.dst.len).filter(|i| if moves { chunk(*i).1 > 0 } else { *i == 0 }) {
                if gather.is_full() {
                    self.submit_gather(commands, &gather)?;
                    gather = Gather::new(self.job(now));
                }
                let (to, bytes) = chunk(i);
                // Where nothing goes there may be no memory.
                let dst = if bytes > 0 { to.addr() as u64 } else { 0 };
                gather.add(self.source(now, fetch, i), Target { dst, bytes: bytes as u64 });
            }
        }
        self.submit_gather(commands, &gather)
    }

    /// The job of a fold that moves nothing: it sees whether the publications are of this operation.
    fn look_at_headers(&mut self, commands: &mut Commands<'_>, now: &Now<'_>, fold: &Fold) -> Result<()> {
        let me = self.me;
        let mut others = fold.fetches.iter().filter(|fetch| fetch.from != me).peekable();
        while others.peek().is_some() {
            let mut job = self.job(now);
            for fetch in others.by_ref().take(MOST_SOURCES) {
                let place = fetch.place.expect("the stream waits for it");
                // If it is lent, the job looks where, though it reads nothing there.
                let (at, bases) = (place.data(), self.bases.row(member(&self.members, fetch.from)));
                add(&mut job, Source { header: place.header, bases, peer: fetch.from as u32, ..Source::plain(at) });
            }
            self.launch(commands, now, &mut job, 0)?;
        }
        Ok(())
    }

    /// Chunk `i` of a fetch, as a job's source.
    fn source(&self, now: &Now<'_>, fetch: &Fetch, i: usize) -> Source {
        let (bound, chunk) = (now.bound, fetch.at + i);
        let place = fetch.place.expect("the stream waits for it");
        // What has no room in a place is lent: nothing of it is there.
        let within = chunk * bound.stride;
        let at = place.data() + if within < place.bytes { within as u64 } else { 0 };
        if fetch.from == self.me {
            let lent = self.own[(fetch.number & 1) as usize].lent;
            return Source::plain(lent.map_or(at, |region| bound.of(region, chunk, now.round).0.addr() as u64));
        }
        let loan = bound.offset(chunk, now.round).wrapping_sub(bound.offset(0, now.round)) as u64;
        let bases = self.bases.row(member(&self.members, fetch.from));
        Source { at, header: place.header, bases, loan, peer: fetch.from as u32, reserved: 0 }
    }
}

/// A rank's number among those of this host.
fn member(members: &[Option<usize>], rank: usize) -> usize {
    members[rank].expect("one-sided schedules run only where all ranks are on this host")
}
