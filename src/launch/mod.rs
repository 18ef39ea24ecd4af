//! Who is this process? What launchers tell a rank about itself and where the ranks meet.
//!
//! A launcher (torchrun, `maypole run`, mpirun, mpiexec, srun) starts the ranks and leaves each of them its number and
//! the size of the world in environment variables. What differs is how the ranks find each other before any of them has
//! a connection:
//!
//! | launcher | recognised by | ranks meet through |
//! | --- | --- | --- |
//! | `maypole run` | `MAYPOLE_LAUNCHER` beside the four below | an address, with a port of its own ([`MAYPOLE_LISTEN_PORT`](LISTEN_PORT)); rank 0 inherits the listening socket ([`MAYPOLE_LISTEN_FD`](LISTEN_FD)) |
//! | torchrun | `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`, `TORCHELASTIC_RUN_ID` | the store that the agent serves at that address, or the address itself |
//! | by hand | `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT` | the address |
//! | Open MPI and others with PMIx | `PMIX_NAMESPACE`, `PMIX_RANK` | PMIx |
//! | MPICH, Intel MPI, other Hydra launchers | `PMI_FD`, or `PMI_PORT` and `PMI_ID` | PMI-1's key-value space |
//! | Slurm's srun without either | `SLURM_PROCID` and `SLURM_STEP_NUM_TASKS` | an address derived from the step |
//! | none | none of these | nothing: a world of one, as an MPI program started without mpirun |
//!
//! The first row that fits counts, because launchers nest that way: torchrun is started by srun or mpirun, one per
//! host, and never the other way round. Half of a row is an error that names the missing variable, unless a later row
//! is complete.
//!
//! [`detect`] does all of it and returns a [`Launch`]. The communicator then either listens and connects at the
//! address, or has rank 0 put a unique id on the [`Board`] where the others read it.

mod environment;
mod pmi;
mod pmix;
mod slurm;
mod tcp_store;

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::running::Limit;

pub use environment::{LAUNCHER, LISTEN_FD, LISTEN_PORT};
pub use pmix::library as pmix_library;

/// What a launcher told this process.
pub struct Launch {
    /// This rank, from 0.
    pub rank: usize,
    /// Ranks in the world.
    pub size: usize,
    /// This rank's number among the ranks of its host, where the launcher says.
    pub local_rank: Option<usize>,
    /// How many ranks this host has, where the launcher says.
    pub local_size: Option<usize>,
    /// The launcher's name, for messages: "maypole run", "torchrun", "environment" (variables set by hand), "Open MPI",
    /// "PMIx", "MPICH (PMI-1)", "Slurm", or "none".
    pub launcher: &'static str,
    /// Tells this run of the job from others that meet at the same address, as far as the launcher does: the same text on
    /// all ranks, empty where there is none.
    pub run: String,
    /// How the ranks find each other.
    pub meeting: LaunchMeeting,
}

/// How the ranks find each other.
pub enum LaunchMeeting {
    /// Rank 0 listens there and the others connect; nobody else uses that port.
    Address {
        /// Host name or address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// On rank 0 under `maypole run`: the socket, bound and listening already.
        listener: Option<OwnedFd>,
    },
    /// Rank 0 posts a few bytes, everybody reads them.
    Board(Box<dyn Board>),
    /// A world of one needs none.
    Alone,
}

/// A launcher's notice board. Rank 0 posts once, then every rank, rank 0 too, reads once, then finishes. Not for bulk:
/// the bytes (a few hundred) travel through the launcher. A board is good for one exchange; another [`detect`] gives a
/// fresh one, if all ranks do so the same number of times.
pub trait Board: Send {
    /// Put up the bytes, at most 4096. Only rank 0 does. Does not wait for readers.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] if the launcher refuses or is gone.
    fn post(&mut self, bytes: &[u8]) -> Result<()>;
    /// The bytes that rank 0 has posted, or will have posted in that time, in which this process runs. Blocks.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] after that time, or if the launcher is gone.
    fn read(&mut self, within: Duration) -> Result<Vec<u8>>;
    /// Take down what was posted, where that can be done: all ranks have read it. Only rank 0 does.
    ///
    /// # Errors
    /// [`Error::Bootstrap`] if the launcher is gone.
    fn clear(&mut self) -> Result<()> {
        Ok(())
    }
    /// Whether processes outside the job may be able to read the board.
    fn is_open(&self) -> bool {
        false
    }
    /// Take leave of the launcher, politely. Call it once the world stands: some launchers forget what a process posted
    /// when it leaves. Dropping a board does the same, without the error.
    fn finish(&mut self) -> Result<()>;
}

/// Bytes of the longest notice on a [`Board`]; a longer one is not ours.
const LONGEST_NOTICE: usize = 4096;

/// Whatever answers for an environment variable. Empty values count as unset.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What the variables alone say, before anybody is talked to.
enum Found {
    Environment(environment::Variables),
    Pmix,
    Pmi,
    Slurm(slurm::Step),
    Nothing,
}

fn find(lookup: Lookup) -> Result<Found> {
    let (environment, half) = match environment::Variables::read(lookup) {
        Ok(found) => (found, None),
        // Half a row: somebody else's variable perhaps. Let a later row decide before complaining.
        Err(error @ Error::Bootstrap { .. }) => (None, Some(error)),
        Err(error) => return Err(error),
    };
    if let Some(variables) = environment {
        return Ok(Found::Environment(variables));
    }
    if pmix::present(lookup) {
        return Ok(Found::Pmix);
    }
    if pmi::present(lookup) {
        return Ok(Found::Pmi);
    }
    if let Some(variables) = environment::Variables::read_open_mpi(lookup)? {
        return Ok(Found::Environment(variables));
    }
    if let Some(step) = slurm::Step::read(lookup)? {
        return Ok(Found::Slurm(step));
    }
    half.map_or(Ok(Found::Nothing), Err)
}

/// The launcher's name as the variables tell it, without talking to anybody; for `maypole info`.
///
/// # Errors
/// As [`detect`], for variables that make no sense.
pub fn launcher_name(lookup: &dyn Fn(&str) -> Option<String>) -> Result<&'static str> {
    let lookup = &|name: &str| lookup(name).filter(|value| !value.is_empty());
    Ok(match find(lookup)? {
        Found::Environment(variables) => variables.launcher,
        Found::Pmix => pmix::launcher(lookup),
        Found::Pmi => pmi::LAUNCHER,
        Found::Slurm(_) => slurm::LAUNCHER,
        Found::Nothing => "none",
    })
}

/// Find out from the environment who this process is. `lookup` answers for variables, normally `|name|
/// std::env::var(name).ok()`. Of `config`, the time ranks wait for each other bounds how long the launcher may take to
/// answer.
///
/// # Errors
/// [`Error::Setting`] for a variable that makes no sense, [`Error::Bootstrap`] for one that is missing or for a
/// launcher that does not answer. Both name the variable and say what was expected.
pub fn detect(config: &Config, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Launch> {
    let lookup = &|name: &str| lookup(name).filter(|value| !value.is_empty());
    let limit = &Limit::after(config.connect_timeout);
    let mut launch = match find(lookup)? {
        Found::Environment(variables) => variables.launch(limit)?,
        Found::Pmix => pmix::launch(lookup, limit)?,
        Found::Pmi => pmi::launch(lookup, limit)?,
        Found::Slurm(step) => step.launch(config)?,
        Found::Nothing => Launch {
            rank: 0,
            size: 1,
            local_rank: Some(0),
            local_size: Some(1),
            launcher: "none",
            run: String::new(),
            meeting: LaunchMeeting::Alone,
        },
    };
    if launch.size == 1 {
        launch.meeting = LaunchMeeting::Alone;
    }
    Ok(launch)
}

/// The number that `name` holds, `None` if it is unset.
fn number<T: std::str::FromStr>(lookup: Lookup, name: &str, expected: &str) -> Result<Option<T>> {
    let Some(value) = lookup(name) else { return Ok(None) };
    match value.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(Error::Setting { name: name.to_string(), value, expected: format!("expected {expected}") }),
    }
}

/// Refuse a rank outside its world; the names are those of the variables at fault.
fn check_rank(rank_name: &str, rank: usize, size_name: &str, size: usize) -> Result<()> {
    if size == 0 {
        return Err(Error::Setting {
            name: size_name.to_string(),
            value: "0".to_string(),
            expected: "expected at least 1 rank".to_string(),
        });
    }
    if rank >= size {
        return Err(Error::Setting {
            name: rank_name.to_string(),
            value: rank.to_string(),
            expected: format!("expected a rank below {size_name}={size}; ranks count from 0"),
        });
    }
    Ok(())
}

/// How many boards this process has asked for: boards of one job are told apart by it, so that a second world does not
/// read the first one's notice.
fn next_board() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static BOARDS: AtomicUsize = AtomicUsize::new(0);
    BOARDS.fetch_add(1, Ordering::Relaxed)
}

#[cfg(any(test, fuzzing))]
pub(crate) mod outside;
#[cfg(test)]
mod tests;
