//! Random traffic: threads of several ranks exchange messages in every way there is, all at once, with pauses in which
//! the others fall asleep, over every kind of link. Everything arrives whole and in its order.

mod ranks;

use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::{Communicator, Config, Pending, ReduceOp, Request, UniqueId};
use ranks::{config, threads};

/// How long each kind of link is exercised.
const LONG: Duration = Duration::from_millis(1500);
const THREADS: usize = 3;

/// The splitmix64 sequence.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// What rank `from`'s thread sends to `to` in a round: most small, some beyond what a link takes by itself.
fn message(thread: usize, round: usize, from: usize, to: usize) -> Vec<u32> {
    let seed = (thread * 1_000_003 + round * 7919 + from * 31 + to) as u64;
    let mut random = Random(seed);
    let count = match random.below(30) {
        0 => random.below(200_000),
        1..5 => random.below(20_000),
        _ => random.below(300),
    };
    (0..count).map(|i| (seed * 17 + i) as u32).collect()
}

/// One thread of one rank: rounds in which it sends to all others and receives from all of them, in a way of its own
/// choice each time.
fn exchange(comm: &Communicator, thread: usize, rounds: usize) {
    let (me, size) = (comm.rank(), comm.size());
    let others: Vec<usize> = (0..size).filter(|r| *r != me).collect();
    let tag = thread as u32;
    let mut random = Random((me * THREADS + thread) as u64);
    for round in 0..rounds {
        let sent: Vec<_> = others.iter().map(|to| message(thread, round, me, *to)).collect();
        let expected: Vec<_> = others.iter().map(|from| message(thread, round, *from, me)).collect();
        let mut got: Vec<Vec<u32>> = expected.iter().map(|message| vec![0; message.len()]).collect();
        let pairs = || others.iter().copied().zip(&sent);
        match random.below(6) {
            0 => comm
                .group(|g| {
                    pairs().for_each(|(to, message)| g.tag(tag).send(message, to));
                    others.iter().zip(&mut got).for_each(|(from, buffer)| g.recv(buffer, *from));
                    Ok(())
                })
                .unwrap(),
            1 => maypole::scope(|s| {
                let start = comm.start(s).tag(tag);
                let receives: Vec<_> =
                    others.iter().zip(&mut got).map(|(from, buffer)| start.recv(buffer, *from).unwrap()).collect();
                pairs().for_each(|(to, message)| comm.tag(tag).send(message, to).unwrap());
                maypole::wait_all(&receives).unwrap();
            }),
            2 => maypole::scope(|s| {
                let start = comm.start(s).tag(tag);
                let sends: Vec<_> = pairs().map(|(to, message)| start.send(message, to).unwrap()).collect();
                for (from, buffer) in others.iter().zip(&mut got).rev() {
                    comm.tag(tag).recv(buffer, *from).unwrap();
                }
                sends.into_iter().for_each(|send| _ = send.wait().unwrap());
            }),
            3 => maypole::scope(|s| {
                let start = comm.start(s).tag(tag);
                let mut requests: Vec<Request<'_, u32>> =
                    others.iter().zip(&mut got).map(|(from, buffer)| start.recv(buffer, *from).unwrap()).collect();
                requests.extend(pairs().map(|(to, message)| start.send(message, to).unwrap()));
                while let Some(next) = maypole::wait_any(&requests) {
                    requests.swap_remove(next).wait().unwrap();
                }
            }),
            4 => maypole::scope(|s| {
                let start = comm.start(s).tag(tag);
                let receives: Vec<_> =
                    others.iter().zip(&mut got).map(|(from, buffer)| start.recv(buffer, *from).unwrap()).collect();
                let sends: Vec<_> = pairs().map(|(to, message)| start.send(message, to).unwrap()).collect();
                while !receives.iter().chain(&sends).all(|request| request.is_done()) {
                    std::thread::yield_now();
                }
            }),
            _ => maypole::scope(|s| {
                let start = comm.start(s).tag(tag);
                // Nobody waits for any of them but the scope.
                others.iter().zip(&mut got).for_each(|(from, buffer)| {
                    std::mem::forget(start.recv(buffer, *from).unwrap());
                });
                pairs().for_each(|(to, message)| std::mem::forget(start.send(message, to).unwrap()));
            }),
        }
        assert!(got == expected, "rank {me}, thread {thread}, round {round}");
        match random.below(40) {
            0 => std::thread::sleep(Duration::from_micros(random.below(9000))),
            1..6 => std::thread::sleep(Duration::from_micros(random.below(300))),
            _ => {}
        }
    }
}

/// All threads of a rank, while another one does collectives, for a while that all ranks agree on.
fn traffic(comm: &Communicator) {
    let begun = Instant::now();
    for batch in 0.. {
        let mut over = [u8::from(begun.elapsed() > LONG)];
        comm.broadcast(&mut over, 0).unwrap();
        if over == [1] {
            println!("{batch} batches");
            break;
        }
        std::thread::scope(|s| {
            for thread in 0..THREADS {
                s.spawn(move || exchange(comm, batch * THREADS + thread, 20));
            }
            s.spawn(|| {
                for count in [1, 3000, 100_000] {
                    let mut ones = vec![1i32; count];
                    comm.all_reduce_in_place(&mut ones, ReduceOp::Sum).unwrap();
                    assert!(ones.iter().all(|x| *x == comm.size() as i32));
                }
            });
        });
    }
}

#[test]
fn random_traffic_through_shared_memory() {
    threads(3, &config(TransportChoice::Auto), |comm| traffic(&comm));
}

#[test]
fn random_traffic_over_tcp() {
    threads(3, &config(TransportChoice::Tcp), |comm| traffic(&comm));
}

#[test]
fn random_traffic_through_both() {
    let id = UniqueId::create(&Config::default()).unwrap();
    std::thread::scope(|s| {
        for (rank, host) in ["a", "b", "a"].into_iter().enumerate() {
            let mut config = config(TransportChoice::Auto);
            config.host = Some(host.to_string());
            s.spawn(move || traffic(&Communicator::from_id(&id, rank, 3, config).unwrap()));
        }
    });
}
