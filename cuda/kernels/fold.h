// What is done to elements: the folds that drive.h is given. Each works on 16 bytes of elements.

#pragma once

#include "drive.h"
#include "minifloat.h"

struct Nothing {};

// ---- lanes: results that need no wider form while they grow ----

// A lane is a 32-bit word of elements or a 64-bit element:
//
//     struct Lane {
//         typedef u32 or u64 Bits;
//         static constexpr u32 SIZE;                       // bytes of an element
//         struct Setup;
//         static Setup setup(const Job &);
//         static Bits to(Bits, const Setup &);             // what is combined
//         static Bits apply(Bits, Bits, const Setup &);
//         static Bits from(Bits, const Setup &);           // the result of what was combined
//     };
template <class Lane> struct LaneFold {
    typedef typename Lane::Bits Bits;
    static constexpr u32 SIZE = Lane::SIZE, UNROLL = 2, CHUNK = 2;
    static constexpr bool SINGLE = false;
    static constexpr int LANES = 16 / sizeof(Bits);
    struct State {
        Bits lane[LANES];
    };
    typedef typename Lane::Setup Setup;
    INLINE Setup setup(const Job &job) {
        return Lane::setup(job);
    }
    INLINE void first(State &state, const Vector &v, const Setup &setup) {
#pragma unroll
        for (int i = 0; i < LANES; i++) state.lane[i] = Lane::to(lane_of(v, i), setup);
    }
    INLINE void next(State &state, const Vector &v, const Setup &setup) {
#pragma unroll
        for (int i = 0; i < LANES; i++)
            state.lane[i] = Lane::apply(state.lane[i], Lane::to(lane_of(v, i), setup), setup);
    }
    INLINE Vector finish(const State &state, const Setup &setup) {
        Vector v;
#pragma unroll
        for (int i = 0; i < LANES; i++) {
            Bits result = Lane::from(state.lane[i], setup);
            constexpr int words = 4 / LANES;
            v.word[words * i] = (u32)result;
            if (words == 2) v.word[words * i + words - 1] = (u32)((u64)result >> 32);
        }
        return v;
    }

  private:
    INLINE Bits lane_of(const Vector &v, int i) {
        if (sizeof(Bits) == 4) return v.word[i & 3];
        return (Bits)(v.word[2 * i & 3] | (u64)v.word[(2 * i + 1) & 3] << 32);
    }
};

// What lanes that need no more have in common.
template <class Integer, u32 Size> struct PlainLane {
    typedef Integer Bits;
    static constexpr u32 SIZE = Size;
    typedef Nothing Setup;
    INLINE Setup setup(const Job &) {
        return {};
    }
    INLINE Bits to(Bits bits, const Setup &) {
        return bits;
    }
    INLINE Bits from(Bits bits, const Setup &) {
        return bits;
    }
};

// Minimum, and maximum as the minimum of flipped values. `Keys` maps elements to unsigned or signed numbers, or floats, and
// back; `flip` reverses their order in both directions.
//
//     struct Keys {
//         typedef ... Bits;
//         static constexpr u32 SIZE;
//         static constexpr Bits FLIP;                      // what reverses the order, by exclusive or
//         static Bits to(Bits, Bits flip);
//         static Bits lesser(Bits, Bits);
//         static Bits from(Bits, Bits flip);
//     };
template <class Keys> struct ExtremeLane {
    typedef typename Keys::Bits Bits;
    static constexpr u32 SIZE = Keys::SIZE;
    typedef Bits Setup;
    INLINE Setup setup(const Job &job) {
        return job.op == MAX ? Keys::FLIP : 0;
    }
    INLINE Bits to(Bits bits, const Setup &flip) {
        return Keys::to(bits, flip);
    }
    INLINE Bits apply(Bits a, Bits b, const Setup &) {
        return Keys::lesser(a, b);
    }
    INLINE Bits from(Bits bits, const Setup &flip) {
        return Keys::from(bits, flip);
    }
};

// ---- a product with the same factor everywhere ----

template <class Product> struct ScaleFold : Product {
    static constexpr bool SINGLE = true;
    struct Setup {
        typename Product::Setup product;
        // The factor's copies.
        Vector factors;
    };
    INLINE Setup setup(const Job &job) {
        u64 factor = job.factor;
        if (Product::SIZE == 1) factor = (factor & 0xff) * 0x0101010101010101;
        if (Product::SIZE == 2) factor = (factor & 0xffff) * 0x0001000100010001;
        if (Product::SIZE == 4) factor = (factor & 0xffffffff) * 0x0000000100000001;
        u32 low = (u32)factor, high = (u32)(factor >> 32);
        return {Product::setup(job), {{low, high, low, high}}};
    }
    INLINE void first(typename Product::State &state, const Vector &v, const Setup &setup) {
        Product::first(state, v, setup.product);
        Product::next(state, setup.factors, setup.product);
    }
    INLINE void next(typename Product::State &, const Vector &, const Setup &) {}
    INLINE Vector finish(const typename Product::State &state, const Setup &setup) {
        return Product::finish(state, setup.product);
    }
};

// ---- quotients of floats ----

// The divisor of an average, in f32. Most world sizes are powers of two, whose reciprocals are exact: a product is the
// quotient then. `wanted` says whether there is anything to divide by.
template <class Value> struct FloatDivisor {
    Value divisor, reciprocal;
    bool wanted, exact;

    static __device__ __forceinline__ FloatDivisor of(const Job &job) {
        Value rounded = (Value)job.divide;
        return {rounded, 1 / rounded, job.divide > 1, is_power_of_two(rounded)};
    }

  private:
    INLINE bool is_power_of_two(float value) {
        return (__float_as_uint(value) & 0x007fffff) == 0;
    }
    INLINE bool is_power_of_two(double value) {
        return ((u64)__double_as_longlong(value) & 0x000fffffffffffff) == 0;
    }
};
