// Small integers packed into a 32-bit word: the same operation on all of them, without taking them apart ("SIMD within a
// register"). `Lanes<8>` are four bytes, `Lanes<16>` two halves.

#pragma once

#include "device.h"

template <int Bits> struct Lanes;

template <> struct Lanes<8> {
    // The top bit of each lane.
    static constexpr u32 TOP = 0x80808080;
    // A 1 in each lane.
    static constexpr u32 ONE = 0x01010101;
    // Spreads each lane's top bit over the lane.
    static constexpr u32 SPREAD = 0xba98;
};

template <> struct Lanes<16> {
    static constexpr u32 TOP = 0x80008000;
    static constexpr u32 ONE = 0x00010001;
    static constexpr u32 SPREAD = 0xbb99;
};

// All ones in lanes whose top bit is set, zero in others.
template <int Bits> INLINE u32 spread(u32 word) {
    return permute(word, 0, Lanes<Bits>::SPREAD);
}

// a where the mask is set, b elsewhere.
INLINE u32 choose(u32 mask, u32 a, u32 b) {
    return (mask & a) | (~mask & b);
}

// The sums of lanes, which wrap: the lower bits are added without a carry out, the top bits without a carry in.
template <int Bits> INLINE u32 add_lanes(u32 a, u32 b) {
    constexpr u32 top = Lanes<Bits>::TOP;
    return ((a & ~top) + (b & ~top)) ^ ((a ^ b) & top);
}

// The products of bytes, which wrap. The low byte of a product depends on the low bytes of its factors alone.
INLINE u32 multiply_bytes(u32 a, u32 b) {
    u32 low = permute(a * b, (a >> 8) * (b >> 8), 0x0040);
    u32 high = permute((a >> 16) * (b >> 16), (a >> 24) * (b >> 24), 0x0040);
    return permute(low, high, 0x5410);
}

// All ones where a >= b, as unsigned numbers.
template <int Bits> INLINE u32 at_least(u32 a, u32 b) {
    constexpr u32 top = Lanes<Bits>::TOP;
    // In the top bit: whether the lower bits of a are at least those of b. No lane borrows from the next.
    u32 lower = (a | top) - (b & ~top);
    return spread<Bits>((a & ~b) | (~(a ^ b) & lower));
}

template <int Bits> INLINE u32 min_lanes(u32 a, u32 b) {
    return choose(at_least<Bits>(a, b), b, a);
}

template <int Bits> INLINE u32 max_lanes(u32 a, u32 b) {
    return choose(at_least<Bits>(a, b), a, b);
}
