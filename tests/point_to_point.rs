//! Messages between two ranks: any size, both ways at once, in order, beside collectives.

mod ranks;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::{Communicator, Error, ReduceOp, Verdict};
use nix::sys::signal::Signal;
use ranks::{Job, PATIENCE, common_verdict, config, role, say, threads, verdict};

const TRANSPORTS: [TransportChoice; 2] = [TransportChoice::Auto, TransportChoice::Tcp];

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
fn who_has_sent_is_told_by_tag() {
    const TAG: u32 = 7;
    for transport in TRANSPORTS {
        threads(3, &config(transport), |comm| {
            if comm.rank() != 0 {
                // One with another tag comes first; the other rank has nothing for it.
                comm.tag(1).send(&[0u32; 5], 0).unwrap();
                comm.tag(TAG).send(&payload(comm.rank(), 0, 1000), 0).unwrap();
                return comm.barrier().unwrap();
            }
            let mut from = Vec::new();
            while from.len() < 2 {
                let start = Instant::now();
                let sender = loop {
                    if let Some(sender) = comm.sender(TAG).unwrap() {
                        break sender;
                    }
                    assert!(start.elapsed() < PATIENCE, "nobody has sent");
                    std::thread::yield_now();
                };
                let mut got = vec![0; 1000];
                comm.tag(TAG).recv(&mut got, sender).unwrap();
                assert_eq!(got, payload(sender, 0, 1000));
                from.push(sender);
            }
            from.sort_unstable();
            assert_eq!(from, [1, 2]);
            assert_eq!(comm.sender(TAG).unwrap(), None);
            for from in [1, 2] {
                let mut kept = [1u32; 5];
                comm.tag(1).recv(&mut kept, from).unwrap();
                assert_eq!(kept, [0; 5]);
            }
            comm.barrier().unwrap();
        });
    }
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

/// A shuffled `0..n` that everybody gets alike.
fn shuffled(n: usize, mut seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(i, (seed >> 33) as usize % (i + 1));
    }
    order
}

#[test]
fn tags_are_received_in_any_order_and_each_in_its_own() {
    for transport in TRANSPORTS {
        threads(2, &config(transport), |comm| {
            for seed in 0..6 {
                // Three messages of each tag, in a shuffled order; received in another. The lengths go beyond what a
                // link takes without a receiver.
                let (tags, each) = (8, 3);
                let count = |tag: usize, nth: usize| COUNTS[(tag * each + nth) % COUNTS.len()] / 2;
                let mut seen = vec![0; tags];
                for message in shuffled(tags * each, seed) {
                    let tag = message % tags;
                    let nth = seen[tag];
                    seen[tag] += 1;
                    if comm.rank() == 0 {
                        let sent = payload(tag, nth, count(tag, nth));
                        comm.tag(tag as u32 * 1000).send(&sent, 1).unwrap();
                    }
                }
                let mut seen = vec![0; tags];
                for message in shuffled(tags * each, seed + 100) {
                    let tag = message % tags;
                    let nth = seen[tag];
                    seen[tag] += 1;
                    if comm.rank() == 1 {
                        let mut got = vec![0; count(tag, nth)];
                        comm.tag(tag as u32 * 1000).recv(&mut got, 0).unwrap();
                        assert_eq!(got, payload(tag, nth, got.len()), "seed {seed}, tag {tag}, message {nth}");
                    }
                }
            }
            comm.barrier().unwrap();
        });
    }
}

#[test]
fn a_small_message_needs_no_receiver_not_even_the_first() {
    for transport in TRANSPORTS {
        threads(3, &config(transport), |comm| {
            // The ranks that receive are not in a call for messages when the others send, in either direction.
            let (me, size) = (comm.rank(), comm.size());
            for to in (0..size).filter(|r| *r != me) {
                comm.send(&payload(me, to, 100), to).unwrap();
            }
            comm.barrier().unwrap();
            for from in (0..size).filter(|r| *r != me) {
                let mut got = [0; 100];
                comm.recv(&mut got, from).unwrap();
                assert_eq!(got[..], payload(from, me, 100));
            }
        });
    }
}

#[test]
fn messages_and_collectives_never_wait_for_each_other() {
    for transport in TRANSPORTS {
        threads(2, &config(transport), |comm| {
            // Rank 1 answers from a thread of its own, while its other thread waits in a collective that rank 0 joins
            // only after the answer.
            std::thread::scope(|s| {
                if comm.rank() == 1 {
                    s.spawn(|| comm.barrier().unwrap());
                }
                for round in 0..50 {
                    let mut got = vec![0; 1 + 5000 * round];
                    if comm.rank() == 0 {
                        comm.send(&payload(0, round, got.len()), 1).unwrap();
                        comm.recv(&mut got, 1).unwrap();
                        assert_eq!(got, payload(1, round, got.len()));
                    } else {
                        comm.recv(&mut got, 0).unwrap();
                        assert_eq!(got, payload(0, round, got.len()));
                        comm.send(&payload(1, round, got.len()), 0).unwrap();
                    }
                }
                if comm.rank() == 0 {
                    comm.barrier().unwrap();
                }
            });
        });
    }
}

#[test]
fn threads_of_one_rank_share_the_work() {
    for transport in TRANSPORTS {
        threads(2, &config(transport), |comm| {
            let other = 1 - comm.rank();
            std::thread::scope(|s| {
                for thread in 0..5 {
                    let comm = comm.tag(thread as u32);
                    let me = 1 - other;
                    s.spawn(move || {
                        for round in 0..200 {
                            // Now and then a large one, and now and then a pause that lets the others fall asleep.
                            let count =
                                if (round + thread) % 50 == 0 { 300_000 } else { 1 + (round * 37 + thread) % 900 };
                            let mut got = vec![0; count];
                            comm.send_recv(&payload(me + thread, round, count), other, &mut got, other).unwrap();
                            assert_eq!(got, payload(other + thread, round, count), "thread {thread}, round {round}");
                            if (round + 7 * thread) % 60 == 0 {
                                std::thread::sleep(Duration::from_millis(3));
                            }
                        }
                    });
                }
            });
            comm.barrier().unwrap();
        });
    }
}

#[test]
fn messages_to_itself_need_both_sides() {
    for transport in TRANSPORTS {
        threads(2, &config(transport), |comm| {
            let me = comm.rank();
            let refused = |error: Error| {
                assert!(
                    matches!(&error, Error::Argument { rank, what } if *rank == me && what.contains("itself")),
                    "{error}"
                );
            };
            refused(comm.tag(3).send(&[1u8], me).unwrap_err());
            refused(comm.recv(&mut [1u8], me).unwrap_err());
            // A thread that receives meanwhile, with another tag in between.
            let (mut first, mut second) = ([0u64; 3], vec![0u64; 100_000]);
            maypole::scope(|s| {
                let one = comm.start(s).tag(1).recv(&mut first, me).unwrap();
                let two = comm.start(s).tag(2).recv(&mut second, me).unwrap();
                refused(comm.send(&[1u64; 3], me).unwrap_err());
                comm.tag(2).send(&vec![5u64; 100_000], me).unwrap();
                comm.tag(1).send(&[4u64; 3], me).unwrap();
                assert_eq!(one.wait().unwrap(), [4; 3]);
                assert!(two.wait().unwrap().iter().all(|x| *x == 5));
                let sent = comm.start(s).send(&[8i8; 2], me).unwrap();
                let mut got = [0i8; 2];
                comm.recv(&mut got, me).unwrap();
                sent.wait().unwrap();
                assert_eq!(got, [8; 2]);
            });
        });
    }
}

#[test]
fn what_does_not_fit_is_shown_with_its_tag_and_wherever_it_was_found() {
    type Receive = fn(&Communicator) -> Result<(), Error>;
    let cases: [(&str, Receive); 4] = [
        ("when it arrives", |c| c.tag(7).recv(&mut [0f32; 5], 0)),
        ("type", |c| c.tag(7).recv(&mut [0i32; 3], 0)),
        ("in the stash", |c| {
            c.tag(8).recv(&mut [0f32; 2], 0)?;
            c.tag(7).recv(&mut [0f32; 5], 0)
        }),
        ("posted", |c| {
            let mut five = [0f32; 5];
            maypole::scope(|s| c.start(s).tag(7).recv(&mut five, 0)?.wait().map(|_| ()))
        }),
    ];
    for transport in TRANSPORTS {
        for (case, receive) in cases {
            let errors = threads(2, &config(transport), |comm| {
                let message = match comm.rank() {
                    0 => comm.tag(7).send(&[1f32; 3], 1).and_then(|()| comm.tag(8).send(&[2f32; 2], 1)),
                    _ => receive(&comm),
                };
                message.and_then(|()| comm.barrier()).expect_err("the message does not fit")
            });
            let said = common_verdict(&errors);
            assert!(matches!(said, Verdict::Mismatch { .. }), "{case}: {said}");
            let said = said.to_string();
            assert!(said.contains("3 x f32, from rank 0 to rank 1, tag 7"), "{case}: {said}");
        }
    }
}

#[test]
fn a_tag_that_never_comes_ends_at_the_deadline() {
    for transport in TRANSPORTS {
        let mut config = config(transport);
        config.timeout = Duration::from_millis(300);
        type Wait = fn(&Communicator) -> Result<(), Error>;
        let waits: [(&str, Wait); 3] = [
            ("recv", |c| c.tag(9).recv(&mut [0u32; 4], 0)),
            ("wait", |c| {
                let mut four = [0u32; 4];
                maypole::scope(|s| {
                    let request = c.start(s).tag(9).recv(&mut four, 0)?;
                    // The deadline is that of the wait.
                    std::thread::sleep(c.config().timeout * 3);
                    assert_eq!((request.test(), c.verdict()), (false, None));
                    request.wait().map(|_| ())
                })
            }),
            ("wait_any", |c| {
                let mut four = [0u32; 4];
                maypole::scope(|s| {
                    let request = c.start(s).tag(9).recv(&mut four, 0)?;
                    assert_eq!(maypole::wait_any([&request]), Some(0));
                    request.wait().map(|_| ())
                })
            }),
        ];
        for (what, wait) in waits {
            let done = Barrier::new(2);
            let errors = threads(2, &config, |comm| {
                if comm.rank() == 0 {
                    comm.tag(1).send(&[1u32; 4], 1).unwrap();
                    done.wait();
                    return comm.barrier().unwrap_err();
                }
                let start = Instant::now();
                let error = wait(&comm).unwrap_err();
                let took = start.elapsed();
                done.wait();
                assert!(took >= config.timeout && took < PATIENCE / 4, "{what}: {took:?}");
                error
            });
            let said = common_verdict(&errors);
            let Verdict::Stalled { operation, reporter: 1, .. } = &said else { panic!("{what}: {said}") };
            assert_eq!(operation.tag(), 9, "{what}: {said}");
            // Who looks for the mistake is told what did come.
            let parts = ["tag 9", "missing: rank 0", "nobody has received, has tag 1"];
            assert!(parts.iter().all(|part| said.to_string().contains(part)), "{what}: {said}");
        }
    }
}

#[test]
fn a_rank_that_leaves_or_aborts_ends_the_wait_for_its_messages() {
    for transport in TRANSPORTS {
        for aborts in [false, true] {
            let errors = threads(3, &config(transport), |comm| {
                comm.barrier().unwrap();
                if comm.rank() == 0 {
                    comm.tag(1).send(&[7u8; 30], 1).unwrap();
                    comm.tag(1).send(&[7u8; 30], 2).unwrap();
                    for from in [1, 2] {
                        comm.recv(&mut [0u8], from).unwrap();
                    }
                    if aborts {
                        comm.abort("that will do");
                    }
                    return None;
                }
                let (mut posted, mut got) = ([0u8; 3], [0u8; 30]);
                let error = maypole::scope(|s| {
                    let request = comm.start(s).tag(2).recv(&mut posted, 0).unwrap();
                    comm.tag(1).recv(&mut got, 0).unwrap();
                    assert_eq!(got, [7; 30]);
                    comm.send(&[0u8], 0).unwrap();
                    request.wait().unwrap_err()
                });
                assert_eq!(posted, [0; 3]);
                // And it stays so.
                assert_eq!(verdict(&comm.send(&[1u8], 0).unwrap_err()), verdict(&error));
                Some(error)
            });
            let said = common_verdict(&errors.into_iter().flatten().collect::<Vec<_>>());
            match aborts {
                true => assert!(matches!(said, Verdict::Aborted { rank: 0, .. }), "{said}"),
                false => assert!(matches!(said, Verdict::Died { rank: 0, .. }), "{said}"),
            }
        }
    }
}

#[test]
fn a_killed_process_ends_the_wait_for_its_messages() {
    role(|_| {
        let comm = Communicator::from_env().unwrap();
        comm.barrier().unwrap();
        say("ready");
        let mut got = [0u8; 30];
        let large = vec![1u8; 8 << 20];
        let error = maypole::scope(|s| {
            let sent = comm.start(s).tag(3).send(&large, 1).unwrap();
            let expected = comm.start(s).tag(2).recv(&mut got, 1).unwrap();
            let error = expected.wait().unwrap_err();
            assert_eq!(verdict(&sent.wait().unwrap_err()), verdict(&error));
            error
        });
        say(error);
    });
    for transport in ["shm", "tcp"] {
        let name = "a_killed_process_ends_the_wait_for_its_messages";
        let mut job = Job::start(name, "", 3, &[("MAYPOLE_TRANSPORT", transport)]);
        job.hear(&[0, 1, 2]);
        std::thread::sleep(Duration::from_millis(100));
        let killed = Instant::now();
        job.signal(1, Signal::SIGKILL);
        for (at, line) in job.hear(&[0, 2]) {
            assert!(line.contains("rank 1") && line.contains("gone"), "{line}");
            let took = at.saturating_duration_since(killed);
            println!("{transport}: {took:.1?}");
            assert!(took < PATIENCE / 4, "{took:?}");
        }
        job.end(&[0, 2]);
    }
}

#[test]
fn what_a_rank_sends_before_it_leaves_arrives() {
    for transport in TRANSPORTS {
        threads(2, &config(transport), |comm| {
            if comm.rank() == 0 {
                // The first goes to the stash, the second waits in the link.
                comm.tag(2).send(&payload(0, 2, 50_000), 1).unwrap();
                comm.tag(1).send(&payload(0, 1, 1000), 1).unwrap();
                return;
            }
            std::thread::sleep(Duration::from_millis(30));
            for (tag, count) in [(1, 1000), (2, 50_000)] {
                let mut got = vec![0; count];
                comm.tag(tag).recv(&mut got, 0).unwrap();
                assert_eq!(got, payload(0, tag as usize, count));
            }
        });
    }
}
