//! The floats of 8 bits: every pair of codes. Those of 16 bits: every code.

use half::{bf16, f16};
use maypole_collectives::{Element, F8E4M3, F8E5M2, ReduceOp};
use maypole_cuda::kernels::{Job, Kernel, Source};

use crate::operands::{bytes, expected};
use crate::rig::Rig;

fn check<T: Element>(rig: &Rig, op: ReduceOp, operands: &[Vec<T>], divide: u64) {
    let mut case = rig.case();
    let places: Vec<_> = operands.iter().map(|operand| case.place(bytes(operand), 0)).collect();
    let dst = case.place(&vec![0; size_of_val(&operands[0][..])], 0);
    let sources: Vec<_> = places.iter().map(|&place| Source::plain(case.address(place))).collect();
    let job = Job { divide, ..Job::reduce(case.address(dst), &sources, op, operands[0].len() as u64) };
    let expected = expected(op, operands, divide);
    let found = case.run(Kernel::Reduce(T::DTYPE), &job);
    let found: &[T] = bytemuck::cast_slice(&found[dst.range()]);
    for i in 0..expected.len() {
        let of: Vec<_> = operands.iter().map(|operand| operand[i]).collect();
        let (found, expected) = (found[i], expected[i]);
        let what =
            || format!("{} of {of:?} ({}), divided by {divide}: {found} instead of {expected}", op.name(), T::DTYPE);
        assert!(bytes(&[found]) == bytes(&[expected]), "{}", what());
    }
}

/// Every pair of codes, in vectors of 16 with few, or with many, different kinds of numbers.
fn pairs<T: Element>() -> [Vec<T>; 2] {
    let code = |code: usize| *bytemuck::from_bytes::<T>(&[code as u8]);
    // 4097 is odd, so multiples of it reach every number below 65536: neighbours differ in both operands.
    let order = (0..1 << 16).chain((0..1 << 16).map(|i| i * 4097 % (1 << 16)));
    let order: Vec<usize> = order.collect();
    [order.iter().map(|i| code(i >> 8)).collect(), order.iter().map(|i| code(i & 0xff)).collect()]
}

#[test]
fn every_pair_of_8_bit_floats() {
    fn each<T: Element>(rig: &Rig) {
        let [a, b] = pairs::<T>();
        for op in [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max] {
            check(rig, op, &[a.clone(), b.clone()], 0);
            // The way of more than two sources: with a zero that changes no sum, but for the sign of -0; with a one.
            if matches!(op, ReduceOp::Sum | ReduceOp::Prod) {
                let neutral = if matches!(op, ReduceOp::Sum) { -0.0 } else { 1.0 };
                check(rig, op, &[a.clone(), b.clone(), vec![T::from_f64(neutral); a.len()]], 0);
            }
        }
        for divide in [2, 3, 5, 64, 1000, 1024, 1 << 14, 1 << 15] {
            check(rig, ReduceOp::Avg, &[a.clone(), b.clone()], divide);
        }
    }
    let rig = &Rig::new();
    each::<F8E4M3>(rig);
    each::<F8E5M2>(rig);
}

/// By each of the ways in which an average is divided: which one is a matter of the divisor.
#[test]
fn every_8_bit_float_by_every_divisor() {
    fn each<T: Element>(rig: &Rig) {
        let codes: Vec<T> = (0..=u8::MAX).map(|code| *bytemuck::from_bytes(&[code])).collect();
        // In vectors without infinity and NaN as well, which go another way.
        let zeros = vec![T::from_f64(-0.0); codes.len()];
        let near = [65_535, 65_536, 65_537, 65_538, 65_539, 131_071, 131_072, 1 << 20, (1 << 20) + 1];
        for divide in (2..2100).chain((2100..65_536).step_by(37)).chain(near) {
            check(rig, ReduceOp::Avg, std::slice::from_ref(&codes), divide);
            check(rig, ReduceOp::Avg, &[codes.clone(), zeros.clone(), zeros.clone()], divide);
        }
    }
    let rig = &Rig::new();
    each::<F8E4M3>(rig);
    each::<F8E5M2>(rig);
}

#[test]
fn every_8_bit_float_by_every_factor() {
    fn each<T: Element>(rig: &Rig) {
        let codes: Vec<T> = (0..=u8::MAX).map(|code| *bytemuck::from_bytes(&[code])).collect();
        for factor in &codes {
            let mut case = rig.case();
            let source = case.place(bytes(&codes), 0);
            let dst = case.place(&[0; 256], 0);
            let source = Source::plain(case.address(source));
            let job = Job::scale(case.address(dst), source, T::DTYPE, factor.to_f64(), codes.len() as u64);
            let scaled = expected(ReduceOp::Prod, &[codes.clone(), vec![*factor; codes.len()]], 0);
            case.expect(Kernel::Scale(T::DTYPE), &job, &[(dst, bytes(&scaled))], || {
                format!("{} by {factor}", T::DTYPE)
            });
        }
    }
    let rig = &Rig::new();
    each::<F8E4M3>(rig);
    each::<F8E5M2>(rig);
}

#[test]
fn every_16_bit_float() {
    fn each<T: Element>(rig: &Rig) {
        let codes: Vec<T> = (0..=u16::MAX).map(|code| *bytemuck::from_bytes(&code.to_le_bytes())).collect();
        check(rig, ReduceOp::Sum, std::slice::from_ref(&codes), 0);
        for divide in [2, 3, 1000] {
            check(rig, ReduceOp::Avg, std::slice::from_ref(&codes), divide);
        }
        for op in [ReduceOp::Sum, ReduceOp::Prod, ReduceOp::Min, ReduceOp::Max] {
            for other in [0.0, -0.0, 1.0, -1.0, 1.5, 3.1e-5, 65504.0, -1e30, f64::INFINITY, f64::NAN] {
                let other = vec![T::from_f64(other); codes.len()];
                check(rig, op, &[codes.clone(), other.clone()], 0);
                check(rig, op, &[other, codes.clone()], 0);
            }
        }
    }
    let rig = &Rig::new();
    each::<f16>(rig);
    each::<bf16>(rig);
}
