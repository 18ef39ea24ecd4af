//! Every setting in one place: its name, its default, what it means, and how its text is read.
//!
//! A [`Config`] is read from `MAYPOLE_*` variables by [`Config::from_env`] or built in code. `maypole info` lists
//! [`KNOBS`]. All ranks of a job should have the same settings; those that shape messages are compared when ranks meet.

use std::ops::RangeInclusive;
use std::time::Duration;

use maypole_collectives::Order;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::node::interfaces::Choice;
use crate::secret::Secret;

/// The shortest `MAYPOLE_KEY`, bytes. Whoever pretends to be a door gets something to check guesses with.
const SHORTEST_KEY: usize = 16;

/// What is wrong with a shorter one.
const SHORT_KEY: &str = "expected at least 16 bytes that nobody can guess; `openssl rand -hex 32` makes some";

/// Which transport carries bytes between two ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransportChoice {
    /// Shared memory between ranks of one host, TCP between hosts.
    #[default]
    Auto,
    /// Shared memory only; an error where two ranks do not share a host.
    Shm,
    /// TCP only, on one host too.
    Tcp,
}

/// Where the memory lies in which ranks stage what others read of their device buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceStaging {
    /// On the devices, where those of a host reach each other's memory, otherwise in host memory.
    #[default]
    Auto,
    /// On the devices; an error where they do not reach each other's memory.
    Device,
    /// In host memory, which needs no CUDA IPC.
    Host,
}

/// Which address family TCP uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// Whatever both ends have; IPv4 first.
    #[default]
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// A communicator's settings. `Config::default()` has the documented defaults; see [`KNOBS`] for what each means.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// `MAYPOLE_ALGORITHM`: entries `algorithm` or `collective=algorithm`, comma-separated.
    pub algorithm: String,
    /// `MAYPOLE_TRANSPORT`.
    pub transport: TransportChoice,
    /// `MAYPOLE_ORDER`: in which order reductions combine ranks' elements.
    pub order: Order,
    /// `MAYPOLE_SLICE`, bytes: the longest slice; 0 lets the tuner choose.
    pub slice: usize,
    /// `MAYPOLE_RING`, bytes: memory of one shared-memory link.
    pub ring: usize,
    /// `MAYPOLE_WINDOW`, bytes: one publication of a rank in shared memory.
    pub window: usize,
    /// `MAYPOLE_STREAM`, bytes: the smallest write into shared memory that goes around the caches.
    pub stream: usize,
    /// `MAYPOLE_STASH`, bytes: what messages that came before anybody wanted them may take on a rank, by communicator.
    pub stash: usize,
    /// `MAYPOLE_DEVICE_WINDOW`, bytes: one publication of a rank in the staging memory of its device.
    pub device_window: usize,
    /// `MAYPOLE_DEVICE_FIFO`, bytes: staging memory of one link between two devices.
    pub device_fifo: usize,
    /// `MAYPOLE_DEVICE_BLOCKS`: blocks of 256 threads that a kernel has on each multiprocessor at most, 1 to 4; 0: 4 on
    /// ordinary streams, 2 on those of high priority.
    pub device_blocks: u32,
    /// `MAYPOLE_DEVICE_STAGING`: where staging memory of devices lies.
    pub device_staging: DeviceStaging,
    /// `MAYPOLE_TIMEOUT`, seconds: the deadline of an operation. When nothing of it has moved for so long, all ranks are
    /// asked, and one that does not answer fails it. Time in which this process did not run does not count.
    pub timeout: Duration,
    /// `MAYPOLE_LATE`, seconds: how long an operation waits for ranks that have not come to it but answer; no longer than
    /// `timeout` where that is longer, so zero fails every operation at its deadline.
    pub late: Duration,
    /// `MAYPOLE_CONNECT_TIMEOUT`, seconds: how long ranks wait for each other at the start.
    pub connect_timeout: Duration,
    /// `MAYPOLE_SPIN`, microseconds: how long a waiting rank spins before it sleeps; `None` lets the host's load
    /// decide.
    pub spin: Option<Duration>,
    /// `MAYPOLE_INTERFACE`: network interfaces for TCP: names, beginnings of names, or addresses and networks, as a list
    /// (`eth0,ib`), exactly (`=eth0`), or all but those (`^lo,docker`).
    pub interface: Option<String>,
    /// `MAYPOLE_PORTS`: where every listening socket whose port is ours to choose has it.
    pub ports: Option<RangeInclusive<u16>>,
    /// `MAYPOLE_FAMILY`.
    pub family: Family,
    /// `MAYPOLE_CONNECTIONS`: TCP connections per pair of ranks.
    pub connections: usize,
    /// `MAYPOLE_ENCRYPT`: whether what goes over TCP is encrypted.
    pub encrypt: bool,
    /// `MAYPOLE_HOST`: what counts as this rank's host; ranks with different texts never share memory.
    pub host: Option<String>,
    /// `MAYPOLE_LOG`: what to log to standard error: `info`, `debug`, or a filter of `tracing-subscriber`.
    pub log: Option<String>,
    /// `MAYPOLE_KEY`: the job's secret, at least 16 bytes; needed where the launcher has no private way to hand one out.
    pub key: Option<Secret>,
    /// `MAYPOLE_REQUIRE_KEY`: whether to refuse meeting points whose key others could know without `MAYPOLE_KEY`.
    pub require_key: bool,
    /// `MAYPOLE_RUN`: what tells this run of a job from others with the same meeting point and key.
    pub run: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            algorithm: String::new(),
            transport: TransportChoice::Auto,
            order: Order::Free,
            slice: 0,
            ring: 256 << 10,
            window: 256 << 10,
            stream: 512,
            stash: 1 << 30,
            device_window: 16 << 20,
            device_fifo: 2 << 20,
            device_blocks: 0,
            device_staging: DeviceStaging::Auto,
            timeout: Duration::from_secs(120),
            late: Duration::from_secs(1800),
            connect_timeout: Duration::from_secs(60),
            spin: None,
            interface: None,
            ports: None,
            family: Family::Any,
            connections: 1,
            encrypt: false,
            host: None,
            log: None,
            key: None,
            require_key: false,
            run: None,
        }
    }
}

/// One setting as `maypole info` shows it.
pub struct Knob {
    /// The environment variable.
    pub name: &'static str,
    /// Its default, as text.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
    read: fn(&mut Config, &str) -> std::result::Result<(), &'static str>,
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
    },
    Knob {
        name: "MAYPOLE_SLICE",
        default: "the tuner's choice",
        meaning: "longest slice that a round moves of each chunk, bytes (4K, 1M)",
        read: |c, v| size(v).map(|n| c.slice = n),
    },
    Knob {
        name: "MAYPOLE_RING",
        default: "256K",
        meaning: "memory of one shared-memory link (one direction between two ranks), bytes",
        read: |c, v| size(v).map(|n| c.ring = n),
    },
    Knob {
        name: "MAYPOLE_WINDOW",
        default: "256K",
        meaning: "memory of one publication in shared memory, bytes; each rank has two",
        read: |c, v| size(v).map(|n| c.window = n),
    },
    Knob {
        name: "MAYPOLE_STREAM",
        default: "512",
        meaning: "smallest write into memory that ranks share that is stored around the caches, bytes",
        read: |c, v| size(v).map(|n| c.stream = n),
    },
    Knob {
        name: "MAYPOLE_STASH",
        default: "1G",
        meaning: "memory for messages that come before anybody wants them, bytes; beyond it their sender is named",
        read: |c, v| size(v).map(|n| c.stash = n),
    },
    Knob {
        name: "MAYPOLE_DEVICE_WINDOW",
        default: "16M",
        meaning: "device memory of one publication, bytes; each rank with device buffers has two",
        read: |c, v| size(v).map(|n| c.device_window = n),
    },
    Knob {
        name: "MAYPOLE_DEVICE_FIFO",
        default: "2M",
        meaning: "device memory of one link (one direction between two ranks), bytes",
        read: |c, v| size(v).map(|n| c.device_fifo = n),
    },
    Knob {
        name: "MAYPOLE_DEVICE_BLOCKS",
        default: "0",
        meaning: "blocks of a kernel per multiprocessor, 1 to 4; 0: 4, or 2 on streams of high priority (not measured yet)",
        read: |c, v| number(v).map(|n| c.device_blocks = n),
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
    },
    Knob {
        name: "MAYPOLE_TIMEOUT",
        default: "120",
        meaning: "deadline of an operation, seconds without progress: a rank that does not answer then has failed",
        read: |c, v| seconds(v).map(|t| c.timeout = t),
    },
    Knob {
        name: "MAYPOLE_LATE",
        default: "1800",
        meaning: "how long an operation waits for ranks that are late but answer, seconds; 0: until MAYPOLE_TIMEOUT",
        read: |c, v| {
            c.late = if v.parse() == Ok(0.0) { Duration::ZERO } else { seconds(v)? };
            Ok(())
        },
    },
    Knob {
        name: "MAYPOLE_CONNECT_TIMEOUT",
        default: "60",
        meaning: "how long ranks wait for each other when a world is made, seconds",
        read: |c, v| seconds(v).map(|t| c.connect_timeout = t),
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
    },
    Knob {
        name: "MAYPOLE_PORTS",
        default: "any free port",
        meaning: "TCP ports to listen on, for firewalls: 20000-20100; one for each rank of a host, and one more where they meet",
        read: |c, v| {
            let (first, last) = v.split_once('-').unwrap_or((v, v));
            match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
                (Ok(first), Ok(last)) if 0 < first && first <= last => {
                    c.ports = Some(first..=last);
                    Ok(())
                }
                _ => Err("expected a range of TCP ports such as 20000-20100"),
            }
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
    },
    Knob {
        name: "MAYPOLE_CONNECTIONS",
        default: "1",
        meaning: "TCP connections per pair of ranks, 1 to 16; more help where one stream cannot fill the link",
        read: |c, v| number(v).map(|n| c.connections = n),
    },
    Knob {
        name: "MAYPOLE_ENCRYPT",
        default: "0",
        meaning: "1: everything that goes over TCP is encrypted (Noise, AES-256-GCM), between hosts and on one",
        read: |c, v| {
            c.encrypt = match v {
                "0" => false,
                "1" => true,
                _ => return Err("expected 0 or 1"),
            };
            Ok(())
        },
    },
    Knob {
        name: "MAYPOLE_HOST",
        default: "the machine's own identity",
        meaning: "what counts as this rank's host: ranks with different texts never share memory",
        read: |c, v| {
            c.host = Some(v.to_string());
            Ok(())
        },
    },
    Knob {
        name: "MAYPOLE_LOG",
        default: "nothing",
        meaning: "what to log to standard error: info (which transport, algorithm and slice, and why), debug, or a filter",
        read: |c, v| {
            c.log = Some(v.to_string());
            Ok(())
        },
    },
    Knob {
        name: "MAYPOLE_KEY",
        default: "made and passed on by the launcher where it can",
        meaning: "the job's secret, at least 16 bytes: wherever ranks meet, those with another one are turned away",
        read: |c, v| {
            c.key = Some(v.into());
            Ok(())
        },
    },
    Knob {
        name: "MAYPOLE_REQUIRE_KEY",
        default: "0",
        meaning: "1: refuse to meet where strangers could know the key (an address, an open store) without MAYPOLE_KEY",
        read: |c, v| {
            c.require_key = match v {
                "0" => false,
                "1" => true,
                _ => return Err("expected 0 or 1"),
            };
            Ok(())
        },
    },
    Knob {
        name: "MAYPOLE_RUN",
        default: "the launcher's number of the job, where it has one",
        meaning: "any text, the same on all ranks: keeps ranks of an earlier run of the job out of this one",
        read: |c, v| {
            c.run = Some(v.to_string());
            Ok(())
        },
    },
];

/// What a number among the settings may be, whoever sets it: the environment, or a program.
struct Range {
    /// The environment variable.
    name: &'static str,
    of: fn(&Config) -> u64,
    least: u64,
    most: u64,
    /// 0 is allowed too: then the library chooses.
    or_zero: bool,
}

/// Every number among the settings.
const RANGES: &[Range] = &[
    Range { name: "MAYPOLE_SLICE", of: |c| c.slice as u64, least: 64, most: 1 << 30, or_zero: true },
    Range { name: "MAYPOLE_RING", of: |c| c.ring as u64, least: 4096, most: 1 << 28, or_zero: false },
    Range { name: "MAYPOLE_WINDOW", of: |c| c.window as u64, least: 4096, most: 1 << 28, or_zero: false },
    Range { name: "MAYPOLE_STREAM", of: |c| c.stream as u64, least: 64, most: 1 << 40, or_zero: false },
    Range { name: "MAYPOLE_STASH", of: |c| c.stash as u64, least: 4096, most: 1 << 50, or_zero: false },
    Range { name: "MAYPOLE_DEVICE_WINDOW", of: |c| c.device_window as u64, least: 4096, most: 1 << 30, or_zero: false },
    Range { name: "MAYPOLE_DEVICE_FIFO", of: |c| c.device_fifo as u64, least: 4096, most: 1 << 30, or_zero: false },
    Range { name: "MAYPOLE_DEVICE_BLOCKS", of: |c| c.device_blocks.into(), least: 1, most: 4, or_zero: true },
    Range { name: "MAYPOLE_CONNECTIONS", of: |c| c.connections as u64, least: 1, most: 16, or_zero: false },
];

impl Range {
    fn check(&self, config: &Config) -> Result<()> {
        let value = (self.of)(config);
        if (self.least..=self.most).contains(&value) || self.or_zero && value == 0 {
            return Ok(());
        }
        let zero = if self.or_zero { ", or 0" } else { "" };
        Err(wrong(self.name, value, format!("expected a number from {} to {}{zero}", self.least, self.most)))
    }
}

/// The error for a value that makes no sense.
fn wrong(name: &str, value: impl std::fmt::Display, expected: impl Into<String>) -> Error {
    Error::Setting { name: name.to_string(), value: value.to_string(), expected: expected.into() }
}

impl Config {
    /// Whether all of it makes sense; everything that makes ranks meet asks, so a program's own settings are held to
    /// what is asked of the environment's.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the variable that the field goes by, its value and what was expected.
    pub fn check(&self) -> Result<()> {
        KNOBS.iter().try_for_each(|knob| self.check_one(knob.name))
    }

    /// Whether what the variable `name` sets makes sense.
    fn check_one(&self, name: &str) -> Result<()> {
        if let Some(range) = RANGES.iter().find(|range| range.name == name) {
            return range.check(self);
        }
        let a_time = |time: Duration| match time.is_zero() {
            true => Err(wrong(name, time.as_secs_f64(), "expected a positive number of seconds")),
            false => Ok(()),
        };
        match name {
            "MAYPOLE_TIMEOUT" => a_time(self.timeout),
            "MAYPOLE_CONNECT_TIMEOUT" => a_time(self.connect_timeout),
            "MAYPOLE_ALGORITHM" => match crate::tuner::parse_overrides(&self.algorithm) {
                Ok(_) => Ok(()),
                Err(why) => Err(wrong(
                    name,
                    &self.algorithm,
                    format!(
                        "{why}; expected algorithm names or collective=algorithm entries, comma-separated; \
                         `maypole verify --help` lists them"
                    ),
                )),
            },
            "MAYPOLE_KEY" if self.key.as_ref().is_some_and(|key| key.expose().len() < SHORTEST_KEY) => {
                Err(wrong(name, HIDDEN, SHORT_KEY))
            }
            "MAYPOLE_INTERFACE" => match self.interface.as_deref().map(Choice::parse) {
                Some(Err(expected)) => Err(wrong(name, self.interface.as_deref().unwrap_or_default(), expected)),
                _ => Ok(()),
            },
            // Any text, or one of a few values that have names.
            _ => Ok(()),
        }
    }

    /// Read every `MAYPOLE_*` variable of [`KNOBS`] from the environment; what is not set has its default.
    ///
    /// # Errors
    /// [`Error::Setting`] for a value that makes no sense, naming what was expected.
    pub fn from_env() -> Result<Config> {
        Config::from_lookup(&|name| std::env::var(name).ok())
    }

    /// [`Config::from_env`] with the environment given, for launchers and tests.
    pub fn from_lookup(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Config> {
        let mut config = Config::default();
        for knob in KNOBS {
            if let Some(value) = lookup(knob.name) {
                config.set(knob.name, &value)?;
            }
        }
        Ok(config)
    }

    /// Set one knob by its name. What it was before stays where the value makes no sense.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the knob, the value (unless it may be a secret) and what was expected.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let knob = KNOBS.iter().find(|k| k.name == name);
        // A name that is not known may be a misspelt MAYPOLE_KEY.
        let knob = knob.ok_or_else(|| wrong(name, HIDDEN, "no such setting; see `maypole info`"))?;
        let shown = if name == "MAYPOLE_KEY" { HIDDEN } else { value };
        let mut changed = self.clone();
        (knob.read)(&mut changed, value.trim()).map_err(|expected| wrong(name, shown, expected))?;
        changed.check_one(name).map_err(|error| match error {
            // As it was written, with its unit.
            Error::Setting { expected, .. } => wrong(name, shown, expected),
            other => other,
        })?;
        *self = changed;
        Ok(())
    }

    /// Refuse to meet through `point`, which strangers may know or read, without `MAYPOLE_KEY`, if `MAYPOLE_REQUIRE_KEY`
    /// says so.
    ///
    /// # Errors
    /// [`Error::Bootstrap`].
    pub fn refuse_open(&self, point: &str) -> Result<()> {
        if self.require_key && self.key.is_none() {
            return Err(Error::bootstrap(format!(
                "MAYPOLE_REQUIRE_KEY=1, but the ranks meet through {point}, and MAYPOLE_KEY is not set: strangers could \
                 join them; set MAYPOLE_KEY to the same secret on all ranks (`openssl rand -hex 32` makes one)"
            )));
        }
        Ok(())
    }
}

/// In the place of a value that may be a secret.
const HIDDEN: &str = "(not shown)";

/// A size in bytes: digits with an optional K, M or G (powers of 1024).
pub fn parse_size(text: &str) -> Option<usize> {
    let text = text.trim();
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let n: usize = digits.parse().ok()?;
    n.checked_mul(1 << shift)
}

fn size(text: &str) -> std::result::Result<usize, &'static str> {
    let rounded = parse_size(text).and_then(|bytes| bytes.checked_next_multiple_of(64));
    rounded.ok_or("expected a size in bytes, such as 65536, 64K or 1M")
}

fn number<N: std::str::FromStr>(text: &str) -> std::result::Result<N, &'static str> {
    text.parse().map_err(|_| "expected a whole number")
}

fn seconds(text: &str) -> std::result::Result<Duration, &'static str> {
    let time = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| !time.is_zero()).ok_or("expected a positive number of seconds")
}
