//! The table of settings: for each its variable, what it means, how its text is read, and what it may be, whoever
//! sets it.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use maypole_collectives::Order;

use super::{Config, DeviceStaging, Family, HIDDEN, TransportChoice};
use crate::node::interfaces::Choice;

/// The shortest `MAYPOLE_KEY`, bytes. Whoever pretends to be a door gets something to check guesses with.
const SHORTEST_KEY: usize = 16;

/// What is wrong with a shorter one.
const SHORT_KEY: &str = "expected at least 16 bytes that nobody can guess; `openssl rand -hex 32` makes some";

/// What is asked of `MAYPOLE_PORTS`.
const PORTS: &str = "expected a range of TCP ports such as 20000-20100";

/// One setting as `maypole info` shows it.
#[derive(Debug)]
pub struct Knob {
    /// The environment variable.
    pub name: &'static str,
    /// Its default, as text.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What a text means. Only what cannot be put into the field is refused here.
    read: fn(&mut Config, &str) -> Result<(), &'static str>,
    /// Whether the field makes sense, whoever has set it: the environment, or a program.
    pub(super) check: fn(&Config) -> Result<(), Nonsense>,
}

/// Why a setting makes no sense.
pub(super) struct Nonsense {
    /// What it is, unless it may be a secret.
    pub value: String,
    pub expected: String,
}

impl Knob {
    /// Put what `text` means into its field.
    ///
    /// # Errors
    /// What was expected.
    pub(super) fn set(&self, config: &mut Config, text: &str) -> Result<(), String> {
        (self.read)(config, text)?;
        (self.check)(config).map_err(|nonsense| nonsense.expected)
    }
}

/// Every setting that a communicator reads.
pub const KNOBS: &[Knob] = &[
    Knob {
        name: "MAYPOLE_ALGORITHM",
        default: "the tuner's choice",
        meaning: "algorithm for every collective that has it, or entries like all_reduce=ring,broadcast=chain",
        read: |c, v| {
            c.algorithm = v.to_string();
            Ok(())
        },
        check: |c| match crate::tuner::parse_overrides(&c.algorithm) {
            Ok(_) => Ok(()),
            Err(why) => nonsense(
                &c.algorithm,
                format!(
                    "{why}; expected algorithm names or collective=algorithm entries, comma-separated; \
                     `maypole verify --help` lists them"
                ),
            ),
        },
    },
    Knob {
        name: "MAYPOLE_TRANSPORT",
        default: "auto",
        meaning: "auto (shared memory on a host, TCP between hosts), shm or tcp",
        read: |c, v| {
            c.transport = match v {
                "auto" => TransportChoice::Auto,
                "shm" => TransportChoice::Shm,
                "tcp" => TransportChoice::Tcp,
                _ => return Err("expected auto, shm or tcp"),
            };
            Ok(())
        },
        check: anything,
    },
    Knob {
        name: "MAYPOLE_ORDER",
        default: "free",
        meaning: "free (the fastest; the same bits on all ranks of a call) or canonical (rank order: the same bits always)",
        read: |c, v| {
            c.order = match v {
                "free" => Order::Free,
                "canonical" => Order::Canonical,
                _ => return Err("expected free or canonical"),
            };
            Ok(())
        },
        check: anything,
    },
    Knob {
        name: "MAYPOLE_SLICE",
        default: "the tuner's choice",
        meaning: "longest slice that a round moves of each chunk, bytes (4K, 1M)",
        read: |c, v| size(v).map(|n| c.slice = n),
        check: |c| zero_or_within(c.slice as u64, 64..=1 << 30),
    },
    Knob {
        name: "MAYPOLE_RING",
        default: "256K",
        meaning: "memory of one shared-memory link (one direction between two ranks), bytes",
        read: |c, v| size(v).map(|n| c.ring = n),
        check: |c| within(c.ring as u64, 4096..=1 << 28),
    },
    Knob {
        name: "MAYPOLE_WINDOW",
        default: "256K",
        meaning: "memory of one publication in shared memory, bytes; each rank has two",
        read: |c, v| size(v).map(|n| c.window = n),
        check: |c| within(c.window as u64, 4096..=1 << 28),
    },
    Knob {
        name: "MAYPOLE_STREAM",
        default: "512",
        meaning: "smallest write into memory that ranks share that is stored around the caches, bytes",
        read: |c, v| size(v).map(|n| c.stream = n),
        check: |c| within(c.stream as u64, 64..=1 << 40),
    },
    Knob {
        name: "MAYPOLE_STASH",
        default: "1G",
        meaning: "memory for messages that come before anybody wants them, bytes; beyond it their sender is named",
        read: |c, v| size(v).map(|n| c.stash = n),
        check: |c| within(c.stash as u64, 4096..=1 << 50),
    },
    Knob {
        name: "MAYPOLE_DEVICE_WINDOW",
        default: "16M",
        meaning: "device memory of one publication, bytes; a rank with device buffers has two, of up to 4 times as much",
        read: |c, v| size(v).map(|n| c.device_window = n),
        check: |c| within(c.device_window as u64, 4096..=1 << 30),
    },
    Knob {
        name: "MAYPOLE_DEVICE_FIFO",
        default: "2M",
        meaning: "device memory of one link (one direction between two ranks), bytes",
        read: |c, v| size(v).map(|n| c.device_fifo = n),
        check: |c| within(c.device_fifo as u64, 4096..=1 << 30),
    },
    Knob {
        name: "MAYPOLE_DEVICE_BLOCKS",
        default: "0",
        meaning: "blocks of a kernel per multiprocessor, 1 to 4; 0: 4, or 2 on streams of high priority (not measured yet)",
        read: |c, v| number(v).map(|n| c.device_blocks = n),
        check: |c| zero_or_within(c.device_blocks.into(), 1..=4),
    },
    Knob {
        name: "MAYPOLE_DEVICE_STAGING",
        default: "auto",
        meaning: "where ranks stage device buffers for others: device (needs CUDA IPC), host, or auto (device if possible)",
        read: |c, v| {
            c.device_staging = match v {
                "auto" => DeviceStaging::Auto,
                "device" => DeviceStaging::Device,
                "host" => DeviceStaging::Host,
                _ => return Err("expected auto, device or host"),
            };
            Ok(())
        },
        check: anything,
    },
    Knob {
        name: "MAYPOLE_DEVICE_ABORT",
        default: "0",
        meaning: "1: a process whose operations on CUDA streams fail ends (SIGABRT); 0: its streams go on, and it is told",
        read: |c, v| switch(v).map(|on| c.device_abort = on),
        check: anything,
    },
    Knob {
        name: "MAYPOLE_TIMEOUT",
        default: "120",
        meaning: "deadline of an operation, seconds without progress: a rank that does not answer then has failed",
        read: |c, v| seconds(v).map(|t| c.timeout = t),
        check: |c| a_time(c.timeout),
    },
    Knob {
        name: "MAYPOLE_LATE",
        default: "1800",
        meaning: "how long an operation waits for ranks that are late but answer, seconds; 0: until MAYPOLE_TIMEOUT",
        read: |c, v| seconds(v).map(|t| c.late = t),
        check: anything,
    },
    Knob {
        name: "MAYPOLE_CONNECT_TIMEOUT",
        default: "60",
        meaning: "how long ranks wait for each other when a world is made, seconds",
        read: |c, v| seconds(v).map(|t| c.connect_timeout = t),
        check: |c| a_time(c.connect_timeout),
    },
    Knob {
        name: "MAYPOLE_SPIN",
        default: "by the host's load",
        meaning: "how long a waiting rank spins before it sleeps, microseconds",
        read: |c, v| {
            let us: u64 = v.parse().map_err(|_| "expected a whole number of microseconds")?;
            c.spin = Some(Duration::from_micros(us));
            Ok(())
        },
        check: anything,
    },
    Knob {
        name: "MAYPOLE_INTERFACE",
        default: "the route to the meeting point",
        meaning: "network interfaces for TCP: eth0,ib (names that begin so, the first preferred), =eth0 (exactly), ^lo,docker \
                  (all but), or addresses: 10.1.0.0/16",
        read: |c, v| {
            c.interface = Some(v.to_string());
            Ok(())
        },
        check: |c| match c.interface.as_deref().map(|text| (text, Choice::parse(text))) {
            Some((text, Err(expected))) => nonsense(text, expected),
            _ => Ok(()),
        },
    },
    Knob {
        name: "MAYPOLE_PORTS",
        default: "any free port",
        meaning: "TCP ports to listen on, for firewalls: 20000-20100; one for each rank of a host, and one more where they meet",
        read: |c, v| {
            let (first, last) = v.split_once('-').unwrap_or((v, v));
            match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
                (Ok(first), Ok(last)) => {
                    c.ports = Some(first..=last);
                    Ok(())
                }
                _ => Err(PORTS),
            }
        },
        check: |c| match &c.ports {
            Some(ports) if *ports.start() == 0 || ports.is_empty() => {
                nonsense(format!("{}-{}", ports.start(), ports.end()), PORTS)
            }
            _ => Ok(()),
        },
    },
    Knob {
        name: "MAYPOLE_FAMILY",
        default: "any",
        meaning: "address family for TCP: any, 4 or 6",
        read: |c, v| {
            c.family = match v {
                "any" => Family::Any,
                "4" => Family::V4,
                "6" => Family::V6,
                _ => return Err("expected any, 4 or 6"),
            };
            Ok(())
        },
        check: anything,
    },
    Knob {
        name: "MAYPOLE_CONNECTIONS",
        default: "1",
        meaning: "TCP connections per pair of ranks, 1 to 16; more help where one stream cannot fill the link",
        read: |c, v| number(v).map(|n| c.connections = n),
        check: |c| within(c.connections as u64, 1..=16),
    },
    Knob {
        name: "MAYPOLE_ENCRYPT",
        default: "0",
        meaning: "1: everything that goes over TCP is encrypted (Noise, AES-256-GCM), between hosts and on one",
        read: |c, v| switch(v).map(|on| c.encrypt = on),
        check: anything,
    },
    Knob {
        name: "MAYPOLE_HOST",
        default: "the machine's own identity",
        meaning: "what counts as this rank's host: ranks with different texts never share memory",
        read: |c, v| {
            c.host = Some(v.to_string());
            Ok(())
        },
        check: anything,
    },
    Knob {
        name: "MAYPOLE_LOG",
        default: "nothing",
        meaning: "what to log to standard error: info (which transport, algorithm and slice, and why), debug, or a filter",
        read: |c, v| {
            c.log = Some(v.to_string());
            Ok(())
        },
        check: anything,
    },
    Knob {
        name: "MAYPOLE_KEY",
        default: "made and passed on by the launcher where it can",
        meaning: "the job's secret, at least 16 bytes: wherever ranks meet, those with another one are turned away",
        read: |c, v| {
            c.key = Some(v.into());
            Ok(())
        },
        check: |c| match &c.key {
            Some(key) if key.expose().len() < SHORTEST_KEY => nonsense(HIDDEN, SHORT_KEY),
            _ => Ok(()),
        },
    },
    Knob {
        name: "MAYPOLE_REQUIRE_KEY",
        default: "0",
        meaning: "1: refuse to meet where strangers could know the key (an address, an open store) without MAYPOLE_KEY",
        read: |c, v| switch(v).map(|on| c.require_key = on),
        check: anything,
    },
    Knob {
        name: "MAYPOLE_RUN",
        default: "the launcher's number of the job, where it has one",
        meaning: "any text, the same on all ranks: keeps ranks of an earlier run of the job out of this one",
        read: |c, v| {
            c.run = Some(v.to_string());
            Ok(())
        },
        check: anything,
    },
];

/// A size in bytes: digits with an optional K, M, G or T (powers of 1024). Before such a letter a decimal fraction may
/// stand, as in 0.5M; what is less than a byte is cut off.
pub fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim();
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        b't' | b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if digits.len() > 32 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) || shift == 0 && digits.contains('.')
    {
        return None;
    }
    let unit = 1usize << shift;
    let whole = if whole.is_empty() && !fraction.is_empty() { "0" } else { whole };
    let whole = whole.parse::<usize>().ok()?.checked_mul(unit)?;
    // Below one unit, of at most a few digits: exact enough.
    let part = format!("0.{fraction}0").parse::<f64>().ok()? * unit as f64;
    whole.checked_add(part as usize)
}

fn size(text: &str) -> Result<usize, &'static str> {
    let rounded = parse_size(text).and_then(|bytes| bytes.checked_next_multiple_of(64));
    rounded.ok_or("expected a size in bytes, such as 65536, 64K or 1M")
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, &'static str> {
    text.parse().map_err(|_| "expected a whole number")
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let time = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or("expected a positive number of seconds")
}

fn switch(text: &str) -> Result<bool, &'static str> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err("expected 0 or 1"),
    }
}

/// What any value of the field's type passes.
fn anything(_: &Config) -> Result<(), Nonsense> {
    Ok(())
}

fn nonsense(value: impl Display, expected: impl Into<String>) -> Result<(), Nonsense> {
    Err(Nonsense { value: value.to_string(), expected: expected.into() })
}

fn within(value: u64, range: RangeInclusive<u64>) -> Result<(), Nonsense> {
    match range.contains(&value) {
        true => Ok(()),
        false => nonsense(value, format!("expected a number from {} to {}", range.start(), range.end())),
    }
}

/// 0 lets the library choose.
fn zero_or_within(value: u64, range: RangeInclusive<u64>) -> Result<(), Nonsense> {
    match value {
        0 => Ok(()),
        _ => within(value, range).map_err(|it| Nonsense { expected: it.expected + ", or 0", ..it }),
    }
}

fn a_time(time: Duration) -> Result<(), Nonsense> {
    match time.is_zero() {
        true => nonsense(time.as_secs_f64(), "expected a positive number of seconds"),
        false => Ok(()),
    }
}
