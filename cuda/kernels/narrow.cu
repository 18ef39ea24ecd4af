// The floats of 8 and 16 bits. Sums and products of any number of sources grow in f32 and are rounded once, so that for
// two sources the result is the host's; minimum and maximum compare codes. As in collectives/src/reduce/narrow.rs.

#include "entries.h"

namespace {

template <class Float> struct HalfType {
    typedef NarrowFold<Float, false> Sum;
    typedef NarrowFold<Float, true> Prod;
    typedef ExtremeFold<FloatKeys<Float>, false> Min;
    typedef ExtremeFold<FloatKeys<Float>, true> Max;
    typedef AverageFold<Sum, NarrowQuotient<Float>> Average;
    INLINE bool run(const Job &, const Inputs &) {
        return false;
    }
};

template <class Float> struct ByteFloatType : HalfType<Float> {
    // The common case, a step of a ring or a tree, has a quicker way.
    INLINE bool run(const Job &job, const Inputs &inputs) {
        bool sum = job.op == SUM || job.op == AVG || job.op == PREMULSUM;
        if (!sum || job.sources > 2 || job.divide > 1) return false;
        drive<PairSumFold<Float>>(job, inputs);
        return true;
    }
};

} // namespace

KERNEL(maypole_reduce_f16, Job, job) { reduce<HalfType<F16>>(job); }
KERNEL(maypole_reduce_bf16, Job, job) { reduce<HalfType<BF16>>(job); }
KERNEL(maypole_reduce_f8e4m3, Job, job) { reduce<ByteFloatType<E4M3>>(job); }
KERNEL(maypole_reduce_f8e5m2, Job, job) { reduce<ByteFloatType<E5M2>>(job); }

KERNEL(maypole_scale_f16, Job, job) { scale<HalfType<F16>>(job); }
KERNEL(maypole_scale_bf16, Job, job) { scale<HalfType<BF16>>(job); }
KERNEL(maypole_scale_f8e4m3, Job, job) { scale<ByteFloatType<E4M3>>(job); }
KERNEL(maypole_scale_f8e5m2, Job, job) { scale<ByteFloatType<E5M2>>(job); }
