//! Hosts that do not let ranks share memory: they talk over TCP instead, or are told what forbids it.

mod ranks;

use maypole::{Communicator, ReduceOp};
use nix::sys::resource::{Resource, setrlimit};
use ranks::{Job, role, say};

/// Less than a segment takes with rings of 64 MiB, and more than all else.
const ADDRESSES: u64 = 600 << 20;

/// From now on no file of this process may be longer than a few pages. Its errors may go to one that is.
fn limit_files() {
    let nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    nix::unistd::dup2_stderr(nowhere).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 64 << 10, 64 << 10).unwrap();
}

/// From now on this process has addresses for threads and sockets, and not for what its ranks would share.
fn limit_addresses() {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split_whitespace().next().unwrap().parse().unwrap();
    let limit = pages * 4096 + ADDRESSES;
    setrlimit(Resource::RLIMIT_AS, limit, limit).unwrap();
}

/// From now on this system call is refused, as filters in containers do.
fn forbid(call: libc::c_long) {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        step(load, 0, 0, 0),
        step(equal, 0, 1, call as u32),
        step(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the filter is read during the call; it concerns this thread and those that it starts.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter, 0, 0) == 0
    };
    assert!(set, "no filter: {}", std::io::Error::last_os_error());
}

/// Whether this is the rank of which the role says that it alone may not.
fn is_the_one() -> bool {
    std::env::var("RANK").is_ok_and(|rank| rank == "1")
}

fn rank(role: &str) {
    match role {
        "files" => limit_files(),
        "fallocate" => forbid(libc::SYS_fallocate),
        "pidfds" => forbid(libc::SYS_pidfd_open),
        "eventfds" if is_the_one() => forbid(libc::SYS_eventfd2),
        "descriptors" if is_the_one() => forbid(libc::SYS_recvmsg),
        "memory" if is_the_one() => limit_addresses(),
        "eventfds" | "descriptors" | "memory" => {}
        _ => forbid(libc::SYS_memfd_create),
    }
    let comm = match Communicator::from_env() {
        Ok(comm) => comm,
        Err(error) => return say(error),
    };
    let small = [1.0f32];
    let mut sum = [0.0f32];
    comm.all_reduce(&small, &mut sum, ReduceOp::Sum).unwrap();
    assert_eq!(sum, [3.0]);
    let mut large = comm.alloc::<f32>(300_000).unwrap();
    assert_eq!(large.is_shared(), ["fallocate", "pidfds"].contains(&role));
    large.fill(1.0);
    comm.duplicate().unwrap().all_reduce_in_place(&mut large, ReduceOp::Sum).unwrap();
    assert!(large.iter().all(|x| *x == 3.0));
    comm.send_recv(&[7u8], (comm.rank() + 1) % 3, &mut [0u8], (comm.rank() + 2) % 3).unwrap();
    say("it works");
}

#[test]
fn ranks_that_may_not_share_memory_talk_over_tcp() {
    role(rank);
    let test = "ranks_that_may_not_share_memory_talk_over_tcp";
    for (what, hint) in [("files", "ulimit -f"), ("memfds", "vm.memfd_noexec")] {
        let mut job = Job::start(test, what, 3, &[]);
        assert!(job.hear(&[0, 1, 2]).iter().all(|(_, said)| said == "it works"));
        job.end(&[0, 1, 2]);
        let mut job = Job::start(test, what, 3, &[("MAYPOLE_TRANSPORT", "shm")]);
        let said = job.hear(&[0, 1, 2]);
        println!("{what}: {}", said[0].1);
        assert!(said.iter().all(|(_, said)| said.contains(hint) && said.contains("MAYPOLE_TRANSPORT=tcp")), "{said:?}");
        job.end(&[0, 1, 2]);
    }
}

/// A rank alone that cannot share memory has all of its host talk over TCP, if they may.
#[test]
fn one_rank_that_may_not_share_memory_is_enough() {
    role(rank);
    let test = "one_rank_that_may_not_share_memory_is_enough";
    let long = ("MAYPOLE_RING", "67108864");
    let mut job = Job::start(test, "memory", 3, &[long]);
    let said = job.hear(&[0, 1, 2]);
    assert!(said.iter().all(|(_, said)| said == "it works"), "{said:?}");
    job.end(&[0, 1, 2]);
    let mut job = Job::start(test, "memory", 3, &[long, ("MAYPOLE_TRANSPORT", "shm")]);
    let said = job.hear(&[0, 1, 2]);
    println!("{}", said[0].1);
    assert!(said.iter().all(|(_, said)| said.contains("rank 1") && said.contains("memory")), "{said:?}");
    job.end(&[0, 1, 2]);
    let mut job = Job::start(test, "pidfds", 3, &[]);
    assert!(job.hear(&[0, 1, 2]).iter().all(|(_, said)| said == "it works"));
    job.end(&[0, 1, 2]);
}

/// What a rank needs in any case, and may not have, is named on all of them.
#[test]
fn what_a_filter_forbids_one_rank_is_said_on_all() {
    role(rank);
    for what in ["eventfds", "descriptors"] {
        let begun = std::time::Instant::now();
        let settings = [("MAYPOLE_CONNECT_TIMEOUT", "20")];
        let mut job = Job::start("what_a_filter_forbids_one_rank_is_said_on_all", what, 3, &settings);
        let said = job.hear(&[0, 1, 2]);
        println!("{what}: after {:.1?}: {said:?}", begun.elapsed());
        assert!([0, 2].iter().all(|rank| said[*rank].1.contains("rank 1")), "{said:?}");
        assert!(said.iter().all(|(_, said)| said.contains("not permitted")), "{said:?}");
        job.end(&[0, 1, 2]);
    }
}

/// The file that segments lie in may grow as far as a limit, and no child of a communicator needs that it grows.
#[test]
fn children_beyond_the_limit_of_files_talk_over_tcp() {
    role(|_| {
        setrlimit(Resource::RLIMIT_FSIZE, 64 << 20, 64 << 20).unwrap();
        let world = Communicator::from_env().unwrap();
        let mut shared = 0;
        let apart = loop {
            let child = world.duplicate().unwrap();
            let mut sum = [1.0f32; 100];
            child.all_reduce_in_place(&mut sum, ReduceOp::Sum).unwrap();
            assert_eq!(sum, [2.0; 100]);
            if !child.alloc::<u8>(1).unwrap().is_shared() {
                break child;
            }
            shared += 1;
            assert!(shared < 1000, "the file has no end");
        };
        assert!(shared > 0 && world.alloc::<u8>(1).unwrap().is_shared());
        let grandchild = apart.split(Some(1), 0).unwrap().unwrap();
        grandchild.barrier().unwrap();
        say("it works");
    });
    let mut job = Job::start("children_beyond_the_limit_of_files_talk_over_tcp", "", 2, &[]);
    for (_, said) in job.hear(&[0, 1]) {
        assert_eq!(said, "it works");
    }
    job.end(&[0, 1]);
}

#[test]
fn memory_is_shared_where_only_setting_it_aside_is_forbidden() {
    role(rank);
    let test = "memory_is_shared_where_only_setting_it_aside_is_forbidden";
    let mut job = Job::start(test, "fallocate", 3, &[]);
    let said = job.hear(&[0, 1, 2]);
    assert!(said.iter().all(|(_, said)| said == "it works"), "{said:?}");
    job.end(&[0, 1, 2]);
}

#[test]
fn whoever_runs_it_is_told_that_it_is_slower() {
    let maypole = env!("CARGO_BIN_EXE_maypole");
    let script = format!("ulimit -f 100; exec {maypole} run -n 3 -- {maypole} perf all_reduce -b 8 -e 64 -n 3");
    let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    assert_eq!(said.matches("talk over TCP, which is slower").count(), 1, "{said}");
    assert!(said.contains("ulimit -f") && said.contains("MAYPOLE_TRANSPORT=tcp"), "{said}");
}
