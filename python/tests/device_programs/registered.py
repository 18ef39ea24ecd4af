"""Device memory from `alloc`: an argument, and an array for frameworks."""

import gc

import maypole
import numpy as np
from memory import OnDevice, refused, stream

comm = maypole.init()
rank, size = comm.rank, comm.size
queued = comm.on(stream.value)
x = queued.alloc(40_000)
assert (len(x), x.dtype, x.is_shared) == (40_000, "float32", size > 1), (len(x), x.dtype, x.is_shared)
assert repr(x) == "<maypole.DeviceMemory: 40000 x float32 on CUDA device 0>", x
described = x.__cuda_array_interface__
assert described["shape"] == (40_000,) and described["typestr"] == "<f4", described
assert x.__dlpack_device__() == (2, 0)

address, read_only = described["data"]
assert not read_only
view = OnDevice.at(address, len(x))
assert not view.read().any(), "it is zero"
numbers = np.arange(len(x), dtype="f4") % 64 + rank
filled = OnDevice(numbers)
assert queued.all_reduce(filled, "max", x) is x
assert queued.all_reduce(x) is x
queued.synchronize()
assert np.array_equal(view.read(), (np.arange(len(x)) % 64 + size - 1) * size)


class Borrower:
    """Passes on what the memory lends, as a framework's tensor would."""

    def __dlpack__(self, **keywords):
        return x.__dlpack__(**keywords)


queued.broadcast(Borrower(), root=size - 1)
queued.synchronize()

# Lengths and types may differ, 0 too, and it comes and goes.
for turn in range(5):
    other = queued.alloc(rank * turn, "bfloat16")
    assert (len(other), other.dtype) == (rank * turn, "bfloat16")
    del other
    gc.collect()
refused("dtype: complex64 is none of", lambda: queued.alloc(1, "complex64"))
refused("say on which stream", lambda: comm.all_reduce(x))
queued.barrier()
queued.synchronize()
print("fine")
