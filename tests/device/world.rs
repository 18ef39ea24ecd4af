//! Ranks with devices: which driver, a context and a stream for each rank, as threads of the test.

use std::sync::Arc;

use maypole::cuda::{Context, Stream};
use maypole::{Communicator, Config};
use maypole_cuda_emulator::testing::{self, Emulator};

use crate::ranks;

/// The driver under test.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Emulator,
    Device,
}

/// What `MAYPOLE_TEST_CUDA` says.
pub fn driver() -> Driver {
    match std::env::var("MAYPOLE_TEST_CUDA").as_deref() {
        Err(_) | Ok("" | "emulator") => Driver::Emulator,
        Ok("device") => Driver::Device,
        Ok(other) => panic!("MAYPOLE_TEST_CUDA is {other}: expected emulator or device"),
    }
}

impl Driver {
    pub fn name(self) -> String {
        match self {
            Driver::Emulator => "the emulated driver".to_string(),
            Driver::Device => match maypole::cuda::probe() {
                Ok(driver) => format!("the installed driver, version {}", driver.version()),
                Err(error) => format!("the installed driver: {error}"),
            },
        }
    }

    /// Have it answer in this process. Before anything asks for a driver.
    pub fn load(self) {
        match self {
            Driver::Emulator => drop(testing::load()),
            Driver::Device => {
                let found = maypole::cuda::probe().unwrap_or_else(|error| panic!("no driver: {error}"));
                assert!(found.device_count() > 0, "the driver knows no device");
            }
        }
    }
}

/// The emulator's switches and counters, in tests that run on nothing else.
pub fn emulator() -> &'static Emulator {
    testing::load()
}

/// A device and so a context for each rank of the test: what is not registered is copied and passes the window. Before
/// anything asks for a driver.
pub fn a_context_for_each() {
    emulator().set("DEVICES", "8");
}

/// Settings of a test: a deadline that only a hang reaches, less staging memory than by default, since it costs time to
/// make, and `knobs`.
pub fn config(knobs: &[(&str, &str)]) -> Config {
    let mut config = Config::default();
    config.timeout = ranks::patience();
    config.late = std::time::Duration::ZERO;
    config.device_window = 1 << 20;
    config.device_fifo = 256 << 10;
    for (name, value) in knobs {
        config.set(name, value).unwrap_or_else(|error| panic!("{name}={value}: {error}"));
    }
    config
}

/// Settings under which messages of some kilobytes take several rounds and slots.
pub const SMALL: [(&str, &str); 2] = [("MAYPOLE_DEVICE_WINDOW", "4096"), ("MAYPOLE_DEVICE_FIFO", "8192")];

/// A rank: its communicator, and a context and stream of its own to use it with.
pub struct Rank {
    // In the order in which they go.
    pub comm: Communicator,
    pub stream: Stream,
    pub context: Arc<Context>,
}

impl Rank {
    /// Rank of `comm`, on one of the devices there are.
    pub fn new(comm: Communicator) -> Rank {
        let devices = maypole::cuda::probe().expect("a driver").device_count();
        let context = Context::primary(comm.rank() % devices).expect("a context");
        let stream = Stream::new(&context).expect("a stream");
        Rank { comm, stream, context }
    }

    /// Wait for what is queued, on all ranks: nobody frees memory while another's stream still waits for something,
    /// since freeing waits for the whole device.
    pub fn settle(&self) {
        self.comm.on(&self.stream).synchronize().expect("what is queued ends well");
        self.stream.synchronize().expect("the stream has no error");
        self.comm.barrier().expect("a barrier on the host");
    }
}

/// Run `body` once for each rank of a world of threads; results by rank. Ranks go only when all have come to the end.
pub fn world<T: Send>(size: usize, config: &Config, body: impl Fn(&Rank) -> T + Sync) -> Vec<T> {
    ranks::threads(size, config, |comm| {
        let rank = Rank::new(comm);
        // Before anybody's stream waits, since it may stop the device for a while.
        rank.comm.attach(&rank.context).unwrap_or_else(|error| panic!("attach: {error}"));
        let result = body(&rank);
        rank.settle();
        result
    })
}
