//! Promises of the node: ranks meet or all are told why not, connect, pass descriptors, and learn of each other's fate with one verdict.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use maypole::fingerprint::Fingerprint;
use maypole::node::{Meeting, Node, UniqueId};
use maypole::watch::{Jury, Watch};
use maypole::{Collective, Config, DataType, Error, ReduceOp, Verdict};

/// One context for all: each test has a job of its own.
const WORLD: u64 = 7;

fn config() -> Config {
    let mut config = Config::default();
    config.connect_timeout = Duration::from_secs(20);
    config
}

/// Run `body` for each rank on a thread of its own; results by rank.
fn ranks<T: Send>(size: usize, body: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || body(rank))).collect();
        threads.into_iter().map(|t| t.join().expect("a rank panicked")).collect()
    })
}

/// A world of `size` nodes on threads.
fn world(size: usize) -> Vec<Arc<Node>> {
    let config = config();
    let id = UniqueId::create(&config).unwrap();
    ranks(size, |rank| Node::join(Meeting::Id(id), rank, size, &config).unwrap())
}

/// Register the world on every node.
fn watches(nodes: &[Arc<Node>]) -> Vec<Arc<Watch>> {
    let register = |node: &Arc<Node>| {
        let watch = Arc::new(Watch::default());
        node.register(WORLD, (0..node.size()).collect(), watch.clone());
        watch
    };
    nodes.iter().map(register).collect()
}

fn wait_verdict(watch: &Watch, within: Duration) -> Option<Verdict> {
    let until = Instant::now() + within;
    while Instant::now() < until {
        if watch.raised() {
            return watch.verdict();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// The verdict that all `watches` come to, which must be the same.
fn common_verdict(watches: &[Arc<Watch>]) -> Verdict {
    let all: Vec<Verdict> =
        watches.iter().map(|w| wait_verdict(w, Duration::from_secs(5)).expect("a verdict")).collect();
    assert!(all.iter().all(|v| *v == all[0]), "{all:?}");
    all[0].clone()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn at(host: &str, port: u16) -> Meeting {
    Meeting::Address { host: host.into(), port, listener: None, key: [9; 32] }
}

fn all_reduce(sequence: u64, count: usize) -> Fingerprint {
    Fingerprint::collective(sequence, Collective::AllReduce, DataType::F32, Some(ReduceOp::Sum), 0, count)
}

fn broadcast(sequence: u64, root: usize) -> Fingerprint {
    Fingerprint::collective(sequence, Collective::Broadcast, DataType::F32, None, root, 5)
}

#[test]
fn worlds_of_many_sizes_meet_fast() {
    for size in [1, 2, 8, 32] {
        let start = Instant::now();
        let nodes = world(size);
        let met = start.elapsed();
        for (rank, node) in nodes.iter().enumerate() {
            assert_eq!((node.rank(), node.size()), (rank, size));
            assert_eq!(node.peers(), nodes[0].peers());
            assert_eq!(node.peers()[rank].pid, std::process::id());
            assert_eq!(node.peers()[rank].host_id, node.peers()[0].host_id);
        }
        let start = Instant::now();
        drop(nodes);
        println!("{size} ranks met in {met:?} and left in {:?}", start.elapsed());
        assert!(met < Duration::from_secs(1));
    }
}

#[test]
fn an_address_is_enough_and_late_ranks_are_waited_for() {
    for host in ["127.0.0.1", "::1", "localhost"] {
        let port = free_port();
        let nodes = ranks(3, |rank| {
            std::thread::sleep(Duration::from_millis(30 * (2 - rank as u64)));
            Node::join(at(host, port), rank, 3, &config()).unwrap()
        });
        let data = nodes[1].peers()[2].data[0];
        assert!(data.ip().is_loopback(), "{data}: a job on one machine opens no port to others");
        assert_eq!(data.is_ipv6(), host == "::1");
    }
}

#[test]
fn an_inherited_listener_is_used() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = std::sync::Mutex::new(Some(OwnedFd::from(listener)));
    ranks(2, |rank| {
        let listener = (rank == 0).then(|| listener.lock().unwrap().take().unwrap());
        Node::join(Meeting::Address { host: "127.0.0.1".into(), port, listener, key: [9; 32] }, rank, 2, &config())
            .unwrap()
    });
}

#[test]
fn the_meeting_point_ends_with_the_job() {
    let port = free_port();
    let nodes = ranks(2, |rank| Node::join(at("127.0.0.1", port), rank, 2, &config()).unwrap());
    drop(nodes);
    let until = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(Instant::now() < until, "the hub still listens");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn connections_come_out_in_order_on_the_other_side() {
    let nodes = world(3);
    let (accepted, wakes) = mpsc::channel();
    nodes[2].on_accept(Box::new(move || accepted.send(()).unwrap()));
    assert!(nodes[2].accepted(0, WORLD, 1, 3).is_none());
    let mut out = nodes[0].connect(2, WORLD, 1, 3).unwrap();
    let mut other = nodes[1].connect(2, WORLD, 1, 1).unwrap();
    let taken = loop {
        wakes.recv_timeout(Duration::from_secs(5)).unwrap();
        if let Some(streams) = nodes[2].accepted(0, WORLD, 1, 3) {
            break streams;
        }
    };
    assert!(nodes[2].accepted(0, WORLD, 1, 3).is_none(), "given out once");
    for (i, stream) in out.iter_mut().enumerate() {
        stream.write_all(&[i as u8]).unwrap();
    }
    other[0].write_all(&[77]).unwrap();
    for (i, mut stream) in taken.into_iter().enumerate() {
        stream.set_nonblocking(false).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte[0], i as u8);
    }
}

#[test]
fn descriptors_are_passed_when_they_are_there() {
    let nodes = world(3);
    let file = nix::sys::memfd::memfd_create(c"maypole-test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::write(&file, b"pole").unwrap();
    let inode = nix::sys::stat::fstat(&file).unwrap().st_ino;
    std::thread::scope(|scope| {
        let fetchers: Vec<_> = nodes[1..].iter().map(|node| scope.spawn(|| node.fetch_fd(0, WORLD).unwrap())).collect();
        std::thread::sleep(Duration::from_millis(30));
        nodes[0].share_fd(WORLD, file);
        for fetcher in fetchers {
            let fd = fetcher.join().unwrap();
            assert_eq!(nix::sys::stat::fstat(&fd).unwrap().st_ino, inode);
            let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_ne!(flags & nix::libc::FD_CLOEXEC, 0);
        }
    });
    let start = Instant::now();
    nodes[1].fetch_fd(0, WORLD).unwrap();
    println!("a descriptor is fetched in {:?}", start.elapsed());
}
