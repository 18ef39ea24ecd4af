// What a kernel is told: one struct by value, the same for every kernel but gather and those of bench.cu. Its twins in Rust are in
// ../src/kernels/job.rs, where a test compares sizes and offsets; change both together.
//
// A job reads up to eight sources and writes one result to one or two places. A source is plain memory or lies behind a
// header, which another rank wrote: in that rank's staging memory, or in a buffer of its user that was registered and
// is lent for the duration of the operation. The header says which, and of which operation it is; if that is not the
// job's, the job reports it and writes no data. Neither does any job of that rank from then on: `poison` says so. What it
// should publish it then publishes under a digest that no operation has, so that nobody takes for a result what lies
// there from before.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// The most sources of one job.
constexpr u32 MOST_SOURCES = 8;
// The most words that a job writes.
constexpr u32 MOST_WORDS = 2;

// Precedes published data. 64 bytes, so that data behind an aligned header is aligned; itself at a multiple of 16.
struct Header {
    // The operation's fingerprint.
    u32 digest;
    u32 reserved;
    // 0: the data follows this header. Otherwise the index of a registered allocation of the rank that wrote this.
    u64 allocation;
    // Where the published region begins in that allocation, in bytes.
    u64 offset;
    // The whole fingerprint, for hosts that want to know whose header this is.
    u64 operation[4];
    u64 unused;
};

// What a rank's first foreign header is reported in: host memory that its devices reach.
struct Trouble {
    // Who wrote the header, plus one; 0: none was found. Written last.
    u32 peer;
    // The digest of the job that found it.
    u32 ours;
    u32 reserved[14];
    // The header.
    Header theirs;
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
    // Where a header of another operation is reported. 0 if no source has a header.
    Trouble *trouble;
    // A word of this rank's in device memory that is not 0 once a header was foreign; 0 if nobody keeps one.
    u32 *poison;
    // Words that say that the job is done, sound or not, written in their order; 0: no more. Of jobs of one block only.
    struct {
        u32 *at;
        u32 value;
        u32 reserved;
    } word[MOST_WORDS];
};

// The parameter of the gather kernel: a job each of whose sources goes to a place of its own.
struct Gather {
    // Of which `dst`, `also`, `count` and `word` are not used.
    Job job;
    // Where each source goes, and how many bytes it has: 0 where only its header is looked at.
    struct {
        u8 *dst;
        u64 bytes;
    } to[MOST_SOURCES];
};

static_assert(sizeof(Header) == 64, "the header is 64 bytes");
static_assert(sizeof(Source) == 40, "no padding");
static_assert(sizeof(Trouble) == 128, "as in Rust");
static_assert(sizeof(Job) == 496, "as in Rust");
static_assert(sizeof(Gather) == 624, "as in Rust");

// The order of ReduceOp in collectives/src/op.rs. The last, an operation of the user's own, has no kernel.
enum Op : u32 { SUM, PROD, MIN, MAX, AVG, PREMULSUM, AND, OR, XOR };
