//! Every setting in one place: its field and its default here, its name, what it means and what it may be in [`KNOBS`].
//!
//! A [`Config`] is read from `MAYPOLE_*` variables by [`Config::from_env`] or built in code. `maypole info` lists
//! [`KNOBS`]. All ranks of a job should have the same settings; those that shape messages are compared when ranks meet.

mod knobs;
pub(crate) mod unknown;

use std::ops::RangeInclusive;
use std::time::Duration;

use maypole_collectives::Order;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::secret::Secret;

pub use knobs::{KNOBS, Knob, parse_size};

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
    /// `MAYPOLE_DEVICE_WINDOW`, bytes: one publication of a rank in the staging memory of its device, where
    /// two ranks, or threads with one context, exchange; up to four times as much where more do.
    pub device_window: usize,
    /// `MAYPOLE_DEVICE_FIFO`, bytes: staging memory of one link between two devices.
    pub device_fifo: usize,
    /// `MAYPOLE_DEVICE_BLOCKS`: blocks of 256 threads that a kernel has on each multiprocessor at most, 1 to 4; 0: 4 on
    /// ordinary streams, 2 on those of high priority.
    pub device_blocks: u32,
    /// `MAYPOLE_DEVICE_STAGING`: where staging memory of devices lies.
    pub device_staging: DeviceStaging,
    /// `MAYPOLE_DEVICE_ABORT`: whether a process ends (SIGABRT) whose operations on CUDA streams fail, before anything
    /// that waits for these streams goes on.
    pub device_abort: bool,
    /// `MAYPOLE_TIMEOUT`, seconds: the deadline of an operation. When nothing of it has moved for so long, all ranks are
    /// asked, and one that does not answer fails it. Time in which this process did not run does not count.
    pub timeout: Duration,
    /// `MAYPOLE_LATE`, seconds: how long an operation waits for ranks that have not come to it but answer; no longer than
    /// `timeout` where that is longer, so zero fails every operation at its deadline.
    pub late: Duration,
    /// `MAYPOLE_CONNECT_TIMEOUT`, seconds: how long ranks wait for each other at the start.
    pub connect_timeout: Duration,
    /// `MAYPOLE_SPIN`, microseconds: how long a waiting rank spins before it sleeps; `None` lets the host's load
    /// decide: its ranks and cores, and whether other programs are found to want these. A time given here holds
    /// whoever else wants the cores.
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
            device_abort: false,
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

/// In the place of a value that may be a secret.
const HIDDEN: &str = "(not shown)";

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
        KNOBS.iter().try_for_each(|knob| {
            (knob.check)(self).map_err(|nonsense| wrong(knob.name, nonsense.value, nonsense.expected))
        })
    }

    /// Read every `MAYPOLE_*` variable of [`KNOBS`] from the environment; what is not set, or empty, has its default.
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
            if let Some(value) = lookup(knob.name).filter(|value| !value.trim().is_empty()) {
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
        // Shown as it was written, with its unit.
        knob.set(&mut changed, value.trim()).map_err(|expected| wrong(name, shown, expected))?;
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
