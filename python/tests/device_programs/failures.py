"""What goes wrong on the device names the rank, and shows where the stream is waited for."""

import os
import sys

import maypole
from memory import OnDevice, refused, stream

how = sys.argv[1]
comm = maypole.init()
last = comm.size - 1
queued = comm.on(stream.value)
x = OnDevice([1, 2, 3])
queued.all_reduce(x)
queued.synchronize()
error, text = {
    "differs": (maypole.MismatchError, "ranks disagree"),
    "dies": (maypole.DiedError, f"rank {last}"),
    "aborts": (maypole.AbortedError, f"rank {last} aborted the communicator: has had enough"),
    "stalls": (maypole.StalledError, f"rank {last}"),
}[how]
comm.barrier()
if comm.rank == last and how != "differs":
    if how == "dies":
        os._exit(0)
    if how == "aborts":
        comm.abort("has had enough")
    # One that stalls is there, and makes no call, until the others have failed.
    refused("", lambda: comm.recv(bytearray(1), 0), maypole.FailedError)
else:
    if how == "stalls":
        comm.set_timeout(1)

    def wait():
        queued.all_reduce(OnDevice([1, 2, 3, 4]) if comm.rank == last else x)
        queued.synchronize()

    refused(text, wait, error)
    assert comm.verdict
print("fine", flush=True)
