//! Promises of the node that need processes: deaths, stopped processes, who waits for whom at the end, nothing left
//! behind.
//!
//! Each test starts its own executable again, with its own name and a role in the environment: that process plays the
//! role.

#[path = "ranks/port.rs"]
mod port;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole::fingerprint::Fingerprint;
use maypole::node::{Meeting, Node};
use maypole::watch::{Jury, Stall, Watch};
use maypole::{Collective, Config, DataType, ReduceOp, Verdict};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use port::free_port;

const WORLD: u64 = 7;
/// How long anything may take that takes milliseconds, on a machine with ten other things to do.
const AT_MOST: Duration = Duration::from_secs(60);

fn config() -> Config {
    let mut config = Config::default();
    config.connect_timeout = Duration::from_secs(30);
    config
}

fn join(port: u16, rank: usize, size: usize) -> Arc<Node> {
    let meeting = Meeting::Address { host: "127.0.0.1".into(), port, key: [3; 32], earlier: 0 };
    Node::join(meeting, rank, size, &config()).unwrap()
}

/// Join several ranks of this process at once.
fn join_all(port: u16, ranks: std::ops::Range<usize>, size: usize) -> Vec<Arc<Node>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || join(port, rank, size))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn register(node: &Node, context: u64, members: &[usize]) -> Arc<Watch> {
    let watch = Arc::new(Watch::default());
    node.register(context, members.to_vec(), watch.clone());
    watch
}

fn wait_verdict(watch: &Watch, within: Duration) -> Option<Verdict> {
    let until = Instant::now() + within;
    while Instant::now() < until && !watch.raised() {
        std::thread::sleep(Duration::from_millis(1));
    }
    watch.verdict()
}

fn all_reduce(sequence: u64) -> Fingerprint {
    Fingerprint::collective(sequence, Collective::AllReduce, DataType::F32, Some(ReduceOp::Sum), 0, 4)
}

/// The other process of a test; killed with it.
struct Other(Child);

impl Other {
    fn start(test: &str, role: &str, port: u16) -> Other {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env("NODE_TEST_ROLE", role)
            .env("NODE_TEST_PORT", port.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Other(child)
    }

    /// Block until it has said `word` on a line.
    fn hear(&mut self, word: &str) {
        let lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|l| l.contains(word)), "it ended without saying {word}");
    }

    /// Stop it, and wait until each of its threads has stopped.
    fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        let stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
        };
        while !std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap().all(stopped) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The role that this process is to play, and the port of the meeting.
fn role() -> Option<(String, u16)> {
    let role = std::env::var("NODE_TEST_ROLE").ok()?;
    Some((role, std::env::var("NODE_TEST_PORT").unwrap().parse().unwrap()))
}

fn for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn a_dead_process_is_named_to_every_survivor() {
    if let Some((role, port)) = role() {
        let node = join(port, 2, 3);
        let _watches = [register(&node, WORLD, &[0, 1, 2]), register(&node, 8, &[2, 0])];
        println!("ready");
        if role == "_exit" {
            // SAFETY: it ends the process, which is what is wanted.
            unsafe { nix::libc::_exit(0) };
        }
        for_ever();
    }
    for role in ["killed", "_exit"] {
        let port = free_port();
        let mut other = Other::start("a_dead_process_is_named_to_every_survivor", role, port);
        let nodes = join_all(port, 0..2, 3);
        let world: Vec<_> = nodes.iter().map(|n| register(n, WORLD, &[0, 1, 2])).collect();
        let part = register(&nodes[0], 8, &[2, 0]);
        let without = register(&nodes[1], 9, &[0, 1]);
        other.hear("ready");
        let start = Instant::now();
        if role == "killed" {
            other.signal(Signal::SIGKILL);
        }
        let verdicts: Vec<_> = world.iter().map(|w| wait_verdict(w, AT_MOST).unwrap()).collect();
        println!("{role}: every survivor knew after {:?}", start.elapsed());
        assert_eq!(verdicts[0], verdicts[1]);
        assert!(matches!(&verdicts[0], Verdict::Died { rank: 2, host, .. } if *host == nodes[0].peers()[2].host));
        let verdict = wait_verdict(&part, AT_MOST).unwrap();
        assert!(matches!(verdict, Verdict::Died { rank: 0, .. }), "in the communicator's own ranks: {verdict}");
        assert!(!without.raised());
    }
}

#[test]
fn the_death_of_the_process_that_has_the_hub_is_noticed() {
    const TEST: &str = "the_death_of_the_process_that_has_the_hub_is_noticed";
    if let Some((_, port)) = role() {
        let _node = join(port, 0, 3);
        println!("ready");
        for_ever();
    }
    let port = free_port();
    let mut other = Other::start(TEST, "hub", port);
    let nodes = join_all(port, 1..3, 3);
    let watches: Vec<_> = nodes.iter().map(|n| register(n, WORLD, &[2, 1, 0])).collect();
    let part: Vec<_> = nodes.iter().map(|n| register(n, 8, &[1, 2])).collect();
    other.hear("ready");
    let start = Instant::now();
    other.signal(Signal::SIGKILL);
    for watch in &watches {
        let verdict = wait_verdict(watch, AT_MOST).unwrap();
        assert!(matches!(verdict, Verdict::Died { rank: 2, .. }), "{verdict}");
    }
    println!("noticed after {:?}", start.elapsed());
    for watch in &part {
        let verdict = wait_verdict(watch, AT_MOST).unwrap();
        let text = verdict.to_string();
        assert!(text.contains("no member of this communicator") && text.contains("rank 0 of the world"), "{text}");
        assert!((0..2).all(|member| !watch.is_gone(member)), "no member is gone: {verdict:?}");
    }
    let late = register(&nodes[0], 9, &[1, 2]);
    assert!(late.raised(), "later communicators fail at once");
    let start = Instant::now();
    drop(nodes);
    assert!(start.elapsed() < Duration::from_secs(4), "leaving without a hub does not wait");
}

#[test]
fn a_stopped_process_does_not_hold_up_a_verdict() {
    if let Some((role, port)) = role() {
        let rank = if role == "hub" { 0 } else { 1 };
        let node = join(port, rank, 2);
        let _watch = register(&node, WORLD, &[0, 1]);
        println!("ready");
        for_ever();
    }
    for (role, rank) in [("hub", 0), ("other", 1)] {
        let port = free_port();
        let mut other = Other::start("a_stopped_process_does_not_hold_up_a_verdict", role, port);
        let node = join(port, 1 - rank, 2);
        let watch = register(&node, WORLD, &[0, 1]);
        other.hear("ready");
        other.stop();
        watch.enter(&all_reduce(1));
        let start = Instant::now();
        node.stalled(WORLD, 1 - rank, Stall::at_last(all_reduce(1), Duration::from_secs(2)));
        let verdict = wait_verdict(&watch, AT_MOST).expect("a verdict in any case");
        println!("{role} stopped: verdict after {:?}", start.elapsed());
        let Verdict::Stalled { culprits, .. } = &verdict else { panic!("{verdict}") };
        assert!(culprits.len() == 1 && culprits[0].0 == rank && culprits[0].2.contains("does not answer"), "{verdict}");
        let start = Instant::now();
        drop(node);
        assert!(start.elapsed() < Duration::from_secs(7), "leaving does not wait long for a stopped process");
    }
}

#[test]
fn a_rank_that_dies_before_all_have_come_is_named() {
    if let Some((_, port)) = role() {
        println!("joining");
        drop(join(port, 1, 3));
        return;
    }
    let port = free_port();
    let mut other = Other::start("a_rank_that_dies_before_all_have_come_is_named", "early", port);
    let zero = std::thread::spawn(move || {
        let meeting = Meeting::Address { host: "127.0.0.1".into(), port, key: [3; 32], earlier: 0 };
        Node::join(meeting, 0, 3, &config()).map(|_| ()).unwrap_err().to_string()
    });
    other.hear("joining");
    std::thread::sleep(Duration::from_millis(1500));
    other.signal(Signal::SIGKILL);
    let error = zero.join().unwrap();
    assert!(error.contains("rank 1 (process") && error.contains("was gone before all ranks had come"), "{error}");
}

#[test]
fn the_process_that_has_the_hub_leaves_last() {
    if let Some((_, port)) = role() {
        drop(join(port, 0, 3));
        println!("left");
        return;
    }
    let port = free_port();
    let mut other = Other::start("the_process_that_has_the_hub_leaves_last", "hub", port);
    let nodes = join_all(port, 1..3, 3);
    let watches: Vec<_> = nodes.iter().map(|n| register(n, 8, &[1, 2])).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert!(other.0.try_wait().unwrap().is_none(), "the others still need it");
    assert!(watches.iter().all(|w| !w.raised()), "it left in good order");
    nodes[0].inquire(8, 0, all_reduce(1), 1);
    nodes[0].leave(8, 0);
    nodes[1].leave(8, 1);
    let start = Instant::now();
    drop(nodes);
    other.hear("left");
    assert!(other.0.wait().unwrap().success());
    println!("it ended {:?} after the others", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn nothing_is_left_behind() {
    if role().is_none() {
        let mut other = Other::start("nothing_is_left_behind", "alone", free_port());
        other.hear("clean");
        return;
    }
    let (_, port) = role().unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let ours = || {
        let names = std::fs::read_dir("/proc/self/task").unwrap();
        names
            .filter(|t| {
                std::fs::read_to_string(t.as_ref().unwrap().path().join("comm"))
                    .unwrap_or_default()
                    .starts_with("maypole-")
            })
            .count()
    };
    let before = open();
    let nodes = join_all(port, 0..4, 4);
    let name = nodes[0].peers()[0].local.clone();
    let listed = || std::fs::read_to_string("/proc/net/unix").unwrap().contains(&name);
    let until = Instant::now() + AT_MOST;
    // Threads name themselves when they begin to run.
    while ours() != 5 {
        assert!(Instant::now() < until, "four nodes and the hub: {} threads", ours());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(listed());
    nodes[0].connect(1, WORLD, 0, 2).unwrap();
    drop(nodes);
    let until = Instant::now() + AT_MOST;
    while ours() > 0 || open() > before {
        assert!(Instant::now() < until, "{} threads, {} descriptors more", ours(), open() - before);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!listed());
    println!("clean");
}
