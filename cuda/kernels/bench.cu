// Kernels for measurements only: an empty one, whose launch is the floor of every small operation, and a matrix product,
// which keeps the multiprocessors busy while a collective runs beside it.

#include "device.h"

namespace {

// C = A * B, row-major squares of f32. The side is a multiple of 64.
struct Product {
    const float *a, *b;
    float *c;
    u64 side;
};

struct Unused {
    u64 nothing;
};

// What one thread computes: a tile of TILE x TILE. A block of 64 x 64 threads' tiles, 16 x 16 threads.
enum : u32 { TILE = 4 };

INLINE void load_four(float (&to)[TILE], const float *from) {
    Vector v = load((const u8 *)from);
#pragma unroll
    for (u32 i = 0; i < TILE; i++) to[i] = __uint_as_float(v.word[i]);
}

} // namespace

KERNEL(maypole_bench_empty, Unused, unused) { (void)unused; }

// One block of 256 threads per 64 x 64 elements of C, row by row. Tiles stay in registers
// and operands in the first-level cache; a library's product is several times as fast, but needs the library.
KERNEL(maypole_bench_matmul, Product, product) {
    u64 side = product.side;
    u64 across = side / 64;
    u64 row = blockIdx.x / across * 64 + threadIdx.x / 16 * TILE;
    u64 column = blockIdx.x % across * 64 + threadIdx.x % 16 * TILE;
    float sums[TILE][TILE] = {};
    for (u64 k = 0; k < side; k += TILE) {
        float a[TILE][TILE], b[TILE][TILE];
#pragma unroll
        for (u32 i = 0; i < TILE; i++) {
            load_four(a[i], product.a + (row + i) * side + k);
            load_four(b[i], product.b + (k + i) * side + column);
        }
#pragma unroll
        for (u32 i = 0; i < TILE; i++)
#pragma unroll
            for (u32 j = 0; j < TILE; j++)
#pragma unroll
                for (u32 l = 0; l < TILE; l++) sums[i][j] += a[i][l] * b[l][j];
    }
#pragma unroll
    for (u32 i = 0; i < TILE; i++) {
        Vector v;
#pragma unroll
        for (u32 j = 0; j < TILE; j++) v.word[j] = __float_as_uint(sums[i][j]);
        store((u8 *)(product.c + (row + i) * side + column), v);
    }
}
