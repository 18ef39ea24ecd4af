"""Asynchronous calls: what c10d calls a Work, and the thread that runs them.

A group has a *lane*: its asynchronous collectives in the order of the calls, and a thread that runs them. Whoever waits
for one runs those in front of it itself if the thread has not begun: a call that is waited for at once costs no change
of threads. What a callback of a future calls, while the lane is at the call that completed it, is run there and then:
so that it comes at the same place in the order of operations on every rank.
"""

import collections
import threading

import torch
from torch._C import _distributed_c10d as c10d

from .._maypole import StalledError

_get_ident = threading.get_ident


def _value(future):
    return future.value()


class Work(c10d.Work):
    """One call. Its tensors are kept until it is done."""

    def __init__(self, lane, name, body, result):
        super().__init__()
        self._lane, self._name, self._body, self._result = lane, name, body, result
        self._error = None
        # Whether somebody has waited for it, or taken a future.
        self.was_used = False
        self._ended = False
        # Held until then.
        self._done = threading.Lock()
        self._done.acquire()
        # Futures that nobody has completed yet. Whoever takes one completes it.
        self._futures = []

    def _run(self):
        """Make the call, on whatever thread, and tell everybody."""
        body, self._body = self._body, None
        try:
            body()
        except BaseException as error:  # noqa: BLE001: it is raised again where it is waited for
            self._error = error
        self._ended = True
        self._done.release()
        self._complete()

    def _complete(self):
        while self._futures:
            try:
                future = self._futures.pop()
            except IndexError:
                return
            if self._error is None:
                future.set_result(self._result)
            else:
                future.set_exception(self._error)

    def wait(self, timeout=None):
        """Wait until it is done. `timeout`: at most so long (a timedelta; 0 or none: as long as the group's timeout)."""
        if not self._ended:
            seconds = timeout.total_seconds() if timeout else 0.0
            if seconds > 0:
                if not self._done.acquire(timeout=seconds):
                    raise StalledError(f"{self._name}: not done after {seconds:g} s; it goes on, and may be waited for")
                self._done.release()
            else:
                self._lane.run_until(self)
        self.was_used = True
        if self._error is not None:
            raise self._error
        return True

    def is_completed(self):
        """Whether it is done, with or without an error."""
        return self._ended

    def is_success(self):
        """Whether it is done without an error."""
        return self._ended and self._error is None

    def exception(self):
        """Its error, if there is one."""
        return self._error

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
        self.was_used = True
        self._futures.append(future)
        if self._ended:
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


class Lane:
    """Calls that run one after the other. See the module."""

    def __init__(self, name):
        self._name = name
        self._works = collections.deque()
        # Held by the thread that runs the first of them.
        self._turn = threading.Lock()
        self._runner = None
        # One for each work that was queued.
        self._tokens = threading.Semaphore(0)
        self._thread = None
        self._closed = False

    def is_idle(self):
        """Whether a call made now on this thread would be next."""
        return not self._works and (not self._turn.locked() or self._runner == _get_ident())

    def submit(self, work):
        """Queue `work`."""
        if self._closed or self._runner == _get_ident():
            # There is no group any more to call, as it will find; or a callback of the work that is running called.
            work._run()
            return
        self._works.append(work)
        if self._thread is None:
            self._thread = threading.Thread(target=_serve, args=(self,), name=self._name, daemon=True)
            self._thread.start()
        self._tokens.release()

    def run_until(self, work):
        """Return when `work` is done; run it here if nobody is at it."""
        me = _get_ident()
        if self._runner == me:
            self._run_works(work)
        elif self._turn.acquire(blocking=False):
            try:
                self._runner = me
                self._run_works(work)
            finally:
                self._runner = None
                self._turn.release()
        if not work._ended:
            with work._done:
                pass

    def _run_works(self, last):
        while not last._ended:
            try:
                work = self._works.popleft()
            except IndexError:
                return
            work._run()

    def close(self):
        """Return when all that was queued is done, and end the thread."""
        try:
            self.run_until(self._works[-1])
        except IndexError:
            pass
        if self._runner != _get_ident():
            with self._turn:
                pass
        self._closed = True
        self._tokens.release()


def _serve(lane):
    me = _get_ident()
    while True:
        lane._tokens.acquire()
        with lane._turn:
            if not lane._works:
                if lane._closed:
                    return
                continue
            lane._runner = me
            try:
                work = lane._works.popleft()
                work._run()
                del work
            finally:
                lane._runner = None
