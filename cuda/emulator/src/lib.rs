//! A stand-in for `libcuda.so.1` over host memory, for tests on machines without a GPU.
