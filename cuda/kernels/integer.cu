// Integers: sums and products wrap, and so do not care about the sign; minimum, maximum and quotients do. As in
// collectives/src/reduce/integer.rs. Bytes are handled four to a word.

#include "entries.h"

namespace {

// ---- sums, products, extremes ----

INLINE u32 add_bytes(u32 a, u32 b) {
    return add_lanes<8>(a, b);
}

// The sum, and its quotient if the job has a divisor. `Quotient` has `Divisor by(u64)` and `Bits divide(Bits, Divisor)`.
template <class Integer, u32 Size, class Quotient> struct SumLane : PlainLane<Integer, Size> {
    struct Setup {
        typename Quotient::Divisor divisor;
        bool wanted;
    };
    INLINE Setup setup(const Job &job) {
        if (job.divide <= 1) return {{}, false};
        return {Quotient::by(job.divide), true};
    }
    INLINE Integer to(Integer bits, const Setup &) {
        return bits;
    }
    INLINE Integer apply(Integer a, Integer b, const Setup &) {
        return Size == 1 ? (Integer)add_bytes((u32)a, (u32)b) : a + b;
    }
    INLINE Integer from(Integer bits, const Setup &setup) {
        return setup.wanted ? Quotient::divide(bits, setup.divisor) : bits;
    }
};

template <class Integer, u32 Size> struct ProductLane : PlainLane<Integer, Size> {
    INLINE Integer apply(Integer a, Integer b, const Nothing &) {
        return Size == 1 ? (Integer)multiply_bytes((u32)a, (u32)b) : a * b;
    }
};

// Elements of 32 or 64 bits; `Compared` is how their bits are compared.
template <class Integer, class Compared> struct IntegerKeys {
    typedef Integer Bits;
    static constexpr u32 SIZE = sizeof(Integer);
    static constexpr Bits FLIP = ~(Bits)0;
    INLINE Bits to(Bits bits, Bits flip) {
        return bits ^ flip;
    }
    INLINE Bits lesser(Bits a, Bits b) {
        return (Compared)a < (Compared)b ? a : b;
    }
    INLINE Bits from(Bits bits, Bits flip) {
        return bits ^ flip;
    }
};

// Four bytes. Signed ones become unsigned ones of the same order by inverting the sign.
template <bool Signed> struct ByteKeys {
    typedef u32 Bits;
    static constexpr u32 SIZE = 1;
    static constexpr u32 FLIP = 0xffffffff;
    static constexpr u32 BIAS = Signed ? Lanes<8>::TOP : 0;
    INLINE u32 to(u32 bytes, u32 flip) {
        return bytes ^ (flip ^ BIAS);
    }
    INLINE u32 lesser(u32 a, u32 b) {
        return min_lanes<8>(a, b);
    }
    INLINE u32 from(u32 keys, u32 flip) {
        return keys ^ (flip ^ BIAS);
    }
};

// ---- bits ----

// And, or and exclusive or in one: the bits that both have, if `both`, and those that only one has, if `one`.
template <u32 Size> struct BitsLane : PlainLane<u32, Size> {
    struct Setup {
        u32 both, one;
    };
    INLINE Setup setup(const Job &job) {
        return {job.op == XOR ? 0 : ~0u, job.op == AND ? 0 : ~0u};
    }
    INLINE u32 to(u32 bits, const Setup &) {
        return bits;
    }
    INLINE u32 apply(u32 a, u32 b, const Setup &setup) {
        return (a & b & setup.both) | ((a ^ b) & setup.one);
    }
    INLINE u32 from(u32 bits, const Setup &) {
        return bits;
    }
};

// ---- quotients, truncated towards zero; the divisor is at least 2 ----

// By a multiplication: x * ceil(2^16 / d), for x and d below 2^8, has x / d in its third byte, as what the factor is too
// large by adds less than x / 2^16 < 1/d. A larger divisor leaves nothing.
template <bool Signed> struct ByteQuotient {
    typedef u32 Divisor;
    INLINE Divisor by(u64 divisor) {
        u32 d = (u32)divisor;
        return divisor > 255 ? 0 : (65536 + d - 1) / d;
    }
    INLINE u32 divide(u32 bytes, Divisor factor) {
        // Signed: by magnitude. -128 is 128 as an unsigned byte.
        u32 negative = Signed ? spread<8>(bytes) : 0;
        u32 x = negate(bytes, negative);
        u32 q0 = (x & 0xff) * factor, q1 = (x >> 8 & 0xff) * factor;
        u32 q2 = (x >> 16 & 0xff) * factor, q3 = (x >> 24) * factor;
        u32 q = permute(permute(q0, q1, 0x0062), permute(q2, q3, 0x0062), 0x5410);
        return negate(q, negative);
    }

  private:
    // The negatives of bytes where the mask is set: all bits inverted, then one added.
    INLINE u32 negate(u32 bytes, u32 mask) {
        return Signed ? add_lanes<8>(bytes ^ mask, mask & Lanes<8>::ONE) : bytes;
    }
};

// The same for 32 bits: the upper half of x * ceil(2^64 / d) (Lemire, Kaser and Kurz, "Faster remainder by direct
// computation", 2019).
template <bool Signed> struct WordQuotient {
    typedef u64 Divisor;
    INLINE Divisor by(u64 divisor) {
        return divisor > 0xffffffff ? 0 : ~0ull / divisor + 1;
    }
    INLINE u32 divide(u32 x, Divisor factor) {
        u32 negative = Signed ? (u32)((int)x >> 31) : 0;
        u32 magnitude = (x ^ negative) - negative;
        u32 q = (u32)__umul64hi(factor, magnitude);
        return (q ^ negative) - negative;
    }
};

template <bool Signed> struct LongQuotient {
    typedef u64 Divisor;
    INLINE Divisor by(u64 divisor) {
        return divisor;
    }
    INLINE u64 divide(u64 x, Divisor divisor) {
        u64 negative = Signed ? (u64)((long long)x >> 63) : 0;
        u64 q = ((x ^ negative) - negative) / divisor;
        return (q ^ negative) - negative;
    }
};

// ---- the types ----

template <class Integer, u32 Size, class Quotient, class Keys> struct IntegerType {
    typedef LaneFold<SumLane<Integer, Size, Quotient>> Sum;
    typedef LaneFold<ProductLane<Integer, Size>> Prod;
    typedef Prod Scaling;
    typedef LaneFold<ExtremeLane<Keys>> Extreme;
    INLINE bool run(const Job &job, const Inputs &inputs) {
        if (job.op != AND && job.op != OR && job.op != XOR) return false;
        drive<LaneFold<BitsLane<Size>>>(job, inputs);
        return true;
    }
};

typedef IntegerType<u32, 1, ByteQuotient<true>, ByteKeys<true>> I8;
typedef IntegerType<u32, 1, ByteQuotient<false>, ByteKeys<false>> U8;
typedef IntegerType<u32, 4, WordQuotient<true>, IntegerKeys<u32, int>> I32;
typedef IntegerType<u32, 4, WordQuotient<false>, IntegerKeys<u32, u32>> U32;
typedef IntegerType<u64, 8, LongQuotient<true>, IntegerKeys<u64, long long>> I64;
typedef IntegerType<u64, 8, LongQuotient<false>, IntegerKeys<u64, u64>> U64;

} // namespace

KERNEL(maypole_reduce_i8, Job, job) { reduce<I8>(job); }
KERNEL(maypole_reduce_u8, Job, job) { reduce<U8>(job); }
KERNEL(maypole_reduce_i32, Job, job) { reduce<I32>(job); }
KERNEL(maypole_reduce_u32, Job, job) { reduce<U32>(job); }
KERNEL(maypole_reduce_i64, Job, job) { reduce<I64>(job); }
KERNEL(maypole_reduce_u64, Job, job) { reduce<U64>(job); }

KERNEL(maypole_scale_i8, Job, job) { scale<I8>(job); }
KERNEL(maypole_scale_u8, Job, job) { scale<U8>(job); }
KERNEL(maypole_scale_i32, Job, job) { scale<I32>(job); }
KERNEL(maypole_scale_u32, Job, job) { scale<U32>(job); }
KERNEL(maypole_scale_i64, Job, job) { scale<I64>(job); }
KERNEL(maypole_scale_u64, Job, job) { scale<U64>(job); }
