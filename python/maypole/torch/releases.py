"""What this release of PyTorch has, found by trying and not by its number, and what stands in
for what it lacks."""

import collections
import functools
import sys

import torch
from torch._C import _distributed_c10d as c10d
from torch.distributed import distributed_c10d

from .work import Done


def options(timeout):
    """What a group says it was made with."""
    if hasattr(c10d.Backend, "Options"):
        return c10d.Backend.Options("maypole", timeout)
    options = c10d.ProcessGroup.Options("maypole")
    options._timeout = timeout
    return options


def devices():
    """The devices whose tensors a group takes."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    return devices


class Alone:
    """What a ProcessGroup answers itself where no backend in it does, in releases that have none
    in Python."""

    _group_name = _group_desc = ""

    @property
    def group_name(self):
        return self._group_name

    def _set_group_name(self, name):
        self._group_name = name

    @property
    def group_desc(self):
        return self._group_desc

    def _set_group_desc(self, desc):
        self._group_desc = desc

    def get_group_store(self):
        return self._store

    @property
    def _device_types(self):
        return devices()

    def _get_backend(self, device):
        return self

    def _has_hooks(self):
        return False

    supports_coalescing = supports_splitting = False


def _python_caller():
    """Whether the method one frame up was called by torch's Python functions, which keep what it
    returns."""
    return sys._getframe(2).f_globals is _functions


_functions = vars(distributed_c10d)
# Works that C++ has, and of which it would keep only its own part.
_works = collections.deque()
# So many that have been waited for stay longer, since who waits may ask again at once.
_STAY = 32


def _kept(method):
    """Keep the works that C++ callers get, in releases that do not. C++ waits for each, or takes
    its future, once."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        work = method(self, *args, **kwargs)
        if not isinstance(work, Done) and not _python_caller():
            while len(_works) > _STAY and _works[0].was_used:
                _works.popleft()
            _works.append(work)
        return work

    return call


def keep_works(group):
    """Have a class of groups keep the works that C++ gets of it, if C++ does not."""
    if _keeps_works():
        return
    for name in (
        "allreduce",
        "allreduce_coalesced",
        "broadcast",
        "allgather",
        "allgather_into_tensor_coalesced",
        "reduce_scatter",
        "reduce_scatter_tensor_coalesced",
        "alltoall_base",
        "barrier",
    ):
        setattr(group, name, _kept(getattr(group, name)))


def _keeps_works():
    """Whether C++ that calls a method of a Python ProcessGroup keeps the Work that it returns,
    and not half of it."""

    work = Done()

    class Probe(c10d.ProcessGroup):
        def allreduce(self, tensors, opts=None):
            return work

        def getBackendName(self):
            return "probe"

    returned = c10d.ProcessGroup.allreduce(Probe(0, 1), [torch.empty(0)], c10d.AllreduceOptions())
    # Where it does, that is by wrapping it.
    return returned is not work


def _has_python_backends():
    """Whether C++ calls the methods of a Python class that stands for one device's backend."""
    called = []
    try:

        class Probe(c10d.Backend):
            def __init__(self):
                super().__init__(0, 1)

            def allreduce(self, tensors, opts=None):
                called.append(opts)
                return Done(tensors)

            def alltoall(self, outputs, inputs, opts=None):
                called.append(opts)
                return Done(outputs)

            def getBackendName(self):
                return "probe"

        group = c10d.ProcessGroup(c10d.HashStore(), 0, 1)
        group._set_default_backend(c10d.ProcessGroup.BackendType.CUSTOM)
        group._register_backend(torch.device("cpu"), c10d.ProcessGroup.BackendType.CUSTOM, Probe())
        group.allreduce([torch.zeros(1)], c10d.AllreduceOptions())
        group.alltoall([torch.zeros(1)], [torch.zeros(1)], c10d.AllToAllOptions())
    except (RuntimeError, TypeError, AttributeError):
        return False
    return len(called) == 2


PYTHON_BACKENDS = _has_python_backends()
# Whether C++ asks for methods by the names that they have since it can be told to go past the
# overriding one.
NEW_NAMES = hasattr(c10d.ProcessGroup, "all_to_all_single")
