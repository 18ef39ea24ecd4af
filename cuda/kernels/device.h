// The few operations that CUDA C++ and host code spell differently, under one name each. Everything else in this folder
// is plain C++ over them and the intrinsics of CUDA that host_shim.h has too.
//
// The PTX is for compute capability 7.5 and up, so instructions of later processors (conversions of 8-bit floats, packed
// minimum and maximum) are not used; swar.h and minifloat.h do without.

#pragma once

#include "job.h"

#ifndef __CUDACC__
#include "host_shim.h"
#endif

#define INLINE static __device__ __forceinline__

// Threads in a block of every kernel, whoever launches it. ../src/kernels/mod.rs has it too.
constexpr u32 BLOCK = 256;

// 16 bytes: what one thread loads at once.
struct alignas(16) Vector {
    u32 word[4];
};

#ifdef __CUDACC__

// A store that others may see late, but for fences. On the host it can be made to.
#define STORE(Type, at, value) *(Type *)(at) = (value)

// A kernel of one struct. At most 64 registers, so that four blocks of 256 threads fit on a multiprocessor.
#define KERNEL(name, Parameter, parameter)                                                                             \
    extern "C" __global__ void __launch_bounds__(256, 4) name(const __grid_constant__ Parameter parameter)

// `at` is a multiple of 16. Nobody else writes these bytes while the kernel runs, so the load may be moved about.
INLINE Vector load(const u8 *at) {
    Vector v;
    asm("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
        : "l"(__cvta_generic_to_global(at)));
    return v;
}

// The same for what the kernel reads once: from the second-level cache, which all multiprocessors have in common, and past
// the first, whose lines need not be what peers have written since.
INLINE Vector load_once(const u8 *at) {
    Vector v;
    asm("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
        : "l"(__cvta_generic_to_global(at)));
    return v;
}

// `at` is a multiple of 16.
INLINE void store(u8 *at, const Vector &v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "r"(v.word[0]),
                 "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
}

// A word that hosts and other devices wait for.
INLINE void store_word(u32 *at, u32 value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(at)), "r"(value) : "memory");
}

// Four of the eight bytes of b:a, chosen by the four nibbles of `selector`; a nibble above 7 spreads the top bit of
// byte nibble - 8 over the whole byte.
INLINE u32 permute(u32 a, u32 b, u32 selector) {
    u32 result;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
    return result;
}

// The two binary16 values of a word. Exact.
INLINE void widen_f16(u32 pair, float &low, float &high) {
    asm("{\n\t.reg .f16 low, high;\n\tmov.b32 {low, high}, %2;\n\tcvt.f32.f16 %0, low;\n\tcvt.f32.f16 %1, high;\n\t}"
        : "=f"(low), "=f"(high)
        : "r"(pair));
}

// Two values as binary16, rounded to nearest even. A NaN stays one.
INLINE u32 narrow_f16(float low, float high) {
    u32 pair;
    asm("{\n\t.reg .f16 low, high;\n\tcvt.rn.f16.f32 low, %1;\n\tcvt.rn.f16.f32 high, %2;\n\tmov.b32 %0, {low, high};\n\t}"
        : "=r"(pair)
        : "f"(low), "f"(high));
    return pair;
}

// Two sums of binary16 values, each rounded to nearest even. A NaN stays one.
INLINE u32 add_f16(u32 a, u32 b) {
    u32 sums;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sums) : "r"(a), "r"(b));
    return sums;
}

// Two products, likewise.
INLINE u32 multiply_f16(u32 a, u32 b) {
    u32 products;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(products) : "r"(a), "r"(b));
    return products;
}

// a * b + c, for operands whose product is exact, so that it does not matter how often it is rounded.
INLINE float fused(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
}

// The lesser and the greater of two; of a NaN and a number the number, which is the second.
INLINE float lesser(float a, float b) {
    return fminf(a, b);
}

INLINE float greater(float a, float b) {
    return fmaxf(a, b);
}

#else

#define STORE(Type, at, value) store_late(at, (Type)(value))

INLINE Vector load(const u8 *at) {
    return *(const Vector *)at;
}

INLINE Vector load_once(const u8 *at) {
    return load(at);
}

INLINE void store(u8 *at, const Vector &v) {
    store_late(at, v);
}

INLINE void store_word(u32 *at, u32 value) {
    write_word(at, value);
}

INLINE u32 permute(u32 a, u32 b, u32 selector) {
    u64 bytes = ((u64)b << 32) | a;
    u32 result = 0;
    for (u32 i = 0; i < 4; i++) {
        u32 nibble = selector >> (4 * i);
        u32 byte = (u8)(bytes >> (8 * (nibble & 7)));
        result |= (nibble & 8 ? (byte >> 7) * 0xff : byte) << (8 * i);
    }
    return result;
}

// binary16 in integers, as in collectives/src/minifloat.rs.
INLINE float host_widen_f16(u32 code) {
    u32 magnitude = code & 0x7fff;
    u32 normal = (magnitude << 13) + (112u << 23);
    u32 subnormal = __float_as_uint(__uint_as_float((magnitude << 13) | (113u << 23)) - __uint_as_float(113u << 23));
    u32 finite = magnitude < 0x400 ? subnormal : normal;
    u32 bits = magnitude >= 0x7c00 ? (magnitude << 13) | 0x7f800000 : finite;
    return __uint_as_float(bits | (code & 0x8000) << 16);
}

INLINE u32 host_narrow_f16(float value) {
    u32 bits = __float_as_uint(value), magnitude = bits & 0x7fffffff;
    u32 normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
    u32 anchor = 126u << 23;
    u32 subnormal = __float_as_uint(__uint_as_float(magnitude) + __uint_as_float(anchor)) - anchor;
    u32 code = magnitude < 113u << 23 ? subnormal : normal;
    // What a GPU makes of a NaN.
    if (magnitude > 0x7f800000) return 0x7fff;
    return (code < 0x7c00 ? code : 0x7c00) | (bits >> 16 & 0x8000);
}

INLINE void widen_f16(u32 pair, float &low, float &high) {
    low = host_widen_f16(pair & 0xffff);
    high = host_widen_f16(pair >> 16);
}

INLINE u32 narrow_f16(float low, float high) {
    return host_narrow_f16(low) | host_narrow_f16(high) << 16;
}

// f32 has more than twice the digits of binary16, so rounding twice is as good as once.
INLINE u32 add_f16(u32 a, u32 b) {
    float a0, a1, b0, b1;
    widen_f16(a, a0, a1);
    widen_f16(b, b0, b1);
    return narrow_f16(a0 + b0, a1 + b1);
}

INLINE u32 multiply_f16(u32 a, u32 b) {
    float a0, a1, b0, b1;
    widen_f16(a, a0, a1);
    widen_f16(b, b0, b1);
    return narrow_f16(a0 * b0, a1 * b1);
}

INLINE float fused(float a, float b, float c) {
    return a * b + c;
}

INLINE float lesser(float a, float b) {
    return a < b ? a : b;
}

INLINE float greater(float a, float b) {
    return a > b ? a : b;
}

#endif
