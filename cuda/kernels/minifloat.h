// The floats of 8 and 16 bits: to f32 and back, four bytes or two halves at a time. Bit for bit what
// collectives/src/minifloat.rs does: to nearest, ties to even; what is too large becomes infinity, or NaN in E4M3, which
// has no infinity; every NaN that is written is the positive quiet one.
//
// Memory feeds a GPU one element of 8 bits per twenty or thirty instructions of all its processors together, sources
// included, so these are written for few instructions. The common trick is that binary16, for which there are
// instructions, contains both 8-bit formats: E5M2 is its upper byte, and E4M3 with its exponent bias (7, not 15) left as
// it is, which makes every value 2^-8 of itself, is its upper byte but one exponent bit. So E4M3 is kept at that scale
// between `widen` and `narrow`; sums do not notice.

#pragma once

#include "swar.h"

// ---- rounding ----

// Rounds to `Digits` significant binary digits, to nearest even, below 2^-14 to multiples of what the last digit is
// worth there: adds and subtracts a number so large that the sum has no room for more digits. One and a half times a
// power of two, so that negative values do not change its exponent. The caller has bounded |value| by what `limited` is.
template <int Digits> INLINE float round_to(float value, float limited) {
    float power = __uint_as_float((__float_as_uint(limited) & 0x7f800000) | 0x00400000);
    constexpr float lift = (float)(1 << (24 - Digits));
    float sum = fused(power, lift, value);
    float rounded = fused(power, -lift, sum);
    // A zero has lost its sign.
    return __uint_as_float(__float_as_uint(rounded) | (__float_as_uint(value) & 0x80000000));
}

// 2^-14, the smallest normal number of binary16.
constexpr float SMALLEST = 1.0f / 16384.0f;

// The same for values that are not bounded: infinity and what is near the end of f32's range become NaN.
template <int Digits> INLINE float round_to(float value) {
    return round_to<Digits>(value, greater(fabsf(value), SMALLEST));
}

// ---- the formats ----

// E4M3: 4 exponent and 3 mantissa bits, at 2^-8 of its value.
struct E4M3 {
    static constexpr int BITS = 8, DIGITS = 4;
    // Added to a magnitude, sets the top bit if that is NaN.
    static constexpr u32 ABOVE_LARGEST = 0x01010101;
    static constexpr u32 NAN_CODE = 0x7f7f7f7f;
    // What a widened value must be multiplied by to be what it stands for; twice in binary16.
    static constexpr float SCALE = 256.0f;
    static constexpr u32 SCALE_HALVES = 0x5c005c00;
    static constexpr u32 KEPT = 0xff80ff80;

    // Four codes, as four binary16 values in two words.
    INLINE void halves(u32 codes, u32 &low, u32 &high) {
        u32 magnitudes = codes & ~Lanes<8>::TOP;
        // A code's upper byte is its sign, a zero and 6 bits of its magnitude, the lower byte the last bit.
        u32 upper = choose(Lanes<8>::TOP, codes, magnitudes >> 1);
        u32 lower = (magnitudes << 7) & Lanes<8>::TOP;
        low = permute(lower, upper, 0x5140);
        high = permute(lower, upper, 0x7362);
    }

    // In the top bits: which of four codes are NaN.
    INLINE u32 nans(u32 codes) {
        return ((codes & ~Lanes<8>::TOP) + ABOVE_LARGEST) & Lanes<8>::TOP;
    }

    // 16 codes, as binary16.
    INLINE void widen_halves(const Vector &codes, u32 (&halves)[8]) {
#pragma unroll
        for (int i = 0; i < 4; i++) E4M3::halves(codes.word[i], halves[2 * i], halves[2 * i + 1]);
        // So far a NaN is 480 / 256, the number that its code would be.
        if (nans(codes.word[0]) | nans(codes.word[1]) | nans(codes.word[2]) | nans(codes.word[3])) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 mask = spread<8>(nans(codes.word[i]));
                halves[2 * i] |= permute(mask, 0, 0x1404) & 0x7c007c00;
                halves[2 * i + 1] |= permute(mask, 0, 0x3424) & 0x7c007c00;
            }
        }
    }

    INLINE u32 narrow(float a, float b, float c, float d) {
        u32 low = narrow_f16(round(a), round(b)), high = narrow_f16(round(c), round(d));
        u32 codes = pack(low, high);
        return codes & ~nans(codes);
    }

    // Two binary16 values rounded to the format, which are the upper bits of the result, `KEPT`.
    INLINE u32 round_halves(u32 halves) {
        return halves + 0x003f003f + ((halves >> 7) & 0x00010001);
    }

    // The codes of four binary16 values below 2 in magnitude, so that their uppermost exponent bit is 0; of which the
    // kept bits count.
    INLINE u32 pack(u32 low, u32 high) {
        low = choose(Lanes<16>::TOP, low, low << 1);
        high = choose(Lanes<16>::TOP, high, high << 1);
        return permute(low, high, 0x7531);
    }

    // Not zero if `round_halves` is wrong for one of the values, as it is too large or NaN: above 464 / 256.
    INLINE u32 beyond(u32 halves) {
        return ((halves & 0x7fff7fff) + 0x40bf40bf) & 0x80008000;
    }

  private:
    // 480 is the first that is too large, and its code, if it were a number, the NaN's. NaN is taken for it, too.
    INLINE float round(float value) {
        constexpr float limit = 480.0f / 256.0f;
        value = greater(lesser(value, limit), -limit);
        return round_to<DIGITS>(value, greater(fabsf(value), SMALLEST));
    }
};

// E5M2: 5 exponent and 2 mantissa bits, the upper byte of binary16.
struct E5M2 {
    static constexpr int BITS = 8, DIGITS = 3;
    static constexpr u32 ABOVE_LARGEST = 0x03030303;
    static constexpr u32 NAN_CODE = 0x7e7e7e7e;
    static constexpr float SCALE = 1.0f;
    static constexpr u32 SCALE_HALVES = 0x3c003c00;
    static constexpr u32 KEPT = 0xff00ff00;

    INLINE void widen_halves(const Vector &codes, u32 (&halves)[8]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            halves[2 * i] = permute(codes.word[i], 0, 0x1404);
            halves[2 * i + 1] = permute(codes.word[i], 0, 0x3424);
        }
    }

    INLINE u32 narrow(float a, float b, float c, float d) {
        u32 codes = permute(narrow_f16(round(a), round(b)), narrow_f16(round(c), round(d)), 0x7531);
        u32 nans = spread<8>((codes & ~Lanes<8>::TOP) + ABOVE_LARGEST);
        return choose(nans, NAN_CODE, codes);
    }

    INLINE u32 round_halves(u32 halves) {
        return halves + 0x007f007f + ((halves >> 8) & 0x00010001);
    }

    INLINE u32 pack(u32 low, u32 high) {
        return permute(low, high, 0x7531);
    }

    // Not zero if one of the values is NaN.
    INLINE u32 beyond(u32 halves) {
        return ((halves & 0x7fff7fff) + 0x03ff03ff) & 0x80008000;
    }

  private:
    // From 2^17 on everything is infinity, and stays beyond the largest however it is rounded.
    INLINE float round(float value) {
        return round_to<DIGITS>(value, lesser(greater(fabsf(value), SMALLEST), 131072.0f));
    }
};

// binary16.
struct F16 {
    static constexpr int BITS = 16;
    static constexpr u32 ABOVE_LARGEST = 0x03ff03ff;
    static constexpr u32 NAN_CODE = 0x7e007e00;

    INLINE void widen(u32 pair, float &low, float &high) {
        widen_f16(pair, low, high);
    }

    INLINE u32 narrow(float low, float high) {
        u32 pair = narrow_f16(low, high);
        u32 nans = spread<16>((pair & 0x7fff7fff) + ABOVE_LARGEST);
        return choose(nans, NAN_CODE, pair);
    }
};

// bfloat16: the upper half of f32.
struct BF16 {
    static constexpr int BITS = 16;
    static constexpr u32 ABOVE_LARGEST = 0x007f007f;
    static constexpr u32 NAN_CODE = 0x7fc07fc0;

    INLINE void widen(u32 pair, float &low, float &high) {
        low = __uint_as_float(pair << 16);
        high = __uint_as_float(pair & 0xffff0000);
    }

    INLINE u32 narrow(float low, float high) {
        return permute(rounded(low), rounded(high), 0x7632);
    }

  private:
    // In the upper half. A carry out of the largest finite number gives infinity.
    INLINE u32 rounded(float value) {
        u32 bits = __float_as_uint(value);
        return value != value ? 0x7fc00000 : bits + 0x7fff + ((bits >> 16) & 1);
    }
};
