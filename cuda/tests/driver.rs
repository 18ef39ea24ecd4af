//! The wrappers of the driver's calls, on the emulator: what they find, what they adopt, what they refuse, and that
//! each refusal has the call's name.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use maypole_cuda::driver::Module;
use maypole_cuda::{
    Commands, Context, CudaError, DeviceMemory, Event, HostRegion, HostRegistration, ImportedMemory, Pinned, Stream,
    Where, Word, expect_device, locate, probe,
};
use maypole_cuda_emulator::testing::{self, Segments};

/// The emulator's switches hold for the whole process: one test at a time.
static TURN: parking_lot::Mutex<()> = parking_lot::Mutex::new(());

/// The emulator, with three devices, which the driver is asked for once.
fn emulated() -> &'static testing::Emulator {
    let emulator = testing::load();
    emulator.set("DEVICES", "3");
    emulator
}

/// Capture modes.
const GLOBAL: c_uint = 0;
const RELAXED: c_uint = 2;

/// Functions of the driver's that only programs beside Maypole call: what a framework does.
struct Framework(libloading::Library);

impl Framework {
    fn new() -> Framework {
        // SAFETY: the emulator is loaded already, under this name.
        Framework(unsafe { libloading::Library::new("libcuda.so") }.unwrap())
    }

    /// # Safety
    /// `F` is the type of the function `name`.
    unsafe fn function<F: Copy>(&self, name: &str) -> F {
        // SAFETY: the caller's promise.
        *unsafe { self.0.get::<F>(name.as_bytes()) }.unwrap()
    }

    /// A context of its own on device 0; current on this thread afterwards.
    fn context(&self) -> *mut c_void {
        let mut context = null_mut();
        // SAFETY: as cuda.h declares it.
        let create =
            unsafe { self.function::<unsafe extern "C" fn(*mut *mut c_void, c_uint, c_int) -> u32>("cuCtxCreate_v2") };
        // SAFETY: the pointer is valid.
        assert_eq!(unsafe { create(&mut context, 0, 0) }, 0);
        context
    }

    fn destroy_context(&self, context: *mut c_void) {
        // SAFETY: as cuda.h declares it.
        let destroy = unsafe { self.function::<unsafe extern "C" fn(*mut c_void) -> u32>("cuCtxDestroy_v2") };
        // SAFETY: made above, and nobody uses it any more.
        assert_eq!(unsafe { destroy(context) }, 0);
    }

    fn set_current(&self, context: *mut c_void) {
        // SAFETY: as cuda.h declares it.
        let set = unsafe { self.function::<unsafe extern "C" fn(*mut c_void) -> u32>("cuCtxSetCurrent") };
        // SAFETY: a living context, or none.
        assert_eq!(unsafe { set(context) }, 0);
    }

    /// A stream in the current context.
    fn stream(&self) -> *mut c_void {
        let mut stream = null_mut();
        // SAFETY: as cuda.h declares it.
        let create =
            unsafe { self.function::<unsafe extern "C" fn(*mut *mut c_void, c_uint) -> u32>("cuStreamCreate") };
        // SAFETY: the pointer is valid.
        assert_eq!(unsafe { create(&mut stream, 1) }, 0);
        stream
    }

    fn begin_capture(&self, stream: &Stream, mode: c_uint) {
        // SAFETY: as cuda.h declares it.
        let begin =
            unsafe { self.function::<unsafe extern "C" fn(*mut c_void, c_uint) -> u32>("cuStreamBeginCapture_v2") };
        // SAFETY: a living stream.
        assert_eq!(unsafe { begin(stream.raw(), mode) }, 0);
    }

    fn end_capture(&self, stream: &Stream) {
        let mut graph = null_mut();
        // SAFETY: as cuda.h declares it.
        let end = unsafe {
            self.function::<unsafe extern "C" fn(*mut c_void, *mut *mut c_void) -> u32>("cuStreamEndCapture")
        };
        // SAFETY: a stream that is captured, and a valid pointer.
        assert_eq!(unsafe { end(stream.raw(), &mut graph) }, 0);
    }
}

#[test]
fn facts_of_the_device() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let driver = probe().unwrap();
    assert!(driver.version() >= 12_040 && driver.device_count() == 3);
    let context = Context::primary(0).unwrap();
    assert!(!context.name().is_empty() && !context.pci().is_empty() && context.multiprocessors() > 0);
    assert!(context.capability().0 >= 7 && context.supports_memory_operations());
    let (free, total) = context.memory().unwrap();
    assert!(free <= total && total > 0);
    assert!(Arc::ptr_eq(&context, &Context::primary(0).unwrap()), "one context, one value");
    let error = Context::primary(99).unwrap_err();
    assert_eq!(error, CudaError::NoSuchDevice { ordinal: 99, count: 3 });
}

#[test]
fn contexts_and_streams_of_others_are_adopted() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let framework = Framework::new();
    // No context is current: the default stream has no meaning, and nothing comes into being.
    assert!(matches!(Context::current().unwrap_err(), CudaError::NoContext { .. }));
    // SAFETY: the default stream may always be named.
    assert!(matches!(unsafe { Stream::adopt(null_mut()) }.unwrap_err(), CudaError::NoContext { .. }));
    // A context by cuCtxCreate, current on this thread.
    let raw = framework.context();
    let context = Context::current().unwrap();
    assert_eq!(context.raw(), raw);
    assert!(!Arc::ptr_eq(&context, &Context::primary(0).unwrap()));
    let (theirs, by_default) = (framework.stream(), null_mut());
    framework.set_current(null_mut());
    // SAFETY: both streams are alive.
    let adopted = unsafe { Stream::adopt(theirs) }.unwrap();
    assert!(Arc::ptr_eq(adopted.context(), &context) && adopted.raw() == theirs);
    assert!(!adopted.is_urgent() && !Stream::new(&context).unwrap().is_urgent());
    let urgent = Stream::urgent(&context).unwrap();
    // SAFETY: the stream outlives the adopted one.
    assert!(urgent.is_urgent() && unsafe { Stream::adopt(urgent.raw()) }.unwrap().is_urgent());
    drop(urgent);
    {
        let _entered = context.enter().unwrap();
        // SAFETY: as above.
        let legacy = unsafe { Stream::adopt(by_default) }.unwrap();
        // SAFETY: as above.
        let same = unsafe { Stream::adopt(std::ptr::without_provenance_mut(1)) }.unwrap();
        assert!(Arc::ptr_eq(legacy.context(), &context) && legacy.is(&same) && !legacy.is(&adopted));
        legacy.synchronize().unwrap();
    }
    // The guard has put back what was current: nothing.
    assert!(matches!(Context::current().unwrap_err(), CudaError::NoContext { .. }));
    // Work goes through the adopted stream, with no context current.
    let memory = DeviceMemory::new(&context, 64).unwrap();
    memory.fill(0, 64, 1).unwrap();
    adopted.synchronize().unwrap();
    // SAFETY: the memory stays until the stream is synchronized.
    unsafe { memory.queue_fill(16, 16, 7, &adopted) }.unwrap();
    adopted.synchronize().unwrap();
    let mut bytes = [0; 64];
    memory.copy_to_host(0, &mut bytes).unwrap();
    assert!(bytes[..16] == [1; 16] && bytes[16..32] == [7; 16] && bytes[32..] == [1; 32]);
    drop((memory, adopted, context));
    framework.destroy_context(raw);
}

/// A framework passes the same handle with every call.
#[test]
fn a_stream_that_was_adopted_before_costs_two_calls() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let stream = Stream::urgent(&context).unwrap();
    let _entered = context.enter().unwrap();
    // SAFETY: the stream outlives what is adopted.
    let adopt = || unsafe { Stream::adopt(stream.raw()) }.unwrap();
    let first = adopt();
    let before = emulator.calls("*");
    let again = adopt();
    assert_eq!(emulator.calls("*") - before, 2);
    assert!(again.is(&first) && again.is_urgent() && again.number() == stream.number());
}

/// Drivers give handles again.
#[test]
fn a_new_stream_with_the_handle_of_one_that_was_adopted_is_itself() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    emulator.set("REUSED_HANDLES", "1");
    let contexts = [0, 1].map(|ordinal| Context::primary(ordinal).unwrap());
    let first = Stream::urgent(&contexts[0]).unwrap();
    let (raw, number) = (first.raw(), first.number());
    // SAFETY: the stream is alive.
    let adopted = unsafe { Stream::adopt(raw) }.unwrap();
    drop((adopted, first));
    let second = Stream::new(&contexts[1]).unwrap();
    assert_eq!(second.raw(), raw, "the emulator gives the handle again");
    // SAFETY: as above.
    let adopted = unsafe { Stream::adopt(raw) }.unwrap();
    assert!(Arc::ptr_eq(adopted.context(), &contexts[1]) && !adopted.is_urgent());
    assert!(adopted.number() == second.number() && adopted.number() != number);
    emulator.set("REUSED_HANDLES", "0");
}

/// As a framework sees it, a thread has a device from the beginning; as the driver sees it, no context.
#[test]
fn a_default_stream_on_a_new_thread_is_that_of_the_device_that_is_named() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let thread = || {
        let by_default = null_mut();
        // SAFETY: the default stream may always be named.
        assert!(matches!(unsafe { Stream::adopt(by_default) }.unwrap_err(), CudaError::NoContext { .. }));
        // SAFETY: as above.
        let stream = unsafe { Stream::adopt_on(by_default, 1) }.unwrap();
        assert!(Arc::ptr_eq(stream.context(), &Context::primary(1).unwrap()));
        let memory = DeviceMemory::new(stream.context(), 16).unwrap();
        // SAFETY: the memory stays until the stream is synchronized.
        unsafe { memory.queue_fill(0, 16, 7, &stream) }.unwrap();
        stream.synchronize().unwrap();
        let mut bytes = [0; 16];
        memory.copy_to_host(0, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 16]);
        assert!(matches!(Context::current().unwrap_err(), CudaError::NoContext { .. }), "nothing became current");
        // With another device's context current, the named one counts all the same.
        let other = Context::primary(0).unwrap();
        let _entered = other.enter().unwrap();
        // SAFETY: as above.
        assert!(unsafe { Stream::adopt_on(by_default, 1) }.unwrap().is(&stream));
        // SAFETY: as above.
        let refused = unsafe { Stream::adopt_on(by_default, 9) }.unwrap_err();
        assert_eq!(refused, CudaError::NoSuchDevice { ordinal: 9, count: 3 });
    };
    std::thread::spawn(thread).join().unwrap();
}

/// A green context's streams work in the primary context, whose modules and memory they share; so does whatever is made
/// while it is current, but for its default streams, which are others than the primary one's and have the same handles.
#[test]
fn green_contexts_are_their_devices_primary_one() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let (framework, primary) = (Framework::new(), Context::primary(0).unwrap());
    let (mut green, mut current, mut raw) = (null_mut(), null_mut(), null_mut());
    type Create = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, c_int, c_uint) -> u32;
    type From = unsafe extern "C" fn(*mut *mut c_void, *mut c_void) -> u32;
    type Make = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, c_uint, c_int) -> u32;
    // SAFETY: as cuda.h declares them, with valid pointers.
    unsafe {
        assert_eq!(framework.function::<Create>("cuGreenCtxCreate")(&mut green, null_mut(), 0, 1), 0);
        assert_eq!(framework.function::<From>("cuCtxFromGreenCtx")(&mut current, green), 0);
        assert_eq!(framework.function::<Make>("cuGreenCtxStreamCreate")(&mut raw, green, 1, 0), 0);
    }
    assert!(current != primary.raw());
    // SAFETY: a living stream, until the end.
    let stream = unsafe { Stream::adopt(raw) }.unwrap();
    assert!(Arc::ptr_eq(stream.context(), &primary));
    let memory = DeviceMemory::new(&primary, 16).unwrap();
    // SAFETY: the memory stays until the stream is synchronized.
    unsafe { memory.queue_fill(0, 16, 7, &stream) }.unwrap();
    stream.synchronize().unwrap();
    framework.set_current(current);
    assert!(Arc::ptr_eq(&Context::current().unwrap(), &primary));
    for default in 0..3 {
        // SAFETY: default streams may always be named.
        let adopted = unsafe { Stream::adopt(std::ptr::without_provenance_mut(default)) };
        assert_eq!(adopted.unwrap_err(), CudaError::GreenDefaultStream, "{default}");
    }
    framework.set_current(null_mut());
    drop((stream, memory));
    // SAFETY: as cuda.h declares it; nobody uses the green context any more.
    unsafe {
        let destroy = framework.function::<unsafe extern "C" fn(*mut c_void) -> u32>("cuGreenCtxDestroy");
        assert_eq!(destroy(green), 0);
    }
}

#[test]
fn a_primary_context_that_was_adopted_stays() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let framework = Framework::new();
    let first = Context::primary(0).unwrap();
    let raw = first.raw();
    framework.set_current(raw);
    let adopted = Context::current().unwrap();
    assert!(Arc::ptr_eq(&first, &adopted));
    framework.set_current(null_mut());
    drop(first);
    let memory = DeviceMemory::new(&adopted, 16).unwrap();
    memory.fill(0, 16, 3).unwrap();
}

#[test]
fn addresses_are_told_apart() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let memory = DeviceMemory::new(&context, 1000).unwrap();
    let (at, inside) = (memory.address(), memory.address() + 600);
    match locate(inside, 400).unwrap() {
        Where::Device { ordinal: 0, base, size, context: owner } => {
            assert!(base == at && size >= 1000 && owner == context.raw() as usize);
        }
        other => panic!("{other:?}"),
    }
    let error = locate(inside, 1 << 30).unwrap_err();
    assert!(matches!(error, CudaError::OutOfBounds { address, .. } if address == inside), "{error}");
    expect_device(&context, inside, 400).unwrap();

    let pinned = Pinned::new(&context, 100).unwrap();
    assert_eq!(locate(pinned.as_ptr() as u64, 100).unwrap(), Where::Pinned { device: pinned.address() });
    let error = expect_device(&context, pinned.as_ptr() as u64, 100).unwrap_err();
    assert!(error.to_string().contains("pinned host memory"), "{error}");

    let plain = [0u8; 100];
    assert_eq!(locate(plain.as_ptr() as u64, 100).unwrap(), Where::Host);
    let error = expect_device(&context, plain.as_ptr() as u64, 100).unwrap_err();
    assert!(error.to_string().contains("ordinary host memory, or memory that was freed"), "{error}");

    drop(memory);
    let error = expect_device(&context, at, 10).unwrap_err();
    assert!(matches!(error, CudaError::NotDevice { address, .. } if address == at), "{error}");

    let elsewhere = DeviceMemory::new(&Context::primary(1).unwrap(), 100).unwrap();
    let error = expect_device(&context, elsewhere.address(), 100).unwrap_err();
    assert_eq!(error, CudaError::WrongDevice { address: elsewhere.address(), found: 1, expected: 0 });
}

/// As PyTorch has it with `expandable_segments`: a tensor lies in several mappings.
#[test]
fn memory_goes_on_in_the_next_mapping() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    let context = Context::primary(1).unwrap();
    let _entered = context.enter().unwrap();
    let segments = emulator.segments(1, 4);
    let (at, piece, all) = (segments.address(), Segments::PIECE as u64, segments.bytes() as u64);
    for (from, bytes, size) in [(0, 1, piece), (100, piece, 2 * piece), (piece, piece, piece), (5, all - 5, all)] {
        let expected = Where::Device { ordinal: 1, context: 0, base: at + from / piece * piece, size };
        assert_eq!(locate(at + from, bytes).unwrap(), expected, "{bytes} bytes from {from}");
    }
    expect_device(&context, at, all).unwrap();
    let error = expect_device(&context, at + 8, all).unwrap_err();
    assert_eq!(error, CudaError::OutOfBounds { address: at + 8, bytes: all, base: at, allocated: all });
    assert!(matches!(locate(at, u64::MAX), Err(CudaError::OutOfBounds { .. })));
    let other = Context::primary(0).unwrap();
    assert_eq!(expect_device(&other, at, all), Err(CudaError::WrongDevice { address: at, found: 1, expected: 0 }));
    // Where the memory of a piece was taken away the range ends, though its addresses are still reserved.
    let mut holed = emulator.segments(1, 4);
    let hole = holed.address();
    holed.punch(2);
    let beyond = CudaError::OutOfBounds { address: hole, bytes: all, base: hole, allocated: 2 * piece };
    expect_device(&context, hole, 2 * piece).unwrap();
    assert_eq!(expect_device(&context, hole, all), Err(beyond.clone()));
    expect_device(&context, hole + 3 * piece, piece).unwrap();
    assert_eq!(locate(hole + 2 * piece, 1).unwrap(), Where::Host, "nothing is there");
    // Also on a thread that has no context.
    std::thread::scope(|s| {
        s.spawn(|| assert_eq!(expect_device(&context, hole, all), Err(beyond)));
    });
    // Ordinary allocations end where they end, whatever lies behind them.
    let allocated = [0; 8].map(|_| DeviceMemory::new(&context, Segments::PIECE).unwrap());
    for memory in &allocated {
        let error = locate(memory.address(), piece + 1).unwrap_err();
        assert!(matches!(error, CudaError::OutOfBounds { allocated, .. } if allocated == piece), "{error}");
    }
    drop(segments);
    assert_eq!(locate(at, 1).unwrap(), Where::Host, "it is gone");
}

/// Memory of a pool belongs to no context, as mapped memory, and is one piece all the same.
#[test]
fn memory_of_a_pool_ends_where_it_ends() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let stream = Stream::new(&context).unwrap();
    let memory = DeviceMemory::in_order(&context, 1000, &stream).unwrap().expect("there are pools");
    let (at, bytes) = (memory.address(), 1000);
    let expected = Where::Device { ordinal: 0, context: 0, base: at, size: bytes };
    assert_eq!(locate(at + 10, 990).unwrap(), expected);
    let beyond = CudaError::OutOfBounds { address: at + 10, bytes, base: at, allocated: bytes };
    assert_eq!(expect_device(&context, at + 10, bytes), Err(beyond));
    assert!(matches!(memory.export().unwrap_err(), CudaError::IpcRefused { .. }));
}

#[test]
fn a_device_that_takes_no_more_processes_says_what_to_do() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    emulator.set("FAIL", "cuDevicePrimaryCtxRetain:1:CUDA_ERROR_DEVICE_UNAVAILABLE");
    let error = Context::primary(2).unwrap_err();
    emulator.set("FAIL", "");
    let text = error.to_string();
    assert!(text.contains("device 2") && text.contains("nvidia-smi -c 0") && text.contains("MPS"), "{text}");
    assert_eq!(error.code(), Some(46));
    Context::primary(2).unwrap();
}

#[test]
fn ranges_are_checked_before_the_driver_sees_them() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let memory = DeviceMemory::new(&context, 100).unwrap();
    let mut data = [0u8; 50];
    let beyond = |result: maypole_cuda::Result<()>| {
        let error = result.unwrap_err();
        assert!(matches!(error, CudaError::OutOfBounds { bytes: 50, allocated: 100, .. }), "{error}");
    };
    beyond(memory.copy_from_host(51, &data));
    beyond(memory.copy_to_host(51, &mut data));
    beyond(memory.fill(51, 50, 0));
    beyond(memory.fill(usize::MAX, 50, 0));
    memory.copy_from_host(50, &[9; 50]).unwrap();
    memory.copy_to_host(50, &mut data).unwrap();
    assert_eq!(data, [9; 50]);
    memory.copy_to_host(100, &mut []).unwrap();
}

#[test]
fn no_room_on_the_device_says_how_much_there_is() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let (_, total) = context.memory().unwrap();
    let error = DeviceMemory::new(&context, total as usize + 1).unwrap_err();
    let CudaError::OutOfMemory { what: "device", bytes, free, total: of } = error else { panic!("{error}") };
    assert!(bytes == total + 1 && free <= of && of == total);
    // And it was a refusal, nothing else.
    DeviceMemory::new(&context, 1000).unwrap().fill(0, 1000, 1).unwrap();
}

#[test]
fn streams_wait_for_events_of_other_streams() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    for seed in 0..8 {
        emulator.set("CHAOS", &seed.to_string());
        let (first, second) = (Stream::new(&context).unwrap(), Stream::urgent(&context).unwrap());
        let memory = DeviceMemory::new(&context, 4096).unwrap();
        memory.fill(0, 4096, 0).unwrap();
        let mut got = [0u8; 4096];
        let event = Event::new(&context, false).unwrap();
        assert!(event.is_done().unwrap(), "never recorded");
        // SAFETY: everything stays until both streams are synchronized.
        unsafe {
            memory.queue_fill(0, 4096, 5, &first).unwrap();
            event.record(&first).unwrap();
            second.wait_event(&event).unwrap();
            memory.queue_to_host(0, got.as_mut_ptr(), 4096, &second).unwrap();
        }
        second.synchronize().unwrap();
        assert!(event.is_done().unwrap());
        assert!(got == [5; 4096], "seed {seed}");
        first.synchronize().unwrap();
    }
    emulator.set("CHAOS", "0");
}

#[test]
fn events_tell_the_time() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let stream = Stream::new(&context).unwrap();
    let [before, after] = [0, 1].map(|_| Event::new(&context, true).unwrap());
    before.record(&stream).unwrap();
    stream.host_function(|| std::thread::sleep(Duration::from_millis(20))).unwrap();
    after.record(&stream).unwrap();
    after.synchronize().unwrap();
    let elapsed = after.elapsed_us(&before).unwrap();
    assert!((19_000.0..5_000_000.0).contains(&elapsed), "{elapsed} us");
    let untimed = Event::new(&context, false).unwrap();
    untimed.record(&stream).unwrap();
    stream.synchronize().unwrap();
    assert!(untimed.elapsed_us(&before).unwrap_err().to_string().starts_with("cuEventElapsedTime"));
}

#[test]
fn a_capture_is_seen() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let framework = Framework::new();
    let context = Context::primary(0).unwrap();
    let stream = Stream::new(&context).unwrap();
    assert!(!stream.is_capturing().unwrap());
    framework.begin_capture(&stream, RELAXED);
    assert!(stream.is_capturing().unwrap());
    framework.end_capture(&stream);
    assert!(!stream.is_capturing().unwrap());
}

#[test]
fn what_threads_of_ours_call_leaves_captures_alone() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let framework = Framework::new();
    let context = Context::primary(0).unwrap();
    let (stream, probe) = (Stream::new(&context).unwrap(), Event::new(&context, false).unwrap());
    let ours = || {
        let memory = DeviceMemory::new(&context, 100).unwrap();
        let pinned = Pinned::new(&context, 100).unwrap();
        let registered = HostRegistration::new(&context, &HostRegion::private(4096)).unwrap();
        probe.check().unwrap();
        probe.check().unwrap();
        let addresses = [memory.address(), pinned.address(), registered.address()];
        drop((memory, pinned, registered));
        assert_eq!(addresses.map(|at| locate(at, 1).unwrap()), [Where::Host; 3], "given back");
    };
    framework.begin_capture(&stream, GLOBAL);
    std::thread::scope(|s| s.spawn(ours).join().unwrap());
    // It is still one: its end is no error.
    framework.end_capture(&stream);
    // The thread that captures may do the same.
    framework.begin_capture(&stream, GLOBAL);
    ours();
    framework.end_capture(&stream);
}

#[test]
fn a_broken_context_is_noticed() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let probe = Event::new(&context, false).unwrap();
    // Unlike a question for a mark that was never set, it goes to the device at once.
    emulator.set("FAIL", "cuEventRecord:1:CUDA_ERROR_ILLEGAL_ADDRESS");
    assert!(probe.is_done().unwrap());
    assert!(probe.check().unwrap_err().is_sticky());
    emulator.set("FAIL", "");
    probe.check().unwrap();
}

#[test]
fn registered_memory_is_registered_once_and_until_the_last() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let region = HostRegion::private(8192);
    let at = region.as_ptr() as u64;
    assert_eq!(locate(at, 8192).unwrap(), Where::Host);
    let first = HostRegistration::new(&context, &region).unwrap();
    let second = HostRegistration::new(&context, &region).unwrap();
    assert_eq!(first.address(), second.address());
    drop(first);
    assert_eq!(locate(at, 8192).unwrap(), Where::Pinned { device: second.address() });
    drop(second);
    assert_eq!(locate(at, 8192).unwrap(), Where::Host);
}

/// A word in registered memory, and what keeps it.
fn word(context: &Arc<Context>) -> (HostRegistration, Word) {
    let registration = HostRegistration::new(context, &HostRegion::private(4096)).unwrap();
    let host = std::ptr::NonNull::new(registration.region().as_ptr().cast::<AtomicU32>()).unwrap();
    // SAFETY: both name the first bytes of the region, which is returned beside it.
    let word = unsafe { Word::new(host, registration.address()) };
    (registration, word)
}

#[test]
fn a_stream_waits_for_a_word_across_the_wrap_of_its_count() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let (_keep, word) = word(&context);
    let stream = Stream::new(&context).unwrap();
    word.store(u32::MAX - 1);
    let mut commands = Commands::new(&stream).unwrap();
    commands.wait(&word, 1).unwrap();
    commands.finish().unwrap();
    let mut early = false;
    for value in [u32::MAX, 0] {
        word.store(value);
        std::thread::sleep(Duration::from_millis(20));
        early |= stream.is_idle().unwrap();
    }
    word.store(1);
    stream.synchronize().unwrap();
    assert!(!early, "u32::MAX and 0 are before 1");
    // Far ahead counts as there: so a verdict lets a stream go.
    let mut commands = Commands::new(&stream).unwrap();
    commands.wait(&word, 5).unwrap();
    commands.finish().unwrap();
    word.store(5 + (1 << 30));
    stream.synchronize().unwrap();
}

#[test]
fn commands_run_in_order_in_batches_of_any_length() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let ((_a, ping), (_b, pong)) = (word(&context), word(&context));
    let streams = [Stream::new(&context).unwrap(), Stream::new(&context).unwrap()];
    for (seed, rounds) in [(0, 1), (1, 15), (2, 16), (3, 17), (4, 100)] {
        emulator.set("CHAOS", &seed.to_string());
        let [start_ping, start_pong] = [ping.load(), pong.load()];
        let mut there = Commands::new(&streams[0]).unwrap();
        for round in 1..=rounds {
            there.write(&ping, start_ping + round).unwrap();
            there.wait(&pong, start_pong + round).unwrap();
        }
        there.finish().unwrap();
        // The first stream comes as far as it can without the second, and no further.
        while !ping.is_at_least(start_ping + 1) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(2));
        let came_to = ping.load() - start_ping;
        let mut back = Commands::new(&streams[1]).unwrap();
        for round in 1..=rounds {
            back.wait(&ping, start_ping + round).unwrap();
            back.write(&pong, start_pong + round).unwrap();
        }
        back.finish().unwrap();
        streams.iter().for_each(|stream| stream.synchronize().unwrap());
        assert_eq!(came_to, 1, "the first stream did not wait for the second");
        assert_eq!((ping.load(), pong.load()), (start_ping + rounds, start_pong + rounds));
    }
    emulator.set("CHAOS", "0");
}

#[test]
fn an_own_handle_is_refused_by_name() {
    let (_turn, _emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let memory = DeviceMemory::exportable(&context, 100).unwrap();
    assert_eq!(memory.bytes(), 100);
    let error = ImportedMemory::open(&context, memory.export().unwrap()).unwrap_err();
    assert!(matches!(error, CudaError::IpcRefused { call: "cuIpcOpenMemHandle", .. }), "{error}");
    assert!(!format!("{:?}", memory.export().unwrap()).contains(char::is_numeric), "handles are keys");
}

/// A registration that the driver will not end keeps its memory: were the address used again, what lies there could not
/// be registered.
#[test]
fn memory_whose_registration_cannot_be_ended_is_not_used_again() {
    let (_turn, emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    let bytes = 1 << 16;
    let mut refused = Vec::new();
    for _ in 0..8 {
        let region = HostRegion::private(bytes);
        refused.push(region.as_ptr() as usize);
        let registration = HostRegistration::new(&context, &region).unwrap();
        emulator.set("FAIL", "cuMemHostUnregister:1:CUDA_ERROR_UNKNOWN");
        drop((region, registration));
        emulator.set("FAIL", "");
    }
    // More than could lie elsewhere by chance: an allocator gives the latest address first.
    let regions: Vec<HostRegion> = (0..8).map(|_| HostRegion::private(bytes)).collect();
    for region in &regions {
        assert!(!refused.contains(&(region.as_ptr() as usize)));
        HostRegistration::new(&context, region).unwrap();
    }
}

/// Every call that can fail: once it does, the error has the call's name, the code's, and its meaning, and afterwards
/// everything works as before.
#[test]
fn each_refusal_has_the_name_of_its_call() {
    type Act = fn(&Arc<Context>) -> maypole_cuda::Result<()>;
    let (_turn, emulator) = (TURN.lock(), emulated());
    let context = Context::primary(0).unwrap();
    DeviceMemory::new(&context, 8).unwrap().fill(0, 8, 0).unwrap();
    let acts: [(&str, Act); 24] = [
        ("cuCtxGetCurrent", |c| c.enter().map(drop)),
        ("cuCtxPushCurrent", |c| c.enter().map(drop)),
        ("cuMemAlloc", |c| DeviceMemory::new(c, 8).map(drop)),
        ("cuMemGetInfo", |c| c.memory().map(drop)),
        ("cuMemHostAlloc", |c| Pinned::new(c, 8).map(drop)),
        ("cuMemHostGetDevicePointer", |c| Pinned::new(c, 8).map(drop)),
        ("cuMemHostRegister", |c| HostRegistration::new(c, &HostRegion::private(4096)).map(drop)),
        ("cuMemcpyHtoDAsync", |c| DeviceMemory::new(c, 8)?.copy_from_host(0, &[1; 8])),
        ("cuMemcpyDtoHAsync", |c| DeviceMemory::new(c, 8)?.copy_to_host(0, &mut [0; 8])),
        ("cuMemsetD8Async", |c| DeviceMemory::new(c, 8)?.fill(0, 8, 1)),
        ("cuStreamSynchronize", |c| DeviceMemory::new(c, 8)?.fill(0, 8, 1)),
        ("cuMemcpyDtoDAsync", |c| {
            let (memory, stream) = (DeviceMemory::new(c, 8)?, Stream::new(c)?);
            // SAFETY: nothing is copied, since the call is refused.
            unsafe { memory.queue_copy(0, &memory, 4, 4, &stream) }
        }),
        ("cuStreamCreateWithPriority", |c| Stream::new(c).map(drop)),
        ("cuStreamQuery", |c| Stream::new(c)?.is_idle().map(drop)),
        ("cuStreamIsCapturing", |c| Stream::new(c)?.is_capturing().map(drop)),
        ("cuStreamWaitEvent", |c| Stream::new(c)?.wait_event(&Event::new(c, false)?)),
        ("cuLaunchHostFunc", |c| Stream::new(c)?.host_function(|| ())),
        ("cuStreamBatchMemOp", |c| {
            let (stream, (_keep, word)) = (Stream::new(c)?, word(c));
            let mut commands = Commands::new(&stream)?;
            commands.write(&word, 1)?;
            commands.finish()
        }),
        ("cuEventCreate", |c| Event::new(c, true).map(drop)),
        ("cuEventRecord", |c| Event::new(c, true)?.record(&Stream::new(c)?)),
        ("cuEventQuery", |c| Event::new(c, true)?.is_done().map(drop)),
        ("cuEventSynchronize", |c| Event::new(c, true)?.synchronize()),
        ("cuPointerGetAttributes", |_| locate(4096, 1).map(drop)),
        ("cuModuleLoadData", |c| Module::load(c, c".version 8.4").map(drop)),
    ];
    for (call, act) in acts {
        emulator.set("FAIL", &format!("{call}:1:CUDA_ERROR_UNKNOWN"));
        let error = act(&context).expect_err(call);
        emulator.set("FAIL", "");
        let text = error.to_string();
        assert!(text.starts_with(&format!("{call}: CUDA_ERROR_UNKNOWN (999): ")), "{call}: {text}");
        assert!(!error.is_sticky() && error.code() == Some(999));
        if call != "cuModuleLoadData" {
            act(&context).unwrap_or_else(|error| panic!("{call} again: {error}"));
        }
    }
}
