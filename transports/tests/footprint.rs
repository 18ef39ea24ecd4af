//! What links over TCP cost in memory, where a rank has few peers and where it has a thousand:
//! addresses and resident bytes for each peer. Prints the table that DESIGN.md has:
//!
//! ```text
//! cargo test -p maypole-transports --test footprint -- --nocapture
//! ```
//!
//! Both ends are in this process, connected over loopback. What the kernel has for their sockets is
//! not the process' memory, and not counted.

use std::net::{TcpListener, TcpStream};

use maypole_transports::tcp::{self, TcpReceiver, TcpSender};
use maypole_transports::{Receiver, Sender};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Peers, and what a link takes in before it is asked for, as `src/capacity.rs` has it for them.
const CASES: [(usize, usize); 3] = [(8, 1 << 20), (64, (64 << 20) / 65), (1000, 128_256)];
/// What a thread keeps of buffers that no link uses, and what the allocator and this test move by.
const KEPT: usize = (4 << 20) + (2 << 20);
/// What the two halves of a link pair take that hold nothing.
const HALVES: usize = 4 << 10;

/// Bytes of this process: addresses, and memory that is resident.
#[derive(Clone, Copy)]
struct Memory {
    mapped: usize,
    resident: usize,
}

impl Memory {
    fn now() -> Memory {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
        let pages: usize = statm.split(' ').next().and_then(|size| size.parse().ok()).expect("a number");
        let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("Linux");
        let rss = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).expect("listed");
        let kib: usize = rss.split_whitespace().next().and_then(|rss| rss.parse().ok()).expect("a number");
        Memory { mapped: pages * 4096, resident: kib << 10 }
    }

    /// How much more it is than `before`.
    fn since(self, before: Memory) -> Memory {
        Memory {
            mapped: self.mapped.saturating_sub(before.mapped),
            resident: self.resident.saturating_sub(before.resident),
        }
    }
}

/// A rank's half of a link pair, and its peer's.
struct Link {
    from: TcpReceiver,
    _to: TcpSender,
    peer: TcpSender,
    _back: TcpReceiver,
}

fn links(peers: usize, credit: usize, connections: usize) -> Vec<Link> {
    let door = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = door.local_addr().expect("bound");
    let connected = || {
        let ours = TcpStream::connect(address).expect("it listens");
        (ours, door.accept().expect("just connected").0)
    };
    let pair = |_| {
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..connections).map(|_| connected()).unzip();
        let (to, from) = tcp::link(ours, credit).expect("a link");
        let (peer, back) = tcp::link(theirs, credit).expect("a link");
        Link { from, _to: to, peer, _back: back }
    };
    (0..peers).map(pair).collect()
}

impl Link {
    /// The peer sends so many bytes before this rank asks for them.
    fn get_ahead(&mut self, bytes: &[u8]) {
        let mut sent = 0;
        while self.from.peek().expect("it is open").len() < bytes.len() {
            sent += self.peer.send(&bytes[sent..]).expect("it is open");
            self.peer.flush().expect("it is open");
            self.from.absorb().expect("it is open");
        }
    }

    fn take(&mut self, bytes: usize) {
        let mut into = vec![0; bytes];
        assert_eq!(self.from.recv(&mut into).expect("it is open"), bytes);
    }
}

/// Whether this process may have so many descriptors.
fn descriptors(count: u64) -> bool {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("Linux");
    soft >= count || hard >= count && setrlimit(Resource::RLIMIT_NOFILE, count, hard).is_ok()
}

/// One test, since it measures the whole process.
#[test]
fn links_have_memory_only_while_they_hold_bytes() {
    println!("bytes for each peer: addresses, resident");
    println!(
        "{:>6}{:>10}{:>22}{:>22}{:>22}{:>22}",
        "peers", "credit", "made", "64 B ahead", "credit ahead", "idle again"
    );
    // Another thread's first allocation would reserve 64 MiB of addresses.
    // SAFETY: it sets a number of the allocator's.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    for (peers, credit) in CASES {
        if !descriptors(2 * peers as u64 + 100) {
            println!("skipped: links_have_memory_only_while_they_hold_bytes: {peers} peers: not so many descriptors");
            continue;
        }
        // With its own thread ends what that has kept.
        std::thread::spawn(move || one_case(peers, credit)).join().expect("it passes");
    }
    std::thread::spawn(striped).join().expect("it passes");
}

fn one_case(peers: usize, credit: usize) {
    let bytes = vec![1; credit];
    let before = Memory::now();
    let mut links = links(peers, credit, 1);
    let made = Memory::now().since(before);
    links.iter_mut().for_each(|link| link.get_ahead(&bytes[..64]));
    let small = Memory::now().since(before);
    links.iter_mut().for_each(|link| link.take(64));
    links.iter_mut().for_each(|link| link.get_ahead(&bytes));
    let full = Memory::now().since(before);
    links.iter_mut().for_each(|link| link.take(credit));
    let idle = Memory::now().since(before);
    let each = |Memory { mapped, resident }: Memory| format!("{}, {}", mapped / peers, resident / peers);
    println!("{peers:>6}{credit:>10}{:>22}{:>22}{:>22}{:>22}", each(made), each(small), each(full), each(idle));
    // Both ends of each are here.
    let halves = 2 * peers * HALVES;
    assert!(made.mapped < halves + KEPT && made.resident < halves + KEPT, "{} bytes", made.resident);
    assert!(small.resident < halves + peers * 8192 + KEPT, "{} bytes", small.resident);
    assert!(full.resident < halves + peers * (2 * credit + 8192) + KEPT, "{} bytes", full.resident);
    assert!(full.resident > peers * credit, "it holds what came: {} bytes", full.resident);
    assert!(idle.resident < halves + KEPT, "{} bytes are resident that no link uses", idle.resident);
    assert!(idle.mapped < halves + KEPT + (256 << 20), "{} bytes of addresses", idle.mapped);
}

/// Several connections each have some memory of their own.
fn striped() {
    let before = Memory::now();
    let mut striped = links(64, 1 << 20, 8);
    let bytes = vec![1; 1 << 20];
    striped.iter_mut().for_each(|link| link.get_ahead(&bytes));
    striped.iter_mut().for_each(|link| link.take(1 << 20));
    let idle = Memory::now().since(before);
    println!("64 peers with 8 connections each, idle again: {} bytes resident a peer", idle.resident / 64);
    assert!(idle.resident < 128 * 2 * HALVES + KEPT, "{} bytes", idle.resident);
}
