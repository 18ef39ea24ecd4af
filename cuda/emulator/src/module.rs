//! Modules: PTX, of which only the names and the parameters of its entries are read, and launches.

use crate::abi::*;
use crate::call::{Handles, entries, give};
use crate::context::{Context, current};
use crate::ptx::{self, Entry};
use crate::streams::stream_of;
use crate::switches::{Droppable, SWITCHES};
use crate::twins::Twin;
use crate::work::Work;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

/// A module.
pub struct Module {
    context: Arc<Context>,
    entries: Vec<Entry>,
}

/// A kernel of a module.
pub struct Function {
    context: Arc<Context>,
    module: usize,
    entry: Entry,
    twin: Twin,
    /// Its code has been loaded, which the first launch does otherwise (switch `LAZY`).
    loaded: AtomicBool,
}

pub static MODULES: LazyLock<Handles<Module>> = LazyLock::new(|| Handles::new(HashMap::new()));
static FUNCTIONS: LazyLock<Handles<Function>> = LazyLock::new(|| Handles::new(HashMap::new()));

/// # Safety
/// `image` must be null or point to a text that a zero ends.
unsafe fn load(to: *mut usize, image: *const c_void) -> Outcome {
    let context = current()?;
    if image.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: by this function's contract.
    let text = unsafe { CStr::from_ptr(image.cast()) }.to_str().map_err(|_| CUDA_ERROR_INVALID_IMAGE)?;
    let parsed = ptx::parse(text).ok_or(CUDA_ERROR_INVALID_IMAGE)?;
    if parsed.needs_driver() > SWITCHES.driver_version.load(Relaxed) {
        return Err(CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    }
    if parsed.target > SWITCHES.capability.load(Relaxed) {
        return Err(CUDA_ERROR_INVALID_PTX);
    }
    let handle = MODULES.adopt(Arc::new(Module { context, entries: parsed.entries }));
    // SAFETY: the caller's promise.
    unsafe { give(to, handle) }
}

entries! {
    /// Loads a module from PTX text. Binaries are not understood: `CUDA_ERROR_INVALID_IMAGE`.
    fn cuModuleLoadData(to: *mut usize, image: *const c_void) {
        // SAFETY: the caller's promise.
        unsafe { load(to, image) }
    }

    /// The same; options of the compiler are not looked at.
    fn cuModuleLoadDataEx(
        to: *mut usize,
        image: *const c_void,
        _count: u32,
        _options: *mut u32,
        _values: *mut *mut c_void,
    ) {
        // SAFETY: the caller's promise.
        unsafe { load(to, image) }
    }

    /// Unloads a module; its functions are not valid any more.
    fn cuModuleUnload(module: usize) {
        MODULES.remove(module)?;
        FUNCTIONS.retain(|function| function.module != module);
        Ok(())
    }

    /// A kernel of a module.
    fn cuModuleGetFunction(to: *mut usize, module: usize, name: *const c_char) {
        let found = MODULES.get(module)?;
        if name.is_null() {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller's promise: a text that a zero ends.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| CUDA_ERROR_NOT_FOUND)?;
        let entry = found.entries.iter().find(|entry| entry.name == name).ok_or(CUDA_ERROR_NOT_FOUND)?.clone();
        let complain = |_: &Code| eprintln!("maypole emulator: there is no host code for the kernel {name}");
        let twin = Twin::named(name).inspect_err(complain)?;
        let loaded = AtomicBool::new(false);
        let function = Function { context: found.context.clone(), module, entry, twin, loaded };
        // SAFETY: the caller's promise.
        unsafe { give(to, FUNCTIONS.adopt(Arc::new(function))) }
    }

    /// Loads a kernel's code now, so that its first launch does not wait for the context.
    fn cuFuncLoad(function: usize) {
        FUNCTIONS.get(function)?.loaded.store(true, Relaxed);
        Ok(())
    }

    /// Facts about a kernel: 1024 threads of a block, and nothing used.
    fn cuFuncGetAttribute(to: *mut c_int, attribute: u32, function: usize) {
        FUNCTIONS.get(function)?.loaded.store(true, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { give(to, if attribute == 0 { 1024 } else { 0 }) }
    }

    /// How many blocks of a kernel fit on a multiprocessor: as many as its 2048 threads allow.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(to: *mut c_int, function: usize, block: c_int, _shared: usize) {
        FUNCTIONS.get(function)?;
        if block < 1 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        unsafe { give(to, if block > 1024 { 0 } else { 2048 / block }) }
    }

    /// Runs a kernel on a stream.
    fn cuLaunchKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared: u32,
        stream: usize,
        parameters: *mut *mut c_void,
        _extra: *mut *mut c_void,
    ) {
        let (function, stream) = (FUNCTIONS.get(function)?, stream_of(stream)?);
        if function.context.handle != stream.context.handle {
            return Err(CUDA_ERROR_INVALID_HANDLE);
        }
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let threads = block.iter().map(|count| u64::from(*count)).product::<u64>();
        let large_grid = grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535;
        let large_block = block[2] > 64 || threads > 1024;
        if grid.contains(&0) || threads == 0 || large_grid || large_block || shared > 48 << 10 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let layout = &function.entry.parameters;
        if parameters.is_null() && !layout.is_empty() {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let mut bytes = Vec::new();
        for (index, parameter) in layout.iter().enumerate() {
            bytes.resize(bytes.len().next_multiple_of(parameter.alignment), 0);
            // SAFETY: the caller's promise: a pointer for each parameter, to as many bytes as the PTX says.
            bytes.extend_from_slice(unsafe {
                std::slice::from_raw_parts((*parameters.add(index)).cast::<u8>(), parameter.bytes)
            });
        }
        if SWITCHES.lazy_loading.load(Relaxed) && !function.loaded.swap(true, Relaxed) {
            function.context.synchronize()?;
        }
        function.twin.lose_words(&mut bytes, || SWITCHES.drops(Droppable::Write))?;
        stream.submit(Work::Launch { twin: function.twin, grid, block, parameters: bytes }).map(|_| ())
    }
}
