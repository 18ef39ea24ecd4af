//! Which algorithm and slice an operation gets.
//!
//! The choice depends on nothing but what all ranks know alike: the collective, its size, the world, how its ranks are
//! linked, and the settings. So all ranks choose the same without a word. The choice itself is a table, in [`rules`].

pub(crate) mod rules;

use std::collections::BTreeMap;
use std::sync::Arc;

use maypole_collectives::algorithms::{self, Algorithm};
use maypole_collectives::catalogue::Counts;
use maypole_collectives::schedule::{Collective, Place, Schedule};
use maypole_collectives::{DataType, Hosts, Order, ReduceOp};
use maypole_transports::shm::Exchange;

use crate::capacity::{self, Capacity};
use crate::config::Config;
use crate::engine::small;
use crate::error::{Error, Result};
use rules::{Question, Reach};

/// Read `MAYPOLE_ALGORITHM`: comma-separated `algorithm` or `collective=algorithm`.
pub fn parse_overrides(text: &str) -> std::result::Result<Vec<(Option<Collective>, Algorithm)>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .map(|entry| {
            let (collective, algorithm) = match entry.split_once('=') {
                None => (None, entry),
                Some((c, a)) => {
                    let found = Collective::ALL.into_iter().find(|x| x.name() == c);
                    (Some(found.ok_or_else(|| format!("no collective is called {c}"))?), a)
                }
            };
            let algorithm: Algorithm = algorithm.parse().map_err(|e| format!("{e}"))?;
            if let Some(c) = collective
                && !algorithm.supports(c)
            {
                return Err(format!("{} has no schedule for {}", algorithm.name(), c.name()));
            }
            Ok((collective, algorithm))
        })
        .collect()
}

/// How a communicator's ranks are linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// All share memory.
    Shared,
    /// Some pairs share memory, others are linked by TCP.
    Mixed,
    /// All are linked by TCP.
    Tcp,
}

/// What an operation runs.
#[derive(Clone)]
pub(crate) struct Plan {
    pub algorithm: Algorithm,
    pub schedule: Arc<dyn Schedule>,
    /// The longest slice, bytes.
    pub slice: usize,
    /// What its longest slice could be, were no shorter ones asked for.
    most: usize,
}

/// What the operation of a reduction asks of its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Bytes that stay together.
    pub together: usize,
    /// Ranks are combined in their order, since it does not commute.
    pub in_rank_order: bool,
}

impl Needs {
    /// Of what combines nothing, and of the built-in operations on elements.
    pub const NOTHING: Needs = Needs { together: 1, in_rank_order: false };

    /// Of an operation on elements of a type.
    pub fn of(op: ReduceOp, dtype: DataType) -> Needs {
        Needs { together: op.width() * dtype.size(), in_rank_order: !op.commutes() }
    }

    fn are_met_by(self, algorithm: Algorithm, collective: Collective) -> bool {
        !self.in_rank_order || algorithm.keeps_rank_order(collective)
    }
}

impl Plan {
    /// Eight bits, never 0, in which plans differ whose messages do not fit together.
    pub fn digest(&self) -> u8 {
        let lines = self.slice / 64;
        ((self.algorithm as usize * 37) ^ lines ^ (lines >> 8) ^ (lines >> 16)).to_le_bytes()[0].max(1)
    }

    /// The same with slices in which `together` bytes have room; `None`: no link takes as many.
    fn with_room_for(self, together: usize) -> Option<Plan> {
        let slice = self.slice.max(together.next_multiple_of(capacity::SLICE));
        (slice <= self.most).then_some(Plan { slice, ..self })
    }
}

/// By collective, algorithm and root.
type Plans = BTreeMap<(u8, Algorithm, usize), Plan>;

/// How many plans are remembered at most.
const PLANS: usize = 1024;

/// Chooses, and remembers the schedules it has chosen.
pub(crate) struct Tuner {
    rank: usize,
    size: usize,
    links: Links,
    hosts: Arc<Hosts>,
    /// Bytes that one message may have on any link, and one publication.
    link_credit: usize,
    window: usize,
    slice: usize,
    /// Buffers are device memory.
    device: bool,
    /// In which order reductions combine; see [`Order`].
    pub order: Order,
    overrides: Vec<(Option<Collective>, Algorithm)>,
    plans: Plans,
    /// Schedules planned since somebody last emptied this: their links are still to be made.
    pub fresh: Vec<Arc<dyn Schedule>>,
}

/// As long as any block: whole lines that no address space has room for.
pub(crate) const UNCUT: usize = isize::MAX as usize / capacity::SLICE * capacity::SLICE;

const NOT_SHARED: &str = "needs all ranks to share memory";

impl Tuner {
    pub fn new((rank, size): (usize, usize), links: Links, hosts: Hosts, config: &Config) -> Tuner {
        let overrides = parse_overrides(&config.algorithm).unwrap_or_default();
        let capacity = Capacity::of(size, config);
        let link_credit = match links {
            Links::Shared => capacity.ring,
            Links::Tcp => capacity.socket,
            Links::Mixed => capacity.ring.min(capacity.socket),
        };
        Tuner {
            rank,
            size,
            links,
            hosts: Arc::new(hosts),
            link_credit,
            window: capacity.window,
            slice: config.slice,
            device: false,
            order: config.order,
            overrides,
            plans: Plans::new(),
            fresh: Vec::new(),
        }
    }

    /// The same for buffers in device memory. `window`, `link`: bytes of data that one publication and one link hold.
    pub fn for_device(
        place: (usize, usize),
        links: Links,
        hosts: Hosts,
        config: &Config,
        (window, link): (usize, usize),
    ) -> Tuner {
        // A message and the one that a rank passes on meanwhile share a link; there is no fingerprint on it.
        Tuner { device: true, window, link_credit: link + 128, ..Tuner::new(place, links, hosts, config) }
    }

    /// Which rank is on which host.
    pub fn hosts(&self) -> &Arc<Hosts> {
        &self.hosts
    }

    /// How the ranks are linked, in words.
    pub fn links(&self) -> &'static str {
        match self.links {
            Links::Shared => "shared memory",
            Links::Mixed => "shared memory and TCP",
            Links::Tcp => "TCP",
        }
    }

    /// The algorithm the user asked for, if it has a schedule for this collective.
    pub fn asked_for(&self, collective: Collective) -> Option<Algorithm> {
        let specific = self.overrides.iter().rev().find(|(c, _)| *c == Some(collective));
        let general = self.overrides.iter().rev().find(|(c, a)| c.is_none() && a.supports(collective));
        specific.or(general).map(|(_, algorithm)| *algorithm)
    }

    /// `plan`, of an operation all of whose publications are lent: no window cuts its slices.
    pub fn uncut(&self, plan: Plan) -> Plan {
        Plan { slice: self.asked_slice(UNCUT), ..plan }
    }

    /// Whether all ranks share memory and the user leaves the choice open, so that small vectors may take the fused
    /// path.
    pub fn may_fuse(&self, collective: Collective) -> bool {
        self.links == Links::Shared && self.overrides.is_empty() && self.size > 1 && collective != Collective::Reduce
    }

    /// Whether a vector of `bytes` bytes is better exchanged whole than reduced in parts: every rank reads all others'.
    pub fn fits_exchange(&self, bytes: usize) -> bool {
        bytes <= small::MOST && bytes * (self.size - 1) <= 2 * small::MOST || bytes <= Exchange::CAPACITY
    }

    /// The plan for an operation on blocks of `bytes` bytes.
    ///
    /// # Errors
    /// [`Error::Argument`] when the user asked for an algorithm that cannot run here, or for
    /// operands that no link takes whole.
    pub fn plan(&mut self, collective: Collective, root: usize, bytes: usize, needs: Needs) -> Result<Plan> {
        let asked = self.asked_for(collective);
        self.plan_for(self.question(collective, bytes, false), root, needs, asked)
    }

    /// The plan for an operation on blocks with counts of their own. `total`: bytes of all blocks where every rank
    /// knows them all, otherwise 0.
    ///
    /// # Errors
    /// As [`Tuner::plan`].
    pub fn plan_v(&mut self, collective: Collective, root: usize, total: usize, needs: Needs) -> Result<Plan> {
        use Algorithm::*;
        // See the end of the table of rules.
        let fits = |a: &Algorithm| match collective.meaning().counts {
            Counts::KnownToAll => matches!(a, Ring | OneShot | Direct),
            _ => *a == Direct,
        };
        let asked = self.asked_for(collective).filter(fits);
        self.plan_for(self.question(collective, total, true), root, needs, asked)
    }

    /// The plan by the algorithm that was asked for, or else by that of the first rule that fits.
    fn plan_for(&mut self, question: Question, root: usize, needs: Needs, asked: Option<Algorithm>) -> Result<Plan> {
        let Question { collective, bytes, .. } = question;
        let serves = |algorithm: Algorithm| needs.are_met_by(algorithm, collective);
        let (algorithm, why) = match asked.filter(|asked| serves(*asked)) {
            Some(asked) => (self.allowed(asked, collective)?, "asked for"),
            None => {
                let mut rule = rules::choose(&question);
                if !serves(rule.algorithm) {
                    rule = rules::choose(&Question { ordered: true, ..question });
                }
                (rule.algorithm, rule.why)
            }
        };
        self.build_for(needs, algorithm, collective, root, (bytes, why))
    }

    /// What the rules are asked.
    fn question(&self, collective: Collective, bytes: usize, counts: bool) -> Question {
        let reach = match self.links {
            Links::Shared if self.device => Reach::Device,
            Links::Shared => Reach::Memory,
            Links::Mixed | Links::Tcp if [1, self.size].contains(&self.hosts.count()) => Reach::Network,
            Links::Mixed | Links::Tcp => Reach::Hosts,
        };
        let ordered = self.order == Order::Canonical && collective.reduces();
        Question { reach, collective, counts, ordered, bytes, ranks: self.size }
    }

    /// The plan by `algorithm`, or, where its slices are too short for what stays together, by one
    /// whose messages have one chunk and so the longest slices that links take.
    fn build_for(
        &mut self,
        needs: Needs,
        algorithm: Algorithm,
        collective: Collective,
        root: usize,
        (bytes, why): (usize, &str),
    ) -> Result<Plan> {
        let plan = self.build(algorithm, collective, root, (bytes, why))?;
        if needs.together <= plan.slice {
            return Ok(plan);
        }
        if let Some(plan) = plan.with_room_for(needs.together) {
            return Ok(plan);
        }
        let simplest = if collective.is_scan() { Algorithm::Chain } else { Algorithm::Direct };
        let plan = self.build(simplest, collective, root, (bytes, "long operands: one chunk in a message"))?;
        let most = plan.most;
        plan.with_room_for(needs.together).ok_or_else(|| {
            let more = if self.links == Links::Tcp { "" } else { "; MAYPOLE_RING sets how many" };
            let (name, together, links) = (collective.name(), needs.together, self.links());
            let what = format!(
                "{name}: the operation's operands have {together} bytes, but a link over {links} takes {most} at once{more}"
            );
            Error::Argument { rank: self.rank, what }
        })
    }

    /// `asked`, unless it cannot run here or not in the order asked for.
    fn allowed(&self, asked: Algorithm, collective: Collective) -> Result<Algorithm> {
        let refuse = |why: &str| {
            let (asked, name) = (asked.name(), collective.name());
            let what = format!(
                "MAYPOLE_ALGORITHM asks for {asked} in {name}, which {why}; choose another or leave it to the tuner"
            );
            Err(Error::Argument { rank: self.rank, what })
        };
        if asked.one_sided() && self.links != Links::Shared {
            return refuse(NOT_SHARED);
        }
        if self.order == Order::Canonical && collective.reduces() && !asked.is_canonical(collective) {
            return refuse("does not combine in the canonical order that was asked for");
        }
        Ok(asked)
    }

    fn build(
        &mut self,
        algorithm: Algorithm,
        collective: Collective,
        root: usize,
        (bytes, why): (usize, &str),
    ) -> Result<Plan> {
        let key = (collective as u8, algorithm, root);
        if let Some(plan) = self.plans.get(&key) {
            return Ok(plan.clone());
        }
        let place = Place { rank: self.rank, size: self.size, root };
        let schedule =
            algorithms::schedule(algorithm, collective, place, &self.hosts).ok_or_else(|| Error::Argument {
                rank: self.rank,
                what: format!("{} has no schedule for {}", algorithm.name(), collective.name()),
            })?;
        let most = self.longest_slice(algorithm, schedule.message_chunks());
        let slice = self.asked_slice(most);
        tracing::info!(
            rank = self.rank, size = self.size, root, algorithm = algorithm.name(), slice, links = ?self.links,
            "{} from {bytes} bytes a block: {why}", collective.name()
        );
        let plan = Plan { algorithm, schedule: schedule.into(), slice, most };
        self.fresh.push(plan.schedule.clone());
        // Whoever goes through that many roots makes plans as often as calls; it costs little.
        if self.plans.len() == PLANS {
            self.plans.clear();
        }
        self.plans.insert(key, plan.clone());
        Ok(plan)
    }

    /// The longest slice such that a message fits into what a link or window takes, see
    /// [`capacity`], or the shorter one that was asked for.
    #[cfg(test)]
    pub(crate) fn slice(&self, algorithm: Algorithm, message_chunks: usize) -> usize {
        self.asked_slice(self.longest_slice(algorithm, message_chunks))
    }

    fn longest_slice(&self, algorithm: Algorithm, message_chunks: usize) -> usize {
        match algorithm.one_sided() {
            true => capacity::slice_of_publication(self.window, message_chunks),
            false => capacity::slice_of_message(self.link_credit, message_chunks),
        }
    }

    fn asked_slice(&self, most: usize) -> usize {
        if self.slice > 0 { most.min(self.slice) } else { most }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_remembered_but_not_for_ever() {
        const SIZE: usize = 5 * PLANS / 2;
        let mut tuner = Tuner::new((1, SIZE), Links::Tcp, Hosts::apart(SIZE), &Config::default());
        let (mut known, mut made) = (0, 0);
        for root in (0..SIZE).flat_map(|root| [root, 0, root]) {
            let plan = tuner.plan(Collective::Broadcast, root, 8, Needs::NOTHING).unwrap();
            let same = tuner.plan(Collective::Broadcast, root, 8, Needs::NOTHING).unwrap();
            assert!(Arc::ptr_eq(&plan.schedule, &same.schedule));
            made += tuner.fresh.drain(..).count();
            known = known.max(tuner.plans.len());
        }
        assert!(known <= PLANS, "{known} plans are kept");
        assert!((SIZE..SIZE + 10).contains(&made), "{made} plans were made for {SIZE} roots");
    }
}
