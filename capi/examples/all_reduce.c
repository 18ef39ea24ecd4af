/* The sum of a vector over all ranks. Start it with, for instance, `maypole run -n 4 -- ./all_reduce`. */
#include <maypole.h>
#include <stdio.h>

#define COUNT 1000

static int failed(const char *what) {
    fprintf(stderr, "%s: %s\n", what, maypole_last_error());
    return 1;
}

int main(void) {
    maypole_comm comm;
    int rank, size;
    float mine[COUNT], sum[COUNT];

    if (maypole_comm_init_env(NULL, &comm)) return failed("no communicator");
    if (maypole_comm_rank(comm, &rank) || maypole_comm_size(comm, &size)) return failed("no rank");
    for (int i = 0; i < COUNT; i++) mine[i] = (float)(rank + i);

    if (maypole_all_reduce(comm, mine, sum, COUNT, MAYPOLE_F32, MAYPOLE_SUM, NULL)) return failed("no sum");

    for (int i = 0; i < COUNT; i++) {
        if (sum[i] != (float)(size * i + size * (size - 1) / 2)) return 2;
    }
    printf("rank %d of %d: sum[0] is %g\n", rank, size, (double)sum[0]);
    return maypole_comm_destroy(comm) ? failed("not left") : 0;
}
