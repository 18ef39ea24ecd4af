"""CUDA tensors: calls are queued on a stream of the group's own, beside the one that computes.

A group has one such stream on each device that it is called with. There a call waits for what the
current stream has been given so far, and the current stream waits for the call only when somebody
waits for its work. So computation goes on while a rank is late, and while data moves. No call
waits on this thread.

Whatever a call does beside moving elements (copying tensors with gaps, say) runs on the group's
stream too. PyTorch's allocator gives memory away in the order of the stream that it was made on
and knows nothing of ours. So what a call uses is kept until the stream that made the call has been
had to wait for its end, or its end has been seen.

After a verdict the library lets our streams go, and what waits for them goes on with no result. It
says so on standard error, or ends the process (MAYPOLE_DEVICE_ABORT); here `wait` raises it. Of
this part nothing has run on a GPU: the tests have the emulated driver, and a double of
`torch.cuda`.
"""

import collections
import threading
import time

import torch
from torch._C import _distributed_c10d as c10d

from .._maypole import ArgumentError
from .work import _at_its_end, _backward_pass, _value

# Streams of groups that have ended, by the number of their device. None is ever destroyed, since
# the allocator remembers streams by their handles.
_spare = {}
# Between two looks at a stream that is waited for, in seconds: at first, and at last.
_BLINK, _DOZE = 5e-5, 5e-3


class Kept:
    """What a call uses, until it is let go of; and its end, an event."""

    __slots__ = ("end", "what")

    def __init__(self, end, what):
        self.end, self.what = end, what

    def has_ended(self):
        try:
            return self.end.query()
        except RuntimeError:  # the device has failed, and nothing more comes of it
            return True


class GroupStream:
    """A group's stream on one device."""

    def __init__(self, own, device):
        self.own, self.device = own, device
        self.stream = torch.cuda.ExternalStream(own.handle, device=device)
        # Calls whose end nobody has seen, oldest first.
        self._under_way = collections.deque()
        self._forgetting = threading.Lock()

    def issue(self, link, name, body, result, has_future):
        """Make the calls of `body`: their work. `result`: the tensors that they fill."""
        if torch.cuda.is_current_stream_capturing():
            # Before anything of ours is queued, which would become a part of the graph.
            raise ArgumentError(
                f"{name}: the current stream is being captured into a CUDA graph; a call counts "
                "what it does in memory that ranks share, and a graph that is launched twice would "
                "repeat old counts: call it outside the capture"
            )
        self.forget()
        caller = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(caller)
        with torch.cuda.stream(self.stream):
            try:
                body()
            finally:
                # What it has queued before it failed may run, too.
                kept = Kept(self.stream.record_event(), body)
                self._under_way.append(kept)
            return CudaWork(link, name, self, caller, [kept], result, has_future)

    def forget(self):
        """Let go of what ended calls have used: whether all have ended."""
        calls = self._under_way
        # Another thread that is at it sees as much.
        if self._forgetting.acquire(blocking=False):
            try:
                while calls and calls[0].has_ended():
                    calls.popleft()
            finally:
                self._forgetting.release()
        return not calls


class Streams:
    """A group's streams, by the number of their device."""

    def __init__(self):
        self._mine = {}

    def on(self, link, device):
        """The stream on a device."""
        index = torch.cuda.current_device() if device.index is None else device.index
        mine = self._mine.get(index)
        if mine is None:
            spare = _spare.setdefault(index, [])
            try:
                mine = spare.pop()
            except IndexError:
                mine = GroupStream(link.stream(index), torch.device("cuda", index))
            mine = self._mine.setdefault(index, mine)
        return mine

    def are_idle(self):
        """Whether all that was queued has ended."""
        return all([mine.forget() for mine in self._mine.values()])

    def drain(self, seconds=None):
        """Wait until it has, for so many seconds at most: whether it has."""
        until = None if seconds is None else time.monotonic() + seconds
        nap = _BLINK
        while not self.are_idle():
            if until is not None and time.monotonic() >= until:
                return False
            time.sleep(nap)
            nap = min(2 * nap, _DOZE)
        return True

    def close(self, spare=_spare):
        """The group has ended: others may have its streams."""
        while self._mine:
            index, mine = self._mine.popitem()
            spare.setdefault(index, []).append(mine)

    __del__ = close


class CudaWork(c10d.Work):
    """Calls that have been queued on a group's stream."""

    was_used = True

    def __init__(self, link, name, on, caller, kept, result, has_future):
        super().__init__()
        self._link, self._name, self._on, self._caller = link, name, on, caller
        self._kept, self._result = kept, result
        # It was found to have ended well, whatever becomes of the group later.
        self._is_fine = False
        # Completed where the stream is now, not where it is when somebody asks for it.
        self._future = self._completed() if has_future else None

    def _completed(self):
        # A future notes where the current stream is, and has whoever waits for it wait for that.
        with torch.cuda.stream(self._on.stream):
            future = torch.futures.Future(devices=[self._on.device])
            future.set_result(self._result)
        return future

    @classmethod
    def together(cls, works):
        """One work for several that were queued one after the other on one stream; else None."""
        if not all(isinstance(work, cls) and work._on is works[0]._on for work in works):
            return None
        if not works:
            return None
        first = works[0]
        kept = [kept for work in works for kept in work._kept]
        result = [tensor for work in works for tensor in work._result]
        return cls(first._link, "coalesced", first._on, first._caller, kept, result, True)

    def _let_go(self):
        for kept in self._kept:
            kept.what = None

    def wait(self, timeout=None):
        """Have the current stream wait for it, which this thread does not; and raise what the group
        has failed with, if it has."""
        current = torch.cuda.current_stream(self._on.device)
        current.wait_event(self._kept[-1].end)
        if current == self._caller:
            # Memory that is given back on this stream from now on is used by others after the call.
            self._let_go()
        error = self.exception()
        if error is not None:
            raise error
        return True

    def synchronize(self):
        self.wait()

    def is_completed(self):
        """Whether it has ended, or never will."""
        if self._is_fine:
            return True
        has_ended = self._kept[-1].has_ended()
        error = self._link.error()
        if has_ended:
            self._let_go()
            self._is_fine = error is None
        return has_ended or error is not None

    def is_success(self):
        return self.is_completed() and self._is_fine

    def exception(self):
        """What the group has failed with, unless this was found to have ended before."""
        return None if self._is_fine else self._link.error()

    def result(self):
        return self._result

    def get_future(self):
        """A future of the tensors: whoever waits for it has his stream wait for the call."""
        # As in `work`: in a backward pass errors come at its end.
        if _backward_pass() != -1:
            _at_its_end(self.wait)
        error = self.exception()
        if error is not None:
            future = torch.futures.Future()
            failed = future.then(_value)
            future.set_exception(error)
            return failed
        if self._future is None:
            self._future = self._completed()
        return self._future
