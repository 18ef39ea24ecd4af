// The copy kernel: bytes, from one source.

#include "fold.h"

namespace {

struct CopyFold {
    static constexpr u32 SIZE = 1, UNROLL = 4, CHUNK = 1;
    typedef Vector State;
    typedef Nothing Setup;
    INLINE Setup setup(const Job &) {
        return {};
    }
    INLINE void first(State &state, const Vector &v) {
        state = v;
    }
    INLINE void next(State &, const Vector &) {}
    INLINE Vector finish(const State &state, const Setup &) {
        return state;
    }
};

} // namespace

KERNEL(maypole_copy, Job, job) {
    __shared__ Inputs inputs;
    if (begin(job, inputs)) drive<CopyFold>(job, inputs);
}
