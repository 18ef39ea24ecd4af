// f32 and f64. As in collectives/src/reduce/float.rs: every NaN that is written is the positive quiet one without
// payload, and -0 is below +0.

#include "entries.h"

namespace {

// Bits and values.
struct Float32 {
    typedef u32 Bits;
    typedef float Value;
    static constexpr Bits NAN_BITS = 0x7fc00000, SIGN = 0x80000000;
    INLINE Value value(Bits bits) {
        return __uint_as_float(bits);
    }
    INLINE Bits bits(Value value) {
        return __float_as_uint(value);
    }
};

struct Float64 {
    typedef u64 Bits;
    typedef double Value;
    static constexpr Bits NAN_BITS = 0x7ff8000000000000, SIGN = 0x8000000000000000;
    INLINE Value value(Bits bits) {
        return __longlong_as_double((long long)bits);
    }
    INLINE Bits bits(Value value) {
        return (u64)__double_as_longlong(value);
    }
};

template <class Float> INLINE typename Float::Bits one_nan(typename Float::Bits bits) {
    typename Float::Value value = Float::value(bits);
    return value != value ? Float::NAN_BITS : bits;
}

template <class Float> struct SumLane : PlainLane<typename Float::Bits, sizeof(typename Float::Bits)> {
    typedef typename Float::Bits Bits;
    typedef FloatDivisor<typename Float::Value> Setup;
    INLINE Setup setup(const Job &job) {
        return Setup::of(job);
    }
    INLINE Bits to(Bits bits, const Setup &) {
        return bits;
    }
    INLINE Bits apply(Bits a, Bits b, const Setup &) {
        return Float::bits(Float::value(a) + Float::value(b));
    }
    INLINE Bits from(Bits bits, const Setup &by) {
        typename Float::Value x = Float::value(bits);
        if (by.wanted) x = by.exact ? x * by.reciprocal : x / by.divisor;
        return one_nan<Float>(Float::bits(x));
    }
};

template <class Float> struct ProductLane : PlainLane<typename Float::Bits, sizeof(typename Float::Bits)> {
    typedef typename Float::Bits Bits;
    INLINE Bits apply(Bits a, Bits b, const Nothing &) {
        return Float::bits(Float::value(a) * Float::value(b));
    }
    INLINE Bits from(Bits bits, const Nothing &) {
        return one_nan<Float>(bits);
    }
};

// The maximum is the negative of the minimum of negatives.
template <class Float> struct FloatExtremes {
    typedef typename Float::Bits Bits;
    static constexpr u32 SIZE = sizeof(Bits);
    static constexpr Bits FLIP = Float::SIGN;
    INLINE Bits to(Bits bits, Bits flip) {
        return bits ^ flip;
    }
    INLINE Bits lesser(Bits a, Bits b) {
        typename Float::Value x = Float::value(a), y = Float::value(b);
        if (x != x || y != y) return Float::NAN_BITS;
        // These differ only for two zeros of different sign, where `or` keeps the minus.
        return (x < y ? a : b) | (y < x ? b : a);
    }
    INLINE Bits from(Bits bits, Bits flip) {
        return one_nan<Float>(bits ^ flip);
    }
};

template <class Float> struct FloatType {
    typedef LaneFold<SumLane<Float>> Sum;
    typedef LaneFold<ProductLane<Float>> Prod;
    typedef Prod Scaling;
    typedef LaneFold<ExtremeLane<FloatExtremes<Float>>> Extreme;
    INLINE bool run(const Job &, const Inputs &) {
        return false;
    }
};

} // namespace

KERNEL(maypole_reduce_f32, Job, job) { reduce<FloatType<Float32>>(job); }
KERNEL(maypole_reduce_f64, Job, job) { reduce<FloatType<Float64>>(job); }

KERNEL(maypole_scale_f32, Job, job) { scale<FloatType<Float32>>(job); }
KERNEL(maypole_scale_f64, Job, job) { scale<FloatType<Float64>>(job); }
