/* Every collective, and messages, on a CUDA stream: apart and in place, with equal blocks and blocks with counts of their
 * own, in each kind of memory; ranks as processes and as threads. */
#define _POSIX_C_SOURCE 200809L
#include "driver.h"
#include <pthread.h>

enum { MOST = 4, LARGE = 30000, ELEMENTS = MOST * MOST * LARGE };

/* Two buffers of ELEMENTS elements, and the stream on which they are used. */
struct place {
    maypole_comm comm;
    maypole_stream on;
    void *queue;
    enum { DEVICE, MANAGED, PINNED, ORDINARY, KINDS } kind;
    int64_t *x, *y;
    int64_t *seen; /* on the host */
    int rank, size;
};

static int64_t *memory(const struct place *at) {
    const size_t bytes = ELEMENTS * sizeof(int64_t);
    device_address managed;
    void *here = NULL;
    switch (at->kind) {
    case DEVICE: return on_device(bytes);
    case MANAGED: CUDA(driver.allocate_managed(&managed, bytes, 1)); return (int64_t *)(uintptr_t)managed;
    case PINNED: CUDA(driver.allocate_pinned(&here, bytes)); return here;
    default: here = malloc(bytes); CHECK(here); return here;
    }
}

static void give_back(const struct place *at, int64_t *buffer) {
    switch (at->kind) {
    case DEVICE: case MANAGED: CUDA(driver.free_device((device_address)(uintptr_t)buffer)); break;
    case PINNED: CUDA(driver.free_pinned(buffer)); break;
    default: free(buffer);
    }
}

static void store(const struct place *at, int64_t *to, size_t count) {
    const size_t bytes = count * sizeof *to;
    if (at->kind == PINNED || at->kind == ORDINARY) memcpy(to, at->seen, bytes);
    else {
        CUDA(driver.write((device_address)(uintptr_t)to, at->seen, bytes, at->queue));
        CUDA(driver.stream_synchronize(at->queue));
    }
}

static void load(const struct place *at, const int64_t *from, size_t count) {
    const size_t bytes = count * sizeof *from;
    if (at->kind == PINNED || at->kind == ORDINARY) memcpy(at->seen, from, bytes);
    else {
        CUDA(driver.read(at->seen, (device_address)(uintptr_t)from, bytes, at->queue));
        CUDA(driver.stream_synchronize(at->queue));
    }
}

/* Element i of rank r's input. */
static int64_t of(int64_t r, size_t i) { return 1000000 * r + (int64_t)i; }

/* The sum of element i over the first `ranks` ranks. */
static int64_t sum(int ranks, size_t i) { return 500000 * (int64_t)ranks * (ranks - 1) + ranks * (int64_t)i; }

/* This rank's input into x, -1 into y. */
static void fill(const struct place *at, size_t count) {
    for (size_t i = 0; i < count; i++) at->seen[i] = of(at->rank, i);
    store(at, at->x, count);
    for (size_t i = 0; i < count; i++) at->seen[i] = -1;
    store(at, at->y, count);
}

/* `value` is an expression in i. */
#define EXPECT(where, count, value)                                                  \
    do {                                                                             \
        load(at, (where), (count));                                                  \
        for (size_t i = 0; i < (count); i++) CHECK(at->seen[i] == (int64_t)(value)); \
    } while (0)

/* Collectives on blocks of c elements. */
static void even(const struct place *at, size_t c) {
    const int rank = at->rank, size = at->size, last = size - 1;
    const size_t all = (size_t)size * c, mine = (size_t)rank * c;
    maypole_comm comm = at->comm;
    maypole_stream on = at->on;
    int64_t *x = at->x, *y = at->y;

    fill(at, all);
    OK(maypole_all_reduce(comm, x, y, c, MAYPOLE_I64, MAYPOLE_SUM, on));
    EXPECT(y, c, sum(size, i));
    OK(maypole_all_reduce(comm, y, y, c, MAYPOLE_I64, MAYPOLE_AVG, on));
    EXPECT(y, c, sum(size, i));
    fill(at, all);
    OK(maypole_reduce(comm, x, rank == last ? y : NULL, c, MAYPOLE_I64, MAYPOLE_MAX, last, on));
    EXPECT(y, c, rank == last ? of(last, i) : -1);
    OK(maypole_reduce(comm, x, x, c, MAYPOLE_I64, MAYPOLE_SUM, 0, on));
    if (rank == 0) EXPECT(x, c, sum(size, i));
    fill(at, all);
    OK(maypole_broadcast(comm, rank == last ? x : NULL, y, c, MAYPOLE_I64, last, on));
    EXPECT(y, c, of(last, i));
    OK(maypole_broadcast(comm, x, x, c, MAYPOLE_I64, 0, on));
    EXPECT(x, c, of(0, i));
    fill(at, all);
    OK(maypole_all_gather(comm, x, y, c, MAYPOLE_I64, on));
    EXPECT(y, all, of((int64_t)(i / c), i % c));
    OK(maypole_all_gather(comm, x + mine, x, c, MAYPOLE_I64, on));
    EXPECT(x, all, of((int64_t)(i / c), i));
    fill(at, all);
    OK(maypole_reduce_scatter(comm, x, y, c, MAYPOLE_I64, MAYPOLE_SUM, on));
    EXPECT(y, c, sum(size, mine + i));
    OK(maypole_reduce_scatter(comm, x, x + mine, c, MAYPOLE_I64, MAYPOLE_SUM, on));
    EXPECT(x + mine, c, sum(size, mine + i));
    fill(at, all);
    OK(maypole_all_to_all(comm, x, y, c, MAYPOLE_I64, on));
    EXPECT(y, all, of((int64_t)(i / c), mine + i % c));
    OK(maypole_all_to_all(comm, x, x, c, MAYPOLE_I64, on));
    EXPECT(x, all, of((int64_t)(i / c), mine + i % c));
    fill(at, all);
    OK(maypole_gather(comm, x, rank == 0 ? y : NULL, c, MAYPOLE_I64, 0, on));
    EXPECT(y, all, rank == 0 ? of((int64_t)(i / c), i % c) : -1);
    OK(maypole_gather(comm, x + mine, rank == last ? x : NULL, c, MAYPOLE_I64, last, on));
    if (rank == last) EXPECT(x, all, of((int64_t)(i / c), i));
    fill(at, all);
    OK(maypole_scatter(comm, rank == last ? x : NULL, y, c, MAYPOLE_I64, last, on));
    EXPECT(y, c, of(last, mine + i));
    OK(maypole_scatter(comm, rank == 0 ? x : NULL, rank == 0 ? x : y, c, MAYPOLE_I64, 0, on));
    EXPECT(rank == 0 ? x : y, c, of(0, mine + i));
    fill(at, all);
    OK(maypole_scan(comm, x, y, c, MAYPOLE_I64, MAYPOLE_SUM, on));
    EXPECT(y, c, sum(rank + 1, i));
    fill(at, all);
    OK(maypole_exclusive_scan(comm, x, y, c, MAYPOLE_I64, MAYPOLE_SUM, on));
    EXPECT(y, c, rank ? sum(rank, i) : -1);
    OK(maypole_barrier(comm, on));
}

/* Rank r's block has r * c elements, so rank 0 has none, and lies c elements behind the one before. */
static void variable(const struct place *at, size_t c) {
    const int rank = at->rank, size = at->size, last = size - 1;
    maypole_comm comm = at->comm;
    maypole_stream on = at->on;
    int64_t *x = at->x, *y = at->y;
    size_t counts[MOST], apart[MOST], sent[MOST], received[MOST], same[MOST], next = 0, all = 0;
    for (size_t r = 0; r < (size_t)size; r++) {
        counts[r] = r * c;
        apart[r] = next;
        next += counts[r] + c;
        sent[r] = (r + 1) * c;
        all += sent[r];
        received[r] = ((size_t)rank + 1) * c;
        same[r] = c;
    }
    const size_t own = counts[rank], width = received[0], mine = (size_t)rank * c;
    fill(at, next);
    OK(maypole_all_gather_v(comm, x, own, y, counts, apart, MAYPOLE_I64, on));
    for (int r = 0; r < size; r++) {
        EXPECT(y + apart[r], counts[r], of(r, i));
        EXPECT(y + apart[r] + counts[r], c, -1);
    }
    OK(maypole_all_gather_v(comm, x + apart[rank], own, x, counts, apart, MAYPOLE_I64, on));
    for (int r = 0; r < size; r++) EXPECT(x + apart[r], counts[r], of(r, apart[r] + i));
    fill(at, next);
    OK(maypole_reduce_scatter_v(comm, x, counts, apart, y, own, MAYPOLE_I64, MAYPOLE_SUM, on));
    EXPECT(y, own, sum(size, apart[rank] + i));
    EXPECT(y + own, c, -1);
    /* To rank r go r + 1 times c elements. */
    fill(at, ELEMENTS);
    OK(maypole_all_to_all_v(comm, x, sent, NULL, y, received, NULL, MAYPOLE_I64, on));
    EXPECT(y, width * (size_t)size, of((int64_t)(i / width), mine * (size_t)(rank + 1) / 2 + i % width));
    OK(maypole_all_to_all_v(comm, x, same, NULL, x, same, NULL, MAYPOLE_I64, on));
    EXPECT(x, c * (size_t)size, of((int64_t)(i / c), mine + i % c));
    fill(at, all);
    OK(maypole_gather_v(comm, x, own, rank == last ? y : NULL, counts, NULL, MAYPOLE_I64, last, on));
    for (int r = 0; rank == last && r < size; r++) EXPECT(y + (size_t)(r * (r - 1) / 2) * c, counts[r], of(r, i));
    fill(at, next);
    OK(maypole_scatter_v(comm, rank == last ? x : NULL, counts, apart, y, own, MAYPOLE_I64, last, on));
    EXPECT(y, own, of(last, apart[rank] + i));
    EXPECT(y + own, c, -1);
}

/* To the next rank, from the previous one. Those with even numbers send first: a message may be longer than the link. */
static void messages(const struct place *at, size_t c) {
    const int next = (at->rank + 1) % at->size, previous = (at->rank + at->size - 1) % at->size;
    if (at->size == 1) return;
    fill(at, c);
    for (int turn = 0; turn < 2; turn++) {
        if (turn == at->rank % 2) OK(maypole_send(at->comm, at->x, c, MAYPOLE_I64, next, 0, at->on));
        else OK(maypole_recv(at->comm, at->y, c, MAYPOLE_I64, previous, 0, at->on));
    }
    EXPECT(at->y, c, of(previous, i));
}

/* What is queued runs in order, without anybody's waiting in between. */
static void in_order(const struct place *at) {
    fill(at, 2);
    for (int turn = 0; turn < 5; turn++) {
        OK(maypole_all_reduce(at->comm, at->x, at->y, 2, MAYPOLE_I64, MAYPOLE_SUM, at->on));
        OK(maypole_all_reduce(at->comm, at->y, at->x, 2, MAYPOLE_I64, MAYPOLE_MIN, at->on));
    }
    OK(maypole_stream_synchronize(at->on, at->comm));
    int64_t expected = sum(at->size, 1);
    for (int turn = 1; turn < 5; turn++) expected *= at->size;
    EXPECT(at->x + 1, (size_t)1, expected);
}

/* The same values of every type come out of an average as they went in. */
static void types(const struct place *at) {
    static const uint64_t ones[12] = {1, 1, 1, 1, 1, 1, 0x3c00, 0x3f80, 0x3f800000, 0x3ff0000000000000, 0x38, 0x3c};
    maypole_op scaled;
    for (maypole_dtype dtype = MAYPOLE_I8; dtype <= MAYPOLE_F8E5M2; dtype++) {
        at->seen[0] = (int64_t)ones[dtype];
        store(at, at->x, 1);
        OK(maypole_all_reduce(at->comm, at->x, at->y, 1, dtype, MAYPOLE_AVG, at->on));
        load(at, at->y, 1);
        CHECK(!memcmp(at->seen, &ones[dtype], maypole_dtype_size(dtype)));
    }
    OK(maypole_op_premulsum(at->rank + 1.0, &scaled));
    at->seen[0] = 5;
    store(at, at->x, 1);
    OK(maypole_all_reduce(at->comm, at->x, at->y, 1, MAYPOLE_I64, scaled, at->on));
    OK(maypole_op_destroy(scaled));
    EXPECT(at->y, (size_t)1, 5 * at->size * (at->size + 1) / 2);
}

/* Everything, as a rank of `comm`. */
static void everything(maypole_comm comm) {
    struct place here = {.comm = comm, .queue = new_stream()};
    const struct place *at = &here;
    OK(maypole_comm_rank(comm, &here.rank));
    OK(maypole_comm_size(comm, &here.size));
    OK(maypole_stream_from_cuda(here.queue, &here.on));
    here.seen = malloc(ELEMENTS * sizeof *here.seen);
    CHECK(here.seen && here.size <= MOST);
    for (here.kind = DEVICE; here.kind < KINDS; here.kind++) {
        here.x = memory(at);
        here.y = memory(at);
        const size_t lengths[2] = {3, LARGE};
        for (int i = 0; i < 2; i++) {
            even(at, lengths[i]);
            variable(at, lengths[i]);
            messages(at, lengths[i]);
        }
        in_order(at);
        types(at);
        OK(maypole_stream_synchronize(here.on, comm));
        /* Giving memory back waits for all streams of the process: none may wait for this rank, or it were for ever. */
        OK(maypole_barrier(comm, NULL));
        give_back(at, here.x);
        give_back(at, here.y);
        OK(maypole_barrier(comm, NULL));
    }
    free(here.seen);
    OK(maypole_stream_destroy(here.on));
    /* It was the caller's all the time. */
    CUDA(driver.stream_destroy(here.queue));
}

static void *as_thread(void *comm) {
    CUDA(driver.set_context(context));
    everything(comm);
    OK(maypole_barrier(comm, NULL));
    OK(maypole_comm_destroy(comm));
    return NULL;
}

int main(void) {
    maypole_comm comm, threads[2];
    pthread_t workers[2];
    int rank, size;
    start_driver();
    CHECK(maypole_has_feature("cuda"));
    OK(maypole_comm_init_env(NULL, &comm));
    OK(maypole_comm_rank(comm, &rank));
    OK(maypole_comm_size(comm, &size));
    everything(comm);
    if (size == 1) {
        OK(maypole_comm_init_threads(2, NULL, threads));
        for (int i = 0; i < 2; i++) CHECK(!pthread_create(&workers[i], NULL, as_thread, threads[i]));
        for (int i = 0; i < 2; i++) CHECK(!pthread_join(workers[i], NULL));
    }
    OK(maypole_barrier(comm, NULL));
    OK(maypole_comm_destroy(comm));
    CHECK(!*maypole_last_error());
    printf("fine\n");
    return 0;
}
