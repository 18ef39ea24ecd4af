//! Modules, launches, and kernels that go wrong.

use crate::cuda::*;
use std::ffi::{CStr, CString, c_void};

const PTX: &str = include_str!("../kernels/probe.ptx");

/// The parameter of the kernels in `tests/kernels/probe.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Probe {
    destination: u64,
    source: u64,
    count: u64,
    add: u32,
    reserved: u32,
}

fn load(ptx: &str) -> Result<sys::CUmodule, CUresult> {
    let (text, mut module) = (CString::new(ptx).unwrap(), std::ptr::null_mut());
    match call!(cuModuleLoadData(&mut module, text.as_ptr().cast::<c_void>())) {
        CUDA_SUCCESS => Ok(module),
        code => Err(code),
    }
}

fn function(module: sys::CUmodule, name: &CStr) -> Result<sys::CUfunction, CUresult> {
    let mut function = std::ptr::null_mut();
    match call!(cuModuleGetFunction(&mut function, module, name.as_ptr())) {
        CUDA_SUCCESS => Ok(function),
        code => Err(code),
    }
}

fn launch(kernel: sys::CUfunction, grid: u32, block: u32, stream: &Stream, mut probe: Probe) -> CUresult {
    let mut parameters = [(&raw mut probe).cast::<c_void>()];
    call!(cuLaunchKernel(kernel, grid, 1, 1, block, 1, 1, 0, stream.0, parameters.as_mut_ptr(), std::ptr::null_mut()))
}

fn add() -> sys::CUfunction {
    function(load(PTX).unwrap(), c"test_add").unwrap()
}

#[test]
fn a_kernel_runs_with_a_copy_of_its_parameters() {
    let _here = Here::new();
    let (kernel, stream, word, memory) = (add(), Stream::new(), Word::new(0), Memory::new(8000));
    cu!(cuMemsetD32Async(memory.at, 5, 1000, stream.0));
    word.hold(stream.0);
    let probe = Probe { destination: memory.at + 4000, source: memory.at, count: 1000, add: 2, reserved: 0 };
    assert_eq!(launch(kernel, 3, 64, &stream, probe), CUDA_SUCCESS);
    word.set(1);
    stream.synchronize();
    assert_eq!(memory.read(2000)[1000..], [7; 1000]);
}

#[test]
fn every_thread_of_every_block_runs() {
    let _here = Here::new();
    let (stream, memory) = (Stream::new(), Memory::new(4 * 5 * 7 * 4));
    let kernel = function(load(PTX).unwrap(), c"test_shape").unwrap();
    let mut probe = Probe { destination: memory.at, source: 0, count: 140, add: 0, reserved: 0 };
    let (mut parameters, none) = ([(&raw mut probe).cast::<c_void>()], std::ptr::null_mut());
    cu!(cuLaunchKernel(kernel, 2, 1, 2, 5, 7, 1, 0, stream.0, parameters.as_mut_ptr(), none));
    stream.synchronize();
    assert_eq!(memory.read(140), (0..140).collect::<Vec<u32>>());
}

#[test]
fn modules_must_be_ptx_that_driver_and_device_understand() {
    let _alone = alone();
    let _here = Here::beside(0);
    assert_eq!(load("\u{7f}ELF"), Err(CUDA_ERROR_INVALID_IMAGE));
    emulator().set("DRIVER_VERSION", "12030");
    assert_eq!(load(PTX), Err(CUDA_ERROR_UNSUPPORTED_PTX_VERSION));
    emulator().set("DRIVER_VERSION", "12040");
    emulator().set("CAPABILITY", "7.0");
    assert_eq!(load(PTX), Err(CUDA_ERROR_INVALID_PTX));
    emulator().set("CAPABILITY", "7.5");
    let module = load(PTX).unwrap();
    assert_eq!(function(module, c"test_nothing"), Err(CUDA_ERROR_NOT_FOUND));
    assert_eq!(function(module, c"test_without_twin"), Err(CUDA_ERROR_NOT_FOUND));
    let (kernel, stream) = (function(module, c"test_add").unwrap(), Stream::new());
    cu!(cuModuleUnload(module));
    let probe = Probe { destination: 0, source: 0, count: 0, add: 0, reserved: 0 };
    assert_eq!(launch(kernel, 1, 1, &stream, probe), CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn a_launch_must_fit_the_device_and_the_context() {
    let _here = Here::new();
    let (kernel, stream) = (add(), Stream::new());
    let probe = Probe { destination: 0, source: 0, count: 0, add: 0, reserved: 0 };
    for (grid, block) in [(0, 32), (1, 0), (1, 1025), (u32::MAX, 32)] {
        assert_eq!(launch(kernel, grid, block, &stream, probe), CUDA_ERROR_INVALID_VALUE, "{grid} x {block}");
    }
    let _other = Here::beside(0);
    let foreign = Stream::new();
    assert_eq!(launch(kernel, 1, 32, &foreign, probe), CUDA_ERROR_INVALID_HANDLE);
}

/// Launches with these pointers; what the stream says then. The context is done for if that is an error.
fn outcome(kernel: sys::CUfunction, destination: u64, source: u64, count: u64) -> CUresult {
    let stream = Stream::new();
    assert_eq!(launch(kernel, 1, 32, &stream, Probe { destination, source, count, add: 1, reserved: 0 }), CUDA_SUCCESS);
    call!(cuStreamSynchronize(stream.0))
}

#[test]
fn a_kernel_that_runs_off_its_memory_breaks_the_context() {
    let _here = Here::new();
    let broken = Here::beside(0);
    let (kernel, memory) = (add(), Memory::new(1 << 16));
    assert_eq!(outcome(kernel, memory.at, memory.at, 1 << 14), CUDA_SUCCESS);
    assert_eq!(outcome(kernel, memory.at, memory.at, (1 << 14) + 1), CUDA_ERROR_ILLEGAL_ADDRESS);
    let mut at = 0;
    assert_eq!(call!(cuMemAlloc_v2(&mut at, 4)), CUDA_ERROR_ILLEGAL_ADDRESS, "and every later call says so");
    drop(broken);
    drop(Memory::new(4)); // in the other context nothing has happened
}

#[test]
fn stale_pointers_and_the_hosts_are_no_device_memory() {
    let _here = Here::new();
    let freed = Memory::new(4096).at;
    let mut on_host = vec![0u32; 1024];
    for bad in [freed, on_host.as_mut_ptr() as u64] {
        let broken = Here::beside(0);
        let (kernel, memory) = (add(), Memory::new(4096));
        let source = if bad == freed {
            let one = Memory::new(4096);
            one.at
        } else {
            bad
        };
        assert_eq!(outcome(kernel, memory.at, source, 10), CUDA_ERROR_ILLEGAL_ADDRESS, "{bad:#x}");
        drop((memory, broken));
    }
}

#[test]
fn memory_of_another_device_needs_peer_access() {
    let there = Here::new();
    let memory = Memory::new(4096);
    for allowed in [true, false] {
        let here = Here::beside(1);
        let (kernel, own) = (add(), Memory::new(4096));
        if allowed {
            cu!(cuCtxEnablePeerAccess(there.context, 0));
        }
        let expected = if allowed { CUDA_SUCCESS } else { CUDA_ERROR_ILLEGAL_ADDRESS };
        assert_eq!(outcome(kernel, own.at, memory.at, 10), expected);
        drop((own, here));
    }
}

#[test]
fn with_lazy_loading_the_first_launch_waits_for_the_context() {
    let _alone = alone();
    let here = Here::beside(0);
    emulator().set("LAZY", "1");
    let (stream, other, word, memory) = (Stream::new(), Stream::new(), Word::new(0), Memory::new(4096));
    let (loaded, fresh) = (add(), add());
    cu!(cuFuncLoad(loaded));
    word.hold(stream.0);
    let probe = Probe { destination: memory.at, source: memory.at, count: 10, add: 1, reserved: 0 };
    assert_eq!(launch(loaded, 1, 32, &other, probe), CUDA_SUCCESS);
    let (context, kernel, queue) = (here.context as usize, fresh as usize, other.0 as usize);
    let launching = std::thread::spawn(move || {
        cu!(cuCtxSetCurrent(context as sys::CUcontext));
        let stream = std::mem::ManuallyDrop::new(Stream(queue as sys::CUstream));
        launch(kernel as sys::CUfunction, 1, 32, &stream, probe)
    });
    a_while();
    assert!(!launching.is_finished());
    word.set(1);
    assert_eq!(launching.join().unwrap(), CUDA_SUCCESS);
}

/// Fills and copies inside a device are kernels too, the driver's own.
#[test]
fn with_lazy_loading_the_first_fill_and_copy_wait_for_the_context() {
    let _alone = alone();
    let here = Here::beside(0);
    emulator().set("LAZY", "1");
    let (stream, other, memory) = (Stream::new(), Stream::new(), Memory::new(4096));
    let (context, queue, at) = (here.context as usize, other.0 as usize, memory.at);
    let fill = move || cu!(cuMemsetD8Async(at, 1, 100, queue as sys::CUstream));
    let copy = move || cu!(cuMemcpyDtoDAsync_v2(at, at + 2048, 100, queue as sys::CUstream));
    let acts: [&(dyn Fn() + Sync); 2] = [&fill, &copy];
    for act in acts {
        let word = Word::new(0);
        word.hold(stream.0);
        let began_late = std::thread::scope(|scope| {
            let acting = scope.spawn(|| {
                cu!(cuCtxSetCurrent(context as sys::CUcontext));
                act();
            });
            a_while();
            let waits = !acting.is_finished();
            word.set(1);
            waits
        });
        assert!(began_late);
        // And not again.
        let word = Word::new(0);
        word.hold(stream.0);
        act();
        word.set(1);
        stream.synchronize();
    }
}
