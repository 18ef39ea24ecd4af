// f32 and f64. As in collectives/src/reduce/float.rs: every NaN that is written is the positive quiet one without
// payload, and -0 is below +0.

#include "entries.h"

namespace {

// Bits and values.
struct Float32 {
    typedef u32 Bits;
    typedef float Value;
    static constexpr Bits NAN_BITS = 0x7fc00000;
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
    static constexpr Bits NAN_BITS = 0x7ff8000000000000;
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

template <class Float> struct Add {
    typedef typename Float::Bits Bits;
    INLINE Bits apply(Bits a, Bits b) {
        return Float::bits(Float::value(a) + Float::value(b));
    }
};

template <class Float> struct Multiply {
    typedef typename Float::Bits Bits;
    INLINE Bits apply(Bits a, Bits b) {
        return Float::bits(Float::value(a) * Float::value(b));
    }
};

// The two selections differ for two zeros of different sign only, where the bits decide, and for NaN, which stays one:
// a comparison with it is false, so that one of them is the NaN, and the other bits added or taken are set to one
// pattern in the end.
template <class Float, bool Greatest> struct Extreme {
    typedef typename Float::Bits Bits;
    INLINE Bits apply(Bits a, Bits b) {
        typename Float::Value x = Float::value(a), y = Float::value(b);
        if (x != x || y != y) return Float::NAN_BITS;
        Bits p = (Greatest ? x > y : x < y) ? a : b;
        Bits q = (Greatest ? y > x : y < x) ? b : a;
        return Greatest ? p & q : p | q;
    }
};

// The fold whose results' NaNs are made the same in the end.
template <class Base> struct OneNan32 : Base {
    INLINE Vector finish(const typename Base::State &state, const Nothing &) {
        Vector v;
#pragma unroll
        for (int i = 0; i < 4; i++) v.word[i] = one_nan<Float32>(state.word[i]);
        return v;
    }
};

template <class Base> struct OneNan64 : Base {
    INLINE Vector finish(const typename Base::State &state, const Nothing &nothing) {
        typename Base::State clean;
#pragma unroll
        for (int i = 0; i < 2; i++) clean.element[i] = one_nan<Float64>(state.element[i]);
        return Base::finish(clean, nothing);
    }
};

struct Quotient32 {
    typedef FloatDivisor Divisor;
    INLINE Divisor by(u64 divisor) {
        return float_divisor(divisor);
    }
    INLINE Vector divide(const Vector &v, const Divisor &by) {
        Vector quotients;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float x = __uint_as_float(v.word[i]);
            float q = by.exact ? x * by.reciprocal : x / by.divisor;
            quotients.word[i] = one_nan<Float32>(__float_as_uint(q));
        }
        return quotients;
    }
};

struct Quotient64 {
    struct Divisor {
        double divisor, reciprocal;
        bool exact;
    };
    INLINE Divisor by(u64 divisor) {
        double rounded = (double)divisor;
        return {rounded, 1.0 / rounded, ((u64)__double_as_longlong(rounded) & 0x000fffffffffffff) == 0};
    }
    INLINE Vector divide(const Vector &v, const Divisor &by) {
        Vector quotients;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            double x = Float64::value(v.word[2 * i] | (u64)v.word[2 * i + 1] << 32);
            double q = by.exact ? x * by.reciprocal : x / by.divisor;
            u64 bits = one_nan<Float64>(Float64::bits(q));
            quotients.word[2 * i] = (u32)bits;
            quotients.word[2 * i + 1] = (u32)(bits >> 32);
        }
        return quotients;
    }
};

struct F32 {
    typedef OneNan32<WordFold<Add<Float32>, 4>> Sum;
    typedef OneNan32<WordFold<Multiply<Float32>, 4>> Prod;
    typedef OneNan32<WordFold<Extreme<Float32, false>, 4>> Min;
    typedef OneNan32<WordFold<Extreme<Float32, true>, 4>> Max;
    typedef AverageFold<Sum, Quotient32> Average;
    INLINE bool run(const Job &, const Inputs &) {
        return false;
    }
};

struct F64 {
    typedef OneNan64<LongFold<Add<Float64>>> Sum;
    typedef OneNan64<LongFold<Multiply<Float64>>> Prod;
    typedef OneNan64<LongFold<Extreme<Float64, false>>> Min;
    typedef OneNan64<LongFold<Extreme<Float64, true>>> Max;
    typedef AverageFold<Sum, Quotient64> Average;
    INLINE bool run(const Job &, const Inputs &) {
        return false;
    }
};

} // namespace

KERNEL(maypole_reduce_f32, Job, job) { reduce<F32>(job); }
KERNEL(maypole_reduce_f64, Job, job) { reduce<F64>(job); }

KERNEL(maypole_scale_f32, Job, job) { scale<F32>(job); }
KERNEL(maypole_scale_f64, Job, job) { scale<F64>(job); }
