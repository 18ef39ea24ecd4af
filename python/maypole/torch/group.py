"""The process group: what PyTorch makes, names, asks about and destroys.

There are two classes with the same methods. `MaypoleGroup` is a whole ProcessGroup: PyTorch calls its Python methods
directly, and C++ (DDP's reducer, functional collectives) finds them through the overrides that PyTorch has had for such
classes since before 2.4. `MaypoleBackend` is what a group has for a device; newer releases can have a Python class
there. It costs some microseconds more per call, so it is called only in groups that have another backend for another
device; a `MaypoleGroup` has one for those who ask for it.
"""

import atexit
import collections
import datetime
import functools
import multiprocessing.util
import os
import sys
import threading
import warnings
import weakref

import torch
from torch._C import _distributed_c10d as c10d
from torch.distributed import distributed_c10d

from .. import _maypole
from .._maypole import ArgumentError, TorchLane
from .collectives import Collectives
from .meeting import meet
from .messages import Messages, monitored_barrier
from .work import Done

# The name of the threads that run asynchronous calls; longer ones are cut off.
_LANE = "maypole-lane"


class _Gone:
    """Stands for the link of a group that cannot be used any more: every call raises."""

    def __init__(self, why):
        self._why = why

    def __getattr__(self, name):
        why = object.__getattribute__(self, "_why")

        def refuse(*_):
            raise ArgumentError(why)

        return refuse


class _Group(Collectives, Messages):
    """What both classes have. The group is made by `_join`, since the bases want different arguments first."""

    def _join(self, link, store, rank, size, timeout):
        self._link, self._store, self._rank, self._size, self._timeout = link, store, rank, size, timeout
        self._lane = TorchLane(_LANE)
        self._barriers = 0
        # Held while a receive from anyone looks for a message and takes it.
        self._finding = threading.Lock()
        self._options = _options(timeout)
        _groups.add(self)
        _see_to_leaving()

    def getBackendName(self):
        return "maypole"

    def _get_backend_name(self):
        return "maypole"

    def name(self):
        return "maypole"

    def rank(self):
        return self._rank

    def size(self):
        return self._size

    @property
    def options(self):
        """The options it was made with; of these the timeout."""
        return self._options

    def set_timeout(self, timeout):
        """The deadline of calls from now on."""
        self._link.set_timeout(timeout.total_seconds())
        self._timeout = timeout
        self._options._timeout = timeout

    _set_default_timeout = set_timeout

    def monitored_barrier(self, opts=None, wait_all_ranks=False):
        """Barrier that names those who have not come; see `messages.monitored_barrier`. `opts`: options or a timeout."""
        timeout = opts if isinstance(opts, datetime.timedelta) else getattr(opts, "timeout", None)
        if timeout is None or timeout < datetime.timedelta(0):
            timeout = self._timeout
        monitored_barrier(self, timeout, wait_all_ranks)

    def _set_sequence_number_for_group(self):
        pass

    def abort(self):
        """Fail all calls of the group, on every rank."""
        self._link.abort("abort was called on its process group")

    def shutdown(self):
        """Leave the group once what was queued is done. Its calls raise from then on."""
        link = self._link
        if isinstance(link, _Gone):
            return
        self._lane.close()
        self._link = _Gone("the process group was destroyed; it cannot be used any more")
        link.close()

    _shutdown = shutdown

    def __repr__(self):
        return f"<{type(self).__name__}: rank {self._rank} of {self._size}>"


_groups = weakref.WeakSet()
# The child of multiprocessing's that has been seen to.
_child = None


@atexit.register
def _leave():
    """A process that ends lets its groups end what was queued; then it leaves, and waits for others if they need it."""
    for group in list(_groups):
        group.shutdown()
    _maypole._leave()


def _see_to_leaving():
    """Children that multiprocessing forks run none of their parent's exit functions, but finalizers of multiprocessing's."""
    global _child
    if _child != os.getpid() and multiprocessing.parent_process() is not None:
        _child = os.getpid()
        multiprocessing.util.Finalize(None, _leave, exitpriority=0)


def _forked():
    """In the child of a fork: it has the groups' memory, but is none of their ranks."""
    for group in list(_groups):
        group._forked = group._link, group._lane
        group._lane = TorchLane(_LANE)
        group._link = _Gone(
            "the process group was made before this process was forked off, and belongs to its parent; "
            "call init_process_group here, or start processes by spawn"
        )


os.register_at_fork(after_in_child=_forked)


def _options(timeout):
    if hasattr(c10d.Backend, "Options"):
        return c10d.Backend.Options("maypole", timeout)
    options = c10d.ProcessGroup.Options("maypole")
    options._timeout = timeout
    return options


class _Alone:
    """What a ProcessGroup answers itself where no backend in it does, in releases that have none in Python."""

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
        return _devices()

    def _get_backend(self, device):
        return self

    def _has_hooks(self):
        return False

    supports_coalescing = supports_splitting = False


def _devices():
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    return devices


def _python_caller():
    """Whether the method one frame up was called by torch's Python functions, which keep what it returns."""
    return sys._getframe(2).f_globals is _functions


_functions = vars(distributed_c10d)
# Works that C++ has, and of which it would keep only its own part.
_works = collections.deque()
# So many that have been waited for stay longer, since who waits may ask again at once.
_STAY = 32


def _kept(method):
    """Keep the works that C++ callers get, in releases that do not. C++ waits for each, or takes its future, once."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        work = method(self, *args, **kwargs)
        if not isinstance(work, Done) and not _python_caller():
            while len(_works) > _STAY and _works[0].was_used:
                _works.popleft()
            _works.append(work)
        return work

    return call


def _keeps_works():
    """Whether C++ that calls a method of a Python ProcessGroup keeps the Work that it returns, and not half of it."""

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


_PYTHON_BACKENDS = _has_python_backends()

if _PYTHON_BACKENDS:

    class MaypoleBackend(_Group, c10d.Backend):
        """What serves some devices of a process group."""

        def __init__(self, link, store, rank, size, timeout):
            c10d.Backend.__init__(self, rank, size)
            self._join(link, store, rank, size, timeout)

        # A batch of messages needs no coalescing: they are posted.
        supports_coalescing = property(lambda self: False)
        supports_splitting = property(lambda self: True)

        def split(self, store, ranks, opts):
            """A backend of some of this one's ranks, which need nothing but each other to make it."""
            timeout = getattr(opts, "_timeout", None) or self._timeout
            link = self._link.subset(list(ranks), timeout.total_seconds())
            return type(self)(link, store, list(ranks).index(self._rank), len(ranks), timeout)

else:
    MaypoleBackend = None


class MaypoleGroup(_Group, *([] if _PYTHON_BACKENDS else [_Alone]), c10d.ProcessGroup):
    """A process group all of whose devices Maypole serves."""

    def __init__(self, link, store, rank, size, timeout):
        if _PYTHON_BACKENDS:
            c10d.ProcessGroup.__init__(self, store, rank, size)
            self._join(link, store, rank, size, timeout)
            # For those who ask the group's backend for something, from C++ or Python.
            kind, backend = c10d.ProcessGroup.BackendType.CUSTOM, MaypoleBackend(link, store, rank, size, timeout)
            backend._lane, backend._finding = self._lane, self._finding
            self._set_default_backend(kind)
            for device in _devices():
                self._register_backend(device, kind, backend)
        else:
            c10d.ProcessGroup.__init__(self, rank, size)
            self._join(link, store, rank, size, timeout)

    def split_group(self, new_ranks, timeout=None, opts=None, group_name=None, group_desc=None, device_types=None):
        """A group of some of this one's ranks, which need nothing but each other to make it. None for other ranks."""
        if self._rank not in new_ranks:
            return None
        timeout = timeout or self._timeout
        link = self._link.subset(list(new_ranks), timeout.total_seconds())
        name = group_name or f"{self.group_name}:{','.join(map(str, new_ranks))}"
        store = c10d.PrefixStore(f"{name}/", self._store)
        group = type(self)(link, store, new_ranks.index(self._rank), len(new_ranks), timeout)
        group._set_group_name(name)
        group._set_group_desc(group_desc or f"{self.group_desc}:split")
        return group


if not _keeps_works():
    for _name in (
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
        setattr(MaypoleGroup, _name, _kept(getattr(MaypoleGroup, _name)))


def create(options, _):
    """Make a group, or one device's part of one. PyTorch calls it, with what it calls distributed backend options."""
    store, rank, size, timeout = options.store, options.group_rank, options.group_size, options.timeout
    kind = MaypoleGroup
    if _is_one_of_several():
        if MaypoleBackend is None:
            warnings.warn(
                f"PyTorch {torch.__version__} cannot have a backend in Python beside others; "
                "maypole serves all devices of this process group",
                stacklevel=2,
            )
        else:
            kind = MaypoleBackend
    link = meet(store, rank, size, timeout.total_seconds())
    return kind(link, store, rank, size, timeout)


def _is_one_of_several():
    """Whether the group being made has other backends too. PyTorch does not say, but its frame has it."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_new_process_group_helper":
            config = frame.f_locals.get("backend_config")
            return config is not None and len(set(config.get_device_backend_map().values())) > 1
        frame = frame.f_back
    return False
