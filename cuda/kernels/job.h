// What a kernel is told: one struct by value, the same for every kernel but those of bench.cu. Its twins in Rust are in
// ../src/kernels/job.rs, where a test compares sizes and offsets; change both together.
//
// A job reads up to eight sources and writes one result to one or two places. A source is plain memory or lies behind a
// header, which another rank wrote: in that rank's staging memory, or in a buffer of its user that was registered and
// is lent for the duration of the operation. The header says which, and of which operation it is; if that is not the
// job's, the job writes nothing but the peer's number into `trouble`.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// The most sources of one job.
constexpr u32 MOST_SOURCES = 8;

// Precedes published data. 64 bytes, so that data behind an aligned header is aligned; itself at a multiple of 8.
struct Header {
    // The operation's fingerprint.
    u32 digest;
    u32 reserved;
    // 0: the data follows this header. Otherwise the index of a registered allocation of the rank that wrote this.
    u64 allocation;
    // Where the published region begins in that allocation, in bytes.
    u64 offset;
    u64 unused[5];
};

struct Source {
    // The data, if it is not in a registered allocation.
    const u8 *at;
    // 0: plain memory, nothing to check.
    const Header *header;
    // The addresses, in this process, of the registered allocations of the rank that wrote the header.
    const u8 *const *bases;
    // Where in the published region the wanted part begins, in bytes; for registered allocations only, as `at` says it
    // otherwise.
    u64 loan;
    // Who wrote the header.
    u32 peer;
    u32 reserved;
};

struct Job {
    // The result. It may be a source exactly, and overlaps none otherwise.
    u8 *dst;
    // A second place for the result, or 0.
    u8 *also;
    // Where `head` is written, or 0.
    Header *publish;
    Header head;
    Source source[MOST_SOURCES];
    // 0: nothing but the header is written.
    u32 sources;
    // A constant of `Op`; of reductions only.
    u32 op;
    // Elements; bytes for a copy.
    u64 count;
    // The factor of a scale kernel: an element, in the low bits.
    u64 factor;
    // What the result is divided by in the end, or 0. Of sums only.
    u64 divide;
    // What the sources' headers must say.
    u32 digest;
    u32 reserved;
    // Where the first peer whose header is another operation's goes, plus one. 0 if no source has a header.
    u32 *trouble;
};

static_assert(sizeof(Header) == 64, "the header is 64 bytes");
static_assert(sizeof(Source) == 40, "no padding");
static_assert(sizeof(Job) == 456, "as in Rust");

// The order of ReduceOp in collectives/src/op.rs. The last, an operation of the user's own, has no kernel.
enum Op : u32 { SUM, PROD, MIN, MAX, AVG, PREMULSUM, AND, OR, XOR };
