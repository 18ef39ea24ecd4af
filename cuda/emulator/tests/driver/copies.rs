//! When copies return: the manual's rules for pageable and pinned memory.

use crate::cuda::*;
use std::ffi::c_void;

fn pinned(words: usize) -> &'static mut [u32] {
    let mut at = std::ptr::null_mut();
    cu!(cuMemAllocHost_v2(&mut at, words * 4));
    // SAFETY: as many words were allocated, and zeroed by the system; they go with the context.
    unsafe { std::slice::from_raw_parts_mut(at.cast(), words) }
}

#[test]
fn pageable_memory_is_read_when_the_call_is_made() {
    let _here = Here::new();
    let (stream, word, memory, mut data) = (Stream::new(), Word::new(0), Memory::new(4000), vec![1u32; 1000]);
    word.hold(stream.0);
    cu!(cuMemcpyHtoDAsync_v2(memory.at, data.as_ptr().cast::<c_void>(), 4000, stream.0));
    data.fill(2);
    word.set(1);
    stream.synchronize();
    assert_eq!(memory.read(1000), [1; 1000]);
}

#[test]
fn pinned_memory_is_read_when_the_copy_runs() {
    let _here = Here::new();
    let (stream, word, memory, data) = (Stream::new(), Word::new(0), Memory::new(4000), pinned(1000));
    data.fill(1);
    word.hold(stream.0);
    cu!(cuMemcpyHtoDAsync_v2(memory.at, data.as_ptr().cast::<c_void>(), 4000, stream.0));
    data.fill(2);
    word.set(1);
    stream.synchronize();
    assert_eq!(memory.read(1000), [2; 1000]);
}

#[test]
fn a_copy_to_pinned_memory_returns_before_it_is_done_and_one_to_pageable_memory_after() {
    let here = Here::new();
    let (stream, word, memory, data) = (Stream::new(), Word::new(0), Memory::new(4000), pinned(1000));
    cu!(cuMemsetD32Async(memory.at, 7, 1000, stream.0));
    word.hold(stream.0);
    cu!(cuMemcpyDtoHAsync_v2(data.as_mut_ptr().cast(), memory.at, 4000, stream.0));
    assert_eq!(data[0], 0);
    let (context, at, queue) = (here.context as usize, memory.at, stream.0 as usize);
    let pageable = std::thread::spawn(move || {
        cu!(cuCtxSetCurrent(context as sys::CUcontext));
        let mut data = vec![0u32; 1000];
        cu!(cuMemcpyDtoHAsync_v2(data.as_mut_ptr().cast(), at, 4000, queue as sys::CUstream));
        data
    });
    a_while();
    assert!(!pageable.is_finished());
    word.set(1);
    assert_eq!(pageable.join().unwrap(), [7; 1000]);
    stream.synchronize();
    assert_eq!(data[..], [7; 1000]);
}

#[test]
fn a_plain_copy_to_a_device_may_arrive_later() {
    let _here = Here::new();
    let (blocking, word, memory, data) = (Stream::blocking(), Word::new(0), Memory::new(4), [9u32]);
    cu!(cuMemsetD32Async(memory.at, 1, 1, blocking.0));
    blocking.synchronize();
    word.hold(blocking.0);
    cu!(cuMemcpyHtoD_v2(memory.at, data.as_ptr().cast::<c_void>(), 4));
    assert_eq!(memory.read(1), [1], "a non-blocking stream does not wait for the default stream");
    word.set(1);
    cu!(cuCtxSynchronize());
    assert_eq!(memory.read(1), [9]);
}

#[test]
fn plain_copies_go_both_ways() {
    let _here = Here::new();
    let (first, second, data, mut back) = (Memory::new(4000), Memory::new(4000), vec![3u32; 1000], vec![0u32; 1000]);
    cu!(cuMemcpyHtoD_v2(first.at, data.as_ptr().cast::<c_void>(), 4000));
    cu!(cuMemcpyDtoD_v2(second.at, first.at, 4000));
    cu!(cuMemsetD16_v2(second.at, 0x0102, 2));
    cu!(cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), second.at, 4000));
    assert_eq!((back[0], &back[1..]), (0x0102_0102, &data[1..]));
    cu!(cuMemcpy(back.as_ptr() as u64, first.at, 8));
    assert_eq!(back[..2], [3, 3]);
}
