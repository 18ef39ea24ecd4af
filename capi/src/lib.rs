//! Maypole's C ABI: what `include/maypole.h` declares.
//!
//! Every function here does four things: it looks its handles up, turns C's arguments into those of the library
//! `maypole`, calls that on memory by address ([`maypole::communicator::raw`]), and turns the outcome into a status. No
//! function unwinds into C, and no argument that can be checked is trusted.
//!
//! * [`status`], [`error`]: what a call returns, and the full text behind it. `entry`: what every call goes through.
//! * `table`: handles that are looked up, never dereferenced.
//! * [`config`], [`communicator`]: making communicators. [`values`], [`operation`]: element types and operations.
//! * `calls_v`: calls of C's arguments. `work`: what becomes of a call: run, queued, collected in a group, started or kept.
//! * [`collectives`], [`collectives_v`]: blocking forms. [`start`], [`start_v`]: asynchronous ones. [`persistent`],
//!   [`persistent_v`]: those planned once. [`messages`], [`group`], [`request`], [`stream`], [`memory`].
//!
//! The header is made from these files by cbindgen, comments included, so the comments are written for readers of C.

#![allow(non_camel_case_types, reason = "the names are C's")]
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments, reason = "the contract of every call is the header's")]

mod calls_v;
pub mod collectives;
pub mod collectives_v;
pub mod communicator;
pub mod config;
mod entry;
pub mod error;
pub mod group;
pub mod memory;
pub mod messages;
pub mod operation;
pub mod persistent;
pub mod persistent_v;
pub mod request;
pub mod start;
pub mod start_v;
pub mod status;
pub mod stream;
mod table;
pub mod values;
pub mod version;
mod work;
