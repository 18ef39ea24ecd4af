// The kernels as host code. Tests run the very same .cu files on machines without a GPU: this header stands in for the
// part of CUDA C++ that they use. Compiled as C++ with it, each kernel becomes a function of its name that takes a grid and
// the address of its parameter.
//
// A kernel's threads run one after the other, block by block. That is enough, as no kernel here waits for another
// thread: none has a shuffle or a spin, and after a barrier only the last thread of a block does anything. Shared memory is one block's at a time, in a thread-local variable.
// Whoever runs kernels on several host threads (the emulator does, one per stream) may do so at the same time.
//
// Host code is slower than it could be, and shows nothing about the speed of a GPU.

#pragma once

#include <math.h>
#include <string.h>

struct HostIndex {
    unsigned x, y, z;
};

// What <<<grid, block>>> says.
struct HostGrid {
    HostIndex grid, block;
};

static thread_local HostIndex gridDim, blockDim, blockIdx, threadIdx;

#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __shared__ static thread_local

#define KERNEL(name, Parameter, parameter)                                                                             \
    static void name##_thread(const Parameter &parameter);                                                             \
    extern "C" __attribute__((visibility("default"))) void name(const HostGrid *grid, const void *bytes) {             \
        Parameter copy;                                                                                                \
        memcpy(&copy, bytes, sizeof copy);                                                                             \
        gridDim = grid->grid;                                                                                          \
        blockDim = grid->block;                                                                                        \
        for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)                                                     \
            for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)                                                 \
                for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)                                             \
                    for (threadIdx.z = 0; threadIdx.z < blockDim.z; threadIdx.z++)                                     \
                        for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)                                 \
                            for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) name##_thread(copy);        \
    }                                                                                                                  \
    static void name##_thread(const Parameter &parameter)

// For the emulator's counters: bytes of data that a job reads and writes.
extern "C" void count_traffic(unsigned long long read, unsigned long long written);

// A word that others wait for: the emulator writes it, as it does for streams.
extern "C" void write_word(unsigned *at, unsigned value);

// Whether what this thread's kernel stores is kept back until its next fence, or its end; and keeping it back.
extern thread_local bool keeps_back;
extern "C" void keep_back(void *at, const void *bytes, unsigned count);
// Stores what was kept back.
extern "C" void let_go();

// A store that others may see late.
template <class Value> static inline void store_late(void *at, const Value &value) {
    if (keeps_back)
        keep_back(at, &value, sizeof value);
    else
        *(Value *)at = value;
}

// All others have run when the last thread comes here, and no other does anything behind it.
static inline void __syncthreads() {}

static inline void __threadfence_system() {
    if (keeps_back) let_go();
    __sync_synchronize();
}

static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline long long __double_as_longlong(double value) {
    long long bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline double __longlong_as_double(long long bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The 32 bits from `shift` (0 to 31) on of high:low.
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)((((unsigned long long)high << 32) | low) >> (shift & 31));
}

static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
