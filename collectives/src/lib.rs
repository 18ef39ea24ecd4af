//! Collective algorithms as data, and the arithmetic they need.
//!
//! *Collectives decide, transports move, src composes.* This crate is the part that decides. An algorithm is a pure
//! function from (algorithm, rank, world size, root, hosts) to that rank's [`Schedule`](schedule::Schedule): steps over
//! chunks of the input, the output and a scratch buffer. Nothing here knows a socket, a clock or a thread, so every schedule
//! can be executed symbolically by the [`verify`] module before it ever moves a byte.
//!
//! * [`catalogue`]: the list of collectives, and what each means.
//! * [`schedule`]: the vocabulary in which algorithms are written.
//! * [`hosts`]: which rank is on which host, for algorithms that mind.
//! * [`algorithms`]: one file each, its source cited on top.
//! * [`linear`]: a schedule in one order, for executors that wait for one thing at a time.
//! * [`verify`]: runs all ranks' schedules symbolically and says what is wrong with them.
//! * [`dtype`], [`element`], [`op`], [`pair`], [`reduce`]: element types, reduction operations and
//!   the vectorised kernels.

pub mod algorithms;
pub mod catalogue;
pub mod dtype;
pub mod element;
pub mod hosts;
pub mod linear;
mod minifloat;
pub mod op;
pub mod pair;
pub mod reduce;
pub mod schedule;
pub mod verify;

pub use dtype::DataType;
pub use element::{Element, F8E4M3, F8E5M2, Operand};
pub use hosts::Hosts;
pub use op::{Operator, Order, ReduceOp, UserFn, UserFnWith, UserOp};
pub use pair::{Located, Pair};
