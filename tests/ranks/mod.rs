//! Worlds for tests: ranks as threads of the test, and ranks as processes, which are the test's own executable once
//! more.
//!
//! A test that wants processes calls [`role`] first: in a process that was started as a rank it runs the rank's part
//! and ends it. Then it starts them with [`Job::start`]. Ranks talk to the test by lines on their standard output.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod port;

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::{Communicator, Config, Error, Verdict};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use port::free_port;

/// Longer than anything here takes on a machine that is busy with ten other things: tests that time something else
/// print it and compare with this.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait for what hangs: [`PATIENCE`], or the seconds in `MAYPOLE_TEST_PATIENCE`, for machines
/// whose time is short.
pub fn patience() -> Duration {
    std::env::var("MAYPOLE_TEST_PATIENCE").map_or(PATIENCE, |text| {
        let seconds = text.parse().unwrap_or_else(|_| panic!("MAYPOLE_TEST_PATIENCE={text}: no seconds"));
        Duration::from_secs(seconds)
    })
}

/// Settings with a deadline that no test reaches unless something hangs, and no patience with ranks that are late: what
/// hangs is to fail then, and not half an hour later.
pub fn config(transport: TransportChoice) -> Config {
    let mut config = Config::default();
    config.transport = transport;
    config.timeout = patience();
    config.late = Duration::ZERO;
    config
}

/// One way that bytes take between ranks, and a count of f32 elements for which an all-reduce takes it.
pub struct Path {
    pub name: &'static str,
    pub config: Config,
    pub count: usize,
}

/// Every way: the fused exchange of small vectors, the window, links in shared memory, TCP, and that encrypted.
pub fn paths() -> Vec<Path> {
    let mut links = config(TransportChoice::Auto);
    links.set("MAYPOLE_ALGORITHM", "ring,chain,pairwise").unwrap();
    let mut encrypted = config(TransportChoice::Tcp);
    encrypted.encrypt = true;
    vec![
        Path { name: "small exchange", config: config(TransportChoice::Auto), count: 4 },
        Path { name: "window", config: config(TransportChoice::Auto), count: 100_000 },
        Path { name: "links", config: links, count: 30_000 },
        Path { name: "tcp, small", config: config(TransportChoice::Tcp), count: 4 },
        Path { name: "tcp, large", config: config(TransportChoice::Tcp), count: 300_000 },
        Path { name: "tcp, encrypted", config: encrypted, count: 30_000 },
    ]
}

/// Run `body` once for each rank of a world of threads; results by rank.
pub fn threads<T: Send>(size: usize, config: &Config, body: impl Fn(Communicator) -> T + Sync) -> Vec<T> {
    let world = Communicator::threads_with(size, config.clone()).expect("a world of threads");
    let fall = Fall::default();
    std::thread::scope(|scope| {
        let body = &body;
        let play = |comm| {
            let fall = fall.clone();
            scope.spawn(move || {
                FALL.set(Some(fall.clone()));
                let _watched = fall;
                body(comm)
            })
        };
        let ranks: Vec<_> = world.into_iter().map(play).collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank panicked")).collect()
    })
}

/// Whether a rank of a world of threads has panicked. Each of them has one, and says so by dropping it.
#[derive(Clone, Default)]
struct Fall(Arc<AtomicBool>);

impl Drop for Fall {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

thread_local! {
    /// That of this thread's world.
    static FALL: RefCell<Option<Fall>> = const { RefCell::new(None) };
}

/// Panics if another rank of this thread's world has: what this one waits for will not come.
pub fn all_stand() {
    let fallen = FALL.with_borrow(|fall| fall.as_ref().is_some_and(|fall| fall.0.load(Ordering::Relaxed)));
    assert!(!fallen, "another rank has panicked");
}

/// Where ranks that are threads wait for each other, as at a barrier; but when one has panicked the others do so too,
/// in place of waiting for ever.
pub struct Meeting {
    size: usize,
    /// Who has come, and how often all have.
    come: Mutex<(usize, u64)>,
    all: Condvar,
}

impl Meeting {
    /// For `size` ranks.
    pub fn new(size: usize) -> Meeting {
        Meeting { size, come: Mutex::new((0, 0)), all: Condvar::new() }
    }

    /// Returns whether this rank was the last to come.
    pub fn wait(&self) -> bool {
        let start = Instant::now();
        let mut come = self.come.lock().unwrap();
        let (place, turn) = (come.0 + 1, come.1);
        *come = if place == self.size { (0, turn + 1) } else { (place, turn) };
        self.all.notify_all();
        while come.1 == turn {
            come = self.all.wait_timeout(come, Duration::from_millis(20)).unwrap().0;
            if come.1 == turn {
                drop(come);
                all_stand();
                assert!(start.elapsed() < 2 * patience(), "only {place} of {} ranks have come", self.size);
                come = self.come.lock().unwrap();
            }
        }
        place == self.size
    }
}

/// The verdict in an error, which must be one.
pub fn verdict(error: &Error) -> Verdict {
    match error {
        Error::Failed { verdict, .. } => verdict.clone(),
        other => panic!("not a verdict: {other}"),
    }
}

/// The one verdict that all errors carry.
pub fn common_verdict(errors: &[Error]) -> Verdict {
    let verdicts: Vec<Verdict> = errors.iter().map(verdict).collect();
    assert!(verdicts.iter().all(|v| *v == verdicts[0]), "not the same verdict: {verdicts:#?}");
    verdicts[0].clone()
}

/// The variable that has the role of a process.
pub const ROLE: &str = "MAYPOLE_TEST_ROLE";

/// In a process that was started as a rank: run `body` with the role and end. In the test itself: nothing.
pub fn role(body: impl FnOnce(&str)) {
    if let Ok(role) = std::env::var(ROLE) {
        body(&role);
        std::process::exit(0);
    }
}

/// Say something to the test.
pub fn say(what: impl std::fmt::Display) {
    // One write, so that lines of threads do not mix; and a newline first, since the test harness does not end its own
    // lines.
    print!("\n@{}\n", what.to_string().replace('\n', " "));
    let _ = std::io::Write::flush(&mut std::io::stdout());
}

/// Rank, world size and own variables of a process.
pub type Place<'a> = (usize, usize, Vec<(&'a str, String)>);

/// Processes that are the ranks of a world, or are to become it. What is left is killed on drop.
pub struct Job {
    ranks: Vec<Child>,
    lines: mpsc::Receiver<(usize, Instant, String)>,
}

impl Job {
    /// Start test `test` of this executable in `size` processes with the variables of a world, and `extra` ones.
    pub fn start(test: &str, role: &str, size: usize, extra: &[(&str, &str)]) -> Job {
        let places: Vec<_> = (0..size).map(|rank| (rank, size, Vec::new())).collect();
        Job::start_at(test, role, &places, extra)
    }

    /// [`Job::start`] with rank, world size and variables of each process.
    pub fn start_at(test: &str, role: &str, places: &[Place<'_>], extra: &[(&str, &str)]) -> Job {
        Job::start_by(test, role, places, extra, |_, command| command.spawn().unwrap())
    }

    /// [`Job::start_at`] where `spawn` starts each process, given its place in the list and what to start.
    pub fn start_by(
        test: &str,
        role: &str,
        places: &[Place<'_>],
        extra: &[(&str, &str)],
        spawn: impl Fn(usize, &mut Command) -> Child,
    ) -> Job {
        let port = free_port();
        let (say, lines) = mpsc::channel();
        let mut ranks = Vec::new();
        for (process, (rank, size, own)) in places.iter().enumerate() {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", test, "--nocapture", "--test-threads=1"])
                .env(ROLE, role)
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", size.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", port.to_string())
                .env("MAYPOLE_TIMEOUT", patience().as_secs().to_string())
                .env("MAYPOLE_LATE", "0")
                .envs(extra.iter().copied())
                .envs(own.iter().map(|(name, value)| (name, value)))
                .stdin(Stdio::null())
                .stdout(Stdio::piped());
            let mut child = spawn(process, &mut command);
            let stdout = BufReader::new(child.stdout.take().unwrap());
            let say = say.clone();
            std::thread::spawn(move || {
                for line in stdout.lines().map_while(Result::ok) {
                    if let Some(said) = line.strip_prefix('@') {
                        let _ = say.send((process, Instant::now(), said.to_string()));
                    }
                }
            });
            ranks.push(child);
        }
        Job { ranks, lines }
    }

    /// The next line that each of `from` says, and when.
    pub fn hear(&self, from: &[usize]) -> Vec<(Instant, String)> {
        let mut heard: Vec<Option<(Instant, String)>> = vec![None; self.ranks.len()];
        while from.iter().any(|rank| heard[*rank].is_none()) {
            let next = self.lines.recv_timeout(2 * patience());
            let (rank, at, line) = next.unwrap_or_else(|_| panic!("ranks {from:?} did not all speak: {heard:?}"));
            heard[rank] = Some((at, line));
        }
        from.iter().map(|rank| heard[*rank].take().expect("heard")).collect()
    }

    pub fn pid(&self, rank: usize) -> Pid {
        Pid::from_raw(self.ranks[rank].id() as i32)
    }

    pub fn signal(&self, rank: usize, signal: Signal) {
        kill(self.pid(rank), signal).unwrap();
    }

    /// Wait until the ranks `from` have ended and check that they ended well.
    pub fn end(&mut self, from: &[usize]) {
        for rank in from {
            let status = self.status(*rank);
            assert!(status.success(), "rank {rank}: {status}");
        }
    }

    /// How a rank has ended, if it has.
    pub fn ended(&mut self, rank: usize) -> Option<ExitStatus> {
        self.ranks[rank].try_wait().unwrap()
    }

    /// Wait until a rank has ended: how it did.
    pub fn status(&mut self, rank: usize) -> ExitStatus {
        let until = Instant::now() + 2 * patience();
        loop {
            match self.ranks[rank].try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > until => panic!("rank {rank} does not end"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            let _ = rank.kill();
            let _ = rank.wait();
        }
    }
}
