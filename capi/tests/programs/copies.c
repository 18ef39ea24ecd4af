/* Two copies of the library in one process, as Python's module beside libmaypole.so: their worlds meet at the same address,
 * one after the other. Usage: copies LIBRARY LIBRARY. */
#define _DEFAULT_SOURCE
#include "check.h"
#include <dlfcn.h>
#include <unistd.h>

struct copy {
    maypole_status (*init)(const maypole_config *, maypole_comm *);
    maypole_status (*rank)(maypole_comm, int *);
    maypole_status (*all_reduce)(maypole_comm, const void *, void *, size_t, maypole_dtype, maypole_op, maypole_stream);
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
    *(void **)&copy.destroy = find(library, "maypole_comm_destroy");
    *(void **)&copy.error = find(library, "maypole_last_error");
    return copy;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    const struct copy copies[2] = {open_copy(argv[1]), open_copy(argv[2])};
    if (copies[0].init == copies[1].init) return fputs("that is one copy\n", stderr), 1;
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
