//! What tests ask of the emulator itself: `maypole_emulator_*`, exported beside the driver's functions.

use crate::context::CONTEXTS;
use crate::event::EVENTS;
use crate::memory::{self, FREED_BY_CALL, FREED_WHILE_OPEN, Kind, OVERRUNS};
use crate::module::MODULES;
use crate::stream::{COMMANDS, THREADS};
use crate::streams::STREAMS;
use crate::switches::SWITCHES;
use crate::work::WORDS;
use std::ffi::{CStr, CString, c_char};
use std::sync::atomic::Ordering::Relaxed;

/// What exists in this process now, and what has happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Allocations of device memory, and managed ones.
    pub allocations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Pinned host allocations.
    pub pinned: u64,
    /// Registered ranges of host memory.
    pub registered: u64,
    /// Other processes' allocations that are open here.
    pub imported: u64,
    /// Streams, default ones not counted.
    pub streams: u64,
    /// Events.
    pub events: u64,
    /// Modules.
    pub modules: u64,
    /// Contexts.
    pub contexts: u64,
    /// Threads that play streams now; they end some seconds after their last command.
    pub threads: u64,
    /// Commands that streams have ended since the beginning.
    pub commands: u64,
    /// Allocations that were found written to behind their end when they were freed.
    pub overruns: u64,
    /// Allocations that were freed while another process had them open.
    pub freed_while_open: u64,
    /// Commands lost through the switch `DROP`.
    pub dropped: u64,
    /// Words that streams, and kernels of theirs, have written.
    pub words: u64,
    /// Bytes of data that Maypole's kernels were told to read, headers apart.
    pub read: u64,
    /// And to write.
    pub written: u64,
}

impl Counters {
    fn now() -> Counters {
        let all = memory::all();
        let of = |kinds: &[Kind]| all.iter().filter(|one| kinds.contains(&one.kind)).count() as u64;
        let device = all.iter().filter(|one| FREED_BY_CALL.contains(&one.kind));
        let [read, written] = crate::twins::traffic();
        Counters {
            allocations: of(&FREED_BY_CALL),
            bytes: device.map(|one| one.bytes as u64).sum(),
            pinned: of(&[Kind::Pinned]),
            registered: of(&[Kind::Registered]),
            imported: of(&[Kind::Imported]),
            streams: STREAMS.len() as u64,
            events: EVENTS.len() as u64,
            modules: MODULES.len() as u64,
            contexts: CONTEXTS.len() as u64,
            threads: THREADS.load(Relaxed),
            commands: COMMANDS.load(Relaxed),
            overruns: OVERRUNS.load(Relaxed),
            freed_while_open: FREED_WHILE_OPEN.load(Relaxed),
            dropped: SWITCHES.dropped.load(Relaxed),
            words: WORDS.load(Relaxed),
            read,
            written,
        }
    }
}

/// Sets a switch. Returns null, or why it cannot be set (the text stays until the process ends).
///
/// # Safety
/// Both must be texts that a zero ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_emulator_set(name: *const c_char, value: *const c_char) -> *const c_char {
    // SAFETY: by this function's contract.
    let (name, value) = unsafe { (CStr::from_ptr(name), CStr::from_ptr(value)) };
    match SWITCHES.set(&name.to_string_lossy(), &value.to_string_lossy()) {
        Ok(()) => std::ptr::null(),
        Err(why) => CString::new(why).unwrap_or_default().into_raw(),
    }
}

/// Stores the counters.
///
/// # Safety
/// `to` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_emulator_counters(to: *mut Counters) {
    // SAFETY: by this function's contract.
    unsafe { to.write(Counters::now()) };
}

/// How often a function of the driver was called, `_v2` or not; with `*` all of them together.
///
/// # Safety
/// `name` must be a text that a zero ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn maypole_emulator_calls(name: *const c_char) -> u64 {
    // SAFETY: by this function's contract.
    SWITCHES.calls(&unsafe { CStr::from_ptr(name) }.to_string_lossy())
}
