//! Who is this process? What launchers tell a rank about itself and where the ranks meet.
//!
//! A launcher (torchrun, `maypole run`, mpirun, mpiexec, srun) starts the ranks and leaves each of them its number and
//! the size of the world in environment variables. What differs is how the ranks find each other before any of them has
//! a connection:
//!
//! | launcher | recognised by | ranks meet through |
//! | --- | --- | --- |
//! | `maypole run` | [`MAYPOLE_BOARD`](BOARD) beside the four below | the board that it serves |
//! | torchrun | `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`, `TORCHELASTIC_RUN_ID` | the store that the agent serves at that address, or the address itself |
//! | by hand | `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT` | the address |
//! | Open MPI and others with PMIx | `PMIX_NAMESPACE`, `PMIX_RANK` | PMIx |
//! | MPICH, Intel MPI, other Hydra launchers | `PMI_FD`, or `PMI_PORT` and `PMI_ID` | PMI-1's key-value space |
//! | Slurm's srun without either | `SLURM_PROCID` and `SLURM_STEP_NUM_TASKS` | an address derived from the step |
//! | others that only number their ranks | `OMPI_COMM_WORLD_RANK` or `PMI_RANK`, with their sizes | `MASTER_ADDR` and `MASTER_PORT` |
//! | none | none of these | nothing: a world of one, as an MPI program started without mpirun |
//!
//! Launchers nest. Where two rows fit and disagree about who this process is, the innermost counts, and if that is
//! not the first of them, rank 0 says so, because the program itself may believe the other one. Where they agree, or
//! the system does not show which is the innermost, the first row that fits counts; only numbers set by hand then yield
//! to a launcher's. Half of a row is an error that names the missing variable, unless a later row is complete.
//!
//! [`detect`] does all of it and returns a [`Launch`]. The communicator then either listens and connects at the
//! address, or has rank 0 put a unique id on the [`Board`] where the others read it.

mod environment;
mod innermost;
mod mpi;
pub(crate) mod notice;
mod pmi;
mod pmix;
pub mod run_board;
mod slurm;
mod tcp_store;
pub(crate) mod worlds;

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::running::Limit;

use innermost::Ancestors;
pub use pmix::library as pmix_library;
pub use run_board::BOARD;

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
    /// "PMIx", "MPICH (PMI-1)", "PMI" (its numbers alone), "Slurm", or "none".
    pub launcher: &'static str,
    /// Tells this run of the job from others that meet at the same address, as far as the launcher does: the same text on
    /// all ranks, empty where there is none.
    pub run: String,
    /// How the ranks find each other.
    pub meeting: LaunchMeeting,
}

impl std::fmt::Debug for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launch")
            .field("rank", &self.rank)
            .field("size", &self.size)
            .field("launcher", &self.launcher)
            .field("meeting", &self.meeting)
            .finish_non_exhaustive()
    }
}

/// How the ranks find each other.
pub enum LaunchMeeting {
    /// Rank 0 listens there and the others connect; nobody else uses that port.
    Address {
        /// Host name or address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// Rank 0 posts a few bytes, everybody reads them.
    Board(Box<dyn Board>),
    /// A world of one needs none.
    Alone,
}

impl std::fmt::Debug for LaunchMeeting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LaunchMeeting::Address { host, port } => write!(f, "Address({host}:{port})"),
            LaunchMeeting::Board(_) => f.write_str("Board"),
            LaunchMeeting::Alone => f.write_str("Alone"),
        }
    }
}

/// A launcher's notice board. Rank 0 posts once, then every rank, rank 0 too, reads once, then finishes. Not for bulk:
/// the bytes (a few hundred) travel through the launcher. A board is good for one exchange; another [`detect`] gives
/// another one. Ranks need not have asked equally often: those who waited in vain wait for the same notice again.
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
    /// This rank has gone where the notice that it read invites to, or it was no invitation: its next board is another.
    fn done(&mut self) {}
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
    /// Whether what was posted stays when the process has ended that posted it, and may be read again and posted anew.
    fn lasts(&self) -> bool {
        false
    }
    /// Whether all ranks are on this host, so that they can meet on its loopback interface.
    fn is_local(&self) -> bool {
        false
    }
    /// Take leave of the launcher, politely. Call it once the world stands: some launchers forget what a process posted
    /// when it leaves. Dropping a board does the same, without the error.
    fn finish(&mut self) -> Result<()>;
}

/// Bytes of the longest notice on a [`Board`]; a longer one is not ours.
pub(crate) const LONGEST_NOTICE: usize = 4096;

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

/// What the variables of a row say about this process, before anybody is asked.
struct Claim {
    /// The row.
    found: Found,
    /// The variables that its launcher sets anew for each rank.
    names: &'static [&'static str],
    rank: Option<usize>,
    size: Option<usize>,
}

impl Claim {
    fn new(found: Found, names: &'static [&'static str], lookup: Lookup) -> Claim {
        let number = |name: Option<&&str>| lookup(name?).and_then(|text| text.trim().parse().ok());
        Claim { found, names, rank: number(names.first()), size: number(names.get(1)) }
    }

    /// Whether two rows may not both be right. What a launcher tells only when asked may be anything.
    fn contradicts(&self, other: &Claim) -> bool {
        self.rank != other.rank || self.size != other.size
    }
}

const BY_HAND: &[&str] = &["RANK", "WORLD_SIZE"];

fn find(lookup: Lookup, ancestors: &dyn Fn() -> Ancestors) -> Result<Found> {
    let (environment, half) = match environment::Variables::read(lookup) {
        Ok(found) => (found, None),
        // Half a row: somebody else's variable perhaps. Let a later row decide before complaining.
        Err(error @ Error::Bootstrap { .. }) => (None, Some(error)),
        Err(error) => return Err(error),
    };
    let first = environment.map(|variables| Claim::new(Found::Environment(variables), BY_HAND, lookup));
    let second = match first {
        // What makes no sense in a row that does not count is no error.
        Some(_) => find_other(lookup).unwrap_or(None),
        None => find_other(lookup)?,
    };
    match (first, second) {
        (Some(first), Some(second)) if first.contradicts(&second) => {
            let ancestors = ancestors();
            let since = |claim: &Claim| ancestors.since(lookup, claim.names);
            let by_hand = matches!(&first.found, Found::Environment(variables) if variables.launcher == "environment");
            let (outer, inner) = (since(&first), since(&second));
            if inner < outer || inner == outer && by_hand { Ok(second.found) } else { Ok(first.found) }
        }
        (Some(claim), _) | (None, Some(claim)) => Ok(claim.found),
        (None, None) => half.map_or(Ok(Found::Nothing), Err),
    }
}

/// The first row that fits below those of `RANK` and `WORLD_SIZE`.
fn find_other(lookup: Lookup) -> Result<Option<Claim>> {
    let claim = |found, names| Ok(Some(Claim::new(found, names, lookup)));
    const OPEN_MPI: &[&str] = &["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"];
    if pmix::present(lookup) {
        return match lookup(OPEN_MPI[0]) {
            Some(_) => claim(Found::Pmix, OPEN_MPI),
            None => claim(Found::Pmix, &["PMIX_RANK"]),
        };
    }
    if pmi::present(lookup) {
        return claim(Found::Pmi, if lookup("PMI_RANK").is_some() { &["PMI_RANK", "PMI_SIZE"] } else { &["PMI_ID"] });
    }
    if let Some(variables) = environment::Variables::read_numbers(lookup, &environment::OPEN_MPI)? {
        return claim(Found::Environment(variables), OPEN_MPI);
    }
    if let Some(step) = slurm::Step::read(lookup)? {
        return claim(Found::Slurm(step), &["SLURM_PROCID", "SLURM_STEP_NUM_TASKS"]);
    }
    match environment::Variables::read_numbers(lookup, &environment::PMI)? {
        Some(variables) => claim(Found::Environment(variables), &["PMI_RANK", "PMI_SIZE"]),
        None => Ok(None),
    }
}

/// Say, once and on rank 0, that variables of an outer launcher name another process than the innermost does: programs
/// that read them believe that.
fn mention_outer(launch: &Launch, lookup: Lookup) {
    static SAID: std::sync::Once = std::sync::Once::new();
    let number = |name: &str| lookup(name).and_then(|text| text.trim().parse::<usize>().ok());
    let (Some(rank), Some(size)) = (number(BY_HAND[0]), number(BY_HAND[1])) else { return };
    if launch.rank == 0 && (rank, size) != (launch.rank, launch.size) {
        SAID.call_once(|| {
            crate::log::warn(format_args!(
                "RANK={rank} and WORLD_SIZE={size} are an outer launcher's, or left over: {} started this process as \
                 rank {} of {}, and that counts; unset RANK and WORLD_SIZE",
                launch.launcher, launch.rank, launch.size
            ));
        });
    }
}

/// The launcher's name as the variables tell it, without talking to anybody; for `maypole info`.
///
/// # Errors
/// As [`detect`], for variables that make no sense.
pub fn launcher_name(lookup: &dyn Fn(&str) -> Option<String>) -> Result<&'static str> {
    let lookup = &|name: &str| lookup(name).filter(|value| !value.is_empty());
    Ok(match find(lookup, &Ancestors::read)? {
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
    let mut launch = match find(lookup, &Ancestors::read)? {
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
    mention_outer(&launch, lookup);
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

/// The number of the notice that this process comes to next, where a board keeps them all: how many it has done with.
fn notice_number() -> usize {
    worlds::met_at("boards").load(Ordering::Relaxed) as usize
}

/// This process has done with notice `number`.
fn is_done_with(number: usize) {
    worlds::met_at("boards").fetch_max(number as u64 + 1, Ordering::Relaxed);
}

#[cfg(any(test, fuzzing))]
pub(crate) mod outside;
#[cfg(test)]
mod tests;
