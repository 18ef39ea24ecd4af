//! A stand-in for `libcuda.so.1` over host memory, for tests on machines without a GPU.

pub mod abi;
mod call;
mod chaos;
mod context;
pub mod control;
mod copies;
mod event;
mod host;
mod ipc;
mod memory;
mod memory_operations;
mod module;
mod pointers;
mod ptx;
mod stream;
mod streams;
mod switches;
pub mod testing;
mod twins;
mod work;
