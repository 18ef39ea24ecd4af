//! The differential test: random sequences of everything, on Maypole and on plain loops, for as long as one likes.
//!
//! Ranks are threads with a communicator each, over shared memory, over TCP, and as if spread over hosts. All draw the
//! same steps from one seed: collectives of every kind, size (0 to 8 MiB), type, operation and root, on even and uneven
//! blocks, in place and not, by operations whose operands are several elements or that do not
//! commute, blocking, outstanding on streams, in communicators that come and go. Each rank checks
//! every
//! byte that it gets. At the end nothing may be left: no descriptor, no thread, no memory.
//!
//! `MAYPOLE_DIFFERENTIAL_SECONDS=600 cargo test --test differential -- --nocapture` runs it for 10 minutes;
//! `MAYPOLE_DIFFERENTIAL_SEED` repeats a run, `MAYPOLE_DIFFERENTIAL_ONLY` runs those whose name contains a text.

mod draws;
mod kept;
mod leaks;
mod operands;
mod program;
mod reference;
mod traffic;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use leaks::Held;
use maypole::config::TransportChoice;
use maypole::{Communicator, Config, UniqueId};
use program::Program;

/// How ranks are linked: what each says is its host.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Shm,
    Tcp,
    /// Rank r is on host r * 5 / 7 % hosts: uneven, not contiguous for most sizes.
    Hosts(usize),
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is {text}, not a number")))
}

/// Run `size` ranks for `time`; returns the number of steps.
fn run(layout: Layout, size: usize, seed: u64, time: Duration) -> u64 {
    let mut config = Config::default();
    config.timeout = Duration::from_secs(60);
    config.late = Duration::ZERO;
    if let Layout::Tcp = layout {
        config.transport = TransportChoice::Tcp;
    }
    let id = UniqueId::create(&config).expect("an id");
    let (rounds, stop, steps) = (Barrier::new(size), AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for rank in 0..size {
            let mut config = config.clone();
            if let Layout::Hosts(hosts) = layout {
                config.host = Some(format!("host {}", rank * 5 / 7 % hosts));
            }
            let (rounds, stop, steps, id) = (&rounds, &stop, &steps, &id);
            scope.spawn(move || {
                let world = Communicator::from_id(id, rank, size, config).unwrap_or_else(|e| panic!("{e}"));
                let mut program = Program::new(world, seed);
                loop {
                    for _ in 0..20 {
                        let step = std::panic::AssertUnwindSafe(|| program.step());
                        if let Err(panic) = std::panic::catch_unwind(step) {
                            // The other ranks would wait for this one: nothing is gained by going on.
                            eprintln!(
                                "{layout:?}, {size} ranks, MAYPOLE_DIFFERENTIAL_SEED={seed}: rank {rank} failed in {}",
                                program.step
                            );
                            let _ = panic;
                            std::process::exit(101);
                        }
                    }
                    if rank == 0 && began.elapsed() > time {
                        stop.store(true, Ordering::Relaxed);
                    }
                    rounds.wait();
                    if stop.load(Ordering::Relaxed) {
                        steps.store(program.steps, Ordering::Relaxed);
                        break;
                    }
                    rounds.wait();
                }
            });
        }
    });
    steps.into_inner()
}

#[test]
fn random_sequences_agree_with_plain_loops_and_leave_nothing_behind() {
    let seconds = setting("MAYPOLE_DIFFERENTIAL_SECONDS").unwrap_or(24);
    let seed = setting("MAYPOLE_DIFFERENTIAL_SEED");
    let layouts = [Layout::Shm, Layout::Tcp, Layout::Hosts(2), Layout::Hosts(3)];
    let cases: Vec<_> = layouts.iter().flat_map(|layout| [2, 3, 5, 8].map(|size| (*layout, size))).collect();
    let name = |(layout, size): &(Layout, usize)| format!("{layout:?} with {size} ranks");
    let only = std::env::var("MAYPOLE_DIFFERENTIAL_ONLY").unwrap_or_default();
    let cases: Vec<_> = cases.into_iter().filter(|case| name(case).contains(&only)).collect();
    assert!(!cases.is_empty(), "MAYPOLE_DIFFERENTIAL_ONLY={only} names none of the runs");
    let each = Duration::from_secs(seconds) / cases.len() as u32;
    // What is made once per process is not a leak.
    run(Layout::Tcp, 2, 1, Duration::ZERO);
    leaks::crowd();
    let before = Held::settled();
    let mut total = 0;
    for (layout, size) in cases {
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
            now.as_nanos() as u64
        });
        let began = Instant::now();
        let steps = run(layout, size, seed, each);
        total += steps;
        let name = name(&(layout, size));
        println!("{name}: {steps} steps in {:.1} s, seed {seed}", began.elapsed().as_secs_f64());
        Held::settled().compare(before, &name);
    }
    println!("{total} steps, no difference, nothing left behind");
}
