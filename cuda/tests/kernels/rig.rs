//! Device memory with an image of it on the host, and kernels run on it.

use std::sync::Arc;

use maypole_cuda::kernels::{Gather, Job, Kernel, Kernels};
use maypole_cuda::{Context, DeviceMemory, Stream};

/// Bytes around everything that is placed have this value, before and after.
const GUARD: u8 = 0xa5;
const MARGIN: usize = 64;

/// Room for the longest case.
const ROOM: usize = 2 << 20;

/// A device to run kernels on: the emulator's, or the first of this machine's.
pub struct Rig {
    kernels: Arc<Kernels>,
    stream: Stream,
    memory: DeviceMemory,
}

/// A range of the device's memory.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    start: usize,
    len: usize,
}

impl Place {
    /// Where it is in an image.
    pub fn range(self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// The device's context.
pub fn context() -> Arc<Context> {
    if std::env::var_os("MAYPOLE_TEST_CUDA").is_none_or(|which| which != "device") {
        maypole_cuda_emulator::testing::load();
    }
    Context::primary(0).unwrap()
}

impl Rig {
    pub fn new() -> Rig {
        let context = context();
        Rig {
            kernels: Kernels::load(&context).unwrap(),
            stream: Stream::new(&context).unwrap(),
            memory: DeviceMemory::new(&context, ROOM).unwrap(),
        }
    }

    /// An empty memory.
    pub fn case(&self) -> Case<'_> {
        Case { rig: self, image: Vec::new() }
    }
}

/// What is in the memory before a kernel runs.
pub struct Case<'a> {
    rig: &'a Rig,
    pub image: Vec<u8>,
}

impl Case<'_> {
    /// Places `bytes` `offset` bytes after a multiple of 64, between guards.
    pub fn place(&mut self, bytes: &[u8], offset: usize) -> Place {
        let start = (self.image.len() + MARGIN).next_multiple_of(64) + offset;
        self.image.resize(start, GUARD);
        self.image.extend_from_slice(bytes);
        self.image.extend_from_slice(&[GUARD; MARGIN]);
        Place { start, len: bytes.len() }
    }

    /// The device's address of it.
    pub fn address(&self, place: Place) -> u64 {
        self.rig.memory.address() + place.start as u64
    }

    /// Runs the job on what was placed, and returns what is there afterwards.
    pub fn run(&self, kernel: Kernel, job: &Job) -> Vec<u8> {
        // SAFETY: all addresses in the tests' jobs are those of places, for counts that fit them; the memory outlives
        // the job, as the stream is waited for.
        self.after(|Rig { kernels, stream, .. }| unsafe { kernels.launch(stream, kernel, job) })
    }

    /// The same, of several copies at once.
    pub fn run_gather(&self, gather: &Gather) -> Vec<u8> {
        // SAFETY: as above.
        self.after(|Rig { kernels, stream, .. }| unsafe { kernels.gather(stream, gather) })
    }

    fn after(&self, launch: impl FnOnce(&Rig) -> Result<(), maypole_cuda::CudaError>) -> Vec<u8> {
        let Rig { stream, memory, .. } = self.rig;
        memory.copy_from_host(0, &self.image).unwrap();
        launch(self.rig).unwrap();
        stream.synchronize().unwrap();
        let mut found = vec![0; self.image.len()];
        memory.copy_to_host(0, &mut found).unwrap();
        found
    }

    /// Runs the job, and asserts that the places have these contents then and everything else is as it was.
    pub fn expect(&self, kernel: Kernel, job: &Job, changes: &[(Place, &[u8])], what: impl Fn() -> String) {
        let mut expected = self.image.clone();
        for (place, bytes) in changes {
            expected[place.range()].copy_from_slice(bytes);
        }
        let found = self.run(kernel, job);
        if let Some(at) = (0..found.len()).find(|&at| found[at] != expected[at]) {
            let place = changes.iter().find(|(place, _)| place.range().contains(&at));
            let place = place.map(|(place, _)| format!("in byte {} of {place:?}", at - place.start));
            let place = place.unwrap_or("outside of the results".into());
            panic!("{}: {:#x} instead of {:#x} {place}", what(), found[at], expected[at]);
        }
    }
}
