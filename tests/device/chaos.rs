//! Random sequences of everything, on an emulator whose streams are late in turns: what CUDA leaves unordered comes in
//! every order.

use std::time::{Duration, Instant};

use maypole::perf::operation::NamedOp;
use maypole::{Algorithm, DataType};

use crate::arena::Arena;
use crate::case::{Case, calls};
use crate::runner::{On, Test};
use crate::world::{Driver, config, driver, emulator, world};

pub const TESTS: &[Test] = &[
    Test { name: "chaos: random sequences, streams late in turns", on: On::Either, run: sequences },
    Test { name: "chaos: few hardware queues", on: On::Emulator, run: few_queues },
];

/// A small generator (SplitMix64), so that all ranks draw the same.
pub struct Draws(pub u64);

impl Draws {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize % bound
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// Cases that are queued before the first is waited for.
const AT_ONCE: usize = 6;

/// A case of at most `count` elements per block.
pub fn case(draws: &mut Draws, size: usize, count: usize) -> Case {
    let dtype = draws.one(&DataType::ALL);
    let calls: Vec<_> = calls(dtype).collect();
    let (collective, op) = draws.one(&calls);
    let count = match draws.below(4) {
        0 => draws.below(10),
        1 => draws.below(300),
        _ => draws.below(count),
    };
    Case {
        root: if collective.is_rooted() { draws.below(size) } else { 0 },
        in_place: draws.below(3) == 0,
        shifts: [draws.below(20), draws.below(20)],
        seed: draws.below(1000) as u64,
        ..Case::new(collective, dtype, op, count)
    }
}

/// One world for `time`: settings and cases are drawn from `seed`.
fn one_world(seed: u64, time: Duration) {
    let mut draws = Draws(seed);
    let size = 2 + draws.below(4);
    let window = draws.one(&["4096", "16384", "1M"]);
    let staging = draws.one(&["auto", "auto", "host"]);
    let algorithm = if draws.below(2) == 0 { "" } else { draws.one(&Algorithm::ALL).name() };
    let knobs =
        [("MAYPOLE_DEVICE_WINDOW", window), ("MAYPOLE_DEVICE_FIFO", window), ("MAYPOLE_DEVICE_STAGING", staging)];
    let mut config = config(&knobs);
    config.set("MAYPOLE_ALGORITHM", algorithm).unwrap();
    println!("seed {seed}: {size} ranks, places of {window}, staging {staging}, algorithm {algorithm:?}");
    let began = Instant::now();
    world(size, &config, |rank| {
        let mut draws = Draws(seed ^ 0xffff);
        let arenas: Vec<Arena> = (0..AT_ONCE).map(|_| Arena::new(rank, 256 << 10)).collect();
        let mut rounds = 0;
        loop {
            let queued: Vec<_> = arenas.iter().map(|arena| case(&mut draws, size, 1500).queue(rank, arena)).collect();
            queued.iter().zip(&arenas).for_each(|(queued, arena)| queued.compare(rank, arena));
            rounds += 1;
            // Rank 0 says when all have had enough.
            let mut enough = [(began.elapsed() > time) as u8];
            rank.comm.broadcast(&mut enough, 0).unwrap();
            if enough[0] != 0 {
                break;
            }
        }
        rank.settle();
        rounds
    });
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is {text}, no number")))
}

/// `MAYPOLE_CHAOS_SECONDS` in all (16 if it is not set), in `MAYPOLE_CHAOS_SEEDS` worlds from `MAYPOLE_CHAOS_SEED` on.
fn sequences() {
    let (first, seeds) = (setting("MAYPOLE_CHAOS_SEED", 1), setting("MAYPOLE_CHAOS_SEEDS", 16));
    let time = Duration::from_secs_f64(setting("MAYPOLE_CHAOS_SECONDS", 16) as f64 / seeds as f64);
    for seed in first..first + seeds {
        if driver() == Driver::Emulator {
            emulator().set("CHAOS", &seed.to_string());
        }
        one_world(seed, time);
    }
}

/// A queue for each rank's stream and those that the library may use beside them, and no more; kernels loaded late.
fn few_queues() {
    emulator().set("CONNECTIONS", "32");
    emulator().set("LAZY", "on");
    emulator().set("CHAOS", "3");
    world(3, &config(&[]), |rank| {
        let arena = Arena::new(rank, 64 << 10);
        for (collective, op) in calls(DataType::F16).filter(|(_, op)| op.is_none_or(|op| op == NamedOp::Avg)) {
            Case::new(collective, DataType::F16, op, 1200).check(rank, &arena);
        }
        rank.settle();
    });
}
