//! How ranks' devices come together where something is unusual: as many peers as a device can have, two contexts of one
//! device, memory that was mapped in pieces.

mod ranks;
mod streams;

use std::io::Write;
use std::sync::{Arc, Barrier, Mutex};

use maypole::config::{DeviceStaging, TransportChoice};
use maypole::cuda::{Context, DeviceSlice, DeviceSliceMut};
use maypole::{Call, Collective, Communicator, Config, DataType, Error, ReduceOp, Result};
use maypole_cuda_emulator::testing::{self, Segments};
use maypole_transports::lock::MutexGuard;
use ranks::{Job, role, say};
use streams::{Rank, alone};

fn config(staging: DeviceStaging) -> Config {
    let mut config = ranks::config(TransportChoice::Auto);
    config.device_staging = staging;
    config.device_window = 64 << 10;
    config
}

/// The only test that runs, with two devices, which is settled by whoever asks the driver first.
fn with_two_devices() -> MutexGuard<'static, ()> {
    let alone = alone();
    testing::load().set("DEVICES", "2");
    alone
}

/// Where a rank's operations are staged, in the words of `describe`.
fn staging(rank: &Rank) -> String {
    let call = Call { collective: Collective::AllReduce, dtype: DataType::F32, count: 1, op: ReduceOp::Sum, root: 0 };
    let said = rank.comm.on(&rank.stream).describe(&call, None).unwrap();
    said.split(", ").find_map(|part| part.strip_prefix("staging in ")).expect("a part about staging").to_string()
}

/// Attach the ranks of two threads, each to a device of its own, while the driver refuses one of them access to its peer;
/// how each fared, and where what they exchange lies.
fn refused_a_peer(asked: DeviceStaging) -> Vec<Result<String>> {
    let emulator = testing::load();
    emulator.set("FAIL", "cuCtxEnablePeerAccess:1:CUDA_ERROR_TOO_MANY_PEERS");
    let before = emulator.calls("cuCtxEnablePeerAccess");
    let ended = ranks::threads(2, &config(asked), |comm| {
        let context = Context::primary(comm.rank()).unwrap();
        let stream = maypole::cuda::Stream::new(&context).unwrap();
        let rank = Rank { comm, context, stream };
        let attached = rank.comm.attach(&rank.context);
        let ended = attached.map(|()| {
            for count in [1, 1000, 100_000] {
                rank.sum(count).unwrap();
            }
            let shared = rank.comm.alloc_device::<f32>(1000).unwrap();
            assert!(!shared.is_shared(), "it would have to be reached");
            staging(&rank)
        });
        let mut sum = [1.0f32];
        rank.comm.all_reduce_in_place(&mut sum, ReduceOp::Sum).unwrap();
        assert_eq!(sum, [2.0], "host memory serves in any case");
        ended
    });
    assert!(emulator.calls("cuCtxEnablePeerAccess") > before, "nobody asked for access");
    emulator.set("FAIL", "");
    ended
}

#[test]
fn with_too_many_peers_all_ranks_go_through_host_memory() {
    let _alone = with_two_devices();
    for ended in refused_a_peer(DeviceStaging::Auto) {
        assert_eq!(ended.unwrap(), "pinned host memory");
    }
}

#[test]
fn with_too_many_peers_staging_on_the_device_is_an_error_on_all_ranks() {
    let _alone = with_two_devices();
    for ended in refused_a_peer(DeviceStaging::Device) {
        let error = ended.unwrap_err().to_string();
        assert!(error.contains("CUDA_ERROR_TOO_MANY_PEERS"), "{error}");
    }
}

/// Processes get access when they open each other's memory.
#[test]
fn processes_with_too_many_peers_go_through_host_memory() {
    role(|_| {
        let rank = Rank::of(Communicator::from_env().unwrap());
        rank.sum(100_000).unwrap();
        say(staging(&rank));
    });
    let refused = ("MAYPOLE_EMULATOR_FAIL", "cuIpcOpenMemHandle:1+:CUDA_ERROR_TOO_MANY_PEERS".to_string());
    let places = [(0, 3, vec![]), (1, 3, vec![refused]), (2, 3, vec![])];
    let test = "processes_with_too_many_peers_go_through_host_memory";
    let mut job = Job::start_at(test, "", &places, &streams::environment());
    for (_, said) in job.hear(&[0, 1, 2]) {
        assert_eq!(said, "pinned host memory");
    }
    job.end(&[0, 1, 2]);
}

/// What this process logs from now on.
fn listen() -> Arc<Mutex<Vec<u8>>> {
    struct Writer(Arc<Mutex<Vec<u8>>>);
    impl Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let heard = Arc::new(Mutex::new(Vec::new()));
    let writer = heard.clone();
    tracing_subscriber::fmt().with_writer(move || Writer(writer.clone())).init();
    heard
}

/// The streams of a process share hardware queues, whichever communicators they serve: where a process has several, that
/// is said once, unless it has asked for as many queues.
#[test]
fn a_process_with_several_communicators_is_told_to_ask_for_hardware_queues() {
    role(|_| {
        let heard = listen();
        let warnings = || String::from_utf8_lossy(&heard.lock().unwrap()).matches("communicators and CUDA_").count();
        let first = Rank::of(Communicator::from_env().unwrap());
        first.sum(10).unwrap();
        let one = warnings();
        let others: Vec<Rank> = (0..2).map(|_| Rank::of(first.comm.duplicate().unwrap())).collect();
        others.iter().for_each(|other| other.sum(10).unwrap());
        say(format!("{one} {}", warnings()));
    });
    let test = "a_process_with_several_communicators_is_told_to_ask_for_hardware_queues";
    // Empty is as good as not set.
    for (queues, warnings) in [("", "0 1"), ("2", "0 1"), ("3", "0 0")] {
        let places = [0, 1].map(|rank| (rank, 2, vec![("CUDA_DEVICE_MAX_CONNECTIONS", queues.to_string())]));
        let mut job = Job::start_at(test, "", &places, &streams::environment());
        for (_, said) in job.hear(&[0, 1]) {
            assert_eq!(said, warnings, "CUDA_DEVICE_MAX_CONNECTIONS={queues}");
        }
        job.end(&[0, 1]);
    }
}

#[test]
fn two_contexts_of_one_device_are_told_what_to_do() {
    let _alone = with_two_devices();
    let errors = ranks::threads(2, &config(DeviceStaging::Auto), |comm| {
        let own = (comm.rank() == 1).then(streams::create_context);
        let context = match own {
            // SAFETY: it is destroyed after all that uses it.
            Some(raw) => unsafe { Context::of(raw) }.unwrap(),
            None => Context::primary(0).unwrap(),
        };
        let error = comm.attach(&context).unwrap_err();
        // And with one context it works.
        let primary = Context::primary(0).unwrap();
        let stream = maypole::cuda::Stream::new(&primary).unwrap();
        let rank = Rank { comm, context: primary, stream };
        rank.sum(1000).unwrap();
        rank.comm.barrier().unwrap();
        drop(context);
        own.into_iter().for_each(streams::destroy_context);
        error
    });
    for error in errors {
        assert!(matches!(&error, Error::Device { .. }), "both have one: {error:?}");
        let text = error.to_string();
        assert!(text.contains("different CUDA contexts of device 0") && text.contains("primary"), "{text}");
    }
}

/// A tensor of PyTorch's with `expandable_segments` lies in several mappings.
#[test]
fn memory_that_was_mapped_in_pieces_is_one_buffer() {
    let _alone = with_two_devices();
    // It goes with its last user otherwise, and the memory with it.
    let _context = Context::primary(0).unwrap();
    let (kept, meeting) = (Mutex::new(Vec::new()), Barrier::new(2));
    streams::threads(2, &config(DeviceStaging::Auto), |rank| {
        let _entered = rank.context.enter().unwrap();
        let segments = testing::load().segments(0, 5);
        // From inside the first to inside the last.
        let (at, count) = (segments.address() + 1000, (segments.bytes() - 2000) / 4);
        // SAFETY: the memory stays to the end of the test, and nothing else uses it.
        let buffer = || unsafe { DeviceSliceMut::<f32>::from_raw(at, count) };
        let on = rank.comm.on(&rank.stream);
        // 1 + 2, and twice that, twice.
        let (input, mut output) = (rank.full(1.0 + rank.comm.rank() as f32, count), rank.full(0.0f32, count));
        on.all_reduce(&input, buffer(), ReduceOp::Sum).unwrap();
        on.all_reduce_in_place(buffer(), ReduceOp::Sum).unwrap();
        // SAFETY: as above.
        let result = unsafe { DeviceSlice::<f32>::from_raw(at, count) };
        on.all_reduce(result, &mut output, ReduceOp::Sum).unwrap();
        on.synchronize().unwrap();
        assert!(rank.read(&output).iter().all(|x| *x == 12.0));
        // SAFETY: it is refused.
        let beyond = unsafe { DeviceSliceMut::<f32>::from_raw(at, count + Segments::PIECE / 4) };
        let error = on.all_reduce_in_place(beyond, ReduceOp::Sum).unwrap_err().to_string();
        assert!(error.contains("reach beyond"), "{error}");
        meeting.wait();
        kept.lock().unwrap().push(segments);
    });
}
