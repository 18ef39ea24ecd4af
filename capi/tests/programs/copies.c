/* Two copies of the library in one process, as Python's module beside libmaypole.so. Usage: copies LIBRARY LIBRARY [together]:
 * their worlds meet at the same address, one after the other, or at the launcher's board, and work at the same time. */
#define _DEFAULT_SOURCE
#include "check.h"
#include <dlfcn.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

struct copy {
    maypole_status (*init)(const maypole_config *, maypole_comm *);
    maypole_status (*rank)(maypole_comm, int *);
    maypole_status (*all_reduce)(maypole_comm, const void *, void *, size_t, maypole_dtype, maypole_op, maypole_stream);
    maypole_status (*start)(maypole_comm, const void *, void *, size_t, maypole_dtype, maypole_op, maypole_stream,
                            maypole_request *);
    maypole_status (*wait)(maypole_request *);
    maypole_status (*send_recv)(maypole_comm, const void *, size_t, int, void *, size_t, int, maypole_dtype, uint32_t);
    maypole_status (*abort)(maypole_comm, const char *);
    maypole_status (*destroy)(maypole_comm);
    const char *(*error)(void);
};

static void *find(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) fprintf(stderr, "%s\n", dlerror()), exit(1);
    return found;
}

static struct copy open_copy(const char *path) {
    struct copy copy;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) fprintf(stderr, "%s\n", dlerror()), exit(1);
    *(void **)&copy.init = find(library, "maypole_comm_init_env");
    *(void **)&copy.rank = find(library, "maypole_comm_rank");
    *(void **)&copy.all_reduce = find(library, "maypole_all_reduce");
    *(void **)&copy.start = find(library, "maypole_start_all_reduce");
    *(void **)&copy.wait = find(library, "maypole_wait");
    *(void **)&copy.send_recv = find(library, "maypole_send_recv");
    *(void **)&copy.abort = find(library, "maypole_comm_abort");
    *(void **)&copy.destroy = find(library, "maypole_comm_destroy");
    *(void **)&copy.error = find(library, "maypole_last_error");
    return copy;
}

static struct copy copies[2];
static maypole_comm comms[2];

/* A call of a copy's works. */
static void good(int which, maypole_status status, int line) {
    if (status != MAYPOLE_OK) fprintf(stderr, "copy %d, line %d: %s\n", which, line, copies[which].error()), exit(1);
}
#define GOOD(which, call) good(which, copies[which].call, __LINE__)

/* Large enough now and then to go by another way. */
static void sums(int which) {
    static int many[2][2][100000];
    for (int i = 0; i < 500; i++) {
        const size_t count = i % 50 ? 3 : 100000;
        int *one = many[which][0], *sum = many[which][1];
        one[count - 1] = i;
        GOOD(which, all_reduce(comms[which], one, sum, count, MAYPOLE_I32, MAYPOLE_SUM, NULL));
        if (sum[count - 1] != 2 * i) fprintf(stderr, "copy %d: %d in round %d\n", which, sum[count - 1], i), exit(1);
    }
}

static void *sums_of_the_first(void *none) {
    sums(0);
    return none;
}

static int together(void) {
    int rank, one = 1, sum, got;
    for (int which = 0; which < 2; which++) GOOD(which, init(NULL, &comms[which]));
    GOOD(0, rank(comms[0], &rank));
    const int peer = 1 - rank;
    for (int i = 0; i < 200; i++) {
        const int first = i % 2, second = 1 - first;
        maypole_request request;
        sum = 0;
        GOOD(first, start(comms[first], &one, &sum, 1, MAYPOLE_I32, MAYPOLE_SUM, NULL, &request));
        GOOD(second, send_recv(comms[second], &i, 1, peer, &got, 1, peer, MAYPOLE_I32, 7));
        GOOD(first, wait(&request));
        if (sum != 2 || got != i) return fprintf(stderr, "round %d: %d, %d\n", i, sum, got), 1;
    }
    pthread_t thread;
    if (pthread_create(&thread, NULL, sums_of_the_first, NULL)) return 1;
    sums(1);
    pthread_join(thread, NULL);
    /* A child is a child of both, and what fails in one does not fail in the other. */
    const pid_t child = fork();
    if (child == 0) {
        int used = 0;
        for (int which = 0; which < 2; which++)
            used |= copies[which].all_reduce(comms[which], &one, &sum, 1, MAYPOLE_I32, MAYPOLE_SUM, NULL) == MAYPOLE_OK;
        _exit(used);
    }
    int status;
    if (waitpid(child, &status, 0) != child || status) return fputs("the child of a rank called\n", stderr), 1;
    sums(0);
    /* An abort ends what the other rank has not come back from yet. */
    GOOD(1, all_reduce(comms[1], &one, &sum, 1, MAYPOLE_I32, MAYPOLE_SUM, NULL));
    if (rank == 1) GOOD(0, abort(comms[0], "enough"));
    if (copies[0].all_reduce(comms[0], &one, &sum, 1, MAYPOLE_I32, MAYPOLE_SUM, NULL) != MAYPOLE_ERROR_FAILED ||
        !strstr(copies[0].error(), "enough"))
        return fprintf(stderr, "after an abort: %s\n", copies[0].error()), 1;
    sums(1);
    /* One is forgotten on either rank, and it is not the same one. */
    GOOD(rank, destroy(comms[rank]));
    puts("fine");
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    /* Together, they are loaded in another order on every other rank, and so leave in another. */
    const int first = argc > 3 && !strcmp(getenv("RANK"), "1");
    copies[first] = open_copy(argv[1 + first]);
    copies[1 - first] = open_copy(argv[2 - first]);
    if (copies[0].init == copies[1].init) return fputs("that is one copy\n", stderr), 1;
    if (argc > 3) return together();
    for (int world = 0; world < 4; world++) {
        const struct copy *copy = &copies[world % 2];
        maypole_comm comm;
        int rank, one = 1, sum = 0;
        if (copy->init(NULL, &comm) || copy->rank(comm, &rank) ||
            copy->all_reduce(comm, &one, &sum, 1, MAYPOLE_I32, MAYPOLE_SUM, NULL) || sum != 2)
            return fprintf(stderr, "world %d: %s\n", world, copy->error()), 1;
        /* The other rank is at the next world while this one is still in this. */
        if (rank == world % 2) usleep(300000);
        if (copy->destroy(comm)) return 1;
    }
    puts("fine");
    return 0;
}
