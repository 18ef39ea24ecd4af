//! Bringing the ranks together, until all have come, or until it is known that they will not; then
//! all who are there, or come yet, are told why.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Hub, Phase};
use crate::descriptors;
use crate::node::court::Court;
use crate::node::frame::{Hello, HubPlace, ToNode};
use crate::node::lines::Line;
use crate::node::wire::Body;
use crate::node::{peer, roster};
use crate::running::Moment;

/// How long the hub, when the ranks could not be brought together, keeps its own process from
/// ending so that the others can be told.
pub(super) const HELD: Duration = Duration::from_secs(1);
/// In place of a process' number: whichever it is.
const ANY: u64 = 0;

impl Hub {
    /// When those who have not come are waited for no longer.
    pub(super) fn gathers_until(&self) -> Moment {
        self.starves_by.map_or(self.give_up, |by| by.min(self.give_up))
    }

    /// A process says who it is.
    pub(super) fn introduce(&mut self, id: u64, hello: Hello) {
        let rank = hello.peer.rank;
        let (size, process, own) = (hello.size, hello.process, hello.process == self.process);
        let line = self.lines.get_mut(id).expect("it spoke");
        if rank != line.caller {
            let caller = line.caller;
            tracing::warn!(
                "closed a control connection that came as rank {caller} and then introduced itself \
                 as {rank}"
            );
            return self.hang_up(id, "it introduced itself as another rank");
        }
        (line.known, line.process) = (Some((rank, own)), process);
        if !std::mem::replace(&mut self.somebody_came, true) {
            self.give_up = self.clock.shown() + self.patience;
        }
        let shortage = matches!(&self.phase, Phase::Gathering(roster) if roster.size().is_none())
            .then(|| self.shortage(hello.size))
            .flatten();
        match &mut self.phase {
            Phase::Gathering(roster) => match shortage.map_or_else(|| roster.admit(hello), Err) {
                Ok(false) => {}
                Ok(true) => self.complete(),
                Err(what) => {
                    let size = roster.size().unwrap_or(size);
                    self.fail(what, size, HashSet::new(), Instant::now() + HELD);
                }
            },
            Phase::Failed { knows, .. }
                if self.is_named && [process, ANY].iter().any(|p| knows.contains(&(rank, *p))) =>
            {
                let line = self.lines.remove(id, &self.epoll);
                line.expect("it spoke").last_words(&ToNode::Again);
            }
            Phase::Failed { .. } => self.tell(id),
            Phase::Running { ranks, .. } => {
                let what = format!(
                    "process {} on host {} came as rank {rank}, but all {} ranks of this job have \
                     come already; was it started twice, or does another job use the same meeting \
                     point and key?",
                    hello.peer.pid,
                    hello.peer.host,
                    ranks.len()
                );
                self.lines.send(id, &ToNode::Failed { what });
                // It is no rank of this job: what it says and when it goes concerns nobody.
                self.lines.get_mut(id).expect("it spoke").known = None;
            }
        }
    }

    /// A process says that it cannot be a rank: without it there is no job.
    pub(super) fn excuse(&mut self, id: u64, rank: usize, size: usize, why: String) {
        self.lines.remove(id, &self.epoll);
        match &mut self.phase {
            Phase::Gathering(roster) => {
                let size = roster.size().unwrap_or(size);
                // Whoever excuses itself may share this process, and knows not how many descriptors
                // are needed here.
                let whys = [Some(why), self.shortage(size)].into_iter().flatten();
                let why = whys.collect::<Vec<_>>().join("; ");
                self.fail(why, size, HashSet::from([rank]), Instant::now() + HELD);
            }
            Phase::Failed { told, .. } => _ = told.insert(rank),
            Phase::Running { .. } => {}
        }
    }

    /// What to tell everybody if this process cannot have a connection to each of `size` ranks.
    fn shortage(&self, size: usize) -> Option<String> {
        let strangers = self.lines.len() + self.door.guests();
        let (limit, others) = (descriptors::limit(), descriptors::open().saturating_sub(strangers));
        let needs = size.saturating_add(others);
        (needs > limit && size <= roster::LARGEST).then(|| {
            format!(
                "process {} on host {}, which holds the job together, needs {needs} file \
                 descriptors: one for each of the {size} ranks, beside {others} that it has open; \
                 but it may have {limit}; {}",
                std::process::id(),
                peer::host_name(),
                descriptors::RAISE
            )
        })
    }

    /// All have come.
    fn complete(&mut self) {
        let Phase::Gathering(roster) = &mut self.phase else { return };
        let (peers, rank) = std::mem::take(roster).into_table(self.process);
        let mut ranks = vec![0; peers.len()];
        for (id, line) in self.lines.iter() {
            if let Some((rank, _)) = line.known {
                ranks[rank] = id;
            }
        }
        tracing::debug!("all {} ranks have come", peers.len());
        let court = Court::new(peers.iter().map(|p| p.host.clone()).collect());
        let (host, pid) = (peer::host_name(), std::process::id());
        let hub = HubPlace { rank, host, pid, process: self.process };
        // Once, whatever the number of ranks: it is as long as they are many.
        let table = Body::of(&ToNode::Table { peers, hub });
        for id in &ranks {
            self.lines.share(*id, &table);
        }
        let waits = rank.is_some();
        self.stay.stands.store(true, Ordering::Release);
        self.phase = Phase::Running { court, ranks, waits, held: None, active: self.clock.shown() };
    }

    /// Why the ranks cannot be brought together, if that has become known other than by what they
    /// say; their number, as far as it is known; and ranks that need not be told.
    pub(super) fn in_vain(&mut self) -> Option<(String, usize, HashSet<usize>)> {
        let Phase::Gathering(roster) = &self.phase else { return None };
        let size = roster.size().unwrap_or(0);
        // A rank that finds no place here comes no later for being waited for; but it is told why,
        // once there is one.
        if self.door.ran_out() {
            self.starves_by.get_or_insert(self.clock.shown() + descriptors::PATIENCE);
        }
        if let Some(why) = self.stay.given_up.lock().take() {
            return Some((why, size, HashSet::from([0])));
        }
        if self.stay.withdrawn.load(Ordering::Acquire) {
            let why = "the process that holds the meeting point has given it up; see its output";
            return Some((why.to_string(), size, HashSet::new()));
        }
        if !self.somebody_came || self.clock.shown() < self.gathers_until() {
            return None;
        }
        let mut why = roster.missing(self.patience);
        if self.door.ran_out() {
            why += &format!(
                "; or the limit of {} file descriptors kept them out, which process {} on host {}, \
                 where they meet, has reached; {}",
                descriptors::limit(),
                std::process::id(),
                peer::host_name(),
                descriptors::RAISE
            );
        }
        why += &self.door.turned_away.explain();
        Some((why, size, HashSet::new()))
    }

    /// They cannot be brought together: tell all who are there. `gone`: those who need not be told;
    /// `hold_until`: how long this process' own ranks wait for the others to be told.
    pub(super) fn fail(&mut self, what: String, size: usize, gone: HashSet<usize>, hold_until: Instant) {
        tracing::debug!("the ranks cannot be brought together: {what}");
        let left = (self.give_up - self.clock.shown()).min(self.patience);
        let until = (Instant::now() + left).max(hold_until);
        *self.stay.why.lock() = Some(what.clone());
        let (knows, held) = (gone.iter().map(|rank| (*rank, ANY)).collect(), HashSet::new());
        self.phase = Phase::Failed { what, size, told: gone, knows, held, hold_until, until };
        self.stay.over.store(true, Ordering::Release);
        self.lines.known().into_iter().for_each(|id| self.tell(id));
    }

    /// Tell one process why the job cannot start; this process' own ranks later, see
    /// [`Hub::release`].
    pub(super) fn tell(&mut self, id: u64) {
        let Phase::Failed { what, told, knows, held, .. } = &mut self.phase else { return };
        let Some(line) = self.lines.get(id) else { return };
        let Some((rank, own)) = line.known else { return };
        knows.insert((rank, line.process));
        if own {
            held.insert(id);
        } else {
            told.insert(rank);
            let message = ToNode::Failed { what: what.clone() };
            self.lines.send(id, &message);
        }
    }

    /// Tell this process' own ranks, too, why the job cannot start, once the others have been told:
    /// not merely once it is queued for them, since the process, and the hub with it, may end as
    /// soon as its own ranks know. Returns whether it did.
    pub(super) fn release(&mut self, now: Instant) -> bool {
        let Phase::Failed { what, size, told, held, hold_until, .. } = &mut self.phase else {
            return false;
        };
        let on_its_way = || self.lines.any_unsent(held);
        let due = *hold_until <= now || told.len() + held.len() >= *size;
        if held.is_empty() || !due || *hold_until + HELD > now && on_its_way() {
            return false;
        }
        let message = ToNode::Failed { what: what.clone() };
        for id in std::mem::take(held) {
            told.extend(self.lines.get(id).and_then(|line| line.known).map(|(rank, _)| rank));
            self.lines.send(id, &message);
        }
        true
    }

    /// As the hub ends: those who came to it while rank 0 had another opened are with that.
    pub(super) fn send_on(&mut self) {
        if !self.is_named || !self.stay.withdrawn.load(Ordering::Acquire) {
            return;
        }
        let is_told = |line: &Line| match (&self.phase, line.known) {
            (Phase::Failed { told, .. }, Some((rank, _))) => told.contains(&rank),
            _ => false,
        };
        let late = self.lines.iter().filter(|(_, line)| !is_told(line));
        let late: Vec<u64> = late.map(|(id, _)| id).collect();
        late.into_iter().for_each(|id| self.lines.send(id, &ToNode::Again));
    }
}
