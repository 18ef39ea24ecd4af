"""PyTorch's collectives on Maypole: importing this registers the backend ``maypole``, for CPU and CUDA tensors.

    import torch.distributed as dist
    import maypole.torch                          # not needed from PyTorch 2.15 on

    dist.init_process_group("maypole")            # or "cpu:maypole,cuda:nccl"
    dist.all_reduce(tensor)                       # and all the rest: DDP, FSDP, DTensor, ...

Start it with torchrun. The ranks meet through the store that PyTorch has made.

* `kinds`: which of Maypole's types and operations stand for PyTorch's. `calls`: what all collectives go through.
* `collectives`, `sparse`, `messages`: what c10d can ask for. `cuda`: CUDA tensors. `work`: asynchronous calls.
* `group`: the process group itself. `meeting`: how its ranks find each other. `leaving`: how it ends.
* `stand_in`: Maypole where a program asks for gloo (`maypole_stand_in`).
* `seen`: how a call goes where profilers, hooks and modes look. `mixed`: groups with other backends beside this one.
* `releases`: what older releases of PyTorch lack. `tracing`: keeps torch.compile out of all this.

Errors are Maypole's, and to programs that know PyTorch's only they are `dist.DistBackendError` too.
"""

import torch.distributed as _dist
from maypole_stand_in import stand_in

from .. import ArgumentError, Error
from . import calls, collectives, cuda, group, kinds, leaving, meeting, messages, mixed, releases, seen, sparse, tracing, work
from .group import MaypoleBackend, MaypoleGroup, create as _create
from .messages import monitored_barrier as _monitored_barrier

__all__ = ["MaypoleBackend", "MaypoleGroup", "communicator", "monitored_barrier", "stand_in"]


def communicator(group=None):
    """A new `maypole.Communicator` of a group's ranks, all of which call this: for what `torch.distributed`
    has no words for.

        comm = maypole.torch.communicator()
        comm.all_reduce(pairs, "maxloc")                        # a structured array of NumPy's
        comm.all_reduce(tensor, maypole.Op(product, width=4))   # a tensor in host memory

    Its calls have an order of their own, beside the group's. It goes on when the group is destroyed,
    until it is closed.
    """
    group = _dist.group.WORLD if group is None else group
    faces = (group, *(() if isinstance(group, MaypoleGroup) else map(group._get_backend, group._device_types)))
    links = [face._link for face in faces if hasattr(face, "_link")]
    if not links:
        raise ArgumentError(f"group: {group} is no process group of Maypole's")
    return links[0].communicator()


def monitored_barrier(group=None, timeout=None, wait_all_ranks=False):
    """`torch.distributed.monitored_barrier`, for releases whose own refuses backends other than gloo."""
    group = group or _dist.group.WORLD
    if isinstance(group, MaypoleGroup):
        _monitored_barrier(group, timeout or group._timeout, wait_all_ranks)


def _register():
    """Make the backend known to PyTorch, which calls this by the package's entry point when somebody asks for it."""
    if not hasattr(_dist.Backend, "MAYPOLE"):
        _dist.Backend.register_backend("maypole", _create, extended_api=True, devices=["cpu", "cuda"])


# In place of RuntimeError, of which it is a class as well.
if hasattr(_dist, "DistBackendError"):
    Error.__bases__ = (_dist.DistBackendError,)
tracing.leave_uncompiled(
    calls, collectives, cuda, group, kinds, leaving, meeting, messages, mixed, releases, seen, sparse, work
)
_register()
