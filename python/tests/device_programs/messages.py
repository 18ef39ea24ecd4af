"""Messages between ranks in device memory; and what is refused."""

import maypole
import numpy as np
from memory import OnDevice, refused, stream

comm = maypole.init()
rank, size = comm.rank, comm.size
queued = comm.on(stream.value)
left, right = (rank - 1) % size, (rank + 1) % size
x, out = OnDevice([rank, 1, 2]), OnDevice([9, 9, 9])

refused("have all ranks call", lambda: queued.send_recv(x, right, out, left))
queued.barrier()
refused("on a stream: the tag is 5, but messages in device memory have none", lambda: queued.send(x, right, tag=5))
refused("say on which stream to use it: comm.on(stream).recv(x)", lambda: comm.recv(x, left))
refused("out: lies in the memory of CUDA device 0", lambda: comm.send_recv(np.ones(3, "f4"), right, out, left))
refused("one buffer is device memory and the other is not", lambda: queued.send_recv(x, right, np.ones(3, "f4"), left))
refused(f"to: is {size}, but the ranks are 0 to {size - 1}", lambda: queued.send(x, size))

assert queued.send_recv(x, right, out, left) is out
queued.synchronize()
assert out.read().tolist() == [left, 1, 2] and x.read().tolist() == [rank, 1, 2]

# On the host, with a tag: the stream is waited for, then the message.
got = np.zeros(3, "f4")
assert queued.send_recv(out.read() + 1, right, got, left, tag=5) is got
assert got.tolist() == [(left - 1) % size + 1, 2, 3]

if size > 1:
    long = np.arange(300_000, dtype="f4")  # longer than the link
    if rank == 0:
        for other in range(1, size):
            assert queued.send(OnDevice(long + other), other) is not None
        queued.synchronize()
    else:
        into = OnDevice(np.zeros_like(long))
        assert queued.recv(into, 0) is into
        queued.synchronize()
        assert np.array_equal(into.read(), long + rank)
    queued.barrier()
    queued.synchronize()
print("fine")
