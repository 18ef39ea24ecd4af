"""Groups that have other backends for other devices: what Python gets of their calls.

Such a group is PyTorch's own ProcessGroup, and its calls go through the dispatcher to the backend of
the tensors' device. Of what a Python backend returns Python gets C++'s wrapper, which forwards `wait`
and `get_future` and nothing else: it is never completed, has no error and no source. PyTorch makes
such a group itself, and its class has no room for methods of one group. So once a process makes one,
the class gets methods that return our own Work where a backend of ours has made one, and what they
did before otherwise.
"""

from torch._C import _distributed_c10d as c10d

from .collectives import Collectives
from .messages import Messages
from .seen import forget, own

_has_ours = False


def _through(name):
    method = getattr(c10d.ProcessGroup, name)

    def call(self, *arguments, **named):
        forget()
        return own(method(self, *arguments, **named))

    # By the name of the frame C++ knows that a method calls what it overrides: see `seen`.
    call.__code__ = call.__code__.replace(co_name=name)
    call.__name__ = call.__qualname__ = name
    call.__doc__ = method.__doc__
    return call


def _gather_single():
    method = c10d.ProcessGroup.gather_single

    def gather_single(self, output, input, *options):
        # C++ asks no Python backend for this one.
        backend = self._get_backend(input.device)
        if isinstance(backend, Collectives):
            return backend.gather_single(output, input, *options)
        return method(self, output, input, *options)

    return gather_single


def keep_works():
    """Have groups of PyTorch's own class return our Work to Python where we have made one."""
    global _has_ours
    if _has_ours:
        return
    _has_ours = True
    single = _gather_single() if hasattr(c10d.ProcessGroup, "gather_single") else None
    for name in {*vars(Collectives), *vars(Messages), "_end_coalescing"}:
        if hasattr(c10d.ProcessGroup, name) and not name.startswith("__"):
            setattr(c10d.ProcessGroup, name, _through(name))
    if single is not None:
        c10d.ProcessGroup.gather_single = c10d.ProcessGroup.gather_into_tensor = single
