/* Operations whose operands are several elements, and which do not commute, in every form of a call; pairs with minloc and
 * maxloc. */
#include "check.h"
#include <stdint.h>

enum { MOST = 8, PAIRS = 4099, PRIME = 65521 };

/* The map x -> a x + b modulo a prime. */
typedef struct {
    uint32_t a, b;
} map;

/* 72 bytes: no line of 64 holds a whole number of them. */
typedef struct {
    double first, between[7], last;
} run;

static int rank, size;
static long odd;
static maypole_stream stream;
static maypole_op maps, runs;

static map then(map x, map y) {
    const map both = {(uint32_t)((uint64_t)x.a * y.a % PRIME), (uint32_t)(((uint64_t)y.a * x.b + y.b) % PRIME)};
    return both;
}

/* What is done first is the left operand. */
static int compose(void *context, void *result, const void *a, const void *b, size_t count) {
    map *to = result;
    const map *x = a, *y = b;
    (void)context;
    odd += count % 2;
    for (size_t i = 0; i < count / 2; i++) to[i] = then(x[i], y[i]);
    return 0;
}

static int join(void *context, void *result, const void *a, const void *b, size_t count) {
    run *to = result;
    const run *x = a, *y = b;
    (void)context;
    odd += count % 9 != 0;
    for (size_t i = 0; i < count / 9; i++) {
        run joined = {x[i].first, {0}, y[i].last};
        for (int k = 0; k < 7; k++) joined.between[k] = x[i].between[k] + y[i].between[k];
        to[i] = joined;
    }
    return 0;
}

static map map_of(int r, size_t i) {
    const map of = {(uint32_t)((i * 7 + (size_t)r * 13) % (PRIME - 1) + 1), (uint32_t)((i + 5 * (size_t)r) % PRIME)};
    return of;
}

static map folded(int ranks, size_t i) {
    map all = map_of(0, i);
    for (int r = 1; r < ranks; r++) all = then(all, map_of(r, i));
    return all;
}

static void equal(const map *found, int ranks, size_t first, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const map want = folded(ranks, first + i);
        CHECK(found[i].a == want.a && found[i].b == want.b);
    }
}

/* The result of a call that gives a request, or that a group or a stream holds. */
static maypole_request started;
static void waited(void) {
    OK(maypole_wait(&started));
}

static void every_form(maypole_comm comm, size_t count) {
    map *const mine = malloc(sizeof(map) * count * (size_t)size), *const out = malloc(sizeof(map) * (count + MOST));
    size_t counts[MOST], displacements[MOST], first = 0;
    const size_t n = 2 * count, me = (size_t)rank;
    maypole_persistent kept;
    for (size_t i = 0; i < count * (size_t)size; i++) mine[i] = map_of(rank, i);

    OK(maypole_all_reduce(comm, mine, out, n, MAYPOLE_U32, maps, NULL));
    equal(out, size, 0, count);
    for (int root = 0; root < size; root++) {
        OK(maypole_reduce(comm, mine, out, n, MAYPOLE_U32, maps, root, NULL));
        if (rank == root) equal(out, size, 0, count);
    }
    OK(maypole_reduce_scatter(comm, mine, out, n, MAYPOLE_U32, maps, NULL));
    equal(out, size, me * count, count);
    OK(maypole_scan(comm, mine, out, n, MAYPOLE_U32, maps, NULL));
    equal(out, rank + 1, 0, count);
    OK(maypole_exclusive_scan(comm, mine, out, n, MAYPOLE_U32, maps, NULL));
    if (rank > 0) equal(out, rank, 0, count);
    /* The last rank gets half of what the others get. */
    for (int r = 0; r < size; r++) {
        counts[r] = n - (r == size - 1 ? 2 * (count / 2) : 0);
        displacements[r] = first;
        first += counts[r];
    }
    OK(maypole_reduce_scatter_v(comm, mine, counts, displacements, out, counts[rank], MAYPOLE_U32, maps, NULL));
    equal(out, size, displacements[rank] / 2, counts[rank] / 2);

    OK(maypole_all_reduce(comm, mine, out, n, MAYPOLE_U32, maps, stream));
    OK(maypole_stream_synchronize(stream, comm));
    equal(out, size, 0, count);
    OK(maypole_start_scan(comm, mine, out, n, MAYPOLE_U32, maps, NULL, &started));
    waited();
    equal(out, rank + 1, 0, count);
    OK(maypole_persistent_all_reduce(comm, mine, out, n, MAYPOLE_U32, maps, &kept));
    for (int times = 0; times < 2; times++) {
        memset(out, 9, sizeof(map) * count);
        OK(maypole_persistent_run(kept));
        equal(out, size, 0, count);
    }
    OK(maypole_persistent_destroy(kept));
    OK(maypole_group_begin(comm));
    OK(maypole_all_reduce(comm, mine, out, 2, MAYPOLE_U32, maps, NULL));
    OK(maypole_all_reduce(comm, mine + 1, out + 1, n - 2, MAYPOLE_U32, maps, NULL));
    OK(maypole_group_start(comm, NULL, &started));
    waited();
    equal(out, size, 0, count);
    REFUSED(maypole_all_reduce(comm, mine, out, 3, MAYPOLE_U32, maps, NULL), MAYPOLE_ERROR_ARGUMENT, "2 at a time");
    free(mine);
    free(out);
}

static void long_operands(maypole_comm comm) {
    enum { COUNT = 1500 };
    static run mine[COUNT], out[COUNT];
    for (int i = 0; i < COUNT; i++) {
        mine[i].first = mine[i].last = rank * COUNT + i;
        for (int k = 0; k < 7; k++) mine[i].between[k] = i + k;
    }
    OK(maypole_all_reduce(comm, mine, out, 9 * COUNT, MAYPOLE_F64, runs, NULL));
    for (int i = 0; i < COUNT; i++) {
        CHECK(out[i].first == i && out[i].last == (size - 1) * COUNT + i);
        for (int k = 0; k < 7; k++) CHECK(out[i].between[k] == size * (i + k));
    }
}

/* A pair of each type; few values, so that many are equal. */
#define PAIRS_OF(NAME, TYPE, VALUE, INDEX)                                                          \
    static void NAME(maypole_comm comm) {                                                          \
        typedef struct {                                                                           \
            VALUE value;                                                                           \
            INDEX index;                                                                           \
        } pair;                                                                                    \
        static pair mine[PAIRS], least[PAIRS], greatest[PAIRS], all[MOST * PAIRS];                 \
        size_t counts[MOST], displacements[MOST], moved = 0;                                       \
        CHECK(maypole_dtype_size(TYPE) == sizeof(pair));                                           \
        memset(mine, 0, sizeof mine);                                                              \
        for (int i = 0; i < PAIRS; i++) {                                                          \
            mine[i].value = (VALUE)((i * 7 + rank * 3) % 5 - 2);                                   \
            mine[i].index = (INDEX)(50 - rank);                                                    \
        }                                                                                          \
        OK(maypole_all_reduce(comm, mine, least, PAIRS, TYPE, MAYPOLE_MINLOC, NULL));              \
        OK(maypole_start_all_reduce(comm, mine, greatest, PAIRS, TYPE, MAYPOLE_MAXLOC, NULL, &started)); \
        waited();                                                                                  \
        for (int i = 0; i < PAIRS; i++) {                                                          \
            int low = 0, high = 0;                                                                 \
            for (int r = 0; r < size; r++) {                                                       \
                const int value = (i * 7 + r * 3) % 5;                                             \
                if (value <= (i * 7 + low * 3) % 5) low = r;                                       \
                if (value >= (i * 7 + high * 3) % 5) high = r;                                     \
            }                                                                                      \
            CHECK(least[i].value == (VALUE)((i * 7 + low * 3) % 5 - 2) && least[i].index == 50 - low); \
            CHECK(greatest[i].value == (VALUE)((i * 7 + high * 3) % 5 - 2) && greatest[i].index == 50 - high); \
        }                                                                                          \
        /* Pairs are moved as anything else is: rank r has r of them. */                           \
        for (int r = 0; r < size; r++) {                                                           \
            counts[r] = (size_t)r;                                                                 \
            displacements[r] = moved;                                                              \
            moved += counts[r];                                                                    \
        }                                                                                          \
        OK(maypole_all_gather_v(comm, mine, (size_t)rank, all, counts, displacements, TYPE, NULL)); \
        for (int r = 0; r < size; r++) CHECK(r == 0 || all[displacements[r] + (size_t)r - 1].index == 50 - r); \
        OK(maypole_group_begin(comm));                                                             \
        OK(maypole_all_gather_v(comm, mine, (size_t)rank, all, counts, NULL, TYPE, NULL));         \
        OK(maypole_group_end(comm));                                                               \
        OK(maypole_broadcast(comm, mine, mine, PAIRS, TYPE, size - 1, NULL));                      \
        CHECK(mine[0].index == 50 - (size - 1));                                                   \
    }

PAIRS_OF(float_int, MAYPOLE_F32_I32, float, int32_t)
PAIRS_OF(double_int, MAYPOLE_F64_I32, double, int32_t)
PAIRS_OF(long_int, MAYPOLE_I64_I32, int64_t, int32_t)
PAIRS_OF(two_int, MAYPOLE_I32_I32, int32_t, int32_t)
PAIRS_OF(short_int, MAYPOLE_I16_I32, int16_t, int32_t)
PAIRS_OF(double_long, MAYPOLE_F64_I64, double, int64_t)
PAIRS_OF(two_long, MAYPOLE_I64_I64, int64_t, int64_t)

static void misuse(maypole_comm comm) {
    int32_t x[4] = {0}, y[4];
    maypole_op op;
    REFUSED(maypole_all_reduce(comm, x, y, 2, MAYPOLE_I32, MAYPOLE_MINLOC, NULL), MAYPOLE_ERROR_ARGUMENT, "need pairs");
    REFUSED(maypole_all_reduce(comm, x, y, 2, MAYPOLE_I32_I32, MAYPOLE_SUM, NULL), MAYPOLE_ERROR_ARGUMENT, "is a pair");
    REFUSED(maypole_all_reduce(comm, x, y, 2, 71, MAYPOLE_MINLOC, NULL), MAYPOLE_ERROR_ARGUMENT, "dtype is 71");
    REFUSED(maypole_all_reduce(comm, x, y, SIZE_MAX, MAYPOLE_I32_I32, MAYPOLE_MINLOC, NULL), MAYPOLE_ERROR_ARGUMENT, "more");
    REFUSED(maypole_op_create_with(1, MAYPOLE_U32, 0, 1, compose, NULL, &op), MAYPOLE_ERROR_ARGUMENT, "width is 0");
    REFUSED(maypole_op_create_with(1, MAYPOLE_U32, 65536, 1, compose, NULL, &op), MAYPOLE_ERROR_ARGUMENT, "65535");
    REFUSED(maypole_op_create_with(1, MAYPOLE_U32, 2, 1, NULL, NULL, &op), MAYPOLE_ERROR_ARGUMENT, "callback is NULL");
    REFUSED(maypole_op_create_with(1, MAYPOLE_F32_I32, 2, 1, compose, NULL, &op), MAYPOLE_ERROR_ARGUMENT, "dtype is 64");
    REFUSED(maypole_op_destroy(MAYPOLE_MAXLOC), MAYPOLE_ERROR_ARGUMENT, "built-in");
    CHECK(maypole_has_feature("op_width") && maypole_has_feature("minloc"));
}

int main(void) {
    const size_t lengths[] = {1, 2, 33, 999, 30001};
    maypole_comm comm;
    OK(maypole_comm_init_env(NULL, &comm));
    OK(maypole_comm_rank(comm, &rank));
    OK(maypole_comm_size(comm, &size));
    CHECK(size <= MOST);
    OK(maypole_stream_create(&stream));
    OK(maypole_op_create_with(41, MAYPOLE_U32, 2, 0, compose, NULL, &maps));
    OK(maypole_op_create_with(42, MAYPOLE_F64, 9, 0, join, NULL, &runs));
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) every_form(comm, lengths[i]);
    long_operands(comm);
    CHECK(odd == 0);
    float_int(comm);
    double_int(comm);
    long_int(comm);
    two_int(comm);
    short_int(comm);
    double_long(comm);
    two_long(comm);
    misuse(comm);
    OK(maypole_op_destroy(maps));
    OK(maypole_op_destroy(runs));
    OK(maypole_stream_destroy(stream));
    OK(maypole_comm_destroy(comm));
    printf("fine\n");
    return 0;
}
