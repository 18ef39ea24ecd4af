//! CUDA for Maypole: every call to the driver, the reduction kernels, and the transport between GPUs by peer copies.
//!
//! *Collectives decide, transports move, cuda accelerates, src composes.* Nothing here knows a communicator. A machine
//! without a GPU, or without a driver, is the usual case: nothing is linked, and asking for a device there is an error
//! that says so.
