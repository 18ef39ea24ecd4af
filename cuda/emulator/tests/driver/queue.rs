//! The switches `QUEUE` and `ALLOCATION_WAITS`: calls that wait for the device, and who is held up by them.

use crate::cuda::*;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Run `body` on a thread with the same context, and see whether it is through after a while.
fn is_held_up(here: &Here, then: impl FnOnce(), body: impl FnOnce() + Send) -> bool {
    let (context, done) = (here.context as usize, AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cu!(cuCtxSetCurrent(std::ptr::without_provenance_mut(context)));
            body();
            done.store(true, SeqCst);
        });
        a_while();
        let held_up = !done.load(SeqCst);
        // Let go before anything can fail, or the scope would wait for ever.
        then();
        held_up
    })
}

#[test]
fn a_full_queue_holds_up_whoever_queues_in_the_context() {
    let _alone = alone();
    let (other_context, here) = (Here::beside(0), Here::beside(0));
    let (full, other, gate, word) = (Stream::new(), Stream::new(), Word::new(0), Word::new(0));
    let (full_raw, other_raw, at) = (full.0 as usize, other.0 as usize, word.at());
    let raw = std::ptr::without_provenance_mut::<sys::CUstream_st>;
    emulator().set("QUEUE", "8");
    cu!(cuStreamWaitValue32_v2(full.0, gate.at(), 1, 0));
    (0..7).for_each(|_| cu!(cuStreamWriteValue32_v2(full.0, word.at(), 1, 0)));
    // Another stream has a queue of its own.
    cu!(cuStreamWriteValue32_v2(other.0, word.at(), 2, 0));
    other.synchronize();
    let ninth = move || cu!(cuStreamWriteValue32_v2(raw(full_raw), at, 3, 0));
    let beside = move || cu!(cuStreamWriteValue32_v2(raw(other_raw), at, 4, 0));
    let mut held_up = [false; 3];
    let (second, third) = held_up.split_at_mut(1);
    second[0] = is_held_up(
        &here,
        || {
            // While the ninth command waits for room, nothing is queued in its context; in another there is.
            let opened = || gate.set(1);
            third[1] = is_held_up(&other_context, || {}, || drop(Stream::new()));
            third[0] = is_held_up(&here, opened, beside);
        },
        ninth,
    );
    full.synchronize();
    other.synchronize();
    emulator().set("QUEUE", "0");
    assert_eq!(held_up, [true, true, false], "the call, one on another stream, one in another context");
}

#[test]
fn allocations_wait_for_the_context_if_told_to() {
    let _alone = alone();
    let here = Here::beside(0);
    for waits in [false, true] {
        emulator().set("ALLOCATION_WAITS", if waits { "1" } else { "0" });
        type Allocate = fn();
        let kinds: [(Allocate, bool); 3] = [
            (|| drop(Memory::new(1000)), waits),
            (
                || {
                    let mut at = std::ptr::null_mut();
                    cu!(cuMemHostAlloc(&mut at, 1000, 0));
                },
                waits,
            ),
            (
                || {
                    let (mut at, stream) = (0, Stream::new());
                    cu!(cuMemAllocAsync(&mut at, 1000, stream.0));
                },
                false,
            ),
        ];
        for (which, (allocate, expected)) in kinds.into_iter().enumerate() {
            // What frees what it has allocated waits for the context anyway.
            if which == 0 && !waits {
                continue;
            }
            let (stream, gate) = (Stream::new(), Word::new(0));
            cu!(cuStreamWaitValue32_v2(stream.0, gate.at(), 1, 0));
            let held_up = is_held_up(&here, || gate.set(1), allocate);
            stream.synchronize();
            assert_eq!(held_up, expected, "kind {which}, ALLOCATION_WAITS={waits}");
        }
    }
}
