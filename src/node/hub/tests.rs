//! The hub with many members, of which each is a socket of this test that says what a node would.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::AtomicBool;

use maypole_collectives::schedule::Collective;
use maypole_collectives::{DataType, ReduceOp};
use nix::poll::PollFlags;
use nix::time::{ClockId, clock_gettime};
use socket2::SockRef;

use super::super::auth::{Errand, Purpose, Refusal, knock, wait};
use super::super::frame::{Answer, Hello, Runs, TABLE_LIMIT, ToHub};
use super::super::peer::{Peer, Settings};
use super::super::ports::listen_at;
use super::super::tag::Writer;
use super::super::wire::{Inbox, Outbox};
use super::*;
use crate::config::Family;
use crate::fingerprint::Fingerprint;
use crate::watch::{Record, Stall};

/// Bytes that a thread has allocated and not freed, and the most that it ever had.
struct ByThread;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn book(bytes: isize) {
    // A thread that ends may free after its counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        MOST.with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: everything is passed on to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for ByThread {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        book(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        book(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both exist while the one is copied into the other.
        book(size as isize);
        book(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: ByThread = ByThread;

fn key() -> Key {
    Key::new([5; 32])
}

const WORLD: u64 = 1;

/// What a hub has used when it ends.
struct Used {
    memory: isize,
    time: Duration,
}

/// A hub for `size` ranks, and where.
fn hub(size: usize) -> (SocketAddr, std::thread::JoinHandle<Used>) {
    crate::descriptors::raise();
    let listener = listen_at(Some(Ipv4Addr::LOCALHOST.into()), 0, Family::V4).unwrap();
    let at = listener.local_addr().unwrap();
    let hub = std::thread::spawn(move || {
        let config = Config { connect_timeout: Duration::from_secs(60), ..Config::default() };
        Hub::new(listener, key(), &config, Some(size)).unwrap().run();
        let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        Used { memory: MOST.get(), time: time.into() }
    });
    (at, hub)
}

/// A control connection that plays a rank.
struct Member {
    rank: usize,
    stream: TcpStream,
    inbox: Inbox,
    outbox: Outbox,
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

impl Member {
    /// Connect and show the key.
    fn arrive(rank: usize, at: SocketAddr) -> std::result::Result<Member, Refusal> {
        let mut stream = TcpStream::connect(at)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let errand = Errand {
            purpose: Purpose::Control,
            sealed: false,
            from: rank as u32,
            to: HUB,
            context: 0,
            channel: 0,
            index: 0,
            total: 0,
        };
        let (inbox, outbox) = knock(&mut stream, &key(), &errand, soon(), &|| false)?.into_frames(Writer::Node);
        Ok(Member { rank, stream, inbox, outbox })
    }

    /// Do that and introduce itself at once: the hub does not wait for long.
    fn come(rank: usize, size: usize, at: SocketAddr) -> std::result::Result<Member, Refusal> {
        let mut member = Member::arrive(rank, at)?;
        member.introduce(size);
        Ok(member)
    }

    fn say(&mut self, frame: &ToHub) {
        self.outbox.push(frame);
        while !self.outbox.flush(&self.stream).unwrap() {
            wait(&self.stream, PollFlags::POLLOUT, soon(), &|| false).unwrap();
        }
    }

    /// Eight ranks of a host, each bound to a core.
    fn introduce(&mut self, size: usize) {
        let peer = Peer {
            rank: self.rank,
            host: format!("node{:05}.cluster.example.org", self.rank / 8),
            host_id: (self.rank / 8) as u64,
            pid: 1000 + self.rank as u32,
            data: (0..4).map(|i| SocketAddr::from(([10, i, (self.rank / 2048) as u8, 7], 40000))).collect(),
            local: format!("maypole-{}-{:016x}", self.rank, self.rank),
            cores: 1,
            affinity: vec![1 << (self.rank % 8)],
        };
        let settings = Settings::of(&Config::default());
        self.say(&ToHub::Hello(Hello {
            size,
            version: env!("CARGO_PKG_VERSION").into(),
            process: 1 + self.rank as u64,
            peer,
            settings,
        }));
    }

    fn hear(&mut self) -> ToNode {
        self.take(|inbox| inbox.next(TABLE_LIMIT))
    }

    fn take<T>(&mut self, next: impl Fn(&mut Inbox) -> io::Result<Option<T>>) -> T {
        loop {
            if let Some(frame) = next(&mut self.inbox).unwrap() {
                return frame;
            }
            wait(&self.stream, PollFlags::POLLIN, soon(), &|| false).unwrap();
            assert!(self.inbox.fill(&self.stream, TABLE_LIMIT).unwrap(), "the hub closed rank {}'s line", self.rank);
        }
    }

    /// Take in a frame without making anything of it: its length and digest.
    fn skip(&mut self) -> (usize, blake3::Hash) {
        self.take(|inbox| inbox.skip(TABLE_LIMIT))
    }
}

/// What 2,000 ranks cost the process that holds their job together: they come, register the world,
/// one of them waits in vain and all are asked, told the verdict, and let go.
#[test]
fn two_thousand_ranks_cost_the_hub_little() {
    const RANKS: usize = 2000;
    if crate::descriptors::limit() < 2 * RANKS + 500 {
        println!("skipped: two_thousand_ranks_cost_the_hub_little: {}", crate::descriptors::RAISE);
        return;
    }
    let (at, hub) = hub(RANKS);
    let begun = Instant::now();
    // The last comes first, so that none of those who come finds the others at the beginning of a
    // list.
    let mut members: Vec<Member> = (0..RANKS).rev().map(|rank| Member::come(rank, RANKS, at).unwrap()).collect();
    members.reverse();
    let ToNode::Table { peers, .. } = members[0].hear() else { panic!("a table") };
    assert!(peers.len() == RANKS && peers.iter().enumerate().all(|(rank, peer)| peer.rank == rank));
    let tables: Vec<_> = members[1..].iter_mut().map(Member::skip).collect();
    assert!(tables.iter().all(|table| *table == tables[0]));
    println!("{RANKS} ranks have met after {:?}; a table has {} bytes", begun.elapsed(), tables[0].0);
    let everybody: Vec<usize> = (0..RANKS).collect();
    let world = Runs::new(&everybody);
    members.iter_mut().for_each(|m| m.say(&ToHub::Register { context: WORLD, members: world.clone() }));
    let operation = Fingerprint::collective(1, Collective::AllReduce, DataType::F32, Some(ReduceOp::Sum), 0, 4);
    let stall = Stall::at_last(operation, Duration::from_secs(9));
    let stalled = ToHub::Stalled { context: WORLD, stall, unheard: None };
    // The hub serves connections in any order: all have registered once all have been answered.
    members.iter_mut().for_each(|m| m.say(&ToHub::Inquire { context: WORLD, operation, peer: m.rank }));
    members.iter_mut().for_each(|m| assert!(matches!(m.hear(), ToNode::Ask { .. })));
    members[7].say(&stalled);
    for member in members.iter_mut().filter(|member| member.rank != 7) {
        let ToNode::Ask { context, sequence, question, .. } = member.hear() else { panic!("a question") };
        let record = Record::NotYet(None);
        let answer = Answer { record, unheard: None, moved: None };
        member.say(&ToHub::Answer { context, sequence, question, answer });
    }
    let ToNode::Declare { verdict, .. } = members[0].hear() else { panic!("a verdict") };
    assert!(matches!(verdict, crate::Verdict::Stalled { culprits, .. } if culprits.len() == RANKS - 1));
    // Without making anything of them: they fill their sockets, and a line of which nobody reads
    // for half a minute is closed.
    let verdicts: Vec<_> = members[1..].iter_mut().map(Member::skip).collect();
    assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]));
    members.iter_mut().for_each(|member| member.say(&ToHub::Bye));
    members.iter_mut().for_each(|member| assert!(matches!(member.hear(), ToNode::Farewell)));
    println!("and have left after {:?}", begun.elapsed());
    drop(members);
    let used = hub.join().unwrap();
    println!("the hub had at most {:.1} MB and worked {:?}", used.memory as f64 / 1e6, used.time);
    assert!(used.memory < 50_000_000, "{} bytes", used.memory);
    // It is 0.7 s on a quiet machine, and was 16 when each rank cost the hub something for every
    // other.
    assert!(used.time < Duration::from_secs(6), "{:?}", used.time);
}

/// Strangers connect as fast as they can, two thousand at a time, and say nothing; the ranks come
/// among them.
#[test]
fn ranks_come_in_among_a_crowd_of_strangers() {
    const RANKS: usize = 64;
    const STRANGERS: usize = 2000;
    let (at, hub) = hub(RANKS);
    let over = AtomicBool::new(false);
    /// The strangers' thread is waited for whatever happens here, so it is told to end whatever
    /// happens.
    struct Ending<'a>(&'a AtomicBool);
    impl Drop for Ending<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let called = std::thread::scope(|scope| {
        let ending = Ending(&over);
        let strangers = scope.spawn(|| {
            let mut crowd = VecDeque::with_capacity(STRANGERS);
            let mut called = 0;
            while !over.load(Ordering::Relaxed) && called < 20_000 {
                // Where the queue is full this waits, as it should.
                let stranger = TcpStream::connect_timeout(&at, Duration::from_millis(100));
                // Closed by a reset: a port that waits for late packets is no port for the ranks.
                let reset = |s: &TcpStream| SockRef::from(s).set_linger(Some(Duration::ZERO)).unwrap();
                crowd.extend(stranger.inspect(reset));
                called += 1;
                if crowd.len() == STRANGERS {
                    crowd.pop_front();
                }
            }
            called
        });
        let arrive = |rank| {
            let until = soon();
            loop {
                match Member::come(rank, RANKS, at) {
                    Ok(member) => return member,
                    Err(refusal) => assert!(Instant::now() < until, "rank {rank} is kept out: {refusal}"),
                }
            }
        };
        let mut members: Vec<Member> = (0..RANKS).map(arrive).collect();
        members.iter_mut().for_each(|member| assert!(matches!(member.hear(), ToNode::Table { .. })));
        members.iter_mut().for_each(|member| member.say(&ToHub::Bye));
        members.iter_mut().for_each(|member| assert!(matches!(member.hear(), ToNode::Farewell)));
        drop(ending);
        strangers.join().unwrap()
    });
    hub.join().unwrap();
    println!("{RANKS} ranks came in among {called} strangers");
}

/// A frame that was changed on the way: its rank is told why its line ends, and all others get the
/// same verdict.
#[test]
fn a_changed_frame_is_a_verdict_on_its_rank() {
    const RANKS: usize = 3;
    let (at, hub) = hub(RANKS);
    let mut members: Vec<Member> = (0..RANKS).map(|rank| Member::arrive(rank, at).unwrap()).collect();
    members.iter_mut().for_each(|member| member.introduce(RANKS));
    members.iter_mut().for_each(|member| assert!(matches!(member.hear(), ToNode::Table { .. })));
    let world = Runs::new(&[0, 1, 2]);
    members.iter_mut().for_each(|m| m.say(&ToHub::Register { context: WORLD, members: world.clone() }));
    let mut bytes = Vec::new();
    members[1].outbox.push(&ToHub::Fallen { how: "a text".to_string() });
    members[1].outbox.flush(&mut bytes).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::io::Write::write_all(&mut members[1].stream, &bytes).unwrap();
    let ToNode::Failed { what } = members[1].hear() else { panic!("it is not told") };
    assert!(what.contains("changed on the way") && what.contains(&peer::host_name()), "{what}");
    for other in [0, 2] {
        let ToNode::Declare { verdict, .. } = members[other].hear() else { panic!("a verdict") };
        let host = "node00000.cluster.example.org".to_string();
        assert_eq!(verdict, crate::Verdict::Died { rank: 1, host, how: what.clone() });
    }
    [0, 2].into_iter().for_each(|other| members[other].say(&ToHub::Bye));
    drop(members);
    hub.join().unwrap();
}

/// The same of a frame that makes no sense, which only a defect writes.
#[test]
fn a_frame_that_makes_no_sense_is_a_verdict_on_its_rank() {
    let (at, hub) = hub(2);
    let mut members: Vec<Member> = (0..2).map(|rank| Member::come(rank, 2, at).unwrap()).collect();
    members.iter_mut().for_each(|member| assert!(matches!(member.hear(), ToNode::Table { .. })));
    let world = Runs::new(&[0, 1]);
    let register = ToHub::Register { context: WORLD, members: world };
    members.iter_mut().for_each(|member| member.say(&register));
    let strange = &mut members[1];
    strange.outbox.push(&[0xee_u8; 2]);
    strange.outbox.flush(&strange.stream).unwrap();
    let ToNode::Failed { what } = strange.hear() else { panic!("it is not told") };
    assert!(what.contains("a frame that does not parse"), "{what}");
    let ToNode::Declare { verdict, .. } = members[0].hear() else { panic!("a verdict") };
    let host = "node00000.cluster.example.org".to_string();
    assert_eq!(verdict, crate::Verdict::Died { rank: 1, host, how: what });
    members[0].say(&ToHub::Bye);
    drop(members);
    hub.join().unwrap();
}

/// The same of the first frame, when the others are still awaited: nobody can start.
#[test]
fn a_changed_introduction_is_told_to_all() {
    let (at, _) = hub(2);
    let mut members: Vec<Member> = (0..2).map(|rank| Member::arrive(rank, at).unwrap()).collect();
    members[0].introduce(2);
    std::io::Write::write_all(&mut members[1].stream, &[1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0]).unwrap();
    std::io::Write::write_all(&mut members[1].stream, &[0; 16]).unwrap();
    for member in &mut members {
        let ToNode::Failed { what } = member.hear() else { panic!("it is not told") };
        assert!(what.contains("changed on the way"), "{what}");
    }
}

/// A rank that cannot take part says so, and nobody waits for it.
#[test]
fn a_rank_that_cannot_take_part_is_not_waited_for() {
    let (at, hub) = hub(3);
    let mut members: Vec<Member> = (0..2).map(|rank| Member::arrive(rank, at).unwrap()).collect();
    members.iter_mut().for_each(|member| member.introduce(3));
    let mut unable = Member::arrive(2, at).unwrap();
    let begun = Instant::now();
    unable.say(&ToHub::Unable { rank: 2, size: 3, why: "rank 2 has no descriptors".into() });
    drop(unable);
    for member in &mut members {
        let ToNode::Failed { what } = member.hear() else { panic!("a reason") };
        assert_eq!(what, "rank 2 has no descriptors");
    }
    drop(members);
    hub.join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// A child of this process by a call that no handler sees: it has copies of all descriptors. Killed
/// on drop.
struct Unseen(nix::unistd::Pid);

impl Unseen {
    fn start() -> Unseen {
        // SAFETY: a fork in all but name, of which the C library learns nothing; the child calls
        // nothing but the system.
        match unsafe { nix::libc::syscall(nix::libc::SYS_clone, nix::libc::SIGCHLD, 0, 0, 0, 0) } {
            0 => loop {
                // SAFETY: it touches no memory.
                unsafe { nix::libc::pause() };
            },
            child => Unseen(nix::unistd::Pid::from_raw(i32::try_from(child).expect("a process"))),
        }
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(self.0, None).unwrap();
    }
}

/// Connections that the hub closes live on where a child has copies. Nothing that happens to them
/// concerns it.
#[test]
fn what_is_closed_does_not_keep_the_hub_awake() {
    let (at, hub) = hub(2);
    let mut members: Vec<Member> = (0..2).map(|rank| Member::come(rank, 2, at).unwrap()).collect();
    members.iter_mut().for_each(|member| assert!(matches!(member.hear(), ToNode::Table { .. })));
    let stranger = TcpStream::connect(at).unwrap();
    let mut refused = Member::arrive(1, at).unwrap();
    let child = Unseen::start();
    // One is turned away at the door and one after it; a rank is hung up on. All say more than is
    // heard.
    for stream in [&stranger, &refused.stream] {
        let _ = std::io::Write::write_all(&mut &*stream, &[7; 4096]);
    }
    refused.introduce(2);
    std::io::Write::write_all(&mut members[1].stream, &[1; 4096]).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    members[0].say(&ToHub::Bye);
    while !matches!(members[0].hear(), ToNode::Farewell) {}
    let used = hub.join().unwrap();
    drop(child);
    println!("the hub worked {:?}", used.time);
    assert!(used.time < Duration::from_millis(100), "it turns in circles: {:?}", used.time);
}
