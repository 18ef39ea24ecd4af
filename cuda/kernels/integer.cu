// Integers: sums and products wrap, and so do not care about the sign; minimum, maximum and quotients do. As in
// collectives/src/reduce/integer.rs.

#include "entries.h"

namespace {

// ---- one element of 32 or 64 bits ----

template <class T> struct AddOf {
    INLINE T apply(T a, T b) {
        return a + b;
    }
};

template <class T> struct MultiplyOf {
    INLINE T apply(T a, T b) {
        return a * b;
    }
};

// `Signed` is how the bits of a `T` are compared.
template <class T, class Signed> struct MinOf {
    INLINE T apply(T a, T b) {
        return (Signed)a < (Signed)b ? a : b;
    }
};

template <class T, class Signed> struct MaxOf {
    INLINE T apply(T a, T b) {
        return (Signed)a > (Signed)b ? a : b;
    }
};

template <class T> struct AndOf {
    INLINE T apply(T a, T b) {
        return a & b;
    }
};

template <class T> struct OrOf {
    INLINE T apply(T a, T b) {
        return a | b;
    }
};

template <class T> struct XorOf {
    INLINE T apply(T a, T b) {
        return a ^ b;
    }
};

// ---- four bytes ----

struct AddBytes {
    INLINE u32 apply(u32 a, u32 b) {
        return add_lanes<8>(a, b);
    }
};

struct MultiplyBytes {
    INLINE u32 apply(u32 a, u32 b) {
        return multiply_bytes(a, b);
    }
};

// ---- quotients, truncated towards zero ----

// By a multiplication: for x below 2^8 and d below 2^8, x * ceil(2^16 / d) is x / d in its upper bits, as the error is
// less than x * d / 2^16 < 1 parts of d. A larger divisor leaves nothing.
template <bool Signed> struct ByteQuotient {
    typedef u32 Divisor;
    INLINE Divisor by(u64 divisor) {
        u32 d = (u32)divisor;
        return divisor > 255 ? 0 : (65536 + d - 1) / d;
    }
    INLINE Vector divide(const Vector &v, Divisor factor) {
        Vector quotients;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // Signed: by magnitude. -128 is 128 as an unsigned byte.
            u32 negative = Signed ? spread<8>(v.word[i]) : 0;
            u32 x = negate(v.word[i], negative);
            u32 q0 = (x & 0xff) * factor, q1 = (x >> 8 & 0xff) * factor;
            u32 q2 = (x >> 16 & 0xff) * factor, q3 = (x >> 24) * factor;
            u32 q = permute(permute(q0, q1, 0x0062), permute(q2, q3, 0x0062), 0x5410);
            quotients.word[i] = negate(q, negative);
        }
        return quotients;
    }

  private:
    // The negatives of bytes where the mask is set: all bits inverted, then one added.
    INLINE u32 negate(u32 bytes, u32 mask) {
        return Signed ? add_lanes<8>(bytes ^ mask, mask & Lanes<8>::ONE) : bytes;
    }
};

// The same for 32 bits: the upper half of x * ceil(2^64 / d) (Lemire, Kaser and Kurz, "Faster remainder by direct
// computation", 2019). The divisor is at least 2.
template <bool Signed> struct WordQuotient {
    typedef u64 Divisor;
    INLINE Divisor by(u64 divisor) {
        return divisor > 0xffffffff ? 0 : ~0ull / divisor + 1;
    }
    INLINE Vector divide(const Vector &v, Divisor factor) {
        Vector quotients;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 x = v.word[i];
            u32 negative = Signed ? (u32)((int)x >> 31) : 0;
            u32 magnitude = (x ^ negative) - negative;
            u32 q = (u32)__umul64hi(factor, magnitude);
            quotients.word[i] = (q ^ negative) - negative;
        }
        return quotients;
    }
};

template <bool Signed> struct LongQuotient {
    typedef u64 Divisor;
    INLINE Divisor by(u64 divisor) {
        return divisor;
    }
    INLINE Vector divide(const Vector &v, Divisor divisor) {
        Vector quotients;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u64 x = v.word[2 * i] | (u64)v.word[2 * i + 1] << 32;
            u64 negative = Signed ? (u64)((long long)x >> 63) : 0;
            u64 q = ((x ^ negative) - negative) / divisor;
            q = (q ^ negative) - negative;
            quotients.word[2 * i] = (u32)q;
            quotients.word[2 * i + 1] = (u32)(q >> 32);
        }
        return quotients;
    }
};

// ---- the types ----

// Bitwise operations are on words, whatever the type.
template <u32 Size> INLINE bool bitwise(const Job &job, const Inputs &inputs) {
    switch (job.op) {
    case AND: drive<WordFold<AndOf<u32>, Size>>(job, inputs); return true;
    case OR: drive<WordFold<OrOf<u32>, Size>>(job, inputs); return true;
    case XOR: drive<WordFold<XorOf<u32>, Size>>(job, inputs); return true;
    default: return false;
    }
}

template <bool Signed, class Keys> struct ByteType {
    typedef WordFold<AddBytes, 1> Sum;
    typedef WordFold<MultiplyBytes, 1> Prod;
    typedef ExtremeFold<Keys, false> Min;
    typedef ExtremeFold<Keys, true> Max;
    typedef AverageFold<Sum, ByteQuotient<Signed>> Average;
    INLINE bool run(const Job &job, const Inputs &inputs) {
        return bitwise<1>(job, inputs);
    }
};

template <bool Signed, class Compared> struct WordType {
    typedef WordFold<AddOf<u32>, 4> Sum;
    typedef WordFold<MultiplyOf<u32>, 4> Prod;
    typedef WordFold<MinOf<u32, Compared>, 4> Min;
    typedef WordFold<MaxOf<u32, Compared>, 4> Max;
    typedef AverageFold<Sum, WordQuotient<Signed>> Average;
    INLINE bool run(const Job &job, const Inputs &inputs) {
        return bitwise<4>(job, inputs);
    }
};

template <bool Signed, class Compared> struct LongType {
    typedef LongFold<AddOf<u64>> Sum;
    typedef LongFold<MultiplyOf<u64>> Prod;
    typedef LongFold<MinOf<u64, Compared>> Min;
    typedef LongFold<MaxOf<u64, Compared>> Max;
    typedef AverageFold<Sum, LongQuotient<Signed>> Average;
    INLINE bool run(const Job &job, const Inputs &inputs) {
        return bitwise<8>(job, inputs);
    }
};

typedef ByteType<true, SignedKeys> I8;
typedef ByteType<false, UnsignedKeys> U8;
typedef WordType<true, int> I32;
typedef WordType<false, u32> U32;
typedef LongType<true, long long> I64;
typedef LongType<false, u64> U64;

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
