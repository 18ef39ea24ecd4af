"""Messages between two ranks.

They are posted when they are called and move on by themselves, past the collectives and past each other but for those of
one pair of ranks and one tag. So any number may be under way in both directions without a thread for each.
"""

import threading
import time

import torch
from torch._C import _distributed_c10d as c10d

from .._maypole import ArgumentError, StalledError
from . import kinds
from .calls import contiguous, one
from .seen import own


class Message(c10d.Work):
    """A message under way.

    `staged`: what is sent or filled instead of the tensor, if that is not contiguous. `source`: the
    rank that sends it, None where any rank may.
    """

    def __init__(self, name, posted, tensor, staged, source=-1):
        super().__init__()
        self._name, self._posted, self._tensor, self._source = name, posted, tensor, source
        self._staged = staged
        self._lock = threading.Lock()

    def wait(self, timeout=None):
        seconds = timeout.total_seconds() if timeout else 0.0
        if not self._posted.wait(seconds if seconds > 0 else None):
            raise StalledError(f"{self._name}: not done after {seconds:g} s; it goes on, and may be waited for again")
        self._unstage()
        return True

    def _unstage(self):
        if self._staged is not None:
            with self._lock, torch.no_grad():
                staged, self._staged = self._staged, None
                if staged is not None and self._name == "recv":
                    self._tensor.copy_(staged.view(self._tensor.shape))

    def is_completed(self):
        if not self._posted.test():
            return False
        try:
            self.wait()
        except Exception:  # noqa: BLE001: whoever waits for it is told
            pass
        return True

    def is_success(self):
        return self.is_completed() and self.exception() is None

    def exception(self):
        if not self._posted.test():
            return None
        try:
            self.wait()
        except Exception as error:  # noqa: BLE001: it is what was asked for
            return error
        return None

    def result(self):
        return [self._tensor]

    def synchronize(self):
        self.wait()

    def source_rank(self):
        """The rank that sent it; -1 where any rank may and nothing has come."""
        if self._source is None:
            self._source = self._posted.source()
        return -1 if self._source is None else self._source

    _source_rank = source_rank

    def get_future(self):
        future = torch.futures.Future()

        def complete():
            try:
                self.wait()
            except Exception as error:  # noqa: BLE001: it is the future's
                future.set_exception(error)
            else:
                future.set_result([self._tensor])

        result = future.then(lambda done: done.value())
        if self.is_completed():
            complete()
        else:
            threading.Thread(target=complete, name="maypole-future", daemon=True).start()
        return result


class Messages:
    """The point-to-point calls of a group."""

    def send(self, tensors, destination, tag=0):
        if self._is_watched(tensors):
            return own(c10d.ProcessGroup.send(self, tensors, destination, tag))
        tensor = one("send", "tensor", tensors)
        self._peer("send", destination, tag)
        with torch.no_grad():
            staged = contiguous(tensor if tensor.is_cpu else tensor.cpu())
        kind, width = kinds.moved(tensor.dtype)
        posted = self._link.send(kind >> 8, staged.numel() * width, staged.data_ptr(), destination, tag, staged)
        return self._noted(Message("send", posted, tensor, None if staged is tensor else staged))

    def recv(self, tensors, source, tag=0):
        if self._is_watched(tensors):
            return own(c10d.ProcessGroup.recv(self, tensors, source, tag))
        tensor = one("recv", "tensor", tensors)
        self._peer("recv", source, tag)
        return self._noted(self._expect(tensor, source, tag))

    def recv_anysource(self, tensors, tag=0):
        if self._is_watched(tensors):
            return own(c10d.ProcessGroup.recv_anysource(self, tensors, tag))
        tensor = one("recv", "tensor", tensors)
        self._peer("recv", 0, tag)
        return self._noted(self._expect(tensor, None, tag))

    def _expect(self, tensor, source, tag):
        """Post a receive. `source`: a rank, or None for any."""
        staged = None
        if not (tensor.is_cpu and tensor.is_contiguous()) or tensor.is_conj() or tensor.is_neg():
            staged = torch.empty(tensor.shape, dtype=tensor.dtype)
        kind, width = kinds.moved(tensor.dtype)
        into = tensor if staged is None else staged
        what = kind >> 8, into.numel() * width, into.data_ptr()
        if source is None:
            posted = self._link.recv_any(*what, tag, into)
        else:
            posted = self._link.recv(*what, source, tag, into)
        return Message("recv", posted, tensor, staged, source)

    def _noted(self, work):
        return self._collected(work)

    def _peer(self, name, peer, tag):
        if not 0 <= peer < self._size:
            raise ArgumentError(f"{name}: peer: it is {peer}, but the ranks are 0 to {self._size - 1}")
        if not 0 <= tag < 1 << 32:
            raise ArgumentError(f"{name}: tag: it is {tag}, but tags are 0 to {(1 << 32) - 1}")


def monitored_barrier(group, timeout, wait_all_ranks):
    """Barrier that says who has not come, by way of the store, so that the group stays usable.

    Rank 0 waits for the others' keys, and tells all what it has found. Keys are taken away once nobody reads them any
    more; those of a barrier that failed stay, under a name that no other group has.
    """
    store, rank, size = group._store, group._rank, group._size
    seconds = timeout.total_seconds()
    end = time.monotonic() + seconds
    number = next(group._barriers)
    here, before = (f"maypole/barrier/{group._key}/{n}/" for n in (number, number - 1))
    if rank != 0:
        store.set(f"{here}{rank}", "here")
        # Rank 0 may use up the whole time before it answers.
        if not _appears(store, f"{here}end", end + min(seconds, 5.0) + 0.5):
            raise StalledError(f"monitored barrier: Rank 0 has not come, or did not answer, within {seconds:g} s")
        missing = store.get(f"{here}end").decode()
        store.delete_key(f"{here}{rank}")
    else:
        missing = []
        for other in range(1, size):
            # Once somebody is missing, the others have to be there already.
            if not _appears(store, f"{here}{other}", end if wait_all_ranks or not missing else 0):
                missing.append(other)
                if not wait_all_ranks:
                    break
        missing = ", ".join(map(str, missing))
        store.set(f"{here}end", missing)
        if not missing and number > 0:
            # All have come here, so all have read what was said there.
            store.delete_key(f"{before}end")
    if missing:
        # In the words that PyTorch's own monitored barrier has, since its users look for them.
        ranks = f"Ranks {missing}" if "," in missing else f"Rank {missing}"
        mine = "timed out in monitoredBarrier" if rank == 0 else "successfully reached monitoredBarrier, but others did not"
        raise StalledError(f"Rank {rank} {mine}: {ranks} failed to pass monitoredBarrier within {seconds:g} s")


def _appears(store, key, end):
    """Whether the key is in the store, at the latest at `end`."""
    pause = 0.0
    while not store.check([key]):
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5 + 1e-5, 0.02)
    return True


