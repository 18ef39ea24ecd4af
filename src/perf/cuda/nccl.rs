//! NCCL's collectives, measured by the same loops over the same buffers as Maypole's. Its library is found when the
//! program runs; nothing of it is needed to build.
//!
//! Only what the perf runs call is declared here, as nccl.h of version 2 has it: those signatures and numbers have been
//! the same since 2.10 (8-bit floats since 2.24). Its `cudaStream_t` is the driver's `CUstream`, and a communicator belongs
//! to the device whose context is current when it is made.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;

use libloading::Library;

use crate::perf::operation::{NamedOp, Operation};
use crate::perf::row::{Form, Row};
use crate::{Collective, Communicator, Error, Result};

/// `ncclComm_t`.
type Comm = *mut c_void;
/// `cudaStream_t`.
type StreamHandle = *mut c_void;
/// `ncclResult_t`; 0 is success.
type Code = c_int;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

/// The library's functions, each under its name there without `nccl`.
struct Functions {
    get_version: unsafe extern "C" fn(*mut c_int) -> Code,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> Code,
    get_error_string: unsafe extern "C" fn(Code) -> *const c_char,
    comm_init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> Code,
    comm_abort: unsafe extern "C" fn(Comm) -> Code,
    comm_destroy: unsafe extern "C" fn(Comm) -> Code,
    all_reduce: unsafe extern "C" fn(u64, u64, usize, c_int, c_int, Comm, StreamHandle) -> Code,
    reduce_scatter: unsafe extern "C" fn(u64, u64, usize, c_int, c_int, Comm, StreamHandle) -> Code,
    reduce: unsafe extern "C" fn(u64, u64, usize, c_int, c_int, c_int, Comm, StreamHandle) -> Code,
    broadcast: unsafe extern "C" fn(u64, u64, usize, c_int, c_int, Comm, StreamHandle) -> Code,
    all_gather: unsafe extern "C" fn(u64, u64, usize, c_int, Comm, StreamHandle) -> Code,
    send: unsafe extern "C" fn(u64, usize, c_int, c_int, Comm, StreamHandle) -> Code,
    recv: unsafe extern "C" fn(u64, usize, c_int, c_int, Comm, StreamHandle) -> Code,
    group_start: unsafe extern "C" fn() -> Code,
    group_end: unsafe extern "C" fn() -> Code,
}

/// One rank's NCCL communicator.
pub struct Nccl {
    functions: Functions,
    comm: Comm,
    rank: usize,
    version: c_int,
    /// Holds the code that the functions point into.
    _library: Library,
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nccl").field("rank", &self.rank).field("version", &self.version).finish_non_exhaustive()
    }
}

impl Nccl {
    /// Make a communicator of the ranks of `comm`, which carries NCCL's id from rank 0 to the others. Every rank calls it,
    /// with the context of its device current on the calling thread; blocks until all have.
    ///
    /// # Errors
    /// [`Error::System`] where there is no such library, a function is missing from it, or it refuses; every rank gets an
    /// error then, the ones that could have gone on too.
    pub fn new(library: &Path, comm: &Communicator) -> Result<Nccl> {
        let opened = open(library);
        let mut id = UniqueId([0; 128]);
        let mut mine = opened.as_ref().map(|_| ()).map_err(|why| why.to_string());
        if let (0, Ok((_, functions))) = (comm.rank(), &opened) {
            // SAFETY: `id` is a whole `ncclUniqueId` that lives through the call.
            let code = unsafe { (functions.get_unique_id)(&mut id) };
            mine = functions.check("ncclGetUniqueId", code).map_err(|why| why.to_string());
        }
        // Nobody begins what another cannot join.
        let mut able = vec![0u8; comm.size()];
        comm.all_gather(&[mine.is_ok() as u8], &mut able)?;
        comm.broadcast(&mut id.0, 0)?;
        mine.map_err(|why| Error::system("using NCCL", why))?;
        if let Some(rank) = able.iter().position(|&able| able == 0) {
            let why = format!("rank {rank} cannot (its own message says why)");
            return Err(Error::system("using NCCL", why));
        }
        let (library, functions) = opened?;
        let mut version = 0;
        // SAFETY: `version` is an int that lives through the call.
        functions.check("ncclGetVersion", unsafe { (functions.get_version)(&mut version) })?;
        let mut made: Comm = std::ptr::null_mut();
        // SAFETY: `made` lives through the call; the id is the one that rank 0's library made.
        let code = unsafe { (functions.comm_init_rank)(&mut made, comm.size() as c_int, id, comm.rank() as c_int) };
        functions.check("ncclCommInitRank", code)?;
        Ok(Nccl { functions, comm: made, rank: comm.rank(), version, _library: library })
    }

    /// The library's version, as it writes it: 2.30.1.
    pub fn version(&self) -> String {
        let v = self.version;
        format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100)
    }

    /// Queue `row`'s call on `stream`. `input` and `output` are addresses of device memory; in place, `input` is where
    /// NCCL's users put it.
    ///
    /// # Safety
    /// The memory is as long as `row` says and stays until the stream has passed the call.
    ///
    /// # Errors
    /// [`Error::System`] with NCCL's own words; [`Error::Argument`] for what it has no operation for.
    pub unsafe fn call(&self, row: &Row, form: Form, input: u64, output: u64, stream: StreamHandle) -> Result<()> {
        let (f, count, dtype, size) = (&self.functions, row.count, row.dtype.row().nccl, row.dtype.size());
        let root = row.root as c_int;
        let op = row.op.map_or(Some(0), code_of);
        let (Some(op), Some(collective)) = (op, row.operation.collective()) else {
            if row.operation.collective().is_none() {
                let (to, from) = ((self.rank + 1) % row.ranks, (self.rank + row.ranks - 1) % row.ranks);
                // SAFETY: the caller's promise about the memory.
                return unsafe { self.exchange(&[(to, input)], &[(from, output)], count, dtype, stream) };
            }
            return Err(self.refuse(row));
        };
        let block = |base: u64, block: usize| (block, base + (block * count * size) as u64);
        let every = |base: u64| -> Vec<(usize, u64)> { (0..row.ranks).map(|b| block(base, b)).collect() };
        let at_root = self.rank == row.root;
        // In place NCCL wants the smaller buffer's own address, inside the larger one.
        let own = (self.rank * count * size) as u64;
        let inside = |larger: u64, smaller: u64| if form == Form::InPlace { larger + own } else { smaller };
        // SAFETY: the caller's promise about the memory; the communicator lives as long as `self`.
        let (name, code) = unsafe {
            match collective {
                Collective::AllReduce => {
                    ("ncclAllReduce", (f.all_reduce)(input, output, count, dtype, op, self.comm, stream))
                }
                Collective::Reduce => {
                    ("ncclReduce", (f.reduce)(input, output, count, dtype, op, root, self.comm, stream))
                }
                Collective::Broadcast => {
                    ("ncclBroadcast", (f.broadcast)(input, output, count, dtype, root, self.comm, stream))
                }
                Collective::AllGather => {
                    let input = inside(output, input);
                    ("ncclAllGather", (f.all_gather)(input, output, count, dtype, self.comm, stream))
                }
                Collective::ReduceScatter => {
                    let output = inside(input, output);
                    ("ncclReduceScatter", (f.reduce_scatter)(input, output, count, dtype, op, self.comm, stream))
                }
                Collective::AllToAll => return self.exchange(&every(input), &every(output), count, dtype, stream),
                Collective::Gather => {
                    let from = if at_root { every(output) } else { Vec::new() };
                    let input = if at_root { inside(output, input) } else { input };
                    return self.exchange(&[(row.root, input)], &from, count, dtype, stream);
                }
                Collective::Scatter => {
                    let to = if at_root { every(input) } else { Vec::new() };
                    let output = if at_root { inside(input, output) } else { output };
                    return self.exchange(&to, &[(row.root, output)], count, dtype, stream);
                }
                _ => return Err(self.refuse(row)),
            }
        };
        f.check(name, code)
    }

    fn refuse(&self, row: &Row) -> Error {
        let op = row.op.map_or(String::new(), |op| format!(" with {}", op.name()));
        Error::Argument { rank: self.rank, what: format!("NCCL has no {}{op}", row.operation.name()) }
    }

    /// A group of sends and receives: (peer, address) of each, `count` elements long.
    ///
    /// # Safety
    /// As for [`Nccl::call`].
    unsafe fn exchange(
        &self,
        to: &[(usize, u64)],
        from: &[(usize, u64)],
        count: usize,
        dtype: c_int,
        stream: StreamHandle,
    ) -> Result<()> {
        let f = &self.functions;
        // SAFETY: no arguments; ended below on every path that began it.
        f.check("ncclGroupStart", unsafe { (f.group_start)() })?;
        let mut outcome = Ok(());
        for &(peer, address) in to {
            // SAFETY: the caller's promise about the memory.
            let code = unsafe { (f.send)(address, count, dtype, peer as c_int, self.comm, stream) };
            outcome = outcome.and(f.check("ncclSend", code));
        }
        for &(peer, address) in from {
            // SAFETY: as above.
            let code = unsafe { (f.recv)(address, count, dtype, peer as c_int, self.comm, stream) };
            outcome = outcome.and(f.check("ncclRecv", code));
        }
        // SAFETY: ends the group begun above.
        let ended = f.check("ncclGroupEnd", unsafe { (f.group_end)() });
        outcome.and(ended)
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // Leaving in good order waits for the others, and after a panic they may not come.
        let leave = if std::thread::panicking() { self.functions.comm_abort } else { self.functions.comm_destroy };
        // SAFETY: the communicator was made by this library and is used no more.
        unsafe { leave(self.comm) };
    }
}

impl Functions {
    fn check(&self, function: &str, code: Code) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: takes any code and returns a string that is never freed.
        let meaning = unsafe { CStr::from_ptr((self.get_error_string)(code)) }.to_string_lossy();
        Err(Error::system(function.to_string(), format!("{meaning} (NCCL_DEBUG=WARN says more)")))
    }
}

/// Whether NCCL has such an operation.
pub fn takes(operation: Operation, op: Option<NamedOp>) -> bool {
    let collective = match operation {
        Operation::SendRecv => true,
        Operation::Variable(_) => false,
        Operation::Collective(collective) => !collective.is_scan() && collective != Collective::Barrier,
    };
    collective && op.is_none_or(|op| code_of(op).is_some())
}

fn open(path: &Path) -> Result<(Library, Functions)> {
    let failed =
        |e: libloading::Error| Error::system(format!("loading {} (--library names NCCL's)", path.display()), e);
    // SAFETY: a library by that name runs its initialisers, as in any program linked to it.
    let library = unsafe { Library::new(path) }.map_err(failed)?;
    macro_rules! function {
        ($name:literal) => {
            // SAFETY: the type of the field that it goes to is the function's in nccl.h; `Nccl` keeps the library.
            *unsafe { library.get(concat!("nccl", $name, "\0").as_bytes()) }.map_err(failed)?
        };
    }
    let functions = Functions {
        get_version: function!("GetVersion"),
        get_unique_id: function!("GetUniqueId"),
        get_error_string: function!("GetErrorString"),
        comm_init_rank: function!("CommInitRank"),
        comm_abort: function!("CommAbort"),
        comm_destroy: function!("CommDestroy"),
        all_reduce: function!("AllReduce"),
        reduce_scatter: function!("ReduceScatter"),
        reduce: function!("Reduce"),
        broadcast: function!("Broadcast"),
        all_gather: function!("AllGather"),
        send: function!("Send"),
        recv: function!("Recv"),
        group_start: function!("GroupStart"),
        group_end: function!("GroupEnd"),
    };
    Ok((library, functions))
}

/// `ncclRedOp_t`; `None` for what it lacks or wants made beforehand.
fn code_of(op: NamedOp) -> Option<c_int> {
    match op {
        NamedOp::Sum => Some(0),
        NamedOp::Prod => Some(1),
        NamedOp::Max => Some(2),
        NamedOp::Min => Some(3),
        NamedOp::Avg => Some(4),
        _ => None,
    }
}
