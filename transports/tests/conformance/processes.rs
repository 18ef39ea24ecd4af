//! Ranks that are processes: bytes between them, and what a rank sees when its peer is killed.

use std::time::Duration;

use maypole_transports::shm::{Group, Segment};
use maypole_transports::tcp::{self, Wire};
use maypole_transports::{LinkError, Receiver, Sender};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::factories::{End, Factory, Sealed, Shm, Tcp};
use crate::traffic::{bytes_at, recv_all, send_all, until};

/// Run `child` in a new process. It ends with status 0 if `child` returned, with 1 if it panicked.
fn in_child(child: impl FnOnce()) -> Pid {
    // SAFETY: the child uses memory and file descriptors it inherited, allocates (the C library makes that safe after a
    // fork), and leaves with `_exit`, running nothing of the test harness.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: ends the process; no destructors are owed anything.
            unsafe { libc::_exit(i32::from(outcome.is_err())) }
        }
    }
}

/// Receive `len` bytes and send them back.
fn echo(end: &mut End, len: usize) {
    let bytes = recv_all(&mut *end.receiver, len);
    send_all(&mut *end.sender, &bytes, || drop(end.receiver.absorb()));
}

fn converse(end: &mut End, child: Pid) {
    for len in [8, 100_000, 3_000_000] {
        let bytes = bytes_at(len as u64, len);
        std::thread::scope(|scope| {
            let End { sender, receiver, .. } = &mut *end;
            scope.spawn(|| send_all(&mut **sender, &bytes, || {}));
            assert!(recv_all(&mut **receiver, len) == bytes, "echo of {len} bytes");
        });
    }
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
}

#[test]
fn shm_between_processes() {
    // The child maps the memory anew, by its descriptor, as a rank that was handed one does.
    let shape = Shm::shape(64 << 10);
    let segment = Segment::create(shape).unwrap();
    let end = |segment, me: usize| {
        let group = Group::new(segment, me);
        End { sender: group.sender(1 - me, 0), receiver: group.receiver(1 - me, 0), _group: Some(group) }
    };
    // Of the parent's own descriptor the child has none; this one is for the child.
    let fd = segment.fd().unwrap().try_clone_to_owned().unwrap();
    let child = in_child(|| {
        let mut end = end(Segment::open(shape, fd).unwrap(), 1);
        [8, 100_000, 3_000_000].into_iter().for_each(|len| echo(&mut end, len));
    });
    converse(&mut end(segment.clone(), 0), child);
}

#[test]
fn tcp_between_processes() {
    for connections in [1, 4] {
        let (mut a, mut b) = Tcp::v4(connections).pair(64 << 10);
        let child = in_child(|| [8, 100_000, 3_000_000].into_iter().for_each(|len| echo(&mut b, len)));
        converse(&mut a, child);
    }
}

#[test]
fn a_killed_peer_is_gone_within_a_second() {
    for connections in [1, 4] {
        let (ours, theirs) = Tcp::v4(connections).streams();
        killed(ours, theirs);
        let (ours, theirs) = Sealed(Tcp::v4(connections)).wires();
        killed(ours, theirs);
    }
}

/// The peer of `ours` is a process that is killed.
fn killed<W: Into<Wire>>(ours: Vec<W>, mut theirs: Vec<W>) {
    let child = in_child(|| {
        let (mut sender, _receiver) = tcp::link(std::mem::take(&mut theirs), 64 << 10).unwrap();
        send_all(&mut sender, &bytes_at(0, 5000), || {});
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    // This process's copies of the child's ends must go, or the connections outlive the child.
    drop(theirs);
    let (mut sender, mut receiver) = tcp::link(ours, 64 << 10).unwrap();
    assert_eq!(recv_all(&mut receiver, 5000), bytes_at(0, 5000));
    kill(child, Signal::SIGKILL).unwrap();
    until("the receiver being told", || matches!(receiver.recv(&mut [0; 8]), Err(LinkError::Gone { .. })));
    until("the sender being told", || {
        matches!(sender.send(&[0; 100]).and_then(|_| sender.end()), Err(LinkError::Gone { .. }))
    });
    waitpid(child, None).unwrap();
}
