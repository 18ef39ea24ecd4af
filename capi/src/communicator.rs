//! Making communicators, asking them, ending them.

use std::ffi::{c_char, c_int};

use maypole::{Communicator, UniqueId};

use crate::config::{config_of, maypole_config, order_of, seconds};
use crate::entry::{array_of, check_out, enter, give, rank_of, text_of};
use crate::status::*;
use crate::table::{Kind, Table};

/// What maypole_comm points to: nothing that C could look at.
pub struct maypole_comm_s {
    _opaque: [u8; 0],
}

/// One rank's handle to a group of ranks. Every rank makes the same calls in the same order, with the same counts, types,
/// operations and roots; ranks that do not, all get an error that shows both sides. A handle may be used by several
/// threads; their calls are then ordered by when they were made.
pub type maypole_comm = *mut maypole_comm_s;

static COMMUNICATORS: Table<Communicator> = Table::new(Kind::Communicator);

#[inline]
pub(crate) fn comm_of(comm: maypole_comm) -> Outcome<std::sync::Arc<Communicator>> {
    COMMUNICATORS.get("comm", comm.addr() as u64)
}

fn handle(comm: Communicator) -> maypole_comm {
    std::ptr::without_provenance_mut(COMMUNICATORS.insert(comm) as usize)
}

/// Names a world that is about to meet. Make one with maypole_unique_id_create() and hand the same bytes to every rank, in
/// any way. Without MAYPOLE_KEY whoever reads it can join the job: it holds the random part of its key.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct maypole_unique_id {
    /// To be passed on unchanged; they contain a checksum.
    pub bytes: [u8; 128],
}

/// The world that this process was launched into: by `maypole run`, torchrun, mpirun, mpiexec, srun, or with the variables
/// RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Without any of these the world has one rank. Blocks until all ranks have
/// come.
///
/// @param config settings, or NULL for those of the environment.
/// @param comm gets the communicator, to be given to maypole_comm_destroy() some time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_comm_init_env(
    config: *const maypole_config,
    comm: *mut maypole_comm,
) -> maypole_status {
    enter("maypole_comm_init_env", || {
        check_out("comm", comm)?;
        maypole::fork::watch();
        // SAFETY: the caller's promise, here and below.
        let config = unsafe { config_of(config) }?;
        // SAFETY: as above.
        unsafe { give("comm", comm, handle(Communicator::from_env_with(config)?)) }
    })
}

/// Make an id and the meeting point behind it, a thread of this process, which must live until the job is over. Usually rank
/// 0 does and hands the id to the others.
///
/// @param config settings, or NULL for those of the environment.
/// @param id gets the id.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_unique_id_create(
    config: *const maypole_config,
    id: *mut maypole_unique_id,
) -> maypole_status {
    enter("maypole_unique_id_create", || {
        check_out("id", id)?;
        maypole::fork::watch();
        // SAFETY: the caller's promise, here and below.
        let made = UniqueId::create(&unsafe { config_of(config) }?)?;
        // SAFETY: as above.
        unsafe { give("id", id, maypole_unique_id { bytes: *made.as_bytes() }) }
    })
}

/// A world whose ranks all hold the same id. Ranks may be processes or threads. Blocks until all have come.
///
/// @param id what maypole_unique_id_create() made, perhaps in another process.
/// @param rank this rank's number, from 0.
/// @param size how many ranks there are.
/// @param config settings, or NULL for those of the environment.
/// @param comm gets the communicator.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_comm_init_id(
    id: *const maypole_unique_id,
    rank: c_int,
    size: c_int,
    config: *const maypole_config,
    comm: *mut maypole_comm,
) -> maypole_status {
    enter("maypole_comm_init_id", || {
        check_out("comm", comm)?;
        // SAFETY: the caller's promise, here and below.
        let bytes = unsafe { array_of("id", id, 1) }?[0].bytes;
        let (rank, size) = (rank_of("rank", rank)?, rank_of("size", size)?);
        if rank >= size {
            return Err(Fault::argument(format!("rank is {rank}, but size is {size}")));
        }
        maypole::fork::watch();
        // SAFETY: as above.
        let config = unsafe { config_of(config) }?;
        let made = Communicator::from_id(&UniqueId::from_bytes(&bytes)?, rank, size, config)?;
        // SAFETY: as above.
        unsafe { give("comm", comm, handle(made)) }
    })
}

/// A world of ranks within this process: one communicator for each of `size` threads.
///
/// @param size how many ranks.
/// @param config settings, or NULL for those of the environment.
/// @param comms gets `size` communicators; number r is rank r's, to be used by one thread of the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_comm_init_threads(
    size: c_int,
    config: *const maypole_config,
    comms: *mut maypole_comm,
) -> maypole_status {
    enter("maypole_comm_init_threads", || {
        check_out("comms", comms)?;
        let size = rank_of("size", size)?;
        maypole::fork::watch();
        // SAFETY: the caller's promise, here and below.
        let config = unsafe { config_of(config) }?;
        for (rank, made) in Communicator::threads_with(size, config)?.into_iter().enumerate() {
            // SAFETY: as above: there is room for `size` handles.
            unsafe { give("comms", comms.wrapping_add(rank), handle(made)) }?;
        }
        Ok(())
    })
}

/// A color for maypole_comm_split() that takes part and gets no communicator.
pub const MAYPOLE_NO_COLOR: c_int = -1;

/// Divide a communicator: ranks that give the same color form a new one, ranked by key and, where keys are equal, by their
/// rank here. Every rank must call it; it blocks until all have.
///
/// @param comm the communicator.
/// @param color from 0, or MAYPOLE_NO_COLOR.
/// @param key the order within the new one.
/// @param part gets the new communicator; NULL for MAYPOLE_NO_COLOR.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_comm_split(
    comm: maypole_comm,
    color: c_int,
    key: i64,
    part: *mut maypole_comm,
) -> maypole_status {
    enter("maypole_comm_split", || {
        check_out("part", part)?;
        let color = match color {
            MAYPOLE_NO_COLOR => None,
            color => Some(u32::try_from(color).map_err(|_| {
                Fault::argument(format!("color is {color}, but colors count from 0, or are MAYPOLE_NO_COLOR"))
            })?),
        };
        let made = comm_of(comm)?.split(color, key)?.map_or(std::ptr::null_mut(), handle);
        // SAFETY: the caller's promise.
        unsafe { give("part", part, made) }
    })
}

/// Another communicator of the same ranks, with an order of operations of its own. Every rank must call it; it blocks until
/// all have.
///
/// @param comm the communicator.
/// @param copy gets the new one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_comm_duplicate(comm: maypole_comm, copy: *mut maypole_comm) -> maypole_status {
    enter("maypole_comm_duplicate", || {
        check_out("copy", copy)?;
        // SAFETY: the caller's promise.
        unsafe { give("copy", copy, handle(comm_of(comm)?.duplicate()?)) }
    })
}

/// A communicator of some ranks of this one, which alone call it, all with the same list. This one may even have failed: the
/// ranks that are left after a death go on in a subset.
///
/// @param comm the communicator.
/// @param ranks the ranks here, in the order of the new one's; this rank is among them.
/// @param count how many.
/// @param subset gets the new communicator.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_comm_subset(
    comm: maypole_comm,
    ranks: *const c_int,
    count: usize,
    subset: *mut maypole_comm,
) -> maypole_status {
    enter("maypole_comm_subset", || {
        check_out("subset", subset)?;
        // SAFETY: the caller's promise, here and below.
        let ranks = unsafe { array_of("ranks", ranks, count) }?;
        let ranks: Vec<usize> = ranks.iter().map(|rank| rank_of("ranks", *rank)).collect::<Outcome<_>>()?;
        // SAFETY: as above.
        unsafe { give("subset", subset, handle(comm_of(comm)?.subset(&ranks)?)) }
    })
}

/// Leave the group. Waits for no other rank. What other threads have under way with the communicator goes on, and so do
/// requests and persistent operations, which keep it.
///
/// What a process has not destroyed when it ends, by returning from main, exit() or quick_exit(), is left as if it had been,
/// after all its exit handlers and static destructors; what is under way then has a second to end. Rank 0's process (the one
/// that made the id, if it is a rank's) holds the job together and waits there until the other processes have left that world
/// too: however long they are at work in communicators that have not failed. After five seconds it says for whom, and
/// SIGTERM, SIGINT and SIGHUP then end it at once, whatever handlers they have. Where main ends by pthread_exit(),
/// the process goes on until its last thread has ended, and communicators have threads: destroy them. After
/// _exit(), abort() or a signal the process counts as dead, and the other ranks are told so at once.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_comm_destroy(comm: maypole_comm) -> maypole_status {
    enter("maypole_comm_destroy", || COMMUNICATORS.remove("comm", comm.addr() as u64).map(drop))
}

/// This rank's number, from 0, into `rank`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_comm_rank(comm: maypole_comm, rank: *mut c_int) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_comm_rank", || unsafe { give("rank", rank, comm_of(comm)?.rank() as c_int) })
}

/// How many ranks there are, into `size`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_comm_size(comm: maypole_comm, size: *mut c_int) -> maypole_status {
    // SAFETY: the caller's promise.
    enter("maypole_comm_size", || unsafe { give("size", size, comm_of(comm)?.size() as c_int) })
}

/// Set the deadline of this rank's operations from the next on: when nothing of one has moved for so long, and a rank does
/// not answer, the communicator fails, with an error that names it. Ranks that are late but answer are waited for, with
/// warnings, up to MAYPOLE_LATE, if that is longer.
///
/// @param seconds more than 0.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_comm_set_timeout(comm: maypole_comm, seconds: f64) -> maypole_status {
    enter("maypole_comm_set_timeout", || {
        let comm = comm_of(comm)?;
        let timeout = self::seconds("seconds", seconds)?;
        comm.set_timeout(timeout.ok_or_else(|| Fault::argument("seconds is 0, but a deadline takes time"))?);
        Ok(())
    })
}

/// Set in which order reductions combine ranks' elements, from the next operation on. Every rank must set the same.
///
/// @param order MAYPOLE_ORDER_FREE or MAYPOLE_ORDER_CANONICAL.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_comm_set_order(comm: maypole_comm, order: c_int) -> maypole_status {
    enter("maypole_comm_set_order", || {
        let comm = comm_of(comm)?;
        comm.set_order(order_of("order", order)?);
        Ok(())
    })
}

/// Give up: every rank's present and future calls on this communicator return MAYPOLE_ERROR_FAILED with this rank and `why`
/// in the text, unless it had failed before. May be called while other threads wait in calls on it,
/// but not in a signal's handler: it allocates and takes locks, which the interrupted thread may
/// hold. There, wake a thread that calls it.
///
/// @param why the reason, UTF-8; NULL for none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_comm_abort(comm: maypole_comm, why: *const c_char) -> maypole_status {
    enter("maypole_comm_abort", || {
        let comm = comm_of(comm)?;
        // SAFETY: the caller's promise.
        comm.abort(unsafe { text_of("why", why) }?.unwrap_or("no reason given"));
        Ok(())
    })
}

/// MAYPOLE_OK, or MAYPOLE_ERROR_FAILED if the communicator has failed; the reason is then this thread's latest error.
#[unsafe(no_mangle)]
pub extern "C" fn maypole_comm_status(comm: maypole_comm) -> maypole_status {
    enter("maypole_comm_status", || {
        let comm = comm_of(comm)?;
        let failed = comm.verdict().map(|verdict| maypole::Error::Failed { rank: comm.rank(), verdict });
        failed.map_or(Ok(()), |error| Err(error.into()))
    })
}
