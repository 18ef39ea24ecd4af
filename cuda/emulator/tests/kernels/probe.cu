// Kernels of the emulator's own tests. probe.ptx beside it has what the driver needs to know about them.

struct Probe {
    unsigned *destination;
    const unsigned *source;
    unsigned long long count;
    unsigned add;
    unsigned reserved;
};

// destination[i] = source[i] + add, with strides of the whole grid.
KERNEL(test_add, Probe, p) {
    unsigned long long width = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += width)
        p.destination[i] = p.source[i] + p.add;
}

// destination[number of the thread in the grid] = that number: shows the shape of the launch.
KERNEL(test_shape, Probe, p) {
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    unsigned number = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
    if (number < p.count) p.destination[number] = number;
}
