"""The process group: what PyTorch makes, names, asks about and destroys.

There are two classes with the same methods. `MaypoleGroup` is a whole ProcessGroup: PyTorch
calls its Python methods directly, and C++ (DDP's reducer, functional collectives) finds them
through the overrides that PyTorch has had for such classes since before 2.4. `MaypoleBackend` is
what a group has for a device; newer releases can have a Python class there. It costs some
microseconds more per call, so it is called only in groups that have another backend for another
device (`mixed`), and where somebody looks (`seen`). A `MaypoleGroup` has one, which shares all
that it has.
"""

import datetime
import itertools
import sys
import warnings

import torch
from torch._C import _distributed_c10d as c10d
from torch.distributed import distributed_c10d

from . import leaving, meeting, mixed, releases
from .collectives import Collectives
from .cuda import Streams
from .messages import Messages, monitored_barrier
from .seen import Noted, Seen


# What the faces of one group have in common.
_SHARED = (
    "_link", "_key", "_store", "_rank", "_size", "_name", "_lane", "_streams", "_barriers",
    "_coalescing", "_options",
)  # fmt: skip


class _Group(leaving.Leaving, Collectives, Messages):
    """What both classes have. The group is made by `_join`, since the bases want different
    arguments first."""

    def _join(self, link, key, store, rank, size, timeout, name):
        self._link, self._key, self._store, self._rank, self._size = link, key, store, rank, size
        # By which Python knows the backend: another's, where it stands in for that one.
        self._name = name
        self._lane = leaving.lane()
        self._streams = Streams()
        self._barriers = itertools.count()
        # The works of threads whose calls are taken as one: see `calls`.
        self._coalescing = {}
        self._options = releases.options(timeout)
        self._see_to_leaving()

    def _share(self, group):
        """Be another face of a group."""
        for part in _SHARED:
            setattr(self, part, getattr(group, part))
        self._see_to_leaving()

    def getBackendName(self):
        # C++ asks by this name, and takes what calls itself gloo for its own class.
        return "maypole"

    def _get_backend_name(self):
        return self._name

    def name(self):
        return self._name

    def rank(self):
        return self._rank

    def size(self):
        return self._size

    @property
    def options(self):
        """The options it was made with; of these the timeout."""
        return self._options

    @property
    def _timeout(self):
        return self._options._timeout

    def set_timeout(self, timeout):
        """The deadline of calls from now on."""
        self._link.set_timeout(timeout.total_seconds())
        self._options._timeout = timeout

    _set_default_timeout = set_timeout

    def monitored_barrier(self, opts=None, wait_all_ranks=False):
        """Barrier that names those who have not come; see `messages.monitored_barrier`. `opts`:
        options or a timeout."""
        timeout = opts if isinstance(opts, datetime.timedelta) else getattr(opts, "timeout", None)
        if timeout is None or timeout < datetime.timedelta(0):
            timeout = self._timeout
        monitored_barrier(self, timeout, wait_all_ranks)

    def _set_sequence_number_for_group(self):
        pass

    def _get_sequence_number_for_group(self):
        """How many collectives have been called: those of asynchronous calls that copy count
        when they begin."""
        return self._link.sequence()

    def __repr__(self):
        return f"<{type(self).__name__}: rank {self._rank} of {self._size}>"


if releases.PYTHON_BACKENDS:

    class MaypoleBackend(Noted, _Group, c10d.Backend):
        """What serves some devices of a process group."""

        def __init__(self, link, key, store, rank, size, timeout, name="maypole"):
            c10d.Backend.__init__(self, rank, size)
            self._join(link, key, store, rank, size, timeout, name)

        @classmethod
        def of(cls, group):
            """The backend inside a group that is Maypole's as a whole."""
            self = cls.__new__(cls)
            c10d.Backend.__init__(self, group._rank, group._size)
            self._share(group)
            return self

        # A batch of messages needs no coalescing: they are posted.
        supports_coalescing = property(lambda self: False)
        supports_splitting = property(lambda self: True)
        # PyTorch asks a Python class for these, and the inherited ones ask PyTorch.
        supports_reconfigure = property(lambda self: False)
        supports_window = property(lambda self: False)
        supports_shrinking = property(lambda self: False)
        _supports_time_estimate = property(lambda self: False)

        def get_error(self):
            """What has become of the group, as c10d says it."""
            return getattr(c10d.ErrorType, self._link.failure() or "SUCCESS")

        def split(self, store, ranks, opts):
            """A backend of some of this one's ranks, which need nothing but each other to make
            it."""
            timeout = getattr(opts, "_timeout", None) or self._timeout
            ranks = list(ranks)
            link, key = meeting.part(self._link, self._key, ranks, timeout.total_seconds())
            return type(self)(link, key, store, ranks.index(self._rank), len(ranks), timeout, self._name)

else:
    MaypoleBackend = None


class MaypoleGroup(
    *([Seen] if releases.PYTHON_BACKENDS and releases.NEW_NAMES else []),
    _Group,
    *([] if releases.PYTHON_BACKENDS else [releases.Alone]),
    c10d.ProcessGroup,
):
    """A process group all of whose devices Maypole serves."""

    def __init__(self, link, key, store, rank, size, timeout, name="maypole"):
        if not releases.PYTHON_BACKENDS:
            c10d.ProcessGroup.__init__(self, rank, size)
            self._join(link, key, store, rank, size, timeout, name)
            return
        c10d.ProcessGroup.__init__(self, store, rank, size)
        self._join(link, key, store, rank, size, timeout, name)
        # For those who ask the group's backend for something, from C++ or Python.
        kind, backend = c10d.ProcessGroup.BackendType.CUSTOM, MaypoleBackend.of(self)
        self._set_default_backend(kind)
        for device in releases.devices():
            self._register_backend(device, kind, backend)
        if releases.NEW_NAMES:
            self._begin_to_be_seen()

    def split_group(self, new_ranks, timeout=None, opts=None, group_name=None, group_desc=None, device_types=None):
        """A group of some of this one's ranks, which need nothing but each other to make it.
        None for other ranks."""
        if self._rank not in new_ranks:
            return None
        timeout, ranks = timeout or self._timeout, list(new_ranks)
        link, key = meeting.part(self._link, self._key, ranks, timeout.total_seconds())
        name = group_name or f"{self.group_name}:{','.join(map(str, ranks))}"
        store = c10d.PrefixStore(f"{name}/", self._store)
        group = type(self)(link, key, store, ranks.index(self._rank), len(ranks), timeout, self._name)
        group._set_group_name(name)
        group._set_group_desc(group_desc or f"{self.group_desc}:split")
        return group


releases.keep_works(MaypoleGroup)


def create(options, _, name="maypole"):
    """Make a group, or one device's part of one. PyTorch calls it, with what it calls
    distributed backend options. `name`: by which it is asked for."""
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
    members = list(options.global_ranks_in_group)
    parent = _world() if size > 1 and len(members) == size else None
    if parent is None:
        link, key = meeting.meet(store, rank, size, timeout.total_seconds())
    else:
        link, key = meeting.part(parent._link, parent._key, members, timeout.total_seconds())
    made = kind(link, key, store, rank, size, timeout, name)
    whole = getattr(options, "process_group", None)
    if kind is not MaypoleGroup:
        mixed.keep_works()
    elif getattr(whole, "bound_device_id", None) is not None:
        made.bound_device_id = whole.bound_device_id
    return made


def _world():
    """The group of the world, or its backend, if that is Maypole's: another group is a part of
    it."""
    if not distributed_c10d.is_initialized():
        return None
    world = distributed_c10d._get_default_group()
    backends = () if isinstance(world, MaypoleGroup) else map(world._get_backend, world._device_types)
    kinds = MaypoleGroup if MaypoleBackend is None else (MaypoleGroup, MaypoleBackend)
    ours = next((face for face in (world, *backends) if isinstance(face, kinds)), None)
    return None if ours is None or isinstance(ours._link, leaving.Gone) else ours


def _is_one_of_several():
    """Whether the group being made has other backends too. PyTorch does not say, but its frame
    has it."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_new_process_group_helper":
            config = frame.f_locals.get("backend_config")
            return config is not None and len(set(config.get_device_backend_map().values())) > 1
        frame = frame.f_back
    return False
