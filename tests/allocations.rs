//! Starting a persistent operation allocates nothing, and neither do messages that are waited for: a counting allocator
//! says so, for every collective, on every path that bytes take.
//!
//! One test in a file of its own, since it counts what the whole process allocates.

mod counting;
mod ranks;

use std::sync::Barrier;

use maypole::{Communicator, Persistent, ReduceOp};
use ranks::{paths, threads};

/// Allocations since the last call, by threads other than those that hold the job together.
fn counted() -> u64 {
    let held_together = |thread: u64| {
        let name = std::fs::read_to_string(format!("/proc/self/task/{thread}/comm")).unwrap_or_default();
        ["maypole-node", "maypole-hub"].contains(&name.trim())
    };
    counting::counted().into_iter().filter(|(thread, _)| !held_together(*thread)).map(|(_, times)| times).sum()
}

/// One persistent operation of every kind, in place and not.
fn every_kind(comm: &Communicator, n: usize) -> Vec<Persistent<f32>> {
    let (plan, size, root) = (comm.persistent(), comm.size(), comm.rank() == 0);
    let vec = |blocks: usize| vec![1.0f32; blocks * n];
    let at_root = |blocks: usize| vec(if root { blocks } else { 0 });
    let counts = vec![n; size];
    let (sum, scaled) = (ReduceOp::Sum, ReduceOp::PreMulSum(0.5));
    let made = [
        plan.all_reduce(vec(1), vec(1), sum),
        plan.all_reduce(vec(1), vec(1), ReduceOp::Avg),
        plan.all_reduce_in_place(vec(1), scaled),
        plan.reduce(vec(1), at_root(1), sum, 0),
        plan.reduce_in_place(vec(1), sum, 0),
        plan.broadcast(vec(1), 0),
        plan.broadcast_from(at_root(1), vec(1), 0),
        plan.all_gather(vec(1), vec(size)),
        plan.all_gather_in_place(vec(size)),
        plan.reduce_scatter(vec(size), vec(1), sum),
        plan.reduce_scatter_in_place(vec(size), sum),
        plan.all_to_all(vec(size), vec(size)),
        plan.all_to_all_in_place(vec(size)),
        plan.gather(vec(1), at_root(size), 0),
        plan.gather_in_place(vec(if root { size } else { 1 }), 0),
        plan.scatter(at_root(size), vec(1), 0),
        plan.scatter_in_place(vec(if root { size } else { 1 }), 0),
        plan.scan(vec(1), vec(1), sum),
        plan.scan_in_place(vec(1), sum),
        plan.exclusive_scan(vec(1), vec(1), sum),
        plan.exclusive_scan_in_place(vec(1), scaled),
        plan.all_gather_v(vec(1), vec(size), &counts),
        plan.all_gather_v_in_place(vec(size), &counts),
        plan.reduce_scatter_v(vec(size), &counts, vec(1), sum),
        plan.reduce_scatter_v_in_place(vec(size), &counts, scaled),
        plan.all_to_all_v(vec(size), &counts, vec(size), &counts),
        plan.all_to_all_v_in_place(vec(size), &counts),
        plan.gather_v(vec(1), at_root(size), &counts, 0),
        plan.scatter_v(at_root(size), &counts, vec(1), 0),
    ];
    made.into_iter().map(|operation| operation.unwrap()).collect()
}

#[test]
fn persistent_operations_and_messages_allocate_nothing() {
    const TRIES: usize = 500;
    for path in paths() {
        let meet = Barrier::new(3);
        let least = threads(3, &path.config, |comm| {
            let mut operations = every_kind(&comm, path.count);
            let mut barrier = comm.persistent().barrier().unwrap();
            let (right, left) = ((comm.rank() + 1) % 3, (comm.rank() + 2) % 3);
            let (sent, mut got) = (vec![1u8; path.count], vec![0u8; path.count]);
            let kinds = operations.len();
            // Operation number `kind`, then all of them at once; around each a barrier and messages.
            let mut run = |kind: usize| {
                let chosen = if kind < kinds { kind..kind + 1 } else { 0..kinds };
                comm.send_recv(&sent, right, &mut got, left).unwrap();
                comm.tag(1).send_recv(&sent, left, &mut got, right).unwrap();
                barrier.start().unwrap();
                operations[chosen.clone()].iter_mut().for_each(|operation| operation.start().unwrap());
                operations[chosen].iter_mut().for_each(|operation| _ = operation.wait().unwrap());
                barrier.wait().unwrap();
            };
            // The first makes links, their memory, and the stream's thread, and room for all of them in the queues.
            run(kinds);
            run(kinds);
            // More than one try: a rank that waits for another for two milliseconds asks after it, which allocates. One
            // operation after the other, since among all of them one always waits as long on a busy machine.
            (0..kinds)
                .map(|kind| {
                    let mut least = u64::MAX;
                    for _ in 0..TRIES {
                        meet.wait();
                        if comm.rank() == 0 {
                            counted();
                            counting::start();
                        }
                        meet.wait();
                        run(kind);
                        meet.wait();
                        if comm.rank() == 0 {
                            counting::stop();
                            least = least.min(counted());
                        }
                        let mut stop = [u8::from(least == 0)];
                        comm.broadcast(&mut stop, 0).unwrap();
                        if stop == [1] {
                            break;
                        }
                    }
                    least
                })
                .collect::<Vec<u64>>()
        });
        assert!(least[0].iter().all(|&least| least == 0), "{}: the least by operation: {:?}", path.name, least[0]);
    }

    counting::check();
}
