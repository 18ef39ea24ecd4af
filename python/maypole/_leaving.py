"""Leaving at the end of a process that runs no exit functions."""

import sys

from ._maypole import _leave


def see_to():
    """Children that multiprocessing forks run none of Python's exit functions, but finalizers of multiprocessing's.

    Called when the process makes its first communicator; by then such a child has the module.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is not None and sys.modules["multiprocessing.process"].parent_process() is not None:
        util.Finalize(None, _leave, exitpriority=0)
