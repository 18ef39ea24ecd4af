"""Default streams on threads that have called nothing of CUDA's: they are those of the arrays'
device."""

import ctypes
import threading

import maypole
from memory import OnDevice, call

comm = maypole.init()
LEGACY = 0
x = OnDevice([comm.rank, 1, 2])
raised = []


def calls():
    try:
        assert current_context() is None
        queued = comm.on(LEGACY)
        queued.all_reduce(x)
        # No array says where; the communicator is on that device by now.
        queued.barrier()
        queued.synchronize()
        assert current_context() is None
    except BaseException as error:
        raised.append(error)


def current_context():
    """The context that is current on this thread."""
    context = ctypes.c_void_p()
    call("cuCtxGetCurrent", ctypes.byref(context))
    return context.value


thread = threading.Thread(target=calls)
thread.start()
thread.join()
if raised:
    raise raised[0]
n = comm.size
assert x.read().tolist() == [n * (n - 1) / 2, n, 2 * n], x.read()
print("fine")
