// What is done to elements: the folds that drive.h is given. Each works on 16 bytes of elements.

#pragma once

#include "drive.h"
#include "minifloat.h"

// ---- nothing to set up ----

struct Nothing {};

// ---- words: results that need no wider form while they grow ----

// `Word` combines two words of packed elements: `static u32 apply(u32, u32)`.
template <class Word, u32 Size> struct WordFold {
    static constexpr u32 SIZE = Size, UNROLL = 2, CHUNK = 2;
    typedef Vector State;
    typedef Nothing Setup;
    INLINE Setup setup(const Job &) {
        return {};
    }
    INLINE void first(State &state, const Vector &v) {
        state = v;
    }
    INLINE void next(State &state, const Vector &v) {
#pragma unroll
        for (int i = 0; i < 4; i++) state.word[i] = Word::apply(state.word[i], v.word[i]);
    }
    INLINE Vector finish(const State &state, const Setup &) {
        return state;
    }
};

// The same for elements of 64 bits: `static u64 apply(u64, u64)`.
template <class Long> struct LongFold {
    static constexpr u32 SIZE = 8, UNROLL = 2, CHUNK = 2;
    struct State {
        u64 element[2];
    };
    typedef Nothing Setup;
    INLINE Setup setup(const Job &) {
        return {};
    }
    INLINE void first(State &state, const Vector &v) {
#pragma unroll
        for (int i = 0; i < 2; i++) state.element[i] = v.word[2 * i] | (u64)v.word[2 * i + 1] << 32;
    }
    INLINE void next(State &state, const Vector &v) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            state.element[i] = Long::apply(state.element[i], v.word[2 * i] | (u64)v.word[2 * i + 1] << 32);
    }
    INLINE Vector finish(const State &state, const Setup &) {
        return {{(u32)state.element[0], (u32)(state.element[0] >> 32), (u32)state.element[1],
                 (u32)(state.element[1] >> 32)}};
    }
};

// ---- an average: a sum, then a quotient ----

// `Quotient` divides: `struct Divisor; static Divisor by(u64); static Vector divide(const Vector &, const Divisor &)`.
// The sum has been rounded to the element's type before, as on the host.
template <class Sum, class Quotient> struct AverageFold : Sum {
    typedef typename Quotient::Divisor Setup;
    INLINE Setup setup(const Job &job) {
        return Quotient::by(job.divide);
    }
    INLINE Vector finish(const typename Sum::State &state, const Setup &divisor) {
        return Quotient::divide(Sum::finish(state, Nothing()), divisor);
    }
};

// ---- a product with the same factor everywhere ----

// The factor's copies fill a vector.
template <class Product> struct ScaleFold : Product {
    typedef Vector Setup;
    INLINE Setup setup(const Job &job) {
        u64 factor = job.factor;
        if (Product::SIZE == 1) factor = (factor & 0xff) * 0x0101010101010101;
        if (Product::SIZE == 2) factor = (factor & 0xffff) * 0x0001000100010001;
        if (Product::SIZE == 4) factor = (factor & 0xffffffff) * 0x0000000100000001;
        u32 low = (u32)factor, high = (u32)(factor >> 32);
        return {{low, high, low, high}};
    }
    INLINE Vector finish(typename Product::State &state, const Setup &factors) {
        Product::next(state, factors);
        return Product::finish(state, Nothing());
    }
};

// ---- minimum and maximum of packed elements ----

// Packed elements of `Bits` bits as unsigned numbers of the same order. `Keys` maps there and back.
template <class Keys, bool Greatest> struct ExtremeFold {
    static constexpr u32 SIZE = Keys::BITS / 8, UNROLL = 2, CHUNK = 2;
    typedef Vector State;
    typedef Nothing Setup;
    INLINE Setup setup(const Job &) {
        return {};
    }
    INLINE void first(State &state, const Vector &v) {
#pragma unroll
        for (int i = 0; i < 4; i++) state.word[i] = Keys::template to<Greatest>(v.word[i]);
    }
    INLINE void next(State &state, const Vector &v) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 key = Keys::template to<Greatest>(v.word[i]);
            state.word[i] =
                Greatest ? max_lanes<Keys::BITS>(state.word[i], key) : min_lanes<Keys::BITS>(state.word[i], key);
        }
    }
    INLINE Vector finish(const State &state, const Setup &) {
        Vector v;
#pragma unroll
        for (int i = 0; i < 4; i++) v.word[i] = Keys::from(state.word[i]);
        return v;
    }
};

struct UnsignedKeys {
    static constexpr int BITS = 8;
    template <bool Greatest> INLINE u32 to(u32 word) {
        return word;
    }
    INLINE u32 from(u32 key) {
        return key;
    }
};

struct SignedKeys {
    static constexpr int BITS = 8;
    template <bool Greatest> INLINE u32 to(u32 word) {
        return word ^ Lanes<8>::TOP;
    }
    INLINE u32 from(u32 key) {
        return key ^ Lanes<8>::TOP;
    }
};

// Codes of floats order like their values once those below a minus sign are inverted, -0 below +0. A NaN must win: its
// sign is set so that it is the most extreme of all.
template <class Float> struct FloatKeys {
    static constexpr int BITS = Float::BITS;
    static constexpr u32 TOP = Lanes<BITS>::TOP;
    template <bool Greatest> INLINE u32 to(u32 codes) {
        u32 nans = ((codes & ~TOP) + Float::ABOVE_LARGEST) & TOP;
        codes = Greatest ? codes & ~nans : codes | nans;
        return codes ^ (spread<BITS>(codes) | TOP);
    }
    INLINE u32 from(u32 keys) {
        u32 codes = keys ^ (~spread<BITS>(keys) | TOP);
        u32 nans = spread<BITS>((codes & ~TOP) + Float::ABOVE_LARGEST);
        return choose(nans, Float::NAN_CODE, codes);
    }
};

// ---- floats of 8 and 16 bits through f32 ----

// A vector's elements as f32. At `Float::SCALE` of their values, in case of E4M3.
template <class Float> struct Widened;

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

template <class Float> struct Bytes {
    // 16 sums take 16 registers.
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
};

template <> struct Widened<F16> : Halves<F16> {};
template <> struct Widened<BF16> : Halves<BF16> {};
template <> struct Widened<E4M3> : Bytes<E4M3> {};
template <> struct Widened<E5M2> : Bytes<E5M2> {};

// Sums and products, rounded once at the end.
template <class Float, bool Product> struct NarrowFold {
    typedef Widened<Float> Wide;
    static constexpr u32 SIZE = Wide::SIZE, UNROLL = Wide::UNROLL, CHUNK = Wide::CHUNK;
    struct State {
        float lane[Wide::LANES];
    };
    typedef Nothing Setup;
    INLINE Setup setup(const Job &) {
        return {};
    }
    INLINE void first(State &state, const Vector &v) {
        Wide::widen(v, state.lane);
    }
    INLINE void next(State &state, const Vector &v) {
        float lane[Wide::LANES];
        Wide::widen(v, lane);
#pragma unroll
        for (u32 i = 0; i < Wide::LANES; i++)
            state.lane[i] = Product ? state.lane[i] * (lane[i] * Wide::SCALE) : state.lane[i] + lane[i];
    }
    INLINE Vector finish(const State &state, const Setup &) {
        return Wide::narrow(state.lane);
    }
};

// A divisor of f32. Most world sizes are powers of two, whose reciprocals are exact: the product is the quotient then.
struct FloatDivisor {
    float divisor, reciprocal;
    bool exact;
};

INLINE FloatDivisor float_divisor(u64 divisor) {
    float rounded = (float)divisor;
    return {rounded, 1.0f / rounded, (__float_as_uint(rounded) & 0x007fffff) == 0};
}

template <class Float> struct NarrowQuotient {
    typedef Widened<Float> Wide;
    typedef FloatDivisor Divisor;
    INLINE Divisor by(u64 divisor) {
        return float_divisor(divisor);
    }
    INLINE Vector divide(const Vector &v, const Divisor &by) {
        float lane[Wide::LANES];
        Wide::widen(v, lane);
        // A loop each: one test per vector, not per element.
        if (by.exact) {
#pragma unroll
            for (u32 i = 0; i < Wide::LANES; i++) lane[i] *= by.reciprocal;
        } else {
#pragma unroll
            for (u32 i = 0; i < Wide::LANES; i++) lane[i] /= by.divisor;
        }
        return Wide::narrow(lane);
    }
};

// The sum of at most two vectors of 8-bit floats, in binary16: half the instructions, and the same result.
template <class Float> struct PairSumFold {
    static constexpr u32 SIZE = 1, UNROLL = 2, CHUNK = 2;
    struct State {
        u32 halves[8];
    };
    typedef Nothing Setup;
    INLINE Setup setup(const Job &) {
        return {};
    }
    INLINE void first(State &state, const Vector &v) {
        Float::widen_halves(v, state.halves);
    }
    INLINE void next(State &state, const Vector &v) {
        u32 halves[8];
        Float::widen_halves(v, halves);
#pragma unroll
        for (int i = 0; i < 8; i++) state.halves[i] = add_f16(state.halves[i], halves[i]);
    }
    INLINE Vector finish(const State &state, const Setup &) {
        Vector v;
        u32 beyond = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 low = state.halves[2 * i], high = state.halves[2 * i + 1];
            v.word[i] = Float::narrow_halves(low, high);
            beyond |= Float::beyond(low) | Float::beyond(high);
        }
        if (beyond) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float a, b, c, d;
                widen_f16(state.halves[2 * i], a, b);
                widen_f16(state.halves[2 * i + 1], c, d);
                v.word[i] = Float::narrow(a, b, c, d);
            }
        }
        return v;
    }
};
