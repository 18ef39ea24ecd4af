"""Being seen: how a call goes through PyTorch's dispatcher if somebody looks there.

A method of `MaypoleGroup` is called without the dispatcher, which is most of why a small call is
quicker here. But the dispatcher is where profilers, modes (`CommDebugMode`, `FakeTensorMode`),
hooks of the group (the NaN check, the flight recorder) and classes of tensors with a
`__torch_dispatch__` of their own come to know of a call. So each method asks first whether
anything of that kind is there (`_is_watched`), and if so calls the method that it overrides,
`ProcessGroup.allreduce(self, ...)`. C++ does not come back to a method that is calling what it
overrides (it knows such calls by the name and the first argument of the frame that makes them).
It goes to the dispatcher, and from there to the group's `MaypoleBackend`, which has the same
link and lane.

What comes back from there is C++'s wrapper of our Work, which forwards `wait` and `get_future`
and nothing else. So a backend notes the Work that it makes (`note`), and the caller gets that
one.
"""

import os
import threading

import torch
from torch._C import _distributed_c10d as c10d
from torch.autograd import profiler as _profiler
from torch.utils import _python_dispatch as _modes

_Tensor, _MANY = torch.Tensor, (list, tuple)
# Whether works are registered for `wait_tensor` to find: for compiled functions that get what is
# under way. PyTorch's own function that says so takes as long as all else that is asked.
_in_flight = False
_set_in_flight = getattr(c10d, "_set_allow_inflight_collective_as_graph_input", None)


def _note_in_flight(value):
    global _in_flight
    _in_flight = bool(value)
    return _set_in_flight(value)


if _set_in_flight is not None:
    c10d._set_allow_inflight_collective_as_graph_input = _note_in_flight

_made = threading.local()


class _Classes(dict):
    """By class: whether tensors of it live in the dispatcher, as fake ones and DTensors do."""

    def __missing__(self, kind):
        own = torch.Tensor.__torch_dispatch__
        there = self[kind] = issubclass(kind, torch.Tensor) and kind.__torch_dispatch__ is not own
        return there


_live_there = _Classes()


def note(work):
    """Keep the Work that this thread's call through the dispatcher has made."""
    _made.work = work
    return work


def forget():
    """A call through the dispatcher begins on this thread."""
    _made.work = None


def own(wrapped):
    """Our Work, if the call that this thread has made through the dispatcher came to a backend
    of ours."""
    work, _made.work = _made.work, None
    # Where works are registered, the one that is must be waited for: C++'s.
    return wrapped if work is None or _in_flight else work


class Seen:
    """What a `MaypoleGroup` has to be seen."""

    def _begin_to_be_seen(self):
        # What is attached to the group: numbers of hooks, and those that C++ attaches by itself.
        self._hooks = set()
        if os.environ.get("TORCH_DIST_NAN_CHECK") == "1":
            self._hooks.add("NaN check")
        # The flight recorder is attached to every group unless it is told not to be; recording
        # takes longer than a small call. So it is asked for by name.
        if any(_is_positive(name) for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")):
            self._hooks.add("flight recorder")

    def _is_watched(self, tensors=(), others=()):
        """Whether a call on these tensors (lists, tuples, or one) has to go through the
        dispatcher."""
        if (
            self._hooks
            or _profiler._is_profiler_enabled
            or _modes._is_in_torch_dispatch_mode
            or _in_flight
        ):
            _made.work = None
            return True
        for tensor in tensors if type(tensors) in _MANY else (tensors,):
            if type(tensor) is not _Tensor and _live_there[type(tensor)]:
                _made.work = None
                return True
        for tensor in others if type(others) in _MANY else (others,):
            if type(tensor) is not _Tensor and _live_there[type(tensor)]:
                _made.work = None
                return True
        return False

    def register_pre_hook(self, hook_id, hook):
        self._hooks.add(("pre", hook_id))
        c10d.ProcessGroup.register_pre_hook(self, hook_id, hook)

    def unregister_pre_hook(self, hook_id):
        self._hooks.discard(("pre", hook_id))
        c10d.ProcessGroup.unregister_pre_hook(self, hook_id)

    def register_post_hook(self, hook_id, hook):
        self._hooks.add(("post", hook_id))
        c10d.ProcessGroup.register_post_hook(self, hook_id, hook)

    def unregister_post_hook(self, hook_id):
        self._hooks.discard(("post", hook_id))
        c10d.ProcessGroup.unregister_post_hook(self, hook_id)


def _is_positive(name):
    try:
        return int(os.environ.get(name, "0")) > 0
    except ValueError:
        return False


class Noted:
    """What a `MaypoleBackend` does to works beside making them."""

    def _issue(self, *arguments, **named):
        return note(super()._issue(*arguments, **named))

    def _direct(self, *arguments, **named):
        return note(super()._direct(*arguments, **named))

    def _noted(self, work):
        return note(super()._noted(work))

    def _end_coalescing(self, device=None):
        return note(super()._end_coalescing(device))
