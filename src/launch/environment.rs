//! `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`: the variables of torchrun, of `maypole run`, and of people who
//! start ranks by hand.
//!
//! torchrun's agent often serves torch's own store on `MASTER_PORT` (then `TORCHELASTIC_USE_AGENT_STORE=True`), so
//! nobody can listen there: the ranks meet through that [store](super::tcp_store). `maypole run` serves a
//! [board](super::run_board) of its own; its `MASTER_PORT` is free for a store of torch's.

use super::run_board::{BOARD, Place, RunBoard};
use super::tcp_store::TcpStore;
use super::{Launch, LaunchMeeting, Lookup, check_rank, notice_number, number};
use crate::error::{Error, Result};
use crate::running::Limit;

/// What `maypole run` is called.
const MAYPOLE_RUN: &str = "maypole run";
/// What torchrun is called.
const TORCHRUN: &str = "torchrun";

/// The variables of a launcher that numbers its ranks.
pub(super) struct Numbers {
    launcher: &'static str,
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
    /// Tells runs apart: see [`Launch::run`].
    run: Option<&'static str>,
    /// What would have said where the ranks meet.
    meeting: &'static str,
    /// What to do about its absence.
    advice: &'static str,
}

/// Open MPI's, for a job whose mpirun offers no PMIx.
pub(super) const OPEN_MPI: Numbers = Numbers {
    launcher: "Open MPI",
    rank: "OMPI_COMM_WORLD_RANK",
    size: "OMPI_COMM_WORLD_SIZE",
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
    run: Some("PMIX_NAMESPACE"),
    meeting: "PMIX_NAMESPACE",
    advice: "use an Open MPI with PMIx (4.0 or later)",
};

/// Those of launchers with PMI, where the way to the launcher was lost.
pub(super) const PMI: Numbers = Numbers {
    launcher: "PMI",
    rank: "PMI_RANK",
    size: "PMI_SIZE",
    local_rank: "MPI_LOCALRANKID",
    local_size: "MPI_LOCALNRANKS",
    run: None,
    meeting: "PMI_FD",
    advice: "start the ranks with mpiexec, without a wrapper that takes variables away",
};

/// One complete set of the variables.
pub(super) struct Variables {
    pub(super) rank: usize,
    pub(super) size: usize,
    local_rank: Option<usize>,
    local_size: Option<usize>,
    pub(super) launcher: &'static str,
    host: String,
    port: u16,
    /// See [`Launch::run`].
    run: String,
    /// Prefix of this job's keys in the agent's store, if the agent serves one.
    store: Option<String>,
    /// The board of `maypole run`, if that has started this process.
    board: Option<Place>,
}

impl Variables {
    /// `None` if none of the variables is set; [`Error::Bootstrap`] if some are missing, [`Error::Setting`] if one
    /// makes no sense.
    pub(super) fn read(lookup: Lookup) -> Result<Option<Variables>> {
        let rank = number(lookup, "RANK", "this process's rank, a number from 0")?;
        let size = number(lookup, "WORLD_SIZE", "the number of ranks")?;
        let (rank, size) = match (rank, size) {
            (None, None) => return Ok(None),
            (Some(rank), Some(size)) => (rank, size),
            (Some(_), None) => return Err(missing("RANK", "WORLD_SIZE", "the number of ranks")),
            (None, Some(_)) => return Err(missing("WORLD_SIZE", "RANK", "this process's rank, a number from 0")),
        };
        check_rank("RANK", rank, "WORLD_SIZE", size)?;
        let torchrun = lookup("TORCHELASTIC_RUN_ID");
        // `maypole run` takes an outer torchrun's variables away. And a rank of its may start others by hand.
        let board = lookup(BOARD).filter(|_| torchrun.is_none()).map(|text| Place::parse(&text)).transpose()?;
        let board = board.filter(|place| (place.rank, place.size) == (rank, size));
        let mut variables = Variables {
            rank,
            size,
            local_rank: number(lookup, "LOCAL_RANK", "this rank's number on its host")?,
            local_size: number(lookup, "LOCAL_WORLD_SIZE", "the number of ranks on this host")?,
            launcher: match (&board, &torchrun) {
                (Some(_), _) => MAYPOLE_RUN,
                (_, Some(_)) => TORCHRUN,
                _ => "environment",
            },
            host: String::new(),
            port: 0,
            // Agents number restarts each for itself: a change of members counts where a worker has failed, and not on
            // the other hosts. So the number is no part of it.
            run: torchrun.clone().unwrap_or_default(),
            store: None,
            board,
        };
        variables.check_local()?;
        if size > 1 && variables.board.is_none() {
            let what = "the address at which rank 0 listens";
            (variables.host, variables.port) = address(lookup)?.ok_or_else(|| missing("RANK", "MASTER_ADDR", what))?;
        }
        if lookup("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            // A restarted job gets new ranks but keeps the store: what the previous attempt posted must not be found.
            let attempt = lookup("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
            variables.store = Some(format!("maypole/{}/{attempt}", torchrun.unwrap_or_default()));
        }
        Ok(Some(variables))
    }

    /// The numbers of a launcher that has left no way to where the ranks meet. They say who, but not where: that takes
    /// `MASTER_ADDR`.
    pub(super) fn read_numbers(lookup: Lookup, names: &Numbers) -> Result<Option<Variables>> {
        let Some(rank) = number(lookup, names.rank, "this process's rank")? else { return Ok(None) };
        let size = number(lookup, names.size, "the number of ranks")?
            .ok_or_else(|| missing(names.rank, names.size, "the number of ranks"))?;
        check_rank(names.rank, rank, names.size, size)?;
        let (host, port) = match address(lookup)? {
            Some(address) => address,
            None if size == 1 => (String::new(), 0),
            None => {
                return Err(Error::bootstrap(format!(
                    "{} is set, but neither {} nor MASTER_ADDR: the launcher did not say where the ranks meet; {}, or set \
                     MASTER_ADDR and MASTER_PORT to an address of rank 0's host and a free port there",
                    names.rank, names.meeting, names.advice
                )));
            }
        };
        Ok(Some(Variables {
            rank,
            size,
            local_rank: number(lookup, names.local_rank, "this rank's number on its host")?,
            local_size: number(lookup, names.local_size, "the number of ranks on this host")?,
            launcher: names.launcher,
            host,
            port,
            run: names.run.and_then(lookup).unwrap_or_default(),
            store: None,
            board: None,
        }))
    }

    fn check_local(&self) -> Result<()> {
        if let Some(local_size) = self.local_size {
            if local_size > self.size {
                return Err(Error::Setting {
                    name: "LOCAL_WORLD_SIZE".to_string(),
                    value: local_size.to_string(),
                    expected: format!("expected at most WORLD_SIZE={}", self.size),
                });
            }
            if let Some(local_rank) = self.local_rank {
                check_rank("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size)?;
            }
        }
        Ok(())
    }

    /// Connect to the launcher's board or the agent's store, as the case may be.
    pub(super) fn launch(self, limit: &Limit) -> Result<Launch> {
        let meeting = match (self.board, self.store) {
            _ if self.size == 1 => LaunchMeeting::Alone,
            (Some(place), _) => LaunchMeeting::Board(Box::new(RunBoard::connect(place, limit)?)),
            (None, Some(prefix)) => {
                let store = TcpStore::connect(&self.host, self.port, prefix, limit)?;
                LaunchMeeting::Board(Box::new(store.numbered(notice_number())))
            }
            (None, None) => LaunchMeeting::Address { host: self.host, port: self.port },
        };
        Ok(Launch {
            rank: self.rank,
            size: self.size,
            local_rank: self.local_rank,
            local_size: self.local_size,
            launcher: self.launcher,
            run: self.run,
            meeting,
        })
    }
}

/// `MASTER_ADDR` and `MASTER_PORT`; `None` if the former is unset.
pub(super) fn address(lookup: Lookup) -> Result<Option<(String, u16)>> {
    let Some(given) = lookup("MASTER_ADDR") else { return Ok(None) };
    let host = given.trim();
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host).to_string();
    // Whoever resolves it would say less.
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(Error::Setting {
            name: "MASTER_ADDR".to_string(),
            value: given,
            expected: "expected the name or an address of rank 0's host".to_string(),
        });
    }
    let expected = "a TCP port, 1 to 65535";
    match number(lookup, "MASTER_PORT", expected)? {
        Some(0) => Err(Error::Setting {
            name: "MASTER_PORT".to_string(),
            value: "0".to_string(),
            expected: format!("expected {expected}"),
        }),
        Some(port) => Ok(Some((host, port))),
        None => Err(missing("MASTER_ADDR", "MASTER_PORT", expected)),
    }
}

fn missing(set: &str, unset: &str, what: &str) -> Error {
    Error::bootstrap(format!(
        "{set} is set but {unset} is not: set {unset} to {what}, or unset {set}; torchrun and `maypole run` set all of RANK, WORLD_SIZE, \
         MASTER_ADDR and MASTER_PORT"
    ))
}
