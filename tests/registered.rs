//! Registered buffers: the same results as from ordinary memory, bit for bit, whoever uses which; lenders that wait for
//! their readers; and buffers that go before, after and without their communicator.

mod ranks;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use maypole::config::TransportChoice;
use maypole::{Communicator, Config, Error, ReduceOp, Registered};
use ranks::{Job, config, role, say, threads};

const SUM: ReduceOp = ReduceOp::Sum;

/// Settings under which a collective takes `algorithm`, where it has it.
fn by(algorithm: &str) -> Config {
    let mut config = config(TransportChoice::Auto);
    config.set("MAYPOLE_ALGORITHM", algorithm).unwrap();
    config
}

/// A buffer of either kind.
enum Buffer {
    Ordinary(Vec<f32>),
    Registered(Registered<f32>),
}

impl Buffer {
    /// Every rank calls it; on some it gives registered memory.
    fn new(comm: &Communicator, len: usize, registered: bool) -> Buffer {
        let memory = comm.alloc(len).unwrap();
        assert!(memory.is_shared() || comm.size() == 1);
        if registered { Buffer::Registered(memory) } else { Buffer::Ordinary(vec![0.0; len]) }
    }

    fn get(&mut self) -> &mut [f32] {
        match self {
            Buffer::Ordinary(elements) => elements,
            Buffer::Registered(elements) => elements,
        }
    }
}

/// Element `i` of what rank `rank` gives in `call`: sums of such depend on their order.
fn element(rank: usize, call: usize, i: usize) -> f32 {
    let bits = (rank * 7919 + call * 104_729 + i).wrapping_mul(0x9e37_79b9) as u32;
    (bits as f32 / u32::MAX as f32 - 0.5) * if bits & 64 == 0 { 1.0 } else { 1e6 }
}

/// Every collective with blocks of `n` elements, from and into registered memory where the bits of `which` say so, next
/// to the same call on ordinary memory.
fn compare(comm: &Communicator, n: usize, which: usize) {
    let (me, size) = (comm.rank(), comm.size());
    // Which buffers are registered differs between the ranks.
    let which = which.rotate_right(me as u32);
    let mut input = Buffer::new(comm, size * n, which & 1 != 0);
    let mut output = Buffer::new(comm, size * n, which & 2 != 0);
    let (mut plain_in, mut plain_out) = (vec![0.0; size * n], vec![0.0; size * n]);
    let root = size - 1;
    let at_root = |blocks: usize| if me == root { blocks * n } else { 0 };
    type Apart = fn(&Communicator, &[f32], &mut [f32], usize) -> maypole::Result<()>;
    let apart: [(&str, usize, usize, Apart); 9] = [
        ("all_reduce", n, n, |c, i, o, _| c.all_reduce(i, o, SUM)),
        ("all_reduce avg", n, n, |c, i, o, _| c.all_reduce(i, o, ReduceOp::Avg)),
        ("all_reduce premulsum", n, n, |c, i, o, _| c.all_reduce(i, o, ReduceOp::PreMulSum(0.3))),
        ("reduce", n, at_root(1), |c, i, o, r| c.reduce(i, o, SUM, r)),
        ("broadcast_from", at_root(1), n, |c, i, o, r| c.broadcast_from(i, o, r)),
        ("all_gather", n, size * n, |c, i, o, _| c.all_gather(i, o)),
        ("reduce_scatter", size * n, n, |c, i, o, _| c.reduce_scatter(i, o, SUM)),
        ("all_to_all", size * n, size * n, |c, i, o, _| c.all_to_all(i, o)),
        ("gather, scatter", n, at_root(size), |c, i, o, r| {
            c.gather(i, o, r)?;
            let mut back = i.to_vec();
            c.scatter(o, &mut back, r)?;
            assert_eq!(bits(i), bits(&back));
            Ok(())
        }),
    ];
    let fill =
        |buffer: &mut [f32], call: usize| buffer.iter_mut().enumerate().for_each(|(i, x)| *x = element(me, call, i));
    for (call, (name, inputs, outputs, run)) in apart.into_iter().enumerate() {
        fill(&mut input.get()[..inputs], call);
        fill(&mut plain_in[..inputs], call);
        run(comm, &input.get()[..inputs], &mut output.get()[..outputs], root).unwrap();
        // Whoever still read it would read this.
        input.get().fill(f32::NAN);
        let result = output.get()[..outputs].to_vec();
        output.get().fill(f32::NAN);
        run(comm, &plain_in[..inputs], &mut plain_out[..outputs], root).unwrap();
        assert_eq!(bits(&result), bits(&plain_out[..outputs]), "{name}, {n} elements, buffers {which:b}, rank {me}");
    }
    type InPlace = fn(&Communicator, &mut [f32], usize) -> maypole::Result<()>;
    let own = |blocks: usize| if me == root { blocks * n } else { n };
    let in_place: [(&str, usize, InPlace); 8] = [
        ("all_reduce_in_place", n, |c, b, _| c.all_reduce_in_place(b, SUM)),
        ("reduce_in_place", n, |c, b, r| c.reduce_in_place(b, SUM, r)),
        ("broadcast", n, |c, b, r| c.broadcast(b, r)),
        ("all_gather_in_place", size * n, |c, b, _| c.all_gather_in_place(b)),
        ("reduce_scatter_in_place", size * n, |c, b, _| c.reduce_scatter_in_place(b, SUM)),
        ("all_to_all_in_place", size * n, |c, b, _| c.all_to_all_in_place(b)),
        ("gather_in_place", own(size), |c, b, r| c.gather_in_place(b, r)),
        ("scatter_in_place", own(size), |c, b, r| c.scatter_in_place(b, r)),
    ];
    for (call, (name, len, run)) in in_place.into_iter().enumerate() {
        fill(&mut input.get()[..len], 100 + call);
        fill(&mut plain_in[..len], 100 + call);
        run(comm, &mut input.get()[..len], root).unwrap();
        let result = input.get()[..len].to_vec();
        input.get().fill(f32::NAN);
        run(comm, &mut plain_in[..len], root).unwrap();
        // The blocks that reduce_scatter leaves behind are undefined.
        let part = if name == "reduce_scatter_in_place" { me * n..(me + 1) * n } else { 0..len };
        assert_eq!(bits(&result[part.clone()]), bits(&plain_in[part]), "{name}, {n} elements, buffers {which:b}");
    }
}

fn bits(elements: &[f32]) -> Vec<u32> {
    elements.iter().map(|x| x.to_bits()).collect()
}

/// Around the smallest block that is lent, and of several rounds.
const COUNTS: [usize; 4] = [5, (32 << 8) - 1, 32 << 8, 150_001];

#[test]
fn results_are_those_from_ordinary_memory() {
    for algorithm in ["", "one_shot", "two_shot"] {
        for size in [2, 3, 5] {
            threads(size, &by(algorithm), |comm| {
                for (number, n) in COUNTS.into_iter().enumerate() {
                    // All registered, and two mixtures.
                    for which in [usize::MAX, 0x5555_5555_5555_5556 + number, 0x3333_0f0f_00ff_5a5a] {
                        compare(&comm, n, which);
                    }
                }
            });
        }
    }
}

#[test]
fn between_processes_too() {
    role(|_| {
        let comm = Communicator::from_env().unwrap();
        COUNTS.into_iter().for_each(|n| compare(&comm, n, usize::MAX));
        let mut buffer = comm.alloc::<u64>(100_000).unwrap();
        // A rank that has dropped its own still reads the others'.
        let mut own = (comm.rank() != 1).then(|| comm.alloc::<u64>(40_000)).transpose();
        if comm.rank() == 1 {
            own = comm.alloc::<u64>(0).map(Some);
        }
        drop(own);
        for round in 0..10 {
            buffer.fill(round);
            comm.all_reduce_in_place(&mut buffer, SUM).unwrap();
            assert!(buffer.iter().all(|x| *x == 3 * round));
        }
        say("fine");
    });
    let mut job = Job::start("between_processes_too", "", 3, &[]);
    assert!(job.hear(&[0, 1, 2]).iter().all(|(_, line)| line == "fine"));
    job.end(&[0, 1, 2]);
}

#[test]
fn where_ranks_share_no_memory_it_is_ordinary() {
    threads(2, &config(TransportChoice::Tcp), |comm| {
        let mut buffer = comm.alloc::<i32>(50_000).unwrap();
        assert!(!buffer.is_shared() && buffer.iter().all(|x| *x == 0));
        buffer.fill(comm.rank() as i32);
        comm.all_reduce_in_place(&mut buffer, SUM).unwrap();
        assert!(buffer.iter().all(|x| *x == 1));
    });
    let alone = Communicator::threads(1).unwrap().remove(0);
    let mut buffer = alone.alloc::<i32>(3).unwrap();
    buffer.copy_from_slice(&[1, 2, 3]);
    alone.all_reduce_in_place(&mut buffer, SUM).unwrap();
    assert_eq!(format!("{buffer:?}"), "Registered { elements: [1, 2, 3], shared: false }");
}

#[test]
fn a_lender_waits_for_its_readers_and_nobody_else_does() {
    for lent in [false, true] {
        let (joined, returned) = (AtomicBool::new(false), AtomicBool::new(false));
        threads(2, &by("one_shot"), |comm| {
            let mut buffer = comm.alloc::<u8>(64 << 10).unwrap();
            let mut ordinary = vec![7; 64 << 10];
            buffer.fill(7);
            if comm.rank() == 0 {
                comm.broadcast(if lent { &mut buffer } else { &mut ordinary }, 0).unwrap();
                returned.store(true, Ordering::SeqCst);
                assert!(joined.load(Ordering::SeqCst) || !lent, "it lent its buffer and went on before it was read");
            } else {
                // Ordinary memory is copied when it is published, so the root does not wait for this rank.
                while !lent && !returned.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                std::thread::sleep(Duration::from_millis(if lent { 30 } else { 0 }));
                joined.store(true, Ordering::SeqCst);
                buffer.fill(0);
                comm.broadcast(&mut buffer, 0).unwrap();
                assert!(buffer.iter().all(|x| *x == 7));
            }
        });
    }
}

#[test]
fn lengths_and_types_may_differ() {
    threads(3, &config(TransportChoice::Auto), |comm| {
        let me = comm.rank();
        // Bytes on rank 0, none on rank 1, doubles on rank 2.
        let (mut bytes, mut none, mut doubles) = (None, None, None);
        match me {
            0 => bytes = Some(comm.alloc::<u8>(123_457).unwrap()),
            1 => none = Some(comm.alloc::<f32>(0).unwrap()),
            _ => doubles = Some(comm.alloc::<f64>(70_000).unwrap()),
        }
        assert!(none.is_none_or(|none| none.is_empty()));
        let mut buffer = vec![1.0; 70_000];
        let buffer = doubles.as_deref_mut().unwrap_or(&mut buffer);
        buffer.fill(1.0);
        comm.all_reduce_in_place(buffer, SUM).unwrap();
        assert!(buffer.iter().all(|x| *x == 3.0));
        if let Some(bytes) = &mut bytes {
            bytes.fill(9);
            assert_eq!(bytes.iter().map(|x| *x as usize).sum::<usize>(), 9 * 123_457);
        }
    });
}

#[test]
fn what_cannot_be_had_is_an_error_on_every_rank() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        for round in 0..2 {
            let len = if comm.rank() == round { usize::MAX / 4 } else { 10 };
            match comm.alloc::<f64>(len) {
                Err(Error::Argument { rank, what }) if comm.rank() == round => {
                    assert!(rank == round && what.contains("f64"), "{what}");
                }
                Err(Error::System { what, .. }) => assert!(what.contains(&format!("rank {round}")), "{what}"),
                other => panic!("{other:?}"),
            }
            // More than any machine has, but not more than can be said.
            let len = if comm.rank() == round { 1 << 58 } else { 10 };
            assert!(matches!(comm.alloc::<u8>(len), Err(Error::System { .. })));
            let mut buffer = comm.alloc::<u32>(20_000).unwrap();
            buffer.fill(1);
            comm.all_reduce_in_place(&mut buffer, SUM).unwrap();
            assert!(buffer.is_shared() && buffer.iter().all(|x| *x == 2));
        }
    });
}

#[test]
fn dropped_in_any_order() {
    threads(3, &config(TransportChoice::Auto), |comm| {
        let me = comm.rank();
        for round in 0..12 {
            let mut buffers: Vec<_> = (0..3).map(|_| comm.alloc::<i64>(30_000).unwrap()).collect();
            // Each rank keeps another one and uses it, while the others use ordinary memory.
            let mut kept = buffers.swap_remove((me + round) % 3);
            drop(buffers);
            kept.fill(me as i64);
            comm.all_reduce_in_place(&mut kept, SUM).unwrap();
            assert!(kept.iter().all(|x| *x == 3));
        }
        let mut last = comm.alloc::<i64>(30_000).unwrap();
        last.fill(1);
        comm.all_reduce_in_place(&mut last, SUM).unwrap();
        if me == 0 {
            std::mem::forget(comm.alloc::<i64>(30_000).unwrap());
        } else {
            comm.alloc::<i64>(30_000).unwrap().fill(1);
        }
        // It outlives the communicator, and may go to another thread.
        drop(comm);
        let last = std::thread::spawn(move || {
            last[0] += 1;
            last
        });
        assert_eq!(last.join().unwrap()[..2], [4, 3]);
    });
}

#[test]
fn a_failed_operation_gives_the_buffer_back() {
    for round in 0..20u64 {
        threads(3, &config(TransportChoice::Auto), |comm| {
            let mut buffer = comm.alloc::<f32>(1 << 20).unwrap();
            buffer.fill(1.0);
            // It may fail already: rank 2 does not wait for the others to leave it.
            let _ = comm.barrier();
            if comm.rank() == 2 {
                std::thread::sleep(Duration::from_micros(round * 50));
                comm.abort("not today");
            }
            let outcome = comm.all_reduce_in_place(&mut buffer, SUM);
            assert!(outcome.is_err() || comm.rank() != 2);
            // Ours again, whoever was still reading.
            buffer.fill(2.0);
        });
    }
}

#[test]
fn persistent_operations_own_them() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        let (input, output) = (comm.alloc::<f64>(60_000).unwrap(), comm.alloc::<f64>(60_000).unwrap());
        let mut sum = comm.persistent().all_reduce(input, output, SUM).unwrap();
        let mut spread = comm.persistent().broadcast(comm.alloc::<i32>(60_000).unwrap(), 1).unwrap();
        for round in 0..10 {
            sum.input_mut().fill(round as f64 + comm.rank() as f64);
            spread.input_mut().fill(round + comm.rank() as i32);
            sum.start().unwrap();
            spread.start().unwrap();
            assert!(spread.wait().unwrap().iter().all(|x| *x == round + 1));
            assert!(sum.wait().unwrap().iter().all(|x| *x == 2.0 * round as f64 + 1.0));
        }
        drop((comm, sum));
        assert_eq!(spread.output().len(), 60_000);
    });
}
