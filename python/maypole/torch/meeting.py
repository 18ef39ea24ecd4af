"""How the ranks of a group find each other: by way of the store that PyTorch hands to a backend.

Rank 0 makes the id of a world and puts it there; the others wait for it and join. From then on the ranks know who is
missing themselves. The key is taken away once all have come, since a later group may get the same place in the store.
"""

import base64
import time

from .._maypole import BootstrapError, TorchLink

_KEY = "maypole/id"


def meet(store, rank, size, timeout):
    """The link of rank `rank` of `size` to the others. `timeout`: seconds.

    BootstrapError, on every rank, if some do not come in that time, and which.
    """
    if size == 1:
        return TorchLink.join(None, 0, 1, timeout)
    TorchLink.refuse_open(timeout)
    if rank == 0:
        # An id that only this process can reach would be of no use to others; the same settings make both.
        id = TorchLink.id(timeout)
        store.set(_KEY, base64.b64encode(id).decode())
        link = TorchLink.join(id, rank, size, timeout)
        store.delete_key(_KEY)
        return link
    end = time.monotonic() + timeout
    id = base64.b64decode(_read(store, end, rank, timeout))
    return TorchLink.join(id, rank, size, max(end - time.monotonic(), 1.0))


def _read(store, end, rank, timeout):
    pause = 0.0
    while not store.check([_KEY]):
        if time.monotonic() > end:
            raise BootstrapError(
                f"rank {rank}: rank 0 has not come: it has put no id into the store within {timeout:g} s; "
                "see whether its process runs, and whether all ranks make the same groups in the same order"
            )
        time.sleep(pause)
        # Many ranks ask the one process that has the store.
        pause = min(pause * 1.5 + 1e-4, 0.05)
    return store.get(_KEY)
