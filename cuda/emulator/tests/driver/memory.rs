//! Device and host memory: limits, ranges, and what happens to memory that is gone.

use crate::cuda::*;
use std::ffi::c_void;

#[test]
fn fresh_memory_is_not_zero() {
    let _here = Here::new();
    let memory = Memory::new(1000);
    assert!(memory.read(250).iter().all(|word| *word == 0xA5A5_A5A5));
    assert_eq!(memory.at % 256, 0);
}

#[test]
fn sizes_are_kept() {
    let _here = Here::new();
    let memory = Memory::new(1000);
    let (mut base, mut bytes) = (0, 0);
    cu!(cuMemGetAddressRange_v2(&mut base, &mut bytes, memory.at + 999));
    assert_eq!((base, bytes), (memory.at, 1000));
    assert_eq!(call!(cuMemGetAddressRange_v2(&mut base, &mut bytes, memory.at + 1000)), CUDA_ERROR_NOT_FOUND);
    assert_eq!(call!(cuMemAlloc_v2(&mut base, 0)), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn ranges_must_lie_inside_an_allocation() {
    let _here = Here::new();
    let (memory, stream, host) = (Memory::new(1000), Stream::new(), [0u8; 2000]);
    let from = host.as_ptr().cast::<c_void>();
    cu!(cuMemcpyHtoDAsync_v2(memory.at, from, 1000, stream.0));
    assert_eq!(call!(cuMemcpyHtoDAsync_v2(memory.at, from, 1001, stream.0)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemcpyHtoDAsync_v2(memory.at - 4, from, 100, stream.0)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemsetD8Async(memory.at + 500, 1, 501, stream.0)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemcpyDtoDAsync_v2(memory.at, memory.at + 900, 200, stream.0)), CUDA_ERROR_INVALID_VALUE);
    let on_host = host.as_ptr() as u64;
    assert_eq!(call!(cuMemsetD8Async(on_host, 1, 10, stream.0)), CUDA_ERROR_INVALID_VALUE, "host memory is none");
    cu!(cuCtxSynchronize());
}

#[test]
fn what_was_freed_is_known_to_be() {
    let _here = Here::new();
    let (memory, stream) = (Memory::new(1000), Stream::new());
    let at = memory.at;
    assert_eq!(call!(cuMemFree_v2(at + 4)), CUDA_ERROR_INVALID_VALUE, "not where it begins");
    drop(memory);
    assert_eq!(call!(cuMemFree_v2(at)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemsetD8Async(at, 1, 10, stream.0)), CUDA_ERROR_INVALID_VALUE);
    cu!(cuMemFree_v2(0));
}

/// What comes in a stream's order is of the device's pool: for every context there, for no peer and no other process.
#[test]
fn memory_of_a_pool_is_for_its_device() {
    let here = Here::new();
    let (stream, mut at, mut handle) = (Stream::new(), 0, sys::CUipcMemHandle { reserved: [0; 64] });
    cu!(cuMemAllocAsync(&mut at, 100, stream.0));
    cu!(cuMemsetD8Async(at, 7, 100, stream.0));
    assert_eq!(call!(cuIpcGetMemHandle(&mut handle, at)), CUDA_ERROR_INVALID_VALUE);
    let writes = |code| {
        let stream = Stream::new();
        assert_eq!(call!(cuStreamWriteValue32_v2(stream.0, at, 5, 0)), code);
        stream.synchronize();
    };
    let same = Here::beside(0);
    writes(CUDA_SUCCESS);
    let peer = Here::beside(1);
    cu!(cuCtxEnablePeerAccess(here.context, 0));
    writes(CUDA_ERROR_INVALID_VALUE);
    drop((peer, same));
    cu!(cuCtxSetCurrent(here.context));
    cu!(cuMemFree_v2(at));
}

#[test]
fn copies_run_across_mappings_and_not_beyond_them() {
    let _here = Here::new();
    let (segments, stream) = (emulator().segments(0, 3), Stream::new());
    let (at, bytes) = (segments.address(), segments.bytes());
    cu!(cuMemsetD8Async(at, 7, bytes, stream.0));
    let mut data = vec![0u8; bytes - 20];
    cu!(cuMemcpyDtoHAsync_v2(data.as_mut_ptr().cast(), at + 10, bytes - 20, stream.0));
    assert!(data.iter().all(|byte| *byte == 7));
    assert_eq!(call!(cuMemsetD8Async(at + 1, 7, bytes, stream.0)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemFree_v2(at)), CUDA_ERROR_INVALID_VALUE, "it was not allocated");
    drop(segments);
    assert_eq!(call!(cuMemsetD8Async(at, 7, 1, stream.0)), CUDA_ERROR_INVALID_VALUE, "it is gone");
}

#[test]
fn freeing_waits_for_every_stream_of_the_context() {
    let here = Here::new();
    let (memory, stream, word) = (Memory::new(4), Stream::new(), Word::new(0));
    word.hold(stream.0);
    let (context, at) = (here.context as usize, memory.at);
    let freeing = std::thread::spawn(move || {
        cu!(cuCtxSetCurrent(context as sys::CUcontext));
        cu!(cuMemFree_v2(at));
    });
    a_while();
    assert!(!freeing.is_finished());
    word.set(1);
    freeing.join().unwrap();
    std::mem::forget(memory);
}

#[test]
fn writing_behind_an_allocation_is_found_when_it_is_freed() {
    let _alone = alone();
    let here = Here::beside(0);
    let memory = Memory::new(1000);
    let before = emulator().counters().overruns;
    // SAFETY: the bytes up to a multiple of 512 are mapped: that is what the emulator watches.
    unsafe { ((memory.at + 1003) as *mut u8).write(1) };
    assert_eq!(call!(cuMemFree_v2(memory.at)), CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(emulator().counters().overruns, before + 1);
    assert_eq!(call!(cuCtxSynchronize()), CUDA_ERROR_ILLEGAL_ADDRESS, "and the context is done for");
    std::mem::forget(memory);
    drop(here);
}

#[test]
fn a_device_has_only_so_much() {
    let _alone = alone();
    let _here = Here::beside(0);
    emulator().set("MEMORY", "10M");
    let memory = Memory::new(6 << 20);
    let (mut free, mut total, mut at) = (0, 0, 0);
    cu!(cuMemGetInfo_v2(&mut free, &mut total));
    assert_eq!((free, total), (4 << 20, 10 << 20));
    assert_eq!(call!(cuMemAlloc_v2(&mut at, (4 << 20) + 1)), CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(call!(cuMemAlloc_v2(&mut at, usize::MAX - 5)), CUDA_ERROR_OUT_OF_MEMORY);
    drop(memory);
    drop(Memory::new(10 << 20));
}

#[test]
fn memory_is_registered_once() {
    let _here = Here::new();
    let mut buffer = vec![0u8; 10_000];
    let (at, mut device) = (buffer.as_mut_ptr().cast::<c_void>(), 0);
    assert_eq!(call!(cuMemHostGetDevicePointer_v2(&mut device, at, 0)), CUDA_ERROR_INVALID_VALUE);
    cu!(cuMemHostRegister_v2(at, 10_000, 3));
    cu!(cuMemHostGetDevicePointer_v2(&mut device, at, 0));
    assert_eq!(device, at as u64);
    let inside = buffer[5000..].as_mut_ptr().cast::<c_void>();
    assert_eq!(call!(cuMemHostRegister_v2(inside, 10, 3)), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    assert_eq!(call!(cuMemHostUnregister(inside)), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    cu!(cuMemHostUnregister(at));
    assert_eq!(call!(cuMemHostUnregister(at)), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    let nowhere = 0x2000_0000_0000usize as *mut c_void;
    assert_eq!(call!(cuMemHostRegister_v2(nowhere, 4096, 3)), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn pinned_memory_comes_and_goes() {
    let _here = Here::new();
    let (mut at, mut flags, mut device) = (std::ptr::null_mut(), 0, 0);
    cu!(cuMemHostAlloc(&mut at, 100_000, 3));
    cu!(cuMemHostGetFlags(&mut flags, at));
    cu!(cuMemHostGetDevicePointer_v2(&mut device, at, 0));
    assert_eq!((flags, device), (3, at as u64));
    assert_eq!(call!(cuMemFree_v2(device)), CUDA_ERROR_INVALID_VALUE, "it is not device memory");
    cu!(cuMemFreeHost(at));
    assert_eq!(call!(cuMemFreeHost(at)), CUDA_ERROR_INVALID_VALUE);
}

/// Devices know host memory by its second address alone, and see there what the host sees.
#[test]
fn host_memory_can_have_a_second_address() {
    let _alone = alone();
    let _here = Here::beside(0);
    emulator().set("SECOND_ADDRESS", "1");
    let stream = Stream::new();
    let mut pinned = std::ptr::null_mut();
    cu!(cuMemHostAlloc(&mut pinned, 8192, 3));
    // Registered where it lies, with what it holds already.
    let page = std::alloc::Layout::from_size_align(8192, 4096).unwrap();
    // SAFETY: the layout has bytes.
    let plain = unsafe { std::alloc::alloc_zeroed(page) };
    // SAFETY: inside it.
    unsafe { plain.add(4100).cast::<u32>().write(3) };
    cu!(cuMemHostRegister_v2(plain.cast(), 8192, 3));
    for host in [pinned.cast::<u8>(), plain] {
        let (word, mut device) = (host.wrapping_add(4100), 0);
        cu!(cuMemHostGetDevicePointer_v2(&mut device, word.cast(), 0));
        assert_ne!(device, word as u64);
        assert_eq!(call!(cuStreamWriteValue32_v2(stream.0, word as u64, 5, 0)), CUDA_ERROR_INVALID_VALUE);
        // SAFETY: aligned, inside memory that is there, and the stream does nothing yet.
        assert!(host != plain || unsafe { word.cast::<u32>().read_volatile() } == 3);
        cu!(cuStreamWriteValue32_v2(stream.0, device, 5, 0));
        stream.synchronize();
        // SAFETY: as above.
        assert_eq!(unsafe { word.cast::<u32>().read_volatile() }, 5);
        let mut seen = 0u64;
        let to = (&raw mut seen).cast();
        cu!(cuPointerGetAttribute(to, sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_POINTER, word as u64));
        assert_eq!(seen, device, "CU_POINTER_ATTRIBUTE_DEVICE_POINTER");
        cu!(cuPointerGetAttribute(to, sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_HOST_POINTER, device));
        assert_eq!(seen, word as u64, "CU_POINTER_ATTRIBUTE_HOST_POINTER");
    }
    cu!(cuMemFreeHost(pinned));
    cu!(cuMemHostUnregister(plain.cast()));
    emulator().set("SECOND_ADDRESS", "0");
    // SAFETY: allocated above with this layout.
    unsafe { std::alloc::dealloc(plain, page) };
}
