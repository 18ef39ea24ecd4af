//! PMI-1: the wire protocol of MPICH's, Intel MPI's and other Hydra launchers, and of Slurm's
//! `srun --mpi=pmi2`.
//!
//! mpiexec leaves each rank one end of a socket pair (`PMI_FD`), or an address to connect to
//! (`PMI_PORT` and `PMI_ID`). On it go lines of `key=value` words, one answer to each request:
//!
//! ```text
//! cmd=initack pmiid=3 (PMI_PORT only)
//!     cmd=initack rc=0, then lines with cmd=set: size=8, rank=3, debug=0
//! cmd=init pmi_version=1 pmi_subversion=1
//!     cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=1
//! cmd=get_maxes
//!     cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024
//! cmd=get_my_kvsname
//!     cmd=my_kvsname kvsname=kvs_4711_0
//! cmd=put kvsname=kvs_4711_0 key=k value=v
//!     cmd=put_result rc=0
//! cmd=barrier_in
//!     cmd=barrier_out, once every rank is there
//! cmd=get kvsname=kvs_4711_0 key=k
//!     cmd=get_result rc=0 value=v
//! cmd=finalize
//!     cmd=finalize_ack
//! ```
//! `connection` is how it is spoken, `board` what the ranks do with it.
//!
//! What was put is certain to be seen only after a barrier, so [`Board::read`](super::Board::read)
//! is a barrier and then gets. Values are words of limited length: ours are hexadecimal, in pieces.
//!
//! # When to take leave
//!
//! A process that has said `finalize` may die without mpiexec minding (Intel MPI's does not even
//! end the others after a SIGKILL). One that closes the connection without it takes the whole job
//! down at once. That is what we want for a rank that dies, so the connection is kept for the
//! process's life, and `finalize` is said by an exit handler: ranks that return from main or call
//! exit, with whatever status, leave politely and mpiexec reports their status; ranks killed by a
//! signal or an abort do not. Where [MPI](super::mpi) has been initialised in the same process, the
//! connection is its own too, and so is the farewell.

mod board;
mod connection;
#[cfg(any(test, fuzzing))]
pub(super) mod outside;
#[cfg(test)]
mod tests;

use std::time::Duration;

use maypole_transports::lock::Mutex;

use self::board::KeyValueSpace;
use self::connection::Connection;
use super::{Launch, LaunchMeeting, Lookup, number};
use crate::error::Result;
use crate::running::Limit;

pub(super) const LAUNCHER: &str = "MPICH (PMI-1)";

/// Whether the variables offer PMI-1.
pub(super) fn present(lookup: Lookup) -> bool {
    lookup("PMI_FD").is_some() || (lookup("PMI_PORT").is_some() && lookup("PMI_ID").is_some())
}

/// Connect, unless this process is connected already.
pub(super) fn launch(lookup: Lookup, limit: &Limit) -> Result<Launch> {
    let mut shared = SHARED.lock();
    if shared.is_none() {
        *shared = Some(Connection::open(lookup, limit)?);
        leave_at_exit();
    }
    let connection = shared.as_ref().expect("opened above");
    Ok(Launch {
        rank: connection.rank,
        size: connection.size,
        local_rank: number(lookup, "MPI_LOCALRANKID", "this rank's number on its host")?,
        local_size: number(lookup, "MPI_LOCALNRANKS", "the number of ranks on this host")?,
        launcher: LAUNCHER,
        run: String::new(),
        meeting: LaunchMeeting::Board(Box::new(KeyValueSpace { answer: limit.left() })),
    })
}

/// The process's one connection to its mpiexec.
static SHARED: Mutex<Option<Connection>> = Mutex::new(None);

fn leave_at_exit() {
    extern "C" fn leave() {
        // Another thread may be inside a request while main returns; then mpiexec is better left
        // alone.
        let Some(mut shared) = SHARED.try_lock() else { return };
        let Some(mut connection) = shared.take() else { return };
        if connection.process.is_this() && !super::mpi::was_initialised() {
            // The answer only matters in that mpiexec has then read the request.
            let _ = connection.request("cmd=finalize", "finalize_ack", &Limit::after(Duration::from_secs(2)));
        }
    }
    // SAFETY: `leave` lives as long as this library is loaded (the C library runs it before
    // unloading), and neither unwinds nor touches anything but a static.
    unsafe { libc::atexit(leave) };
}
