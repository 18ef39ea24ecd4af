//! What must come out: plain loops over what the ranks put in.

use half::bf16;
use maypole::perf::values::Values;
use maypole::{Collective, DataType, ReduceOp};

/// Elements `first..first + count` of rank `rank`'s input.
pub fn input(values: &Values, dtype: DataType, rank: usize, first: usize, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count * dtype.size()];
    values.input(rank, first, &mut bytes);
    bytes
}

fn reduced(values: &Values, dtype: DataType, ranks: usize, first: usize, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count * dtype.size()];
    values.reduced(ranks, first, &mut bytes);
    bytes
}

/// Rank `rank`'s output of a collective on even blocks.
pub fn even(
    collective: Collective,
    values: &Values,
    dtype: DataType,
    (rank, size, root): (usize, usize, usize),
    count: usize,
) -> Vec<u8> {
    let everybodys =
        |block: usize| (0..size).flat_map(move |r| input(values, dtype, r, block * count, count)).collect();
    match collective {
        Collective::AllReduce => reduced(values, dtype, size, 0, count),
        Collective::Reduce if rank == root => reduced(values, dtype, size, 0, count),
        Collective::Scan => reduced(values, dtype, rank + 1, 0, count),
        Collective::ExclusiveScan if rank > 0 => reduced(values, dtype, rank, 0, count),
        Collective::ReduceScatter => reduced(values, dtype, size, rank * count, count),
        Collective::Broadcast => input(values, dtype, root, 0, count),
        Collective::Scatter => input(values, dtype, root, rank * count, count),
        Collective::AllGather => everybodys(0),
        Collective::Gather if rank == root => everybodys(0),
        Collective::AllToAll => everybodys(rank),
        Collective::Reduce | Collective::ExclusiveScan | Collective::Gather | Collective::Barrier => Vec::new(),
    }
}

/// Block `from` of rank `rank`'s output where blocks have counts of their own; `first`: where the block that it is made
/// of starts in the inputs that have one for every rank, were they packed.
pub fn block(
    collective: Collective,
    values: &Values,
    dtype: DataType,
    (size, from): (usize, usize),
    first: usize,
    count: usize,
) -> Vec<u8> {
    match collective {
        Collective::ReduceScatter => reduced(values, dtype, size, first, count),
        Collective::AllGather | Collective::Gather => input(values, dtype, from, 0, count),
        _ => input(values, dtype, from, first, count),
    }
}

/// A float for which the order of additions shows: of very different magnitudes, either sign, zeros and subnormals.
pub fn adversarial(bits: u64) -> f64 {
    let mantissa = 1.0 + (bits >> 12 & 0xffff) as f64 / 65536.0;
    let exponent = match bits & 7 {
        0 => -140,
        1 => 100,
        2 => -30,
        3 => 24,
        _ => (bits >> 3 & 15) as i32 - 8,
    };
    let sign = if bits >> 63 == 0 { 1.0 } else { -1.0 };
    if bits >> 32 & 31 == 0 { sign * 0.0 } else { sign * mantissa * 2f64.powi(exponent) }
}

/// A type in which the canonical order is checked.
pub trait Float: maypole::Element + PartialEq {
    /// One step of the fold, by sum, product, minimum or maximum.
    fn combine(self, other: Self, op: ReduceOp) -> Self;
    /// The bits, with one NaN for all.
    fn bits(self) -> u64;
}

macro_rules! float {
    ($type:ty, $wide:ty, $from:expr, $widen:expr) => {
        impl Float for $type {
            fn combine(self, other: Self, op: ReduceOp) -> Self {
                let (a, b): ($wide, $wide) = ($widen(self), $widen(other));
                // -0 is below +0.
                let below = a < b || a == b && a.is_sign_negative();
                $from(match op {
                    ReduceOp::Sum => a + b,
                    ReduceOp::Prod => a * b,
                    ReduceOp::Min => {
                        if below {
                            a
                        } else {
                            b
                        }
                    }
                    ReduceOp::Max => {
                        if below {
                            b
                        } else {
                            a
                        }
                    }
                    other => unreachable!("{other:?} is not drawn"),
                })
            }
            fn bits(self) -> u64 {
                if $widen(self).is_nan() { u64::MAX } else { self.to_bits() as u64 }
            }
        }
    };
}

float!(f32, f32, |x: f32| x, |x: f32| x);
float!(f64, f64, |x: f64| x, |x: f64| x);
float!(bf16, f32, bf16::from_f32, bf16::to_f32);

/// ((x0 ⊕ x1) ⊕ x2) ⊕ ... over the first `ranks` ranks, for each element.
pub fn fold<T: Float>(inputs: &[Vec<T>], ranks: usize, op: ReduceOp) -> Vec<T> {
    let rest = |i: usize| inputs[1..ranks].iter().map(move |x| x[i]);
    inputs[0].iter().enumerate().map(|(i, first)| rest(i).fold(*first, |a, b| a.combine(b, op))).collect()
}
