//! Ranks that believe to have a core each, and do not: others run there, of which they know nothing.

mod ranks;

use std::time::Duration;

use maypole::{Communicator, ReduceOp};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use ranks::{Job, role, say};

const CALLS: u32 = 2000;

/// Every thread of this process shares the first core that it may use with everybody else who does this.
fn crowd_together() {
    let may = sched_getaffinity(Pid::this()).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(|core| may.is_set(*core).unwrap()).unwrap()).unwrap();
    for thread in std::fs::read_dir("/proc/self/task").unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap().parse().unwrap();
        // It may have ended.
        let _ = sched_setaffinity(Pid::from_raw(thread), &one);
    }
    assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), one);
}

/// Polls of a rank take the core from the very rank that it waits for: before ranks looked for others on their core,
/// each call polled for as long as a wait may, 200 us and more. What other programs do to this machine is not counted.
#[test]
fn ranks_that_share_a_core_unknown_to_them_do_not_poll() {
    role(|_| {
        let comm = Communicator::from_env().unwrap();
        // After the ranks have told each other how many cores they have.
        crowd_together();
        let call = || {
            let mut buffer = [1.0f32; 4];
            comm.all_reduce_in_place(&mut buffer, ReduceOp::Sum).unwrap();
            assert_eq!(buffer, [2.0; 4]);
        };
        // The first calls find out.
        (0..100).for_each(|_| call());
        let worked = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
        let before = worked();
        (0..CALLS).for_each(|_| call());
        say(((worked() - before) / CALLS).as_nanos());
    });
    for transport in ["shm", "tcp"] {
        let test = "ranks_that_share_a_core_unknown_to_them_do_not_poll";
        let mut job = Job::start(test, "", 2, &[("MAYPOLE_TRANSPORT", transport)]);
        let cost: Vec<u64> = job.hear(&[0, 1]).into_iter().map(|(_, line)| line.parse().unwrap()).collect();
        job.end(&[0, 1]);
        println!("{transport}: {cost:?} ns of work for each call");
        assert!(cost.iter().all(|ns| *ns < 60_000), "{transport}: {cost:?} ns of work for each call");
    }
}
