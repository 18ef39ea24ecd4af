//! A [`Communicator`] is one rank's handle to a group of ranks that exchange data by collective operations: all-reduce, broadcast,
//! all-to-all and the rest.

pub mod command;
pub mod communicator;
pub mod config;
mod engine;
pub mod error;
pub mod fingerprint;
pub mod launch;
mod log;
pub mod node;
pub mod perf;
pub mod topology;
mod tuner;
pub mod watch;

pub use communicator::request::{Request, Scope, scope};
pub use communicator::stream::Stream;
pub use communicator::{Call, Communicator};
pub use config::Config;
pub use error::{Error, Result, Verdict};
pub use fingerprint::Fingerprint;
pub use maypole_collectives::algorithms::Algorithm;
pub use maypole_collectives::schedule::Collective;
pub use maypole_collectives::{DataType, Element, ReduceOp};
pub use node::UniqueId;
