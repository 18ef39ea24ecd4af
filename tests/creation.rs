//! Worlds are made on all ranks or on none, in time, whatever a rank lacks, whoever stops, and however late one comes.

mod ranks;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use maypole::node::UniqueId;
use maypole::{Communicator, Config, ReduceOp, Result};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use ranks::{Job, Place, role, say};

/// What a world of `size` that was made must do.
fn works(world: &Communicator) {
    let mut sum = vec![world.rank() as u64; 1000];
    world.all_reduce_in_place(&mut sum, ReduceOp::Sum).unwrap();
    let expected = (0..world.size() as u64).sum::<u64>();
    assert!(sum.iter().all(|x| *x == expected));
}

/// Say what became of a world: "made", or the error's text.
fn say_made(made: &Result<Communicator>) {
    match made {
        Ok(_) => say("made"),
        Err(error) => say(error),
    }
}

/// What each of three ranks of `test` says, of which one plays `odd` and the others nothing in particular. `within`:
/// the seconds that they wait for each other.
fn outcomes(job: &mut Job, from: &[usize]) -> Vec<String> {
    let said: Vec<String> = job.hear(from).into_iter().map(|(_, line)| line).collect();
    let made = said.iter().filter(|line| *line == "made").count();
    assert!(made == 0 || made == from.len(), "made on some ranks and not on others: {said:#?}");
    said
}

/// Three ranks, of which `odd` has the variable `ODD`.
fn three(odd: usize, how: &str) -> Vec<Place<'_>> {
    (0..3).map(|rank| (rank, 3, if rank == odd { vec![("ODD", how.to_string())] } else { Vec::new() })).collect()
}

fn odd() -> Option<u64> {
    std::env::var("ODD").ok().map(|text| text.parse().expect("a number"))
}

/// From now on this process may have so many descriptors more than it has.
fn leave_descriptors(more: u64) {
    let next = std::os::fd::AsRawFd::as_raw_fd(&std::fs::File::open("/dev/null").unwrap());
    setrlimit(Resource::RLIMIT_NOFILE, next as u64 + more, next as u64 + more).unwrap();
}

#[test]
fn a_rank_without_descriptors_is_named_on_all_ranks() {
    role(|_| {
        if let Some(more) = odd() {
            leave_descriptors(more);
        }
        let world = Communicator::from_env();
        say_made(&world);
        // Links are made when they are first used, and that may fail.
        let _ = world.and_then(|world| world.barrier());
    });
    let test = "a_rank_without_descriptors_is_named_on_all_ranks";
    let cases = [("auto", 0, 4..14), ("auto", 1, 0..12), ("tcp", 1, 5..13)];
    let cases = cases.into_iter().flat_map(|(transport, starved, all)| all.map(move |more| (transport, starved, more)));
    // All at the same time: they wait most of it.
    let jobs = cases.map(|(transport, starved, more)| {
        let settings = [("MAYPOLE_TRANSPORT", transport), ("MAYPOLE_CONNECT_TIMEOUT", "8")];
        let job = Job::start_at(test, "", &three(starved, &more.to_string()), &settings);
        (transport, starved, more, job)
    });
    let (mut told, mut made) = (0, 0);
    for (transport, starved, more, mut job) in jobs.collect::<Vec<_>>() {
        let said = outcomes(&mut job, &[0, 1, 2]);
        println!("{transport}, rank {starved} with {more}: {said:?}");
        if said[0] == "made" {
            made += 1;
            continue;
        }
        assert!(said[starved].contains("file descriptors"), "{said:#?}");
        // A rank that has none to call with cannot say so, and rank 0 none to be called at.
        let silent = ["did not come", "could not reach the meeting point", "waited in vain for the other"];
        let spoke = !said.iter().any(|line| silent.iter().any(|words| line.contains(words)));
        let all = said.iter().all(|line| line.contains("file descriptors"));
        assert!(all || !spoke, "{said:#?}");
        told += usize::from(all);
    }
    assert!(told >= 6 && made >= 3, "told of {told} failures on every rank, and {made} were made");
}

#[test]
fn a_rank_without_memory_is_told_of_on_all_ranks() {
    role(|_| {
        if let Some(megabytes) = odd() {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages: u64 = pages.split_whitespace().next().unwrap().parse().unwrap();
            let limit = pages * 4096 + (megabytes << 20);
            setrlimit(Resource::RLIMIT_AS, limit, limit).unwrap();
        }
        let world = Communicator::from_env();
        say_made(&world);
        // What it can be used for with as little memory is another question.
        let _ = world.and_then(|world| world.barrier());
    });
    let test = "a_rank_without_memory_is_told_of_on_all_ranks";
    for starved in [0, 1] {
        let jobs = [3, 6, 12, 24, 48, 96, 1024].map(|megabytes: u64| {
            let settings = [("MAYPOLE_CONNECT_TIMEOUT", "10")];
            (megabytes, Job::start_at(test, "", &three(starved, &megabytes.to_string()), &settings))
        });
        for (megabytes, mut job) in jobs {
            // The language ends a process that has not the memory for its own things: that is a death to the others.
            let others: Vec<usize> = (0..3).filter(|rank| *rank != starved).collect();
            let said = outcomes(&mut job, &others);
            println!("rank {starved} with {megabytes} MiB: {said:?}");
            assert!(said[0] == "made" || megabytes < 1024, "{said:?}");
        }
    }
}

#[test]
fn whoever_stops_while_a_world_is_made_holds_nobody_up_for_longer_than_the_deadline() {
    role(|_| {
        if let Some(microseconds) = odd() {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(microseconds));
                kill(nix::unistd::getpid(), Signal::SIGSTOP).unwrap();
            });
        }
        let world = Communicator::from_env();
        say_made(&world);
        // Whoever has one keeps it until the test has heard all.
        std::thread::sleep(Duration::from_secs(1000));
    });
    let test = "whoever_stops_while_a_world_is_made_holds_nobody_up_for_longer_than_the_deadline";
    const WITHIN: Duration = Duration::from_secs(2);
    let worlds = [0, 1].map(|stopped| {
        let jobs = [0, 2000, 3000, 5000, 8000, 13_000, 30_000].map(|microseconds: u64| {
            let settings = [("MAYPOLE_CONNECT_TIMEOUT", "2"), ("MAYPOLE_TIMEOUT", "3600")];
            let job = Job::start_at(test, "", &three(stopped, &microseconds.to_string()), &settings);
            (microseconds, Instant::now(), job)
        });
        (stopped, jobs)
    });
    for (stopped, jobs) in worlds {
        let mut failed = 0;
        for (microseconds, begun, job) in jobs {
            let others: Vec<usize> = (0..3).filter(|rank| *rank != stopped).collect();
            let said: Vec<(Instant, String)> = job.hear(&others);
            let took = said.iter().map(|(at, _)| *at - begun).max().unwrap();
            println!("rank {stopped} stops after {microseconds} us: {took:.1?}: {said:?}");
            // Meeting, sharing memory, agreeing, and leaving after that: each has its time.
            assert!(took < 15 * WITHIN, "{took:?}: {said:?}");
            let made = said.iter().filter(|(_, line)| line == "made").count();
            // Where the hub itself stops, it may have told one and not the other.
            assert!(stopped == 0 || made == 0 || made == 2, "{said:#?}");
            failed += usize::from(made == 0);
        }
        assert!(failed > 0, "all had been made before it stopped");
    }
}

/// A rank's attempts to be in a world: which one succeeded.
fn attempts(times: usize, mut attempt: impl FnMut(usize) -> Result<Communicator>) -> usize {
    let begun = Instant::now();
    for number in 0..times {
        match attempt(number) {
            Ok(world) => {
                works(&world);
                return number;
            }
            Err(error) => println!("attempt {number}, {:.2?}: {error}", begun.elapsed()),
        }
    }
    panic!("it has not met the others in {times} attempts, {:?}", begun.elapsed());
}

/// The bytes of a file, once they are there.
fn await_file(name: &Path, within: Duration) -> Option<Vec<u8>> {
    let until = Instant::now() + within;
    loop {
        match std::fs::read(name).ok().filter(|bytes| bytes.len() == 128) {
            Some(bytes) => return Some(bytes),
            None if Instant::now() >= until => return None,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// How often ranks try, for how many milliseconds, and how many a rank is late: an attempt at which all are is far away
/// for a rank that waits at each one before.
const RETRIES: [(usize, u64, u64); 3] = [(30, 400, 2000), (8, 1000, 2300), (4, 3000, 5000)];

#[test]
fn late_ranks_meet_the_others_over_a_store() {
    role(|role| {
        let mut words = role.split(' ');
        let mut word = || words.next().expect("five words");
        let (folder, late) = (PathBuf::from(word()), word().parse::<usize>().unwrap());
        let [times, time, delay] = [word(), word(), word()].map(|word| word.parse::<u64>().unwrap());
        let rank: usize = std::env::var("RANK").unwrap().parse().unwrap();
        let mut config = Config::from_env().unwrap();
        config.connect_timeout = Duration::from_millis(time);
        if rank == late {
            std::thread::sleep(Duration::from_millis(delay));
        }
        let met = attempts(times as usize, |number| {
            let name = folder.join(number.to_string());
            let id = if rank == 0 {
                let id = UniqueId::create(&config)?;
                std::fs::write(name.with_extension("draft"), id.as_bytes()).unwrap();
                std::fs::rename(name.with_extension("draft"), &name).unwrap();
                id
            } else {
                // The store has no deadline of ours: one that does not find rank 0's id there tries again.
                let bytes = await_file(&name, config.connect_timeout).unwrap_or_default();
                UniqueId::from_bytes(&bytes)?
            };
            Communicator::from_id(&id, rank, 3, config.clone())
        });
        say(met);
    });
    let folder = std::env::temp_dir().join(format!("maypole-late-{}", std::process::id()));
    let jobs = RETRIES.into_iter().flat_map(|numbers| [1, 2].map(|late| (numbers, late)));
    let jobs = jobs.map(|((times, time, delay), late)| {
        let store = folder.join(format!("{times}-{late}"));
        std::fs::create_dir_all(&store).unwrap();
        let role = format!("{} {late} {times} {time} {delay}", store.display());
        (role.clone(), Job::start("late_ranks_meet_the_others_over_a_store", &role, 3, &[]))
    });
    for (role, mut job) in jobs.collect::<Vec<_>>() {
        let met: Vec<String> = job.hear(&[0, 1, 2]).into_iter().map(|(_, line)| line).collect();
        println!("{role}: {met:?}");
        assert!(met.iter().all(|number| *number == met[0]), "{met:?}");
        job.end(&[0, 1, 2]);
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn late_ranks_meet_the_others_at_an_address() {
    role(|role| {
        let numbers: Vec<u64> = role.split(' ').map(|word| word.parse().unwrap()).collect();
        let [late, times, time, delay] = numbers[..] else { panic!("four numbers") };
        let rank: u64 = std::env::var("RANK").unwrap().parse().unwrap();
        let mut config = Config::from_env().unwrap();
        config.connect_timeout = Duration::from_millis(time);
        if rank == late {
            std::thread::sleep(Duration::from_millis(delay));
        }
        say(attempts(times as usize, |_| Communicator::from_env_with(config.clone())));
    });
    let jobs = RETRIES.into_iter().flat_map(|numbers| [0, 2].map(|late| (numbers, late)));
    let jobs = jobs.map(|((times, time, delay), late)| {
        let role = format!("{late} {times} {time} {delay}");
        (role.clone(), Job::start("late_ranks_meet_the_others_at_an_address", &role, 3, &[]))
    });
    for (role, mut job) in jobs.collect::<Vec<_>>() {
        let met: Vec<String> = job.hear(&[0, 1, 2]).into_iter().map(|(_, line)| line).collect();
        println!("{role}: {met:?}");
        job.end(&[0, 1, 2]);
    }
}

/// A rank whose first attempt fails tells the others, and all try again at the same address at once.
#[test]
fn ranks_meet_again_where_an_attempt_has_failed() {
    role(|_| {
        let config = Config::from_env().unwrap();
        let met = attempts(2, |number| {
            let mut config = config.clone();
            if odd().is_some() && number == 0 {
                config.interface = Some("nosuch7".into());
            }
            Communicator::from_env_with(config)
        });
        say(met);
    });
    for unable in [0, 1] {
        let settings = [("MAYPOLE_CONNECT_TIMEOUT", "20")];
        let test = "ranks_meet_again_where_an_attempt_has_failed";
        let mut job = Job::start_at(test, "", &three(unable, "1"), &settings);
        let met: Vec<String> = job.hear(&[0, 1, 2]).into_iter().map(|(_, met)| met).collect();
        println!("rank {unable} was unable at first: {met:?}");
        assert_eq!(met[unable], "1");
        job.end(&[0, 1, 2]);
    }
}
