/* No elements, and so no memory: NULL for every buffer of every call, in every form, blocking and later. What an empty
 * std::vector gives. */
#include "check.h"
#include <stdint.h>

#define T MAYPOLE_I32

static int size, root, combined;
static size_t none[8];
static maypole_stream stream;
static maypole_op ops[2];

static int combine(void *context, void *result, const void *a, const void *b, size_t count) {
    int32_t *sum = result;
    const int32_t *x = a, *y = b;
    for (size_t i = 0; i < count; i++) sum[i] = x[i] + y[i];
    *(int *)context += (int)count;
    return 0;
}

static void even(maypole_comm comm, maypole_op op, maypole_stream on) {
    OK(maypole_all_reduce(comm, NULL, NULL, 0, T, op, on));
    OK(maypole_reduce(comm, NULL, NULL, 0, T, op, root, on));
    OK(maypole_broadcast(comm, NULL, NULL, 0, T, root, on));
    OK(maypole_all_gather(comm, NULL, NULL, 0, T, on));
    OK(maypole_reduce_scatter(comm, NULL, NULL, 0, T, op, on));
    OK(maypole_all_to_all(comm, NULL, NULL, 0, T, on));
    OK(maypole_gather(comm, NULL, NULL, 0, T, root, on));
    OK(maypole_scatter(comm, NULL, NULL, 0, T, root, on));
    OK(maypole_scan(comm, NULL, NULL, 0, T, op, on));
    OK(maypole_exclusive_scan(comm, NULL, NULL, 0, T, op, on));
    OK(maypole_barrier(comm, on));
}

static void variable(maypole_comm comm, maypole_op op, maypole_stream on) {
    OK(maypole_all_gather_v(comm, NULL, 0, NULL, none, NULL, T, on));
    OK(maypole_reduce_scatter_v(comm, NULL, none, NULL, NULL, 0, T, op, on));
    OK(maypole_all_to_all_v(comm, NULL, none, NULL, NULL, none, NULL, T, on));
    OK(maypole_gather_v(comm, NULL, 0, NULL, none, NULL, T, root, on));
    OK(maypole_scatter_v(comm, NULL, none, NULL, NULL, 0, T, root, on));
}

static void messages(maypole_comm comm, int next, int previous) {
    OK(maypole_send_recv(comm, NULL, 0, next, NULL, 0, previous, T, 7));
}

#define STARTED(call)                                                                              \
    do {                                                                                           \
        OK(call);                                                                                  \
        OK(maypole_wait(&request));                                                                \
    } while (0)

static void started(maypole_comm comm, maypole_op op, int next, int previous) {
    maypole_request request, other;
    STARTED(maypole_start_all_reduce(comm, NULL, NULL, 0, T, op, NULL, &request));
    STARTED(maypole_start_reduce_scatter(comm, NULL, NULL, 0, T, op, stream, &request));
    STARTED(maypole_start_all_to_all(comm, NULL, NULL, 0, T, NULL, &request));
    STARTED(maypole_start_reduce_scatter_v(comm, NULL, none, NULL, NULL, 0, T, op, NULL, &request));
    STARTED(maypole_start_all_to_all_v(comm, NULL, none, NULL, NULL, none, NULL, T, stream, &request));
    OK(maypole_start_recv(comm, NULL, 0, T, previous, 0, NULL, &other));
    STARTED(maypole_start_send(comm, NULL, 0, T, next, 0, NULL, &request));
    OK(maypole_wait(&other));
}

#define KEPT(call)                                                                                 \
    do {                                                                                           \
        OK(call);                                                                                  \
        OK(maypole_persistent_run(kept));                                                          \
        OK(maypole_persistent_destroy(kept));                                                      \
    } while (0)

static void persistent(maypole_comm comm, maypole_op op) {
    maypole_persistent kept;
    KEPT(maypole_persistent_all_reduce(comm, NULL, NULL, 0, T, op, &kept));
    KEPT(maypole_persistent_all_gather(comm, NULL, NULL, 0, T, &kept));
    KEPT(maypole_persistent_all_to_all(comm, NULL, NULL, 0, T, &kept));
    KEPT(maypole_persistent_gather(comm, NULL, NULL, 0, T, root, &kept));
    KEPT(maypole_persistent_scan(comm, NULL, NULL, 0, T, op, &kept));
    KEPT(maypole_persistent_all_gather_v(comm, NULL, 0, NULL, none, NULL, T, &kept));
    KEPT(maypole_persistent_reduce_scatter_v(comm, NULL, none, NULL, NULL, 0, T, op, &kept));
    KEPT(maypole_persistent_all_to_all_v(comm, NULL, none, NULL, NULL, none, NULL, T, &kept));
}

int main(void) {
    maypole_comm comm;
    int rank;
    OK(maypole_comm_init_env(NULL, &comm));
    OK(maypole_comm_rank(comm, &rank));
    OK(maypole_comm_size(comm, &size));
    OK(maypole_stream_create(&stream));
    OK(maypole_op_create(5, T, combine, &combined, &ops[0]));
    OK(maypole_op_premulsum(2, &ops[1]));
    const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    for (int way = 0; way < 3; way++) {
        const maypole_op op = way < 2 ? ops[way] : MAYPOLE_MAX;
        root = way % size;
        even(comm, op, NULL);
        variable(comm, op, NULL);
        even(comm, op, stream);
        variable(comm, op, stream);
        OK(maypole_stream_synchronize(stream, comm));
        messages(comm, next, previous);
        started(comm, op, next, previous);
        persistent(comm, op);
        OK(maypole_group_begin(comm));
        even(comm, op, NULL);
        variable(comm, op, NULL);
        messages(comm, next, previous);
        OK(maypole_group_end(comm));
    }
    CHECK(combined == 0);
    OK(maypole_op_destroy(ops[0]));
    OK(maypole_op_destroy(ops[1]));
    OK(maypole_stream_destroy(stream));
    OK(maypole_comm_destroy(comm));
    printf("fine\n");
    return 0;
}
