//! What can be wrong with a schedule, said so that its author finds the step.

use crate::schedule::{Buffer, Rank};
use std::fmt;

/// A step of one rank's program in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct At {
    /// The rank.
    pub rank: Rank,
    /// Its lane.
    pub lane: usize,
    /// The step within the lane.
    pub step: usize,
    /// The round, from 0.
    pub round: usize,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}, lane {}, step {} (round {})", self.rank, self.lane, self.step, self.round)
    }
}

/// What a blocked lane waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A message from this rank.
    Message(Rank),
    /// This rank to take the message before, so that there is room for the next.
    Room(Rank),
    /// This rank's publication of this number.
    Publication(Rank, usize),
    /// These ranks to fetch from the own publication before, so that its place is free.
    Fetches(Vec<Rank>),
}

impl Wait {
    /// The ranks that could end the wait.
    pub fn ranks(&self) -> &[Rank] {
        match self {
            Wait::Message(rank) | Wait::Room(rank) | Wait::Publication(rank, _) => std::slice::from_ref(rank),
            Wait::Fetches(ranks) => ranks,
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::Message(rank) => write!(f, "a message from rank {rank}"),
            Wait::Room(rank) => write!(f, "rank {rank} to take its last message"),
            Wait::Publication(rank, nth) => write!(f, "publication {nth} of rank {rank}"),
            Wait::Fetches(ranks) => write!(f, "{} to fetch from its last publication", list("rank", ranks)),
        }
    }
}

/// A lane that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Where it stands.
    pub at: At,
    /// What it waits for.
    pub wait: Wait,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} waits for {}", self.at, self.wait)
    }
}

/// What is wrong with the schedules of a world. The message names the rank, the lane and the step, and what was
/// expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says what the fields are")]
pub enum Fault {
    /// There is nothing to verify.
    #[error("{algorithm} has no schedule for {collective}; {}", list_names(.known))]
    Unsupported { algorithm: &'static str, collective: &'static str, known: Vec<&'static str> },
    /// The world cannot be.
    #[error("no world has {size} ranks and root {root}: the root must be below the size")]
    NoWorld { size: usize, root: Rank },
    /// Ranks disagree on what must be the same on all.
    #[error("rank {rank} says {value} {what}, but rank 0 says {expected}")]
    Disagree { what: &'static str, rank: Rank, value: usize, expected: usize },
    /// A region outside its buffer.
    #[error("{at}: chunks {first}..{end} of the {}, which has {have}", name(*.buffer))]
    OutOfBounds { at: At, buffer: Buffer, first: usize, end: usize, have: usize },
    /// A peer that there is not, or the rank itself.
    #[error("{at}: peer {peer} is not another rank of the {size}")]
    BadPeer { at: At, peer: Rank, size: usize },
    /// A step that writes to the input.
    #[error("{at}: writes to the input, which is the caller's; only outputs in place may overwrite it")]
    WritesInput { at: At },
    /// Regions of one step that do not fit together.
    #[error(
        "{at}: joins {a_len} chunks from piece {a_piece} on with {b_len} from piece {b_piece} on; pieces must match"
    )]
    Uneven { at: At, a_len: usize, a_piece: usize, b_len: usize, b_piece: usize },
    /// Source and destination of one step overlap, but are not the same.
    #[error("{at}: source and destination overlap but are not the same chunks")]
    Overlap { at: At },
    /// A message or publication that the announced bound does not allow.
    #[error("{at}: a message of {chunks} chunks, but message_chunks() promises at most {bound}")]
    TooLong { at: At, chunks: usize, bound: usize },
    /// A fetch from a lane that the other rank does not have.
    #[error("{at}: fetches from lane {} of rank {from}, which has {lanes}", .at.lane)]
    NoSuchLane { at: At, from: Rank, lanes: usize },
    /// Two lanes of one rank use a link in the same direction.
    #[error("lanes {} and {} of rank {rank} both {verb} on the link from rank {from} to rank {to}, channel {channel}; \
             the order between them is not defined", .lanes.0, .lanes.1)]
    SharedLink { rank: Rank, verb: &'static str, lanes: (usize, usize), from: Rank, to: Rank, channel: usize },
    /// Content that nobody has written, or not in this round.
    #[error("{at}: reads chunk {chunk} of the {}, which nothing has written in this round", name(*.buffer))]
    Uninitialised { at: At, buffer: Buffer, chunk: usize },
    /// Input that an output in place has overwritten.
    #[error("{at}: reads chunk {chunk} of the input, but in place the output has overwritten it with {found}")]
    Overwritten { at: At, chunk: usize, found: String },
    /// The same contribution twice.
    #[error("{at}: chunk {chunk} would count the contribution of rank {contributor} twice")]
    Duplicate { at: At, chunk: usize, contributor: Rank },
    /// Contributions that have nothing to do with each other.
    #[error("{at}: chunk {chunk} would combine {a} with {b}")]
    Mixed { at: At, chunk: usize, a: String, b: String },
    /// Sender and receiver see a message differently.
    #[error("{at}: expected {expected} chunks from piece {expected_piece} on from rank {}, \
             but {sender} sent {sent} from piece {sent_piece} on", .sender.rank)]
    Mismatch { at: At, sender: At, expected: usize, expected_piece: usize, sent: usize, sent_piece: usize },
    /// A message of one round received in another.
    #[error("{at}: takes what {sender} sent; rounds must not mix")]
    WrongRound { at: At, sender: At },
    /// More is fetched than was published.
    #[error("{at}: fetches chunks {first}..{end} of a publication, but {publisher} published {have}")]
    FetchesBeyond { at: At, publisher: At, first: usize, end: usize, have: usize },
    /// Each rank fetches once from each publication.
    #[error("{at}: fetches a second time from publication {nth} of rank {from}")]
    FetchedTwice { at: At, from: Rank, nth: usize },
    /// A publication that a rank does not fetch from never returns its credit.
    #[error("{publisher}: {} never fetches from this publication", list("rank", .missing))]
    NeverFetched { publisher: At, missing: Vec<Rank> },
    /// A message that its receiver never takes.
    #[error("{sender}: rank {to} never receives this message")]
    NeverReceived { sender: At, to: Rank },
    /// A message or publication that its maker never makes.
    #[error("{0}, which has finished")]
    NeverComes(Blocked),
    /// Ranks wait for each other.
    #[error("deadlock: {}", chain(.0))]
    Deadlock(Vec<Blocked>),
    /// Lanes touch the same chunk and nothing orders them.
    #[error("{first} and {second} both touch chunk {chunk} of the {}, at least one writes, and nothing orders them",
            name(*.buffer))]
    Race { first: At, second: At, buffer: Buffer, chunk: usize },
    /// What was lent is no longer what was published.
    #[error("{at}: reads chunk {chunk} of the {} that {publisher} lent, but by now it holds {found}", name(*.buffer))]
    LentChanged { at: At, publisher: At, buffer: Buffer, chunk: usize, found: String },
    /// What is lent may be overwritten before it is read.
    #[error("{at}: overwrites chunk {chunk} of the {}, which is lent, and nothing says that {reader} has read it",
            name(*.buffer))]
    LentOverwritten { at: At, reader: At, buffer: Buffer, chunk: usize },
    /// The result is not what the collective promises.
    #[error("rank {rank} ends round {round} with {found} in chunk {chunk} of the output, expected {expected}")]
    Wrong { rank: Rank, round: usize, chunk: usize, found: String, expected: String },
    /// The same contributions, but added in different order: floating-point results would differ.
    #[error("rank {rank} combines chunk {chunk} in another order than rank 0; their bits may differ")]
    Diverges { rank: Rank, chunk: usize },
    /// The right contributions, but not in the order of the ranks, where that was promised.
    #[error("rank {rank} does not combine chunk {chunk} in rank order, but the algorithm is said to keep it")]
    OutOfOrder { rank: Rank, chunk: usize },
    /// The right contributions in the order of the ranks, but not added from the left, where that
    /// was promised.
    #[error("rank {rank} does not combine chunk {chunk} from the left, but the algorithm is said to be canonical")]
    NotCanonical { rank: Rank, chunk: usize },
    /// A barrier that lets somebody through too soon.
    #[error("rank {rank} may leave round {round} before rank {other} has entered it")]
    EarlyExit { rank: Rank, other: Rank, round: usize },
    /// When one rank stops, somebody waits for ever for something else.
    #[error(
        "if a rank stops before {stopped}, then {blocked}, and no chain of waits leads from there to the stopped rank"
    )]
    Stranded { stopped: At, blocked: Blocked },
}

fn name(buffer: Buffer) -> &'static str {
    match buffer {
        Buffer::Input => "input",
        Buffer::Output => "output",
        Buffer::Scratch => "scratch",
    }
}

fn list(what: &str, ranks: &[Rank]) -> String {
    match ranks {
        [one] => format!("{what} {one}"),
        many => format!("{what}s {}", many.iter().map(Rank::to_string).collect::<Vec<_>>().join(", ")),
    }
}

fn list_names(known: &[&str]) -> String {
    format!("algorithms that have: {}", known.join(", "))
}

/// The first few of those who wait, which is where to start looking.
fn chain(blocked: &[Blocked]) -> String {
    let shown: Vec<String> = blocked.iter().take(6).map(Blocked::to_string).collect();
    let more = blocked.len() - shown.len();
    shown.join("; ") + &if more > 0 { format!("; and {more} more") } else { String::new() }
}
