//! What hierarchical algorithms send over each host's network link, against the least that is possible, and how many
//! messages cross the network one after the other.

use maypole_collectives::Hosts;
use maypole_collectives::algorithms::{Algorithm, schedule};
use maypole_collectives::schedule::{Collective, Place, Rank, Schedule, Step};
use maypole_collectives::verify::layouts;
use std::collections::HashMap;
use std::sync::Arc;

/// Chunks that each host sends to and receives from others in a round, and the pieces of a block.
struct Traffic {
    out: Vec<usize>,
    into: Vec<usize>,
    pieces: usize,
}

fn sends(step: &Step) -> Option<(Rank, usize)> {
    match *step {
        Step::Send { to, src } => Some((to, src.len)),
        Step::RecvReduceSend { to, local, .. } => Some((to, local.len)),
        Step::RecvCopySend { to, dst, .. } => Some((to, dst.len)),
        _ => None,
    }
}

fn receives(step: &Step) -> Option<Rank> {
    match *step {
        Step::Recv { from, .. }
        | Step::RecvReduce { from, .. }
        | Step::RecvReduceSend { from, .. }
        | Step::RecvCopySend { from, .. } => Some(from),
        _ => None,
    }
}

fn build(algorithm: Algorithm, collective: Collective, hosts: &Arc<Hosts>, root: Rank) -> Vec<Box<dyn Schedule>> {
    let size = hosts.size();
    let place = |rank| Place { rank, size, root };
    (0..size).map(|rank| schedule(algorithm, collective, place(rank), hosts).expect("supported")).collect()
}

fn traffic(algorithm: Algorithm, collective: Collective, hosts: &Arc<Hosts>, root: Rank) -> Traffic {
    let schedules = build(algorithm, collective, hosts, root);
    let mut traffic =
        Traffic { out: vec![0; hosts.count()], into: vec![0; hosts.count()], pieces: schedules[0].pieces() };
    for (rank, schedule) in schedules.iter().enumerate() {
        for lane in 0..schedule.lanes() {
            for step in (0..schedule.steps(lane)).map(|i| schedule.step(lane, i)) {
                if let Some((to, chunks)) = sends(&step)
                    && hosts.host(to) != hosts.host(rank)
                {
                    traffic.out[hosts.host(rank)] += chunks;
                    traffic.into[hosts.host(to)] += chunks;
                }
            }
        }
    }
    traffic
}

/// Every layout of the verifier, and more that are common.
fn worlds() -> Vec<Arc<Hosts>> {
    let mut worlds: Vec<Arc<Hosts>> = (2..=24).flat_map(layouts).collect();
    for ranks in [&[2, 2][..], &[3, 1], &[4, 2, 1], &[2, 2, 2, 2], &[8, 8, 8, 8], &[1, 1, 6], &[5, 5, 4, 5]] {
        worlds.push(Arc::new(Hosts::new(ranks.iter().enumerate().flat_map(|(host, n)| std::iter::repeat_n(host, *n)))));
    }
    worlds.retain(|hosts| hosts.count() > 1 && hosts.count() < hosts.size());
    worlds
}

/// 2(h-1)/h of the buffer out of each host and into each, however many ranks it has.
#[test]
fn all_reduce_loads_every_link_with_the_least_possible() {
    for hosts in worlds() {
        let Traffic { out, into, pieces } = traffic(Algorithm::Hierarchical, Collective::AllReduce, &hosts, 0);
        let count = hosts.count();
        // In pieces, of which there is a whole number for each host.
        assert_eq!(pieces % count, 0);
        let least = 2 * (count - 1) * (pieces / count);
        assert!(
            out.iter().chain(&into).all(|&chunks| chunks == least),
            "{hosts}: {out:?} out, {into:?} in, not {least}"
        );
    }
}

/// The buffer once into each host but the root's, and at most once out of each; reduce the other way.
#[test]
fn broadcast_and_reduce_carry_the_buffer_once() {
    for hosts in worlds() {
        for root in 0..hosts.size() {
            let down = traffic(Algorithm::Hierarchical, Collective::Broadcast, &hosts, root);
            let up = traffic(Algorithm::Hierarchical, Collective::Reduce, &hosts, root);
            for host in 0..hosts.count() {
                let expected = if host == hosts.host(root) { 0 } else { down.pieces };
                assert_eq!((down.into[host], up.out[host]), (expected, expected), "{hosts}, root {root}, host {host}");
                assert!(down.out[host] <= down.pieces && up.into[host] <= up.pieces, "{hosts}, root {root}");
            }
        }
    }
}

/// Into each host what its ranks do not have, once. Reduce-scatter is the same backwards: out of each host one sum for
/// every rank elsewhere. All-to-all: each block once.
#[test]
fn collectives_with_a_block_for_each_rank_send_each_once() {
    for hosts in worlds() {
        let gather = traffic(Algorithm::Hierarchical, Collective::AllGather, &hosts, 0);
        let scatter = traffic(Algorithm::Hierarchical, Collective::ReduceScatter, &hosts, 0);
        let exchange = traffic(Algorithm::Hierarchical, Collective::AllToAll, &hosts, 0);
        for host in 0..hosts.count() {
            let (here, elsewhere) = (hosts.on(host), hosts.size() - hosts.on(host));
            assert_eq!((gather.into[host], scatter.out[host]), (elsewhere, elsewhere), "{hosts}, host {host}");
            assert_eq!((exchange.out[host], exchange.into[host]), (here * elsewhere, here * elsewhere), "{hosts}");
        }
    }
}

/// Flat algorithms load the links of hosts with several ranks more, where neighbours are on different hosts.
#[test]
fn a_flat_ring_over_ranks_dealt_round_hosts_sends_more() {
    let hosts = Arc::new(Hosts::new((0..8).map(|rank| rank % 4)));
    let flat = traffic(Algorithm::Ring, Collective::AllReduce, &hosts, 0);
    let hierarchical = traffic(Algorithm::Hierarchical, Collective::AllReduce, &hosts, 0);
    let blocks = |t: &Traffic| t.out[0] as f64 / t.pieces as f64;
    assert_eq!((blocks(&flat), blocks(&hierarchical)), (3.5, 1.5));
}

/// The longest chain of messages across the network, by letting each rank's steps run when what they wait for has come.
fn network_hops(algorithm: Algorithm, collective: Collective, hosts: &Arc<Hosts>, root: Rank) -> usize {
    let schedules = build(algorithm, collective, hosts, root);
    assert!(schedules.iter().all(|s| s.lanes() == 1));
    let mut at = vec![0; schedules.len()];
    let mut hops = vec![0; schedules.len()];
    let mut sent: HashMap<(Rank, Rank), std::collections::VecDeque<usize>> = HashMap::new();
    loop {
        let mut moved = false;
        for rank in 0..schedules.len() {
            while at[rank] < schedules[rank].steps(0) {
                let step = schedules[rank].step(0, at[rank]);
                if let Some(from) = receives(&step) {
                    let Some(depth) = sent.get_mut(&(from, rank)).and_then(|queue| queue.pop_front()) else { break };
                    hops[rank] = hops[rank].max(depth + (hosts.host(from) != hosts.host(rank)) as usize);
                }
                if let Some((to, _)) = sends(&step) {
                    sent.entry((rank, to)).or_default().push_back(hops[rank]);
                }
                at[rank] += 1;
                moved = true;
            }
        }
        if !moved {
            assert!((0..at.len()).all(|rank| at[rank] == schedules[rank].steps(0)), "stuck");
            return hops.into_iter().max().unwrap_or(0);
        }
    }
}

/// A message crosses the network about log2 h times; for all-reduce and reduce-scatter two more where h is no power of
/// two, as in `recursive_doubling`.
#[test]
fn leaders_need_few_hops_across_the_network() {
    for hosts in worlds() {
        let log = hosts.count().next_power_of_two().ilog2() as usize;
        let (down, folding) = (hosts.count().ilog2() as usize, if hosts.count().is_power_of_two() { 0 } else { 2 });
        for collective in Collective::ALL.into_iter().filter(|&c| Algorithm::Leaders.supports(c)) {
            let root = hosts.size() - 1;
            let most = match collective {
                Collective::AllReduce | Collective::ReduceScatter => down + folding,
                _ => log,
            };
            let hops =
                network_hops(Algorithm::Leaders, collective, &hosts, if collective.is_rooted() { root } else { 0 });
            assert!(hops <= most, "{} on {hosts}: {hops} hops, not {most}", collective.name());
        }
    }
}
