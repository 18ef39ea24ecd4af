//! What communicators took is given back, by operations that are over and when they end. Ranks are
//! threads of this process, whose resident memory is looked at.

mod ranks;

use std::sync::{Barrier, Mutex, PoisonError};

use maypole::Communicator;
use maypole::config::TransportChoice;
use ranks::{config, threads};

const MIB: usize = 1 << 20;

/// Each test measures the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// Resident memory of this process, bytes, shared pages included.
fn resident() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("Linux");
    let rss = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).expect("listed");
    let kib: usize = rss.split_whitespace().next().and_then(|rss| rss.parse().ok()).expect("a number");
    kib << 10
}

/// By how much each of `rounds` leaves the process larger than it is now, in MiB.
fn growth(rounds: usize, round: impl Fn() -> usize) -> Vec<usize> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = resident();
    let grew: Vec<usize> = (0..rounds).map(|_| round().saturating_sub(before) / MIB).collect();
    println!("from {} MiB by {grew:?}", before / MIB);
    grew
}

/// Buffers of links over TCP are large, and many communicators come and go.
#[test]
fn the_memory_of_tcp_links_is_given_back() {
    const RANKS: usize = 4;
    const CHILDREN: usize = 12;
    let grew = growth(4, || {
        threads(RANKS, &config(TransportChoice::Tcp), |comm| {
            let children: Vec<Communicator> = (0..CHILDREN).map(|_| comm.duplicate().expect("a child")).collect();
            for child in &children {
                let (mine, mut all) = (vec![1u8; 64 * RANKS], vec![0u8; 64 * RANKS]);
                child.all_to_all(&mine, &mut all).expect("an exchange");
            }
        });
        resident()
    });
    assert!(grew.iter().all(|mib| *mib < 24), "{grew:?} MiB");
}

/// An exchange in place copies all of its input first. That is over when the operation is.
#[test]
fn scratch_memory_is_given_back_when_it_was_much() {
    const RANKS: usize = 2;
    const BYTES: usize = 48 * MIB;
    let met = Barrier::new(RANKS);
    let grew = growth(2, || {
        let after = threads(RANKS, &config(TransportChoice::Auto), |comm| {
            let mut blocks = vec![comm.rank() as u8; RANKS * BYTES];
            comm.all_to_all_in_place(&mut blocks).unwrap();
            assert!((0..RANKS).all(|from| blocks[from * BYTES] == from as u8));
            drop(blocks);
            met.wait();
            let after = resident();
            met.wait();
            after
        });
        after.into_iter().max().unwrap()
    });
    // 192 MiB of copies. Windows and rings have what they have.
    assert!(grew.iter().all(|mib| *mib < 80), "{grew:?} MiB");
}
