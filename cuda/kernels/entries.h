// From an operation, which is a value, to a fold, which is a type: the bodies of the reduce and scale kernels. One test
// per job, outside of all loops.

#pragma once

#include "fold.h"

// `Type` has the folds `Sum` (which divides, too), `Prod`, `Scaling` (a product of two) and `Extreme`; what other
// operations it has, or other ways for some jobs, it runs in `Type::run`, which says whether it did.
template <class Type> INLINE void combine(const Job &job, const Inputs &inputs) {
    if (Type::run(job, inputs)) return;
    switch (job.op) {
    case SUM:
    case AVG:
    case PREMULSUM: drive<typename Type::Sum>(job, inputs); break;
    case PROD: drive<typename Type::Prod>(job, inputs); break;
    case MIN:
    case MAX: drive<typename Type::Extreme>(job, inputs); break;
    }
}

template <class Type> INLINE void reduce(const Job &job) {
    __shared__ const u8 *at[MOST_SOURCES];
    Inputs inputs = {at, 0};
    if (begin<MOST_SOURCES>(job, inputs)) combine<Type>(job, inputs);
    tell(job);
}

// `dst = source[0] * factor`.
template <class Type> INLINE void scale(const Job &job) {
    __shared__ const u8 *at[MOST_SOURCES];
    Inputs inputs = {at, 0};
    if (begin<1>(job, inputs)) drive<ScaleFold<typename Type::Scaling>>(job, inputs);
    tell(job);
}
