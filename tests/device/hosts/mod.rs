//! Device buffers between hosts: ranks of which some share memory and others are reached by TCP, through pinned memory
//! and a host thread. Every algorithm, layout of ranks, type, operation and kind of call gives what plain loops give.
//! Ranks are threads that claim to be on different hosts.

mod messages;
mod mismatches;

use maypole::config::TransportChoice;
use maypole::perf::operation::{NamedOp, Operation};
use maypole::{Algorithm, Call, Collective, Communicator, Config, DataType, ReduceOp, UniqueId};

use crate::arena::Arena;
use crate::case::{Case, calls};
use crate::chaos::{self, Draws};
use crate::runner::{On, Test, checked};
use crate::variable;
use crate::world::{Rank, config, emulator};

pub const TESTS: &[Test] = &[
    Test { name: "hosts: every flat algorithm", on: On::Either, run: flat },
    Test { name: "hosts: hierarchies on uneven hosts", on: On::Either, run: hierarchies },
    Test { name: "hosts: slots as they come", on: On::Either, run: defaults },
    Test { name: "hosts: every type and operation", on: On::Either, run: types },
    Test { name: "hosts: blocks with counts of their own", on: On::Either, run: variable_blocks },
    Test { name: "hosts: TCP between ranks of one host", on: On::Either, run: tcp },
    Test { name: "hosts: messages between two ranks", on: On::Either, run: messages::messages },
    Test {
        name: "hosts: what does not match is named, and nothing written",
        on: On::Either,
        run: mismatches::mismatches,
    },
    Test { name: "hosts: random sequences, streams late in turns", on: On::Emulator, run: late_streams },
];

/// Two near and one far, ranks of a host that are not neighbours, and nobody near.
const LAYOUTS: [&[&str]; 3] = [&["a", "a", "b"], &["a", "b", "a", "b", "c"], &["a", "b", "c"]];

/// Evenly on two hosts, three and one, four and two and one, dealt round, and in no order.
const UNEVEN: [&[&str]; 5] = [
    &["a", "a", "b", "b"],
    &["a", "a", "a", "b"],
    &["a", "a", "a", "a", "b", "b", "c"],
    &["a", "b", "a", "b", "a", "b"],
    &["b", "a", "a", "b", "c", "a", "a"],
];

/// Links of 16 KiB, so that messages of some kilobytes take several slots and the rings go round.
const SHORT: (&str, &str) = ("MAYPOLE_DEVICE_FIFO", "16K");

/// Run `body` for each rank of a world whose rank r claims to be on host `hosts[r]`; results by rank.
pub fn spread<T: Send>(hosts: &[&str], config: &Config, body: impl Fn(&Rank) -> T + Sync) -> Vec<T> {
    let id = UniqueId::create(config).expect("an id");
    std::thread::scope(|scope| {
        let (body, id) = (&body, &id);
        let start = |(rank, host): (usize, &&str)| {
            let mut config = config.clone();
            config.host = Some(host.to_string());
            scope.spawn(move || {
                let comm = Communicator::from_id(id, rank, hosts.len(), config).expect("a world");
                let rank = Rank::new(comm);
                // Before anybody's stream waits, since it may stop the device for a while.
                rank.comm.attach(&rank.context).unwrap_or_else(|error| panic!("attach: {error}"));
                body(&rank)
            })
        };
        let ranks: Vec<_> = hosts.iter().enumerate().map(start).collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank panicked")).collect()
    })
}

/// Settings with `algorithm`, or several of them, or none.
fn by(algorithm: &str) -> Config {
    config(&[SHORT, ("MAYPOLE_ALGORITHM", algorithm)])
}

/// Every collective of `algorithm` on f32, out of place and in place, from the first root and the last.
fn every_collective(rank: &Rank, arena: &Arena, algorithm: Option<Algorithm>, counts: &[usize]) {
    let supported = |collective| algorithm.is_none_or(|algorithm| algorithm.supports(collective));
    let plain = calls(DataType::F32).filter(|(_, op)| op.is_none_or(|op| op == NamedOp::Sum));
    for (i, (collective, op)) in plain.filter(|(collective, _)| supported(*collective)).enumerate() {
        let last = if collective.is_rooted() { rank.comm.size() - 1 } else { 0 };
        for (j, count) in counts.iter().enumerate() {
            let case = Case {
                root: if j % 2 == 0 { 0 } else { last },
                seed: j as u64,
                ..Case::new(collective, DataType::F32, op, *count)
            };
            case.check(rank, arena);
            // In place from the other root, off the type's alignment in turn.
            let shifts = if (i + j) % 2 == 0 { [0, 0] } else { [1, 6] };
            Case { root: last - case.root, shifts, ..case.in_place() }.check(rank, arena);
        }
    }
    if supported(Collective::Barrier) {
        rank.comm.on(&rank.stream).barrier().unwrap();
    }
}

fn flat() {
    for algorithm in Algorithm::ALL.into_iter().filter(|a| !a.one_sided() && !a.minds_hosts()) {
        for hosts in LAYOUTS {
            spread(hosts, &by(algorithm.name()), |rank| {
                let arena = Arena::new(rank, 256 << 10);
                every_collective(rank, &arena, Some(algorithm), &[0, 1, 1031, 5003]);
                rank.settle();
            });
        }
    }
}

/// Peer copies inside hosts and the network between them, in one schedule.
fn hierarchies() {
    for hosts in UNEVEN {
        for algorithm in [Some(Algorithm::Hierarchical), Some(Algorithm::Leaders), None] {
            spread(hosts, &by(algorithm.map_or("", Algorithm::name)), |rank| {
                let arena = Arena::new(rank, 512 << 10);
                every_collective(rank, &arena, algorithm, &[1, 700, 8003]);
                rank.settle();
            });
        }
    }
}

/// Many slots of the size they have by default.
fn defaults() {
    spread(&["a", "a", "b"], &Config::default(), |rank| {
        let arena = Arena::new(rank, 16 << 20);
        every_collective(rank, &arena, None, &[2, 600_011]);
        rank.settle();
    });
}

/// What one world after the other is: where ranks are, and by what they go.
const TURNS: [(&[&str], &str); 5] = [
    (&["a", "a", "b"], ""),
    (&["a", "b"], "ring,chain,pairwise,binomial"),
    (&["a", "b", "a", "b"], "hierarchical"),
    (&["a", "b", "c"], ""),
    (&["a", "a", "b", "c"], "direct"),
];

/// Each collective with each type and operation once out of place and once in place, dealt to the worlds in turn.
fn types() {
    let all: Vec<_> = DataType::ALL.into_iter().flat_map(|dtype| calls(dtype).map(move |call| (dtype, call))).collect();
    for (turn, (hosts, algorithms)) in TURNS.into_iter().enumerate() {
        spread(hosts, &by(algorithms), |rank| {
            let arena = Arena::new(rank, 128 << 10);
            for (i, (dtype, (collective, op))) in all.iter().enumerate() {
                let case = Case::new(*collective, *dtype, *op, [37, 700, 1501][i % 3]);
                let case = Case { root: if collective.is_rooted() { i % hosts.len() } else { 0 }, ..case };
                match (i + turn) % TURNS.len() {
                    0 => case.check(rank, &arena),
                    1 => case.in_place().check(rank, &arena),
                    _ => {}
                }
            }
            rank.settle();
        });
    }
}

fn variable_blocks() {
    for (turn, (hosts, algorithms)) in TURNS.into_iter().enumerate() {
        spread(hosts, &by(algorithms), |rank| {
            let arena = Arena::new(rank, 1 << 20);
            rank.settle();
            for seed in 0..4 {
                variable::every_collective(rank, &arena, (4 * turn + seed) as u64, seed % 2 == 1);
            }
            rank.settle();
        });
    }
}

/// Every rank is a host of its own.
fn tcp() {
    let mut config = by("");
    config.transport = TransportChoice::Tcp;
    spread(&["a"; 3], &config, |rank| {
        let arena = Arena::new(rank, 512 << 10);
        every_collective(rank, &arena, None, &[0, 1, 1031, 8003]);
        for dtype in DataType::ALL {
            let op = NamedOp::ALL.into_iter().find(|op| Operation::Collective(Collective::Scan).takes(*op, dtype));
            Case::new(Collective::Scan, dtype, op, 333).check(rank, &arena);
        }
        variable::every_collective(rank, &arena, 1, true);
        rank.settle();
    });
    // The same ranks share their memory unless they are told not to.
    let plan = |transport| {
        config.transport = transport;
        spread(&["a"; 3], &config, |rank| {
            let call = Call {
                collective: Collective::AllReduce,
                dtype: DataType::F32,
                count: 5003,
                op: ReduceOp::Sum,
                root: 0,
            };
            let said = rank.comm.on(&rank.stream).describe(&call, None).expect("a plan");
            rank.settle();
            said
        })
    };
    let [apart, near] = [TransportChoice::Tcp, TransportChoice::Auto].map(plan);
    let one_sided = |said: &String| Algorithm::ALL.iter().any(|a| a.one_sided() && said.starts_with(a.name()));
    assert!(!apart.iter().any(one_sided) && near.iter().all(one_sided), "{apart:?}, {near:?}");
    checked(6);
}

/// Seeds of the emulator under which commands run late, and streams are starved in turn.
fn late_streams() {
    for seed in 1..=4 {
        emulator().set("CHAOS", &seed.to_string());
        let (hosts, algorithms) = TURNS[seed as usize % TURNS.len()];
        spread(hosts, &by(algorithms), |rank| {
            let mut draws = Draws(seed);
            let arenas: Vec<Arena> = (0..4).map(|_| Arena::new(rank, 128 << 10)).collect();
            rank.settle();
            for _ in 0..12 {
                let case = |arena| chaos::case(&mut draws, hosts.len(), 1500).queue(rank, arena);
                let queued: Vec<_> = arenas.iter().map(case).collect();
                queued.iter().zip(&arenas).for_each(|(queued, arena)| queued.compare(rank, arena));
            }
            rank.settle();
        });
    }
}
