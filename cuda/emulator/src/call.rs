//! The frame around every entry point, and the table in which handles are looked up.

use crate::abi::*;
use crate::switches::SWITCHES;
use parking_lot::RwLock;
use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Set by `cuInit`.
pub static INITIALISED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread is in a host function that a stream called, where CUDA must not be called.
    pub static IN_HOST_FUNCTION: Cell<bool> = const { Cell::new(false) };
}

/// Runs an entry point's body: counts the call, fails it if it is to fail, and lets no panic out.
pub fn enter(function: &'static str, needs_init: bool, body: impl FnOnce() -> Outcome) -> Code {
    let run = || {
        SWITCHES.call(function)?;
        if needs_init && !INITIALISED.load(Relaxed) {
            return Err(CUDA_ERROR_NOT_INITIALIZED);
        }
        if needs_init && IN_HOST_FUNCTION.get() {
            return Err(CUDA_ERROR_NOT_PERMITTED);
        }
        if is_unsafe_while_capturing(function) {
            crate::streams::unsafe_while_capturing()?;
        }
        body()
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => CUDA_SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => CUDA_ERROR_UNKNOWN,
    }
}

/// Defines entry points: exported functions with the driver's names, whose bodies return an [`Outcome`].
///
/// `no_init` in front marks those that may be called before `cuInit` and in host functions.
macro_rules! entries {
    ($($(#[doc = $doc:literal])+ fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[doc = $doc])+
            ///
            /// # Safety
            /// As for the driver's function of this name: pointers must point to what CUDA's manual says.
            #[allow(non_snake_case)]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $kind),*) -> $crate::abi::Code {
                $crate::call::enter(stringify!($name), !$crate::call::is_free(stringify!($name)), move || $body)
            }
        )*
    };
}
pub(crate) use entries;

/// Functions that CUDA lets be called at any time.
pub const fn is_free(function: &str) -> bool {
    matches!(function.as_bytes(), b"cuInit" | b"cuDriverGetVersion" | b"cuGetErrorName" | b"cuGetErrorString")
}

/// Functions that may wait for streams, or look at them, behind a capture's back: what CUDA's manual calls potentially
/// unsafe. It does not list them; these are the ones that are known to end captures and that Maypole calls.
fn is_unsafe_while_capturing(function: &str) -> bool {
    let memory = ["cuMemAlloc_v2", "cuMemFree_v2", "cuMemAllocHost_v2", "cuMemHostAlloc", "cuMemFreeHost"];
    let others = ["cuIpcOpenMemHandle_v2", "cuIpcCloseMemHandle", "cuEventQuery", "cuEventSynchronize"];
    memory.contains(&function) || others.contains(&function)
}

/// Stores a result where the caller wants it.
///
/// # Safety
/// `to` must be null or valid for a write of a `T`.
pub unsafe fn give<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: not null, so valid by this function's contract. Unaligned, since a C caller may pack its structures.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// Live objects of one kind, by handle. A handle looks like a pointer, points nowhere, and is not used twice unless that
/// is asked for, so a stale one is found out.
pub struct Handles<T> {
    live: RwLock<HashMap<usize, Arc<T>>>,
}

static NEXT: AtomicUsize = AtomicUsize::new(0x0E00_0000_1000);

impl<T> Handles<T> {
    pub const fn new(live: HashMap<usize, Arc<T>>) -> Handles<T> {
        Handles { live: RwLock::new(live) }
    }

    /// A handle for an object that is made with it.
    pub fn insert(&self, make: impl FnOnce(usize) -> T) -> Arc<T> {
        let handle = NEXT.fetch_add(0x40, Relaxed);
        let object = Arc::new(make(handle));
        self.live.write().insert(handle, object.clone());
        object
    }

    /// A handle for an object that is there already.
    pub fn adopt(&self, object: Arc<T>) -> usize {
        let handle = NEXT.fetch_add(0x40, Relaxed);
        self.live.write().insert(handle, object);
        handle
    }

    /// The same under a handle that nothing has any more.
    pub fn adopt_as(&self, handle: usize, object: Arc<T>) -> usize {
        self.live.write().insert(handle, object);
        handle
    }

    pub fn get(&self, handle: usize) -> Outcome<Arc<T>> {
        self.live.read().get(&handle).cloned().ok_or(CUDA_ERROR_INVALID_HANDLE)
    }

    pub fn remove(&self, handle: usize) -> Outcome<Arc<T>> {
        self.live.write().remove(&handle).ok_or(CUDA_ERROR_INVALID_HANDLE)
    }

    /// Forgets all but those for which this holds.
    pub fn retain(&self, keep: impl Fn(&T) -> bool) {
        self.live.write().retain(|_, object| keep(object));
    }

    pub fn len(&self) -> usize {
        self.live.read().len()
    }
}
