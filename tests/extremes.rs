//! Arguments at the edge of what their types hold: times that no clock reaches, texts of megabytes, no memory and counts
//! that no memory has.

mod ranks;

use std::time::Duration;

use maypole::config::TransportChoice;
use maypole::{Blocks, Call, Collective, Communicator, Config, DataType, Error, ReduceOp, UserOp, Verdict};
use ranks::{Job, config, role, say, threads, verdict};

fn sum(comm: &Communicator) {
    let mut buffer = [1.0f32; 1000];
    comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
    assert_eq!(buffer, [comm.size() as f32; 1000], "rank {}", comm.rank());
}

/// Settings without any deadline.
fn endless(transport: TransportChoice) -> Config {
    let mut config = config(transport);
    (config.timeout, config.connect_timeout) = (Duration::MAX, Duration::MAX);
    config
}

#[test]
fn processes_without_a_deadline_meet_and_part() {
    role(|transport| {
        let transport = if transport == "tcp" { TransportChoice::Tcp } else { TransportChoice::Auto };
        let comm = Communicator::from_env_with(endless(transport)).unwrap();
        sum(&comm);
        let part = comm.split(Some(0), 0).unwrap().expect("a part");
        sum(&part);
        if comm.rank() == 0 {
            // It holds the hub, which has to stay for the other.
            drop((part, comm));
        } else {
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(part.verdict().or(comm.verdict()), None);
            drop((part, comm));
        }
        say("parted");
    });
    for transport in ["auto", "tcp"] {
        let mut job = Job::start("processes_without_a_deadline_meet_and_part", transport, 2, &[]);
        job.hear(&[0, 1]);
        job.end(&[0, 1]);
    }
}

#[test]
fn waits_without_a_deadline_end_with_what_they_wait_for() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(2, &endless(transport), |comm| {
            comm.set_timeout(Duration::MAX);
            sum(&comm);
            // One comes so late that the other sleeps.
            std::thread::sleep(Duration::from_millis(200 * comm.rank() as u64));
            sum(&comm);
            let call =
                Call { collective: Collective::AllReduce, dtype: DataType::I32, count: 1, op: ReduceOp::Sum, root: 0 };
            let (mut input, mut output) = (7i32, 0i32);
            // SAFETY: both are one element, which stays to the end of the block.
            unsafe {
                let (from, to) = ((&raw mut input).cast::<u8>(), (&raw mut output).cast::<u8>());
                let request = comm.start_at(call, from, to, None).unwrap();
                request.wait_for(Duration::MAX).expect("it has ended").unwrap();
                let persistent = comm.persistent_at(call, from, to).unwrap();
                persistent.start().unwrap();
                persistent.wait_for(Duration::MAX).expect("it has ended").unwrap();
            }
            assert_eq!(output, 14);
        });
    }
}

#[test]
fn settings_may_be_longer_than_anything_runs() {
    let mut config = Config::default();
    config.set("MAYPOLE_TIMEOUT", "1e18").unwrap();
    config.set("MAYPOLE_CONNECT_TIMEOUT", "1e18").unwrap();
    config.set("MAYPOLE_SPIN", "18446744073709551615").unwrap();
    assert_eq!(config.timeout, Duration::from_secs(1_000_000_000_000_000_000));
    threads(2, &config, |comm| sum(&comm));
    for wrong in ["0", "-1", "nan", "inf", "1e20"] {
        config.set("MAYPOLE_TIMEOUT", wrong).expect_err(wrong);
    }
}

const LONG: usize = 2 << 20;

/// # Safety
/// As for [`maypole::UserFn`].
unsafe fn verbose(_: *mut u8, _: *const u8, _: *const u8, _: usize) {
    std::panic::resume_unwind(Box::new("x".repeat(LONG)));
}

/// # Safety
/// As for [`maypole::UserFn`].
unsafe fn silent(_: *mut u8, _: *const u8, _: *const u8, _: usize) {}

/// What both ranks of `comm` are told when rank 0 gives a reason of megabytes, by each door. Each leads to a verdict on
/// that communicator; the others go on.
fn long_reasons(comm: &Communicator) -> Vec<Verdict> {
    let long = "x".repeat(LONG);
    let function = if comm.rank() == 0 { verbose } else { silent };
    // SAFETY: neither touches anything; what is left is an operand.
    let op = ReduceOp::User(unsafe { UserOp::from_raw(3, DataType::F32, function) });
    let both = |part: &Communicator| {
        let first = part.all_reduce_in_place(&mut [1.0f32; 1000], op);
        first.and_then(|()| part.barrier()).expect_err("rank 0 panics")
    };
    let doors: [&dyn Fn(&Communicator) -> Error; 3] = [
        &|part| {
            part.abort(&long);
            part.barrier().expect_err("it was aborted")
        },
        // More often than a rank that leaves tells of.
        &|part| {
            (0..20).for_each(|_| drop(part.refuse(long.clone())));
            part.all_reduce_in_place(&mut [1u8; 3], ReduceOp::Sum).expect_err("others wait in vain")
        },
        &both,
    ];
    let mut told = Vec::new();
    for (number, door) in doors.into_iter().enumerate() {
        let part = comm.duplicate().unwrap();
        let error = match (comm.rank(), number) {
            (0, _) => door(&part),
            (_, 2) => both(&part),
            _ => part.barrier().expect_err("rank 0 aborts or refuses it"),
        };
        told.push(verdict(&error));
        drop(part);
        sum(comm);
    }
    told
}

/// That all were told the same of rank 0, shortened.
fn are_cut(told: &[Vec<Verdict>]) {
    for (door, said) in told[0].iter().enumerate() {
        assert!(told.iter().all(|other| other[door] == *said), "not all were told the same");
        let text = said.to_string();
        assert!(text.contains("xxxx") && text.contains("(cut here: 20971"), "{}", &text[..200]);
        assert!(text.starts_with("rank 0 ") && text.len() < 20_000, "{}", &text[..200]);
    }
}

#[test]
fn a_reason_of_megabytes_ends_one_communicator() {
    role(|_| {
        let comm = Communicator::from_env_with(config(TransportChoice::Auto)).unwrap();
        let told = long_reasons(&comm);
        are_cut(std::slice::from_ref(&told));
        // Short enough for a line.
        say(format!("{:?}", told.iter().map(|said| said.to_string().len()).collect::<Vec<_>>()));
        sum(&comm);
    });
    are_cut(&threads(2, &config(TransportChoice::Auto), |comm| long_reasons(&comm)));
    let mut job = Job::start("a_reason_of_megabytes_ends_one_communicator", "rank", 2, &[]);
    let said = job.hear(&[0, 1]);
    assert_eq!(said[0].1, said[1].1);
    job.end(&[0, 1]);
}

fn call(collective: Collective, count: usize, op: ReduceOp) -> Call {
    Call { collective, dtype: DataType::F32, count, op, root: 0 }
}

#[test]
fn where_there_is_nothing_no_address_is_needed() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        for size in [1, 2] {
            threads(size, &config(transport), |comm| {
                let (nowhere, to) = (std::ptr::null::<u8>(), std::ptr::null_mut::<u8>());
                for op in [ReduceOp::Sum, ReduceOp::PreMulSum(2.0)] {
                    for collective in Collective::ALL {
                        let op = if collective.is_scan() { ReduceOp::Sum } else { op };
                        let call = call(collective, 0, op);
                        // SAFETY: there are no elements.
                        unsafe {
                            comm.run_at(call, nowhere, to).unwrap();
                            comm.start_at(call, nowhere, to, None).unwrap().wait().unwrap();
                            comm.persistent_at(call, nowhere, to).unwrap().run().unwrap();
                            let mut group = comm.raw_group();
                            group.call_at(call, nowhere, to);
                            group.run().unwrap();
                        }
                    }
                }
                let none = vec![0; size];
                let blocks = Blocks::packed(&none);
                // SAFETY: as above.
                unsafe {
                    let all_to_all = call(Collective::AllToAll, 0, ReduceOp::Sum);
                    comm.run_v_at(all_to_all, (nowhere, blocks), (to, blocks)).unwrap();
                    let next = (comm.rank() + 1) % size;
                    let received = comm.start_recv_at(DataType::F32, 0, to, next, 0, None).unwrap();
                    comm.send_at(DataType::F32, 0, nowhere, next, 0).unwrap();
                    received.wait().unwrap();
                }
                sum(&comm);
            });
        }
    }
}

#[test]
fn counts_that_no_memory_has_are_refused_and_a_barrier_has_none() {
    threads(2, &config(TransportChoice::Tcp), |comm| {
        let mut output = [0u8; 4];
        for count in [usize::MAX, usize::MAX / 4 + 1, isize::MAX as usize / 4 + 1] {
            for collective in Collective::ALL.into_iter().filter(|c| *c != Collective::Barrier) {
                let call = call(collective, count, ReduceOp::Sum);
                let told = comm.describe(&call, None).expect_err("no such memory").to_string();
                assert!(told.contains("more bytes than there are"), "{told}");
                comm.describe(&call, Some(count)).expect_err("no such memory");
                // Both refuse alike, and stay in step.
                let refused = comm.call(call, &[], &mut output);
                assert!(matches!(refused, Err(Error::Argument { .. })), "{collective:?} {count}: {refused:?}");
            }
            let barrier = call(Collective::Barrier, count, ReduceOp::Sum);
            comm.call(barrier, &[], &mut []).unwrap();
            comm.describe(&barrier, None).unwrap();
            // SAFETY: a barrier has no elements.
            unsafe {
                comm.run_at(barrier, std::ptr::null(), std::ptr::null_mut()).unwrap();
                comm.persistent_at(barrier, std::ptr::null(), std::ptr::null_mut()).unwrap().run().unwrap();
                let mut group = comm.raw_group();
                group.call_at(barrier, std::ptr::null(), std::ptr::null_mut());
                group.run().unwrap();
            }
        }
        sum(&comm);
    });
}
