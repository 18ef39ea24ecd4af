//! Children of communicators: duplicates and subsets, what they cost, parents and children dropped in any order, with
//! requests under way, and communicators made of what is left when a rank is lost.

mod ranks;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::{Communicator, Error, ReduceOp, Stream, Verdict};
use nix::sys::signal::Signal;
use ranks::{Job, PATIENCE, common_verdict, config, role, say, threads};

const SUM: ReduceOp = ReduceOp::Sum;

/// Sum the ranks' numbers, in few bytes and in many.
fn works(comm: &Communicator) {
    let want = (0..comm.size()).sum::<usize>() as u64;
    for count in [1, 30_000] {
        let mut buffer = vec![comm.rank() as u64; count];
        comm.all_reduce_in_place(&mut buffer, SUM).unwrap();
        assert!(buffer.iter().all(|x| *x == want), "{count} elements on {} ranks", comm.size());
    }
}

/// Everything that duplicates and subsets promise, for a world of five.
fn check(world: &Communicator) {
    let me = world.rank();
    let first = world.duplicate().unwrap();
    let second = world.duplicate().unwrap();
    let third = second.duplicate().unwrap();
    assert_eq!((third.rank(), third.size()), (me, 5));
    // Ranks that call them in different orders, each by a thread of its own: every communicator has its own order.
    std::thread::scope(|s| {
        let mut all = [world, &first, &second, &third];
        all.rotate_left(me % 4);
        for comm in all {
            s.spawn(move || (0..5).for_each(|_| works(comm)));
        }
    });

    // A subset's ranks stand in the order of its list, and the others know nothing.
    let ranks = [4, 0, 2];
    let some = ranks.contains(&me).then(|| world.subset(&ranks).unwrap());
    if let Some(some) = &some {
        assert_eq!(ranks[some.rank()], me);
        let mut order = [0; 3];
        some.all_gather(&[me as u64], &mut order).unwrap();
        assert_eq!(order, ranks.map(|rank| rank as u64));
        works(some);
    }
    // The same ranks again, while the first is still there; overlapping ones; ones of a duplicate's.
    if me < 3 {
        let again: Vec<Communicator> = (0..3).map(|_| first.subset(&[0, 1, 2]).unwrap()).collect();
        let pair = (me > 0).then(|| again[1].subset(&[2, 1]).unwrap());
        again.iter().rev().for_each(works);
        if let Some(pair) = &pair {
            assert_eq!(pair.rank(), 2 - me);
            works(pair);
        }
    }
    let alone = world.subset(&[me]).unwrap();
    assert_eq!((alone.rank(), alone.size()), (0, 1));
    works(&alone);
    works(&alone.duplicate().unwrap());

    // Each rank drops them in another order, and the world goes on.
    let mut all = vec![first, second, third];
    all.rotate_left(me % 3);
    drop(all);
    works(world);
    if let Some(some) = some {
        works(&some);
    }
}

#[test]
fn threads_have_children() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        threads(5, &config(transport), |world| check(&world));
    }
}

#[test]
fn processes_have_children() {
    role(|_| {
        let world = Communicator::from_env().unwrap();
        check(&world);
        // A child goes on without its parent, and has children.
        let child = world.duplicate().unwrap();
        drop(world);
        works(&child.duplicate().unwrap());
        works(&child);
        say("fine");
    });
    let all = [0, 1, 2, 3, 4];
    for transport in ["shm", "tcp"] {
        let mut job = Job::start("processes_have_children", "", 5, &[("MAYPOLE_TRANSPORT", transport)]);
        assert!(job.hear(&all).iter().all(|(_, line)| line == "fine"));
        job.end(&all);
    }
    let hosts = ["a", "b", "a", "b", "b"];
    let places: Vec<_> = all.map(|rank| (rank, 5, vec![("MAYPOLE_HOST", hosts[rank].to_string())])).to_vec();
    let mut job = Job::start_at("processes_have_children", "", &places, &[]);
    assert!(job.hear(&all).iter().all(|(_, line)| line == "fine"));
    job.end(&all);
}

#[test]
fn wrong_subsets_are_refused_without_a_trace() {
    threads(3, &config(TransportChoice::Auto), |world| {
        let me = world.rank();
        for (ranks, why) in [
            (vec![me, 3], "there is no rank 3"),
            (vec![me, me], "listed twice"),
            (vec![(me + 1) % 3], "this rank is not listed"),
            (vec![], "this rank is not listed"),
        ] {
            match world.subset(&ranks) {
                Err(Error::Argument { rank, what }) => assert!(rank == me && what.contains(why), "{what}"),
                other => panic!("{:?}", other.map(|_| ())),
            }
        }
        works(&world.subset(&[2, 1, 0]).unwrap());
    });
}

#[test]
fn ranks_that_disagree_are_told() {
    // About the order of a subset.
    let errors = threads(2, &config(TransportChoice::Auto), |world| {
        let child = world.subset(if world.rank() == 0 { &[0, 1] } else { &[1, 0] });
        let error = match child {
            Err(error) => error,
            Ok(child) => child.barrier().unwrap_err(),
        };
        works(&world);
        error
    });
    let why = common_verdict(&errors).to_string();
    assert!(why.contains("[0, 1]") && why.contains("[1, 0]"), "{why}");
    // About what they call.
    threads(3, &config(TransportChoice::Auto), |world| {
        let outcome =
            if world.rank() == 1 { world.split(Some(0), 0).map(|_| ()) } else { world.duplicate().map(|_| ()) };
        match outcome {
            Err(Error::Argument { rank, what }) if rank == world.rank() => {
                assert!(what.contains("split") && what.contains("duplicate"), "{what}");
            }
            other => panic!("{other:?}"),
        }
        works(&world);
        works(&world.duplicate().unwrap());
    });
}

#[test]
fn threads_of_a_rank_make_children_at_the_same_time() {
    threads(2, &config(TransportChoice::Auto), |world| {
        let parents: Vec<Communicator> = (0..4).map(|_| world.duplicate().unwrap()).collect();
        std::thread::scope(|s| {
            for parent in &parents {
                s.spawn(|| {
                    for _ in 0..10 {
                        let child = parent.split(Some(1), 0).unwrap().unwrap();
                        works(&child);
                        works(&child.subset(&[1, 0]).unwrap());
                    }
                });
            }
        });
    });
}

#[test]
fn the_ranks_that_are_left_go_on_in_a_subset() {
    role(|_| {
        let world = Communicator::from_env().unwrap();
        works(&world);
        say("ready");
        let lost = loop {
            match world.barrier() {
                Ok(()) => {}
                Err(Error::Failed { verdict: Verdict::Died { rank, .. }, .. }) => break rank,
                Err(other) => panic!("{other}"),
            }
        };
        let left: Vec<usize> = (0..4).filter(|rank| *rank != lost).collect();
        let survivors = world.subset(&left).unwrap();
        drop(world);
        for _ in 0..20 {
            works(&survivors);
        }
        works(&survivors.duplicate().unwrap());
        say("fine");
    });
    for transport in ["shm", "tcp"] {
        let mut job =
            Job::start("the_ranks_that_are_left_go_on_in_a_subset", "", 4, &[("MAYPOLE_TRANSPORT", transport)]);
        job.hear(&[0, 1, 2, 3]);
        job.signal(2, Signal::SIGKILL);
        assert!(job.hear(&[0, 1, 3]).iter().all(|(_, line)| line == "fine"));
        job.end(&[0, 1, 3]);
    }
}

/// Several communicators of one world with requests under way on threads of their own, dropped in a different order by
/// each rank while the requests go on.
#[test]
fn a_subset_is_tried_again_by_ranks_that_have_not_tried_equally_often() {
    let patience = Duration::from_secs(4);
    role(|_| {
        let world = Communicator::from_env().unwrap();
        world.barrier().unwrap();
        if world.rank() == 0 {
            let start = Instant::now();
            let error = world.subset(&[1, 0]).map(drop).expect_err("rank 1 does not come");
            assert!(start.elapsed() >= patience && matches!(error, Error::Bootstrap { .. }), "{error}");
        } else {
            std::thread::sleep(patience + patience / 4);
        }
        // Rank 0's second time is rank 1's first.
        match world.subset(&[1, 0]) {
            Ok(pair) => works(&pair),
            Err(error) => return say(error),
        }
        works(&world.subset(&[1, 0]).unwrap());
        say("fine");
    });
    let test = "a_subset_is_tried_again_by_ranks_that_have_not_tried_equally_often";
    let mut job = Job::start(test, "", 2, &[("MAYPOLE_CONNECT_TIMEOUT", &patience.as_secs().to_string())]);
    for (_, line) in job.hear(&[0, 1]) {
        assert_eq!(line, "fine");
    }
    job.end(&[0, 1]);
}

#[test]
fn a_subset_has_a_time_of_its_own() {
    role(|_| {
        let world = Communicator::from_env().unwrap();
        world.barrier().unwrap();
        if world.rank() == 0 {
            // Rank 1 does not come. MAYPOLE_CONNECT_TIMEOUT is a minute.
            for ranks in [[0, 1], [1, 0]] {
                let start = Instant::now();
                let error = world.subset_within(&ranks, Duration::from_millis(300)).map(drop).unwrap_err();
                assert!(
                    start.elapsed() < Duration::from_secs(30) && matches!(error, Error::Bootstrap { .. }),
                    "{error}"
                );
            }
        }
        world.barrier().unwrap();
        let pair = world.subset_within(&[0, 1], Duration::from_secs(20)).unwrap();
        assert_eq!(pair.config().timeout, Duration::from_secs(20));
        assert_ne!(pair.context(), world.context());
        works(&pair);
        say("fine");
    });
    let mut job = Job::start("a_subset_has_a_time_of_its_own", "", 2, &[("MAYPOLE_TRANSPORT", "shm")]);
    for (_, line) in job.hear(&[0, 1]) {
        assert_eq!(line, "fine");
    }
    job.end(&[0, 1]);
}

/// The limit of open files, once it was `files` beyond those that are open.
fn limit_files(files: u64) -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The lowest free number is where the next one goes.
    let next = std::os::fd::AsRawFd::as_raw_fd(&std::fs::File::open("/dev/null").unwrap());
    setrlimit(Resource::RLIMIT_NOFILE, next as u64 + files, hard).unwrap();
    soft
}

#[test]
fn a_child_that_one_rank_cannot_make_is_made_on_none() {
    role(|_| {
        let world = Communicator::from_env().unwrap();
        works(&world);
        let starved = world.rank() == 1;
        let color = Some((world.rank() / 2) as u32);
        for what in ["duplicate", "split"] {
            let soft = starved.then(|| limit_files(1));
            let made = match what {
                "duplicate" => world.duplicate().map(drop),
                _ => world.split(color, 0).map(drop),
            };
            if let Some(soft) = soft {
                use nix::sys::resource::{Resource, getrlimit, setrlimit};
                let hard = getrlimit(Resource::RLIMIT_NOFILE).unwrap().1;
                setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            }
            // A part that it does not concern is there.
            let concerned = what == "duplicate" || color == Some(0);
            match made {
                Ok(()) if !concerned => {}
                Err(error) if concerned => assert!(starved || error.to_string().contains("rank 1 on host "), "{error}"),
                Ok(()) => return say(format!("{what}: made on rank {}", world.rank())),
                Err(error) => return say(format!("{what}: {error}")),
            }
        }
        // And the one that they are made from is whole.
        works(&world);
        works(&world.duplicate().unwrap());
        say("fine");
    });
    let test = "a_child_that_one_rank_cannot_make_is_made_on_none";
    let mut job = Job::start(test, "", 4, &[("MAYPOLE_TRANSPORT", "tcp")]);
    for (_, line) in job.hear(&[0, 1, 2, 3]) {
        assert_eq!(line, "fine");
    }
    job.end(&[0, 1, 2, 3]);
}

fn drop_under_way(world: Communicator) {
    let me = world.rank();
    let done = AtomicUsize::new(0);
    let mut comms: Vec<Communicator> = (0..3).map(|_| world.duplicate().unwrap()).collect();
    let stream = Stream::new().unwrap();
    let (inputs, mut outputs) = (vec![vec![1u32; 40_000]; 3], vec![vec![0u32; 40_000]; 3]);
    let mut persistent = comms[0].persistent().all_reduce_in_place(vec![1u32; 40_000], SUM).unwrap();
    maypole::scope(|s| {
        let mut requests = Vec::new();
        for ((number, comm), (input, output)) in comms.iter().enumerate().zip(inputs.iter().zip(&mut outputs)) {
            let start = if number == 1 { comm.start_on(&stream, s) } else { comm.start(s) };
            requests.push(start.all_reduce(input, output, SUM).unwrap());
        }
        persistent.start().unwrap();
        std::thread::scope(|threads| {
            for request in requests {
                let done = &done;
                threads.spawn(move || {
                    assert!(request.wait().unwrap().iter().all(|x| *x == 3));
                    done.fetch_add(1, Ordering::SeqCst);
                });
            }
            // Some go before their requests are done, on this rank or another.
            comms.rotate_left(me);
            comms.pop();
            if me == 1 {
                std::thread::sleep(Duration::from_millis(2));
            }
            drop(std::mem::take(&mut comms));
        });
    });
    if me == 2 {
        drop((world, stream));
        assert_eq!(persistent.wait().unwrap()[0], 3);
    } else {
        drop(persistent);
        drop(world);
    }
    assert_eq!(done.load(Ordering::SeqCst), 3);
}

#[test]
fn dropped_in_any_order_with_requests_under_way() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        let start = Instant::now();
        for _ in 0..10 {
            threads(3, &config(transport), drop_under_way);
        }
        assert!(start.elapsed() < PATIENCE, "nobody waited for a deadline");
    }
}

#[test]
fn processes_that_drop_everything_with_requests_under_way_end_well() {
    role(|_| {
        drop_under_way(Communicator::from_env().unwrap().duplicate().unwrap());
        say("fine");
    });
    for transport in ["shm", "tcp"] {
        for _ in 0..3 {
            let test = "processes_that_drop_everything_with_requests_under_way_end_well";
            let mut job = Job::start(test, "", 3, &[("MAYPOLE_TRANSPORT", transport)]);
            job.hear(&[0, 1, 2]);
            job.end(&[0, 1, 2]);
        }
    }
}

#[test]
fn a_request_whose_peer_has_left_ends_and_so_does_its_communicator() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        let start = Instant::now();
        threads(2, &config(transport), |world| {
            let child = world.duplicate().unwrap();
            works(&child);
            if world.rank() == 0 {
                drop(child);
                works(&world);
                return;
            }
            let (input, mut output) = (vec![1.0f32; 100_000], vec![0.0f32; 100_000]);
            maypole::scope(|s| {
                let request = child.start(s).all_reduce(&input, &mut output, SUM).unwrap();
                drop(child);
                assert!(matches!(request.wait(), Err(Error::Failed { .. })));
            });
            works(&world);
        });
        assert!(start.elapsed() < PATIENCE / 2, "it did not wait for the deadline");
    }
}

/// Time to make a child and drop it, best and mean of several.
#[test]
fn children_are_cheap() {
    role(|_| {
        let world = Communicator::from_env().unwrap();
        let mut times = Vec::new();
        for _ in 0..100 {
            world.barrier().unwrap();
            let start = Instant::now();
            let child = world.duplicate().unwrap();
            times.push(start.elapsed());
            drop(child);
        }
        times.sort_unstable();
        say(format!("{} {}", times[50].as_micros(), times[0].as_micros()));
    });
    for (size, transport) in [(2, "shm"), (4, "shm"), (2, "tcp"), (4, "tcp")] {
        let mut job = Job::start("children_are_cheap", "", size, &[("MAYPOLE_TRANSPORT", transport)]);
        let all: Vec<usize> = (0..size).collect();
        let said = job.hear(&all);
        let medians: Vec<u64> = said.iter().map(|(_, line)| line.split(' ').next().unwrap().parse().unwrap()).collect();
        let best: Vec<&str> = said.iter().map(|(_, line)| line.split(' ').nth(1).unwrap()).collect();
        println!("{size} ranks, {transport}: a child in {medians:?} us (median by rank), at best {best:?}");
        assert!(medians.iter().all(|us| *us < 20_000), "{medians:?} us");
        job.end(&all);
    }
}
