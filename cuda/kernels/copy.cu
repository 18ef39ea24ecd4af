// The copy kernel: bytes, from one source.

#include "fold.h"

namespace {

struct CopyFold {
    static constexpr u32 SIZE = 1, UNROLL = 4, CHUNK = 1;
    static constexpr bool SINGLE = true;
    typedef Vector State;
    typedef Nothing Setup;
    INLINE Setup setup(const Job &) {
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

} // namespace

KERNEL(maypole_copy, Job, job) {
    __shared__ const u8 *at[MOST_SOURCES];
    Inputs inputs = {at, 0};
    if (begin<1>(job, inputs)) drive<CopyFold>(job, inputs);
}
