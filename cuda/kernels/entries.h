// From an operation, which is a value, to a fold, which is a type: the bodies of the reduce and scale kernels. One test
// per job, outside of all loops.

#pragma once

#include "fold.h"

// `Type` has the folds `Sum`, `Prod`, `Min`, `Max` and `Average`, and says by `Type::run(job, inputs)` whether it has one of
// its own for the job.
template <class Type> INLINE void reduce(const Job &job) {
    __shared__ Inputs inputs;
    if (!begin(job, inputs) || Type::run(job, inputs)) return;
    switch (job.op) {
    case SUM:
    case AVG:
    case PREMULSUM:
        if (job.divide > 1)
            drive<typename Type::Average>(job, inputs);
        else
            drive<typename Type::Sum>(job, inputs);
        break;
    case PROD: drive<typename Type::Prod>(job, inputs); break;
    case MIN: drive<typename Type::Min>(job, inputs); break;
    case MAX: drive<typename Type::Max>(job, inputs); break;
    }
}

// `dst = source[0] * factor`.
template <class Type> INLINE void scale(const Job &job) {
    __shared__ Inputs inputs;
    if (begin(job, inputs)) drive<ScaleFold<typename Type::Prod>>(job, inputs);
}
