// The copy kernel, bytes from one source, and the gather kernel, bytes from several, each to a place of its own.

#include "fold.h"

namespace {

struct CopyFold {
    static constexpr u32 SIZE = 1, UNROLL = 4, CHUNK = 1;
    static constexpr bool SINGLE = true;
    typedef Vector State;
    typedef Nothing Setup;
    template <class Work> INLINE Setup setup(const Work &) {
        return {};
    }
    INLINE void first(State &state, const Vector &v, const Setup &) {
        state = v;
    }
    INLINE void next(State &, const Vector &, const Setup &) {}
    INLINE Vector finish(const State &state, const Setup &) {
        return state;
    }
};

// One of a gather's copies.
struct Part {
    u8 *dst, *also;
    u64 count;
    u32 sources;
};

} // namespace

KERNEL(maypole_copy, Job, job) {
    __shared__ const u8 *at[MOST_SOURCES];
    Inputs inputs = {at, 0};
    if (begin<1>(job, inputs)) drive<CopyFold>(job, inputs);
    tell(job);
}

// A row of blocks for each source: all are read at the same time, each from a memory of its own. As in any job nothing is
// written if any of them is of another operation.
KERNEL(maypole_gather, Gather, gather) {
    __shared__ const u8 *at[MOST_SOURCES];
    Inputs inputs = {at, 0};
    if (!begin<MOST_SOURCES>(gather.job, inputs)) return;
#pragma unroll 1
    for (u32 s = blockIdx.y; s < gather.job.sources; s += gridDim.y) {
        Part part = {gather.to[s].dst, 0, gather.to[s].bytes, 1};
        Inputs input = {at + s, (u32)((u64)at[s] ^ (u64)part.dst)};
        drive<CopyFold>(part, input);
    }
}
