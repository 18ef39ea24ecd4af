/* A libnccl.so.2 for worlds of one rank, where every collective is a copy: enough to show that nccl_perf finds the functions, passes their
 * arguments in nccl.h's order, and checks what comes out. With NCCL_STAND_IN_WRONG set it spoils every result. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char internal[128]; } ncclUniqueId;
typedef struct { int rank; } *ncclComm_t;
typedef int (*copy_t)(uint64_t, uint64_t, size_t, void *);
typedef int (*set_t)(uint64_t, unsigned char, size_t, void *);

static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
static uint64_t sent;
static size_t sent_bytes;

static int copy(uint64_t from, uint64_t to, size_t count, int type, ncclComm_t comm, void *stream) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (!driver || !comm || comm->rank != 0 || type < 0 || type > 11) return 4;
    size_t bytes = count * sizes[type];
    if (bytes == 0) return 0;
    if (getenv("NCCL_STAND_IN_WRONG")) return ((set_t)dlsym(driver, "cuMemsetD8Async"))(to, 0x77, bytes, stream);
    return from == to ? 0 : ((copy_t)dlsym(driver, "cuMemcpyDtoDAsync_v2"))(to, from, bytes, stream);
}

int ncclGetVersion(int *version) { return *version = 23001, 0; }
int ncclGetUniqueId(ncclUniqueId *id) { return memset(id, 0x2a, sizeof *id), 0; }
const char *ncclGetErrorString(int code) { return code == 4 ? "invalid argument" : "unhandled cuda error"; }
int ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank) {
    for (size_t i = 0; i < sizeof id; i++)
        if (id.internal[i] != 0x2a) return 4;
    if (ranks != 1 || rank != 0) return 4;
    return (*comm = calloc(1, sizeof **comm)) ? 0 : 2;
}
int ncclCommDestroy(ncclComm_t comm) { return free(comm), 0; }
int ncclCommAbort(ncclComm_t comm) { return free(comm), 0; }
int ncclAllReduce(uint64_t from, uint64_t to, size_t n, int type, int op, ncclComm_t comm, void *stream) {
    return op < 0 || op > 4 ? 4 : copy(from, to, n, type, comm, stream);
}
int ncclReduceScatter(uint64_t from, uint64_t to, size_t n, int type, int op, ncclComm_t comm, void *stream) {
    return op < 0 || op > 4 ? 4 : copy(from, to, n, type, comm, stream);
}
int ncclReduce(uint64_t from, uint64_t to, size_t n, int type, int op, int root, ncclComm_t comm, void *stream) {
    return op < 0 || op > 4 || root != 0 ? 4 : copy(from, to, n, type, comm, stream);
}
int ncclBroadcast(uint64_t from, uint64_t to, size_t n, int type, int root, ncclComm_t comm, void *stream) {
    return root != 0 ? 4 : copy(from, to, n, type, comm, stream);
}
int ncclAllGather(uint64_t from, uint64_t to, size_t n, int type, ncclComm_t comm, void *stream) {
    return copy(from, to, n, type, comm, stream);
}
int ncclGroupStart(void) { return sent = 0, sent_bytes = 0, 0; }
int ncclSend(uint64_t from, size_t n, int type, int peer, ncclComm_t comm, void *stream) {
    (void)comm, (void)stream;
    if (peer != 0) return 4;
    return sent = from, sent_bytes = n * sizes[type], 0;
}
int ncclRecv(uint64_t to, size_t n, int type, int peer, ncclComm_t comm, void *stream) {
    return peer != 0 || sent_bytes != n * sizes[type] ? 4 : copy(sent, to, n, type, comm, stream);
}
int ncclGroupEnd(void) { return 0; }
