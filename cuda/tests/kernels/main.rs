//! The kernels against the host's: every type and operation, at every alignment, with one to eight sources; headers,
//! loans and trouble. On the emulator, which runs the same sources; with MAYPOLE_TEST_CUDA=device on a GPU.

mod addresses;
mod arithmetic;
mod exhaustive;
mod headers;
mod operands;
mod ptx;
mod rig;
