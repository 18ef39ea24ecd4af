//! What a communicator costs to make and to keep. The ranks are processes started by `maypole run`; each is this test
//! binary again, told by a variable to run only [`rank`].

use std::process::Command;
use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::{Communicator, Config, ReduceOp};

/// Resident memory of this process, bytes, shared pages included.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: usize = statm.split_whitespace().nth(1).expect("its second field").parse().expect("a number");
    pages * 4096
}

/// One rank: prints how long the communicator took to make, and by how much it made the process grow once every
/// collective has run.
#[test]
fn rank() {
    if std::env::var_os("MAYPOLE_TEST_RANK").is_none() {
        return; // the parent tests below start it
    }
    const COUNT: usize = 1 << 18;
    let size: usize = std::env::var("WORLD_SIZE").expect("set by maypole run").parse().expect("a number");
    let input = vec![1.0f32; COUNT * size];
    let mut output = vec![0.0f32; COUNT * size];
    output.fill(1.0);
    let before = resident();
    let start = Instant::now();
    let comm = Communicator::from_env().expect("a world");
    let made = start.elapsed();
    let mine = comm.rank() * COUNT..(comm.rank() + 1) * COUNT;
    if size <= 4 {
        let (one, all) = (&input[..COUNT], &mut output[..]);
        comm.all_reduce(one, &mut all[..COUNT], ReduceOp::Sum).unwrap();
        comm.all_gather(one, all).unwrap();
        comm.reduce_scatter(&input, &mut all[mine], ReduceOp::Sum).unwrap();
        comm.all_to_all(&input, all).unwrap();
        comm.broadcast(&mut all[..COUNT], 0).unwrap();
        comm.reduce_in_place(&mut all[..COUNT], ReduceOp::Sum, 0).unwrap();
    }
    comm.barrier().unwrap();
    println!("made {} us, grew {} bytes", made.as_micros(), resident().saturating_sub(before));
}

/// Start `ranks` ranks; the longest time to make the communicator and the most memory, over ranks.
fn measure(ranks: usize) -> (Duration, usize) {
    let output = Command::new(env!("CARGO_BIN_EXE_maypole"))
        .args(["run", "-n", &ranks.to_string(), "--"])
        .arg(std::env::current_exe().expect("this binary"))
        .args(["--exact", "rank", "--nocapture"])
        .env("MAYPOLE_TEST_RANK", "1")
        .output()
        .expect("maypole run starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let figures: Vec<(u64, usize)> = text
        .lines()
        .filter_map(|line| {
            let (made, grew) = line.split_once("made ")?.1.split_once(" us, grew ")?;
            Some((made.parse().ok()?, grew.split(' ').next()?.parse().ok()?))
        })
        .collect();
    assert_eq!(figures.len(), ranks, "{text}");
    let made = figures.iter().map(|f| f.0).max().expect("at least one rank");
    let grew = figures.iter().map(|f| f.1).max().expect("at least one rank");
    println!("{ranks} ranks: made within {made} us, {:.1} MiB a rank", grew as f64 / (1 << 20) as f64);
    (Duration::from_micros(made), grew)
}

/// The best of five, since ranks start one after the other and the first waits for the last.
fn quickest(ranks: usize) -> Duration {
    (0..5).map(|_| measure(ranks).0).min().expect("five")
}

#[test]
fn two_ranks_meet_within_20_ms() {
    assert!(quickest(2) < Duration::from_millis(20));
}

#[test]
fn thirty_two_ranks_meet_within_a_second() {
    assert!(quickest(32) < Duration::from_secs(1));
}

#[test]
fn four_ranks_take_less_than_16_mib_each() {
    let (_, grew) = measure(4);
    assert!(grew < 16 << 20, "{grew} bytes");
}

/// Buffers of links over TCP are large, and many communicators come and go: what they took is given back.
#[test]
fn the_memory_of_tcp_links_is_given_back() {
    const RANKS: usize = 4;
    const CHILDREN: usize = 12;
    let mut config = Config::default();
    config.transport = TransportChoice::Tcp;
    let round = || {
        let world = Communicator::threads_with(RANKS, config.clone()).expect("a world");
        std::thread::scope(|scope| {
            for comm in world {
                scope.spawn(move || {
                    let children: Vec<Communicator> =
                        (0..CHILDREN).map(|_| comm.duplicate().expect("a child")).collect();
                    for child in &children {
                        let (mine, mut all) = (vec![1u8; 64 * RANKS], vec![0u8; 64 * RANKS]);
                        child.all_to_all(&mine, &mut all).expect("an exchange");
                    }
                });
            }
        });
        resident()
    };
    let before = resident();
    let after: Vec<usize> = (0..4).map(|_| round()).collect();
    println!("from {before} bytes to {after:?}");
    // Links of 2.25 MiB, two for each pair and child: 648 MiB if all of it were resident.
    let grew = after.iter().map(|after| after.saturating_sub(before)).max().expect("four rounds");
    assert!(grew < 64 << 20, "{grew} bytes");
}
