//! What goes into the buffers, and what must come out.
//!
//! Every element is a function of (seed, rank, index), so any rank can compute what any other rank put in, and the
//! expected result is a plain loop over the ranks. Inputs are random, and chosen so that every reduction is exact *in
//! any order*, each partial result included; the check can therefore compare bits. How, per operation:
//!
//! * Data that only moves: random bits, NaN patterns included.
//! * Integers: arithmetic wraps, so sum and product take full-range values (odd ones for the product, which would soon
//!   be 0 otherwise); min, max and xor too; and / or take values with so few zeros / ones that the result keeps some of
//!   both. The average needs a sum that does not wrap, so it takes smaller values.
//! * Sum on floats: integers so small that the sum of all magnitudes stays within the mantissa. With more ranks than
//!   even values of ±1 allow (9 for E5M2, which counts to 8), only a window of the ranks contributes to each element,
//!   and which ranks is random per element.
//! * Average on floats: the same sum, then one division, rounded once from the type in which kernels divide (f32 for
//!   narrower types): the one result here that is rounded.
//! * Pre-multiplied sum: the same sum, with inputs divided by factors that are powers of two (integers: a wrapping
//!   product).
//! * Product on floats: ±1/2 and ±2 from a window of ranks, ±1 from the others, and 1.5 times that from one rank, drawn
//!   per element: every partial product is ±2^k or ±1.5 · 2^k within the type's normal range.
//! * Min and max on floats: any finite bits except zeros, since -0 and +0 compare equal.

use super::minifloat;
use super::operation::{NamedOp, premul_factor};
use crate::DataType;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number in `0..bound` from 64 random bits.
#[inline]
fn below(bound: u64, bits: u64) -> u64 {
    ((bits as u128 * bound as u128) >> 64) as u64
}

/// The values of one call.
#[derive(Debug)]
pub struct Values {
    seed: u64,
    ranks: usize,
    dtype: DataType,
    op: Option<NamedOp>,
    rule: Rule,
}

/// How a rank's 64 random bits become its contribution (an `i64`), how two contributions combine, and how they become
/// elements.
#[derive(Debug)]
enum Rule {
    /// Bits that are only moved.
    Bits,
    /// Wrapping integers; `words` random words are combined to make ones (and) or zeros (or) likely.
    Wrapping { words: u32 },
    /// Any finite values, as integers in the same order.
    Extreme,
    /// Numbers up to `amplitude`, from `window` ranks per element, whose sum is exact.
    Sum { amplitude: u64, signed: bool, window: usize, finish: Finish },
    /// Signed powers of two from `window` ranks, ±1 from the others, one of them times 1.5; `table` has the element of
    /// each code from `-offset`.
    Product { window: usize, offset: i64, table: Vec<u64> },
}

/// How the sum of [`Rule::Sum`] becomes an element.
#[derive(Debug)]
enum Finish {
    /// An integer, divided by the divisor and truncated.
    Integer { divisor: i64 },
    /// An f32 or f64, divided in that type.
    Wide { divisor: i64 },
    /// A narrower float, divided and rounded beforehand: the elements of `-limit..=limit`. Inputs are looked up too:
    /// `inputs` has the elements of the halves of `-offset..=offset`.
    Narrow { limit: i64, table: Vec<u64>, offset: i64, inputs: Vec<u64> },
}

impl Values {
    /// The values that `ranks` ranks exchange with `seed`; `op` is `None` where data only moves. The operation must
    /// support the type.
    pub fn new(seed: u64, dtype: DataType, op: Option<NamedOp>, ranks: usize) -> Values {
        assert!(op.is_none_or(|op| op.supports(dtype)), "{op:?} on {dtype}");
        let rule = match op {
            None => Rule::Bits,
            Some(NamedOp::Min | NamedOp::Max) => Rule::Extreme,
            Some(NamedOp::Avg) => sum_rule(dtype, ranks, ranks as i64, false),
            Some(_) if dtype.is_integer() => Rule::Wrapping { words: ranks.next_power_of_two().ilog2().max(1) },
            Some(NamedOp::Prod) => product_rule(dtype),
            Some(op) => sum_rule(dtype, ranks, 1, op == NamedOp::PreMulSum),
        };
        Values { seed, ranks, dtype, op, rule }
    }

    /// Write what rank `rank` puts in, from element `first` of its input; `out` has a whole number of elements.
    pub fn input(&self, rank: usize, first: usize, out: &mut [u8]) {
        match self.dtype.size() {
            1 => self.input_words::<1>(rank, first, out),
            2 => self.input_words::<2>(rank, first, out),
            4 => self.input_words::<4>(rank, first, out),
            _ => self.input_words::<8>(rank, first, out),
        }
    }

    /// Write the reduction of the first `ranks` ranks' inputs (at least one), from element `first` of them; `out` has a
    /// whole number of elements. Fewer than all is what a scan gives; an average is of all.
    pub fn reduced(&self, ranks: usize, first: usize, out: &mut [u8]) {
        match self.dtype.size() {
            1 => self.reduced_words::<1>(ranks, first, out),
            2 => self.reduced_words::<2>(ranks, first, out),
            4 => self.reduced_words::<4>(ranks, first, out),
            _ => self.reduced_words::<8>(ranks, first, out),
        }
    }

    fn input_words<const W: usize>(&self, rank: usize, first: usize, out: &mut [u8]) {
        let mut drawn = [0i64; BATCH];
        let factor = premul_factor(rank, self.dtype);
        let premultiplied = self.op == Some(NamedOp::PreMulSum);
        for (batch, bytes) in out.chunks_mut(BATCH * W).enumerate() {
            let drawn = &mut drawn[..bytes.len() / W];
            self.draw(rank, first + batch * BATCH, drawn);
            match &self.rule {
                Rule::Sum { finish: Finish::Narrow { offset, inputs, .. }, .. } => {
                    // Factors are 1/2, 1 and 2, so this is a whole number of halves.
                    let halves = if premultiplied { (2.0 / factor) as i64 } else { 2 };
                    store::<W>(bytes, drawn, |x| inputs[(x * halves + offset) as usize]);
                }
                Rule::Sum { finish: Finish::Wide { .. }, .. } => {
                    let factor = if premultiplied { factor } else { 1.0 };
                    store::<W>(bytes, drawn, |x| self.wide(x as f64 / factor));
                }
                Rule::Sum { finish: Finish::Integer { .. }, .. } => store::<W>(bytes, drawn, |x| x as u64),
                _ => self.elements::<W>(drawn, bytes),
            }
        }
    }

    fn reduced_words<const W: usize>(&self, ranks: usize, first: usize, out: &mut [u8]) {
        let (mut sum, mut next) = ([0i64; BATCH], [0i64; BATCH]);
        for (batch, bytes) in out.chunks_mut(BATCH * W).enumerate() {
            let len = bytes.len() / W;
            let at = first + batch * BATCH;
            for rank in 0..ranks {
                let drawn = if rank == 0 { &mut sum[..len] } else { &mut next[..len] };
                self.draw(rank, at, drawn);
                if self.op == Some(NamedOp::PreMulSum) && self.dtype.is_integer() {
                    let factor = premul_factor(rank, self.dtype) as i64;
                    drawn.iter_mut().for_each(|x| *x = x.wrapping_mul(factor));
                }
                if rank > 0 {
                    self.combine(&mut sum[..len], &next[..len]);
                }
            }
            self.elements::<W>(&sum[..len], bytes);
        }
    }

    /// Contributions of `rank` from element `first` on.
    fn draw(&self, rank: usize, first: usize, out: &mut [i64]) {
        let key = mix(self.seed ^ mix(rank as u64 + 1));
        let random = |i: usize| mix(key.wrapping_add(((first + i) as u64).wrapping_mul(GOLDEN)));
        // Where this rank stands in element i's own random order of the ranks: the same question on every rank.
        let shared = mix(self.seed);
        let position = |i: usize| {
            let start = below(self.ranks as u64, mix(shared.wrapping_add(((first + i) as u64).wrapping_mul(GOLDEN))));
            (rank + start as usize) % self.ranks
        };
        let elements = out.iter_mut().enumerate();
        match self.rule {
            Rule::Bits => elements.for_each(|(i, x)| *x = random(i) as i64),
            Rule::Wrapping { words } => match self.op {
                Some(NamedOp::Prod) => elements.for_each(|(i, x)| *x = (random(i) | 1) as i64),
                Some(NamedOp::And) => elements.for_each(|(i, x)| *x = !sparse(random(i), words) as i64),
                Some(NamedOp::Or) => elements.for_each(|(i, x)| *x = sparse(random(i), words) as i64),
                _ => elements.for_each(|(i, x)| *x = random(i) as i64),
            },
            Rule::Extreme => elements.for_each(|(i, x)| *x = self.ordered(random(i))),
            Rule::Sum { amplitude, signed, window, .. } => elements.for_each(|(i, x)| {
                let bits = random(i);
                *x = if window < self.ranks && position(i) >= window {
                    0
                } else if signed {
                    below(2 * amplitude + 1, bits) as i64 - amplitude as i64
                } else {
                    below(amplitude + 1, bits) as i64
                };
            }),
            Rule::Product { window, .. } => elements.for_each(|(i, x)| {
                let (bits, position) = (random(i), position(i));
                let exponent = if position < window { 1 - (bits & 2) as i64 } else { 0 };
                *x = exponent << 2 | ((position == 0) as i64) << 1 | (bits & 1) as i64;
            }),
        }
    }

    /// `into[i]` = `into[i]` ⊕ `with[i]`, on contributions.
    fn combine(&self, into: &mut [i64], with: &[i64]) {
        let pairs = into.iter_mut().zip(with);
        match (&self.rule, self.op) {
            // Exponents add, the 1.5 stays, signs multiply.
            (Rule::Product { .. }, _) => pairs.for_each(|(a, &b)| {
                *a = ((*a >> 2) + (b >> 2)) << 2 | ((*a | b) & 2) | ((*a ^ b) & 1);
            }),
            (_, Some(NamedOp::Prod)) => pairs.for_each(|(a, &b)| *a = a.wrapping_mul(b)),
            (_, Some(NamedOp::Min)) => pairs.for_each(|(a, &b)| *a = b.min(*a)),
            (_, Some(NamedOp::Max)) => pairs.for_each(|(a, &b)| *a = b.max(*a)),
            (_, Some(NamedOp::And)) => pairs.for_each(|(a, &b)| *a &= b),
            (_, Some(NamedOp::Or)) => pairs.for_each(|(a, &b)| *a |= b),
            (_, Some(NamedOp::Xor)) => pairs.for_each(|(a, &b)| *a ^= b),
            (_, Some(NamedOp::Sum | NamedOp::Avg | NamedOp::PreMulSum)) => {
                pairs.for_each(|(a, &b)| *a = a.wrapping_add(b));
            }
            (_, None) => unreachable!("data that only moves is not combined"),
        }
    }

    /// Write the elements that contributions, or combinations of them, stand for.
    fn elements<const W: usize>(&self, from: &[i64], out: &mut [u8]) {
        match &self.rule {
            Rule::Bits | Rule::Wrapping { .. } => store::<W>(out, from, |x| x as u64),
            Rule::Extreme => store::<W>(out, from, |x| self.unordered(x)),
            Rule::Product { offset, table, .. } => store::<W>(out, from, |x| table[(x + offset) as usize]),
            Rule::Sum { finish: Finish::Narrow { limit, table, .. }, .. } => {
                store::<W>(out, from, |x| table[(x + limit) as usize]);
            }
            Rule::Sum { finish: Finish::Integer { divisor }, .. } => store::<W>(out, from, |x| (x / divisor) as u64),
            Rule::Sum { finish: Finish::Wide { divisor }, .. } if self.dtype == DataType::F32 => {
                let divisor = *divisor as f32;
                store::<W>(out, from, |x| (x as f32 / divisor).to_bits() as u64);
            }
            Rule::Sum { finish: Finish::Wide { divisor }, .. } => {
                let divisor = *divisor as f64;
                store::<W>(out, from, |x| (x as f64 / divisor).to_bits());
            }
        }
    }

    /// The bits of an f32 or f64.
    #[inline]
    fn wide(&self, value: f64) -> u64 {
        if self.dtype == DataType::F32 { (value as f32).to_bits() as u64 } else { value.to_bits() }
    }

    /// Any finite value but a float's zeros, as an integer that compares as the value does.
    #[inline]
    fn ordered(&self, bits: u64) -> i64 {
        let shift = 64 - 8 * self.dtype.size();
        match self.dtype {
            DataType::I8 | DataType::I32 | DataType::I64 => bits as i64 >> shift,
            // The top bit is flipped so that an unsigned order becomes a signed one.
            DataType::U64 => (bits ^ 1 << 63) as i64,
            DataType::U8 | DataType::U32 => (bits >> shift) as i64,
            _ => {
                let magnitude = 1 + below(minifloat::largest_finite(self.dtype), bits) as i64;
                if bits & 1 == 1 { -magnitude } else { magnitude }
            }
        }
    }

    /// The bits of [`Values::ordered`]'s integer.
    #[inline]
    fn unordered(&self, x: i64) -> u64 {
        match self.dtype {
            DataType::U64 => x as u64 ^ 1 << 63,
            dtype if dtype.is_integer() => x as u64,
            dtype => ((x < 0) as u64) << (8 * dtype.size() - 1) | x.unsigned_abs(),
        }
    }
}

/// Elements drawn at a time.
const BATCH: usize = 512;

/// Each of `from` as an element of `W` bytes, in the machine's order; higher bits are dropped.
#[inline]
fn store<const W: usize>(out: &mut [u8], from: &[i64], bits: impl Fn(i64) -> u64) {
    for (element, &x) in out.chunks_exact_mut(W).zip(from) {
        let bits = bits(x);
        match W {
            1 => element[0] = bits as u8,
            2 => element.copy_from_slice(&(bits as u16).to_ne_bytes()),
            4 => element.copy_from_slice(&(bits as u32).to_ne_bytes()),
            _ => element.copy_from_slice(&bits.to_ne_bytes()),
        }
    }
}

/// Bits that are 1 with probability 2^-`words`.
#[inline]
fn sparse(bits: u64, words: u32) -> u64 {
    (1..words as u64).fold(bits, |kept, word| kept & mix(bits.wrapping_add(word.wrapping_mul(GOLDEN))))
}

/// The rule of a sum that is then divided by `divisor`.
fn sum_rule(dtype: DataType, ranks: usize, divisor: i64, premultiplied: bool) -> Rule {
    // The largest sum of magnitudes that every order of adding represents exactly.
    let limit: u64 = match dtype {
        DataType::I8 => i8::MAX as u64,
        DataType::U8 => u8::MAX as u64,
        DataType::I32 => i32::MAX as u64,
        DataType::U32 => u32::MAX as u64,
        DataType::I64 | DataType::U64 => 1 << 62,
        _ => 1 << (minifloat::format(dtype).1 + 1),
    };
    let window = ranks.min(limit as usize);
    let amplitude = limit / window as u64;
    let finish = match dtype {
        _ if dtype.is_integer() => Finish::Integer { divisor },
        DataType::F32 | DataType::F64 => Finish::Wide { divisor },
        _ => {
            let limit = limit as i64;
            let quotient = |sum: i64| minifloat::encode(dtype, (sum as f32 / divisor as f32) as f64);
            // A factor of 1/2 doubles an input.
            let offset = if premultiplied { 4 * limit } else { 2 * limit };
            let input = |halves: i64| minifloat::encode(dtype, halves as f64 / 2.0);
            Finish::Narrow {
                limit,
                table: (-limit..=limit).map(quotient).collect(),
                offset,
                inputs: (-offset..=offset).map(input).collect(),
            }
        }
    };
    let signed = !matches!(dtype, DataType::U8 | DataType::U32 | DataType::U64);
    Rule::Sum { amplitude, signed, window, finish }
}

/// The rule of a floating-point product.
fn product_rule(dtype: DataType) -> Rule {
    // How many factors of 2 or 1/2 stay within the normal range, with the 1.5 and some room.
    let window = match dtype {
        DataType::F8E4M3 => 6,
        DataType::F8E5M2 | DataType::F16 => 12,
        _ => 100,
    };
    let offset = window << 2;
    let element = |code: i64| {
        let mantissa = if code & 2 == 2 { 1.5 } else { 1.0 };
        let sign = if code & 1 == 1 { -1.0 } else { 1.0 };
        minifloat::encode(dtype, sign * mantissa * 2f64.powi((code >> 2) as i32))
    };
    Rule::Product { window: window as usize, offset, table: (-offset..offset + 4).map(element).collect() }
}

#[cfg(test)]
mod tests;
