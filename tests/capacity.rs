//! Worlds that are large for what the settings give their links and publications: every operation fits all the same.

mod ranks;

use maypole::config::TransportChoice;
use maypole::{Config, ReduceOp};
use ranks::{config, threads};

/// Settings with `name` at `value` and an algorithm, where the tuner is not to choose.
fn with(name: &str, value: &str, algorithm: &str) -> Config {
    let mut config = config(TransportChoice::Auto);
    config.set(name, value).unwrap();
    config.set("MAYPOLE_ALGORITHM", algorithm).unwrap();
    config
}

/// Every collective whose messages have a chunk for each rank, on blocks of `n` bytes.
fn everything(size: usize, config: &Config, n: usize) {
    threads(size, config, |comm| {
        let me = comm.rank();
        let of = |from: usize, to: usize, i: usize| (from * 31 + to * 7 + i) as u8;
        let row = |from: usize| (0..size * n).map(move |i| of(from, i / n, i % n)).collect::<Vec<u8>>();
        let column = |to: usize| (0..size * n).map(move |i| of(i / n, to, i % n)).collect::<Vec<u8>>();
        let mut all = vec![0; size * n];
        let mut one = vec![0; n];

        comm.all_to_all(&row(me), &mut all).unwrap();
        assert_eq!(all, column(me), "all_to_all");
        comm.all_gather(&row(me)[..n], &mut all).unwrap();
        assert_eq!(all, column(0), "all_gather");
        comm.reduce_scatter(&row(me), &mut one, ReduceOp::Sum).unwrap();
        let sum = |to: usize| (0..n).map(move |i| (0..size).fold(0u8, |sum, from| sum.wrapping_add(of(from, to, i))));
        assert!(one.iter().copied().eq(sum(me)), "reduce_scatter");
        comm.all_reduce(&row(me)[..n], &mut one, ReduceOp::Sum).unwrap();
        assert!(one.iter().copied().eq(sum(0)), "all_reduce");
        one.copy_from_slice(&row(me)[..n]);
        comm.broadcast(&mut one, size - 1).unwrap();
        assert_eq!(one, row(size - 1)[..n], "broadcast");
        let root = size / 2;
        comm.scatter(&row(root)[..if me == root { size * n } else { 0 }], &mut one, root).unwrap();
        assert_eq!(one, row(root)[me * n..][..n], "scatter");
        comm.gather(&row(me)[..n], &mut all[..if me == root { size * n } else { 0 }], root).unwrap();
        assert!(me != root || all == column(0), "gather");
    });
}

#[test]
fn publications_with_a_chunk_for_each_of_65_ranks() {
    for algorithm in ["", "one_shot", "two_shot"] {
        for n in [1, 100] {
            everything(65, &with("MAYPOLE_WINDOW", "4096", algorithm), n);
        }
    }
}

#[test]
fn messages_with_a_chunk_for_every_second_of_130_ranks() {
    // Each rank sends such a message before it takes in another's: a link that does not hold it holds up all.
    everything(130, &with("MAYPOLE_RING", "4096", "bruck"), 64);
}

#[test]
fn children_have_room_for_their_own_size() {
    let config = with("MAYPOLE_WINDOW", "4096", "one_shot");
    threads(70, &config, |comm| {
        let child = comm.split(Some((comm.rank() < 66) as u32), 0).unwrap().unwrap();
        let (me, size) = (child.rank(), child.size());
        let mut all = vec![0; size];
        child.all_to_all(&vec![me as u8; size], &mut all).unwrap();
        assert!(all.iter().enumerate().all(|(from, byte)| *byte as usize == from));
    });
}
