//! Groups: any pattern of messages, collectives beside them, small all-reduces fused without a trace in the result,
//! and nothing run where something is wrong.

mod ranks;

use std::panic::{AssertUnwindSafe, catch_unwind};

use maypole::config::TransportChoice;
use maypole::{Communicator, Error, Operator, ReduceOp, Result, UserOp, Verdict};
use ranks::{Job, common_verdict, config, paths, role, say, threads};

const TRANSPORTS: [TransportChoice; 2] = [TransportChoice::Auto, TransportChoice::Tcp];
const SUM: ReduceOp = ReduceOp::Sum;

fn payload(from: usize, to: usize, count: usize) -> Vec<u32> {
    (0..count).map(|i| (from * 1_000_003 + to * 7919 + i) as u32).collect()
}

/// Everybody sends to everybody, large and small, all sends first.
fn all_pairs(comm: &Communicator) {
    let (me, size) = (comm.rank(), comm.size());
    let count = |from: usize, to: usize| [0, 5, 70_000, 400_000][(from + 2 * to) % 4];
    let sent: Vec<_> = (0..size).map(|to| payload(me, to, count(me, to))).collect();
    let mut got: Vec<_> = (0..size).map(|from| vec![0; count(from, me)]).collect();
    comm.group(|g| {
        // To itself too.
        for (to, buffer) in sent.iter().enumerate() {
            g.send(buffer, to);
        }
        for (from, buffer) in got.iter_mut().enumerate().rev() {
            g.recv(buffer, from);
        }
        Ok(())
    })
    .unwrap();
    for (from, got) in got.iter().enumerate() {
        assert_eq!(*got, payload(from, me, got.len()), "from rank {from}");
    }
}

#[test]
fn any_pattern_of_messages_goes_through() {
    for transport in TRANSPORTS {
        for size in [1, 2, 3, 4] {
            threads(size, &config(transport), |comm| (0..3).for_each(|_| all_pairs(&comm)));
        }
    }
}

#[test]
fn groups_between_processes() {
    role(|_| {
        let comm = Communicator::from_env().unwrap();
        all_pairs(&comm);
        say("fine");
    });
    for transport in ["shm", "tcp"] {
        let mut job = Job::start("groups_between_processes", "", 3, &[("MAYPOLE_TRANSPORT", transport)]);
        assert!(job.hear(&[0, 1, 2]).iter().all(|(_, line)| line == "fine"));
        job.end(&[0, 1, 2]);
    }
}

#[test]
fn a_ring_of_large_messages_with_tags() {
    for transport in TRANSPORTS {
        threads(3, &config(transport), |comm| {
            let (right, left) = ((comm.rank() + 1) % 3, (comm.rank() + 2) % 3);
            let large = payload(comm.rank(), right, 1 << 20);
            let (mut got, mut small, mut back) = (vec![0; 1 << 20], [0u8; 2], vec![0; 1 << 20]);
            comm.group(|g| {
                g.tag(1).send(&large, right);
                g.tag(2).send(&[4u8; 2], right);
                g.tag(3).send_recv(&large, left, &mut back, right);
                // Neither in the order sent nor with the tag that is set.
                g.tag(2).recv(&mut small, left);
                g.tag(1).recv(&mut got, left);
                Ok(())
            })
            .unwrap();
            assert_eq!(small, [4; 2]);
            assert_eq!(got, payload(left, comm.rank(), 1 << 20));
            assert_eq!(back, payload(right, (right + 1) % 3, 1 << 20));
        });
    }
}

#[test]
fn collectives_of_a_group_run_beside_its_messages() {
    for path in paths() {
        threads(2, &path.config, |comm| {
            let other = 1 - comm.rank();
            let large = payload(comm.rank(), other, 500_000);
            let mut got = vec![0; 500_000];
            let mut sum = vec![1.0f32; path.count];
            let mut all = [0u8; 2];
            if comm.rank() == 0 {
                let mine = [10u8];
                comm.group(|g| {
                    g.send(&large, other);
                    g.all_reduce_in_place(&mut sum, SUM);
                    g.all_gather(&mine, &mut all);
                    g.barrier();
                    Ok(())
                })
                .unwrap();
            } else {
                // The other side does the collectives first, and takes the message afterwards.
                comm.all_reduce_in_place(&mut sum, SUM).unwrap();
                comm.all_gather(&[11u8], &mut all).unwrap();
                comm.barrier().unwrap();
                comm.recv(&mut got, other).unwrap();
                assert_eq!(got, payload(0, 1, 500_000));
            }
            assert!(sum.iter().all(|x| *x == 2.0), "{}", path.name);
            assert_eq!(all, [10, 11]);
        });
    }
}

struct Mix;

impl Operator for Mix {
    type Element = f32;
    const ID: u32 = 3;
    fn combine(a: f32, b: f32) -> f32 {
        a * 0.5 + b
    }
}

/// Numbers whose sum depends on the order in which they are added.
fn adversarial(rank: usize, vector: usize, count: usize) -> Vec<f32> {
    let value = |i: usize| match (rank * 31 + vector * 7 + i * 3) % 5 {
        0 => 1e30,
        1 => -1e30,
        2 => 3.3e-5 * (i + 1) as f32,
        3 => -0.0,
        _ => 1.0 / (rank + i + 1) as f32,
    };
    (0..count).map(value).collect()
}

#[test]
fn fused_all_reduces_give_the_bits_of_separate_ones() {
    let ops = [SUM, ReduceOp::Avg, ReduceOp::Max, ReduceOp::PreMulSum(0.3), ReduceOp::User(UserOp::of::<Mix>())];
    let counts = [1, 700, 3, 0, 64, 2000, 1, 1, 3000, 40_000, 2, 9];
    for path in paths() {
        for size in [2, 3, 5] {
            threads(size, &path.config, |comm| {
                for op in ops {
                    let inputs: Vec<Vec<f32>> =
                        counts.iter().enumerate().map(|(v, n)| adversarial(comm.rank(), v, *n)).collect();
                    let mut separate = inputs.clone();
                    for buffer in &mut separate {
                        comm.all_reduce_in_place(buffer, op).unwrap();
                    }
                    let mut outputs: Vec<Vec<f32>> = inputs.iter().map(|input| vec![9.0; input.len()]).collect();
                    let mut in_place = inputs.clone();
                    comm.group(|g| {
                        for (input, output) in inputs.iter().zip(&mut outputs) {
                            g.all_reduce(input, output, op);
                        }
                        for buffer in &mut in_place {
                            g.all_reduce_in_place(buffer, op);
                        }
                        Ok(())
                    })
                    .unwrap();
                    let bits = |all: &[Vec<f32>]| -> Vec<u32> { all.iter().flatten().map(|x| x.to_bits()).collect() };
                    assert!(bits(&outputs) == bits(&separate), "{}, {size} ranks, {}", path.name, op.name());
                    assert!(bits(&in_place) == bits(&separate), "{}, {size} ranks, {}", path.name, op.name());
                }
            });
        }
    }
}

#[test]
fn mixed_types_and_operations_are_fused_only_among_equals() {
    for path in paths() {
        threads(3, &path.config, |comm| {
            let me = comm.rank() as i32;
            let (mut a, mut b, mut c, mut d) = ([me; 4], [me; 5], [me; 6], [f64::from(me); 7]);
            let (mut e, mut f) = ([me + 1; 3], vec![me; 100_000]);
            comm.group(|g| {
                g.all_reduce_in_place(&mut a, SUM);
                g.all_reduce_in_place(&mut b, SUM);
                g.all_reduce_in_place(&mut c, ReduceOp::Max);
                g.all_reduce_in_place(&mut d, SUM);
                g.broadcast(&mut e, 1);
                g.all_reduce_in_place(&mut f, SUM);
                Ok(())
            })
            .unwrap();
            assert_eq!((a, b, c, d, e), ([3; 4], [3; 5], [2; 6], [3.0; 7], [2; 3]));
            assert!(f.iter().all(|x| *x == 3));
        });
    }
}

/// That small all-reduces are one operation shows where a rank does not make them in a group.
#[test]
fn ranks_that_group_differently_are_told() {
    for transport in TRANSPORTS {
        let errors = threads(2, &config(transport), |comm| {
            let (mut a, mut b) = ([1.0f32; 3], [1.0f32; 4]);
            let outcome = match comm.rank() {
                0 => comm.group(|g| {
                    g.all_reduce_in_place(&mut a, SUM);
                    g.all_reduce_in_place(&mut b, SUM);
                    Ok(())
                }),
                _ => comm.all_reduce_in_place(&mut a, SUM).and_then(|()| comm.all_reduce_in_place(&mut b, SUM)),
            };
            outcome.and_then(|()| comm.barrier()).unwrap_err()
        });
        let said = common_verdict(&errors);
        assert!(matches!(said, Verdict::Mismatch { .. }), "{said}");
        assert!(said.to_string().contains("(7 x f32") && said.to_string().contains("(3 x f32"), "{said}");
    }
}

#[test]
fn a_closure_that_fails_or_panics_runs_nothing() {
    for transport in TRANSPORTS {
        threads(2, &config(transport), |comm| {
            let other = 1 - comm.rank();
            let (mut got, mut sum) = ([7u8; 3], [7i32; 3]);
            let error = comm
                .group(|g| {
                    g.send(&[1u8; 3], other);
                    g.recv(&mut got, other);
                    g.all_reduce_in_place(&mut sum, SUM);
                    Err::<(), _>(Error::Setting { name: "a".into(), value: "b".into(), expected: "c".into() })
                })
                .unwrap_err();
            assert!(matches!(error, Error::Setting { .. }));
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                comm.group(|g| -> Result<()> {
                    g.send(&[1u8; 3], other);
                    g.recv(&mut got, other);
                    g.all_reduce_in_place(&mut sum, SUM);
                    std::panic::resume_unwind(Box::new("a test's panic"))
                })
            }));
            panicked.expect_err("it panicked");
            assert_eq!((got, sum), ([7; 3], [7; 3]));
            // Nothing was sent and no number used up: what follows is the first message, and the first collective.
            comm.send_recv(&[2u8; 3], other, &mut got, other).unwrap();
            comm.all_reduce_in_place(&mut sum, SUM).unwrap();
            assert_eq!((got, sum), ([2; 3], [14; 3]));
            let returned = comm.group(|_| Ok("nothing")).unwrap();
            assert_eq!(returned, "nothing");
        });
    }
}

#[test]
fn a_wrong_call_is_named_and_nothing_is_run() {
    for transport in TRANSPORTS {
        threads(2, &config(transport), |comm| {
            let (me, other) = (comm.rank(), 1 - comm.rank());
            let (mut got, mut sum, mut out) = ([7u8; 3], [7i32; 3], [7i32; 2]);
            let refused = |outcome: Result<()>, parts: &[&str]| match outcome {
                Err(Error::Argument { rank, what }) => {
                    assert_eq!(rank, me);
                    assert!(parts.iter().all(|part| what.contains(part)), "{what}");
                }
                other => panic!("{other:?}"),
            };
            for _ in 0..2 {
                let group = comm.group(|g| {
                    g.send(&[1u8; 3], other);
                    g.recv(&mut got, other);
                    g.all_reduce_in_place(&mut sum, SUM);
                    g.all_reduce(&[1i32; 3], &mut out, SUM);
                    Ok(())
                });
                refused(group, &["call 4 of the group (all_reduce)", "output has 8 bytes", "nothing of the group"]);
                let group = comm.group(|g| {
                    g.recv(&mut got, other);
                    g.send(&[1u8; 3], 5);
                    Ok(())
                });
                refused(group, &["call 2 of the group (send)", "the peer is 5", "0 to 1"]);
                let group = comm.group(|g| {
                    g.send(&[1u8; 3], other);
                    g.tag(4).recv(&mut got, me);
                    Ok(())
                });
                refused(group, &["itself (tag 4)", "nothing of the group"]);
                assert_eq!((got, sum, out), ([7; 3], [7; 3], [7; 2]));
            }
            comm.send_recv(&[2u8; 3], other, &mut got, other).unwrap();
            comm.all_reduce_in_place(&mut sum, SUM).unwrap();
            assert_eq!((got, sum), ([2; 3], [14; 3]));
        });
    }
}

#[test]
fn what_one_rank_gets_wrong_in_a_group_reaches_the_others() {
    for transport in TRANSPORTS {
        let errors = threads(3, &config(transport), |comm| {
            let (input, mut output) = ([1i64; 4], vec![0i64; if comm.rank() == 1 { 3 } else { 4 }]);
            let outcome = comm.group(|g| {
                g.all_reduce(&input, &mut output, SUM);
                g.barrier();
                Ok(())
            });
            match comm.rank() {
                1 => {
                    assert!(matches!(outcome, Err(Error::Argument { .. })), "{outcome:?}");
                    comm.barrier().unwrap_err()
                }
                _ => outcome.unwrap_err(),
            }
        });
        let said = common_verdict(&errors);
        assert!(
            matches!(&said, Verdict::Refused { rank: 1, why, .. } if why.contains("call 1 of the group")),
            "{said}"
        );
    }
}

struct Touchy;

impl Operator for Touchy {
    type Element = u8;
    const ID: u32 = 4;
    fn combine(a: u8, b: u8) -> u8 {
        if a == 13 || b == 13 {
            std::panic::resume_unwind(Box::new("a test's panic"));
        }
        a.wrapping_add(b)
    }
}

#[test]
fn an_operation_that_panics_ends_the_messages_of_its_group() {
    for transport in TRANSPORTS {
        let verdicts = threads(2, &config(transport), |comm| {
            let (other, large) = (1 - comm.rank(), vec![1u8; 2 << 20]);
            let mut unlucky = [13u8; 4];
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                comm.group(|g| {
                    // Nobody receives it.
                    g.send(&large, other);
                    g.all_reduce_in_place(&mut unlucky, ReduceOp::User(UserOp::of::<Touchy>()));
                    Ok(())
                })
            }));
            // The slower rank may hear of it before it comes to that.
            assert!(matches!(panicked, Err(_) | Ok(Err(Error::Failed { .. }))), "{panicked:?}");
            comm.verdict().expect("the messages could not be sent, so they have failed")
        });
        assert!(matches!(verdicts[0], Verdict::Aborted { .. }) && verdicts[0] == verdicts[1], "{verdicts:?}");
    }
}
