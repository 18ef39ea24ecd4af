"""Collective communication: calls that a group of processes make together to combine and exchange data.

    import maypole, numpy
    comm = maypole.init()                        # who am I? asked of the launcher
    gradient = numpy.full(1000, comm.rank, "f4")
    comm.all_reduce(gradient, "avg")             # now the mean over all ranks, in place

Start it with ``python -m maypole run -n 4 script.py``, torchrun, mpirun, mpiexec or srun; or give each of a process's
threads a rank with ``maypole.threads(n)``.

* ``comm.start.all_reduce(x)`` returns a ``Request``, to be waited for (``wait``) or awaited in asyncio.
* ``comm.group()``: many calls at once. ``comm.persistent``: calls planned once. ``comm.alloc``: memory that the ranks of a
  host read where it lies. ``comm.on(stream)``: device memory.
* Errors are ``maypole.Error``, with the rank and host to blame as attributes.
"""

import atexit as _atexit

from . import _interpreter

_interpreter.check_which()

from ._maypole import (  # noqa: E402
    AbortedError,
    ArgumentError,
    BootstrapError,
    Communicator,
    DeviceError,
    DeviceMemory,
    DiedError,
    Error,
    FailedError,
    Group,
    LinkError,
    MismatchError,
    OnStream,
    Op,
    Persistent,
    PersistentCalls,
    RefusedError,
    Registered,
    Request,
    SettingError,
    StalledError,
    Start,
    Stream,
    SystemFailure,
    __version__,
    _leave,
    from_id,
    init,
    premulsum,
    threads,
    unique_id,
    wait_all,
    wait_any,
)

__all__ = [
    "AbortedError",
    "ArgumentError",
    "BootstrapError",
    "Communicator",
    "DeviceError",
    "DeviceMemory",
    "DiedError",
    "Error",
    "FailedError",
    "Group",
    "LinkError",
    "MismatchError",
    "OnStream",
    "Op",
    "Persistent",
    "PersistentCalls",
    "RefusedError",
    "Registered",
    "Request",
    "SettingError",
    "StalledError",
    "Start",
    "Stream",
    "SystemFailure",
    "__version__",
    "from_id",
    "init",
    "premulsum",
    "threads",
    "unique_id",
    "wait_all",
    "wait_any",
]

_interpreter.check_lock()

# Threads of Maypole's must not ask for an interpreter that is gone.
_atexit.register(_leave)
