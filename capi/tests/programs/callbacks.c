/* A reduction operation whose callback fails on one rank, in every form of a call: every rank gets the same error with the
 * callback's number, and what a rank gets as done is right. */
#include "check.h"
#include <stdint.h>

enum { COUNT = 250000 };

static int rank, size, fails, forms;
static int32_t input[COUNT], output[COUNT];
static size_t counts[8];
static maypole_stream stream;
static maypole_op op;

static int plus(void *context, void *result, const void *a, const void *b, size_t count) {
    int32_t *sum = result;
    const int32_t *x = a, *y = b;
    int *verdict = context;
    for (size_t i = 0; i < count; i++) sum[i] = x[i] + y[i];
    const int now = *verdict;
    *verdict = 0; /* only once: what is called after that would do well */
    OK(maypole_op_explain(now ? "on purpose" : "not to be heard of"));
    return now;
}

static maypole_status waited(maypole_request request) {
    return maypole_wait(&request);
}

static maypole_status blocking(maypole_comm comm, size_t count) {
    return maypole_all_reduce(comm, input, output, count, MAYPOLE_I32, op, NULL);
}

static maypole_status scan(maypole_comm comm, size_t count) {
    return maypole_scan(comm, input, output, count, MAYPOLE_I32, op, NULL);
}

static maypole_status variable(maypole_comm comm, size_t count) {
    counts[size - 1] = count - (size - 1);
    return maypole_reduce_scatter_v(comm, input, counts, NULL, output, counts[rank], MAYPOLE_I32, op, NULL);
}

static maypole_status queued(maypole_comm comm, size_t count) {
    const maypole_status status = maypole_all_reduce(comm, input, output, count, MAYPOLE_I32, op, stream);
    return status == MAYPOLE_OK ? maypole_stream_synchronize(stream, comm) : status;
}

static maypole_status started(maypole_comm comm, size_t count) {
    maypole_request request;
    OK(maypole_start_all_reduce(comm, input, output, count, MAYPOLE_I32, op, NULL, &request));
    return waited(request);
}

static maypole_status started_variable(maypole_comm comm, size_t count) {
    maypole_request request;
    counts[size - 1] = count - (size - 1);
    OK(maypole_start_reduce_scatter_v(comm, input, counts, NULL, output, counts[rank], MAYPOLE_I32, op, stream,
                                      &request));
    return waited(request);
}

static maypole_status grouped(maypole_comm comm, size_t count) {
    OK(maypole_group_begin(comm));
    OK(maypole_all_reduce(comm, input, output, count, MAYPOLE_I32, op, NULL));
    OK(maypole_all_reduce(comm, input, output, count / 2, MAYPOLE_I32, op, NULL));
    return maypole_group_end(comm);
}

static maypole_status group_started(maypole_comm comm, size_t count) {
    maypole_request request;
    OK(maypole_group_begin(comm));
    OK(maypole_all_reduce(comm, input, output, count, MAYPOLE_I32, op, NULL));
    OK(maypole_group_start(comm, NULL, &request));
    return waited(request);
}

static maypole_status kept(maypole_persistent persistent, int run) {
    maypole_status status;
    if (run) {
        status = maypole_persistent_run(persistent);
    } else {
        OK(maypole_persistent_start(persistent, stream));
        status = maypole_persistent_wait(persistent);
    }
    OK(maypole_persistent_destroy(persistent));
    return status;
}

static maypole_status persistent_run(maypole_comm comm, size_t count) {
    maypole_persistent persistent;
    OK(maypole_persistent_all_reduce(comm, input, output, count, MAYPOLE_I32, op, &persistent));
    return kept(persistent, 1);
}

static maypole_status persistent_started(maypole_comm comm, size_t count) {
    maypole_persistent persistent;
    OK(maypole_persistent_all_reduce(comm, input, output, count, MAYPOLE_I32, op, &persistent));
    return kept(persistent, 0);
}

static maypole_status persistent_variable(maypole_comm comm, size_t count) {
    maypole_persistent persistent;
    counts[size - 1] = count - (size - 1);
    OK(maypole_persistent_reduce_scatter_v(comm, input, counts, NULL, output, counts[rank], MAYPOLE_I32, op,
                                           &persistent));
    return kept(persistent, 1);
}

static void in_form(maypole_comm comm, maypole_status (*form)(maypole_comm, size_t), size_t count, int sums) {
    /* The first rank combines nothing in a scan. */
    const int failing = form == scan ? size - 1 : 0;
    char told[160];
    maypole_comm copy;
    snprintf(told, sizeof told, "rank %d aborted the communicator: the callback of the reduction operation with id 7 returned 42: on purpose",
             failing);
    OK(maypole_comm_duplicate(comm, &copy));
    fails = rank == failing ? 42 : 0;
    const maypole_status status = form(copy, count);
    CHECK(status == MAYPOLE_ERROR_FAILED || (status == MAYPOLE_OK && rank != failing));
    for (size_t i = 0; status == MAYPOLE_OK && sums && i < count; i++) CHECK(output[i] == size);
    REFUSED(maypole_all_reduce(copy, input, output, count, MAYPOLE_I32, MAYPOLE_SUM, NULL), MAYPOLE_ERROR_FAILED, told);
    CHECK(maypole_last_error_rank() == failing && maypole_last_error_kind() == MAYPOLE_KIND_ABORTED);
    OK(maypole_comm_destroy(copy));
    forms++;
}

int main(void) {
    const size_t lengths[3] = {8, 1024, COUNT};
    maypole_comm comm;
    OK(maypole_comm_init_env(NULL, &comm));
    OK(maypole_comm_rank(comm, &rank));
    OK(maypole_comm_size(comm, &size));
    OK(maypole_stream_create(&stream));
    OK(maypole_op_create(7, MAYPOLE_I32, plus, &fails, &op));
    for (size_t i = 0; i < COUNT; i++) input[i] = 1;
    for (int i = 0; i < size; i++) counts[i] = 1;
    for (int length = 0; length < 3; length++) {
        const size_t count = lengths[length];
        in_form(comm, blocking, count, 1);
        in_form(comm, scan, count, 0);
        in_form(comm, variable, count, 0);
        in_form(comm, queued, count, 1);
        in_form(comm, started, count, 1);
        in_form(comm, started_variable, count, 0);
        in_form(comm, grouped, count, 0);
        in_form(comm, group_started, count, 1);
        in_form(comm, persistent_run, count, 1);
        in_form(comm, persistent_started, count, 1);
        in_form(comm, persistent_variable, count, 0);
    }
    OK(maypole_op_destroy(op));
    OK(maypole_stream_destroy(stream));
    OK(maypole_comm_destroy(comm));
    printf("%d forms failed\n", forms);
    return 0;
}
