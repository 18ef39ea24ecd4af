//! The kernels against the host's: every type and operation, at every alignment, with one to eight sources; headers,
//! loans and trouble; and those of measurements. On the emulator, which runs the same sources; with MAYPOLE_TEST_CUDA=device on a GPU.

mod addresses;
mod arithmetic;
mod bench;
mod exhaustive;
mod headers;
mod operands;
mod ptx;
mod rig;
