/* The library is opened, used and closed by hand: it stays where it is, since its threads may be on their way out. */
#include "check.h"
#include <dlfcn.h>
#include <pthread.h>

static maypole_status (*init)(int, const maypole_config *, maypole_comm *);
static maypole_status (*barrier)(maypole_comm, maypole_stream);
static maypole_status (*destroy)(maypole_comm);

static void *meet(void *comm) {
    if (barrier(comm, NULL) || destroy(comm)) exit(1);
    return NULL;
}

static void *find(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) fprintf(stderr, "%s\n", dlerror()), exit(1);
    return found;
}

int main(void) {
    for (int round = 0; round < 3; round++) {
        void *library = dlopen("libmaypole.so.0", RTLD_NOW | RTLD_LOCAL);
        if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
        if (round) {
            *(void **)&init = find(library, "maypole_comm_init_threads");
            *(void **)&barrier = find(library, "maypole_barrier");
            *(void **)&destroy = find(library, "maypole_comm_destroy");
            maypole_comm comms[2];
            pthread_t threads[2];
            if (init(2, NULL, comms)) return 1;
            for (int i = 0; i < 2; i++)
                if (pthread_create(&threads[i], NULL, meet, comms[i])) return 1;
            for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
        }
        if (dlclose(library)) return 1;
        library = dlopen("libmaypole.so.0", RTLD_NOW | RTLD_NOLOAD);
        if (!library) return fputs("it was unmapped\n", stderr), 1;
        dlclose(library);
    }
    puts("fine");
    return 0;
}
