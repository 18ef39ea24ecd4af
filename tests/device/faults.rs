//! The driver refuses a call, any one of them: every rank gets either what it should or an error, before the deadline.

use std::time::{Duration, Instant};

use maypole::{Config, ReduceOp};

use crate::ranks::threads;
use crate::runner::{On, Test, checked};
use crate::world::{config, emulator};

pub const TESTS: &[Test] = &[
    Test { name: "faults: each call of the driver fails in turn", on: On::Emulator, run: sweep },
    Test { name: "faults: device memory runs out", on: On::Emulator, run: out_of_memory },
];

/// What ranks do with the driver: everything that a program does, from the context to the result.
fn session(rank: maypole::Communicator) -> Result<(), String> {
    use maypole::cuda::{Context, DeviceBuffer, Stream};
    let me = rank.rank() as u32;
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let context = Context::primary(0).map_err(|e| told(&e))?;
    let stream = Stream::new(&context).map_err(|e| told(&e))?;
    let mut buffer = DeviceBuffer::<u32>::new(&context, 3000).map_err(|e| told(&e))?;
    rank.attach(&context).map_err(|e| told(&e))?;
    buffer.copy_from(&[me + 1; 3000], &stream).map_err(|e| told(&e))?;
    let on = rank.on(&stream);
    for _ in 0..3 {
        on.all_reduce_in_place(&mut buffer, ReduceOp::Sum).map_err(|e| told(&e))?;
    }
    let shared = rank.alloc_device::<u32>(100).map_err(|e| told(&e))?;
    on.synchronize().map_err(|e| told(&e))?;
    let got = buffer.to_vec(&stream).map_err(|e| told(&e))?;
    // 1 + 2, doubled twice: anything else is wrong data.
    assert!(got.iter().all(|x| *x == 12), "rank {me} got {} in place of 12", got[0]);
    drop(shared);
    Ok(())
}

/// Every call that a session makes, at its first, its second and its last time.
fn sweep() {
    let mut config: Config = config(&[("MAYPOLE_DEVICE_WINDOW", "4096")]);
    config.timeout = Duration::from_secs(3);
    let world = || threads(2, &config, session);
    assert_eq!(world(), [Ok(()), Ok(())], "with nothing failing");
    let functions = [
        "cuDevicePrimaryCtxRetain",
        "cuCtxPushCurrent",
        "cuCtxGetDevice",
        "cuCtxGetCurrent",
        "cuStreamCreate",
        "cuStreamCreateWithPriority",
        "cuMemAlloc",
        "cuMemHostRegister",
        "cuMemHostGetDevicePointer",
        "cuMemHostAlloc",
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuFuncLoad",
        "cuLaunchKernel",
        "cuStreamBatchMemOp",
        "cuStreamWaitValue32",
        "cuStreamWriteValue32",
        "cuMemcpyHtoDAsync",
        "cuMemcpyDtoHAsync",
        "cuMemsetD8Async",
        "cuPointerGetAttributes",
        "cuStreamIsCapturing",
        "cuStreamSynchronize",
        "cuStreamQuery",
        "cuEventCreate",
        "cuEventRecord",
        "cuMemFree",
    ];
    let mut swept = 0;
    for function in functions {
        let before = emulator().calls(function);
        assert!(world().iter().all(Result::is_ok));
        let calls = emulator().calls(function) - before;
        let mut nths = vec![1, 2, calls / 2, calls];
        nths.retain(|nth| (1..=calls).contains(nth));
        nths.dedup();
        for nth in nths {
            emulator().set("FAIL", &format!("{function}:{nth}:CUDA_ERROR_UNKNOWN"));
            let began = Instant::now();
            let outcomes = world();
            emulator().set("FAIL", "");
            let took = began.elapsed();
            // Data was compared in there; a failure must have ended well before the test's own patience.
            assert!(took < Duration::from_secs(20), "{function}, time {nth}: took {took:?}: {outcomes:?}");
            println!("{function} #{nth}/{calls}: {:.1} s {outcomes:?}", took.as_secs_f64());
            swept += 1;
        }
    }
    checked(swept);
    assert!(swept > 20, "only {swept} failures were planted");
    // What failed has not spoilt the process.
    assert_eq!(world(), [Ok(()), Ok(())], "after all failures");
}

fn out_of_memory() {
    emulator().set("MEMORY", "64M");
    let mut config = config(&[]);
    // Two places of 16 MiB for each of two ranks fill it.
    config.set("MAYPOLE_DEVICE_WINDOW", "32M").unwrap();
    let errors = threads(2, &config, |comm| {
        let context = maypole::cuda::Context::primary(0).unwrap();
        let error = comm.attach(&context).unwrap_err().to_string();
        let mut sum = [1u32];
        comm.all_reduce_in_place(&mut sum, ReduceOp::Sum).unwrap();
        assert_eq!(sum, [2], "the communicator stays usable");
        checked(1);
        error
    });
    for error in errors {
        assert!(error.contains("memory"), "{error}");
    }
}
