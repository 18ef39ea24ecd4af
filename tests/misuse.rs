//! Misuse gets an error that shows both sides: what one rank gets wrong by itself, and what ranks do that do not fit
//! together. Never wrong data, never a hang, and no more harm than needed: what all ranks get wrong alike leaves the
//! communicator usable.

mod ranks;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use maypole::{Call, Collective, Communicator, Config, DataType, Error, Operator, ReduceOp, Result, UserOp, Verdict};
use ranks::{PATIENCE, common_verdict, paths, threads, verdict};

/// What the refusal of a call must say, and that it changed nothing.
fn refused<T: PartialEq + std::fmt::Debug + Copy>(
    comm: &Communicator,
    output: &mut [T],
    parts: &[&str],
    call: impl FnOnce(&mut [T]) -> Result<()>,
) {
    let before = output.to_vec();
    match call(output) {
        Err(Error::Argument { rank, what }) => {
            assert_eq!(rank, comm.rank());
            for part in parts {
                assert!(what.contains(part), "no {part:?} in: {what}");
            }
        }
        other => panic!("rank {} should have been refused ({parts:?}), but got {other:?}", comm.rank()),
    }
    assert_eq!(output, before, "a refused call touches nothing");
}

struct Products;

impl Operator for Products {
    type Element = u8;
    const ID: u32 = 1;
    fn combine(a: u8, b: u8) -> u8 {
        a.wrapping_mul(b)
    }
}

/// Every mistake that a rank can make by itself.
fn every_mistake(comm: &Communicator) {
    let sum = ReduceOp::Sum;
    let (me, size) = (comm.rank(), comm.size());
    let (four, three) = (&[1.0f32; 4][..], &mut [7.0f32; 3][..]);
    refused(comm, three, &["all_reduce", "output has 12 bytes", "16 bytes"], |o| comm.all_reduce(four, o, sum));
    refused(comm, three, &["bitwise", "f32", "integer"], |o| comm.all_reduce_in_place(o, ReduceOp::Xor));
    let products = ReduceOp::User(UserOp::of::<Products>());
    refused(comm, three, &["user", "f32", "made for u8"], |o| comm.all_reduce_in_place(o, products));
    refused(comm, three, &["broadcast", "the root is 3", "0 to 2"], |o| comm.broadcast(o, size));
    let root = usize::MAX;
    refused(comm, three, &["scatter", "the root is", "0 to 2"], |o| comm.scatter(&[], o, root));
    refused(comm, three, &["gather", "the root is 9"], |o| comm.gather(four, o, 9));
    refused(comm, three, &["reduce", "the root is 4"], |o| comm.reduce(&[1.0; 3], o, sum, 4));
    refused(comm, three, &["all_gather", "output", "12 bytes", "48 bytes"], |o| comm.all_gather(four, o));
    refused(comm, &mut [7i64; 4], &["all_gather", "buffer", "32 bytes", "24 bytes"], |o| comm.all_gather_in_place(o));
    refused(comm, three, &["reduce_scatter", "input has 16 bytes", "36 bytes"], |o| comm.reduce_scatter(four, o, sum));
    refused(comm, &mut [7u8; 5], &["reduce_scatter", "5 bytes", "3 bytes"], |o| comm.reduce_scatter_in_place(o, sum));
    refused(comm, &mut [seven(); 4], &["all_to_all", "buffer has 8 bytes", "6 bytes"], |o| comm.all_to_all_in_place(o));
    refused(comm, three, &["all_to_all", "input has 16 bytes", "12 bytes"], |o| comm.all_to_all(four, o));
    // On rank 0 the input is missing, on the others there is one too many.
    let input = if me == 0 { &[][..] } else { four };
    refused(comm, three, &["scatter", "input"], |o| comm.scatter(input, o, 0));
    refused(comm, three, &["broadcast", "input"], |o| comm.broadcast_from(input, o, 0));
    // On rank 0 the output is too short, on the others there is one too many.
    refused(comm, three, &["gather", "output has 12 bytes"], |o| comm.gather(four, o, 0));
    let call = |collective, count| Call { collective, dtype: DataType::F64, count, op: sum, root: 0 };
    for count in [usize::MAX, usize::MAX / 8, usize::MAX / 16, 1 << 60] {
        refused(comm, &mut [7u8; 5], &["input has 0 bytes"], |o| comm.call(call(Collective::AllReduce, count), &[], o));
        refused(comm, &mut [7u8; 5], &["5 bytes"], |o| comm.call_in_place(call(Collective::AllToAll, count), o));
    }
    refused(comm, &mut [7u8; 9], &["buffer has 9 bytes", "8 bytes"], |o| {
        comm.call_in_place(call(Collective::AllReduce, 1), o)
    });
    refused(comm, three, &["recv", "the peer is 3", "0 to 2"], |o| comm.recv(o, size));
    refused(comm, three, &["send", "the peer is 77"], |_| comm.send(four, 77));
    refused(comm, three, &["itself"], |o| comm.recv(o, me));
    refused(comm, three, &["itself"], |_| comm.send(four, me));
    refused(comm, three, &["sends 4", "receives 3"], |o| comm.send_recv(four, me, o, me));
    refused(comm, three, &["itself"], |o| comm.send_recv(four, me, o, (me + 1) % size));
}

fn seven() -> half::f16 {
    half::f16::from_f32(7.0)
}

/// A call that must be right.
fn check_sum(comm: &Communicator, count: usize) -> Result<()> {
    let input: Vec<f32> = (0..count).map(|i| (i % 100 + comm.rank()) as f32).collect();
    let mut output = vec![0.0; count];
    comm.all_reduce(&input, &mut output, ReduceOp::Sum)?;
    let ranks: usize = (0..comm.size()).sum();
    let right = |(i, x): (usize, &f32)| *x == (comm.size() * (i % 100) + ranks) as f32;
    assert!(output.iter().enumerate().all(right), "wrong sums on rank {}", comm.rank());
    Ok(())
}

#[test]
fn what_all_ranks_get_wrong_leaves_the_communicator_usable() {
    for path in paths() {
        threads(3, &path.config, |comm| {
            check_sum(&comm, path.count).unwrap();
            for _ in 0..2 {
                every_mistake(&comm);
                check_sum(&comm, path.count).unwrap();
                comm.barrier().unwrap();
            }
            assert_eq!(comm.verdict(), None);
        });
    }
}

#[test]
fn what_one_rank_gets_wrong_reaches_the_others_at_once() {
    for path in paths() {
        for culprit in [0, 2] {
            let all_done = Barrier::new(3);
            let results = threads(3, &path.config, |comm| {
                check_sum(&comm, path.count).unwrap();
                comm.barrier().unwrap();
                // Or the verdict to come might meet a rank still in the barrier.
                all_done.wait();
                let start = Instant::now();
                if comm.rank() == culprit {
                    let mut short = vec![7.0f32; path.count - 1];
                    let input = vec![1.0f32; path.count];
                    refused(&comm, &mut short, &["all_reduce"], |o| comm.all_reduce(&input, o, ReduceOp::Sum));
                }
                let error = check_sum(&comm, path.count).expect_err("one rank is not there");
                // It has failed for good.
                assert_eq!(verdict(&comm.barrier().unwrap_err()), verdict(&error));
                (error, start.elapsed())
            });
            let (errors, times): (Vec<_>, Vec<_>) = results.into_iter().unzip();
            println!("{}: {times:.1?}", path.name);
            assert!(times.iter().all(|t| *t < PATIENCE / 6), "{}: {times:?}", path.name);
            let said = common_verdict(&errors);
            let Verdict::Refused { rank, sequence: 3, why } = &said else { panic!("{}: {said}", path.name) };
            assert!(*rank == culprit && why.contains("all_reduce"), "{said}");
        }
    }
}

/// One rank's part of a case: calls in their order.
type Part = fn(usize) -> Vec<Call>;

fn call(collective: Collective, dtype: DataType, count: usize, op: ReduceOp, root: usize) -> Call {
    Call { collective, dtype, count, op, root }
}

const SUM: ReduceOp = ReduceOp::Sum;

type Disagreement = (&'static str, Part, Part, [&'static str; 2]);

/// What one rank calls, what the others call, and what the verdict must show of each.
fn disagreements() -> Vec<Disagreement> {
    use Collective::*;
    use DataType::{F32, F64, I32};
    vec![
        (
            "collective",
            |n| vec![call(AllReduce, F32, n, SUM, 0)],
            |n| vec![call(AllGather, F32, n, SUM, 0)],
            ["all_reduce", "all_gather"],
        ),
        (
            "count",
            |n| vec![call(AllReduce, F32, n, SUM, 0)],
            |n| vec![call(AllReduce, F32, n + 1, SUM, 0)],
            ["f32, sum", "f32, sum"],
        ),
        (
            "count, far",
            |n| vec![call(AllReduce, F32, n, SUM, 0)],
            |_| vec![call(AllReduce, F32, 20_000, SUM, 0)],
            ["f32, sum", "20000 x f32"],
        ),
        (
            "none and some",
            |n| vec![call(AllReduce, F32, n, SUM, 0)],
            |_| vec![call(AllReduce, F32, 0, SUM, 0)],
            ["f32, sum", "(0 x f32"],
        ),
        (
            "type",
            |n| vec![call(AllReduce, F32, n, SUM, 0)],
            |n| vec![call(AllReduce, I32, n, SUM, 0)],
            ["x f32", "x i32"],
        ),
        (
            "operation",
            |n| vec![call(AllReduce, F32, n, SUM, 0)],
            |n| vec![call(AllReduce, F32, n, ReduceOp::Max, 0)],
            ["sum", "max"],
        ),
        (
            "root of broadcast",
            |n| vec![call(Broadcast, F32, n, SUM, 0)],
            |n| vec![call(Broadcast, F32, n, SUM, 1)],
            ["root 0", "root 1"],
        ),
        (
            "root of reduce",
            |n| vec![call(Reduce, F32, n, SUM, 0)],
            |n| vec![call(Reduce, F32, n, SUM, 2)],
            ["root 0", "root 2"],
        ),
        (
            "root of gather",
            |n| vec![call(Gather, F64, n, SUM, 1)],
            |n| vec![call(Gather, F64, n, SUM, 2)],
            ["root 1", "root 2"],
        ),
        (
            "gather and scatter",
            |n| vec![call(Gather, F32, n, SUM, 0)],
            |n| vec![call(Scatter, F32, n, SUM, 0)],
            ["gather", "scatter"],
        ),
        (
            "reduce and broadcast",
            |n| vec![call(Reduce, F32, n, SUM, 1)],
            |n| vec![call(Broadcast, F32, n, SUM, 1)],
            ["reduce", "broadcast"],
        ),
        (
            "barrier",
            |_| vec![call(Barrier, F32, 0, SUM, 0)],
            |n| vec![call(AllReduce, F32, n, SUM, 0)],
            ["barrier", "all_reduce"],
        ),
        (
            "order",
            |n| vec![call(AllReduce, F32, n, SUM, 0), call(AllToAll, F32, n, SUM, 0)],
            |n| vec![call(AllToAll, F32, n, SUM, 0), call(AllReduce, F32, n, SUM, 0)],
            ["all_reduce", "all_to_all"],
        ),
        (
            "one more",
            |n| vec![call(AllReduce, F32, n, SUM, 0), call(ReduceScatter, F32, n, SUM, 0)],
            |n| vec![call(AllReduce, F32, n, SUM, 0)],
            ["reduce_scatter", "barrier"],
        ),
    ]
}

/// Make the calls, then meet: the first error.
fn run(comm: &Communicator, calls: &[Call]) -> Result<()> {
    for call in calls {
        let (rank, size) = (comm.rank(), comm.size());
        let block = call.count * call.dtype.size();
        let input = vec![1u8; call.collective.input_blocks(rank, size, call.root) * block];
        let mut output = vec![0u8; call.collective.output_blocks(rank, size, call.root) * block];
        comm.call(*call, &input, &mut output)?;
    }
    comm.barrier()
}

fn disagree(config: &Config, count: usize, name: &str) {
    for (what, one, others, shown) in disagreements() {
        for deviant in [0, 2] {
            let all_done = Barrier::new(3);
            let results = threads(3, config, |comm| {
                check_sum(&comm, count).unwrap();
                all_done.wait();
                let start = Instant::now();
                let calls = if comm.rank() == deviant { one(count) } else { others(count) };
                let error = run(&comm, &calls).expect_err("ranks that disagree do not succeed");
                (error, start.elapsed())
            });
            let (errors, times): (Vec<_>, Vec<_>) = results.into_iter().unzip();
            let case = format!("{name}, {what}, rank {deviant} differs, after {:.1?}", times.iter().max().unwrap());
            println!("{case}");
            assert!(times.iter().all(|t| *t < PATIENCE / 6), "{case}");
            let said = common_verdict(&errors);
            let Verdict::Mismatch { one: (a, call_a), other: (b, call_b) } = &said else { panic!("{case}: {said}") };
            assert!((*a == deviant) != (*b == deviant), "{case}: {said}");
            let (odd, usual) = if *a == deviant { (call_a, call_b) } else { (call_b, call_a) };
            let (odd, usual) = (odd.to_string(), usual.to_string());
            assert!(odd.contains(shown[0]) && usual.contains(shown[1]), "{case}: {said}");
            assert_ne!(odd, usual, "{case}: a difference that can be read");
        }
    }
}

#[test]
fn ranks_that_call_different_things_see_both_sides_over_shared_memory() {
    for path in paths().iter().filter(|p| !p.name.starts_with("tcp")) {
        disagree(&path.config, path.count, path.name);
    }
}

#[test]
fn ranks_that_call_different_things_see_both_sides_over_tcp() {
    for path in paths().iter().filter(|p| p.name.starts_with("tcp")) {
        disagree(&path.config, path.count, path.name);
    }
}

#[test]
fn messages_that_do_not_fit_fail_on_every_rank() {
    for path in paths() {
        type Receive = fn(&Communicator) -> Result<()>;
        let cases: [(Receive, &[&str]); 2] = [
            (|c| c.recv(&mut [0.0f32; 5], 0), &["3 x f32", "5 x f32", "from rank 0 to rank 1"]),
            (|c| c.recv(&mut [0i32; 3], 0), &["3 x f32", "3 x i32", "from rank 0 to rank 1"]),
        ];
        for (receive, parts) in cases {
            let errors = threads(3, &path.config, |comm| {
                let start = Instant::now();
                let message = match comm.rank() {
                    0 => comm.send(&[1.0f32; 3], 1),
                    1 => receive(&comm),
                    _ => Ok(()),
                };
                let error = message.and_then(|()| comm.barrier()).expect_err("the message did not fit");
                assert!(start.elapsed() < PATIENCE / 6, "{}: {:?}", path.name, start.elapsed());
                error
            });
            let said = common_verdict(&errors);
            assert!(matches!(said, Verdict::Mismatch { .. }), "{said}");
            assert!(parts.iter().all(|p| said.to_string().contains(p)), "{said}");
        }
    }
}

#[test]
fn a_wrong_call_among_asynchronous_ones_fails_alone() {
    threads(2, &Config::default(), |comm| {
        let (input, mut short) = ([1i32; 8], [7i32; 7]);
        let (mut first, mut last) = ([0i32; 8], [0i32; 8]);
        maypole::scope(|s| {
            let before = comm.start(s).all_reduce(&input, &mut first, SUM).unwrap();
            let wrong = comm.start(s).all_reduce(&input, &mut short, SUM).unwrap();
            let after = comm.start(s).all_reduce(&input, &mut last, SUM).unwrap();
            assert!(matches!(wrong.wait(), Err(Error::Argument { .. })));
            assert_eq!(before.wait().unwrap(), [2; 8]);
            assert_eq!(after.wait().unwrap(), [2; 8]);
        });
        assert_eq!(short, [7; 7]);
        comm.barrier().unwrap();
    });
}

#[test]
fn worlds_that_make_no_sense_are_refused() {
    let none = Communicator::threads(0).expect_err("a world needs a rank");
    assert!(none.to_string().contains("at least one rank"), "{none}");
    let mut config = Config::default();
    for (name, value) in
        [("MAYPOLE_TIMEOUT", "-1"), ("MAYPOLE_ALGORITHM", "barrier=ring"), ("MAYPOLE_RING", "12 apples")]
    {
        let error = config.set(name, value).unwrap_err();
        assert!(matches!(&error, Error::Setting { name: n, value: v, .. } if n == name && v == value), "{error}");
    }
    config.timeout = Duration::from_millis(200);
    assert_eq!(Communicator::threads_with(2, config).unwrap().len(), 2);
}
