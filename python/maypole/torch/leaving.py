"""The end of groups: destroyed, at the end of their process, or in a child by fork.

Who leaves in good order lets what was queued be done. After an exception it must not: what is
queued may wait for ranks that wait for this one, in another group, and they are to be told at
once. So a group that is destroyed while an exception is on its way, and every group of a process
that ends, waits a moment at most.
"""

import atexit
import contextlib
import multiprocessing.util
import os
import sys
import threading
import time
import weakref

from .. import _maypole
from .._maypole import ArgumentError, TorchLane

# The name of the threads that run asynchronous calls; longer ones are cut off.
_LANE = "maypole-lane"
# What is queued when a process ends has so many seconds, as the library gives what is under way.
_MOMENT = 1.0
# After so many seconds it is said what is waited for.
_SAY_AFTER = 5.0

_groups = weakref.WeakSet()
# The child of multiprocessing's that has been seen to.
_child = None


def lane():
    """A lane for a new group."""
    return TorchLane(_LANE)


class Gone:
    """Stands for the link of a group that cannot be used any more: every call raises."""

    def __init__(self, why):
        self._why = why

    def __getattr__(self, name):
        why = object.__getattribute__(self, "_why")

        def refuse(*_):
            raise ArgumentError(why)

        return refuse


class Leaving:
    """How a group ends."""

    def _see_to_leaving(self):
        _groups.add(self)
        _see_to_children()

    def abort(self):
        """Fail all calls of the group, on every rank."""
        self._link.abort("abort was called on its process group")

    def shutdown(self):
        """Leave the group once what was queued is done. Its calls raise from then on.

        While an exception is on its way (in `finally`, say) it waits for a second only, and then
        fails all calls.
        """
        link = self._link
        if isinstance(link, Gone):
            return
        raised = sys.exc_info()[1]
        if raised is None:
            with _saying(self):
                self._lane.close()
                self._streams.drain()
        elif not self._lane.leave(_MOMENT) or not self._streams.drain(_MOMENT):
            link.abort(f"its process group was destroyed after {raised!r}, with calls still under way")
        self._link = Gone("the process group was destroyed; it cannot be used any more")
        self._streams.close()
        link.close()

    _shutdown = shutdown


@contextlib.contextmanager
def _saying(group):
    """Say what is waited for, if that takes long."""
    if group._lane.is_idle() and group._streams.are_idle():
        yield
        return
    text = f"maypole: {group!r} waits for its asynchronous calls, before it is destroyed\n"
    timer = threading.Timer(_SAY_AFTER, sys.stderr.write, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@atexit.register
def _leave():
    """A process that ends gives its groups a moment for what was queued, none if it raised; then
    it leaves as all do."""
    raised = getattr(sys, "last_value", None) is not None
    until = time.monotonic() + (0.0 if raised else _MOMENT)
    try:
        for group in list(_groups):
            if not isinstance(group._link, Gone):
                group._lane.leave(max(until - time.monotonic(), 0.0))
                group._streams.drain(max(until - time.monotonic(), 0.0))
                # Kept, not closed: the library leaves what it is in by itself, and lets messages
                # end.
                group._left = group._link
                group._link = Gone("the process is about to end")
    finally:
        _maypole._leave(raised)


def _see_to_children():
    """Children that multiprocessing forks run none of their parent's exit functions, but
    finalizers of multiprocessing's."""
    global _child
    if _child != os.getpid() and multiprocessing.parent_process() is not None:
        _child = os.getpid()
        multiprocessing.util.Finalize(None, _leave, exitpriority=0)


def _forked():
    """In the child of a fork: it has the groups' memory, but is none of their ranks."""
    for group in list(_groups):
        group._forked = group._link, group._lane
        group._lane = lane()
        group._link = Gone(
            "the process group was made before this process was forked off, and belongs to its parent; "
            "call init_process_group here, or start processes by spawn"
        )


os.register_at_fork(after_in_child=_forked)
