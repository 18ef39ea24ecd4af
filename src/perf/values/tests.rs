//! The promise of the generator: whatever the order in which ranks' inputs are reduced, the result is the expected
//! bits. Reduced here by plain arithmetic in the element type, rounding after every step, in several random orders.

use super::*;

/// A decoder apart from the encoder: sign, exponent and mantissa taken literally.
fn decode(dtype: DataType, bits: u64) -> f64 {
    let (exponent_bits, mantissa_bits) = minifloat::format(dtype);
    if dtype == DataType::F64 {
        return f64::from_bits(bits);
    }
    let mantissa = (bits & ((1 << mantissa_bits) - 1)) as f64 / 2f64.powi(mantissa_bits as i32);
    let exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    let bias = (1 << (exponent_bits - 1)) - 1;
    let magnitude = match exponent {
        0 => mantissa * 2f64.powi(1 - bias),
        _ => (1.0 + mantissa) * 2f64.powi(exponent as i32 - bias),
    };
    if bits >> (exponent_bits + mantissa_bits) & 1 == 1 { -magnitude } else { magnitude }
}

/// A float step: computed in f64 (exact for the narrow types' sums and products), then rounded to the type.
fn float_step(dtype: DataType, op: NamedOp, a: u64, b: u64) -> u64 {
    let (x, y) = (decode(dtype, a), decode(dtype, b));
    let z = match op {
        NamedOp::Prod => x * y,
        NamedOp::Min => x.min(y),
        NamedOp::Max => x.max(y),
        _ => x + y,
    };
    minifloat::encode(dtype, z)
}

fn integer_step(op: NamedOp, signed: bool, width: u32, a: u64, b: u64) -> u64 {
    let wide = |x: u64| (x << (64 - width)) as i64 >> (64 - width);
    let z = match op {
        NamedOp::Prod => a.wrapping_mul(b),
        NamedOp::And => a & b,
        NamedOp::Or => a | b,
        NamedOp::Xor => a ^ b,
        NamedOp::Min if signed => wide(a).min(wide(b)) as u64,
        NamedOp::Max if signed => wide(a).max(wide(b)) as u64,
        NamedOp::Min => a.min(b),
        NamedOp::Max => a.max(b),
        _ => a.wrapping_add(b),
    };
    z & (u64::MAX >> (64 - width))
}

fn load(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// Reduce one element of all ranks' inputs in the order given.
fn reduce(dtype: DataType, op: NamedOp, ranks: usize, inputs: &[Vec<u8>], i: usize, order: &[usize]) -> u64 {
    let size = dtype.size();
    let signed = matches!(dtype, DataType::I8 | DataType::I32 | DataType::I64);
    let width = 8 * size as u32;
    let mask = u64::MAX >> (64 - width);
    let value = |rank: usize| {
        let bits = load(&inputs[rank][i * size..][..size]);
        match (op, dtype.is_integer()) {
            (NamedOp::PreMulSum, true) => bits.wrapping_mul(premul_factor(rank, dtype) as u64) & mask,
            (NamedOp::PreMulSum, false) => minifloat::encode(dtype, decode(dtype, bits) * premul_factor(rank, dtype)),
            _ => bits,
        }
    };
    let total = order[1..].iter().fold(value(order[0]), |acc, &rank| match dtype.is_integer() {
        true => integer_step(op, signed, width, acc, value(rank)),
        false => float_step(dtype, op, acc, value(rank)),
    });
    match (op, dtype) {
        (NamedOp::Avg, DataType::F64) => (decode(dtype, total) / ranks as f64).to_bits(),
        (NamedOp::Avg, _) if !dtype.is_integer() => {
            minifloat::encode(dtype, (decode(dtype, total) as f32 / ranks as f32) as f64)
        }
        (NamedOp::Avg, _) if signed => {
            ((((total << (64 - width)) as i64 >> (64 - width)) / ranks as i64) as u64) & mask
        }
        (NamedOp::Avg, _) => total / ranks as u64,
        _ => total,
    }
}

/// Every operation on every type that it supports.
fn combinations() -> impl Iterator<Item = (DataType, NamedOp)> {
    DataType::ALL
        .into_iter()
        .flat_map(|d| NamedOp::ALL.into_iter().filter(move |op| op.supports(d)).map(move |op| (d, op)))
}

#[test]
fn any_order_gives_the_expected_bits() {
    for (dtype, op) in combinations() {
        for ranks in [1, 2, 3, 4, 7, 8, 9, 16, 33, 64, 100] {
            let count = 40;
            let values = Values::new(ranks as u64, dtype, Some(op), ranks);
            let inputs: Vec<Vec<u8>> = (0..ranks)
                .map(|rank| {
                    let mut bytes = vec![0; count * dtype.size()];
                    values.input(rank, 5, &mut bytes);
                    bytes
                })
                .collect();
            // All ranks, and some of the prefixes that scans have.
            for prefix in [1, ranks / 2, ranks - 1, ranks].into_iter().filter(|prefix| *prefix > 0) {
                let mut expected = vec![0; count * dtype.size()];
                values.reduced(prefix, 5, &mut expected);
                for i in 0..count {
                    let want = load(&expected[i * dtype.size()..][..dtype.size()]);
                    let mut order: Vec<usize> = (0..prefix).collect();
                    for shuffle in 0..3 {
                        let got = reduce(dtype, op, ranks, &inputs, i, &order);
                        let name = op.name();
                        assert_eq!(got, want, "{name} on {dtype}, {ranks} ranks, element {i}, order {order:?}");
                        order.sort_by_key(|&rank| mix((rank as u64) << 20 | (shuffle << 10) | i as u64));
                    }
                }
            }
        }
    }
}

#[test]
fn a_dropped_or_repeated_rank_shows() {
    for (dtype, op) in combinations().filter(|(_, op)| !matches!(op, NamedOp::Avg)) {
        let (ranks, count) = (4, 512);
        let values = Values::new(3, dtype, Some(op), ranks);
        let inputs: Vec<Vec<u8>> = (0..ranks)
            .map(|rank| {
                let mut bytes = vec![0; count * dtype.size()];
                values.input(rank, 0, &mut bytes);
                bytes
            })
            .collect();
        let mut expected = vec![0; count * dtype.size()];
        values.reduced(ranks, 0, &mut expected);
        let differs = |order: &[usize]| {
            (0..count).any(|i| {
                reduce(dtype, op, ranks, &inputs, i, order) != load(&expected[i * dtype.size()..][..dtype.size()])
            })
        };
        assert!(differs(&[0, 1, 3]), "{} on {dtype} without rank 2", op.name());
        // Repeating an operand changes nothing in min, max, and, or: that is what idempotent means.
        if !matches!(op, NamedOp::Min | NamedOp::Max | NamedOp::And | NamedOp::Or) {
            assert!(differs(&[0, 1, 2, 2, 3]), "{} on {dtype} with rank 2 twice", op.name());
        }
    }
}

#[test]
fn any_split_gives_the_same_values() {
    for op in [None, Some(NamedOp::Sum), Some(NamedOp::Min)] {
        let values = Values::new(9, DataType::U32, op, 3);
        let mut whole = vec![0; 4 * 3000];
        values.input(1, 0, &mut whole);
        let mut part = vec![0; 4 * 1000];
        values.input(1, 777, &mut part);
        assert_eq!(part, whole[4 * 777..][..4000]);
        values.input(2, 777, &mut part);
        assert_ne!(part, whole[4 * 777..][..4000]);
        if op.is_some() {
            values.reduced(3, 0, &mut whole);
            values.reduced(3, 777, &mut part);
            assert_eq!(part, whole[4 * 777..][..4000]);
        }
    }
}

#[test]
fn the_reduction_kernels_agree() {
    use maypole_collectives::reduce;
    for (dtype, op) in combinations() {
        for ranks in [1, 2, 3, 8, 65] {
            let count = 777;
            let values = Values::new(ranks as u64, dtype, Some(op), ranks);
            let mut total = vec![0u8; count * dtype.size()];
            let mut next = total.clone();
            // From the last rank to the first, so that this order is not the checker's own.
            for rank in (0..ranks).rev() {
                let part = if rank == ranks - 1 { &mut total } else { &mut next };
                values.input(rank, 0, part);
                if op == NamedOp::PreMulSum {
                    let part = part.as_mut_ptr();
                    // SAFETY: `part` has `count` elements, and is its own source.
                    unsafe { reduce::scale(dtype, part, part, premul_factor(rank, dtype), count) };
                }
                if rank < ranks - 1 {
                    let (dst, src) = (total.as_mut_ptr(), next.as_ptr());
                    // SAFETY: both have `count` elements; dst is an operand, and `next` does not overlap it.
                    unsafe { reduce::reduce(op.reduce_op(rank, dtype), dtype, dst, dst, src, count) };
                }
            }
            if op == NamedOp::Avg {
                // SAFETY: `total` has `count` elements.
                unsafe { reduce::divide(dtype, total.as_mut_ptr(), ranks as u64, count) };
            }
            let mut expected = vec![0u8; count * dtype.size()];
            values.reduced(ranks, 0, &mut expected);
            assert!(total == expected, "{} on {dtype}, {ranks} ranks", op.name());
        }
    }
}
