// The loop of all_reduce_perf, around MPI_Allreduce: float32 sum, out of place, one fixed pair of buffers.
//
//   mpicc -O2 -o mpi_all_reduce mpi_all_reduce.c
//   mpirun -n 2 ./mpi_all_reduce BYTES ITERATIONS WARMUP
//
// Rank 0 prints the mean time of a call in microseconds, averaged over ranks. The result is checked after the loop.

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

// Small integers, different on every rank and at every element: their sums are exact.
static float value(int rank, size_t i) { return (float)((i * 2654435761u + (size_t)rank * 40503u) % 1021); }

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (argc != 4) {
        if (rank == 0) fprintf(stderr, "usage: mpi_all_reduce BYTES ITERATIONS WARMUP\n");
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    size_t count = strtoull(argv[1], NULL, 10) / sizeof(float);
    long iterations = strtol(argv[2], NULL, 10), warmup = strtol(argv[3], NULL, 10);

    // A cache line's alignment, as all_reduce_perf has; aligned_alloc wants a multiple of it.
    size_t bytes = (count * sizeof(float) / 64 + 1) * 64;
    float *input = aligned_alloc(64, bytes), *output = aligned_alloc(64, bytes);
    if (!input || !output || iterations < 1) {
        fprintf(stderr, "rank %d: no memory for %zu bytes, or no iteration\n", rank, bytes);
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    for (size_t i = 0; i < count; i++) {
        input[i] = value(rank, i);
        output[i] = -1;
    }

    for (long i = 0; i < warmup + 1; i++)
        MPI_Allreduce(input, output, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Barrier(MPI_COMM_WORLD);
    double start = MPI_Wtime();
    for (long i = 0; i < iterations; i++)
        MPI_Allreduce(input, output, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    double mean = (MPI_Wtime() - start) / (double)iterations * 1e6;

    for (size_t i = 0; i < count; i++) {
        float expected = 0;
        for (int r = 0; r < ranks; r++) expected += value(r, i);
        if (output[i] != expected) {
            fprintf(stderr, "rank %d: element %zu is %g, expected %g\n", rank, i, output[i], expected);
            MPI_Abort(MPI_COMM_WORLD, 1);
        }
    }
    double sum = 0;
    MPI_Reduce(&mean, &sum, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0) printf("%.6f\n", sum / ranks);
    MPI_Finalize();
    return 0;
}
