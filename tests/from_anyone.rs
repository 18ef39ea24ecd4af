//! Receives from whichever rank sends first: in the order of the calls, beside receives that name
//! their sender, whoever sends, leaves or dies.

mod ranks;

use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::{Communicator, Error, UniqueId, Verdict};
use nix::sys::signal::Signal;
use ranks::{Job, PATIENCE, common_verdict, config, role, say, threads, verdict};

const TRANSPORTS: [TransportChoice; 2] = [TransportChoice::Auto, TransportChoice::Tcp];
const TAG: u32 = 7;

/// What rank `from` sends as its message number `number`: who sends it and which it is, at any length.
fn payload(from: usize, number: usize) -> Vec<u32> {
    let count = [3, 20_000, 3, 200_000, 3][number % 5];
    (0..count).map(|i| (from * 1_000_003 + number * 7919 + i) as u32).collect()
}

/// Everybody sends to rank 0, which asks for no rank. What each sends has to have one length at a time.
fn everybody_to_one(comm: &Communicator) {
    const EACH: usize = 10;
    if comm.rank() > 0 {
        for number in 0..EACH {
            // One that nobody wants yet lies in front of it.
            comm.tag(1).send(&[number as u32], 0).unwrap();
            comm.tag(TAG + number as u32).send(&payload(comm.rank(), number), 0).unwrap();
        }
        return comm.barrier().unwrap();
    }
    for number in 0..EACH {
        let mut senders = Vec::new();
        for _ in 1..comm.size() {
            let mut got = vec![0; payload(0, number).len()];
            let sender = comm.tag(TAG + number as u32).recv_any(&mut got).unwrap();
            assert_eq!(got, payload(sender, number));
            senders.push(sender);
        }
        senders.sort_unstable();
        assert_eq!(senders, (1..comm.size()).collect::<Vec<_>>());
    }
    for from in 1..comm.size() {
        for number in 0..EACH {
            let mut kept = [0u32];
            comm.tag(1).recv(&mut kept, from).unwrap();
            assert_eq!(kept, [number as u32]);
        }
    }
    comm.barrier().unwrap();
}

#[test]
fn whoever_sends_is_received_from() {
    for transport in TRANSPORTS {
        for size in [2, 4] {
            threads(size, &config(transport), |comm| (0..3).for_each(|_| everybody_to_one(&comm)));
        }
    }
    // Through shared memory and TCP at once.
    let id = UniqueId::create(&config(TransportChoice::Auto)).unwrap();
    std::thread::scope(|s| {
        for (rank, host) in ["a", "b", "a"].into_iter().enumerate() {
            let mut config = config(TransportChoice::Auto);
            config.host = Some(host.to_string());
            s.spawn(move || everybody_to_one(&Communicator::from_id(&id, rank, 3, config).unwrap()));
        }
    });
}

#[test]
fn a_message_goes_to_the_earliest_receive_that_it_fits() {
    for transport in TRANSPORTS {
        threads(3, &config(transport), |comm| {
            if comm.rank() > 0 {
                comm.barrier().unwrap();
                // Rank 2 when what rank 1 has sent was received.
                if comm.rank() == 2 {
                    comm.barrier().unwrap();
                }
                for number in 0..4u32 {
                    comm.tag(TAG).send(&[comm.rank() as u32, number], 0).unwrap();
                }
                if comm.rank() == 1 {
                    comm.barrier().unwrap();
                }
                return;
            }
            let mut got = [[9u32; 2]; 8];
            maypole::scope(|s| {
                let start = comm.start(s).tag(TAG);
                let [a, b, c, d, e, f, g, h] = &mut got;
                // Named receives have their places among the others.
                let from_1 = [start.recv(b, 1).unwrap(), start.recv(c, 1).unwrap()];
                let first = [start.recv_any(a).unwrap(), start.recv_any(d).unwrap()];
                let from_2 = [start.recv(e, 2).unwrap(), start.recv(f, 2).unwrap()];
                let last = [start.recv_any(g).unwrap(), start.recv_any(h).unwrap()];
                assert!(first.iter().chain(&last).all(|request| request.source().is_none()));
                comm.barrier().unwrap();
                maypole::wait_all(from_1.iter().chain(&first)).unwrap();
                assert_eq!([first[0].source(), first[1].source()], [Some(1), Some(1)]);
                assert_eq!([from_1[0].source(), last[0].source()], [None, None]);
                comm.barrier().unwrap();
                maypole::wait_all(from_2.iter().chain(&last)).unwrap();
                assert_eq!([last[0].source(), last[1].source()], [Some(2), Some(2)]);
            });
            let expected = [[1, 2], [1, 0], [1, 1], [1, 3], [2, 0], [2, 1], [2, 2], [2, 3]];
            assert_eq!(got, expected);
        });
    }
}

#[test]
fn it_comes_while_its_receiver_does_something_else() {
    for transport in TRANSPORTS {
        threads(2, &config(transport), |comm| {
            let large: Vec<u32> = (0..3_000_000).collect();
            if comm.rank() == 1 {
                // The first without the receiver's being there, the second when it has posted.
                comm.send(&[5u32], 0).unwrap();
                comm.barrier().unwrap();
                comm.send(&large, 0).unwrap();
                return comm.barrier().unwrap();
            }
            let mut got = vec![0; large.len()];
            let mut word = [0u32];
            maypole::scope(|s| {
                let small = comm.start(s).recv_any(&mut word).unwrap();
                let request = comm.start(s).recv_any(&mut got).unwrap();
                comm.barrier().unwrap();
                // The sender comes here when all of it is taken, and nobody waits for it before.
                comm.barrier().unwrap();
                assert_eq!((small.source(), request.source()), (Some(1), Some(1)));
                assert_eq!(small.wait().unwrap(), [5]);
                request.wait().unwrap();
            });
            assert_eq!(got, large);
        });
    }
}

#[test]
fn who_has_just_been_served_comes_last() {
    for transport in TRANSPORTS {
        threads(4, &config(transport), |comm| {
            const EACH: u64 = 5;
            for number in 0..EACH {
                if comm.rank() > 0 {
                    comm.tag(TAG).send(&[number], 0).unwrap();
                }
            }
            // Over TCP what was sent may still be on its way, and what has not come has no turn.
            comm.barrier().unwrap();
            if comm.rank() == 0 {
                let mut numbers = [0u64; 4];
                for taken in 0..3 * EACH {
                    let mut got = [0u64];
                    let sender = comm.tag(TAG).recv_any(&mut got).unwrap();
                    assert_eq!(got[0], numbers[sender]);
                    numbers[sender] += 1;
                    if transport == TransportChoice::Auto {
                        assert_eq!(numbers[1..].iter().max().unwrap(), &(taken / 3 + 1), "{numbers:?}");
                    }
                }
                assert_eq!(numbers, [0, EACH, EACH, EACH]);
            }
            comm.barrier().unwrap();
        });
    }
}

#[test]
fn from_itself_too() {
    for size in [1, 2] {
        threads(size, &config(TransportChoice::Auto), |comm| {
            let me = comm.rank();
            let (sent, mut got, mut more) = ([7u8, 8], [0u8; 2], [0u8; 2]);
            maypole::scope(|s| {
                let start = comm.start(s).tag(TAG);
                let expected = start.recv_any(&mut got).unwrap();
                // The one is expected, so nobody waits for ever.
                comm.tag(TAG).send(&sent, me).unwrap();
                assert_eq!((expected.source(), expected.wait().unwrap()), (Some(me), &mut [7, 8][..]));
                let posted = start.send(&sent, me).unwrap();
                assert_eq!(comm.tag(TAG).recv_any(&mut more).unwrap(), me);
                posted.wait().unwrap();
            });
            if size == 1 {
                let error = comm.tag(TAG).recv_any(&mut [0u8]).unwrap_err();
                assert!(matches!(&error, Error::Argument { what, .. } if what.contains("tag 7")), "{error}");
            }
        });
    }
}

#[test]
fn what_does_not_fit_is_shown() {
    for transport in TRANSPORTS {
        for sent_first in [true, false] {
            let errors = threads(3, &config(transport), |comm| {
                if comm.rank() == 1 && sent_first {
                    comm.tag(TAG).send(&[1u64; 5], 0).unwrap();
                }
                // The verdict may come before a rank that is late has left the first barrier.
                let outcome = comm.barrier().and_then(|()| match comm.rank() {
                    0 => comm.tag(TAG).recv_any(&mut [0u64; 4]).map(|_| ()),
                    1 if !sent_first => comm.tag(TAG).send(&[1u64; 5], 0),
                    _ => Ok(()),
                });
                outcome.and_then(|()| comm.barrier()).unwrap_err()
            });
            let said = common_verdict(&errors);
            let Verdict::Mismatch { one: (0, ours), other: (1, theirs) } = &said else { panic!("{said}") };
            assert_eq!((ours.count, theirs.count, ours.tag()), (4, 5, TAG), "{said}");
        }
    }
}

#[test]
fn what_nobody_sends_ends_at_the_deadline() {
    for transport in TRANSPORTS {
        for other_tag in [false, true] {
            let mut config = config(transport);
            config.timeout = Duration::from_millis(300);
            let errors = threads(3, &config, |comm| {
                if comm.rank() == 2 && other_tag {
                    comm.tag(1).send(&[1u32; 4], 0).unwrap();
                }
                if comm.rank() > 0 {
                    while comm.verdict().is_none() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    return comm.barrier().unwrap_err();
                }
                let start = Instant::now();
                let error = comm.tag(9).recv_any(&mut [0u32; 4]).unwrap_err();
                let took = start.elapsed();
                assert!(took >= config.timeout && took < PATIENCE / 4, "{took:?}");
                error
            });
            let said = common_verdict(&errors);
            assert!(matches!(&said, Verdict::Stalled { reporter: 0, .. }), "{said}");
            let parts = match other_tag {
                true => ["from any rank to rank 0, tag 9", "missing: rank 2", "has tag 1"],
                false => ["from any rank to rank 0, tag 9", "rank 1 on host", "rank 2 on host"],
            };
            assert!(parts.iter().all(|part| said.to_string().contains(part)), "{said}");
        }
    }
}

#[test]
fn it_is_in_vain_once_all_others_have_left() {
    for transport in TRANSPORTS {
        let outcomes = threads(3, &config(transport), |comm| {
            comm.barrier().unwrap();
            match comm.rank() {
                0 => {
                    let mut word = [0u8];
                    assert_eq!(comm.recv_any(&mut word).unwrap(), 2);
                    Some(comm.recv_any(&mut word).unwrap_err())
                }
                1 => None,
                _ => {
                    // One has left, which is nothing to those who may still get something.
                    std::thread::sleep(Duration::from_millis(700));
                    comm.send(&[1u8], 0).unwrap();
                    None
                }
            }
        });
        let said = verdict(outcomes[0].as_ref().unwrap());
        assert!(matches!(said, Verdict::Died { rank: 1 | 2, .. }), "{said}");
        assert!(said.to_string().contains("as all others did"), "{said}");
    }
}

#[test]
fn a_death_ends_it_when_nothing_comes_any_more() {
    role(|role| {
        let comm = Communicator::from_env().unwrap();
        comm.barrier().unwrap();
        say("ready");
        if comm.rank() == 0 {
            let mut word = [0u8];
            match comm.recv_any(&mut word) {
                Ok(from) => say(format!("from {from}")),
                Err(error) => return say(error),
            }
            match comm.recv_any(&mut word) {
                Ok(from) => say(format!("and from {from}")),
                Err(error) => say(error),
            }
            return;
        }
        while comm.rank() == 1 && comm.verdict().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if comm.rank() == 1 && role == "one sends" {
            // Those who live may be slow.
            std::thread::sleep(Duration::from_millis(200));
            comm.send(&[1u8], 0).unwrap();
        }
        std::thread::sleep(PATIENCE);
    });
    let test = "a_death_ends_it_when_nothing_comes_any_more";
    for transport in ["shm", "tcp"] {
        for what in ["one sends", "all die"] {
            // An eighth of the deadline is how long nothing may come of those who live.
            let settings = [("MAYPOLE_TRANSPORT", transport), ("MAYPOLE_TIMEOUT", "24")];
            let mut job = Job::start(test, what, 3, &settings);
            job.hear(&[0, 1, 2]);
            std::thread::sleep(Duration::from_millis(100));
            job.signal(2, Signal::SIGKILL);
            if what == "all die" {
                job.signal(1, Signal::SIGKILL);
            }
            if what == "one sends" {
                assert_eq!(job.hear(&[0])[0].1, "from 1", "{transport}");
            }
            let line = &job.hear(&[0])[0].1;
            let blamed = line.contains("rank 2") || what == "all die" && line.contains("rank 1");
            assert!(blamed && line.contains("gone"), "{transport}, {what}: {line}");
            job.end(&[0]);
        }
    }
}
