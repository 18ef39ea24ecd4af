/* Programs that end without destroying their communicators: every way that runs exit handlers leaves in good order.
   Usage: ends WAY. Rank 0 is slow in its part of the last operation; the others end when theirs is done. */
#include <pthread.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <maypole.hpp>

#include "check.h"

static maypole_comm world;
static maypole_op op;
static int rank, size;

static int slow(void*, void* result, const void* a, const void* b, size_t count) {
    if (rank == 0) usleep(50000);
    for (size_t i = 0; i < count; i++)
        static_cast<int*>(result)[i] = static_cast<const int*>(a)[i] + static_cast<const int*>(b)[i];
    return 0;
}

/* A static whose constructor ran before the library had done anything, so that its destructor runs late: what it has
   must still work then. */
struct Late {
    maypole_comm copy = nullptr;
    ~Late() {
        if (!copy) return;
        const maypole_op operations[2] = {MAYPOLE_SUM, op};
        for (maypole_op operation : operations) {
            int one = 1, sum = 0;
            const maypole_status status = maypole_all_reduce(copy, &one, &sum, 1, MAYPOLE_I32, operation, nullptr);
            if (status != MAYPOLE_OK || sum != size) {
                fprintf(stderr, "in a late destructor: %s\n", maypole_last_error());
                _exit(1);
            }
        }
    }
} late;

static maypole::Communicator owned{static_cast<maypole_comm>(nullptr)};

/* What goes on when main has ended: the process ends with its last thread, which may be one of the library's. */
static void* after_main(void*) {
    int one = 1, sum = 0;
    usleep(100000);
    OK(maypole_all_reduce(world, &one, &sum, 1, MAYPOLE_I32, MAYPOLE_SUM, nullptr));
    CHECK(sum == size);
    if (rank == 0) usleep(300000);
    OK(maypole_comm_status(world));
    OK(maypole_comm_destroy(world));
    puts("fine");
    fflush(stdout);
    return nullptr;
}

int main(int argc, char** argv) {
    CHECK(argc == 2);
    const char* way = argv[1];
    OK(maypole_comm_init_env(nullptr, &world));
    OK(maypole_comm_rank(world, &rank));
    OK(maypole_comm_size(world, &size));
    if (!strcmp(way, "late static")) OK(maypole_comm_duplicate(world, &late.copy));
    if (!strcmp(way, "forgotten child")) {
        maypole_comm child;
        OK(maypole_comm_duplicate(world, &child));
    }
    if (!strcmp(way, "owned static")) {
        maypole_comm copy;
        OK(maypole_comm_duplicate(world, &copy));
        owned = maypole::Communicator(copy);
    }
    OK(maypole_op_create(1, MAYPOLE_I32, slow, nullptr, &op));
    int ones[3] = {1, 1, 1}, sums[3];
    OK(maypole_all_reduce(world, ones, sums, 3, MAYPOLE_I32, op, nullptr));
    CHECK(sums[2] == size);
    if (!strcmp(way, "pthread_exit")) {
        pthread_t thread;
        CHECK(pthread_create(&thread, nullptr, after_main, nullptr) == 0);
        pthread_exit(nullptr);
    }
    if (!strcmp(way, "request")) {
        /* Never waited for, and rank 1 comes to it late. */
        static int mine[1000], all[1000];
        maypole_request request;
        if (rank == 1) usleep(100000);
        OK(maypole_start_all_reduce(world, mine, all, 1000, MAYPOLE_I32, MAYPOLE_SUM, nullptr, &request));
    }
    if (rank == 0 && strcmp(way, "request")) {
        /* The others end meanwhile, which is no misfortune. */
        usleep(300000);
        OK(maypole_comm_status(world));
    }
    puts("fine");
    fflush(stdout);
    if (!strcmp(way, "forgotten child")) OK(maypole_comm_destroy(world));
    if (!strcmp(way, "exit")) exit(0);
    if (!strcmp(way, "quick_exit")) quick_exit(0);
    return 0;
}
