// A token around a ring of ranks, and an all-reduce that overlaps with it. Start it with `maypole run -n 4 -- ./ring`.
#include <maypole.hpp>

#include <cstdio>
#include <vector>

int main() try {
    maypole::Communicator comm;
    const int next = (comm.rank() + 1) % comm.size(), previous = (comm.rank() + comm.size() - 1) % comm.size();

    std::vector<double> gradients(100000, comm.rank()), total(gradients.size());
    maypole::Request reducing = comm.start_all_reduce(gradients.data(), total.data(), total.size(), maypole::sum);

    long token = 0;
    if (comm.rank() > 0) comm.recv(&token, 1, previous);
    token += comm.rank();
    if (comm.size() > 1) comm.send(&token, 1, next);
    if (comm.rank() == 0 && comm.size() > 1) comm.recv(&token, 1, previous);
    reducing.wait();

    const double expected = comm.size() * (comm.size() - 1) / 2;
    if (total.front() != expected || total.back() != expected) return 2;
    if (comm.rank() == 0 && token != static_cast<long>(expected)) return 3;

    try {
        comm.broadcast(&token, 1, comm.size());
        return 4;
    } catch (const maypole::Error& error) {
        if (error.status() != MAYPOLE_ERROR_ARGUMENT || error.rank() != comm.rank()) return 5;
    }
    comm.barrier();
    std::printf("rank %d of %d: token %ld\n", comm.rank(), comm.size(), token);
    return 0;
} catch (const maypole::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
