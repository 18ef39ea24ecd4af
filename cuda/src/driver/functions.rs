//! The driver's functions, looked up by name.
//!
//! Nothing of CUDA is linked: a machine without a driver is the usual case. All symbols are looked up at once when the
//! library is opened, so a driver that lacks one is an error that names it, before anything has been called. The types
//! are those of `cudarc`'s bindings; its own functions are not used, since they panic when a library or a symbol is
//! missing and return codes as an `enum`, for which a code that a newer driver has added would be undefined behaviour.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUhostFn, CUipcMemHandle, CUmodule, CUstream,
    CUstreamBatchMemOpParams, CUuuid,
};
use libloading::Library;

/// A call that the driver refused. Becomes a [`CudaError`](super::CudaError), which has its name and meaning; this form
/// costs nothing, for calls where some codes are answers (`cuStreamQuery`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) call: &'static str,
    pub(crate) code: u32,
}

/// The type of `cuStreamGetCtx_v2`: a stream, its context, its green context.
type ContextsOfStream = unsafe extern "C" fn(CUstream, *mut CUcontext, *mut *mut c_void) -> u32;

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($arg:ident: $type:ty),* $(,)?);)*) => {
        /// One pointer per function. Each method calls the function of its name in `cuda.h`, and is unsafe because that
        /// function is: pointers must be valid and handles alive, as CUDA's reference says.
        #[allow(non_snake_case)]
        pub(crate) struct Functions {
            $($name: unsafe extern "C" fn($($type),*) -> u32,)*
            /// `cuStreamGetCtx_v2`, which drivers have since 12.5.
            contexts_of_stream: Option<ContextsOfStream>,
            /// Never dropped before the pointers into it.
            _library: Library,
        }

        #[allow(non_snake_case, clippy::too_many_arguments, dead_code)]
        impl Functions {
            /// Looks up every symbol.
            ///
            /// # Errors
            /// The first symbol that the library lacks.
            pub(super) fn load(library: Library) -> Result<Functions, &'static str> {
                $(
                    // SAFETY: the declaration below is that of cuda.h (12.4) for this symbol; the versioned name keeps
                    // its signature in every later driver.
                    let found = unsafe { library.get::<unsafe extern "C" fn($($type),*) -> u32>($symbol.as_bytes()) };
                    let $name = *found.map_err(|_| $symbol)?;
                )*
                // SAFETY: as above.
                let contexts_of_stream = unsafe { library.get::<ContextsOfStream>(b"cuStreamGetCtx_v2") };
                let contexts_of_stream = contexts_of_stream.ok().map(|found| *found);
                Ok(Functions { $($name,)* contexts_of_stream, _library: library })
            }

            $(
                #[inline]
                pub(crate) unsafe fn $name(&self, $($arg: $type),*) -> Result<(), Failed> {
                    // SAFETY: the caller's promise is that of the function in cuda.h.
                    match unsafe { (self.$name)($($arg),*) } {
                        0 => Ok(()),
                        code => Err(Failed { call: stringify!($name), code }),
                    }
                }
            )*
        }
    };
}

functions! {
    cuInit = "cuInit"(flags: c_uint);
    cuDriverGetVersion = "cuDriverGetVersion"(version: *mut c_int);
    cuGetErrorName = "cuGetErrorName"(code: u32, text: *mut *const c_char);
    cuGetErrorString = "cuGetErrorString"(code: u32, text: *mut *const c_char);

    cuDeviceGetCount = "cuDeviceGetCount"(count: *mut c_int);
    cuDeviceGet = "cuDeviceGet"(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetName = "cuDeviceGetName"(name: *mut c_char, len: c_int, device: CUdevice);
    cuDeviceGetUuid = "cuDeviceGetUuid_v2"(uuid: *mut CUuuid, device: CUdevice);
    cuDeviceGetPCIBusId = "cuDeviceGetPCIBusId"(text: *mut c_char, len: c_int, device: CUdevice);
    cuDeviceTotalMem = "cuDeviceTotalMem_v2"(bytes: *mut usize, device: CUdevice);
    cuDeviceGetAttribute = "cuDeviceGetAttribute"(value: *mut c_int, attribute: u32, device: CUdevice);
    cuDeviceCanAccessPeer = "cuDeviceCanAccessPeer"(can: *mut c_int, device: CUdevice, peer: CUdevice);
    cuDevicePrimaryCtxRetain = "cuDevicePrimaryCtxRetain"(context: *mut CUcontext, device: CUdevice);
    cuDevicePrimaryCtxRelease = "cuDevicePrimaryCtxRelease_v2"(device: CUdevice);
    cuDevicePrimaryCtxGetState =
        "cuDevicePrimaryCtxGetState"(device: CUdevice, flags: *mut c_uint, active: *mut c_int);

    cuCtxGetCurrent = "cuCtxGetCurrent"(context: *mut CUcontext);
    cuCtxPushCurrent = "cuCtxPushCurrent_v2"(context: CUcontext);
    cuCtxPopCurrent = "cuCtxPopCurrent_v2"(context: *mut CUcontext);
    cuCtxGetDevice = "cuCtxGetDevice"(device: *mut CUdevice);
    cuCtxEnablePeerAccess = "cuCtxEnablePeerAccess"(peer: CUcontext, flags: c_uint);

    cuStreamCreateWithPriority =
        "cuStreamCreateWithPriority"(stream: *mut CUstream, flags: c_uint, priority: c_int);
    cuStreamDestroy = "cuStreamDestroy_v2"(stream: CUstream);
    cuStreamGetCtx = "cuStreamGetCtx"(stream: CUstream, context: *mut CUcontext);
    cuStreamGetId = "cuStreamGetId"(stream: CUstream, number: *mut u64);
    cuStreamGetPriority = "cuStreamGetPriority"(stream: CUstream, priority: *mut c_int);
    cuStreamQuery = "cuStreamQuery"(stream: CUstream);
    cuStreamSynchronize = "cuStreamSynchronize"(stream: CUstream);
    cuStreamIsCapturing = "cuStreamIsCapturing"(stream: CUstream, status: *mut u32);
    cuThreadExchangeStreamCaptureMode = "cuThreadExchangeStreamCaptureMode"(mode: *mut c_uint);
    cuStreamWaitEvent = "cuStreamWaitEvent"(stream: CUstream, event: CUevent, flags: c_uint);
    cuStreamWaitValue32 =
        "cuStreamWaitValue32_v2"(stream: CUstream, address: CUdeviceptr, value: u32, flags: c_uint);
    cuStreamWriteValue32 =
        "cuStreamWriteValue32_v2"(stream: CUstream, address: CUdeviceptr, value: u32, flags: c_uint);
    cuStreamBatchMemOp = "cuStreamBatchMemOp_v2"(
        stream: CUstream, count: c_uint, operations: *mut CUstreamBatchMemOpParams, flags: c_uint,
    );
    cuLaunchHostFunc = "cuLaunchHostFunc"(stream: CUstream, function: CUhostFn, data: *mut c_void);

    cuEventCreate = "cuEventCreate"(event: *mut CUevent, flags: c_uint);
    cuEventDestroy = "cuEventDestroy_v2"(event: CUevent);
    cuEventRecord = "cuEventRecord"(event: CUevent, stream: CUstream);
    cuEventQuery = "cuEventQuery"(event: CUevent);
    cuEventSynchronize = "cuEventSynchronize"(event: CUevent);
    cuEventElapsedTime = "cuEventElapsedTime"(milliseconds: *mut f32, start: CUevent, end: CUevent);

    cuMemAlloc = "cuMemAlloc_v2"(address: *mut CUdeviceptr, bytes: usize);
    cuMemAllocAsync = "cuMemAllocAsync"(address: *mut CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemFree = "cuMemFree_v2"(address: CUdeviceptr);
    cuMemGetAddressRange =
        "cuMemGetAddressRange_v2"(base: *mut CUdeviceptr, bytes: *mut usize, address: CUdeviceptr);
    cuMemGetInfo = "cuMemGetInfo_v2"(free: *mut usize, total: *mut usize);
    cuMemcpyHtoDAsync =
        "cuMemcpyHtoDAsync_v2"(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync =
        "cuMemcpyDtoHAsync_v2"(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyDtoDAsync =
        "cuMemcpyDtoDAsync_v2"(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemsetD8Async = "cuMemsetD8Async"(at: CUdeviceptr, value: u8, bytes: usize, stream: CUstream);
    cuMemHostAlloc = "cuMemHostAlloc"(at: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemFreeHost = "cuMemFreeHost"(at: *mut c_void);
    cuMemHostRegister = "cuMemHostRegister_v2"(at: *mut c_void, bytes: usize, flags: c_uint);
    cuMemHostUnregister = "cuMemHostUnregister"(at: *mut c_void);
    cuMemHostGetDevicePointer =
        "cuMemHostGetDevicePointer_v2"(address: *mut CUdeviceptr, at: *mut c_void, flags: c_uint);
    cuPointerGetAttributes = "cuPointerGetAttributes"(
        count: c_uint, attributes: *mut u32, values: *mut *mut c_void, address: CUdeviceptr,
    );
    cuIpcGetMemHandle = "cuIpcGetMemHandle"(handle: *mut CUipcMemHandle, address: CUdeviceptr);
    cuIpcOpenMemHandle = "cuIpcOpenMemHandle_v2"(address: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint);
    cuIpcCloseMemHandle = "cuIpcCloseMemHandle"(address: CUdeviceptr);

    cuModuleLoadData = "cuModuleLoadData"(module: *mut CUmodule, image: *const c_void);
    cuModuleUnload = "cuModuleUnload"(module: CUmodule);
    cuModuleGetFunction = "cuModuleGetFunction"(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuFuncLoad = "cuFuncLoad"(function: CUfunction);
    cuLaunchKernel = "cuLaunchKernel"(
        function: CUfunction,
        grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
        block_x: c_uint, block_y: c_uint, block_z: c_uint,
        shared_bytes: c_uint, stream: CUstream,
        parameters: *mut *mut c_void, extra: *mut *mut c_void,
    );
}

impl Functions {
    /// A stream's context, and whether the stream is a green context's: then it is the primary context of its device.
    /// A default stream is the current context's. Drivers before 12.5 call a green context one like any other.
    ///
    /// # Safety
    /// As for `cuStreamGetCtx`.
    pub(super) unsafe fn stream_context(&self, stream: CUstream) -> Result<(CUcontext, bool), Failed> {
        let (mut context, mut green) = (std::ptr::null_mut(), std::ptr::null_mut());
        let Some(ask) = self.contexts_of_stream else {
            // SAFETY: the caller's promise, and a valid pointer.
            unsafe { self.cuStreamGetCtx(stream, &mut context) }?;
            return Ok((context, false));
        };
        // SAFETY: the caller's promise, and valid pointers.
        match unsafe { ask(stream, &mut context, &mut green) } {
            0 => Ok((context, !green.is_null())),
            code => Err(Failed { call: "cuStreamGetCtx", code }),
        }
    }

    /// What the driver calls a code, and what it says about it.
    pub(super) fn describe(&self, code: u32) -> (&'static str, &'static str) {
        let text = |call: unsafe fn(&Functions, u32, *mut *const c_char) -> Result<(), Failed>| {
            let mut text = std::ptr::null();
            // SAFETY: `text` is valid for the one pointer that the call writes.
            let known = unsafe { call(self, code, &mut text) }.is_ok() && !text.is_null();
            // SAFETY: on success it points to a constant of the driver's, which is never unloaded (see `super::probe`).
            known.then(|| unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("?"))
        };
        (
            text(Functions::cuGetErrorName).unwrap_or("a code unknown to this driver"),
            text(Functions::cuGetErrorString).unwrap_or("no text"),
        )
    }
}
