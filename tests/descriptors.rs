//! Worlds in processes that may have few file descriptors. The processes are this test binary again, started by `sh`
//! with a limit and told by a variable which part they play.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::node::{Meeting, Node, UniqueId};
use maypole::{Communicator, Config, ReduceOp};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A process that plays `part` of this binary after `ulimit` has been given `limit`. Killed when dropped.
struct Player(Child);

impl Player {
    fn start(part: &str, limit: &str, words: &[(&str, String)]) -> Player {
        let binary = std::env::current_exe().expect("this binary");
        let shell = Command::new("sh")
            .args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")])
            .arg(binary)
            .args(["--exact", part, "--nocapture", "--test-threads=1"])
            .env("MAYPOLE_TEST_PART", part)
            .envs(words.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Player(shell.expect("sh starts"))
    }

    /// Block until it has ended in good order, at most `within`; what it has said.
    fn end(mut self, within: Duration) -> String {
        let until = Instant::now() + within;
        let mut stdout = self.0.stdout.take().expect("piped");
        let said = std::thread::spawn(move || {
            let mut said = String::new();
            stdout.read_to_string(&mut said).expect("text");
            said
        });
        let status = loop {
            match self.0.try_wait().expect("a child") {
                Some(status) => break status,
                None => assert!(Instant::now() < until, "it still runs after {within:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let said = said.join().expect("it reads");
        assert!(status.success(), "{status}: {said}");
        said
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether this process plays `part`.
fn plays(part: &str) -> bool {
    std::env::var("MAYPOLE_TEST_PART").is_ok_and(|asked| asked == part)
}

fn word(name: &str) -> String {
    std::env::var(name).expect("set by the test")
}

fn config(seconds: u64) -> Config {
    let time = Duration::from_secs(seconds);
    let mut config = Config::default();
    (config.connect_timeout, config.timeout) = (time, time);
    config
}

/// Join so many nodes of this process; what each came to.
fn join(size: usize, config: &Config) -> Vec<maypole::Result<Arc<Node>>> {
    let id = UniqueId::create(config).expect("a meeting point");
    let join = |rank| Node::join(Meeting::Id(id), rank, size, config);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..size).map(|rank| scope.spawn(move || join(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("joining does not panic")).collect()
    })
}

const MANY: usize = 300;

#[test]
fn three_hundred_meet() {
    if plays("three_hundred_meet") {
        let nodes = join(MANY, &config(60));
        assert!(nodes.iter().all(Result::is_ok), "{:?}", nodes.iter().find_map(|n| n.as_ref().err()));
        return println!("all have met");
    }
    // Five for each node, and the hub's connection to it.
    let hard = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit").1;
    if hard < 8 * MANY as u64 {
        return println!("skipped: three_hundred_meet: the hard limit of descriptors is {hard}");
    }
    let said = Player::start("three_hundred_meet", "-S -n 256", &[]).end(Duration::from_secs(120));
    assert!(said.contains("all have met"), "{said}");
}

#[test]
fn a_limit_that_is_too_low_is_named_on_every_rank() {
    const PART: &str = "a_limit_that_is_too_low_is_named_on_every_rank";
    if plays(PART) {
        let start = Instant::now();
        for (rank, node) in join(MANY, &config(10)).into_iter().enumerate() {
            println!("rank {rank}: {}", node.map(|_| "it has joined").map_or_else(|e| e.to_string(), String::from));
        }
        return println!("all ended within {:?}", start.elapsed());
    }
    let said = Player::start(PART, "-n 256", &[]).end(Duration::from_secs(120));
    let errors: Vec<&str> = said.lines().filter_map(|line| line.split_once("rank ").map(|(_, text)| text)).collect();
    assert_eq!(errors.len(), MANY, "{said}");
    let named = |text: &&&str| text.contains("256") && text.contains("file descriptors") && text.contains("ulimit -Hn");
    assert_eq!(errors.iter().find(|text| !named(text)), None);
    // Those that came to the meeting point know how many it needs.
    assert!(errors.iter().any(|text| text.contains("each of the 300 ranks")), "{said}");
}

/// The bytes of file `name`, once they are there.
fn await_file(name: &Path, until: Instant) -> Option<Vec<u8>> {
    while Instant::now() < until {
        if let Some(bytes) = std::fs::read(name).ok().filter(|bytes| bytes.len() == 128) {
            return Some(bytes);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

/// Ranks make one world after the other until they have no descriptors for more. They may wait for each other for an
/// hour; but whatever fails where, all know soon.
#[test]
fn creation_ends_when_descriptors_run_out() {
    const PART: &str = "creation_ends_when_descriptors_run_out";
    const WORLDS: usize = 6;
    const RANKS: usize = 3;
    if plays(PART) {
        let (rank, folder) = (word("RANK").parse().expect("a rank"), PathBuf::from(word("FOLDER")));
        let mut config = config(3600);
        config.set("MAYPOLE_TRANSPORT", &word("TRANSPORT")).expect("a transport");
        let mut worlds = Vec::new();
        for world in 0..WORLDS {
            let start = Instant::now();
            let (name, draft) = (folder.join(format!("{world}")), folder.join(format!("{world}.draft")));
            let make = || {
                let id = if rank == 0 {
                    let id = UniqueId::create(&config)?;
                    // Without a descriptor for the file the others wait in vain.
                    let _ = std::fs::write(&draft, id.as_bytes()).and_then(|()| std::fs::rename(&draft, &name));
                    id
                } else {
                    let until = start + Duration::from_secs(3);
                    let Some(bytes) = await_file(&name, until) else { return Ok(None) };
                    UniqueId::from_bytes(&bytes)?
                };
                Communicator::from_id(&id, rank, RANKS, config.clone()).map(Some)
            };
            let made = make();
            let took = start.elapsed();
            let how = match &made {
                Ok(Some(_)) => "made".to_string(),
                Ok(None) => "no id".to_string(),
                Err(e) => e.to_string(),
            };
            println!("world {world} rank {rank} after {took:?}: {how}");
            worlds.extend(made.ok().flatten());
            assert!(took < Duration::from_secs(60), "{took:?}: {how}");
        }
        return;
    }
    // All at the same time: they wait most of it.
    let jobs =
        [("shm", 16), ("shm", 24), ("shm", 32), ("tcp", 20), ("tcp", 28), ("tcp", 36)].map(|(transport, limit)| {
            let folder = std::env::temp_dir().join(format!("maypole-few-{}-{transport}-{limit}", std::process::id()));
            std::fs::create_dir_all(&folder).expect("a folder");
            let players = (0..RANKS).map(|rank| {
                let words = [
                    ("RANK", rank.to_string()),
                    ("FOLDER", folder.display().to_string()),
                    ("TRANSPORT", transport.to_string()),
                ];
                Player::start(PART, &format!("-n {limit}"), &words)
            });
            (transport, limit, players.collect::<Vec<_>>(), folder)
        });
    for (transport, limit, players, folder) in jobs {
        for player in players {
            let said = player.end(Duration::from_secs(180));
            println!("{transport} with {limit} descriptors: {said}");
        }
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}

/// The ports at which process `pid` listens.
fn ports(pid: u32) -> Vec<u16> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("our child");
    let own: Vec<String> = fds
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_string()))
        .collect();
    let tables = ["tcp", "tcp6"].map(|name| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")));
    let lines: Vec<String> =
        tables.into_iter().flatten().flat_map(|t| t.lines().map(String::from).collect::<Vec<_>>()).collect();
    // Number, local address and port in hexadecimal, the other's, state (0A listens), six more, the inode.
    let port = |line: &String| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(3) == Some(&"0A") && own.iter().any(|inode| fields.get(9) == Some(&inode.as_str()));
        listens.then(|| u16::from_str_radix(fields[1].rsplit(':').next()?, 16).ok()).flatten()
    };
    lines.iter().filter_map(port).collect()
}

/// Connections that say nothing.
fn strangers(ports: &[u16]) -> Vec<TcpStream> {
    let each = |port: &u16| {
        let at = SocketAddr::from(([127, 0, 0, 1], *port));
        (0..1100).filter_map(move |_| TcpStream::connect_timeout(&at, Duration::from_secs(5)).ok())
    };
    ports.iter().flat_map(each).collect()
}

/// Rank 0, whose process holds the job together, may have 1024 descriptors, and more strangers than that stand at each
/// of its ports: it opens files, makes communicators and sums all the same, and others come in.
#[test]
fn strangers_leave_rank_0_its_descriptors() {
    const PART: &str = "strangers_leave_rank_0_its_descriptors";
    const FILES: usize = 300;
    let mut config = config(60);
    config.transport = TransportChoice::Tcp;
    let work = |world: &Communicator| {
        for round in 0..100 {
            let mut sum = [0u64];
            world.all_reduce(&[round + world.rank() as u64], &mut sum, ReduceOp::Sum).expect("a sum");
            assert_eq!(sum, [2 * round + 1]);
        }
    };
    if plays(PART) {
        let id = UniqueId::create(&config).expect("an id");
        println!("id {}", id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let world = Communicator::from_id(&id, 0, 2, config).expect("a world");
        println!("met");
        std::io::stdin().read_line(&mut String::new()).expect("the test's word");
        work(&world);
        let files: Result<Vec<_>, _> = (0..FILES).map(|_| std::fs::File::open("/dev/null")).collect();
        let files = files.expect("as many files");
        let another = world.duplicate().expect("another world");
        work(&another);
        return println!("{} files are open", files.len());
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    if hard < 4096 {
        return println!("skipped: {PART}: the hard limit of descriptors is {hard}");
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard one");
    let mut zero = Player::start(PART, "-n 1024", &[]);
    let mut said = BufReader::new(zero.0.stdout.take().expect("piped")).lines().map(|line| line.expect("text"));
    let id = said.find_map(|line| line.split_once("id ").map(|(_, id)| id.to_string())).expect("an id");
    let id: Vec<u8> = (0..id.len() / 2).map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).expect("hex")).collect();
    let id = UniqueId::from_bytes(&id).expect("an id");
    let at_the_hub = strangers(&ports(zero.0.id())[..]);
    let world = Communicator::from_id(&id, 1, 2, config).expect("a world");
    assert!(said.any(|line| line.contains("met")));
    let everywhere = strangers(&ports(zero.0.id())[..]);
    assert!(everywhere.len() >= 2200, "{} strangers", everywhere.len());
    writeln!(zero.0.stdin.as_mut().expect("piped"), "go").expect("it listens");
    work(&world);
    work(&world.duplicate().expect("another world"));
    assert!(said.any(|line| line.contains("300 files are open")));
    drop((at_the_hub, everywhere));
}

/// One rank of three has no descriptors for its part of a communicator: none of them gets one, and once it has some
/// again, all do.
#[test]
fn a_communicator_is_made_on_all_ranks_or_on_none() {
    const PART: &str = "a_communicator_is_made_on_all_ranks_or_on_none";
    if plays(PART) {
        let (rank, name): (usize, _) =
            (word("RANK").parse().expect("a rank"), PathBuf::from(word("FOLDER")).join("id"));
        let mut config = config(60);
        config.transport = TransportChoice::Tcp;
        if rank == 0 {
            let id = UniqueId::create(&config).expect("an id");
            std::fs::write(name.with_extension("draft"), id.as_bytes()).expect("a file");
            std::fs::rename(name.with_extension("draft"), &name).expect("a file");
        }
        let id = await_file(&name, Instant::now() + Duration::from_secs(60)).expect("an id");
        let world =
            Communicator::from_id(&UniqueId::from_bytes(&id).expect("an id"), rank, 3, config).expect("a world");
        let works = |child: &Communicator| {
            let mut sum = [0u64];
            child.all_reduce(&[child.rank() as u64], &mut sum, ReduceOp::Sum).expect("a sum");
            assert_eq!(sum, [3]);
        };
        works(&world.duplicate().expect("a child"));
        let mut files = Vec::new();
        while let Some(file) = (rank == 1).then(|| std::fs::File::open("/dev/null").ok()).flatten() {
            files.push(file);
        }
        world.barrier().expect("all are here");
        let error = world.duplicate().map(|_| ()).expect_err("rank 1 has no descriptors").to_string();
        println!("rank {rank} is told: {error}");
        let error = world.split(Some(0), 0).map(|_| ()).expect_err("nor has it now").to_string();
        assert_eq!(error.contains("could not make its part"), rank != 1, "{error}");
        world.barrier().expect("all are here");
        drop(files);
        works(&world.duplicate().expect("rank 1 has descriptors again"));
        return println!("all is well");
    }
    let folder = std::env::temp_dir().join(format!("maypole-some-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let player = |rank: usize| {
        let words = [("RANK", rank.to_string()), ("FOLDER", folder.display().to_string())];
        Player::start(PART, "-n 128", &words)
    };
    let players: Vec<Player> = (0..3).map(player).collect();
    for (rank, player) in players.into_iter().enumerate() {
        let said = player.end(Duration::from_secs(120));
        assert!(said.contains("all is well"), "{said}");
        // The others have its words if these have come by then.
        assert!(rank != 1 || said.contains("128 file descriptors"), "{said}");
        assert_eq!(said.contains("could not make its part"), rank != 1, "{said}");
    }
    std::fs::remove_dir_all(&folder).expect("removed");
}
