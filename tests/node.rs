//! Promises of the node: ranks meet or all are told why not, connect, pass descriptors, and learn of each other's fate
//! with one verdict.

#[path = "ranks/port.rs"]
mod port;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use maypole::fingerprint::Fingerprint;
use maypole::node::{Meeting, Node, UniqueId};
use maypole::watch::{Jury, Stall, Watch};
use maypole::{Collective, Config, DataType, Error, ReduceOp, Verdict};
use port::free_port;

/// One context for all: each test has a job of its own.
const WORLD: u64 = 7;
/// How long anything may take that takes milliseconds, on a machine with ten other things to do.
const AT_MOST: Duration = Duration::from_secs(60);

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
    let all: Vec<Verdict> = watches.iter().map(|w| wait_verdict(w, AT_MOST).expect("a verdict")).collect();
    assert!(all.iter().all(|v| *v == all[0]), "{all:?}");
    all[0].clone()
}

fn at(host: &str, port: u16) -> Meeting {
    Meeting::Address { host: host.into(), port, key: [9; 32], earlier: 0 }
}

fn all_reduce(sequence: u64, count: usize) -> Fingerprint {
    Fingerprint::collective(sequence, Collective::AllReduce, DataType::F32, Some(ReduceOp::Sum), 0, count)
}

fn broadcast(sequence: u64, root: usize) -> Fingerprint {
    Fingerprint::collective(sequence, Collective::Broadcast, DataType::F32, None, root, 5)
}

#[test]
fn worlds_of_many_sizes_meet_fast() {
    // On a busy machine not every time.
    let mut late = 0;
    for size in [1, 2, 8, 32].repeat(5) {
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
        late += usize::from(met >= Duration::from_secs(1));
    }
    assert!(late < 5, "some size has been late every time: {late}");
}

#[test]
fn a_unique_id_whose_maker_has_ended_is_given_up_soon() {
    let mut config = config();
    config.connect_timeout = Duration::from_secs(60);
    let id = UniqueId::create(&config).unwrap();
    drop(ranks(2, |rank| Node::join(Meeting::Id(id), rank, 2, &config).unwrap()));
    let begun = Instant::now();
    let error = Node::join(Meeting::Id(id), 1, 2, &config).unwrap_err().to_string();
    assert!(error.contains("refused") && error.contains("still runs"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

/// Each rank says that it has made its part of a communicator, after so many milliseconds; `None` says nothing.
fn make(nodes: &[Arc<Node>], within: Duration, who: [Option<(u64, bool)>; 3]) -> Vec<Result<Vec<usize>, Error>> {
    let _watches = watches(nodes);
    let made = ranks(3, |rank| {
        let (after, apart) = who[rank]?;
        std::thread::sleep(Duration::from_millis(after));
        Some(nodes[rank].all_make(WORLD, apart, within))
    });
    made.into_iter().flatten().collect()
}

#[test]
fn all_members_make_a_communicator_or_none_does() {
    let nodes = world(3);
    for made in make(&nodes, AT_MOST, [Some((100, false)), Some((0, true)), Some((50, false))]) {
        assert_eq!(made.unwrap(), [1], "rank 1 cannot share memory");
    }
    // Who does not come is named, and a verdict ends the wait of the others.
    let nodes = world(3);
    let begun = Instant::now();
    let late = make(&nodes, Duration::from_millis(400), [Some((0, false)), None, Some((0, false))]);
    assert!(begun.elapsed() < AT_MOST / 2);
    for made in late {
        let error = made.unwrap_err().to_string();
        assert!(error.contains("rank 1 on host ") && error.contains("400ms"), "{error}");
    }
    let nodes = world(3);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            nodes[1].report(WORLD, Verdict::Aborted { rank: 1, why: "no descriptors".into() });
        });
        for made in make(&nodes, AT_MOST, [Some((0, false)), None, Some((0, false))]) {
            assert!(matches!(made.unwrap_err(), Error::Failed { verdict: Verdict::Aborted { rank: 1, .. }, .. }));
        }
    });
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
fn the_meeting_point_ends_with_the_job() {
    let port = free_port();
    let nodes = ranks(2, |rank| Node::join(at("127.0.0.1", port), rank, 2, &config()).unwrap());
    drop(nodes);
    let until = Instant::now() + AT_MOST;
    while TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(Instant::now() < until, "the hub still listens");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn encrypted_connections_have_keys_on_both_sides() {
    let mut config = config();
    config.encrypt = true;
    let id = UniqueId::create(&config).unwrap();
    let nodes = ranks(2, |rank| Node::join(Meeting::Id(id), rank, 2, &config).unwrap());
    let _watches = watches(&nodes);
    let ours = nodes[0].connect(1, WORLD, 0, 2).unwrap();
    let start = Instant::now();
    let theirs = loop {
        assert!(start.elapsed() < AT_MOST);
        if let Some(wires) = nodes[1].accepted(0, WORLD, 0, 2) {
            break wires;
        }
    };
    assert!(ours.iter().chain(&theirs).all(|wire| wire.seal.is_some()));
}

#[test]
fn connections_come_out_in_order_on_the_other_side() {
    let nodes = world(3);
    let (accepted, wakes) = mpsc::channel();
    nodes[2].on_accept(WORLD, Box::new(move || accepted.send(()).unwrap()));
    assert!(nodes[2].accepted(0, WORLD, 1, 3).is_none());
    let mut out = nodes[0].connect(2, WORLD, 1, 3).unwrap();
    let mut other = nodes[1].connect(2, WORLD, 1, 1).unwrap();
    let taken = loop {
        wakes.recv_timeout(AT_MOST).unwrap();
        if let Some(streams) = nodes[2].accepted(0, WORLD, 1, 3) {
            break streams;
        }
    };
    assert!(nodes[2].accepted(0, WORLD, 1, 3).is_none(), "given out once");
    for (i, wire) in out.iter_mut().enumerate() {
        wire.stream.write_all(&[i as u8]).unwrap();
    }
    other[0].stream.write_all(&[77]).unwrap();
    for (i, mut wire) in taken.into_iter().enumerate() {
        wire.stream.set_nonblocking(false).unwrap();
        let mut byte = [0];
        wire.stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte[0], i as u8);
    }
}

#[test]
fn connections_are_made_beside_the_caller() {
    let nodes = world(2);
    let (made, wakes) = mpsc::channel();
    nodes[0].on_accept(WORLD, Box::new(move || made.send(()).unwrap_or_default()));
    let begun = Instant::now();
    assert!(nodes[0].connected(1, WORLD, 0, 2).unwrap().is_none(), "nothing can be there at once");
    let streams = loop {
        wakes.recv_timeout(AT_MOST).unwrap();
        if let Some(streams) = nodes[0].connected(1, WORLD, 0, 2).unwrap() {
            break streams;
        }
    };
    println!("made after {:?}", begun.elapsed());
    assert_eq!(streams.len(), 2);
    assert_eq!(nodes[0].unreached(WORLD), None);
    while nodes[1].accepted(0, WORLD, 0, 2).is_none() {
        assert!(begun.elapsed() < AT_MOST);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn descriptors_are_passed_when_they_are_there() {
    let nodes = world(3);
    let file = nix::sys::memfd::memfd_create(c"maypole-test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::write(&file, b"pole").unwrap();
    let inode = nix::sys::stat::fstat(&file).unwrap().st_ino;
    std::thread::scope(|scope| {
        let fetchers: Vec<_> =
            nodes[1..].iter().map(|node| scope.spawn(|| node.fetch_fd(0, WORLD, 0, AT_MOST).unwrap())).collect();
        std::thread::sleep(Duration::from_millis(30));
        nodes[0].share_fd(WORLD, 0, file);
        for fetcher in fetchers {
            let fd = fetcher.join().unwrap();
            assert_eq!(nix::sys::stat::fstat(&fd).unwrap().st_ino, inode);
            let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_ne!(flags & nix::libc::FD_CLOEXEC, 0);
        }
    });
    let start = Instant::now();
    nodes[1].fetch_fd(0, WORLD, 0, AT_MOST).unwrap();
    println!("a descriptor is fetched in {:?}", start.elapsed());
}

#[test]
fn ipv6_only_works_throughout() {
    let mut config = config();
    config.set("MAYPOLE_FAMILY", "6").unwrap();
    let id = UniqueId::create(&config).unwrap();
    let nodes = ranks(2, |rank| Node::join(Meeting::Id(id), rank, 2, &config).unwrap());
    assert!(nodes[0].peers().iter().all(|p| !p.data.is_empty() && p.data.iter().all(|a| a.is_ipv6())));
    let stream = nodes[0].connect(1, WORLD, 0, 1).unwrap();
    assert!(stream[0].stream.peer_addr().unwrap().is_ipv6());
}

#[test]
fn the_interface_can_be_chosen() {
    let mut config = config();
    config.set("MAYPOLE_INTERFACE", "lo").unwrap();
    let id = UniqueId::create(&config).unwrap();
    let nodes = ranks(2, |rank| Node::join(Meeting::Id(id), rank, 2, &config).unwrap());
    assert!(nodes[1].peers()[0].data.iter().all(|a| a.ip().is_loopback()));
    nodes[0].connect(1, WORLD, 0, 2).unwrap();
    config.set("MAYPOLE_INTERFACE", "nosuch7").unwrap();
    let error = UniqueId::create(&config).unwrap_err();
    assert!(matches!(&error, Error::Setting { .. }) && error.to_string().contains("lo ("), "{error}");
}

/// Join ranks that cannot come together: the error of each.
fn refused(size: usize, who: impl Fn(usize) -> (usize, usize, Config) + Sync) -> Vec<String> {
    let id = UniqueId::create(&config()).unwrap();
    ranks(size, |i| {
        let (rank, size, config) = who(i);
        let error = Node::join(Meeting::Id(id), rank, size, &config).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Bootstrap { .. }), "{error:?}");
        error.to_string()
    })
}

#[test]
fn every_rank_is_told_why_the_job_cannot_start() {
    let pid = std::process::id().to_string();
    for error in refused(3, |i| ([0, 1, 1][i], 3, config())) {
        assert!(error.contains("two processes have rank 1") && error.contains(&pid), "{error}");
    }
    for error in refused(3, |i| (i, [3, 3, 4][i], config())) {
        assert!(error.contains("says 3") && error.contains("says 4"), "{error}");
    }
    for error in refused(3, |i| ([0, 1, 5][i], 3, config())) {
        assert!(error.contains("rank 5") && error.contains("out of range"), "{error}");
    }
    let mut other = config();
    other.ring *= 2;
    for error in refused(2, |i| (i, 2, if i == 0 { config() } else { other.clone() })) {
        assert!(error.contains("MAYPOLE_RING=262144") && error.contains("MAYPOLE_RING=524288"), "{error}");
    }
    // Whoever has the hub, and whether rank 0 does.
    let mut encrypts = config();
    encrypts.encrypt = true;
    for who in [0, 1] {
        for error in refused(2, |i| (i, 2, if i == who { encrypts.clone() } else { config() })) {
            assert!(error.contains("MAYPOLE_ENCRYPT=0") && error.contains("MAYPOLE_ENCRYPT=1"), "{error}");
        }
    }
}

/// Also if it is longer than any frame of a process that has not introduced itself.
#[test]
fn a_rank_that_cannot_take_part_says_why_at_any_length() {
    let mut nowhere = config();
    nowhere.interface = Some(["nosuch7"; 6000].join(","));
    let id = UniqueId::create(&config()).unwrap();
    let begun = Instant::now();
    let settings = [nowhere, config()];
    let join = |rank| Node::join(Meeting::Id(id), rank, 2, &settings[rank]).map(drop);
    let told = ranks(2, |rank| join(rank).unwrap_err().to_string());
    assert!(told[0].len() > 40_000 && told[0].contains("nosuch7"), "rank 0 is told all of it");
    assert!(told[1].contains("rank 0") && told[1].contains("cannot take part"), "{}", told[1]);
    assert!(told[1].contains("cut here") && begun.elapsed() < config().connect_timeout, "{:?}", begun.elapsed());
}

#[test]
fn those_who_come_after_the_failure_are_told_too() {
    let id = UniqueId::create(&config()).unwrap();
    let errors = ranks(3, |i| {
        std::thread::sleep(Duration::from_millis([0, 0, 400][i]));
        Node::join(Meeting::Id(id), [0, 0, 1][i], 2, &config()).map(|_| ()).unwrap_err().to_string()
    });
    assert!(errors.iter().all(|e| e.contains("two processes have rank 0")), "{errors:?}");
}

#[test]
fn missing_ranks_are_named() {
    let mut config = config();
    config.connect_timeout = Duration::from_millis(500);
    let id = UniqueId::create(&config).unwrap();
    let start = Instant::now();
    let errors = ranks(2, |i| Node::join(Meeting::Id(id), [0, 3][i], 5, &config).map(|_| ()).unwrap_err().to_string());
    assert!(start.elapsed() < Duration::from_secs(20), "no longer than it was asked to");
    assert!(errors.iter().all(|e| e.contains("ranks 1, 2, 4 did not come within 500ms")), "{errors:?}");
}

#[test]
fn a_meeting_point_that_nobody_holds_is_an_error_that_names_it() {
    let mut config = config();
    config.connect_timeout = Duration::from_millis(300);
    let port = free_port();
    let error = Node::join(at("127.0.0.1", port), 1, 2, &config).unwrap_err().to_string();
    assert!(
        error.contains(&format!("127.0.0.1:{port}")) && error.contains("refused") && error.contains("MASTER_PORT"),
        "{error}"
    );
    let error = Node::join(at("no-such-host.invalid", port), 1, 2, &config).unwrap_err().to_string();
    assert!(error.contains("no-such-host.invalid"), "{error}");
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let error = Node::join(at("127.0.0.1", port), 0, 2, &config).unwrap_err().to_string();
    assert!(error.contains("rank 0 cannot listen") && error.contains("in use"), "{error}");
    drop(taken);
}

#[test]
fn a_second_world_at_an_address_waits_for_the_first_to_end() {
    let port = free_port();
    let world = |earlier| {
        move |config: &Config, rank| {
            let meeting = Meeting::Address { host: "127.0.0.1".into(), port, key: [9; 32], earlier };
            Node::join(meeting, rank, 3, config)
        }
    };
    let barrier = std::sync::Barrier::new(3);
    let mut hasty = config();
    hasty.connect_timeout = Duration::from_millis(1500);
    let errors = ranks(3, |rank| {
        let first = world(0)(&config(), rank).unwrap();
        // While it lives there cannot be another: each rank is told, and the first is none the worse for it.
        let error = world(1)(&hasty, rank).map(|_| ()).unwrap_err().to_string();
        let watch = Arc::new(Watch::default());
        first.register(WORLD, vec![0, 1, 2], watch.clone());
        assert!(wait_verdict(&watch, Duration::from_millis(50)).is_none());
        barrier.wait();
        // One rank leaves late; the others, gone on to the second world, wait for it.
        std::thread::sleep(Duration::from_millis([0, 20, 400][rank]));
        drop((watch, first));
        assert_eq!(world(1)(&config(), rank).unwrap().size(), 3);
        error
    });
    assert!(errors[0].contains("earlier world of this program"), "{}", errors[0]);
    for error in &errors[1..] {
        assert!(error.contains("another key"), "{error}");
    }
}

#[test]
fn a_key_that_differs_is_named_on_both_ranks() {
    const ONE: &str = "one secret of sixteen bytes and more";
    const OTHER: &str = "another secret of sixteen bytes and more";
    let with = |name: &str, value: Option<&str>| {
        let mut config = config();
        config.connect_timeout = Duration::from_secs(5);
        if let Some(value) = value {
            config.set(name, value).unwrap();
        }
        config
    };
    let mut cases = vec![("MAYPOLE_RUN", Some("7"), Some("8"))];
    cases
        .extend([(Some(ONE), Some(OTHER)), (Some(ONE), None), (None, Some(OTHER))].map(|(a, b)| ("MAYPOLE_KEY", a, b)));
    std::thread::scope(|scope| {
        for (name, zero, one) in cases {
            for by_id in [false, true] {
                let configs = [with(name, zero), with(name, one)];
                scope.spawn(move || {
                    let (port, id) = (free_port(), UniqueId::create(&configs[0]).unwrap());
                    let errors = ranks(2, |rank| {
                        let meeting = if by_id { Meeting::Id(id) } else { at("127.0.0.1", port) };
                        Node::join(meeting, rank, 2, &configs[rank]).map(|_| ()).unwrap_err().to_string()
                    });
                    for (rank, error) in errors.iter().enumerate() {
                        assert!(error.contains("another key") && error.contains(name), "rank {rank}: {error}");
                    }
                    assert!(
                        errors[0].contains("says it is rank 1") && errors[0].contains("127.0.0.1"),
                        "{}",
                        errors[0]
                    );
                });
            }
        }
    });
    // The same on all ranks is no hindrance, and a key that could be guessed is refused before anybody is met.
    let config = with("MAYPOLE_KEY", Some(ONE));
    let id = UniqueId::create(&config).unwrap();
    ranks(2, |rank| Node::join(Meeting::Id(id), rank, 2, &config).unwrap());
    let mut short = config.clone();
    let error = short.set("MAYPOLE_KEY", "hunter2").unwrap_err().to_string();
    assert!(error.contains("openssl rand -hex 32") && !error.contains("hunter2"), "{error}");
    short.key = Some("hunter2".into());
    let error = Node::join(at("127.0.0.1", free_port()), 0, 2, &short).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("openssl rand -hex 32") && !error.contains("hunter2"), "{error}");
    for shown in [format!("{config:?}"), format!("{short:?}"), format!("{id:?}")] {
        assert!(!shown.contains("sixteen bytes") && !shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn strangers_change_nothing() {
    let port = free_port();
    let hub: SocketAddr = ([127, 0, 0, 1], port).into();
    std::thread::scope(|scope| {
        let zero = scope.spawn(|| Node::join(at("127.0.0.1", port), 0, 2, &config()).unwrap());
        while TcpStream::connect(hub).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let bother = |to: SocketAddr| {
            let silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(to).unwrap()).collect();
            let mut half = TcpStream::connect(to).unwrap();
            half.write_all(b"maypole\x01\x01").unwrap();
            let mut garbage = TcpStream::connect(to).unwrap();
            garbage.write_all(&[0xa5; 4096]).unwrap();
            let mut answer = Vec::new();
            // Closed, or reset because not all of the garbage was read.
            let _ = garbage.read_to_end(&mut answer);
            assert!(answer.is_empty(), "garbage gets no answer: {answer:?}");
            (silent, half)
        };
        let crowd = bother(hub);
        let wrong = scope.spawn(|| {
            let meeting = Meeting::Address { host: "127.0.0.1".into(), port, key: [8; 32], earlier: 0 };
            Node::join(meeting, 1, 2, &config()).map(|_| ()).unwrap_err().to_string()
        });
        let error = wrong.join().unwrap();
        assert!(error.contains("another key") && error.contains("MAYPOLE_KEY"), "{error}");
        let start = Instant::now();
        let one = Node::join(at("127.0.0.1", port), 1, 2, &config()).unwrap();
        let zero = zero.join().unwrap();
        assert!(start.elapsed() < Duration::from_secs(4), "half-open connections hold nobody up");
        let door = bother(one.peers()[1].data[0]);
        assert_eq!(zero.connect(1, WORLD, 0, 1).unwrap().len(), 1);
        // A second process with a rank of a job that has begun is told so, and the job goes on.
        let error = Node::join(at("127.0.0.1", port), 1, 2, &config()).unwrap_err().to_string();
        assert!(error.contains("have come already"), "{error}");
        let watches = watches(&[zero.clone(), one.clone()]);
        assert!(wait_verdict(&watches[0], Duration::from_millis(100)).is_none());
        drop((crowd, door));
    });
}

#[test]
fn ranks_that_call_different_things_see_both_sides() {
    let nodes = world(3);
    let watches = watches(&nodes);
    for (watch, count) in watches.iter().zip([8, 8, 9]) {
        watch.enter(&all_reduce(1, count));
    }
    nodes[0].inquire(WORLD, 0, all_reduce(1, 8), 1);
    nodes[1].inquire(WORLD, 1, all_reduce(1, 8), 2);
    let expected = Verdict::Mismatch { one: (1, all_reduce(1, 8)), other: (2, all_reduce(1, 9)) };
    // The audit may find it first, from another side.
    match common_verdict(&watches) {
        Verdict::Mismatch { one, other } => assert_ne!(one.1, other.1, "expected like {expected:?}"),
        verdict => panic!("{verdict:?}"),
    }
}

#[test]
fn ranks_that_never_wait_for_each_other_are_found_out_by_the_audit() {
    let nodes = world(2);
    let watches = watches(&nodes);
    let start = Instant::now();
    watches[0].enter(&broadcast(1, 0));
    watches[1].enter(&broadcast(1, 1));
    assert!(matches!(common_verdict(&watches), Verdict::Mismatch { .. }));
    println!("found out after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_refusal_reaches_those_who_started() {
    let nodes = world(2);
    let watches = watches(&nodes);
    watches[0].enter(&all_reduce(1, 4));
    watches[1].refuse(1, "3 elements where 4 were expected".into());
    nodes[0].inquire(WORLD, 0, all_reduce(1, 4), 1);
    let Verdict::Refused { rank: 1, sequence: 1, why } = common_verdict(&watches) else { panic!() };
    assert!(why.contains("3 elements"));
}

#[test]
fn a_deadline_names_who_is_late() {
    let nodes = world(4);
    let watches = watches(&nodes);
    watches.iter().take(3).for_each(|w| w.enter(&all_reduce(1, 4)));
    watches.iter().take(2).for_each(|w| w.enter(&all_reduce(2, 4)));
    let start = Instant::now();
    nodes[0].stalled(WORLD, 0, Stall::at_last(all_reduce(2, 4), Duration::from_secs(3)));
    nodes[1].stalled(WORLD, 1, Stall::at_last(all_reduce(2, 4), Duration::from_secs(3)));
    let verdict = common_verdict(&watches);
    let Verdict::Stalled { culprits, .. } = &verdict else { panic!("{verdict:?}") };
    assert_eq!(culprits.iter().map(|c| c.0).collect::<Vec<_>>(), [2, 3]);
    assert!(culprits[0].2.contains("all_reduce #1") && culprits[1].2.contains("not called anything"), "{verdict}");
    println!("an inquest takes {:?}", start.elapsed());
}

#[test]
fn leaving_early_is_told_to_those_who_still_wait() {
    let nodes = world(2);
    let watches = watches(&nodes);
    watches[0].enter(&all_reduce(1, 4));
    watches[1].enter(&all_reduce(1, 4));
    nodes[1].leave(WORLD, 1);
    nodes[1].unregister(WORLD);
    nodes[0].inquire(WORLD, 0, all_reduce(1, 4), 1);
    assert!(wait_verdict(&watches[0], Duration::from_millis(50)).is_none(), "it took part in this one");
    watches[0].enter(&all_reduce(2, 4));
    nodes[0].inquire(WORLD, 0, all_reduce(2, 4), 1);
    let verdict = wait_verdict(&watches[0], AT_MOST).expect("a verdict");
    assert!(verdict.to_string().contains("left the communicator after all_reduce #1"), "{verdict}");
    assert!(!watches[1].raised());
}

#[test]
fn whoever_reports_first_all_get_one_verdict_even_those_who_register_late() {
    let nodes = world(4);
    let watches: Vec<_> = watches(&nodes[..3]);
    std::thread::scope(|scope| {
        for (rank, node) in nodes[..3].iter().enumerate() {
            scope.spawn(move || node.report(WORLD, Verdict::Aborted { rank, why: format!("reason {rank}") }));
        }
    });
    let verdict = common_verdict(&watches);
    let late = Arc::new(Watch::default());
    nodes[3].register(WORLD, vec![0, 1, 2, 3], late.clone());
    assert_eq!(wait_verdict(&late, AT_MOST), Some(verdict));
}

#[test]
fn connecting_and_fetching_end_with_a_verdict() {
    let nodes = world(2);
    let watches = watches(&nodes);
    std::thread::scope(|scope| {
        let fetch = scope.spawn(|| nodes[0].fetch_fd(1, WORLD, 0, AT_MOST).map(|_| ()));
        std::thread::sleep(Duration::from_millis(30));
        nodes[1].report(WORLD, Verdict::Aborted { rank: 1, why: "enough".into() });
        assert!(matches!(fetch.join().unwrap(), Err(Error::Failed { rank: 0, .. })));
    });
    assert!(watches[0].raised());
}

#[test]
fn a_rank_that_panics_does_not_leave_in_good_order() {
    let mut nodes = world(2);
    let watches = watches(&nodes);
    let one = nodes.pop().unwrap();
    let panicked = std::thread::spawn(move || {
        let _node = one;
        panic!("planted: this panic belongs to the test");
    });
    panicked.join().unwrap_err();
    let verdict = wait_verdict(&watches[0], AT_MOST).expect("a verdict");
    assert!(matches!(&verdict, Verdict::Died { rank: 1, how, .. } if how.contains("panicked")), "{verdict}");
}
