/* The same program as openmpi/main.rs, on MPI: reads lines "collective dtype op count root seed" and writes, for each,
 * a digest of this rank's output. Inputs and counts come from the same formulas.
 *
 *   mpicc -O1 -o same same.c && mpirun -n 4 ./same SCRIPT OUTPUT     (writes OUTPUT.0 to OUTPUT.3)
 */
#include <inttypes.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int rank, size;

/* The finaliser of SplitMix64. */
static uint64_t mix(uint64_t z) {
    z += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

struct type {
    const char *name;
    MPI_Datatype mpi;
    size_t bytes;
};

static int is_float(const struct type *t) { return t->name[0] == 'f'; }

/* Element i of rank r's input: any bits for integers, but sums of bytes that do not overflow (Open MPI's vector code
 * saturates there, its scalar code wraps); for floats a small whole number, so that sums are exact, and for
 * products a power of two. */
static void element(const struct type *t, const char *op, uint64_t seed, int r, size_t i, unsigned char *to) {
    uint64_t bits = mix(seed ^ mix((uint64_t)r * UINT64_C(1000003) + i));
    if (is_float(t)) {
        double value = (double)(bits % 1025) - 512.0;
        if (strcmp(op, "prod") == 0) value = bits % 4 == 0 ? 0.5 : bits % 4 == 1 ? 2.0 : bits % 4 == 2 ? -1.0 : 1.0;
        if (t->bytes == 4) {
            float narrow = (float)value;
            memcpy(to, &narrow, 4);
        } else {
            memcpy(to, &value, 8);
        }
    } else {
        if (t->bytes == 1 && strcmp(op, "sum") == 0) bits %= 16;
        memcpy(to, &bits, t->bytes); /* little-endian */
    }
}

static unsigned char *input(const struct type *t, const char *op, uint64_t seed, size_t elements) {
    unsigned char *data = malloc(elements * t->bytes + 1);
    for (size_t i = 0; i < elements; i++) element(t, op, seed, rank, i, data + i * t->bytes);
    return data;
}

/* What rank s has for rank r, of blocks of up to count elements. */
static int variable(uint64_t seed, int s, int r, int count) {
    uint64_t bits = mix(seed ^ mix(UINT64_C(77777) + (uint64_t)s * 64 + r));
    return bits % 3 == 0 ? 0 : (int)((bits >> 8) % ((uint64_t)count + 1));
}

static uint64_t digest(const unsigned char *data, size_t bytes) {
    uint64_t h = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
    for (size_t i = 0; i < bytes; i++) h = (h ^ data[i]) * UINT64_C(0x100000001b3);
    return h;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (argc != 3) {
        fprintf(stderr, "usage: %s SCRIPT OUTPUT\n", argv[0]);
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    const struct type types[] = {
        {"i8", MPI_INT8_T, 1},    {"u8", MPI_UINT8_T, 1},   {"i32", MPI_INT32_T, 4}, {"u32", MPI_UINT32_T, 4},
        {"i64", MPI_INT64_T, 8},  {"u64", MPI_UINT64_T, 8}, {"f32", MPI_FLOAT, 4},   {"f64", MPI_DOUBLE, 8},
    };
    const struct {
        const char *name;
        MPI_Op mpi;
    } ops[] = {{"sum", MPI_SUM}, {"prod", MPI_PROD}, {"min", MPI_MIN},  {"max", MPI_MAX},
               {"and", MPI_BAND}, {"or", MPI_BOR},   {"xor", MPI_BXOR}, {"-", MPI_OP_NULL}};
    char path[4096], what[64], type_name[16], op_name[16];
    snprintf(path, sizeof path, "%s.%d", argv[2], rank);
    FILE *script = fopen(argv[1], "r"), *out = fopen(path, "w");
    if (!script || !out) {
        perror(script ? path : argv[1]);
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    int n, root;
    uint64_t seed;
    int *counts = malloc(4 * size * sizeof(int)), *starts = counts + size;
    int *other = starts + size, *other_starts = other + size;
    while (fscanf(script, "%63s %15s %15s %d %d %" SCNu64, what, type_name, op_name, &n, &root, &seed) == 6) {
        const struct type *t = types;
        while (strcmp(t->name, type_name)) t++;
        int o = 0;
        while (strcmp(ops[o].name, op_name)) o++;
        MPI_Op op = ops[o].mpi;
        MPI_Datatype mpi = t->mpi;
        MPI_Comm world = MPI_COMM_WORLD;
        /* Counts of blocks: rank r's block, and, all to all, what this rank sends and receives. */
        int all = 0, received = 0;
        for (int r = 0; r < size; r++) {
            int to_all = strcmp(what, "all_to_all_v") == 0;
            counts[r] = variable(seed, to_all ? rank : 0, r, n);
            other[r] = variable(seed, r, rank, n);
            starts[r] = all;
            other_starts[r] = received;
            all += counts[r];
            received += other[r];
        }
        unsigned char *in = input(t, op_name, seed, (size_t)(n > all ? n : all) * size + all);
        unsigned char *result = calloc((size_t)n * size + all + received + 1, t->bytes);
        size_t got = 0;
#define IS(name) (strcmp(what, name) == 0)
        if (IS("all_reduce")) MPI_Allreduce(in, result, n, mpi, op, world), got = n;
        else if (IS("reduce")) MPI_Reduce(in, result, n, mpi, op, root, world), got = rank == root ? n : 0;
        else if (IS("scan")) MPI_Scan(in, result, n, mpi, op, world), got = n;
        else if (IS("exclusive_scan")) MPI_Exscan(in, result, n, mpi, op, world), got = rank > 0 ? n : 0;
        else if (IS("reduce_scatter")) MPI_Reduce_scatter_block(in, result, n, mpi, op, world), got = n;
        else if (IS("broadcast")) {
            if (rank == root) memcpy(result, in, n * t->bytes);
            MPI_Bcast(result, n, mpi, root, world), got = n;
        } else if (IS("all_gather")) MPI_Allgather(in, n, mpi, result, n, mpi, world), got = (size_t)n * size;
        else if (IS("all_to_all")) MPI_Alltoall(in, n, mpi, result, n, mpi, world), got = (size_t)n * size;
        else if (IS("gather")) {
            MPI_Gather(in, n, mpi, result, n, mpi, root, world), got = rank == root ? (size_t)n * size : 0;
        } else if (IS("scatter")) MPI_Scatter(in, n, mpi, result, n, mpi, root, world), got = n;
        else if (IS("all_gather_v")) {
            MPI_Allgatherv(in, counts[rank], mpi, result, counts, starts, mpi, world), got = all;
        } else if (IS("gather_v")) {
            MPI_Gatherv(in, counts[rank], mpi, result, counts, starts, mpi, root, world), got = rank == root ? all : 0;
        } else if (IS("scatter_v")) {
            MPI_Scatterv(in, counts, starts, mpi, result, counts[rank], mpi, root, world), got = counts[rank];
        } else if (IS("reduce_scatter_v")) {
            MPI_Reduce_scatter(in, result, counts, mpi, op, world), got = counts[rank];
        } else if (IS("all_to_all_v")) {
            MPI_Alltoallv(in, counts, starts, mpi, result, other, other_starts, mpi, world), got = received;
        } else if (IS("send_recv")) {
            MPI_Sendrecv(in, n, mpi, (rank + 1) % size, 7, result, n, mpi, (rank + size - 1) % size, 7, world,
                         MPI_STATUS_IGNORE);
            got = n;
        } else {
            fprintf(stderr, "no such collective: %s\n", what);
            MPI_Abort(MPI_COMM_WORLD, 2);
        }
        fprintf(out, "%016" PRIx64 "\n", digest(result, got * t->bytes));
        free(in);
        free(result);
    }
    fclose(out);
    fclose(script);
    MPI_Finalize();
    return 0;
}
