//! Turns that would never come: an operation of the user's that calls the communicator that runs it, and operations
//! behind one that is stuck when the communicator has failed. In processes, as it once hung there.

mod ranks;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use maypole::config::TransportChoice;
use maypole::{Communicator, DataType, Error, ReduceOp, Result, UserOp};
use ranks::{Job, PATIENCE, config, role, say, threads, verdict};

/// What an operation calls, and what it was told.
struct Caller<'a> {
    comm: &'a Communicator,
    call: fn(&Communicator) -> Result<()>,
    refused: AtomicUsize,
}

/// # Safety
/// As for [`maypole::UserFnWith`], for f32; the context is a [`Caller`].
unsafe fn calling(context: *const (), dst: *mut u8, a: *const u8, b: *const u8, count: usize) {
    // SAFETY: the caller's promise.
    let caller = unsafe { &*context.cast::<Caller<'_>>() };
    if let Err(error) = (caller.call)(caller.comm) {
        let (text, wanted) = (error.to_string(), "called the communicator that runs it, and would wait for itself");
        assert!(matches!(error, Error::Argument { .. }) && text.contains(wanted), "{text}");
        caller.refused.fetch_add(1, Ordering::Relaxed);
    }
    for at in (0..count).map(|i| 4 * i) {
        // SAFETY: as above.
        unsafe {
            let sum = a.add(at).cast::<f32>().read_unaligned() + b.add(at).cast::<f32>().read_unaligned();
            dst.add(at).cast::<f32>().write_unaligned(sum);
        }
    }
}

fn operation<C>(context: &C, function: maypole::UserFnWith) -> ReduceOp {
    // SAFETY: it does what it should with that context, which outlives the calls.
    ReduceOp::User(unsafe { UserOp::with_context(4, DataType::F32, function, std::ptr::from_ref(context).cast()) })
}

/// What an operation may try.
const CALLS: [fn(&Communicator) -> Result<()>; 8] = [
    |c| c.barrier(),
    |c| c.all_gather(&[1u8], &mut vec![0; c.size()]),
    |c| c.all_gather_v(&[1u8], &mut vec![0; c.size()], &vec![1; c.size()]),
    |c| maypole::scope(|s| c.start(s).barrier()?.wait().map(drop)),
    |c| {
        let mut buffer = [1.0f32; 2];
        c.group(|g| {
            g.all_reduce_in_place(&mut buffer, ReduceOp::Sum);
            Ok(())
        })
    },
    |c| c.persistent().barrier()?.run().map(drop),
    |c| c.duplicate().map(drop),
    |c| Err(c.refuse("an operation has doubts".into())),
];

/// The sum by an operation that calls its own communicator is right, and the operation was told.
fn nested(comm: &Communicator) {
    for (number, call) in CALLS.into_iter().enumerate() {
        for asynchronous in [false, true] {
            let caller = Caller { comm, call, refused: AtomicUsize::new(0) };
            let (op, mut buffer) = (operation(&caller, calling), [1.0f32; 8]);
            let summed = match asynchronous {
                false => comm.all_reduce_in_place(&mut buffer, op),
                true => maypole::scope(|s| comm.start(s).all_reduce_in_place(&mut buffer, op)?.wait().map(drop)),
            };
            summed.unwrap_or_else(|error| panic!("call {number}: {error}"));
            assert_eq!(buffer, [comm.size() as f32; 8]);
            assert!(caller.refused.into_inner() > 0, "call {number} was not refused");
        }
    }
    // Another communicator is none of its own.
    let other = comm.duplicate().unwrap();
    let caller = Caller { comm: &other, call: |c| c.persistent().barrier().map(drop), refused: AtomicUsize::new(0) };
    comm.all_reduce_in_place(&mut [1.0f32; 8], operation(&caller, calling)).unwrap();
    assert_eq!(caller.refused.into_inner(), 0);
    // And what cannot return an error ends the communicator, in place of hanging there.
    let part = comm.duplicate().unwrap();
    let sets = |c: &Communicator| {
        c.set_timeout(PATIENCE);
        Ok(())
    };
    let caller = Caller { comm: &part, call: sets, refused: AtomicUsize::new(0) };
    let first = part.all_reduce_in_place(&mut [1.0f32; 8], operation(&caller, calling));
    let error = first.and_then(|()| part.barrier()).expect_err("it panics");
    assert!(verdict(&error).to_string().contains("would wait for itself"), "{error}");
}

#[test]
fn an_operation_that_calls_its_own_communicator_is_told() {
    role(|transport| {
        let transport = if transport == "tcp" { TransportChoice::Tcp } else { TransportChoice::Auto };
        nested(&Communicator::from_env_with(config(transport)).unwrap());
        say("done");
    });
    for transport in ["auto", "tcp"] {
        let mut job = Job::start("an_operation_that_calls_its_own_communicator_is_told", transport, 2, &[]);
        job.hear(&[0, 1]);
        job.end(&[0, 1]);
    }
}

/// # Safety
/// As for [`maypole::UserFnWith`], for f32; the context says when it may return.
unsafe fn stuck(context: *const (), _: *mut u8, _: *const u8, _: *const u8, _: usize) {
    // SAFETY: the caller's promise.
    let released = unsafe { &*context.cast::<AtomicBool>() };
    let start = Instant::now();
    while !released.load(Ordering::Acquire) && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn who_waits_behind_a_stuck_operation_hears_the_verdict() {
    threads(2, &config(TransportChoice::Auto), |comm| {
        let comm = &comm;
        if comm.rank() == 1 {
            let first = comm.all_reduce_in_place(&mut [1.0f32; 4], ReduceOp::User(named_alike()));
            first.and_then(|()| comm.barrier()).expect_err("rank 0 aborts");
            return;
        }
        let released = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stuck = scope.spawn(|| comm.all_reduce_in_place(&mut [1.0f32; 4], operation(&released, stuck)));
            while comm.verdict().is_none() && !stuck.is_finished() {
                // It has its turn by now, or will have it before those below.
                std::thread::sleep(Duration::from_millis(300));
                let waits = [scope.spawn(|| comm.barrier()), scope.spawn(|| comm.barrier())];
                let later = maypole::scope(|s| {
                    let queued = comm.start(s).barrier().unwrap();
                    std::thread::sleep(Duration::from_millis(300));
                    comm.abort("enough of this");
                    queued.wait().map(drop)
                });
                for result in waits.into_iter().map(|wait| wait.join().unwrap()).chain([later]) {
                    assert!(verdict(&result.expect_err("aborted")).to_string().contains("enough of this"));
                }
            }
            assert!(!stuck.is_finished(), "the others have only heard because it ended");
            released.store(true, Ordering::Release);
            let _ = stuck.join().unwrap();
        });
        // The numbers that were given up are passed over.
        let start = Instant::now();
        comm.barrier().expect_err("it has failed");
        comm.set_timeout(PATIENCE);
        assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    });
}

/// What rank 1 calls the operation.
fn named_alike() -> UserOp {
    /// # Safety
    /// As for [`maypole::UserFn`].
    unsafe fn keep(_: *mut u8, _: *const u8, _: *const u8, _: usize) {}
    // SAFETY: it keeps one of its operands, which is an operation.
    unsafe { UserOp::from_raw(4, DataType::F32, keep) }
}
