//! Device memory between two processes. The other process is this binary again, running one test alone; it finds the
//! emulator as children do, by the loader's path.

use crate::cuda::*;
use maypole_cuda_emulator::testing;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The variable that makes [`the_other_process`] do something.
const HANDLE: &str = "EMULATOR_TEST_IPC_HANDLE";

/// Another process, which was given a handle.
struct Other {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Other {
    fn start(handle: &sys::CUipcMemHandle, switches: &[(&str, &str)]) -> Other {
        let text: Vec<String> = handle.reserved.iter().map(|byte| (*byte as u8).to_string()).collect();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "ipc::the_other_process", "--nocapture", "--test-threads=1"]);
        command.envs(testing::environment()).env(HANDLE, text.join(" ")).envs(switches.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Other { child, to, from }
    }

    /// What it says next; what the test harness prints in between is skipped.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.from.read_line(&mut line).unwrap(), 0, "the other process has ended");
            if let Some((_, said)) = line.split_once("said: ") {
                return said.trim().to_string();
            }
        }
    }

    fn tell(&mut self) {
        self.to.write_all(b"go on\n").unwrap();
    }

    fn end(mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

fn say(what: &str) {
    println!("said: {what}");
}

fn listen() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Only does something where [`Other::start`] has started it.
#[test]
fn the_other_process() {
    let Ok(text) = std::env::var(HANDLE) else { return };
    cu!(cuInit(0)); // not loaded by path: the loader finds it
    let mut context = std::ptr::null_mut();
    let code = call!(cuCtxCreate_v2(&mut context, 0, 0));
    if code != CUDA_SUCCESS {
        return say(&format!("{code:?}"));
    }
    let bytes: Vec<i8> = text.split(' ').map(|byte| byte.parse::<u8>().unwrap() as i8).collect();
    let handle = sys::CUipcMemHandle { reserved: bytes.try_into().unwrap() };
    let (mut first, mut second) = (0, 0);
    let code = call!(cuIpcOpenMemHandle_v2(&mut first, handle, 1));
    if code != CUDA_SUCCESS {
        return say(&format!("{code:?}"));
    }
    cu!(cuIpcOpenMemHandle_v2(&mut second, handle, 1));
    assert_eq!(first, second, "opened again, it is counted");
    let mut another = std::ptr::null_mut();
    cu!(cuCtxCreate_v2(&mut another, 0, 0));
    assert_eq!(call!(cuIpcOpenMemHandle_v2(&mut second, handle, 1)), CUDA_ERROR_INVALID_CONTEXT, "one context only");
    cu!(cuCtxDestroy_v2(another));
    assert_eq!(call!(cuMemFree_v2(first)), CUDA_ERROR_INVALID_VALUE, "it is the owner's to free");

    // A word in the owner's memory, waited for by a stream here and written by a stream there.
    let stream = Stream::new();
    cu!(cuStreamWaitValue32_v2(stream.0, first, 5, 0));
    say("open");
    stream.synchronize();
    let memory = std::mem::ManuallyDrop::new(Memory { at: first });
    say(&format!("{:?}", memory.read(3)));
    cu!(cuMemsetD32Async(first + 8, 77, 1, stream.0));
    stream.synchronize();
    say("written");
    listen();
    say(&format!("{:x}", memory.read(1)[0]));
    cu!(cuIpcCloseMemHandle(first));
    cu!(cuIpcCloseMemHandle(first));
    assert_eq!(call!(cuIpcCloseMemHandle(first)), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(call!(cuMemsetD32Async(first, 1, 1, stream.0)), CUDA_ERROR_INVALID_VALUE);
    say("closed");
}

fn handle_of(memory: &Memory) -> sys::CUipcMemHandle {
    let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
    cu!(cuIpcGetMemHandle(&mut handle, memory.at));
    handle
}

#[test]
fn two_processes_see_the_same_memory() {
    let _alone = alone();
    let _here = Here::beside(0);
    let (memory, stream) = (Memory::new(1000), Stream::new());
    cu!(cuMemsetD32Async(memory.at, 1, 250, stream.0));
    stream.synchronize();
    let mut other = Other::start(&handle_of(&memory), &[]);
    assert_eq!(other.hear(), "open");
    a_while();
    cu!(cuStreamWriteValue32_v2(stream.0, memory.at, 5, 0));
    assert_eq!(other.hear(), "[5, 1, 1]");
    assert_eq!(other.hear(), "written");
    assert_eq!(memory.read(3), [5, 1, 77]);
    let before = emulator().counters().freed_while_open;
    drop(memory);
    assert_eq!(emulator().counters().freed_while_open, before + 1, "freed while the other has it open");
    other.tell();
    assert_eq!(other.hear(), "dbdbdbdb", "what is freed is the other's no more");
    assert_eq!(other.hear(), "closed");
    other.end();
}

/// Compute mode EXCLUSIVE_PROCESS: one process for each device.
#[test]
fn an_exclusive_device_takes_one_process() {
    let _alone = alone();
    emulator().set("MACHINE", "exclusive");
    emulator().set("EXCLUSIVE", "1");
    let (_here, _second) = (Here::beside(0), Here::beside(0));
    let handle = handle_of(&Memory::new(1000));
    let there = [("MAYPOLE_EMULATOR_MACHINE", "exclusive"), ("MAYPOLE_EMULATOR_EXCLUSIVE", "1")];
    let mut other = Other::start(&handle, &there);
    assert_eq!(other.hear(), "CUDA_ERROR_DEVICE_UNAVAILABLE");
    other.end();
}

#[test]
fn what_is_gone_or_not_allowed_cannot_be_opened() {
    let _alone = alone();
    let _here = Here::beside(0);
    let memory = Memory::new(1000);
    let handle = handle_of(&memory);
    let mut at = 0;
    assert_eq!(call!(cuIpcOpenMemHandle_v2(&mut at, handle, 1)), CUDA_ERROR_INVALID_CONTEXT, "in its own process");
    assert_eq!(call!(cuIpcOpenMemHandle_v2(&mut at, handle, 0)), CUDA_ERROR_INVALID_VALUE, "without the flag");
    let mut inside = handle;
    assert_eq!(call!(cuIpcGetMemHandle(&mut inside, memory.at + 512)), CUDA_ERROR_INVALID_VALUE, "not its base");
    for (switches, expected) in [
        (&[("MAYPOLE_EMULATOR_IPC", "0")][..], "CUDA_ERROR_INVALID_VALUE"),
        (&[("MAYPOLE_EMULATOR_MACHINE", "another")], "CUDA_ERROR_INVALID_DEVICE"),
    ] {
        let mut other = Other::start(&handle, switches);
        assert_eq!(other.hear(), expected, "{switches:?}");
        other.end();
    }
    // A device that the other process does not see, and one that is kept from it.
    let unseen = [("CUDA_VISIBLE_DEVICES", "1"), ("MAYPOLE_EMULATOR_DEVICES", "2"), ("MAYPOLE_EMULATOR_HIDDEN", "1")];
    let apart = [unseen[0], unseen[1], ("MAYPOLE_EMULATOR_PEER_ACCESS", "0")];
    for (switches, expected) in
        [(&unseen[..2], "open"), (&unseen, "CUDA_ERROR_INVALID_DEVICE"), (&apart, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED")]
    {
        let mut other = Other::start(&handle, switches);
        assert_eq!(other.hear(), expected, "{switches:?}");
        if expected == "open" {
            cu!(cuStreamWriteValue32_v2(Stream::new().0, memory.at, 5, 0));
            assert!(other.hear().starts_with("[5, "), "the memory is the same");
            assert_eq!(other.hear(), "written");
            other.tell();
            other.hear();
            assert_eq!(other.hear(), "closed");
        }
        other.end();
    }
    emulator().set("IPC", "0");
    assert_eq!(call!(cuIpcGetMemHandle(&mut inside, memory.at)), CUDA_ERROR_NOT_SUPPORTED);
    drop(memory);
    // The descriptor may belong to another allocation by now.
    let _next = Memory::new(1000);
    let mut other = Other::start(&handle, &[]);
    assert_eq!(other.hear(), "CUDA_ERROR_INVALID_VALUE");
    other.end();
}
