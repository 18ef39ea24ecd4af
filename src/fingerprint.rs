//! What an operation is, in 32 bytes: each link's first message of an operation starts with it, so ranks that call
//! different things find out before any data is used.

use bytemuck::{Pod, Zeroable};
use maypole_collectives::catalogue::Counts;
use maypole_collectives::schedule::Collective;
use maypole_collectives::{DataType, Pair, ReduceOp};
use serde::{Deserialize, Serialize};

/// The codes of point-to-point operations, after the collectives'.
const POINT_TO_POINT: u8 = 100;
/// The sender of a message that is expected from any rank, until it has one.
const ANYONE: u32 = u32::MAX;
/// Added to a collective's code where blocks have counts of their own.
const VARIABLE: u8 = 128;
/// Added to the type's code where the buffers are device memory and the call is queued on a stream.
const ON_DEVICE: u8 = 128;
/// Added there, too, where all publications are lent and the call has one round, whatever its length.
const UNCUT: u8 = 64;
/// The count of a collective with variable counts of which every rank knows its own only.
const EACH_ITS_OWN: u64 = u64::MAX;

/// An operation as ranks compare it. All ranks of a collective must have the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable, Serialize, Deserialize)]
#[repr(C)]
pub struct Fingerprint {
    /// The operation's number on its communicator, from 1.
    pub sequence: u64,
    /// Elements per block; of all blocks, or of one message, where blocks have counts of their own.
    pub count: u64,
    /// The root; the receiver of a message; a digest of all ranks' counts where those differ and every rank knows them;
    /// 0 otherwise.
    pub root: u32,
    /// A user-defined operation's id; the sender of a message; 0 otherwise.
    pub user: u32,
    collective: u8,
    dtype: u8,
    op: u8,
    /// Digest of how it is run. Ranks choose it alike from what all of them know; should they not, their messages would
    /// not fit together.
    plan: u8,
    /// Digest of the operation before it on the communicator. Ranks that once disagreed never agree again, so a
    /// disagreement that the operation itself did not bring to light (two roots of a broadcast that both only sent)
    /// shows in the next one. A message between two ranks has its tag here.
    past: u32,
}

impl Fingerprint {
    /// The fingerprint of a collective.
    pub fn collective(
        sequence: u64,
        collective: Collective,
        dtype: DataType,
        op: Option<ReduceOp>,
        root: usize,
        count: usize,
    ) -> Fingerprint {
        let code = Collective::ALL.iter().position(|c| *c == collective).expect("listed") as u8;
        let (code_of_op, user) = op.map_or((0, 0), op_code);
        Fingerprint {
            sequence,
            count: count as u64,
            root: root as u32,
            user,
            collective: code,
            dtype: dtype as u8,
            op: code_of_op,
            plan: op.map_or(0, how_it_combines),
            past: 0,
        }
    }

    /// The fingerprint of a collective whose blocks have counts of their own. `counts`: those of all ranks, where every
    /// rank knows them; otherwise each message is announced with its own, see [`Fingerprint::of_pair`].
    pub fn variable(
        sequence: u64,
        collective: Collective,
        dtype: DataType,
        op: Option<ReduceOp>,
        root: usize,
        counts: Option<impl Iterator<Item = usize>>,
    ) -> Fingerprint {
        let mut operation = Fingerprint::collective(sequence, collective, dtype, op, root, 0);
        operation.collective += VARIABLE;
        match counts {
            None => operation.count = EACH_ITS_OWN,
            Some(counts) => {
                let (total, digest) = counts.fold((0, SEED), |(sum, h), n| (sum + n as u64, stir(h, n as u64)));
                operation.count = total;
                operation.root = digest as u32;
            }
        }
        operation
    }

    /// The same, for a message of `count` elements within it, of which only its two ends know.
    pub fn of_pair(self, count: usize) -> Fingerprint {
        Fingerprint { count: count as u64, ..self }
    }

    /// Whether blocks have counts of their own.
    pub fn is_variable(&self) -> bool {
        self.collective & VARIABLE != 0
    }

    fn kind(&self) -> Option<&'static Collective> {
        const ALL: &[Collective] = &Collective::ALL;
        ALL.get((self.collective & !VARIABLE) as usize)
    }

    /// The fingerprint of a message with a tag from one rank to another; `sequence` counts the messages between those
    /// two in that direction.
    pub fn point_to_point(
        sequence: u64,
        dtype: DataType,
        count: usize,
        (from, to): (usize, usize),
        tag: u32,
    ) -> Fingerprint {
        Fingerprint {
            sequence,
            count: count as u64,
            root: to as u32,
            user: from as u32,
            collective: POINT_TO_POINT,
            dtype: dtype as u8,
            op: 0,
            plan: 0,
            past: tag,
        }
    }

    /// The fingerprint of a message that rank `to` expects from any rank; `sequence` counts those.
    pub fn from_anyone(sequence: u64, dtype: DataType, count: usize, to: usize, tag: u32) -> Fingerprint {
        Fingerprint { user: ANYONE, ..Fingerprint::point_to_point(sequence, dtype, count, (0, to), tag) }
    }

    /// The same, as the message number `sequence` of rank `from`, which has sent it.
    pub fn from_rank(self, from: usize, sequence: u64) -> Fingerprint {
        Fingerprint { user: from as u32, sequence, ..self }
    }

    /// The same, as called after an operation whose [`Fingerprint::digest`] was `past` (0: as the first).
    pub fn after(self, past: u32) -> Fingerprint {
        Fingerprint { past, ..self }
    }

    /// The same, as run in the way that `plan` stands for (0: by the fused path).
    pub fn run_as(self, plan: u8) -> Fingerprint {
        Fingerprint { plan: self.plan ^ plan, ..self }
    }

    /// The same, on device buffers.
    pub fn on_device(self) -> Fingerprint {
        Fingerprint { dtype: self.dtype | ON_DEVICE, ..self }
    }

    /// Whether the buffers are device memory.
    pub fn is_on_device(&self) -> bool {
        self.dtype & ON_DEVICE != 0
    }

    /// The same, in one round if `uncut`.
    pub fn in_one_round(self, uncut: bool) -> Fingerprint {
        Fingerprint { dtype: self.dtype | if uncut { UNCUT } else { 0 }, ..self }
    }

    /// Whether both are the same call, run in the same way, whatever was called before.
    pub fn same_call(&self, other: &Fingerprint) -> bool {
        self.after(0) == other.after(0)
    }

    /// Whether both are the same message, however many their ranks have exchanged before.
    pub fn same_message(&self, other: &Fingerprint) -> bool {
        Fingerprint { sequence: 0, ..*self } == Fingerprint { sequence: 0, ..*other }
    }

    /// The rank at the other side of a message, seen from `rank`, if it is one that `rank` sends or
    /// receives. `None` also where any rank may be.
    pub fn other_side(&self, rank: usize) -> Option<usize> {
        let (to, from) = (self.root as usize, self.user as usize);
        match self.is_point_to_point() {
            true if self.user == ANYONE => None,
            true if rank == to => Some(from),
            true if rank == from => Some(to),
            _ => None,
        }
    }

    /// Whether this is a message between two ranks, whose `sequence` is not the communicator's.
    pub fn is_point_to_point(&self) -> bool {
        self.collective == POINT_TO_POINT
    }

    /// The rank that receives a message between two ranks.
    pub fn receiver(&self) -> Option<usize> {
        self.is_point_to_point().then_some(self.root as usize)
    }

    /// The tag of a message between two ranks.
    pub fn tag(&self) -> u32 {
        if self.is_point_to_point() { self.past } else { 0 }
    }

    /// Type of the elements; `None` if it came from a rank that has other types.
    pub fn dtype(&self) -> Option<DataType> {
        DataType::ALL.get((self.dtype & !ON_DEVICE & !UNCUT) as usize).copied()
    }

    /// A 32-bit digest, never 0, for flags that have no room for the whole.
    pub fn digest(&self) -> u32 {
        let words = bytemuck::bytes_of(self).chunks_exact(8);
        let h = words.fold(SEED, |h, word| stir(h, u64::from_le_bytes(word.try_into().expect("8 bytes"))));
        (h as u32).max(1)
    }
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// One step of a digest.
fn stir(h: u64, word: u64) -> u64 {
    let h = (h ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ (h >> 32)
}

/// Whether each rank passes the counts of all, in the form with variable counts.
pub(crate) fn knows_all_counts(collective: Collective) -> bool {
    collective.meaning().counts == Counts::KnownToAll
}

/// Code and user id of an operation; 0 is "none".
fn op_code(op: ReduceOp) -> (u8, u32) {
    match op {
        ReduceOp::Sum => (1, 0),
        ReduceOp::Prod => (2, 0),
        ReduceOp::Min => (3, 0),
        ReduceOp::Max => (4, 0),
        ReduceOp::Avg => (5, 0),
        ReduceOp::PreMulSum(_) => (6, 0),
        ReduceOp::And => (7, 0),
        ReduceOp::Or => (8, 0),
        ReduceOp::Xor => (9, 0),
        ReduceOp::User(op) => (10, op.id()),
        ReduceOp::MinLoc(pair) => (11, pair as u32),
        ReduceOp::MaxLoc(pair) => (12, pair as u32),
    }
}

/// Digest of how a user's operation says that it must be run: 0 for whole elements in any order.
fn how_it_combines(op: ReduceOp) -> u8 {
    match op {
        ReduceOp::User(op) => {
            let [low, high] = (op.width() as u16 - 1).to_le_bytes();
            low ^ high.rotate_left(4) ^ if op.commutes() { 0 } else { 0x80 }
        }
        _ => 0,
    }
}

const OP_NAMES: [&str; 13] =
    ["", "sum", "prod", "min", "max", "avg", "premulsum", "and", "or", "xor", "user", "minloc", "maxloc"];

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let collective = if self.is_point_to_point() { None } else { self.kind() };
        let name = match collective {
            Some(c) => c.name(),
            None if self.is_point_to_point() => "send/recv",
            None => "unknown",
        };
        let (variable, device) =
            (["", "_v"][self.is_variable() as usize], ["", " on device"][self.is_on_device() as usize]);
        let rounds = ["", " in one round"][(self.dtype & UNCUT != 0) as usize];
        write!(f, "{name}{variable}{device}{rounds} #{}", self.sequence)?;
        if collective == Some(&Collective::Barrier) {
            return Ok(());
        }
        let dtype = self.dtype().map_or("?", |d| d.name());
        let shared_counts = self.is_variable() && collective.is_some_and(|c| knows_all_counts(*c));
        match self.is_variable() {
            false => write!(f, " ({} x {dtype}", self.count)?,
            true if shared_counts => write!(f, " ({} x {dtype} in all, counts' digest {:08x}", self.count, self.root)?,
            true if self.count == EACH_ITS_OWN => write!(f, " ({dtype}")?,
            true => write!(f, " ({} x {dtype} between the two", self.count)?,
        }
        if self.op != 0 {
            write!(f, ", {}", OP_NAMES.get(self.op as usize).unwrap_or(&"?"))?;
        }
        match (self.op, Pair::ALL.get(self.user as usize)) {
            (10, _) => write!(f, " id {}", self.user)?,
            (11 | 12, Some(pair)) => write!(f, " of {pair}")?,
            _ => {}
        }
        if collective.is_some_and(|c| c.is_rooted()) {
            write!(f, ", root {}", self.root)?;
        }
        if self.is_point_to_point() {
            match self.user {
                ANYONE => write!(f, ", from any rank to rank {}", self.root)?,
                from => write!(f, ", from rank {from} to rank {}", self.root)?,
            }
            if self.tag() != 0 {
                write!(f, ", tag {}", self.tag())?;
            }
        }
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_the_same_only_if_it_is_run_in_the_same_way() {
        let call = Fingerprint::collective(3, Collective::AllReduce, DataType::F32, Some(ReduceOp::Sum), 0, 9);
        assert!(call.same_call(&call.after(77)) && call != call.after(77));
        assert!(!call.same_call(&call.run_as(1)));
        assert_ne!(call.digest(), call.after(77).digest());
        assert_eq!(call.other_side(0), None);
        let queued = call.on_device();
        assert!(!call.same_call(&queued) && queued.dtype() == Some(DataType::F32));
        assert_eq!(queued.to_string(), "all_reduce on device #3 (9 x f32, sum)");
        let uncut = queued.in_one_round(true);
        assert!(!uncut.same_call(&queued) && uncut.dtype() == Some(DataType::F32) && uncut.is_on_device());
        assert_eq!(uncut.to_string(), "all_reduce on device in one round #3 (9 x f32, sum)");
        let message = Fingerprint::point_to_point(1, DataType::F32, 9, (4, 6), 0);
        assert_eq!([4, 6, 5].map(|rank| message.other_side(rank)), [Some(6), Some(4), None]);
        assert_eq!(message.to_string(), "send/recv #1 (9 x f32, from rank 4 to rank 6)");
        let tagged = Fingerprint::point_to_point(1, DataType::F32, 9, (4, 6), 70);
        assert!(tagged.to_string().ends_with("rank 6, tag 70)") && tagged.dtype() == Some(DataType::F32));
        let any = Fingerprint::from_anyone(3, DataType::F32, 9, 6, 0);
        assert_eq!(any.to_string(), "send/recv #3 (9 x f32, from any rank to rank 6)");
        assert_eq!((any.other_side(6), any.receiver()), (None, Some(6)));
        assert_eq!(any.from_rank(4, 1), message);
    }
}
