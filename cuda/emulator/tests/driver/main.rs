//! The emulator, asked through the driver's own interface: every family of calls, and every switch.
//!
//! The shared object is loaded as tests of other crates load it, and called through `cudarc`, so names and signatures
//! are those that products use. What is asserted is what CUDA's manual says; the emulator is where it can be seen at
//! all that a program does not rely on more.

mod capture;
mod contexts;
mod copies;
mod cuda;
mod events;
mod ipc;
mod kernels;
mod memory;
mod pointers;
mod queue;
mod streams;
mod switches;
mod words;
