/* Pairs, and an operation of one's own with operands of two elements, from C++. */
#include <limits>
#include <maypole.hpp>

#include "check.h"

static int after(void*, void* result, const void* a, const void* b, size_t count) {
    const float *x = static_cast<const float*>(a), *y = static_cast<const float*>(b);
    for (size_t i = 0; i < count; i += 2) {
        // Intervals that follow each other, or none.
        const float first = x[i], last = x[i + 1] == y[i] ? y[i + 1] : std::numeric_limits<float>::quiet_NaN();
        static_cast<float*>(result)[i] = first;
        static_cast<float*>(result)[i + 1] = last;
    }
    return 0;
}

template <class Value, class Index>
static void least(maypole::Communicator& comm, int rank, int size) {
    maypole::Located<Value, Index> mine = {static_cast<Value>(rank == 0 ? 1 : -2), static_cast<Index>(10 + rank)}, best;
    comm.all_reduce(&mine, &best, 1, maypole::minloc);
    CHECK(best.value == (size == 1 ? 1 : -2) && best.index == (size == 1 ? 10 : 11));
    comm.all_reduce(&mine, &best, 1, maypole::maxloc);
    CHECK(best.value == 1 && best.index == 10);
}

int main() {
    maypole::Communicator comm;
    const int rank = comm.rank(), size = comm.size();
    least<float, std::int32_t>(comm, rank, size);
    least<double, std::int32_t>(comm, rank, size);
    least<std::int64_t, std::int32_t>(comm, rank, size);
    least<std::int32_t, std::int32_t>(comm, rank, size);
    least<std::int16_t, std::int32_t>(comm, rank, size);
    least<double, std::int64_t>(comm, rank, size);
    least<std::int64_t, std::int64_t>(comm, rank, size);
    maypole::Operation op = maypole::Operation::of<float>(7, after, nullptr, 2, false);
    std::vector<float> mine(2 * 5000), all(mine.size());
    for (size_t i = 0; i < mine.size(); i++) mine[i] = static_cast<float>(rank + i % 2);
    comm.all_reduce(mine.data(), all.data(), mine.size(), op);
    for (size_t i = 0; i < all.size(); i++) CHECK(all[i] == (i % 2 ? size : 0));
    printf("fine\n");
    return 0;
}
