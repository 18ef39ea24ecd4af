/* Every misuse that can be noticed: an error that names the argument, and the communicator as good as before. Each rank
 * makes the same mistakes. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGUMENT MAYPOLE_ERROR_ARGUMENT
#define HANDLE MAYPOLE_ERROR_HANDLE

static int rank, size;

static int plus(void *context, void *result, const void *a, const void *b, size_t count) {
    int *sum = result;
    const int *x = a, *y = b;
    for (size_t i = 0; i < count; i++) sum[i] = x[i] + y[i];
    return *(const int *)context;
}

static void handles(maypole_comm comm) {
    int x = 1, y = 0, done;
    maypole_comm copy, none = NULL;
    maypole_request request = NULL;
    maypole_stream stream;
    maypole_persistent persistent;
    maypole_op op;

    REFUSED(maypole_all_reduce(none, &x, &y, 1, MAYPOLE_I32, MAYPOLE_SUM, NULL), HANDLE, "comm is NULL");
    REFUSED(maypole_comm_rank(NULL, &x), HANDLE, "maypole_comm_rank: comm is NULL");
    REFUSED(maypole_comm_destroy(NULL), HANDLE, "comm is NULL");
    /* A pointer to something else, and what was never initialised. */
    REFUSED(maypole_barrier((maypole_comm)(void *)&x, NULL), HANDLE, "no handle that Maypole has made");
    REFUSED(maypole_barrier((maypole_comm)0x4141414141414141, NULL), HANDLE, "no handle that Maypole has made");

    OK(maypole_comm_duplicate(comm, &copy));
    OK(maypole_comm_destroy(copy));
    REFUSED(maypole_comm_destroy(copy), HANDLE, "is gone");
    REFUSED(maypole_all_reduce(copy, &x, &y, 1, MAYPOLE_I32, MAYPOLE_SUM, NULL), HANDLE, "is gone");

    OK(maypole_stream_create(&stream));
    REFUSED(maypole_barrier((maypole_comm)(void *)stream, NULL), HANDLE, "handle of a stream, not of a communicator");
    REFUSED(maypole_barrier(comm, (maypole_stream)(void *)comm), HANDLE, "handle of a communicator, not of a stream");
    OK(maypole_stream_destroy(stream));
    REFUSED(maypole_barrier(comm, stream), HANDLE, "stream");
    REFUSED(maypole_stream_destroy(stream), HANDLE, "is gone");
    REFUSED(maypole_stream_synchronize(NULL, comm), HANDLE, "stream is NULL");
    REFUSED(maypole_stream_create(NULL), ARGUMENT, "stream is NULL");

    REFUSED(maypole_wait(&request), HANDLE, "request is NULL");
    REFUSED(maypole_wait(NULL), ARGUMENT, "request is NULL");
    REFUSED(maypole_test(NULL, &done), HANDLE, "request is NULL");
    OK(maypole_start_barrier(comm, NULL, &request));
    maypole_request twice[2] = {request, request}, again = request;
    REFUSED(maypole_wait_all(twice, 2), HANDLE, "is gone");
    REFUSED(maypole_wait(&again), HANDLE, "waited for");
    REFUSED(maypole_start_barrier(comm, NULL, NULL), ARGUMENT, "request is NULL");

    REFUSED(maypole_persistent_run(NULL), HANDLE, "persistent is NULL");
    OK(maypole_persistent_all_reduce(comm, &x, &y, 1, MAYPOLE_I32, MAYPOLE_SUM, &persistent));
    OK(maypole_persistent_start(persistent, NULL));
    REFUSED(maypole_persistent_start(persistent, NULL), ARGUMENT, "started twice");
    OK(maypole_persistent_wait(persistent));
    OK(maypole_persistent_destroy(persistent));
    REFUSED(maypole_persistent_start(persistent, NULL), HANDLE, "is gone");

    OK(maypole_op_premulsum(2.0, &op));
    OK(maypole_op_destroy(op));
    REFUSED(maypole_op_destroy(op), HANDLE, "is gone");
    REFUSED(maypole_all_reduce(comm, &x, &y, 1, MAYPOLE_I32, op, NULL), HANDLE, "op");
    REFUSED(maypole_op_destroy(MAYPOLE_SUM), ARGUMENT, "built-in");
    REFUSED(maypole_op_create(1, MAYPOLE_I32, NULL, NULL, &op), ARGUMENT, "callback is NULL");
    REFUSED(maypole_op_create(1, 99, plus, NULL, &op), ARGUMENT, "dtype is 99");
}

static void arguments(maypole_comm comm) {
    int x[4] = {1, 1, 1, 1}, y[4] = {0};
    float f = 0;
    maypole_comm part;
    maypole_request request;
    void *memory;
    size_t counts[8] = {0};

    REFUSED(maypole_all_reduce(comm, NULL, y, 4, MAYPOLE_I32, MAYPOLE_SUM, NULL), ARGUMENT, "input is NULL");
    REFUSED(maypole_all_reduce(comm, x, NULL, 4, MAYPOLE_I32, MAYPOLE_SUM, NULL), ARGUMENT, "output is NULL");
    REFUSED(maypole_all_reduce(comm, x, x + 1, 2, MAYPOLE_I32, MAYPOLE_SUM, NULL), ARGUMENT, "overlap");
    REFUSED(maypole_all_reduce(comm, x, y, 4, -1, MAYPOLE_SUM, NULL), ARGUMENT, "dtype is -1");
    REFUSED(maypole_all_reduce(comm, x, y, 4, 12, MAYPOLE_SUM, NULL), ARGUMENT, "dtype is 12");
    REFUSED(maypole_all_reduce(comm, x, y, 4, MAYPOLE_I32, 77, NULL), ARGUMENT, "op is 77");
    REFUSED(maypole_all_reduce(comm, &f, &f, 1, MAYPOLE_F32, MAYPOLE_XOR, NULL), ARGUMENT, "xor is not defined on f32");
    REFUSED(maypole_all_reduce(comm, x, y, SIZE_MAX, MAYPOLE_I32, MAYPOLE_SUM, NULL), ARGUMENT, "more bytes than there are");
    REFUSED(maypole_broadcast(comm, x, x, 4, MAYPOLE_I32, size, NULL), ARGUMENT, "the root is");
    REFUSED(maypole_broadcast(comm, x, x, 4, MAYPOLE_I32, -1, NULL), ARGUMENT, "root is -1");
    REFUSED(maypole_scan(comm, x, y, 4, MAYPOLE_I32, MAYPOLE_AVG, NULL), ARGUMENT, "avg is not defined");
    CHECK(maypole_last_error_rank() == rank);
    CHECK(!strcmp(maypole_last_error_operation(), "maypole_scan"));
    REFUSED(maypole_send(comm, x, 1, MAYPOLE_I32, size, 0, NULL), ARGUMENT, "the peer is");
    REFUSED(maypole_recv(comm, NULL, 1, MAYPOLE_I32, 0, 0, NULL), ARGUMENT, "data is NULL");
    REFUSED(maypole_start_recv(comm, x, 1, MAYPOLE_I32, -3, 0, NULL, &request), ARGUMENT, "from is -3");
    REFUSED(maypole_recv_any(comm, x, 1, MAYPOLE_I32, 0, NULL), ARGUMENT, "from is NULL");
    REFUSED(maypole_recv_any(comm, NULL, 1, MAYPOLE_I32, 0, &rank), ARGUMENT, "data is NULL");
    if (size == 1) REFUSED(maypole_recv_any(comm, x, 1, MAYPOLE_I32, 0, &rank), ARGUMENT, "would wait for ever");
    REFUSED(maypole_all_gather_v(comm, x, 1, y, NULL, NULL, MAYPOLE_I32, NULL), ARGUMENT, "counts is NULL");
    REFUSED(maypole_all_gather_v(comm, x, 1, y, counts, NULL, MAYPOLE_I32, NULL), ARGUMENT, "own block");
    counts[0] = SIZE_MAX;
    counts[1] = 7;
    if (size > 1) REFUSED(maypole_all_to_all_v(comm, x, counts, NULL, y, counts, NULL, MAYPOLE_I32, NULL), ARGUMENT, "beyond what");
    REFUSED(maypole_comm_split(comm, -7, 0, &part), ARGUMENT, "color is -7");
    REFUSED(maypole_comm_subset(comm, &size, 1, &part), ARGUMENT, "subset");
    REFUSED(maypole_comm_subset(comm, NULL, 2, &part), ARGUMENT, "ranks is NULL");
    REFUSED(maypole_comm_rank(comm, NULL), ARGUMENT, "rank is NULL");
    REFUSED(maypole_comm_set_timeout(comm, 0), ARGUMENT, "seconds is 0");
    REFUSED(maypole_comm_set_timeout(comm, -1), ARGUMENT, "seconds is -1");
    REFUSED(maypole_comm_set_order(comm, 9), ARGUMENT, "order is 9");
    REFUSED(maypole_alloc(comm, 8, NULL), ARGUMENT, "memory is NULL");
    REFUSED(maypole_free(x), ARGUMENT, "not made by maypole_alloc");
    OK(maypole_alloc(comm, 0, &memory));
    OK(maypole_free(memory));
    REFUSED(maypole_free(memory), ARGUMENT, "given back before");

    REFUSED(maypole_group_end(comm), ARGUMENT, "no group");
    OK(maypole_group_begin(comm));
    REFUSED(maypole_group_begin(comm), ARGUMENT, "open on this thread already");
    REFUSED(maypole_start_barrier(comm, NULL, &request), ARGUMENT, "a group is open");
    OK(maypole_all_reduce(comm, x, x, 4, MAYPOLE_I32, MAYPOLE_SUM, NULL));
    OK(maypole_all_reduce(comm, NULL, y, 4, MAYPOLE_I32, MAYPOLE_SUM, NULL));
    REFUSED(maypole_group_end(comm), ARGUMENT, "call 2 of the group");
    CHECK(x[0] == 1);
    OK(maypole_group_begin(comm));
    OK(maypole_group_cancel(comm));
}

static void settings(void) {
    maypole_comm comm;
    maypole_config config = MAYPOLE_CONFIG_INIT;
    maypole_unique_id id;

    memset(&id, 1, sizeof id);
    REFUSED(maypole_comm_init_env(&config, NULL), ARGUMENT, "comm is NULL");
    config.size = 3;
    REFUSED(maypole_comm_init_threads(1, &config, &comm), ARGUMENT, "config.size is 3");
    config.size = sizeof config;
    config.transport = 9;
    REFUSED(maypole_comm_init_threads(1, &config, &comm), ARGUMENT, "config.transport is 9");
    config.transport = MAYPOLE_TRANSPORT_DEFAULT;
    config.timeout = -2;
    REFUSED(maypole_comm_init_threads(1, &config, &comm), ARGUMENT, "config.timeout is -2");
    config.timeout = 0;
    config.settings = "MAYPOLE_SLICE";
    REFUSED(maypole_comm_init_threads(1, &config, &comm), ARGUMENT, "NAME=value");
    config.settings = "MAYPOLE_SLICE=many";
    REFUSED(maypole_comm_init_threads(1, &config, &comm), MAYPOLE_ERROR_SETTING, "MAYPOLE_SLICE=many");
    config.settings = "\xff";
    REFUSED(maypole_comm_init_threads(1, &config, &comm), ARGUMENT, "not UTF-8");
    config.settings = "MAYPOLE_SLICE=64K\n\nMAYPOLE_RING=128K\n";
    OK(maypole_comm_init_threads(1, &config, &comm));
    OK(maypole_comm_destroy(comm));
    REFUSED(maypole_comm_init_threads(0, NULL, &comm), MAYPOLE_ERROR_BOOTSTRAP, "at least one rank");
    REFUSED(maypole_comm_init_threads(-1, NULL, &comm), ARGUMENT, "size is -1");
    REFUSED(maypole_comm_init_id(NULL, 0, 1, NULL, &comm), ARGUMENT, "id is NULL");
    REFUSED(maypole_comm_init_id(&id, 0, 1, NULL, &comm), MAYPOLE_ERROR_BOOTSTRAP, "no unique id");
    REFUSED(maypole_comm_init_id(&id, 2, 2, NULL, &comm), ARGUMENT, "rank is 2, but size is 2");
    CHECK(!maypole_has_feature(NULL) && !maypole_has_feature("time travel") && maypole_has_feature("bf16"));
}

/* A program of a later version passes a larger struct: refused only if it uses what this version does not know. */
static void later_config(void) {
    struct {
        maypole_config known;
        size_t later;
    } config = {MAYPOLE_CONFIG_INIT, 0};
    maypole_comm comm;
    config.known.size = sizeof config;
    OK(maypole_comm_init_threads(1, &config.known, &comm));
    OK(maypole_comm_destroy(comm));
    config.later = 1;
    REFUSED(maypole_comm_init_threads(1, &config.known, &comm), ARGUMENT, "does not know");
}

static void forked(maypole_comm comm) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        int x = 1;
        REFUSED(maypole_all_reduce(comm, &x, &x, 1, MAYPOLE_I32, MAYPOLE_SUM, NULL), MAYPOLE_ERROR_FORKED, "fork()");
        REFUSED(maypole_comm_destroy(comm), MAYPOLE_ERROR_FORKED, "maypole_comm_destroy");
        REFUSED(maypole_comm_init_env(NULL, &comm), MAYPOLE_ERROR_FORKED, "exec");
        /* Not exit: a leak checker would count what belongs to threads that are not here. */
        execlp("true", "true", (char *)NULL);
        _exit(3);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* A callback that fails ends its communicator, with its number in every rank's error. */
static void failing_callback(maypole_comm comm) {
    int x[3] = {1, 2, 3}, y[3], verdict = 42;
    maypole_comm copy;
    maypole_op op;
    if (size == 1) return;
    OK(maypole_comm_duplicate(comm, &copy));
    OK(maypole_op_create(7, MAYPOLE_I32, plus, &verdict, &op));
    REFUSED(maypole_all_reduce(copy, x, y, 3, MAYPOLE_F32, op, NULL), ARGUMENT, "it was made for i32");
    REFUSED(maypole_all_reduce(copy, x, y, 3, MAYPOLE_I32, op, NULL), MAYPOLE_ERROR_FAILED, "returned 42");
    CHECK(maypole_last_error_kind() == MAYPOLE_KIND_ABORTED);
    REFUSED(maypole_comm_status(copy), MAYPOLE_ERROR_FAILED, "returned 42");
    REFUSED(maypole_barrier(copy, NULL), MAYPOLE_ERROR_FAILED, "returned 42");
    OK(maypole_op_destroy(op));
    OK(maypole_comm_destroy(copy));
}

/* Different counts, and an abort: every rank gets the same. */
static void disagreement(maypole_comm comm) {
    int x[8] = {0}, y[8];
    maypole_comm copy;
    if (size == 1) return;
    OK(maypole_comm_duplicate(comm, &copy));
    REFUSED(maypole_all_reduce(copy, x, y, rank == 0 ? 1 : 2, MAYPOLE_I32, MAYPOLE_SUM, NULL), MAYPOLE_ERROR_FAILED, "ranks disagree");
    CHECK(maypole_last_error_kind() == MAYPOLE_KIND_MISMATCH && maypole_last_error_rank() >= 0);
    CHECK(strstr(maypole_last_error_operation(), "all_reduce"));
    OK(maypole_comm_destroy(copy));
    OK(maypole_comm_duplicate(comm, &copy));
    if (rank == 0) OK(maypole_comm_abort(copy, "enough"));
    REFUSED(maypole_barrier(copy, NULL), MAYPOLE_ERROR_FAILED, "enough");
    CHECK(maypole_last_error_rank() == 0);
    OK(maypole_comm_destroy(copy));
}

/* A reason of megabytes ends the communicator that it is about, and no other. */
static void long_reasons(maypole_comm comm) {
    enum { LENGTH = 2 << 20 };
    char *reason = malloc(LENGTH + 1);
    maypole_comm copy;
    CHECK(reason);
    memset(reason, 'x', LENGTH);
    reason[LENGTH] = 0;
    OK(maypole_comm_duplicate(comm, &copy));
    if (rank == 0) OK(maypole_comm_abort(copy, reason));
    REFUSED(maypole_barrier(copy, NULL), MAYPOLE_ERROR_FAILED, "(cut here: 2097152 bytes in all)");
    CHECK(strstr(maypole_last_error(), "rank 0 aborted the communicator: xxxx"));
    OK(maypole_comm_destroy(copy));
    OK(maypole_barrier(comm, NULL));
    free(reason);
}

int main(void) {
    maypole_comm comm;
    int one = 1, sum;
    CHECK(!*maypole_last_error() && maypole_last_error_rank() == -1);
    OK(maypole_comm_init_env(NULL, &comm));
    OK(maypole_comm_rank(comm, &rank));
    OK(maypole_comm_size(comm, &size));
    handles(comm);
    arguments(comm);
    settings();
    later_config();
    failing_callback(comm);
    disagreement(comm);
    long_reasons(comm);
    forked(comm);
    OK(maypole_all_reduce(comm, &one, &sum, 1, MAYPOLE_I32, MAYPOLE_SUM, NULL));
    CHECK(sum == size);
    OK(maypole_barrier(comm, NULL));
    OK(maypole_comm_destroy(comm));
    printf("fine\n");
    return 0;
}
