// The floats of 8 and 16 bits. Sums and products of any number of sources grow in f32 and are rounded once, so that for
// two sources the result is the host's; minimum and maximum compare codes. As in collectives/src/reduce/narrow.rs.

#include "entries.h"

namespace {

// ---- a vector's elements as f32 ----

template <class Float> struct Halves {
    static constexpr u32 SIZE = 2, LANES = 8, UNROLL = 2, CHUNK = 2;
    static constexpr float SCALE = 1.0f;
    INLINE void widen(const Vector &v, float (&lane)[8]) {
#pragma unroll
        for (int i = 0; i < 4; i++) Float::widen(v.word[i], lane[2 * i], lane[2 * i + 1]);
    }
    INLINE Vector narrow(const float (&lane)[8]) {
        Vector v;
#pragma unroll
        for (int i = 0; i < 4; i++) v.word[i] = Float::narrow(lane[2 * i], lane[2 * i + 1]);
        return v;
    }
};

// At `SCALE` of their values, in case of E4M3.
template <class Float> struct Bytes {
    // 16 sums take 16 registers, so there is room for one vector only; but for more sources.
    static constexpr u32 SIZE = 1, LANES = 16, UNROLL = 1, CHUNK = 4;
    static constexpr float SCALE = Float::SCALE;
    INLINE void widen(const Vector &v, float (&lane)[16]) {
        u32 halves[8];
        Float::widen_halves(v, halves);
#pragma unroll
        for (int i = 0; i < 8; i++) widen_f16(halves[i], lane[2 * i], lane[2 * i + 1]);
    }
    INLINE Vector narrow(const float (&lane)[16]) {
        Vector v;
#pragma unroll
        for (int i = 0; i < 4; i++)
            v.word[i] = Float::narrow(lane[4 * i], lane[4 * i + 1], lane[4 * i + 2], lane[4 * i + 3]);
        return v;
    }
    // As binary16, rounded to the format, whose largest number does not matter here. False if it does for one of them, or
    // one is NaN: then `narrow` it is.
    INLINE bool round(const float (&lane)[16], u32 (&halves)[8]) {
        u32 beyond = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float low = round_to<Float::DIGITS>(lane[2 * i]), high = round_to<Float::DIGITS>(lane[2 * i + 1]);
            halves[i] = narrow_f16(low, high);
            beyond |= Float::beyond(halves[i]);
        }
        return !beyond;
    }
    // The codes of what is rounded so.
    INLINE Vector pack(const u32 (&halves)[8]) {
        Vector v;
#pragma unroll
        for (int i = 0; i < 4; i++) v.word[i] = Float::pack(halves[2 * i], halves[2 * i + 1]);
        return v;
    }
};

template <class Float> struct Widened;
template <> struct Widened<F16> : Halves<F16> {};
template <> struct Widened<BF16> : Halves<BF16> {};
template <> struct Widened<E4M3> : Bytes<E4M3> {};
template <> struct Widened<E5M2> : Bytes<E5M2> {};

// ---- sums and products ----

// The largest divisor by which 8-bit floats are divided in binary16, powers of two aside. A quotient by n that is no code
// lies at least 1 / 31n of itself off the middle between two, and the product with the reciprocal is off by 2^-10 at most,
// mostly less: so the bound is not reckoned. The tests try all up to it; the first that is wrong for some code is 111.
constexpr float MOST_BY_HALVES = 100;
// The same for products in f32, whose error is 2^-23.
constexpr float MOST_BY_PRODUCT = 65536;

struct Divisor : FloatDivisor<float> {
    // The reciprocal in binary16, twice, if the product of an 8-bit float and it is rounded to what the quotient is rounded
    // to; 0 if not. Products with powers of two are exact as long as binary16 has the reciprocal as a normal number.
    u32 halves;

    static __device__ __forceinline__ Divisor of(const Job &job) {
        FloatDivisor<float> by = FloatDivisor<float>::of(job);
        bool serves = by.exact ? by.reciprocal >= SMALLEST : by.divisor <= MOST_BY_HALVES;
        return {by, by.wanted && serves ? narrow_f16(by.reciprocal, by.reciprocal) : 0};
    }
};

// Two 8-bit floats divided, as binary16 whose upper bits are the result.
template <class Float> INLINE u32 divide_halves(u32 halves, const Divisor &by) {
    return Float::round_halves(multiply_f16(halves, by.halves));
}

// An average: of the sum that has been rounded, as on the host. Not inlined, so that sums are not the larger for it.
template <class Float> static __device__ __noinline__ Vector divide(Vector v, Divisor by) {
    typedef Widened<Float> Wide;
    float lane[Wide::LANES];
    Wide::widen(v, lane);
    // A loop each: one test per vector, not per element.
    if (by.exact || (Wide::SIZE == 1 && by.divisor <= MOST_BY_PRODUCT)) {
#pragma unroll
        for (u32 i = 0; i < Wide::LANES; i++) lane[i] *= by.reciprocal;
    } else {
#pragma unroll
        for (u32 i = 0; i < Wide::LANES; i++) lane[i] /= by.divisor;
    }
    return Wide::narrow(lane);
}

// In f32, rounded once at the end.
template <class Float, bool Product> struct WideFold {
    typedef Widened<Float> Wide;
    static constexpr u32 SIZE = Wide::SIZE, UNROLL = Wide::UNROLL, CHUNK = Wide::CHUNK;
    static constexpr bool SINGLE = false;
    struct State {
        float lane[Wide::LANES];
    };
    typedef Divisor Setup;
    INLINE Setup setup(const Job &job) {
        return Divisor::of(job);
    }
    INLINE void first(State &state, const Vector &v, const Setup &) {
        Wide::widen(v, state.lane);
    }
    INLINE void next(State &state, const Vector &v, const Setup &) {
        float lane[Wide::LANES];
        Wide::widen(v, lane);
#pragma unroll
        for (u32 i = 0; i < Wide::LANES; i++) {
            if (Product && Wide::SCALE != 1) lane[i] *= Wide::SCALE;
            state.lane[i] = Product ? state.lane[i] * lane[i] : state.lane[i] + lane[i];
        }
    }
    INLINE Vector finish(const State &state, const Setup &by) {
        if constexpr (SIZE == 1 && !Product) {
            // What the sum is rounded to is there as binary16 before it is a code.
            u32 halves[8];
            if (by.halves != 0 && Wide::round(state.lane, halves)) {
#pragma unroll
                for (int i = 0; i < 8; i++) halves[i] = divide_halves<Float>(halves[i], by);
                return Wide::pack(halves);
            }
        }
        Vector v = Wide::narrow(state.lane);
        if (!Product && by.wanted) v = divide<Float>(v, by);
        return v;
    }
};

// The sum, or the product, of at most two vectors of 8-bit floats: in binary16, two elements to a register, half the
// instructions. The result is the same. Binary16 has more than twice the digits of these formats and two more, so that
// rounding a sum or a product of two to it first does no harm (Figueroa, "When is double rounding innocuous?", 1995);
// and where its exponents end, products have too few digits to be rounded at all. The tests try every pair.
template <class Float, bool Product> struct PairFold {
    static constexpr u32 SIZE = 1, UNROLL = 2, CHUNK = 2;
    static constexpr bool SINGLE = false;
    struct State {
        u32 halves[8];
    };
    typedef Divisor Setup;
    INLINE Setup setup(const Job &job) {
        return Divisor::of(job);
    }
    INLINE void first(State &state, const Vector &v, const Setup &) {
        Float::widen_halves(v, state.halves);
    }
    INLINE void next(State &state, const Vector &v, const Setup &) {
        u32 halves[8];
        Float::widen_halves(v, halves);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (Product && Float::SCALE != 1) halves[i] = multiply_f16(halves[i], Float::SCALE_HALVES);
            state.halves[i] =
                Product ? multiply_f16(state.halves[i], halves[i]) : add_f16(state.halves[i], halves[i]);
        }
    }
    INLINE Vector finish(const State &state, const Setup &by) {
        u32 beyond = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) beyond |= Float::beyond(state.halves[i]);
        bool divide = !Product && by.wanted;
        if (beyond || (divide && by.halves == 0)) return finish_any(state, by);
        u32 rounded[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            rounded[i] = Float::round_halves(state.halves[i]);
            if (divide) rounded[i] = divide_halves<Float>(rounded[i] & Float::KEPT, by);
        }
        return Bytes<Float>::pack(rounded);
    }

  private:
    // What is right for every value and every divisor. Not inlined, as it is rare.
    static __device__ __noinline__ Vector finish_any(State state, Divisor by) {
        Vector v;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float a, b, c, d;
            widen_f16(state.halves[2 * i], a, b);
            widen_f16(state.halves[2 * i + 1], c, d);
            v.word[i] = Float::narrow(a, b, c, d);
        }
        return !Product && by.wanted ? divide<Float>(v, by) : v;
    }
};

// ---- minimum and maximum ----

// Codes of floats order like their values once those below a minus sign are inverted and the others' sign is set, -0
// below +0. A NaN's key is 0, so that it wins; no number's is, as the most extreme codes are NaN.
template <class Float> struct CodeKeys {
    typedef u32 Bits;
    static constexpr int BITS = Float::BITS;
    static constexpr u32 SIZE = BITS / 8, TOP = Lanes<BITS>::TOP, FLIP = 0xffffffff;
    INLINE u32 to(u32 codes, u32 flip) {
        u32 nans = spread<BITS>((codes & ~TOP) + Float::ABOVE_LARGEST);
        return (codes ^ (spread<BITS>(codes) | TOP) ^ flip) & ~nans;
    }
    INLINE u32 lesser(u32 a, u32 b) {
        return min_lanes<BITS>(a, b);
    }
    INLINE u32 from(u32 keys, u32 flip) {
        keys ^= flip;
        u32 codes = keys ^ (~spread<BITS>(keys) | TOP);
        u32 nans = spread<BITS>((codes & ~TOP) + Float::ABOVE_LARGEST);
        return choose(nans, Float::NAN_CODE, codes);
    }
};

// ---- the types ----

template <class Float> struct HalfType {
    typedef WideFold<Float, false> Sum;
    typedef WideFold<Float, true> Prod;
    typedef Prod Scaling;
    typedef LaneFold<ExtremeLane<CodeKeys<Float>>> Extreme;
    INLINE bool run(const Job &, const Inputs &) {
        return false;
    }
};

template <class Float> struct ByteType : HalfType<Float> {
    typedef PairFold<Float, true> Scaling;
    // The common case, a step of a ring or a tree, has a quicker way.
    INLINE bool run(const Job &job, const Inputs &inputs) {
        if (job.sources > 2 || job.op == MIN || job.op == MAX) return false;
        if (job.op == PROD)
            drive<PairFold<Float, true>>(job, inputs);
        else
            drive<PairFold<Float, false>>(job, inputs);
        return true;
    }
};

} // namespace

KERNEL(maypole_reduce_f16, Job, job) { reduce<HalfType<F16>>(job); }
KERNEL(maypole_reduce_bf16, Job, job) { reduce<HalfType<BF16>>(job); }
KERNEL(maypole_reduce_f8e4m3, Job, job) { reduce<ByteType<E4M3>>(job); }
KERNEL(maypole_reduce_f8e5m2, Job, job) { reduce<ByteType<E5M2>>(job); }

KERNEL(maypole_scale_f16, Job, job) { scale<HalfType<F16>>(job); }
KERNEL(maypole_scale_bf16, Job, job) { scale<HalfType<BF16>>(job); }
KERNEL(maypole_scale_f8e4m3, Job, job) { scale<ByteType<E4M3>>(job); }
KERNEL(maypole_scale_f8e5m2, Job, job) { scale<ByteType<E5M2>>(job); }
