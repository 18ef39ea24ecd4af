//! Settings made in code are held to what is asked of the environment's, wherever ranks meet.

mod ranks;

use maypole::node::{Meeting, Node};
use maypole::{Communicator, Config, Error, UniqueId};
use std::ops::RangeInclusive;
use std::time::Duration;

/// A variable, and its field with a value that makes no sense.
type Wrong = (&'static str, fn(&mut Config));

const WRONG: [Wrong; 27] = [
    ("MAYPOLE_RING", |c| c.ring = 0),
    ("MAYPOLE_RING", |c| c.ring = 127),
    ("MAYPOLE_RING", |c| c.ring = 4095),
    ("MAYPOLE_RING", |c| c.ring = usize::MAX),
    ("MAYPOLE_WINDOW", |c| c.window = 0),
    ("MAYPOLE_WINDOW", |c| c.window = usize::MAX),
    ("MAYPOLE_SLICE", |c| c.slice = 63),
    ("MAYPOLE_SLICE", |c| c.slice = (1 << 30) + 1),
    ("MAYPOLE_STREAM", |c| c.stream = 0),
    ("MAYPOLE_STREAM", |c| c.stream = usize::MAX),
    ("MAYPOLE_STASH", |c| c.stash = 0),
    ("MAYPOLE_CONNECTIONS", |c| c.connections = 0),
    ("MAYPOLE_CONNECTIONS", |c| c.connections = 17),
    ("MAYPOLE_DEVICE_WINDOW", |c| c.device_window = 1),
    ("MAYPOLE_DEVICE_WINDOW", |c| c.device_window = usize::MAX),
    ("MAYPOLE_DEVICE_FIFO", |c| c.device_fifo = 0),
    ("MAYPOLE_DEVICE_FIFO", |c| c.device_fifo = usize::MAX),
    ("MAYPOLE_DEVICE_BLOCKS", |c| c.device_blocks = 5),
    ("MAYPOLE_TIMEOUT", |c| c.timeout = Duration::ZERO),
    ("MAYPOLE_CONNECT_TIMEOUT", |c| c.connect_timeout = Duration::ZERO),
    ("MAYPOLE_ALGORITHM", |c| c.algorithm = "all_reduce=fastest".into()),
    ("MAYPOLE_ALGORITHM", |c| c.algorithm = "barrier=ring".into()),
    ("MAYPOLE_PORTS", |c| c.ports = Some(0..=20_000)),
    ("MAYPOLE_PORTS", |c| c.ports = Some(RangeInclusive::new(20_100, 20_000))),
    ("MAYPOLE_KEY", |c| c.key = Some("too short".into())),
    ("MAYPOLE_INTERFACE", |c| c.interface = Some("^".into())),
    ("MAYPOLE_INTERFACE", |c| c.interface = Some("10.0.0.0/33".into())),
];

/// Wherever ranks meet.
fn doors(config: &Config) -> [(&'static str, maypole::Result<()>); 5] {
    let id = UniqueId::create(&Config::default()).unwrap();
    [
        ("threads_with", Communicator::threads_with(2, config.clone()).map(drop)),
        ("from_env_with", Communicator::from_env_with(config.clone()).map(drop)),
        ("from_id", Communicator::from_id(&id, 0, 1, config.clone()).map(drop)),
        ("Node::join", Node::join(Meeting::Id(id), 0, 1, config).map(drop)),
        ("UniqueId::create", UniqueId::create(config).map(drop)),
    ]
}

#[test]
fn fields_are_checked_at_every_door() {
    for (number, (name, spoil)) in WRONG.into_iter().enumerate() {
        let mut config = Config::default();
        spoil(&mut config);
        for (door, outcome) in doors(&config) {
            match outcome {
                Err(Error::Setting { name: told, value, expected }) => {
                    assert_eq!(told, name, "{door}, number {number}");
                    assert!(!value.is_empty() && expected.contains("expected"), "{door}: {value}: {expected}");
                }
                other => panic!("{name}, number {number}: {door} took it: {other:?}"),
            }
        }
    }
}

#[test]
fn the_environment_is_held_to_the_same() {
    for (name, text, expected) in [
        ("MAYPOLE_RING", "4000", "4096 to 268435456"),
        ("MAYPOLE_RING", "99999999999999999999", "size in bytes"),
        ("MAYPOLE_STASH", "17179869183G", "4096 to"),
        ("MAYPOLE_CONNECTIONS", "17", "1 to 16"),
        ("MAYPOLE_CONNECTIONS", "-1", "whole number"),
        ("MAYPOLE_DEVICE_BLOCKS", "5", "1 to 4, or 0"),
        ("MAYPOLE_TIMEOUT", "0", "positive"),
        ("MAYPOLE_ALGORITHM", "fastest", "fastest"),
        ("MAYPOLE_PORTS", "20100-20000", "a range of TCP ports"),
        ("MAYPOLE_PORTS", "0", "a range of TCP ports"),
        ("MAYPOLE_LATE", "-1", "number of seconds"),
        ("MAYPOLE_ENCRYPT", "yes", "0 or 1"),
        ("MAYPOLE_DEVICE_ABORT", "2", "0 or 1"),
        ("MAYPOLE_REQUIRE_KEY", "", "0 or 1"),
    ] {
        let mut config = Config::default();
        let error = config.set(name, text).unwrap_err();
        assert!(matches!(&error, Error::Setting { name: n, value, .. } if n == name && value == text), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(config, Config::default(), "a value that is refused changes nothing");
    }
}

#[test]
fn settings_at_their_limits_work() {
    let limits: [fn(&mut Config); 6] = [
        |c| (c.ring, c.window, c.slice) = (4096, 4096, 64),
        |c| (c.ring, c.window, c.slice) = (1 << 28, 1 << 28, 1 << 30),
        |c| (c.ring, c.window, c.slice) = (4097, 4097, 65),
        |c| c.stream = 64,
        |c| c.stream = 1 << 40,
        |c| c.timeout = Duration::MAX,
    ];
    for (number, limit) in limits.into_iter().enumerate() {
        for algorithm in ["", "ring,binomial"] {
            let mut config = Config::default();
            config.algorithm = algorithm.into();
            limit(&mut config);
            ranks::threads(3, &config, |comm| {
                let mut all = vec![comm.rank() as u32; 20_000];
                comm.all_reduce_in_place(&mut all, maypole::ReduceOp::Sum).unwrap();
                assert!(all.iter().all(|x| *x == 3), "number {number}");
            });
        }
    }
}

/// What `maypole run -n 2 -- maypole perf barrier` says on standard error with these variables.
fn said_with(variables: &[(&str, &str)]) -> (bool, String) {
    let maypole = env!("CARGO_BIN_EXE_maypole");
    let mut command = std::process::Command::new(maypole);
    command.args(["run", "-n", "2", "--", maypole, "perf", "barrier", "-n", "1", "-w", "0"]);
    let out = command.envs(variables.iter().copied()).stdin(std::process::Stdio::null()).output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn misspelt_variables_are_named_once_with_the_nearest() {
    let (well, said) = said_with(&[("MAYPOLE_TIMOUT", "5"), ("MAYPOLE_TEST_SOMETHING", "1")]);
    assert!(well, "{said}");
    assert_eq!(said.matches("MAYPOLE_TIMOUT is no setting").count(), 1, "{said}");
    assert!(said.contains("the nearest is MAYPOLE_TIMEOUT") && !said.contains("SOMETHING"), "{said}");
}

#[test]
fn empty_variables_count_as_unset() {
    let names: Vec<&str> = maypole::config::KNOBS.iter().map(|knob| knob.name).collect();
    for empty in ["", " "] {
        let variables: Vec<(&str, &str)> = names.iter().map(|name| (*name, empty)).collect();
        assert_eq!(Config::from_lookup(&|_| Some(empty.to_string())).unwrap(), Config::default());
        let (well, said) = said_with(&variables);
        assert!(well && said.is_empty(), "{said}");
    }
}
