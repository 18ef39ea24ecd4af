"""What maypole.torch queues on a CUDA stream, by addresses: calls with equal blocks and with counts of their own."""

from ctypes import c_void_p

import maypole
import numpy as np
from maypole._maypole import TorchLink
from memory import OnDevice, call

# As in maypole.torch.kinds, which needs PyTorch.
ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL = 0, 3, 4, 5
F32, SUM = 8 << 8, 0 << 16

comm = maypole.init()
rank, size = comm.rank, comm.size
id = np.frombuffer(TorchLink.id(20.0) if rank == 0 else bytes(128), np.uint8).copy()
comm.broadcast(id)
link = TorchLink.join(id.tobytes(), rank, size, 20.0)
stream = link.stream(0)


def done():
    call("cuStreamSynchronize", c_void_p(stream.handle))


def queue_v(what, input, sent, output, received):
    """The call, and what is in its output then."""
    input, output = OnDevice(input), OnDevice(output)
    link.queue_v(what | F32, 0, input.address.value, sent, output.address.value, received, stream)
    done()
    return output.read().tolist()


# Rank r sends r + to + 1 elements to each, all of them 10 r + to.
sent = [rank + to + 1 for to in range(size)]
given = np.repeat([10.0 * rank + to for to in range(size)], sent)
taken = np.repeat([10.0 * of + rank for of in range(size)], sent).tolist()
assert queue_v(ALL_TO_ALL, given, sent, [0] * sum(sent), sent) == taken

# Rank r gives r elements, so that one of them gives none.
counts = list(range(size))
gathered = np.repeat(np.arange(size), counts).tolist()
assert queue_v(ALL_GATHER, [rank] * rank, [rank], [9] * sum(counts), counts) == gathered
scattered = queue_v(REDUCE_SCATTER | SUM, np.full(sum(counts), rank + 1.0), counts, [0] * rank, [rank])
assert scattered == [size * (size + 1) / 2] * rank

ones = OnDevice([1.0, 2.0])
link.queue(ALL_REDUCE | F32 | SUM, 0, 2, ones.address.value, ones.address.value, 1.0, stream)
done()
assert ones.read().tolist() == [size, 2 * size]
# Ranks that disagree are told, as everywhere.
if size > 1:
    try:
        queue_v(ALL_TO_ALL, np.ones(size), [1] * size, np.ones(size), [1 + (rank == 0)] * size)
        link.queue(ALL_REDUCE | F32 | SUM, 0, 2, ones.address.value, ones.address.value, 1.0, stream)
        done()
        link.queue(ALL_REDUCE | F32 | SUM, 0, 2, ones.address.value, ones.address.value, 1.0, stream)
    except maypole.Error:
        pass
    else:
        raise AssertionError("ranks disagreed and nobody was told")
print("fine")
