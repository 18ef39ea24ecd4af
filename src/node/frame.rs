//! What nodes and the hub say to each other on a control connection. [`super::wire`] puts it into bytes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::peer::{Peer, Settings};
use crate::error::{LONGEST_TEXT, Verdict};
use crate::fingerprint::Fingerprint;
use crate::watch::{Record, Stall};

/// The longest frame that the hub takes from a process that has not been admitted to the table: a reason of any length,
/// as it is cut ([`crate::error::cut`]), has room in it.
pub(super) const HELLO_LIMIT: usize = 2 * LONGEST_TEXT;
/// The longest frame that the hub takes from a rank.
pub(super) const RANK_LIMIT: usize = 1 << 20;
/// The longest frame that a node takes: the table of the largest world.
pub(super) const TABLE_LIMIT: usize = 256 << 20;

/// A process introduces itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// World size, as this process was told.
    pub size: usize,
    /// Version of this crate.
    pub version: String,
    /// Equal for all nodes of one process; see [`super::peer::process_id`].
    pub process: u64,
    /// The process; `peer.rank` is the rank it was told.
    pub peer: Peer,
    /// The settings on which all ranks must agree.
    pub settings: Settings,
}

/// Who holds the job together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct HubPlace {
    /// The lowest rank in the hub's process; `None` if the hub runs in a process that is no rank.
    pub rank: Option<usize>,
    /// Its host, for people.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Equal to [`Hello::process`] for nodes of that process.
    pub process: u64,
}

/// From a node to the hub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum ToHub {
    /// The first frame.
    Hello(Hello),
    /// This rank belongs to a communicator of these world ranks.
    Register { context: u64, members: Runs },
    /// This rank has failed in the communicator and does nothing there any more.
    GiveUp { context: u64 },
    /// This rank has left the communicator; these are its latest operations.
    Leave { context: u64, records: Vec<(u64, Record)> },
    /// This rank has something to declare.
    Report { context: u64, verdict: Verdict },
    /// This rank waits in `operation` for the communicator's rank `peer`.
    Inquire { context: u64, operation: Fingerprint, peer: usize },
    /// This rank's deadline has passed. `unheard`: a member to which nothing that this rank sends gets through.
    Stalled { context: u64, stall: Stall, unheard: Option<usize> },
    /// The answer to [`ToNode::Ask`].
    Answer { context: u64, sequence: u64, question: u64, answer: Answer },
    /// Is the hub there? It answers [`ToNode::Here`].
    Ping,
    /// This rank's latest operations, for comparison with the others'.
    Audit { context: u64, records: Vec<(u64, Record)> },
    /// This rank leaves the job in good order.
    Bye,
    /// This rank leaves the job because something went wrong in its process.
    Fallen { how: String },
    /// The process of that rank, on this rank's host, has ended.
    Ended { rank: usize },
    /// In place of [`ToHub::Hello`]: a process that was told to be this rank cannot, and why.
    Unable { rank: usize, size: usize, why: String },
    /// This rank has made its part of the communicator. `apart`: it cannot share memory with the members of its host, as
    /// it was to.
    Made { context: u64, apart: bool },
    /// Who has not made its part of the communicator? The answer is [`ToNode::Unmade`].
    WhoMade { context: u64 },
}

/// What a rank says of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub record: Record,
    /// A member to which nothing that this rank sends gets through, if it waits in that operation.
    pub unheard: Option<usize>,
    /// How long ago bytes of collectives, or of messages if it was asked about one, moved on this rank; `None`: never,
    /// as far as anybody was told.
    pub moved: Option<Duration>,
}

/// From the hub to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum ToNode {
    /// All ranks have come.
    Table { peers: Vec<Peer>, hub: HubPlace },
    /// The job cannot start, and why; or, later, this rank takes part in it no longer.
    Failed { what: String },
    /// The communicator has failed.
    Declare { context: u64, verdict: Verdict },
    /// What did this rank do as operation `sequence`? `question` comes back with the answer. `message`: it is about a
    /// message between two ranks, whose number is not the communicator's.
    Ask { context: u64, sequence: u64, question: u64, message: bool },
    /// The members have been asked, all answer, and whoever waits goes on. `moved`: how long ago bytes of collectives
    /// (`message`: of messages) moved on one of them, if that is less than the deadline. `late`: who has not
    /// come; for the rank that reported, when it is time to warn.
    GoOn { context: u64, message: bool, moved: Option<Duration>, late: Option<Late> },
    /// A member that this rank inquired after has left, or does nothing in the communicator any more.
    Left { context: u64, rank: usize },
    /// The hub has failed and ends: nobody holds the job together any more.
    Fallen { why: String },
    /// The answer to [`ToHub::Ping`].
    Here,
    /// The hub knows that this rank has left and needs its process no longer.
    Farewell,
    /// All members have made their parts of the communicator; `apart`: those that cannot share memory.
    Made { context: u64, apart: Vec<usize> },
    /// These members have not made their parts of the communicator.
    Unmade { context: u64, ranks: Vec<usize> },
    /// An attempt to bring the ranks together has failed, of which this process was told; it comes to the next attempt,
    /// which is about to begin at the same address.
    Again,
}

/// Who is late in which operation: rank, host, and what is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Late {
    pub stall: Stall,
    pub culprits: Vec<(usize, String, String)>,
}

/// A list of ranks as runs `(first, step, length)`: a world, a row or a column of a grid is one run whatever its size.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Runs(Vec<(usize, isize, usize)>);

impl Runs {
    /// Compress a list of ranks, keeping its order.
    pub fn new(ranks: &[usize]) -> Runs {
        let mut runs: Vec<(usize, isize, usize)> = Vec::new();
        for &rank in ranks {
            match runs.last_mut() {
                Some((first, step, length)) if *length == 1 => {
                    *step = rank as isize - *first as isize;
                    *length = 2;
                }
                Some((first, step, length)) if *first as isize + *step * *length as isize == rank as isize => {
                    *length += 1
                }
                _ => runs.push((rank, 0, 1)),
            }
        }
        Runs(runs)
    }

    /// The list again, or `None` if it is not one of distinct ranks below `size`.
    pub fn ranks(&self, size: usize) -> Option<Vec<usize>> {
        let mut seen = vec![false; size];
        let mut ranks = Vec::new();
        for &(first, step, length) in &self.0 {
            for i in 0..length {
                let at = isize::try_from(i).ok().and_then(|i| step.checked_mul(i))?;
                let rank = first.checked_add_signed(at).filter(|r| *r < size)?;
                if std::mem::replace(&mut seen[rank], true) {
                    return None;
                }
                ranks.push(rank);
            }
        }
        Some(ranks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_keep_order_and_stay_short() {
        for ranks in [vec![], vec![5], vec![0, 1, 2, 3], vec![3, 1], vec![0, 4, 8, 12], vec![7, 0, 1, 2, 9, 5]] {
            assert_eq!(Runs::new(&ranks).ranks(16), Some(ranks));
        }
        assert_eq!(Runs::new(&(0..16384).collect::<Vec<_>>()).0.len(), 1);
    }

    #[test]
    fn runs_from_outside_are_checked() {
        assert_eq!(Runs(vec![(0, 1, usize::MAX)]).ranks(4), None);
        assert_eq!(Runs(vec![(3, -1, 5)]).ranks(4), None);
        assert_eq!(Runs(vec![(1, 0, 2)]).ranks(4), None, "the same rank twice");
        assert_eq!(Runs(vec![(usize::MAX, 1, 1)]).ranks(4), None);
    }
}
