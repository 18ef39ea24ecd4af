//! Compiled kernels.

use std::ffi::{CStr, CString, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys::{CUfunction, CUmodule};

use super::{Context, Result, Stream};

/// Kernels that the driver has compiled for a context's device.
pub struct Module {
    raw: CUmodule,
    context: Arc<Context>,
}

// SAFETY: a module's handle is a name for something of the driver's, whose functions may be called from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Compiles PTX, which takes milliseconds; the driver keeps the result in its cache on disk.
    ///
    /// # Errors
    /// The driver's: PTX that is too new for it, or not for this device.
    pub fn load(context: &Arc<Context>, ptx: &CStr) -> Result<Arc<Module>> {
        let _entered = context.enter()?;
        let mut raw = null_mut();
        // SAFETY: the image is a string that ends with a zero, which is how the driver tells PTX's length.
        unsafe { context.driver().cuModuleLoadData(&mut raw, ptx.as_ptr().cast()) }?;
        Ok(Arc::new(Module { raw, context: context.clone() }))
    }

    /// The kernel called `name`, loaded at once. Drivers otherwise load a kernel when it is first launched, and may
    /// wait for the whole device to do so: forever, if a stream waits for a rank that is to launch it.
    ///
    /// # Errors
    /// The driver's, where there is no such kernel.
    pub fn function(self: &Arc<Module>, name: &str) -> Result<Function> {
        let _entered = self.context.enter()?;
        let name = CString::new(name).expect("names of kernels have no zero inside");
        let mut raw = null_mut();
        // SAFETY: the module is alive, and the pointers valid.
        unsafe { self.context.driver().cuModuleGetFunction(&mut raw, self.raw, name.as_ptr()) }?;
        // SAFETY: the function has just been found.
        unsafe { self.context.driver().cuFuncLoad(raw) }?;
        Ok(Function { raw, module: self.clone() })
    }

    /// The context for which it was compiled.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: loaded in `load`; its functions keep the module, so none is left.
            let _ = unsafe { self.context.driver().cuModuleUnload(self.raw) };
        }
    }
}

/// One kernel. Keeps its module.
#[derive(Clone)]
pub struct Function {
    raw: CUfunction,
    module: Arc<Module>,
}

// SAFETY: a function's handle is a name for something of the driver's, whose functions may be called from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Queues a launch of `grid` blocks, along x and y, of `block` threads each. The driver copies the parameter.
    ///
    /// # Errors
    /// The driver's. What goes wrong while the kernel runs is reported by later calls.
    ///
    /// # Safety
    /// The kernel takes one parameter, laid out like `P`; what it does with the addresses in it is right whenever the
    /// stream comes to run it.
    #[inline]
    pub unsafe fn launch<P: Copy>(&self, stream: &Stream, grid: [u32; 2], block: u32, parameter: &P) -> Result<()> {
        let context = &self.module.context;
        let _entered = context.enter()?;
        let mut parameters: [*mut c_void; 1] = [(&raw const *parameter).cast_mut().cast()];
        // SAFETY: function and stream are alive; the driver reads one parameter of the kernel's type, and only during
        // the call. The rest is the caller's promise.
        unsafe {
            let (one, at) = (1, parameters.as_mut_ptr());
            let stream = stream.handle();
            context.driver().cuLaunchKernel(self.raw, grid[0], grid[1], one, block, one, one, 0, stream, at, null_mut())
        }?;
        Ok(())
    }
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Module({:p} on device {})", self.raw, self.context.ordinal())
    }
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Function({:p} of {:?})", self.raw, self.module)
    }
}
