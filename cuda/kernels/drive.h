// The loop that all kernels share: which bytes a thread works on, how they are loaded and stored, and what happens at
// misaligned addresses. What is done to them is a `Fold`:
//
//     struct Fold {
//         static constexpr u32 SIZE;                       // bytes of an element
//         static constexpr u32 UNROLL, CHUNK;              // vectors and sources loaded at once, as registers allow
//         static constexpr bool SINGLE;                    // there is only one source, ever
//         struct State;                                    // a partial result of 16 bytes of elements, maybe widened
//         struct Setup;                                    // what is computed once per thread, before the loop
//         static Setup setup(const Job &);
//         static void first(State &, const Vector &, const Setup &);   // the first source
//         static void next(State &, const Vector &, const Setup &);    // each further one, in order
//         static Vector finish(State &, const Setup &);
//     };
//
// A kernel that only copies is as fast as memory if enough bytes are on their way at any time: about 40 KiB per
// multiprocessor of an H100. So each thread loads `UNROLL` vectors of `CHUNK` sources before it looks at the first, and
// there are 1024 threads on a multiprocessor.

#pragma once

#include "device.h"

// The sources, once they are found.
struct Inputs {
    // Where each one's data is. In shared memory, as an array indexed at run time has no place in registers. Every thread
    // writes all of it and reads what it wrote itself, the same as all others: so there is nothing to wait for.
    const u8 **at;
    // Not zero in the last four bits if source or second destination lie otherwise in their 16 bytes than the
    // destination does.
    u32 skew;
};

INLINE u64 thread_index() {
    return (u64)blockIdx.x * blockDim.x + threadIdx.x;
}

INLINE u64 thread_count() {
    return (u64)gridDim.x * blockDim.x;
}

// Reports a foreign header. Only one thread does, and the jobs of a rank follow each other, so it takes no atomic
// operation, which not every bus has.
static __device__ __noinline__ void report(const Job &job, const Source &source) {
    if (job.poison) *job.poison = 1;
    volatile u32 *peer = &job.trouble->peer;
    if (*peer != 0) return;
    job.trouble->ours = job.digest;
    job.trouble->theirs = *source.header;
    __threadfence_system();
    *peer = source.peer + 1;
}

// Finds the sources and publishes the header; false if a source belongs to another operation, or one of an earlier job
// did. Every thread finds the same, so all of them or none go on.
//
// Everything is loaded before anything is looked at: headers may lie in another device's memory, a microsecond away, and
// waiting for one after the other would be most of a small job's time.
//
// `Most` is how many sources such a job may have.
template <u32 Most> INLINE bool begin(const Job &job, Inputs &inputs) {
    bool first = thread_index() == 0 && blockIdx.y == 0;
    u32 poison = job.poison ? *(volatile u32 *)job.poison : 0;
    Vector head[Most];
    u64 offset[Most];
#pragma unroll
    for (u32 s = 0; s < Most; s++) {
        const Header *header = s < job.sources ? job.source[s].header : 0;
        head[s] = {{job.digest, 0, 0, 0}};
        offset[s] = 0;
        if (header) {
            // Digest and allocation, then the offset; a header is at a multiple of 16.
            head[s] = load_once((const u8 *)header);
            Vector rest = load_once((const u8 *)header + 16);
            offset[s] = rest.word[0] | (u64)rest.word[1] << 32;
        }
    }
    u32 foreign = Most;
#pragma unroll
    for (u32 s = Most; s-- > 0;)
        if (head[s].word[0] != job.digest) foreign = s;
    bool sound = foreign == Most && poison == 0;
    if (foreign < Most && first) report(job, job.source[foreign]);
    const u8 *at[Most];
    bool lent[Most];
#pragma unroll
    for (u32 s = 0; s < Most; s++) {
        u64 allocation = head[s].word[2] | (u64)head[s].word[3] << 32;
        lent[s] = sound && allocation != 0;
        at[s] = 0;
        // 0 is where the allocation begins that is all memory: its offsets are addresses.
        if (lent[s]) at[s] = job.source[s].bases[allocation];
    }
    inputs.skew = job.also ? (u32)((u64)job.also ^ (u64)job.dst) : 0;
#pragma unroll
    for (u32 s = 0; s < Most; s++) {
        if (s < job.sources) {
            at[s] = lent[s] ? at[s] + offset[s] + job.source[s].loan : job.source[s].at;
            inputs.at[s] = at[s];
            inputs.skew |= (u32)((u64)at[s] ^ (u64)job.dst);
        }
    }
    if (job.publish && first) {
        Header published = job.head;
        if (!sound) published.digest = 0;
        STORE(Header, job.publish, published);
    }
    return sound;
}

// Writes the words that say that a job of one block is done. Whoever sees one of them sees what all threads of the block
// have stored, as the barrier orders that before the fence, and the fence before the word; and so it is with what they have
// read. Each word has a fence of its own, since whoever sees the second counts on the first.
INLINE void tell(const Job &job) {
    if (!job.word[0].at) return;
    __syncthreads();
    // Not the first, which on the host has run before the others.
    if (threadIdx.x + 1 != blockDim.x) return;
#pragma unroll
    for (u32 w = 0; w < MOST_WORDS; w++) {
        if (!job.word[w].at) return;
        __threadfence_system();
        store_word(job.word[w].at, job.word[w].value);
    }
}

// Up to 16 bytes at any address: the one or two aligned vectors that they lie in.
struct Pieces {
    Vector low, high;
    // Where in `low` they begin.
    u32 shift;
};

// Loads the pieces of `bytes` bytes (1 to 16) and nothing else, so it never leaves the allocation. The next thread loads
// the second of them too, so the first-level cache may keep it.
INLINE Pieces load_pieces(const u8 *at, u32 bytes) {
    Pieces pieces = {};
    pieces.shift = (u32)(u64)at & 15;
    at -= pieces.shift;
    pieces.low = load(at);
    if (pieces.shift + bytes > 16) pieces.high = load(at + 16);
    return pieces;
}

// The 16 bytes that begin in the pieces' low one. They begin at one of 16 places: by 8, by 4, then by single bytes.
INLINE Vector join(const Pieces &pieces) {
    const Vector &low = pieces.low, &high = pieces.high;
    u32 w[8] = {low.word[0],  low.word[1],  low.word[2],  low.word[3],
                high.word[0], high.word[1], high.word[2], high.word[3]};
#pragma unroll
    for (int i = 0; i < 6; i++) w[i] = pieces.shift & 8 ? w[i + 2] : w[i];
#pragma unroll
    for (int i = 0; i < 5; i++) w[i] = pieces.shift & 4 ? w[i + 1] : w[i];
    u32 bits = (pieces.shift & 3) * 8;
    Vector v;
#pragma unroll
    for (int i = 0; i < 4; i++) v.word[i] = __funnelshift_r(w[i], w[i + 1], bits);
    return v;
}

// Stores the first bytes of a vector, `Unit` by `Unit`; `bytes` is a multiple of its size, and `at` as well.
template <class Unit> INLINE void store_units(u8 *at, const Vector &v, u32 bytes) {
    constexpr u32 size = sizeof(Unit);
#pragma unroll
    for (u32 i = 0; i < 16; i += size)
        if (i < bytes) STORE(Unit, at + i, (Unit)(v.word[i / 4] >> (8 * (i % 4))));
}

// Stores the first `bytes` (1 to 16) of a vector at any address, in the largest units that are aligned.
static __device__ __noinline__ void store_any(u8 *at, Vector v, u32 bytes) {
    u32 unaligned = ((u32)(u64)at | bytes) & 15;
    if (unaligned == 0)
        store(at, v);
    else if ((unaligned & 3) == 0)
        store_units<u32>(at, v, bytes);
    else if ((unaligned & 1) == 0)
        store_units<u16>(at, v, bytes);
    else
        store_units<u8>(at, v, bytes);
}

// The result for `UNROLL` vectors, `stride` bytes apart, the first of them at `position` in every buffer; all addresses
// are multiples of 16. Nothing is stored before everything is loaded: the destination may be a source.
template <class Fold, class Work>
INLINE void fold_aligned(const Work &job, const Inputs &inputs, u64 position, u64 stride,
                         const typename Fold::Setup &setup) {
    constexpr u32 chunk = Fold::SINGLE ? 1 : Fold::CHUNK;
    u32 sources = Fold::SINGLE ? 1 : job.sources;
    typename Fold::State state[Fold::UNROLL];
    u32 s = 0;
#pragma unroll 1
    do {
        Vector loaded[chunk][Fold::UNROLL];
#pragma unroll
        for (u32 c = 0; c < chunk; c++) {
            if (c == 0 || s + c < sources) {
                const u8 *at = inputs.at[s + c] + position;
#pragma unroll
                for (u32 u = 0; u < Fold::UNROLL; u++) loaded[c][u] = load_once(at + u * stride);
            }
        }
#pragma unroll
        for (u32 c = 0; c < chunk; c++) {
            if (c == 0 || s + c < sources) {
#pragma unroll
                for (u32 u = 0; u < Fold::UNROLL; u++) {
                    if (c == 0 && (Fold::SINGLE || s == 0))
                        Fold::first(state[u], loaded[c][u], setup);
                    else
                        Fold::next(state[u], loaded[c][u], setup);
                }
            }
        }
        s += chunk;
    } while (s < sources);
#pragma unroll
    for (u32 u = 0; u < Fold::UNROLL; u++) {
        Vector result = Fold::finish(state[u], setup);
        u64 at = position + u * stride;
        store(job.dst + at, result);
        if (job.also) store(job.also + at, result);
    }
}

// The result for the first `bytes` bytes (1 to 16) at `position`, wherever that is. Several sources are loaded before the
// first is looked at, as in small jobs all that counts is how often memory is waited for; then they are taken one by one
// by the same instructions, which would otherwise be most of a kernel's.
template <class Fold, class Work>
INLINE void fold_anywhere(const Work &job, const Inputs &inputs, u64 position, u32 bytes,
                          const typename Fold::Setup &setup) {
    constexpr u32 chunk = Fold::SINGLE ? 1 : 4;
    u32 sources = Fold::SINGLE ? 1 : job.sources;
    typename Fold::State state;
    u32 s = 0;
#pragma unroll 1
    do {
        Pieces loaded[chunk];
#pragma unroll
        for (u32 c = 0; c < chunk; c++)
            if (c == 0 || s + c < sources) loaded[c] = load_pieces(inputs.at[s + c] + position, bytes);
        u32 end = s + chunk < sources ? s + chunk : sources;
#pragma unroll 1
        for (; s < end; s++) {
            Vector v = join(loaded[0]);
            if (Fold::SINGLE || s == 0)
                Fold::first(state, v, setup);
            else
                Fold::next(state, v, setup);
#pragma unroll
            for (u32 c = 1; c < chunk; c++) loaded[c - 1] = loaded[c];
        }
    } while (s < sources);
    Vector result = Fold::finish(state, setup);
    store_any(job.dst + position, result, bytes);
    if (job.also) store_any(job.also + position, result, bytes);
}

// The whole job, spread over all threads of the grid; or a part of a gather, whose `Work` has the same fields.
//
// Vectors are counted from the destination's first multiple of 16. If every other address is a multiple of 16 there, too
// (chunks of equally placed buffers are), these go the fast way, and there are two ragged ends. If not, everything goes
// the way of the ends: aligned loads, two per vector, whose bytes are shifted into place.
template <class Fold, class Work> INLINE void drive(const Work &job, const Inputs &inputs) {
    if (job.sources == 0 || job.count == 0) return;
    u64 bytes = job.count * Fold::SIZE;
    u64 thread = thread_index(), threads = thread_count();
#ifdef MAYPOLE_HOST_TWIN
    if (thread == 0) count_traffic(bytes * (Fold::SINGLE ? 1 : job.sources), bytes * (job.also ? 2 : 1));
#endif
    typename Fold::Setup setup = Fold::setup(job);

    u64 dst = (u64)job.dst;
    bool aligned = (inputs.skew & 15) == 0;
    u64 head = -dst & 15;
    if (dst % Fold::SIZE != 0) {
        // No vector of whole elements begins at a multiple of 16.
        aligned = false;
        head = 0;
    }
    if (head > bytes) head = bytes;
    u64 vectors = (bytes - head) / 16;
    u32 tail = (u32)(bytes - head) % 16;

    u64 v = thread;
    if (aligned)
#pragma unroll 1
        for (; v + (Fold::UNROLL - 1) * threads < vectors; v += Fold::UNROLL * threads)
            fold_aligned<Fold>(job, inputs, head + 16 * v, 16 * threads, setup);
    // The rest; the last two pieces are the ragged ends.
#pragma unroll 1
    for (; v < vectors + 2; v += threads) {
        u64 position = v == vectors ? 0 : head + 16 * (v < vectors ? v : vectors);
        u32 valid = v < vectors ? 16 : v == vectors ? (u32)head : tail;
        if (valid) fold_anywhere<Fold>(job, inputs, position, valid, setup);
    }
}
