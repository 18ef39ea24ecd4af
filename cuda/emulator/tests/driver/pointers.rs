//! What the driver says about addresses.

use crate::cuda::*;
use maypole_cuda_emulator::testing::Segments;
use std::ffi::c_void;

fn attribute<T: Default>(which: u32, address: u64) -> Result<T, CUresult> {
    let mut value = T::default();
    // SAFETY: every number asked for below is one that cudarc's enum has.
    let which = unsafe { std::mem::transmute::<u32, sys::CUpointer_attribute>(which) };
    match call!(cuPointerGetAttribute((&raw mut value).cast::<c_void>(), which, address)) {
        CUDA_SUCCESS => Ok(value),
        code => Err(code),
    }
}

#[test]
fn device_memory_is_told_from_the_hosts() {
    let here = Here::new();
    let (memory, word, unknown) = (Memory::new(100), Word::new(0), 0u32);
    assert_eq!(attribute::<u32>(2, memory.at + 50), Ok(2), "device");
    assert_eq!(attribute::<u32>(2, word.at()), Ok(1), "host");
    assert_eq!(attribute::<u32>(2, &raw const unknown as u64), Err(CUDA_ERROR_INVALID_VALUE));
    assert_eq!(attribute::<usize>(1, memory.at), Ok(here.context as usize));
    assert_eq!(attribute::<u64>(11, memory.at + 50), Ok(memory.at));
    assert_eq!(attribute::<usize>(12, memory.at + 50), Ok(100));
    assert_eq!(attribute::<u64>(4, memory.at), Err(CUDA_ERROR_INVALID_VALUE), "it has no host address");
    let other = Memory::new(100);
    assert_ne!(attribute::<u64>(7, memory.at), attribute::<u64>(7, other.at), "buffer ids differ");
}

#[test]
fn managed_memory_is_both() {
    let _here = Here::new();
    let mut at = 0;
    cu!(cuMemAllocManaged(&mut at, 100, 1));
    assert_eq!((attribute::<u8>(8, at), attribute::<u32>(2, at), attribute::<u64>(4, at)), (Ok(1), Ok(2), Ok(at)));
    cu!(cuMemFree_v2(at));
}

#[test]
fn memory_of_a_pool_belongs_to_no_context() {
    let _here = Here::new();
    let (memory, stream, mut at) = (Memory::new(100), Stream::new(), 0);
    cu!(cuMemAllocAsync(&mut at, 100, stream.0));
    let of = |at| [1, 17].map(|which| attribute::<usize>(which, at).unwrap() != 0);
    assert_eq!((of(memory.at), of(at)), ([true, false], [false, true]), "context and pool");
    assert_eq!([memory.at, at].map(|at| attribute::<u8>(10, at)), [Ok(1), Ok(0)], "whether it can be exported");
    cu!(cuMemFree_v2(at));
}

/// "Not necessarily the size of the mapped region, but the size of the mappable address range."
#[test]
fn of_mapped_memory_the_attributes_are_those_of_the_reservation() {
    let _here = Here::new();
    let segments = emulator().segments(0, 3);
    let (at, piece) = (segments.address(), Segments::PIECE);
    for inside in [at, at + 5, at + 2 * piece as u64] {
        assert_eq!(attribute::<u64>(11, inside), Ok(at));
        assert_eq!(attribute::<usize>(12, inside), Ok(4 * piece), "one more piece of addresses is reserved");
        let (mut base, mut bytes) = (0, 0);
        cu!(cuMemGetAddressRange_v2(&mut base, &mut bytes, inside));
        assert_eq!((base, bytes), (at + (inside - at) / piece as u64 * piece as u64, piece));
    }
    let behind = at + 3 * piece as u64;
    assert_eq!(attribute::<u64>(11, behind), Err(CUDA_ERROR_INVALID_VALUE), "nothing is mapped there");
}

#[test]
fn several_at_once_are_no_error_for_a_strange_address() {
    let _here = Here::new();
    let _other = Here::beside(1);
    let (memory, unknown) = (Memory::new(100), 0u32);
    let ask = |address: u64| {
        let (mut kind, mut ordinal, mut managed) = (99u32, 99i32, 99u8);
        let mut which = [
            sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
            sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
            sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED,
        ];
        let mut to = [(&raw mut kind).cast(), (&raw mut ordinal).cast(), (&raw mut managed).cast::<c_void>()];
        cu!(cuPointerGetAttributes(3, which.as_mut_ptr(), to.as_mut_ptr(), address));
        (kind, ordinal, managed)
    };
    assert_eq!(ask(memory.at), (2, 1, 0));
    assert_eq!(ask(&raw const unknown as u64), (0, -2, 0));
}
