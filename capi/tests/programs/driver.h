/* The few functions of CUDA's driver that the test programs need, found as Maypole finds them: by name, when they run. So
 * they compile without CUDA, and run on an emulated driver too. */
#ifndef DRIVER_H
#define DRIVER_H

#include "check.h"
#include <dlfcn.h>
#include <stdint.h>

typedef uint64_t device_address;

static struct {
    int (*init)(unsigned flags);
    int (*retain)(void **context, int device);
    int (*set_context)(void *context);
    int (*stream_create)(void **stream, unsigned flags);
    int (*stream_synchronize)(void *stream);
    int (*stream_destroy)(void *stream);
    int (*begin_capture)(void *stream, int mode);
    int (*end_capture)(void *stream, void **graph);
    int (*allocate)(device_address *at, size_t bytes);
    int (*allocate_managed)(device_address *at, size_t bytes, unsigned flags);
    int (*allocate_pinned)(void **at, size_t bytes);
    int (*free_device)(device_address at);
    int (*free_pinned)(void *at);
    int (*write)(device_address to, const void *from, size_t bytes, void *stream);
    int (*read)(void *to, device_address from, size_t bytes, void *stream);
} driver;

/* The primary context of device 0, which is what frameworks use. */
static void *context;

#define CUDA(call) CHECK((call) == 0)

static void find(void *library, const char *name, void *function) {
    void *found = dlsym(library, name);
    CHECK(found);
    memcpy(function, &found, sizeof found);
}

/* Load the driver, and make the device's context the calling thread's. */
static inline void start_driver(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) fprintf(stderr, "%s\n", dlerror());
    CHECK(library);
    find(library, "cuInit", &driver.init);
    find(library, "cuDevicePrimaryCtxRetain", &driver.retain);
    find(library, "cuCtxSetCurrent", &driver.set_context);
    find(library, "cuStreamCreate", &driver.stream_create);
    find(library, "cuStreamSynchronize", &driver.stream_synchronize);
    find(library, "cuStreamDestroy_v2", &driver.stream_destroy);
    find(library, "cuStreamBeginCapture_v2", &driver.begin_capture);
    find(library, "cuStreamEndCapture", &driver.end_capture);
    find(library, "cuMemAlloc_v2", &driver.allocate);
    find(library, "cuMemAllocManaged", &driver.allocate_managed);
    find(library, "cuMemAllocHost_v2", &driver.allocate_pinned);
    find(library, "cuMemFree_v2", &driver.free_device);
    find(library, "cuMemFreeHost", &driver.free_pinned);
    find(library, "cuMemcpyHtoDAsync_v2", &driver.write);
    find(library, "cuMemcpyDtoHAsync_v2", &driver.read);
    CUDA(driver.init(0));
    CUDA(driver.retain(&context, 0));
    CUDA(driver.set_context(context));
}

/* A stream that does not wait for the default stream. */
static inline void *new_stream(void) {
    void *stream;
    CUDA(driver.stream_create(&stream, 1));
    return stream;
}

static inline void *on_device(size_t bytes) {
    device_address at;
    CUDA(driver.allocate(&at, bytes));
    return (void *)(uintptr_t)at;
}

#endif
