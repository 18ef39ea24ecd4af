//! Stream memory operations.

use crate::cuda::*;

#[test]
fn comparisons_are_the_manuals() {
    let _here = Here::new();
    let (stream, word) = (Stream::new(), Word::new(0));
    // Flag, what is waited for, a word that does not do, one that does.
    let cases = [
        (0, 5, 4, 5),
        (0, 5, 4, 100),
        (0, 2, u32::MAX, 2),            // cyclic: the word has yet to wrap
        (0, u32::MAX, u32::MAX - 1, 3), // cyclic: it has
        (1, 5, 6, 5),
        (2, 6, 9, 2),
        (3, !4, 0x10, 0),
    ];
    for (flag, value, before, after) in cases {
        word.set(before);
        if flag == 3 {
            // NOR: some bit is in neither.
            word.set(4);
        }
        cu!(cuStreamWaitValue32_v2(stream.0, word.at(), value, flag));
        a_while();
        assert!(!stream.is_idle(), "flag {flag}, value {value}, word {before}");
        word.set(after);
        stream.synchronize();
    }
}

#[test]
fn words_in_device_memory_serve_too() {
    let _here = Here::new();
    let (first, second, memory) = (Stream::new(), Stream::new(), Memory::new(64));
    cu!(cuMemsetD32Async(memory.at, 0, 16, first.0));
    first.synchronize();
    cu!(cuStreamWaitValue32_v2(second.0, memory.at + 8, 3, 0));
    cu!(cuStreamWriteValue32_v2(second.0, memory.at + 12, 9, 0));
    cu!(cuStreamWriteValue32_v2(first.0, memory.at + 8, 3, 0));
    second.synchronize();
    assert_eq!(memory.read(4), [0, 0, 3, 9]);
}

#[test]
fn words_of_64_bits() {
    let _here = Here::new();
    let (first, second, memory) = (Stream::new(), Stream::new(), Memory::new(64));
    cu!(cuMemsetD32Async(memory.at, 0, 16, first.0));
    first.synchronize();
    cu!(cuStreamWaitValue64_v2(second.0, memory.at, 1 << 40, 0));
    cu!(cuStreamWriteValue64_v2(first.0, memory.at, u64::from(u32::MAX), 0));
    first.synchronize();
    a_while();
    assert!(!second.is_idle());
    cu!(cuStreamWriteValue64_v2(first.0, memory.at, 1 << 41, 0));
    second.synchronize();
}

fn operation(kind: u32, address: u64, value: u32) -> sys::CUstreamBatchMemOpParams {
    let pad = [u64::from(kind), address, u64::from(value), 0, 0, 0];
    sys::CUstreamBatchMemOpParams { pad }
}

#[test]
fn a_batch_runs_in_its_order() {
    let _here = Here::new();
    let (stream, gate, seen) = (Stream::new(), Word::new(0), Word::new(0));
    let (wait, write) = (1, 2);
    let mut batch = [
        operation(write, seen.at(), 1),
        operation(wait, gate.at(), 1),
        operation(write, seen.at(), 2),
        operation(write, seen.at(), 3),
    ];
    cu!(cuStreamBatchMemOp_v2(stream.0, 4, batch.as_mut_ptr(), 0));
    until("the first write", || seen.get() == 1);
    a_while();
    assert_eq!(seen.get(), 1);
    gate.set(1);
    stream.synchronize();
    assert_eq!(seen.get(), 3);
    batch[2] = operation(99, seen.at(), 1);
    assert_eq!(call!(cuStreamBatchMemOp_v2(stream.0, 4, batch.as_mut_ptr(), 0)), CUDA_ERROR_INVALID_VALUE);
    stream.synchronize();
    assert_eq!(seen.get(), 3, "a batch with a mistake does nothing");
}

/// As the manual has it: fewer than 256 operations, and a write without its barrier in the first version only.
#[test]
fn the_second_version_takes_less_than_256_and_always_has_its_barrier() {
    let _here = Here::new();
    let (stream, word) = (Stream::new(), Word::new(0));
    let (write, flush, barrier, without_barrier) = (2, 3, 6, 1);
    let code = call!(cuStreamWriteValue32_v2(stream.0, word.at(), 1, without_barrier));
    assert_eq!(code, CUDA_ERROR_INVALID_VALUE);
    let code = call!(cuStreamWriteValue64_v2(stream.0, word.at(), 1, without_barrier));
    assert_eq!(code, CUDA_ERROR_INVALID_VALUE);
    let mut lax = operation(write, word.at(), 1);
    lax.writeValue.flags = without_barrier;
    for (mut wrong, code) in [
        (lax, CUDA_ERROR_INVALID_VALUE),
        (operation(flush, 0, 0), CUDA_ERROR_NOT_SUPPORTED),
        // The kind of a barrier stands behind its number.
        (operation(barrier, 0, 0), CUDA_SUCCESS),
        (sys::CUstreamBatchMemOpParams { pad: [barrier as u64 | 7 << 32, 0, 0, 0, 0, 0] }, CUDA_ERROR_INVALID_VALUE),
    ] {
        assert_eq!(call!(cuStreamBatchMemOp_v2(stream.0, 1, &mut wrong, 0)), code);
    }
    let mut batch: Vec<_> = (1..=256).map(|value| operation(write, word.at(), value)).collect();
    assert_eq!(call!(cuStreamBatchMemOp_v2(stream.0, 256, batch.as_mut_ptr(), 0)), CUDA_ERROR_INVALID_VALUE);
    stream.synchronize();
    assert_eq!(word.get(), 0, "what was refused is not done");
    cu!(cuStreamBatchMemOp_v2(stream.0, 255, batch.as_mut_ptr(), 0));
    stream.synchronize();
    assert_eq!(word.get(), 255);
    assert_eq!(write_as_before(&stream, &word, 300, without_barrier), 0, "the first version has the flag");
    stream.synchronize();
    assert_eq!(word.get(), 300);
}

#[test]
fn an_address_must_be_a_word_that_devices_reach() {
    let _here = Here::new();
    let (stream, memory) = (Stream::new(), Memory::new(64));
    let unregistered = 0u32;
    for address in [memory.at + 2, memory.at + 64, &raw const unregistered as u64, 0] {
        let code = call!(cuStreamWaitValue32_v2(stream.0, address, 0, 0));
        assert_eq!(code, CUDA_ERROR_INVALID_VALUE, "{address:#x}");
        assert_eq!(call!(cuStreamWriteValue32_v2(stream.0, address, 0, 0)), CUDA_ERROR_INVALID_VALUE, "{address:#x}");
    }
    assert_eq!(call!(cuStreamWaitValue32_v2(stream.0, memory.at, 0, 9)), CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn a_word_of_another_context_must_be_portable() {
    let _here = Here::new();
    let (portable, mut own) = (Word::new(0), Box::new([0u32; 64]));
    cu!(cuMemHostRegister_v2(own.as_mut_ptr().cast(), 256, 2));
    let other = Here::beside(0);
    let stream = Stream::new();
    cu!(cuStreamWriteValue32_v2(stream.0, portable.at(), 5, 0));
    let address = own.as_ptr() as u64;
    assert_eq!(call!(cuStreamWriteValue32_v2(stream.0, address, 5, 0)), CUDA_ERROR_INVALID_VALUE);
    stream.synchronize();
    assert_eq!(portable.get(), 5);
    drop((stream, other));
}
