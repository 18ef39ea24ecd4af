"""Calls in a capture are refused; they spoil neither the capture nor the communicator."""

from ctypes import byref, c_uint, c_void_p

import maypole
from memory import OnDevice, call, refused, stream

GLOBAL, RELAXED = 0, 2
comm = maypole.init()
queued = comm.on(stream.value)
x, graph = OnDevice([comm.rank, 1]), c_void_p()
queued.all_reduce(x)
queued.synchronize()
for mode in (GLOBAL, RELAXED):
    call("cuStreamBeginCapture_v2", stream, c_uint(mode))
    refused("is being captured into a CUDA graph", lambda: queued.all_reduce(x))
    refused("is being captured into a CUDA graph", queued.barrier)
    refused("is being captured into a CUDA graph", lambda: queued.send(x, 1 - comm.rank), maypole.Error)
    call("cuStreamEndCapture", stream, byref(graph))
queued.all_reduce(x)
queued.synchronize()
assert x.read().tolist() == [2, 4], x.read()
print("fine")
