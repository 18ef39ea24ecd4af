//! What a stream can be told to do, and doing it.

use crate::abi::*;
use crate::call::IN_HOST_FUNCTION;
use crate::context::Context;
use crate::event::Recording;
use crate::mapping::PAGE;
use crate::memory::{self, Use};
use crate::switches::SWITCHES;
use crate::twins::Twin;
use parking_lot::{Condvar, Mutex};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Where a copy's bytes come from.
pub enum Source {
    /// An address.
    At(u64),
    /// What lay in pageable memory when the copy was called.
    Taken(Vec<u8>),
}

/// One command of a stream.
pub enum Work {
    /// Copies bytes.
    Copy { to: u64, from: Source, bytes: usize },
    /// Writes a pattern of 1, 2 or 4 bytes again and again.
    Fill { to: u64, pattern: [u8; 4], width: usize, count: usize },
    /// Runs a kernel.
    Launch { twin: Twin, grid: [u32; 3], block: [u32; 3], parameters: Vec<u8> },
    /// Waits for a word of 32 or 64 bits.
    Wait { address: u64, value: u64, flags: u32, wide: bool },
    /// Writes one.
    Write { address: u64, value: u64, wide: bool, barrier: bool },
    /// Memory operations that were given together.
    Batch(Vec<Work>),
    /// An event happens.
    Record(Arc<Recording>),
    /// Waits for one.
    Await(Arc<Recording>),
    /// Calls a function of the host.
    Host { function: unsafe extern "C" fn(*mut c_void), data: *mut c_void },
    /// Nothing: what a dropped command becomes, so that positions stay what they are.
    Nothing,
}

// SAFETY: the only pointer is the `data` of a host function, which its caller hands to the stream's thread.
unsafe impl Send for Work {}

/// Counts writes by streams of this process; a waiting stream that sleeps is woken by the next.
static WRITES: Mutex<u64> = Mutex::new(0);
static WRITTEN: Condvar = Condvar::new();
static SLEEPERS: AtomicUsize = AtomicUsize::new(0);

/// How many words streams have written.
pub static WORDS: AtomicU64 = AtomicU64::new(0);

/// One host function at a time (switch `HOST_FUNCTIONS`).
static HOST_FUNCTIONS: Mutex<()> = Mutex::new(());

impl Work {
    /// Whether a later command can be seen before this one's effect.
    pub fn can_be_overtaken(&self) -> bool {
        matches!(self, Work::Copy { .. } | Work::Fill { .. } | Work::Launch { .. })
    }

    /// Whether this command can be seen before the effect of the one ahead of it: a write that renounces the barrier.
    pub fn overtakes(&self) -> bool {
        matches!(self, Work::Write { barrier: false, .. })
    }

    /// Does it. In a context that is broken nothing is done any more, except that events happen.
    pub fn run(self, context: &Context) {
        if let Work::Record(recording) = self {
            return recording.happens();
        }
        if context.is_dead() {
            return;
        }
        let outcome = match self {
            Work::Copy { to, from, bytes } => copy(to, from, bytes),
            Work::Fill { to, pattern, width, count } => fill(to, pattern, width, count),
            Work::Launch { twin, grid, block, parameters } => launch(context, &twin, grid, block, &parameters),
            Work::Wait { address, value, flags, wide } => wait(context, address, value, flags, wide),
            Work::Write { address, value, wide, .. } => write(address, value, wide),
            Work::Batch(operations) => {
                operations.into_iter().for_each(|operation| operation.run(context));
                Ok(())
            }
            Work::Await(recording) => {
                recording.wait();
                Ok(())
            }
            Work::Host { function, data } => {
                let _turn = SWITCHES.serial_host_functions.load(Ordering::Relaxed).then(|| HOST_FUNCTIONS.lock());
                IN_HOST_FUNCTION.set(true);
                // SAFETY: whoever queued the function promised that it may be called with this data, on any thread.
                unsafe { function(data) };
                IN_HOST_FUNCTION.set(false);
                Ok(())
            }
            Work::Record(_) | Work::Nothing => Ok(()),
        };
        if let Err(code) = outcome {
            context.break_with(code);
        }
    }
}

fn copy(to: u64, from: Source, bytes: usize) -> Outcome {
    // What was freed in another context since the call is found here.
    let _to = memory::still_there(to, bytes)?;
    let _from = if let Source::At(from) = from { memory::still_there(from, bytes)? } else { None };
    let source = match &from {
        Source::At(from) => *from as *const u8,
        Source::Taken(taken) => taken.as_ptr(),
    };
    // SAFETY: both ranges were checked when the copy was called: they lie inside allocations, which are held here, or
    // in the caller's pageable memory, which stays until the copy has ended because the call waits for it. They may
    // overlap.
    unsafe { std::ptr::copy(source, to as *mut u8, bytes) };
    Ok(())
}

fn fill(to: u64, pattern: [u8; 4], width: usize, count: usize) -> Outcome {
    /// As much as a copy takes at a time from what is filled already.
    const PIECE: usize = 64 << 10;
    /// From here on pages are given back to the kernel in place of being written.
    const LONG: usize = 1 << 20;
    let bytes = width * count;
    let _to = memory::still_there(to, bytes)?;
    if bytes >= LONG && pattern == [0; 4] {
        // Most of fresh staging memory is never touched: zeros that the kernel owes take no time.
        let pages = to.next_multiple_of(PAGE as u64)..(to + bytes as u64) & !(PAGE as u64 - 1);
        let length = (pages.end - pages.start) as usize;
        // SAFETY: the pages lie inside the range, which is this fill's to overwrite with just these zeros.
        if unsafe { libc::madvise(pages.start as *mut c_void, length, libc::MADV_REMOVE) } == 0 {
            let behind = (to + bytes as u64 - pages.end) as usize;
            fill(to, pattern, 1, (pages.start - to) as usize)?;
            return fill(pages.end, pattern, 1, behind);
        }
    }
    let to = to as *mut u8;
    let mut filled = width.min(bytes);
    // SAFETY: the place begins the range, which lies inside an allocation that is held here.
    unsafe { std::ptr::copy_nonoverlapping(pattern.as_ptr(), to, filled) };
    while filled < bytes {
        // Whole patterns, since all before it were.
        let more = filled.min(PIECE).min(bytes - filled);
        // SAFETY: both lie inside the range, and one ends where the other begins at the latest.
        unsafe { std::ptr::copy_nonoverlapping(to, to.add(filled), more) };
        filled += more;
    }
    Ok(())
}

fn launch(context: &Context, twin: &Twin, grid: [u32; 3], block: [u32; 3], parameters: &[u8]) -> Outcome {
    // A pointer among the parameters that this context must not use would fault on a device. Held while the kernel
    // runs.
    let mut held = Vec::new();
    for word in parameters.as_chunks::<8>().0 {
        match memory::use_of(u64::from_ne_bytes(*word), context) {
            Use::Allowed(allocation) => held.push(allocation),
            Use::Freed | Use::NotReachable => return Err(CUDA_ERROR_ILLEGAL_ADDRESS),
            Use::NoDevicePointer => {}
        }
    }
    twin.run(grid, block, parameters)
}

fn write(address: u64, value: u64, wide: bool) -> Outcome {
    let _memory = memory::still_there(address, if wide { 8 } else { 4 })?.ok_or(CUDA_ERROR_ILLEGAL_ADDRESS)?;
    WORDS.fetch_add(1, Ordering::Relaxed);
    // The default barrier: what this stream did before is seen by whoever sees the value.
    if wide {
        // SAFETY: aligned (checked by the call) and inside memory that is held here; all access to it is atomic or a
        // device's, which Rust does not know of.
        unsafe { AtomicU64::from_ptr(address as *mut u64) }.store(value, Ordering::SeqCst);
    } else {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(address as *mut u32) }.store(value as u32, Ordering::SeqCst);
    }
    if SLEEPERS.load(Ordering::SeqCst) > 0 {
        *WRITES.lock() += 1;
        WRITTEN.notify_all();
    }
    Ok(())
}

/// Writes a word for a kernel that says so that it is done, as for a stream. What the kernel has stored is seen by whoever
/// sees the word: its threads have run on this thread.
pub extern "C" fn write_for_kernel(at: *mut u32, value: u32) {
    // An address that is none ends no kernel here: the word does not come, and somebody waits for it.
    let _ = write(at as u64, value.into(), false);
}

/// Whether a word has come.
pub fn has_come(word: u64, value: u64, flags: u32, wide: bool) -> bool {
    match flags & !wait_flag::FLUSH {
        wait_flag::GEQ if wide => word.wrapping_sub(value) as i64 >= 0,
        wait_flag::GEQ => (word as u32).wrapping_sub(value as u32) as i32 >= 0,
        wait_flag::EQ => word == value,
        wait_flag::AND => word & value != 0,
        _ if wide => !(word | value) != 0,
        _ => !(word as u32 | value as u32) != 0,
    }
}

/// Polls briefly, then naps: many streams share few cores here. Writes by this process' streams end a nap; those of the
/// host or of other processes are found when it is over.
fn wait(context: &Context, address: u64, value: u64, flags: u32, wide: bool) -> Outcome {
    const POLLS: u32 = 100;
    const SHORTEST: Duration = Duration::from_micros(20);
    const LONGEST: Duration = Duration::from_micros(200);
    let memory = memory::still_there(address, if wide { 8 } else { 4 })?.ok_or(CUDA_ERROR_ILLEGAL_ADDRESS)?;
    let come = || {
        let word = if wide {
            // SAFETY: aligned (checked by the call), and `memory` is held.
            unsafe { AtomicU64::from_ptr(address as *mut u64) }.load(Ordering::SeqCst)
        } else {
            // SAFETY: as above.
            u64::from(unsafe { AtomicU32::from_ptr(address as *mut u32) }.load(Ordering::SeqCst))
        };
        has_come(word, value, flags, wide)
    };
    for _ in 0..POLLS {
        if come() {
            return Ok(());
        }
        std::hint::spin_loop();
    }
    let mut nap = SHORTEST;
    while !context.is_dead() {
        SLEEPERS.fetch_add(1, Ordering::SeqCst);
        let mut writes = WRITES.lock();
        // A write between this look and the sleep takes the lock first, or is seen.
        let done = come();
        if !done {
            WRITTEN.wait_for(&mut writes, nap);
        }
        drop(writes);
        SLEEPERS.fetch_sub(1, Ordering::SeqCst);
        if done || come() {
            return Ok(());
        }
        nap = (nap * 5 / 4).min(LONGEST);
    }
    drop(memory);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_are_those_of_the_manual() {
        assert!(has_come(5, 5, wait_flag::GEQ, false) && has_come(6, 5, wait_flag::GEQ, false));
        assert!(!has_come(4, 5, wait_flag::GEQ, false));
        assert!(has_come(3, u64::from(u32::MAX - 3), wait_flag::GEQ, false), "cyclic");
        assert!(!has_come(u64::from(u32::MAX - 3), 3, wait_flag::GEQ, false), "cyclic");
        assert!(!has_come(3, u64::from(u32::MAX - 3), wait_flag::GEQ, true), "64 bits wrap later");
        assert!(has_come(7, 7, wait_flag::EQ | wait_flag::FLUSH, false) && !has_come(8, 7, wait_flag::EQ, false));
        assert!(has_come(6, 2, wait_flag::AND, false) && !has_come(4, 2, wait_flag::AND, false));
        assert!(has_come(6, 2, wait_flag::NOR, false) && !has_come(u64::from(!2u32), 2, wait_flag::NOR, false));
    }
}
