/* Every function once, in each of its forms, with results that are checked. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <pthread.h>
#include <stdint.h>

enum { MOST = 8 };

static int rank, size;

/* What every rank's input is. */
static void fill(int64_t *x, size_t count) {
    for (size_t i = 0; i < count; i++) x[i] = 100 * rank + (int64_t)i;
}

static int64_t sum_at(size_t i) { return 100 * size * (size - 1) / 2 + size * (int64_t)i; }

static int greater(void *context, void *result, const void *a, const void *b, size_t count) {
    int64_t *out = result;
    const int64_t *x = a, *y = b;
    ++*(int *)context;
    for (size_t i = 0; i < count; i++) out[i] = x[i] > y[i] ? x[i] : y[i];
    return 0;
}

static void blocking(maypole_comm comm, maypole_stream stream) {
    int64_t x[2 * MOST] = {0}, y[2 * MOST] = {0};
    const int last = size - 1;
    fill(x, 2 * MOST);
#define DONE() if (stream) OK(maypole_stream_synchronize(stream, comm))
    OK(maypole_all_reduce(comm, x, y, 2, MAYPOLE_I64, MAYPOLE_SUM, stream));
    DONE();
    CHECK(y[0] == sum_at(0) && y[1] == sum_at(1));
    OK(maypole_reduce(comm, x, rank == last ? y : NULL, 1, MAYPOLE_I64, MAYPOLE_MAX, last, stream));
    DONE();
    CHECK(rank != last || y[0] == 100 * last);
    y[0] = rank == 0 ? 17 : 0;
    OK(maypole_broadcast(comm, y, y, 1, MAYPOLE_I64, 0, stream));
    DONE();
    CHECK(y[0] == 17);
    OK(maypole_all_gather(comm, x, y, 2, MAYPOLE_I64, stream));
    DONE();
    for (int r = 0; r < size; r++) CHECK(y[2 * r] == 100 * r && y[2 * r + 1] == 100 * r + 1);
    OK(maypole_reduce_scatter(comm, x, y, 1, MAYPOLE_I64, MAYPOLE_SUM, stream));
    DONE();
    CHECK(y[0] == sum_at((size_t)rank));
    OK(maypole_all_to_all(comm, x, y, 1, MAYPOLE_I64, stream));
    DONE();
    for (int r = 0; r < size; r++) CHECK(y[r] == 100 * r + rank);
    OK(maypole_gather(comm, x, rank == 0 ? y : NULL, 1, MAYPOLE_I64, 0, stream));
    DONE();
    for (int r = 0; rank == 0 && r < size; r++) CHECK(y[r] == 100 * r);
    OK(maypole_scatter(comm, rank == 0 ? x : NULL, y, 1, MAYPOLE_I64, 0, stream));
    DONE();
    CHECK(y[0] == rank);
    OK(maypole_scan(comm, x, y, 1, MAYPOLE_I64, MAYPOLE_SUM, stream));
    DONE();
    CHECK(y[0] == 50 * rank * (rank + 1));
    y[0] = -5;
    OK(maypole_exclusive_scan(comm, x, y, 1, MAYPOLE_I64, MAYPOLE_SUM, stream));
    DONE();
    CHECK(y[0] == (rank ? 50 * rank * (rank - 1) : -5));
    OK(maypole_barrier(comm, stream));
    DONE();
    /* Rank r's block has r elements; with displacements, each two apart from the one before. */
    size_t counts[MOST], apart[MOST], ones[MOST], total = 0;
    for (int r = 0; r < size; r++) {
        counts[r] = (size_t)r;
        apart[r] = (size_t)(r * (r + 1) / 2);
        ones[r] = 1;
        total += (size_t)r;
    }
    static int64_t large[MOST * MOST], more[MOST * MOST];
    OK(maypole_all_gather_v(comm, x, counts[rank], large, counts, apart, MAYPOLE_I64, stream));
    DONE();
    for (int r = 0; r < size; r++) CHECK(r == 0 || large[apart[r] + counts[r] - 1] == 100 * r + r - 1);
    fill(large, total);
    OK(maypole_reduce_scatter_v(comm, large, counts, NULL, more, counts[rank], MAYPOLE_I64, MAYPOLE_SUM, stream));
    DONE();
    CHECK(rank == 0 || more[0] == sum_at((size_t)(rank * (rank - 1) / 2)));
    OK(maypole_all_to_all_v(comm, x, ones, NULL, y, ones, NULL, MAYPOLE_I64, stream));
    DONE();
    CHECK(y[last] == 100 * last + rank);
    OK(maypole_gather_v(comm, x, 1, y, ones, NULL, MAYPOLE_I64, last, stream));
    DONE();
    CHECK(rank != last || y[0] == 0);
    OK(maypole_scatter_v(comm, x, ones, NULL, y, 1, MAYPOLE_I64, last, stream));
    DONE();
    CHECK(y[0] == 100 * last + rank);
}

static void counted(void *context, maypole_status status) {
    int *calls = context;
    if (status == MAYPOLE_OK) __atomic_fetch_add(calls, 1, __ATOMIC_SEQ_CST);
}

static void asynchronous(maypole_comm comm, maypole_stream stream) {
    enum { CALLS = 11 };
    static int64_t x[CALLS][2 * MOST], y[CALLS][2 * MOST];
    maypole_request requests[CALLS];
    int calls = 0, done;
    for (int i = 0; i < CALLS; i++) fill(x[i], 2 * MOST);
    OK(maypole_start_all_reduce(comm, x[0], y[0], 2, MAYPOLE_I64, MAYPOLE_SUM, stream, &requests[0]));
    OK(maypole_start_reduce(comm, x[1], y[1], 2, MAYPOLE_I64, MAYPOLE_SUM, 0, stream, &requests[1]));
    OK(maypole_start_broadcast(comm, x[2], y[2], 2, MAYPOLE_I64, 0, stream, &requests[2]));
    OK(maypole_start_all_gather(comm, x[3], y[3], 2, MAYPOLE_I64, stream, &requests[3]));
    OK(maypole_start_reduce_scatter(comm, x[4], y[4], 2, MAYPOLE_I64, MAYPOLE_SUM, stream, &requests[4]));
    OK(maypole_start_all_to_all(comm, x[5], y[5], 2, MAYPOLE_I64, stream, &requests[5]));
    OK(maypole_start_gather(comm, x[6], y[6], 2, MAYPOLE_I64, 0, stream, &requests[6]));
    OK(maypole_start_scatter(comm, x[7], y[7], 2, MAYPOLE_I64, 0, stream, &requests[7]));
    OK(maypole_start_scan(comm, x[8], y[8], 2, MAYPOLE_I64, MAYPOLE_SUM, stream, &requests[8]));
    OK(maypole_start_exclusive_scan(comm, x[9], y[9], 2, MAYPOLE_I64, MAYPOLE_SUM, stream, &requests[9]));
    OK(maypole_start_barrier(comm, stream, &requests[10]));
    OK(maypole_when_done(requests[0], counted, &calls));
    size_t first;
    OK(maypole_wait_any(requests, CALLS, &first));
    CHECK(first < CALLS && requests[first] == NULL);
    OK(maypole_wait_all(requests, CALLS));
    CHECK(calls == 1 && y[0][1] == sum_at(1) && y[3][2 * size - 1] == 100 * (size - 1) + 1);
    CHECK(y[4][0] == sum_at(2 * (size_t)rank) && y[5][0] == 2 * rank && y[7][1] == 2 * rank + 1);
    OK(maypole_wait_any(requests, CALLS, &first));
    CHECK(first == CALLS);

    size_t ones[MOST];
    for (int r = 0; r < size; r++) ones[r] = 1;
    OK(maypole_start_all_gather_v(comm, x[0], 1, y[0], ones, NULL, MAYPOLE_I64, stream, &requests[0]));
    OK(maypole_start_reduce_scatter_v(comm, x[1], ones, NULL, y[1], 1, MAYPOLE_I64, MAYPOLE_SUM, stream, &requests[1]));
    OK(maypole_start_all_to_all_v(comm, x[2], ones, NULL, y[2], ones, NULL, MAYPOLE_I64, stream, &requests[2]));
    OK(maypole_start_gather_v(comm, x[3], 1, y[3], ones, NULL, MAYPOLE_I64, 0, stream, &requests[3]));
    OK(maypole_start_scatter_v(comm, x[4], ones, NULL, y[4], 1, MAYPOLE_I64, 0, stream, &requests[4]));
    while (maypole_wait_for(&requests[4], 0.001) == MAYPOLE_PENDING) continue;
    CHECK(requests[4] == NULL && y[4][0] == rank);
    OK(maypole_test(requests[0], &done));
    CHECK(done);
    OK(maypole_wait_all(requests, 4));
    CHECK(y[1][0] == sum_at((size_t)rank) && y[0][size - 1] == 100 * (size - 1));

    /* A receive for which nobody sends yet. */
    const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    OK(maypole_start_recv(comm, y[0], 2, MAYPOLE_I64, previous, 5, NULL, &requests[0]));
    CHECK(maypole_wait_for(&requests[0], 0) == MAYPOLE_PENDING);
    OK(maypole_barrier(comm, NULL));
    OK(maypole_start_send(comm, x[0], 2, MAYPOLE_I64, next, 5, NULL, &requests[1]));
    OK(maypole_wait(&requests[1]));
    OK(maypole_wait(&requests[0]));
    CHECK(y[0][1] == 100 * previous + 1);
    OK(maypole_send_recv(comm, x[0], 1, next, y[0], 1, previous, MAYPOLE_I64, 9));
    CHECK(y[0][0] == 100 * previous);

    /* Rank 0 from whoever sends, itself last. */
    if (rank > 0) OK(maypole_send(comm, x[0], 2, MAYPOLE_I64, 0, 11, NULL));
    for (int sent = 0; rank == 0 && sent < size; sent++) {
        int from = -1;
        if (sent == size - 1) OK(maypole_start_send(comm, x[0], 2, MAYPOLE_I64, 0, 11, NULL, &requests[0]));
        OK(maypole_recv_any(comm, y[0], 2, MAYPOLE_I64, 11, &from));
        CHECK(from >= 0 && from < size && y[0][0] == 100 * from && y[0][1] == 100 * from + 1);
        if (sent == size - 1) OK(maypole_wait(&requests[0]));
    }
}

static void persistent(maypole_comm comm, maypole_stream stream) {
    int64_t x[2 * MOST] = {0}, y[2 * MOST] = {0};
    size_t ones[MOST];
    maypole_persistent all[16];
    int done;
    for (int r = 0; r < size; r++) ones[r] = 1;
    OK(maypole_persistent_all_reduce(comm, x, y, 2, MAYPOLE_I64, MAYPOLE_SUM, &all[0]));
    OK(maypole_persistent_reduce(comm, x, y, 2, MAYPOLE_I64, MAYPOLE_SUM, 0, &all[1]));
    OK(maypole_persistent_broadcast(comm, x, y, 2, MAYPOLE_I64, 0, &all[2]));
    OK(maypole_persistent_all_gather(comm, x, y, 2, MAYPOLE_I64, &all[3]));
    OK(maypole_persistent_reduce_scatter(comm, x, y, 2, MAYPOLE_I64, MAYPOLE_SUM, &all[4]));
    OK(maypole_persistent_all_to_all(comm, x, y, 2, MAYPOLE_I64, &all[5]));
    OK(maypole_persistent_gather(comm, x, y, 2, MAYPOLE_I64, 0, &all[6]));
    OK(maypole_persistent_scatter(comm, x, y, 2, MAYPOLE_I64, 0, &all[7]));
    OK(maypole_persistent_scan(comm, x, y, 2, MAYPOLE_I64, MAYPOLE_SUM, &all[8]));
    OK(maypole_persistent_exclusive_scan(comm, x, y, 2, MAYPOLE_I64, MAYPOLE_SUM, &all[9]));
    OK(maypole_persistent_barrier(comm, &all[10]));
    OK(maypole_persistent_all_gather_v(comm, x, 1, y, ones, NULL, MAYPOLE_I64, &all[11]));
    OK(maypole_persistent_reduce_scatter_v(comm, x, ones, NULL, y, 1, MAYPOLE_I64, MAYPOLE_SUM, &all[12]));
    OK(maypole_persistent_all_to_all_v(comm, x, ones, NULL, y, ones, NULL, MAYPOLE_I64, &all[13]));
    OK(maypole_persistent_gather_v(comm, x, 1, y, ones, NULL, MAYPOLE_I64, 0, &all[14]));
    OK(maypole_persistent_scatter_v(comm, x, ones, NULL, y, 1, MAYPOLE_I64, 0, &all[15]));
    for (int64_t step = 0; step < 3; step++) {
        for (int i = 0; i < 16; i++) {
            fill(x, 2 * MOST);
            x[0] += step;
            OK(maypole_persistent_start(all[i], i % 2 ? stream : NULL));
            OK(maypole_persistent_wait(all[i]));
            OK(maypole_persistent_test(all[i], &done));
            CHECK(done);
            OK(maypole_persistent_run(all[i]));
            if (i == 0) CHECK(y[0] == sum_at(0) + size * step);
            if (i == 15 && rank == 0) CHECK(y[0] == step);
        }
    }
    for (int i = 0; i < 16; i++) OK(maypole_persistent_destroy(all[i]));
}

static void together(maypole_comm comm, maypole_stream stream) {
    const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    int64_t mine = rank, theirs = -1, sums[3], zero[3] = {0, 1, 2};
    size_t ones[MOST];
    int64_t all[MOST];
    maypole_request request;
    for (int r = 0; r < size; r++) ones[r] = 1;
    for (int way = 0; way < 3; way++) {
        theirs = -1;
        OK(maypole_group_begin(comm));
        OK(maypole_send(comm, &mine, 1, MAYPOLE_I64, next, 0, NULL));
        OK(maypole_recv(comm, &theirs, 1, MAYPOLE_I64, previous, 0, NULL));
        for (int i = 0; i < 3; i++) OK(maypole_all_reduce(comm, &zero[i], &sums[i], 1, MAYPOLE_I64, MAYPOLE_SUM, NULL));
        OK(maypole_all_gather_v(comm, &mine, 1, all, ones, NULL, MAYPOLE_I64, NULL));
        CHECK(theirs == -1);
        if (way == 0) {
            OK(maypole_group_end(comm));
        } else {
            OK(maypole_group_start(comm, way == 1 ? stream : NULL, &request));
            OK(maypole_wait(&request));
        }
        CHECK(theirs == previous && sums[1] == size && sums[2] == 2 * size && all[size - 1] == size - 1);
    }
}

static void operations(maypole_comm comm) {
    int calls = 0;
    int64_t x[3] = {rank, -rank, 5}, y[3];
    float f = 2, g;
    uint16_t half = 0x3f80, sum; /* 1 as bfloat16 */
    uint8_t small = 0x38, eighth; /* 1 as E4M3 */
    maypole_op op, scaled;
    OK(maypole_op_create(3, MAYPOLE_I64, greater, &calls, &op));
    OK(maypole_all_reduce(comm, x, y, 3, MAYPOLE_I64, op, NULL));
    CHECK(y[0] == size - 1 && y[1] == 0 && y[2] == 5 && (size == 1 || calls > 0));
    OK(maypole_op_destroy(op));
    OK(maypole_op_premulsum(rank + 1.0, &scaled));
    OK(maypole_all_reduce(comm, &f, &g, 1, MAYPOLE_F32, scaled, NULL));
    CHECK(g == (float)(size * (size + 1)));
    OK(maypole_op_destroy(scaled));
    OK(maypole_all_reduce(comm, &half, &sum, 1, MAYPOLE_BF16, MAYPOLE_AVG, NULL));
    CHECK(sum == half);
    OK(maypole_all_reduce(comm, &small, &eighth, 1, MAYPOLE_F8E4M3, MAYPOLE_MAX, NULL));
    CHECK(eighth == small && maypole_dtype_size(MAYPOLE_F8E5M2) == 1 && maypole_dtype_size(-1) == 0);
}

static void communicators(maypole_comm comm) {
    maypole_comm part, copy, few;
    int number, of;
    int64_t one = 1, total;
    OK(maypole_comm_split(comm, rank % 2, -rank, &part));
    OK(maypole_comm_rank(part, &number));
    OK(maypole_comm_size(part, &of));
    CHECK(of == (size + 1 - rank % 2) / 2 && number == of - 1 - rank / 2);
    OK(maypole_all_reduce(part, &one, &total, 1, MAYPOLE_I64, MAYPOLE_SUM, NULL));
    CHECK(total == of);
    OK(maypole_comm_destroy(part));
    OK(maypole_comm_split(comm, rank == 0 ? MAYPOLE_NO_COLOR : 0, 0, &part));
    CHECK((part == NULL) == (rank == 0));
    if (part) OK(maypole_comm_destroy(part));
    OK(maypole_comm_duplicate(comm, &copy));
    OK(maypole_comm_set_timeout(copy, 60));
    OK(maypole_comm_set_order(copy, MAYPOLE_ORDER_CANONICAL));
    OK(maypole_barrier(copy, NULL));
    OK(maypole_comm_status(copy));
    OK(maypole_comm_destroy(copy));
    if (rank < 2) {
        const int both[2] = {size > 1 ? 1 : 0, 0};
        OK(maypole_comm_subset(comm, both, size > 1 ? 2 : 1, &few));
        OK(maypole_barrier(few, NULL));
        OK(maypole_comm_destroy(few));
    }
}

static void *by_id(void *argument) {
    const maypole_unique_id *id = argument;
    static int next;
    maypole_comm comm;
    int64_t one = 1, total;
    OK(maypole_comm_init_id(id, __atomic_fetch_add(&next, 1, __ATOMIC_SEQ_CST), 2, NULL, &comm));
    OK(maypole_all_reduce(comm, &one, &total, 1, MAYPOLE_I64, MAYPOLE_SUM, NULL));
    CHECK(total == 2);
    OK(maypole_barrier(comm, NULL));
    OK(maypole_comm_destroy(comm));
    return NULL;
}

static void *as_thread(void *argument) {
    maypole_comm comm = argument;
    int64_t one = 1, total;
    OK(maypole_all_reduce(comm, &one, &total, 1, MAYPOLE_I64, MAYPOLE_SUM, NULL));
    CHECK(total == 2);
    OK(maypole_barrier(comm, NULL));
    OK(maypole_comm_destroy(comm));
    return NULL;
}

static void threads(void) {
    maypole_unique_id id;
    maypole_comm comms[2];
    pthread_t workers[4];
    OK(maypole_unique_id_create(NULL, &id));
    OK(maypole_comm_init_threads(2, NULL, comms));
    for (int i = 0; i < 2; i++) {
        CHECK(!pthread_create(&workers[i], NULL, by_id, &id));
        CHECK(!pthread_create(&workers[2 + i], NULL, as_thread, comms[i]));
    }
    for (int i = 0; i < 4; i++) CHECK(!pthread_join(workers[i], NULL));
}

static void registered(maypole_comm comm) {
    enum { COUNT = 50000 };
    int64_t *memory;
    OK(maypole_alloc(comm, COUNT * sizeof *memory, (void **)&memory));
    for (int i = 0; i < COUNT; i++) memory[i] = rank;
    OK(maypole_all_reduce(comm, memory, memory, COUNT, MAYPOLE_I64, MAYPOLE_SUM, NULL));
    CHECK(memory[0] == size * (size - 1) / 2 && memory[COUNT - 1] == memory[0]);
    OK(maypole_free(memory));
}

int main(void) {
    maypole_comm comm;
    maypole_stream stream;
    maypole_config config = MAYPOLE_CONFIG_INIT;
    config.timeout = 100;
    config.order = MAYPOLE_ORDER_FREE;
    config.algorithm = "";
    CHECK(maypole_version() == MAYPOLE_VERSION && *maypole_version_string());
    OK(maypole_comm_init_env(&config, &comm));
    OK(maypole_comm_rank(comm, &rank));
    OK(maypole_comm_size(comm, &size));
    CHECK(size <= MOST);
    OK(maypole_stream_create(&stream));
    blocking(comm, NULL);
    blocking(comm, stream);
    asynchronous(comm, NULL);
    asynchronous(comm, stream);
    persistent(comm, stream);
    together(comm, stream);
    operations(comm);
    communicators(comm);
    threads();
    registered(comm);
    OK(maypole_barrier(comm, NULL));
    OK(maypole_stream_destroy(stream));
    OK(maypole_comm_destroy(comm));
    CHECK(!*maypole_last_error());
    printf("fine\n");
    return 0;
}
