//! Headers: published, checked, followed to a loan, and refused.

use maypole_collectives::ReduceOp;
use maypole_cuda::kernels::{Gather, HEADER, Header, Job, Kernel, MOST_SOURCES, Source, Target, Trouble};

use crate::operands::{Numbers, bytes, operand};
use crate::rig::{Case, Place, Rig};

const DIGEST: u32 = 0x1234_5678;
const COUNT: usize = 333;

fn header(digest: u32) -> Header {
    Header { digest, ..Header::default() }
}

/// A header with `data` behind it.
fn slot(case: &mut Case, header: Header, data: &[u8]) -> Place {
    let whole = [bytemuck::bytes_of(&header), data].concat();
    case.place(&whole, 0)
}

/// The source whose header begins at `slot`, written by rank `peer`.
fn behind(case: &Case, slot: Place, peer: u32) -> Source {
    Source { header: case.address(slot), peer, ..Source::plain(case.address(slot) + HEADER as u64) }
}

#[test]
fn a_header_is_published_with_data_and_alone() {
    let rig = &Rig::new();
    let data = operand::<u8>(&mut Numbers(9), COUNT);
    let head = Header { digest: DIGEST, allocation: 3, offset: 1 << 33, ..Header::default() };
    for kernel in [Kernel::Copy, Kernel::Reduce(maypole_collectives::DataType::F32)] {
        let mut case = rig.case();
        let place = case.place(&[0; HEADER], 0);
        let job = Job::publish(case.address(place), head);
        case.expect(kernel, &job, &[(place, bytemuck::bytes_of(&head))], || "a header alone".into());
    }
    let mut case = rig.case();
    let source = case.place(&data, 0);
    let to = slot(&mut case, header(0), &vec![0; COUNT]);
    let address = case.address(to);
    let source = Source::plain(case.address(source));
    let job = Job { publish: address, head, ..Job::copy(address + HEADER as u64, source, COUNT as u64) };
    let whole = [bytemuck::bytes_of(&head), &data].concat();
    case.expect(Kernel::Copy, &job, &[(to, &whole)], || "a header and data".into());
}

#[test]
fn data_behind_headers_and_in_loans_is_found() {
    let rig = &Rig::new();
    let numbers = &mut Numbers(10);
    let values: Vec<Vec<i32>> = (0..4).map(|_| operand(numbers, COUNT)).collect();
    let mut case = rig.case();
    // A slot; plain memory; a loan of the second allocation in a peer's table, 40 bytes into it, of whose published
    // region the part from 100 on is wanted.
    let slot = slot(&mut case, header(DIGEST), bytes(&values[0]));
    let plain = case.place(bytes(&values[1]), 4);
    let lent = case.place(&[&[0; 140], bytes(&values[2])].concat(), 0);
    let other = case.place(&[0; 8], 0);
    let bases = [0, case.address(other), case.address(lent)];
    let table = case.place(bytemuck::cast_slice(&bases), 0);
    let lending = Header { digest: DIGEST, allocation: 2, offset: 40, ..Header::default() };
    let lending = case.place(bytemuck::bytes_of(&lending), 0);
    let trouble = case.place(bytemuck::bytes_of(&Trouble::default()), 0);
    let dst = case.place(&vec![0; COUNT * 4], 0);
    let sources = [
        behind(&case, slot, 0),
        Source::plain(case.address(plain)),
        Source { bases: case.address(table), loan: 100, ..behind(&case, lending, 2) },
    ];
    let job = Job {
        digest: DIGEST,
        trouble: case.address(trouble),
        ..Job::reduce(case.address(dst), &sources, ReduceOp::Sum, COUNT as u64)
    };
    let sums: Vec<i32> =
        (0..COUNT).map(|i| values[0][i].wrapping_add(values[1][i]).wrapping_add(values[2][i])).collect();
    let kernel = Kernel::Reduce(maypole_collectives::DataType::I32);
    case.expect(kernel, &job, &[(dst, bytes(&sums))], || "a slot, plain memory and a loan".into());
}

/// What a job on three slots finds, of which one or none has another operation's header.
struct Foreign {
    source: Option<usize>,
    /// What is in the trouble and the poison before.
    earlier: Trouble,
    poison: u32,
}

/// Runs such a job, which publishes, and asserts that it writes no data; returns the trouble and the poison afterwards.
fn run_foreign(foreign: &Foreign) -> (Trouble, u32) {
    let rig = &Rig::new();
    let numbers = &mut Numbers(11);
    let mut case = rig.case();
    let slots: Vec<Place> = (0..3)
        .map(|source| {
            let digest = if foreign.source == Some(source) { DIGEST + 1 } else { DIGEST };
            let data = operand::<f32>(numbers, COUNT);
            let operation = [source as u64, 2, 3, 4];
            slot(&mut case, Header { operation, ..header(digest) }, bytes(&data))
        })
        .collect();
    let trouble = case.place(bytemuck::bytes_of(&foreign.earlier), 0);
    let poison = case.place(&foreign.poison.to_le_bytes(), 0);
    let publish = case.place(&[0xff; HEADER], 0);
    let dst = case.place(&vec![0; COUNT * 4], 0);
    let also = case.place(&vec![0; COUNT * 4], 0);
    let sources: Vec<_> = slots.iter().enumerate().map(|(i, &slot)| behind(&case, slot, 10 + i as u32)).collect();
    let job = Job {
        also: case.address(also),
        publish: case.address(publish),
        head: Header { allocation: 7, ..header(DIGEST) },
        digest: DIGEST,
        trouble: case.address(trouble),
        poison: case.address(poison),
        ..Job::reduce(case.address(dst), &sources, ReduceOp::Sum, COUNT as u64)
    };
    let found = case.run(Kernel::Reduce(maypole_collectives::DataType::F32), &job);
    // What it publishes has a digest that no operation has.
    let mut expected = case.image.clone();
    expected[publish.range()].copy_from_slice(bytemuck::bytes_of(&Header { digest: 0, ..job.head }));
    for place in [trouble, poison] {
        expected[place.range()].copy_from_slice(&found[place.range()]);
    }
    assert!(found == expected, "data was written, or another header than one that says nothing");
    let poison = u32::from_le_bytes(found[poison.range()].try_into().unwrap());
    (bytemuck::pod_read_unaligned(&found[trouble.range()]), poison)
}

#[test]
fn another_operations_header_is_reported_and_stops_the_job() {
    for source in 0..3 {
        let foreign = Foreign { source: Some(source), earlier: Trouble::default(), poison: 0 };
        let (trouble, poison) = run_foreign(&foreign);
        let theirs = Header { operation: [source as u64, 2, 3, 4], ..header(DIGEST + 1) };
        let expected = Trouble { peer: 10 + source as u32 + 1, ours: DIGEST, reserved: [0; 14], theirs };
        assert_eq!((trouble, poison), (expected, 1), "source {source} is foreign");
    }
}

#[test]
fn the_first_trouble_stays() {
    let earlier = Trouble { peer: 42, ours: 5, ..Trouble::default() };
    let foreign = Foreign { source: Some(1), earlier, poison: 0 };
    assert_eq!(run_foreign(&foreign), (earlier, 1));
}

#[test]
fn a_poisoned_rank_writes_nothing_and_reports_nothing() {
    let foreign = Foreign { source: None, earlier: Trouble::default(), poison: 1 };
    assert_eq!(run_foreign(&foreign), (Trouble::default(), 1));
}

/// Eight copies at once, of every kind of source, of other lengths and to other alignments; one moves nothing. `foreign`:
/// the source that has another operation's header. What is there afterwards is what should be.
fn gather(foreign: Option<usize>) {
    let rig = &Rig::new();
    let numbers = &mut Numbers(12);
    let mut case = rig.case();
    let trouble = case.place(bytemuck::bytes_of(&Trouble::default()), 0);
    let poison = case.place(&0u32.to_le_bytes(), 0);
    let lengths = [COUNT, 1, 0, 100_000, 16, 70_001, 4096, 5];
    let values = lengths.map(|bytes| operand::<u8>(numbers, bytes));
    let job = Job { digest: DIGEST, trouble: case.address(trouble), poison: case.address(poison), ..Job::default() };
    let mut gather = Gather::new(job);
    let mut changes = Vec::new();
    for (i, bytes) in values.iter().enumerate() {
        let digest = if foreign == Some(i) { DIGEST + 1 } else { DIGEST };
        let peer = i as u32;
        let source = match i % 3 {
            // A slot, a loan, and plain memory where nothing is foreign.
            0 => {
                let slot = slot(&mut case, header(digest), bytes);
                behind(&case, slot, peer)
            }
            1 => {
                let lent = case.place(&[&[0; 24], &bytes[..]].concat(), i);
                let bases = [0, case.address(lent)];
                let table = case.place(bytemuck::cast_slice(&bases), 0);
                let lending =
                    case.place(bytemuck::bytes_of(&Header { allocation: 1, offset: 20, ..header(digest) }), 0);
                Source { bases: case.address(table), loan: 4, ..behind(&case, lending, peer) }
            }
            _ => {
                let plain = case.place(bytes, i);
                Source::plain(case.address(plain))
            }
        };
        let to = case.place(&vec![0; bytes.len()], 3 * i % 16);
        assert!(!gather.is_full());
        gather.add(source, Target { dst: case.address(to), bytes: bytes.len() as u64 });
        changes.push((to, bytes));
    }
    assert!(gather.is_full() && gather.job.sources as usize == MOST_SOURCES);
    let found = case.run_gather(&gather);
    let mut expected = case.image.clone();
    if foreign.is_none() {
        changes.iter().for_each(|(to, bytes)| expected[to.range()].copy_from_slice(bytes));
    }
    let reported: Trouble = bytemuck::pod_read_unaligned(&found[trouble.range()]);
    assert_eq!(reported.peer, foreign.map_or(0, |source| source as u32 + 1));
    assert_eq!(found[poison.range()], u32::from(foreign.is_some()).to_le_bytes());
    for place in [trouble, poison] {
        expected[place.range()].copy_from_slice(&found[place.range()]);
    }
    let wrong = (0..found.len()).find(|at| found[*at] != expected[*at]);
    assert_eq!(wrong, None, "foreign: {foreign:?}");
}

#[test]
fn copies_to_several_places_are_one_launch() {
    gather(None);
}

#[test]
fn of_several_copies_none_is_made_if_one_is_foreign() {
    [0, 1, 3, 6, 7].map(Some).into_iter().for_each(gather);
}
