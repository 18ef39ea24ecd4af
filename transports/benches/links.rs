//! What a link costs: the time of a message there and back, and the time of a large message one way.
//!
//! ```text
//! cargo bench -p maypole-transports --bench links
//! ```
//!
//! Each pair is two threads that poll without sleeping, so it needs two cores to itself. Half of a round trip is the
//! latency that a collective pays per step. Sockets and shared memory behave between threads as between processes; TCP
//! goes over loopback.

use std::hint::black_box;
use std::net::{TcpListener, TcpStream};
use std::thread;

use criterion::{BenchmarkId, Criterion, Throughput};
use maypole_transports::shm::{Group, Segment, Shape};
use maypole_transports::{Receiver, Sender, tcp};

const CREDIT: usize = 256 << 10;

struct End {
    sender: Box<dyn Sender>,
    receiver: Box<dyn Receiver>,
    _group: Option<Group>,
}

fn tcp_pair(connections: usize) -> (End, End) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connect = |_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap().0);
    let (a, b): (Vec<_>, Vec<_>) = (0..connections).map(connect).unzip();
    let end = |streams| {
        let (sender, receiver) = tcp::link(streams, CREDIT).unwrap();
        End { sender: Box::new(sender), receiver: Box::new(receiver), _group: None }
    };
    (end(a), end(b))
}

fn shm_pair() -> (End, End) {
    let segment =
        Segment::anonymous(Shape { members: 2, channels: 1, second_bell_from: 1, ring: CREDIT, window: 4096 }).unwrap();
    let end = |me: usize| {
        let group = Group::new(segment.clone(), me);
        End { sender: group.sender(1 - me, 0), receiver: group.receiver(1 - me, 0), _group: Some(group) }
    };
    (end(0), end(1))
}

fn pairs() -> Vec<(&'static str, (End, End))> {
    vec![("shm", shm_pair()), ("tcp", tcp_pair(1)), ("tcp x4", tcp_pair(4))]
}

fn send(link: &mut dyn Sender, bytes: &[u8]) {
    let mut sent = 0;
    while sent < bytes.len() {
        sent += link.send(&bytes[sent..]).unwrap();
    }
    let mut done = link.end().unwrap();
    while !done {
        done = link.flush().unwrap();
    }
}

/// Receive a message; false when the peer has gone instead.
fn recv(link: &mut dyn Receiver, into: &mut [u8]) -> bool {
    let mut got = 0;
    while got < into.len() {
        match link.recv(&mut into[got..]) {
            Ok(0) => std::hint::spin_loop(),
            Ok(n) => got += n,
            Err(_) => return false,
        }
    }
    link.end();
    true
}

/// A peer that answers each message of `len` bytes with its first `answer` bytes, until this end is dropped.
fn answering(end: End, len: usize, answer: usize) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        // All of it: a closure that names only the links would leave the group behind, and the peer would have left.
        let mut end = end;
        let mut bytes = vec![0; len];
        while recv(&mut *end.receiver, &mut bytes) {
            send(&mut *end.sender, &bytes[..answer]);
        }
    })
}

fn run(c: &mut Criterion, group: &str, sizes: &[usize], answer: fn(usize) -> usize) {
    let mut group = c.benchmark_group(group);
    for &len in sizes {
        group.throughput(Throughput::Bytes(len as u64));
        for (name, (mut near, far)) in pairs() {
            let peer = answering(far, len, answer(len));
            let (bytes, mut back) = (vec![1; len], vec![0; answer(len)]);
            group.bench_function(BenchmarkId::new(name, len), |b| {
                b.iter(|| {
                    send(&mut *near.sender, black_box(&bytes));
                    assert!(recv(&mut *near.receiver, &mut back));
                });
            });
            drop(near);
            peer.join().unwrap();
        }
    }
    group.finish();
}

/// There and back.
fn round_trip(c: &mut Criterion) {
    run(c, "round trip", &[8, 4 << 10, 32 << 10], |len| len);
}

/// There, with a byte back to say that it has arrived.
fn one_way(c: &mut Criterion) {
    run(c, "one way", &[256 << 10, 4 << 20], |_| 1);
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    round_trip(&mut criterion);
    one_way(&mut criterion);
    criterion.final_summary();
}
