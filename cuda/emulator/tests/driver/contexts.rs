//! Devices and contexts.

use crate::cuda::*;
use std::ffi::CStr;

#[test]
fn devices_are_told_apart() {
    let _here = Here::new();
    let (mut count, mut device, mut total) = (0, -1, 0);
    cu!(cuDeviceGetCount(&mut count));
    assert_eq!(count, 2);
    cu!(cuDeviceGet(&mut device, 1));
    assert_eq!(device, 1);
    assert_eq!(call!(cuDeviceGet(&mut device, 2)), CUDA_ERROR_INVALID_DEVICE);
    cu!(cuDeviceTotalMem_v2(&mut total, 0));
    assert_eq!(total, 4 << 30);
    let uuid = |device| {
        let mut uuid = sys::CUuuid { bytes: [0; 16] };
        cu!(cuDeviceGetUuid_v2(&mut uuid, device));
        uuid.bytes
    };
    assert_eq!(uuid(0), uuid(0));
    assert_ne!(uuid(0), uuid(1));
    let mut name = [1; 100];
    cu!(cuDeviceGetName(name.as_mut_ptr(), 10, 0));
    // SAFETY: the call has put a zero within ten characters.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    assert_eq!(name.to_str().unwrap(), "Maypole e");
}

#[test]
fn codes_have_names_and_meanings() {
    emulator();
    let (mut name, mut text) = (std::ptr::null(), std::ptr::null());
    cu!(cuGetErrorName(CUDA_ERROR_ILLEGAL_ADDRESS, &mut name));
    cu!(cuGetErrorString(CUDA_ERROR_ILLEGAL_ADDRESS, &mut text));
    // SAFETY: both are texts of the driver's, which stay.
    let (name, text) = unsafe { (CStr::from_ptr(name), CStr::from_ptr(text)) };
    assert_eq!(name.to_str().unwrap(), "CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(text.to_str().unwrap(), "an illegal memory access was encountered");
    let mut name = std::ptr::null();
    cu!(cuGetErrorName(CUDA_SUCCESS, &mut name));
    // SAFETY: as above.
    assert_eq!(unsafe { CStr::from_ptr(name) }.to_str().unwrap(), "CUDA_SUCCESS");
}

fn current() -> sys::CUcontext {
    let mut context = std::ptr::null_mut();
    cu!(cuCtxGetCurrent(&mut context));
    context
}

#[test]
fn contexts_are_pushed_and_popped_per_thread() {
    let here = Here::new();
    assert_eq!(current(), here.context);
    assert!(std::thread::spawn(|| current().is_null()).join().unwrap());
    let other = Here::beside(1);
    let (mut device, mut popped) = (-1, std::ptr::null_mut());
    cu!(cuCtxGetDevice(&mut device));
    assert_eq!((current(), device), (other.context, 1));
    cu!(cuCtxPopCurrent_v2(&mut popped));
    assert_eq!((popped, current()), (other.context, here.context));
    cu!(cuCtxPushCurrent_v2(other.context));
    cu!(cuCtxSetCurrent(here.context));
    assert_eq!(current(), here.context);
}

#[test]
fn nothing_works_without_a_context_or_in_one_that_is_gone() {
    let here = Here::new();
    let mut at = 0;
    std::thread::spawn(|| {
        let mut at = 0;
        assert_eq!(call!(cuMemAlloc_v2(&mut at, 4)), CUDA_ERROR_INVALID_CONTEXT);
    })
    .join()
    .unwrap();
    let stream = Stream::new();
    cu!(cuCtxPushCurrent_v2(here.context));
    cu!(cuCtxDestroy_v2(here.context));
    assert_eq!(call!(cuMemAlloc_v2(&mut at, 4)), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    assert_eq!(call!(cuStreamQuery(stream.0)), CUDA_ERROR_CONTEXT_IS_DESTROYED);
    assert_eq!(call!(cuCtxSetCurrent(here.context)), CUDA_ERROR_INVALID_CONTEXT);
}

#[test]
fn the_primary_context_is_one_and_counted() {
    let _alone = alone();
    let (mut first, mut second, mut flags, mut active) = (std::ptr::null_mut(), std::ptr::null_mut(), 0, 0);
    cu!(cuDevicePrimaryCtxGetState(1, &mut flags, &mut active));
    assert_eq!(active, 0);
    cu!(cuDevicePrimaryCtxRetain(&mut first, 1));
    cu!(cuDevicePrimaryCtxRetain(&mut second, 1));
    assert_eq!(first, second);
    cu!(cuDevicePrimaryCtxRelease_v2(1));
    cu!(cuDevicePrimaryCtxGetState(1, &mut flags, &mut active));
    assert_eq!(active, 1);
    assert_eq!(call!(cuCtxDestroy_v2(first)), CUDA_ERROR_INVALID_CONTEXT);
    cu!(cuDevicePrimaryCtxRelease_v2(1));
    assert_eq!(call!(cuDevicePrimaryCtxRelease_v2(1)), CUDA_ERROR_INVALID_CONTEXT);
}

#[test]
fn peers_are_let_in_once() {
    let here = Here::new();
    let other = Here::beside(1);
    let mut can = 0;
    cu!(cuDeviceCanAccessPeer(&mut can, 0, 1));
    assert_eq!(can, 1);
    cu!(cuDeviceCanAccessPeer(&mut can, 0, 0));
    assert_eq!(can, 0);
    cu!(cuCtxEnablePeerAccess(here.context, 0));
    assert_eq!(call!(cuCtxEnablePeerAccess(here.context, 0)), CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
    assert_eq!(call!(cuCtxEnablePeerAccess(other.context, 0)), CUDA_ERROR_INVALID_DEVICE);
    cu!(cuCtxDisablePeerAccess(here.context));
    assert_eq!(call!(cuCtxDisablePeerAccess(here.context)), CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
}
