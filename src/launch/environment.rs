//! `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`: the variables of torchrun, of `maypole run`, and of people who
//! start ranks by hand.
//!
//! torchrun's agent often serves torch's own store on `MASTER_PORT` (then `TORCHELASTIC_USE_AGENT_STORE=True`), so
//! nobody can listen there: the ranks meet through that [store](super::tcp_store). `maypole run` instead binds a port
//! itself and lets rank 0 inherit the socket; `MASTER_PORT` is then another one, free for a store of torch's.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt, sockopt};

use super::tcp_store::TcpStore;
use super::{Launch, LaunchMeeting, Lookup, check_rank, next_board, number};
use crate::error::{Error, Result};
use crate::running::Limit;

/// `maypole run` puts its name there, so that messages can say who set the other variables.
pub const LAUNCHER: &str = "MAYPOLE_LAUNCHER";

/// Names the file descriptor of the bound and listening socket that `maypole run` hands to rank 0.
pub const LISTEN_FD: &str = "MAYPOLE_LISTEN_FD";

/// The port of that socket, for all ranks.
pub const LISTEN_PORT: &str = "MAYPOLE_LISTEN_PORT";

/// One complete set of the variables.
pub(super) struct Variables {
    rank: usize,
    size: usize,
    local_rank: Option<usize>,
    local_size: Option<usize>,
    pub(super) launcher: &'static str,
    host: String,
    port: u16,
    /// See [`Launch::run`].
    run: String,
    /// Prefix of this job's keys in the agent's store, if the agent serves one.
    store: Option<String>,
    listen_fd: Option<RawFd>,
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
        let inside_torchrun = torchrun.is_some();
        let mut variables = Variables {
            rank,
            size,
            local_rank: number(lookup, "LOCAL_RANK", "this rank's number on its host")?,
            local_size: number(lookup, "LOCAL_WORLD_SIZE", "the number of ranks on this host")?,
            launcher: match (lookup(LAUNCHER).as_deref(), &torchrun) {
                (Some("maypole run"), _) => "maypole run",
                (_, Some(_)) => "torchrun",
                _ => "environment",
            },
            host: String::new(),
            port: 0,
            // Agents number restarts each for itself: a change of members counts where a worker has failed, and not on
            // the other hosts. So the number is no part of it.
            run: torchrun.clone().unwrap_or_default(),
            store: None,
            listen_fd: None,
        };
        variables.check_local()?;
        if size > 1 {
            let what = "the address at which rank 0 listens";
            (variables.host, variables.port) = address(lookup)?.ok_or_else(|| missing("RANK", "MASTER_ADDR", what))?;
        }
        if lookup("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            // A restarted job gets new ranks but keeps the store: what the previous attempt posted must not be found.
            let attempt = lookup("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
            variables.store = Some(format!("maypole/{}/{attempt}", torchrun.unwrap_or_default()));
        }
        if variables.launcher == "maypole run" && !inside_torchrun {
            let port = number(lookup, LISTEN_PORT, "a TCP port at which `maypole run` listens")?;
            variables.port = port.unwrap_or(variables.port);
        }
        if variables.launcher == "maypole run" && rank == 0 {
            variables.listen_fd = number(lookup, LISTEN_FD, "a file descriptor that `maypole run` passed on")?;
        }
        Ok(Some(variables))
    }

    /// Open MPI's own variables, for a job whose mpirun offers no PMIx. They say who, but not where: that takes
    /// `MASTER_ADDR`.
    pub(super) fn read_open_mpi(lookup: Lookup) -> Result<Option<Variables>> {
        let (rank_name, size_name) = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE");
        let Some(rank) = number(lookup, rank_name, "this process's rank")? else { return Ok(None) };
        let size = number(lookup, size_name, "the number of ranks")?
            .ok_or_else(|| missing(rank_name, size_name, "the number of ranks"))?;
        check_rank(rank_name, rank, size_name, size)?;
        let (host, port) = match address(lookup)? {
            Some(address) => address,
            None if size == 1 => (String::new(), 0),
            None => {
                return Err(Error::bootstrap(
                    "OMPI_COMM_WORLD_RANK is set, but neither PMIX_NAMESPACE nor MASTER_ADDR: mpirun did not say where the ranks \
                     meet; use an Open MPI with PMIx (4.0 or later), or set MASTER_ADDR and MASTER_PORT to an address of rank 0's host \
                     and a free port there",
                ));
            }
        };
        Ok(Some(Variables {
            rank,
            size,
            local_rank: number(lookup, "OMPI_COMM_WORLD_LOCAL_RANK", "this rank's number on its host")?,
            local_size: number(lookup, "OMPI_COMM_WORLD_LOCAL_SIZE", "the number of ranks on this host")?,
            launcher: "Open MPI",
            host,
            port,
            run: lookup("PMIX_NAMESPACE").unwrap_or_default(),
            store: None,
            listen_fd: None,
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

    /// Connect to the agent's store, or take over the listening socket, as the case may be.
    pub(super) fn launch(self, limit: &Limit) -> Result<Launch> {
        let meeting = match self.store {
            _ if self.size == 1 => LaunchMeeting::Alone,
            Some(prefix) => {
                let key = format!("{prefix}/{}", next_board());
                LaunchMeeting::Board(Box::new(TcpStore::connect(&self.host, self.port, key, limit)?))
            }
            None => {
                let listener = self.listen_fd.and_then(|fd| inherited_listener(fd, self.port));
                LaunchMeeting::Address { host: self.host, port: self.port, listener }
            }
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

/// The listening socket that `maypole run` left open for us. `None` if it has been taken already, or if `fd` is
/// something else by now (a program that closes inherited descriptors): then rank 0 binds the port itself.
fn inherited_listener(fd: RawFd, port: u16) -> Option<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if fd < 3 || TAKEN.swap(true, Ordering::AcqRel) {
        return None;
    }
    // SAFETY: the descriptor is only asked what it is; if it is not open, the calls say so. That nobody closes it
    // meanwhile is the launcher's contract: it is named in the environment for this process to take.
    let inherited = unsafe { BorrowedFd::borrow_raw(fd) };
    let listening = getsockopt(&inherited, sockopt::AcceptConn).unwrap_or(false);
    let address = getsockname::<SockaddrStorage>(inherited.as_raw_fd()).ok()?;
    let bound = address
        .as_sockaddr_in()
        .map(|address| address.port())
        .or_else(|| address.as_sockaddr_in6().map(|address| address.port()));
    if !listening || bound != Some(port) {
        return None;
    }
    fcntl(inherited, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: `fd` is open, as the calls above have shown, and is the socket that the launcher opened for this process
    // alone; nothing else in it knows of the descriptor, and `TAKEN` sees to it that it is owned once.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}
