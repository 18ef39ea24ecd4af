//! Links that nobody waits for cost nothing to a rank that waits. The system call that reads a
//! socket is counted: this program has its own `recv` in front of the library's.
//!
//! One test in a file of its own, since what it counts is the whole process'.

mod ranks;

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::time::Duration;

use maypole::config::TransportChoice;
use maypole::{Communicator, ReduceOp};
use ranks::{config, threads};

thread_local! {
    /// How often this thread has read a socket, and looked for news of all.
    static CALLS: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// # Safety
/// As the library's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn recv(fd: c_int, into: *mut c_void, len: usize, flags: c_int) -> isize {
    CALLS.set((CALLS.get().0 + 1, CALLS.get().1));
    let nobody = std::ptr::null_mut::<c_void>();
    // SAFETY: the caller's promise; whom it came from is not asked.
    unsafe { libc::syscall(libc::SYS_recvfrom, fd, into, len, flags, nobody, nobody) as isize }
}

/// # Safety
/// As the library's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(set: c_int, events: *mut c_void, most: c_int, timeout: c_int) -> c_int {
    CALLS.set((CALLS.get().0, CALLS.get().1 + 1));
    let (mask, size) = (std::ptr::null::<c_void>(), size_of::<u64>());
    // SAFETY: the caller's promise; no signals are masked.
    unsafe { libc::syscall(libc::SYS_epoll_pwait, set, events, most, timeout, mask, size) as c_int }
}

const RANKS: usize = 12;

/// What each rank's thread calls in `operation`, to which the last rank comes 200 ms late.
fn calls(operation: impl Fn(&Communicator) + Sync) -> Vec<(u64, u64)> {
    let mut config = config(TransportChoice::Tcp);
    config.set("MAYPOLE_ALGORITHM", "all_to_all=direct").unwrap();
    // It polls all the time that it waits.
    config.spin = Some(Duration::from_secs(1));
    threads(RANKS, &config, |comm| {
        // All pairs are connected now, on the channels that these take.
        exchange(&comm);
        operation(&comm);
        comm.barrier().unwrap();
        if comm.rank() + 1 == RANKS {
            std::thread::sleep(Duration::from_millis(200));
        }
        CALLS.set((0, 0));
        operation(&comm);
        CALLS.get()
    })
}

/// Each rank waits for all others at the same time.
fn exchange(comm: &Communicator) {
    let (mine, mut all) = (vec![comm.rank() as u8; 64 * RANKS], vec![0u8; 64 * RANKS]);
    comm.all_to_all(&mine, &mut all).unwrap();
    assert!((0..RANKS).all(|from| all[64 * from] == from as u8));
}

/// Each rank waits for one after the other.
fn sum(comm: &Communicator) {
    let mut sum = [0u32];
    comm.all_reduce(&[1u32], &mut sum, ReduceOp::Sum).unwrap();
    assert_eq!(sum, [RANKS as u32]);
}

#[test]
fn a_rank_that_waits_reads_no_idle_link() {
    for (name, calls) in [("a sum", calls(sum)), ("an exchange", calls(exchange))] {
        println!("{name}: reads and looks by rank: {calls:?}");
        let all: u64 = calls.iter().map(|(reads, looks)| reads + looks).sum();
        assert!(all > 1000, "nobody has waited: {calls:?}");
        for (reads, looks) in calls {
            // 32 polls for a look, at most; what is left over is for the bytes that do come.
            assert!(reads <= 33 * looks + 100, "{name}: {reads} reads in {looks} polls, most of them of idle links");
        }
    }
}
