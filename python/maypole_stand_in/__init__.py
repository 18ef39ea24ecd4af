"""Maypole in the place of another of PyTorch's backends, for programs that accept no other name.

Some programs ask for ``gloo`` by its name and take nothing else: accelerate and the Trainer of
transformers do so on CPUs. With ``MAYPOLE_TORCH=gloo`` in the environment of every rank, or after
``maypole.torch.stand_in("gloo")`` on every rank, what they get by it is Maypole's group. Nobody gets
it unasked, and rank 0 says once that it is so.

A package of its own, since PyTorch calls `asked` at the end of every ``import torch`` in an
environment that has Maypole: it must cost nothing there, and not fail where Maypole's library does.
Maypole itself is imported with the first group.
"""

import os
import sys

_NAMES = ("gloo",)
_said = False


def asked():
    """What PyTorch calls when it is imported: does something if the environment asks for it."""
    name = os.environ.get("MAYPOLE_TORCH")
    if name:
        stand_in(name, "MAYPOLE_TORCH")


def stand_in(name, argument="name"):
    """From now on a process group of the backend `name` is Maypole's: ``gloo``, to be said on every rank.

    Groups that were made before stay what they are. A ValueError for another name, a RuntimeError
    if this PyTorch cannot: it needs 2.15.
    """
    if name not in _NAMES:
        raise ValueError(f"{argument}: is {name!r}, but Maypole stands in for {' and '.join(_NAMES)} only")
    import torch
    from torch.distributed import Backend, ProcessGroup, distributed_c10d

    if not hasattr(Backend, "_ensure_backend_registered"):
        raise RuntimeError(
            f"{argument}: Maypole stands in for {name} from PyTorch 2.15 on, and this is {torch.__version__}; "
            'call init_process_group("maypole"), or unset MAYPOLE_TORCH'
        )
    Backend.register_backend(
        name,
        _create,
        extended_api=True,
        devices=Backend.backend_capability[name],
        _backend_type=ProcessGroup.BackendType.GLOO,
    )
    # What records its calls itself gets no flight recorder of PyTorch's; Maypole does not.
    getattr(distributed_c10d, "_FR_SELF_RECORDING_BACKENDS", set()).discard(name)


def _create(options, more):
    """Make a group that goes by the other's name."""
    from maypole.torch import group

    _say(options.group_rank)
    return group.create(options, more, name="gloo")


def _say(rank):
    global _said
    if rank == 0 and not _said:
        sys.stderr.write("maypole: the backend gloo of torch.distributed is Maypole in this job\n")
    _said = True
