//! What comes out: every type and operation, with one to eight sources.

use maypole_collectives::{Element, ReduceOp, reduce};
use maypole_cuda::kernels::{Job, Kernel, MOST_SOURCES, Source};

use crate::operands::{Numbers, OPS, bytes, expected, for_each_type, operand};
use crate::rig::Rig;

/// Whole vectors and a ragged end, whatever the type.
const COUNT: usize = 1013;

/// The job on operands at multiples of 64.
fn check<T: Element>(rig: &Rig, op: ReduceOp, operands: &[Vec<T>], divide: u64) {
    let mut case = rig.case();
    let places: Vec<_> = operands.iter().map(|operand| case.place(bytes(operand), 0)).collect();
    let count = operands[0].len();
    let dst = case.place(&vec![0; count * size_of::<T>()], 0);
    let sources: Vec<_> = places.iter().map(|&place| Source::plain(case.address(place))).collect();
    let job = Job { divide, ..Job::reduce(case.address(dst), &sources, op, count as u64) };
    let expected = expected(op, operands, divide);
    case.expect(Kernel::Reduce(T::DTYPE), &job, &[(dst, bytes(&expected))], || {
        format!("{} of {} operands of {}, divided by {divide}", op.name(), operands.len(), T::DTYPE)
    });
}

#[test]
fn every_operation_with_one_to_eight_sources() {
    fn each<T: Element>(rig: &Rig) {
        let numbers = &mut Numbers(1);
        for op in OPS.into_iter().filter(|op| op.supports(T::DTYPE)) {
            for sources in 1..=MOST_SOURCES {
                let operands: Vec<_> = (0..sources).map(|_| operand::<T>(numbers, COUNT)).collect();
                check(rig, op, &operands, 0);
            }
        }
    }
    let rig = &Rig::new();
    for_each_type!(each, rig);
}

#[test]
fn averages() {
    fn each<T: Element>(rig: &Rig) {
        let numbers = &mut Numbers(2);
        for divide in
            [1, 2, 3, 4, 7, 8, 10, 100, 127, 128, 255, 256, 1000, 65_536, 65_537, u64::from(u32::MAX), 1 << 40]
        {
            for sources in [1, 2, 3, MOST_SOURCES] {
                let operands: Vec<_> = (0..sources).map(|_| operand::<T>(numbers, COUNT)).collect();
                check(rig, ReduceOp::Avg, &operands, divide);
            }
        }
    }
    let rig = &Rig::new();
    for_each_type!(each, rig);
}

#[test]
fn scaling() {
    fn each<T: Element>(rig: &Rig) {
        let numbers = &mut Numbers(3);
        for factor in [0.0, 1.0, -1.0, 0.5, 3.0, 0.1, -1e-3, 1e6, 300.0, f64::NAN, f64::INFINITY, -0.0] {
            for offset in [0, 1, 4] {
                let source = operand::<T>(numbers, COUNT);
                let mut case = rig.case();
                let from = case.place(bytes(&source), 0);
                let dst = case.place(&vec![0; size_of_val(&source[..])], offset);
                let mut scaled = vec![T::default(); COUNT];
                // SAFETY: two vectors of this length.
                unsafe { reduce::scale(T::DTYPE, scaled.as_mut_ptr().cast(), source.as_ptr().cast(), factor, COUNT) };
                let from = Source::plain(case.address(from));
                let job = Job::scale(case.address(dst), from, T::DTYPE, factor, COUNT as u64);
                let what = || format!("{} times {factor}", T::DTYPE);
                case.expect(Kernel::Scale(T::DTYPE), &job, &[(dst, bytes(&scaled))], what);
            }
        }
    }
    let rig = &Rig::new();
    for_each_type!(each, rig);
}
