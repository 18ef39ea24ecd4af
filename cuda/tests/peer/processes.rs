//! Ranks that are processes, over CUDA IPC.
//!
//! Each test starts itself again, once per rank, with a file that all map as the memory they share.

use std::num::NonZeroUsize;
use std::process::{Child, Command};
use std::ptr::NonNull;
use std::sync::Arc;

use maypole_cuda::peer::Shape;
use maypole_cuda::{Commands, Context, CudaError, DeviceMemory, HostRegion, ImportedMemory, IpcHandle, Reach, Stream};
use maypole_cuda_emulator::testing;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use crate::ranks::{Hall, Place, Rank, shared_bytes};
use crate::traffic::{Traffic, pass_round, publish_and_fetch};

const RANK: &str = "MAYPOLE_TEST_RANK";
const FILE: &str = "MAYPOLE_TEST_FILE";

const MEMBERS: usize = 3;

fn shape() -> Shape {
    Shape::new(MEMBERS, 1000, &[4 * 256])
}

/// In a child: its rank and the memory that the ranks share.
fn child() -> Option<(usize, HostRegion)> {
    let me = std::env::var(RANK).ok()?.parse().unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(std::env::var(FILE).unwrap()).unwrap();
    let bytes = shared_bytes(shape());
    let (length, access) = (NonZeroUsize::new(bytes).unwrap(), ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
    // SAFETY: a mapping at an address of the system's choice; it is never unmapped.
    let at = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
    let at = NonNull::new(at.as_ptr().cast()).unwrap();
    // SAFETY: mapped just now, and only atomics and raw copies touch it.
    Some((me, unsafe { HostRegion::new(at, bytes, Arc::new(())) }))
}

/// Starts test `name` of this binary once per rank, with `more` in each one's environment, and waits for all.
fn start(name: &str, more: &[(&str, &str)]) {
    let file = std::env::temp_dir().join(format!("maypole-cuda-{name}-{}", std::process::id()));
    std::fs::File::create(&file).unwrap().set_len(shared_bytes(shape()) as u64).unwrap();
    let start = |me: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("processes::{name}"), "--nocapture"]).envs(testing::environment());
        command.env(RANK, me.to_string()).env(FILE, &file).envs(more.iter().copied());
        command.spawn().unwrap()
    };
    let children: Vec<Child> = (0..MEMBERS).map(start).collect();
    let ended: Vec<_> = children.into_iter().map(|mut child| child.wait().unwrap()).collect();
    std::fs::remove_file(&file).unwrap();
    assert!(ended.iter().all(|status| status.success()), "{more:?}: {ended:?}");
}

#[test]
fn bytes_pass_between_processes() {
    let Some((me, region)) = child() else {
        for seed in ["1", "2", "3"] {
            start("bytes_pass_between_processes", &[("MAYPOLE_EMULATOR_CHAOS", seed)]);
        }
        return;
    };
    let context = Context::primary(0).unwrap();
    let mut rank = Rank::attach(&context, me, shape(), Place::Device, &region).unwrap();
    publish_and_fetch(&mut rank, Traffic::of_all(10));
    let counters = testing::load().counters();
    assert_eq!((counters.imported, counters.registered), (MEMBERS as u64 - 1, 1), "the words: {counters:?}");
    assert!(rank.leave(), "everybody leaves, so memory is given back");
    let counters = testing::load().counters();
    let left = (counters.allocations, counters.imported, counters.registered, counters.streams);
    // The context's own stream for copies goes with the context.
    assert_eq!((left, counters.freed_while_open), ((0, 0, 0, 1), 0), "{counters:?}");
}

#[test]
fn messages_pass_between_processes() {
    let Some((me, region)) = child() else {
        for seed in ["1", "2", "3"] {
            start("messages_pass_between_processes", &[("MAYPOLE_EMULATOR_CHAOS", seed)]);
        }
        return;
    };
    let context = Context::primary(0).unwrap();
    let mut rank = Rank::attach(&context, me, shape(), Place::Device, &region).unwrap();
    pass_round(&mut rank, Traffic::of_all(12));
    assert!(rank.leave());
}

/// Each process has a device that cannot reach the others': the members find that out, and go through the host.
#[test]
fn staging_in_host_memory_serves_where_devices_do_not_reach_each_other() {
    let name = "staging_in_host_memory_serves_where_devices_do_not_reach_each_other";
    let Some((me, region)) = child() else {
        let devices = MEMBERS.to_string();
        start(name, &[("MAYPOLE_EMULATOR_DEVICES", &devices), ("MAYPOLE_EMULATOR_PEER_ACCESS", "0")]);
        return;
    };
    let context = Context::primary(me).unwrap();
    let other = Context::primary((me + 1) % MEMBERS).unwrap();
    assert_eq!(context.reaches(other.uuid()).unwrap(), Reach::NotReached);
    assert_eq!(context.reaches([7; 16]).unwrap(), Reach::NotSeen);
    let mut rank = Rank::attach(&context, me, shape(), Place::Host, &region).unwrap();
    publish_and_fetch(&mut rank, Traffic::of_all(6));
    pass_round(&mut rank, Traffic::of_all(6));
    assert!(rank.leave());
}

/// A container without the capability: the refusal is named, on every rank, and host staging still serves.
#[test]
fn a_refusal_of_ipc_is_named_and_host_memory_serves() {
    let Some((me, region)) = child() else {
        start("a_refusal_of_ipc_is_named_and_host_memory_serves", &[("MAYPOLE_EMULATOR_IPC", "0")]);
        return;
    };
    let context = Context::primary(0).unwrap();
    let memory = DeviceMemory::exportable(&context, 100).unwrap();
    let error = memory.export().unwrap_err();
    assert!(matches!(error, CudaError::IpcRefused { .. }), "{error}");
    assert!(error.to_string().contains("MAYPOLE_DEVICE_STAGING=host"), "{error}");
    let mut rank = Rank::attach(&context, me, shape(), Place::Host, &region).unwrap();
    publish_and_fetch(&mut rank, Traffic::of_all(6));
    assert!(rank.leave());
}

/// No stream memory operations: host functions stand for them, since each rank has a process to itself.
#[test]
fn host_functions_stand_for_memory_operations() {
    let Some((me, region)) = child() else {
        start("host_functions_stand_for_memory_operations", &[("MAYPOLE_EMULATOR_MEMORY_OPERATIONS", "0")]);
        return;
    };
    let context = Context::primary(0).unwrap();
    assert!(!context.supports_memory_operations());
    let mut rank = Rank::attach(&context, me, shape(), Place::Device, &region).unwrap();
    publish_and_fetch(&mut rank, Traffic::of_all(6));
    pass_round(&mut rank, Traffic::of_all(6));
    assert!(rank.leave());
}

/// A rank that ends without a word: the others keep their memory rather than free it under its mapping.
#[test]
fn memory_is_kept_where_a_member_does_not_leave() {
    let Some((me, region)) = child() else {
        start("memory_is_kept_where_a_member_does_not_leave", &[]);
        return;
    };
    let context = Context::primary(0).unwrap();
    let mut rank = Rank::attach(&context, me, shape(), Place::Device, &region).unwrap();
    publish_and_fetch(&mut rank, Traffic::of_all(2));
    rank.hall.meet();
    if me == 0 {
        std::process::exit(0);
    }
    let began = std::time::Instant::now();
    assert!(!rank.staging.leave(&rank.words, me, std::time::Duration::from_millis(300)), "rank 0 has said nothing");
    assert!(began.elapsed() >= std::time::Duration::from_millis(300));
}

/// Memory that is opened twice is mapped once, until the second closes it; memory that is gone cannot be opened.
#[test]
fn imported_memory_is_mapped_once() {
    let Some((me, region)) = child() else {
        start("imported_memory_is_mapped_once", &[]);
        return;
    };
    let context = Context::primary(0).unwrap();
    let mut hall = Hall::new(region, MEMBERS);
    let memory = DeviceMemory::exportable(&context, 100).unwrap();
    memory.fill(0, 100, me as u8 + 1).unwrap();
    let handles = hall.all_gather(me, &memory.export().unwrap().0);
    let handles: Vec<IpcHandle> = handles.into_iter().map(IpcHandle).collect();
    if me > 0 {
        let [first, second] = [0, 1].map(|_| ImportedMemory::open(&context, handles[0]).unwrap());
        assert_eq!(first.address(), second.address());
        assert_eq!(testing::load().counters().imported, 1);
        drop(first);
        assert_eq!(testing::load().counters().imported, 1);
        let (mine, stream) = (DeviceMemory::new(&context, 100).unwrap(), Stream::new(&context).unwrap());
        let mut commands = Commands::new(&stream).unwrap();
        // SAFETY: both are 100 bytes, and stay until the stream is synchronized.
        unsafe { commands.copy(mine.address(), second.address(), 100) }.unwrap();
        commands.finish().unwrap();
        stream.synchronize().unwrap();
        let mut got = [0; 100];
        mine.copy_to_host(0, &mut got).unwrap();
        assert_eq!(got, [1; 100], "the bytes of rank 0");
        drop(second);
        assert_eq!(testing::load().counters().imported, 0);
    }
    hall.meet();
    drop(memory);
    hall.meet();
    if me > 0 {
        let error = ImportedMemory::open(&context, handles[0]).unwrap_err();
        assert!(matches!(error, CudaError::IpcRefused { call: "cuIpcOpenMemHandle", .. }), "{error}");
    }
    hall.meet();
}
