//! Detection from environments as the launchers leave them, and the TCPStore client against a small server.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;

const TORCHRUN: &str = "RANK=3 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 GROUP_RANK=1 ROLE_RANK=3 MASTER_ADDR=node01 MASTER_PORT=29500 \
                        TORCHELASTIC_RUN_ID=none TORCHELASTIC_RESTART_COUNT=0 TORCHELASTIC_USE_AGENT_STORE=False";
const SRUN: &str = "SLURM_JOB_ID=4711 SLURM_STEP_ID=2 SLURM_STEPID=2 SLURM_PROCID=5 SLURM_NTASKS=6 SLURM_STEP_NUM_TASKS=6 SLURM_NPROCS=6 \
                    SLURM_LOCALID=2 SLURM_NODEID=1 SLURM_NNODES=2 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST=gpu[07-08] \
                    SLURM_JOB_NODELIST=gpu[07-12] SLURM_STEP_TASKS_PER_NODE=3(x2) SLURM_LAUNCH_NODE_IPADDR=10.1.0.9";
const BATCH: &str = "SLURM_JOB_ID=4711 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_NTASKS=6 SLURM_NPROCS=6 SLURM_JOB_NODELIST=gpu[07-08] \
                     SLURM_TASKS_PER_NODE=3(x2)";

fn lookup(text: &str) -> impl Fn(&str) -> Option<String> {
    let variables: HashMap<String, String> = text
        .split_whitespace()
        .filter_map(|v| v.split_once('='))
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect();
    move |name| variables.get(name).cloned()
}

fn launch(text: &str) -> Launch {
    detect(&Config::default(), &lookup(text)).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refused(text: &str) -> String {
    detect(&Config::default(), &lookup(text)).err().unwrap_or_else(|| panic!("{text} was accepted")).to_string()
}

fn place(launch: &Launch) -> (&'static str, usize, usize, Option<usize>, Option<usize>) {
    (launch.launcher, launch.rank, launch.size, launch.local_rank, launch.local_size)
}

fn meeting(launch: &Launch) -> Option<(&str, u16)> {
    match &launch.meeting {
        LaunchMeeting::Address { host, port, .. } => Some((host, *port)),
        _ => None,
    }
}

#[test]
fn nothing_is_a_world_of_one() {
    for text in ["", "RANK= WORLD_SIZE=", BATCH, "SLURM_JOB_ID=4711 SLURM_NTASKS=6"] {
        let alone = launch(text);
        assert_eq!(place(&alone), ("none", 0, 1, Some(0), Some(1)), "{text}");
        assert!(matches!(alone.meeting, LaunchMeeting::Alone));
    }
}

#[test]
fn torchrun_without_its_store_and_by_hand() {
    let torchrun = launch(TORCHRUN);
    assert_eq!(place(&torchrun), ("torchrun", 3, 8, Some(1), Some(2)));
    assert_eq!(meeting(&torchrun), Some(("node01", 29500)));
    let by_hand = launch("RANK=0 WORLD_SIZE=2 MASTER_ADDR=[::1] MASTER_PORT=4000");
    assert_eq!(place(&by_hand), ("environment", 0, 2, None, None));
    assert_eq!(meeting(&by_hand), Some(("::1", 4000)));
    // One rank meets nobody, so it needs no address.
    let single = launch("PMI_RANK=0 PMI_SIZE=1");
    assert_eq!(place(&single), ("PMI", 0, 1, None, None));
    let single = launch("RANK=0 WORLD_SIZE=1");
    assert!(matches!(single.meeting, LaunchMeeting::Alone));
}

#[test]
fn our_launchers_board_is_for_the_ranks_that_it_started() {
    let ours = "RANK=1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=4000 MAYPOLE_BOARD=maypole-run-0/5ec/1/2";
    // Nobody listens there.
    let error = refused(ours);
    assert!(error.contains("maypole-run-0") && error.contains("`maypole run`") && !error.contains("5ec"), "{error}");
    // A torchrun that one of the ranks started says itself where its ranks meet; so does somebody by hand.
    let torchrun = launch(&format!("{ours} TORCHELASTIC_RUN_ID=x"));
    assert_eq!((torchrun.launcher, meeting(&torchrun)), ("torchrun", Some(("127.0.0.1", 4000))));
    let by_hand = launch(&ours.replace("WORLD_SIZE=2", "WORLD_SIZE=4"));
    assert_eq!((by_hand.launcher, meeting(&by_hand)), ("environment", Some(("127.0.0.1", 4000))));
}

#[test]
fn the_innermost_launcher_counts() {
    // torchrun started by srun, one per host, and by mpirun without a PMIx that could be reached.
    for outer in [
        SRUN,
        "PMIX_NAMESPACE=stale PMIX_RANK=0 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=1",
        "PMI_FD=77 PMI_RANK=0 PMI_SIZE=1",
    ] {
        assert_eq!(place(&launch(&format!("{outer} {TORCHRUN}"))), ("torchrun", 3, 8, Some(1), Some(2)), "{outer}");
    }
    // In a pod that sets RANK, or left over: by hand is what counts least where the ancestors do not say.
    for (outer, inner, launcher) in [
        ("RANK=0 WORLD_SIZE=1", SRUN, "Slurm"),
        (
            "RANK=0 WORLD_SIZE=1",
            "PMIX_NAMESPACE=a PMIX_RANK=0 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=3",
            "Open MPI",
        ),
        ("RANK=0 WORLD_SIZE=1", "PMIX_NAMESPACE=a PMIX_RANK=0", "PMIx"),
        ("RANK=0 WORLD_SIZE=1", "PMI_FD=3 PMI_RANK=0 PMI_SIZE=3", "MPICH (PMI-1)"),
        // The same said twice: then the address that was given with it is meant.
        ("RANK=0 WORLD_SIZE=3 MASTER_ADDR=a MASTER_PORT=1", "PMI_FD=3 PMI_RANK=0 PMI_SIZE=3", "environment"),
    ] {
        assert_eq!(launcher_name(&lookup(&format!("{outer} {inner}"))).unwrap(), launcher, "{outer} {inner}");
    }
    // Half a set of somebody else's variables does not hide a whole one.
    assert_eq!(place(&launch(&format!("RANK=7 {SRUN}"))).0, "Slurm");
    assert_eq!(launcher_name(&lookup(SRUN)).unwrap(), "Slurm");
    assert_eq!(launcher_name(&lookup("PMI_FD=3 PMI_RANK=0 PMI_SIZE=1")).unwrap(), "MPICH (PMI-1)");
    assert_eq!(launcher_name(&lookup("PMIX_NAMESPACE=1 PMIX_RANK=0 OMPI_COMMAND=a")).unwrap(), "Open MPI");
}

#[test]
fn a_step_of_slurm() {
    let step = launch(SRUN);
    assert_eq!(place(&step), ("Slurm", 5, 6, Some(2), Some(3)));
    let (host, port) = meeting(&step).unwrap();
    assert_eq!(host, "gpu07");
    let other_task = SRUN.replace("SLURM_PROCID=5", "SLURM_PROCID=0");
    assert_eq!(meeting(&launch(&other_task)), Some(("gpu07", port)), "all tasks must compute the same address");
    let other_step = SRUN.replace("SLURM_STEP_ID=2", "SLURM_STEP_ID=3");
    assert_ne!(meeting(&launch(&other_step)), Some(("gpu07", port)), "two steps must not share a port");
    assert_eq!(meeting(&launch(&format!("{SRUN} MASTER_ADDR=10.1.0.7 MASTER_PORT=5000"))), Some(("10.1.0.7", 5000)));
    let uneven = SRUN.replace("3(x2)", "4,2");
    assert_eq!(launch(&uneven).local_size, Some(2));
}

#[test]
fn open_mpi_without_pmix() {
    let who = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=4";
    let error = refused(who);
    assert!(error.contains("MASTER_ADDR") && error.contains("PMIX_NAMESPACE"), "{error}");
    let with_address = launch(&format!("{who} MASTER_ADDR=10.0.0.1 MASTER_PORT=4711"));
    assert_eq!(place(&with_address), ("Open MPI", 1, 4, Some(1), Some(4)));
    assert_eq!(meeting(&with_address), Some(("10.0.0.1", 4711)));
}

#[test]
fn what_makes_no_sense_names_the_variable() {
    for (text, expected) in [
        ("RANK=0", "RANK is set but WORLD_SIZE is not"),
        ("WORLD_SIZE=4", "WORLD_SIZE is set but RANK is not"),
        ("RANK=x WORLD_SIZE=4", "RANK=x: expected"),
        ("RANK=-1 WORLD_SIZE=4", "RANK=-1: expected"),
        ("RANK=0 WORLD_SIZE=four", "WORLD_SIZE=four: expected"),
        ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE=0: expected at least 1 rank"),
        ("RANK=4 WORLD_SIZE=4 MASTER_ADDR=a MASTER_PORT=1", "RANK=4: expected a rank below WORLD_SIZE=4"),
        ("RANK=0 WORLD_SIZE=4", "RANK is set but MASTER_ADDR is not"),
        ("RANK=0 WORLD_SIZE=4 MASTER_ADDR=[] MASTER_PORT=1", "MASTER_ADDR=[]: expected the name"),
        ("RANK=0 WORLD_SIZE=4 MASTER_ADDR=a", "MASTER_ADDR is set but MASTER_PORT is not"),
        ("RANK=0 WORLD_SIZE=4 MASTER_ADDR=a MASTER_PORT=0", "MASTER_PORT=0: expected a TCP port"),
        ("RANK=0 WORLD_SIZE=4 MASTER_ADDR=a MASTER_PORT=65536", "MASTER_PORT=65536: expected a TCP port"),
        (
            "RANK=0 WORLD_SIZE=4 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2",
            "LOCAL_RANK=2: expected a rank below LOCAL_WORLD_SIZE=2",
        ),
        ("RANK=0 WORLD_SIZE=4 LOCAL_WORLD_SIZE=5", "LOCAL_WORLD_SIZE=5: expected at most WORLD_SIZE=4"),
        ("PMI_FD=5", "PMI_FD is set but PMI_RANK is not"),
        ("PMI_FD=5 PMI_RANK=2 PMI_SIZE=2", "PMI_RANK=2: expected a rank below PMI_SIZE=2"),
        ("OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_RANK is set but OMPI_COMM_WORLD_SIZE is not"),
        ("PMI_RANK=0 PMI_SIZE=3", "PMI_RANK is set, but neither PMI_FD nor MASTER_ADDR"),
        ("SLURM_DISTRIBUTION=arbitrary SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4", "set MASTER_ADDR"),
        ("SLURM_PROCID=9 SLURM_STEP_NUM_TASKS=4", "SLURM_PROCID=9: expected a rank below SLURM_STEP_NUM_TASKS=4"),
        ("SLURM_PROCID=0 SLURM_STEP_NODELIST=a[1-2]", "SLURM_STEP_NUM_TASKS (or SLURM_NTASKS) is not"),
        ("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_NODELIST=a[x] SLURM_JOB_ID=1", "SLURM_STEP_NODELIST=a[x]: expected"),
    ] {
        let error = refused(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

/// What is in a store.
type Kept = Arc<Mutex<HashMap<Vec<u8>, Vec<u8>>>>;

/// torchrun's store, for any number of connections: VALIDATE, then SET, GET, WAIT and DELETE_KEY.
fn store() -> (u16, Kept) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, kept) = (listener.local_addr().unwrap().port(), Kept::default());
    let inside = kept.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, kept) = (stream.unwrap(), inside.clone());
            std::thread::spawn(move || serve(stream, &kept));
        }
    });
    (port, kept)
}

fn serve(mut stream: std::net::TcpStream, kept: &Mutex<HashMap<Vec<u8>, Vec<u8>>>) {
    fn bytes<const N: usize>(stream: &mut std::net::TcpStream) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        stream.read_exact(&mut bytes).ok().map(|()| bytes)
    }
    fn string(stream: &mut std::net::TcpStream) -> Vec<u8> {
        let mut text = vec![0; u64::from_ne_bytes(bytes(stream).unwrap()) as usize];
        stream.read_exact(&mut text).unwrap();
        text
    }
    assert_eq!(bytes::<1>(&mut stream), Some([0]));
    assert_eq!(u32::from_ne_bytes(bytes(&mut stream).unwrap()), 0x3C85F7CE);
    while let Some([query]) = bytes(&mut stream) {
        match query {
            1 => {
                let (key, value) = (string(&mut stream), string(&mut stream));
                kept.lock().unwrap().insert(key, value);
            }
            6 => {
                assert_eq!(u64::from_ne_bytes(bytes(&mut stream).unwrap()), 1);
                let (key, until) = (string(&mut stream), Instant::now() + Duration::from_secs(30));
                while !kept.lock().unwrap().contains_key(&key) && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(5));
                }
                // Whoever waited may have given up.
                let _ = stream.write_all(&[0]);
            }
            3 => {
                let value = kept.lock().unwrap()[&string(&mut stream)].clone();
                stream.write_all(&(value.len() as u64).to_ne_bytes()).unwrap();
                stream.write_all(&value).unwrap();
            }
            8 => {
                let deleted = kept.lock().unwrap().remove(&string(&mut stream)).map_or(0i64, |_| 1);
                stream.write_all(&deleted.to_ne_bytes()).unwrap();
            }
            other => panic!("unexpected query {other}"),
        }
    }
}

fn torchrun_at(port: u16) -> String {
    TORCHRUN.replace("node01", "127.0.0.1").replace("29500", &port.to_string()).replace("False", "True")
}

#[test]
fn a_board_in_torchruns_store() {
    let (port, kept) = store();
    let board = || match launch(&torchrun_at(port)).meeting {
        LaunchMeeting::Board(board) => board,
        _ => panic!("no board"),
    };
    // Nothing there yet: the wait ends at the deadline, and the error says who is missing.
    let error = board().read(Duration::from_millis(50)).unwrap_err().to_string();
    assert!(error.contains("rank 0 posted nothing"), "{error}");
    let mut board = board();
    board.post(b"where we meet").unwrap();
    assert_eq!(board.read(Duration::from_secs(10)).unwrap(), b"where we meet");
    board.clear().unwrap();
    assert!(kept.lock().unwrap().is_empty());
    board.finish().unwrap();
}

/// Rank `rank` of two that meet through torchrun's store at `port`.
fn meet(port: u16, rank: usize, key: Option<&str>) -> Result<()> {
    let mut config = Config { connect_timeout: Duration::from_secs(5), ..Config::default() };
    config.key = key.map(Into::into);
    meet_with(port, rank, config)
}

fn meet_with(port: u16, rank: usize, config: Config) -> Result<()> {
    let limit = Limit::after(Duration::from_secs(5));
    let board = tcp_store::TcpStore::connect("127.0.0.1", port, "maypole/none/0/1".into(), &limit)?;
    let launch = Launch {
        rank,
        size: 2,
        local_rank: None,
        local_size: None,
        launcher: "torchrun",
        run: String::new(),
        meeting: LaunchMeeting::Board(Box::new(board)),
    };
    crate::communicator::join::join(launch, &config).map(|node| assert_eq!(node.unwrap().size(), 2))
}

#[test]
fn what_rank_0_posted_is_taken_down_when_all_have_come() {
    let (port, kept) = store();
    for key in [None, Some("a secret of sixteen bytes")] {
        std::thread::scope(|scope| {
            let one = scope.spawn(|| meet(port, 1, key).unwrap());
            meet(port, 0, key).unwrap();
            one.join().unwrap();
        });
        assert!(kept.lock().unwrap().is_empty());
    }
}

/// Agents start ranks anew without saying so where members change, and what the ranks before posted may still be there.
#[test]
fn what_ranks_that_have_ended_posted_is_read_again() {
    let (port, kept) = store();
    let abandoned = crate::node::UniqueId::create(&Config::default()).unwrap();
    abandoned.withdraw();
    let given_up = notice::Notice::Unable("rank 0 of the ranks before gave up".into());
    let patient = Config { connect_timeout: Duration::from_secs(30), ..Config::default() };
    for (left, delay) in [(abandoned.as_bytes().to_vec(), 2500), (given_up.bytes(), 100)] {
        kept.lock().unwrap().insert(b"maypole/none/0/1".to_vec(), left);
        std::thread::scope(|scope| {
            let one = scope.spawn(|| meet_with(port, 1, patient.clone()));
            std::thread::sleep(Duration::from_millis(delay));
            meet_with(port, 0, patient.clone()).unwrap();
            one.join().unwrap().unwrap();
        });
    }
    // Nobody comes any more: that is said at the deadline, and of one that gave up at once.
    let hasty = Config { connect_timeout: Duration::from_secs(3), ..Config::default() };
    kept.lock().unwrap().insert(b"maypole/none/0/1".to_vec(), abandoned.as_bytes().to_vec());
    let error = meet_with(port, 1, hasty).unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
    kept.lock().unwrap().insert(b"maypole/none/0/1".to_vec(), given_up.bytes());
    let begun = Instant::now();
    let error = meet_with(port, 1, patient).unwrap_err().to_string();
    assert!(error.contains("gave up") && begun.elapsed() < Duration::from_secs(20), "{error}");
}

#[test]
fn a_rank_0_that_can_make_no_meeting_point_says_so_to_all() {
    let (port, _kept) = store();
    let patient = Config { connect_timeout: Duration::from_secs(60), ..Config::default() };
    let nowhere = Config { interface: Some("nosuch7".into()), ..patient.clone() };
    let begun = Instant::now();
    let errors = std::thread::scope(|scope| {
        let one = scope.spawn(|| meet_with(port, 1, patient).unwrap_err().to_string());
        [meet_with(port, 0, nowhere).unwrap_err().to_string(), one.join().unwrap()]
    });
    assert!(errors.iter().all(|error| error.contains("nosuch7")), "{errors:?}");
    assert!(errors[1].contains("rank 0 on host ") && begun.elapsed() < Duration::from_secs(30), "{errors:?}");
}

#[test]
fn a_strangers_meeting_point_in_the_store_is_not_joined() {
    let (port, kept) = store();
    // The stranger reads and writes the store, and serves as the hub, but does not know the secret.
    let foreign = crate::node::UniqueId::create(&Config::default()).unwrap();
    kept.lock().unwrap().insert(b"maypole/none/0/1".to_vec(), foreign.as_bytes().to_vec());
    let error = meet(port, 1, Some("a secret of sixteen bytes")).unwrap_err().to_string();
    assert!(error.contains("another key") && error.contains("MAYPOLE_KEY"), "{error}");
}

#[test]
fn a_key_may_be_required_where_others_could_know_it() {
    let (port, kept) = store();
    let config = Config { require_key: true, ..Config::default() };
    for text in [torchrun_at(port), TORCHRUN.to_string(), SRUN.to_string()] {
        let launch = detect(&config, &lookup(&text)).unwrap();
        let error = crate::communicator::join::join(launch, &config).unwrap_err().to_string();
        assert!(error.contains("MAYPOLE_REQUIRE_KEY=1") && error.contains("MAYPOLE_KEY is not set"), "{error}");
    }
    assert!(kept.lock().unwrap().is_empty(), "nothing is posted");
}

#[test]
fn the_run_is_what_all_ranks_have_alike() {
    let run = |text: &str| launch(text).run;
    assert_eq!(run(SRUN), "4711.2");
    assert_eq!(run(&SRUN.replace("SLURM_PROCID=5", "SLURM_PROCID=0")), "4711.2");
    // The parts of a heterogeneous job have numbers of their own.
    assert_eq!(run(&format!("{SRUN} SLURM_HET_SIZE=2 MASTER_ADDR=10.1.0.7 MASTER_PORT=5000")), "");
    let torchrun = TORCHRUN.replace("RUN_ID=none", "RUN_ID=night");
    assert_eq!(run(&torchrun), "night");
    // An agent counts the failures of its own workers only.
    assert_eq!(run(&torchrun.replace("RESTART_COUNT=0", "RESTART_COUNT=1")), "night");
    // By hand ranks may be started from several jobs of a batch system.
    assert_eq!(run(&format!("{SRUN} RANK=5 WORLD_SIZE=6 MASTER_ADDR=10.1.0.7 MASTER_PORT=5000")), "");
    let open_mpi = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=4 MASTER_ADDR=10.0.0.1 MASTER_PORT=4711";
    assert_eq!(run(open_mpi), "");
}

#[test]
fn an_absent_store_is_an_error_with_the_address() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = torchrun_at(port);
    let config = Config { connect_timeout: Duration::from_millis(200), ..Config::default() };
    let error = detect(&config, &lookup(&text)).err().unwrap().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}")), "{error}");
}
