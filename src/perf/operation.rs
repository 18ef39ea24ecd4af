//! What is measured: a collective (with even or uneven blocks, or the ring of send_recv), one reduction operation, and the arithmetic that says how
//! many bytes a row moves and how its bandwidth is counted.
//!
//! Sizes, counts and the two bandwidths follow nccl-tests, so that numbers from both can stand in one table: the size
//! of a row is the larger buffer of the collective in bytes, and the bus bandwidth scales size over time by what an
//! optimal algorithm must move over each rank's link (nccl-tests, doc/PERFORMANCE.md).

use std::str::FromStr;

use maypole_collectives::catalogue::Meaning;

use crate::{Collective, DataType, ReduceOp};

/// What a perf run repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A collective.
    Collective(Collective),
    /// A collective on blocks of uneven counts: `all_gather_v`. See [`Operation::block`].
    Variable(Collective),
    /// Every rank sends to the next rank and receives from the previous one, at the same time.
    SendRecv,
}

impl Operation {
    /// The name on the command line: `all_reduce`, `all_gather_v`, `send_recv`.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::Collective(collective) => collective.name(),
            Operation::Variable(collective) => collective.meaning().name_v,
            Operation::SendRecv => "send_recv",
        }
    }

    /// The collective, with even blocks or not.
    pub const fn collective(self) -> Option<Collective> {
        match self {
            Operation::Collective(c) | Operation::Variable(c) => Some(c),
            Operation::SendRecv => None,
        }
    }

    /// Every operation.
    pub fn all() -> impl Iterator<Item = Operation> {
        let even = Collective::ALL.into_iter().map(Operation::Collective);
        let uneven = Collective::ALL.into_iter().filter(|c| c.has_counts()).map(Operation::Variable);
        even.chain(uneven).chain([Operation::SendRecv])
    }

    /// Whether a row names a root.
    pub fn is_rooted(self) -> bool {
        self.collective().is_some_and(Collective::is_rooted)
    }

    /// Whether a row names a reduction operation.
    pub fn reduces(self) -> bool {
        self.collective().is_some_and(Collective::reduces)
    }

    /// Whether it can be called with `op` on `dtype`.
    pub fn takes(self, op: NamedOp, dtype: DataType) -> bool {
        op.supports(dtype) && self.collective().is_some_and(|c| !(c.is_scan() && op == NamedOp::Avg))
    }

    /// Where block `block` lies, in elements: its start and its count. Even blocks have `count` elements. Uneven ones
    /// have `count` on average and grow in proportion to their number, from none to twice `count`; in all_to_all_v the
    /// number is the sum of the two ranks, so that what two ranks have for each other is equally long (and the form in
    /// place possible). `owner`: in whose buffer it lies.
    pub fn block(self, owner: usize, block: usize, count: usize, ranks: usize) -> (usize, usize) {
        let until = |n: usize| if ranks == 1 { count * n } else { count * n * n.saturating_sub(1) / (ranks - 1) };
        let uneven = |number: usize| until(number + 1) - until(number);
        match self {
            Operation::Variable(Collective::AllToAll) => {
                let number = |other: usize| (owner + other) % ranks;
                ((0..block).map(|other| uneven(number(other))).sum(), uneven(number(block)))
            }
            Operation::Variable(_) => (until(block), uneven(block)),
            _ => (block * count, count),
        }
    }

    /// Whether it is the barrier, which moves no data and has a single row.
    pub const fn is_barrier(self) -> bool {
        matches!(self, Operation::Collective(Collective::Barrier))
    }

    /// Whether an in-place form is measured. send_recv has none: the bytes to send would be overwritten while they
    /// leave.
    pub const fn has_in_place(self) -> bool {
        !matches!(self, Operation::SendRecv | Operation::Collective(Collective::Barrier))
    }

    /// Whether the larger buffer has one block per rank.
    const fn is_split(self) -> bool {
        match self.collective() {
            Some(collective) => {
                let Meaning { input, output, .. } = collective.meaning();
                input.are_for_each() || output.are_for_each()
            }
            None => false,
        }
    }

    /// Elements per block (on average) of a row that was asked to move `size` bytes. Where the larger buffer has one block per rank,
    /// a block is rounded down to a multiple of 16 bytes, as nccl-tests does; so the smallest rows may be empty.
    pub const fn count(self, size: usize, dtype: DataType, ranks: usize) -> usize {
        let elements = size / dtype.size();
        if self.is_barrier() {
            0
        } else if matches!(self, Operation::Variable(_)) {
            elements / ranks
        } else if self.is_split() {
            (elements / ranks) & !(16 / dtype.size() - 1)
        } else {
            elements
        }
    }

    /// Bytes that the row's first column shows for `count` elements per block.
    pub const fn shown_size(self, count: usize, dtype: DataType, ranks: usize) -> usize {
        count * dtype.size() * if self.is_split() { ranks } else { 1 }
    }

    /// Bus bandwidth over algorithm bandwidth.
    pub fn bus_factor(self, ranks: usize) -> f64 {
        let n = ranks as f64;
        match self {
            Operation::Collective(c) if c.reduces() && c.gives_all_the_same() => 2.0 * (n - 1.0) / n,
            _ if self.is_split() => (n - 1.0) / n,
            _ => 1.0,
        }
    }

    /// Algorithm and bus bandwidth in GB/s (10^9 bytes) of `size` shown bytes in `seconds`. Zero bytes have zero
    /// bandwidth.
    pub fn bandwidths(self, size: usize, seconds: f64, ranks: usize) -> (f64, f64) {
        if size == 0 || seconds <= 0.0 {
            return (0.0, 0.0);
        }
        let algorithm = size as f64 / 1e9 / seconds;
        (algorithm, algorithm * self.bus_factor(ranks))
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(name: &str) -> Result<Operation, String> {
        // The binaries' names without `_perf` are accepted too.
        let name = match name {
            "sendrecv" => "send_recv",
            "alltoall" => "all_to_all",
            "alltoallv" => "all_to_all_v",
            name => name,
        };
        Operation::all().find(|operation| operation.name() == name).ok_or_else(|| {
            let names: Vec<_> = Operation::all().map(Operation::name).collect();
            format!("no such collective; expected one of {}", names.join(", "))
        })
    }
}

/// A reduction operation as the command line names it: [`ReduceOp`] less what only a rank knows (the factor of a
/// pre-multiplied sum) and what a command line cannot name (user functions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedOp {
    /// Sum.
    Sum,
    /// Product.
    Prod,
    /// Minimum.
    Min,
    /// Maximum.
    Max,
    /// Average.
    Avg,
    /// Pre-multiplied sum; `mulsum` in nccl-tests.
    PreMulSum,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
}

impl NamedOp {
    /// Every operation, in the order in which `-o all` runs them.
    pub const ALL: [NamedOp; 9] = [
        NamedOp::Sum,
        NamedOp::Prod,
        NamedOp::Min,
        NamedOp::Max,
        NamedOp::Avg,
        NamedOp::PreMulSum,
        NamedOp::And,
        NamedOp::Or,
        NamedOp::Xor,
    ];

    /// The operation as rank `rank` calls it on `dtype`.
    pub fn reduce_op(self, rank: usize, dtype: DataType) -> ReduceOp {
        match self {
            NamedOp::Sum => ReduceOp::Sum,
            NamedOp::Prod => ReduceOp::Prod,
            NamedOp::Min => ReduceOp::Min,
            NamedOp::Max => ReduceOp::Max,
            NamedOp::Avg => ReduceOp::Avg,
            NamedOp::PreMulSum => ReduceOp::PreMulSum(premul_factor(rank, dtype)),
            NamedOp::And => ReduceOp::And,
            NamedOp::Or => ReduceOp::Or,
            NamedOp::Xor => ReduceOp::Xor,
        }
    }

    /// The name in tables and messages.
    pub fn name(self) -> &'static str {
        self.reduce_op(0, DataType::F32).name()
    }

    /// Whether it is defined on `dtype`.
    pub fn supports(self, dtype: DataType) -> bool {
        self.reduce_op(0, dtype).supports(dtype)
    }
}

impl FromStr for NamedOp {
    type Err = String;

    fn from_str(name: &str) -> Result<NamedOp, String> {
        if name == "mulsum" {
            return Ok(NamedOp::PreMulSum);
        }
        NamedOp::ALL.into_iter().find(|op| op.name() == name).ok_or_else(|| {
            "no such operation; expected sum, prod, min, max, avg, mulsum (or premulsum), and, or, xor, or all"
                .to_string()
        })
    }
}

/// The factor of rank `rank` in a pre-multiplied sum. Powers of two on floats, so that multiplying never rounds.
pub fn premul_factor(rank: usize, dtype: DataType) -> f64 {
    if dtype.is_integer() { [1.0, 2.0, 3.0][rank % 3] } else { [0.5, 1.0, 2.0][rank % 3] }
}

/// Read a type by Maypole's name (`f32`) or nccl-tests' (`float`).
pub fn parse_dtype(name: &str) -> Result<DataType, String> {
    let has = |dtype: &DataType| dtype.name() == name || dtype.row().nccl_names.contains(&name);
    DataType::ALL.into_iter().find(has).ok_or_else(|| {
        let names: Vec<_> = DataType::ALL.iter().map(|dtype| dtype.name()).collect();
        let others: Vec<_> = DataType::ALL.iter().flat_map(|dtype| dtype.row().nccl_names).copied().collect();
        let (names, others) = (names.join(" "), others.join(" "));
        format!("no such type; expected one of {names}, all, or nccl-tests' {others}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_REDUCE: Operation = Operation::Collective(Collective::AllReduce);
    const ALL_GATHER: Operation = Operation::Collective(Collective::AllGather);

    #[test]
    fn split_blocks_are_multiples_of_16_bytes() {
        assert_eq!(ALL_REDUCE.count(100, DataType::F32, 4), 25);
        assert_eq!(ALL_REDUCE.shown_size(25, DataType::F32, 4), 100);
        // 1000 bytes over 3 ranks: 83 floats each, of which 80 are whole multiples of 16 bytes.
        assert_eq!(ALL_GATHER.count(1000, DataType::F32, 3), 80);
        assert_eq!(ALL_GATHER.shown_size(80, DataType::F32, 3), 960);
        assert_eq!(ALL_GATHER.count(8, DataType::F32, 1), 0);
        assert_eq!(ALL_GATHER.count(40, DataType::U8, 2), 16);
        assert_eq!(Operation::Collective(Collective::Barrier).count(100, DataType::F32, 4), 0);
    }

    #[test]
    fn uneven_blocks_follow_each_other_and_have_the_count_on_average() {
        for name in ["all_gather_v", "gather_v", "scatter_v", "reduce_scatter_v", "all_to_all_v"] {
            let operation: Operation = name.parse().unwrap();
            for ranks in 1..9 {
                for owner in 0..ranks {
                    let mut next = 0;
                    for block in 0..ranks {
                        let (start, count) = operation.block(owner, block, 100, ranks);
                        assert_eq!(start, next, "{name}");
                        next += count;
                        if operation == Operation::Variable(Collective::AllToAll) {
                            assert_eq!(count, operation.block(block, owner, 100, ranks).1);
                        }
                    }
                    assert_eq!(next, 100 * ranks);
                }
            }
            assert_eq!(operation.block(0, 0, 100, 3).1, 0, "one block is empty");
        }
    }

    #[test]
    fn bus_bandwidth_of_every_operation() {
        let factor = |name: &str, n| name.parse::<Operation>().unwrap().bus_factor(n);
        assert_eq!(factor("all_reduce", 4), 1.5);
        assert_eq!(factor("all_reduce", 1), 0.0);
        for name in ["all_gather", "reduce_scatter", "all_to_all", "alltoall", "gather", "scatter"] {
            assert_eq!(factor(name, 4), 0.75, "{name}");
        }
        for name in ["broadcast", "reduce", "send_recv"] {
            assert_eq!(factor(name, 4), 1.0, "{name}");
        }
        assert_eq!(ALL_REDUCE.bandwidths(4_000_000, 0.001, 2), (4.0, 4.0));
        assert_eq!(ALL_REDUCE.bandwidths(0, 0.001, 2), (0.0, 0.0));
    }

    #[test]
    fn every_name_reads_back() {
        for operation in Operation::all() {
            assert_eq!(operation.name().parse(), Ok(operation));
        }
        for op in NamedOp::ALL {
            assert_eq!(op.name().parse(), Ok(op));
        }
        for dtype in DataType::ALL {
            assert_eq!(parse_dtype(dtype.name()), Ok(dtype));
        }
        assert_eq!(parse_dtype("half"), Ok(DataType::F16));
        assert!(parse_dtype("quad").unwrap_err().contains("bf16"));
        assert!("allreduce".parse::<Operation>().unwrap_err().contains("all_reduce"));
    }
}
