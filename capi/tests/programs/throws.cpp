/* An operation that throws on one rank: every rank gets the exception's text. */
#include <maypole.hpp>
#include <stdexcept>

#include "check.h"

struct Odd {};

int main() {
    maypole::Communicator world;
    const int rank = world.rank(), size = world.size();
    for (int what = 0; what < 3; what++) {
        maypole::Communicator comm = world.duplicate();
        const auto plus = maypole::Operation::of_elements<std::int32_t>(7, [=](std::int32_t a, std::int32_t b) {
            if (what == 1) throw std::runtime_error("an element of rank " + std::to_string(rank) + " is too large");
            if (what == 2) throw Odd();
            return a + b;
        });
        std::int32_t mine = rank, sum = 0;
        try {
            comm.all_reduce(&mine, &sum, 1, plus);
            CHECK(what == 0 && sum == size * (size - 1) / 2);
        } catch (const maypole::Error& error) {
            const char* text = what == 1 ? "is too large" : "it threw what is no std::exception";
            if (what == 0 || error.kind() != MAYPOLE_KIND_ABORTED || !strstr(error.what(), text)) {
                fprintf(stderr, "%d: %s\n", what, error.what());
                return 1;
            }
        }
        world.barrier();
    }
    puts("fine");
    return 0;
}
