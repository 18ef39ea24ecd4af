//! The checker, on buffers as a correct library would leave them and then with one element spoiled. The correct outcome
//! is written here a second time, in the plainest way: every rank's whole input in memory, blocks copied and added by
//! hand.

use super::*;

const COUNT: usize = 1500;
const RANKS: usize = 3;
const SIZE: usize = 4;

fn operations() -> impl Iterator<Item = Operation> {
    Operation::all()
}

fn row(operation: Operation, rank: usize, root: usize) -> Row {
    let op = operation.reduces().then_some(NamedOp::Sum);
    let count = if operation.is_barrier() { 0 } else { COUNT };
    Row { operation, dtype: DataType::U32, op, root, count, rank, ranks: RANKS }
}

fn buffers() -> Buffers {
    let capacity = RANKS * COUNT * SIZE;
    Buffers { input: Buffer::new(capacity).unwrap(), output: Buffer::new(capacity).unwrap() }
}

/// What `rank` must have in its output, from all ranks' inputs.
fn outcome(operation: Operation, rank: usize, root: usize, inputs: &[Vec<u8>]) -> Vec<u8> {
    // Block `b` of the input of rank `of`, where ranks have one for everybody; else what it has.
    let part = |of: usize, b: usize| {
        let (start, count) = operation.block(of, b, COUNT, RANKS);
        inputs[of][start * SIZE..(start + count) * SIZE].to_vec()
    };
    let own = |of: usize| inputs[of][..operation.block(of, of, COUNT, RANKS).1 * SIZE].to_vec();
    let sum_of = |ranks: usize, b: usize| -> Vec<u8> {
        let words = |of: usize| -> Vec<u32> {
            part(of, b).chunks(4).map(|w| u32::from_ne_bytes(w.try_into().unwrap())).collect()
        };
        let all: Vec<_> = (0..ranks).map(words).collect();
        (0..all[0].len()).flat_map(|i| all.iter().fold(0u32, |acc, w| acc.wrapping_add(w[i])).to_ne_bytes()).collect()
    };
    let sum = |b| sum_of(RANKS, b);
    let at_root = |bytes: Vec<u8>| if rank == root { bytes } else { Vec::new() };
    let Some(collective) = operation.collective() else {
        return own((rank + RANKS - 1) % RANKS);
    };
    match collective {
        Collective::AllReduce => sum(0),
        Collective::Reduce => at_root(sum(0)),
        Collective::Broadcast => part(root, 0),
        Collective::AllGather => (0..RANKS).flat_map(own).collect(),
        Collective::ReduceScatter => sum(rank),
        Collective::AllToAll => (0..RANKS).flat_map(|of| part(of, rank)).collect(),
        Collective::Gather => at_root((0..RANKS).flat_map(own).collect()),
        Collective::Scatter => part(root, rank),
        Collective::Scan => sum_of(rank + 1, 0),
        Collective::ExclusiveScan if rank == 0 => Vec::new(),
        Collective::ExclusiveScan => sum_of(rank, 0),
        Collective::Barrier => Vec::new(),
    }
}

#[test]
fn correct_outcomes_pass_and_every_spoiled_byte_shows() {
    for operation in operations() {
        for rank in 0..RANKS {
            let root = 1;
            let row = row(operation, rank, root);
            let values = Values::new(11, row.dtype, row.op, RANKS);
            let inputs: Vec<Vec<u8>> = (0..RANKS)
                .map(|of| {
                    let mut bytes = vec![0; RANKS * COUNT * SIZE];
                    values.input(of, 0, &mut bytes);
                    bytes
                })
                .collect();
            let output = outcome(operation, rank, root, &inputs);
            for form in [Form::OutOfPlace, Form::InPlace] {
                if form == Form::InPlace && !operation.has_in_place() {
                    continue;
                }
                let mut buffers = buffers();
                row.prepare(form, &values, &mut buffers);
                let wrong_before = row.wrong(form, &values, &buffers);
                let stays = match operation.collective() {
                    Some(Collective::Broadcast | Collective::Scatter) => rank == root,
                    Some(Collective::Scan) => rank == 0,
                    _ => false,
                };
                if output.is_empty() || form == Form::InPlace && stays {
                    assert_eq!(wrong_before, 0, "{operation:?}: nothing to do on rank {rank}");
                } else {
                    assert!(wrong_before > 0, "{operation:?} {form:?}: an untouched output passes on rank {rank}");
                }
                let at = if form == Form::InPlace { row.in_place_ranges().1.start } else { 0 };
                buffers.output.bytes_mut()[at..at + output.len()].copy_from_slice(&output);
                assert_eq!(row.wrong(form, &values, &buffers), 0, "{operation:?} {form:?} rank {rank}");

                for spoiled in [0, 1, output.len() / 2, output.len().saturating_sub(1)] {
                    if spoiled < output.len() {
                        buffers.output.bytes_mut()[at + spoiled] ^= 0x10;
                        assert_eq!(row.wrong(form, &values, &buffers), 1, "{operation:?} {form:?} byte {spoiled}");
                        buffers.output.bytes_mut()[at + spoiled] ^= 0x10;
                    }
                }
                if let Some(byte) = buffers.input.bytes_mut().last_mut() {
                    *byte ^= 1;
                    assert_eq!(row.wrong(form, &values, &buffers), 1, "{operation:?}: a changed input passes");
                }
            }
        }
    }
}

#[test]
fn in_place_offsets_are_nccls() {
    let block = COUNT * SIZE;
    let ranges = |name: &str, rank| row(name.parse().unwrap(), rank, 1).in_place_ranges();
    assert_eq!(ranges("all_reduce", 2), (0..block, 0..block));
    assert_eq!(ranges("all_gather", 2), (2 * block..3 * block, 0..3 * block));
    assert_eq!(ranges("reduce_scatter", 2), (0..3 * block, 2 * block..3 * block));
    assert_eq!(ranges("gather", 1), (block..2 * block, 0..3 * block));
    assert_eq!(ranges("gather", 2), (0..block, 0..0));
    assert_eq!(ranges("scatter", 1), (0..3 * block, block..2 * block));
    assert_eq!(ranges("scatter", 2), (0..0, 0..block));
    assert_eq!(ranges("all_to_all", 2), (0..3 * block, 0..3 * block));
    assert_eq!(ranges("reduce", 2), (0..block, 0..0));
}
