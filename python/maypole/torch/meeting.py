"""How the ranks of a group find each other, and what they call it.

A part of the world's group is made from that one's link (`part`): the ranks have met, and share
what they have. Otherwise they meet by way of the store that PyTorch hands to a backend (`meet`).
Rank 0 makes the id of a world and puts it there; the others wait for it and join. From then on
the ranks know who is missing themselves. The key is taken away once all have come, since a later
group may get the same place in the store.

*Programs that try again.* A rank that gives up says so in the store, so that one that comes
later does not wait in vain: it fails too, soon, and comes to the attempt at which the others are
by then. If it is tried again at the same place of the store, whoever said so takes it back.

A group's *key* is a text that all its ranks have and no other group, for what they put into the
store.
"""

import base64
import hashlib
import time

from .._maypole import BootstrapError, TorchLink
_ID = "maypole/id"
# The rank that gave up last, if it has not come again, and why.
_GIVEN_UP = "maypole/given up"


def part(link, key, ranks, timeout):
    """The link of some ranks of a link, which alone call it, and its key. `timeout`: seconds.

    An error of Maypole's, on every rank, if some do not come in that time or cannot make their
    part.
    """
    link = link.subset(ranks, timeout)
    return link, f"{key}/{link.number():x}"


def meet(store, rank, size, timeout):
    """The link of rank `rank` of `size` to the others, and its key. `timeout`: seconds.

    BootstrapError, on every rank, if some do not come in that time, and which.
    """
    if size == 1:
        return TorchLink.join(None, 0, 1, timeout), "alone"
    TorchLink.refuse_open(timeout)
    end = time.monotonic() + timeout
    _take_back(store, rank)
    try:
        id = _offer(store, size, end, timeout) if rank == 0 else _read(store, rank, size, end, timeout)
        link = TorchLink.join(id, rank, size, max(end - time.monotonic(), 1.0))
    except BaseException as error:
        _give_up(store, rank, error)
        raise
    if rank == 0:
        store.delete_key(_ID)
    link.set_timeout(timeout)
    return link, hashlib.sha256(id).hexdigest()[:16]


def _take_back(store, rank):
    if _who_gave_up(store)[0] == rank:
        store.delete_key(_GIVEN_UP)


def _give_up(store, rank, error):
    try:
        if rank == 0:
            store.delete_key(_ID)
        store.set(_GIVEN_UP, f"{rank} {error}"[:2000])
    except RuntimeError:
        pass  # The store is gone, for the others too; what is raised says why this rank gives up.


def _who_gave_up(store):
    """The rank that gave up last and has not come again, or None, and why."""
    text = store.get(_GIVEN_UP).decode(errors="replace") if store.check([_GIVEN_UP]) else ""
    rank, _, why = text.partition(" ")
    return (int(rank) if rank else None), why


class _Patience:
    """Raises once a rank has given up and does not come again for a while: an eighth of the
    time, at most 0.5 s."""

    def __init__(self, store, rank, size, timeout):
        self._store, self._rank, self._size = store, rank, size
        self._length, self._since = min(timeout / 8, 0.5), None

    def is_tried(self):
        """Whether nobody has given up."""
        who, why = _who_gave_up(self._store)
        # A rank that this world does not have gave up when it was larger.
        if who is None or who >= self._size:
            self._since = None
            return True
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > self._length:
            raise BootstrapError(
                f"rank {self._rank}: rank {who} has given up making this group, before this rank came or since: {why}. "
                "If the program tries again, this rank is with the others at the next attempt"
            )
        return False


def _offer(store, size, end, timeout):
    """The id that rank 0 has made and put into the store."""
    patience, pause = _Patience(store, 0, size, timeout), 0.001
    while not patience.is_tried() and time.monotonic() < end:
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    # An id that only this process can reach would be of no use to others; the same settings make
    # both.
    id = TorchLink.id(timeout)
    store.set(_ID, base64.b64encode(id).decode())
    return id


def _read(store, rank, size, end, timeout):
    """The id that rank 0 has put into the store."""
    patience, pause = _Patience(store, rank, size, timeout), 0.0
    while not (patience.is_tried() and store.check([_ID])):
        if time.monotonic() > end:
            raise BootstrapError(
                f"rank {rank}: rank 0 has not come: it has put no id into the store within {timeout:g} s; "
                "see whether its process runs, and whether all ranks make the same groups in the same order"
            )
        time.sleep(pause)
        # Many ranks ask the one process that has the store.
        pause = min(pause * 1.5 + 1e-4, 0.05)
    return base64.b64decode(store.get(_ID))
