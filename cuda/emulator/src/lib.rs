//! A stand-in for `libcuda.so.1` over host memory, for tests on machines without a GPU.
//!
//! The crate is built as a shared object that exports the driver's functions (`cuInit`, `cuStreamWaitValue32_v2`, ...),
//! as many of them as Maypole calls, and some more. A process in which it is loaded in place of the driver runs the
//! same code as on a GPU, down to the `.cu` files of the kernels, which are compiled for the host and carried inside.
//! How tests load it says [`testing`]; nothing but tests may.
//!
//! What it is for is **order and lifetime**: that whatever must happen before something else is made to by a wait, an
//! event or a stream, and that memory is there as long as somebody uses it. A GPU rarely punishes a mistake in these on
//! the day it is made. This does, if asked to, and it says nothing about speed.
//!
//! # What CUDA leaves open, and what makes it show
//!
//! | CUDA promises nothing about | here |
//! | --- | --- |
//! | when a command runs, relative to the host and to other streams | each stream is a thread; `CHAOS` delays commands, streams in turn |
//! | what a stream sees of another without a wait or an event | with `CHAOS`, what came too early; `DROP` removes single waits, to show that a test would notice |
//! | whether a copy from pageable memory has arrived when `cuMemcpyHtoD` returns | it returns before; non-blocking streams may not see it |
//! | whether plain copies inside a device and fills have ended when they return | they have not |
//! | whether a write without barrier (`CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER`, which only the first version of the calls knows) comes after what the stream wrote before | with `CHAOS` it overtakes the copy, fill or kernel ahead of it, every other time |
//! | when others see what a kernel has stored, before a fence of its own or its end | `LATE_STORES=n`: not before, and n microseconds after it has run |
//! | which streams share a hardware queue and so wait for each other (8 queues by default, whatever words or events say) | `CONNECTIONS=n` |
//! | what a call does that finds a stream's queue full (about 1,024 commands) | `QUEUE=n`: it waits, and holds the lock of the context, so that nothing is queued there meanwhile, on no stream |
//! | whether allocating memory waits for the context's streams | `ALLOCATION_WAITS=1`; what is allocated in a stream's order never does |
//! | whether the first launch of a kernel waits for the context, since its code is loaded then; so the first fill and the first copy inside devices, which are kernels of the driver's | `LAZY=1`; `cuFuncLoad` beforehand avoids it |
//! | whether freeing, unregistering and closing wait for the context's streams | always, also those of other threads: a stream that waits for something that the caller does afterwards is a deadlock |
//! | on which thread host functions run | one at a time in the whole process; `HOST_FUNCTIONS=parallel` |
//! | what fresh memory holds | not zeros |
//!
//! And what CUDA forbids without always noticing is noticed: ranges that leave their allocation, pointers to freed
//! memory, a kernel's pointers into other contexts' or plain host memory, writes behind an allocation (when it is
//! freed), CUDA called in a host function, memory freed while another process has it open (which is poisoned), waits
//! for words that a device does not reach, a host function's or the default stream's part in a capture, an allocation beside another thread's capture. A kernel that
//! touches unmapped memory breaks its context, as on a device: every later call there returns
//! `CUDA_ERROR_ILLEGAL_ADDRESS`.
//!
//! # Switches
//!
//! Each is the variable `MAYPOLE_EMULATOR_<NAME>` of the process, or [`testing::Emulator::set`] while it runs. They
//! hold for a whole process. One that does not exist ends the process: a test that believed in it would show nothing.
//!
//! | name | value | what it does |
//! | --- | --- | --- |
//! | `DEVICES` | 1 | devices of the machine; before `cuInit` only. 0: there is a driver and no device |
//! | `MEMORY` | 4G | bytes of each device, counted per process |
//! | `DRIVER_VERSION` | 12040 | what `cuDriverGetVersion` says, and which PTX is too new |
//! | `CAPABILITY` | 9.0 | compute capability; PTX for a later one is refused |
//! | `MACHINE` | empty | any text: devices are others than in processes with another text |
//! | `CHAOS` | 0 | a seed: streams are late, in ways that the seed fixes; 0 is off |
//! | `CONNECTIONS` | 0 | hardware queues that a context's streams share; 0: one for each |
//! | `QUEUE` | 0 | commands that a stream's queue has room for; 0: any number |
//! | `ALLOCATION_WAITS` | 0 | 1: allocating device memory, and pinned, waits for the context |
//! | `LAZY` | 0 | 1: the first launch of a kernel that was not loaded waits for the context, and the first fill and copy |
//! | `LATE_STORES` | 0 | microseconds by which what a kernel has stored behind its last fence is seen late |
//! | `HOST_FUNCTIONS` | serial | `parallel`: those of different streams run at once |
//! | `MEMORY_OPERATIONS` | 1 | 0: stream memory operations are not supported |
//! | `REUSED_HANDLES` | 0 | 1: a stream gets the handle of the one that was destroyed last, as on drivers; otherwise no handle is used twice |
//! | `IPC` | 1 | 0: handles are neither given nor opened |
//! | `PEER_ACCESS` | 1 | 0: devices do not reach each other |
//! | `HOST_REGISTER` | 1 | 0: host memory cannot be registered |
//! | `SECOND_ADDRESS` | 0 | 1: pinned and registered memory has another address on devices than on the host, and they know no other |
//! | `HIDDEN` | 0 | 1: devices that `CUDA_VISIBLE_DEVICES` leaves out have no node here, as in a cgroup: their memory cannot be opened |
//! | `EXCLUSIVE` | 0 | 1: compute mode EXCLUSIVE_PROCESS: a device takes the first process that makes a context there, until that ends |
//! | `FAIL` | empty | `cuMemAlloc:3:CUDA_ERROR_OUT_OF_MEMORY,...`: the third call from now on fails; `3+` it and all later ones; `*` any function |
//! | `DROP` | empty | `wait:2,event:all,...`: the second wait for a word from now on is lost, and every wait for an event; also `write` (of a word, by a stream or a kernel) and `legacy` (the order between the default stream and the others) |
//!
//! `CUDA_VISIBLE_DEVICES` is heeded as drivers do: it says which of the machine's devices the process counts, and in
//! which order. The memory of the others can be opened all the same, if their processes give handles of it.
//!
//! `FAIL` makes a function fail before it has done anything. A failure that a *command* would have met shows as it does
//! with CUDA: the stream's context is broken, and a later call says so.
//!
//! # What it is not
//!
//! * **Not parallel.** A kernel's threads run one after the other, on the stream's thread, and Maypole's own kernels,
//!   which are right for any grid, with at most 64 of them. Races inside a kernel, and missing barriers in it, do not
//!   show.
//! * **Not weakly ordered.** A copy or a kernel writes with the host's stores, a word is written with sequential
//!   consistency. That a wait sees the word but not the data before it, which only a missing fence on real hardware
//!   could cause, is provoked by writes without barrier, and by words that kernels write without a fence before them
//!   (`LATE_STORES`).
//! * **Not a memory system.** All memory is the host's. Device memory can be dereferenced on the host, by mistake too.
//!   Of a kernel's pointers only those in its parameters are checked beforehand; where it follows a pointer out of
//!   memory, the check is the host's page table, in which other contexts' memory is mapped.
//! * **Not complete.** No graphs are run, no pools, no cooperative launches, no binaries
//!   (only PTX, of which names and parameters are read), no events between processes, no flush of remote writes. What
//!   is missing is missing as a symbol, or returns `CUDA_ERROR_NOT_SUPPORTED`. Handles of a thread's default stream
//!   outlive the thread. Priorities and most flags are accepted and change nothing.
//! * **Memory is counted per process**, so two processes can have more together than the device has.
//! * **Where the manual is silent** about a code, it is a guess: which of several codes a driver returns for IPC in a
//!   container, for instance, depends on the driver.
//!
//! # How it is made
//!
//! Streams are threads that take commands from queues (`stream.rs`, `work.rs`); positions in other streams that a
//! command must wait for are noted when it is queued. Device memory is an anonymous file for each allocation, so that
//! another process can map it through `/proc`. A stream that waits for a word polls a hundred times, then naps for 20
//! to 200 microseconds; a write by a stream of the same process ends the nap. Idle streams sleep, and their threads end
//! after three seconds.

pub mod abi;
mod call;
mod chaos;
mod context;
pub mod control;
mod copies;
mod device;
mod event;
mod green;
mod host;
mod ipc;
mod mapping;
mod memory;
mod memory_operations;
mod module;
mod pointers;
mod ptx;
mod second_address;
mod stream;
mod streams;
mod switches;
pub mod testing;
mod twins;
mod virtual_memory;
mod work;
