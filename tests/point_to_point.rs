//! Messages between two ranks: any size, both ways at once, in order, beside collectives.

mod ranks;

use std::time::Duration;

use maypole::config::TransportChoice;
use maypole::{Communicator, ReduceOp};
use ranks::{Job, config, role, say, threads};

/// Counts around the credit of links, and nothing at all.
const COUNTS: [usize; 9] = [0, 1, 3, 16, 17, 1000, 65_535, 65_537, 700_001];

fn payload(from: usize, message: usize, count: usize) -> Vec<u32> {
    (0..count).map(|i| (from * 1_000_003 + message * 7919 + i) as u32).collect()
}

fn check(comm: &Communicator) {
    let (me, size) = (comm.rank(), comm.size());
    let (right, left) = ((me + 1) % size, (me + size - 1) % size);
    // Rings of every size, all at once: nobody needs to go first.
    for (message, count) in COUNTS.into_iter().enumerate() {
        let mut got = vec![0; count];
        comm.send_recv(&payload(me, message, count), right, &mut got, left).unwrap();
        assert_eq!(got, payload(left, message, count), "{count} from rank {left}");
    }
    // Different counts each way.
    if me < 2 {
        let (mine, theirs) = if me == 0 { (700_001, 5) } else { (5, 700_001) };
        let mut got = vec![0; theirs];
        comm.send_recv(&payload(me, 0, mine), 1 - me, &mut got, 1 - me).unwrap();
        assert_eq!(got, payload(1 - me, 0, theirs));
    }
    // One way, small ones without waiting for the receiver, beside collectives that both take part in.
    for message in 0..50 {
        if me == 0 {
            comm.send(&payload(0, message, message), 1).unwrap();
        }
        comm.all_reduce_in_place(&mut [1.0f32; 700], ReduceOp::Sum).unwrap();
    }
    if me == 1 {
        for message in 0..50 {
            let mut got = vec![0; message];
            comm.recv(&mut got, 0).unwrap();
            assert_eq!(got, payload(0, message, message), "message {message} in its order");
        }
    }
    // Everybody to rank 0, taken in an order of its own.
    if me == 0 {
        for from in (1..size).rev() {
            let mut got = vec![0; 100_000];
            comm.recv(&mut got, from).unwrap();
            assert_eq!(got, payload(from, 9, 100_000));
        }
    } else {
        comm.send(&payload(me, 9, 100_000), 0).unwrap();
    }
    // With itself.
    let mut got = [0u32; 5];
    comm.send_recv(&[1, 2, 3, 4, me as u32], me, &mut got, me).unwrap();
    assert_eq!(got, [1, 2, 3, 4, me as u32]);
    comm.barrier().unwrap();
}

#[test]
fn messages_between_threads() {
    for size in [2, 3, 4] {
        threads(size, &config(TransportChoice::Auto), |comm| check(&comm));
    }
}

#[test]
fn messages_over_tcp() {
    for size in [2, 3] {
        threads(size, &config(TransportChoice::Tcp), |comm| check(&comm));
    }
}

#[test]
fn messages_over_several_connections() {
    let mut config = config(TransportChoice::Tcp);
    config.connections = 3;
    threads(2, &config, |comm| check(&comm));
}

#[test]
fn messages_between_processes() {
    role(|_| {
        check(&Communicator::from_env().unwrap());
        say("fine");
    });
    for transport in ["shm", "tcp"] {
        let mut job = Job::start("messages_between_processes", "", 3, &[("MAYPOLE_TRANSPORT", transport)]);
        assert!(job.hear(&[0, 1, 2]).iter().all(|(_, line)| line == "fine"));
        job.end(&[0, 1, 2]);
    }
}

#[test]
fn a_large_message_waits_for_its_receiver() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(2, &config(transport), |comm| {
            let mut large = vec![comm.rank() as u64; 4 << 20];
            if comm.rank() == 0 {
                comm.send(&large, 1).unwrap();
                large.fill(9);
            } else {
                std::thread::sleep(Duration::from_millis(50));
                comm.recv(&mut large, 0).unwrap();
                assert!(large.iter().all(|x| *x == 0), "the sender's buffer was not its own again too early");
            }
        });
    }
}
