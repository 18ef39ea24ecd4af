//! The fused path of small all-reduces gives the very bits of the schedule that it replaces, for every type and
//! operation, and with the floats that show any difference: infinities, NaNs with payloads, zeros of both signs,
//! denormals, and sums whose order matters.

mod ranks;

use maypole::config::TransportChoice;
use maypole::{Call, Collective, Communicator, DataType, Operator, ReduceOp, UserOp};
use maypole_collectives::dtype::Kind;
use ranks::config;

/// Bytes from a small generator: all bit patterns of all types.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(bytes).collect()
}

/// Elements on which implementations disagree, as bytes: patterns around every boundary of the format, by the sizes of
/// its parts.
fn adversaries(dtype: DataType) -> Vec<Vec<u8>> {
    let bits = 8 * dtype.size() as u32;
    let mantissa = if let Kind::Float(_, mantissa) = dtype.row().kind { mantissa } else { 0 };
    let all = u64::MAX >> (64 - bits);
    let sign = 1u64 << (bits - 1);
    let infinity = all & !sign & !((1u64 << mantissa) - 1);
    let one = infinity >> 1 & infinity;
    let edges = [
        0,
        sign,
        1,
        2,
        infinity - 1,
        infinity,
        infinity + 1,
        all & !sign,
        one,
        one + 1,
        one - 1,
        all >> 2,
        1 << mantissa,
    ];
    let patterns = edges.iter().flat_map(|e| [*e & all, (*e | sign) & all]);
    patterns.map(|p| p.to_le_bytes()[..dtype.size()].to_vec()).collect()
}

/// Rank `rank`'s input: every adversary against every other at first, then noise.
fn input(dtype: DataType, rank: usize, count: usize) -> Vec<u8> {
    let adversaries = adversaries(dtype);
    let n = adversaries.len();
    let mut bytes = noise(rank as u64 + 1, count * dtype.size());
    for (i, element) in bytes.chunks_exact_mut(dtype.size()).enumerate().filter(|(i, _)| i % 3 != 2) {
        element.copy_from_slice(&adversaries[(i / 3 + rank * (1 + i / (3 * n))) % n]);
    }
    bytes
}

/// An operation that does not commute: only the same order of ranks gives the same result.
struct Digits;

impl Operator for Digits {
    type Element = u8;
    const ID: u32 = 5;
    fn combine(a: u8, b: u8) -> u8 {
        a.wrapping_mul(3).wrapping_add(b)
    }
}

/// The operations that take the path; a pre-multiplied sum does not.
fn operations(dtype: DataType) -> Vec<ReduceOp> {
    use ReduceOp::*;
    let mut all = vec![Sum, Prod, Min, Max, Avg, And, Or, Xor, User(UserOp::of::<Digits>())];
    all.retain(|op| op.supports(dtype));
    all
}

fn compare(size: usize) {
    let fused = Communicator::threads_with(size, config(TransportChoice::Auto)).unwrap();
    let mut one_shot = config(TransportChoice::Auto);
    one_shot.set("MAYPOLE_ALGORITHM", "one_shot").unwrap();
    let schedule = Communicator::threads_with(size, one_shot).unwrap();
    let results: Vec<Vec<Vec<u8>>> = std::thread::scope(|s| {
        let ranks: Vec<_> = fused.into_iter().zip(schedule).map(|(a, b)| s.spawn(move || rank(&a, &b))).collect();
        ranks.into_iter().map(|r| r.join().unwrap()).collect()
    });
    assert!(results.iter().all(|r| *r == results[0]), "all ranks have the same bits");
}

/// One rank's part; its results.
fn rank(fused: &Communicator, schedule: &Communicator) -> Vec<Vec<u8>> {
    let mut results = Vec::new();
    for dtype in DataType::ALL {
        for op in operations(dtype) {
            // From nothing to as much as takes the path: a line has 56 bytes, ten of them are published as lines, and
            // what is longer in a body of 16 KiB, as long as a rank has no more than two of those to read.
            let most = (16 << 10).min((32 << 10) / (fused.size() - 1));
            let (line, lines, body) = (56 / dtype.size(), 560 / dtype.size(), most / dtype.size());
            for count in [0, 1, 2, line, line + 1, lines - 1, lines, lines + 1, 1000, body - 1, body] {
                let input = input(dtype, fused.rank(), count);
                let call = Call { collective: Collective::AllReduce, dtype, count, op, root: 0 };
                let (mut a, mut b, mut c) = (vec![1; input.len()], vec![2; input.len()], input.clone());
                fused.call(call, &input, &mut a).unwrap();
                schedule.call(call, &input, &mut b).unwrap();
                fused.call_in_place(call, &mut c).unwrap();
                let differs = a.iter().zip(&b).position(|(x, y)| x != y);
                assert_eq!(differs, None, "{dtype} {} x {count}, {} ranks: byte", op.name(), fused.size());
                assert_eq!(a, c, "{dtype} {} x {count}: in place", op.name());
                results.push(a);
            }
        }
    }
    results
}

#[test]
fn the_fused_path_gives_the_bits_of_the_schedule() {
    for size in [2, 3, 5] {
        compare(size);
    }
}

#[test]
fn a_fused_barrier_lets_nobody_through_early() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let here = AtomicUsize::new(0);
    ranks::threads(4, &config(TransportChoice::Auto), |comm| {
        for round in 0..200 {
            here.fetch_add(1, Ordering::SeqCst);
            comm.barrier().unwrap();
            let came = here.load(Ordering::SeqCst);
            assert!(came >= 4 * (round + 1), "round {round}: {came} had come");
        }
    });
}
