//! Collectives on blocks with counts of their own: every element right whatever the counts, displacements and links;
//! ranks that disagree are told so; arguments that make no sense are refused before anything happens; and a long block
//! holds up nobody whom it does not concern.

mod ranks;

use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::{Blocks, Communicator, Config, Error, ReduceOp, Result, UniqueId, Verdict};
use ranks::{common_verdict, config, threads};

/// A small generator (SplitMix64), so that all ranks draw the same.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize % bound
    }
}

/// Element `i` of what rank `from` has for rank `to`.
fn value(from: usize, to: usize, i: usize) -> i64 {
    (from * 1_000_003 + to * 10_007 + i) as i64
}

/// Counts of `ranks` blocks: all empty, one long and the rest empty, about even, or anything.
fn counts(draws: &mut Draws, ranks: usize) -> Vec<usize> {
    match draws.below(4) {
        0 => vec![0; ranks],
        1 => {
            let long = draws.below(ranks);
            (0..ranks).map(|r| if r == long { 1 + draws.below(200_000) } else { 0 }).collect()
        }
        2 => (0..ranks).map(|_| 100 + draws.below(50)).collect(),
        _ => (0..ranks).map(|_| 1 << draws.below(16)).map(|n: usize| n - 1).collect(),
    }
}

/// The same blocks in another order, with gaps between them; and the length of the buffer.
fn scattered(draws: &mut Draws, counts: &[usize]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, draws.below(i + 1));
    }
    let (mut displacements, mut next) = (vec![0; counts.len()], draws.below(5));
    for block in order {
        displacements[block] = next;
        next += counts[block] + draws.below(4);
    }
    (displacements, next)
}

const GAP: i64 = -77;

/// A buffer of `length` with `fill` of each block at its place and [`GAP`] elsewhere.
fn laid_out(counts: &[usize], at: &[usize], length: usize, fill: impl Fn(usize, usize) -> i64) -> Vec<i64> {
    let mut buffer = vec![GAP; length];
    for (block, (count, start)) in counts.iter().zip(at).enumerate() {
        (0..*count).for_each(|i| buffer[start + i] = fill(block, i));
    }
    buffer
}

fn packed(counts: &[usize]) -> (Vec<usize>, usize) {
    let starts = counts.iter().scan(0, |next, count| Some(std::mem::replace(next, *next + count)));
    (starts.collect(), counts.iter().sum())
}

/// Every collective with variable counts, blocks packed and scattered, out of place and in place, every root.
fn every_collective(comm: &Communicator, seed: u64) {
    let (me, size) = (comm.rank(), comm.size());
    let mut draws = Draws(seed);
    let context = |name: &str, counts: &[usize]| format!("{name} on rank {me} of {size}, counts {counts:?}");
    for scatter in [false, true] {
        let mine = counts(&mut draws, size);
        let (at, length) = if scatter { scattered(&mut draws, &mine) } else { packed(&mine) };
        let blocks = if scatter { Blocks::at(&mine, &at) } else { Blocks::packed(&mine) };
        let own: Vec<i64> = (0..mine[me]).map(|i| value(me, 0, i)).collect();

        let all = laid_out(&mine, &at, length, |from, i| value(from, 0, i));
        let mut output = vec![GAP; length];
        comm.all_gather_v(&own, &mut output, blocks).unwrap();
        assert!(output == all, "{}", context("all_gather_v", &mine));
        let mut buffer = laid_out(&mine, &at, length, |from, i| if from == me { value(me, 0, i) } else { 5 });
        comm.all_gather_v_in_place(&mut buffer, blocks).unwrap();
        assert!(buffer == all, "{} in place", context("all_gather_v", &mine));

        let input = laid_out(&mine, &at, length, |to, i| value(me, to, i));
        let sum: Vec<i64> = (0..mine[me]).map(|i| (0..size).map(|from| value(from, me, i)).sum()).collect();
        let mut output = vec![GAP; mine[me]];
        comm.reduce_scatter_v(&input, blocks, &mut output, ReduceOp::Sum).unwrap();
        assert!(output == sum, "{}", context("reduce_scatter_v", &mine));
        let mut buffer = input.clone();
        comm.reduce_scatter_v_in_place(&mut buffer, blocks, ReduceOp::Sum).unwrap();
        assert!(buffer[at[me]..][..mine[me]] == sum, "{} in place", context("reduce_scatter_v", &mine));

        for root in 0..size {
            let (is_root, none) = (me == root, Vec::new());
            let mut output = vec![GAP; if is_root { length } else { 0 }];
            comm.gather_v(&own, &mut output, blocks, root).unwrap();
            assert!(output == if is_root { &all[..] } else { &none }, "{} root {root}", context("gather_v", &mine));
            let mut buffer = if is_root { all.clone() } else { own.clone() };
            comm.gather_v_in_place(&mut buffer, blocks, root).unwrap();
            assert!(buffer == if is_root { &all[..] } else { &own }, "{} in place", context("gather_v", &mine));

            let input = laid_out(&mine, &at, length, |to, i| value(root, to, i));
            let want: Vec<i64> = (0..mine[me]).map(|i| value(root, me, i)).collect();
            let mut output = vec![GAP; mine[me]];
            comm.scatter_v(if is_root { &input } else { &none }, blocks, &mut output, root).unwrap();
            assert!(output == want, "{} root {root}", context("scatter_v", &mine));
            let mut buffer = if is_root { input.clone() } else { vec![GAP; mine[me]] };
            comm.scatter_v_in_place(&mut buffer, blocks, root).unwrap();
            assert!(buffer == if is_root { input } else { want }, "{} in place", context("scatter_v", &mine));
        }

        // What rank s has for rank r: row s of a matrix that every rank draws.
        let matrix: Vec<Vec<usize>> = (0..size).map(|_| counts(&mut draws, size)).collect();
        let (sent, received) = (&matrix[me], matrix.iter().map(|row| row[me]).collect::<Vec<_>>());
        let (send_at, send_length) = if scatter { scattered(&mut draws, sent) } else { packed(sent) };
        let (recv_at, recv_length) = if scatter { scattered(&mut draws, &received) } else { packed(&received) };
        let input = laid_out(sent, &send_at, send_length, |to, i| value(me, to, i));
        let want = laid_out(&received, &recv_at, recv_length, |from, i| value(from, me, i));
        let mut output = vec![GAP; recv_length];
        let (there, back) = match scatter {
            true => (Blocks::at(sent, &send_at), Blocks::at(&received, &recv_at)),
            false => (Blocks::packed(sent), Blocks::packed(&received)),
        };
        comm.all_to_all_v(&input, there, &mut output, back).unwrap();
        assert!(output == want, "{}", context("all_to_all_v", sent));
        // In place both directions of a pair are equally long.
        let symmetric: Vec<usize> = (0..size).map(|other| matrix[me.min(other)][me.max(other)]).collect();
        let (at, length) = if scatter { scattered(&mut draws, &symmetric) } else { packed(&symmetric) };
        let mut buffer = laid_out(&symmetric, &at, length, |to, i| value(me, to, i));
        let want = laid_out(&symmetric, &at, length, |from, i| value(from, me, i));
        let blocks = if scatter { Blocks::at(&symmetric, &at) } else { Blocks::packed(&symmetric) };
        comm.all_to_all_v_in_place(&mut buffer, blocks).unwrap();
        assert!(buffer == want, "{} in place", context("all_to_all_v", &symmetric));
        // Ranks drew unequally often.
        draws = Draws(seed ^ 0x5555);
    }
}

#[test]
fn every_element_is_right_over_shared_memory_and_tcp() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        for size in [1, 2, 3, 5, 8] {
            threads(size, &config(transport), |comm| (0..4).for_each(|seed| every_collective(&comm, seed)));
        }
    }
}

#[test]
fn every_element_is_right_across_hosts_and_with_every_algorithm() {
    for algorithm in ["", "ring", "direct"] {
        for hosts in [&["a", "a", "b"][..], &["a", "b", "a", "b", "b"]] {
            let id = UniqueId::create(&Config::default()).unwrap();
            std::thread::scope(|scope| {
                for (rank, host) in hosts.iter().enumerate() {
                    let mut config = config(TransportChoice::Auto);
                    config.host = Some(host.to_string());
                    config.set("MAYPOLE_ALGORITHM", algorithm).unwrap();
                    scope.spawn(move || {
                        let comm = Communicator::from_id(&id, rank, hosts.len(), config).unwrap();
                        (0..3).for_each(|seed| every_collective(&comm, seed));
                    });
                }
            });
        }
    }
    for algorithm in ["ring", "direct"] {
        let mut config = config(TransportChoice::Auto);
        config.set("MAYPOLE_ALGORITHM", algorithm).unwrap();
        threads(4, &config, |comm| (0..3).for_each(|seed| every_collective(&comm, seed)));
    }
}

/// Ranks that do not fit together: all get the same verdict, which shows both counts.
fn disagree(what: &str, parts: &[&str], call: impl Fn(&Communicator) -> Result<()> + Sync) {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        let errors = threads(3, &config(transport), |comm| match call(&comm) {
            Err(error) => error,
            // It sent only, and finds out at the next operation.
            Ok(()) => comm.barrier().unwrap_err(),
        });
        let verdict = common_verdict(&errors);
        assert!(matches!(verdict, Verdict::Mismatch { .. }), "{what}: {verdict:?}");
        for part in parts {
            assert!(errors[0].to_string().contains(part), "{what}: no {part:?} in: {}", errors[0]);
        }
    }
}

#[test]
fn ranks_that_disagree_about_a_count_are_shown_both() {
    let sum = ReduceOp::Sum;
    disagree("all_to_all_v", &["all_to_all_v", "5 x u8", "4 x u8"], |comm| {
        // Rank 0 has 5 elements for rank 2, which expects 4.
        let (mut sent, mut received) = ([3; 3], [3; 3]);
        match comm.rank() {
            0 => sent[2] = 5,
            2 => received[0] = 4,
            _ => {}
        }
        let input = vec![1u8; sent.iter().sum()];
        let mut output = vec![0u8; received.iter().sum()];
        comm.all_to_all_v(&input, &sent, &mut output, &received)
    });
    disagree("gather_v", &["gather_v", "7 x i32", "0 x i32", "root 1"], |comm| {
        // Rank 2 has 7 elements, of which the root knows nothing.
        let input = vec![1i32; [2, 2, 7][comm.rank()]];
        let mut output = vec![0i32; if comm.rank() == 1 { 4 } else { 0 }];
        comm.gather_v(&input, &mut output, &[2, 2, 0], 1)
    });
    disagree("scatter_v", &["scatter_v", "9 x f64", "8 x f64"], |comm| {
        let input = vec![1f64; if comm.rank() == 0 { 29 } else { 0 }];
        let mut output = vec![0f64; [10, 10, 8][comm.rank()]];
        comm.scatter_v(&input, &[10, 10, 9], &mut output, 0)
    });
    disagree("all_gather_v", &["all_gather_v", "12 x f32 in all", "13 x f32 in all"], |comm| {
        let last = if comm.rank() == 1 { 6 } else { 5 };
        let input = vec![1f32; [3, 4, 5][comm.rank()]];
        let mut output = vec![0f32; 7 + last];
        comm.all_gather_v(&input, &mut output, &[3, 4, last])
    });
    disagree("reduce_scatter_v", &["reduce_scatter_v", "6 x u64 in all", "digest"], |comm| {
        // The same total, cut differently.
        let counts = if comm.rank() == 2 { [1, 3, 2] } else { [1, 2, 3] };
        let mut output = vec![0u64; counts[comm.rank()]];
        comm.reduce_scatter_v(&[1u64; 6], &counts, &mut output, sum)
    });
    disagree("all_gather instead of all_gather_v", &["all_gather_v", "all_gather #"], |comm| {
        let mut output = [0u8; 6];
        match comm.rank() {
            0 => comm.all_gather(&[1, 2], &mut output),
            _ => comm.all_gather_v(&[1, 2], &mut output, &[2, 2, 2]),
        }
    });
}

#[test]
fn blocks_that_make_no_sense_are_refused_and_change_nothing() {
    let refused = |outcome: Result<()>, output: &[u32], parts: &[&str]| {
        let Err(Error::Argument { what, .. }) = outcome else { panic!("not refused: {outcome:?} ({parts:?})") };
        assert!(parts.iter().all(|part| what.contains(part)), "{parts:?} not all in: {what}");
        assert!(output.iter().all(|x| *x == 9), "a refused call touches nothing");
    };
    threads(3, &config(TransportChoice::Auto), |comm| {
        let me = comm.rank();
        let mut out = [9u32; 12];
        let mut gather = |counts: &[usize], at: Option<&[usize]>, length: usize, parts: &[&str]| {
            let blocks = at.map_or(Blocks::packed(counts), |at| Blocks::at(counts, at));
            let own = vec![1u32; counts.get(me).map_or(0, |n| *n % 100)];
            let outcome = comm.all_gather_v(&own, &mut out[..length], blocks);
            refused(outcome, &out, parts);
        };
        gather(&[4, 4, 4], Some(&[0, 3, 8]), 12, &["all_gather_v", "blocks 0 and 1 overlap", "0 to 4", "3 to 7"]);
        gather(&[4, 4, 4], Some(&[8, 0, 6]), 12, &["blocks 2 and 0 overlap"]);
        gather(&[4, 4, 4], Some(&[0, 4, 9]), 12, &["block 2", "9 to 13", "has 12"]);
        gather(&[4, 4, usize::MAX], None, 12, &["block 2", "beyond"]);
        gather(&[4, 4, 2], Some(&[0, 4, usize::MAX]), 12, &["block 2", "beyond"]);
        gather(&[4, 4, 4], Some(&[0, 4]), 12, &["3 counts", "2 displacements"]);
        gather(&[4, 4], None, 8, &["has 3 blocks", "2 counts"]);
        gather(&[4, 4, 3], None, 12, &["add up to 11", "has 12"]);
        refused(comm.all_gather_v(&[1u32; 3], &mut out, &[4, 4, 4]), &out, &["own block", "3 elements", "4 in"]);
        let wrong = comm.all_to_all_v(&[1u32; 6], &[2, 2, 2], &mut out, &[4, 4, 4]);
        refused(wrong, &out, &["all_to_all_v", "own block has 2", "4 in the output"]);
        refused(comm.gather_v(&[1u32; 4], &mut out, &[4, 4, 4], 3), &out, &["gather", "the root is 3"]);
        refused(
            comm.reduce_scatter_v(&out.clone(), &[4, 4, 4], &mut out[..4], ReduceOp::User(user())),
            &out,
            &["made"],
        );
        let call = maypole::Call {
            collective: maypole::Collective::AllReduce,
            dtype: maypole::DataType::U8,
            count: 0,
            op: ReduceOp::Sum,
            root: 0,
        };
        let none = || Blocks::packed(&[]);
        refused(comm.call_v(call, (&[], none()), (&mut [], none())), &out, &["all_reduce", "no form"]);
        // What is only read may overlap: everybody gets the same two elements.
        let input = [3u32, 4];
        let mut got = [0u32; 2];
        let everyone = Blocks::at(&[2, 2, 2], &[0, 0, 0]);
        comm.scatter_v(if me == 0 { &input } else { &[] }, everyone, &mut got, 0).unwrap();
        assert_eq!(got, input);
    });
}

struct Minima;

impl maypole::Operator for Minima {
    type Element = u8;
    const ID: u32 = 3;
    fn combine(a: u8, b: u8) -> u8 {
        a.min(b)
    }
}

fn user() -> maypole::UserOp {
    maypole::UserOp::of::<Minima>()
}

#[test]
fn a_long_block_holds_up_nobody_else() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        const LONG: usize = 32 << 20;
        let ended = threads(3, &config(transport), |comm| {
            // Links are made by a first, short call.
            let row = |me: usize| [0, 1, 2].map(|other| if (me, other) == (0, 1) { LONG } else { 8 });
            let column = |me: usize| [0, 1, 2].map(|other| if (other, me) == (0, 1) { LONG } else { 8 });
            for (sent, received) in [([8; 3], [8; 3]), (row(comm.rank()), column(comm.rank()))] {
                let input = vec![1u8; sent.iter().sum()];
                let mut output = vec![0u8; received.iter().sum()];
                comm.barrier().unwrap();
                comm.all_to_all_v(&input, &sent, &mut output, &received).unwrap();
            }
            Instant::now()
        });
        assert!(ended[2] < ended[1], "rank 2, which moves 32 bytes, waited for the 32 MiB from rank 0 to rank 1");
    }
}

#[test]
fn all_ranks_empty_is_as_good_as_a_call() {
    threads(4, &config(TransportChoice::Tcp), |comm| {
        for _ in 0..100 {
            comm.all_gather_v::<u8>(&[], &mut [], &[0; 4]).unwrap();
            comm.all_to_all_v::<u8>(&[], &[0; 4], &mut [], &[0; 4]).unwrap();
        }
        let before = Instant::now();
        comm.barrier().unwrap();
        assert!(before.elapsed() < Duration::from_secs(20));
    });
}
