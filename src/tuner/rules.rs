//! Which algorithm serves which call: a table, read from the top.
//!
//! The first rule that fits decides. The sizes at which it switches were measured on two cores (`benches/` has the
//! runs); each rule says in a few words why it is there. `maypole info --tuner` prints the table. For every reach and
//! kind of call the last rule names no collective, so one that was added to the
//! [list](maypole_collectives::catalogue) is served before anybody has thought about its best algorithm.

use std::fmt;

use maypole_collectives::algorithms::Algorithm::{self, *};
use maypole_collectives::schedule::Collective::{self, *};

/// What the ranks of a communicator reach each other by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All share memory.
    Memory,
    /// All their devices reach the same staging memory. Each step costs a few commands on the stream, a few
    /// microseconds whatever it moves, so what counts is how few steps there are one after the other.
    Device,
    /// Some pairs have only the network, and some hosts hold several ranks: less can cross it than ranks ask for.
    Hosts,
    /// Some pairs have only the network.
    Network,
}

/// A call, as far as rules look at it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub reach: Reach,
    pub collective: Collective,
    /// Its blocks have counts of their own.
    pub counts: bool,
    /// Elements are to be combined in the order of the ranks.
    pub ordered: bool,
    /// Bytes of a block. Of blocks with counts of their own: of all together, 0 where ranks know only their own.
    pub bytes: usize,
    /// World size.
    pub ranks: usize,
}

/// A row of the table.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    reach: &'static [Reach],
    counts: bool,
    ordered: bool,
    /// All, if it is empty.
    collectives: &'static [Collective],
    /// The most bytes of a block, or of a block for each rank if `together`.
    bytes: usize,
    together: bool,
    /// The most ranks.
    ranks: usize,
    pub(super) algorithm: Algorithm,
    pub(super) why: &'static str,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const ANYWHERE: &[Reach] = &[Reach::Memory, Reach::Device, Reach::Hosts, Reach::Network];
const SHARED: &[Reach] = &[Reach::Memory, Reach::Device];
const MEMORY: &[Reach] = &[Reach::Memory];
const DEVICE: &[Reach] = &[Reach::Device];
const HOSTS: &[Reach] = &[Reach::Hosts];
const NETWORK: &[Reach] = &[Reach::Hosts, Reach::Network];
const SCANS: &[Collective] = &[Scan, ExclusiveScan];

/// The table.
pub(crate) static RULES: &[Rule] = &[
    // Where elements are to be combined in rank order.
    on(SHARED).ordered().of(&[AllReduce]).up_to(32 * KIB).by(OneShot, "small: everybody folds in rank order"),
    on(SHARED).ordered().of(SCANS).up_to(4 * KIB).by(OneShot, "small: everybody folds in rank order"),
    on(ANYWHERE).ordered().of(SCANS).by(Chain, "a pipeline in rank order"),
    on(ANYWHERE).ordered().by(Direct, "each piece is folded in rank order on one rank"),
    // Devices that share staging memory.
    on(DEVICE).of(&[AllReduce]).up_to(256 * KIB).by(OneShot, "small: one wait, everybody reads everything"),
    on(DEVICE).of(&[AllReduce]).ranks(1).by(OneShot, "nobody to share the work with"),
    on(DEVICE).of(&[AllReduce]).by(TwoShot, "each element is reduced once"),
    on(DEVICE).of(&[Broadcast]).up_to(MIB).by(OneShot, "everybody reads from the root"),
    on(DEVICE).of(&[Broadcast]).ranks(2).by(OneShot, "everybody reads from the root"),
    on(DEVICE).of(&[Broadcast]).by(TwoShot, "large: the root's bytes are read once, then spread"),
    on(DEVICE).by(OneShot, "one wait, everybody reads what it needs"),
    // Shared memory.
    on(MEMORY).of(&[AllReduce]).up_to(4 * KIB).by(OneShot, "small: one wait, everybody reads everything"),
    on(MEMORY).of(&[AllReduce]).by(TwoShot, "each element is reduced once"),
    on(MEMORY).of(&[Broadcast]).up_to(64 * KIB).by(OneShot, "everybody reads from the root"),
    on(MEMORY).of(&[Broadcast]).ranks(2).by(OneShot, "everybody reads from the root"),
    on(MEMORY).of(&[Broadcast]).by(TwoShot, "large: the root's bytes are read once, then spread"),
    on(MEMORY).of(&[Reduce]).up_to(32 * KIB).by(Binomial, "small: fewest hops"),
    on(MEMORY).of(&[Reduce]).by(Chain, "large: a pipeline"),
    on(MEMORY).of(&[Gather, Scatter]).by(Binomial, "few messages"),
    on(MEMORY).of(SCANS).up_to(64 * KIB).by(OneShot, "small: one wait, each reads those before"),
    on(MEMORY).of(SCANS).by(Chain, "large: a pipeline"),
    on(MEMORY).of(&[Barrier]).by(Dissemination, "few signals, each to one rank"),
    on(MEMORY).by(OneShot, "everybody reads what it needs"),
    // Several hosts, and several ranks on some.
    on(HOSTS).of(LED).up_to(64 * KIB).by(Leaders, "small, several hosts: fewest hops between hosts"),
    on(HOSTS).of(&[AllGather, ReduceScatter]).together_up_to(64 * KIB).by(Leaders, "small, several hosts: fewest hops"),
    on(HOSTS).of(CARRIED).by(Hierarchical, "large, several hosts: least data on every host's link"),
    on(HOSTS).of(&[AllToAll]).up_to(KIB).by(Bruck, "small: fewest messages"),
    on(HOSTS).of(&[AllToAll]).by(Hierarchical, "large, several hosts: one pair of hosts after the other"),
    // A network.
    on(NETWORK).of(&[AllReduce]).up_to(16 * KIB).by(RecursiveDoubling, "small: fewest hops"),
    on(NETWORK)
        .of(&[AllReduce])
        .up_to(4 * MIB)
        .ranks(2)
        .by(RecursiveDoubling, "one exchange moves no more than two halves"),
    on(NETWORK).of(&[AllReduce]).up_to(256 * KIB).by(HalvingDoubling, "few hops, little data"),
    on(NETWORK).of(&[AllReduce]).by(Ring, "large: least data on every link"),
    on(NETWORK).of(&[Broadcast, Reduce]).up_to(64 * KIB).by(Binomial, "small: fewest hops"),
    on(NETWORK).of(&[Broadcast, Reduce]).ranks(4).by(Chain, "large, few ranks: a pipeline"),
    on(NETWORK).of(&[Broadcast, Reduce]).by(DoubleTree, "large: every link carries half"),
    on(NETWORK).of(&[AllGather]).up_to(8 * KIB).by(Bruck, "small: fewest messages"),
    on(NETWORK).of(&[AllGather]).by(Ring, "large: neighbours only"),
    on(NETWORK).of(&[ReduceScatter]).by(Ring, "neighbours only"),
    on(NETWORK).of(&[AllToAll]).up_to(KIB).by(Bruck, "small: fewest messages"),
    on(NETWORK).of(&[AllToAll]).by(Pairwise, "large: every byte moves once"),
    on(NETWORK).of(&[Gather, Scatter]).by(Binomial, "few messages"),
    on(NETWORK).of(SCANS).up_to(64 * KIB).by(RecursiveDoubling, "small: fewest hops"),
    on(NETWORK).of(SCANS).by(Chain, "large: a pipeline"),
    on(NETWORK).of(&[Barrier]).by(Dissemination, "few signals, each to one rank"),
    on(NETWORK).by(Direct, "each pair on its own"),
    // Blocks with counts of their own. Ranks that know only their own counts cannot make a message of several blocks,
    // nor agree on publications.
    on(ANYWHERE).counts().ordered().by(Direct, "each rank folds its block in rank order"),
    on(SHARED).counts().of(&[AllGather, ReduceScatter]).by(OneShot, "everybody reads what it needs"),
    on(ANYWHERE).counts().of(&[AllGather]).up_to(64 * KIB).by(Direct, "small: one hop"),
    on(ANYWHERE).counts().of(&[AllGather, ReduceScatter]).by(Ring, "large: neighbours only"),
    on(ANYWHERE).counts().by(Direct, "each pair on its own: a long block delays no other"),
];

/// Where one rank of each host can speak for it.
const LED: &[Collective] = &[AllReduce, Broadcast, Reduce, Barrier];
/// Where all ranks of a host can share what crosses its link.
const CARRIED: &[Collective] = &[AllReduce, Broadcast, Reduce, AllGather, ReduceScatter];

/// The first rule that fits.
pub(super) fn choose(question: &Question) -> &'static Rule {
    RULES.iter().find(|rule| rule.fits(question)).expect("the last rules of each kind fit every collective")
}

const fn on(reach: &'static [Reach]) -> Rule {
    let (bytes, ranks) = (usize::MAX, usize::MAX);
    let (algorithm, why) = (Direct, "");
    Rule { reach, counts: false, ordered: false, collectives: &[], bytes, together: false, ranks, algorithm, why }
}

impl Rule {
    const fn counts(self) -> Rule {
        Rule { counts: true, ..self }
    }

    const fn ordered(self) -> Rule {
        Rule { ordered: true, ..self }
    }

    const fn of(self, collectives: &'static [Collective]) -> Rule {
        Rule { collectives, ..self }
    }

    const fn up_to(self, bytes: usize) -> Rule {
        Rule { bytes, ..self }
    }

    const fn together_up_to(self, bytes: usize) -> Rule {
        Rule { bytes, together: true, ..self }
    }

    const fn ranks(self, ranks: usize) -> Rule {
        Rule { ranks, ..self }
    }

    const fn by(self, algorithm: Algorithm, why: &'static str) -> Rule {
        Rule { algorithm, why, ..self }
    }

    fn fits(&self, question: &Question) -> bool {
        let Question { reach, collective, counts, ordered, bytes, ranks } = *question;
        let bytes = if self.together { bytes.saturating_mul(ranks) } else { bytes };
        self.reach.contains(&reach)
            && self.counts == counts
            && self.ordered == ordered
            && (self.collectives.is_empty() || self.collectives.contains(&collective))
            && bytes <= self.bytes
            && ranks <= self.ranks
    }
}

/// A line of the table that `maypole info --tuner` prints, see [`HEADER`].
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reach = match self.reach {
            all if all.len() == 4 => "anywhere",
            [Reach::Memory, Reach::Device] => "memory, devices",
            [Reach::Memory] => "memory",
            [Reach::Device] => "devices",
            [Reach::Hosts] => "hosts",
            _ => "network",
        };
        let kind = match (self.counts, self.ordered) {
            (false, false) => "",
            (false, true) => "in order",
            (true, false) => "by counts",
            (true, true) => "by counts, in order",
        };
        let names: Vec<&str> = self.collectives.iter().map(|collective| collective.name()).collect();
        let names = if names.is_empty() { "any other".to_string() } else { names.join(" ") };
        let bytes = match self.bytes {
            usize::MAX => String::new(),
            bytes if bytes >= MIB => format!("{} MiB", bytes / MIB),
            bytes => format!("{} KiB", bytes / KIB),
        };
        let bytes = if self.together { bytes + " in all" } else { bytes };
        let ranks = if self.ranks == usize::MAX { String::new() } else { self.ranks.to_string() };
        let (algorithm, why) = (self.algorithm.name(), self.why);
        write!(f, "{reach:<16} {kind:<20} {names:<56} {bytes:<14} {ranks:<6} {algorithm:<18} {why}")
    }
}

/// Over the lines of the table.
pub(crate) fn header() -> String {
    let (reach, kind, names) = ("reach", "kind", "collectives");
    let (bytes, ranks, algorithm) = ("block up to", "ranks", "algorithm");
    format!("{reach:<16} {kind:<20} {names:<56} {bytes:<14} {ranks:<6} {algorithm:<18} why")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every question that could be answered differently.
    fn questions() -> impl Iterator<Item = Question> {
        let sizes = RULES.iter().filter(|rule| rule.bytes < usize::MAX).flat_map(|rule| [rule.bytes, rule.bytes + 1]);
        let sizes: Vec<usize> = sizes.chain([0, usize::MAX]).collect();
        ANYWHERE.iter().flat_map(move |&reach| {
            let sizes = sizes.clone();
            Collective::ALL.into_iter().flat_map(move |collective| {
                let sizes = sizes.clone();
                [(false, false), (false, true), (true, false), (true, true)].into_iter().flat_map(
                    move |(counts, ordered)| {
                        let sizes = sizes.clone();
                        (1..7).flat_map(move |ranks| {
                            sizes.clone().into_iter().map(move |bytes| Question {
                                reach,
                                collective,
                                counts,
                                ordered,
                                bytes,
                                ranks,
                            })
                        })
                    },
                )
            })
        })
    }

    #[test]
    fn every_call_is_served_by_an_algorithm_that_can() {
        for question in questions() {
            let Question { collective, reach, ordered, counts, .. } = question;
            if ordered && !collective.reduces() || counts && !collective.has_counts() {
                continue;
            }
            let rule = choose(&question);
            assert!(rule.algorithm.supports(collective), "{question:?}: {rule}");
            assert!(!rule.algorithm.one_sided() || SHARED.contains(&reach), "{question:?}: {rule}");
            assert!(!ordered || rule.algorithm.is_canonical(collective), "{question:?}: {rule}");
        }
    }

    #[test]
    fn every_rule_decides_something() {
        let mut used = vec![false; RULES.len()];
        for question in questions() {
            let chosen = choose(&question);
            let at = RULES.iter().position(|rule| std::ptr::eq(rule, chosen)).expect("it is of the table");
            used[at] = true;
        }
        // Those that name no collective wait for one that has no rule of its own.
        let idle = (0..used.len()).filter(|at| !used[*at] && !RULES[*at].collectives.is_empty());
        let idle: Vec<String> = idle.map(|at| RULES[at].to_string()).collect();
        assert!(idle.is_empty(), "{idle:#?}");
    }
}
