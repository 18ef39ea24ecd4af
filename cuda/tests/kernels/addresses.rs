//! Where operands and results lie: any alignment, any length, in place, in two places.

use maypole_collectives::{Element, ReduceOp};
use maypole_cuda::kernels::{Job, Kernel, Source};

use crate::operands::{Numbers, bytes, expected, for_each_type, operand};
use crate::rig::{Place, Rig};

/// Buffers at these offsets from multiples of 64.
struct Offsets {
    dst: usize,
    also: Option<usize>,
    sources: Vec<usize>,
    /// The source that is the destination, if any.
    in_place: Option<usize>,
}

fn check<T: Element>(rig: &Rig, numbers: &mut Numbers, count: usize, offsets: &Offsets) {
    let operands: Vec<_> = offsets.sources.iter().map(|_| operand::<T>(numbers, count)).collect();
    let mut case = rig.case();
    let places: Vec<Place> =
        operands.iter().zip(&offsets.sources).map(|(operand, &offset)| case.place(bytes(operand), offset)).collect();
    let dst = match offsets.in_place {
        Some(source) => places[source],
        None => case.place(&vec![0; count * size_of::<T>()], offsets.dst),
    };
    let also = offsets.also.map(|offset| case.place(&vec![0; count * size_of::<T>()], offset));
    let sources: Vec<_> = places.iter().map(|&place| Source::plain(case.address(place))).collect();
    let also_at = also.map_or(0, |place| case.address(place));
    let job = Job { also: also_at, ..Job::reduce(case.address(dst), &sources, ReduceOp::Sum, count as u64) };
    let expected = expected(ReduceOp::Sum, &operands, 0);
    let mut changes = vec![(dst, bytes(&expected))];
    changes.extend(also.map(|place| (place, bytes(&expected))));
    case.expect(Kernel::Reduce(T::DTYPE), &job, &changes, || {
        let Offsets { dst, also, sources, in_place } = offsets;
        format!("sum of {count} {} to {dst} and {also:?} from {sources:?}, in place: {in_place:?}", T::DTYPE)
    });
}

#[test]
fn every_alignment() {
    fn each<T: Element>(rig: &Rig) {
        let numbers = &mut Numbers(4);
        for dst in 0..16 {
            for a in 0..16 {
                for b in [0, 1, 4, dst, a] {
                    let offsets = Offsets { dst, also: None, sources: vec![a, b], in_place: None };
                    check::<T>(rig, numbers, 61, &offsets);
                }
            }
        }
    }
    let rig = &Rig::new();
    for_each_type!(each, rig);
}

#[test]
fn every_length_up_to_some_vectors() {
    fn each<T: Element>(rig: &Rig) {
        let numbers = &mut Numbers(5);
        for count in 0..70 {
            for offset in [0, 4, 8, 9] {
                check::<T>(
                    rig,
                    numbers,
                    count,
                    &Offsets { dst: offset, also: None, sources: vec![offset; 2 + count % 3], in_place: None },
                );
            }
        }
    }
    let rig = &Rig::new();
    for_each_type!(each, rig);
}

#[test]
fn lengths_around_a_turn_of_all_threads() {
    fn each<T: Element>(rig: &Rig) {
        let numbers = &mut Numbers(6);
        // The emulator runs few threads, a GPU up to 256 per block: both turn more than once in the longest.
        for vectors in [63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 4000] {
            let count = vectors * 16 / size_of::<T>() + vectors % 2;
            for sources in [1, 2, 3, 8] {
                check::<T>(
                    rig,
                    numbers,
                    count,
                    &Offsets { dst: 0, also: None, sources: vec![0; sources], in_place: None },
                );
            }
        }
    }
    let rig = &Rig::new();
    for_each_type!(each, rig);
}

#[test]
fn in_place_and_in_two_places() {
    fn each<T: Element>(rig: &Rig) {
        let numbers = &mut Numbers(7);
        for sources in [1, 2, 3, 5, 8] {
            for in_place in std::iter::once(None).chain((0..sources).map(Some)) {
                for (step, also) in [(0, None), (0, Some(0)), (4, Some(0)), (0, Some(4)), (0, Some(1)), (1, Some(8))] {
                    let sources = (0..sources).map(|source| source * step % 16).collect();
                    check::<T>(rig, numbers, 203, &Offsets { dst: 0, also, sources, in_place });
                }
            }
        }
    }
    let rig = &Rig::new();
    for_each_type!(each, rig);
}

#[test]
fn copies() {
    let rig = &Rig::new();
    let numbers = &mut Numbers(8);
    for count in (0..70).chain([1000, 4096, 10_001, 100_000]) {
        for (dst, from, also) in [(0, 0, None), (3, 3, Some(3)), (0, 5, None), (7, 0, Some(12)), (4, 8, Some(0))] {
            let data = operand::<u8>(numbers, count);
            let mut case = rig.case();
            let source = case.place(&data, from);
            let dst = case.place(&vec![0; count], dst);
            let also = also.map(|offset| case.place(&vec![0; count], offset));
            let also_at = also.map_or(0, |place| case.address(place));
            let source = Source::plain(case.address(source));
            let job = Job { also: also_at, ..Job::copy(case.address(dst), source, count as u64) };
            let mut changes = vec![(dst, &data[..])];
            changes.extend(also.map(|place| (place, &data[..])));
            case.expect(Kernel::Copy, &job, &changes, || format!("{count} bytes from {from} to {dst:?} and {also:?}"));
        }
    }
}
