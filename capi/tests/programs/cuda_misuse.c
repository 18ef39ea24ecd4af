/* CUDA streams used wrongly, and ranks that fail on them: an error that names the argument or the rank, in time; whatever
 * was only refused leaves the communicator as good as before. Each rank makes the same mistakes, but where it says so. */
#define _POSIX_C_SOURCE 200809L
#include "driver.h"
#include <sys/wait.h>
#include <unistd.h>

#define ARGUMENT MAYPOLE_ERROR_ARGUMENT
#define HANDLE MAYPOLE_ERROR_HANDLE
#define FAILED MAYPOLE_ERROR_FAILED
enum { COUNT = 1000 };

static int rank, size;
static void *queue;
static maypole_stream on;

static int plus(void *nothing, void *result, const void *a, const void *b, size_t count) {
    const int *x = a, *y = b;
    (void)nothing;
    for (size_t i = 0; i < count; i++) ((int *)result)[i] = x[i] + y[i];
    return 0;
}

/* A sum of ones on the stream. */
static void works(maypole_comm comm, int *x) {
    int one = 1, sum = 0;
    const device_address at = (device_address)(uintptr_t)x;
    CUDA(driver.write(at, &one, sizeof one, queue));
    OK(maypole_all_reduce(comm, x, x, 1, MAYPOLE_I32, MAYPOLE_SUM, on));
    CUDA(driver.read(&sum, at, sizeof sum, queue));
    CUDA(driver.stream_synchronize(queue));
    CHECK(sum == size);
}

static void buffers(maypole_comm comm, int *x, int *y) {
    int host[COUNT] = {0};
    size_t counts[8] = {0};
    REFUSED(maypole_all_reduce(comm, x, host, COUNT, MAYPOLE_I32, MAYPOLE_SUM, on), ARGUMENT, "one buffer is device memory and the other is not");
    REFUSED(maypole_all_gather(comm, host, x, 1, MAYPOLE_I32, on), ARGUMENT, "one buffer is device memory and the other is not");
    REFUSED(maypole_all_reduce(comm, NULL, y, COUNT, MAYPOLE_I32, MAYPOLE_SUM, on), ARGUMENT, "the input is NULL");
    REFUSED(maypole_all_reduce(comm, x, NULL, COUNT, MAYPOLE_I32, MAYPOLE_SUM, on), ARGUMENT, "the output is NULL");
    REFUSED(maypole_all_reduce(comm, x, x + 1, 2, MAYPOLE_I32, MAYPOLE_SUM, on), ARGUMENT, "overlap");
    REFUSED(maypole_all_reduce(comm, host, host + 1, 2, MAYPOLE_I32, MAYPOLE_SUM, on), ARGUMENT, "overlap");
    REFUSED(maypole_all_reduce(comm, x, y, SIZE_MAX, MAYPOLE_I32, MAYPOLE_SUM, on), ARGUMENT, "more bytes than there are");
    REFUSED(maypole_all_reduce(comm, x, x, 1 << 28, MAYPOLE_I32, MAYPOLE_SUM, on), ARGUMENT, "reach beyond");
    CHECK(maypole_last_error_rank() == rank);
    CHECK(!strcmp(maypole_last_error_operation(), "maypole_all_reduce"));
    REFUSED(maypole_all_reduce(comm, x, y, 1, MAYPOLE_F32, MAYPOLE_XOR, on), ARGUMENT, "xor is not defined on f32");
    REFUSED(maypole_broadcast(comm, x, x, 1, MAYPOLE_I32, size, on), ARGUMENT, "the root is");
    counts[rank] = 1;
    REFUSED(maypole_all_gather_v(comm, x, 1, host, counts, NULL, MAYPOLE_I32, on), ARGUMENT, "one buffer is device memory and the other is not");
    REFUSED(maypole_all_gather_v(comm, x, 2, y, counts, NULL, MAYPOLE_I32, on), ARGUMENT, "own block");
    counts[0] = 1 << 28;
    REFUSED(maypole_reduce_scatter_v(comm, x, counts, NULL, y, counts[rank], MAYPOLE_I32, MAYPOLE_SUM, on), ARGUMENT, "");
    works(comm, x);
}

/* What runs on host streams only. */
static void forms(maypole_comm comm, int *x, int *y) {
    maypole_request request;
    maypole_persistent persistent;
    maypole_op op;
    maypole_stream other;
    int host = 1, sum;
    REFUSED(maypole_start_all_reduce(comm, x, y, 1, MAYPOLE_I32, MAYPOLE_SUM, on, &request), ARGUMENT, "stream is a CUDA stream");
    REFUSED(maypole_start_send(comm, x, 1, MAYPOLE_I32, 0, 0, on, &request), ARGUMENT, "stream is a CUDA stream");
    OK(maypole_persistent_all_reduce(comm, &host, &sum, 1, MAYPOLE_I32, MAYPOLE_SUM, &persistent));
    REFUSED(maypole_persistent_start(persistent, on), ARGUMENT, "stream is a CUDA stream");
    OK(maypole_persistent_run(persistent));
    CHECK(sum == size);
    OK(maypole_persistent_destroy(persistent));
    OK(maypole_group_begin(comm));
    REFUSED(maypole_all_reduce(comm, x, y, 1, MAYPOLE_I32, MAYPOLE_SUM, on), ARGUMENT, "the calls of a group take the stream of");
    REFUSED(maypole_group_start(comm, on, &request), ARGUMENT, "stream is a CUDA stream");
    OK(maypole_group_cancel(comm));

    /* An operation of the caller's own: on host memory, with the stream too; not on the device. */
    OK(maypole_op_create(1, MAYPOLE_I32, plus, NULL, &op));
    REFUSED(maypole_all_reduce(comm, x, y, 1, MAYPOLE_I32, op, on), ARGUMENT, "runs on host memory only");
    REFUSED(maypole_all_reduce(comm, x, y, 1, MAYPOLE_I32_I32, MAYPOLE_MINLOC, on), ARGUMENT,
            "minloc runs on host memory only");
    OK(maypole_all_reduce(comm, &host, &sum, 1, MAYPOLE_I32, op, on));
    CHECK(sum == size);
    OK(maypole_op_destroy(op));

    REFUSED(maypole_stream_synchronize(on, NULL), HANDLE, "comm is NULL");
    REFUSED(maypole_stream_from_cuda(queue, NULL), ARGUMENT, "stream is NULL");
    OK(maypole_stream_from_cuda(queue, &other));
    OK(maypole_stream_destroy(other));
    REFUSED(maypole_all_reduce(comm, x, y, 1, MAYPOLE_I32, MAYPOLE_SUM, other), HANDLE, "is gone");
    REFUSED(maypole_stream_synchronize(other, comm), HANDLE, "is gone");
    /* A default stream is the current context's. */
    CUDA(driver.set_context(NULL));
    REFUSED(maypole_stream_from_cuda(NULL, &other), MAYPOLE_ERROR_DEVICE, "no current CUDA context");
    CUDA(driver.set_context(context));
    OK(maypole_stream_from_cuda(NULL, &other));
    OK(maypole_barrier(comm, other));
    OK(maypole_stream_synchronize(other, comm));
    OK(maypole_stream_destroy(other));

    void *captured;
    CUDA(driver.begin_capture(queue, 2));
    REFUSED(maypole_all_reduce(comm, x, y, 1, MAYPOLE_I32, MAYPOLE_SUM, on), ARGUMENT, "is being captured");
    REFUSED(maypole_barrier(comm, on), ARGUMENT, "is being captured");
    CUDA(driver.end_capture(queue, &captured));
    works(comm, x);
}

static void messages(maypole_comm comm, int *x) {
    maypole_comm fresh;
    const int peer = (rank + 1) % size;
    if (size == 1) return;
    OK(maypole_comm_duplicate(comm, &fresh));
    REFUSED(maypole_send(fresh, x, 1, MAYPOLE_I32, peer, 0, on), ARGUMENT, "a collective on a stream (a barrier will do)");
    OK(maypole_barrier(fresh, on));
    REFUSED(maypole_send(fresh, x, 1, MAYPOLE_I32, peer, 7, on), ARGUMENT, "the tag is 7");
    REFUSED(maypole_recv(fresh, x, 1, MAYPOLE_I32, peer, 7, on), ARGUMENT, "the tag is 7");
    REFUSED(maypole_send(fresh, x, 1, MAYPOLE_I32, size, 0, on), ARGUMENT, "the peer is");
    REFUSED(maypole_send(fresh, x, 1, MAYPOLE_I32, rank, 0, on), ARGUMENT, "to itself");
    REFUSED(maypole_send(fresh, NULL, 1, MAYPOLE_I32, peer, 0, on), ARGUMENT, "the buffer is NULL");
    REFUSED(maypole_recv(fresh, x, 1 << 28, MAYPOLE_I32, peer, 0, on), ARGUMENT, "reach beyond");
    CHECK(maypole_last_error_rank() == rank && !strcmp(maypole_last_error_operation(), "maypole_recv"));
    works(fresh, x);
    OK(maypole_stream_synchronize(on, fresh));
    OK(maypole_comm_destroy(fresh));
}

/* A communicator with which the ranks have met on the device, and which is to fail. */
static maypole_comm doomed(maypole_comm comm) {
    maypole_comm copy;
    OK(maypole_comm_duplicate(comm, &copy));
    OK(maypole_barrier(copy, on));
    OK(maypole_stream_synchronize(on, copy));
    /* So that nobody is still in there when it fails. */
    OK(maypole_barrier(comm, NULL));
    return copy;
}

/* The outcome of a call on the stream: what it returns, or what the stream comes to. */
static maypole_status outcome(maypole_comm comm, maypole_status queued) {
    return queued == MAYPOLE_OK ? maypole_stream_synchronize(on, comm) : queued;
}

/* What one rank does wrong, or does not do, all learn: with its number. */
static void failures(maypole_comm comm, int *x, int *y) {
    int host;
    maypole_comm copy;
    if (size == 1) return;
    const size_t odd = rank == 0 ? COUNT / 2 : COUNT;
    copy = doomed(comm);
    REFUSED(outcome(copy, maypole_all_reduce(copy, x, y, odd, MAYPOLE_I32, MAYPOLE_SUM, on)), FAILED, "500");
    CHECK(strstr(maypole_last_error(), "1000") && strstr(maypole_last_error(), "rank 0"));
    CHECK(maypole_last_error_kind() == MAYPOLE_KIND_MISMATCH && strstr(maypole_last_error_operation(), "all_reduce on device"));
    REFUSED(maypole_comm_status(copy), FAILED, "1000");
    REFUSED(maypole_barrier(copy, on), FAILED, "1000");
    OK(maypole_comm_destroy(copy));

    /* In host memory here, on the device there. */
    copy = doomed(comm);
    int *where = rank == 0 ? &host : x;
    REFUSED(outcome(copy, maypole_all_reduce(copy, where, where, 1, MAYPOLE_I32, MAYPOLE_SUM, on)), FAILED, "on device");
    CHECK(maypole_last_error_kind() == MAYPOLE_KIND_MISMATCH);
    OK(maypole_comm_destroy(copy));

    copy = doomed(comm);
    if (rank == 0) {
        REFUSED(maypole_all_reduce(copy, x, &host, 1, MAYPOLE_I32, MAYPOLE_SUM, on), ARGUMENT, "the other is not");
        while (maypole_comm_status(copy) == MAYPOLE_OK) continue;
        REFUSED(maypole_stream_synchronize(on, copy), FAILED, "the other is not");
    } else {
        REFUSED(outcome(copy, maypole_all_reduce(copy, x, y, 1, MAYPOLE_I32, MAYPOLE_SUM, on)), FAILED, "the other is not");
    }
    CHECK(maypole_last_error_kind() == MAYPOLE_KIND_REFUSED && maypole_last_error_rank() == 0);
    OK(maypole_comm_destroy(copy));

    copy = doomed(comm);
    if (rank == 0) OK(maypole_comm_abort(copy, "enough"));
    REFUSED(outcome(copy, maypole_all_reduce(copy, x, y, COUNT, MAYPOLE_I32, MAYPOLE_SUM, on)), FAILED, "enough");
    CHECK(maypole_last_error_kind() == MAYPOLE_KIND_ABORTED && maypole_last_error_rank() == 0);
    OK(maypole_comm_destroy(copy));

    copy = doomed(comm);
    OK(maypole_comm_set_timeout(copy, 0.5));
    if (rank != 0) {
        REFUSED(outcome(copy, maypole_all_reduce(copy, x, y, COUNT, MAYPOLE_I32, MAYPOLE_SUM, on)), FAILED, "rank 0");
        CHECK(maypole_last_error_kind() == MAYPOLE_KIND_STALLED && maypole_last_error_rank() == 0);
        CHECK(*maypole_last_error_host());
    }
    OK(maypole_barrier(comm, NULL));
    OK(maypole_comm_destroy(copy));
    works(comm, x);
}

/* A driver without a device. */
static int without_device(void) {
    maypole_stream stream;
    CHECK(!maypole_has_feature("cuda"));
    REFUSED(maypole_stream_from_cuda(NULL, &stream), MAYPOLE_ERROR_DEVICE, "");
    CHECK(strstr(maypole_last_error(), "maypole_stream_from_cuda: ") && strlen(maypole_last_error()) > 40);
    printf("fine\n");
    return 0;
}

/* Rank 1's process ends while rank 0's stream waits for it. Forked before anything of CUDA's or Maypole's is there. */
static int death(void) {
    maypole_unique_id id;
    maypole_comm comm;
    int ends[2];
    CHECK(pipe(ends) == 0);
    const pid_t child = fork();
    CHECK(child >= 0);
    rank = child == 0;
    if (rank == 0) {
        OK(maypole_unique_id_create(NULL, &id));
        CHECK(write(ends[1], &id, sizeof id) == (ssize_t)sizeof id);
    } else {
        CHECK(read(ends[0], &id, sizeof id) == (ssize_t)sizeof id);
    }
    start_driver();
    queue = new_stream();
    OK(maypole_stream_from_cuda(queue, &on));
    OK(maypole_comm_init_id(&id, rank, 2, NULL, &comm));
    int *x = on_device(COUNT * sizeof *x);
    OK(maypole_all_reduce(comm, x, x, COUNT, MAYPOLE_I32, MAYPOLE_SUM, on));
    OK(maypole_stream_synchronize(on, comm));
    /* Not before rank 0 has got so far. */
    char through = 1;
    if (rank == 1) {
        CHECK(read(ends[0], &through, 1) == 1);
        _exit(0);
    }
    CHECK(write(ends[1], &through, 1) == 1);
    REFUSED(outcome(comm, maypole_all_reduce(comm, x, x, COUNT, MAYPOLE_I32, MAYPOLE_SUM, on)), FAILED, "rank 1");
    CHECK(maypole_last_error_kind() == MAYPOLE_KIND_DIED && maypole_last_error_rank() == 1);
    CHECK(*maypole_last_error_host());
    OK(maypole_stream_destroy(on));
    OK(maypole_comm_destroy(comm));
    CHECK(waitpid(child, NULL, 0) == child);
    printf("fine\n");
    return 0;
}

int main(int count, char **arguments) {
    maypole_comm comm;
    if (count > 1 && !strcmp(arguments[1], "without-device")) return without_device();
    if (count > 1 && !strcmp(arguments[1], "death")) return death();
    start_driver();
    queue = new_stream();
    OK(maypole_comm_init_env(NULL, &comm));
    OK(maypole_comm_rank(comm, &rank));
    OK(maypole_comm_size(comm, &size));
    OK(maypole_stream_from_cuda(queue, &on));
    int *x = on_device(COUNT * sizeof *x), *y = on_device(COUNT * sizeof *y);
    works(comm, x);
    buffers(comm, x, y);
    forms(comm, x, y);
    messages(comm, x);
    failures(comm, x, y);
    OK(maypole_stream_synchronize(on, comm));
    OK(maypole_barrier(comm, NULL));
    OK(maypole_stream_destroy(on));
    OK(maypole_comm_destroy(comm));
    CUDA(driver.free_device((device_address)(uintptr_t)x));
    CUDA(driver.free_device((device_address)(uintptr_t)y));
    CUDA(driver.stream_destroy(queue));
    printf("fine\n");
    return 0;
}
