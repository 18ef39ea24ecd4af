//! A schedule's steps as commands on a stream.
//!
//! The same programs that [`crate::engine`] runs, walked once on the host without waiting for anything: each step becomes
//! waits for words, jobs for the device and writes of words, in the order that [`Linear`] gives. Where the engine would
//! compare fingerprints, the jobs do: each header that a job reads must have the operation's digest, or the job touches
//! nothing and says so in this rank's `trouble` word, which the sentry watches.

use std::sync::Arc;

use maypole_collectives::linear::Linear;
use maypole_collectives::schedule::Buffer;
use maypole_collectives::schedule::{Region, Schedule, Step};
use maypole_collectives::{DataType, ReduceOp};
use maypole_cuda::Commands;
use maypole_cuda::kernels::{Gather, Header, Job, Kernel, Kernels, MOST_SOURCES, Source, Target, op_code};
use maypole_cuda::peer::{Bases, Incoming, Outgoing, Place, Window};

use super::courier::{End, Passage};
use super::fold::Fold;
use super::loans::loan_of;
use super::pace::{Halt, Pace};
use super::pieces::{Runs, Track, length};
use super::plan::Turns;
use crate::engine::bound::Bound;
use crate::fingerprint::Fingerprint;

pub(super) type Result<T> = std::result::Result<T, Halt>;

/// Channels per ordered pair of ranks: the engine's, those of lanes and that of messages.
pub(crate) const CHANNELS: usize = crate::engine::routes::CHANNELS;

/// What is queued: a schedule, its buffers, and what it is called.
pub(crate) struct Task<'a> {
    pub schedule: &'a dyn Schedule,
    pub order: &'a Linear,
    /// How its publications are counted.
    pub turns: Turns,
    pub bound: &'a Bound<'a>,
    pub operation: &'a Fingerprint,
    /// What sums of all ranks' contributions are divided by where they become complete; 0: nothing.
    pub divisor: u64,
    /// Operands are combined two at a time.
    pub pairwise: bool,
}

/// One end of a link, if it is open.
type Ends<T> = Box<[Option<T>]>;

/// Makes commands of schedules, for one rank of one communicator.
pub(crate) struct Executor {
    pub(super) me: usize,
    pub(super) size: usize,
    kernels: Arc<Kernels>,
    /// Each rank's number among those of this host, if it is there.
    pub members: Vec<Option<usize>>,
    /// Publications, if all ranks are on this host.
    pub window: Option<Window>,
    pub bases: Bases,
    /// Where kernels report a header of another operation, and tell those after them.
    reports: Reports,
    pub outgoing: Ends<Outgoing>,
    pub incoming: Ends<Incoming>,
    /// What the last two publications were made of.
    pub(super) own: [Own; 2],
    /// Keeps the host from running too far ahead; `None` only until there is a sentry.
    pub pace: Option<Pace>,
    /// What the courier will carry of the operation that is being queued, as far as it has not been told.
    pub passages: Vec<(End, Passage)>,
    /// Fetches that are waiting to become a job.
    pub(super) fold: Fold,
}

/// Addresses for jobs: of this rank's [`Trouble`](maypole_cuda::kernels::Trouble), and of the word by which one that found
/// a foreign header tells those after it.
#[derive(Clone, Copy)]
pub(crate) struct Reports {
    pub trouble: u64,
    pub poison: u64,
}

/// One of this rank's publications.
#[derive(Clone, Copy, Default)]
pub(super) struct Own {
    /// The region's first chunk lies here, if it was lent.
    pub lent: Option<Region>,
}

/// Everything that jobs of one operation have in common.
pub(super) struct Now<'a> {
    pub bound: &'a Bound<'a>,
    operation: &'a Fingerprint,
    digest: u32,
    pub round: usize,
    /// Publications made in this round.
    pub published: u32,
    /// Which step this is.
    pub step: usize,
    pub turns: Turns,
    pub divisor: u64,
    /// The most sources of a job.
    pub most: usize,
}

/// Where a publication goes.
pub(super) struct Onward {
    pub place: Place,
    pub head: Header,
    /// What is lent in place of being copied to `place`.
    pub lent: Option<Region>,
}

/// A message that comes in, goes out, or both: the links' numbers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Way {
    pub from: Option<usize>,
    pub to: Option<usize>,
}

/// The number of a link among a rank's.
pub(crate) fn link(peer: usize, channel: usize) -> usize {
    peer * CHANNELS + channel
}

impl Executor {
    pub fn new(
        (me, size): (usize, usize),
        kernels: Arc<Kernels>,
        members: Vec<Option<usize>>,
        window: Option<Window>,
        bases: Bases,
        reports: Reports,
    ) -> Executor {
        let ends = size * CHANNELS;
        Executor {
            me,
            size,
            kernels,
            members,
            window,
            bases,
            reports,
            outgoing: std::iter::repeat_with(|| None).take(ends).collect(),
            incoming: std::iter::repeat_with(|| None).take(ends).collect(),
            own: [Own::default(); 2],
            pace: None,
            passages: Vec::new(),
            fold: Fold::default(),
        }
    }

    /// What begins, counts and ends the commands of an operation.
    pub fn pace(&mut self) -> &mut Pace {
        self.pace.as_mut().expect("made with the sentry")
    }

    /// Tell the courier what it has not been told yet.
    pub fn carry(&mut self) {
        let Executor { pace: Some(pace), passages, .. } = self else { return };
        pace.carry(passages);
    }

    /// Queue an operation. All links that it uses are open. Blocks while more is on the stream than should be, see
    /// [`pace`](super::pace).
    ///
    /// # Errors
    /// The driver's, or a verdict while this waits; part of the operation may be queued then.
    pub fn queue(&mut self, commands: &mut Commands<'_>, task: &Task<'_>) -> Result<()> {
        let most = if task.pairwise { 2 } else { MOST_SOURCES };
        let digest = task.operation.digest();
        let Task { bound, operation, divisor, .. } = *task;
        for round in 0..bound.rounds {
            let turns = task.turns;
            let mut now = Now { bound, operation, digest, round, published: 0, step: 0, turns, divisor, most };
            for i in 0..task.order.len() {
                now.step = i;
                let (lane, step) = task.order.at(i);
                let step = task.schedule.step(lane, step);
                if round > 0 && is_nothing(bound, step, round) || self.folds(&now, step) {
                    continue;
                }
                let is_done = self.close(commands, &mut now, Some(step))?;
                if !is_done && !self.folds(&now, step) {
                    self.step(commands, &mut now, step, task.schedule.channel(lane))?;
                }
            }
            self.close(commands, &mut now, None)?;
            if turns.of_round > 0
                && let Some(window) = &mut self.window
            {
                window.end_round(commands, turns.of_round)?;
            }
        }
        if bound.lends()
            && let Some(window) = &mut self.window
        {
            window.wait_unread(commands)?;
        }
        Ok(())
    }

    /// A step that is not part of a fold.
    fn step(&mut self, commands: &mut Commands<'_>, now: &mut Now<'_>, step: Step, channel: usize) -> Result<()> {
        let at = |peer| Some(link(peer, channel));
        match step {
            Step::Send { to, src } => self.flow(commands, now, Way { from: None, to: at(to) }, Some(src), None),
            Step::Recv { from, dst } => self.flow(commands, now, Way { from: at(from), to: None }, None, Some(dst)),
            Step::RecvReduce { from, local, dst, .. } => {
                self.flow(commands, now, Way { from: at(from), to: None }, Some(local), Some(dst))
            }
            Step::RecvReduceSend { from, local, dst, to, .. } => {
                self.flow(commands, now, Way { from: at(from), to: at(to) }, Some(local), dst)
            }
            Step::RecvCopySend { from, dst, to } => {
                self.flow(commands, now, Way { from: at(from), to: at(to) }, None, Some(dst))
            }
            Step::Copy { src, dst } => self.flow(commands, now, Way::default(), Some(src), Some(dst)),
            Step::Reduce { a, b, dst } => self.reduce(commands, now, [a, b, dst]),
            Step::Publish { src } => self.publish(commands, now, src),
            Step::Fetch { .. } | Step::FetchReduce { .. } => unreachable!("every fetch is part of a fold"),
        }
    }

    /// A job of this operation, with nothing to do yet.
    pub(super) fn job(&self, now: &Now<'_>) -> Job {
        self.blank(now.digest)
    }

    /// A job of the operation with that digest, with nothing to do yet.
    pub(super) fn blank(&self, digest: u32) -> Job {
        Job { digest, trouble: self.reports.trouble, poison: self.reports.poison, ..Job::default() }
    }

    /// Queue a job over `bytes` bytes.
    pub(super) fn launch(
        &mut self,
        commands: &mut Commands<'_>,
        now: &Now<'_>,
        job: &mut Job,
        bytes: usize,
    ) -> Result<()> {
        let dtype = now.bound.dtype;
        let kernel = match job.sources > 1 || job.divide != 0 {
            true => Kernel::Reduce(dtype),
            false => Kernel::Copy,
        };
        job.count = bytes as u64 / kernel.element();
        if matches!(kernel, Kernel::Reduce(_)) {
            job.op = code(now.bound.op);
        }
        self.submit(commands, kernel, job)
    }

    /// Launch a kernel, when there is room for it on the stream.
    pub(super) fn submit(&mut self, commands: &mut Commands<'_>, kernel: Kernel, job: &Job) -> Result<()> {
        self.keep_pace(commands)?;
        // SAFETY: sources and results lie in the call's buffers, which were checked to be device memory of their length,
        // in scratch, and in places of staging memory within their length; the operation was checked to have the type.
        // That the caller keeps its buffers until the stream has passed is what calls on streams ask of it; staging and
        // scratch stay until this rank's streams have drained.
        Ok(unsafe { commands.launch(&self.kernels, kernel, job) }?)
    }

    /// Launch several copies as one kernel, likewise.
    pub(super) fn submit_gather(&mut self, commands: &mut Commands<'_>, gather: &Gather) -> Result<()> {
        self.keep_pace(commands)?;
        // SAFETY: as above.
        Ok(unsafe { commands.launch_gather(&self.kernels, gather) }?)
    }

    fn keep_pace(&mut self, commands: &mut Commands<'_>) -> Result<()> {
        match &mut self.pace {
            Some(pace) => pace.keep(commands, &mut self.passages),
            None => Ok(()),
        }
    }

    /// A message in, out, or through this rank, or a copy: slot by slot, in jobs as long as the regions and slots allow.
    ///
    /// `local`: what is sent, or combined with what comes in. `dst`: where the result is kept. What goes out is the result.
    fn flow(
        &mut self,
        commands: &mut Commands<'_>,
        now: &Now<'_>,
        way: Way,
        local: Option<Region>,
        dst: Option<Region>,
    ) -> Result<()> {
        let Some(region) = local.or(dst) else { return Ok(()) };
        let total = length(now.bound, region, now.round);
        let operation = match now.bound.counted_by_pair {
            true => now.operation.of_pair(now.bound.count_of(region)),
            false => *now.operation,
        };
        self.announce(way, operation, total);
        let mut cursor = Cursor { left: total, came: None, goes: None };
        if total == 0 {
            if way.from.is_some() || way.to.is_some() {
                self.piece(commands, now, (way, &operation), &mut cursor, [None, None], 0)?;
            }
            return Ok(());
        }
        let tracks = [local.unwrap_or(region), dst.unwrap_or(region)].map(Track::Chunks);
        for (at, bytes) in Runs::new(now.bound, now.round, region, tracks) {
            let mut moved = 0;
            while moved < bytes {
                let here = |track: usize| at[track] + moved as u64;
                let operands = [local.map(|_| here(0)), dst.map(|_| here(1))];
                moved += self.piece(commands, now, (way, &operation), &mut cursor, operands, bytes - moved)?;
            }
        }
        Ok(())
    }

    /// Tell the courier of a message that another host sends or receives.
    fn announce(&mut self, way: Way, operation: Fingerprint, bytes: usize) {
        let far = |link: &usize| self.members[link / CHANNELS].is_none();
        let end = |of: fn(usize, usize) -> End| move |link: usize| of(link / CHANNELS, link % CHANNELS);
        let ends = [way.from.filter(far).map(end(End::from)), way.to.filter(far).map(end(End::to))];
        self.passages.extend(ends.into_iter().flatten().map(|end| (end, Passage { operation, bytes })));
    }

    /// One job of a message: at most `bytes` bytes, as far as the slots at both ends reach. Returns how many.
    fn piece(
        &mut self,
        commands: &mut Commands<'_>,
        now: &Now<'_>,
        (way, operation): (Way, &Fingerprint),
        cursor: &mut Cursor,
        [local, dst]: [Option<u64>; 2],
        bytes: usize,
    ) -> Result<usize> {
        let mut bytes = bytes;
        let mut job = Job { digest: operation.digest(), ..self.job(now) };
        if let Some(local) = local {
            add(&mut job, Source::plain(local));
        }
        if let Some(link) = way.from {
            let end = self.incoming[link].as_mut().expect("links are opened before they are used");
            let (place, used) = match cursor.came {
                Some(slot) => slot,
                None => (end.begin(commands)?, 0),
            };
            bytes = bytes.min(place.bytes - used);
            let peer = (link / CHANNELS) as u32;
            add(&mut job, Source { at: place.data() + used as u64, header: place.header, peer, ..Source::default() });
            cursor.came = Some((place, used));
        }
        let mut goes = None;
        if let Some(link) = way.to {
            let end = self.outgoing[link].as_mut().expect("links are opened before they are used");
            let (place, used) = match cursor.goes {
                Some(slot) => slot,
                None => (end.begin(commands)?, 0),
            };
            bytes = bytes.min(place.bytes - used);
            // With the slot's last job, so that nothing is announced of which a part went wrong.
            if used + bytes == place.bytes || bytes == cursor.left {
                (job.publish, job.head) = (place.header, header(operation));
            }
            goes = Some(place.data() + used as u64);
            cursor.goes = Some((place, used));
        }
        (job.dst, job.also) = match (dst, goes) {
            (Some(dst), goes) => (dst, goes.unwrap_or(0)),
            (None, goes) => (goes.unwrap_or(0), 0),
        };
        // A copy onto itself, in place.
        let moves = way.from.is_some() || way.to.is_some() || local != dst;
        if moves {
            self.launch(commands, now, &mut job, bytes)?;
        }
        cursor.left -= bytes;
        let ends_here = |slot: &mut Option<(Place, usize)>| {
            let Some((place, used)) = slot else { return false };
            *used += bytes;
            let ends = *used == place.bytes || cursor.left == 0;
            if ends {
                *slot = None;
            }
            ends
        };
        let (mut came, mut going) = (cursor.came, cursor.goes);
        let (emptied, filled) = (ends_here(&mut came), ends_here(&mut going));
        (cursor.came, cursor.goes) = (came, going);
        if let Some(link) = way.from.filter(|_| emptied) {
            self.incoming[link].as_mut().expect("used above").end(commands)?;
        }
        if let Some(link) = way.to.filter(|_| filled) {
            self.outgoing[link].as_mut().expect("used above").end(commands)?;
        }
        Ok(bytes)
    }

    fn reduce(&mut self, commands: &mut Commands<'_>, now: &Now<'_>, regions: [Region; 3]) -> Result<()> {
        for ([a, b, dst], bytes) in Runs::new(now.bound, now.round, regions[2], regions.map(Track::Chunks)) {
            let mut job = Job { dst, sources: 2, ..self.job(now) };
            [job.source[0], job.source[1]] = [a, b].map(Source::plain);
            self.launch(commands, now, &mut job, bytes)?;
        }
        Ok(())
    }

    fn publish(&mut self, commands: &mut Commands<'_>, now: &mut Now<'_>, src: Region) -> Result<()> {
        let Onward { place, head, lent } = self.begin_publish(commands, now, src)?;
        let tracks = [Track::Chunks(src), Track::Strided(place.data())];
        let copied = lent.is_none().then(|| Runs::new(now.bound, now.round, src, tracks));
        let mut runs = copied.into_iter().flatten().peekable();
        if runs.peek().is_none() {
            let mut job = Job { publish: place.header, head, ..self.job(now) };
            self.launch(commands, now, &mut job, 0)?;
        }
        while let Some(([from, to], bytes)) = runs.next() {
            let mut job = self.job(now);
            let mut more = runs.peek().is_some();
            if !more {
                (job.publish, job.head, job.dst) = (place.header, head, to);
                add(&mut job, Source::plain(from));
                self.launch(commands, now, &mut job, bytes)?;
                break;
            }
            // Blocks that do not lie as close here as there.
            let mut gather = Gather::new(job);
            gather.add(Source::plain(from), Target { dst: to, bytes: bytes as u64 });
            while let Some(([from, to], bytes)) = runs.next_if(|_| !gather.is_full()) {
                gather.add(Source::plain(from), Target { dst: to, bytes: bytes as u64 });
                more = runs.peek().is_some();
            }
            // With the last job, as in a slot.
            if !more {
                (gather.job.publish, gather.job.head) = (place.header, head);
            }
            self.submit_gather(commands, &gather)?;
        }
        self.end_publish(commands, now, lent)
    }

    /// What the jobs that make the next publication write. [`Executor::end_publish`] follows them.
    pub(super) fn begin_publish(&mut self, commands: &mut Commands<'_>, now: &Now<'_>, src: Region) -> Result<Onward> {
        let window = self.window.as_mut().expect("one-sided schedules run only where all ranks share memory");
        let place = window.begin_publish(commands)?;
        let loan = loan_of(now.bound, src);
        let mut head = header(now.operation);
        if let Some(loan) = loan {
            let from = match src.buffer {
                Buffer::Input => now.bound.input.addr(),
                _ => now.bound.output.addr(),
            };
            head.allocation = loan.allocation;
            head.offset = loan.offset + (now.bound.of(src, 0, now.round).0.addr() - from) as u64;
        }
        Ok(Onward { place, head, lent: loan.map(|_| src) })
    }

    pub(super) fn end_publish(
        &mut self,
        commands: &mut Commands<'_>,
        now: &mut Now<'_>,
        lent: Option<Region>,
    ) -> Result<()> {
        let window = self.window.as_mut().expect("there was one to begin with");
        self.own[(window.published() & 1) as usize] = Own { lent };
        now.published += 1;
        Ok(window.end_publish(commands)?)
    }

    /// Queue `dst` = `src` times `factor`, for `count` elements.
    ///
    /// # Errors
    /// The driver's.
    pub fn scale(
        &mut self,
        commands: &mut Commands<'_>,
        dtype: DataType,
        (dst, src): (u64, u64),
        factor: f64,
        count: usize,
    ) -> Result<()> {
        let job = Job::scale(dst, Source::plain(src), dtype, factor, count as u64);
        self.submit(commands, Kernel::Scale(dtype), &job)
    }

    /// Queue `dst` = `src`, `bytes` bytes.
    ///
    /// # Errors
    /// The driver's.
    pub fn copy(&mut self, commands: &mut Commands<'_>, (dst, src): (u64, u64), bytes: usize) -> Result<()> {
        self.submit(commands, Kernel::Copy, &Job::copy(dst, Source::plain(src), bytes as u64))
    }

    /// Queue the division of `count` sums at `at`.
    ///
    /// # Errors
    /// The driver's.
    pub fn divide(
        &mut self,
        commands: &mut Commands<'_>,
        dtype: DataType,
        at: u64,
        (divisor, count): (u64, usize),
    ) -> Result<()> {
        let job = Job { divide: divisor, ..Job::reduce(at, &[Source::plain(at)], ReduceOp::Sum, count as u64) };
        self.submit(commands, Kernel::Reduce(dtype), &job)
    }
}

/// One more source for a job, after those it has.
pub(super) fn add(job: &mut Job, source: Source) {
    job.source[job.sources as usize] = source;
    job.sources += 1;
}

/// The header of what belongs to `operation`: whoever finds it in place of another's can say what it is.
pub(super) fn header(operation: &Fingerprint) -> Header {
    let words: &[u64; 4] = bytemuck::cast_ref(operation);
    Header { digest: operation.digest(), operation: *words, ..Header::default() }
}

/// How kernels know an operation. Averages and scaled sums are sums there: what else they are is done apart.
fn code(op: ReduceOp) -> u32 {
    let op = if matches!(op, ReduceOp::Avg | ReduceOp::PreMulSum(_)) { ReduceOp::Sum } else { op };
    op_code(op).expect("a user's own operation is refused before anything is queued")
}

/// How far a message has come: bytes that are left of it, and the slots at both ends with what is used of them.
struct Cursor {
    left: usize,
    came: Option<(Place, usize)>,
    goes: Option<(Place, usize)>,
}

/// Whether a step of a later round has no bytes left to move, as for the engine's lanes.
fn is_nothing(bound: &Bound<'_>, step: Step, round: usize) -> bool {
    step.message().is_some_and(|message| message.len > 0 && length(bound, message, round) == 0)
}
