//! Every collective, with every algorithm that has it, gives what a plain loop gives: any root, counts around the world
//! size and large ones, in place and out of place, ranks as threads.

use maypole::{Algorithm, Call, Collective, Communicator, Config, DataType, ReduceOp};
use maypole_collectives::schedule::Place;

/// Element `i` of rank `rank`'s input: small integers, exact in f32 whatever the order of the sum.
fn value(rank: usize, i: usize) -> f32 {
    ((rank * 31 + i * 7) % 64) as f32
}

/// What rank `rank` must get: block by block, element by element.
fn expected(collective: Collective, rank: usize, size: usize, root: usize, count: usize) -> Vec<f32> {
    let block = |block: usize| {
        let from = collective.contributions(Place { rank, size, root }, block);
        let element = move |i| from.ranks.clone().map(|giver| value(giver, from.block * count + i)).sum::<f32>();
        (0..count).map(element)
    };
    (0..collective.output_blocks(rank, size, root)).flat_map(block).collect()
}

fn check(comm: &Communicator, collective: Collective, root: usize, count: usize, what: &str) {
    let (rank, size) = (comm.rank(), comm.size());
    let call = Call { collective, dtype: DataType::F32, count, op: ReduceOp::Sum, root };
    let inputs = collective.input_blocks(rank, size, root);
    let outputs = collective.output_blocks(rank, size, root);
    let want = expected(collective, rank, size, root, count);
    let input: Vec<f32> = (0..inputs * count).map(|i| value(rank, i)).collect();
    let mut output = vec![-1.0f32; outputs * count];
    let context = format!("{what}: {} on rank {rank} of {size}, root {root}, count {count}", collective.name());
    comm.call(call, bytemuck::cast_slice(&input), bytemuck::cast_slice_mut(&mut output))
        .unwrap_or_else(|e| panic!("{context}: {e}"));
    assert!(output == want, "{context}: out of place");

    let mut buffer = vec![-1.0f32; inputs.max(outputs) * count];
    let block = collective.in_place_block(rank).unwrap_or(0);
    let (at_in, at_out) = match (inputs, outputs) {
        (1, o) if o > 1 => (block, 0),
        (i, 1) if i > 1 => (0, block),
        _ => (0, 0),
    };
    buffer[at_in * count..][..input.len()].copy_from_slice(&input);
    comm.call_in_place(call, bytemuck::cast_slice_mut(&mut buffer)).unwrap_or_else(|e| panic!("{context}: {e}"));
    assert!(buffer[at_out * count..][..want.len()] == want[..], "{context}: in place");
}

fn world(size: usize, config: Config, run: impl Fn(&Communicator) + Sync) {
    let ranks = Communicator::threads_with(size, config).expect("a world of threads");
    std::thread::scope(|s| {
        for comm in ranks {
            let run = &run;
            s.spawn(move || run(&comm));
        }
    });
}

const COUNTS: [usize; 8] = [0, 1, 2, 5, 17, 1000, 4099, 200_003];

#[test]
fn every_algorithm_agrees_with_a_plain_loop() {
    for size in [1, 2, 3, 4, 5, 8] {
        for algorithm in Algorithm::ALL {
            let mut config = Config::default();
            config.set("MAYPOLE_ALGORITHM", algorithm.name()).unwrap();
            world(size, config, |comm| {
                for collective in Collective::ALL.into_iter().filter(|c| algorithm.supports(*c)) {
                    let roots = if collective.is_rooted() { size } else { 1 };
                    for root in 0..roots {
                        for count in COUNTS.into_iter().filter(|c| *c < 5000 || root == 0) {
                            check(comm, collective, root, count, algorithm.name());
                        }
                    }
                }
            });
        }
    }
}

#[test]
fn the_tuners_choice_agrees_with_a_plain_loop() {
    for size in 1..=9 {
        world(size, Config::default(), |comm| {
            for collective in Collective::ALL {
                let roots = if collective.is_rooted() { size } else { 1 };
                for root in 0..roots {
                    for count in COUNTS.into_iter().filter(|c| *c < 5000 || root == 0) {
                        check(comm, collective, root, count, "tuner");
                    }
                }
            }
        });
    }
}
