//! Children by `fork`: they hide no death, hold no port, and do nothing in their parent's name.

mod ranks;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use maypole::{Communicator, Error, ReduceOp, Stream, Verdict};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use ranks::{Job, role, say};

/// How soon a death must be known. It takes milliseconds; this is for machines with ten other things to do. The children
/// live much longer.
const SOON: Duration = Duration::from_secs(5);

/// How a child is made.
#[derive(Clone, Copy)]
enum How {
    /// As usual, so that handlers run.
    Fork,
    /// By the system call, of which no handler knows.
    Clone,
}

/// A child that does `body`, killed after a minute if that takes longer.
fn child(how: How, body: impl FnOnce()) -> Pid {
    // SAFETY: what the child does with what other threads of its parent held is what this file tests.
    let pid = unsafe {
        match how {
            How::Fork => libc::fork(),
            How::Clone => libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32,
        }
    };
    assert!(pid >= 0, "no child");
    if pid == 0 {
        // SAFETY: no conditions.
        unsafe { libc::alarm(60) };
        let done = catch_unwind(AssertUnwindSafe(body));
        // SAFETY: no conditions.
        unsafe { libc::_exit(i32::from(done.is_err())) }
    }
    Pid::from_raw(pid)
}

/// A child of a rank, killed when the test is over.
struct Left(Pid);

impl Drop for Left {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

fn all_reduce(comm: &Communicator) -> Result<(), Error> {
    let mut sum = [1u64; 3];
    comm.all_reduce_in_place(&mut sum, ReduceOp::Sum)?;
    assert_eq!(sum, [comm.size() as u64; 3]);
    Ok(())
}

/// The part of a rank: `victim how`. The victim has a child that does nothing, and the others wait for it.
fn wait_for_the_victim(role: &str) {
    let (victim, how) = role.split_once(' ').unwrap();
    let comm = Communicator::from_env().unwrap();
    all_reduce(&comm).unwrap();
    if comm.rank() == victim.parse::<usize>().unwrap() {
        let how = if how == "fork" { How::Fork } else { How::Clone };
        let idle = || loop {
            std::thread::sleep(Duration::from_secs(100));
        };
        say(child(how, idle));
        std::thread::sleep(Duration::from_secs(100));
    }
    let error = all_reduce(&comm).expect_err("one of the ranks was killed");
    let Error::Failed { verdict: Verdict::Died { rank, .. }, .. } = &error else { panic!("{error}") };
    say(format!("{rank} died: {error}"));
}

fn a_death_is_known_though_a_child_lives(test: &str, how: &str) {
    for transport in ["auto", "tcp"] {
        // Rank 0's process holds the job together.
        for victim in [2, 0] {
            let mut job = Job::start(test, &format!("{victim} {how}"), 3, &[("MAYPOLE_TRANSPORT", transport)]);
            let idle = &job.hear(&[victim])[0].1;
            let _left = Left(Pid::from_raw(idle.parse().unwrap()));
            // The others are in their operation by now, or come to it.
            std::thread::sleep(Duration::from_millis(50));
            let at = Instant::now();
            job.signal(victim, Signal::SIGKILL);
            let others: Vec<usize> = (0..3).filter(|rank| *rank != victim).collect();
            for (known, what) in job.hear(&others) {
                let took = known - at;
                println!("{transport}, rank {victim}, {how}: {took:.1?}: {what}");
                assert!(what.starts_with(&format!("{victim} died")) && took < SOON, "{took:?}: {what}");
            }
            job.end(&others);
        }
    }
}

#[test]
fn a_death_is_known_though_a_forked_child_lives() {
    role(wait_for_the_victim);
    a_death_is_known_though_a_child_lives("a_death_is_known_though_a_forked_child_lives", "fork");
}

#[test]
fn a_death_is_known_though_a_child_has_all_connections() {
    role(wait_for_the_victim);
    a_death_is_known_though_a_child_lives("a_death_is_known_though_a_child_has_all_connections", "clone");
}

#[test]
fn a_job_starts_again_at_the_port_of_one_that_left_a_child() {
    role(|role| {
        let comm = Communicator::from_env().unwrap();
        all_reduce(&comm).unwrap();
        if role == "first" {
            say(child(How::Fork, || std::thread::sleep(Duration::from_secs(100))));
            std::thread::sleep(Duration::from_secs(100));
        }
    });
    let port = ranks::port::free_port().to_string();
    let at = [("MASTER_PORT", port.as_str())];
    let test = "a_job_starts_again_at_the_port_of_one_that_left_a_child";
    let first = Job::start(test, "first", 2, &at);
    let left: Vec<Left> =
        first.hear(&[0, 1]).iter().map(|(_, pid)| Left(Pid::from_raw(pid.parse().unwrap()))).collect();
    drop(first);
    let mut second = Job::start(test, "second", 2, &at);
    second.end(&[0, 1]);
    drop(left);
}

/// Check that a call in a child says whose communicator it is.
fn refused<T>(what: &str, result: Result<T, Error>) {
    match result {
        Err(Error::Argument { what: why, .. }) if why.contains("forked off") => {}
        Err(other) => panic!("{what}: {other}"),
        Ok(_) => panic!("{what}: it worked"),
    }
}

#[test]
fn what_a_child_inherits_is_of_no_use_and_no_harm_to_it() {
    role(|_| {
        let comm = Communicator::from_env().unwrap();
        let busy = comm.duplicate().unwrap();
        let part = comm.split(Some(0), 0).unwrap().unwrap();
        let alone = comm.split(Some(comm.rank() as u32), 0).unwrap().unwrap();
        // At work while this thread forks, so that locks are held and operations under way.
        let worker = std::thread::spawn(move || (0..3000).for_each(|_| all_reduce(&busy).unwrap()));
        for round in 0..10u64 {
            let stream = Stream::new().unwrap();
            let mut memory = comm.alloc::<u64>(10_000).unwrap();
            memory.fill(round);
            let mut kept = comm.persistent().all_reduce_in_place(vec![1u64; 3], ReduceOp::Sum).unwrap();
            kept.start().unwrap();
            let mut sum = [1u64; 3];
            maypole::scope(|scope| {
                // Under way when the child is made: the others come to it later.
                let request = comm.start_on(&stream, scope).all_reduce_in_place(&mut sum, ReduceOp::Sum).unwrap();
                let mut all = Some((request, kept, memory, stream));
                let all_of_child = std::cell::Cell::new(None);
                let pid = {
                    let taken = all.take().unwrap();
                    all_of_child.set(Some(taken));
                    child(How::Fork, || {
                        let (request, mut kept, memory, stream) = all_of_child.take().unwrap();
                        assert!(request.test() && kept.test(), "it would be waited for");
                        refused("request", request.wait());
                        refused("persistent", kept.start());
                        refused("wait", kept.wait());
                        refused("all_reduce", all_reduce(&comm));
                        refused("barrier", part.barrier());
                        refused("alone", alone.barrier());
                        refused("send", comm.send(&[1u8], 0));
                        refused("recv", comm.recv(&mut [1u8], 0));
                        refused("sender", comm.sender(0));
                        let sent = |g: &mut maypole::Group<'_>| {
                            g.send(&[1u8], 0);
                            Ok(())
                        };
                        refused("group", comm.group(sent));
                        refused("alloc", comm.alloc::<u8>(1));
                        refused("split", comm.split(None, 0));
                        refused("duplicate", comm.duplicate());
                        refused("subset", comm.subset(&[comm.rank()]));
                        refused("persistent", comm.persistent().all_reduce_in_place(vec![1u8], ReduceOp::Sum));
                        refused("refuse", Err::<(), _>(comm.refuse("something".into())));
                        let mut byte = [1u8];
                        maypole::scope(|s| refused("start", comm.start(s).broadcast(&mut byte, 0).map(|_| ())));
                        comm.abort("in its parent's name");
                        comm.set_timeout(Duration::from_secs(1));
                        assert_eq!(memory[0], round, "the parent's memory");
                        drop((kept, memory, stream));
                        // SAFETY: used no more, and forgotten by `_exit`.
                        unsafe {
                            drop(std::ptr::read(&comm));
                            drop(std::ptr::read(&part));
                            drop(std::ptr::read(&alone));
                        }
                    })
                };
                let status = waitpid(pid, None).unwrap();
                assert_eq!(status, WaitStatus::Exited(pid, 0), "the child");
                let (request, mut kept, memory, stream) = all_of_child.take().unwrap();
                assert_eq!(request.wait().unwrap(), [comm.size() as u64; 3]);
                assert_eq!(kept.wait().unwrap(), [comm.size() as u64; 3]);
                assert!(memory.iter().all(|x| *x == round), "the child gave the parent's memory back");
                drop(stream);
            });
            all_reduce(&comm).unwrap();
            part.barrier().unwrap();
            alone.barrier().unwrap();
        }
        worker.join().unwrap();
    });
    for transport in ["auto", "tcp"] {
        let test = "what_a_child_inherits_is_of_no_use_and_no_harm_to_it";
        let mut job = Job::start(test, "rank", 2, &[("MAYPOLE_TRANSPORT", transport)]);
        job.end(&[0, 1]);
    }
}

/// The open descriptors, and whether each is closed in programs that are executed.
fn descriptors() -> BTreeSet<(i32, bool)> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    // SAFETY: asks about a number; the one of the directory itself is closed by now.
    let flags = |fd: i32| unsafe { libc::fcntl(fd, libc::F_GETFD) };
    numbers.filter(|fd| flags(*fd) >= 0).map(|fd| (fd, flags(fd) & libc::FD_CLOEXEC != 0)).collect()
}

#[test]
fn programs_that_are_executed_inherit_nothing() {
    role(|_| {
        let before = descriptors();
        let comm = Communicator::from_env().unwrap();
        all_reduce(&comm).unwrap();
        comm.send_recv(&[1u8], 1 - comm.rank(), &mut [0u8], 1 - comm.rank()).unwrap();
        let other = comm.duplicate().unwrap();
        all_reduce(&other).unwrap();
        let _memory = comm.alloc::<u8>(1 << 20).unwrap();
        let after = descriptors();
        let new: Vec<_> = after.difference(&before).collect();
        assert!(new.len() > 4 && new.iter().all(|(_, closed)| *closed), "{new:?}");
        comm.barrier().unwrap();
    });
    for transport in ["auto", "tcp"] {
        let test = "programs_that_are_executed_inherit_nothing";
        let mut job = Job::start(test, "rank", 2, &[("MAYPOLE_TRANSPORT", transport)]);
        job.end(&[0, 1]);
    }
}

#[test]
fn a_child_makes_communicators_whatever_its_parent_s_threads_were_at() {
    let alone = || {
        let comm = Communicator::threads(1).unwrap().remove(0);
        all_reduce(&comm).unwrap();
    };
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    alone();
                }
            });
        }
        let statuses: Vec<WaitStatus> =
            (0..FORKS).map(|_| waitpid(child(How::Fork, alone), None).expect("a child")).collect();
        over.store(true, Ordering::Relaxed);
        let bad: Vec<_> = statuses.iter().filter(|status| !matches!(status, WaitStatus::Exited(_, 0))).collect();
        assert!(bad.is_empty(), "{bad:?}");
    });
}

/// So many that a lock which another thread holds for a hundredth of the time is met.
const FORKS: usize = 200;
