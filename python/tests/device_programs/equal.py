"""Collectives with equal blocks on device memory, two ranks; and what is refused."""

import maypole
import numpy as np
from memory import OnDevice, done, refused, stream

comm = maypole.init()
x, out = OnDevice([comm.rank, 1, 2]), OnDevice([0, 0, 0])
queued = comm.on(stream.value)
assert queued.all_reduce(x, "sum", out) is out
assert queued.all_reduce(x) is x
done()
assert x.read().tolist() == out.read().tolist() == [1, 2, 4], (x.read(), out.read())
assert x.asked == [stream.value] * 2


class Framework:
    cuda_stream = stream.value


gathered = OnDevice([0] * 6)
comm.on(Framework()).all_gather(x, gathered)
queued.synchronize()
assert gathered.read().tolist() == [1, 2, 4] * 2

on_host = np.full(3, comm.rank, "f4")
assert queued.all_reduce(on_host) is on_host and on_host[0] == 1, "host memory is worked on at once"


class OnHost:
    """A tensor of a framework's in host memory, which knows of no streams, as torch's."""

    array = np.full(3, comm.rank, "f4")

    def __dlpack__(self, stream=None, **options):
        assert stream is None, "stream should be None on cpu."
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return (1, 0)


queued.all_reduce(OnHost())
assert OnHost.array[0] == 1

refused("x: lies in the memory of CUDA device 0; say on which stream to use it: comm.on(stream).all_reduce(x)",
        lambda: comm.all_reduce(x))  # fmt: skip
refused("comm.on(stream).all_gather_v(x)", lambda: comm.all_gather_v(x, [3, 3], gathered))
refused("comm.on(stream).all_reduce(x)", lambda: comm.start.all_reduce(x))
refused("comm.on(stream).all_reduce(x)", lambda: comm.persistent.all_reduce(x))
refused("comm.on(stream).send(x)", lambda: comm.send(x, 1 - comm.rank))
refused("out: lies elsewhere than x", lambda: queued.all_reduce(x, out=np.zeros(3, "f4")))
refused("lies on a device of DLPack type 8", lambda: comm.all_reduce(OnDevice([1], device=8)))
refused("stream: is no CUDA stream", lambda: comm.on("stream"))
refused("operation", lambda: queued.all_reduce(x, maypole.Op(lambda a, b: a + b, name="own")))
queued.barrier()
queued.synchronize()
print("fine")
