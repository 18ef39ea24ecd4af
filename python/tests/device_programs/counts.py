"""Collectives whose blocks have counts of their own, on device memory: what the same calls give on the host."""

import maypole
import numpy as np
from memory import OnDevice, refused, stream

comm = maypole.init()
rank, size = comm.rank, comm.size
queued = comm.on(stream.value)
random = np.random.default_rng(rank)
TOTAL = 4 * size + 3

# Of all ranks, the same everywhere: one of them none; and out of order, with gaps.
counts = [(r * 2 + 1) % 3 for r in range(size)]
displacements = list(np.cumsum([0, *counts[:0:-1]])[::-1] + np.arange(size)[::-1])


def numbers(n):
    return random.integers(-9, 9, n).astype("f4")


def check(name, x, out, *arguments, **keywords):
    """Make the call on copies of the arrays on the host and on the device, and compare all of both."""
    both = []
    for place, form in ((np.copy, comm), (OnDevice, queued)):
        arrays = [None if a is None else place(a) for a in (x, out)]
        result = getattr(form, name)(arrays[0], *arguments, out=arrays[1], **keywords)
        assert result is None or any(result is a for a in arrays), name
        both.append(arrays)
    queued.synchronize()
    for on_host, on_device in zip(*both):
        if on_host is not None:
            assert np.array_equal(on_host, on_device.read()), (name, keywords, on_host, on_device.read())


own = counts[rank]
sent = [(rank + r) % 3 for r in range(size)]  # the same in both directions, so it is also what is received
for root in range(size):
    at_root = rank == root
    for apart in (None, displacements):
        length = sum(counts) if apart is None else TOTAL
        spread = {"displacements": apart} if at_root else {}
        full = numbers(length) if at_root else None
        check("gather_v", numbers(own), full, counts if at_root else None, root=root, **spread)
        check("scatter_v", full, numbers(own), counts if at_root else None, root=root, **spread)
for apart in (None, displacements):
    length = sum(counts) if apart is None else TOTAL
    check("all_gather_v", numbers(own), numbers(length), counts, displacements=apart)
    check("all_gather_v", numbers(length), None, counts, displacements=apart)
    for op in ("sum", "max", "avg"):
        check("reduce_scatter_v", numbers(length), numbers(own), counts, op, displacements=apart)
check("all_to_all_v", numbers(sum(sent)), numbers(sum(sent)), sent, out_counts=sent)
check("all_to_all_v", numbers(sum(sent)), None, sent)
# The part that this rank keeps; the others are undefined afterwards.
x = numbers(sum(counts))
on_host, on_device = x.copy(), OnDevice(x)
comm.reduce_scatter_v(on_host, counts)
queued.reduce_scatter_v(on_device, counts)
queued.synchronize()
mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
assert np.array_equal(on_host[mine], on_device.read()[mine])

on_host = numbers(own)
gathered = np.zeros(sum(counts), "f4")
assert queued.all_gather_v(on_host, counts, gathered) is gathered and np.array_equal(gathered[mine], on_host)
if size > 1:
    # Nobody waits: all ranks are refused, or told.
    refused("out", lambda: queued.all_gather_v(OnDevice(numbers(own)), counts, OnDevice([0] * 99)), maypole.Error)
print("fine")
