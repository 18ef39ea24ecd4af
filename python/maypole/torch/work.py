"""Asynchronous calls: what c10d calls a Work.

A group has a *lane*, which belongs to the extension (``python/src/torch/lane.rs``): its asynchronous collectives in the
order of the calls, and a thread that runs them. Whoever waits for one runs those in front of it himself if the thread
has not begun. What a callback of a future calls, while the lane is at the call that completed it, is run there and then:
so that it comes at the same place in the order of operations on every rank.
"""

import torch
from torch._C import _distributed_c10d as c10d

from .._maypole import StalledError

_begin = c10d.Work.__init__
_backward_pass = torch._C._current_graph_task_id
_at_its_end = torch.autograd.Variable._execution_engine.queue_callback


def _value(future):
    return future.value()


class Work(c10d.Work):
    """One call: a job that was queued on a lane, and the tensors that it fills."""

    # Whether somebody has waited for it, or taken a future.
    was_used = False
    # Futures that nobody has completed yet, if there were any. Whoever takes one completes it.
    _futures = None

    def __init__(self, lane, name, job, result):
        _begin(self)
        self._lane, self._name, self._job, self._result = lane, name, job, result

    def _complete(self):
        """Complete the futures. The lane calls it when the job is done."""
        error = self._job.exception()
        while self._futures:
            try:
                future = self._futures.pop()
            except IndexError:
                return
            if error is None:
                future.set_result(self._result)
            else:
                future.set_exception(error)

    def wait(self, timeout=None):
        """Wait until it is done. `timeout`: at most so long (a timedelta; 0 or none: as long as the group's timeout)."""
        self.was_used = True
        if timeout:
            seconds = timeout.total_seconds()
            if seconds > 0 and not self._lane.wait_for(self._job, seconds):
                raise StalledError(f"{self._name}: not done after {seconds:g} s; it goes on, and may be waited for")
        self._lane.wait(self._job)
        return True

    def is_completed(self):
        """Whether it is done, with or without an error."""
        return self._job.done()

    def is_success(self):
        """Whether it is done without an error."""
        return self._job.done() and self._job.exception() is None

    def exception(self):
        """Its error, if there is one."""
        return self._job.exception()

    def result(self):
        """The tensors that it fills."""
        return self._result

    def synchronize(self):
        """As `wait`."""
        self.wait()

    def get_future(self):
        """A future of the tensors, completed when the call is."""
        future = torch.futures.Future()
        # An error that Python gives to a future is to C++ a value like any other. One that a callback raises is an error.
        result = future.then(_value)
        # But a RuntimeError, whatever was raised. DDP takes futures within a backward pass and waits for them at its end,
        # so the call is waited for in front of that: an error of Python's goes on as it is to whoever called `backward`.
        if _backward_pass() != -1:
            _at_its_end(self.wait)
        self.was_used = True
        if self._futures is None:
            self._futures = []
        self._futures.append(future)
        if not self._job.watch(self):
            self._complete()
        return result


class Done(c10d.Work):
    """A call that was done when it returned."""

    def __init__(self, result=()):
        super().__init__()
        self._result = list(result)

    def wait(self, timeout=None):
        return True

    def is_completed(self):
        return True

    def is_success(self):
        return True

    def exception(self):
        return None

    def result(self):
        return self._result

    def synchronize(self):
        pass

    def get_future(self):
        future = torch.futures.Future()
        future.set_result(self._result)
        return future


class Together(Work):
    """Several calls that were started between `start_coalescing` and `end_coalescing`."""

    def __init__(self, works):
        self._works = works
        super().__init__(None, "coalesced", None, [tensor for work in works for tensor in work.result()])

    def wait(self, timeout=None):
        for work in self._works:
            work.wait(timeout)
        return True

    def is_completed(self):
        return all(work.is_completed() for work in self._works)

    def is_success(self):
        return all(work.is_success() for work in self._works)

    def exception(self):
        return next((work.exception() for work in self._works if work.exception() is not None), None)

    def get_future(self):
        future = torch.futures.Future()
        result = future.then(_value)
        parts = torch.futures.collect_all([work.get_future() for work in self._works])

        def complete(parts):
            try:
                parts.wait()
            except Exception as error:  # noqa: BLE001: it is the future's
                future.set_exception(error)
            else:
                future.set_result(self._result)

        parts.add_done_callback(complete)
        return result
